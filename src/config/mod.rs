//! The configuration: an immutable, checked snapshot.
//!
//! `file` knows the tables as they are written, `check` makes of them a [`Config`] or every fault, `limits` holds the
//! limits with their reasons. What is in a `Config` needs no second look: a name is a label, a path can be matched, an
//! index points somewhere.

pub mod auth;
pub mod blocked_ports;
pub mod certificate;
mod check;
pub mod deflate;
mod fault;
mod file;
mod limits;
pub mod path;
pub mod pattern;
mod read;
mod secret;
mod show;
mod size;
pub mod upstream;
pub mod web;

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

pub use auth::Auth;
pub use certificate::PortTls;
pub use deflate::Deflate;
pub use fault::{Caution, Fault, NetworkFault, Place, Problem, Warning};
pub use limits::Limits;
pub use pattern::{HostPattern, PathPattern, PortSet};
pub use read::{ReadFault, read};
pub use secret::{Secret, SecretFault, SecretSource};
pub use upstream::is_value as is_field_value;
pub use upstream::{Relay, Upstream, UpstreamAddress};
pub use web::Redirect;

use ipnet::IpNet;

use crate::protocol::closed_set;
use crate::protocol::http::origin::Origin;

/// The configuration that a gateway without a file has, commented for those who read it.
pub const BUILT_IN: &str = include_str!("default.toml");

/// The path that the built-in page ([`Service::Page`]) opens its WebSocket at, on the port that it came from.
pub const PAGE_OPENS: &str = "/echo";

/// The `route` label of requests that no route took. No route has this name.
pub const NO_ROUTE: &str = "none";

/// Everything that a gateway is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process.
    pub gateway: Gateway,
    /// The admin endpoints; `None` where they are switched off.
    pub admin: Option<Admin>,
    /// The limits of `[limits]`, before ports and routes lay theirs over: see [`Config::limits`].
    pub limits: Limits,
    /// At least one, with labels of their own.
    pub ports: Vec<Port>,
    /// At least one, with names of their own. Their order means nothing.
    pub routes: Vec<Route>,
    /// True exactly while nobody wrote a configuration; a port that cannot be bound is then no reason to stop.
    pub is_built_in: bool,
}

impl Config {
    /// The most shards that a gateway can have.
    pub const SHARDS_MAX: usize = 1024;

    /// The configuration of a gateway without a file: [`BUILT_IN`].
    ///
    /// # Panics
    /// Never: a test checks what is built in.
    pub fn built_in() -> Self {
        let (config, _) = Self::from_toml(BUILT_IN, Path::new("")).expect("a test checks what is built in");
        Self { is_built_in: true, ..config }
    }

    /// Checks the TOML in `text`, and reads the secrets it names; their relative paths begin at `base`, which is the
    /// directory of the file.
    ///
    /// # Errors
    /// Every [`Fault`], in the order of the file, at least one.
    pub fn from_toml(text: &str, base: &Path) -> Result<(Self, Vec<Warning>), Vec<Fault>> {
        check::check(text, base)
    }

    /// The configuration in force as TOML, every default written out, secrets by their reference alone.
    ///
    /// [`Config::from_toml`] makes the same configuration of it.
    pub fn to_toml(&self) -> String {
        show::show(self)
    }

    /// What relays: each route by its index, with its name, and behind all of them each route's service that is asked about
    /// requests, with a name for that. There is `None` where nothing is.
    pub fn relays(&self) -> impl Iterator<Item = (String, Option<&Relay>)> {
        let routes = self.routes.iter().map(|route| (route.name.clone(), route.relay.as_ref()));
        let asked = self.routes.iter().map(|route| {
            let forward = route.auth.as_ref().and_then(Auth::forward);
            (format!("{}:auth", route.name), forward.map(|forward| &forward.relay))
        });
        routes.chain(asked)
    }

