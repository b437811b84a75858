//! Any bytes as the body of a response.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::http::fuzz::fuzz_body;

fuzz_target!(|data: &[u8]| fuzz_body(data));
