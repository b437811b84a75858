//! The control thread: it brings the shards up, tells what they do, and stops them.
//!
//! It runs a small tokio runtime and never touches a client's socket.

pub mod admin;
mod certificates;
mod folders;
mod health;
mod key_sets;
mod memory;
mod names;
mod shards;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::admin::{AdminState, Phase, PortFacts};
use self::certificates::PortTls;
use self::shards::{Event, Shards};
use crate::config::auth::Forward;
use crate::config::{Admin, Auth, Config, Port, Relay, Route};
use crate::metrics::{Metrics, RouteLabels};
use crate::net::driver::{Driver, NoRing};
use crate::net::listen::{self, Listeners};
use crate::net::{clock, heap, limits};
use crate::service::upstream::Group;
use crate::shard::{Mail, StartError};

/// How long clients have to leave once the gateway was asked to stop; then they are cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long shards have to end once their connections were cut; a shard that takes longer is stuck.
const CUT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long ports that are in use are tried again at the start. The ring of a process that was killed is taken apart by the
/// kernel after the process has gone, and until then listeners that it waits for are there: 100 ms with 9,000 connections.
/// A supervisor starts the successor within that time. Nothing tells when it is over, so it is asked.
const BIND_PATIENCE: Duration = Duration::from_secs(1);
/// How often.
const BIND_INTERVAL: Duration = Duration::from_millis(20);
/// How often free memory is given back to the system.
const GIVE_BACK_INTERVAL: Duration = Duration::from_secs(5);
/// How many names are looked up at once: each takes a thread while the resolver waits.
const LOOKUPS_MAX: usize = 16;
/// Descriptors kept from clients: rings, listeners, mailboxes, the admin endpoint, letting refused clients go, and
/// asking name servers and upstreams how they are.
const DESCRIPTORS_RESERVED: u64 = 240;
/// Descriptors that each shard takes besides: ring, timer, mailbox, reserve, lingering connections.
const DESCRIPTORS_RESERVED_PER_SHARD: u64 = 40;

/// Why the gateway does not serve, or stopped serving.
#[derive(Debug)]
pub enum RunError {
    /// A port cannot be bound.
    Bind {
        /// The address, with the port's number.
        address: String,
        /// The port's label.
        port: String,
        /// The cause.
        error: io::Error,
    },
    /// None of the built-in ports can be bound.
    NoPort,
    /// The admin address cannot be bound.
    Admin {
        /// The address.
        address: SocketAddr,
        /// The cause.
        error: io::Error,
    },
    /// io_uring was demanded and is not to be had.
    NoRing(NoRing),
    /// A certificate that was good when the configuration was checked is not any more.
    Certificate {
        /// The port's label.
        port: String,
        /// The cause.
        fault: String,
    },
    /// A folder that was there when the configuration was checked cannot be served from.
    Folder {
        /// The route's name.
        route: String,
        /// The folder, as it was written.
        folder: String,
        /// The cause.
        error: io::Error,
    },
    /// Something that the process needs from the system failed.
    System(io::Error),
    /// A shard ended by itself.
    ShardEnded {
        /// Which one.
        index: usize,
    },
    /// What resolves or checks upstreams, or watches certificates, ended by itself.
    TaskEnded,
    /// Shards did not end when they were told to.
    Stuck,
}

impl RunError {
    /// Whether the machine refused what the configuration asks for, rather than something going wrong.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Bind { .. } | Self::NoPort | Self::Admin { .. } | Self::NoRing(_))
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, port, error } => {
                write!(formatter, "port {port} cannot be bound at {address}: {}", explain_bind(error))
            }
            Self::NoPort => formatter.write_str(
                "none of the built-in ports can be bound; `ringway config default` prints a configuration to change",
            ),
            Self::Admin { address, error } => {
                write!(formatter, "the admin endpoint cannot be bound at {address}: {}", explain_bind(error))
            }
            Self::Certificate { port, fault } => write!(formatter, "port {port} has no certificate: {fault}"),
            Self::NoRing(reason) => write!(formatter, "io_uring was asked for and cannot be had: {reason}"),
            Self::Folder { route, folder, error } => {
                write!(formatter, "the route {route:?} cannot serve files from {folder:?}: {error}")
            }
            Self::System(error) => write!(formatter, "the system refused what a gateway needs: {error}"),
            Self::ShardEnded { index } => write!(formatter, "shard {index} ended by itself; this is a fault of ours"),
            Self::TaskEnded => formatter.write_str(
                "upstreams are no longer resolved or checked, or certificates not watched; this is a fault of ours",
            ),
            Self::Stuck => formatter.write_str("not every shard ended in time; this is a fault of ours"),
        }
    }
}