    /// Whether clients of the port of this index may speak HTTP/2 inside TLS: a route is there that has use for it.
    pub fn offers_http2(&self, port_index: usize) -> bool {
        self.routes.iter().any(|route| route.service.is_http() && route.ports.contains(port_index))
    }

    /// The limits of a connection at the port of this index, once it is on the route of that index.
    ///
    /// # Panics
    /// Where an index is not one of [`Config::ports`] or [`Config::routes`].
    pub fn limits(&self, port_index: usize, route_index: usize) -> Limits {
        self.routes[route_index].overrides.apply(self.ports[port_index].limits)
    }
}

/// `[gateway]`: what concerns the process.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// The number of shards; `None` for one on each core that the process may use.
    pub shards: Option<NonZeroUsize>,
    /// What drives the shards' sockets.
    pub io_driver: IoDriver,
    /// How often the names of upstreams are resolved again.
    pub resolve_interval: Duration,
    /// Bytes of memory that the process is to stay below; `None` for whatever there is.
    pub memory_max: Option<NonZeroU64>,
}

closed_set! {
    /// What drives a shard's sockets.
    pub enum IoDriver {
        /// `io_uring`, or epoll where the ring cannot be built.
        Auto => "auto",
        /// `io_uring`, or no start.
        IoUring => "io_uring",
        /// epoll.
        Epoll => "epoll",
    }
}

/// `[admin]`: metrics, health and status.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The address to listen at. Not loopback only with a token.
    pub listen: SocketAddr,
    /// What a request has to present, if anything.
    pub token: Option<Secret>,
}

/// `[[port]]`: a port that clients connect to.
#[derive(Clone, Debug)]
pub struct Port {
    /// The number to listen at; 0 lets the kernel choose.
    pub number: u16,
    /// The address to listen at; `None` for `::`, both families, or `0.0.0.0` where there is no IPv6.
    pub address: Option<IpAddr>,
    /// The `port` label of metrics: the name if there is one, else the number. No other port has it.
    pub label: String,
    /// The TLS that it speaks, if it does.
    pub tls: Option<PortTls>,
    /// The scheme that clients use; `None` where that is `ws`, as the port speaks no TLS and nothing was written.
    pub public_scheme: Option<Scheme>,
    /// The host that clients use, where `Host` does not tell; an IPv6 address in brackets.
    pub public_host: Option<String>,
    /// The port that clients use, where it is not this one.
    pub public_port: Option<u16>,
    /// From where connections must come that begin with a PROXY header, at least one network; `None` where there is no
    /// such header.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// Who may connect.
    pub access: Access,
    /// The limits at this port, before those of a route: `[limits]` with `[port.limits]` laid over.
    pub limits: Limits,
}

/// Which addresses may come, to a port or on a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The networks that may; empty where all may.
    pub allow: Vec<IpNet>,
    /// The networks that may not, whatever is said of them otherwise.
    pub deny: Vec<IpNet>,
}

closed_set! {
    /// What becomes of a client that sends more than its rate allows.
    pub enum RatePolicy {
        /// It is closed with 1008.
        Close => "close",
        /// It is not read until it may send again.
        Pause => "pause",
    }
}

closed_set! {
    /// The scheme of a WebSocket URL.
    pub enum Scheme {
        /// Without TLS.
        Ws => "ws",
        /// With TLS, be it spoken here or by what stands before the gateway.
        Wss => "wss",
    }
}

