//! The token in a request's headers.
//!
//! 1. One `Authorization` header, `Bearer` or `DPoP` (RFC 9449 section 7.1) in any case, spaces, one `b64token` (RFC 6750 section 2.1). Anything else is
//!    malformed: never half understood.
//! 2. Tokens in the query or the body are not looked for (RFC 6750 sections 2.2 and 2.3; MCP forbids them).
//! 3. At most [`MAX_TOKEN`] bytes, so that a hostile token costs a bounded amount of hashing.

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Longest token accepted, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// There is an `Authorization` header, and it holds no bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// How a token was presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Bearer,
    Dpop,
}

/// The request's token, if it has one, whichever way it was presented.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Malformed> {
    credentials(headers).map(|found| found.map(|(_, token)| token))
}

/// The request's token and its scheme, if it has one.
pub fn credentials(headers: &HeaderMap) -> Result<Option<(Scheme, &str)>, Malformed> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Malformed);
    }
    let value = value.to_str().map_err(|_| Malformed)?;
    let (scheme, rest) = value.split_once(' ').ok_or(Malformed)?;
    let token = rest.trim_start_matches(' ');
    let scheme = if scheme.eq_ignore_ascii_case("bearer") {
        Scheme::Bearer
    } else if scheme.eq_ignore_ascii_case("dpop") {
        Scheme::Dpop
    } else {
        return Err(Malformed);
    };
    if token.len() <= MAX_TOKEN && is_b64token(token) {
        Ok(Some((scheme, token)))
    } else {
        Err(Malformed)
    }
}

/// `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`.
fn is_b64token(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    !body.is_empty()
        && body.bytes().all(
            |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'+' | b'/'),
        )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(values: &[&[u8]]) -> Result<Option<String>, Malformed> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        bearer(&headers).map(|token| token.map(str::to_owned))
    }

    #[test]
    fn reads_what_rfc_6750_allows() {
        assert_eq!(of(&[]), Ok(None));
        for value in [
            "Bearer a.b-c_d~e+f/g==",
            "bearer a.b-c_d~e+f/g==",
            "BEARER   a.b-c_d~e+f/g==",
        ] {
            assert_eq!(
                of(&[value.as_bytes()]),
                Ok(Some("a.b-c_d~e+f/g==".to_owned())),
                "{value}"
            );
        }
        let longest = "a".repeat(MAX_TOKEN);
        assert_eq!(of(&[format!("Bearer {longest}").as_bytes()]), Ok(Some(longest)));
    }

    #[test]
    fn refuses_everything_else() {
        let too_long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer =",
            "Bearera",
            "Bearer\ta",
            "Bearer a b",
            "Bearer a,b",
            "Bearer a ",
            "Bearer a=b",
            "Bearer \"a\"",
            "Bearer a, Bearer b",
            "Basic YTpi",
            "DPoP",
            "DPoPabc",
            "token abc",
            "abc",
            &too_long,
        ] {
            assert_eq!(of(&[value.as_bytes()]), Err(Malformed), "{value}");
        }
        assert_eq!(of(&[b"Bearer \xff"]), Err(Malformed));
        assert_eq!(of(&[b"Bearer a", b"Bearer a"]), Err(Malformed));
    }
}
