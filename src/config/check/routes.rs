//! The `[[route]]` tables of a file.

use std::path::Path;

use super::super::deflate::DeflateMode;
use super::super::fault::Problem;
use super::super::file::{self, Item, Reader, Section};
use super::super::pattern::{HostPattern, PathPattern, PortSet};
use super::super::{Auth, NO_ROUTE, Origins, RatePolicy, Route, Service};
use super::networks::{access, networks};
use super::ports::{PORT_NUMBER, WrittenPort, port_number};
use super::{Tables, auth, deflate, limits_of, list, name, origins, relay, web};
use crate::protocol::http::list::is_token_byte;

const TABLES: Tables = Tables {
    key: "route",
    schema: &file::ROUTE,
    example: "[[route]] and in it path = \"/echo\" and service = \"echo\"",
    max: 1024,
    reason: "Each route is a series in metrics.",
};

/// The keys of a route that mean nothing where no opening handshake is answered.
const HANDSHAKE_KEYS: &[&str] = &["origins", "subprotocols"];

/// What Ringway keeps for itself on every port.
const RESERVED: &str = "/.well-known/ringway/*";

/// The smallest request head there is, but for its path.
const SMALLEST_REQUEST: &str = "GET  HTTP/1.0\r\n\r\n";
/// The smallest opening handshake (RFC 6455 section 4.1), but for its path.
const SMALLEST_OPENING: &str = "GET  HTTP/1.1\r\nHost:\r\nUpgrade:websocket\r\nConnection:upgrade\r\n\
                                Sec-WebSocket-Version:13\r\nSec-WebSocket-Key:AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// The routes of the file, whose paths begin at `base`.
pub(super) fn routes<'t>(
    reader: &mut Reader<'t>,
    root: &Section<'t>,
    ports: &[WrittenPort],
    base: &Path,
) -> Vec<Route> {
    let sections = TABLES.read(reader, root);
    // The routes so far, and the line of each.
    let mut routes: Vec<(usize, Route)> = Vec::with_capacity(sections.len());
    for section in &sections {
        if let Some(route) = route(reader, section, ports, base, &routes) {
            routes.push((reader.line(&section.span), route));
        }
    }
    let routes: Vec<Route> = routes.into_iter().map(|(_, route)| route).collect();
    // Beside a fault nobody is warned.
    if routes.len() == sections.len() {
        origins::warn(reader, &sections, &routes, ports);
    }
    routes
}

