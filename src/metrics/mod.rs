//! What became of every connection: cells that shards write, merged at scrape.
//!
//! A shard asks once for its cells ([`Metrics::port_cells`], [`Metrics::shard_cells`]) and from then on counts
//! without looking anything up. The control thread reads all of them, for `/metrics` and for the status.

mod cell;
mod cells;
mod collector;
mod families;
mod labels;
mod outcome;
mod process;
mod totals;
mod upstream;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use prometheus::{Registry, TextEncoder};

use self::upstream::RelayTotals;
use crate::config::NO_ROUTE;

pub use cell::{Counter, DurationHistogram, Gauge, HistogramTotals, SizeHistogram};
pub use cells::{PortCells, ShardCells};
pub use families::{Definition, Family};
pub use labels::{
    AcceptErrorReason, CloseCodeLabel, Direction, Driver, Form, FrameKind, Initiator, ReloadResult,
    SlowClientOutcome, StatusClass,
};
pub use outcome::{
    AddressRefusal, AuthRefusal, ConnectResult, End, HandshakeResult, TlsFailure, TlsHandshake,
};
pub use process::ProcessUse;
pub use totals::PortTotals;
pub use upstream::{ClientNetwork, Load, RelayCells, Standing, UpstreamState};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, as `RINGWAY_COMMIT` named it to the compiler.
pub const COMMIT: &str = match option_env!("RINGWAY_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Every cell of a running gateway, and the registry that exports them.
pub struct Metrics {
    sources: Arc<Sources>,
    registry: Registry,
}

impl Metrics {
    /// Cells at zero for every shard and port.
    ///
    /// `ports` are the values of the `port` label and `routes` say those of the `route` label, each in the order of the
    /// configuration and each value once; no route is called [`NO_ROUTE`].
    #[allow(clippy::missing_panics_doc, reason = "the table is constant")]
    pub fn new(
        shard_count: usize,
        ports: Vec<String>,
        routes: Vec<RouteLabels>,
        started: SystemTime,
    ) -> Self {
        let started_timestamp_seconds =
            started.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |duration| duration.as_secs_f64());
        let ports = ports.into_iter().map(|label| PortSource {
            label,
            shards: (0..shard_count).map(|_| Arc::new(PortCells::new(routes.len()))).collect(),
            state: PortState::default(),
        });
        let relaying = routes.iter().map(|route| (route.route.clone(), &route.upstreams));
        let asking = routes.iter().map(|route| (format!("{}:auth", route.route), &route.asked));
        let relays =
            relaying.chain(asking).map(|(name, upstreams)| RelaySource::new(name, upstreams, shard_count));
        let sources = Arc::new(Sources {
            ports: ports.collect(),
            shards: (0..shard_count).map(|_| Arc::default()).collect(),
            relays: relays.collect(),
            routes: routes.into_iter().map(|route| route.route).collect(),
            certificates: ArcSwap::default(),
            certificate_reloads: std::array::from_fn(|_| AtomicU64::new(0)),
            key_sets: OnceLock::new(),
            memory: Arc::default(),
            driver: OnceLock::new(),
            started_timestamp_seconds,
        });
        let registry = Registry::new();
        registry
            .register(Box::new(collector::ShardCollector::new(Arc::clone(&sources))))
            .expect("the table names each family once, which a test registers");
        Self { sources, registry }
    }

    /// The cells of one port on one shard, for that shard's thread to write.
    pub fn port_cells(&self, shard_index: usize, port_index: usize) -> Arc<PortCells> {
        Arc::clone(&self.sources.ports[port_index].shards[shard_index])
    }

    /// The cells of one shard, for its thread to write.
    pub fn shard_cells(&self, shard_index: usize) -> Arc<ShardCells> {
        Arc::clone(&self.sources.shards[shard_index])
    }

    /// The cells of one route on one shard, for that shard's thread to write; `None` where the route does not relay.
    pub fn relay_cells(&self, shard_index: usize, route_index: usize) -> Option<Arc<RelayCells>> {
        self.sources.relays[route_index].as_ref().map(|relay| Arc::clone(&relay.shards[shard_index]))
    }

    /// The states of one route's upstreams, in the order of the configuration; none where the route does not relay.
    pub fn upstream_states(&self, route_index: usize) -> impl Iterator<Item = Arc<UpstreamState>> {
        let upstreams = self.sources.relays[route_index].iter().flat_map(|relay| &relay.upstreams);
        upstreams.map(|(_, state)| Arc::clone(state))
    }

    /// The cells of every shard, to read.
    pub fn shards(&self) -> &[Arc<ShardCells>] {
        &self.sources.shards
    }

    /// Whether one port is up or draining, and its limit; the control thread keeps it.
    pub fn port_state(&self, port_index: usize) -> &PortState {
        &self.sources.ports[port_index].state
    }

    /// What one port counted on all shards, now.
    pub fn port_totals(&self, port_index: usize) -> PortTotals {
        self.sources.ports[port_index].totals(&self.sources)
    }

    /// The `port` labels, in the order of the configuration.
    pub fn port_labels(&self) -> impl Iterator<Item = &str> {
        self.sources.ports.iter().map(|port| port.label.as_str())
    }

    /// Says when each certificate expires, by its name, in seconds since the Unix epoch.
    pub fn set_certificates(&self, expiries: Vec<(String, u64)>) {
        self.sources.certificates.store(Arc::new(expiries));
    }

    /// Counts that certificates were read again, and put in force or not.
    pub fn certificates_reloaded(&self, result: ReloadResult) {
        self.sources.certificate_reloads[result.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// How short memory is, to keep and to look at.
    pub fn memory(&self) -> Arc<MemoryState> {
        Arc::clone(&self.sources.memory)
    }

    /// Says where the sets of keys are counted, each with the name of its route. Later calls change nothing.
    pub fn set_key_sets(&self, key_sets: Vec<(String, Arc<KeySetCells>)>) {
        self.sources.key_sets.get_or_init(|| key_sets);
    }

    /// Says which driver the shards run on, once it is known. Later calls change nothing: the driver never does.
    pub fn set_driver(&self, driver: Driver) {
        self.sources.driver.get_or_init(|| driver);
    }

    /// Which driver the shards run on, once it is known.
    pub fn driver(&self) -> Option<Driver> {
        self.sources.driver.get().copied()
    }

    /// When the gateway started, in seconds since the Unix epoch.
    pub fn started_timestamp_seconds(&self) -> f64 {
        self.sources.started_timestamp_seconds
    }

    /// Everything in Prometheus's text format ([`prometheus::TEXT_FORMAT`]).
    #[allow(clippy::missing_panics_doc, reason = "what is encoded is of our own making")]
    pub fn encode(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("families with series encode, and a string takes every write")
    }
}

/// The labels of one route.
#[derive(Clone, Debug)]
pub struct RouteLabels {
    /// The `route` label.
    pub route: String,
    /// The `upstream` labels, each once; none where the route does not relay.
    pub upstreams: Vec<String>,
    /// The same of those that are asked about its requests, which are counted as the route with `:auth` behind its name.
    pub asked: Vec<String>,
}

/// The state of one port as its gauges show it.
#[derive(Debug, Default)]
pub struct PortState {
    is_up: AtomicBool,
    is_draining: AtomicBool,
    connections_limit: AtomicU64,
    address_tables_size: AtomicU64,
}

impl PortState {
    /// Says whether the port accepts connections.
    pub fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Release);
    }

    /// True exactly while the port accepts connections.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    /// Says whether the port asks its clients to leave.
    pub fn set_draining(&self, is_draining: bool) {
        self.is_draining.store(is_draining, Ordering::Release);
    }

    /// True exactly while the port asks its clients to leave.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Says how much memory the tables of what is limited by address take, in bytes.
    pub fn set_address_tables_size(&self, size: u64) {
        self.address_tables_size.store(size, Ordering::Release);
    }

    /// How much memory the tables of what is limited by address take, in bytes.
    pub fn address_tables_size(&self) -> u64 {
        self.address_tables_size.load(Ordering::Acquire)
    }

    /// Says how many connections the port will hold at once, on all shards together.
    pub fn set_connections_limit(&self, limit: u64) {
        self.connections_limit.store(limit, Ordering::Release);
    }

    /// How many connections the port will hold at once, on all shards together.
    pub fn connections_limit(&self) -> u64 {
        self.connections_limit.load(Ordering::Acquire)
    }
}

