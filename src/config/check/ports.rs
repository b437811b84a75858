//! The `[[port]]` tables of a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::super::fault::{Caution, Problem};
use super::super::file::{self, Bounds, Item, Reader, Section, Unit};
use super::super::limits::Limits;
use super::super::pattern::{HostFault, HostPattern};
use super::super::{Port, Scheme, blocked_ports};
use super::networks::{access, networks};
use super::tls::tls;
use super::{Tables, limits_of, name};

const TABLES: Tables = Tables {
    key: "port",
    schema: &file::PORT,
    example: "[[port]] and in it number = 80",
    max: 256,
    reason: "Each port is a listener on each shard and a series in each metric.",
};

pub(super) const PORT_NUMBER: Bounds = Bounds {
    unit: Unit::Count,
    min: 1,
    max: 65_535,
    zero: Some("one that the kernel chooses"),
    reason: "A port is a number of 16 bits.",
};
pub(super) const PUBLIC_PORT: Bounds = Bounds { zero: None, ..PORT_NUMBER };

/// A `[[port]]` of the file.
pub(super) struct WrittenPort {
    pub(super) line: usize,
    /// What routes call it; `None` where that has a fault.
    pub(super) number: Option<u16>,
    pub(super) name: Option<String>,
    /// `None` where a fault was found, so that the ports after it keep their index.
    pub(super) port: Option<Port>,
}

/// The ports of the file, over whose limits they lay their own; paths begin at `base`.
pub(super) fn ports<'t>(
    reader: &mut Reader<'t>,
    root: &Section<'t>,
    limits: Limits,
    base: &Path,
) -> Vec<WrittenPort> {
    let sections = TABLES.read(reader, root);
    let mut ports: Vec<WrittenPort> = Vec::with_capacity(sections.len());
    for section in &sections {
        let port = port(reader, section, limits, base, &ports);
        ports.push(port);
    }
    // A number that stands twice needs a name wherever it stands, and zero stands for a different one each time.
    for (section, port) in sections.iter().zip(&ports) {
        let Some(number) = port.number else { continue };
        let is_shared = ports.iter().filter(|other| other.number == Some(number)).count() > 1;
        if (is_shared || number == 0) && section.get("name").is_none() {
            let item = section.get("number").expect("it has been read");
            reader.fault::<()>(&item, Problem::PortNeedsName { number });
        }
    }
    ports
}

fn port<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    limits: Limits,
    base: &Path,
    earlier: &[WrittenPort],
) -> WrittenPort {
    let overrides = limits_of(reader, section, &file::PORT_LIMITS);
    let name = section.get("name").and_then(|item| {
        let taken = |name: &str| {
            earlier.iter().find(|other| other.name.as_deref() == Some(name)).map(|other| other.line)
        };
        name(reader, &item, taken)
    });
    let address = section.get("address").and_then(|item| {
        let text = reader.string(&item)?;
        let Ok(address) = text.parse::<IpAddr>() else {
            let value = text.to_owned();
            return reader.fault(&item, Problem::BadAddress { value });
        };
        // What stands for both families by default stands for them written out, too.
        (address != Ipv6Addr::UNSPECIFIED).then_some(address)
    });
    let tls = tls(reader, section, base);
    let public_scheme = match section.get("public_scheme") {
        Some(item) => reader.one_of(&item, Scheme::ALL, Scheme::label),
        None => tls.is_some().then_some(Scheme::Wss),
    };
    let public_host = section.get("public_host").and_then(|item| public_host(reader, &item));
    let public_port = section.get("public_port").and_then(|item| port_number(reader, &item, PUBLIC_PORT));
    let proxy_protocol =
        reader.section(section, "proxy_protocol", &file::PROXY_PROTOCOL).and_then(|section| {
            match section.get("trusted") {
                Some(item) => networks(reader, &item),
                None => reader.missing(&section, "trusted", "trusted = [\"10.0.0.0/8\"]"),
            }
        });
    let access = access(reader, section);
    let number = match section.get("number") {
        Some(item) => port_number(reader, &item, PORT_NUMBER),
        None => reader.missing(section, "number", "number = 443"),
    };
    let mut written = WrittenPort { line: reader.line(&section.span), number, name, port: None };
    let Some(number) = number else { return written };
    if section.get("name").is_some() && written.name.is_none() {
        return written;
    }
    let item = section.get("number").expect("it has been read");
    let is_rival = |other: &&WrittenPort| {
        let other = other.port.as_ref();
        other.is_some_and(|other| other.number == number && addresses_overlap(address, other.address))
    };
    if number != 0
        && let Some(&WrittenPort { line, .. }) = earlier.iter().find(is_rival)
    {
        reader.fault::<()>(&item, Problem::PortTaken { number, line });
    }
    // What browsers refuse is the port that they see. The one that the kernel chooses for 0 is never a blocked one.
    let seen = section.get("public_port").unwrap_or(item);
    let seen_number = public_port.unwrap_or(number);
    if seen_number != 0 && blocked_ports::is_blocked(seen_number) {
        reader.warn(&seen, Caution::BlockedPort { number: seen_number });
    }
    let label = written.name.clone().unwrap_or_else(|| number.to_string());
    let limits = overrides.apply(limits);
    written.port = Some(Port {
        number,
        address,
        label,
        tls,
        public_scheme,
        public_host,
        public_port,
        proxy_protocol,
        access: access.unwrap_or_default(),
        limits,
    });
    written
}

pub(super) fn port_number<'t>(reader: &mut Reader<'t>, item: &Item<'t>, bounds: Bounds) -> Option<u16> {
    let number = reader.number(item, bounds)?;
    Some(u16::try_from(number).expect("the bounds of ports end at 65535"))
}

/// Whether one of two listeners of the same number would take the other's connections. `None` is `::`.
fn addresses_overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    let both_families = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let (one, other) =
        (one.unwrap_or(both_families).to_canonical(), other.unwrap_or(both_families).to_canonical());
    let covers = |wide: IpAddr, narrow: IpAddr| {
        wide == narrow || wide == both_families || (wide == Ipv4Addr::UNSPECIFIED && narrow.is_ipv4())
    };
    covers(one, other) || covers(other, one)
}

fn public_host<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<String> {
    let text = reader.string(item)?;
    let fault = match HostPattern::parse(text) {
        Ok(host @ HostPattern::Exact(_)) => return Some(host.to_string()),
        Ok(HostPattern::Any | HostPattern::Wildcard(_)) => HostFault::Star,
        Err(fault) => fault,
    };
    let value = text.to_owned();
    reader.fault(item, Problem::BadPublicHost { value, fault })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_where_one_covers_the_other() {
        let parse = |text: &str| (!text.is_empty()).then(|| text.parse::<IpAddr>().unwrap());
        for (one, other, expected) in [
            ("", "", true),
            ("", "127.0.0.1", true),
            ("", "::1", true),
            ("::", "0.0.0.0", true),
            ("0.0.0.0", "127.0.0.1", true),
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("0.0.0.0", "::1", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "::1", false),
        ] {
            assert_eq!(addresses_overlap(parse(one), parse(other)), expected, "{one} {other}");
            assert_eq!(addresses_overlap(parse(other), parse(one)), expected, "{other} {one}");
        }
    }
}
