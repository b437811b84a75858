//! Frame headers (RFC 6455 section 5.2) and the order in which frames may come (section 5.4).

use std::num::NonZero;

use super::mask::{Masker, MaskingKey};
use super::violation::Violation;

/// The longest frame header in bytes: two, eight of length, four of masking key.
pub const HEADER_SIZE_MAX: usize = 14;
/// The longest header that a server writes in bytes: it has no masking key.
pub const SERVER_HEADER_SIZE_MAX: usize = 10;
/// The longest payload of a control frame in bytes (RFC 6455 section 5.5).
pub const CONTROL_SIZE_MAX: usize = 125;

const FIN: u8 = 0x80;
/// The reserved bit that marks a compressed message, on its first frame alone (RFC 7692 section 6).
pub const RSV1: u8 = 0x40;
/// All reserved bits.
pub const RESERVED_BITS: u8 = 0x70;
const MASK: u8 = 0x80;

/// One side of a WebSocket connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives masked frames and sends them unmasked.
    Server,
    /// Receives unmasked frames and sends them masked.
    Client,
}

/// What a frame is (RFC 6455 section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Continues the message before it.
    Continuation = 0,
    /// Begins a message of text.
    Text = 1,
    /// Begins a message of bytes.
    Binary = 2,
    /// Begins or completes the closing handshake.
    Close = 8,
    /// Asks for a Pong.
    Ping = 9,
    /// Answers a Ping, or says that the peer is there.
    Pong = 10,
}

impl Opcode {
    /// The number of opcodes.
    pub const COUNT: usize = 6;
    /// All opcodes, in the order of [`Self::index`].
    pub const ALL: [Self; Self::COUNT] =
        [Self::Continuation, Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong];

    /// Close, Ping and Pong are control frames (RFC 6455 section 5.5).
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    /// The opcode's place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 3,
            Self::Ping => 4,
            Self::Pong => 5,
        }
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }
}

/// What an endpoint demands of the frames that it receives.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The side that receives.
    pub role: Role,
    /// The largest payload of a frame in bytes.
    pub frame_size_max: u64,
    /// The largest message in bytes, all its fragments together.
    pub message_size_max: u64,
    /// The reserved bits of a header's first byte to which an extension gave a meaning: [`RSV1`] for permessage-deflate.
    pub reserved_bits: u8,
    /// What unmasks payloads, at the speed that this machine has.
    pub masker: Masker,
}

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether this is the last fragment of its message.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// Whether it begins a compressed message (RFC 7692 section 6): its first reserved bit.
    pub is_compressed: bool,
    /// The masking key, which a client's frames have and a server's have not.
    pub mask: Option<MaskingKey>,
    /// The payload's length in bytes.
    pub payload_size: u64,
}

impl Header {
    /// Parses the header at the start of `bytes` and returns it with its size, or `None` where bytes are missing.
    ///
    /// # Errors
    /// The first rule of RFC 6455 sections 5.1, 5.2 and 5.5 that the bytes at hand break, however few they are; a
    /// length is compared with `rules.frame_size_max` before anything else is done with it.
    #[inline]
    pub fn parse(bytes: &[u8], rules: &Rules) -> Result<Option<(Self, usize)>, Violation> {
        let [first, second, rest @ ..] = bytes else {
            return match bytes {
                [first] => Self::parse_first(*first, rules).map(|_| None),
                _ => Ok(None),
            };
        };
        let (fin, opcode) = Self::parse_first(*first, rules)?;
        let is_compressed = first & RSV1 != 0;
        match (rules.role, second & MASK != 0) {
            (Role::Server, false) => return Err(Violation::Unmasked),
            (Role::Client, true) => return Err(Violation::Masked),
            (Role::Server, true) | (Role::Client, false) => {}
        }
        let (payload_size, rest) = match second & !MASK {
            126 | 127 if opcode.is_control() => return Err(Violation::ControlTooLong),
            126 => {
                let Some((length, rest)) = rest.split_first_chunk() else {
                    return Ok(None);
                };
                match u64::from(u16::from_be_bytes(*length)) {
                    ..126 => return Err(Violation::NonMinimalLength),
                    size => (size, rest),
                }
            }
            127 => {
                let Some((length, rest)) = rest.split_first_chunk() else {
                    return Ok(None);
                };
                match u64::from_be_bytes(*length) {
                    ..0x1_0000 => return Err(Violation::NonMinimalLength),
                    0x8000_0000_0000_0000.. => return Err(Violation::LengthTopBit),
                    size => (size, rest),
                }
            }
            size => (u64::from(size), rest),
        };
        if payload_size > rules.frame_size_max {
            return Err(Violation::FrameTooBig { size: payload_size, limit: rules.frame_size_max });
        }
        let (mask, rest) = match rules.role {
            Role::Client => (None, rest),
            Role::Server => match rest.split_first_chunk() {
                Some((key, rest)) => (Some(*key), rest),
                None => return Ok(None),
            },
        };
        Ok(Some((Self { fin, opcode, is_compressed, mask, payload_size }, bytes.len() - rest.len())))
    }

