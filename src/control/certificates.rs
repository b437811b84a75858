//! The certificates of ports: read at start, and again when their files change or somebody asks for it.
//!
//! What is read is held against its key before it is put in force; where it has a fault, what was in force stays. Shards
//! look at the settings when a handshake begins, so connections that are open notice nothing.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use super::RunError;
use crate::config::certificate::{Certificate, CertificateFiles, Versions};
use crate::config::{self, Config, Port};
use crate::metrics::{Metrics, ReloadResult};
use crate::net::tls::{ServerSettings, Tickets};

/// How often the files are looked at, not read. What has changed is read at the next look that finds nothing else
/// changed, since a certificate and its key are written one after the other.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The TLS of one port.
#[derive(Debug)]
pub(super) struct PortTls {
    /// The port's label.
    label: String,
    files: Vec<CertificateFiles>,
    versions: Versions,
    offers_http2: bool,
    tickets: Tickets,
    settings: Arc<ArcSwap<ServerSettings>>,
    /// What was seen of the files before they were read at start.
    first_look: Look,
    /// What is in force.
    facts: ArcSwap<Vec<CertificateFacts>>,
    /// Why what is in the files is not in force; `None` where it is.
    fault: ArcSwapOption<String>,
}

/// What a port offers with these certificates.
fn settings(
    certificates: &[Certificate],
    versions: Versions,
    tickets: &Tickets,
    offers_http2: bool,
) -> ServerSettings {
    let settings = ServerSettings::new(certificates, versions, tickets);
    if offers_http2 { settings.offering_http2() } else { settings }
}

/// What is known of one certificate in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CertificateFacts {
    /// The name of its file, as it was written.
    pub(super) name: String,
    /// The hosts that it is for.
    pub(super) hosts: Vec<String>,
    /// When it expires, in seconds since the Unix epoch.
    pub(super) not_after_timestamp_seconds: u64,
}

impl PortTls {
    fn load(label: &str, tls: &config::PortTls, offers_http2: bool) -> Result<Self, String> {
        let tickets = Tickets::new().map_err(|error| error.to_string())?;
        let (files, versions) = (tls.certificates.clone(), tls.versions);
        let first_look = look(&files);
        let certificates = read(&files)?;
        let settings = settings(&certificates, versions, &tickets, offers_http2);
        Ok(Self {
            label: label.to_owned(),
            facts: ArcSwap::from_pointee(facts(&files, &certificates)),
            files,
            versions,
            offers_http2,
            tickets,
            first_look,
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            fault: ArcSwapOption::empty(),
        })
    }

    /// What shards look at.
    pub(super) fn settings(&self) -> Arc<ArcSwap<ServerSettings>> {
        Arc::clone(&self.settings)
    }

    /// The versions that are spoken.
    pub(super) fn versions(&self) -> Versions {
        self.versions
    }

    /// The certificates in force.
    pub(super) fn facts(&self) -> Arc<Vec<CertificateFacts>> {
        self.facts.load_full()
    }

    /// Why what is in the files is not in force; `None` where it is.
    pub(super) fn fault(&self) -> Option<Arc<String>> {
        self.fault.load_full()
    }

    /// Reads the files again, and puts what is in them in force if it is good.
    fn reload(&self) -> ReloadResult {
        match read(&self.files) {
            Ok(certificates) => {
                let settings = settings(&certificates, self.versions, &self.tickets, self.offers_http2);
                self.settings.store(Arc::new(settings));
                self.facts.store(Arc::new(facts(&self.files, &certificates)));
                self.fault.store(None);
                tracing::info!(port = self.label, "certificates were read again, and are in force");
                ReloadResult::Loaded
            }
            Err(fault) => {
                tracing::error!(
                    port = self.label,
                    fault,
                    "certificates were read again and have a fault; those before stay in force"
                );
                self.fault.store(Some(Arc::new(fault)));
                ReloadResult::Failed
            }
        }
    }
}

/// What tells whether a file has changed, of each.
fn look(files: &[CertificateFiles]) -> Look {
    let files = files.iter().flat_map(|files| [&files.certificate, &files.key]);
    files.map(|file| file.path.metadata().ok().as_ref().map(trace)).collect()
}

/// What was seen of each file; `None` of one that is not there.
type Look = Vec<Option<[i128; 5]>>;

/// Nothing writes a file without changing one of these, nor puts another in its place.
fn trace(metadata: &Metadata) -> [i128; 5] {
    let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    let written = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    [metadata.dev().into(), metadata.ino().into(), metadata.size().into(), written, changed]
}

