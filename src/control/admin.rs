//! The admin endpoint: what runs, over HTTP, to read and never to change.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | a page that shows the status, and the style and script that it loads |
//! | `/metrics` | everything in Prometheus's text format |
//! | `/live` | 200 while the control thread runs; names the I/O driver |
//! | `/ready` | 200 while every port serves, 503 while starting or draining |
//! | `/api/v1/status` | the status as JSON, from the same cells as the metrics |

mod access;
mod status;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::access::Denial;
use super::certificates::PortTls;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::protocol::closed_set;
use crate::service::upstream::Group;

/// What the admin endpoint tells of.
pub struct AdminState {
    /// The cells of every shard and port.
    pub metrics: Arc<Metrics>,
    /// What the gateway is doing.
    pub phase: watch::Receiver<Phase>,
    /// Where each port listens, in the order of the metrics' ports.
    pub ports: Vec<PortFacts>,
    /// The upstreams of each route that relays.
    pub groups: Vec<Arc<Group>>,
    /// Why the shards do not run on `io_uring`, where they were left the choice; filled once they have started.
    pub driver_fallback: OnceLock<String>,
    /// When the gateway started, by the clock of the control thread's runtime.
    pub started_at: Instant,
    /// Names besides `localhost` under which the endpoint may be reached without a token.
    pub hosts: Vec<String>,
    /// What a client has to show as `Authorization: Bearer` to see more than the page, `/live` and `/ready`.
    pub token: Option<Secret>,
}

/// Where one port listens.
#[derive(Clone, Debug)]
pub struct PortFacts {
    /// The local port number, also where the kernel chose it.
    pub number: u16,
    /// The local address.
    pub address: IpAddr,
    /// The TLS that it speaks, if it does.
    pub(super) tls: Option<Arc<PortTls>>,
}

closed_set! {
    /// What the gateway is doing.
    pub enum Phase {
        /// Not every port accepts yet.
        Starting => "starting",
        /// Every port accepts.
        Serving => "serving",
        /// The gateway has been asked to stop.
        Draining => "draining",
    }
}

/// How many connections are served at once; further ones wait in the kernel's queue.
///
/// A scraper, a page and some probes need a dozen. The bound keeps a hostile client from using up descriptors.
const CONNECTIONS_MAX: usize = 64;
/// How long a request head may take, and a kept connection may be silent.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may last, so that a client that does not read its answer gives its place back.
const CONNECTION_LIFETIME_MAX: Duration = Duration::from_secs(60);
/// How long an answer may take to leave once the connection has to end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to leave `accept` alone after it failed for want of descriptors or memory, whose return is no event.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most header fields of a request.
const FIELD_COUNT_MAX: usize = 64;
/// The most bytes of a request head.
const HEAD_SIZE_MAX: usize = 16 * 1024;

/// Serves the admin endpoint until `shutdown`, then lets answers under way leave.
///
/// It needs a tokio runtime with time and I/O; one thread is enough.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, shutdown: impl Future<Output = ()>) {
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&state), stopping.clone()));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "the admin endpoint could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an admin connection ended by a fault of ours");
    }
}

async fn serve_connection(stream: TcpStream, state: Arc<AdminState>, mut stopping: watch::Receiver<bool>) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        std::future::ready(Ok::<_, Infallible>(answer(&state, &request)))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(FIELD_COUNT_MAX)
        .max_buf_size(HEAD_SIZE_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        // What ends a connection early is the client's affair, and hyper has answered what can be answered.
        _ = &mut connection => return,
        () = tokio::time::sleep(CONNECTION_LIFETIME_MAX) => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    connection.as_mut().graceful_shutdown();
    // Both a failure and the deadline end the connection, which is all that is wanted.
    let _ = tokio::time::timeout(FINISH_TIMEOUT, connection).await;
}

fn answer<B>(state: &AdminState, request: &Request<B>) -> Response<Full<Bytes>> {
    let has_token = access::has_token(state, request);
    if !has_token && let Err(denial) = access::check_host(state, request) {
        return deny(denial);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let sentence = "This endpoint is for reading: GET and HEAD.\n";
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, sentence);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    // The page holds nothing to hide, and probes seldom can show a token.
    match request.uri().path() {
        "/" => return respond_page(),
        "/page.css" => {
            return respond(StatusCode::OK, "text/css; charset=utf-8", include_str!("admin/page.css"));
        }
        "/page.js" => {
            return respond(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("admin/page.js"));
        }
        "/live" => return respond_live(state),
        "/ready" => return respond_ready(state),
        _ => {}
    }
    if state.token.is_some() && !has_token {
        return deny(Denial::Token);
    }
    match request.uri().path() {
        "/metrics" => respond(StatusCode::OK, METRICS, state.metrics.encode()),
        "/api/v1/status" => respond_json(StatusCode::OK, &status::Status::read(state)),
        _ => {
            let sentence = "Nothing is here. There are /, /metrics, /live, /ready and /api/v1/status.\n";
            respond(StatusCode::NOT_FOUND, TEXT, sentence)
        }
    }
}

fn deny(denial: Denial) -> Response<Full<Bytes>> {
    let mut response = respond(denial.status(), TEXT, denial.sentence());
    if denial == Denial::Token {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn respond_page() -> Response<Full<Bytes>> {
    let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", include_str!("admin/page.html"));
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

fn respond_live(state: &AdminState) -> Response<Full<Bytes>> {
    #[derive(Serialize)]
    struct Liveness<'a> {
        live: bool,
        io_driver: Option<&'static str>,
        io_driver_fallback: Option<&'a str>,
    }
    let liveness = Liveness {
        live: true,
        io_driver: state.metrics.driver().map(crate::metrics::Driver::label),
        io_driver_fallback: state.driver_fallback.get().map(String::as_str),
    };
    respond_json(StatusCode::OK, &liveness)
}

fn respond_ready(state: &AdminState) -> Response<Full<Bytes>> {
    #[derive(Serialize)]
    struct Readiness {
        ready: bool,
        phase: &'static str,
    }
    let phase = *state.phase.borrow();
    let is_ready = phase == Phase::Serving;
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    respond_json(status, &Readiness { ready: is_ready, phase: phase.label() })
}

fn respond_json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    let mut text = serde_json::to_string(value).expect("structs of numbers and strings are JSON");
    text.push('\n');
    respond(status, "application/json", text)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        // A page of somebody else may neither read, embed nor guess the type of what is here.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
/// The content type of Prometheus's text format, [`prometheus::TEXT_FORMAT`] with its charset.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests;
