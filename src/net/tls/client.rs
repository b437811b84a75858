//! The client's side of TLS: what is believed of a server, and what is kept of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore, SignatureScheme};

/// How many tickets a client keeps that keeps them all: more than that are of no use to any crowd.
const TICKETS_MAX: usize = 16_384;

/// What a client believes and offers; cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    config: Arc<ClientConfig>,
}

/// Whom a client believes.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Who has a certificate of one of these authorities for the name that was asked for.
    Authorities(Arc<RootCertStore>),
    /// Everybody who has the key of some certificate: for measuring, where nothing is at stake.
    Anybody,
}

/// How a client comes back to a server that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comeback {
    /// With a ticket while there is one; few are kept.
    IfPossible,
    /// Like a stranger: every handshake is a full one.
    Never,
    /// With a ticket of the only server that these settings are for, of which all are kept: a crowd of connections takes
    /// and brings many at a time.
    Always,
}

impl ClientSettings {
    /// A client that believes certificates of these authorities, and speaks HTTP/1.1.
    pub fn new(roots: Arc<RootCertStore>) -> Self {
        Self::with(Trust::Authorities(roots), Comeback::IfPossible)
    }

    /// The same, with another trust and another way to come back.
    pub fn with(trust: Trust, comeback: Comeback) -> Self {
        let provider = super::provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions");
        let builder = match trust {
            Trust::Authorities(roots) => builder.with_root_certificates(roots),
            Trust::Anybody => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody { provider }))
            }
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![super::HTTP_1_1.to_vec()];
        config.resumption = match comeback {
            Comeback::IfPossible => Resumption::default(),
            Comeback::Never => Resumption::disabled(),
            Comeback::Always => Resumption::store(Arc::new(Tickets::default())),
        };
        Self { config: Arc::new(config) }
    }

    /// As rustls has it.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

/// Believes every certificate, but not that somebody has its key: handshakes cost what they cost.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The sessions of one server. Each ticket of TLS 1.3 is used once (RFC 8446 appendix C.4), the latest first.
#[derive(Debug, Default)]
struct Tickets {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: Vec<Tls13ClientSessionValue>,
}

impl Tickets {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.kept().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept().tls12 = Some(session);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept().tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.kept().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let tickets = &mut self.kept().tls13;
        if tickets.len() < TICKETS_MAX {
            tickets.push(ticket);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().tls13.pop()
    }
}
