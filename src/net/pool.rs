//! Buffers for connections that are busy with small reads.

use std::cell::{Cell, RefCell};

/// The size of a buffer, in bytes. Reads that fill it are better taken into the shard's scratch, which stays in the
/// cache however many connections there are.
pub const BUFFER_SIZE: usize = 4096;
/// How many buffers a shard lends at one time: 2 MiB. Connections beyond do without, which costs them a little time.
const LENT_MAX: usize = 512;

/// A buffer that the ring may hold.
pub type Buffer = Vec<u8>;

/// The buffers of one shard.
#[derive(Debug, Default)]
pub struct Pool {
    free: RefCell<Vec<Buffer>>,
    lent: Cell<usize>,
}

/// Leave to hold one buffer.
#[derive(Debug)]
pub struct Lease<'p> {
    pool: &'p Pool,
}

impl Pool {
    /// Whether there is one to lend.
    pub fn has_room(&self) -> bool {
        self.lent.get() < LENT_MAX
    }

    /// Lends a buffer, or `None` where as many are lent as may be.
    pub fn lend(&self) -> Option<(Lease<'_>, Buffer)> {
        if !self.has_room() {
            return None;
        }
        self.lent.set(self.lent.get() + 1);
        // The one that came back last is the one that is still in the cache.
        let buffer = self.free.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_SIZE));
        Some((Lease { pool: self }, buffer))
    }

    /// Gives half of the buffers that nobody uses back to the system: called with every tick, all within seconds.
    pub fn shrink(&self) {
        let mut free = self.free.borrow_mut();
        let half = free.len() / 2;
        free.truncate(half);
        if half == 0 {
            free.shrink_to_fit();
        }
    }
}

impl Lease<'_> {
    /// Returns the buffer. A lease that is dropped instead has lost its buffer with the task that held it.
    pub fn give_back(self, buffer: Buffer) {
        self.pool.free.borrow_mut().push(buffer);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.lent.set(self.pool.lent.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_back_last_is_lent_first() {
        let pool = Pool::default();
        let (first_lease, first) = pool.lend().expect("below the limit");
        let (second_lease, second) = pool.lend().expect("below the limit");
        let address = second.as_ptr();
        first_lease.give_back(first);
        second_lease.give_back(second);
        assert_eq!(pool.lend().map(|(_, buffer)| buffer.as_ptr()), Some(address));
    }

    #[test]
    fn no_more_are_lent_than_may_be() {
        let pool = Pool::default();
        let mut lent: Vec<_> = (0..LENT_MAX).map(|_| pool.lend().expect("below the limit")).collect();
        assert!(pool.lend().is_none());
        lent.pop();
        assert!(pool.lend().is_some());
    }

    #[test]
    fn what_nobody_uses_is_given_back() {
        let pool = Pool::default();
        let lent: Vec<_> = (0..100).map(|_| pool.lend().expect("below the limit")).collect();
        for (lease, buffer) in lent {
            lease.give_back(buffer);
        }
        for _ in 0..7 {
            pool.shrink();
        }
        assert_eq!(pool.free.borrow().capacity(), 0);
    }
}
