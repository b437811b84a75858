//! `service = "http"`: requests passed to an HTTP server, responses passed back.

mod request_body;
mod response_body;

use std::future::pending;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;

pub use self::request_body::{Progress, RequestBody};
use self::response_body::{ResponseBody, WayBack};
use super::body::Content;
use super::kept::Sender;
use crate::config::upstream::HeaderEdits;
use crate::metrics::ConnectResult;
use crate::net::clock;
use crate::net::timers::{Tick, Timer, ticks};
use crate::protocol::http::list;
use crate::protocol::http::refusal::Refusal;
use crate::service::reach::{Asker, Reached, Unreached, Way, reach, refusal_of};
use crate::service::upstream::{Attempt, Unavailable};
use crate::service::{Phase, Port, Upstreams, retry_after_s};

/// What an upstream is asked for a client.
#[derive(Debug)]
pub struct Question {
    /// The head that the upstream gets.
    pub head: Parts,
    /// What the upstream depends on, where clients stick to one.
    pub hash: Option<u64>,
    /// Who the client is.
    pub client: IpAddr,
}

/// Passes a request on, and returns the response as the client gets it, or why there is none.
///
/// What was sent is sent again only where the upstream cannot have done anything with it: nothing of it had left; or the
/// connection was a kept one, which ended without the head of a response, and the method is idempotent and there is no body
/// (RFC 9110 section 9.2.2).
///
/// # Errors
/// The refusal.
pub async fn pass(
    port: &Rc<Port>,
    upstreams: &Upstreams,
    question: Question,
    body: RequestBody,
) -> Result<Response<Content>, Refusal> {
    let timer = Timer::new(Rc::clone(port));
    let asker = Asker::by(&timer);
    let may_repeat = question.head.method.is_idempotent() && body.is_end_stream();
    let is_to_head = question.head.method == Method::HEAD;
    let progress = Rc::clone(&body.progress);
    let mut body = Some(body);
    let mut may_use_kept = true;
    let mut asked = Asked { upstreams, is_open: false };
    loop {
        asked.is_open = true;
        let kept = |attempt: &Attempt| if may_use_kept { upstreams.kept.take(attempt) } else { None };
        let reached = reach(asker, upstreams, question.hash, question.client, kept).await;
        asked.is_open = false;
        let Reached { attempt, way } = reached.map_err(|unreached| match unreached {
            Unreached::Refused(refusal) => refusal,
            Unreached::Abandoned(_) => draining(),
        })?;
        let (began, mut sender) = match way {
            Way::Kept(sender) => (None, sender),
            Way::New { stream, began, .. } => match upstreams.kept.begin(stream).await {
                Ok(sender) => (Some(began), sender),
                Err(error) => return Err(failed(upstreams, attempt, &question, result_of(&error))),
            },
        };
        let this_body = body.take().unwrap_or_else(|| RequestBody::none(port));
        let request = Request::from_parts(question.head.clone(), this_body);
        // What was connected before is counted already.
        asked.is_open = began.is_some();
        let sent = send(asker, upstreams, &mut sender, request, &progress).await;
        asked.is_open = false;
        let response = match sent {
            Ok(response) => response,
            Err(Unanswered::NotSent(unsent)) if sender.is_used => {
                body = Some(unsent);
                may_use_kept = false;
                continue;
            }
            Err(Unanswered::Lost(ConnectResult::Reset)) if sender.is_used && may_repeat => {
                may_use_kept = false;
                continue;
            }
            Err(Unanswered::NotSent(_)) => {
                return Err(failed(upstreams, attempt, &question, ConnectResult::Reset));
            }
            Err(Unanswered::Lost(result)) => {
                if let Some(refusal) = progress.fault.get() {
                    upstreams.cells.connect(ConnectResult::Abandoned);
                    return Err(refusal);
                }
                return Err(failed(upstreams, attempt, &question, result));
            }
            Err(Unanswered::Abandoned) => {
                upstreams.cells.connect(ConnectResult::Abandoned);
                return Err(draining());
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked for that.
            return Err(failed(upstreams, attempt, &question, ConnectResult::BadHandshake));
        }
        if has_unknown_coding(response.headers()) {
            return Err(failed(upstreams, attempt, &question, ConnectResult::BadHandshake));
        }
        if let Some(began) = began {
            upstreams.cells.connect(ConnectResult::Opened);
            upstreams.cells.connect_duration.observe(clock::now().saturating_duration_since(began));
        }
        let (index, address) = (attempt.index(), attempt.address().clone());
        let lease = attempt.opened(clock::monotonic_ms());
        let (mut head, incoming) = response.into_parts();
        // That of the upstream is for its connection alone (RFC 9110 section 2.5). As HTTP/1.0 a body without a size would
        // end with the client's connection, and one that is cut would pass for a whole one.
        head.version = Version::HTTP_11;
        pass_head(&mut head.headers, &upstreams.relay.response_headers, is_to_head);
        let silence = ticks(upstreams.relay.limits.response_timeout);
        drop(timer);
        let content = ResponseBody {
            incoming,
            timer: Timer::new(Rc::clone(port)),
            silence,
            deadline: None,
            way_back: Some(WayBack { kept: Rc::clone(&upstreams.kept), index, address, sender, progress }),
            _lease: lease,
        };
        return Ok(Response::from_parts(head, content.into_content()));
    }
}

fn draining() -> Refusal {
    Refusal::Draining { retry_after_s: retry_after_s() }
}

/// Counts the failure of an attempt, and tells what the client is told.
fn failed(upstreams: &Upstreams, attempt: Attempt, question: &Question, result: ConnectResult) -> Refusal {
    upstreams.cells.connect(result);
    attempt.failed(result, question.client, clock::monotonic_ms());
    refusal_of(Unavailable::Exhausted, Some(result))
}

/// Counts an upstream that has not answered when the client leaves, with whom all that waits for it is dropped.
struct Asked<'u> {
    upstreams: &'u Upstreams,
    /// True exactly while nothing has come of it.
    is_open: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.upstreams.cells.connect(ConnectResult::Abandoned);
        }
    }
}

