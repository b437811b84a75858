//! The status as JSON: what runs and what became of every connection, from the same cells as the metrics.
//!
//! Keys are the names of the metrics without prefix and `_total`; closed sets are objects with every label.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{AdminState, PortFacts};
use crate::config::certificate::Version;
use crate::control::certificates::PortTls;
use crate::metrics::{
    AcceptErrorReason, COMMIT, CloseCodeLabel, Direction, Driver, End, HandshakeResult, HistogramTotals,
    Initiator, PortState, PortTotals, ProcessUse, SlowClientOutcome, Standing, StatusClass, TlsFailure,
    TlsHandshake, VERSION,
};
use crate::protocol::websocket::violation::ViolationKind;
use crate::service::upstream::{self, Address, Group};

/// `/api/v1/status`.
#[derive(Serialize)]
pub(super) struct Status<'a> {
    version: &'static str,
    commit: &'static str,
    phase: &'static str,
    started_timestamp_seconds: f64,
    uptime_seconds: f64,
    io_driver: Option<&'static str>,
    io_driver_fallback: Option<&'a str>,
    process: Process,
    shards: Vec<Shard>,
    ports: Vec<Port<'a>>,
    upstreams: Vec<Upstream<'a>>,
}

impl<'a> Status<'a> {
    /// Reads everything, now.
    pub(super) fn read(state: &'a AdminState) -> Self {
        let metrics = &state.metrics;
        let ports = metrics.port_labels().zip(&state.ports).enumerate();
        Self {
            version: VERSION,
            commit: COMMIT,
            phase: state.phase.borrow().label(),
            started_timestamp_seconds: metrics.started_timestamp_seconds(),
            uptime_seconds: state.started_at.elapsed().as_secs_f64(),
            io_driver: metrics.driver().map(Driver::label),
            io_driver_fallback: state.driver_fallback.get().map(String::as_str),
            process: Process::from(ProcessUse::read()),
            shards: metrics
                .shards()
                .iter()
                .enumerate()
                .map(|(index, cells)| Shard {
                    index,
                    connections_active: cells.connections_active.get(),
                    cpu_seconds: seconds_of_ns(cells.cpu_ns.get()),
                    loop_lag_seconds: seconds_of_ns(cells.loop_lag_ns.get()),
                })
                .collect(),
            ports: ports
                .map(|(index, (label, facts))| {
                    Port::new(label, facts, metrics.port_state(index), &metrics.port_totals(index))
                })
                .collect(),
            upstreams: state
                .groups
                .iter()
                .flat_map(|group| group.upstreams().iter().map(|upstream| Upstream::new(group, upstream)))
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct Process {
    cpu_seconds: Option<f64>,
    resident_memory_bytes: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl From<ProcessUse> for Process {
    fn from(process: ProcessUse) -> Self {
        Self {
            cpu_seconds: process.cpu_ns.map(seconds_of_ns),
            resident_memory_bytes: process.resident_memory_bytes,
            open_fds: process.open_fds,
            max_fds: process.max_fds,
        }
    }
}

#[derive(Serialize)]
struct Shard {
    index: usize,
    connections_active: u64,
    cpu_seconds: f64,
    loop_lag_seconds: f64,
}

#[derive(Serialize)]
struct Port<'a> {
    label: &'a str,
    number: u16,
    address: IpAddr,
    /// `up`, `draining` or `down`.
    state: &'static str,
    /// `null` where the port speaks no TLS.
    tls: Option<Tls>,
    connections_limit: u64,
    connections_accepted: u64,
    connections_active: u64,
    connections_ended: Counts,
    handshakes: Counts,
    handshakes_in_progress: u64,
    handshake_duration_seconds: Distribution,
    http_requests: Counts,
    /// Only what was counted: most combinations never occur.
    closes: Vec<Close>,
    violations: Counts,
    messages: Counts,
    payload_bytes: Counts,
    wire_bytes: Counts,
    ping_round_trip_seconds: Distribution,
    connection_duration_seconds: Distribution,
    send_queue_bytes: u64,
    slow_clients: Counts,
    accept_errors: Counts,
    panics: u64,
    tls_handshakes: Counts,
    tls_failures: Counts,
    tls_truncated: u64,
}

#[derive(Serialize)]
struct Tls {
    versions: Vec<&'static str>,
    certificates: Vec<Certificate>,
    /// Why what is in the files now is not in force, in words.
    fault: Option<String>,
}

#[derive(Serialize)]
struct Certificate {
    /// The name of its file.
    name: String,
    hosts: Vec<String>,
    not_after_timestamp_seconds: u64,
}

impl Tls {
    fn of(tls: &PortTls) -> Self {
        let facts = tls.facts();
        let certificates = facts.iter().map(|facts| Certificate {
            name: facts.name.clone(),
            hosts: facts.hosts.clone(),
            not_after_timestamp_seconds: facts.not_after_timestamp_seconds,
        });
        Self {
            versions: tls.versions().iter().map(Version::label).collect(),
            certificates: certificates.collect(),
            fault: tls.fault().as_deref().cloned(),
        }
    }
}

impl<'a> Port<'a> {
    fn new(label: &'a str, facts: &PortFacts, state: &PortState, totals: &PortTotals) -> Self {
        let requests =
            |class: &StatusClass| totals.http_requests.iter().map(|counts| counts[class.index()]).sum();
        Self {
            label,
            number: facts.number,
            address: facts.address,
            state: match (state.is_up(), state.is_draining()) {
                (_, true) => "draining",
                (true, false) => "up",
                (false, false) => "down",
            },
            tls: facts.tls.as_deref().map(Tls::of),
            connections_limit: state.connections_limit(),
            connections_accepted: totals.connections_accepted,
            connections_active: totals.connections_active,
            connections_ended: Counts::of(End::ALL.iter().map(|end| end.label()), &totals.connections_ended),
            handshakes: Counts::of(
                HandshakeResult::ALL.iter().map(|result| result.label()),
                &totals.handshakes,
            ),
            handshakes_in_progress: totals.handshakes_in_progress,
            handshake_duration_seconds: Distribution::of_durations(&totals.handshake_duration),
            http_requests: Counts(
                StatusClass::ALL.iter().map(|class| (class.label(), requests(class))).collect(),
            ),
            closes: Close::all_of(totals),
            violations: Counts::of(ViolationKind::ALL.iter().map(|kind| kind.label()), &totals.violations),
            messages: Counts::both_ways(&totals.messages),
            payload_bytes: Counts::both_ways(&totals.payload_bytes),
            wire_bytes: Counts::both_ways(&totals.wire_bytes),
            ping_round_trip_seconds: Distribution::of_durations(&totals.ping_round_trip),
            connection_duration_seconds: Distribution::of_durations(&totals.connection_duration),
            send_queue_bytes: totals.send_queue_bytes,
            slow_clients: Counts::of(
                SlowClientOutcome::ALL.iter().map(|outcome| outcome.label()),
                &totals.slow_clients,
            ),
            accept_errors: Counts::of(
                AcceptErrorReason::ALL.iter().map(|reason| reason.label()),
                &totals.accept_errors,
            ),
            panics: totals.panics,
            tls_handshakes: Counts::of(
                TlsHandshake::ALL.iter().map(|kind| kind.label()),
                &totals.tls_handshakes,
            ),
            tls_failures: Counts::of(TlsFailure::ALL.iter().map(|kind| kind.label()), &totals.tls_failures),
            tls_truncated: totals.tls_truncated,
        }
    }
}

#[derive(Serialize)]
struct Upstream<'a> {
    route: &'a str,
    #[serde(rename = "upstream")]
    name: &'a str,
    /// Those of its name at present, or the one that was written.
    addresses: Vec<String>,
    healthy: bool,
    /// Why not, or why its latest connection failed, in words.
    fault: Option<String>,
    ejected: bool,
    ejections: u64,
    connections_active: u32,
    /// Of these, the ones that are being made.
    connections_in_progress: u32,
}

impl<'a> Upstream<'a> {
    fn new(group: &'a Group, upstream: &'a upstream::Upstream) -> Self {
        let state = upstream.state();
        let load = state.load();
        Self {
            route: group.route(),
            name: upstream.name(),
            addresses: upstream.addresses().iter().map(Address::to_string).collect(),
            healthy: state.is_healthy(),
            fault: upstream.fault(),
            ejected: !matches!(state.standing(), Standing::Used { .. }),
            ejections: state.ejections(),
            connections_active: load.connections,
            connections_in_progress: load.connecting,
        }
    }
}

/// A count for each label, as an object in the order of the closed set.
struct Counts(Vec<(&'static str, u64)>);

impl Counts {
    fn of(labels: impl Iterator<Item = &'static str>, counts: &[u64]) -> Self {
        Self(labels.zip(counts.iter().copied()).collect())
    }

    fn both_ways(counts: &[u64; Direction::COUNT]) -> Self {
        Self::of(Direction::ALL.iter().map(|direction| direction.label()), counts)
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// How many values a histogram holds, and their sum in seconds.
#[derive(Serialize)]
struct Distribution {
    count: u64,
    sum: f64,
}

impl Distribution {
    fn of_durations(totals: &HistogramTotals) -> Self {
        Self { count: totals.count(), sum: Duration::from_micros(totals.sum).as_secs_f64() }
    }
}

#[derive(Serialize)]
struct Close {
    initiator: &'static str,
    code: &'static str,
    count: u64,
}

impl Close {
    fn all_of(totals: &PortTotals) -> Vec<Self> {
        let of_initiator = |initiator: &Initiator| {
            let (counts, initiator) = (&totals.closes[initiator.index()], initiator.label());
            CloseCodeLabel::ALL.iter().zip(counts).map(move |(code, count)| Self {
                initiator,
                code: code.label(),
                count: *count,
            })
        };
        Initiator::ALL.iter().flat_map(of_initiator).filter(|close| close.count > 0).collect()
    }
}

fn seconds_of_ns(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}
