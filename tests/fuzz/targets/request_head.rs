//! Any bytes as the head of a request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::http::fuzz::fuzz_request_head;

fuzz_target!(|data: &[u8]| fuzz_request_head(data));
