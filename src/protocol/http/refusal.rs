//! Every answer that refuses a request on the native path, as facts, and their one way onto the wire.

use super::response;
use crate::protocol::closed_set;

/// Why a request is not served. The connection closes behind the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: the request breaks a rule.
    BadRequest(BadRequest),
    /// 401: the request does not prove who it is from (RFC 6750 section 3).
    Unauthorized {
        /// Whether there was a token, which is not good.
        has_token: bool,
    },
    /// 403: its token is good, but not for this (RFC 6750 section 3.1).
    InsufficientScope,
    /// 403: who was asked does not let it in.
    Forbidden,
    /// 403: nobody from this address is served.
    AddressDenied,
    /// 429: as many connections of this address as may be are open.
    AddressLimit {
        /// When to try again, in seconds from now.
        retry_after_s: u32,
    },
    /// 503: there is no memory for anybody new.
    MemoryShort {
        /// When to try again, in seconds from now.
        retry_after_s: u32,
    },
    /// 403: the route does not allow this Origin.
    OriginNotAllowed,
    /// 404: no route matches the port, host and path.
    NoRoute,
    /// 405: the method is not for this resource.
    MethodNotAllowed {
        /// The methods that are, as the `Allow` field lists them.
        allow: &'static str,
    },
    /// 408: the head had not arrived at the deadline.
    Timeout,
    /// 413: the request has a body that nobody takes.
    ContentTooLarge,
    /// 413: the body of the request is larger than what is taken.
    BodyTooLarge,
    /// 414: the request line alone is larger than a head may be.
    TargetTooLong,
    /// 426: a plain request to a route that serves WebSocket only.
    UpgradeRequired,
    /// 426: a WebSocket version other than 13 (RFC 6455 section 4.4).
    BadVersion,
    /// 429: too many handshakes.
    TooManyRequests {
        /// When to try again, in seconds from now.
        retry_after_s: u32,
    },
    /// 431: the head is larger than it may be.
    HeadTooLarge,
    /// 431: the head has more fields than it may have.
    TooManyFields,
    /// 501: the body has a transfer coding other than chunked (RFC 9112 section 6.1).
    TransferCodingNotImplemented,
    /// 502: no upstream could be reached, or none made sense.
    BadGateway,
    /// 503: what would tell whether it is allowed cannot be had.
    AuthUnavailable {
        /// When to try again, in seconds from now.
        retry_after_s: u32,
    },
    /// 503: all upstreams are full, or unhealthy.
    UpstreamUnavailable {
        /// When to try again, in seconds from now.
        retry_after_s: u32,
    },
    /// 504: an upstream did not connect or answer in time.
    GatewayTimeout,
    /// 503: as many connections as may be are open.
    ConnectionLimit {
        /// When to try again, in seconds from now.
        retry_after_s: u32,
    },
    /// 503: the gateway drains this port.
    Draining {
        /// When to try again, in seconds from now.
        retry_after_s: u32,
    },
    /// 505: a version of HTTP other than 1.0 and 1.1.
    HttpVersion,
}

