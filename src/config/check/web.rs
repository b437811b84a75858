//! What a `[[route]]` says that answers plain requests itself.

use super::super::fault::Problem;
use super::super::file::{self, Bounds, Item, Reader, Section, Unit};
use super::super::pattern::{HostFault, HostPattern, PathPattern};
use super::super::web::{Redirect, WebScheme};
use super::ports::{PUBLIC_PORT, port_number};
use super::routes::path;

/// The keys of a route that mean nothing but to `service = "redirect"`.
pub(super) const REDIRECT_KEYS: &[&str] = &["redirect"];

const STATUS: Bounds = Bounds {
    unit: Unit::Count,
    min: 301,
    max: 308,
    zero: None,
    reason: "The statuses of a redirect are 301, 302, 307 and 308.",
};

/// Where the route of `section` sends clients, whose path is `route_path` where that has no fault.
pub(super) fn redirect<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    route_path: Option<&PathPattern>,
) -> Option<Redirect> {
    let Some(item) = section.get("redirect") else {
        return reader.missing(section, "redirect", "redirect = { scheme = \"https\" }");
    };
    let section = reader.section(section, "redirect", &file::REDIRECT)?;
    let scheme = section.get("scheme").map(|item| reader.one_of(&item, WebScheme::ALL, WebScheme::label));
    let host = section.get("host").map(|item| host(reader, &item));
    let port = section.get("port").map(|item| port_number(reader, &item, PUBLIC_PORT));
    let path = section.get("path").map(|item| new_path(reader, &item, route_path));
    let status = match section.get("status") {
        Some(item) => status(reader, &item),
        None => Some(Redirect::STATUS),
    };
    if scheme.is_none() && host.is_none() && port.is_none() && path.is_none() {
        return reader.fault(&item, Problem::RedirectToItself);
    }
    Some(Redirect {
        scheme: whole(scheme)?,
        host: whole(host)?,
        port: whole(port)?,
        path: whole(path)?,
        status: status?,
    })
}

/// What was written, unless it had a fault.
#[expect(clippy::option_option, reason = "what is not written is no fault")]
fn whole<T>(written: Option<Option<T>>) -> Option<Option<T>> {
    match written {
        Some(value) => value.map(Some),
        None => Some(None),
    }
}

fn host<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<String> {
    let value = reader.string(item)?.to_owned();
    let fault = match HostPattern::parse(&value) {
        Ok(host @ HostPattern::Exact(_)) => return Some(host.to_string()),
        Ok(HostPattern::Any | HostPattern::Wildcard(_)) => HostFault::Star,
        Err(fault) => fault,
    };
    reader.fault(item, Problem::BadRedirectHost { value, fault })
}

fn new_path<'t>(
    reader: &mut Reader<'t>,
    item: &Item<'t>,
    route_path: Option<&PathPattern>,
) -> Option<PathPattern> {
    match (path(reader, item)?, route_path) {
        (PathPattern::Prefix(_), Some(PathPattern::Exact(_))) => {
            reader.fault(item, Problem::RedirectPathKind)
        }
        (path, _) => Some(path),
    }
}

fn status<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<u16> {
    let number = reader.number(item, STATUS)?;
    match Redirect::STATUSES.into_iter().find(|&status| u64::from(status) == number) {
        Some(status) => Some(status),
        None => reader.fault(item, Problem::BadRedirectStatus { status: number }),
    }
}
