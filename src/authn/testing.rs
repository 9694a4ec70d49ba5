//! Keys that sign and an issuer that misbehaves, for the tests of this module.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use aws_lc_rs::{hmac, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Sender, api_key};
use crate::config::{ApiKeys, ClaimPaths, ClientAuth, Identity, Introspection, KeySource};
use crate::secret::Secret;
use crate::session::Sealer;

/// A request that shows nothing but its token.
pub(super) fn sender() -> Sender<'static> {
    static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(&[]));
    Sender {
        method: &http::Method::POST,
        target: "https://mcp.example.com/notes/mcp",
        certificate: None,
        sealer: &SEALER,
    }
}

/// An identity with the default algorithms, whose keys are found by discovery.
pub(crate) fn identity(name: &str, issuer: &str) -> Identity {
    use jsonwebtoken::Algorithm::{ES256, ES384, EdDSA, PS256, RS256};
    Identity {
        name: name.into(),
        issuer: issuer.to_owned(),
        keys: KeySource::Discovery,
        algorithms: vec![RS256, PS256, ES256, ES384, EdDSA],
        audiences: Vec::new(),
        claims: ClaimPaths::default(),
        id_tokens: false,
        ca: None,
        implies: Default::default(),
        scope_upgrade_endpoint: None,
        dpop: None,
        login: None,
    }
}

/// An identity whose issuer is asked about tokens, at an endpoint found by discovery.
pub(crate) fn asking(name: &str, issuer: &str) -> Identity {
    Identity {
        keys: KeySource::Introspection(Introspection {
            endpoint: None,
            client_id: "gate".to_owned(),
            client_secret: Secret::new("s:e cret"),
            client_auth: ClientAuth::Basic,
            cache: Duration::from_secs(30),
            default_audiences: Vec::new(),
        }),
        ..identity(name, issuer)
    }
}

/// An identity with these lines of API keys, in a file that is never there.
pub(crate) fn robots(name: &str, lines: &str) -> Identity {
    Identity {
        keys: KeySource::ApiKeys(ApiKeys {
            file: "/nowhere".into(),
            keys: api_key::parse(lines).unwrap(),
        }),
        ..identity(name, "")
    }
}

pub(crate) struct SigningKey {
    pub(crate) kid: String,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Secret(Vec<u8>),
}

impl SigningKey {
    fn new(kid: &str, pair: Pair) -> Self {
        Self {
            kid: kid.to_owned(),
            pair,
        }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        Self::new(kid, Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    pub(crate) fn es256(kid: &str) -> Self {
        Self::new(
            kid,
            Pair::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
        )
    }

    pub(crate) fn es384(kid: &str) -> Self {
        Self::new(
            kid,
            Pair::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
        )
    }

    pub(crate) fn ed25519(kid: &str) -> Self {
        Self::new(kid, Pair::Ed(Ed25519KeyPair::generate().unwrap()))
    }

    pub(crate) fn secret(secret: &[u8]) -> Self {
        Self::new("secret", Pair::Secret(secret.to_vec()))
    }

    /// What the issuer publishes.
    pub(crate) fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.pair {
            Pair::Rsa(pair) => {
                let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
                json!({
                    "kty": "RSA", "kid": self.kid, "use": "sig",
                    "n": text(n.big_endian_without_leading_zero()), "e": text(e.big_endian_without_leading_zero()),
                })
            }
            Pair::P256(pair) | Pair::P384(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at(point.len() / 2);
                let crv = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": crv, "kid": self.kid, "x": text(x), "y": text(y)})
            }
            Pair::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": text(pair.public_key().as_ref())})
            }
            Pair::Secret(secret) => json!({"kty": "oct", "k": text(secret), "kid": self.kid}),
        }
    }

