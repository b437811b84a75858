//! Heads on their way between a client and an upstream: which fields pass, and which are written anew.
//!
//! [`Sender`] says whom a request comes from, [`RequestPassage`] passes an opening handshake on, and [`response`] what
//! the upstream answers.

#[doc(hidden)]
pub mod fuzz;
mod request;
pub mod response;
mod sender;
mod trace;

pub use request::RequestPassage;
pub use sender::Sender;
pub use trace::RequestId;

use super::{list, response::append_checked_field};

/// What an operator would have become of fields on their way. Removing comes first.
///
/// Names are tokens, values hold no control bytes but tabs, and neither is about what keeps the connection itself: its options and
/// framing, the opening handshake, and on a request who the client is. Whoever reads the configuration sees to that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edits<'a> {
    /// Names, in any case, of fields that do not pass.
    pub remove: &'a [String],
    /// Fields that are added, in place of any of the same name.
    pub set: &'a [(String, String)],
}

impl Edits<'_> {
    /// Whether a field with this name passes: it is not removed, and nothing comes in its place.
    fn pass(&self, name: &str) -> bool {
        !self.remove.iter().any(|removed| removed.eq_ignore_ascii_case(name)) && !self.sets(name)
    }

    /// Whether a field with this name is added.
    fn sets(&self, name: &str) -> bool {
        self.set.iter().any(|(set, _)| set.eq_ignore_ascii_case(name))
    }

    /// Appends the fields that are added.
    fn write(&self, out: &mut Vec<u8>) {
        for (name, value) in self.set {
            append_checked_field(out, name, value.as_bytes());
        }
    }

    /// Whether none is about a name of which this is true. For assertions. (Names with underscores are the operator's
    /// own affair.)
    fn spare(&self, is_reserved: impl Fn(&FoldedName) -> bool) -> bool {
        let names = self.remove.iter().chain(self.set.iter().map(|(name, _)| name));
        names.map(|name| FoldedName::new(name)).all(|name| name.has_underscore || !is_reserved(&name))
    }
}

/// What of a request is kept from an upstream, as it proves who the request is from and is for the gateway alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Withheld<'a> {
    /// Names of fields, in any case, with hyphens or underscores.
    pub fields: &'a [String],
    /// Parameters of the query.
    pub parameters: &'a [String],
    /// What subprotocols begin with.
    pub subprotocols: &'a [String],
}

impl Withheld<'_> {
    /// Whether a field of this name does not pass.
    fn holds_field(&self, name: &str) -> bool {
        let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        let is_name = |withheld: &String| {
            withheld.len() == name.len() && withheld.bytes().map(fold).eq(name.bytes().map(fold))
        };
        self.fields.iter().any(is_name)
    }

    /// Whether a part of a query does not pass.
    fn holds_parameter(&self, pair: &str) -> bool {
        self.parameters.iter().any(|name| pair.split('=').next() == Some(name))
    }

    /// Whether a subprotocol is not offered to an upstream.
    fn holds_subprotocol(&self, subprotocol: &[u8]) -> bool {
        self.subprotocols.iter().any(|prefix| subprotocol.starts_with(prefix.as_bytes()))
    }
}

/// The beginning of a field's name in lower case, with hyphens for underscores.
///
/// CGI and its heirs hand `X-Forwarded-For` and `X_Forwarded_For` to an application as one variable. So what is not to
/// pass under the one name does not pass under the other.
struct FoldedName {
    bytes: [u8; Self::SIZE_MAX],
    size: usize,
    has_underscore: bool,
}

impl FoldedName {
    /// Longer than any name that something is made to depend on.
    const SIZE_MAX: usize = 32;

    fn new(name: &str) -> Self {
        let mut folded = Self { bytes: [0; Self::SIZE_MAX], size: 0, has_underscore: false };
        for (to, from) in folded.bytes.iter_mut().zip(name.bytes()) {
            *to = if from == b'_' { b'-' } else { from.to_ascii_lowercase() };
            folded.has_underscore |= from == b'_';
            folded.size += 1;
        }
        folded
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }

    /// Whether the field is for this connection alone: options of it, or the framing of what is sent on it (RFC 9110
    /// section 7.6.1, RFC 9112 section 6).
    fn is_of_the_connection(&self) -> bool {
        matches!(
            self.as_bytes(),
            b"connection"
                | b"content-length"
                | b"keep-alive"
                | b"proxy-authenticate"
                | b"proxy-authorization"
                | b"proxy-connection"
                | b"te"
                | b"trailer"
                | b"transfer-encoding"
                | b"upgrade"
        )
    }

    /// Whether the field is part of an opening handshake.
    fn is_of_the_handshake(&self) -> bool {
        self.as_bytes().starts_with(b"sec-websocket-")
    }

    /// Whether the field says who the client is, or what it asked for, on behalf of somebody else.
    fn is_of_the_sender(&self) -> bool {
        let name = self.as_bytes();
        name == b"forwarded" || name == b"x-real-ip" || name.starts_with(b"x-forwarded-")
    }
}

/// Whether one of the names is this one.
fn holds_name<'h>(mut names: impl Iterator<Item = &'h [u8]>, name: &[u8]) -> bool {
    names.any(|known| known.eq_ignore_ascii_case(name))
}

/// Appends bytes in hexadecimal.
fn append_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0x0f)]]);
    }
}

/// Appends the values, as one list.
fn append_list<'h>(out: &mut Vec<u8>, values: impl Iterator<Item = &'h [u8]>) {
    for value in values.filter(|value| list::elements(value).next().is_some()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}
