//! Every mistake that a configuration can hold, and what is said of it.

mod origins;
mod relays;
mod tls;
mod web;

use std::path::Path;

use super::check;
use crate::config::PortSet;

const PORT: &str = "[[port]]\nnumber = 80\n";
const ROUTE: &str = "[[route]]\npath = \"/\"\nservice = \"echo\"\n";

/// What is wrong with `text`: for each fault its place, key, sentence and help in one line.
fn faults(text: &str) -> Vec<String> {
    let Err(faults) = check(text, Path::new("")) else {
        return Vec::new();
    };
    faults.iter().map(|fault| format!("{fault}. {}", fault.problem.help())).collect()
}

/// Each file begins with the lines given; a port and a route that are good follow where it has none of its own.
const CASES: &[(&str, &str)] = &[
    (
        "a = 1\n",
        r#"1:1: a: the file has no key "a". The keys of the file are gateway, admin, limits, port, route."#,
    ),
    ("ports = []\n", r#"1:1: ports: the file has no key "ports". Did you mean "port"?"#),
    ("shards = 2\n", r#"1:1: shards: the file has no key "shards". It belongs in [gateway]."#),
    ("gateway = 1\n", "1:11: gateway: this is an integer, and has to be a table. Write a table."),
    (
        "[gateway]\nshards = 0\n",
        "2:10: gateway.shards: 0 is out of range. Write 1 to 1024. Without the key there is one for each available core.",
    ),
    (
        "[gateway]\nshards = 1025\n",
        "2:10: gateway.shards: 1025 is out of range. Write 1 to 1024. Without the key there is one for each available core.",
    ),
    (
        "[gateway]\nshards = 1.5\n",
        "2:10: gateway.shards: this is a number with a fraction, and has to be an integer. Write an integer.",
    ),
    (
        "[gateway]\nio_driver = \"uring\"\n",
        r#"2:13: gateway.io_driver: there is no "uring" here. Write one of "auto", "io_uring" and "epoll"."#,
    ),
    (
        "[gateway]\nio_driver = \"epol\"\n",
        r#"2:13: gateway.io_driver: there is no "epol" here. Did you mean "epoll"?"#,
    ),
    (
        "[gateway]\ncontrol_socket = \"/run/r.sock\"\n",
        "2:1: gateway.control_socket: this version has no such key yet. Remove it: it would have no effect.",
    ),
    (
        "[admin]\nlisten = \"localhost:9180\"\n",
        r#"2:10: admin.listen: "localhost:9180" is not an IP address with a port. Write, for example, "127.0.0.1:9180" or "[::1]:9180", or "off" for no admin endpoints."#,
    ),
    (
        "[admin]\nlisten = \"[::]:9180\"\n",
        r#"2:10: admin.listen: [::]:9180 can be reached from other machines, and no token is set. Write token = "file:PATH" or "env:NAME", or listen on 127.0.0.1 or [::1]."#,
    ),
    (
        "[admin]\ntoken = \"0123456789abcdef\"\n",
        r#"2:9: admin.token: a secret is never written plainly. Write "file:PATH" or "env:NAME", where the secret is kept."#,
    ),
    (
        "[admin]\ntoken = \"file:/dev/null\"\n",
        "2:9: admin.token: what file:/dev/null holds is not of 16 to 4096 bytes. A good one is made by: head -c 32 /dev/urandom | base64.",
    ),
    (
        "[admin]\ntoken = true\n",
        "2:9: admin.token: this is true or false, and has to be a string. Write a string.",
    ),
    (
        "[limits]\nmessage_size_max = 124\n",
        r#"2:20: limits.message_size_max: 124 is out of range. Write "125B" to "1GiB". Even a control frame may carry 125 bytes, and a message has to fit in memory."#,
    ),
    (
        "[limits]\nmessage_size_max = \"2GiB\"\n",
        r#"2:20: limits.message_size_max: "2GiB" is out of range. Write "125B" to "1GiB". Even a control frame may carry 125 bytes, and a message has to fit in memory."#,
    ),
    (
        "[limits]\nmessage_size_max = \"16 MiB\"\n",
        r#"2:20: limits.message_size_max: "16 MiB" is not a size. Write bytes, as in 65536, or a string such as "64KiB", "16MiB" or "1MB"."#,
    ),
    (
        "[limits]\nmessage_size_max = []\n",
        r#"2:20: limits.message_size_max: this is an array, and has to be an integer or a string such as "16MiB". Write an integer or a string such as "16MiB"."#,
    ),
    (
        "[limits]\nidle_timeout_ms = -1\n",
        "2:19: limits.idle_timeout_ms: -1 is out of range. Write 1 to 86400000, or 0 for off. It is given in milliseconds, and one day is the longest.",
    ),
    (
        "[limits]\npong_timeout_ms = 0\n",
        "2:19: limits.pong_timeout_ms: 0 is out of range. Write 1 to 86400000. It is given in milliseconds, and one day is the longest.",
    ),
    (
        "[limits]\npong_timeout_ms = \"10s\"\n",
        "2:19: limits.pong_timeout_ms: this is a string, and has to be an integer. Write an integer.",
    ),
    (
        "[limits]\nipv6_prefix = 129\n",
        "2:15: limits.ipv6_prefix: 129 is out of range. Write 16 to 128. It counts the leading bits of an address that stand for one client; providers hand out 64 or fewer.",
    ),
    (
        "[gateway]\nmemory_max = \"1MiB\"\n",
        "2:14: gateway.memory_max: \"1MiB\" is out of range. Write \"16MiB\" to \"1048576GiB\", or 0 for none. Below 16MiB there is hardly room for anybody.",
    ),
    ("port = []\n", "1:8: port: it is missing. Write, for example, [[port]] and in it number = 80."),
    ("port = [1]\n", "1:9: port[0]: this is an integer, and has to be a table. Write a table."),
    (
        "[port]\nnumber = 80\n",
        "1:1: port: this is a table, and has to be an array of tables. Write an array of tables.",
    ),
    ("[[port]]\n", "1:1: port[0].number: it is missing. Write, for example, number = 443."),
    (
        "[[port]]\nnumber = 65536\n",
        "2:10: port[0].number: 65536 is out of range. Write 1 to 65535, or 0 for one that the kernel chooses. A port is a number of 16 bits.",
    ),
    (
        "[[port]]\nnumber = 0\n",
        r#"2:10: port[0].number: a port that the kernel chooses needs a name. Write, for example, name = "public": it is the label in metrics."#,
    ),
    (
        "[[port]]\nnumber = 80\naddress = \"eth0\"\n",
        r#"3:11: port[0].address: "eth0" is not an IP address. Write, for example, "::", "0.0.0.0" or "192.0.2.1"."#,
    ),
    (
        "[[port]]\nnumber = 80\nname = \"80\"\n",
        r#"3:8: port[0].name: "80" is not a name. Write at most 64 letters, digits, dots, dashes and underscores, a letter among them."#,
    ),
    (
        "[[port]]\nnumber = 80\nname = \"a b\"\n",
        r#"3:8: port[0].name: "a b" is not a name. Write at most 64 letters, digits, dots, dashes and underscores, a letter among them."#,
    ),
    (
        "[[port]]\nnumber = 80\npublic_scheme = \"https\"\n",
        r#"3:17: port[0].public_scheme: there is no "https" here. Write one of "ws" and "wss"."#,
    ),
    (
        "[[port]]\nnumber = 80\npublic_host = \"*.example.com\"\n",
        r#"3:15: port[0].public_host: "*.example.com" is not a host: a * stands only for the whole first label of a route's host. Write, for example, "ws.example.com"; its port belongs in `public_port`."#,
    ),
    (
        "[[port]]\nnumber = 80\npublic_port = 0\n",
        "3:15: port[0].public_port: 0 is out of range. Write 1 to 65535. A port is a number of 16 bits.",
    ),
    (
        "[[port]]\nnumber = 443\ntls = {}\n",
        r#"3:7: port[0].tls.certificates: it is missing. Write, for example, certificates = [{ certificate = "fullchain.pem", key = "privkey.pem" }]."#,
    ),
    (
        "[[port]]\nnumber = 443\ntls = { certificates = [] }\n",
        r#"3:24: port[0].tls.certificates: it is missing. Write, for example, certificates = [{ certificate = "fullchain.pem", key = "privkey.pem" }]."#,
    ),
    (
        "[[port]]\nnumber = 443\nlimits = { proxy = 1 }\n",
        "3:12: port[0].limits.proxy: [port.limits] has no key \"proxy\". The keys of [port.limits] are handshake_timeout_ms, request_head_size_max, request_head_count_max, connections_max, connections_per_address_max, handshakes_per_address_per_s, ipv6_prefix, message_size_max, frame_size_max, messages_per_s, bytes_per_s, ping_interval_ms, pong_timeout_ms, idle_timeout_ms, write_timeout_ms, close_timeout_ms, request_body_size_max, body_timeout_ms, keep_alive_timeout_ms, send_queue_size_max.",
    ),
    (
        "[[port]]\nnumber = 80\nname = \"a\"\n[[port]]\nnumber = 81\nname = \"a\"\n",
        r#"6:8: port[1].name: the name "a" is taken in line 1. Write name = with another one: it is a label in metrics."#,
    ),
    (
        "[[port]]\nnumber = 80\nname = \"a\"\n[[port]]\nnumber = 80\nname = \"b\"\naddress = \"127.0.0.1\"\n",
        r#"5:10: port[1].number: port 80 at this address is taken in line 1. Remove one, or write another number or address; "::" covers every address."#,
    ),
    (
        "[[port]]\nnumber = 80\naddress = \"127.0.0.1\"\n[[port]]\nnumber = 80\nname = \"b\"\naddress = \"::1\"\n",
        r#"2:10: port[0].number: port 80 stands twice, and needs a name. Write, for example, name = "public": it is the label in metrics."#,
    ),
    (
        "[[route]]\nservice = \"echo\"\n",
        r#"1:1: route[0].path: it is missing. Write, for example, path = "/chat/*"."#,
    ),
    (
        "[[route]]\npath = \"/\"\n",
        r#"1:1: route[0].service: it is missing. Write, for example, service = "echo"."#,
    ),
    (
        "[[route]]\npath = \"/a/../b\"\nservice = \"echo\"\n",
        r#"2:8: route[0].path: no request has the path "/a/../b": it has a segment of dots. Write, for example, "/chat" for one path, or "/chat/*" for all below it."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"topics\"\n",
        r#"3:11: route[0].service: this version has no service "topics" yet. The services of this version are "echo", "page", "websocket", "tcp", "http", "redirect" and "files"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"files\"\nfolder = \"/dev/null\"\n",
        r#"4:10: route[0].folder: "/dev/null" cannot be served from: it is no folder. Write the path of a folder that is there; it begins at the directory of this file."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"files\"\nfolder = \".\"\nindex = \"../x\"\n",
        r#"5:9: route[0].index: "../x" is not the name of a file in the folder. Write, for example, index = "index.html" or fallback = "/index.html"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"files\"\nfolder = \".\"\nfallback = \"x\"\n",
        r#"5:12: route[0].fallback: "x" is not the name of a file in the folder. Write, for example, index = "index.html" or fallback = "/index.html"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"files\"\nfolder = \".\"\nprecompressed = [\"deflate\"]\n",
        r#"5:18: route[0].precompressed[0]: there is no "deflate" here. Write one of "br", "zstd" and "gzip"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nfolder = \".\"\n",
        r#"4:10: route[0].folder: the service "echo" has no use for it. Remove it."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"http\"\norigins = \"any\"\nupstreams = [\"http://a\"]\n",
        r"4:11: route[0].origins: it is about opening handshakes, and the route takes none. Add websocket = true, or remove it.",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"http\"\nupstreams = [\"ws://a\"]\n",
        r#"4:14: route[0].upstreams[0]: "ws://a" is not an upstream of "http": it does not begin with a scheme of its service. Write, for example, "http://127.0.0.1:3000" or "http+unix:///run/app.sock"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nwebsocket = false\n",
        r#"4:13: route[0].websocket: the service "echo" answers opening handshakes alone. Remove it."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"page\"\nwebsocket = true\n",
        r#"4:13: route[0].websocket: the service "page" has no use for it. Remove it."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"Echo\"\n",
        r#"3:11: route[0].service: there is no "Echo" here. Did you mean "echo"?"#,
    ),
    (
        "[gateway]\ncontrol_socket = \"/run/x\"\n[[route]]\npath = \"/\"\nservice = \"echo\"\n",
        "2:1: gateway.control_socket: this version has no such key yet. Remove it: it would have no effect.",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = {}\n",
        "4:8: route[0].auth: exactly one of jwt and forward has to stand here. Write one of them.",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = { jwt = { from = [\"header\"] } }\n",
        "4:16: route[0].auth.jwt: exactly one of key and jwks has to stand here. Write one of them.",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = { jwt = { key = \"env:NOWHERE_TO_BE_FOUND\", algorithm = \"HS256\" } }\n",
        r#"4:24: route[0].auth.jwt.key: env:NOWHERE_TO_BE_FOUND is not set. Write "file:PATH" or "env:NAME", where the secret is kept."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = { jwt = { jwks = \"ftp://a/b\" } }\n",
        r#"4:25: route[0].auth.jwt.jwks: "ftp://a/b" is not a URL of http or https. Write, for example, "https://login.example.com/.well-known/jwks.json"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = { jwt = { jwks = \"https://a/b\" } }\n",
        r#"4:16: route[0].auth.jwt.jwks_ca: it is missing. Write, for example, jwks_ca = "ca.pem"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = { jwt = { jwks = \"file:x\", from = [\"body\"] } }\n",
        r#"4:43: route[0].auth.jwt.from[0]: "body" is not a place where a token may stand. Write "header", "cookie:NAME", "query:NAME" or "subprotocol:PREFIX"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = { jwt = { jwks = \"file:x\", expiry_close_code = 1011 } }\n",
        "4:55: route[0].auth.jwt.expiry_close_code: 1011 is out of range. Write 1008 to 4999. Of these it is 1008, or one of 3000 to 4999, which applications may use (RFC 6455 section 7.4.2).",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nauth = { forward = { url = \"http://a\", headers = [\"Upgrade\"] } }\n",
        r#"4:51: route[0].auth.forward.headers[0]: "Upgrade" cannot be edited: it concerns one connection alone, and does not pass. Remove it."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"page\"\ndeflate = true\n",
        r#"4:11: route[0].deflate: the service "page" has no use for it. Remove it."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"http\"\nupstreams = [\"http://a\"]\ndeflate = true\n",
        r"5:11: route[0].deflate: it is about opening handshakes, and the route takes none. Add websocket = true, or remove it.",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\ndeflate = \"shared\"\n",
        r#"4:11: route[0].deflate: this is a string, and has to be true, false, or a table such as { mode = "shared" }. Write true, false, or a table such as { mode = "shared" }."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\ndeflate = { mode = \"on\" }\n",
        r#"4:20: route[0].deflate.mode: there is no "on" here. Write one of "off", "shared" and "dedicated"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\ndeflate = { mode = \"dedicated\", window_bits = 8 }\n",
        "4:47: route[0].deflate.window_bits: 8 is out of range. Write 9 to 15. A window has 512 bytes to 32 KiB (RFC 7692 section 7.1.2; zlib has none of 8 bits).",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nname = \"\"\n",
        r#"4:8: route[0].name: "" is not a name. Write at most 64 letters, digits, dots, dashes and underscores, a letter among them."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nhost = \"a:80\"\n",
        r#"4:8: route[0].host: "a:80" is not a host: there is more than a host in it. Write, for example, "chat.example.com" or "*.example.com"; ports belong in `ports`."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nports = []\n",
        "4:9: route[0].ports: an empty list lets nothing through. Remove the key for its default, or put in what is allowed.",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nports = 80\n",
        "4:9: route[0].ports: this is an integer, and has to be a list of ports, such as [80, 443]. Write a list of ports, such as [80, 443].",
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nports = [81]\n",
        r#"4:10: route[0].ports[0]: there is no [[port]] with the number or name "81". Write the number or, in quotes, the name of a port that has a [[port]]."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nports = [80, 80]\n",
        r#"4:14: route[0].ports[1]: "80" stands in the list twice. Remove one of them."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nports = [\"pubic\"]\n[[port]]\nnumber = 80\nname = \"public\"\n",
        r#"4:10: route[0].ports[0]: there is no [[port]] with the number or name "pubic". Did you mean "public"?"#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\norigins = \"all\"\n",
        r#"4:11: route[0].origins: there is no "all" here. Write one of "any", "same" and "upstream"."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\norigins = \"https://a\"\n",
        r#"4:11: route[0].origins: this is a string, and has to be "any", "same", "upstream", or a list of exact Origins. Write "any", "same", "upstream", or a list of exact Origins."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\norigins = [\"any\"]\n",
        r#"4:12: route[0].origins[0]: "any" stands for itself, not in a list. Write origins = "any", or a list of exact Origins alone."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\norigins = [\"http://a\", \"http://A:80\"]\n",
        r#"4:24: route[0].origins[1]: "http://A:80" stands in the list twice. Remove one of them."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nsubprotocols = [\"a b\"]\n",
        r#"4:17: route[0].subprotocols[0]: "a b" is not a subprotocol. Write letters, digits and . - _ + alone, as in "chat.v1": it is a token of HTTP."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nsubprotocols = [\"a\", \"a\"]\n",
        r#"4:22: route[0].subprotocols[1]: "a" stands in the list twice. Remove one of them."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"page\"\norigins = \"any\"\n",
        r#"4:11: route[0].origins: the service "page" has no use for it. Remove it."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\n[[route]]\npath = \"/\"\nservice = \"page\"\nports = [80]\n",
        r#"5:8: route[1].path: host "*" and path "/" are taken in line 1, on the same port. Their order decides nothing: change host, path or ports of one."#,
    ),
    (
        "[[route]]\npath = \"/%61\"\nservice = \"echo\"\n[[route]]\npath = \"/a\"\nservice = \"page\"\n",
        r#"5:8: route[1].path: host "*" and path "/a" are taken in line 1, on the same port. Their order decides nothing: change host, path or ports of one."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nports = [80]\n[[route]]\npath = \"/\"\nservice = \"page\"\nports = [81]\n[[port]]\nnumber = 80\n[[port]]\nnumber = 81\n",
        r#"6:8: route[1].path: the name "/" is taken in line 1. Write name = with another one: it is a label in metrics."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nname = \"a\"\n[[route]]\npath = \"/b\"\nservice = \"page\"\nname = \"a\"\n",
        r#"8:8: route[1].name: the name "a" is taken in line 1. Write name = with another one: it is a label in metrics."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\nname = \"none\"\n",
        r#"4:8: route[0].name: the name "none" is that of requests which no route took. Write name = with another one: it is a label in metrics."#,
    ),
    (
        "[[route]]\npath = \"/\"\nservice = \"echo\"\n[route.limits]\nconnections_max = 1\n",
        r#"5:1: route[0].limits.connections_max: [route.limits] has no key "connections_max". It belongs in [limits] or [port.limits] or [route.upstream_limits]."#,
    ),
    (
        "[gateway]\nshards = 1\nshards = 2\n",
        r#"3:1: this is not TOML: duplicate key. Strings stand in quotes, and each key in a line of its own: key = "value"."#,
    ),
    (
        "[gateway]\nio_driver = auto\n",
        r#"2:13: this is not TOML: string values must be quoted, expected literal string. Strings stand in quotes, and each key in a line of its own: key = "value"."#,
    ),
];

#[test]
fn each_mistake_is_told_with_its_place_and_what_to_write_instead() {
    for (lines, expected) in CASES {
        let mut text = (*lines).to_owned();
        for (key, tables) in [("port", PORT), ("route", ROUTE)] {
            if !lines.contains(&format!("[{key}]")) && !lines.starts_with(&format!("{key} =")) {
                text += tables;
            }
        }
        assert_eq!(faults(&text), [*expected], "in\n{text}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text = CASES
        .iter()
        .map(|(lines, _)| *lines)
        .filter(|lines| {
            lines.starts_with("[[") && !lines.contains("taken") && lines.matches("[[").count() == 1
        })
        .collect::<String>();
    let faults = check(&text, Path::new("")).unwrap_err();
    let lines: Vec<usize> = faults.iter().map(|fault| fault.place.line).collect();
    assert!(lines.is_sorted());
    // One for each file at least; that they are together adds ports and routes that are in each other's way.
    assert!(faults.len() >= text.matches("[[").count(), "{faults:?}");
}

#[test]
fn a_file_without_anything_in_it_says_what_is_missing() {
    assert_eq!(
        faults("# nothing\n"),
        [
            "1:1: port: it is missing. Write, for example, [[port]] and in it number = 80.",
            r#"1:1: route: it is missing. Write, for example, [[route]] and in it path = "/echo" and service = "echo"."#,
        ]
    );
}

#[test]
fn too_many_ports_and_routes_are_refused() {
    use std::fmt::Write as _;

    let mut text = String::new();
    for number in 1..=257 {
        writeln!(text, "[[port]]\nnumber = {number}").unwrap();
    }
    for number in 1..=1025 {
        writeln!(text, "[[route]]\npath = \"/{number}\"\nservice = \"echo\"").unwrap();
    }
    assert_eq!(
        faults(&text),
        [
            "1:1: port: there are 257, and at most 256 are allowed. \
             Each port is a listener on each shard and a series in each metric.",
            "515:1: route: there are 1025, and at most 1024 are allowed. Each route is a series in metrics.",
        ]
    );
}

#[test]
fn a_fault_of_a_port_is_not_told_again_by_the_routes_that_name_it() {
    for port in ["number = \"80\"", "number = 80\nname = \"!\""] {
        let text = format!("[[port]]\n{port}\n{ROUTE}ports = [80, \"public\"]\n");
        let faults = faults(&text);
        assert!(faults.len() == 1 && faults[0].contains("port[0]"), "{faults:?}");
    }
}

#[test]
fn ports_that_browsers_refuse_are_warned_of_as_clients_see_them() {
    let warnings = |port: &str| {
        let (_, warnings) = check(&format!("[[port]]\n{port}\n{ROUTE}"), Path::new("")).unwrap();
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(warnings("number = 6000"), ["2:10: port[0].number: browsers refuse to connect to port 6000"]);
    assert_eq!(
        warnings("number = 80\npublic_port = 25"),
        ["3:15: port[0].public_port: browsers refuse to connect to port 25"]
    );
    assert!(warnings("number = 6000\npublic_port = 443").is_empty());
    assert!(warnings("number = 0\nname = \"any\"").is_empty());
    assert!(warnings("number = 8080").is_empty());
}

#[test]
fn admin_is_on_loopback_unless_it_is_told_otherwise() {
    let listen = |lines: &str| {
        let (config, _) = check(&format!("{lines}{PORT}{ROUTE}"), Path::new("")).unwrap();
        config.admin.map(|admin| admin.listen.to_string())
    };
    assert_eq!(listen("").as_deref(), Some("127.0.0.1:9180"));
    assert_eq!(listen("[admin]\n").as_deref(), Some("127.0.0.1:9180"));
    assert_eq!(listen("[admin]\nlisten = \"[::1]:0\"\n").as_deref(), Some("[::1]:0"));
    assert_eq!(listen("[admin]\nlisten = \"off\"\n"), None);
}

#[test]
fn names_are_derived_from_host_and_path() {
    let routes = "[[route]]\npath = \"/a/*\"\nservice = \"echo\"\n\
                  [[route]]\nhost = \"*.Example.com\"\npath = \"/a/*\"\nservice = \"echo\"\n\
                  [[route]]\nname = \"third\"\npath = \"/b\"\nservice = \"echo\"\n";
    let (config, _) = check(&format!("{PORT}{routes}"), Path::new("")).unwrap();
    let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["/a/*", "*.example.com/a/*", "third"]);
    assert_eq!(config.ports[0].label, "80");
}

#[test]
fn a_number_that_stands_twice_is_told_apart_by_name() {
    let text = "[[port]]\nnumber = 80\nname = \"v4\"\naddress = \"127.0.0.1\"\n\
                [[port]]\nnumber = 80\nname = \"v6\"\naddress = \"::1\"\n\
                [[port]]\nnumber = 0\nname = \"some\"\n[[port]]\nnumber = 0\nname = \"other\"\n\
                [[route]]\npath = \"/a\"\nservice = \"echo\"\nports = [80]\n\
                [[route]]\npath = \"/b\"\nservice = \"echo\"\nports = [\"some\", \"v6\"]\n";
    let (config, _) = check(text, Path::new("")).unwrap();
    let labels: Vec<&str> = config.ports.iter().map(|port| port.label.as_str()).collect();
    assert_eq!(labels, ["v4", "v6", "some", "other"]);
    assert_eq!(config.routes[0].ports, PortSet::Only(vec![0, 1]));
    assert_eq!(config.routes[1].ports, PortSet::Only(vec![1, 2]));
}
