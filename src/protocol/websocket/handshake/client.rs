//! The client's side of the opening handshake (RFC 6455 section 4.1): for upstreams, probes and the load generator.

use std::fmt;

use super::{EXTENSIONS_FIELD, SUBPROTOCOL_FIELD, accept_key, base64, extension_name};
use crate::protocol::http::{
    body::FramingFault,
    field_storage,
    refusal::Refusal,
    request::Version,
    response::{self, ResponseHead},
    scan::HeadScan,
};
use crate::protocol::websocket::deflate::{Terms, client::ClientOffer};

/// The largest response head that [`ClientRequest::verify_response`] reads, in bytes. Servers answer in a few hundred.
pub const RESPONSE_HEAD_SIZE_MAX: usize = 16_384;

/// The most fields that a response head may have for [`ClientRequest::verify_response`].
pub const RESPONSE_FIELD_COUNT_MAX: usize = 100;

/// The most extensions that a response may choose. Each is compared with each that was offered, and there is one.
const EXTENSION_COUNT_MAX: usize = 8;

/// An opening handshake as a client sends it (RFC 6455 section 4.1).
#[derive(Clone, Copy, Debug)]
pub struct ClientRequest<'a> {
    /// Path and query, beginning with a slash.
    pub target: &'a str,
    /// Host, and the port where it is not the default one.
    pub host: &'a str,
    /// 16 random bytes, new for each handshake.
    pub key: [u8; 16],
    /// What to offer, best first: tokens, none twice.
    pub subprotocols: &'a [&'a str],
    /// What is offered to compress messages by, if anything.
    pub deflate: Option<ClientOffer>,
    /// Further fields: names that are tokens, values without control bytes.
    pub fields: &'a [(&'a str, &'a str)],
}

/// The answer that accepted an opening handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified<'a> {
    /// The size of the response head in bytes. What follows are frames.
    pub head_size: usize,
    /// The subprotocol that the server chose of those offered.
    pub subprotocol: Option<&'a str>,
    /// What is agreed on compression, where it was offered and the server agrees.
    pub deflate: Option<Terms>,
}

/// Why a response does not accept an opening handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFault {
    /// It is no response of HTTP/1.1, or a malformed one.
    Malformed,
    /// Its head exceeds [`RESPONSE_HEAD_SIZE_MAX`] or [`RESPONSE_FIELD_COUNT_MAX`].
    TooLarge,
    /// Another status than 101.
    Status {
        /// The status code.
        status: u16,
    },
    /// `Upgrade` is not websocket, once.
    Upgrade,
    /// `Connection` does not list upgrade.
    Connection,
    /// `Sec-WebSocket-Accept` is not the answer to the key, once.
    Accept,
    /// A subprotocol that was not offered, or more than one.
    Subprotocol,
    /// An extension that was not offered, or that stands twice.
    Extension,
    /// permessage-deflate by other parameters than were offered.
    Deflate,
    /// Another status than 101, with a body that cannot be passed on.
    Framing(FramingFault),
}

