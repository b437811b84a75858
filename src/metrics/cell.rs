//! Counters, gauges and histograms with one writer and any number of readers.
//!
//! A cell is written by the one thread that owns it, as a load, an addition and a store (0.3 ns; an atomic addition
//! costs twenty times that), and read by the control thread at scrape. Two writers would lose counts. Stores release
//! and loads acquire: a reader that sees a count also sees every count that its writer made before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows; it wraps at 2^64.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
    }

    /// Adds one. Only the owning thread may.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// The count so far, from any thread.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A number that goes up and down, never below zero.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds `n`. Only the owning thread may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.set(self.0.load(Ordering::Relaxed).wrapping_add(n));
    }

    /// Takes away `n`, which must have been added before. Only the owning thread may.
    #[inline]
    pub fn sub(&self, n: u64) {
        let before = self.0.load(Ordering::Relaxed);
        debug_assert!(before >= n, "a gauge of {before} cannot lose {n}");
        self.set(before.wrapping_sub(n));
    }

    /// Replaces the value. Only the owning thread may.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// The value now, from any thread.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A histogram of durations with `N` bounds, whose sum is kept in microseconds.
///
/// A sum of nanoseconds would wrap after 584 years of observed time, which 10,000 connections spend in three weeks.
#[derive(Debug)]
pub struct DurationHistogram<const N: usize> {
    bounds_ns: &'static [u64; N],
    counts: [Counter; N],
    above: Counter,
    sum_us: Counter,
}

impl<const N: usize> DurationHistogram<N> {
    /// An empty histogram with these inclusive upper bounds in nanoseconds, which must ascend.
    pub fn new(bounds_ns: &'static [u64; N]) -> Self {
        debug_assert!(bounds_ns.is_sorted(), "bounds ascend");
        Self {
            bounds_ns,
            counts: std::array::from_fn(|_| Counter::default()),
            above: Counter::default(),
            sum_us: Counter::default(),
        }
    }

    /// Counts one duration, rounded to the microsecond in the sum. Only the owning thread may.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket_index = self.bounds_ns.partition_point(|bound| *bound < ns);
        self.counts.get(bucket_index).unwrap_or(&self.above).increment();
        self.sum_us.add(ns.saturating_add(500) / 1_000);
    }

    /// Adds what was counted so far to `totals`, from any thread.
    pub(super) fn add_to(&self, totals: &mut HistogramTotals) {
        add_counts(self.counts.iter().chain([&self.above]), totals);
        totals.sum = totals.sum.wrapping_add(self.sum_us.get());
    }
}

/// A histogram of message sizes in bytes, with bounds of 64 B, then four times as much each, up to 16 MiB.
#[derive(Debug, Default)]
pub struct SizeHistogram {
    counts: [Counter; SIZE_BOUND_COUNT],
    above: Counter,
    sum: Counter,
}

impl SizeHistogram {
    /// Counts one message of `size` bytes. Only the owning thread may.
    #[inline]
    pub fn observe_bytes(&self, size: u64) {
        self.counts.get(size_bucket_index(size)).unwrap_or(&self.above).increment();
        self.sum.add(size);
    }

    /// The inclusive upper bounds, in bytes.
    pub(super) fn bounds() -> [u64; SIZE_BOUND_COUNT] {
        std::array::from_fn(|index| SIZE_BOUND_MIN << (2 * index))
    }

    /// Adds what was counted so far to `totals`, from any thread.
    pub(super) fn add_to(&self, totals: &mut HistogramTotals) {
        add_counts(self.counts.iter().chain([&self.above]), totals);
        totals.sum = totals.sum.wrapping_add(self.sum.get());
    }
}

/// The sum of several histograms with the same bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramTotals {
    /// How many values each bucket holds, not cumulated; the last one holds those above every bound.
    pub counts: Vec<u64>,
    /// The sum of the values: microseconds of durations, bytes of sizes.
    pub sum: u64,
}

impl HistogramTotals {
    /// Nothing counted, under `bound_count` bounds.
    pub(super) fn new(bound_count: usize) -> Self {
        Self { counts: vec![0; bound_count + 1], sum: 0 }
    }

