//! Checks against servers that do well, badly, or nothing at all.

use std::num::NonZeroU32;
use std::path::PathBuf;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use super::*;
use crate::config::UpstreamAddress;
use crate::protocol::http::request::RequestHead;
use crate::protocol::websocket::handshake::{Request, judge, write_accept};
use crate::service::upstream::fixture;

const TIMEOUT: Duration = Duration::from_secs(5);

fn http() -> HealthKind {
    HealthKind::Http { path: "/healthz?deep=1".to_owned() }
}

fn websocket() -> HealthKind {
    HealthKind::WebSocket { path: "/chat".to_owned() }
}

fn health(kind: HealthKind, timeout: Duration) -> Health {
    let two = NonZeroU32::new(2).unwrap();
    Health { kind, interval: Duration::from_millis(5), timeout, healthy_after: two, unhealthy_after: two }
}

fn group(address: UpstreamAddress) -> Arc<Group> {
    Group::new("chat", &fixture::relay([address]), fixture::states(1))
}

/// Checks an upstream once, with all places free.
async fn check(group: &Arc<Group>, index: usize, health: &Health) -> Option<Result<(), CheckFault>> {
    super::check(group, index, health, &Arc::new(Semaphore::new(CHECKS_MAX))).await
}

/// A listener of this test's own, and the group whose upstream it is.
async fn listener() -> (TcpListener, Arc<Group>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let group = group(UpstreamAddress::Socket(listener.local_addr().unwrap()));
    (listener, group)
}

/// Reads a request head and writes this answer; returns the request and the stream.
async fn answer(listener: &TcpListener, answer: &[u8]) -> (String, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        receive(&mut stream, &mut request).await.unwrap();
    }
    stream.write_all(answer).await.unwrap();
    (String::from_utf8(request).unwrap(), stream)
}

/// What one check says of a server that gives this answer and then closes.
async fn checked(kind: HealthKind, bytes: &[u8]) -> Result<(), String> {
    let (listener, group) = listener().await;
    let health = health(kind, TIMEOUT);
    let (outcome, ()) = tokio::join!(check(&group, 0, &health), async {
        drop(answer(&listener, bytes).await);
    });
    outcome.expect("an address is known").map_err(|fault| fault.to_string())
}

#[tokio::test]
async fn a_tcp_check_connects() {
    let (listener, group) = listener().await;
    let health = health(HealthKind::Tcp, TIMEOUT);
    check(&group, 0, &health).await.unwrap().unwrap();
    drop(listener);
    let fault = check(&group, 0, &health).await.unwrap().unwrap_err();
    assert!(matches!(&fault, CheckFault::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused));
    assert!(fault.to_string().starts_with("connecting failed: Connection refused"), "{fault}");
}

#[tokio::test]
async fn a_check_comes_from_the_source_of_the_route() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut relay = fixture::relay([UpstreamAddress::Socket(listener.local_addr().unwrap())]);
    relay.sources = vec!["127.0.0.7".parse().unwrap()];
    let group = Group::new("chat", &relay, fixture::states(1));
    check(&group, 0, &health(HealthKind::Tcp, TIMEOUT)).await.unwrap().unwrap();
    let (_, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.7");
}

#[test]
fn what_this_machine_lacks_is_no_fault_of_the_upstream() {
    for (errno, is_ours) in [
        (Errno::ADDRINUSE, true),
        (Errno::ADDRNOTAVAIL, true),
        (Errno::MFILE, true),
        (Errno::NFILE, true),
        (Errno::NOBUFS, true),
        (Errno::NOMEM, true),
        (Errno::CONNREFUSED, false),
        (Errno::HOSTUNREACH, false),
        (Errno::TIMEDOUT, false),
        // A Unix socket whose queue is full, and one that may not be opened.
        (Errno::AGAIN, false),
        (Errno::ACCESS, false),
    ] {
        assert_eq!(CheckFault::Connect(errno.into()).is_ours(), is_ours, "{errno}");
    }
    assert!(!CheckFault::Broken(Errno::NOBUFS.into()).is_ours());
}

#[tokio::test]
async fn a_check_that_cannot_be_made_tells_nothing() {
    // RFC 5737: an address of documentation, which no interface has, so nothing can come from it.
    let mut relay = fixture::relay([UpstreamAddress::Name { host: "chat.example".to_owned(), port: 80 }]);
    relay.sources = vec!["192.0.2.1".parse().unwrap()];
    let group = Group::new("chat", &relay, fixture::states(1));
    let health = health(HealthKind::Tcp, TIMEOUT);
    let refused = TcpListener::bind("[::1]:0").await.unwrap().local_addr().unwrap();
    let unknown = SocketAddr::new("127.0.0.1".parse().unwrap(), refused.port());
    for addresses in [&[unknown][..], &[unknown, refused], &[refused, unknown]] {
        group.set_addresses(0, addresses, 1);
        let fault = check(&group, 0, &health).await.unwrap().unwrap_err();
        assert!(fault.is_ours(), "{addresses:?}: {fault}");
    }
    group.set_addresses(0, &[refused], 1);
    assert!(!check(&group, 0, &health).await.unwrap().unwrap_err().is_ours(), "no source is of its family");
}

