//! What a request makes depend on the state of a file (RFC 9110 section 13), and which part of it is wanted (section 14).

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderMap, HeaderName};

/// What becomes of a request for a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 200: all of it.
    Whole,
    /// 206: these bytes, both ends among them.
    Part {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// 304: the client has it.
    NotModified,
    /// 412: it is not the one that the client means.
    Failed,
    /// 416: it has no such bytes.
    Unsatisfiable,
}

/// The fields of a request that a [`Verdict`] depends on.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    if_match: Option<Vec<u8>>,
    if_unmodified_since: Option<u64>,
    if_none_match: Option<Vec<u8>>,
    if_modified_since: Option<u64>,
    range: Option<Vec<u8>>,
    if_range: Option<Vec<u8>>,
}

impl Conditions {
    /// Those of a request with these fields.
    pub fn of(headers: &HeaderMap, is_head: bool) -> Self {
        Self {
            if_match: joined(headers, &header::IF_MATCH),
            if_unmodified_since: date(headers, &header::IF_UNMODIFIED_SINCE),
            if_none_match: joined(headers, &header::IF_NONE_MATCH),
            if_modified_since: date(headers, &header::IF_MODIFIED_SINCE),
            // RFC 9110 section 14.2: for GET alone.
            range: only(headers, &header::RANGE).filter(|_| !is_head).map(<[u8]>::to_vec),
            if_range: only(headers, &header::IF_RANGE).map(<[u8]>::to_vec),
        }
    }

    /// What they make of a file with this tag, this time of its last change in seconds, and this size.
    pub fn judge(&self, etag: &str, modified: Option<u64>, size: u64) -> Verdict {
        // The order of RFC 9110 section 13.2.2.
        if let Some(tags) = &self.if_match {
            if !lists(tags, etag, Comparison::Strong) {
                return Verdict::Failed;
            }
        } else if let (Some(since), Some(modified)) = (self.if_unmodified_since, modified)
            && modified > since
        {
            return Verdict::Failed;
        }
        if let Some(tags) = &self.if_none_match {
            if lists(tags, etag, Comparison::Weak) {
                return Verdict::NotModified;
            }
        } else if let (Some(since), Some(modified)) = (self.if_modified_since, modified)
            && modified <= since
        {
            return Verdict::NotModified;
        }
        let is_current = self.if_range.as_ref().is_none_or(|validator| {
            if validator.first() == Some(&b'"') {
                validator == etag.as_bytes()
            } else {
                // Exactly that date (section 13.1.5); a weak tag is no date and fits nothing.
                modified.is_some() && parse_date(validator) == modified
            }
        });
        match &self.range {
            Some(range) if is_current => part(range, size),
            _ => Verdict::Whole,
        }
    }
}

/// What a `Range` of a single part makes of `size` bytes. More than one range, another unit or none that makes sense is
/// passed over (RFC 9110 section 14.2).
fn part(range: &[u8], size: u64) -> Verdict {
    let Some((unit, set)) = range.split_at_checked(b"bytes=".len()) else { return Verdict::Whole };
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return Verdict::Whole;
    }
    let set = set.trim_ascii();
    let Some(dash) = set.iter().position(|&byte| byte == b'-') else { return Verdict::Whole };
    match (number(&set[..dash]), number(&set[dash + 1..])) {
        (Number::None, Number::Some(0)) => Verdict::Unsatisfiable,
        // Nothing is the end of an empty file, too, but no Content-Range can say so.
        (Number::None, Number::Some(_)) if size == 0 => Verdict::Whole,
        (Number::None, Number::Some(count)) => {
            Verdict::Part { first: size.saturating_sub(count), last: size - 1 }
        }
        (Number::Some(first), Number::Some(last)) if last < first => Verdict::Whole,
        (Number::Some(first), Number::Some(_) | Number::None) if first >= size => Verdict::Unsatisfiable,
        (Number::Some(first), Number::Some(last)) => Verdict::Part { first, last: last.min(size - 1) },
        (Number::Some(first), Number::None) => Verdict::Part { first, last: size - 1 },
        (Number::None, Number::None) | (Number::Bad, _) | (_, Number::Bad) => Verdict::Whole,
    }
}

