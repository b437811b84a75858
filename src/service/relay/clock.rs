//! The clock of a relayed connection: pings, silence, rates, and whoever takes too long.

use std::time::Duration;

use super::{Relay, Side, hot};
use crate::metrics::{End, SlowClientOutcome};
use crate::net::clock;
use crate::net::stream::Received;
use crate::net::timers::{NEVER, TICKS_PER_S, Tick};
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::frame::{Opcode, Tally};
use crate::protocol::websocket::keepalive::Due;
use crate::protocol::websocket::violation::Violation;
use crate::service::place::Phase;

impl Relay {
    /// Does what is due, until the connection is to be cut.
    pub(super) async fn keep_time(&self) {
        while let Some(next) = self.do_what_is_due() {
            self.client.life.timer.set(next);
            self.client.life.timer.race(std::future::pending::<()>()).await;
        }
    }

    /// Does what the clock or the shard wants; when to look again, or `None` where the connection is to be cut.
    pub(super) fn do_what_is_due(&self) -> Option<Tick> {
        let resources = self.resources();
        let now = resources.timers.now();
        let is_ending = self.cut_at.get() != NEVER;
        match resources.phase() {
            Phase::Serving => {}
            Phase::Draining if is_ending => {}
            Phase::Draining => self.ask_to_leave(CloseCode::GOING_AWAY, End::Drained),
            Phase::Cutting => {
                self.end.set(Some(End::Shutdown));
                return None;
            }
        }
        if now >= self.cut_at.get() {
            self.answer_close();
            return None;
        }
        let mut next = self.cut_at.get();
        if let Some(due) = self.pronounce_when_due(now) {
            next = next.min(due);
        }
        for from in [Side::Upstream, Side::Client] {
            let lane = self.lane(from);
            if let Some(since) = lane.blocked_since() {
                let until = since.saturating_add(self.place.write_timeout).saturating_add(1);
                match from {
                    _ if now < until => next = next.min(until),
                    Side::Upstream => {
                        self.place.cells().slow_client(SlowClientOutcome::Cut);
                        self.decide_end(End::SlowClient);
                        return None;
                    }
                    // Whoever waits to send meets that it is gone, and the client is told.
                    Side::Client => {
                        self.decide_end(End::UpstreamGone);
                        self.upstream.stream.break_off();
                        self.is_changed.set(true);
                    }
                }
            }
            if lane.is_hot.get() {
                // The lane looks for itself whether it has fallen quiet; it only has to be woken.
                next = next.min(now + hot::QUIET_AFTER);
            }
        }
        if self.cut_at.get() != NEVER {
            return Some(next);
        }
        if self.paused_until.get() > now {
            next = next.min(self.paused_until.get());
        }
        next = next.min(resources.looks_at_memory_at());
        if resources.must_leave(self.keepalive.get().message) {
            self.ask_to_leave(CloseCode::TRY_AGAIN_LATER, End::Memory);
            return Some(next.min(self.cut_at.get()));
        }
        if let Some(expiry) = &self.expiry {
            let expires_at = resources.tick_at(expiry.at_s);
            if now >= expires_at {
                self.ask_to_leave(expiry.code, End::Expired);
                return Some(next.min(self.cut_at.get()));
            }
            next = next.min(expires_at);
        }
        let mut keepalive = self.keepalive.get();
        match keepalive.due(&self.place.patience, now) {
            Due::At(tick) => Some(next.min(tick)),
            // Whoever is being sent to shows in that way whether it is there, and a ping would have to wait.
            Due::Ping if !self.down.is_idle() => Some(next.min(now + TICKS_PER_S)),
            Due::Ping => {
                self.down.queue(Opcode::Ping, &self.elapsed_us().to_be_bytes(), None);
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
                self.give_client_up();
                None
            }
            Due::Idle => {
                self.ask_to_leave(CloseCode::GOING_AWAY, End::Idle);
                Some(next.min(self.cut_at.get()))
            }
        }
    }

    /// The client has not answered a ping in time. Whoever does not answer pings will hardly answer a Close: it is told,
    /// and not waited for.
    pub(super) fn give_client_up(&self) {
        self.decide_end(End::PongTimeout);
        if self.down.is_idle() {
            self.close_client(CloseCode::INTERNAL_ERROR, b"ping timeout");
            let _ = self.client.stream.send_now(&self.take_own(Side::Upstream));
        }
        self.client.stream.finish();
    }

    /// Lets the clock look at the connection at `tick`, if not before.
    pub(super) fn wake_clock_at(&self, tick: Tick) {
        let timer = &self.client.life.timer;
        timer.set(timer.deadline().min(tick));
    }

    /// Takes note that the client is there.
    pub(super) fn note_bytes(&self) {
        let mut keepalive = self.keepalive.get();
        if keepalive.unanswered.is_some() {
            // The deadline was that of a pong; the next look at the clock sets that of the next ping.
            self.client.life.timer.set(0);
        }
        keepalive.hear(self.resources().timers.now());
        self.keepalive.set(keepalive);
    }

    /// Takes note of what the client sent.
    pub(super) fn note_frames(&self, tally: &Tally) {
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

    /// Takes note of what the client gets: a connection on which only the upstream speaks is not idle.
    pub(super) fn note_message_for_client(&self, tally: &Tally) {
        if tally.messages > 0 {
            let mut keepalive = self.keepalive.get();
            keepalive.message = self.resources().timers.now();
            self.keepalive.set(keepalive);
        }
    }

    /// Takes what the client sent out of what it may send.
    pub(super) fn spend_allowance(&self, tally: &Tally, size: usize) -> Result<(), Violation> {
        let Some(allowance) = &self.allowance else { return Ok(()) };
        let mut left = allowance.get();
        let now = self.resources().timers.now();
        let owed = left.charge(&self.place.rates, tally.frames_sum(), size, now);
        allowance.set(left);
        if owed > 0 && self.place.pauses {
            self.paused_until.set(now.saturating_add(owed));
            self.wake_clock_at(self.paused_until.get());
        } else if owed > 0 {
            return Err(Violation::RateExceeded);
        }
        Ok(())
    }

    /// The time on the shard's clock, in microseconds.
    pub(super) fn elapsed_us(&self) -> u64 {
        let elapsed = clock::now().saturating_duration_since(self.resources().timers.origin());
        u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
    }
}
