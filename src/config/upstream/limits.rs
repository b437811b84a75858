//! The limits of `[route.upstream_limits]`: how much upstreams are asked, and how patiently.

use std::num::NonZeroU32;
use std::time::Duration;

use super::super::Service;
use super::super::file::{Bounds, Unit};
use super::super::limits::{TIMEOUT, TIMEOUT_OR_OFF, milliseconds};

/// How much upstreams are asked, and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// From the first packet to a connection: beyond it the next upstream is tried.
    pub connect_timeout: Duration,
    /// From the connection to the head of the response to an opening handshake.
    pub handshake_timeout: Duration,
    /// Connections that one upstream has at a time, those that are being made included.
    pub connections_max: Option<NonZeroU32>,
    /// Connections that are being made to one upstream at a time, so that a wave of returning clients does not fell it.
    pub connecting_max: Option<NonZeroU32>,
    /// How long an upstream that has become healthy is given before it gets its full share; zero for no time.
    pub slow_start: Duration,
    /// Failures in a row, of clients' connections, after which an upstream is passed over; `None` for never.
    pub eject_after: Option<NonZeroU32>,
    /// How long it is passed over, until one connection is tried again.
    pub eject_for: Duration,
    /// How long an upstream may say nothing to a request that it has, be it before its response or within.
    pub response_timeout: Duration,
    /// Connections without a request that a shard keeps to one upstream, for the next ones.
    pub idle_connections_max: u32,
    /// How long such a connection is kept. Servers close theirs, too, many after five seconds: a request that meets that
    /// is lost, or has to be sent again.
    pub idle_connection_timeout: Duration,
}

impl UpstreamLimits {
    /// Those of a route that sets none.
    pub const DEFAULT: Self = Self {
        connect_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(10),
        connections_max: None,
        connecting_max: None,
        slow_start: Duration::ZERO,
        eject_after: NonZeroU32::new(3),
        eject_for: Duration::from_secs(10),
        response_timeout: Duration::from_secs(60),
        idle_connections_max: 64,
        idle_connection_timeout: Duration::from_secs(4),
    };
}

/// One of these limits as a configuration names it.
#[derive(Debug)]
pub(in crate::config) struct UpstreamLimit {
    pub(in crate::config) key: &'static str,
    pub(in crate::config) bounds: Bounds,
    /// Takes a value within the bounds.
    pub(in crate::config) set: fn(&mut UpstreamLimits, u64),
    pub(in crate::config) get: fn(&UpstreamLimits) -> u64,
}

impl UpstreamLimit {
    /// Whether the limit means something to this service, which relays.
    pub(in crate::config) fn is_for(&self, service: Service) -> bool {
        match self.key {
            // A byte stream begins without a handshake.
            "handshake_timeout_ms" => service != Service::Tcp,
            "response_timeout_ms" | "idle_connections_max" | "idle_connection_timeout_ms" => {
                service == Service::Http
            }
            _ => true,
        }
    }
}

const CONNECTIONS: Bounds = Bounds {
    unit: Unit::Count,
    min: 1,
    max: 10_000_000,
    zero: Some("off"),
    reason: "No process can open more than ten million descriptors with the kernel's usual settings.",
};

/// Every limit, in the order of the documentation.
pub(in crate::config) const TABLE: &[UpstreamLimit] = &[
    UpstreamLimit {
        key: "connect_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.connect_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.connect_timeout),
    },
    UpstreamLimit {
        key: "handshake_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.handshake_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.handshake_timeout),
    },
    UpstreamLimit {
        key: "connections_max",
        bounds: CONNECTIONS,
        set: |limits, value| limits.connections_max = count(value),
        get: |limits| number(limits.connections_max),
    },
    UpstreamLimit {
        key: "connecting_max",
        bounds: CONNECTIONS,
        set: |limits, value| limits.connecting_max = count(value),
        get: |limits| number(limits.connecting_max),
    },
    UpstreamLimit {
        key: "slow_start_ms",
        bounds: TIMEOUT_OR_OFF,
        set: |limits, value| limits.slow_start = Duration::from_millis(value),
        get: |limits| milliseconds(limits.slow_start),
    },
    UpstreamLimit {
        key: "eject_after",
        bounds: Bounds {
            unit: Unit::Count,
            min: 1,
            max: 1000,
            zero: Some("off"),
            reason: "An upstream that failed a thousand times in a row should have been passed over before.",
        },
        set: |limits, value| limits.eject_after = count(value),
        get: |limits| number(limits.eject_after),
    },
    UpstreamLimit {
        key: "eject_for_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.eject_for = Duration::from_millis(value),
        get: |limits| milliseconds(limits.eject_for),
    },
    UpstreamLimit {
        key: "response_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.response_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.response_timeout),
    },
    UpstreamLimit {
        key: "idle_connections_max",
        bounds: Bounds {
            max: 10_000,
            zero: Some("none"),
            reason: "Each takes a descriptor while nobody uses it.",
            ..CONNECTIONS
        },
        set: |limits, value| {
            limits.idle_connections_max = u32::try_from(value).expect("the range ends at ten thousand");
        },
        get: |limits| u64::from(limits.idle_connections_max),
    },
    UpstreamLimit {
        key: "idle_connection_timeout_ms",
        bounds: TIMEOUT,
        set: |limits, value| limits.idle_connection_timeout = Duration::from_millis(value),
        get: |limits| milliseconds(limits.idle_connection_timeout),
    },
];

/// The keys of `[route.upstream_limits]`.
pub(in crate::config) const KEYS: &[&str] = &{
    let mut keys = [""; TABLE.len()];
    let mut index = 0;
    while index < TABLE.len() {
        keys[index] = TABLE[index].key;
        index += 1;
    }
    keys
};

fn count(value: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(value).expect("the ranges of counts end at ten million"))
}

fn number(count: Option<NonZeroU32>) -> u64 {
    count.map_or(0, |count| u64::from(count.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_in_its_range() {
        for limit in TABLE {
            let value = (limit.get)(&UpstreamLimits::DEFAULT);
            assert!(limit.bounds.allow(value), "{} = {value}", limit.key);
        }
    }

    #[test]
    fn each_limit_sets_what_it_gets_and_nothing_else() {
        for limit in TABLE {
            for value in [limit.bounds.min, limit.bounds.max].into_iter().chain(limit.bounds.zero.map(|_| 0))
            {
                let mut limits = UpstreamLimits::DEFAULT;
                (limit.set)(&mut limits, value);
                assert_eq!((limit.get)(&limits), value, "{}", limit.key);
                for other in TABLE.iter().filter(|other| other.key != limit.key) {
                    let default = (other.get)(&UpstreamLimits::DEFAULT);
                    assert_eq!((other.get)(&limits), default, "{} by {}", other.key, limit.key);
                }
            }
        }
    }
}
