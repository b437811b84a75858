//! A relayed connection: a pump for each direction and a clock, in one task.
//!
//! A pump receives from one side and sends on to the other: to a WebSocket server the bytes of frames as they came,
//! walked where they lie; to a byte stream the payload of messages (`bytes`). What cannot be sent at once is kept and
//! nothing is read until it is gone, so a side that does not read stops the other. Frames of our own, pings and Closes,
//! are queued with the pump that sends to their receiver, and go out between frames.

mod bytes;
mod clock;
mod ending;
mod hot;
mod lane;
mod messages;
mod verdict;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use self::lane::{Fate, Lane};
use self::messages::Messages;
use self::verdict::Verdict;
use super::client::Client;
use super::place::{Place, Resources};
use super::upstream::Lease;
use crate::metrics::{Direction, End, Initiator, SlowClientOutcome};
use crate::net::contain::contain;
use crate::net::stream::{Gone, Received, Stream};
use crate::net::timers::{NEVER, Tick};
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::endpoint::Endpoint;
use crate::protocol::websocket::frame::{Role, Rules, Tally};
use crate::protocol::websocket::keepalive::Keepalive;
use crate::protocol::websocket::rate::Allowance;
use crate::protocol::websocket::walker::WalkEnd;
use crate::route::auth::Expiry;

/// An upstream's connection.
#[derive(Debug)]
pub struct Upstream {
    /// Its bytes.
    pub stream: Stream,
    /// Its place among the upstream's connections.
    pub lease: Lease,
}

/// Bytes that followed the heads of an opening handshake, and so begin the frames of each side.
#[derive(Debug, Default)]
pub struct Early {
    /// From the client.
    pub from_client: Vec<u8>,
    /// From the upstream.
    pub from_upstream: Vec<u8>,
}

/// What an upstream speaks.
#[derive(Debug)]
pub enum Content {
    /// WebSocket frames. The reserved bits are those to which the extensions of the connection gave a meaning
    /// ([`Rules::reserved_bits`]).
    Frames {
        /// The bits.
        reserved_bits: u8,
    },
    /// WebSocket frames, of messages that go compressed to the client and come so from it.
    Messages {
        /// What was agreed on with the client.
        terms: Terms,
    },
    /// A stream of bytes: the client's messages, one after the other, and back whatever comes, as binary messages.
    Bytes,
}

/// One side of a relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// A connection between a client and an upstream.
struct Relay {
    client: Client,
    upstream: Upstream,
    place: Rc<Place>,
    /// From the client to the upstream.
    up: Lane,
    /// From the upstream to the client.
    down: Lane,
    keepalive: Cell<Keepalive>,
    /// When the last ping was sent, in microseconds of the shard's clock.
    pinged_us: Cell<u64>,
    /// What the client may still send, where that is limited.
    allowance: Option<Box<Cell<Allowance>>>,
    /// When the connection ends, where the client is not let in for good.
    expiry: Option<Box<Expiry>>,
    /// What is passed on before anything is read.
    early: Cell<Option<Box<Early>>>,
    /// What makes of the one side's what the other gets, where frames do not just pass.
    translator: Option<Box<Translator>>,
    /// The reserved bits to which the extensions of this connection gave a meaning.
    reserved_bits: u8,
    /// What a client that broke a rule is still to be told.
    verdict: Cell<Option<Box<Verdict>>>,
    /// How the connection ends, once something other than a Close of each side has decided it.
    end: Cell<Option<End>>,
    /// Until when the client is not read, as it has sent more than it may.
    paused_until: Cell<Tick>,
    /// When whoever has not ended by then is cut; [`NEVER`] while the connection is open.
    cut_at: Cell<Tick>,
    /// True exactly when the first Close of the connection has been counted.
    is_close_counted: Cell<bool>,
    /// True exactly when there is nobody left to serve.
    is_over: Cell<bool>,
    /// True exactly when a pump has changed what another one waits for, and that one has not been asked since.
    is_changed: Cell<bool>,
}

/// How to go on after a read.
enum Turn {
    /// Wait for more.
    Wait,
    /// Wait for more, which is likely to come soon, and as small or as large.
    WarmUp(hot::Reads),
    /// Send this first.
    Flush(Vec<u8>),
    /// There is no more.
    End {
        /// Whether it was broken off.
        is_reset: bool,
    },
}

