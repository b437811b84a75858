//! How many connections may be open at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A count of open connections with a limit: of one port, or of the whole gateway.
///
/// It is the one thing that shards share. The kernel spreads connections over shards unevenly, so a share of the limit
/// for each would refuse some too early; it is touched when a connection is accepted and when it ends, never between.
#[derive(Debug)]
pub struct Admission {
    active: AtomicU32,
    max: u32,
}

impl Admission {
    /// Admits `max` connections at once.
    pub fn new(max: u32) -> Arc<Self> {
        Arc::new(Self { active: AtomicU32::new(0), max })
    }

    /// Admits one more connection; `false` at the limit. Whoever was admitted leaves once.
    pub fn enter(&self) -> bool {
        // Nothing is published along with the count, so it needs no order.
        let entered = self.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |active| {
            (active < self.max).then_some(active + 1)
        });
        entered.is_ok()
    }

    /// Takes back what [`Self::enter`] gave.
    pub fn leave(&self) {
        let before = self.active.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "more connections left than were admitted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_reached_exactly_and_given_back() {
        let admission = Admission::new(2);
        assert!(admission.enter());
        assert!(admission.enter());
        assert!(!admission.enter());
        admission.leave();
        assert!(admission.enter());
        assert!(!admission.enter());
    }
}
