//! Sessions over a pair of sockets, against rustls as other programs use it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::config::certificate::fixture::Authority;
use crate::config::certificate::{Certificate, Versions};
use crate::net::scratch::SCRATCH_SIZE;

/// A client, and a session with it. What one sends the other reads when it is asked to: nothing waits.
struct Pair {
    client: ClientConnection,
    client_socket: UnixStream,
    session: Session,
    socket: UnixStream,
    buffer: Vec<u8>,
    /// The plaintext that the session received.
    received: Vec<u8>,
}

impl Pair {
    fn new(settings: &ServerSettings, client: ClientConnection) -> Self {
        let (client_socket, socket) = UnixStream::pair().unwrap();
        client_socket.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let session = Session::server(settings, &[], &Rc::default()).unwrap();
        let buffer = vec![0; SCRATCH_SIZE];
        Self { client, client_socket, session, socket, buffer, received: Vec::new() }
    }

    /// A pair whose handshake is done.
    fn open(settings: &ServerSettings, client: ClientConnection) -> Self {
        let mut pair = Self::new(settings, client);
        pair.shake_hands().unwrap();
        pair
    }

    fn shake_hands(&mut self) -> Result<(), rustls::Error> {
        while self.client.is_handshaking() || self.session.is_handshaking() {
            self.client_sends();
            self.receive();
            self.client_receives()?;
        }
        Ok(())
    }

