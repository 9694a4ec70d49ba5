//! What an upstream's `WWW-Authenticate` says: where its metadata is, and which scopes it wants.
//!
//! The upstream is hostile until shown otherwise, so that:
//!
//! 1. The grammar is RFC 9110 section 11.6.1, over all fields together. A field that isn't of it is no challenge; nothing
//!    of it is believed.
//! 2. The first `Bearer` challenge counts. A parameter that stands in it twice makes it no challenge.
//! 3. Sizes and counts are bounded; a scope that RFC 6749 section 3.3 doesn't allow is left out.
//! 4. The error is one of RFC 6750's, or `other`: nothing the upstream wrote reaches a log by it.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Longest field value that is read, in bytes.
const MAX_FIELD: usize = 8 * 1024;

/// Most fields that are read.
const MAX_FIELDS: usize = 8;

/// Most scopes taken from a challenge.
const MAX_SCOPES: usize = 64;

/// Longest scope, in bytes.
const MAX_SCOPE: usize = 256;

/// RFC 6750 section 3.1.
const ERRORS: [&str; 3] = ["invalid_request", "invalid_token", "insufficient_scope"];

/// A `Bearer` challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// `resource_metadata` (RFC 9728 section 5.1), as it was written.
    pub resource_metadata: Option<String>,
    /// `scope`, without doubles.
    pub scopes: Vec<String>,
    /// An error code of RFC 6750 section 3.1, or `other`.
    pub error: Option<&'static str>,
}

impl Challenge {
    /// The challenge in the `WWW-Authenticate` fields of an answer.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .take(MAX_FIELDS)
            .find_map(|field| Self::of_field(field.as_bytes()))
    }

    /// The first `Bearer` challenge of one field.
    fn of_field(field: &[u8]) -> Option<Self> {
        if field.len() > MAX_FIELD {
            return None;
        }
        let text = std::str::from_utf8(field).ok()?;
        let schemes = Reader { rest: text }.schemes()?;
        let (_, parameters) = schemes
            .into_iter()
            .find(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))?;
        let mut challenge = Self::default();
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in parameters {
            let name = name.to_ascii_lowercase();
            if seen.contains(&name) {
                return None;
            }
            match name.as_str() {
                "resource_metadata" => challenge.resource_metadata = Some(value),
                "scope" => challenge.scopes = scopes(&value),
                "error" => challenge.error = Some(known(&value)),
                _ => {}
            }
            seen.push(name);
        }
        Some(challenge)
    }
}

fn known(error: &str) -> &'static str {
    ERRORS.into_iter().find(|known| *known == error).unwrap_or("other")
}

/// The scopes of a list as RFC 6749 section 3.3 writes it, each once; others are left out.
pub(super) fn scopes(list: &str) -> Vec<String> {
    let mut scopes: Vec<String> = Vec::new();
    for scope in list.split(' ').filter(|scope| is_scope(scope)) {
        if scopes.len() == MAX_SCOPES {
            break;
        }
        if !scopes.iter().any(|known| known == scope) {
            scopes.push(scope.to_owned());
        }
    }
    scopes
}

