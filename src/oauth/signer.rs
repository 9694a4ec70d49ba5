//! The gateway's signatures: JWTs signed by a key it was given, or by its own.
//!
//! 1. A key signs with one algorithm, the one that goes with it unless another that fits is configured; RSA keys have
//!    2,048 bits at least (RFC 7518 section 3.3).
//! 2. The gateway's own keys are ES256 and derived from the seal keys: replicas with the same seal keys
//!    sign alike, and nothing more is kept.
//! 3. The first key signs, all are published: whoever rotates seal keys rotates these, and what was signed before is
//!    still verified while the older key stands in the list.
//! 4. A published key is named by its thumbprint (RFC 7638), unless it was given a name.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use aws_lc_rs::{agreement, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jsonwebtoken::Algorithm;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::config::PrivateKey;
use crate::session::{Purpose, Sealer};

/// Bits; RFC 7518 section 3.3.
const MIN_RSA_BITS: usize = 2048;

/// Why a configured key can't sign. The texts hold nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("this is no private key in PEM (PKCS #8, PKCS #1 or SEC1)")]
    Pem,
    #[error("this key is of no kind that can sign here: use RSA, P-256, P-384 or Ed25519")]
    Kind,
    #[error("an RSA key needs 2048 bits at least")]
    Short,
    #[error("the algorithm isn't one of this key's: drop it, and the key's own is used")]
    Algorithm,
}

/// One key and the algorithm it signs with. Has no `Debug`: it is a secret.
pub struct SigningKey {
    pair: Pair,
    algorithm: Algorithm,
    /// `kid` of the header.
    id: Option<String>,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(Box<EcdsaKeyPair>),
    P384(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl SigningKey {
    /// Reads a configured key.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn read(key: &PrivateKey) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(key.pem.expose().as_bytes()).map_err(|_| KeyError::Pem)?;
        let pair = match &der {
            PrivateKeyDer::Pkcs1(der) => rsa(RsaKeyPair::from_der(der.secret_pkcs1_der()).ok()),
            PrivateKeyDer::Sec1(der) => {
                let der = der.secret_sec1_der();
                let read = |algorithm| EcdsaKeyPair::from_private_key_der(algorithm, der).ok();
                ecdsa(read)
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                let read = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der).ok();
                ecdsa(read)
                    .or_else(|| Some(Pair::Ed25519(Box::new(Ed25519KeyPair::from_pkcs8(der).ok()?))))
                    .or_else(|| rsa(RsaKeyPair::from_pkcs8(der).ok()))
            }
            _ => None,
        };
        let pair = pair.ok_or(KeyError::Kind)?;
        if let Pair::Rsa(pair) = &pair
            && pair.public_modulus_len() * 8 < MIN_RSA_BITS
        {
            return Err(KeyError::Short);
        }
        let natural = pair.algorithms();
        let algorithm = key.algorithm.unwrap_or(natural[0]);
        if !natural.contains(&algorithm) {
            return Err(KeyError::Algorithm);
        }
        Ok(Self {
            pair,
            algorithm,
            id: key.id.clone(),
        })
    }

