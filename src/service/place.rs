//! Where a connection is: the shard that lends, the port it came to, the route that took it.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::addresses::Addresses;
use super::admission::Admission;
use super::upstream::Group;
use super::web::kept::Kept;
use crate::config::{Access, Deflate, Limits, RatePolicy, Relay, Route, Service};
use crate::metrics::{MemoryState, PortCells, RelayCells, ShardCells};
use crate::net::clock;
use crate::net::driver::Driver;
use crate::net::pool::Pool;
use crate::net::random::Random;
use crate::net::scratch::Scratch;
use crate::net::simd;
use crate::net::timers::{Clocked, NEVER, TICKS_PER_S, Tick, Timers, ticks};
use crate::net::tls::ServerSettings;
use crate::net::turn::{AfterOthers, Turnstile};
use crate::protocol::websocket::deflate::Policy;
use crate::protocol::websocket::deflate::codec::Codec;
use crate::protocol::websocket::frame::{RSV1, Role, Rules};
use crate::protocol::websocket::keepalive::Patience;
use crate::protocol::websocket::rate::Rates;

/// When refused clients are to come again: a few seconds, not the same for all, lest they come back as a wave.
pub fn retry_after_s() -> u32 {
    thread_local! {
        static NEXT: Cell<u32> = const { Cell::new(0) };
    }
    NEXT.with(|next| {
        let turn = next.get();
        next.set((turn + 1) % 8);
        2 + turn
    })
}

/// How far a shard has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It accepts and serves.
    Serving,
    /// It accepts no more, and asks those who are there to leave.
    Draining,
    /// The time to leave is over: connections are cut.
    Cutting,
}

/// The most that is read at once of somebody who is paused for what he has sent, in bytes.
const PAUSED_READ_SIZE_MAX: usize = 4096;

/// How long somebody has said nothing who is quiet.
const QUIET_AFTER: Tick = 10 * TICKS_PER_S;

/// How many connections beyond the limit a shard lets go politely at one time: each holds a descriptor meanwhile, of
/// those that are kept from clients for this.
pub const LINGERING_MAX: u32 = 32;

/// Leave for one connection beyond the limit to be let go politely; given back when dropped.
#[derive(Debug)]
pub struct Lingering {
    resources: Rc<Resources>,
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.resources.lingering.set(self.resources.lingering.get() - 1);
    }
}

/// What a shard lends to its connections.
#[derive(Debug)]
pub struct Resources {
    /// The clock and all deadlines.
    pub timers: Rc<Timers>,
    /// The buffer that is read into.
    pub scratch: Scratch,
    /// The buffer that ciphertext lies in, on its way between sockets and TLS.
    pub sealed: Rc<Scratch>,
    /// Buffers for busy connections; `None` where there is no ring that could hold one.
    pub pool: Option<Pool>,
    /// Where tasks give way to each other.
    pub turnstile: Turnstile,
    /// Masking keys, and ids of requests.
    pub random: Random,
    /// What inflates and compresses, on all connections that do: one message at a time.
    pub codec: RefCell<Codec>,
    /// The shard's own counters.
    pub cells: Arc<ShardCells>,
    /// How short memory is.
    pub memory: Arc<MemoryState>,
    phase: Cell<Phase>,
    /// Connections beyond the limit that are being let go politely.
    lingering: Cell<u32>,
    /// Connections and listeners that still have work to do.
    occupied: Cell<u32>,
    vacated: RefCell<Option<Waker>>,
}

impl Resources {
    /// Those of a shard that begins to serve.
    pub fn new(cells: Arc<ShardCells>, driver: Driver) -> Rc<Self> {
        Self::within(Arc::default(), cells, driver)
    }

    /// The same, where memory may be short.
    pub fn within(memory: Arc<MemoryState>, cells: Arc<ShardCells>, driver: Driver) -> Rc<Self> {
        Rc::new(Self {
            memory,
            timers: Timers::new(),
            scratch: Scratch::new(),
            sealed: Rc::default(),
            pool: (driver == Driver::IoUring).then(Pool::default),
            turnstile: Turnstile::default(),
            random: Random::new(),
            codec: RefCell::default(),
            cells,
            phase: Cell::new(Phase::Serving),
            lingering: Cell::new(0),
            occupied: Cell::new(0),
            vacated: RefCell::new(None),
        })
    }

