//! The configuration file as written: tables and values that know their place, read so that every fault is found.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::fault::{Caution, Fault, Place, Problem, Warning};
use super::{limits, size, upstream};

/// A table that the file may have, and the keys it may hold.
#[derive(Debug)]
pub(super) struct Schema {
    /// As it is headed in the file.
    pub(super) title: &'static str,
    /// In the order of the documentation.
    pub(super) keys: &'static [&'static str],
}

pub(super) const ROOT: Schema =
    Schema { title: "the file", keys: &["gateway", "admin", "limits", "port", "route"] };
pub(super) const GATEWAY: Schema =
    Schema { title: "[gateway]", keys: &["shards", "io_driver", "resolve_interval_ms", "memory_max"] };
pub(super) const ADMIN: Schema = Schema { title: "[admin]", keys: &["listen", "token"] };
pub(super) const LIMITS: Schema = Schema { title: "[limits]", keys: limits::KEYS };
pub(super) const PORT: Schema = Schema {
    title: "[[port]]",
    keys: &[
        "number",
        "address",
        "name",
        "tls",
        "public_scheme",
        "public_host",
        "public_port",
        "proxy_protocol",
        "allow",
        "deny",
        "limits",
    ],
};
pub(super) const PORT_TLS: Schema = Schema { title: "[port.tls]", keys: &["certificates", "versions"] };
pub(super) const CERTIFICATE: Schema =
    Schema { title: "[[port.tls.certificates]]", keys: &["certificate", "key"] };
pub(super) const PROXY_PROTOCOL: Schema = Schema { title: "[port.proxy_protocol]", keys: &["trusted"] };
pub(super) const PORT_LIMITS: Schema = Schema { title: "[port.limits]", keys: limits::KEYS };
pub(super) const ROUTE: Schema = Schema {
    title: "[[route]]",
    keys: &[
        "name",
        "host",
        "ports",
        "path",
        "service",
        "websocket",
        "origins",
        "subprotocols",
        "deflate",
        "auth",
        "allow",
        "deny",
        "rate_policy",
        "limits",
        "upstreams",
        "upstream_path",
        "upstream_limits",
        "upstream_tls",
        "balance",
        "health",
        "source_addresses",
        "request_headers",
        "response_headers",
        "trusted",
        "redirect",
        "folder",
        "index",
        "fallback",
        "precompressed",
        "cache_control",
        "hidden",
    ],
};
pub(super) const AUTH: Schema = Schema { title: "[route.auth]", keys: &["jwt", "forward"] };
pub(super) const AUTH_JWT: Schema = Schema {
    title: "[route.auth.jwt]",
    keys: &[
        "key",
        "algorithm",
        "jwks",
        "jwks_ca",
        "jwks_refresh_interval_ms",
        "from",
        "issuer",
        "audience",
        "leeway_ms",
        "claims",
        "headers",
        "expiry_close_code",
    ],
};
pub(super) const AUTH_FORWARD: Schema =
    Schema { title: "[route.auth.forward]", keys: &["url", "ca", "timeout_ms", "concurrent_max", "headers"] };
pub(super) const DEFLATE: Schema =
    Schema { title: "[route.deflate]", keys: &["mode", "level", "window_bits", "size_min"] };
pub(super) const UPSTREAM_LIMITS: Schema =
    Schema { title: "[route.upstream_limits]", keys: upstream::LIMIT_KEYS };
pub(super) const UPSTREAM_TLS: Schema = Schema { title: "[route.upstream_tls]", keys: &["ca", "name"] };
pub(super) const HEALTH: Schema = Schema {
    title: "[route.health]",
    keys: &["kind", "path", "interval_ms", "timeout_ms", "healthy_after", "unhealthy_after"],
};
pub(super) const REQUEST_HEADERS: Schema =
    Schema { title: "[route.request_headers]", keys: &["remove", "set"] };
pub(super) const RESPONSE_HEADERS: Schema =
    Schema { title: "[route.response_headers]", keys: &["remove", "set"] };
pub(super) const REDIRECT: Schema =
    Schema { title: "[route.redirect]", keys: &["scheme", "host", "port", "path", "status"] };
