//! What a bench tells: JSON for machines, a summary for people.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::Setting;
use super::compare::{Comparison, Measure, Plan};
use super::connect::Parting;
use super::crowd::Pace;
use super::figures::{Effort, Latency, Spread};
use super::idle::Upkeep;
use super::measure::Measured;
use super::messages::Shape;
use super::plot::Plot;
use super::tally::Tally;
use crate::protocol::websocket::deflate::client::ClientOffer;
use crate::protocol::websocket::frame::Opcode;

/// What was asked of the server.
#[derive(Clone, Copy, Debug)]
pub enum Scenario {
    /// Messages and their echoes.
    Echo {
        /// The messages.
        shape: Shape,
        /// When they were sent.
        pace: Pace,
    },
    /// Opening handshakes.
    Connect {
        /// How connections were left.
        parting: Parting,
    },
    /// Idle connections.
    Idle {
        /// The one message that each sent.
        shape: Shape,
        /// What they cost, where the server's process is known.
        upkeep: Option<Upkeep>,
    },
}

/// One server under one load.
#[derive(Clone, Debug)]
pub struct Report {
    scenario: Scenario,
    connections: u32,
    deflate: Option<ClientOffer>,
    bytes_per_answer: Option<f64>,
    elapsed: Duration,
    messages: u64,
    per_second: f64,
    latency: Latency,
    plot: Plot,
    errors: u64,
    faults: Vec<(&'static str, u64)>,
    server: Option<ServerCost>,
    client: Effort,
}

/// What a run cost the server.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerCost {
    /// Processor time for each message or connection.
    pub cpu_us_per_message: Option<f64>,
    /// Resident memory at the end.
    pub rss_bytes: u64,
    /// Open descriptors at the end.
    pub descriptors: usize,
}

/// Servers side by side, over all cases.
#[derive(Clone, Debug, Serialize)]
pub struct Comparisons {
    scenario: &'static str,
    rounds: u32,
    slice_s: f64,
    /// How messages to all servers are compressed, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    deflate: Option<&'static str>,
    cases: Vec<Comparison>,
}

impl Report {
    /// The report of a run. Faults outside of what was measured are counted with those within.
    pub(super) fn new(
        scenario: Scenario,
        setting: &Setting,
        measured: &Measured,
        server: Option<ServerCost>,
        outside: &Tally,
    ) -> Self {
        let all = Tally::new();
        all.add(outside);
        all.add(&measured.tally);
        Self {
            scenario,
            connections: setting.connections,
            deflate: setting.door.deflate,
            bytes_per_answer: measured.tally.bytes_per_answer(),
            elapsed: measured.elapsed,
            messages: measured.tally.messages(),
            per_second: measured.per_second(),
            latency: measured.latency(),
            plot: Plot::of(&measured.tally),
            errors: all.faults_sum(),
            faults: all.faults().map(|(fault, count)| (fault.label(), count)).collect(),
            server,
            client: measured.effort(),
        }
    }

    /// Whether nothing went wrong, and something was answered.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.messages > 0
    }

    fn write_run(&self, out: &mut fmt::Formatter<'_>, many: &str, one: &str) -> fmt::Result {
        writeln!(out, "  {many:<11} {} ({:.0} a second)", grouped(self.messages), self.per_second)?;
        writeln!(out, "  faults      {}", self.faults_text())?;
        let Latency { p50, p90, p99, p999, max, .. } = self.latency;
        let [p50, p90, p99, p999, max] = [p50, p90, p99, p999, max].map(time);
        writeln!(out, "  latency     p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}")?;
        fmt::Display::fmt(&self.plot, out)?;
        if let Some(bytes) = self.bytes_per_answer {
            writeln!(out, "  answers     {bytes:.0} B each, as they came")?;
        }
        if let Some(server) = &self.server {
            let cpu = server.cpu_us_per_message.unwrap_or(f64::NAN);
            let memory = size(server.rss_bytes);
            writeln!(out, "  server      {cpu:.3} µs a {one}, {memory}, {} descriptors", server.descriptors)?;
        }
        let own = self.client.cpu_us_per_message.unwrap_or(f64::NAN);
        let busy = self.client.busy * 100.0;
        let limited = if self.client.limited { ": the generator was the limit" } else { "" };
        writeln!(out, "  client      {own:.3} µs a {one}, {busy:.0} % of its core{limited}")
    }

    fn faults_text(&self) -> String {
        if self.faults.is_empty() {
            return "none".to_owned();
        }
        let faults: Vec<String> = self.faults.iter().map(|(name, count)| format!("{count} {name}")).collect();
        faults.join(", ")
    }
}

