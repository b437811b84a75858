//! A busy direction on a ring, which sends for it and, where reads are small, receives: the operations of all busy
//! connections enter the kernel together.
//!
//! Small reads go into a buffer of the lane's own. Large ones go into the shard's scratch, which is handed over to the
//! ring for the send: a buffer for each connection would leave the cache.

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::task::Poll;

use super::{Pass, Relay, Side};
use crate::metrics::SlowClientOutcome;
use crate::net::pool::{BUFFER_SIZE, Buffer, Pool};
use crate::net::scratch::Handed;
use crate::net::stream::{Cancel, Gone, Received};
use crate::net::timers::{TICKS_PER_S, Tick};

/// The largest read that counts as small, in bytes.
const SMALL_READ_MAX: usize = BUFFER_SIZE / 2;
/// How many small reads in a row make a lane one of small reads.
const SMALL_READS_MIN: u32 = 4;
/// How close to each other the reads of a busy lane are.
pub(super) const BUSY_WITHIN: Tick = 1;
/// How long nothing has come when a lane counts as quiet.
pub(super) const QUIET_AFTER: Tick = TICKS_PER_S;

/// What the reads of a busy lane are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// At most half of a buffer.
    Small,
    /// More.
    Large,
}

/// What one large read came to.
enum Step<'s> {
    /// All was sent, or nothing came.
    Done,
    /// This is to be sent by the ring.
    Send { handed: Handed<'s>, buffer: Buffer, range: Range<usize> },
    /// The receiver had no room for this.
    Flush(Vec<u8>),
    /// There is no more.
    End { is_reset: bool },
}

impl Relay {
    /// Passes on what `from` sends while it is busy.
    pub(super) async fn pump_hot(&self, from: Side, reads: Reads) {
        let lane = self.lane(from);
        lane.is_hot.set(true);
        self.wake_clock_at(self.resources().timers.after(QUIET_AFTER));
        let mut reads = Some(reads);
        while let Some(now) = reads {
            reads = match now {
                Reads::Small => self.pump_small(from).await,
                Reads::Large => self.pump_large(from).await,
            };
        }
        lane.is_hot.set(false);
    }

    /// Passes small reads on, and says what the reads have become, if the lane is still busy.
    async fn pump_small(&self, from: Side) -> Option<Reads> {
        let (lease, mut buffer) = self.resources().pool.as_ref().and_then(Pool::lend)?;
        let mut cancel = Cancel::default();
        let next = loop {
            let received;
            (received, buffer) =
                self.stream(from).receive_until(buffer, &mut cancel, || self.must_cool(from)).await;
            let size = match received {
                Received::Bytes(size) => size,
                Received::Nothing => break None,
                Received::End | Received::Reset => {
                    self.on_stream_end(from, received == Received::Reset);
                    break None;
                }
            };
            match self.take_in(from, &mut buffer[..size], 0) {
                Pass::InPlace(range) => {
                    let unsent;
                    (unsent, buffer) = self.send_hot(from, buffer, range).await;
                    self.flush(from, unsent).await;
                }
                Pass::Composed(bytes) => {
                    let unsent = self.send(from.other(), &bytes);
                    self.flush(from, unsent).await;
                }
            }
            if self.must_cool(from) {
                break None;
            }
            if self.reads_of(from, size) == Reads::Large {
                break Some(Reads::Large);
            }
        };
        lease.give_back(buffer);
        next
    }

    /// Passes large reads on, and says what the reads have become, if the lane is still busy.
    async fn pump_large(&self, from: Side) -> Option<Reads> {
        let mut small_count = 0;
        loop {
            let has_bytes = {
                let mut readable = pin!(self.stream(from).readable());
                poll_fn(|context| match readable.as_mut().poll(context) {
                    Poll::Ready(_) => Poll::Ready(true),
                    Poll::Pending if self.must_cool(from) => Poll::Ready(false),
                    Poll::Pending => Poll::Pending,
                })
                .await
            };
            if !has_bytes {
                return None;
            }
            match self.step_large(from, &mut small_count) {
                Step::Done => {}
                Step::Send { handed, buffer, range } => {
                    let (unsent, buffer) = self.send_hot(from, buffer, range).await;
                    handed.give_back(buffer);
                    self.flush(from, unsent).await;
                }
                Step::Flush(unsent) => self.flush(from, unsent).await,
                Step::End { is_reset } => {
                    self.on_stream_end(from, is_reset);
                    return None;
                }
            }
            if self.must_cool(from) {
                return None;
            }
            if small_count == SMALL_READS_MIN {
                return Some(Reads::Small);
            }
        }
    }

    /// What a read of this size is. What gets a header put in front needs room for it, which the scratch has.
    pub(super) fn reads_of(&self, from: Side, size: usize) -> Reads {
        if size <= SMALL_READ_MAX && self.room(from) == 0 { Reads::Small } else { Reads::Large }
    }

    /// Receives once into the scratch, and says what is to be sent from it.
    fn step_large(&self, from: Side, small_count: &mut u32) -> Step<'_> {
        let scratch = &self.resources().scratch;
        let room = self.room(from);
        let range = {
            let mut bytes = scratch.lend();
            let size = match self.stream(from).receive_now(&mut bytes[room..]) {
                Received::Bytes(size) => size,
                Received::Nothing => return Step::Done,
                Received::End => return Step::End { is_reset: false },
                Received::Reset => return Step::End { is_reset: true },
            };
            *small_count = if self.reads_of(from, size) == Reads::Small { *small_count + 1 } else { 0 };
            match self.take_in(from, &mut bytes[..room + size], room) {
                Pass::InPlace(range) => range,
                Pass::Composed(bytes) => return Step::Flush(self.send(from.other(), &bytes)),
            }
        };
        match scratch.hand_over() {
            Some((handed, buffer)) => Step::Send { handed, buffer, range },
            None => Step::Flush(self.send(from.other(), &scratch.lend()[range])),
        }
    }

    /// Sends bytes of the buffer through the ring, and returns those that it left.
    async fn send_hot(&self, from: Side, buffer: Buffer, range: Range<usize>) -> (Vec<u8>, Buffer) {
        let lane = self.lane(from);
        if range.is_empty() || lane.is_finished.get() {
            return (Vec::new(), buffer);
        }
        // The clock looks every second, and ends a connection whose receiver has had no room for too long.
        let began = self.resources().timers.now();
        lane.block(began);
        let (sent, buffer) = self.stream(from.other()).send_patiently(buffer, range.clone()).await;
        lane.unblock();
        if from == Side::Upstream && sent.is_ok() && self.resources().timers.now() > began + 1 {
            self.place.cells().slow_client(SlowClientOutcome::Recovered);
        }
        match sent {
            Ok(sent) => (buffer[range][sent..].to_vec(), buffer),
            Err(Gone) => {
                self.on_send_failure(from.other());
                (Vec::new(), buffer)
            }
        }
    }

    /// Whether the lane is to leave the ring: nothing has come for a while, or there is something else to do.
    fn must_cool(&self, from: Side) -> bool {
        self.is_quiet(from) || self.has_else_to_do(from) || self.must_not_read(from) || self.has_rest(from)
    }

    fn is_quiet(&self, from: Side) -> bool {
        self.resources().timers.now().saturating_sub(self.lane(from).heard.get()) >= QUIET_AFTER
    }
}
