//! Servers side by side: each is driven in turn, slice by slice, and the ratio of each round is the result.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::client::{Door, OpenFault};
use super::connect::{self, Parting};
use super::crowd::{Crowd, Pace, Span};
use super::figures::{Latency, Spread};
use super::generator::Generator;
use super::measure::{Measured, latency, measure};
use super::messages::Shape;
use super::process::Server;
use super::tally::Tally;
use crate::protocol::websocket::frame::Opcode;

/// How many connections are being opened at a time where a case does not say.
const AT_A_TIME: u32 = 64;
/// The largest message of a case in bytes.
const SIZE_MAX: usize = 1 << 30;

/// One of the servers.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// What it is called in the report.
    pub name: String,
    /// How its connections are opened.
    pub door: Arc<Door>,
    /// Its processes, where they are known.
    pub server: Option<Server>,
}

/// A load that all servers are put under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Messages: `CONNECTIONS:SIZE:IN_FLIGHT`, with `:text` after it where they are not binary.
    Echo {
        /// Connections to each server.
        connections: u32,
        /// Their messages.
        shape: Shape,
    },
    /// Opening handshakes: `connect`, or `connect:AT_A_TIME`.
    Connect {
        /// Connections being opened at one time.
        at_a_time: u32,
    },
}

/// How servers are compared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often each has its turn; a round before the first warms up and does not count.
    pub rounds: u32,
    /// How long a turn is.
    pub slice: Duration,
    /// How long after a turn answers may still come.
    pub grace: Duration,
    /// How connections of the connect case are left.
    pub parting: Parting,
}

/// What a ratio is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The server's processor time for each message.
    ServerCpu,
    /// The time that passed for each message: for want of a process to look at.
    Elapsed,
}

/// All servers under one case.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The load.
    pub case: Case,
    /// Rounds that count.
    pub rounds: u32,
    /// What cost and ratios are of.
    pub measure: Measure,
    /// Each server, as named.
    pub servers: Vec<Standing>,
    /// Each two servers.
    pub pairs: Vec<Pair>,
}

/// One server under one case, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Microseconds for each message or connection, of what [`Comparison::measure`] says.
    pub us_per_message: Spread,
    /// Messages or connections in a second.
    pub messages_per_second: Spread,
    /// Of all rounds together.
    pub latency_us: Latency,
    /// The mean payload of an answer as it came, where answers may be compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_answer: Option<f64>,
    /// Connections given up.
    pub errors: u64,
    /// What they were given up for, by name.
    pub faults: Vec<String>,
    /// The share of its core that the generator was busy, at most.
    pub client_busy: f64,
    /// Whether in some round the generator, not the server, was the limit.
    pub client_limited: bool,
}

/// Two servers: what the first cost, in terms of the second.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// The name of the first.
    pub first: String,
    /// The name of the second.
    pub second: String,
    /// The ratios of the rounds.
    pub ratio: Spread,
}

/// Why servers could not be compared.
#[derive(Debug)]
pub enum CompareFault {
    /// A connection could not be opened.
    Open {
        /// The server.
        name: String,
        /// Why.
        fault: OpenFault,
    },
    /// The server's process is gone.
    Server {
        /// The server.
        name: String,
        /// What the look at it met.
        error: io::Error,
    },
    /// In a whole slice the server answered nothing.
    Silent {
        /// The server.
        name: String,
    },
}

/// Drives all servers in turn under one case. `told` hears what is going on.
///
/// # Errors
/// [`CompareFault`].
pub(super) async fn compare(
    generator: &Rc<Generator>,
    contestants: &[Contestant],
    case: Case,
    plan: &Plan,
    told: impl Fn(&str),
) -> Result<Comparison, CompareFault> {
    let mut sides = Vec::new();
    for contestant in contestants {
        sides.push(Side::new(generator, contestant, case).await?);
    }
    for round in 0..=plan.rounds {
        // Who comes first goes round, so that what one leaves behind meets each of the others.
        for turn in 0..sides.len() {
            let side_index = (turn + round as usize) % sides.len();
            let side = &mut sides[side_index];
            let name = &side.contestant.name;
            told(&match round {
                0 => format!("{case}: warming up, {name}"),
                _ => format!("{case}: round {round} of {}, {name}", plan.rounds),
            });
            let measured = side.turn(generator, plan).await?;
            if round > 0 {
                side.rounds.push(measured);
            }
        }
    }
    for side in &mut sides {
        if let Some(crowd) = side.crowd.take() {
            crowd.leave(&side.parted).await;
        }
    }
    let is_known = contestants.iter().all(|contestant| contestant.server.is_some());
    let measure = if is_known { Measure::ServerCpu } else { Measure::Elapsed };
    let costs: Vec<Vec<f64>> = sides.iter().map(|side| side.costs(measure)).collect();
    let mut pairs = Vec::new();
    for (index, side) in sides.iter().enumerate() {
        for (other_index, other) in sides.iter().enumerate().skip(index + 1) {
            let ratios = costs[index].iter().zip(&costs[other_index]).map(|(first, second)| first / second);
            pairs.push(Pair {
                first: side.contestant.name.clone(),
                second: other.contestant.name.clone(),
                ratio: spread(ratios.collect()),
            });
        }
    }
    let servers = sides.iter().zip(costs).map(|(side, costs)| side.standing(costs)).collect();
    Ok(Comparison { case, rounds: plan.rounds, measure, servers, pairs })
}

