//! From the text of a configuration to a `Config`, or to every fault in it.

mod auth;
mod deflate;
mod networks;
mod origins;
mod ports;
mod relay;
mod routes;
#[cfg(test)]
mod tests;
mod tls;
mod web;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::fault::{Fault, Problem, Warning};
use super::file::{self, Bounds, Item, Reader, Schema, Section, Unit};
use super::limits::{self, Limit, Limits, Overrides};
use super::{Admin, Config, Gateway, IoDriver, Secret};

const SHARDS: Bounds = Bounds {
    unit: Unit::Count,
    min: 1,
    max: Config::SHARDS_MAX as u64,
    zero: None,
    reason: "Without the key there is one for each available core.",
};

const RESOLVE_INTERVAL: Bounds = Bounds {
    min: 1000,
    reason: "It is given in milliseconds; a resolver is not asked more than once a second, and one day is the longest.",
    ..limits::TIMEOUT
};

const MEMORY_MAX: Bounds = Bounds {
    unit: Unit::Bytes,
    min: 16 << 20,
    max: 1 << 50,
    zero: Some("none"),
    reason: "Below 16MiB there is hardly room for anybody.",
};

/// See [`Config::from_toml`].
pub(super) fn check(text: &str, base: &Path) -> Result<(Config, Vec<Warning>), Vec<Fault>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What a file means that is not TOML can only be guessed, and guesses would hide the cause.
        return Err(syntax_faults(text, &errors));
    }
    let mut reader = Reader::new(text);
    let root = reader.root(document.get_ref());
    let gateway = gateway(&mut reader, &root);
    let admin = admin(&mut reader, &root, base);
    let limits = limits_of(&mut reader, &root, &file::LIMITS).apply(Limits::DEFAULT);
    let ports = ports::ports(&mut reader, &root, limits, base);
    let routes = routes::routes(&mut reader, &root, &ports, base);
    let warnings = reader.finish()?;
    let ports = ports.into_iter().map(|port| port.port.expect("a port without faults is whole")).collect();
    let config = Config { gateway, admin, limits, ports, routes, is_built_in: false };
    Ok((config, warnings))
}

/// The parser's errors, of which one a line is told: those after it are mostly its consequences.
fn syntax_faults(text: &str, errors: &[toml::de::Error]) -> Vec<Fault> {
    let mut faults: Vec<Fault> = errors
        .iter()
        .map(|error| Fault {
            place: file::place(text, error.span().unwrap_or(0..0)),
            key: String::new(),
            problem: Problem::Syntax { message: error.message().to_owned() },
        })
        .collect();
    faults.sort_by_key(|fault| (fault.place.line, fault.place.column));
    faults.dedup_by_key(|fault| fault.place.line);
    faults
}

fn gateway<'t>(reader: &mut Reader<'t>, root: &Section<'t>) -> Gateway {
    let mut gateway = Gateway {
        shards: None,
        io_driver: IoDriver::Auto,
        resolve_interval: Duration::from_secs(30),
        memory_max: None,
    };
    if let Some(section) = reader.section(root, "gateway", &file::GATEWAY) {
        if let Some(item) = section.get("shards") {
            let shards = reader.number(&item, SHARDS).and_then(|shards| usize::try_from(shards).ok());
            gateway.shards = shards.and_then(NonZeroUsize::new);
        }
        if let Some(item) = section.get("io_driver") {
            gateway.io_driver =
                reader.one_of(&item, IoDriver::ALL, IoDriver::label).unwrap_or(IoDriver::Auto);
        }
        if let Some(item) = section.get("resolve_interval_ms")
            && let Some(interval) = reader.number(&item, RESOLVE_INTERVAL)
        {
            gateway.resolve_interval = Duration::from_millis(interval);
        }
        if let Some(item) = section.get("memory_max")
            && let Some(max) = reader.number(&item, MEMORY_MAX)
        {
            gateway.memory_max = NonZeroU64::new(max);
        }
    }
    gateway
}

fn admin<'t>(reader: &mut Reader<'t>, root: &Section<'t>, base: &Path) -> Option<Admin> {
    let mut admin = Admin { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9180)), token: None };
    let Some(section) = reader.section(root, "admin", &file::ADMIN) else {
        return Some(admin);
    };
    let token = section.get("token");
    if let Some(item) = &token
        && let Some(reference) = reader.string(item)
    {
        match Secret::load(reference, base) {
            Ok(secret) => admin.token = Some(secret),
            Err(fault) => return reader.fault(item, Problem::Secret(fault)),
        }
    }
    if let Some(item) = section.get("listen")
        && let Some(listen) = reader.string(&item)
    {
        if listen == "off" {
            return None;
        }
        let Ok(address) = listen.parse::<SocketAddr>() else {
            let value = listen.to_owned();
            return reader.fault(&item, Problem::BadListen { value });
        };
        admin.listen = address;
        if token.is_none() && !address.ip().to_canonical().is_loopback() {
            return reader.fault(&item, Problem::AdminOpen { listen: address });
        }
    }
    Some(admin)
}

/// The limits that the table `limits` of `parent` sets.
fn limits_of<'t>(reader: &mut Reader<'t>, parent: &Section<'t>, schema: &'static Schema) -> Overrides {
    let mut overrides = Overrides::default();
    if let Some(section) = reader.section(parent, "limits", schema) {
        let settable = |limit: &&Limit| schema.keys.contains(&limit.key);
        for limit in limits::TABLE.iter().filter(settable) {
            if let Some(item) = section.get(limit.key)
                && let Some(value) = reader.number(&item, limit.bounds)
            {
                overrides.push(limit, value);
            }
        }
    }
    overrides
}

/// The elements of a list that holds at least one.
fn list<'t>(reader: &mut Reader<'t>, item: &Item<'t>, expected: &'static str) -> Option<Vec<Item<'t>>> {
    let items = reader.items(item, expected)?;
    if items.is_empty() { reader.fault(item, Problem::EmptyList) } else { Some(items) }
}

/// The name that `item` is, unless another of its kind has it; `taken` tells the line of that.
fn name<'t>(
    reader: &mut Reader<'t>,
    item: &Item<'t>,
    taken: impl Fn(&str) -> Option<usize>,
) -> Option<String> {
    let name = reader.string(item)?.to_owned();
    let is_name = name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && name.bytes().any(|byte| byte.is_ascii_alphabetic());
    if !is_name {
        return reader.fault(item, Problem::BadName { value: name });
    }
    match taken(&name) {
        Some(line) => reader.fault(item, Problem::NameTaken { name, line }),
        None => Some(name),
    }
}

/// Tables that stand in a file one after another.
struct Tables {
    key: &'static str,
    schema: &'static Schema,
    example: &'static str,
    /// At least one is needed, and so many are allowed.
    max: usize,
    /// Why no more are, as a sentence.
    reason: &'static str,
}

impl Tables {
    /// Those of the file.
    fn read<'t>(&self, reader: &mut Reader<'t>, root: &Section<'t>) -> Vec<Section<'t>> {
        let Self { key, schema, example, max, reason } = *self;
        let Some(item) = root.get(key) else {
            return reader.missing(root, key, example).unwrap_or_default();
        };
        let Some(mut sections) = reader.sections(root, key, schema) else {
            return Vec::new();
        };
        let count = sections.len();
        if count == 0 {
            reader.fault::<()>(&item, Problem::Missing { example });
        }
        if count > max {
            reader.fault::<()>(&item, Problem::TooMany { count, max, reason });
            sections.truncate(max);
        }
        sections
    }
}
