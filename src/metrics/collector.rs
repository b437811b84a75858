//! The one collector that merges every shard's cells into families at scrape.
//!
//! Closed sets are exported in full and from the start, so that a first increment is an increase and not a new series
//! that `rate` cannot see. Where the product of two sets would be mostly impossible (`closes_total`,
//! `http_requests_total`), combinations that this version cannot produce appear once they have been counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::cell::{HistogramTotals, SizeHistogram};
use super::cells::{CONNECTION_BOUNDS_NS, LATENCY_BOUNDS_NS};
use super::families::{Definition, Family};
use super::labels::{
    AcceptErrorReason, CloseCodeLabel, Direction, Form, FrameKind, Initiator, ReloadResult,
    SlowClientOutcome, StatusClass,
};
use super::outcome::{
    AddressRefusal, AuthRefusal, ConnectResult, End, HandshakeResult, TlsFailure, TlsHandshake,
};
use super::process::ProcessUse;
use super::totals::PortTotals;
use super::upstream::RelayTotals;
use super::{NO_ROUTE, RelaySource, Sources};
use crate::protocol::websocket::violation::ViolationKind;

/// Collects everything that [`Family`] lists.
pub(super) struct ShardCollector {
    sources: Arc<Sources>,
    descriptions: Vec<Desc>,
}

impl ShardCollector {
    /// A collector over these cells.
    pub(super) fn new(sources: Arc<Sources>) -> Self {
        let descriptions = Family::ALL.iter().map(|family| describe(family.definition())).collect();
        Self { sources, descriptions }
    }
}

impl Collector for ShardCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let ports: Vec<(&str, PortTotals)> =
            self.sources.ports.iter().map(|port| (port.label.as_str(), port.totals(&self.sources))).collect();
        let relays: Vec<(&RelaySource, RelayTotals)> =
            self.sources.relays.iter().flatten().map(|relay| (relay, relay.totals())).collect();
        let process = ProcessUse::read();
        Family::ALL
            .iter()
            .map(|family| {
                let mut series = Series { definition: family.definition(), metrics: Vec::new() };
                self.collect_family(*family, &ports, &relays, process, &mut series);
                series.into_family()
            })
            // A family without series is not a family in the text format.
            .filter(|family| !family.get_metric().is_empty())
            .collect()
    }
}

