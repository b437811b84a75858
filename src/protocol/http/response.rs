//! Responses: writing those that the gateway gives itself, and parsing the head of those that it gets.

use std::{fmt::Display, io::Write as _, mem::MaybeUninit};

use super::{Field, list, request::Version};

/// An answer with content, other than a refusal.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The status code: one whose responses have content, so none of 1xx, 204 and 304.
    pub status: u16,
    /// The value of `Content-Type`.
    pub content_type: &'a str,
    /// The content. Its size is told even where it is not sent.
    pub body: &'a [u8],
    /// Whether the connection stays open for another request.
    pub keep_alive: bool,
    /// Whether the request was HEAD, so that the body is left out (RFC 9110 section 9.3.2).
    pub head_only: bool,
    /// Further fields: names that are tokens, values without control bytes.
    pub fields: &'a [(&'a str, &'a str)],
}

impl Answer<'_> {
    /// Appends the whole answer.
    pub fn write(&self, out: &mut Vec<u8>) {
        append_status_line(out, self.status);
        append_field(out, "Connection", if self.keep_alive { "keep-alive" } else { "close" });
        for (name, value) in self.fields {
            append_field(out, name, value);
        }
        append_field(out, "Content-Type", self.content_type);
        append_number_field(out, "Content-Length", self.body.len());
        out.extend_from_slice(b"\r\n");
        if !self.head_only {
            out.extend_from_slice(self.body);
        }
    }
}

/// The head of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'h> {
    /// The version of HTTP that the sender speaks.
    pub version: Version,
    /// The status code, 100 to 999.
    pub status: u16,
    fields: &'h [Field<'h>],
}

/// A response head that breaks the grammar, has more fields than there is room for, or a version other than 1.0 and
/// 1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedResponse;

impl<'h> ResponseHead<'h> {
    /// Parses a head whose end [`super::scan::HeadScan`] has found, empty line included.
    ///
    /// # Errors
    /// [`MalformedResponse`].
    pub fn parse<'b: 'h>(
        head: &'b [u8],
        storage: &'h mut [MaybeUninit<Field<'b>>],
    ) -> Result<Self, MalformedResponse> {
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            head,
            storage,
        );
        let version = match response.version {
            Some(0) => Version::Http10,
            Some(1) => Version::Http11,
            _ => return Err(MalformedResponse),
        };
        match (parsed, response.code) {
            (Ok(httparse::Status::Complete(size)), Some(status)) if size == head.len() && status >= 100 => {
                Ok(Self { version, status, fields: response.headers })
            }
            _ => Err(MalformedResponse),
        }
    }

    /// All fields, in the order they came.
    pub(super) const fn fields(&self) -> &'h [Field<'h>] {
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
}

/// Appends the status line of a response.
pub fn append_status_line(out: &mut Vec<u8>, status: u16) {
    write!(out, "HTTP/1.1 {status} {}\r\n", reason_phrase(status)).expect("a Vec takes every byte");
}

/// Appends one field. The name is a token and the value holds no control byte: they are ours, or were checked.
pub fn append_field(out: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(list::is_token(name.as_bytes()), "{name:?} is no field name");
    debug_assert!(!value.bytes().any(|byte| byte.is_ascii_control()), "{value:?} would end the field");
    for part in [name, ": ", value, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Appends one field that was parsed or checked: its name is a token, and its value holds no control byte but tabs.
pub fn append_checked_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    debug_assert!(list::is_token(name.as_bytes()), "{name:?} is no field name");
    debug_assert!(
        !value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t'),
        "{value:?} would end the field"
    );
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Appends one field whose value is a number.
pub fn append_number_field(out: &mut Vec<u8>, name: &str, number: impl Display) {
    write!(out, "{name}: {number}\r\n").expect("a Vec takes every byte");
}

/// The reason phrase of the status codes that are sent; empty for others, which RFC 9112 section 4 allows.
pub(super) const fn reason_phrase(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::field_storage;

    const PAGE: Answer<'_> = Answer {
        status: 200,
        content_type: "text/html; charset=utf-8",
        body: b"<p>hello",
        keep_alive: true,
        head_only: false,
        fields: &[("X-Content-Type-Options", "nosniff")],
    };

    fn written(answer: &Answer<'_>) -> String {
        let mut out = b"before ".to_vec();
        answer.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_is_appended_whole() {
        assert_eq!(
            written(&PAGE),
            "before HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nX-Content-Type-Options: nosniff\r\n\
             Content-Type: text/html; charset=utf-8\r\nContent-Length: 8\r\n\r\n<p>hello"
        );
    }

    #[test]
    fn the_answer_to_head_tells_the_size_of_what_it_leaves_out() {
        let text = written(&Answer { head_only: true, keep_alive: false, ..PAGE });
        assert!(text.contains("\r\nContent-Length: 8\r\n") && text.contains("\r\nConnection: close\r\n"));
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_response_head_is_parsed() {
        let bytes = b"HTTP/1.1 101 Switching\tOver\r\nConnection: x\r\nconnection: Upgrade, y\r\n\r\n";
        let mut storage = field_storage();
        let head = ResponseHead::parse(bytes, &mut storage).unwrap();
        assert_eq!((head.version, head.status), (Version::Http11, 101));
        assert_eq!(head.list("Connection").collect::<Vec<_>>(), [&b"x"[..], b"Upgrade", b"y"]);
        assert_eq!(head.values("connection").count(), 2);
    }

    #[test]
    fn a_malformed_response_head_is_refused() {
        for bad in [
            &b"HTTP/1.1 20 OK\r\n\r\n"[..],
            b"HTTP/1.1 099 Low\r\n\r\n",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"ICY 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nmore",
        ] {
            let mut storage = field_storage();
            assert!(ResponseHead::parse(bad, &mut storage).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(super::super::FIELD_COUNT_MAX + 1));
        let mut storage = field_storage();
        assert!(ResponseHead::parse(many.as_bytes(), &mut storage).is_err());
    }
}