fn is_scope(scope: &str) -> bool {
    (1..=MAX_SCOPE).contains(&scope.len())
        && scope
            .bytes()
            .all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

type Parameters = Vec<(String, String)>;

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    /// Every challenge of the field; `None` when anything in it isn't of the grammar.
    fn schemes(mut self) -> Option<Vec<(&'a str, Parameters)>> {
        let mut schemes: Vec<(&str, Parameters)> = Vec::new();
        loop {
            self.skip(|char| matches!(char, ' ' | '\t' | ','));
            if self.rest.is_empty() {
                return Some(schemes);
            }
            let name = self.token()?;
            let after = Self {
                rest: self.rest.trim_start_matches([' ', '\t']),
            };
            match (schemes.last_mut(), after.rest.strip_prefix('=')) {
                (Some((_, parameters)), Some(value)) => {
                    self.rest = value.trim_start_matches([' ', '\t']);
                    let value = self.value()?;
                    parameters.push((name.to_owned(), value));
                    self.ends()?;
                }
                (None, Some(_)) => return None,
                (_, None) => {
                    schemes.push((name, Vec::new()));
                    if after.rest.len() < self.rest.len() {
                        self.token68();
                    } else {
                        self.ends()?;
                    }
                }
            }
        }
    }

    fn skip(&mut self, which: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(which);
    }

    /// Whether an element of the list is over here.
    fn ends(&self) -> Option<()> {
        let rest = self.rest.trim_start_matches([' ', '\t']);
        (rest.is_empty() || rest.starts_with(',')).then_some(())
    }

    /// RFC 9110 section 5.6.2.
    fn token(&mut self) -> Option<&'a str> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let end = self.rest.bytes().take_while(|byte| is_token(*byte)).count();
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    /// Skips what stands after a scheme instead of parameters, if anything does.
    fn token68(&mut self) {
        let rest = self.rest.trim_start_matches([' ', '\t']);
        let is_token68 = |char: char| char.is_ascii_alphanumeric() || "-._~+/".contains(char);
        let after = rest.trim_start_matches(is_token68);
        if after.len() == rest.len() {
            return;
        }
        let after = Self {
            rest: after.trim_start_matches('='),
        };
        if after.ends().is_some() {
            self.rest = after.rest;
        }
    }

    /// A token, or a quoted string (RFC 9110 section 5.6.4).
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            return self.token().map(str::to_owned);
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                char => value.push(char),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn read(fields: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(field.as_bytes()).unwrap());
        }
        Challenge::read(&headers)
    }

    fn challenge(metadata: Option<&str>, scopes: &[&str], error: Option<&'static str>) -> Option<Challenge> {
        Some(Challenge {
            resource_metadata: metadata.map(str::to_owned),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            error,
        })
    }

    #[test]
    fn what_servers_write() {
        let at = Some("https://mcp.test/prm");
        let cases: &[(&[&str], _)] = &[
            (&[], None),
            (&["Bearer"], challenge(None, &[], None)),
            (&["bEARER"], challenge(None, &[], None)),
            (
                &[r#"Bearer resource_metadata="https://mcp.test/prm""#],
                challenge(at, &[], None),
            ),
            (
                &[
                    r#"Bearer error="invalid_token", error_description="a, b=\"c\"", RESOURCE_METADATA="https://mcp.test/prm",scope="a b  a""#,
                ],
                challenge(at, &["a", "b"], Some("invalid_token")),
            ),
            (
                &[r#"Bearer realm = x , scope = mcp:basic"#],
                None, // `:` stands in no token
            ),
            (
                &["Bearer realm = x , scope\t=\tbasic"],
                challenge(None, &["basic"], None),
            ),
            (
                &[r#"Bearer error=insufficient_scope"#],
                challenge(None, &[], Some("insufficient_scope")),
            ),
            (&[r#"Bearer error="<script>""#], challenge(None, &[], Some("other"))),
            // Other schemes beside it, in the field and in other fields.
            (&[r#"Basic realm="x", Bearer scope="s""#], challenge(None, &["s"], None)),
            (
                &[r#"Negotiate YII=, Bearer scope="s", DPoP algs="ES256""#],
                challenge(None, &["s"], None),
            ),
            (&["Negotiate", r#"Bearer scope="s""#], challenge(None, &["s"], None)),
            (
                &[r#"DPoP scope="d""#, r#"Bearer scope="s""#],
                challenge(None, &["s"], None),
            ),
            (
                &[r#"Bearer scope="s", Bearer scope="t""#],
                challenge(None, &["s"], None),
            ),
            (&[r#"DPoP scope="d""#], None),
            // Scopes that can't be ones are left out.
            (
                &["Bearer scope=\"a \u{e9} b\\\"c d\""],
                challenge(None, &["a", "d"], None),
            ),
            (&[r#",, Bearer ,scope="s",,"#], challenge(None, &["s"], None)),
            // That is a token68, which has no name.
            (&["Bearer scope="], challenge(None, &[], None)),
        ];
        for (fields, expected) in cases {
            assert_eq!(&read(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn what_is_no_challenge_is_not_believed() {
        for field in [
            "",
            "=",
            "\"Bearer\"",
            "Bearer scope=\"a",
            "Bearer scope=\"a\\",
            "Bearer error=x, scope=",
            "Bearer scope=\"a\" error=\"b\"",
            "Bearer scope=\"a\"x",
            "Bearer =\"a\"",
            "scope=\"a\"",
            // Which of the two is meant?
            "Bearer scope=\"a\", scope=\"b\"",
            "Bearer resource_metadata=\"https://a/\", Resource_Metadata=\"https://b/\"",
            "Bearer;scope=a",
            "Bearer{}",
        ] {
            assert_eq!(read(&[field]), None, "{field}");
        }
        let mut headers = HeaderMap::new();
        headers.append(
            WWW_AUTHENTICATE,
            HeaderValue::from_bytes(b"Bearer scope=\"\xff\"").unwrap(),
        );
        assert_eq!(Challenge::read(&headers), None);
    }

    #[test]
    fn sizes_and_counts_are_bounded() {
        let many: Vec<String> = (0..1000).map(|number| format!("s{number}")).collect();
        let many = read(&[&format!("Bearer scope=\"{}\"", many.join(" "))]).unwrap();
        assert_eq!(many.scopes.len(), MAX_SCOPES);
        let long = format!("Bearer scope=\"{} b\"", "a".repeat(MAX_SCOPE + 1));
        assert_eq!(read(&[&long]), challenge(None, &["b"], None));
        assert_eq!(read(&[&format!("Bearer realm=\"{}\"", "a".repeat(MAX_FIELD))]), None);
        let mut fields = vec!["Basic"; MAX_FIELDS];
        fields.push("Bearer");
        assert_eq!(read(&fields), None);
    }

    proptest! {
        /// What the gate itself writes to its clients is read as it was meant.
        #[test]
        fn what_the_gate_writes_is_read(
            url in "https://[a-z]{1,9}\\.test/[!-~]{0,20}",
            scopes in vec("[!#-\\[\\]-~]{1,12}", 1..5),
        ) {
            let written = crate::authn::Challenge {
                resource_metadata: Some(&url),
                scopes: &scopes,
                dpop: None,
            };
            let field = written.invalid_token("for any reason, \"quoted\"");
            let read = Challenge::of_field(field.as_bytes()).expect("a challenge");
            prop_assert_eq!(read.resource_metadata, Some(url));
            prop_assert_eq!(read.scopes, super::scopes(&scopes.join(" ")));
            prop_assert_eq!(read.error, Some("invalid_token"));
        }

        #[test]
        fn no_bytes_break_it(field in vec(any::<u8>(), 0..200)) {
            Challenge::of_field(&field);
        }

        /// Bytes that nearly are challenges.
        #[test]
        fn no_near_miss_breaks_it(field in "(Bearer|Basic|[a-z=\", \\\\]{0,6}|scope=\"a b\"|, ){0,12}") {
            if let Some(read) = Challenge::of_field(field.as_bytes()) {
                prop_assert!(read.scopes.iter().all(|scope| super::is_scope(scope)));
            }
        }
    }
}
