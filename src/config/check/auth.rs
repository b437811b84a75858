//! `auth` of a route.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::RootCertStore;

use super::super::Service;
use super::super::auth::keys::{Algorithm, Keys};
use super::super::auth::{Auth, Forward, Jwt, KeySet, KeySetPlace, KeySource, TokenPlace};
use super::super::certificate::NamedFile;
use super::super::fault::{Caution, Problem};
use super::super::file::{self, Bounds, Item, Reader, Section, Unit};
use super::super::limits::TIMEOUT;
use super::super::secret;
use super::super::upstream::{
    Balance, FieldFault, HeaderEdits, Relay, Upstream, UpstreamAddress, UpstreamLimits, UpstreamTls,
};
use super::list;
use super::web::whole;
use crate::protocol::websocket::close::CloseCode;

/// How many claims are looked at, and how many fields are made of them.
const COUNT_MAX: usize = 32;

const REFRESH_INTERVAL: Bounds = Bounds {
    min: 1000,
    reason: "It is given in milliseconds; keys are not fetched more than once a second, and one day is the longest.",
    ..TIMEOUT
};
const LEEWAY: Bounds = Bounds {
    unit: Unit::Milliseconds,
    min: 1000,
    max: 600_000,
    zero: Some("none"),
    reason: "It is given in milliseconds, and counts in whole seconds; clocks that are ten minutes apart are to be set.",
};
const CLOSE_CODE: Bounds = Bounds {
    unit: Unit::Count,
    min: 1008,
    max: 4999,
    zero: None,
    reason: "Of these it is 1008, or one of 3000 to 4999, which applications may use (RFC 6455 section 7.4.2).",
};
const CONCURRENT: Bounds = Bounds {
    unit: Unit::Count,
    min: 1,
    max: 100_000,
    zero: None,
    reason: "Each question is a connection to the service.",
};

/// What `item`, the `auth` of the route of `section`, says; the route has this service and these subprotocols.
pub(super) fn auth<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    item: &Item<'t>,
    (service, subprotocols): (Service, &[String]),
    base: &Path,
) -> Option<Auth> {
    let section = reader.section(section, "auth", &file::AUTH)?;
    match (section.get("jwt"), section.get("forward")) {
        (Some(_), None) => {
            let section = reader.section(&section, "jwt", &file::AUTH_JWT)?;
            let jwt = jwt(reader, &section, base)?;
            let has_prefix = jwt.from.iter().any(|place| matches!(place, TokenPlace::Subprotocol(_)));
            if has_prefix && service == Service::Echo && subprotocols.is_empty() {
                reader.warn(item, Caution::NoSubprotocolLeft);
            }
            Some(Auth::Jwt(Box::new(jwt)))
        }
        (None, Some(_)) => {
            let section = reader.section(&section, "forward", &file::AUTH_FORWARD)?;
            forward(reader, &section, base).map(|forward| Auth::Forward(Box::new(forward)))
        }
        _ => reader.fault(item, Problem::ExactlyOne { keys: "jwt and forward" }),
    }
}

fn jwt<'t>(reader: &mut Reader<'t>, section: &Section<'t>, base: &Path) -> Option<Jwt> {
    let keys = match (section.get("key"), section.get("jwks")) {
        (Some(item), None) => key(reader, section, &item, base),
        (None, Some(item)) => key_set(reader, section, &item, base),
        _ => reader.fault_at(
            section.span.clone(),
            section.key.clone(),
            Problem::ExactlyOne { keys: "key and jwks" },
        ),
    };
    let from = match section.get("from") {
        Some(item) => places(reader, &item),
        None => Some(vec![Jwt::FROM]),
    };
    let issuer = section.get("issuer").map(|item| reader.string(&item).map(str::to_owned));
    let audience = match section.get("audience") {
        Some(item) => strings(reader, &item, "a list of names, such as [\"chat\"]"),
        None => Some(Vec::new()),
    };
    let leeway = match section.get("leeway_ms") {
        Some(item) => reader.number(&item, LEEWAY).map(Duration::from_millis),
        None => Some(Jwt::LEEWAY),
    };
    let claims = match section.get("claims") {
        Some(item) => pairs(reader, &item, |_, _, _| true),
        None => Some(Vec::new()),
    };
    let headers = match section.get("headers") {
        Some(item) => pairs(reader, &item, |reader, name, item| is_field(reader, name, item)),
        None => Some(Vec::new()),
    };
    let expiry_close_code = section.get("expiry_close_code").map(|item| close_code(reader, &item));
    Some(Jwt {
        keys: keys?,
        from: from?,
        issuer: whole(issuer)?,
        audience: audience?,
        leeway: leeway?,
        claims: claims?,
        headers: headers?,
        expiry_close_code: whole(expiry_close_code)?,
    })
}

