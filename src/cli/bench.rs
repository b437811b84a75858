//! `ringway bench`: load, and servers side by side.

use std::fmt::Display;
use std::fs;
use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use rustls::RootCertStore;
use serde::Serialize;

use super::{Exit, output};
use crate::bench::{
    self, BenchFault, Case, Contestant, Door, Pace, Parting, Plan, Progress, Server, Setting, Shape, Target,
    Tls,
};
use crate::config::certificate::NamedFile;
use crate::net::tls::Trust;
use crate::protocol::websocket::deflate::client::ClientOffer;
use crate::protocol::websocket::frame::Opcode;

/// The scenarios of `bench`.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Send messages and check that each comes back
    Echo(EchoArguments),
    /// Open connections, verify the answer and leave, over and over
    Connect(ConnectArguments),
    /// Open connections and leave them in peace: what each costs the server
    Idle(IdleArguments),
    /// Drive servers in turn, slice by slice, and tell what one costs in terms of the other
    Compare(CompareArguments),
}

#[derive(Debug, Args)]
pub(super) struct EchoArguments {
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    threads: ThreadArguments,
    #[command(flatten)]
    messages: MessageArguments,
    /// Messages that each connection has on the way at once; they leave in one piece [default: 1, with --rate 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    in_flight: Option<u32>,
    /// Messages a second over all connections, whether answered or not; without it, as fast as answers come
    #[arg(long, value_name = "PER_S", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rate: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct ConnectArguments {
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    threads: ThreadArguments,
    #[command(flatten)]
    parting: PartingArguments,
    #[command(flatten)]
    resumption: ResumptionArguments,
}

#[derive(Debug, Args)]
pub(super) struct IdleArguments {
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    messages: MessageArguments,
}

#[derive(Debug, Args)]
pub(super) struct CompareArguments {
    /// The servers, two or more
    #[arg(value_name = "NAME=URL", required = true, value_parser = named::<Target>)]
    servers: Vec<(String, Target)>,
    /// A server's process, whose processor time is then what is compared; again where it has several
    #[arg(long, value_name = "NAME=PID", value_parser = named::<u32>)]
    server_pid: Vec<(String, u32)>,
    /// How often each server has its turn
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How long a turn is
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = positive_duration)]
    slice: Duration,
    /// How long after a turn answers may still come
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive_duration)]
    grace: Duration,
    /// A load: `CONNECTIONS:SIZE:IN_FLIGHT`, with `:text` after it where binary will not do, or `connect:AT_A_TIME`
    #[arg(long = "case", value_name = "CASE", default_value = "64:20:1")]
    cases: Vec<Case>,
    #[command(flatten)]
    parting: PartingArguments,
    #[command(flatten)]
    resumption: ResumptionArguments,
    #[command(flatten)]
    door: DoorArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// One load on one server.
#[derive(Debug, Args)]
struct LoadArguments {
    /// The server's URLs; connections go to each in turn
    #[arg(value_name = "URL", required = true, value_parser = target)]
    urls: Vec<Target>,
    /// How many connections
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    duration: Duration,
    /// How long to do the same before that
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    warmup: Duration,
    /// How long after that answers may still come
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive_duration)]
    grace: Duration,
    /// The server's process, to tell what the load costs it; again where it has several
    #[arg(long, value_name = "PID")]
    server_pid: Vec<u32>,
    #[command(flatten)]
    door: DoorArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Debug, Args)]
struct ThreadArguments {
    /// How many threads make the load, each on a core of its own; connections are divided among them
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
}

#[derive(Debug, Args)]
struct MessageArguments {
    /// The payload of a message in bytes
    #[arg(long, value_name = "BYTES", default_value = "20", value_parser = clap::value_parser!(u32).range(..=SIZE_MAX))]
    size: u32,
    /// Send binary messages (the default)
    #[arg(long, conflicts_with = "text")]
    binary: bool,
    /// Send text messages
    #[arg(long)]
    text: bool,
}

#[derive(Debug, Args)]
struct PartingArguments {
    /// Leave a new connection by a reset as soon as it is open, not by the closing handshake
    #[arg(long)]
    reset: bool,
}

