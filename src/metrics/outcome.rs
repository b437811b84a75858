//! How connections end, how handshakes fare, and what became of attempts to reach an upstream: the closed sets behind
//! the funnel.

use std::io;

use rustix::io::Errno;

use crate::protocol::closed_set;
use crate::protocol::http::refusal::Refusal;

closed_set! {
    /// How a connection ended. Every accepted connection has exactly one.
    pub enum End {
        /// The WebSocket closing handshake was completed.
        Closed => "closed",
        /// Plain HTTP was answered and the connection let go.
        HttpDone => "http_done",
        /// A bad opening handshake was answered with an HTTP refusal.
        Refused => "refused",
        /// The head of the request had not arrived when the handshake deadline passed.
        HandshakeTimeout => "handshake_timeout",
        /// The TLS handshake failed, or the records that followed could not be read.
        TlsFailed => "tls_failed",
        /// The PROXY protocol header was missing, malformed or came from a stranger.
        ProxyHeaderInvalid => "proxy_header_invalid",
        /// A limit on connections or rates was reached.
        Limit => "limit",
        /// The client broke a rule of RFC 6455.
        Violation => "violation",
        /// A frame or message exceeded its size limit.
        MessageTooBig => "message_too_big",
        /// No message came within the idle timeout.
        Idle => "idle",
        /// A ping went unanswered.
        PongTimeout => "pong_timeout",
        /// The client did not read what was sent to it.
        SlowClient => "slow_client",
        /// The client went away without a Close: end of file or reset.
        ClientGone => "client_gone",
        /// No upstream could be reached.
        UpstreamUnavailable => "upstream_unavailable",
        /// The upstream went away.
        UpstreamGone => "upstream_gone",
        /// The gateway asked the client to leave, as memory was short.
        Memory => "memory",
        /// What the client proved who it is with has expired.
        Expired => "expired",
        /// The gateway asked the client to leave, and it left in time.
        Drained => "drained",
        /// The gateway stopped and cut the connection.
        Shutdown => "shutdown",
        /// A fault of ours, a caught panic among them.
        Internal => "internal",
    }
}

closed_set! {
    /// Why TLS failed on a connection that ended so ([`End::TlsFailed`]): each such connection has exactly one.
    pub enum TlsFailure {
        /// The client supports no version, cipher or key exchange that the port does.
        NoSharedVersionOrCipher => "no_shared_version_or_cipher",
        /// The client offers protocols for what is inside TLS (ALPN), and HTTP/1.1 is not among them.
        NoSharedProtocol => "no_shared_protocol",
        /// The client did not accept the certificate, and said so by an alert.
        CertificateRefused => "certificate_refused",
        /// The client ended the handshake, or the connection, by another alert.
        AlertFromClient => "alert_from_client",
        /// Bytes came that are no records or messages of TLS.
        Malformed => "malformed",
        /// A record could not be decrypted: it was changed on the way, or made up.
        Decrypt => "decrypt",
        /// The client broke another rule of TLS.
        Protocol => "protocol",
        /// Plain HTTP came to a port of TLS.
        PlainHttp => "plain_http",
        /// TLS came to a port without.
        TlsOnPlainPort => "tls_on_plain_port",
        /// The client went away before the handshake was done.
        Closed => "closed",
        /// The handshake was not done when the deadline passed.
        Timeout => "timeout",
        /// A fault of ours.
        Internal => "internal",
    }
}

closed_set! {
    /// What a TLS handshake that succeeded came to.
    pub enum TlsHandshake {
        /// TLS 1.2, with the certificate.
        Full12 => "tls12_full",
        /// TLS 1.2, resumed from a ticket.
        Resumed12 => "tls12_resumed",
        /// TLS 1.3, with the certificate.
        Full13 => "tls13_full",
        /// TLS 1.3, resumed from a ticket.
        Resumed13 => "tls13_resumed",
    }
}

