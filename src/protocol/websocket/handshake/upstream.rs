//! What an upstream answers an opening handshake that was passed on to it with the client's own key.

use super::{Offer, client, client::ResponseFault, token_text};
use crate::protocol::http::{body::ResponseFraming, response::ResponseHead};

/// What an upstream's response means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'h> {
    /// A 101 that accepts the client's handshake: what follows its head are frames.
    Accepted {
        /// The subprotocol, one of those that the client offered.
        subprotocol: Option<&'h str>,
        /// Whether extensions were agreed on, all of which the client offered. What the reserved bits of frames mean is
        /// then between the two ends.
        has_extensions: bool,
    },
    /// Another status of 1xx: nothing to the client, and another head follows.
    ///
    /// An upstream could send them without end: whoever reads them counts.
    Interim,
    /// The upstream does not take the handshake. The response is passed on to the client, with its body.
    Refused {
        /// The status code, 200 to 599.
        status: u16,
        /// How the body is framed.
        framing: ResponseFraming,
    },
}

/// Judges the head of a response to the opening handshake of a client that offered this.
///
/// Only after [`Answer::Accepted`] may a byte be passed on as it comes: until then the exchange is HTTP.
///
/// # Errors
/// [`ResponseFault`]: a 101 that breaks a rule of RFC 6455 section 4.1 or is not of HTTP/1.1, a refusal whose body has no
/// clear end, a status beyond 599. Nothing of it is passed on.
pub fn judge<'h>(head: &ResponseHead<'h>, offer: &Offer) -> Result<Answer<'h>, ResponseFault> {
    match head.status {
        101 => {
            let has_subprotocol = |chosen: &[u8]| offer.has_subprotocol(chosen);
            let has_extension = |chosen: &[u8]| offer.has_extension(chosen);
            let agreed = client::verify(head, &offer.key, has_subprotocol, has_extension)?;
            Ok(Answer::Accepted {
                subprotocol: agreed.subprotocol.map(token_text),
                has_extensions: agreed.has_extensions,
            })
        }
        100..=199 => Ok(Answer::Interim),
        status @ 200..=599 => {
            let framing = ResponseFraming::of(head, false).map_err(ResponseFault::Framing)?;
            Ok(Answer::Refused { status, framing })
        }
        _ => Err(ResponseFault::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        http::{body::FramingFault, field_storage, request::RequestHead},
        websocket::handshake::{self, Request},
    };

    const REQUEST: &[u8] = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: x-first; a=\"b\"\r\n\
        Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, permessage-deflate\r\n\r\n";
    const ACCEPT: &str = "Upgrade: WebSocket\r\nConnection: upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    /// Judges a response, and hands what comes of it to the check: it borrows from here.
    fn judged<T>(response: &str, check: impl FnOnce(Result<Answer<'_>, ResponseFault>) -> T) -> T {
        let (mut storage, mut response_storage) = (field_storage(), field_storage());
        let head = RequestHead::parse(REQUEST, &mut storage).unwrap();
        let Ok(Request::Opening(opening)) = handshake::judge(&head) else {
            panic!("it is no opening handshake")
        };
        let offer = opening.offer();
        check(judge(&ResponseHead::parse(response.as_bytes(), &mut response_storage).unwrap(), &offer))
    }

    fn comes_to(response: &str, expected: Result<Answer<'_>, ResponseFault>) {
        judged(response, |found| assert_eq!(found, expected, "{response}"));
    }

    /// A good 101 with these further lines.
    fn accepted(lines: &str) -> String {
        format!("HTTP/1.1 101 x\r\n{ACCEPT}{lines}\r\n")
    }

    #[test]
    fn a_101_is_verified_against_what_the_client_sent() {
        let good = |subprotocol, has_extensions| Ok(Answer::Accepted { subprotocol, has_extensions });
        comes_to(&accepted(""), good(None, false));
        comes_to(&accepted("Sec-WebSocket-Protocol: superchat\r\n"), good(Some("superchat"), false));
        let deflate = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n";
        comes_to(&accepted(deflate), good(None, true));
        comes_to(&accepted("Sec-WebSocket-Extensions: permessage-deflate , x-first\r\n"), good(None, true));
    }

    #[test]
    fn a_101_that_breaks_a_rule_is_a_fault() {
        for (from, to, fault) in [
            ("HTTP/1.1", "HTTP/1.0", ResponseFault::Malformed),
            ("Upgrade: WebSocket", "Upgrade: h2c", ResponseFault::Upgrade),
            ("Connection: upgrade", "Connection: close", ResponseFault::Connection),
            ("s3p", "S3p", ResponseFault::Accept),
            ("Sec-WebSocket-Accept", "X-Accept", ResponseFault::Accept),
        ] {
            comes_to(&accepted("").replacen(from, to, 1), Err(fault));
        }
        comes_to(&accepted("Sec-WebSocket-Accept: x\r\n"), Err(ResponseFault::Accept));
        for lines in ["other", "Chat", "chat, superchat", "", "chat\r\nSec-WebSocket-Protocol: chat"] {
            let lines = format!("Sec-WebSocket-Protocol: {lines}\r\n");
            comes_to(&accepted(&lines), Err(ResponseFault::Subprotocol));
        }
        let many = "x-first,".repeat(9);
        for extensions in
            ["other", "", "x-first, other", "x-first, x-first", "X-First", "x-first; =", "a b", &many]
        {
            let lines = format!("Sec-WebSocket-Extensions: {extensions}\r\n");
            comes_to(&accepted(&lines), Err(ResponseFault::Extension));
        }
    }

    #[test]
    fn an_offer_is_what_all_fields_of_the_handshake_offer_together() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Protocol: , chat\r\nsec-websocket-protocol: a ,b,\r\n\
            Sec-WebSocket-Extensions: x-first; a=\"b\"\r\nSec-WebSocket-Extensions: ,x-second\r\n\r\n";
        let mut storage = field_storage();
        let head = RequestHead::parse(head.as_bytes(), &mut storage).unwrap();
        let Ok(Request::Opening(opening)) = handshake::judge(&head) else { panic!("no opening handshake") };
        let offer = opening.offer();
        for (subprotocol, is_offered) in [("chat", true), ("a", true), ("b", true), ("c", false), ("", false)]
        {
            assert_eq!(offer.has_subprotocol(subprotocol.as_bytes()), is_offered, "{subprotocol}");
        }
        for (extension, is_offered) in [("x-first", true), ("x-second", true), ("a", false), ("b", false)] {
            assert_eq!(offer.has_extension(extension.as_bytes()), is_offered, "{extension}");
        }
    }

    #[test]
    fn interim_responses_are_passed_over() {
        for status in [100, 102, 103, 199] {
            comes_to(&format!("HTTP/1.1 {status} x\r\n\r\n"), Ok(Answer::Interim));
        }
    }

    #[test]
    fn other_statuses_are_refusals_with_their_framing() {
        for (version, status, lines, framing) in [
            ("1.1", 200, "Content-Length: 5\r\n", ResponseFraming::Length(5)),
            ("1.1", 401, "Transfer-Encoding: chunked\r\n", ResponseFraming::Chunked),
            ("1.0", 403, "", ResponseFraming::UntilEnd),
            ("1.1", 304, ACCEPT, ResponseFraming::None),
            ("1.1", 599, "Content-Length: 0\r\n", ResponseFraming::None),
        ] {
            let response = format!("HTTP/{version} {status} x\r\n{lines}\r\n");
            comes_to(&response, Ok(Answer::Refused { status, framing }));
        }
        let both = "HTTP/1.1 403 x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        comes_to(both, Err(ResponseFault::Framing(FramingFault::Two)));
        comes_to("HTTP/1.1 600 x\r\n\r\n", Err(ResponseFault::Malformed));
    }
}
