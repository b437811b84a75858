//! Frames mode: frames are walked, counted and limited where they lie, and their bytes passed on as they came.
//!
//! Relays use it: nothing is unmasked, assembled or copied, but for a header that a read cuts off, which is held until
//! it is known to be good. Text is not checked for UTF-8, which is left to the endpoint that reads it (RFC 6455
//! section 8.1).

use super::close::CloseCode;
use super::frame::{HEADER_SIZE_MAX, Header, Opcode, Rules, Sequence, Tally};
use super::mask;
use super::violation::Violation;

/// One direction of a relayed connection between reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walker {
    sequence: Sequence,
    /// Bytes of the current frame's payload that are still to come.
    missing: u64,
    /// The beginning of a frame that the last read cut off.
    held: Held,
    /// The Close whose reason is passing; once it has passed, nothing else does.
    close: Option<PassingClose>,
}

#[derive(Clone, Copy, Debug)]
struct PassingClose {
    code: Option<CloseCode>,
}

/// The beginning of a frame: as much of its header, and of the code of a Close, as has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The longest header; that of a Close is shorter by more than its code takes.
    bytes: [u8; HEADER_SIZE_MAX],
    size: u8,
}

/// What a walk over the bytes of one read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Bytes of earlier reads that are passed on before these; nearly always none.
    pub held: Held,
    /// How many of the bytes may be passed on: all but the beginning of a header, or those before the frame that broke
    /// a rule, or up to the end of a Close.
    pub pass: usize,
    /// Where among the bytes that may be passed on the last frame ends that does, so that a frame of our own may stand
    /// there; `None` where none ends. A Close is none of them: nothing may stand behind it.
    pub boundary: Option<usize>,
    /// How this direction ended, if it did.
    pub end: Option<WalkEnd>,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// With a Close and its code.
    Close(Option<CloseCode>),
    /// With a rule broken, and nothing passed on of the frame that broke it.
    Violation(Violation),
}

impl Walker {
    /// A direction at its beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the bytes passed on so far end with a frame, so that a frame of our own may follow them.
    pub const fn is_between_frames(&self) -> bool {
        self.missing == 0
    }

    /// Walks the bytes of one read, and tells `on_message` the size of each message that it completes, as its headers
    /// claim it. After an end there is nothing more to walk.
    pub fn walk(
        &mut self,
        rules: &Rules,
        bytes: &[u8],
        tally: &mut Tally,
        mut on_message: impl FnMut(u64),
    ) -> Walked {
        let mut walked = Walked { held: Held::default(), pass: 0, boundary: None, end: None };
        if self.held.size > 0 {
            let held = self.held;
            match self.complete_held(rules, bytes, tally, &mut on_message) {
                Ok(Some(taken)) => {
                    walked.held = held;
                    walked.pass = taken;
                }
                Ok(None) => return walked,
                Err(violation) => {
                    walked.end = Some(WalkEnd::Violation(violation));
                    return walked;
                }
            }
        }
        loop {
            let rest = &bytes[walked.pass..];
            let payload_size =
                usize::try_from(self.missing).map_or(rest.len(), |missing| missing.min(rest.len()));
            self.missing -= payload_size as u64;
            walked.pass += payload_size;
            if self.missing > 0 {
                return walked;
            }
            if let Some(PassingClose { code }) = self.close {
                walked.end = Some(WalkEnd::Close(code));
                return walked;
            }
            let rest = &rest[payload_size..];
            if walked.pass > 0 {
                walked.boundary = Some(walked.pass);
            }
            match self.begin_frame(rules, rest, tally, &mut on_message) {
                Ok(Some(size)) => walked.pass += size,
                Ok(None) => {
                    self.held.extend(rest);
                    return walked;
                }
                Err(violation) => {
                    walked.end = Some(WalkEnd::Violation(violation));
                    return walked;
                }
            }
        }
    }

    /// Completes what is held, byte by byte, and returns how many it took; `None` where they do not suffice.
    #[cold]
    fn complete_held(
        &mut self,
        rules: &Rules,
        bytes: &[u8],
        tally: &mut Tally,
        on_message: &mut impl FnMut(u64),
    ) -> Result<Option<usize>, Violation> {
        for (index, byte) in bytes.iter().enumerate() {
            self.held.extend(&[*byte]);
            let held = self.held;
            if self.begin_frame(rules, held.as_bytes(), tally, on_message)?.is_some() {
                self.held = Held::default();
                return Ok(Some(index + 1));
            }
        }
        Ok(None)
    }

    /// Takes a header, and the code of a Close with it; returns their size, or `None` where bytes are missing.
    fn begin_frame(
        &mut self,
        rules: &Rules,
        bytes: &[u8],
        tally: &mut Tally,
        on_message: &mut impl FnMut(u64),
    ) -> Result<Option<usize>, Violation> {
        let Some((header, mut size)) = Header::parse(bytes, rules)? else { return Ok(None) };
        if header.opcode == Opcode::Close {
            let (code, code_size) = match header.payload_size {
                0 => (None, 0),
                1 => return Err(Violation::ClosePayloadOneByte),
                _ => {
                    let Some(code) = bytes[size..].first_chunk() else { return Ok(None) };
                    (Some(close_code(*code, &header)?), code.len())
                }
            };
            self.close = Some(PassingClose { code });
            size += code_size;
            self.missing = header.payload_size - code_size as u64;
        } else {
            if let Some(size) = self.sequence.admit(&header, rules)? {
                on_message(size);
            }
            self.missing = header.payload_size;
        }
        tally.count(&header);
        Ok(Some(size))
    }
}

