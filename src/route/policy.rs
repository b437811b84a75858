//! Whether a route lets a client in: the Origin of the page it runs in, the network it comes from.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Origins, Port, Scheme};
use crate::protocol::http::origin::OriginRef;

/// Whether a page of `origin` may open a WebSocket on a route with these `origins`.
///
/// `origin` is the value of the `Origin` field as it came, `same` the Origin that the port has for its clients
/// ([`public_origin`]). Without the field the answer is yes: every browser sends it with an opening handshake (RFC 6455
/// section 4.1), and who is no browser could send any. Scheme, host and port are compared, each exactly; a value that is
/// no Origin is none of those allowed.
pub fn allows_origin(origins: &Origins, origin: Option<&[u8]>, same: OriginRef<'_>) -> bool {
    let Some(origin) = origin else { return true };
    let is_one_of = |matches: &dyn Fn(OriginRef<'_>) -> bool| OriginRef::parse(origin).is_ok_and(matches);
    match origins {
        Origins::Any => true,
        Origins::Same => is_one_of(&|origin| origin == same),
        Origins::Exact(allowed) => {
            is_one_of(&|origin| allowed.iter().any(|allowed| allowed.view() == origin))
        }
    }
}

/// Whether an address is in one of the networks. `::ffff:` addresses count as the IPv4 addresses that they are.
pub fn is_within(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// The Origin of a page that came from `port`, as its client sees it.
///
/// `host` and `host_port` are what the request's authority says: the client wrote it, so it tells what the client sees
/// even behind NAT. What the configuration says of the port stands above it.
pub fn public_origin<'a>(port: &'a Port, host: &'a str, host_port: Option<u16>) -> OriginRef<'a> {
    let (scheme, default_port) = match port.public_scheme.unwrap_or(Scheme::Ws) {
        Scheme::Ws => ("http", 80),
        Scheme::Wss => ("https", 443),
    };
    OriginRef::Tuple {
        scheme,
        host: port.public_host.as_deref().unwrap_or(host),
        port: Some(port.public_port.or(host_port).unwrap_or(default_port)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn port(keys: &str) -> Port {
        let text = format!("[[port]]\nnumber = 8080\n{keys}\n[[route]]\npath = \"/\"\nservice = \"page\"\n");
        let (config, _) = Config::from_toml(&text, Path::new("")).unwrap();
        config.ports.into_iter().next().unwrap()
    }

    fn origins(value: &str) -> Origins {
        let text = format!(
            "[[port]]\nnumber = 80\n[[route]]\npath = \"/\"\nservice = \"echo\"\norigins = {value}\n"
        );
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
}