enum Number {
    None,
    Some(u64),
    Bad,
}

/// Digits, or nothing. A number beyond 64 bits is beyond the end of every file.
fn number(digits: &[u8]) -> Number {
    if digits.is_empty() {
        return Number::None;
    }
    if !digits.iter().all(u8::is_ascii_digit) {
        return Number::Bad;
    }
    let digit = |number: u64, byte: &u8| number.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
    Number::Some(digits.iter().fold(0, digit))
}

/// How tags are compared (RFC 9110 section 8.8.3.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of tags has this one, which is strong, or is the asterisk that stands for any.
fn lists(tags: &[u8], etag: &str, comparison: Comparison) -> bool {
    let mut rest = tags.trim_ascii();
    if rest == b"*" {
        return true;
    }
    loop {
        rest = rest.trim_ascii_start();
        while let [b',', after @ ..] = rest {
            rest = after.trim_ascii_start();
        }
        let (is_weak, quoted) = match rest {
            [b'W', b'/', quoted @ ..] => (true, quoted),
            quoted => (false, quoted),
        };
        // A tag may hold commas, but no quotes.
        let [b'"', inner @ ..] = quoted else { return false };
        let Some(end) = inner.iter().position(|&byte| byte == b'"') else { return false };
        if &quoted[..end + 2] == etag.as_bytes() && (!is_weak || comparison == Comparison::Weak) {
            return true;
        }
        rest = &inner[end + 1..];
    }
}

/// The values of all fields of this name as one list.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(header::HeaderValue::as_bytes).collect();
    (!values.is_empty()).then(|| values.join(&b','))
}

/// The value of a field that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// The date in a field that is there once; what is no date is passed over.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    parse_date(only(headers, name)?)
}

