//! How much one address may have: connections at a time, handshakes in a second. For all shards together, as the kernel
//! spreads the connections of an address over them.
//!
//! Tables of a fixed size, without locks, that know an address by a part of its hash: who sends from a million addresses makes
//! them forget, the quietest first, and takes no memory. The hash has a key of the process's own, so nobody can choose whom
//! he meets.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Addresses that share a place in a table: as many as lie in a line of the cache.
const WAYS: usize = 8;
/// Sets of ways. A prime, and few enough that a place has a number of 16 bits, which is what a connection keeps of it.
const SET_COUNT: usize = 8191;
/// Bytes of memory that a table takes, whoever comes.
pub const TABLE_SIZE: usize = SET_COUNT * size_of::<Set>();

/// What a port limits by address.
#[derive(Debug)]
pub struct Addresses {
    ipv6_prefix: u8,
    hasher: RandomState,
    connections: Option<(u32, Box<[Set]>)>,
    handshakes: Option<(u32, Box<[Set]>)>,
}

/// The addresses of one place, each a part of its hash and what is known of it; 0 where there is none.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

/// What a connection gives back when it ends: the place of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(NonZeroU16);

/// How many bits of an entry say what is known of an address: the connections that it has, or the time until which its
/// handshakes are paid for.
const CONNECTION_BITS: u32 = 24;
const TIME_BITS: u32 = 32;
/// What a millisecond is in that time, which so goes round in 18 hours.
const TIME_UNITS_PER_MS: u64 = 64;

impl Addresses {
    /// What is limited by address; `None` where nothing is.
    pub fn new(
        connections_max: Option<NonZeroU32>,
        handshakes_per_s: Option<NonZeroU32>,
        ipv6_prefix: u8,
    ) -> Option<Arc<Self>> {
        if connections_max.is_none() && handshakes_per_s.is_none() {
            return None;
        }
        let table = |limit: Option<NonZeroU32>| {
            limit.map(|limit| (limit.get(), (0..SET_COUNT).map(|_| Set::default()).collect()))
        };
        Some(Arc::new(Self {
            ipv6_prefix,
            hasher: RandomState::new(),
            connections: table(connections_max),
            handshakes: table(handshakes_per_s),
        }))
    }

    /// Whether connections are limited.
    pub fn limits_connections(&self) -> bool {
        self.connections.is_some()
    }

    /// Bytes of memory that the tables take.
    pub fn size(&self) -> usize {
        TABLE_SIZE * (usize::from(self.connections.is_some()) + usize::from(self.handshakes.is_some()))
    }

    /// Admits a connection, and says what it gives back; `Err` where its address has as many as it may have. Where connections
    /// are not limited there is nothing to give back.
    ///
    /// # Errors
    /// [`AtLimit`].
    pub fn connect(&self, address: IpAddr) -> Result<Option<Place>, AtLimit> {
        let Some((max, sets)) = &self.connections else { return Ok(None) };
        let (set_index, tag) = self.entry(address, CONNECTION_BITS);
        let set = &sets[set_index];
        loop {
            let (way, before) = set.find(tag, CONNECTION_BITS, |count| count);
            let count = if before >> CONNECTION_BITS == tag { known(before, CONNECTION_BITS) } else { 0 };
            if before != 0 && before >> CONNECTION_BITS != tag {
                // All who share the place have connections, of which each is to be given back to whom it was counted for.
                return Ok(None);
            }
            if count >= u64::from(*max) {
                return Err(AtLimit);
            }
            if set.0[way]
                .compare_exchange(before, tag << CONNECTION_BITS | (count + 1), RELAXED, RELAXED)
                .is_ok()
            {
                let number =
                    u16::try_from(set_index * WAYS + way + 1).expect("places have numbers of 16 bits");
                return Ok(NonZeroU16::new(number).map(Place));
            }
        }
    }

    /// Takes note that a connection has ended.
    pub fn disconnect(&self, place: Place) {
        let Some((_, sets)) = &self.connections else { return };
        let index = usize::from(place.0.get() - 1);
        let entry = &sets[index / WAYS].0[index % WAYS];
        let _ = entry.fetch_update(RELAXED, RELAXED, |before| match known(before, CONNECTION_BITS) {
            0 | 1 => Some(0),
            _ => Some(before - 1),
        });
    }

