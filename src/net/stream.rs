//! The byte stream of a connection, a client's or an upstream's.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use monoio::buf::IoBuf;
use monoio::io::{CancelHandle, Canceller};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::descriptor::Descriptor;
use super::pool::Buffer;
use super::timers::{Tick, Timer};

/// A connection's bytes, in both directions.
///
/// Plain TCP now; TLS becomes its second arm, behind the same calls.
#[derive(Debug)]
pub struct Stream {
    descriptor: Descriptor,
}

/// What a receive that does not wait found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The peer sends nothing more.
    End,
    /// The connection is broken off: the peer reset it, or is taken for dead.
    Reset,
}

/// The peer cannot be written to any more: it reset the connection, or we cut it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What cancels the operations of one connection in the ring.
#[derive(Default)]
pub struct Cancel {
    canceller: Canceller,
}

impl Cancel {
    fn handle(&self) -> CancelHandle {
        self.canceller.handle()
    }

    /// Runs an operation that has this canceller's handle.
    async fn run<F: Future>(
        &mut self,
        mut operation: Pin<&mut F>,
        timer: &Timer,
        mut wait_on: impl FnMut() -> Option<Tick>,
    ) -> F::Output {
        loop {
            if let Some(output) = timer.race(operation.as_mut()).await {
                return output;
            }
            match wait_on() {
                Some(deadline) => timer.set(deadline),
                None => return self.end(operation).await,
            }
        }
    }

    /// Runs an operation that has this canceller's handle until it is done, or `must_stop`, which is asked whenever the
    /// task is woken.
    async fn run_until<F: Future>(
        &mut self,
        mut operation: Pin<&mut F>,
        mut must_stop: impl FnMut() -> bool,
    ) -> F::Output {
        let output = poll_fn(|context| match operation.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if must_stop() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match output.await {
            Some(output) => output,
            None => self.end(operation).await,
        }
    }

    /// Cancels the operation, and waits for what became of it.
    async fn end<F: Future>(&mut self, operation: Pin<&mut F>) -> F::Output {
        self.canceller = mem::take(&mut self.canceller).cancel();
        operation.await
    }
}

impl Received {
    /// What an operation of the ring found.
    fn of(outcome: io::Result<usize>) -> Self {
        match outcome {
            Ok(0) => Self::End,
            Ok(size) => Self::Bytes(size),
            Err(error) if error.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => Self::Nothing,
            Err(_) => Self::Reset,
        }
    }
}

impl Stream {
    /// Takes an accepted socket over.
    ///
    /// # Errors
    /// Where epoll refuses it.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Descriptor::new(socket).map(|descriptor| Self { descriptor })
    }

