//! The way to an upstream: one is chosen, connected to and, where it speaks WebSocket, asked with the client's own key.
//!
//! The client is answered only after that, so whatever goes wrong here is still told with a status.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use super::client::Client;
use super::place::{Phase, Place, Upstreams, retry_after_s};
use super::relay::{Content, Upstream};
use super::upstream::{Address, Attempt, Lease, Tried, Unavailable, sticky_hash};
use crate::config::upstream::Balance;
use crate::metrics::{ConnectResult, Direction, End};
use crate::net::clock;
use crate::net::connect::{Connect, KeepAlive};
use crate::net::stream::{Gone, Received, Stream};
use crate::net::timers::{TICKS_PER_S, Tick, ticks};
use crate::protocol::http::body::BodyWalker;
use crate::protocol::http::field_storage;
use crate::protocol::http::forward::response;
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::RequestHead;
use crate::protocol::http::response::ResponseHead;
use crate::protocol::http::scan::HeadScan;
use crate::protocol::websocket::frame::RESERVED_BITS;
use crate::protocol::websocket::handshake::Offer;
use crate::protocol::websocket::handshake::client::{RESPONSE_FIELD_COUNT_MAX, RESPONSE_HEAD_SIZE_MAX};
use crate::protocol::websocket::handshake::upstream::{self, Answer};

/// How many interim responses an upstream may send before the one that counts.
const INTERIM_MAX: u32 = 8;

/// How long the body of a refusal may take in all. Whoever refuses has no more to say than a page, so this is for those
/// who would not end.
const REFUSAL_TIMEOUT: Tick = 300 * TICKS_PER_S;

/// How an upstream is looked after that says nothing: about as patiently as a client is by pings.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    after: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    probes: 3,
    acknowledge_within: Duration::from_secs(60),
};

/// What an upstream is asked for a client.
#[derive(Debug)]
pub struct Asking {
    /// What it is asked.
    pub question: Question,
    /// What the upstream depends on, where clients stick to one ([`stickiness`]).
    pub hash: Option<u64>,
    /// Who the client is, which failures that its request may have caused are told by.
    pub client: IpAddr,
}

/// What an upstream is asked.
#[derive(Debug)]
pub enum Question {
    /// A WebSocket server: the opening handshake.
    Head {
        /// Its whole head.
        request: Vec<u8>,
        /// What it offers.
        offer: Offer,
    },
    /// A byte stream: nothing. The client's answer is known already.
    Nothing {
        /// The head of the 101.
        answer: Vec<u8>,
    },
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// The upstream takes the client.
    Open {
        /// Its connection.
        upstream: Upstream,
        /// The head of the 101 for the client.
        answer: Vec<u8>,
        /// What it speaks.
        content: Content,
        /// What followed the head of its response.
        early: Vec<u8>,
    },
    /// The upstream answered with a refusal of its own.
    Refused(Box<Refused>),
    /// No upstream could be had.
    Unavailable(Refusal),
    /// The shard or the client has left meanwhile.
    Abandoned(Interruption),
}

/// What ends the wait for an upstream before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The shard drains.
    Draining,
    /// The shard cuts its connections.
    Cutting,
    /// The client has ended its connection.
    ClientGone,
}

/// An upstream's refusal on its way to the client.
#[derive(Debug)]
pub struct Refused {
    /// The status code.
    pub status: u16,
    /// The head for the client, and what has come of the body.
    first: Vec<u8>,
    body: BodyWalker,
    stream: Stream,
    _lease: Lease,
}

/// What the choice of an upstream depends on for this request, where clients stick to one; `None` where it does not, or
/// where the request lacks it.
pub fn stickiness(balance: &Balance, head: &RequestHead<'_>, client: IpAddr) -> Option<u64> {
    match balance {
        Balance::RoundRobin | Balance::LeastConnections => None,
        Balance::Address => Some(match client.to_canonical() {
            IpAddr::V4(address) => sticky_hash(&address.octets()),
            IpAddr::V6(address) => sticky_hash(&address.octets()),
        }),
        Balance::Cookie(name) => head.values("cookie").find_map(|cookies| {
            // RFC 6265 section 4.2.1.
            cookies.split(|byte| *byte == b';').find_map(|pair| {
                let (found, value) = pair.trim_ascii().split_at_checked(name.len())?;
                (found == name.as_bytes()).then(|| value.strip_prefix(b"=")).flatten().map(sticky_hash)
            })
        }),
        Balance::Header(name) => head.values(name).next().map(sticky_hash),
    }
}

