//! Hashes that stay the same: over processes, machines and versions, as clients stick to upstreams by them.

use std::net::IpAddr;

use crate::metrics::ClientNetwork;

/// The hash of what a client is known by: its address, or the value of a cookie or field.
///
/// FNV-1a, finished so that every bit of the bytes moves every bit of the hash. It does not resist somebody who wants
/// to meet a certain upstream; whoever may choose the bytes may also just repeat them.
pub fn sticky_hash(bytes: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    mix(bytes.iter().fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME)))
}

/// The network that a client comes from: its IPv4 address, or the first 48 bits of its IPv6 address, as many as one
/// household or company is given.
pub(super) fn client_network(client: IpAddr) -> ClientNetwork {
    ClientNetwork::of_hash(match client.to_canonical() {
        IpAddr::V4(address) => sticky_hash(&address.octets()),
        IpAddr::V6(address) => sticky_hash(&address.octets()[..6]),
    })
}

/// How much the client with this hash wants the upstream with this seed, compared to others: the highest wins.
///
/// Weights of one client at several upstreams are independent of each other, so without the winner its clients spread
/// evenly over the rest, and nobody else moves.
pub(super) fn weight(hash: u64, seed: u64) -> u64 {
    mix(hash ^ mix(seed))
}

/// A permutation in which a change of any bit changes about half of the others (the finisher of splitmix64).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_same_in_every_process() {
        assert_eq!(sticky_hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(sticky_hash(b"session=1"), 0x17f9_94ab_5c3a_83e2);
    }

    #[test]
    fn addresses_of_one_household_are_one_network() {
        let network = |address: &str| client_network(address.parse().unwrap());
        assert_eq!(network("2001:db8:1::1"), network("2001:db8:1:ffff::2"));
        assert_ne!(network("2001:db8:1::1"), network("2001:db8:2::1"));
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }

    #[test]
    fn weights_spread_clients_evenly_and_move_only_those_of_the_lost() {
        let seeds: Vec<u64> =
            (0..5).map(|index| sticky_hash(format!("ws://10.0.0.{index}:80").as_bytes())).collect();
        let best = |hash: u64, seeds: &[u64]| *seeds.iter().max_by_key(|seed| weight(hash, **seed)).unwrap();
        let mut counts = [0; 5];
        for client in 0..10_000_u32 {
            let hash = sticky_hash(&client.to_be_bytes());
            let home = best(hash, &seeds);
            counts[seeds.iter().position(|seed| *seed == home).unwrap()] += 1;
            let without_first = best(hash, &seeds[1..]);
            assert!(home == seeds[0] || home == without_first, "client {client} moved");
        }
        assert!(counts.iter().all(|count| (1_800..2_200).contains(count)), "{counts:?}");
    }
}
