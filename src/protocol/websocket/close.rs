//! Close codes and the payload of a Close frame (RFC 6455 sections 5.5.1 and 7.4).

use super::{utf8, violation::Violation};

/// The longest close reason in bytes: a control frame holds 125, the code takes 2 (RFC 6455 section 5.5).
pub const REASON_SIZE_MAX: usize = 123;

/// A close code that may stand in a Close frame.
///
/// The codes that RFC 6455 section 7.4.1 reserves for reporting alone (1004, 1005, 1006, 1015), those below 1000 and
/// the unassigned ones from 1016 to 2999 cannot be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose of the connection has been fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the endpoint is going away.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke a rule of the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1007: a message's payload does not fit its type.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: a message broke a policy.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message is too big to process.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1011: the endpoint met a condition it did not expect.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1014: what stands behind this server broke off, or made no sense (registered with IANA, after RFC 6455).
    pub const BAD_GATEWAY: Self = Self(1014);
    /// 1012: the service restarts.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 1013, the server cannot serve this client now.
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// The code, if a Close frame may carry it.
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The payload of a Close frame: nothing, or a code and perhaps a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosePayload<'a> {
    /// The code, or `None` where the payload is empty (reported as 1005, RFC 6455 section 7.1.5).
    pub code: Option<CloseCode>,
    /// The reason, at most [`REASON_SIZE_MAX`] bytes.
    pub reason: &'a str,
}

impl<'a> ClosePayload<'a> {
    /// Parses an unmasked Close payload.
    ///
    /// # Errors
    /// [`Violation::ClosePayloadOneByte`], [`Violation::CloseCodeInvalid`] or [`Violation::CloseReasonInvalidUtf8`].
    pub fn parse(payload: &'a [u8]) -> Result<Self, Violation> {
        let (code, reason) = match payload {
            [] => {
                return Ok(Self { code: None, reason: "" });
            }
            [_] => return Err(Violation::ClosePayloadOneByte),
            [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        };
        let code = CloseCode::new(code).ok_or(Violation::CloseCodeInvalid { code })?;
        let reason = utf8::validate(reason).ok_or(Violation::CloseReasonInvalidUtf8)?;
        Ok(Self { code: Some(code), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_may_not_be_sent_cannot_be_held() {
        for code in (0..1000).chain([1004, 1005, 1006]).chain(1015..3000).chain(5000..=u16::MAX) {
            assert_eq!(CloseCode::new(code), None, "{code}");
        }
        for code in (1000..=1003).chain(1007..=1014).chain(3000..=4999) {
            assert_eq!(CloseCode::new(code).map(CloseCode::get), Some(code));
        }
    }

    #[test]
    fn a_payload_is_empty_or_has_at_least_two_bytes() {
        assert_eq!(ClosePayload::parse(b""), Ok(ClosePayload { code: None, reason: "" }));
        assert_eq!(ClosePayload::parse(b"\x03"), Err(Violation::ClosePayloadOneByte));
        assert_eq!(
            ClosePayload::parse(b"\x03\xe8bye"),
            Ok(ClosePayload { code: Some(CloseCode::NORMAL), reason: "bye" })
        );
    }

    #[test]
    fn a_reason_is_utf8() {
        assert_eq!(ClosePayload::parse(b"\x03\xe8\xff"), Err(Violation::CloseReasonInvalidUtf8));
        assert_eq!(ClosePayload::parse(b"\x03\xed"), Err(Violation::CloseCodeInvalid { code: 1005 }));
    }
}
