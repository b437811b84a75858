//! What clients get through a shard whose upstreams are asked too much, refuse, hang or break off: over loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ringway::config::{Config, IoDriver};
use ringway::metrics::{Metrics, RouteLabels};
use ringway::net::{clock, listen};
use ringway::protocol::websocket::handshake;
use ringway::service::admission::Admission;
use ringway::service::upstream::Group;
use ringway::shard::{self, Listener, Mail, Setup};

/// How long anything may take before its test fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_head_with_as_many_fields_as_may_be_is_passed_on_with_more() {
    let upstream = upstream(|mut stream| {
        let head = read_head(&mut stream);
        assert!(head.contains("\r\nX-249: a\r\n") && head.contains("\r\nS-63: a\r\n"), "{head}");
        stream.write_all(&accept(&head)).unwrap();
        wait_for_end(&mut stream);
    });
    let set: Vec<String> = (0..64).map(|index| format!("S-{index} = \"a\"")).collect();
    let gateway = Gateway::start(
        IoDriver::Auto,
        "[limits]\nrequest_head_count_max = 256\nrequest_head_size_max = \"64KiB\"\n",
        &format!("{}request_headers = {{ set = {{ {} }} }}\n", route(&[upstream]), set.join(", ")),
    );
    // Six fields beside these.
    let fields: String = (0..250).map(|index| format!("X-{index}: a\r\n")).collect();
    let mut client = gateway.ask("/c", &fields);
    assert_eq!(status(&read_head(&mut client)), 101);
    drop(client);
    gateway.stop();
}

#[test]
fn requests_that_an_upstream_drops_do_not_keep_other_clients_from_it() {
    let upstream = upstream(|mut stream| {
        let head = read_head(&mut stream);
        if !head.contains("X-Bad") {
            stream.write_all(&accept(&head)).unwrap();
            wait_for_end(&mut stream);
        }
    });
    let gateway = Gateway::start(IoDriver::Auto, "", &route(&[upstream]));
    for _ in 0..5 {
        assert_eq!(status(&read_head(&mut gateway.ask("/c", "X-Bad: 1\r\n"))), 502);
    }
    assert_eq!(status(&read_head(&mut gateway.ask("/c", ""))), 101);
    assert_eq!(gateway.metric("upstream_connects_total", &["result=\"reset\""]), 5);
    assert_eq!(gateway.metric("upstream_ejections_total", &[]), 0);
    gateway.stop();
}

/// One shard with a port and routes.
struct Gateway {
    address: SocketAddr,
    metrics: Metrics,
    mailbox: shard::Mailbox,
    thread: thread::JoinHandle<()>,
}

impl Gateway {
    fn start(io_driver: IoDriver, before: &str, routes: &str) -> Self {
        let listeners = listen::bind(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0, 1).unwrap();
        let text = format!("{before}[[port]]\nnumber = 0\nname = \"a\"\n{routes}");
        let (config, _) =
            Config::from_toml(&text, Path::new("")).unwrap_or_else(|faults| panic!("{faults:?}"));
        let labels = config.routes.iter().map(|route| RouteLabels {
            route: route.name.clone(),
            upstreams: route
                .relay
                .iter()
                .flat_map(|relay| &relay.upstreams)
                .map(|upstream| upstream.name.clone())
                .collect(),
        });
        let metrics = Metrics::new(1, vec!["a".to_owned()], labels.collect(), clock::time_of_day());
        let upstreams = config.routes.iter().enumerate().map(|(index, route)| {
            let group = Group::new(&route.name, route.relay.as_ref()?, metrics.upstream_states(index));
            Some((group, metrics.relay_cells(0, index)?))
        });
        let (mailbox, inbox) = shard::mailbox().unwrap();
        let setup = Setup {
            index: 0,
            core: None,
            io_driver,
            upstreams: upstreams.collect(),
            config: Arc::new(config),
            listeners: vec![Listener {
                port_index: 0,
                number: listeners.address.port(),
                socket: listeners.sockets.into_iter().next().unwrap(),
                cells: metrics.port_cells(0, 0),
                admission: Admission::new(100),
            }],
            admission: Admission::new(100),
            cells: metrics.shard_cells(0),
            inbox,
        };
        let (report, started) = mpsc::channel();
        let thread = shard::spawn(setup, move |outcome| report.send(outcome.is_ok()).unwrap()).unwrap();
        assert!(started.recv().unwrap());
        Self { address: listeners.address, metrics, mailbox, thread }
    }

    /// A connection on which an opening handshake for this path was sent, with further fields.
    fn ask(&self, path: &str, fields: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(opening(path, fields).as_bytes()).unwrap();
        stream
    }

    /// The sum of all series of this family that have these labels.
    fn metric(&self, family: &str, labels: &[&str]) -> u64 {
        let text = self.metrics.encode();
        let series = text.lines().filter(|line| {
            line.starts_with(&format!("ringway_{family}{{"))
                && labels.iter().all(|label| line.contains(label))
        });
        let values = series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
        values.sum()
    }

    /// Ends the shard, in which nothing may have panicked.
    fn stop(self) {
        assert_eq!(self.metric("panics_total", &[]), 0);
        self.mailbox.send(Mail::Cut).unwrap();
        self.thread.join().unwrap();
    }
}

/// The route `/c` to these upstreams; lines of its own may follow.
fn route(upstreams: &[SocketAddr]) -> String {
    let upstreams: Vec<String> = upstreams.iter().map(|address| format!("\"ws://{address}\"")).collect();
    format!(
        "[[route]]\nname = \"c\"\npath = \"/c\"\nservice = \"websocket\"\norigins = \"any\"\nupstreams = [{}]\n",
        upstreams.join(", ")
    )
}

/// A server on loopback that serves each connection in a thread of its own, for as long as the test runs.
fn upstream(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), Arc::clone(&serve));
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn opening(path: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
}

/// Reads a head, its empty line included.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The 101 to an opening handshake.
fn accept(head: &str) -> Vec<u8> {
    let (_, rest) = head.split_once("Sec-WebSocket-Key: ").unwrap();
    let (key, _) = rest.split_once("\r\n").unwrap();
    let mut answer = Vec::new();
    handshake::write_accept(&mut answer, key.as_bytes(), None);
    answer
}

/// Waits until the peer ends its stream or resets it.
fn wait_for_end(stream: &mut TcpStream) {
    while stream.read(&mut [0; 1024]).is_ok_and(|size| size > 0) {}
}
