//! One request to a token endpoint, and what is believed of its answer.
//!
//! 1. The answer is bounded in size and time, and redirects are not followed (see `fetch.rs`).
//! 2. What isn't for `Authorization: Bearer`, or what a header can't hold, is refused; so is a token of a kind that needs
//!    a proof the gateway can't give, and one of another type than was asked for. Only who asked for something else than
//!    an access token may get what isn't one (`N_A`), such as an identity assertion.
//! 3. 4xx is the issuer's word; 429 and 5xx are no word at all, and neither is anything unreadable: nothing may be
//!    concluded from those.
//! 4. Nothing the issuer wrote reaches an error text: its error codes are matched against the registered ones.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use super::client::{Client, Form};
use super::fetch::{Answered, FetchError, Fetcher, Request};
use super::{TokenError, TokenSet};
use crate::clock::{Clock, UnixSeconds};
use crate::config::TokenType;
use crate::secret::Secret;

/// Largest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Largest token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Scopes that are remembered of an answer.
const MAX_SCOPES: usize = 256;

/// Error codes of RFC 6749 section 5.2, RFC 8693 section 2.2.2, RFC 8707 section 2, RFC 8628 section 3.5, OpenID Connect
/// Core section 3.1.2.6, RFC 9449 section 8, and two in common use.
const ERRORS: &[&str] = &[
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "authorization_pending",
    "slow_down",
    "expired_token",
    "access_denied",
    "interaction_required",
    "login_required",
    "consent_required",
    "use_dpop_nonce",
    "invalid_token",
];

/// A token endpoint, and the client that asks it.
pub struct TokenEndpoint {
    fetcher: Arc<Fetcher>,
    url: Url,
    client: Client,
    /// Whom client assertions are for.
    audience: String,
    parameters: Form,
    clock: Clock,
}

/// What an endpoint gave. Has no `Debug`: it holds tokens.
pub struct TokenAnswer {
    pub tokens: TokenSet,
    /// Seconds; `None`: the issuer didn't say.
    pub expires_in: Option<u64>,
}

impl TokenEndpoint {
    /// `issuer` is whose endpoint this is, where that is known. The parameters go with every request.
    pub fn new(
        fetcher: Arc<Fetcher>,
        url: Url,
        client: Client,
        issuer: Option<String>,
        parameters: Vec<(String, String)>,
        clock: Clock,
    ) -> Self {
        Self {
            fetcher,
            audience: issuer.unwrap_or_else(|| url.to_string()),
            url,
            client,
            parameters: parameters.into_iter().collect(),
            clock,
        }
    }

    /// Where it is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// What goes with every request.
    pub fn parameters(&self) -> &Form {
        &self.parameters
    }

    /// Who asks.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks for a token. Times count from before the question: no token is younger than it seems.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn ask(&self, mut form: Form) -> Result<TokenAnswer, TokenError> {
        let now = self.clock.now();
        let requested = form.get("requested_token_type").map(str::to_owned);
        form.append(self.parameters.clone());
        let mut headers = HeaderMap::new();
        self.client.authenticate(&mut form, &mut headers, &self.audience, now);
        let mut request = Request::form(self.url.clone(), form.encode());
        request.headers.extend(headers);
        let answered = self.fetcher.ask(request).await.map_err(unreachable)?;
        believe(&answered, now, requested.as_deref())
    }
}

pub(super) fn unreachable(error: FetchError) -> TokenError {
    match error {
        FetchError::Address(reason) => TokenError::Unreachable(reason),
        FetchError::Slow => TokenError::Unreachable("no answer in time"),
        FetchError::Large => TokenError::Malformed("more than 1 MiB"),
        FetchError::Unreachable | FetchError::Redirect | FetchError::Status(_) => {
            TokenError::Unreachable("no connection, or its certificate isn't trusted")
        }
    }
}

fn believe(answered: &Answered, now: UnixSeconds, requested: Option<&str>) -> Result<TokenAnswer, TokenError> {
    succeeded(answered)?;
    read(&answered.body, now, requested)
}

/// Whether an endpoint of OAuth said yes.
pub(super) fn succeeded(answered: &Answered) -> Result<(), TokenError> {
    let status = answered.status;
    if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        return Err(TokenError::Unreachable("it answered that it can't serve now"));
    }
    if !(status.is_success() || status.is_client_error()) {
        return Err(TokenError::Malformed("neither success nor an error of OAuth"));
    }
    if answered.body.len() > MAX_ANSWER {
        return Err(TokenError::Malformed("more than 64 KiB"));
    }
    match status.is_success() {
        true => Ok(()),
        false => Err(TokenError::Rejected {
            error: refusal(&answered.body),
        }),
    }
}

