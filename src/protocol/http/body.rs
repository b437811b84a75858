//! Where the body of a response ends, so that it can be passed on as it comes (RFC 9112 sections 6 and 7.1).

use std::fmt;

use super::{
    request::{Version, number},
    response::ResponseHead,
};

/// The most bytes that the extensions of one chunk may have. They are passed on with it; nobody sends any.
pub const CHUNK_EXTENSIONS_SIZE_MAX: u32 = 256;

/// The most bytes that the trailers behind the last chunk may have, their line ends included.
pub const TRAILERS_SIZE_MAX: u32 = 8_192;

/// How the body of a response is framed (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// There is none: a response to HEAD, an interim one, 204, 304, or `Content-Length: 0`.
    None,
    /// This many bytes, at least 1.
    Length(u64),
    /// Chunks, ended by an empty one.
    Chunked,
    /// All bytes up to the end of the stream.
    UntilEnd,
}

/// Why it is not clear how a body is framed: two readers could take its end for two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingFault {
    /// `Transfer-Encoding` with `Content-Length`.
    Two,
    /// A `Content-Length` that is no number, or several that differ.
    ContentLength,
    /// A `Transfer-Encoding` other than chunked alone, or one in HTTP/1.0. None was asked for, so none is passed on.
    TransferEncoding,
}

/// The way through one body, from read to read. What it admits is passed on as it came, chunk sizes and all.
#[derive(Clone, Debug)]
pub struct BodyWalker {
    state: State,
}

/// What a walk over the bytes of one read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// How many of the bytes belong to the body.
    pub size: usize,
    /// Whether the body ends with them. Until it does, all bytes belong to it.
    pub is_complete: bool,
}

/// Why a body cannot be passed on to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// A chunk without a size in hexadecimal digits, or with more than 16 of them.
    ChunkSize,
    /// A line, or the data of a chunk, that CR LF does not end.
    LineEnd,
    /// A control byte in the extensions of a chunk or in a trailer, or a trailer that is folded.
    ControlByte,
    /// More than [`CHUNK_EXTENSIONS_SIZE_MAX`] bytes of extensions.
    ExtensionsTooLong,
    /// More than [`TRAILERS_SIZE_MAX`] bytes of trailers.
    TrailersTooLong,
    /// The stream ended before the body did.
    Truncated,
}

impl ResponseFraming {
    /// The framing of the response to a request, which was HEAD or was not.
    ///
    /// # Errors
    /// [`FramingFault`]: nothing behind the head can be passed on.
    pub fn of(head: &ResponseHead<'_>, is_to_head: bool) -> Result<Self, FramingFault> {
        let mut length = None;
        // RFC 9110 section 8.6: a number that is repeated, in one field or in several, may be taken as one.
        for value in head.values("content-length").flat_map(|value| value.split(|byte| *byte == b',')) {
            let found = number(value.trim_ascii()).ok_or(FramingFault::ContentLength)?;
            if length.replace(found).is_some_and(|before| before != found) {
                return Err(FramingFault::ContentLength);
            }
        }
        let is_encoded = head.values("transfer-encoding").next().is_some();
        if is_encoded && length.is_some() {
            return Err(FramingFault::Two);
        }
        if is_encoded {
            let mut codings = head.list("transfer-encoding");
            let is_chunked = codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
            if !is_chunked || codings.next().is_some() || head.version == Version::Http10 {
                return Err(FramingFault::TransferEncoding);
            }
        }
        Ok(match (head.status, length) {
            (100..=199 | 204 | 304, _) => Self::None,
            _ if is_to_head => Self::None,
            _ if is_encoded => Self::Chunked,
            (_, Some(0)) => Self::None,
            (_, Some(size)) => Self::Length(size),
            (_, None) => Self::UntilEnd,
        })
    }
}

