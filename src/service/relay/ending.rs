//! How a relayed connection ends: who said a last word, who still waits for one, and what the end is called.

use super::lane::Fate;
use super::{Relay, Side};
use crate::metrics::{End, Initiator};
use crate::net::timers::NEVER;
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::violation::Violation;
use crate::protocol::websocket::walker::WalkEnd;

impl Relay {
    /// Whether the receiver of what `from` sends is to be told that nothing more comes.
    pub(super) fn may_finish(&self, from: Side) -> bool {
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

    /// Does what the end of a direction demands.
    pub(super) fn on_walk_end(&self, from: Side, end: Option<WalkEnd>) {
        match end {
            None => {}
            Some(WalkEnd::Close(code)) => self.on_close(from, code),
            Some(WalkEnd::Violation(violation)) => self.on_violation(from, violation),
        }
    }

    /// A Close of `from` has come, and is passed on unless one of ours was.
    pub(super) fn on_close(&self, from: Side, code: Option<CloseCode>) {
        let initiator = match from {
            Side::Client => Initiator::Client,
            Side::Upstream => Initiator::Upstream,
        };
        self.count_close(initiator, code);
        let lane = self.lane(from);
        if lane.fate.get() == Fate::Passed {
            // It went before frames of ours that waited, and nothing follows a Close (RFC 6455 section 5.5.1).
            lane.discard_queue();
            // Where one waits, this is the upstream's answer to it, and passes in its place.
            self.verdict.set(None);
            lane.has_sent_close.set(true);
        }
        lane.fate.set(Fate::Done);
        self.begin_to_end();
    }

    /// Counts the first Close of the connection, whoever sent it.
    pub(super) fn count_close(&self, initiator: Initiator, code: Option<CloseCode>) {
        if !self.is_close_counted.replace(true) {
            self.place.cells().close(initiator, code);
        }
    }

    /// `from` broke a rule. Nothing of the frame that did is passed on.
    pub(super) fn on_violation(&self, from: Side, violation: Violation) {
        let cells = self.place.cells();
        let (end, code, reason) = match from {
            Side::Client => {
                cells.violation(violation.kind());
                (violation_end(violation), violation.close_code(), violation.kind().label())
            }
            // The client did nothing wrong, and hears of it as of any upstream that makes no sense.
            Side::Upstream => (End::UpstreamGone, CloseCode::BAD_GATEWAY, "upstream"),
        };
        self.decide_end(end);
        if from == Side::Client && self.may_be_heard_out() {
            self.hear_out(code, reason);
        } else {
            self.close_client(code, reason.as_bytes());
            self.up.sever();
        }
        if from == Side::Upstream {
            self.down.sever();
        }
        self.begin_to_end();
    }

    /// `from` has ended its stream.
    pub(super) fn on_stream_end(&self, from: Side, is_reset: bool) {
        let lane = self.lane(from);
        lane.is_ended.set(true);
        if !lane.walker.get().is_between_frames() {
            // Its frame will never be whole, so nothing of ours can follow.
            lane.discard_queue();
            if from == Side::Upstream {
                self.verdict.set(None);
            }
        }
        if !lane.has_heard_all() {
            match from {
                Side::Client => self.decide_end(End::ClientGone),
                // The end of a byte stream is an end in order.
                Side::Upstream if self.speaks_bytes() && !is_reset => {
                    self.decide_end(End::Closed);
                    self.close_client(CloseCode::NORMAL, b"");
                }
                Side::Upstream => {
                    self.decide_end(End::UpstreamGone);
                    if lane.walker.get().is_between_frames() {
                        self.close_client(CloseCode::BAD_GATEWAY, b"upstream");
                    }
                }
            }
        }
        self.begin_to_end();
    }

    /// Queues a Close for the client, unless it has one: the one that waits for the upstream's, where one does.
    pub(super) fn close_client(&self, code: CloseCode, reason: &[u8]) {
        if !self.down.will_have_closed() && !self.down.is_finished.get() && !self.pronounce() {
            self.down.queue_close(Some(code), reason, None);
        }
    }

    /// Asks both sides to leave (RFC 6455 section 7.1.2).
    pub(super) fn ask_to_leave(&self, code: CloseCode, end: End) {
        self.decide_end(end);
        self.close_client(code, b"");
        if !self.speaks_bytes() && !self.up.will_have_closed() && !self.up.is_finished.get() {
            self.up.queue_close(Some(code), b"", Some(self.resources().random.bytes()));
        }
        self.begin_to_end();
    }

    /// Answers the Close of a client whose upstream has not, now that the time for that is over. As nothing more comes
    /// from that client, it is not waited for.
    pub(super) fn answer_close(&self) {
        if self.up.fate.get() == Fate::Done && self.down.is_idle() {
            self.close_client(CloseCode::BAD_GATEWAY, b"upstream");
            let _ = self.client.stream.send_now(&self.take_own(Side::Upstream));
            self.client.stream.finish();
        }
    }

    /// Gives everybody until the closing timeout, from the first word of an end on.
    pub(super) fn begin_to_end(&self) {
        if self.cut_at.get() == NEVER {
            self.cut_at.set(self.resources().timers.after(self.place.close_timeout));
            self.wake_clock_at(self.cut_at.get());
        }
        self.is_changed.set(true);
    }

    /// Says how the connection ends, unless that was said.
    pub(super) fn decide_end(&self, end: End) {
        if self.end.get().is_none() && !(self.up.has_heard_all() && self.down.has_heard_all()) {
            self.end.set(Some(end));
        }
    }

    /// How the connection ended.
    pub(super) fn final_end(&self) -> End {
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

    /// Takes note that one side can be sent nothing more.
    pub(super) fn on_send_failure(&self, side: Side) {
        match side {
            Side::Client => {
                self.decide_end(End::ClientGone);
                self.is_over.set(true);
            }
            // What it said before it went, its Close perhaps, is still there to be read.
            Side::Upstream => {
                self.up.is_finished.set(true);
                self.begin_to_end();
            }
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
