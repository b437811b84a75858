//! Every mistake in what a route says that answers plain requests itself.

use super::{PORT, faults};

/// A route of one path that sends clients elsewhere, the fourth line of which is to come.
const REDIRECT: &str = "[[route]]\npath = \"/a\"\nservice = \"redirect\"\nredirect = ";

/// Each file begins with these two, and a good port follows.
const CASES: &[(&str, &str, &str)] = &[
    (
        "[[route]]\npath = \"/a\"\nservice = \"redirect\"\n",
        "",
        r#"1:1: route[0].redirect: it is missing. Write, for example, redirect = { scheme = "https" }."#,
    ),
    (
        REDIRECT,
        "\"https\"\n",
        "4:12: route[0].redirect: this is a string, and has to be a table. Write a table.",
    ),
    (
        REDIRECT,
        "{ status = 301 }\n",
        "4:12: route[0].redirect: it leads to where the request was. Write at least one of scheme, host, port and path.",
    ),
    (
        REDIRECT,
        "{ scheme = \"wss\" }\n",
        r#"4:23: route[0].redirect.scheme: there is no "wss" here. Write one of "http" and "https"."#,
    ),
    (
        REDIRECT,
        "{ host = \"*.example.com\" }\n",
        r#"4:21: route[0].redirect.host: "*.example.com" is not a host: a * stands only for the whole first label of a route's host. Write, for example, "www.example.com"; its port belongs in `port`."#,
    ),
    (
        REDIRECT,
        "{ host = \"example.com:8443\" }\n",
        r#"4:21: route[0].redirect.host: "example.com:8443" is not a host: there is more than a host in it. Write, for example, "www.example.com"; its port belongs in `port`."#,
    ),
    (
        REDIRECT,
        "{ port = 0 }\n",
        "4:21: route[0].redirect.port: 0 is out of range. Write 1 to 65535. A port is a number of 16 bits.",
    ),
    (
        REDIRECT,
        "{ path = \"/b/*\" }\n",
        r#"4:21: route[0].redirect.path: the route's path is one path, and this is a prefix. Write the one path that clients are sent to, such as "/new"."#,
    ),
    (
        REDIRECT,
        "{ path = \"b\" }\n",
        r#"4:21: route[0].redirect.path: no request has the path "b": it does not begin with a slash. Write, for example, "/chat" for one path, or "/chat/*" for all below it."#,
    ),
    (
        REDIRECT,
        "{ port = 443, status = 303 }\n",
        "4:35: route[0].redirect.status: no redirect has the status 303. Write 301, 302, 307 or 308.",
    ),
    (
        REDIRECT,
        "{ port = 443, status = 200 }\n",
        "4:35: route[0].redirect.status: 200 is out of range. Write 301 to 308. The statuses of a redirect are 301, 302, 307 and 308.",
    ),
    (
        REDIRECT,
        "{ port = 443, to = \"/\" }\n",
        r#"4:26: route[0].redirect.to: [route.redirect] has no key "to". The keys of [route.redirect] are scheme, host, port, path, status."#,
    ),
    (
        REDIRECT,
        "{ port = 443 }\norigins = \"any\"\n",
        r#"5:11: route[0].origins: the service "redirect" has no use for it. Remove it."#,
    ),
    (
        REDIRECT,
        "{ port = 443 }\nwebsocket = true\n",
        r#"5:13: route[0].websocket: the service "redirect" has no use for it. Remove it."#,
    ),
    (
        REDIRECT,
        "{ port = 443 }\nupstreams = [\"http://a\"]\n",
        r#"5:13: route[0].upstreams: the service "redirect" has no use for it. Remove it."#,
    ),
    (
        "[[route]]\npath = \"/a\"\nservice = \"echo\"\n",
        "redirect = { port = 443 }\n",
        r#"4:12: route[0].redirect: the service "echo" has no use for it. Remove it."#,
    ),
];

#[test]
fn every_mistake_of_a_route_that_answers_itself_is_told_with_its_place_and_what_to_write() {
    for (beginning, lines, expected) in CASES {
        assert_eq!(faults(&format!("{beginning}{lines}{PORT}")), [*expected], "{beginning}{lines}");
    }
}
