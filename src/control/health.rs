//! Checks of upstreams, made without a client.
//!
//! Each upstream has a task of its own. A check goes the way that a client's connection would go: to the address, from
//! the source. It changes something only after as many equal outcomes in a row as the route demands.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use crate::config::upstream::{Health, HealthKind};
use crate::metrics::VERSION;
use crate::net::{clock, connect};
use crate::protocol::http::field_storage;
use crate::protocol::http::response::ResponseHead;
use crate::protocol::http::scan::HeadScan;
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::frame::{self, Opcode};
use crate::protocol::websocket::handshake::client::{
    ClientRequest, RESPONSE_FIELD_COUNT_MAX, RESPONSE_HEAD_SIZE_MAX, ResponseFault,
};
use crate::service::upstream::{Address, Group};

/// First checks are spread over this time, or over the interval where that is shorter.
const FIRST_CHECKS_SPREAD: Duration = Duration::from_secs(1);
/// How many addresses are checked at once, of all upstreams, since each takes a descriptor, of those that are kept from
/// clients.
pub(super) const CHECKS_MAX: usize = 32;
/// How many addresses of one upstream are checked at once, so that one of many leaves others their places.
const ADDRESSES_AT_ONCE: usize = 8;
/// What is read at a time.
const READ_SIZE: usize = 4096;
/// How many interim responses (1xx) an answer may have before it.
const INTERIM_COUNT_MAX: u32 = 8;
/// How long a WebSocket server that has passed its check is given to answer a Close and end the connection.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// How many bytes a WebSocket server may send while it is waited for to answer a Close.
const FAREWELL_SIZE_MAX: usize = 64 * 1024;

/// Begins to check the upstreams of these routes, in `tasks`.
pub(super) fn watch<'a>(
    checked: impl IntoIterator<Item = (&'a Arc<Group>, &'a Health)>,
    tasks: &mut JoinSet<()>,
) {
    let places = Arc::new(Semaphore::new(CHECKS_MAX));
    for (group, health) in checked {
        for index in 0..group.upstreams().len() {
            tasks.spawn(keep_checking(Arc::clone(group), index, health.clone(), Arc::clone(&places)));
        }
    }
}

/// Why a check failed.
#[derive(Debug)]
enum CheckFault {
    /// It did not end in time.
    TimedOut,
    /// It could not connect.
    Connect(io::Error),
    /// The TLS handshake failed.
    Tls(io::Error),
    /// The connection broke before the answer.
    Broken(io::Error),
    /// The upstream ended the connection before the answer.
    Ended,
    /// Another status than was expected.
    Status(u16),
    /// The answer breaks a rule of HTTP.
    Malformed,
    /// The answer does not accept the opening handshake.
    Handshake(ResponseFault),
}

impl CheckFault {
    /// Whether this machine lacks what a check takes: a descriptor, a port, memory, the source address. That tells
    /// nothing of the upstream.
    fn is_ours(&self) -> bool {
        let Self::Connect(error) = self else { return false };
        matches!(
            Errno::from_io_error(error),
            Some(
                Errno::ADDRINUSE
                    | Errno::ADDRNOTAVAIL
                    | Errno::MFILE
                    | Errno::NFILE
                    | Errno::NOBUFS
                    | Errno::NOMEM
            )
        )
    }
}

impl fmt::Display for CheckFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => formatter.write_str("the check did not end in time"),
            Self::Connect(error) => write!(formatter, "connecting failed: {error}"),
            Self::Tls(error) => write!(formatter, "TLS failed: {error}"),
            Self::Broken(error) => write!(formatter, "the connection broke: {error}"),
            Self::Ended => formatter.write_str("it ended the connection without an answer"),
            Self::Status(status) => write!(formatter, "it answered {status}"),
            Self::Malformed => formatter.write_str("its answer is not HTTP/1"),
            Self::Handshake(fault) => fault.fmt(formatter),
        }
    }
}

