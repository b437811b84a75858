//! TLS through the public door: the program with a configuration, and clients that speak TLS by way of rustls.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ringway::net::clock;
use ringway::protocol::websocket::frame::{self, Opcode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// How long anything may take. Nothing waits for it but what has failed.
const PATIENCE: Duration = Duration::from_secs(20);

const DRIVERS: [&str; 2] = ["auto", "epoll"];
const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// An authority, and a directory for what it signs and for the configuration; removed when dropped.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: RootCertStore,
    directory: PathBuf,
}

impl Authority {
    fn new(test_name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("ringway-tls-{test_name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()).unwrap();
        let authority = Self { issuer: Issuer::new(params, key), roots, directory };
        authority.sign("edge", &["edge.example"]);
        authority
    }

    /// Signs a certificate for these hosts, and puts it and its key in place.
    fn sign(&self, name: &str, hosts: &[&str]) {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(hosts).unwrap().signed_by(&key, &self.issuer).unwrap();
        for (extension, content) in [("pem", certificate.pem()), ("key", key.serialize_pem())] {
            let path = self.directory.join(format!("{name}.{extension}"));
            fs::write(path.with_extension("new"), content).unwrap();
            fs::set_permissions(path.with_extension("new"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }
    }

    fn config(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        Arc::new(config.with_root_certificates(self.roots.clone()).with_no_client_auth())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The program, serving; killed when dropped.
struct Gateway {
    process: Child,
    /// Each port's address, by its name.
    ports: Vec<(String, SocketAddr)>,
    admin: SocketAddr,
}

/// A port of TLS, one without, and routes on both.
const CONFIGURATION: &str = r#"
[gateway]
shards = 1
[admin]
listen = "127.0.0.1:0"
[limits]
close_timeout_ms = 2000
[[port]]
number = 0
address = "127.0.0.1"
name = "tls"
tls = { certificates = [{ certificate = "edge.pem", key = "edge.key" }] }
limits = { handshake_timeout_ms = 1000 }
[[port]]
number = 0
address = "127.0.0.1"
name = "plain"
[[route]]
path = "/echo"
service = "echo"
origins = "any"
[[route]]
path = "/"
service = "page"
"#;

impl Gateway {
    fn start(authority: &Authority, driver: &str, configuration: &str) -> Self {
        let file = authority.directory.join("ringway.toml");
        fs::write(&file, configuration).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_ringway"))
            .args(["run", "--log", "json", "--io-driver", driver, "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        // For as long as the program lives, which would wait for somebody to read otherwise.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut gateway = Self { process, ports: Vec::new(), admin: (Ipv4Addr::LOCALHOST, 0).into() };
        let mut told = String::new();
        while let Ok(line) = lines.recv_timeout(PATIENCE) {
            told += &line;
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            if value["message"] == "serving" {
                let ports = value["ports"].as_str().unwrap().split(',');
                gateway.ports = ports
                    .map(|port| {
                        let (name, number) = port.split_once('=').unwrap();
                        (name.to_owned(), (Ipv4Addr::LOCALHOST, number.parse().unwrap()).into())
                    })
                    .collect();
                let admin = value["admin"].as_str().unwrap();
                gateway.admin = admin.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
                return gateway;
            }
        }
        panic!("it does not serve: {told}");
    }

    fn address(&self, port: &str) -> SocketAddr {
        self.ports.iter().find(|(name, _)| name == port).unwrap().1
    }

    fn tcp(&self, port: &str) -> TcpStream {
        let stream = TcpStream::connect(self.address(port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn tls(&self, config: &Arc<ClientConfig>) -> Tls {
        tls(config, self.tcp("tls"))
    }

    /// A WebSocket over TLS.
    fn open(&self, config: &Arc<ClientConfig>, path: &str) -> Tls {
        let mut client = self.tls(config);
        client.write_all(opening(path).as_bytes()).unwrap();
        assert_eq!(head(&mut client).split(' ').nth(1), Some("101"));
        client
    }

    /// What the admin endpoint has at this path.
    fn get(&self, path: &str) -> String {
        let mut admin = TcpStream::connect(self.admin).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        admin.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        admin.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The value of a series, such as `connections_ended_total{port="tls",end="closed"}`.
    fn metric(&self, series: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(&format!("ringway_{series} ")));
        line.unwrap_or_else(|| panic!("no {series}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a series has this value.
    fn until(&self, series: &str, expected: u64) {
        self.until_it(series, |value| value == expected);
    }

    /// Waits until a series has this value, or more.
    fn until_at_least(&self, series: &str, expected: u64) {
        self.until_it(series, |value| value >= expected);
    }

    #[expect(clippy::disallowed_methods, reason = "to scrape again is all there is to wait by")]
    fn until_it(&self, series: &str, is_expected: impl Fn(u64) -> bool) {
        let deadline = clock::now() + PATIENCE;
        loop {
            let value = self.metric(series);
            if is_expected(value) {
                return;
            }
            assert!(clock::now() < deadline, "{series} is {value}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// What holds once all clients have left, of however many.
    fn settle(&self) {
        self.until("connections_active{port=\"tls\"}", 0);
        let sum = |family: &str| -> u64 {
            let text = self.get("/metrics");
            let lines =
                text.lines().filter(|line| line.starts_with(&format!("ringway_{family}{{port=\"tls\"")));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        };
        assert_eq!(sum("connections_accepted_total"), sum("connections_ended_total"));
        let failed = self.metric("connections_ended_total{port=\"tls\",end=\"tls_failed\"}");
        assert_eq!(sum("tls_failures_total"), failed, "each failure is an end, and each end has its reason");
        assert_eq!(self.metric("panics_total{port=\"tls\"}"), 0);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn tls(config: &Arc<ClientConfig>, stream: TcpStream) -> Tls {
    let name = ServerName::try_from("edge.example").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream)
}

fn opening(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: edge.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Reads the head of a response.
fn head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn message(payload: &[u8], opcode: Opcode) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, opcode, true, payload, Some([7, 3, 1, 9]));
    bytes
}

/// The same as the gateway sends it.
fn reply(payload: &[u8], opcode: Opcode) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, opcode, true, payload, None);
    bytes
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from((index * 31 + index / 251) % 256).unwrap()).collect()
}

/// Sends a message and reads it back.
fn exchange(client: &mut (impl Read + Write), payload: &[u8]) {
    client.write_all(&message(payload, Opcode::Binary)).unwrap();
    client.flush().unwrap();
    let expected = reply(payload, Opcode::Binary);
    let mut received = vec![0; expected.len()];
    client.read_exact(&mut received).unwrap();
    assert!(received == expected, "{} bytes come back as they went", payload.len());
}

/// Closes a WebSocket in order, down to the last alert.
fn close(mut client: Tls) {
    client.write_all(&message(&1000_u16.to_be_bytes(), Opcode::Close)).unwrap();
    let mut rest = Vec::new();
    // Without the alert that closes it, this is an error.
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, reply(&1000_u16.to_be_bytes(), Opcode::Close));
    client.conn.send_close_notify();
    let _ = client.flush();
}

#[test]
fn messages_of_all_sizes_come_back_in_both_versions() {
    let authority = Authority::new("echo");
    for driver in DRIVERS {
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        for version in BOTH {
            let mut client = gateway.open(&authority.config(&[version]), "/echo");
            for size in [0, 1, 125, 126, 4_096, 16_379, 16_384, 65_535, 65_536, 300_000, 4_000_000] {
                exchange(&mut client, &pattern(size));
            }
            // Close to each other, as busy connections come.
            for _ in 0..300 {
                exchange(&mut client, b"small");
            }
            close(client);
        }
        gateway.settle();
        assert_eq!(gateway.metric("connections_ended_total{port=\"tls\",end=\"closed\"}"), 2);
        assert_eq!(gateway.metric("tls_truncated_total{port=\"tls\"}"), 0);
        for kind in ["tls12_full", "tls13_full"] {
            assert_eq!(gateway.metric(&format!("tls_handshakes_total{{port=\"tls\",kind=\"{kind}\"}}")), 1);
        }
    }
}

#[test]
fn bytes_that_come_one_by_one_are_served() {
    let authority = Authority::new("bytes");
    for driver in DRIVERS {
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        for version in BOTH {
            let name = ServerName::try_from("edge.example").unwrap();
            let mut client = ClientConnection::new(authority.config(&[version]), name).unwrap();
            let mut stream = gateway.tcp("tls");
            let text = [opening("/echo").as_bytes(), &message(b"hello", Opcode::Text)].concat();
            client.writer().write_all(&text).unwrap();
            let mut plaintext = Vec::new();
            let expected = reply(b"hello", Opcode::Text);
            while !plaintext.ends_with(&expected) {
                let mut wire = Vec::new();
                while client.wants_write() {
                    client.write_tls(&mut wire).unwrap();
                }
                for byte in wire {
                    stream.write_all(&[byte]).unwrap();
                }
                assert_ne!(
                    client.read_tls(&mut stream).unwrap(),
                    0,
                    "{:?}",
                    String::from_utf8_lossy(&plaintext)
                );
                client.process_new_packets().unwrap();
                let _ = client.reader().read_to_end(&mut plaintext);
            }
        }
    }
}

#[test]
fn a_client_that_does_not_read_stops_the_gateway_and_loses_nothing() {
    let authority = Authority::new("slow");
    for driver in DRIVERS {
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        let mut client = gateway.open(&authority.config(rustls::ALL_VERSIONS), "/echo");
        client.sock.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        // Until nothing more goes: the gateway reads nothing, as it has no room for its answers.
        let payload = pattern(100_000);
        let sent = message(&payload, Opcode::Binary);
        let (mut whole_count, mut part) = (0_usize, 0);
        loop {
            match client.write(&sent[part..]) {
                Ok(size) => {
                    part += size;
                    whole_count += part / sent.len();
                    part %= sent.len();
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => panic!("{error}"),
            }
            assert!(whole_count < 1_000, "a hundred megabytes are kept for a client that reads nothing");
        }
        assert!(gateway.metric("send_queue_bytes{port=\"tls\"}") > 0);
        client.sock.set_write_timeout(Some(PATIENCE)).unwrap();
        let expected = reply(&payload, Opcode::Binary);
        let mut received = vec![0; expected.len()];
        // The end of the last whole one may be in the client yet, which holds less than another.
        for _ in 1..whole_count {
            read_alone(&mut client, &mut received);
            assert!(received == expected);
        }
        client.write_all(&sent[part..]).unwrap();
        client.flush().unwrap();
        for _ in 0..2 {
            client.read_exact(&mut received).unwrap();
            assert!(received == expected);
        }
        close(client);
        gateway.settle();
        assert_eq!(gateway.metric("slow_clients_total{port=\"tls\",outcome=\"cut\"}"), 0);
    }
}

#[test]
fn https_is_served_on_a_kept_connection() {
    let authority = Authority::new("https");
    for driver in DRIVERS {
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        let mut client = gateway.tls(&authority.config(rustls::ALL_VERSIONS));
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: edge.example\r\n\r\n").unwrap();
            let head = head(&mut client);
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            let size = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            let mut body = vec![0; size.parse().unwrap()];
            client.read_exact(&mut body).unwrap();
            assert!(body.starts_with(b"<!doctype html>") || body.starts_with(b"<!DOCTYPE html>"));
        }
        client.conn.send_close_notify();
        client.flush().unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        drop(client);
        gateway.settle();
        assert_eq!(gateway.metric("connections_ended_total{port=\"tls\",end=\"http_done\"}"), 1);
    }
}

#[test]
fn what_is_no_tls_and_what_is_no_place_for_it_are_answered_and_counted_as_what_they_are() {
    let authority = Authority::new("mismatch");
    for driver in DRIVERS {
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "G"] {
            let mut client = gateway.tcp("tls");
            client.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 400 ") && answer.contains("This port speaks TLS"),
                "{answer}"
            );
        }
        gateway.until("tls_failures_total{port=\"tls\",kind=\"plain_http\"}", 2);

        let mut client = tls(&authority.config(rustls::ALL_VERSIONS), gateway.tcp("plain"));
        let error = client.write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        drop(client);
        gateway.until("tls_failures_total{port=\"plain\",kind=\"tls_on_plain_port\"}", 1);
        gateway.until("connections_ended_total{port=\"plain\",end=\"tls_failed\"}", 1);

        // Neither; and the wrong protocol inside.
        let mut client = gateway.tcp("tls");
        client.write_all(&[22, 3, 1, 0xff, 0xff]).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer[..5], [21, 3, 3, 0, 2], "an alert");
        gateway.until("tls_failures_total{port=\"tls\",kind=\"malformed\"}", 1);
        let mut http2 = ClientConfig::clone(&authority.config(rustls::ALL_VERSIONS));
        http2.alpn_protocols = vec![b"h2".to_vec()];
        assert!(gateway.tls(&Arc::new(http2)).write_all(b"x").is_err());
        gateway.until("tls_failures_total{port=\"tls\",kind=\"no_shared_protocol\"}", 1);
        gateway.settle();
    }
}

#[test]
fn a_handshake_that_is_not_done_in_time_or_is_left_is_a_counted_end() {
    let authority = Authority::new("timeout");
    for driver in DRIVERS {
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        // The beginning of a ClientHello; nothing at all; the handshake and no request.
        let mut slow = gateway.tcp("tls");
        slow.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252]).unwrap();
        let mut silent = gateway.tcp("tls");
        let mut asks_nothing = gateway.tls(&authority.config(rustls::ALL_VERSIONS));
        while asks_nothing.conn.is_handshaking() {
            asks_nothing.conn.complete_io(&mut asks_nothing.sock).unwrap();
        }
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).unwrap();
        silent.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        asks_nothing.read_to_end(&mut rest).unwrap();
        drop((slow, silent, asks_nothing));
        gateway.settle();
        assert_eq!(gateway.metric("tls_failures_total{port=\"tls\",kind=\"timeout\"}"), 1);
        assert_eq!(gateway.metric("connections_ended_total{port=\"tls\",end=\"handshake_timeout\"}"), 2);

        let mut leaves = gateway.tcp("tls");
        leaves.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252]).unwrap();
        gateway.until("handshakes_in_progress{port=\"tls\"}", 1);
        drop(leaves);
        gateway.settle();
        assert_eq!(gateway.metric("tls_failures_total{port=\"tls\",kind=\"closed\"}"), 1);
    }
}

#[test]
fn an_end_without_its_alert_is_told_apart() {
    let authority = Authority::new("truncated");
    for driver in DRIVERS {
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        let config = authority.config(rustls::ALL_VERSIONS);
        for says_so in [false, true] {
            let mut client = gateway.open(&config, "/echo");
            exchange(&mut client, b"hello");
            if says_so {
                client.conn.send_close_notify();
                client.flush().unwrap();
            } else {
                client.sock.shutdown(Shutdown::Write).unwrap();
            }
            let mut rest = Vec::new();
            // Ours is ended in order exactly where theirs was.
            assert_eq!(client.read_to_end(&mut rest).is_ok(), says_so);
            drop(client);
            gateway.settle();
            assert_eq!(gateway.metric("tls_truncated_total{port=\"tls\"}"), 1);
        }
        assert_eq!(gateway.metric("connections_ended_total{port=\"tls\",end=\"client_gone\"}"), 2);
        // A record that somebody changed on the way.
        let mut client = gateway.open(&config, "/echo");
        client.sock.write_all(&[23, 3, 3, 0, 32]).unwrap();
        client.sock.write_all(&[0; 32]).unwrap();
        let error = client.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        drop(client);
        gateway.settle();
        assert_eq!(gateway.metric("tls_failures_total{port=\"tls\",kind=\"decrypt\"}"), 1);
    }
}

#[test]
fn a_certificate_that_changes_is_in_force_for_new_connections_and_open_ones_go_on() {
    let authority = Authority::new("reload");
    for driver in DRIVERS {
        authority.sign("edge", &["edge.example"]);
        let gateway = Gateway::start(&authority, driver, CONFIGURATION);
        let config = authority.config(rustls::ALL_VERSIONS);
        let mut open = gateway.open(&config, "/echo");
        let before = open.conn.peer_certificates().unwrap().to_vec();
        let resumed =
            |gateway: &Gateway| gateway.metric("tls_handshakes_total{port=\"tls\",kind=\"tls13_resumed\"}");
        assert_eq!(resumed(&gateway), 0);
        close(gateway.open(&config, "/echo"));
        assert_eq!(resumed(&gateway), 1, "a second connection comes back with its ticket");

        let presented = || {
            // A configuration of its own, without tickets.
            let mut client = gateway.open(&authority.config(rustls::ALL_VERSIONS), "/echo");
            exchange(&mut client, b"hello");
            client.conn.peer_certificates().unwrap().to_vec()
        };
        authority.sign("edge", &["edge.example", "more.example"]);
        gateway.until("certificate_reloads_total{result=\"loaded\"}", 1);
        let after = presented();
        assert_ne!(after, before);
        exchange(&mut open, b"still here");
        let status: serde_json::Value = serde_json::from_str(&gateway.get("/api/v1/status")).unwrap();
        let tls = &status["ports"][0]["tls"];
        assert_eq!(tls["versions"], serde_json::json!(["1.2", "1.3"]));
        assert_eq!(tls["certificates"][0]["hosts"], serde_json::json!(["edge.example", "more.example"]));
        assert_eq!(tls["fault"], serde_json::Value::Null);
        assert!(status["ports"][1]["tls"].is_null());

        // What has a fault changes nothing but what is told, be it read on demand.
        fs::write(authority.directory.join("edge.key"), "nothing").unwrap();
        gateway.signal("HUP");
        gateway.until("certificate_reloads_total{result=\"failed\"}", 1);
        assert_eq!(presented(), after);
        let status: serde_json::Value = serde_json::from_str(&gateway.get("/api/v1/status")).unwrap();
        let fault = status["ports"][0]["tls"]["fault"].as_str().unwrap();
        assert_eq!(fault, "\"edge.pem\": key: the file holds no private key in PEM");

        authority.sign("edge", &["edge.example"]);
        gateway.signal("HUP");
        gateway.until("certificate_reloads_total{result=\"loaded\"}", 2);
        assert_ne!(presented(), after);
        assert_eq!(gateway.metric("tls_failures_total{port=\"tls\",kind=\"decrypt\"}"), 0);
        exchange(&mut open, b"still here");
        let resumed_before = resumed(&gateway);
        close(gateway.open(&config, "/echo"));
        assert_eq!(resumed(&gateway), resumed_before + 1, "tickets outlive certificates");
        close(open);
        gateway.settle();
    }
}

#[test]
fn a_proxy_header_stands_before_tls() {
    let authority = Authority::new("proxy");
    for driver in DRIVERS {
        let configuration = CONFIGURATION.replace(
            "limits = { handshake_timeout_ms = 1000 }",
            "proxy_protocol = { trusted = [\"127.0.0.1\"] }",
        );
        let gateway = Gateway::start(&authority, driver, &configuration);
        let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
        for is_at_once in [true, false] {
            let name = ServerName::try_from("edge.example").unwrap();
            let mut connection = ClientConnection::new(authority.config(rustls::ALL_VERSIONS), name).unwrap();
            let mut stream = gateway.tcp("tls");
            let mut first = header.to_vec();
            if is_at_once {
                // The header and the ClientHello in one segment.
                connection.write_tls(&mut first).unwrap();
            }
            stream.write_all(&first).unwrap();
            let mut client = StreamOwned::new(connection, stream);
            client.write_all(opening("/echo").as_bytes()).unwrap();
            assert!(head(&mut client).starts_with("HTTP/1.1 101 "));
            exchange(&mut client, b"hello");
            close(client);
        }
        gateway.settle();
    }
}

#[test]
fn at_the_limit_a_client_is_told_by_an_alert() {
    let authority = Authority::new("limit");
    for driver in DRIVERS {
        let configuration = CONFIGURATION.replace("handshake_timeout_ms = 1000", "connections_max = 1");
        let gateway = Gateway::start(&authority, driver, &configuration);
        let config = authority.config(rustls::ALL_VERSIONS);
        let mut first = gateway.open(&config, "/echo");
        let error = gateway.tls(&config).write_all(b"x").unwrap_err();
        assert!(error.to_string().contains("InternalError"), "{error}");
        exchange(&mut first, b"hello");
        close(first);
        gateway.settle();
        assert_eq!(gateway.metric("connections_ended_total{port=\"tls\",end=\"limit\"}"), 1);
    }
}

#[test]
fn who_is_open_when_the_gateway_drains_is_asked_to_leave_and_who_is_not_hears_of_it() {
    let authority = Authority::new("drain");
    for driver in DRIVERS {
        let configuration = CONFIGURATION.replace("handshake_timeout_ms = 1000", "");
        let gateway = Gateway::start(&authority, driver, &configuration);
        let config = authority.config(rustls::ALL_VERSIONS);
        let mut open = gateway.open(&config, "/echo");
        let mut silent = gateway.tcp("tls");
        // A configuration of its own, without the tickets of the first.
        let mut asks_nothing = gateway.tls(&authority.config(rustls::ALL_VERSIONS));
        while asks_nothing.conn.is_handshaking() {
            asks_nothing.conn.complete_io(&mut asks_nothing.sock).unwrap();
        }
        gateway.until("tls_handshakes_total{port=\"tls\",kind=\"tls13_full\"}", 2);
        gateway.signal("TERM");
        let mut frame = vec![0; 4];
        open.read_exact(&mut frame).unwrap();
        assert_eq!(frame, reply(&1001_u16.to_be_bytes(), Opcode::Close));
        close_after(open);
        assert!(head(&mut asks_nothing).starts_with("HTTP/1.1 503 "));
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}

/// Reads without sending what is left to send, which may have to wait for this.
fn read_alone(client: &mut Tls, buffer: &mut [u8]) {
    let mut size = 0;
    while size < buffer.len() {
        match client.conn.reader().read(&mut buffer[size..]) {
            Ok(0) => panic!("the end, {size} bytes in"),
            Ok(count) => size += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                client.conn.read_tls(&mut client.sock).unwrap();
                client.conn.process_new_packets().unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Answers a Close of the gateway's.
fn close_after(mut client: Tls) {
    client.write_all(&message(&1001_u16.to_be_bytes(), Opcode::Close)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "an end in order");
}

#[test]
fn a_relay_passes_on_what_comes_by_tls() {
    let authority = Authority::new("relay");
    for driver in DRIVERS {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = upstream.local_addr().unwrap();
        // A byte stream that sends everything back.
        let echo = std::thread::spawn(move || {
            let (stream, _) = upstream.accept().unwrap();
            let _ = std::io::copy(&mut &stream, &mut &stream);
        });
        let routes =
            format!("[[route]]\npath = \"/bytes\"\nservice = \"tcp\"\nupstreams = [\"tcp://{address}\"]\n");
        let gateway = Gateway::start(&authority, driver, &format!("{CONFIGURATION}{routes}"));
        let mut client = gateway.open(&authority.config(rustls::ALL_VERSIONS), "/bytes");
        for size in [5, 5, 5, 20_000, 1_000_000] {
            let payload = pattern(size);
            client.write_all(&message(&payload, Opcode::Binary)).unwrap();
            client.flush().unwrap();
            let mut received = Vec::new();
            while received.len() < size {
                let mut start = [0; 2];
                client.read_exact(&mut start).unwrap();
                assert_eq!(start[0], 0x82);
                let mut extended = [0; 8];
                let size = match start[1] {
                    126 => {
                        client.read_exact(&mut extended[6..]).unwrap();
                        u64::from_be_bytes(extended)
                    }
                    127 => {
                        client.read_exact(&mut extended).unwrap();
                        u64::from_be_bytes(extended)
                    }
                    size => size.into(),
                };
                let before = received.len();
                received.resize(before + usize::try_from(size).unwrap(), 0);
                client.read_exact(&mut received[before..]).unwrap();
            }
            assert!(received == payload, "{size} bytes");
        }
        close(client);
        gateway.settle();
        echo.join().unwrap();
    }
}

#[test]
fn an_upstream_is_spoken_to_in_tls_where_it_proves_who_it_is() {
    let authority = Authority::new("upstream");
    let stranger = Authority::new("upstream-stranger");
    fs::copy(stranger.directory.join("ca.pem"), authority.directory.join("other.pem")).unwrap();
    for driver in DRIVERS {
        let behind = Gateway::start(&authority, driver, CONFIGURATION);
        let (tls, plain) = (behind.address("tls"), behind.address("plain"));
        let route = |path: &str, upstream: SocketAddr, tls: &str| {
            format!(
                "[[route]]\npath = \"/{path}\"\nservice = \"websocket\"\nupstreams = [\"wss://{upstream}\"]\n\
                 upstream_path = \"/echo\"\nupstream_tls = {{ {tls} }}\n"
            )
        };
        let routes = [
            route("good", tls, "ca = \"ca.pem\", name = \"edge.example\""),
            "health = { kind = \"websocket\", path = \"/echo\", interval_ms = 100, unhealthy_after = 1 }\n"
                .to_owned(),
            route("name", tls, "ca = \"ca.pem\""),
            route("authority", tls, "ca = \"other.pem\", name = \"edge.example\""),
            route("plain", plain, "ca = \"ca.pem\", name = \"edge.example\""),
        ];
        let gateway = Gateway::start(&authority, driver, &format!("{CONFIGURATION}{}", routes.concat()));
        let attempts = |path: &str, result: &str| {
            gateway.metric(&format!("upstream_connects_total{{route=\"/{path}\",result=\"{result}\"}}"))
        };
        // In TLS on both sides, and on one.
        let mut client = gateway.open(&authority.config(rustls::ALL_VERSIONS), "/good");
        let mut plain_client = gateway.tcp("plain");
        plain_client.write_all(opening("/good").as_bytes()).unwrap();
        assert!(head(&mut plain_client).starts_with("HTTP/1.1 101 "));
        for size in [0, 1, 126, 16_384, 70_000, 3_000_000] {
            exchange(&mut client, &pattern(size));
            exchange(&mut plain_client, &pattern(size));
        }
        for _ in 0..300 {
            exchange(&mut client, b"small");
            exchange(&mut plain_client, b"small");
        }
        close(client);
        assert_eq!(attempts("good", "opened"), 2);
        for path in ["name", "authority", "plain"] {
            let mut client = gateway.tls(&authority.config(rustls::ALL_VERSIONS));
            client.write_all(opening(&format!("/{path}")).as_bytes()).unwrap();
            assert_eq!(head(&mut client).split(' ').nth(1), Some("502"), "{path}");
            assert_eq!(attempts(path, "tls_failed"), 1, "{path}");
        }
        let status: serde_json::Value = serde_json::from_str(&gateway.get("/api/v1/status")).unwrap();
        let upstreams = status["upstreams"].as_array().unwrap();
        let stranger = upstreams.iter().find(|upstream| upstream["route"] == "/name").unwrap();
        let fault = stranger["fault"].as_str().unwrap();
        assert!(fault.contains("tls_failed, invalid peer certificate"), "{fault}");
        // The checks go the same way, and were good from the first on.
        let healthy = format!("upstream_healthy{{route=\"/good\",upstream=\"wss://{tls}\"}}");
        behind.until_at_least("handshakes_total{port=\"tls\",result=\"accepted\"}", 4);
        assert_eq!(gateway.metric(&healthy), 1);
        drop(plain_client);
        gateway.settle();
        drop(gateway);
        behind.settle();
    }
}

#[test]
fn an_upstream_that_says_nothing_is_given_up_in_time() {
    let authority = Authority::new("upstream-silent");
    for driver in DRIVERS {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let route = format!(
            "[[route]]\npath = \"/silent\"\nservice = \"websocket\"\nupstreams = [\"wss://{}\"]\n\
             upstream_tls = {{ ca = \"ca.pem\" }}\nupstream_limits = {{ handshake_timeout_ms = 300 }}\n",
            silent.local_addr().unwrap()
        );
        let gateway = Gateway::start(&authority, driver, &format!("{CONFIGURATION}{route}"));
        let mut client = gateway.tls(&authority.config(rustls::ALL_VERSIONS));
        client.write_all(opening("/silent").as_bytes()).unwrap();
        assert_eq!(head(&mut client).split(' ').nth(1), Some("504"));
        let series = "upstream_connects_total{route=\"/silent\",result=\"handshake_timed_out\"}";
        assert_eq!(gateway.metric(series), 1);
    }
}

#[test]
fn an_upstream_that_wants_a_certificate_is_known_by_its_alert() {
    let authority = Authority::new("upstream-demanding");
    for driver in DRIVERS {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let route = format!(
            "[[route]]\npath = \"/chat\"\nservice = \"websocket\"\nupstreams = [\"wss://{}\"]\n\
             upstream_tls = {{ ca = \"ca.pem\", name = \"edge.example\" }}\n",
            upstream.local_addr().unwrap()
        );
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(authority.roots.clone());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap();
        let certificate = CertificateDer::from_pem_file(authority.directory.join("edge.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(authority.directory.join("edge.key")).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = upstream.accept().unwrap();
            // It sends its alert before it fails. In TLS 1.3 the gateway is done with the handshake by then.
            ServerConnection::new(Arc::new(config)).unwrap().complete_io(&mut stream).unwrap_err()
        });
        let gateway = Gateway::start(&authority, driver, &format!("{CONFIGURATION}{route}"));
        let mut client = gateway.tls(&authority.config(rustls::ALL_VERSIONS));
        client.write_all(opening("/chat").as_bytes()).unwrap();
        assert_eq!(head(&mut client).split(' ').nth(1), Some("502"));
        assert!(server.join().unwrap().to_string().contains("peer sent no certificates"));
        assert_eq!(gateway.metric("upstream_connects_total{route=\"/chat\",result=\"tls_failed\"}"), 1);
        let status: serde_json::Value = serde_json::from_str(&gateway.get("/api/v1/status")).unwrap();
        let fault = status["upstreams"][0]["fault"].as_str().unwrap();
        assert!(fault.contains("CertificateRequired"), "{fault}");
    }
}
