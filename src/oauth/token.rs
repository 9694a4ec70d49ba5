//! One request to a token endpoint, and what is believed of its answer.
//!
//! 1. The answer is bounded in size and time, and redirects are not followed (see `fetch.rs`).
//! 2. What isn't for `Authorization: Bearer`, or what a header can't hold, is refused; so is a token of a kind that needs
//!    a proof the gateway can't give. An identity assertion (ID-JAG) is no access token and says so (`N_A`).
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
    parameters: Vec<(String, String)>,
    clock: Clock,
}

/// What an endpoint gave. Has no `Debug`: it holds tokens.
pub struct TokenAnswer {
    pub tokens: TokenSet,
    /// RFC 8693 section 2.2.1.
    pub issued_token_type: Option<String>,
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
            parameters,
            clock,
        }
    }

    /// Where it is.
    pub fn url(&self) -> &Url {
        &self.url
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
        for (name, value) in &self.parameters {
            form.push(name.clone(), value);
        }
        let mut headers = HeaderMap::new();
        self.client.authenticate(&mut form, &mut headers, &self.audience, now);
        let mut request = Request::form(self.url.clone(), form.encode());
        request.headers.extend(headers);
        let answered = self.fetcher.ask(request).await.map_err(unreachable)?;
        believe(&answered, now)
    }
}

fn unreachable(error: FetchError) -> TokenError {
    match error {
        FetchError::Address(reason) => TokenError::Unreachable(reason),
        FetchError::Slow => TokenError::Unreachable("no answer in time"),
        FetchError::Large => TokenError::Malformed("more than 1 MiB"),
        FetchError::Unreachable | FetchError::Redirect | FetchError::Status(_) => {
            TokenError::Unreachable("no connection, or its certificate isn't trusted")
        }
    }
}

fn believe(answered: &Answered, now: UnixSeconds) -> Result<TokenAnswer, TokenError> {
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
        true => read(&answered.body, now),
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

/// RFC 6749 section 5.1, RFC 8693 section 2.2.1.
///
/// # Errors
/// [`TokenError::Malformed`], or what some say with 200: an error.
pub fn read(body: &[u8], now: UnixSeconds) -> Result<TokenAnswer, TokenError> {
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
    let assertion = written.issued_token_type.as_deref() == Some(TokenType::ID_JAG);
    // `N_A` says that the token is no access token at all; `DPoP` and others need a proof we can't give.
    let usable = written
        .token_type
        .is_none_or(|kind| kind.eq_ignore_ascii_case(if assertion { "N_A" } else { "bearer" }));
    if !usable {
        return Err(Malformed(match assertion {
            true => "token_type of an assertion is not N_A",
            false => "token_type is not Bearer",
        }));
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
        issued_token_type: written.issued_token_type,
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
