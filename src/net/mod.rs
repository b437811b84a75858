//! Sockets, rings, buffers and the clock: the only floor that touches them, and the only one with unsafe code.

pub mod accept;
pub mod clock;
pub mod connect;
pub mod contain;
pub mod descriptor;
pub mod driver;
pub mod heap;
pub mod limits;
pub mod listen;
pub mod polled;
pub mod pool;
pub mod random;
pub mod scratch;
pub mod simd;
mod socket;
pub mod stream;
pub mod timers;
pub mod tls;
pub mod turn;
pub mod wake;
