//! Tokens that are good, and every way in which one is not.

use std::path::Path;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::json;

use super::*;
use crate::config::auth::TokenPlace;
use crate::config::auth::keys::KeyFault;
use crate::config::{Auth, Config};
use crate::metrics::AuthRefusal::{
    Algorithm as BadAlgorithm, Audience, Claim, Expired, Issuer, KeysUnavailable, Malformed, Missing,
    NotYetValid, Signature, UnknownKey,
};
use crate::net::clock;
use crate::protocol::http::field_storage;
use crate::protocol::websocket::fuzz::Random;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Who signs tokens.
enum Signer {
    Hs256(Vec<u8>),
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    /// Nobody, who signs with nothing.
    Nobody,
}

impl Signer {
    fn es256() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random);
        Self::Es256(key.unwrap())
    }

    fn ed_dsa() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::EdDsa(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    /// The token with this header and these claims.
    fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = match self {
            Self::Hs256(secret) => {
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
                ring::hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
            }
            Self::Es256(key) => key.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref().to_vec(),
            Self::EdDsa(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            Self::Nobody => Vec::new(),
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Its key as an element of a set.
    fn jwk(&self, id: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Hs256(secret) => json!({"kty": "oct", "kid": id, "alg": "HS256", "k": text(secret)}),
            Self::Es256(key) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = (text(&point[..32]), text(&point[32..]));
                json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "x": x, "y": y})
            }
            Self::EdDsa(key) => {
                let x = text(key.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "alg": "EdDSA", "x": x})
            }
            Self::Nobody => unreachable!("nobody has no key"),
        }
    }
}

