//! Where an upstream is: at an address, a Unix socket, or the addresses that its name has at present.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arc_swap::ArcSwap;

use super::Tried;
use crate::config::UpstreamAddress;

/// How many addresses of one name are used: a resolver's answer may hold any number.
pub const ADDRESSES_MAX: usize = 64;

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and port.
    Socket(SocketAddr),
    /// A Unix socket.
    Unix(Arc<Path>),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(formatter),
            Self::Unix(path) => path.display().fmt(formatter),
        }
    }
}

/// Where one upstream is.
#[derive(Debug)]
pub(super) enum Whereabouts {
    Socket(SocketAddr),
    Unix(Arc<Path>),
    Name {
        host: String,
        port: u16,
        addresses: ArcSwap<Vec<Resolved>>,
        /// Counts on with each choice, so that the addresses get their turns.
        turn: AtomicU32,
    },
}

/// One address of a name.
#[derive(Debug)]
pub(super) struct Resolved {
    address: SocketAddr,
    /// True exactly while the latest attempt at this address has failed, since the name was last resolved. Others are
    /// tried first: where only one of two addresses works, clients need not find out one by one.
    is_suspect: AtomicBool,
}

impl Whereabouts {
    pub(super) fn new(address: &UpstreamAddress) -> Self {
        match address {
            UpstreamAddress::Socket(address) => Self::Socket(*address),
            UpstreamAddress::Unix(path) => Self::Unix(path.as_path().into()),
            UpstreamAddress::Name { host, port } => Self::Name {
                host: host.clone(),
                port: *port,
                addresses: ArcSwap::default(),
                turn: AtomicU32::new(0),
            },
        }
    }

    /// Puts the addresses of a name in the place of those before, and forgets what failed.
    ///
    /// # Panics
    /// Where the upstream is not known by a name.
    pub(super) fn set(&self, resolved: &[SocketAddr]) {
        let Self::Name { addresses, .. } = self else { panic!("there is no name to resolve") };
        let resolved = resolved.iter().take(ADDRESSES_MAX);
        let resolved = resolved.map(|&address| Resolved { address, is_suspect: AtomicBool::new(false) });
        addresses.store(resolved.collect::<Vec<_>>().into());
    }

    /// Every address that is known.
    pub(super) fn all(&self) -> Vec<Address> {
        match self {
            Self::Socket(address) => vec![Address::Socket(*address)],
            Self::Unix(path) => vec![Address::Unix(Arc::clone(path))],
            Self::Name { addresses, .. } => {
                addresses.load().iter().map(|resolved| Address::Socket(resolved.address)).collect()
            }
        }
    }

    /// How many addresses a client has not tried at the upstream of this index.
    pub(super) fn untried(&self, upstream_index: u32, tried: &Tried) -> usize {
        let count = match self {
            Self::Socket(_) | Self::Unix(_) => 1,
            Self::Name { addresses, .. } => count(&addresses.load()),
        };
        (0..count).filter(|&index| !tried.contains(upstream_index, index)).count()
    }

    /// The address for a client, and its index: the one whose turn it is, of those that it has not tried; one that has
    /// failed lately only where there is no other.
    pub(super) fn next(&self, upstream_index: u32, tried: &Tried) -> (Address, u32) {
        match self {
            Self::Socket(address) => (Address::Socket(*address), 0),
            Self::Unix(path) => (Address::Unix(Arc::clone(path)), 0),
            Self::Name { addresses, turn, .. } => {
                let addresses = addresses.load();
                let count = count(&addresses);
                let turn = turn.fetch_add(1, Ordering::Relaxed) % count;
                let index = (0..count)
                    .map(|behind| (turn + behind) % count)
                    // The first of the least.
                    .min_by_key(|&index| {
                        let is_suspect = addresses[index as usize].is_suspect.load(Ordering::Relaxed);
                        (tried.contains(upstream_index, index), is_suspect)
                    })
                    .expect("an upstream without an address is not chosen");
                (Address::Socket(addresses[index as usize].address), index)
            }
        }
    }

    /// Whether the latest attempt at each address of a name has failed.
    pub(super) fn are_all_suspect(&self) -> bool {
        match self {
            Self::Socket(_) | Self::Unix(_) => true,
            Self::Name { addresses, .. } => {
                addresses.load().iter().all(|resolved| resolved.is_suspect.load(Ordering::Relaxed))
            }
        }
    }

    /// Takes in how an attempt at an address went.
    pub(super) fn note(&self, at: &Address, has_failed: bool) {
        let (Self::Name { addresses, .. }, Address::Socket(at)) = (self, at) else { return };
        let addresses = addresses.load();
        let resolved = addresses.iter().find(|resolved| resolved.address == *at);
        if let Some(resolved) = resolved
            && resolved.is_suspect.load(Ordering::Relaxed) != has_failed
        {
            resolved.is_suspect.store(has_failed, Ordering::Relaxed);
        }
    }
}

fn count(addresses: &[Resolved]) -> u32 {
    u32::try_from(addresses.len()).expect("no more than ADDRESSES_MAX")
}
