//! The generator against servers that do known wrong: each is caught, and known delays are reported.

mod deflate;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::config::certificate::fixture::Authority;
use crate::net::tls::Trust;
use crate::protocol::http::field_storage;
use crate::protocol::http::request::RequestHead;
use crate::protocol::http::scan::HeadScan;
use crate::protocol::websocket::deflate::{Policy, Terms};
use crate::protocol::websocket::frame::{self, Header, Opcode, Role, Rules};
use crate::protocol::websocket::handshake::{self, write_accept};
use crate::protocol::websocket::mask;

/// One message, as the server got it.
struct Message {
    /// Its place among the messages of its connection.
    index: usize,
    opcode: Opcode,
    is_compressed: bool,
    payload: Vec<u8>,
}

/// What a server does with each message: it may write what it likes, and break the connection off.
type Behaviour = Arc<dyn Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync>;

/// A WebSocket server with a thread for each connection, which lives until the test process ends.
fn serve(
    behaviour: impl Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync + 'static,
) -> SocketAddr {
    serve_deflate(None, behaviour)
}

/// The same, compressing as far as it is willing to agree.
fn serve_deflate(
    policy: Option<Policy>,
    behaviour: impl Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync + 'static,
) -> SocketAddr {
    let behaviour: Behaviour = Arc::new(behaviour);
    listen(move |stream| converse(stream, policy, &behaviour))
}

/// The same in TLS, which resumes or does not, with a certificate of this authority for `localhost`.
fn serve_tls(
    authority: &Authority,
    does_resume: bool,
    behaviour: impl Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync + 'static,
) -> SocketAddr {
    let key = rustls::sign::SingleCertAndKey::from(authority.certificate("server", &["localhost"]).key);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(key));
    if !does_resume {
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    }
    let config = Arc::new(config);
    let behaviour: Behaviour = Arc::new(behaviour);
    listen(move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        converse(rustls::StreamOwned::new(connection, stream), None, &behaviour);
    })
}

/// Has connections served, each by a thread of its own.
fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), Arc::clone(&serve));
            thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                serve(stream);
            });
        }
    });
    address
}

/// One connection. Its thread ends with the connection, however that ends.
fn converse(mut stream: impl Read + Write, policy: Option<Policy>, behaviour: &Behaviour) {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    let head_size = loop {
        let Ok(size @ 1..) = stream.read(&mut chunk) else { return };
        received.extend_from_slice(&chunk[..size]);
        if let Some(head_size) = HeadScan::new(16_384, 100).scan(&received).unwrap() {
            break head_size;
        }
    };
    let mut response = Vec::new();
    {
        let mut storage = field_storage();
        let head = RequestHead::parse(&received[..head_size], &mut storage).unwrap();
        let Ok(handshake::Request::Opening(opening)) = handshake::judge(&head) else {
            panic!("no opening handshake")
        };
        let terms = policy.and_then(|policy| opening.agree_on_deflate(policy));
        write_accept(&mut response, opening.key(), None, terms);
    }
    stream.write_all(&response).unwrap();
    stream.flush().unwrap();
    received.drain(..head_size);
    let rules = Rules {
        role: Role::Server,
        frame_size_max: 1 << 20,
        message_size_max: 1 << 20,
        reserved_bits: if policy.is_some() { frame::RSV1 } else { 0 },
        masker: crate::protocol::websocket::mask::wide,
    };
    let mut index = 0;
    loop {
        while let Some((header, header_size)) = Header::parse(&received, &rules).unwrap() {
            let end = header_size + usize::try_from(header.payload_size).unwrap();
            if received.len() < end {
                break;
            }
            let mut payload: Vec<u8> = received.drain(..end).skip(header_size).collect();
            mask::apply(&mut payload, header.mask.unwrap(), 0);
            if header.opcode == Opcode::Close {
                let mut close = Vec::new();
                frame::append(&mut close, Opcode::Close, true, &payload, None);
                // The client may have been satisfied, or not, and gone.
                let _ = stream.write_all(&close);
                return;
            }
            let (opcode, is_compressed) = (header.opcode, header.is_compressed);
            let message = Message { index, opcode, is_compressed, payload };
            index += 1;
            if behaviour(&message, &mut stream).is_break() {
                return;
            }
        }
        let Ok(size @ 1..) = stream.read(&mut chunk) else { return };
        received.extend_from_slice(&chunk[..size]);
    }
}

fn send(stream: &mut dyn Write, opcode: Opcode, payload: &[u8]) -> ControlFlow<()> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, opcode, true, payload, None);
    if stream.write_all(&bytes).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

