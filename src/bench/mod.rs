//! The load generator behind `ringway bench`: connections that check every answer, on pinned threads with a ring each.
//!
//! [`echo()`], [`connect()`] and [`idle()`] put one server under one load; [`compare()`] sets servers side by side. A
//! fast wrong answer is no result: what comes back is held to RFC 6455 and to what was sent, and a connection that
//! fails is counted, by its reason, and given up.

mod client;
mod compare;
mod connect;
mod crowd;
mod fault;
mod figures;
mod generator;
mod idle;
mod measure;
mod messages;
mod plot;
mod process;
mod report;
mod schedule;
mod tally;
mod team;
mod target;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use self::client::{Door, OpenFault, Tls};
pub use self::compare::{Case, CompareFault, Comparison, Contestant, Measure, Pair, Plan, Standing};
pub use self::connect::Parting;
pub use self::crowd::Pace;
pub use self::fault::Fault;
pub use self::figures::{Effort, Latency, Spread};
pub use self::generator::StartFault;
pub use self::idle::{IdleFault, Upkeep};
pub use self::messages::Shape;
pub use self::process::{Memory, Server};
pub use self::report::{Comparisons, Report, Scenario, ServerCost};
pub use self::target::{Target, TargetFault};

use self::crowd::{Crowd, Span};
use self::generator::Generator;
use self::measure::{Measured, measure};
use self::tally::Tally;
use self::team::{Part, Stopped, Teller};
use crate::net::{clock, limits};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Hears what is going on, a line at a time.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// One server under load, and how long.
#[derive(Clone)]
pub struct Setting {
    /// How connections are opened.
    pub door: Arc<Door>,
    /// How many connections; for [`connect()`] how many at a time.
    pub connections: u32,
    /// How long what is measured takes; for [`idle()`] how long nothing happens.
    pub duration: Duration,
    /// How long the same goes on before that, unmeasured.
    pub warmup: Duration,
    /// How long after that answers may still come.
    pub grace: Duration,
    /// The server's processes, where they are known.
    pub server: Option<Server>,
    /// How many threads make the load; [`idle()`] takes one.
    pub threads: u32,
    /// The core of each thread; where there are none, the last that the process may use.
    pub cores: Vec<usize>,
    /// Who hears what is going on.
    pub progress: Progress,
}

/// Why there is no result.
#[derive(Debug)]
pub enum BenchFault {
    /// The generator could not start.
    Start(StartFault),
    /// A connection could not be opened.
    Open(OpenFault),
    /// The server's process is gone, or belongs to somebody else.
    Server(io::Error),
    /// Servers could not be compared.
    Compare(CompareFault),
}

/// Messages and their echoes.
///
/// # Errors
/// [`BenchFault`].
pub fn echo(setting: &Setting, shape: Shape, pace: Pace) -> Result<Report, BenchFault> {
    limits::raise_descriptors();
    // No thread is without a connection or a message.
    let rate =
        if let Pace::PerSecond(rate) = pace { u32::try_from(rate).unwrap_or(u32::MAX) } else { u32::MAX };
    let threads = setting.threads.min(setting.connections).min(rate);
    let outcomes = team::run(threads, &setting.cores, async |generator, part| {
        let span = |duration| Span { duration, grace: setting.grace };
        let pace = match pace {
            Pace::Answers => Pace::Answers,
            Pace::PerSecond(rate) => Pace::PerSecond(part.share(rate).1),
        };
        let (first, count) = part.share_of_connections(setting.connections);
        let mut crowd = Crowd::open(&generator, &setting.door, shape, first..first + count).await?;
        part.meet()?;
        let warmup = Rc::new(Tally::new());
        if !setting.warmup.is_zero() {
            crowd.run(pace, span(setting.warmup), &warmup).await;
        }
        let tally = Rc::new(Tally::new());
        let run = crowd.run(pace, span(setting.duration), &tally);
        let seen = run_together(&generator, setting, &part, &tally, "messages", run).await?;
        crowd.leave(&warmup).await;
        Ok((seen, Tally::clone(&warmup)))
    })?;
    // A connection that broke before the measuring, or in leaving, is as wrong as one that broke during it.
    Ok(report(Scenario::Echo { shape, pace }, setting, outcomes))
}

/// Opening handshakes.
///
/// # Errors
/// [`BenchFault`].
pub fn connect(setting: &Setting, parting: Parting) -> Result<Report, BenchFault> {
    limits::raise_descriptors();
    let threads = setting.threads.min(setting.connections);
    let outcomes = team::run(threads, &setting.cores, async |generator, part| {
        let manner = (part.share_of_connections(setting.connections).1, parting);
        let warmup = Rc::new(Tally::new());
        connect::run(&generator, &setting.door, manner, setting.warmup, &warmup).await;
        let tally = Rc::new(Tally::new());
        let run = connect::run(&generator, &setting.door, manner, setting.duration, &tally);
        let seen = run_together(&generator, setting, &part, &tally, "connections", run).await?;
        Ok((seen, Tally::clone(&warmup)))
    })?;
    Ok(report(Scenario::Connect { parting }, setting, outcomes))
}

/// What one thread measured, and what the first of them saw of the server at the end.
struct Seen {
    measured: Measured,
    server: Option<(Memory, usize)>,
}

