//! A development issuer: an authorization server just real enough for the gate to discover and trust it.
//!
//! 1. Its keys are made at start, live in memory and die with it: a token it signed is worth nothing afterwards.
//! 2. It serves its metadata (RFC 8414, and OpenID Connect discovery), its key set (RFC 7517), and the
//!    `client_credentials` grant (RFC 6749 section 4.4) for clients that were added by hand.
//! 3. After a rotation the new key signs and the old one stays published; [`DevelopmentIssuer::withdraw_old_keys`]
//!    takes it away.
//! 4. [`DevelopmentIssuer::mint_claims`] and [`DevelopmentIssuer::sign`] make any token, hostile ones too: this is
//!    what the refusal tests are made of.
//!
//! It is for development only: it asks nobody for a password and mints whatever the process that holds it wants.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use serde_json::{Value, json};

use super::loopback::Loopback;
use crate::clock::Clock;
use crate::secret::Secret;

/// A running issuer; dropping it stops it.
pub struct DevelopmentIssuer {
    issuer: String,
    shared: Arc<Shared>,
    server: Loopback,
}

/// A client that may ask for tokens with its secret.
pub struct DevelopmentClient {
    pub id: String,
    pub secret: Secret,
    /// The `sub` of its tokens.
    pub subject: String,
    /// The `aud` of its tokens: the resource URL of the route they are for.
    pub audience: String,
    pub scopes: Vec<String>,
    pub roles: Vec<String>,
    pub lifetime: Duration,
}

struct Shared {
    clock: Clock,
    /// Known once the port is.
    issuer: OnceLock<String>,
    random: SystemRandom,
    keys: Mutex<Keys>,
    clients: Mutex<Vec<DevelopmentClient>>,
    requests: Mutex<Vec<String>>,
}

/// Oldest first; the last one signs.
struct Keys {
    made: usize,
    pairs: Vec<(String, EcdsaKeyPair)>,
}

/// `grant_type=client_credentials` and two credentials fit many times over.
const TOKEN_REQUEST_LIMIT: usize = 16 * 1024;

impl DevelopmentIssuer {
    /// Starts an issuer on a free loopback port, with one key.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(clock: Clock) -> io::Result<Self> {
        let mut keys = Keys {
            made: 0,
            pairs: Vec::new(),
        };
        keys.add();
        let shared = Arc::new(Shared {
            clock,
            issuer: OnceLock::new(),
            random: SystemRandom::new(),
            keys: Mutex::new(keys),
            clients: Mutex::default(),
            requests: Mutex::default(),
        });
        let handler = shared.clone();
        let server = Loopback::serve(
            0,
            service_fn(move |request: Request<Incoming>| {
                let shared = handler.clone();
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            }),
        )
        .await?;
        let issuer = shared.issuer.get_or_init(|| server.origin()).clone();
        Ok(Self { issuer, shared, server })
    }

    /// The `iss` of its tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Where its key set is.
    pub fn jwks_uri(&self) -> String {
        format!("{}/jwks", self.issuer)
    }

    /// Its key set, as served.
    pub fn jwks(&self) -> Value {
        self.shared.jwks()
    }

    /// Lets a client use the token endpoint.
    pub fn add_client(&self, client: DevelopmentClient) {
        held(&self.shared.clients).push(client);
    }

    /// An access token as RFC 9068 has it: `typ` `at+jwt`, and the claims the gate's defaults read.
    pub fn mint(&self, subject: &str, audience: &str, scopes: &[&str], roles: &[&str], lifetime: Duration) -> String {
        let now = self.shared.clock.now();
        self.mint_claims(&json!({
            "iss": self.issuer,
            "sub": subject,
            "aud": audience,
            "client_id": "portcullis-demo",
            "scope": scopes.join(" "),
            "roles": roles,
            "iat": now,
            "exp": now.saturating_add(lifetime.as_secs()),
            "jti": random_text(),
        }))
    }

    /// A token with exactly these claims, signed by the current key.
    pub fn mint_claims(&self, claims: &Value) -> String {
        let kid = self.current_kid();
        self.sign(&json!({"alg": "ES256", "typ": "at+jwt", "kid": kid}), claims)
    }

    /// A token with exactly this header and these claims; the signature is ES256 by the current key, whatever the
    /// header says.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.shared.sign(header, claims)
    }

    /// The `kid` that signs now.
    pub fn current_kid(&self) -> String {
        held(&self.shared.keys).current().0.clone()
    }

    /// Makes a new key that signs from now on; the older ones stay published.
    pub fn rotate(&self) {
        held(&self.shared.keys).add();
    }

    /// Unpublishes every key but the current one.
    pub fn withdraw_old_keys(&self) {
        let mut keys = held(&self.shared.keys);
        let old = keys.pairs.len() - 1;
        keys.pairs.drain(..old);
    }

    /// What it was asked so far, such as `GET /jwks`: shows that nothing was fetched, or fetched once.
    pub fn requests(&self) -> Vec<String> {
        held(&self.shared.requests).clone()
    }

    /// Stops serving; tokens minted before remain valid for whoever has the keys.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

