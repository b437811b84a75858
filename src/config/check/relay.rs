//! What a `[[route]]` says of its upstreams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::super::certificate::NamedFile;
use super::super::fault::{Caution, Problem};
use super::super::file::{self, Bounds, Item, Reader, Schema, Section, Unit};
use super::super::limits::TIMEOUT;
use super::super::upstream::{
    Balance, FieldFault, HeaderEdits, Health, HealthKind, LIMITS, Relay, Upstream, UpstreamAddress,
    UpstreamLimits, UpstreamTls, is_value,
};
use super::super::{PathPattern, Port, Service};
use super::list;
use super::ports::WrittenPort;
use super::routes::path;
use crate::protocol::http::request::Authority;

/// The keys of a route that mean nothing where there is no upstream.
pub(super) const KEYS: &[&str] = &[
    "upstreams",
    "upstream_path",
    "upstream_limits",
    "upstream_tls",
    "balance",
    "health",
    "source_addresses",
    "request_headers",
    "response_headers",
];

/// The keys of a route that mean nothing where no request goes to the upstream, nor TLS.
pub(super) const REQUEST_KEYS: &[&str] =
    &["upstream_path", "upstream_tls", "request_headers", "response_headers"];

const UPSTREAM_COUNT_MAX: usize = 256;

/// How many fields a route may remove, and how many it may set.
const HEADER_EDIT_COUNT_MAX: usize = 64;

const HEALTH_INTERVAL: Bounds = Bounds {
    min: 100,
    reason: "It is given in milliseconds; more than ten checks a second would be load, and one day is the longest.",
    ..TIMEOUT
};
const HEALTH_COUNT: Bounds =
    Bounds { unit: Unit::Count, min: 1, max: 100, zero: None, reason: "It counts checks in a row." };

/// How the route of `section` relays, whose service does so and whose path is `route_path` where that has no fault.
pub(super) fn relay<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    service: Service,
    route_path: Option<&PathPattern>,
    ports: &[WrittenPort],
    base: &Path,
) -> Option<Relay> {
    let upstreams = match section.get("upstreams") {
        Some(item) => upstreams(reader, &item, service, ports),
        None => reader.missing(section, "upstreams", example(service)),
    };
    let tls = match &upstreams {
        Some(upstreams) if service.passes_requests() => tls(reader, section, upstreams, base),
        _ => Some(None),
    };
    let balance = match section.get("balance") {
        Some(item) => balance(reader, &item),
        None => Some(Balance::RoundRobin),
    };
    let health =
        reader.section(section, "health", &file::HEALTH).map(|health| self::health(reader, &health, service));
    let limits = upstream_limits(reader, section, service);
    let sources = match section.get("source_addresses") {
        Some(item) => sources(reader, &item),
        None => Some(Vec::new()),
    };
    let upstream_path = match section.get("upstream_path") {
        Some(item) if service.passes_requests() => Some(upstream_path(reader, &item, route_path)),
        _ => None,
    };
    let mut headers = |key, schema| match service {
        service if service.passes_requests() => header_edits(reader, section, key, schema),
        _ => HeaderEdits::default(),
    };
    let request_headers = headers("request_headers", &file::REQUEST_HEADERS);
    let response_headers = headers("response_headers", &file::RESPONSE_HEADERS);
    Some(Relay {
        upstreams: upstreams?,
        tls: tls?,
        balance: balance?,
        health: match health {
            Some(health) => Some(health?),
            None => None,
        },
        limits,
        sources: sources?,
        upstream_path: match upstream_path {
            Some(path) => Some(path?),
            None => None,
        },
        request_headers,
        response_headers,
    })
}

fn example(service: Service) -> &'static str {
    match service {
        Service::Tcp => "upstreams = [\"tcp://127.0.0.1:6379\"]",
        Service::Http => "upstreams = [\"http://127.0.0.1:3000\"]",
        Service::Echo | Service::Page | Service::Redirect | Service::Files | Service::WebSocket => {
            "upstreams = [\"ws://127.0.0.1:9001\"]"
        }
    }
}

