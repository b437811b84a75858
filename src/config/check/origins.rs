//! Whose pages a route lets in, and what of that gives visitors' cookies away or cannot be meant.

use std::net::IpAddr;

use super::super::fault::{Caution, Problem};
use super::super::file::{self, Item, Reader, Section};
use super::super::pattern::{HostPattern, PathPattern, canonical_host};
use super::super::{Origins, PAGE_OPENS, Port, Relay, Route, Scheme, Service, path};
use super::list;
use super::ports::WrittenPort;
use crate::protocol::http::origin::{Origin, OriginFault, OriginRef};

const EXPECTED: &str = "\"any\", \"same\", \"upstream\", or a list of exact Origins";

/// The policies that are a word.
const WORDS: [(&str, Origins); 3] =
    [("any", Origins::Any), ("same", Origins::Same), ("upstream", Origins::Upstream)];

/// The policy that `item` is.
pub(super) fn origins<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Origins> {
    let word = |text: &str| WORDS.into_iter().find(|(word, _)| *word == text);
    if let Some(value) = Reader::as_string(item) {
        if let Some((_, origins)) = word(value) {
            return Some(origins);
        }
        if Origin::parse(value).is_err() {
            let (value, valid) = (value.to_owned(), WORDS.map(|(word, _)| word).to_vec());
            let nearest = file::nearest(&value, &valid);
            return reader.fault(item, Problem::UnknownValue { value, valid, nearest });
        }
    }
    let mut origins = Vec::new();
    for item in list(reader, item, EXPECTED)? {
        let Some(text) = reader.string(&item) else {
            continue;
        };
        let value = text.to_owned();
        let problem = match Origin::parse(text) {
            Ok(origin) if !can_be_sent(&origin) => {
                Problem::BadOrigin { value, fault: OriginFault::Authority }
            }
            Ok(origin) if !origins.contains(&origin) => {
                origins.push(origin);
                continue;
            }
            Ok(_) => Problem::Repeated { value },
            Err(_) if word(text).is_some() => Problem::OriginsMixed { value },
            Err(fault) => Problem::BadOrigin { value, fault },
        };
        reader.fault::<()>(&item, problem);
    }
    Some(Origins::Exact(origins))
}

/// Whether there are pages of this Origin: on the web their host is a name, or an address in the one spelling that browsers
/// give it.
fn can_be_sent(origin: &Origin) -> bool {
    let Origin::Tuple { scheme, host, port } = origin else { return true };
    !matches!(&**scheme, "http" | "https") || (HostPattern::parse(host).is_ok() && *port != Some(0))
}

/// Records where the policy of a route that takes opening handshakes gives visitors' cookies to every page, or leaves
/// Origins to an upstream that is not told of them.
///
/// `relay` is there where the route relays and nothing was wrong with that.
pub(super) fn check<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    service: Service,
    origins: &Origins,
    relay: Option<&Relay>,
) {
    let Some(item) = section.get("origins") else {
        return;
    };
    let asked = relay.filter(|_| service.passes_requests());
    let passes_cookies = asked.is_some_and(|relay| !is_edited(relay, "cookie"));
    match origins {
        Origins::Any if passes_cookies => {
            reader.fault::<()>(&item, Problem::CookiesForAnyOrigin);
        }
        Origins::Upstream if !service.passes_requests() => {
            reader.fault::<()>(&item, Problem::NoUpstreamJudges { service });
        }
        Origins::Upstream if asked.is_some_and(|relay| is_edited(relay, "origin")) => {
            reader.fault::<()>(&item, Problem::OriginEdited);
        }
        Origins::Exact(_) if passes_cookies => {
            let listed = reader.items(&item, EXPECTED).unwrap_or_default();
            if let Some(item) = listed.iter().find(|item| Reader::as_string(item) == Some("null")) {
                reader.warn(item, Caution::NullWithCookies);
            }
        }
        Origins::Any | Origins::Same | Origins::Exact(_) | Origins::Upstream => {}
    }
}

