//! Any bytes as a stream of frames.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::protocol::websocket::fuzz::fuzz_frames;

fuzz_target!(|data: &[u8]| fuzz_frames(data));