fn upstreams<'t>(
    reader: &mut Reader<'t>,
    item: &Item<'t>,
    service: Service,
    ports: &[WrittenPort],
) -> Option<Vec<Upstream>> {
    let items = list(reader, item, "a list of upstreams, such as [\"ws://127.0.0.1:9001\"]")?;
    if items.len() > UPSTREAM_COUNT_MAX {
        let reason = "Each upstream is a series in metrics; a name may stand for many addresses.";
        return reader.fault(item, Problem::TooMany { count: items.len(), max: UPSTREAM_COUNT_MAX, reason });
    }
    let mut upstreams: Vec<Upstream> = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = reader.string(&item) else {
            continue;
        };
        let value = text.to_owned();
        let upstream = match Upstream::parse(service, text) {
            Ok(upstream) => upstream,
            Err(fault) => {
                reader.fault::<()>(&item, Problem::BadUpstream { value, service, fault });
                continue;
            }
        };
        if upstreams.iter().any(|other| other.address == upstream.address) {
            reader.fault::<()>(&item, Problem::Repeated { value });
            continue;
        }
        let is_own =
            |port: &&WrittenPort| port.port.as_ref().is_some_and(|port| leads_to(&upstream.address, port));
        if let Some(port) = ports.iter().find(is_own) {
            reader.warn(&item, Caution::OwnPort { line: port.line });
        }
        upstreams.push(upstream);
    }
    Some(upstreams)
}

/// Whether who connects to `address` reaches `port`, as far as it can be seen without asking the machine.
fn leads_to(address: &UpstreamAddress, port: &Port) -> bool {
    let (ip, number) = match address {
        UpstreamAddress::Socket(address) => (address.ip(), address.port()),
        UpstreamAddress::Name { host, port } if host.trim_end_matches('.') == "localhost" => {
            (IpAddr::V4(Ipv4Addr::LOCALHOST), *port)
        }
        UpstreamAddress::Name { .. } | UpstreamAddress::Unix(_) => return false,
    };
    // Who connects to no address in particular reaches this machine.
    let ip = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let is_heard = match port.address.map(|address| address.to_canonical()) {
        None => ip.is_loopback(),
        Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => ip.is_loopback() && ip.is_ipv4(),
        Some(address) => address == ip,
    };
    is_heard && number == port.number
}

/// What a route says of TLS to its upstreams, whose file begins at `base`. No authority is believed unless it was written:
/// whoever speaks for an upstream sees what all its clients send.
#[expect(clippy::option_option, reason = "there may be none, or a fault in it")]
fn tls<'t>(
    reader: &mut Reader<'t>,
    route: &Section<'t>,
    upstreams: &[Upstream],
    base: &Path,
) -> Option<Option<UpstreamTls>> {
    let is_spoken = upstreams.iter().any(|upstream| upstream.is_tls);
    let Some(section) = reader.section(route, "upstream_tls", &file::UPSTREAM_TLS) else {
        return match (is_spoken, route.get("upstream_tls")) {
            (true, None) => reader.missing(route, "upstream_tls", "upstream_tls = { ca = \"ca.pem\" }"),
            (false, None) => Some(None),
            (_, Some(_)) => None,
        };
    };
    if !is_spoken {
        let item = route.get("upstream_tls").expect("it has been read");
        reader.warn(&item, Caution::TlsUnused);
    }
    let name = section.get("name").map(|item| {
        let value = reader.string(&item)?.to_owned();
        match ServerName::try_from(value.clone()) {
            Ok(_) => Some(value),
            Err(_) => reader.fault(&item, Problem::BadServerName { value }),
        }
    });
    let Some(item) = section.get("ca") else {
        return reader.missing(&section, "ca", "ca = \"ca.pem\"");
    };
    let ca = NamedFile::new(reader.string(&item)?, base);
    let authorities = match ca.authorities() {
        Ok(authorities) => authorities,
        Err(fault) => return reader.fault(&item, Problem::Certificate { name: ca.name, fault }),
    };
    let name = match name {
        Some(name) => Some(name?),
        None => {
            // What resolvers take for a name may be none that a certificate can be for, such as one that ends in a hyphen.
            let is_bad = |host: &String| ServerName::try_from(host.as_str()).is_err();
            let mut hosts = upstreams.iter().filter(|upstream| upstream.is_tls).map(Upstream::host);
            if let Some(value) = hosts.find(is_bad) {
                let item = route.get("upstreams").expect("it has been read");
                return reader.fault(&item, Problem::BadServerName { value });
            }
            None
        }
    };
    Some(Some(UpstreamTls { ca, authorities, name }))
}

