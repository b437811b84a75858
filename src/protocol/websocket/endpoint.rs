//! One side of a WebSocket connection that handles whole messages (RFC 6455 sections 5 to 8).

use super::close::{CloseCode, ClosePayload};
use super::exchange::{Collected, Exchange, Payload};
use super::frame::{HEADER_SIZE_MAX, Header, Opcode, Rules, SERVER_HEADER_SIZE_MAX, Sequence};
use super::mask;
use super::utf8::{self, Utf8Check};
use super::violation::Violation;

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8, checked.
    Text,
    /// Bytes.
    Binary,
}

impl MessageKind {
    /// The opcode of the message's first frame.
    pub const fn opcode(self) -> Opcode {
        match self {
            Self::Text => Opcode::Text,
            Self::Binary => Opcode::Binary,
        }
    }
}

/// What the peer did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole message.
    Message {
        /// Text or bytes.
        kind: MessageKind,
        /// All its fragments together.
        payload: Payload,
        /// Whether they are compressed (RFC 7692). Then they have been held against the limits as they came, and nothing
        /// is known of what they come to; nor is text checked.
        is_compressed: bool,
    },
    /// A Ping, to be answered with a Pong of the same payload.
    Ping(Payload),
    /// A Pong, asked for or not.
    Pong(Payload),
    /// A Close, by its code and its whole payload: the peer sends nothing more.
    Close(Option<CloseCode>, Payload),
}

/// The state of one side between reads.
///
/// At a message boundary it holds nothing, see [`Endpoint::is_at_rest`], and may be dropped and made anew.
#[derive(Debug, Default)]
pub struct Endpoint {
    sequence: Sequence,
    /// The data frame whose payload is arriving.
    frame: Option<PartialFrame>,
    /// The message whose fragments are arriving.
    message: Option<PartialMessage>,
    /// The beginning of a frame header, or of a control frame, that the last read cut off: at most 14 + 125 bytes.
    carried: Vec<u8>,
    closing: Closing,
}

/// Where the endpoint stands in the closing handshake (RFC 6455 section 7.1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Closing {
    /// Neither side has sent a Close.
    #[default]
    Open,
    /// We have; messages are discarded until the peer's Close.
    Sent,
    /// The peer has; whatever follows is ignored.
    Received,
}

#[derive(Clone, Copy, Debug)]
struct PartialFrame {
    header: Header,
    /// Bytes of payload that have arrived.
    arrived: u64,
}

#[derive(Debug)]
struct PartialMessage {
    kind: MessageKind,
    is_compressed: bool,
    /// Room for a reply's header, then the payload so far. It grows with the bytes that arrive, never with those
    /// that a header claims.
    bytes: Vec<u8>,
    utf8: Utf8Check,
}

impl Endpoint {
    /// An endpoint at the beginning of a connection, or at a message boundary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is unfinished, so that a new endpoint would go on just the same.
    pub fn is_at_rest(&self) -> bool {
        self.closing == Closing::Open
            && self.frame.is_none()
            && self.message.is_none()
            && self.carried.is_empty()
            && self.sequence.is_between_messages()
    }

    /// Bytes of memory that it holds between reads: in proportion to what has arrived of what is unfinished.
    pub fn held_size(&self) -> usize {
        self.carried.capacity() + self.message.as_ref().map_or(0, |message| message.bytes.capacity())
    }

    /// What has come of a compressed message that is unfinished.
    pub fn unfinished_compressed(&self) -> Option<&[u8]> {
        let message = self.message.as_ref().filter(|message| message.is_compressed)?;
        Some(&message.bytes[SERVER_HEADER_SIZE_MAX..])
    }

    /// Takes note that this side has sent a Close: from now on messages and pings are discarded, and only the peer's
    /// Close is reported (RFC 6455 section 5.5.1).
    pub fn close_sent(&mut self) {
        if self.closing == Closing::Open {
            self.closing = Closing::Sent;
            // What is still to come of an unfinished message is discarded with the rest.
            self.message = None;
        }
    }

    /// Takes bytes of the exchange until something happened; `None` once all are taken.
    ///
    /// # Errors
    /// The rule that the peer broke. The connection is then to be failed; the endpoint takes nothing more.
    #[inline]
    pub fn receive(
        &mut self,
        rules: &Rules,
        exchange: &mut Exchange<'_>,
    ) -> Result<Option<Event>, Violation> {
        let outcome = self.advance(rules, exchange);
        if outcome.is_err() {
            self.closing = Closing::Received;
        }
        outcome
    }

