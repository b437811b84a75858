//! Connections under the same load: opened together, driven again and again, left together.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::client::{Client, Door, OpenFault};
use super::fault::Fault;
use super::generator::Generator;
use super::messages::{Pattern, Shape};
use super::schedule::Schedule;
use super::tally::Tally;
use crate::net::clock;
use crate::net::timers::Tick;
use crate::net::wake::Counted;

/// So many connections are being opened, or left, at one time.
const AT_A_TIME: u32 = 64;

/// When messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A window of messages as soon as the last is answered (closed loop).
    Answers,
    /// So many messages a second over all connections, whatever the answers do (open loop). Latency counts from when
    /// a message was due, so that a server that stalls is charged for all that had to wait. What is in flight stays
    /// within the window; what is due beyond waits.
    PerSecond(u64),
}

/// How long a run takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// How long messages are sent.
    pub(super) duration: Duration,
    /// How long after that answers may still come.
    pub(super) grace: Duration,
}

/// Connections under the same load.
#[derive(Debug)]
pub(super) struct Crowd {
    generator: Rc<Generator>,
    members: Vec<Rc<Member>>,
    in_flight: usize,
}

#[derive(Debug)]
struct Member {
    client: Client,
    /// True from its first fault on.
    is_broken: Cell<bool>,
}

