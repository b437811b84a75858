//! What is wrong with a configuration, as facts, and the sentences that tell people.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use der::DateTime;
use ipnet::IpNet;

use super::auth::keys::KeyFault;
use super::certificate::CertificateFault;
use super::file::{Bounds, Unit};
use super::path::PathFault;
use super::pattern::HostFault;
use super::secret::SecretFault;
use super::upstream::{FieldFault, UpstreamFault};
use super::{Service, blocked_ports, size};
use crate::protocol::http::origin::{Origin, OriginFault};

/// A mistake that keeps a configuration from being used.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Where it stands.
    pub place: Place,
    /// The path of the key, such as `port[1].limits.message_size_max`, counted from 0; empty where there is none.
    pub key: String,
    /// What it is.
    pub problem: Problem,
}

impl fmt::Display for Fault {
    /// `LINE:COLUMN: KEY: SENTENCE`, the key where there is one.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_located(out, self.place, &self.key, &self.problem)
    }
}

/// Something that is most likely a mistake. Under `--strict` it is treated as one.
#[derive(Clone, Debug)]
pub struct Warning {
    /// Where it stands.
    pub place: Place,
    /// The path of the key, as in [`Fault::key`].
    pub key: String,
    /// What it is.
    pub caution: Caution,
}

impl fmt::Display for Warning {
    /// As a [`Fault`].
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_located(out, self.place, &self.key, &self.caution)
    }
}

/// A stretch of one line of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// In characters, at least 1.
    pub width: usize,
}