/// The one key of `item`.
fn key<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    item: &Item<'t>,
    base: &Path,
) -> Option<KeySource> {
    let algorithm = match section.get("algorithm") {
        Some(item) => reader.one_of(&item, Algorithm::ALL, Algorithm::label),
        None => reader.missing(section, "algorithm", "algorithm = \"RS256\""),
    };
    if let Some(item) = section.get("jwks_refresh_interval_ms").or_else(|| section.get("jwks_ca")) {
        reader.fault::<()>(&item, Problem::OnlyWith { key: "jwks" });
    }
    let reference = reader.string(item)?;
    let (source, bytes) = match secret::read(reference, base) {
        Ok(read) => read,
        Err(fault) => return reader.fault(item, Problem::Secret(fault)),
    };
    let algorithm = algorithm?;
    match Keys::one(algorithm, &bytes) {
        Ok(keys) => Some(KeySource::Key { source, algorithm, keys: Arc::new(keys) }),
        Err(fault) => reader.fault(item, Problem::BadKey { name: source.to_string(), fault }),
    }
}

/// Where the set of keys of `item` is. What is in it is looked at when it is fetched.
fn key_set<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    item: &Item<'t>,
    base: &Path,
) -> Option<KeySource> {
    if let Some(item) = section.get("algorithm") {
        reader.fault::<()>(&item, Problem::OnlyWith { key: "key" });
    }
    let refresh_interval = match section.get("jwks_refresh_interval_ms") {
        Some(item) => reader.number(&item, REFRESH_INTERVAL).map(Duration::from_millis),
        None => Some(KeySet::REFRESH_INTERVAL),
    };
    let name = reader.string(item)?.to_owned();
    let place = match name.strip_prefix("file:") {
        Some(path) if !path.is_empty() => Some(KeySetPlace::File(NamedFile::new(path, base))),
        _ => {
            let (server, target) = url(reader, item, &name)?;
            let ca = authorities(reader, section, "jwks_ca", &server, base)?;
            if !server.is_tls && !is_loopback(&server) {
                reader.warn(item, Caution::KeysInTheOpen);
            }
            Some(KeySetPlace::Url { server, target, ca })
        }
    };
    Some(KeySource::Set(KeySet { name, place: place?, refresh_interval: refresh_interval? }))
}

fn forward<'t>(reader: &mut Reader<'t>, section: &Section<'t>, base: &Path) -> Option<Forward> {
    let Some(item) = section.get("url") else {
        return reader.missing(section, "url", "url = \"http://127.0.0.1:4181/verify\"");
    };
    let timeout = match section.get("timeout_ms") {
        Some(item) => reader.number(&item, TIMEOUT).map(Duration::from_millis),
        None => Some(Forward::TIMEOUT),
    };
    let concurrent_max = match section.get("concurrent_max") {
        Some(item) => reader.number(&item, CONCURRENT).and_then(|max| u32::try_from(max).ok()),
        None => Some(Forward::CONCURRENT_MAX),
    };
    let headers = match section.get("headers") {
        Some(item) => fields(reader, &item),
        None => Some(Vec::new()),
    };
    let url_text = reader.string(&item)?.to_owned();
    let (server, target) = url(reader, &item, &url_text)?;
    let ca = authorities(reader, section, "ca", &server, base)?;
    let timeout = timeout?;
    let limits = UpstreamLimits {
        connect_timeout: timeout,
        handshake_timeout: timeout,
        response_timeout: timeout,
        connections_max: NonZeroU32::new(concurrent_max?),
        ..UpstreamLimits::DEFAULT
    };
    let relay = Relay {
        upstreams: vec![server],
        balance: Balance::RoundRobin,
        tls: ca.map(|(ca, authorities)| UpstreamTls { ca, authorities, name: None }),
        health: None,
        limits,
        sources: Vec::new(),
        upstream_path: None,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    };
    Some(Forward { url: url_text, target, relay, headers: headers? })
}