impl ShardCollector {
    #[expect(clippy::too_many_lines, reason = "one arm for each family, side by side with the table")]
    fn collect_family(
        &self,
        family: Family,
        ports: &[(&str, PortTotals)],
        relays: &[(&RelaySource, RelayTotals)],
        process: ProcessUse,
        series: &mut Series,
    ) {
        let upstreams = || {
            relays.iter().flat_map(|(relay, _)| {
                relay.upstreams.iter().map(|(label, state)| (relay.route.as_str(), label.as_str(), &**state))
            })
        };
        match family {
            Family::ConnectionsAccepted => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.connections_accepted));
                }
            }
            Family::ConnectionsActive => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.connections_active));
                }
            }
            Family::ConnectionsLimit => {
                for port in &self.sources.ports {
                    series.push(&[&port.label], exact(port.state.connections_limit()));
                }
            }
            Family::ConnectionsEnded => {
                for (port, totals) in ports {
                    for end in End::ALL {
                        series.push(&[port, end.label()], exact(totals.connections_ended[end.index()]));
                    }
                }
            }
            Family::Handshakes => {
                for (port, totals) in ports {
                    for result in HandshakeResult::ALL {
                        series.push(&[port, result.label()], exact(totals.handshakes[result.index()]));
                    }
                }
            }
            Family::AuthRefusals => {
                for (port, totals) in ports {
                    for reason in AuthRefusal::ALL {
                        series.push(&[port, reason.label()], exact(totals.auth_refusals[reason.index()]));
                    }
                }
            }
            Family::AddressRefusals => {
                for (port, totals) in ports {
                    for reason in AddressRefusal::ALL {
                        series.push(&[port, reason.label()], exact(totals.address_refusals[reason.index()]));
                    }
                }
            }
            Family::AddressTables => {
                for port in &self.sources.ports {
                    series.push(&[&port.label], exact(port.state.address_tables_size()));
                }
            }
            Family::MemoryCeiling => series.push_known(self.sources.memory.ceiling().map(exact)),
            Family::MemoryLevel => series.push(&[], f64::from(self.sources.memory.level())),
            Family::KeySetFetches => {
                for (route, cells) in self.sources.key_sets.get().into_iter().flatten() {
                    for result in ReloadResult::ALL {
                        series.push(&[route, result.label()], exact(cells.fetches(*result)));
                    }
                }
            }
            Family::KeySetKeys => {
                for (route, cells) in self.sources.key_sets.get().into_iter().flatten() {
                    series.push(&[route], exact(cells.keys()));
                }
            }
            Family::HandshakesInProgress => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.handshakes_in_progress));
                }
            }
            Family::HandshakeDuration => {
                for (port, totals) in ports {
                    series.push_durations(&[port], &LATENCY_BOUNDS_NS, &totals.handshake_duration);
                }
            }
            Family::HttpRequests => {
                let routes = self.sources.routes.iter().map(String::as_str).chain([NO_ROUTE]);
                for (port, totals) in ports {
                    for (route, counts) in routes.clone().zip(&totals.http_requests) {
                        for class in StatusClass::ALL {
                            let count = counts[class.index()];
                            // Nothing answers a plain request with 1xx so far.
                            if *class != StatusClass::Informational || count > 0 {
                                series.push(&[port, route, class.label()], exact(count));
                            }
                        }
                    }
                }
            }
            Family::Closes => {
                let has_relays = !relays.is_empty();
                for (port, totals) in ports {
                    for initiator in Initiator::ALL {
                        for code in CloseCodeLabel::ALL {
                            let count = totals.closes[initiator.index()][code.index()];
                            if may_close(*initiator, *code, has_relays) || count > 0 {
                                series.push(&[port, initiator.label(), code.label()], exact(count));
                            }
                        }
                    }
                }
            }
            Family::Violations => {
                for (port, totals) in ports {
                    for kind in ViolationKind::ALL {
                        series.push(&[port, kind.label()], exact(totals.violations[kind.index()]));
                    }
                }
            }
            Family::Frames => {
                for (port, totals) in ports {
                    for direction in Direction::ALL {
                        for kind in FrameKind::ALL {
                            let count = totals.frames[direction.index()][kind.index()];
                            series.push(&[port, direction.label(), kind.label()], exact(count));
                        }
                    }
                }
            }
            Family::Messages => {
                for (port, totals) in ports {
                    for direction in Direction::ALL {
                        series.push(&[port, direction.label()], exact(totals.messages[direction.index()]));
                    }
                }
            }
            Family::PayloadBytes => {
                for (port, totals) in ports {
                    for direction in Direction::ALL {
                        let bytes = totals.payload_bytes[direction.index()];
                        series.push(&[port, direction.label()], exact(bytes));
                    }
                }
            }
            Family::WireBytes => {
                for (port, totals) in ports {
                    for direction in Direction::ALL {
                        series.push(&[port, direction.label()], exact(totals.wire_bytes[direction.index()]));
                    }
                }
            }
            Family::DeflateBytes => {
                for (port, totals) in ports {
                    for direction in Direction::ALL {
                        for form in Form::ALL {
                            let bytes = totals.deflate_bytes[direction.index()][form.index()];
                            series.push(&[port, direction.label(), form.label()], exact(bytes));
                        }
                    }
                }
            }
            Family::DeflateContextBytes => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.deflate_context_bytes));
                }
            }
            Family::PingRoundTrip => {
                for (port, totals) in ports {
                    series.push_durations(&[port], &LATENCY_BOUNDS_NS, &totals.ping_round_trip);
                }
            }
            Family::ConnectionDuration => {
                for (port, totals) in ports {
                    series.push_durations(&[port], &CONNECTION_BOUNDS_NS, &totals.connection_duration);
                }
            }
            Family::MessageSize => {
                for (port, totals) in ports {
                    series.push_sizes(&[port], &totals.message_size);
                }
            }
            Family::SendQueueBytes => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.send_queue_bytes));
                }
            }
            Family::SlowClients => {
                for (port, totals) in ports {
                    for outcome in SlowClientOutcome::ALL {
                        series.push(&[port, outcome.label()], exact(totals.slow_clients[outcome.index()]));
                    }
                }
            }
            Family::UpstreamConnects => {
                for (relay, totals) in relays {
                    for result in ConnectResult::ALL {
                        series.push(&[&relay.route, result.label()], exact(totals.connects[result.index()]));
                    }
                }
            }
            Family::UpstreamConnectDuration => {
                for (relay, totals) in relays {
                    series.push_durations(&[&relay.route], &LATENCY_BOUNDS_NS, &totals.connect_duration);
                }
            }
            Family::UpstreamHealthy => {
                for (relay, upstream, state) in upstreams() {
                    series.push(&[relay, upstream], truth(state.is_healthy()));
                }
            }
            Family::UpstreamConnectionsActive => {
                for (relay, upstream, state) in upstreams() {
                    series.push(&[relay, upstream], f64::from(state.load().connections));
                }
            }
            Family::UpstreamEjections => {
                for (relay, upstream, state) in upstreams() {
                    series.push(&[relay, upstream], exact(state.ejections()));
                }
            }
            Family::TlsHandshakes => {
                for (port, totals) in ports {
                    for kind in TlsHandshake::ALL {
                        series.push(&[port, kind.label()], exact(totals.tls_handshakes[kind.index()]));
                    }
                }
            }
            Family::TlsFailures => {
                for (port, totals) in ports {
                    for kind in TlsFailure::ALL {
                        series.push(&[port, kind.label()], exact(totals.tls_failures[kind.index()]));
                    }
                }
            }
            Family::TlsTruncated => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.tls_truncated));
                }
            }
            Family::CertificateNotAfter => {
                for (name, timestamp) in &**self.sources.certificates.load() {
                    series.push(&[name], exact(*timestamp));
                }
            }
            Family::CertificateReloads => {
                for result in ReloadResult::ALL {
                    let count = self.sources.certificate_reloads[result.index()].load(Ordering::Relaxed);
                    series.push(&[result.label()], exact(count));
                }
            }
            Family::PortUp => {
                for port in &self.sources.ports {
                    series.push(&[&port.label], truth(port.state.is_up()));
                }
            }
            Family::PortDraining => {
                for port in &self.sources.ports {
                    series.push(&[&port.label], truth(port.state.is_draining()));
                }
            }
            Family::AcceptErrors => {
                for (port, totals) in ports {
                    for reason in AcceptErrorReason::ALL {
                        series.push(&[port, reason.label()], exact(totals.accept_errors[reason.index()]));
                    }
                }
            }
            Family::Panics => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.panics));
                }
            }
            Family::ForwardingIgnored => {
                for (port, totals) in ports {
                    series.push(&[port], exact(totals.forwarding_ignored));
                }
            }
            Family::ShardConnectionsActive => {
                for (index, cells) in self.sources.shards.iter().enumerate() {
                    series.push(&[&index.to_string()], exact(cells.connections_active.get()));
                }
            }
            Family::ShardCpu => {
                for (index, cells) in self.sources.shards.iter().enumerate() {
                    series.push(&[&index.to_string()], seconds_of_ns(cells.cpu_ns.get()));
                }
            }
            Family::ShardLoopLag => {
                for (index, cells) in self.sources.shards.iter().enumerate() {
                    series.push(&[&index.to_string()], seconds_of_ns(cells.loop_lag_ns.get()));
                }
            }
            Family::BuildInfo => series.push(&[super::VERSION, super::COMMIT], 1.0),
            Family::IoDriverInfo => {
                if let Some(driver) = self.sources.driver.get() {
                    series.push(&[driver.label()], 1.0);
                }
            }
            Family::ProcessCpu => series.push_known(process.cpu_ns.map(seconds_of_ns)),
            Family::ProcessResidentMemory => series.push_known(process.resident_memory_bytes.map(exact)),
            Family::ProcessOpenFds => series.push_known(process.open_fds.map(exact)),
            Family::ProcessMaxFds => series.push_known(process.max_fds.map(exact)),
            Family::ProcessStartTime => series.push(&[], self.sources.started_timestamp_seconds),
        }
    }
}

