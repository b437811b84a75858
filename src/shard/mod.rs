//! A shard: one pinned thread with its own runtime, listeners, connections, buffers and counters.
//!
//! It shares nothing and locks nothing. The control thread hands it its listeners, sends it mail, and reads its
//! counters.

mod accept;
mod authorize;
mod connection;
mod decision;
mod mailbox;
mod table;
mod web;

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;

use self::accept::Reserve;
use self::table::{Behind, Keyrings, Table};
use crate::config::{Config, IoDriver};
use crate::metrics::{MemoryState, PortCells, RelayCells, ShardCells};
use crate::net::accept::Acceptor;
use crate::net::clock;
use crate::net::driver::{Driver, NoRing, ShardRuntime};
use crate::net::timers::TICK;
use crate::net::tls::ServerSettings;
use crate::net::wake::Counted;
use crate::route::Router;
use crate::route::auth::Keyring;
use crate::service::addresses::Addresses;
use crate::service::admission::Admission;
use crate::service::upstream::Group;
use crate::service::web::files::Folders;
use crate::service::web::files::folder::Folder;
use crate::service::web::files::readers::DeskSetup;
use crate::service::web::kept::Kept;
use crate::service::{Phase, Port, Resources};

pub use self::mailbox::{Inbox, Mail, Mailbox, Stopped, mailbox};

/// What a shard is made of.
#[derive(Debug)]
pub struct Setup {
    /// Its place among the shards.
    pub index: usize,
    /// The core that it is pinned to; `None` leaves it to the scheduler.
    pub core: Option<core_affinity::CoreId>,
    /// What it may wait with.
    pub io_driver: IoDriver,
    /// The configuration.
    pub config: Arc<Config>,
    /// The upstreams of each route, and what is counted for them; `None` for a route that does not relay.
    pub upstreams: Vec<Option<(Arc<Group>, Arc<RelayCells>)>>,
    /// Where it has files read; there exactly where a route serves files.
    pub desk: Option<DeskSetup>,
    /// The folder of each route; `None` for a route that serves no files.
    pub folders: Vec<Option<Arc<Folder>>>,
    /// How short memory is.
    pub memory: Arc<MemoryState>,
    /// The keys of each route that verifies tokens, by its index.
    pub keyrings: Vec<Option<Arc<Keyring>>>,
    /// Its listeners, with what belongs to each.
    pub listeners: Vec<Listener>,
    /// The limit of the whole gateway on connections.
    pub admission: Arc<Admission>,
    /// Its own counters.
    pub cells: Arc<ShardCells>,
    /// Where its mail comes from.
    pub inbox: Inbox,
}

/// One listener of a shard.
#[derive(Debug)]
pub struct Listener {
    /// The port's index in the configuration.
    pub port_index: usize,
    /// The port's number, known now even where the kernel chose it.
    pub number: u16,
    /// The listening socket.
    pub socket: OwnedFd,
    /// What TLS it offers, if it does.
    pub tls: Option<Arc<ArcSwap<ServerSettings>>>,
    /// The port's counters on this shard.
    pub cells: Arc<PortCells>,
    /// The port's limit on connections.
    pub admission: Arc<Admission>,
    /// What the port limits by address.
    pub addresses: Option<Arc<Addresses>>,
}

/// How a shard came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// What it waits with.
    pub driver: Driver,
    /// Why that is not a ring, where a ring was wanted.
    pub fallback: Option<NoRing>,
}

/// Why a shard did not come up.
#[derive(Debug)]
pub enum StartError {
    /// A ring was demanded and is not to be had.
    NoRing(NoRing),
    /// The runtime or a listener could not be set up.
    Io(io::Error),
}

/// Starts a shard's thread. `started` is called on it once it serves or cannot, and dropped when the thread ends.
///
/// # Errors
/// Where the thread cannot be made.
pub fn spawn(
    setup: Setup,
    started: impl Fn(Result<Started, StartError>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("shard-{}", setup.index)).spawn(move || {
        if let Some(core) = setup.core {
            // Where the mask forbids the core the scheduler decides, which costs speed and nothing else.
            core_affinity::set_for_current(core);
        }
        let (mut runtime, fallback) = match build_runtime(setup.io_driver) {
            Ok(built) => built,
            Err(error) => return started(Err(error)),
        };
        let driver = runtime.driver();
        runtime.run(async move {
            match Shard::prepare(setup, driver) {
                Ok(shard) => {
                    started(Ok(Started { driver, fallback }));
                    shard.run().await;
                }
                Err(error) => started(Err(StartError::Io(error))),
            }
        });
    })
}