impl Crowd {
    /// Opens so many connections.
    ///
    /// # Errors
    /// The first that could not be opened.
    pub(super) async fn open(
        generator: &Rc<Generator>,
        door: &Rc<Door>,
        shape: Shape,
        connections: u32,
    ) -> Result<Self, OpenFault> {
        let pattern = Pattern::new(shape.size);
        let next = Rc::new(Cell::new(0));
        let tasks = (0..AT_A_TIME.min(connections)).map(|_| {
            let (generator, door, pattern) = (Rc::clone(generator), Rc::clone(door), pattern.clone());
            let next = Rc::clone(&next);
            monoio::spawn(async move {
                let mut members = Vec::new();
                while next.get() < connections {
                    let index = next.replace(next.get() + 1);
                    let client = Client::open(&generator, &door, (&shape, &pattern), index).await?;
                    members.push(Rc::new(Member { client, is_broken: Cell::new(false) }));
                }
                Ok(members)
            })
        });
        let mut members = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            members.append(&mut task.await?);
        }
        Ok(Self { generator: Rc::clone(generator), members, in_flight: shape.in_flight as usize })
    }

    /// Sends messages and checks their answers, until all that was sent is answered.
    pub(super) async fn run(&self, pace: Pace, span: Span, tally: &Rc<Tally>) {
        let deadline = self.generator.after(span.duration + span.grace);
        let start = clock::now();
        match pace {
            Pace::Answers => self.closed_loop(self.in_flight, start + span.duration, deadline, tally).await,
            Pace::PerSecond(rate) => self.open_loop(start, rate, span.duration, deadline, tally).await,
        }
    }

    /// Has every connection send one message and wait for its echo.
    pub(super) async fn one_message_each(&self, grace: Duration, tally: &Rc<Tally>) {
        self.closed_loop(1, clock::now(), self.generator.after(grace), tally).await;
    }

    /// Keeps the connections for `duration`, answering pings.
    pub(super) async fn hold(&self, duration: Duration, tally: &Rc<Tally>) {
        let deadline = self.generator.after(duration);
        let stay = |member: Rc<Member>| async move {
            match member.client.answered().await {
                Ok(_) => Err(Fault::Unasked),
                // Nothing came until the end, as it should be.
                Err(Fault::Late) => Ok(()),
                Err(fault) => Err(fault),
            }
        };
        self.each(deadline, tally, stay).await;
    }

    /// Has every connection leave by the closing handshake.
    pub(super) async fn leave(self, tally: &Rc<Tally>) {
        let members = Rc::new(RefCell::new(self.members));
        let tasks = (0..AT_A_TIME).map(|_| {
            let (members, tally) = (Rc::clone(&members), Rc::clone(tally));
            monoio::spawn(async move {
                loop {
                    let Some(member) = members.borrow_mut().pop() else { return };
                    let member = Rc::into_inner(member).expect("what a run shared was dropped at its end");
                    if !member.is_broken.get()
                        && let Err(fault) = member.client.leave().await
                    {
                        tally.fault(fault);
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await;
        }
    }

    /// Every connection sends a window and waits for its answers, over and over until `end`; at least once.
    async fn closed_loop(&self, in_flight: usize, end: Instant, deadline: Tick, tally: &Rc<Tally>) {
        let window = u32::try_from(in_flight).expect("a window is made of a u32");
        let send_and_wait = |member: Rc<Member>| {
            let tally = Rc::clone(tally);
            async move {
                let client = &member.client;
                let mut sent_at = clock::now();
                client.send(in_flight)?;
                let mut missing = window;
                loop {
                    let answered = client.answered().await?;
                    let now = clock::now();
                    missing = missing.checked_sub(answered).ok_or(Fault::Unasked)?;
                    tally.answered(answered, now - sent_at);
                    if missing == 0 {
                        if now >= end {
                            return Ok(());
                        }
                        client.send(in_flight)?;
                        missing = window;
                        sent_at = now;
                    }
                }
            }
        };
        self.each(deadline, tally, send_and_wait).await;
    }

    /// Every connection sends what is due, and takes the answers.
    async fn open_loop(
        &self,
        start: Instant,
        rate: u64,
        duration: Duration,
        deadline: Tick,
        tally: &Rc<Tally>,
    ) {
        let members: Vec<_> = self.members.iter().filter(|member| !member.is_broken.get()).collect();
        if members.is_empty() {
            return;
        }
        let schedule = Schedule::new(start, rate, duration, members.len() as u64);
        let paced: Vec<_> = (0..)
            .zip(members)
            .map(|(index, member)| {
                let (sent, answered) = (Cell::new(0), Cell::new(0));
                let in_flight = self.in_flight as u64;
                Rc::new(Paced { member: Rc::clone(member), in_flight, schedule, index, sent, answered })
            })
            .collect();
        let receivers: Vec<_> = paced
            .iter()
            .map(|paced| {
                let (paced, tally) = (Rc::clone(paced), Rc::clone(tally));
                paced.member.client.set_deadline(deadline);
                monoio::spawn(async move {
                    let outcome = paced.receive(&tally).await;
                    paced.member.conclude(outcome, &tally);
                })
            })
            .collect();
        keep_pace(&schedule, &paced).await;
        for receiver in receivers {
            receiver.await;
        }
    }

    /// Has every connection that is not broken do the same until `deadline`, and waits for all.
    async fn each<F>(&self, deadline: Tick, tally: &Rc<Tally>, task: impl Fn(Rc<Member>) -> F)
    where
        F: Future<Output = Result<(), Fault>> + 'static,
    {
        let members = self.members.iter().filter(|member| !member.is_broken.get());
        let tasks = members.map(|member| {
            member.client.set_deadline(deadline);
            let (member, tally, work) = (Rc::clone(member), Rc::clone(tally), task(Rc::clone(member)));
            monoio::spawn(async move {
                let outcome = work.await;
                member.conclude(outcome, &tally);
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await;
        }
    }
}

impl Member {
    fn conclude(&self, outcome: Result<(), Fault>, tally: &Tally) {
        if let Err(fault) = outcome {
            self.is_broken.set(true);
            tally.fault(fault);
        }
    }
}

/// A connection's part in an open loop.
#[derive(Debug)]
struct Paced {
    member: Rc<Member>,
    in_flight: u64,
    schedule: Schedule,
    index: u64,
    sent: Cell<u64>,
    answered: Cell<u64>,
}

impl Paced {
    /// Sends what is due, as far as the window has room.
    fn send_due(&self, now: Instant) -> Result<(), Fault> {
        let due = self.schedule.share(self.schedule.count(now), self.index);
        let room = self.in_flight - (self.sent.get() - self.answered.get());
        let count = room.min(due.saturating_sub(self.sent.get()));
        if count > 0 {
            self.sent.set(self.sent.get() + count);
            self.member.client.send(usize::try_from(count).expect("a window lies in memory"))?;
        }
        Ok(())
    }

    /// Takes the answers to all messages of this connection.
    async fn receive(&self, tally: &Tally) -> Result<(), Fault> {
        let messages = self.schedule.share(self.schedule.messages(), self.index);
        while self.answered.get() < messages {
            let answered = self.member.client.answered().await?;
            let now = clock::now();
            if u64::from(answered) > self.sent.get() - self.answered.get() {
                return Err(Fault::Unasked);
            }
            for _ in 0..answered {
                let due = self.schedule.due(self.index, self.answered.get());
                tally.answered(1, now.saturating_duration_since(due));
                self.answered.set(self.answered.get() + 1);
            }
            self.send_due(now)?;
        }
        Ok(())
    }
}

/// Wakes at every step and has the connections send whose messages are due, until the last is.
async fn keep_pace(schedule: &Schedule, members: &[Rc<Paced>]) {
    // Without a descriptor for the timer nothing is sent, and every connection tells that it heard nothing.
    let Ok(steps) = Counted::ticks(schedule.step()) else { return };
    let mut done = 0;
    while done < schedule.messages() {
        let now = clock::now();
        let due = schedule.count(now);
        // A connection sends all that it owes at once, so once round is enough.
        for k in done..due.min(done + members.len() as u64) {
            let index = usize::try_from(k % members.len() as u64).expect("it is less than a length");
            let paced = &members[index];
            if paced.member.is_broken.get() {
                continue;
            }
            // A connection that is gone is met again, and counted, by the receive that waits.
            let _ = paced.send_due(now);
        }
        done = due;
        if steps.next().await.is_err() {
            return;
        }
    }
}
