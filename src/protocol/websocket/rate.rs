//! How many frames and bytes a connection may send in a second.

use super::keepalive::Tick;
use super::violation::Violation;

/// The rates that an operator allows; zero switches one off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Frames in a second, control frames too: a flood of pings is a flood.
    pub frames_per_s: u32,
    /// Bytes in a second, headers too.
    pub bytes_per_s: u64,
    /// Ticks in a second.
    pub ticks_per_s: Tick,
}

/// What a connection has left: a bucket that holds one second's worth and fills evenly.
///
/// Levels are kept in frames and bytes times ticks, so that no fraction is lost however often it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    frames: u64,
    bytes: u64,
    filled: Tick,
}

impl Allowance {
    /// A full bucket.
    pub fn new(rates: &Rates, now: Tick) -> Self {
        let per_s = u64::from(rates.ticks_per_s);
        Self {
            frames: u64::from(rates.frames_per_s) * per_s,
            bytes: rates.bytes_per_s.saturating_mul(per_s),
            filled: now,
        }
    }

    /// Takes what came in one read out of the bucket: frames whose header was seen, and bytes as they arrived.
    ///
    /// # Errors
    /// [`Violation::RateExceeded`] where that is more than it holds.
    pub fn take(&mut self, rates: &Rates, frames: u32, bytes: usize, now: Tick) -> Result<(), Violation> {
        let elapsed = u64::from(now.saturating_sub(self.filled));
        let per_s = u64::from(rates.ticks_per_s);
        self.filled = now;
        take_from(&mut self.frames, u64::from(rates.frames_per_s), u64::from(frames), elapsed, per_s)?;
        take_from(&mut self.bytes, rates.bytes_per_s, bytes as u64, elapsed, per_s)
    }
}

fn take_from(level: &mut u64, rate: u64, amount: u64, elapsed: u64, per_s: u64) -> Result<(), Violation> {
    if rate == 0 {
        return Ok(());
    }
    let full = rate.saturating_mul(per_s);
    let filled = level.saturating_add(rate.saturating_mul(elapsed)).min(full);
    *level = filled.checked_sub(amount.saturating_mul(per_s)).ok_or(Violation::RateExceeded)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_what_is_allowed_and_no_more() {
        let rates = Rates { frames_per_s: 10, bytes_per_s: 0, ticks_per_s: 10 };
        let mut allowance = Allowance::new(&rates, 0);
        assert_eq!(allowance.take(&rates, 10, 9999, 0), Ok(()));
        assert_eq!(allowance.take(&rates, 1, 0, 0), Err(Violation::RateExceeded));
        assert_eq!(allowance.take(&rates, 5, 0, 5), Ok(()));
        assert_eq!(allowance.take(&rates, 11, 0, 1000), Err(Violation::RateExceeded));
    }

    #[test]
    fn a_slow_rate_fills_however_often_it_is_asked() {
        let rates = Rates { frames_per_s: 5, bytes_per_s: 0, ticks_per_s: 10 };
        let mut allowance = Allowance::new(&rates, 0);
        for now in 0..1000 {
            assert_eq!(allowance.take(&rates, now % 2, 0, now), Ok(()));
        }
    }

    #[test]
    fn bytes_are_limited_apart_from_frames() {
        let rates = Rates { frames_per_s: 0, bytes_per_s: 1000, ticks_per_s: 10 };
        let mut allowance = Allowance::new(&rates, 0);
        assert_eq!(allowance.take(&rates, 500, 1000, 0), Ok(()));
        assert_eq!(allowance.take(&rates, 1, 101, 1), Err(Violation::RateExceeded));
    }
}
