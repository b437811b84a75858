//! Asks a service about the head of a request, as nginx does with `auth_request` and Traefik with `forwardAuth`.

use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};

use super::table::Table;
use super::web;
use crate::config::auth::Forward;
use crate::metrics::AuthRefusal;
use crate::net::timers::{Tick, Timer, ticks};
use crate::protocol::http::Field;
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::RequestHead;
use crate::protocol::http::response::{
    append_checked_field, append_field, append_number_field, append_status_line,
};
use crate::route::auth::Grant;
use crate::service::web::body::{self, Content};
use crate::service::web::proxy::{self, Question, RequestBody};
use crate::service::{Place, Port, retry_after_s};

/// Bytes of an answer's body that are read, so that the connection can be kept; nobody looks at them.
const BODY_SIZE_MAX: usize = 64 << 10;

/// What came of asking.
pub(super) enum Verdict {
    /// It is let in.
    Granted(Grant),
    /// It is not, and this is what the client is told.
    Denied(Denial),
    /// Nobody could tell.
    Unavailable(Refusal),
}

/// The answer of a service that does not let a request in, as far as it is passed on.
pub(super) struct Denial {
    /// 401, 403, or a redirect.
    pub(super) status: StatusCode,
    fields: HeaderMap,
}

/// What is asked about a request of this place.
///
/// # Errors
/// [`Refusal`], where its head cannot be passed on.
pub(super) fn question(
    table: &Table,
    place: &Place,
    head: &RequestHead<'_>,
    peer: IpAddr,
) -> Result<Question, Refusal> {
    let forward = forward(table, place);
    let sender = table.sender(place, head, peer);
    // The authority that routes the request, which a target may name besides Host (RFC 9112 section 3.2.2).
    let authority = head.authority().map(|authority| match authority.port {
        Some(port) => format!("{}:{port}", authority.host),
        None => authority.host.to_owned(),
    });
    let host = authority.iter().map(|authority| Field { name: "host", value: authority.as_bytes() });
    let shown = head.fields().iter().filter(|field| is_asked_about(field.name)).copied();
    let fields: Vec<Field<'_>> = host.chain(shown).collect();
    let asked = RequestHead::new("GET", &forward.target, head.version(), &fields)?;
    let target =
        head.query().map_or_else(|| head.path().to_owned(), |query| format!("{}?{query}", head.path()));
    let granted = [
        ("X-Forwarded-Method", head.method().to_owned()),
        ("X-Forwarded-Uri", target.clone()),
        ("X-Original-Method", head.method().to_owned()),
        ("X-Original-URI", target),
    ];
    let granted = granted.map(|(name, value)| (name.to_owned(), value));
    let server = &forward.relay.upstreams[0];
    let host = [("Host".to_owned(), server.authority())];
    let bytes = table.pass_to_asked(&asked, sender, &host, (&forward.target, &granted))?;
    let mut parts: Parts = web::parse(&bytes)?;
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Question { head: parts, hash: None, client: sender.client() })
}

/// Whether a field is shown: not what is about the body or the upgrade alone, nor what would pass for a word of ours.
fn is_asked_about(name: &str) -> bool {
    const OURS: [&str; 3] = ["x-original-method", "x-original-uri", "x-original-url"];
    const NOT_SHOWN: [&str; 10] = [
        "host",
        "content-length",
        "transfer-encoding",
        "expect",
        "upgrade",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "trailer",
        "range",
    ];
    let folded = name.to_ascii_lowercase().replace('_', "-");
    // What of the resource the client has already is no affair of who judges it.
    let is_conditional = folded.starts_with("if-");
    !is_conditional && !NOT_SHOWN.contains(&folded.as_str()) && !OURS.contains(&folded.as_str())
}

