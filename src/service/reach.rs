//! The way to an upstream: one is chosen and connected to, others where that fails, until one can be asked something.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::client::Client;
use super::place::{Phase, Port, Resources, Upstreams, retry_after_s};
use super::upstream::{Address, Attempt, Tried, Unavailable, sticky_hash};
use crate::config::upstream::Balance;
use crate::metrics::ConnectResult;
use crate::net::clock;
use crate::net::connect::{Connect, KeepAlive};
use crate::net::stream::{Received, Stream};
use crate::net::timers::{TICKS_PER_S, Tick, Timer, ticks};
use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::RequestHead;

/// How an upstream is looked after that says nothing: about as patiently as a client is by pings.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    after: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    probes: 3,
    acknowledge_within: Duration::from_secs(60),
};

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

/// Who waits for an upstream: by which deadline, and for which client.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    timer: &'a Timer<Rc<Port>>,
    /// The client, where it has to be looked for while it waits; `None` where somebody else does.
    client: Option<&'a Stream>,
    /// Whether a drain of the shard lets what is under way come to its end.
    outlasts_drain: bool,
}

impl<'a> Asker<'a> {
    /// A client that has nothing else to wait for, and that a drain sends elsewhere.
    pub fn of(client: &'a Client) -> Self {
        Self { timer: &client.life.timer, client: Some(&client.stream), outlasts_drain: false }
    }

    /// Somebody with a deadline of his own, who is dropped when his client is gone.
    pub fn by(timer: &'a Timer<Rc<Port>>) -> Self {
        Self { timer, client: None, outlasts_drain: true }
    }

    /// As this one, but what is under way outlasts a drain.
    pub(super) fn outlasting_drain(self) -> Self {
        Self { outlasts_drain: true, ..self }
    }

    pub(super) fn resources(&self) -> &'a Rc<Resources> {
        &self.timer.clock().resources
    }

    /// Waits for an upstream that is connected.
    pub(super) async fn wait_for(
        self,
        deadline: Tick,
        operation: impl Future<Output = io::Result<()>>,
    ) -> Result<(), Fault> {
        match self.wait(deadline, operation).await {
            // An error of the poll is met again, and told, by what follows.
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Fault::Failed(ConnectResult::HandshakeTimedOut)),
            Err(interruption) => Err(Fault::Interrupted(interruption)),
        }
    }

    /// Runs an operation until it is done, or the deadline has passed, which is `None`, or something interrupts it.
    pub(super) async fn wait<F: Future>(
        self,
        deadline: Tick,
        operation: F,
    ) -> Result<Option<F::Output>, Interruption> {
        let resources = self.resources();
        let mut operation = pin!(operation);
        loop {
            // Whether the client has left is looked at every second: to wait for its bytes besides would cost every
            // handshake an operation of the ring, and they may come before they are wanted.
            self.timer.set(deadline.min(resources.timers.after(TICKS_PER_S)));
            if let Some(output) = self.timer.race(operation.as_mut()).await {
                return Ok(Some(output));
            }
            match resources.phase() {
                Phase::Draining if !self.outlasts_drain => return Err(Interruption::Draining),
                Phase::Cutting => return Err(Interruption::Cutting),
                _ if resources.timers.now() >= deadline => return Ok(None),
                _ => {}
            }
            let found = self.client.map_or(Received::Nothing, Stream::peek_now);
            if matches!(found, Received::End | Received::Reset) {
                return Err(Interruption::ClientGone);
            }
        }
    }
}

/// An upstream that can be asked.
#[derive(Debug)]
pub struct Reached<K> {
    /// The attempt, which has not ended yet.
    pub attempt: Attempt,
    /// What leads there.
    pub way: Way<K>,
}

/// What leads to an upstream.
#[derive(Debug)]
pub enum Way<K> {
    /// A connection that was made, its TLS handshake done.
    New {
        /// Its bytes.
        stream: Stream,
        /// When it began to be made.
        began: Instant,
        /// When it has to be of use: the connection and what is asked on it count towards one timeout.
        deadline: Tick,
    },
    /// A connection that was kept.
    Kept(K),
}

