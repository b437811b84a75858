//! A shard that echoes and relays allocates nothing for a message, however many pass: counted over the whole process.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use ringway::config::{Config, IoDriver};
use ringway::metrics::{Metrics, RouteLabels};
use ringway::net::{clock, listen};
use ringway::protocol::websocket::frame::{self, Opcode};
use ringway::service::admission::Admission;
use ringway::service::upstream::Group;
use ringway::shard::{self, Listener, Mail, Setup};

/// How many messages go each way while nothing may be allocated.
const MESSAGE_COUNT: usize = 500;

#[test]
fn a_shard_allocates_nothing_for_a_message_that_it_echoes_or_relays() {
    for io_driver in [IoDriver::Auto, IoDriver::Epoll] {
        let gateway = Gateway::start(io_driver);
        for path in ["/echo", "/relay"] {
            // Small ones, which busy connections receive through the ring, and large ones, which take the scratch.
            for size in [20, 1_024, 16_384] {
                let mut client = Client::open(gateway.address, path, size);
                for _ in 0..MESSAGE_COUNT {
                    client.exchange();
                }
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                for _ in 0..MESSAGE_COUNT {
                    client.exchange();
                }
                let allocations = ALLOCATIONS.load(Ordering::SeqCst) - before;
                assert_eq!(allocations, 0, "{path} with {size} bytes on {io_driver}");
            }
        }
        gateway.stop();
    }
}

/// A client that has all that it needs before it begins.
struct Client {
    stream: TcpStream,
    message: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    fn open(address: SocketAddr, path: &str, size: usize) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
        let (mut message, mut expected) = (Vec::new(), Vec::new());
        frame::append(&mut message, Opcode::Binary, true, &vec![7; size], Some([1, 2, 3, 4]));
        frame::append(&mut expected, Opcode::Binary, true, &vec![7; size], None);
        Self { stream, message, answer: expected }
    }

    fn exchange(&mut self) {
        self.stream.write_all(&self.message).unwrap();
        self.stream.read_exact(&mut self.answer).unwrap();
        assert_eq!(self.answer.last(), Some(&7));
    }
}

/// One shard that echoes, and relays to itself.
struct Gateway {
    address: SocketAddr,
    mailbox: shard::Mailbox,
    thread: std::thread::JoinHandle<()>,
}

impl Gateway {
    fn start(io_driver: IoDriver) -> Self {
        let listeners = listen::bind(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0, 1).unwrap();
        let text = format!(
            "[[port]]\nnumber = 0\nname = \"a\"\n[[route]]\npath = \"/echo\"\nservice = \"echo\"\n\
             [[route]]\npath = \"/relay\"\nservice = \"websocket\"\nupstreams = [\"ws://{}\"]\nupstream_path = \"/echo\"\n",
            listeners.address
        );
        let (config, _) =
            Config::from_toml(&text, Path::new("")).unwrap_or_else(|faults| panic!("{faults:?}"));
        let labels = config.routes.iter().map(|route| RouteLabels {
            asked: Vec::new(),
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
        let socket = listeners.sockets.into_iter().next().unwrap();
        let setup = Setup {
            index: 0,
            core: None,
            io_driver,
            upstreams: upstreams.collect(),
            config: Arc::new(config),
            desk: None,
            keyrings: Vec::new(),
            memory: std::sync::Arc::default(),
            folders: Vec::new(),
            listeners: vec![Listener {
                port_index: 0,
                number: listeners.address.port(),
                socket,
                tls: None,
                cells: metrics.port_cells(0, 0),
                admission: Admission::new(100),
                addresses: None,
            }],
            admission: Admission::new(100),
            cells: metrics.shard_cells(0),
            inbox,
        };
        let (report, started) = mpsc::channel();
        let thread = shard::spawn(setup, move |outcome| report.send(outcome.is_ok()).unwrap()).unwrap();
        assert!(started.recv().unwrap());
        Self { address: listeners.address, mailbox, thread }
    }

    fn stop(self) {
        self.mailbox.send(Mail::Cut).unwrap();
        self.thread.join().unwrap();
    }
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, and a count over all threads.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

#[expect(unsafe_code, reason = "there is no other way to count allocations; it hands everything on")]
// SAFETY: each call is handed on unchanged to the system's allocator, whose contract is this one.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
