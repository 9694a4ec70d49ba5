//! How the gateway comes to a client id: configured, a client id metadata document, or dynamic registration (RFC 7591).
//!
//! 1. The order is MCP's: a configured client; the gateway's own metadata document where the issuer takes such and can
//!    read it (public https); dynamic registration. `registration` in the configuration narrows it.
//! 2. A registration belongs to the issuer that gave it, and is remembered under that issuer's identifier. It is never
//!    shown to another.
//! 3. The application type is `web`; on loopback `native`, for only that may have plain http redirect URIs (OpenID Connect
//!    Dynamic Client Registration section 2).
//! 4. The client authenticates by what the issuer supports: a secret in the header, in the form, or none. An answer that
//!    asks for something else is refused, as is one without the secret that it needs.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::authorization::shown;
use super::fetch::{FetchError, is_loopback};
use super::{AuthMethod, ClientRecord};
use crate::authn::strict_json;
use crate::secret::Secret;

/// Longest client id or secret, in bytes.
const MAX_TEXT: usize = 4 * 1024;

/// RFC 7591 section 3.2.2.
const ERRORS: [&str; 4] = [
    "invalid_redirect_uri",
    "invalid_client_metadata",
    "invalid_software_statement",
    "unapproved_software_statement",
];

const NAME: &str = "Portcullis";

/// Why there is no client to log in with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    #[error("the issuer neither takes client id metadata documents from here nor registers clients; set client_id")]
    Impossible,
    #[error("the issuer takes no client id metadata documents; drop `registration`, or set client_id")]
    NoDocuments,
    #[error("the issuer can't read the gate's client id metadata document: public_url isn't https")]
    Unreadable,
    #[error("the issuer registers no clients; drop `registration`, or set client_id")]
    NoRegistration,
    #[error("the issuer's ways to authenticate a client are none of client_secret_basic, client_secret_post and none")]
    AuthMethod,
    #[error("the issuer can't be asked to register the gate: {0}")]
    Unreachable(#[from] FetchError),
    #[error("the issuer answered that it can't register anybody now")]
    Busy,
    #[error("the issuer refused to register the gate: {error}{}", .description.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        error: &'static str,
        /// The issuer's own words: printable, short, and not to be trusted.
        description: Option<String>,
    },
    #[error("the issuer's registration can't be used: {0}")]
    Answer(&'static str),
}

/// Where issuers send the browser back to.
pub fn redirect_uri(public_url: &str) -> String {
    format!("{}/connect/callback", public_url.trim_end_matches('/'))
}

/// The client id that is the address of [`client_metadata`].
pub fn client_id(public_url: &str) -> String {
    format!("{}/connect/client.json", public_url.trim_end_matches('/'))
}

/// Whether issuers may be pointed to the document: https, off loopback. A document on loopback is read by an issuer beside
/// it only, which `local` says.
pub(super) fn is_readable(public_url: &str, local: bool) -> bool {
    Url::parse(public_url)
        .is_ok_and(|url| (url.scheme() == "https" && !is_loopback(&url)) || (local && is_loopback(&url)))
}

fn application_type(public_url: &str) -> &'static str {
    if Url::parse(public_url).is_ok_and(|url| is_loopback(&url)) {
        "native"
    } else {
        "web"
    }
}

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The client id metadata document
/// (<https://datatracker.ietf.org/doc/html/draft-ietf-oauth-client-id-metadata-document-00>): what there is to know of the
/// gateway as a client.
pub fn client_metadata(public_url: &str) -> Bytes {
    let mut metadata = metadata(public_url, AuthMethod::None, &["refresh_token", DEVICE_CODE]);
    metadata.insert("client_id".to_owned(), Value::from(client_id(public_url)));
    Bytes::from(Value::Object(metadata).to_string())
}

