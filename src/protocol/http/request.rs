//! The head of a request, parsed where it lies and held to the rules that keep two readers from disagreeing.

use std::mem::MaybeUninit;

use super::{
    Field, list,
    refusal::{BadRequest, Refusal},
};

/// A version of HTTP that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How much body follows a request head (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// None: no framing field, or `Content-Length: 0`.
    None,
    /// This many bytes, at least 1.
    Length(u64),
    /// Chunks, ended by an empty one.
    Chunked,
}

/// The head of a request that keeps the rules of RFC 9112.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'h> {
    method: &'h str,
    target: Target<'h>,
    version: Version,
    fields: &'h [Field<'h>],
    authority: Option<Authority<'h>>,
    body: BodyFraming,
    connection: ConnectionOptions,
    /// True exactly when `Upgrade` lists websocket, whatever `Connection` and the version make of it.
    lists_websocket: bool,
}

/// The host and port of a `Host` field or of an absolute target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'h> {
    /// The name or address as it came, an IPv6 address in its brackets; empty where `Host` is empty.
    pub host: &'h str,
    /// The port, where one is given.
    pub port: Option<u16>,
}

/// A request target, cut at its first question mark.
#[derive(Clone, Copy, Debug)]
struct Target<'h> {
    /// A path that begins with a slash, or an asterisk.
    path: &'h str,
    /// What follows the question mark, where there is one.
    query: Option<&'h str>,
    /// The authority of an absolute target.
    authority: Option<Authority<'h>>,
}

/// What `Connection` lists (RFC 9110 section 7.6.1).
#[derive(Clone, Copy, Debug, Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl<'h> RequestHead<'h> {
    /// Parses a head whose end [`super::scan::HeadScan`] has found, empty line included.
    ///
    /// Nothing is copied: what is returned borrows from `head`, through the fields in `storage`.
    ///
    /// # Errors
    /// What [`Self::new`] refuses; [`Refusal::BadRequest`] where a line breaks the grammar,
    /// [`Refusal::TooManyFields`] where `storage` is too small, [`Refusal::HttpVersion`] for versions not served.
    pub fn parse<'b: 'h>(head: &'b [u8], storage: &'h mut [MaybeUninit<Field<'b>>]) -> Result<Self, Refusal> {
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(head, storage) {
            Ok(httparse::Status::Complete(size)) => {
                debug_assert_eq!(
                    size,
                    head.len(),
                    "the scan and the parser disagree about the end of a head"
                );
            }
            Ok(httparse::Status::Partial) => return Err(BadRequest::RequestLine.into()),
            Err(error) => return Err(refusal_of(error, head)),
        }
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version)
        else {
            return Err(BadRequest::RequestLine.into());
        };
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        Self::new(method, target, version, request.headers)
    }

    /// A head from parts that somebody else has parsed: tokens and values hold to the grammar of RFC 9110 already.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`] where target, `Host` or the framing of the body break a rule of RFC 9112 sections 3.2
    /// and 6; [`Refusal::TransferCodingNotImplemented`].
    pub fn new(
        method: &'h str,
        target: &'h str,
        version: Version,
        fields: &'h [Field<'h>],
    ) -> Result<Self, Refusal> {
        let target = Target::parse(method, target).ok_or(BadRequest::Target)?;
        let mut host = None;
        let mut content_length = None;
        let mut is_transfer_encoded = false;
        let mut connection = ConnectionOptions::default();
        let mut lists_websocket = false;
        for &Field { name, value } in fields {
            // The length tells most names apart, without a look at their letters.
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => {
                    if host.is_some() {
                        return Err(BadRequest::HostRepeated.into());
                    }
                    host = Some(Authority::parse_host_field(value).ok_or(BadRequest::HostInvalid)?);
                }
                7 if name.eq_ignore_ascii_case("upgrade") => {
                    lists_websocket |=
                        list::elements(value).any(|protocol| protocol.eq_ignore_ascii_case(b"websocket"));
                }
                10 if name.eq_ignore_ascii_case("connection") => connection.add(value),
                14 if name.eq_ignore_ascii_case("content-length") => {
                    // Also where both say the same: RFC 9112 section 6.3 would allow it, but nobody honest needs it.
                    if content_length.is_some() {
                        return Err(BadRequest::ContentLengthRepeated.into());
                    }
                    content_length = Some(number(value).ok_or(BadRequest::ContentLengthInvalid)?);
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => is_transfer_encoded = true,
                _ => {}
            }
        }
        if host.is_none() && version == Version::Http11 {
            return Err(BadRequest::HostMissing.into());
        }
        let body = match (is_transfer_encoded, content_length) {
            (false, None | Some(0)) => BodyFraming::None,
            (false, Some(size)) => BodyFraming::Length(size),
            (true, Some(_)) => return Err(BadRequest::TwoFramings.into()),
            (true, None) if version == Version::Http10 => {
                return Err(BadRequest::TransferEncodingInHttp10.into());
            }
            (true, None) => transfer_coding(fields)?,
        };
        Ok(Self {
            method,
            target,
            version,
            fields,
            // RFC 9112 section 3.2.2: an absolute target's authority replaces Host.
            authority: target.authority.or(host),
            body,
            connection,
            lists_websocket,
        })
    }

    /// The method, case as it came: `get` is not `GET` (RFC 9110 section 9.1).
    pub const fn method(&self) -> &'h str {
        self.method
    }

    /// Whether the answer has to leave its body out.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The version of HTTP.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The path: it begins with a slash, or is the asterisk of an OPTIONS request. Nothing in it is decoded.
    pub const fn path(&self) -> &'h str {
        self.target.path
    }

    /// What follows the question mark of the target, where there is one.
    pub const fn query(&self) -> Option<&'h str> {
        self.target.query
    }

    /// The host and port that the client asked for: of an absolute target, else of `Host`, which HTTP/1.0 may lack.
    pub const fn authority(&self) -> Option<Authority<'h>> {
        self.authority
    }

    /// The host that the client asked for, without the port, case as it came; empty where it named none.
    pub fn host(&self) -> &'h str {
        self.authority.map_or("", |authority| authority.host)
    }

    /// The body that follows.
    pub const fn body(&self) -> BodyFraming {
        self.body
    }

    /// Whether the client would send another request on this connection (RFC 9112 section 9.3).
    pub fn keeps_alive(&self) -> bool {
        !self.connection.close && (self.version == Version::Http11 || self.connection.keep_alive)
    }

    /// All fields, in the order they came.
    pub const fn fields(&self) -> &'h [Field<'h>] {
        self.fields
    }

    /// The values of the fields with this name.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        list::values(self.fields, name)
    }

    /// The elements of the list that all fields with this name make together.
    pub fn list(&self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        list::list(self.fields, name)
    }

    /// Whether `Upgrade` lists websocket. Whether it counts is for [`crate::protocol::websocket::handshake::judge`].
    pub(in crate::protocol) const fn lists_websocket(&self) -> bool {
        self.lists_websocket
    }

    /// Whether `Connection` lists upgrade.
    pub(in crate::protocol) const fn connection_lists_upgrade(&self) -> bool {
        self.connection.upgrade
    }
}