    /// Lets the session receive all that is there; how that ended.
    fn receive(&mut self) -> Received {
        loop {
            match self.session.receive(self.socket.as_fd(), &mut self.buffer) {
                Received::Bytes(size) => self.received.extend_from_slice(&self.buffer[..size]),
                other => return other,
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, Gone> {
        self.session.send(self.socket.as_fd(), bytes)
    }

    /// Lets the client send what it wants to, as far as there is room.
    fn client_sends(&mut self) {
        while self.client.wants_write() {
            match self.client.write_tls(&mut self.client_socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Lets the client receive all that is there; returns the plaintext.
    fn client_receives(&mut self) -> Result<Vec<u8>, rustls::Error> {
        let mut plaintext = Vec::new();
        loop {
            let read = self.client.read_tls(&mut self.client_socket);
            self.client.process_new_packets()?;
            let _ = self.client.reader().read_to_end(&mut plaintext);
            match read {
                Ok(0) => return Ok(plaintext),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(plaintext),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn settings(certificates: &[Certificate]) -> ServerSettings {
    ServerSettings::new(certificates, Versions::ALL, &Tickets::new().unwrap())
}

/// A client's configuration with these versions.
fn config(authority: &Authority, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth()
}

fn client_of(config: ClientConfig, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

fn client(authority: &Authority, name: &str) -> ClientConnection {
    client_of(config(authority, rustls::ALL_VERSIONS), name)
}

/// Bytes that are nowhere the same for long.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| u8::try_from((index * 31 + index / 251) % 256).unwrap()).collect()
}

const BOTH: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

#[test]
fn what_either_side_sends_the_other_receives_in_both_versions() {
    let authority = Authority::new("tls-exchange");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for (version, expected) in BOTH.into_iter().zip([TlsHandshake::Full12, TlsHandshake::Full13]) {
        let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
        assert_eq!(pair.session.handshake(), Some(expected));
        for size in [1, 100, 16_384, 16_385, 50_000, 70_000] {
            let sent = pattern(size);
            let mut echoed = Vec::new();
            let mut offered = 0;
            while echoed.len() < size {
                if offered < size {
                    offered += pair.client.writer().write(&sent[offered..]).unwrap();
                }
                pair.client_sends();
                pair.receive();
                let taken = pair.received.clone();
                let count = pair.send(&taken).unwrap();
                pair.received.drain(..count);
                echoed.extend(pair.client_receives().unwrap());
            }
            assert!(echoed == sent, "{size} bytes over {version:?}");
        }
        assert_eq!(
            pair.session.carried.capacity() + pair.session.unsent.capacity(),
            0,
            "idle without a buffer"
        );
    }
}

#[test]
fn records_may_come_byte_by_byte() {
    let authority = Authority::new("tls-bytes");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for version in BOTH {
        let mut pair = Pair::new(&settings, client_of(config(&authority, &[version]), "edge.example"));
        let mut wire = Vec::new();
        let mut step = |pair: &mut Pair| {
            wire.clear();
            while pair.client.wants_write() {
                pair.client.write_tls(&mut wire).unwrap();
            }
            for byte in &wire {
                pair.client_socket.write_all(&[*byte]).unwrap();
                assert_eq!(pair.receive(), Received::Nothing);
            }
            pair.client_receives().unwrap();
        };
        while pair.client.is_handshaking() || pair.session.is_handshaking() {
            step(&mut pair);
        }
        for text in ["one", "another"] {
            pair.client.writer().write_all(text.as_bytes()).unwrap();
            step(&mut pair);
        }
        assert_eq!(pair.received, b"oneanother");
        assert_eq!(pair.session.carried.capacity(), 0, "a record that is whole is not kept");
    }
}

#[test]
fn what_has_not_left_is_not_taken_and_is_sent_once() {
    let authority = Authority::new("tls-backpressure");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    let mut pair = Pair::open(&settings, client(&authority, "edge.example"));
    let sent = pattern(5_000_000);
    let mut taken = 0;
    let mut echoed = Vec::new();
    let mut blocked_count = 0;
    while echoed.len() < sent.len() {
        // As a caller does whose bytes were not all taken: the same ones again, some more perhaps.
        loop {
            let offered = &sent[taken..sent.len().min(taken + 100_000)];
            match pair.send(offered).unwrap() {
                0 => break,
                count => taken += count,
            }
            if taken == sent.len() {
                break;
            }
        }
        if taken < sent.len() {
            assert!(pair.session.wants_room());
            assert!(pair.session.held_back <= SEND_SIZE_MAX);
            assert_eq!(
                pair.send(&sent[taken..sent.len().min(taken + 100_000)]).unwrap(),
                0,
                "no room, none taken"
            );
            blocked_count += 1;
        }
        echoed.extend(pair.client_receives().unwrap());
    }
    assert!(echoed == sent);
    assert!(blocked_count > 3, "the socket had no room {blocked_count} times");
    assert_eq!(pair.session.unsent.capacity(), 0);
}

#[test]
fn an_end_is_an_end_only_with_the_alert_that_closes() {
    let authority = Authority::new("tls-end");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for version in BOTH {
        for says_so in [false, true] {
            let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
            pair.client.writer().write_all(b"the last").unwrap();
            if says_so {
                pair.client.send_close_notify();
            }
            pair.client_sends();
            let is_whole = |received| received == if says_so { Received::End } else { Received::Reset };
            if says_so {
                // Plaintext and the end come with one read; whoever waits for the socket has to hear of the end.
                let socket = pair.socket.as_fd();
                assert_eq!(pair.session.receive(socket, &mut pair.buffer), Received::Bytes(8));
                let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
                assert_eq!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1));
                assert!(pair.session.owes_an_end());
            } else {
                assert_eq!(pair.receive(), Received::Nothing);
                pair.client_socket.shutdown(std::net::Shutdown::Write).unwrap();
            }
            assert!(is_whole(pair.receive()), "{version:?} {says_so}");
            assert!(is_whole(pair.receive()), "and so it stays");
            assert_eq!(pair.session.is_truncated(), !says_so);
            assert_eq!(pair.session.failure(), None);
        }
    }
}

#[test]
fn an_end_behind_ours_or_behind_a_reset_cuts_nothing_off() {
    let authority = Authority::new("tls-behind");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for version in BOTH {
        for is_reset in [false, true] {
            let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
            if is_reset {
                pair.client_socket.shutdown(std::net::Shutdown::Both).unwrap();
                assert_eq!(pair.send(b"too late"), Err(Gone));
            } else {
                pair.session.finish(pair.socket.as_fd());
                pair.client_socket.shutdown(std::net::Shutdown::Write).unwrap();
            }
            assert_eq!(pair.receive(), Received::Reset);
            assert!(!pair.session.is_truncated(), "{version:?} {is_reset}");
        }
    }
}

#[test]
fn a_client_that_renews_its_keys_without_end_makes_us_keep_nothing() {
    let authority = Authority::new("tls-keys");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    let version = &rustls::version::TLS13;
    let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
    // It does not read: some of what it is sent is kept.
    let sent = pattern(1_000_000);
    let mut taken = 0;
    while let count @ 1.. = pair.send(&sent[taken..]).unwrap() {
        taken += count;
    }
    let kept = pair.session.unsent.len();
    // Each renewal asks for one of ours (RFC 8446 section 4.6.3).
    for _ in 0..1000 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(b"a").unwrap();
        pair.client_sends();
        assert_eq!(pair.receive(), Received::Nothing);
    }
    assert_eq!(pair.received.len(), 1000);
    assert_eq!(pair.session.unsent.len(), kept);
    // What is sent from then on is readable, whichever keys it has.
    let mut echoed = pair.client_receives().unwrap();
    while echoed.len() < sent.len() {
        taken += pair.send(&sent[taken..]).unwrap();
        echoed.extend(pair.client_receives().unwrap());
    }
    assert!(echoed == sent);
}

#[test]
fn what_stands_behind_the_end_is_not_looked_at() {
    let authority = Authority::new("tls-behind-the-end");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for version in BOTH {
        let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
        pair.client.writer().write_all(b"the last").unwrap();
        pair.client.send_close_notify();
        pair.client_sends();
        pair.client_socket.write_all(&pattern(50_000)).unwrap();
        assert_eq!(pair.receive(), Received::End);
        assert_eq!(pair.received, b"the last");
        assert_eq!(pair.session.failure(), None);
        // Only its side has ended.
        assert_eq!(pair.send(b"answer"), Ok(6), "{version:?}");
        pair.session.finish(pair.socket.as_fd());
        assert_eq!(pair.client_receives().unwrap(), b"answer");
    }
}

#[test]
fn what_a_peer_said_before_it_went_is_received_though_nothing_can_be_sent() {
    let authority = Authority::new("tls-gone");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    let mut pair = Pair::open(&settings, client(&authority, "edge.example"));
    // So much that some of it is kept.
    let much = pattern(1_000_000);
    let mut taken = 0;
    while let Ok(count @ 1..) = pair.send(&much[taken..]) {
        taken += count;
    }
    assert!(pair.session.wants_room());
    pair.client.writer().write_all(b"goodbye").unwrap();
    pair.client.send_close_notify();
    pair.client_sends();
    pair.client_socket.shutdown(std::net::Shutdown::Read).unwrap();
    assert_eq!(pair.receive(), Received::End);
    assert_eq!(pair.received, b"goodbye");
    assert_eq!(pair.send(&much[taken..]), Err(Gone));
    assert!(!pair.session.wants_room());
}

#[test]
fn we_close_with_an_alert() {
    let authority = Authority::new("tls-finish");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for version in BOTH {
        let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
        assert_eq!(pair.send(b"last"), Ok(4));
        pair.session.finish(pair.socket.as_fd());
        pair.session.finish(pair.socket.as_fd());
        assert_eq!(pair.send(b"more"), Err(Gone));
        assert_eq!(pair.client_receives().unwrap(), b"last");
        let mut rest = [0];
        // rustls tells an end that was announced from one that was not.
        assert_eq!(pair.client.reader().read(&mut rest).unwrap(), 0);
        assert_eq!(io::ErrorKind::WouldBlock, pair.client_socket.read(&mut rest).unwrap_err().kind());
    }
}

#[test]
fn a_client_that_left_without_a_word_more_is_noticed_by_a_look_that_takes_nothing() {
    let authority = Authority::new("tls-peek");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for version in BOTH {
        let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
        assert_eq!(pair.session.peek(pair.socket.as_fd()), Received::Nothing);
        pair.client.send_close_notify();
        pair.client_sends();
        pair.client_socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(pair.session.peek(pair.socket.as_fd()), Received::End, "{version:?}");

        let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
        pair.client.writer().write_all(&[0; 100]).unwrap();
        pair.client_sends();
        pair.client_socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(pair.session.peek(pair.socket.as_fd()), Received::Bytes(1), "{version:?}");
    }
}

#[test]
fn what_breaks_a_rule_is_told_by_an_alert_and_by_its_kind() {
    let authority = Authority::new("tls-failures");
    let edge = authority.certificate("edge", &["edge.example"]);
    let settings = settings(&[edge]);
    // A client that cannot be served.
    let with_suites = |suites: Vec<rustls::SupportedCipherSuite>| {
        let provider = CryptoProvider { cipher_suites: suites, ..default_provider() };
        ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(authority.roots())
            .with_no_client_auth()
    };
    let rsa_alone = with_suites(vec![cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]);
    let mut http2 = config(&authority, rustls::ALL_VERSIONS);
    http2.alpn_protocols = vec![b"h2".to_vec()];
    let stranger = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let other_name = client(&authority, "other.example");
    for (client, expected) in [
        (client_of(rsa_alone, "edge.example"), TlsFailure::NoSharedVersionOrCipher),
        (client_of(http2, "edge.example"), TlsFailure::NoSharedProtocol),
        (client_of(stranger, "edge.example"), TlsFailure::CertificateRefused),
        (other_name, TlsFailure::CertificateRefused),
    ] {
        let mut pair = Pair::new(&settings, client);
        let error = pair.shake_hands().unwrap_err();
        pair.client_sends();
        assert_eq!(pair.receive(), Received::Reset, "{error}");
        assert_eq!(pair.session.failure(), Some(expected), "{error}");
        assert_eq!(pair.send(b"x"), Err(Gone));
        if expected != TlsFailure::CertificateRefused {
            assert!(matches!(error, Error::AlertReceived(_)), "{error}");
        }
    }
    // What is no handshake at all; a header of a record that is too long; a plain alert; a record of another kind.
    for (bytes, expected) in [
        (&[0x80, 0x2e, 1, 0, 2, 0, 0][..], TlsFailure::Malformed),
        (&[22, 3, 1, 0xff, 0xff], TlsFailure::Malformed),
        (&[22, 3, 1, 0, 4, 1, 0, 0, 0], TlsFailure::Malformed),
        (&[21, 3, 1, 0, 2, 2, 40], TlsFailure::AlertFromClient),
        (&[23, 3, 1, 0, 1, 0], TlsFailure::Protocol),
    ] {
        let mut pair = Pair::new(&settings, client(&authority, "edge.example"));
        pair.client_socket.write_all(bytes).unwrap();
        assert_eq!(pair.receive(), Received::Reset, "{bytes:?}");
        assert_eq!(pair.session.failure(), Some(expected), "{bytes:?}");
    }
    // A client that leaves.
    let mut pair = Pair::new(&settings, client(&authority, "edge.example"));
    pair.client_sends();
    pair.client_socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(pair.receive(), Received::Nothing, "the hello, whose answer cannot be sent");
    assert_eq!(pair.receive(), Received::Reset);
    assert_eq!(pair.session.failure(), Some(TlsFailure::Closed));
    // One that says so, in the middle of the handshake, as who cancels it does (RFC 8446 section 6.1).
    let mut pair = Pair::new(&settings, client(&authority, "edge.example"));
    pair.client_sends();
    assert_eq!(pair.receive(), Received::Nothing);
    pair.client_socket.write_all(&[21, 3, 3, 0, 2, 1, 90, 21, 3, 3, 0, 2, 1, 0]).unwrap();
    assert_eq!(pair.receive(), Received::Reset);
    assert_eq!(pair.session.failure(), Some(TlsFailure::Closed));
}

#[test]
fn a_record_that_was_changed_is_the_end_behind_what_was_good() {
    let authority = Authority::new("tls-changed");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    for version in BOTH {
        let mut pair = Pair::open(&settings, client_of(config(&authority, &[version]), "edge.example"));
        let mut wire = Vec::new();
        for text in ["good", "evil"] {
            pair.client.writer().write_all(text.as_bytes()).unwrap();
            pair.client.write_tls(&mut wire).unwrap();
        }
        *wire.last_mut().unwrap() ^= 1;
        pair.client_socket.write_all(&wire).unwrap();
        assert_eq!(pair.receive(), Received::Reset);
        assert_eq!((&pair.received[..], pair.session.failure()), (&b"good"[..], Some(TlsFailure::Decrypt)));
        assert!(matches!(pair.client_receives(), Err(Error::AlertReceived(AlertDescription::BadRecordMac))));
    }
}

#[test]
fn a_client_cannot_make_us_keep_more_than_a_record_before_the_handshake() {
    let authority = Authority::new("tls-greedy");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    let mut pair = Pair::new(&settings, client(&authority, "edge.example"));
    // A ClientHello of 60,000 bytes, in records of 10,000.
    let mut hello = vec![1, 0, 0xea, 0x60];
    hello.resize(60_000, 0);
    let mut ended = Received::Nothing;
    for part in hello.chunks(10_000) {
        let _ = pair.client_socket.write_all(&[22, 3, 1, 0x27, 0x10]);
        let _ = pair.client_socket.write_all(part);
        ended = pair.receive();
        assert!(pair.session.carried.len() < 3 * RECORD_SIZE_MAX);
    }
    assert_eq!((ended, pair.session.failure()), (Received::Reset, Some(TlsFailure::Malformed)));
}

#[test]
fn tickets_resume_with_other_settings_that_have_their_keys() {
    let authority = Authority::new("tls-tickets");
    let tickets = Tickets::new().unwrap();
    let of = |tickets: &Tickets| {
        ServerSettings::new(&[authority.certificate("edge", &["edge.example"])], Versions::ALL, tickets)
    };
    let (before, after, stranger) = (of(&tickets), of(&tickets), of(&Tickets::new().unwrap()));
    for (version, [full, resumed]) in BOTH.into_iter().zip([
        [TlsHandshake::Full12, TlsHandshake::Resumed12],
        [TlsHandshake::Full13, TlsHandshake::Resumed13],
    ]) {
        let config = Arc::new(config(&authority, &[version]));
        for (settings, expected) in
            [(&before, full), (&before, resumed), (&after, resumed), (&stranger, full)]
        {
            let name = ServerName::try_from("edge.example").unwrap();
            let mut pair = Pair::open(settings, ClientConnection::new(Arc::clone(&config), name).unwrap());
            assert_eq!(pair.session.handshake(), Some(expected));
            // The tickets of TLS 1.3 come behind the handshake.
            pair.send(b"x").unwrap();
            assert_eq!(pair.client_receives().unwrap(), b"x");
        }
    }
}

#[test]
fn a_client_gets_the_certificate_for_the_name_that_it_asks_for() {
    let authority = Authority::new("tls-names");
    let first = authority.certificate("first", &["first.example"]);
    let exact = authority.certificate("exact", &["a.chat.example", "UPPER.example"]);
    let wild = authority.certificate("wild", &["*.chat.example"]);
    let settings = settings(&[first.clone(), wild.clone(), exact.clone()]);
    for (name, expected) in [
        ("first.example", Some(&first)),
        ("a.chat.example", Some(&exact)),
        ("b.chat.example", Some(&wild)),
        ("upper.example", Some(&exact)),
        // What none is for: the first is offered, and refused.
        ("chat.example", None),
        ("c.b.chat.example", None),
        ("unknown.example", None),
    ] {
        let mut pair = Pair::new(&settings, client(&authority, name));
        let outcome = pair.shake_hands();
        assert_eq!(outcome.is_ok(), expected.is_some(), "{name}: {outcome:?}");
        if let Some(expected) = expected {
            let presented = pair.client.peer_certificates().unwrap();
            assert!(presented == expected.key.cert, "{name}");
        }
    }
    // An address is no name, and nothing is asked for.
    let by_address = authority.certificate("address", &["192.0.2.1"]);
    let settings = super::tests::settings(&[by_address, exact]);
    Pair::open(&settings, client(&authority, "192.0.2.1"));
}

#[test]
fn of_two_certificates_for_a_name_a_client_gets_one_that_it_can_verify() {
    let authority = Authority::new("tls-kinds");
    let years = [2020, 2090];
    let hosts = &["edge.example"];
    let ed25519 = authority.sign("ed25519", hosts, &rcgen::PKCS_ED25519, years).load().unwrap();
    let ecdsa = authority.sign("ecdsa", hosts, &rcgen::PKCS_ECDSA_P384_SHA384, years).load().unwrap();
    let settings = settings(&[ed25519.clone(), ecdsa.clone()]);
    let mut provider = default_provider();
    let without_ed25519: Vec<_> = provider
        .signature_verification_algorithms
        .mapping
        .iter()
        .copied()
        .filter(|(scheme, _)| *scheme != rustls::SignatureScheme::ED25519)
        .collect();
    provider.signature_verification_algorithms.mapping = Box::leak(without_ed25519.into());
    let old = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    for (client, expected) in
        [(client(&authority, "edge.example"), &ed25519), (client_of(old, "edge.example"), &ecdsa)]
    {
        let pair = Pair::open(&settings, client);
        assert!(pair.client.peer_certificates().unwrap() == expected.key.cert);
    }
}

#[test]
fn two_sessions_speak_with_each_other() {
    let authority = Authority::new("tls-both");
    let settings = settings(&[authority.certificate("edge", &["edge.example"])]);
    let (one, other) = UnixStream::pair().unwrap();
    for socket in [&one, &other] {
        socket.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    }
    let mut server = Session::server(&settings, &[], &Rc::default()).unwrap();
    let roots = ClientSettings::new(authority.roots());
    let open =
        |name: &'static str| Session::client(&roots, &ServerName::try_from(name).unwrap(), &Rc::default());
    let mut client = open("edge.example").unwrap();
    let mut buffer = vec![0; SCRATCH_SIZE];
    while client.is_handshaking() || server.is_handshaking() {
        assert_eq!(client.receive(one.as_fd(), &mut buffer), Received::Nothing);
        assert_eq!(server.receive(other.as_fd(), &mut buffer), Received::Nothing);
    }
    assert_eq!(client.send(one.as_fd(), b"question"), Ok(8));
    assert_eq!(server.receive(other.as_fd(), &mut buffer), Received::Bytes(8));
    assert_eq!(server.send(other.as_fd(), b"answer"), Ok(6));
    // The tickets come before it.
    assert_eq!(client.receive(one.as_fd(), &mut buffer), Received::Bytes(6));
    assert_eq!(&buffer[..6], b"answer");

    // A name that the certificate is not for.
    let (one, other) = UnixStream::pair().unwrap();
    for socket in [&one, &other] {
        socket.set_nonblocking(true).unwrap();
    }
    let mut server = Session::server(&settings, &[], &Rc::default()).unwrap();
    let mut client = open("other.example").unwrap();
    let refused = loop {
        if client.receive(one.as_fd(), &mut buffer) == Received::Reset {
            break client.error().unwrap().to_string();
        }
        server.receive(other.as_fd(), &mut buffer);
    };
    assert!(refused.contains("other.example"), "{refused}");
    assert_eq!(server.receive(other.as_fd(), &mut buffer), Received::Reset);
    assert_eq!(server.failure(), Some(TlsFailure::CertificateRefused));
}
