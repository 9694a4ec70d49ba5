//! The users' pages: what a browser, a person and an attacker get of them.
//!
//! The identity's issuer and the service's authorization server are scripted here, so that each can lie. That real ones and
//! a real browser get along with the pages is shown in `interop/connect.rs`.

mod terminal;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use portcullis::edge::{Body, full};
use serde_json::{Value, json};
use url::Url;

use super::gate::{Answer, Gate, call};
use super::upstream::{Seen, Upstream};

/// An authorization server that says what it is told to.
struct Server {
    _upstream: Upstream,
    script: Arc<Script>,
}

#[derive(Default)]
struct Script {
    url: OnceLock<String>,
    /// Members of the metadata besides the usual ones.
    metadata: Mutex<Value>,
    /// What the token endpoint answers next.
    token: Mutex<Option<(StatusCode, Value)>>,
    /// Forms that came to the token endpoint.
    forms: Mutex<Vec<HashMap<String, String>>>,
}

impl Server {
    async fn start() -> Self {
        let script = Arc::<Script>::default();
        let told = script.clone();
        let upstream = Upstream::undiscovered(move |seen| {
            let answer = told.answer(&seen);
            async move { answer }
        })
        .await;
        script.url.set(format!("http://{}", upstream.address)).expect("once");
        *script.metadata.lock().unwrap() = json!({"authorization_response_iss_parameter_supported": true});
        Self {
            _upstream: upstream,
            script,
        }
    }

    fn url(&self) -> &str {
        self.script.url.get().expect("it has started")
    }

    fn says(&self, status: u16, answer: Value) {
        *self.script.token.lock().unwrap() = Some((StatusCode::from_u16(status).unwrap(), answer));
    }

    fn asked(&self) -> usize {
        self.script.forms.lock().unwrap().len()
    }

    fn last(&self) -> HashMap<String, String> {
        self.script.forms.lock().unwrap().last().expect("it was asked").clone()
    }
}

impl Script {
    fn answer(&self, seen: &Seen) -> Response<Body> {
        let url = self.url.get().expect("nobody comes before the port is known");
        let reply = |status: StatusCode, body: &Value| {
            let mut response = Response::new(full(body.to_string()));
            *response.status_mut() = status;
            response
                .headers_mut()
                .insert(CONTENT_TYPE, "application/json".parse().unwrap());
            response
        };
        match (&seen.method, seen.target.as_str()) {
            (&Method::GET, "/.well-known/openid-configuration" | "/.well-known/oauth-authorization-server") => {
                let mut metadata = json!({
                    "issuer": url, "authorization_endpoint": format!("{url}/authorize"),
                    "token_endpoint": format!("{url}/token"), "response_types_supported": ["code"],
                    "code_challenge_methods_supported": ["S256"],
                });
                for (name, value) in self.metadata.lock().unwrap().as_object().into_iter().flatten() {
                    metadata[name] = value.clone();
                }
                reply(StatusCode::OK, &metadata)
            }
            (&Method::POST, "/device") => reply(
                StatusCode::OK,
                &json!({"device_code": "the-device-code", "user_code": "WDJB-MJHT", "interval": 1, "expires_in": 600,
                    "verification_uri": format!("{url}/device"),
                    "verification_uri_complete": format!("{url}/device?user_code=WDJB-MJHT")}),
            ),
            (&Method::POST, "/token") => {
                let form = url::form_urlencoded::parse(&seen.body).into_owned().collect();
                self.forms.lock().unwrap().push(form);
                match self.token.lock().unwrap().take() {
                    Some((status, body)) => reply(status, &body),
                    None => reply(StatusCode::BAD_REQUEST, &json!({"error": "invalid_grant"})),
                }
            }
            _ => reply(StatusCode::NOT_FOUND, &json!({})),
        }
    }
}

/// A gate with pages, two services for `corp`, and one for `other` alone.
struct World {
    gate: Gate,
    /// The configuration's identities and routes.
    text: String,
    login: Server,
    service: Server,
    _mcp: Upstream,
}

impl World {
    async fn start() -> Self {
        Self::with("").await
    }

