//! What is counted behind a route that relays: each shard's attempts to connect, and the state of each upstream.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::cell::{Counter, DurationHistogram, HistogramTotals};
use super::cells::LATENCY_BOUNDS_NS;
use super::outcome::ConnectResult;

/// What one shard counts for one route that relays, written by that shard's thread alone.
///
/// Aligned as [`PortCells`](super::PortCells) is.
#[derive(Debug)]
#[repr(align(128))]
pub struct RelayCells {
    /// From the first packet to an upstream until it has accepted: a verified 101, or for `tcp` the connection.
    pub connect_duration: DurationHistogram<{ LATENCY_BOUNDS_NS.len() }>,
    connects: [Counter; ConnectResult::COUNT],
}

impl Default for RelayCells {
    fn default() -> Self {
        Self {
            connect_duration: DurationHistogram::new(&LATENCY_BOUNDS_NS),
            connects: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl RelayCells {
    /// Counts what became of one attempt to get a client to an upstream.
    #[inline]
    pub fn connect(&self, result: ConnectResult) {
        self.connects[result.index()].increment();
    }
}

/// The cells of one route, added up over shards.
#[derive(Clone, Debug)]
pub(super) struct RelayTotals {
    pub(super) connects: [u64; ConnectResult::COUNT],
    pub(super) connect_duration: HistogramTotals,
}

impl RelayTotals {
    /// Adds up the cells of all shards.
    pub(super) fn read<'a>(shards: impl IntoIterator<Item = &'a RelayCells>) -> Self {
        let mut totals =
            Self { connects: [0; _], connect_duration: HistogramTotals::new(LATENCY_BOUNDS_NS.len()) };
        for cells in shards {
            for (total, counter) in totals.connects.iter_mut().zip(&cells.connects) {
                *total = total.wrapping_add(counter.get());
            }
            cells.connect_duration.add_to(&mut totals.connect_duration);
        }
        totals
    }
}

/// The state of one upstream as its gauges show it.
///
/// Every shard and the control thread write it, so unlike a cell it is changed by atomic steps: once when a connection
/// is begun, once when it is open, once when it ends. Nothing else is published by these numbers, so none of them asks
/// for an order.
///
/// Two things are known of its health, apart from each other. *Checks*, made by the control thread alone, find it good
/// or bad. *Connections of clients* use it, until too many in a row have failed; then it is ejected, and passed over
/// until a time; and then it is on trial, while one connection tells whether it is used again.
#[derive(Debug)]
#[repr(align(128))]
pub struct UpstreamState {
    /// A [`Load`]: connections in the lower half, those that are being made in the upper.
    load: AtomicU64,
    /// A [`Standing`].
    standing: AtomicU64,
    ejections: AtomicU64,
    is_checked_good: AtomicBool,
    has_address: AtomicBool,
}

/// How many connections an upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// All of them.
    pub connections: u32,
    /// Of these, the ones that are being made.
    pub connecting: u32,
}

/// A hash of the network that a client comes from, of 30 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientNetwork(NonZeroU32);

impl ClientNetwork {
    const BITS: u32 = 30;

    /// The network with this hash.
    pub const fn of_hash(hash: u64) -> Self {
        match NonZeroU32::new((hash >> (u64::BITS - Self::BITS)) as u32) {
            Some(bits) => Self(bits),
            None => Self(NonZeroU32::MIN),
        }
    }
}

/// What the connections of clients have made of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It gets connections.
    Used {
        /// How many failed in a row, the latest.
        failures: u32,
        /// The network of the client whose request was the latest of these to fail; `None` where none was sent yet.
        network: Option<ClientNetwork>,
    },
    /// It gets none until this time, in milliseconds; then one.
    Ejected {
        /// The time.
        until_ms: u64,
    },
    /// It has that one, and gets no other before its outcome is known.
    OnTrial,
}

impl Default for UpstreamState {
    /// An upstream that nothing is known of: in use, without connections or an address.
    fn default() -> Self {
        Self {
            load: AtomicU64::new(0),
            standing: AtomicU64::new(Standing::NEW.pack()),
            ejections: AtomicU64::new(0),
            is_checked_good: AtomicBool::new(true),
            has_address: AtomicBool::new(false),
        }
    }
}

