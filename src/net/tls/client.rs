//! The client's side of TLS: what is believed of a server.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// What a client believes and offers; cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    config: Arc<ClientConfig>,
}

impl ClientSettings {
    /// A client that believes certificates of these authorities, and speaks HTTP/1.1.
    pub fn new(roots: Arc<RootCertStore>) -> Self {
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![super::HTTP_1_1.to_vec()];
        Self { config: Arc::new(config) }
    }

    /// As rustls has it.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}
