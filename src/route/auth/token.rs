//! Where in a request a token stands.

use crate::config::auth::TokenPlace;
use crate::protocol::http::list;
use crate::protocol::http::refusal::BadRequest;
use crate::protocol::http::request::RequestHead;

/// The token of a request, in the first of these places that has one.
///
/// # Errors
/// [`BadRequest::AuthorizationRepeated`]: which of them an upstream would read, nobody knows.
pub(super) fn find<'h>(
    head: &'h RequestHead<'_>,
    places: &[TokenPlace],
) -> Result<Option<&'h [u8]>, BadRequest> {
    if head.values("authorization").nth(1).is_some() {
        return Err(BadRequest::AuthorizationRepeated);
    }
    Ok(places.iter().find_map(|place| match place {
        TokenPlace::Header => head.values("authorization").find_map(bearer),
        TokenPlace::Cookie(name) => head.values("cookie").find_map(|cookies| cookie(cookies, name)),
        TokenPlace::Query(name) => head.query().and_then(|query| parameter(query, name)),
        TokenPlace::Subprotocol(prefix) => list::list(head.fields(), "sec-websocket-protocol")
            .find_map(|one| one.strip_prefix(prefix.as_bytes())),
    }))
}

/// The token of `Authorization: Bearer` (RFC 6750 section 2.1); the scheme in any case (RFC 9110 section 11.1).
fn bearer(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = credentials.split_at_checked(6)?;
    let token = token.strip_prefix(b" ")?.trim_ascii();
    scheme.eq_ignore_ascii_case(b"bearer").then_some(token)
}

/// The value of a cookie of this name (RFC 6265 section 4.2.1), the first where several have it.
fn cookie<'c>(cookies: &'c [u8], name: &str) -> Option<&'c [u8]> {
    cookies.split(|byte| *byte == b';').find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

/// The value of a parameter of this name, the first where several have it. What a token is made of needs no escapes.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q [u8]> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(str::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::field_storage;

    /// The token of a request with this query and these fields.
    fn found(query: &str, fields: &str, places: &[&str]) -> Result<Option<String>, BadRequest> {
        let text = format!("GET /{query} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let mut storage = field_storage();
        let head = RequestHead::parse(text.as_bytes(), &mut storage).unwrap();
        let places: Vec<_> = places.iter().map(|place| TokenPlace::parse(place).unwrap()).collect();
        let token = find(&head, &places)?;
        Ok(token.map(|token| String::from_utf8(token.to_vec()).unwrap()))
    }

    #[test]
    fn a_token_is_found_in_each_place_and_in_their_order() {
        let all = ["header", "cookie:session", "query:access_token", "subprotocol:bearer."];
        let places = [
            ("", "Authorization: Bearer a.b.c\r\n"),
            ("", "Cookie: other=1; session=a.b.c; session=2\r\n"),
            ("?x=1&access_token=a.b.c&access_token=2", ""),
            ("", "Sec-WebSocket-Protocol: chat.v1, bearer.a.b.c\r\n"),
        ];
        for (index, (query, fields)) in places.into_iter().enumerate() {
            assert_eq!(found(query, fields, &all), Ok(Some("a.b.c".to_owned())), "{fields}");
            assert_eq!(found(query, fields, &[all[index]]), Ok(Some("a.b.c".to_owned())), "{fields}");
            for (_, other) in all.iter().enumerate().filter(|(other, _)| *other != index) {
                assert_eq!(found(query, fields, &[other]), Ok(None), "{fields} by {other}");
            }
        }
        let both = "Authorization: bearer  first \r\nCookie: session=second\r\n";
        assert_eq!(found("", both, &all), Ok(Some("first".to_owned())));
        assert_eq!(found("", both, &[all[1], all[0]]), Ok(Some("second".to_owned())));
    }

    #[test]
    fn what_only_resembles_a_place_is_none() {
        for fields in [
            "Authorization: Basic YTpi\r\n",
            "Authorization: Bearer\r\n",
            "Authorization: Bearera.b.c\r\n",
            "Authorization: \r\n",
            "Cookie: xsession=a; Session=b; session\r\n",
            "Sec-WebSocket-Protocol: xbearer.a\r\n",
        ] {
            let places = ["header", "cookie:session", "subprotocol:bearer."];
            assert_eq!(found("?xaccess_token=a", fields, &places), Ok(None), "{fields}");
        }
        assert_eq!(found("", "Cookie: session=\"a.b\"\r\n", &["cookie:session"]), Ok(Some("a.b".to_owned())));
    }

    #[test]
    fn two_authorizations_are_none() {
        let fields = "Authorization: Basic YTpi\r\nAuthorization: Bearer a.b.c\r\n";
        assert_eq!(found("", fields, &["header"]), Err(BadRequest::AuthorizationRepeated));
    }
}
