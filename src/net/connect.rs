//! Connecting to another machine, or to a process of this one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::stream::Stream;

/// How a connection is made, kept and left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connect {
    /// The address to come from; by default the kernel chooses. One address has some 28,000 ports for one destination.
    pub source: Option<IpAddr>,
    /// Whether closing resets, so that neither side keeps the connection in TIME-WAIT. What was sent may then be lost:
    /// it is for those who have waited for the peer's end.
    pub reset_on_close: bool,
    /// Whether the kernel looks after a silent peer, and ends the connection where that is gone.
    pub keep_alive: Option<KeepAlive>,
}

/// How a peer is looked after that says nothing, or does not acknowledge.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// The silence after which it is probed.
    pub after: Duration,
    /// From one probe to the next.
    pub interval: Duration,
    /// How many probes may go unanswered.
    pub probes: u32,
    /// How long what was sent may go unacknowledged.
    pub acknowledge_within: Duration,
}

impl Connect {
    /// Connects to `address`. Dropped before it is done, it gives the attempt up.
    ///
    /// # Errors
    /// What `connect(2)` reports, at once or later, or a source address that cannot be bound.
    pub async fn to(self, address: SocketAddr) -> io::Result<Stream> {
        let socket = socket(self.source, address)?;
        socket.set_tcp_nodelay(true)?;
        if self.reset_on_close {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        if let Some(keep_alive) = self.keep_alive {
            keep_alive.set(&socket)?;
        }
        connect(socket, &address.into()).await
    }

    /// Connects to the Unix socket at `path`; of the options none applies.
    ///
    /// # Errors
    /// What `connect(2)` reports, or a path that is longer than such an address may be.
    pub async fn to_unix(self, path: &Path) -> io::Result<Stream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        connect(socket, &SockAddr::unix(path)?).await
    }
}

/// A socket that does not block, for a connection to `address` that comes from `source`, where that is given.
///
/// It has no port yet. One is found once the destination is known, so that each destination has all ports of the source;
/// a `bind` that chose one would run out of them when all destinations together have as many connections.
///
/// # Errors
/// Where there is no descriptor for it, or no interface of this machine has the address.
pub fn socket(source: Option<IpAddr>, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(source) = source {
        bind_without_port(&socket)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

async fn connect(socket: Socket, address: &SockAddr) -> io::Result<Stream> {
    match socket.connect(address) {
        Ok(()) => return Stream::new(socket.into()),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let stream = Stream::new(socket.into())?;
    stream.writable().await?;
    stream.take_error()?;
    Ok(stream)
}

/// Lets `bind` leave the port to `connect`.
fn bind_without_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).expect("the size of an integer");
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the option's value is an integer that is
    // read before the call returns.
    #[allow(unsafe_code, reason = "neither rustix nor socket2 has this option")]
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl KeepAlive {
    fn set(self, socket: &Socket) -> io::Result<()> {
        let keepalive =
            TcpKeepalive::new().with_time(self.after).with_interval(self.interval).with_retries(self.probes);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.acknowledge_within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_with_a_source_leaves_its_port_to_the_connect() {
        let to: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let socket = socket(Some("127.0.0.7".parse().unwrap()), to).unwrap();
        let from = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(from, "127.0.0.7:0".parse().unwrap());
    }
}
