//! ID tokens: who signed in, as an identity's issuer tells the gateway itself (OpenID Connect Core section 3.1.3.7).
//!
//! 1. The identity's own keys and algorithms, as for callers' tokens. An identity that asks its issuer about tokens has
//!    no keys for those; ID tokens are JWTs all the same, so theirs are found by discovery.
//! 2. `iss` is the identity's, `aud` holds our client id, and where it holds others or `azp` is there, `azp` is ours too.
//! 3. `nonce` is the one that this sign-in began with, and `exp`, `iat` and `nbf` hold. An access token has no such nonce.
//! 4. The subject stands where the identity says it does, and what the identity requires of a caller's claims it requires
//!    here: who signs in is the same person as who calls.

use aws_lc_rs::constant_time;
use serde_json::{Map, Value};

use super::bearer::MAX_TOKEN;
use super::verify::{self, Parts, Token};
use super::{Authenticator, AuthnError, Means, TokenFault, claims, signed};
use crate::clock::UnixSeconds;
use crate::config::Identity;

/// Claims that name people, best first.
const NAMES: [&str; 3] = ["email", "preferred_username", "name"];

/// Who signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedIn {
    /// The mapped subject.
    pub subject: String,
    /// What the person goes by, as far as the token tells.
    pub name: String,
}

impl Authenticator {
    /// Who an ID token for the client `client`, asked for with `nonce`, is about.
    ///
    /// # Errors
    /// The token isn't that, or the identity's keys can't be had within 5 s.
    pub async fn signed_in(
        &self,
        identity: &str,
        token: &str,
        client: &str,
        nonce: &str,
    ) -> Result<SignedIn, AuthnError> {
        let unavailable = || AuthnError::KeysUnavailable {
            identity: identity.into(),
        };
        let (_, voucher) = self.voucher(identity).ok_or_else(unavailable)?;
        let keys = match (&voucher.means, &voucher.login) {
            (Means::Keys(keys), _) | (_, Some(keys)) => keys,
            _ => return Err(unavailable()),
        };
        let identity = &voucher.identity;
        if token.len() > MAX_TOKEN {
            return Err(TokenFault::Malformed.into());
        }
        let parts = Parts::split(token)?;
        verify::critical(&parts.header)?;
        let plain = |typ: &Value| typ.as_str().is_some_and(|typ| typ.eq_ignore_ascii_case("jwt"));
        if !parts.header.get("typ").is_none_or(plain) {
            return Err(TokenFault::Type.into());
        }
        let token = Token::of(parts)?;
        if !verify::allows(identity, token.algorithm) {
            return Err(TokenFault::Algorithm.into());
        }
        signed(identity, keys, &token).await?;
        Ok(read(identity, &token.claims, client, nonce, self.clock.now())?)
    }
}

