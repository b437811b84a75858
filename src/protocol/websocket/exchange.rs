//! The bytes of one read, and the replies that take their place.
//!
//! A server's frame header is four bytes shorter than a client's, so the reply to a frame fits where the frame stood:
//! all replies of one read are composed in the buffer that was read and leave in one send, without a copy to another.
//! What does not fit (the reply to a frame that began in an earlier read) is appended to a spill behind them.

use std::ops::Range;

use super::close::{CloseCode, REASON_SIZE_MAX};
use super::frame::{Header, Opcode, SERVER_HEADER_SIZE_MAX, Tally};

/// Where a payload lies.
#[derive(Debug, PartialEq, Eq)]
pub enum Payload {
    /// Within the bytes of the read, unmasked.
    InPlace(Range<usize>),
    /// Collected over several reads.
    Collected(Collected),
}

/// A payload collected over several reads, with room for a reply's header in front of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Collected {
    bytes: Vec<u8>,
    /// Where the payload begins: at least as many bytes in as a server's header for it takes.
    start: usize,
}

impl Collected {
    /// A payload that begins `start` bytes into `bytes`.
    pub(super) fn new(bytes: Vec<u8>, start: usize) -> Self {
        debug_assert!(start <= bytes.len());
        Self { bytes, start }
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// One read and its replies.
#[derive(Debug)]
pub struct Exchange<'b> {
    buffer: &'b mut [u8],
    /// Bytes of `buffer` that the endpoint has taken; the replies never reach beyond.
    pub(super) consumed: usize,
    replies: Range<usize>,
    spill: Vec<u8>,
    /// What was received.
    pub received: Tally,
    /// What was replied.
    pub replied: Tally,
}

/// What an exchange leaves to send: first the range of the buffer, then the spill.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// Where in the buffer the replies lie.
    pub in_place: Range<usize>,
    /// What follows them; empty where all replies fitted.
    pub spill: Vec<u8>,
}

impl Outgoing {
    /// Bytes to send.
    pub fn size(&self) -> usize {
        self.in_place.len() + self.spill.len()
    }
}

impl<'b> Exchange<'b> {
    /// Begins with the bytes of a read.
    pub fn new(received: &'b mut [u8]) -> Self {
        Self {
            buffer: received,
            consumed: 0,
            replies: 0..0,
            spill: Vec::new(),
            received: Tally::default(),
            replied: Tally::default(),
        }
    }

    /// The bytes that the endpoint has not taken yet.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.buffer[self.consumed..]
    }

    /// Keeps the bytes that the endpoint has not taken yet, if there are any, for an exchange of their own.
    pub fn keep_rest(&self) -> Option<Box<[u8]>> {
        let rest = &self.buffer[self.consumed..];
        (!rest.is_empty()).then(|| rest.into())
    }

    /// The bytes of a payload that this exchange's endpoint reported.
    pub fn payload<'p>(&'p self, payload: &'p Payload) -> &'p [u8] {
        match payload {
            Payload::InPlace(range) => &self.buffer[range.clone()],
            Payload::Collected(collected) => collected.payload(),
        }
    }

    /// Replies with one whole, unmasked frame that carries the payload on.
    #[inline]
    pub fn reply(&mut self, opcode: Opcode, payload: Payload) {
        match payload {
            Payload::InPlace(range) if self.spill.is_empty() => self.reply_in_place(opcode, range),
            Payload::InPlace(range) => {
                let header = self.count_reply(opcode, range.len());
                append_header(&mut self.spill, &header);
                self.spill.extend_from_slice(&self.buffer[range]);
            }
            Payload::Collected(collected) => self.reply_collected(opcode, collected),
        }
    }

    /// Replies with one whole, unmasked frame of a payload that lies elsewhere, compressed or not (RFC 7692).
    pub fn reply_with(&mut self, opcode: Opcode, is_compressed: bool, payload: &[u8]) {
        let header = self.count_frame(opcode, is_compressed, payload.len());
        append_header(&mut self.spill, &header);
        self.spill.extend_from_slice(payload);
        self.settle_spill();
    }

    /// Replies with a Close frame, the last that this side sends.
    pub fn reply_close(&mut self, code: Option<CloseCode>, reason: &str) {
        debug_assert!(reason.len() <= REASON_SIZE_MAX);
        let size = if code.is_some() { 2 + reason.len() } else { 0 };
        let header = self.count_reply(Opcode::Close, size);
        append_header(&mut self.spill, &header);
        if let Some(code) = code {
            self.spill.extend_from_slice(&code.get().to_be_bytes());
            self.spill.extend_from_slice(reason.as_bytes());
        }
        self.settle_spill();
    }

    /// Ends the exchange and says what is to be sent.
    pub fn finish(self) -> Outgoing {
        Outgoing { in_place: self.replies, spill: self.spill }
    }

    #[inline]
    fn reply_in_place(&mut self, opcode: Opcode, range: Range<usize>) {
        debug_assert!(range.end <= self.consumed);
        let header = self.count_reply(opcode, range.len());
        if self.replies.is_empty() {
            // The first reply stays where its payload is; the header goes right before it.
            self.replies = range.start - header.size()..range.start - header.size();
        }
        let payload_start = self.replies.end + header.size();
        debug_assert!(payload_start <= range.start, "a reply is never longer than what it answers");
        header.write(&mut self.buffer[self.replies.end..]);
        self.replies.end = payload_start + range.len();
        if payload_start != range.start {
            self.buffer.copy_within(range, payload_start);
        }
    }

    fn reply_collected(&mut self, opcode: Opcode, collected: Collected) {
        let Collected { mut bytes, start } = collected;
        let header = self.count_reply(opcode, bytes.len() - start);
        if self.spill.is_empty() {
            // The collected bytes become the spill themselves: a message of megabytes is not copied.
            header.write(&mut bytes[start - header.size()..]);
            bytes.drain(..start - header.size());
            self.spill = bytes;
            self.settle_spill();
        } else {
            append_header(&mut self.spill, &header);
            self.spill.extend_from_slice(&bytes[start..]);
        }
    }

    /// Moves the spill into the buffer where that has room, so that later replies join the same send.
    fn settle_spill(&mut self) {
        let end = self.replies.end + self.spill.len();
        if end <= self.consumed {
            self.buffer[self.replies.end..end].copy_from_slice(&self.spill);
            self.replies.end = end;
            self.spill.clear();
        }
    }

    #[inline]
    fn count_reply(&mut self, opcode: Opcode, payload_size: usize) -> Header {
        self.count_frame(opcode, false, payload_size)
    }

    #[inline]
    fn count_frame(&mut self, opcode: Opcode, is_compressed: bool, payload_size: usize) -> Header {
        let payload_size = payload_size as u64;
        let header = Header { fin: true, opcode, is_compressed, mask: None, payload_size };
        self.replied.count(&header);
        header
    }
}

fn append_header(out: &mut Vec<u8>, header: &Header) {
    let mut bytes = [0; SERVER_HEADER_SIZE_MAX];
    let size = header.write(&mut bytes);
    out.extend_from_slice(&bytes[..size]);
}