/// Why a request has no answer.
enum Unanswered {
    /// Nothing of it has left; here is its body.
    NotSent(RequestBody),
    /// It was sent, in part at least.
    Lost(ConnectResult),
    /// The shard cuts its connections.
    Abandoned,
}

/// Sends a request and waits for the head of its response.
async fn send(
    asker: Asker<'_>,
    upstreams: &Upstreams,
    sender: &mut Sender,
    request: Request<RequestBody>,
    progress: &Progress,
) -> Result<Response<Incoming>, Unanswered> {
    let timers = &asker.resources().timers;
    let silence = ticks(upstreams.relay.limits.response_timeout);
    progress.at.set(timers.now());
    let mut answer = pin!(sender.requests.try_send_request(request));
    loop {
        // An upstream that takes a body is not silent.
        let deadline = progress.at.get().saturating_add(silence).saturating_add(1);
        match asker.wait(deadline, answer.as_mut()).await {
            Ok(Some(Ok(response))) => return Ok(response),
            Ok(Some(Err(mut error))) => {
                return Err(match error.take_message() {
                    Some(request) => Unanswered::NotSent(request.into_body()),
                    None => Unanswered::Lost(result_of(error.error())),
                });
            }
            // Nor is one that has all there is of a body, and the client has a deadline of its own.
            Ok(None) if progress.is_awaited.get() => progress.at.set(timers.now()),
            Ok(None) if progress.at.get().saturating_add(silence) >= timers.now() => {}
            Ok(None) => return Err(Unanswered::Lost(ConnectResult::HandshakeTimedOut)),
            Err(_) => return Err(Unanswered::Abandoned),
        }
    }
}

/// What an error of hyper's says of an upstream.
fn result_of(error: &hyper::Error) -> ConnectResult {
    if error.is_parse() || error.is_parse_too_large() {
        ConnectResult::BadHandshake
    } else {
        ConnectResult::Reset
    }
}