/// Whether what came in the field of this name does not pass: it is removed, or something else is set in its place.
fn is_edited(relay: &Relay, name: &str) -> bool {
    let edits = &relay.request_headers;
    let mut names = edits.remove.iter().chain(edits.set.iter().map(|(name, _)| name));
    names.any(|edited| edited.eq_ignore_ascii_case(name))
}

/// Warns where browsers keep pages from a WebSocket that they are let in to, and where a route leaves out a page of the
/// gateway's own.
///
/// `routes` are those of `sections`, all of them.
pub(super) fn warn<'t>(
    reader: &mut Reader<'t>,
    sections: &[Section<'t>],
    routes: &[Route],
    ports: &[WrittenPort],
) {
    let ports: Option<Vec<&Port>> = ports.iter().map(|port| port.port.as_ref()).collect();
    let Some(ports) = ports else { return };
    let on_port = |index: usize| routes.iter().filter(move |route| route.ports.contains(index));
    let ports: Vec<(&Port, Vec<&Route>)> =
        ports.into_iter().enumerate().map(|(index, port)| (port, on_port(index).collect())).collect();
    let listed = listed(reader, sections);
    for (section, route) in sections.iter().zip(routes).filter(|(_, route)| route.websocket) {
        let mut here = ports.iter().enumerate().filter(|(index, _)| route.ports.contains(*index));
        // What is wrong with one port is mostly wrong with the others: the first is told.
        let found = here.find_map(|(_, (port, routes))| {
            plain(route, port, &listed).or_else(|| forgotten(route, port, routes, &ports))
        });
        if let Some(caution) = found {
            let key = if matches!(caution, Caution::PlainForSecureHost { .. }) { "host" } else { "origins" };
            // A host that is not written here is the port's `public_host`.
            let item = section.get(key).or_else(|| section.get("path")).expect("every route has a path");
            reader.warn(&item, caution);
        }
    }
}

/// Every Origin in the lists of the file, and its line.
fn listed<'t>(reader: &mut Reader<'t>, sections: &[Section<'t>]) -> Vec<(Origin, usize)> {
    let mut listed = Vec::new();
    let lists = sections.iter().filter_map(|section| section.get("origins"));
    for list in lists.filter(|item| Reader::as_string(item).is_none()) {
        for item in reader.items(&list, EXPECTED).unwrap_or_default() {
            if let Some(Ok(origin)) = Reader::as_string(&item).map(Origin::parse) {
                listed.push((origin, reader.line(&item.span)));
            }
        }
    }
    listed
}

/// Why pages cannot open a WebSocket of this route on this port, if clients speak no TLS to it.
///
/// Browsers keep pages of https from opening ws:// (mixed content), but to their own machine; and where a host has told
/// them so (HSTS), they make wss:// of ws:// for each of its ports.
fn plain(route: &Route, port: &Port, listed: &[(Origin, usize)]) -> Option<Caution> {
    let host = named_host(route, port);
    let is_local = match (&host, port.address) {
        (Some(host), _) if is_loopback(host) => true,
        (_, Some(address)) if port.public_host.is_none() => address.to_canonical().is_loopback(),
        _ => false,
    };
    if port.public_scheme == Some(Scheme::Wss) || is_local {
        return None;
    }
    if let Origins::Exact(origins) = &route.origins
        && origins.iter().all(|origin| has_scheme(origin, "https"))
    {
        return Some(Caution::PlainForSecurePages { port: port.label.clone() });
    }
    let is_served = |host: &str| match (&port.public_host, &route.host) {
        (Some(public_host), _) => public_host == host,
        (None, HostPattern::Any) => false,
        (None, pattern) => pattern.matches(&canonical_host(host)),
    };
    listed.iter().find_map(|(origin, line)| {
        let Origin::Tuple { scheme, host, .. } = origin else { return None };
        // HSTS is for names alone (RFC 6797 section 8.1.1).
        let is_name = canonical_host(host).parse::<IpAddr>().is_err();
        let is_secure = **scheme == *"https" && is_name && is_served(host);
        // A host with pages of http, too, is none that has told browsers of HSTS.
        let has_plain =
            || listed.iter().any(|(other, _)| has_scheme(other, "http") && is_of_host(other, host));
        (is_secure && !has_plain()).then(|| Caution::PlainForSecureHost {
            port: port.label.clone(),
            origin: origin.clone(),
            line: *line,
        })
    })
}

