//! One direction of a relayed connection, as far as it is known between reads.

use std::cell::Cell;

use crate::net::timers::Tick;
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::frame::{self, Opcode, Tally};
use crate::protocol::websocket::mask::MaskingKey;
use crate::protocol::websocket::walker::Walker;

/// One direction: from a sender to a receiver.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) walker: Cell<Walker>,
    /// What becomes of what the sender still sends.
    pub(super) fate: Cell<Fate>,
    /// Frames of our own for the receiver, sent where one of the sender's ends.
    queue: Cell<Option<Box<OwnFrames>>>,
    /// True exactly when the receiver was sent a Close, the sender's or ours.
    pub(super) has_sent_close: Cell<bool>,
    /// True exactly when the sender has ended its stream.
    pub(super) is_ended: Cell<bool>,
    /// True exactly when the receiver was told that nothing more is sent, or can be sent nothing more.
    pub(super) is_finished: Cell<bool>,
    /// When bytes came last.
    pub(super) heard: Cell<Tick>,
    /// Since when the receiver has had no room; 0, which no clock shows, while it has.
    blocked: Cell<Tick>,
    /// True exactly while the lane is busy, and the ring sends for it.
    pub(super) is_hot: Cell<bool>,
}

/// What becomes of what a sender sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is walked and passed on.
    #[default]
    Passed,
    /// The receiver has our Close, so it is walked for the sender's, and dropped.
    Awaited,
    /// The sender has said its last, its Close: whatever follows is dropped.
    Done,
    /// The sender broke a rule, or was given up: whatever it sends is dropped, and the receiver hears no more.
    Severed,
}

/// Whole frames of our own for one receiver.
#[derive(Debug, Default)]
pub(super) struct OwnFrames {
    /// As they are sent.
    pub(super) bytes: Vec<u8>,
    /// What they come to.
    pub(super) tally: Tally,
    /// The Close among them, which is then the last.
    pub(super) close: Option<OwnClose>,
}

/// A Close of our own.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnClose {
    pub(super) code: Option<CloseCode>,
}

impl Lane {
    /// Whether nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        self.is_ended.get() && self.is_finished.get()
    }

    /// Whether a frame of our own would be sent now.
    pub(super) fn has_frames_to_send(&self) -> bool {
        self.has_queue() && self.walker.get().is_between_frames()
    }

    /// Whether a frame of our own would be sent at once: nothing of the sender's, and none of ours, is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.blocked.get() == 0 && !self.has_queue() && self.walker.get().is_between_frames()
    }

    /// Whether frames of our own wait, be it for the end of one of the sender's.
    pub(super) fn has_queue(&self) -> bool {
        self.look_at_queue(Option::is_some)
    }

    /// Whether nothing more of the sender can matter.
    pub(super) fn has_heard_all(&self) -> bool {
        matches!(self.fate.get(), Fate::Done | Fate::Severed)
    }

    /// Takes note that the receiver has no room.
    pub(super) fn block(&self, now: Tick) {
        self.blocked.set(now);
    }

    /// Takes note that the receiver has room again.
    pub(super) fn unblock(&self) {
        self.blocked.set(0);
    }

    /// Since when the receiver has had no room.
    pub(super) fn blocked_since(&self) -> Option<Tick> {
        Some(self.blocked.get()).filter(|&since| since != 0)
    }

    /// Queues a control frame of our own. The upstream's have a masking key, as we are its client.
    pub(super) fn queue(&self, opcode: Opcode, payload: &[u8], key: Option<MaskingKey>) {
        debug_assert!(opcode != Opcode::Close, "a Close has a code");
        self.append(opcode, payload, key);
    }

    /// Queues a Close of our own, which nothing follows (RFC 6455 section 5.5.1).
    pub(super) fn queue_close(&self, code: Option<CloseCode>, reason: &[u8], key: Option<MaskingKey>) {
        match code {
            Some(code) => {
                self.append(Opcode::Close, &[&code.get().to_be_bytes()[..], reason].concat(), key);
            }
            None => self.append(Opcode::Close, &[], key),
        }
        self.change_queue(|own| own.close = Some(OwnClose { code }));
    }

    /// Queues whole frames of our own, none of them a Close.
    pub(super) fn queue_frames(&self, bytes: &[u8], tally: &Tally) {
        debug_assert!(!self.will_have_closed(), "nothing is sent after a Close");
        self.change_queue(|own| {
            own.bytes.extend_from_slice(bytes);
            own.tally.add(tally);
        });
    }

    /// Whether the receiver was sent a Close, or will be.
    pub(super) fn will_have_closed(&self) -> bool {
        self.has_sent_close.get()
            || self.look_at_queue(|own| own.as_ref().is_some_and(|own| own.close.is_some()))
    }

    /// Takes the frames of our own that wait, to be sent now.
    pub(super) fn take_queue(&self) -> Option<Box<OwnFrames>> {
        let own = self.queue.take()?;
        if own.close.is_some() {
            self.has_sent_close.set(true);
            if self.fate.get() == Fate::Passed {
                self.fate.set(Fate::Awaited);
            }
        }
        Some(own)
    }

    /// Gives up the frames of our own that wait: there is no place left where they could stand.
    pub(super) fn discard_queue(&self) {
        self.queue.take();
    }

    /// Passes nothing more on. Where a frame of the sender's was cut by that, no frame of ours can follow it.
    pub(super) fn sever(&self) {
        self.fate.set(Fate::Severed);
        if !self.walker.get().is_between_frames() {
            self.discard_queue();
        }
    }

    fn append(&self, opcode: Opcode, payload: &[u8], key: Option<MaskingKey>) {
        debug_assert!(!self.will_have_closed(), "nothing is sent after a Close");
        self.change_queue(|own| {
            frame::append(&mut own.bytes, opcode, true, payload, key);
            own.tally.frames[opcode.index()] += 1;
        });
    }

    fn change_queue(&self, change: impl FnOnce(&mut OwnFrames)) {
        let mut own = self.queue.take().unwrap_or_default();
        change(&mut own);
        self.queue.set(Some(own));
    }

    fn look_at_queue<T>(&self, look: impl FnOnce(&Option<Box<OwnFrames>>) -> T) -> T {
        let queue = self.queue.take();
        let seen = look(&queue);
        self.queue.set(queue);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_fits_in_a_line_of_the_cache_as_every_idle_connection_has_two() {
        assert_eq!(size_of::<Lane>(), 64);
    }
}
