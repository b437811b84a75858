//! Policies that give visitors' cookies away or cannot be meant, and what is said of each.

use std::path::Path;

use super::super::super::certificate::fixture::Authority;
use super::{ROUTE, check, faults};
use crate::config::{Config, Origins};

const WEBSOCKET: &str =
    "[[route]]\npath = \"/a/*\"\nservice = \"websocket\"\nupstreams = [\"ws://127.0.0.1:9001\"]\n";
const HTTP: &str =
    "[[route]]\npath = \"/a/*\"\nservice = \"http\"\nupstreams = [\"http://127.0.0.1:9001\"]\n";
const TCP: &str = "[[route]]\npath = \"/a\"\nservice = \"tcp\"\nupstreams = [\"tcp://127.0.0.1:9001\"]\n";
const PORT: &str = "[[port]]\nnumber = 80\n";
const PAGE: &str = "[[route]]\npath = \"/\"\nservice = \"page\"\n";

/// What is warned of in `text`, which has no fault: place, key, sentence and help in one line.
fn warnings(text: &str) -> Vec<String> {
    let (_, warnings) = check(text, Path::new("")).unwrap_or_else(|faults| panic!("{faults:?} in\n{text}"));
    warnings.iter().map(|warning| format!("{warning}. {}", warning.caution.help())).collect()
}

#[test]
fn cookies_do_not_pass_to_an_upstream_from_any_page() {
    let fault = "cookies of visitors pass to the upstream, whatever page sends them there. \
                 Write \"same\" or a list of your pages' Origins; or request_headers = { remove = [\"Cookie\"] } \
                 beside it; or \"upstream\", where the upstream judges the Origin itself.";
    let any = "origins = \"any\"\n";
    let opening = "websocket = true\n";
    for (route, keys, is_fault) in [
        (WEBSOCKET, "", true),
        (WEBSOCKET, "websocket = true\n", true),
        (WEBSOCKET, "request_headers = { remove = [\"Cookie2\", \"Set-Cookie\"] }\n", true),
        (WEBSOCKET, "request_headers = { set = { X-Cookie = \"a\" } }\n", true),
        (WEBSOCKET, "request_headers = { remove = [\"Origin\"] }\n", true),
        (WEBSOCKET, "response_headers = { remove = [\"Cookie\"] }\n", true),
        // Which upstream is taken by a cookie says nothing of where cookies go.
        (WEBSOCKET, "balance = \"cookie:session\"\n", true),
        // Who is trusted to say who a client is says nothing of the page that it runs.
        (WEBSOCKET, "trusted = [\"10.0.0.0/8\"]\nhost = \"ws.example.com\"\n", true),
        (WEBSOCKET, "request_headers = { remove = [\"Cookie\"] }\n", false),
        (WEBSOCKET, "request_headers = { remove = [\"X-A\", \"cOOkie\"] }\n", false),
        (WEBSOCKET, "request_headers = { set = { COOKIE = \"nobody=1\" } }\n", false),
        (WEBSOCKET, "request_headers = { remove = [\"Cookie\"], set = { Cookie = \"\" } }\n", false),
        (HTTP, opening, true),
        (HTTP, "websocket = true\nrequest_headers = { remove = [\"cookie\"] }\n", false),
        // Neither hands a head on.
        (TCP, "", false),
        (ROUTE, "", false),
    ] {
        let text = format!("{route}{any}{keys}{PORT}");
        let line = route.lines().count() + 1;
        let expected = is_fault.then(|| format!("{line}:11: route[0].origins: {fault}"));
        assert_eq!(faults(&text), Vec::from_iter(expected), "in\n{text}");
    }
    for policy in
        ["", "origins = \"same\"\n", "origins = \"upstream\"\n", "origins = [\"https://a.example\"]\n"]
    {
        for route in [WEBSOCKET.to_owned(), format!("{HTTP}{opening}")] {
            let text = format!("{route}{policy}{PORT}public_scheme = \"wss\"\n");
            assert_eq!(faults(&text), [""; 0], "in\n{text}");
            assert_eq!(warnings(&text), [""; 0], "in\n{text}");
        }
    }
}

