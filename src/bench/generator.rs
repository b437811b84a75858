//! The thread that makes load, and what its connections share.

use std::cell::Cell;
use std::fmt;
use std::future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::net::clock;
use crate::net::driver::{NoRing, ShardRuntime};
use crate::net::scratch::Scratch;
use crate::net::timers::{TICK, Tick, Timers, ticks};
use crate::net::wake::Counted;

/// What the connections of a load share.
#[derive(Debug)]
pub(super) struct Generator {
    /// The clock and all deadlines.
    pub timers: Rc<Timers>,
    /// The buffer that is read into.
    pub scratch: Scratch,
    /// Where what TLS encrypts lies between it and the socket.
    pub sealed: Rc<Scratch>,
    random: Cell<u64>,
}

/// Why no load can be made.
#[derive(Debug)]
pub enum StartFault {
    /// This process may not run on that core.
    Core(usize),
    /// A ring cannot be had.
    NoRing(NoRing),
    /// The clock cannot be set up.
    Io(io::Error),
}

impl Generator {
    /// Runs `work` on the calling thread, pinned to `core`, or to the last core that it may use.
    ///
    /// # Errors
    /// [`StartFault`].
    pub(super) fn run<T>(
        core: Option<usize>,
        work: impl AsyncFnOnce(Rc<Self>) -> T,
    ) -> Result<T, StartFault> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let chosen = match core {
            None => cores.last().copied(),
            Some(id) => Some(cores.into_iter().find(|core| core.id == id).ok_or(StartFault::Core(id))?),
        };
        if let Some(core) = chosen
            && !core_affinity::set_for_current(core)
        {
            return Err(StartFault::Core(core.id));
        }
        let mut runtime = ShardRuntime::io_uring().map_err(StartFault::NoRing)?;
        runtime.run(async {
            let ticks = Counted::ticks(TICK).map_err(StartFault::Io)?;
            let generator = Rc::new(Self {
                timers: Timers::new(),
                scratch: Scratch::new(),
                sealed: Rc::new(Scratch::new()),
                random: Cell::new(0x9e37_79b9_7f4a_7c15),
            });
            let timers = Rc::clone(&generator.timers);
            monoio::spawn(async move {
                loop {
                    ticks.next().await.expect("a timer of our own can be read while it is open");
                    timers.sweep(clock::now());
                }
            });
            Ok(work(generator).await)
        })
    }

    /// The next number of a sequence that looks random and is the same in every run (`SplitMix64`).
    pub(super) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// The first tick by which `duration` has wholly passed.
    pub(super) fn after(&self, duration: Duration) -> Tick {
        self.timers.after(ticks(duration))
    }

    /// Waits for `duration`, to a tick.
    pub(super) async fn wait(&self, duration: Duration) {
        let timer = self.timers.timer();
        timer.set(self.after(duration));
        timer.race(future::pending::<()>()).await;
    }
}

impl fmt::Display for StartFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core(id) => write!(formatter, "this process may not run on core {id}"),
            Self::NoRing(reason) => write!(formatter, "no io_uring: {reason}"),
            Self::Io(error) => write!(formatter, "no clock: {error}"),
        }
    }
}
