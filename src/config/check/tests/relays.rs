//! Every mistake in what a route says of its upstreams, and in whom a port or a route trusts.

use std::path::Path;

use super::{PORT, ROUTE, check, faults};
use crate::config::upstream::{Balance, Health, HealthKind, UpstreamLimits};
use crate::config::{Config, Route, Service};

/// A route that relays frames; lines of its own may follow.
const WEBSOCKET: &str =
    "[[route]]\npath = \"/a/*\"\nservice = \"websocket\"\nupstreams = [\"ws://127.0.0.1:9001\"]\n";
/// A route that relays bytes; lines of its own may follow.
const TCP: &str = "[[route]]\npath = \"/a\"\nservice = \"tcp\"\nupstreams = [\"tcp://127.0.0.1:9001\"]\n";
/// The beginning of a route, the fourth line of which is to come.
const UPSTREAMS: &str = "[[route]]\npath = \"/a/*\"\nservice = \"websocket\"\nupstreams = ";
const TCP_UPSTREAMS: &str = "[[route]]\npath = \"/a/*\"\nservice = \"tcp\"\nupstreams = ";

/// Each file begins with these two, and a good port follows.
const CASES: &[(&str, &str, &str)] = &[
    (
        "[[route]]\npath = \"/\"\nservice = \"websocket\"\n",
        "",
        r#"1:1: route[0].upstreams: it is missing. Write, for example, upstreams = ["ws://127.0.0.1:9001"]."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"tcp\"\n",
        "",
        r#"1:1: route[0].upstreams: it is missing. Write, for example, upstreams = ["tcp://127.0.0.1:6379"]."#,
    ),
    (
        UPSTREAMS,
        "\"ws://app\"\n",
        r#"4:13: route[0].upstreams: this is a string, and has to be a list of upstreams, such as ["ws://127.0.0.1:9001"]. Write a list of upstreams, such as ["ws://127.0.0.1:9001"]."#,
    ),
    (
        UPSTREAMS,
        "[]\n",
        "4:13: route[0].upstreams: an empty list lets nothing through. Remove the key for its default, or put in what is allowed.",
    ),
    (
        UPSTREAMS,
        "[\"127.0.0.1:9001\"]\n",
        r#"4:14: route[0].upstreams[0]: "127.0.0.1:9001" is not an upstream of "websocket": it does not begin with a scheme of its service. Write, for example, "ws://127.0.0.1:9001" or "ws+unix:///run/app.sock"."#,
    ),
    (
        UPSTREAMS,
        "[\"wss://app\"]\n",
        r#"1:1: route[0].upstream_tls: it is missing. Write, for example, upstream_tls = { ca = "ca.pem" }."#,
    ),
    (
        UPSTREAMS,
        "[\"ws://app/v2\"]\n",
        r#"4:14: route[0].upstreams[0]: "ws://app/v2" is not an upstream of "websocket": there is more than an address in it. Write scheme, host and port alone: a path belongs in `upstream_path`, credentials in `request_headers`."#,
    ),
    (
        UPSTREAMS,
        "[\"ws://app:0\"]\n",
        r#"4:14: route[0].upstreams[0]: "ws://app:0" is not an upstream of "websocket": its port is not of 1 to 65535. Write, for example, "ws://127.0.0.1:9001" or "ws+unix:///run/app.sock"."#,
    ),
    (
        UPSTREAMS,
        "[\"ws://a b\"]\n",
        r#"4:14: route[0].upstreams[0]: "ws://a b" is not an upstream of "websocket": of its host, it has a label that is empty, too long, or not of letters, digits, - and _. Write, for example, "ws://127.0.0.1:9001" or "ws+unix:///run/app.sock"."#,
    ),
    (
        UPSTREAMS,
        "[\"ws+unix://run\"]\n",
        r#"4:14: route[0].upstreams[0]: "ws+unix://run" is not an upstream of "websocket": a Unix socket has an absolute path, without control characters, of at most 107 bytes. Write, for example, "ws+unix:///run/app.sock"."#,
    ),
    (
        UPSTREAMS,
        "[\"ws://app\", \"ws://APP:80\"]\n",
        r#"4:26: route[0].upstreams[1]: "ws://APP:80" stands in the list twice. Remove one of them."#,
    ),
    (
        TCP_UPSTREAMS,
        "[\"tcp://app\"]\n",
        r#"4:14: route[0].upstreams[0]: "tcp://app" is not an upstream of "tcp": it has no port. Write, for example, "tcp://127.0.0.1:6379" or "unix:///run/app.sock"."#,
    ),
    (
        TCP_UPSTREAMS,
        "[\"tcp://app:1/x\"]\n",
        r#"4:14: route[0].upstreams[0]: "tcp://app:1/x" is not an upstream of "tcp": there is more than an address in it. Write scheme, host and port alone."#,
    ),
    (
        TCP_UPSTREAMS,
        "[\"unix:///\"]\n",
        r#"4:14: route[0].upstreams[0]: "unix:///" is not an upstream of "tcp": a Unix socket has an absolute path, without control characters, of at most 107 bytes. Write, for example, "unix:///run/app.sock"."#,
    ),
    (
        WEBSOCKET,
        "upstream_path = \"/v2\"\n",
        r#"5:17: route[0].upstream_path: the route's path is a prefix, and this is one path. Write "/v2/*" to put that in place of the route's prefix, or "/*" to take it off."#,
    ),
    (
        WEBSOCKET,
        "upstream_path = \"v2/*\"\n",
        r#"5:17: route[0].upstream_path: no request has the path "v2/*": it does not begin with a slash. Write, for example, "/chat" for one path, or "/chat/*" for all below it."#,
    ),
    (
        "[[route]]\npath = \"/a\"\nservice = \"websocket\"\nupstreams = [\"ws://app\"]\n",
        "upstream_path = \"/v2/*\"\n",
        r#"5:17: route[0].upstream_path: the route's path is one path, and this is a prefix. Write the one path that upstreams see, such as "/v2/chat"."#,
    ),
    (
        WEBSOCKET,
        "balance = \"cookie:\"\n",
        r#"5:11: route[0].balance: there is no "cookie:" here. Write "round_robin", "least_connections", "address", "cookie:NAME" or "header:NAME"."#,
    ),
    (
        WEBSOCKET,
        "health = \"tcp\"\n",
        "5:10: route[0].health: this is a string, and has to be a table. Write a table.",
    ),
    (
        WEBSOCKET,
        "health = {}\n",
        r#"5:10: route[0].health.kind: it is missing. Write, for example, kind = "tcp"."#,
    ),
    (
        WEBSOCKET,
        "health = { kind = \"https\" }\n",
        r#"5:19: route[0].health.kind: there is no "https" here. Did you mean "http"?"#,
    ),
    (
        WEBSOCKET,
        "health = { kind = \"tcp\", path = \"/\" }\n",
        r#"5:33: route[0].health.path: a check of kind "tcp" asks for no path. Remove it, or write kind = "http" or "websocket"."#,
    ),
    (
        WEBSOCKET,
        "health = { kind = \"http\", path = \"up\" }\n",
        r#"5:34: route[0].health.path: no request asks for "up". Write, for example, "/health" or "/health?from=ringway"."#,
    ),
    (
        WEBSOCKET,
        "health = { kind = \"tcp\", interval_ms = 99 }\n",
        "5:40: route[0].health.interval_ms: 99 is out of range. Write 100 to 86400000. It is given in milliseconds; more than ten checks a second would be load, and one day is the longest.",
    ),
    (
        WEBSOCKET,
        "health = { kind = \"tcp\", timeout_ms = 5001 }\n",
        "5:39: route[0].health.timeout_ms: a check could outlast its interval of 5000 ms. Write at most 5000, or a longer interval_ms.",
    ),
    (
        WEBSOCKET,
        "health = { kind = \"tcp\", healthy_after = 0 }\n",
        "5:42: route[0].health.healthy_after: 0 is out of range. Write 1 to 100. It counts checks in a row.",
    ),
    (
        TCP,
        "health = { kind = \"http\" }\n",
        r#"5:19: route[0].health.kind: the service "tcp" has no use for it. Remove it."#,
    ),
    (
        WEBSOCKET,
        "[route.upstream_limits]\nconnections = 1\n",
        "6:1: route[0].upstream_limits.connections: [route.upstream_limits] has no key \"connections\". Did you mean \"connections_max\"?",
    ),
    (
        WEBSOCKET,
        "[route.upstream_limits]\nconnect_timeout_ms = 0\n",
        "6:22: route[0].upstream_limits.connect_timeout_ms: 0 is out of range. Write 1 to 86400000. It is given in milliseconds, and one day is the longest.",
    ),
    (
        WEBSOCKET,
        "[route.upstream_limits]\neject_after = 1001\n",
        "6:15: route[0].upstream_limits.eject_after: 1001 is out of range. Write 1 to 1000, or 0 for off. An upstream that failed a thousand times in a row should have been passed over before.",
    ),
    (
        TCP,
        "[route.upstream_limits]\nhandshake_timeout_ms = 1\n",
        r#"6:24: route[0].upstream_limits.handshake_timeout_ms: the service "tcp" has no use for it. Remove it."#,
    ),
    (
        WEBSOCKET,
        "source_addresses = [\"eth0\"]\n",
        r#"5:21: route[0].source_addresses[0]: "eth0" is not an IP address. Write, for example, "::", "0.0.0.0" or "192.0.2.1"."#,
    ),
    (
        WEBSOCKET,
        "source_addresses = [\"0.0.0.0\"]\n",
        r#"5:21: route[0].source_addresses[0]: no connection comes from 0.0.0.0. Write addresses of this machine, such as "192.0.2.1"."#,
    ),
    (
        WEBSOCKET,
        "source_addresses = [\"192.0.2.1\", \"::ffff:192.0.2.1\"]\n",
        r#"5:34: route[0].source_addresses[1]: "::ffff:192.0.2.1" stands in the list twice. Remove one of them."#,
    ),
    (
        WEBSOCKET,
        "request_headers = { remove = [\"Host\"] }\n",
        r#"5:31: route[0].request_headers.remove[0]: "Host" cannot be edited: every request has one. Set it, or leave it as it came."#,
    ),
    (
        WEBSOCKET,
        "request_headers = { remove = [\"Cookie\", \"cookie\"] }\n",
        r#"5:41: route[0].request_headers.remove[1]: "cookie" stands in the list twice. Remove one of them."#,
    ),
    (
        WEBSOCKET,
        "request_headers = { set = { Upgrade = \"h2c\" } }\n",
        r#"5:39: route[0].request_headers.set.Upgrade: "Upgrade" cannot be edited: it concerns one connection alone, and does not pass. Remove it."#,
    ),
    (
        WEBSOCKET,
        "request_headers = { set = { X-Forwarded-For = \"a\" } }\n",
        r#"5:47: route[0].request_headers.set.X-Forwarded-For: "X-Forwarded-For" cannot be edited: it says who the client is, which Ringway tells itself. Remove it, and write in `trusted` whose forwarding fields are believed."#,
    ),
    (
        WEBSOCKET,
        "response_headers = { remove = [\"Sec-WebSocket-Accept\"] }\n",
        r#"5:32: route[0].response_headers.remove[0]: "Sec-WebSocket-Accept" cannot be edited: the opening handshake rests on it. Remove it."#,
    ),
    (
        WEBSOCKET,
        "response_headers = { set = { \"X Env\" = \"a\" } }\n",
        r#"5:40: route[0].response_headers.set.X Env: "X Env" cannot be edited: no field has such a name. Write letters, digits and - alone, as in "X-Env": it is a token of HTTP."#,
    ),
    (
        WEBSOCKET,
        "response_headers = { set = { a = \"1\", A = \"2\" } }\n",
        r#"5:34: route[0].response_headers.set.a: "a" stands in the list twice. Remove one of them."#,
    ),
    (
        WEBSOCKET,
        "request_headers = { set = { a = \"secret\\r\\nX: y\" } }\n",
        "5:33: route[0].request_headers.set.a: this is not the value of a field. Write visible ASCII characters, with spaces only between them.",
    ),
    (
        WEBSOCKET,
        "request_headers = { set = { HOST = \"inner host/x\" } }\n",
        r#"5:36: route[0].request_headers.set.HOST: no request names "inner host/x" as its host. Write a host, with its port or without, such as "app.internal" or "app.internal:8080"."#,
    ),
    (
        WEBSOCKET,
        "request_headers = { set = { Host = \"\" } }\n",
        r#"5:36: route[0].request_headers.set.Host: no request names "" as its host. Write a host, with its port or without, such as "app.internal" or "app.internal:8080"."#,
    ),
    (
        WEBSOCKET,
        "request_headers = { set = [\"a: b\"] }\n",
        "5:27: route[0].request_headers.set: this is an array, and has to be a table. Write a table.",
    ),
    (
        WEBSOCKET,
        "trusted = [\"10.1.0.0/8\"]\n",
        r#"5:12: route[0].trusted[0]: "10.1.0.0/8" has bits set behind its prefix. Write "10.0.0.0/8", or the address alone."#,
    ),
    (
        WEBSOCKET,
        "trusted = [\"::ffff:10.0.0.0/104\"]\n",
        r#"5:12: route[0].trusted[0]: "::ffff:10.0.0.0/104" is a network of IPv4, and compared as one. Write "10.0.0.0/8"."#,
    ),
    (
        WEBSOCKET,
        "trusted = [\"private\"]\n",
        r#"5:12: route[0].trusted[0]: "private" is not a network. Write, for example, "10.0.0.0/8", "2001:db8::/32" or one address."#,
    ),
    (
        WEBSOCKET,
        "trusted = [\"192.0.2.1\", \"192.0.2.1/32\"]\n",
        r#"5:25: route[0].trusted[1]: "192.0.2.1/32" stands in the list twice. Remove one of them."#,
    ),
    (
        WEBSOCKET,
        "subprotocols = [\"a\"]\n",
        r#"5:16: route[0].subprotocols: the service "websocket" has no use for it. Remove it."#,
    ),
    (
        TCP,
        "upstream_path = \"/v2\"\n",
        r#"5:17: route[0].upstream_path: the service "tcp" has no use for it. Remove it."#,
    ),
    (
        TCP,
        "request_headers = { remove = [\"Cookie\"] }\n",
        r#"5:19: route[0].request_headers: the service "tcp" has no use for it. Remove it."#,
    ),
    (
        ROUTE,
        "upstreams = [\"ws://app\"]\n",
        r#"4:13: route[0].upstreams: the service "echo" has no use for it. Remove it."#,
    ),
    (
        "[[port]]\nnumber = 80\nproxy_protocol = true\n",
        ROUTE,
        "3:18: port[0].proxy_protocol: this is true or false, and has to be a table. Write a table.",
    ),
    (
        "[[port]]\nnumber = 80\nproxy_protocol = {}\n",
        ROUTE,
        r#"3:18: port[0].proxy_protocol.trusted: it is missing. Write, for example, trusted = ["10.0.0.0/8"]."#,
    ),
    (
        "[gateway]\nresolve_interval_ms = 999\n",
        ROUTE,
        "2:23: gateway.resolve_interval_ms: 999 is out of range. Write 1000 to 86400000. It is given in milliseconds; a resolver is not asked more than once a second, and one day is the longest.",
    ),
    (
        "[[route]]\npath = \"/.well-known/ringway/*\"\nservice = \"echo\"\n",
        "",
        r#"2:8: route[0].path: "/.well-known/ringway/*" is in the tree that Ringway keeps for itself. Choose a path outside of /.well-known/ringway/."#,
    ),
    (
        "[[route]]\npath = \"/.well-known/%72ingway\"\nservice = \"page\"\n",
        "",
        r#"2:8: route[0].path: "/.well-known/ringway" is in the tree that Ringway keeps for itself. Choose a path outside of /.well-known/ringway/."#,
    ),
];

