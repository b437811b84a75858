//! Deadlines on a coarse clock: one sweep for all connections of a shard.
//!
//! A connection's deadline is four bytes in a table that the sweep reads through; a timer of the runtime for each
//! would cost over a kilobyte. Time is counted in ticks of [`TICK`], so a deadline passes up to one tick late.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

use super::clock;

/// The length of a tick.
pub const TICK: Duration = Duration::from_millis(100);
/// Ticks in a second.
pub const TICKS_PER_S: Tick = 10;
/// A deadline that never passes.
pub const NEVER: Tick = Tick::MAX;

/// How far one sweep moves the clock at most. A shard that was held up for longer (a process stopped, a virtual machine
/// paused) could serve nobody meanwhile, so the rest of that time is not held against anybody's deadline.
const STEP_MAX: Tick = TICKS_PER_S;

/// Ticks since the shard started, without those it was held up for; a shard's clock stops after 13 years.
pub type Tick = u32;

/// The deadlines of one shard.
#[derive(Debug)]
pub struct Timers {
    origin: Instant,
    now: Cell<Tick>,
    /// Ticks that are not counted, see [`STEP_MAX`].
    held_up: Cell<Tick>,
    slots: RefCell<Slots>,
}

/// Deadlines lie side by side, apart from the wakers, so that a sweep over thousands reads a few kilobytes.
#[derive(Debug, Default)]
struct Slots {
    deadlines: Vec<Tick>,
    wakers: Vec<Option<Waker>>,
    free: Vec<u32>,
}

/// What leads to the clock of a shard.
///
/// A connection's deadline is reached by way of its port, to which it has a reference anyway: another to the clock would
/// be eight bytes for each.
pub trait Clocked {
    /// The clock.
    fn timers(&self) -> &Rc<Timers>;
}

impl Clocked for Rc<Timers> {
    fn timers(&self) -> &Rc<Timers> {
        self
    }
}

/// One deadline; freed when dropped.
#[derive(Debug)]
pub struct Timer<C: Clocked = Rc<Timers>> {
    clock: C,
    slot: u32,
}

impl Timers {
    /// A clock that begins now.
    pub fn new() -> Rc<Self> {
        // Tick 0 is never shown, so that it can stand for "has not happened".
        let origin = clock::now().checked_sub(TICK).unwrap_or_else(clock::now);
        let timers = Self { origin, now: Cell::new(1), held_up: Cell::new(0), slots: RefCell::default() };
        Rc::new(timers)
    }

    /// The time as of the last sweep.
    pub fn now(&self) -> Tick {
        self.now.get()
    }

    /// When the clock began: exact times are told from here.
    pub fn origin(&self) -> Instant {
        self.origin
    }

    /// The first tick by which `wait` ticks have wholly passed.
    pub fn after(&self, wait: Tick) -> Tick {
        // One more, as the present tick may be nearly over.
        self.now().saturating_add(wait).saturating_add(1)
    }

    /// Sets the clock and wakes every task whose deadline has passed.
    pub fn sweep(&self, time: Instant) {
        let elapsed = time.saturating_duration_since(self.origin).as_millis() / TICK.as_millis();
        let elapsed = Tick::try_from(elapsed).unwrap_or(NEVER - 1).max(1);
        let latest = self.now() + STEP_MAX;
        let now = (elapsed - self.held_up.get()).min(latest);
        self.held_up.set(elapsed - now);
        self.now.set(now);
        let mut slots = self.slots.borrow_mut();
        let Slots { deadlines, wakers, .. } = &mut *slots;
        for (index, deadline) in deadlines.iter().enumerate() {
            if *deadline <= now
                && let Some(waker) = wakers[index].take()
            {
                waker.wake();
            }
        }
    }