    /// Writes the header to the start of `out` and returns its size.
    ///
    /// # Panics
    /// If `out` is shorter than the header, see [`Self::size`].
    #[inline]
    pub fn write(&self, out: &mut [u8]) -> usize {
        let rsv1 = if self.is_compressed { RSV1 } else { 0 };
        out[0] = self.opcode as u8 | rsv1 | if self.fin { FIN } else { 0 };
        let mask_bit = if self.mask.is_some() { MASK } else { 0 };
        let length_end = match self.payload_size {
            size @ ..126 => {
                out[1] = size.to_le_bytes()[0] | mask_bit;
                2
            }
            size @ 126..0x1_0000 => {
                out[1] = 0x7e | mask_bit;
                out[2..4].copy_from_slice(&size.to_be_bytes()[6..]);
                4
            }
            size => {
                out[1] = 0x7f | mask_bit;
                out[2..10].copy_from_slice(&size.to_be_bytes());
                10
            }
        };
        match self.mask {
            None => length_end,
            Some(key) => {
                out[length_end..length_end + 4].copy_from_slice(&key);
                length_end + 4
            }
        }
    }

    /// The size of the header on the wire, in bytes.
    #[inline]
    pub const fn size(&self) -> usize {
        let length = match self.payload_size {
            ..126 => 2,
            126..0x1_0000 => 4,
            _ => 10,
        };
        length + if self.mask.is_some() { 4 } else { 0 }
    }

    /// The rules that the first byte alone can break.
    #[inline]
    fn parse_first(first: u8, rules: &Rules) -> Result<(bool, Opcode), Violation> {
        // RFC 6455 section 5.2: a reserved bit fails the connection unless an extension gave it a meaning.
        let reserved = first & RESERVED_BITS;
        if reserved & !rules.reserved_bits != 0 {
            return Err(Violation::ReservedBits);
        }
        let bits = first & 0x0f;
        let opcode = Opcode::from_bits(bits).ok_or(Violation::ReservedOpcode { opcode: bits })?;
        // RFC 7692 section 6.1: only the first frame of a message is marked as compressed.
        if reserved & RSV1 != 0 && !matches!(opcode, Opcode::Text | Opcode::Binary) {
            return Err(Violation::ReservedBits);
        }
        let fin = first & FIN != 0;
        if opcode.is_control() && !fin {
            return Err(Violation::ControlFragmented);
        }
        Ok((fin, opcode))
    }
}

/// Where a connection stands between the fragments of a message (RFC 6455 section 5.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// The bytes of the unfinished message so far, as its headers claim them; `None` between messages. Sizes are below
    /// 2^63, so their complement is never zero, and takes half the room: a relayed connection has two of them.
    unfinished: Option<NonZero<u64>>,
}