/// Gets an upstream for a client that keeps all rules and policies.
///
/// Another upstream is tried where a connection cannot be made, and never after a byte was sent. None is tried once twice
/// the connect timeout has passed: with two that hang the time is over, and each that is tried has all of its own, so
/// nobody waits longer than for three.
pub async fn open(client: &Client, upstreams: &Upstreams, asking: Asking) -> Outcome {
    let timers = &client.resources().timers;
    let connect_timeout = ticks(upstreams.relay.limits.connect_timeout);
    let give_up_at = timers.now().saturating_add(connect_timeout.saturating_mul(2));
    let mut tried = Tried::default();
    let mut latest = None;
    let limits = &upstreams.relay.limits;
    let (attempt, stream, began, until) = loop {
        let mut attempt = match upstreams.group.choose(asking.hash, &mut tried, clock::monotonic_ms()) {
            Ok(attempt) => attempt,
            Err(unavailable) => {
                if let Some(result) = unavailable.result() {
                    upstreams.cells.connect(result);
                }
                return Outcome::Unavailable(refusal_of(unavailable, latest));
            }
        };
        let began = clock::now();
        let connected = match connect(client, &attempt, connect_timeout).await {
            Ok(stream) => {
                let until = Until::deadline(timers.after(ticks(limits.handshake_timeout)));
                let shaken = shake_hands(client, &attempt, stream, until).await;
                shaken.map(|stream| (stream, until))
            }
            Err(fault) => Err(fault),
        };
        match connected {
            Ok((stream, until)) => break (attempt, stream, began, until),
            Err(Fault::Interrupted(interruption)) => {
                upstreams.cells.connect(ConnectResult::Abandoned);
                return Outcome::Abandoned(interruption);
            }
            Err(Fault::Failed(result)) => {
                upstreams.cells.connect(result);
                let is_over = timers.now() >= give_up_at;
                if is_over {
                    attempt.give_up();
                }
                attempt.failed(result, asking.client, clock::monotonic_ms());
                if is_over {
                    return Outcome::Unavailable(refusal_of(Unavailable::Exhausted, Some(result)));
                }
                latest = Some(result);
            }
        }
    };
    let answered = match asking.question {
        Question::Nothing { answer } => {
            Ok(Answered::Accepted { answer, content: Content::Bytes, early: Vec::new() })
        }
        Question::Head { request, offer } => ask(client, upstreams, &stream, (&request, &offer), until).await,
    };
    match answered {
        Ok(Answered::Accepted { answer, content, early }) => {
            upstreams.cells.connect(ConnectResult::Opened);
            upstreams.cells.connect_duration.observe(clock::now().saturating_duration_since(began));
            let lease = attempt.opened(clock::monotonic_ms());
            Outcome::Open { upstream: Upstream { stream, lease }, answer, content, early }
        }
        Ok(Answered::Refused { status, first, body }) => {
            upstreams.cells.connect(ConnectResult::Answered);
            let lease = attempt.opened(clock::monotonic_ms());
            Outcome::Refused(Box::new(Refused { status, first, body, stream, _lease: lease }))
        }
        Err(Fault::Interrupted(interruption)) => {
            upstreams.cells.connect(ConnectResult::Abandoned);
            Outcome::Abandoned(interruption)
        }
        Err(Fault::Failed(result)) => {
            upstreams.cells.connect(result);
            attempt.failed(result, asking.client, clock::monotonic_ms());
            Outcome::Unavailable(refusal_of(Unavailable::Exhausted, Some(result)))
        }
    }
}

impl Refused {
    /// Passes the refusal on to the client, for as long as its body goes on: it may be silent for as long as the client
    /// may take to read, and last for five minutes. A drain waits for it.
    ///
    /// # Errors
    /// How the connection ended before all of it was passed on. Dropping the client then resets its connection.
    pub async fn pass_on(mut self, client: &Client, place: &Place) -> Result<(), End> {
        let outcome = self.pass_body(client, place).await;
        if outcome.is_err() && self.body.end().is_ok() {
            // A body that is not framed ends with the connection, and would look whole at an end in order. The others show
            // for themselves that they are cut, and a reset could destroy what the client has not read of them.
            client.stream.reset_on_close();
        }
        outcome
    }

    async fn pass_body(&mut self, client: &Client, place: &Place) -> Result<(), End> {
        let mut part = std::mem::take(&mut self.first);
        let timeout = place.write_timeout;
        let timers = &client.resources().timers;
        let last = timers.after(REFUSAL_TIMEOUT);
        loop {
            place.cells().wire_bytes(Direction::Sent).add(part.len() as u64);
            let sent = client.stream.send_now(&part).map_err(|Gone| End::ClientGone)?;
            if sent < part.len() {
                client.flush(&part[sent..], timeout).await?;
            }
            if self.body.is_complete() {
                return Ok(());
            }
            part.clear();
            let until = Until { deadline: timers.after(timeout).min(last), outlasts_drain: true };
            let received = receive(client, &self.stream, until).await.map_err(|fault| match fault {
                Fault::Interrupted(Interruption::ClientGone) => End::ClientGone,
                Fault::Interrupted(Interruption::Draining | Interruption::Cutting) => End::Shutdown,
                Fault::Failed(_) => End::UpstreamGone,
            })?;
            let Some(bytes) = received else {
                return self.body.end().map_err(|_| End::UpstreamGone);
            };
            let walked = self.body.walk(&bytes).map_err(|_| End::UpstreamGone)?;
            part.extend_from_slice(&bytes[..walked.size]);
        }
    }
}