    /// Whether an address may do one more handshake now: as many in a second as are allowed, and a second's worth at once.
    /// The time is in milliseconds, of any clock that does not go back.
    pub fn may_shake_hands(&self, address: IpAddr, now_ms: u64) -> bool {
        let Some((per_s, sets)) = &self.handshakes else { return true };
        let (set_index, tag) = self.entry(address, TIME_BITS);
        let set = &sets[set_index];
        let now = (now_ms * TIME_UNITS_PER_MS) & mask(TIME_BITS);
        let second = 1000 * TIME_UNITS_PER_MS;
        let each = (second / u64::from(*per_s)).max(1);
        let burst = each * u64::from(*per_s);
        // Times go round, so they are told by how far ahead they are; what is further ahead than it can be is past.
        let ahead = |time: u64| time.wrapping_sub(now) & mask(TIME_BITS);
        let liveliness = |time: u64| {
            let (ahead, past) = (ahead(time), now.wrapping_sub(time) & mask(TIME_BITS));
            if ahead <= second { mask(TIME_BITS) + 1 + ahead } else { mask(TIME_BITS) - past }
        };
        loop {
            let (way, before) = set.find(tag, TIME_BITS, liveliness);
            let paid_until = known(before, TIME_BITS);
            let is_ahead = before >> TIME_BITS == tag && ahead(paid_until) <= second;
            let paid_until = if is_ahead { paid_until } else { now } + each;
            if ahead(paid_until) > burst {
                return false;
            }
            let entry = tag << TIME_BITS | (paid_until & mask(TIME_BITS));
            if set.0[way].compare_exchange(before, entry, RELAXED, RELAXED).is_ok() {
                return true;
            }
        }
    }

    /// The set of an address, and the part of its hash that tells it from others there, which is never 0.
    fn entry(&self, address: IpAddr, known_bits: u32) -> (usize, u64) {
        let address = match address.to_canonical() {
            IpAddr::V6(address) => {
                let prefix = u128::MAX.checked_shl(128 - u32::from(self.ipv6_prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & prefix))
            }
            address @ IpAddr::V4(_) => address,
        };
        let hash = self.hasher.hash_one(address);
        let set_index = usize::try_from(hash % SET_COUNT as u64).expect("it is less than the sets are");
        (set_index, (hash >> known_bits) | 1)
    }
}

/// Nothing is published along with an entry, so none needs an order.
const RELAXED: Ordering = Ordering::Relaxed;

/// An address has as many connections as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtLimit;