    #[inline]
    fn advance(&mut self, rules: &Rules, exchange: &mut Exchange<'_>) -> Result<Option<Event>, Violation> {
        loop {
            if self.closing == Closing::Received {
                exchange.consumed += exchange.rest().len();
            }
            if exchange.rest().is_empty() {
                return Ok(None);
            }
            let event = if let Some(frame) = self.frame {
                self.continue_frame(frame, rules, exchange)?
            } else if self.carried.is_empty() {
                self.begin_frame(rules, exchange)?
            } else {
                self.continue_carried(rules, exchange)?
            };
            if let Some(event) = event {
                return Ok(Some(event));
            }
        }
    }

    /// Takes a frame that begins in the buffer: the way of nearly all frames.
    #[inline]
    fn begin_frame(
        &mut self,
        rules: &Rules,
        exchange: &mut Exchange<'_>,
    ) -> Result<Option<Event>, Violation> {
        let rest = exchange.rest();
        let available = rest.len();
        let Some((header, header_size)) = Header::parse(rest, rules)? else {
            self.carried.extend_from_slice(rest);
            exchange.consumed += available;
            return Ok(None);
        };
        let whole = (available - header_size) as u64 >= header.payload_size;
        if header.opcode.is_control() {
            if !whole {
                self.carried.extend_from_slice(rest);
                exchange.consumed += available;
                return Ok(None);
            }
            self.take_header(&header, rules, exchange)?;
            let payload = unmask_in_place(&header, header_size, rules, exchange);
            return self.control(header.opcode, payload, exchange);
        }
        self.take_header(&header, rules, exchange)?;
        let kind = match header.opcode {
            Opcode::Text => MessageKind::Text,
            _ => MessageKind::Binary,
        };
        if whole && header.fin && header.opcode != Opcode::Continuation && self.closing == Closing::Open {
            let payload = unmask_in_place(&header, header_size, rules, exchange);
            let is_compressed = header.is_compressed;
            if kind == MessageKind::Text
                && !is_compressed
                && utf8::validate(exchange.payload(&payload)).is_none()
            {
                return Err(Violation::InvalidUtf8);
            }
            return Ok(Some(Event::Message { kind, payload, is_compressed }));
        }
        exchange.consumed += header_size;
        self.begin_payload(header, rules, exchange)
    }

    /// Completes a header or a control frame whose beginning came in an earlier read.
    #[cold]
    fn continue_carried(
        &mut self,
        rules: &Rules,
        exchange: &mut Exchange<'_>,
    ) -> Result<Option<Event>, Violation> {
        // First the header, byte by byte: a violation is found with the byte that completes it.
        let (header, header_size) = loop {
            if let Some(parsed) = Header::parse(&self.carried, rules)? {
                break parsed;
            }
            debug_assert!(self.carried.len() < HEADER_SIZE_MAX);
            let Some(byte) = exchange.rest().first().copied() else { return Ok(None) };
            self.carried.push(byte);
            exchange.consumed += 1;
        };
        if !header.opcode.is_control() {
            self.carried.clear();
            self.take_header(&header, rules, exchange)?;
            return self.begin_payload(header, rules, exchange);
        }
        // A control frame's payload is at most 125 bytes, as its header was checked for that.
        let payload_size =
            usize::try_from(header.payload_size).expect("a control frame has at most 125 bytes");
        let missing = header_size + payload_size - self.carried.len();
        let rest = exchange.rest();
        let taken = missing.min(rest.len());
        self.carried.extend_from_slice(&rest[..taken]);
        exchange.consumed += taken;
        if taken < missing {
            return Ok(None);
        }
        self.take_header(&header, rules, exchange)?;
        let mut bytes = std::mem::take(&mut self.carried);
        if let Some(key) = header.mask {
            mask::apply_with(rules.masker, &mut bytes[header_size..], key, 0);
        }
        self.control(header.opcode, Payload::Collected(Collected::new(bytes, header_size)), exchange)
    }

