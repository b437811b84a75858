//! What stands behind a route that relays: where its connections go, and how they are treated on the way.

mod headers;
mod limits;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;

use super::certificate::NamedFile;
use super::pattern::{HostFault, check_name};
use super::{PathPattern, Service};
use crate::protocol::http::list::is_token;
pub use headers::is_value;
pub use headers::{FieldFault, HeaderEdits};
pub use limits::UpstreamLimits;
pub(super) use limits::{KEYS as LIMIT_KEYS, TABLE as LIMITS};

/// How a route relays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// At least one, with names of their own.
    pub upstreams: Vec<Upstream>,
    /// Which of them a connection goes to.
    pub balance: Balance,
    /// Whom those are believed that speak TLS; there where one does.
    pub tls: Option<UpstreamTls>,
    /// How they are checked without a client; `None` where they are not.
    pub health: Option<Health>,
    /// How much they are asked, and how patiently.
    pub limits: UpstreamLimits,
    /// The addresses that connections to them come from, in turn; empty where the kernel chooses. Each has some 28,000
    /// ports for one upstream.
    pub sources: Vec<IpAddr>,
    /// What [`PathPattern::rewrite`] makes of the client's path for an upstream, of the same kind as the route's path;
    /// `None` where an upstream sees the client's.
    pub upstream_path: Option<PathPattern>,
    /// What becomes of the fields of a request on its way to an upstream.
    pub request_headers: HeaderEdits,
    /// What becomes of the fields of a response on its way to the client.
    pub response_headers: HeaderEdits,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// As it was written, the `upstream` label of metrics. No other of the route has it.
    pub name: String,
    /// Where it is.
    pub address: UpstreamAddress,
    /// Whether it is spoken to in TLS.
    pub is_tls: bool,
}

/// `upstream_tls` of a route.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// The file of the authorities whose certificates are believed, in PEM.
    pub ca: NamedFile,
    /// What was in it when the configuration was read.
    pub authorities: Arc<RootCertStore>,
    /// The name that certificates have to be for; `None` for that of each upstream.
    pub name: Option<String>,
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.ca == other.ca && self.authorities.roots == other.authorities.roots && self.name == other.name
    }
}

impl Eq for UpstreamTls {}

impl Upstream {
    /// Parses an upstream of `service`, which is one that relays.
    ///
    /// For `websocket`: `ws://HOST`, `ws://HOST:PORT`, the same with `wss`, and `ws+unix:///PATH`. For `http` the same with
    /// `http` and `https`. For `tcp`: `tcp://HOST:PORT` and `unix:///PATH`. Of the slashes before an absolute path two may be left out.
    ///
    /// # Errors
    /// The [`UpstreamFault`].
    pub(super) fn parse(service: Service, text: &str) -> Result<Self, UpstreamFault> {
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        let authority = rest.strip_prefix("//");
        let address = match (service, scheme, authority) {
            (Service::WebSocket, "wss", Some(authority)) | (Service::Http, "https", Some(authority)) => {
                socket(authority, Some(443))?
            }
            (Service::WebSocket, "ws", Some(authority)) | (Service::Http, "http", Some(authority)) => {
                socket(authority, Some(80))?
            }
            (Service::Tcp, "tcp", Some(authority)) => socket(authority, None)?,
            (Service::WebSocket, "ws+unix", path)
            | (Service::Http, "http+unix", path)
            | (Service::Tcp, "unix", path) => unix(path.unwrap_or(rest))?,
            _ => return Err(UpstreamFault::Scheme),
        };
        Ok(Self { name: text.to_owned(), address, is_tls: matches!(scheme, "wss" | "https") })
    }

