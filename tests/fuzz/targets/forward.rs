//! Any bytes as a head on its way between a client and an upstream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::http::forward::fuzz::fuzz_forward;

fuzz_target!(|data: &[u8]| fuzz_forward(data));
