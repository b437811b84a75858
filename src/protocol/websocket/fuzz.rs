//! What must hold for any bytes that a peer may send, as functions that fuzzers and stable tests call.

use super::close::{CloseCode, ClosePayload, REASON_SIZE_MAX};
use super::endpoint::{Endpoint, Event};
use super::exchange::Exchange;
use super::frame::{self, Header, Opcode, Role, Rules, Tally};
use super::violation::Violation;
use super::walker::{WalkEnd, Walker};

/// Limits from which an input chooses: small ones, so that short inputs reach them.
const FRAME_SIZES_MAX: [u64; 4] = [0, 125, 1_000, 1 << 20];
const MESSAGE_SIZES_MAX: [u64; 4] = [1, 126, 2_000, 1 << 20];

/// The rules for whoever reads what an endpoint replied: the replies of an input are shorter than this.
const REPLY_RULES: Rules = Rules {
    role: Role::Client,
    frame_size_max: 1 << 30,
    message_size_max: 1 << 30,
    reserved_bits: 0,
    masker: crate::protocol::websocket::mask::wide,
};

/// A generator whose whole state is its seed: splitmix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.bits() % bound as u64).expect("it is below a usize")
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// Three bytes that choose rules, splits and a Close of our own, and then any bytes as a stream of frames.
///
/// The endpoint hears what a plain reading of RFC 6455 hears, wherever the stream is split; what it replies is a stream
/// of frames that says the same; it never holds much more than has arrived. The walker counts the frames that a plain
/// reading counts and passes on exactly those without fault.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_frames(data: &[u8]) {
    let [choice, splits, closes, stream @ ..] = data else { return };
    let rules = Rules {
        role: if choice & 1 == 0 { Role::Server } else { Role::Client },
        frame_size_max: FRAME_SIZES_MAX[usize::from(choice >> 1 & 3)],
        message_size_max: MESSAGE_SIZES_MAX[usize::from(choice >> 3 & 3)],
        reserved_bits: 0,
        masker: crate::protocol::websocket::mask::wide,
    };
    let mut random = Random(u64::from(*splits));
    let size_max = 1 + random.below(64);
    let mut random_size = || 1 + random.below(size_max);

    // Zero for not at all, as most connections live without a Close of ours.
    let close_at = (*closes > 0).then(|| usize::from(*closes).min(stream.len()));
    let (expected, _) = Heard::plainly(stream, &rules, Depth::Messages, close_at);
    assert_eq!(Heard::by_endpoint(stream, &rules, close_at, || usize::MAX), expected, "whole");
    assert_eq!(Heard::by_endpoint(stream, &rules, close_at, || 1), expected, "byte by byte");
    assert_eq!(Heard::by_endpoint(stream, &rules, close_at, &mut random_size), expected, "in pieces");

    let (expected, admitted_size) = Heard::plainly(stream, &rules, Depth::Frames, None);
    walk(stream, &rules, &expected, admitted_size, || usize::MAX);
    walk(stream, &rules, &expected, admitted_size, || 1);
    walk(stream, &rules, &expected, admitted_size, &mut random_size);
}

