//! Every limit, with its reason, its default and the range it may be set in.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::file::{Bounds, Unit};
use crate::protocol::http::FIELD_COUNT_MAX;

/// The bounds that one connection lives within.
///
/// `[limits]` sets them for the gateway, `[port.limits]` for a port, `[route.limits]` for a route; the narrower wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From accept to the end of the request head, whatever arrives meanwhile: a client that sends a byte a second
    /// must not hold a connection.
    pub handshake_timeout: Duration,
    /// Bytes of a request head: it is held in memory before anything is known about who sends it.
    pub request_head_size_max: usize,
    /// Fields of a request head: each costs a place in the table that the head is parsed into.
    pub request_head_count_max: usize,
    /// Open connections of one port; `None` is as many as the gateway has descriptors for, all ports together.
    pub connections_max: Option<u32>,
    /// Open connections of one address at one port; `None` for as many as there are.
    pub connections_per_address_max: Option<NonZeroU32>,
    /// Opening handshakes of one address at one port in a second, with a second's worth at once.
    pub handshakes_per_address_per_s: Option<NonZeroU32>,
    /// How many leading bits of an IPv6 address stand for somebody: who has a network has all of its addresses.
    pub ipv6_prefix: u8,
    /// Bytes of a message, all of its fragments together: a message may be assembled in memory, so what clients can make
    /// a port hold is this times its `connections_max`.
    pub message_size_max: usize,
    /// Bytes of a frame's payload, judged by its header before anything is allocated.
    pub frame_size_max: usize,
    /// Messages that one client may send in a second: each costs work, however small.
    pub messages_per_s: Option<NonZeroU32>,
    /// Bytes that one client may send in a second.
    pub bytes_per_s: Option<NonZeroU64>,
    /// Silence after which a client is pinged: it keeps NAT bindings alive and finds clients that are gone. `None`
    /// sends no pings.
    pub ping_interval: Option<Duration>,
    /// From a ping to the pong that answers it: beyond it the client is taken for gone.
    pub pong_timeout: Duration,
    /// Time without a message after which a connection is closed, pings notwithstanding; `None` never closes one.
    pub idle_timeout: Option<Duration>,
    /// Time that a client may take to read what is sent to it after one read, as a whole: beyond it the client is slow,
    /// and cut.
    pub write_timeout: Duration,
    /// From the first Close to the end of the connection: somebody who never answers must not hold it.
    pub close_timeout: Duration,
    /// Bytes of the body of a request that is passed on: whoever sends more is refused, by its framing or when it has come.
    pub request_body_size_max: u64,
    /// How long a client may send nothing of a body that it has begun.
    pub body_timeout: Duration,
    /// How long a connection on which HTTP was answered may wait for its next request.
    pub keep_alive_timeout: Duration,
    /// Bytes that may wait for one client: what is published to a client that does not read must not fill the memory.
    pub send_queue_size_max: usize,
}