/// What it takes to bind a port, where the cause alone does not say.
fn explain_bind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "{error}; another process listens there, perhaps another ringway (`ss -ltnp` tells which)"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "{error}; ports below net.ipv4.ip_unprivileged_port_start take root or the capability CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrNotAvailable => format!("{error}; no interface of this machine has the address"),
        _ => error.to_string(),
    }
}

/// Serves a configuration until the process is told to stop.
///
/// # Errors
/// [`RunError`].
pub fn run(config: Config) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(LOOKUPS_MAX)
        .enable_all()
        .build()
        .map_err(RunError::System)?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new().map_err(RunError::System)?;
        let gateway = Gateway::start(config, &signals).await?;
        gateway.serve(&mut signals).await
    });
    // A lookup that is under way would hold up the end for as long as its name server is silent.
    runtime.shutdown_background();
    outcome
}

/// A gateway that serves.
struct Gateway {
    shards: Shards,
    phase: watch::Sender<Phase>,
    state: Arc<AdminState>,
    admin: Option<TcpListener>,
    /// What resolves the names of upstreams and checks them, and watches certificates; ends when dropped.
    tasks: JoinSet<()>,
}

impl Gateway {
    async fn start(config: Config, signals: &Signals) -> Result<Self, RunError> {
        let config = Arc::new(config);
        let shard_count = config.gateway.shards.map_or_else(available_cores, NonZeroUsize::get);
        let descriptors = limits::raise_descriptors();
        let listeners = bind_ports(&config, shard_count).await?;
        let admin = bind_admin(&config).await?;
        let labels = config.ports.iter().map(|port| port.label.clone()).collect();
        let routes = config.routes.iter().map(route_labels).collect();
        let metrics = Arc::new(Metrics::new(shard_count, labels, routes, clock::time_of_day()));
        let connections_max = connections_max(&config, descriptors, shard_count);
        let tls = certificates::load(&config)?;
        metrics.set_certificates(certificates::expiries(&tls));
        let ports = config.ports.iter().zip(&listeners).zip(&tls);
        let ports = ports.map(|((port, listeners), tls)| facts(port, listeners.as_ref(), tls.clone()));
        let groups = groups(&config, &metrics);
        let (phase, phases) = watch::channel(Phase::Starting);
        let state = Arc::new(AdminState {
            metrics: Arc::clone(&metrics),
            phase: phases,
            ports: ports.collect(),
            groups: groups.iter().flatten().cloned().collect(),
            driver_fallback: OnceLock::new(),
            started_at: Instant::now(),
            hosts: Vec::new(),
            token: config.admin.as_ref().and_then(|admin| admin.token.clone()),
        });
        let mut tasks = watch_upstreams(&config, &groups).await;
        certificates::watch(&tls, &metrics, signals.hang_ups(), &mut tasks);
        let folders = folders::open(&config)?;
        metrics.memory().set_ceiling(config.gateway.memory_max.map_or(0, NonZeroU64::get));
        let keyrings = key_sets::watch(&config, &metrics, &mut tasks).await;
        let parts = shards::Parts {
            config: &config,
            metrics: &metrics,
            groups: &groups,
            tls: &tls,
            folders,
            keyrings: &keyrings,
        };
        let mut shards = Shards::spawn(parts, listeners, shard_count, connections_max)?;
        let started = shards.started().await;
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                shards.post(Mail::Cut);
                shards.ended(Instant::now() + CUT_TIMEOUT).await?;
                return Err(match error {
                    StartError::NoRing(reason) => RunError::NoRing(reason),
                    StartError::Io(error) => RunError::System(error),
                });
            }
        };
        // Shards that differ are on a machine short of something; the worse half is what an operator must know.
        let driver = if started.iter().any(|shard| shard.driver == Driver::Epoll) {
            Driver::Epoll
        } else {
            Driver::IoUring
        };
        metrics.set_driver(driver);
        if let Some(reason) = started.into_iter().find_map(|shard| shard.fallback) {
            tracing::warn!("io_uring cannot be had, epoll is used instead: {reason}");
            let _ = state.driver_fallback.set(reason.to_string());
        }
        for port_index in 0..config.ports.len() {
            metrics.port_state(port_index).set_up(shards.has_port(port_index));
        }
        phase.send_replace(Phase::Serving);
        let gateway = Self { shards, phase, state, admin, tasks };
        gateway.announce(&config, driver, shard_count, connections_max);
        Ok(gateway)
    }

    /// One line that says what runs.
    fn announce(&self, config: &Config, driver: Driver, shard_count: usize, connections_max: u32) {
        let ports = config.ports.iter().zip(&self.state.ports).enumerate();
        let ports: Vec<String> = ports
            .filter(|(index, _)| self.shards.has_port(*index))
            .map(|(_, (port, facts))| {
                let number = facts.number.to_string();
                if port.label == number { number } else { format!("{}={number}", port.label) }
            })
            .collect();
        let admin = self.admin.as_ref().and_then(|admin| admin.local_addr().ok());
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            ports = ports.join(","),
            shards = shard_count,
            driver = driver.label(),
            connections_max,
            admin = admin.map_or_else(|| "none".to_owned(), |address| format!("http://{address}/")),
            "serving"
        );
    }

    /// Serves until a signal, then drains.
    async fn serve(mut self, signals: &mut Signals) -> Result<(), RunError> {
        let (stop_admin, mut admin_stops) = watch::channel(());
        let admin = self.admin.take().map(|listener| {
            let state = Arc::clone(&self.state);
            tokio::spawn(admin::serve(listener, state, async move {
                let _ = admin_stops.changed().await;
            }))
        });
        let giving_back = tokio::spawn(give_memory_back());
        let watching = tokio::spawn(memory::watch(self.state.metrics.memory()));
        let outcome = tokio::select! {
            name = signals.stop() => {
                tracing::info!(signal = name, "draining: clients are asked to leave; another signal cuts them off");
                self.drain(signals).await
            }
            event = self.shards.next_event() => Err(RunError::ShardEnded { index: ended_index(&event) }),
            // They have no end, so it was a panic.
            Some(_) = self.tasks.join_next() => Err(RunError::TaskEnded),
        };
        giving_back.abort();
        watching.abort();
        // Until here, so that the last that a scrape sees is how the drain went.
        drop(stop_admin);
        if let Some(admin) = admin {
            let _ = admin.await;
        }
        outcome
    }

    async fn drain(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        self.phase.send_replace(Phase::Draining);
        // Nobody new comes who would need an upstream.
        self.tasks.abort_all();
        for port_index in 0..self.state.ports.len() {
            let port = self.state.metrics.port_state(port_index);
            port.set_draining(port.is_up());
        }
        self.shards.post(Mail::Drain);
        let is_drained = tokio::select! {
            ended = self.shards.ended(Instant::now() + DRAIN_TIMEOUT) => match ended {
                Err(RunError::Stuck) => false,
                ended => {
                    ended?;
                    true
                }
            },
            name = signals.stop() => {
                tracing::warn!(signal = name, "cutting off the clients that have not left");
                false
            }
        };
        if !is_drained {
            self.shards.post(Mail::Cut);
            self.shards.ended(Instant::now() + CUT_TIMEOUT).await?;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Gives back, from time to time, what large messages and closed connections have left free.
async fn give_memory_back() {
    let mut interval = tokio::time::interval(GIVE_BACK_INTERVAL);
    loop {
        interval.tick().await;
        heap::give_back();
    }
}

fn ended_index(event: &Event) -> usize {
    match event {
        Event::Started { index, .. } | Event::Ended { index } => *index,
    }
}

fn available_cores() -> usize {
    core_affinity::get_core_ids().map_or(1, |cores| cores.len().max(1))
}

/// How many connections the gateway takes: one for each descriptor that is left once its own are set aside, or one for
/// two where there are routes that relay, which takes another for the upstream.
fn connections_max(config: &Config, descriptors: u64, shard_count: usize) -> u32 {
    let shard_count = shard_count as u64;
    let listeners = config.ports.len() as u64 * shard_count;
    let reserved = DESCRIPTORS_RESERVED + DESCRIPTORS_RESERVED_PER_SHARD * shard_count + listeners;
    // On a machine with hardly any descriptors half of them are better than none.
    let available = descriptors.saturating_sub(reserved).max(descriptors / 2);
    let takes_another = |route: &Route| route.relay.is_some() || route.files.is_some();
    let available = if config.routes.iter().any(takes_another) { available / 2 } else { available };
    u32::try_from(available).unwrap_or(u32::MAX)
}

/// Binds every port. In the built-in configuration one that cannot be bound is passed over.
async fn bind_ports(config: &Config, shard_count: usize) -> Result<Vec<Option<Listeners>>, RunError> {
    let deadline = Instant::now() + BIND_PATIENCE;
    let mut bound = Vec::new();
    for port in &config.ports {
        bound.push(match bind_patiently(port.address, port.number, shard_count, deadline).await {
            Ok(listeners) => Some(listeners),
            Err(error) => {
                let address = configured_address(port).to_string();
                let error = RunError::Bind { address, port: port.label.clone(), error };
                if !config.is_built_in {
                    return Err(error);
                }
                tracing::warn!("{error}; going on without it");
                None
            }
        });
    }
    if bound.iter().all(Option::is_none) { Err(RunError::NoPort) } else { Ok(bound) }
}

/// Binds the listeners of a port; one that is in use is tried again until the deadline.
async fn bind_patiently(
    address: Option<IpAddr>,
    number: u16,
    count: usize,
    deadline: Instant,
) -> io::Result<Listeners> {
    loop {
        match listen::bind(address, number, count) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(BIND_INTERVAL).await;
            }
            outcome => return outcome,
        }
    }
}