fn echo_back(message: &Message, stream: &mut dyn Write) -> ControlFlow<()> {
    send(stream, message.opcode, &message.payload)
}

fn setting(address: SocketAddr, duration_ms: u64) -> Setting {
    Setting {
        door: Arc::new(Door {
            targets: vec![Target::resolve(&format!("ws://{address}/")).unwrap()],
            tls: None,
            sources: Vec::new(),
            deflate: None,
            subprotocols: Vec::new(),
            fields: Vec::new(),
        }),
        connections: 4,
        duration: Duration::from_millis(duration_ms),
        warmup: Duration::ZERO,
        grace: Duration::from_secs(10),
        server: Server::new(&[std::process::id()]),
        threads: 1,
        cores: Vec::new(),
        progress: Arc::new(|_| {}),
    }
}

/// The setting for a server in TLS that is asked for under this name.
fn tls_setting(address: SocketAddr, name: &str, trust: &Trust, is_resuming: bool) -> Setting {
    let mut setting = setting(address, 50);
    let target = Target::resolve(&format!("wss://{name}:{}/", address.port())).unwrap();
    // The name may have addresses of which the server listens on one.
    let targets = vec![Target { address, ..target }];
    let tls = Some(Tls::new(1, trust, is_resuming));
    setting.door = Arc::new(Door { targets, tls, ..Door::clone(&setting.door) });
    setting
}

const SHAPE: Shape = Shape { opcode: Opcode::Text, size: 200, in_flight: 3 };

fn json(report: &Report) -> serde_json::Value {
    serde_json::to_value(report).unwrap()
}

/// The faults of a run against such a server, as JSON.
fn faults(
    behaviour: impl Fn(&Message, &mut dyn Write) -> ControlFlow<()> + Send + Sync + 'static,
    grace: Duration,
) -> serde_json::Value {
    let setting = Setting { grace, ..setting(serve(behaviour), 10) };
    let report = super::echo(&setting, SHAPE, Pace::Answers).unwrap();
    assert!(!report.is_clean());
    let json = json(&report);
    assert_eq!(json["errors"], 4);
    json["faults"].clone()
}

