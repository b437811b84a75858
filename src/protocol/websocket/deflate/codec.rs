//! A shard's compressors and its inflater, which serve all of its connections one after the other.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::WINDOW_BITS_MAX;
use super::contexts::Contexts;
use crate::protocol::websocket::violation::Violation;

/// What a compressed message lacks at its end, the last bytes of an empty block (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// The same, and a last block that is empty: an inflater that does not come to its end was not at the end of a block, so
/// the message was cut or is no message.
const TAIL_AND_END: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];
/// How many blocks of a message may say that they are the last (RFC 7692 section 7.2.3.4). Each costs a new beginning, and
/// a message has no reason for more than one.
const ENDS_MAX: u32 = 16;

/// Room for what is inflated, at the beginning and when nothing larger was inflated for a while, in bytes: what most
/// messages fit in, and at least two of the largest windows.
const ROOM_MIN: usize = 64 << 10;
/// The most room for what is inflated before it is known how much there is, in bytes.
const ROOM_UNSEEN_MAX: usize = 512 << 10;
/// The largest window, in bytes.
const WINDOW_SIZE_MAX: usize = 1 << WINDOW_BITS_MAX;
/// How much of an unfinished message has come when it is first looked into.
const FIRST_LOOK_SIZE: usize = 16 << 10;

/// What inflates and compresses.
#[derive(Debug, Default)]
pub struct Codec {
    /// For what comes.
    pub inflater: Inflater,
    /// For what is sent.
    pub compressors: Compressors,
}

impl Codec {
    /// Gives back what a large message took.
    pub fn trim(&mut self) {
        for room in [&mut self.inflater.room, &mut self.compressors.room] {
            if room.len() > ROOM_MIN {
                *room = Vec::new();
            }
        }
    }
}

/// Inflates messages, with a limit on what they come to.
#[derive(Debug, Default)]
pub struct Inflater {
    /// `None` until there is something to inflate.
    stream: Option<Stream>,
    /// What is inflated, and room for more.
    room: Vec<u8>,
}

/// Why a message is not inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It is no compressed message.
    Malformed,
    /// It comes to more than the limit.
    TooBig,
}

/// How far a message was inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inflated {
    /// All of it: this many bytes.
    All(usize),
    /// As much as there was room for.
    Some,
}

/// What becomes of what is inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    /// It is kept, if it is no more than this.
    Kept { size_max: usize },
    /// It is counted.
    Counted,
}

/// zlib's inflater.
#[derive(Debug)]
struct Stream(Decompress);

impl Inflater {
    /// Inflates a message that has come whole. What it comes to is held against the limit, in bytes, while it is inflated,
    /// and until that is known takes no more memory than 512 KiB: a bomb costs the time until it is told.
    ///
    /// # Errors
    /// [`Violation::MessageTooBig`], or [`Violation::InvalidDeflate`].
    pub fn inflate(
        &mut self,
        contexts: &mut Contexts,
        payload: &[u8],
        limit: u64,
    ) -> Result<&[u8], Violation> {
        let limit_size = usize::try_from(limit).unwrap_or(usize::MAX);
        let size = self
            .inflate_all(payload, &contexts.received, limit_size)
            .map_err(|fault| fault.violation(limit))?;
        let message = &self.room[..size];
        contexts.note_received(message);
        Ok(message)
    }

    /// Looks into the beginning of a message, lest a bomb is waited for: `before` bytes of it had come when it was last
    /// offered. Looks twice at each byte in all, however the message comes.
    ///
    /// # Errors
    /// As [`Self::inflate`].
    pub fn look_into(
        &mut self,
        contexts: &Contexts,
        unfinished: &[u8],
        before: usize,
        limit: u64,
    ) -> Result<(), Violation> {
        let size = unfinished.len();
        if size < FIRST_LOOK_SIZE || (before >= FIRST_LOOK_SIZE && size.ilog2() == before.ilog2()) {
            return Ok(());
        }
        let limit_size = usize::try_from(limit).unwrap_or(usize::MAX);
        let input = Input { payload: unfinished, tail: &[] };
        self.run(input, &contexts.received, limit_size, Sink::Counted)
            .map(drop)
            .map_err(|fault| fault.violation(limit))
    }

