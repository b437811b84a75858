//! The messages of a load: made once, numbered as they leave, recognised as they come back.

mod deflated;

use std::cell::{Ref, RefCell};
use std::mem;
use std::ops::Range;
use std::rc::Rc;

use self::deflated::{Compressed, Inflating, Inflation};
use super::fault::Fault;
use crate::protocol::websocket::deflate::Terms;
use crate::protocol::websocket::frame::{self, Header, Opcode, Role, Rules, Sequence};

/// The size of a message's number in bytes; it stands at the beginning of the payload, cut off where that is shorter.
const NUMBER_SIZE: usize = 8;
/// So much of every answer is compared with what was sent.
const COMPARED_SIZE: usize = 128;
/// One message in so many is compared from beginning to end: comparing each would cost more than echoing it.
const COMPARED_WHOLE_EVERY: u32 = 64;
/// So far apart the connections begin to number: one's answers are not taken for another's.
const NUMBERS_APART: u32 = 0x9e37_79b1;

/// What the messages of a load are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Text or binary; both carry ASCII.
    pub opcode: Opcode,
    /// The payload in bytes.
    pub size: usize,
    /// How many messages a connection has on the way at once.
    pub in_flight: u32,
}

/// What all connections of a load share: the payload, but for its number, and a window of masked frames around it.
///
/// Frames leave one connection after the other, so one window serves all and stays in the cache: one for each
/// connection would be fetched from memory for every message of some size.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    payload: Rc<[u8]>,
    window: Rc<RefCell<Window>>,
    /// Where messages go compressed.
    inflation: Option<Rc<Inflation>>,
}

#[derive(Debug)]
struct Window {
    bytes: Vec<u8>,
    /// For each frame what its number is masked by.
    keys: Vec<u64>,
    frame_size: usize,
    /// Where the number is in a frame.
    number: Range<usize>,
}

impl Pattern {
    /// What is shared by messages of this shape, which are JSON and compressed or letters. Masking keys come from `random`.
    pub(super) fn new(shape: &Shape, is_deflated: bool, random: impl FnMut() -> u64) -> Self {
        if is_deflated {
            let payload = deflated::records(shape.size);
            let Compressed { bytes, number_start } = deflated::compress(&payload);
            let window = Window::new(shape, &bytes, number_start, frame::RSV1, random);
            Self::with(payload.into(), window, Some(Rc::default()))
        } else {
            let payload: Rc<[u8]> = (b'a'..=b'z').cycle().take(shape.size).collect();
            let window = Window::new(shape, &payload, 0, 0, random);
            Self::with(payload, window, None)
        }
    }

    fn with(payload: Rc<[u8]>, window: Window, inflation: Option<Rc<Inflation>>) -> Self {
        Self { payload, window: Rc::new(RefCell::new(window)), inflation }
    }

    /// The size of a whole window in bytes.
    pub(super) fn window_size(&self) -> usize {
        self.window.borrow().bytes.len()
    }

    /// Bytes of payload of all answers so far as they came, where these may be compressed.
    pub(super) fn answer_bytes(&self) -> u64 {
        self.inflation.as_ref().map_or(0, |inflation| inflation.answer_bytes())
    }
}

impl Window {
    /// Frames of this payload, marked by these reserved bits, in which the message's number begins at `number_start`.
    fn new(
        shape: &Shape,
        payload: &[u8],
        number_start: usize,
        reserved_bits: u8,
        mut random: impl FnMut() -> u64,
    ) -> Self {
        let mut bytes = Vec::new();
        let mut keys = Vec::new();
        for _ in 0..shape.in_flight {
            let [.., a, b, c, d] = random().to_le_bytes();
            let frame_start = bytes.len();
            frame::append(&mut bytes, shape.opcode, true, payload, Some([a, b, c, d]));
            bytes[frame_start] |= reserved_bits;
            let mut key = [a, b, c, d];
            key.rotate_left(number_start % 4);
            let key = u64::from(u32::from_le_bytes(key));
            keys.push(key | key << 32);
        }
        let frame_size = bytes.len() / keys.len();
        let start = frame_size - payload.len() + number_start;
        Self { number: start..start + shape.size.min(NUMBER_SIZE), frame_size, bytes, keys }
    }
}