    /// What a request to it says in `Host`.
    pub fn authority(&self) -> String {
        let usual_port = if self.is_tls { 443 } else { 80 };
        match &self.address {
            UpstreamAddress::Socket(address) => address.to_string(),
            UpstreamAddress::Name { host, port } if *port == usual_port => host.clone(),
            UpstreamAddress::Name { host, port } => format!("{host}:{port}"),
            UpstreamAddress::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The name that its certificate has to be for, unless another one was written.
    pub fn host(&self) -> String {
        match &self.address {
            UpstreamAddress::Socket(address) => address.ip().to_string(),
            UpstreamAddress::Name { host, .. } => host.trim_end_matches('.').to_owned(),
            UpstreamAddress::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// What keeps a text from being an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamFault {
    /// It begins with no scheme that its service speaks.
    Scheme,
    /// It has a path, a query, a fragment or userinfo.
    NotOnlyAnAddress,
    /// Its host is none.
    Host(HostFault),
    /// It has no port, and its scheme none that is usual.
    PortMissing,
    /// Its port is none of 1 to 65535.
    Port,
    /// The path of its socket is not absolute, longer than the kernel takes, or has control characters.
    SocketPath,
}

impl fmt::Display for UpstreamFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Scheme => "it does not begin with a scheme of its service",
            Self::NotOnlyAnAddress => "there is more than an address in it",
            Self::Host(fault) => return write!(formatter, "of its host, {fault}"),
            Self::PortMissing => "it has no port",
            Self::Port => "its port is not of 1 to 65535",
            Self::SocketPath => {
                "a Unix socket has an absolute path, without control characters, of at most 107 bytes"
            }
        })
    }
}

/// `HOST:PORT`, or `HOST` where there is a default port.
fn socket(authority: &str, default_port: Option<u16>) -> Result<UpstreamAddress, UpstreamFault> {
    if authority.contains(['/', '?', '#', '@']) {
        return Err(UpstreamFault::NotOnlyAnAddress);
    }
    let host_size = match authority.find(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_size);
    let port = match (port, default_port) {
        ("", Some(port)) => port,
        ("", None) => return Err(UpstreamFault::PortMissing),
        (port, _) => {
            let digits = port.strip_prefix(':').filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
            let port = digits.and_then(|digits| digits.parse().ok()).filter(|&port| port != 0);
            port.ok_or(UpstreamFault::Port)?
        }
    };
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| UpstreamFault::Host(HostFault::NotAnAddress))?;
        return Ok(UpstreamAddress::Socket(SocketAddr::new(address.to_canonical(), port)));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(UpstreamAddress::Socket(SocketAddr::new(address.into(), port)));
    }
    check_name(host).map_err(UpstreamFault::Host)?;
    Ok(UpstreamAddress::Name { host: host.to_ascii_lowercase(), port })
}

/// Where an upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// At an address.
    Socket(SocketAddr),
    /// At the addresses of a name, which is resolved at start and again at intervals.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// At a Unix socket, an absolute path.
    Unix(PathBuf),
}

/// The path of a Unix socket.
fn unix(path: &str) -> Result<UpstreamAddress, UpstreamFault> {
    let is_path = path.starts_with('/') && !path.ends_with('/');
    // What `sockaddr_un` holds, less the zero at the end.
    if !is_path || path.len() > 107 || path.contains(char::is_control) {
        return Err(UpstreamFault::SocketPath);
    }
    Ok(UpstreamAddress::Unix(path.into()))
}

/// Which upstream a connection goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest connections.
    LeastConnections,
    /// The same for all connections from one client's address, while it can be had.
    Address,
    /// The same for all requests with one value of this cookie; where it is missing, each in turn.
    Cookie(String),
    /// The same for all requests with one value of this field; where it is missing, each in turn.
    Header(String),
}

impl Balance {
    /// Parses `round_robin`, `least_connections`, `address`, `cookie:NAME` and `header:NAME`; `None` for all else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let token = |name: &str| is_token(name.as_bytes()).then(|| name.to_owned());
        match text.split_once(':') {
            None if text == "round_robin" => Some(Self::RoundRobin),
            None if text == "least_connections" => Some(Self::LeastConnections),
            None if text == "address" => Some(Self::Address),
            Some(("cookie", name)) => token(name).map(Self::Cookie),
            Some(("header", name)) => token(name).map(Self::Header),
            _ => None,
        }
    }
}