pub(super) const ROUTE_LIMITS: Schema = Schema { title: "[route.limits]", keys: limits::ROUTE_KEYS };

/// Every table of the file.
pub(super) const SCHEMAS: &[&Schema] = &[
    &ROOT,
    &GATEWAY,
    &ADMIN,
    &LIMITS,
    &PORT,
    &PORT_TLS,
    &CERTIFICATE,
    &PROXY_PROTOCOL,
    &PORT_LIMITS,
    &ROUTE,
    &ROUTE_LIMITS,
    &AUTH,
    &AUTH_JWT,
    &AUTH_FORWARD,
    &DEFLATE,
    &UPSTREAM_LIMITS,
    &UPSTREAM_TLS,
    &HEALTH,
    &REQUEST_HEADERS,
    &RESPONSE_HEADERS,
    &REDIRECT,
];

/// The keys that documentation of Ringway as a whole names and this version has no code for, by their table. To take
/// and ignore one would leave an operator without what it promises. Each leaves with the change that brings it.
const KEYS_NOT_YET: &[(&str, &[&str])] = &[("[gateway]", &["control_socket"])];
/// The services that this version has no code for, likewise.
pub(super) const SERVICES_NOT_YET: &[&str] = &["topics"];

/// The range of a number.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub(super) unit: Unit,
    /// The least value, apart from 0 where that means something.
    pub(super) min: u64,
    pub(super) max: u64,
    /// What 0 stands for, where it is allowed.
    pub(super) zero: Option<&'static str>,
    /// Why the range ends where it does, as a sentence.
    pub(super) reason: &'static str,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Milliseconds, an integer.
    Milliseconds,
    /// Bytes, an integer or a string such as `"16MiB"`.
    Bytes,
    /// A plain count.
    Count,
}

impl Bounds {
    /// Whether `value` is in the range.
    pub(super) fn allow(&self, value: u64) -> bool {
        (self.min..=self.max).contains(&value) || (value == 0 && self.zero.is_some())
    }
}

/// A value, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Item<'t> {
    /// The path of the key, such as `port[1].number`.
    pub(super) key: String,
    pub(super) span: Range<usize>,
    value: &'t DeValue<'t>,
}

/// A table, and where it stands. Its keys have been compared with its schema.
#[derive(Debug)]
pub(super) struct Section<'t> {
    pub(super) key: String,
    pub(super) span: Range<usize>,
    schema: &'static Schema,
    table: &'t DeTable<'t>,
}

impl<'t> Section<'t> {
    /// The value of `key`, which the schema knows.
    pub(super) fn get(&self, key: &str) -> Option<Item<'t>> {
        debug_assert!(self.schema.keys.contains(&key), "{key} is not in the schema of {}", self.schema.title);
        let value = self.table.get(key)?;
        Some(Item { key: join(&self.key, key), span: value.span(), value: value.get_ref() })
    }
}

