//! Which upstream a client goes to, while upstreams fail, fill, come back and move.

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use super::*;
use crate::config::upstream::UpstreamLimits;

const SECOND: u64 = 1_000;
/// The time when nothing has happened yet. A clock that has just begun would hide a mistake.
const START: u64 = 100 * SECOND;
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn socket(index: usize) -> UpstreamAddress {
    UpstreamAddress::Socket(format!("10.0.0.{index}:80").parse().unwrap())
}

/// A group of `count` upstreams at addresses, 10.0.0.0 and on.
fn group(count: usize, change: impl FnOnce(&mut Relay)) -> Arc<Group> {
    let mut relay = fixture::relay((0..count).map(socket));
    change(&mut relay);
    Group::new("chat", &relay, fixture::states(count))
}

fn limited(count: usize, limits: UpstreamLimits) -> Arc<Group> {
    group(count, |relay| relay.limits = limits)
}

fn choose(group: &Arc<Group>, now_ms: u64) -> Result<Attempt, Unavailable> {
    group.choose(None, &mut Tried::default(), now_ms)
}

/// The index of the upstream that an attempt is at.
fn index(attempt: &Attempt) -> usize {
    attempt.lease.index as usize
}

/// The upstreams that the next `count` clients come to, each of whom leaves before the next comes.
fn visited(group: &Arc<Group>, count: usize, now_ms: u64) -> Vec<usize> {
    let visit = |_| {
        let attempt = choose(group, now_ms).unwrap();
        let index = index(&attempt);
        drop(attempt.opened(now_ms));
        index
    };
    (0..count).map(visit).collect()
}

/// Lets connections to the upstream of this index fail until it is ejected. Another must be in use.
fn eject(group: &Arc<Group>, index_wanted: usize, now_ms: u64) {
    while matches!(group.upstreams[index_wanted].state.standing(), Standing::Used { .. }) {
        let attempt = choose(group, now_ms).unwrap();
        if index(&attempt) == index_wanted {
            attempt.failed(ConnectResult::Refused, CLIENT, now_ms);
        } else {
            attempt.opened(now_ms);
        }
    }
}

fn connections(group: &Group) -> Vec<(u32, u32)> {
    let loads = group.upstreams.iter().map(|upstream| upstream.state.load());
    loads.map(|load| (load.connections, load.connecting)).collect()
}

#[test]
fn each_gets_its_turn_and_nobody_two_when_one_is_out() {
    let group = group(3, |_| {});
    assert_eq!(visited(&group, 6, START), [0, 1, 2, 0, 1, 2]);
    assert!(group.set_checked(1, Some("it answered 500".to_owned()), START));
    assert!(!group.set_checked(1, Some("it answered 502".to_owned()), START), "that is no change");
    let visits = visited(&group, 100, START);
    let count = |wanted| visits.iter().filter(|index| **index == wanted).count();
    assert_eq!((count(0), count(1), count(2)), (50, 0, 50));
    assert_eq!(group.upstreams[1].fault().as_deref(), Some("it answered 502"));
    assert!(group.set_checked(1, None, START));
    assert_eq!(group.upstreams[1].fault(), None);
    let visits = visited(&group, 3, START);
    assert!(visits.contains(&1), "{visits:?}");
}

#[test]
fn the_fewest_connections_win_and_of_these_the_fewest_that_are_being_made() {
    let group = group(3, |relay| relay.balance = Balance::LeastConnections);
    let first = choose(&group, START).unwrap();
    let second = choose(&group, START).unwrap();
    let third = choose(&group, START).unwrap();
    let mut all = [index(&first), index(&second), index(&third)];
    let third_index = index(&third);
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2], "where all are equal it goes in turn");
    let lease = third.opened(START);
    let fourth = choose(&group, START).unwrap();
    assert_eq!(index(&fourth), third_index, "the others still have one that is being made");
    drop(lease);
    drop(fourth);
    assert_eq!(index(&choose(&group, START).unwrap()), third_index);
}

