//! A route's requests to token endpoints, each of them counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use zeroize::Zeroizing;

use super::token_file::file;
use super::{SetupError, health};
use crate::clock::Clock;
use crate::config;
use crate::oauth::client::{Client, Form, certificate};
use crate::oauth::fetch::{Fetcher, Reach};
use crate::oauth::token::{TokenAnswer, TokenEndpoint};
use crate::oauth::watched::Watched;
use crate::oauth::{TokenError, TokenSet};
use crate::secret::Secret;
use crate::telemetry::RouteMetrics;

/// RFC 7523 section 2.1.
pub(super) const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The endpoint that the configuration spells out, and whose it is, if that is known. `place` is where it does, below
/// the route's `credential`.
pub(super) fn endpoint(
    route: &str,
    place: &'static str,
    config: &config::TokenEndpoint,
    issuer: Option<String>,
    clock: &Clock,
) -> Result<TokenEndpoint, SetupError> {
    let unusable = |key: &str, cause: String| SetupError::Unusable {
        route: route.to_owned(),
        key: format!("{place}{key}"),
        cause,
    };
    let client = Client::configured(&config.client).map_err(|error| unusable("", error.to_string()))?;
    let fetcher = Fetcher::new(config.ca.as_deref(), certificate(&config.client), Reach::Named)
        .map_err(|cause| unusable("", cause))?;
    fetcher
        .allowed(&config.url)
        .map_err(|reason| unusable(".token_endpoint", reason.to_owned()))?;
    Ok(TokenEndpoint::new(
        Arc::new(fetcher),
        config.url.clone(),
        client,
        issuer,
        config.parameters.clone(),
        clock.clone(),
    ))
}

/// Asks, and writes down how it went.
pub(super) async fn ask(
    route: &RouteMetrics,
    grant: &'static str,
    endpoint: &TokenEndpoint,
    form: Form,
) -> Result<TokenAnswer, TokenError> {
    let started = Instant::now();
    let answer = endpoint.ask(form).await;
    let result = answer.as_ref().map_or_else(TokenError::result, |_| "ok");
    route.token_exchange(grant, result, started.elapsed());
    health::note(route, &answer);
    answer.inspect_err(|error| {
        route.credential_failure(grant, error.reason());
        tracing::warn!(grant, endpoint = %endpoint.url(), %error, "a token endpoint gave no token");
    })
}

/// `Bearer …` for a token of an answer, marked sensitive.
pub(super) fn bearer(tokens: &TokenSet) -> HeaderValue {
    let text = Zeroizing::new(format!("Bearer {}", tokens.access_token.expose()));
    let mut value = HeaderValue::from_str(&text).expect("a token of an answer can stand in a header");
    value.set_sensitive(true);
    value
}

/// A token that others keep in a file.
pub(super) fn token_in(path: &Path) -> Result<Watched<Secret>, String> {
    let own: PathBuf = path.to_owned();
    let read = move || {
        let (_, bytes) = file::bytes(&own).map_err(|error| format!("{}: {error}", own.display()))?;
        match std::str::from_utf8(&bytes).map(str::trim) {
            Ok(token) if file::is_token(token) => Ok(Secret::new(token)),
            _ => Err(format!("{} holds no token", own.display())),
        }
    };
    Watched::new(vec![path.to_owned()], read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_a_file_is_bounded_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "a.b.c\n").unwrap();
        assert_eq!(token_in(&path).unwrap().current().expose(), "a.b.c");
        for (content, why) in [
            ("a".repeat(64 * 1024 + 1), "larger than 64 KiB"),
            ("a".repeat(16 * 1024 + 1), "holds no token"),
            ("two words".to_owned(), "holds no token"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = token_in(&path).err().expect("no token");
            assert!(error.contains(why) && error.contains("/token"), "{error}");
        }
        let error = token_in(directory.path()).err().expect("no token");
        assert!(error.contains("no regular file"), "{error}");
    }
}
