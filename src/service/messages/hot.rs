//! A busy connection on a ring: the ring itself receives into a buffer of the connection's own, and sends from it.
//!
//! Where many connections are busy, the operations of all of them enter the kernel together. It takes a buffer for as
//! long as it lasts, so a connection comes here after small reads close to each other, and leaves when it falls quiet,
//! when its reads grow, or when the clock wants something.

use std::rc::Rc;

use super::{Messages, Next, Turn, Unsent};
use crate::metrics::{Direction, End, SlowClientOutcome};
use crate::net::pool::{BUFFER_SIZE, Buffer};
use crate::net::stream::{Cancel, Gone, Received};
use crate::net::timers::{TICKS_PER_S, Tick};
use crate::protocol::websocket::exchange::Outgoing;
use crate::protocol::websocket::keepalive::{Due, Keepalive};
use crate::service::place::{Phase, Place};

/// The largest read of a connection that counts as busy with small ones, in bytes.
pub(super) const SMALL_READ_MAX: usize = BUFFER_SIZE / 2;
/// How close to each other the reads of a busy connection are.
pub(super) const BUSY_WITHIN: Tick = 1;
/// How long nothing has come when a connection counts as quiet.
const QUIET_AFTER: Tick = TICKS_PER_S;

impl Messages {
    /// Serves the connection while it is busy; the end, if it came to that.
    pub(super) async fn run_hot(&mut self) -> Option<End> {
        let place = Rc::clone(&self.place);
        let (lease, mut buffer) = place.resources().pool.as_ref()?.lend()?;
        let mut cancel = Cancel::default();
        let expires_at = self.expires_at();
        if let Some(deadline) = busy_until(&self.keepalive, &place, expires_at) {
            self.client.life.timer.set(deadline);
        }
        let turn = loop {
            let received;
            let client = &mut self.client;
            (received, buffer) = client
                .stream
                .receive(buffer, &mut cancel, &client.life.timer, || {
                    busy_until(&self.keepalive, &place, expires_at)
                })
                .await;
            let size = match received {
                Received::Bytes(size) => size,
                Received::Nothing => break Turn::Wait,
                Received::End | Received::Reset => break Turn::Next(Next::End(End::ClientGone)),
            };
            let (outgoing, next) = self.answer(&mut buffer[..size]);
            let turn;
            (turn, buffer) = self.send_hot(buffer, outgoing, next).await;
            if !matches!(turn, Turn::Wait) || size > SMALL_READ_MAX || self.has_rest() {
                break turn;
            }
            if self.client.life.timer.is_due() {
                match busy_until(&self.keepalive, &place, expires_at) {
                    Some(deadline) => self.client.life.timer.set(deadline),
                    None => break Turn::Wait,
                }
            }
        };
        lease.give_back(buffer);
        self.settle(turn).await
    }

    /// Sends the replies to one read through the ring, as far as there is room for them in the buffer.
    async fn send_hot(&mut self, mut buffer: Buffer, outgoing: Outgoing, next: Next) -> (Turn, Buffer) {
        let received = buffer.len();
        let Outgoing { in_place, spill } = join(&mut buffer, outgoing);
        let size = in_place.len();
        let cells = self.place.cells();
        cells.wire_bytes(Direction::Received).add(received as u64);
        cells.wire_bytes(Direction::Sent).add((size + spill.len()) as u64);
        if size == 0 {
            return (self.send_spill(spill, next), buffer);
        }
        let resources = self.place.resources();
        let deadline = resources.timers.after(self.place.write_timeout);
        let is_late = || resources.phase() == Phase::Cutting || resources.timers.now() >= deadline;
        let client = &mut self.client;
        let mut has_waited = false;
        let wait_on = || {
            has_waited = true;
            if is_late() { None } else { Some(deadline) }
        };
        let (sent, buffer) = client.stream.send(buffer, in_place.clone(), &client.life.timer, wait_on).await;
        if has_waited {
            // The deadline was the send's; the next look at the clock sets it again.
            client.life.timer.set(0);
        }
        let turn = match sent {
            Ok(sent) if sent == size => self.send_spill(spill, next),
            Ok(sent) => {
                let unsent = Unsent { bytes: [&buffer[in_place][sent..], &spill].concat(), sent: 0 };
                Turn::Flush { unsent, then: next }
            }
            Err(Gone) if is_late() && resources.phase() == Phase::Cutting => {
                Turn::Next(Next::End(End::Shutdown))
            }
            Err(Gone) if is_late() => {
                cells.slow_client(SlowClientOutcome::Cut);
                Turn::Next(Next::End(End::SlowClient))
            }
            Err(Gone) => Turn::after(Err(Gone), next),
        };
        (turn, buffer)
    }

