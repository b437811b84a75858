//! Header fields that a route adds and removes, and those that are not an operator's to touch.

use std::fmt;

use crate::protocol::http::forward::Edits;
use crate::protocol::http::list::is_token;

/// What becomes of header fields on their way. Removing comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names, in any case, of the fields that do not pass; no two are one name.
    pub remove: Vec<String>,
    /// Fields that are added, in place of any of the same name; no two have one name.
    pub set: Vec<(String, String)>,
}

impl HeaderEdits {
    /// As they are carried out.
    pub fn view(&self) -> Edits<'_> {
        Edits { remove: &self.remove, set: &self.set }
    }
}

/// Why a field cannot be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldFault {
    /// The name is not a token (RFC 9110 section 5.1).
    NotAName,
    /// It concerns one connection alone, or where a message ends (RFC 9110 section 7.6.1): either side has its own.
    OneConnection,
    /// The opening handshake rests on it (RFC 6455 section 4).
    Handshake,
    /// It says who the client is, which a route decides by whom it trusts.
    Forwarding,
    /// Without a `Host` no request is one (RFC 9112 section 3.2).
    HostRemoved,
}

impl FieldFault {
    /// Checks the `name` of a field to be removed, or to be set.
    pub(in crate::config) fn check(name: &str, is_removed: bool) -> Result<(), Self> {
        if !is_token(name.as_bytes()) {
            return Err(Self::NotAName);
        }
        match name.to_ascii_lowercase().as_str() {
            "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "content-length"
            | "proxy-authenticate"
            | "proxy-authorization" => Err(Self::OneConnection),
            name if name.starts_with("sec-websocket-") => Err(Self::Handshake),
            "forwarded" => Err(Self::Forwarding),
            name if name.starts_with("x-forwarded-") => Err(Self::Forwarding),
            "host" if is_removed => Err(Self::HostRemoved),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for FieldFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotAName => "no field has such a name",
            Self::OneConnection => "it concerns one connection alone, and does not pass",
            Self::Handshake => "the opening handshake rests on it",
            Self::Forwarding => "it says who the client is, which Ringway tells itself",
            Self::HostRemoved => "every request has one",
        })
    }
}

/// Whether a field may have this value: visible ASCII, with spaces and tabs between (RFC 9110 section 5.5).
pub fn is_value(value: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t';
    value.bytes().all(is_allowed) && value.trim_ascii() == value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_ringway_answers_for_are_not_edited() {
        for (name, is_removed, expected) in [
            ("X-Env", false, Ok(())),
            ("X-Env", true, Ok(())),
            ("Cookie", true, Ok(())),
            ("Host", false, Ok(())),
            ("Host", true, Err(FieldFault::HostRemoved)),
            ("", true, Err(FieldFault::NotAName)),
            ("X Env", true, Err(FieldFault::NotAName)),
            ("X-Env:", false, Err(FieldFault::NotAName)),
            ("X\r\nY", false, Err(FieldFault::NotAName)),
            ("CONNECTION", true, Err(FieldFault::OneConnection)),
            ("Upgrade", false, Err(FieldFault::OneConnection)),
            ("Content-Length", true, Err(FieldFault::OneConnection)),
            ("transfer-encoding", false, Err(FieldFault::OneConnection)),
            ("Sec-WebSocket-Protocol", true, Err(FieldFault::Handshake)),
            ("Forwarded", true, Err(FieldFault::Forwarding)),
            ("X-Forwarded-For", false, Err(FieldFault::Forwarding)),
        ] {
            assert_eq!(FieldFault::check(name, is_removed), expected, "{name}");
        }
    }

    #[test]
    fn a_value_begins_and_ends_visibly() {
        for value in ["", "prod", "a b\tc", "\"quoted\", list"] {
            assert!(is_value(value), "{value:?}");
        }
        for value in [" prod", "prod\t", "a\r\nX: y", "a\0", "\u{7f}", "é"] {
            assert!(!is_value(value), "{value:?}");
        }
    }
}
