//! Whether a request proves who it is from: JSON Web Tokens (RFC 7519), by the keys of the route.

mod crypto;
mod token;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::config::auth::keys::{Algorithm, Key, Keys};
use crate::config::auth::{Jwt, KeySource};
use crate::config::{SecretSource, is_field_value};
use crate::metrics::AuthRefusal;
use crate::protocol::http::refusal::{BadRequest, Refusal};
use crate::protocol::http::request::RequestHead;
use crate::protocol::websocket::close::CloseCode;

/// What a request may do that has proved who it is from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Fields that the upstream gets, in place of any that the client sent.
    pub headers: Vec<(String, String)>,
    /// When that ends, for a connection as well; `None` where it does not end one.
    pub expiry: Option<Expiry>,
}

/// When a connection is closed as its token has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// In seconds since the Unix epoch.
    pub at_s: u64,
    /// The code of the Close.
    pub code: CloseCode,
}

/// The keys of a route, which control puts there and shards look at.
#[derive(Debug, Default)]
pub struct Keyring {
    /// `None` until they have come.
    keys: ArcSwapOption<Keys>,
    missed: Notify,
}

impl Keyring {
    /// One with keys that stay.
    pub fn of(keys: &Arc<Keys>) -> Self {
        Self { keys: ArcSwapOption::new(Some(Arc::clone(keys))), missed: Notify::new() }
    }

    /// Puts keys in force.
    pub fn put(&self, keys: Keys) {
        self.keys.store(Some(Arc::new(keys)));
    }

    /// Waits until a token has named a key that is not there.
    pub async fn missed(&self) {
        self.missed.notified().await;
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It breaks a rule.
    BadRequest(BadRequest),
    /// It does not prove enough.
    Refused(AuthRefusal),
}

impl From<AuthRefusal> for Denied {
    fn from(reason: AuthRefusal) -> Self {
        Self::Refused(reason)
    }
}

impl Denied {
    /// As the client is told.
    pub const fn refusal(self, retry_after_s: u32) -> Refusal {
        match self {
            Self::BadRequest(reason) => Refusal::BadRequest(reason),
            Self::Refused(AuthRefusal::Claim) => Refusal::InsufficientScope,
            Self::Refused(AuthRefusal::KeysUnavailable | AuthRefusal::AuthUnavailable) => {
                Refusal::AuthUnavailable { retry_after_s }
            }
            Self::Refused(AuthRefusal::Missing) => Refusal::Unauthorized { has_token: false },
            Self::Refused(_) => Refusal::Unauthorized { has_token: true },
        }
    }
}

/// The head of a token (RFC 7515 section 4.1), as far as it matters.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that have to be understood, none of which is.
    crit: Option<Value>,
}

/// Judges the token of a request by the route's keys; there are none as long as they have not come.
///
/// Costs the verification of one signature, in microseconds: of ES256 about 60. Nothing of a token is believed before.
///
/// # Errors
/// [`Denied`].
pub fn judge(jwt: &Jwt, keyring: &Keyring, head: &RequestHead<'_>) -> Result<Grant, Denied> {
    let token = token::find(head, &jwt.from).map_err(Denied::BadRequest)?.ok_or(AuthRefusal::Missing)?;
    let keys = keyring.keys.load();
    let keys = keys.as_deref().ok_or(AuthRefusal::KeysUnavailable)?;
    let claims = verify(jwt, keys, token).inspect_err(|refusal| {
        if *refusal == AuthRefusal::UnknownKey {
            // The issuer may have begun to use another one.
            keyring.missed.notify_one();
        }
    })?;
    if !jwt.claims.iter().all(|(name, value)| claims.get(name).is_some_and(|claim| holds(claim, value))) {
        return Err(AuthRefusal::Claim.into());
    }
    let headers =
        jwt.headers.iter().filter_map(|(field, claim)| Some((field.clone(), text(claims.get(claim)?)?)));
    let expiry = jwt.expiry_close_code.and_then(|code| {
        // What is beyond every clock never comes.
        let at = Duration::try_from_secs_f64(claims.get("exp")?.as_f64()?).ok()?;
        Some(Expiry { at_s: at.saturating_add(jwt.leeway).as_secs(), code })
    });
    Ok(Grant { headers: headers.collect(), expiry })
}

