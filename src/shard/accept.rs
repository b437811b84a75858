//! Accepting on one listener: every connection in the queue, then a wait for the next.

use std::cell::RefCell;
use std::fs::File;
use std::rc::Rc;

use super::connection;
use super::table::Table;
use crate::metrics::{AcceptErrorReason, Direction, End, HandshakeResult};
use crate::net::accept::{Accepted, Acceptor};
use crate::net::stream::Stream;
use crate::net::timers::{NEVER, Tick, Timer};
use crate::net::tls::OVERLOAD_ALERT;
use crate::protocol::http::refusal::Refusal;
use crate::service::{Life, Phase, retry_after_s};

/// How many connections are taken before those that are open get their turn.
const BATCH: u32 = 64;

/// How long those whose TCP handshake is under way have to get into the queue once nobody else can: longer than it
/// takes around the world and back.
const SETTLE_TICKS: Tick = 3;

/// A descriptor kept in reserve: given up for the moment that it takes to refuse a connection for which there is no
/// other. Without it such connections would stay in the queue, unanswered, and wake the shard without end.
#[derive(Debug)]
pub(super) struct Reserve {
    descriptor: RefCell<Option<File>>,
}

impl Reserve {
    pub(super) fn new() -> Self {
        let reserve = Self { descriptor: RefCell::new(None) };
        reserve.refill();
        reserve
    }

    /// Opens the descriptor again where it is gone and one is to be had: another thread may have been quicker.
    fn refill(&self) {
        let mut descriptor = self.descriptor.borrow_mut();
        if descriptor.is_none() {
            *descriptor = File::open("/dev/null").ok();
        }
    }

    /// Gives the descriptor up; `false` where it is gone already.
    fn give_up(&self) -> bool {
        self.descriptor.borrow_mut().take().is_some()
    }
}

/// Accepts until the shard drains, then takes what is still in the queue and closes the listener.
pub(super) async fn accept(table: Rc<Table>, acceptor: Acceptor, reserve: Rc<Reserve>) {
    let resources = Rc::clone(&table.port().resources);
    let timer = resources.timers.timer();
    while resources.phase() == Phase::Serving {
        reserve.refill();
        match accept_batch(&table, &acceptor, &reserve, BATCH) {
            Pause::UntilNext => {
                if acceptor.wait(&timer).await.is_err() {
                    table.port().cells.accept_error(AcceptErrorReason::Other);
                    pause(&timer).await;
                }
                resources.give_way().await;
            }
            // Whatever is short now may be there again at the next tick. The queue is readable meanwhile, so waiting
            // for it would be no wait at all.
            Pause::UntilTick => pause(&timer).await,
        }
    }
    acceptor.refuse_new();
    // Each is answered with a 503 by the phase that the shard is in.
    let settled_at = resources.timers.now() + SETTLE_TICKS;
    loop {
        let is_empty = matches!(accept_batch(&table, &acceptor, &reserve, u32::MAX), Pause::UntilNext);
        // Where a descriptor is short the queue waits for a client to leave.
        let is_done = is_empty && resources.timers.now() >= settled_at;
        if is_done || resources.phase() == Phase::Cutting {
            break;
        }
        pause(&timer).await;
        reserve.refill();
    }
    drop(acceptor);
    resources.vacate();
}

/// When to come back to the queue.
enum Pause {
    UntilNext,
    UntilTick,
}

fn accept_batch(table: &Rc<Table>, acceptor: &Acceptor, reserve: &Reserve, batch: u32) -> Pause {
    let cells = &table.port().cells;
    for _ in 0..batch {
        match acceptor.accept_now() {
            Accepted::Stream(stream) => connection::begin(table, stream),
            Accepted::Nothing => break,
            Accepted::Aborted => cells.accept_error(AcceptErrorReason::Aborted),
            Accepted::NoDescriptor => {
                cells.accept_error(AcceptErrorReason::Descriptors);
                let is_refused = reserve.give_up() && {
                    let accepted = acceptor.accept_now();
                    let is_stream = matches!(accepted, Accepted::Stream(_));
                    if let Accepted::Stream(stream) = accepted {
                        refuse_at_once(table, stream);
                    }
                    is_stream
                };
                reserve.refill();
                if !is_refused {
                    return Pause::UntilTick;
                }
            }
            Accepted::NoMemory => {
                cells.accept_error(AcceptErrorReason::Memory);
                return Pause::UntilTick;
            }
            Accepted::Failed(_) => {
                cells.accept_error(AcceptErrorReason::Other);
                return Pause::UntilTick;
            }
        }
    }
    Pause::UntilNext
}

/// Answers a connection on the reserved descriptor and closes it.
fn refuse_at_once(table: &Rc<Table>, stream: Stream) {
    let port = table.port();
    let mut life = Life::begin(port);
    let _ = stream.receive_now(&mut port.resources.scratch.lend());
    let refusal = Refusal::ConnectionLimit { retry_after_s: retry_after_s() };
    let mut answer = Vec::new();
    port.cells.handshake(HandshakeResult::from(refusal));
    if port.tls.is_some() {
        answer.extend_from_slice(&OVERLOAD_ALERT);
    } else {
        refusal.write(&mut answer);
        port.cells.http_request(None, refusal.status());
    }
    port.cells.wire_bytes(Direction::Sent).add(answer.len() as u64);
    let _ = stream.send_now(&answer);
    stream.finish();
    stream.close_now();
    life.end(End::Limit);
}

/// Waits for the next tick, or for the shard to move on.
async fn pause(timer: &Timer) {
    timer.set(timer.timers().now() + 1);
    timer.race(std::future::pending::<()>()).await;
    timer.set(NEVER);
}