fn route<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    ports: &[WrittenPort],
    base: &Path,
    earlier: &[(usize, Route)],
) -> Option<Route> {
    let overrides = limits_of(reader, section, &file::ROUTE_LIMITS);
    let name_item = section.get("name");
    let taken = |name: &str| earlier.iter().find(|(_, other)| other.name == name).map(|(line, _)| *line);
    let name = name_item.as_ref().map(|item| match name(reader, item, taken)? {
        name if name == NO_ROUTE => reader.fault(item, Problem::NameReserved { name }),
        name => Some(name),
    });
    let host = match section.get("host") {
        Some(item) => host(reader, &item),
        None => Some(HostPattern::Any),
    };
    let path = match section.get("path") {
        Some(item) => path(reader, &item),
        None => reader.missing(section, "path", "path = \"/chat/*\""),
    };
    let port_set = match section.get("ports") {
        Some(item) => port_set(reader, &item, ports),
        None => Some(PortSet::All),
    };
    let service = match section.get("service") {
        Some(item) => service(reader, &item),
        None => reader.missing(section, "service", "service = \"echo\""),
    };
    let origins = match section.get("origins") {
        Some(item) => origins::origins(reader, &item),
        None => Some(Origins::Same),
    };
    let subprotocols = match section.get("subprotocols") {
        Some(item) => subprotocols(reader, &item),
        // Clients of byte streams ask for it (websockify, noVNC), or for none.
        None if service == Some(Service::Tcp) => Some(vec!["binary".to_owned()]),
        None => Some(Vec::new()),
    };
    if let Some(service) = service {
        let meaningless: &[&[&str]] = match service {
            Service::Echo => &[relay::KEYS],
            Service::Page | Service::Redirect | Service::Files => &[relay::KEYS, HANDSHAKE_KEYS],
            // What the upstream chooses is passed on.
            Service::WebSocket | Service::Http => &[&["subprotocols"]],
            Service::Tcp => &[relay::REQUEST_KEYS],
        };
        let of_others = [(Service::Redirect, web::REDIRECT_KEYS), (Service::Files, web::FILES_KEYS)];
        let of_others = of_others.into_iter().filter(|(other, _)| *other != service).map(|(_, keys)| keys);
        let keys = meaningless.iter().copied().chain(of_others).flatten();
        for item in keys.filter_map(|key| section.get(key)) {
            reader.fault::<()>(&item, Problem::NotForService { service });
        }
    }
    let websocket = service.and_then(|service| websocket(reader, section, service));
    if websocket == Some(false)
        && service == Some(Service::Http)
        && let Some(item) = section.get("origins")
    {
        reader.fault::<()>(&item, Problem::TakesNoWebSocket);
    }
    let deflate = match (service, websocket) {
        (Some(service), Some(websocket)) => deflate::deflate(reader, section, service, websocket),
        _ => None,
    };
    let auth = section.get("auth").map(|item| match (service, &subprotocols) {
        (Some(service), Some(subprotocols)) => {
            auth::auth(reader, section, &item, (service, subprotocols), base)
        }
        _ => None,
    });
    let relay = match service {
        Some(service) if service.is_relay() => {
            Some(relay::relay(reader, section, service, path.as_ref(), ports, base))
        }
        _ => None,
    };
    let trusted = match section.get("trusted") {
        Some(item) => networks(reader, &item),
        None => Some(Vec::new()),
    };
    if let (Some(service), Some(true), Some(origins)) = (service, websocket, &origins) {
        origins::check(reader, section, service, origins, relay.as_ref().and_then(Option::as_ref));
    }
    let files = match service {
        Some(Service::Files) => Some(web::files(reader, section, base)),
        _ => None,
    };
    let redirect = match service {
        Some(Service::Redirect) => Some(web::redirect(reader, section, path.as_ref())),
        _ => None,
    };

    let access = access(reader, section);
    let rate_policy = match section.get("rate_policy") {
        Some(item) => reader.one_of(&item, RatePolicy::ALL, RatePolicy::label),
        None => Some(RatePolicy::Close),
    };
    let (host, path, port_set, auth) = (host?, path?, port_set?, web::whole(auth)?);
    check_path(reader, section, &path, &port_set, service, ports)?;
    let is_rival =
        |other: &Route| other.host == host && other.path == path && other.ports.overlaps(&port_set);
    if let Some(&(line, _)) = earlier.iter().find(|(_, other)| is_rival(other)) {
        let (host, path) = (host.to_string(), path.to_string());
        let at = section.get("path").expect("it has been read");
        return reader.fault(&at, Problem::RouteTaken { host, path, line });
    }
    let name = if let Some(name) = name {
        name?
    } else {
        let derived = match &host {
            HostPattern::Any => path.to_string(),
            host => format!("{host}{path}"),
        };
        if let Some(line) = taken(&derived) {
            // The same host and path on other ports: only a name can tell them apart.
            let at = section.get("path").expect("it has been read");
            return reader.fault(&at, Problem::NameTaken { name: derived, line });
        }
        derived
    };
    Some(Route {
        name,
        host,
        ports: port_set,
        path,
        service: service?,
        origins: origins?,
        subprotocols: subprotocols?,
        websocket: websocket?,
        deflate: Some(deflate?).filter(|deflate| deflate.mode != DeflateMode::Off),
        relay: match relay {
            Some(relay) => Some(relay?),
            None => None,
        },
        files: match files {
            Some(files) => Some(files?),
            None => None,
        },
        redirect: match redirect {
            Some(redirect) => Some(redirect?),
            None => None,
        },
        withheld: auth.as_ref().map(Auth::withheld).unwrap_or_default(),
        auth,
        trusted: trusted?,
        access: access?,
        rate_policy: rate_policy?,
        overrides,
    })
}

/// Records why no request at these ports could ever have the path, if so.
fn check_path<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    path: &PathPattern,
    port_set: &PortSet,
    service: Option<Service>,
    ports: &[WrittenPort],
) -> Option<()> {
    let (PathPattern::Exact(shortest) | PathPattern::Prefix(shortest)) = path;
    let item = section.get("path").expect("it has been read");
    let reserved = PathPattern::parse(RESERVED).expect("it is a path");
    if reserved.matches(shortest) {
        return reader.fault(&item, Problem::PathReserved { path: path.to_string() });
    }
    let smallest =
        if service.is_some_and(Service::is_websocket) { SMALLEST_OPENING } else { SMALLEST_REQUEST };
    let head_size = smallest.len() + shortest.len();
    let here = ports.iter().enumerate().filter(|(index, _)| port_set.contains(*index));
    // A port that has a fault might have the room.
    let limits: Option<Vec<usize>> =
        here.map(|(_, port)| port.port.as_ref().map(|port| port.limits.request_head_size_max)).collect();
    match limits.and_then(|limits| limits.into_iter().max()) {
        Some(limit) if limit < head_size => reader.fault(&item, Problem::PathTooLong { head_size, limit }),
        _ => Some(()),
    }
}

