//! The gateway as a client of an authorization server, and how it shows that it is (RFC 6749 section 2.3).
//!
//! 1. One way for each client: none, `client_secret_basic`, `client_secret_post`, `private_key_jwt` (RFC 7523) or a
//!    certificate (RFC 8705), which the connection shows and the form doesn't.
//! 2. An assertion is for one issuer, once: a random `jti`, 60 seconds.
//! 3. A secret leaves in the one form that was chosen, and nowhere else: not in a URL, not in a text of an error.

use std::borrow::Cow;
use std::path::Path;

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use serde_json::json;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::signer::{KeyError, SigningKey};
use super::{AuthMethod, ClientRecord};
use crate::clock::UnixSeconds;
use crate::config::{self, ClientProof};
use crate::secret::Secret;

/// RFC 7523 section 2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Seconds.
const ASSERTION_LIFE: u64 = 60;

/// Fields of a request, in order. Has no `Debug`, and is wiped: it holds tokens and secrets.
#[derive(Clone, Default)]
pub struct Form(Vec<(Cow<'static, str>, Zeroizing<String>)>);

impl Form {
    /// Of this grant.
    pub fn grant(grant_type: &str) -> Self {
        let mut form = Self::default();
        form.push("grant_type", grant_type);
        form
    }

    /// Adds a field.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: &str) {
        self.0.push((name.into(), Zeroizing::new(value.to_owned())));
    }

    /// Adds `scope`, unless there are none (RFC 6749 section 3.3).
    pub fn push_scopes(&mut self, scopes: &[String]) {
        if !scopes.is_empty() {
            self.push("scope", &scopes.join(" "));
        }
    }

    /// Adds a field for each of these.
    pub fn push_all(&mut self, name: &'static str, values: &[String]) {
        for value in values {
            self.push(name, value);
        }
    }

    /// Adds all fields of another.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// The first field of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// As `application/x-www-form-urlencoded`.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Three bytes for each at most: a buffer that grows would leave copies behind.
        let length = self
            .0
            .iter()
            .map(|(name, value)| 3 * (name.len() + value.len()) + 2)
            .sum();
        let mut encoded = Zeroizing::new(Vec::with_capacity(length));
        for (name, value) in &self.0 {
            if !encoded.is_empty() {
                encoded.push(b'&');
            }
            serialize(name, &mut encoded);
            encoded.push(b'=');
            serialize(value, &mut encoded);
        }
        encoded
    }
}

impl FromIterator<(String, String)> for Form {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(fields: I) -> Self {
        let mut form = Self::default();
        for (name, value) in fields {
            form.push(name, &value);
        }
        form
    }
}

fn serialize(text: &str, into: &mut Vec<u8>) {
    for piece in form_urlencoded::byte_serialize(text.as_bytes()) {
        into.extend_from_slice(piece.as_bytes());
    }
}

/// Why a client can't authenticate as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("private_key: {0}")]
    Key(#[from] KeyError),
    /// A client was registered with a method that the configuration has no key for (any more).
    #[error("the client was made with a key that the configuration doesn't have")]
    Missing,
}

/// One client. Has no `Debug`: it holds secrets.
pub struct Client {
    id: String,
    proof: Proof,
}

enum Proof {
    None,
    Basic(HeaderValue),
    Post(Secret),
    PrivateKeyJwt(Box<SigningKey>),
    Tls,
}

impl Client {
    /// A client of the configuration.
    ///
    /// # Errors
    /// A key that can't sign.
    pub fn configured(config: &config::Client) -> Result<Self, ClientError> {
        let proof = match &config.proof {
            ClientProof::None => Proof::None,
            ClientProof::Basic(secret) => Proof::Basic(basic(&config.id, secret)),
            ClientProof::Post(secret) => Proof::Post(secret.clone()),
            ClientProof::PrivateKeyJwt(key) => Proof::PrivateKeyJwt(Box::new(SigningKey::read(key)?)),
            ClientProof::Tls { .. } => Proof::Tls,
        };
        let id = config.id.clone();
        Ok(Self { id, proof })
    }

