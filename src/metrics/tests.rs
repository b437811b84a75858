//! The metrics as a scrape sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus::proto::MetricType;

use super::*;
use crate::protocol::websocket::close::CloseCode;
use crate::protocol::websocket::violation::ViolationKind;

fn two_of_each() -> Metrics {
    let metrics = Metrics::new(
        2,
        vec!["80".to_owned(), "443".to_owned()],
        vec![route("echo", &[]), route("page", &["ws://a:80", "ws://b:80"])],
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
    );
    metrics.set_driver(Driver::IoUring);
    metrics.memory().set_ceiling(1 << 30);
    let key_set = Arc::new(KeySetCells::default());
    key_set.loaded(3);
    key_set.failed();
    metrics.set_key_sets(vec![("chat".to_owned(), key_set)]);
    metrics.set_certificates(vec![("edge.pem".to_owned(), 1_988_150_400), ("b.pem".to_owned(), 0)]);
    metrics
}

fn route(route: &str, upstreams: &[&str]) -> RouteLabels {
    RouteLabels {
        asked: Vec::new(),
        route: route.to_owned(),
        upstreams: upstreams.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// The samples of a scrape by series, having checked that no series stands twice.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let before = samples.insert(series.to_owned(), value.parse().expect("a number"));
        assert_eq!(before, None, "{series} stands twice");
    }
    samples
}

/// The name of a series without labels, and the names of its labels.
fn taken_apart(series: &str) -> (&str, Vec<&str>) {
    let Some((name, labels)) = series.split_once('{') else {
        return (series, Vec::new());
    };
    let labels = labels.trim_end_matches('}').split(',').map(|pair| pair.split_once('=').unwrap().0);
    (name, labels.collect())
}

#[test]
fn the_output_has_the_names_types_and_labels_of_the_table_and_no_series_twice() {
    let text = two_of_each().encode();
    let samples = samples(&text);
    let mut seen = BTreeSet::new();
    for series in samples.keys() {
        let (name, mut labels) = taken_apart(series);
        let family = Family::ALL.iter().map(|family| family.definition()).find(|family| {
            if family.kind == MetricType::HISTOGRAM {
                ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix) == Some(family.name))
            } else {
                name == family.name
            }
        });
        let family = family.unwrap_or_else(|| panic!("{name} is not in the table"));
        labels.retain(|label| *label != "le");
        labels.sort_unstable();
        let mut expected = family.labels.to_vec();
        expected.sort_unstable();
        assert_eq!(labels, expected, "{series}");
        seen.insert(family.name);
    }
    for family in Family::ALL {
        let Definition { name, kind, help, .. } = family.definition();
        assert!(seen.contains(name), "{name} has no series");
        assert!(text.contains(&format!("# HELP {name} {help}\n")), "{name}");
        assert!(text.contains(&format!("# TYPE {name} {}\n", format!("{kind:?}").to_lowercase())), "{name}");
        assert_eq!(*kind == MetricType::COUNTER, name.ends_with("_total"), "{name}");
    }
}

#[test]
fn closed_sets_stand_at_zero_from_the_start() {
    let samples = samples(&two_of_each().encode());
    for end in End::ALL {
        let series = format!("ringway_connections_ended_total{{port=\"80\",end=\"{end}\"}}");
        assert_eq!(samples.get(&series), Some(&0.0), "{series}");
    }
    let ends = samples.keys().filter(|series| series.starts_with("ringway_connections_ended_total")).count();
    assert_eq!(ends, 2 * End::COUNT);
    let results = samples.keys().filter(|series| series.starts_with("ringway_handshakes_total")).count();
    assert_eq!(results, 2 * HandshakeResult::COUNT);
    let closes = samples.keys().filter(|series| series.starts_with("ringway_closes_total")).count();
    assert_eq!(closes, 2 * (2 * CloseCodeLabel::COUNT + 10));
    let connects =
        samples.keys().filter(|series| series.starts_with("ringway_upstream_connects_total")).count();
    assert_eq!(connects, ConnectResult::COUNT, "one route relays");
}