impl Held {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.size)]
    }

    /// Holds more: of one frame, and never as much as would complete it.
    fn extend(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.bytes[usize::from(self.size)] = *byte;
            self.size += 1;
        }
    }
}

/// The code at the start of a Close's payload, as it came.
fn close_code(mut bytes: [u8; 2], header: &Header) -> Result<CloseCode, Violation> {
    if let Some(key) = header.mask {
        mask::apply(&mut bytes, key, 0);
    }
    let code = u16::from_be_bytes(bytes);
    CloseCode::new(code).ok_or(Violation::CloseCodeInvalid { code })
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Role, append};
    use super::*;

    const RULES: Rules = Rules {
        role: Role::Server,
        frame_size_max: 1 << 16,
        message_size_max: 1 << 16,
        reserved_bits: 0,
        masker: crate::protocol::websocket::mask::wide,
    };
    const KEY: Option<[u8; 4]> = Some([9, 8, 7, 6]);

    /// Where the frames of [`stream`] end, but for the Close.
    const BOUNDARIES: [usize; 4] = [9, 15, 23, 331];

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, Opcode::Text, false, b"Hel", KEY);
        append(&mut bytes, Opcode::Ping, true, b"", KEY);
        append(&mut bytes, Opcode::Continuation, true, b"lo", KEY);
        append(&mut bytes, Opcode::Binary, true, &[5; 300], KEY);
        append(&mut bytes, Opcode::Close, true, b"\x0f\xa0done", KEY);
        bytes
    }

    #[test]
    fn every_split_counts_and_passes_the_same() {
        let bytes = [stream(), b"whatever follows".to_vec()].concat();
        for first in 0..=bytes.len() {
            let (mut walker, mut tally, mut passed) = (Walker::new(), Tally::default(), 0);
            let mut end = None;
            for piece in [&bytes[..first], &bytes[first..]] {
                if end.is_none() {
                    let walked = walker.walk(&RULES, piece, &mut tally, |_| ());
                    let ends_whole = passed + walked.held.as_bytes().len() + walked.pass;
                    if walker.is_between_frames() && walked.pass > 0 && walked.end.is_none() {
                        assert_eq!(walked.boundary, Some(walked.pass), "split at {first}");
                    }
                    if let Some(boundary) = walked.boundary {
                        let before = ends_whole - walked.pass + boundary;
                        assert!(BOUNDARIES.contains(&before), "split at {first}: {before}");
                    }
                    passed += walked.held.as_bytes().len() + walked.pass;
                    end = walked.end;
                }
            }
            assert_eq!(end, Some(WalkEnd::Close(CloseCode::new(4000))), "split at {first}");
            assert_eq!(passed, stream().len());
            assert_eq!(tally, Tally { frames: [1, 1, 1, 1, 1, 0], messages: 2, payload_bytes: 305 });
        }
    }

    #[test]
    fn nothing_of_a_violating_frame_is_passed_on_however_it_is_split() {
        let good = stream().len() - 12;
        for (frame, violation) in [
            (&b"\x83\x80abcd"[..], Violation::ReservedOpcode { opcode: 3 }),
            (b"\x80\x80abcd", Violation::UnexpectedContinuation),
            (b"\x88\x81abcd", Violation::ClosePayloadOneByte),
            (b"\x88\x82\0\0\0\0\x03\xed", Violation::CloseCodeInvalid { code: 1005 }),
        ] {
            let bytes = [&stream()[..good], frame].concat();
            for first in 0..bytes.len() {
                let (mut walker, mut passed, mut end) = (Walker::new(), Vec::new(), None);
                for piece in [&bytes[..first], &bytes[first..]] {
                    let found = walker.walk(&RULES, piece, &mut Tally::default(), |_| ());
                    passed.extend_from_slice(found.held.as_bytes());
                    passed.extend_from_slice(&piece[..found.pass]);
                    end = found.end;
                    if end.is_some() {
                        break;
                    }
                }
                assert_eq!(end, Some(WalkEnd::Violation(violation)), "split at {first}");
                assert_eq!(passed, bytes[..good], "split at {first}");
                assert!(walker.is_between_frames());
            }
        }
    }

    #[test]
    fn a_close_code_is_read_through_its_mask() {
        for (payload, end) in [
            (&b""[..], WalkEnd::Close(None)),
            (b"\x03", WalkEnd::Violation(Violation::ClosePayloadOneByte)),
            (b"\x03\xee", WalkEnd::Violation(Violation::CloseCodeInvalid { code: 1006 })),
        ] {
            let mut bytes = Vec::new();
            append(&mut bytes, Opcode::Close, true, payload, KEY);
            let walked = Walker::new().walk(&RULES, &bytes, &mut Tally::default(), |_| ());
            assert_eq!(walked.end, Some(end));
        }
    }
}
