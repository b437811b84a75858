//! Making the listeners of a port: one SO_REUSEPORT socket for each shard.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The length of an accept queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// The listeners of one port.
#[derive(Debug)]
pub struct Listeners {
    /// Where they listen, with the number that the kernel chose where 0 was asked for.
    pub address: SocketAddr,
    /// One socket for each shard.
    pub sockets: Vec<OwnedFd>,
}

/// Binds `count` listeners to a port.
///
/// Without an address they take both families, or IPv4 alone where the machine has no IPv6.
///
/// # Errors
/// Where the port cannot be bound; EADDRINUSE also where another process, a second copy of this one included, has it.
pub fn bind(address: Option<IpAddr>, number: u16, count: usize) -> io::Result<Listeners> {
    match address {
        Some(address) => bind_to(SocketAddr::new(address, number), count),
        None => match bind_to(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), number), count) {
            Err(error) if has_no_ipv6(&error) => {
                bind_to(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), number), count)
            }
            outcome => outcome,
        },
    }
}

fn bind_to(address: SocketAddr, count: usize) -> io::Result<Listeners> {
    // SO_REUSEPORT would let a second copy start by accident and take part of the traffic. So the first socket binds
    // without it, which fails where anybody else has the port, and gets the option only then: no moment is left in
    // which a second copy could slip in.
    let first = socket(address)?;
    first.bind(&SockAddr::from(address))?;
    first.set_reuse_port(true)?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    while sockets.len() < count {
        let next = socket(address)?;
        next.set_reuse_port(true)?;
        next.bind(&SockAddr::from(address))?;
        sockets.push(next);
    }
    // Only now, so that no connection waits for a shard whose listener could not be made.
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(Listeners { address, sockets: sockets.into_iter().map(OwnedFd::from).collect() })
}

/// A socket with the options that accepted connections inherit.
fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Replies leave as soon as they are written: each read's are one send already.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

fn has_no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}