/// The server of a URL, and its path and query.
fn url<'t>(reader: &mut Reader<'t>, item: &Item<'t>, text: &str) -> Option<(Upstream, String)> {
    let parsed = text.parse::<Uri>().ok().filter(|uri| uri.authority().is_some());
    let server = parsed.as_ref().and_then(|uri| {
        let address = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
        Upstream::parse(Service::Http, &address).ok()
    });
    match (server, parsed) {
        (Some(server), Some(uri)) => {
            let target = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
            Some((server, target))
        }
        _ => reader.fault(item, Problem::BadUrl { value: text.to_owned() }),
    }
}

/// The authorities that are believed, which have to be there exactly where the server speaks TLS.
#[expect(clippy::option_option, reason = "the outer one is whether there is a fault")]
fn authorities<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    key: &'static str,
    server: &Upstream,
    base: &Path,
) -> Option<Option<(NamedFile, Arc<RootCertStore>)>> {
    let Some(item) = section.get(key) else {
        return if server.is_tls {
            reader.missing(section, key, if key == "ca" { "ca = \"ca.pem\"" } else { "jwks_ca = \"ca.pem\"" })
        } else {
            Some(None)
        };
    };
    let ca = NamedFile::new(reader.string(&item)?, base);
    match ca.authorities() {
        Ok(authorities) => Some(Some((ca, authorities))),
        Err(fault) => reader.fault(&item, Problem::Certificate { name: ca.name, fault }),
    }
}

fn is_loopback(server: &Upstream) -> bool {
    match &server.address {
        UpstreamAddress::Socket(address) => address.ip().is_loopback(),
        UpstreamAddress::Name { host, .. } => host == "localhost",
        UpstreamAddress::Unix(_) => true,
    }
}

fn places<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Vec<TokenPlace>> {
    let mut places = Vec::new();
    for item in list(reader, item, "a list of places, such as [\"header\"]")? {
        let value = reader.string(&item)?.to_owned();
        let Some(place) = TokenPlace::parse(&value) else {
            return reader.fault(&item, Problem::BadTokenPlace { value });
        };
        if places.contains(&place) {
            return reader.fault(&item, Problem::Repeated { value });
        }
        if matches!(place, TokenPlace::Query(_)) {
            reader.warn(&item, Caution::TokenInQuery);
        }
        places.push(place);
    }
    Some(places)
}

fn strings<'t>(reader: &mut Reader<'t>, item: &Item<'t>, expected: &'static str) -> Option<Vec<String>> {
    list(reader, item, expected)?.iter().map(|item| reader.string(item).map(str::to_owned)).collect()
}

/// The names of fields.
fn fields<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for item in list(reader, item, "a list of names, such as [\"X-User\"]")? {
        let name = reader.string(&item)?.to_owned();
        if !is_field(reader, &name, &item) {
            return None;
        }
        if names.iter().any(|other| other.eq_ignore_ascii_case(&name)) {
            return reader.fault(&item, Problem::Repeated { value: name });
        }
        names.push(name);
    }
    Some(names)
}

/// Whether this is a field that may say who a client is; a fault where it is not.
fn is_field<'t>(reader: &mut Reader<'t>, name: &str, item: &Item<'t>) -> bool {
    let fault = match FieldFault::check(name, false) {
        // What is not an operator's to set, and what others are routed by.
        Ok(()) if name.eq_ignore_ascii_case("host") => FieldFault::Handshake,
        Ok(()) => return true,
        Err(fault) => fault,
    };
    reader.fault::<()>(item, Problem::BadField { name: name.to_owned(), fault });
    false
}

/// Names with a string each.
fn pairs<'t>(
    reader: &mut Reader<'t>,
    item: &Item<'t>,
    is_good: impl Fn(&mut Reader<'t>, &str, &Item<'t>) -> bool,
) -> Option<Vec<(String, String)>> {
    let entries = reader.entries(item)?;
    if entries.len() > COUNT_MAX {
        let reason = "Each is looked at in every request.";
        return reader.fault(item, Problem::TooMany { count: entries.len(), max: COUNT_MAX, reason });
    }
    let mut pairs = Vec::with_capacity(entries.len());
    for (name, item) in entries {
        let value = reader.string(&item)?.to_owned();
        if !is_good(reader, name, &item) {
            return None;
        }
        pairs.push((name.to_owned(), value));
    }
    Some(pairs)
}

fn close_code<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<CloseCode> {
    let number = reader.number(item, CLOSE_CODE)?;
    let code = u16::try_from(number).ok().and_then(CloseCode::new);
    match code.filter(|code| code.get() == 1008 || code.get() >= 3000) {
        Some(code) => Some(code),
        None => reader.fault(item, Problem::OutOfRange { value: number.to_string(), bounds: CLOSE_CODE }),
    }
}
