//! When the messages of an open loop are due.

use std::time::{Duration, Instant};

/// Messages that are due within so long are due together: a finer clock would cost more than the messages.
const STEP_MIN: Duration = Duration::from_micros(100);
const NS_PER_S: u128 = 1_000_000_000;

/// So many messages a second over all connections, each connection in turn.
///
/// Message k is due k / rate after the start, rounded up to a step, and is for connection k modulo their number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    start: Instant,
    per_s: u64,
    step: Duration,
    /// All messages there will be.
    messages: u64,
    connections: u64,
}

impl Schedule {
    /// The schedule for `duration` from `start` on. Rate and connections are at least one.
    pub(super) fn new(start: Instant, per_s: u64, duration: Duration, connections: u64) -> Self {
        let interval = Duration::from_nanos(saturating(NS_PER_S / u128::from(per_s)));
        let messages = saturating(duration.as_nanos() * u128::from(per_s) / NS_PER_S).max(1);
        Self { start, per_s, step: interval.max(STEP_MIN), messages, connections }
    }

    /// The time between two steps, at least 100 µs.
    pub(super) fn step(&self) -> Duration {
        self.step
    }

    /// All messages there will be.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// When the message of this number, counted on one connection from 0, is due.
    pub(super) fn due(&self, connection: u64, message: u64) -> Instant {
        let k = u128::from(connection) + u128::from(message) * u128::from(self.connections);
        let exact = k * NS_PER_S / u128::from(self.per_s);
        let step = self.step.as_nanos();
        self.start + Duration::from_nanos(saturating(exact.div_ceil(step) * step))
    }

    /// How many messages are due by `now`, over all connections.
    pub(super) fn count(&self, now: Instant) -> u64 {
        let step = self.step.as_nanos();
        let passed = now.saturating_duration_since(self.start).as_nanos() / step * step;
        // Message k is due from k * NS_PER_S / per_s on, rounded down; this counts the k for which that is not later.
        let count = ((passed + 1) * u128::from(self.per_s)).div_ceil(NS_PER_S);
        saturating(count).min(self.messages)
    }

    /// How many of the first `count` messages are for this connection.
    pub(super) fn share(&self, count: u64, connection: u64) -> u64 {
        count.saturating_sub(connection).div_ceil(self.connections)
    }
}

fn saturating(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::clock;

    #[test]
    fn what_is_due_is_counted_from_the_moment_it_is_due() {
        for per_s in [1, 7, 1000, 9_999, 10_000, 30_000, 1_234_567] {
            let start = clock::now();
            let schedule = Schedule::new(start, per_s, Duration::from_secs(2), 3);
            assert_eq!(schedule.messages(), 2 * per_s);
            for k in (0..schedule.messages()).step_by(usize::try_from(per_s / 100 + 1).unwrap()) {
                let due = schedule.due(k % 3, k / 3);
                assert!(schedule.count(due) > k, "message {k} at {per_s} a second is due");
                if due > start {
                    let before = due.checked_sub(Duration::from_nanos(1)).unwrap();
                    assert!(schedule.count(before) <= k, "message {k} at {per_s} a second is not yet due");
                }
            }
            assert_eq!(schedule.count(start + Duration::from_secs(60)), schedule.messages());
        }
    }

    #[test]
    fn connections_take_turns() {
        let schedule = Schedule::new(clock::now(), 1000, Duration::from_secs(1), 3);
        for count in 0..20 {
            let shares: Vec<u64> = (0..3).map(|connection| schedule.share(count, connection)).collect();
            assert_eq!(shares.iter().sum::<u64>(), count);
            assert!(shares.is_sorted_by(|first, second| first >= second) && shares[0] - shares[2] <= 1);
        }
    }
}
