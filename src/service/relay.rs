//! A relayed connection: a pump for each direction and a clock, in one task.
//!
//! A pump receives from one side and sends on to the other: to a WebSocket server the bytes of frames as they came,
//! walked where they lie; to a byte stream the payload of messages (`bytes`). What cannot be sent at once is kept and
//! nothing is read until it is gone, so a side that does not read stops the other. Frames of our own, pings and Closes,
//! are queued with the pump that sends to their receiver, and go out between frames.

mod bytes;
mod hot;
mod lane;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

use self::lane::{Fate, Lane};
use super::client::Client;
use super::place::{Phase, Place, Resources};
use super::upstream::Lease;
use crate::metrics::{Direction, End, Initiator, SlowClientOutcome};
use crate::net::clock;
use crate::net::contain::contain;
use crate::net::stream::{Gone, Received, Stream};
use crate::net::timers::{NEVER, TICKS_PER_S, Tick};
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::endpoint::Endpoint;
use crate::protocol::websocket::frame::{Opcode, Role, Rules, Tally};
use crate::protocol::websocket::keepalive::{Due, Keepalive};
use crate::protocol::websocket::rate::Allowance;
use crate::protocol::websocket::violation::Violation;
use crate::protocol::websocket::walker::WalkEnd;

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
    /// What is passed on before anything is read.
    early: Cell<Option<Box<Early>>>,
    /// The client's frames and messages, where the upstream speaks bytes; else they are walked.
    endpoint: Option<Box<RefCell<Endpoint>>>,
    /// The reserved bits to which the extensions of this connection gave a meaning.
    reserved_bits: u8,
    /// How the connection ends, once something other than a Close of each side has decided it.
    end: Cell<Option<End>>,
    /// When whoever has not ended by then is cut; [`NEVER`] while the connection is open.
    cut_at: Cell<Tick>,
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

/// What may be sent of the bytes of one read.
enum Pass {
    /// These, as they lie.
    InPlace(Range<usize>),
    /// These: with what an earlier read held back, or with frames of our own between.
    Composed(Vec<u8>),
}

