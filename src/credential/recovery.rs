//! What becomes of a credential that the upstream refused.
//!
//! 1. A refused token is replaced once, however many requests it was refused to; each of them is sent once more (r27).
//! 2. A replacement that is refused as well is not replaced in its turn until [`PAUSE`] has passed: an upstream that
//!    refuses everything costs its issuer one request in that time.
//! 3. Which scopes an upstream asks for is believed within bounds: it may be anybody's server.

use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

use super::{CredentialError, OutboundCredential};

/// How long a replacement is left in place when it is refused, too.
pub(super) const PAUSE: Duration = Duration::from_secs(10);
/// Bytes of all challenges that are looked at.
const MAX_CHALLENGES: usize = 4096;
const MAX_SCOPES: usize = 32;
const MAX_SCOPE: usize = 128;

/// What obtained a credential, and can do so again.
pub(crate) trait Recover: Send + Sync {
    /// Another credential in place of this one, which the upstream answered with 401; `None` when there is none to be
    /// had.
    fn recover(&self) -> BoxFuture<'_, Result<Option<OutboundCredential>, CredentialError>>;

    /// Hears that the upstream wants these scopes besides (RFC 6750 section 3.1); an error where somebody can be asked
    /// for them.
    fn wants(&self, scopes: Vec<String>) -> BoxFuture<'_, Result<(), CredentialError>> {
        drop(scopes);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The scopes of a challenge with `error="insufficient_scope"`; `None` without such a challenge. What can't be a scope
/// (RFC 6749 section 3.3), and what is too much, is left out.
pub(crate) fn wanted_scopes(headers: &HeaderMap) -> Option<Vec<String>> {
    let mut left = MAX_CHALLENGES;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let text = value.to_str().ok().filter(|text| text.len() <= left)?;
        left -= text.len();
        let mut wanted = None;
        let mut insufficient = false;
        for (name, value) in parameters(text) {
            match name.to_ascii_lowercase().as_str() {
                "error" => insufficient |= value == "insufficient_scope",
                "scope" => wanted = Some(value),
                _ => {}
            }
        }
        if insufficient {
            let is_scope = |scope: &&str| {
                scope.len() <= MAX_SCOPE
                    && scope
                        .bytes()
                        .all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
            };
            let mut scopes: Vec<String> = Vec::new();
            for scope in wanted.unwrap_or_default().split(' ').filter(|scope| !scope.is_empty()) {
                if is_scope(&scope) && scopes.len() < MAX_SCOPES && !scopes.iter().any(|known| known == scope) {
                    scopes.push(scope.to_owned());
                }
            }
            return Some(scopes);
        }
    }
    None
}

/// The `name=value` pairs of a header of challenges (RFC 9110 section 11.6.1), quoted or not; anything else in it is
/// passed over.
fn parameters(text: &str) -> Vec<(&str, String)> {
    let mut pairs = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('=') {
        let name = rest[..at].rsplit([' ', ',', '\t']).next().unwrap_or_default();
        rest = &rest[at + 1..];
        let value = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (mut value, mut escaped) = (String::new(), false);
                let mut end = quoted.len();
                for (place, character) in quoted.char_indices() {
                    match character {
                        _ if escaped => {
                            value.push(character);
                            escaped = false;
                        }
                        '\\' => escaped = true,
                        '"' => {
                            end = place + 1;
                            break;
                        }
                        _ => value.push(character),
                    }
                }
                rest = &quoted[end..];
                value
            }
            None => {
                let end = rest.find([' ', ',', '\t']).unwrap_or(rest.len());
                let value = rest[..end].to_owned();
                rest = &rest[end..];
                value
            }
        };
        pairs.push((name, value));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wanted(challenges: &[&str]) -> Option<Vec<String>> {
        let mut headers = HeaderMap::new();
        for challenge in challenges {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(challenge).unwrap());
        }
        wanted_scopes(&headers)
    }

    #[test]
    fn only_insufficient_scope_asks_for_scopes() {
        let some = |scopes: &[&str]| Some(scopes.iter().map(|scope| (*scope).to_owned()).collect::<Vec<_>>());
        let cases: [(&[&str], Option<Vec<String>>); 9] = [
            (&[], None),
            (&["Bearer"], None),
            (&[r#"Bearer error="invalid_token", scope="a""#], None),
            (
                &[r#"Bearer error="insufficient_scope", scope="a b""#],
                some(&["a", "b"]),
            ),
            (&[r#"Bearer scope="a", ERROR=insufficient_scope"#], some(&["a"])),
            (&[r#"Bearer realm="error=\"insufficient_scope\"""#], None),
            (
                &[r#"Basic realm="x""#, r#"Bearer error="insufficient_scope""#],
                some(&[]),
            ),
            (
                &[r#"Bearer error="insufficient_scope", scope="a  a \"b\" c""#],
                some(&["a", "c"]),
            ),
            (
                &[r#"Bearer error="insufficient_scope", scope="unended"#],
                some(&["unended"]),
            ),
        ];
        for (challenges, expected) in cases {
            assert_eq!(wanted(challenges), expected, "{challenges:?}");
        }
    }

    #[test]
    fn what_a_server_asks_for_is_bounded() {
        let many: Vec<String> = (0..100).map(|n| format!("scope{n}")).collect();
        let many = format!(r#"Bearer error="insufficient_scope", scope="{}""#, many.join(" "));
        assert_eq!(wanted(&[&many]).unwrap().len(), MAX_SCOPES);
        let long = format!(
            r#"Bearer error="insufficient_scope", scope="{} b""#,
            "x".repeat(MAX_SCOPE + 1)
        );
        assert_eq!(wanted(&[&long]).unwrap(), ["b"]);
        let endless = format!(
            r#"Bearer error="insufficient_scope", scope="{}""#,
            "x ".repeat(MAX_CHALLENGES)
        );
        assert_eq!(wanted(&[&endless]), None);
    }
}
