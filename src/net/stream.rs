//! A byte stream: a client's, or an upstream's; plain, or inside TLS.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use monoio::buf::IoBuf;
use monoio::io::{CancelHandle, Canceller};

use rustix::io::Errno;
use rustix::net::Shutdown;

use super::descriptor::Descriptor;
use super::pool::Buffer;
use super::scratch::Scratch;
use super::socket;
use super::timers::{Clocked, Tick, Timer};
use super::tls::{ClientSettings, ServerName, ServerSettings, Session};
use crate::metrics::{TlsFailure, TlsHandshake};

/// A connection's bytes, in both directions.
///
/// Plain until TLS begins on it, if it does ([`Self::begin_tls`], [`Self::begin_tls_to`]). What goes past the ring is the
/// same for both; TLS goes nowhere else.
#[derive(Debug)]
pub struct Stream {
    descriptor: Descriptor,
    /// There exactly where TLS is spoken. In a box: an idle plain connection pays eight bytes for it.
    tls: Option<Box<RefCell<Session>>>,
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
    /// The connection is broken off: the peer reset it, or is taken for dead; or TLS cannot tell what was meant to come,
    /// since it failed, or ended without the alert that closes it.
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
        timer: &Timer<impl Clocked>,
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
        Descriptor::new(socket).map(|descriptor| Self { descriptor, tls: None })
    }

    /// Begins TLS as the server, of which `early` has been received already. The next receive looks at that, whether more
    /// has come or not; receives go on with the handshake, and find [`Received::Nothing`] until it is done.
    pub fn begin_tls(&mut self, settings: &ServerSettings, early: &[u8], sealed: &Rc<Scratch>) {
        let session =
            Session::server(settings, early, sealed).expect("the settings are good for every client");
        self.tls = Some(Box::new(RefCell::new(session)));
    }

    /// Begins TLS as the client of the server of this name. The next receive sends the first message.
    pub fn begin_tls_to(
        &mut self,
        settings: &ClientSettings,
        name: &ServerName<'static>,
        sealed: &Rc<Scratch>,
    ) {
        let session = Session::client(settings, name, sealed).expect("the settings are good for every name");
        self.tls = Some(Box::new(RefCell::new(session)));
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether a TLS handshake is under way.
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().is_handshaking())
    }

    /// Whether a TLS handshake waits for room to send, rather than for bytes: the next receive goes on with it.
    pub fn wants_room(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().wants_room())
    }

    /// Whether the client chose HTTP/2 in the TLS handshake, which is done.
    pub fn speaks_http2(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().speaks_http2())
    }

    /// What the TLS handshake came to, once it is done.
    pub fn tls_handshake(&self) -> Option<TlsHandshake> {
        self.tls.as_ref()?.borrow().handshake()
    }

    /// Why TLS failed, if it did.
    pub fn tls_failure(&self) -> Option<TlsFailure> {
        self.tls.as_ref()?.borrow().failure()
    }

    /// Why TLS failed, in words, where it was not the peer who left.
    pub fn tls_fault(&self) -> Option<String> {
        self.tls.as_ref()?.borrow().error().map(ToString::to_string)
    }

    /// Whether the peer ended a stream inside TLS without the alert that closes it: somebody on the way may have.
    pub fn is_truncated(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().is_truncated())
    }

    /// Whether the peer has closed its side of TLS in order and has not heard the same of us.
    pub fn owes_an_end(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().owes_an_end())
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
        match &self.tls {
            None => socket::receive(self.descriptor.as_fd(), buffer),
            Some(tls) => tls.borrow_mut().receive(self.descriptor.as_fd(), buffer),
        }
    }

    /// Receives what nobody will read, without waiting: bytes as they are on the wire.
    pub fn discard_now(&self, buffer: &mut [u8]) -> Received {
        socket::receive(self.descriptor.as_fd(), buffer)
    }

    /// Sends what the socket has room for, without waiting, and returns how many bytes were taken. Inside TLS bytes are
    /// taken once their record has left, and those that were not are to be offered again.
    ///
    /// # Errors
    /// [`Gone`].
    #[inline]
    pub fn send_now(&self, bytes: &[u8]) -> Result<usize, Gone> {
        match &self.tls {
            None => socket::send(self.descriptor.as_fd(), bytes),
            Some(tls) => tls.borrow_mut().send(self.descriptor.as_fd(), bytes),
        }
    }

    /// Receives through the ring, which TLS does not.
    ///
    /// Once the deadline has passed, `wait_on` is asked for the next one; where there is none the operation is
    /// cancelled, and its outcome awaited: bytes that came at the last moment are not lost.
    pub async fn receive(
        &self,
        buffer: Buffer,
        cancel: &mut Cancel,
        timer: &Timer<impl Clocked>,
        wait_on: impl FnMut() -> Option<Tick>,
    ) -> (Received, Buffer) {
        debug_assert!(!self.is_tls(), "records go past the ring");
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
        debug_assert!(!self.is_tls(), "records go past the ring");
        let operation = pin!(self.descriptor.receive(buffer, cancel.handle()));
        let (outcome, buffer) = cancel.run_until(operation, must_stop).await;
        (Received::of(outcome), buffer)
    }

    /// Sends a range of the buffer through the ring, which TLS does not, for as long as it takes, and returns how many
    /// bytes were sent: at least one.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send_patiently(&self, buffer: Buffer, range: Range<usize>) -> (Result<usize, Gone>, Buffer) {
        debug_assert!(!self.is_tls(), "records go past the ring");
        let (outcome, bytes) = self.descriptor.send(buffer.slice(range)).await;
        (outcome.map_err(|_| Gone), bytes.into_inner())
    }

    /// Sends a range of the buffer through the ring, which TLS does not, and returns how many bytes were sent: at least
    /// one.
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
        timer: &Timer<impl Clocked>,
        mut wait_on: impl FnMut() -> Option<Tick>,
    ) -> (Result<usize, Gone>, Buffer) {
        debug_assert!(!self.is_tls(), "records go past the ring");
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
        match &self.tls {
            None => socket::peek(self.descriptor.as_fd()),
            Some(tls) => tls.borrow().peek(self.descriptor.as_fd()),
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
        if let Some(tls) = &self.tls {
            tls.borrow_mut().finish(self.descriptor.as_fd());
        }
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