impl<'a> ClientRequest<'a> {
    /// Appends the request.
    pub fn write(&self, out: &mut Vec<u8>) {
        for part in ["GET ", self.target, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        response::append_field(out, "Host", self.host);
        out.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ");
        out.extend_from_slice(&base64::<24>(&self.key));
        out.extend_from_slice(b"\r\nSec-WebSocket-Version: 13\r\n");
        for subprotocol in self.subprotocols {
            response::append_field(out, "Sec-WebSocket-Protocol", subprotocol);
        }
        if let Some(offer) = self.deflate {
            response::append_field(out, "Sec-WebSocket-Extensions", offer.extension());
        }
        for (name, value) in self.fields {
            response::append_field(out, name, value);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Verifies the response to this request (RFC 6455 section 4.1), strictly.
    ///
    /// `received` is everything since the connection was opened; `None` where more must come. Each call begins
    /// at the first byte again, which [`RESPONSE_HEAD_SIZE_MAX`] bounds.
    ///
    /// # Errors
    /// [`ResponseFault`]: the WebSocket has failed, and nothing that follows is a frame.
    pub fn verify_response(&self, received: &[u8]) -> Result<Option<Verified<'a>>, ResponseFault> {
        let mut scan = HeadScan::new(RESPONSE_HEAD_SIZE_MAX, RESPONSE_FIELD_COUNT_MAX);
        let head_size = match scan.scan(received) {
            Ok(Some(size)) => size,
            Ok(None) => return Ok(None),
            Err(refusal) => return Err(ResponseFault::of_scan(refusal)),
        };
        let mut storage = field_storage();
        let head = ResponseHead::parse(&received[..head_size], &mut storage)
            .map_err(|_| ResponseFault::Malformed)?;
        if head.status != 101 {
            return Err(ResponseFault::Status { status: head.status });
        }
        let is_subprotocol_offered =
            |chosen: &[u8]| self.subprotocols.iter().any(|offered| offered.as_bytes() == chosen);
        let is_extension_offered = |name: &[u8]| self.deflate.is_some() && ClientOffer::is_named(name);
        let agreed = verify(&head, &base64::<24>(&self.key), is_subprotocol_offered, is_extension_offered)?;
        let subprotocol = agreed.subprotocol.and_then(|chosen| {
            self.subprotocols.iter().copied().find(|offered| offered.as_bytes() == chosen)
        });
        let deflate = match (self.deflate, head.list(EXTENSIONS_FIELD).next()) {
            (Some(offer), Some(extension)) => Some(offer.agree(extension).ok_or(ResponseFault::Deflate)?),
            _ => None,
        };
        Ok(Some(Verified { head_size, subprotocol, deflate }))
    }
}

impl ResponseFault {
    /// What it means for a response that [`HeadScan::scan`] refuses its head.
    pub const fn of_scan(refusal: Refusal) -> Self {
        match refusal {
            Refusal::HeadTooLarge | Refusal::TooManyFields | Refusal::TargetTooLong => Self::TooLarge,
            _ => Self::Malformed,
        }
    }
}

/// What a 101 agrees to.
pub(super) struct Agreed<'h> {
    /// The subprotocol, of those offered.
    pub(super) subprotocol: Option<&'h [u8]>,
    /// Whether there is an extension, of those offered.
    pub(super) has_extensions: bool,
}

/// Verifies a response with status 101 to an opening handshake with this key (RFC 6455 section 4.1).
pub(super) fn verify<'h>(
    head: &ResponseHead<'h>,
    key: &[u8],
    is_subprotocol_offered: impl Fn(&[u8]) -> bool,
    is_extension_offered: impl Fn(&[u8]) -> bool,
) -> Result<Agreed<'h>, ResponseFault> {
    debug_assert_eq!(head.status, 101, "other responses agree to nothing");
    if head.version != Version::Http11 {
        return Err(ResponseFault::Malformed);
    }
    if !only(head.values("upgrade")).is_some_and(|value| value.eq_ignore_ascii_case(b"websocket")) {
        return Err(ResponseFault::Upgrade);
    }
    if !head.list("connection").any(|option| option.eq_ignore_ascii_case(b"upgrade")) {
        return Err(ResponseFault::Connection);
    }
    if only(head.values("sec-websocket-accept")) != Some(&accept_key(key)) {
        return Err(ResponseFault::Accept);
    }
    let subprotocol = if head.values(SUBPROTOCOL_FIELD).next().is_some() {
        let chosen = only(head.values(SUBPROTOCOL_FIELD)).ok_or(ResponseFault::Subprotocol)?;
        if !is_subprotocol_offered(chosen) {
            return Err(ResponseFault::Subprotocol);
        }
        Some(chosen)
    } else {
        None
    };
    let has_extensions = head.values(EXTENSIONS_FIELD).next().is_some();
    if has_extensions {
        let mut seen = [&b""[..]; EXTENSION_COUNT_MAX];
        let mut count = 0;
        for extension in head.list(EXTENSIONS_FIELD) {
            let name = extension_name(extension).ok_or(ResponseFault::Extension)?;
            if seen[..count].contains(&name) || !is_extension_offered(name) {
                return Err(ResponseFault::Extension);
            }
            *seen.get_mut(count).ok_or(ResponseFault::Extension)? = name;
            count += 1;
        }
        if count == 0 {
            return Err(ResponseFault::Extension);
        }
    }
    Ok(Agreed { subprotocol, has_extensions })
}

