//! The rules of RFC 6455 that a peer can break, as facts, and the close code that answers each.

use super::close::CloseCode;
use crate::protocol::closed_set;

/// A rule that the peer broke.
///
/// RFC 6455 section 7.4.1 assigns the close code of each, see [`Violation::close_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A client sent an unmasked frame (RFC 6455 section 5.1).
    Unmasked,
    /// A server sent a masked frame (RFC 6455 section 5.1).
    Masked,
    /// A reserved bit was set without an extension that defines it (RFC 6455 section 5.2).
    ReservedBits,
    /// An opcode that RFC 6455 section 5.2 reserves.
    ReservedOpcode {
        /// The four bits as they came, 3 to 7 or 11 to 15.
        opcode: u8,
    },
    /// A payload length in more bytes than it needs (RFC 6455 section 5.2).
    NonMinimalLength,
    /// A 64-bit payload length with its top bit set (RFC 6455 section 5.2).
    LengthTopBit,
    /// A control frame with more than 125 bytes of payload (RFC 6455 section 5.5).
    ControlTooLong,
    /// A fragmented control frame (RFC 6455 section 5.5).
    ControlFragmented,
    /// A continuation frame with no message to continue (RFC 6455 section 5.4).
    UnexpectedContinuation,
    /// A new message before the last fragment of the one before (RFC 6455 section 5.4).
    MessageInterrupted,
    /// Text that is not UTF-8 (RFC 6455 section 8.1).
    InvalidUtf8,
    /// A Close payload of one byte (RFC 6455 section 5.5.1).
    ClosePayloadOneByte,
    /// A close code that may not be sent (RFC 6455 section 7.4).
    CloseCodeInvalid {
        /// The code as it came.
        code: u16,
    },
    /// A close reason that is not UTF-8 (RFC 6455 section 5.5.1).
    CloseReasonInvalidUtf8,
    /// A frame larger than the limit, known from its header (RFC 6455 section 10.4).
    FrameTooBig {
        /// The payload length that the header claims, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A message larger than the limit (RFC 6455 section 10.4).
    MessageTooBig {
        /// The message's size as far as it is known, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A compressed message that does not inflate (RFC 7692 section 7.2.2).
    InvalidDeflate,
    /// More frames or bytes than the operator allows in a second.
    RateExceeded,
}

closed_set! {
    /// The kind of a [`Violation`], without its figures: the `kind` label.
    pub enum ViolationKind {
        /// See [`Violation::Unmasked`].
        Unmasked => "unmasked",
        /// See [`Violation::Masked`].
        Masked => "masked",
        /// See [`Violation::ReservedBits`].
        ReservedBits => "reserved_bits",
        /// See [`Violation::ReservedOpcode`].
        ReservedOpcode => "reserved_opcode",
        /// See [`Violation::NonMinimalLength`].
        NonMinimalLength => "non_minimal_length",
        /// See [`Violation::LengthTopBit`].
        LengthTopBit => "length_top_bit",
        /// See [`Violation::ControlTooLong`].
        ControlTooLong => "control_too_long",
        /// See [`Violation::ControlFragmented`].
        ControlFragmented => "control_fragmented",
        /// See [`Violation::UnexpectedContinuation`].
        UnexpectedContinuation => "unexpected_continuation",
        /// See [`Violation::MessageInterrupted`].
        MessageInterrupted => "message_interrupted",
        /// See [`Violation::InvalidUtf8`].
        InvalidUtf8 => "invalid_utf8",
        /// See [`Violation::ClosePayloadOneByte`].
        ClosePayloadOneByte => "close_payload_one_byte",
        /// See [`Violation::CloseCodeInvalid`].
        CloseCodeInvalid => "close_code_invalid",
        /// See [`Violation::CloseReasonInvalidUtf8`].
        CloseReasonInvalidUtf8 => "close_reason_invalid_utf8",
        /// See [`Violation::FrameTooBig`].
        FrameTooBig => "frame_too_big",
        /// See [`Violation::MessageTooBig`].
        MessageTooBig => "message_too_big",
        /// See [`Violation::InvalidDeflate`].
        InvalidDeflate => "invalid_deflate",
        /// See [`Violation::RateExceeded`].
        RateExceeded => "rate_exceeded",
    }
}

impl Violation {
    /// The kind, without the figures.
    pub const fn kind(self) -> ViolationKind {
        match self {
            Self::Unmasked => ViolationKind::Unmasked,
            Self::Masked => ViolationKind::Masked,
            Self::ReservedBits => ViolationKind::ReservedBits,
            Self::ReservedOpcode { .. } => ViolationKind::ReservedOpcode,
            Self::NonMinimalLength => ViolationKind::NonMinimalLength,
            Self::LengthTopBit => ViolationKind::LengthTopBit,
            Self::ControlTooLong => ViolationKind::ControlTooLong,
            Self::ControlFragmented => ViolationKind::ControlFragmented,
            Self::UnexpectedContinuation => ViolationKind::UnexpectedContinuation,
            Self::MessageInterrupted => ViolationKind::MessageInterrupted,
            Self::InvalidUtf8 => ViolationKind::InvalidUtf8,
            Self::ClosePayloadOneByte => ViolationKind::ClosePayloadOneByte,
            Self::CloseCodeInvalid { .. } => ViolationKind::CloseCodeInvalid,
            Self::CloseReasonInvalidUtf8 => ViolationKind::CloseReasonInvalidUtf8,
            Self::FrameTooBig { .. } => ViolationKind::FrameTooBig,
            Self::MessageTooBig { .. } => ViolationKind::MessageTooBig,
            Self::InvalidDeflate => ViolationKind::InvalidDeflate,
            Self::RateExceeded => ViolationKind::RateExceeded,
        }
    }

    /// The close code that answers this violation (RFC 6455 section 7.4.1).
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::Unmasked
            | Self::Masked
            | Self::ReservedBits
            | Self::ReservedOpcode { .. }
            | Self::NonMinimalLength
            | Self::LengthTopBit
            | Self::ControlTooLong
            | Self::ControlFragmented
            | Self::UnexpectedContinuation
            | Self::MessageInterrupted
            | Self::ClosePayloadOneByte
            | Self::CloseCodeInvalid { .. } => CloseCode::PROTOCOL_ERROR,
            Self::InvalidUtf8 | Self::CloseReasonInvalidUtf8 | Self::InvalidDeflate => {
                CloseCode::INVALID_PAYLOAD
            }
            Self::FrameTooBig { .. } | Self::MessageTooBig { .. } => CloseCode::MESSAGE_TOO_BIG,
            Self::RateExceeded => CloseCode::POLICY_VIOLATION,
        }
    }
}
