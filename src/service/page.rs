//! `service = "page"`: a small page that opens a WebSocket to the port it came from, and shows what happens.

use crate::protocol::http::refusal::Refusal;
use crate::protocol::http::request::{BodyFraming, RequestHead};
use crate::protocol::http::response::Answer;

/// The page: one file, nothing fetched from elsewhere.
const PAGE: &[u8] = include_bytes!("page.html");

/// What the page may do: run what it holds, and open sockets to where it came from.
const FIELDS: &[(&str, &str)] = &[
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self' ws: wss:; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
];

/// Why a request does not get the page; `None` where it does.
pub fn refusal(head: &RequestHead<'_>) -> Option<Refusal> {
    if !matches!(head.method(), "GET" | "HEAD") {
        return Some(Refusal::MethodNotAllowed { allow: "GET, HEAD" });
    }
    (head.body() != BodyFraming::None).then_some(Refusal::ContentTooLarge)
}

/// The answer to a GET or HEAD request.
pub fn answer(head_only: bool, keep_alive: bool) -> Answer<'static> {
    Answer {
        status: 200,
        content_type: "text/html; charset=utf-8",
        body: PAGE,
        keep_alive,
        head_only,
        fields: FIELDS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PAGE_OPENS;

    #[test]
    fn the_page_opens_what_the_configuration_is_checked_for() {
        let page = std::str::from_utf8(PAGE).unwrap();
        assert!(page.contains(&format!("://${{location.host}}{PAGE_OPENS}`;")));
        assert_eq!(page.matches("new WebSocket(").count(), 1);
    }
}
