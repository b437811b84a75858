//! What must hold for any head on its way, as a function that fuzzers and stable tests call.

use core::net::IpAddr;

use super::{Edits, FoldedName, RequestPassage, Sender, Withheld, response, trace};
use crate::protocol::{
    http::{
        Field,
        body::ResponseFraming,
        field_storage,
        refusal::{BadRequest, Refusal},
        request::RequestHead,
        response::ResponseHead,
        scan::HeadScan,
    },
    websocket::handshake::{self, Opening, Request},
};

/// Heads are read with more fields than those that are passed on may gain.
const FIELD_COUNT_MAX: usize = 64;
const FIELD_COUNT_PASSED_MAX: usize = FIELD_COUNT_MAX + 16;

/// A byte that chooses, and then any bytes as the head of a request or of a response.
///
/// An opening handshake that is passed on is one head, the same handshake for the path it was meant for, with no field
/// that belongs to the client's connection or that the sender had no right to; and an upstream that trusts the gateway
/// believes what the gateway believes about the client. A response that is passed on is one head of the same status, with
/// a body framed in the same way.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_forward(data: &[u8]) {
    let [choice, bytes @ ..] = data else { return };
    let Ok(Some(size)) = HeadScan::new(usize::MAX, FIELD_COUNT_MAX).scan(bytes) else { return };
    let mut storage = field_storage();
    if choice & 1 == 0 {
        let Ok(head) = RequestHead::parse(&bytes[..size], &mut storage) else { return };
        if let Ok(Request::Opening(opening)) = handshake::judge(&head) {
            pass_request(&head, &opening, choice >> 1);
        }
    } else if let Ok(head) = ResponseHead::parse(&bytes[..size], &mut storage) {
        pass_response(&head);
    }
}

/// The networks that are trusted here.
fn is_trusted(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[0] == 10,
        IpAddr::V6(address) => address.octets()[0] == 0xfd,
    }
}

