//! What clients get through a shard whose upstreams are asked too much, refuse, hang or break off: over loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ringway::config::{Config, IoDriver};
use ringway::metrics::{Metrics, RouteLabels};
use ringway::net::{clock, listen};
use ringway::protocol::websocket::frame::{self, Opcode};
use ringway::protocol::websocket::handshake;
use ringway::service::admission::Admission;
use ringway::service::upstream::Group;
use ringway::shard::{self, Listener, Mail, Setup};
use socket2::{Domain, SockRef, Socket, Type};

/// How long anything may take before its test fails.
const PATIENCE: Duration = Duration::from_secs(20);

const DRIVERS: [IoDriver; 2] = [IoDriver::Auto, IoDriver::Epoll];

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
        &format!("{}request_headers = {{ set = {{ {} }} }}\n", route("/c", &[upstream]), set.join(", ")),
    );
    // Six fields beside these.
    let fields: Vec<String> = (0..250).map(|index| format!("X-{index}: a\r\n")).collect();
    let mut client = gateway.ask("/c", &fields.concat());
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
    let gateway = Gateway::start(IoDriver::Auto, "", &route("/c", &[upstream]));
    for _ in 0..5 {
        assert_eq!(status(&read_head(&mut gateway.ask("/c", "X-Bad: 1\r\n"))), 502);
    }
    assert_eq!(status(&read_head(&mut gateway.ask("/c", ""))), 101);
    assert_eq!(gateway.metric("upstream_connects_total", &["result=\"reset\""]), 5);
    assert_eq!(gateway.metric("upstream_ejections_total", &[]), 0);
    gateway.stop();
}

#[test]
fn nobody_waits_for_more_than_a_few_upstreams_that_hang() {
    let hanging: Vec<Hanging> = (0..8).map(|_| Hanging::new()).collect();
    let addresses: Vec<SocketAddr> = hanging.iter().map(|hanging| hanging.address).collect();
    let limits = "upstream_limits = { connect_timeout_ms = 300, eject_after = 0 }\n";
    for io_driver in DRIVERS {
        let gateway = Gateway::start(io_driver, "", &format!("{}{limits}", route("/c", &addresses)));
        assert_eq!(status(&read_head(&mut gateway.ask("/c", ""))), 504);
        let count = gateway.metric("upstream_connects_total", &["result=\"timed_out\""]);
        assert!((2..=3).contains(&count), "{count} on {io_driver}");
        gateway.stop();
    }
}

#[test]
fn every_byte_of_a_client_is_counted_once() {
    let answering = upstream(|mut stream| {
        let head = read_head(&mut stream);
        stream.write_all(&accept(&head)).unwrap();
        stream.read_exact(&mut vec![0; frame(Some([1, 2, 3, 4])).len()]).unwrap();
        stream.write_all(&frame(None)).unwrap();
        wait_for_end(&mut stream);
    });
    let refusing = upstream(|mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n").unwrap();
        wait_for_end(&mut stream);
    });
    let routes = format!(
        "{}{}[[route]]\npath = \"/echo\"\nservice = \"echo\"\n[[route]]\npath = \"/\"\nservice = \"page\"\n",
        route("/c", &[answering]),
        route("/refused", &[refusing])
    );
    let page = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // A path, what stands before its opening handshake, and the statuses that come; a frame follows at once.
    for io_driver in DRIVERS {
        for (path, before, statuses) in [
            ("/echo", "", &[101][..]),
            ("/c", "", &[101]),
            ("/echo", page, &[200, 101]),
            ("/c", page, &[200, 101]),
            ("/none", "", &[404]),
            ("/refused", "", &[403]),
            ("/refused", page, &[200, 403]),
        ] {
            let gateway = Gateway::start(io_driver, "", &routes);
            let bytes =
                [before.as_bytes(), opening(path, "").as_bytes(), &frame(Some([1, 2, 3, 4]))].concat();
            let mut client = gateway.connect();
            client.write_all(&bytes).unwrap();
            for expected in statuses {
                let head = read_head(&mut client);
                assert_eq!(status(&head), *expected, "{path}");
                if *expected == 200 {
                    client.read_exact(&mut vec![0; content_length(&head)]).unwrap();
                }
            }
            if statuses.ends_with(&[101]) {
                let mut answer = frame(None);
                answer.fill(0);
                client.read_exact(&mut answer).unwrap();
                assert_eq!(answer, frame(None));
            } else {
                wait_for_end(&mut client);
            }
            drop(client);
            let metrics = gateway.stop();
            let counted = metric(&metrics, "wire_bytes_total", &["direction=\"received\""]);
            assert_eq!(counted, bytes.len() as u64, "{path} after {before:?} on {io_driver}");
        }
    }
}