fn metadata(public_url: &str, auth: AuthMethod, grants: &[&str]) -> Map<String, Value> {
    let mut grant_types = vec!["authorization_code"];
    grant_types.extend(grants);
    let metadata = json!({
        "client_name": NAME,
        "client_uri": public_url,
        "redirect_uris": [redirect_uri(public_url)],
        "grant_types": grant_types,
        "response_types": ["code"],
        "token_endpoint_auth_method": auth,
        "application_type": application_type(public_url),
    });
    match metadata {
        Value::Object(metadata) => metadata,
        _ => unreachable!("an object was written"),
    }
}

/// What an issuer says about the clients it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    /// `token_endpoint_auth_methods_supported`, as far as they are known here.
    pub(super) auth_methods: Vec<AuthMethod>,
    /// `grant_types_supported`; `None`: it doesn't say.
    pub(super) grant_types: Option<Vec<String>>,
    /// It has a device authorization endpoint.
    pub(super) devices: bool,
}

impl Abilities {
    /// The strongest way to authenticate that a registration can bring.
    pub(super) fn auth_method(&self) -> Result<AuthMethod, RegistrationError> {
        [
            AuthMethod::ClientSecretBasic,
            AuthMethod::ClientSecretPost,
            AuthMethod::None,
        ]
        .into_iter()
        .find(|method| self.auth_methods.contains(method))
        .ok_or(RegistrationError::AuthMethod)
    }

    /// Whether the issuer may have this grant: one that doesn't tell may have all.
    fn grants(&self, grant: &str) -> bool {
        self.grant_types
            .as_ref()
            .is_none_or(|known| known.iter().any(|known| known == grant))
    }
}

/// RFC 7591 section 3.1.
pub(super) fn request(public_url: &str, auth: AuthMethod, issuer: &Abilities) -> Zeroizing<Vec<u8>> {
    let mut grants = Vec::new();
    if issuer.grants("refresh_token") {
        grants.push("refresh_token");
    }
    if issuer.devices && issuer.grants(DEVICE_CODE) {
        grants.push(DEVICE_CODE);
    }
    let metadata = Value::Object(metadata(public_url, auth, &grants));
    Zeroizing::new(metadata.to_string().into_bytes())
}

/// The client in an issuer's answer (RFC 7591 section 3.2.1) to a request with this way to authenticate.
pub(super) fn registered(document: &[u8], asked: AuthMethod) -> Result<ClientRecord, RegistrationError> {
    use RegistrationError::Answer;
    let answer = strict_json::object(document).ok_or(Answer("it is no JSON object, or a key stands twice in it"))?;
    let id = text(&answer, "client_id")
        .ok_or(Answer("client_id is not a printable text"))?
        .ok_or(Answer("no client_id"))?;
    let secret = text(&answer, "client_secret").ok_or(Answer("client_secret is not a printable text"))?;
    let auth = match answer.get("token_endpoint_auth_method") {
        None | Some(Value::Null) => asked,
        Some(method) => method_of(method).ok_or(Answer("token_endpoint_auth_method is none that the gate has"))?,
    };
    let secret = match auth {
        AuthMethod::None => None,
        _ => Some(secret.ok_or(Answer("no client_secret"))?),
    };
    let secret_expires_at = match answer.get("client_secret_expires_at") {
        None | Some(Value::Null) => None,
        Some(at) => Some(at.as_u64().ok_or(Answer("client_secret_expires_at is not a number"))?),
    };
    Ok(ClientRecord {
        id: id.to_owned(),
        secret: secret.map(Secret::new),
        secret_expires_at: secret_expires_at.filter(|at| *at != 0 && auth != AuthMethod::None),
        auth,
    })
}

/// A way to authenticate that a registration can bring.
pub(super) fn method_of(name: &Value) -> Option<AuthMethod> {
    match name.as_str()? {
        "client_secret_basic" => Some(AuthMethod::ClientSecretBasic),
        "client_secret_post" => Some(AuthMethod::ClientSecretPost),
        "none" => Some(AuthMethod::None),
        _ => None,
    }
}

