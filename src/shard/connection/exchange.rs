//! An exchange that hyper reads and writes, between two looks of our own at what comes.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Future as _, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;

use super::{Connection, Step};
use crate::metrics::{End, SlowClientOutcome};
use crate::net::stream::Received;
use crate::net::timers::{TICKS_PER_S, ticks};
use crate::protocol::http::FIELD_COUNT_MAX;
use crate::protocol::http::refusal::BadRequest;
use crate::protocol::http::request::{RequestHead, Version};
use crate::route::auth::Grant;
use crate::service::web::body::ContentFault;
use crate::service::web::gate::{Exchange, Gate, Malformed, Request};
use crate::service::web::io::BUFFER_SIZE_MAX;
use crate::service::{Phase, Place};
use crate::shard::web::respond;

/// What an exchange begins with.
pub(super) struct Begun {
    /// What hyper is to read.
    request: Request,
    /// Who the client is.
    peer: IpAddr,
    /// What it may do.
    grant: Grant,
    /// Whether the client would send another request.
    keeps_alive: bool,
    /// Whether the end of the connection may be the end of the response.
    is_http10: bool,
}

impl Begun {
    /// The exchange of a request that was read from `bytes` and is followed by `rest`.
    pub(super) fn new(
        head: &RequestHead<'_>,
        bytes: &[u8],
        rest: &[u8],
        (peer, grant): (IpAddr, Grant),
    ) -> Self {
        let is_http10 = head.version() == Version::Http10;
        Self {
            request: Request { head: bytes.to_vec(), rest: rest.to_vec(), body: head.body() },
            peer,
            grant,
            // Without chunks only the end of the connection could end most responses.
            keeps_alive: head.keeps_alive() && !is_http10,
            is_http10,
        }
    }

    /// How many bytes have come behind the head, be they of the body or of what follows; they are not counted yet.
    pub(super) fn rest_size(&self) -> usize {
        self.request.rest.len()
    }
}

/// How an exchange came out.
enum Outcome {
    /// Both messages are whole, and the connection is as before.
    Done,
    /// hyper has ended it, in order.
    Last,
    /// It broke off.
    Broken(End),
    /// It did not begin: what came of the body breaks a rule.
    Malformed,
}

impl Connection {
    /// Lets hyper read one request and write the response to it.
    pub(super) async fn exchange(&mut self, place: Rc<Place>, begun: Box<Begun>) -> Step {
        self.waiting = None;
        let exchange = Exchange::default();
        let outcome = self.run(&place, &exchange, *begun).await;
        let ahead = exchange.take_ahead();
        if !matches!(outcome, Outcome::Malformed) {
            // What was the body's is counted by now.
            self.uncounted = ahead.len();
        }
        match outcome {
            Outcome::Done if self.client.resources().phase() == Phase::Serving => {
                self.keep(ahead, Vec::new())
            }
            Outcome::Done | Outcome::Last => Step::Leave { unsent: Vec::new(), end: End::HttpDone },
            Outcome::Broken(end) => Step::Gone(end),
            Outcome::Malformed => {
                self.refuse(BadRequest::BodyMalformed.into(), Some(place.route_index), false)
            }
        }
    }

    async fn run(&self, place: &Rc<Place>, exchange: &Exchange, begun: Begun) -> Outcome {
        let Begun { request, peer, grant, keeps_alive, is_http10 } = begun;
        let gate = match Gate::new(&self.client, exchange, request) {
            Ok(gate) => gate,
            Err(Malformed) => return Outcome::Malformed,
        };
        let table = Rc::clone(&self.table);
        let service = service_fn(|request| {
            let (table, grant) = (&table, &grant);
            async move {
                let mut response = respond(table, place, (peer, grant), request).await;
                // RFC 9112 section 9.6. Whoever has not sent all of a body cannot be told where the next request begins.
                if !exchange.is_read() || table.port().resources.phase() != Phase::Serving {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut builder = Builder::new();
        builder
            // hyper reads the head into its buffer again, so it has to fit.
            .max_buf_size(BUFFER_SIZE_MAX.max(self.table.port().limits.request_head_size_max + 1))
            .half_close(true)
            .keep_alive(keeps_alive)
            .max_headers(FIELD_COUNT_MAX)
            .title_case_headers(true);
        let mut connection = pin!(builder.serve_connection(gate, service));
        let resources = Rc::clone(self.client.resources());
        let timer = &self.client.life.timer;
        loop {
            timer.set(resources.timers.after(TICKS_PER_S));
            let polled = poll_fn(|context| match connection.as_mut().poll(context) {
                Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                Poll::Pending if exchange.is_done() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            match timer.race(polled).await {
                Some(None) => return Outcome::Done,
                Some(Some(Ok(()))) => return Outcome::Last,
                Some(Some(Err(error))) => {
                    return self.broken(&error, exchange, place, is_http10);
                }
                None => {
                    if let Some(end) = self.look_after(exchange, place) {
                        return Outcome::Broken(end);
                    }
                }
            }
        }
    }

    /// Looks, once a second, whether the client is there and reads.
    fn look_after(&self, exchange: &Exchange, place: &Place) -> Option<End> {
        let resources = self.client.resources();
        if resources.phase() == Phase::Cutting {
            return Some(End::Shutdown);
        }
        let is_slow = |since| resources.timers.now() >= since + place.write_timeout;
        if exchange.blocked_since().is_some_and(is_slow) {
            place.cells().slow_client(SlowClientOutcome::Cut);
            self.client.stream.reset_on_close();
            return Some(End::SlowClient);
        }
        // Until the request is read, hyper meets the end of the stream itself.
        let is_gone = || matches!(self.client.stream.peek_now(), Received::End | Received::Reset);
        (exchange.is_read() && is_gone()).then_some(End::ClientGone)
    }

    /// What hyper's error says.
    fn broken(&self, error: &hyper::Error, exchange: &Exchange, place: &Place, is_http10: bool) -> Outcome {
        if error.is_parse() || error.is_parse_too_large() {
            // Our own parser is the stricter one; whatever it let pass, hyper has answered.
            if !exchange.is_malformed() {
                place.cells().http_request(Some(place.route_index), 400);
            }
            return Outcome::Last;
        }
        if exchange.is_malformed() {
            return Outcome::Last;
        }
        if error.is_user() {
            // The content of the response broke off. Chunks or a size show that for themselves.
            if is_http10 {
                self.client.stream.reset_on_close();
            }
            let fault = error.source().and_then(|source| source.downcast_ref::<ContentFault>());
            return Outcome::Broken(match fault {
                Some(ContentFault::File) => End::Internal,
                _ => End::UpstreamGone,
            });
        }
        Outcome::Broken(End::ClientGone)
    }

    /// Keeps the connection for another request, whose beginning is `ahead`, if it has come already. What is unsent of the
    /// answer to this one leaves first.
    pub(super) fn keep(&mut self, ahead: Vec<u8>, unsent: Vec<u8>) -> Step {
        self.has_answered = true;
        self.waiting = None;
        self.head = ahead;
        self.scan = Self::new_scan(&self.table);
        self.begin_request();
        if self.head.is_empty() {
            let limits = &self.table.port().limits;
            self.deadline = self.client.resources().timers.after(ticks(limits.keep_alive_timeout));
        }
        Step::Again { unsent }
    }
}
