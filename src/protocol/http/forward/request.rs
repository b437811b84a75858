//! A client's request on its way to an upstream: an opening handshake, or any other.

use core::net::IpAddr;
use std::io::Write as _;

use super::{Edits, FoldedName, RequestId, Sender, Withheld, append_list, holds_name, trace};
use crate::protocol::http::{
    Field, list,
    refusal::{BadRequest, Refusal},
    request::{Authority, BodyFraming, RequestHead},
    response::{append_checked_field, append_field, append_number_field},
};

/// How many options, beside the usual ones, a `Connection` may list. Each is compared with each field.
const CONNECTION_OPTION_COUNT_MAX: usize = 16;

const SUBPROTOCOL_FIELD: &str = "sec-websocket-protocol";

/// How a request is passed on.
#[derive(Clone, Copy, Debug)]
pub struct RequestPassage<'a> {
    /// The path that the upstream sees: it begins with a slash, and holds neither a query nor what a target may not
    /// hold. The client's query follows it.
    pub path: &'a str,
    /// Whom the request comes from.
    pub sender: Sender,
    /// Whether the peer speaks TLS to the gateway.
    pub is_secure: bool,
    /// The port that the client is told to connect to.
    pub port: u16,
    /// What the operator would have become of the fields.
    pub edits: Edits<'a>,
    /// What does not pass, as it was for the gateway.
    pub withheld: Withheld<'a>,
    /// Fields that are added, as they say who the request was found to be from; of those that [`Self::withheld`] names.
    pub granted: &'a [(String, String)],
    /// Random bytes, used once: 16 for the request's and the trace's id, 8 for the id of the gateway's part in it.
    pub random: [u8; 24],
}

