//! The closed sets that label series, besides how connections end and how handshakes fare.

use crate::protocol::closed_set;
use crate::protocol::websocket::close::CloseCode;

closed_set! {
    /// Which way bytes went, seen from the gateway.
    pub enum Direction {
        /// From the client.
        Received => "received",
        /// To the client.
        Sent => "sent",
    }
}

closed_set! {
    /// How bytes of compressed messages are counted.
    pub enum Form {
        /// As they are said.
        Plain => "plain",
        /// As they go over the wire.
        Compressed => "compressed",
    }
}

closed_set! {
    /// Who sent the first Close of a connection.
    pub enum Initiator {
        /// The client.
        Client => "client",
        /// The gateway, of its own accord or because of a violation.
        Gateway => "gateway",
        /// The upstream behind a relay.
        Upstream => "upstream",
    }
}

closed_set! {
    /// A close code as a label: those that are registered each, the open ranges as one each (RFC 6455 section 7.4.2).
    pub enum CloseCodeLabel {
        /// 1000, normal closure.
        Normal => "1000",
        /// 1001, going away.
        GoingAway => "1001",
        /// 1002, protocol error.
        ProtocolError => "1002",
        /// 1003, unsupported data.
        UnsupportedData => "1003",
        /// 1007, payload does not fit the message's type.
        InvalidPayload => "1007",
        /// 1008, policy violation.
        PolicyViolation => "1008",
        /// 1009, message too big.
        MessageTooBig => "1009",
        /// 1010, the client missed an extension.
        MandatoryExtension => "1010",
        /// 1011, internal error.
        InternalError => "1011",
        /// 1012, service restart.
        ServiceRestart => "1012",
        /// 1013, try again later.
        TryAgainLater => "1013",
        /// 1014, bad gateway.
        BadGateway => "1014",
        /// 3000 to 3999, registered by libraries and frameworks.
        Registered => "3xxx",
        /// 4000 to 4999, private use.
        Private => "4xxx",
        /// A Close without a code.
        None => "none",
    }
}

closed_set! {
    /// The opcode of a frame.
    pub enum FrameKind {
        /// A further fragment of a message.
        Continuation => "continuation",
        /// Text, whole or its first fragment.
        Text => "text",
        /// Binary, whole or its first fragment.
        Binary => "binary",
        /// A Close.
        Close => "close",
        /// A ping.
        Ping => "ping",
        /// A pong.
        Pong => "pong",
    }
}

closed_set! {
    /// Why `accept` failed.
    pub enum AcceptErrorReason {
        /// The process or the system has no descriptor left (EMFILE, ENFILE).
        Descriptors => "descriptors",
        /// The client had gone before it was accepted (ECONNABORTED).
        Aborted => "aborted",
        /// The kernel had no memory for the socket (ENOBUFS, ENOMEM).
        Memory => "memory",
        /// Anything else.
        Other => "other",
    }
}

closed_set! {
    /// What became of a client whose send queue had filled.
    pub enum SlowClientOutcome {
        /// It did not read before the write timeout, and was cut.
        Cut => "cut",
        /// It read again.
        Recovered => "recovered",
    }
}

closed_set! {
    /// What became of something that was read again.
    pub enum ReloadResult {
        /// It is in force.
        Loaded => "loaded",
        /// It has a fault, and what was in force still is.
        Failed => "failed",
    }
}

closed_set! {
    /// The class of an HTTP status (RFC 9110 section 15).
    pub enum StatusClass {
        /// 100 to 199.
        Informational => "1xx",
        /// 200 to 299.
        Successful => "2xx",
        /// 300 to 399.
        Redirection => "3xx",
        /// 400 to 499.
        ClientError => "4xx",
        /// 500 to 599.
        ServerError => "5xx",
    }
}

closed_set! {
    /// The driver that the shards' runtimes were built on.
    pub enum Driver {
        /// An `io_uring` of each shard's own.
        IoUring => "io_uring",
        /// An epoll set of each shard's own.
        Epoll => "epoll",
    }
}

impl CloseCodeLabel {
    /// The label of the code that a Close carried, or of its absence.
    pub const fn of(code: Option<CloseCode>) -> Self {
        let Some(code) = code else { return Self::None };
        match code.get() {
            1000 => Self::Normal,
            1001 => Self::GoingAway,
            1002 => Self::ProtocolError,
            1003 => Self::UnsupportedData,
            1007 => Self::InvalidPayload,
            1008 => Self::PolicyViolation,
            1009 => Self::MessageTooBig,
            1010 => Self::MandatoryExtension,
            1011 => Self::InternalError,
            1012 => Self::ServiceRestart,
            1013 => Self::TryAgainLater,
            1014 => Self::BadGateway,
            3000..=3999 => Self::Registered,
            // A `CloseCode` holds nothing else: 4000 to 4999.
            _ => Self::Private,
        }
    }
}

impl StatusClass {
    /// The class of `status`; what is no status (below 100, above 599) can only be our fault and counts as 5xx.
    pub const fn of(status: u16) -> Self {
        match status {
            100..=199 => Self::Informational,
            200..=299 => Self::Successful,
            300..=399 => Self::Redirection,
            400..=499 => Self::ClientError,
            _ => Self::ServerError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_code_has_the_label_that_names_it() {
        for code in (0..=u16::MAX).filter_map(CloseCode::new) {
            let expected = match code.get() {
                3000..=3999 => "3xxx".to_owned(),
                4000..=4999 => "4xxx".to_owned(),
                known => known.to_string(),
            };
            assert_eq!(CloseCodeLabel::of(Some(code)).label(), expected);
        }
        assert_eq!(CloseCodeLabel::of(None).label(), "none");
    }

    #[test]
    fn a_status_belongs_to_the_class_of_its_first_digit() {
        for status in 100..600 {
            assert_eq!(StatusClass::of(status).label(), format!("{}xx", status / 100));
        }
        assert_eq!(StatusClass::of(0), StatusClass::ServerError);
        assert_eq!(StatusClass::of(600), StatusClass::ServerError);
    }
}
