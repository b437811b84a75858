//! Any bytes as the response to an opening handshake.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::http::fuzz::fuzz_response_head;

fuzz_target!(|data: &[u8]| fuzz_response_head(data));
