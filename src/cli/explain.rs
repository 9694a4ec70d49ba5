//! `portcullis explain`: may this caller do that, and why?
//!
//! 1. The decision is the real one: the same authentication, the same policy and the same answer as for a request. What
//!    is printed besides is what they told on the way.
//! 2. What a request would meet besides is not asked: its session, its limits, the upstream.
//! 3. Exit codes: 0 allowed, 1 refused, 2 misused or no good configuration.

use std::fmt::Write as _;
use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use http::header::WWW_AUTHENTICATE;
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::credential::{self, Deciders};
use crate::authn::inspect::{Credential, Standing};
use crate::authn::{Principal, strict_json};
use crate::edge::rejection::Refused;
use crate::edge::{CallNotes, Journey, Rejection, rescue};
use crate::listener::ConnectionInfo;
use crate::mcp::{self, Era, Payload};
use crate::policy::{Decision, Fit, RuleName, RuleSource, lacks};
use crate::route::Route;

/// Say how the gate decides about a call, and why
#[derive(Debug, Args)]
pub struct Explain {
    /// The configuration file
    #[arg(long, short, default_value = "portcullis.yaml")]
    config: PathBuf,
    /// The route's name
    #[arg(long)]
    route: String,
    /// A tool that is called
    #[arg(long, group = "asked")]
    tool: Option<String>,
    /// A resource that is read, by its URI
    #[arg(long, group = "asked")]
    resource: Option<String>,
    /// A prompt that is got
    #[arg(long, group = "asked")]
    prompt: Option<String>,
    /// Any other method, such as tools/list; without any of these four it is a stream that is opened
    #[arg(long, group = "asked")]
    method: Option<String>,
    /// The arguments of the tool or prompt, or the params of the method: a JSON object
    #[arg(long, value_parser = object, requires = "asked")]
    args: Option<Object>,
    /// A file with the caller's token; without a caller it is nobody
    #[arg(long, group = "caller")]
    token_file: Option<PathBuf>,
    /// Claims as if they were verified, a JSON object; absent iss, aud and exp are filled in
    #[arg(long, value_parser = object, group = "caller")]
    claims: Option<Object>,
    /// A file with the caller's API key
    #[arg(long, group = "caller")]
    api_key_file: Option<PathBuf>,
    /// A PEM file with the caller's certificate, and those between it and its authority; no key
    #[arg(long, group = "caller")]
    certificate_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

type Object = Map<String, Value>;

/// What is printed.
#[derive(Serialize)]
struct Explanation {
    route: String,
    identities: Vec<Standing>,
    /// `None` when the caller was not let in.
    caller: Option<Caller>,
    /// Claims that were filled in.
    assumed: Vec<&'static str>,
    /// The token is bound, and a proof of possession was taken for granted.
    proof_assumed: bool,
    roles: Vec<RoleHeld>,
    required_scopes: Vec<String>,
    missing_scopes: Vec<String>,
    rules: Vec<RuleLooked>,
    decision: Decided,
    /// By what the client speaks.
    answers: Vec<Answer>,
}

#[derive(Serialize)]
struct Caller {
    identity: Option<Arc<str>>,
    subject: String,
    client: Option<String>,
    scopes: Vec<String>,
}

#[derive(Serialize)]
struct RoleHeld {
    role: String,
    held: bool,
    /// The first line that matches: `roles.NAME[INDEX]`, and how it reads.
    by: Option<String>,
}

#[derive(Serialize)]
struct RuleLooked {
    rule: String,
    says: String,
    outcome: String,
    matches: bool,
    decides: bool,
}

#[derive(Serialize)]
struct Decided {
    allowed: bool,
    reason: &'static str,
    rule: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    client: &'static str,
    status: u16,
    code: Option<i64>,
    message: Option<String>,
    challenge: Option<String>,
}

impl Explain {
    /// Prints the trace.
    pub async fn run(self) -> ExitCode {
        let explanation = match self.explain().await {
            Ok(explanation) => explanation,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        };
        let text = if self.json {
            let json = serde_json::to_value(&explanation).expect("it is plain data");
            format!("{json:#}\n")
        } else {
            explanation.text()
        };
        // A reader that has seen enough takes nothing from the answer in the exit code.
        let _ = stdout().write_all(text.as_bytes());
        if explanation.decision.allowed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    async fn explain(&self) -> Result<Explanation, String> {
        let deciders = Deciders::load(&self.config)?;
        let route = deciders.route(&self.route)?;
        let credential = self.credential()?;
        let payload = self.payload()?;
        let (weighed, assumed) = deciders.authenticator.judge(&route.auth, &credential).await;
        let vouched = weighed.outcome.as_ref().ok().and_then(|caller| caller.identity.clone());
        let identities = deciders
            .authenticator
            .standings(&route.auth, &credential, vouched.as_deref())
            .await;
        let mut explanation = Explanation {
            route: self.route.clone(),
            identities,
            caller: None,
            assumed,
            proof_assumed: weighed.bound,
            roles: Vec::new(),
            required_scopes: Vec::new(),
            missing_scopes: Vec::new(),
            rules: Vec::new(),
            decision: Decided {
                allowed: false,
                reason: "",
                rule: None,
            },
            answers: Vec::new(),
        };
        match weighed.outcome {
            Ok(principal) => {
                explanation
                    .weigh(&deciders, route, &principal, payload.as_ref(), self.list())
                    .await
            }
            Err(error) => {
                explanation.decision.reason = error.reason();
                explanation.answers = answers(route, None, None, || Rejection::Authn(error.clone())).await;
            }
        }
        Ok(explanation)
    }

    fn credential(&self) -> Result<Credential, String> {
        let token = self.token_file.as_ref().or(self.api_key_file.as_ref());
        Ok(match (token, &self.claims, &self.certificate_file) {
            (Some(file), ..) => Credential::Token(credential::token(Some(file))?),
            (_, Some(claims), _) => Credential::Claims(claims.clone()),
            (.., Some(file)) => Credential::Certificate(Box::new(credential::certificate(file)?)),
            _ => Credential::Nothing,
        })
    }

    /// The message that is asked about, as a client would send it.
    fn payload(&self) -> Result<Option<Payload>, String> {
        let args = self.args.clone();
        let named = |key: &str, name: &str| {
            let mut params = Object::new();
            params.insert(key.to_owned(), name.into());
            if let Some(args) = &args {
                params.insert("arguments".to_owned(), args.clone().into());
            }
            params
        };
        let (method, params) = match (&self.tool, &self.resource, &self.prompt, &self.method) {
            (Some(tool), ..) => ("tools/call", named("name", tool)),
            (_, Some(_), ..) if args.is_some() => return Err("a resource takes no --args".to_owned()),
            (_, Some(uri), ..) => ("resources/read", named("uri", uri)),
            (_, _, Some(prompt), _) => ("prompts/get", named("name", prompt)),
            (_, _, _, Some(method)) => (&**method, args.clone().unwrap_or_default()),
            _ => return Ok(None),
        };
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let payload = mcp::parse(&Bytes::from(message)).map_err(|error| error.to_string())?;
        Ok(Some(payload))
    }

    /// The list of rules that is asked.
    fn list(&self) -> Option<&'static str> {
        let given = [
            (&self.tool, "tools"),
            (&self.resource, "resources"),
            (&self.prompt, "prompts"),
        ];
        given.into_iter().find_map(|(name, list)| name.as_ref().map(|_| list))
    }
}

impl Explanation {
    /// Has policy decide about a caller who was let in.
    async fn weigh(
        &mut self,
        deciders: &Deciders,
        route: &Arc<Route>,
        principal: &Arc<Principal>,
        payload: Option<&Payload>,
        list: Option<&'static str>,
    ) {
        let policy = &route.config.policy;
        let mut heard: Vec<(String, RuleName, Fit)> = Vec::new();
        let decision = match payload {
            None => match policy.permit_stream(principal) {
                Ok(_) => Decision::Allowed(None),
                Err(refused) => refused,
            },
            Some(payload) => {
                let now = deciders.clock.now();
                let hear = |name: &str, rule, fit| heard.push((name.to_owned(), rule, fit));
                let verdict = policy.authorize_aloud(principal, route.name(), payload, now, hear);
                verdict.decisions.into_iter().next().expect("one message, one decision")
            }
        };
        self.caller = Some(Caller {
            identity: principal.identity.clone(),
            subject: principal.subject.clone(),
            client: principal.client.clone(),
            scopes: principal.scopes.clone(),
        });
        let roles = &deciders.config.roles;
        self.roles = roles
            .names()
            .iter()
            .zip(roles.grounds(principal))
            .enumerate()
            .map(|(role, (name, line))| RoleHeld {
                role: name.to_string(),
                held: line.is_some(),
                by: line.map(|line| format!("roles.{name}[{line}] {}", roles.sources(role)[line])),
            })
            .collect();
        self.required_scopes = match (&decision, decision.rule()) {
            (Decision::Allowed(_), Some(rule)) => {
                let by_rule = &policy.sources(rule.list).unwrap_or_default()[rule.index].scopes;
                policy.required_scopes().iter().chain(by_rule).cloned().collect()
            }
            _ => decision.required_scopes().unwrap_or(policy.required_scopes()).to_vec(),
        };
        self.missing_scopes = lacks(&self.required_scopes, principal).cloned().collect();
        let mut lists: Vec<&'static str> = heard.iter().map(|(_, rule, _)| rule.list).chain(list).collect();
        lists.sort_unstable();
        lists.dedup();
        for list in lists {
            for (index, source) in policy.sources(list).unwrap_or_default().iter().enumerate() {
                let rule = RuleName { list, index };
                let outcomes: Vec<_> = heard.iter().filter(|(_, heard, _)| *heard == rule).collect();
                self.rules.push(RuleLooked {
                    rule: rule.to_string(),
                    says: says(source),
                    outcome: match &*outcomes {
                        [] => "not looked at: it was decided before".to_owned(),
                        [(_, _, fit)] => why(*fit, source, principal, policy.required_scopes()),
                        several => {
                            let each = several.iter().map(|(name, _, fit)| {
                                let why = why(*fit, source, principal, policy.required_scopes());
                                format!("{name:?}: {why}")
                            });
                            each.collect::<Vec<_>>().join("; ")
                        }
                    },
                    matches: outcomes.iter().any(|(_, _, fit)| *fit == Fit::Matches),
                    decides: decision.rule() == Some(rule),
                });
            }
        }
        self.decision = Decided {
            allowed: decision.is_allowed(),
            reason: decision.reason(),
            rule: decision.rule().map(|rule| rule.to_string()),
        };
        if !decision.is_allowed() {
            let id = payload.and_then(|payload| payload.messages()[0].id.clone());
            let refused = || {
                Rejection::Forbidden(Refused {
                    members: vec![(id.clone(), decision.clone())],
                })
            };
            self.answers = answers(route, Some(principal), payload, refused).await;
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("a String takes any text");
        line(format_args!("route {}", self.route));
        line(format_args!("\nidentities"));
        for Standing { identity, vouches, why } in &self.identities {
            line(format_args!("  {} {identity}: {why}", mark(*vouches)));
        }
        match &self.caller {
            None => line(format_args!("caller: not let in")),
            Some(Caller { identity: None, .. }) => line(format_args!("caller: nobody, as the route is anonymous")),
            Some(caller) => {
                let client = caller
                    .client
                    .as_ref()
                    .map(|client| format!(" through client {client:?}"));
                let client = client.unwrap_or_default();
                line(format_args!(
                    "caller: {:?}{client}, scopes {:?}",
                    caller.subject, caller.scopes
                ));
            }
        }
        if !self.assumed.is_empty() {
            line(format_args!(
                "  filled in, as the claims lack them: {}",
                self.assumed.join(", ")
            ));
        }
        if self.proof_assumed {
            line(format_args!(
                "  the token is bound: this is for a sender who proves possession"
            ));
        }
        if self.caller.is_some() {
            line(format_args!("\nroles"));
            for RoleHeld { role, by, .. } in &self.roles {
                match by {
                    Some(by) => line(format_args!("  + {role}: by {by}")),
                    None => line(format_args!("  - {role}: none of its lines matches")),
                }
            }
            let missing = match &*self.missing_scopes {
                [] => "none".to_owned(),
                missing => missing.join(" "),
            };
            line(format_args!(
                "\nscopes required: {}; missing: {missing}",
                match &*self.required_scopes {
                    [] => "none".to_owned(),
                    required => required.join(" "),
                }
            ));
        }
        if !self.rules.is_empty() {
            line(format_args!("\nrules"));
        }
        for rule in &self.rules {
            let decides = if rule.decides { "  <- decides" } else { "" };
            let (
                mark,
                RuleLooked {
                    rule, says, outcome, ..
                },
            ) = (mark(rule.matches), rule);
            line(format_args!("  {mark} {rule} {says}: {outcome}{decides}"));
        }
        let verdict = if self.decision.allowed { "allowed" } else { "refused" };
        let rule = self
            .decision
            .rule
            .as_ref()
            .map(|rule| format!(", by {rule}"))
            .unwrap_or_default();
        line(format_args!("\ndecision: {verdict} ({}{rule})", self.decision.reason));
        if self.decision.allowed {
            line(format_args!("client gets: the upstream's answer"));
        }
        for answer in &self.answers {
            let code = answer.code.map(|code| format!(", code {code}")).unwrap_or_default();
            let message = answer
                .message
                .as_ref()
                .map(|said| format!(": {said}"))
                .unwrap_or_default();
            line(format_args!(
                "client gets ({}): {}{code}{message}",
                answer.client, answer.status
            ));
            if let Some(challenge) = &answer.challenge {
                line(format_args!("  WWW-Authenticate: {challenge}"));
            }
        }
        text
    }
}

fn mark(good: bool) -> char {
    if good { '+' } else { '-' }
}

fn object(text: &str) -> Result<Object, &'static str> {
    strict_json::object(text.as_bytes()).ok_or("not a JSON object, or a key stands twice in it")
}

fn says(source: &RuleSource) -> String {
    let mut text = match (&*source.allow, &*source.deny) {
        (allow, []) => format!("allow {}", allow.join(", ")),
        (_, deny) => format!("deny {}", deny.join(", ")),
    };
    for (key, values) in [("to", &source.to), ("scopes", &source.scopes)] {
        if !values.is_empty() {
            text.push_str(&format!("; {key} {}", values.join(", ")));
        }
    }
    if let Some(when) = &source.when {
        text.push_str(&format!("; when {when}"));
    }
    text
}

fn why(fit: Fit, source: &RuleSource, principal: &Principal, needed: &[String]) -> String {
    match fit {
        Fit::Matches => "matches".to_owned(),
        Fit::OtherName => "no pattern matches".to_owned(),
        Fit::OtherRole => format!("the caller has none of the roles {}", source.to.join(", ")),
        Fit::When => "the condition is false".to_owned(),
        Fit::Undecided => "the condition can't be decided".to_owned(),
        Fit::LacksScopes => {
            let needed = if source.deny.is_empty() { needed } else { &[] };
            let missing: Vec<&str> = lacks(&source.scopes, principal)
                .chain(lacks(needed, principal))
                .map(String::as_str)
                .collect();
            format!("the caller lacks the scopes {}", missing.join(" "))
        }
    }
}

/// What clients of each era get, once where it is the same.
async fn answers(
    route: &Arc<Route>,
    principal: Option<&Arc<Principal>>,
    payload: Option<&Payload>,
    rejection: impl Fn() -> Rejection,
) -> Vec<Answer> {
    let modern = answer(route, principal, payload, &rejection(), Era::Modern).await;
    let older = answer(route, principal, payload, &rejection(), Era::Legacy).await;
    if modern.status == older.status && modern.code == older.code {
        return vec![Answer {
            client: "any revision",
            ..modern
        }];
    }
    let client = "2025-11-25 and before";
    vec![modern, Answer { client, ..older }]
}

async fn answer(
    route: &Arc<Route>,
    principal: Option<&Arc<Principal>>,
    payload: Option<&Payload>,
    rejection: &Rejection,
    era: Era,
) -> Answer {
    let journey = Journey::begin(ConnectionInfo {
        peer: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: false,
        certificate: None,
    });
    let _ = journey.route.set(route.clone());
    if let Some(principal) = principal {
        let _ = journey.principal.set(principal.clone());
    }
    if let Some(payload) = payload.filter(|_| principal.is_some()) {
        let _ = journey.call.set(CallNotes {
            era,
            payload: payload.clone(),
            consent: None,
            stream: None,
        });
    }
    let (head, body) = rescue::answer(rejection, &journey).into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = |value: &Value| value.as_str().map(str::to_owned);
    let challenges = head.headers.get_all(WWW_AUTHENTICATE).iter();
    let challenges: Vec<&str> = challenges.filter_map(|challenge| challenge.to_str().ok()).collect();
    Answer {
        client: "2026-07-28",
        status: head.status.as_u16(),
        code: body["error"]["code"].as_i64(),
        message: said(&body["error"]["message"]).or_else(|| said(&body["result"]["content"][0]["text"])),
        challenge: (!challenges.is_empty()).then(|| challenges.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use proptest::prelude::*;

    use super::*;
    use crate::authn::Sender;
    use crate::config::SealKey;
    use crate::session::Sealer;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// What a request with this token would be told: the reason of authentication, else of policy.
    async fn really(deciders: &Deciders, token: &str, tool: &str, args: &Option<Object>) -> (bool, &'static str) {
        let route = &deciders.routes[0];
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let sealer = Sealer::new(&[SealKey(zeroize::Zeroizing::new([7; 32]))]);
        let sender = Sender {
            method: &Method::POST,
            target: &route.resource,
            certificate: None,
            sealer: &sealer,
        };
        let caller = match deciders
            .authenticator
            .authenticate(&route.auth, &headers, &sender)
            .await
        {
            Ok(caller) => caller.principal,
            Err(error) => return (false, error.reason()),
        };
        let mut message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}});
        if let Some(args) = args {
            message["params"]["arguments"] = args.clone().into();
        }
        let payload = mcp::parse(&message.to_string().into()).unwrap();
        let policy = &route.config.policy;
        let verdict = policy.authorize(&caller, route.name(), &payload, deciders.clock.now());
        (verdict.permit.is_some(), verdict.decisions[0].reason())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_explained_is_what_is_decided(
            rules in prop::collection::vec((
                any::<bool>(),
                prop::sample::select(vec!["get_*", "put_*", "*", "get_a", "put_b"]),
                prop::option::of(prop::sample::select(vec!["reader", "editor"])),
                prop::option::of(prop::sample::select(vec!["p", "q"])),
                prop::option::of(prop::sample::select(vec!["args.id > 1", "principal.subject == 'ada'"])),
            ), 0..5),
            needed in prop::option::of(Just("base")),
            scopes in prop::sample::subsequence(vec!["base", "read", "p", "q"], 0..=4),
            (editor, wrong) in (any::<bool>(), prop_oneof![
                6 => Just(None),
                1 => prop::sample::select(vec!["iss", "aud", "exp", "sub", "cnf"]).prop_map(Some),
            ]),
            (tool, id) in (prop::sample::select(vec!["get_a", "put_b", "drop"]), prop::option::of(0..4)),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let rules: Vec<Value> = rules.iter().map(|(deny, glob, to, scope, when)| {
                let mut rule = Object::new();
                rule.insert(if *deny { "deny" } else { "allow" }.to_owned(), json!([glob]));
                to.map(|to| rule.insert("to".to_owned(), json!([to])));
                scope.map(|scope| rule.insert("scopes".to_owned(), json!([scope])));
                when.map(|when| rule.insert("when".to_owned(), when.into()));
                rule.into()
            }).collect();
            let config = json!({
                "listen": {"address": "127.0.0.1:0", "public_url": "http://127.0.0.1:1"},
                "identity": {"corp": {"issuer": "https://login.example.com", "shared_secret": SECRET}},
                "roles": {"reader": ["scope:read"], "editor": ["role:editor"]},
                "routes": {"notes": {
                    "path": "/notes/mcp", "upstream": "http://127.0.0.1:1/mcp", "identity": ["corp"],
                    "scopes": needed.iter().collect::<Vec<_>>(), "tools": {"rules": rules},
                }},
            });
            let file = directory.path().join("gate.yaml");
            std::fs::write(&file, config.to_string()).unwrap();
            // Some rules can never hold, which the configuration refuses.
            let Ok(deciders) = Deciders::load(&file) else { return Ok(()) };
            let mut claims = json!({
                "iss": "https://login.example.com", "aud": "http://127.0.0.1:1/notes/mcp", "sub": "ada",
                "exp": deciders.clock.now() + 600, "scope": scopes.join(" "),
                "roles": if editor { vec!["editor"] } else { vec![] },
            });
            match wrong {
                Some("exp") => claims["exp"] = json!(1),
                Some("sub") => claims["sub"] = json!(""),
                Some("cnf") => claims["cnf"] = json!({"kid": "x"}),
                Some(name) => claims[name] = json!("https://other.example"),
                None => {}
            }
            let key = EncodingKey::from_secret(SECRET.as_bytes());
            let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
            let token_file = directory.path().join("token");
            std::fs::write(&token_file, &token).unwrap();
            let args = id.map(|id| object(&json!({"id": id}).to_string()).unwrap());
            let explain = |token_file, claims| Explain {
                config: file.clone(),
                route: "notes".to_owned(),
                tool: Some(tool.to_owned()),
                resource: None,
                prompt: None,
                method: None,
                args: args.clone(),
                token_file,
                claims,
                api_key_file: None,
                certificate_file: None,
                json: false,
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let real = really(&deciders, &token, tool, &args).await;
                let claims = claims.as_object().cloned();
                for explain in [explain(Some(token_file.clone()), None), explain(None, claims)] {
                    let told = explain.explain().await.unwrap();
                    prop_assert_eq!((told.decision.allowed, told.decision.reason), real);
                    prop_assert_eq!(told.answers.is_empty(), real.0);
                    let decides: Vec<_> = told.rules.iter().filter(|rule| rule.decides).collect();
                    prop_assert_eq!(decides.first().map(|rule| rule.rule.clone()), told.decision.rule.clone());
                    let by_match = matches!(told.decision.reason, "rule" | "deny_rule");
                    prop_assert!(decides.iter().all(|rule| rule.matches == by_match), "{}", told.text());
                }
                Ok(())
            })?;
        }
    }
}