/// Counts something of every kind on the first port, from both shards.
fn count_everything(metrics: &Metrics) {
    let (first, second) = (metrics.port_cells(0, 0), metrics.port_cells(1, 0));
    let other_port = metrics.port_cells(0, 1);
    first.connections_accepted.add(3);
    second.connections_accepted.add(4);
    other_port.connections_accepted.increment();
    first.connections_active.add(2);
    second.connections_active.add(1);
    second.connections_active.sub(1);
    first.ended(End::Closed);
    second.ended(End::Closed);
    second.ended(End::Violation);
    second.violation(ViolationKind::Unmasked);
    first.handshake(HandshakeResult::Accepted);
    first.handshakes_in_progress.add(1);
    first.close(Initiator::Client, CloseCode::new(4123));
    first.close(Initiator::Upstream, None);
    second.http_request(Some(1), 200);
    second.http_request(None, 404);
    first.frames(Direction::Received, FrameKind::Text).add(5);
    second.messages(Direction::Sent).add(6);
    first.payload_bytes(Direction::Received).add(100);
    first.wire_bytes(Direction::Received).add(130);
    first.send_queue_bytes.set(9);
    second.slow_client(SlowClientOutcome::Cut);
    second.accept_error(AcceptErrorReason::Descriptors);
    second.panics.increment();
    let relays = [0, 1].map(|shard_index| metrics.relay_cells(shard_index, 1).unwrap());
    relays[0].connect(ConnectResult::Refused);
    relays[1].connect(ConnectResult::Refused);
    relays[1].connect(ConnectResult::Opened);
    let upstreams: Vec<_> = metrics.upstream_states(1).collect();
    upstreams[0].set_has_address(true);
    assert!(upstreams[0].enter(Load { connections: 9, connecting: 9 }));
    upstreams[1].set_has_address(true);
    assert!(upstreams[1].fail(None, 1, 500, true));
    metrics.port_state(0).set_up(true);
    metrics.port_state(1).set_draining(true);
    metrics.port_state(1).set_connections_limit(19_000);
    metrics.shard_cells(1).connections_active.add(7);
    metrics.shard_cells(1).cpu_ns.set(1_500_000_000);
    metrics.shard_cells(1).loop_lag_ns.set(2_000_000);
}

#[test]
fn sums_are_over_shards_and_apart_for_each_port() {
    let metrics = two_of_each();
    count_everything(&metrics);
    let expected = [
        ("ringway_connections_accepted_total{port=\"80\"}", 7.0),
        ("ringway_connections_accepted_total{port=\"443\"}", 1.0),
        ("ringway_connections_active{port=\"80\"}", 2.0),
        ("ringway_connections_ended_total{port=\"80\",end=\"closed\"}", 2.0),
        ("ringway_connections_ended_total{port=\"80\",end=\"violation\"}", 1.0),
        ("ringway_connections_ended_total{port=\"443\",end=\"closed\"}", 0.0),
        ("ringway_violations_total{port=\"80\",kind=\"unmasked\"}", 1.0),
        ("ringway_handshakes_total{port=\"80\",result=\"accepted\"}", 1.0),
        ("ringway_handshakes_in_progress{port=\"80\"}", 1.0),
        ("ringway_closes_total{port=\"80\",initiator=\"client\",code=\"4xxx\"}", 1.0),
        ("ringway_closes_total{port=\"80\",initiator=\"upstream\",code=\"none\"}", 1.0),
        ("ringway_http_requests_total{port=\"80\",route=\"page\",class=\"2xx\"}", 1.0),
        ("ringway_http_requests_total{port=\"80\",route=\"none\",class=\"4xx\"}", 1.0),
        ("ringway_http_requests_total{port=\"80\",route=\"echo\",class=\"2xx\"}", 0.0),
        ("ringway_frames_total{port=\"80\",direction=\"received\",opcode=\"text\"}", 5.0),
        ("ringway_messages_total{port=\"80\",direction=\"sent\"}", 6.0),
        ("ringway_payload_bytes_total{port=\"80\",direction=\"received\"}", 100.0),
        ("ringway_wire_bytes_total{port=\"80\",direction=\"received\"}", 130.0),
        ("ringway_send_queue_bytes{port=\"80\"}", 9.0),
        ("ringway_slow_clients_total{port=\"80\",outcome=\"cut\"}", 1.0),
        ("ringway_accept_errors_total{port=\"80\",reason=\"descriptors\"}", 1.0),
        ("ringway_panics_total{port=\"80\"}", 1.0),
        ("ringway_upstream_connects_total{route=\"page\",result=\"refused\"}", 2.0),
        ("ringway_upstream_connects_total{route=\"page\",result=\"opened\"}", 1.0),
        ("ringway_upstream_healthy{route=\"page\",upstream=\"ws://a:80\"}", 1.0),
        ("ringway_upstream_healthy{route=\"page\",upstream=\"ws://b:80\"}", 0.0),
        ("ringway_upstream_connections_active{route=\"page\",upstream=\"ws://a:80\"}", 1.0),
        ("ringway_upstream_ejections_total{route=\"page\",upstream=\"ws://b:80\"}", 1.0),
        ("ringway_port_up{port=\"80\"}", 1.0),
        ("ringway_port_up{port=\"443\"}", 0.0),
        ("ringway_port_draining{port=\"443\"}", 1.0),
        ("ringway_connections_limit{port=\"443\"}", 19_000.0),
        ("ringway_shard_connections_active{shard=\"1\"}", 7.0),
        ("ringway_shard_cpu_seconds_total{shard=\"1\"}", 1.5),
        ("ringway_shard_loop_lag_seconds{shard=\"1\"}", 0.002),
        ("ringway_io_driver_info{driver=\"io_uring\"}", 1.0),
        ("process_start_time_seconds", 1.5),
    ];
    let text = metrics.encode();
    let samples = samples(&text);
    for (series, value) in expected {
        assert_eq!(samples.get(series), Some(&value), "{series}\n{text}");
    }
}