impl RequestPassage<'_> {
    /// Appends the head of the opening handshake that the upstream gets, and returns what the request is called from here
    /// on.
    ///
    /// `head` is an opening handshake that was judged to keep the rules. Its fields pass in their order, the handshake's
    /// own (`Sec-WebSocket-*`, the client's key among them) as they came. What does not pass is what belongs to the
    /// client's connection: `Connection` and what it lists, and the framing of a body that is not there. Written anew
    /// are `Host`, if no edit sets it, and what opens the upgrade.
    ///
    /// Who the client is: of a sender that is believed, each chain passes with the peer appended, and one that it lacks
    /// begins with the client. Its `X-Forwarded-Host` passes, and so do its `X-Forwarded-Proto` and `X-Forwarded-Port`,
    /// of which none is added to the other: the port here need not belong to the scheme there. Of other senders all of
    /// that is dropped, and begun.
    ///
    /// # Errors
    /// [`BadRequest::ConnectionOptionsTooMany`], with nothing appended.
    pub fn write<'h>(&self, head: &RequestHead<'h>, out: &mut Vec<u8>) -> Result<RequestId<'h>, Refusal> {
        debug_assert!(head.lists_websocket() && head.body() == BodyFraming::None, "no opening handshake");
        self.write_head(head, out, |out| {
            out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        })
    }

    /// Appends the head of the request that the upstream gets, and returns what the request is called from here on.
    ///
    /// As with [`Self::write`], but there is no upgrade in it: what the client says of one is for its connection alone. A
    /// body of known size has that in the head, be it 0; chunks are for whoever sends them to announce. Trailers may be asked for
    /// (RFC 9110 section 10.1.4), and what is expected of the next server alone is answered here (section 10.1.1).
    ///
    /// # Errors
    /// [`BadRequest::ConnectionOptionsTooMany`], with nothing appended.
    pub fn write_plain<'h>(
        &self,
        head: &RequestHead<'h>,
        out: &mut Vec<u8>,
    ) -> Result<RequestId<'h>, Refusal> {
        self.write_head(head, out, |out| {
            if head.list("te").any(|coding| coding.eq_ignore_ascii_case(b"trailers")) {
                out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n");
            }
            match head.body() {
                BodyFraming::Length(size) => append_number_field(out, "Content-Length", size),
                // There are servers that want to be told so of a POST (RFC 9110 section 8.6).
                BodyFraming::None if head.values("content-length").next().is_some() => {
                    append_number_field(out, "Content-Length", 0_u64);
                }
                BodyFraming::None | BodyFraming::Chunked => {}
            }
            for trailer in head.values("trailer") {
                append_checked_field(out, "Trailer", trailer);
            }
        })
    }

    /// Appends a head, with those fields of the connection to the upstream that `write_connection` appends.
    fn write_head<'h>(
        &self,
        head: &RequestHead<'h>,
        out: &mut Vec<u8>,
        write_connection: impl FnOnce(&mut Vec<u8>),
    ) -> Result<RequestId<'h>, Refusal> {
        debug_assert!(self.edits.spare(|name| name.is_of_the_connection()
            || name.is_of_the_handshake()
            || name.is_of_the_sender() && name.as_bytes() != b"x-real-ip"));
        let listed = ListedFields::of(head)?;
        let (trace_id, parent_id) = self.random.split_first_chunk().expect("24 bytes begin with 16");
        let parent_id = parent_id.first_chunk().expect("8 bytes follow them");
        let request_id = RequestId::of(head, &self.sender, *trace_id);
        let has_traceparent = trace::traceparent(head).is_some() && self.edits.pass("traceparent");

        self.write_request_line(head, out);
        if !self.edits.sets("host") {
            append_host(out, "Host: ", head.authority());
            out.extend_from_slice(b"\r\n");
        }
        for &Field { name, value } in head.fields() {
            if self.passes(name, has_traceparent, &listed) && self.edits.pass(name) {
                append_checked_field(out, name, value);
            }
        }
        if !self.withheld.subprotocols.is_empty() {
            self.write_subprotocols(head, out);
        }
        self.edits.write(out);
        for (name, value) in self.granted.iter().filter(|(name, _)| !self.edits.sets(name)) {
            append_checked_field(out, name, value.as_bytes());
        }
        write_connection(out);
        self.write_sender(head, out);
        if self.edits.pass("x-request-id") {
            request_id.write(out);
        }
        if !has_traceparent && self.edits.pass("traceparent") {
            trace::begin_trace(out, *trace_id, *parent_id);
        }
        out.extend_from_slice(b"\r\n");
        Ok(request_id)
    }

    fn write_request_line(&self, head: &RequestHead<'_>, out: &mut Vec<u8>) {
        let path = self.path;
        debug_assert!(path.starts_with('/'), "{path:?}");
        debug_assert!(
            path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte)),
            "{path:?} is no path"
        );
        for part in [head.method(), " ", path] {
            out.extend_from_slice(part.as_bytes());
        }
        match head.query() {
            Some(query) if self.withheld.parameters.is_empty() => {
                out.push(b'?');
                out.extend_from_slice(query.as_bytes());
            }
            Some(query) => {
                let mut separator = b'?';
                for pair in query.split('&').filter(|pair| !self.withheld.holds_parameter(pair)) {
                    out.push(std::mem::replace(&mut separator, b'&'));
                    out.extend_from_slice(pair.as_bytes());
                }
            }
            None => {}
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    /// Appends the subprotocols that the upstream is offered, where some are not; the field itself does not pass then.
    fn write_subprotocols(&self, head: &RequestHead<'_>, out: &mut Vec<u8>) {
        let offered = list::list(head.fields(), SUBPROTOCOL_FIELD);
        let offered: Vec<&[u8]> = offered.filter(|one| !self.withheld.holds_subprotocol(one)).collect();
        if !offered.is_empty() {
            append_checked_field(out, "Sec-WebSocket-Protocol", &offered.join(&b", "[..]));
        }
    }

    /// Whether a field passes as it came.
    fn passes(&self, name: &str, has_traceparent: bool, listed: &ListedFields<'_>) -> bool {
        let folded = FoldedName::new(name);
        match folded.as_bytes() {
            b"host" | b"expect" | b"forwarded" | b"x-forwarded-for" | b"x-request-id" => false,
            b"traceparent" | b"tracestate" => has_traceparent && !folded.has_underscore,
            _ if folded.is_of_the_connection() => false,
            _ if self.withheld.holds_field(name) => false,
            _ if !self.withheld.subprotocols.is_empty() && name.eq_ignore_ascii_case(SUBPROTOCOL_FIELD) => {
                false
            }
            _ if folded.is_of_the_handshake() => !folded.has_underscore,
            _ if folded.is_of_the_sender() => self.sender.is_believed() && !folded.has_underscore,
            _ => !listed.contains(name),
        }
    }

    /// Appends the fields that say who the client is.
    fn write_sender(&self, head: &RequestHead<'_>, out: &mut Vec<u8>) {
        let (peer, client) = (self.sender.peer(), self.sender.client());
        let believed = |name| head.values(name).filter(|_| self.sender.is_believed());
        let has_chain = |name| believed(name).any(|value| list::elements(value).next().is_some());
        let proto = if self.is_secure { "https" } else { "http" };
        let host = head.authority().filter(|authority| !authority.host.is_empty());

        out.extend_from_slice(b"Forwarded: ");
        append_list(out, believed("forwarded"));
        if !has_chain("forwarded") && client != peer {
            append_for(out, client);
            out.extend_from_slice(b", ");
        }
        append_for(out, peer);
        if let Some(Authority { host: name, port }) = host {
            // A name is a token, a port or brackets are not.
            let quote = if port.is_some() || name.starts_with('[') { "\"" } else { "" };
            out.extend_from_slice(b";host=");
            out.extend_from_slice(quote.as_bytes());
            append_host(out, "", host);
            out.extend_from_slice(quote.as_bytes());
        }
        for part in [";proto=", proto, "\r\nX-Forwarded-For: "] {
            out.extend_from_slice(part.as_bytes());
        }
        append_list(out, believed("x-forwarded-for"));
        if !has_chain("x-forwarded-for") && client != peer {
            write!(out, "{client}, ").expect("a Vec takes every byte");
        }
        write!(out, "{peer}\r\n").expect("a Vec takes every byte");
        if believed("x-forwarded-host").next().is_none() && host.is_some() {
            append_host(out, "X-Forwarded-Host: ", host);
            out.extend_from_slice(b"\r\n");
        }
        if believed("x-forwarded-proto").chain(believed("x-forwarded-port")).next().is_none() {
            append_field(out, "X-Forwarded-Proto", proto);
            append_number_field(out, "X-Forwarded-Port", self.port);
        }
    }
}