/// Any bytes as the payload of a Close.
///
/// What is accepted is the payload that we would write for it, with a code that RFC 6455 section 7.4 or its registry
/// allows; what is not has the fault that is told. An endpoint and a walker that receive it agree.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_close_payload(data: &[u8]) {
    let outcome = ClosePayload::parse(data);
    match outcome {
        Ok(ClosePayload { code: None, reason }) => assert!(data.is_empty() && reason.is_empty()),
        Ok(ClosePayload { code: Some(code), reason }) => {
            assert!(may_be_sent(code.get()));
            assert_eq!([&code.get().to_be_bytes(), reason.as_bytes()].concat(), data);
        }
        Err(Violation::ClosePayloadOneByte) => assert_eq!(data.len(), 1),
        Err(Violation::CloseCodeInvalid { code }) => {
            assert!(!may_be_sent(code));
            assert!(data.starts_with(&code.to_be_bytes()));
        }
        Err(Violation::CloseReasonInvalidUtf8) => assert!(std::str::from_utf8(&data[2..]).is_err()),
        Err(other) => panic!("{other:?} is no fault of a Close payload"),
    }
    if data.len() > 2 + REASON_SIZE_MAX {
        return;
    }

    let mut received = Vec::new();
    frame::append(&mut received, Opcode::Close, true, data, Some([0xa5, 0x5a, 0x3c, 0xc3]));
    let rules = Rules {
        role: Role::Server,
        frame_size_max: 125,
        message_size_max: 1,
        reserved_bits: 0,
        masker: crate::protocol::websocket::mask::wide,
    };
    let walked = Walker::new().walk(&rules, &received, &mut Tally::default(), |_| ());
    let mut exchange = Exchange::new(&mut received);
    let heard = Endpoint::new().receive(&rules, &mut exchange);
    let end = match outcome {
        Ok(close) => {
            let Ok(Some(Event::Close(code, payload))) = heard else { panic!("{heard:?} is no Close") };
            assert_eq!((code, exchange.payload(&payload)), (close.code, data));
            exchange.reply_close(close.code, close.reason);
            let outgoing = exchange.finish();
            let mut plain = Vec::new();
            frame::append(&mut plain, Opcode::Close, true, data, None);
            assert_eq!(&received[outgoing.in_place], plain, "the reply says the same");
            WalkEnd::Close(close.code)
        }
        Err(violation) => {
            assert_eq!(heard, Err(violation));
            match violation {
                // A walker leaves text, and so the reason, to the endpoint that reads it.
                Violation::CloseReasonInvalidUtf8 => WalkEnd::Close(CloseCode::new(code_of(data))),
                _ => WalkEnd::Violation(violation),
            }
        }
    };
    assert_eq!(walked.end, Some(end));
}

/// The code of a Close payload that has one.
fn code_of(payload: &[u8]) -> u16 {
    u16::from_be_bytes([payload[0], payload[1]])
}

/// Whether RFC 6455 section 7.4 or the registry that it founds lets a Close carry the code.
fn may_be_sent(code: u16) -> bool {
    const REGISTERED: [u16; 12] = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014];
    REGISTERED.contains(&code) || code / 1000 == 3 || code / 1000 == 4
}

/// Walks the stream in pieces of these sizes, and compares with what a plain reading heard and admitted.
fn walk(
    stream: &[u8],
    rules: &Rules,
    expected: &Heard,
    admitted_size: usize,
    mut next_size: impl FnMut() -> usize,
) {
    let (mut walker, mut tally) = (Walker::new(), Tally::default());
    let (mut passed, mut position, mut end) = (Vec::new(), 0, None);
    while position < stream.len() && end.is_none() {
        let piece = &stream[position..];
        let piece = &piece[..next_size().min(piece.len())];
        let walked = walker.walk(rules, piece, &mut tally, |_| ());
        passed.extend_from_slice(walked.held.as_bytes());
        passed.extend_from_slice(&piece[..walked.pass]);
        position += piece.len();
        end = walked.end;
    }
    assert_eq!(tally, expected.tally);
    assert_eq!(
        passed,
        stream[..admitted_size],
        "what is admitted is passed on as it came, and nothing else is"
    );
    let close = expected.events.last().filter(|(opcode, _)| *opcode == Opcode::Close);
    let close =
        close.map(|(_, code)| CloseCode::new(code.first_chunk().map_or(0, |code| u16::from_be_bytes(*code))));
    assert_eq!(end, expected.violation.map(WalkEnd::Violation).or(close.map(WalkEnd::Close)));
    assert!(end.is_none() || walker.is_between_frames(), "a frame of our own may follow");
}

/// What somebody heard in a stream of frames.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    /// Messages as Text or Binary, Pings, Pongs, and a Close with the bytes of its code.
    events: Vec<(Opcode, Vec<u8>)>,
    tally: Tally,
    violation: Option<Violation>,
}

/// How much of a stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// Control frames are taken whole, messages assembled, text checked.
    Messages,
    /// Frames are counted by their headers, and of payloads only the close code is looked at.
    Frames,
}

impl Heard {
    fn nothing() -> Self {
        Self { events: Vec::new(), tally: Tally::default(), violation: None }
    }