impl Sequence {
    /// Takes note of the next frame's header, and returns the size of its message if it completes one.
    ///
    /// # Errors
    /// [`Violation::UnexpectedContinuation`], [`Violation::MessageInterrupted`] or [`Violation::MessageTooBig`].
    #[inline]
    pub fn admit(&mut self, header: &Header, rules: &Rules) -> Result<Option<u64>, Violation> {
        let unfinished = self.unfinished.map(|complement| !complement.get());
        let before = match (header.opcode, unfinished) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(None),
            (Opcode::Continuation, None) => return Err(Violation::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => return Err(Violation::MessageInterrupted),
            (Opcode::Continuation, Some(size)) => size,
            (Opcode::Text | Opcode::Binary, None) => 0,
        };
        // Neither can overflow: each is below 2^63.
        let size = before + header.payload_size;
        if size > rules.message_size_max {
            return Err(Violation::MessageTooBig { size, limit: rules.message_size_max });
        }
        self.unfinished = if header.fin { None } else { NonZero::new(!size) };
        Ok(header.fin.then_some(size))
    }

    /// Whether the next data frame begins a message.
    pub const fn is_between_messages(&self) -> bool {
        self.unfinished.is_none()
    }
}

/// Appends a whole frame to `out`; a client passes the masking key that hides the payload.
pub fn append(out: &mut Vec<u8>, opcode: Opcode, fin: bool, payload: &[u8], mask: Option<MaskingKey>) {
    let header = Header { fin, opcode, is_compressed: false, mask, payload_size: payload.len() as u64 };
    let mut bytes = [0; HEADER_SIZE_MAX];
    let header_size = header.write(&mut bytes);
    out.extend_from_slice(&bytes[..header_size]);
    let payload_start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        super::mask::apply(&mut out[payload_start..], key, 0);
    }
}

/// What came in one read: frames by opcode, messages completed, bytes of payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames by [`Opcode::index`].
    pub frames: [u32; Opcode::COUNT],
    /// Data messages whose last fragment was seen.
    pub messages: u32,
    /// Bytes of payload of data frames.
    pub payload_bytes: u64,
}

impl Tally {
    /// Counts one frame by its header.
    #[inline]
    pub fn count(&mut self, header: &Header) {
        self.frames[header.opcode.index()] += 1;
        if !header.opcode.is_control() {
            self.messages += u32::from(header.fin);
            self.payload_bytes += header.payload_size;
        }
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.frames.iter_mut().zip(other.frames) {
            *sum += count;
        }
        self.messages += other.messages;
        self.payload_bytes += other.payload_bytes;
    }

