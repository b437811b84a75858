//! Any bytes as a compressed message.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::websocket::deflate::fuzz::fuzz_inflate;

fuzz_target!(|data: &[u8]| fuzz_inflate(data));