#[derive(Deserialize)]
struct Written {
    access_token: Option<String>,
    token_type: Option<String>,
    issued_token_type: Option<String>,
    expires_in: Option<Value>,
    refresh_token: Option<String>,
    scope: Option<String>,
    id_token: Option<String>,
    error: Option<String>,
}

/// RFC 6749 section 5.1, RFC 8693 section 2.2.1. `requested` is the `requested_token_type` of the request.
///
/// # Errors
/// [`TokenError::Malformed`], or what some say with 200: an error.
pub fn read(body: &[u8], now: UnixSeconds, requested: Option<&str>) -> Result<TokenAnswer, TokenError> {
    use TokenError::Malformed;
    let written: Written = serde_json::from_slice(body).map_err(|_| Malformed("not a JSON token answer"))?;
    let Some(access_token) = written.access_token.map(Zeroizing::new) else {
        // GitHub says no with 200.
        return Err(match written.error {
            Some(error) => TokenError::Rejected {
                error: registered(&error),
            },
            None => Malformed("no access_token"),
        });
    };
    let requested = requested.unwrap_or(TokenType::ACCESS_TOKEN);
    let is_access = |kind: &str| kind == TokenType::ACCESS_TOKEN || kind == TokenType::JWT;
    let as_requested = |kind: &str| kind == requested || (is_access(kind) && is_access(requested));
    if !written.issued_token_type.as_deref().is_none_or(as_requested) {
        return Err(Malformed("issued_token_type is not what was asked for"));
    }
    // `N_A` says that the token is no access token at all; `DPoP` and others need a proof we can't give.
    let usable = |kind: &str| {
        kind.eq_ignore_ascii_case("bearer")
            || (requested != TokenType::ACCESS_TOKEN && kind.eq_ignore_ascii_case("N_A"))
    };
    if !written.token_type.as_deref().is_none_or(usable) {
        return Err(Malformed("token_type is not Bearer"));
    }
    if !sendable(&access_token) {
        return Err(Malformed("access_token can't stand in a header"));
    }
    let other = |token: Option<String>, fault| match token.map(Zeroizing::new) {
        Some(token) if token.is_empty() => Ok(None),
        Some(token) if sendable(&token) => Ok(Some(Secret::new(token.as_str()))),
        Some(_) => Err(Malformed(fault)),
        None => Ok(None),
    };
    let expires_in = lifetime(written.expires_in.as_ref()).ok_or(Malformed("expires_in is not a number"))?;
    Ok(TokenAnswer {
        tokens: TokenSet {
            access_token: Secret::new(access_token.as_str()),
            refresh_token: other(written.refresh_token, "refresh_token holds what no token does")?,
            expires_at: expires_in.map(|seconds| now.saturating_add(seconds)),
            scopes: written.scope.map(|scope| {
                let scopes = scope.split_ascii_whitespace().take(MAX_SCOPES);
                scopes.map(str::to_owned).collect()
            }),
            id_token: other(written.id_token, "id_token holds what no token does")?,
        },
        expires_in,
    })
}