/// What is wrong. [`Display`](fmt::Display) is a sentence without its full stop.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is what the variant's sentence says of it")]
pub enum Problem {
    /// It is not TOML.
    Syntax { message: String },
    /// The table has no such key.
    UnknownKey {
        name: String,
        table: &'static str,
        keys: &'static [&'static str],
        nearest: Option<&'static str>,
        homes: Vec<&'static str>,
    },
    /// The key will come, but this version has no code for it.
    KeyNotYet,
    /// The service will come, but this version has no code for it.
    ServiceNotYet { service: String },
    /// A key or a table that must be there.
    Missing { example: &'static str },
    /// A value of another type.
    WrongType { expected: &'static str, found: &'static str },
    /// A number beyond its range.
    OutOfRange { value: String, bounds: Bounds },
    /// A string that is not a size.
    NotASize { value: String },
    /// A string that is none of a closed set.
    UnknownValue { value: String, valid: Vec<&'static str>, nearest: Option<&'static str> },
    /// Not an IP address.
    BadAddress { value: String },
    /// Not an address and a port.
    BadListen { value: String },
    /// Not a host.
    BadHost { value: String, fault: HostFault },
    /// Not a host that clients could use.
    BadPublicHost { value: String, fault: HostFault },
    /// Not a path that a request could have.
    BadPath { value: String, fault: PathFault },
    /// Not an Origin.
    BadOrigin { value: String, fault: OriginFault },
    /// `any`, `same` or `upstream` among exact Origins.
    OriginsMixed { value: String },
    /// Cookies pass to an upstream whatever page a request comes from.
    CookiesForAnyOrigin,
    /// No upstream is told of Origins that should judge them.
    NoUpstreamJudges { service: Service },
    /// The upstream should judge Origins, and `request_headers` keeps them from it.
    OriginEdited,
    /// Not a token of RFC 9110 section 5.6.2.
    BadSubprotocol { value: String },
    /// Not a name that can be a label.
    BadName { value: String },
    /// A secret that is not there.
    Secret(SecretFault),
    /// The admin endpoints open to the network without a token.
    AdminOpen { listen: SocketAddr },
    /// A list that lets nothing through.
    EmptyList,
    /// A value that stands in a list already.
    Repeated { value: String },
    /// A name that another table of the kind has; `line` is where.
    NameTaken { name: String, line: usize },
    /// The name of a route that stands for requests without one.
    NameReserved { name: String },
    /// An address and number that another port covers; `line` is where that stands.
    PortTaken { number: u16, line: usize },
    /// A port that only a name can tell from another.
    PortNeedsName { number: u16 },
    /// A route names a port that is not configured.
    NoSuchPort { port: String, nearest: Option<String> },
    /// Another route answers for the same requests; `line` is where it stands.
    RouteTaken { host: String, path: String, line: usize },
    /// A path that lies in the tree which Ringway keeps for itself on every port.
    PathReserved { path: String },
    /// A path which no request head that the route's ports take has room for, both in bytes.
    PathTooLong { head_size: usize, limit: usize },
    /// Not an upstream of the route's service.
    BadUpstream { value: String, service: Service, fault: UpstreamFault },
    /// Not a name that a certificate could be for.
    BadServerName { value: String },
    /// A prefix where the route's path is one path, or one path where it is a prefix.
    UpstreamPathKind { is_prefix_wanted: bool },
    /// Not a way to choose an upstream.
    BadBalance { value: String },
    /// Not a path, with or without a query, that a check could ask for.
    BadTarget { value: String },
    /// A path for a check that asks for none.
    CheckWithoutPath,
    /// A check that could last until after the next begins.
    TimeoutBeyondInterval { interval: Duration },
    /// Not a network.
    BadNetwork { value: String, fault: NetworkFault },
    /// An address that no connection comes from.
    BadSource { address: IpAddr },
    /// A field that cannot be edited.
    BadField { name: String, fault: FieldFault },
    /// Not the value of a field. It may be a secret, and is not repeated.
    BadFieldValue,
    /// Not a host that a request could name.
    BadHostField { value: String },
    /// A folder that is none, or cannot be looked at.
    BadFolder { name: String, cause: String },
    /// No name of a file in a folder.
    BadFileName { name: String },
    /// A redirect that changes nothing.
    RedirectToItself,
    /// Not a host that clients could be sent to.
    BadRedirectHost { value: String, fault: HostFault },
    /// A prefix to send clients to, where the route's path is one path.
    RedirectPathKind,
    /// A status that is no redirect's.
    BadRedirectStatus { status: u64 },
    /// A key that is about opening handshakes, of a route that takes none.
    TakesNoWebSocket,
    /// Two keys of which one is to stand, and none or both do.
    ExactlyOne { keys: &'static str },
    /// A key that means nothing without another.
    OnlyWith { key: &'static str },
    /// Not a key, or set of keys, of the kind that is wanted.
    BadKey { name: String, fault: KeyFault },
    /// Not a URL of http or https.
    BadUrl { value: String },
    /// Not a place where a token may stand.
    BadTokenPlace { value: String },
    /// `websocket = false` of a service that is nothing else.
    AlwaysWebSocket { service: Service },
    /// A key that means nothing to the route's service.
    NotForService { service: Service },
    /// A file that a certificate, a key or an authority was to be read from.
    Certificate { name: String, fault: CertificateFault },
    /// More tables than are allowed.
    TooMany { count: usize, max: usize, reason: &'static str },
}

/// What keeps a text from being a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkFault {
    /// It is neither an address with a prefix length nor an address.
    NotANetwork,
    /// Bits are set behind the prefix.
    HostBits {
        /// The same without them.
        network: IpNet,
    },
    /// It is a network of IPv4 in the notation of IPv6.
    Mapped {
        /// The same in its own notation.
        plain: IpNet,
    },
}

/// What is probably wrong. [`Display`](fmt::Display) is a sentence without its full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caution {
    /// Browsers refuse to connect to this port.
    BlockedPort {
        /// The port as clients see it.
        number: u16,
    },
    /// An upstream is a port of the gateway itself.
    OwnPort {
        /// Where the port stands.
        line: usize,
    },
    /// An Origin that every page can have may use cookies that pass to an upstream.
    NullWithCookies,
    /// All pages that may open a WebSocket are of https, and clients speak no TLS to a port of the route's.
    PlainForSecurePages {
        /// The port's label.
        port: String,
    },
    /// The pages of the host are of https, and clients speak no TLS to a port of the route's.
    PlainForSecureHost {
        /// The port's label.
        port: String,
        /// The Origin that tells so.
        origin: Origin,
        /// Where that is listed.
        line: usize,
    },
    /// A page of the gateway's own may not open what it opens, for the port that it came from.
    PortForgotten {
        /// The port's label.
        port: String,
        /// The page's Origin.
        origin: Origin,
    },
    /// Tokens may stand in URLs, which are written down in many places.
    TokenInQuery,
    /// A browser that offers a token as a subprotocol needs another one that is chosen.
    NoSubprotocolLeft,
    /// Keys are fetched without TLS.
    KeysInTheOpen,
    /// A trusted network is that of all addresses.
    EverybodyTrusted,
    /// No upstream of the route speaks TLS.
    TlsUnused,
    /// A certificate is not good any more.
    Expired {
        /// Since when.
        not_after: DateTime,
    },
    /// A certificate is not good yet.
    NotYetGood {
        /// Until when.
        not_before: DateTime,
    },
    /// Everybody on the machine may read a private key.
    KeyOpen {
        /// The permissions of its file.
        mode: u32,
    },
}

impl fmt::Display for Problem {
    #[expect(clippy::too_many_lines, reason = "a list, one line or two for each problem")]
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { message } => write!(out, "this is not TOML: {message}"),
            Self::UnknownKey { name, table, .. } => write!(out, "{table} has no key {name:?}"),
            Self::KeyNotYet => write!(out, "this version has no such key yet"),
            Self::ServiceNotYet { service } => write!(out, "this version has no service {service:?} yet"),
            Self::Missing { .. } => write!(out, "it is missing"),
            Self::WrongType { expected, found } => write!(out, "this is {found}, and has to be {expected}"),
            Self::OutOfRange { value, .. } => write!(out, "{value} is out of range"),
            Self::NotASize { value } => write!(out, "{value:?} is not a size"),
            Self::UnknownValue { value, .. } => write!(out, "there is no {value:?} here"),
            Self::BadAddress { value } => write!(out, "{value:?} is not an IP address"),
            Self::BadListen { value } => write!(out, "{value:?} is not an IP address with a port"),
            Self::BadHost { value, fault }
            | Self::BadPublicHost { value, fault }
            | Self::BadRedirectHost { value, fault } => {
                write!(out, "{value:?} is not a host: {fault}")
            }
            Self::BadPath { value, fault } => write!(out, "no request has the path {value:?}: {fault}"),
            Self::BadOrigin { value, fault } => write!(out, "{value:?} is not an Origin: {fault}"),
            Self::OriginsMixed { value } => write!(out, "{value:?} stands for itself, not in a list"),
            Self::CookiesForAnyOrigin => {
                out.write_str("cookies of visitors pass to the upstream, whatever page sends them there")
            }
            Self::NoUpstreamJudges { service } => {
                write!(out, "the service {:?} tells no upstream of Origins", service.label())
            }
            Self::OriginEdited => {
                out.write_str("the upstream is to judge Origins, and request_headers keeps them from it")
            }
            Self::BadSubprotocol { value } => write!(out, "{value:?} is not a subprotocol"),
            Self::BadName { value } => write!(out, "{value:?} is not a name"),
            Self::Secret(fault) => fault.fmt(out),
            Self::AdminOpen { listen } => {
                write!(out, "{listen} can be reached from other machines, and no token is set")
            }
            Self::EmptyList => write!(out, "an empty list lets nothing through"),
            Self::Repeated { value } => write!(out, "{value:?} stands in the list twice"),
            Self::NameTaken { name, line } => write!(out, "the name {name:?} is taken in line {line}"),
            Self::NameReserved { name } => {
                write!(out, "the name {name:?} is that of requests which no route took")
            }
            Self::PortTaken { number, line } => {
                write!(out, "port {number} at this address is taken in line {line}")
            }
            Self::PortNeedsName { number: 0 } => write!(out, "a port that the kernel chooses needs a name"),
            Self::PortNeedsName { number } => write!(out, "port {number} stands twice, and needs a name"),
            Self::NoSuchPort { port, .. } => {
                write!(out, "there is no [[port]] with the number or name {port:?}")
            }
            Self::RouteTaken { host, path, line } => {
                write!(out, "host {host:?} and path {path:?} are taken in line {line}, on the same port")
            }
            Self::PathReserved { path } => {
                write!(out, "{path:?} is in the tree that Ringway keeps for itself")
            }
            Self::PathTooLong { head_size, limit } => {
                write!(
                    out,
                    "a request for it has a head of {head_size} bytes at least, and {limit} are allowed"
                )
            }
            Self::BadUpstream { value, service, fault } => {
                write!(out, "{value:?} is not an upstream of {:?}: {fault}", service.label())
            }
            Self::BadServerName { value } => write!(out, "no certificate is for {value:?}"),
            Self::UpstreamPathKind { is_prefix_wanted: true } => {
                write!(out, "the route's path is a prefix, and this is one path")
            }
            Self::UpstreamPathKind { is_prefix_wanted: false } | Self::RedirectPathKind => {
                write!(out, "the route's path is one path, and this is a prefix")
            }
            Self::BadBalance { value } => write!(out, "there is no {value:?} here"),
            Self::BadTarget { value } => write!(out, "no request asks for {value:?}"),
            Self::CheckWithoutPath => write!(out, "a check of kind \"tcp\" asks for no path"),
            Self::TimeoutBeyondInterval { interval } => {
                write!(out, "a check could outlast its interval of {} ms", interval.as_millis())
            }
            Self::BadNetwork { value, fault } => match fault {
                NetworkFault::NotANetwork => write!(out, "{value:?} is not a network"),
                NetworkFault::HostBits { .. } => write!(out, "{value:?} has bits set behind its prefix"),
                NetworkFault::Mapped { .. } => {
                    write!(out, "{value:?} is a network of IPv4, and compared as one")
                }
            },
            Self::BadSource { address } => write!(out, "no connection comes from {address}"),
            Self::BadField { name, fault } => write!(out, "{name:?} cannot be edited: {fault}"),
            Self::BadFieldValue => write!(out, "this is not the value of a field"),
            Self::BadHostField { value } => write!(out, "no request names {value:?} as its host"),
            Self::RedirectToItself => write!(out, "it leads to where the request was"),
            Self::BadFolder { name, cause } => write!(out, "{name:?} cannot be served from: {cause}"),
            Self::BadFileName { name } => write!(out, "{name:?} is not the name of a file in the folder"),
            Self::BadRedirectStatus { status } => write!(out, "no redirect has the status {status}"),
            Self::TakesNoWebSocket => {
                out.write_str("it is about opening handshakes, and the route takes none")
            }
            Self::ExactlyOne { keys } => write!(out, "exactly one of {keys} has to stand here"),
            Self::OnlyWith { key } => write!(out, "it means nothing without {key}"),
            Self::BadKey { name, fault } => write!(out, "{name} is not the key that is wanted: {fault}"),
            Self::BadUrl { value } => write!(out, "{value:?} is not a URL of http or https"),
            Self::BadTokenPlace { value } => write!(out, "{value:?} is not a place where a token may stand"),
            Self::AlwaysWebSocket { service } => {
                write!(out, "the service {:?} answers opening handshakes alone", service.label())
            }
            Self::NotForService { service } => {
                write!(out, "the service {:?} has no use for it", service.label())
            }
            Self::Certificate { name, fault } => write!(out, "{name:?}: {fault}"),
            Self::TooMany { count, max, .. } => {
                write!(out, "there are {count}, and at most {max} are allowed")
            }
        }
    }
}

