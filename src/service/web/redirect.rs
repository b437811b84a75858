//! `service = "redirect"`: clients sent elsewhere.

use std::fmt::Write as _;

use http::header::{HeaderValue, LOCATION};
use http::{Response, StatusCode};

use super::body::{self, Content};
use crate::config::web::WebScheme;
use crate::config::{PathPattern, Redirect};
use crate::protocol::http::origin::OriginRef;
use crate::protocol::http::refusal::{BadRequest, Refusal};
use crate::protocol::http::request::RequestHead;

/// The answer to a request on a route of this path, which came to `here` as its client sees it.
///
/// # Errors
/// A 400 where nobody says which host.
pub fn answer(
    redirect: &Redirect,
    route_path: &PathPattern,
    head: &RequestHead<'_>,
    here: OriginRef<'_>,
) -> Result<Response<Content>, Refusal> {
    let Some(location) = location(redirect, route_path, here, head.path(), head.query()) else {
        return Err(BadRequest::HostMissing.into());
    };
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::from_u16(redirect.status).expect("the configuration holds statuses");
    let location = HeaderValue::from_str(&location).expect("what is no visible ASCII has been escaped");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// The URL that a client is sent to, always with its scheme and host: nothing of the path can pass for a host.
fn location(
    redirect: &Redirect,
    route_path: &PathPattern,
    here: OriginRef<'_>,
    path: &str,
    query: Option<&str>,
) -> Option<String> {
    let OriginRef::Tuple { scheme: own_scheme, host: own_host, port: own_port } = here else { return None };
    let own_scheme = if own_scheme == WebScheme::Https.label() { WebScheme::Https } else { WebScheme::Http };
    let scheme = redirect.scheme.unwrap_or(own_scheme);
    let host = redirect.host.as_deref().unwrap_or(own_host);
    if host.is_empty() {
        return None;
    }
    let own_port = own_port.filter(|_| scheme == own_scheme);
    let port = redirect.port.or(own_port).filter(|&port| port != scheme.default_port());
    let mut location = format!("{scheme}://");
    escape(host, &mut location);
    if let Some(port) = port {
        write!(location, ":{port}").expect("a string takes every write");
    }
    match &redirect.path {
        Some(to) => escape(&route_path.rewrite(path, to), &mut location),
        None => escape(path, &mut location),
    }
    if let Some(query) = query {
        location.push('?');
        escape(query, &mut location);
    }
    Some(location)
}

/// Appends what a client wrote, with all escaped that cannot stand in a URL (RFC 3986 appendix A). What is escaped
/// already stays.
pub(super) fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/?-._~!$&'()*+,;=:@%[]".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a string takes every write");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::protocol::http::request::Version;

    /// Where `redirect` on a route of this path sends a request for `path_and_query`, which came to `here`.
    fn sent(route: &str, redirect: &str, here: OriginRef<'_>, path_and_query: &str) -> Option<String> {
        let text = format!(
            "[[port]]\nnumber = 80\n[[route]]\npath = {route:?}\nservice = \"redirect\"\nredirect = {redirect}\n"
        );
        let (config, _) =
            Config::from_toml(&text, Path::new("")).unwrap_or_else(|faults| panic!("{faults:?}"));
        let route = &config.routes[0];
        let (path, query) = path_and_query
            .split_once('?')
            .map_or((path_and_query, None), |(path, query)| (path, Some(query)));
        location(route.redirect.as_ref().unwrap(), &route.path, here, path, query)
    }

    fn here<'a>(scheme: &'a str, host: &'a str, port: u16) -> OriginRef<'a> {
        OriginRef::Tuple { scheme, host, port: Some(port) }
    }

    #[test]
    fn what_is_not_given_is_as_in_the_request() {
        let (plain, odd) = (here("http", "a.example", 80), here("http", "a.example", 8080));
        let cases = [
            ("/*", "{ scheme = \"https\" }", plain, "/x?y=z", "https://a.example/x?y=z"),
            ("/*", "{ scheme = \"https\" }", odd, "/x", "https://a.example/x"),
            ("/*", "{ scheme = \"https\", port = 443 }", odd, "/", "https://a.example/"),
            ("/*", "{ scheme = \"https\", port = 8443 }", odd, "/?", "https://a.example:8443/?"),
            ("/*", "{ scheme = \"https\", port = 80 }", odd, "/", "https://a.example:80/"),
            ("/*", "{ scheme = \"http\" }", here("https", "a", 443), "/", "http://a/"),
            ("/*", "{ scheme = \"http\" }", odd, "/", "http://a.example:8080/"),
            ("/*", "{ host = \"www.Example.com\" }", plain, "/x", "http://www.example.com/x"),
            ("/*", "{ host = \"b\" }", odd, "/x", "http://b:8080/x"),
            ("/*", "{ host = \"2001:db8::1\" }", plain, "/", "http://[2001:db8::1]/"),
            ("/*", "{ port = 8080 }", here("https", "[::1]", 443), "/", "https://[::1]:8080/"),
            ("/*", "{ port = 80 }", odd, "/", "http://a.example/"),
            ("/old/*", "{ path = \"/new/*\" }", plain, "/old/%7Ex/?y", "http://a.example/new/%7Ex/?y"),
            ("/old/*", "{ path = \"/new/*\" }", plain, "/old", "http://a.example/new"),
            ("/old/*", "{ path = \"/*\" }", plain, "/old", "http://a.example/"),
            ("/old/*", "{ path = \"/new\" }", plain, "/old/x?y", "http://a.example/new?y"),
            ("/old", "{ path = \"/a%20b\" }", plain, "/old", "http://a.example/a%20b"),
        ];
        for (route, redirect, here, path, expected) in cases {
            let sent = sent(route, redirect, here, path);
            assert_eq!(sent.as_deref(), Some(expected), "{route} {redirect} {here:?} {path}");
        }
    }

    #[test]
    fn nothing_of_a_request_leaves_the_host_or_splits_a_field() {
        let here = here("http", "a", 80);
        for (path, expected) in [
            ("//evil.example/x", "http://a//evil.example/x"),
            ("/\\evil.example", "http://a/%5Cevil.example"),
            ("/@evil.example", "http://a/@evil.example"),
            ("/x\r\nSet-Cookie: a=b", "http://a/x%0D%0ASet-Cookie:%20a=b"),
            ("/x?\0\x7f\t", "http://a/x?%00%7F%09"),
            ("/é?é", "http://a/%C3%A9?%C3%A9"),
            ("/x?\"<>`{}|^\\#", "http://a/x?%22%3C%3E%60%7B%7D%7C%5E%5C%23"),
            ("/%0d%0a?%0d%0a", "http://a/%0d%0a?%0d%0a"),
        ] {
            assert_eq!(sent("/*", "{ port = 80 }", here, path).as_deref(), Some(expected), "{path:?}");
        }
    }

    #[test]
    fn a_request_without_a_host_is_sent_nowhere_unless_the_redirect_names_one() {
        let nowhere = here("http", "", 80);
        assert_eq!(sent("/*", "{ scheme = \"https\" }", nowhere, "/"), None);
        assert_eq!(sent("/*", "{ host = \"b\" }", nowhere, "/").as_deref(), Some("http://b/"));
    }

    #[test]
    fn the_answer_has_the_status_and_no_content() {
        let redirect =
            Redirect { scheme: Some(WebScheme::Https), host: None, port: None, path: None, status: 301 };
        let head = RequestHead::new("GET", "/x", Version::Http10, &[]).unwrap();
        let route = PathPattern::parse("/*").unwrap();
        let response = answer(&redirect, &route, &head, here("http", "a", 80)).unwrap();
        assert_eq!(response.status(), 301);
        assert_eq!(response.headers()[LOCATION], "https://a/x");
        assert!(http_body::Body::is_end_stream(response.body()));
        let refusal = answer(&redirect, &route, &head, here("http", "", 80)).err();
        assert_eq!(refusal, Some(Refusal::BadRequest(BadRequest::HostMissing)));
    }
}