    async fn with(identities: &str) -> Self {
        let (login, service, mcp) = (Server::start().await, Server::start().await, Upstream::tools(1).await);
        let identity = format!(
            "  corp:\n    issuer: {login}\n    jwks_uri: {{issuer}}/jwks\n    login: {{client_id: gate-login, client_secret: login-secret}}\n\
             \x20 other:\n    issuer: http://127.0.0.1:9\n    jwks_uri: {{issuer}}/jwks\n{identities}",
            login = login.url(),
        );
        let connection = format!(
            "{{connection: {{issuer: \"{url}\", authorization_endpoint: \"{url}/authorize\", token_endpoint: \"{url}/token\", \
             device_authorization_endpoint: \"{url}/device\", \
             client_id: gate, client_secret: service-secret, scopes: [read, write]}}}}",
            url = service.url(),
        );
        let route = |name: &str, identities: &str| {
            format!(
                "  {name}:\n    path: /{name}/mcp\n    identity: {identities}\n    upstream: {}\n    credential: {connection}\n",
                mcp.url()
            )
        };
        let routes = [
            route("linear", "[corp]"),
            route("notion", "[corp, other]"),
            route("secret", "[other]"),
        ];
        let yaml = format!(
            "routes:\n{}  plain:\n    path: /plain/mcp\n    identity: [corp]\n    upstream: {}\n",
            routes.concat(),
            mcp.url()
        );
        let gate = Gate::with_setup("", Some(&identity), &yaml).await;
        let identity = identity.replace("{issuer}", gate.issuer.issuer());
        Self {
            text: format!("identity:\n{identity}{yaml}"),
            gate,
            login,
            service,
            _mcp: mcp,
        }
    }

    fn browser(&self) -> Browser<'_> {
        Browser {
            world: self,
            cookies: BTreeMap::new(),
        }
    }

    /// Somebody who has signed in.
    async fn visitor(&self, subject: &str) -> Browser<'_> {
        let mut browser = self.browser();
        let answer = browser.sign_in(subject, json!({})).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (StatusCode::SEE_OTHER, "/connect")
        );
        browser
    }

    fn id_token(&self, subject: &str, nonce: &str, change: &Value) -> String {
        let now = portcullis::clock::Clock::system().now();
        let mut claims = json!({
            "iss": self.login.url(), "sub": subject, "aud": "gate-login", "nonce": nonce, "iat": now, "exp": now + 300,
        });
        for (name, value) in change.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.gate.issuer.current_kid()});
        self.gate.issuer.sign(&header, &claims)
    }

    /// A bearer for a route.
    fn token(&self, subject: &str, route: &str) -> String {
        let now = portcullis::clock::Clock::system().now();
        self.gate.issuer.mint_claims(&json!({
            "iss": self.login.url(), "sub": subject, "aud": format!("{}/{route}/mcp", self.gate.running.url()),
            "iat": now, "exp": now + 300,
        }))
    }

    fn audit(&self) -> String {
        std::fs::read_to_string(self.gate.directory.path().join("audit.jsonl")).unwrap_or_default()
    }
}

/// A browser without script, and without mercy: it sends what it is told to.
#[derive(Clone)]
struct Browser<'a> {
    world: &'a World,
    cookies: BTreeMap<String, String>,
}

