//! The buffer that all connections of a shard read into, one after the other.

use std::cell::{Cell, RefCell, RefMut};

use super::pool::Buffer;

/// How much one receive takes at most, in bytes. Larger reads save system calls until they leave the cache.
pub const SCRATCH_SIZE: usize = 64 * 1024;
/// How many buffers a shard hands to the ring at one time: 16 MiB, of which the one that came back last is used first and
/// so is still in the cache. Sends beyond go past the ring, each by a system call of its own.
const HANDED_MAX: usize = 256;

/// A buffer that is lent for the time between a receive and the send of its replies, never across a wait; or handed
/// over to the ring for a send, and replaced.
#[derive(Debug)]
pub struct Scratch {
    bytes: RefCell<Buffer>,
    spares: RefCell<Vec<Buffer>>,
    /// How many spares nobody has needed since the last look.
    unused: Cell<usize>,
    /// How many are with the ring.
    handed: Cell<usize>,
}

/// Leave to hold a buffer while the ring sends from it.
#[derive(Debug)]
pub struct Handed<'s> {
    scratch: &'s Scratch,
}

impl Scratch {
    /// A buffer of [`SCRATCH_SIZE`] bytes.
    pub fn new() -> Self {
        Self {
            bytes: RefCell::new(new_buffer()),
            spares: RefCell::default(),
            unused: Cell::new(0),
            handed: Cell::new(0),
        }
    }

    /// Lends the buffer.
    ///
    /// # Panics
    /// Where it is lent already: a borrower kept it across a wait.
    pub fn lend(&self) -> RefMut<'_, Buffer> {
        self.bytes.borrow_mut()
    }

    /// Hands the buffer over, and puts another in its place; `None` where as many are with the ring as may be.
    ///
    /// # Panics
    /// Where it is lent.
    pub fn hand_over(&self) -> Option<(Handed<'_>, Buffer)> {
        if self.handed.get() == HANDED_MAX {
            return None;
        }
        self.handed.set(self.handed.get() + 1);
        let spare = self.spares.borrow_mut().pop().unwrap_or_else(new_buffer);
        self.unused.set(self.unused.get().min(self.spares.borrow().len()));
        Some((Handed { scratch: self }, self.bytes.replace(spare)))
    }

    /// Gives half of the buffers that nobody has needed since the last call back to the system: called with every tick.
    /// Half, so that the one which is needed now and then is not asked for again each time.
    pub fn shrink(&self) {
        let mut spares = self.spares.borrow_mut();
        spares.drain(..self.unused.get() / 2);
        self.unused.set(spares.len());
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Handed<'_> {
    /// Takes the buffer back. Where this is dropped instead, the buffer is lost with the task that held it.
    pub fn give_back(self, buffer: Buffer) {
        self.scratch.spares.borrow_mut().push(buffer);
    }
}

impl Drop for Handed<'_> {
    fn drop(&mut self) {
        self.scratch.handed.set(self.scratch.handed.get() - 1);
    }
}

fn new_buffer() -> Buffer {
    vec![0; SCRATCH_SIZE]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_is_replaced_by_what_came_back_last() {
        let scratch = Scratch::new();
        let (first_leave, first) = scratch.hand_over().unwrap();
        let (second_leave, second) = scratch.hand_over().unwrap();
        let address = second.as_ptr();
        first_leave.give_back(first);
        second_leave.give_back(second);
        let _handed = scratch.hand_over().unwrap();
        assert_eq!(scratch.lend().as_ptr(), address);
        assert_eq!(scratch.lend().len(), SCRATCH_SIZE);
    }

    #[test]
    fn what_nobody_needs_is_given_back_but_for_one_and_what_is_needed_is_kept() {
        let scratch = Scratch::new();
        let hand_over = |count: usize| {
            let handed: Vec<_> = (0..count).map(|_| scratch.hand_over().unwrap()).collect();
            for (leave, buffer) in handed {
                leave.give_back(buffer);
            }
        };
        hand_over(8);
        for _ in 0..6 {
            hand_over(2);
            scratch.shrink();
        }
        assert_eq!(scratch.spares.borrow().len(), 3);
        for _ in 0..6 {
            scratch.shrink();
        }
        assert_eq!(scratch.spares.borrow().len(), 1);
    }

    #[test]
    fn no_more_are_handed_over_than_may_be() {
        let scratch = Scratch::new();
        let mut handed: Vec<_> = (0..HANDED_MAX).map(|_| scratch.hand_over().unwrap()).collect();
        assert!(scratch.hand_over().is_none());
        handed.pop();
        assert!(scratch.hand_over().is_some());
    }
}
