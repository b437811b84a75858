//! `deflate` of a route.

use super::super::Service;
use super::super::deflate::{Deflate, DeflateMode};
use super::super::fault::Problem;
use super::super::file::{self, Bounds, Reader, Section, Unit};

const LEVEL: Bounds = Bounds {
    unit: Unit::Count,
    min: 1,
    max: 9,
    zero: None,
    reason: "From 1, the fastest, to 9, the smallest.",
};
const WINDOW_BITS: Bounds = Bounds {
    unit: Unit::Count,
    min: 9,
    max: 15,
    zero: None,
    reason: "A window has 512 bytes to 32 KiB (RFC 7692 section 7.1.2; zlib has none of 8 bits).",
};
const SIZE_MIN: Bounds = Bounds {
    unit: Unit::Bytes,
    min: 1,
    max: 1 << 30,
    zero: Some("every message is compressed"),
    reason: "It is compared with the size of a message.",
};

/// What the route of `section` says, be it that it is off, which has this service and takes opening handshakes or not.
pub(super) fn deflate<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    service: Service,
    websocket: bool,
) -> Option<Deflate> {
    let Some(item) = section.get("deflate") else { return Some(Deflate::new(DeflateMode::Off)) };
    if !matches!(service, Service::Echo | Service::WebSocket | Service::Http) {
        return reader.fault(&item, Problem::NotForService { service });
    }
    if !websocket {
        return reader.fault(&item, Problem::TakesNoWebSocket);
    }
    if Reader::is_boolean(&item) {
        let is_on = reader.boolean(&item)?;
        return Some(Deflate::new(if is_on { DeflateMode::Shared } else { DeflateMode::Off }));
    }
    if !Reader::is_table(&item) {
        return reader.wrong_type(&item, "true, false, or a table such as { mode = \"shared\" }");
    }
    let section = reader.section(section, "deflate", &file::DEFLATE)?;
    let mode = match section.get("mode") {
        Some(item) => reader.one_of(&item, DeflateMode::ALL, DeflateMode::label),
        None => reader.missing(&section, "mode", "mode = \"shared\""),
    };
    let mut number = |key, bounds| section.get(key).map(|item| reader.number(&item, bounds));
    let (level, window_bits) = (number("level", LEVEL), number("window_bits", WINDOW_BITS));
    let size_min = number("size_min", SIZE_MIN);
    let mode = mode?;
    let default = Deflate::new(mode);
    let small = |written: Option<Option<u64>>, default: u8| match written {
        Some(number) => number.map(|number| u8::try_from(number).expect("its bounds are those of a byte")),
        None => Some(default),
    };
    Some(Deflate {
        mode,
        level: small(level, default.level)?,
        window_bits: small(window_bits, default.window_bits)?,
        size_min: match size_min {
            Some(size) => usize::try_from(size?).expect("its bounds are those of a size"),
            None => default.size_min,
        },
    })
}