/// Asks, within the time that the route has for it.
pub(super) async fn ask(table: &Table, place: &Place, question: Question) -> Verdict {
    let forward = forward(table, place);
    let asked = place.asked.as_ref().expect("a route that asks knows whom");
    let timer = Timer::new(Rc::clone(&place.port));
    let deadline = table.port().resources.timers.after(ticks(forward.relay.limits.response_timeout));
    let answer = proxy::pass(&place.port, asked, question, RequestBody::none(&place.port));
    let Some(Ok(response)) = until(&timer, deadline, answer).await else { return unavailable(table) };
    let (parts, body) = response.into_parts();
    // What is left of it would keep the connection from being used again.
    let _ = until(&timer, deadline, Limited::new(body, BODY_SIZE_MAX).collect()).await;
    match parts.status {
        status if status.is_success() => {
            let headers =
                forward.headers.iter().filter_map(|name| Some((name.clone(), joined(&parts.headers, name)?)));
            Verdict::Granted(Grant { headers: headers.collect(), expiry: None })
        }
        status if is_passed_on(status) => {
            table.port().cells.auth_refusal(AuthRefusal::Denied);
            Verdict::Denied(Denial { status, fields: parts.headers })
        }
        _ => unavailable(table),
    }
}

/// Runs `future` until it is ready or the time is over, which is `None`; whatever else has deadlines pass early.
async fn until<F: Future>(timer: &Timer<Rc<Port>>, deadline: Tick, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    loop {
        timer.set(deadline);
        match timer.race(future.as_mut()).await {
            None if timer.timers().now() < deadline => {}
            outcome => return outcome,
        }
    }
}

fn unavailable(table: &Table) -> Verdict {
    table.port().cells.auth_refusal(AuthRefusal::AuthUnavailable);
    Verdict::Unavailable(Refusal::AuthUnavailable { retry_after_s: retry_after_s() })
}

/// Whether an answer with this status is for the client: who it is, or where to go to prove it.
fn is_passed_on(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308 | 401 | 403)
}

/// All values of a field as one list (RFC 9110 section 5.3); `None` where there is none, or none that is text.
fn joined(fields: &HeaderMap, name: &str) -> Option<String> {
    let values: Option<Vec<&str>> = fields.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.join(", "))
}

fn forward<'t>(table: &'t Table, place: &Place) -> &'t Forward {
    let auth = table.route(place).auth.as_ref();
    auth.and_then(|auth| auth.forward()).expect("the route asks somebody")
}

impl Denial {
    /// The fields that are passed on.
    const FIELDS: [HeaderName; 3] = [header::WWW_AUTHENTICATE, header::LOCATION, header::SET_COOKIE];

    const fn sentence(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "The request does not prove who it is from.",
            403 => "This request is not allowed here.",
            _ => "The request has to prove who it is from, elsewhere.",
        }
    }

    /// Appends the whole answer, behind which the connection closes.
    pub(super) fn write(&self, out: &mut Vec<u8>, is_head: bool) {
        append_status_line(out, self.status.as_u16());
        append_field(out, "Connection", "close");
        append_field(out, "Cache-Control", "no-store");
        for (name, value) in self.passed_on() {
            append_checked_field(out, name.as_str(), value);
        }
        append_field(out, "Content-Type", "text/plain; charset=utf-8");
        append_number_field(out, "Content-Length", self.sentence().len() + 1);
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(self.sentence().as_bytes());
            out.push(b'\n');
        }
    }

    /// The same as a response of hyper's.
    pub(super) fn response(&self, is_head: bool) -> Response<Content> {
        let content = format!("{}\n", self.sentence());
        let size = HeaderValue::from(content.len());
        let mut response = Response::new(if is_head { body::empty() } else { body::full(content) });
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        fields.insert(header::CONTENT_LENGTH, size);
        for name in Self::FIELDS {
            for value in self.fields.get_all(&name) {
                fields.append(name.clone(), value.clone());
            }
        }
        response
    }

    fn passed_on(&self) -> impl Iterator<Item = (&HeaderName, &[u8])> {
        let names = Self::FIELDS.iter();
        names.flat_map(|name| self.fields.get_all(name).iter().map(move |value| (name, value.as_bytes())))
    }
}
