//! `WWW-Authenticate`: what a client is told when it must get a token, or a better one.
//!
//! 1. Without a token there is no `error` (RFC 6750 section 3.1): only where to go and what to ask for.
//! 2. `resource_metadata` (RFC 9728 section 5.1) is left out when the route has no issuer.
//! 3. Nothing that comes in can break out of a value: what doesn't fit a quoted-string is escaped or left out, so
//!    that a challenge is one header with the parameters written here and no others.

use http::HeaderValue;

use super::{AuthnError, ProofFault, TokenFault, dpop};
use crate::config::Dpop;

/// A challenge in the making.
#[derive(Clone, Copy, Debug, Default)]
pub struct Challenge<'a> {
    /// Where the route's RFC 9728 document is.
    pub resource_metadata: Option<&'a str>,
    /// The scopes to ask for.
    pub scopes: &'a [String],
    /// What the route's identities ask about DPoP.
    pub dpop: Option<Dpop>,
}

impl Challenge<'_> {
    /// The challenges for a failed authentication, one a scheme; none where the token isn't at fault. `DPoP` comes where
    /// it is advertised and where it was tried or should have been (RFC 9449 section 7.1).
    pub fn for_error(&self, error: &AuthnError) -> Vec<HeaderValue> {
        let (said, description) = match error {
            // A certificate isn't a token: nothing is said of one that didn't come.
            AuthnError::MissingToken { .. } | AuthnError::NoCertificate | AuthnError::InvalidCertificate { .. } => {
                (None, None)
            }
            AuthnError::InvalidToken { reason } => (Some("invalid_token"), Some(reason.description())),
            AuthnError::InvalidProof { reason, .. } => {
                let said = match reason {
                    ProofFault::Nonce => "use_dpop_nonce",
                    _ => "invalid_dpop_proof",
                };
                (Some(said), Some(reason.description().to_owned()))
            }
            AuthnError::KeysUnavailable { .. } | AuthnError::IssuerUnavailable { .. } | AuthnError::Busy => {
                return Vec::new();
            }
        };
        let proof = matches!(error, AuthnError::InvalidProof { .. });
        let binding = matches!(
            error,
            AuthnError::InvalidToken {
                reason: TokenFault::Bound | TokenFault::Unbound
            }
        );
        let description = description.as_deref();
        if proof {
            return vec![self.write("DPoP", said, description)];
        }
        self.by_scheme(binding, said, description)
    }

    /// One challenge for each scheme that is taken, `DPoP` also where it was `tried`.
    fn by_scheme(&self, tried: bool, error: Option<&str>, description: Option<&str>) -> Vec<HeaderValue> {
        let mut challenges = Vec::new();
        if !matches!(self.dpop, Some(Dpop::Required | Dpop::Nonce)) {
            challenges.push(self.write("Bearer", error, description));
        }
        if self.dpop.is_some() || tried {
            challenges.push(self.write("DPoP", error, description));
        }
        challenges
    }

    /// No token came.
    pub fn missing(&self) -> HeaderValue {
        self.write("Bearer", None, None)
    }

    /// A token came that is no good.
    pub fn invalid_token(&self, description: &str) -> HeaderValue {
        self.write("Bearer", Some("invalid_token"), Some(description))
    }

    /// The token is good, and [`Challenge::scopes`] are what the request needs: one challenge a scheme, as for a failed
    /// authentication.
    pub fn insufficient_scope(&self) -> Vec<HeaderValue> {
        self.by_scheme(false, Some("insufficient_scope"), None)
    }

    fn write(&self, scheme: &str, error: Option<&str>, description: Option<&str>) -> HeaderValue {
        let scope = self
            .scopes
            .iter()
            .filter(|scope| is_scope_token(scope))
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let algorithms = (scheme == "DPoP").then(|| dpop::ALGORITHMS.join(" "));
        let parameters = [
            ("algs", algorithms.as_deref()),
            ("error", error),
            ("error_description", description),
            ("resource_metadata", self.resource_metadata),
            ("scope", (!scope.is_empty()).then_some(scope.as_str())),
        ];
        let mut value = String::from(scheme);
        let mut separator = " ";
        for (name, content) in parameters {
            if let Some(content) = content {
                value.push_str(separator);
                value.push_str(name);
                value.push_str("=\"");
                push_quoted(&mut value, content);
                value.push('"');
                separator = ", ";
            }
        }
        HeaderValue::try_from(value).expect("printable ASCII makes a header value")
    }
}

