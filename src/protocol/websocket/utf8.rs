//! UTF-8 checking across fragment boundaries, failing at the first bad byte (RFC 6455 section 8.1).

/// The bytes as text, if they are UTF-8.
pub fn validate(bytes: &[u8]) -> Option<&str> {
    simdutf8::basic::from_utf8(bytes).ok()
}

/// A check of text that arrives in pieces.
///
/// It holds the bytes of at most one unfinished character between pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Utf8Check {
    /// The first bytes of a character whose rest is still to come.
    partial: [u8; 3],
    partial_size: u8,
}

/// Text that is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidUtf8;

impl Utf8Check {
    /// Checks the next piece.
    ///
    /// # Errors
    /// [`InvalidUtf8`] as soon as no continuation could make the text valid.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), InvalidUtf8> {
        let piece = self.finish_character(piece)?;
        match simdutf8::compat::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                let rest = &piece[error.valid_up_to()..];
                self.partial[..rest.len()].copy_from_slice(rest);
                self.partial_size =
                    u8::try_from(rest.len()).expect("an unfinished character has at most 3 bytes");
                Ok(())
            }
            Err(_) => Err(InvalidUtf8),
        }
    }

    /// Checks that the text may end here.
    ///
    /// # Errors
    /// [`InvalidUtf8`] in the middle of a character.
    pub fn finish(self) -> Result<(), InvalidUtf8> {
        if self.partial_size == 0 { Ok(()) } else { Err(InvalidUtf8) }
    }

    /// Completes the unfinished character with the piece's first bytes and returns the rest of the piece.
    fn finish_character<'a>(&mut self, piece: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        if self.partial_size == 0 {
            return Ok(piece);
        }
        let mut character = [0; 4];
        let mut size = usize::from(self.partial_size);
        character[..size].copy_from_slice(&self.partial[..size]);
        for (index, byte) in piece.iter().enumerate() {
            character[size] = *byte;
            size += 1;
            match std::str::from_utf8(&character[..size]) {
                Ok(_) => {
                    self.partial_size = 0;
                    return Ok(&piece[index + 1..]);
                }
                Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
                Err(_) => {}
            }
        }
        self.partial[..size].copy_from_slice(&character[..size]);
        self.partial_size = u8::try_from(size).expect("an unfinished character has at most 3 bytes");
        Ok(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&[u8]]) -> Result<(), InvalidUtf8> {
        let mut check = Utf8Check::default();
        for piece in pieces {
            check.push(piece)?;
        }
        check.finish()
    }

    #[test]
    fn every_split_of_valid_text_passes() {
        let text = "κόσμε \u{10ffff} ﷽ x".as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                assert_eq!(check(&[&text[..first], &text[first..second], &text[second..]]), Ok(()));
            }
        }
    }

    #[test]
    fn the_first_bad_byte_fails_at_once() {
        for bad in [&b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80"[..], b"\xf4\x90", b"\xc0\xaf", b"\xf8", b"\x80"] {
            for split in 0..bad.len() {
                let mut whole = Utf8Check::default();
                let outcome = whole.push(&bad[..split]).and_then(|()| whole.push(&bad[split..]));
                assert_eq!(outcome, Err(InvalidUtf8), "{bad:x?} split at {split}");
            }
        }
    }

    #[test]
    fn text_may_not_end_within_a_character() {
        assert_eq!(check(&[b"\xf0\x9f", b"\x98"]), Err(InvalidUtf8));
        assert_eq!(check(&[b"\xf0\x9f", b"\x98", b"\x80"]), Ok(()));
    }
}