async fn keep_checking(group: Arc<Group>, index: usize, health: Health, places: Arc<Semaphore>) {
    let random = RandomState::new();
    let mut tally = Tally { health, is_good: true, in_row: 0 };
    let interval = tally.health.interval;
    let mut is_hindered = false;
    let mut next = Instant::now() + interval.min(FIRST_CHECKS_SPREAD).mul_f64(fraction(&random, 0));
    for count in 1_u64.. {
        sleep_until(next).await;
        // A tenth more or less, so that checks by several gateways, or of many upstreams, do not fall into step.
        next += interval.mul_f64(0.9 + 0.2 * fraction(&random, count));
        next = next.max(Instant::now());
        let Some(outcome) = check(&group, index, &tally.health, &places).await else { continue };
        let (route, upstream) = (group.route(), group.upstreams()[index].name());
        let hindrance = outcome.as_ref().err().filter(|fault| fault.is_ours()).map(ToString::to_string);
        // Told once, until a check can be made again.
        let was_hindered = std::mem::replace(&mut is_hindered, hindrance.is_some());
        if let Some(fault) = hindrance.filter(|_| !was_hindered) {
            tracing::warn!(route, upstream, fault, "an upstream cannot be checked, by no fault of its own");
        }
        let Some(verdict) = tally.take(outcome) else { continue };
        match verdict {
            Ok(()) => {
                if group.set_checked(index, None, clock::monotonic_ms()) {
                    tracing::info!(route, upstream, "an upstream is healthy again: its checks succeed");
                }
            }
            Err(fault) => {
                let fault = fault.to_string();
                if group.set_checked(index, Some(fault.clone()), clock::monotonic_ms()) {
                    tracing::warn!(route, upstream, fault, "an upstream is unhealthy: its checks fail");
                }
            }
        }
    }
}

/// A fraction from 0 to 1, another one for each count and each process.
fn fraction(random: &RandomState, count: u64) -> f64 {
    let bits = u32::try_from(random.hash_one(count) >> 32).expect("32 bits are left");
    f64::from(bits) / f64::from(u32::MAX)
}

/// Equal outcomes in a row.
struct Tally {
    health: Health,
    /// What the checks so far come to.
    is_good: bool,
    /// How many of the latest outcomes say otherwise.
    in_row: u32,
}

impl Tally {
    /// Takes in an outcome; returns what the checks come to where that changes. A fault that goes on is returned too,
    /// since its reason may be another. One of ours is no outcome.
    fn take(&mut self, outcome: Result<(), CheckFault>) -> Option<Result<(), CheckFault>> {
        if matches!(&outcome, Err(fault) if fault.is_ours()) {
            return None;
        }
        if outcome.is_ok() == self.is_good {
            self.in_row = 0;
            return outcome.is_err().then_some(outcome);
        }
        self.in_row += 1;
        let needed = if self.is_good { self.health.unhealthy_after } else { self.health.healthy_after };
        if self.in_row < needed.get() {
            return None;
        }
        self.is_good = !self.is_good;
        self.in_row = 0;
        Some(outcome)
    }
}

/// Checks an upstream once; `None` where no address is known, and there is nothing to check.
///
/// Of several addresses one that is good is enough. They are checked side by side, so that those which hang take no time
/// from the others; only of more than [`ADDRESSES_AT_ONCE`] does each get a share of it.
async fn check(
    group: &Arc<Group>,
    index: usize,
    health: &Health,
    places: &Arc<Semaphore>,
) -> Option<Result<(), CheckFault>> {
    let addresses = group.upstreams()[index].addresses();
    let round_count = addresses.len().div_ceil(ADDRESSES_AT_ONCE).max(1);
    let share = health.timeout / u32::try_from(round_count).expect("addresses are bounded");
    let mut next = addresses.into_iter();
    let mut under_way = JoinSet::new();
    let mut fault: Option<CheckFault> = None;
    loop {
        while under_way.len() < ADDRESSES_AT_ONCE
            && let Some(address) = next.next()
        {
            let (group, kind, places) = (Arc::clone(group), health.kind.clone(), Arc::clone(places));
            under_way.spawn(async move {
                let place = places.acquire_owned().await.expect("the semaphore is never closed");
                let checked = timeout(share, check_address(&group, index, &address, &kind, place)).await;
                checked.unwrap_or(Err(CheckFault::TimedOut))
            });
        }
        let Some(checked) = under_way.join_next().await else { return fault.map(Err) };
        match checked.expect("a check neither panics nor is aborted while it is waited for") {
            Ok(()) => return Some(Ok(())),
            // The address that could not be checked may be good.
            Err(_) if fault.as_ref().is_some_and(CheckFault::is_ours) => {}
            Err(found) => fault = Some(found),
        }
    }
}