/// One server's connections and rounds.
struct Side<'a> {
    contestant: &'a Contestant,
    case: Case,
    /// Kept open from the first round to the last; `None` where connections are what is measured.
    crowd: Option<Crowd>,
    rounds: Vec<Measured>,
    parted: Rc<Tally>,
}

impl<'a> Side<'a> {
    async fn new(
        generator: &Rc<Generator>,
        contestant: &'a Contestant,
        case: Case,
    ) -> Result<Self, CompareFault> {
        let crowd = match case {
            Case::Connect { .. } => None,
            Case::Echo { connections, shape } => {
                let crowd = Crowd::open(generator, &contestant.door, shape, 0..connections).await;
                let name = || contestant.name.clone();
                Some(crowd.map_err(|fault| CompareFault::Open { name: name(), fault })?)
            }
        };
        Ok(Self { contestant, case, crowd, rounds: Vec::new(), parted: Rc::new(Tally::new()) })
    }

    async fn turn(&mut self, generator: &Rc<Generator>, plan: &Plan) -> Result<Measured, CompareFault> {
        let tally = Rc::new(Tally::new());
        let server = self.contestant.server.as_ref();
        let name = || self.contestant.name.clone();
        let work = async {
            match (&mut self.crowd, self.case) {
                (Some(crowd), _) => {
                    let span = Span { duration: plan.slice, grace: plan.grace };
                    crowd.run(Pace::Answers, span, &tally).await;
                }
                (None, Case::Connect { at_a_time }) => {
                    let manner = (at_a_time, plan.parting);
                    connect::run(generator, &self.contestant.door, manner, plan.slice, &tally).await;
                }
                (None, Case::Echo { .. }) => {
                    unreachable!("an echo case has its crowd until the last round is over")
                }
            }
        };
        let measured = measure(server, Rc::clone(&tally), work).await;
        let measured = measured.map_err(|error| CompareFault::Server { name: name(), error })?;
        if tally.messages() == 0 {
            return Err(CompareFault::Silent { name: name() });
        }
        Ok(measured)
    }

    /// The cost of each round in microseconds a message.
    fn costs(&self, measure: Measure) -> Vec<f64> {
        let cost = |round: &Measured| match measure {
            Measure::ServerCpu => {
                round.server_us().expect("a slice without messages or process was an error")
            }
            Measure::Elapsed => 1e6 / round.per_second(),
        };
        self.rounds.iter().map(cost).collect()
    }

    fn standing(&self, costs: Vec<f64>) -> Standing {
        let sum = Tally::new();
        sum.add(&self.parted);
        for round in &self.rounds {
            sum.add(&round.tally);
        }
        let efforts = || self.rounds.iter().map(Measured::effort);
        Standing {
            name: self.contestant.name.clone(),
            us_per_message: spread(costs),
            messages_per_second: spread(self.rounds.iter().map(Measured::per_second).collect()),
            latency_us: latency(&sum),
            bytes_per_answer: sum.bytes_per_answer(),
            errors: sum.faults_sum(),
            faults: sum.faults().map(|(fault, count)| format!("{count} {fault}")).collect(),
            client_busy: efforts().map(|effort| effort.busy).fold(0.0, f64::max),
            client_limited: efforts().any(|effort| effort.limited),
        }
    }
}

fn spread(values: Vec<f64>) -> Spread {
    Spread::of(values).expect("there is at least one round")
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let number = |part: &str| part.parse::<u32>().ok().filter(|number| *number > 0);
        let case = match *parts.as_slice() {
            ["connect"] => Some(Self::Connect { at_a_time: AT_A_TIME }),
            ["connect", at_a_time] => number(at_a_time).map(|at_a_time| Self::Connect { at_a_time }),
            [connections, size, in_flight, ref rest @ ..] => {
                let opcode = match rest {
                    [] | ["binary"] => Some(Opcode::Binary),
                    ["text"] => Some(Opcode::Text),
                    _ => None,
                };
                let size = size.parse().ok().filter(|size| *size <= SIZE_MAX);
                match (number(connections), size, number(in_flight), opcode) {
                    (Some(connections), Some(size), Some(in_flight), Some(opcode)) => {
                        Some(Self::Echo { connections, shape: Shape { opcode, size, in_flight } })
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        case.ok_or_else(|| {
            "write CONNECTIONS:SIZE:IN_FLIGHT, perhaps with :text, or connect:AT_A_TIME".to_owned()
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo { connections, shape: Shape { opcode, size, in_flight } } => {
                write!(formatter, "{connections}:{size}:{in_flight}")?;
                if *opcode == Opcode::Text { formatter.write_str(":text") } else { Ok(()) }
            }
            Self::Connect { at_a_time } => write!(formatter, "connect:{at_a_time}"),
        }
    }
}

impl Serialize for Case {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for CompareFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { name, fault } => write!(formatter, "{name}: {fault}"),
            Self::Server { name, error } => write!(formatter, "{name}: its process cannot be seen: {error}"),
            Self::Silent { name } => write!(formatter, "{name}: nothing was answered in a whole slice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_as_they_are_written() {
        for text in ["64:20:1", "1:0:16:text", "connect:8"] {
            assert_eq!(text.parse::<Case>().unwrap().to_string(), text);
        }
        assert_eq!("connect".parse(), Ok(Case::Connect { at_a_time: AT_A_TIME }));
        assert_eq!("1:2:3:binary".parse::<Case>(), "1:2:3".parse());
        for text in
            ["", "64", "64:20", "0:20:1", "64:20:0", "64:20:1:json", "64:20:1:text:", "connect:0", "64:-1:1"]
        {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
    }
}