fn pass_request(head: &RequestHead<'_>, opening: &Opening<'_>, choice: u8) {
    let peer = [
        IpAddr::from([10, 0, 0, 1]),
        IpAddr::from([192, 0, 2, 1]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    ][usize::from(choice & 3)];
    let sender = Sender::of(head, peer, is_trusted);
    assert!(is_trusted(peer) || sender.client() == peer, "a peer that is not trusted was believed");
    let edits = Edits { remove: &["Cookie".to_owned()], set: &[("X-Env".to_owned(), "prod".to_owned())] };
    let passage = RequestPassage {
        path: &format!("/new{}", head.path()),
        sender,
        is_secure: true,
        port: 443,
        edits,
        withheld: Withheld::default(),
        granted: &[],
        random: [7; 24],
    };
    let mut out = Vec::new();
    let request_id = match passage.write(head, &mut out) {
        Ok(request_id) => request_id.to_string(),
        Err(refusal) => {
            assert_eq!(refusal, Refusal::BadRequest(BadRequest::ConnectionOptionsTooMany));
            return assert!(out.is_empty());
        }
    };

    assert_one_head(&out);
    let mut storage = field_storage();
    let passed = RequestHead::parse(&out, &mut storage).expect("what is passed on keeps the grammar");
    assert_eq!(passed.path(), format!("/new{}", head.path()));
    assert_eq!((passed.query(), passed.authority()), (head.query(), head.authority()));
    let Ok(Request::Opening(same)) = handshake::judge(&passed) else {
        panic!("it is an opening handshake no more")
    };
    assert_eq!(same.key(), opening.key());
    assert_eq!(same.offer(), opening.offer());
    assert!(same.subprotocols().eq(opening.subprotocols()) && same.extensions().eq(opening.extensions()));
    assert_of_one_connection(passed.fields(), &[("connection", "Upgrade"), ("upgrade", "websocket")]);

    let single = |name: &str| {
        let mut values = passed.values(name);
        let value = values.next().unwrap_or_else(|| panic!("{name} is missing"));
        assert!(values.next().is_none(), "{name} is repeated");
        std::str::from_utf8(value).expect("we wrote it")
    };
    assert_eq!(single("x-env"), "prod");
    assert_eq!(single("x-request-id"), request_id);
    assert!(trace::traceparent(&passed).is_some());
    assert!(passed.values("cookie").next().is_none());
    assert!(passed.values("forwarded").count() == 1 && passed.values("x-forwarded-for").count() == 1);
    if !sender.is_believed() {
        assert_eq!(single("x-forwarded-for"), peer.to_string());
        assert_eq!((single("x-forwarded-proto"), single("x-forwarded-port")), ("https", "443"));
        let count =
            passed.fields().iter().filter(|field| FoldedName::new(field.name).is_of_the_sender()).count();
        let has_host = usize::from(!head.host().is_empty());
        assert_eq!(count, 4 + has_host, "a field that says who the client is has slipped through");
    }
    let upstream_sees = Sender::of(&passed, IpAddr::from([10, 9, 9, 9]), is_trusted);
    assert!(upstream_sees.is_believed() && !upstream_sees.has_ignored());
    assert_eq!(upstream_sees.client(), sender.client());
}

fn pass_response(head: &ResponseHead<'_>) {
    let edits = Edits { remove: &["Server".to_owned()], set: &[("X-Env".to_owned(), "prod".to_owned())] };
    let mut out = Vec::new();
    let framing = match (head.status, ResponseFraming::of(head, false)) {
        (101, _) => {
            response::write_accepted(head, edits, None, &mut out);
            ResponseFraming::None
        }
        (200..=599, Ok(framing)) => {
            response::write_refused(head, framing, edits, &mut out);
            framing
        }
        _ => return,
    };
    assert_one_head(&out);
    let mut storage = field_storage();
    let passed = ResponseHead::parse(&out, &mut storage).expect("what is passed on keeps the grammar");
    assert_eq!(passed.status, head.status);
    assert_eq!(ResponseFraming::of(&passed, false), Ok(framing));
    let handshake_fields = |head: &ResponseHead<'_>| {
        let fields = head.fields().iter().filter(|field| FoldedName::new(field.name).is_of_the_handshake());
        fields.map(|field| (field.name.to_owned(), field.value.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(handshake_fields(&passed), handshake_fields(head));
    assert!(passed.values("server").next().is_none() && passed.values("x-env").eq([b"prod"]));
    let length = match framing {
        ResponseFraming::Length(size) => size.to_string(),
        _ => "0".to_owned(),
    };
    assert_of_one_connection(
        passed.fields(),
        &[
            ("upgrade", "websocket"),
            ("connection", if head.status == 101 { "Upgrade" } else { "close" }),
            ("connection", "Upgrade, close"),
            ("content-length", &length),
            ("transfer-encoding", "chunked"),
        ],
    );
}

/// Checks that what was written is one head and nothing more.
fn assert_one_head(out: &[u8]) {
    assert_eq!(HeadScan::new(usize::MAX, FIELD_COUNT_PASSED_MAX).scan(out), Ok(Some(out.len())));
}

/// Checks that of the fields which belong to a connection there are these at most, each once.
fn assert_of_one_connection(fields: &[Field<'_>], ours: &[(&str, &str)]) {
    let mut seen = Vec::new();
    for Field { name, value } in
        fields.iter().filter(|field| FoldedName::new(field.name).is_of_the_connection())
    {
        let name = name.to_ascii_lowercase();
        assert!(
            ours.iter().any(|(known, text)| *known == name && text.as_bytes() == *value),
            "{name} has passed"
        );
        assert!(!seen.contains(&name), "{name} is repeated");
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::fuzz::tests::for_each_mutation;

    #[test]
    fn heads_on_their_way_hold_under_mutation() {
        let opening = "GET /chat?a=b HTTP/1.1\r\nHost: server.example:81\r\nUpgrade: websocket\r\n\
            Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nCookie: c\r\n";
        let chains = "X-Forwarded-For: 1.1.1.1, 192.0.2.9, 10.0.0.2\r\nForwarded: for=192.0.2.9;host=\"a,b\", for=10.0.0.2\r\n\
            X-Forwarded-Proto: https\r\nX_Forwarded_For: 9.9.9.9\r\nX-Request-Id: a-1\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
            traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\nTE: x\r\n";
        let request = |choice: u8, lines: &str| {
            [&[choice << 1][..], opening.as_bytes(), lines.as_bytes(), b"\r\n"].concat()
        };
        let seeds = [
            request(0, ""),
            request(1, chains),
            request(2, chains),
            request(3, ""),
            request(0, "Forwarded: for=\"[2001:db8::9]:80\"\r\nContent-Length: 0\r\n"),
            b"\x01HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nServer: a\r\n\r\n"
                .to_vec(),
            b"\x01HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\nKeep-Alive: timeout=5\r\n\r\nhello".to_vec(),
            b"\x01HTTP/1.1 426 x\r\nTransfer-Encoding: chunked\r\nUpgrade: websocket\r\n\r\n0\r\n\r\n".to_vec(),
        ];
        for_each_mutation(&seeds.each_ref().map(Vec::as_slice), 400, fuzz_forward);
    }
}