fn parse_date(text: &[u8]) -> Option<u64> {
    let date: SystemTime = httpdate::parse_http_date(std::str::from_utf8(text).ok()?.trim()).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ETAG: &str = "\"a,b\"";
    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const MODIFIED: u64 = 784_111_777;
    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    /// The verdict on a GET with these fields for a file of 100 bytes.
    fn judge(fields: &[(&'static str, &str)]) -> Verdict {
        conditions(fields, false).judge(ETAG, Some(MODIFIED), 100)
    }

    fn conditions(fields: &[(&'static str, &str)], is_head: bool) -> Conditions {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        Conditions::of(&headers, is_head)
    }

    #[test]
    fn a_single_range_is_cut_to_the_file_and_what_makes_no_sense_is_passed_over() {
        use Verdict::{Unsatisfiable, Whole};
        let part = |first, last| Verdict::Part { first, last };
        for (range, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=0-99", part(0, 99)),
            ("bytes=10-19", part(10, 19)),
            ("bytes=90-", part(90, 99)),
            ("bytes=99-1000", part(99, 99)),
            ("bytes=0-99999999999999999999999", part(0, 99)),
            ("Bytes= 1-2 ", part(1, 2)),
            ("bytes=-1", part(99, 99)),
            ("bytes=-100", part(0, 99)),
            ("bytes=-1000", part(0, 99)),
            ("bytes=-0", Unsatisfiable),
            ("bytes=100-", Unsatisfiable),
            ("bytes=100-100", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=2-1", Whole),
            ("bytes=0-0,2-3", Whole),
            ("bytes=0-0, -1", Whole),
            ("bytes=", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1 - 2", Whole),
            ("bytes=0x1-2", Whole),
            ("bytes 0-1", Whole),
            ("lines=0-1", Whole),
            ("byte", Whole),
        ] {
            assert_eq!(judge(&[("range", range)]), expected, "{range}");
        }
        assert_eq!(judge(&[("range", "bytes=0-1"), ("range", "bytes=0-1")]), Whole);
        assert_eq!(conditions(&[("range", "bytes=0-1")], true).judge(ETAG, Some(MODIFIED), 100), Whole);
        for (range, expected) in
            [("bytes=0-", Unsatisfiable), ("bytes=-1", Whole), ("bytes=-0", Unsatisfiable)]
        {
            let conditions = conditions(&[("range", range)], false);
            assert_eq!(conditions.judge(ETAG, None, 0), expected, "{range} of nothing");
        }
    }

    #[test]
    fn preconditions_are_looked_at_in_their_order() {
        use Verdict::{Failed, NotModified, Whole};
        const OTHER: &str = "\"c\"";
        const WEAK: &str = "W/\"a,b\"";
        let cases: &[(&[(&'static str, &str)], Verdict)] = &[
            (&[], Whole),
            (&[("if-match", ETAG)], Whole),
            (&[("if-match", "*")], Whole),
            (&[("if-match", OTHER)], Failed),
            (&[("if-match", WEAK)], Failed),
            (&[("if-match", "\"c\", \"a,b\"")], Whole),
            (&[("if-match", OTHER), ("if-match", ETAG)], Whole),
            (&[("if-match", "\"a\",\"b\"")], Failed),
            (&[("if-match", "a,b")], Failed),
            (&[("if-match", "\"a,b")], Failed),
            (&[("if-unmodified-since", THEN)], Whole),
            (&[("if-unmodified-since", AFTER)], Whole),
            (&[("if-unmodified-since", BEFORE)], Failed),
            (&[("if-unmodified-since", "yesterday")], Whole),
            (&[("if-match", ETAG), ("if-unmodified-since", BEFORE)], Whole),
            (&[("if-match", OTHER), ("if-none-match", ETAG)], Failed),
            (&[("if-none-match", ETAG)], NotModified),
            (&[("if-none-match", WEAK)], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", ", ,\"c\" ,W/\"a,b\"")], NotModified),
            (&[("if-none-match", OTHER)], Whole),
            (&[("if-none-match", "")], Whole),
            (&[("if-none-match", OTHER), ("if-modified-since", AFTER)], Whole),
            (&[("if-modified-since", THEN)], NotModified),
            (&[("if-modified-since", AFTER)], NotModified),
            (&[("if-modified-since", BEFORE)], Whole),
            (&[("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT")], NotModified),
            (&[("if-modified-since", "Sun Nov  6 08:49:37 1994")], NotModified),
            (&[("if-modified-since", "784111777")], Whole),
            (&[("if-modified-since", THEN), ("if-modified-since", THEN)], Whole),
            (&[("if-match", ETAG), ("if-none-match", ETAG)], NotModified),
            (&[("if-none-match", ETAG), ("range", "bytes=200-")], NotModified),
            (&[("if-match", OTHER), ("range", "bytes=200-")], Failed),
        ];
        for (fields, expected) in cases {
            assert_eq!(judge(fields), *expected, "{fields:?}");
        }
        assert_eq!(conditions(&[("if-modified-since", AFTER)], false).judge(ETAG, None, 100), Whole);
    }

    #[test]
    fn a_range_of_another_state_is_none() {
        let part = Verdict::Part { first: 0, last: 0 };
        for (validator, expected) in [
            (ETAG, part),
            (THEN, part),
            ("W/\"a,b\"", Verdict::Whole),
            ("\"c\"", Verdict::Whole),
            (BEFORE, Verdict::Whole),
            (AFTER, Verdict::Whole),
            ("*", Verdict::Whole),
            ("", Verdict::Whole),
        ] {
            assert_eq!(judge(&[("range", "bytes=0-0"), ("if-range", validator)]), expected, "{validator}");
            assert_eq!(judge(&[("if-range", validator)]), Verdict::Whole, "{validator}");
        }
    }
}
