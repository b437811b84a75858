//! What a route's `host`, `ports` and `path` may say, and which requests each of them matches.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::path::{self, PathFault};

/// The hosts that a route answers for. Compared without regard to case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// Every host, and none.
    Any,
    /// `*.example.com`: every name below `example.com`, of one label more or several, but not `example.com` itself.
    /// Holds `.example.com`, in lower case.
    Wildcard(String),
    /// One name or address, canonical and in lower case.
    Exact(String),
}

impl HostPattern {
    /// Characters of a name at most (RFC 1035 section 2.3.4, without the length of the first label and the root's).
    pub const NAME_SIZE_MAX: usize = 253;

    /// Parses `*`, `*.` followed by a name, a name, or an address (IPv6 with or without brackets).
    ///
    /// # Errors
    /// The [`HostFault`] that a request's host could never match.
    pub fn parse(text: &str) -> Result<Self, HostFault> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(name) = text.strip_prefix("*.") {
            check_name(name)?;
            // With the shortest label before it it has to be a name, too.
            check_name(&format!("a.{name}"))?;
            return Ok(Self::Wildcard(format!(".{}", canonical_host(name).to_ascii_lowercase())));
        }
        let host = canonical_host(text);
        if host.parse::<Ipv6Addr>().is_err() {
            check_name(&host)?;
        }
        Ok(Self::Exact(host.to_ascii_lowercase()))
    }

    /// Whether `host` is one of these; it comes from [`canonical_host`].
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Wildcard(suffix) => {
                // The split is on a byte: a host may hold anything, and `host` is compared with ASCII alone.
                let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                host.len().checked_sub(suffix.len()).is_some_and(|label_size| {
                    let (labels, rest) = host.split_at(label_size);
                    // Without a label before the dot it is not a name below.
                    matches!(labels.last(), Some(&last) if last != b'.') && rest.eq_ignore_ascii_case(suffix)
                })
            }
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("*"),
            Self::Wildcard(suffix) => write!(formatter, "*{suffix}"),
            Self::Exact(name) if name.contains(':') => write!(formatter, "[{name}]"),
            Self::Exact(name) => formatter.write_str(name),
        }
    }
}

/// `host` in the one spelling that patterns know, but for its case: an IPv6 address without brackets and in the
/// shortest form, a name without the dot of the root.
pub fn canonical_host(host: &str) -> Cow<'_, str> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.contains(':') {
        return bare.parse::<Ipv6Addr>().map_or(Cow::Borrowed(host), |address| address.to_string().into());
    }
    Cow::Borrowed(host.strip_suffix('.').unwrap_or(host))
}

/// What keeps a text from being a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFault {
    /// Nothing there.
    Empty,
    /// A port or a scheme stands beside the host.
    NotOnlyAHost,
    /// A `*` elsewhere than as the whole first label of a route's host.
    Star,
    /// A letter outside ASCII, which on the wire is written as an A-label.
    NotAscii,
    /// A label that is empty, longer than 63 characters, or holds what no host name holds.
    Label,
    /// More than 253 characters, with a label in place of a `*`.
    TooLong,
    /// It ends in a number as an IPv4 address does, or stands in brackets as an IPv6 address does, and is none. No name
    /// ends so (RFC 3696 section 2).
    NotAnAddress,
}

impl fmt::Display for HostFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "it is empty",
            Self::NotOnlyAHost => "there is more than a host in it",
            Self::Star => "a * stands only for the whole first label of a route's host",
            Self::NotAscii => "on the wire such a name is written in ASCII, as xn--…",
            Self::Label => "it has a label that is empty, too long, or not of letters, digits, - and _",
            Self::TooLong => "it is longer than 253 characters",
            Self::NotAnAddress => "it looks like an address and is none",
        })
    }
}

/// Whether `name` is a host name or an IPv4 address (RFC 952 and 1123, and the underscore that is in use).
pub(super) fn check_name(name: &str) -> Result<(), HostFault> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(HostFault::Empty);
    }
    if !name.is_ascii() {
        return Err(HostFault::NotAscii);
    }
    if name.contains([':', '/', '@']) {
        return Err(HostFault::NotOnlyAHost);
    }
    if name.contains('*') {
        return Err(HostFault::Star);
    }
    if name.len() > HostPattern::NAME_SIZE_MAX {
        return Err(HostFault::TooLong);
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if !name.split('.').all(is_label) {
        return Err(HostFault::Label);
    }
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    if name.rsplit('.').next().is_some_and(is_number) && name.parse::<Ipv4Addr>().is_err() {
        return Err(HostFault::NotAnAddress);
    }
    Ok(())
}

