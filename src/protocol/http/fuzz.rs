//! What must hold for any bytes at all, as functions that fuzzers and stable tests call.

use super::{
    body::{BodyFault, BodyWalker, CHUNK_EXTENSIONS_SIZE_MAX, ResponseFraming, TRAILERS_SIZE_MAX},
    field_storage,
    origin::{Origin, OriginRef},
    refusal::Refusal,
    request::RequestHead,
    scan::HeadScan,
};
use crate::protocol::websocket::deflate::client::ClientOffer;
use crate::protocol::websocket::handshake::{
    self, Request,
    client::{self, ClientRequest, ResponseFault},
};

/// The limits under which heads are scanned here: small, so that short inputs reach them.
const HEAD_SIZE_MAX: usize = 2_048;
const FIELD_COUNT_MAX: usize = 24;

/// Any bytes as the head of a request.
///
/// However they are cut, the outcome is the same, and no byte is looked at more than twice. A head that is accepted
/// has a path, and its answer is one that our own client verifies; a refusal is an answer whose head is whole.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_request_head(data: &[u8]) {
    let outcome = HeadScan::new(HEAD_SIZE_MAX, FIELD_COUNT_MAX).scan(data);
    assert_eq!(scan_in_pieces(data, || 1), outcome, "byte by byte");
    let mut sizes = data.iter().map(|byte| usize::from(*byte) % 61 + 1);
    assert_eq!(scan_in_pieces(data, || sizes.next().unwrap_or(1)), outcome, "in pieces");

    let judged = match outcome {
        Ok(None) => return assert!(data.len() < HEAD_SIZE_MAX, "a head without end is never refused"),
        Ok(Some(size)) => judge_head(&data[..size]),
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = judged {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let answer =
            HeadScan::new(usize::MAX, FIELD_COUNT_MAX).scan(&out).expect("a refusal has no fault of its own");
        assert!(answer.is_some(), "the head of a refusal has an end");
    }
}

/// Any bytes as the response to an opening handshake: cut anywhere, it is verified or refused alike.
///
/// # Panics
/// Where this does not hold.
pub fn fuzz_response_head(data: &[u8]) {
    const REQUEST: ClientRequest<'_> = ClientRequest {
        target: "/",
        host: "a",
        key: *b"the sample nonce",
        subprotocols: &["a", "b"],
        deflate: Some(ClientOffer::Shared),
        fields: &[],
    };
    let outcome = REQUEST.verify_response(data);
    let mut pieces = (0..=data.len()).map(|size| REQUEST.verify_response(&data[..size]));
    let first = pieces.find(|outcome| !matches!(outcome, Ok(None))).unwrap_or(Ok(None));
    assert_eq!(first, outcome);
    match outcome {
        Ok(Some(verified)) => assert!(verified.head_size <= data.len()),
        Ok(None) => assert!(data.len() < client::RESPONSE_HEAD_SIZE_MAX),
        Err(ResponseFault::Status { status }) => assert_ne!(status, 101),
        Err(_) => {}
    }
}

/// Any bytes as an Origin: what is accepted has one canonical spelling, which stands for the same Origin.
///
/// # Panics
/// Where this does not hold.
pub fn fuzz_origin(data: &[u8]) {
    let Ok(borrowed) = OriginRef::parse(data) else {
        return;
    };
    let text = std::str::from_utf8(data).expect("an Origin is ASCII");
    let origin = Origin::parse(text).expect("what is parsed borrowed is parsed owned");
    assert!(origin.view() == borrowed);
    assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
}