    /// Lets an endpoint receive the stream in pieces of these sizes and answers all that it reports, as a service does.
    ///
    /// After `close_at` bytes a Close of our own is sent.
    fn by_endpoint(
        stream: &[u8],
        rules: &Rules,
        close_at: Option<usize>,
        mut next_size: impl FnMut() -> usize,
    ) -> Self {
        let mut heard = Self::nothing();
        let mut endpoint = Endpoint::new();
        let mut buffer = stream.to_vec();
        let (mut replies, mut said) = (Vec::new(), Self::nothing());
        let (mut position, mut has_closed) = (0, false);
        while position < stream.len() && heard.violation.is_none() {
            let mut size = next_size().min(stream.len() - position);
            match close_at {
                Some(close_at) if position < close_at => size = size.min(close_at - position),
                Some(_) => {
                    endpoint.close_sent();
                    has_closed = true;
                }
                None => {}
            }
            let bytes = &mut buffer[position..position + size];
            position += size;
            let mut exchange = Exchange::new(bytes);
            heard.violation = loop {
                match endpoint.receive(rules, &mut exchange) {
                    Ok(Some(event)) => heard.answer(event, &mut exchange, &mut said, has_closed),
                    Ok(None) => break None,
                    Err(violation) => break Some(violation),
                }
            };
            if let Some(violation) = heard.violation {
                assert_eq!(endpoint.receive(rules, &mut exchange), Ok(None), "nothing follows a violation");
                if !has_closed {
                    let code = violation.close_code();
                    exchange.reply_close(Some(code), violation.kind().label());
                    said.events.push((Opcode::Close, code.get().to_be_bytes().to_vec()));
                }
            }
            add(&mut heard.tally, &exchange.received);
            add(&mut said.tally, &exchange.replied);
            let outgoing = exchange.finish();
            replies.extend_from_slice(&bytes[outgoing.in_place]);
            replies.extend_from_slice(&outgoing.spill);
            assert!(endpoint.held_size() <= 2 * position + 64, "memory in proportion to what has arrived");
            if endpoint.is_at_rest() {
                endpoint = Endpoint::new();
            }
        }
        let (understood, _) = Self::plainly(&replies, &REPLY_RULES, Depth::Messages, None);
        assert_eq!(understood, said, "whoever reads the replies understands what was meant");
        heard
    }

    /// Takes note of an event, and replies to it.
    fn answer(&mut self, event: Event, exchange: &mut Exchange<'_>, said: &mut Self, has_closed: bool) {
        match event {
            Event::Message { kind, payload, .. } => {
                let bytes = exchange.payload(&payload).to_vec();
                said.events.push((kind.opcode(), bytes.clone()));
                self.events.push((kind.opcode(), bytes));
                exchange.reply(kind.opcode(), payload);
            }
            Event::Ping(payload) => {
                let bytes = exchange.payload(&payload).to_vec();
                said.events.push((Opcode::Pong, bytes.clone()));
                self.events.push((Opcode::Ping, bytes));
                exchange.reply(Opcode::Pong, payload);
            }
            Event::Pong(payload) => {
                self.events.push((Opcode::Pong, exchange.payload(&payload).to_vec()));
            }
            Event::Close(code, _) => {
                let bytes = code.map_or_else(Vec::new, |code| code.get().to_be_bytes().to_vec());
                if !has_closed {
                    said.events.push((Opcode::Close, bytes.clone()));
                    exchange.reply_close(code, "");
                }
                self.events.push((Opcode::Close, bytes));
            }
        }
    }

    /// Reads RFC 6455 as it stands and the stream as a whole, with no care for speed or memory.
    ///
    /// From `close_at` bytes on, messages, Pings and Pongs are discarded, as a Close of our own was sent there. Returns
    /// too where the last frame ends that was admitted, or the stream, if it ends within that frame.
    fn plainly(stream: &[u8], rules: &Rules, depth: Depth, close_at: Option<usize>) -> (Self, usize) {
        let mut heard = Self::nothing();
        let mut position = 0;
        let close_at = close_at.unwrap_or(usize::MAX);
        heard.violation = heard.read_plainly(stream, &mut position, rules, depth, close_at).err();
        (heard, position)
    }

