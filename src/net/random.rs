//! Bytes that nobody can guess.

use std::cell::{Cell, RefCell};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// How many bytes are had from the kernel at a time.
const STOCK_SIZE: usize = 1024;

/// A stock of random bytes from the kernel, for one thread.
#[derive(Debug)]
pub struct Random {
    stock: RefCell<[u8; STOCK_SIZE]>,
    /// How many bytes of the stock have been given out.
    used: Cell<usize>,
}

impl Random {
    /// An empty stock.
    pub fn new() -> Self {
        Self { stock: RefCell::new([0; STOCK_SIZE]), used: Cell::new(STOCK_SIZE) }
    }

    /// The next `N` bytes; each is given out once.
    ///
    /// # Panics
    /// Where the kernel has none, which it has always once it is up.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        const { assert!(N <= STOCK_SIZE) };
        let mut stock = self.stock.borrow_mut();
        if self.used.get() + N > STOCK_SIZE {
            fill(&mut *stock);
            self.used.set(0);
        }
        let from = self.used.get();
        self.used.set(from + N);
        let given = &mut stock[from..from + N];
        let bytes = std::array::from_fn(|index| given[index]);
        given.fill(0);
        bytes
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

fn fill(mut rest: &mut [u8]) {
    while !rest.is_empty() {
        match getrandom(&mut *rest, GetRandomFlags::empty()) {
            Ok(size) => rest = &mut rest[size..],
            Err(Errno::INTR) => {}
            Err(error) => panic!("the kernel gives no random bytes: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_given_out_twice() {
        let random = Random::new();
        let given: std::collections::HashSet<[u8; 16]> = (0..1000).map(|_| random.bytes()).collect();
        assert_eq!(given.len(), 1000);
    }
}