#[test]
fn an_honest_server_is_found_clean() {
    let report = super::echo(&setting(serve(echo_back), 50), SHAPE, Pace::Answers).unwrap();
    assert!(report.is_clean(), "{}", report);
    let json = json(&report);
    // Every connection sends at least one window, and windows are answered whole.
    let messages = json["messages"].as_u64().unwrap();
    assert!(messages >= 12 && messages.is_multiple_of(3), "{messages}");
    assert!(json["server"]["cpu_us_per_message"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (&json["scenario"], &json["size"], &json["in_flight"]),
        (&"echo".into(), &200.into(), &3.into())
    );
}

#[test]
fn threads_share_a_load() {
    for pace in [Pace::Answers, Pace::PerSecond(600)] {
        let setting = Setting { threads: 3, ..setting(serve(echo_back), 200) };
        let report = super::echo(&setting, SHAPE, pace).unwrap();
        assert!(report.is_clean(), "{}", report);
        let messages = json(&report)["messages"].as_u64().unwrap();
        match pace {
            Pace::Answers => assert!(messages >= 12, "{messages}"),
            Pace::PerSecond(_) => assert_eq!(messages, 120),
        }
        assert_eq!(json(&report)["connections"], 4);
    }
}

#[test]
fn wrong_content_is_caught() {
    let upside_down = |message: &Message, stream: &mut dyn Write| {
        let payload: Vec<u8> = message.payload.iter().rev().copied().collect();
        send(stream, message.opcode, &payload)
    };
    assert_eq!(faults(upside_down, Duration::from_secs(10)), serde_json::json!({ "content": 4 }));
}

#[test]
fn the_same_answer_again_is_caught() {
    let first = Arc::new(std::sync::Mutex::new(None));
    let repeat = move |message: &Message, stream: &mut dyn Write| {
        let answer = first.lock().unwrap().get_or_insert_with(|| message.payload.clone()).clone();
        send(stream, message.opcode, &answer)
    };
    assert_eq!(faults(repeat, Duration::from_secs(10)), serde_json::json!({ "content": 4 }));
}

#[test]
fn wrong_lengths_opcodes_and_frames_are_caught() {
    let longer = |message: &Message, stream: &mut dyn Write| {
        send(stream, message.opcode, &[message.payload.as_slice(), b"x"].concat())
    };
    assert_eq!(faults(longer, Duration::from_secs(10)), serde_json::json!({ "length": 4 }));
    let binary = |message: &Message, stream: &mut dyn Write| send(stream, Opcode::Binary, &message.payload);
    assert_eq!(faults(binary, Duration::from_secs(10)), serde_json::json!({ "opcode": 4 }));
    let masked = |message: &Message, stream: &mut dyn Write| {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, message.opcode, true, &message.payload, Some([1, 2, 3, 4]));
        if stream.write_all(&bytes).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    assert_eq!(faults(masked, Duration::from_secs(10)), serde_json::json!({ "violation": 4 }));
}

#[test]
fn silence_a_close_and_an_end_are_told_apart() {
    let silent = |_: &Message, _: &mut dyn Write| ControlFlow::Continue(());
    assert_eq!(faults(silent, Duration::from_secs(2)), serde_json::json!({ "late": 4 }));
    let closing = |_: &Message, stream: &mut dyn Write| send(stream, Opcode::Close, &1001_u16.to_be_bytes());
    assert_eq!(faults(closing, Duration::from_secs(10)), serde_json::json!({ "closed": 4 }));
    // In the first window: on a busy machine there may be no second.
    let leaving = |message: &Message, stream: &mut dyn Write| {
        if message.index < 2 { echo_back(message, stream) } else { ControlFlow::Break(()) }
    };
    assert_eq!(faults(leaving, Duration::from_secs(10)), serde_json::json!({ "gone": 4 }));
}

#[test]
fn an_answer_too_many_is_caught() {
    let twice = |message: &Message, stream: &mut dyn Write| {
        let both = send(stream, message.opcode, &message.payload).is_continue();
        if both { echo_back(message, stream) } else { ControlFlow::Break(()) }
    };
    assert_eq!(faults(twice, Duration::from_secs(10)), serde_json::json!({ "content": 4 }));
}

/// Holds messages for known times and compares what is reported with how long they were held in truth.
///
/// Nothing may ever be told shorter than it was. What is told longer may be the machine's doing, which runs other tests
/// meanwhile, so of several runs one has to come within 10 % and 2 ms, the way there and back.
fn assert_delays_are_reported(pace: Pace, duration_ms: u64) {
    let mut misses = Vec::new();
    for _ in 0..10 {
        let percentiles = held_and_told(pace, duration_ms);
        // The histogram tells three digits.
        assert!(percentiles.iter().all(|(held, told)| *told >= held * 0.999), "{percentiles:?}");
        if percentiles.iter().all(|(held, told)| *told <= held * 1.1 + 2000.0) {
            return;
        }
        misses.push(percentiles);
    }
    panic!("what was held, and what was told, in µs: {misses:?}");
}

/// One run against a server that holds every tenth message for 100 ms and the others for 20 ms: the 50th, 90th and 99th
/// percentile of how long it did so in truth, and of what is reported, in microseconds.
#[allow(clippy::disallowed_methods, reason = "a delay by a known time is what is measured")]
fn held_and_told(pace: Pace, duration_ms: u64) -> Vec<(f64, f64)> {
    let held_us = Arc::new(std::sync::Mutex::new(Vec::new()));
    let record = Arc::clone(&held_us);
    let delay = move |message: &Message, stream: &mut dyn Write| {
        let start = clock::now();
        thread::sleep(Duration::from_millis(if message.index % 10 == 9 { 100 } else { 20 }));
        record.lock().unwrap().push(figures::us(clock::now() - start));
        echo_back(message, stream)
    };
    let shape = Shape { in_flight: 1, ..SHAPE };
    let report = super::echo(&setting(serve(delay), duration_ms), shape, pace).unwrap();
    assert!(report.is_clean(), "{}", report);
    let json = json(&report);
    let mut held_us = held_us.lock().unwrap().clone();
    held_us.sort_by(f64::total_cmp);
    assert_eq!(json["messages"], held_us.len());
    let percentiles = [("p50", 50), ("p90", 90), ("p99", 99)].map(|(name, percent)| {
        // The smallest time that so many were not held longer than.
        let held = held_us[(held_us.len() * percent).div_ceil(100) - 1];
        (held, json["latency_us"][name].as_f64().unwrap())
    });
    percentiles.to_vec()
}

#[test]
fn known_delays_are_reported_in_a_closed_loop() {
    assert_delays_are_reported(Pace::Answers, 1500);
}

#[test]
fn known_delays_are_reported_in_an_open_loop() {
    // A message in 133 ms on each of the four connections: none waits for the one before it.
    assert_delays_are_reported(Pace::PerSecond(30), 3000);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "an answer that is too late by a known time is what is caught")]
