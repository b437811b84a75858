//! One run, measured: what was done, how long it took, and what it cost either side.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::figures::{self, Effort, Latency};
use super::process::Server;
use super::tally::Tally;
use crate::net::clock;

/// A run and its cost.
#[derive(Debug)]
pub(super) struct Measured {
    /// What was done.
    pub tally: Tally,
    /// How long it took.
    pub elapsed: Duration,
    /// The processor time of the generator, over all its threads.
    pub client_cpu: Duration,
    /// The processor time of the busiest of them.
    pub client_busiest: Duration,
    /// The processor time of the server, where it is known.
    pub server_cpu: Option<Duration>,
}

/// Runs `work` and takes note of what it cost.
///
/// # Errors
/// Where the server's process is gone.
pub(super) async fn measure(
    server: Option<&Server>,
    tally: Rc<Tally>,
    work: impl Future<Output = ()>,
) -> io::Result<Measured> {
    let server_before = server.map(Server::cpu).transpose()?;
    let client_before = clock::thread_cpu();
    let start = clock::now();
    work.await;
    let elapsed = clock::now() - start;
    let client_cpu = clock::thread_cpu().saturating_sub(client_before);
    let server_after = server.map(Server::cpu).transpose()?;
    let server_cpu = server_after.zip(server_before).map(|(after, before)| after.saturating_sub(before));
    let tally = Tally::clone(&tally);
    Ok(Measured { tally, elapsed, client_cpu, client_busiest: client_cpu, server_cpu })
}

impl Measured {
    /// The runs of several threads at the same time, as one; only one of them looked at the server.
    pub(super) fn together(runs: &[Self]) -> Self {
        let tally = Tally::new();
        for run in runs {
            tally.add(&run.tally);
        }
        let longest = |of: fn(&Self) -> Duration| runs.iter().map(of).max().unwrap_or_default();
        Self {
            tally,
            elapsed: longest(|run| run.elapsed),
            client_cpu: runs.iter().map(|run| run.client_cpu).sum(),
            client_busiest: longest(|run| run.client_busiest),
            server_cpu: runs.iter().find_map(|run| run.server_cpu),
        }
    }

    /// Messages, or connections, in a second.
    pub(super) fn per_second(&self) -> f64 {
        figures::float(self.tally.messages()) / self.elapsed.as_secs_f64()
    }

    /// The server's processor time for each, in microseconds.
    pub(super) fn server_us(&self) -> Option<f64> {
        figures::us_per(self.server_cpu?, self.tally.messages())
    }

    /// What it cost the generator.
    pub(super) fn effort(&self) -> Effort {
        Effort::new(self.client_cpu, self.client_busiest, self.elapsed, self.tally.messages())
    }

    /// The latencies; zeros where nothing was answered.
    pub(super) fn latency(&self) -> Latency {
        latency(&self.tally)
    }
}

/// The latencies of a tally; zeros where it is empty.
pub(super) fn latency(tally: &Tally) -> Latency {
    let us = |quantile| figures::us(tally.latency(quantile));
    let mean = figures::us(tally.latency_mean());
    Latency { mean, p50: us(0.5), p90: us(0.9), p99: us(0.99), p999: us(0.999), max: us(1.0) }
}