fn balance<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Balance> {
    let value = reader.string(item)?.to_owned();
    match Balance::parse(&value) {
        Some(balance) => Some(balance),
        None => reader.fault(item, Problem::BadBalance { value }),
    }
}

fn health<'t>(reader: &mut Reader<'t>, section: &Section<'t>, service: Service) -> Option<Health> {
    let mut duration = |key, bounds| {
        let item = section.get(key)?;
        let milliseconds = reader.number(&item, bounds)?;
        Some(Duration::from_millis(milliseconds))
    };
    let interval = duration("interval_ms", HEALTH_INTERVAL).unwrap_or(Health::INTERVAL);
    let timeout = duration("timeout_ms", TIMEOUT);
    if timeout.is_some_and(|timeout| timeout > interval) {
        let item = section.get("timeout_ms").expect("it has been read");
        reader.fault::<()>(&item, Problem::TimeoutBeyondInterval { interval });
    }
    let mut count = |key| {
        let item = section.get(key)?;
        let count = reader.number(&item, HEALTH_COUNT)?;
        NonZeroU32::new(u32::try_from(count).expect("the range ends at a hundred"))
    };
    let healthy_after = count("healthy_after").unwrap_or(Health::IN_A_ROW);
    let unhealthy_after = count("unhealthy_after").unwrap_or(Health::IN_A_ROW);
    let path = section.get("path").map(|item| target(reader, &item));
    let Some(item) = section.get("kind") else {
        return reader.missing(section, "kind", "kind = \"tcp\"");
    };
    let kind = reader.one_of(&item, HealthKind::LABELS, |label| label)?;
    if service == Service::Tcp && kind != "tcp" {
        return reader.fault(&item, Problem::NotForService { service });
    }
    let kind = match (kind, path) {
        ("tcp", None) => HealthKind::Tcp,
        ("tcp", Some(_)) => {
            let item = section.get("path").expect("it has been read");
            return reader.fault(&item, Problem::CheckWithoutPath);
        }
        ("http", path) => HealthKind::Http { path: path.unwrap_or_else(|| Some("/".to_owned()))? },
        (_, path) => HealthKind::WebSocket { path: path.unwrap_or_else(|| Some("/".to_owned()))? },
    };
    let timeout = timeout.unwrap_or(Health::TIMEOUT.min(interval));
    Some(Health { kind, interval, timeout, healthy_after, unhealthy_after })
}

/// The path and query that `item` is.
fn target<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<String> {
    let value = reader.string(item)?.to_owned();
    let is_target =
        value.starts_with('/') && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if is_target { Some(value) } else { reader.fault(item, Problem::BadTarget { value }) }
}

fn upstream_limits<'t>(reader: &mut Reader<'t>, parent: &Section<'t>, service: Service) -> UpstreamLimits {
    let mut limits = UpstreamLimits::DEFAULT;
    if let Some(section) = reader.section(parent, "upstream_limits", &file::UPSTREAM_LIMITS) {
        for limit in LIMITS {
            let Some(item) = section.get(limit.key) else { continue };
            if !limit.is_for(service) {
                reader.fault::<()>(&item, Problem::NotForService { service });
            } else if let Some(value) = reader.number(&item, limit.bounds) {
                (limit.set)(&mut limits, value);
            }
        }
    }
    limits
}

fn sources<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Vec<IpAddr>> {
    let mut sources = Vec::new();
    for item in list(reader, item, "a list of addresses of this machine, such as [\"192.0.2.1\"]")? {
        let Some(text) = reader.string(&item) else {
            continue;
        };
        let value = text.to_owned();
        let problem = match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if address.is_unspecified() || address.is_multicast() => {
                Problem::BadSource { address }
            }
            Ok(address) if sources.contains(&address) => Problem::Repeated { value },
            Ok(address) => {
                sources.push(address);
                continue;
            }
            Err(_) => Problem::BadAddress { value },
        };
        reader.fault::<()>(&item, problem);
    }
    Some(sources)
}

