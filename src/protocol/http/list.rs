//! Field values that are comma-separated lists of tokens (RFC 9110 section 5.6).

use super::Field;

/// The values of the fields with this name, in the order they came. Names compare without case.
pub fn values<'h>(fields: &'h [Field<'h>], name: &str) -> impl Iterator<Item = &'h [u8]> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// The elements of the list that all fields with this name make together (RFC 9110 section 5.3).
pub fn list<'h>(fields: &'h [Field<'h>], name: &str) -> impl Iterator<Item = &'h [u8]> {
    values(fields, name).flat_map(elements)
}

/// The elements of one list, without the whitespace around them.
///
/// Empty elements are passed over (RFC 9110 section 5.6.1.2). A comma within a quoted string separates nothing; a
/// quoted string that is never closed reaches to the end.
pub fn elements(value: &[u8]) -> Elements<'_> {
    Elements { rest: value, separator: b',' }
}

/// The parameters of one element, which semicolons separate, by the same rules as [`elements`].
pub fn parameters(element: &[u8]) -> Elements<'_> {
    Elements { rest: element, separator: b';' }
}

/// Whether every quoted string in the value is closed, so that what is appended to it stands outside of quotes.
pub fn closes_its_quotes(value: &[u8]) -> bool {
    let mut quotes = Quotes::default();
    for byte in value {
        quotes.pass(*byte);
    }
    !quotes.is_quoted
}

/// The elements of one list, see [`elements`] and [`parameters`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
    separator: u8,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let mut quotes = Quotes::default();
            let size = self
                .rest
                .iter()
                .position(|byte| quotes.pass(*byte) && *byte == self.separator)
                .unwrap_or(self.rest.len());
            let element = self.rest[..size].trim_ascii();
            self.rest = self.rest.get(size + 1..).unwrap_or_default();
            if !element.is_empty() {
                return Some(element);
            }
        }
        None
    }
}

/// Where a walk over a value stands (RFC 9110 section 5.6.4).
#[derive(Default)]
struct Quotes {
    /// True exactly while within a quoted string.
    is_quoted: bool,
    /// True exactly behind a backslash there.
    is_escaped: bool,
}

impl Quotes {
    /// Passes a byte, and tells whether it stands outside of quoted strings.
    fn pass(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.is_quoted => self.is_escaped = true,
            b'"' => self.is_quoted = !self.is_quoted,
            _ => return !self.is_quoted,
        }
        false
    }
}

/// Whether this is a token: at least one character, each of them a [`is_token_byte`].
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

/// Whether a token may hold this byte (RFC 9110 section 5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[byte as usize]
}

/// [`is_token_byte`] for every byte. A look costs less than the comparisons would.
static TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let symbols = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < symbols.len() {
        table[symbols[index] as usize] = true;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_lose_their_whitespace_and_empty_ones_are_passed_over() {
        let value = b" keep-alive ,\t,Upgrade,,";
        assert_eq!(elements(value).collect::<Vec<_>>(), [&b"keep-alive"[..], b"Upgrade"]);
        assert_eq!(elements(b" , ").count(), 0);
        assert_eq!(elements(b"").count(), 0);
    }

    #[test]
    fn a_comma_within_quotes_separates_nothing() {
        let value = br#"a; b="c,d", e="\",f", g"#;
        assert_eq!(elements(value).collect::<Vec<_>>(), [&br#"a; b="c,d""#[..], br#"e="\",f""#, b"g"]);
        assert_eq!(elements(br#"a, "b, c"#).collect::<Vec<_>>(), [&b"a"[..], b"\"b, c"]);
    }

    #[test]
    fn parameters_are_separated_by_semicolons_outside_of_quotes() {
        let element = br#"for="a;b,c"; host=d ;;"#;
        assert_eq!(parameters(element).collect::<Vec<_>>(), [&br#"for="a;b,c""#[..], b"host=d"]);
    }

    #[test]
    fn quotes_that_stay_open_are_noticed() {
        for closed in [&b""[..], b"a", br#""a""#, br#"a="\"", "\\""#, br"a\"] {
            assert!(closes_its_quotes(closed), "{closed:?}");
        }
        for open in [&br#"""#[..], br#"a="b\""#, br#""a"""#] {
            assert!(!closes_its_quotes(open), "{open:?}");
        }
    }

    #[test]
    fn repeated_fields_are_one_list() {
        let fields = [
            Field { name: "Connection", value: b"a, b" },
            Field { name: "Other", value: b"x" },
            Field { name: "CONNECTION", value: b"c" },
        ];
        assert_eq!(list(&fields, "connection").collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    }

    #[test]
    fn a_token_holds_no_separator_control_or_byte_beyond_ascii() {
        assert!(is_token(b"chat.v1+json!#$%&'*^_`|~-"));
        for bad in [
            &b""[..],
            b"a b",
            b"a/b",
            b"a\tb",
            b"\"a\"",
            b"a=b",
            b"a;b",
            b"caf\xc3\xa9",
            b"a\x7f",
            b"a@b",
            b"{a}",
        ] {
            assert!(!is_token(bad), "{bad:?}");
        }
    }
}