    /// A key made of what `secret` gives for an attempt's number, always the same.
    fn derived(secret: &dyn Fn(&[u8]) -> Zeroizing<[u8; 32]>) -> Self {
        // Hardly any 32 bytes are no scalar of the curve (one in 2^32); then the next are taken.
        let pair = (0..=u8::MAX).find_map(|attempt| {
            let scalar = secret(&[attempt]);
            let private = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, &*scalar).ok()?;
            let public = private.compute_public_key().ok()?;
            let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
            EcdsaKeyPair::from_private_key_and_public_key(algorithm, &*scalar, public.as_ref()).ok()
        });
        let key = Self {
            pair: Pair::P256(Box::new(pair.expect("one of 256 texts is a scalar"))),
            algorithm: Algorithm::ES256,
            id: None,
        };
        key.named()
    }

    /// With its thumbprint for a name, if it has none.
    fn named(mut self) -> Self {
        if self.id.is_none() {
            self.id = Some(self.thumbprint());
        }
        self
    }

    /// A JWS in compact form (RFC 7515 section 7.1) over these claims. `typ` goes into the header.
    pub fn sign(&self, claims: &impl Serialize, typ: &str) -> String {
        let mut header = json!({"alg": self.algorithm, "typ": typ});
        if let Some(id) = &self.id {
            header["kid"] = Value::from(id.as_str());
        }
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let claims = serde_json::to_vec(claims).expect("claims are JSON");
        let mut token = format!("{}.{}", part(header.to_string().as_bytes()), part(&claims));
        let signature = self.signature(token.as_bytes());
        token.push('.');
        token.push_str(&part(&signature));
        token
    }

    fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let encoding: &'static dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::PS256 => &RSA_PSS_SHA256,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                let signed = pair.sign(encoding, &random, message, &mut signature);
                signed.expect("the buffer has the modulus's length");
                signature
            }
            Pair::P256(pair) | Pair::P384(pair) => {
                let signature = pair.sign(&random, message).expect("the machine has randomness");
                signature.as_ref().to_vec()
            }
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// The public key's required members (RFC 7518 section 6, RFC 8037) by name, which are what a thumbprint is made of.
    fn public(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let point = |pair: &EcdsaKeyPair, curve: &str| {
            // Uncompressed (SEC 1 section 2.3.3): a byte, then both coordinates.
            let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
            json!({"crv": curve, "kty": "EC", "x": text(x), "y": text(y)})
        };
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = pair.public_key();
                let number = |number: aws_lc_rs::io::Positive<'_>| text(number.big_endian_without_leading_zero());
                json!({"e": number(public.exponent()), "kty": "RSA", "n": number(public.modulus())})
            }
            Pair::P256(pair) => point(pair, "P-256"),
            Pair::P384(pair) => point(pair, "P-384"),
            Pair::Ed25519(pair) => json!({"crv": "Ed25519", "kty": "OKP", "x": text(pair.public_key().as_ref())}),
        }
    }

    /// RFC 7638.
    fn thumbprint(&self) -> String {
        let members = self.public().to_string();
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, members.as_bytes()))
    }

    /// RFC 7517.
    fn jwk(&self) -> Value {
        let mut jwk = self.public();
        jwk["use"] = "sig".into();
        jwk["alg"] = json!(self.algorithm);
        if let Some(id) = &self.id {
            jwk["kid"] = id.as_str().into();
        }
        jwk
    }
}

impl Pair {
    /// What keys of this kind sign with; the first unless told otherwise.
    fn algorithms(&self) -> &'static [Algorithm] {
        match self {
            Self::Rsa(_) => &[Algorithm::RS256, Algorithm::PS256],
            Self::P256(_) => &[Algorithm::ES256],
            Self::P384(_) => &[Algorithm::ES384],
            Self::Ed25519(_) => &[Algorithm::EdDSA],
        }
    }
}

fn rsa(pair: Option<RsaKeyPair>) -> Option<Pair> {
    pair.map(|pair| Pair::Rsa(Box::new(pair)))
}