impl Keys {
    fn add(&mut self) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .expect("aws-lc makes a P-256 key unless the system has no randomness");
        self.made += 1;
        self.pairs.push((format!("development-{}", self.made), pair));
    }

    fn current(&self) -> &(String, EcdsaKeyPair) {
        self.pairs
            .last()
            .expect("a key is made at start and the last is never withdrawn")
    }
}

impl Shared {
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = held(&self.keys)
            .current()
            .1
            .sign(&self.random, signed.as_bytes())
            .expect("signing with a key made here fails only without randomness");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn jwks(&self) -> Value {
        let keys = held(&self.keys);
        let keys: Vec<Value> = keys
            .pairs
            .iter()
            .map(|(kid, pair)| {
                // SEC 1 section 2.3.3: 0x04, then x and y of 32 bytes each.
                let point = pair.public_key().as_ref();
                json!({
                    "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid,
                    "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
                    "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
                })
            })
            .collect();
        json!({ "keys": keys })
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let line = format!("{} {}", request.method(), request.uri().path());
        held(&self.requests).push(line);
        let Some(issuer) = self.issuer.get() else {
            return reply(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"error": "temporarily_unavailable"}),
            );
        };
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/.well-known/oauth-authorization-server" | "/.well-known/openid-configuration") => {
                reply(StatusCode::OK, &metadata(issuer))
            }
            (&Method::GET, "/jwks") => reply(StatusCode::OK, &self.jwks()),
            (&Method::POST, "/token") => match self.grant(issuer, request).await {
                Ok(granted) => reply(StatusCode::OK, &granted),
                // RFC 6749 section 5.2: only a client that failed to authenticate gets a 401.
                Err(error @ "invalid_client") => reply(StatusCode::UNAUTHORIZED, &json!({ "error": error })),
                Err(error) => reply(StatusCode::BAD_REQUEST, &json!({ "error": error })),
            },
            _ => reply(StatusCode::NOT_FOUND, &json!({"error": "not_found"})),
        }
    }

    async fn grant(&self, issuer: &str, request: Request<Incoming>) -> Result<Value, &'static str> {
        let basic = request
            .headers()
            .get(AUTHORIZATION)
            .map(|value| basic(value.as_bytes()));
        let body = Limited::new(request.into_body(), TOKEN_REQUEST_LIMIT)
            .collect()
            .await
            .map_err(|_| "invalid_request")?
            .to_bytes();
        let form: Vec<(String, String)> = url::form_urlencoded::parse(&body).into_owned().collect();
        let field = |name: &str| {
            form.iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let (id, secret) = match basic {
            Some(credentials) => credentials.ok_or("invalid_client")?,
            None => (
                field("client_id").ok_or("invalid_client")?.to_owned(),
                field("client_secret").ok_or("invalid_client")?.to_owned(),
            ),
        };
        let clients = held(&self.clients);
        let client = clients.iter().find(|client| client.id == id).ok_or("invalid_client")?;
        verify_slices_are_equal(client.secret.expose().as_bytes(), secret.as_bytes()).map_err(|_| "invalid_client")?;
        if field("grant_type") != Some("client_credentials") {
            return Err("unsupported_grant_type");
        }
        // RFC 8707 section 2: a resource the client isn't meant for is no reason to hand out another.
        if field("resource").is_some_and(|resource| resource != client.audience) {
            return Err("invalid_target");
        }
        let scopes: Vec<&str> = match field("scope") {
            Some(asked) => asked.split(' ').collect(),
            None => client.scopes.iter().map(String::as_str).collect(),
        };
        if !scopes
            .iter()
            .all(|asked| client.scopes.iter().any(|scope| scope == asked))
        {
            return Err("invalid_scope");
        }
        let now = self.clock.now();
        let kid = held(&self.keys).current().0.clone();
        let token = self.sign(
            &json!({"alg": "ES256", "typ": "at+jwt", "kid": kid}),
            &json!({
                "iss": issuer, "sub": client.subject, "aud": client.audience, "client_id": client.id,
                "scope": scopes.join(" "), "roles": client.roles, "iat": now,
                "exp": now.saturating_add(client.lifetime.as_secs()), "jti": random_text(),
            }),
        );
        Ok(json!({
            "access_token": token, "token_type": "Bearer", "expires_in": client.lifetime.as_secs(),
            "scope": scopes.join(" "),
        }))
    }
}

