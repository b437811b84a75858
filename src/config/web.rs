//! What a route says that answers plain requests itself: where it sends clients.

use super::PathPattern;
use crate::protocol::closed_set;

closed_set! {
    /// The scheme of a URL that is no WebSocket's.
    pub enum WebScheme {
        /// Without TLS.
        Http => "http",
        /// With TLS.
        Https => "https",
    }
}

impl WebScheme {
    /// The port of URLs that name none.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// `redirect` of a route: where clients are sent. At least one of the first four is there; what is not is as in the
/// request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The scheme.
    pub scheme: Option<WebScheme>,
    /// The host; an IPv6 address in brackets.
    pub host: Option<String>,
    /// The port. Without one, another scheme has its default port.
    pub port: Option<u16>,
    /// The path; a prefix only where that of the route is one.
    pub path: Option<PathPattern>,
    /// One of [`Redirect::STATUSES`].
    pub status: u16,
}

impl Redirect {
    /// The statuses that send a client elsewhere (RFC 9110 section 15.4), apart from that which makes a GET of everything.
    pub const STATUSES: [u16; 4] = [301, 302, 307, 308];
    /// The one that is used where none is written: for good, and the method stays.
    pub const STATUS: u16 = 308;
}