    fn read_plainly(
        &mut self,
        stream: &[u8],
        position: &mut usize,
        rules: &Rules,
        depth: Depth,
        close_at: usize,
    ) -> Result<(), Violation> {
        // The message whose last fragment has not come: its opcode, what its headers claim, and what arrived.
        let mut message: Option<(Opcode, u64, Vec<u8>)> = None;
        while let Some((header, header_size)) = header_plainly(&stream[*position..], rules)? {
            let rest = &stream[*position + header_size..];
            let size = usize::try_from(header.payload_size).map_or(rest.len(), |size| size.min(rest.len()));
            let mut payload = rest[..size].to_vec();
            for (byte, key) in payload.iter_mut().zip(header.mask.unwrap_or_default().iter().cycle()) {
                *byte ^= key;
            }
            let is_whole = payload.len() as u64 == header.payload_size;
            let end = *position + header_size + payload.len();

            if header.opcode == Opcode::Close {
                let is_judged = match depth {
                    Depth::Messages => is_whole,
                    Depth::Frames => is_whole || header.payload_size == 1 || payload.len() >= 2,
                };
                if !is_judged {
                    return Ok(());
                }
                // An endpoint counts what it received, a walker what it passed on.
                if depth == Depth::Messages {
                    self.tally.count(&header);
                }
                let code = read_close_plainly(&header, &payload, depth)?;
                if depth == Depth::Frames {
                    self.tally.count(&header);
                }
                *position = end;
                if is_whole {
                    self.events.push((Opcode::Close, code.to_vec()));
                }
                return Ok(());
            }
            if header.opcode.is_control() {
                if depth == Depth::Messages && !is_whole {
                    return Ok(());
                }
                self.tally.count(&header);
                *position = end;
                if is_whole && end <= close_at {
                    self.events.push((header.opcode, payload));
                }
                continue;
            }

            let claimed_before = match (header.opcode, &message) {
                (Opcode::Continuation, None) => return Err(Violation::UnexpectedContinuation),
                (Opcode::Continuation, Some((_, claimed, _))) => *claimed,
                (_, Some(_)) => return Err(Violation::MessageInterrupted),
                (_, None) => 0,
            };
            let size = claimed_before + header.payload_size;
            if size > rules.message_size_max {
                return Err(Violation::MessageTooBig { size, limit: rules.message_size_max });
            }
            self.tally.count(&header);
            let (opcode, claimed, bytes) = message.get_or_insert((header.opcode, 0, Vec::new()));
            *claimed = size;
            // What arrives after our Close belongs to no message, and nobody asks whether it is text.
            payload.truncate(close_at.saturating_sub(*position + header_size));
            bytes.extend_from_slice(&payload);
            *position = end;
            let is_complete = is_whole && header.fin;
            if *opcode == Opcode::Text && depth == Depth::Messages {
                match std::str::from_utf8(bytes) {
                    Err(error) if error.error_len().is_some() || (is_complete && end <= close_at) => {
                        return Err(Violation::InvalidUtf8);
                    }
                    _ => {}
                }
            }
            if is_complete {
                if end <= close_at {
                    self.events.push((*opcode, std::mem::take(bytes)));
                }
                message = None;
            }
        }
        Ok(())
    }
}

/// RFC 6455 section 5.5.1: the bytes of the code, if there is one.
fn read_close_plainly<'a>(header: &Header, payload: &'a [u8], depth: Depth) -> Result<&'a [u8], Violation> {
    if header.payload_size == 1 {
        return Err(Violation::ClosePayloadOneByte);
    }
    let (code, reason) = payload.split_at(payload.len().min(2));
    if !payload.is_empty() && !may_be_sent(code_of(payload)) {
        return Err(Violation::CloseCodeInvalid { code: code_of(payload) });
    }
    if depth == Depth::Messages && std::str::from_utf8(reason).is_err() {
        return Err(Violation::CloseReasonInvalidUtf8);
    }
    Ok(code)
}

