//! An echo server on tokio-tungstenite. Replies to all messages that one read brought leave together.

use std::io;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::{Error, Message};

fn main() -> io::Result<()> {
    ringway_peers::serve("ws", |stream| async {
        let _ended = echo(stream).await;
    })
}

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let mut socket = accept_async(stream).await?;
    while let Some(first) = socket.next().await {
        let mut next = Some(first);
        while let Some(message) = next {
            if let message @ (Message::Text(_) | Message::Binary(_)) = message? {
                socket.feed(message).await?;
            }
            next = socket.next().now_or_never().flatten();
        }
        socket.flush().await?;
    }
    Ok(())
}