/// Where a walk stands: before which byte.
#[derive(Clone, Copy, Debug)]
enum State {
    /// One of the missing bytes of a body of known size, at least one.
    Content { missing: u64 },
    /// Any, up to the end of the stream.
    Unbounded,
    /// A digit of a chunk's size; behind the first digit also what may follow a size.
    ChunkSize { size: u64, digit_count: u8 },
    /// Within what follows a chunk's size in its line. `is_blank` is true exactly while that is whitespace alone, which
    /// a semicolon has to follow.
    Extensions { chunk_size: u64, size: u32, is_blank: bool },
    /// The LF of a chunk's line.
    ChunkLineLf { chunk_size: u64 },
    /// One of the missing bytes of a chunk, at least one.
    Chunk { missing: u64 },
    /// The CR behind a chunk's data.
    ChunkCr,
    /// The LF behind a chunk's data.
    ChunkLf,
    /// Within the trailers, of which so many bytes have come.
    Trailers { size: u32, place: TrailerPlace },
    /// None: the body is complete.
    Complete,
}

/// Where in the trailers a walk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrailerPlace {
    /// At the start of a line, the empty one perhaps.
    LineStart,
    /// Within a line.
    Line,
    /// Before the LF of a line.
    LineLf,
    /// Before the LF of the empty line.
    LastLf,
}

impl BodyWalker {
    /// A walk through the body that begins behind the head.
    pub const fn new(framing: ResponseFraming) -> Self {
        Self {
            state: match framing {
                ResponseFraming::None | ResponseFraming::Length(0) => State::Complete,
                ResponseFraming::Length(size) => State::Content { missing: size },
                ResponseFraming::Chunked => State::ChunkSize { size: 0, digit_count: 0 },
                ResponseFraming::UntilEnd => State::Unbounded,
            },
        }
    }

    /// Whether the body has ended.
    pub const fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }

    /// Walks over the bytes of one read. Looks at no byte of content or of a chunk's data.
    ///
    /// # Errors
    /// [`BodyFault`]: nothing of this read is passed on, and the connection to the client is cut, by which it learns
    /// that the body is incomplete.
    pub fn walk(&mut self, bytes: &[u8]) -> Result<Walked, BodyFault> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.state {
                State::Complete => break,
                State::Unbounded => at = bytes.len(),
                State::Content { missing } => {
                    at += skip(missing, bytes.len() - at);
                    if *missing == 0 {
                        self.state = State::Complete;
                    }
                }
                State::Chunk { missing } => {
                    at += skip(missing, bytes.len() - at);
                    if *missing == 0 {
                        self.state = State::ChunkCr;
                    }
                }
                _ => {
                    self.state = self.state.after(bytes[at])?;
                    at += 1;
                }
            }
        }
        Ok(Walked { size: at, is_complete: self.is_complete() })
    }

    /// Takes in that the stream has ended.
    ///
    /// # Errors
    /// [`BodyFault::Truncated`] where the body had not.
    pub const fn end(&self) -> Result<(), BodyFault> {
        match self.state {
            State::Complete | State::Unbounded => Ok(()),
            _ => Err(BodyFault::Truncated),
        }
    }
}