    fn inflate_all(&mut self, payload: &[u8], window: &[u8], limit: usize) -> Result<usize, Fault> {
        let input = Input { payload, tail: &TAIL_AND_END };
        let size_max = ROOM_UNSEEN_MAX;
        if let Inflated::All(size) = self.run(input, window, limit, Sink::Kept { size_max })? {
            return Ok(size);
        }
        let Inflated::All(size) = self.run(input, window, limit, Sink::Counted)? else {
            unreachable!("counting needs no room");
        };
        // One more, so that the inflater sees that there is no more.
        let size_max = size + 1;
        self.room = vec![0; size_max];
        let again = self.run(input, window, limit, Sink::Kept { size_max })?;
        debug_assert_eq!(again, Inflated::All(size), "the same message comes to the same");
        Ok(size)
    }

    /// Inflates the input, from this window on.
    fn run(
        &mut self,
        mut input: Input<'_>,
        window: &[u8],
        limit: usize,
        sink: Sink,
    ) -> Result<Inflated, Fault> {
        let is_unfinished = input.tail.is_empty();
        let stream = &mut self.stream.get_or_insert_with(Stream::new).0;
        restart(stream, window)?;
        if self.room.is_empty() {
            self.room = vec![0; ROOM_MIN];
        }
        // What was inflated in all, and where in the room its end is.
        let (mut size, mut end) = (0, 0);
        let mut ends = 0;
        loop {
            if end == self.room.len() {
                match sink {
                    Sink::Counted => {
                        self.room.copy_within(end - WINDOW_SIZE_MAX.., 0);
                        end = WINDOW_SIZE_MAX;
                    }
                    Sink::Kept { size_max } if end < size_max => {
                        self.room.resize((2 * end).min(size_max), 0);
                    }
                    Sink::Kept { .. } => return Ok(Inflated::Some),
                }
            }
            let before = (stream.total_in(), stream.total_out());
            let status = stream
                .decompress(input.next(), &mut self.room[end..], FlushDecompress::None)
                .map_err(|_| Fault::Malformed)?;
            let taken = usize_of(stream.total_in() - before.0);
            let made = usize_of(stream.total_out() - before.1);
            input.take(taken);
            end += made;
            size += made;
            if size > limit {
                return Err(Fault::TooBig);
            }
            if status == Status::StreamEnd {
                if input.is_at_end() {
                    return Ok(Inflated::All(size));
                }
                ends += 1;
                if ends > ENDS_MAX {
                    return Err(Fault::Malformed);
                }
                let kept = end.min(WINDOW_SIZE_MAX);
                let older = &window[window.len() - window.len().min(WINDOW_SIZE_MAX - kept)..];
                restart(stream, &[older, &self.room[end - kept..end]].concat())?;
            } else if input.next().is_empty() && end < self.room.len() {
                return if is_unfinished { Ok(Inflated::All(size)) } else { Err(Fault::Malformed) };
            } else if taken == 0 && made == 0 {
                return Err(Fault::Malformed);
            }
        }
    }
}

/// A message on its way into the inflater.
#[derive(Clone, Copy, Debug)]
struct Input<'p> {
    payload: &'p [u8],
    /// What it lacks; nothing, where more of it is to come.
    tail: &'static [u8],
}

impl<'p> Input<'p> {
    /// What comes next; nothing at the end.
    const fn next(&self) -> &'p [u8] {
        if self.payload.is_empty() { self.tail } else { self.payload }
    }

    fn take(&mut self, size: usize) {
        if self.payload.is_empty() {
            self.tail = &self.tail[size..];
        } else {
            self.payload = &self.payload[size..];
        }
    }

    /// Whether a block that says that it is the last one is: nothing of the message is behind it.
    const fn is_at_end(&self) -> bool {
        self.payload.is_empty() && matches!(self.tail.len(), 0 | 9)
    }
}

impl Fault {
    const fn violation(self, limit: u64) -> Violation {
        match self {
            Self::Malformed => Violation::InvalidDeflate,
            Self::TooBig => Violation::MessageTooBig { size: limit + 1, limit },
        }
    }
}