/// What makes of the one side's what the other gets.
enum Translator {
    /// The client's messages come and go compressed, and the upstream knows nothing of it.
    Messages(RefCell<Messages>),
    /// The upstream speaks bytes: the client's frames and messages.
    Bytes(RefCell<Endpoint>),
}

/// What may be sent of the bytes of one read.
enum Pass {
    /// These, as they lie.
    InPlace(Range<usize>),
    /// These: with what an earlier read held back, or with frames of our own between.
    Composed(Vec<u8>),
}

/// Serves a relayed connection to its end, in a task of its own.
///
/// `early` is what followed the heads, and with `expiry` ends what lets the client in.
pub fn spawn(
    client: Client,
    upstream: Upstream,
    place: Rc<Place>,
    content: &Content,
    (early, expiry): (Early, Option<Expiry>),
) {
    let mut relay = Relay::new(client, upstream, place, content, early);
    relay.expiry = expiry.map(Box::new);
    // What this task takes is what an idle connection takes, so nothing that is rare is kept in it.
    let serve = async move {
        Run {
            clock: relay.keep_time(),
            up: relay.pump(Side::Client),
            down: relay.pump(Side::Upstream),
            is_up_done: false,
            is_down_done: false,
            relay: &relay,
        }
        .await;
        let end = relay.final_end();
        relay.client.end(end);
    };
    monoio::spawn(contain(serve));
}

pin_project! {
    /// The clock and both pumps of a relay, until both directions have ended, or the clock ends them.
    ///
    /// A type of its own, because a future that ran the three would keep each of them twice.
    struct Run<'r, C, U, D> {
        relay: &'r Relay,
        #[pin]
        clock: C,
        #[pin]
        up: U,
        #[pin]
        down: D,
        is_up_done: bool,
        is_down_done: bool,
    }
}

impl<C: Future<Output = ()>, U: Future<Output = ()>, D: Future<Output = ()>> Future for Run<'_, C, U, D> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            this.relay.is_changed.set(false);
            if this.clock.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            *this.is_up_done = *this.is_up_done || this.up.as_mut().poll(context).is_ready();
            *this.is_down_done = *this.is_down_done || this.down.as_mut().poll(context).is_ready();
            if (*this.is_up_done && *this.is_down_done) || this.relay.is_over.get() {
                return Poll::Ready(());
            }
            if !this.relay.is_changed.get() {
                return Poll::Pending;
            }
        }
    }
}

pin_project! {
    /// Waits for bytes of one side, which is `true`, or for something else to do.
    ///
    /// A type of its own, because a closure would keep references to what the pump keeps anyway.
    struct Wait<'r, R> {
        relay: &'r Relay,
        from: Side,
        #[pin]
        readable: R,
    }
}

impl<R: Future<Output = io::Result<()>>> Future for Wait<'_, R> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        let this = self.project();
        if this.relay.has_else_to_do(*this.from) {
            Poll::Ready(false)
        } else if this.relay.lane(*this.from).is_ended.get() || this.relay.must_not_read(*this.from) {
            Poll::Pending
        } else {
            this.readable.poll(context).map(|_| true)
        }
    }
}

impl Relay {
    fn new(client: Client, upstream: Upstream, place: Rc<Place>, content: &Content, early: Early) -> Self {
        let now = place.resources().timers.now();
        let rates = &place.rates;
        let is_limited = rates.frames_per_s != 0 || rates.bytes_per_s != 0;
        // The clock looks at once at what is due.
        client.life.timer.set(0);
        Self {
            allowance: is_limited.then(|| Box::new(Cell::new(Allowance::new(rates, now)))),
            client,
            upstream,
            up: Lane::default(),
            down: Lane::default(),
            keepalive: Cell::new(Keepalive::new(now)),
            pinged_us: Cell::new(0),
            expiry: None,
            early: Cell::new((!early.is_empty()).then(|| Box::new(early))),
            translator: match content {
                Content::Frames { .. } => None,
                Content::Messages { terms } => {
                    Some(Box::new(Translator::Messages(RefCell::new(Messages::new(&place, *terms)))))
                }
                Content::Bytes => Some(Box::new(Translator::Bytes(RefCell::default()))),
            },
            reserved_bits: match content {
                Content::Frames { reserved_bits } => *reserved_bits,
                Content::Messages { .. } | Content::Bytes => 0,
            },
            place,
            verdict: Cell::new(None),
            end: Cell::new(None),
            paused_until: Cell::new(0),
            cut_at: Cell::new(NEVER),
            is_close_counted: Cell::new(false),
            is_over: Cell::new(false),
            is_changed: Cell::new(false),
        }
    }