/// For people: some lines. The alternate form is for a terminal, which shows finer bars.
impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        match &self.scenario {
            Scenario::Echo { shape, pace } => {
                let Shape { opcode, size, in_flight } = shape;
                write!(
                    out,
                    "echo: {} connections, {size} B {}, {in_flight} in flight",
                    self.connections,
                    kind(*opcode)
                )?;
                if let Some(offer) = self.deflate {
                    write!(out, ", compressed ({})", mode(offer))?;
                }
                if let Pace::PerSecond(rate) = pace {
                    write!(out, ", at {} a second", grouped(*rate))?;
                }
                writeln!(out, ", {seconds:.1} s")?;
                self.write_run(out, "messages", "message")
            }
            Scenario::Connect { parting } => {
                let parting = match parting {
                    Parting::Handshake => "the closing handshake",
                    Parting::Reset => "a reset",
                };
                writeln!(out, "connect: {} at a time, left by {parting}, {seconds:.1} s", self.connections)?;
                self.write_run(out, "handshakes", "handshake")
            }
            Scenario::Idle { upkeep, .. } => {
                writeln!(out, "idle: {} connections", self.connections)?;
                writeln!(out, "  faults      {}", self.faults_text())?;
                upkeep.as_ref().map_or(Ok(()), |upkeep| write_upkeep(out, upkeep))
            }
        }
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.scenario {
            Scenario::Echo { shape, pace } => {
                map.serialize_entry("scenario", "echo")?;
                map.serialize_entry("size", &shape.size)?;
                map.serialize_entry("kind", kind(shape.opcode))?;
                map.serialize_entry("in_flight", &shape.in_flight)?;
                if let Pace::PerSecond(rate) = pace {
                    map.serialize_entry("rate", rate)?;
                }
            }
            Scenario::Connect { .. } => map.serialize_entry("scenario", "connect")?,
            Scenario::Idle { shape, .. } => {
                map.serialize_entry("scenario", "idle")?;
                map.serialize_entry("size", &shape.size)?;
            }
        }
        if let Some(offer) = self.deflate {
            map.serialize_entry("deflate", mode(offer))?;
        }
        map.serialize_entry("connections", &self.connections)?;
        map.serialize_entry("duration_s", &self.elapsed.as_secs_f64())?;
        map.serialize_entry("messages", &self.messages)?;
        map.serialize_entry("messages_per_second", &self.per_second)?;
        map.serialize_entry("errors", &self.errors)?;
        map.serialize_entry("faults", &Faults(&self.faults))?;
        map.serialize_entry("latency_us", &self.latency)?;
        if let Some(bytes) = self.bytes_per_answer {
            map.serialize_entry("bytes_per_answer", &bytes)?;
        }
        match &self.scenario {
            Scenario::Idle { upkeep, .. } => map.serialize_entry("server", upkeep)?,
            Scenario::Echo { .. } | Scenario::Connect { .. } => {
                map.serialize_entry("server", &self.server)?;
            }
        }
        map.serialize_entry("client", &self.client)?;
        map.end()
    }
}