#[test]
fn each_mistake_in_a_relay_is_told_with_its_place_and_what_to_write_instead() {
    for (begin, end, expected) in CASES {
        let port = if begin.contains("[[port]]") { "" } else { PORT };
        let text = format!("{begin}{end}{port}");
        assert_eq!(faults(&text), [*expected], "in\n{text}");
    }
}

#[test]
fn a_route_edits_a_bounded_number_of_fields() {
    let edits = |count: usize| {
        let names: Vec<String> = (0..count).map(|index| format!("\"X-{index}\"")).collect();
        let set: Vec<String> = names.iter().map(|name| format!("{name} = \"a\"")).collect();
        let text = format!(
            "{PORT}{WEBSOCKET}request_headers.remove = [{}]\nresponse_headers.set = {{ {} }}\n",
            names.join(", "),
            set.join(", ")
        );
        faults(&text)
    };
    assert_eq!(edits(64), [""; 0]);
    let sentence = "there are 65, and at most 64 are allowed. Each is compared with each field of a head.";
    assert_eq!(
        edits(65),
        [
            format!("7:26: route[0].request_headers.remove: {sentence}"),
            format!("8:24: route[0].response_headers.set: {sentence}")
        ]
    );
}

#[test]
fn a_host_that_is_set_is_one_that_a_request_can_name() {
    for host in ["app", "app.internal:8080", "192.0.2.1", "[2001:db8::1]:80"] {
        let text = format!("{PORT}{WEBSOCKET}request_headers = {{ set = {{ Host = \"{host}\" }} }}\n");
        assert_eq!(faults(&text), [""; 0]);
    }
}

