//! The Origin that a browser sends (RFC 6454), and its exact comparison with those that are allowed.

use std::fmt;

use super::request::Authority;

/// An Origin that is kept: in its one canonical spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `null`: a sandboxed frame, a file, a redirect across origins. Whoever allows it allows all of these.
    Null,
    /// Scheme, host and port.
    Tuple {
        /// In lower case.
        scheme: Box<str>,
        /// In lower case; an IPv6 address in brackets, spelled as RFC 5952 has it.
        host: Box<str>,
        /// The port, the default one where none was written; `None` for schemes without a default port.
        port: Option<u16>,
    },
}

/// An Origin as it stands in a field or follows from a port: nothing is copied.
///
/// Two are equal exactly when scheme, host and port are, the first two without case. IPv6 addresses compare as
/// addresses.
#[derive(Clone, Copy, Debug)]
pub enum OriginRef<'a> {
    /// `null`, see [`Origin::Null`].
    Null,
    /// Scheme, host and port.
    Tuple {
        /// Case as it came.
        scheme: &'a str,
        /// Case as it came; an IPv6 address in brackets.
        host: &'a str,
        /// The port, the default one where none was written; `None` for schemes without a default port.
        port: Option<u16>,
    },
}

/// Why a text is no Origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginFault {
    /// It holds bytes beyond ASCII. Names of other scripts stand in an Origin in their ASCII form, `xn--…`.
    NotAscii,
    /// It does not begin with a scheme and `://`.
    SchemeMissing,
    /// Its scheme is ws or wss. An Origin is that of the page, not of the WebSocket.
    WebSocketScheme,
    /// It has userinfo.
    Userinfo,
    /// Something follows the host and port, be it a single slash.
    Path,
    /// Its host has a wildcard. Origins are compared exactly.
    Wildcard,
    /// Its host and port are not those of an address.
    Authority,
}

impl Origin {
    /// Parses an Origin.
    ///
    /// Schemes other than http and https are taken as they are, because pages of browser extensions and of
    /// applications have them (`chrome-extension://…`, `capacitor://localhost`).
    ///
    /// # Errors
    /// [`OriginFault`].
    pub fn parse(text: &str) -> Result<Self, OriginFault> {
        OriginRef::parse(text.as_bytes()).map(OriginRef::to_origin)
    }

    /// The same Origin, borrowed.
    pub fn view(&self) -> OriginRef<'_> {
        match self {
            Self::Null => OriginRef::Null,
            Self::Tuple { scheme, host, port } => OriginRef::Tuple { scheme, host, port: *port },
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => formatter.write_str("null"),
            Self::Tuple { scheme, host, port } => match port {
                Some(port) if default_port(scheme) != Some(*port) => {
                    write!(formatter, "{scheme}://{host}:{port}")
                }
                _ => write!(formatter, "{scheme}://{host}"),
            },
        }
    }
}

impl<'a> OriginRef<'a> {
    /// Parses the value of an `Origin` field: one Origin, for a list of several is sent by nobody who means well.
    ///
    /// # Errors
    /// [`OriginFault`].
    pub fn parse(value: &'a [u8]) -> Result<Self, OriginFault> {
        if !value.is_ascii() {
            return Err(OriginFault::NotAscii);
        }
        let text = std::str::from_utf8(value).map_err(|_| OriginFault::NotAscii)?;
        if text == "null" {
            return Ok(Self::Null);
        }
        let (scheme, rest) = text.split_once("://").ok_or(OriginFault::SchemeMissing)?;
        if !is_scheme(scheme) {
            return Err(OriginFault::SchemeMissing);
        }
        if scheme.eq_ignore_ascii_case("ws") || scheme.eq_ignore_ascii_case("wss") {
            return Err(OriginFault::WebSocketScheme);
        }
        if rest.contains(['/', '?', '#', '\\']) {
            return Err(OriginFault::Path);
        }
        if rest.contains('@') {
            return Err(OriginFault::Userinfo);
        }
        if rest.contains('*') {
            return Err(OriginFault::Wildcard);
        }
        if rest.ends_with(':') {
            return Err(OriginFault::Authority);
        }
        let Authority { host, port } = Authority::parse(rest).ok_or(OriginFault::Authority)?;
        Ok(Self::Tuple { scheme, host, port: port.or(default_port(scheme)) })
    }
}