fn sendable(token: &str) -> bool {
    (1..=MAX_TOKEN).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Seconds, whatever form the issuer gives them; a negative number is none. The outer `None`: not a number.
fn lifetime(expires_in: Option<&Value>) -> Option<Option<u64>> {
    match expires_in {
        None | Some(Value::Null) => Some(None),
        Some(Value::Number(number)) => number
            .as_u64()
            .or_else(|| number.as_f64().map(|seconds| seconds as u64))
            .map(Some),
        Some(Value::String(text)) => text.parse().ok().map(Some),
        Some(_) => None,
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// The registered error code that a body of RFC 6749 section 5.2 holds; `other` for anything else.
fn refusal(body: &[u8]) -> &'static str {
    serde_json::from_slice::<Refusal>(body).map_or("other", |refusal| registered(&refusal.error))
}

/// An error code as the constant that it is; `other` for what isn't registered.
pub fn registered(error: &str) -> &'static str {
    ERRORS.iter().find(|known| **known == error).copied().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believed(body: &str) -> Result<(String, Option<u64>), TokenError> {
        read(body.as_bytes(), 1000, Some(TokenType::ACCESS_TOKEN)).map(|answer| {
            let ends = answer.expires_in.map(|seconds| 1000u64.saturating_add(seconds));
            assert_eq!(answer.tokens.expires_at, ends);
            (answer.tokens.access_token.expose().to_owned(), answer.expires_in)
        })
    }

    #[test]
    fn answers_that_can_be_used() {
        let cases = [
            (
                r#"{"access_token":"t","token_type":"Bearer","expires_in":60}"#,
                Some(60),
            ),
            (
                r#"{"access_token":"t","token_type":"bEARER","expires_in":60.9}"#,
                Some(60),
            ),
            (r#"{"access_token":"t","expires_in":"60","scope":"a b"}"#, Some(60)),
            (r#"{"access_token":"t","expires_in":-5}"#, Some(0)),
            (r#"{"access_token":"t","expires_in":1e300}"#, Some(u64::MAX)),
            (
                r#"{"access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}"#,
                None,
            ),
            (
                r#"{"access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:jwt"}"#,
                None,
            ),
            (r#"{"access_token":"t","expires_in":null,"refresh_token":""}"#, None),
        ];
        for (body, seconds) in cases {
            assert_eq!(believed(body), Ok(("t".to_owned(), seconds)), "{body}");
        }
    }

    #[test]
    fn what_a_login_needs_is_read() {
        let body = br#"{"access_token":"a","refresh_token":"r","id_token":"i","scope":" x  y ","expires_in":1}"#;
        let tokens = read(body, u64::MAX, None).unwrap_or_else(|_| panic!("usable")).tokens;
        let text = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
        assert_eq!(text(&tokens.refresh_token).as_deref(), Some("r"));
        assert_eq!(text(&tokens.id_token).as_deref(), Some("i"));
        assert_eq!(tokens.scopes.unwrap(), ["x", "y"]);
        assert_eq!(tokens.expires_at, Some(u64::MAX), "r16");
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
            r#"{"access_token":"t","issued_token_type":"urn:ietf:params:oauth:token-type:id-jag"}"#,
            r#"{"access_token":"t","expires_in":[]}"#,
            r#"{"access_token":"t","expires_in":"soon"}"#,
            r#"{"access_token":"t","refresh_token":"a\nb"}"#,
            &long,
        ];
        for body in cases {
            let error = believed(body).expect_err(body);
            assert!(matches!(error, TokenError::Malformed(_)), "{body}: {error:?}");
        }
    }

    #[test]
    fn only_who_asked_for_something_else_gets_something_else() {
        let jag =
            br#"{"access_token":"t","token_type":"N_A","issued_token_type":"urn:ietf:params:oauth:token-type:id-jag"}"#;
        for (requested, good) in [
            (Some(TokenType::ID_JAG), true),
            (Some(TokenType::ACCESS_TOKEN), false),
            (Some(TokenType::ID_TOKEN), false),
            (None, false),
        ] {
            assert_eq!(read(jag, 0, requested).is_ok(), good, "{requested:?}");
        }
    }

    #[test]
    fn refusals_are_told_apart_and_quote_nothing() {
        let rejected = |error| Some(TokenError::Rejected { error });
        let large = "x".repeat(MAX_ANSWER + 1);
        let cases = [
            (
                400,
                r#"{"error":"invalid_target","error_description":"secret"}"#,
                rejected("invalid_target"),
            ),
            (401, r#"{"error":"invalid_client"}"#, rejected("invalid_client")),
            (400, r#"{"error":"secret\u001b[31m"}"#, rejected("other")),
            (403, "<html>secret", rejected("other")),
            // As GitHub does.
            (200, r#"{"error":"invalid_grant"}"#, rejected("invalid_grant")),
            (408, "{}", None),
            (429, "{}", None),
            (500, r#"{"access_token":"t"}"#, None),
            (503, "", None),
        ];
        let answered = |status: u16, body: &str| Answered {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Zeroizing::new(body.as_bytes().to_vec()),
        };
        for (status, body, expected) in cases {
            let error = believe(&answered(status, body), 0, None).err().expect("refused");
            match expected {
                Some(expected) => assert_eq!(error, expected),
                None => assert!(matches!(error, TokenError::Unreachable(_)), "{status}: {error:?}"),
            }
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for (status, body) in [(307, ""), (200, large.as_str()), (400, large.as_str())] {
            let error = believe(&answered(status, body), 0, None).err().expect("refused");
            assert!(matches!(error, TokenError::Malformed(_)), "{status}: {error:?}");
        }
    }
}