#[test]
fn a_client_sticks_to_its_upstream_and_comes_back_to_it() {
    let group = group(5, |relay| relay.balance = Balance::Address);
    let visit = |client: u32| {
        let hash = sticky_hash(&client.to_be_bytes());
        index(&group.choose(Some(hash), &mut Tried::default(), START).unwrap())
    };
    let homes: Vec<usize> = (0..500).map(visit).collect();
    assert_eq!((0..500).map(visit).collect::<Vec<_>>(), homes);
    group.set_checked(2, Some("gone".to_owned()), START);
    for (client, home) in (0..).zip(&homes) {
        let away = visit(client);
        assert!(away != 2 && (*home == 2 || away == *home), "client {client} of {home} went to {away}");
    }
    group.set_checked(2, None, START);
    assert_eq!((0..500).map(visit).collect::<Vec<_>>(), homes);
    let without_a_hash: Vec<usize> = visited(&group, 5, START);
    assert_eq!(without_a_hash.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
}

#[test]
fn limits_hold_for_each_upstream_and_say_that_it_is_full() {
    let limits = UpstreamLimits {
        connections_max: NonZeroU32::new(2),
        connecting_max: NonZeroU32::new(1),
        ..UpstreamLimits::DEFAULT
    };
    let group = limited(2, limits);
    let [first, second] = [(); 2].map(|()| choose(&group, START).unwrap());
    assert_ne!(index(&first), index(&second));
    assert_eq!(choose(&group, START).unwrap_err(), Unavailable::Full, "each has one that is being made");
    let _open: Vec<Lease> = [first, second].map(|attempt| attempt.opened(START)).into();
    let [third, fourth] = [(); 2].map(|()| choose(&group, START).unwrap());
    let _more = third.opened(START);
    let _most = fourth.opened(START);
    assert_eq!(connections(&group), [(2, 0), (2, 0)]);
    assert_eq!(choose(&group, START).unwrap_err(), Unavailable::Full);
    assert_eq!(Unavailable::Full.result(), Some(ConnectResult::Full));
}

#[test]
fn what_was_counted_is_given_back_on_every_way_out() {
    let group = group(2, |relay| relay.limits.eject_after = NonZeroU32::new(1));
    drop(choose(&group, START).unwrap());
    drop(choose(&group, START).unwrap().opened(START));
    choose(&group, START).unwrap().failed(ConnectResult::NoPort, CLIENT, START);
    choose(&group, START).unwrap().failed(ConnectResult::Abandoned, CLIENT, START);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _attempt = choose(&group, START).unwrap();
        panic!("while it connects");
    }));
    assert!(caught.is_err());
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _lease = choose(&group, START).unwrap().opened(START);
        panic!("while it is open");
    }));
    assert!(caught.is_err());
    assert_eq!(connections(&group), [(0, 0); 2]);
    assert!(
        group.upstreams.iter().all(|upstream| upstream.state.is_healthy()),
        "none of this was an upstream's fault"
    );
    let attempt = choose(&group, START).unwrap();
    let index = index(&attempt);
    attempt.failed(ConnectResult::Reset, CLIENT, START);
    assert_eq!(connections(&group), [(0, 0); 2]);
    assert!(!group.upstreams[index].state.is_healthy());
}

#[test]
fn a_client_tries_each_upstream_once() {
    let group = group(3, |_| {});
    let mut tried = Tried::default();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let attempt = group.choose(None, &mut tried, START).unwrap();
        seen.push(index(&attempt));
        attempt.failed(ConnectResult::Refused, CLIENT, START);
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);
    let unavailable = group.choose(None, &mut tried, START).unwrap_err();
    assert_eq!((unavailable, unavailable.result()), (Unavailable::Exhausted, None));
}

#[test]
fn of_several_obstacles_the_client_is_told_what_helps_it_most() {
    let limits = UpstreamLimits { connections_max: NonZeroU32::new(1), ..UpstreamLimits::DEFAULT };
    let group = limited(3, limits);
    for index in 0..3 {
        group.set_checked(index, Some("it answered 500".to_owned()), START);
    }
    let mut tried = Tried::default();
    let unavailable = |tried: &mut Tried| group.choose(None, tried, START).unwrap_err();
    assert_eq!(unavailable(&mut tried), Unavailable::Unhealthy);
    group.set_checked(0, None, START);
    group.choose(None, &mut tried, START).unwrap().failed(ConnectResult::Reset, CLIENT, START);
    assert_eq!(unavailable(&mut tried), Unavailable::Exhausted, "its own failure tells more than the others");
    group.set_checked(1, None, START);
    let taken = group.choose(None, &mut tried.clone(), START).unwrap();
    assert_eq!(unavailable(&mut tried), Unavailable::Full, "it may come again");
    drop(taken);
    assert_eq!(index(&group.choose(None, &mut tried, START).unwrap()), 1);
}

