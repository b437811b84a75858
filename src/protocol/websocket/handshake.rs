//! The opening handshake (RFC 6455 section 4): the one judgement of a request, and its acceptance.

pub mod client;
pub mod upstream;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::{Digest as _, Sha1};

use super::deflate::{Policy, Terms};
use crate::protocol::http::{
    Field, list,
    refusal::{BadRequest, Refusal},
    request::{BodyFraming, RequestHead, Version},
    response,
};

/// How many subprotocols one handshake may offer.
///
/// Each is compared with each other and with those that the route allows; a head full of them would be quadratic work.
pub const SUBPROTOCOL_COUNT_MAX: usize = 64;

/// The size of a key in bytes: 16 bytes in base64.
const KEY_SIZE: usize = 24;

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub enum Request<'h> {
    /// No WebSocket: to be answered as plain HTTP, be it with [`Refusal::UpgradeRequired`].
    Plain,
    /// A WebSocket, by the rules.
    Opening(Opening<'h>),
}

/// An opening handshake that breaks no rule. Whether it is accepted is the route's affair.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'h> {
    key: &'h [u8; KEY_SIZE],
    origin: Option<&'h [u8]>,
    fields: &'h [Field<'h>],
}

/// What is kept of an opening handshake while an upstream is asked: all that a 101 depends on, and no head to be read
/// again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    key: [u8; KEY_SIZE],
    /// The subprotocols as one list; empty where there are none, as mostly.
    subprotocols: Vec<u8>,
    /// The extensions as one list.
    extensions: Vec<u8>,
}

/// Judges the head of a request: is it an opening handshake, and does it keep the rules of RFC 6455 section 4.2.1?
///
/// The only judge there is: every path by which a request reaches the gateway asks here. Costs one walk over the
/// fields and allocates nothing.
///
/// # Errors
/// [`Refusal::MethodNotAllowed`], [`Refusal::BadVersion`], or [`Refusal::BadRequest`] with the rule that is broken.
pub fn judge<'h>(head: &RequestHead<'h>) -> Result<Request<'h>, Refusal> {
    // RFC 9110 section 7.8: an Upgrade of HTTP/1.0 is ignored, and so is one to something else. `Connection: Upgrade`
    // without an Upgrade field is what a carelessly configured proxy adds to every request: plain HTTP.
    if head.version() == Version::Http10 || !head.lists_websocket() {
        return Ok(Request::Plain);
    }
    if !head.connection_lists_upgrade() {
        return Err(BadRequest::ConnectionLacksUpgrade.into());
    }
    if head.method() != "GET" {
        return Err(Refusal::MethodNotAllowed { allow: "GET" });
    }
    // What would be the body to one reader would be frames to the other.
    if head.body() != BodyFraming::None {
        return Err(BadRequest::BodyOnUpgrade.into());
    }

    let (mut version, mut key, mut origin) = (None, None, None);
    let (mut offers_subprotocols, mut offers_extensions) = (false, false);
    for &Field { name, value } in head.fields() {
        match name.len() {
            6 if name.eq_ignore_ascii_case("origin") => {
                take_once(&mut origin, value, BadRequest::OriginRepeated)?;
            }
            17 if name.eq_ignore_ascii_case("sec-websocket-key") => {
                take_once(&mut key, value, BadRequest::KeyRepeated)?;
            }
            21 if name.eq_ignore_ascii_case("sec-websocket-version") => {
                take_once(&mut version, value, BadRequest::VersionRepeated)?;
            }
            22 if name.eq_ignore_ascii_case(SUBPROTOCOL_FIELD) => offers_subprotocols = true,
            24 if name.eq_ignore_ascii_case(EXTENSIONS_FIELD) => offers_extensions = true,
            _ => {}
        }
    }
    // The version comes first: another one may have other rules for the rest.
    match version.ok_or(BadRequest::VersionMissing)? {
        b"13" => {}
        several if several.contains(&b',') => return Err(BadRequest::VersionRepeated.into()),
        _ => return Err(Refusal::BadVersion),
    }
    let key = key_of(key.ok_or(BadRequest::KeyMissing)?).ok_or(BadRequest::KeyInvalid)?;
    if offers_subprotocols {
        check_subprotocols(head.fields())?;
    }
    if offers_extensions {
        check_extensions(head.fields())?;
    }
    Ok(Request::Opening(Opening { key, origin, fields: head.fields() }))
}