    /// A client as a grant remembers it. Private keys are the configuration's: `keys`.
    ///
    /// # Errors
    /// A key that isn't there or can't sign.
    pub fn recorded(record: &ClientRecord, keys: Option<&config::Client>) -> Result<Self, ClientError> {
        let secret = || record.secret.as_ref().ok_or(ClientError::Missing);
        let proof = match (record.auth, keys.map(|keys| &keys.proof)) {
            (AuthMethod::None, _) => Proof::None,
            (AuthMethod::ClientSecretBasic, _) => Proof::Basic(basic(&record.id, secret()?)),
            (AuthMethod::ClientSecretPost, _) => Proof::Post(secret()?.clone()),
            (AuthMethod::PrivateKeyJwt, Some(ClientProof::PrivateKeyJwt(key))) => {
                Proof::PrivateKeyJwt(Box::new(SigningKey::read(key)?))
            }
            (AuthMethod::TlsClientAuth, Some(ClientProof::Tls { .. })) => Proof::Tls,
            (AuthMethod::PrivateKeyJwt | AuthMethod::TlsClientAuth, _) => return Err(ClientError::Missing),
        };
        let id = record.id.clone();
        Ok(Self { id, proof })
    }

    /// `client_id`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How it authenticates.
    pub fn method(&self) -> AuthMethod {
        match self.proof {
            Proof::None => AuthMethod::None,
            Proof::Basic(_) => AuthMethod::ClientSecretBasic,
            Proof::Post(_) => AuthMethod::ClientSecretPost,
            Proof::PrivateKeyJwt(_) => AuthMethod::PrivateKeyJwt,
            Proof::Tls => AuthMethod::TlsClientAuth,
        }
    }

    /// Puts on a request what shows who sends it. `audience` is whom an assertion is for: the issuer, or its endpoint
    /// where the issuer isn't known.
    pub fn authenticate(&self, form: &mut Form, headers: &mut HeaderMap, audience: &str, now: UnixSeconds) {
        match &self.proof {
            Proof::Basic(header) => {
                headers.insert(AUTHORIZATION, header.clone());
            }
            // RFC 6749 section 3.2.1, and RFC 8705 section 2: the id says whose certificate is shown.
            Proof::None | Proof::Tls => form.push("client_id", &self.id),
            Proof::Post(secret) => {
                form.push("client_id", &self.id);
                form.push("client_secret", secret.expose());
            }
            Proof::PrivateKeyJwt(key) => {
                let claims = json!({
                    "iss": self.id, "sub": self.id, "aud": audience, "jti": unique(),
                    "iat": now, "exp": now.saturating_add(ASSERTION_LIFE),
                });
                form.push("client_id", &self.id);
                form.push("client_assertion_type", ASSERTION_TYPE);
                form.push("client_assertion", &key.sign(&claims, "JWT"));
            }
        }
    }
}

/// The files of the certificate that a configured client shows.
pub fn certificate(config: &config::Client) -> Option<(&Path, &Path)> {
    match &config.proof {
        ClientProof::Tls { certificate, key } => Some((certificate, key)),
        _ => None,
    }
}