/// What the claims of a token with a good signature say.
fn read(
    identity: &Identity,
    claims: &Map<String, Value>,
    client: &str,
    nonce: &str,
    now: UnixSeconds,
) -> Result<SignedIn, TokenFault> {
    let says = |key: &str| claims.get(key).and_then(Value::as_str);
    if says("iss") != Some(&identity.issuer) {
        return Err(TokenFault::Issuer);
    }
    let (ours, others) = match claims.get("aud") {
        Some(Value::String(audience)) => (audience == client, false),
        Some(Value::Array(audiences)) => (
            audiences.iter().any(|audience| audience == client),
            audiences.iter().any(|audience| audience != client),
        ),
        _ => (false, false),
    };
    let authorized = match claims.get("azp") {
        None => !others,
        Some(party) => party == client,
    };
    if !ours || !authorized {
        return Err(TokenFault::Audience);
    }
    verify::unexpired(verify::expires(claims)?, now)?;
    verify::begun(verify::not_before(claims)?, now)?;
    verify::issued(claims, now)?;
    let asked = says("nonce").unwrap_or_default();
    constant_time::verify_slices_are_equal(asked.as_bytes(), nonce.as_bytes()).map_err(|_| TokenFault::Nonce)?;
    if !claims::has_required(identity, claims) {
        return Err(TokenFault::Required);
    }
    let subject = claims::first(claims, &identity.claims.subject).and_then(Value::as_str);
    let subject = subject
        .filter(|subject| !subject.is_empty())
        .ok_or(TokenFault::Subject)?;
    let name = NAMES.into_iter().find_map(says).filter(|name| !name.is_empty());
    Ok(SignedIn {
        subject: subject.to_owned(),
        name: name.unwrap_or(subject).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::testing::{self, Issuer, SigningKey};
    use super::*;
    use crate::clock::Clock;
    use crate::config::{Client, ClientProof, UserLogin};

    #[tokio::test]
    async fn the_identitys_own_keys_vouch_also_where_its_issuer_is_asked_about_tokens() {
        let (key, stranger) = (SigningKey::es256("one"), SigningKey::es256("one"));
        let issuer = Issuer::start(&[&key]).await;
        let login = || {
            Some(UserLogin {
                client: Client {
                    id: "gate".to_owned(),
                    proof: ClientProof::None,
                },
                scopes: vec!["openid".to_owned()],
            })
        };
        let corp = Identity {
            login: login(),
            ..testing::identity("corp", &issuer.url)
        };
        let opaque = Identity {
            login: login(),
            ..testing::asking("opaque", &issuer.url)
        };
        let identities = [corp, opaque, testing::asking("nobody", &issuer.url)].map(Arc::new);
        let clock = Clock::fixed(950);
        let authenticator = Authenticator::new(&identities, Arc::default(), clock, Arc::new(|_| {})).unwrap();
        let claims = json!({"iss": issuer.url, "aud": "gate", "sub": "ada", "nonce": "n", "exp": 1_000});
        // What the keys' own header says is an access token's.
        let header = |key: &SigningKey| {
            let mut header = key.header();
            header["typ"] = "JWT".into();
            header
        };
        let good = key.token_with(&header(&key), &claims);
        for identity in ["corp", "opaque"] {
            let ada = authenticator.signed_in(identity, &good, "gate", "n").await.unwrap();
            assert_eq!(ada.subject, "ada", "{identity}");
            for (name, value, reason) in [
                ("typ", "at+jwt", "type"),
                ("alg", "none", "algorithm"),
                ("alg", "HS256", "algorithm"),
                ("crit", "x", "critical_header"),
            ] {
                let mut header = header(&key);
                header[name] = value.into();
                let token = key.token_with(&header, &claims);
                let refused = authenticator
                    .signed_in(identity, &token, "gate", "n")
                    .await
                    .unwrap_err();
                assert_eq!(refused.reason(), reason, "{identity} {header}");
            }
            let forged = stranger.token_with(&header(&stranger), &claims);
            let refused = authenticator
                .signed_in(identity, &forged, "gate", "n")
                .await
                .unwrap_err();
            assert_eq!(refused.reason(), "signature", "{identity}");
        }
        // Where nobody logs in there are no keys, and nobody is let in by chance.
        let refused = authenticator.signed_in("nobody", &good, "gate", "n").await.unwrap_err();
        assert_eq!(refused.reason(), "keys_unavailable");
    }

    #[test]
    fn the_claims_are_for_this_sign_in() {
        let corp = testing::identity("corp", "https://login.example.com");
        let good = json!({"iss": "https://login.example.com", "aud": "gate", "sub": "ada", "nonce": "n",
            "exp": 1_000, "iat": 900, "email": "ada@example.com"});
        let with = |change: Value| {
            let mut claims = good.as_object().unwrap().clone();
            for (key, value) in change.as_object().unwrap() {
                match value {
                    Value::Null => drop(claims.remove(key)),
                    value => drop(claims.insert(key.clone(), value.clone())),
                }
            }
            read(&corp, &claims, "gate", "n", 950)
        };
        let ada = SignedIn {
            subject: "ada".to_owned(),
            name: "ada@example.com".to_owned(),
        };
        for good in [
            json!({}),
            json!({"aud": ["gate"]}),
            json!({"aud": ["gate", "other"], "azp": "gate"}),
            json!({"azp": "gate"}),
            json!({"nbf": 1_000}),
        ] {
            assert_eq!(with(good.clone()), Ok(ada.clone()), "{good}");
        }
        assert_eq!(with(json!({"email": null})).unwrap().name, "ada");
        for (bad, fault) in [
            (json!({"iss": "https://login.example.com/"}), TokenFault::Issuer),
            (json!({"iss": null}), TokenFault::Issuer),
            (json!({"aud": "other"}), TokenFault::Audience),
            (json!({"aud": null}), TokenFault::Audience),
            (json!({"aud": ["gate", "other"]}), TokenFault::Audience),
            (json!({"aud": ["gate", "other"], "azp": "other"}), TokenFault::Audience),
            (json!({"aud": [], "azp": "gate"}), TokenFault::Audience),
            (json!({"azp": "other"}), TokenFault::Audience),
            (json!({"azp": 7}), TokenFault::Audience),
            (json!({"exp": 800}), TokenFault::Expired(Some(800))),
            (json!({"exp": null}), TokenFault::Times),
            (json!({"iat": 2_000}), TokenFault::NotYetValid),
            (json!({"nbf": 2_000}), TokenFault::NotYetValid),
            (json!({"nonce": "m"}), TokenFault::Nonce),
            (json!({"nonce": null}), TokenFault::Nonce),
            (json!({"nonce": ""}), TokenFault::Nonce),
            (json!({"sub": null}), TokenFault::Subject),
            (json!({"sub": ""}), TokenFault::Subject),
        ] {
            assert_eq!(with(bad.clone()), Err(fault), "{bad}");
        }
        let mut strict = testing::identity("corp", "https://login.example.com");
        strict
            .claims
            .require
            .insert("hd".to_owned(), vec!["example.com".to_owned()]);
        let claims = good.as_object().unwrap();
        assert_eq!(read(&strict, claims, "gate", "n", 950), Err(TokenFault::Required));
    }
}
