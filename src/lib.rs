//! Ringway, a WebSocket gateway for the Linux edge.
//!
//! # The way of a connection
//!
//! The [`control`] thread binds every port and hands each [`shard`] a listener of its own. A shard accepts, receives
//! what is there into a buffer that all its connections share, and lets [`protocol::http`] find and parse the request
//! head where it lies. [`protocol::websocket::handshake`] judges it, [`route`] finds its route and holds it to the
//! route's policy, and the answer is a 101 and the route's [`service`], or an HTTP answer. From then on the service's
//! endpoint, a state machine of [`protocol::websocket`], turns the bytes of each read into events and replies, until
//! the connection ends for one reason, which [`metrics`] counts for its port.
//!
//! # The floors
//!
//! A module uses those below it in this list, and none above.

#[cfg(feature = "gateway")]
pub mod cli;
#[cfg(feature = "gateway")]
pub mod bench;
#[cfg(feature = "gateway")]
pub mod control;
#[cfg(feature = "gateway")]
pub mod shard;
#[cfg(feature = "gateway")]
pub mod service;
#[cfg(feature = "gateway")]
pub mod route;
#[cfg(feature = "gateway")]
pub mod net;
#[cfg(feature = "gateway")]
pub mod metrics;
#[cfg(feature = "gateway")]
pub mod config;
pub mod protocol;