/// How short memory is; the control thread keeps it, and shards look.
#[derive(Debug, Default)]
pub struct MemoryState {
    /// 0 where there is none.
    ceiling: AtomicU64,
    level: AtomicU8,
}

impl MemoryState {
    /// From here on busy connections get no buffers of their own.
    pub const NO_BUFFERS: u8 = 1;
    /// From here on nobody new is let in.
    pub const NOBODY_NEW: u8 = 2;
    /// From here on clients that are quiet are asked to leave.
    pub const QUIET_LEAVE: u8 = 3;

    /// Says what the process is to stay below, in bytes.
    pub fn set_ceiling(&self, ceiling: u64) {
        self.ceiling.store(ceiling, Ordering::Relaxed);
    }

    /// What the process is to stay below, in bytes, if anything.
    pub fn ceiling(&self) -> Option<u64> {
        Some(self.ceiling.load(Ordering::Relaxed)).filter(|ceiling| *ceiling != 0)
    }

    /// Says how short it is, 0 to 3.
    pub fn set_level(&self, level: u8) {
        self.level.store(level, Ordering::Relaxed);
    }

    /// How short it is, 0 to 3.
    #[inline]
    pub fn level(&self) -> u8 {
        self.level.load(Ordering::Relaxed)
    }
}

/// What is counted of the set of keys of one route.
#[derive(Debug, Default)]
pub struct KeySetCells {
    keys: AtomicU64,
    fetches: [AtomicU64; ReloadResult::COUNT],
}