impl UpstreamState {
    /// Counts one more connection that is being made; `false`, and nothing counted, where the upstream has `max` of
    /// either kind.
    pub fn enter(&self, max: Load) -> bool {
        let entered = self.load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let load = Load::unpack(packed);
            load.has_room(max).then_some(packed + CONNECTION + CONNECTING)
        });
        entered.is_ok()
    }

    /// Counts a connection that [`Self::enter`] has counted as no longer being made.
    pub fn opened(&self) {
        let before = Load::unpack(self.load.fetch_sub(CONNECTING, Ordering::Relaxed));
        debug_assert!(before.connecting > 0, "more connections opened than were begun");
    }

    /// Takes back what [`Self::enter`] has counted; `is_open` where [`Self::opened`] was called for it.
    pub fn leave(&self, is_open: bool) {
        let gone = if is_open { CONNECTION } else { CONNECTION + CONNECTING };
        let before = Load::unpack(self.load.fetch_sub(gone, Ordering::Relaxed));
        debug_assert!(before.connections > 0, "more connections left than were begun");
        debug_assert!(is_open || before.connecting > 0, "more connections given up than were begun");
    }

    /// How many connections it has, now.
    pub fn load(&self) -> Load {
        Load::unpack(self.load.load(Ordering::Relaxed))
    }

    /// What the connections of clients have made of it.
    pub fn standing(&self) -> Standing {
        Standing::unpack(self.standing.load(Ordering::Relaxed))
    }

    /// Puts an upstream whose ejection is over at `now_ms` on trial; `false` where it is not, or somebody was faster.
    pub fn begin_trial(&self, now_ms: u64) -> bool {
        self.advance(|standing| match standing {
            Standing::Ejected { until_ms } if until_ms <= now_ms => Some(Standing::OnTrial),
            _ => None,
        })
    }

    /// The trial ends well.
    pub fn pass_trial(&self) {
        self.end_trial(Standing::NEW);
    }

    /// The trial ends badly: the upstream is ejected again.
    pub fn fail_trial(&self, until_ms: u64) {
        self.end_trial(Standing::Ejected { until_ms });
    }

    /// The trial ends without an outcome, as its client has left. The next connection is another trial.
    pub fn abandon_trial(&self) {
        self.end_trial(Standing::Ejected { until_ms: 0 });
    }

    /// A connection other than a trial has opened: failures so far are forgotten. It ends no ejection, as it may have
    /// been begun long before.
    pub fn succeed(&self) {
        // Looked at first, as this is nearly always so, and a load leaves the line with those who share it.
        if self.standing() != Standing::NEW {
            self.advance(|standing| match standing {
                Standing::Used { .. } => Some(Standing::NEW),
                Standing::Ejected { .. } | Standing::OnTrial => None,
            });
        }
    }

    /// A connection other than a trial has failed. Returns whether this ejected the upstream, until `until_ms`: it is
    /// the last of `eject_after` failures in a row, and `may_eject`.
    ///
    /// `network` is that of the client whose request may have caused the failure, and `None` where none was sent. Such
    /// failures one after the other count once for one network, so that no client ejects an upstream by itself.
    pub fn fail(
        &self,
        network: Option<ClientNetwork>,
        eject_after: u32,
        until_ms: u64,
        may_eject: bool,
    ) -> bool {
        let mut is_ejected = false;
        self.advance(|standing| {
            is_ejected = false;
            match standing {
                Standing::Used { network: latest, .. } if network.is_some() && network == latest => None,
                Standing::Used { failures, network: latest } => {
                    let failures = failures.saturating_add(1);
                    is_ejected = may_eject && failures >= eject_after;
                    let network = network.or(latest);
                    Some(if is_ejected {
                        Standing::Ejected { until_ms }
                    } else {
                        Standing::Used { failures, network }
                    })
                }
                Standing::Ejected { .. } | Standing::OnTrial => None,
            }
        });
        if is_ejected {
            self.ejections.fetch_add(1, Ordering::Relaxed);
        }
        is_ejected
    }

    /// How often it was ejected. Trials that ended badly prolong an ejection, and count no further one.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Says what the latest checks found, and returns what was known before. True until the first check says otherwise.
    pub fn set_checked_good(&self, is_good: bool) -> bool {
        self.is_checked_good.swap(is_good, Ordering::Relaxed)
    }

    /// True exactly while checks find nothing wrong, or are not made.
    pub fn is_checked_good(&self) -> bool {
        self.is_checked_good.load(Ordering::Relaxed)
    }

    /// Says whether it is known where the upstream is.
    pub fn set_has_address(&self, has_address: bool) {
        self.has_address.store(has_address, Ordering::Relaxed);
    }

    /// True exactly while it is known where the upstream is.
    pub fn has_address(&self) -> bool {
        self.has_address.load(Ordering::Relaxed)
    }

    /// Whether it gets connections: its address is known, checks find it good, and it is neither ejected nor on trial.
    pub fn is_healthy(&self) -> bool {
        self.has_address() && self.is_checked_good() && matches!(self.standing(), Standing::Used { .. })
    }

    fn end_trial(&self, outcome: Standing) {
        let is_ended = self.advance(|standing| (standing == Standing::OnTrial).then_some(outcome));
        debug_assert!(is_ended, "a trial is ended by its own connection alone");
    }

    /// Puts what `next` makes of the standing in its place, unless that is nothing; `next` may be asked several times.
    fn advance(&self, mut next: impl FnMut(Standing) -> Option<Standing>) -> bool {
        let advanced = self.standing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            next(Standing::unpack(packed)).map(Standing::pack)
        });
        advanced.is_ok()
    }
}