    /// What an attacker would take for an HMAC secret: the public key as everybody can read it.
    pub(crate) fn public_bytes(&self) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            _ => self.jwk().to_string().into_bytes(),
        }
    }

    /// The header this key would write.
    pub(crate) fn header(&self) -> Value {
        let alg = match &self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::P384(_) => "ES384",
            Pair::Ed(_) => "EdDSA",
            Pair::Secret(_) => "HS256",
        };
        json!({"alg": alg, "kid": self.kid, "typ": "at+jwt"})
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&self.header(), claims)
    }

    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_raw(&header.to_string(), &claims.to_string())
    }

    /// Signs whatever is written; PS256 when the header says so.
    pub(crate) fn token_raw(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let message = signed.as_bytes();
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let scheme: &dyn signature::RsaEncoding = if header.contains("PS256") {
                    &RSA_PSS_SHA256
                } else {
                    &RSA_PKCS1_SHA256
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(scheme, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::P256(pair) | Pair::P384(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Secret(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message)
                .as_ref()
                .to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// What the issuer answers at a path.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Json(String),
    Status(StatusCode),
    Redirect(String),
    /// Never.
    Hang,
    /// Closes the connection.
    Broken,
}

/// An issuer on loopback.
pub(crate) struct Issuer {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Answer>,
    hits: HashMap<String, usize>,
    /// The last request's `Authorization` and body.
    last: (String, String),
}

pub(crate) const METADATA: &str = "/.well-known/oauth-authorization-server";
pub(crate) const JWKS: &str = "/jwks";
pub(crate) const INTROSPECT: &str = "/introspect";

impl Issuer {
    /// Serves metadata and these keys.
    pub(crate) async fn start(keys: &[&SigningKey]) -> Self {
        let listener = listen().await;
        let issuer = Self::new(format!("http://{}", listener.local_addr().unwrap()), keys);
        let state = issuer.state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(TokioIo::new(stream), state.clone()));
            }
        });
        issuer
    }

    /// The same over TLS, with the PEM of the authority to trust.
    pub(crate) async fn start_tls(keys: &[&SigningKey]) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.cert.der().clone()],
                rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = listen().await;
        let port = listener.local_addr().unwrap().port();
        let issuer = Self::new(format!("https://localhost:{port}"), keys);
        let state = issuer.state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    tokio::spawn(serve(TokioIo::new(stream), state.clone()));
                }
            }
        });
        (issuer, made.cert.pem())
    }

    fn new(url: String, keys: &[&SigningKey]) -> Self {
        let issuer = Self {
            url,
            state: Arc::default(),
        };
        issuer.publish_metadata(&issuer.url);
        issuer.publish(keys);
        issuer
    }

    pub(crate) fn publish_metadata(&self, issuer: &str) {
        let metadata = json!({
            "issuer": issuer,
            "jwks_uri": format!("{}{JWKS}", self.url),
            "introspection_endpoint": format!("{}{INTROSPECT}", self.url),
        });
        self.answer(METADATA, Answer::Json(metadata.to_string()));
    }

    pub(crate) fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
        self.answer(JWKS, Answer::Json(json!({ "keys": keys }).to_string()));
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), answer);
    }

    /// What introspection answers, whatever is asked.
    pub(crate) fn says(&self, answer: &Value) {
        self.answer(INTROSPECT, Answer::Json(answer.to_string()));
    }

    /// The last request's `Authorization` and body.
    pub(crate) fn last(&self) -> (String, String) {
        self.state.lock().unwrap().last.clone()
    }

    pub(crate) fn hits(&self, path: &str) -> usize {
        self.state.lock().unwrap().hits.get(path).copied().unwrap_or(0)
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap()
}

async fn serve(io: impl hyper::rt::Read + hyper::rt::Write + Unpin, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let state = state.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let authorization = head.headers.get(http::header::AUTHORIZATION);
            let authorization = authorization.map_or("", |value| value.to_str().unwrap()).to_owned();
            let answer = {
                let mut state = state.lock().unwrap();
                state.last = (authorization, String::from_utf8(body.to_vec()).unwrap());
                state.answer(head.uri.path())
            };
            answer.respond().await
        }
    });
    // Clients hang up as they like.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(io, service)
        .await;
}

impl State {
    fn answer(&mut self, path: &str) -> Answer {
        *self.hits.entry(path.to_owned()).or_default() += 1;
        self.answers
            .get(path)
            .cloned()
            .unwrap_or(Answer::Status(StatusCode::NOT_FOUND))
    }
}

impl Answer {
    async fn respond(self) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let mut response = Response::new(Full::default());
        match self {
            Self::Json(json) => *response.body_mut() = Full::from(json),
            Self::Status(status) => *response.status_mut() = status,
            Self::Redirect(to) => {
                *response.status_mut() = StatusCode::FOUND;
                response
                    .headers_mut()
                    .insert(http::header::LOCATION, to.parse().unwrap());
            }
            Self::Hang => match std::future::pending::<Infallible>().await {},
            Self::Broken => return Err(std::io::ErrorKind::ConnectionReset.into()),
        }
        Ok(response)
    }
}