impl Stream {
    fn new() -> Self {
        // Whatever window was agreed on: some who promise a smaller one use more.
        Self(Decompress::new_with_window_bits(false, WINDOW_BITS_MAX))
    }
}

/// Begins a new stream, whose first bytes may refer to this window.
fn restart(stream: &mut Decompress, window: &[u8]) -> Result<(), Fault> {
    stream.reset(false);
    if window.is_empty() {
        return Ok(());
    }
    stream.set_dictionary(window).map(drop).map_err(|_| Fault::Malformed)
}

fn usize_of(size: u64) -> usize {
    usize::try_from(size).expect("it is the size of something in memory")
}

/// Compresses messages.
#[derive(Debug, Default)]
pub struct Compressors {
    /// One for each level and size of window that anybody has agreed on: all of them are few.
    streams: Vec<Compressor>,
    /// What is compressed, or room for it.
    room: Vec<u8>,
}

/// zlib's compressor, of one level and one size of window.
#[derive(Debug)]
struct Compressor {
    level: u8,
    bits: u8,
    stream: Compress,
}

impl Compressors {
    /// The message compressed, by a level of 1 to 9; `None` where that would not make it smaller, so that it is better sent
    /// as it is.
    pub fn compress(&mut self, contexts: &mut Contexts, level: u8, message: &[u8]) -> Option<&[u8]> {
        let bits = contexts.terms().compressor_bits();
        let place = self.streams.iter().position(|one| (one.level, one.bits) == (level, bits));
        let place = place.unwrap_or_else(|| {
            let stream = Compress::new_with_window_bits(Compression::new(u32::from(level)), false, bits);
            self.streams.push(Compressor { level, bits, stream });
            self.streams.len() - 1
        });
        let stream = &mut self.streams[place].stream;
        stream.reset();
        if !contexts.sent.is_empty() {
            stream.set_dictionary(&contexts.sent).ok()?;
        }
        // More room than is ever needed: the worst of a level is 9 bits for a byte, and zlib-rs 0.6 panics at level 1 where it
        // has written as much as there was room for.
        let room_size = message.len() + message.len() / 8 + 256;
        if self.room.len() < room_size {
            self.room.resize(room_size, 0);
        }
        let room = &mut self.room[..room_size];
        stream.compress(message, room, FlushCompress::Sync).ok()?;
        let size = usize_of(stream.total_out());
        debug_assert!(size < room_size && usize_of(stream.total_in()) == message.len());
        let compressed =
            room[..size].strip_suffix(&TAIL).filter(|compressed| compressed.len() < message.len())?;
        contexts.note_sent(message);
        Some(compressed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Policy, Terms};
    use super::*;

    const LIMIT: u64 = 16 << 20;

    fn contexts(offer: &str, policy: Policy) -> Contexts {
        Contexts::new(Terms::agree([offer.as_bytes()].into_iter(), policy).expect("the offer makes sense"))
    }

    /// A connection on which nobody keeps a context.
    fn shared() -> Contexts {
        contexts("permessage-deflate", Policy { keeps_contexts: false, window_bits: 15 })
    }

    /// What a client may send that compresses as zlib does by default.
    fn compressed(message: &[u8]) -> Vec<u8> {
        let mut stream = Compress::new_with_window_bits(Compression::new(6), false, 15);
        let mut out = vec![0; message.len() * 2 + 64];
        stream.compress(message, &mut out, FlushCompress::Sync).unwrap();
        out.truncate(usize_of(stream.total_out()));
        out.strip_suffix(&TAIL).expect("a flush ends so").to_vec()
    }

    /// Text of this size that compresses as text does.
    fn text(size: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(size + 32);
        for number in 0_u64.. {
            if text.len() >= size {
                break;
            }
            text.extend_from_slice(
                format!("{{\"number\":{},", number.wrapping_mul(0x9e37_79b9) % 10_000).as_bytes(),
            );
        }
        text.truncate(size);
        text
    }

    /// Bytes of this size that do not compress.
    fn noise(size: usize) -> Vec<u8> {
        let mut random = crate::protocol::websocket::fuzz::Random(size as u64);
        (0..size).map(|_| random.bits().to_le_bytes()[3]).collect()
    }

    #[test]
    fn what_is_compressed_inflates_to_the_same_at_every_level_and_window() {
        for bits in 8..=15 {
            for keeps_contexts in [false, true] {
                let offer = format!("permessage-deflate; server_max_window_bits={bits}");
                let policy = Policy { keeps_contexts, window_bits: 15 };
                let mut codec = Codec::default();
                let mut ours = contexts(&offer, policy);
                // The peer inflates with no more than the window that was agreed on.
                let mut peer = Decompress::new_with_window_bits(false, bits.max(9));
                for level in [1, 4, 6, 9] {
                    for size in [200, 1000, 20_000, 100_000, 1_000] {
                        let message = text(size);
                        let Some(sent) = codec.compressors.compress(&mut ours, level, &message) else {
                            panic!("{size} bytes at level {level} become smaller")
                        };
                        if !keeps_contexts {
                            peer.reset(false);
                        }
                        let input = [sent, &TAIL].concat();
                        let mut out = vec![0; size + 1];
                        let before = peer.total_out();
                        peer.decompress(&input, &mut out, FlushDecompress::Sync).unwrap();
                        assert_eq!(peer.total_out() - before, size as u64, "{bits} {level} {size}");
                        assert_eq!(out[..size], message);
                    }
                }
                assert!(ours.held_size() <= if keeps_contexts { 1 << bits } else { 0 });
            }
        }
    }

    #[test]
    fn a_context_that_is_kept_is_one_that_zlib_keeps_too() {
        let policy = Policy { keeps_contexts: true, window_bits: 12 };
        let mut ours = contexts("permessage-deflate; client_max_window_bits", policy);
        let mut theirs = Compress::new_with_window_bits(Compression::new(6), false, 12);
        let mut inflater = Inflater::default();
        for size in [10, 3000, 1, 50_000, 4096, 700] {
            let message = text(size);
            let (before, mut out) = (theirs.total_out(), vec![0; size + 64]);
            theirs.compress(&message, &mut out, FlushCompress::Sync).unwrap();
            out.truncate(usize_of(theirs.total_out() - before));
            let payload = out.strip_suffix(&TAIL).unwrap();
            assert_eq!(inflater.inflate(&mut ours, payload, LIMIT), Ok(&message[..]));
        }
        assert_eq!(ours.held_size(), 4096);
    }

    #[test]
    fn messages_of_every_size_are_inflated_whole() {
        let mut inflater = Inflater::default();
        for size in [0, 1, 65_535, 65_536, 65_537, 512 << 10, (512 << 10) + 1, 3 << 20] {
            for message in [text(size), noise(size)] {
                let payload = compressed(&message);
                let inflated = inflater.inflate(&mut shared(), &payload, LIMIT).unwrap();
                assert!(inflated == message, "{size}");
                let exact = size as u64;
                assert!(inflater.inflate(&mut shared(), &payload, exact).is_ok());
                if size > 0 {
                    let limit = exact - 1;
                    let expected = Err(Violation::MessageTooBig { size: exact, limit });
                    assert_eq!(inflater.inflate(&mut shared(), &payload, limit).map(<[u8]>::len), expected);
                }
            }
        }
    }

    /// RFC 7692 sections 7.2.3.1 to 7.2.3.5, the examples.
    #[test]
    fn the_examples_of_the_rfc_inflate() {
        let mut inflater = Inflater::default();
        for payload in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
            // As libraries end a message that leave the last empty block out.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(inflater.inflate(&mut shared(), payload, 5), Ok(&b"Hello"[..]), "{payload:x?}");
        }
        // Section 7.2.3.2: the second message refers to the first.
        let mut kept = contexts(
            "permessage-deflate; client_max_window_bits",
            Policy { keeps_contexts: true, window_bits: 15 },
        );
        let first = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflater.inflate(&mut kept, &first, 5), Ok(&b"Hello"[..]));
        assert_eq!(inflater.inflate(&mut kept, &[0xf2, 0x00, 0x11, 0x00, 0x00], 5), Ok(&b"Hello"[..]));
        assert_eq!(
            inflater.inflate(&mut shared(), &[0xf2, 0x00, 0x11, 0x00, 0x00], 5),
            Err(Violation::InvalidDeflate)
        );
    }

    #[test]
    fn what_is_no_compressed_message_is_told() {
        let mut inflater = Inflater::default();
        let good = compressed(&text(1000));
        let mut end = 1;
        while end < good.len() {
            let cut = inflater.inflate(&mut shared(), &good[..end], LIMIT);
            assert_eq!(cut.map(<[u8]>::len), Err(Violation::InvalidDeflate), "cut after {end}");
            end += 1;
        }
        for bad in [&b""[..], b"\xff", b"\x07", b"plain text", &[0x04; 64]] {
            let inflated = inflater.inflate(&mut shared(), bad, LIMIT);
            assert_eq!(inflated.map(<[u8]>::len), Err(Violation::InvalidDeflate), "{bad:x?}");
        }
        // One that ends again and again.
        let ends = [&[3, 0].repeat(2 * ENDS_MAX as usize)[..], &[0]].concat();
        assert_eq!(inflater.inflate(&mut shared(), &ends, LIMIT), Err(Violation::InvalidDeflate));
        assert_eq!(inflater.inflate(&mut shared(), &[3, 0, 3, 0, 0], LIMIT), Ok(&b""[..]));
    }

    #[test]
    fn a_bomb_takes_no_room_and_is_told_long_before_its_end() {
        let mut inflater = Inflater::default();
        let bomb = compressed(&vec![0; 64 << 20]);
        assert!(bomb.len() > 3 * FIRST_LOOK_SIZE, "{}", bomb.len());
        let too_big = Err(Violation::MessageTooBig { size: LIMIT + 1, limit: LIMIT });
        assert_eq!(inflater.inflate(&mut shared(), &bomb, LIMIT).map(<[u8]>::len), too_big);
        assert!(inflater.room.capacity() <= ROOM_UNSEEN_MAX, "{}", inflater.room.capacity());

        // It comes in pieces of a kilobyte.
        let mut size = 0;
        let told = loop {
            let before = size;
            size += 1024;
            if inflater.look_into(&shared(), &bomb[..size], before, LIMIT).is_err() {
                break size;
            }
        };
        assert_eq!(told, FIRST_LOOK_SIZE);
    }

    #[test]
    fn an_unfinished_message_is_looked_into_as_often_as_it_doubles() {
        let mut inflater = Inflater::default();
        let payload = compressed(&noise(300_000));
        let mut before = 0;
        for end in (1..payload.len()).step_by(777) {
            assert_eq!(inflater.look_into(&shared(), &payload[..end], before, LIMIT), Ok(()));
            before = end;
        }
        let malformed = [0xff; FIRST_LOOK_SIZE];
        assert_eq!(inflater.look_into(&shared(), &malformed, 0, LIMIT), Err(Violation::InvalidDeflate));
        assert_eq!(inflater.look_into(&shared(), &malformed, FIRST_LOOK_SIZE, LIMIT), Ok(()));
        assert_eq!(inflater.look_into(&shared(), &malformed[1..], 0, LIMIT), Ok(()));
    }

    #[test]
    fn what_would_not_become_smaller_is_not_compressed() {
        let mut codec = Codec::default();
        for size in [0, 1, 10, 1000, 100_000] {
            let mut ours = shared();
            assert_eq!(codec.compressors.compress(&mut ours, 1, &noise(size)), None, "{size}");
        }
    }

    #[test]
    fn a_large_message_leaves_no_room_behind() {
        let mut codec = Codec::default();
        let message = text(2 << 20);
        let payload = compressed(&message);
        assert!(codec.inflater.inflate(&mut shared(), &payload, LIMIT).is_ok());
        assert!(codec.compressors.compress(&mut shared(), 1, &message).is_some());
        codec.trim();
        assert!(codec.inflater.room.capacity() + codec.compressors.room.capacity() <= 2 * ROOM_MIN);
        assert_eq!(codec.inflater.inflate(&mut shared(), &compressed(b"again"), 5), Ok(&b"again"[..]));
    }
}