impl State {
    /// The state behind a byte of the framing of chunks.
    fn after(self, byte: u8) -> Result<Self, BodyFault> {
        Ok(match self {
            Self::ChunkSize { size, digit_count } => match (char::from(byte).to_digit(16), byte) {
                (Some(_), _) if digit_count == 16 => return Err(BodyFault::ChunkSize),
                // At most 16 digits of 4 bits each: nothing is lost on the left.
                (Some(digit), _) => {
                    Self::ChunkSize { size: size << 4 | u64::from(digit), digit_count: digit_count + 1 }
                }
                (None, _) if digit_count == 0 => return Err(BodyFault::ChunkSize),
                (None, b'\r') => Self::ChunkLineLf { chunk_size: size },
                (None, b';') => Self::Extensions { chunk_size: size, size: 1, is_blank: false },
                (None, b' ' | b'\t') => Self::Extensions { chunk_size: size, size: 1, is_blank: true },
                (None, _) => return Err(BodyFault::ChunkSize),
            },
            Self::Extensions { size, .. } if size == CHUNK_EXTENSIONS_SIZE_MAX && byte != b'\r' => {
                return Err(BodyFault::ExtensionsTooLong);
            }
            Self::Extensions { chunk_size, size, is_blank } => match byte {
                b' ' | b'\t' => Self::Extensions { chunk_size, size: size + 1, is_blank },
                b';' => Self::Extensions { chunk_size, size: size + 1, is_blank: false },
                _ if is_blank => return Err(BodyFault::ChunkSize),
                b'\r' => Self::ChunkLineLf { chunk_size },
                _ if byte.is_ascii_control() => return Err(BodyFault::ControlByte),
                _ => Self::Extensions { chunk_size, size: size + 1, is_blank },
            },
            Self::ChunkLineLf { chunk_size: 0 } if byte == b'\n' => {
                Self::Trailers { size: 0, place: TrailerPlace::LineStart }
            }
            Self::ChunkLineLf { chunk_size } if byte == b'\n' => Self::Chunk { missing: chunk_size },
            Self::ChunkCr if byte == b'\r' => Self::ChunkLf,
            Self::ChunkLf if byte == b'\n' => Self::ChunkSize { size: 0, digit_count: 0 },
            Self::ChunkLineLf { .. } | Self::ChunkCr | Self::ChunkLf => return Err(BodyFault::LineEnd),
            Self::Trailers { size, place } => {
                if size == TRAILERS_SIZE_MAX {
                    return Err(BodyFault::TrailersTooLong);
                }
                let place = match (place, byte) {
                    (TrailerPlace::LineStart, b'\r') => TrailerPlace::LastLf,
                    (TrailerPlace::Line, b'\r') => TrailerPlace::LineLf,
                    (TrailerPlace::LineLf, b'\n') => TrailerPlace::LineStart,
                    (TrailerPlace::LastLf, b'\n') => return Ok(Self::Complete),
                    (TrailerPlace::LineLf | TrailerPlace::LastLf, _) => return Err(BodyFault::LineEnd),
                    (TrailerPlace::Line, b'\t') => TrailerPlace::Line,
                    (TrailerPlace::LineStart, b' ') => return Err(BodyFault::ControlByte),
                    _ if byte.is_ascii_control() => return Err(BodyFault::ControlByte),
                    _ => TrailerPlace::Line,
                };
                Self::Trailers { size: size + 1, place }
            }
            Self::Content { .. } | Self::Chunk { .. } | Self::Unbounded | Self::Complete => {
                unreachable!("content is not walked byte by byte")
            }
        })
    }
}

/// Takes as many of the missing bytes as there are, and returns how many that is.
fn skip(missing: &mut u64, available: usize) -> usize {
    let size = usize::try_from(*missing).map_or(available, |missing| missing.min(available));
    *missing -= size as u64;
    size
}

impl fmt::Display for FramingFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Two => "the response has both Transfer-Encoding and Content-Length",
            Self::ContentLength => "Content-Length in the response is not one number",
            Self::TransferEncoding => "Transfer-Encoding in the response is not chunked alone",
        })
    }
}

impl std::error::Error for FramingFault {}

impl fmt::Display for BodyFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ChunkSize => "a chunk of the response does not begin with its size",
            Self::LineEnd => "a chunk of the response, or a line of its framing, does not end in CR LF",
            Self::ControlByte => "the framing of the response's chunks holds a control byte",
            Self::ExtensionsTooLong => "a chunk of the response has too long extensions",
            Self::TrailersTooLong => "the response has too long trailers",
            Self::Truncated => "the connection ended before the response did",
        })
    }
}

impl std::error::Error for BodyFault {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::field_storage;