    /// Waits until a receive would find something. Holds no buffer; may be dropped.
    ///
    /// # Errors
    /// Those of the poll; they are met again, and told, by the receive that follows.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.descriptor.readable()
    }

    /// Waits until a send would find room. May be dropped.
    ///
    /// # Errors
    /// Those of the poll; they are met again, and told, by the send that follows.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> {
        self.descriptor.writable()
    }

    /// Receives what is there, without waiting.
    #[inline]
    pub fn receive_now(&self, buffer: &mut [u8]) -> Received {
        loop {
            return match rustix::net::recv(self.descriptor.as_fd(), &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => Received::End,
                Ok((size, _)) => Received::Bytes(size),
                Err(Errno::AGAIN) => Received::Nothing,
                Err(Errno::INTR) => continue,
                Err(_) => Received::Reset,
            };
        }
    }

    /// Sends what the socket has room for, without waiting, and returns how many bytes that was.
    ///
    /// # Errors
    /// [`Gone`].
    #[inline]
    pub fn send_now(&self, bytes: &[u8]) -> Result<usize, Gone> {
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            return match rustix::net::send(self.descriptor.as_fd(), bytes, flags) {
                Ok(size) => Ok(size),
                Err(Errno::AGAIN) => Ok(0),
                Err(Errno::INTR) => continue,
                Err(_) => Err(Gone),
            };
        }
    }

    /// Receives through the ring.
    ///
    /// Once the deadline has passed, `wait_on` is asked for the next one; where there is none the operation is
    /// cancelled, and its outcome awaited: bytes that came at the last moment are not lost.
    pub async fn receive(
        &self,
        buffer: Buffer,
        cancel: &mut Cancel,
        timer: &Timer,
        wait_on: impl FnMut() -> Option<Tick>,
    ) -> (Received, Buffer) {
        let operation = pin!(self.descriptor.receive(buffer, cancel.handle()));
        let (outcome, buffer) = cancel.run(operation, timer, wait_on).await;
        (Received::of(outcome), buffer)
    }

    /// Receives through the ring until `must_stop`, which is asked whenever the task is woken; otherwise as
    /// [`Self::receive`].
    pub async fn receive_until(
        &self,
        buffer: Buffer,
        cancel: &mut Cancel,
        must_stop: impl FnMut() -> bool,
    ) -> (Received, Buffer) {
        let operation = pin!(self.descriptor.receive(buffer, cancel.handle()));
        let (outcome, buffer) = cancel.run_until(operation, must_stop).await;
        (Received::of(outcome), buffer)
    }

    /// Sends a range of the buffer through the ring for as long as it takes, and returns how many bytes were sent: at
    /// least one.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send_patiently(&self, buffer: Buffer, range: Range<usize>) -> (Result<usize, Gone>, Buffer) {
        let (outcome, bytes) = self.descriptor.send(buffer.slice(range)).await;
        (outcome.map_err(|_| Gone), bytes.into_inner())
    }

    /// Sends a range of the buffer through the ring, and returns how many bytes were sent: at least one.
    ///
    /// Deadlines are as with [`Self::receive`], but where there is no other the connection is broken off, which ends the
    /// send as well: what became of the bytes of a cancelled one would not be known, so the connection would be of no
    /// more use. And what can be cancelled has to be registered with monoio, which costs a fiftieth of an echo.
    ///
    /// # Errors
    /// [`Gone`], also where the connection was broken off.
    pub async fn send(
        &self,
        buffer: Buffer,
        range: Range<usize>,
        timer: &Timer,
        mut wait_on: impl FnMut() -> Option<Tick>,
    ) -> (Result<usize, Gone>, Buffer) {
        let mut operation = pin!(self.descriptor.send(buffer.slice(range)));
        let (outcome, bytes) = loop {
            if let Some(output) = timer.race(operation.as_mut()).await {
                break output;
            }
            match wait_on() {
                Some(deadline) => timer.set(deadline),
                None => {
                    self.break_off();
                    break operation.await;
                }
            }
        };
        (outcome.map_err(|_| Gone), bytes.into_inner())
    }

    /// What a receive would find, of which nothing is taken: of bytes, one is told.
    pub fn peek_now(&self) -> Received {
        let mut byte = [0; 1];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        match rustix::net::recv(self.descriptor.as_fd(), &mut byte[..], flags) {
            Ok((0, _)) => Received::End,
            Ok((size, _)) => Received::Bytes(size),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::Reset,
        }
    }

    /// The peer's address; `None` where it has none, or is gone already.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        rustix::net::getpeername(self.descriptor.as_fd()).ok()?.and_then(|address| address.try_into().ok())
    }

    /// The error that the socket keeps, which is how an attempt to connect tells its outcome; it is told once.
    pub(super) fn take_error(&self) -> io::Result<()> {
        rustix::net::sockopt::socket_error(self.descriptor.as_fd())??;
        Ok(())
    }

    /// Says that nothing more will be sent; what was sent still arrives.
    pub fn finish(&self) {
        // An error means that the peer is gone, which the next receive tells.
        let _ = rustix::net::shutdown(self.descriptor.as_fd(), Shutdown::Write);
    }

    /// Breaks the connection off: who waits to send meets that it is gone, who waits to receive its end.
    pub fn break_off(&self) {
        // An error means that it is gone already.
        let _ = rustix::net::shutdown(self.descriptor.as_fd(), Shutdown::Both);
    }

    /// Lets the closing of the connection reset it, and discard what the peer has not acknowledged: the peer learns that
    /// what it got is not all.
    pub fn reset_on_close(&self) {
        // An error means that the peer is gone, and learns nothing more.
        let _ = rustix::net::sockopt::set_socket_linger(self.descriptor.as_fd(), Some(Duration::ZERO));
    }

    /// Closes the descriptor before this returns. Dropping a stream leaves that to the ring's next turn.
    pub fn close_now(self) {
        self.descriptor.close_now();
    }
}