#[test]
fn a_client_gets_a_bounded_number_of_attempts() {
    let group = group(ATTEMPTS_MAX + 5, |_| {});
    let mut tried = Tried::default();
    for _ in 0..ATTEMPTS_MAX {
        group.choose(None, &mut tried, START).unwrap().failed(ConnectResult::Refused, CLIENT, START);
    }
    assert_eq!(group.choose(None, &mut tried, START).unwrap_err(), Unavailable::Exhausted);
}

#[test]
fn an_ejected_upstream_gets_one_trial_when_its_time_is_over() {
    let group = group(2, |_| {});
    eject(&group, 0, START);
    // The next client of the one, which the other passes over meanwhile; `None` where all go to the other.
    let trial = |now_ms| {
        let attempts = [(); 4].map(|()| choose(&group, now_ms).unwrap());
        let mut trials = attempts.into_iter().filter(|attempt| index(attempt) == 0);
        let trial = trials.next();
        assert!(trials.next().is_none(), "one at a time");
        trial
    };
    let until = START + 10 * SECOND;
    assert!(trial(until - 1).is_none());
    assert_eq!(group.upstreams[0].fault().as_deref(), Some("connections failed, the latest: refused"));
    let held = trial(until).unwrap();
    assert!(trial(until).is_none());
    drop(held);
    trial(until).unwrap().failed(ConnectResult::NoDescriptor, CLIENT, until);
    let held = trial(until).expect("neither a client that leaves nor a fault of ours is an outcome");
    held.failed(ConnectResult::TimedOut, CLIENT, until);
    assert!(trial(until + 10 * SECOND - 1).is_none());
    let lease = trial(until + 10 * SECOND).unwrap().opened(until + 10 * SECOND);
    assert!(group.upstreams[0].state.is_healthy());
    let visits = visited(&group, 4, until + 10 * SECOND);
    assert_eq!(visits.iter().filter(|index| **index == 0).count(), 2);
    drop(lease);
    assert_eq!(connections(&group), [(0, 0); 2]);
    assert_eq!(group.upstreams[0].state.ejections(), 1);
}

#[test]
fn the_last_upstream_in_use_is_not_ejected() {
    let alone = group(1, |_| {});
    for _ in 0..10 {
        choose(&alone, START).unwrap().failed(ConnectResult::Refused, CLIENT, START);
    }
    assert!(alone.upstreams[0].state.is_healthy());
    assert_eq!(visited(&alone, 3, START), [0; 3]);

    let group = group(3, |_| {});
    eject(&group, 0, START);
    group.set_checked(1, Some("it answered 500".to_owned()), START);
    for _ in 0..10 {
        choose(&group, START).unwrap().failed(ConnectResult::Refused, CLIENT, START);
    }
    assert!(group.upstreams[2].state.is_healthy());
    assert_eq!(visited(&group, 3, START), [2; 3]);
    // Once there is one that takes its clients, one more failure is enough.
    group.set_checked(1, None, START);
    while group.upstreams[2].state.is_healthy() {
        let attempt = choose(&group, START).unwrap();
        match index(&attempt) {
            2 => attempt.failed(ConnectResult::Refused, CLIENT, START),
            _ => drop(attempt.opened(START)),
        }
    }
    assert_eq!(group.upstreams[2].state.ejections(), 1);
}

#[test]
fn what_is_ejected_is_chosen_from_where_nothing_else_is_in_use() {
    let group = group(2, |_| {});
    eject(&group, 0, START);
    assert_eq!(visited(&group, 4, START), [1; 4]);
    let mut tried = Tried::default();
    group.choose(None, &mut tried, START).unwrap().failed(ConnectResult::Refused, CLIENT, START);
    assert_eq!(
        index(&group.choose(None, &mut tried, START).unwrap()),
        0,
        "a client has tried the other in vain"
    );
    group.set_checked(1, Some("it answered 500".to_owned()), START);
    assert_eq!(visited(&group, 4, START), [0; 4], "the other has gone after the ejection");
    let until = START + 10 * SECOND;
    let trial = choose(&group, until).unwrap();
    assert_eq!(group.upstreams[0].state.standing(), Standing::OnTrial);
    assert_eq!(visited(&group, 4, until), [0; 4], "a trial that hangs holds up nobody");
    trial.failed(ConnectResult::HandshakeTimedOut, CLIENT, until);
    assert_eq!(visited(&group, 4, until), [0; 4]);
    drop(choose(&group, until + 10 * SECOND).unwrap().opened(until + 10 * SECOND));
    assert!(group.upstreams[0].state.is_healthy());
    // Checks have the last word.
    group.set_checked(0, Some("it answered 500".to_owned()), START);
    assert_eq!(choose(&group, START).unwrap_err(), Unavailable::Unhealthy);
}

