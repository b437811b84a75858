//! Connecting to another machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::stream::Stream;

/// How a connection is made and left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connect {
    /// The address to come from; by default the kernel chooses. One address has some 28,000 ports for one destination.
    pub source: Option<IpAddr>,
    /// Whether closing resets, so that neither side keeps the connection in TIME-WAIT. What was sent may then be lost:
    /// it is for those who have waited for the peer's end.
    pub reset_on_close: bool,
}

impl Connect {
    /// Connects to `address`. Dropped before it is done, it gives the attempt up.
    ///
    /// # Errors
    /// What `connect(2)` reports, at once or later, or a source address that cannot be bound.
    pub async fn to(self, address: SocketAddr) -> io::Result<Stream> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if self.reset_on_close {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&address.into()) {
            Ok(()) => return Stream::new(socket.into()),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let stream = Stream::new(socket.into())?;
        stream.writable().await?;
        stream.take_error()?;
        Ok(stream)
    }
}