async fn check_address(
    group: &Group,
    index: usize,
    address: &Address,
    kind: &HealthKind,
    place: OwnedSemaphorePermit,
) -> Result<(), CheckFault> {
    match address {
        Address::Socket(socket) => {
            let upstream = &group.upstreams()[index];
            let stream = connect_from(group.source(index, *socket), *socket).await;
            let stream = stream.map_err(CheckFault::Connect)?;
            let usual_port = if upstream.tls().is_some() { 443 } else { 80 };
            let host = match upstream.host() {
                Some((host, port)) if port == usual_port => host.to_owned(),
                Some((host, port)) => format!("{host}:{port}"),
                None => socket.to_string(),
            };
            match upstream.tls() {
                // Whoever connects does not ask for more.
                Some((settings, name)) if *kind != HealthKind::Tcp => {
                    let connector = TlsConnector::from(settings.config());
                    let stream = connector.connect(name.clone(), stream).await.map_err(CheckFault::Tls)?;
                    check_stream(stream, &host, kind, place).await
                }
                _ => check_stream(stream, &host, kind, place).await,
            }
        }
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(CheckFault::Connect)?;
            check_stream(stream, "localhost", kind, place).await
        }
    }
}

async fn connect_from(source: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(connect::socket(source, to)?.into()).connect(to).await
}

async fn check_stream<S>(
    stream: S,
    host: &str,
    kind: &HealthKind,
    place: OwnedSemaphorePermit,
) -> Result<(), CheckFault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match kind {
        HealthKind::Tcp => Ok(()),
        HealthKind::Http { path } => check_http(stream, host, path).await,
        HealthKind::WebSocket { path } => {
            let stream = check_websocket(stream, host, path).await?;
            // The outcome is known, so how long the server takes to leave is no part of the check.
            tokio::spawn(say_farewell(stream, place));
            Ok(())
        }
    }
}

/// Asks for a path, and expects a status from 200 to 399. The body is not read.
async fn check_http<S>(mut stream: S, host: &str, path: &str) -> Result<(), CheckFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ringway/{VERSION}\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(CheckFault::Broken)?;
    let mut received = Vec::new();
    for _ in 0..=INTERIM_COUNT_MAX {
        let mut scan = HeadScan::new(RESPONSE_HEAD_SIZE_MAX, RESPONSE_FIELD_COUNT_MAX);
        let head_size = loop {
            match scan.scan(&received).map_err(|_| CheckFault::Malformed)? {
                Some(size) => break size,
                None => receive(&mut stream, &mut received).await?,
            }
        };
        let mut storage = field_storage();
        let head = ResponseHead::parse(&received[..head_size], &mut storage);
        match head.map_err(|_| CheckFault::Malformed)?.status {
            // An interim response: the answer is still to come.
            100 | 102..=199 => drop(received.drain(..head_size)),
            200..=399 => return Ok(()),
            status => return Err(CheckFault::Status(status)),
        }
    }
    Err(CheckFault::Malformed)
}

/// Does an opening handshake, and returns the open connection.
async fn check_websocket<S>(mut stream: S, host: &str, path: &str) -> Result<S, CheckFault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let random =
        u128::from(RandomState::new().hash_one(0)) << 64 | u128::from(RandomState::new().hash_one(1));
    let request = ClientRequest {
        target: path,
        host,
        key: random.to_be_bytes(),
        subprotocols: &[],
        deflate: None,
        fields: &[],
    };
    let mut head = Vec::new();
    request.write(&mut head);
    stream.write_all(&head).await.map_err(CheckFault::Broken)?;
    let mut received = Vec::new();
    while request.verify_response(&received).map_err(CheckFault::Handshake)?.is_none() {
        receive(&mut stream, &mut received).await?;
    }
    Ok(stream)
}

/// Leaves a WebSocket server as a client ought to: with a Close, and time to answer it. Keeps its place meanwhile, as it
/// keeps a descriptor.
async fn say_farewell<S>(mut stream: S, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut close = Vec::new();
    let code = CloseCode::NORMAL.get().to_be_bytes();
    frame::append(&mut close, Opcode::Close, true, &code, Some([1, 2, 3, 4]));
    // However it fails, the server is gone.
    let _ = timeout(FAREWELL_TIMEOUT, async {
        let _ = stream.write_all(&close).await;
        let mut received = Vec::new();
        while received.len() < FAREWELL_SIZE_MAX && receive(&mut stream, &mut received).await.is_ok() {}
    })
    .await;
    drop((stream, place));
}

/// Waits for more bytes and appends them.
async fn receive(stream: &mut (impl AsyncRead + Unpin), received: &mut Vec<u8>) -> Result<(), CheckFault> {
    received.reserve(READ_SIZE);
    match stream.read_buf(received).await {
        Ok(0) => Err(CheckFault::Ended),
        Ok(_) => Ok(()),
        Err(error) => Err(CheckFault::Broken(error)),
    }
}

#[cfg(test)]
mod tests;