#[test]
fn requests_of_one_network_eject_nobody_and_those_of_several_do() {
    let group = group(2, |_| {});
    // Lets the next request to the first upstream fail.
    let fail = |result, client: &str| loop {
        let attempt = choose(&group, START).unwrap();
        if index(&attempt) == 0 {
            break attempt.failed(result, client.parse().unwrap(), START);
        }
        drop(attempt.opened(START));
    };
    for result in [ConnectResult::Reset, ConnectResult::BadHandshake, ConnectResult::HandshakeTimedOut] {
        for client in ["2001:db8:1::1", "2001:db8:1:2::2", "2001:db8:1:3::3"] {
            fail(result, client);
        }
    }
    assert!(group.upstreams[0].state.is_healthy());
    fail(ConnectResult::Reset, "2001:db8:2::1");
    assert!(group.upstreams[0].state.is_healthy(), "two have failed");
    fail(ConnectResult::Reset, "2001:db8:1::1");
    assert!(!group.upstreams[0].state.is_healthy(), "three have");
}

#[test]
fn a_route_that_never_ejects_goes_on_trying() {
    let group = group(2, |relay| relay.limits.eject_after = None);
    for _ in 0..100 {
        choose(&group, START).unwrap().failed(ConnectResult::Refused, CLIENT, START);
    }
    assert!(group.upstreams.iter().all(|upstream| upstream.state.is_healthy()));
}

#[test]
fn connections_that_are_being_made_grow_with_slow_start() {
    let limits = UpstreamLimits {
        connecting_max: NonZeroU32::new(11),
        slow_start: Duration::from_secs(10),
        ..UpstreamLimits::DEFAULT
    };
    let group = limited(1, limits);
    let room = |now_ms| {
        let mut attempts = Vec::new();
        let full = loop {
            match choose(&group, now_ms) {
                Ok(attempt) => attempts.push(attempt),
                Err(unavailable) => break unavailable,
            }
        };
        assert_eq!(full, Unavailable::Full);
        attempts.len()
    };
    assert_eq!(room(START), 11, "nothing is in slow start at first");
    group.set_checked(0, Some("gone".to_owned()), START);
    group.set_checked(0, None, START);
    for (second, expected) in [(0, 1), (1, 2), (5, 6), (9, 10), (10, 11), (1_000, 11)] {
        assert_eq!(room(START + second * SECOND), expected, "after {second} s");
    }
}

#[test]
fn a_trial_that_is_passed_begins_slow_start() {
    let limits = UpstreamLimits {
        connecting_max: NonZeroU32::new(11),
        slow_start: Duration::from_secs(10),
        ..UpstreamLimits::DEFAULT
    };
    let group = limited(2, limits);
    eject(&group, 0, START);
    let later = START + 10 * SECOND;
    while !group.upstreams[0].state.is_healthy() {
        drop(choose(&group, later).unwrap().opened(later));
    }
    for (second, expected) in [(0, 1), (5, 6), (10, 11)] {
        let now_ms = later + second * SECOND;
        let attempts: Vec<_> = std::iter::from_fn(|| choose(&group, now_ms).ok()).collect();
        let count = attempts.iter().filter(|attempt| index(attempt) == 0).count();
        assert_eq!(count, expected, "after {second} s");
    }
}

#[test]
fn without_a_limit_an_upstream_in_slow_start_lets_turns_pass() {
    let limits = UpstreamLimits { slow_start: Duration::from_secs(10), ..UpstreamLimits::DEFAULT };
    for balance in [Balance::RoundRobin, Balance::LeastConnections] {
        let group = group(2, |relay| {
            relay.limits = limits;
            relay.balance = balance.clone();
        });
        group.set_checked(0, Some("gone".to_owned()), START);
        group.set_checked(0, None, START);
        let visits = |second: u64| {
            let visits = visited(&group, 512, START + second * SECOND);
            visits.iter().filter(|index| **index == 0).count()
        };
        let (at_first, in_the_middle, at_last) = (visits(0), visits(5), visits(10));
        assert!((1..=4).contains(&at_first), "{balance:?}: {at_first}");
        assert!(at_first < in_the_middle && in_the_middle < at_last, "{balance:?}: {in_the_middle}");
        assert_eq!(at_last, 256, "{balance:?}");
    }
    // Where there is no other, nobody is turned away.
    let alone = limited(1, limits);
    alone.set_checked(0, Some("gone".to_owned()), START);
    alone.set_checked(0, None, START);
    assert_eq!(visited(&alone, 10, START), [0; 10]);
}

