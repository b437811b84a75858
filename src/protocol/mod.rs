//! What the wire demands, as pure functions and state machines.
//!
//! Nothing here reads a socket or a clock, and nothing allocates beyond what it was told it may: bytes come in
//! borrowed, time comes in as an argument, and what is to be sent goes into a buffer that was lent.

mod closed_set;
pub mod http;
pub mod proxy_protocol;
pub mod websocket;

pub(crate) use closed_set::closed_set;
