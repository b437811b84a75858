//! What answers a routed connection.
//!
//! A service is handed a [`Client`] after the 101 and ends it; what it needs for that, the shard lends it.

pub mod addresses;
pub mod admission;
pub mod client;
pub mod deflate;
pub mod echo;
pub mod life;
pub mod messages;
pub mod opening;
pub mod page;
pub mod place;
pub mod reach;
pub mod relay;
pub mod upstream;
pub mod web;

pub use client::Client;
pub use life::Life;
pub use place::{Phase, Place, Port, Resources, Upstreams, retry_after_s};
