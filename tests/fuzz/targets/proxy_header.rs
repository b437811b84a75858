//! Any bytes where a PROXY protocol header is expected.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::proxy_protocol::fuzz_proxy_header;

fuzz_target!(|data: &[u8]| fuzz_proxy_header(data));
