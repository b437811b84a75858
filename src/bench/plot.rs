//! Latencies as a small picture: a bar for each power of two, or of more where they lie far apart.

use std::fmt;
use std::time::Duration;

use super::figures;
use super::report::time;
use super::tally::Tally;

/// The most bars there are, as long as steps by [`BASES`] can have it so.
const BARS_MAX: usize = 14;
/// By how much a bar's latencies exceed those of the bar before.
const BASES: [u32; 4] = [2, 4, 16, 256];
/// The longest bar in characters.
const WIDTH: usize = 40;
/// Blocks by eighths, of which the first is one eighth.
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// How many messages took how long.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    /// The longest latency of each bar, and how many messages are in it.
    bars: Vec<(Duration, u64)>,
}

impl Plot {
    /// The picture of what a run came to.
    pub(super) fn of(tally: &Tally) -> Self {
        let mut bars = Vec::new();
        for base in BASES {
            bars = tally.buckets(base);
            if bars.len() <= BARS_MAX {
                break;
            }
        }
        Self { bars }
    }
}

/// A line for each bar. The alternate form draws with eighths of blocks, the other with ASCII.
impl fmt::Display for Plot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum: u64 = self.bars.iter().map(|(_, count)| count).sum();
        let most = self.bars.iter().map(|(_, count)| *count).max().unwrap_or(0);
        for (up_to, count) in &self.bars {
            let share = 100.0 * figures::float(*count) / figures::float(sum.max(1));
            let bar = bar(*count, most, out.alternate());
            let line = format!("    {:>10}  {share:6.2} %  {bar}", time(figures::us(*up_to)));
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A bar that is [`WIDTH`] long for the most; whatever there is shows.
fn bar(count: u64, most: u64, in_blocks: bool) -> String {
    let steps = if in_blocks { EIGHTHS.len() } else { 1 };
    let longest = (WIDTH * steps) as u128;
    let length = (u128::from(count) * longest).div_ceil(u128::from(most.max(1)));
    let length = usize::try_from(length).expect("no bar is longer than the longest");
    if !in_blocks {
        return "#".repeat(length);
    }
    let mut bar = "█".repeat(length / steps);
    bar.extend((length % steps).checked_sub(1).map(|eighth| EIGHTHS[eighth]));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(latencies_ms: &[(u64, u32)]) -> Plot {
        let tally = Tally::new();
        for (latency, count) in latencies_ms {
            tally.answered(*count, Duration::from_millis(*latency));
        }
        Plot::of(&tally)
    }

    #[test]
    fn bars_are_in_proportion() {
        let text = plot(&[(1, 100), (3, 50), (50, 1)]).to_string();
        let lengths: Vec<usize> = text.lines().map(|line| line.matches('#').count()).collect();
        assert_eq!(lengths.iter().filter(|length| **length > 0).copied().collect::<Vec<_>>(), [40, 20, 1]);
        assert!(text.lines().next().unwrap().contains(" 66.23 %"), "{text}");
        assert!(text.is_ascii() || text.contains('µ'), "{text}");
    }

    #[test]
    fn blocks_show_eighths() {
        assert_eq!(bar(40, 40, true), "█".repeat(40));
        assert_eq!(bar(33, 320, true), "████▏");
        assert_eq!(bar(1, 1_000_000, true), "▏");
        assert_eq!(bar(0, 5, true), "");
    }

    #[test]
    fn latencies_far_apart_take_larger_steps() {
        assert!(plot(&[(1, 1), (200_000, 1)]).bars.len() <= BARS_MAX);
        assert!(plot(&[]).bars.len() <= 1);
    }
}