/// The frames that one connection sends: the window that all share, over and over under numbers of its own.
#[derive(Debug)]
pub(super) struct Outgoing {
    window: Rc<RefCell<Window>>,
    next: u32,
}

impl Outgoing {
    /// The frames of the connection with this index.
    pub(super) fn new(pattern: &Pattern, connection: u32) -> Self {
        Self { window: Rc::clone(&pattern.window), next: first_number(connection) }
    }

    /// The next `count` frames, at most a window, until those of another connection are wanted.
    ///
    /// # Panics
    /// Where `count` exceeds the window.
    #[inline]
    pub(super) fn next(&mut self, count: usize) -> Ref<'_, [u8]> {
        {
            let Window { bytes, keys, frame_size, number: place } = &mut *self.window.borrow_mut();
            for (frame, key) in bytes.chunks_exact_mut(*frame_size).zip(keys).take(count) {
                let masked = (number(self.next) ^ *key).to_le_bytes();
                frame[place.clone()].copy_from_slice(&masked[..place.len()]);
                self.next = self.next.wrapping_add(1);
            }
        }
        Ref::map(self.window.borrow(), |window| &window.bytes[..count * window.frame_size])
    }
}

/// What one connection receives: echoes of its messages, in order, each once, and control frames between.
#[derive(Debug)]
pub(super) struct Answers {
    expected: Expected,
    opcode: Opcode,
    rules: Rules,
    sequence: Sequence,
    /// The data frame whose payload is arriving.
    frame: Option<PartialFrame>,
    /// The beginning of a header or of a control frame that the last read cut off.
    carried: Vec<u8>,
    closed: bool,
    /// Where answers may come compressed.
    inflating: Option<Inflating>,
}

/// The answer that comes next.
#[derive(Debug)]
struct Expected {
    payload: Rc<[u8]>,
    /// The number of the message that it answers.
    next: u32,
    /// Bytes of it that have come, over all its fragments; of a compressed one as inflated.
    arrived: usize,
}

#[derive(Clone, Copy, Debug)]
struct PartialFrame {
    missing: usize,
    fin: bool,
}

impl Answers {
    /// Lengths are judged against the message that they answer.
    const RULES: Rules = Rules {
        role: Role::Client,
        frame_size_max: u64::MAX >> 1,
        message_size_max: u64::MAX >> 1,
        reserved_bits: 0,
        masker: crate::protocol::websocket::mask::wide,
    };

    /// The answers to what [`Outgoing`] sends for the same shape, pattern and connection, where this was agreed on
    /// compression.
    pub(super) fn new(shape: &Shape, pattern: &Pattern, deflate: Option<Terms>, connection: u32) -> Self {
        let payload = Rc::clone(&pattern.payload);
        let inflating = deflate.zip(pattern.inflation.as_ref());
        let inflating = inflating.map(|(terms, inflation)| Inflating::new(inflation, terms));
        let reserved_bits = if inflating.is_some() { frame::RSV1 } else { 0 };
        Self {
            expected: Expected { payload, next: first_number(connection), arrived: 0 },
            opcode: shape.opcode,
            rules: Rules { reserved_bits, ..Self::RULES },
            inflating,
            sequence: Sequence::default(),
            frame: None,
            carried: Vec::new(),
            closed: false,
        }
    }

