//! Relays and states for tests of what stands on them.

use std::sync::Arc;

use crate::config::upstream::{Balance, HeaderEdits, Relay, Upstream, UpstreamAddress, UpstreamLimits};
use crate::metrics::UpstreamState;

/// A relay that takes upstreams in turn, checks none and sets no limit.
pub(crate) fn relay(addresses: impl IntoIterator<Item = UpstreamAddress>) -> Relay {
    let upstreams =
        addresses.into_iter().map(|address| Upstream { name: address.to_string(), address, is_tls: false });
    Relay {
        upstreams: upstreams.collect(),
        tls: None,
        balance: Balance::RoundRobin,
        health: None,
        limits: UpstreamLimits::DEFAULT,
        sources: Vec::new(),
        upstream_path: None,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    }
}

/// States for so many upstreams.
pub(crate) fn states(count: usize) -> Vec<Arc<UpstreamState>> {
    (0..count).map(|_| Arc::default()).collect()
}