    /// Lets every deadline pass now: something changed that whoever waits must hear of.
    pub fn expire_all(&self) {
        let mut slots = self.slots.borrow_mut();
        slots.deadlines.fill(0);
        for waker in &mut slots.wakers {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    /// A new deadline that never passes.
    pub fn timer(self: &Rc<Self>) -> Timer {
        Timer::new(Rc::clone(self))
    }

    fn take_slot(&self) -> u32 {
        let mut slots = self.slots.borrow_mut();
        match slots.free.pop() {
            Some(slot) => {
                // `expire_all` lets those pass, too, that nobody has.
                slots.deadlines[slot as usize] = NEVER;
                slot
            }
            None => {
                slots.deadlines.push(NEVER);
                slots.wakers.push(None);
                u32::try_from(slots.deadlines.len() - 1).expect("a process has fewer than 2^32 descriptors")
            }
        }
    }
}

impl<C: Clocked> Timer<C> {
    /// A new deadline that never passes.
    pub fn new(clock: C) -> Self {
        let slot = clock.timers().take_slot();
        Self { clock, slot }
    }

    /// What leads to the clock.
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// Moves the deadline.
    pub fn set(&self, deadline: Tick) {
        self.timers().slots.borrow_mut().deadlines[self.slot as usize] = deadline;
    }

    /// The deadline.
    pub fn deadline(&self) -> Tick {
        self.timers().slots.borrow().deadlines[self.slot as usize]
    }

    /// Whether the deadline has passed.
    pub fn is_due(&self) -> bool {
        self.deadline() <= self.timers().now()
    }

    /// The clock that this deadline is on.
    pub fn timers(&self) -> &Rc<Timers> {
        self.clock.timers()
    }

    /// Runs `future` until it is ready or the deadline has passed, which is `None`.
    pub fn race<F: Future>(&self, future: F) -> Race<'_, F, C> {
        Race { future, timer: self }
    }
}

pin_project! {
    /// A future under a deadline, see [`Timer::race`].
    pub struct Race<'t, F, C: Clocked> {
        #[pin]
        future: F,
        timer: &'t Timer<C>,
    }
}

impl<F: Future, C: Clocked> Future for Race<'_, F, C> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(Some(output));
        }
        let timers = this.timer.timers();
        let mut slots = timers.slots.borrow_mut();
        let slot = this.timer.slot as usize;
        if slots.deadlines[slot] <= timers.now() {
            return Poll::Ready(None);
        }
        match &mut slots.wakers[slot] {
            Some(waker) if waker.will_wake(context.waker()) => {}
            waker => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl<C: Clocked> Drop for Timer<C> {
    fn drop(&mut self) {
        let slot = self.slot as usize;
        let waker = {
            let mut slots = self.clock.timers().slots.borrow_mut();
            slots.deadlines[slot] = NEVER;
            slots.free.push(self.slot);
            slots.wakers[slot].take()
        };
        // Dropped outside the borrow: the last reference to a task may drop the task.
        drop(waker);
    }
}

/// How many ticks a timeout takes, rounded up.
pub fn ticks(timeout: Duration) -> Tick {
    Tick::try_from(timeout.as_millis().div_ceil(TICK.as_millis())).unwrap_or(NEVER - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timers: &Timers, tick: Tick) -> Instant {
        timers.origin() + TICK * tick
    }

    #[test]
    fn a_deadline_is_due_from_its_tick_on() {
        let timers = Timers::new();
        let timer = timers.timer();
        timer.set(5);
        timers.sweep(at(&timers, 4));
        assert!(!timer.is_due());
        timers.sweep(at(&timers, 5));
        assert!(timer.is_due());
    }

    #[test]
    fn time_that_the_shard_was_held_up_is_not_counted() {
        let timers = Timers::new();
        timers.sweep(at(&timers, 50));
        assert_eq!(timers.now(), 1 + STEP_MAX);
        timers.sweep(at(&timers, 51));
        assert_eq!(timers.now(), 2 + STEP_MAX);
    }

    #[test]
    fn a_slot_that_is_used_again_has_no_deadline_left() {
        let timers = Timers::new();
        drop(timers.timer());
        timers.expire_all();
        assert_eq!(timers.timer().deadline(), NEVER);
    }

    #[test]
    fn slots_are_used_again() {
        let timers = Timers::new();
        let first = timers.timer();
        let second = timers.timer();
        drop(first);
        let third = timers.timer();
        assert_eq!(timers.slots.borrow().deadlines.len(), 2);
        assert_eq!(third.deadline(), NEVER);
        drop((second, third));
    }

    #[test]
    fn timeouts_are_rounded_up() {
        assert_eq!(ticks(Duration::from_millis(1)), 1);
        assert_eq!(ticks(TICK), 1);
        assert_eq!(ticks(TICK + Duration::from_millis(1)), 2);
        assert_eq!(ticks(Duration::MAX), NEVER - 1);
    }
}
