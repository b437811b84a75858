//! Keys that tokens are verified with: a secret, a public key in PEM, or a set of them in JSON (RFC 7517).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use der::{Reader, SliceReader, Tag};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;

use crate::protocol::closed_set;

/// Bytes of a secret at least: as many as the hash has (RFC 7518 section 3.2).
const SECRET_SIZE_MIN: usize = 32;
/// Bits of an RSA key at least (RFC 7518 section 3.3), and at most: beyond it each token would be a burden.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Keys of a set at most.
const KEY_COUNT_MAX: usize = 100;

closed_set! {
    /// How a token is signed (RFC 7518 section 3.1, RFC 8037 section 3.1).
    pub enum Algorithm {
        /// HMAC with SHA-256, by a secret that both sides have.
        Hs256 => "HS256",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        Rs256 => "RS256",
        /// ECDSA on P-256 with SHA-256.
        Es256 => "ES256",
        /// Ed25519.
        EdDsa => "EdDSA",
    }
}

/// What tokens are verified with: at least one key.
#[derive(Clone, Debug)]
pub struct Keys(Vec<Key>);

/// One key, which is for one algorithm.
#[derive(Clone, Debug)]
pub struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    verifier: DecodingKey,
}

/// Why something is no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// A secret that is too short.
    SecretTooShort,
    /// There is no public key in PEM.
    NoPublicKey,
    /// It is a private key.
    Private,
    /// It is a key of another kind.
    OtherKind {
        /// What the key is for, if it is known.
        found: Option<Algorithm>,
    },
    /// An RSA key of a size that is not taken.
    RsaSize {
        /// Its bits.
        bits: usize,
    },
    /// It is no set of keys.
    NoSet,
    /// There is no key in the set that could verify a token.
    NoneOfUse,
    /// There are too many keys in the set.
    TooMany,
}

impl fmt::Display for KeyFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecretTooShort => write!(formatter, "the secret has less than {SECRET_SIZE_MIN} bytes"),
            Self::NoPublicKey => formatter.write_str("there is no public key in PEM"),
            Self::Private => formatter.write_str("it is a private key"),
            Self::OtherKind { found: Some(algorithm) } => write!(formatter, "it is a key for {algorithm}"),
            Self::OtherKind { found: None } => formatter.write_str("it is a key for something else"),
            Self::RsaSize { bits } => write!(
                formatter,
                "it has {bits} bits, and {} to {} are taken",
                RSA_BITS.start(),
                RSA_BITS.end()
            ),
            Self::NoSet => formatter.write_str("it is no JSON Web Key Set"),
            Self::NoneOfUse => formatter.write_str("no key of the set could verify a token"),
            Self::TooMany => write!(formatter, "there are more than {KEY_COUNT_MAX} keys"),
        }
    }
}