    /// Passes on what `from` sends, until it ends.
    async fn pump(&self, from: Side) {
        // Whatever is rare is boxed while it lasts, so that an idle pump takes little more than its wait.
        if self.has_early(from) {
            Box::pin(self.pass_early(from)).await;
        }
        while !self.lane(from).is_done() {
            if self.has_rest(from) {
                Box::pin(self.pass_rest()).await;
                continue;
            }
            if self.has_else_to_do(from) {
                Box::pin(self.send_own_and_finish(from)).await;
                continue;
            }
            let has_bytes = Wait { relay: self, from, readable: self.stream(from).readable() }.await;
            if !has_bytes {
                continue;
            }
            match self.turn(from) {
                Turn::Wait => {}
                turn => Box::pin(self.finish_turn(from, turn)).await,
            }
            self.resources().give_way().await;
        }
    }

    /// Passes on what followed the head of the opening handshake.
    async fn pass_early(&self, from: Side) {
        let mut bytes = self.take_early(from);
        let unsent = self.pass_on(from, &mut bytes, 0);
        self.flush(from, unsent).await;
    }

    /// Goes on with a read of the client's of which one turn was not to make more, while others have theirs.
    async fn pass_rest(&self) {
        self.resources().after_others().await;
        let pass = match self.translator.as_deref() {
            Some(Translator::Messages(messages)) => {
                let messages = &mut *messages.borrow_mut();
                match messages.take_rest().filter(|_| !self.up.has_heard_all()) {
                    Some(mut rest) => self.inflate_messages(messages, &mut rest),
                    None => Pass::InPlace(0..0),
                }
            }
            _ => Pass::InPlace(0..0),
        };
        if let Pass::Composed(bytes) = pass {
            let unsent = self.send(Side::Upstream, &bytes);
            self.flush(Side::Client, unsent).await;
        }
    }

    /// Whether there is a rest of a read of `from`'s to go on with before more is read.
    fn has_rest(&self, from: Side) -> bool {
        match (self.translator.as_deref(), from) {
            (Some(Translator::Messages(messages)), Side::Client) => messages.borrow().has_rest(),
            _ => false,
        }
    }

    /// Sends the frames of our own to the receiver of what `from` sends, and tells it of the end.
    async fn send_own_and_finish(&self, from: Side) {
        let lane = self.lane(from);
        if lane.has_frames_to_send() {
            let unsent = self.send(from.other(), &self.take_own(from));
            self.flush(from, unsent).await;
            // The client may have been kept waiting for these to leave.
            self.is_changed.set(true);
        }
        if self.may_finish(from) {
            lane.is_finished.set(true);
            self.stream(from.other()).finish();
        }
    }

    /// Does what a turn left to do.
    async fn finish_turn(&self, from: Side, turn: Turn) {
        match turn {
            Turn::Wait => {}
            Turn::WarmUp(reads) => self.pump_hot(from, reads).await,
            Turn::Flush(unsent) => self.flush(from, unsent).await,
            Turn::End { is_reset } => self.on_stream_end(from, is_reset),
        }
    }

    /// Whether the pump of `from` has something to do other than to wait for bytes.
    fn has_else_to_do(&self, from: Side) -> bool {
        self.lane(from).has_frames_to_send() || self.may_finish(from)
    }

    /// Whether `from` is not read for now. Where the upstream speaks bytes the client's pings are answered here, and a
    /// client that takes no answers is not asked for more questions; nor is one read that has sent more than it may.
    fn must_not_read(&self, from: Side) -> bool {
        let must_wait = || {
            self.speaks_bytes() && self.down.has_queue()
                || self.paused_until.get() > self.resources().timers.now() && self.cut_at.get() == NEVER
        };
        from == Side::Client && must_wait()
    }

