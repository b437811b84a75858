//! Receiving and sending on a socket without waiting: what lies below every stream.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::stream::{Gone, Received};

/// Receives what is there.
#[inline]
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Received {
    loop {
        return match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Received::End,
            Ok((size, _)) => Received::Bytes(size),
            Err(Errno::AGAIN) => Received::Nothing,
            Err(Errno::INTR) => continue,
            Err(_) => Received::Reset,
        };
    }
}

/// Sends what the socket has room for, and returns how many bytes that was.
#[inline]
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Gone> {
    loop {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        return match rustix::net::send(socket, bytes, flags) {
            Ok(size) => Ok(size),
            Err(Errno::AGAIN) => Ok(0),
            Err(Errno::INTR) => continue,
            Err(_) => Err(Gone),
        };
    }
}

/// What a receive would find, of which nothing is taken: of bytes, one is told.
pub(super) fn peek(socket: BorrowedFd<'_>) -> Received {
    let mut byte = [0; 1];
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    match rustix::net::recv(socket, &mut byte[..], flags) {
        Ok((0, _)) => Received::End,
        Ok((size, _)) => Received::Bytes(size),
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Err(_) => Received::Reset,
    }
}
