//! HTTP beside WebSocket: what answers a request that opens none.
//!
//! hyper reads and writes the messages, one exchange of the client's connection at a time ([`gate`]), and those with
//! upstreams, over connections that are kept ([`kept`]). A [`redirect`] needs no more than the request's head;
//! [`files`] are looked up and read by other threads.

pub mod body;
pub mod files;
pub mod gate;
pub mod io;
pub mod kept;
pub mod proxy;
pub mod redirect;
