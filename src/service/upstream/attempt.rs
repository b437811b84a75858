//! A client's connection to an upstream, as the upstream's books have it: an attempt at first, then a lease.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hash::client_network;
use super::{Address, Group, Tried, Upstream};
use crate::metrics::ConnectResult;

/// An attempt to get a client to an upstream: a connection that is being made, and counts as one.
///
/// It ends as one of three: [`Self::opened`], [`Self::failed`], or dropped, where the client left first or something of
/// ours panicked. Whichever it is, what was counted for it is given back.
#[derive(Debug)]
pub struct Attempt {
    pub(super) lease: Lease,
    address: Address,
    source: Option<IpAddr>,
    /// True exactly while this is the last address of the upstream that its client has not tried. Only then does a
    /// failure speak against the upstream, and not against one of its addresses.
    is_last_address: bool,
    /// True exactly while its client will try no other after this.
    is_last: bool,
}

impl Attempt {
    /// An attempt at the upstream of this index, which has counted a connection; `is_trial` where it was put on trial
    /// for it.
    pub(super) fn begin(group: &Arc<Group>, index: u32, is_trial: bool, tried: &mut Tried) -> Self {
        // First of all, so that a panic gives back what was counted.
        let lease = Lease { group: Arc::clone(group), index, is_connecting: true, is_trial };
        let upstream = lease.upstream();
        let (address, address_index) = upstream.whereabouts.next(index, tried);
        tried.push(index, address_index);
        let source = match &address {
            Address::Socket(address) => group.source(index as usize, *address),
            Address::Unix(_) => None,
        };
        let is_last_address = tried.is_full() || upstream.whereabouts.untried(index, tried) == 0;
        Self { lease, address, source, is_last_address, is_last: false }
    }

    /// The upstream.
    pub fn upstream(&self) -> &Upstream {
        self.lease.upstream()
    }

    /// The upstream's index in its group.
    pub fn index(&self) -> usize {
        self.lease.index as usize
    }

    /// Where to connect to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The address to come from; `None` where the kernel chooses.
    pub fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// The upstream has accepted, or has answered with a refusal of its own: it works. Its failures are forgotten, a
    /// trial is passed, and it counts one less connection that is being made. The connection counts until the lease is
    /// dropped.
    pub fn opened(mut self, now_ms: u64) -> Lease {
        let lease = &mut self.lease;
        let upstream = &lease.group.upstreams[lease.index as usize];
        upstream.whereabouts.note(&self.address, false);
        upstream.state.opened();
        lease.is_connecting = false;
        if std::mem::take(&mut lease.is_trial) {
            // Before it counts as healthy, lest others come at full pace in between.
            upstream.begin_slow_start(now_ms);
            upstream.state.pass_trial();
            let (route, upstream) = (&lease.group.route, &upstream.name);
            tracing::info!(route, upstream, "an upstream is used again: its trial has passed");
        } else {
            upstream.state.succeed();
        }
        self.lease
    }

    /// The client tries no other address after this one, be there any. If this one fails as well, that speaks against the
    /// upstream where the latest attempts at all of its other addresses have failed, whoever made them.
    pub fn give_up(&mut self) {
        self.is_last = true;
    }

    /// Takes in why TLS failed, in words; [`Self::failed`] follows.
    pub fn note_tls_fault(&self, fault: String) {
        self.upstream().tls_fault.store(Some(Arc::new(fault)));
    }

    /// The attempt for this client has failed. Where that is the upstream's fault and no other address of it is left to
    /// try, it counts towards ejection, and a trial is failed.
    ///
    /// What the client's own request may have caused counts once for one network until another one's fails too. And the
    /// last upstream in use is not ejected: there is nobody who would have its clients.
    pub fn failed(mut self, result: ConnectResult, client: IpAddr, now_ms: u64) {
        if !result.is_upstreams_fault() {
            return;
        }
        let lease = &mut self.lease;
        let group = &lease.group;
        let upstream = &group.upstreams[lease.index as usize];
        upstream.whereabouts.note(&self.address, true);
        let is_upstreams = self.is_last_address || self.is_last && upstream.whereabouts.are_all_suspect();
        if !is_upstreams {
            return;
        }
        let result_index = u8::try_from(result.index()).expect("there are a few results");
        upstream.latest_failure.store(result_index, Ordering::Relaxed);
        let until_ms = now_ms.saturating_add(group.eject_for_ms);
        if std::mem::take(&mut lease.is_trial) {
            upstream.state.fail_trial(until_ms);
            return;
        }
        let network = result.may_be_the_requests_fault().then(|| client_network(client));
        let eject_after = group.eject_after.map_or(u32::MAX, NonZeroU32::get);
        let may_eject = group.eject_after.is_some() && group.uses_another(lease.index);
        if upstream.state.fail(network, eject_after, until_ms, may_eject) {
            tracing::warn!(
                route = group.route,
                upstream = upstream.name,
                failures = eject_after,
                latest = result.label(),
                "an upstream is ejected after failures in a row"
            );
        }
    }
}

/// An open connection of a client to an upstream; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    group: Arc<Group>,
    /// Four bytes, as an idle connection carries it.
    pub(super) index: u32,
    /// True exactly while the connection is being made.
    is_connecting: bool,
    /// True exactly while the upstream is on trial by this connection.
    is_trial: bool,
}

impl Lease {
    /// The upstream.
    pub fn upstream(&self) -> &Upstream {
        &self.group.upstreams[self.index as usize]
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let state = &self.group.upstreams[self.index as usize].state;
        if self.is_trial {
            state.abandon_trial();
        }
        state.leave(!self.is_connecting);
    }
}