/// 128 random bits as text: a JWT's `jti`.
pub fn unique() -> String {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("the machine has randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// RFC 6749 section 2.3.1: both halves are form-encoded before they are joined.
pub fn basic(client_id: &str, secret: &Secret) -> HeaderValue {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!(
        "{}:{}",
        encode(client_id),
        *Zeroizing::new(encode(secret.expose()))
    ));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&text).expect("base64 can stand in a header");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::PrivateKey;

    fn client(proof: ClientProof) -> config::Client {
        config::Client {
            id: "gate".to_owned(),
            proof,
        }
    }

    fn key() -> PrivateKey {
        PrivateKey {
            pem: Secret::new(rcgen::KeyPair::generate().unwrap().serialize_pem()),
            id: Some("key-1".to_owned()),
            algorithm: None,
        }
    }

    fn shown(client: &Client) -> (Form, HeaderMap) {
        let (mut form, mut headers) = (Form::default(), HeaderMap::new());
        client.authenticate(&mut form, &mut headers, "https://issuer.example", 1000);
        (form, headers)
    }

    #[test]
    fn each_client_shows_one_proof() {
        let secret = || Secret::new("s3cret");
        let tls = || ClientProof::Tls {
            certificate: "c.pem".into(),
            key: "k.pem".into(),
        };
        let table = [
            (ClientProof::None, "client_id=gate", false),
            (ClientProof::Basic(secret()), "", true),
            (
                ClientProof::Post(secret()),
                "client_id=gate&client_secret=s3cret",
                false,
            ),
            (tls(), "client_id=gate", false),
        ];
        for (proof, expected, header) in table {
            let (form, headers) = shown(&Client::configured(&client(proof)).unwrap());
            assert_eq!(String::from_utf8_lossy(&form.encode()), expected);
            assert_eq!(headers.contains_key(AUTHORIZATION), header);
            assert!(headers.values().all(HeaderValue::is_sensitive));
        }
    }

    #[test]
    fn an_assertion_is_for_one_issuer_once() {
        let client = Client::configured(&client(ClientProof::PrivateKeyJwt(key()))).unwrap();
        let read = || {
            let (form, headers) = shown(&client);
            assert!(headers.is_empty());
            assert_eq!(form.get("client_assertion_type"), Some(ASSERTION_TYPE));
            let token = form.get("client_assertion").unwrap().to_owned();
            let part = |index: usize| -> Value {
                let part = token.split('.').nth(index).unwrap();
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
            };
            (part(0), part(1))
        };
        let (header, claims) = read();
        assert_eq!(header, json!({"alg": "ES256", "typ": "JWT", "kid": "key-1"}));
        assert_eq!(
            (&claims["iss"], &claims["sub"], &claims["aud"]),
            (&json!("gate"), &json!("gate"), &json!("https://issuer.example"))
        );
        assert_eq!((&claims["iat"], &claims["exp"]), (&json!(1000), &json!(1060)));
        assert_ne!(claims["jti"], read().1["jti"]);
    }

    #[test]
    fn what_a_grant_remembers_needs_the_configurations_key() {
        let record = |auth, secret: Option<&str>| ClientRecord {
            id: "gate".to_owned(),
            secret: secret.map(Secret::new),
            secret_expires_at: None,
            auth,
        };
        let keyed = client(ClientProof::PrivateKeyJwt(key()));
        let bare = client(ClientProof::None);
        let table = [
            (record(AuthMethod::None, None), None, true),
            (record(AuthMethod::ClientSecretBasic, Some("s")), None, true),
            (record(AuthMethod::ClientSecretPost, Some("s")), Some(&keyed), true),
            (record(AuthMethod::ClientSecretBasic, None), None, false),
            (record(AuthMethod::PrivateKeyJwt, None), Some(&keyed), true),
            (record(AuthMethod::PrivateKeyJwt, None), Some(&bare), false),
            (record(AuthMethod::PrivateKeyJwt, None), None, false),
            (record(AuthMethod::TlsClientAuth, None), Some(&keyed), false),
        ];
        for (index, (record, keys, good)) in table.iter().enumerate() {
            let made = Client::recorded(record, *keys);
            assert_eq!(made.is_ok(), *good, "{index}");
            if let Ok(made) = made {
                assert_eq!((made.id(), made.method()), ("gate", record.auth));
            }
        }
    }

    #[test]
    fn a_form_keeps_order_and_escapes() {
        let mut form = Form::grant("x");
        form.push_all("audience", &["a&b=c".to_owned(), "é +".to_owned()]);
        form.push_scopes(&[]);
        form.push_scopes(&["r".to_owned(), "w".to_owned()]);
        let encoded = form.encode();
        assert_eq!(
            String::from_utf8_lossy(&encoded),
            "grant_type=x&audience=a%26b%3Dc&audience=%C3%A9+%2B&scope=r+w"
        );
    }
}
