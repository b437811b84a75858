//! What a client is told that broke a rule: only after what its upstream still has to say to what came before.

use super::lane::Fate;
use super::{Relay, Side};
use crate::net::timers::{TICKS_PER_S, Tick};
use crate::protocol::websocket::close::CloseCode;

/// How long an upstream is heard out, at most.
const HEARD_OUT_WITHIN: Tick = TICKS_PER_S;

/// The Close that waits for that of the upstream.
pub(super) struct Verdict {
    code: CloseCode,
    reason: &'static str,
    /// When it is sent, if the upstream has not ended by then.
    due: Tick,
}

impl Relay {
    /// Whether the upstream can be told that the client broke a rule, and the client what the upstream says to that.
    pub(super) fn may_be_heard_out(&self) -> bool {
        let (up, down) = (self.lane(Side::Client), self.lane(Side::Upstream));
        !self.speaks_bytes()
            && !up.will_have_closed()
            && !up.is_finished.get()
            && up.walker.get().is_between_frames()
            && down.fate.get() == Fate::Passed
            && !down.is_ended.get()
            && !down.will_have_closed()
    }

    /// Says the Close to the upstream in the client's place. Its answers to what the client said before are passed on, the
    /// last of them its Close; the client gets ours where none comes in time.
    pub(super) fn hear_out(&self, code: CloseCode, reason: &'static str) {
        self.up.queue_close(Some(code), reason.as_bytes(), Some(self.resources().random.bytes()));
        self.up.fate.set(Fate::Done);
        let due = self.resources().timers.after(HEARD_OUT_WITHIN.min(self.place.close_timeout / 2));
        self.verdict.set(Some(Box::new(Verdict { code, reason, due })));
        self.wake_clock_at(due);
    }

    /// Queues the Close that waits, and says whether one did.
    pub(super) fn pronounce(&self) -> bool {
        let Some(verdict) = self.verdict.take() else { return false };
        self.down.queue_close(Some(verdict.code), verdict.reason.as_bytes(), None);
        self.is_changed.set(true);
        true
    }

    /// Queues the Close that waits, if its time has come; otherwise when that will be.
    pub(super) fn pronounce_when_due(&self, now: Tick) -> Option<Tick> {
        let verdict = self.verdict.take()?;
        let due = verdict.due;
        self.verdict.set(Some(verdict));
        if now >= due {
            self.pronounce();
            return None;
        }
        Some(due)
    }
}