    fn framing(version: &str, status: u16, lines: &str) -> Result<ResponseFraming, FramingFault> {
        let head = format!("HTTP/{version} {status} x\r\n{lines}\r\n");
        let mut storage = field_storage();
        ResponseFraming::of(&ResponseHead::parse(head.as_bytes(), &mut storage).unwrap(), false)
    }

    /// Walks the bytes in the pieces that a cut at each place makes, and checks that all come to this.
    fn comes_to(framing: ResponseFraming, bytes: &[u8], expected: Result<(usize, bool), BodyFault>) {
        for cut in 0..=bytes.len() {
            let mut walker = BodyWalker::new(framing);
            let mut size = 0;
            let mut outcome = Ok(());
            for piece in [&bytes[..cut], &bytes[cut..]] {
                match walker.walk(piece) {
                    Ok(walked) => {
                        size += walked.size;
                        assert_eq!(walked.is_complete, walker.is_complete());
                        assert!(walked.is_complete || walked.size == piece.len());
                    }
                    Err(fault) => outcome = outcome.and(Err(fault)),
                }
                if outcome.is_err() {
                    break;
                }
            }
            let outcome = outcome.map(|()| (size, walker.is_complete()));
            assert_eq!(outcome, expected, "{} cut at {cut}", bytes.escape_ascii());
        }
    }

    fn chunked(bytes: &[u8], expected: Result<(usize, bool), BodyFault>) {
        comes_to(ResponseFraming::Chunked, bytes, expected);
    }