/// What an upstream answered.
enum Answered {
    Accepted { answer: Vec<u8>, content: Content, early: Vec<u8> },
    Refused { status: u16, first: Vec<u8>, body: BodyWalker },
}

/// Why an upstream did not answer.
enum Fault {
    Failed(ConnectResult),
    Interrupted(Interruption),
}

/// How long something is waited for.
#[derive(Clone, Copy)]
struct Until {
    deadline: Tick,
    /// Whether a drain of the shard lets it go on.
    outlasts_drain: bool,
}

impl Until {
    /// Until this deadline, or a drain.
    const fn deadline(deadline: Tick) -> Self {
        Self { deadline, outlasts_drain: false }
    }
}

/// Connects to the upstream of an attempt.
async fn connect(client: &Client, attempt: &Attempt, timeout: Tick) -> Result<Stream, Fault> {
    let options = Connect { source: attempt.source(), keep_alive: Some(KEEP_ALIVE), reset_on_close: false };
    let until = Until::deadline(client.resources().timers.after(timeout));
    let connected = match attempt.address() {
        Address::Socket(address) => wait(client, until, options.to(*address)).await,
        Address::Unix(path) => wait(client, until, options.to_unix(path)).await,
    };
    match connected {
        Ok(Some(Ok(stream))) => Ok(stream),
        Ok(Some(Err(error))) => Err(Fault::Failed(ConnectResult::of_error(&error))),
        Ok(None) => Err(Fault::Failed(ConnectResult::TimedOut)),
        Err(interruption) => Err(Fault::Interrupted(interruption)),
    }
}

/// Does the TLS handshake with an upstream that speaks TLS. Nothing of a request has been sent until then, so where it
/// fails another upstream may be tried.
async fn shake_hands(
    client: &Client,
    attempt: &Attempt,
    mut stream: Stream,
    until: Until,
) -> Result<Stream, Fault> {
    let Some((settings, name)) = attempt.upstream().tls() else { return Ok(stream) };
    let resources = client.resources();
    stream.begin_tls_to(settings, name, &resources.sealed);
    loop {
        let received = stream.receive_now(&mut resources.scratch.lend());
        match received {
            Received::Nothing if !stream.is_handshaking() => return Ok(stream),
            Received::Nothing => {}
            // Nothing was asked yet.
            Received::Bytes(_) => return Err(Fault::Failed(ConnectResult::BadHandshake)),
            Received::End | Received::Reset => {
                let Some(fault) = stream.tls_fault() else {
                    return Err(Fault::Failed(ConnectResult::Reset));
                };
                attempt.note_tls_fault(fault);
                return Err(Fault::Failed(ConnectResult::TlsFailed));
            }
        }
        if stream.wants_room() {
            wait_for(client, until, stream.writable()).await?;
        } else {
            wait_for(client, until, stream.readable()).await?;
        }
    }
}

/// Passes the client's opening handshake on, and judges the response.
async fn ask(
    client: &Client,
    upstreams: &Upstreams,
    stream: &Stream,
    (request, offer): (&[u8], &Offer),
    until: Until,
) -> Result<Answered, Fault> {
    send(client, stream, request, until).await?;
    let mut received = Vec::new();
    let mut interim_count = 0;
    let mut scan = HeadScan::new(RESPONSE_HEAD_SIZE_MAX, RESPONSE_FIELD_COUNT_MAX);
    loop {
        match scan.scan(&received) {
            Ok(Some(head_size)) => {
                if let Some(answered) = judge(upstreams, offer, &received, head_size)? {
                    return Ok(answered);
                }
                interim_count += 1;
                if interim_count > INTERIM_MAX {
                    return Err(Fault::Failed(ConnectResult::BadHandshake));
                }
                received.drain(..head_size);
                scan = HeadScan::new(RESPONSE_HEAD_SIZE_MAX, RESPONSE_FIELD_COUNT_MAX);
                continue;
            }
            Ok(None) => {}
            Err(_) => return Err(Fault::Failed(ConnectResult::BadHandshake)),
        }
        match receive(client, stream, until).await? {
            Some(bytes) => received.extend_from_slice(&bytes),
            None => return Err(Fault::Failed(ConnectResult::Reset)),
        }
    }
}