/// `[[route]]`: which requests it is for, and what answers them.
#[derive(Clone, Debug)]
pub struct Route {
    /// The `route` label of metrics: the name if there is one, else host and path. No other route has it.
    pub name: String,
    /// The hosts.
    pub host: HostPattern,
    /// The ports.
    pub ports: PortSet,
    /// The paths.
    pub path: PathPattern,
    /// What answers.
    pub service: Service,
    /// Whose pages may open a WebSocket.
    pub origins: Origins,
    /// The subprotocols that are spoken, each a token, in the order of preference as written.
    pub subprotocols: Vec<String>,
    /// Whether opening handshakes are answered, and `origins` means something.
    pub websocket: bool,
    /// What a request has to prove; `None` where it is nothing.
    pub auth: Option<Auth>,
    /// What of a request goes to no upstream, as it is for that.
    pub withheld: auth::Withheld,
    /// How messages are compressed between client and gateway; `None` where they are not.
    pub deflate: Option<Deflate>,
    /// How it relays; there exactly where the service relays.
    pub relay: Option<Relay>,
    /// Where it sends clients; there exactly where the service does so.
    pub redirect: Option<Redirect>,
    /// What it serves; there exactly where the service serves files.
    pub files: Option<web::Files>,
    /// The networks whose forwarding fields are believed.
    pub trusted: Vec<IpNet>,
    /// Whose requests are served, by the address of the client.
    pub access: Access,
    /// What becomes of a client that sends too much.
    pub rate_policy: RatePolicy,
    /// What `[route.limits]` lays over the port's limits.
    overrides: limits::Overrides,
}

closed_set! {
    /// What answers a routed connection.
    pub enum Service {
        /// Sends each message back.
        Echo => "echo",
        /// A small page that opens a WebSocket to the port it came from and shows what happens.
        Page => "page",
        /// Passes frames between the client and a WebSocket server.
        WebSocket => "websocket",
        /// Passes the payload of messages to a byte stream, and what comes from it as messages.
        Tcp => "tcp",
        /// Passes requests on to an HTTP server, and opening handshakes as well if the route takes them.
        Http => "http",
        /// Sends clients elsewhere.
        Redirect => "redirect",
        /// Serves the files of a folder.
        Files => "files",
    }
}

impl Service {
    /// Whether each route with this service answers opening handshakes; [`Route::websocket`] tells it of one route.
    pub fn is_websocket(self) -> bool {
        match self {
            Self::Echo | Self::WebSocket | Self::Tcp => true,
            Self::Page | Self::Http | Self::Redirect | Self::Files => false,
        }
    }

    /// Whether the service needs upstreams.
    pub fn is_relay(self) -> bool {
        match self {
            Self::WebSocket | Self::Tcp | Self::Http => true,
            Self::Echo | Self::Page | Self::Redirect | Self::Files => false,
        }
    }

    /// Whether the service answers requests that open no WebSocket, by hyper.
    pub fn is_http(self) -> bool {
        match self {
            Self::Http | Self::Redirect | Self::Files => true,
            Self::Echo | Self::Page | Self::WebSocket | Self::Tcp => false,
        }
    }

    /// Whether requests of clients go to an upstream.
    pub fn passes_requests(self) -> bool {
        match self {
            Self::WebSocket | Self::Http => true,
            Self::Echo | Self::Page | Self::Tcp | Self::Redirect | Self::Files => false,
        }
    }
}