impl fmt::Display for Balance {
    /// As the file has it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundRobin => formatter.write_str("round_robin"),
            Self::LeastConnections => formatter.write_str("least_connections"),
            Self::Address => formatter.write_str("address"),
            Self::Cookie(name) => write!(formatter, "cookie:{name}"),
            Self::Header(name) => write!(formatter, "header:{name}"),
        }
    }
}

/// How upstreams are checked without a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What a check does.
    pub kind: HealthKind,
    /// From the beginning of a check to that of the next.
    pub interval: Duration,
    /// How long a check may take.
    pub timeout: Duration,
    /// Good checks in a row after which an upstream that was unhealthy is used again.
    pub healthy_after: NonZeroU32,
    /// Failed checks in a row after which an upstream is used no more.
    pub unhealthy_after: NonZeroU32,
}

impl Health {
    /// Without the key.
    pub(super) const INTERVAL: Duration = Duration::from_secs(5);
    /// Without the key, unless the interval is shorter.
    pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
    /// Without the keys.
    pub(super) const IN_A_ROW: NonZeroU32 = NonZeroU32::new(2).expect("two is not zero");
}

/// What a check of an upstream does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthKind {
    /// It connects.
    Tcp,
    /// It asks for this path, and expects a status from 200 to 399.
    Http {
        /// The path, with its query if it has one.
        path: String,
    },
    /// It does an opening handshake for this path, and closes.
    WebSocket {
        /// The path, with its query if it has one.
        path: String,
    },
}

