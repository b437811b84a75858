//! How much memory the process takes, held against what it may.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::{MemoryState, ProcessUse};
use crate::net::heap;

/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// With how many looks free memory is given back, while it is short.
const TRIM_EVERY: u64 = 4;
/// From how many percent of the ceiling on each level begins.
const LEVELS: [u64; 3] = [80, 90, 95];
/// How many percent less than that it has to be until the level is left.
const SLACK: u64 = 5;

/// Keeps the level up to date, as long as there is a ceiling.
pub(super) async fn watch(state: Arc<MemoryState>) {
    let Some(ceiling) = state.ceiling() else { return };
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 0_u64.. {
        looks.tick().await;
        if state.level() > 0 && count.is_multiple_of(TRIM_EVERY) {
            // Those who have left may have left only holes.
            heap::give_back();
        }
        let Some(mut size) = ProcessUse::resident_memory() else { continue };
        let before = state.level();
        if level(size, ceiling, before) > before {
            // What is free already may be enough.
            heap::give_back();
            size = ProcessUse::resident_memory().unwrap_or(size);
        }
        let now = level(size, ceiling, before);
        if now == before {
            continue;
        }
        state.set_level(now);
        let (resident_mib, ceiling_mib) = (size >> 20, ceiling >> 20);
        if now > before {
            tracing::warn!(level = now, resident_mib, ceiling_mib, "memory is short: {}", meaning(now));
        } else {
            tracing::info!(level = now, resident_mib, ceiling_mib, "memory is less short: {}", meaning(now));
        }
    }
}

/// The level that this size comes to, after one that it was.
fn level(size: u64, ceiling: u64, before: u8) -> u8 {
    let percent = size.saturating_mul(100) / ceiling;
    let is_reached = |(index, from): (usize, &u64)| {
        let from = if index < usize::from(before) { from - SLACK } else { *from };
        percent >= from
    };
    let reached = LEVELS.iter().enumerate().take_while(|level| is_reached(*level)).count();
    u8::try_from(reached).expect("there are three levels")
}

const fn meaning(level: u8) -> &'static str {
    match level {
        MemoryState::NO_BUFFERS => "busy connections get no buffers of their own",
        MemoryState::NOBODY_NEW => "nobody new is let in",
        MemoryState::QUIET_LEAVE => "clients that are quiet are asked to leave",
        _ => "all is as usual",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_reached_one_by_one_and_left_with_some_slack() {
        for (percent, before, expected) in [
            (0, 0, 0),
            (79, 0, 0),
            (80, 0, 1),
            (90, 0, 2),
            (95, 0, 3),
            (200, 0, 3),
            (76, 1, 1),
            (74, 1, 0),
            (89, 3, 2),
            (90, 3, 3),
            (84, 3, 1),
            (74, 3, 0),
        ] {
            assert_eq!(level(percent, 100, before), expected, "{percent} % after level {before}");
        }
    }
}
