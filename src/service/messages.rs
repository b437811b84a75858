//! An open WebSocket connection in messages mode: reads, replies, pings, and the closing handshake.
//!
//! While nothing arrives the connection holds no buffer: it waits for readiness, receives into the shard's scratch,
//! composes the replies where the frames stood, and sends them before it waits again. What cannot be sent at once is
//! kept and nothing is read until it is gone; that is all the backpressure there is.

mod deflated;
mod hot;

use std::rc::Rc;
use std::time::Duration;

use super::client::Client;
use super::deflate::{Deflated, Share};
use super::echo;
use super::place::{Phase, Place};
use crate::metrics::{Direction, End, Initiator};
use crate::net::clock;
use crate::net::contain::contain;
use crate::net::stream::{Gone, Received};
use crate::net::timers::{NEVER, Tick};
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::endpoint::{Endpoint, Event};
use crate::protocol::websocket::exchange::{Exchange, Outgoing, Payload};
use crate::protocol::websocket::frame::{self, Opcode, Rules};
use crate::protocol::websocket::keepalive::{Due, Keepalive};
use crate::protocol::websocket::rate::Allowance;
use crate::protocol::websocket::violation::Violation;
use crate::route::auth::Expiry;

/// An open connection whose messages a service answers.
#[derive(Debug)]
pub struct Messages {
    client: Client,
    place: Rc<Place>,
    keepalive: Keepalive,
    /// What is kept between reads; `None` where that is nothing, as it nearly always is.
    kept: Option<Box<Kept>>,
}

/// What some connections keep some of the time.
#[derive(Debug, Default)]
struct Kept {
    /// Bytes that followed the request head and have not been looked at.
    early: Option<Box<[u8]>>,
    /// What of a read was left for the next turn.
    rest: Option<Box<[u8]>>,
    /// A message that is unfinished.
    endpoint: Endpoint,
    /// What the client may still send, where that is limited.
    allowance: Option<Allowance>,
    /// What was agreed on compression, where something was.
    deflated: Option<Deflated>,
    /// When the connection ends, where it is not let in for good.
    expiry: Option<Expiry>,
    /// Until when nothing is read, as the client has sent more than it may.
    paused_until: Tick,
}

/// What was found and agreed on when a connection was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open {
    /// What was agreed on compression, where something was.
    pub deflate: Option<Terms>,
    /// When the connection ends, as what lets the client in has expired.
    pub expiry: Option<Expiry>,
}

/// How to go on after a read.
enum Turn {
    /// Wait for more.
    Wait,
    /// Wait for more, which is likely to come soon.
    WarmUp,
    /// Send this first.
    Flush { unsent: Unsent, then: Next },
    /// Nothing is left to send.
    Next(Next),
}

/// Replies that the socket had no room for.
struct Unsent {
    bytes: Vec<u8>,
    /// How many of the bytes were sent.
    sent: usize,
}

/// What follows once everything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Wait for more.
    Wait,
    /// Both sides have sent their Close, or ours answered a violation: let the client end the TCP connection.
    Linger(End),
    /// The connection is over.
    End(End),
}

/// What came while the client's Close is awaited.
enum Awaited {
    /// Not the Close.
    Nothing,
    /// The Close.
    Close,
    /// A broken rule.
    Violation,
    /// The end of the stream.
    Gone,
}

/// What a read held besides what the service answered.
enum Heard {
    /// Nothing that ends the connection.
    Nothing,
    /// The client's Close.
    Close(Option<CloseCode>),
}

impl Messages {
    /// Takes over a client whose opening handshake has just been answered.
    ///
    /// `early` are the bytes that followed the request head: frames, now that the 101 is sent.
    pub fn new(client: Client, place: Rc<Place>, early: Option<Box<[u8]>>, open: Open) -> Self {
        let Open { deflate, expiry } = open;
        let now = client.resources().timers.now();
        let rates = &place.rates;
        let is_limited = rates.frames_per_s != 0 || rates.bytes_per_s != 0;
        let allowance = is_limited.then(|| Allowance::new(rates, now));
        let deflated = deflate.map(|terms| Deflated::new(&place, terms));
        let kept = Kept { early, allowance, deflated, expiry, ..Kept::default() };
        let keepalive = Keepalive::new(now);
        let deadline = match keepalive.due(&place.patience, now) {
            Due::At(tick) if client.resources().phase() == Phase::Serving => match &kept.expiry {
                Some(expiry) => tick.min(client.resources().tick_at(expiry.at_s)),
                None => tick,
            }
            .min(client.resources().looks_at_memory_at()),
            // The shard moved on while the 101 was being sent, and there is no deadline left that it could let pass.
            _ => now,
        };
        client.life.timer.set(deadline);
        Self { client, keepalive, kept: kept.boxed(), place }
    }

