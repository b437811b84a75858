//! What a `[[route]]` says that answers plain requests itself.

use std::path::Path;

use super::super::certificate::NamedFile;
use super::super::fault::Problem;
use super::super::file::{self, Bounds, Item, Reader, Section, Unit};
use super::super::pattern::{HostFault, HostPattern, PathPattern};
use super::super::upstream::is_value;
use super::super::web::{Coding, Files, Redirect, WebScheme};
use super::list;
use super::ports::{PUBLIC_PORT, port_number};
use super::routes::path;

/// The keys of a route that mean nothing but to `service = "files"`.
pub(super) const FILES_KEYS: &[&str] =
    &["folder", "index", "fallback", "precompressed", "cache_control", "hidden"];

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

/// What the route of `section` serves, the path of whose folder begins at `base`.
pub(super) fn files<'t>(reader: &mut Reader<'t>, section: &Section<'t>, base: &Path) -> Option<Files> {
    let folder = match section.get("folder") {
        Some(item) => folder(reader, &item, base),
        None => reader.missing(section, "folder", "folder = \"/var/www\""),
    };
    let index = match section.get("index") {
        Some(item) => file_name(reader, &item, |name| !name.contains('/')),
        None => Some(Files::INDEX.to_owned()),
    };
    let fallback = section.get("fallback").map(|item| file_name(reader, &item, |name| name.starts_with('/')));
    let precompressed = match section.get("precompressed") {
        Some(item) => codings(reader, &item),
        None => Some(Vec::new()),
    };
    let cache_control = section.get("cache_control").map(|item| {
        let value = reader.string(&item)?;
        if is_value(value) { Some(value.to_owned()) } else { reader.fault(&item, Problem::BadFieldValue) }
    });
    let hidden = match section.get("hidden") {
        Some(item) => reader.boolean(&item),
        None => Some(false),
    };
    Some(Files {
        folder: folder?,
        index: index?,
        fallback: whole(fallback)?,
        precompressed: precompressed?,
        cache_control: whole(cache_control)?,
        hidden: hidden?,
    })
}

fn folder<'t>(reader: &mut Reader<'t>, item: &Item<'t>, base: &Path) -> Option<NamedFile> {
    let folder = NamedFile::new(reader.string(item)?, base);
    let cause = match std::fs::metadata(&folder.path) {
        Ok(found) if found.is_dir() => return Some(folder),
        Ok(_) => "it is no folder".to_owned(),
        Err(error) => error.kind().to_string(),
    };
    reader.fault(item, Problem::BadFolder { name: folder.name, cause })
}

/// The name of a file in the folder, without segments that could be elsewhere.
fn file_name<'t>(reader: &mut Reader<'t>, item: &Item<'t>, is_good: impl Fn(&str) -> bool) -> Option<String> {
    let name = reader.string(item)?.to_owned();
    let mut segments = name.trim_start_matches('/').split('/');
    let is_name = segments.all(|segment| !matches!(segment, "" | "." | "..")) && !name.contains('\0');
    if is_name && is_good(&name) { Some(name) } else { reader.fault(item, Problem::BadFileName { name }) }
}

fn codings<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Vec<Coding>> {
    let mut codings = Vec::new();
    for item in list(reader, item, "a list of codings, such as [\"br\", \"gzip\"]")? {
        match reader.one_of(&item, Coding::ALL, Coding::label) {
            Some(coding) if codings.contains(&coding) => {
                reader.fault::<()>(&item, Problem::Repeated { value: coding.label().to_owned() });
            }
            Some(coding) => codings.push(coding),
            None => {}
        }
    }
    Some(codings)
}

/// What was written, unless it had a fault.
#[expect(clippy::option_option, reason = "what is not written is no fault")]
pub(super) fn whole<T>(written: Option<Option<T>>) -> Option<Option<T>> {
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