#[test]
fn a_refusal_that_breaks_off_does_not_look_whole_whatever_its_framing() {
    for io_driver in DRIVERS {
        for (framing, expected) in [
            ("Content-Length: 100\r\n", Ok(0)),
            ("Transfer-Encoding: chunked\r\n", Ok(0)),
            // Its end would be that of the body.
            ("", Err(ErrorKind::ConnectionReset)),
        ] {
            // The client says when it has the first part, and only then does the upstream go.
            let (go, gone) = mpsc::channel::<()>();
            let gone = Mutex::new(gone);
            let upstream = upstream(move |mut stream| {
                read_head(&mut stream);
                write!(stream, "HTTP/1.1 403 No\r\n{framing}\r\n5\r\nhello").unwrap();
                gone.lock().unwrap().recv().unwrap();
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            });
            let gateway = Gateway::start(io_driver, "", &route("/c", &[upstream]));
            let mut client = gateway.ask("/c", "");
            assert_eq!(status(&read_head(&mut client)), 403);
            client.read_exact(&mut [0; 8]).unwrap();
            go.send(()).unwrap();
            let outcome = client.read(&mut [0; 1]).map_err(|error| error.kind());
            assert_eq!(outcome, expected, "{framing:?} on {io_driver}");
            let metrics = gateway.stop();
            assert_eq!(metric(&metrics, "connections_ended_total", &["end=\"upstream_gone\""]), 1);
        }
    }
}

#[test]
fn a_refusal_may_be_slow_but_not_silent() {
    for io_driver in DRIVERS {
        let upstream = upstream(move |mut stream| {
            let head = read_head(&mut stream);
            write!(stream, "HTTP/1.0 403 No\r\n\r\n").unwrap();
            for _ in 0..8 {
                pause(Duration::from_millis(200));
                stream.write_all(b"a").unwrap();
            }
            if head.contains("X-Silent") {
                wait_for_end(&mut stream);
            }
        });
        let limits = "[limits]\nwrite_timeout_ms = 1000\n";
        let gateway = Gateway::start(io_driver, limits, &route("/c", &[upstream]));
        for (fields, expected) in [("", Ok(8)), ("X-Silent: 1\r\n", Err(ErrorKind::ConnectionReset))] {
            let mut client = gateway.ask("/c", fields);
            assert_eq!(status(&read_head(&mut client)), 403);
            let mut body = Vec::new();
            let outcome = client.read_to_end(&mut body).map_err(|error| error.kind());
            assert_eq!((outcome, body.len()), (expected, 8), "{io_driver}");
        }
        gateway.stop();
    }
}

#[test]
fn a_drain_lets_a_refusal_come_to_its_end() {
    for io_driver in DRIVERS {
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let upstream = upstream(move |mut stream| {
            read_head(&mut stream);
            write!(stream, "HTTP/1.1 403 No\r\nContent-Length: 10\r\n\r\nhello").unwrap();
            gone.lock().unwrap().recv().unwrap();
            stream.write_all(b"world").unwrap();
            wait_for_end(&mut stream);
        });
        let echo = "[[route]]\npath = \"/echo\"\nservice = \"echo\"\n";
        let gateway = Gateway::start(io_driver, "", &format!("{}{echo}", route("/c", &[upstream])));
        let mut client = gateway.ask("/c", "");
        assert_eq!(status(&read_head(&mut client)), 403);
        client.read_exact(&mut [0; 5]).unwrap();
        // Another client is asked to leave, which tells that the shard drains.
        let mut other = gateway.ask("/echo", "");
        assert_eq!(status(&read_head(&mut other)), 101);
        gateway.mailbox.send(Mail::Drain).unwrap();
        let mut close = [0; 4];
        other.read_exact(&mut close).unwrap();
        assert_eq!(close, [0x88, 2, 0x03, 0xe9]);
        go.send(()).unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"world", "{io_driver}");
        drop((client, other));
        let metrics = gateway.stop();
        assert_eq!(metric(&metrics, "connections_ended_total", &["end=\"refused\""]), 1);
    }
}

