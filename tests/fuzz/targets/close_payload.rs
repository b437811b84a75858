//! Any bytes as the payload of a Close.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::websocket::fuzz::fuzz_close_payload;

fuzz_target!(|data: &[u8]| fuzz_close_payload(data));
