//! Building a shard's runtime: on io_uring, or on epoll where a ring cannot be had.

use std::fmt;
use std::fs;
use std::future::Future;
use std::io;

use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

use super::limits;
pub use crate::metrics::Driver;

/// Entries of a shard's submission queue. A batch larger than this costs one more system call.
const RING_ENTRIES: u32 = 1024;
/// Events that one wait on epoll returns.
const EPOLL_EVENTS: u32 = 1024;

/// Why a ring cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRing {
    /// The administrator has switched io_uring off.
    Sysctl {
        /// The value of `kernel.io_uring_disabled`: 1 or 2.
        value: u8,
    },
    /// A seccomp filter refuses the system call.
    Seccomp,
    /// The kernel does not have io_uring, or a seccomp filter says so.
    Missing {
        /// Whether a seccomp filter is in force.
        filtered: bool,
    },
    /// The limit on locked memory is too small for a ring.
    Memlock {
        /// The limit in bytes.
        limit: u64,
    },
    /// Something else: the error of `io_uring_setup(2)`.
    Other(String),
}

impl fmt::Display for NoRing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { value } => write!(
                formatter,
                "the sysctl kernel.io_uring_disabled is {value}; set it to 0, or to 1 and add this user to \
                 kernel.io_uring_group"
            ),
            Self::Seccomp => formatter.write_str(
                "a seccomp filter refuses io_uring_setup (EPERM), as container runtimes do by default; use a seccomp \
                 profile that permits io_uring_setup, io_uring_enter and io_uring_register",
            ),
            Self::Missing { filtered: true } => formatter.write_str(
                "io_uring_setup is answered with ENOSYS and a seccomp filter is in force; use a seccomp profile that \
                 permits io_uring_setup, io_uring_enter and io_uring_register",
            ),
            Self::Missing { filtered: false } => {
                formatter.write_str("this kernel has no io_uring (ENOSYS); it takes Linux 5.6 or later")
            }
            Self::Memlock { limit } => write!(
                formatter,
                "the limit on locked memory, {limit} bytes, is too small for a ring (ENOMEM); raise it with \
                 LimitMEMLOCK= or ulimit -l"
            ),
            Self::Other(error) => write!(formatter, "io_uring_setup failed: {error}"),
        }
    }
}

/// A runtime for the calling thread.
pub enum ShardRuntime {
    /// On a ring.
    IoUring(Runtime<IoUringDriver>),
    /// On epoll.
    Epoll(Runtime<LegacyDriver>),
}

impl ShardRuntime {
    /// Builds a runtime on a ring.
    ///
    /// # Errors
    /// Why there is none to be had, as far as that can be told.
    pub fn io_uring() -> Result<Self, NoRing> {
        let mut ring = io_uring::IoUring::builder();
        // One thread submits, and completions are run when it enters the kernel anyway: no interrupts between.
        ring.setup_coop_taskrun().setup_single_issuer();
        let modern =
            RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES).uring_builder(ring).build();
        match modern {
            Ok(runtime) => Ok(Self::IoUring(runtime)),
            // Kernels before 6.0 know neither flag and answer EINVAL.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                let plain = RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES).build();
                plain.map(Self::IoUring).map_err(|error| explain(&error))
            }
            Err(error) => Err(explain(&error)),
        }
    }

    /// Builds a runtime on epoll.
    ///
    /// # Errors
    /// Where the descriptor table is full.
    pub fn epoll() -> io::Result<Self> {
        RuntimeBuilder::<LegacyDriver>::new().with_entries(EPOLL_EVENTS).build().map(Self::Epoll)
    }

    /// What this runtime waits with.
    pub fn driver(&self) -> Driver {
        match self {
            Self::IoUring(_) => Driver::IoUring,
            Self::Epoll(_) => Driver::Epoll,
        }
    }

    /// Runs `future`, and every task that it spawns, until the future is done.
    pub fn run<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

/// Tells the reasons for a failed `io_uring_setup(2)` apart.
fn explain(error: &io::Error) -> NoRing {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => match io_uring_disabled() {
            Some(value @ 1..) => NoRing::Sysctl { value },
            _ => NoRing::Seccomp,
        },
        Some(Errno::NOSYS) => NoRing::Missing { filtered: is_filtered() },
        Some(Errno::NOMEM) => match limits::memlock() {
            Some(limit) => NoRing::Memlock { limit },
            None => NoRing::Other(error.to_string()),
        },
        _ => NoRing::Other(error.to_string()),
    }
}

/// The value of `kernel.io_uring_disabled`, which Linux has since 6.6.
fn io_uring_disabled() -> Option<u8> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Whether a seccomp filter is in force for this process.
fn is_filtered() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}
