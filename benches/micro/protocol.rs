//! The protocol floor: masks, frame headers, UTF-8, request heads, and the endpoint that puts them together.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use ringway::net::simd;
use ringway::protocol::http::field_storage;
use ringway::protocol::http::request::RequestHead;
use ringway::protocol::http::scan::HeadScan;
use ringway::protocol::websocket::endpoint::{Endpoint, Event};
use ringway::protocol::websocket::exchange::Exchange;
use ringway::protocol::websocket::frame::{self, HEADER_SIZE_MAX, Header, Opcode, Role, Rules};
use ringway::protocol::websocket::handshake::{self, Request};
use ringway::protocol::websocket::mask::{self, Masker, MaskingKey};
use ringway::protocol::websocket::utf8::{self, Utf8Check};

use crate::cpu_time::CpuTime;

const KEY: MaskingKey = [0x37, 0xfa, 0x21, 0x3d];

/// The smallest opening handshake that breaks no rule.
const MINIMAL_HEAD: &str = "GET /echo HTTP/1.1\r\n\
    Host: gateway.example\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\
    \r\n";

/// What a page in Chromium sends to a host whose cookies it has.
const CHROMIUM_HEAD: &str = "GET /echo HTTP/1.1\r\n\
    Host: gateway.example:8080\r\n\
    Connection: Upgrade\r\n\
    Pragma: no-cache\r\n\
    Cache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n\
    Upgrade: websocket\r\n\
    Origin: http://gateway.example:8080\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=1\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
    \r\n";

/// Masks payloads that are in the cache.
pub(crate) fn mask(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("mask");
    let maskers: [(&str, Masker); 2] = [("portable", mask::wide), ("machine", simd::masker())];
    for size in [20, 1024, 16 * 1024] {
        group.throughput(Throughput::Bytes(size as u64));
        for (name, masker) in maskers {
            let mut payload = vec![b'a'; size];
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| mask::apply_with(black_box(masker), black_box(&mut payload), KEY, 0));
            });
        }
    }
    group.finish();
}

/// Reads a client's frame headers, of all three forms of the length, and writes a server's.
pub(crate) fn frame_header(criterion: &mut Criterion<CpuTime>) {
    let rules = rules();
    let mut group = criterion.benchmark_group("frame header");
    for size in [20, 1024, 1 << 20] {
        let header = |mask| Header {
            fin: true,
            opcode: Opcode::Binary,
            is_compressed: false,
            mask,
            payload_size: size,
        };
        let mut bytes = [0; HEADER_SIZE_MAX];
        let header_size = header(Some(KEY)).write(&mut bytes);
        group.bench_function(BenchmarkId::new("parse", size), |bencher| {
            bencher.iter(|| Header::parse(black_box(&bytes[..header_size]), &rules));
        });
        let reply = header(None);
        group.bench_function(BenchmarkId::new("write", size), |bencher| {
            bencher.iter(|| black_box(&reply).write(black_box(&mut bytes)));
        });
    }
    group.finish();
}

/// Checks ASCII and text with characters of one to four bytes, whole as most messages come, and in pieces that cut
/// characters.
pub(crate) fn utf8(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("utf8");
    for size in [20, 1024, 16 * 1024] {
        group.throughput(Throughput::Bytes(size as u64));
        for (name, alphabet) in [("ascii", "gateway "), ("mixed", "aé€𝄞")] {
            let text = text_of(alphabet, size);
            group.bench_function(BenchmarkId::new(format!("whole {name}"), size), |bencher| {
                bencher.iter(|| utf8::validate(black_box(&text)).is_some());
            });
        }
    }
    let text = text_of("aé€𝄞", 16 * 1024);
    // No multiple of the 10 bytes after which the characters repeat, so that the pieces end everywhere within them.
    let piece_size = 1021;
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function(BenchmarkId::new(format!("pieces of {piece_size} mixed"), text.len()), |bencher| {
        bencher.iter(|| {
            let mut check = Utf8Check::default();
            for piece in black_box(&text).chunks(piece_size) {
                check.push(piece).expect("the text is UTF-8");
            }
            check.finish()
        });
    });
    group.finish();
}

/// Finds the end of a request head, parses and judges it, and writes the 101.
pub(crate) fn request_head(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("request head");
    for (name, head) in [("minimal", MINIMAL_HEAD), ("chromium", CHROMIUM_HEAD)] {
        let head = head.as_bytes();
        group.bench_function(BenchmarkId::new(format!("scan {name}"), head.len()), |bencher| {
            bencher.iter(|| HeadScan::new(16 * 1024, 100).scan(black_box(head)));
        });
        let mut out = Vec::with_capacity(256);
        group.bench_function(BenchmarkId::new(format!("answer {name}"), head.len()), |bencher| {
            bencher.iter(|| {
                out.clear();
                answer(black_box(head), &mut out);
            });
        });
    }
    group.bench_function("accept key", |bencher| {
        bencher.iter(|| handshake::accept_key(black_box(b"dGhlIHNhbXBsZSBub25jZQ==")));
    });
    group.finish();
}

/// Echoes one read of so many messages of 20 bytes as a service does; putting the masked bytes back each time is
/// measured with it.
pub(crate) fn echo(criterion: &mut Criterion<CpuTime>) {
    let rules = rules();
    let mut group = criterion.benchmark_group("echo of one read");
    for opcode in [Opcode::Binary, Opcode::Text] {
        for count in [1, 16] {
            let mut received = Vec::new();
            for _ in 0..count {
                frame::append(&mut received, opcode, true, b"twenty bytes of text", Some(KEY));
            }
            let mut buffer = received.clone();
            group.throughput(Throughput::Elements(count));
            group.bench_function(BenchmarkId::new(format!("{opcode:?}"), count), |bencher| {
                bencher.iter(|| {
                    buffer.copy_from_slice(&received);
                    echo_read(&rules, &mut buffer)
                });
            });
        }
    }
    group.finish();
}

/// What a server demands whose limits are the defaults.
fn rules() -> Rules {
    Rules {
        role: Role::Server,
        frame_size_max: 16 << 20,
        message_size_max: 16 << 20,
        reserved_bits: 0,
        masker: simd::masker(),
    }
}

/// As many repetitions of the alphabet as fit, filled up with ASCII.
fn text_of(alphabet: &str, size: usize) -> Vec<u8> {
    let mut text = alphabet.repeat(size / alphabet.len()).into_bytes();
    text.resize(size, b'.');
    text
}

/// Answers a request head with its 101.
fn answer(received: &[u8], out: &mut Vec<u8>) {
    let size = HeadScan::new(16 * 1024, 100).scan(received).expect("no rule is broken").expect("it is whole");
    let mut storage = field_storage();
    let head = RequestHead::parse(&received[..size], &mut storage).expect("no rule is broken");
    match handshake::judge(&head).expect("no rule is broken") {
        Request::Opening(opening) => handshake::write_accept(out, opening.key(), None, None),
        Request::Plain => panic!("an opening handshake was taken for a plain request"),
    }
}

/// Replies to every message of a read and returns how many bytes there are to send.
fn echo_read(rules: &Rules, buffer: &mut [u8]) -> usize {
    let mut endpoint = Endpoint::new();
    let mut exchange = Exchange::new(buffer);
    while let Some(event) = endpoint.receive(rules, &mut exchange).expect("no rule is broken") {
        match event {
            Event::Message { kind, payload, .. } => exchange.reply(kind.opcode(), payload),
            Event::Ping(_) | Event::Pong(_) | Event::Close(..) => panic!("only messages were sent"),
        }
    }
    exchange.finish().size()
}