impl Problem {
    /// What to write instead, as whole sentences.
    pub fn help(&self) -> String {
        match self {
            Self::Syntax { .. } => {
                "Strings stand in quotes, and each key in a line of its own: key = \"value\".".into()
            }
            Self::UnknownKey { nearest: Some(nearest), .. }
            | Self::UnknownValue { nearest: Some(nearest), .. } => {
                format!("Did you mean {nearest:?}?")
            }
            Self::UnknownKey { homes, .. } if !homes.is_empty() => {
                format!("It belongs in {}.", homes.join(" or "))
            }
            Self::UnknownKey { table, keys, .. } => format!("The keys of {table} are {}.", keys.join(", ")),
            Self::KeyNotYet => "Remove it: it would have no effect.".into(),
            Self::ServiceNotYet { .. } => {
                let services: Vec<&str> = Service::ALL.iter().map(|service| service.label()).collect();
                format!("The services of this version are {}.", quoted(&services))
            }
            Self::Missing { example } => format!("Write, for example, {example}."),
            Self::WrongType { expected, .. } => format!("Write {expected}."),
            Self::OutOfRange { bounds, .. } => {
                let (min, max) = (number(bounds.unit, bounds.min), number(bounds.unit, bounds.max));
                let zero = bounds.zero.map(|zero| format!(", or 0 for {zero}")).unwrap_or_default();
                format!("Write {min} to {max}{zero}. {}", bounds.reason)
            }
            Self::NotASize { .. } => {
                "Write bytes, as in 65536, or a string such as \"64KiB\", \"16MiB\" or \"1MB\".".into()
            }
            Self::UnknownValue { valid, .. } => format!("Write one of {}.", quoted(valid)),
            Self::BadAddress { .. } => "Write, for example, \"::\", \"0.0.0.0\" or \"192.0.2.1\".".into(),
            Self::BadListen { .. } => {
                "Write, for example, \"127.0.0.1:9180\" or \"[::1]:9180\", or \"off\" for no admin endpoints."
                    .into()
            }
            Self::BadHost { .. } => {
                "Write, for example, \"chat.example.com\" or \"*.example.com\"; ports belong in `ports`."
                    .into()
            }
            Self::BadPublicHost { .. } => {
                "Write, for example, \"ws.example.com\"; its port belongs in `public_port`.".into()
            }
            Self::BadPath { .. } => {
                "Write, for example, \"/chat\" for one path, or \"/chat/*\" for all below it.".into()
            }
            Self::BadOrigin { .. } => {
                "Write, for example, [\"https://example.com\"], or \"same\".".into()
            }
            Self::OriginsMixed { value } => {
                format!("Write origins = {value:?}, or a list of exact Origins alone.")
            }
            Self::CookiesForAnyOrigin => {
                "Write \"same\" or a list of your pages' Origins; or request_headers = { remove = [\"Cookie\"] } \
                 beside it; or \"upstream\", where the upstream judges the Origin itself."
                    .into()
            }
            Self::NoUpstreamJudges { .. } => {
                "Write \"same\", a list of exact Origins, or \"any\" where every page may.".into()
            }
            Self::OriginEdited => {
                "Leave Origin as it came, or write \"same\" or a list of your pages' Origins.".into()
            }
            Self::BadSubprotocol { .. } => {
                "Write letters, digits and . - _ + alone, as in \"chat.v1\": it is a token of HTTP.".into()
            }
            Self::BadName { .. } => {
                "Write at most 64 letters, digits, dots, dashes and underscores, a letter among them.".into()
            }
            Self::Secret(SecretFault::Size { .. }) => {
                "A good one is made by: head -c 32 /dev/urandom | base64.".into()
            }
            Self::Secret(_) => "Write \"file:PATH\" or \"env:NAME\", where the secret is kept.".into(),
            Self::AdminOpen { .. } => {
                "Write token = \"file:PATH\" or \"env:NAME\", or listen on 127.0.0.1 or [::1].".into()
            }
            Self::EmptyList => "Remove the key for its default, or put in what is allowed.".into(),
            Self::Repeated { .. } => "Remove one of them.".into(),
            Self::NameTaken { .. } | Self::NameReserved { .. } => {
                "Write name = with another one: it is a label in metrics.".into()
            }
            Self::PortTaken { .. } => {
                "Remove one, or write another number or address; \"::\" covers every address.".into()
            }
            Self::PortNeedsName { .. } => {
                "Write, for example, name = \"public\": it is the label in metrics.".into()
            }
            Self::NoSuchPort { nearest: Some(nearest), .. } => format!("Did you mean {nearest:?}?"),
            Self::NoSuchPort { .. } => {
                "Write the number or, in quotes, the name of a port that has a [[port]].".into()
            }
            Self::RouteTaken { .. } => {
                "Their order decides nothing: change host, path or ports of one.".into()
            }
            Self::PathReserved { .. } => "Choose a path outside of /.well-known/ringway/.".into(),
            Self::PathTooLong { .. } => "Shorten it, or raise request_head_size_max of its ports.".into(),
            Self::BadUpstream { service, fault, .. } => upstream_help(*service, *fault).into(),
            Self::BadServerName { .. } => {
                "Write the name of a host or an address, such as \"chat.internal\" or \"192.0.2.1\".".into()
            }
            Self::UpstreamPathKind { is_prefix_wanted: true } => {
                "Write \"/v2/*\" to put that in place of the route's prefix, or \"/*\" to take it off.".into()
            }
            Self::UpstreamPathKind { is_prefix_wanted: false } => {
                "Write the one path that upstreams see, such as \"/v2/chat\".".into()
            }
            Self::BadBalance { .. } => {
                "Write \"round_robin\", \"least_connections\", \"address\", \"cookie:NAME\" or \"header:NAME\"."
                    .into()
            }
            Self::BadTarget { .. } => "Write, for example, \"/health\" or \"/health?from=ringway\".".into(),
            Self::CheckWithoutPath => "Remove it, or write kind = \"http\" or \"websocket\".".into(),
            Self::TimeoutBeyondInterval { interval } => {
                format!("Write at most {}, or a longer interval_ms.", interval.as_millis())
            }
            Self::BadNetwork { fault, .. } => match fault {
                NetworkFault::NotANetwork => {
                    "Write, for example, \"10.0.0.0/8\", \"2001:db8::/32\" or one address.".into()
                }
                NetworkFault::HostBits { network } => format!("Write \"{network}\", or the address alone."),
                NetworkFault::Mapped { plain } => format!("Write \"{plain}\"."),
            },
            Self::BadSource { .. } => "Write addresses of this machine, such as \"192.0.2.1\".".into(),
            Self::BadField { fault, .. } => match fault {
                FieldFault::NotAName => {
                    "Write letters, digits and - alone, as in \"X-Env\": it is a token of HTTP.".into()
                }
                FieldFault::OneConnection | FieldFault::Handshake => "Remove it.".into(),
                FieldFault::Forwarding => {
                    "Remove it, and write in `trusted` whose forwarding fields are believed.".into()
                }
                FieldFault::HostRemoved => "Set it, or leave it as it came.".into(),
            },
            Self::BadFieldValue => {
                "Write visible ASCII characters, with spaces only between them.".into()
            }
            Self::BadHostField { .. } => {
                "Write a host, with its port or without, such as \"app.internal\" or \"app.internal:8080\"."
                    .into()
            }
            Self::BadFolder { .. } => {
                "Write the path of a folder that is there; it begins at the directory of this file.".into()
            }
            Self::BadFileName { .. } => {
                "Write, for example, index = \"index.html\" or fallback = \"/index.html\".".into()
            }
            Self::RedirectToItself => "Write at least one of scheme, host, port and path.".into(),
            Self::BadRedirectHost { .. } => {
                "Write, for example, \"www.example.com\"; its port belongs in `port`.".into()
            }
            Self::RedirectPathKind => "Write the one path that clients are sent to, such as \"/new\".".into(),
            Self::BadRedirectStatus { .. } => "Write 301, 302, 307 or 308.".into(),
            Self::TakesNoWebSocket => "Add websocket = true, or remove it.".into(),
            Self::ExactlyOne { .. } => "Write one of them.".into(),
            Self::BadKey { fault: KeyFault::SecretTooShort, .. } => {
                "A good one is made by: head -c 48 /dev/urandom | base64.".into()
            }
            Self::BadKey { fault: KeyFault::Private, .. } => {
                "Write the public key, which is made of it by: openssl pkey -in KEY -pubout.".into()
            }
            Self::BadKey { .. } => {
                "Write \"file:PATH\" of a public key in PEM, of the kind that `algorithm` says.".into()
            }
            Self::BadUrl { .. } => "Write, for example, \"https://login.example.com/.well-known/jwks.json\".".into(),
            Self::BadTokenPlace { .. } => {
                "Write \"header\", \"cookie:NAME\", \"query:NAME\" or \"subprotocol:PREFIX\".".into()
            }
            Self::OnlyWith { .. } | Self::AlwaysWebSocket { .. } | Self::NotForService { .. } => "Remove it.".into(),
            Self::Certificate { fault, .. } => certificate_help(*fault).into(),
            Self::TooMany { reason, .. } => (*reason).into(),
        }
    }
}

