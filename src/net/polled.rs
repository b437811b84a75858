//! A stream for those who poll it, as hyper does.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::stream::{Gone, Received, Stream};

/// What has a stream, and lends it to waits that outlive one poll.
pub trait HasStream: Clone {
    /// The stream.
    fn stream(&self) -> &Stream;
}

impl HasStream for &Stream {
    fn stream(&self) -> &Stream {
        self
    }
}

/// Receives and sends by polls. What there is to receive, or room to send, is taken at once; only where there is none
/// is something waited for, and a wait may be dropped at any time.
pub struct Polled<'s, S> {
    owner: S,
    /// True exactly when the latest receive found less than there was room for, so that the next one finds nothing unless
    /// it waits. Never in TLS, which keeps bytes of its own.
    is_drained: bool,
    readable: Option<Wait<'s>>,
    writable: Option<Wait<'s>>,
}

type Wait<'s> = Pin<Box<dyn Future<Output = io::Result<()>> + 's>>;

impl<'s, S: HasStream + 's> Polled<'s, S> {
    /// Polls for this stream.
    pub fn new(owner: S) -> Self {
        Self { owner, is_drained: false, readable: None, writable: None }
    }

    /// Whom the stream is lent from.
    pub fn owner(&self) -> &S {
        &self.owner
    }

    /// Receives into a buffer that holds a record of TLS ([`Stream::receive_now`]); never [`Received::Nothing`].
    pub fn poll_receive(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Received> {
        loop {
            if self.is_drained {
                let owner = &self.owner;
                let wait = self.readable.get_or_insert_with(|| {
                    let owner = owner.clone();
                    Box::pin(async move { owner.stream().readable().await })
                });
                // An error of the poll is met again, and told, by the receive.
                let _ = ready!(wait.as_mut().poll(context));
                self.readable = None;
            }
            let received = self.owner.stream().receive_now(buffer);
            self.is_drained = match received {
                Received::Nothing => true,
                Received::Bytes(size) => size < buffer.len() && !self.owner.stream().is_tls(),
                Received::End | Received::Reset => false,
            };
            if received != Received::Nothing {
                return Poll::Ready(received);
            }
        }
    }

    /// Sends what the socket has room for, at least one byte. Whoever was told to wait has to come back with the same
    /// bytes first ([`Stream::send_now`]).
    pub fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Gone>> {
        loop {
            if let Some(wait) = &mut self.writable {
                let _ = ready!(wait.as_mut().poll(context));
                self.writable = None;
            }
            match self.owner.stream().send_now(bytes) {
                Ok(0) if !bytes.is_empty() => {
                    let owner = self.owner.clone();
                    self.writable = Some(Box::pin(async move { owner.stream().writable().await }));
                }
                sent => return Poll::Ready(sent),
            }
        }
    }
}
