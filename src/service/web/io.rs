//! A connection as hyper reads and writes it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::net::polled::{HasStream, Polled};
use crate::net::stream::{Gone, Received};
use crate::service::Resources;

/// Whom a connection is with.
pub trait Peer: HasStream {
    /// What the shard lends.
    fn resources(&self) -> &Rc<Resources>;

    /// Takes note of bytes that came.
    fn received(&self, size: usize) {
        let _ = size;
    }

    /// Takes note of bytes that were sent, or that there was no room for any.
    fn sent(&self, size: Poll<usize>) {
        let _ = size;
    }
}

/// The most that hyper holds for one side that waits for the other: of a body, and of what is written.
pub const BUFFER_SIZE_MAX: usize = 128 << 10;

/// How often in a row hyper receives something at once, before others have their turn. It passes over interim responses,
/// for one, within a single poll, and would do so for as long as they come.
const RECEIVES_AT_ONCE_MAX: u32 = 16;

/// A connection whose bytes are all hyper's.
pub struct Io<'s, P> {
    polled: Polled<'s, P>,
    /// What was received and did not fit.
    left: Vec<u8>,
    /// How often something was received without a wait.
    received_at_once: u32,
    /// There while others have their turn.
    turn: Option<Pin<Box<dyn Future<Output = ()> + 's>>>,
}

impl<'s, P: Peer + 's> Io<'s, P> {
    /// The connection with this peer.
    pub fn new(peer: P) -> Self {
        Self::with(peer, Vec::new())
    }

    /// The connection with this peer, of whom some bytes have come already.
    pub fn with(peer: P, early: Vec<u8>) -> Self {
        Self { polled: Polled::new(peer), left: early, received_at_once: 0, turn: None }
    }

    /// Whom the connection is with.
    pub(super) fn peer(&self) -> &P {
        self.polled.owner()
    }

    /// Hands over what is there already, as far as it fits; `false` where nothing is.
    pub(super) fn hand_over(&mut self, cursor: &mut ReadBufCursor<'_>) -> bool {
        let size = self.left.len().min(cursor.remaining());
        cursor.put_slice(&self.left[..size]);
        if size == self.left.len() {
            self.left = Vec::new();
        } else {
            self.left.drain(..size);
        }
        size > 0
    }

    /// Hands over what was received, and keeps what does not fit.
    pub(super) fn take(&mut self, bytes: &[u8], cursor: &mut ReadBufCursor<'_>) {
        let (fits, rest) = bytes.split_at(bytes.len().min(cursor.remaining()));
        cursor.put_slice(fits);
        self.left.extend_from_slice(rest);
    }

    /// Receives, but lets others have their turn where there is always something.
    pub(super) fn poll_receive(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Received> {
        if self.received_at_once == RECEIVES_AT_ONCE_MAX {
            let peer = self.polled.owner().clone();
            let turn = self.turn.get_or_insert_with(|| {
                Box::pin(async move {
                    // On a ring no wait ends at once. An error of the poll is met again, and told, by the receive.
                    let _ = peer.stream().readable().await;
                    peer.resources().give_way().await;
                })
            });
            ready!(turn.as_mut().poll(context));
            self.turn = None;
            self.received_at_once = 0;
        }
        let received = self.polled.poll_receive(context, buffer);
        self.received_at_once = if received.is_ready() { self.received_at_once + 1 } else { 0 };
        received
    }
}

impl<'s, P: Peer + Unpin + 's> Read for Io<'s, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.hand_over(&mut cursor) {
            return Poll::Ready(Ok(()));
        }
        let resources = Rc::clone(self.polled.owner().resources());
        let mut scratch = resources.scratch.lend();
        match ready!(self.poll_receive(context, &mut scratch)) {
            Received::Bytes(size) => {
                self.peer().received(size);
                self.take(&scratch[..size], &mut cursor);
                Poll::Ready(Ok(()))
            }
            Received::End | Received::Nothing => Poll::Ready(Ok(())),
            Received::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl<'s, P: Peer + Unpin + 's> Write for Io<'s, P> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = self.polled.poll_send(context, bytes);
        match sent {
            Poll::Ready(Ok(size)) => {
                self.peer().sent(Poll::Ready(size));
                Poll::Ready(Ok(size))
            }
            Poll::Ready(Err(Gone)) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Poll::Pending => {
                self.peer().sent(Poll::Pending);
                Poll::Pending
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Whoever drives hyper ends the connection.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
