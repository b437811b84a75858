//! The admin endpoint as a client meets it, over loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::SystemTime;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::UpstreamAddress;
use crate::metrics::{ConnectResult, Driver, End, RouteLabels};
use crate::service::upstream::{Tried, fixture};

/// A served endpoint, and what steers it.
struct Served {
    address: SocketAddr,
    state: Arc<AdminState>,
    phase: watch::Sender<Phase>,
    shutdown: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn served(token: Option<&str>) -> Served {
    let (phase, phase_seen) = watch::channel(Phase::Serving);
    let names = ["127.0.0.1:9001", "chat.example:80"];
    let upstreams = names.map(str::to_owned).to_vec();
    let routes = vec![RouteLabels { route: "chat".to_owned(), upstreams, asked: Vec::new() }];
    let metrics = Metrics::new(1, vec!["80".to_owned()], routes, SystemTime::UNIX_EPOCH);
    let relay = fixture::relay([
        UpstreamAddress::Socket(names[0].parse().unwrap()),
        UpstreamAddress::Name { host: "chat.example".to_owned(), port: 80 },
    ]);
    let group = Group::new("chat", &relay, metrics.upstream_states(0));
    let state = Arc::new(AdminState {
        metrics: Arc::new(metrics),
        phase: phase_seen,
        ports: vec![PortFacts { number: 80, address: Ipv4Addr::UNSPECIFIED.into(), tls: None }],
        groups: vec![group],
        driver_fallback: OnceLock::new(),
        started_at: Instant::now(),
        hosts: vec!["edge.example".to_owned()],
        token: token.map(secret),
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stopped) = oneshot::channel();
    let server = tokio::spawn(serve(listener, Arc::clone(&state), async {
        let _ = stopped.await;
    }));
    Served { address, state, phase, shutdown, server }
}

/// A secret is only ever read from somewhere: here from a file of this test's own.
fn secret(value: &str) -> Secret {
    let directory = std::env::temp_dir().join(format!("ringway-admin-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("token"), value).unwrap();
    let secret = Secret::load("file:token", &directory).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    secret
}

/// Sends one request and reads to the end of the connection: the status, the head, the body.
async fn exchange(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

async fn get(served: &Served, path: &str) -> (u16, String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", served.address);
    exchange(served.address, &request).await
}

#[tokio::test]
async fn every_endpoint_answers_with_its_type_and_is_never_stored() {
    let served = served(None).await;
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/live", "application/json"),
        ("/ready", "application/json"),
        ("/api/v1/status", "application/json"),
    ] {
        let (status, head, body) = get(&served, path).await;
        assert_eq!(status, 200, "{path}");
        assert!(head.contains(&format!("content-type: {content_type}\r\n")), "{path}: {head}");
        assert!(head.contains("cache-control: no-store"), "{path}: {head}");
        assert!(!body.is_empty(), "{path}");
    }
    assert!(METRICS.starts_with(prometheus::TEXT_FORMAT));
    assert_eq!(get(&served, "/nothing").await.0, 404);
}

#[tokio::test]
async fn the_page_may_load_nothing_from_elsewhere() {
    let served = served(None).await;
    let (_, head, body) = get(&served, "/").await;
    assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self';"), "{head}");
    assert!(!body.contains("://"), "the page stands for itself");
    assert!(!body.contains("<script>") && !body.contains("style="), "the policy allows nothing inline");
    let script = get(&served, "/page.js").await.2;
    for unsafe_sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!script.contains(unsafe_sink), "{unsafe_sink}");
    }
}

#[tokio::test]
async fn head_answers_without_a_body() {
    let served = served(None).await;
    let request = "HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let (status, head, body) = exchange(served.address, request).await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: "), "{head}");
}

#[tokio::test]
async fn what_would_change_something_is_not_allowed() {
    let served = served(None).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!(
            "{method} /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let (status, head, _) = exchange(served.address, &request).await;
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("allow: get, head"), "{head}");
    }
}

