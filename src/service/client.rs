//! A client's connection, and how it is written to and let go.

use std::io;
use std::rc::Rc;

use super::life::Life;
use super::place::{Phase, Resources};
use crate::metrics::{Direction, End, SlowClientOutcome};
use crate::net::stream::{Gone, Received, Stream};
use crate::net::timers::Tick;

/// A client's connection: its bytes, and its entry in the books.
///
/// Fields are dropped in order: the descriptor is handed to be closed before the end is counted.
#[derive(Debug)]
pub struct Client {
    /// Its bytes.
    pub stream: Stream,
    /// Its entry in the books, with its one deadline.
    pub life: Life,
}

impl Client {
    /// What the shard lends.
    pub fn resources(&self) -> &Rc<Resources> {
        &self.life.port().resources
    }

    /// Says how the connection ends, and ends our side of TLS where the client has ended its own.
    ///
    /// Where TLS has failed, that is why nothing more came. Without the alert that closes it, the end of a stream may be
    /// somebody else's doing than the client's.
    pub fn end(&mut self, end: End) {
        let cells = &self.life.port().cells;
        let end = match (end, self.stream.tls_failure()) {
            (End::ClientGone, Some(failure)) => {
                cells.tls_failure(failure);
                End::TlsFailed
            }
            (end, _) => end,
        };
        if self.stream.is_truncated() {
            cells.tls_truncated.increment();
        }
        if self.stream.owes_an_end() {
            self.stream.finish();
        }
        self.life.end(end);
    }

    /// Waits for bytes, or for the deadline, which is `None`. Holds no buffer.
    pub fn wait(&self) -> impl Future<Output = Option<io::Result<()>>> {
        self.life.timer.race(self.stream.readable())
    }

    /// Sends what the socket had no room for, within `timeout`.
    ///
    /// # Errors
    /// How the connection ended instead.
    pub async fn flush(&self, unsent: &[u8], timeout: Tick) -> Result<(), End> {
        let cells = &self.life.port().cells;
        cells.send_queue_bytes.add(unsent.len() as u64);
        let outcome = self.flush_rest(unsent, timeout).await;
        cells.send_queue_bytes.sub(unsent.len() as u64);
        match outcome {
            Ok(()) => cells.slow_client(SlowClientOutcome::Recovered),
            Err(End::SlowClient) => cells.slow_client(SlowClientOutcome::Cut),
            Err(_) => {}
        }
        outcome
    }

    async fn flush_rest(&self, mut unsent: &[u8], timeout: Tick) -> Result<(), End> {
        let resources = self.resources();
        // A deadline for the whole, which a client that takes a byte at a time does not move.
        let deadline = resources.timers.after(timeout);
        while !unsent.is_empty() {
            self.life.timer.set(deadline);
            if self.life.timer.race(self.stream.writable()).await.is_none() {
                if resources.phase() == Phase::Cutting {
                    return Err(End::Shutdown);
                }
                if resources.timers.now() >= deadline {
                    return Err(End::SlowClient);
                }
                continue;
            }
            let sent = self.stream.send_now(unsent).map_err(|Gone| End::ClientGone)?;
            unsent = &unsent[sent..];
            resources.give_way().await;
        }
        Ok(())
    }

    /// Says that nothing more will be sent, and discards what still comes until the client is done too.
    ///
    /// Closing a socket with bytes unread resets the connection, and the reset can destroy what was sent last before
    /// the client reads it (RFC 6455 section 7.1.1, RFC 9112 section 9.6). So the client ends it, within `timeout`.
    pub async fn linger(&self, timeout: Tick) {
        self.stream.finish();
        let resources = self.resources();
        let deadline = resources.timers.after(timeout);
        while resources.phase() != Phase::Cutting && resources.timers.now() < deadline {
            match self.stream.discard_now(&mut resources.scratch.lend()) {
                // Inside TLS what is counted is what was said, and this is not looked at.
                Received::Bytes(size) if !self.stream.is_tls() => {
                    self.life.port().cells.wire_bytes(Direction::Received).add(size as u64);
                }
                Received::Bytes(_) | Received::Nothing => {}
                Received::End | Received::Reset => return,
            }
            self.life.timer.set(deadline);
            let _ = self.wait().await;
            resources.give_way().await;
        }
    }
}
