//! JSON Web Key Sets (RFC 7517) become keys that can verify, and nothing else.
//!
//! 1. Every key is read on its own: one that is odd, for encryption, symmetric or too weak is left out, and its
//!    neighbours stay (RFC 7517 section 5).
//! 2. A key verifies only the algorithms of its type (RFC 8725 section 3.1), and only `alg` when it names one.
//! 3. A set of more than [`MAX_KEYS`] keys is refused whole.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Most keys in a set.
pub(super) const MAX_KEYS: usize = 100;

/// Most keys tried on a token that names none.
const MAX_TRIED: usize = 4;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// One verification key.
pub(super) struct Key {
    kid: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    /// Over everything that identifies the key, to see whether it is still there after a refresh.
    fingerprint: [u8; 32],
    pub(super) verifying: DecodingKey,
}

/// The verification keys of one issuer.
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// A shared secret is the identity's only key, whatever a token calls it.
    any_kid: bool,
}

/// Why a document is no key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwksError {
    #[error("not a JSON object with an array of keys")]
    Shape,
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
}

impl KeySet {
    /// Reads a document; a set without usable keys is a set.
    pub(super) fn parse(document: &[u8]) -> Result<Self, JwksError> {
        #[derive(Deserialize)]
        struct Document<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        // serde would take an array for an object, its members in order.
        if document.trim_ascii_start().first() != Some(&b'{') {
            return Err(JwksError::Shape);
        }
        let document: Document = serde_json::from_slice(document).map_err(|_| JwksError::Shape)?;
        if document.keys.len() > MAX_KEYS {
            return Err(JwksError::TooMany);
        }
        let keys = document.keys.iter().filter_map(|raw| Key::parse(raw.get())).collect();
        Ok(Self { keys, any_kid: false })
    }

