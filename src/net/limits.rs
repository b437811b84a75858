//! The limits that the kernel sets for this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on descriptors to the hard one and returns it; `u64::MAX` where there is none.
pub fn raise_descriptors() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        return current.unwrap_or(u64::MAX);
    }
    maximum.unwrap_or(u64::MAX)
}

/// How much memory the process may lock, in bytes; `None` where there is no limit.
pub fn memlock() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}