#[derive(Debug, Args)]
struct ResumptionArguments {
    /// Resume TLS, where every handshake is a full one otherwise; the first, which get the tickets, do not count
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, Args)]
struct DoorArguments {
    /// The authorities whose certificates are believed of `wss://`, in PEM, for the name in the URL
    #[arg(long, value_name = "FILE", value_parser = authorities, conflicts_with = "insecure")]
    ca: Option<Arc<RootCertStore>>,
    /// Believe any certificate of `wss://`
    #[arg(long)]
    insecure: bool,
    /// An address to connect from; again for more: each has some 28,000 ports
    #[arg(long, value_name = "ADDRESS")]
    source: Vec<IpAddr>,
    /// A subprotocol to offer; again for more, best first
    #[arg(long, value_name = "NAME", value_parser = token)]
    subprotocol: Vec<String>,
    /// Send messages of JSON compressed by permessage-deflate, and demand that the server agrees: with `shared` (as where
    /// no mode is given) that neither side keeps a context, with `dedicated` the server may
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "shared")]
    deflate: Option<DeflateMode>,
    /// A further field of the request head, as `Name: value`; again for more
    #[arg(long, value_name = "FIELD", value_parser = field)]
    header: Vec<(String, String)>,
}

/// What is offered to compress by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeflateMode {
    Shared,
    Dedicated,
}

#[derive(Debug, Args)]
struct OutputArguments {
    /// The core of the generator; again for each of several threads [default: the last that it may use]
    #[arg(long, value_name = "N")]
    core: Vec<usize>,
    #[command(flatten)]
    form: FormArguments,
}

#[derive(Debug, Args)]
struct FormArguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print as where it is piped, also on a terminal: bars in ASCII, and no progress
    #[arg(long)]
    plain: bool,
    /// Write the JSON object to a file, whatever is printed
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// The most messages in flight on one connection.
const IN_FLIGHT_MAX: i64 = 65_536;
/// What a connection may have in flight under a rate, where nothing is said.
const IN_FLIGHT_UNDER_RATE: u32 = 64;
/// The largest message in bytes.
const SIZE_MAX: i64 = 1 << 30;

pub(super) fn run(command: BenchCommand) -> Exit {
    if let Some(mistake) = command.mistake() {
        output::complain(&format!("error: {mistake}\n"));
        return Exit::Usage;
    }
    match command {
        BenchCommand::Echo(arguments) => {
            let (pace, in_flight) = match arguments.rate {
                None => (Pace::Answers, 1),
                Some(rate) => (Pace::PerSecond(rate), IN_FLIGHT_UNDER_RATE),
            };
            let shape = arguments.messages.shape(arguments.in_flight.unwrap_or(in_flight));
            let (mut setting, form) = arguments.load.setting(false);
            setting.threads = arguments.threads.threads;
            tell(bench::echo(&setting, shape, pace), &form, bench::Report::is_clean)
        }
        BenchCommand::Connect(arguments) => {
            let (mut setting, form) = arguments.load.setting(arguments.resumption.resume);
            setting.threads = arguments.threads.threads;
            let report = bench::connect(&setting, arguments.parting.parting());
            tell(report, &form, bench::Report::is_clean)
        }
        BenchCommand::Idle(arguments) => {
            let shape = arguments.messages.shape(1);
            let (setting, form) = arguments.load.setting(false);
            tell(bench::idle(&setting, shape), &form, bench::Report::is_clean)
        }
        BenchCommand::Compare(arguments) => compare(arguments),
    }
}

fn compare(arguments: CompareArguments) -> Exit {
    let CompareArguments {
        servers,
        server_pid,
        rounds,
        slice,
        grace,
        cases,
        parting,
        resumption,
        door,
        output,
    } = arguments;
    let contestants: Vec<Contestant> = servers
        .into_iter()
        .map(|(name, target)| {
            let pids: Vec<u32> =
                server_pid.iter().filter(|(of, _)| *of == name).map(|(_, pid)| *pid).collect();
            Contestant { server: Server::new(&pids), door: door.door(vec![target], resumption.resume), name }
        })
        .collect();
    let plan = Plan { rounds, slice, grace, parting: parting.parting() };
    let comparisons =
        bench::compare(&contestants, &cases, &plan, output.core.first().copied(), &progress(&output.form));
    tell(comparisons, &output.form, bench::Comparisons::is_clean)
}

impl BenchCommand {
    /// What clap cannot see.
    fn mistake(&self) -> Option<String> {
        let (urls, door, is_resuming) = match self {
            Self::Echo(arguments) => (arguments.load.urls.iter().collect(), &arguments.load.door, false),
            Self::Idle(arguments) => (arguments.load.urls.iter().collect(), &arguments.load.door, false),
            Self::Connect(arguments) => {
                (arguments.load.urls.iter().collect(), &arguments.load.door, arguments.resumption.resume)
            }
            Self::Compare(arguments) => {
                if let Some(mistake) = mistake_in_names(&arguments.servers, &arguments.server_pid) {
                    return Some(mistake);
                }
                let urls: Vec<_> = arguments.servers.iter().map(|(_, target)| target).collect();
                (urls, &arguments.door, arguments.resumption.resume)
            }
        };
        mistake_in_tls(&urls, door, is_resuming).map(str::to_owned)
    }
}

