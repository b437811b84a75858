//! The answer to a request that hyper has read, on whichever version of HTTP.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::authorize::{self, Verdict};
use super::decision::{Decision, decide};
use super::table::Table;
use crate::config::Service;
use crate::protocol::http::refusal::{BadRequest, Refusal};
use crate::protocol::http::request::{BodyFraming, RequestHead, Version};
use crate::protocol::http::{FIELD_COUNT_MAX, Field};
use crate::route::auth::Grant;
use crate::service::reach::stickiness;
use crate::service::web::body::{self, Content};
use crate::service::web::proxy::{self, Question, RequestBody};
use crate::service::web::{files, redirect};
use crate::service::{Place, Upstreams, page};

/// Answers a request of HTTP/2, which came past our own parser, and counts the answer.
pub(super) async fn answer(table: &Table, peer: IpAddr, request: Request<Incoming>) -> Response<Content> {
    let (mut parts, incoming) = request.into_parts();
    join_cookies(&mut parts.headers);
    let mut at_once = answer_at_once(table, peer, &parts, None);
    if let AtOnce::Authorize(place, question) = at_once {
        at_once = match authorize::ask(table, &place, *question).await {
            Verdict::Granted(grant) => answer_at_once(table, peer, &parts, Some(grant)),
            Verdict::Denied(denial) => {
                AtOnce::Answer(denial.response(parts.method == http::Method::HEAD), Some(place.route_index))
            }
            Verdict::Unavailable(refusal) => {
                AtOnce::Answer(refused(refusal, parts.method == http::Method::HEAD), Some(place.route_index))
            }
        };
    }
    match at_once {
        AtOnce::Authorize(..) => unreachable!("whoever was asked is not asked again"),
        AtOnce::Nothing(place, grant) => {
            respond(table, &place, (peer, &grant), Request::from_parts(parts, incoming)).await
        }
        AtOnce::Answer(answer, route_index) => {
            table.port().cells.http_request(route_index, answer.status().as_u16());
            answer
        }
    }
}

/// Makes one field of the cookies of a request, which browsers send as a field each so that they compress better: nobody
/// but HTTP/2 knows them so (RFC 9113 section 8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let joined = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).expect("its parts are values");
        fields.insert(header::COOKIE, joined);
    }
}

/// What can be said to a request without asking anybody else.
enum AtOnce {
    /// Nothing: it is for this place, and may do this.
    Nothing(Rc<Place>, Grant),
    /// Nothing, until somebody has been asked this about it.
    Authorize(Rc<Place>, Box<Question>),
    /// The answer, on the route of this index if it has one.
    Answer(Response<Content>, Option<usize>),
}

fn answer_at_once(table: &Table, peer: IpAddr, parts: &Parts, given: Option<Grant>) -> AtOnce {
    let is_head = parts.method == http::Method::HEAD;
    let (target, fields) = (parts.uri.to_string(), fields(parts));
    if fields.len() > table.port().limits.request_head_count_max {
        return AtOnce::Answer(refused(Refusal::TooManyFields, is_head), None);
    }
    let head = match head(parts, &target, &fields) {
        Ok(head) => head,
        Err(refusal) => return AtOnce::Answer(refused(refusal, is_head), None),
    };
    match decide(table, &head, given, || Some(peer)) {
        Decision::Authorize { place } => match authorize::question(table, place, &head, peer) {
            Ok(question) => AtOnce::Authorize(Rc::clone(place), Box::new(question)),
            Err(refusal) => AtOnce::Answer(refused(refusal, is_head), Some(place.route_index)),
        },
        Decision::Web { place, grant } => AtOnce::Nothing(Rc::clone(place), grant),
        Decision::Page { place } => {
            let answer = page::refusal(&head).map_or_else(
                || {
                    let mut bytes = Vec::new();
                    page::answer(is_head, true).write(&mut bytes);
                    written(&bytes, is_head)
                },
                |refusal| refused(refusal, is_head),
            );
            AtOnce::Answer(answer, Some(place.route_index))
        }
        Decision::Refuse { refusal, route_index } => AtOnce::Answer(refused(refusal, is_head), route_index),
        // RFC 9113 section 8.2.2: there is no Upgrade in HTTP/2, and whoever reads it has taken it for malformed before.
        Decision::Open { place, .. } | Decision::Ask { place, .. } => {
            AtOnce::Answer(refused(Refusal::UpgradeRequired, is_head), Some(place.route_index))
        }
        Decision::ClientGone => unreachable!("the client's address is known"),
    }
}

/// Answers a request that is for this place, and counts the answer.
pub(super) async fn respond(
    table: &Table,
    place: &Rc<Place>,
    (peer, grant): (IpAddr, &Grant),
    request: Request<Incoming>,
) -> Response<Content> {
    let (parts, incoming) = request.into_parts();
    let answer = match place.service {
        Service::Http => {
            let upstreams = place.upstreams.as_ref().expect("a service that relays has upstreams");
            match question(table, place, upstreams, (peer, grant), &parts) {
                Ok(question) => {
                    let (silence, size_max) = (place.body_timeout, place.request_body_size_max);
                    let body = RequestBody::new(incoming, &place.port, silence, size_max);
                    proxy::pass(&place.port, upstreams, question, body).await
                }
                Err(refusal) => Err(refusal),
            }
        }
        Service::Redirect => redirected(table, place, &parts),
        Service::Files => file(table, place, &parts).await,
        Service::Echo | Service::Page | Service::WebSocket | Service::Tcp => {
            unreachable!("what these answer is no affair of hyper's")
        }
    };
    let answer = answer.unwrap_or_else(|refusal| refused(refusal, parts.method == http::Method::HEAD));
    place.cells().http_request(Some(place.route_index), answer.status().as_u16());
    answer
}

