//! Tokens that are bound to a key: each check of RFC 9449 section 4.3, its status and challenge, and an upstream that saw
//! nothing.

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use portcullis::cli::demo::issuer::random_text;
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
    mint_for(gate, "alice", confirmation)
}

fn mint_for(gate: &Gate, subject: &str, confirmation: Option<Value>) -> String {
    let now = gate.clock.now();
    let mut claims = json!({"iss": gate.issuer.issuer(), "sub": subject, "aud": gate.url(), "scope": "notes.read",
        "iat": now, "exp": now + 600});
    if let Some(confirmation) = confirmation {
        claims["cnf"] = confirmation;
    }
    gate.issuer.mint_claims(&claims)
}

impl Client {
    fn new(gate: &Gate) -> Self {
        Self::of(gate, "alice")
    }

    fn of(gate: &Gate, subject: &str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        // serde_json's maps are sorted, as RFC 7638 wants it.
        let token = mint_for(gate, subject, Some(json!({"jkt": hash(&jwk(&key).to_string())})));
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

    /// A proof of this key for a request that somebody makes with that token.
    fn proof_for(&self, gate: &Gate, token: &str, method: &str, target: &str) -> String {
        let mut claims = self.claims(gate, &random_text());
        claims["ath"] = json!(hash(token));
        claims["htm"] = json!(method);
        claims["htu"] = json!(target);
        self.sign(&self.header(), &claims)
    }

    fn dpop(&self) -> String {
        format!("DPoP {}", self.token)
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
async fn a_lack_of_scopes_is_told_in_the_schemes_that_are_taken() {
    let upstream = Upstream::tools(1).await;
    let yaml = format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    scopes: [mcp.use]\n    upstream: {}\n",
        upstream.url()
    );
    for (dpop, schemes) in [("required", &["DPoP"][..]), ("accepted", &["Bearer", "DPoP"])] {
        let identity = format!("  corp: {{issuer: \"{{issuer}}\", dpop: {dpop}}}\n");
        let gate = Gate::with_setup("", Some(&identity), &yaml).await;
        let client = Client::new(&gate);
        let proof = [client.proof(&gate, dpop)];
        let answer = send(&gate, &format!("DPoP {}", client.token), &proof).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, Some(40_301)));
        let told = format!(
            "error=\"insufficient_scope\", resource_metadata=\"{}/.well-known/oauth-protected-resource/notes/mcp\", \
             scope=\"mcp.use\"",
            gate.running.url()
        );
        let expected = schemes.iter().map(|scheme| match *scheme {
            "DPoP" => format!("DPoP algs=\"ES256 ES384 Ed25519 EdDSA PS256 RS256\", {told}"),
            scheme => format!("{scheme} {told}"),
        });
        assert_eq!(challenges(&answer), expected.collect::<Vec<_>>().join(" | "));
    }
    assert!(upstream.seen().is_empty());
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

/// A request to one door of an HTTP+SSE route; what is empty is left out.
fn knock(method: Method, target: &str, authorization: &str, proof: &str) -> Request<Full<bytes::Bytes>> {
    let body = if method == Method::POST {
        call("echo").to_string()
    } else {
        String::new()
    };
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header("content-type", "application/json")
        .header("accept", "text/event-stream");
    for (name, value) in [("authorization", authorization), ("dpop", proof)] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    request.body(Full::from(body)).expect("a request")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_over_http_sse_the_stream_and_every_message_are_proven() {
    let upstream = Upstream::sse().await;
    let gate = Gate::with_yaml(&format!(
        "routes:\n  notes:\n    path: /notes/mcp\n    upstream: {{urls: [\"{}\"], transport: sse}}\n    bearerless_messages: true\n",
        upstream.url()
    ))
    .await;
    let (client, thief) = (Client::new(&gate), Client::of(&gate, "mallory"));
    let (stream, messages) = (gate.url(), format!("{}/messages", gate.url()));
    let token = &client.token;
    let dpop = client.dpop();
    let proof = |method: &str, target: &str| client.proof_for(&gate, token, method, target);
    let refused = async |name: &str, request: Request<Full<bytes::Bytes>>, challenge: &str| {
        let before = upstream.seen().len();
        let answer = gate.send(request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
        let said = challenges(&answer);
        assert!(said.contains(challenge), "{name}: {said}");
        assert_eq!(upstream.seen().len(), before, "{name}");
    };

    let (elsewhere, bearer) = (format!("{stream}/elsewhere"), format!("Bearer {token}"));
    for (name, authorization, proof, challenge) in [
        (
            "no proof",
            &dpop,
            String::new(),
            "one DPoP header with a JWT of type dpop+jwt is needed",
        ),
        (
            "another key",
            &dpop,
            thief.proof_for(&gate, token, "GET", &stream),
            "the token is bound to another key",
        ),
        (
            "of a POST",
            &dpop,
            proof("POST", &stream),
            "htm is not this request's method",
        ),
        (
            "of messages",
            &dpop,
            proof("GET", &messages),
            "htu is not this endpoint's URL",
        ),
        (
            "of elsewhere",
            &dpop,
            proof("GET", &elsewhere),
            "htu is not this endpoint's URL",
        ),
        ("as bearer", &bearer, proof("GET", &stream), "error=\"invalid_token\""),
    ] {
        refused(name, knock(Method::GET, &stream, authorization, &proof), challenge).await;
    }

    // RFC 9449 section 4.3: query and fragment count on neither side.
    let opening = proof("GET", &stream);
    let mut open = gate
        .open(knock(Method::GET, &format!("{stream}?from=here"), &dpop, &opening))
        .await;
    assert_eq!(open.status(), StatusCode::OK);
    let mut heard = String::new();
    let mut until = async |part: &str| {
        let reading = async {
            while !heard.contains(part) {
                let frame = open.body_mut().frame().await.expect("it stands").expect("a frame");
                heard.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("UTF-8"));
            }
        };
        let soon = std::time::Duration::from_secs(10);
        tokio::time::timeout(soon, reading).await.expect("in time");
        std::mem::take(&mut heard)
    };
    let event = until("\n\n").await;
    let endpoint = event.split_once("data: ").expect("an endpoint").1.trim().to_owned();
    assert!(endpoint.starts_with(&format!("{messages}?session_id=")), "{event}");

    for (name, authorization, proof, challenge) in [
        ("no token", "", String::new(), "Bearer resource_metadata"),
        (
            "a proof alone",
            "",
            proof("POST", &messages),
            "Bearer resource_metadata",
        ),
        ("no proof", &*dpop, String::new(), "one DPoP header"),
        ("the stream's proof", &dpop, opening, "htm is not"),
        (
            "another key",
            &dpop,
            thief.proof_for(&gate, token, "POST", &messages),
            "the token is bound to another key",
        ),
        ("of the stream", &dpop, proof("POST", &stream), "htu is not"),
        ("of a GET", &dpop, proof("GET", &messages), "htm is not"),
        (
            "of another token",
            &dpop,
            client.proof_for(&gate, &thief.token, "POST", &messages),
            "ath is not",
        ),
        (
            "as bearer",
            &bearer,
            proof("POST", &messages),
            "error=\"invalid_token\"",
        ),
    ] {
        refused(name, knock(Method::POST, &endpoint, authorization, &proof), challenge).await;
    }
    // Somebody else who proves everything about themselves.
    let theirs = thief.proof_for(&gate, &thief.token, "POST", &messages);
    let foreign = gate.send(knock(Method::POST, &endpoint, &thief.dpop(), &theirs)).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    assert_eq!(upstream.seen().len(), 1, "the stream alone");

    for target in [messages.clone(), endpoint.clone(), format!("{endpoint}#there")] {
        let proof = proof("POST", &target);
        let passed = gate.send(knock(Method::POST, &endpoint, &dpop, &proof)).await;
        assert_eq!(passed.status, StatusCode::ACCEPTED, "{target}");
        until("\"text\":\"echo\"").await;
        refused(
            "again",
            knock(Method::POST, &endpoint, &dpop, &proof),
            "the proof was used before",
        )
        .await;
    }
    // The stream is the caller's, whichever of their keys it was opened with.
    let renewed = Client::new(&gate);
    let proof = renewed.proof_for(&gate, &renewed.token, "POST", &messages);
    let passed = gate.send(knock(Method::POST, &endpoint, &renewed.dpop(), &proof)).await;
    assert_eq!(passed.status, StatusCode::ACCEPTED);
    let seen = upstream.seen();
    assert_eq!(seen.len(), 5);
    assert!(
        seen.iter()
            .all(|seen| !seen.headers.contains_key("dpop") && !seen.headers.contains_key("authorization"))
    );
}