/// One connection, as [`UpstreamState::load`] is packed.
const CONNECTION: u64 = 1;
/// One connection that is being made.
const CONNECTING: u64 = 1 << 32;

impl Load {
    fn has_room(self, max: Self) -> bool {
        self.connections < max.connections && self.connecting < max.connecting
    }

    #[expect(clippy::cast_possible_truncation, reason = "each half is taken by itself")]
    const fn unpack(packed: u64) -> Self {
        Self { connections: packed as u32, connecting: (packed / CONNECTING) as u32 }
    }
}

/// The two highest bits say which; the rest is what it holds. Milliseconds fit into the rest for millions of years.
const EJECTED: u64 = 1 << 63;
const ON_TRIAL: u64 = 1 << 62;

impl Standing {
    /// In use, with nothing against it.
    const NEW: Self = Self::Used { failures: 0, network: None };

    fn pack(self) -> u64 {
        match self {
            Self::Used { failures, network } => {
                u64::from(network.map_or(0, |network| network.0.get())) << u32::BITS | u64::from(failures)
            }
            Self::Ejected { until_ms } => EJECTED | until_ms.min(ON_TRIAL - 1),
            Self::OnTrial => ON_TRIAL,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "each half is taken by itself")]
    fn unpack(packed: u64) -> Self {
        if packed & EJECTED != 0 {
            Self::Ejected { until_ms: packed & !EJECTED }
        } else if packed & ON_TRIAL != 0 {
            Self::OnTrial
        } else {
            let [failures, network] = [packed as u32, (packed >> u32::BITS) as u32];
            Self::Used { failures, network: NonZeroU32::new(network).map(ClientNetwork) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn each_limit_is_reached_exactly_and_given_back() {
        let state = UpstreamState::default();
        let max = Load { connections: 3, connecting: 2 };
        assert!(state.enter(max) && state.enter(max));
        assert!(!state.enter(max), "two are being made");
        state.opened();
        assert!(state.enter(max));
        state.opened();
        assert_eq!(state.load(), Load { connections: 3, connecting: 1 });
        assert!(!state.enter(max), "three are there");
        state.leave(true);
        assert!(state.enter(max));
        state.leave(false);
        state.leave(false);
        state.leave(true);
        assert_eq!(state.load(), Load { connections: 0, connecting: 0 });
    }

    #[test]
    fn failures_in_a_row_eject_once_and_a_success_between_them_forgives() {
        let state = UpstreamState::default();
        assert!(!state.fail(None, 3, 500, true));
        assert!(!state.fail(None, 3, 500, true));
        state.succeed();
        assert!(!state.fail(None, 3, 500, true));
        assert!(!state.fail(None, 3, 500, true));
        assert!(state.fail(None, 3, 500, true));
        assert_eq!(state.standing(), Standing::Ejected { until_ms: 500 });
        // Those that were on their way say nothing new.
        assert!(!state.fail(None, 3, 900, true));
        state.succeed();
        assert_eq!(state.standing(), Standing::Ejected { until_ms: 500 });
        assert_eq!(state.ejections(), 1);
    }

    #[test]
    fn requests_of_one_network_that_fail_one_after_the_other_count_once() {
        let state = UpstreamState::default();
        let [one, other] = [1 << 63, 1 << 62].map(|hash| Some(ClientNetwork::of_hash(hash)));
        for _ in 0..10 {
            assert!(!state.fail(one, 3, 500, true));
        }
        assert_eq!(state.standing(), Standing::Used { failures: 1, network: one });
        assert!(!state.fail(None, 3, 500, true), "what no request caused counts each time");
        assert!(!state.fail(one, 3, 500, true), "and does not make the next one another's");
        assert_eq!(state.standing(), Standing::Used { failures: 2, network: one });
        assert!(state.fail(other, 3, 500, true));
    }

    #[test]
    fn what_may_not_be_ejected_is_at_the_next_failure_when_it_may() {
        let state = UpstreamState::default();
        for _ in 0..10 {
            assert!(!state.fail(None, 3, 500, false));
        }
        assert_eq!(state.ejections(), 0);
        assert!(state.fail(None, 3, 500, true));
        assert_eq!(state.ejections(), 1);
    }

    #[test]
    fn an_ejection_ends_with_one_trial() {
        let state = UpstreamState::default();
        state.set_has_address(true);
        assert!(state.is_healthy());
        assert!(!state.begin_trial(0), "it is in use");
        assert!(state.fail(None, 1, 500, true));
        assert!(!state.is_healthy());
        assert!(!state.begin_trial(499));
        assert!(state.begin_trial(500));
        assert!(!state.begin_trial(500), "one at a time");
        state.fail_trial(1_000);
        assert!(!state.begin_trial(999));
        assert!(state.begin_trial(1_000));
        state.abandon_trial();
        assert!(state.begin_trial(1_000), "a trial without an outcome is followed by another");
        assert!(!state.is_healthy());
        state.pass_trial();
        assert!(state.is_healthy());
        assert_eq!((state.standing(), state.ejections()), (Standing::NEW, 1));
    }

    #[test]
    fn what_is_known_of_an_upstream_survives_packing() {
        for standing in [
            Standing::NEW,
            Standing::Used { failures: u32::MAX, network: Some(ClientNetwork::of_hash(u64::MAX)) },
            Standing::Used { failures: 1, network: Some(ClientNetwork::of_hash(0)) },
            Standing::Ejected { until_ms: 0 },
            Standing::Ejected { until_ms: ON_TRIAL - 1 },
            Standing::OnTrial,
        ] {
            assert_eq!(Standing::unpack(standing.pack()), standing);
        }
        assert_eq!(Load::unpack(3 * CONNECTION + 2 * CONNECTING), Load { connections: 3, connecting: 2 });
    }

    #[test]
    fn threads_together_never_exceed_a_limit_and_leave_nothing_behind() {
        let state = UpstreamState::default();
        let max = Load { connections: 5, connecting: 2 };
        let enter_often = || {
            let mut entered = 0;
            for turn in 0..50_000 {
                if !state.enter(max) {
                    continue;
                }
                entered += 1;
                let load = state.load();
                assert!(load.connections <= max.connections && load.connecting <= max.connecting, "{load:?}");
                let is_open = turn % 3 != 0;
                if is_open {
                    state.opened();
                }
                state.leave(is_open);
            }
            entered
        };
        let entered: u32 = thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(enter_often));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(entered > 0);
        assert_eq!(state.load(), Load { connections: 0, connecting: 0 });
    }

    #[test]
    fn of_many_threads_one_ejects_and_one_has_the_trial() {
        let state = UpstreamState::default();
        for round in 0..500 {
            let (ejected, trials) = thread::scope(|scope| {
                let threads = [(); 3]
                    .map(|()| scope.spawn(|| (state.fail(None, 2, round, true), state.begin_trial(round))));
                let outcomes = threads.map(|thread| thread.join().unwrap());
                let count = |of: fn(&(bool, bool)) -> bool| outcomes.iter().filter(|one| of(one)).count();
                (count(|one| one.0), count(|one| one.1))
            });
            assert_eq!((ejected, trials), (1, 1));
            state.pass_trial();
        }
        assert_eq!(state.ejections(), 500);
    }
}