    #[test]
    fn some_responses_have_no_body_whatever_their_fields_say() {
        for status in [100, 101, 103, 204, 304] {
            assert_eq!(framing("1.1", status, "Content-Length: 5\r\n"), Ok(ResponseFraming::None));
            assert_eq!(framing("1.1", status, "Transfer-Encoding: chunked\r\n"), Ok(ResponseFraming::None));
        }
        let mut storage = field_storage();
        let head =
            ResponseHead::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &mut storage).unwrap();
        assert_eq!(ResponseFraming::of(&head, true), Ok(ResponseFraming::None));
        assert_eq!(ResponseFraming::of(&head, false), Ok(ResponseFraming::Length(5)));
    }

    #[test]
    fn the_framing_is_one_and_clear() {
        let of = |lines: &str| framing("1.1", 403, lines);
        assert_eq!(of(""), Ok(ResponseFraming::UntilEnd));
        assert_eq!(of("Transfer-Encoding: Chunked\r\n"), Ok(ResponseFraming::Chunked));
        assert_eq!(of("Content-Length: 0\r\n"), Ok(ResponseFraming::None));
        assert_eq!(of("Content-Length: 7\r\nContent-Length: 7 , 7\r\n"), Ok(ResponseFraming::Length(7)));
        for lines in ["7\r\nContent-Length: 8", "7, 8", "", "7,", "-1", "0x7", "18446744073709551616"] {
            assert_eq!(
                of(&format!("Content-Length: {lines}\r\n")),
                Err(FramingFault::ContentLength),
                "{lines}"
            );
        }
        for lines in ["gzip", "gzip, chunked", "chunked, chunked", "", "xchunked", "identity"] {
            let lines = format!("Transfer-Encoding: {lines}\r\n");
            assert_eq!(of(&lines), Err(FramingFault::TransferEncoding), "{lines}");
        }
        let both = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n";
        assert_eq!(of(both), Err(FramingFault::Two));
        assert_eq!(framing("1.1", 204, both), Err(FramingFault::Two));
        let old = framing("1.0", 200, "Transfer-Encoding: chunked\r\n");
        assert_eq!(old, Err(FramingFault::TransferEncoding));
        assert_eq!(framing("1.0", 200, ""), Ok(ResponseFraming::UntilEnd));
    }

    #[test]
    fn a_length_is_walked_to_its_end() {
        comes_to(ResponseFraming::None, b"more", Ok((0, true)));
        comes_to(ResponseFraming::Length(3), b"ab", Ok((2, false)));
        comes_to(ResponseFraming::Length(3), b"abc", Ok((3, true)));
        comes_to(ResponseFraming::Length(3), b"abcd\r\n", Ok((3, true)));
        comes_to(ResponseFraming::Length(u64::MAX), b"abc", Ok((3, false)));
    }

    #[test]
    fn without_a_length_the_end_of_the_stream_is_that_of_the_body() {
        comes_to(ResponseFraming::UntilEnd, b"0\r\n\r\n", Ok((5, false)));
        assert_eq!(BodyWalker::new(ResponseFraming::UntilEnd).end(), Ok(()));
        assert_eq!(BodyWalker::new(ResponseFraming::None).end(), Ok(()));
        assert_eq!(BodyWalker::new(ResponseFraming::Length(1)).end(), Err(BodyFault::Truncated));
        assert_eq!(BodyWalker::new(ResponseFraming::Chunked).end(), Err(BodyFault::Truncated));
    }

    #[test]
    fn chunks_are_walked_to_the_empty_one() {
        chunked(b"0\r\n\r\n", Ok((5, true)));
        chunked(b"3\r\nabc\r\n00A\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\nHTTP/1.1", Ok((30, true)));
        chunked(b"3\r\nabc\r\n0\r\n\r", Ok((12, false)));
        chunked(b"ffffffffffffffff\r\nabc", Ok((21, false)));
    }

    #[test]
    fn extensions_and_trailers_pass() {
        let body = b"1;a=\"b\"\r\nx\r\n1 \t; c\r\ny\r\n0;z\r\nDigest: a\tb\r\nExpires: caf\xe9\r\n\r\n";
        chunked(&[body, &b"more"[..]].concat(), Ok((body.len(), true)));
    }

    #[test]
    fn a_chunk_begins_with_its_size_in_16_digits_at_most() {
        for bad in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"1_0\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"1\t 1",
            b";a\r\n",
            b"1\r\nx\r\n\r\n",
            b"00000000000000001\r\n",
        ] {
            chunked(bad, Err(BodyFault::ChunkSize));
        }
    }

    #[test]
    fn lines_and_chunks_end_in_cr_lf() {
        for bad in [
            &b"1\n"[..],
            b"1\r\rx",
            b"1\r\nxy\r\n",
            b"1\r\nx\n",
            b"1\r\nx\r\r",
            b"0\r\n\r\r",
            b"0\r\na: b\r\r",
        ] {
            let fault = if bad == b"1\n" { BodyFault::ChunkSize } else { BodyFault::LineEnd };
            chunked(bad, Err(fault));
        }
        for bad in
            [&b"1;a\n"[..], b"1;a\0", b"0\r\n\n", b"0\r\na: b\n", b"0\r\na: \x7f", b"0\r\n a", b"0\r\n\ta"]
        {
            chunked(bad, Err(BodyFault::ControlByte));
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extensions = |size: usize| ["1;", &"a".repeat(size - 1), "\r\nx\r\n"].concat();
        let size_max = usize::try_from(CHUNK_EXTENSIONS_SIZE_MAX).unwrap();
        let longest = extensions(size_max);
        chunked(longest.as_bytes(), Ok((longest.len(), false)));
        chunked(extensions(size_max + 1).as_bytes(), Err(BodyFault::ExtensionsTooLong));

        let walk = |trailers: String| BodyWalker::new(ResponseFraming::Chunked).walk(trailers.as_bytes());
        let size_max = usize::try_from(TRAILERS_SIZE_MAX).unwrap();
        let trailers = |size: usize| ["0\r\n", &"a".repeat(size - 4), "\r\n\r\n"].concat();
        assert_eq!(walk(trailers(size_max)), Ok(Walked { size: 3 + size_max, is_complete: true }));
        assert_eq!(walk(trailers(size_max + 1)), Err(BodyFault::TrailersTooLong));
        assert_eq!(walk("0\r\n".to_owned() + &"a:\r\n".repeat(size_max)), Err(BodyFault::TrailersTooLong));
    }
}