    #[inline]
    fn take_header(
        &mut self,
        header: &Header,
        rules: &Rules,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Violation> {
        let _message_size = self.sequence.admit(header, rules)?;
        exchange.received.count(header);
        Ok(())
    }

    /// Begins to collect a data frame's payload: it is fragmented, or does not end in this read.
    fn begin_payload(
        &mut self,
        header: Header,
        rules: &Rules,
        exchange: &mut Exchange<'_>,
    ) -> Result<Option<Event>, Violation> {
        if self.closing == Closing::Open && header.opcode != Opcode::Continuation {
            let kind = if header.opcode == Opcode::Text { MessageKind::Text } else { MessageKind::Binary };
            self.message = Some(PartialMessage {
                kind,
                is_compressed: header.is_compressed,
                bytes: vec![0; SERVER_HEADER_SIZE_MAX],
                utf8: Utf8Check::default(),
            });
        }
        self.continue_frame(PartialFrame { header, arrived: 0 }, rules, exchange)
    }

    /// Collects what has arrived of a data frame's payload.
    fn continue_frame(
        &mut self,
        mut frame: PartialFrame,
        rules: &Rules,
        exchange: &mut Exchange<'_>,
    ) -> Result<Option<Event>, Violation> {
        let rest = exchange.rest();
        let missing = frame.header.payload_size - frame.arrived;
        let taken = usize::try_from(missing).map_or(rest.len(), |missing| missing.min(rest.len()));
        let piece = &mut rest[..taken];
        if let Some(message) = &mut self.message {
            if let Some(key) = frame.header.mask {
                mask::apply_with(rules.masker, piece, key, frame.arrived);
            }
            if message.kind == MessageKind::Text && !message.is_compressed {
                message.utf8.push(piece).map_err(|_| Violation::InvalidUtf8)?;
            }
            message.bytes.extend_from_slice(piece);
        }
        exchange.consumed += taken;
        frame.arrived += taken as u64;
        if frame.arrived < frame.header.payload_size {
            self.frame = Some(frame);
            return Ok(None);
        }
        self.frame = None;
        if !frame.header.fin {
            return Ok(None);
        }
        // Without a message the endpoint has sent its Close, and what arrives is discarded.
        let Some(message) = self.message.take() else { return Ok(None) };
        let PartialMessage { kind, is_compressed, .. } = message;
        if kind == MessageKind::Text && !is_compressed {
            message.utf8.finish().map_err(|_| Violation::InvalidUtf8)?;
        }
        let payload = Payload::Collected(Collected::new(message.bytes, SERVER_HEADER_SIZE_MAX));
        Ok(Some(Event::Message { kind, payload, is_compressed }))
    }

    #[inline]
    fn control(
        &mut self,
        opcode: Opcode,
        payload: Payload,
        exchange: &Exchange<'_>,
    ) -> Result<Option<Event>, Violation> {
        match opcode {
            Opcode::Close => {
                let close = ClosePayload::parse(exchange.payload(&payload))?;
                self.closing = Closing::Received;
                Ok(Some(Event::Close(close.code, payload)))
            }
            // RFC 6455 section 5.5.1: nothing is sent after a Close, so there is nobody to ask for a Pong.
            _ if self.closing == Closing::Sent => Ok(None),
            Opcode::Ping => Ok(Some(Event::Ping(payload))),
            _ => Ok(Some(Event::Pong(payload))),
        }
    }
}

/// Unmasks a payload that lies wholly in the buffer, and takes its frame.
#[inline]
fn unmask_in_place(
    header: &Header,
    header_size: usize,
    rules: &Rules,
    exchange: &mut Exchange<'_>,
) -> Payload {
    let size = usize::try_from(header.payload_size).expect("the payload lies in the buffer");
    let payload = &mut exchange.rest()[header_size..header_size + size];
    if let Some(key) = header.mask {
        mask::apply_with(rules.masker, payload, key, 0);
    }
    let start = exchange.consumed + header_size;
    exchange.consumed = start + size;
    Payload::InPlace(start..start + size)
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
    const KEY: Option<[u8; 4]> = Some([0xa1, 0x02, 0xf3, 0x44]);

    /// What an endpoint reports and an echo of it replies, for input that comes in the pieces given.
    #[derive(Debug, PartialEq, Eq)]
    struct Record {
        events: Vec<(Opcode, Vec<u8>)>,
        replies: Vec<u8>,
        outcome: Result<(), Violation>,
    }

    fn run(input: &[u8], cuts: &[usize], rules: &Rules) -> Record {
        let mut endpoint = Endpoint::new();
        let mut record = Record { events: Vec::new(), replies: Vec::new(), outcome: Ok(()) };
        let mut start = 0;
        for end in cuts.iter().copied().chain([input.len()]) {
            let mut bytes = input[start..end].to_vec();
            start = end;
            let mut exchange = Exchange::new(&mut bytes);
            loop {
                match endpoint.receive(rules, &mut exchange) {
                    Ok(None) => break,
                    Ok(Some(Event::Message { kind, payload, .. })) => {
                        record.events.push((kind.opcode(), exchange.payload(&payload).to_vec()));
                        exchange.reply(kind.opcode(), payload);
                    }
                    Ok(Some(Event::Ping(payload))) => {
                        record.events.push((Opcode::Ping, exchange.payload(&payload).to_vec()));
                        exchange.reply(Opcode::Pong, payload);
                    }
                    Ok(Some(Event::Pong(payload))) => {
                        record.events.push((Opcode::Pong, exchange.payload(&payload).to_vec()));
                    }
                    Ok(Some(Event::Close(code, _))) => {
                        let code_bytes = code.map_or(Vec::new(), |code| code.get().to_be_bytes().to_vec());
                        record.events.push((Opcode::Close, code_bytes));
                        exchange.reply_close(code, "");
                    }
                    Err(violation) => {
                        record.outcome = Err(violation);
                        exchange.reply_close(Some(violation.close_code()), "");
                        break;
                    }
                }
            }
            let outgoing = exchange.finish();
            record.replies.extend_from_slice(&bytes[outgoing.in_place]);
            record.replies.extend_from_slice(&outgoing.spill);
            if record.outcome.is_err() {
                break;
            }
        }
        record
    }

    fn frames(frames: &[(Opcode, bool, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (opcode, fin, payload) in frames {
            append(&mut bytes, *opcode, *fin, payload, KEY);
        }
        bytes
    }

    /// Inputs that cross every path: whole, fragmented, interleaved, control, closing, violating.
    fn corpus() -> Vec<Vec<u8>> {
        let long: Vec<u8> = (0..300_u16).map(|index| (index % 251) as u8).collect();
        vec![
            frames(&[(Opcode::Text, true, "κόσμε".as_bytes()), (Opcode::Binary, true, &long)]),
            frames(&[
                (Opcode::Text, false, &"κόσμε".as_bytes()[..3]),
                (Opcode::Ping, true, b"between"),
                (Opcode::Continuation, false, b""),
                (Opcode::Continuation, true, &"κόσμε".as_bytes()[3..]),
                (Opcode::Pong, true, b"unasked"),
                (Opcode::Close, true, b"\x03\xe8bye"),
                (Opcode::Text, true, b"after the Close"),
            ]),
            frames(&[(Opcode::Binary, true, b""), (Opcode::Ping, true, b""), (Opcode::Close, true, b"")]),
            frames(&[(Opcode::Text, true, b"fine"), (Opcode::Continuation, true, b"nothing to continue")]),
            frames(&[(Opcode::Text, false, b"fine"), (Opcode::Text, true, b"interrupts")]),
            frames(&[(Opcode::Text, true, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80")]),
            frames(&[(Opcode::Ping, true, &[7; 125]), (Opcode::Close, true, b"\x03\xed")]),
            b"\x81\x83\x00\x00\x00\x00abc\xf1".to_vec(),
            b"\x82\x05unmasked".to_vec(),
        ]
    }

    #[test]
    fn every_split_into_three_gives_the_same() {
        for input in corpus() {
            let whole = run(&input, &[], &RULES);
            for first in 0..=input.len() {
                for second in first..=input.len() {
                    assert_eq!(
                        run(&input, &[first, second], &RULES),
                        whole,
                        "{input:x?} at {first}, {second}"
                    );
                }
            }
        }
    }

    #[test]
    fn byte_by_byte_gives_the_same() {
        for input in corpus() {
            let cuts: Vec<usize> = (1..input.len()).collect();
            assert_eq!(run(&input, &cuts, &RULES), run(&input, &[], &RULES));
        }
    }

    #[test]
    fn all_replies_of_a_read_are_one_piece_in_place() {
        let mut bytes = frames(&[
            (Opcode::Text, true, b"one"),
            (Opcode::Ping, true, b"two"),
            (Opcode::Binary, false, b"thr"),
            (Opcode::Continuation, true, b"ee"),
            (Opcode::Close, true, b"\x03\xe8"),
        ]);
        let mut endpoint = Endpoint::new();
        let mut exchange = Exchange::new(&mut bytes);
        while let Some(event) = endpoint.receive(&RULES, &mut exchange).expect("no rule is broken") {
            match event {
                Event::Message { kind, payload, .. } => exchange.reply(kind.opcode(), payload),
                Event::Ping(payload) => exchange.reply(Opcode::Pong, payload),
                Event::Pong(_) => {}
                Event::Close(code, _) => exchange.reply_close(code, ""),
            }
        }
        let outgoing = exchange.finish();
        assert_eq!(outgoing.spill, b"");
        assert_eq!(&bytes[outgoing.in_place], b"\x81\x03one\x8a\x03two\x82\x05three\x88\x02\x03\xe8");
    }

    #[test]
    fn at_rest_exactly_between_messages() {
        let input = frames(&[(Opcode::Text, false, b"ab"), (Opcode::Continuation, true, b"c")]);
        for end in 0..=input.len() {
            let mut bytes = input[..end].to_vec();
            let mut endpoint = Endpoint::new();
            let mut exchange = Exchange::new(&mut bytes);
            while endpoint.receive(&RULES, &mut exchange).expect("no rule is broken").is_some() {}
            assert_eq!(endpoint.is_at_rest(), end == 0 || end == input.len(), "after {end} bytes");
        }
    }

    #[test]
    fn after_our_close_only_the_peers_close_is_reported() {
        let mut bytes = frames(&[
            (Opcode::Text, true, b"late"),
            (Opcode::Binary, false, b"late"),
            (Opcode::Ping, true, b"late"),
            (Opcode::Continuation, true, b"late"),
            (Opcode::Close, true, b"\x03\xe9"),
        ]);
        let mut endpoint = Endpoint::new();
        endpoint.close_sent();
        let mut exchange = Exchange::new(&mut bytes);
        let event = endpoint.receive(&RULES, &mut exchange);
        assert!(matches!(event, Ok(Some(Event::Close(Some(CloseCode::GOING_AWAY), _)))));
        assert_eq!(endpoint.receive(&RULES, &mut exchange), Ok(None));
    }

    #[test]
    fn a_message_that_our_close_cuts_off_is_not_reported() {
        let input = frames(&[
            (Opcode::Text, false, b"before"),
            (Opcode::Continuation, true, b"after"),
            (Opcode::Close, true, b"\x03\xe9"),
        ]);
        for first in 1..input.len() - 8 {
            let (mut before, mut after) = (input[..first].to_vec(), input[first..].to_vec());
            let mut endpoint = Endpoint::new();
            assert_eq!(endpoint.receive(&RULES, &mut Exchange::new(&mut before)), Ok(None));
            endpoint.close_sent();
            let event = endpoint.receive(&RULES, &mut Exchange::new(&mut after));
            assert!(
                matches!(event, Ok(Some(Event::Close(Some(CloseCode::GOING_AWAY), _)))),
                "closed after {first} bytes"
            );
        }
    }

    #[test]
    fn a_claimed_length_reserves_no_memory() {
        let mut bytes = vec![0x82, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 1];
        let mut endpoint = Endpoint::new();
        let mut exchange = Exchange::new(&mut bytes);
        assert_eq!(endpoint.receive(&RULES, &mut exchange), Ok(None));
        let message = endpoint.message.expect("the message has begun");
        assert!(message.bytes.capacity() < 64, "{} bytes for one that arrived", message.bytes.capacity());
    }

    #[test]
    fn many_tiny_fragments_cost_their_bytes_alone() {
        let mut endpoint = Endpoint::new();
        let mut fragment = frames(&[(Opcode::Binary, false, b"x")]);
        for _ in 0..10_000 {
            let mut exchange = Exchange::new(&mut fragment);
            assert_eq!(endpoint.receive(&RULES, &mut exchange), Ok(None));
            fragment = frames(&[(Opcode::Continuation, false, b"x")]);
        }
        let message = endpoint.message.expect("the message is unfinished");
        assert_eq!(message.bytes.len(), SERVER_HEADER_SIZE_MAX + 10_000);
        assert!(message.bytes.capacity() <= 4 * 10_000);
    }

    #[test]
    fn a_violation_is_answered_after_the_replies_before_it() {
        let input = [frames(&[(Opcode::Text, true, b"ok")]), b"\xc1\x80".to_vec()].concat();
        let record = run(&input, &[], &RULES);
        assert_eq!(record.outcome, Err(Violation::ReservedBits));
        assert_eq!(record.replies, b"\x81\x02ok\x88\x02\x03\xea");
    }
}
