//! An echo of bytes without any WebSocket: what stands behind a proxy that takes the frames off.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn main() -> io::Result<()> {
    ringway_peers::serve("tcp", |stream| async {
        let _ended = echo(stream).await;
    })
}

/// Returns when the client has closed its side.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let size = stream.read(&mut buffer).await?;
        if size == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..size]).await?;
    }
}