/// The paths that a route answers for, in the canonical form of [`path::canonical`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// This path alone.
    Exact(Vec<u8>),
    /// `/chat/*`: `/chat/`, everything below it, and `/chat` itself. A tree that has a route of its own has its root
    /// in it, with or without the slash, or `/chat` would fall to the route of `/*` and reach what is guarded here.
    /// Holds `/chat`; for `/*`, nothing.
    Prefix(Vec<u8>),
}

impl PathPattern {
    /// Parses an absolute path, or one that ends in `/*`.
    ///
    /// # Errors
    /// The [`PathFault`] for which a request with this path would have no route; [`PathFault::NotAPath`] too where a
    /// `*` stands anywhere but at the end.
    pub fn parse(text: &str) -> Result<Self, PathFault> {
        let prefix = text.strip_suffix("/*");
        let path = prefix.unwrap_or(text);
        if path.contains('*') {
            return Err(PathFault::NotAPath);
        }
        match prefix {
            Some("") => Ok(Self::Prefix(Vec::new())),
            // With its slash, or "/chat//*" would pass for "/chat/*".
            Some(prefix) => {
                path::canonical(&format!("{prefix}/"))?;
                Ok(Self::Prefix(path::canonical(prefix)?.into_owned()))
            }
            None => Ok(Self::Exact(path::canonical(path)?.into_owned())),
        }
    }

    /// Whether `path` is one of these; it comes from [`path::canonical`].
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => match path.strip_prefix(prefix.as_slice()) {
                Some([first, ..]) => *first == b'/',
                Some([]) => true,
                None => false,
            },
        }
    }

    /// The path in `to` that `path` becomes, which is one of these, spelled as it came and without its query.
    ///
    /// What stands below a prefix keeps its spelling: "/chat/*" to "/v2/*" makes "/v2/%7Ex" of "/%63hat/%7Ex", and "/v2" of
    /// "/chat"; to "/*" it makes "/%7Ex" and "/". What becomes an exact path is that path.
    pub fn rewrite(&self, path: &str, to: &Self) -> String {
        let mut rewritten = to.stem();
        if let (Self::Prefix(from), Self::Prefix(_)) = (self, to) {
            let mut below = path.as_bytes();
            for _ in from {
                // An escape stands for one byte.
                let size = if below.first() == Some(&b'%') { 3 } else { 1 };
                below = below.get(size..).unwrap_or_default();
            }
            rewritten.push_str(&path[path.len() - below.len()..]);
            if rewritten.is_empty() {
                rewritten.push('/');
            }
        }
        rewritten
    }

    /// The exact path, or the prefix without its `/*`: all but plain characters escaped.
    fn stem(&self) -> String {
        let (Self::Exact(path) | Self::Prefix(path)) = self;
        let mut stem = String::with_capacity(path.len());
        for &byte in path {
            if byte.is_ascii_alphanumeric() || b"/-._~!$&'()+,;=:@".contains(&byte) {
                stem.push(char::from(byte));
            } else {
                write!(stem, "%{byte:02X}").expect("a string takes every write");
            }
        }
        stem
    }
}

impl fmt::Display for PathPattern {
    /// Writes the pattern so that [`PathPattern::parse`] reads it again.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.stem())?;
        match self {
            Self::Exact(_) => Ok(()),
            Self::Prefix(_) => formatter.write_str("/*"),
        }
    }
}

/// The ports that a route answers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSet {
    /// Every port.
    All,
    /// Those at these indices of [`super::Config::ports`], ascending, at least one.
    Only(Vec<usize>),
}

