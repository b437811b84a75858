//! Which of several codings a client would have (RFC 9110 section 12.5.3).

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderName};

use crate::config::web::Coding;
use crate::protocol::http::list::{elements, parameters};

/// Those of `offered` that the client takes, the best first; before which none stands that it would rather have without
/// a coding.
pub fn accepted(headers: &HeaderMap, offered: &[Coding]) -> Vec<Coding> {
    let mut any = None;
    let mut identity = None;
    let mut weights: Vec<(Coding, Option<u16>)> = offered.iter().map(|&coding| (coding, None)).collect();
    for (name, weight) in self::weights(headers, &ACCEPT_ENCODING) {
        match name.as_slice() {
            b"*" => any = Some(weight),
            b"identity" => identity = Some(weight),
            name => {
                let is_meant = |coding: Coding| {
                    // RFC 9110 section 8.4.1.3.
                    name == coding.label().as_bytes() || (name == b"x-gzip" && coding == Coding::Gzip)
                };
                if let Some((_, known)) = weights.iter_mut().find(|(coding, _)| is_meant(*coding)) {
                    *known = Some(weight);
                }
            }
        }
    }
    let floor = identity.unwrap_or(0);
    let mut accepted: Vec<(Coding, u16)> = weights
        .into_iter()
        .filter_map(|(coding, weight)| Some((coding, weight.or(any)?)))
        .filter(|&(_, weight)| weight > 0 && weight >= floor)
        .collect();
    // Stable, so that the operator's order decides between equals.
    accepted.sort_by_key(|&(_, weight)| std::cmp::Reverse(weight));
    accepted.into_iter().map(|(coding, _)| coding).collect()
}

/// The elements of a list that is weighted (RFC 9110 section 12.4.2), in lower case, with their weights in thousandths.
/// What has a weight that is none is left out.
pub fn weights(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = (Vec<u8>, u16)> {
    headers.get_all(name).iter().flat_map(|value| elements(value.as_bytes())).filter_map(|element| {
        let mut parts = parameters(element);
        let name = parts.next()?.to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")));
        let weight = match weight {
            Some(weight) => thousandths(weight)?,
            None => 1000,
        };
        Some((name, weight))
    })
}

/// `0.5` as 500.
fn thousandths(weight: &[u8]) -> Option<u16> {
    let (&first, rest) = weight.split_first()?;
    let digits = match rest {
        [] => rest,
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return None,
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let places = digits.iter().copied().chain(std::iter::repeat(b'0')).take(3);
    let fraction = places.fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match (first, fraction) {
        (b'0', fraction) => Some(fraction),
        (b'1', 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn choice(value: &str) -> String {
        let mut headers = HeaderMap::new();
        for line in value.split('\n') {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(line).unwrap());
        }
        let accepted = accepted(&headers, &[Coding::Br, Coding::Gzip]);
        accepted.iter().map(|coding| coding.label()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_client_chooses_and_between_equals_the_operator() {
        for (value, expected) in [
            ("", ""),
            ("gzip, br", "br gzip"),
            ("gzip, deflate, br, zstd", "br gzip"),
            ("gzip\nbr", "br gzip"),
            ("GZip", "gzip"),
            ("x-gzip", "gzip"),
            ("gzip;q=1.0, br;q=0.9", "gzip br"),
            ("gzip ; q=0.2, br; Q=0.201", "br gzip"),
            ("br;q=0, gzip", "gzip"),
            ("br;q=0.000, *", "gzip"),
            ("*", "br gzip"),
            ("*;q=0", ""),
            ("*;q=0, gzip;q=0.1", "gzip"),
            ("identity", ""),
            ("identity, gzip;q=0.5", ""),
            ("identity;q=0.5, gzip", "gzip"),
            ("identity;q=0", ""),
            ("gzip;q=2", ""),
            ("gzip;q=0.1234", ""),
            ("gzip;q=", ""),
            ("gzip;q=1.001", ""),
            ("gzip;q=.5", ""),
            ("gzipp", ""),
        ] {
            assert_eq!(choice(value), expected, "{value:?}");
        }
        assert_eq!(accepted(&HeaderMap::new(), &[Coding::Br]), []);
    }
}