closed_set! {
    /// The rule that a [`Refusal::BadRequest`] is about. The label names it in logs.
    pub enum BadRequest {
        /// A TLS `ClientHello` on a port without TLS.
        TlsClientHello => "tls_client_hello",
        /// A request on a port of TLS, without TLS.
        PlainHttp => "plain_http",
        /// The connection preface of HTTP/2 (RFC 9113 section 3.4).
        Http2Preface => "http2_preface",
        /// A PROXY protocol header on a port that does not expect one.
        ProxyHeader => "proxy_header",
        /// A line that ends in LF alone (RFC 9112 section 2.2).
        BareLf => "bare_lf",
        /// A CR that no LF follows (RFC 9112 section 2.2).
        BareCr => "bare_cr",
        /// NUL or another control byte (RFC 9110 section 5.5).
        ControlByte => "control_byte",
        /// More empty lines before the request line than are forgiven (RFC 9112 section 2.2).
        LeadingLines => "leading_lines",
        /// A request line that is not method, target and version with one space between (RFC 9112 section 3).
        RequestLine => "request_line",
        /// A target in none of the forms that its method may have (RFC 9112 section 3.2).
        Target => "target",
        /// A field that continues on a second line (RFC 9112 section 5.2).
        FoldedField => "folded_field",
        /// A field name that is not a token (RFC 9110 section 5.1).
        FieldName => "field_name",
        /// Whitespace between a field name and its colon (RFC 9112 section 5.1).
        SpaceBeforeColon => "space_before_colon",
        /// A field value with a byte that may not be there (RFC 9110 section 5.5).
        FieldValue => "field_value",
        /// HTTP/1.1 without `Host` (RFC 9112 section 3.2).
        HostMissing => "host_missing",
        /// More than one `Host` (RFC 9112 section 3.2).
        HostRepeated => "host_repeated",
        /// A `Host` that is not a host and a port (RFC 9112 section 3.2).
        HostInvalid => "host_invalid",
        /// A `Content-Length` that is not one number (RFC 9112 section 6.3).
        ContentLengthInvalid => "content_length_invalid",
        /// More than one `Content-Length` (RFC 9112 section 6.3).
        ContentLengthRepeated => "content_length_repeated",
        /// `Transfer-Encoding` with `Content-Length` (RFC 9112 section 6.1).
        TwoFramings => "two_framings",
        /// `Transfer-Encoding` in HTTP/1.0 (RFC 9112 section 6.1).
        TransferEncodingInHttp10 => "transfer_encoding_in_http10",
        /// A `Transfer-Encoding` that does not end in chunked, once (RFC 9112 section 6.3).
        TransferEncodingInvalid => "transfer_encoding_invalid",
        /// Chunks that break the rules of their framing (RFC 9112 section 7.1), or a body that breaks off.
        BodyMalformed => "body_malformed",
        /// An opening handshake with a body.
        BodyOnUpgrade => "body_on_upgrade",
        /// More options in `Connection` than are compared with the fields.
        ConnectionOptionsTooMany => "connection_options_too_many",
        /// `Upgrade: websocket` without `Connection: Upgrade` (RFC 6455 section 4.2.1).
        ConnectionLacksUpgrade => "connection_lacks_upgrade",
        /// No `Sec-WebSocket-Version` (RFC 6455 section 4.2.1).
        VersionMissing => "version_missing",
        /// More than one `Sec-WebSocket-Version` (RFC 6455 section 11.3.5).
        VersionRepeated => "version_repeated",
        /// No `Sec-WebSocket-Key` (RFC 6455 section 4.2.1).
        KeyMissing => "key_missing",
        /// More than one `Sec-WebSocket-Key` (RFC 6455 section 11.3.1).
        KeyRepeated => "key_repeated",
        /// A `Sec-WebSocket-Key` that does not decode to 16 bytes (RFC 6455 section 4.2.1).
        KeyInvalid => "key_invalid",
        /// A `Sec-WebSocket-Protocol` that is not a list of tokens (RFC 6455 section 11.3.4).
        SubprotocolsMalformed => "subprotocols_malformed",
        /// A subprotocol that is offered twice (RFC 6455 section 4.1).
        SubprotocolRepeated => "subprotocol_repeated",
        /// More subprotocols than are compared with each other.
        SubprotocolsTooMany => "subprotocols_too_many",
        /// A `Sec-WebSocket-Extensions` that breaks its grammar (RFC 6455 section 9.1).
        ExtensionsMalformed => "extensions_malformed",
        /// More than one `Authorization` (RFC 9110 section 5.3: it is no list).
        AuthorizationRepeated => "authorization_repeated",
        /// More than one `Origin` (RFC 6454 section 7.3).
        OriginRepeated => "origin_repeated",
    }
}