impl fmt::Display for ResponseFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Malformed => "the response is not HTTP/1.1",
            Self::TooLarge => "the head of the response is too large",
            Self::Status { status } => return write!(formatter, "the server answered {status}, not 101"),
            Self::Upgrade => "Upgrade in the response is not websocket",
            Self::Connection => "Connection in the response does not list Upgrade",
            Self::Accept => "Sec-WebSocket-Accept does not answer the key",
            Self::Subprotocol => "the server chose a subprotocol that was not offered",
            Self::Extension => "the server chose an extension that was not offered",
            Self::Deflate => "the server's parameters of permessage-deflate do not answer the offer",
            Self::Framing(fault) => return fault.fmt(formatter),
        })
    }
}

impl std::error::Error for ResponseFault {}

/// The one value there is, if there is one and no more.
fn only<'h>(mut values: impl Iterator<Item = &'h [u8]>) -> Option<&'h [u8]> {
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        http::request::RequestHead,
        websocket::{
            deflate::Policy,
            handshake::{Request, judge, write_accept},
        },
    };

    /// The key below as it stands in a field: the example of RFC 6455 section 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    const CLIENT: ClientRequest<'_> = ClientRequest {
        target: "/chat?a=b",
        host: "server.example:81",
        key: *b"the sample nonce",
        subprotocols: &["chat", "superchat"],
        deflate: None,
        fields: &[("Origin", "http://a.example")],
    };

    #[test]
    fn what_our_client_sends_our_server_accepts() {
        let mut out = Vec::new();
        CLIENT.write(&mut out);
        assert!(std::str::from_utf8(&out).unwrap().contains(&format!("\r\nSec-WebSocket-Key: {KEY}\r\n")));
        assert_eq!(HeadScan::new(16_384, 100).scan(&out), Ok(Some(out.len())));
        let mut storage = field_storage();
        let head = RequestHead::parse(&out, &mut storage).unwrap();
        assert_eq!((head.path(), head.query(), head.host()), ("/chat", Some("a=b"), "server.example"));
        let Ok(Request::Opening(opening)) = judge(&head) else { panic!("it is no opening handshake") };
        assert_eq!(opening.key(), KEY.as_bytes());
        assert_eq!(opening.origin(), Some(&b"http://a.example"[..]));
        assert_eq!(opening.subprotocols().collect::<Vec<_>>(), ["chat", "superchat"]);
    }

    #[test]
    fn a_response_is_verified_when_its_last_byte_has_come() {
        for subprotocol in [None, Some("superchat")] {
            let mut out = Vec::new();
            write_accept(&mut out, KEY.as_bytes(), subprotocol, None);
            let head_size = out.len();
            for size in 0..head_size {
                assert_eq!(CLIENT.verify_response(&out[..size]), Ok(None));
            }
            out.extend_from_slice(b"\x81\x00\x00\n");
            assert_eq!(
                CLIENT.verify_response(&out),
                Ok(Some(Verified { head_size, subprotocol, deflate: None }))
            );
        }
    }

    #[test]
    fn what_is_agreed_on_compression_was_offered() {
        let client = ClientRequest { deflate: Some(ClientOffer::Shared), ..CLIENT };
        let mut out = Vec::new();
        client.write(&mut out);
        let mut storage = field_storage();
        let head = RequestHead::parse(&out, &mut storage).unwrap();
        let Ok(Request::Opening(opening)) = judge(&head) else { panic!("it is no opening handshake") };
        let policy = Policy { keeps_contexts: true, window_bits: 12 };
        let mut out = Vec::new();
        write_accept(&mut out, KEY.as_bytes(), None, opening.agree_on_deflate(policy));
        let verified = client.verify_response(&out).unwrap().unwrap();
        assert!(verified.deflate.is_some());

        let good = String::from_utf8(out).unwrap();
        let parameters =
            "; server_no_context_takeover; server_max_window_bits=12; client_no_context_takeover";
        for (from, to, fault) in [
            (parameters, "; client_no_context_takeover", ResponseFault::Deflate),
            (parameters, "; server_no_context_takeover; client_max_window_bits=12", ResponseFault::Deflate),
            (parameters, "; server_no_context_takeover; unknown", ResponseFault::Deflate),
            (parameters, ", x-other", ResponseFault::Extension),
            ("permessage-deflate; ", "permessage-deflate, permessage-deflate; ", ResponseFault::Extension),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(client.verify_response(bad.as_bytes()), Err(fault), "{bad}");
        }
        let start = good.find("Sec-WebSocket-Extensions").unwrap();
        let declined = format!("{}\r\n", &good[..start]);
        assert_eq!(client.verify_response(declined.as_bytes()).unwrap().unwrap().deflate, None);
    }

    #[test]
    fn a_response_that_breaks_a_rule_is_not_verified() {
        let mut out = Vec::new();
        write_accept(&mut out, KEY.as_bytes(), Some("chat"), None);
        let good = String::from_utf8(out).unwrap();
        for (from, to, fault) in [
            ("HTTP/1.1 101", "HTTP/1.1 200", ResponseFault::Status { status: 200 }),
            ("HTTP/1.1 101", "HTTP/1.1 100", ResponseFault::Status { status: 100 }),
            ("HTTP/1.1 101", "HTTP/1.0 101", ResponseFault::Malformed),
            ("HTTP/1.1 101", "HTTP/2.0 101", ResponseFault::Malformed),
            ("\r\nUpgrade:", "\nUpgrade:", ResponseFault::Malformed),
            ("Upgrade: websocket", "Upgrade: websocket, h2c", ResponseFault::Upgrade),
            ("Upgrade: websocket\r\n", "", ResponseFault::Upgrade),
            ("Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: websocket", ResponseFault::Upgrade),
            ("Connection: Upgrade", "Connection: close", ResponseFault::Connection),
            ("Accept: s3p", "Accept: S3p", ResponseFault::Accept),
            ("Sec-WebSocket-Accept:", "Sec-WebSocket-Accepted:", ResponseFault::Accept),
            ("xOo=\r\n", "xOo=\r\nSec-WebSocket-Accept: x\r\n", ResponseFault::Accept),
            ("Protocol: chat", "Protocol: Chat", ResponseFault::Subprotocol),
            ("Protocol: chat", "Protocol:", ResponseFault::Subprotocol),
            ("Protocol: chat", "Protocol: chat, superchat", ResponseFault::Subprotocol),
            ("Protocol: chat", "Protocol: chat\r\nSec-WebSocket-Protocol: chat", ResponseFault::Subprotocol),
            ("Protocol: chat", "Extensions: permessage-deflate", ResponseFault::Extension),
            ("Protocol: chat", "Extensions:", ResponseFault::Extension),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(CLIENT.verify_response(bad.as_bytes()), Err(fault), "{bad}");
        }
        let long = format!("HTTP/1.1 101 {}", "x".repeat(RESPONSE_HEAD_SIZE_MAX));
        assert_eq!(CLIENT.verify_response(long.as_bytes()), Err(ResponseFault::TooLarge));
        let lenient =
            good.replace("websocket", "WebSocket").replace("Connection: Upgrade", "connection: x, upgrade");
        assert!(CLIENT.verify_response(lenient.as_bytes()).is_ok_and(|verified| verified.is_some()));
    }
}