impl KeySetCells {
    /// Counts that the set was fetched and is in force, with so many keys.
    pub fn loaded(&self, key_count: usize) {
        self.keys.store(key_count as u64, Ordering::Relaxed);
        self.fetches[ReloadResult::Loaded.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that the set could not be had.
    pub fn failed(&self) {
        self.fetches[ReloadResult::Failed.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// How often the set was fetched, with this outcome.
    pub fn fetches(&self, result: ReloadResult) -> u64 {
        self.fetches[result.index()].load(Ordering::Relaxed)
    }

    /// How many keys are in force.
    pub fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }
}

/// What the collector reads.
struct Sources {
    ports: Vec<PortSource>,
    shards: Vec<Arc<ShardCells>>,
    routes: Vec<String>,
    /// By the route's index; behind them those that are asked about requests, likewise.
    relays: Vec<Option<RelaySource>>,
    certificates: ArcSwap<Vec<(String, u64)>>,
    certificate_reloads: [AtomicU64; ReloadResult::COUNT],
    memory: Arc<MemoryState>,
    /// With the names of their routes.
    key_sets: OnceLock<Vec<(String, Arc<KeySetCells>)>>,
    driver: OnceLock<Driver>,
    started_timestamp_seconds: f64,
}

struct PortSource {
    label: String,
    shards: Vec<Arc<PortCells>>,
    state: PortState,
}

impl PortSource {
    fn totals(&self, sources: &Sources) -> PortTotals {
        PortTotals::read(&self.shards, sources.routes.len())
    }
}

/// A route that relays.
struct RelaySource {
    route: String,
    upstreams: Vec<(String, Arc<UpstreamState>)>,
    shards: Vec<Arc<RelayCells>>,
}

impl RelaySource {
    fn new(route: String, labels: &[String], shard_count: usize) -> Option<Self> {
        let upstreams = labels.iter().map(|label| (label.clone(), Arc::default()));
        (!labels.is_empty()).then(|| Self {
            route,
            upstreams: upstreams.collect(),
            shards: (0..shard_count).map(|_| Arc::default()).collect(),
        })
    }

    fn totals(&self) -> RelayTotals {
        RelayTotals::read(self.shards.iter().map(|cells| &**cells))
    }
}

#[cfg(test)]
mod tests;