    /// All frames, control frames too.
    pub fn frames_sum(&self) -> u32 {
        self.frames.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Rules = Rules {
        role: Role::Server,
        frame_size_max: 1 << 20,
        message_size_max: 1 << 20,
        reserved_bits: 0,
        masker: crate::protocol::websocket::mask::wide,
    };
    const CLIENT: Rules = Rules { role: Role::Client, ..SERVER };

    fn violation(bytes: &[u8]) -> Violation {
        Header::parse(bytes, &SERVER).expect_err("the header breaks a rule")
    }

    #[test]
    fn headers_survive_the_wire_in_every_size_and_role() {
        for payload_size in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 1 << 20] {
            for (rules, mask) in [(SERVER, Some([1, 2, 3, 4])), (CLIENT, None)] {
                for opcode in [Opcode::Continuation, Opcode::Text, Opcode::Binary] {
                    for fin in [false, true] {
                        let header = Header { fin, opcode, is_compressed: false, mask, payload_size };
                        let mut bytes = [0; HEADER_SIZE_MAX];
                        let size = header.write(&mut bytes);
                        assert_eq!(size, header.size());
                        assert_eq!(Header::parse(&bytes[..size], &rules), Ok(Some((header, size))));
                        for short in 0..size {
                            assert_eq!(Header::parse(&bytes[..short], &rules), Ok(None), "{short} of {size}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn client_frames_are_masked_and_server_frames_are_not() {
        assert_eq!(violation(&[0x81, 0x05]), Violation::Unmasked);
        assert_eq!(Header::parse(&[0x81, 0x85], &CLIENT), Err(Violation::Masked));
    }

    #[test]
    fn reserved_bits_fail_from_the_first_byte() {
        for bit in [0x40, 0x20, 0x10] {
            assert_eq!(violation(&[0x81 | bit]), Violation::ReservedBits);
            assert_eq!(violation(&[0x89 | bit]), Violation::ReservedBits);
        }
    }

    #[test]
    fn reserved_opcodes_fail_from_the_first_byte() {
        for opcode in (3..8).chain(11..16) {
            assert_eq!(violation(&[0x80 | opcode]), Violation::ReservedOpcode { opcode });
        }
    }

    #[test]
    fn lengths_are_minimal() {
        assert_eq!(violation(&[0x82, 0xfe, 0, 125]), Violation::NonMinimalLength);
        assert_eq!(violation(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), Violation::NonMinimalLength);
    }

    #[test]
    fn the_top_bit_of_a_length_is_clear() {
        assert_eq!(violation(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]), Violation::LengthTopBit);
    }

    #[test]
    fn a_length_is_compared_before_the_key_has_arrived() {
        let size = 1 << 62;
        let mut bytes = vec![0x82, 0xff];
        bytes.extend_from_slice(&u64::to_be_bytes(size));
        assert_eq!(violation(&bytes), Violation::FrameTooBig { size, limit: SERVER.frame_size_max });
    }

    #[test]
    fn control_frames_are_short_and_whole() {
        assert_eq!(violation(&[0x89, 0xfe]), Violation::ControlTooLong);
        assert_eq!(violation(&[0x88, 0xff]), Violation::ControlTooLong);
        assert_eq!(violation(&[0x09]), Violation::ControlFragmented);
    }

    #[test]
    fn control_frames_may_come_between_fragments() {
        let frame = |opcode, fin, payload_size| Header {
            fin,
            opcode,
            is_compressed: false,
            mask: None,
            payload_size,
        };
        let mut sequence = Sequence::default();
        assert_eq!(sequence.admit(&frame(Opcode::Text, false, 3), &SERVER), Ok(None));
        assert_eq!(sequence.admit(&frame(Opcode::Ping, true, 3), &SERVER), Ok(None));
        assert_eq!(
            sequence.admit(&frame(Opcode::Binary, true, 3), &SERVER),
            Err(Violation::MessageInterrupted)
        );
        assert_eq!(sequence.admit(&frame(Opcode::Continuation, true, 3), &SERVER), Ok(Some(6)));
        assert_eq!(
            sequence.admit(&frame(Opcode::Continuation, true, 3), &SERVER),
            Err(Violation::UnexpectedContinuation)
        );
    }

    /// RFC 7692 section 6: RSV1 marks the first frame of a compressed message, where it was agreed on, and nothing else.
    #[test]
    fn a_reserved_bit_means_something_only_where_an_extension_says_so() {
        let deflate = Rules { reserved_bits: RSV1, ..SERVER };
        let any = Rules { reserved_bits: RESERVED_BITS, ..SERVER };
        for (first, with_deflate, with_any) in [
            (0xc1, true, true),
            (0x42, true, true),
            (0xc0, false, false),
            (0xc9, false, false),
            (0xa1, false, true),
            (0x90, false, true),
            (0x99, false, true),
        ] {
            let parse = |rules: &Rules| Header::parse(&[first, 0x80, 0, 0, 0, 0], rules).is_ok();
            assert!(!parse(&SERVER), "{first:#x}");
            assert_eq!((parse(&deflate), parse(&any)), (with_deflate, with_any), "{first:#x}");
        }
    }

    #[test]
    fn fragments_are_limited_together() {
        let rules = Rules { message_size_max: 10, ..SERVER };
        let frame = |opcode, payload_size| Header {
            fin: false,
            opcode,
            is_compressed: false,
            mask: None,
            payload_size,
        };
        let mut sequence = Sequence::default();
        assert_eq!(sequence.admit(&frame(Opcode::Binary, 6), &rules), Ok(None));
        assert_eq!(
            sequence.admit(&frame(Opcode::Continuation, 5), &rules),
            Err(Violation::MessageTooBig { size: 11, limit: 10 })
        );
    }
}