impl Set {
    /// Where an address is, or else where it is to be put: in a place that nobody has, or in that of the quietest, by what is
    /// known of each.
    fn find(&self, tag: u64, known_bits: u32, liveliness: impl Fn(u64) -> u64) -> (usize, u64) {
        let mut quietest = (0, 0, u64::MAX);
        for (way, entry) in self.0.iter().enumerate() {
            let entry = entry.load(RELAXED);
            if entry >> known_bits == tag {
                return (way, entry);
            }
            let liveliness = if entry == 0 { 0 } else { liveliness(known(entry, known_bits)).max(1) };
            if liveliness < quietest.2 {
                quietest = (way, entry, liveliness);
            }
        }
        (quietest.0, quietest.1)
    }
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

const fn known(entry: u64, bits: u32) -> u64 {
    entry & mask(bits)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::protocol::websocket::fuzz::Random;

    fn addresses(connections_max: u32, handshakes_per_s: u32) -> Arc<Addresses> {
        let (connections_max, handshakes_per_s) =
            (NonZeroU32::new(connections_max), NonZeroU32::new(handshakes_per_s));
        Addresses::new(connections_max, handshakes_per_s, 64).expect("something is limited")
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn nothing_is_there_where_nothing_is_limited() {
        assert!(Addresses::new(None, None, 64).is_none());
        assert_eq!(addresses(1, 0).connect(address(1)).map(|place| place.is_some()), Ok(true));
        assert_eq!(addresses(0, 1).connect(address(1)), Ok(None));
        assert!(addresses(1, 0).may_shake_hands(address(1), 0));
    }

    #[test]
    fn connections_are_counted_as_a_plain_map_would_count_them() {
        let addresses = addresses(3, 0);
        let mut random = Random(1);
        let (mut open, mut counts) = (Vec::new(), HashMap::<u32, u32>::new());
        for _ in 0..200_000 {
            if random.one_in(2) && !open.is_empty() {
                let (number, place) = open.swap_remove(random.below(open.len()));
                addresses.disconnect(place);
                *counts.get_mut(&number).unwrap() -= 1;
            } else {
                let number = u32::try_from(random.below(2_000)).unwrap();
                let count = counts.entry(number).or_default();
                match addresses.connect(address(number)) {
                    Ok(place) => {
                        assert!(*count < 3);
                        *count += 1;
                        open.push((number, place.unwrap()));
                    }
                    Err(AtLimit) => assert_eq!(*count, 3),
                }
            }
        }
        for (_, place) in open {
            addresses.disconnect(place);
        }
        let (_, sets) = addresses.connections.as_ref().unwrap();
        assert!(sets.iter().flat_map(|set| &set.0).all(|entry| entry.load(RELAXED) == 0), "nothing is left");
    }

    #[test]
    fn a_second_has_as_many_handshakes_as_are_allowed() {
        for per_s in [1, 3, 10, 255, 985, 1000] {
            let addresses = addresses(0, per_s);
            let admitted = |from_ms: u64, to_ms: u64| {
                (from_ms..to_ms)
                    .map(|ms| (0..5).filter(|_| addresses.may_shake_hands(address(7), ms)).count())
                    .sum::<usize>()
            };
            let limit = per_s as usize;
            assert_eq!((0..5_000).filter(|_| addresses.may_shake_hands(address(7), 5_000)).count(), limit);
            assert!(addresses.may_shake_hands(address(8), 5_000), "others are not touched");
            let ten_seconds = admitted(5_001, 15_001);
            // The time has units, in which a rate is rounded up by less than two in a hundred.
            let wanted = 10 * limit - 1..=10 * limit + 1 + limit / 5;
            assert!(wanted.contains(&ten_seconds), "{ten_seconds} of {per_s} a second");
            assert_eq!((0..5_000).filter(|_| addresses.may_shake_hands(address(7), 20_000)).count(), limit);
        }
    }

    #[test]
    fn a_million_addresses_take_no_memory_and_the_quietest_are_forgotten_first() {
        let addresses = addresses(2, 10);
        assert_eq!(addresses.size(), 2 * 524_224);
        // Somebody who is busy, so that he has to wait for long.
        let busy = address(1);
        assert_eq!((0..20).filter(|_| addresses.may_shake_hands(busy, 10_000)).count(), 10);
        let held: Vec<_> =
            (0..2_000).map(|number| addresses.connect(address(number)).unwrap().unwrap()).collect();
        for number in 10_000..1_010_000 {
            assert!(addresses.may_shake_hands(address(number), 10_000), "nobody pays for another");
            let place = addresses.connect(address(number)).expect("nobody has too many").unwrap();
            addresses.disconnect(place);
        }
        assert!(!addresses.may_shake_hands(busy, 10_000), "who was heard last is known best");
        let known = (0..2_000).filter(|number| {
            let places: Vec<_> = (0..2).map_while(|_| addresses.connect(address(*number)).ok()).collect();
            places.len() == 1
        });
        // All but those whose places had more than eight at once, of whom there is hardly one.
        assert!(known.count() >= 1_990);
        drop(held);
    }

    #[test]
    fn nothing_changes_when_the_time_goes_round() {
        let round_ms = (mask(TIME_BITS) + 1) / TIME_UNITS_PER_MS;
        for start in [0, 5_000, round_ms - 500, round_ms - 1, round_ms, round_ms + 700, 3 * round_ms - 400] {
            let addresses = addresses(0, 10);
            // Others were there before, in every place.
            for number in 0..200_000 {
                addresses.may_shake_hands(address(1_000_000 + number), start.saturating_sub(3_000));
            }
            let admitted = |at: u64, flood: u32| {
                let flood_by = |number| u32::from(addresses.may_shake_hands(address(number), at));
                let mine: u32 = (0..100).map(|_| flood_by(1)).sum();
                for number in 0..flood {
                    let _ = flood_by(2_000_000 + number);
                }
                mine
            };
            assert_eq!(admitted(start, 0), 10, "at {start}");
            assert_eq!(admitted(start, 20_000), 0);
            assert_eq!(admitted(start + 1_000, 0), 10);
        }
    }

    #[test]
    fn who_finds_no_place_is_let_in_and_takes_nothing_from_others() {
        let addresses = addresses(2, 0);
        let held: Vec<_> = (0..120_000).map(|number| addresses.connect(address(number)).unwrap()).collect();
        let placed = held.iter().flatten().count();
        assert!(placed < held.len(), "some sets are full");
        for place in held.into_iter().flatten() {
            addresses.disconnect(place);
        }
        let (_, sets) = addresses.connections.as_ref().unwrap();
        assert!(sets.iter().flat_map(|set| &set.0).all(|entry| entry.load(RELAXED) == 0));
    }

    #[test]
    fn an_address_of_ipv6_is_its_prefix_and_a_mapped_one_is_ipv4() {
        let (mine, other): (IpAddr, IpAddr) =
            ("2001:db8:0:1::1".parse().unwrap(), "2001:db8:0:1:ffff::2".parse().unwrap());
        let elsewhere: IpAddr = "2001:db8:0:2::1".parse().unwrap();
        let by_prefix = addresses(1, 0);
        assert!(by_prefix.connect(mine).is_ok() && by_prefix.connect(other).is_err());
        assert!(by_prefix.connect(elsewhere).is_ok());
        let whole = Addresses::new(NonZeroU32::new(1), None, 128).unwrap();
        assert!(whole.connect(mine).is_ok() && whole.connect(other).is_ok() && whole.connect(mine).is_err());
        assert!(by_prefix.connect("192.0.2.1".parse().unwrap()).is_ok());
        assert!(by_prefix.connect("::ffff:192.0.2.1".parse().unwrap()).is_err());
    }

    #[test]
    fn shards_count_together() {
        let addresses = addresses(100, 0);
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1_000).filter(|_| addresses.connect(address(5)).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 100);
    }
}