impl<'h> Authority<'h> {
    /// Parses `host` or `host:port`, where the port may be empty (RFC 3986 section 3.2).
    ///
    /// A host is an IPv6 address in brackets, or at least one of letters, digits, dot, hyphen and underscore: what
    /// names and IPv4 addresses are made of. Whatever else RFC 3986 admits (escapes, sub-delimiters, userinfo) no
    /// resolver takes, and two readers may take it for two hosts.
    pub fn parse(text: &'h str) -> Option<Self> {
        let host_size = match text.strip_prefix('[') {
            Some(rest) => rest.find(']')? + 2,
            None => text.bytes().position(|byte| byte == b':').unwrap_or(text.len()),
        };
        let (host, port) = text.split_at(host_size);
        let is_host_valid = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) => address.parse::<core::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(digits) => Some(u16::try_from(number(digits.as_bytes())?).ok()?),
        };
        is_host_valid.then_some(Self { host, port })
    }

    /// Parses the value of a `Host` field, which is empty where the target has no authority (RFC 9110 section 7.2).
    fn parse_host_field(value: &'h [u8]) -> Option<Self> {
        match value {
            [] => Some(Self { host: "", port: None }),
            _ => Self::parse(std::str::from_utf8(value).ok()?),
        }
    }
}

impl<'h> Target<'h> {
    /// Parses a target in origin form, absolute form or asterisk form (RFC 9112 section 3.2).
    ///
    /// The authority form belongs to CONNECT, which is not served. A fragment is never part of a target
    /// (RFC 6455 section 3), and bytes beyond ASCII have to be escaped.
    fn parse(method: &str, target: &'h str) -> Option<Self> {
        if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return None;
        }
        if target.starts_with('/') {
            return Some(Self::cut(target, None));
        }
        if target == "*" {
            return (method == "OPTIONS").then_some(Self { path: target, query: None, authority: None });
        }
        let (scheme, rest) = target.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        Some(Self::cut(path, Some(Authority::parse(authority)?)))
    }

    /// Cuts the query off the path; an absolute target may have no path, which means its root.
    fn cut(text: &'h str, authority: Option<Authority<'h>>) -> Self {
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        Self { path: if path.is_empty() { "/" } else { path }, query, authority }
    }
}