#[test]
fn slow_start_moves_nobody_who_sticks_to_an_upstream() {
    for connecting_max in [None, NonZeroU32::new(600)] {
        let group = group(2, |relay| {
            relay.balance = Balance::Cookie("session".to_owned());
            relay.limits.slow_start = Duration::from_secs(10);
            relay.limits.connecting_max = connecting_max;
        });
        let visit = |hash| group.choose(hash, &mut Tried::default(), START).unwrap();
        // All of them at one time.
        let homes = || (0..500_u64).map(|client| visit(Some(sticky_hash(&client.to_be_bytes()))));
        let before: Vec<usize> = homes().collect::<Vec<_>>().iter().map(index).collect();
        group.set_checked(0, Some("gone".to_owned()), START);
        group.set_checked(0, None, START);
        let attempts: Vec<Attempt> = homes().collect();
        assert_eq!(attempts.iter().map(index).collect::<Vec<_>>(), before, "{connecting_max:?}");
        drop(attempts);
        // Those whose requests lack the cookie are spared it.
        let others: Vec<Attempt> = (0..100).map(|_| visit(None)).collect();
        let at_first = others.iter().filter(|attempt| index(attempt) == 0).count();
        assert!(at_first <= 1, "{connecting_max:?}: {at_first}");
    }
}

fn named(count: usize) -> Arc<Group> {
    let hosts = (0..count).map(|index| UpstreamAddress::Name { host: format!("h{index}.example"), port: 80 });
    Group::new("chat", &fixture::relay(hosts), fixture::states(count))
}

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_name_without_an_address_is_passed_over() {
    let group = named(2);
    assert_eq!(choose(&group, START).unwrap_err(), Unavailable::Unresolved);
    group.set_lookup_fault(0, "no such name".to_owned());
    assert_eq!(group.upstreams[0].fault().as_deref(), Some("no such name"));
    group.set_addresses(1, &addresses(&["10.0.0.1:80"]), START);
    assert_eq!(visited(&group, 3, START), [1, 1, 1]);
}

#[test]
fn the_addresses_of_a_name_take_turns_and_one_that_fails_is_tried_last() {
    let group = named(1);
    group.set_addresses(0, &addresses(&["[::1]:80", "127.0.0.1:80"]), START);
    let next = || choose(&group, START).unwrap().address().to_string();
    assert_eq!([(); 4].map(|()| next()), ["[::1]:80", "127.0.0.1:80", "[::1]:80", "127.0.0.1:80"]);

    // Only one of the two works. A wave of clients that all meet the other one first ejects nobody.
    let mut tries = [Tried::default(); 6];
    let wave: Vec<Attempt> =
        tries.iter_mut().map(|tried| group.choose(None, tried, START).unwrap()).collect();
    let mut leases = Vec::new();
    for (attempt, tried) in wave.into_iter().zip(&mut tries) {
        if attempt.address().to_string() == "127.0.0.1:80" {
            leases.push(attempt.opened(START));
            continue;
        }
        attempt.failed(ConnectResult::Refused, CLIENT, START);
        let second = group.choose(None, tried, START).unwrap();
        assert_eq!(second.address().to_string(), "127.0.0.1:80", "each address once");
        leases.push(second.opened(START));
    }
    assert!(group.upstreams[0].state.is_healthy());
    assert_eq!([(); 3].map(|()| next()), ["127.0.0.1:80"; 3], "others need not find out again");

    // Resolving again gives it another chance.
    group.set_addresses(0, &addresses(&["[::1]:80", "127.0.0.1:80"]), START);
    let again = [(); 2].map(|()| next());
    assert!(again.contains(&"[::1]:80".to_owned()), "{again:?}");
}

#[test]
fn an_upstream_is_ejected_once_all_of_its_addresses_fail() {
    let group = named(2);
    group.set_addresses(0, &addresses(&["10.0.0.1:80", "10.0.0.2:80"]), START);
    group.set_addresses(1, &addresses(&["10.0.1.1:80"]), START);
    for client in 0..3 {
        assert!(group.upstreams[0].state.is_healthy(), "client {client}");
        let mut tried = Tried::default();
        while let Ok(attempt) = group.choose(None, &mut tried, START) {
            match index(&attempt) {
                0 => attempt.failed(ConnectResult::Refused, CLIENT, START),
                _ => drop(attempt.opened(START)),
            }
        }
        assert_eq!(tried.count, 3);
    }
    assert_eq!(group.upstreams[0].state.ejections(), 1);
}