/// Whether a response has another transfer coding than chunked. None was asked for (RFC 9110 section 10.1.4), and without
/// the field, which is for one connection alone, what is encoded would pass for the content.
fn has_unknown_coding(fields: &HeaderMap) -> bool {
    let values = fields.get_all(header::TRANSFER_ENCODING);
    let mut codings = values.iter().flat_map(|value| list::elements(value.as_bytes()));
    fields.contains_key(header::TRANSFER_ENCODING)
        && !(codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"))
            && codings.next().is_none())
}

/// The fields that are for one connection alone (RFC 9110 section 7.6.1).
const OF_THE_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes out of the head of a response what is for the connection to the upstream alone (RFC 9110 section 7.6.1), and
/// edits the rest.
fn pass_head(fields: &mut HeaderMap, edits: &HeaderEdits, is_to_head: bool) {
    let listed: Vec<HeaderName> = fields
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .collect();
    for name in listed {
        fields.remove(name);
    }
    // RFC 9112 section 6.3: a size beside chunks is none, and hyper would believe it.
    if fields.contains_key(header::TRANSFER_ENCODING) && !is_to_head {
        fields.remove(header::CONTENT_LENGTH);
    }
    for name in &OF_THE_CONNECTION {
        fields.remove(name);
    }
    for name in &edits.remove {
        fields.remove(name);
    }
    for (name, value) in &edits.set {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("the configuration holds tokens alone");
        let value = HeaderValue::from_str(value).expect("the configuration holds no control bytes");
        fields.insert(name, value);
    }
}

/// Ready once this deadline has passed, or the shard cuts its connections.
fn poll_deadline(timer: &Timer<Rc<Port>>, deadline: Tick, context: &mut Context<'_>) -> Poll<()> {
    loop {
        timer.set(deadline);
        ready!(pin!(timer.race(pending::<()>())).poll(context));
        let resources = &timer.clock().resources;
        // A change of phase lets every deadline pass.
        if resources.timers.now() >= deadline || resources.phase() == Phase::Cutting {
            return Poll::Ready(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(fields: &[(&str, &str)], edits: &HeaderEdits, is_to_head: bool) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        pass_head(&mut map, edits, is_to_head);
        // The order of fields with different names says nothing.
        let mut passed: Vec<_> =
            map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        passed.sort_by(|a, b| a.split(": ").next().cmp(&b.split(": ").next()));
        passed
    }

    #[test]
    fn what_is_of_the_upstreams_connection_does_not_pass() {
        let fields = [
            ("Connection", "close, X-Hop"),
            ("Connection", "Keep-Alive"),
            ("X-Hop", "a"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Upgrade", "h2c"),
            ("Trailer", "Digest"),
            ("Set-Cookie", "a=b"),
            ("Set-Cookie", "c=d"),
        ];
        assert_eq!(
            passed(&fields, &HeaderEdits::default(), false),
            ["set-cookie: a=b", "set-cookie: c=d", "trailer: Digest"]
        );
    }

    #[test]
    fn a_size_beside_chunks_is_none() {
        let fields = [("Transfer-Encoding", "chunked"), ("Content-Length", "5")];
        assert!(passed(&fields, &HeaderEdits::default(), false).is_empty());
        // RFC 9110 section 9.3.2: it says what GET would have got.
        assert_eq!(passed(&fields[1..], &HeaderEdits::default(), true), ["content-length: 5"]);
    }

    #[test]
    fn edits_remove_and_then_set() {
        let edits = HeaderEdits {
            remove: vec!["server".to_owned()],
            set: vec![("X-Env".to_owned(), "prod".to_owned())],
        };
        let fields = [("Server", "a"), ("X-ENV", "test"), ("X-Env", "more"), ("Vary", "b")];
        assert_eq!(passed(&fields, &edits, false), ["vary: b", "x-env: prod"]);
    }
}
