//! What an upstream answers an opening handshake, on its way to the client.

use super::{Edits, FoldedName, holds_name};
use crate::protocol::http::{
    Field,
    body::ResponseFraming,
    response::{ResponseHead, append_checked_field, append_field, append_number_field, append_status_line},
};
use crate::protocol::websocket::deflate::Terms;

/// Appends the head of the 101 that the client gets. Frames follow at once.
///
/// `head` is the upstream's, judged to accept the client's handshake. Its fields pass in their order, but for those of
/// the upstream's connection: what completes the upgrade is written anew. `deflate` is what was agreed on with the client where
/// the upstream has agreed on no extension.
pub fn write_accepted(head: &ResponseHead<'_>, edits: Edits<'_>, deflate: Option<Terms>, out: &mut Vec<u8>) {
    debug_assert_eq!(head.status, 101, "nothing else accepts a handshake");
    append_status_line(out, head.status);
    out.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\n");
    if let Some(terms) = deflate {
        terms.write_field(out);
    }
    append_fields(out, head, edits);
}

/// Appends the head of the refusal that the client gets. The body follows as it comes from the upstream.
///
/// `framing` is what the upstream's head came to. The client's connection closes behind the body, which ends as it does
/// on the upstream's: at its size, with its last chunk, or with the stream.
pub fn write_refused(head: &ResponseHead<'_>, framing: ResponseFraming, edits: Edits<'_>, out: &mut Vec<u8>) {
    debug_assert!((200..=599).contains(&head.status), "{} ends no exchange", head.status);
    append_status_line(out, head.status);
    // RFC 9110 section 15.5.22: a 426 names the protocol to upgrade to; section 7.8: and lists it in Connection.
    out.extend_from_slice(if head.status == 426 {
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n"
    } else {
        b"Connection: close\r\n"
    });
    match framing {
        // RFC 9110 section 8.6: where there can be no body there is no size.
        ResponseFraming::None if matches!(head.status, 204 | 304) => {}
        ResponseFraming::None => append_number_field(out, "Content-Length", 0),
        ResponseFraming::Length(size) => append_number_field(out, "Content-Length", size),
        ResponseFraming::Chunked => append_field(out, "Transfer-Encoding", "chunked"),
        ResponseFraming::UntilEnd => {}
    }
    append_fields(out, head, edits);
}

/// Appends the fields that pass, those that are set, and the end of the head.
///
/// The options of `Connection` are compared with each field, as many as they are: upstreams are the operator's own, and
/// their heads are bounded.
fn append_fields(out: &mut Vec<u8>, head: &ResponseHead<'_>, edits: Edits<'_>) {
    debug_assert!(edits.spare(|name| name.is_of_the_connection() || name.is_of_the_handshake()));
    for &Field { name, value } in head.fields() {
        let folded = FoldedName::new(name);
        let passes = if folded.is_of_the_connection() {
            false
        } else {
            folded.is_of_the_handshake() || !holds_name(head.list("connection"), name.as_bytes())
        };
        if passes && edits.pass(name) {
            append_checked_field(out, name, value);
        }
    }
    edits.write(out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::field_storage;

    fn passed(head: &str, edits: Edits<'_>) -> String {
        let mut storage = field_storage();
        let head = ResponseHead::parse(head.as_bytes(), &mut storage).unwrap();
        let mut out = b"before ".to_vec();
        if head.status == 101 {
            write_accepted(&head, edits, None, &mut out);
        } else {
            write_refused(&head, ResponseFraming::of(&head, false).unwrap(), edits, &mut out);
        }
        String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
    }

    #[test]
    fn a_101_passes_with_its_upgrade_written_anew() {
        assert_eq!(
            passed(
                "HTTP/1.1 101 Whatever\r\nServer: a\r\nconnection: upgrade, X-Hop, Sec-WebSocket-Accept\r\nUpgrade: WebSocket\r\nX-Hop: b\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\
                 Transfer-Encoding: chunked\r\nSet-Cookie: c=d\r\nSet-Cookie: e=f\r\n\r\n",
                Edits::default()
            ),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nServer: a\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\nSet-Cookie: c=d\r\nSet-Cookie: e=f\r\n\r\n"
        );
    }

    #[test]
    fn a_refusal_passes_with_the_framing_it_came_with() {
        for (head, expected) in [
            (
                "HTTP/1.1 401 No\r\nContent-Length: 5, 5\r\nWWW-Authenticate: Basic\r\nConnection: keep-alive\r\n\r\n",
                "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 5\r\nWWW-Authenticate: Basic\r\n\r\n",
            ),
            (
                "HTTP/1.1 403 No\r\nTransfer-Encoding: Chunked\r\nTrailer: Digest\r\n\r\n",
                "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
            ),
            ("HTTP/1.0 503 No\r\n\r\n", "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n"),
            (
                "HTTP/1.1 499 x\r\nContent-Length: 0\r\n\r\n",
                "HTTP/1.1 499 \r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            ),
            ("HTTP/1.1 304 x\r\nContent-Length: 7\r\n\r\n", "HTTP/1.1 304 \r\nConnection: close\r\n\r\n"),
        ] {
            assert_eq!(passed(head, Edits::default()), expected);
        }
    }

    #[test]
    fn a_426_keeps_its_upgrade_and_the_version_that_is_served() {
        let head = "HTTP/1.1 426 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Content-Length: 0\r\n\r\n";
        assert_eq!(
            passed(head, Edits::default()),
            "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\
             Content-Length: 0\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
    }

    #[test]
    fn edits_remove_and_then_set() {
        let (remove, set) = (["server".to_owned()], [("X-Env".to_owned(), "prod".to_owned())]);
        let head = "HTTP/1.1 403 x\r\nServer: a\r\nX-ENV: test\r\nVary: b\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(
            passed(head, Edits { remove: &remove, set: &set }),
            "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\nVary: b\r\nX-Env: prod\r\n\r\n"
        );
    }
}