closed_set! {
    /// What became of one opening handshake.
    pub enum HandshakeResult {
        /// Answered with 101.
        Accepted => "accepted",
        /// The request broke a rule of HTTP or of the handshake.
        BadRequest => "bad_request",
        /// A WebSocket version other than 13.
        BadVersion => "bad_version",
        /// The route serves WebSocket only and the request asked for something else.
        NotUpgrade => "not_upgrade",
        /// No route matches the port, host and path.
        NoRoute => "no_route",
        /// The route does not allow this Origin.
        Origin => "origin",
        /// The request did not prove who it is from.
        Auth => "auth",
        /// Too many handshakes.
        Rate => "rate",
        /// Too many connections.
        Limit => "limit",
        /// The gateway is draining.
        Draining => "draining",
        /// The request head exceeded a limit.
        TooLarge => "too_large",
        /// The head had not arrived at the deadline.
        Timeout => "timeout",
        /// The upstream refused the handshake.
        UpstreamRefused => "upstream_refused",
        /// No upstream could be reached.
        UpstreamUnavailable => "upstream_unavailable",
    }
}

closed_set! {
    /// Why somebody is refused for the address that he comes from.
    pub enum AddressRefusal {
        /// Nobody from there is served.
        Denied => "denied",
        /// As many connections as may be are open from there.
        Connections => "connections",
        /// As many handshakes as may be were done from there in a second.
        Handshakes => "handshakes",
    }
}

closed_set! {
    /// Why a request did not prove who it is from.
    pub enum AuthRefusal {
        /// It has no token.
        Missing => "missing",
        /// Its token is none, or not one that can be judged: without `exp`, or with an extension that is not known.
        Malformed => "malformed",
        /// It is signed in another way than the key is for, or not at all.
        Algorithm => "algorithm",
        /// It names a key that is not known, or none where there are several.
        UnknownKey => "unknown_key",
        /// Nobody with the key has signed it.
        Signature => "signature",
        /// It was good until a time that is over.
        Expired => "expired",
        /// It will be good from a time on that has not come.
        NotYetValid => "not_yet_valid",
        /// Somebody else has issued it.
        Issuer => "issuer",
        /// It is for somebody else.
        Audience => "audience",
        /// It is good, but lacks a claim.
        Claim => "claim",
        /// The keys have never been had.
        KeysUnavailable => "keys_unavailable",
        /// Who was asked does not let it in.
        Denied => "denied",
        /// Who was to be asked did not answer, or made no sense, or too many questions were open.
        AuthUnavailable => "auth_unavailable",
    }
}

closed_set! {
    /// What became of one attempt to get a client to an upstream.
    pub enum ConnectResult {
        /// The upstream accepted: a verified 101, or for `tcp` the connection.
        Opened => "opened",
        /// The upstream answered the opening handshake with an HTTP status other than 101.
        Answered => "answered",
        /// Nobody listens there (ECONNREFUSED, or no such Unix socket), or its queue is full.
        Refused => "refused",
        /// No way leads there (EHOSTUNREACH, ENETUNREACH).
        Unreachable => "unreachable",
        /// The connection was not made within the connect timeout.
        TimedOut => "timed_out",
        /// The upstream was silent, or not done, when the handshake timeout passed.
        HandshakeTimedOut => "handshake_timed_out",
        /// The upstream did not prove to be who it should be, or TLS failed for another reason.
        TlsFailed => "tls_failed",
        /// The upstream ended or reset the connection before it had answered.
        Reset => "reset",
        /// The upstream's answer broke a rule of HTTP or of the handshake.
        BadHandshake => "bad_handshake",
        /// No local port is left for this upstream (EADDRNOTAVAIL, EADDRINUSE): it takes more source addresses.
        NoPort => "no_port",
        /// The process or the system has no descriptor left (EMFILE, ENFILE).
        NoDescriptor => "no_descriptor",
        /// Any other error of the system.
        Failed => "failed",
        /// The client left before the outcome was known.
        Abandoned => "abandoned",
        /// None was tried: those that are healthy have as many connections as they may.
        Full => "full",
        /// None was tried: checks have found all of them bad.
        Unhealthy => "unhealthy",
        /// None was tried: no address is known for their names.
        Unresolved => "unresolved",
    }
}

