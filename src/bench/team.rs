//! Generator threads that put one load on a server together: they begin and end at the same time.

use std::mem;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::BenchFault;
use super::generator::Generator;
use super::tally::Tally;

/// One thread's part in a load.
#[derive(Debug)]
pub(super) struct Part {
    index: u32,
    shared: Arc<Shared>,
}

/// Why a thread stopped early.
#[derive(Debug)]
pub(super) enum Stopped {
    /// Something went wrong here.
    Fault(BenchFault),
    /// Another thread is gone, and tells why.
    Elsewhere,
}

#[derive(Debug)]
struct Shared {
    threads: u32,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// What each thread came to since it last told.
    news: Mutex<Vec<Tally>>,
}

/// Where threads wait for each other.
#[derive(Debug, Default)]
struct Gate {
    waiting: u32,
    /// How often all have met.
    meetings: u64,
    /// True from the first thread's end on: nobody need wait for it.
    is_left: bool,
}

/// Runs `work` on so many threads, each pinned to a core of its own as far as there are enough: to those given, or else
/// to the last that this process may use.
///
/// # Errors
/// The first fault of a thread.
pub(super) fn run<T: Send>(
    threads: u32,
    cores: &[usize],
    work: impl AsyncFn(Rc<Generator>, Part) -> Result<T, Stopped> + Sync,
) -> Result<Vec<T>, BenchFault> {
    let shared = Arc::new(Shared {
        threads,
        gate: Mutex::default(),
        changed: Condvar::new(),
        news: Mutex::new((0..threads).map(|_| Tally::new()).collect()),
    });
    let cores = if cores.is_empty() {
        let usable = core_affinity::get_core_ids().unwrap_or_default();
        usable.into_iter().rev().map(|core| core.id).collect()
    } else {
        cores.to_vec()
    };
    let work = &work;
    let outcomes: Vec<Result<T, Stopped>> = thread::scope(|scope| {
        let handles = (0..threads).map(|index| {
            let part = Part { index, shared: Arc::clone(&shared) };
            let core = cores.get(index as usize % cores.len().max(1)).copied();
            scope.spawn(move || Generator::run(core, async |generator| work(generator, part).await)?)
        });
        let handles: Vec<_> = handles.collect();
        let joined = handles.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|outcome| outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut results = Vec::new();
    let mut is_short = false;
    for outcome in outcomes {
        match outcome {
            Ok(result) => results.push(result),
            Err(Stopped::Fault(fault)) => return Err(fault),
            Err(Stopped::Elsewhere) => is_short = true,
        }
    }
    assert!(!is_short, "a thread stops for another's sake only where that one met a fault");
    Ok(results)
}

impl Part {
    /// Whether this is the thread that looks at the server and tells how it goes.
    pub(super) fn is_first(&self) -> bool {
        self.index == 0
    }

    /// This thread's share of `whole`: where it begins, and how much it is. No two shares differ by more than one.
    pub(super) fn share(&self, whole: u64) -> (u64, u64) {
        let until = |index: u32| {
            let product = u128::from(whole) * u128::from(index) / u128::from(self.shared.threads);
            u64::try_from(product).expect("a part is no more than the whole")
        };
        let start = until(self.index);
        (start, until(self.index + 1) - start)
    }

    /// The same of a number of connections.
    pub(super) fn share_of_connections(&self, whole: u32) -> (u32, u32) {
        let (start, count) = self.share(u64::from(whole));
        let narrow = |number| u32::try_from(number).expect("a part is no more than the whole");
        (narrow(start), narrow(count))
    }

    /// Waits for all other threads to come here, too. The thread's connections rest meanwhile.
    ///
    /// # Errors
    /// [`Stopped::Elsewhere`] where another thread is gone.
    pub(super) fn meet(&self) -> Result<(), Stopped> {
        let mut gate = self.shared.gate();
        let meetings = gate.meetings;
        gate.waiting += 1;
        if gate.waiting == self.shared.threads {
            gate.waiting = 0;
            gate.meetings += 1;
            self.shared.changed.notify_all();
            return Ok(());
        }
        while gate.meetings == meetings {
            if gate.is_left {
                return Err(Stopped::Elsewhere);
            }
            gate = self.shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Where this thread tells what it came to.
    pub(super) fn teller(&self) -> Teller {
        Teller { index: self.index, shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.shared.gate().is_left = true;
        self.shared.changed.notify_all();
    }
}

/// Tells for one thread, and hears for all.
#[derive(Debug)]
pub(super) struct Teller {
    index: u32,
    shared: Arc<Shared>,
}

impl Teller {
    /// Adds what this thread came to since it last told. The first thread is given what all told since it last did.
    pub(super) fn tell(&self, news: &Tally) -> Option<Tally> {
        let mut all = self.shared.news.lock().unwrap_or_else(PoisonError::into_inner);
        all[self.index as usize].add(news);
        (self.index == 0).then(|| {
            let sum = Tally::new();
            for one in &mut *all {
                sum.add(&mem::take(one));
            }
            sum
        })
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Into<BenchFault>> From<F> for Stopped {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::bench::OpenFault;

    #[test]
    fn shares_make_up_the_whole() {
        for (threads, whole) in [(1, 7), (3, 7), (4, 4), (5, 3)] {
            let shares = run(threads, &[], async |_, part| Ok(part.share(whole))).unwrap();
            let mut next = 0;
            for (start, count) in shares {
                assert_eq!(start, next);
                next += count;
            }
            assert_eq!(next, whole);
        }
    }

    #[test]
    fn nobody_goes_on_before_all_have_come() {
        let come = AtomicU32::new(0);
        let seen = run(3, &[], async |_, part| {
            come.fetch_add(1, Ordering::SeqCst);
            part.meet()?;
            let seen = come.load(Ordering::SeqCst);
            part.meet()?;
            Ok(seen)
        });
        assert_eq!(seen.unwrap(), [3, 3, 3]);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_met_a_fault() {
        let outcome = run(3, &[], async |_, part| {
            if part.is_first() {
                return Err(OpenFault::Late.into());
            }
            part.meet()
        });
        assert!(matches!(outcome, Err(BenchFault::Open(OpenFault::Late))), "{outcome:?}");
    }
}
