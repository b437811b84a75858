//! Accepting connections from one listener.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::descriptor::Descriptor;
use super::driver::Driver;
use super::stream::Stream;
use super::timers::Timer;

/// A listener of one port on one shard.
#[derive(Debug)]
pub struct Acceptor {
    descriptor: Descriptor,
    /// epoll wants sockets that do not block, the ring wants sockets that do.
    flags: SocketFlags,
}

/// What an attempt to accept found.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Stream(Stream),
    /// The queue is empty.
    Nothing,
    /// The client left the queue before we came (RFC 9293 section 3.10.7.4).
    Aborted,
    /// The process or the machine has no descriptor left; the connection waits in the queue.
    NoDescriptor,
    /// The kernel has no memory for it now; the connection waits in the queue.
    NoMemory,
    /// Anything else.
    Failed(io::Error),
}

impl Acceptor {
    /// Binds a listening socket to the runtime of the calling thread.
    ///
    /// # Errors
    /// Where epoll refuses the socket.
    pub fn new(listener: OwnedFd, driver: Driver) -> io::Result<Self> {
        let flags = match driver {
            Driver::IoUring => SocketFlags::CLOEXEC,
            Driver::Epoll => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        };
        Descriptor::new(listener).map(|descriptor| Self { descriptor, flags })
    }

    /// Waits for a connection in the queue, or for the deadline.
    ///
    /// # Errors
    /// Where the listener cannot be polled any more.
    pub async fn wait(&self, timer: &Timer) -> io::Result<()> {
        timer.race(self.descriptor.readable()).await.unwrap_or(Ok(()))
    }

    /// Takes the next connection from the queue, without waiting.
    pub fn accept_now(&self) -> Accepted {
        match rustix::net::accept_with(self.descriptor.as_fd(), self.flags) {
            Ok(socket) => Stream::new(socket).map_or_else(Accepted::Failed, Accepted::Stream),
            Err(Errno::AGAIN) => Accepted::Nothing,
            // accept(2): errors that are already pending on the new socket are reported here too.
            Err(
                Errno::CONNABORTED
                | Errno::INTR
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
                | Errno::PERM,
            ) => Accepted::Aborted,
            Err(Errno::MFILE | Errno::NFILE) => Accepted::NoDescriptor,
            Err(Errno::NOBUFS | Errno::NOMEM) => Accepted::NoMemory,
            Err(error) => Accepted::Failed(error.into()),
        }
    }

    /// Stops new connections from entering the queue, so that it can be emptied and closed without losing one.
    ///
    /// Closing a listener resets the connections in its queue. A filter that drops every packet keeps new ones out
    /// first: their SYN goes unanswered, is sent again, and meets a closed port or the successor.
    pub fn refuse_new(&self) {
        let drop_everything = socket2::SockFilter::new(BPF_RETURN, 0, 0, 0);
        // Where it fails, closing is as lossy as it always was; there is nothing better to do.
        let _ = socket2::SockRef::from(&self.descriptor).attach_filter(&[drop_everything]);
    }
}

/// `BPF_RET | BPF_K`: return the constant operand, zero, the number of bytes to keep.
const BPF_RETURN: u16 = 0x06;
