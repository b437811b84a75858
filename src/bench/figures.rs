//! Figures from measurements: rates, shares, medians.

use std::time::Duration;

use serde::Serialize;

/// From this share of a core on the generator, not the server, was the limit.
const LIMITED_FROM: f64 = 0.95;

/// A number of things, ready to be divided; exact below 2^53.
#[allow(clippy::cast_precision_loss, reason = "figures are read to a few digits")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// Microseconds.
pub(super) fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Microseconds for each of `count`; `None` where there were none.
pub(super) fn us_per(duration: Duration, count: u64) -> Option<f64> {
    (count > 0).then(|| us(duration) / float(count))
}

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` where there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "percentiles carry their meaning in their names")]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What a run cost the generator.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Effort {
    /// Its own processor time for each message.
    pub cpu_us_per_message: Option<f64>,
    /// The share of its core that it was busy; of several threads, the busiest.
    pub busy: f64,
    /// Whether that was so much that the server was not put to the test.
    pub limited: bool,
}

impl Effort {
    /// From the processor time of all threads and of the busiest, the time that passed, and what was done in it.
    pub fn new(cpu: Duration, busiest: Duration, elapsed: Duration, messages: u64) -> Self {
        let busy = busiest.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        Self { cpu_us_per_message: us_per(cpu, messages), busy, limited: busy >= LIMITED_FROM }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "halves are exact")]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_busy_generator_is_said_to_be_the_limit() {
        let [cpu, elapsed] = [200, 100].map(Duration::from_millis);
        let effort = |busiest_ms| Effort::new(cpu, Duration::from_millis(busiest_ms), elapsed, 10);
        assert!(effort(95).limited && !effort(94).limited);
        assert_eq!(Effort::new(Duration::ZERO, Duration::ZERO, Duration::ZERO, 0).cpu_us_per_message, None);
    }
}
