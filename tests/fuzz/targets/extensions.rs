//! Any bytes as what a client offers of extensions.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::websocket::deflate::fuzz::fuzz_extensions;

fuzz_target!(|data: &[u8]| fuzz_extensions(data));
