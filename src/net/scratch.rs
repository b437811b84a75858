//! The buffer that all connections of a shard read into, one after the other.

use std::cell::{RefCell, RefMut};

/// How much one receive takes at most, in bytes. Larger reads save system calls until they leave the cache.
pub const SCRATCH_SIZE: usize = 64 * 1024;

/// A buffer that is lent for the time between a receive and the send of its replies, never across a wait.
#[derive(Debug)]
pub struct Scratch {
    bytes: RefCell<Box<[u8]>>,
}

impl Scratch {
    /// A buffer of [`SCRATCH_SIZE`] bytes.
    pub fn new() -> Self {
        Self { bytes: RefCell::new(vec![0; SCRATCH_SIZE].into()) }
    }

    /// Lends the buffer.
    ///
    /// # Panics
    /// Where it is lent already: a borrower kept it across a wait.
    pub fn lend(&self) -> RefMut<'_, Box<[u8]>> {
        self.bytes.borrow_mut()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