impl Browser<'_> {
    async fn send(&mut self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.world.gate.running.url()));
        if !self.cookies.is_empty() {
            let cookies: Vec<_> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request = request.header(COOKIE, cookies.join("; "));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.to_owned().into()).expect("a request");
        let answer = self.world.gate.send(request).await;
        for line in answer.headers.get_all(SET_COOKIE) {
            let pair = line.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            match value {
                "" => drop(self.cookies.remove(name)),
                value => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
            }
        }
        answer
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// A form, sent as a browser sends its own site's.
    async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let origin = self.world.gate.running.url().to_owned();
        self.post_from(path, &[("origin", &origin), ("sec-fetch-site", "same-origin")], fields)
            .await
    }

    async fn post_from(&mut self, path: &str, headers: &[(&str, &str)], fields: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let headers = [&[("content-type", "application/x-www-form-urlencoded")], headers].concat();
        self.send(Method::POST, path, &headers, &body).await
    }

    /// Begins a sign-in: what the issuer is asked.
    async fn begin(&mut self, path: &str) -> HashMap<String, String> {
        let answer = self.get(path).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", text(&answer));
        let url = Url::parse(answer.header("location")).expect("a URL");
        assert!(
            url.as_str()
                .starts_with(&format!("{}/authorize?", self.world.login.url()))
        );
        url.query_pairs().into_owned().collect()
    }

    /// Signs in; `change` are claims of the ID token.
    async fn sign_in(&mut self, subject: &str, change: Value) -> Answer {
        let asked = self.begin("/connect").await;
        let token = self.world.id_token(subject, &asked["nonce"], &change);
        self.world.login.says(200, granted(Some(&token)));
        self.get(&answered("login", &asked["state"], self.world.login.url()))
            .await
    }

    /// The token of this visit's forms.
    async fn csrf(&mut self) -> String {
        let page = self.get("/connect").await;
        assert_eq!(page.status, StatusCode::OK, "{}", text(&page));
        between(&text(&page), "name=\"csrf\" value=\"", "\"")
    }

    /// Begins a login at a service: what its authorization server is asked.
    async fn start(&mut self, route: &str) -> HashMap<String, String> {
        let csrf = self.csrf().await;
        let page = self.post("/connect/start", &[("csrf", &csrf), ("route", route)]).await;
        assert_eq!(page.status, StatusCode::OK, "{}", text(&page));
        let url = between(&text(&page), "content=\"0;url=", "\"").replace("&amp;", "&");
        Url::parse(&url).expect("a URL").query_pairs().into_owned().collect()
    }

    async fn connect(&mut self, route: &str) {
        let asked = self.start(route).await;
        self.world.service.says(200, granted(None));
        let answer = self
            .get(&answered("callback", &asked["state"], self.world.service.url()))
            .await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", text(&answer));
        assert_eq!(
            answer.header("location"),
            format!("/connect?message=connected&route={route}")
        );
    }
}

fn granted(id_token: Option<&str>) -> Value {
    let mut answer = json!({"access_token": "the-services-token", "token_type": "Bearer", "expires_in": 3600,
        "refresh_token": "the-refresh-token"});
    if let Some(token) = id_token {
        answer["id_token"] = token.into();
    }
    answer
}

/// An authorization server's answer, as it arrives at the gate.
fn answered(place: &str, state: &str, issuer: &str) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("code", "c"), ("state", state), ("iss", issuer)])
        .finish();
    format!("/connect/{place}?{query}")
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.to_vec()).expect("pages are UTF-8")
}

fn between(text: &str, before: &str, after: &str) -> String {
    let rest = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before} in {text}"))
        .1;
    rest.split_once(after).expect("an end").0.to_owned()
}

