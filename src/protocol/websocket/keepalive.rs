//! When a quiet connection is pinged, and when it is given up, on a coarse clock that is handed in.

use std::num::NonZero;

/// A point on a coarse clock: ticks since an origin that the caller keeps, the first being 1.
pub type Tick = u32;

/// How long silence may last, in ticks; zero switches a rule off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Silence after which a Ping is sent.
    pub ping_after: Tick,
    /// How long its Pong, or any other byte, may take.
    pub pong_within: Tick,
    /// Time without a message after which the connection is closed.
    pub idle_after: Tick,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this tick; [`Tick::MAX`] is never.
    At(Tick),
    /// Send a Ping, and note that one is out.
    Ping,
    /// The Ping went unanswered: the peer is gone.
    PongTimeout,
    /// No message came for too long: close with 1001.
    Idle,
}

/// What has been heard of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// When the last byte came.
    pub heard: Tick,
    /// When the last message came, or the connection opened.
    pub message: Tick,
    /// When the Ping was sent since which nothing has been heard. Clocks begin at tick 1, which saves four bytes here.
    pub unanswered: Option<NonZero<Tick>>,
    /// True exactly while the Pong of a Ping of ours has not come.
    pub awaits_pong: bool,
}

impl Keepalive {
    /// A connection that has just opened.
    pub const fn new(now: Tick) -> Self {
        Self { heard: now, message: now, unanswered: None, awaits_pong: false }
    }

    /// Takes note that bytes came: whatever they are, the peer is there.
    #[inline]
    pub fn hear(&mut self, now: Tick) {
        self.heard = now;
        self.unanswered = None;
    }

    /// Takes note that a Ping is sent.
    pub fn ping(&mut self, now: Tick) {
        self.unanswered = NonZero::new(now);
        self.awaits_pong = true;
    }

    /// What is due at `now`.
    pub fn due(&self, patience: &Patience, now: Tick) -> Due {
        let idle_at = after(self.message, patience.idle_after);
        if now >= idle_at {
            return Due::Idle;
        }
        let ping_at = after(self.heard, patience.ping_after);
        let next = match self.unanswered {
            Some(pinged) => {
                let give_up_at = after(pinged.get(), patience.pong_within);
                if now >= give_up_at {
                    return Due::PongTimeout;
                }
                give_up_at
            }
            None if now >= ping_at => return Due::Ping,
            None => ping_at,
        };
        Due::At(next.min(idle_at))
    }
}

/// `wait` ticks after `start`, or never where `wait` is zero.
const fn after(start: Tick, wait: Tick) -> Tick {
    if wait == 0 { Tick::MAX } else { start.saturating_add(wait) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { ping_after: 300, pong_within: 100, idle_after: 0 };

    #[test]
    fn the_first_ping_follows_one_quiet_interval() {
        let keepalive = Keepalive::new(1000);
        assert_eq!(keepalive.due(&PATIENCE, 1299), Due::At(1300));
        assert_eq!(keepalive.due(&PATIENCE, 1300), Due::Ping);
    }

    #[test]
    fn an_unanswered_ping_ends_the_connection() {
        let mut keepalive = Keepalive::new(1000);
        keepalive.ping(1300);
        assert_eq!(keepalive.due(&PATIENCE, 1300), Due::At(1400));
        assert_eq!(keepalive.due(&PATIENCE, 1400), Due::PongTimeout);
    }

    #[test]
    fn any_byte_after_the_ping_counts_as_an_answer_be_it_in_the_same_tick() {
        let mut keepalive = Keepalive::new(1000);
        keepalive.ping(1300);
        keepalive.hear(1300);
        assert_eq!(keepalive.due(&PATIENCE, 1400), Due::At(1600));
        assert_eq!(keepalive.due(&PATIENCE, 1600), Due::Ping);
    }

    #[test]
    fn pongs_keep_no_idle_connection_open() {
        let patience = Patience { idle_after: 500, ..PATIENCE };
        let mut keepalive = Keepalive::new(1000);
        keepalive.ping(1300);
        keepalive.hear(1450);
        assert_eq!(keepalive.due(&patience, 1499), Due::At(1500));
        assert_eq!(keepalive.due(&patience, 1500), Due::Idle);
    }

    #[test]
    fn what_is_switched_off_is_never_due() {
        let keepalive = Keepalive::new(7);
        assert_eq!(keepalive.due(&Patience::default(), Tick::MAX - 1), Due::At(Tick::MAX));
    }
}