fn host<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<HostPattern> {
    let value = reader.string(item)?.to_owned();
    match HostPattern::parse(&value) {
        Ok(host) => Some(host),
        Err(fault) => reader.fault(item, Problem::BadHost { value, fault }),
    }
}

pub(super) fn path<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<PathPattern> {
    let value = reader.string(item)?.to_owned();
    match PathPattern::parse(&value) {
        Ok(path) => Some(path),
        Err(fault) => reader.fault(item, Problem::BadPath { value, fault }),
    }
}

fn service<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Service> {
    let service = Reader::as_string(item).unwrap_or_default().to_owned();
    if file::SERVICES_NOT_YET.contains(&service.as_str()) {
        return reader.fault(item, Problem::ServiceNotYet { service });
    }
    reader.one_of(item, Service::ALL, Service::label)
}

/// Whether the route of `section`, which has this service, answers opening handshakes.
fn websocket<'t>(reader: &mut Reader<'t>, section: &Section<'t>, service: Service) -> Option<bool> {
    let Some(item) = section.get("websocket") else {
        return Some(service.is_websocket());
    };
    match (reader.boolean(&item)?, service) {
        (value, Service::Http) => Some(value),
        (true, service) if service.is_websocket() => Some(true),
        (false, service) if service.is_websocket() => {
            reader.fault(&item, Problem::AlwaysWebSocket { service })
        }
        (_, service) => reader.fault(&item, Problem::NotForService { service }),
    }
}

fn port_set<'t>(reader: &mut Reader<'t>, item: &Item<'t>, ports: &[WrittenPort]) -> Option<PortSet> {
    let items = list(reader, item, "a list of ports, such as [80, 443]")?;
    // A port whose number or name has a fault may be the one that is meant.
    let is_complete = ports.iter().all(|port| port.port.is_some());
    let mut indices = Vec::with_capacity(items.len());
    let mut is_whole = true;
    for item in &items {
        let name = Reader::as_string(item);
        let number = match name {
            Some(_) => None,
            None => port_number(reader, item, PORT_NUMBER),
        };
        let (meant, port) = match (name, number) {
            (Some(name), _) => (positions(ports, |port| port.name.as_deref() == Some(name)), name.to_owned()),
            (None, Some(number)) => {
                (positions(ports, |port| port.number == Some(number)), number.to_string())
            }
            (None, None) => {
                is_whole = false;
                continue;
            }
        };
        if meant.is_empty() {
            is_whole = false;
            if is_complete {
                let names: Vec<&str> = ports.iter().filter_map(|port| port.name.as_deref()).collect();
                let nearest = file::nearest(&port, &names).map(str::to_owned);
                reader.fault::<()>(item, Problem::NoSuchPort { port, nearest });
            }
        } else if meant.iter().any(|index| indices.contains(index)) {
            reader.fault::<()>(item, Problem::Repeated { value: port });
        }
        indices.extend(meant);
    }
    indices.sort_unstable();
    is_whole.then_some(PortSet::Only(indices))
}

/// The indices of the `ports` that are meant.
fn positions(ports: &[WrittenPort], is_meant: impl Fn(&WrittenPort) -> bool) -> Vec<usize> {
    ports.iter().enumerate().filter(|(_, port)| is_meant(port)).map(|(index, _)| index).collect()
}

fn subprotocols<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Vec<String>> {
    let mut subprotocols = Vec::new();
    for item in list(reader, item, "a list of subprotocols, such as [\"chat.v1\"]")? {
        let Some(text) = reader.string(&item) else {
            continue;
        };
        let value = text.to_owned();
        if value.is_empty() || !value.bytes().all(is_token_byte) {
            reader.fault::<()>(&item, Problem::BadSubprotocol { value });
        } else if subprotocols.contains(&value) {
            reader.fault::<()>(&item, Problem::Repeated { value });
        } else {
            subprotocols.push(value);
        }
    }
    Some(subprotocols)
}
