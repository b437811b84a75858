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
    /// Below nothing is what was taken in advance, by [`Self::charge`].
    frames: i64,
    bytes: i64,
    filled: Tick,
}

impl Allowance {
    /// A full bucket.
    pub fn new(rates: &Rates, now: Tick) -> Self {
        let per_s = u64::from(rates.ticks_per_s);
        Self {
            frames: signed(u64::from(rates.frames_per_s) * per_s),
            bytes: signed(rates.bytes_per_s.saturating_mul(per_s)),
            filled: now,
        }
    }

    /// Takes what came in one read out of the bucket: frames whose header was seen, and bytes as they arrived.
    ///
    /// # Errors
    /// [`Violation::RateExceeded`] where that is more than it holds.
    pub fn take(&mut self, rates: &Rates, frames: u32, bytes: usize, now: Tick) -> Result<(), Violation> {
        let mut after = *self;
        if after.charge(rates, frames, bytes, now) > 0 {
            return Err(Violation::RateExceeded);
        }
        *self = after;
        Ok(())
    }

    /// Takes what came in one read, be it more than there is, and returns after how many ticks it is paid for: so long nothing
    /// more is to be read.
    pub fn charge(&mut self, rates: &Rates, frames: u32, bytes: usize, now: Tick) -> Tick {
        let elapsed = now.saturating_sub(self.filled);
        let per_s = rates.ticks_per_s;
        self.filled = now;
        let frames =
            charge_one(&mut self.frames, u64::from(rates.frames_per_s), u64::from(frames), (elapsed, per_s));
        let bytes = charge_one(&mut self.bytes, rates.bytes_per_s, bytes as u64, (elapsed, per_s));
        frames.max(bytes)
    }
}

/// Charges one of both, and returns after how many ticks that is paid for.
fn charge_one(level: &mut i64, rate: u64, amount: u64, (elapsed, per_s): (Tick, Tick)) -> Tick {
    if rate == 0 {
        return 0;
    }
    let full = signed(rate.saturating_mul(u64::from(per_s)));
    let filled = level.saturating_add(signed(rate.saturating_mul(u64::from(elapsed)))).min(full);
    *level = filled.saturating_sub(signed(amount.saturating_mul(u64::from(per_s))));
    let owed = if *level < 0 { level.unsigned_abs() } else { 0 };
    Tick::try_from(owed.div_ceil(rate)).unwrap_or(Tick::MAX)
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
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

    #[test]
    fn what_is_taken_in_advance_is_paid_for_in_time() {
        let rates = Rates { frames_per_s: 0, bytes_per_s: 1000, ticks_per_s: 10 };
        let mut allowance = Allowance::new(&rates, 0);
        assert_eq!(allowance.charge(&rates, 1, 1000, 0), 0);
        assert_eq!(allowance.charge(&rates, 1, 150, 0), 2);
        assert_eq!(allowance.charge(&rates, 0, 0, 1), 1);
        assert_eq!(allowance.charge(&rates, 0, 0, 2), 0);
        assert_eq!(allowance.charge(&rates, 1, 64_000, 3), 639);
        // Over a long time it is the rate, whatever comes at once.
        let mut now = 3 + 639;
        let (mut taken, began) = (0, now);
        for size in [1, 64_000, 500, 3_000, 17, 100_000] {
            now += allowance.charge(&rates, 1, size, now);
            taken += size;
        }
        let allowed = usize::try_from(now - began).unwrap() * 100;
        assert!((taken - 1000..=taken + 600).contains(&allowed), "{allowed} of {taken}");
    }
}