impl Keys {
    /// The one key that a file holds: for HS256 the bytes of a secret, else a public key in PEM.
    ///
    /// # Errors
    /// The [`KeyFault`].
    pub fn one(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, KeyFault> {
        let key = if algorithm == Algorithm::Hs256 {
            if bytes.len() < SECRET_SIZE_MIN {
                return Err(KeyFault::SecretTooShort);
            }
            DecodingKey::from_secret(bytes)
        } else {
            public_key(algorithm, bytes)?
        };
        Ok(Self(vec![Key { id: None, algorithm, verifier: key }]))
    }

    /// The keys of a set (RFC 7517 section 5) that could verify a token. Others are passed over, as section 5 demands: those
    /// for something else, those of kinds that are not known. So are secrets: whoever publishes one has none.
    ///
    /// # Errors
    /// The [`KeyFault`].
    pub fn set(json: &[u8]) -> Result<Self, KeyFault> {
        let set: serde_json::Value = serde_json::from_slice(json).map_err(|_| KeyFault::NoSet)?;
        let keys = set.get("keys").and_then(serde_json::Value::as_array).ok_or(KeyFault::NoSet)?;
        if keys.len() > KEY_COUNT_MAX {
            return Err(KeyFault::TooMany);
        }
        let keys = keys.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        let keys: Vec<Key> = keys.filter_map(|key| Key::of(&key)).collect();
        if keys.is_empty() { Err(KeyFault::NoneOfUse) } else { Ok(Self(keys)) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The keys that may have signed a token with this `kid` and this algorithm.
    ///
    /// Who names a key means that one. Where a token names none, or the only key has no name, all are meant that are for the
    /// algorithm.
    pub fn candidates<'k>(&'k self, id: Option<&'k str>) -> impl Iterator<Item = &'k Key> {
        let is_nameless = self.0.len() == 1 && self.0[0].id.is_none();
        self.0.iter().filter(move |key| id.is_none() || is_nameless || key.id.as_deref() == id)
    }
}

impl Key {
    /// What it is for. A token has no say in that.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// As the library takes it.
    pub const fn decoding_key(&self) -> &DecodingKey {
        &self.verifier
    }

    fn of(jwk: &Jwk) -> Option<Self> {
        let is_for_signatures =
            jwk.common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
        let verifies = jwk
            .common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if !is_for_signatures || !verifies {
            return None;
        }
        let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let (algorithm, name) = match &jwk.algorithm {
            AlgorithmParameters::RSA(parameters) => {
                let modulus = decoded(&parameters.n)?;
                decoded(&parameters.e)?;
                RSA_BITS.contains(&bits(&modulus)).then_some((Algorithm::Rs256, KeyAlgorithm::RS256))?
            }
            AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => {
                let is_coordinate = |text: &str| decoded(text).is_some_and(|bytes| bytes.len() == 32);
                (is_coordinate(&parameters.x) && is_coordinate(&parameters.y))
                    .then_some((Algorithm::Es256, KeyAlgorithm::ES256))?
            }
            AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
                (decoded(&parameters.x)?.len() == 32).then_some((Algorithm::EdDsa, KeyAlgorithm::EdDSA))?
            }
            _ => return None,
        };
        if jwk.common.key_algorithm.as_ref().is_some_and(|named| *named != name) {
            return None;
        }
        Some(Self { id: jwk.common.key_id.clone(), algorithm, verifier: DecodingKey::from_jwk(jwk).ok()? })
    }
}

/// The bits of a number, of which `bytes` are the digits.
fn bits(bytes: &[u8]) -> usize {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[zeros..];
    bytes.first().map_or(0, |first| 8 * bytes.len() - first.leading_zeros() as usize)
}

/// The public key that stands in a PEM file (RFC 7468 section 13).
fn public_key(algorithm: Algorithm, pem: &[u8]) -> Result<DecodingKey, KeyFault> {
    let Ok(der) = SubjectPublicKeyInfoDer::from_pem_slice(pem) else {
        let is_private = pem.windows(12).any(|window| window == b"PRIVATE KEY-");
        return Err(if is_private { KeyFault::Private } else { KeyFault::NoPublicKey });
    };
    let (found, key) = subject_public_key(&der).map_err(|_| KeyFault::NoPublicKey)?;
    if found != Some(algorithm) {
        return Err(KeyFault::OtherKind { found });
    }
    if algorithm == Algorithm::Rs256 {
        let modulus = rsa_modulus(key).map_err(|_| KeyFault::NoPublicKey)?;
        if !RSA_BITS.contains(&bits(modulus)) {
            return Err(KeyFault::RsaSize { bits: bits(modulus) });
        }
    }
    Ok(match algorithm {
        Algorithm::Rs256 => DecodingKey::from_rsa_der(key),
        Algorithm::Es256 => DecodingKey::from_ec_der(key),
        Algorithm::EdDsa => DecodingKey::from_ed_der(key),
        Algorithm::Hs256 => unreachable!("a secret is no public key"),
    })
}

/// What a public key is for, and the key itself (RFC 5280 section 4.1.2.7).
fn subject_public_key(der: &[u8]) -> der::Result<(Option<Algorithm>, &[u8])> {
    // rsaEncryption, id-ecPublicKey with prime256v1, and id-Ed25519, as they stand in an AlgorithmIdentifier.
    const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
    const ED25519: &[u8] = b"\x06\x03\x2b\x65\x70";
    let mut reader = SliceReader::new(der)?;
    reader.sequence(|fields: &mut SliceReader<'_>| {
        let identifier = fields.tlv_bytes()?;
        let bit_string = fields.tlv_bytes()?;
        let identifier = content(identifier, Tag::Sequence)?;
        let found = if identifier.starts_with(RSA) {
            Some(Algorithm::Rs256)
        } else if identifier == P256 {
            Some(Algorithm::Es256)
        } else if identifier == ED25519 {
            Some(Algorithm::EdDsa)
        } else {
            None
        };
        // Its first byte counts the bits that are no part of it.
        let key = content(bit_string, Tag::BitString)?;
        let key = key.strip_prefix(b"\0").ok_or_else(|| Tag::BitString.value_error())?;
        Ok::<_, der::Error>((found, key))
    })
}

/// The modulus of an RSA key (RFC 8017 appendix A.1.1).
fn rsa_modulus(der: &[u8]) -> der::Result<&[u8]> {
    let mut reader = SliceReader::new(der)?;
    reader.sequence(|fields: &mut SliceReader<'_>| {
        let modulus = content(fields.tlv_bytes()?, Tag::Integer)?;
        fields.tlv_bytes()?;
        Ok::<_, der::Error>(modulus)
    })
}

/// What an element of DER holds, which has this tag.
fn content(element: &[u8], tag: Tag) -> der::Result<&[u8]> {
    let header = der::Header::peek(&SliceReader::new(element)?)?;
    header.tag().assert_eq(tag)?;
    let size = usize::try_from(u32::from(header.length()))?;
    Ok(&element[element.len() - size..])
}
