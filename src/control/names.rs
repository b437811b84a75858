//! The names of upstreams: resolved before the gateway serves, and again at intervals.
//!
//! Each name has a task of its own, and so one lookup under way at a time, however long a name server is silent. Only
//! the control thread looks up; shards see the addresses change.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::net::clock;
use crate::service::upstream::Group;

/// How long the start of the gateway waits for first answers. It serves without them, since other routes do not need
/// them, and a name server may be a machine that starts at the same time.
const FIRST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a change of one name is told at most: some names change with every answer.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// Asks the system for the addresses of a host, with this port.
///
/// # Errors
/// What the resolver reports.
pub(super) async fn lookup(host: Arc<str>, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((&*host, port)).await?.collect())
}

/// Resolves every name of these groups, and goes on doing so in `tasks`, with this interval between an answer and the
/// next question. Returns when each has had an answer, or the time for that is over.
pub(super) async fn resolve<L, F>(
    groups: &[Arc<Group>],
    interval: Duration,
    lookup: L,
    tasks: &mut JoinSet<()>,
) where
    L: Fn(Arc<str>, u16) -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<Vec<SocketAddr>>> + Send,
{
    let (unanswered, mut answered) = mpsc::channel::<()>(1);
    for name in Name::all_of(groups) {
        let (lookup, mut unanswered) = (lookup.clone(), Some(unanswered.clone()));
        tasks.spawn(async move {
            let mut name = name;
            loop {
                let answer = lookup(Arc::clone(&name.host), name.port).await;
                name.take(answer, Instant::now(), clock::monotonic_ms());
                drop(unanswered.take());
                sleep(interval).await;
            }
        });
    }
    drop(unanswered);
    // Nothing is sent: the channel ends once every name has dropped its sender.
    let _ = timeout(FIRST_ANSWERS_TIMEOUT, answered.recv()).await;
}

/// One name, and the upstreams that are known by it.
struct Name {
    host: Arc<str>,
    port: u16,
    upstreams: Vec<(Arc<Group>, usize)>,
    /// Sorted, since a resolver may give them in another order each time.
    addresses: Vec<SocketAddr>,
    fault: Option<String>,
    told_at: Option<Instant>,
    /// Changes since the latest that was told.
    untold: u32,
}

impl Name {
    fn all_of(groups: &[Arc<Group>]) -> Vec<Self> {
        let mut names = BTreeMap::<_, Vec<_>>::new();
        for group in groups {
            for (index, upstream) in group.upstreams().iter().enumerate() {
                if let Some(host) = upstream.host() {
                    names.entry(host).or_default().push((Arc::clone(group), index));
                }
            }
        }
        let names = names.into_iter().map(|((host, port), upstreams)| Self {
            host: host.into(),
            port,
            upstreams,
            addresses: Vec::new(),
            fault: None,
            told_at: None,
            untold: 0,
        });
        names.collect()
    }

    /// Hands an answer on to the upstreams, and tells what it changes. A lookup that failed changes no address: those
    /// that were good a moment ago are a better guess than none.
    fn take(&mut self, answer: io::Result<Vec<SocketAddr>>, now: Instant, now_ms: u64) {
        let answer = match answer {
            Ok(addresses) if addresses.is_empty() => Err("the name has no address".to_owned()),
            Ok(addresses) => Ok(addresses),
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok(mut addresses) => {
                addresses.sort_unstable();
                addresses.dedup();
                for (group, index) in &self.upstreams {
                    // Also where they are the same: what failed among them is forgotten, and gets another chance.
                    group.set_addresses(*index, &addresses, now_ms);
                }
                let before = std::mem::replace(&mut self.addresses, addresses);
                let had_fault = self.fault.take().is_some();
                // The first answer is no change.
                if !had_fault && (before.is_empty() || before == self.addresses) {
                    return;
                }
                if let Some(untold) = self.may_tell(now) {
                    let (from, to) = (join(&before), join(&self.addresses));
                    let name = self.label();
                    tracing::info!(name, from, to, untold, "the name of an upstream is resolved anew");
                }
            }
            Err(fault) => {
                for (group, index) in &self.upstreams {
                    group.set_lookup_fault(*index, fault.clone());
                }
                // The same failure in other words is no news.
                if self.fault.replace(fault.clone()).is_none()
                    && let Some(untold) = self.may_tell(now)
                {
                    let (name, kept) = (self.label(), join(&self.addresses));
                    tracing::warn!(name, fault, kept, untold, "the name of an upstream cannot be resolved");
                }
            }
        }
    }

