//! What the kernel says of this process: CPU time, memory and descriptors.
//!
//! Our own, because the collector of the `prometheus` crate prints whole CPU seconds, and lists a directory with an
//! entry for each descriptor at every scrape.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The process at one moment; a figure that cannot be had here is `None`, and its series absent.
#[derive(Clone, Copy, Debug)]
pub struct ProcessUse {
    /// CPU time of all threads, user and system, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Resident memory in bytes.
    pub resident_memory_bytes: Option<u64>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit on descriptors; `None` also where there is none.
    pub max_fds: Option<u64>,
}

impl ProcessUse {
    /// Asks the kernel. It costs a few system calls.
    pub fn read() -> Self {
        Self {
            cpu_ns: cpu_ns(),
            resident_memory_bytes: resident_memory_bytes(),
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::Nofile).current,
        }
    }
}

impl ProcessUse {
    /// Resident memory in bytes, alone.
    pub fn resident_memory() -> Option<u64> {
        resident_memory_bytes()
    }
}

fn cpu_ns() -> Option<u64> {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanoseconds = u64::try_from(time.tv_nsec).ok()?;
    Some(seconds * 1_000_000_000 + nanoseconds)
}

fn resident_memory_bytes() -> Option<u64> {
    // proc_pid_statm(5): the second number is the resident set in pages.
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_fds() -> Option<u64> {
    // Since Linux 6.2 the size of the directory is the number of descriptors, at the price of one system call.
    // Before, it is zero, and the entries have to be counted; the one that lists them is not the process's.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_has_fractions_and_grows_with_work() {
        let before = cpu_ns().expect("the kernel knows");
        let mut work = 0_u64;
        while cpu_ns().expect("the kernel knows") < before + 2_000_000 {
            work = std::hint::black_box(work.wrapping_add(1));
        }
        assert!(work > 0);
    }

    #[test]
    fn memory_and_descriptors_are_known() {
        let process = ProcessUse::read();
        let resident = process.resident_memory_bytes.expect("/proc is mounted");
        assert!(resident > 1 << 20, "{resident}");
        let files: Vec<_> = (0..64).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close descriptors meanwhile, but these 64 and the three standard ones stay.
        let open = open_fds().expect("/proc is mounted");
        assert!(open >= 64, "{open}");
        assert!(process.max_fds.is_none_or(|max| max >= open));
        drop(files);
    }
}
