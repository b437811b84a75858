//! What a route says of permessage-deflate.

use crate::protocol::closed_set;
use crate::protocol::websocket::deflate::{Policy, WINDOW_BITS_MAX};

closed_set! {
    /// What a message may refer to when it is compressed.
    pub enum DeflateMode {
        /// Messages are not compressed.
        Off => "off",
        /// Itself alone: a connection keeps nothing.
        Shared => "shared",
        /// The messages before it too: a connection keeps a window for each side.
        Dedicated => "dedicated",
    }
}

/// `deflate` of a route, where it is not off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// What a message may refer to.
    pub mode: DeflateMode,
    /// How hard the compressor tries, 1 to 9.
    pub level: u8,
    /// The most bits of a window that is kept or compressed with, 9 to 15.
    pub window_bits: u8,
    /// Bytes of the smallest message that is compressed.
    pub size_min: usize,
}

impl Deflate {
    /// What is meant where a mode alone is written.
    ///
    /// The lowest level takes a third of the time of the usual one, for a quarter more bytes. What is kept of a connection
    /// is 4 KiB for each side: enough to find what messages have in common, and it has to be read in again each time.
    pub const fn new(mode: DeflateMode) -> Self {
        let window_bits = match mode {
            DeflateMode::Off | DeflateMode::Shared => WINDOW_BITS_MAX,
            DeflateMode::Dedicated => 12,
        };
        Self { mode, level: 1, window_bits, size_min: 128 }
    }

    /// What may be agreed on with a client.
    pub const fn policy(&self) -> Policy {
        Policy { keeps_contexts: matches!(self.mode, DeflateMode::Dedicated), window_bits: self.window_bits }
    }

    /// The most bytes that a connection keeps, for both sides together.
    pub const fn kept_size_max(&self) -> usize {
        match self.mode {
            DeflateMode::Off | DeflateMode::Shared => 0,
            DeflateMode::Dedicated => 2 << self.window_bits,
        }
    }
}