fn now() -> u64 {
    clock::time_of_day().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn set(signers: &[(&str, &Signer)]) -> Keys {
    let keys: Vec<Value> = signers.iter().map(|(id, signer)| signer.jwk(id)).collect();
    Keys::set(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

/// What is written of a route's tokens, beside the key.
fn jwt(lines: &str) -> Jwt {
    let text = format!(
        "[[port]]\nnumber = 80\n[[route]]\npath = \"/\"\nservice = \"echo\"\n[route.auth.jwt]\n\
         jwks = \"file:nowhere\"\n{lines}\n"
    );
    let (config, _) = Config::from_toml(&text, Path::new("")).unwrap_or_else(|faults| panic!("{faults:?}"));
    match config.routes[0].auth.clone() {
        Some(Auth::Jwt(jwt)) => *jwt,
        other => panic!("{other:?}"),
    }
}

fn judged(jwt: &Jwt, keys: Option<Keys>, token: Option<&str>) -> Result<Grant, Denied> {
    let keyring = Keyring::default();
    if let Some(keys) = keys {
        keyring.put(keys);
    }
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{authorization}\r\n");
    let mut storage = field_storage();
    judge(jwt, &keyring, &RequestHead::parse(text.as_bytes(), &mut storage).unwrap())
}

fn refused(jwt: &Jwt, keys: Keys, token: &str, reason: AuthRefusal) {
    assert_eq!(judged(jwt, Some(keys), Some(token)), Err(Denied::Refused(reason)), "{token}");
}

#[test]
fn a_good_token_of_each_algorithm_is_good_by_its_key_alone() {
    let (es256, ed_dsa) = (Signer::es256(), Signer::ed_dsa());
    let hs256 = Signer::Hs256(SECRET.to_vec());
    let claims = json!({"exp": now() + 60, "sub": "alice"});
    let all = |signer: &Signer| match signer {
        Signer::Hs256(secret) => Keys::one(Algorithm::Hs256, secret).unwrap(),
        signer => set(&[("1", signer)]),
    };
    for (algorithm, signer) in [("HS256", &hs256), ("ES256", &es256), ("EdDSA", &ed_dsa)] {
        let token = signer.token(&json!({"alg": algorithm, "typ": "JWT"}), &claims);
        assert_eq!(judged(&jwt(""), Some(all(signer)), Some(&token)), Ok(Grant::default()), "{algorithm}");
        for (other_algorithm, other) in [("HS256", &hs256), ("ES256", &es256), ("EdDSA", &ed_dsa)] {
            if algorithm != other_algorithm {
                refused(&jwt(""), all(other), &token, BadAlgorithm);
            }
        }
    }
    refused(
        &jwt(""),
        set(&[("1", &Signer::es256())]),
        &es256.token(&json!({"alg": "ES256"}), &claims),
        Signature,
    );
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    let signer = Signer::es256();
    let keys = || set(&[("1", &signer)]);
    let claims = json!({"exp": now() + 60});
    for algorithm in ["none", "None", "NONE", "", "HS256", "ES384", "RS256", "es256"] {
        refused(&jwt(""), keys(), &Signer::Nobody.token(&json!({"alg": algorithm}), &claims), BadAlgorithm);
    }
    // The public key as everybody knows it, taken for a secret.
    let point = match &signer {
        Signer::Es256(key) => key.public_key().as_ref().to_vec(),
        _ => unreachable!(),
    };
    let forged = Signer::Hs256(point).token(&json!({"alg": "HS256"}), &claims);
    refused(&jwt(""), keys(), &forged, BadAlgorithm);
    // A signature of zeros, as some have taken for good (CVE-2022-21449).
    let message = Signer::Nobody.token(&json!({"alg": "ES256"}), &claims);
    refused(&jwt(""), keys(), &format!("{message}{}", URL_SAFE_NO_PAD.encode([0; 64])), Signature);
    refused(&jwt(""), keys(), &message, Signature);
    // Secrets that somebody has published are no keys.
    let published = json!({"keys": [Signer::Hs256(SECRET.to_vec()).jwk("1")]}).to_string();
    assert_eq!(Keys::set(published.as_bytes()).err(), Some(KeyFault::NoneOfUse));
}

#[test]
fn a_token_says_which_key_it_means_where_there_are_several() {
    let (one, other) = (Signer::es256(), Signer::es256());
    let keys = || set(&[("1", &one), ("2", &other)]);
    let claims = json!({"exp": now() + 60});
    let good = |header: &Value, signer: &Signer| {
        assert!(judged(&jwt(""), Some(keys()), Some(&signer.token(header, &claims))).is_ok(), "{header}");
    };
    good(&json!({"alg": "ES256", "kid": "1"}), &one);
    good(&json!({"alg": "ES256", "kid": "2"}), &other);
    refused(&jwt(""), keys(), &one.token(&json!({"alg": "ES256", "kid": "2"}), &claims), Signature);
    refused(&jwt(""), keys(), &one.token(&json!({"alg": "ES256", "kid": "3"}), &claims), UnknownKey);
    refused(&jwt(""), keys(), &one.token(&json!({"alg": "ES256"}), &claims), UnknownKey);
    // Two that have one name are both meant.
    let twins = set(&[("1", &one), ("1", &other)]);
    let token = other.token(&json!({"alg": "ES256", "kid": "1"}), &claims);
    assert!(judged(&jwt(""), Some(twins), Some(&token)).is_ok());
}

#[test]
fn each_claim_is_held_against_what_is_written() {
    let signer = Signer::ed_dsa();
    let header = json!({"alg": "EdDSA", "kid": "1"});
    let jwt = jwt("issuer = \"https://login\"\naudience = [\"chat\", \"mail\"]\nleeway_ms = 5000\n\
                   claims = { role = \"admin\", level = \"3\" }");
    let time = now();
    let good = json!({"iss": "https://login", "aud": ["x", "chat"], "exp": time + 60, "nbf": time - 60,
                      "role": ["user", "admin"], "level": 3});
    let judge_with = |name: &str, value: Value| {
        let mut claims = good.clone();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        judged(&jwt, Some(set(&[("1", &signer)])), Some(&signer.token(&header, &claims)))
    };
    for (name, value) in [
        ("exp", json!(time - 3)),
        ("nbf", json!(time + 3)),
        ("nbf", Value::Null),
        ("aud", json!("mail")),
        ("role", json!("admin")),
        ("level", json!("3")),
    ] {
        assert_eq!(judge_with(name, value.clone()), Ok(Grant::default()), "{name}: {value}");
    }
    for (name, value, reason) in [
        ("exp", json!(time - 10), Expired),
        ("exp", json!(time - 5), Expired),
        ("exp", json!(0), Malformed),
        ("exp", Value::Null, Malformed),
        ("exp", json!("tomorrow"), Malformed),
        ("exp", json!(1e300), Malformed),
        ("nbf", json!(time + 60), NotYetValid),
        ("nbf", json!("later"), Malformed),
        ("iss", json!("https://login."), Issuer),
        ("iss", Value::Null, Issuer),
        ("iss", json!(7), Issuer),
        ("aud", json!(["x"]), Audience),
        ("aud", json!([]), Audience),
        ("aud", Value::Null, Audience),
        ("role", json!("user"), Claim),
        ("role", json!(["admins"]), Claim),
        ("role", json!({"admin": true}), Claim),
        ("level", Value::Null, Claim),
    ] {
        assert_eq!(judge_with(name, value.clone()), Err(Denied::Refused(reason)), "{name}: {value}");
    }
}

#[test]
fn what_is_no_token_is_told() {
    let signer = Signer::es256();
    let keys = || set(&[("1", &signer)]);
    let good = signer.token(&json!({"alg": "ES256"}), &json!({"exp": now() + 60}));
    for (token, reason) in [
        (".", Malformed),
        ("a.b.c", Malformed),
        (&*good.replacen('.', "", 1), Malformed),
        (&good[..good.len() - 2], Signature),
        (&*format!("{good}="), Malformed),
        (&*format!("{good}.x"), Malformed),
        (
            &*signer.token(&json!({"alg": "ES256", "crit": ["exp"], "exp": 1}), &json!({"exp": now() + 60})),
            Malformed,
        ),
        (&*signer.token(&json!({"alg": "ES256"}), &json!(["exp"])), Malformed),
        (&*signer.token(&json!({"alg": 7}), &json!({})), Malformed),
        (&*signer.token(&json!({}), &json!({})), Malformed),
        (&"x".repeat(15_000), Malformed),
    ] {
        refused(&jwt(""), keys(), token, reason);
    }
    assert_eq!(judged(&jwt(""), Some(keys()), None), Err(Denied::Refused(Missing)));
    assert_eq!(judged(&jwt(""), None, Some(&good)), Err(Denied::Refused(KeysUnavailable)));
}

#[test]
fn claims_become_fields_and_an_expiry_where_that_is_written() {
    let signer = Signer::es256();
    let jwt = jwt(
        "headers = { X-User = \"sub\", X-Roles = \"roles\", X-Level = \"level\", X-None = \"none\", X-Odd = \"odd\" }\n\
                   expiry_close_code = 4001\nleeway_ms = 0",
    );
    let at_s = now() + 60;
    let claims =
        json!({"exp": at_s, "sub": "alice", "roles": ["a", "b"], "level": 3, "odd": "a\r\nX-Admin: 1"});
    let token = signer.token(&json!({"alg": "ES256"}), &claims);
    let grant = judged(&jwt, Some(set(&[("1", &signer)])), Some(&token)).unwrap();
    let mut headers = grant.headers;
    headers.sort();
    let expected = [("X-Level", "3"), ("X-Roles", "a, b"), ("X-User", "alice")];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(grant.expiry, Some(Expiry { at_s, code: CloseCode::new(4001).unwrap() }));
    assert_eq!(jwt.from, [TokenPlace::Header]);
}

#[test]
fn sets_of_keys_are_read_as_far_as_they_are_of_use() {
    let signer = Signer::es256();
    let with = |name: &str, value: Value| {
        let mut key = signer.jwk("1");
        key[name] = value;
        key
    };
    let count =
        |keys: &[Value]| Keys::set(json!({"keys": keys}).to_string().as_bytes()).map(|keys| keys.count());
    assert_eq!(count(&[signer.jwk("1"), with("x5u", json!("https://x"))]), Ok(2));
    for useless in [
        with("use", json!("enc")),
        with("key_ops", json!(["sign"])),
        with("crv", json!("P-384")),
        with("alg", json!("ES384")),
        with("x", json!("AAAA")),
        with("kty", json!("XX")),
        json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB"}),
        json!({"kty": "RSA", "n": "!", "e": "AQAB"}),
        json!({}),
        json!(7),
    ] {
        assert_eq!(count(std::slice::from_ref(&useless)), Err(KeyFault::NoneOfUse), "{useless}");
        assert_eq!(count(&[useless, signer.jwk("1")]), Ok(1));
    }
    for text in ["", "[]", "{}", "{\"keys\": 7}", "not json"] {
        assert_eq!(Keys::set(text.as_bytes()).err(), Some(KeyFault::NoSet), "{text}");
    }
    assert_eq!(count(&vec![signer.jwk("1"); 101]), Err(KeyFault::TooMany));
}

#[test]
fn nothing_that_nobody_signed_is_believed() {
    let signer = Signer::es256();
    let keys = set(&[("1", &signer)]);
    let jwt = jwt("");
    let good = signer.token(&json!({"alg": "ES256", "kid": "1"}), &json!({"exp": now() + 60}));
    let mut random = Random(7515);
    for _ in 0..3_000 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.bits().to_le_bytes()[0],
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b".eyJAx"[random.below(6)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        // The last character of a signature carries bits that are none of it, which some encoders fill.
        let without_last = |bytes: &[u8]| bytes[..bytes.len().saturating_sub(1)].to_vec();
        if bytes != good.as_bytes() && without_last(&bytes) != without_last(good.as_bytes()) {
            assert!(verify(&jwt, &keys, &bytes).is_err(), "nobody has signed it");
            fuzz_token(&bytes);
        }
    }
}