/// A byte that chooses how a body is framed, and then any bytes as the body and what follows it.
///
/// However they are cut, the walker comes to the same; and it finds the end exactly where a plain reading of all the bytes
/// finds it.
///
/// # Panics
/// Where one of these does not hold.
pub fn fuzz_body(data: &[u8]) {
    let [choice, bytes @ ..] = data else { return };
    let length = usize::from(choice >> 2);
    let (framing, end) = match choice & 3 {
        0 => (ResponseFraming::Length(length as u64), (bytes.len() >= length).then_some(length)),
        1 => (ResponseFraming::UntilEnd, None),
        _ => (ResponseFraming::Chunked, chunked_body_end(bytes)),
    };
    let outcome = walk_in_pieces(framing, bytes, || bytes.len());
    assert_eq!(walk_in_pieces(framing, bytes, || 1), outcome, "byte by byte");
    let mut sizes = bytes.iter().map(|byte| usize::from(*byte) % 13 + 1);
    assert_eq!(walk_in_pieces(framing, bytes, || sizes.next().unwrap_or(1)), outcome, "in pieces");
    match (outcome, end) {
        (Ok((size, true)), _) => assert_eq!(Some(size), end),
        (Ok((size, false)), None) => assert_eq!(size, bytes.len(), "all of it belongs to the body"),
        (Err(_), None) => {}
        _ => panic!("the body ends at {end:?}, and the walker finds {outcome:?}"),
    }
}

/// Walks the bytes as they come in pieces of these sizes: how many belong to the body, and whether it has ended.
fn walk_in_pieces(
    framing: ResponseFraming,
    bytes: &[u8],
    mut next_size: impl FnMut() -> usize,
) -> Result<(usize, bool), BodyFault> {
    let mut walker = BodyWalker::new(framing);
    let mut at = 0;
    while at < bytes.len() && !walker.is_complete() {
        let piece = &bytes[at..bytes.len().min(at + next_size())];
        let walked = walker.walk(piece)?;
        assert!(walked.is_complete || walked.size == piece.len());
        at += walked.size;
    }
    assert_eq!(walker.end().is_ok(), walker.is_complete() || framing == ResponseFraming::UntilEnd);
    Ok((at, walker.is_complete()))
}