#[test]
fn requests_in_one_segment_are_counted_once() {
    let web = upstream(|mut stream| {
        while stream.peek(&mut [0]).is_ok_and(|size| size > 0) {
            let head = read_head(&mut stream);
            if head.starts_with("POST") {
                stream.read_exact(&mut [0; 5]).unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let get = "GET /w HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let post = "POST /w HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
    let last = "GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for io_driver in DRIVERS {
        for requests in [&[get][..], &[get, get, get], &[post, get], &[get, post, get, post]] {
            let gateway = Gateway::start(io_driver, "", &web_route("/w", &[web], ""));
            let bytes = [&requests.concat(), last].concat();
            let mut client = gateway.connect();
            client.write_all(bytes.as_bytes()).unwrap();
            for _ in requests {
                assert_eq!(status(&read_head(&mut client)), 200);
                client.read_exact(&mut [0; 2]).unwrap();
            }
            assert_eq!(status(&read_head(&mut client)), 404);
            wait_for_end(&mut client);
            drop(client);
            let metrics = gateway.stop();
            let counted = metric(&metrics, "wire_bytes_total", &["direction=\"received\""]);
            assert_eq!(counted, bytes.len() as u64, "{requests:?} on {io_driver}");
        }
    }
}

#[test]
fn an_upstream_that_answers_and_reads_no_further_holds_nobody() {
    for io_driver in DRIVERS {
        for limits in ["idle_connections_max = 0", "idle_connection_timeout_ms = 86400000"] {
            let (go, gone) = mpsc::channel::<()>();
            let gone = Mutex::new(gone);
            let web = upstream(move |mut stream| {
                read_head(&mut stream);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                gone.lock().unwrap().recv().unwrap();
            });
            let sizes = "[limits]\nrequest_body_size_max = \"1GiB\"\n";
            let gateway = Gateway::start(io_driver, sizes, &web_route("/w", &[web], limits));
            let mut client = gateway.connect();
            let head = "POST /w HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n";
            client.write_all(head.as_bytes()).unwrap();
            let mut sender = client.try_clone().unwrap();
            let sent = thread::spawn(move || while sender.write_all(&[b'a'; 8_192]).is_ok() {});
            let head = read_head(&mut client);
            assert_eq!(status(&head), 200);
            assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
            client.read_exact(&mut [0; 2]).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "{limits} on {io_driver}");
            client.shutdown(Shutdown::Both).unwrap();
            sent.join().unwrap();
            go.send(()).unwrap();
            let metrics = gateway.stop();
            assert_eq!(metric(&metrics, "connections_ended_total", &["end=\"http_done\""]), 1);
        }
    }
}

#[test]
fn a_client_that_takes_its_time_is_not_the_silence_of_its_upstream() {
    for io_driver in DRIVERS {
        let web = upstream(|mut stream| {
            let head = read_head(&mut stream);
            // With half of the body it is silent; with all of it, where that is asked for.
            if stream.read_exact(&mut [0; 10]).is_ok() && !head.contains("X-Silent") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            }
            wait_for_end(&mut stream);
        });
        let limits = "[limits]\nbody_timeout_ms = 4000\n";
        let gateway =
            Gateway::start(io_driver, limits, &web_route("/w", &[web], "response_timeout_ms = 1000"));
        for (fields, is_whole, expected) in
            [("", true, 200), ("", false, 408), ("X-Silent: 1\r\n", true, 504)]
        {
            let mut client = gateway.connect();
            write!(client, "POST /w HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n{fields}\r\n")
                .unwrap();
            client.write_all(b"hello").unwrap();
            if is_whole {
                pause(Duration::from_millis(1600));
                client.write_all(b"world").unwrap();
            }
            assert_eq!(status(&read_head(&mut client)), expected, "{io_driver}");
        }
        let metrics = gateway.stop();
        assert_eq!(metric(&metrics, "upstream_connects_total", &["result=\"handshake_timed_out\""]), 1);
    }
}

#[test]
fn an_upstream_that_had_not_answered_when_its_client_left_is_counted() {
    for io_driver in DRIVERS {
        let (asked, was_asked) = mpsc::channel::<()>();
        let asked = Mutex::new(asked);
        let web = upstream(move |mut stream| {
            read_head(&mut stream);
            asked.lock().unwrap().send(()).unwrap();
            wait_for_end(&mut stream);
            asked.lock().unwrap().send(()).unwrap();
        });
        let gateway = Gateway::start(io_driver, "", &web_route("/w", &[web], ""));
        let mut client = gateway.connect();
        client.write_all(b"GET /w HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        was_asked.recv_timeout(PATIENCE).unwrap();
        drop(client);
        was_asked.recv_timeout(PATIENCE).unwrap();
        let metrics = gateway.stop();
        assert_eq!(metric(&metrics, "connections_ended_total", &["end=\"client_gone\""]), 1);
        assert_eq!(metric(&metrics, "upstream_connects_total", &[]), 1, "{io_driver}");
        assert_eq!(metric(&metrics, "upstream_connects_total", &["result=\"abandoned\""]), 1);
    }
}

#[test]
fn a_cut_ends_an_exchange_in_every_state_and_leaves_nothing() {
    for io_driver in DRIVERS {
        for state in ["body", "head", "response", "blocked", "kept"] {
            let (reach, reached) = mpsc::channel::<()>();
            let reach = Mutex::new(reach);
            let web = upstream(move |mut stream| {
                read_head(&mut stream);
                match state {
                    "body" => stream.read_exact(&mut [0; 5]).unwrap(),
                    "response" => {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok").unwrap();
                    }
                    "blocked" => {
                        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                        stream.write_all(head).unwrap();
                        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
                        let chunk = [&b"10000\r\n"[..], &vec![b'a'; 65_536], b"\r\n"].concat();
                        while stream.write_all(&chunk).is_ok() {}
                    }
                    "kept" => {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                    }
                    _ => {}
                }
                reach.lock().unwrap().send(()).unwrap();
                wait_for_end(&mut stream);
                reach.lock().unwrap().send(()).unwrap();
            });
            let gateway = Gateway::start(io_driver, "", &web_route("/w", &[web], ""));
            let mut client = gateway.connect();
            let body = if state == "body" { "Content-Length: 10\r\n\r\nhello" } else { "\r\n" };
            write!(client, "POST /w HTTP/1.1\r\nHost: localhost\r\n{body}").unwrap();
            reached.recv_timeout(PATIENCE).unwrap();
            if matches!(state, "response" | "kept") {
                assert_eq!(status(&read_head(&mut client)), 200);
                client.read_exact(&mut [0; 2]).unwrap();
            }
            let metrics = gateway.stop();
            reached.recv_timeout(PATIENCE).unwrap();
            // Who waits for an answer can still be given one.
            let end = if state == "head" {
                assert_eq!(status(&read_head(&mut client)), 503);
                "end=\"http_done\""
            } else {
                "end=\"shutdown\""
            };
            wait_for_end(&mut client);
            for gauge in ["connections_active", "upstream_connections_active", "send_queue_bytes"] {
                assert_eq!(metric(&metrics, gauge, &[]), 0, "{gauge}, {state} on {io_driver}");
            }
            let ended = |labels: &[&str]| metric(&metrics, "connections_ended_total", labels);
            assert_eq!((ended(&[]), ended(&[end])), (1, 1), "{state} on {io_driver}");
        }
    }
}

#[test]
fn a_drain_lets_an_exchange_come_to_its_end_in_every_state() {
    for io_driver in DRIVERS {
        for state in ["body", "head", "response"] {
            let (reach, reached) = mpsc::channel::<()>();
            let (go, gone) = mpsc::channel::<()>();
            let (reach, gone) = (Mutex::new(reach), Mutex::new(gone));
            let web = upstream(move |mut stream| {
                read_head(&mut stream);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";
                let mut sent = 0;
                match state {
                    "body" => stream.read_exact(&mut [0; 5]).unwrap(),
                    "response" => {
                        sent = answer.len() - 2;
                        stream.write_all(&answer[..sent]).unwrap();
                    }
                    _ => {}
                }
                reach.lock().unwrap().send(()).unwrap();
                gone.lock().unwrap().recv().unwrap();
                if state == "body" {
                    stream.read_exact(&mut [0; 5]).unwrap();
                }
                stream.write_all(&answer[sent..]).unwrap();
                wait_for_end(&mut stream);
            });
            let echo = "[[route]]\npath = \"/echo\"\nservice = \"echo\"\n";
            let gateway = Gateway::start(io_driver, "", &format!("{}{echo}", web_route("/w", &[web], "")));
            let mut client = gateway.connect();
            let body = if state == "body" { "Content-Length: 10\r\n\r\nhello" } else { "\r\n" };
            write!(client, "POST /w HTTP/1.1\r\nHost: localhost\r\n{body}").unwrap();
            reached.recv_timeout(PATIENCE).unwrap();
            let mut other = gateway.ask("/echo", "");
            assert_eq!(status(&read_head(&mut other)), 101);
            gateway.mailbox.send(Mail::Drain).unwrap();
            let mut close = [0; 4];
            other.read_exact(&mut close).unwrap();
            assert_eq!(close, [0x88, 2, 0x03, 0xe9]);
            drop(other);
            go.send(()).unwrap();
            if state == "body" {
                client.write_all(b"world").unwrap();
            }
            let head = read_head(&mut client);
            assert_eq!(status(&head), 200, "{state} on {io_driver}");
            // The head of a response that had begun may have left before.
            assert!(state == "response" || head.contains("\r\nConnection: close\r\n"), "{head}");
            let mut content = [0; 4];
            client.read_exact(&mut content).unwrap();
            assert_eq!(&content, b"fine");
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            drop(client);
            // Nothing is left that a cut would have to end.
            let Gateway { metrics, thread, mailbox, .. } = gateway;
            thread.join().unwrap();
            drop(mailbox);
            let ended = |labels: &[&str]| metric(&metrics, "connections_ended_total", labels);
            assert_eq!(ended(&["end=\"http_done\""]), 1, "{state} on {io_driver}");
            assert_eq!(metric(&metrics, "upstream_connections_active", &[]), 0);
            assert_eq!(metric(&metrics, "panics_total", &[]), 0);
        }
    }
}

#[test]
fn a_client_that_broke_a_rule_is_told_so_though_the_gateway_drains_or_cuts() {
    for io_driver in DRIVERS {
        for mail in [Mail::Drain, Mail::Cut] {
            let is_drain = matches!(mail, Mail::Drain);
            let (tell, told) = mpsc::channel::<Vec<u8>>();
            let tell = Mutex::new(tell);
            let upstream = upstream(move |mut stream| {
                let head = read_head(&mut stream);
                stream.write_all(&accept(&head)).unwrap();
                let mut close = [0; 8];
                stream.read_exact(&mut close).unwrap();
                tell.lock().unwrap().send(close.to_vec()).unwrap();
                // It has no answer, and is told nothing else.
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                tell.lock().unwrap().send(rest).unwrap();
            });
            let gateway =
                Gateway::start(io_driver, "[limits]\nclose_timeout_ms = 1000\n", &route("/c", &[upstream]));
            let mut client = gateway.ask("/c", "");
            assert_eq!(status(&read_head(&mut client)), 101);
            // No client may send it without a mask.
            client.write_all(&[0x81, 1, b'a']).unwrap();
            let close = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(close[0], 0x88);
            gateway.mailbox.send(mail).unwrap();
            if is_drain {
                let mut received = Vec::new();
                client.read_to_end(&mut received).unwrap();
                assert_eq!((received[0], &received[2..4]), (0x88, &[0x03, 0xea][..]), "{io_driver}");
                assert_eq!(received.len(), 2 + usize::from(received[1]), "one Close and nothing else");
            }
            drop(client);
            // The rest of the reason, and no other Close.
            let rest = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(rest.len() + 8, 6 + usize::from(close[1] & 0x7f), "{io_driver}");
            let Gateway { metrics, thread, mailbox, .. } = gateway;
            thread.join().unwrap();
            drop(mailbox);
            assert_eq!(metric(&metrics, "upstream_connections_active", &[]), 0);
            assert_eq!(metric(&metrics, "panics_total", &[]), 0);
            let end = if is_drain { "end=\"violation\"" } else { "end=\"shutdown\"" };
            assert_eq!(metric(&metrics, "connections_ended_total", &[end]), 1, "{io_driver}");
        }
    }
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
        let setup = Setup {
            index: 0,
            core: None,
            io_driver,
            upstreams: upstreams.collect(),
            config: Arc::new(config),
            desk: None,
            folders: Vec::new(),
            keyrings: Vec::new(),
            memory: std::sync::Arc::default(),
            listeners: vec![Listener {
                port_index: 0,
                number: listeners.address.port(),
                socket: listeners.sockets.into_iter().next().unwrap(),
                cells: metrics.port_cells(0, 0),
                admission: Admission::new(100),
                addresses: None,
                tls: None,
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

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection on which an opening handshake for this path was sent, with further fields.
    fn ask(&self, path: &str, fields: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(opening(path, fields).as_bytes()).unwrap();
        stream
    }

    /// The sum of all series of this family that have these labels.
    fn metric(&self, family: &str, labels: &[&str]) -> u64 {
        metric(&self.metrics, family, labels)
    }

    /// Ends the shard, in which nothing may have panicked, and returns what it has counted.
    fn stop(self) -> Metrics {
        self.mailbox.send(Mail::Cut).unwrap();
        self.thread.join().unwrap();
        assert_eq!(metric(&self.metrics, "panics_total", &[]), 0);
        self.metrics
    }
}

/// The sum of all series of this family that have these labels.
fn metric(metrics: &Metrics, family: &str, labels: &[&str]) -> u64 {
    let text = metrics.encode();
    let series = text.lines().filter(|line| {
        line.starts_with(&format!("ringway_{family}{{")) && labels.iter().all(|label| line.contains(label))
    });
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// A route of this path to these upstreams; lines of its own may follow.
fn route(path: &str, upstreams: &[SocketAddr]) -> String {
    let upstreams: Vec<String> = upstreams.iter().map(|address| format!("\"ws://{address}\"")).collect();
    format!("[[route]]\npath = \"{path}\"\nservice = \"websocket\"\nupstreams = [{}]\n", upstreams.join(", "))
}

/// A route of this path that passes HTTP to these upstreams, with these limits.
fn web_route(path: &str, upstreams: &[SocketAddr], limits: &str) -> String {
    let upstreams: Vec<String> = upstreams.iter().map(|address| format!("\"http://{address}\"")).collect();
    format!(
        "[[route]]\npath = \"{path}\"\nservice = \"http\"\nupstreams = [{}]\nupstream_limits = {{ {limits} }}\n",
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

/// A server that connections hang at: its queue is full, so the kernel drops what would begin another.
struct Hanging {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl Hanging {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
                Ok(stream) => queued.push(stream),
                Err(error) if error.kind() == ErrorKind::TimedOut => break,
                Err(error) => panic!("{error}"),
            }
        }
        Self { address, _listener: listener, _queued: queued }
    }
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

fn content_length(head: &str) -> usize {
    let (_, rest) = head.split_once("Content-Length: ").unwrap();
    rest.split_once("\r\n").unwrap().0.parse().unwrap()
}

/// A binary message.
fn frame(key: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, Opcode::Binary, true, b"hello", key);
    bytes
}

/// The 101 to an opening handshake.
fn accept(head: &str) -> Vec<u8> {
    let (_, rest) = head.split_once("Sec-WebSocket-Key: ").unwrap();
    let (key, _) = rest.split_once("\r\n").unwrap();
    let mut answer = Vec::new();
    handshake::write_accept(&mut answer, key.as_bytes(), None, None);
    answer
}

/// Waits until the peer ends its stream or resets it.
fn wait_for_end(stream: &mut TcpStream) {
    while stream.read(&mut [0; 1024]).is_ok_and(|size| size > 0) {}
}

#[expect(clippy::disallowed_methods, reason = "a slow server is what is tested")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}