/// Judges the head of a response, and writes the one that the client gets; `None` for an interim response.
fn judge(
    upstreams: &Upstreams,
    offer: &Offer,
    received: &[u8],
    head_size: usize,
) -> Result<Option<Answered>, Fault> {
    let mut storage = field_storage();
    let (head, rest) = received.split_at(head_size);
    let head =
        ResponseHead::parse(head, &mut storage).map_err(|_| Fault::Failed(ConnectResult::BadHandshake))?;
    let answer = upstream::judge(&head, offer).map_err(|_| Fault::Failed(ConnectResult::BadHandshake))?;
    let edits = upstreams.relay.response_headers.view();
    let mut out = Vec::with_capacity(head_size + 64);
    Ok(match answer {
        Answer::Interim => None,
        Answer::Accepted { has_extensions, .. } => {
            response::write_accepted(&head, edits, &mut out);
            let reserved_bits = if has_extensions { RESERVED_BITS } else { 0 };
            let content = Content::Frames { reserved_bits };
            Some(Answered::Accepted { answer: out, content, early: rest.to_vec() })
        }
        Answer::Refused { status, framing } => {
            response::write_refused(&head, framing, edits, &mut out);
            let mut body = BodyWalker::new(framing);
            let walked = body.walk(rest).map_err(|_| Fault::Failed(ConnectResult::BadHandshake))?;
            out.extend_from_slice(&rest[..walked.size]);
            Some(Answered::Refused { status, first: out, body })
        }
    })
}

async fn send(client: &Client, stream: &Stream, mut bytes: &[u8], until: Until) -> Result<(), Fault> {
    loop {
        let sent = stream.send_now(bytes).map_err(|Gone| Fault::Failed(ConnectResult::Reset))?;
        bytes = &bytes[sent..];
        if bytes.is_empty() {
            return Ok(());
        }
        wait_for(client, until, stream.writable()).await?;
    }
}

/// Receives what comes next; `None` at the end of the stream.
async fn receive(client: &Client, stream: &Stream, until: Until) -> Result<Option<Vec<u8>>, Fault> {
    loop {
        wait_for(client, until, stream.readable()).await?;
        let mut scratch = client.resources().scratch.lend();
        match stream.receive_now(&mut scratch) {
            Received::Bytes(size) => return Ok(Some(scratch[..size].to_vec())),
            Received::Nothing => {}
            Received::End => return Ok(None),
            Received::Reset => return Err(Fault::Failed(ConnectResult::Reset)),
        }
    }
}

/// Waits for an upstream that is connected.
async fn wait_for(
    client: &Client,
    until: Until,
    operation: impl Future<Output = io::Result<()>>,
) -> Result<(), Fault> {
    match wait(client, until, operation).await {
        // An error of the poll is met again, and told, by what follows.
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Fault::Failed(ConnectResult::HandshakeTimedOut)),
        Err(interruption) => Err(Fault::Interrupted(interruption)),
    }
}

/// Runs an operation until it is done, or the deadline has passed, which is `None`, or something interrupts it.
async fn wait<F: Future>(
    client: &Client,
    until: Until,
    operation: F,
) -> Result<Option<F::Output>, Interruption> {
    let resources = client.resources();
    let mut operation = pin!(operation);
    loop {
        // Whether the client has left is looked at every second: to wait for its bytes besides would cost every handshake
        // an operation of the ring, and they may come before they are wanted.
        client.life.timer.set(until.deadline.min(resources.timers.after(TICKS_PER_S)));
        if let Some(output) = client.life.timer.race(operation.as_mut()).await {
            return Ok(Some(output));
        }
        match resources.phase() {
            Phase::Draining if !until.outlasts_drain => return Err(Interruption::Draining),
            Phase::Cutting => return Err(Interruption::Cutting),
            _ if resources.timers.now() >= until.deadline => return Ok(None),
            _ => {}
        }
        if matches!(client.stream.peek_now(), Received::End | Received::Reset) {
            return Err(Interruption::ClientGone);
        }
    }
}

/// What a client is told for whom there is no upstream.
fn refusal_of(unavailable: Unavailable, latest: Option<ConnectResult>) -> Refusal {
    match (unavailable, latest) {
        (Unavailable::Exhausted, Some(ConnectResult::TimedOut | ConnectResult::HandshakeTimedOut)) => {
            Refusal::GatewayTimeout
        }
        (Unavailable::Exhausted, Some(ConnectResult::NoPort | ConnectResult::NoDescriptor))
        | (Unavailable::Full | Unavailable::Unhealthy, _) => {
            Refusal::UpstreamUnavailable { retry_after_s: retry_after_s() }
        }
        (Unavailable::Exhausted | Unavailable::Unresolved, _) => Refusal::BadGateway,
    }
}