impl PortSet {
    /// Whether the port at `port_index` is one of them.
    pub fn contains(&self, port_index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Only(indices) => indices.contains(&port_index),
        }
    }

    /// Whether some port is in both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => true,
            (Self::Only(indices), other) => indices.iter().any(|&index| other.contains(index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap_or_else(|fault| panic!("{text}: {fault}"))
    }

    #[test]
    fn hosts_match_in_any_case_and_only_whole() {
        let cases = [
            ("*", "", true),
            ("*", "anything", true),
            ("example.com", "example.com", true),
            ("Example.COM", "eXample.com", true),
            ("example.com", "example.com.", true),
            ("example.com.", "example.com", true),
            ("example.com", "", false),
            ("example.com", "example.com.evil.net", false),
            ("example.com", "evilexample.com", false),
            ("example.com", "a.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "A.B.EXAMPLE.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "a..example.com", false),
            ("*.example.com", "evilexample.com", false),
            ("*.example.com", "a.example.com.evil.net", false),
            ("*.example.com", "é.example.com", true),
            ("*.example.com", "éxample.com", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.10", false),
            ("[2001:db8::1]", "[2001:DB8:0:0::1]", true),
            ("2001:db8::1", "[2001:db8::1]", true),
            ("[2001:db8::1]", "[2001:db8::2]", false),
        ];
        for (pattern, request, expected) in cases {
            assert_eq!(host(pattern).matches(&canonical_host(request)), expected, "{pattern} {request}");
        }
    }

    #[test]
    fn a_host_that_no_request_could_name_is_a_fault() {
        let long = format!("{}com", "a.".repeat(126));
        let long_below = format!("*.a{}", &long[4..]);
        let cases = [
            ("", HostFault::Empty),
            ("*.", HostFault::Empty),
            ("example.com:443", HostFault::NotOnlyAHost),
            ("https://example.com", HostFault::NotOnlyAHost),
            ("a.*.com", HostFault::Star),
            ("*example.com", HostFault::Star),
            ("*.*.com", HostFault::Star),
            ("bücher.example", HostFault::NotAscii),
            ("a..b", HostFault::Label),
            ("a b", HostFault::Label),
            ("[::1", HostFault::NotOnlyAHost),
            (&long, HostFault::TooLong),
            (&long_below, HostFault::TooLong),
            ("192.0.2.256", HostFault::NotAnAddress),
            ("192.0.02.1", HostFault::NotAnAddress),
            ("192.0.2", HostFault::NotAnAddress),
            ("*.192.0.2.1", HostFault::NotAnAddress),
        ];
        for (text, fault) in cases {
            assert_eq!(HostPattern::parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn paths_match_exactly_or_below_a_prefix() {
        let cases = [
            ("/", "/", true),
            ("/", "/x", false),
            ("/*", "/", true),
            ("/*", "/x/y", true),
            ("/chat", "/chat", true),
            ("/chat", "/chat/", false),
            ("/chat", "/Chat", false),
            ("/chat/", "/chat/", true),
            ("/chat/", "/chat", false),
            ("/chat/*", "/chat", true),
            ("/chat/*", "/chat/", true),
            ("/chat/*", "/chat/x/y", true),
            ("/chat/*", "/chats", false),
            ("/chat/*", "/cha", false),
            ("/caf%c3%a9", "/café", true),
        ];
        for (pattern, request, expected) in cases {
            let pattern = PathPattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(&path::canonical(request).unwrap()), expected, "{pattern} {request}");
        }
    }

    #[test]
    fn a_path_that_no_request_could_have_is_a_fault() {
        let cases = [
            ("", PathFault::NotAbsolute),
            ("*", PathFault::NotAPath),
            ("chat/*", PathFault::NotAbsolute),
            ("/chat*", PathFault::NotAPath),
            ("/*/x", PathFault::NotAPath),
            ("/*/*", PathFault::NotAPath),
            ("/chat?x=1", PathFault::NotAPath),
            ("//*", PathFault::EmptySegment),
            ("/chat//*", PathFault::EmptySegment),
            ("/../*", PathFault::DotSegment),
        ];
        for (text, fault) in cases {
            assert_eq!(PathPattern::parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn a_path_is_rewritten_below_its_prefix_in_its_own_spelling() {
        let cases = [
            ("/chat/*", "/v2/*", "/chat/x/y", "/v2/x/y"),
            ("/chat/*", "/v2/*", "/chat/", "/v2/"),
            ("/chat/*", "/v2/*", "/chat", "/v2"),
            ("/chat/*", "/v2/*", "/%63h%61t/%7Ex%41", "/v2/%7Ex%41"),
            ("/caf%C3%A9/*", "/caf%C3%A9s/*", "/café/é", "/caf%C3%A9s/é"),
            ("/chat/*", "/*", "/chat/x", "/x"),
            ("/chat/*", "/*", "/chat/", "/"),
            ("/chat/*", "/*", "/chat", "/"),
            ("/*", "/v2/*", "/", "/v2/"),
            ("/*", "/v2/*", "/chat", "/v2/chat"),
            ("/*", "/*", "/%63hat", "/%63hat"),
            ("/chat", "/v2", "/ch%61t", "/v2"),
            ("/chat", "/a%20b", "/chat", "/a%20b"),
        ];
        for (from, to, path, expected) in cases {
            let (from, to) = (PathPattern::parse(from).unwrap(), PathPattern::parse(to).unwrap());
            assert_eq!(from.rewrite(path, &to), expected, "{from} to {to}: {path}");
        }
    }

    #[test]
    fn patterns_are_read_as_they_are_written() {
        for text in ["/", "/*", "/chat", "/chat/*", "/a%20b/%25/*", "/caf%C3%A9", "/a%3Fb%2A"] {
            let pattern = PathPattern::parse(text).unwrap();
            assert_eq!(pattern.to_string(), text);
        }
        for text in ["*", "*.example.com", "example.com", "[2001:db8::1]", "192.0.2.1"] {
            assert_eq!(host(text).to_string(), text);
        }
    }
}