    /// Receives once from `from`, and sends what may be passed on.
    fn turn(&self, from: Side) -> Turn {
        let lane = self.lane(from);
        let mut scratch = self.resources().scratch.lend();
        let room = self.room(from);
        let read_size = match from {
            Side::Client => self.place.read_size_max.min(scratch.len() - room),
            Side::Upstream => scratch.len() - room,
        };
        let size = match self.stream(from).receive_now(&mut scratch[room..room + read_size]) {
            Received::Bytes(size) => size,
            Received::Nothing => return Turn::Wait,
            Received::End => return Turn::End { is_reset: false },
            Received::Reset => return Turn::End { is_reset: true },
        };
        let is_busy = self.resources().timers.now() - lane.heard.get() <= hot::BUSY_WITHIN;
        let unsent = self.pass_on(from, &mut scratch[..room + size], room);
        if !unsent.is_empty() {
            Turn::Flush(unsent)
        } else if is_busy && lane.fate.get() == Fate::Passed && self.may_warm_up() && !self.has_rest(from) {
            Turn::WarmUp(self.reads_of(from, size))
        } else {
            Turn::Wait
        }
    }

    /// Passes the bytes of one read on, as far as they may be and the receiver has room; returns the rest of those.
    fn pass_on(&self, from: Side, buffer: &mut [u8], room: usize) -> Vec<u8> {
        match self.take_in(from, buffer, room) {
            Pass::InPlace(range) => self.send(from.other(), &buffer[range]),
            Pass::Composed(bytes) => self.send(from.other(), &bytes),
        }
    }

    /// Takes in the bytes of one read, which lie behind `room` bytes of the buffer, and tells what is to be sent of them.
    fn take_in(&self, from: Side, buffer: &mut [u8], room: usize) -> Pass {
        let size = buffer.len() - room;
        self.lane(from).heard.set(self.resources().timers.now());
        if from == Side::Client {
            self.place.cells().wire_bytes(Direction::Received).add(size as u64);
            self.note_bytes();
        }
        if self.lane(from).has_heard_all() {
            return Pass::InPlace(0..0);
        }
        match (self.translator.as_deref(), from) {
            (None, _) => self.walk(from, buffer),
            (Some(Translator::Messages(messages)), Side::Client) => {
                self.inflate_messages(&mut messages.borrow_mut(), buffer)
            }
            (Some(Translator::Messages(messages)), Side::Upstream) => {
                self.compress_messages(&mut messages.borrow_mut(), buffer)
            }
            (Some(Translator::Bytes(endpoint)), Side::Client) => {
                self.unwrap_messages(&mut endpoint.borrow_mut(), buffer)
            }
            (Some(Translator::Bytes(_)), Side::Upstream) => self.wrap_bytes(buffer, room),
        }
    }

    /// Whether the upstream speaks bytes, and no WebSocket.
    fn speaks_bytes(&self) -> bool {
        matches!(self.translator.as_deref(), Some(Translator::Bytes(_)))
    }

    /// Walks frames, counts them, obeys what they say, and tells what is to be sent of them.
    fn walk(&self, from: Side, bytes: &[u8]) -> Pass {
        let lane = self.lane(from);
        let cells = self.place.cells();
        let mut tally = Tally::default();
        let mut walker = lane.walker.get();
        let walked = walker.walk(&self.rules(from), bytes, &mut tally, |size| {
            if from == Side::Client {
                cells.message_size.observe_bytes(size);
            }
        });
        lane.walker.set(walker);
        let is_passed = lane.fate.get() == Fate::Passed;
        let mut end = walked.end;
        match from {
            Side::Client => {
                cells.tally(Direction::Received, &tally);
                self.note_frames(&tally);
                if end.is_none() {
                    end = self.spend_allowance(&tally, bytes.len()).err().map(WalkEnd::Violation);
                }
            }
            Side::Upstream if is_passed => {
                cells.tally(Direction::Sent, &tally);
                self.note_message_for_client(&tally);
            }
            Side::Upstream => {}
        }
        if !is_passed {
            self.on_walk_end(from, end);
            return Pass::InPlace(0..0);
        }
        let held = walked.held.as_bytes();
        let mut passed = &bytes[..walked.pass];
        let pass = match walked.boundary.filter(|_| lane.has_queue()) {
            None if held.is_empty() => Pass::InPlace(0..passed.len()),
            None => Pass::Composed([held, passed].concat()),
            Some(boundary) => {
                let (before, after) = passed.split_at(boundary);
                let mut composed = [held, before, &self.take_own(from)].concat();
                if lane.fate.get() == Fate::Passed {
                    composed.extend_from_slice(after);
                } else {
                    passed = before;
                }
                Pass::Composed(composed)
            }
        };
        if from == Side::Upstream {
            cells.wire_bytes(Direction::Sent).add((held.len() + passed.len()) as u64);
        }
        self.on_walk_end(from, end);
        pass
    }

