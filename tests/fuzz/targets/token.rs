//! Any bytes as a token.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::route::auth::fuzz_token;

fuzz_target!(|data: &[u8]| fuzz_token(data));
