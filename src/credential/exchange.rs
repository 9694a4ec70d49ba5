//! One RFC 8693 token exchange: the request, and what is believed of its answer.
//!
//! 1. The caller's token is the subject; an access token is asked for. No scope is sent unless configured, and no
//!    refresh token is asked for or kept.
//! 2. The answer is bounded in size and time, redirects are not followed, and neither proxies nor anything else come
//!    from the environment.
//! 3. A token that isn't for `Authorization: Bearer`, that a header can't hold or that is the caller's own again is
//!    refused.
//! 4. Nothing the issuer wrote reaches an error text: its error codes are matched against the registered ones.

use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use reqwest::redirect;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{CredentialError, SetupError};
use crate::config::{ClientProof, Exchange};
use crate::oauth::client::basic;
use crate::secret::Secret;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// For the whole answer.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 * 1024;
const MAX_TOKEN: usize = 16 * 1024;
/// Seconds that a token without `expires_in` is believed to live.
const DEFAULT_EXPIRES_IN: u64 = 300;

/// Error codes of RFC 6749 section 5.2, RFC 8693 section 2.2.2, and two in common use.
const ERRORS: &[&str] = &[
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "access_denied",
    "invalid_token",
];

/// A token endpoint and how to ask it.
pub(super) struct Endpoint {
    client: reqwest::Client,
    url: url::Url,
    /// Form fields that are the same for every caller; with `post`, the client's secret among them.
    fields: Zeroizing<String>,
    authorization: Option<HeaderValue>,
}

/// A token, ready to be sent.
pub(super) struct Issued {
    /// `Bearer …`, marked sensitive.
    pub(super) value: HeaderValue,
    /// Seconds.
    pub(super) expires_in: u64,
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    token_type: Option<String>,
    issued_token_type: Option<String>,
    expires_in: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Endpoint {
    pub(super) fn new(route: &str, config: &Exchange) -> Result<Self, SetupError> {
        if !is_secure(&config.endpoint.url) {
            return Err(SetupError::Insecure {
                route: route.to_owned(),
            });
        }
        let tls = tls(config).map_err(|cause| SetupError::Ca {
            route: route.to_owned(),
            cause,
        })?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| SetupError::Client {
                route: route.to_owned(),
                cause: error.to_string(),
            })?;
        let mut fields = form_urlencoded::Serializer::new(String::new());
        fields.append_pair("grant_type", GRANT);
        fields.append_pair("subject_token_type", ACCESS_TOKEN);
        fields.append_pair("requested_token_type", ACCESS_TOKEN);
        for audience in &config.audiences {
            fields.append_pair("audience", audience);
        }
        for resource in &config.resources {
            fields.append_pair("resource", resource);
        }
        if !config.scopes.is_empty() {
            fields.append_pair("scope", &config.scopes.join(" "));
        }
        let own = &config.endpoint.client;
        let authorization = match &own.proof {
            ClientProof::Basic(secret) => Some(basic(&own.id, secret)),
            ClientProof::Post(secret) => {
                fields.append_pair("client_id", &own.id);
                fields.append_pair("client_secret", secret.expose());
                None
            }
            ClientProof::None => {
                fields.append_pair("client_id", &own.id);
                None
            }
            ClientProof::PrivateKeyJwt(_) | ClientProof::Tls { .. } => {
                return Err(SetupError::Client {
                    route: route.to_owned(),
                    cause: "the gate authenticates by a secret only".to_owned(),
                });
            }
        };
        Ok(Self {
            client,
            url: config.endpoint.url.clone(),
            fields: Zeroizing::new(fields.finish()),
            authorization,
        })
    }

    /// Exchanges the caller's token; returns how long it took, too.
    pub(super) async fn exchange(&self, subject: &Secret) -> (Result<Issued, CredentialError>, Duration) {
        let started = Instant::now();
        let result = self.send(subject).await;
        (result, started.elapsed())
    }