impl fmt::Display for Caution {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockedPort { number } => write!(out, "browsers refuse to connect to port {number}"),
            Self::OwnPort { line } => {
                write!(out, "it is the [[port]] in line {line}: connections may go round without end")
            }
            Self::NullWithCookies => out.write_str(
                "any page can have this Origin, in a sandboxed frame, and cookies pass to the upstream",
            ),
            Self::PlainForSecurePages { port } => {
                write!(
                    out,
                    "only pages of https are let in, and clients speak no TLS to port {port}: \
                     browsers let no such page open ws://"
                )
            }
            Self::PlainForSecureHost { port, origin, line } => {
                write!(
                    out,
                    "{origin} in line {line} is of this host, and clients speak no TLS to port {port}: \
                     with HSTS browsers make wss:// of ws:// for every port of a host"
                )
            }
            Self::PortForgotten { port, origin } => {
                write!(
                    out,
                    "the page on port {port} is of {origin}, which the list leaves out beside another of its host: \
                     cookies ignore ports, Origins do not"
                )
            }
            Self::TokenInQuery => out.write_str("a token in a URL is written down by whoever logs that"),
            Self::NoSubprotocolLeft => {
                out.write_str("a browser that offers its token as a subprotocol is left without one")
            }
            Self::KeysInTheOpen => {
                out.write_str("keys come without TLS: whoever is on the way can be anybody")
            }
            Self::EverybodyTrusted => write!(out, "all addresses are trusted, whoever has them"),
            Self::TlsUnused => write!(out, "no upstream of this route speaks TLS"),
            Self::Expired { not_after } => write!(out, "the certificate has expired: {not_after}"),
            Self::NotYetGood { not_before } => write!(out, "the certificate is not good before {not_before}"),
            Self::KeyOpen { mode } => {
                write!(out, "everybody on this machine may read the key: its mode is {mode:o}")
            }
        }
    }
}

