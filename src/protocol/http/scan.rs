//! Finding the end of a request head while its bytes arrive, refusing at once what no later byte can mend.

use super::refusal::{BadRequest, Refusal};

/// How many empty lines may stand before the request line (RFC 9112 section 2.2).
///
/// Clients of old sent one after a body; a few cost nothing, an endless run is an attack.
pub const LEADING_LINE_COUNT_MAX: u32 = 4;

/// The search for the end of one request head.
///
/// Every byte is looked at once, however the bytes were cut on their way, and the outcome depends on the bytes
/// alone. Grammar within a line is left to [`super::request::RequestHead::parse`]; what is refused here is what
/// a parser might forgive, or what makes the head longer than it may be.
#[derive(Clone, Debug)]
pub struct HeadScan {
    size_max: usize,
    field_count_max: usize,
    /// How many bytes need not be looked at again.
    looked: usize,
    /// Where the line that is being looked at began.
    line_start: usize,
    leading_line_count: u32,
    field_count: usize,
    /// True exactly while the request line is behind us.
    is_in_fields: bool,
}

impl HeadScan {
    /// A scan that accepts a head of at most `size_max` bytes, its end included, with at most `field_count_max`
    /// fields.
    pub const fn new(size_max: usize, field_count_max: usize) -> Self {
        Self {
            size_max,
            field_count_max,
            looked: 0,
            line_start: 0,
            leading_line_count: 0,
            field_count: 0,
            is_in_fields: false,
        }
    }

    /// Looks at what has arrived since the last call.
    ///
    /// `received` is everything since the start of the head, and begins with what the last call was given. Returns
    /// the size of the head, its empty line included, or `None` where more bytes must come. Bytes behind the head
    /// are not looked at.
    ///
    /// # Errors
    /// [`Refusal::TargetTooLong`] where the request line alone does not fit into the limit,
    /// [`Refusal::HeadTooLarge`] and [`Refusal::TooManyFields`] beyond the limits, [`Refusal::BadRequest`] for bare
    /// line ends, control bytes, folded fields and for other protocols than HTTP/1.
    pub fn scan(&mut self, received: &[u8]) -> Result<Option<usize>, Refusal> {
        debug_assert!(received.len() >= self.looked, "bytes that were looked at have gone");
        let within = &received[..received.len().min(self.size_max)];
        loop {
            if self.is_in_fields
                && self.looked == self.line_start
                && matches!(within.get(self.looked), Some(b' ' | b'\t'))
            {
                // RFC 9112 section 5.2: a folded field is refused; what one side unfolds, the other may not.
                return Err(BadRequest::FoldedField.into());
            }
            let Some(at) = find_control(within, self.looked) else {
                self.looked = within.len();
                break;
            };
            match (within[at], within.get(at + 1)) {
                (b'\r', Some(b'\n')) => {
                    if self.end_line(within, at)? {
                        return Ok(Some(self.looked));
                    }
                }
                // What follows decides whether this ends a line, or names the other protocol.
                (b'\r' | TLS_HANDSHAKE, None) => {
                    self.looked = at;
                    break;
                }
                (b'\r', Some(_)) => return Err(BadRequest::BareCr.into()),
                (b'\n', _) => return Err(BadRequest::BareLf.into()),
                (b'\t', _) => self.looked = at + 1,
                (TLS_HANDSHAKE, Some(3)) if at == 0 => return Err(BadRequest::TlsClientHello.into()),
                (0, _) if within[..at] == *b"\r\n\r\n" => return Err(BadRequest::ProxyHeader.into()),
                _ => return Err(BadRequest::ControlByte.into()),
            }
        }
        if within.len() < self.size_max {
            Ok(None)
        } else if self.is_in_fields {
            Err(Refusal::HeadTooLarge)
        } else {
            Err(Refusal::TargetTooLong)
        }
    }

    /// How many of the bytes need not be looked at again: all that were given, or all but the last one.
    pub(super) const fn looked(&self) -> usize {
        self.looked
    }

