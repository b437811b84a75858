//! How connections end and how handshakes fare: the closed sets behind the funnel.

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
        /// The TLS handshake failed.
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
        /// The gateway asked the client to leave, and it left in time.
        Drained => "drained",
        /// The gateway stopped and cut the connection.
        Shutdown => "shutdown",
        /// A fault of ours, a caught panic among them.
        Internal => "internal",
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

impl From<Refusal> for HandshakeResult {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::BadRequest(_)
            | Refusal::MethodNotAllowed { .. }
            | Refusal::TransferCodingNotImplemented
            | Refusal::HttpVersion => Self::BadRequest,
            Refusal::OriginNotAllowed => Self::Origin,
            Refusal::NoRoute => Self::NoRoute,
            Refusal::Timeout => Self::Timeout,
            Refusal::ContentTooLarge
            | Refusal::TargetTooLong
            | Refusal::HeadTooLarge
            | Refusal::TooManyFields => Self::TooLarge,
            Refusal::UpgradeRequired => Self::NotUpgrade,
            Refusal::BadVersion => Self::BadVersion,
            Refusal::TooManyRequests { .. } => Self::Rate,
            Refusal::ConnectionLimit { .. } => Self::Limit,
            Refusal::BadGateway | Refusal::UpstreamUnavailable { .. } | Refusal::GatewayTimeout => {
                Self::UpstreamUnavailable
            }
            Refusal::Draining { .. } => Self::Draining,
        }
    }
}