impl Caution {
    /// What to write instead, as whole sentences.
    pub fn help(&self) -> String {
        match self {
            Self::BlockedPort { .. } => format!(
                "Choose another port; it is on the Fetch standard's list of blocked ports, as of {}.",
                blocked_ports::AS_OF
            ),
            Self::OwnPort { .. } => "Write where the server itself listens.".into(),
            Self::NullWithCookies => {
                "Remove it, or write request_headers = { remove = [\"Cookie\"] }.".into()
            }
            Self::PlainForSecurePages { .. } | Self::PlainForSecureHost { .. } => {
                "Write `tls` for the port, or public_scheme = \"wss\" where TLS ends before it, or `ports` without it."
                    .into()
            }
            Self::PortForgotten { origin, .. } => {
                format!("Add \"{origin}\", or keep the page or this route off the port with `ports`.")
            }
            Self::TokenInQuery => {
                "Prefer \"subprotocol:PREFIX\" or \"cookie:NAME\", which browsers can send as well.".into()
            }
            Self::NoSubprotocolLeft => {
                "Write subprotocols = with one that is spoken here: browsers give up where none of theirs is chosen.".into()
            }
            Self::KeysInTheOpen => "Write https:// and jwks_ca.".into(),
            Self::EverybodyTrusted => {
                "Write the networks of the proxies that stand before Ringway: anybody can claim to be another.".into()
            }
            Self::TlsUnused => "Write \"wss://\" for those that do, or remove it.".into(),
            Self::Expired { .. } => "Clients refuse it: renew it.".into(),
            Self::NotYetGood { .. } => "Clients refuse it: set the clock, or wait.".into(),
            Self::KeyOpen { .. } => "Run chmod o-r on it: whoever has the key can be this server.".into(),
        }
    }
}