#[test]
fn histograms_are_cumulative_and_in_base_units() {
    let metrics = two_of_each();
    metrics.port_cells(0, 0).handshake_duration.observe(Duration::from_micros(500));
    metrics.port_cells(1, 0).handshake_duration.observe(Duration::from_micros(501));
    metrics.port_cells(1, 0).handshake_duration.observe(Duration::from_secs(11));
    metrics.relay_cells(0, 1).unwrap().connect_duration.observe(Duration::from_millis(3));
    metrics.relay_cells(1, 1).unwrap().connect_duration.observe(Duration::from_secs(1));
    metrics.port_cells(0, 0).message_size.observe_bytes(64);
    metrics.port_cells(1, 0).message_size.observe_bytes(16 << 20);
    metrics.port_cells(1, 0).connection_duration.observe(Duration::from_secs(86_400));
    let samples = samples(&metrics.encode());
    let expected = [
        ("ringway_handshake_duration_seconds_bucket{port=\"80\",le=\"0.0005\"}", 1.0),
        ("ringway_handshake_duration_seconds_bucket{port=\"80\",le=\"0.001\"}", 2.0),
        ("ringway_handshake_duration_seconds_bucket{port=\"80\",le=\"10\"}", 2.0),
        ("ringway_handshake_duration_seconds_bucket{port=\"80\",le=\"+Inf\"}", 3.0),
        ("ringway_handshake_duration_seconds_count{port=\"80\"}", 3.0),
        ("ringway_handshake_duration_seconds_sum{port=\"80\"}", 11.001_001),
        ("ringway_upstream_connect_duration_seconds_bucket{route=\"page\",le=\"0.005\"}", 1.0),
        ("ringway_upstream_connect_duration_seconds_sum{route=\"page\"}", 1.003),
        ("ringway_message_size_bytes_bucket{port=\"80\",le=\"64\"}", 1.0),
        ("ringway_message_size_bytes_bucket{port=\"80\",le=\"4194304\"}", 1.0),
        ("ringway_message_size_bytes_bucket{port=\"80\",le=\"16777216\"}", 2.0),
        ("ringway_message_size_bytes_sum{port=\"80\"}", 16_777_280.0),
        ("ringway_connection_duration_seconds_bucket{port=\"80\",le=\"14400\"}", 0.0),
        ("ringway_connection_duration_seconds_bucket{port=\"80\",le=\"86400\"}", 1.0),
    ];
    for (series, value) in expected {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    }
}

#[test]
fn no_reading_has_more_ends_than_accepts() {
    let metrics = two_of_each();
    std::thread::scope(|scope| {
        let writers = [0, 1].map(|shard_index| {
            let cells = metrics.port_cells(shard_index, 0);
            scope.spawn(move || {
                for _ in 0..200_000 {
                    cells.connections_accepted.increment();
                    cells.ended(End::Closed);
                }
            })
        });
        while writers.iter().any(|writer| !writer.is_finished()) {
            let totals = metrics.port_totals(0);
            let ended: u64 = totals.connections_ended.iter().sum();
            assert!(ended <= totals.connections_accepted, "{ended} of {}", totals.connections_accepted);
        }
    });
    let totals = metrics.port_totals(0);
    assert_eq!(totals.connections_accepted, 400_000);
    assert_eq!(totals.connections_ended[End::Closed.index()], 400_000);
}