#[tokio::test]
async fn an_http_check_asks_as_a_client_would() {
    let (listener, group) = listener().await;
    let health = health(http(), TIMEOUT);
    let (outcome, (request, _)) = tokio::join!(
        check(&group, 0, &health),
        answer(&listener, b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    );
    outcome.unwrap().unwrap();
    let mut storage = field_storage();
    let head = RequestHead::parse(request.as_bytes(), &mut storage).unwrap();
    assert_eq!((head.path(), head.query()), ("/healthz", Some("deep=1")));
    assert_eq!(
        head.authority().and_then(|authority| authority.port),
        Some(listener.local_addr().unwrap().port())
    );
    assert!(request.contains("\r\nConnection: close\r\n"), "{request}");
}

#[tokio::test]
async fn an_http_check_tells_answers_apart() {
    let endless = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(20);
    let large = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(20_000)).into_bytes();
    for (bytes, outcome) in [
        (b"HTTP/1.0 200 OK\r\n\r\n".as_slice(), Ok(())),
        (b"HTTP/1.1 399 Almost\r\n\r\nbody", Ok(())),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Err("it answered 400")),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", Err("it answered 500")),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Err("it answered 101")),
        (b"", Err("it ended the connection without an answer")),
        (b"HTTP/1.1 200 OK\r\n", Err("it ended the connection without an answer")),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", Err("its answer is not HTTP/1")),
        (&endless, Err("its answer is not HTTP/1")),
        (&large, Err("its answer is not HTTP/1")),
    ] {
        let text = bytes[..bytes.len().min(60)].escape_ascii().to_string();
        assert_eq!(checked(http(), bytes).await, outcome.map_err(str::to_owned), "{text}");
    }
}

