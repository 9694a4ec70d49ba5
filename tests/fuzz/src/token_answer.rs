//! Answers of token endpoints. Input: a byte that picks what was asked for, then the body.
//!
//! Oracle: what is believed is, by a second JSON reader, an `access_token` that can stand in a header, of a type that was asked
//! for, and a bearer's unless something else than an access token was asked for; it ends after it was asked for; and no error
//! shows what the body holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::config::TokenType;
use portcullis::oauth::TokenError;
use portcullis::oauth::token;
use serde_json::Value;

const NOW: u64 = 1_800_000_000;

fuzz_target!(|input: &[u8]| {
    let Some((pick, body)) = input.split_first() else {
        return;
    };
    let requested = [
        None,
        Some(TokenType::ACCESS_TOKEN),
        Some(TokenType::JWT),
        Some(TokenType::ID_TOKEN),
        Some(TokenType::ID_JAG),
    ][usize::from(*pick) % 5];
    match token::read(body, NOW, requested) {
        Ok(answer) => {
            // Members that nobody reads may hold what the second reader can't: half a character, a number without bounds.
            let Ok(written) = serde_json::from_slice::<Value>(body) else {
                return;
            };
            let token = answer.tokens.access_token.expose();
            assert_eq!(written["access_token"], token);
            assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
            let access = [TokenType::ACCESS_TOKEN, TokenType::JWT];
            let requested = requested.unwrap_or(TokenType::ACCESS_TOKEN);
            if let Some(issued) = written["issued_token_type"].as_str() {
                assert!(issued == requested || (access.contains(&issued) && access.contains(&requested)));
            }
            if let Some(kind) = written["token_type"].as_str() {
                let not_access = kind.eq_ignore_ascii_case("n_a") && requested != TokenType::ACCESS_TOKEN;
                assert!(kind.eq_ignore_ascii_case("bearer") || not_access);
            }
            assert!(answer.tokens.expires_at.is_none_or(|end| end >= NOW));
            assert_eq!(answer.tokens.expires_at.is_some(), answer.expires_in.is_some());
            if let Some(refresh) = &answer.tokens.refresh_token {
                assert_eq!(written["refresh_token"], refresh.expose());
            }
        }
        Err(TokenError::Rejected { error }) => assert_eq!(token::registered(error), error),
        Err(TokenError::Malformed(_)) => {}
        Err(TokenError::Unreachable(_)) => unreachable!("nobody was asked"),
    }
});