    /// Serves the connection to its end, in a task of its own.
    pub fn spawn(mut self) {
        // What this task takes is what an idle connection takes, so nothing that is rare is kept in it.
        let serve = async move {
            let end = self.run().await;
            self.client.end(end);
        };
        monoio::spawn(contain(serve));
    }

    async fn run(&mut self) -> End {
        if let Some(turn) = self.turn_early()
            && let Some(end) = Box::pin(self.settle(turn)).await
        {
            return end;
        }
        loop {
            if self.has_rest() {
                if let Some(end) = Box::pin(self.go_on()).await {
                    return end;
                }
                continue;
            }
            if self.client.life.timer.is_due()
                && let Some(end) = Box::pin(self.attend()).await
            {
                return end;
            }
            if self.is_paused() {
                Box::pin(self.pause()).await;
                continue;
            }
            if self.client.wait().await.is_none() {
                continue;
            }
            let end = match self.turn() {
                Turn::Wait => None,
                Turn::WarmUp => Box::pin(self.run_hot()).await,
                turn => Box::pin(self.settle(turn)).await,
            };
            if let Some(end) = end {
                return end;
            }
            self.place.resources().give_way().await;
        }
    }

    /// Answers what came with the request head.
    fn turn_early(&mut self) -> Option<Turn> {
        let mut bytes = self.kept.as_mut()?.early.take()?;
        Some(self.answer_and_send(&mut bytes))
    }

    /// Answers more of a read of which one turn was not to answer more, while others have theirs.
    async fn go_on(&mut self) -> Option<End> {
        self.place.resources().after_others().await;
        let mut rest = self.take_rest()?;
        let (outgoing, next) = self.answer(&mut rest);
        self.place.cells().wire_bytes(Direction::Sent).add(outgoing.size() as u64);
        let turn = Turn::after(self.send(&rest, outgoing), next);
        self.settle(turn).await
    }

