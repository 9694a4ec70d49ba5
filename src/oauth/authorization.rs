//! The authorization request, and what is believed of its answer (RFC 6749 section 4.1, RFC 7636, RFC 9207).
//!
//! 1. `state` and the code verifier are 256 random bits each; the challenge method is S256 and no other.
//! 2. An answer's parameters stand in it once (RFC 6749 section 3.1), and its size is bounded.
//! 3. `state` is compared in constant time and first; then `iss`, by simple string comparison and without any
//!    normalisation. It must be there when the issuer's metadata says that it always is (RFC 9207 section 2.4).
//! 4. Only after that `error` or `code` is looked at: another issuer's words are neither acted on nor shown. An error's
//!    code is matched against the registered ones; its description is cut, and printable.

use aws_lc_rs::{constant_time, digest, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Longest query of a callback, in bytes.
const MAX_QUERY: usize = 16 * 1024;

/// Longest authorization code, in bytes.
const MAX_CODE: usize = 8 * 1024;

/// Longest part of an error's description that is shown, in characters.
const MAX_DESCRIPTION: usize = 200;

/// RFC 6749 section 4.1.2.1, RFC 8707 section 2, and OpenID Connect Core section 3.1.2.6.
const ERRORS: [&str; 12] = [
    "invalid_request",
    "unauthorized_client",
    "access_denied",
    "unsupported_response_type",
    "invalid_scope",
    "server_error",
    "temporarily_unavailable",
    "invalid_target",
    "interaction_required",
    "login_required",
    "account_selection_required",
    "consent_required",
];

/// Why an answer of an authorization endpoint leads to no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    /// It isn't the answer to this login.
    #[error("the answer is longer than 16 KiB")]
    Large,
    #[error("{0} stands in the answer twice")]
    Twice(&'static str),
    #[error("the answer is not to this login: its state is another, or was cut off")]
    State,
    #[error("the issuer says that it names itself in its answers, and this one names none")]
    NoIssuer,
    #[error("the answer is another issuer's")]
    OtherIssuer,
    /// The issuer, or the person, said no.
    #[error("the issuer refused: {error}{}", .description.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        error: &'static str,
        /// The issuer's own words: printable, short, and not to be trusted.
        description: Option<String>,
    },
    #[error("the answer has neither a code nor an error")]
    Empty,
    #[error("the code can't be one")]
    Code,
}

/// 256 random bits that stand in a URL.
pub(crate) fn random() -> Secret {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes).expect("the system's random source works");
    Secret::new(URL_SAFE_NO_PAD.encode(*bytes))
}

/// RFC 7636 section 4.2, S256.
pub(crate) fn code_challenge(verifier: &Secret) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
}

/// What an authorization request asks for.
pub(crate) struct Request<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) redirect_uri: &'a str,
    pub(crate) state: &'a str,
    pub(crate) verifier: &'a Secret,
    pub(crate) scopes: &'a [String],
    pub(crate) resource: Option<&'a str>,
    /// The configuration's own, which are none of the others.
    pub(crate) parameters: &'a [(String, String)],
}

impl Request<'_> {
    /// Where the browser goes. The endpoint's own query stays (RFC 6749 section 3.1).
    pub(crate) fn url(&self, endpoint: &Url) -> Url {
        let mut url = endpoint.clone();
        url.set_fragment(None);
        let mut query = url.query_pairs_mut();
        query.append_pair("response_type", "code");
        query.append_pair("client_id", self.client_id);
        query.append_pair("redirect_uri", self.redirect_uri);
        query.append_pair("state", self.state);
        query.append_pair("code_challenge", &code_challenge(self.verifier));
        query.append_pair("code_challenge_method", "S256");
        if !self.scopes.is_empty() {
            query.append_pair("scope", &self.scopes.join(" "));
        }
        if let Some(resource) = self.resource {
            query.append_pair("resource", resource);
        }
        for (name, value) in self.parameters {
            query.append_pair(name, value);
        }
        drop(query);
        url
    }
}

/// What a login remembers of its issuer until the answer comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) state: &'a str,
    pub(crate) issuer: &'a str,
    /// `authorization_response_iss_parameter_supported`.
    pub(crate) iss_promised: bool,
}