impl<'h> Opening<'h> {
    /// The client's key as it came, 24 bytes of base64, for [`accept_key`].
    pub const fn key(&self) -> &'h [u8] {
        self.key
    }

    /// The value of `Origin`, where there is one. Browsers always send it.
    pub const fn origin(&self) -> Option<&'h [u8]> {
        self.origin
    }

    /// The subprotocols that the client offers, those it would rather have first. None stands twice.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'h str> {
        list::list(self.fields, SUBPROTOCOL_FIELD).map(token_text)
    }

    /// The first subprotocol offered that is allowed; case matters (RFC 6455 section 4.2.2).
    pub fn select_subprotocol(&self, allowed: &[String]) -> Option<&'h str> {
        if allowed.is_empty() {
            return None;
        }
        self.subprotocols().find(|offered| allowed.iter().any(|allowed| allowed == offered))
    }

    /// The values of `Sec-WebSocket-Extensions`, each a well-formed list of offers.
    pub fn extensions(&self) -> impl Iterator<Item = &'h [u8]> {
        list::values(self.fields, EXTENSIONS_FIELD)
    }

    /// What is agreed on compression with this client (RFC 7692), where the route is willing to.
    pub fn agree_on_deflate(&self, policy: Policy) -> Option<Terms> {
        Terms::agree(self.extensions(), policy)
    }

    /// What an upstream's answer is judged by.
    pub fn offer(&self) -> Offer {
        let list = |name| list::values(self.fields, name).collect::<Vec<_>>().join(&b", "[..]);
        Offer { key: *self.key, subprotocols: list(SUBPROTOCOL_FIELD), extensions: list(EXTENSIONS_FIELD) }
    }
}

impl Offer {
    /// Whether this subprotocol was offered; case matters.
    fn has_subprotocol(&self, chosen: &[u8]) -> bool {
        list::elements(&self.subprotocols).any(|offered| offered == chosen)
    }

    /// Whether an extension of this name was offered.
    fn has_extension(&self, chosen: &[u8]) -> bool {
        list::elements(&self.extensions).any(|offered| extension_name(offered) == Some(chosen))
    }
}

/// The answer to a key (RFC 6455 section 4.2.2): SHA-1 of the key as it came and the GUID, in base64.
pub fn accept_key(key: &[u8]) -> [u8; 28] {
    base64(&Sha1::new().chain_update(key).chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize())
}

/// Appends the 101 that accepts a key, with the subprotocol that was chosen and what was agreed on compression. Frames
/// follow at once.
pub fn write_accept(out: &mut Vec<u8>, key: &[u8], subprotocol: Option<&str>, deflate: Option<Terms>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&accept_key(key));
    out.extend_from_slice(b"\r\n");
    if let Some(subprotocol) = subprotocol {
        response::append_field(out, "Sec-WebSocket-Protocol", subprotocol);
    }
    if let Some(terms) = deflate {
        terms.write_field(out);
    }
    out.extend_from_slice(b"\r\n");
}

const SUBPROTOCOL_FIELD: &str = "sec-websocket-protocol";
const EXTENSIONS_FIELD: &str = "sec-websocket-extensions";

/// The base64 of bytes, `SIZE` characters of it.
fn base64<const SIZE: usize>(bytes: &[u8]) -> [u8; SIZE] {
    let mut encoded = [0; SIZE];
    let size = STANDARD.encode_slice(bytes, &mut encoded).expect("the array has room for the characters");
    debug_assert_eq!(size, SIZE, "the array is as large as its content");
    encoded
}