/// Takes values from a file and collects what is wrong with them.
///
/// A method that returns `None` or less than there is has recorded why.
#[derive(Debug)]
pub(super) struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
    warnings: Vec<Warning>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, faults: Vec::new(), warnings: Vec::new() }
    }

    /// The whole file as a section.
    pub(super) fn root(&mut self, table: &'t DeTable<'t>) -> Section<'t> {
        self.section_of(table, String::new(), 0..0, &ROOT)
    }

    /// The table `key` of `parent`, if it is there.
    pub(super) fn section(
        &mut self,
        parent: &Section<'t>,
        key: &str,
        schema: &'static Schema,
    ) -> Option<Section<'t>> {
        let item = parent.get(key)?;
        match item.value {
            DeValue::Table(table) => Some(self.section_of(table, item.key, item.span, schema)),
            _ => self.wrong_type(&item, "a table"),
        }
    }

    /// The tables that stand under `key` of `parent`; `None` where the key is missing or no array of tables.
    pub(super) fn sections(
        &mut self,
        parent: &Section<'t>,
        key: &str,
        schema: &'static Schema,
    ) -> Option<Vec<Section<'t>>> {
        let item = parent.get(key)?;
        let items = self.items(&item, "an array of tables")?;
        let mut sections = Vec::with_capacity(items.len());
        for item in items {
            match item.value {
                DeValue::Table(table) => sections.push(self.section_of(table, item.key, item.span, schema)),
                _ => return self.wrong_type(&item, "a table"),
            }
        }
        Some(sections)
    }

    /// The elements of the array that `item` is.
    pub(super) fn items(&mut self, item: &Item<'t>, expected: &'static str) -> Option<Vec<Item<'t>>> {
        let DeValue::Array(array) = item.value else {
            return self.wrong_type(item, expected);
        };
        let elements = array.iter().enumerate().map(|(index, element)| Item {
            key: format!("{}[{index}]", item.key),
            span: element.span(),
            value: element.get_ref(),
        });
        Some(elements.collect())
    }

    /// The names, which are the operator's own, and the values of the table that `item` is.
    pub(super) fn entries(&mut self, item: &Item<'t>) -> Option<Vec<(&'t str, Item<'t>)>> {
        let DeValue::Table(table) = item.value else {
            return self.wrong_type(item, "a table");
        };
        let entries = table.iter().map(|(name, value)| {
            let name = name.get_ref().as_ref();
            (name, Item { key: join(&item.key, name), span: value.span(), value: value.get_ref() })
        });
        Some(entries.collect())
    }

    /// The string that `item` is.
    pub(super) fn string(&mut self, item: &Item<'t>) -> Option<&'t str> {
        match item.value {
            DeValue::String(text) => Some(text),
            _ => self.wrong_type(item, "a string"),
        }
    }

    /// The boolean that `item` is, or a fault.
    pub(super) fn boolean(&mut self, item: &Item<'t>) -> Option<bool> {
        match item.value {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong_type(item, "true or false"),
        }
    }

    /// Whether `item` is a boolean, for a key that may be something else.
    pub(super) const fn is_boolean(item: &Item<'t>) -> bool {
        matches!(item.value, DeValue::Boolean(_))
    }

    /// Whether `item` is a table, likewise.
    pub(super) const fn is_table(item: &Item<'t>) -> bool {
        matches!(item.value, DeValue::Table(_))
    }

    /// The string that `item` is, or `None`, with nothing recorded, where it is something else.
    pub(super) fn as_string(item: &Item<'t>) -> Option<&'t str> {
        match item.value {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number that `item` is, within `bounds`.
    pub(super) fn number(&mut self, item: &Item<'t>, bounds: Bounds) -> Option<u64> {
        let value = match (item.value, bounds.unit) {
            // What 64 bits without a sign do not hold is beyond every range.
            (DeValue::Integer(integer), _) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            (DeValue::String(text), Unit::Bytes) => match size::parse(text) {
                Some(value) => Some(value),
                None => {
                    return self.fault(item, Problem::NotASize { value: text.to_string() });
                }
            },
            (_, Unit::Bytes) => return self.wrong_type(item, "an integer or a string such as \"16MiB\""),
            (_, Unit::Milliseconds | Unit::Count) => return self.wrong_type(item, "an integer"),
        };
        match value.filter(|&value| bounds.allow(value)) {
            Some(value) => Some(value),
            None => self
                .fault(item, Problem::OutOfRange { value: self.text[item.span.clone()].to_owned(), bounds }),
        }
    }

    /// The member of `all` whose label is the string that `item` is.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        item: &Item<'t>,
        all: &[T],
        label: fn(T) -> &'static str,
    ) -> Option<T> {
        let text = self.string(item)?;
        if let Some(&member) = all.iter().find(|&&member| label(member) == text) {
            return Some(member);
        }
        let valid: Vec<&'static str> = all.iter().map(|&member| label(member)).collect();
        let nearest = nearest(text, &valid);
        self.fault(item, Problem::UnknownValue { value: text.to_owned(), valid, nearest })
    }

    /// Records that `key` of `section` is missing, and an example of it.
    pub(super) fn missing<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        example: &'static str,
    ) -> Option<T> {
        debug_assert!(
            section.schema.keys.contains(&key),
            "{key} is not in the schema of {}",
            section.schema.title
        );
        self.fault_at(section.span.clone(), join(&section.key, key), Problem::Missing { example })
    }

    /// Records `problem` of the value `item`.
    pub(super) fn fault<T>(&mut self, item: &Item<'t>, problem: Problem) -> Option<T> {
        self.fault_at(item.span.clone(), item.key.clone(), problem)
    }

    /// Records `problem` of `key` where `span` is. Returns what a caller has who has nothing else.
    pub(super) fn fault_at<T>(&mut self, span: Range<usize>, key: String, problem: Problem) -> Option<T> {
        let place = self.place(span);
        self.faults.push(Fault { place, key, problem });
        None
    }

    /// Records a `caution` about the value `item`.
    pub(super) fn warn(&mut self, item: &Item<'t>, caution: Caution) {
        let place = self.place(item.span.clone());
        self.warnings.push(Warning { place, key: item.key.clone(), caution });
    }

    /// The line that `span` begins in.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.place(span.clone()).line
    }

    /// The warnings, or the faults if there are any, in the order of the file.
    pub(super) fn finish(mut self) -> Result<Vec<Warning>, Vec<Fault>> {
        self.faults.sort_by_key(|fault| (fault.place.line, fault.place.column));
        self.warnings.sort_by_key(|warning| (warning.place.line, warning.place.column));
        if self.faults.is_empty() { Ok(self.warnings) } else { Err(self.faults) }
    }

    pub(super) fn wrong_type<T>(&mut self, item: &Item<'t>, expected: &'static str) -> Option<T> {
        let found = match item.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.fault(item, Problem::WrongType { expected, found })
    }

    /// `table` as a section, with a fault for each key that does not belong there.
    fn section_of(
        &mut self,
        table: &'t DeTable<'t>,
        key: String,
        span: Range<usize>,
        schema: &'static Schema,
    ) -> Section<'t> {
        for (name, value) in table {
            let name_span = name.span();
            let name = name.get_ref().as_ref();
            if schema.keys.contains(&name) {
                continue;
            }
            let not_yet =
                KEYS_NOT_YET.iter().any(|(title, keys)| *title == schema.title && keys.contains(&name));
            let problem = match value.get_ref() {
                _ if not_yet => Problem::KeyNotYet,
                _ => Problem::UnknownKey {
                    name: name.to_owned(),
                    table: schema.title,
                    keys: schema.keys,
                    nearest: nearest(name, schema.keys),
                    homes: SCHEMAS
                        .iter()
                        .filter(|home| home.keys.contains(&name))
                        .map(|home| home.title)
                        .collect(),
                },
            };
            self.fault_at::<()>(name_span, join(&key, name), problem);
        }
        Section { key, span, schema, table }
    }

    fn place(&self, span: Range<usize>) -> Place {
        place(self.text, span)
    }
}

