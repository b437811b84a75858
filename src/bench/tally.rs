//! What a run under load came to: messages, latencies, faults.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::fault::Fault;
use super::figures;

/// The longest latency that is told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Latencies are told to so many digits, from 100 ns on.
const LATENCY_DIGITS: u8 = 3;

/// Counters that all connections of a run share.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    messages: Cell<u64>,
    /// Bytes of payload of their answers as they came; counted where these may be compressed.
    answer_bytes: Cell<u64>,
    /// In nanoseconds.
    latencies: RefCell<Histogram<u64>>,
    faults: [Cell<u64>; Fault::COUNT],
}

impl Tally {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let longest = u64::try_from(LATENCY_MAX.as_nanos()).expect("ten minutes are below 2^64 ns");
        let histogram =
            Histogram::new_with_bounds(100, longest, LATENCY_DIGITS).expect("the bounds are in order");
        Self {
            messages: Cell::new(0),
            answer_bytes: Cell::new(0),
            latencies: RefCell::new(histogram),
            faults: Default::default(),
        }
    }

    /// Counts messages that were answered together.
    #[inline]
    pub(super) fn answered(&self, messages: u32, latency: Duration) {
        self.messages.set(self.messages.get() + u64::from(messages));
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latencies.borrow_mut().saturating_record_n(latency, u64::from(messages));
    }

    /// Counts bytes of answers, as they came.
    pub(super) fn received(&self, bytes: u64) {
        self.answer_bytes.set(self.answer_bytes.get() + bytes);
    }

    /// Counts a connection that was given up.
    pub(super) fn fault(&self, fault: Fault) {
        let count = &self.faults[fault.index()];
        count.set(count.get() + 1);
    }

    /// Messages answered so far.
    pub(super) fn messages(&self) -> u64 {
        self.messages.get()
    }

    /// The mean payload of an answer as it came, in bytes; `None` where that is not counted.
    pub(super) fn bytes_per_answer(&self) -> Option<f64> {
        let (bytes, messages) = (self.answer_bytes.get(), self.messages.get());
        (bytes > 0 && messages > 0).then(|| figures::float(bytes) / figures::float(messages))
    }

    /// The latency that this share of the messages did not exceed.
    pub(super) fn latency(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.latencies.borrow().value_at_quantile(quantile))
    }

    /// The mean latency; zero where there were no messages.
    pub(super) fn latency_mean(&self) -> Duration {
        Duration::from_secs_f64(self.latencies.borrow().mean() / 1e9)
    }

    /// How many messages took how long: for each power of `base` from 1 µs on, those that took up to so long and longer
    /// than the one before. Begins and ends with the first and the last that there were.
    pub(super) fn buckets(&self, base: u32) -> Vec<(Duration, u64)> {
        let latencies = self.latencies.borrow();
        let powers = latencies.iter_log(1000, f64::from(base));
        let buckets = powers.map(|step| {
            let up_to = Duration::from_nanos(step.value_iterated_to() + 1);
            (up_to, step.count_since_last_iteration())
        });
        buckets.skip_while(|(_, count)| *count == 0).collect()
    }

    /// All connections given up.
    pub(super) fn faults_sum(&self) -> u64 {
        self.faults.iter().map(Cell::get).sum()
    }

    /// The faults that happened, and how often.
    pub(super) fn faults(&self) -> impl Iterator<Item = (Fault, u64)> {
        Fault::ALL
            .iter()
            .zip(&self.faults)
            .map(|(fault, count)| (*fault, count.get()))
            .filter(|(_, count)| *count > 0)
    }

    /// What came since an earlier moment of the same tally.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let rest = self.clone();
        rest.messages.set(rest.messages.get() - earlier.messages.get());
        rest.answer_bytes.set(rest.answer_bytes.get() - earlier.answer_bytes.get());
        let taken = rest.latencies.borrow_mut().subtract(&*earlier.latencies.borrow());
        taken.expect("what was counted earlier is still counted");
        for (count, before) in rest.faults.iter().zip(&earlier.faults) {
            count.set(count.get() - before.get());
        }
        rest
    }

    /// Adds what another came to.
    pub(super) fn add(&self, other: &Self) {
        self.messages.set(self.messages.get() + other.messages.get());
        self.received(other.answer_bytes.get());
        // Both have the same bounds, so everything in one has its place in the other.
        self.latencies.borrow_mut().add(&*other.latencies.borrow()).expect("both have the same bounds");
        for (sum, count) in self.faults.iter().zip(&other.faults) {
            sum.set(sum.get() + count.get());
        }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}