/// RFC 7591 section 3.2.2.
pub(super) fn refused(document: &[u8]) -> RegistrationError {
    let answer = strict_json::object(document).unwrap_or_default();
    let text = |key: &str| answer.get(key).and_then(Value::as_str);
    RegistrationError::Refused {
        error: text("error")
            .and_then(|error| ERRORS.into_iter().find(|known| *known == error))
            .unwrap_or("other"),
        description: text("error_description").and_then(shown),
    }
}

/// `None`: there is something else; `Some(None)`: there is nothing.
fn text<'a>(answer: &'a Map<String, Value>, key: &str) -> Option<Option<&'a str>> {
    match answer.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => {
            let printable = text.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
            (!text.is_empty() && text.len() <= MAX_TEXT && printable).then_some(Some(text))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC_URL: &str = "https://gate.test";

    fn parsed(document: &[u8]) -> Value {
        serde_json::from_slice(document).unwrap()
    }

    #[test]
    fn the_document_is_complete_and_names_itself() {
        for public_url in [PUBLIC_URL, "https://gate.test/"] {
            let document = parsed(&client_metadata(public_url));
            assert_eq!(document["client_id"], "https://gate.test/connect/client.json");
            assert_eq!(document["client_id"], client_id(public_url));
            assert_eq!(document["client_name"], "Portcullis");
            assert_eq!(document["redirect_uris"], json!(["https://gate.test/connect/callback"]));
            assert_eq!(document["response_types"], json!(["code"]));
            assert_eq!(
                document["grant_types"],
                json!(["authorization_code", "refresh_token", DEVICE_CODE])
            );
            assert_eq!(document["token_endpoint_auth_method"], "none");
            assert_eq!(document["application_type"], "web");
        }
        let local = parsed(&client_metadata("http://127.0.0.1:8080"));
        assert_eq!(local["application_type"], "native");
    }

    #[test]
    fn only_a_public_https_document_is_shown_to_a_public_issuer() {
        for (public_url, local, readable) in [
            ("https://gate.test", false, true),
            ("https://gate.test", true, true),
            ("http://gate.test", false, false),
            ("http://gate.test", true, false),
            ("https://localhost", false, false),
            ("http://127.0.0.1:8080", false, false),
            ("http://127.0.0.1:8080", true, true),
            ("http://[::1]:8080", true, true),
            ("no url", true, false),
        ] {
            assert_eq!(is_readable(public_url, local), readable, "{public_url} {local}");
        }
    }

    fn abilities(auth_methods: &[AuthMethod]) -> Abilities {
        Abilities {
            auth_methods: auth_methods.to_vec(),
            grant_types: None,
            devices: false,
        }
    }

    #[test]
    fn the_strongest_supported_way_to_authenticate_is_asked_for() {
        use AuthMethod::{ClientSecretBasic, ClientSecretPost, None, PrivateKeyJwt};
        for (supported, chosen) in [
            (&[None, ClientSecretPost, ClientSecretBasic][..], Ok(ClientSecretBasic)),
            (&[None, ClientSecretPost], Ok(ClientSecretPost)),
            (&[None], Ok(None)),
            (&[PrivateKeyJwt], Err(RegistrationError::AuthMethod)),
            (&[], Err(RegistrationError::AuthMethod)),
        ] {
            assert_eq!(abilities(supported).auth_method(), chosen, "{supported:?}");
        }
    }

    #[test]
    fn the_request_asks_for_grants_that_the_issuer_has() {
        let grants = |abilities: &Abilities| {
            let request = parsed(&request(PUBLIC_URL, AuthMethod::ClientSecretPost, abilities));
            assert_eq!(request["token_endpoint_auth_method"], "client_secret_post");
            assert_eq!(request["application_type"], "web");
            assert_eq!(request["redirect_uris"], json!(["https://gate.test/connect/callback"]));
            assert!(request.get("client_id").is_none());
            request["grant_types"].clone()
        };
        let mut issuer = abilities(&[]);
        assert_eq!(grants(&issuer), json!(["authorization_code", "refresh_token"]));
        issuer.devices = true;
        assert_eq!(
            grants(&issuer),
            json!(["authorization_code", "refresh_token", DEVICE_CODE])
        );
        issuer.grant_types = Some(vec!["authorization_code".to_owned()]);
        assert_eq!(grants(&issuer), json!(["authorization_code"]));
        let native = parsed(&request("http://localhost:1", AuthMethod::None, &issuer));
        assert_eq!(native["application_type"], "native");
    }

    #[test]
    fn registrations_that_can_be_used() {
        use AuthMethod::{ClientSecretBasic, ClientSecretPost, None as Public};
        let client = |id: &str, secret: Option<&str>, auth, secret_expires_at| ClientRecord {
            id: id.to_owned(),
            secret: secret.map(Secret::new),
            secret_expires_at,
            auth,
        };
        let cases = [
            (r#"{"client_id":"c"}"#, Public, client("c", None, Public, None)),
            // A secret that nobody asked for isn't kept.
            (
                r#"{"client_id":"c","client_secret":"s","client_secret_expires_at":9}"#,
                Public,
                client("c", None, Public, None),
            ),
            (
                r#"{"client_id":"c","client_secret":"s","client_secret_expires_at":0}"#,
                ClientSecretBasic,
                client("c", Some("s"), ClientSecretBasic, None),
            ),
            (
                r#"{"client_id":"c","client_secret":"s","client_secret_expires_at":9,"token_endpoint_auth_method":"client_secret_post"}"#,
                ClientSecretBasic,
                client("c", Some("s"), ClientSecretPost, Some(9)),
            ),
            (
                r#"{"client_id":"c","token_endpoint_auth_method":"none","client_secret":null}"#,
                ClientSecretBasic,
                client("c", None, Public, None),
            ),
        ];
        for (document, asked, expected) in cases {
            let registered = registered(document.as_bytes(), asked);
            assert!(registered == Ok(expected), "{document}");
        }
    }

    #[test]
    fn registrations_that_cannot_be_used() {
        let long = format!(r#"{{"client_id":"{}"}}"#, "c".repeat(MAX_TEXT + 1));
        let cases = [
            ("", "it is no JSON object, or a key stands twice in it"),
            (
                r#"{"client_id":"a","client_id":"b"}"#,
                "it is no JSON object, or a key stands twice in it",
            ),
            ("{}", "no client_id"),
            (r#"{"client_id":""}"#, "client_id is not a printable text"),
            (r#"{"client_id":7}"#, "client_id is not a printable text"),
            (r#"{"client_id":"a\u0000"}"#, "client_id is not a printable text"),
            (&long, "client_id is not a printable text"),
            (r#"{"client_id":"c"}"#, "no client_secret"),
            (
                r#"{"client_id":"c","client_secret":[]}"#,
                "client_secret is not a printable text",
            ),
            (
                r#"{"client_id":"c","client_secret":"s","token_endpoint_auth_method":"private_key_jwt"}"#,
                "token_endpoint_auth_method is none that the gate has",
            ),
            (
                r#"{"client_id":"c","client_secret":"s","client_secret_expires_at":"never"}"#,
                "client_secret_expires_at is not a number",
            ),
        ];
        for (document, reason) in cases {
            let error = registered(document.as_bytes(), AuthMethod::ClientSecretBasic).err();
            assert_eq!(error, Some(RegistrationError::Answer(reason)), "{document}");
        }
    }

    #[test]
    fn a_refusal_says_what_it_may() {
        let refusal = |document: &str| refused(document.as_bytes()).to_string();
        assert_eq!(
            refusal(r#"{"error":"invalid_redirect_uri","error_description":"http\u001b is not allowed"}"#),
            "the issuer refused to register the gate: invalid_redirect_uri (http is not allowed)"
        );
        for document in ["", "[]", r#"{"error":"<b>"}"#, r#"{"error":"other"}"#] {
            assert_eq!(refusal(document), "the issuer refused to register the gate: other");
        }
    }
}