/// The place of the bytes `span` of `text`.
pub(super) fn place(text: &str, span: Range<usize>) -> Place {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |index| index + 1);
    let marked = text.get(span).unwrap_or_default();
    Place {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        width: marked.lines().next().unwrap_or_default().chars().count().max(1),
    }
}

/// The one of `names` that `name` is most likely a misspelling of.
pub(super) fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let name = name.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, candidate);
    // A third of the letters wrong is the most that still looks like the same word.
    let is_near = |candidate: &&&str| distance(candidate) <= (candidate.chars().count() / 3).max(1);
    names.iter().filter(is_near).min_by_key(|candidate| distance(candidate)).copied()
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let text = "a = 1\né = \"ü\" # x\n";
        assert_eq!(place(text, 0..1), Place { line: 1, column: 1, width: 1 });
        let value = text.find('"').unwrap();
        assert_eq!(place(text, value..value + 4), Place { line: 2, column: 5, width: 3 });
        assert_eq!(place(text, text.len()..text.len()), Place { line: 3, column: 1, width: 1 });
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["number", "name", "address"];
        for (name, expected) in [
            ("nubmer", Some("number")),
            ("Number", Some("number")),
            ("nam", Some("name")),
            ("adress", Some("address")),
            ("port", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &names), expected, "{name}");
        }
    }

    #[test]
    fn no_key_is_both_there_and_yet_to_come() {
        for (title, keys) in KEYS_NOT_YET {
            let schema = SCHEMAS.iter().find(|schema| schema.title == *title).unwrap();
            for key in *keys {
                assert!(!schema.keys.contains(key), "{title} {key}");
            }
        }
    }
}