/// The code in the query of an answer.
///
/// # Errors
/// The answer isn't this login's, or says no.
pub(crate) fn code(query: &str, expected: &Expected<'_>) -> Result<Secret, CallbackError> {
    let answer = Answer::read(query)?;
    let state = answer.state.ok_or(CallbackError::State)?;
    constant_time::verify_slices_are_equal(state.as_bytes(), expected.state.as_bytes())
        .map_err(|_| CallbackError::State)?;
    match answer.iss {
        Some(iss) if iss != expected.issuer => return Err(CallbackError::OtherIssuer),
        None if expected.iss_promised => return Err(CallbackError::NoIssuer),
        _ => {}
    }
    if let Some(error) = answer.error {
        return Err(CallbackError::Refused {
            error: ERRORS.into_iter().find(|known| *known == error).unwrap_or("other"),
            description: answer.error_description.as_deref().and_then(shown),
        });
    }
    let code = answer.code.ok_or(CallbackError::Empty)?;
    // RFC 6749 appendix A.11.
    let printable = code.expose().bytes().all(|byte| matches!(byte, 0x20..=0x7e));
    if code.expose().is_empty() || code.expose().len() > MAX_CODE || !printable {
        return Err(CallbackError::Code);
    }
    Ok(code)
}

/// The `state` in the query of an answer: which login it may be the answer to.
pub fn state(query: &str) -> Option<String> {
    Answer::read(query).ok()?.state
}

#[derive(Default)]
struct Answer {
    state: Option<String>,
    iss: Option<String>,
    code: Option<Secret>,
    error: Option<String>,
    error_description: Option<String>,
}

impl Answer {
    fn read(query: &str) -> Result<Self, CallbackError> {
        if query.len() > MAX_QUERY {
            return Err(CallbackError::Large);
        }
        let mut answer = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            let (name, before) = match name.as_ref() {
                "state" => ("state", answer.state.replace(value).is_some()),
                "iss" => ("iss", answer.iss.replace(value).is_some()),
                "code" => ("code", answer.code.replace(Secret::new(value)).is_some()),
                "error" => ("error", answer.error.replace(value).is_some()),
                "error_description" => ("error_description", answer.error_description.replace(value).is_some()),
                _ => continue,
            };
            if before {
                return Err(CallbackError::Twice(name));
            }
        }
        Ok(answer)
    }
}

