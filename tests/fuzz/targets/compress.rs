//! Any bytes as messages that are compressed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::websocket::deflate::fuzz::fuzz_compress;

fuzz_target!(|data: &[u8]| fuzz_compress(data));
