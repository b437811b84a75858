//! Which Origins a route lets in, trick by trick.

use std::path::Path;

use super::*;
use crate::config::Config;

fn port(keys: &str) -> Port {
    let text = format!("[[port]]\nnumber = 8080\n{keys}\n[[route]]\npath = \"/\"\nservice = \"page\"\n");
    let (config, _) = Config::from_toml(&text, Path::new("")).unwrap();
    config.ports.into_iter().next().unwrap()
}

fn origins(value: &str) -> Origins {
    let text =
        format!("[[port]]\nnumber = 80\n[[route]]\npath = \"/\"\nservice = \"echo\"\norigins = {value}\n");
    let (config, _) = Config::from_toml(&text, Path::new("")).unwrap();
    config.routes.into_iter().next().unwrap().origins
}

#[test]
fn same_is_the_origin_that_the_client_sees() {
    let cases = [
        ("", "example.com", Some(8080), "http://example.com:8080", true),
        ("", "EXAMPLE.com", Some(8080), "http://example.COM:8080", true),
        ("", "example.com", None, "http://example.com", true),
        ("", "example.com", None, "http://example.com:80", true),
        ("", "[::1]", Some(8080), "http://[::1]:8080", true),
        ("", "example.com", Some(8080), "http://example.com", false),
        ("", "example.com", Some(8080), "https://example.com:8080", false),
        ("", "example.com", Some(8080), "http://evil.net:8080", false),
        ("", "example.com", Some(8080), "http://a.example.com:8080", false),
        ("", "example.com", Some(8080), "null", false),
        ("", "example.com", Some(8080), "", false),
        ("public_scheme = \"wss\"", "example.com", None, "https://example.com", true),
        ("public_scheme = \"wss\"", "example.com", None, "http://example.com", false),
        ("public_port = 9000", "example.com", Some(8080), "http://example.com:9000", true),
        ("public_port = 9000", "example.com", Some(8080), "http://example.com:8080", false),
        ("public_host = \"ws.example.com\"", "10.0.0.1", None, "http://ws.example.com", true),
        ("public_host = \"ws.example.com\"", "10.0.0.1", None, "http://10.0.0.1", false),
    ];
    for (keys, host, host_port, origin, expected) in cases {
        let port = port(keys);
        let same = public_origin(&port, host, host_port);
        let allowed = allows_origin(&Origins::Same, Some(origin.as_bytes()), same);
        assert_eq!(allowed, expected, "{keys} {host} {host_port:?} {origin}");
    }
}

#[test]
fn exact_origins_are_compared_in_scheme_host_and_port() {
    let allowed = origins(r#"["https://example.com", "http://localhost:3000"]"#);
    let same = OriginRef::Null;
    for (origin, expected) in [
        ("https://example.com", true),
        ("https://example.com:443", true),
        ("http://localhost:3000", true),
        ("http://localhost", false),
        ("http://example.com", false),
        ("https://example.com.evil.net", false),
        ("https://evilexample.com", false),
        ("https://example.com@evil.net", false),
        ("https://example.com https://evil.net", false),
        ("null", false),
        ("", false),
        ("\u{ff}", false),
    ] {
        assert_eq!(allows_origin(&allowed, Some(origin.as_bytes()), same), expected, "{origin}");
    }
}

#[test]
fn null_is_allowed_where_it_is_listed() {
    let allowed = origins(r#"["null"]"#);
    assert!(allows_origin(&allowed, Some(b"null"), OriginRef::Null));
    assert!(!allows_origin(&allowed, Some(b"http://null"), OriginRef::Null));
}

#[test]
fn any_lets_everybody_in_and_who_sends_no_origin_is_no_foreign_page() {
    for value in ["https://evil.net", "null", "rubbish"] {
        assert!(allows_origin(&Origins::Any, Some(value.as_bytes()), OriginRef::Null));
    }
    for allowed in [Origins::Any, Origins::Same, origins(r#"["https://example.com"]"#)] {
        assert!(allows_origin(&allowed, None, OriginRef::Null));
    }
}
