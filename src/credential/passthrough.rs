//! The caller's own token, where its issuer made it for the upstream as well.
//!
//! 1. Its `aud` names the upstream too, byte for byte. What says nothing of an audience is for nobody: an API key, a
//!    certificate, a token whose issuer left `aud` out.
//! 2. What is bound to the caller's key or certificate (`cnf`) is of no use to the gateway, and stays here.
//! 3. Nothing else is looked at: the token was verified already, and leaves as it came.

use http::HeaderValue;
use serde_json::Value;
use zeroize::Zeroizing;

use super::CredentialError;
use crate::authn::Principal;
use crate::secret::Secret;

/// `Bearer …` with the caller's token, marked sensitive.
///
/// # Errors
/// There is no token, or it isn't for `audience`, too.
pub(super) fn bearer(
    audience: &str,
    principal: &Principal,
    token: Option<&Secret>,
) -> Result<HeaderValue, CredentialError> {
    let token = token.filter(|_| !principal.is_anonymous());
    let token = token.ok_or(CredentialError::NoSubject)?;
    if principal.claims.contains_key("cnf") {
        return Err(CredentialError::NotForUpstream("it is bound to a key of the caller's"));
    }
    let named = match principal.claims.get("aud") {
        Some(Value::String(only)) => only == audience,
        Some(Value::Array(several)) => several.iter().any(|one| one == audience),
        _ => false,
    };
    if !named {
        return Err(CredentialError::NotForUpstream("its aud doesn't name the upstream"));
    }
    let text = Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(&text).map_err(|_| CredentialError::NoSubject)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UPSTREAM: &str = "https://files.example";

    #[test]
    fn only_a_token_for_the_upstream_leaves() {
        let caller = |claims: Value| Principal {
            identity: Some("corp".into()),
            claims: claims.as_object().unwrap().clone(),
            ..Principal::default()
        };
        let table = [
            (json!({"aud": ["https://gate.example", UPSTREAM]}), true),
            (json!({"aud": UPSTREAM}), true),
            (json!({"aud": ["https://gate.example"]}), false),
            (json!({"aud": "https://files.example/"}), false),
            (json!({"aud": "https://FILES.example"}), false),
            (json!({"aud": "https://files.example https://gate.example"}), false),
            (json!({"aud": [[UPSTREAM]]}), false),
            (json!({"aud": {UPSTREAM: true}}), false),
            (json!({"azp": UPSTREAM, "client_id": UPSTREAM}), false),
            (json!({}), false),
            (json!({"aud": UPSTREAM, "cnf": {"jkt": "x"}}), false),
            (json!({"aud": UPSTREAM, "cnf": {"x5t#S256": "x"}}), false),
            (json!({"aud": UPSTREAM, "cnf": null}), false),
        ];
        let token = Secret::new("callers-token");
        for (claims, leaves) in table {
            let made = bearer(UPSTREAM, &caller(claims.clone()), Some(&token));
            assert_eq!(made.is_ok(), leaves, "{claims}");
            match made {
                Ok(value) => assert!(value.is_sensitive() && value == "Bearer callers-token"),
                Err(error) => assert!(matches!(error, CredentialError::NotForUpstream(_)), "{claims}"),
            }
        }
        let good = json!({"aud": UPSTREAM});
        let nobody = Principal {
            identity: None,
            ..caller(good.clone())
        };
        for (principal, token) in [(&nobody, Some(&token)), (&caller(good), None)] {
            assert_eq!(
                bearer(UPSTREAM, principal, token).err(),
                Some(CredentialError::NoSubject)
            );
        }
    }
}
