//! Certificates and keys: named in the configuration, kept in files, read again whenever these change.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use der::asn1::{GeneralizedTime, UtcTime};
use der::{DateTime, Decode, Reader, SliceReader, Tag};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SupportedProtocolVersion};

use crate::protocol::closed_set;

/// Bytes of a file at most: the longest bundle of authorities has a quarter of that, and `/dev/zero` no end.
const FILE_SIZE_MAX: usize = 1024 * 1024;

/// `tls` of a port: what it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTls {
    /// At least one. The first is for clients that ask for no name, or one that none is for.
    pub certificates: Vec<CertificateFiles>,
    /// Which versions are spoken.
    pub versions: Versions,
}

closed_set! {
    /// A version of TLS. Earlier ones are spoken by nobody any more (RFC 8996).
    pub enum Version {
        /// TLS 1.2.
        Tls12 => "1.2",
        /// TLS 1.3.
        Tls13 => "1.3",
    }
}

/// Versions of TLS, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub(super) has: [bool; Version::COUNT],
}

impl Versions {
    /// Every version.
    pub const ALL: Self = Self { has: [true; _] };

    /// Those that are spoken, the oldest first.
    pub fn iter(self) -> impl Iterator<Item = Version> {
        Version::ALL.iter().copied().filter(move |version| self.has[version.index()])
    }

    /// As rustls wants them.
    pub fn to_rustls(self) -> Vec<&'static SupportedProtocolVersion> {
        let of = |version| match version {
            Version::Tls12 => &rustls::version::TLS12,
            Version::Tls13 => &rustls::version::TLS13,
        };
        self.iter().map(of).collect()
    }
}

/// Where a certificate and its key are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those that lead from it to an authority, in PEM.
    pub certificate: NamedFile,
    /// Its private key, in PEM.
    pub key: NamedFile,
}

/// A file that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// As it was written.
    pub name: String,
    /// Where it is: relative to the directory of the configuration.
    pub path: PathBuf,
}

impl NamedFile {
    pub(super) fn new(name: &str, base: &Path) -> Self {
        Self { name: name.to_owned(), path: base.join(name) }
    }

    /// The content.
    fn read(&self) -> Result<Vec<u8>, CertificateFault> {
        let mut content = Vec::new();
        let read = File::open(&self.path)
            .and_then(|file| file.take(FILE_SIZE_MAX as u64 + 1).read_to_end(&mut content));
        match read {
            Ok(_) if content.len() <= FILE_SIZE_MAX => Ok(content),
            Ok(_) => Err(CertificateFault::TooLarge),
            Err(error) => Err(CertificateFault::Unreadable { cause: error.kind() }),
        }
    }

    /// The certificates in the file, at least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CertificateFault> {
        let content = self.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => Err(CertificateFault::NoCertificate),
            Ok(certificates) => Ok(certificates),
            Err(_) => Err(CertificateFault::NotPem),
        }
    }

    /// The permissions of the file, where others than its owner and its group may read it.
    pub(super) fn open_to_others(&self) -> Option<u32> {
        let mode = self.path.metadata().ok()?.permissions().mode() & 0o777;
        (mode & 0o004 != 0).then_some(mode)
    }

    /// The authorities in the file, at least one.
    ///
    /// # Errors
    /// The [`CertificateFault`].
    pub fn authorities(&self) -> Result<Arc<RootCertStore>, CertificateFault> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|_| CertificateFault::NotACertificate)?;
        }
        Ok(Arc::new(roots))
    }
}