    fn has_rest(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.rest.is_some())
    }

    fn take_rest(&mut self) -> Option<Box<[u8]>> {
        self.kept.as_mut().and_then(|kept| kept.rest.take())
    }

    /// Receives once and answers what came.
    fn turn(&mut self) -> Turn {
        let place = Rc::clone(&self.place);
        let mut scratch = place.resources().scratch.lend();
        let read_size = place.read_size_max.min(scratch.len());
        match self.client.stream.receive_now(&mut scratch[..read_size]) {
            Received::Bytes(size) => {
                let since = place.resources().timers.now() - self.keepalive.heard;
                let is_busy = since <= hot::BUSY_WITHIN && size <= hot::SMALL_READ_MAX;
                match self.answer_and_send(&mut scratch[..size]) {
                    // TLS goes past the ring: what it would receive is not what is answered.
                    Turn::Wait
                        if is_busy
                            && !place.pauses
                            && place.resources().has_buffer()
                            && !self.client.stream.is_tls()
                            && !self.has_rest() =>
                    {
                        Turn::WarmUp
                    }
                    turn => turn,
                }
            }
            Received::Nothing => Turn::Wait,
            Received::End | Received::Reset => Turn::Next(Next::End(End::ClientGone)),
        }
    }

    /// Answers the bytes of one read, with one send wherever the socket has room.
    fn answer_and_send(&mut self, bytes: &mut [u8]) -> Turn {
        let (outgoing, next) = self.answer(bytes);
        let cells = self.place.cells();
        cells.wire_bytes(Direction::Received).add(bytes.len() as u64);
        cells.wire_bytes(Direction::Sent).add(outgoing.size() as u64);
        Turn::after(self.send(bytes, outgoing), next)
    }

    /// Runs the endpoint over the bytes of one read and composes the replies.
    #[inline]
    fn answer(&mut self, bytes: &mut [u8]) -> (Outgoing, Next) {
        let now = self.client.resources().timers.now();
        if self.keepalive.unanswered.is_some() {
            // The deadline was that of a pong; the next look at the clock sets that of the next ping.
            self.client.life.timer.set(0);
        }
        self.keepalive.hear(now);
        let mut fresh = Kept::default();
        let kept = self.kept.as_deref_mut().unwrap_or(&mut fresh);
        let size = bytes.len();
        let mut exchange = Exchange::new(bytes);
        let outcome = converse(kept, &mut exchange, &self.place, &mut self.keepalive.awaits_pong);
        if let Ok(Heard::Nothing) = outcome {
            kept.rest = exchange.keep_rest();
        }
        let size = size - kept.rest.as_ref().map_or(0, |rest| rest.len());
        let outcome = match (&mut kept.allowance, outcome) {
            (Some(allowance), Ok(Heard::Nothing)) => {
                let frames = exchange.received.frames_sum();
                let owed = allowance.charge(&self.place.rates, frames, size, now);
                if owed > 0 && self.place.pauses {
                    kept.paused_until = now.saturating_add(owed);
                    Ok(Heard::Nothing)
                } else if owed > 0 {
                    Err(Violation::RateExceeded)
                } else {
                    Ok(Heard::Nothing)
                }
            }
            (_, outcome) => outcome,
        };
        let next = match outcome {
            Ok(Heard::Nothing) => Next::Wait,
            Ok(Heard::Close(code)) => {
                exchange.reply_close(code, "");
                self.place.cells().close(Initiator::Client, code);
                Next::Linger(End::Closed)
            }
            Err(violation) => self.refuse(violation, &mut exchange),
        };
        if exchange.received.messages > 0 {
            self.keepalive.message = now;
        }
        let cells = self.place.cells();
        cells.tally(Direction::Received, &exchange.received);
        cells.tally(Direction::Sent, &exchange.replied);
        let outgoing = exchange.finish();
        match &self.kept {
            None => self.kept = fresh.boxed(),
            Some(kept) if kept.is_nothing() => self.kept = None,
            Some(_) => {}
        }
        (outgoing, next)
    }

    /// Answers a broken rule with its Close.
    fn refuse(&self, violation: Violation, exchange: &mut Exchange<'_>) -> Next {
        let cells = self.place.cells();
        cells.violation(violation.kind());
        cells.close(Initiator::Gateway, Some(violation.close_code()));
        exchange.reply_close(Some(violation.close_code()), violation.kind().label());
        Next::Linger(match violation {
            Violation::FrameTooBig { .. } | Violation::MessageTooBig { .. } => End::MessageTooBig,
            Violation::RateExceeded => End::Limit,
            _ => End::Violation,
        })
    }

    /// Sends the replies of a read, and returns what the socket had no room for.
    #[inline]
    fn send(&self, bytes: &[u8], outgoing: Outgoing) -> Result<Option<Unsent>, Gone> {
        let in_place = &bytes[outgoing.in_place];
        if !in_place.is_empty() {
            let sent = self.client.stream.send_now(in_place)?;
            if sent < in_place.len() {
                return Ok(Some(Unsent { bytes: [&in_place[sent..], &outgoing.spill].concat(), sent: 0 }));
            }
        }
        if outgoing.spill.is_empty() {
            return Ok(None);
        }
        let sent = self.client.stream.send_now(&outgoing.spill)?;
        // A message of megabytes stays where it is.
        Ok((sent < outgoing.spill.len()).then_some(Unsent { bytes: outgoing.spill, sent }))
    }

    /// Does what a turn left to do; the end, if that was it.
    async fn settle(&mut self, turn: Turn) -> Option<End> {
        let next = match turn {
            Turn::Wait | Turn::WarmUp => Next::Wait,
            Turn::Next(next) => next,
            Turn::Flush { unsent, then } => {
                match self.client.flush(&unsent.bytes[unsent.sent..], self.place.write_timeout).await {
                    Ok(()) => {
                        // The deadline was the flush's; the next look at the clock sets it again.
                        self.client.life.timer.set(0);
                        then
                    }
                    Err(end) => Next::End(end),
                }
            }
        };
        match next {
            Next::Wait => None,
            Next::Linger(end) => {
                self.client.linger(self.place.close_timeout).await;
                Some(end)
            }
            Next::End(end) => Some(end),
        }
    }

    /// Does what the clock or the shard wants; the end, if that was it.
    async fn attend(&mut self) -> Option<End> {
        match self.client.resources().phase() {
            Phase::Serving => {}
            Phase::Draining => return Some(self.close(CloseCode::GOING_AWAY, End::Drained).await),
            Phase::Cutting => return Some(End::Shutdown),
        }
        let now = self.client.resources().timers.now();
        if self.client.resources().must_leave(self.keepalive.message) {
            return Some(self.close(CloseCode::TRY_AGAIN_LATER, End::Memory).await);
        }
        let expires_at = self.expires_at();
        if now >= expires_at {
            let expiry = self.kept.as_ref().and_then(|kept| kept.expiry).expect("something expires");
            return Some(self.close(expiry.code, End::Expired).await);
        }
        match self.keepalive.due(&self.place.patience, now) {
            Due::At(tick) => {
                let resources = self.client.resources();
                self.client.life.timer.set(tick.min(expires_at).min(resources.looks_at_memory_at()));
                None
            }
            Due::Ping => {
                let ping = elapsed_us(&self.place).to_be_bytes();
                if let Err(end) = self.send_frame(Opcode::Ping, &ping).await {
                    return Some(end);
                }
                // Only now: the client may have taken its time to make room for it.
                self.keepalive.ping(self.client.resources().timers.now());
                self.client.life.timer.set(0);
                None
            }
            Due::PongTimeout => self.give_up().await,
            Due::Idle => Some(self.close(CloseCode::GOING_AWAY, End::Idle).await),
        }
    }

    /// Whether the client has sent more than it may, and is not read for now.
    fn is_paused(&self) -> bool {
        let until = self.kept.as_ref().map_or(0, |kept| kept.paused_until);
        until > self.client.resources().timers.now()
    }

    /// Waits until the client may send again, or until something else is due.
    async fn pause(&self) {
        let until = self.kept.as_ref().map_or(0, |kept| kept.paused_until);
        let timer = &self.client.life.timer;
        let due = timer.deadline();
        timer.set(due.min(until));
        let _ = timer.race(std::future::pending::<()>()).await;
        // Where it was the pause that has passed, the deadline is what it was.
        if timer.deadline() == until {
            timer.set(due);
        }
    }

    /// When what lets the client in has expired, as far as the clock of the day tells by now.
    fn expires_at(&self) -> Tick {
        let expiry = self.kept.as_ref().and_then(|kept| kept.expiry);
        expiry.map_or(NEVER, |expiry| self.client.resources().tick_at(expiry.at_s))
    }

    /// The client has not answered a ping in time; the end, unless something came after all.
    async fn give_up(&mut self) -> Option<End> {
        // A shard that was held up itself may find the answer waiting.
        match self.turn() {
            Turn::Wait | Turn::WarmUp if self.keepalive.unanswered.is_some() => {}
            turn => return self.settle(turn).await,
        }
        // Whoever does not answer pings will hardly answer a Close. It is told, and not waited for.
        let code = CloseCode::INTERNAL_ERROR;
        self.place.cells().close(Initiator::Gateway, Some(code));
        let close = [&code.get().to_be_bytes()[..], b"ping timeout"].concat();
        let mut frame = Vec::new();
        frame::append(&mut frame, Opcode::Close, true, &close, None);
        self.place.cells().own_frame(Opcode::Close, frame.len());
        let _ = self.client.stream.send_now(&frame);
        self.client.stream.finish();
        Some(End::PongTimeout)
    }

    /// Begins the closing handshake and waits for the client's part (RFC 6455 section 7.1.2).
    async fn close(&mut self, code: CloseCode, end: End) -> End {
        self.place.cells().close(Initiator::Gateway, Some(code));
        if let Err(end) = self.send_frame(Opcode::Close, &code.get().to_be_bytes()).await {
            return end;
        }
        // Only now: the client may have taken its time to make room for it.
        let deadline = self.client.resources().timers.after(self.place.close_timeout);
        let mut kept = self.kept.take().unwrap_or_default();
        kept.endpoint.close_sent();
        loop {
            match self.discard_until_close(&mut kept) {
                Awaited::Nothing => {}
                Awaited::Close => {
                    self.client.linger(self.place.close_timeout).await;
                    return end;
                }
                Awaited::Violation => {
                    self.client.linger(self.place.close_timeout).await;
                    return End::Violation;
                }
                Awaited::Gone => return End::ClientGone,
            }
            let resources = self.client.resources();
            if resources.phase() == Phase::Cutting || resources.timers.now() >= deadline {
                break;
            }
            self.client.life.timer.set(deadline);
            let _ = self.client.wait().await;
            resources.give_way().await;
        }
        // The client had its time. It was asked to leave and did not.
        match end {
            End::Drained => End::Shutdown,
            end => end,
        }
    }

    /// Receives once while the client's Close is awaited.
    fn discard_until_close(&self, kept: &mut Kept) -> Awaited {
        let mut scratch = self.place.resources().scratch.lend();
        let size = match self.client.stream.receive_now(&mut scratch) {
            Received::Bytes(size) => size,
            Received::Nothing => return Awaited::Nothing,
            Received::End | Received::Reset => return Awaited::Gone,
        };
        let cells = self.place.cells();
        cells.wire_bytes(Direction::Received).add(size as u64);
        let mut exchange = Exchange::new(&mut scratch[..size]);
        let event = kept.endpoint.receive(rules(kept.deflated.as_ref(), &self.place), &mut exchange);
        cells.tally(Direction::Received, &exchange.received);
        match event {
            Ok(None) => Awaited::Nothing,
            Ok(Some(_)) => Awaited::Close,
            // Nothing is sent after a Close, so the rule that was broken is counted and that is all.
            Err(violation) => {
                cells.violation(violation.kind());
                Awaited::Violation
            }
        }
    }

    /// Sends one control frame of our own.
    async fn send_frame(&self, opcode: Opcode, payload: &[u8]) -> Result<(), End> {
        let mut frame = Vec::with_capacity(payload.len() + 2);
        frame::append(&mut frame, opcode, true, payload, None);
        self.place.cells().own_frame(opcode, frame.len());
        let sent = self.client.stream.send_now(&frame).map_err(|Gone| End::ClientGone)?;
        if sent < frame.len() {
            self.client.flush(&frame[sent..], self.place.write_timeout).await?;
        }
        Ok(())
    }
}