/// The fields that `Connection` lists, which are for this connection alone (RFC 9110 section 7.6.1).
struct ListedFields<'h> {
    names: [&'h [u8]; CONNECTION_OPTION_COUNT_MAX],
    count: usize,
}

impl<'h> ListedFields<'h> {
    fn of(head: &RequestHead<'h>) -> Result<Self, BadRequest> {
        let mut listed = Self { names: [b""; CONNECTION_OPTION_COUNT_MAX], count: 0 };
        for option in head.list("connection") {
            // What is usual names no field that would pass.
            if !holds_name([&b"close"[..], b"keep-alive", b"upgrade"].into_iter(), option) {
                let slot = listed.names.get_mut(listed.count);
                *slot.ok_or(BadRequest::ConnectionOptionsTooMany)? = option;
                listed.count += 1;
            }
        }
        Ok(listed)
    }

    fn contains(&self, name: &str) -> bool {
        holds_name(self.names[..self.count].iter().copied(), name.as_bytes())
    }
}

/// Appends the beginning of an element of `Forwarded` (RFC 7239 section 6).
fn append_for(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => write!(out, "for={address}"),
        IpAddr::V6(address) => write!(out, "for=\"[{address}]\""),
    }
    .expect("a Vec takes every byte");
}

/// Appends a host and its port.
fn append_host(out: &mut Vec<u8>, prefix: &str, authority: Option<Authority<'_>>) {
    out.extend_from_slice(prefix.as_bytes());
    if let Some(Authority { host, port }) = authority {
        out.extend_from_slice(host.as_bytes());
        if let Some(port) = port {
            write!(out, ":{port}").expect("a Vec takes every byte");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::field_storage;

    const OPENING: &str = "Upgrade: h2c, websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    const TRUSTED: &str = "10.0.0.1";
    const UNTRUSTED: &str = "2001:db8::7";
    const RANDOM: [u8; 24] =
        *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\xf0\xf1\xf2\xf3\xf4\xf5\xf6\xf7";

    /// What the upstream gets of an opening handshake from this peer with these lines, and what the request is called.
    fn passed(peer: &str, line: &str, lines: &str, edits: Edits<'_>) -> Result<(String, String), Refusal> {
        let head = format!("{line}\r\n{OPENING}{lines}\r\n");
        let mut storage = field_storage();
        let head = RequestHead::parse(head.as_bytes(), &mut storage).unwrap();
        let is_trusted = |address: IpAddr| address.to_string().starts_with("10.");
        let passage = RequestPassage {
            path: &format!("/v2{}", head.path()),
            sender: Sender::of(&head, peer.parse().unwrap(), is_trusted),
            is_secure: true,
            port: 8443,
            edits,
            withheld: Withheld::default(),
            granted: &[],
            random: RANDOM,
        };
        let mut out = b"before ".to_vec();
        let id = passage.write(&head, &mut out)?;
        let text = String::from_utf8(out).unwrap();
        Ok((text.strip_prefix("before ").unwrap().to_owned(), id.to_string()))
    }

    /// What the upstream gets of a request to `a:81` with these lines.
    fn lines_of(peer: &str, lines: &str) -> String {
        passed(peer, "GET /c?d HTTP/1.1\r\nHost: a:81", lines, Edits::default()).unwrap().0
    }

    /// The values of a field in a head.
    fn values(head: &str, name: &str) -> Vec<String> {
        let prefix = format!("{}: ", name.to_lowercase());
        let lines = head.split("\r\n").filter(|line| line.to_lowercase().starts_with(&prefix));
        lines.map(|line| line[prefix.len()..].to_owned()).collect()
    }

    #[test]
    fn any_other_request_is_passed_on_without_what_is_of_its_connection() {
        let text = "PUT /c?d HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nTE: gzip, trailers\r\n\
            Connection: upgrade, http2-settings, TE\r\nExpect: 100-continue\r\nContent-Length: 7\r\n\
            Trailer: Digest\r\nKeep-Alive: a\r\nCookie: e=f\r\nX-Forwarded-For: 10.1.1.1\r\n\r\n";
        let mut storage = field_storage();
        let head = RequestHead::parse(text.as_bytes(), &mut storage).unwrap();
        let passage = RequestPassage {
            path: "/v2/c",
            sender: Sender::of(&head, UNTRUSTED.parse().unwrap(), |_| false),
            is_secure: false,
            port: 80,
            edits: Edits::default(),
            withheld: Withheld::default(),
            granted: &[],
            random: RANDOM,
        };
        let mut out = Vec::new();
        passage.write_plain(&head, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "PUT /v2/c?d HTTP/1.1\r\nHost: a\r\nCookie: e=f\r\nConnection: TE\r\nTE: trailers\r\n\
             Content-Length: 7\r\nTrailer: Digest\r\nForwarded: for=\"[2001:db8::7]\";host=a;proto=http\r\n\
             X-Forwarded-For: 2001:db8::7\r\nX-Forwarded-Host: a\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Port: 80\r\nX-Request-Id: 000102030405060708090a0b0c0d0e0f\r\n\
             traceparent: 00-000102030405060708090a0b0c0d0e0f-f0f1f2f3f4f5f6f7-00\r\n\r\n"
        );
    }

    #[test]
    fn an_opening_handshake_is_passed_on_whole() {
        let (text, id) =
            passed(UNTRUSTED, "GET /c?d HTTP/1.1\r\nHost: a:81", "Cookie: e=f\r\n", Edits::default())
                .unwrap();
        assert_eq!(
            text,
            "GET /v2/c?d HTTP/1.1\r\nHost: a:81\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\nCookie: e=f\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Forwarded: for=\"[2001:db8::7]\";host=\"a:81\";proto=https\r\nX-Forwarded-For: 2001:db8::7\r\n\
             X-Forwarded-Host: a:81\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 8443\r\n\
             X-Request-Id: 000102030405060708090a0b0c0d0e0f\r\n\
             traceparent: 00-000102030405060708090a0b0c0d0e0f-f0f1f2f3f4f5f6f7-00\r\n\r\n"
        );
        assert_eq!(id, "000102030405060708090a0b0c0d0e0f");
    }

    #[test]
    fn the_authority_of_an_absolute_target_is_the_host() {
        let line = "GET http://[::1]/c HTTP/1.1\r\nHost: other";
        let (text, _) = passed(UNTRUSTED, line, "", Edits::default()).unwrap();
        assert!(text.starts_with("GET /v2/c HTTP/1.1\r\nHost: [::1]\r\n"), "{text}");
        assert!(
            text.contains(";host=\"[::1]\";") && text.contains("\r\nX-Forwarded-Host: [::1]\r\n"),
            "{text}"
        );
        let (text, _) = passed(UNTRUSTED, "GET /c HTTP/1.1\r\nHost:", "", Edits::default()).unwrap();
        assert_eq!(values(&text, "host"), [""]);
        assert!(!text.contains("host=") && !text.contains("X-Forwarded-Host"), "{text}");
        let (text, _) = passed(UNTRUSTED, "GET /c HTTP/1.1\r\nHost: a-b.c", "", Edits::default()).unwrap();
        assert!(text.contains(";host=a-b.c;"), "{text}");
    }

    #[test]
    fn what_belongs_to_the_clients_connection_does_not_pass() {
        let plain = lines_of(UNTRUSTED, "");
        for lines in [
            "Keep-Alive: timeout=5\r\n",
            "Proxy-Connection: keep-alive\r\n",
            "TE: trailers\r\n",
            "Trailer: x\r\n",
            "Proxy-Authorization: Basic YTpi\r\n",
            "Proxy-Authenticate: Basic\r\n",
            "Content-Length: 0\r\n",
            "Content_Length: 5\r\n",
            "Transfer_Encoding: chunked\r\n",
            "Sec_WebSocket_Protocol: chat\r\n",
            "Connection: X-Mine , close\r\nX-MINE: 1\r\nx-mine: 2\r\n",
        ] {
            assert_eq!(lines_of(UNTRUSTED, lines), plain, "{lines}");
        }
    }

    #[test]
    fn a_connection_cannot_list_away_what_the_gateway_vouches_for() {
        let lines = "Connection: Sec-WebSocket-Key, Sec-WebSocket-Protocol, Host, X-Forwarded-For, X-Request-Id\r\n\
            Sec-WebSocket-Protocol: chat\r\n";
        let text = lines_of(UNTRUSTED, lines);
        for name in ["Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Host", "X-Forwarded-For", "X-Request-Id"]
        {
            assert_eq!(values(&text, name).len(), 1, "{name}");
        }
    }

    #[test]
    fn a_connection_lists_few_options() {
        let with = |count: usize| format!("Connection: close{}\r\n", ", x".repeat(count));
        let line = "GET /c?d HTTP/1.1\r\nHost: a:81";
        assert!(passed(UNTRUSTED, line, &with(CONNECTION_OPTION_COUNT_MAX), Edits::default()).is_ok());
        assert_eq!(
            passed(UNTRUSTED, line, &with(CONNECTION_OPTION_COUNT_MAX + 1), Edits::default()),
            Err(BadRequest::ConnectionOptionsTooMany.into())
        );
    }

    #[test]
    fn forged_forwarding_fields_are_replaced() {
        let lines = "X-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nX-Forwarded-Proto: gopher\r\n\
            X-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /x\r\nX-Real-IP: 1.1.1.1\r\n\
            X_Forwarded_For: 1.1.1.1\r\n";
        assert_eq!(lines_of(UNTRUSTED, lines), lines_of(UNTRUSTED, ""));
        // So are those of a trusted peer that contradict each other.
        let lines = "X-Forwarded-For: 1.1.1.1\r\nForwarded: for=2.2.2.2\r\nX-Forwarded-Proto: gopher\r\n";
        assert_eq!(lines_of(TRUSTED, lines), lines_of(TRUSTED, ""));
    }

    #[test]
    fn a_trusted_peer_is_appended_to_its_own_chain() {
        let lines = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 10.0.0.2\r\nX-Forwarded-Proto: http\r\n\
            Forwarded: for=192.0.2.1;host=\"b,c\", for=10.0.0.2\r\nX-Real-IP: 192.0.2.1\r\nX-Forwarded-For:\r\n";
        let text = lines_of(TRUSTED, lines);
        assert_eq!(values(&text, "x-forwarded-for"), ["192.0.2.1, 10.0.0.2, 10.0.0.1"]);
        assert_eq!(
            values(&text, "forwarded"),
            ["for=192.0.2.1;host=\"b,c\", for=10.0.0.2, for=10.0.0.1;host=\"a:81\";proto=https"]
        );
        assert_eq!(values(&text, "x-real-ip"), ["192.0.2.1"]);
        assert_eq!(values(&text, "x-forwarded-host"), ["a:81"]);
        assert_eq!(values(&text, "x-forwarded-proto"), ["http"]);
        assert!(values(&text, "x-forwarded-port").is_empty());
    }

    #[test]
    fn the_chain_that_a_trusted_peer_lacks_begins_with_the_client() {
        let text = lines_of(TRUSTED, "X-Forwarded-For: 1.1.1.1, 2001:db8::1, 10.0.0.2\r\n");
        assert_eq!(
            values(&text, "forwarded"),
            ["for=\"[2001:db8::1]\", for=10.0.0.1;host=\"a:81\";proto=https"]
        );
        let text =
            lines_of(TRUSTED, "Forwarded: for=192.0.2.1\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Host: b\r\n");
        assert_eq!(values(&text, "x-forwarded-for"), ["192.0.2.1, 10.0.0.1"]);
        assert_eq!(values(&text, "x-forwarded-port"), ["443"]);
        assert_eq!(values(&text, "x-forwarded-host"), ["b"]);
        assert!(values(&text, "x-forwarded-proto").is_empty());
        assert_eq!(values(&lines_of(TRUSTED, ""), "x-forwarded-for"), [TRUSTED]);
    }

    #[test]
    fn a_request_id_is_passed_on_from_a_trusted_peer_or_begun() {
        let id = |peer, lines| {
            let (text, id) = passed(peer, "GET /c?d HTTP/1.1\r\nHost: a", lines, Edits::default()).unwrap();
            assert_eq!(values(&text, "x-request-id"), [id.as_str()]);
            id
        };
        let begun = "000102030405060708090a0b0c0d0e0f";
        assert_eq!(id(TRUSTED, "X-Request-Id: abc-1\r\n"), "abc-1");
        assert_eq!(id(UNTRUSTED, "X-Request-Id: abc-1\r\n"), begun);
        assert_eq!(id(TRUSTED, "X-Request-Id: a b\r\n"), begun);
        assert_eq!(id(TRUSTED, "X-Request-Id: a\r\nx-request-id: a\r\n"), begun);
        assert_eq!(id(TRUSTED, "X_Request_Id: a\r\n"), begun);
    }

    #[test]
    fn a_traceparent_is_passed_on_with_its_state_or_begun() {
        const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let text =
            lines_of(UNTRUSTED, &format!("traceparent: {PARENT}\r\ntracestate: a=b\r\nTracestate: c=d\r\n"));
        assert_eq!(values(&text, "traceparent"), [PARENT]);
        assert_eq!(values(&text, "tracestate"), ["a=b", "c=d"]);
        let begun = lines_of(UNTRUSTED, "");
        for lines in [
            "tracestate: a=b\r\n".to_owned(),
            format!("traceparent: {PARENT}0\r\ntracestate: a=b\r\n"),
            format!("traceparent: {PARENT}\r\nTraceParent: {PARENT}\r\ntracestate: a=b\r\n"),
        ] {
            assert_eq!(lines_of(UNTRUSTED, &lines), begun, "{lines}");
        }
    }

    #[test]
    fn edits_remove_and_then_set() {
        let remove = ["COOKIE".to_owned(), "X-Env".to_owned(), "Traceparent".to_owned()];
        let set = [
            ("Host".to_owned(), "inner".to_owned()),
            ("X-Env".to_owned(), "prod".to_owned()),
            ("Accept".to_owned(), "b\tc".to_owned()),
            ("X-Request-ID".to_owned(), "mine".to_owned()),
        ];
        let lines = "tracestate: a=b\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
            Cookie: a\r\nX-ENV: test\r\nAccept: a\r\nAccept: c\r\nOrigin: o\r\n";
        let edits = Edits { remove: &remove, set: &set };
        let (text, _) = passed(UNTRUSTED, "GET /c HTTP/1.1\r\nHost: a", lines, edits).unwrap();
        assert_eq!(values(&text, "host"), ["inner"]);
        assert_eq!(values(&text, "x-forwarded-host"), ["a"]);
        assert_eq!(values(&text, "x-env"), ["prod"]);
        assert_eq!(values(&text, "accept"), ["b\tc"]);
        assert_eq!(values(&text, "x-request-id"), ["mine"]);
        assert_eq!(values(&text, "origin"), ["o"]);
        for name in ["cookie", "traceparent", "tracestate"] {
            assert!(values(&text, name).is_empty(), "{name}");
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "would end the field")]
    fn a_value_with_a_line_end_never_passes() {
        let fields = [
            Field { name: "Host", value: b"a" },
            Field { name: "Upgrade", value: b"websocket" },
            Field { name: "X", value: b"a\r\nTransfer-Encoding: chunked" },
        ];
        let version = crate::protocol::http::request::Version::Http11;
        let head = RequestHead::new("GET", "/", version, &fields).unwrap();
        let passage = RequestPassage {
            path: "/",
            sender: Sender::of(&head, IpAddr::from([192, 0, 2, 1]), |_| false),
            is_secure: false,
            port: 80,
            edits: Edits::default(),
            withheld: Withheld::default(),
            granted: &[],
            random: RANDOM,
        };
        let _ = passage.write(&head, &mut Vec::new());
    }
}
