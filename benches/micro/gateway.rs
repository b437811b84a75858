//! The floors above the protocol: routes, metric cells, a scrape of many shards, the sweep over all deadlines.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use ringway::config::Config;
use ringway::metrics::{Direction, End, FrameKind, HandshakeResult, Metrics, PortCells, RouteLabels};
use ringway::net::clock;
use ringway::net::timers::{NEVER, Timer, Timers};
use ringway::route::Router;

use crate::cpu_time::CpuTime;

/// Looks a path up that the first route is for, that the last one is for, and that none is for.
pub(crate) fn route(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("route");
    for count in [10, 1000] {
        let router = Router::new(&config(count));
        let (last, none) = (format!("/room/{:04}", count - 1), format!("/room/{count:04}"));
        for (name, path, found) in
            [("first", "/room/0000", Some(0)), ("last", &last, Some(count - 1)), ("none", &none, None)]
        {
            assert_eq!(router.find(0, "gateway.example", path), found);
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| router.find(0, black_box("gateway.example"), black_box(path)));
            });
        }
    }
    group.finish();
}

/// Counts as a shard counts, and all that one echo counts.
pub(crate) fn metric_cell(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("metric cell");
    let cells = PortCells::new(1);
    group.bench_function("counter", |bencher| {
        bencher.iter(|| black_box(&cells).connections_accepted.increment());
    });
    group.bench_function("size histogram", |bencher| {
        bencher.iter(|| black_box(&cells).message_size.observe_bytes(black_box(1000)));
    });
    group.bench_function("duration histogram", |bencher| {
        bencher.iter(|| black_box(&cells).handshake_duration.observe(black_box(Duration::from_millis(3))));
    });
    group.bench_function("all of an echo", |bencher| {
        bencher.iter(|| {
            let cells = black_box(&cells);
            cells.message_size.observe_bytes(black_box(20));
            for direction in [Direction::Received, Direction::Sent] {
                cells.wire_bytes(direction).add(black_box(26));
                cells.frames(direction, FrameKind::ALL[2]).add(black_box(1));
                cells.messages(direction).add(black_box(1));
                cells.payload_bytes(direction).add(black_box(20));
            }
        });
    });
    group.finish();
}

/// Adds up and writes out what Prometheus asks for; every shard has counted something.
pub(crate) fn scrape(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("scrape");
    for (shard_count, port_count) in [(1, 1), (2, 2), (64, 2), (64, 16)] {
        let ports = (0..port_count).map(|index| format!("{}", 8000 + index)).collect();
        let routes = vec![RouteLabels { route: "echo".to_owned(), upstreams: Vec::new(), asked: Vec::new() }];
        let metrics = Metrics::new(shard_count, ports, routes, clock::time_of_day());
        for (shard_index, port_index) in
            (0..shard_count).flat_map(|shard| (0..port_count).map(move |port| (shard, port)))
        {
            let cells = metrics.port_cells(shard_index, port_index);
            cells.connections_accepted.increment();
            cells.handshake(HandshakeResult::Accepted);
            cells.handshake_duration.observe(Duration::from_millis(3));
            cells.ended(End::Closed);
        }
        let name = format!("{shard_count} shards, {port_count} ports");
        group.throughput(Throughput::Bytes(metrics.encode().len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| black_box(&metrics).encode()));
    }
    group.finish();
}

/// Walks the deadlines of a shard's connections, none of which has passed.
pub(crate) fn sweep(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("sweep");
    for count in [1_000, 16_000, 128_000] {
        let timers = Timers::new();
        let connections: Vec<Timer> = (0..count).map(|_| timers.timer()).collect();
        for connection in &connections {
            connection.set(NEVER - 1);
        }
        let now = clock::now();
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("deadlines", count), |bencher| {
            bencher.iter(|| black_box(&timers).sweep(now));
        });
    }
    group.finish();
}

/// A port with so many routes, each an exact path of its own.
fn config(route_count: usize) -> Config {
    let mut text = "[[port]]\nnumber = 8080\n".to_owned();
    for index in 0..route_count {
        writeln!(text, "[[route]]\npath = \"/room/{index:04}\"\nservice = \"echo\"\norigins = \"any\"")
            .expect("a string takes every write");
    }
    let (config, _) = Config::from_toml(&text, Path::new("")).expect("no rule is broken");
    config
}