/// A certificate with its key, read and found to fit.
#[derive(Clone)]
pub struct Certificate {
    /// Both, as rustls wants them.
    pub key: Arc<CertifiedKey>,
    /// The hosts that it is for; a wildcard begins with `*.`.
    pub names: Vec<String>,
    /// Before when it is not good.
    pub not_before: DateTime,
    /// After when it is not good.
    pub not_after: DateTime,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Which of the two files has a fault, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesFault {
    /// The certificate's.
    Certificate(CertificateFault),
    /// The key's.
    Key(CertificateFault),
}

impl CertificateFiles {
    /// Reads both, and holds them against each other.
    ///
    /// # Errors
    /// Every [`FilesFault`], at least one.
    pub fn load(&self) -> Result<Certificate, Vec<FilesFault>> {
        let chain = self.certificate.certificates().and_then(|chain| {
            let read = read(&chain[0]).ok_or(CertificateFault::NotACertificate)?;
            Ok((chain, read))
        });
        let key = self.key.read().and_then(|content| {
            let key = PrivateKeyDer::from_pem_slice(&content).map_err(|error| match error {
                rustls::pki_types::pem::Error::NoItemsFound => CertificateFault::NoKey,
                _ => CertificateFault::NotPem,
            })?;
            rustls::crypto::ring::sign::any_supported_type(&key).map_err(|_| CertificateFault::UnknownKey)
        });
        let ((chain, (names, [not_before, not_after])), key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => {
                let of_chain = chain.err().map(FilesFault::Certificate);
                return Err(of_chain.into_iter().chain(key.err().map(FilesFault::Key)).collect());
            }
        };
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(vec![FilesFault::Key(CertificateFault::KeyMismatch)]),
        }
        Ok(Certificate { key: Arc::new(key), names, not_before, not_after })
    }
}

/// The names that a certificate is for, and the times between which it is good; `None` where it cannot be read.
fn read(certificate: &CertificateDer<'_>) -> Option<(Vec<String>, [DateTime; 2])> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let names = parsed.valid_dns_names().map(str::to_owned).collect();
    Some((names, validity(certificate).ok()?))
}

/// The times between which a certificate is good (RFC 5280 section 4.1).
fn validity(certificate: &[u8]) -> der::Result<[DateTime; 2]> {
    let time = |fields: &mut SliceReader<'_>| match Tag::peek(fields)? {
        Tag::UtcTime => UtcTime::decode(fields).map(|time| time.to_date_time()),
        _ => GeneralizedTime::decode(fields).map(|time| time.to_date_time()),
    };
    let skip = |fields: &mut SliceReader<'_>| fields.tlv_bytes().map(|_| ());
    let mut certificate = SliceReader::new(certificate)?;
    certificate.sequence(|fields| {
        let times = fields.sequence(|fields| {
            if Tag::peek(fields)?.is_context_specific() {
                skip(fields)?; // version
            }
            skip(fields)?; // serialNumber
            skip(fields)?; // signature
            skip(fields)?; // issuer
            let times = fields.sequence(|fields| Ok::<_, der::Error>([time(fields)?, time(fields)?]))?;
            while !fields.is_finished() {
                skip(fields)?;
            }
            Ok::<_, der::Error>(times)
        })?;
        while !fields.is_finished() {
            skip(fields)?;
        }
        Ok(times)
    })
}

/// Now, as certificates tell times.
#[expect(
    clippy::disallowed_methods,
    reason = "what has expired is told where a file is checked, below the clock's floor"
)]
pub(super) fn now() -> DateTime {
    DateTime::from_system_time(SystemTime::now()).unwrap_or(DateTime::INFINITY)
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// It cannot be read.
    Unreadable {
        /// What the system said.
        cause: io::ErrorKind,
    },
    /// It is larger than any certificate or key.
    TooLarge,
    /// Something in it looks like PEM and is none.
    NotPem,
    /// There is no certificate in it.
    NoCertificate,
    /// What stands as a certificate in it is none.
    NotACertificate,
    /// There is no private key in it.
    NoKey,
    /// The key is of a kind that is not spoken, or encrypted.
    UnknownKey,
    /// The key is that of another certificate.
    KeyMismatch,
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unreadable { cause } => return write!(formatter, "the file cannot be read: {cause}"),
            Self::TooLarge => "the file is larger than a MiB",
            Self::NotPem => "the file holds something that begins like PEM and is none",
            Self::NoCertificate => "the file holds no certificate in PEM",
            Self::NotACertificate => "the file holds something that is no X.509 certificate",
            Self::NoKey => "the file holds no private key in PEM",
            Self::UnknownKey => "the key is neither RSA, ECDSA of P-256 or P-384, nor Ed25519",
            Self::KeyMismatch => "the key is not the one of the certificate",
        })
    }
}

impl fmt::Display for FilesFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(fault) => write!(formatter, "certificate: {fault}"),
            Self::Key(fault) => write!(formatter, "key: {fault}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