fn guarded(headers: &HeaderMap) {
    let policy = headers["content-security-policy"].to_str().unwrap();
    for part in [
        "default-src 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "style-src 'sha256-",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(headers[name], value);
    }
    assert!(!headers.contains_key("access-control-allow-origin"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_signs_in_connects_calls_and_disconnects() {
    let world = World::start().await;
    let mut ada = world.browser();
    let asked = ada.begin("/connect?route=linear").await;
    let url = world.gate.running.url();
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "gate-login"),
        ("scope", "openid"),
        ("code_challenge_method", "S256"),
        ("redirect_uri", &format!("{url}/connect/login")),
    ] {
        assert_eq!(asked[name], value);
    }
    let token = world.id_token("ada", &asked["nonce"], &json!({"email": "ada@corp.example"}));
    world.login.says(200, granted(Some(&token)));
    let answer = ada.get(&answered("login", &asked["state"], world.login.url())).await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (StatusCode::SEE_OTHER, "/connect?route=linear")
    );
    guarded(&answer.headers);
    let form = world.login.last();
    assert_eq!(form["grant_type"], "authorization_code");
    assert_eq!(form["redirect_uri"], format!("{url}/connect/login"));
    let challenge = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, form["code_verifier"].as_bytes());
    assert_eq!(
        asked["code_challenge"],
        base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, challenge)
    );
    let page = ada.get("/connect?route=linear").await;
    guarded(&page.headers);
    let html = text(&page);
    assert!(html.contains("ada@corp.example") && html.contains("linear") && html.contains("notion"));
    assert!(
        !html.contains("secret") && !html.contains(">plain<"),
        "what isn't hers isn't listed: {html}"
    );
    assert_eq!(html.matches("Not connected").count(), 2);
    // Who calls is who signed in.
    let call_url = format!("{url}/linear/mcp");
    let ask = |token: String| {
        let mut request = world.gate.post(&token, &call("echo"));
        *request.uri_mut() = call_url.parse().unwrap();
        request
    };
    let refused = world.gate.send(ask(world.token("ada", "linear"))).await;
    assert_eq!(refused.code(), Some(50_202), "{refused:?}");
    let asked = ada.start("linear").await;
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "gate"),
        ("scope", "read write"),
        ("code_challenge_method", "S256"),
        ("redirect_uri", &format!("{url}/connect/callback")),
    ] {
        assert_eq!(asked[name], value);
    }
    world.service.says(200, granted(None));
    let answer = ada
        .get(&answered("callback", &asked["state"], world.service.url()))
        .await;
    assert_eq!(answer.header("location"), "/connect?message=connected&route=linear");
    let html = text(&ada.get("/connect?message=connected&route=linear").await);
    assert!(html.contains("is connected.") && html.contains("class=\"state good\">Connected"));
    let served = world.gate.send(ask(world.token("ada", "linear"))).await;
    assert_eq!(served.status, StatusCode::OK, "{served:?}");
    // Nobody else is connected by it.
    assert_eq!(
        world.gate.send(ask(world.token("bob", "linear"))).await.code(),
        Some(50_202)
    );
    let mut bob = world.visitor("bob").await;
    assert_eq!(text(&bob.get("/connect").await).matches("Not connected").count(), 2);
    // A message is repeated where it is true alone.
    assert!(!text(&bob.get("/connect?message=connected&route=linear").await).contains("is connected."));
    let csrf = ada.csrf().await;
    let answer = ada
        .post("/connect/disconnect", &[("csrf", &csrf), ("route", "linear")])
        .await;
    assert_eq!(answer.header("location"), "/connect?message=disconnected&route=linear");
    assert!(text(&ada.get(answer.header("location")).await).contains("is disconnected."));
    assert_eq!(
        world.gate.send(ask(world.token("ada", "linear"))).await.code(),
        Some(50_202)
    );
    let out = ada.post("/connect/logout", &[("csrf", &csrf)]).await;
    assert!(text(&out).contains("You are signed out"));
    assert!(ada.cookies.is_empty(), "{:?}", ada.cookies);
    world.audit_of(out.header("x-request-id")).await;
    let audit = world.audit();
    for action in [
        "connect/login",
        "connect/start",
        "connect/callback",
        "connect/disconnect",
        "connect/logout",
    ] {
        let line = audit
            .lines()
            .find(|line| line.contains(&format!("\"method\":\"{action}\"")));
        let line: Value = serde_json::from_str(line.unwrap_or_else(|| panic!("no {action} in {audit}"))).unwrap();
        assert_eq!(
            (&line["subject"], &line["decision"]),
            (&json!("ada"), &json!("allow")),
            "{line}"
        );
    }
    for secret in ["the-services-token", "the-refresh-token", &asked["state"]] {
        assert!(!audit.contains(secret));
    }
}

/// What is sent, and what comes of it.
struct Case<'a> {
    what: &'a str,
    browser: Browser<'a>,
    method: Method,
    path: String,
    headers: Vec<(&'a str, String)>,
    body: String,
    status: u16,
    reason: &'a str,
}

fn get<'a>(what: &'a str, browser: &Browser<'a>, path: impl Into<String>, status: u16, reason: &'a str) -> Case<'a> {
    Case {
        what,
        browser: browser.clone(),
        method: Method::GET,
        path: path.into(),
        headers: Vec::new(),
        body: String::new(),
        status,
        reason,
    }
}

fn post<'a>(
    what: &'a str,
    browser: &Browser<'a>,
    path: &str,
    fields: &[(&str, &str)],
    status: u16,
    reason: &'a str,
) -> Case<'a> {
    Case {
        method: Method::POST,
        headers: vec![
            ("content-type", "application/x-www-form-urlencoded".to_owned()),
            ("origin", browser.world.gate.running.url().to_owned()),
            ("sec-fetch-site", "same-origin".to_owned()),
        ],
        body: url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish(),
        ..get(what, browser, path, status, reason)
    }
}

impl<'a> Case<'a> {
    fn header(mut self, name: &'a str, value: Option<&str>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.extend(value.map(|value| (name, value.to_owned())));
        self
    }