    /// Whether the server has sent a Close.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes what was received and returns how many messages were answered by it.
    ///
    /// Pongs owed are appended to `pongs`. What follows a Close is ignored.
    ///
    /// # Errors
    /// The first thing that is wrong with the answers; the connection is then of no more use.
    #[inline]
    pub(super) fn receive(&mut self, bytes: &[u8], pongs: &mut Vec<u8>) -> Result<u32, Fault> {
        if self.carried.is_empty() {
            return self.take(bytes, pongs);
        }
        // Few reads end within a header; what that costs is a copy of the next.
        let mut joined = mem::take(&mut self.carried);
        joined.extend_from_slice(bytes);
        self.take(&joined, pongs)
    }

    /// Takes bytes with nothing carried before them.
    fn take(&mut self, mut rest: &[u8], pongs: &mut Vec<u8>) -> Result<u32, Fault> {
        let mut answered = 0;
        while !self.closed {
            if let Some(PartialFrame { missing, fin }) = self.frame {
                let (piece, after) = rest.split_at(missing.min(rest.len()));
                rest = after;
                let is_last = fin && piece.len() == missing;
                self.judge(piece, is_last)?;
                if piece.len() < missing {
                    self.frame = Some(PartialFrame { missing: missing - piece.len(), fin });
                    return Ok(answered);
                }
                self.frame = None;
                if is_last {
                    self.expected.pass()?;
                    answered += 1;
                }
            }
            let parsed = Header::parse(rest, &self.rules).map_err(|_| Fault::Violation)?;
            let Some((header, header_size)) = parsed else {
                self.carried.extend_from_slice(rest);
                return Ok(answered);
            };
            let size = usize::try_from(header.payload_size).map_err(|_| Fault::Length)?;
            if header.opcode.is_control() {
                let Some(payload) = rest.get(header_size..header_size + size) else {
                    self.carried.extend_from_slice(rest);
                    return Ok(answered);
                };
                rest = &rest[header_size + size..];
                match header.opcode {
                    Opcode::Ping => frame::append(pongs, Opcode::Pong, true, payload, Some([0; 4])),
                    Opcode::Close => self.closed = true,
                    _ => {}
                }
                continue;
            }
            self.sequence.admit(&header, &self.rules).map_err(|_| Fault::Violation)?;
            if header.opcode != Opcode::Continuation && header.opcode != self.opcode {
                return Err(Fault::Opcode);
            }
            if let Some(inflating) = &mut self.inflating
                && header.opcode != Opcode::Continuation
            {
                inflating.begin(header.is_compressed);
            }
            if size > self.room() {
                return Err(Fault::Length);
            }
            rest = &rest[header_size..];
            self.frame = Some(PartialFrame { missing: size, fin: header.fin });
        }
        Ok(answered)
    }

    /// So many bytes may still come of this answer.
    #[inline]
    fn room(&self) -> usize {
        let Expected { payload, arrived, .. } = &self.expected;
        match &self.inflating {
            Some(inflating) if inflating.is_compressed() => inflating.room(payload.len()),
            _ => payload.len() - arrived,
        }
    }

    /// Judges the next piece of an answer; a compressed one is judged with its last.
    #[inline]
    fn judge(&mut self, piece: &[u8], is_last: bool) -> Result<(), Fault> {
        let expected = &mut self.expected;
        match &mut self.inflating {
            None => expected.compare(piece),
            Some(inflating) if inflating.is_compressed() => {
                let size = expected.payload.len();
                inflating.take(piece, is_last, size, |answer| expected.compare(answer))
            }
            Some(inflating) => {
                inflating.count(piece.len());
                expected.compare(piece)
            }
        }
    }
}