#[tokio::test]
async fn a_rebound_name_is_not_answered() {
    let served = served(None).await;
    for (host, expected) in [
        ("localhost", 200),
        ("LOCALHOST:9180", 200),
        ("127.0.0.1", 200),
        ("[::1]:9180", 200),
        ("192.0.2.7:9180", 200),
        ("edge.example", 200),
        ("evil.example", 421),
        ("edge.example.evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("0x7f.1", 421),
        ("localhost@evil.example", 400),
        ("evil.example@localhost", 400),
        ("", 400),
    ] {
        for path in ["/", "/live", "/ready", "/metrics", "/api/v1/status", "/nothing"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let (status, _, body) = exchange(served.address, &request).await;
            let expected = if path == "/nothing" && expected == 200 { 404 } else { expected };
            assert_eq!(status, expected, "{host} {path}");
            assert!(expected == 200 || !body.contains("evil"), "nothing is repeated: {body}");
        }
    }
    let absolute = "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(served.address, absolute).await.0, 421);
    for hosts in ["", "Host: localhost\r\nHost: localhost\r\n"] {
        let request = format!("GET /metrics HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        assert_eq!(exchange(served.address, &request).await.0, 400, "{hosts}");
    }
}

#[tokio::test]
async fn a_token_guards_what_is_told_and_stands_for_any_name() {
    let served = served(Some("correct-horse-battery")).await;
    for (path, host, authorization, expected) in [
        ("/metrics", "localhost", "", 401),
        ("/api/v1/status", "localhost", "", 401),
        ("/nothing", "localhost", "", 401),
        ("/metrics", "localhost", "Authorization: Bearer wrong horse..\r\n", 401),
        ("/metrics", "localhost", "Authorization: Bearer correct-horse-battery2\r\n", 401),
        ("/metrics", "localhost", "Authorization: Bearer correct\r\n", 401),
        ("/metrics", "localhost", "Authorization: Basic correct-horse-battery\r\n", 401),
        ("/metrics", "localhost", "Authorization: Bear\r\n", 401),
        ("/metrics", "localhost", "Authorization: bearer correct-horse-battery\r\n", 200),
        ("/metrics", "scrape.example", "Authorization: Bearer correct-horse-battery\r\n", 200),
        ("/metrics", "scrape.example", "Authorization: Bearer wrong\r\n", 421),
        ("/", "localhost", "", 200),
        ("/live", "localhost", "", 200),
        ("/ready", "localhost", "", 200),
        ("/live", "scrape.example", "", 421),
    ] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Connection: close\r\n\r\n");
        let (status, head, _) = exchange(served.address, &request).await;
        assert_eq!(status, expected, "{path} {host} {authorization}");
        assert_eq!(head.contains("www-authenticate: bearer"), expected == 401, "{head}");
    }
    let field = "Authorization: Bearer correct-horse-battery\r\n";
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{field}{field}Connection: close\r\n\r\n");
    assert_eq!(exchange(served.address, &request).await.0, 401);
}

#[tokio::test]
async fn ready_is_true_exactly_while_serving() {
    let served = served(None).await;
    for (phase, expected) in [(Phase::Starting, 503), (Phase::Serving, 200), (Phase::Draining, 503)] {
        served.phase.send_replace(phase);
        let (status, _, body) = get(&served, "/ready").await;
        assert_eq!(status, expected);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["ready"], expected == 200);
        assert_eq!(body["phase"], phase.label());
        assert_eq!(get(&served, "/live").await.0, 200);
    }
}

#[tokio::test]
async fn live_names_the_driver_and_why_it_was_chosen() {
    let served = served(None).await;
    let live = |body: String| serde_json::from_str::<Value>(&body).unwrap();
    let before = live(get(&served, "/live").await.2);
    assert_eq!(before, serde_json::json!({ "live": true, "io_driver": null, "io_driver_fallback": null }));
    served.state.metrics.set_driver(Driver::Epoll);
    served.state.driver_fallback.set("io_uring_setup: EPERM".to_owned()).unwrap();
    let after = live(get(&served, "/live").await.2);
    assert_eq!(after["io_driver"], "epoll");
    assert_eq!(after["io_driver_fallback"], "io_uring_setup: EPERM");
}