fn ecdsa(read: impl Fn(&'static signature::EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>) -> Option<Pair> {
    let p256 = || Some(Pair::P256(Box::new(read(&ECDSA_P256_SHA256_FIXED_SIGNING)?)));
    let p384 = || Some(Pair::P384(Box::new(read(&ECDSA_P384_SHA384_FIXED_SIGNING)?)));
    p256().or_else(p384)
}

/// Signs for whoever reads the published keys.
pub struct Signer {
    /// Never empty; the first signs.
    keys: Vec<SigningKey>,
}

impl Signer {
    /// The gateway's own, one key a seal key.
    pub fn of_sealer(sealer: &Sealer) -> Self {
        Self {
            keys: sealer.derived(Purpose::SigningKey, SigningKey::derived),
        }
    }

    /// A configured key, alone.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn of_key(key: &PrivateKey) -> Result<Self, KeyError> {
        let key = SigningKey::read(key)?.named();
        Ok(Self { keys: vec![key] })
    }

    /// A JWS in compact form over these claims, by the first key. `typ` goes into the header.
    pub fn sign(&self, claims: &impl Serialize, typ: &str) -> String {
        self.keys[0].sign(claims, typ)
    }

    /// The public keys of several signers as one document (RFC 7517 section 5), each key once.
    pub fn jwks<'a>(signers: impl IntoIterator<Item = &'a Self>) -> Bytes {
        let mut keys: Vec<Value> = Vec::new();
        for jwk in signers.into_iter().flat_map(|signer| &signer.keys).map(SigningKey::jwk) {
            if !keys.contains(&jwk) {
                keys.push(jwk);
            }
        }
        Bytes::from(json!({"keys": keys}).to_string())
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;
    use crate::config::SealKey;
    use crate::secret::Secret;

    fn key(pem: String, algorithm: Option<Algorithm>) -> PrivateKey {
        PrivateKey {
            pem: Secret::new(pem),
            id: None,
            algorithm,
        }
    }

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
        rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem()
    }

    /// Verified by another implementation, with what is published.
    fn verify(token: &str, jwks: &[u8]) -> (Algorithm, String) {
        let header = jsonwebtoken::decode_header(token).unwrap();
        let set: JwkSet = serde_json::from_slice(jwks).unwrap();
        let kid = header.kid.unwrap();
        let jwk = set.find(&kid).expect("the key is published");
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&["upstream"]);
        let key = DecodingKey::from_jwk(jwk).unwrap();
        let claims: jsonwebtoken::TokenData<Value> = jsonwebtoken::decode(token, &key, &validation).unwrap();
        assert_eq!(claims.claims["sub"], "ada");
        assert_eq!(jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap(), kid);
        (header.alg, kid)
    }

    fn claims() -> Value {
        json!({"sub": "ada", "aud": "upstream", "exp": u32::MAX})
    }

    #[test]
    fn every_kind_of_key_signs_what_others_verify() {
        let rsa = || pem(&rcgen::PKCS_RSA_SHA256);
        let cases = [
            (rsa(), None, Algorithm::RS256),
            (rsa(), Some(Algorithm::PS256), Algorithm::PS256),
            (pem(&rcgen::PKCS_ECDSA_P256_SHA256), None, Algorithm::ES256),
            (pem(&rcgen::PKCS_ECDSA_P384_SHA384), None, Algorithm::ES384),
            (pem(&rcgen::PKCS_ED25519), None, Algorithm::EdDSA),
        ];
        for (pem, algorithm, expected) in cases {
            let signer = Signer::of_key(&key(pem, algorithm)).unwrap();
            let (algorithm, _) = verify(&signer.sign(&claims(), "JWT"), &Signer::jwks([&signer]));
            assert_eq!(algorithm, expected);
        }
    }

    #[test]
    fn keys_that_cannot_sign_are_told_apart() {
        let ec = pem(&rcgen::PKCS_ECDSA_P256_SHA256);
        let cases = [
            (String::new(), None, KeyError::Pem),
            ("secret".to_owned(), None, KeyError::Pem),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned(),
                None,
                KeyError::Kind,
            ),
            (ec.clone(), Some(Algorithm::RS256), KeyError::Algorithm),
            (ec, Some(Algorithm::ES384), KeyError::Algorithm),
        ];
        for (pem, algorithm, expected) in cases {
            assert_eq!(SigningKey::read(&key(pem, algorithm)).err(), Some(expected));
        }
    }

    #[test]
    fn replicas_sign_alike_and_a_rotation_overlaps() {
        let sealer = |bytes: &[u8]| {
            let keys: Vec<_> = bytes.iter().map(|byte| SealKey(Zeroizing::new([*byte; 32]))).collect();
            Signer::of_sealer(&Sealer::new(&keys))
        };
        let (old, new) = (sealer(&[1]), sealer(&[2, 1]));
        let signed = old.sign(&claims(), "JWT");
        let (_, by) = verify(&signed, &Signer::jwks([&sealer(&[1])]));
        assert_eq!(verify(&signed, &Signer::jwks([&new])).1, by);
        assert_ne!(verify(&new.sign(&claims(), "JWT"), &Signer::jwks([&new])).1, by);
        let both = Signer::jwks([&old, &new]);
        let set: Value = serde_json::from_slice(&both).unwrap();
        assert_eq!(set["keys"].as_array().unwrap().len(), 2, "each key once");
        assert!(!String::from_utf8_lossy(&both).contains("\"d\""), "no private part");
    }
}
