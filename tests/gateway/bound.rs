//! Tokens that are bound to a key: each check of RFC 9449 section 4.3, its status and challenge, and an upstream that saw
//! nothing.

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};

use super::gate::{Answer, Gate, call};
use super::upstream::Upstream;

/// A client with a key and a token that is bound to it.
struct Client {
    key: EcdsaKeyPair,
    token: String,
}

fn hash(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

fn jwk(key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    json!({"kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])})
}

fn mint(gate: &Gate, confirmation: Option<Value>) -> String {
    let now = gate.clock.now();
    let mut claims = json!({"iss": gate.issuer.issuer(), "sub": "alice", "aud": gate.url(), "scope": "notes.read",
        "iat": now, "exp": now + 600});
    if let Some(confirmation) = confirmation {
        claims["cnf"] = confirmation;
    }
    gate.issuer.mint_claims(&claims)
}

impl Client {
    fn new(gate: &Gate) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        // serde_json's maps are sorted, as RFC 7638 wants it.
        let token = mint(gate, Some(json!({"jkt": hash(&jwk(&key).to_string())})));
        Self { key, token }
    }

    fn header(&self) -> Value {
        json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk(&self.key)})
    }

    fn claims(&self, gate: &Gate, jti: &str) -> Value {
        json!({"jti": jti, "htm": "POST", "htu": gate.url(), "iat": gate.clock.now(), "ath": hash(&self.token)})
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn proof(&self, gate: &Gate, jti: &str) -> String {
        self.sign(&self.header(), &self.claims(gate, jti))
    }
}

async fn send(gate: &Gate, authorization: &str, proofs: &[String]) -> Answer {
    let mut request = gate.post("", &call("echo"));
    let headers = request.headers_mut();
    headers.insert("authorization", authorization.parse().expect("a value"));
    for proof in proofs {
        headers.append("dpop", proof.parse().expect("a value"));
    }
    gate.send(request).await
}

fn challenges(answer: &Answer) -> String {
    let values = answer.headers.get_all("www-authenticate").iter();
    values
        .map(|value| value.to_str().expect("text"))
        .collect::<Vec<_>>()
        .join(" | ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failing_check_is_401_and_reaches_nobody() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_route(&upstream, "").await;
    let client = Client::new(&gate);
    let other = Client::new(&gate);
    let now = gate.clock.now();
    let header = |key: &str, value: Value| {
        let mut header = client.header();
        header[key] = value;
        client.sign(&header, &client.claims(&gate, "h"))
    };
    let claim = |key: &str, value: Value| {
        let mut claims = client.claims(&gate, "c");
        claims[key] = value;
        client.sign(&client.header(), &claims)
    };
    let mut private = jwk(&client.key);
    private["d"] = json!("AAAA");
    let good = client.proof(&gate, "g");
    let tampered = format!("{}AAAA", &good[..good.len() - 4]);
    let table = [
        ("no proof", vec![], "malformed"),
        ("typ", vec![header("typ", json!("jwt"))], "malformed"),
        ("crit", vec![header("crit", json!(["x"]))], "malformed"),
        ("alg none", vec![header("alg", json!("none"))], "algorithm"),
        ("alg HS256", vec![header("alg", json!("HS256"))], "algorithm"),
        ("alg of another key", vec![header("alg", json!("RS256"))], "algorithm"),
        (
            "alg Ed25519 of a P-256 key",
            vec![header("alg", json!("Ed25519"))],
            "algorithm",
        ),
        ("no jwk", vec![header("jwk", json!(null))], "key"),
        ("private jwk", vec![header("jwk", private)], "key"),
        ("another jwk", vec![header("jwk", jwk(&other.key))], "signature"),
        ("tampered", vec![tampered], "signature"),
        ("htm", vec![claim("htm", json!("GET"))], "method"),
        (
            "htu",
            vec![claim("htu", json!("https://elsewhere.example/mcp"))],
            "target",
        ),
        ("old", vec![claim("iat", json!(now - 121))], "times"),
        ("future", vec![claim("iat", json!(now + 61))], "times"),
        ("no jti", vec![claim("jti", json!(""))], "malformed"),
        ("ath", vec![claim("ath", json!(hash(&other.token)))], "token"),
        (
            "another's key",
            vec![other.sign(&other.header(), &client.claims(&gate, "o"))],
            "other_key",
        ),
    ];
    let dpop = format!("DPoP {}", client.token);
    for (name, proofs, reason) in table {
        let answer = send(&gate, &dpop, &proofs).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
        let challenge = challenges(&answer);
        assert!(
            challenge.starts_with("DPoP algs=\"ES256 ES384 Ed25519 EdDSA PS256 RS256\", error=\"invalid_dpop_proof\""),
            "{name}: {challenge}"
        );
        let counted = format!("reason=\"proof_{reason}\"");
        assert!(gate.running.metrics().render().contains(&counted), "{name}: {counted}");
    }
    // Bound and sent as bearer, with a good proof even; unbound and sent as bound; a cnf that isn't understood.
    for (name, authorization) in [
        ("bearer", format!("Bearer {}", client.token)),
        ("unbound", format!("DPoP {}", mint(&gate, None))),
        (
            "unknown cnf",
            format!("DPoP {}", mint(&gate, Some(json!({"kid": "x"})))),
        ),
        (
            "certificate",
            format!("Bearer {}", mint(&gate, Some(json!({"x5t#S256": hash("a")})))),
        ),
    ] {
        let answer = send(&gate, &authorization, std::slice::from_ref(&good)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
        let challenge = challenges(&answer);
        assert!(
            challenge.contains("Bearer error=\"invalid_token\""),
            "{name}: {challenge}"
        );
        assert!(challenge.contains("DPoP algs="), "{name}: {challenge}");
    }
    let two = send(&gate, &dpop, &[good.clone(), good.clone()]).await;
    assert_eq!(two.status, StatusCode::BAD_REQUEST);
    assert!(upstream.seen().is_empty());
    // The very proof that was refused in other company is good, once, and stays here.
    assert_eq!(
        send(&gate, &dpop, std::slice::from_ref(&good)).await.status,
        StatusCode::OK
    );
    let seen = upstream.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| !seen.headers.contains_key("dpop")));
    let again = send(&gate, &dpop, &[good]).await;
    assert_eq!(again.status, StatusCode::UNAUTHORIZED);
    assert!(challenges(&again).contains("the proof was used before"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_proof_sent_many_times_at_once_one_passes() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_route(&upstream, "").await;
    let client = Client::new(&gate);
    let dpop = format!("DPoP {}", client.token);
    for round in 0..5 {
        let proof = [client.proof(&gate, &round.to_string())];
        let answers = futures_util::future::join_all((0..8).map(|_| send(&gate, &dpop, &proof))).await;
        let passed = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
        let refused = answers
            .iter()
            .filter(|answer| answer.status == StatusCode::UNAUTHORIZED)
            .count();
        assert_eq!((passed, refused), (1, 7));
    }
    assert_eq!(upstream.seen().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonces_are_asked_for_and_supplied() {
    let upstream = Upstream::tools(1).await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {}\n",
        upstream.url()
    );
    let gate = Gate::with_setup("", Some("  corp: {issuer: \"{issuer}\", dpop: nonce}\n"), &yaml).await;
    let client = Client::new(&gate);
    let dpop = format!("DPoP {}", client.token);
    let first = send(&gate, &dpop, &[client.proof(&gate, "1")]).await;
    assert_eq!(first.status, StatusCode::UNAUTHORIZED);
    assert!(
        challenges(&first).contains("error=\"use_dpop_nonce\""),
        "{}",
        challenges(&first)
    );
    let mut claims = client.claims(&gate, "2");
    claims["nonce"] = json!(first.header("dpop-nonce"));
    let second = send(&gate, &dpop, &[client.sign(&client.header(), &claims)]).await;
    assert_eq!(second.status, StatusCode::OK);
    claims["nonce"] = json!("forged");
    let forged = send(&gate, &dpop, &[client.sign(&client.header(), &claims)]).await;
    assert_eq!(forged.status, StatusCode::UNAUTHORIZED);
    assert!(!forged.header("dpop-nonce").is_empty());
    // A token that is bound to nothing has no business here.
    let unbound = send(&gate, &format!("Bearer {}", mint(&gate, None)), &[]).await;
    assert_eq!(unbound.status, StatusCode::UNAUTHORIZED);
    assert!(challenges(&unbound).starts_with("DPoP "), "{}", challenges(&unbound));
    let document = gate.request(http::Method::GET, "", String::new());
    let (mut parts, body) = document.into_parts();
    parts.uri = format!("{}/.well-known/oauth-protected-resource/notes/mcp", gate.running.url())
        .parse()
        .expect("a URL");
    let document = gate.send(http::Request::from_parts(parts, body)).await.json();
    assert_eq!(document["dpop_bound_access_tokens_required"], true);
    assert_eq!(document["dpop_signing_alg_values_supported"][0], "ES256");
    assert_eq!(upstream.seen().len(), 1);
}