/// A shard whose listeners are bound to its runtime.
struct Shard {
    resources: Rc<Resources>,
    acceptors: Vec<(Rc<Table>, Acceptor)>,
    reserve: Rc<Reserve>,
    inbox: mailbox::BoundInbox,
    ticks: Counted,
}

impl Shard {
    fn prepare(setup: Setup, driver: Driver) -> io::Result<Self> {
        let resources = Resources::within(setup.memory, setup.cells, driver);
        let router = Rc::new(Router::new(&setup.config));
        let behind = setup.upstreams.into_iter().zip(setup.config.relays()).map(|(upstreams, (_, relay))| {
            let ((group, cells), relay) = upstreams.zip(relay)?;
            Some(Behind { group, cells, kept: Kept::new(&resources, &relay.limits) })
        });
        let behind: Vec<_> = behind.collect();
        let desk = setup.desk.map(DeskSetup::bind).transpose()?;
        let folders = Rc::new(Folders { desk, folders: setup.folders });
        let keyrings: Keyrings = setup.keyrings.into();
        let mut acceptors = Vec::new();
        for listener in setup.listeners {
            let port = Rc::new(Port {
                resources: Rc::clone(&resources),
                cells: listener.cells,
                limits: setup.config.ports[listener.port_index].limits,
                number: listener.number,
                tls: listener.tls,
                proxies: setup.config.ports[listener.port_index].proxy_protocol.clone(),
                access: setup.config.ports[listener.port_index].access.clone(),
                addresses: listener.addresses,
                admissions: [listener.admission, Arc::clone(&setup.admission)],
            });
            let table =
                Table::new(&setup.config, (&behind, &folders, &keyrings), &router, listener.port_index, port);
            acceptors.push((table, Acceptor::new(listener.socket, driver)?));
        }
        let (reserve, inbox, ticks) = (Rc::new(Reserve::new()), setup.inbox.bind()?, Counted::ticks(TICK)?);
        Ok(Self { resources, acceptors, reserve, inbox, ticks })
    }

    /// Serves until it has been drained.
    async fn run(self) {
        for (table, acceptor) in self.acceptors {
            self.resources.occupy();
            monoio::spawn(accept::accept(table, acceptor, Rc::clone(&self.reserve)));
        }
        monoio::spawn(sweep(Rc::clone(&self.resources), self.ticks));
        let resources = Rc::clone(&self.resources);
        monoio::spawn(async move { resources.turnstile.keep().await });
        monoio::spawn(read_mail(Rc::clone(&self.resources), self.inbox));
        self.resources.vacated().await;
        // What was dropped last is closed with the ring's next turn, and whoever is at its other end waits for that.
        let timer = self.resources.timers.timer();
        timer.set(self.resources.timers.after(1));
        timer.race(pending::<()>()).await;
    }
}

/// Moves the clock on, tick by tick, and wakes what is due.
async fn sweep(resources: Rc<Resources>, ticks: Counted) {
    let mut due = clock::now() + TICK;
    loop {
        let passed = ticks.next().await.expect("a timer of our own can be read while it is open");
        let now = clock::now();
        due += TICK * u32::try_from(passed.saturating_sub(1)).unwrap_or(u32::MAX);
        let lag = now.saturating_duration_since(due);
        due += TICK;
        resources.cells.loop_lag_ns.set(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX));
        resources.cells.cpu_ns.set(u64::try_from(clock::thread_cpu().as_nanos()).unwrap_or(u64::MAX));
        resources.timers.sweep(now);
        if let Some(pool) = &resources.pool {
            pool.shrink();
        }
        resources.scratch.shrink();
    }
}

/// Does what the control thread asks.
async fn read_mail(resources: Rc<Resources>, inbox: mailbox::BoundInbox) {
    loop {
        let mail = inbox.next().await.expect("an eventfd of our own can be read while it is open");
        match mail {
            Some(Mail::Drain) => resources.advance(Phase::Draining),
            // Without the control thread nobody could stop this one in order.
            Some(Mail::Cut) | None => resources.advance(Phase::Cutting),
        }
        if mail.is_none() {
            return;
        }
    }
}

fn build_runtime(io_driver: IoDriver) -> Result<(ShardRuntime, Option<NoRing>), StartError> {
    let epoll = || ShardRuntime::epoll().map_err(StartError::Io);
    match io_driver {
        IoDriver::Epoll => Ok((epoll()?, None)),
        IoDriver::IoUring => {
            ShardRuntime::io_uring().map(|runtime| (runtime, None)).map_err(StartError::NoRing)
        }
        IoDriver::Auto => match ShardRuntime::io_uring() {
            Ok(runtime) => Ok((runtime, None)),
            Err(reason) => Ok((epoll()?, Some(reason))),
        },
    }
}