/// Where a body in chunks ends, if all of it is there and keeps the grammar of RFC 9112 section 7.1 and the limits.
fn chunked_body_end(bytes: &[u8]) -> Option<usize> {
    let line_at = |at: usize| {
        let size = bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
        Some(&bytes[at..at + size])
    };
    let is_clean = |text: &[u8]| text.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    let mut at = 0;
    loop {
        let line = line_at(at)?;
        let digits_size = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (digits, extensions) = line.split_at(digits_size);
        let is_good = extensions.is_empty() || extensions.trim_ascii_start().starts_with(b";");
        if digits.len() > 16 || !is_good || !is_clean(extensions) {
            return None;
        }
        if extensions.len() > usize::try_from(CHUNK_EXTENSIONS_SIZE_MAX).expect("it is small") {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at += line.len() + 2;
        if size == 0 {
            break;
        }
        at = at.checked_add(usize::try_from(size).ok()?)?;
        if !bytes.get(at..)?.starts_with(b"\r\n") {
            return None;
        }
        at += 2;
    }
    let trailers_at = at;
    loop {
        let line = line_at(at)?;
        at += line.len() + 2;
        if line.is_empty() {
            break;
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") || !is_clean(line) {
            return None;
        }
    }
    (at - trailers_at <= usize::try_from(TRAILERS_SIZE_MAX).expect("it is small")).then_some(at)
}

/// Scans the bytes as they come in pieces of these sizes.
fn scan_in_pieces(data: &[u8], mut next_size: impl FnMut() -> usize) -> Result<Option<usize>, Refusal> {
    let mut scan = HeadScan::new(HEAD_SIZE_MAX, FIELD_COUNT_MAX);
    let mut size = 0;
    while size < data.len() {
        size = data.len().min(size + next_size());
        if let Some(end) = scan.scan(&data[..size])? {
            return Ok(Some(end));
        }
        assert!(scan.looked() + 1 >= size, "more than one byte would be looked at again");
    }
    Ok(None)
}

/// Parses and judges a head, and lets the client's side verify what an opening handshake is answered.
fn judge_head(head: &[u8]) -> Result<(), Refusal> {
    let mut storage = field_storage();
    let head = RequestHead::parse(head, &mut storage)?;
    assert!(head.path().starts_with('/') || head.path() == "*");
    let Request::Opening(opening) = handshake::judge(&head)? else {
        return Ok(());
    };
    assert!(opening.subprotocols().count() <= handshake::SUBPROTOCOL_COUNT_MAX);
    assert!(opening.extensions().all(<[u8]>::is_ascii));
    let mut out = Vec::new();
    handshake::write_accept(&mut out, opening.key(), opening.subprotocols().next(), None);
    assert_eq!(HeadScan::new(usize::MAX, 4).scan(&out), Ok(Some(out.len())));
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A generator whose whole state is its seed: xorshift64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % bound as u64).expect("it is below a usize")
        }
    }

    /// The seed of every run here: change it to see other mutations.
    const SEED: u64 = 0x5eed_0001;

    /// Bytes that mean something to a parser of heads.
    const MEANINGFUL: &[u8] = b"\r\n\0\t :;,=\"\\/?#*@[]%.-\x16\x03\x7f\x80\xff019aZ";

    /// Calls the function with each seed, and with what a few changes make of it.
    pub(in crate::protocol::http) fn for_each_mutation(seeds: &[&[u8]], count: usize, function: fn(&[u8])) {
        let mut random = Random(SEED);
        for bytes in seeds {
            function(bytes);
            for _ in 0..count {
                let mut bytes = bytes.to_vec();
                for _ in 0..=random.below(3) {
                    let at = random.below(bytes.len().max(1));
                    let byte = MEANINGFUL[random.below(MEANINGFUL.len())];
                    match random.below(6) {
                        0 => bytes.truncate(at),
                        1 => bytes.insert(at, byte),
                        2 if !bytes.is_empty() => drop(bytes.remove(at)),
                        3 => bytes.extend_from_within(at..),
                        4 => bytes.extend_from_within(..at),
                        _ if !bytes.is_empty() => bytes[at] = byte,
                        _ => {}
                    }
                }
                function(&bytes);
            }
        }
    }

    #[test]
    fn request_heads_hold_under_mutation() {
        let long =
            [&b"GET / HTTP/1.1\r\nHost: a\r\nCookie: "[..], &[b'c'; HEAD_SIZE_MAX], b"\r\n\r\n"].concat();
        let many =
            [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &b"a: b\r\n".repeat(FIELD_COUNT_MAX), b"\r\n"].concat();
        let seeds = [
            &b"GET /chat?a=b HTTP/1.1\r\nHost: server.example:81\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://a.example\r\n\
            Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: a; b=\"c\"; d, e\r\n\r\n\x81\x80"[..],
            b"POST http://[::1]:80/a?b HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\n",
            b"\r\n\r\nHEAD / HTTP/1.1\r\nHost:\r\nContent-Length: 17\r\nConnection: close\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c",
            b"\x16\x03\x01\x02\x00\x01",
            &long,
            &many,
            b"",
        ];
        for_each_mutation(&seeds, 400, fuzz_request_head);
    }

    #[test]
    fn response_heads_hold_under_mutation() {
        let seeds = [
            &b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: b\r\n\r\n\x81\x00"
                [..],
            b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
        ];
        for_each_mutation(&seeds, 300, fuzz_response_head);
    }

    #[test]
    fn origins_hold_under_mutation() {
        let seeds = [
            &b"https://example.com:8443"[..],
            b"null",
            b"http://[2001:DB8::1]:080",
            b"chrome-extension://abcdefgh",
        ];
        for_each_mutation(&seeds, 5_000, fuzz_origin);
    }

    #[test]
    fn bodies_hold_under_mutation() {
        let seeds = [
            &b"\x03hello"[..],
            b"\x14hello and more",
            b"\x025\r\nhello\r\n00a;b=\"c\"\r\n0123456789\r\n0\r\nDigest: d\r\n\r\nmore",
            b"\x020 ;x\r\n\r\n",
            b"\x02ffffffffffffffff\r\nhello",
        ];
        for_each_mutation(&seeds, 1_000, fuzz_body);
    }
}
