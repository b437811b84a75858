//! The upstreams of one route: which of them a client goes to, and what is known of each.
//!
//! All shards and the control thread share a [`Group`]. It has no lock: counts and health are atomic, and the addresses
//! of a name are a list that the control thread replaces. Times are milliseconds of one clock,
//! [`clock::monotonic_ms`](crate::net::clock::monotonic_ms).

mod attempt;
mod hash;
mod whereabouts;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::config::upstream::{Balance, Relay, UpstreamAddress};
use crate::metrics::{ConnectResult, Load, Standing, UpstreamState};
use crate::net::tls::{ClientSettings, ServerName};

use self::whereabouts::Whereabouts;

pub use self::attempt::{Attempt, Lease};
pub use self::hash::sticky_hash;
pub use self::whereabouts::{ADDRESSES_MAX, Address};

/// How many attempts one client gets. With more, upstreams that all fail would be asked that many times for each client.
pub const ATTEMPTS_MAX: usize = 8;

/// The upstreams of one route, with the rules by which they are chosen.
#[derive(Debug)]
pub struct Group {
    route: String,
    balance: Balance,
    upstreams: Vec<Upstream>,
    sources: Vec<IpAddr>,
    max: Load,
    slow_start_ms: u64,
    eject_after: Option<NonZeroU32>,
    eject_for_ms: u64,
    /// Counts on with each choice, so that upstreams get their turns.
    turn: AtomicU32,
}

/// Why no upstream could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Those that are healthy have as many connections as they may: come again soon (503).
    Full,
    /// This client has tried all that could be tried, or as many as it may; the last failure says why (502, 504).
    Exhausted,
    /// Checks have found all of them bad (503).
    Unhealthy,
    /// No address is known for any name (502).
    Unresolved,
}

impl Unavailable {
    /// The result to count; `None` where each attempt has been counted already.
    pub const fn result(self) -> Option<ConnectResult> {
        match self {
            Self::Full => Some(ConnectResult::Full),
            Self::Unhealthy => Some(ConnectResult::Unhealthy),
            Self::Unresolved => Some(ConnectResult::Unresolved),
            Self::Exhausted => None,
        }
    }
}

/// What one client has tried: addresses of upstreams, by their indices. None is tried twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    attempts: [(u32, u32); ATTEMPTS_MAX],
    count: u32,
}

impl Tried {
    /// Whether anything was.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn contains(&self, upstream_index: u32, address_index: u32) -> bool {
        self.attempts[..self.count as usize].contains(&(upstream_index, address_index))
    }

    fn is_full(&self) -> bool {
        self.count as usize == ATTEMPTS_MAX
    }

    fn push(&mut self, upstream_index: u32, address_index: u32) {
        self.attempts[self.count as usize] = (upstream_index, address_index);
        self.count += 1;
    }
}

impl Group {
    /// The upstreams of the route of this name; `states` are those of its metrics, one for each upstream.
    ///
    /// # Panics
    /// Where there are fewer states than upstreams.
    pub fn new(
        route: &str,
        relay: &Relay,
        states: impl IntoIterator<Item = Arc<UpstreamState>>,
    ) -> Arc<Self> {
        let limits = &relay.limits;
        let tls = relay.tls.as_ref();
        let tls = tls.map(|tls| (ClientSettings::new(tls.authorities.clone()), tls.name.clone()));
        let mut states = states.into_iter();
        let upstreams = relay.upstreams.iter().map(|upstream| {
            let state = states.next().expect("each upstream has a state");
            let tls = tls.as_ref().filter(|_| upstream.is_tls).map(|(settings, name)| {
                let name = name.clone().unwrap_or_else(|| upstream.host());
                let name = ServerName::try_from(name).expect("the configuration holds names of hosts");
                (settings.clone(), name)
            });
            Upstream::new(&upstream.name, &upstream.address, tls, state)
        });
        let max = |limit: Option<NonZeroU32>| limit.map_or(u32::MAX, NonZeroU32::get);
        Arc::new(Self {
            route: route.to_owned(),
            balance: relay.balance.clone(),
            upstreams: upstreams.collect(),
            sources: relay.sources.clone(),
            max: Load { connections: max(limits.connections_max), connecting: max(limits.connecting_max) },
            slow_start_ms: milliseconds(limits.slow_start),
            eject_after: limits.eject_after,
            eject_for_ms: milliseconds(limits.eject_for),
            turn: AtomicU32::new(0),
        })
    }