/// What may be shown of an issuer's words; `None` when that is nothing.
pub(crate) fn shown(text: &str) -> Option<String> {
    let shown: String = text
        .chars()
        .filter(|char| matches!(char, ' '..='~'))
        .take(MAX_DESCRIPTION)
        .collect();
    let shown = shown.trim();
    (!shown.is_empty()).then(|| shown.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const EXPECTED: Expected<'_> = Expected {
        state: "the-state",
        issuer: "https://issuer.test",
        iss_promised: true,
    };

    const UNPROMISED: Expected<'_> = Expected {
        iss_promised: false,
        ..EXPECTED
    };

    fn answer(query: &str, expected: &Expected<'_>) -> Result<String, CallbackError> {
        code(query, expected).map(|code| code.expose().to_owned())
    }

    /// RFC 7636 appendix B.
    #[test]
    fn the_challenge_is_s256() {
        let verifier = Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(code_challenge(&verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn random_values_are_256_bits_and_differ() {
        let (one, two) = (random(), random());
        assert_eq!(URL_SAFE_NO_PAD.decode(one.expose()).unwrap().len(), 32);
        assert!(one.expose() != two.expose());
    }

    #[test]
    fn the_request_holds_what_it_must_and_keeps_the_endpoints_query() {
        let verifier = Secret::new("v");
        let request = Request {
            client_id: "the client",
            redirect_uri: "https://gate.test/connect/callback",
            state: "s",
            verifier: &verifier,
            scopes: &["a".to_owned(), "b".to_owned()],
            resource: Some("https://mcp.test/mcp"),
            parameters: &[("access_type".to_owned(), "offline".to_owned())],
        };
        let url = request.url(&Url::parse("https://issuer.test/authorize?tenant=t#x").unwrap());
        assert_eq!(url.fragment(), None);
        assert!(
            url.as_str()
                .starts_with("https://issuer.test/authorize?tenant=t&response_type=code&")
        );
        let pairs: HashMap<_, _> = url.query_pairs().into_owned().collect();
        let challenge = code_challenge(&verifier);
        for (name, value) in [
            ("client_id", "the client"),
            ("redirect_uri", "https://gate.test/connect/callback"),
            ("state", "s"),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
            ("scope", "a b"),
            ("resource", "https://mcp.test/mcp"),
            ("access_type", "offline"),
        ] {
            assert_eq!(pairs[name], value);
        }
        assert!(!url.as_str().contains("code_verifier"));
        let bare = Request {
            scopes: &[],
            resource: None,
            parameters: &[],
            ..request
        };
        let url = bare.url(&Url::parse("https://issuer.test/authorize").unwrap());
        assert!(url.query_pairs().all(|(name, _)| name != "scope" && name != "resource"));
    }

    #[test]
    fn answers_and_what_comes_of_them() {
        let refused = |error, description: Option<&str>| {
            Err(CallbackError::Refused {
                error,
                description: description.map(str::to_owned),
            })
        };
        let iss = "iss=https%3A%2F%2Fissuer.test";
        let cases: Vec<(String, &Expected<'_>, Result<String, CallbackError>)> = vec![
            (
                format!("code=c%20d&state=the-state&{iss}"),
                &EXPECTED,
                Ok("c d".to_owned()),
            ),
            ("code=c&state=the-state".to_owned(), &UNPROMISED, Ok("c".to_owned())),
            // A present issuer is compared whether it was promised or not.
            (format!("code=c&state=the-state&{iss}"), &UNPROMISED, Ok("c".to_owned())),
            (
                "code=c&state=the-state".to_owned(),
                &EXPECTED,
                Err(CallbackError::NoIssuer),
            ),
            (
                "code=c&state=the-state&iss=https://evil.test".to_owned(),
                &EXPECTED,
                Err(CallbackError::OtherIssuer),
            ),
            (
                "code=c&state=the-state&iss=https://evil.test".to_owned(),
                &UNPROMISED,
                Err(CallbackError::OtherIssuer),
            ),
            (
                format!("code=c&state=the-state&{iss}/"),
                &EXPECTED,
                Err(CallbackError::OtherIssuer),
            ),
            (
                "code=c&state=the-state&iss=HTTPS://issuer.test".to_owned(),
                &EXPECTED,
                Err(CallbackError::OtherIssuer),
            ),
            (
                "code=c&state=the-state&iss=https://issuer.test:443".to_owned(),
                &EXPECTED,
                Err(CallbackError::OtherIssuer),
            ),
            // Nothing of another issuer's error is repeated.
            (
                "error=access_denied&error_description=call+me&state=the-state&iss=https://evil.test".to_owned(),
                &EXPECTED,
                Err(CallbackError::OtherIssuer),
            ),
            (
                format!("error=access_denied&state=the-state&{iss}"),
                &EXPECTED,
                refused("access_denied", None),
            ),
            (
                format!("error=<b>&error_description=no%0d%0anever&state=the-state&{iss}"),
                &EXPECTED,
                refused("other", Some("nonever")),
            ),
            (
                format!("error=invalid_scope&code=c&error_description=%00&state=the-state&{iss}"),
                &EXPECTED,
                refused("invalid_scope", None),
            ),
            (format!("code=c&{iss}"), &EXPECTED, Err(CallbackError::State)),
            (format!("code=c&state=&{iss}"), &EXPECTED, Err(CallbackError::State)),
            (
                format!("code=c&state=the-stat&{iss}"),
                &EXPECTED,
                Err(CallbackError::State),
            ),
            (
                format!("error=access_denied&state=other&{iss}"),
                &EXPECTED,
                Err(CallbackError::State),
            ),
            (format!("state=the-state&{iss}"), &EXPECTED, Err(CallbackError::Empty)),
            (
                format!("code=&state=the-state&{iss}"),
                &EXPECTED,
                Err(CallbackError::Code),
            ),
            (
                format!("code=%0a&state=the-state&{iss}"),
                &EXPECTED,
                Err(CallbackError::Code),
            ),
            (
                format!("code={}&state=the-state&{iss}", "c".repeat(MAX_CODE + 1)),
                &EXPECTED,
                Err(CallbackError::Code),
            ),
            (
                format!("code=c&state=the-state&{iss}&iss=https://evil.test"),
                &EXPECTED,
                Err(CallbackError::Twice("iss")),
            ),
            (
                format!("code=c&code=d&state=the-state&{iss}"),
                &EXPECTED,
                Err(CallbackError::Twice("code")),
            ),
            (
                format!("code=c&state=the-state&state=the-state&{iss}"),
                &EXPECTED,
                Err(CallbackError::Twice("state")),
            ),
            ("x".repeat(MAX_QUERY + 1), &EXPECTED, Err(CallbackError::Large)),
        ];
        for (query, expected, result) in cases {
            assert_eq!(answer(&query, expected), result, "{query}");
        }
    }

    #[test]
    fn an_errors_description_is_cut() {
        let query = format!(
            "error=server_error&state=the-state&error_description={}",
            "d".repeat(1000)
        );
        let Err(CallbackError::Refused { description, .. }) = answer(&query, &UNPROMISED) else {
            panic!("an error");
        };
        assert_eq!(description.unwrap().len(), MAX_DESCRIPTION);
    }

    #[test]
    fn the_state_names_the_login() {
        assert_eq!(state("code=c&state=a%2Bb"), Some("a+b".to_owned()));
        assert_eq!(state("code=c"), None);
        assert_eq!(state("state=a&state=b"), None);
    }

    proptest! {
        #[test]
        fn nothing_but_this_state_brings_a_code(query in "[a-z=&%0-9]{0,60}") {
            let forged = code(&format!("code=c&{query}"), &UNPROMISED);
            prop_assert!(forged.is_err());
        }
    }
}