async fn bind_admin(config: &Config) -> Result<Option<TcpListener>, RunError> {
    let Some(Admin { listen, .. }) = &config.admin else {
        return Ok(None);
    };
    match TcpListener::bind(listen).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => {
            let error = RunError::Admin { address: *listen, error };
            if !config.is_built_in {
                return Err(error);
            }
            tracing::warn!("{error}; going on without it");
            Ok(None)
        }
    }
}

fn route_labels(route: &Route) -> RouteLabels {
    let upstreams = route.relay.iter().flat_map(|relay| &relay.upstreams);
    RouteLabels {
        route: route.name.clone(),
        upstreams: upstreams.map(|upstream| upstream.name.clone()).collect(),
        asked: route.auth.iter().filter_map(Auth::forward).map(asked_label).collect(),
    }
}

fn asked_label(forward: &Forward) -> String {
    forward.relay.upstreams[0].name.clone()
}

/// The upstreams of each that relays, in the order of [`Config::relays`].
fn groups(config: &Config, metrics: &Metrics) -> Vec<Option<Arc<Group>>> {
    let group = |(index, (name, relay)): (usize, (String, Option<&Relay>))| {
        relay.map(|relay| Group::new(&name, relay, metrics.upstream_states(index)))
    };
    config.relays().enumerate().map(group).collect()
}

