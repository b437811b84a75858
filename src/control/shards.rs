//! The shards as the control thread sees them: threads to start, to send mail to, and to wait for.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout_at};

use super::RunError;
use super::certificates::PortTls;
use super::folders::Folders;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::net::listen::Listeners;
use crate::route::auth::Keyring;
use crate::service::addresses::Addresses;
use crate::service::admission::Admission;
use crate::service::upstream::Group;
use crate::service::web::files::readers::Readers;
use crate::shard::{self, Listener, Mail, Mailbox, Setup, StartError, Started};

/// What a shard's thread reports.
#[derive(Debug)]
pub(super) enum Event {
    /// It serves, or could not begin to.
    Started {
        /// Which shard.
        index: usize,
        /// How it came up.
        outcome: Result<Started, StartError>,
    },
    /// Its thread has ended, by a panic perhaps.
    Ended {
        /// Which shard.
        index: usize,
    },
}

/// All shards.
pub(super) struct Shards {
    mailboxes: Vec<Mailbox>,
    threads: Vec<JoinHandle<()>>,
    events: Receiver<Event>,
    running: usize,
    has_port: Vec<bool>,
}

/// What all shards have in common.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Arc<Config>,
    pub(super) metrics: &'a Metrics,
    /// The upstreams of each route that relays.
    pub(super) groups: &'a [Option<Arc<Group>>],
    /// The TLS of each port that speaks it.
    pub(super) tls: &'a [Option<Arc<PortTls>>],
    pub(super) folders: Folders,
    /// The keys of each route that verifies tokens.
    pub(super) keyrings: &'a [Option<Arc<Keyring>>],
}

impl Shards {
    /// Starts a thread for each shard and hands it its listeners.
    pub(super) fn spawn(
        parts: Parts<'_>,
        listeners: Vec<Option<Listeners>>,
        shard_count: usize,
        connections_max: u32,
    ) -> Result<Self, RunError> {
        let Parts { config, metrics, groups, tls, folders, keyrings } = parts;
        // Each shard reports twice, so nobody ever waits for room.
        let (sender, events) = channel(2 * shard_count);
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let admission = Admission::new(connections_max);
        let has_port = listeners.iter().map(Option::is_some).collect();
        let mut setups = Vec::new();
        let mut mailboxes = Vec::new();
        for index in 0..shard_count {
            let (mailbox, inbox) = shard::mailbox().map_err(RunError::System)?;
            mailboxes.push(mailbox);
            let desk = folders.readers.as_ref().map(Readers::desk).transpose().map_err(RunError::System)?;
            setups.push(Setup {
                index,
                core: (!cores.is_empty()).then(|| cores[index % cores.len()]),
                io_driver: config.gateway.io_driver,
                config: Arc::clone(config),
                upstreams: groups
                    .iter()
                    .enumerate()
                    .map(|(route_index, group)| {
                        Some((Arc::clone(group.as_ref()?), metrics.relay_cells(index, route_index)?))
                    })
                    .collect(),
                desk,
                folders: folders.folders.clone(),
                keyrings: keyrings.to_vec(),
                memory: metrics.memory(),
                listeners: Vec::new(),
                admission: Arc::clone(&admission),
                cells: metrics.shard_cells(index),
                inbox,
            });
        }
        for (port_index, listeners) in listeners.into_iter().enumerate() {
            let max = config.ports[port_index]
                .limits
                .connections_max
                .unwrap_or(connections_max)
                .min(connections_max);
            metrics.port_state(port_index).set_connections_limit(max.into());
            let admission = Admission::new(max);
            let limits = &config.ports[port_index].limits;
            let addresses = Addresses::new(
                limits.connections_per_address_max,
                limits.handshakes_per_address_per_s,
                limits.ipv6_prefix,
            );
            let size = addresses.as_ref().map_or(0, |addresses| addresses.size());
            metrics.port_state(port_index).set_address_tables_size(size as u64);
            let Some(listeners) = listeners else { continue };
            let number = listeners.address.port();
            for (setup, socket) in setups.iter_mut().zip(listeners.sockets) {
                let cells = metrics.port_cells(setup.index, port_index);
                setup.listeners.push(Listener {
                    port_index,
                    number,
                    socket,
                    tls: tls[port_index].as_ref().map(|tls| tls.settings()),
                    cells,
                    admission: Arc::clone(&admission),
                    addresses: addresses.clone(),
                });
            }
        }
        let mut threads = Vec::new();
        for setup in setups {
            let reporter = Reporter { index: setup.index, sender: sender.clone() };
            threads.push(
                shard::spawn(setup, move |outcome| reporter.started(outcome)).map_err(RunError::System)?,
            );
        }
        Ok(Self { mailboxes, running: threads.len(), threads, events, has_port })
    }

    /// Waits until every shard serves.
    ///
    /// # Errors
    /// The first reason why one does not.
    pub(super) async fn started(&mut self) -> Result<Vec<Started>, StartError> {
        let mut started = Vec::new();
        while started.len() < self.threads.len() {
            match self.next_event().await {
                Event::Started { outcome, .. } => started.push(outcome?),
                Event::Ended { index } => {
                    let message = format!("shard {index} ended before it had started");
                    return Err(StartError::Io(std::io::Error::other(message)));
                }
            }
        }
        Ok(started)
    }

    /// Sends the same to all.
    pub(super) fn post(&self, mail: Mail) {
        for mailbox in &self.mailboxes {
            // A shard that has ended wants no more mail.
            let _ = mailbox.send(mail);
        }
    }

    /// Waits until every thread has ended.
    ///
    /// # Errors
    /// [`RunError::Stuck`] where the deadline passes first, [`RunError::ShardEnded`] where one ended in a panic.
    pub(super) async fn ended(&mut self, deadline: Instant) -> Result<(), RunError> {
        while self.running > 0 {
            timeout_at(deadline, self.next_event()).await.map_err(|_| RunError::Stuck)?;
        }
        // A panic has been told by the hook, with its place; it is a failure all the same.
        let outcomes: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        match outcomes.iter().position(Result::is_err) {
            Some(index) => Err(RunError::ShardEnded { index }),
            None => Ok(()),
        }
    }

    /// The next report of any shard.
    pub(super) async fn next_event(&mut self) -> Event {
        let event = self
            .events
            .recv()
            .await
            .expect("each thread reports its end, and is waited for only before that");
        if matches!(event, Event::Ended { .. }) {
            self.running -= 1;
        }
        event
    }

    /// Whether a port has listeners.
    pub(super) fn has_port(&self, port_index: usize) -> bool {
        self.has_port[port_index]
    }
}

/// Reports for one shard; that its thread ended, when dropped.
struct Reporter {
    index: usize,
    sender: Sender<Event>,
}

impl Reporter {
    fn started(&self, outcome: Result<Started, StartError>) {
        self.send(Event::Started { index: self.index, outcome });
    }

    fn send(&self, event: Event) {
        // The channel has room for all that a shard ever reports; it is closed only when the process is ending.
        let _ = self.sender.try_send(event);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.send(Event::Ended { index: self.index });
    }
}
