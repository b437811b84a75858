//! The threads that wait for disks, and how a shard asks them.
//!
//! A job goes to whichever thread is free, over a queue of the process; what came of it goes back to the shard that asked,
//! over one of its own, with a wake. Lookups are refused while many wait. What is read of files that are being sent is not:
//! there is one such job for a response at most, so connections bound them.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread;

use bytes::Bytes;

use super::folder::{Answer, Folder, Rest, Wanted};
use crate::net::wake::{Waker, Wakeups, wake_pair};

/// How many threads wait for disks: one more than one, so that a disk that hangs does not hold up another at once.
pub const READERS: usize = 2;

/// How many jobs may wait before lookups are refused: a second's work of a disk that seeks.
const WAITING_MAX: usize = 1_024;

/// What the threads are asked.
enum Task {
    Look(Arc<Folder>, Wanted),
    Read(Arc<Folder>, Rest),
}

impl Task {
    fn run(self) -> Outcome {
        match self {
            Self::Look(folder, wanted) => Outcome::Looked(folder.look(&wanted)),
            Self::Read(folder, rest) => Outcome::Read(rest.read().inspect_err(|error| folder.log(error))),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// A lookup.
    Looked(Answer),
    /// A chunk, and what is left behind it.
    Read(io::Result<(Bytes, Option<Rest>)>),
}

struct Job {
    task: Task,
    slot: usize,
    back: Sender<(usize, Outcome)>,
    waker: Arc<Waker>,
}

/// The threads; they end when this and every [`Desk`] are gone.
#[derive(Clone)]
pub struct Readers {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

impl Readers {
    /// Starts them.
    ///
    /// # Errors
    /// Where a thread cannot be made.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let waiting = Arc::new(AtomicUsize::new(0));
        for index in 0..READERS {
            let (queue, waiting) = (Arc::clone(&queue), Arc::clone(&waiting));
            thread::Builder::new().name(format!("files-{index}")).spawn(move || read(&queue, &waiting))?;
        }
        Ok(Self { jobs, waiting })
    }

    /// The desk of one shard, to be bound on its thread.
    ///
    /// # Errors
    /// Where the descriptor table is full.
    pub fn desk(&self) -> io::Result<DeskSetup> {
        let (waker, wakeups) = wake_pair()?;
        let (back, done) = channel();
        Ok(DeskSetup { readers: self.clone(), waker: Arc::new(waker), wakeups, back, done })
    }
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Readers").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// Does jobs until nobody can ask any more.
fn read(queue: &Mutex<Receiver<Job>>, waiting: &AtomicUsize) {
    loop {
        // Whoever waits for a job holds the lock, and the others wait for that: it comes to the same.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { task, slot, back, waker }) = job else { return };
        waiting.fetch_sub(1, Ordering::Relaxed);
        let is_lookup = matches!(task, Task::Look(..));
        // Somebody waits for the outcome, whatever it is; and the next job is somebody else's.
        let outcome = catch_unwind(AssertUnwindSafe(|| task.run())).unwrap_or_else(|_| {
            if is_lookup {
                Outcome::Looked(Answer::Broken)
            } else {
                Outcome::Read(Err(io::ErrorKind::Other.into()))
            }
        });
        // A shard that has ended needs no answer.
        if back.send((slot, outcome)).is_ok() {
            waker.wake();
        }
    }
}

/// A desk that is on its way to its shard.
#[derive(Debug)]
pub struct DeskSetup {
    readers: Readers,
    waker: Arc<Waker>,
    wakeups: Wakeups,
    back: Sender<(usize, Outcome)>,
    done: Receiver<(usize, Outcome)>,
}

/// Where a shard has files looked up and read.
pub struct Desk {
    readers: Readers,
    waker: Arc<Waker>,
    back: Sender<(usize, Outcome)>,
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

/// A place for what comes of one job.
enum Slot {
    Free,
    Waiting(Option<std::task::Waker>),
    Done(Outcome),
    /// Nobody waits any more; it is free once the job is done.
    Left,
}

/// Too many jobs wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl DeskSetup {
    /// Binds the desk to the runtime of the calling thread, and begins to hand out what comes back.
    ///
    /// # Errors
    /// Where epoll refuses a descriptor.
    pub fn bind(self) -> io::Result<Rc<Desk>> {
        let Self { readers, waker, wakeups, back, done } = self;
        let wakeups = wakeups.bind()?;
        let desk = Rc::new(Desk { readers, waker, back, slots: RefCell::default() });
        let handed = Rc::clone(&desk);
        drop(monoio::spawn(async move {
            while wakeups.next().await.is_ok() {
                for (index, outcome) in done.try_iter() {
                    handed.finish(index, outcome);
                }
            }
        }));
        Ok(desk)
    }
}

impl Desk {
    /// Has a path looked up.
    ///
    /// # Errors
    /// [`Full`].
    pub fn look(self: &Rc<Self>, folder: &Arc<Folder>, wanted: Wanted) -> Result<Ticket, Full> {
        if self.readers.waiting.load(Ordering::Relaxed) >= WAITING_MAX {
            return Err(Full);
        }
        Ok(self.ask(Task::Look(Arc::clone(folder), wanted)))
    }

    /// Has one more chunk read.
    pub fn read(self: &Rc<Self>, folder: &Arc<Folder>, rest: Rest) -> Ticket {
        self.ask(Task::Read(Arc::clone(folder), rest))
    }

    fn ask(self: &Rc<Self>, task: Task) -> Ticket {
        let slot = {
            let Slots { slots, free } = &mut *self.slots.borrow_mut();
            let slot = free.pop().unwrap_or_else(|| {
                slots.push(Slot::Free);
                slots.len() - 1
            });
            slots[slot] = Slot::Waiting(None);
            slot
        };
        self.readers.waiting.fetch_add(1, Ordering::Relaxed);
        let job = Job { task, slot, back: self.back.clone(), waker: Arc::clone(&self.waker) };
        self.readers.jobs.send(job).expect("readers go on for as long as somebody may ask");
        Ticket { desk: Rc::clone(self), slot }
    }

    fn finish(&self, slot: usize, outcome: Outcome) {
        let Slots { slots, free } = &mut *self.slots.borrow_mut();
        match std::mem::replace(&mut slots[slot], Slot::Done(outcome)) {
            Slot::Waiting(waker) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Slot::Left => {
                slots[slot] = Slot::Free;
                free.push(slot);
            }
            Slot::Free | Slot::Done(_) => unreachable!("a job is done once"),
        }
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Desk").field("readers", &self.readers).finish_non_exhaustive()
    }
}

/// Waits for what comes of a job. Dropped, it leaves the job to itself.
pub struct Ticket {
    desk: Rc<Desk>,
    slot: usize,
}

impl Future for Ticket {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let slots = &mut self.desk.slots.borrow_mut().slots;
        let slot = &mut slots[self.slot];
        match std::mem::replace(slot, Slot::Left) {
            // Left behind as done with, which dropping this makes free.
            Slot::Done(outcome) => {
                *slot = Slot::Free;
                Poll::Ready(outcome)
            }
            Slot::Waiting(_) => {
                *slot = Slot::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            Slot::Free | Slot::Left => unreachable!("a ticket is good for one outcome"),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Slots { slots, free } = &mut *self.desk.slots.borrow_mut();
        slots[self.slot] = match std::mem::replace(&mut slots[self.slot], Slot::Left) {
            Slot::Waiting(_) | Slot::Left => Slot::Left,
            Slot::Done(_) | Slot::Free => {
                free.push(self.slot);
                Slot::Free
            }
        };
    }
}
