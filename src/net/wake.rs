//! What wakes a parked shard: a message from another thread, or the next tick of its clock.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::descriptor::Descriptor;

/// The end that another thread holds.
#[derive(Debug)]
pub struct Waker {
    eventfd: OwnedFd,
}

/// The end that a shard waits on.
#[derive(Debug)]
pub struct Wakeups {
    eventfd: OwnedFd,
}

/// Makes both ends. They may be made on one thread and used on two.
///
/// # Errors
/// Where the descriptor table is full.
pub fn wake_pair() -> io::Result<(Waker, Wakeups)> {
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let waker = Waker { eventfd: eventfd.try_clone()? };
    Ok((waker, Wakeups { eventfd }))
}

impl Waker {
    /// Wakes the shard. Wakes that it has not yet seen are one.
    pub fn wake(&self) {
        // The only error is a counter that would overflow, and then the shard is being woken already.
        let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
    }
}

/// A descriptor that counts: each wait takes the whole count.
#[derive(Debug)]
pub struct Counted {
    descriptor: Descriptor,
}

impl Wakeups {
    /// Binds this end to the runtime of the calling thread.
    ///
    /// # Errors
    /// Where epoll refuses the descriptor.
    pub fn bind(self) -> io::Result<Counted> {
        Descriptor::new(self.eventfd).map(|descriptor| Counted { descriptor })
    }
}

impl Counted {
    /// A clock that ticks every `period`.
    ///
    /// # Errors
    /// Where the descriptor table is full.
    pub fn ticks(period: Duration) -> io::Result<Self> {
        let timerfd =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let every = Timespec {
            tv_sec: i64::try_from(period.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: period.subsec_nanos().into(),
        };
        timerfd_settime(
            &timerfd,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: every, it_value: every },
        )?;
        Descriptor::new(timerfd).map(|descriptor| Self { descriptor })
    }

    /// Waits for the next wake or tick and returns how many there were.
    ///
    /// # Errors
    /// Where the descriptor cannot be polled any more.
    pub async fn next(&self) -> io::Result<u64> {
        loop {
            self.descriptor.readable().await?;
            let mut count = [0; 8];
            match rustix::io::read(self.descriptor.as_fd(), &mut count) {
                Ok(_) => return Ok(u64::from_ne_bytes(count)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