    /// Lets other tasks have their turn, where a wait may end without: on a ring none does.
    pub fn give_way(&self) -> AfterOthers<'_> {
        if self.pool.is_some() { self.turnstile.at_once() } else { self.turnstile.after_others() }
    }

    /// Lets other tasks have their turn, for one that has work left and waits for nothing.
    pub fn after_others(&self) -> AfterOthers<'_> {
        self.turnstile.after_others()
    }

    /// Whether a busy connection would get a buffer.
    pub fn has_buffer(&self) -> bool {
        self.pool.as_ref().is_some_and(Pool::has_room) && self.memory.level() < MemoryState::NO_BUFFERS
    }

    /// When a connection that has nothing else to wait for looks again whether memory is short.
    pub fn looks_at_memory_at(&self) -> Tick {
        if self.memory.ceiling().is_some() { self.timers.now().saturating_add(QUIET_AFTER) } else { NEVER }
    }

    /// Whether somebody whose last message came then is asked to leave, as memory is short.
    pub fn must_leave(&self, message: Tick) -> bool {
        self.memory.level() >= MemoryState::QUIET_LEAVE
            && self.timers.now().saturating_sub(message) >= QUIET_AFTER
    }

    /// When a time of day comes, in seconds since the Unix epoch, as far as is known by now: the clock of the day may be
    /// set meanwhile, so whoever waits for it asks again then.
    pub fn tick_at(&self, timestamp_s: u64) -> Tick {
        let now = self.timers.now();
        let time = clock::time_of_day().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match Duration::from_secs(timestamp_s).checked_sub(time) {
            Some(left) if !left.is_zero() => now.saturating_add(ticks(left)).saturating_add(1).min(NEVER - 1),
            _ => now,
        }
    }

    /// How far the shard has come.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Moves on to a later phase. Every connection is told by its deadline, which passes now.
    pub fn advance(&self, phase: Phase) {
        if phase > self.phase.get() {
            self.phase.set(phase);
            self.timers.expire_all();
        }
    }

    /// Leave to let one more connection beyond the limit go politely.
    pub fn linger_at_limit(self: &Rc<Self>) -> Option<Lingering> {
        let lingering = self.lingering.get();
        (lingering < LINGERING_MAX).then(|| {
            self.lingering.set(lingering + 1);
            Lingering { resources: Rc::clone(self) }
        })
    }

    /// Takes note of one more connection or listener.
    pub fn occupy(&self) {
        self.occupied.set(self.occupied.get() + 1);
    }

    /// Takes note that one is done.
    pub fn vacate(&self) {
        let occupied = self.occupied.get() - 1;
        self.occupied.set(occupied);
        if occupied == 0
            && let Some(waker) = self.vacated.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Waits until nothing is left to do: no listener, no connection.
    pub async fn vacated(&self) {
        std::future::poll_fn(|context| {
            if self.occupied.get() == 0 {
                return std::task::Poll::Ready(());
            }
            *self.vacated.borrow_mut() = Some(context.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }
}

/// One port, as one shard serves it.
#[derive(Debug)]
pub struct Port {
    /// What the shard lends.
    pub resources: Rc<Resources>,
    /// The port's counters on this shard.
    pub cells: Arc<PortCells>,
    /// The limits that hold before a route is known.
    pub limits: Limits,
    /// Its number.
    pub number: u16,
    /// What TLS it offers; `None` where it speaks none. The control thread puts other certificates in place.
    pub tls: Option<Arc<ArcSwap<ServerSettings>>>,
    /// From where connections must come that begin with a PROXY header; `None` where none does.
    pub proxies: Option<Vec<IpNet>>,
    /// Who may connect.
    pub access: Access,
    /// What is limited by address; `None` where nothing is.
    pub addresses: Option<Arc<Addresses>>,
    /// The port's own limit on connections, and the gateway's.
    pub admissions: [Arc<Admission>; 2],
}

impl Clocked for Rc<Port> {
    fn timers(&self) -> &Rc<Timers> {
        &self.resources.timers
    }
}

/// The upstreams of a route that relays.
#[derive(Debug)]
pub struct Upstreams {
    /// Which of them a client goes to.
    pub group: Arc<Group>,
    /// What the shard counts for them.
    pub cells: Arc<RelayCells>,
    /// How they are treated.
    pub relay: Relay,
    /// The connections to them that are kept.
    pub kept: Rc<Kept>,
}

/// One route, as one port on one shard serves it: limits resolved, in the units in which they are used.
#[derive(Debug)]
pub struct Place {
    /// The port.
    pub port: Rc<Port>,
    /// The route's index in the configuration.
    pub route_index: usize,
    /// What answers.
    pub service: Service,
    /// What frames may be like.
    pub rules: Rules,
    /// How messages are compressed, and what frames may be like where that was agreed on; `None` where it never is.
    pub deflate: Option<(Deflate, Rules)>,
    /// How long silence may last.
    pub patience: Patience,
    /// How much a connection may send.
    pub rates: Rates,
    /// How much of it is read at once, in bytes: where it is paused for what it has sent, not much in advance.
    pub read_size_max: usize,
    /// Whether one that sends more is not read for a while, and not closed.
    pub pauses: bool,
    /// How long a client may take to read what is sent to it.
    pub write_timeout: Tick,
    /// How long the closing handshake may take.
    pub close_timeout: Tick,
    /// The most bytes of a request's body.
    pub request_body_size_max: u64,
    /// How long a client may send nothing of a body.
    pub body_timeout: Tick,
    /// There exactly where the service relays.
    pub upstreams: Option<Upstreams>,
    /// Who is asked about requests; there exactly where somebody is.
    pub asked: Option<Upstreams>,
}

impl Place {
    /// A route with its limits, as a port serves it.
    pub fn new(
        port: Rc<Port>,
        (route_index, route): (usize, &Route),
        limits: &Limits,
        (upstreams, asked): (Option<Upstreams>, Option<Upstreams>),
    ) -> Rc<Self> {
        let rules = Rules {
            role: Role::Server,
            frame_size_max: limits.frame_size_max as u64,
            message_size_max: limits.message_size_max as u64,
            reserved_bits: 0,
            masker: simd::masker(),
        };
        Rc::new(Self {
            port,
            route_index,
            service: route.service,
            rules,
            deflate: route.deflate.map(|deflate| (deflate, deflate_rules(rules))),
            patience: Patience {
                ping_after: limits.ping_interval.map_or(0, ticks),
                pong_within: ticks(limits.pong_timeout),
                idle_after: limits.idle_timeout.map_or(0, ticks),
            },
            rates: Rates {
                frames_per_s: limits.messages_per_s.map_or(0, std::num::NonZeroU32::get),
                bytes_per_s: limits.bytes_per_s.map_or(0, std::num::NonZeroU64::get),
                ticks_per_s: TICKS_PER_S,
            },
            read_size_max: match (route.rate_policy, limits.messages_per_s, limits.bytes_per_s) {
                (RatePolicy::Close, _, _) | (RatePolicy::Pause, None, None) => usize::MAX,
                (RatePolicy::Pause, _, rate) => {
                    let rate = rate.map_or(PAUSED_READ_SIZE_MAX as u64, NonZeroU64::get);
                    usize::try_from(rate).unwrap_or(usize::MAX).clamp(128, PAUSED_READ_SIZE_MAX)
                }
            },
            pauses: route.rate_policy == RatePolicy::Pause,
            write_timeout: ticks(limits.write_timeout),
            close_timeout: ticks(limits.close_timeout),
            request_body_size_max: limits.request_body_size_max,
            body_timeout: ticks(limits.body_timeout),
            upstreams,
            asked,
        })
    }

    /// What the shard lends.
    pub fn resources(&self) -> &Resources {
        &self.port.resources
    }

    /// What may be agreed on with clients about compression; `None` where nothing may.
    pub fn deflate_policy(&self) -> Option<Policy> {
        self.deflate.as_ref().map(|(deflate, _)| deflate.policy())
    }

    /// The port's counters.
    pub fn cells(&self) -> &PortCells {
        &self.port.cells
    }
}

/// What frames may be like where messages may be compressed. What does not compress becomes larger by it, by five bytes in 16
/// thousand as zlib does it, and what counts is what it inflates to; so the limits on what comes leave some room.
fn deflate_rules(rules: Rules) -> Rules {
    let with_room = |size: u64| size.saturating_add(size / 64 + 64);
    Rules {
        frame_size_max: with_room(rules.frame_size_max),
        message_size_max: with_room(rules.message_size_max),
        reserved_bits: RSV1,
        ..rules
    }
}