    /// The number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

const SIZE_BOUND_COUNT: usize = 10;
const SIZE_BOUND_MIN: u64 = 64;

/// The bucket of `size`: half the number of bits above the first bound's, without a comparison for each bound.
#[inline]
fn size_bucket_index(size: u64) -> usize {
    // The bits of `size - 1` are the exponent of the power of two that `size` does not exceed.
    let exponent = u64::BITS - size.saturating_sub(1).leading_zeros();
    (exponent.saturating_sub(SIZE_BOUND_MIN.trailing_zeros() - 1) / 2) as usize
}

fn add_counts<'a>(counters: impl Iterator<Item = &'a Counter>, totals: &mut HistogramTotals) {
    for (total, counter) in totals.counts.iter_mut().zip(counters) {
        *total = total.wrapping_add(counter.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_adds_and_wraps() {
        let counter = Counter::default();
        counter.increment();
        counter.add(41);
        assert_eq!(counter.get(), 42);
        counter.add(u64::MAX);
        assert_eq!(counter.get(), 41);
    }

    #[test]
    fn a_gauge_goes_up_and_down() {
        let gauge = Gauge::default();
        gauge.add(5);
        gauge.sub(2);
        assert_eq!(gauge.get(), 3);
        gauge.set(7);
        assert_eq!(gauge.get(), 7);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "a gauge of 1 cannot lose 2")]
    fn a_gauge_that_would_fall_below_zero_is_our_mistake() {
        let gauge = Gauge::default();
        gauge.add(1);
        gauge.sub(2);
    }

    #[test]
    fn a_reader_that_sees_a_count_sees_those_before_it() {
        let (first, second) = (Counter::default(), Counter::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..200_000 {
                    first.increment();
                    second.increment();
                }
            });
            while second.get() < 200_000 {
                let seen = second.get();
                assert!(first.get() >= seen);
            }
        });
        assert_eq!((first.get(), second.get()), (200_000, 200_000));
    }

    #[test]
    fn durations_fall_at_or_below_their_bound() {
        let histogram = DurationHistogram::new(&[1_000, 2_000]);
        for ns in [0, 1_000, 1_001, 2_000, 2_001] {
            histogram.observe(Duration::from_nanos(ns));
        }
        histogram.observe(Duration::MAX);
        let mut totals = HistogramTotals::new(2);
        histogram.add_to(&mut totals);
        assert_eq!(totals.counts, [2, 2, 2]);
        assert_eq!(totals.count(), 6);
    }

    #[test]
    fn a_sum_of_durations_rounds_to_the_microsecond() {
        let histogram = DurationHistogram::new(&[1_000]);
        for ns in [499, 500, 1_499, 1_500] {
            histogram.observe(Duration::from_nanos(ns));
        }
        let mut totals = HistogramTotals::new(1);
        histogram.add_to(&mut totals);
        assert_eq!(totals.sum, 1 + 1 + 2);
    }

    #[test]
    fn sizes_fall_at_or_below_their_bound() {
        let bounds = SizeHistogram::bounds();
        assert_eq!((bounds[0], bounds[1], bounds[SIZE_BOUND_COUNT - 1]), (64, 256, 16 << 20));
        assert_eq!(size_bucket_index(0), 0);
        for (index, bound) in bounds.into_iter().enumerate() {
            assert_eq!(size_bucket_index(bound), index, "{bound}");
            assert_eq!(size_bucket_index(bound + 1), index + 1, "{}", bound + 1);
        }
        assert!(size_bucket_index(u64::MAX) > SIZE_BOUND_COUNT);
    }

    #[test]
    fn histograms_add_up() {
        let (one, other) = (SizeHistogram::default(), SizeHistogram::default());
        one.observe_bytes(20);
        one.observe_bytes((16 << 20) + 1);
        other.observe_bytes(65);
        let mut totals = HistogramTotals::new(SIZE_BOUND_COUNT);
        one.add_to(&mut totals);
        other.add_to(&mut totals);
        assert_eq!(totals.counts, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(totals.sum, 20 + (16 << 20) + 1 + 65);
    }
}