impl Expected {
    /// Goes on to the next answer once all of this one has come.
    #[inline]
    fn pass(&mut self) -> Result<(), Fault> {
        if self.arrived < self.payload.len() {
            return Err(Fault::Length);
        }
        self.arrived = 0;
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Compares the next piece of the payload, as far as this message is compared.
    #[inline]
    fn compare(&mut self, piece: &[u8]) -> Result<(), Fault> {
        let size = self.payload.len();
        let compared =
            if self.next.is_multiple_of(COMPARED_WHOLE_EVERY) { size } else { size.min(COMPARED_SIZE) };
        let start = self.arrived;
        self.arrived += piece.len();
        let piece = &piece[..piece.len().min(compared.saturating_sub(start))];
        let number_start = start.min(NUMBER_SIZE);
        let (numbered, patterned) = piece.split_at(piece.len().min(NUMBER_SIZE - number_start));
        let number = number(self.next).to_le_bytes();
        let pattern = &self.payload[start + numbered.len()..];
        if numbered == &number[number_start..number_start + numbered.len()] && pattern.starts_with(patterned)
        {
            Ok(())
        } else {
            Err(Fault::Content)
        }
    }
}

/// Where a connection begins to number.
fn first_number(connection: u32) -> u32 {
    connection.wrapping_mul(NUMBERS_APART)
}

/// A message's number as eight ASCII letters, its lowest four bits first: two messages in a row differ in the first.
#[inline]
fn number(message: u32) -> u64 {
    let mut spread = u64::from(message);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    spread | 0x4040_4040_4040_4040
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::websocket::deflate::client::ClientOffer;
    use crate::protocol::websocket::mask;

    const SHAPE: Shape = Shape { opcode: Opcode::Text, size: 300, in_flight: 3 };

    /// What a server that echoes would answer to these frames, compressed as they came where they are.
    fn echo(frames: &[u8]) -> Vec<u8> {
        let rules = Rules { role: Role::Server, reserved_bits: frame::RSV1, ..Answers::RULES };
        let mut rest = frames;
        let mut out = Vec::new();
        while let Some((header, header_size)) = Header::parse(rest, &rules).unwrap() {
            let (frame, after) = rest.split_at(header_size + usize::try_from(header.payload_size).unwrap());
            let mut payload = frame[header_size..].to_vec();
            mask::apply(&mut payload, header.mask.unwrap(), 0);
            let start = out.len();
            frame::append(&mut out, header.opcode, header.fin, &payload, None);
            out[start] |= if header.is_compressed { frame::RSV1 } else { 0 };
            rest = after;
        }
        out
    }

    struct Pair {
        outgoing: Outgoing,
        answers: Answers,
        pongs: Vec<u8>,
    }

    impl Pair {
        fn new(shape: &Shape, connection: u32) -> Self {
            Self::agreed(shape, None, connection)
        }

        /// Messages that go compressed.
        fn deflated(shape: &Shape, connection: u32) -> Self {
            let offer = ClientOffer::Shared;
            Self::agreed(shape, offer.agree(offer.extension().as_bytes()), connection)
        }

        fn agreed(shape: &Shape, deflate: Option<Terms>, connection: u32) -> Self {
            let mut random = 0x0123_4567_89ab_cdef_u64;
            let pattern = Pattern::new(shape, deflate.is_some(), || {
                random = random.rotate_left(9);
                random
            });
            let outgoing = Outgoing::new(&pattern, connection);
            Self { outgoing, answers: Answers::new(shape, &pattern, deflate, connection), pongs: Vec::new() }
        }

        fn receive(&mut self, bytes: &[u8]) -> Result<u32, Fault> {
            self.answers.receive(bytes, &mut self.pongs)
        }
    }

    #[test]
    fn echoes_are_counted_wherever_they_are_split() {
        for size in [0, 1, 7, 8, 9, 125, 126, 300] {
            let shape = Shape { size, ..SHAPE };
            for pair in [Pair::new, Pair::deflated] {
                let input = echo(&pair(&shape, 7).outgoing.next(3));
                for split in 0..=input.len() {
                    let mut pair = pair(&shape, 7);
                    let first = pair.receive(&input[..split]).unwrap();
                    assert_eq!(first + pair.receive(&input[split..]).unwrap(), 3, "{size} bytes at {split}");
                }
            }
        }
    }

    #[test]
    fn windows_are_numbered_on() {
        for mut pair in [Pair::new(&SHAPE, 1), Pair::deflated(&SHAPE, 1)] {
            let windows: Vec<Vec<u8>> = (0..200).map(|_| echo(&pair.outgoing.next(3))).collect();
            assert_ne!(windows[0], windows[1]);
            for window in windows {
                assert_eq!(pair.receive(&window), Ok(3));
            }
        }
    }

    #[test]
    fn an_answer_of_before_or_of_another_connection_is_wrong() {
        for new in [Pair::new, Pair::deflated] {
            let mut pair = new(&SHAPE, 1);
            let first = echo(&pair.outgoing.next(1));
            assert_eq!(pair.receive(&first), Ok(1));
            assert_eq!(pair.receive(&first), Err(Fault::Content));
            assert_eq!(new(&SHAPE, 2).receive(&first), Err(Fault::Content));
        }
    }

    #[test]
    fn wrong_length_opcode_and_content_are_told_apart() {
        let payload = |pair: &mut Pair| echo(&pair.outgoing.next(1))[4..].to_vec();
        let answer = |pair: &mut Pair, opcode, payload: &[u8]| {
            let mut bytes = Vec::new();
            frame::append(&mut bytes, opcode, true, payload, None);
            pair.receive(&bytes)
        };
        let mut pair = Pair::new(&SHAPE, 1);
        let right = payload(&mut pair);
        assert_eq!(answer(&mut pair, Opcode::Text, &right), Ok(1));

        let mut pair = Pair::new(&SHAPE, 1);
        let right = payload(&mut pair);
        assert_eq!(answer(&mut pair, Opcode::Binary, &right), Err(Fault::Opcode));

        let mut pair = Pair::new(&SHAPE, 1);
        let short = payload(&mut pair);
        assert_eq!(answer(&mut pair, Opcode::Text, &short[..299]), Err(Fault::Length));

        let mut pair = Pair::new(&SHAPE, 1);
        let mut long = payload(&mut pair);
        long.push(b'a');
        assert_eq!(answer(&mut pair, Opcode::Text, &long), Err(Fault::Length));

        // Connection 0 begins with message 0, which is compared to its end.
        let mut pair = Pair::new(&SHAPE, 0);
        let mut wrong = payload(&mut pair);
        wrong[299] ^= 1;
        assert_eq!(answer(&mut pair, Opcode::Text, &wrong), Err(Fault::Content));
    }

    #[test]
    fn a_compressed_answer_is_judged_as_any_other() {
        let answer = |pair: &mut Pair, payload: &[u8]| {
            let mut bytes = Vec::new();
            frame::append(&mut bytes, Opcode::Text, true, &deflated::compress(payload).bytes, None);
            bytes[0] |= frame::RSV1;
            pair.receive(&bytes)
        };
        let message = |number_of: u32| {
            let mut payload = deflated::records(SHAPE.size);
            payload[..NUMBER_SIZE].copy_from_slice(&number(first_number(number_of)).to_le_bytes());
            payload
        };
        let right = message(1);
        let mut pair = Pair::deflated(&SHAPE, 1);
        assert_eq!(answer(&mut pair, &right), Ok(1));
        assert_eq!(answer(&mut pair, &right), Err(Fault::Content));
        assert_eq!(answer(&mut Pair::deflated(&SHAPE, 1), &right[..299]), Err(Fault::Length));
        let longer = [&right[..], b"a"].concat();
        assert_eq!(answer(&mut Pair::deflated(&SHAPE, 1), &longer), Err(Fault::Length));
        // Connection 0 begins with message 0, which is compared to its end.
        let mut wrong = message(0);
        wrong[299] ^= 1;
        assert_eq!(answer(&mut Pair::deflated(&SHAPE, 0), &wrong), Err(Fault::Content));

        // What was not compressed is taken, what says that it is and is not is no message.
        let mut bytes = Vec::new();
        frame::append(&mut bytes, Opcode::Text, true, &right, None);
        assert_eq!(Pair::deflated(&SHAPE, 1).receive(&bytes), Ok(1));
        bytes[0] |= frame::RSV1;
        assert_eq!(Pair::deflated(&SHAPE, 1).receive(&bytes), Err(Fault::Violation));
        // Where nothing was agreed on, a compressed answer is against the rules.
        assert_eq!(answer(&mut Pair::new(&SHAPE, 1), &right), Err(Fault::Violation));
    }

    #[test]
    fn a_compressed_answer_may_come_in_fragments_but_not_without_an_end() {
        let payload = echo(&Pair::deflated(&SHAPE, 1).outgoing.next(1))[4..].to_vec();
        let fragment = |opcode, fin, payload: &[u8], reserved_bits| {
            let mut bytes = Vec::new();
            frame::append(&mut bytes, opcode, fin, payload, None);
            bytes[0] |= reserved_bits;
            bytes
        };
        let pieces = [
            fragment(Opcode::Text, false, &payload[..1], frame::RSV1),
            fragment(Opcode::Continuation, false, &payload[1..100], 0),
            fragment(Opcode::Ping, true, b"there?", 0),
            fragment(Opcode::Continuation, false, &payload[100..], 0),
            fragment(Opcode::Continuation, true, b"", 0),
        ];
        // The message after it is one piece.
        let mut pair = Pair::deflated(&SHAPE, 1);
        drop(pair.outgoing.next(1));
        let bytes = [pieces.concat(), echo(&pair.outgoing.next(1))].concat();
        for split in 0..bytes.len() {
            let mut pair = Pair::deflated(&SHAPE, 1);
            let first = pair.receive(&bytes[..split]).unwrap();
            assert_eq!(first + pair.receive(&bytes[split..]).unwrap(), 2, "split at {split}");
        }

        let mut pair = Pair::deflated(&SHAPE, 1);
        let mut outcome = pair.receive(&pieces[0]);
        let mut sent_size = 1;
        while outcome == Ok(0) {
            sent_size += 10;
            outcome = pair.receive(&fragment(Opcode::Continuation, false, &[0; 10], 0));
        }
        assert_eq!(outcome, Err(Fault::Length));
        assert!(sent_size < 2 * SHAPE.size, "{sent_size}");
    }

    #[test]
    fn bytes_of_answers_are_counted_as_they_came() {
        let shape = Shape { size: 1024, ..SHAPE };
        let mut pair = Pair::deflated(&shape, 1);
        let counted = |pair: &Pair| pair.answers.inflating.as_ref().unwrap().answer_bytes();
        let window = echo(&pair.outgoing.next(3));
        assert_eq!(pair.receive(&window), Ok(3));
        // Each has a header of four bytes.
        assert_eq!(counted(&pair), window.len() as u64 - 12);
        assert!(counted(&pair) < 3 * 1024 / 2);
    }

    #[test]
    fn fragments_and_pings_may_come_and_a_close_ends() {
        let mut pair = Pair::new(&SHAPE, 1);
        let payload = echo(&pair.outgoing.next(1))[4..].to_vec();
        let mut bytes = Vec::new();
        frame::append(&mut bytes, Opcode::Text, false, &payload[..100], None);
        frame::append(&mut bytes, Opcode::Ping, true, b"there?", None);
        frame::append(&mut bytes, Opcode::Continuation, true, &payload[100..], None);
        frame::append(&mut bytes, Opcode::Close, true, b"", None);
        for split in 0..bytes.len() {
            let mut pair = Pair::new(&SHAPE, 1);
            let first = pair.receive(&bytes[..split]).unwrap();
            assert!(!pair.answers.is_closed());
            assert_eq!(first + pair.receive(&bytes[split..]).unwrap(), 1, "split at {split}");
            assert!(pair.answers.is_closed());
            assert_eq!(pair.pongs, [&[0x8a, 0x86, 0, 0, 0, 0][..], b"there?"].concat());
        }
    }
}
