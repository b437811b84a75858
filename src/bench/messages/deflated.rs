//! Messages that go compressed (RFC 7692), and answers that may.
//!
//! A message's number stands in a block of its own that is stored (RFC 1951 section 3.2.4), and the rest of the payload is
//! compressed behind it: so a frame is made once, as without compression, and only the number is written anew.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::rc::Rc;

use super::{Fault, NUMBER_SIZE};
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::deflate::client::ClientOffer;
use crate::protocol::websocket::deflate::codec::{Compressors, Inflater};
use crate::protocol::websocket::deflate::contexts::Contexts;
use crate::protocol::websocket::violation::Violation;

/// What messages are compressed by: zlib's default, as clients have it.
const LEVEL: u8 = 6;
/// What stands before the bytes of a stored block: that it is one, their number, and its complement.
const STORED_HEADER_SIZE: usize = 5;
/// The most bytes of a stored block.
const STORED_SIZE_MAX: usize = 0xffff;
/// What an empty message, or one that ends with a stored block, ends with: the first byte of an empty block, whose others
/// are left out (RFC 7692 section 7.2.1).
const END: u8 = 0;

/// A payload as it is sent.
#[derive(Debug)]
pub(super) struct Compressed {
    /// All of it.
    pub(super) bytes: Vec<u8>,
    /// Where in it the message's number begins.
    pub(super) number_start: usize,
}

/// Compresses a payload so that its first bytes, up to the size of a number, can be changed.
pub(super) fn compress(payload: &[u8]) -> Compressed {
    let (number, rest) = payload.split_at(payload.len().min(NUMBER_SIZE));
    let mut bytes = Vec::new();
    let mut store = |part: &[u8]| {
        let size = u16::try_from(part.len()).expect("no block is larger than the largest");
        bytes.push(0);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&(!size).to_le_bytes());
        bytes.extend_from_slice(part);
    };
    if !number.is_empty() {
        store(number);
    }
    let terms = ClientOffer::Shared.agree(ClientOffer::Shared.extension().as_bytes());
    let mut contexts = Contexts::new(terms.expect("an offer without windows is an answer to itself"));
    let mut compressors = Compressors::default();
    if let Some(compressed) = compressors.compress(&mut contexts, LEVEL, rest) {
        bytes.extend_from_slice(compressed);
    } else {
        rest.chunks(STORED_SIZE_MAX).for_each(store);
        bytes.push(END);
    }
    Compressed { bytes, number_start: if number.is_empty() { 0 } else { STORED_HEADER_SIZE } }
}

/// The beginning of a list in JSON as services send it, of any size: records with the same keys and values of their own.
pub(super) fn records(size: usize) -> Vec<u8> {
    const DESTINATIONS: [&str; 7] =
        ["Harbour", "Airport", "University", "Old Town", "Stadium", "Museum", "Town Hall"];
    const STATES: [&str; 3] = ["on_time", "delayed", "at_stop"];
    let mut text = String::with_capacity(size + 256);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    // Xorshift, as good as any where only repetition counts.
    let mut below = |limit: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        u32::try_from((random >> 16) % u64::from(limit)).expect("it is below the limit")
    };
    text.push('[');
    let mut time_ms = 18_000;
    while text.len() < size {
        time_ms += below(900);
        let (line, state) = (below(7), below(3));
        write!(
            text,
            "{{\"id\":\"{:08x}\",\"vehicle\":\"tram-{}\",\"line\":{},\"destination\":\"{}\",\
             \"time\":\"2026-11-25T08:14:{:02}.{:03}Z\",\"lat\":52.{},\"lon\":4.{},\"speed\":{}.{},\
             \"status\":\"{}\",\"passengers\":{}}},",
            below(u32::MAX),
            2000 + below(300),
            line + 3,
            DESTINATIONS[line as usize],
            time_ms / 1000 % 60,
            time_ms % 1000,
            30_000 + below(10_000),
            80_000 + below(20_000),
            below(60),
            below(10),
            STATES[state as usize],
            below(120),
        )
        .expect("text grows as it has to");
    }
    text.truncate(size);
    text.into_bytes()
}

/// What all connections share whose answers may come compressed.
#[derive(Debug, Default)]
pub(super) struct Inflation {
    inflater: RefCell<Inflater>,
    /// Bytes of payload of all answers, as they came.
    answer_bytes: Cell<u64>,
}

impl Inflation {
    /// Bytes of payload of all answers so far, as they came.
    pub(super) fn answer_bytes(&self) -> u64 {
        self.answer_bytes.get()
    }

    fn count(&self, size: usize) {
        self.answer_bytes.set(self.answer_bytes.get() + size as u64);
    }
}

