//! What a route says that answers plain requests itself: where it sends clients, or which files it has.

use super::PathPattern;
use super::certificate::NamedFile;
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

closed_set! {
    /// How a file may be compressed beforehand (RFC 9110 section 8.4.1).
    pub enum Coding {
        /// Brotli (RFC 7932).
        Br => "br",
        /// Zstandard (RFC 8878).
        Zstd => "zstd",
        /// gzip (RFC 1952).
        Gzip => "gzip",
    }
}

impl Coding {
    /// What follows the name of a file that is compressed so.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Br => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// What a route of `service = "files"` says of its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The folder.
    pub folder: NamedFile,
    /// The name of the file that stands for a folder.
    pub index: String,
    /// The file, by its path in the folder, that a page is served from which is not there; `None` for a 404.
    pub fallback: Option<String>,
    /// How files may be compressed beforehand, the best first.
    pub precompressed: Vec<Coding>,
    /// What `Cache-Control` says of files; `None` for nothing.
    pub cache_control: Option<String>,
    /// Whether names that begin with a dot are served.
    pub hidden: bool,
}

impl Files {
    /// What stands for a folder where nothing is written.
    pub const INDEX: &str = "index.html";
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