/// What to do about a file of certificates or keys.
fn certificate_help(fault: CertificateFault) -> &'static str {
    match fault {
        CertificateFault::Unreadable { .. } => {
            "Write the path of a file that the gateway may read, from the directory of this file on."
        }
        CertificateFault::TooLarge
        | CertificateFault::NotPem
        | CertificateFault::NoCertificate
        | CertificateFault::NotACertificate => {
            "Write the path of a file with \"-----BEGIN CERTIFICATE-----\", such as certbot's fullchain.pem."
        }
        CertificateFault::NoKey => {
            "Write the path of a file with \"-----BEGIN PRIVATE KEY-----\", such as certbot's privkey.pem."
        }
        CertificateFault::UnknownKey => {
            "Make the certificate anew with a key of one of these kinds, not encrypted."
        }
        CertificateFault::KeyMismatch => "Write the key that was made with the request for the certificate.",
    }
}

/// What to write in place of an upstream.
fn upstream_help(service: Service, fault: UpstreamFault) -> &'static str {
    match (fault, service) {
        (UpstreamFault::NotOnlyAnAddress, Service::WebSocket | Service::Http) => {
            "Write scheme, host and port alone: a path belongs in `upstream_path`, credentials in `request_headers`."
        }
        (UpstreamFault::NotOnlyAnAddress, _) => "Write scheme, host and port alone.",
        (UpstreamFault::SocketPath, Service::WebSocket) => "Write, for example, \"ws+unix:///run/app.sock\".",
        (UpstreamFault::SocketPath, Service::Http) => "Write, for example, \"http+unix:///run/app.sock\".",
        (UpstreamFault::SocketPath, _) => "Write, for example, \"unix:///run/app.sock\".",
        (_, Service::WebSocket) => {
            "Write, for example, \"ws://127.0.0.1:9001\" or \"ws+unix:///run/app.sock\"."
        }
        (_, Service::Http) => {
            "Write, for example, \"http://127.0.0.1:3000\" or \"http+unix:///run/app.sock\"."
        }
        _ => "Write, for example, \"tcp://127.0.0.1:6379\" or \"unix:///run/app.sock\".",
    }
}

fn write_located(
    out: &mut fmt::Formatter<'_>,
    place: Place,
    key: &str,
    sentence: &dyn fmt::Display,
) -> fmt::Result {
    write!(out, "{}:{}: ", place.line, place.column)?;
    if !key.is_empty() {
        write!(out, "{key}: ")?;
    }
    sentence.fmt(out)
}

/// `"a", "b" and "c"`.
fn quoted(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// A number as it is written in the file.
fn number(unit: Unit, value: u64) -> String {
    match unit {
        Unit::Bytes => format!("{:?}", size::format(value)),
        Unit::Milliseconds | Unit::Count => value.to_string(),
    }
}