#[test]
fn an_upstream_is_ejected_once_all_of_its_addresses_hang_though_no_client_waits_for_all() {
    let group = named(2);
    group.set_addresses(0, &addresses(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]), START);
    group.set_addresses(1, &addresses(&["10.0.1.1:80"]), START);
    let hang = || loop {
        let mut attempt = choose(&group, START).unwrap();
        if index(&attempt) == 0 {
            // The client has no time left for another address.
            attempt.give_up();
            break attempt.failed(ConnectResult::TimedOut, CLIENT, START);
        }
        drop(attempt.opened(START));
    };
    // The first two speak against their addresses alone.
    for client in 0..5 {
        assert!(group.upstreams[0].state.is_healthy(), "client {client}");
        hang();
    }
    assert_eq!(group.upstreams[0].state.ejections(), 1);
}

#[test]
fn a_name_that_was_missing_begins_slowly_but_not_at_the_start() {
    let mut relay = fixture::relay([UpstreamAddress::Name { host: "h.example".to_owned(), port: 80 }]);
    relay.limits.slow_start = Duration::from_secs(10);
    relay.limits.connecting_max = NonZeroU32::new(100);
    for (fault, expected) in [(None, 100), (Some("no such name"), 1)] {
        let group = Group::new("chat", &relay, fixture::states(1));
        if let Some(fault) = fault {
            group.set_lookup_fault(0, fault.to_owned());
        }
        group.set_addresses(0, &addresses(&["10.0.0.1:80"]), START);
        let attempts: Vec<_> = std::iter::from_fn(|| choose(&group, START).ok()).collect();
        assert_eq!(attempts.len(), expected, "{fault:?}");
    }
}

#[test]
fn sources_take_turns_within_the_family_of_the_upstream() {
    let texts = ["127.0.0.2", "::1", "127.0.0.3"];
    let group = group(1, |relay| relay.sources = texts.iter().map(|text| text.parse().unwrap()).collect());
    let source = || choose(&group, START).unwrap().source().map(|source| source.to_string());
    assert_eq!([(); 3].map(|()| source().unwrap()), ["127.0.0.2", "127.0.0.3", "127.0.0.2"]);
    let unix = UpstreamAddress::Unix("/run/chat.sock".into());
    let mut relay = fixture::relay([unix]);
    relay.sources.clone_from(&group.sources);
    let group = Group::new("chat", &relay, fixture::states(1));
    let attempt = choose(&group, START).unwrap();
    assert_eq!(attempt.address(), &Address::Unix(Path::new("/run/chat.sock").into()));
    assert_eq!(attempt.source(), None);
}

#[test]
fn shards_together_keep_the_limits_and_leave_nothing_behind() {
    let limits = UpstreamLimits {
        connections_max: NonZeroU32::new(3),
        connecting_max: NonZeroU32::new(2),
        eject_after: NonZeroU32::new(2),
        eject_for: Duration::from_millis(5),
        ..UpstreamLimits::DEFAULT
    };
    let group = limited(3, limits);
    let work = |seed: u64| {
        let mut kept = Vec::new();
        for step in 0..20_000_u64 {
            let bits = hash::weight(seed, step);
            let hash = (bits & 1 == 0).then_some(bits);
            if let Ok(attempt) = group.choose(hash, &mut Tried::default(), step) {
                match bits >> 8 & 3 {
                    0 => drop(attempt),
                    1 => attempt.failed(ConnectResult::Refused, CLIENT, step),
                    _ => kept.push(attempt.opened(step)),
                }
            }
            if bits >> 16 & 1 == 0 {
                kept.pop();
            }
            for load in group.upstreams.iter().map(|upstream| upstream.state.load()) {
                assert!(load.connections <= 3 && load.connecting <= 2, "{load:?}");
            }
        }
    };
    thread::scope(|scope| {
        let work = &work;
        for seed in 0..4 {
            scope.spawn(move || work(seed));
        }
    });
    assert_eq!(connections(&group), [(0, 0); 3]);
    // Nobody is left on trial: once all ejections are over, each gets a client again.
    let mut seen = visited(&group, 3, START);
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);
}

#[test]
fn a_lease_is_small() {
    assert_eq!(size_of::<Lease>(), 16);
}
