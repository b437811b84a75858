//! Request paths in the one spelling that patterns are compared in.
//!
//! A path can be spelled in many ways that a server behind the gateway may take for the same: `/admin`, `/%61dmin`,
//! `//admin`, `/x/../admin`. Were they compared as they come, a client could step around the route of `/admin/*` into
//! that of `/*`. So escapes are undone before comparing, once (RFC 3986 section 2.4), and a path whose meaning depends
//! on who reads it has no canonical form, and therefore no route.

use std::borrow::Cow;
use std::fmt;

/// The canonical bytes of `path`, which is a request target or a pattern without its query.
///
/// Costs no allocation where nothing is escaped. Letters keep their case, as RFC 3986 section 6.2.2.1 demands.
///
/// # Errors
/// The [`PathFault`] that makes the path ambiguous or malformed.
pub fn canonical(path: &str) -> Result<Cow<'_, [u8]>, PathFault> {
    if !path.starts_with('/') {
        return Err(PathFault::NotAbsolute);
    }
    if path.contains(['?', '#', ' ']) {
        return Err(PathFault::NotAPath);
    }
    let bytes = if path.contains('%') {
        Cow::Owned(unescape(path.as_bytes())?)
    } else {
        Cow::Borrowed(path.as_bytes())
    };
    for &byte in &*bytes {
        match byte {
            b'\\' => return Err(PathFault::Backslash),
            0..=0x1f | 0x7f => return Err(PathFault::Control),
            _ => {}
        }
    }
    // The first segment is the empty one before the leading slash; the last may be empty: "/chat/".
    let mut segments = bytes.split(|&byte| byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        // Some servers cut a segment's parameters off before they look for dots: "/..;x/admin".
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        match name {
            b"." | b".." => return Err(PathFault::DotSegment),
            b"" if segments.peek().is_some() => return Err(PathFault::EmptySegment),
            _ => {}
        }
    }
    Ok(bytes)
}

/// What keeps a path from having one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// It does not begin with a slash.
    NotAbsolute,
    /// A plain `?`, `#` or space stands in it: it ends a path, or belongs escaped.
    NotAPath,
    /// A `%` without two hexadecimal digits after it.
    BadEscape,
    /// An escaped slash: a separator to some, a part of a name to others.
    EscapedSlash,
    /// A backslash, plain or escaped: a separator to some.
    Backslash,
    /// A control character, plain or escaped.
    Control,
    /// A segment `.` or `..`, plain, escaped or with parameters.
    DotSegment,
    /// Two slashes in a row, which some servers join.
    EmptySegment,
}

impl fmt::Display for PathFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotAbsolute => "it does not begin with a slash",
            Self::NotAPath => "it holds a character that cannot stand in a path",
            Self::BadEscape => "it has a % without two hexadecimal digits",
            Self::EscapedSlash => "it has an escaped slash",
            Self::Backslash => "it has a backslash",
            Self::Control => "it has a control character",
            Self::DotSegment => "it has a segment of dots",
            Self::EmptySegment => "it has an empty segment",
        })
    }
}

/// `path` with each `%XX` replaced by the byte it stands for.
fn unescape(path: &[u8]) -> Result<Vec<u8>, PathFault> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let [high, low, after @ ..] = rest else {
            return Err(PathFault::BadEscape);
        };
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
            return Err(PathFault::BadEscape);
        };
        match high << 4 | low {
            b'/' => return Err(PathFault::EscapedSlash),
            byte => bytes.push(byte),
        }
        rest = after;
    }
    Ok(bytes)
}

/// The value of a hexadecimal digit of either case.
fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_path_have_one_canonical_form() {
        for path in ["/chat/é~x", "/%63hat/%C3%A9~x", "/chat/%c3%a9%7Ex", "/chat/é%7ex"] {
            assert_eq!(canonical(path).as_deref(), Ok("/chat/é~x".as_bytes()), "{path}");
        }
    }

    #[test]
    fn a_path_without_escapes_is_borrowed() {
        assert!(matches!(canonical("/chat/"), Ok(Cow::Borrowed(b"/chat/"))));
    }

    #[test]
    fn an_escape_is_undone_once() {
        assert_eq!(canonical("/%252e%252e/x").as_deref(), Ok(b"/%2e%2e/x".as_slice()));
        assert_eq!(canonical("/a%252fb").as_deref(), Ok(b"/a%2fb".as_slice()));
    }

    #[test]
    fn names_that_merely_look_like_dot_segments_are_names() {
        for path in ["/...", "/.well-known/x", "/a.", "/..a", "/a..", "/a;..", "/"] {
            assert_eq!(canonical(path).as_deref(), Ok(path.as_bytes()));
        }
    }

    #[test]
    fn a_path_with_two_meanings_has_no_canonical_form() {
        let cases: &[(&str, PathFault)] = &[
            ("", PathFault::NotAbsolute),
            ("*", PathFault::NotAbsolute),
            ("chat", PathFault::NotAbsolute),
            ("%2fchat", PathFault::NotAbsolute),
            ("/chat?x", PathFault::NotAPath),
            ("/chat#x", PathFault::NotAPath),
            ("/chat x", PathFault::NotAPath),
            ("/chat%", PathFault::BadEscape),
            ("/chat%4", PathFault::BadEscape),
            ("/chat%4g", PathFault::BadEscape),
            ("/%u002e", PathFault::BadEscape),
            ("/chat%2fx", PathFault::EscapedSlash),
            ("/chat%2Fx", PathFault::EscapedSlash),
            ("/chat\\x", PathFault::Backslash),
            ("/chat%5cx", PathFault::Backslash),
            ("/chat%00", PathFault::Control),
            ("/chat%0d%0aX:y", PathFault::Control),
            ("/chat%7f", PathFault::Control),
            ("/./chat", PathFault::DotSegment),
            ("/chat/.", PathFault::DotSegment),
            ("/x/../chat", PathFault::DotSegment),
            ("/chat/..", PathFault::DotSegment),
            ("/x/%2e%2e/chat", PathFault::DotSegment),
            ("/x/.%2E/chat", PathFault::DotSegment),
            ("/x/..;a=b/chat", PathFault::DotSegment),
            ("/x/..%3Ba/chat", PathFault::DotSegment),
            ("//chat", PathFault::EmptySegment),
            ("/chat//x", PathFault::EmptySegment),
            ("/chat//", PathFault::EmptySegment),
            ("/;a/chat", PathFault::EmptySegment),
        ];
        for (path, fault) in cases {
            assert_eq!(canonical(path), Err(*fault), "{path:?}");
        }
    }
}