fn an_answer_after_the_grace_is_late() {
    let sluggish = |message: &Message, stream: &mut dyn Write| {
        thread::sleep(Duration::from_secs(1));
        echo_back(message, stream)
    };
    assert_eq!(faults(sluggish, Duration::from_millis(200)), serde_json::json!({ "late": 4 }));
}

#[test]
fn small_and_large_windows_are_checked_alike() {
    // The first goes through the ring, the second does not; of both the last message is wrong in its first byte.
    for (size, in_flight) in [(20, 5), (2000, 5)] {
        let corrupt = move |message: &Message, stream: &mut dyn Write| {
            let mut payload = message.payload.clone();
            if message.index == 4 {
                payload[0] ^= 1;
            }
            send(stream, message.opcode, &payload)
        };
        let setting = setting(serve(corrupt), 10);
        let shape = Shape { opcode: Opcode::Binary, size, in_flight };
        let report = super::echo(&setting, shape, Pace::Answers).unwrap();
        assert_eq!(json(&report)["faults"], serde_json::json!({ "content": 4 }), "{size} bytes");
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a stall of a known time is what is measured")]
fn a_stall_is_charged_with_all_that_had_to_wait() {
    // 250 messages a second on one connection; the 10th stalls for 400 ms, during which 100 more are due.
    let stall = |message: &Message, stream: &mut dyn Write| {
        if message.index == 10 {
            thread::sleep(Duration::from_millis(400));
        }
        echo_back(message, stream)
    };
    let setting = Setting { connections: 1, ..setting(serve(stall), 1000) };
    let shape = Shape { in_flight: 8, ..SHAPE };
    let report = super::echo(&setting, shape, Pace::PerSecond(250)).unwrap();
    assert!(report.is_clean(), "{}", report);
    let json = json(&report);
    assert_eq!(json["messages"], 250);
    // 50 of the 250 waited 200 ms or longer, though no more than 8 were on the way at once.
    let p90 = json["latency_us"]["p90"].as_f64().unwrap();
    assert!(p90 >= 200_000.0, "{p90}");
    assert!(json["latency_us"]["max"].as_f64().unwrap() >= 399_000.0);
}

#[test]
fn connections_are_opened_and_left_over_and_over() {
    for parting in [Parting::Handshake, Parting::Reset] {
        let report = super::connect(&setting(serve(echo_back), 50), parting).unwrap();
        assert!(report.is_clean(), "{}", report);
        assert!(json(&report)["messages"].as_u64().unwrap() >= 4);
    }
}

#[test]
fn idle_connections_are_weighed_where_the_server_is_known() {
    let setting = Setting { connections: 20, grace: Duration::from_secs(3), ..setting(serve(echo_back), 10) };
    let report = super::idle(&setting, SHAPE).unwrap();
    assert!(report.is_clean(), "{}", report);
    let json = json(&report);
    assert_eq!(json["messages"], 20);
    assert!(json["server"]["opened"]["rss_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn large_messages_pass_through_full_sockets() {
    let setting = setting(serve(echo_back), 50);
    let shape = Shape { opcode: Opcode::Binary, size: 1 << 20, in_flight: 8 };
    let report = super::echo(&setting, shape, Pace::Answers).unwrap();
    assert!(report.is_clean(), "{}", report);
}

#[test]
fn servers_are_compared_round_by_round() {
    let contestant = |name: &str| {
        let setting = setting(serve(echo_back), 50);
        Contestant { name: name.to_owned(), door: setting.door, server: None }
    };
    let plan = Plan {
        rounds: 3,
        slice: Duration::from_millis(20),
        grace: Duration::from_secs(10),
        parting: Parting::Handshake,
    };
    let cases = ["4:20:2".parse().unwrap(), "connect:2".parse().unwrap()];
    let contestants = [contestant("a"), contestant("b"), contestant("c")];
    let comparisons =
        super::compare(&contestants, &cases, &plan, None, &(Arc::new(|_: &str| {}) as Progress)).unwrap();
    assert!(comparisons.is_clean());
    let json = serde_json::to_value(&comparisons).unwrap();
    for case in 0..2 {
        let case = &json["cases"][case];
        assert_eq!((&case["rounds"], &case["measure"]), (&3.into(), &"elapsed".into()));
        let pairs = case["pairs"].as_array().unwrap();
        let names: Vec<_> = pairs.iter().map(|pair| [&pair["first"], &pair["second"]]).collect();
        assert_eq!(names, [["a", "b"], ["a", "c"], ["b", "c"]]);
        for pair in pairs {
            let [min, median, max] = ["min", "median", "max"].map(|key| pair["ratio"][key].as_f64().unwrap());
            assert!(0.0 < min && min <= median && median <= max);
        }
    }
}

#[test]
fn nobody_listening_is_an_error() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fault = super::echo(&setting(address, 10), SHAPE, Pace::Answers).unwrap_err();
    assert!(matches!(fault, BenchFault::Open(OpenFault::Connect(_))), "{fault}");
}

#[test]
fn tls_carries_every_load() {
    let authority = Authority::new("bench-tls-loads");
    let address = serve_tls(&authority, true, echo_back);
    for trust in [Trust::Authorities(authority.roots()), Trust::Anybody] {
        let setting = tls_setting(address, "localhost", &trust, false);
        // The second is more than a record, and more than the sockets hold.
        for shape in [SHAPE, Shape { opcode: Opcode::Binary, size: 1 << 20, in_flight: 8 }] {
            let report = super::echo(&setting, shape, Pace::Answers).unwrap();
            assert!(report.is_clean(), "{}", report);
        }
        let report = super::echo(&setting, SHAPE, Pace::PerSecond(1000)).unwrap();
        assert!(report.is_clean(), "{}", report);
        let report = super::idle(&Setting { grace: Duration::from_secs(3), ..setting }, SHAPE).unwrap();
        assert!(report.is_clean(), "{}", report);
    }
}

#[test]
fn wrong_content_within_tls_is_caught() {
    let authority = Authority::new("bench-tls-content");
    let upside_down = |message: &Message, stream: &mut dyn Write| {
        let payload: Vec<u8> = message.payload.iter().rev().copied().collect();
        send(stream, message.opcode, &payload)
    };
    let setting = tls_setting(serve_tls(&authority, true, upside_down), "localhost", &Trust::Anybody, false);
    let report = super::echo(&setting, SHAPE, Pace::Answers).unwrap();
    assert_eq!(json(&report)["faults"], serde_json::json!({ "content": 4 }));
}

#[test]
fn handshakes_are_full_or_resumed_as_was_asked() {
    let authority = Authority::new("bench-tls-handshakes");
    let trust = Trust::Authorities(authority.roots());
    let address = serve_tls(&authority, true, echo_back);
    for is_resuming in [false, true] {
        for parting in [Parting::Handshake, Parting::Reset] {
            let setting = tls_setting(address, "localhost", &trust, is_resuming);
            let report = super::connect(&setting, parting).unwrap();
            assert!(report.is_clean(), "{}", report);
            assert_eq!(are_resumed(&setting), is_resuming);
        }
    }
}

/// Whether a connection is resumed that is opened in this way once more.
fn are_resumed(setting: &Setting) -> bool {
    let work = async |generator: Rc<Generator>| {
        let opened = client::Opened::open(&generator, &setting.door, 0).await.unwrap();
        !opened.is_full_handshake()
    };
    Generator::run(None, work).unwrap()
}

#[test]
fn a_server_that_does_not_resume_is_caught() {
    let authority = Authority::new("bench-tls-not-resumed");
    let address = serve_tls(&authority, false, echo_back);
    let setting = tls_setting(address, "localhost", &Trust::Anybody, true);
    let report = super::connect(&setting, Parting::Handshake).unwrap();
    assert!(!report.is_clean());
    assert_eq!(json(&report)["faults"], serde_json::json!({ "not_resumed": 4 }));
    assert_eq!(json(&report)["messages"], 0);
}

#[test]
fn a_certificate_that_is_not_believed_is_an_error_that_says_why() {
    let (authority, stranger) = (Authority::new("bench-tls-known"), Authority::new("bench-tls-stranger"));
    let address = serve_tls(&authority, true, echo_back);
    let fault = |name: &str, trust: &Trust| {
        super::echo(&tls_setting(address, name, trust, false), SHAPE, Pace::Answers).unwrap_err().to_string()
    };
    let unknown = fault("localhost", &Trust::Authorities(stranger.roots()));
    assert!(unknown.starts_with("no TLS: invalid peer certificate"), "{unknown}");
    let misnamed = fault("127.0.0.1", &Trust::Authorities(authority.roots()));
    assert!(misnamed.contains("not valid for name"), "{misnamed}");
}

#[test]
fn a_server_without_tls_is_an_error_that_says_so() {
    let plain = listen(|mut stream| {
        let size = stream.read(&mut [0; 4096]).unwrap();
        assert!(size > 0);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let setting = tls_setting(plain, "localhost", &Trust::Anybody, false);
    let fault = super::echo(&setting, SHAPE, Pace::Answers).unwrap_err();
    assert!(matches!(fault, BenchFault::Open(OpenFault::Tls(_))), "{fault}");
}