/// Why no upstream was reached.
#[derive(Clone, Copy, Debug)]
pub enum Unreached {
    /// None could be had.
    Refused(Refusal),
    /// The shard or the client has left meanwhile.
    Abandoned(Interruption),
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

/// Gets an upstream for a client that keeps all rules and policies; `kept` finds a connection to it that was kept.
///
/// Another upstream is tried where a connection cannot be made, and never after a byte was sent. None is tried once twice
/// the connect timeout has passed: with two that hang the time is over, and each that is tried has all of its own, so
/// nobody waits longer than for three.
///
/// # Errors
/// [`Unreached`].
pub async fn reach<K>(
    asker: Asker<'_>,
    upstreams: &Upstreams,
    hash: Option<u64>,
    client: IpAddr,
    mut kept: impl FnMut(&Attempt) -> Option<K>,
) -> Result<Reached<K>, Unreached> {
    let timers = &asker.resources().timers;
    let limits = &upstreams.relay.limits;
    let connect_timeout = ticks(limits.connect_timeout);
    let give_up_at = timers.now().saturating_add(connect_timeout.saturating_mul(2));
    let mut tried = Tried::default();
    let mut latest = None;
    loop {
        let mut attempt = match upstreams.group.choose(hash, &mut tried, clock::monotonic_ms()) {
            Ok(attempt) => attempt,
            Err(unavailable) => {
                if let Some(result) = unavailable.result() {
                    upstreams.cells.connect(result);
                }
                return Err(Unreached::Refused(refusal_of(unavailable, latest)));
            }
        };
        if let Some(kept) = kept(&attempt) {
            return Ok(Reached { attempt, way: Way::Kept(kept) });
        }
        let began = clock::now();
        let connected = match connect(asker, &attempt, connect_timeout).await {
            Ok(stream) => {
                let deadline = timers.after(ticks(limits.handshake_timeout));
                let shaken = shake_hands(asker, &attempt, stream, deadline).await;
                shaken.map(|stream| Way::New { stream, began, deadline })
            }
            Err(fault) => Err(fault),
        };
        match connected {
            Ok(way) => return Ok(Reached { attempt, way }),
            Err(Fault::Interrupted(interruption)) => {
                upstreams.cells.connect(ConnectResult::Abandoned);
                return Err(Unreached::Abandoned(interruption));
            }
            Err(Fault::Failed(result)) => {
                upstreams.cells.connect(result);
                let is_over = timers.now() >= give_up_at;
                if is_over {
                    attempt.give_up();
                }
                attempt.failed(result, client, clock::monotonic_ms());
                if is_over {
                    return Err(Unreached::Refused(refusal_of(Unavailable::Exhausted, Some(result))));
                }
                latest = Some(result);
            }
        }
    }
}

/// Why an upstream did not answer.
pub(super) enum Fault {
    Failed(ConnectResult),
    Interrupted(Interruption),
}

/// Connects to the upstream of an attempt.
async fn connect(asker: Asker<'_>, attempt: &Attempt, timeout: Tick) -> Result<Stream, Fault> {
    let options = Connect { source: attempt.source(), keep_alive: Some(KEEP_ALIVE), reset_on_close: false };
    let deadline = asker.resources().timers.after(timeout);
    let connected = match attempt.address() {
        Address::Socket(address) => asker.wait(deadline, options.to(*address)).await,
        Address::Unix(path) => asker.wait(deadline, options.to_unix(path)).await,
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
    asker: Asker<'_>,
    attempt: &Attempt,
    mut stream: Stream,
    deadline: Tick,
) -> Result<Stream, Fault> {
    let Some((settings, name)) = attempt.upstream().tls() else { return Ok(stream) };
    let resources = asker.resources();
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
            asker.wait_for(deadline, stream.writable()).await?;
        } else {
            asker.wait_for(deadline, stream.readable()).await?;
        }
    }
}

/// What a client is told for whom there is no upstream.
pub(super) fn refusal_of(unavailable: Unavailable, latest: Option<ConnectResult>) -> Refusal {
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