impl OriginRef<'_> {
    /// The same Origin, to be kept.
    pub fn to_origin(self) -> Origin {
        match self {
            Self::Null => Origin::Null,
            Self::Tuple { scheme, host, port } => Origin::Tuple {
                scheme: scheme.to_ascii_lowercase().into(),
                host: match ipv6_address(host) {
                    Some(address) => format!("[{address}]").into(),
                    None => host.to_ascii_lowercase().into(),
                },
                port,
            },
        }
    }
}

impl PartialEq for OriginRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (
                Self::Tuple { scheme, host, port },
                Self::Tuple { scheme: other_scheme, host: other_host, port: other_port },
            ) => {
                port == other_port
                    && scheme.eq_ignore_ascii_case(other_scheme)
                    && is_same_host(host, other_host)
            }
            _ => false,
        }
    }
}

impl Eq for OriginRef<'_> {}

impl OriginFault {
    /// What is wrong and what to write instead.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotAscii => "it holds characters beyond ASCII; write the host in its xn-- form",
            Self::SchemeMissing => "it does not begin with a scheme, as in https://example.com",
            Self::WebSocketScheme => {
                "an Origin is that of the page: write http:// for ws://, https:// for wss://"
            }
            Self::Userinfo => "it holds a user name; an Origin is scheme, host and port alone",
            Self::Path => "something follows the host; an Origin ends with it, without even a slash",
            Self::Wildcard => "Origins are compared exactly; list each",
            Self::Authority => "its host or port is not valid",
        }
    }
}

impl fmt::Display for OriginFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.sentence())
    }
}

impl std::error::Error for OriginFault {}

/// The port that a URL of this scheme has where it names none.
fn default_port(scheme: &str) -> Option<u16> {
    if scheme.eq_ignore_ascii_case("https") {
        Some(443)
    } else if scheme.eq_ignore_ascii_case("http") {
        Some(80)
    } else {
        None
    }
}

/// Whether this is a scheme (RFC 3986 section 3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

fn is_same_host(host: &str, other: &str) -> bool {
    host.eq_ignore_ascii_case(other)
        || ipv6_address(host).is_some_and(|address| ipv6_address(other) == Some(address))
}

