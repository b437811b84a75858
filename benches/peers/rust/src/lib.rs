//! What the servers have in common: one thread, one listener, a task for each connection.

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime;

/// The queue of connections that wait to be accepted; the kernel caps it at `somaxconn`.
const BACKLOG: u32 = 4096;

/// Listens on the loopback port that the first argument names, prints the server's URL, and serves until it is killed.
///
/// The listener has TCP_NODELAY set, and its connections inherit it. How a connection ends is its own matter: many a
/// client of a benchmark leaves by a reset.
///
/// # Errors
/// When there is no runtime or no listener to be had, or accepting fails.
pub fn serve<Serving>(scheme: &str, connection: impl Fn(TcpStream) -> Serving) -> io::Result<()>
where
    Serving: Future<Output = ()> + Send + 'static,
{
    let port = match std::env::args().nth(1).map(|port| port.parse()) {
        None => 0,
        Some(Ok(port)) => port,
        Some(Err(fault)) => return Err(io::Error::new(io::ErrorKind::InvalidInput, fault)),
    };
    runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let listener = listen(port)?;
        println!("{scheme}://{}/", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(connection(stream));
        }
    })
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(BACKLOG)
}
