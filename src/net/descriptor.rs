//! A descriptor that a task can wait for.

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use monoio::BufResult;
use monoio::buf::Slice;
use monoio::io::{AsyncWriteRent, CancelHandle, CancelableAsyncReadRent};
use monoio::net::UnixStream;

use super::pool::Buffer;

/// Anything that polls: a TCP connection, a listener, a timer, the end of a mailbox.
///
/// monoio's `TcpStream` carries 72 bytes of socket options for each connection; its `UnixStream` is the bare handle,
/// eight bytes, and neither the ring nor epoll asks what kind of socket a descriptor is.
///
/// One task may receive through the ring while another part of it sends: hence shared references everywhere.
pub struct Descriptor {
    handle: UnsafeCell<UnixStream>,
}

impl Descriptor {
    /// Takes the descriptor over for the runtime of the calling thread.
    ///
    /// # Errors
    /// Where epoll refuses it; the ring never does.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        UnixStream::from_std(descriptor.into()).map(|handle| Self { handle: UnsafeCell::new(handle) })
    }

    /// Waits until a read would not block: there are bytes, the end, or an error to collect. Holds no buffer.
    ///
    /// # Errors
    /// Where the poll fails; the descriptor is then of no more use.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> {
        // Not relaxed: epoll's remembered readiness may be stale, as receives go past monoio.
        self.handle().readable(false)
    }

    /// Waits until a write would not block.
    ///
    /// # Errors
    /// Where the poll fails.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> {
        self.handle().writable(false)
    }

    /// Receives through the ring, which holds the buffer meanwhile.
    pub(super) fn receive(
        &self,
        buffer: Buffer,
        cancel: CancelHandle,
    ) -> impl Future<Output = BufResult<usize, Buffer>> {
        self.handle_for_operation().cancelable_read(buffer, cancel)
    }

    /// Sends through the ring, which holds the buffer meanwhile.
    pub(super) fn send(&self, bytes: Slice<Buffer>) -> impl Future<Output = BufResult<usize, Slice<Buffer>>> {
        self.handle_for_operation().write(bytes)
    }

    fn handle(&self) -> &UnixStream {
        // SAFETY: the exclusive references of `handle_for_operation` are used only while an operation is being made, in
        // calls on this thread (the type is not Sync) that do not come back here.
        #[allow(unsafe_code, reason = "see handle_for_operation")]
        unsafe {
            &*self.handle.get()
        }
    }

    /// The handle, as monoio wants it for an operation.
    #[allow(clippy::mut_from_ref, reason = "monoio asks for an exclusive reference that it has no use for")]
    fn handle_for_operation(&self) -> &mut UnixStream {
        // SAFETY: an operation copies what the handle shares with it (a counted reference to the descriptor) when it is
        // made or first polled, and does not look at the handle again: monoio's own split halves rest on the same. So
        // of several references that operations under way have kept, none is used while another one is.
        #[allow(unsafe_code, reason = "a connection receives and sends at one time")]
        unsafe {
            &mut *self.handle.get()
        }
    }

    /// Closes the descriptor before this returns.
    ///
    /// # Panics
    /// Where an operation on it has not ended.
    pub fn close_now(self) {
        let raw = self.handle.into_inner().into_raw_fd();
        // SAFETY: the handle has just given its ownership of this open descriptor up to us.
        #[allow(unsafe_code, reason = "monoio's handles give back raw descriptors alone")]
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        drop(descriptor);
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let raw = self.handle().as_raw_fd();
        // SAFETY: the handle owns the descriptor, keeps it open while it lives, and the borrow lives no longer.
        #[allow(unsafe_code, reason = "monoio's handles implement AsRawFd alone")]
        unsafe {
            BorrowedFd::borrow_raw(raw)
        }
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Descriptor").field(&self.as_fd().as_raw_fd()).finish()
    }
}