/// Reads all certificates of a port.
fn read(files: &[CertificateFiles]) -> Result<Vec<Certificate>, String> {
    let mut certificates = Vec::new();
    let mut sentences = Vec::new();
    for files in files {
        match files.load() {
            Ok(certificate) => certificates.push(certificate),
            Err(faults) => {
                sentences.extend(faults.iter().map(|fault| format!("{:?}: {fault}", files.certificate.name)));
            }
        }
    }
    if sentences.is_empty() { Ok(certificates) } else { Err(sentences.join("; ")) }
}

fn facts(files: &[CertificateFiles], certificates: &[Certificate]) -> Vec<CertificateFacts> {
    let facts = files.iter().zip(certificates).map(|(files, certificate)| CertificateFacts {
        name: files.certificate.name.clone(),
        hosts: certificate.names.clone(),
        not_after_timestamp_seconds: certificate.not_after.unix_duration().as_secs(),
    });
    facts.collect()
}

/// The TLS of each port; `None` of one that speaks none.
pub(super) fn load(config: &Config) -> Result<Vec<Option<Arc<PortTls>>>, RunError> {
    let load = |(port_index, port): (usize, &Port)| {
        let Some(tls) = &port.tls else { return Ok(None) };
        match PortTls::load(&port.label, tls, config.offers_http2(port_index)) {
            Ok(tls) => Ok(Some(Arc::new(tls))),
            Err(fault) => Err(RunError::Certificate { port: port.label.clone(), fault }),
        }
    };
    config.ports.iter().enumerate().map(load).collect()
}

/// When each certificate expires, those that several ports have once.
pub(super) fn expiries(ports: &[Option<Arc<PortTls>>]) -> Vec<(String, u64)> {
    let mut expiries: Vec<(String, u64)> = Vec::new();
    for facts in ports.iter().flatten().map(|port| port.facts()) {
        for CertificateFacts { name, not_after_timestamp_seconds, .. } in &*facts {
            if expiries.iter().all(|(other, _)| other != name) {
                expiries.push((name.clone(), *not_after_timestamp_seconds));
            }
        }
    }
    expiries
}

/// Begins to watch the files of all ports, in `tasks`; each of `hang_ups` has them read at once.
pub(super) fn watch(
    ports: &[Option<Arc<PortTls>>],
    metrics: &Arc<Metrics>,
    hang_ups: watch::Receiver<()>,
    tasks: &mut JoinSet<()>,
) {
    if ports.iter().any(Option::is_some) {
        tasks.spawn(keep_watching(ports.to_vec(), Arc::clone(metrics), hang_ups));
    }
}

async fn keep_watching(
    ports: Vec<Option<Arc<PortTls>>>,
    metrics: Arc<Metrics>,
    mut hang_ups: watch::Receiver<()>,
) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched: Vec<Watched> = ports.iter().flatten().map(Watched::new).collect();
    loop {
        let is_demanded = tokio::select! {
            _ = ticks.tick() => false,
            told = hang_ups.changed() => match told {
                Ok(()) => true,
                // Whoever takes signals is gone, and this goes with it.
                Err(_) => std::future::pending().await,
            },
        };
        // Files may be on a disk that is slow, or on none that answers.
        let looked = spawn_blocking(move || {
            let results: Vec<_> =
                watched.iter_mut().filter_map(|watched| watched.look(is_demanded)).collect();
            (watched, results)
        });
        let results;
        (watched, results) = looked.await.expect("a look does not panic");
        for result in &results {
            metrics.certificates_reloaded(*result);
        }
        if results.contains(&ReloadResult::Loaded) {
            metrics.set_certificates(expiries(&ports));
        }
    }
}

/// The files of a port, and what was last seen of them.
struct Watched {
    port: Arc<PortTls>,
    /// When they were read.
    read: Look,
    /// At the last look.
    latest: Look,
}

impl Watched {
    fn new(port: &Arc<PortTls>) -> Self {
        let look = &port.first_look;
        Self { port: Arc::clone(port), read: look.clone(), latest: look.clone() }
    }

    /// Looks whether the files have changed, and have not since the last look; then, or on demand, reads them again.
    fn look(&mut self, is_demanded: bool) -> Option<ReloadResult> {
        let now = look(&self.port.files);
        let has_settled = now == self.latest && now != self.read;
        self.latest.clone_from(&now);
        (is_demanded || has_settled).then(|| {
            self.read = now;
            self.port.reload()
        })
    }
}

#[cfg(test)]
mod tests;