impl HealthKind {
    /// As the file has them.
    pub(super) const LABELS: &[&'static str] = &["tcp", "http", "websocket"];

    /// The one of [`HealthKind::LABELS`] that this is.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http { .. } => "http",
            Self::WebSocket { .. } => "websocket",
        }
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(formatter),
            Self::Name { host, port } => write!(formatter, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_where_it_says() {
        let name = |host: &str, port| UpstreamAddress::Name { host: host.to_owned(), port };
        let socket = |text: &str| UpstreamAddress::Socket(text.parse().unwrap());
        let unix = |path: &str| UpstreamAddress::Unix(path.into());
        for (service, text, expected) in [
            (Service::WebSocket, "ws://127.0.0.1:9001", socket("127.0.0.1:9001")),
            (Service::WebSocket, "ws://127.0.0.1", socket("127.0.0.1:80")),
            (Service::WebSocket, "ws://[2001:DB8::1]:9001", socket("[2001:db8::1]:9001")),
            (Service::WebSocket, "ws://[::1]", socket("[::1]:80")),
            (Service::WebSocket, "ws://[::ffff:127.0.0.1]:81", socket("127.0.0.1:81")),
            (Service::WebSocket, "ws://App_1.Example.com:65535", name("app_1.example.com", 65_535)),
            (Service::WebSocket, "ws://app", name("app", 80)),
            (Service::WebSocket, "wss://app", name("app", 443)),
            (Service::WebSocket, "wss://[::1]:9001", socket("[::1]:9001")),
            (Service::WebSocket, "ws+unix:///run/app.sock", unix("/run/app.sock")),
            (Service::Http, "http://app", name("app", 80)),
            (Service::Http, "https://app", name("app", 443)),
            (Service::Http, "http+unix:///run/app.sock", unix("/run/app.sock")),
            (Service::Tcp, "tcp://redis:6379", name("redis", 6379)),
            (Service::Tcp, "tcp://192.0.2.1:22", socket("192.0.2.1:22")),
            (Service::Tcp, "unix:///run/redis.sock", unix("/run/redis.sock")),
            (Service::Tcp, "unix:/run/redis.sock", unix("/run/redis.sock")),
        ] {
            let upstream = Upstream::parse(service, text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
            let is_tls = text.starts_with("wss") || text.starts_with("https");
            assert_eq!(upstream, Upstream { name: text.to_owned(), address: expected, is_tls });
        }
    }

    #[test]
    fn what_is_no_upstream_says_why() {
        let long = format!("unix:///{}", "a".repeat(107));
        for (service, text, expected) in [
            (Service::WebSocket, "", UpstreamFault::Scheme),
            (Service::WebSocket, "127.0.0.1:9001", UpstreamFault::Scheme),
            (Service::WebSocket, "ws:127.0.0.1:9001", UpstreamFault::Scheme),
            (Service::WebSocket, "http://app", UpstreamFault::Scheme),
            (Service::WebSocket, "tcp://app:1", UpstreamFault::Scheme),
            (Service::WebSocket, "unix:///run/app.sock", UpstreamFault::Scheme),
            (Service::WebSocket, "https://app", UpstreamFault::Scheme),
            (Service::WebSocket, "wss+unix:///run/app.sock", UpstreamFault::Scheme),
            (Service::Http, "ws://app", UpstreamFault::Scheme),
            (Service::Http, "https+unix:///run/app.sock", UpstreamFault::Scheme),
            (Service::Http, "http://app/", UpstreamFault::NotOnlyAnAddress),
            (Service::WebSocket, "wss://app/chat", UpstreamFault::NotOnlyAnAddress),
            (Service::WebSocket, "ws://app/", UpstreamFault::NotOnlyAnAddress),
            (Service::WebSocket, "ws://app:1/chat", UpstreamFault::NotOnlyAnAddress),
            (Service::WebSocket, "ws://app?x", UpstreamFault::NotOnlyAnAddress),
            (Service::WebSocket, "ws://me@app", UpstreamFault::NotOnlyAnAddress),
            (Service::WebSocket, "ws://", UpstreamFault::Host(HostFault::Empty)),
            (Service::WebSocket, "ws://:80", UpstreamFault::Host(HostFault::Empty)),
            (Service::WebSocket, "ws://a b", UpstreamFault::Host(HostFault::Label)),
            (Service::WebSocket, "ws://256.0.0.1", UpstreamFault::Host(HostFault::NotAnAddress)),
            (Service::WebSocket, "ws://[app]:1", UpstreamFault::Host(HostFault::NotAnAddress)),
            (Service::WebSocket, "ws://app:", UpstreamFault::Port),
            (Service::WebSocket, "ws://app:0", UpstreamFault::Port),
            (Service::WebSocket, "ws://app:+1", UpstreamFault::Port),
            (Service::WebSocket, "ws://app:65536", UpstreamFault::Port),
            (Service::WebSocket, "ws://::1", UpstreamFault::Port),
            (Service::WebSocket, "ws://[::1]80", UpstreamFault::Port),
            (Service::WebSocket, "ws+unix://run/app.sock", UpstreamFault::SocketPath),
            (Service::Tcp, "ws://app", UpstreamFault::Scheme),
            (Service::Tcp, "tcp://app", UpstreamFault::PortMissing),
            (Service::Tcp, "unix:", UpstreamFault::SocketPath),
            (Service::Tcp, "unix:///run/", UpstreamFault::SocketPath),
            (Service::Tcp, "unix:///run/\na", UpstreamFault::SocketPath),
            (Service::Tcp, &long, UpstreamFault::SocketPath),
        ] {
            assert_eq!(Upstream::parse(service, text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_balance_is_read_as_it_is_written() {
        for text in ["round_robin", "least_connections", "address", "cookie:session", "header:X-Room"] {
            assert_eq!(Balance::parse(text).map(|balance| balance.to_string()).as_deref(), Some(text));
        }
        for text in
            ["", "random", "cookie", "cookie:", "cookie:a b", "header:a:b", "address:x", "Round_Robin"]
        {
            assert_eq!(Balance::parse(text), None, "{text}");
        }
    }
}
