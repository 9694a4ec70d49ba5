//! Challenges of upstreams. Input: a field as it is, then the scope, error and `resource_metadata` of a well-formed one, a
//! line each.
//!
//! Oracle: what a writer that knows nothing of the reader wrote, quoted and with another scheme on either side, is read as it
//! was meant; and whatever is read of the field as it is stands in it.
#![no_main]

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use portcullis::oauth::challenge::Challenge;

/// RFC 6750 section 3.1.
const ERRORS: [&str; 3] = ["invalid_request", "invalid_token", "insufficient_scope"];

fn read(field: &str) -> Option<Challenge> {
    let value = HeaderValue::from_bytes(field.as_bytes()).ok()?;
    Challenge::read(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]))
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// RFC 6749 section 3.3, and no longer than is kept.
fn is_scope(scope: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    (1..=256).contains(&scope.len()) && scope.bytes().all(plain)
}

fuzz_target!(|input: &str| {
    let mut lines = input.split('\n');
    let hostile = lines.next().unwrap_or_default();
    if let Some(found) = read(hostile) {
        assert!(hostile.to_ascii_lowercase().contains("bearer"));
        assert!(found.scopes.len() <= 64);
        for scope in &found.scopes {
            assert!(is_scope(scope));
        }
        // Escaped or not, its characters stand there in order.
        if let Some(metadata) = &found.resource_metadata {
            let mut rest = hostile.chars();
            assert!(metadata.chars().all(|char| rest.any(|other| other == char)));
        }
    }

    let (Some(scope), Some(error), Some(metadata)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let control = |text: &str| text.chars().any(|char| char.is_control() && char != '\t');
    if input.len() > 2000 || [scope, error, metadata].into_iter().any(control) {
        return;
    }
    let written = format!(
        "Basic realm={}, Bearer scope={} ,error={},resource_metadata = {}, Negotiate abc==",
        quoted(metadata),
        quoted(scope),
        quoted(error),
        quoted(metadata)
    );
    let found = read(&written).expect("a challenge");
    let mut scopes: Vec<&str> = Vec::new();
    for scope in scope.split(' ').filter(|scope| is_scope(scope)).collect::<Vec<_>>() {
        if !scopes.contains(&scope) && scopes.len() < 64 {
            scopes.push(scope);
        }
    }
    assert_eq!(found.scopes, scopes);
    let known = ERRORS.into_iter().find(|known| *known == error);
    assert_eq!(found.error, Some(known.unwrap_or("other")));
    assert_eq!(found.resource_metadata.as_deref(), Some(metadata));
});