    /// Sends it, and sees that it is refused, as a page, and written down.
    async fn refused(mut self) {
        let headers: Vec<(&str, &str)> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let answer = self.browser.send(self.method, &self.path, &headers, &self.body).await;
        let (what, page) = (self.what, text(&answer));
        assert_eq!(answer.status.as_u16(), self.status, "{what}: {page}");
        guarded(&answer.headers);
        assert_eq!(answer.header("content-type"), "text/html; charset=utf-8", "{what}");
        assert!(page.contains(answer.header("x-request-id")), "{what}: {page}");
        assert!(page.contains("href=\"/connect\""), "{what}: {page}");
        for hostile in ["<script", "evil", "\r", "set-cookie: evil"] {
            assert!(!page.contains(hostile), "{what}: {page}");
        }
        let id = answer.header("x-request-id");
        let audit = self.browser.world.audit_of(id).await;
        assert_eq!(audit["decision"], "deny", "{what}: {audit}");
        assert_eq!(audit["reason"], self.reason, "{what}: {audit}");
    }
}

impl World {
    /// The audit line of a request; lines are written a moment after the answer.
    async fn audit_of(&self, request_id: &str) -> Value {
        for _ in 0..200 {
            let audit = self.audit();
            let line = audit.lines().find(|line| line.contains(request_id));
            if let Some(line) = line.and_then(|line| serde_json::from_str(line).ok()) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no audit line of {request_id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_door_is_shut_to_strangers_and_forgers() {
    let world = World::start().await;
    let mut ada = world.visitor("ada").await;
    let mut bob = world.visitor("bob").await;
    let nobody = world.browser();
    let (ada_form, bob_form) = (ada.csrf().await, bob.csrf().await);
    let (ada_login, bob_login) = (ada.start("linear").await, bob.start("linear").await);
    let mut again = world.visitor("ada").await;
    let again_form = again.csrf().await;
    let visit = ada.cookies.keys().next().unwrap().clone();
    let forged = |value: &str| {
        let mut browser = world.browser();
        browser.cookies.insert(visit.clone(), value.to_owned());
        browser
    };
    let changed = {
        let mut value = ada.cookies[&visit].clone();
        let last = value.pop().unwrap();
        value.push(if last == 'A' { 'B' } else { 'A' });
        forged(&value)
    };
    let mut signing_in = world.browser();
    let asked = signing_in.begin("/connect").await;
    // The cookie of one purpose is no cookie of another.
    let swapped = forged(signing_in.cookies.values().next().unwrap());
    let (login, service) = (world.login.url().to_owned(), world.service.url().to_owned());
    let good = [("csrf", ada_form.as_str()), ("route", "linear")];
    let callback = |state: &str| answered("callback", state, &service);
    let signed = |state: &str| answered("login", state, &login);
    let huge = "x".repeat(20_000);
    let mut cases = Vec::new();
    for path in ["/connect/start", "/connect/disconnect", "/connect/logout"] {
        cases.extend([
            get("a link to what only forms do", &ada, path, 405, "method"),
            post("no cookie", &nobody, path, &good, 403, "signed_out"),
            post(
                "a stranger's body",
                &nobody,
                path,
                &[("csrf", "is"), ("csrf", "not read")],
                403,
                "signed_out",
            ),
            post("a forged cookie", &forged("AAAA"), path, &good, 403, "signed_out"),
            post("a changed cookie", &changed, path, &good, 403, "signed_out"),
            post("another purpose's cookie", &swapped, path, &good, 403, "signed_out"),
            post("no token", &ada, path, &[("route", "linear")], 403, "stale_form"),
            post(
                "an empty token",
                &ada,
                path,
                &[("csrf", ""), ("route", "linear")],
                403,
                "stale_form",
            ),
            post(
                "another person's token",
                &ada,
                path,
                &[("csrf", &bob_form), ("route", "linear")],
                403,
                "stale_form",
            ),
            post(
                "another visit's token",
                &ada,
                path,
                &[("csrf", &again_form), ("route", "linear")],
                403,
                "stale_form",
            ),
            post(
                "two tokens",
                &ada,
                path,
                &[("csrf", &ada_form), ("csrf", &ada_form)],
                400,
                "malformed",
            ),
            post("another site", &ada, path, &good, 403, "foreign_form").header("sec-fetch-site", Some("cross-site")),
            post("a sibling site", &ada, path, &good, 403, "foreign_form").header("sec-fetch-site", Some("same-site")),
            post("another origin", &ada, path, &good, 403, "foreign_form")
                .header("origin", Some("https://evil.example")),
            post("an opaque origin", &ada, path, &good, 403, "foreign_form").header("origin", Some("null")),
            post(
                "an origin and no fetch metadata",
                &ada,
                path,
                &good,
                403,
                "foreign_form",
            )
            .header("sec-fetch-site", None)
            .header("origin", Some("https://evil.example")),
            post("JSON", &ada, path, &good, 400, "malformed").header("content-type", Some("application/json")),
            post("text, as forms can send", &ada, path, &good, 400, "malformed")
                .header("content-type", Some("text/plain")),
            post("no media type", &ada, path, &good, 400, "malformed").header("content-type", None),
            post(
                "a long form",
                &ada,
                path,
                &[("csrf", &ada_form), ("route", &huge)],
                413,
                "too_large",
            ),
            get("a long query", &ada, format!("{path}?{huge}"), 405, "method"),
        ]);
    }
    for path in ["/connect/start", "/connect/disconnect"] {
        for (what, route) in [
            ("no such route", "nowhere"),
            ("a route of another identity", "secret"),
            ("a route without a connection", "plain"),
            ("a hostile route", "linear\r\nset-cookie: evil=1"),
            ("markup for a route", "<script>evil</script>"),
        ] {
            cases.push(post(
                what,
                &ada,
                path,
                &[("csrf", &ada_form), ("route", route)],
                404,
                "unknown_upstream",
            ));
        }
        cases.push(post(
            "no route",
            &ada,
            path,
            &[("csrf", &ada_form)],
            404,
            "unknown_upstream",
        ));
    }
    cases.extend([
        post("a form to the list", &ada, "/connect", &good, 405, "method"),
        post(
            "a form to the sign-in's answer",
            &signing_in,
            &signed(&asked["state"]),
            &[],
            405,
            "method",
        ),
        post(
            "a form to the login's answer",
            &ada,
            &callback(&ada_login["state"]),
            &[],
            405,
            "method",
        ),
        get(
            "no such identity",
            &nobody,
            "/connect?identity=nobody",
            404,
            "unknown_identity",
        ),
        get(
            "an identity without login",
            &nobody,
            "/connect?identity=other",
            404,
            "unknown_identity",
        ),
        get(
            "two routes",
            &nobody,
            "/connect?route=linear&route=notion",
            400,
            "malformed",
        ),
        get(
            "a long query",
            &nobody,
            format!("/connect?route={huge}"),
            413,
            "too_large",
        ),
        // Sign-ins.
        get(
            "no sign-in begun",
            &nobody,
            signed(&asked["state"]),
            400,
            "foreign_sign_in",
        ),
        get("another's state", &signing_in, signed("AAAA"), 400, "foreign_sign_in"),
        get("no state", &signing_in, "/connect/login?code=c", 400, "foreign_sign_in"),
        get("nothing", &signing_in, "/connect/login", 400, "foreign_sign_in"),
        get(
            "two states",
            &signing_in,
            format!("{}&state=x", signed(&asked["state"])),
            400,
            "malformed",
        ),
        get(
            "another issuer's answer",
            &signing_in,
            answered("login", &asked["state"], "https://evil.example"),
            502,
            "sign_in_unusable",
        ),
        get(
            "an unnamed issuer",
            &signing_in,
            format!("/connect/login?code=c&state={}", asked["state"]),
            502,
            "sign_in_unusable",
        ),
        get(
            "a no",
            &signing_in,
            format!(
                "{}&error=access_denied&error_description=%3Cscript%3Eevil",
                signed(&asked["state"]).replace("code=c&", "")
            ),
            403,
            "sign_in_refused",
        ),
        get(
            "a code that is none",
            &signing_in,
            signed(&asked["state"]),
            502,
            "sign_in_unusable",
        ),
        get(
            "a long answer",
            &signing_in,
            format!("{}&code={huge}", signed(&asked["state"])),
            413,
            "too_large",
        ),
        // Logins at a service.
        get("no visit", &nobody, callback(&ada_login["state"]), 403, "signed_out"),
        get(
            "another person's state",
            &bob,
            callback(&ada_login["state"]),
            400,
            "foreign_login",
        ),
        get(
            "an attacker's link",
            &ada,
            callback(&bob_login["state"]),
            400,
            "foreign_login",
        ),
        get(
            "the same person's, of another visit",
            &again,
            callback(&ada_login["state"]),
            400,
            "foreign_login",
        ),
        get("an unknown state", &ada, callback("AAAA"), 400, "foreign_login"),
        get("no state", &ada, "/connect/callback?code=c", 400, "foreign_login"),
        get("nothing", &ada, "/connect/callback", 400, "foreign_login"),
        get("a long state", &ada, callback(&"A".repeat(2_000)), 400, "foreign_login"),
        get(
            "a long answer",
            &ada,
            format!("{}&code={huge}", callback(&ada_login["state"])),
            413,
            "too_large",
        ),
    ]);
    assert!(cases.len() > 80, "{}", cases.len());
    for case in cases {
        case.refused().await;
    }
    assert_eq!(
        world.service.asked(),
        0,
        "no code was taken to the service's authorization server"
    );
    assert_eq!(
        world.login.asked(),
        4,
        "one for each that signed in, and the code that was none"
    );
    // And ada's own login is still open.
    world.service.says(200, granted(None));
    let answer = ada.get(&callback(&ada_login["state"])).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", text(&answer));
    get("a replay", &ada, callback(&ada_login["state"]), 400, "foreign_login")
        .refused()
        .await;
    assert_eq!(world.service.asked(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_token_that_is_not_for_this_sign_in_signs_nobody_in() {
    let world = World::start().await;
    let now = portcullis::clock::Clock::system().now();
    for (what, change) in [
        ("another issuer's", json!({"iss": "https://evil.example"})),
        ("another client's", json!({"aud": "evil"})),
        ("several clients'", json!({"aud": ["gate-login", "evil"]})),
        ("another party's", json!({"azp": "evil"})),
        ("over", json!({"exp": now - 120})),
        ("another sign-in's", json!({"nonce": "evil"})),
        ("nobody's", json!({"sub": ""})),
        ("too long a name's", json!({"sub": "a".repeat(256)})),
    ] {
        let mut browser = world.browser();
        let answer = browser.sign_in("ada", change).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{what}: {}", text(&answer));
        assert!(browser.cookies.is_empty(), "{what}: {:?}", browser.cookies);
    }
    // Forged, and for another use.
    let mut browser = world.browser();
    for header in [
        json!({"alg": "none", "typ": "JWT"}),
        json!({"alg": "HS256", "typ": "JWT"}),
        json!({"alg": "ES256", "typ": "at+jwt", "kid": world.gate.issuer.current_kid()}),
        json!({"alg": "ES256", "typ": "JWT", "kid": world.gate.issuer.current_kid(), "crit": ["b64"]}),
        json!({"alg": "ES256", "typ": "JWT", "kid": "unknown"}),
    ] {
        let asked = browser.begin("/connect").await;
        let claims = json!({"iss": world.login.url(), "sub": "ada", "aud": "gate-login", "nonce": asked["nonce"],
            "iat": now, "exp": now + 300});
        let token = world.gate.issuer.sign(&header, &claims);
        world.login.says(200, granted(Some(&token)));
        let answer = browser
            .get(&answered("login", &asked["state"], world.login.url()))
            .await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{header}: {}", text(&answer));
    }
    let asked = browser.begin("/connect").await;
    world.login.says(200, granted(None));
    let answer = browser
        .get(&answered("login", &asked["state"], world.login.url()))
        .await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "without an ID token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_is_not_the_users_keeps_the_login_and_a_no_ends_it() {
    let world = World::start().await;
    let mut ada = world.visitor("ada").await;
    let asked = ada.start("linear").await;
    let callback = answered("callback", &asked["state"], world.service.url());
    let evil = answered("callback", &asked["state"], "https://evil.example");
    assert_eq!(ada.get(&evil).await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(world.service.asked(), 0, "a code of another issuer goes nowhere");
    world.service.says(503, json!({}));
    let answer = ada.get(&callback).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", text(&answer));
    world.service.says(200, granted(None));
    assert_eq!(ada.get(&callback).await.status, StatusCode::SEE_OTHER);
    let asked = ada.start("notion").await;
    let no = format!(
        "/connect/callback?error=access_denied&state={}&iss={}",
        asked["state"],
        world.service.url()
    );
    let answer = ada.get(&no).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(text(&answer).contains("was not connected"));
    world.service.says(200, granted(None));
    let answer = ada
        .get(&answered("callback", &asked["state"], world.service.url()))
        .await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "a no is the end of it");
    // A newer login takes the place of an older one.
    let (older, newer) = (ada.start("notion").await, ada.start("notion").await);
    world.service.says(200, granted(None));
    let answer = ada
        .get(&answered("callback", &older["state"], world.service.url()))
        .await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let answer = ada
        .get(&answered("callback", &newer["state"], world.service.url()))
        .await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_answers_at_once_one_connects() {
    let world = World::start().await;
    let mut ada = world.visitor("ada").await;
    ada.connect("notion").await;
    let asked = ada.start("linear").await;
    world.service.says(200, granted(None));
    let callback = answered("callback", &asked["state"], world.service.url());
    let mut browsers: Vec<_> = (0..8).map(|_| ada.clone()).collect();
    let answers = browsers.iter_mut().map(|browser| browser.get(&callback));
    let answers = futures_util::future::join_all(answers).await;
    let connected = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::SEE_OTHER)
        .count();
    assert_eq!(
        (connected, world.service.asked()),
        (1, 2),
        "one code was redeemed, besides the one before"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_identities_are_chosen_from_and_a_service_narrows_them() {
    let second = "  staff:\n    issuer: http://127.0.0.1:9/staff\n    jwks_uri: {issuer}/jwks\n    login: {client_id: gate, client_auth: none}\n";
    let world = World::with(second).await;
    let mut browser = world.browser();
    let page = text(&browser.get("/connect").await);
    assert!(
        page.contains("/connect?identity=corp\"") && page.contains("/connect?identity=staff\""),
        "{page}"
    );
    assert!(!page.contains("identity=other"));
    // Linear takes corp alone.
    browser.begin("/connect?route=linear").await;
    browser.begin("/connect?identity=corp").await;
    let page = text(&browser.get("/connect?route=secret").await);
    assert!(page.contains("There is no way to sign in"), "{page}");
    // An unknown service is nobody's reason.
    assert!(text(&browser.get("/connect?route=%3Cscript%3E").await).contains("identity=corp"));
    let mut ada = world.visitor_of("ada").await;
    let page = text(&ada.get("/connect?route=secret").await);
    assert!(page.contains("not open to the login that you used"), "{page}");
}

impl World {
    /// Somebody who signed in with corp where there is a choice.
    async fn visitor_of(&self, subject: &str) -> Browser<'_> {
        let mut browser = self.browser();
        let asked = browser.begin("/connect?identity=corp").await;
        let token = self.id_token(subject, &asked["nonce"], &Value::Null);
        self.login.says(200, granted(Some(&token)));
        let answer = browser.get(&answered("login", &asked["state"], self.login.url())).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER);
        browser
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_connection_there_are_no_pages() {
    let upstream = Upstream::tools(1).await;
    let gate = Gate::with_route(&upstream, "").await;
    for path in [
        "/connect",
        "/connect/login",
        "/connect/start",
        "/connect/callback",
        "/connect/client.json",
    ] {
        let request = Request::get(format!("{}{path}", gate.running.url()))
            .body(String::new().into())
            .unwrap();
        let answer = gate.send(request).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_ne!(answer.header("content-type"), "text/html; charset=utf-8");
    }
    // And elsewhere nothing is theirs.
    let world = World::start().await;
    let mut browser = world.browser();
    for path in [
        "/connect/other",
        "/connectx",
        "/CONNECT",
        "/connect/start/",
        "//connect",
    ] {
        assert_eq!(browser.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let (_, routes) = world.text.split_once("routes:").expect("routes");
    let taken = format!("routes:{}", routes.replace("path: /plain/mcp", "path: /connect"));
    let error = world.gate.reload(&taken).expect_err("the path is taken").to_string();
    assert!(error.contains("routes.plain.path"), "{error}");
    let mut head = world.browser();
    assert_eq!(
        head.send(Method::HEAD, "/connect", &[], "").await.status,
        StatusCode::SEE_OTHER
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_are_called_stays_text() {
    let world = World::start().await;
    let mut mallory = world.browser();
    let name = "<script>alert(1)</script>\" onfocus=\"x\u{202e}evil";
    let answer = mallory.sign_in("mallory", json!({"email": name})).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    let page = text(&mallory.get("/connect").await);
    assert!(
        !page.contains("<script") && !page.contains("\" onfocus") && !page.contains('\u{202e}'),
        "{page}"
    );
    assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
}