#[tokio::test]
async fn the_status_counts_what_the_metrics_count() {
    let served = served(None).await;
    let cells = served.state.metrics.port_cells(0, 0);
    cells.connections_accepted.add(3);
    cells.connections_active.add(1);
    cells.ended(End::Closed);
    cells.ended(End::ClientGone);
    cells.handshake_duration.observe(Duration::from_millis(2));
    cells.http_request(None, 404);
    cells.close(crate::metrics::Initiator::Client, None);
    served.state.metrics.port_state(0).set_up(true);
    served.state.metrics.shard_cells(0).cpu_ns.set(250_000_000);

    let status: Value = serde_json::from_str(&get(&served, "/api/v1/status").await.2).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["phase"], "serving");
    assert_eq!(status["shards"][0]["cpu_seconds"], 0.25);
    let port = &status["ports"][0];
    assert_eq!((&port["label"], &port["number"]), (&"80".into(), &80.into()));
    assert_eq!((&port["address"], &port["state"]), (&"0.0.0.0".into(), &"up".into()));
    assert_eq!(port["connections_accepted"], 3);
    assert_eq!(port["connections_active"], 1);
    assert_eq!(port["connections_ended"].as_object().unwrap().len(), End::COUNT);
    assert_eq!(port["connections_ended"]["closed"], 1);
    assert_eq!(port["connections_ended"]["client_gone"], 1);
    assert_eq!(port["handshake_duration_seconds"], serde_json::json!({ "count": 1, "sum": 0.002 }));
    assert_eq!(port["http_requests"]["4xx"], 1);
    assert_eq!(port["closes"], serde_json::json!([{ "initiator": "client", "code": "none", "count": 1 }]));
}

#[tokio::test]
async fn the_status_tells_which_upstreams_are_used_and_why_others_are_not() {
    let served = served(None).await;
    let group = &served.state.groups[0];
    let attempt = group.choose(None, &mut Tried::default(), 0).unwrap();
    group.set_lookup_fault(1, "no such name".to_owned());
    let upstreams = || async {
        let status: Value = serde_json::from_str(&get(&served, "/api/v1/status").await.2).unwrap();
        status["upstreams"].clone()
    };
    assert_eq!(
        upstreams().await,
        serde_json::json!([
            {
                "route": "chat", "upstream": "127.0.0.1:9001", "addresses": ["127.0.0.1:9001"],
                "healthy": true, "fault": null, "ejected": false, "ejections": 0,
                "connections_active": 1, "connections_in_progress": 1,
            },
            {
                "route": "chat", "upstream": "chat.example:80", "addresses": [],
                "healthy": false, "fault": "no such name", "ejected": false, "ejections": 0,
                "connections_active": 0, "connections_in_progress": 0,
            },
        ])
    );
    let client = Ipv4Addr::LOCALHOST.into();
    attempt.failed(ConnectResult::Refused, client, 0);
    let used = &upstreams().await[0];
    assert_eq!(
        (&used["healthy"], &used["fault"]),
        (&true.into(), &"the latest connection failed: refused".into())
    );
    // Another has to be in use for one to be ejected.
    group.set_addresses(1, &["127.0.0.1:9002".parse().unwrap()], 0);
    while group.upstreams()[0].state().is_healthy() {
        let attempt = group.choose(None, &mut Tried::default(), 0).unwrap();
        if attempt.upstream().name() == "127.0.0.1:9001" {
            attempt.failed(ConnectResult::TimedOut, client, 0);
        }
    }
    let ejected = &upstreams().await[0];
    assert_eq!((&ejected["healthy"], &ejected["ejected"]), (&false.into(), &true.into()));
    assert_eq!(ejected["fault"], "connections failed, the latest: timed_out");
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_a_place() {
    let served = served(None).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        // An answered request proves that the connection has been accepted; it is kept afterwards.
        stream.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        silent.push(stream);
    }
    let mut waiting = std::pin::pin!(get(&served, "/live"));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(early.is_err(), "every place is taken");
    drop(silent.pop());
    assert_eq!(waiting.await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_at_the_head_timeout() {
    let served = served(None).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nHos").await.unwrap();
    let before = Instant::now();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(before.elapsed() >= HEAD_TIMEOUT, "{:?}", before.elapsed());
    assert!(before.elapsed() < CONNECTION_LIFETIME_MAX, "{:?}", before.elapsed());
}

#[tokio::test]
async fn shutdown_ends_kept_connections_and_the_server() {
    let served = served(None).await;
    let mut kept = TcpStream::connect(served.address).await.unwrap();
    kept.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    kept.read_exact(&mut first).await.unwrap();
    served.shutdown.send(()).unwrap();
    served.server.await.unwrap();
    let mut rest = Vec::new();
    kept.read_to_end(&mut rest).await.unwrap();
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody listens any more");
}
