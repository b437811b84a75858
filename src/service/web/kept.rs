//! Connections to upstreams that are kept for further requests.

use std::cell::{Cell, RefCell, RefMut};
use std::pin::pin;
use std::rc::Rc;

use hyper::client::conn::http1::{Builder, Connection, SendRequest};

use super::io::{BUFFER_SIZE_MAX, Io, Peer};
use super::proxy::RequestBody;
use crate::config::upstream::UpstreamLimits;
use crate::net::contain::contain;
use crate::net::polled::HasStream;
use crate::net::stream::Stream;
use crate::net::timers::{NEVER, Tick, Timer, ticks};
use crate::protocol::http::FIELD_COUNT_MAX;
use crate::service::upstream::{Address, Attempt};
use crate::service::{Phase, Resources};

/// The most bytes that the head of a response may have, which is held in memory while it arrives.
pub const RESPONSE_HEAD_SIZE_MAX: usize = 64 << 10;

/// The connections that one shard keeps for one route.
#[derive(Debug)]
pub struct Kept {
    resources: Rc<Resources>,
    /// The latest last: what was used a moment ago is used again, and the others are let go when they have been idle.
    idle: RefCell<Vec<Idle>>,
    idle_max: usize,
    idle_timeout: Tick,
}

#[derive(Debug)]
struct Idle {
    upstream_index: usize,
    address: Address,
    sender: Sender,
}

/// A connection to an upstream, one request at a time.
#[derive(Debug)]
pub struct Sender {
    /// hyper's half of it.
    pub requests: SendRequest<RequestBody>,
    term: Rc<Term>,
    /// True exactly when a request has been answered on it.
    pub is_used: bool,
}

impl Drop for Sender {
    /// Ends the connection, if it has not ended: nobody reads an answer any more, and what is left of a request may be held
    /// up for as long as the upstream takes none of it.
    fn drop(&mut self) {
        self.term.idle_until.set(0);
        self.term.timer.set(0);
    }
}

/// A connection, which its task has, and nobody else: when the task ends, so does the descriptor.
#[derive(Debug)]
struct Link {
    stream: Stream,
    resources: Rc<Resources>,
}

/// How long a connection is kept, which its task and its holder share.
#[derive(Debug)]
struct Term {
    timer: Timer,
    /// Until when it is kept without a request; [`NEVER`] while it has one, 0 once it is to have no other.
    idle_until: Cell<Tick>,
}

/// The task's reference to it, and hyper's within the task.
#[derive(Clone)]
struct Linked(Rc<Link>);

impl HasStream for Linked {
    fn stream(&self) -> &Stream {
        &self.0.stream
    }
}

impl Peer for Linked {
    fn resources(&self) -> &Rc<Resources> {
        &self.0.resources
    }
}

impl Kept {
    /// Keeps connections to upstreams as these limits have it.
    pub fn new(resources: &Rc<Resources>, limits: &UpstreamLimits) -> Rc<Self> {
        Rc::new(Self {
            resources: Rc::clone(resources),
            idle: RefCell::default(),
            idle_max: limits.idle_connections_max as usize,
            idle_timeout: ticks(limits.idle_connection_timeout),
        })
    }

    /// A connection that was kept, to where this attempt leads.
    pub fn take(&self, attempt: &Attempt) -> Option<Sender> {
        let mut idle = self.open();
        let index = idle.iter().rposition(|idle| {
            idle.upstream_index == attempt.index()
                && idle.address == *attempt.address()
                && idle.sender.requests.is_ready()
        })?;
        let sender = idle.remove(index).sender;
        sender.term.idle_until.set(NEVER);
        Some(sender)
    }

    /// Those that have not ended meanwhile.
    fn open(&self) -> RefMut<'_, Vec<Idle>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| !idle.sender.requests.is_closed());
        idle
    }

    /// Keeps a connection on which a request has been answered; it may be at the end of that still.
    pub fn keep(&self, upstream_index: usize, address: Address, mut sender: Sender) {
        if self.resources.phase() != Phase::Serving || sender.requests.is_closed() {
            return;
        }
        let mut idle = self.open();
        let is_same = |idle: &&Idle| idle.upstream_index == upstream_index;
        if idle.iter().filter(is_same).count() >= self.idle_max {
            return;
        }
        let until = self.resources.timers.after(self.idle_timeout);
        sender.term.idle_until.set(until);
        sender.term.timer.set(until);
        sender.is_used = true;
        idle.push(Idle { upstream_index, address, sender });
    }

    /// Begins HTTP on a new connection.
    ///
    /// # Errors
    /// hyper's, of which there is none for HTTP/1.1.
    pub async fn begin(&self, stream: Stream) -> hyper::Result<Sender> {
        let link = Rc::new(Link { stream, resources: Rc::clone(&self.resources) });
        let term = Rc::new(Term { timer: self.resources.timers.timer(), idle_until: Cell::new(NEVER) });
        let io = Io::new(Linked(Rc::clone(&link)));
        let mut builder = Builder::new();
        builder
            .max_headers(FIELD_COUNT_MAX)
            .max_header_size(RESPONSE_HEAD_SIZE_MAX)
            .max_buf_size(BUFFER_SIZE_MAX)
            .title_case_headers(true);
        let (requests, connection) = builder.handshake(io).await?;
        drop(monoio::spawn(contain(run(connection, link, Rc::clone(&term)))));
        Ok(Sender { requests, term, is_used: false })
    }
}

/// Runs a connection to its end, or until it has been idle for too long.
async fn run(connection: Connection<Io<'static, Linked>, RequestBody>, link: Rc<Link>, term: Rc<Term>) {
    let mut connection = pin!(connection);
    while term.timer.race(connection.as_mut()).await.is_none() {
        let (until, phase) = (term.idle_until.get(), link.resources.phase());
        let is_idle = until != NEVER;
        // With a change of phase every deadline passes.
        if phase == Phase::Cutting
            || is_idle && (phase == Phase::Draining || term.timer.timers().now() >= until)
        {
            break;
        }
        term.timer.set(until);
    }
    link.stream.finish();
}