/// The address of a host in brackets.
fn ipv6_address(host: &str) -> Option<core::net::Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(one: &str, other: &str) -> bool {
        let owned = Origin::parse(one).unwrap() == Origin::parse(other).unwrap();
        let borrowed =
            OriginRef::parse(one.as_bytes()).unwrap() == OriginRef::parse(other.as_bytes()).unwrap();
        assert_eq!(owned, borrowed, "{one} and {other}");
        let mixed = Origin::parse(one).unwrap().view() == OriginRef::parse(other.as_bytes()).unwrap();
        assert_eq!(owned, mixed, "{one} and {other}");
        owned
    }

    #[test]
    fn scheme_host_and_port_are_compared_all_three() {
        assert!(same("https://example.com", "https://example.com:443"));
        assert!(same("http://example.com", "HTTP://EXAMPLE.com:80"));
        assert!(!same("http://example.com", "https://example.com"));
        assert!(!same("http://example.com:443", "https://example.com:443"));
        assert!(!same("https://example.com", "https://example.com:8443"));
        assert!(!same("https://example.com", "https://www.example.com"));
    }

    #[test]
    fn suffix_tricks_are_other_origins() {
        for trick in [
            "https://example.com.evil.net",
            "https://evilexample.com",
            "https://example.com.",
            "https://example.co",
            "https://example.com-evil.net",
            "https://com",
        ] {
            assert!(!same("https://example.com", trick), "{trick}");
        }
    }

    #[test]
    fn null_is_an_origin_like_no_other_but_null() {
        assert_eq!(Origin::parse("null"), Ok(Origin::Null));
        assert!(same("null", "null"));
        assert!(!same("null", "http://null"));
        assert_eq!(Origin::parse("NULL"), Err(OriginFault::SchemeMissing));
        assert_eq!(Origin::parse(""), Err(OriginFault::SchemeMissing));
    }

    #[test]
    fn addresses_are_hosts() {
        assert!(same("http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080"));
        assert!(same("http://[2001:DB8::A]", "http://[2001:db8::a]:80"));
        assert!(!same("http://[::1]", "http://[::2]"));
        assert!(!same("http://127.0.0.1", "http://127.1"));
        assert_eq!(Origin::parse("http://[2001:DB8:0:0::1]").unwrap().to_string(), "http://[2001:db8::1]");
    }

    #[test]
    fn names_of_other_scripts_are_accepted_in_their_ascii_form_alone() {
        assert!(same("https://xn--bcher-kva.example", "https://XN--BCHER-KVA.example"));
        assert_eq!(Origin::parse("https://b\u{fc}cher.example"), Err(OriginFault::NotAscii));
        assert_eq!(OriginRef::parse(b"https://\xff.example").err(), Some(OriginFault::NotAscii));
        assert_eq!(Origin::parse("https://b%C3%BCcher.example"), Err(OriginFault::Authority));
    }

    #[test]
    fn extensions_and_applications_have_origins() {
        assert!(same("chrome-extension://abcdefgh", "chrome-extension://ABCDEFGH"));
        assert!(!same("capacitor://localhost", "http://localhost"));
        assert!(!same("capacitor://localhost", "capacitor://localhost:80"));
    }

    #[test]
    fn what_is_no_origin_is_refused_with_its_fault() {
        for (text, fault) in [
            ("example.com", OriginFault::SchemeMissing),
            ("//example.com", OriginFault::SchemeMissing),
            ("://example.com", OriginFault::SchemeMissing),
            ("1s://example.com", OriginFault::SchemeMissing),
            ("https:example.com", OriginFault::SchemeMissing),
            (" https://example.com", OriginFault::SchemeMissing),
            ("file://", OriginFault::Authority),
            ("ws://example.com", OriginFault::WebSocketScheme),
            ("WSS://example.com", OriginFault::WebSocketScheme),
            ("https://user@example.com", OriginFault::Userinfo),
            ("https://example.com@evil.net", OriginFault::Userinfo),
            ("https://example.com/", OriginFault::Path),
            ("https://example.com?a", OriginFault::Path),
            ("https://example.com#a", OriginFault::Path),
            ("https://example.com\\.evil.net", OriginFault::Path),
            ("https://a.example https://b.example", OriginFault::Path),
            ("https://*.example.com", OriginFault::Wildcard),
            ("https://", OriginFault::Authority),
            ("https://:443", OriginFault::Authority),
            ("https://example.com:", OriginFault::Authority),
            ("https://example.com:65536", OriginFault::Authority),
            ("https://example.com:https", OriginFault::Authority),
            ("https://exa mple.com", OriginFault::Authority),
            ("https://example.com\0", OriginFault::Authority),
            ("https://[::1", OriginFault::Authority),
        ] {
            assert_eq!(Origin::parse(text), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn an_origin_is_shown_as_it_is_sent() {
        for text in
            ["null", "https://example.com", "http://example.com:8080", "tauri://localhost", "app://a:80"]
        {
            assert_eq!(Origin::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Origin::parse("HTTPS://Example.COM:0443").unwrap().to_string(), "https://example.com");
    }
}
