//! The names that a request goes by in logs and traces: `X-Request-Id`, and `traceparent` (W3C Trace Context, level 1).

use std::fmt;

use super::{Sender, append_hex};
use crate::protocol::http::{request::RequestHead, response::append_field};

/// The longest `X-Request-Id` that is passed on, in bytes.
const REQUEST_ID_SIZE_MAX: usize = 128;

/// What a request is called from the gateway on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestId<'h> {
    /// As a trusted peer has called it: letters, digits and a few signs.
    Passed(&'h str),
    /// As the gateway calls it, in hexadecimal.
    Begun([u8; 16]),
}

impl<'h> RequestId<'h> {
    /// The id of a request: that of a peer who is believed, if it is one and well-formed, or a new one.
    pub(super) fn of(head: &RequestHead<'h>, sender: &Sender, random: [u8; 16]) -> Self {
        let mut values = head.values("x-request-id");
        match (values.next(), values.next()) {
            (Some(value), None) if sender.is_believed() && is_request_id(value) => {
                Self::Passed(std::str::from_utf8(value).expect("its characters are ASCII"))
            }
            _ => Self::Begun(random),
        }
    }

    /// Appends the field.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Passed(id) => append_field(out, "X-Request-Id", id),
            Self::Begun(bytes) => {
                out.extend_from_slice(b"X-Request-Id: ");
                append_hex(out, &bytes);
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

impl fmt::Display for RequestId<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(id) => formatter.write_str(id),
            Self::Begun(bytes) => bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}")),
        }
    }
}

/// The `traceparent` of a request, if it has one and it is well-formed. `tracestate` passes only with it.
pub(super) fn traceparent<'h>(head: &RequestHead<'h>) -> Option<&'h [u8]> {
    let mut values = head.values("traceparent");
    let value = values.next().filter(|value| is_traceparent(value))?;
    values.next().is_none().then_some(value)
}

/// Appends a `traceparent` that begins a trace, which is not sampled.
pub(super) fn begin_trace(out: &mut Vec<u8>, mut trace_id: [u8; 16], mut parent_id: [u8; 8]) {
    // Ids of zeros alone are invalid.
    for id in [&mut trace_id[..], &mut parent_id] {
        if id.iter().all(|byte| *byte == 0) {
            id[0] = 1;
        }
    }
    out.extend_from_slice(b"traceparent: 00-");
    append_hex(out, &trace_id);
    out.push(b'-');
    append_hex(out, &parent_id);
    out.extend_from_slice(b"-00\r\n");
}

/// Whether this can stand in a log and in a URL as it is.
fn is_request_id(value: &[u8]) -> bool {
    (1..=REQUEST_ID_SIZE_MAX).contains(&value.len())
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+/=:".contains(byte))
}

/// Whether this is version, trace id, parent id and flags, in lower case; a later version may have more behind them.
fn is_traceparent(value: &[u8]) -> bool {
    const SIZE: usize = 55;
    let Some((known, more)) = value.split_at_checked(SIZE) else { return false };
    let mut parts = known.split(|byte| *byte == b'-');
    let mut part = |size: usize| {
        let is_hex = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        parts.next().filter(|part| part.len() == size && part.iter().all(is_hex))
    };
    let is_zero = |id: &[u8]| id.iter().all(|byte| *byte == b'0');
    let (Some(version), Some(trace_id), Some(parent_id), Some(_flags)) =
        (part(2), part(32), part(16), part(2))
    else {
        return false;
    };
    !is_zero(trace_id)
        && !is_zero(parent_id)
        && match version {
            b"00" => more.is_empty(),
            b"ff" => false,
            _ => more.is_empty() || more.starts_with(b"-") && more.iter().all(u8::is_ascii_graphic),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_well_formed_or_not_one() {
        const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(GOOD.as_bytes()));
        assert!(is_traceparent(GOOD.replacen("00", "cc", 1).as_bytes()));
        assert!(is_traceparent(format!("{}-more", GOOD.replacen("00", "01", 1)).as_bytes()));
        for bad in [
            String::new(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-more"),
            format!("{}more", GOOD.replacen("00", "01", 1)),
            format!("{}- more", GOOD.replacen("00", "01", 1)),
            GOOD.replacen("00", "ff", 1),
            GOOD.replace("0af", "0Af"),
            GOOD.replace("0af", "0gf"),
            GOOD.replace('-', "_"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("-b7", "b-7"),
        ] {
            assert!(!is_traceparent(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_trace_that_begins_is_well_formed() {
        for (trace_id, parent_id) in [([0xab; 16], [0xcd; 8]), ([0; 16], [0; 8])] {
            let mut out = Vec::new();
            begin_trace(&mut out, trace_id, parent_id);
            let value = out.strip_prefix(b"traceparent: ").unwrap().strip_suffix(b"\r\n").unwrap();
            assert!(is_traceparent(value), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn a_request_id_is_short_and_plain() {
        assert!(is_request_id(b"3f2a-B_c.1~+/=:") && is_request_id(&[b'a'; 128]));
        for bad in [&b""[..], &[b'a'; 129], b"a b", b"a,b", b"a\"", b"caf\xc3\xa9", b"a\t", b"<a>"] {
            assert!(!is_request_id(bad), "{}", bad.escape_ascii());
        }
        assert_eq!(RequestId::Begun([0x0f; 16]).to_string(), "0f".repeat(16));
        assert_eq!(RequestId::Passed("a-1").to_string(), "a-1");
    }
}