    /// Whether a change may be told now; if so, how many since the latest were not.
    fn may_tell(&mut self, now: Instant) -> Option<u32> {
        if self.told_at.is_some_and(|told_at| now.saturating_duration_since(told_at) < TELL_INTERVAL) {
            self.untold += 1;
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    fn label(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

fn join(addresses: &[SocketAddr]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending, ready};
    use std::sync::Mutex;

    use super::*;
    use crate::config::UpstreamAddress;
    use crate::service::upstream::Address;
    use crate::service::upstream::fixture;

    const MINUTE: Duration = Duration::from_secs(60);

    fn group(hosts: &[&str]) -> Arc<Group> {
        let names = hosts.iter().map(|&host| UpstreamAddress::Name { host: host.to_owned(), port: 80 });
        Group::new("chat", &fixture::relay(names), fixture::states(hosts.len()))
    }

    fn addresses(of: &Group, index: usize) -> Vec<String> {
        of.upstreams()[index].addresses().iter().map(Address::to_string).collect()
    }

    /// A resolver that knows what is in a map, and what was asked.
    #[derive(Clone, Default)]
    struct Zone {
        entries: Arc<Mutex<BTreeMap<String, Vec<SocketAddr>>>>,
        questions: Arc<Mutex<u32>>,
    }

    impl Zone {
        fn set(&self, host: &str, addresses: &[&str]) {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            self.entries.lock().unwrap().insert(host.to_owned(), addresses);
        }

        fn lookup(&self) -> impl Fn(Arc<str>, u16) -> Ready<io::Result<Vec<SocketAddr>>> + Clone + use<> {
            let zone = self.clone();
            move |host, _| {
                *zone.questions.lock().unwrap() += 1;
                let entries = zone.entries.lock().unwrap();
                let found = entries.get(&*host).cloned();
                ready(found.ok_or_else(|| io::Error::other("no such name")))
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_resolved_before_serving_and_again_and_keeps_what_it_had_when_that_fails() {
        let group = group(&["a.example", "b.example"]);
        let zone = Zone::default();
        zone.set("a.example", &["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]);
        let mut tasks = JoinSet::new();
        let groups = [Arc::clone(&group), Arc::clone(&group)];
        resolve(&groups, MINUTE, zone.lookup(), &mut tasks).await;
        assert_eq!(*zone.questions.lock().unwrap(), 2, "a name is asked for once, however many have it");
        assert_eq!(addresses(&group, 0), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert!(group.upstreams()[0].state().is_healthy());
        assert!(!group.upstreams()[1].state().is_healthy());
        assert_eq!(group.upstreams()[1].fault().as_deref(), Some("no such name"));

        zone.set("a.example", &["10.0.0.3:80"]);
        zone.set("b.example", &["10.0.1.1:80"]);
        sleep(MINUTE + Duration::from_millis(1)).await;
        assert_eq!(
            (addresses(&group, 0), addresses(&group, 1)),
            (vec!["10.0.0.3:80".to_owned()], vec!["10.0.1.1:80".to_owned()])
        );
        assert!(group.upstreams()[1].state().is_healthy());

        zone.entries.lock().unwrap().clear();
        zone.set("b.example", &[]);
        sleep(MINUTE).await;
        assert_eq!(addresses(&group, 0), ["10.0.0.3:80"]);
        assert_eq!(addresses(&group, 1), ["10.0.1.1:80"], "no address is as good as no answer");
        assert!(group.upstreams()[0].state().is_healthy());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_name_server_holds_the_start_up_for_a_bounded_time_and_is_asked_once() {
        let group = group(&["a.example"]);
        let questions = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&questions);
        let silent = move |_: Arc<str>, _| {
            *counted.lock().unwrap() += 1;
            pending()
        };
        let mut tasks = JoinSet::new();
        let before = Instant::now();
        resolve(&[Arc::clone(&group)], MINUTE, silent, &mut tasks).await;
        assert_eq!(before.elapsed(), FIRST_ANSWERS_TIMEOUT);
        assert_eq!(group.upstreams()[0].fault().as_deref(), Some("its name was not looked up yet"));
        sleep(10 * MINUTE).await;
        assert_eq!(*questions.lock().unwrap(), 1);
    }

    #[tokio::test]
    async fn the_systems_resolver_knows_this_machine() {
        let addresses = lookup("localhost".into(), 81).await.unwrap();
        assert!(!addresses.is_empty());
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 81));
    }

    #[test]
    fn a_change_is_told_at_most_once_in_a_while() {
        let group = group(&["a.example"]);
        let mut name = Name::all_of(&[group]).remove(0);
        let now = Instant::now();
        assert_eq!(name.may_tell(now), Some(0));
        assert_eq!(name.may_tell(now + TELL_INTERVAL / 2), None);
        assert_eq!(name.may_tell(now + TELL_INTERVAL / 2), None);
        assert_eq!(name.may_tell(now + TELL_INTERVAL), Some(2));
    }
}