/// A token as text.
fn token_text(token: &[u8]) -> &str {
    std::str::from_utf8(token).expect("the judge has found it to be a token")
}

/// Takes the value of a field that may stand once.
fn take_once<'h>(slot: &mut Option<&'h [u8]>, value: &'h [u8], repeated: BadRequest) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(repeated.into()),
    }
}

/// The key that this is, if it decodes to exactly 16 bytes: 22 characters of base64 and the padding.
///
/// The last character carries 2 bits of the 16 bytes and 4 of nothing, which some clients fill: whatever they are, it
/// is the same 16 bytes. (The engine that base64 calls STANDARD refuses them.)
fn key_of(value: &[u8]) -> Option<&[u8; KEY_SIZE]> {
    let key: &[u8; KEY_SIZE] = value.try_into().ok()?;
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.strip_suffix(b"==").is_some_and(|characters| characters.iter().all(is_base64)).then_some(key)
}

/// Checks that the subprotocols offered are tokens, at least one, none twice (RFC 6455 sections 4.1 and 11.3.4).
fn check_subprotocols(fields: &[Field<'_>]) -> Result<(), Refusal> {
    let mut seen = [&b""[..]; SUBPROTOCOL_COUNT_MAX];
    let mut count = 0;
    for token in list::list(fields, SUBPROTOCOL_FIELD) {
        if !list::is_token(token) {
            return Err(BadRequest::SubprotocolsMalformed.into());
        }
        if seen[..count].contains(&token) {
            return Err(BadRequest::SubprotocolRepeated.into());
        }
        *seen.get_mut(count).ok_or(BadRequest::SubprotocolsTooMany)? = token;
        count += 1;
    }
    if count == 0 { Err(BadRequest::SubprotocolsMalformed.into()) } else { Ok(()) }
}

/// Checks that the extensions offered keep the grammar of RFC 6455 section 9.1, at least one.
///
/// An offer that is well-formed but makes no sense is no fault: it is declined.
fn check_extensions(fields: &[Field<'_>]) -> Result<(), Refusal> {
    let mut count = 0;
    for offer in list::list(fields, EXTENSIONS_FIELD) {
        extension_name(offer).ok_or(BadRequest::ExtensionsMalformed)?;
        count += 1;
    }
    if count == 0 { Err(BadRequest::ExtensionsMalformed.into()) } else { Ok(()) }
}

/// The name of an extension that keeps the grammar of RFC 6455 section 9.1, its parameters included.
fn extension_name(extension: &[u8]) -> Option<&[u8]> {
    // The values of parameters are tokens even within quotes, so no semicolon hides in them.
    let mut parts = extension.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().filter(|name| list::is_token(name))?;
    parts.all(is_extension_parameter).then_some(name)
}

/// Whether this is `name`, `name=value` or `name="value"`, the value a token once its quotes and escapes are gone.
fn is_extension_parameter(parameter: &[u8]) -> bool {
    let Some(equals) = parameter.iter().position(|byte| *byte == b'=') else {
        return list::is_token(parameter);
    };
    let (name, value) = (parameter[..equals].trim_ascii_end(), parameter[equals + 1..].trim_ascii_start());
    list::is_token(name)
        && match value.strip_prefix(b"\"") {
            None => list::is_token(value),
            Some(quoted) => quoted.strip_suffix(b"\"").is_some_and(is_escaped_token),
        }
}

/// Whether this is a token in which any byte may be escaped by a backslash before it (RFC 9110 section 5.6.4).
fn is_escaped_token(quoted: &[u8]) -> bool {
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        let byte = if *byte == b'\\' { bytes.next() } else { Some(byte) };
        if !byte.is_some_and(|byte| list::is_token_byte(*byte)) {
            return false;
        }
    }
    !quoted.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::{field_storage, scan::HeadScan};

    /// The key of RFC 6455 section 1.3, and its answer.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    /// What the judge makes of a head: the parts of an opening, or `None` for plain HTTP.
    type Judged = Result<Option<Parts>, Refusal>;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Parts {
        host: String,
        path: String,
        origin: Option<String>,
        subprotocols: Vec<String>,
        extensions: Vec<String>,
    }

    fn parts_of(bytes: &[u8]) -> Judged {
        let mut storage = field_storage();
        let head = RequestHead::parse(bytes, &mut storage)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Ok(match judge(&head)? {
            Request::Plain => None,
            Request::Opening(opening) => Some(Parts {
                host: head.host().to_owned(),
                path: head.path().to_owned(),
                origin: opening.origin().map(text),
                subprotocols: opening.subprotocols().map(str::to_owned).collect(),
                extensions: opening.extensions().map(text).collect(),
            }),
        })
    }

    fn judged(head: &str) -> Judged {
        let size = HeadScan::new(16_384, 100).scan(head.as_bytes())?.expect("the head is whole");
        parts_of(&head.as_bytes()[..size])
    }

    fn refused(head: &str, expected: impl Into<Refusal>) {
        assert_eq!(judged(head), Err(expected.into()), "{head}");
    }

    /// A good opening handshake with one line replaced, or removed where the new one is empty.
    fn with(name: &str, lines: &str) -> String {
        let good = [
            ("", "GET /chat HTTP/1.1"),
            ("Host", "Host: server.example"),
            ("Upgrade", "Upgrade: websocket"),
            ("Connection", "Connection: Upgrade"),
            ("Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
            ("Version", "Sec-WebSocket-Version: 13"),
            ("More", ""),
        ];
        assert!(good.iter().any(|(known, _)| *known == name));
        let lines = good.map(|(known, line)| if known == name { lines } else { line });
        let mut head = String::new();
        for line in lines.iter().filter(|line| !line.is_empty()) {
            head.push_str(line);
            head.push_str("\r\n");
        }
        head + "\r\n"
    }

    fn good() -> Parts {
        Parts {
            host: "server.example".to_owned(),
            path: "/chat".to_owned(),
            origin: None,
            subprotocols: vec![],
            extensions: vec![],
        }
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept_key(KEY.as_bytes()), ACCEPT.as_bytes());
        let mut out = b"before".to_vec();
        write_accept(&mut out, KEY.as_bytes(), None, None);
        write_accept(&mut out, KEY.as_bytes(), Some("chat.v1"), None);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!(
                "beforeHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {ACCEPT}\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: chat.v1\r\n\r\n"
            )
        );
    }

    #[test]
    fn an_opening_handshake_is_a_get() {
        assert_eq!(judged(&with("More", "")), Ok(Some(good())));
        for method in ["POST", "HEAD", "OPTIONS", "get", "PUT"] {
            let head = with("", &format!("{method} /chat HTTP/1.1"));
            refused(&head, Refusal::MethodNotAllowed { allow: "GET" });
        }
    }

    #[test]
    fn http_10_ignores_upgrade() {
        assert_eq!(judged(&with("", "GET /chat HTTP/1.0")), Ok(None));
        refused(&with("", "GET /chat HTTP/2.0"), Refusal::HttpVersion);
    }

    #[test]
    fn an_opening_handshake_has_exactly_one_host() {
        refused(&with("Host", ""), BadRequest::HostMissing);
        refused(&with("Host", "Host: a\r\nHost: a"), BadRequest::HostRepeated);
    }

    #[test]
    fn an_absolute_target_is_accepted_and_its_authority_replaces_host() {
        let parts = Parts { host: "other.example".to_owned(), ..good() };
        assert_eq!(judged(&with("", "GET http://other.example:81/chat HTTP/1.1")), Ok(Some(parts)));
    }

    #[test]
    fn a_crlf_before_the_request_line_is_ignored() {
        assert_eq!(judged(&with("", "\r\nGET /chat HTTP/1.1")), Ok(Some(good())));
    }

    #[test]
    fn connection_is_a_list_of_tokens_that_compare_without_case() {
        for line in [
            "Connection: keep-alive, Upgrade",
            "connection: UPGRADE",
            "Connection: ,upgrade ,",
            "Connection: keep-alive\r\nConnection: Upgrade",
        ] {
            assert_eq!(judged(&with("Connection", line)), Ok(Some(good())), "{line}");
        }
        for line in [
            "",
            "Connection: keep-alive",
            "Connection: Upgraded",
            "Connection: \"Upgrade\"",
            "Connection: a Upgrade",
        ] {
            refused(&with("Connection", line), BadRequest::ConnectionLacksUpgrade);
        }
    }

    #[test]
    fn upgrade_is_a_list_that_compares_without_case() {
        for line in ["Upgrade: WebSocket", "UPGRADE: h2c, WEBSOCKET", "Upgrade: h2c\r\nUpgrade: websocket"] {
            assert_eq!(judged(&with("Upgrade", line)), Ok(Some(good())), "{line}");
        }
        for line in ["", "Upgrade: h2c", "Upgrade: websockets", "Upgrade: websocket/13", "Upgrade:"] {
            assert_eq!(judged(&with("Upgrade", line)), Ok(None), "{line}");
        }
    }

    #[test]
    fn a_body_on_an_upgrade_request_is_refused() {
        refused(&with("More", "Content-Length: 1"), BadRequest::BodyOnUpgrade);
        refused(&with("More", "Transfer-Encoding: chunked"), BadRequest::BodyOnUpgrade);
        assert_eq!(judged(&with("More", "Content-Length: 0")), Ok(Some(good())));
    }

    #[test]
    fn the_key_decodes_to_exactly_16_bytes() {
        // Every last character is good: the four bits that carry nothing may be anything.
        let mut key = KEY.as_bytes().to_vec();
        for last in (0..=u8::MAX).filter(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte)) {
            key[21] = last;
            let line = format!("Sec-WebSocket-Key: {}", std::str::from_utf8(&key).unwrap());
            assert_eq!(judged(&with("Key", &line)), Ok(Some(good())), "{line}");
        }
        refused(&with("Key", ""), BadRequest::KeyMissing);
        for key in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQ===",
            "dGhlIHNhbXBsZSBub25jZWE=",
            "dGhlIHNhbXBsZSBub25jZWFi",
            "dGhlIHNhbXBsZSBub25j",
            "dGhlIHNhbXBsZSBub25jZ===",
            "dGhlIHNhbXBsZSBub25jZ-==",
            "dGhlIHNhbXBs ZSBub25jZQ==",
            "dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==",
        ] {
            refused(&with("Key", &format!("Sec-WebSocket-Key: {key}")), BadRequest::KeyInvalid);
        }
    }

    #[test]
    fn a_key_is_what_a_lenient_engine_decodes_to_16_bytes() {
        use base64::{alphabet, engine::general_purpose};
        let config = general_purpose::GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
        let lenient = general_purpose::GeneralPurpose::new(&alphabet::STANDARD, config);
        for byte in 0..=u8::MAX {
            for at in 0..24 {
                let mut key = KEY.as_bytes().to_vec();
                key[at] = byte;
                let decodes = lenient.decode(&key).is_ok_and(|bytes| bytes.len() == 16);
                assert_eq!(key_of(&key).is_some(), decodes, "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn two_keys_or_two_versions_are_refused() {
        let key = format!("Sec-WebSocket-Key: {KEY}");
        refused(&with("Key", &format!("{key}\r\n{key}")), BadRequest::KeyRepeated);
        let version = "Sec-WebSocket-Version: 13";
        refused(&with("Version", &format!("{version}\r\n{version}")), BadRequest::VersionRepeated);
        refused(&with("Version", "Sec-WebSocket-Version: 13, 8"), BadRequest::VersionRepeated);
        refused(&with("Version", ""), BadRequest::VersionMissing);
    }

    #[test]
    fn any_version_but_13_is_answered_with_426() {
        for version in ["0", "7", "8", "12", "14", "25", "130", "013", "255", "", "x"] {
            refused(&with("Version", &format!("Sec-WebSocket-Version: {version}")), Refusal::BadVersion);
        }
        // Another version may know other keys, so that of the key comes second.
        let head = with("Version", "Sec-WebSocket-Version: 14").replace(KEY, "other");
        refused(&head, Refusal::BadVersion);
    }

    #[test]
    fn subprotocols_are_tokens_in_one_list() {
        let parts = Parts { subprotocols: vec!["b".into(), "B".into(), "chat.v1".into()], ..good() };
        for lines in [
            "Sec-WebSocket-Protocol: b, B,chat.v1",
            "Sec-WebSocket-Protocol: b\r\nsec-websocket-protocol: B , chat.v1",
            "Sec-WebSocket-Protocol: b,,B\r\nSec-WebSocket-Protocol:\r\nSec-WebSocket-Protocol: chat.v1",
        ] {
            assert_eq!(judged(&with("More", lines)), Ok(Some(parts.clone())), "{lines}");
        }
    }

    #[test]
    fn a_malformed_subprotocol_list_is_refused() {
        for value in ["", ",", "a b", "a;b", "a/b", "\"a\"", "a, b=c", "caf\u{e9}", "a, \"b"] {
            let head = with("More", &format!("Sec-WebSocket-Protocol: {value}"));
            refused(&head, BadRequest::SubprotocolsMalformed);
        }
    }

    #[test]
    fn a_subprotocol_offered_twice_is_refused() {
        refused(&with("More", "Sec-WebSocket-Protocol: a, b, a"), BadRequest::SubprotocolRepeated);
        let lines = "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: a";
        refused(&with("More", lines), BadRequest::SubprotocolRepeated);
    }

    #[test]
    fn the_number_of_subprotocols_is_bounded() {
        let offer = |count: usize| {
            let names: Vec<_> = (0..count).map(|index| format!("p{index}")).collect();
            judged(&with("More", &format!("Sec-WebSocket-Protocol: {}", names.join(","))))
        };
        assert!(offer(SUBPROTOCOL_COUNT_MAX).is_ok_and(|parts| parts.is_some()));
        assert_eq!(offer(SUBPROTOCOL_COUNT_MAX + 1), Err(BadRequest::SubprotocolsTooMany.into()));
    }

    #[test]
    fn the_subprotocol_chosen_was_offered_and_is_allowed() {
        let fields = [Field { name: "Sec-WebSocket-Protocol", value: b"a, b, c" }];
        let opening = Opening { key: key_of(KEY.as_bytes()).unwrap(), origin: None, fields: &fields };
        let choice = |allowed: &[&str]| {
            opening.select_subprotocol(&allowed.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(choice(&["c", "b"]), Some("b"));
        assert_eq!(choice(&["B", "d"]), None);
        assert_eq!(choice(&[]), None);
        let opening = Opening { fields: &[], ..opening };
        assert_eq!(opening.select_subprotocol(&["a".to_owned()]), None);
    }

    #[test]
    fn extensions_that_keep_the_grammar_are_no_fault() {
        for value in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_max_window_bits=10 ; client_max_window_bits=\"15\", x-other",
            "a;b = c;b=c;b=\"\\c\"",
            "permessage-deflate; client_max_window_bits=99; client_max_window_bits=99; unknown",
            ", a,",
        ] {
            let parts = Parts { extensions: vec![value.to_owned()], ..good() };
            let head = with("More", &format!("Sec-WebSocket-Extensions: {value}"));
            assert_eq!(judged(&head), Ok(Some(parts)), "{value}");
        }
        let parts = Parts { extensions: vec!["a".into(), "b; c=\"d\"".into()], ..good() };
        let head = with("More", "Sec-WebSocket-Extensions: a\r\nSec-WebSocket-Extensions: b; c=\"d\"");
        assert_eq!(judged(&head), Ok(Some(parts)));
    }

    #[test]
    fn a_malformed_extension_list_is_refused() {
        for value in [
            "",
            ",",
            ";",
            "a;",
            "a;;b",
            "; a",
            "a b",
            "a; b=",
            "a; =b",
            "a; b==c",
            "a=b",
            "a; b c",
            "a; b=c d",
            "a; b=\"",
            "a; b=\"\"",
            "a; b=\"c",
            "a; b=\"c\\\"",
            "a; b=\"c d\"",
            "a; b=\"c,d\"",
            "a; b=\"c;d\"",
            "a; b=\"c\"d",
            "a, \"b\"",
            "a; \"b\"",
            "a/b",
            "a; b=caf\u{e9}",
        ] {
            let head = with("More", &format!("Sec-WebSocket-Extensions: {value}"));
            refused(&head, BadRequest::ExtensionsMalformed);
        }
    }

    #[test]
    fn an_origin_stands_once() {
        let parts = Parts { origin: Some("null".to_owned()), ..good() };
        assert_eq!(judged(&with("More", "Origin: null")), Ok(Some(parts)));
        refused(&with("More", "Origin: http://a\r\norigin: http://a"), BadRequest::OriginRepeated);
    }

    #[test]
    fn a_plain_request_is_left_to_http() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
            // A proxy that was told to add Connection to every request.
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n",
            // A client that would go on in HTTP/2; the body is HTTP.
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 3\r\n\r\n",
            // Whatever the fields of a WebSocket say, nothing asks for one.
            "GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 8\r\n\r\n",
        ] {
            assert_eq!(judged(head), Ok(None), "{head}");
        }
    }

    /// Opening handshakes as programs send them.
    const HEADS: [(&str, &str); 5] = [
        (
            "Firefox",
            "GET /echo HTTP/1.1\r\nHost: gateway.example:8080\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: */*\r\n\
             Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\nSec-WebSocket-Version: 13\r\n\
             Origin: http://gateway.example:8080\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-Fetch-Dest: empty\r\nSec-Fetch-Mode: websocket\r\nSec-Fetch-Site: same-origin\r\nPragma: no-cache\r\n\
             Cache-Control: no-cache\r\nUpgrade: websocket\r\n\r\n",
        ),
        (
            "Chromium",
            "GET /echo HTTP/1.1\r\nHost: gateway.example:8080\r\nConnection: Upgrade\r\nPragma: no-cache\r\n\
             Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
             Chrome/142.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: http://gateway.example:8080\r\n\
             Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate\r\nAccept-Language: en-US,en;q=0.9\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
        ),
        (
            "curl",
            "GET /echo HTTP/1.1\r\nHost: gateway.example:8080\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Connection: Upgrade\r\n\r\n",
        ),
        (
            "ws (Node.js)",
            "GET /echo HTTP/1.1\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nHost: gateway.example:8080\r\n\r\n",
        ),
        (
            "the RFC's example",
            "GET /echo HTTP/1.1\r\nHost: gateway.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n\
             Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n",
        ),
    ];

    #[test]
    fn what_programs_send_is_an_opening_handshake_however_it_is_cut() {
        for (client, head) in HEADS {
            let whole = judged(head);
            let parts = whole.clone().unwrap().expect(client);
            assert_eq!((parts.host.as_str(), parts.path.as_str()), ("gateway.example", "/echo"), "{client}");
            // The bytes behind the head are frames, and none of the scan's business.
            let bytes = [head.as_bytes(), b"\x81\x80\0\0\0\0"].concat();
            for cut in 0..bytes.len() {
                let mut scan = HeadScan::new(16_384, 100);
                let first = scan.scan(&bytes[..cut]);
                assert_eq!(first, Ok((cut >= head.len()).then_some(head.len())), "{client} cut at {cut}");
                if first == Ok(None) {
                    assert_eq!(scan.scan(&bytes), Ok(Some(head.len())), "{client} cut at {cut}");
                }
            }
            assert_eq!(parts_of(&bytes[..head.len()]), whole);
        }
    }
}