#[tokio::test]
async fn a_websocket_check_shakes_hands_and_closes_as_it_ought_to() {
    let (listener, group) = listener().await;
    let health = health(websocket(), TIMEOUT);
    let server = async {
        let (request, mut stream) = answer(&listener, b"").await;
        let mut storage = field_storage();
        let head = RequestHead::parse(request.as_bytes(), &mut storage).unwrap();
        assert_eq!(head.path(), "/chat");
        let Ok(Request::Opening(opening)) = judge(&head) else { panic!("no opening handshake") };
        let mut accept = Vec::new();
        write_accept(&mut accept, opening.key(), None, None);
        stream.write_all(&accept).await.unwrap();
        let mut farewell = Vec::new();
        while farewell.len() < 8 {
            receive(&mut stream, &mut farewell).await.unwrap();
        }
        // A masked Close with 1000 (RFC 6455 sections 5.2 and 7.4.1).
        assert_eq!(farewell[..2], [0x88, 0x82]);
        assert_eq!([farewell[6] ^ farewell[2], farewell[7] ^ farewell[3]], 1000_u16.to_be_bytes());
        stream.write_all(&[0x88, 2, 0x03, 0xe8]).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(check(&group, 0, &health), server);
    outcome.unwrap().unwrap();
    let refusal = checked(websocket(), b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
    assert_eq!(refusal, Err("the server answered 403, not 101".to_owned()));
}

#[tokio::test]
async fn a_websocket_server_that_takes_its_time_to_leave_is_good_and_keeps_the_place_meanwhile() {
    let (listener, group) = listener().await;
    let places = Arc::new(Semaphore::new(1));
    // Shorter than what the server is given to answer the Close, which it never does.
    let health = health(websocket(), FAREWELL_TIMEOUT / 4);
    let server = async {
        let (request, mut stream) = answer(&listener, b"").await;
        let mut storage = field_storage();
        let head = RequestHead::parse(request.as_bytes(), &mut storage).unwrap();
        let Ok(Request::Opening(opening)) = judge(&head) else { panic!("no opening handshake") };
        let mut accept = Vec::new();
        write_accept(&mut accept, opening.key(), None, None);
        stream.write_all(&accept).await.unwrap();
        stream
    };
    let (outcome, stream) = tokio::join!(super::check(&group, 0, &health, &places), server);
    outcome.unwrap().unwrap();
    assert_eq!(places.available_permits(), 0, "the farewell has a descriptor still");
    drop(stream);
    drop(timeout(TIMEOUT, places.acquire()).await.expect("the server has left"));
}

#[tokio::test]
async fn addresses_of_one_name_are_checked_side_by_side() {
    let [(first, _), (second, _)] = [listener().await, listener().await];
    let group = group(UpstreamAddress::Name { host: "chat.example".to_owned(), port: 80 });
    let addresses = [&first, &second].map(|listener| listener.local_addr().unwrap());
    group.set_addresses(0, &addresses, 1);
    // The first does not answer before the second is asked, and that never answers.
    let servers = async {
        let (mut first, _) = first.accept().await.unwrap();
        let _second = second.accept().await.unwrap();
        first.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while receive(&mut first, &mut Vec::new()).await.is_ok() {}
    };
    let health = health(http(), TIMEOUT);
    let (outcome, ()) = tokio::join!(check(&group, 0, &health), servers);
    outcome.unwrap().unwrap();
}

#[tokio::test]
async fn of_very_many_addresses_a_few_are_checked_at_a_time() {
    let [(silent, _), (good, _)] = [listener().await, listener().await];
    let group = group(UpstreamAddress::Name { host: "chat.example".to_owned(), port: 80 });
    // The kernel accepts for the silent one.
    let mut addresses = vec![silent.local_addr().unwrap(); 3 * ADDRESSES_AT_ONCE - 1];
    addresses.push(good.local_addr().unwrap());
    group.set_addresses(0, &addresses, 1);
    let places = Arc::new(Semaphore::new(CHECKS_MAX));
    let health = health(http(), Duration::from_millis(1500));
    let server = async {
        let (_, mut stream) = answer(&good, b"HTTP/1.1 200 OK\r\n\r\n").await;
        assert!(places.available_permits() >= CHECKS_MAX - ADDRESSES_AT_ONCE);
        while receive(&mut stream, &mut Vec::new()).await.is_ok() {}
    };
    let (outcome, ()) = tokio::join!(super::check(&group, 0, &health, &places), server);
    outcome.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_fails_its_check_in_time() {
    let (_listener, group) = listener().await;
    // The kernel accepts for it; nobody answers.
    let fault = check(&group, 0, &health(http(), Duration::from_millis(20))).await.unwrap().unwrap_err();
    assert!(matches!(fault, CheckFault::TimedOut), "{fault}");
}

#[tokio::test]
async fn one_good_address_of_a_name_is_enough() {
    let (listener, _) = listener().await;
    let address = listener.local_addr().unwrap();
    let group = group(UpstreamAddress::Name { host: "chat.example".to_owned(), port: address.port() });
    let health = health(HealthKind::Tcp, TIMEOUT);
    assert!(check(&group, 0, &health).await.is_none());
    // Nothing listens at the second address of loopback: the listener has the first alone.
    let dead = SocketAddr::new("127.0.0.2".parse().unwrap(), address.port());
    group.set_addresses(0, &[dead, address], 1);
    check(&group, 0, &health).await.unwrap().unwrap();
    group.set_addresses(0, &[dead], 1);
    assert!(matches!(check(&group, 0, &health).await, Some(Err(CheckFault::Connect(_)))));
}

#[tokio::test]
async fn a_unix_socket_is_checked_alike() {
    let folder = std::env::temp_dir().join(format!("ringway-health-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path: PathBuf = folder.join("upstream.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let group = group(UpstreamAddress::Unix(path));
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // Until the check has gone.
        while receive(&mut stream, &mut Vec::new()).await.is_ok() {}
    };
    let health = health(http(), TIMEOUT);
    let (outcome, ()) = tokio::join!(check(&group, 0, &health), server);
    outcome.unwrap().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(check(&group, 0, &health).await, Some(Err(CheckFault::Connect(_)))));
}

#[test]
fn outcomes_count_in_a_row() {
    let bad = || Err(CheckFault::Ended);
    let mut tally = Tally { health: health(HealthKind::Tcp, TIMEOUT), is_good: true, in_row: 0 };
    assert!(tally.take(Ok(())).is_none());
    assert!(tally.take(bad()).is_none());
    assert!(tally.take(Ok(())).is_none(), "one bad check is forgotten");
    assert!(tally.take(bad()).is_none());
    let ours = || Err(CheckFault::Connect(Errno::ADDRNOTAVAIL.into()));
    assert!(tally.take(ours()).is_none(), "what cannot be checked tells nothing");
    assert!(matches!(tally.take(bad()), Some(Err(_))), "two in a row are not");
    assert!(tally.take(ours()).is_none());
    assert!(matches!(tally.take(bad()), Some(Err(_))), "the reason may be another now");
    assert!(tally.take(Ok(())).is_none());
    assert!(matches!(tally.take(bad()), Some(Err(_))));
    assert!(tally.take(Ok(())).is_none());
    assert!(matches!(tally.take(Ok(())), Some(Ok(()))));
    assert!(tally.take(Ok(())).is_none());
}

#[tokio::test]
async fn an_upstream_goes_and_comes_back_with_its_checks() {
    let (listener, group) = listener().await;
    let (answers, mut next_answer) = mpsc::channel::<&'static [u8]>(1);
    let server = tokio::spawn(async move {
        while let Some(bytes) = next_answer.recv().await {
            drop(answer(&listener, bytes).await);
        }
    });
    let mut tasks = JoinSet::new();
    watch([(&group, &health(http(), TIMEOUT))], &mut tasks);
    let is_healthy = || group.upstreams()[0].state().is_healthy();
    assert!(is_healthy(), "until a check says otherwise");
    // An answer is taken from the channel when the check before it is over, so that each step is seen.
    while is_healthy() {
        answers.send(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").await.unwrap();
    }
    assert_eq!(group.upstreams()[0].fault().as_deref(), Some("it answered 500"));
    while !is_healthy() {
        answers.send(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    }
    assert_eq!(group.upstreams()[0].fault(), None);

    // A check that is under way when the gateway drains is dropped with all others.
    tasks.shutdown().await;
    drop(answers);
    server.abort();
}
