//! A client's byte stream.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::descriptor::Descriptor;

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
    /// The peer sends nothing more: end of file or a reset.
    End,
}

/// The peer cannot be written to any more: it reset the connection, or we cut it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

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
                Err(_) => Received::End,
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

    /// Says that nothing more will be sent; what was sent still arrives.
    pub fn finish(&self) {
        // An error means that the peer is gone, which the next receive tells.
        let _ = rustix::net::shutdown(self.descriptor.as_fd(), Shutdown::Write);
    }

    /// Closes the descriptor before this returns. Dropping a stream leaves that to the ring's next turn.
    pub fn close_now(self) {
        self.descriptor.close_now();
    }
}