/// A secret of 32 random bytes, as text.
pub fn random_text() -> String {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// RFC 8414 section 2; `response_types_supported` is required there and empty here, as there is no authorization
/// endpoint.
fn metadata(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/jwks"),
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    })
}

/// RFC 6749 section 2.3.1: both halves are form-encoded before they are joined.
fn basic(header: &[u8]) -> Option<(String, String)> {
    let encoded = header.strip_prefix(b"Basic ")?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    let plain = |text: &str| {
        let pair = format!("={text}");
        url::form_urlencoded::parse(pair.as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
    };
    Some((plain(id)?, plain(secret)?))
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .header(CACHE_CONTROL, "no-store")
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("the parts are constants")
}

/// A panic while the lock was held left nothing half-made in what it guards.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};

    const NOW: u64 = 1_800_000_000;

    async fn issuer() -> DevelopmentIssuer {
        DevelopmentIssuer::start(Clock::fixed(NOW))
            .await
            .expect("loopback has a free port")
    }

    /// Verifies as the gate would: by `kid` in the key set.
    fn claims(issuer: &DevelopmentIssuer, token: &str) -> Option<Value> {
        let keys: JwkSet = serde_json::from_value(issuer.jwks()).expect("a key set");
        let header = jsonwebtoken::decode_header(token).ok()?;
        let key = DecodingKey::from_jwk(keys.find(header.kid.as_deref()?)?).ok()?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        Some(jsonwebtoken::decode::<Value>(token, &key, &validation).ok()?.claims)
    }

    async fn get(url: &str) -> Value {
        send(url, "GET", &[], "").await.1
    }

    async fn send(url: &str, method: &str, headers: &[(&str, &str)], body: &str) -> (StatusCode, Value) {
        let url: http::Uri = url.parse().expect("a URL");
        let authority = url.authority().expect("an authority").as_str();
        let stream = tokio::net::TcpStream::connect(authority).await.expect("connects");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .expect("handshake");
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(url.path())
            .header("host", authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn metadata_leads_to_keys_that_verify_its_tokens() {
        let issuer = issuer().await;
        for document in ["oauth-authorization-server", "openid-configuration"] {
            let metadata = get(&format!("{}/.well-known/{document}", issuer.issuer())).await;
            assert_eq!(metadata["issuer"], issuer.issuer());
            assert_eq!(metadata["jwks_uri"], issuer.jwks_uri());
        }
        assert_eq!(get(&issuer.jwks_uri()).await, issuer.jwks());

        let token = issuer.mint(
            "ada",
            "http://gate/mcp",
            &["a", "b"],
            &["reader"],
            Duration::from_secs(60),
        );
        let claims = claims(&issuer, &token).expect("a valid token");
        assert_eq!(claims["sub"], "ada");
        assert_eq!(claims["aud"], "http://gate/mcp");
        assert_eq!(claims["scope"], "a b");
        assert_eq!(claims["roles"], json!(["reader"]));
        assert_eq!(claims["exp"], NOW + 60);
    }

    #[tokio::test]
    async fn a_rotated_key_verifies_until_it_is_withdrawn() {
        let issuer = issuer().await;
        let old = issuer.mint("ada", "a", &[], &[], Duration::from_secs(60));
        issuer.rotate();
        let new = issuer.mint("ada", "a", &[], &[], Duration::from_secs(60));
        assert!(claims(&issuer, &old).is_some());
        assert!(claims(&issuer, &new).is_some());
        issuer.withdraw_old_keys();
        assert!(claims(&issuer, &old).is_none());
        assert!(claims(&issuer, &new).is_some());
    }

    #[tokio::test]
    async fn another_issuers_signature_does_not_verify() {
        let (one, two) = (issuer().await, issuer().await);
        let forged = one.sign(
            &json!({"alg": "ES256", "kid": two.current_kid()}),
            &json!({"iss": two.issuer(), "sub": "mallory"}),
        );
        assert!(claims(&two, &forged).is_none());
    }

    #[tokio::test]
    async fn the_token_endpoint_serves_known_clients_only() {
        let issuer = issuer().await;
        issuer.add_client(DevelopmentClient {
            id: "reader".into(),
            secret: Secret::new("s3:cret%"),
            subject: "ada".into(),
            audience: "http://gate/mcp".into(),
            scopes: vec!["demo.use".into()],
            roles: vec!["reader".into()],
            lifetime: Duration::from_secs(60),
        });
        let url = format!("{}/token", issuer.issuer());
        let form = ("content-type", "application/x-www-form-urlencoded");
        let basic = format!("Basic {}", STANDARD.encode("reader:s3%3Acret%25"));
        let basic = ("authorization", basic.as_str());
        let grant = "grant_type=client_credentials";
        let post = "client_id=reader&client_secret=s3%3Acret%25&grant_type=client_credentials";

        for (headers, body) in [(vec![form, basic], grant), (vec![form], post)] {
            let (status, granted) = send(&url, "POST", &headers, body).await;
            assert_eq!(status, 200, "{granted}");
            let claims = claims(&issuer, granted["access_token"].as_str().expect("a token")).expect("valid");
            assert_eq!(claims["sub"], "ada");
            assert_eq!(claims["aud"], "http://gate/mcp");
        }

        let wrong = format!("{grant}&client_id=reader&client_secret=guess");
        let unknown = format!("{grant}&client_id=nobody&client_secret=guess");
        let elsewhere = format!("{post}&resource=http%3A%2F%2Felsewhere%2Fmcp");
        let more = format!("{post}&scope=demo.use+demo.admin");
        for (body, status, error) in [
            (wrong.as_str(), 401, "invalid_client"),
            (unknown.as_str(), 401, "invalid_client"),
            ("grant_type=client_credentials", 401, "invalid_client"),
            (
                "client_id=reader&client_secret=s3%3Acret%25",
                400,
                "unsupported_grant_type",
            ),
            (elsewhere.as_str(), 400, "invalid_target"),
            (more.as_str(), 400, "invalid_scope"),
        ] {
            let answer = send(&url, "POST", &[form], body).await;
            assert_eq!(
                (answer.0.as_u16(), &answer.1["error"]),
                (status, &json!(error)),
                "{body}"
            );
        }
    }

    #[tokio::test]
    async fn it_remembers_what_it_was_asked() {
        let issuer = issuer().await;
        assert!(issuer.requests().is_empty());
        get(&issuer.jwks_uri()).await;
        assert_eq!(issuer.requests(), ["GET /jwks"]);
    }
}
