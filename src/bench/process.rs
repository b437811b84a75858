//! The server's process, seen from outside: processor time, memory, descriptors.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The processes that make up a server, in `/proc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pids: Vec<u32>,
}

/// How much memory a server has, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Resident, pages of files included.
    pub rss_bytes: u64,
    /// Resident and its own: heap and stacks.
    pub anonymous_bytes: u64,
}

impl Server {
    /// The server that these processes are; `None` where there are none.
    pub fn new(pids: &[u32]) -> Option<Self> {
        (!pids.is_empty()).then(|| Self { pids: pids.to_vec() })
    }

    /// The processor time of all its threads, to the nanosecond. A thread that ends takes its time with it.
    ///
    /// # Errors
    /// Where a process is gone.
    pub fn cpu(&self) -> io::Result<Duration> {
        let mut sum = 0;
        for pid in &self.pids {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                // A thread may end between listing and reading.
                let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
                sum += first_number(&text).ok_or(io::ErrorKind::InvalidData)?;
            }
        }
        Ok(Duration::from_nanos(sum))
    }

    /// Its memory now.
    ///
    /// # Errors
    /// Where a process is gone.
    pub fn memory(&self) -> io::Result<Memory> {
        let mut memory = Memory::default();
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let kib = |key| {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                line.and_then(first_number).ok_or(io::ErrorKind::InvalidData)
            };
            memory.rss_bytes += kib("VmRSS:")? * 1024;
            memory.anonymous_bytes += kib("RssAnon:")? * 1024;
        }
        Ok(memory)
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// Where a process is gone or belongs to somebody else.
    pub fn descriptors(&self) -> io::Result<usize> {
        let count = |pid| fs::read_dir(PathBuf::from(format!("/proc/{pid}/fd"))).map(Iterator::count);
        self.pids.iter().map(count).sum()
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this_process() -> Server {
        Server::new(&[std::process::id()]).unwrap()
    }

    #[test]
    fn work_shows_in_the_processor_time() {
        let before = this_process().cpu().unwrap();
        let mut sum = 0_u64;
        while this_process().cpu().unwrap() < before + Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
    }

    #[test]
    fn an_open_file_shows_in_the_descriptors_and_pages_in_the_memory() {
        let memory = this_process().memory().unwrap();
        assert!(memory.anonymous_bytes > 0 && memory.rss_bytes > memory.anonymous_bytes);
        assert!(this_process().descriptors().unwrap() >= 3);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let nobody = Server::new(&[u32::MAX]).unwrap();
        assert!(nobody.cpu().is_err() && nobody.memory().is_err() && nobody.descriptors().is_err());
        assert_eq!(Server::new(&[]), None);
    }
}
