//! `service = "files"`: the files of a folder.
//!
//! A shard never waits for a disk: what is to be looked up or read goes to a few threads of the process ([`readers`]),
//! which know the folder ([`folder`]) and judge what the client knows of a file already ([`conditions`]). A response reads
//! one chunk ahead of its client and no more (`content.rs`).

pub mod codings;
pub mod conditions;
mod content;
pub mod folder;
pub mod readers;

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use self::conditions::{Conditions, Verdict};
use self::content::FileContent;
use self::folder::{Answer, Folder, Found, Wanted};
use self::readers::{Desk, Outcome};
use super::body::{self, Content};
use super::redirect::escape;
use crate::config::{PathPattern, path};
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::RequestHead;
use crate::service::retry_after_s;

/// The folders of a shard's routes, by the routes' index.
#[derive(Debug, Default)]
pub struct Folders {
    /// Where the shard has files read; there exactly where a route serves files.
    pub desk: Option<Rc<Desk>>,
    /// `None` for a route that serves no files.
    pub folders: Vec<Option<Arc<Folder>>>,
}

impl Folders {
    /// That of a route which serves files.
    pub fn of(&self, route_index: usize) -> Option<(&Rc<Desk>, &Arc<Folder>)> {
        self.desk.as_ref().zip(self.folders.get(route_index)?.as_ref())
    }
}

/// The answer to a request on a route of this path, which is for a file of this folder.
///
/// # Errors
/// A 405, or the 404 of a path that has no meaning.
pub async fn answer(
    (desk, folder): (&Rc<Desk>, &Arc<Folder>),
    route_path: &PathPattern,
    head: &RequestHead<'_>,
    headers: &HeaderMap,
) -> Result<Response<Content>, Refusal> {
    let is_head = match head.method() {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(Refusal::MethodNotAllowed { allow: "GET, HEAD" }),
    };
    let canonical = path::canonical(head.path()).map_err(|_| Refusal::NoRoute)?;
    let below = below(route_path, &canonical);
    if !folder.files().hidden && is_hidden(below) {
        return Ok(missing(is_head));
    }
    let wanted = Wanted {
        path: below.to_vec(),
        is_head,
        takes_html: takes_html(headers),
        codings: codings::accepted(headers, &folder.files().precompressed),
        conditions: Conditions::of(headers, is_head),
    };
    let answer = match desk.look(folder, wanted) {
        Ok(ticket) => match ticket.await {
            Outcome::Looked(answer) => answer,
            Outcome::Read(_) => unreachable!("a lookup is answered by what was found"),
        },
        Err(_) => Answer::Busy,
    };
    Ok(match answer {
        Answer::Found(found) => respond(desk, folder, *found, is_head),
        Answer::Folder => with_slash(head),
        Answer::Missing => missing(is_head),
        Answer::Forbidden => plain(StatusCode::FORBIDDEN, "This file may not be read.", is_head),
        Answer::Busy => {
            let sentence = "Too many files are being read; try again later.";
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, sentence, is_head);
            response.headers_mut().insert(header::RETRY_AFTER, retry_after_s().into());
            response
        }
        Answer::Broken => plain(StatusCode::INTERNAL_SERVER_ERROR, "This file cannot be read.", is_head),
    })
}

/// What of a path is looked up in the folder: what follows a prefix, or the last segment of a path that is the route's
/// only one. Without the slash at its beginning; empty where that was missing too.
fn below<'p>(route_path: &PathPattern, path: &'p [u8]) -> &'p [u8] {
    match route_path {
        PathPattern::Prefix(prefix) => path.get(prefix.len()..).unwrap_or_default(),
        PathPattern::Exact(_) => {
            let slash = path.iter().rposition(|&byte| byte == b'/').unwrap_or_default();
            &path[slash..]
        }
    }
}

/// Whether a segment begins with a dot, apart from the one name that is there to be seen (RFC 8615).
fn is_hidden(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').any(|segment| segment.starts_with(b".") && segment != b".well-known")
}

/// Whether the client asks for a page, and not for a part of one: browsers name the type when they navigate.
fn takes_html(headers: &HeaderMap) -> bool {
    codings::weights(headers, &header::ACCEPT).any(|(name, weight)| name == b"text/html" && weight > 0)
}

