//! Accepting connections from one listener.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
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
            // accept(2) looks for a descriptor before it looks at the queue.
            Err(Errno::MFILE | Errno::NFILE) if self.is_queue_empty() => Accepted::Nothing,
            Err(Errno::MFILE | Errno::NFILE) => Accepted::NoDescriptor,
            Err(Errno::NOBUFS | Errno::NOMEM) => Accepted::NoMemory,
            Err(error) => Accepted::Failed(error.into()),
        }
    }

    /// Whether nobody waits in the queue, as far as can be told.
    fn is_queue_empty(&self) -> bool {
        let mut poll = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut poll, Some(&at_once)), Ok(0))
    }

    /// Keeps new connections out of the queue, so that it can be emptied and closed without losing one.
    ///
    /// Closing a listener resets the connections in its queue, and those whose handshake is under way. So a filter
    /// drops every SYN first: it is sent again, and meets a closed port or the successor. Whoever has had our SYN-ACK
    /// still gets in, which takes as long as its answer is on its way.
    pub fn refuse_new(&self) {
        let filter = [
            socket2::SockFilter::new(BPF_LOAD_BYTE, 0, 0, TCP_FLAGS_OFFSET),
            socket2::SockFilter::new(BPF_JUMP_IF_SET, 0, 1, TCP_SYN),
            socket2::SockFilter::new(BPF_RETURN, 0, 0, 0),
            socket2::SockFilter::new(BPF_RETURN, 0, 0, u32::MAX),
        ];
        // Where it fails, closing is as lossy as it always was; there is nothing better to do.
        let _ = socket2::SockRef::from(&self.descriptor).attach_filter(&filter);
    }
}

/// `BPF_LD | BPF_B | BPF_ABS`: load the byte at the operand, counted from the TCP header.
const BPF_LOAD_BYTE: u16 = 0x30;
/// `BPF_JMP | BPF_JSET | BPF_K`: jump by one of two distances, as the byte has a bit of the operand or not.
const BPF_JUMP_IF_SET: u16 = 0x45;
/// `BPF_RET | BPF_K`: keep as many bytes of the packet as the operand says.
const BPF_RETURN: u16 = 0x06;
/// Where the flags stand in a TCP header (RFC 9293 section 3.1).
const TCP_FLAGS_OFFSET: u32 = 13;
/// The flag of a packet that asks for a connection.
const TCP_SYN: u32 = 0x02;
