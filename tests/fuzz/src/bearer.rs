//! Bearer syntax. Input: the value of `Authorization`.
//!
//! Oracle: a token that is found is one run of RFC 6750's characters behind a scheme and spaces, is all that stands there, and
//! is found again when it is sent alone; two headers are never a token.
#![no_main]

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use portcullis::authn::bearer::{MAX_TOKEN, bearer};

fuzz_target!(|input: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let mut headers = HeaderMap::new();
    headers.append(AUTHORIZATION, value.clone());
    if let Ok(token) = bearer(&headers) {
        let token = token.expect("there is a header");
        assert!(!token.is_empty() && token.len() <= MAX_TOKEN);
        assert!(!token.contains(|char: char| char.is_whitespace() || char.is_control() || ",;\"\\".contains(char)));
        let before = input.strip_suffix(token.as_bytes()).expect("nothing follows a token");
        let scheme = before.trim_ascii_end().to_ascii_lowercase();
        assert!([&b"bearer"[..], b"dpop"].contains(&&*scheme));
        let again = HeaderMap::from_iter([(
            AUTHORIZATION,
            HeaderValue::try_from(format!("Bearer {token}")).expect("ASCII"),
        )]);
        assert_eq!(bearer(&again), Ok(Some(token)));
    }
    headers.append(AUTHORIZATION, value);
    assert!(bearer(&headers).is_err());
});