/// The answer to a request for a folder that lacks the slash: the same place with it, relative to where the client is,
/// which keeps host and prefix as the client knows them.
fn with_slash(head: &RequestHead<'_>) -> Response<Content> {
    let segment = head.path().rsplit('/').next().unwrap_or_default();
    // A segment may hold a colon, and must not pass for a scheme.
    let mut location = "./".to_owned();
    escape(segment, &mut location);
    location.push('/');
    if let Some(query) = head.query() {
        location.push('?');
        escape(query, &mut location);
    }
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let location = HeaderValue::from_str(&location).expect("what is no visible ASCII has been escaped");
    response.headers_mut().insert(header::LOCATION, location);
    response
}

fn missing(is_head: bool) -> Response<Content> {
    plain(StatusCode::NOT_FOUND, "There is no such file here.", is_head)
}

/// An answer without a file, as those look that refuse a request elsewhere.
fn plain(status: StatusCode, sentence: &'static str, is_head: bool) -> Response<Content> {
    let text = format!("{sentence}\n");
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, text.len().into());
    if !is_head {
        *response.body_mut() = body::full(text);
    }
    response
}

/// The answer to a request for a file that is there.
fn respond(desk: &Rc<Desk>, folder: &Arc<Folder>, found: Found, is_head: bool) -> Response<Content> {
    let Found { verdict, etag, modified, size, coding, media_type, first, rest } = found;
    let mut response = match verdict {
        Verdict::Whole | Verdict::Part { .. } | Verdict::NotModified => Response::new(body::empty()),
        Verdict::Failed => plain(
            StatusCode::PRECONDITION_FAILED,
            "The file is not the one that the request is about.",
            is_head,
        ),
        Verdict::Unsatisfiable => {
            plain(StatusCode::RANGE_NOT_SATISFIABLE, "The file ends before this range.", is_head)
        }
    };
    let files = folder.files();
    let headers = response.headers_mut();
    if !files.precompressed.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    if files.fallback.is_some() {
        // Whether a path that leads nowhere is a page depends on who asks.
        headers.append(header::VARY, HeaderValue::from_static("Accept"));
    }
    let (status, length) = match verdict {
        Verdict::Failed => (StatusCode::PRECONDITION_FAILED, None),
        Verdict::Unsatisfiable => {
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes */{size}")));
            (StatusCode::RANGE_NOT_SATISFIABLE, None)
        }
        Verdict::NotModified => (StatusCode::NOT_MODIFIED, None),
        Verdict::Whole => (StatusCode::OK, Some(size)),
        Verdict::Part { first, last } => {
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes {first}-{last}/{size}")));
            (StatusCode::PARTIAL_CONTENT, Some(last - first + 1))
        }
    };
    if length.is_some() || verdict == Verdict::NotModified {
        headers.insert(header::ETAG, value(&etag));
        if let Some(seconds) = modified {
            let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            headers.insert(header::LAST_MODIFIED, value(&httpdate::fmt_http_date(modified)));
        }
        if let Some(cache_control) = &files.cache_control {
            headers.insert(header::CACHE_CONTROL, value(cache_control));
        }
    }
    if let Some(length) = length {
        headers.insert(header::CONTENT_TYPE, value(&media_type));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::CONTENT_LENGTH, length.into());
        if let Some(coding) = coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.label()));
        }
        if !is_head {
            *response.body_mut() = match rest {
                Some(rest) => FileContent::content(desk, folder, length, first, rest),
                None => body::full(first),
            };
        }
    }
    *response.status_mut() = status;
    response
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("the configuration, and what we write, hold no control bytes")
}

/// The media type of a file of this name, with the charset that text has everywhere by now.
fn media_type(name: &[u8]) -> Cow<'static, str> {
    let name = String::from_utf8_lossy(name);
    match mime_guess::from_path(&*name).first_raw() {
        // RFC 9239 section 6: one type for all scripts.
        Some("application/javascript") => "text/javascript; charset=utf-8".into(),
        Some(text) if text.starts_with("text/") => format!("{text}; charset=utf-8").into(),
        Some(other) => other.into(),
        None => "application/octet-stream".into(),
    }
}
