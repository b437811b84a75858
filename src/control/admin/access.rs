//! Who may read the admin endpoint: whoever shows the token, or reaches it under a name that cannot be rebound.
//!
//! A web page may point a name of its own at 127.0.0.1 and then read, as its own origin, whatever answers there (DNS
//! rebinding). The browser still says in `Host` which name it used. An address there was never resolved and so never
//! rebound; of names, only `localhost` and those the operator chose are answered.

use std::net::IpAddr;

use hyper::header;
use hyper::http::uri::Authority;
use hyper::{Request, StatusCode};

use super::AdminState;

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// No `Host`, more than one, or one that names no host.
    HostInvalid,
    /// A `Host` that the endpoint is not known by.
    HostUnknown,
    /// No token, or another one.
    Token,
}

impl Denial {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::HostInvalid => StatusCode::BAD_REQUEST,
            Self::HostUnknown => StatusCode::MISDIRECTED_REQUEST,
            Self::Token => StatusCode::UNAUTHORIZED,
        }
    }

    /// What the client is told; nothing that it sent is repeated.
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::HostInvalid => "The request has to name one host.\n",
            Self::HostUnknown => {
                "The admin endpoint does not answer under this name. Use its address, localhost, or a token.\n"
            }
            Self::Token => "This needs the admin token, as Authorization: Bearer.\n",
        }
    }
}

/// Whether the request shows the token; false where none is configured.
pub(super) fn has_token<B>(state: &AdminState, request: &Request<B>) -> bool {
    let Some(token) = &state.token else { return false };
    let mut fields = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return false;
    };
    let Some((scheme, shown)) = field.as_bytes().split_at_checked("Bearer ".len()) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"Bearer ") && token.matches(shown)
}

/// Checks that the client reached the endpoint by an address, or by a name that is known.
///
/// The authority of an absolute-form target replaces `Host` (RFC 9112 section 3.2.2).
pub(super) fn check_host<B>(state: &AdminState, request: &Request<B>) -> Result<(), Denial> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return Err(Denial::HostInvalid);
    };
    let field = Authority::try_from(field.as_bytes()).map_err(|_| Denial::HostInvalid)?;
    let authority = request.uri().authority().unwrap_or(&field);
    if authority.as_str().contains('@') {
        return Err(Denial::HostInvalid);
    }
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_known = address.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || state.hosts.iter().any(|known| host.eq_ignore_ascii_case(known));
    if is_known { Ok(()) } else { Err(Denial::HostUnknown) }
}