/// A file.
async fn file(table: &Table, place: &Place, parts: &Parts) -> Result<Response<Content>, Refusal> {
    let (target, fields) = (parts.uri.to_string(), fields(parts));
    let head = head(parts, &target, &fields)?;
    let folder = table.folder(place).expect("a service of files has a folder");
    files::answer(folder, &table.route(place).path, &head, &parts.headers).await
}

/// Where a client is sent.
fn redirected(table: &Table, place: &Place, parts: &Parts) -> Result<Response<Content>, Refusal> {
    let (target, fields) = (parts.uri.to_string(), fields(parts));
    let head = head(parts, &target, &fields)?;
    let route = table.route(place);
    let redirect = route.redirect.as_ref().expect("a service that redirects knows where to");
    redirect::answer(redirect, &route.path, &head, table.same_origin(&head))
}

/// What an upstream is asked.
fn question(
    table: &Table,
    place: &Place,
    upstreams: &Upstreams,
    (peer, grant): (IpAddr, &Grant),
    parts: &Parts,
) -> Result<Question, Refusal> {
    let (target, fields) = (parts.uri.to_string(), fields(parts));
    let head = head(parts, &target, &fields)?;
    if let BodyFraming::Length(size) = head.body()
        && size > place.request_body_size_max
    {
        return Err(Refusal::BodyTooLarge);
    }
    let sender = table.sender(place, &head, peer);
    let bytes = table
        .pass(place, &head, (sender, grant), |passage, out| passage.write_plain(&head, out).map(drop))?;
    let hash = stickiness(upstreams.group.balance(), &head, sender.client());
    let mut parts = parse(&bytes)?;
    if head.body() == BodyFraming::Chunked {
        // hyper would leave out a body of unknown size where the method rarely has one, such as GET.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(Question { head: parts, hash, client: sender.client() })
}

/// The fields of a request as our own parser would have them: with the host that HTTP/2 has elsewhere.
fn fields(parts: &Parts) -> Vec<Field<'_>> {
    let mut fields = Vec::with_capacity(parts.headers.len() + 1);
    if let Some(authority) = parts.uri.authority()
        && !parts.headers.contains_key(header::HOST)
    {
        fields.push(Field { name: "host", value: authority.as_str().as_bytes() });
    }
    let all = parts.headers.iter();
    fields.extend(all.map(|(name, value)| Field { name: name.as_str(), value: value.as_bytes() }));
    fields
}

/// The head of a request that hyper has read.
fn head<'h>(parts: &'h Parts, target: &'h str, fields: &'h [Field<'h>]) -> Result<RequestHead<'h>, Refusal> {
    let version = if parts.version == http::Version::HTTP_10 { Version::Http10 } else { Version::Http11 };
    RequestHead::new(parts.method.as_str(), target, version, fields)
}

/// The head of a request as hyper writes it.
pub(super) fn parse(bytes: &[u8]) -> Result<Parts, Refusal> {
    // What the gateway adds to a client's fields are some ten, and those of the operator.
    let mut storage = [const { MaybeUninit::uninit() }; FIELD_COUNT_MAX + 128];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut storage) {
        Ok(status) if status.is_complete() => {}
        _ => return Err(Refusal::TooManyFields),
    }
    let (method, path) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let mut request = Request::builder().method(method).uri(path);
    for field in &*parsed.headers {
        request = request.header(field.name, field.value);
    }
    let request = request.body(()).map_err(|_| Refusal::from(BadRequest::Target))?;
    Ok(request.into_parts().0)
}

/// The response that a refusal is, the same as on the wire of our own path; the connection may stay.
fn refused(refusal: Refusal, is_head: bool) -> Response<Content> {
    let mut bytes = Vec::with_capacity(512);
    refusal.write(&mut bytes);
    written(&bytes, is_head)
}

/// The response that these bytes are, which our own path would send.
fn written(bytes: &[u8], is_head: bool) -> Response<Content> {
    let mut storage = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut storage);
    let parsed_size = parsed.parse(bytes).expect("what we write can be parsed");
    let head_size = parsed_size.unwrap();
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.expect("what we write has a status");
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    for field in &*parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).expect("what we write are names");
        let is_of_the_connection = matches!(name, header::CONNECTION | header::UPGRADE);
        if !is_of_the_connection {
            let value = HeaderValue::from_bytes(field.value).expect("what we write are values");
            response.headers_mut().insert(name, value);
        }
    }
    if !is_head {
        *response.body_mut() = body::full(Bytes::copy_from_slice(&bytes[head_size..]));
    }
    response
}