/// Measures one thread's part of a run while all others do theirs.
async fn run_together(
    generator: &Rc<Generator>,
    setting: &Setting,
    part: &Part,
    tally: &Rc<Tally>,
    what: &'static str,
    run: impl Future<Output = ()>,
) -> Result<Seen, Stopped> {
    let server = setting.server.as_ref().filter(|_| part.is_first());
    part.meet()?;
    let teller = tell(generator, setting, part.teller(), tally, what);
    let in_step = async {
        // Whoever finds another thread gone has no result in any case.
        let _ = part.meet();
        run.await;
        let _ = part.meet();
    };
    let measured = measure(server, Rc::clone(tally), in_step).await?;
    teller.set(true);
    let look = |server: &Server| Ok::<_, io::Error>((server.memory()?, server.descriptors()?));
    let server = server.map(look).transpose()?;
    part.meet()?;
    Ok(Seen { measured, server })
}

/// The report of what all threads came to.
fn report(scenario: Scenario, setting: &Setting, outcomes: Vec<(Seen, Tally)>) -> Report {
    let outside = Tally::new();
    let mut server = None;
    let mut runs = Vec::new();
    for (seen, warmup) in outcomes {
        outside.add(&warmup);
        server = server.or(seen.server);
        runs.push(seen.measured);
    }
    let measured = Measured::together(&runs);
    let server = server.map(|(memory, descriptors)| ServerCost {
        cpu_us_per_message: measured.server_us(),
        rss_bytes: memory.rss_bytes,
        descriptors,
    });
    Report::new(scenario, setting, &measured, server, &outside)
}

/// Idle connections.
///
/// # Errors
/// [`BenchFault`].
pub fn idle(setting: &Setting, shape: Shape) -> Result<Report, BenchFault> {
    limits::raise_descriptors();
    let work = async |generator: Rc<Generator>| {
        let tally = Rc::new(Tally::new());
        let run = idle::run(&generator, setting, shape, &tally);
        let mut upkeep = Ok(None);
        let measured = measure(None, Rc::clone(&tally), async { upkeep = run.await }).await?;
        let scenario = Scenario::Idle { shape, upkeep: upkeep? };
        Ok(Report::new(scenario, setting, &measured, None, &Tally::new()))
    };
    Generator::run(setting.cores.first().copied(), work)?
}

/// Servers side by side, one case after the other.
///
/// # Errors
/// [`BenchFault`].
pub fn compare(
    contestants: &[Contestant],
    cases: &[Case],
    plan: &Plan,
    core: Option<usize>,
    progress: &Progress,
) -> Result<Comparisons, BenchFault> {
    limits::raise_descriptors();
    let work = async |generator: Rc<Generator>| {
        let mut comparisons = Vec::new();
        for case in cases {
            comparisons
                .push(compare::compare(&generator, contestants, *case, plan, |text| progress(text)).await?);
        }
        let deflate = contestants.first().and_then(|contestant| contestant.door.deflate);
        Ok(Comparisons::new(plan, deflate, comparisons))
    };
    Generator::run(core, work)?
}

/// Tells every now and then how it goes, until the cell returned is set. The first thread speaks for all.
fn tell(
    generator: &Rc<Generator>,
    setting: &Setting,
    teller: Teller,
    tally: &Rc<Tally>,
    what: &'static str,
) -> Rc<Cell<bool>> {
    let is_over = Rc::new(Cell::new(false));
    let (generator, tally, over) = (Rc::clone(generator), Rc::clone(tally), Rc::clone(&is_over));
    let (progress, duration) = (Arc::clone(&setting.progress), setting.duration);
    monoio::spawn(async move {
        let start = clock::now();
        let (mut then, mut before, mut faults) = (start, Tally::new(), 0);
        loop {
            generator.wait(PROGRESS_INTERVAL).await;
            if over.get() {
                return;
            }
            let told = teller.tell(&tally.since(&before));
            before = Tally::clone(&tally);
            let Some(news) = told else { continue };
            let now = clock::now();
            let rate = figures::float(news.messages()) / (now - then).as_secs_f64();
            faults += news.faults_sum();
            then = now;
            progress(&format!(
                "{:.1} of {:.1} s, {rate:.0} {what}/s, p50 {}, p99 {}, {faults} errors",
                (now - start).as_secs_f64(),
                duration.as_secs_f64(),
                report::time(figures::us(news.latency(0.5))),
                report::time(figures::us(news.latency(0.99))),
            ));
        }
    });
    is_over
}

impl From<StartFault> for BenchFault {
    fn from(fault: StartFault) -> Self {
        Self::Start(fault)
    }
}

impl From<OpenFault> for BenchFault {
    fn from(fault: OpenFault) -> Self {
        Self::Open(fault)
    }
}

/// The only operating system errors of a run are those of looking at the server.
impl From<io::Error> for BenchFault {
    fn from(error: io::Error) -> Self {
        Self::Server(error)
    }
}

impl From<IdleFault> for BenchFault {
    fn from(fault: IdleFault) -> Self {
        match fault {
            IdleFault::Open(fault) => Self::Open(fault),
            IdleFault::Server(error) => Self::Server(error),
        }
    }
}

impl From<CompareFault> for BenchFault {
    fn from(fault: CompareFault) -> Self {
        Self::Compare(fault)
    }
}

impl fmt::Display for BenchFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(fault) => fault.fmt(formatter),
            Self::Open(fault) => fault.fmt(formatter),
            Self::Server(error) => write!(formatter, "the server's process cannot be seen: {error}"),
            Self::Compare(fault) => fault.fmt(formatter),
        }
    }
}