/// Whether a page on this port opens a WebSocket of this route, and is not in the list, in which it would be on another
/// port. `routes` are all of this port, `ports` all there are.
///
/// The built-in page opens one place, on the port that it came from. What pages of a web server and of a folder open is
/// not known, but where the list has them for one port, the same pages come from their other ports, too.
fn forgotten(
    route: &Route,
    port: &Port,
    routes: &[&Route],
    ports: &[(&Port, Vec<&Route>)],
) -> Option<Caution> {
    let Origins::Exact(origins) = &route.origins else { return None };
    routes.iter().find_map(|page| {
        let host = named_host(route, port).or_else(|| named_host(page, port))?;
        let bare = canonical_host(&host);
        let origin = own_origin(port, &host)?;
        let is_listed_elsewhere = || {
            let is_there = |there: &[&Route]| there.iter().any(|other| std::ptr::eq(*other, *page));
            let mut others = ports.iter().filter(|(other, there)| {
                is_there(there) && other.public_host.as_ref().is_none_or(|public_host| *public_host == host)
            });
            others.any(|(other, _)| own_origin(other, &host).is_some_and(|own| origins.contains(&own)))
        };
        let is_meant = match page.service {
            Service::Page => {
                opened(routes, &host).is_some_and(|opened| std::ptr::eq(opened, route))
                    && origins.iter().any(|origin| is_of_host(origin, &host))
            }
            Service::Http | Service::Files => route.host.matches(&bare) && is_listed_elsewhere(),
            Service::Echo | Service::WebSocket | Service::Tcp | Service::Redirect => false,
        };
        (is_meant && page.host.matches(&bare) && !origins.contains(&origin))
            .then(|| Caution::PortForgotten { port: port.label.clone(), origin })
    })
}

/// The Origin of pages of this host that come from a port. Nobody can list what the kernel chooses for 0.
fn own_origin(port: &Port, host: &str) -> Option<Origin> {
    let number = port.public_port.unwrap_or(port.number);
    let scheme = if port.public_scheme == Some(Scheme::Wss) { "https" } else { "http" };
    (number != 0).then(|| OriginRef::Tuple { scheme, host, port: Some(number) }.to_origin())
}

/// The one of a port's routes that a built-in page opens, which came from this host.
fn opened<'r>(routes: &[&'r Route], host: &str) -> Option<&'r Route> {
    let (host, opened) = (canonical_host(host), path::canonical(PAGE_OPENS).expect("it is a path"));
    let fitting = routes.iter().filter(|route| route.host.matches(&host) && route.path.matches(&opened));
    let best = fitting.max_by_key(|route| {
        let host = match &route.host {
            HostPattern::Any => 0,
            HostPattern::Wildcard(suffix) => suffix.len(),
            HostPattern::Exact(_) => usize::MAX,
        };
        let path = match &route.path {
            PathPattern::Prefix(prefix) => prefix.len(),
            PathPattern::Exact(_) => usize::MAX,
        };
        (host, path)
    });
    best.copied()
}

/// The one host that clients of this route see on this port, as it stands in an Origin, where it is written.
fn named_host(route: &Route, port: &Port) -> Option<String> {
    match (&port.public_host, &route.host) {
        (Some(host), _) => Some(host.clone()),
        (None, host @ HostPattern::Exact(_)) => Some(host.to_string()),
        (None, HostPattern::Any | HostPattern::Wildcard(_)) => None,
    }
}

fn has_scheme(origin: &Origin, wanted: &str) -> bool {
    matches!(origin, Origin::Tuple { scheme, .. } if **scheme == *wanted)
}

fn is_of_host(origin: &Origin, wanted: &str) -> bool {
    matches!(origin, Origin::Tuple { host, .. } if **host == *wanted)
}

/// Whether browsers take a host for their own machine without asking anybody.
fn is_loopback(host: &str) -> bool {
    let address = canonical_host(host).parse::<IpAddr>();
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}