    /// The one key of an HS256 identity.
    pub(super) fn shared_secret(secret: &[u8]) -> Self {
        Self {
            keys: vec![Key {
                kid: None,
                algorithms: vec![Algorithm::HS256],
                fingerprint: [0; 32],
                verifying: DecodingKey::from_secret(secret),
            }],
            any_kid: true,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys to try on a token, few: those that have its `kid`, or, when it has none, those that fit its `alg`.
    pub(super) fn candidates(&self, kid: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        self.keys
            .iter()
            .filter(move |key| self.any_kid || kid.is_none() || key.kid.as_deref() == kid)
            .filter(move |key| key.algorithms.contains(&algorithm))
            .take(MAX_TRIED)
    }

    /// Whether a key by this id is here; a token without one is always taken to be known.
    pub(super) fn knows(&self, kid: Option<&str>) -> bool {
        self.any_kid || kid.is_none() || self.keys.iter().any(|key| key.kid.as_deref() == kid)
    }

    /// Whether every key of `older` is still here.
    pub(super) fn keeps_all_of(&self, older: &Self) -> bool {
        older
            .keys
            .iter()
            .all(|old| self.keys.iter().any(|new| new.fingerprint == old.fingerprint))
    }
}

/// The members of a JWK that matter (RFC 7517 section 4, RFC 7518 section 6, RFC 8037).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    pub(super) fn parse(raw: &str) -> Option<Self> {
        if !raw.starts_with('{') {
            return None;
        }
        let jwk: Jwk = serde_json::from_str(raw).ok()?;
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        if jwk.key_ops.is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
            return None;
        }
        let part = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let (algorithms, verifying, material) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (part(&jwk.n)?, part(&jwk.e)?);
                // 2048 to 8192 bits, what the verifier takes; small exponents only.
                let bits = n.iter().skip_while(|byte| **byte == 0).count() * 8;
                if !(2048..=8192).contains(&bits) || e.len() > 8 {
                    return None;
                }
                (RSA, DecodingKey::from_rsa_raw_components(&n, &e), [n, e].concat())
            }
            ("EC", Some(curve @ ("P-256" | "P-384"))) => {
                let (algorithms, length): (&[Algorithm], usize) = match curve {
                    "P-256" => (&[Algorithm::ES256], 32),
                    _ => (&[Algorithm::ES384], 48),
                };
                let (x, y) = (part(&jwk.x)?, part(&jwk.y)?);
                if x.len() != length || y.len() != length {
                    return None;
                }
                let point = [vec![0x04], x, y].concat();
                (algorithms, DecodingKey::from_ec_der(&point), point)
            }
            ("OKP", Some("Ed25519")) => {
                let x = part(&jwk.x)?;
                if x.len() != 32 {
                    return None;
                }
                (&[Algorithm::EdDSA][..], DecodingKey::from_ed_der(&x), x)
            }
            _ => return None,
        };
        let algorithms: Vec<Algorithm> = match jwk.alg.as_deref() {
            None => algorithms.to_vec(),
            // RFC 9864's fully specified name.
            Some("Ed25519") if jwk.kty == "OKP" => algorithms.to_vec(),
            Some(named) => {
                let named = named.parse().ok()?;
                algorithms.contains(&named).then(|| vec![named])?
            }
        };
        let mut hash = digest::Context::new(&digest::SHA256);
        for text in [
            jwk.kty.as_str(),
            jwk.kid.as_deref().unwrap_or_default(),
            &format!("{algorithms:?}"),
        ] {
            hash.update(&(text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&material);
        let fingerprint = hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        Some(Self {
            kid: jwk.kid,
            algorithms,
            fingerprint,
            verifying,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::authn::testing::SigningKey;

    fn set(keys: &[Value]) -> KeySet {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    }

    fn with(mut jwk: Value, name: &str, value: Value) -> Value {
        jwk[name] = value;
        jwk
    }

    #[test]
    fn one_odd_key_never_rejects_the_set() {
        let good = SigningKey::es256("good").jwk();
        let weak = with(
            SigningKey::rsa("weak").jwk(),
            "n",
            json!(URL_SAFE_NO_PAD.encode([0xff; 128])),
        );
        let set = set(&[
            json!(null),
            json!(7),
            json!([
                "OKP",
                null,
                null,
                null,
                "good",
                "Ed25519",
                null,
                null,
                URL_SAFE_NO_PAD.encode([1; 32]),
                null
            ]),
            json!({}),
            json!({"kty": "oct", "k": "c2VjcmV0", "kid": "good"}),
            json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}),
            json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}),
            json!({"kty": "EC", "crv": "P-256"}),
            json!({"kty": "OKP", "crv": "X25519", "x": "AA"}),
            json!({"kty": "RSA", "n": "!!", "e": "AQAB"}),
            json!({"kty": 3, "kid": []}),
            weak,
            with(good.clone(), "use", json!("enc")),
            with(good.clone(), "key_ops", json!(["sign"])),
            with(good.clone(), "alg", json!("RSA-OAEP")),
            with(good.clone(), "alg", json!("HS256")),
            with(good.clone(), "alg", json!("ES384")),
            good,
        ]);
        assert_eq!(set.len(), 1);
        assert_eq!(set.candidates(Some("good"), Algorithm::ES256).count(), 1);
        assert_eq!(set.candidates(Some("good"), Algorithm::HS256).count(), 0);
        assert_eq!(set.candidates(Some("other"), Algorithm::ES256).count(), 0);
    }

    #[test]
    fn documents_that_are_no_sets_are_refused() {
        for document in [
            "",
            "[]",
            "[[]]",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":[],"keys":[]}"#,
            r#"{"keys":[}"#,
        ] {
            assert_eq!(
                KeySet::parse(document.as_bytes()).err(),
                Some(JwksError::Shape),
                "{document}"
            );
        }
        let many = json!({"keys": vec![json!({}); MAX_KEYS + 1]}).to_string();
        assert_eq!(KeySet::parse(many.as_bytes()).err(), Some(JwksError::TooMany));
        assert_eq!(KeySet::parse(br#"{"keys":[]}"#).map(|set| set.len()).ok(), Some(0));
    }

    #[test]
    fn a_key_that_names_its_algorithm_verifies_no_other() {
        let rsa = SigningKey::rsa("r").jwk();
        assert_eq!(
            set(std::slice::from_ref(&rsa))
                .candidates(None, Algorithm::PS256)
                .count(),
            1
        );
        let named = set(&[with(rsa, "alg", json!("RS256"))]);
        assert_eq!(named.candidates(None, Algorithm::PS256).count(), 0);
        assert_eq!(named.candidates(None, Algorithm::RS256).count(), 1);
    }

    #[test]
    fn few_keys_are_tried_on_a_token_that_names_none() {
        let keys: Vec<_> = (0..10).map(|n| SigningKey::es256(&n.to_string()).jwk()).collect();
        assert_eq!(set(&keys).candidates(None, Algorithm::ES256).count(), MAX_TRIED);
    }

    #[test]
    fn removal_is_seen_and_addition_is_no_removal() {
        let (a, b) = (SigningKey::es256("a").jwk(), SigningKey::es256("b").jwk());
        let both = set(&[a.clone(), b.clone()]);
        assert!(both.keeps_all_of(&set(std::slice::from_ref(&b))));
        assert!(!set(std::slice::from_ref(&b)).keeps_all_of(&both));
        let same_kid_other_key = set(&[SigningKey::es256("a").jwk(), b]);
        assert!(!same_kid_other_key.keeps_all_of(&both));
    }
}
