//! One direction of a relayed connection, as far as it is known between reads.

use std::cell::{Cell, RefCell};

use crate::net::timers::Tick;
use crate::protocol::websocket::frame::{self, Opcode};
use crate::protocol::websocket::mask::MaskingKey;
use crate::protocol::websocket::walker::Walker;

/// One direction: from a sender to a receiver.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) walker: RefCell<Walker>,
    /// What becomes of what the sender still sends.
    pub(super) fate: Cell<Fate>,
    /// Frames of our own for the receiver, sent where one of the sender's ends.
    queue: Cell<Option<Box<Queue>>>,
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
    /// True exactly while the ring receives into a buffer of the lane's own.
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

/// Whole frames of our own.
#[derive(Debug, Default)]
struct Queue {
    frames: Vec<u8>,
    /// True exactly when the last of them is a Close.
    closes: bool,
}

impl Lane {
    /// Whether nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        self.is_ended.get() && self.is_finished.get()
    }

    /// Whether a frame of our own would be sent now.
    pub(super) fn has_frames_to_send(&self) -> bool {
        self.has_queue() && self.walker.borrow().is_between_frames()
    }

    /// Whether a frame of our own would be sent at once: nothing of the sender's, and none of ours, is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.blocked.get() == 0 && !self.has_queue() && self.walker.borrow().is_between_frames()
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

    /// Queues a frame of our own, and returns its size; the upstream's, as we are its client, have a masking key. Nothing
    /// follows a Close.
    pub(super) fn queue(&self, opcode: Opcode, payload: &[u8], key: Option<MaskingKey>) -> usize {
        let mut queue = self.queue.take().unwrap_or_default();
        debug_assert!(!queue.closes && !self.has_sent_close.get(), "nothing is sent after a Close");
        let before = queue.frames.len();
        frame::append(&mut queue.frames, opcode, true, payload, key);
        queue.closes = opcode == Opcode::Close;
        let size = queue.frames.len() - before;
        self.queue.set(Some(queue));
        size
    }

    /// Queues whole frames of our own, none of them a Close.
    pub(super) fn queue_frames(&self, frames: &[u8]) {
        let mut queue = self.queue.take().unwrap_or_default();
        queue.frames.extend_from_slice(frames);
        self.queue.set(Some(queue));
    }

    /// Whether the receiver was sent a Close, or will be.
    pub(super) fn will_have_closed(&self) -> bool {
        self.has_sent_close.get()
            || self.look_at_queue(|queue| queue.as_ref().is_some_and(|queue| queue.closes))
    }

    /// Takes the frames of our own that wait, to be sent now.
    pub(super) fn take_queue(&self) -> Vec<u8> {
        let Some(queue) = self.queue.take() else { return Vec::new() };
        if queue.closes {
            self.has_sent_close.set(true);
            if self.fate.get() == Fate::Passed {
                self.fate.set(Fate::Awaited);
            }
        }
        queue.frames
    }

    fn look_at_queue<T>(&self, look: impl FnOnce(&Option<Box<Queue>>) -> T) -> T {
        let queue = self.queue.take();
        let seen = look(&queue);
        self.queue.set(queue);
        seen
    }
}