/// Whose pages may open a WebSocket on a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Everybody's, with no visitor's cookies to gain: none pass to an upstream.
    Any,
    /// Pages of the very scheme, host and port that the WebSocket is opened to.
    Same,
    /// Pages of these Origins, at least one.
    Exact(Vec<Origin>),
    /// Those that the upstream lets in, to which the Origin passes as it came.
    Upstream,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_configuration_serves_echo_and_a_page_on_ports_80_and_8080() {
        let config = Config::built_in();
        assert!(config.is_built_in);
        assert_eq!(config.ports.iter().map(|port| port.number).collect::<Vec<_>>(), [80, 8080]);
        let routes: Vec<_> = config.routes.iter().map(|route| (route.name.as_str(), route.service)).collect();
        assert_eq!(routes, [("echo", Service::Echo), ("page", Service::Page)]);
        assert_eq!(config.routes[0].origins, Origins::Any);
        assert_eq!(config.limits, Limits::DEFAULT);
        assert_eq!(config.admin.map(|admin| admin.listen.to_string()).as_deref(), Some("127.0.0.1:9180"));
    }

    #[test]
    fn a_route_narrows_a_port_and_a_port_narrows_the_gateway() {
        let text = r#"
            limits = { message_size_max = 1000, idle_timeout_ms = 1, close_timeout_ms = 1 }
            [[port]]
            number = 80
            [[port]]
            number = 81
            limits = { message_size_max = 2000, idle_timeout_ms = 2 }
            [[route]]
            path = "/a"
            service = "echo"
            [[route]]
            path = "/b"
            service = "echo"
            limits = { message_size_max = 3000 }
        "#;
        let (config, _) = Config::from_toml(text, Path::new("")).unwrap();
        let of = |port, route| {
            let limits = config.limits(port, route);
            let idle_ms = limits.idle_timeout.map(|timeout| timeout.as_millis());
            (limits.message_size_max, idle_ms, limits.close_timeout.as_millis())
        };
        assert_eq!(of(0, 0), (1000, Some(1), 1));
        assert_eq!(of(1, 0), (2000, Some(2), 1));
        assert_eq!(of(0, 1), (3000, Some(1), 1));
        assert_eq!(of(1, 1), (3000, Some(2), 1));
    }

    const DEPLOYED: &str = include_str!("../../deploy/ringway.toml");

    /// What of deploy/ringway.toml is put in force that stands behind a `#`.
    #[derive(Clone, Copy)]
    struct Uncommented {
        /// Keys that show their default.
        defaults: bool,
        /// Tables that are an example, with the keys that stand right below their heading.
        tables: bool,
        /// Keys that are an example.
        examples: bool,
    }

    impl Uncommented {
        /// The text of the file, paragraph by paragraph.
        fn text(self) -> String {
            let behind = |line: &'static str| line.strip_prefix("# ").unwrap_or_default();
            let is_table = |line: &str| line.starts_with('[') && line.ends_with(']');
            let is_key = |line: &str| {
                line.split_once(" = ").is_some_and(|(key, _)| {
                    !key.is_empty()
                        && key
                            .bytes()
                            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                })
            };
            // True exactly while the table around is one that is an example.
            let mut is_in_example = false;
            let mut text = String::new();
            for paragraph in DEPLOYED.split("\n\n") {
                let has = |is: &dyn Fn(&'static str) -> bool| paragraph.lines().any(is);
                let is_example =
                    has(&|line| behind(line).ends_with("Example:") || behind(line).ends_with("Examples:"));
                let opens_table = has(&|line| is_table(behind(line)));
                is_in_example = opens_table || (is_in_example && !has(&is_table));
                let is_in_force = (self.tables || !is_in_example)
                    && if opens_table {
                        true
                    } else if is_example {
                        self.examples
                    } else {
                        self.defaults
                    };
                for line in paragraph.lines() {
                    let is_uncommented = is_in_force && (is_key(behind(line)) || is_table(behind(line)));
                    text.push_str(if is_uncommented { behind(line) } else { line });
                    text.push('\n');
                }
                text.push('\n');
            }
            text.replace("file:/etc/ringway/admin-token", "file:token")
                .replace("file:/etc/ringway/token-secret", "file:secret")
        }
    }

    #[test]
    fn the_deployed_file_is_good() {
        let (config, warnings) =
            Config::from_toml(DEPLOYED, Path::new("")).unwrap_or_else(|faults| panic!("{faults:?}"));
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(config.limits, Limits::DEFAULT);
    }

    /// Runs `test` with a directory that has the files of the examples.
    fn with_files<T>(test_name: &str, test: impl FnOnce(&Path) -> T) -> T {
        secret::tests::with_token_file(test_name, |base| {
            let authority = certificate::fixture::Authority::new(&format!("{test_name}-certificate"));
            let files = authority.good("edge", &["ws.example.com"]);
            std::fs::copy(files.certificate.path, base.join("fullchain.pem")).unwrap();
            std::fs::copy(files.key.path, base.join("privkey.pem")).unwrap();
            std::fs::copy(authority.directory.join("ca.pem"), base.join("ca.pem")).unwrap();
            test(base)
        })
    }

    #[test]
    fn the_defaults_that_the_deployed_file_shows_are_those_of_the_code() {
        with_files("deployed-defaults", defaults_are_those_of_the_code);
    }

    fn defaults_are_those_of_the_code(base: &Path) {
        for tables in [false, true] {
            let texts =
                [false, true].map(|defaults| Uncommented { defaults, tables, examples: false }.text());
            let [(plain, _), (spelled_out, _)] = texts.each_ref().map(|text| {
                Config::from_toml(text, base).unwrap_or_else(|faults| panic!("{faults:?} in\n{text}"))
            });
            assert_eq!(format!("{spelled_out:?}"), format!("{plain:?}"));
            assert_eq!(spelled_out.routes.iter().any(|route| route.relay.is_some()), tables);
            let [_, text] = texts;
            for limit in limits::TABLE {
                assert!(text.contains(&format!("\n{} = ", limit.key)), "{} is not shown", limit.key);
            }
            for limit in upstream::LIMITS {
                assert_eq!(
                    text.contains(&format!("\n{} = ", limit.key)),
                    tables || limits::KEYS.contains(&limit.key)
                );
            }
        }
    }

    #[test]
    fn the_deployed_file_explains_every_key_and_its_examples_are_good() {
        let text = Uncommented { defaults: true, tables: true, examples: true }.text();
        with_files("deployed", |base| {
            Config::from_toml(&text, base).unwrap_or_else(|faults| panic!("{faults:?} in\n{text}"));
        });
        let root: toml::Table = toml::from_str(&text).unwrap();
        let each = |key: &str| {
            root[key].as_array().unwrap().iter().filter_map(toml::Value::as_table).collect::<Vec<_>>()
        };
        let below = |key: &str, name: &str| {
            each(key).into_iter().filter_map(|table| table.get(name)?.as_table()).collect::<Vec<_>>()
        };
        for schema in file::SCHEMAS {
            // What a port and a route may set of the limits, they set by example.
            let tables = match schema.title {
                "the file" => vec![&root],
                "[gateway]" => vec![root["gateway"].as_table().unwrap()],
                "[admin]" => vec![root["admin"].as_table().unwrap()],
                "[limits]" | "[port.limits]" | "[route.limits]" => vec![root["limits"].as_table().unwrap()],
                "[[port]]" => each("port"),
                "[port.tls]" => below("port", "tls"),
                "[[port.tls.certificates]]" => below("port", "tls")
                    .iter()
                    .flat_map(|tls| tls["certificates"].as_array().unwrap())
                    .filter_map(toml::Value::as_table)
                    .collect(),
                "[port.proxy_protocol]" => below("port", "proxy_protocol"),
                "[[route]]" => each("route"),
                "[route.upstream_limits]" => below("route", "upstream_limits"),
                "[route.upstream_tls]" => below("route", "upstream_tls"),
                "[route.health]" => below("route", "health"),
                "[route.deflate]" => below("route", "deflate"),
                "[route.auth]" => below("route", "auth"),
                "[route.auth.jwt]" => {
                    below("route", "auth").iter().filter_map(|auth| auth.get("jwt")?.as_table()).collect()
                }
                "[route.auth.forward]" => {
                    below("route", "auth").iter().filter_map(|auth| auth.get("forward")?.as_table()).collect()
                }
                "[route.redirect]" => below("route", "redirect"),
                "[route.request_headers]" => below("route", "request_headers"),
                // They are as those of requests.
                "[route.response_headers]" => below("route", "request_headers"),
                other => panic!("the test does not know {other}"),
            };
            for key in schema.keys {
                let is_explained = tables.iter().any(|table| table.contains_key(*key));
                assert!(is_explained, "{key} of {} is not explained", schema.title);
            }
        }
    }
}