/// What is missing to speak TLS, or asked for without it.
fn mistake_in_tls(urls: &[&Target], door: &DoorArguments, is_resuming: bool) -> Option<&'static str> {
    let is_tls = urls.iter().any(|target| target.tls_name.is_some());
    let is_any_believed = door.ca.is_some() || door.insecure;
    match (is_tls, is_any_believed) {
        (true, false) => Some(
            "wss:// takes --ca FILE, the authorities to believe, or --insecure, to believe any certificate",
        ),
        (false, true) => Some("--ca and --insecure are for wss://, and no URL has that"),
        (false, false) if is_resuming => Some("--resume is for wss://, and no URL has that"),
        _ => None,
    }
}

/// Names that stand alone, twice, or for nobody.
fn mistake_in_names(servers: &[(String, Target)], server_pid: &[(String, u32)]) -> Option<String> {
    if servers.len() < 2 {
        return Some("it takes two servers or more to compare".to_owned());
    }
    for (index, (name, _)) in servers.iter().enumerate() {
        if servers[..index].iter().any(|(before, _)| before == name) {
            return Some(format!("two servers are called {name}"));
        }
    }
    let stranger = server_pid.iter().find(|(name, _)| !servers.iter().any(|(known, _)| known == name));
    stranger.map(|(name, _)| format!("--server-pid names {name}, and no server is called so"))
}

/// Prints the outcome; one that is not clean is a failure, figures or not.
fn tell<T: Serialize + Display>(
    outcome: Result<T, BenchFault>,
    form: &FormArguments,
    is_clean: impl FnOnce(&T) -> bool,
) -> Exit {
    if form.has_progress() {
        output::complain("\r\x1b[K");
    }
    let report = match outcome {
        Ok(report) => report,
        Err(fault) => {
            output::complain(&format!("error: {fault}\n"));
            return Exit::Failure;
        }
    };
    let mut json =
        serde_json::to_string_pretty(&report).expect("a report is made of numbers, names and lists");
    json.push('\n');
    if let Some(file) = &form.save
        && let Err(cause) = fs::write(file, &json)
    {
        output::complain(&format!("error: {}: {cause}\n", file.display()));
        return Exit::Failure;
    }
    let text = if form.json {
        json
    } else if form.plain || !io::stdout().is_terminal() {
        report.to_string()
    } else {
        format!("{report:#}")
    };
    match output::print(text.as_bytes()) {
        Exit::Success if !is_clean(&report) => Exit::Failure,
        exit => exit,
    }
}

/// One line that is written over and over on a terminal; elsewhere nothing.
fn progress(form: &FormArguments) -> Progress {
    if form.has_progress() {
        Arc::new(|text: &str| output::complain(&format!("\r\x1b[K{text}")))
    } else {
        Arc::new(|_: &str| {})
    }
}

impl FormArguments {
    fn has_progress(&self) -> bool {
        !self.plain && io::stderr().is_terminal()
    }
}

impl LoadArguments {
    fn setting(self, is_resuming: bool) -> (Setting, FormArguments) {
        let setting = Setting {
            door: self.door.door(self.urls, is_resuming),
            connections: self.connections,
            duration: self.duration,
            warmup: self.warmup,
            grace: self.grace,
            server: Server::new(&self.server_pid),
            threads: 1,
            cores: self.output.core,
            progress: progress(&self.output.form),
        };
        (setting, self.output.form)
    }
}

impl MessageArguments {
    fn shape(&self, in_flight: u32) -> Shape {
        let opcode = if self.text { Opcode::Text } else { Opcode::Binary };
        Shape { opcode, size: self.size as usize, in_flight }
    }
}

impl PartingArguments {
    fn parting(&self) -> Parting {
        if self.reset { Parting::Reset } else { Parting::Handshake }
    }
}

impl DoorArguments {
    fn door(&self, targets: Vec<Target>, is_resuming: bool) -> Arc<Door> {
        let trust = match &self.ca {
            Some(roots) => Some(Trust::Authorities(Arc::clone(roots))),
            None => self.insecure.then_some(Trust::Anybody),
        };
        Arc::new(Door {
            tls: trust.map(|trust| Tls::new(targets.len(), &trust, is_resuming)),
            targets,
            sources: self.source.clone(),
            deflate: self.deflate.map(|mode| match mode {
                DeflateMode::Shared => ClientOffer::Shared,
                DeflateMode::Dedicated => ClientOffer::Dedicated,
            }),
            subprotocols: self.subprotocol.clone(),
            fields: self.header.clone(),
        })
    }
}

fn target(url: &str) -> Result<Target, String> {
    Target::resolve(url).map_err(|fault| fault.to_string())
}

