//! Certificates for tests: an authority of the test's own, and what it signs, in files of the test's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SignatureAlgorithm, date_time_ymd};
use rustls::RootCertStore;

use super::{Certificate, CertificateFiles, NamedFile};

/// An authority, and a directory for what it signs; removed when dropped.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) directory: PathBuf,
}

impl Authority {
    /// An authority for the test of this name.
    pub(crate) fn new(test_name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("ringway-{test_name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), directory }
    }

    /// Signs a certificate for these names with a key of this kind, good in these years, and writes it to `NAME.pem` and
    /// `NAME.key`.
    pub(crate) fn sign(
        &self,
        name: &str,
        hosts: &[&str],
        kind: &'static SignatureAlgorithm,
        years: [i32; 2],
    ) -> CertificateFiles {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
        let key = KeyPair::generate_for(kind).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = self.files(name);
        std::fs::write(&files.certificate.path, certificate.pem()).unwrap();
        std::fs::write(&files.key.path, key.serialize_pem()).unwrap();
        set_mode(&files.key.path, 0o600);
        files
    }

    /// A good certificate of the usual kind.
    pub(crate) fn good(&self, name: &str, hosts: &[&str]) -> CertificateFiles {
        self.sign(name, hosts, &rcgen::PKCS_ECDSA_P256_SHA256, [2020, 2090])
    }

    /// The same, read.
    pub(crate) fn certificate(&self, name: &str, hosts: &[&str]) -> Certificate {
        self.good(name, hosts).load().unwrap()
    }

    /// Where a certificate of this name is.
    pub(crate) fn files(&self, name: &str) -> CertificateFiles {
        let file = |extension| NamedFile::new(&format!("{name}.{extension}"), &self.directory);
        CertificateFiles { certificate: file("pem"), key: file("key") }
    }

    /// What a client believes that knows this authority alone.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        NamedFile::new("ca.pem", &self.directory).authorities().unwrap()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Sets who may read a file.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
