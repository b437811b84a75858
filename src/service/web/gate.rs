//! One exchange of a client's connection: the request that hyper gets to read, and where it ends.
//!
//! Every request on a connection is read and judged by our own path, in the buffer that it arrived in, and whatever of it
//! is for hyper passes here: its head as it came, and of what follows exactly its body, whose framing is walked byte by
//! byte. So hyper sees no request that was not judged, and no byte of the next one.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::io::{Io, Peer};
use crate::metrics::Direction;
use crate::net::polled::HasStream;
use crate::net::stream::{Received, Stream};
use crate::net::timers::Tick;
use crate::protocol::http::body::{BodyWalker, ResponseFraming};
use crate::protocol::http::request::BodyFraming;
use crate::service::{Client, Resources};

/// A request that hyper is to read.
#[derive(Debug)]
pub struct Request {
    /// Its head, as it came.
    pub head: Vec<u8>,
    /// What has followed that already.
    pub rest: Vec<u8>,
    /// Its body.
    pub body: BodyFraming,
}

/// How an exchange stands, for whoever drives it.
#[derive(Debug, Default)]
pub struct Exchange {
    /// True exactly when hyper has asked for what follows the request: the response has left, or waits for room.
    has_asked: Cell<bool>,
    /// True exactly when all of the request has come.
    is_read: Cell<bool>,
    /// Since when the response waits for room; `None` while it does not.
    blocked_since: Cell<Option<Tick>>,
    /// True exactly when chunks broke a rule.
    is_malformed: Cell<bool>,
    /// What came behind the request.
    ahead: RefCell<Vec<u8>>,
}

impl Exchange {
    /// Whether the request was read to its end and the response has left; hyper would read the next one.
    pub fn is_done(&self) -> bool {
        self.has_asked.get() && self.blocked_since.get().is_none()
    }

    /// Whether the request was read to its end.
    pub fn is_read(&self) -> bool {
        self.is_read.get()
    }

    /// Since when the response waits for the client to read; `None` while it does not.
    pub fn blocked_since(&self) -> Option<Tick> {
        self.blocked_since.get()
    }

    /// Whether the body broke the rules of its framing.
    pub fn is_malformed(&self) -> bool {
        self.is_malformed.get()
    }

    /// What came behind the request, the beginning of the next one; not counted yet.
    pub fn take_ahead(&self) -> Vec<u8> {
        self.ahead.take()
    }
}

/// A client, and how its exchange stands.
#[derive(Clone, Copy)]
pub struct Watched<'c> {
    client: &'c Client,
    exchange: &'c Exchange,
}

impl<'c> Watched<'c> {
    /// This client, in this exchange.
    pub fn new(client: &'c Client, exchange: &'c Exchange) -> Self {
        Self { client, exchange }
    }
}

impl HasStream for Watched<'_> {
    fn stream(&self) -> &Stream {
        &self.client.stream
    }
}

impl Peer for Watched<'_> {
    fn resources(&self) -> &Rc<Resources> {
        self.client.resources()
    }

    fn received(&self, size: usize) {
        self.client.life.port().cells.wire_bytes(Direction::Received).add(size as u64);
    }

    fn sent(&self, size: Poll<usize>) {
        self.exchange.blocked_since.set(match size {
            Poll::Ready(size) => {
                self.client.life.port().cells.wire_bytes(Direction::Sent).add(size as u64);
                None
            }
            Poll::Pending => {
                self.exchange.blocked_since.get().or_else(|| Some(self.resources().timers.now()))
            }
        });
    }
}

/// What hyper reads a request from, and writes the response to.
pub struct Gate<'c> {
    io: Io<'c, Watched<'c>>,
    /// How far the body has come.
    body: BodyWalker,
}

impl<'c> Gate<'c> {
    /// Lets hyper have `request`, and what of its body is still to come. Its head is counted already.
    ///
    /// # Errors
    /// [`Malformed`] where what has come of the body breaks a rule.
    pub fn new(client: &'c Client, exchange: &'c Exchange, request: Request) -> Result<Self, Malformed> {
        let Request { head: mut left, mut rest, body } = request;
        let mut body = BodyWalker::new(match body {
            BodyFraming::None => ResponseFraming::None,
            BodyFraming::Length(size) => ResponseFraming::Length(size),
            BodyFraming::Chunked => ResponseFraming::Chunked,
        });
        let walked = body.walk(&rest).map_err(|_| Malformed)?;
        let watched = Watched { client, exchange };
        watched.received(walked.size);
        left.extend(rest.drain(..walked.size));
        exchange.ahead.replace(rest);
        exchange.is_read.set(body.is_complete());
        Ok(Self { io: Io::with(watched, left), body })
    }
}

/// Chunks that break the rules of their framing (RFC 9112 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Read for Gate<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = &mut *self;
        if gate.io.hand_over(&mut cursor) {
            return Poll::Ready(Ok(()));
        }
        let Watched { client, exchange } = *gate.io.peer();
        if gate.body.is_complete() {
            // Whoever drives hyper looks at this after each poll, so nobody has to be woken.
            exchange.has_asked.set(true);
            return Poll::Pending;
        }
        let mut scratch = client.resources().scratch.lend();
        let size = match ready!(gate.io.poll_receive(context, &mut scratch)) {
            Received::Bytes(size) => size,
            Received::End | Received::Nothing => return Poll::Ready(Ok(())),
            Received::Reset => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        };
        let Ok(walked) = gate.body.walk(&scratch[..size]) else {
            gate.io.peer().received(size);
            exchange.is_malformed.set(true);
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        };
        gate.io.peer().received(walked.size);
        exchange.is_read.set(walked.is_complete);
        gate.io.take(&scratch[..walked.size], &mut cursor);
        exchange.ahead.borrow_mut().extend_from_slice(&scratch[walked.size..size]);
        Poll::Ready(Ok(()))
    }
}

impl Write for Gate<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
