//! Connections that are opened, verified and left, as many a second as the server takes.

use std::cell::Cell;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Door, Opened};
use super::fault::Fault;
use super::generator::Generator;
use super::tally::Tally;
use crate::net::clock;

/// How a connection is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// By the closing handshake, and by waiting for the server to end the connection.
    Handshake,
    /// By a reset as soon as the opening handshake is verified: the cost is the opening's alone, as far as can be.
    Reset,
}

/// Opens and leaves connections until `duration` has passed, so many at a time.
///
/// A connection counts as a message once it has been left; its latency is that of the opening. Where TLS is to be resumed,
/// the full handshake that each of those at a time may begin with gets a ticket and does not count.
pub(super) async fn run(
    generator: &Rc<Generator>,
    door: &Arc<Door>,
    (at_a_time, parting): (u32, Parting),
    duration: Duration,
    tally: &Rc<Tally>,
) {
    let end = clock::now() + duration;
    let next = Rc::new(Cell::new(0));
    let tasks = (0..at_a_time).map(|_| {
        let (generator, door) = (Rc::clone(generator), Arc::clone(door));
        let (tally, next) = (Rc::clone(tally), Rc::clone(&next));
        monoio::spawn(async move {
            if let Err(fault) = open_and_leave(&generator, &door, parting, end, &next, &tally).await {
                tally.fault(fault);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await;
    }
}

/// One after the other, until `end` or the first fault: where a connection fails, those that follow would too.
async fn open_and_leave(
    generator: &Rc<Generator>,
    door: &Door,
    parting: Parting,
    end: Instant,
    next: &Cell<u32>,
    tally: &Tally,
) -> Result<(), Fault> {
    let mut may_be_full = true;
    loop {
        let start = clock::now();
        if start >= end {
            return Ok(());
        }
        let index = next.replace(next.get().wrapping_add(1));
        let opened = Opened::open(generator, door, index).await.map_err(|fault| Fault::from(&fault))?;
        let latency = clock::now() - start;
        let is_first_of_resumed = door.is_resuming() && opened.is_full_handshake();
        if is_first_of_resumed && !mem::take(&mut may_be_full) {
            return Err(Fault::NotResumed);
        }
        match parting {
            Parting::Handshake => opened.leave().await?,
            Parting::Reset => opened.abort(),
        }
        if !is_first_of_resumed {
            tally.answered(1, latency);
        }
    }
}
