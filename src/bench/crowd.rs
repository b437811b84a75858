//! Connections under the same load: opened together, driven again and again, left together.

use std::cell::{Cell, RefCell};
use std::mem;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Client, Door, Line, OpenFault};
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
/// While others are being opened, those that are open are looked after so often: a server may ping them by then.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Those that no fault has ended.
    clients: Vec<Client>,
    in_flight: usize,
    pattern: Pattern,
}

impl Crowd {
    /// Opens the connections of these indices.
    ///
    /// # Errors
    /// The first that could not be opened.
    pub(super) async fn open(
        generator: &Rc<Generator>,
        door: &Arc<Door>,
        shape: Shape,
        connections: Range<u32>,
    ) -> Result<Self, OpenFault> {
        let pattern = Pattern::new(&shape, door.deflate.is_some(), || generator.random());
        let next = Rc::new(Cell::new(connections.start));
        let (at_a_time, end) = (AT_A_TIME.min(connections.end - connections.start), connections.end);
        let tasks = (0..at_a_time).map(|_| {
            let (generator, door, pattern) = (Rc::clone(generator), Arc::clone(door), pattern.clone());
            let next = Rc::clone(&next);
            monoio::spawn(async move {
                let mut clients: Vec<Client> = Vec::new();
                let mut looked_at = clock::now();
                while next.get() < end {
                    let index = next.replace(next.get() + 1);
                    clients.push(Client::open(&generator, &door, (&shape, &pattern), index).await?);
                    let now = clock::now();
                    if now - looked_at >= LOOK_INTERVAL {
                        looked_at = now;
                        look_after(&clients).map_err(OpenFault::Answer)?;
                    }
                }
                Ok(clients)
            })
        });
        let mut clients = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            clients.append(&mut task.await?);
        }
        let generator = Rc::clone(generator);
        Ok(Self { generator, clients, in_flight: shape.in_flight as usize, pattern })
    }

    /// Sends messages and checks their answers, until all that was sent is answered.
    pub(super) async fn run(&mut self, pace: Pace, span: Span, tally: &Rc<Tally>) {
        let deadline = self.generator.after(span.duration + span.grace);
        let start = clock::now();
        let before = self.pattern.answer_bytes();
        match pace {
            Pace::Answers => self.closed_loop(self.in_flight, start + span.duration, deadline, tally).await,
            Pace::PerSecond(rate) => self.open_loop(start, rate, span.duration, deadline, tally).await,
        }
        tally.received(self.pattern.answer_bytes() - before);
    }

    /// Has every connection send one message and wait for its echo.
    pub(super) async fn one_message_each(&mut self, grace: Duration, tally: &Rc<Tally>) {
        self.closed_loop(1, clock::now(), self.generator.after(grace), tally).await;
    }

    /// Keeps the connections for `duration`, answering pings.
    pub(super) async fn hold(&mut self, duration: Duration, tally: &Rc<Tally>) {
        let deadline = self.generator.after(duration);
        let stay = async |client: &mut Client, _: &Tally| {
            match client.answered().await {
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
        let clients = Rc::new(RefCell::new(self.clients));
        let tasks = (0..AT_A_TIME).map(|_| {
            let (clients, tally) = (Rc::clone(&clients), Rc::clone(tally));
            monoio::spawn(async move {
                loop {
                    let Some(client) = clients.borrow_mut().pop() else { return };
                    if let Err(fault) = client.leave().await {
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
    async fn closed_loop(&mut self, in_flight: usize, end: Instant, deadline: Tick, tally: &Rc<Tally>) {
        let window_size = self.pattern.window_size();
        let send_and_wait = async move |client: &mut Client, tally: &Tally| match Line::new(window_size) {
            Some(line) if !client.is_tls() => in_turn_in_ring(client, line, in_flight, end, tally).await,
            _ => in_turn(client, in_flight, end, tally).await,
        };
        self.each(deadline, tally, send_and_wait).await;
    }

    /// Every connection sends what is due, and takes the answers.
    async fn open_loop(
        &mut self,
        start: Instant,
        rate: u64,
        duration: Duration,
        deadline: Tick,
        tally: &Rc<Tally>,
    ) {
        if self.clients.is_empty() {
            return;
        }
        let schedule = Schedule::new(start, rate, duration, self.clients.len() as u64);
        let paced: Vec<_> = (0..)
            .zip(mem::take(&mut self.clients))
            .map(|(index, client)| {
                let (sent, answered) = (Cell::new(0), Cell::new(0));
                let (in_flight, is_broken) = (self.in_flight as u64, Cell::new(false));
                Rc::new(Paced { client, is_broken, in_flight, schedule, index, sent, answered })
            })
            .collect();
        let receivers: Vec<_> = paced
            .iter()
            .map(|paced| {
                let (paced, tally) = (Rc::clone(paced), Rc::clone(tally));
                paced.client.set_deadline(deadline);
                monoio::spawn(async move {
                    if let Err(fault) = paced.receive(&tally).await {
                        paced.is_broken.set(true);
                        tally.fault(fault);
                    }
                })
            })
            .collect();
        keep_pace(&schedule, &paced).await;
        for receiver in receivers {
            receiver.await;
        }
        let paced = paced.into_iter().map(|paced| Rc::into_inner(paced).expect("whoever received is done"));
        self.clients.extend(paced.filter(|paced| !paced.is_broken.get()).map(|paced| paced.client));
    }

    /// Has every connection do the same until `deadline`, and waits for all; those that break are given up.
    async fn each<F>(&mut self, deadline: Tick, tally: &Rc<Tally>, work: F)
    where
        F: AsyncFn(&mut Client, &Tally) -> Result<(), Fault> + 'static,
    {
        let work = Rc::new(work);
        let tasks = mem::take(&mut self.clients).into_iter().map(|mut client| {
            client.set_deadline(deadline);
            let (work, tally) = (Rc::clone(&work), Rc::clone(tally));
            monoio::spawn(async move {
                match work(&mut client, &tally).await {
                    Ok(()) => Some(client),
                    Err(fault) => {
                        tally.fault(fault);
                        None
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            self.clients.extend(task.await);
        }
    }
}

/// Answers the pings of connections that have sent nothing yet.
fn look_after(clients: &[Client]) -> Result<(), Fault> {
    clients.iter().try_for_each(|client| match client.answered_now()? {
        None => Ok(()),
        Some(_) => Err(Fault::Unasked),
    })
}

/// Sends a window and waits for its answers, until `end`.
async fn in_turn(client: &Client, in_flight: usize, end: Instant, tally: &Tally) -> Result<(), Fault> {
    let mut turn = Turn::new(in_flight, end);
    client.send(in_flight)?;
    loop {
        match turn.answered(client.answered().await?, tally)? {
            Then::Wait => {}
            Then::Send => client.send(in_flight)?,
            Then::End => return Ok(()),
        }
    }
}

/// The same through the ring.
async fn in_turn_in_ring(
    client: &mut Client,
    mut line: Line,
    in_flight: usize,
    end: Instant,
    tally: &Tally,
) -> Result<(), Fault> {
    let mut turn = Turn::new(in_flight, end);
    client.send_in_ring(in_flight, &mut line).await?;
    loop {
        match turn.answered(client.answered_in_ring(&mut line).await?, tally)? {
            Then::Wait => {}
            Then::Send => client.send_in_ring(in_flight, &mut line).await?,
            Then::End => return Ok(()),
        }
    }
}

/// A closed loop's state on one connection.
struct Turn {
    in_flight: usize,
    missing: usize,
    sent_at: Instant,
    end: Instant,
}

/// What follows upon answers.
enum Then {
    /// More answers.
    Wait,
    /// The next window.
    Send,
    /// Nothing: the time is over.
    End,
}

impl Turn {
    /// A window that leaves now.
    fn new(in_flight: usize, end: Instant) -> Self {
        Self { in_flight, missing: in_flight, sent_at: clock::now(), end }
    }

    /// Counts answers; where they complete the window, the next one leaves now.
    #[inline]
    fn answered(&mut self, answered: u32, tally: &Tally) -> Result<Then, Fault> {
        let now = clock::now();
        self.missing = self.missing.checked_sub(answered as usize).ok_or(Fault::Unasked)?;
        tally.answered(answered, now - self.sent_at);
        if self.missing > 0 {
            return Ok(Then::Wait);
        }
        if now >= self.end {
            return Ok(Then::End);
        }
        (self.missing, self.sent_at) = (self.in_flight, now);
        Ok(Then::Send)
    }
}

/// A connection's part in an open loop.
#[derive(Debug)]
struct Paced {
    client: Client,
    /// True from its first fault on.
    is_broken: Cell<bool>,
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
            self.client.send(usize::try_from(count).expect("a window lies in memory"))?;
        }
        Ok(())
    }

    /// Takes the answers to all messages of this connection.
    async fn receive(&self, tally: &Tally) -> Result<(), Fault> {
        let messages = self.schedule.share(self.schedule.messages(), self.index);
        while self.answered.get() < messages {
            let answered = self.client.answered().await?;
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
            if paced.is_broken.get() {
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