#[test]
fn all_mistakes_of_a_route_are_told_at_once() {
    let text = format!(
        "{PORT}[[route]]\npath = \"/a/*\"\nservice = \"websocket\"\nupstreams = [\"app\", \"wss://app\"]\n\
         balance = \"none\"\nhealth = {{ kind = \"\", interval_ms = 1 }}\ntrusted = [\"x\"]\nsource_addresses = []\n\
         upstream_path = \"/\"\nsubprotocols = [\"a\"]\nrequest_headers = {{ remove = [\"Host\"] }}\n"
    );
    assert_eq!(faults(&text).len(), 10, "{:#?}", faults(&text));
}

#[test]
fn a_path_that_no_head_has_room_for_is_a_fault() {
    let faults = |limit: &str, size: usize, service: &str| {
        let path = "a".repeat(size);
        faults(&format!(
            "[[port]]\nnumber = 80\n{limit}[[port]]\nnumber = 81\n\
             [[route]]\npath = \"/{path}\"\nports = [80]\nservice = \"{service}\"\n"
        ))
    };
    let limit = "limits = { request_head_size_max = 256 }\n";
    assert_eq!(faults(limit, 122, "echo"), [""; 0]);
    assert_eq!(
        faults(limit, 123, "echo"),
        ["7:8: route[0].path: a request for it has a head of 257 bytes at least, and 256 are allowed. \
          Shorten it, or raise request_head_size_max of its ports."]
    );
    assert_eq!(faults(limit, 238, "page"), [""; 0]);
    assert_eq!(faults(limit, 239, "page").len(), 1);
    assert_eq!(faults("", 239, "echo"), [""; 0]);
}