/// The claims of a token, if it is good.
fn verify(jwt: &Jwt, keys: &Keys, token: &[u8]) -> Result<HashMap<String, Value>, AuthRefusal> {
    let header = header(token).ok_or(AuthRefusal::Malformed)?;
    if header.crit.is_some() {
        return Err(AuthRefusal::Malformed);
    }
    // The algorithm is the key's, never the token's: what that says has to be the same, and decides nothing.
    let candidates: Vec<&Key> = keys.candidates(header.kid.as_deref()).collect();
    let of_its_algorithm: Vec<&Key> =
        candidates.iter().copied().filter(|key| key.algorithm().label() == header.alg).collect();
    let of_its_algorithm = match (&candidates[..], &of_its_algorithm[..]) {
        ([], _) => return Err(AuthRefusal::UnknownKey),
        (_, []) => return Err(AuthRefusal::Algorithm),
        // Whoever names no key means the only one.
        (_, [_, _, ..]) if header.kid.is_none() => return Err(AuthRefusal::UnknownKey),
        (_, keys) => keys.to_vec(),
    };
    crypto::install();
    let mut outcome = Err(AuthRefusal::Signature);
    for key in of_its_algorithm {
        outcome = match decode(token, key.decoding_key(), &validation(jwt, key.algorithm())) {
            Ok(data) => return Ok(data.claims),
            Err(error) => Err(refusal_of(error.kind())),
        };
        if outcome.as_ref().err() != Some(&AuthRefusal::Signature) {
            break;
        }
    }
    outcome
}

fn header(token: &[u8]) -> Option<Header> {
    let end = token.iter().position(|byte| *byte == b'.')?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&token[..end]).ok()?).ok()
}

/// What is demanded of a token by this algorithm.
fn validation(jwt: &Jwt, algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(match algorithm {
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
    });
    validation.leeway = jwt.leeway.as_secs();
    // RFC 7519 section 4.1.4: on that second it is not good any more.
    validation.reject_tokens_expiring_in_less_than = 1;
    validation.validate_nbf = true;
    validation.validate_aud = !jwt.audience.is_empty();
    let mut required = vec!["exp"];
    if let Some(issuer) = &jwt.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    if !jwt.audience.is_empty() {
        validation.set_audience(&jwt.audience);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn refusal_of(error: &ErrorKind) -> AuthRefusal {
    let of_claim = |claim: &str| match claim {
        "iss" => AuthRefusal::Issuer,
        "aud" => AuthRefusal::Audience,
        _ => AuthRefusal::Malformed,
    };
    match error {
        ErrorKind::InvalidSignature => AuthRefusal::Signature,
        ErrorKind::ExpiredSignature => AuthRefusal::Expired,
        ErrorKind::ImmatureSignature => AuthRefusal::NotYetValid,
        ErrorKind::InvalidIssuer => AuthRefusal::Issuer,
        ErrorKind::InvalidAudience => AuthRefusal::Audience,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => AuthRefusal::Algorithm,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => of_claim(claim),
        _ => AuthRefusal::Malformed,
    }
}

/// Whether a claim is this, or has it among others.
fn holds(claim: &Value, wanted: &str) -> bool {
    match claim {
        Value::Array(elements) => elements.iter().any(|element| element.as_str() == Some(wanted)),
        claim => text(claim).as_deref() == Some(wanted),
    }
}

/// A claim as the value of a field; `None` where it has none, as its characters may not stand in one.
fn text(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Array(elements) => {
            let elements: Option<Vec<&str>> = elements.iter().map(Value::as_str).collect();
            elements?.join(", ")
        }
        Value::Null | Value::Object(_) => return None,
    };
    is_field_value(&text).then_some(text)
}

/// Judges any bytes as a token by keys that nobody has the other half of, for fuzzers: nothing of it may be believed.
///
/// # Panics
/// Where a token is taken for good.
#[doc(hidden)]
pub fn fuzz_token(data: &[u8]) {
    /// Public keys of examples: RFC 7515 appendix A.3.1, and RFC 8037 appendix A.2.
    const SET: &[u8] = br#"{"keys":[
        {"kty":"EC","crv":"P-256","kid":"1","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
         "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kty":"OKP","crv":"Ed25519","kid":"2","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let jwt = Jwt {
        keys: KeySource::Key {
            source: SecretSource::Environment(String::new()),
            algorithm: Algorithm::Hs256,
            keys: Arc::new(Keys::one(Algorithm::Hs256, &[7; 32]).expect("it is long enough")),
        },
        from: vec![Jwt::FROM],
        issuer: None,
        audience: Vec::new(),
        leeway: Jwt::LEEWAY,
        claims: Vec::new(),
        headers: Vec::new(),
        expiry_close_code: None,
    };
    let keys = Keys::set(SET).expect("they are keys");
    // The examples of the RFCs are signed by them, and have expired or no `exp`.
    assert!(verify(&jwt, &keys, data).is_err(), "nobody has signed it");
}

#[cfg(test)]
mod tests;