fn authorities(file: &str) -> Result<Arc<RootCertStore>, String> {
    let file = NamedFile { name: file.to_owned(), path: Path::new(file).to_owned() };
    file.authorities().map_err(|fault| fault.to_string())
}

/// What stands after a name and `=`.
trait Named: Sized {
    fn parse(text: &str) -> Result<Self, String>;
}

impl Named for Target {
    fn parse(text: &str) -> Result<Self, String> {
        target(text)
    }
}

impl Named for u32 {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "a process is named by its number".to_owned())
    }
}

fn named<T: Named>(text: &str) -> Result<(String, T), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !name.contains("://") => {
            Ok((name.to_owned(), T::parse(value)?))
        }
        _ => Err("a name and = come first".to_owned()),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("it takes some time".to_owned()),
        duration => Ok(duration),
    })
}

/// A number with `ms`, `s` or `m` after it, or of seconds; up to a day.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit_s) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => match text.strip_suffix('m') {
            Some(number) => (number, 60.0),
            None => (text.strip_suffix('s').unwrap_or(text), 1.0),
        },
    };
    match number.parse::<f64>().map(|number| number * unit_s) {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("write a time such as 500ms, 10s or 2m, at most a day".to_owned()),
    }
}

fn token(text: &str) -> Result<String, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_token) {
        Ok(text.to_owned())
    } else {
        Err("a token of letters, digits and !#$%&'*+-.^_`|~".to_owned())
    }
}

/// A field that the opening handshake does not write itself.
fn field(text: &str) -> Result<(String, String), String> {
    const OWN: [&str; 7] = [
        "host",
        "upgrade",
        "connection",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
    ];
    let (name, value) = text.split_once(':').ok_or("write Name: value")?;
    let name = token(name)?;
    if OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return Err(format!("{name} is the opening handshake's own"));
    }
    let value = value.trim_matches([' ', '\t']);
    if value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
        return Err("a value has no control bytes".to_owned());
    }
    Ok((name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, ms) in
            [("500ms", 500), ("1s", 1000), ("2m", 120_000), ("3", 3000), ("0.5s", 500), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1h", "90000s", "NaN", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn servers_have_names() {
        let (name, target) = named::<Target>("a=ws://127.0.0.1:1/?b=c").unwrap();
        assert_eq!((name.as_str(), target.path.as_str()), ("a", "/?b=c"));
        for text in ["ws://127.0.0.1:1/", "=ws://127.0.0.1:1/", "ws://127.0.0.1/?a=b", "a=b"] {
            assert!(named::<Target>(text).is_err(), "{text}");
        }
        assert_eq!(named::<u32>("a=1"), Ok(("a".to_owned(), 1)));
    }

    #[test]
    fn each_name_is_one_servers() {
        let servers = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| named::<Target>(&format!("{name}=ws://127.0.0.1/")).unwrap()).collect()
        };
        let pid = |name: &str| [(name.to_owned(), 1)];
        assert_eq!(mistake_in_names(&servers(&["a", "b"]), &pid("b")), None);
        assert!(mistake_in_names(&servers(&["a"]), &[]).unwrap().contains("two servers"));
        assert!(mistake_in_names(&servers(&["a", "b", "a"]), &[]).unwrap().contains("called a"));
        assert!(mistake_in_names(&servers(&["a", "b"]), &pid("c")).unwrap().contains("names c"));
    }

    #[test]
    fn who_speaks_tls_says_whom_to_believe() {
        let (plain, tls) = (target("ws://127.0.0.1/").unwrap(), target("wss://127.0.0.1/").unwrap());
        let insecure = |insecure| DoorArguments {
            ca: None,
            insecure,
            source: Vec::new(),
            subprotocol: Vec::new(),
            deflate: None,
            header: Vec::new(),
        };
        assert!(mistake_in_tls(&[&plain, &tls], &insecure(false), false).unwrap().contains("--ca FILE"));
        assert!(mistake_in_tls(&[&plain], &insecure(true), false).unwrap().contains("no URL"));
        assert!(mistake_in_tls(&[&plain], &insecure(false), true).unwrap().contains("--resume"));
        assert_eq!(mistake_in_tls(&[&plain], &insecure(false), false), None);
        assert_eq!(mistake_in_tls(&[&plain, &tls], &insecure(true), true), None);
    }

    #[test]
    fn fields_are_checked_before_they_are_sent() {
        assert_eq!(field("Origin:  http://a "), Ok(("Origin".to_owned(), "http://a".to_owned())));
        for text in ["Origin", ": a", "A B: c", "Host: a", "sec-websocket-KEY: a", "A: b\r\nC: d"] {
            assert!(field(text).is_err(), "{text}");
        }
    }
}