    /// Sends the replies that did not fit into the buffer: few, and perhaps of megabytes.
    fn send_spill(&self, spill: Vec<u8>, next: Next) -> Turn {
        Turn::after(self.send(&[], Outgoing { in_place: 0..0, spill }), next)
    }
}

/// Copies replies that did not fit where the frames stood into the buffer, behind those that did, if it has room for them:
/// what was received is answered, and no more needed.
///
/// A compressed reply is often larger than its message was, and what a connection sends by itself wakes a client that runs
/// on the same core before the next connection's turn.
fn join(buffer: &mut Buffer, outgoing: Outgoing) -> Outgoing {
    let Outgoing { in_place, spill } = outgoing;
    if spill.is_empty() || in_place.end + spill.len() > buffer.capacity() {
        return Outgoing { in_place, spill };
    }
    buffer.truncate(in_place.end);
    buffer.extend_from_slice(&spill);
    Outgoing { in_place: in_place.start..buffer.len(), spill: Vec::new() }
}

/// Until when the connection counts as busy, or `None` where it does not, or where something else is due.
fn busy_until(keepalive: &Keepalive, place: &Place, expires_at: Tick) -> Option<Tick> {
    let resources = place.resources();
    let now = resources.timers.now();
    let quiet_at = keepalive.heard.saturating_add(QUIET_AFTER);
    match keepalive.due(&place.patience, now) {
        Due::At(tick) if quiet_at.min(expires_at) > now && resources.phase() == Phase::Serving => {
            Some(tick.min(quiet_at).min(expires_at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(in_place: std::ops::Range<usize>, spill: &[u8]) -> (Vec<u8>, Outgoing) {
        let mut buffer = Vec::with_capacity(BUFFER_SIZE);
        buffer.extend(0..100);
        let outgoing = join(&mut buffer, Outgoing { in_place, spill: spill.to_vec() });
        (buffer[outgoing.in_place.clone()].to_vec(), outgoing)
    }

    #[test]
    fn replies_lie_behind_each_other_where_the_buffer_has_room() {
        let (bytes, outgoing) = joined(4..10, b"spill");
        assert_eq!(bytes, [&[4, 5, 6, 7, 8, 9][..], b"spill"].concat());
        assert_eq!(outgoing, Outgoing { in_place: 4..15, spill: Vec::new() });
        let whole = [7; BUFFER_SIZE];
        assert_eq!(
            joined(0..0, &whole),
            (whole.to_vec(), Outgoing { in_place: 0..BUFFER_SIZE, spill: vec![] })
        );
        assert_eq!(joined(4..10, b"").1, Outgoing { in_place: 4..10, spill: Vec::new() });
    }

    #[test]
    fn replies_that_the_buffer_has_no_room_for_stay_where_they_are() {
        let spill = vec![7; BUFFER_SIZE];
        let (bytes, outgoing) = joined(4..10, &spill);
        assert_eq!(bytes, [4, 5, 6, 7, 8, 9]);
        assert_eq!(outgoing, Outgoing { in_place: 4..10, spill });
    }
}
