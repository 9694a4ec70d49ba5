//! Challenges. Input: a description, a metadata URL and scopes, a line each, all hostile.
//!
//! Oracle: a reader of RFC 9110's `auth-param` list that knows nothing of the writer finds exactly the four parameters meant,
//! each with what of its value a header can carry.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::authn::Challenge;

/// RFC 9110 sections 5.6.4 and 11.2, in the one form that is written: `name="value", name="value"`.
fn parameters(challenge: &str) -> Vec<(String, String)> {
    let mut rest = challenge.strip_prefix("Bearer").expect("the scheme").chars().peekable();
    let mut found = Vec::new();
    while let Some(next) = rest.next() {
        assert!(if found.is_empty() {
            next == ' '
        } else {
            next == ',' && rest.next() == Some(' ')
        });
        let name: String = rest.by_ref().take_while(|char| *char != '=').collect();
        assert_eq!(rest.next(), Some('"'));
        let mut value = String::new();
        loop {
            match rest.next().expect("the quotes are closed") {
                '"' => break,
                '\\' => value.push(rest.next().expect("something is escaped")),
                char => value.push(char),
            }
        }
        found.push((name, value));
    }
    found
}

fuzz_target!(|input: &str| {
    let mut lines = input.split('\n');
    let (Some(description), Some(metadata)) = (lines.next(), lines.next()) else {
        return;
    };
    let scopes: Vec<String> = lines.map(str::to_owned).collect();
    let challenge = Challenge {
        resource_metadata: Some(metadata),
        scopes: &scopes,
        dpop: None,
    };
    let value = challenge.invalid_token(description);
    let found = parameters(value.to_str().expect("visible ASCII"));
    let printable = |text: &str| {
        text.chars()
            .filter(|char| (' '..='~').contains(char))
            .collect::<String>()
    };
    let plain = |scope: &&String| {
        !scope.is_empty()
            && scope
                .chars()
                .all(|char| ('!'..='~').contains(&char) && !"\"\\".contains(char))
    };
    let scope = scopes.iter().filter(plain).cloned().collect::<Vec<_>>().join(" ");
    let mut expected = vec![
        ("error".to_owned(), "invalid_token".to_owned()),
        ("error_description".to_owned(), printable(description)),
        ("resource_metadata".to_owned(), printable(metadata)),
    ];
    if !scope.is_empty() {
        expected.push(("scope".to_owned(), scope));
    }
    assert_eq!(found, expected);
});