#[test]
fn an_upstream_judges_origins_that_it_is_told() {
    let upstream = "origins = \"upstream\"\n";
    let edited = "the upstream is to judge Origins, and request_headers keeps them from it. \
                  Leave Origin as it came, or write \"same\" or a list of your pages' Origins.";
    let nobody = |service: &str| {
        format!(
            "the service \"{service}\" tells no upstream of Origins. \
             Write \"same\", a list of exact Origins, or \"any\" where every page may."
        )
    };
    for (route, keys, expected) in [
        (WEBSOCKET, "request_headers = { remove = [\"Cookie\"] }\n", None),
        (WEBSOCKET, "request_headers = { remove = [\"origin\"] }\n", Some(edited.to_owned())),
        (
            WEBSOCKET,
            "request_headers = { set = { ORIGIN = \"https://a.example\" } }\n",
            Some(edited.to_owned()),
        ),
        (TCP, "", Some(nobody("tcp"))),
        (ROUTE, "", Some(nobody("echo"))),
    ] {
        let text = format!("{route}{upstream}{keys}{PORT}");
        let line = route.lines().count() + 1;
        let expected = expected.map(|fault| format!("{line}:11: route[0].origins: {fault}"));
        assert_eq!(faults(&text), Vec::from_iter(expected), "in\n{text}");
    }
    let text = format!("{HTTP}{upstream}{PORT}");
    assert_eq!(
        faults(&text),
        ["5:11: route[0].origins: it is about opening handshakes, and the route takes none. \
          Add websocket = true, or remove it."]
    );
    let text = format!("{WEBSOCKET}origins = [\"upstream\"]\n{PORT}");
    assert_eq!(
        faults(&text),
        [
            r#"5:12: route[0].origins[0]: "upstream" stands for itself, not in a list. Write origins = "upstream", or a list of exact Origins alone."#
        ]
    );
}

#[test]
fn an_origin_that_no_page_has_is_a_fault() {
    for (origin, is_fault) in [
        ("http://127.0.0.1", false),
        ("http://127.0.0.1:8080", false),
        ("http://127.1", true),
        ("http://0x7f.1", true),
        ("http://0177.0.0.1", true),
        ("https://2130706433", true),
        ("https://.a.example", true),
        ("https://a..example", true),
        ("https://a.example:0", true),
        ("https://a.example.", false),
        ("https://a_b.example", false),
        ("https://[2001:DB8::0:A]:8443", false),
        // Whoever has a scheme of his own has hosts as he likes.
        ("app://127.1", false),
        ("capacitor://localhost", false),
    ] {
        let text = format!("{ROUTE}origins = [\"{origin}\"]\n{PORT}public_scheme = \"wss\"\n");
        let expected = is_fault.then(|| {
            format!(
                "4:12: route[0].origins[0]: \"{origin}\" is not an Origin: its host or port is not valid. \
                 Write, for example, [\"https://example.com\"], or \"same\"."
            )
        });
        assert_eq!(faults(&text), Vec::from_iter(expected));
    }
}

#[test]
fn who_leaves_origins_out_lets_in_pages_of_the_same_origin_alone() {
    for route in [ROUTE, WEBSOCKET, TCP, HTTP] {
        let (config, _): (Config, _) = check(&format!("{route}{PORT}"), Path::new("")).unwrap();
        assert_eq!(config.routes[0].origins, Origins::Same);
    }
}

#[test]
fn every_page_can_have_the_origin_null() {
    let list = "origins = [\"https://a.example\", \"null\"]\n";
    let port = "[[port]]\nnumber = 443\npublic_scheme = \"wss\"\n";
    assert_eq!(
        warnings(&format!("{WEBSOCKET}{list}{port}")),
        [
            "5:33: route[0].origins[1]: any page can have this Origin, in a sandboxed frame, and cookies pass to the \
          upstream. Remove it, or write request_headers = { remove = [\"Cookie\"] }."
        ]
    );
    let removed = "request_headers = { remove = [\"Cookie\"] }\n";
    for text in [format!("{WEBSOCKET}{list}{removed}{port}"), format!("{ROUTE}{list}{port}")] {
        assert_eq!(warnings(&text), [""; 0], "in\n{text}");
    }
}