    async fn send(&self, subject: &Secret) -> Result<Issued, CredentialError> {
        let mut form = self.fields.to_string();
        form.push_str("&subject_token=");
        form.extend(form_urlencoded::byte_serialize(subject.expose().as_bytes()));
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let mut response = request.send().await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(CredentialError::Unreachable("it answered that it can't serve now"));
        }
        if !(status.is_success() || status.is_client_error()) {
            return Err(CredentialError::Malformed("neither success nor an error of OAuth"));
        }
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(CredentialError::Malformed("more than 64 KiB"));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_client_error() {
            let error = serde_json::from_slice::<Refusal>(&body).map_or("other", |refusal| registered(&refusal.error));
            return Err(CredentialError::Rejected { error });
        }
        believe(&body, subject)
    }
}

/// RFC 8693 section 2.2.1.
fn believe(body: &[u8], subject: &Secret) -> Result<Issued, CredentialError> {
    use CredentialError::Malformed;
    let answer: Answer = serde_json::from_slice(body).map_err(|_| Malformed("not a JSON token answer"))?;
    let token = Zeroizing::new(answer.access_token.ok_or(Malformed("no access_token"))?);
    // `N_A` says that the token is no access token at all; `DPoP` and others need a proof we can't give.
    if answer
        .token_type
        .is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer"))
    {
        return Err(Malformed("token_type is not Bearer"));
    }
    if answer
        .issued_token_type
        .is_some_and(|kind| kind != ACCESS_TOKEN && kind != JWT)
    {
        return Err(Malformed("issued_token_type is not an access token"));
    }
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Malformed("access_token can't stand in a header"));
    }
    if token.as_str() == subject.expose() {
        return Err(Malformed("access_token is the caller's own token"));
    }
    let mut value = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {}", token.as_str())))
        .map_err(|_| Malformed("access_token can't stand in a header"))?;
    value.set_sensitive(true);
    let expires_in = lifetime(answer.expires_in.as_ref()).ok_or(Malformed("expires_in is not a number"))?;
    Ok(Issued { value, expires_in })
}

/// Seconds, whatever form the issuer gives them; a negative number is none.
fn lifetime(expires_in: Option<&Value>) -> Option<u64> {
    match expires_in {
        None | Some(Value::Null) => Some(DEFAULT_EXPIRES_IN),
        Some(Value::Number(number)) => number
            .as_u64()
            .or_else(|| number.as_f64().map(|seconds| seconds as u64)),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    }
}

fn registered(error: &str) -> &'static str {
    ERRORS.iter().find(|known| **known == error).copied().unwrap_or("other")
}

fn unreachable(error: &reqwest::Error) -> CredentialError {
    CredentialError::Unreachable(if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    })
}

fn is_secure(url: &url::Url) -> bool {
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(url::Host::Ipv4(address))) => address.is_loopback(),
        ("http", Some(url::Host::Ipv6(address))) => address.is_loopback(),
        ("http", Some(url::Host::Domain(name))) => name == "localhost",
        _ => false,
    }
}