/// Whether a Close by `initiator` with `code` can occur in this version, and so stands at zero from the start.
///
/// A client may send every code, and so may an upstream where there is one; the gateway originates those that
/// [`CloseCode`](crate::protocol::websocket::close) names as constants.
const fn may_close(initiator: Initiator, code: CloseCodeLabel, has_relays: bool) -> bool {
    match initiator {
        Initiator::Client => true,
        Initiator::Gateway => {
            matches!(
                code,
                CloseCodeLabel::Normal
                    | CloseCodeLabel::GoingAway
                    | CloseCodeLabel::ProtocolError
                    | CloseCodeLabel::InvalidPayload
                    | CloseCodeLabel::PolicyViolation
                    | CloseCodeLabel::MessageTooBig
                    | CloseCodeLabel::InternalError
                    | CloseCodeLabel::ServiceRestart
                    | CloseCodeLabel::TryAgainLater
            ) || has_relays && matches!(code, CloseCodeLabel::BadGateway)
        }
        Initiator::Upstream => has_relays,
    }
}

/// The series of one family while they are collected.
struct Series {
    definition: &'static Definition,
    metrics: Vec<Metric>,
}

impl Series {
    fn push(&mut self, label_values: &[&str], value: f64) {
        let mut metric = self.labelled(label_values);
        if self.definition.kind == MetricType::COUNTER {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    fn push_known(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.push(&[], value);
        }
    }

    fn push_durations(&mut self, label_values: &[&str], bounds_ns: &[u64], totals: &HistogramTotals) {
        let bounds = bounds_ns.iter().map(|bound| seconds_of_ns(*bound));
        self.push_histogram(label_values, bounds, totals, exact(totals.sum) / 1e6);
    }

    fn push_sizes(&mut self, label_values: &[&str], totals: &HistogramTotals) {
        let bounds = SizeHistogram::bounds().into_iter().map(exact);
        self.push_histogram(label_values, bounds, totals, exact(totals.sum));
    }

    fn push_histogram(
        &mut self,
        label_values: &[&str],
        bounds: impl Iterator<Item = f64>,
        totals: &HistogramTotals,
        sum: f64,
    ) {
        let mut cumulative_count = 0;
        let buckets = bounds.zip(&totals.counts).map(|(bound, count)| {
            cumulative_count += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(cumulative_count);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(totals.count());
        histogram.set_sample_sum(sum);
        let mut metric = self.labelled(label_values);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn labelled(&self, values: &[&str]) -> Metric {
        let names = self.definition.labels;
        assert_eq!(names.len(), values.len(), "{} has the labels of its table", self.definition.name);
        let pairs = names.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        Metric::from_label(pairs.collect())
    }

    fn into_family(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.definition.name.to_owned());
        family.set_help(self.definition.help.to_owned());
        family.set_field_type(self.definition.kind);
        family.set_metric(self.metrics);
        family
    }
}

fn describe(definition: &Definition) -> Desc {
    let labels = definition.labels.iter().map(|label| (*label).to_owned()).collect();
    Desc::new(
        definition.name.to_owned(),
        definition.help.to_owned(),
        labels,
        std::collections::HashMap::new(),
    )
    .expect("names and labels of the table are valid, which a test registers")
}

/// The number as Prometheus holds it; counts beyond 2^53 lose their last digits there in any case.
#[expect(clippy::cast_precision_loss, reason = "a sample of Prometheus is a double")]
const fn exact(count: u64) -> f64 {
    count as f64
}

fn seconds_of_ns(ns: u64) -> f64 {
    exact(ns) / 1e9
}

const fn truth(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}
