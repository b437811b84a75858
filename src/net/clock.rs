//! The clock: the one place that reads it.

use std::time::{Duration, Instant, SystemTime};

/// The monotonic time.
#[allow(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// The time of day, which jumps when somebody sets it: for telling, never for measuring.
#[allow(clippy::disallowed_methods, reason = "this is the clock")]
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// The monotonic time in milliseconds, counted from the same moment on all threads.
pub fn monotonic_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec * 1_000 + time.tv_nsec / 1_000_000).unwrap_or(0)
}

/// The processor time that the calling thread has used.
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