/// RFC 6749 section 3.3: what may stand in a scope.
fn is_scope_token(scope: &str) -> bool {
    !scope.is_empty()
        && scope
            .bytes()
            .all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

/// RFC 9110 section 5.6.4, printable ASCII only.
fn push_quoted(value: &mut String, content: &str) {
    for char in content.chars().filter(|char| matches!(char, ' '..='~')) {
        if matches!(char, '"' | '\\') {
            value.push('\\');
        }
        value.push(char);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::CertificateFault;

    const METADATA: &str = "https://mcp.example.com/.well-known/oauth-protected-resource/notes/mcp";

    #[test]
    fn challenges_are_those_of_the_contract() {
        let scopes = ["mcp.use".to_owned(), "notes.read".to_owned()];
        let challenge = Challenge {
            resource_metadata: Some(METADATA),
            scopes: &scopes,
            dpop: None,
        };
        let both = format!("resource_metadata=\"{METADATA}\", scope=\"mcp.use notes.read\"");
        assert_eq!(challenge.missing(), format!("Bearer {both}"));
        assert_eq!(
            challenge.for_error(&AuthnError::expired(Some(1)))[0],
            format!(
                "Bearer error=\"invalid_token\", error_description=\"token expired at 1970-01-01T00:00:01Z\", {both}"
            )
        );
        assert_eq!(
            challenge.insufficient_scope(),
            [format!("Bearer error=\"insufficient_scope\", {both}")]
        );
        assert_eq!(
            challenge.for_error(&AuthnError::MissingToken { malformed: true })[0],
            challenge.missing()
        );
        assert_eq!(
            challenge.for_error(&AuthnError::KeysUnavailable {
                identity: "corp".into()
            }),
            Vec::<HeaderValue>::new()
        );
    }

    #[test]
    fn a_route_names_the_schemes_that_it_takes() {
        let algorithms = "algs=\"ES256 ES384 Ed25519 EdDSA PS256 RS256\"";
        let scopes = ["notes.read".to_owned()];
        for (dpop, expected) in [
            (None, vec!["Bearer"]),
            (Some(Dpop::Accepted), vec!["Bearer", "DPoP"]),
            (Some(Dpop::Required), vec!["DPoP"]),
            (Some(Dpop::Nonce), vec!["DPoP"]),
        ] {
            let challenge = Challenge {
                resource_metadata: None,
                scopes: &scopes,
                dpop,
            };
            for (error, challenges) in [
                ("", challenge.for_error(&AuthnError::MissingToken { malformed: false })),
                ("error=\"insufficient_scope\", ", challenge.insufficient_scope()),
            ] {
                let expected: Vec<String> = expected
                    .iter()
                    .map(|scheme| match *scheme {
                        "DPoP" => format!("DPoP {algorithms}, {error}scope=\"notes.read\""),
                        scheme => format!("{scheme} {error}scope=\"notes.read\""),
                    })
                    .collect();
                assert_eq!(challenges, expected, "{dpop:?}");
            }
        }
    }

    #[test]
    fn nothing_is_said_of_a_certificate() {
        let bare = vec![HeaderValue::from_static("Bearer")];
        assert_eq!(Challenge::default().for_error(&AuthnError::NoCertificate), bare);
        let ended = CertificateFault::Expired(1).into();
        assert_eq!(Challenge::default().for_error(&ended), bare);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        assert_eq!(Challenge::default().missing(), "Bearer");
        assert_eq!(
            Challenge::default().for_error(&TokenFault::Audience.into())[0],
            "Bearer error=\"invalid_token\", error_description=\"invalid audience\""
        );
    }

    #[test]
    fn nothing_breaks_out_of_a_value() {
        let scopes = [
            "a\", error=\"x".to_owned(),
            "b c".to_owned(),
            "d\r\nSet-Cookie: e".to_owned(),
            "f\\".to_owned(),
            "ü".to_owned(),
            String::new(),
            "good".to_owned(),
        ];
        let challenge = Challenge {
            resource_metadata: Some("https://x/\"\r\n\\ü"),
            scopes: &scopes,
            dpop: None,
        };
        assert_eq!(
            challenge.invalid_token("a \"b\"\r\n\0c\\"),
            r#"Bearer error="invalid_token", error_description="a \"b\"c\\", resource_metadata="https://x/\"\\", scope="good""#
        );
    }
}