/// Faults by name.
struct Faults<'a>(&'a [(&'static str, u64)]);

impl Serialize for Faults<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl Comparisons {
    pub(super) fn new(plan: &Plan, deflate: Option<ClientOffer>, cases: Vec<Comparison>) -> Self {
        let (rounds, slice_s) = (plan.rounds, plan.slice.as_secs_f64());
        Self { scenario: "compare", rounds, slice_s, deflate: deflate.map(mode), cases }
    }

    /// Whether nothing went wrong with any server.
    pub fn is_clean(&self) -> bool {
        self.cases.iter().flat_map(|case| &case.servers).all(|server| server.errors == 0)
    }
}

/// For people: a few lines for each case.
impl fmt::Display for Comparisons {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cases.iter().try_for_each(|case| write_comparison(out, case, self.slice_s))
    }
}

fn write_comparison(out: &mut fmt::Formatter<'_>, comparison: &Comparison, slice_s: f64) -> fmt::Result {
    let Comparison { case, rounds, measure, servers, pairs } = comparison;
    let measure = match measure {
        Measure::ServerCpu => "µs of server CPU for each",
        Measure::Elapsed => "µs that passed for each, as not every server's process is known",
    };
    writeln!(out, "{case}: {rounds} rounds of {slice_s} s; median [min..max] of {measure}")?;
    let pair_name = |first: &str, second: &str| format!("{first} / {second}");
    let names = servers.iter().map(|server| server.name.chars().count());
    let pair_names = pairs.iter().map(|pair| pair_name(&pair.first, &pair.second).chars().count());
    let width = names.chain(pair_names).max().unwrap_or(0);
    for server in servers {
        let Spread { median, min, max } = server.us_per_message;
        let rate = server.messages_per_second.median;
        let [p50, p99] = [server.latency_us.p50, server.latency_us.p99].map(time);
        let busy = server.client_busy * 100.0;
        write!(
            out,
            "  {:<width$}  {median:.3} [{min:.3}..{max:.3}]  {rate:.0} a second, p50 {p50}, p99 {p99}, \
             client {busy:.0} % busy",
            server.name,
        )?;
        if let Some(bytes) = server.bytes_per_answer {
            write!(out, ", answers of {bytes:.0} B")?;
        }
        if server.client_limited {
            write!(out, ": the generator was the limit")?;
        }
        if server.errors > 0 {
            write!(out, "; FAULTS: {}", server.faults.join(", "))?;
        }
        writeln!(out)?;
    }
    for pair in pairs {
        let Spread { median, min, max } = pair.ratio;
        writeln!(
            out,
            "  {:<width$}  {median:.3}× [{min:.3}..{max:.3}]",
            pair_name(&pair.first, &pair.second)
        )?;
    }
    Ok(())
}

fn write_upkeep(out: &mut fmt::Formatter<'_>, upkeep: &Upkeep) -> fmt::Result {
    let stages = [
        ("before", upkeep.before),
        ("opened", upkeep.opened),
        ("used", upkeep.used),
        ("closed", upkeep.closed),
    ];
    for (name, memory) in stages {
        writeln!(
            out,
            "  {name:<11} {} resident, {} its own",
            size(memory.rss_bytes),
            size(memory.anonymous_bytes)
        )?;
    }
    let [before, opened, closed] = upkeep.descriptors;
    writeln!(
        out,
        "  each        {:.0} B, {:.0} B once used",
        upkeep.bytes_per_connection, upkeep.bytes_per_used_connection
    )?;
    writeln!(out, "  idle        {:.2} % of a core", upkeep.idle_cpu * 100.0)?;
    writeln!(out, "  descriptors {before} before, {opened} opened, {closed} closed")
}

fn kind(opcode: Opcode) -> &'static str {
    if opcode == Opcode::Text { "text" } else { "binary" }
}

/// How messages are compressed, as [`ClientOffer`] is called on the command line.
fn mode(offer: ClientOffer) -> &'static str {
    match offer {
        ClientOffer::Shared => "shared",
        ClientOffer::Dedicated => "dedicated",
    }
}

/// Microseconds, in the unit that reads best.
pub(super) fn time(us: f64) -> String {
    match us {
        ..1e3 => format!("{us:.0} µs"),
        ..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

fn size(bytes: u64) -> String {
    format!("{:.2} MiB", super::figures::float(bytes) / (1024.0 * 1024.0))
}

/// A number with its thousands set apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([12.4, 1234.0, 1_234_000.0].map(time), ["12 µs", "1.23 ms", "1.23 s"]);
    }
}