    /// Chooses an upstream for a client, and counts a connection to it that is being made.
    ///
    /// With a `hash` ([`sticky_hash`]) it is the same upstream for the same hash while that can be had, and the same
    /// second one while it cannot: highest random weight, so that an upstream that is lost moves its own clients and
    /// no others. Without, it is the one with the fewest connections (of these, the fewest being made, in turn where
    /// that is equal) or each in turn, as the route is balanced. What `tried` holds is passed over, and what is chosen
    /// is added to it.
    ///
    /// An upstream that has become healthy within the time of slow start gets part of its share, which grows evenly
    /// from nearly nothing to the whole. Where the connections that are being made are limited, that part is of the
    /// limit, and at least one. Where they are not, it lets the upstream pass in some of its turns, in a fixed pattern,
    /// as long as there is another that can be chosen. None of this is for clients with a hash: what they stick to an
    /// upstream for is there and nowhere else.
    ///
    /// One that is ejected or on trial is passed over as long as another is in use that this client has not tried. Where
    /// none is, they are chosen from as if nothing had failed: it may have been those clients' requests, and to be refused
    /// helps nobody.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub fn choose(
        self: &Arc<Self>,
        hash: Option<u64>,
        tried: &mut Tried,
        now_ms: u64,
    ) -> Result<Attempt, Unavailable> {
        if tried.is_full() {
            return Err(Unavailable::Exhausted);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let may_still_be_had = |index| self.upstreams[index as usize].whereabouts.untried(index, tried) > 0;
        let terms = Terms { hash, is_last_resort: !self.uses_any(may_still_be_had), now_ms };
        for may_let_pass in [true, false] {
            let mut above = None;
            while let Some(rank) = self.next_best(terms, turn, above, tried) {
                above = Some(rank);
                let upstream = &self.upstreams[rank.index as usize];
                if may_let_pass && self.lets_pass(upstream, terms) {
                    continue;
                }
                let Some(is_trial) = self.enter(upstream, terms) else { continue };
                if hash.is_none() {
                    // Those that could not be had have lost their turns, lest the one behind them get two each time.
                    self.turn.fetch_add(rank.turn, Ordering::Relaxed);
                }
                return Ok(Attempt::begin(self, rank.index, is_trial, tried));
            }
        }
        Err(self.explain(terms, tried))
    }

    /// Whether a route that is balanced like this needs a hash, and of what.
    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    /// The route's name.
    pub fn route(&self) -> &str {
        &self.route
    }

    /// The upstreams, in the order of the configuration.
    pub fn upstreams(&self) -> &[Upstream] {
        &self.upstreams
    }

    /// The address to come from on the way to `to`, an address of this upstream: those of the same family in turn;
    /// `None` where the kernel chooses.
    pub fn source(&self, index: usize, to: SocketAddr) -> Option<IpAddr> {
        let fitting = || self.sources.iter().filter(|source| source.is_ipv4() == to.is_ipv4());
        let count = fitting().count();
        if count == 0 {
            return None;
        }
        let turn = self.upstreams[index].next_source.fetch_add(1, Ordering::Relaxed) as usize;
        fitting().nth(turn % count).copied()
    }

    /// Takes in what checks have found of an upstream, `fault` being why it is not to be used. Returns whether that
    /// changes anything.
    pub fn set_checked(&self, index: usize, fault: Option<String>, now_ms: u64) -> bool {
        let upstream = &self.upstreams[index];
        let is_good = fault.is_none();
        upstream.check_fault.store(fault.map(Arc::new));
        if is_good && !upstream.state.is_checked_good() {
            // Before it counts as healthy, lest clients come at full pace in between.
            upstream.begin_slow_start(now_ms);
        }
        is_good != upstream.state.set_checked_good(is_good)
    }

    /// Takes in the addresses of an upstream that is known by a name: at least one, of which [`ADDRESSES_MAX`] are
    /// used. An upstream that a lookup had not found before is taken into use slowly.
    pub fn set_addresses(&self, index: usize, addresses: &[SocketAddr], now_ms: u64) {
        debug_assert!(!addresses.is_empty(), "no address is a fault of the lookup");
        let upstream = &self.upstreams[index];
        upstream.whereabouts.set(addresses);
        let was_missing = upstream.lookup_fault.swap(None).is_some();
        if was_missing && !upstream.state.has_address() {
            upstream.begin_slow_start(now_ms);
        }
        upstream.state.set_has_address(true);
    }

    /// Takes in that the name of an upstream could not be resolved. It keeps the addresses that it has.
    pub fn set_lookup_fault(&self, index: usize, fault: String) {
        self.upstreams[index].lookup_fault.store(Some(Arc::new(fault)));
    }

    fn count(&self) -> u32 {
        u32::try_from(self.upstreams.len()).expect("a configuration is not that long")
    }

    /// Whether an upstream other than the one of this index is in use.
    fn uses_another(&self, index: u32) -> bool {
        self.uses_any(|other| other != index)
    }

    fn uses_any(&self, counts: impl Fn(u32) -> bool) -> bool {
        (0..).zip(&self.upstreams).any(|(index, upstream)| counts(index) && upstream.state.is_healthy())
    }

    /// The best choice that ranks behind `above`, of those that look as if they could be had.
    fn next_best(&self, terms: Terms, turn: u32, above: Option<Rank>, tried: &Tried) -> Option<Rank> {
        let count = self.count();
        let candidates = (0..count).zip(&self.upstreams).filter_map(|(index, upstream)| {
            let behind = index + count - turn % count;
            let key = match (terms.hash, &self.balance) {
                (Some(hash), _) => !hash::weight(hash, upstream.seed),
                (None, Balance::LeastConnections) => {
                    let load = upstream.state.load();
                    u64::from(load.connections) << 32 | u64::from(load.connecting)
                }
                (None, _) => 0,
            };
            let rank = Rank { key, turn: behind % count, index };
            (above.is_none_or(|above| above < rank) && self.obstacle(index, terms, tried).is_none())
                .then_some(rank)
        });
        candidates.min()
    }

    /// What stands against an upstream, as far as looking at it tells.
    fn obstacle(&self, index: u32, terms: Terms, tried: &Tried) -> Option<Unavailable> {
        let upstream = &self.upstreams[index as usize];
        let state = &upstream.state;
        let is_out = match state.standing() {
            Standing::Used { .. } => false,
            _ if terms.is_last_resort => false,
            Standing::Ejected { until_ms } => terms.now_ms < until_ms,
            Standing::OnTrial => true,
        };
        let load = state.load();
        let max = self.max_now(upstream, terms);
        if !state.has_address() {
            Some(Unavailable::Unresolved)
        } else if is_out || !state.is_checked_good() {
            Some(Unavailable::Unhealthy)
        } else if upstream.whereabouts.untried(index, tried) == 0 {
            Some(Unavailable::Exhausted)
        } else if load.connections >= max.connections || load.connecting >= max.connecting {
            Some(Unavailable::Full)
        } else {
            None
        }
    }

    /// Counts a connection to an upstream; `None` where it cannot be had after all. Says whether it is a trial.
    fn enter(&self, upstream: &Upstream, terms: Terms) -> Option<bool> {
        let state = &upstream.state;
        if !state.enter(self.max_now(upstream, terms)) {
            return None;
        }
        let permit = match state.standing() {
            Standing::Used { .. } => Some(false),
            Standing::Ejected { .. } | Standing::OnTrial if state.begin_trial(terms.now_ms) => Some(true),
            Standing::Ejected { .. } | Standing::OnTrial => terms.is_last_resort.then_some(false),
        };
        if permit.is_none() {
            state.leave(false);
        }
        permit
    }

    /// Of all that stands in the way, what a client is best told.
    fn explain(&self, terms: Terms, tried: &Tried) -> Unavailable {
        let obstacles = || (0..self.count()).filter_map(|index| self.obstacle(index, terms, tried));
        let is_met = |wanted| obstacles().any(|obstacle| obstacle == wanted);
        if is_met(Unavailable::Full) {
            Unavailable::Full
        } else if !tried.is_empty() {
            Unavailable::Exhausted
        } else if is_met(Unavailable::Unhealthy) {
            Unavailable::Unhealthy
        } else if is_met(Unavailable::Unresolved) {
            Unavailable::Unresolved
        } else {
            // What there was to be had went to others while this one was choosing.
            Unavailable::Full
        }
    }

    /// How many connections an upstream may have at this time.
    fn max_now(&self, upstream: &Upstream, terms: Terms) -> Load {
        let connecting = match self.max.connecting {
            u32::MAX => u32::MAX,
            max => 1 + part(max - 1, self.slow_start_elapsed(upstream, terms), self.slow_start_ms),
        };
        Load { connecting, ..self.max }
    }

    /// Whether an upstream in slow start lets this turn pass to another.
    fn lets_pass(&self, upstream: &Upstream, terms: Terms) -> bool {
        let elapsed_ms = self.slow_start_elapsed(upstream, terms);
        if self.max.connecting != u32::MAX || elapsed_ms >= self.slow_start_ms {
            return false;
        }
        // Each turn earns a part of a connection, and one is made whenever the parts have come to a whole.
        let earned = 1 + part(WHOLE - 1, elapsed_ms, self.slow_start_ms);
        let before = upstream.earned.fetch_add(earned, Ordering::Relaxed);
        before % WHOLE + earned < WHOLE
    }

    /// For how long a slow start that concerns this client has gone on, in milliseconds; the whole of it where none does.
    fn slow_start_elapsed(&self, upstream: &Upstream, terms: Terms) -> u64 {
        match terms.hash {
            Some(_) => self.slow_start_ms,
            None => upstream.slow_start_elapsed(terms.now_ms),
        }
    }
}