/// Resolves the names of upstreams, and begins to watch over all of them.
async fn watch_upstreams(config: &Config, groups: &[Option<Arc<Group>>]) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let relaying: Vec<_> = groups.iter().flatten().cloned().collect();
    names::resolve(&relaying, config.gateway.resolve_interval, names::lookup, &mut tasks).await;
    let checked = config.routes.iter().zip(groups).filter_map(|(route, group)| {
        let health = route.relay.as_ref()?.health.as_ref()?;
        Some((group.as_ref()?, health))
    });
    health::watch(checked, &mut tasks);
    tasks
}

fn facts(port: &Port, listeners: Option<&Listeners>, tls: Option<Arc<PortTls>>) -> PortFacts {
    let address = listeners.map_or_else(|| configured_address(port), |listeners| listeners.address);
    PortFacts { number: address.port(), address: address.ip(), tls }
}

/// Where a port is to listen: at all addresses of both families, unless one was written.
fn configured_address(port: &Port) -> SocketAddr {
    SocketAddr::new(port.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port.number)
}

/// The signals that stop a gateway.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// Tells of each SIGHUP.
    hang_ups: watch::Sender<()>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            hang_ups: watch::Sender::new(()),
        })
    }

    /// What is told of each SIGHUP from now on, for as long as [`Self::stop`] is waited for.
    fn hang_ups(&self) -> watch::Receiver<()> {
        self.hang_ups.subscribe()
    }

    /// Waits for the next one, and says which it was.
    async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                // Whoever sends it expects a reload, or has closed a terminal. Neither is meant to cost connections.
                _ = self.hang_up.recv() => {
                    tracing::warn!(
                        "SIGHUP: certificates are read again; to take another configuration, restart"
                    );
                    self.hang_ups.send_replace(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_given_up_a_moment_later_is_bound() {
        let predecessor = listen::bind(Some(LOOPBACK), 0, 2).unwrap();
        let number = predecessor.address.port();
        let begin = Instant::now();
        let leave = async {
            sleep(BIND_PATIENCE / 2).await;
            drop(predecessor);
        };
        let bind = bind_patiently(Some(LOOPBACK), number, 2, begin + BIND_PATIENCE);
        let (listeners, ()) = tokio::join!(bind, leave);
        assert_eq!(listeners.unwrap().sockets.len(), 2);
        assert!(begin.elapsed() <= BIND_PATIENCE / 2 + BIND_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_another_copy_keeps_is_refused_in_time() {
        let other = listen::bind(Some(LOOPBACK), 0, 2).unwrap();
        let begin = Instant::now();
        let bind = bind_patiently(Some(LOOPBACK), other.address.port(), 2, begin + BIND_PATIENCE);
        assert_eq!(bind.await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(begin.elapsed() <= BIND_PATIENCE + BIND_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_does_not_mend_is_told_at_once() {
        // RFC 5737: an address of documentation, which no interface has.
        let address = Some(IpAddr::from([192, 0, 2, 1]));
        let begin = Instant::now();
        let error = bind_patiently(address, 0, 1, begin + BIND_PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}