/// Serves a relayed connection to its end, in a task of its own.
pub fn spawn(client: Client, upstream: Upstream, place: Rc<Place>, content: &Content, early: Early) {
    let mut relay = Relay::new(client, upstream, place, content, early);
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
        relay.client.life.end(end);
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

impl Relay {
    fn new(client: Client, upstream: Upstream, place: Rc<Place>, content: &Content, early: Early) -> Self {
        let now = place.resources().timers.now();
        let rates = &place.rates;
        let is_limited = rates.frames_per_s != 0 || rates.bytes_per_s != 0;
        // The clock looks at once at what is due.
        client.timer.set(0);
        Self {
            allowance: is_limited.then(|| Box::new(Cell::new(Allowance::new(rates, now)))),
            client,
            upstream,
            place,
            up: Lane::default(),
            down: Lane::default(),
            keepalive: Cell::new(Keepalive::new(now)),
            pinged_us: Cell::new(0),
            early: Cell::new((!early.is_empty()).then(|| Box::new(early))),
            endpoint: matches!(content, Content::Bytes).then(Box::default),
            reserved_bits: match content {
                Content::Frames { reserved_bits } => *reserved_bits,
                Content::Bytes => 0,
            },
            end: Cell::new(None),
            cut_at: Cell::new(NEVER),
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
        let lane = self.lane(from);
        while !lane.is_done() {
            if self.has_else_to_do(from) {
                Box::pin(self.tend(from)).await;
                continue;
            }
            let has_bytes = {
                let mut readable = pin!(self.stream(from).readable());
                poll_fn(|context| self.poll_wait(from, readable.as_mut(), context)).await
            };
            if !has_bytes {
                continue;
            }
            match self.turn(from) {
                Turn::Wait => {}
                turn => Box::pin(self.settle(from, turn)).await,
            }
            self.resources().give_way().await;
        }
    }

    /// Passes on what followed the head of the opening handshake.
    async fn pass_early(&self, from: Side) {
        let mut bytes = self.take_early(from);
        let unsent = self.pass(from, &mut bytes, 0);
        self.flush(from, unsent).await;
    }

    /// Sends the frames of our own to the receiver of what `from` sends, and tells it of the end.
    async fn tend(&self, from: Side) {
        let lane = self.lane(from);
        if lane.has_frames_to_send() {
            let unsent = self.send(from.other(), &lane.take_queue());
            self.flush(from, unsent).await;
        }
        if self.may_finish(from) {
            lane.is_finished.set(true);
            self.stream(from.other()).finish();
        }
    }

    /// Does what a turn left to do.
    async fn settle(&self, from: Side, turn: Turn) {
        match turn {
            Turn::Wait => {}
            Turn::WarmUp(reads) => self.pump_hot(from, reads).await,
            Turn::Flush(unsent) => self.flush(from, unsent).await,
            Turn::End { is_reset } => self.ended(from, is_reset),
        }
    }

    /// Waits for bytes of `from`, which is `true`, or for something else to do.
    fn poll_wait(
        &self,
        from: Side,
        readable: Pin<&mut impl Future<Output = io::Result<()>>>,
        context: &mut Context<'_>,
    ) -> Poll<bool> {
        if self.has_else_to_do(from) {
            Poll::Ready(false)
        } else if self.lane(from).is_ended.get() {
            Poll::Pending
        } else {
            readable.poll(context).map(|_| true)
        }
    }

    /// Whether the pump of `from` has something to do other than to wait for bytes.
    fn has_else_to_do(&self, from: Side) -> bool {
        self.lane(from).has_frames_to_send() || self.may_finish(from)
    }

    /// Whether the receiver of what `from` sends is to be told that nothing more comes.
    fn may_finish(&self, from: Side) -> bool {
        let (lane, back) = (self.lane(from), self.lane(from.other()));
        if lane.is_finished.get() || lane.has_queue() {
            return false;
        }
        if lane.has_sent_close.get() {
            // RFC 6455 section 7.1.1: once both have said their Close, or nothing more can come from the other.
            return back.has_heard_all() || back.is_ended.get() || lane.fate.get() == Fate::Severed;
        }
        lane.is_ended.get() || lane.fate.get() == Fate::Severed
    }

    /// Receives once from `from`, and sends what may be passed on.
    fn turn(&self, from: Side) -> Turn {
        let lane = self.lane(from);
        let mut scratch = self.resources().scratch.lend();
        let room = self.room(from);
        let size = match self.stream(from).receive_now(&mut scratch[room..]) {
            Received::Bytes(size) => size,
            Received::Nothing => return Turn::Wait,
            Received::End => return Turn::End { is_reset: false },
            Received::Reset => return Turn::End { is_reset: true },
        };
        let is_busy = self.resources().timers.now() - lane.heard.get() <= hot::BUSY_WITHIN;
        let unsent = self.pass(from, &mut scratch[..room + size], room);
        if !unsent.is_empty() {
            Turn::Flush(unsent)
        } else if is_busy && lane.fate.get() == Fate::Passed && self.resources().pool.is_some() {
            Turn::WarmUp(self.reads_of(from, size))
        } else {
            Turn::Wait
        }
    }

    /// Passes the bytes of one read on, as far as they may be and the receiver has room; returns the rest of those.
    fn pass(&self, from: Side, buffer: &mut [u8], room: usize) -> Vec<u8> {
        match self.take(from, buffer, room) {
            Pass::InPlace(range) => self.send(from.other(), &buffer[range]),
            Pass::Composed(bytes) => self.send(from.other(), &bytes),
        }
    }

    /// Takes in the bytes of one read, which lie behind `room` bytes of the buffer, and tells what is to be sent of them.
    fn take(&self, from: Side, buffer: &mut [u8], room: usize) -> Pass {
        let size = buffer.len() - room;
        self.lane(from).heard.set(self.resources().timers.now());
        if from == Side::Client {
            self.place.cells().wire_bytes(Direction::Received).add(size as u64);
            self.hear();
        }
        if self.lane(from).has_heard_all() {
            return Pass::InPlace(0..0);
        }
        match (&self.endpoint, from) {
            (None, _) => self.walk(from, buffer),
            (Some(endpoint), Side::Client) => self.unwrap_messages(&mut endpoint.borrow_mut(), buffer),
            (Some(_), Side::Upstream) => self.wrap_bytes(buffer, room),
        }
    }

    /// Walks frames, counts them, obeys what they say, and tells what is to be sent of them.
    fn walk(&self, from: Side, bytes: &[u8]) -> Pass {
        let lane = self.lane(from);
        let cells = self.place.cells();
        let mut tally = Tally::default();
        let walked = lane.walker.borrow_mut().walk(&self.rules(from), bytes, &mut tally, |size| {
            if from == Side::Client {
                cells.message_size.observe_bytes(size);
            }
        });
        let is_passed = lane.fate.get() == Fate::Passed;
        let mut end = walked.end;
        match from {
            Side::Client => {
                cells.tally(Direction::Received, &tally);
                self.heed(&tally);
                if end.is_none() {
                    end = self.spend(&tally, bytes.len()).err().map(WalkEnd::Violation);
                }
            }
            Side::Upstream if is_passed => cells.tally(Direction::Sent, &tally),
            Side::Upstream => {}
        }
        if !is_passed {
            self.obey(from, end);
            return Pass::InPlace(0..0);
        }
        let held = walked.held.as_bytes();
        let mut passed = &bytes[..walked.pass];
        let pass = match walked.boundary.filter(|_| lane.has_queue()) {
            None if held.is_empty() => Pass::InPlace(0..passed.len()),
            None => Pass::Composed([held, passed].concat()),
            Some(boundary) => {
                let (before, after) = passed.split_at(boundary);
                let mut composed = [held, before, &lane.take_queue()].concat();
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
        self.obey(from, end);
        pass
    }

    /// Does what the end of a direction demands.
    fn obey(&self, from: Side, end: Option<WalkEnd>) {
        match end {
            None => {}
            Some(WalkEnd::Close(code)) => self.closed(from, code),
            Some(WalkEnd::Violation(violation)) => self.violated(from, violation),
        }
    }

    /// A Close of `from` has come, and is passed on unless one of ours was.
    fn closed(&self, from: Side, code: Option<CloseCode>) {
        let lane = self.lane(from);
        let is_first = !self.lane(from.other()).has_heard_all() && lane.fate.get() == Fate::Passed;
        if is_first {
            let initiator = match from {
                Side::Client => Initiator::Client,
                Side::Upstream => Initiator::Upstream,
            };
            self.place.cells().close(initiator, code);
        }
        if lane.fate.get() == Fate::Passed {
            lane.has_sent_close.set(true);
        }
        lane.fate.set(Fate::Closed);
        self.begin_to_end();
    }

    /// `from` broke a rule. Nothing of the frame that did is passed on.
    fn violated(&self, from: Side, violation: Violation) {
        let cells = self.place.cells();
        let (end, code, reason) = match from {
            Side::Client => {
                cells.violation(violation.kind());
                (violation_end(violation), violation.close_code(), violation.kind().label())
            }
            // The client did nothing wrong, and hears of it as of any upstream that makes no sense.
            Side::Upstream => (End::UpstreamGone, CloseCode::BAD_GATEWAY, "upstream"),
        };
        self.decide(end);
        self.close_client(code, reason.as_bytes());
        self.up.fate.set(Fate::Severed);
        if from == Side::Upstream {
            self.down.fate.set(Fate::Severed);
        }
        self.begin_to_end();
    }

    /// `from` has ended its stream.
    fn ended(&self, from: Side, is_reset: bool) {
        let lane = self.lane(from);
        lane.is_ended.set(true);
        if !lane.walker.borrow().is_between_frames() {
            // Its frame will never be whole, so nothing of ours can follow.
            drop(lane.take_queue());
        }
        if !lane.has_heard_all() {
            match from {
                Side::Client => self.decide(End::ClientGone),
                // The end of a byte stream is an end in order.
                Side::Upstream if self.endpoint.is_some() && !is_reset => {
                    self.decide(End::Closed);
                    self.close_client(CloseCode::NORMAL, b"");
                }
                Side::Upstream => {
                    self.decide(End::UpstreamGone);
                    if !self.up.has_heard_all() && lane.walker.borrow().is_between_frames() {
                        self.close_client(CloseCode::BAD_GATEWAY, b"upstream");
                    }
                }
            }
        }
        self.begin_to_end();
    }

    /// Queues a Close for the client, unless it has one.
    fn close_client(&self, code: CloseCode, reason: &[u8]) {
        if self.down.will_have_closed() || self.down.is_finished.get() {
            return;
        }
        self.place.cells().close(Initiator::Gateway, Some(code));
        let payload = [&code.get().to_be_bytes()[..], reason].concat();
        let size = self.down.queue(Opcode::Close, &payload, None);
        self.place.cells().own_frame(Opcode::Close, size);
    }

    /// Asks both sides to leave (RFC 6455 section 7.1.2).
    fn leave(&self, code: CloseCode, end: End) {
        self.decide(end);
        self.close_client(code, b"");
        if self.endpoint.is_none() && !self.up.will_have_closed() && !self.up.is_finished.get() {
            let key = self.resources().random.bytes();
            self.up.queue(Opcode::Close, &code.get().to_be_bytes(), Some(key));
        }
        self.begin_to_end();
    }

    /// Gives everybody until the closing timeout, from the first word of an end on.
    fn begin_to_end(&self) {
        if self.cut_at.get() == NEVER {
            self.cut_at.set(self.resources().timers.after(self.place.close_timeout));
            self.wake_clock_at(self.cut_at.get());
        }
        self.is_changed.set(true);
    }

    /// Says how the connection ends, unless that was said.
    fn decide(&self, end: End) {
        if self.end.get().is_none() && !(self.up.has_heard_all() && self.down.has_heard_all()) {
            self.end.set(Some(end));
        }
    }

    /// How the connection ended.
    fn final_end(&self) -> End {
        let is_client_done = self.up.has_heard_all();
        match self.end.get() {
            // It was asked to leave and did not.
            Some(End::Drained) if !is_client_done => End::Shutdown,
            Some(end) => end,
            None if is_client_done && self.down.has_heard_all() => End::Closed,
            None if is_client_done => End::UpstreamGone,
            None => End::ClientGone,
        }
    }

    /// Sends to one side what it has room for, and returns the rest; nothing to one who is gone.
    fn send(&self, to: Side, bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() || self.lane(to.other()).is_finished.get() {
            return Vec::new();
        }
        match self.stream(to).send_now(bytes) {
            Ok(sent) => bytes[sent..].to_vec(),
            Err(Gone) => {
                self.lose(to);
                Vec::new()
            }
        }
    }

    /// Takes note that one side can be sent nothing more.
    fn lose(&self, side: Side) {
        match side {
            Side::Client => {
                self.decide(End::ClientGone);
                self.is_over.set(true);
            }
            // What it said before it went, its Close perhaps, is still there to be read.
            Side::Upstream => {
                self.up.is_finished.set(true);
                self.begin_to_end();
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
                    self.lose(from.other());
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

    /// Does what is due, until the connection is to be cut.
    async fn keep_time(&self) {
        while let Some(next) = self.attend() {
            self.client.timer.set(next);
            self.client.timer.race(std::future::pending::<()>()).await;
        }
    }

    /// Does what the clock or the shard wants; when to look again, or `None` where the connection is to be cut.
    fn attend(&self) -> Option<Tick> {
        let resources = self.resources();
        let now = resources.timers.now();
        let is_ending = self.cut_at.get() != NEVER;
        match resources.phase() {
            Phase::Serving => {}
            Phase::Draining if is_ending => {}
            Phase::Draining => self.leave(CloseCode::GOING_AWAY, End::Drained),
            Phase::Cutting => {
                self.end.set(Some(End::Shutdown));
                return None;
            }
        }
        if now >= self.cut_at.get() {
            return None;
        }
        let mut next = self.cut_at.get();
        for (from, end) in [(Side::Upstream, End::SlowClient), (Side::Client, End::UpstreamGone)] {
            let lane = self.lane(from);
            if let Some(since) = lane.blocked_since() {
                let until = since.saturating_add(self.place.write_timeout).saturating_add(1);
                if now >= until {
                    if from == Side::Upstream {
                        self.place.cells().slow_client(SlowClientOutcome::Cut);
                    }
                    self.decide(end);
                    return None;
                }
                next = next.min(until);
            }
            if lane.is_hot.get() {
                // The lane looks for itself whether it has fallen quiet; it only has to be woken.
                next = next.min(now + hot::QUIET_AFTER);
            }
        }
        if self.cut_at.get() != NEVER {
            return Some(next);
        }
        let mut keepalive = self.keepalive.get();
        match keepalive.due(&self.place.patience, now) {
            Due::At(tick) => Some(next.min(tick)),
            // Whoever is being sent to shows in that way whether it is there, and a ping would have to wait.
            Due::Ping if !self.down.is_idle() => Some(next.min(now + TICKS_PER_S)),
            Due::Ping => {
                let size = self.down.queue(Opcode::Ping, &self.elapsed_us().to_be_bytes(), None);
                self.place.cells().own_frame(Opcode::Ping, size);
                self.pinged_us.set(self.elapsed_us());
                keepalive.ping(now);
                self.keepalive.set(keepalive);
                Some(next.min(now + self.place.patience.pong_within.max(1)))
            }
            // What a shard that was held up, or an upstream that does not read, has left unread may be the answer.
            Due::PongTimeout if matches!(self.client.stream.peek_now(), Received::Bytes(_)) => {
                Some(next.min(now + TICKS_PER_S))
            }
            Due::PongTimeout => {
                self.give_up();
                None
            }
            Due::Idle => {
                self.leave(CloseCode::GOING_AWAY, End::Idle);
                Some(next.min(self.cut_at.get()))
            }
        }
    }

    /// The client has not answered a ping in time. Whoever does not answer pings will hardly answer a Close: it is told,
    /// and not waited for.
    fn give_up(&self) {
        self.decide(End::PongTimeout);
        if self.down.is_idle() {
            self.close_client(CloseCode::INTERNAL_ERROR, b"ping timeout");
            let _ = self.client.stream.send_now(&self.down.take_queue());
        }
        self.client.stream.finish();
    }

    /// Lets the clock look at the connection at `tick`, if not before.
    fn wake_clock_at(&self, tick: Tick) {
        let timer = &self.client.timer;
        timer.set(timer.deadline().min(tick));
    }

    /// Takes note that the client is there.
    fn hear(&self) {
        let mut keepalive = self.keepalive.get();
        if keepalive.unanswered.is_some() {
            // The deadline was that of a pong; the next look at the clock sets that of the next ping.
            self.client.timer.set(0);
        }
        keepalive.hear(self.resources().timers.now());
        self.keepalive.set(keepalive);
    }

    /// Takes note of what the client sent.
    fn heed(&self, tally: &Tally) {
        let mut keepalive = self.keepalive.get();
        if tally.messages > 0 {
            keepalive.message = self.resources().timers.now();
        }
        // The first pong after a ping of ours: to look whether it is its answer would be to unmask it.
        if keepalive.awaits_pong && tally.frames[Opcode::Pong.index()] > 0 {
            keepalive.awaits_pong = false;
            let round_trip = self.elapsed_us().saturating_sub(self.pinged_us.get());
            self.place.cells().ping_round_trip.observe(Duration::from_micros(round_trip));
        }
        self.keepalive.set(keepalive);
    }

    /// Takes what the client sent out of what it may send.
    fn spend(&self, tally: &Tally, size: usize) -> Result<(), Violation> {
        let Some(allowance) = &self.allowance else { return Ok(()) };
        let mut left = allowance.get();
        let now = self.resources().timers.now();
        left.take(&self.place.rates, tally.frames_sum(), size, now)?;
        allowance.set(left);
        Ok(())
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

    /// The time on the shard's clock, in microseconds.
    fn elapsed_us(&self) -> u64 {
        let elapsed = clock::now().saturating_duration_since(self.resources().timers.origin());
        u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
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

/// How a connection ends whose client broke a rule.
fn violation_end(violation: Violation) -> End {
    match violation {
        Violation::FrameTooBig { .. } | Violation::MessageTooBig { .. } => End::MessageTooBig,
        Violation::RateExceeded => End::Limit,
        _ => End::Violation,
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