#[test]
fn who_trusts_everybody_is_warned() {
    let trusting = |network: &str| {
        let text = format!("{PORT}{WEBSOCKET}trusted = [\"{network}\"]\n");
        let (_, warnings) = check(&text, Path::new("")).unwrap();
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for network in ["0.0.0.0/0", "::/0"] {
        assert_eq!(
            trusting(network),
            ["7:12: route[0].trusted[0]: all addresses are trusted, whoever has them"],
            "{network}"
        );
    }
    assert_eq!(trusting("0.0.0.0/1"), [""; 0]);
}

#[test]
fn a_relay_that_says_nothing_more_has_the_defaults() {
    let (config, _) = check(&format!("{PORT}{WEBSOCKET}{}", TCP.replace("/a", "/b")), Path::new("")).unwrap();
    let [websocket, tcp] = config.routes.as_slice() else { panic!("two routes") };
    assert_eq!((websocket.service, tcp.service), (Service::WebSocket, Service::Tcp));
    assert_eq!(websocket.subprotocols, [""; 0]);
    assert_eq!(tcp.subprotocols, ["binary"]);
    for route in &config.routes {
        let relay = route.relay.as_ref().unwrap();
        assert_eq!(relay.balance, Balance::RoundRobin);
        assert_eq!(relay.limits, UpstreamLimits::DEFAULT);
        assert_eq!((&relay.health, &relay.upstream_path), (&None, &None));
        assert!(relay.sources.is_empty() && route.trusted.is_empty());
    }
    assert_eq!(config.gateway.resolve_interval.as_secs(), 30);
}

#[test]
fn a_check_lasts_no_longer_than_its_interval_by_default() {
    let health = |keys: &str| {
        let text = format!("{PORT}{WEBSOCKET}health = {{ {keys} }}\n");
        let (config, _): (Config, _) = check(&text, Path::new("")).unwrap();
        let [Route { relay, .. }] = config.routes.as_slice() else { panic!("one route") };
        relay.clone().unwrap().health.unwrap()
    };
    let Health { kind, interval, timeout, healthy_after, unhealthy_after } = health("kind = \"http\"");
    assert_eq!(kind, HealthKind::Http { path: "/".to_owned() });
    assert_eq!((interval.as_millis(), timeout.as_millis()), (5000, 2000));
    assert_eq!((healthy_after.get(), unhealthy_after.get()), (2, 2));
    assert_eq!(health("kind = \"tcp\", interval_ms = 1000").timeout.as_millis(), 1000);
}
