//! Claim mapping. Input: paths with commas between, scope prefixes likewise, and a claim's path and what it must say with a
//! space between, a line each; then the claims of a token by the right issuer.
//!
//! Oracle: what a principal is made of stands at the first path that leads anywhere, found by a reader that tries every way to
//! cut a path at its dots; each scope is one the token says, spelled by the rules, or implied by one, and with one prefix it is
//! spelled back to the token's; and nobody is let in without what the identity requires.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use portcullis::authn::{Authenticator, Principal, RouteAuth, Sender};
use portcullis::clock::Clock;
use portcullis::config::{ClaimPaths, Identity, KeySource, ScopeNames};
use portcullis::policy::Roles;
use portcullis::secret::Secret;
use portcullis::session::Sealer;
use serde_json::{Map, Value, json};
use tokio::runtime::{Builder, Runtime};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const RESOURCE: &str = "https://r.example/mcp";

/// Most dots in a path: cuts double with each.
const MAX_DOTS: usize = 8;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));
static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(&[]));

fn identity(paths: &[String], prefixes: &[String], require: (&str, &str)) -> Identity {
    let scopes = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    Identity {
        name: "fuzz".into(),
        issuer: "https://i.example".to_owned(),
        keys: KeySource::SharedSecret(Secret::new(SECRET)),
        algorithms: vec![Algorithm::HS256],
        audiences: Vec::new(),
        claims: ClaimPaths {
            scopes: paths.to_vec(),
            roles: paths.to_vec(),
            groups: paths.to_vec(),
            client: paths.to_vec(),
            scope_names: ScopeNames {
                prefixes: prefixes.to_vec(),
                separators: BTreeMap::from([(':', '.'), ('/', '-')]),
            },
            require: BTreeMap::from([(require.0.to_owned(), vec![require.1.to_owned()])]),
            ..ClaimPaths::default()
        },
        id_tokens: false,
        ca: None,
        implies: BTreeMap::from([("a".to_owned(), scopes(&["b"])), ("b".to_owned(), scopes(&["c", "a"]))]),
        scope_upgrade_endpoint: None,
        dpop: None,
        login: None,
    }
}

fn let_in(identity: Identity, claims: &Value) -> Option<Arc<Principal>> {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    let value = HeaderValue::try_from(format!("Bearer {signed}.{signature}")).expect("ASCII");
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    let (roles, clock) = (Arc::new(Roles::default()), Clock::fixed(1_800_000_000));
    let authenticator = Authenticator::new(&[Arc::new(identity)], roles, clock, Arc::new(|_| {})).expect("a gate");
    let route = RouteAuth {
        route: "r".into(),
        identities: vec!["fuzz".into()],
        anonymous: false,
        resource: RESOURCE.to_owned(),
    };
    let sender = Sender {
        method: &Method::POST,
        target: RESOURCE,
        certificate: None,
        sealer: &SEALER,
    };
    let caller = RUNTIME.block_on(authenticator.authenticate(&route, &headers, &sender));
    caller.ok().map(|caller| caller.principal)
}

/// Every value that the path can lead to.
fn everywhere<'a>(claims: &'a Map<String, Value>, path: &str) -> Vec<&'a Value> {
    let words: Vec<&str> = path.split('.').collect();
    let dots = words.len() - 1;
    let cuts = 0..1_usize << dots;
    cuts.filter_map(|cuts| {
        let mut names = vec![words[0].to_owned()];
        for (dot, word) in words[1..].iter().enumerate() {
            if cuts & 1 << dot == 0 {
                let name = names.last_mut().expect("there is one");
                *name = format!("{name}.{word}");
            } else {
                names.push((*word).to_owned());
            }
        }
        let (first, below) = names.split_first().expect("there is one");
        below
            .iter()
            .try_fold(claims.get(first)?, |value, name| value.as_object()?.get(name))
    })
    .collect()
}

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn words(value: &Value) -> Vec<&str> {
    let texts = texts(value).into_iter();
    texts
        .flat_map(|text| text.split(' '))
        .filter(|word| !word.is_empty())
        .collect()
}

fn names(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(members) => {
            let granted =
                |value: &Value| *value == json!(true) || value.as_object().is_some_and(|some| !some.is_empty());
            members
                .iter()
                .filter(|(_, value)| granted(value))
                .map(|(name, _)| &**name)
                .collect()
        }
        value => texts(value),
    }
}

/// The name that a scope of the token has in rules.
fn named(scope: &str, prefixes: &[String]) -> Option<String> {
    let mut fitting: Vec<&str> = prefixes
        .iter()
        .filter_map(|prefix| scope.strip_prefix(&**prefix))
        .collect();
    if prefixes.is_empty() {
        fitting.push(scope);
    }
    let rest = fitting.into_iter().min_by_key(|rest| rest.len())?;
    (!rest.is_empty() && !rest.contains(['.', '-'])).then(|| rest.replace(':', ".").replace('/', "-"))
}

fn says(value: &Value, accepted: &str) -> bool {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "true".to_owned(),
        Value::Bool(false) => "false".to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return false,
    };
    !text.is_empty() && (accepted == "*" || text == accepted)
}

fuzz_target!(|input: &str| {
    let parts: Vec<&str> = input.splitn(4, '\n').collect();
    let [paths, prefixes, require, claims] = *parts else {
        return;
    };
    let list = |text: &str| -> Vec<String> {
        let given = !text.is_empty();
        text.split(',').filter(|_| given).map(str::to_owned).collect()
    };
    let (paths, prefixes) = (list(paths), list(prefixes));
    let (Some(require), Ok(Value::Object(mut claims))) = (require.split_once(' '), serde_json::from_str(claims)) else {
        return;
    };
    let mut all = paths.iter().map(String::as_str).chain([require.0]);
    if all.any(|path| path.matches('.').count() > MAX_DOTS) || require.1.is_empty() {
        return;
    }
    for (name, value) in [
        ("iss", json!("https://i.example")),
        ("aud", json!(RESOURCE)),
        ("exp", json!(1_800_000_600)),
        ("sub", json!("alice")),
    ] {
        claims.insert(name.to_owned(), value);
    }
    let asked = ScopeNames {
        prefixes: prefixes.clone(),
        separators: BTreeMap::from([(':', '.'), ('/', '-')]),
    };
    let Some(caller) = let_in(identity(&paths, &prefixes, require), &Value::Object(claims.clone())) else {
        return;
    };
    let required = everywhere(&claims, require.0).into_iter().any(|value| match value {
        Value::Array(values) => values.iter().any(|value| says(value, require.1)),
        value => says(value, require.1),
    });
    assert!(required, "{require:?}");

    let found = paths
        .iter()
        .map(|path| everywhere(&claims, path))
        .find(|found| !found.is_empty());
    let found = found.unwrap_or_else(|| vec![&Value::Null]);
    assert!(found.iter().any(|value| {
        caller.roles == names(value)
            && caller.groups == caller.roles
            && caller.token_scopes == words(value)
            && caller.client.as_deref() == value.as_str()
    }));
    let scopes: Vec<(&String, String)> = caller
        .token_scopes
        .iter()
        .filter_map(|scope| Some((scope, named(scope, &prefixes)?)))
        .collect();
    let mut granted: BTreeSet<&str> = scopes.iter().map(|(_, name)| &**name).collect();
    if granted.contains("a") || granted.contains("b") {
        granted.extend(["a", "b", "c"]);
    }
    assert!(granted.into_iter().eq(caller.scopes.iter()));
    if prefixes.len() < 2 {
        assert!(scopes.iter().all(|(scope, name)| asked.asked(name) == **scope));
    }
});