#[test]
fn pages_of_https_are_not_sent_to_a_port_without_tls() {
    let pages = |port: &str| {
        format!(
            "only pages of https are let in, and clients speak no TLS to port {port}: browsers let no such page open \
             ws://. Write `tls` for the port, or public_scheme = \"wss\" where TLS ends before it, or `ports` without it."
        )
    };
    let secure = "origins = [\"https://a.example\", \"https://b.example:8443\"]\n";
    let mixed = "origins = [\"https://a.example\", \"http://a.example\"]\n";
    for (policy, port, expected) in [
        (secure, "number = 80\n", Some("80")),
        (secure, "number = 80\nname = \"public\"\n", Some("public")),
        (secure, "number = 80\npublic_scheme = \"ws\"\n", Some("80")),
        (secure, "number = 80\naddress = \"192.0.2.1\"\n", Some("80")),
        // Something passes it on to the world.
        (secure, "number = 80\naddress = \"127.0.0.1\"\npublic_host = \"ws.example.com\"\n", Some("80")),
        (secure, "number = 80\npublic_scheme = \"wss\"\n", None),
        (mixed, "number = 80\n", None),
        // Pages of https may open ws:// to their own machine.
        (secure, "number = 80\naddress = \"127.0.0.1\"\n", None),
        (secure, "number = 80\naddress = \"::1\"\n", None),
        (secure, "number = 80\npublic_host = \"localhost\"\n", None),
        (secure, "number = 80\npublic_host = \"app.localhost\"\n", None),
        (secure, "number = 80\npublic_host = \"[::1]\"\n", None),
    ] {
        let text = format!("{ROUTE}{policy}[[port]]\n{port}");
        let expected = expected.map(|port| format!("4:11: route[0].origins: {}", pages(port)));
        assert_eq!(warnings(&text), Vec::from_iter(expected), "in\n{text}");
    }
    // Of several ports the first is told, and a route that keeps off it is not.
    let ports =
        "[[port]]\nnumber = 443\npublic_scheme = \"wss\"\n[[port]]\nnumber = 80\n[[port]]\nnumber = 81\n";
    assert_eq!(
        warnings(&format!("{ROUTE}{secure}{ports}")),
        [format!("4:11: route[0].origins: {}", pages("80"))]
    );
    assert_eq!(warnings(&format!("{ROUTE}{secure}ports = [443]\n{ports}")), [""; 0]);
}