impl Kept {
    fn is_nothing(&self) -> bool {
        self.early.is_none()
            && self.rest.is_none()
            && self.endpoint.is_at_rest()
            && self.allowance.is_none()
            && self.deflated.is_none()
            && self.expiry.is_none()
    }

    #[inline]
    fn boxed(self) -> Option<Box<Self>> {
        if self.is_nothing() { None } else { Some(Box::new(self)) }
    }
}

impl Turn {
    /// How to go on once replies were sent, as far as the socket had room.
    fn after(sent: Result<Option<Unsent>, Gone>, next: Next) -> Self {
        match (sent, next) {
            (Ok(None), Next::Wait) => Self::Wait,
            (Ok(None), next) => Self::Next(next),
            (Ok(Some(unsent)), then) => Self::Flush { unsent, then },
            // The peer is gone. If it closed in order and did not wait for our answer, that was an end in order.
            (Err(Gone), next) => Self::Next(Next::End(next.end())),
        }
    }
}

impl Next {
    fn end(self) -> End {
        match self {
            Self::Wait => End::ClientGone,
            Self::Linger(end) | Self::End(end) => end,
        }
    }
}

/// Lets the service answer what the client says.
#[inline]
fn converse(
    kept: &mut Kept,
    exchange: &mut Exchange<'_>,
    place: &Place,
    awaits_pong: &mut bool,
) -> Result<Heard, Violation> {
    let Kept { endpoint, deflated, .. } = kept;
    let mut share = Share::default();
    while !share.is_used_up()
        && let Some(event) = endpoint.receive(rules(deflated.as_ref(), place), exchange)?
    {
        match event {
            Event::Message { kind, payload, is_compressed } => match deflated {
                None => {
                    place.cells().message_size.observe_bytes(exchange.payload(&payload).len() as u64);
                    echo::message(exchange, kind, payload);
                }
                Some(deflated) => {
                    let message = (kind, payload, is_compressed);
                    share.take(deflated::message(deflated, exchange, place, message)?);
                }
            },
            Event::Ping(payload) => exchange.reply(Opcode::Pong, payload),
            Event::Pong(payload) => {
                if *awaits_pong {
                    *awaits_pong = !observe_pong(exchange, &payload, place);
                }
            }
            Event::Close(code, _) => return Ok(Heard::Close(code)),
        }
    }
    match deflated {
        None => {}
        Some(deflated) => deflated::after_read(deflated, endpoint, place)?,
    }
    Ok(Heard::Nothing)
}

/// What the client's frames may be like.
#[inline]
fn rules<'r>(deflated: Option<&'r Deflated>, place: &'r Place) -> &'r Rules {
    deflated.map_or(&place.rules, Deflated::rules)
}

/// Counts the round trip of the Ping that this Pong answers; `false` where it answers none of ours.
#[cold]
fn observe_pong(exchange: &Exchange<'_>, payload: &Payload, place: &Place) -> bool {
    let Ok(sent) = <[u8; 8]>::try_from(exchange.payload(payload)) else {
        return false;
    };
    // A Pong from the future is one that we did not ask for.
    let Some(round_trip) = elapsed_us(place).checked_sub(u64::from_be_bytes(sent)) else {
        return false;
    };
    place.cells().ping_round_trip.observe(Duration::from_micros(round_trip));
    true
}

/// The time since the shard's clock began, in microseconds. A ping carries it, so that its pong tells the round trip
/// and nothing is kept in between.
fn elapsed_us(place: &Place) -> u64 {
    let elapsed = clock::now().saturating_duration_since(place.resources().timers.origin());
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}