impl ConnectResult {
    /// What an error of `connect(2)`, or of the connection before the answer, comes to.
    pub fn of_error(error: &io::Error) -> Self {
        match error.kind() {
            // A Unix socket whose queue is full says EAGAIN at once.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::WouldBlock => {
                Self::Refused
            }
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::Reset,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Self::NoPort,
            _ => match Errno::from_io_error(error) {
                Some(Errno::MFILE | Errno::NFILE) => Self::NoDescriptor,
                _ => Self::Failed,
            },
        }
    }

    /// Whether it is a failure that speaks against the upstream, rather than against this machine or the client.
    pub const fn is_upstreams_fault(self) -> bool {
        match self {
            Self::Refused
            | Self::Unreachable
            | Self::TimedOut
            | Self::HandshakeTimedOut
            | Self::TlsFailed
            | Self::Reset
            | Self::BadHandshake => true,
            Self::Opened
            | Self::Answered
            | Self::NoPort
            | Self::NoDescriptor
            | Self::Failed
            | Self::Abandoned
            | Self::Full
            | Self::Unhealthy
            | Self::Unresolved => false,
        }
    }

    /// Whether the client's request had been sent, and so may itself have caused the failure.
    pub const fn may_be_the_requests_fault(self) -> bool {
        matches!(self, Self::HandshakeTimedOut | Self::Reset | Self::BadHandshake)
    }
}

impl From<Refusal> for HandshakeResult {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::BadRequest(_)
            | Refusal::MethodNotAllowed { .. }
            | Refusal::TransferCodingNotImplemented
            | Refusal::HttpVersion => Self::BadRequest,
            Refusal::OriginNotAllowed => Self::Origin,
            Refusal::Unauthorized { .. }
            | Refusal::InsufficientScope
            | Refusal::Forbidden
            | Refusal::AddressDenied => Self::Auth,
            Refusal::NoRoute => Self::NoRoute,
            Refusal::Timeout => Self::Timeout,
            Refusal::ContentTooLarge
            | Refusal::BodyTooLarge
            | Refusal::TargetTooLong
            | Refusal::HeadTooLarge
            | Refusal::TooManyFields => Self::TooLarge,
            Refusal::UpgradeRequired => Self::NotUpgrade,
            Refusal::BadVersion => Self::BadVersion,
            Refusal::TooManyRequests { .. } => Self::Rate,
            Refusal::ConnectionLimit { .. } | Refusal::AddressLimit { .. } | Refusal::MemoryShort { .. } => {
                Self::Limit
            }
            Refusal::BadGateway
            | Refusal::UpstreamUnavailable { .. }
            | Refusal::AuthUnavailable { .. }
            | Refusal::GatewayTimeout => Self::UpstreamUnavailable,
            Refusal::Draining { .. } => Self::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        for (errno, result) in [
            (Errno::CONNREFUSED, ConnectResult::Refused),
            (Errno::NOENT, ConnectResult::Refused),
            (Errno::AGAIN, ConnectResult::Refused),
            (Errno::HOSTUNREACH, ConnectResult::Unreachable),
            (Errno::NETUNREACH, ConnectResult::Unreachable),
            (Errno::TIMEDOUT, ConnectResult::TimedOut),
            (Errno::CONNRESET, ConnectResult::Reset),
            (Errno::PIPE, ConnectResult::Reset),
            (Errno::ADDRNOTAVAIL, ConnectResult::NoPort),
            (Errno::ADDRINUSE, ConnectResult::NoPort),
            (Errno::MFILE, ConnectResult::NoDescriptor),
            (Errno::NFILE, ConnectResult::NoDescriptor),
            (Errno::ACCESS, ConnectResult::Failed),
        ] {
            let error = io::Error::from(errno);
            assert_eq!(ConnectResult::of_error(&error), result, "{error}");
        }
    }
}
