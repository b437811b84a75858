//! Who may use a route: `auth` of a `[[route]]`.

pub mod keys;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;

use self::keys::{Algorithm, Keys};
use super::certificate::NamedFile;
use super::secret::SecretSource;
use super::upstream::{Relay, Upstream};
use crate::protocol::http::forward;
use crate::protocol::http::list::is_token;
use crate::protocol::websocket::close::CloseCode;

/// What a client has to present, or who is asked about it.
#[derive(Clone, Debug)]
pub enum Auth {
    /// A token that is verified here.
    Jwt(Box<Jwt>),
    /// An HTTP service is asked about the head of each request.
    Forward(Box<Forward>),
}

/// A JSON Web Token (RFC 7519).
#[derive(Clone, Debug)]
pub struct Jwt {
    /// What tokens are verified with.
    pub keys: KeySource,
    /// Where a token may stand, in the order in which that is looked at; at least one.
    pub from: Vec<TokenPlace>,
    /// Who must have issued it, if anybody in particular.
    pub issuer: Option<String>,
    /// Whom it must be for: one of these, or anybody where there are none.
    pub audience: Vec<String>,
    /// How far its clock may be from ours.
    pub leeway: Duration,
    /// Claims that it must have, with their values; an array may hold the value among others.
    pub claims: Vec<(String, String)>,
    /// Fields of a request that an upstream gets, and the claims that are their values.
    pub headers: Vec<(String, String)>,
    /// What a WebSocket is closed with when the token expires; `None` where it lives on.
    pub expiry_close_code: Option<CloseCode>,
}

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// One that is kept as a secret is.
    Key {
        /// Where.
        source: SecretSource,
        /// What it is for.
        algorithm: Algorithm,
        /// The key.
        keys: Arc<Keys>,
    },
    /// A set of them (RFC 7517 section 5), which control fetches and reads again.
    Set(KeySet),
}

/// A set of keys, and where it is to be had.
#[derive(Clone, Debug)]
pub struct KeySet {
    /// As it was written.
    pub name: String,
    /// Where it is.
    pub place: KeySetPlace,
    /// How often it is looked at again.
    pub refresh_interval: Duration,
}

/// Where a set of keys is.
#[derive(Clone, Debug)]
pub enum KeySetPlace {
    /// In a file.
    File(NamedFile),
    /// At a URL.
    Url {
        /// Whom to connect to.
        server: Upstream,
        /// Path and query.
        target: String,
        /// The authorities that are believed, where it is asked by TLS.
        ca: Option<(NamedFile, Arc<RootCertStore>)>,
    },
}

/// A service that is asked about requests.
#[derive(Clone, Debug)]
pub struct Forward {
    /// As it was written.
    pub url: String,
    /// Path and query of it.
    pub target: String,
    /// How it is reached: one upstream, with limits of its own.
    pub relay: Relay,
    /// Fields of its answer that go to the upstream, in place of the client's.
    pub headers: Vec<String>,
}

/// Where a token may stand in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// `Authorization: Bearer` (RFC 6750 section 2.1).
    Header,
    /// A cookie of this name.
    Cookie(String),
    /// A parameter of the query of this name (RFC 6750 section 2.3).
    Query(String),
    /// A subprotocol that begins with this: what a browser can say besides a URL.
    Subprotocol(String),
}

impl Jwt {
    /// Where a token stands if nothing is written.
    pub const FROM: TokenPlace = TokenPlace::Header;
    /// How far clocks may be apart if nothing is written.
    pub const LEEWAY: Duration = Duration::from_secs(30);
}

impl KeySet {
    /// How often a set is looked at again if nothing is written.
    pub const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
}

impl Forward {
    /// How long an answer may take if nothing is written.
    pub const TIMEOUT: Duration = Duration::from_secs(2);
    /// How many questions are open at once if nothing is written.
    pub const CONCURRENT_MAX: u32 = 256;
}

/// What of a request is for the gateway alone, or would forge what the gateway says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withheld {
    fields: Vec<String>,
    parameters: Vec<String>,
    subprotocols: Vec<String>,
}

impl Withheld {
    /// As it is carried out.
    pub fn view(&self) -> forward::Withheld<'_> {
        forward::Withheld {
            fields: &self.fields,
            parameters: &self.parameters,
            subprotocols: &self.subprotocols,
        }
    }
}

impl Auth {
    /// What of a request goes to no upstream: tokens where they would be read by others, and the fields that are to say who a
    /// client is.
    pub(super) fn withheld(&self) -> Withheld {
        match self {
            Self::Jwt(jwt) => Withheld {
                fields: jwt.headers.iter().map(|(name, _)| name.clone()).collect(),
                parameters: jwt.from.iter().filter_map(TokenPlace::parameter).collect(),
                subprotocols: jwt.from.iter().filter_map(TokenPlace::subprotocol).collect(),
            },
            Self::Forward(forward) => Withheld { fields: forward.headers.clone(), ..Withheld::default() },
        }
    }

    /// The service that is asked, where one is.
    pub fn forward(&self) -> Option<&Forward> {
        match self {
            Self::Jwt(_) => None,
            Self::Forward(forward) => Some(forward),
        }
    }
}

impl TokenPlace {
    /// Parses `header`, `cookie:NAME`, `query:NAME` and `subprotocol:PREFIX`; `None` for all else.
    pub fn parse(text: &str) -> Option<Self> {
        let token = |name: &str| is_token(name.as_bytes()).then(|| name.to_owned());
        match text.split_once(':') {
            None if text == "header" => Some(Self::Header),
            Some(("cookie", name)) => token(name).map(Self::Cookie),
            Some(("query", name)) => token(name).map(Self::Query),
            Some(("subprotocol", prefix)) => token(prefix).map(Self::Subprotocol),
            _ => None,
        }
    }
}

impl TokenPlace {
    fn parameter(&self) -> Option<String> {
        if let Self::Query(name) = self { Some(name.clone()) } else { None }
    }

    fn subprotocol(&self) -> Option<String> {
        if let Self::Subprotocol(prefix) = self { Some(prefix.clone()) } else { None }
    }
}

impl fmt::Display for TokenPlace {
    /// As the file has it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => formatter.write_str("header"),
            Self::Cookie(name) => write!(formatter, "cookie:{name}"),
            Self::Query(name) => write!(formatter, "query:{name}"),
            Self::Subprotocol(prefix) => write!(formatter, "subprotocol:{prefix}"),
        }
    }
}