/// On what terms an upstream is chosen.
#[derive(Clone, Copy, Debug)]
struct Terms {
    /// What it depends on, where clients stick to one.
    hash: Option<u64>,
    /// True exactly while no upstream is in use, so that what is ejected or on trial may be had as well.
    is_last_resort: bool,
    now_ms: u64,
}

/// What earned parts of a connection come to.
const WHOLE: u32 = 256;

/// The place of an upstream in an order of preference: the least is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// What comes first in the order of this balance.
    key: u64,
    /// How far behind its turn it is.
    turn: u32,
    index: u32,
}

/// One upstream.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    state: Arc<UpstreamState>,
    whereabouts: Whereabouts,
    /// What is believed of it, and the name that its certificate has to be for; `None` where it speaks no TLS.
    tls: Option<(ClientSettings, ServerName<'static>)>,
    /// The hash of its name.
    seed: u64,
    /// When it became healthy, and its slow start began; 0 where it always was.
    healthy_since_ms: AtomicU64,
    /// What its turns have earned in slow start, see [`Group::lets_pass`].
    earned: AtomicU32,
    next_source: AtomicU32,
    /// The [`ConnectResult`] of the latest failure of a client's connection, by its index.
    latest_failure: AtomicU8,
    /// Why TLS failed the latest time that it did, in words.
    tls_fault: ArcSwapOption<String>,
    check_fault: ArcSwapOption<String>,
    lookup_fault: ArcSwapOption<String>,
}