fn upstream_path<'t>(
    reader: &mut Reader<'t>,
    item: &Item<'t>,
    route_path: Option<&PathPattern>,
) -> Option<PathPattern> {
    let upstream_path = path(reader, item)?;
    let is_prefix = |path: &PathPattern| matches!(path, PathPattern::Prefix(_));
    match route_path {
        Some(route_path) if is_prefix(route_path) != is_prefix(&upstream_path) => {
            reader.fault(item, Problem::UpstreamPathKind { is_prefix_wanted: is_prefix(route_path) })
        }
        _ => Some(upstream_path),
    }
}

fn header_edits<'t>(
    reader: &mut Reader<'t>,
    parent: &Section<'t>,
    key: &str,
    schema: &'static Schema,
) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    let Some(section) = reader.section(parent, key, schema) else {
        return edits;
    };
    if let Some(item) = section.get("remove") {
        let items = list(reader, &item, "a list of names, such as [\"Cookie\"]").unwrap_or_default();
        for item in few_edits(reader, &item, items) {
            let Some(name) = reader.string(&item).map(str::to_owned) else {
                continue;
            };
            if let Err(fault) = FieldFault::check(&name, true) {
                reader.fault::<()>(&item, Problem::BadField { name, fault });
            } else if edits.remove.iter().any(|other| other.eq_ignore_ascii_case(&name)) {
                reader.fault::<()>(&item, Problem::Repeated { value: name });
            } else {
                edits.remove.push(name);
            }
        }
    }
    if let Some(item) = section.get("set") {
        let entries = reader.entries(&item).unwrap_or_default();
        for (name, item) in few_edits(reader, &item, entries) {
            let Some(value) = reader.string(&item) else {
                continue;
            };
            if let Err(fault) = FieldFault::check(name, false) {
                reader.fault::<()>(&item, Problem::BadField { name: name.to_owned(), fault });
            } else if edits.set.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                reader.fault::<()>(&item, Problem::Repeated { value: name.to_owned() });
            } else if !is_value(value) {
                reader.fault::<()>(&item, Problem::BadFieldValue);
            } else if name.eq_ignore_ascii_case("host") && Authority::parse(value).is_none() {
                reader.fault::<()>(&item, Problem::BadHostField { value: value.to_owned() });
            } else {
                edits.set.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    edits
}

/// The edits of `item`, of which there are few; none where there are more than a route may have.
fn few_edits<'t, E>(reader: &mut Reader<'t>, item: &Item<'t>, edits: Vec<E>) -> Vec<E> {
    if edits.len() <= HEADER_EDIT_COUNT_MAX {
        return edits;
    }
    let reason = "Each is compared with each field of a head.";
    let problem = Problem::TooMany { count: edits.len(), max: HEADER_EDIT_COUNT_MAX, reason };
    reader.fault::<()>(item, problem);
    Vec::new()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    #[test]
    fn an_upstream_on_a_port_of_this_gateway_is_warned_of() {
        let warnings = |address: &str, upstream: &str| {
            let text = format!(
                "[[port]]\nnumber = 8080\n{address}[[route]]\npath = \"/\"\nservice = \"websocket\"\n\
                 upstreams = [\"ws://{upstream}\"]\n"
            );
            let (_, warnings) = Config::from_toml(&text, Path::new("")).unwrap();
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let everywhere = "";
        let (every_v4, inside) = ("address = \"0.0.0.0\"\n", "address = \"192.0.2.1\"\n");
        for (address, upstream, is_own) in [
            (everywhere, "127.0.0.1:8080", true),
            (everywhere, "127.1.2.3:8080", true),
            (everywhere, "[::1]:8080", true),
            (everywhere, "[::ffff:127.0.0.1]:8080", true),
            (everywhere, "0.0.0.0:8080", true),
            (everywhere, "[::]:8080", true),
            (everywhere, "localhost:8080", true),
            (everywhere, "localhost:8081", false),
            (everywhere, "192.0.2.1:8080", false),
            (everywhere, "app:8080", false),
            (every_v4, "127.0.0.1:8080", true),
            (every_v4, "[::1]:8080", false),
            (inside, "192.0.2.1:8080", true),
            (inside, "127.0.0.1:8080", false),
        ] {
            let told = warnings(address, upstream);
            assert_eq!(told.len(), usize::from(is_own), "{address}{upstream}: {told:?}");
            assert!(
                told.iter().all(|told| told.contains("route[0].upstreams[0]: it is the [[port]] in line 1"))
            );
        }
    }
}