#[test]
fn a_port_of_tls_is_one_that_pages_of_https_may_open() {
    let authority = Authority::new("check-origins");
    authority.good("edge", &["a.example"]);
    let tls = "tls = { certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }] }\n";
    let text = format!("{ROUTE}origins = [\"https://a.example\"]\n[[port]]\nnumber = 443\n{tls}");
    let (_, warnings) = check(&text, &authority.directory).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_host_of_https_is_not_served_without_tls() {
    // The host is known by the list of another route, in line 5.
    let known = |list: &str, at: &str, host: &str, port: &str| {
        format!(
            "[[route]]\npath = \"/known\"\nservice = \"echo\"\nports = [443]\norigins = {list}\n\
             [[route]]\n{host}path = \"{at}\"\nservice = \"echo\"\nports = [80]\n\
             [[port]]\nnumber = 443\npublic_scheme = \"wss\"\n[[port]]\nnumber = 80\n{port}"
        )
    };
    let secure = "[\"https://A.example:8443\"]";
    let host = |pattern: &str| format!("host = \"{pattern}\"\n");
    let sentence = "https://a.example:8443 in line 5 is of this host, and clients speak no TLS to port 80: with HSTS \
                    browsers make wss:// of ws:// for every port of a host. Write `tls` for the port, or \
                    public_scheme = \"wss\" where TLS ends before it, or `ports` without it.";
    for pattern in ["a.example", "A.Example", "*.example"] {
        assert_eq!(
            warnings(&known(secure, "/b", &host(pattern), "")),
            [format!("7:8: route[1].host: {sentence}")]
        );
    }
    assert_eq!(
        warnings(&known(secure, "/b", "", "public_host = \"a.example\"\n")),
        [format!("7:8: route[1].path: {sentence}")]
    );
    let both = "[\"https://a.example\", \"http://a.example\"]";
    for (list, pattern, port) in [
        // Who has pages of http has told browsers nothing of HSTS.
        (both, "a.example", ""),
        (secure, "b.example", ""),
        (secure, "*.a.example", ""),
        // Addresses have no HSTS.
        ("[\"https://192.0.2.1\"]", "192.0.2.1", ""),
        ("[\"https://[2001:db8::1]\"]", "2001:DB8::1", ""),
        ("[\"https://[2001:db8::1]\"]", "b.example", "public_host = \"[2001:db8::1]\"\n"),
        (secure, "*", ""),
        (secure, "a.example", "public_scheme = \"wss\"\n"),
        (secure, "a.example", "public_host = \"b.example\"\n"),
        (secure, "a.example", "address = \"127.0.0.1\"\n"),
    ] {
        let text = known(list, "/b", &host(pattern), port);
        assert_eq!(warnings(&text), [""; 0], "in\n{text}");
    }
}

#[test]
fn a_page_of_the_gateway_is_not_forgotten_on_one_of_its_ports() {
    let forgotten = |port: &str, origin: &str| {
        format!(
            "the page on port {port} is of {origin}, which the list leaves out beside another of its host: cookies \
             ignore ports, Origins do not. Add \"{origin}\", or keep the page or this route off the port with `ports`."
        )
    };
    let route = |keys: &str| format!("[[route]]\nservice = \"echo\"\n{keys}");
    let page = |keys: &str| format!("{PAGE}{keys}");
    let ports = "[[port]]\nnumber = 80\n[[port]]\nnumber = 8080\n";
    let (host, echo) = ("host = \"a.example\"\n", "path = \"/echo\"\n");
    let list = "origins = [\"http://a.example\"]\n";
    for (routes, ports, expected) in [
        (route(&format!("{list}{echo}{host}")) + &page(""), ports, Some(("8080", "http://a.example:8080"))),
        (route(&format!("{list}{echo}")) + &page(host), ports, Some(("8080", "http://a.example:8080"))),
        (
            route(&format!("{list}path = \"/*\"\n{host}")) + &page(""),
            ports,
            Some(("8080", "http://a.example:8080")),
        ),
        (
            route(&format!("origins = [\"http://[::1]:8080\"]\n{echo}host = \"[0::1]\"\n")) + &page(""),
            ports,
            Some(("80", "http://[::1]")),
        ),
        (
            route(&format!("{list}{echo}")) + &page(""),
            "[[port]]\nnumber = 80\npublic_host = \"a.example\"\npublic_port = 8081\nname = \"nat\"\n",
            Some(("nat", "http://a.example:8081")),
        ),
        (
            route(&format!("{list}{echo}")) + &page(""),
            "[[port]]\nnumber = 443\npublic_host = \"a.example\"\npublic_scheme = \"wss\"\n",
            Some(("443", "https://a.example")),
        ),
        // All are listed.
        (
            route(&format!("origins = [\"http://a.example\", \"http://a.example:8080\"]\n{echo}{host}"))
                + &page(""),
            ports,
            None,
        ),
        // The page, or the route, is not there.
        (route(&format!("{list}{echo}{host}ports = [80]\n")) + &page(""), ports, None),
        (route(&format!("{list}{echo}{host}")) + &page("ports = [80]\n"), ports, None),
        (route(&format!("{list}{echo}{host}")), ports, None),
        // The page opens something else.
        (route(&format!("{list}path = \"/chat\"\n{host}")) + &page(""), ports, None),
        (
            route(&format!("{list}path = \"/*\"\n{host}")) + &route(echo) + &page(host),
            ports,
            Some(("8080", "http://a.example:8080")),
        ),
        (route(&format!("{list}path = \"/*\"\n")) + &route(echo) + &page(host), ports, None),
        (route(&format!("{list}{echo}")) + &route(&format!("{echo}{host}")) + &page(host), ports, None),
        // Pages of another host are meant, or of one that nobody has written down.
        (route(&format!("{list}{echo}host = \"b.example\"\n")) + &page(""), ports, None),
        (route(&format!("{list}{echo}")) + &page(""), ports, None),
        (route(&format!("{list}{echo}{host}")) + &page("host = \"b.example\"\n"), ports, None),
        // Nobody knows the number before the start.
        (route(&format!("{list}{echo}{host}")) + &page(""), "[[port]]\nnumber = 0\nname = \"some\"\n", None),
    ] {
        let text = format!("{routes}{ports}");
        let expected =
            expected.map(|(port, origin)| format!("3:11: route[0].origins: {}", forgotten(port, origin)));
        assert_eq!(warnings(&text), Vec::from_iter(expected), "in\n{text}");
    }
}

#[test]
fn pages_of_a_server_and_of_a_folder_are_not_forgotten_where_the_list_has_them_on_another_port() {
    let authority = Authority::new("check-origins-pages");
    let forgotten = |at: &str, origin: &str| {
        format!(
            "{at}: the page on port 8443 is of {origin}, which the list leaves out beside another of its host: cookies \
             ignore ports, Origins do not. Add \"{origin}\", or keep the page or this route off the port with `ports`."
        )
    };
    let app = |keys: &str| {
        format!(
            "[[route]]\npath = \"/*\"\nservice = \"http\"\nupstreams = [\"http://127.0.0.1:3000\"]\n{keys}"
        )
    };
    let folder =
        |keys: &str| format!("[[route]]\npath = \"/*\"\nservice = \"files\"\nfolder = \".\"\n{keys}");
    let chat = |keys: &str| format!("[[route]]\npath = \"/chat\"\nservice = \"echo\"\n{keys}");
    let (host, list) = ("host = \"a.example\"\n", "origins = [\"https://a.example\"]\n");
    let ports =
        "[[port]]\nnumber = 443\npublic_scheme = \"wss\"\n[[port]]\nnumber = 8443\npublic_scheme = \"wss\"\n";
    let own = "https://a.example:8443";
    for (routes, ports, expected) in [
        (
            app(&format!("websocket = true\n{list}{host}")),
            ports.to_owned(),
            Some(forgotten("6:11: route[0].origins", own)),
        ),
        (
            chat(&format!("{list}{host}")) + &app(""),
            ports.to_owned(),
            Some(forgotten("4:11: route[0].origins", own)),
        ),
        (chat(list) + &folder(host), ports.to_owned(), Some(forgotten("4:11: route[0].origins", own))),
        // The pages are there where the route is not on the port that is listed.
        (
            chat(&format!("{list}ports = [8443]\n")) + &folder(host),
            ports.to_owned(),
            Some(forgotten("4:11: route[0].origins", own)),
        ),
        // A port that others see as one of another host has other pages.
        (
            chat(list) + &folder(host),
            ports.replacen("public_scheme", "public_host = \"b.example\"\npublic_scheme", 1),
            None,
        ),
        // Both are listed.
        (
            chat(&format!("origins = [\"https://a.example\", \"{own}\"]\n{host}")) + &app(""),
            ports.to_owned(),
            None,
        ),
        // The pages come from one port alone, or from none that is listed: they may open nothing here.
        (chat(&format!("{list}{host}")) + &app("ports = [8443]\n"), ports.to_owned(), None),
        (chat(&format!("{list}{host}")) + &app("ports = [443]\n"), ports.to_owned(), None),
        (chat(&format!("origins = [\"https://a.example:9443\"]\n{host}")) + &app(""), ports.to_owned(), None),
        // They are of another host, or of one that nobody has written down.
        (chat(&format!("{list}{host}")) + &app("host = \"b.example\"\n"), ports.to_owned(), None),
        (chat(&format!("{list}host = \"b.example\"\n")) + &app(host), ports.to_owned(), None),
        (chat(&format!("{list}host = \"*.b.example\"\n")) + &app(host), ports.to_owned(), None),
        (chat(list) + &app(""), ports.to_owned(), None),
    ] {
        let text = format!("{routes}{ports}");
        let (_, warnings) =
            check(&text, &authority.directory).unwrap_or_else(|faults| panic!("{faults:?} in\n{text}"));
        let told: Vec<String> =
            warnings.iter().map(|warning| format!("{warning}. {}", warning.caution.help())).collect();
        assert_eq!(told, Vec::from_iter(expected), "in\n{text}");
    }
}