impl ConnectionOptions {
    fn add(&mut self, value: &[u8]) {
        for option in list::elements(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }
}

/// The framing that `Transfer-Encoding` asks for: chunked alone, or it is refused.
fn transfer_coding(fields: &[Field<'_>]) -> Result<BodyFraming, Refusal> {
    let (mut chunked_count, mut other_count, mut is_chunked_last) = (0, 0, false);
    for coding in list::list(fields, "transfer-encoding") {
        is_chunked_last = coding.eq_ignore_ascii_case(b"chunked");
        if is_chunked_last {
            chunked_count += 1;
        } else {
            other_count += 1;
        }
    }
    match (chunked_count, is_chunked_last, other_count) {
        (1, true, 0) => Ok(BodyFraming::Chunked),
        (1, true, _) => Err(Refusal::TransferCodingNotImplemented),
        // RFC 9112 section 6.3: where chunked is not the last coding, the size of the body cannot be known.
        _ => Err(BadRequest::TransferEncodingInvalid.into()),
    }
}

/// A number of digits alone: no sign, no space, no overflow.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |number, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

/// The refusal that a fault of the parser stands for.
fn refusal_of(error: httparse::Error, head: &[u8]) -> Refusal {
    let reason = match error {
        httparse::Error::TooManyHeaders => return Refusal::TooManyFields,
        httparse::Error::Version if names_another_version(head) => return Refusal::HttpVersion,
        httparse::Error::HeaderName if has_space_before_colon(head) => BadRequest::SpaceBeforeColon,
        httparse::Error::HeaderName => BadRequest::FieldName,
        httparse::Error::HeaderValue => BadRequest::FieldValue,
        httparse::Error::Token
        | httparse::Error::Version
        | httparse::Error::NewLine
        | httparse::Error::Status => BadRequest::RequestLine,
    };
    reason.into()
}

/// Whether the request line ends in a version of HTTP, of which it then is one that is not served.
fn names_another_version(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    match (words.next(), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None) => {
            major.is_ascii_digit() && minor.is_ascii_digit()
        }
        _ => false,
    }
}

/// Whether any field has whitespace between its name and its colon.
fn has_space_before_colon(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n')
        .skip_while(|line| line.trim_ascii().is_empty())
        .skip(1)
        .filter_map(|line| line.split(|byte| *byte == b':').next())
        .any(|name| matches!(name, [.., b' ' | b'\t']) && list::is_token(name.trim_ascii_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::{field_storage, scan::HeadScan};

    /// Scans and parses a head, and hands it to the check: what is parsed borrows from here.
    fn with_head<T>(head: &str, check: impl FnOnce(RequestHead<'_>) -> T) -> Result<T, Refusal> {
        let size = HeadScan::new(16_384, 100).scan(head.as_bytes())?.expect("the head is whole");
        let mut storage = field_storage();
        RequestHead::parse(&head.as_bytes()[..size], &mut storage).map(check)
    }

    fn refused(head: &str, expected: impl Into<Refusal>) {
        assert_eq!(with_head(head, |_| ()), Err(expected.into()), "{head:?}");
    }

    /// A GET of HTTP/1.1 with Host and these further lines.
    fn with_lines(lines: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
    }

    #[test]
    fn an_origin_form_target_is_path_and_query() {
        for (target, path, query) in [
            ("/", "/", None),
            ("/a/b%2Fc", "/a/b%2Fc", None),
            ("/a?b=c?d", "/a", Some("b=c?d")),
            ("/a?", "/a", Some("")),
            ("//a/../b", "//a/../b", None),
            ("/http://a", "/http://a", None),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let found = with_head(&head, |head| {
                assert_eq!((head.path(), head.query()), (path, query));
                assert_eq!((head.host(), head.method(), head.version()), ("h", "GET", Version::Http11));
            });
            assert_eq!(found, Ok(()));
        }
    }

    #[test]
    fn the_authority_of_an_absolute_target_replaces_host() {
        for (target, host, port, path, query) in [
            ("http://b.example:81/c?d", "b.example", Some(81), "/c", Some("d")),
            ("HTTPS://b.example", "b.example", None, "/", None),
            ("http://b.example?d", "b.example", None, "/", Some("d")),
            ("http://[::1]:81/c", "[::1]", Some(81), "/c", None),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: a.example:80\r\n\r\n");
            let found = with_head(&head, |head| {
                assert_eq!(head.authority(), Some(Authority { host, port }));
                assert_eq!((head.path(), head.query()), (path, query));
            });
            assert_eq!(found, Ok(()));
        }
        refused("GET http://b.example/ HTTP/1.1\r\n\r\n", BadRequest::HostMissing);
        refused("GET http://b.example/ HTTP/1.1\r\nHost: a b\r\n\r\n", BadRequest::HostInvalid);
    }

    #[test]
    fn a_target_in_no_form_that_its_method_may_have_is_refused() {
        for target in [
            "a",
            "a.example:80",
            "*",
            "?a",
            "ws://a.example/",
            "ftp://a.example/",
            "http:///a",
            "http://",
            "http://u@a.example/",
            "http://a.example:x/",
            "http://a.example#b",
            "/a#b",
            "/caf\u{e9}",
        ] {
            refused(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), BadRequest::Target);
        }
        refused("CONNECT a.example:80 HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Target);
        assert_eq!(with_head("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", |head| head.path() == "*"), Ok(true));
    }

    #[test]
    fn a_request_line_that_breaks_the_grammar_is_refused() {
        for line in [
            "GET",
            "GET /",
            "GET / ",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET\t/\tHTTP/1.1",
            "G(T / HTTP/1.1",
            "GET / http/1.1",
            "GET / HTTP/1.x",
            "GET / HTTP/11",
            "GET / a HTTP/1.1",
            "GET / a HTTP/2.0",
            "GET /\x7f HTTP/1.1",
        ] {
            refused(&format!("{line}\r\nHost: a\r\n\r\n"), BadRequest::RequestLine);
        }
    }

    #[test]
    fn versions_of_http_that_are_not_served_are_refused() {
        for version in ["HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3.0"] {
            refused(&format!("\r\nGET / {version}\r\nHost: a\r\n\r\n"), Refusal::HttpVersion);
        }
        assert_eq!(with_head("GET / HTTP/1.0\r\n\r\n", |head| head.version()), Ok(Version::Http10));
    }

    #[test]
    fn http_11_has_exactly_one_host() {
        refused("GET / HTTP/1.1\r\n\r\n", BadRequest::HostMissing);
        refused(&with_lines("hOST: a\r\n"), BadRequest::HostRepeated);
        refused("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", BadRequest::HostRepeated);
        assert_eq!(with_head("GET / HTTP/1.0\r\n\r\n", |head| head.authority().is_none()), Ok(true));
        assert_eq!(
            with_head("GET / HTTP/1.1\r\nHost:\r\n\r\n", |head| head.host().to_owned()),
            Ok(String::new())
        );
    }

    #[test]
    fn an_invalid_host_is_refused() {
        for (text, host, port) in [
            ("a", "a", None),
            ("A_b-c.example.:080", "A_b-c.example.", Some(80)),
            ("192.0.2.1:65535", "192.0.2.1", Some(65_535)),
            ("[2001:db8::1]", "[2001:db8::1]", None),
            ("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.1]", Some(1)),
            ("a:", "a", None),
        ] {
            assert_eq!(Authority::parse(text), Some(Authority { host, port }));
        }
        for text in [
            "",
            ":80",
            "a:b",
            "a:65536",
            "a:+1",
            "a:-1",
            "a: 1",
            "a b",
            "a,b",
            "a/b",
            "a@b",
            "a?b",
            "a#b",
            "a\\b",
            "a%41",
            "a:1:2",
            "::1",
            "[::1",
            "[]",
            "[a]",
            "[::1]a",
            "[::1]:x",
            "[fe80::1%eth0]",
            "[v1.a]",
            "\u{e9}",
            "a\"",
            "*.a",
        ] {
            assert_eq!(Authority::parse(text), None, "{text:?}");
        }
        for value in ["a b", "a, b", "u@a", "a/b", "http://a", "a:99999"] {
            refused(&format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n"), BadRequest::HostInvalid);
        }
    }

    #[test]
    fn a_space_before_a_colon_is_refused() {
        refused(&with_lines("a : b\r\n"), BadRequest::SpaceBeforeColon);
        refused("GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", BadRequest::SpaceBeforeColon);
        refused(&with_lines("Content-Length : 5\r\n"), BadRequest::SpaceBeforeColon);
    }

    #[test]
    fn a_field_name_that_is_no_token_is_refused() {
        for line in [": b", "a b: c", "a(b: c", "no colon", "a\u{e9}: b", "a"] {
            refused(&with_lines(&format!("{line}\r\n")), BadRequest::FieldName);
        }
    }

    #[test]
    fn a_field_value_with_a_control_byte_is_refused() {
        refused(&with_lines("a: b\x7fc\r\n"), BadRequest::FieldValue);
        assert_eq!(with_head(&with_lines("a: caf\u{e9}\tb \t\r\n"), |head| head.values("A").count()), Ok(1));
    }

    #[test]
    fn transfer_encoding_with_content_length_is_refused() {
        refused(&with_lines("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"), BadRequest::TwoFramings);
        refused(&with_lines("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), BadRequest::TwoFramings);
    }

    #[test]
    fn transfer_encoding_in_http_10_is_refused() {
        refused("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", BadRequest::TransferEncodingInHttp10);
    }

    #[test]
    fn transfer_encoding_is_chunked_once_and_last() {
        let body = |lines: &str| with_head(&with_lines(lines), |head| head.body());
        assert_eq!(body("Transfer-Encoding: , Chunked\r\n"), Ok(BodyFraming::Chunked));
        for lines in ["gzip, chunked\r\n", "gzip\r\nTransfer-Encoding: chunked\r\n"] {
            assert_eq!(
                body(&format!("Transfer-Encoding: {lines}")),
                Err(Refusal::TransferCodingNotImplemented)
            );
        }
        for lines in [
            "\r\n",
            "gzip\r\n",
            "chunked, gzip\r\n",
            "chunked, chunked\r\n",
            "\"chunked\"\r\n",
            "xchunked\r\n",
        ] {
            refused(&with_lines(&format!("Transfer-Encoding: {lines}")), BadRequest::TransferEncodingInvalid);
        }
        refused(
            &with_lines("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            BadRequest::TransferEncodingInvalid,
        );
    }

    #[test]
    fn content_length_is_one_number() {
        let body =
            |value: &str| with_head(&with_lines(&format!("Content-Length: {value}\r\n")), |head| head.body());
        assert_eq!(body("0"), Ok(BodyFraming::None));
        assert_eq!(body("005"), Ok(BodyFraming::Length(5)));
        assert_eq!(body("18446744073709551615"), Ok(BodyFraming::Length(u64::MAX)));
        for value in ["", "-1", "+1", "5, 5", "5 5", "0x5", "5.", "18446744073709551616", "\u{664}"] {
            assert_eq!(body(value), Err(BadRequest::ContentLengthInvalid.into()), "{value:?}");
        }
        refused(&with_lines("Content-Length: 5\r\ncontent-length: 5\r\n"), BadRequest::ContentLengthRepeated);
    }

    #[test]
    fn a_connection_stays_where_both_would_have_it() {
        let keeps = |head: &str| with_head(head, |head| head.keeps_alive());
        assert_eq!(keeps(&with_lines("")), Ok(true));
        assert_eq!(keeps(&with_lines("Connection: x, Close\r\n")), Ok(false));
        assert_eq!(keeps("GET / HTTP/1.0\r\n\r\n"), Ok(false));
        assert_eq!(keeps("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), Ok(true));
        assert_eq!(keeps("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nConnection: close\r\n\r\n"), Ok(false));
    }

    #[test]
    fn more_fields_than_the_storage_holds_are_refused() {
        let head = with_lines("a: b\r\n");
        let mut storage = [const { MaybeUninit::uninit() }; 1];
        assert_eq!(RequestHead::parse(head.as_bytes(), &mut storage).err(), Some(Refusal::TooManyFields));
    }
}