impl Refusal {
    /// The status code.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Unauthorized { .. } => 401,
            Self::OriginNotAllowed | Self::InsufficientScope | Self::Forbidden | Self::AddressDenied => 403,
            Self::NoRoute => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::Timeout => 408,
            Self::ContentTooLarge | Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::UpgradeRequired | Self::BadVersion => 426,
            Self::TooManyRequests { .. } | Self::AddressLimit { .. } => 429,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::TransferCodingNotImplemented => 501,
            Self::BadGateway => 502,
            Self::ConnectionLimit { .. }
            | Self::MemoryShort { .. }
            | Self::Draining { .. }
            | Self::UpstreamUnavailable { .. }
            | Self::AuthUnavailable { .. } => 503,
            Self::GatewayTimeout => 504,
            Self::HttpVersion => 505,
        }
    }

    /// What is wrong and what would be right, for the person who wrote the client. Holds nothing of the request.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::BadRequest(reason) => reason.sentence(),
            Self::Unauthorized { has_token: false } => "A token is needed here, and the request has none.",
            Self::Unauthorized { has_token: true } => "The token of the request is not good, or has expired.",
            Self::InsufficientScope => "The token of the request is good, but not for this.",
            Self::Forbidden => "This request is not allowed here.",
            Self::AddressDenied => "Nobody from this address is served here.",
            Self::AddressLimit { .. } => "Too many connections of this address are open; try again later.",
            Self::MemoryShort { .. } => "There is no room for anybody new; try again later.",
            Self::AuthUnavailable { .. } => {
                "Whether the request is allowed cannot be found out at the moment; try again later."
            }
            Self::OriginNotAllowed => "Pages of this origin may not open a WebSocket here.",
            Self::NoRoute => "Nothing is served at this host and path on this port.",
            Self::MethodNotAllowed { .. } => "This method is not served here; Allow lists those that are.",
            Self::Timeout => "The request did not arrive in time.",
            Self::BodyTooLarge => "The body of the request is larger than what is taken here.",
            Self::ContentTooLarge => "Requests with a body are not taken here.",
            Self::TargetTooLong => "The request line is too long.",
            Self::UpgradeRequired => {
                "Only WebSocket is served here: the request needs Upgrade: websocket and Connection: Upgrade. \
                 If the client sent them, a proxy on the way took them out."
            }
            Self::BadVersion => "This version of WebSocket is not served, only version 13.",
            Self::TooManyRequests { .. } => "Too many handshakes; try again later.",
            Self::HeadTooLarge => "The head of the request is too large.",
            Self::TooManyFields => "The head of the request has too many fields.",
            Self::TransferCodingNotImplemented => "Of the transfer codings only chunked is understood.",
            Self::BadGateway => "The service behind this gateway cannot be reached, or gave no valid answer.",
            Self::UpstreamUnavailable { .. } => {
                "The service behind this gateway has no room; try again later."
            }
            Self::GatewayTimeout => "The service behind this gateway did not answer in time.",
            Self::ConnectionLimit { .. } => "Too many connections are open; try again later.",
            Self::Draining { .. } => "This server is about to stop; try again.",
            Self::HttpVersion => "This version of HTTP is not served, only 1.1 and 1.0.",
        }
    }

    /// Appends the whole answer, the sentence as its body.
    pub fn write(self, out: &mut Vec<u8>) {
        self.append(out, false);
    }

    /// Appends the answer to a HEAD request: the same without its body (RFC 9110 section 9.3.2).
    pub fn write_without_body(self, out: &mut Vec<u8>) {
        self.append(out, true);
    }

    fn append(self, out: &mut Vec<u8>, is_head_only: bool) {
        // RFC 9110 section 15.5.22: a 426 names the protocol to upgrade to; section 7.8: and lists it in Connection.
        let connection = if self.status() == 426 { "Upgrade, close" } else { "close" };
        response::append_status_line(out, self.status());
        response::append_field(out, "Connection", connection);
        response::append_field(out, "Cache-Control", "no-store");
        match self {
            Self::MethodNotAllowed { allow } => response::append_field(out, "Allow", allow),
            Self::UpgradeRequired => response::append_field(out, "Upgrade", "websocket"),
            Self::BadVersion => {
                response::append_field(out, "Upgrade", "websocket");
                response::append_field(out, "Sec-WebSocket-Version", "13");
            }
            // RFC 6750 section 3.
            Self::Unauthorized { has_token: false } => {
                response::append_field(out, "WWW-Authenticate", "Bearer");
            }
            Self::Unauthorized { has_token: true } => {
                response::append_field(out, "WWW-Authenticate", "Bearer error=\"invalid_token\"");
            }
            Self::InsufficientScope => {
                response::append_field(out, "WWW-Authenticate", "Bearer error=\"insufficient_scope\"");
            }
            Self::AuthUnavailable { retry_after_s }
            | Self::AddressLimit { retry_after_s }
            | Self::MemoryShort { retry_after_s }
            | Self::TooManyRequests { retry_after_s }
            | Self::ConnectionLimit { retry_after_s }
            | Self::Draining { retry_after_s }
            | Self::UpstreamUnavailable { retry_after_s } => {
                response::append_number_field(out, "Retry-After", retry_after_s);
            }
            Self::BadRequest(_)
            | Self::OriginNotAllowed
            | Self::Forbidden
            | Self::AddressDenied
            | Self::NoRoute
            | Self::Timeout
            | Self::ContentTooLarge
            | Self::BodyTooLarge
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::TooManyFields
            | Self::TransferCodingNotImplemented
            | Self::BadGateway
            | Self::GatewayTimeout
            | Self::HttpVersion => {}
        }
        response::append_field(out, "Content-Type", "text/plain; charset=utf-8");
        response::append_number_field(out, "Content-Length", self.sentence().len() + 1);
        out.extend_from_slice(b"\r\n");
        if !is_head_only {
            out.extend_from_slice(self.sentence().as_bytes());
            out.push(b'\n');
        }
    }
}