impl Limits {
    /// The limits of a gateway whose configuration sets none.
    pub const DEFAULT: Self = Self {
        handshake_timeout: Duration::from_secs(10),
        request_head_size_max: 16 << 10,
        request_head_count_max: 100,
        connections_max: None,
        connections_per_address_max: None,
        handshakes_per_address_per_s: None,
        ipv6_prefix: 64,
        message_size_max: 16 << 20,
        frame_size_max: 16 << 20,
        messages_per_s: None,
        bytes_per_s: None,
        ping_interval: Some(Duration::from_secs(30)),
        pong_timeout: Duration::from_secs(10),
        idle_timeout: None,
        write_timeout: Duration::from_secs(30),
        close_timeout: Duration::from_secs(5),
        request_body_size_max: 128 << 20,
        body_timeout: Duration::from_secs(30),
        keep_alive_timeout: Duration::from_secs(60),
        send_queue_size_max: 1 << 20,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The limits that one table of the file sets, to be laid over those of the table around it.
#[derive(Clone, Debug, Default)]
pub(super) struct Overrides(Vec<(&'static Limit, u64)>);

impl Overrides {
    /// Sets `limit` to `value`, which was checked against the limit's range.
    pub(super) fn push(&mut self, limit: &'static Limit, value: u64) {
        debug_assert!(limit.bounds.allow(value), "{} = {value} was not checked", limit.key);
        self.0.push((limit, value));
    }

    /// `limits` with these laid over.
    pub(super) fn apply(&self, mut limits: Limits) -> Limits {
        for (limit, value) in &self.0 {
            (limit.set)(&mut limits, *value);
        }
        limits
    }

    /// Each limit that is set, and its value as a number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static Limit, u64)> {
        self.0.iter().copied()
    }
}

/// One limit as a configuration names it.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) key: &'static str,
    pub(super) bounds: Bounds,
    set: fn(&mut Limits, u64),
    get: fn(&Limits) -> u64,
}

impl Limit {
    /// The limit's value in `limits`, in its unit.
    pub(super) fn of(&self, limits: &Limits) -> u64 {
        (self.get)(limits)
    }
}

pub(super) const TIMEOUT: Bounds = Bounds {
    unit: Unit::Milliseconds,
    min: 1,
    max: 86_400_000,
    zero: None,
    reason: "It is given in milliseconds, and one day is the longest.",
};
pub(super) const TIMEOUT_OR_OFF: Bounds = Bounds { zero: Some("off"), ..TIMEOUT };
/// One gibibyte: a larger message would not fit beside others in the memory of an edge machine.
const SIZE_MAX: u64 = 1 << 30;

/// The limits that `[route.limits]` cannot set, because they are at work before a route is known.
const BEFORE_ROUTE_COUNT: usize = 7;

/// Every limit: first those at work before a route is known, then those that a route may set too.
pub(super) const TABLE: &[Limit] = &[
    Limit {
        key: "handshake_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.handshake_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.handshake_timeout),
    },
    Limit {
        key: "request_head_size_max",
        bounds: Bounds {
            unit: Unit::Bytes,
            min: 256,
            max: 1 << 20,
            zero: None,
            reason: "A browser's opening handshake takes some 500 bytes; no honest request head takes 1MiB.",
        },
        set: |limits, value| limits.request_head_size_max = size(value),
        get: |limits| limits.request_head_size_max as u64,
    },
    Limit {
        key: "request_head_count_max",
        bounds: Bounds {
            unit: Unit::Count,
            min: 5,
            max: FIELD_COUNT_MAX as u64,
            zero: None,
            reason: "An opening handshake has at least 5 fields, and the table they are parsed into holds 256.",
        },
        set: |limits, value| limits.request_head_count_max = size(value),
        get: |limits| limits.request_head_count_max as u64,
    },
    Limit {
        key: "connections_max",
        bounds: Bounds {
            unit: Unit::Count,
            min: 1,
            max: 10_000_000,
            zero: Some("what the descriptor limit allows"),
            reason: "No process can open more than ten million descriptors with the kernel's usual settings.",
        },
        set: |limits, value| {
            limits.connections_max =
                (value != 0).then(|| u32::try_from(value).expect("the range ends at ten million"));
        },
        get: |limits| limits.connections_max.map_or(0, u64::from),
    },
    Limit {
        key: "connections_per_address_max",
        bounds: Bounds {
            unit: Unit::Count,
            min: 1,
            max: 10_000_000,
            zero: Some("off"),
            reason: "No process can open more than ten million descriptors with the kernel's usual settings.",
        },
        set: |limits, value| limits.connections_per_address_max = rate(value),
        get: |limits| limits.connections_per_address_max.map_or(0, |max| u64::from(max.get())),
    },
    Limit {
        key: "handshakes_per_address_per_s",
        bounds: Bounds {
            unit: Unit::Count,
            min: 1,
            max: 1_000,
            zero: Some("off"),
            reason: "Whoever may do more than a thousand in a second needs no limit.",
        },
        set: |limits, value| limits.handshakes_per_address_per_s = rate(value),
        get: |limits| limits.handshakes_per_address_per_s.map_or(0, |rate| u64::from(rate.get())),
    },
    Limit {
        key: "ipv6_prefix",
        bounds: Bounds {
            unit: Unit::Count,
            min: 16,
            max: 128,
            zero: None,
            reason: "It counts the leading bits of an address that stand for one client; providers hand out 64 or fewer.",
        },
        set: |limits, value| limits.ipv6_prefix = u8::try_from(value).expect("the range ends at 128"),
        get: |limits| limits.ipv6_prefix.into(),
    },
    Limit {
        key: "message_size_max",
        bounds: Bounds {
            unit: Unit::Bytes,
            min: 125,
            max: SIZE_MAX,
            zero: None,
            reason: "Even a control frame may carry 125 bytes, and a message has to fit in memory.",
        },
        set: |limits, value| limits.message_size_max = size(value),
        get: |limits| limits.message_size_max as u64,
    },
    Limit {
        key: "frame_size_max",
        bounds: Bounds {
            unit: Unit::Bytes,
            min: 125,
            max: SIZE_MAX,
            zero: None,
            reason: "A control frame may carry 125 bytes, and a frame has to fit in memory.",
        },
        set: |limits, value| limits.frame_size_max = size(value),
        get: |limits| limits.frame_size_max as u64,
    },
    Limit {
        key: "messages_per_s",
        bounds: Bounds {
            unit: Unit::Count,
            min: 1,
            max: 1_000_000_000,
            zero: Some("off"),
            reason: "No machine handles a billion messages of one client in a second.",
        },
        set: |limits, value| {
            limits.messages_per_s =
                NonZeroU32::new(u32::try_from(value).expect("the range ends at a billion"));
        },
        get: |limits| limits.messages_per_s.map_or(0, |rate| u64::from(rate.get())),
    },
    Limit {
        key: "bytes_per_s",
        bounds: Bounds {
            unit: Unit::Bytes,
            min: 125,
            max: 1 << 40,
            zero: Some("off"),
            reason: "A control frame may carry 125 bytes, and no machine handles 1TiB of one client in a second.",
        },
        set: |limits, value| limits.bytes_per_s = NonZeroU64::new(value),
        get: |limits| limits.bytes_per_s.map_or(0, NonZeroU64::get),
    },
    Limit {
        key: "ping_interval_ms",
        bounds: TIMEOUT_OR_OFF,
        set: |limits, value| limits.ping_interval = optional_duration(value),
        get: |limits| limits.ping_interval.map_or(0, milliseconds),
    },
    Limit {
        key: "pong_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.pong_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.pong_timeout),
    },
    Limit {
        key: "idle_timeout_ms",
        bounds: TIMEOUT_OR_OFF,
        set: |limits, value| limits.idle_timeout = optional_duration(value),
        get: |limits| limits.idle_timeout.map_or(0, milliseconds),
    },
    Limit {
        key: "write_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.write_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.write_timeout),
    },
    Limit {
        key: "close_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.close_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.close_timeout),
    },
    Limit {
        key: "request_body_size_max",
        bounds: Bounds {
            unit: Unit::Bytes,
            min: 1,
            max: 1 << 50,
            zero: None,
            reason: "A body is passed on as it comes, so that its size costs no memory; 1PiB takes weeks.",
        },
        set: |limits, value| limits.request_body_size_max = value,
        get: |limits| limits.request_body_size_max,
    },
    Limit {
        key: "body_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.body_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.body_timeout),
    },
    Limit {
        key: "keep_alive_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.keep_alive_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.keep_alive_timeout),
    },
    Limit {
        key: "send_queue_size_max",
        bounds: Bounds {
            unit: Unit::Bytes,
            min: 1 << 10,
            max: SIZE_MAX,
            zero: None,
            reason: "A ping, a pong and a Close have to fit beside a small message.",
        },
        set: |limits, value| limits.send_queue_size_max = size(value),
        get: |limits| limits.send_queue_size_max as u64,
    },
];

/// The keys of `[limits]` and `[port.limits]`.
pub(super) const KEYS: &[&str] = &{
    let mut keys = [""; TABLE.len()];
    let mut index = 0;
    while index < TABLE.len() {
        keys[index] = TABLE[index].key;
        index += 1;
    }
    keys
};

/// The keys of `[route.limits]`.
pub(super) const ROUTE_KEYS: &[&str] = KEYS.split_at(BEFORE_ROUTE_COUNT).1;

fn size(value: u64) -> usize {
    usize::try_from(value).expect("the ranges of sizes end at one gibibyte")
}

fn rate(value: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(value).expect("the range ends at ten million"))
}

fn optional_duration(value: u64) -> Option<Duration> {
    (value != 0).then(|| Duration::from_millis(value))
}

/// As a timeout stands in the file.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("the ranges of timeouts end at one day")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_in_its_range() {
        for limit in TABLE {
            let value = limit.of(&Limits::DEFAULT);
            assert!(limit.bounds.allow(value), "{} = {value}", limit.key);
        }
    }

    #[test]
    fn each_limit_sets_what_it_gets_and_nothing_else() {
        for limit in TABLE {
            for value in [limit.bounds.min, limit.bounds.max].into_iter().chain(limit.bounds.zero.map(|_| 0))
            {
                let mut overrides = Overrides::default();
                overrides.push(limit, value);
                let limits = overrides.apply(Limits::DEFAULT);
                assert_eq!(limit.of(&limits), value, "{}", limit.key);
                for other in TABLE.iter().filter(|other| other.key != limit.key) {
                    assert_eq!(other.of(&limits), other.of(&Limits::DEFAULT), "{}", limit.key);
                }
            }
        }
    }

    #[test]
    fn what_works_before_a_route_is_known_is_no_key_of_a_route() {
        assert_eq!(ROUTE_KEYS.len(), TABLE.len() - BEFORE_ROUTE_COUNT);
        for key in [
            "handshake_timeout_ms",
            "request_head_size_max",
            "request_head_count_max",
            "connections_max",
            "connections_per_address_max",
            "handshakes_per_address_per_s",
            "ipv6_prefix",
        ] {
            assert!(KEYS.contains(&key) && !ROUTE_KEYS.contains(&key), "{key}");
        }
    }
}