    /// Takes in the line that ends at `end`, where its CRLF stands, and tells whether it ended the head.
    fn end_line(&mut self, within: &[u8], end: usize) -> Result<bool, Refusal> {
        let line = &within[self.line_start..end];
        self.looked = end + 2;
        self.line_start = self.looked;
        match (self.is_in_fields, line) {
            (true, []) => return Ok(true),
            (true, _) => {
                self.field_count += 1;
                if self.field_count > self.field_count_max {
                    return Err(Refusal::TooManyFields);
                }
            }
            (false, []) => {
                self.leading_line_count += 1;
                if self.leading_line_count > LEADING_LINE_COUNT_MAX {
                    return Err(BadRequest::LeadingLines.into());
                }
            }
            (false, b"PRI * HTTP/2.0") => return Err(BadRequest::Http2Preface.into()),
            (false, [b'P', b'R', b'O', b'X', b'Y', b' ', ..]) => return Err(BadRequest::ProxyHeader.into()),
            (false, _) => self.is_in_fields = true,
        }
        Ok(false)
    }
}

/// The first byte of a TLS record that carries a handshake; the major version, 3, follows it.
const TLS_HANDSHAKE: u8 = 0x16;

/// The place of the first byte below 0x20 at or behind `from`.
///
/// Eight bytes at a time: in a head such a byte comes once a line.
fn find_control(bytes: &[u8], from: usize) -> Option<usize> {
    const EVERY_BYTE: u64 = 0x0101_0101_0101_0101;
    let mut at = from;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*chunk);
        // The top bit of each byte below 0x20. A borrow can only reach the bytes behind a hit, so the first is exact.
        let hits = word.wrapping_sub(EVERY_BYTE * 0x20) & !word & (EVERY_BYTE * 0x80);
        if hits != 0 {
            return Some(at + hits.trailing_zeros() as usize / 8);
        }
        at += chunk.len();
    }
    bytes[at..].iter().position(|byte| *byte < 0x20).map(|index| at + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_MAX: usize = 200;
    const COUNT_MAX: usize = 3;

    fn whole(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        HeadScan::new(SIZE_MAX, COUNT_MAX).scan(bytes)
    }

    /// The outcome when the bytes come one by one.
    fn drop_by_drop(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let mut scan = HeadScan::new(SIZE_MAX, COUNT_MAX);
        for size in 0..=bytes.len() {
            if let Some(end) = scan.scan(&bytes[..size])? {
                return Ok(Some(end));
            }
            assert!(scan.looked() + 1 >= size, "{size} bytes came, only {} are done with", scan.looked());
        }
        Ok(None)
    }

    fn refused(bytes: &[u8], expected: impl Into<Refusal>) {
        let expected = expected.into();
        assert_eq!(whole(bytes), Err(expected), "{:?}", bytes.escape_ascii().to_string());
        assert_eq!(drop_by_drop(bytes), Err(expected), "{:?}", bytes.escape_ascii().to_string());
    }

    #[test]
    fn the_head_ends_with_its_empty_line() {
        for head in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nTab:\ta\tb\r\n\r\n"] {
            let mut bytes = head.as_bytes().to_vec();
            assert_eq!(whole(&bytes), Ok(Some(head.len())));
            assert_eq!(whole(&bytes[..head.len() - 1]), Ok(None));
            bytes.extend_from_slice(b"\x00\n\x81\x85 what follows is not looked at");
            assert_eq!(whole(&bytes), Ok(Some(head.len())));
            assert_eq!(drop_by_drop(&bytes), Ok(Some(head.len())));
        }
    }

    #[test]
    fn a_crlf_before_the_request_line_is_ignored() {
        let head = b"\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        assert_eq!(whole(head), Ok(Some(head.len())));
        assert_eq!(drop_by_drop(head), Ok(Some(head.len())));
        refused(&b"\r\n".repeat(5), BadRequest::LeadingLines);
    }

    #[test]
    fn a_bare_lf_is_refused_as_it_arrives() {
        refused(b"GET / HTTP/1.1\n", BadRequest::BareLf);
        refused(b"\nGET / HTTP/1.1", BadRequest::BareLf);
        refused(b"GET / HTTP/1.1\r\nHost: a\n", BadRequest::BareLf);
        refused(b"GET / HTTP/1.1\r\nHost: a\r\n\n", BadRequest::BareLf);
    }

    #[test]
    fn a_bare_cr_is_refused_as_it_arrives() {
        refused(b"GET / HTTP/1.1\r\nHost: a\rX", BadRequest::BareCr);
        refused(b"GET / HTTP/1.1\r\r", BadRequest::BareCr);
        assert_eq!(whole(b"GET / HTTP/1.1\r"), Ok(None));
    }

    #[test]
    fn nul_and_other_control_bytes_are_refused_as_they_arrive() {
        for control in (0..0x20).filter(|byte| !b"\t\n\r\x16".contains(byte)) {
            refused(&[b'G', b'E', b'T', control], BadRequest::ControlByte);
        }
        refused(b"GET /\x16 ", BadRequest::ControlByte);
    }

    #[test]
    fn a_folded_field_is_refused() {
        refused(b"GET / HTTP/1.1\r\nHost: a\r\n b", BadRequest::FoldedField);
        refused(b"GET / HTTP/1.1\r\nHost: a\r\n\tb", BadRequest::FoldedField);
        refused(b"GET / HTTP/1.1\r\n Host: a", BadRequest::FoldedField);
    }

    #[test]
    fn a_head_larger_than_the_limit_is_refused() {
        let mut head = b"GET / HTTP/1.1\r\nHost: ".to_vec();
        head.resize(SIZE_MAX - 4, b'a');
        head.extend_from_slice(b"\r\n\r\n");
        assert_eq!(whole(&head), Ok(Some(SIZE_MAX)));
        assert_eq!(drop_by_drop(&head), Ok(Some(SIZE_MAX)));
        head.insert(30, b'a');
        refused(&head, Refusal::HeadTooLarge);
        refused(&head[..SIZE_MAX], Refusal::HeadTooLarge);
        assert_eq!(whole(&head[..SIZE_MAX - 1]), Ok(None));
    }

    #[test]
    fn a_request_line_larger_than_the_limit_is_refused() {
        let mut line = b"GET /".to_vec();
        line.resize(SIZE_MAX + 100, b'a');
        refused(&line, Refusal::TargetTooLong);
        line[SIZE_MAX - 1..=SIZE_MAX].copy_from_slice(b"\r\n");
        refused(&line, Refusal::TargetTooLong);
    }

    #[test]
    fn more_fields_than_the_limit_are_refused() {
        assert_eq!(whole(b"GET / HTTP/1.1\r\na: b\r\na: b\r\na: b\r\n\r\n"), Ok(Some(36)));
        refused(b"GET / HTTP/1.1\r\na: b\r\na: b\r\na: b\r\na: b\r\n", Refusal::TooManyFields);
    }

    #[test]
    fn other_protocols_are_named() {
        refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BadRequest::TlsClientHello);
        refused(b"\x16\x04", BadRequest::ControlByte);
        refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadRequest::Http2Preface);
        refused(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n", BadRequest::ProxyHeader);
        refused(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", BadRequest::ProxyHeader);
        assert_eq!(whole(b"\x16"), Ok(None));
    }

    #[test]
    fn a_control_byte_is_found_wherever_it_stands() {
        for size in 0..40 {
            let plain = vec![0xff; size];
            assert_eq!(find_control(&plain, 0), None);
            for at in 0..size {
                for before in [b' ', b'~', 0x80, 0xff] {
                    let mut bytes = vec![before; size];
                    bytes[at..].fill(0x1f);
                    assert_eq!(find_control(&bytes, 0), Some(at));
                    assert_eq!(find_control(&bytes, at), Some(at));
                }
            }
        }
    }
}
