//! The WebSocket protocol (RFC 6455) as state machines: bytes in, events out, replies into what is lent.

pub mod close;
pub mod deflate;
pub mod endpoint;
pub mod exchange;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod handshake;
pub mod keepalive;
pub mod mask;
pub mod rate;
pub mod utf8;
pub mod violation;
pub mod walker;
