//! An echo server on sockudo-ws, which sends what was fed to it before it waits for more.
//!
//! So replies to all messages that one read brought leave together.

use std::io;

use futures_util::{SinkExt, StreamExt};
use sockudo_ws::handshake::server_handshake;
use sockudo_ws::{Config, Message, Result, Role, WebSocketStream};
use tokio::net::TcpStream;

fn main() -> io::Result<()> {
    ringway_peers::serve("ws", |stream| async {
        let _ended = echo(stream).await;
    })
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let opened = server_handshake(&mut stream).await?;
    // No timers: the other libraries have none.
    let config = Config::builder().idle_timeout(0).auto_ping(false).build();
    let mut socket = WebSocketStream::from_raw_with_leftover(stream, Role::Server, config, opened.leftover);
    while let Some(message) = socket.next().await {
        if let message @ (Message::Text(_) | Message::Binary(_)) = message? {
            socket.feed(message).await?;
        }
    }
    Ok(())
}
