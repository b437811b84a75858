//! Frames mode: frames are walked, counted and limited where they lie, and their bytes passed on as they came.
//!
//! Relays use it: nothing is unmasked, assembled or copied. Text is not checked for UTF-8, which is left to the
//! endpoint that reads it (RFC 6455 section 8.1).

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
    /// The beginning of a header that the last read cut off.
    carried: [u8; HEADER_SIZE_MAX],
    carried_size: u8,
    close: Option<ArrivingClose>,
}

/// A Close whose code is arriving; once it has, whatever follows is not passed on.
#[derive(Clone, Copy, Debug)]
struct ArrivingClose {
    header: Header,
    code: [u8; 2],
    code_size: u8,
}

/// What a walk over the bytes of one read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// How many of the bytes may be passed on: all, or those before a violation, or up to the end of a Close.
    pub pass: usize,
    /// How this direction ended, if it did.
    pub end: Option<WalkEnd>,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// With a Close and its code.
    Close(Option<CloseCode>),
    /// With a rule broken.
    Violation(Violation),
}

impl Walker {
    /// A direction at its beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the bytes so far end with a frame, so that a frame of our own may follow them.
    pub const fn is_between_frames(&self) -> bool {
        self.missing == 0 && self.carried_size == 0
    }

    /// Walks the bytes of one read.
    pub fn walk(&mut self, rules: &Rules, bytes: &[u8], tally: &mut Tally) -> Walked {
        let mut position = 0;
        loop {
            let payload = take(&mut position, bytes, self.missing);
            self.missing -= payload.len() as u64;
            if let Some(close) = &mut self.close {
                close.collect(payload);
                if self.missing == 0 {
                    let end = match close.code() {
                        Ok(code) => WalkEnd::Close(code),
                        Err(violation) => WalkEnd::Violation(violation),
                    };
                    return Walked { pass: position, end: Some(end) };
                }
            }
            if position == bytes.len() {
                return Walked { pass: position, end: None };
            }
            // A frame's first byte is passed on only with its whole header, so that a violation passes nothing of it.
            let start = position;
            match self.header(rules, bytes, &mut position) {
                Ok(None) => {
                    return Walked { pass: position, end: None };
                }
                Ok(Some(header)) => {
                    if let Err(violation) = self.sequence.admit(&header, rules) {
                        return Walked { pass: start, end: Some(WalkEnd::Violation(violation)) };
                    }
                    tally.count(&header);
                    self.missing = header.payload_size;
                    if header.opcode == Opcode::Close {
                        self.close = Some(ArrivingClose { header, code: [0; 2], code_size: 0 });
                    }
                }
                Err(violation) => {
                    return Walked { pass: start, end: Some(WalkEnd::Violation(violation)) };
                }
            }
        }
    }

    /// Takes a header at `position`, or what there is of one.
    fn header(
        &mut self,
        rules: &Rules,
        bytes: &[u8],
        position: &mut usize,
    ) -> Result<Option<Header>, Violation> {
        if self.carried_size == 0
            && let Some((header, size)) = Header::parse(&bytes[*position..], rules)?
        {
            *position += size;
            return Ok(Some(header));
        }
        while let Some(byte) = bytes.get(*position) {
            self.carried[usize::from(self.carried_size)] = *byte;
            self.carried_size += 1;
            *position += 1;
            if let Some((header, _)) = Header::parse(&self.carried[..usize::from(self.carried_size)], rules)?
            {
                self.carried_size = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }
}

impl ArrivingClose {
    fn collect(&mut self, payload: &[u8]) {
        for byte in payload.iter().take(2 - usize::from(self.code_size)) {
            self.code[usize::from(self.code_size)] = *byte;
            self.code_size += 1;
        }
    }

    fn code(&self) -> Result<Option<CloseCode>, Violation> {
        match self.code_size {
            0 => Ok(None),
            1 => Err(Violation::ClosePayloadOneByte),
            _ => {
                let mut bytes = self.code;
                if let Some(key) = self.header.mask {
                    mask::apply(&mut bytes, key, 0);
                }
                let code = u16::from_be_bytes(bytes);
                CloseCode::new(code).map(Some).ok_or(Violation::CloseCodeInvalid { code })
            }
        }
    }
}

/// The next bytes, at most `size`.
fn take<'a>(position: &mut usize, bytes: &'a [u8], size: u64) -> &'a [u8] {
    let available = bytes.len() - *position;
    let size = usize::try_from(size).map_or(available, |size| size.min(available));
    let taken = &bytes[*position..*position + size];
    *position += size;
    taken
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Role, append};
    use super::*;

    const RULES: Rules = Rules { role: Role::Server, frame_size_max: 1 << 16, message_size_max: 1 << 16 };
    const KEY: Option<[u8; 4]> = Some([9, 8, 7, 6]);

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
                    let walked = walker.walk(&RULES, piece, &mut tally);
                    passed += walked.pass;
                    end = walked.end;
                }
            }
            assert_eq!(end, Some(WalkEnd::Close(CloseCode::new(4000))), "split at {first}");
            assert_eq!(passed, stream().len());
            assert_eq!(tally, Tally { frames: [1, 1, 1, 1, 1, 0], messages: 2, payload_bytes: 311 });
        }
    }

    #[test]
    fn nothing_of_a_violating_frame_is_passed_on() {
        let mut bytes = stream();
        bytes.truncate(bytes.len() - 12);
        let good = bytes.len();
        bytes.extend_from_slice(b"\x83\x80abcd");
        let walked = Walker::new().walk(&RULES, &bytes, &mut Tally::default());
        assert_eq!(
            walked,
            Walked { pass: good, end: Some(WalkEnd::Violation(Violation::ReservedOpcode { opcode: 3 })) }
        );
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
            let walked = Walker::new().walk(&RULES, &bytes, &mut Tally::default());
            assert_eq!(walked.end, Some(end));
        }
    }
}