/// A connection's answers, which may come compressed.
#[derive(Debug)]
pub(super) struct Inflating {
    shared: Rc<Inflation>,
    contexts: Contexts,
    /// Whether the answer that arrives is compressed.
    is_compressed: bool,
    /// What of a compressed answer has come before.
    collected: Vec<u8>,
}

impl Inflating {
    /// The answers of a connection that has agreed on these terms.
    pub(super) fn new(shared: &Rc<Inflation>, terms: Terms) -> Self {
        let contexts = Contexts::new(terms);
        Self { shared: Rc::clone(shared), contexts, is_compressed: false, collected: Vec::new() }
    }

    /// Takes note of an answer's first frame.
    pub(super) fn begin(&mut self, is_compressed: bool) {
        self.is_compressed = is_compressed;
    }

    /// Whether the answer that arrives is compressed.
    pub(super) fn is_compressed(&self) -> bool {
        self.is_compressed
    }

    /// So many bytes may come of the answer that arrives, if it comes to `size` bytes inflated: whatever compresses stores
    /// what does not become smaller, and an answer without an end is not waited for.
    pub(super) fn room(&self, size: usize) -> usize {
        (size + size / 8 + 64).saturating_sub(self.collected.len())
    }

    /// Takes a piece of a compressed answer; with the last it is inflated and judged.
    ///
    /// # Errors
    /// Where it does not inflate, or to more than `size` bytes, or is not what `judge` expects.
    pub(super) fn take(
        &mut self,
        piece: &[u8],
        is_last: bool,
        size: usize,
        judge: impl FnOnce(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let is_whole = is_last && self.collected.is_empty();
        if !is_whole {
            self.collected.extend_from_slice(piece);
        }
        if !is_last {
            return Ok(());
        }
        let payload = if is_whole { piece } else { &self.collected };
        self.shared.count(payload.len());
        let inflater = &mut *self.shared.inflater.borrow_mut();
        let inflated = inflater.inflate(&mut self.contexts, payload, size as u64);
        let outcome = match inflated {
            Ok(answer) => judge(answer),
            Err(Violation::MessageTooBig { .. }) => Err(Fault::Length),
            Err(_) => Err(Fault::Violation),
        };
        self.collected.clear();
        outcome
    }

    /// Bytes of payload of all connections' answers so far, as they came.
    #[cfg(test)]
    pub(super) fn answer_bytes(&self) -> u64 {
        self.shared.answer_bytes()
    }

    /// Counts bytes of an answer that is not compressed.
    pub(super) fn count(&self, size: usize) {
        self.shared.count(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflated(payload: &[u8], size: usize) -> Vec<u8> {
        let terms = ClientOffer::Shared.agree(ClientOffer::Shared.extension().as_bytes()).unwrap();
        Inflater::default().inflate(&mut Contexts::new(terms), payload, size as u64).unwrap().to_vec()
    }

    #[test]
    fn what_is_compressed_inflates_whatever_the_number_is() {
        for size in [0, 1, 7, 8, 9, 20, 125, 1024, 16_384, 70_000, 1 << 20] {
            let mut payload = records(size);
            let Compressed { mut bytes, number_start } = compress(&payload);
            assert_eq!(inflated(&bytes, size), payload, "{size}");
            let number_size = size.min(NUMBER_SIZE);
            bytes[number_start..number_start + number_size].copy_from_slice(&b"@ABCDEFG"[..number_size]);
            payload[..number_size].copy_from_slice(&b"@ABCDEFG"[..number_size]);
            assert_eq!(inflated(&bytes, size), payload, "{size}");
        }
    }

    #[test]
    fn what_does_not_become_smaller_is_stored() {
        let mut random = crate::protocol::websocket::fuzz::Random(1);
        let noise: Vec<u8> = (0..200_000).map(|_| random.bits().to_le_bytes()[3]).collect();
        let Compressed { bytes, .. } = compress(&noise);
        // The number's, four blocks for the rest, and the end.
        assert_eq!(bytes.len(), noise.len() + 5 * STORED_HEADER_SIZE + 1);
        assert_eq!(inflated(&bytes, noise.len()), noise);
    }

    #[test]
    fn records_compress_as_json_does() {
        for (size, least, most) in [(1024, 2.5, 4.0), (16_384, 4.0, 7.0)] {
            let payload = records(size);
            let text = std::str::from_utf8(&payload).unwrap();
            let end = text.rfind("},").unwrap();
            let list = format!("{}}}]", &text[..end]);
            let json: serde_json::Value = serde_json::from_str(&list).unwrap();
            assert!(json.as_array().unwrap().len() >= size / 256, "{list}");
            let size = u32::try_from(size).unwrap();
            let compressed = u32::try_from(compress(&payload).bytes.len()).unwrap();
            let ratio = f64::from(size) / f64::from(compressed);
            assert!((least..most).contains(&ratio), "{size} bytes become {compressed}, {ratio:.2} to 1");
        }
    }
}