/// The configured bundle, or the system's roots. The provider is named, so that none need be installed.
fn tls(config: &Exchange) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = &config.endpoint.ca {
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        for certificate in certificates {
            roots
                .add(certificate)
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if roots.is_empty() {
            return Err(format!("{}: no certificate in it", path.display()));
        }
    } else if config.endpoint.url.scheme() == "https" {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("no CA given, and the system has none".to_owned());
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::super::fake_issuer::FakeIssuer;
    use super::*;

    const SUBJECT: &str = "callers-token";

    fn subject() -> Secret {
        Secret::new(SUBJECT)
    }

    fn believed(body: &str) -> Result<(String, u64), CredentialError> {
        believe(body.as_bytes(), &subject()).map(|issued| {
            assert!(issued.value.is_sensitive());
            (issued.value.to_str().unwrap().to_owned(), issued.expires_in)
        })
    }

    #[test]
    fn answers_that_can_be_used() {
        let cases = [
            (r#"{"access_token":"t","token_type":"Bearer","expires_in":60}"#, 60),
            (r#"{"access_token":"t","token_type":"bEARER","expires_in":60.9}"#, 60),
            (
                r#"{"access_token":"t","expires_in":"60","scope":"a b","refresh_token":"never kept"}"#,
                60,
            ),
            (r#"{"access_token":"t","expires_in":-5}"#, 0),
            (r#"{"access_token":"t","expires_in":1e300}"#, u64::MAX),
            (
                r#"{"access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}"#,
                300,
            ),
            (
                r#"{"access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:jwt"}"#,
                300,
            ),
        ];
        for (body, seconds) in cases {
            assert_eq!(believed(body), Ok(("Bearer t".to_owned(), seconds)), "{body}");
        }
    }

    #[test]
    fn r15_without_expires_in_a_token_lives_300_seconds() {
        assert_eq!(believed(r#"{"access_token":"t"}"#), Ok(("Bearer t".to_owned(), 300)));
        assert_eq!(
            believed(r#"{"access_token":"t","expires_in":null}"#),
            Ok(("Bearer t".to_owned(), 300))
        );
    }

    #[test]
    fn answers_that_cannot_be_used() {
        let long = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(MAX_TOKEN + 1));
        let cases = [
            "",
            "null",
            "[]",
            "{}",
            r#"{"access_token":null}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\r\nx-admin: 1"}"#,
            r#"{"access_token":"é"}"#,
            r#"{"access_token":"t","access_token":"u"}"#,
            r#"{"access_token":"t","token_type":"N_A"}"#,
            r#"{"access_token":"t","token_type":"DPoP"}"#,
            r#"{"access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:refresh_token"}"#,
            r#"{"access_token":"t","expires_in":[]}"#,
            r#"{"access_token":"t","expires_in":"soon"}"#,
            r#"{"error":"invalid_target"}"#,
            // The caller's own token never leaves, not even by way of the issuer.
            r#"{"access_token":"callers-token"}"#,
            &long,
        ];
        for body in cases {
            let error = believed(body).expect_err(body);
            assert!(matches!(error, CredentialError::Malformed(_)), "{body}: {error:?}");
            assert!(!error.to_string().contains(SUBJECT));
        }
    }

    #[tokio::test]
    async fn the_form_holds_what_is_configured_and_no_more() {
        let issuer = FakeIssuer::start(200, r#"{"access_token":"t"}"#).await;
        let mut config = issuer.config();
        config.endpoint.client.id = "gate one".to_owned();
        config.endpoint.client.proof = ClientProof::Basic(Secret::new("s:e/c+r%t é"));
        Endpoint::new("r", &config)
            .unwrap()
            .exchange(&subject())
            .await
            .0
            .expect("exchanged");
        config.endpoint.client.proof = ClientProof::Post(Secret::new("s:e/c+r%t é"));
        config.audiences = vec!["nextcloud".to_owned()];
        config.resources = vec!["https://nc.test/".to_owned()];
        config.scopes = vec!["a".to_owned(), "b".to_owned()];
        Endpoint::new("r", &config)
            .unwrap()
            .exchange(&subject())
            .await
            .0
            .expect("exchanged");

        let asked = issuer.asked();
        let form = |index: usize| -> Vec<(&str, &str)> {
            asked[index]
                .form
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect()
        };
        assert_eq!(
            form(0),
            [
                ("grant_type", GRANT),
                ("requested_token_type", ACCESS_TOKEN),
                ("subject_token", SUBJECT),
                ("subject_token_type", ACCESS_TOKEN),
            ]
        );
        let basic = STANDARD.encode("gate+one:s%3Ae%2Fc%2Br%25t+%C3%A9");
        assert_eq!(asked[0].headers[AUTHORIZATION], format!("Basic {basic}"));
        assert_eq!(
            form(1),
            [
                ("audience", "nextcloud"),
                ("client_id", "gate one"),
                ("client_secret", "s:e/c+r%t é"),
                ("grant_type", GRANT),
                ("requested_token_type", ACCESS_TOKEN),
                ("resource", "https://nc.test/"),
                ("scope", "a b"),
                ("subject_token", SUBJECT),
                ("subject_token_type", ACCESS_TOKEN),
            ]
        );
        assert!(!asked[1].headers.contains_key(AUTHORIZATION));
    }

    #[tokio::test]
    async fn refusals_are_told_apart_and_quote_nothing() {
        let issuer = FakeIssuer::start(200, "").await;
        let endpoint = Endpoint::new("r", &issuer.config()).unwrap();
        let huge = format!(r#"{{"access_token":"t","x":"{}"}}"#, "x".repeat(MAX_ANSWER));
        let rejected = |error| CredentialError::Rejected { error };
        let cases = [
            (
                400,
                r#"{"error":"invalid_target","error_description":"callers-token"}"#,
                Some(rejected("invalid_target")),
            ),
            (401, r#"{"error":"invalid_client"}"#, Some(rejected("invalid_client"))),
            (400, r#"{"error":"callers-token\u001b[31m"}"#, Some(rejected("other"))),
            (403, "<html>callers-token", Some(rejected("other"))),
            (429, "{}", None),
            (500, r#"{"access_token":"t"}"#, None),
            (503, "", None),
        ];
        for (status, body, expected) in cases {
            issuer.answers(status, body);
            let error = endpoint.exchange(&subject()).await.0.err().expect("refused");
            match expected {
                Some(expected) => assert_eq!(error, expected),
                None => assert!(matches!(error, CredentialError::Unreachable(_)), "{status}: {error:?}"),
            }
            assert!(!error.to_string().contains(SUBJECT), "{error}");
        }
        for (status, body) in [(200, huge.as_str()), (307, r#"{"access_token":"t"}"#)] {
            issuer.answers(status, body);
            let before = issuer.asked().len();
            let error = endpoint.exchange(&subject()).await.0.err().expect("refused");
            assert!(matches!(error, CredentialError::Malformed(_)), "{status}: {error:?}");
            assert_eq!(issuer.asked().len(), before + 1, "redirects are not followed");
        }
    }

    #[tokio::test]
    async fn a_private_ca_is_trusted_when_named_and_only_then() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .signed_by(&key, &ca)
            .unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                let answer =
                    "HTTP/1.1 200 OK\r\ncontent-length: 20\r\nconnection: close\r\n\r\n{\"access_token\":\"t\"}";
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });

        let issuer = FakeIssuer::start(200, "").await;
        let mut config = issuer.config();
        config.endpoint.url = format!("https://localhost:{port}/token").parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("ca.pem");
        std::fs::write(&bundle, ca.pem()).unwrap();
        config.endpoint.ca = Some(bundle.clone());
        let trusted = Endpoint::new("r", &config).unwrap().exchange(&subject()).await.0;
        assert_eq!(trusted.expect("trusted").value.to_str().unwrap(), "Bearer t");

        let other = CertifiedIssuer::self_signed(
            CertificateParams::new(Vec::new()).unwrap(),
            KeyPair::generate().unwrap(),
        )
        .unwrap();
        std::fs::write(&bundle, other.pem()).unwrap();
        let refused = Endpoint::new("r", &config).unwrap().exchange(&subject()).await.0;
        assert_eq!(refused.err(), Some(CredentialError::Unreachable("no connection")));

        std::fs::write(&bundle, "no certificate").unwrap();
        assert!(matches!(Endpoint::new("r", &config), Err(SetupError::Ca { .. })));
    }

    #[test]
    fn r26_a_token_endpoint_off_loopback_needs_https() {
        let cases = [
            ("https://issuer.test/token", true),
            ("http://127.0.0.1:8002/token", true),
            ("http://127.9.9.9/token", true),
            ("http://[::1]:8002/token", true),
            ("http://localhost/token", true),
            ("http://issuer.test/token", false),
            ("http://localhost.issuer.test/token", false),
            ("http://10.0.0.1/token", false),
            ("ftp://127.0.0.1/token", false),
        ];
        for (url, secure) in cases {
            assert_eq!(is_secure(&url.parse().unwrap()), secure, "{url}");
        }
    }
}
