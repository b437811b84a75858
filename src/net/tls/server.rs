//! The server's side of TLS: which certificate a client gets, and how it comes back without one.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::certificate::{Certificate, Versions};

/// What a port offers its clients, the same for all shards. Immutable: another certificate makes other settings.
#[derive(Debug)]
pub struct ServerSettings {
    config: Arc<ServerConfig>,
}

/// The keys of session tickets. Every shard has the same, so that a client resumes wherever it comes to, and they
/// outlive a change of certificates. They are made new every six hours, and those before are good for as long again.
#[derive(Clone, Debug)]
pub struct Tickets {
    ticketer: Arc<dyn ProducesTickets>,
}

impl Tickets {
    /// New keys.
    ///
    /// # Errors
    /// Where the system has no random bytes.
    pub fn new() -> Result<Self, rustls::Error> {
        Ticketer::new().map(|ticketer| Self { ticketer })
    }
}

impl ServerSettings {
    /// Settings with these certificates, at least one.
    ///
    /// # Panics
    /// Where there is none.
    pub fn new(certificates: &[Certificate], versions: Versions, tickets: &Tickets) -> Self {
        let resolver = Resolver::new(certificates);
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&versions.to_rustls())
            .expect("the provider has suites for each version")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![super::HTTP_1_1.to_vec()];
        config.ticketer = Arc::clone(&tickets.ticketer);
        // What a ticket holds need not be held here: it would be shared by the shards, and locked.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Self { config: Arc::new(config) }
    }

    /// These settings, and HTTP/2 before HTTP/1.1.
    #[must_use]
    pub fn offering_http2(self) -> Self {
        let mut config = Arc::unwrap_or_clone(self.config);
        config.alpn_protocols.insert(0, super::HTTP_2.to_vec());
        Self { config: Arc::new(config) }
    }

    /// As rustls has it.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

/// Which certificate a client gets: one that is for the name it asks for, else the first.
///
/// Where several are for it, as an ECDSA and an RSA one may be, the client gets the first whose signatures it can verify.
struct Resolver {
    keys: Vec<Arc<CertifiedKey>>,
    /// The indices of the keys by the names that they are for, in lower case; a wildcard by what follows its `*`.
    exact: HashMap<String, Vec<usize>>,
    wildcard: HashMap<String, Vec<usize>>,
}

impl Resolver {
    fn new(certificates: &[Certificate]) -> Self {
        assert!(!certificates.is_empty(), "a port of TLS has a certificate");
        let keys = certificates.iter().map(|certificate| Arc::clone(&certificate.key)).collect();
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for (index, certificate) in certificates.iter().enumerate() {
            for name in &certificate.names {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix('*') {
                    Some(suffix) => wildcard.entry(suffix.to_owned()).or_default().push(index),
                    None => exact.entry(name).or_default().push(index),
                }
            }
        }
        Self { keys, exact, wildcard }
    }

    /// The certificates for a name, which rustls has in lower case.
    fn candidates(&self, name: &str) -> &[usize] {
        // A star stands for exactly one label (RFC 9525 section 6.3).
        let under_star = || name.find('.').and_then(|dot| self.wildcard.get(&name[dot..]));
        self.exact.get(name).or_else(under_star).map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let candidates = name.as_deref().map_or(&[][..], |name| self.candidates(name));
        let key = |index: &usize| &self.keys[*index];
        let verifiable =
            |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        // Who asks for no name gets any that it can verify, the first of all if there is none.
        let chosen = if candidates.is_empty() {
            self.keys.iter().find(verifiable).or(self.keys.first())
        } else {
            candidates.iter().map(key).find(verifiable).or(candidates.first().map(key))
        };
        chosen.cloned()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exact, wildcard, .. } = self;
        let mut shown = formatter.debug_struct("Resolver");
        shown.field("exact", exact).field("wildcard", wildcard).finish_non_exhaustive()
    }
}