    /// Takes the frames of our own that wait for the receiver of what `from` sends, counted as sent.
    fn take_own(&self, from: Side) -> Vec<u8> {
        let Some(own) = self.lane(from).take_queue() else { return Vec::new() };
        if let Some(close) = own.close {
            self.count_close(Initiator::Gateway, close.code);
        }
        if from == Side::Upstream {
            let cells = self.place.cells();
            cells.tally(Direction::Sent, &own.tally);
            cells.wire_bytes(Direction::Sent).add(own.bytes.len() as u64);
        }
        own.bytes
    }

    /// Sends to one side what it has room for, and returns the rest; nothing to one who is gone.
    fn send(&self, to: Side, bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() || self.lane(to.other()).is_finished.get() {
            return Vec::new();
        }
        match self.stream(to).send_now(bytes) {
            Ok(sent) => bytes[sent..].to_vec(),
            Err(Gone) => {
                self.on_send_failure(to);
                Vec::new()
            }
        }
    }

    /// Sends what the receiver of what `from` sends had no room for. The clock sees to it that this ends.
    async fn flush(&self, from: Side, mut unsent: Vec<u8>) {
        if unsent.is_empty() {
            return;
        }
        let lane = self.lane(from);
        let to = self.stream(from.other());
        let resources = self.resources();
        let _queued = (from == Side::Upstream).then(|| Queued::new(&self.place, unsent.len()));
        let now = resources.timers.now();
        lane.block(now);
        self.wake_clock_at(resources.timers.after(self.place.write_timeout));
        let mut sent = 0;
        while sent < unsent.len() {
            let _ = to.writable().await;
            match to.send_now(&unsent[sent..]) {
                Ok(size) => sent += size,
                Err(Gone) => {
                    self.on_send_failure(from.other());
                    unsent.clear();
                }
            }
            resources.give_way().await;
        }
        lane.unblock();
        if from == Side::Upstream && !self.is_over.get() {
            self.place.cells().slow_client(SlowClientOutcome::Recovered);
        }
    }

    fn has_early(&self, from: Side) -> bool {
        let early = self.early.take();
        let has_some = early.as_ref().is_some_and(|early| !early.from(from).is_empty());
        self.early.set(early);
        has_some
    }

    fn take_early(&self, from: Side) -> Vec<u8> {
        let Some(mut early) = self.early.take() else { return Vec::new() };
        let bytes = std::mem::take(match from {
            Side::Client => &mut early.from_client,
            Side::Upstream => &mut early.from_upstream,
        });
        self.early.set((!early.is_empty()).then_some(early));
        bytes
    }

    /// Whether the ring may receive and send for this connection: what it handles is not what TLS makes of it.
    fn may_warm_up(&self) -> bool {
        self.resources().has_buffer()
            && !self.place.pauses
            && !self.client.stream.is_tls()
            && !self.upstream.stream.is_tls()
    }

    fn rules(&self, from: Side) -> Rules {
        let rules = Rules { reserved_bits: self.reserved_bits, ..self.place.rules };
        match from {
            Side::Client => rules,
            // What an upstream sends is its operator's business: there is nothing that it could make us hold.
            Side::Upstream => Rules {
                role: Role::Client,
                frame_size_max: u64::MAX >> 1,
                message_size_max: u64::MAX >> 1,
                ..rules
            },
        }
    }

    fn lane(&self, from: Side) -> &Lane {
        match from {
            Side::Client => &self.up,
            Side::Upstream => &self.down,
        }
    }

    fn stream(&self, side: Side) -> &Stream {
        match side {
            Side::Client => &self.client.stream,
            Side::Upstream => &self.upstream.stream,
        }
    }

    fn resources(&self) -> &Resources {
        self.place.resources()
    }
}

impl Early {
    fn is_empty(&self) -> bool {
        self.from_client.is_empty() && self.from_upstream.is_empty()
    }

    fn from(&self, side: Side) -> &[u8] {
        match side {
            Side::Client => &self.from_client,
            Side::Upstream => &self.from_upstream,
        }
    }
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

/// Bytes that wait for a client, counted for as long as they do.
struct Queued<'p> {
    place: &'p Place,
    size: u64,
}

impl<'p> Queued<'p> {
    fn new(place: &'p Place, size: usize) -> Self {
        place.cells().send_queue_bytes.add(size as u64);
        Self { place, size: size as u64 }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.place.cells().send_queue_bytes.sub(self.size);
    }
}
