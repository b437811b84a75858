//! Where load goes: a `ws://` URL, resolved.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// A WebSocket server, as its URL names it (RFC 6455 section 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The first address that the host resolves to.
    pub address: SocketAddr,
    /// The Host field: the host, and the port where it is not 80.
    pub host: String,
    /// Path and query, beginning with a slash.
    pub path: String,
}

/// Why a URL cannot be a target.
#[derive(Debug)]
pub enum TargetFault {
    /// It does not begin with `ws://`.
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
        let (host, port, path) = split(url)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let address = (bare, port)
            .to_socket_addrs()
            .map_err(TargetFault::Unresolved)?
            .next()
            .ok_or_else(|| TargetFault::Unresolved(io::ErrorKind::NotFound.into()))?;
        let host = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
        Ok(Self { address, host, path: path.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ws://{}{}", self.host, self.path)
    }
}

impl fmt::Display for TargetFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme => formatter.write_str("a URL begins with ws://"),
            Self::Authority => formatter.write_str("write ws://HOST, ws://HOST:PORT or ws://[IPv6]:PORT"),
            Self::Path => formatter.write_str("path and query are visible ASCII, without a fragment"),
            Self::Unresolved(error) => write!(formatter, "the host has no address: {error}"),
        }
    }
}

/// Host (an IPv6 address in its brackets), port and path.
fn split(url: &str) -> Result<(&str, u16, &str), TargetFault> {
    let rest = url.strip_prefix("ws://").ok_or(TargetFault::Scheme)?;
    let (authority, path) = match rest.find('/') {
        Some(start) => rest.split_at(start),
        None => (rest, "/"),
    };
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(TargetFault::Path);
    }
    let bracket = authority.rfind(']').map_or(0, |index| index + 1);
    let (host, port) = match authority[bracket..].find(':') {
        None => (authority, 80),
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
    Ok((host, port, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> (String, String, String) {
        let target = Target::resolve(url).unwrap();
        (target.address.to_string(), target.host, target.path)
    }

    #[test]
    fn the_port_is_80_unless_said() {
        let expected = ("127.0.0.1:80".to_owned(), "127.0.0.1".to_owned(), "/".to_owned());
        assert_eq!(target("ws://127.0.0.1"), expected);
        assert_eq!(target("ws://127.0.0.1:80/"), expected);
    }

    #[test]
    fn the_query_belongs_to_the_path() {
        let expected = ("[::1]:8080".to_owned(), "[::1]:8080".to_owned(), "/a?b=c:d".to_owned());
        assert_eq!(target("ws://[::1]:8080/a?b=c:d"), expected);
    }

    #[test]
    fn other_urls_are_refused() {
        for url in ["http://a", "127.0.0.1:80", "ws:/a"] {
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