impl From<BadRequest> for Refusal {
    fn from(reason: BadRequest) -> Self {
        Self::BadRequest(reason)
    }
}

impl BadRequest {
    /// The rule in words, as [`Refusal::sentence`] gives them.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::TlsClientHello => {
                "This port speaks plain HTTP, and the client began with TLS: use ws:// or http://."
            }
            Self::PlainHttp => {
                "This port speaks TLS, and the client began with plain HTTP: use wss:// or https://."
            }
            Self::Http2Preface => "This port speaks HTTP/1.1, and the client began with HTTP/2.",
            Self::ProxyHeader => "This port expects no PROXY protocol header, and one came.",
            Self::BareLf => "A line ends in LF alone; lines end in CR LF.",
            Self::BareCr => "A CR stands without its LF; lines end in CR LF.",
            Self::ControlByte => "The head of the request holds a control byte.",
            Self::LeadingLines => "Too many empty lines stand before the request line.",
            Self::RequestLine => {
                "The request line is not a method, a target and a version with one space between."
            }
            Self::Target => {
                "The request target is not a path, nor an absolute http or https address without userinfo."
            }
            Self::FoldedField => "A field begins with whitespace or continues on a second line.",
            Self::FieldName => "A field has no name, or a name that is not a token.",
            Self::SpaceBeforeColon => "Whitespace stands between the name of a field and its colon.",
            Self::FieldValue => "The value of a field holds a byte that may not be there.",
            Self::HostMissing => "The Host field is missing.",
            Self::HostRepeated => "The Host field stands more than once.",
            Self::HostInvalid => "The Host field is not a host name or address, perhaps with a port.",
            Self::ContentLengthInvalid => "The Content-Length field is not one number.",
            Self::ContentLengthRepeated => "The Content-Length field stands more than once.",
            Self::TwoFramings => "Transfer-Encoding and Content-Length exclude each other.",
            Self::TransferEncodingInHttp10 => "HTTP/1.0 knows no Transfer-Encoding.",
            Self::TransferEncodingInvalid => "The Transfer-Encoding field does not end in chunked, once.",
            Self::BodyMalformed => {
                "The body of the request is not whole, or its chunks break the rules of their framing."
            }
            Self::BodyOnUpgrade => "A request that opens a WebSocket has no body.",
            Self::ConnectionOptionsTooMany => "The Connection field lists too many options.",
            Self::ConnectionLacksUpgrade => {
                "The request has Upgrade: websocket, but its Connection field does not list Upgrade. \
                 If the client sent it, a proxy on the way took it out."
            }
            Self::VersionMissing => "The Sec-WebSocket-Version field is missing.",
            Self::VersionRepeated => "There is more than one Sec-WebSocket-Version.",
            Self::KeyMissing => "The Sec-WebSocket-Key field is missing.",
            Self::KeyRepeated => "The Sec-WebSocket-Key field stands more than once.",
            Self::KeyInvalid => "The Sec-WebSocket-Key field is not 16 bytes in base64.",
            Self::SubprotocolsMalformed => "The Sec-WebSocket-Protocol field is not a list of tokens.",
            Self::SubprotocolRepeated => "A subprotocol is offered twice.",
            Self::SubprotocolsTooMany => "Too many subprotocols are offered.",
            Self::ExtensionsMalformed => "The Sec-WebSocket-Extensions field breaks its grammar.",
            Self::AuthorizationRepeated => "The Authorization field stands more than once.",
            Self::OriginRepeated => "The Origin field stands more than once.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::{
        field_storage,
        response::{self, ResponseHead},
    };

    /// Every refusal, each reason for a 400 among them.
    fn all() -> Vec<Refusal> {
        let others = [
            Refusal::Unauthorized { has_token: false },
            Refusal::Unauthorized { has_token: true },
            Refusal::InsufficientScope,
            Refusal::Forbidden,
            Refusal::AddressDenied,
            Refusal::AddressLimit { retry_after_s: 4 },
            Refusal::MemoryShort { retry_after_s: 4 },
            Refusal::AuthUnavailable { retry_after_s: 4 },
            Refusal::OriginNotAllowed,
            Refusal::NoRoute,
            Refusal::MethodNotAllowed { allow: "GET, HEAD" },
            Refusal::Timeout,
            Refusal::ContentTooLarge,
            Refusal::TargetTooLong,
            Refusal::UpgradeRequired,
            Refusal::BadVersion,
            Refusal::TooManyRequests { retry_after_s: 1 },
            Refusal::HeadTooLarge,
            Refusal::TooManyFields,
            Refusal::TransferCodingNotImplemented,
            Refusal::BadGateway,
            Refusal::UpstreamUnavailable { retry_after_s: 5 },
            Refusal::GatewayTimeout,
            Refusal::ConnectionLimit { retry_after_s: u32::MAX },
            Refusal::Draining { retry_after_s: 3 },
            Refusal::HttpVersion,
        ];
        BadRequest::ALL.iter().copied().map(Refusal::from).chain(others).collect()
    }

    fn written(refusal: Refusal) -> (String, String) {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (format!("{head}\r\n\r\n"), body.to_owned())
    }

    #[test]
    fn every_refusal_is_an_answer_with_a_body_that_names_the_fault() {
        for refusal in all() {
            let (head, body) = written(refusal);
            let mut storage = field_storage();
            let parsed = ResponseHead::parse(head.as_bytes(), &mut storage).unwrap();
            assert_eq!(parsed.status, refusal.status());
            assert_eq!(body, format!("{}\n", refusal.sentence()));
            assert!(body.len() > 20 && body.ends_with(".\n"), "{body:?}");
            let single = |name| {
                let values: Vec<_> = parsed.values(name).collect();
                assert!(values.len() <= 1, "{refusal:?}: {name} is repeated");
                values.first().map(|value| std::str::from_utf8(value).unwrap())
            };
            assert_eq!(single("Content-Length"), Some(body.len().to_string().as_str()));
            assert_eq!(single("Content-Type"), Some("text/plain; charset=utf-8"));
            assert_eq!(single("Cache-Control"), Some("no-store"));
            assert!(single("Connection").is_some_and(|value| value.ends_with("close")));
            assert!(!response::reason_phrase(parsed.status).is_empty(), "{}", parsed.status);
        }
    }

    #[test]
    fn every_426_carries_upgrade_websocket_and_connection_upgrade() {
        let mut count = 0;
        for refusal in all().into_iter().filter(|refusal| refusal.status() == 426) {
            let (head, _) = written(refusal);
            assert!(head.contains("\r\nUpgrade: websocket\r\n"), "{head}");
            assert!(head.contains("\r\nConnection: Upgrade, close\r\n"), "{head}");
            count += 1;
        }
        assert_eq!(count, 2);
        assert!(written(Refusal::BadVersion).0.contains("\r\nSec-WebSocket-Version: 13\r\n"));
    }

    #[test]
    fn a_405_lists_the_methods_that_are_allowed() {
        assert!(
            written(Refusal::MethodNotAllowed { allow: "GET, HEAD" }).0.contains("\r\nAllow: GET, HEAD\r\n")
        );
    }

    #[test]
    fn every_503_and_429_tells_when_to_try_again() {
        for refusal in all().into_iter().filter(|refusal| matches!(refusal.status(), 429 | 503)) {
            assert!(written(refusal).0.contains("\r\nRetry-After: "), "{refusal:?}");
        }
        let (head, _) = written(Refusal::ConnectionLimit { retry_after_s: u32::MAX });
        assert!(head.contains("\r\nRetry-After: 4294967295\r\n"));
    }

    #[test]
    fn a_refused_head_request_gets_the_same_head_without_the_body() {
        let mut out = Vec::new();
        Refusal::NoRoute.write_without_body(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), written(Refusal::NoRoute).0);
    }
}