/// RFC 6455 section 5.2, field by field: the header and its size, or `None` where bytes are missing.
fn header_plainly(bytes: &[u8], rules: &Rules) -> Result<Option<(Header, usize)>, Violation> {
    let Some(first) = bytes.first() else { return Ok(None) };
    let fin = first >> 7 == 1;
    if first >> 4 & 0b111 != 0 {
        return Err(Violation::ReservedBits);
    }
    let number = first & 0b1111;
    let Some(opcode) = Opcode::ALL.into_iter().find(|opcode| *opcode as u8 == number) else {
        return Err(Violation::ReservedOpcode { opcode: number });
    };
    if number >= 8 && !fin {
        return Err(Violation::ControlFragmented);
    }

    let Some(second) = bytes.get(1) else { return Ok(None) };
    let is_masked = second >> 7 == 1;
    match rules.role {
        Role::Server if !is_masked => return Err(Violation::Unmasked),
        Role::Client if is_masked => return Err(Violation::Masked),
        Role::Server | Role::Client => {}
    }
    let short = second & 0b111_1111;
    if number >= 8 && short > 125 {
        return Err(Violation::ControlTooLong);
    }
    let key_at = match short {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let Some(extended) = bytes.get(2..key_at) else { return Ok(None) };
    let payload_size = match short {
        126 | 127 => extended.iter().fold(0, |size, byte| size << 8 | u64::from(*byte)),
        short => u64::from(short),
    };
    let shortest = match payload_size {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    };
    if key_at > shortest {
        return Err(Violation::NonMinimalLength);
    }
    if payload_size >> 63 == 1 {
        return Err(Violation::LengthTopBit);
    }
    if payload_size > rules.frame_size_max {
        return Err(Violation::FrameTooBig { size: payload_size, limit: rules.frame_size_max });
    }

    if !is_masked {
        return Ok(Some((Header { fin, opcode, is_compressed: false, mask: None, payload_size }, key_at)));
    }
    let key = bytes[key_at..].first_chunk();
    Ok(key.map(|key| {
        (Header { fin, opcode, is_compressed: false, mask: Some(*key), payload_size }, key_at + 4)
    }))
}

/// Adds what one read counted to the sum of all.
fn add(sum: &mut Tally, tally: &Tally) {
    for (sum, count) in sum.frames.iter_mut().zip(tally.frames) {
        *sum += count;
    }
    sum.messages += tally.messages;
    sum.payload_bytes += tally.payload_bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seed of every run here: change it to see other mutations.
    const SEED: u64 = 0x5eed_0002;

    /// Bytes that mean something in a frame: first bytes, lengths, close codes, and pieces of characters.
    const MEANINGFUL: &[u8] =
        b"\x00\x01\x02\x80\x81\x82\x88\x89\x8a\xc1\x83\x05\x7d\x7e\x7f\xfe\xff\x03\xe8\xed\xce\xba\xf4\x90\xa0";

    /// A stream of some frames, nearly all of them well-formed.
    fn stream(random: &mut Random) -> Vec<u8> {
        let mut bytes = vec![MEANINGFUL[random.below(MEANINGFUL.len())], random.bits().to_le_bytes()[0], 0];
        bytes[0] |= 0b11000;
        if random.one_in(3) {
            bytes[2] = random.bits().to_le_bytes()[0];
        }
        let is_server = bytes[0] & 1 == 0;
        let mut is_fragmented = false;
        for _ in 0..random.below(8) {
            let key =
                is_server.then(|| random.bits().to_le_bytes()[..4].try_into().expect("it has four bytes"));
            let opcode = match random.below(8) {
                0 => Opcode::Ping,
                1 => Opcode::Pong,
                2 if random.one_in(3) => Opcode::Close,
                _ if is_fragmented => Opcode::Continuation,
                3 | 4 => Opcode::Binary,
                _ => Opcode::Text,
            };
            let text = "κόσμε \u{10ffff} and ascii, ".repeat(1 + random.below(12));
            let (payload, fin) = match opcode {
                Opcode::Close => (&b"\x03\xe8 bye"[..[0, 2, 6][random.below(3)]], true),
                Opcode::Ping | Opcode::Pong => (&text.as_bytes()[..random.below(text.len().min(126))], true),
                _ if random.one_in(2) => (text.as_bytes(), random.one_in(2)),
                _ => (&text.as_bytes()[..random.below(text.len())], random.one_in(2)),
            };
            if !opcode.is_control() {
                is_fragmented = !fin;
            }
            frame::append(&mut bytes, opcode, fin, payload, key);
        }
        bytes
    }

    /// Makes a few changes.
    fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len().max(1));
            let byte = MEANINGFUL[random.below(MEANINGFUL.len())];
            match random.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                3 => bytes.extend_from_within(at..),
                _ if !bytes.is_empty() => bytes[at] = byte,
                _ => {}
            }
        }
    }

    #[test]
    fn frames_hold_under_mutation() {
        let mut random = Random(SEED);
        for _ in 0..6_000 {
            let mut bytes = stream(&mut random);
            mutate(&mut bytes, &mut random);
            fuzz_frames(&bytes);
        }
    }

    #[test]
    fn close_payloads_hold_for_every_code_and_under_mutation() {
        let mut random = Random(SEED);
        for code in 0..=u16::MAX {
            let mut bytes = [&code.to_be_bytes(), "bye κόσμε".as_bytes()].concat();
            fuzz_close_payload(&bytes);
            mutate(&mut bytes, &mut random);
            fuzz_close_payload(&bytes);
        }
        fuzz_close_payload(&[0x0f; 2 + REASON_SIZE_MAX]);
        fuzz_close_payload(&[0x0f; 3 + REASON_SIZE_MAX]);
    }
}