impl Upstream {
    fn new(
        name: &str,
        address: &UpstreamAddress,
        tls: Option<(ClientSettings, ServerName<'static>)>,
        state: Arc<UpstreamState>,
    ) -> Self {
        let whereabouts = Whereabouts::new(address);
        state.set_has_address(!matches!(whereabouts, Whereabouts::Name { .. }));
        Self {
            name: name.to_owned(),
            state,
            whereabouts,
            tls,
            seed: sticky_hash(name.as_bytes()),
            healthy_since_ms: AtomicU64::new(0),
            earned: AtomicU32::new(0),
            next_source: AtomicU32::new(0),
            latest_failure: AtomicU8::new(0),
            tls_fault: ArcSwapOption::empty(),
            check_fault: ArcSwapOption::empty(),
            lookup_fault: ArcSwapOption::empty(),
        }
    }

    /// As it was written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its counts and its health.
    pub fn state(&self) -> &UpstreamState {
        &self.state
    }

    /// Where it is, as far as that is known.
    pub fn addresses(&self) -> Vec<Address> {
        self.whereabouts.all()
    }

    /// What is believed of it, and the name that its certificate has to be for; `None` where it speaks no TLS.
    pub fn tls(&self) -> Option<&(ClientSettings, ServerName<'static>)> {
        self.tls.as_ref()
    }

    /// The name and port to resolve, where it is known by a name.
    pub fn host(&self) -> Option<(&str, u16)> {
        match &self.whereabouts {
            Whereabouts::Name { host, port, .. } => Some((host, *port)),
            Whereabouts::Socket(_) | Whereabouts::Unix(_) => None,
        }
    }

    /// What is wrong with it: why it gets no connections, or why the latest of those that it gets failed; `None` where
    /// that is not known to be so.
    pub fn fault(&self) -> Option<String> {
        let text = |fault: &ArcSwapOption<String>| fault.load().as_deref().cloned();
        if !self.state.has_address() {
            return Some(
                text(&self.lookup_fault).unwrap_or_else(|| "its name was not looked up yet".to_owned()),
            );
        }
        if !self.state.is_checked_good() {
            return Some(text(&self.check_fault).unwrap_or_else(|| "its checks fail".to_owned()));
        }
        let latest = ConnectResult::ALL[usize::from(self.latest_failure.load(Ordering::Relaxed))];
        let latest = match text(&self.tls_fault).filter(|_| latest == ConnectResult::TlsFailed) {
            Some(fault) => format!("{latest}, {fault}"),
            None => latest.to_string(),
        };
        match self.state.standing() {
            Standing::Used { failures: 0, .. } => None,
            Standing::Used { .. } => Some(format!("the latest connection failed: {latest}")),
            Standing::Ejected { .. } => Some(format!("connections failed, the latest: {latest}")),
            Standing::OnTrial => Some(format!("one connection tries it again; the one before: {latest}")),
        }
    }

    fn begin_slow_start(&self, now_ms: u64) {
        self.earned.store(0, Ordering::Relaxed);
        self.healthy_since_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// For how long it has been healthy again, in milliseconds; without end where it always was.
    fn slow_start_elapsed(&self, now_ms: u64) -> u64 {
        match self.healthy_since_ms.load(Ordering::Relaxed) {
            0 => u64::MAX,
            since_ms => now_ms.saturating_sub(since_ms),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The part of `whole` that `elapsed` is of `total`, rounded down.
fn part(whole: u32, elapsed: u64, total: u64) -> u32 {
    if elapsed >= total {
        return whole;
    }
    let part = u128::from(whole) * u128::from(elapsed) / u128::from(total);
    u32::try_from(part).expect("a part of a u32")
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
