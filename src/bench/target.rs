//! Where load goes: a `ws://` or `wss://` URL, resolved.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use crate::net::tls::ServerName;

/// A WebSocket server, as its URL names it (RFC 6455 section 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The first address that the host resolves to.
    pub address: SocketAddr,
    /// The name that its certificate has to be for; `None` where it does not speak TLS.
    pub tls_name: Option<ServerName<'static>>,
    /// The Host field: the host, and the port where it is not the scheme's own.
    pub host: String,
    /// Path and query, beginning with a slash.
    pub path: String,
}

/// Why a URL cannot be a target.
#[derive(Debug)]
pub enum TargetFault {
    /// It begins neither with `ws://` nor with `wss://`.
    Scheme,
    /// The host is missing or malformed, or the port is no number from 1 to 65535.
    Authority,
    /// A blank, a control byte, a byte beyond ASCII, or a fragment (RFC 6455 section 3 forbids fragments).
    Path,
    /// The host has no address.
    Unresolved(io::Error),
}

impl Target {
    /// Parses `url` and resolves its host, which may wait for a name server.
    ///
    /// # Errors
    /// [`TargetFault`].
    pub fn resolve(url: &str) -> Result<Self, TargetFault> {
        let (is_tls, host, port, path) = split(url)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let address = (bare, port)
            .to_socket_addrs()
            .map_err(TargetFault::Unresolved)?
            .next()
            .ok_or_else(|| TargetFault::Unresolved(io::ErrorKind::NotFound.into()))?;
        let name = || ServerName::try_from(bare.to_owned()).map_err(|_| TargetFault::Authority);
        let tls_name = is_tls.then(name).transpose()?;
        let host = if port == own_port(is_tls) { host.to_owned() } else { format!("{host}:{port}") };
        Ok(Self { address, tls_name, host, path: path.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls_name.is_some() { "wss" } else { "ws" };
        write!(formatter, "{scheme}://{}{}", self.host, self.path)
    }
}

impl fmt::Display for TargetFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme => formatter.write_str("a URL begins with ws:// or wss://"),
            Self::Authority => formatter
                .write_str("write ws://HOST, ws://HOST:PORT or ws://[IPv6]:PORT, or the same with wss"),
            Self::Path => formatter.write_str("path and query are visible ASCII, without a fragment"),
            Self::Unresolved(error) => write!(formatter, "the host has no address: {error}"),
        }
    }
}

/// The port of a scheme, where a URL does not say another.
const fn own_port(is_tls: bool) -> u16 {
    if is_tls { 443 } else { 80 }
}

/// Whether it speaks TLS, host (an IPv6 address in its brackets), port and path.
fn split(url: &str) -> Result<(bool, &str, u16, &str), TargetFault> {
    let (is_tls, rest) = match url.strip_prefix("wss://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("ws://").ok_or(TargetFault::Scheme)?),
    };
    let (authority, path) = match rest.find('/') {
        Some(start) => rest.split_at(start),
        None => (rest, "/"),
    };
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(TargetFault::Path);
    }
    let bracket = authority.rfind(']').map_or(0, |index| index + 1);
    let (host, port) = match authority[bracket..].find(':') {
        None => (authority, own_port(is_tls)),
        Some(colon) => {
            let (host, port) = authority.split_at(bracket + colon);
            let port = port[1..].parse().map_err(|_| TargetFault::Authority)?;
            (host, port)
        }
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    let is_plain =
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if port == 0 || !(is_bracketed || is_plain) {
        return Err(TargetFault::Authority);
    }
    Ok((is_tls, host, port, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> (String, String, String) {
        let target = Target::resolve(url).unwrap();
        (target.address.to_string(), target.host, target.path)
    }

    #[test]
    fn the_port_is_80_or_443_unless_said() {
        let expected = |address: &str, host: &str| (address.to_owned(), host.to_owned(), "/".to_owned());
        assert_eq!(target("ws://127.0.0.1"), expected("127.0.0.1:80", "127.0.0.1"));
        assert_eq!(target("ws://127.0.0.1:80/"), expected("127.0.0.1:80", "127.0.0.1"));
        assert_eq!(target("ws://127.0.0.1:443/"), expected("127.0.0.1:443", "127.0.0.1:443"));
        assert_eq!(target("wss://127.0.0.1"), expected("127.0.0.1:443", "127.0.0.1"));
        assert_eq!(target("wss://127.0.0.1:443/"), expected("127.0.0.1:443", "127.0.0.1"));
        assert_eq!(target("wss://127.0.0.1:80/"), expected("127.0.0.1:80", "127.0.0.1:80"));
    }

    #[test]
    fn a_certificate_has_to_be_for_the_host_of_the_url() {
        let name = |url: &str| Target::resolve(url).unwrap().tls_name.map(|name| name.to_str().into_owned());
        assert_eq!(name("ws://localhost/"), None);
        assert_eq!(name("wss://localhost:1/").as_deref(), Some("localhost"));
        assert_eq!(name("wss://127.0.0.1/").as_deref(), Some("127.0.0.1"));
        assert_eq!(name("wss://[::1]:1/").as_deref(), Some("::1"));
        assert_eq!(Target::resolve("wss://[::1]:1/a").unwrap().to_string(), "wss://[::1]:1/a");
    }

    #[test]
    fn the_query_belongs_to_the_path() {
        let expected = ("[::1]:8080".to_owned(), "[::1]:8080".to_owned(), "/a?b=c:d".to_owned());
        assert_eq!(target("ws://[::1]:8080/a?b=c:d"), expected);
    }

    #[test]
    fn other_urls_are_refused() {
        for url in ["http://a", "127.0.0.1:80", "ws:/a", "https://a", "wsss://a"] {
            assert!(matches!(split(url), Err(TargetFault::Scheme)), "{url}");
        }
        for url in
            ["ws://", "ws:///a", "ws://a:0", "ws://a:65536", "ws://a:b", "ws://u@a", "ws://::1/", "ws://[]"]
        {
            assert!(matches!(split(url), Err(TargetFault::Authority)), "{url}");
        }
        for url in ["ws://a/#b", "ws://a/b c", "ws://a/\u{e4}"] {
            assert!(matches!(split(url), Err(TargetFault::Path)), "{url}");
        }
    }
}
