//! What messages carry.

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt as _, Empty, Full};

/// The content of a response, whatever it comes from.
pub type Content = Pin<Box<dyn Body<Data = Bytes, Error = ContentFault>>>;

/// Why content breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFault {
    /// The upstream ended its connection, or broke the framing.
    UpstreamGone,
    /// The upstream said nothing for the response timeout.
    UpstreamTimedOut,
    /// The file became shorter, or could not be read.
    File,
    /// The client ended the body of its request before it was whole, sent more than is taken, or nothing for too long.
    Request,
}

impl fmt::Display for ContentFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::UpstreamGone => "the upstream is gone in the middle of its response",
            Self::UpstreamTimedOut => "the upstream said nothing for too long",
            Self::File => "the file could not be read to its end",
            Self::Request => "the body of the request is not to be had",
        })
    }
}

impl Error for ContentFault {}

/// No content.
pub fn empty() -> Content {
    Box::pin(Empty::new().map_err(|never| match never {}))
}

/// Content that is at hand.
pub fn full(bytes: impl Into<Bytes>) -> Content {
    Box::pin(Full::new(bytes.into()).map_err(|never| match never {}))
}
