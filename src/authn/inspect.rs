//! What each check makes of a token, for operators: nothing stops at the first failure.
//!
//! 1. The checks are the functions that let callers in (`verify`), asked one by one. The last word on a token is
//!    the real decision's ([`Authenticator::weigh`]), not a sum of what is told here.
//! 2. The token and its signature are never told. What is told of it is quoted: it may be hostile to a terminal.
//! 3. A proof of possession can't be shown to a command: a bound token is weighed as if its sender had proven it, and
//!    that is said.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use serde::Serialize;
use serde_json::{Map, Value};

use super::verify::{self, Binding, Parts, Shape, Token};
use super::{
    Authenticator, AuthnError, Means, Principal, RouteAuth, Sender, TokenCache, TokenFault, Voucher, claims, error,
    signed, vouches,
};
use crate::clock::UnixSeconds;
use crate::config::{Dpop, Identity, SealKey};
use crate::listener::ClientCertificate;
use crate::secret::Secret;
use crate::session::Sealer;

/// Seconds that claims without `exp` are taken to last.
const ASSUMED_LIFE: u64 = 3600;

/// What one check says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub check: &'static str,
    pub verdict: Verdict,
    pub detail: String,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// It could not be asked, because of what failed before it.
    Skipped,
}

/// What an identity has to do with a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    pub identity: Arc<str>,
    pub vouches: bool,
    pub why: String,
}

/// The real decision over a token.
pub struct Weighed {
    pub outcome: Result<Arc<Principal>, AuthnError>,
    /// It is bound, and its sender is taken to have proven possession.
    pub bound: bool,
}

/// What a caller comes with.
pub enum Credential {
    Nothing,
    Token(Secret),
    /// Claims as if an identity had vouched for them.
    Claims(Map<String, Value>),
    /// What a connection began with, its key taken for proven.
    Certificate(Box<ClientCertificate>),
}

/// Checks as they are made.
#[derive(Default)]
struct Report(Vec<Checked>);

impl Report {
    fn say(&mut self, check: &'static str, verdict: Verdict, detail: impl Into<String>) {
        let detail = detail.into();
        self.0.push(Checked { check, verdict, detail });
    }

    fn judge<T>(&mut self, check: &'static str, result: Result<T, TokenFault>, good: impl Into<String>, bad: &str) {
        match result {
            Ok(_) => self.say(check, Verdict::Pass, good),
            Err(_) => self.say(check, Verdict::Fail, bad),
        }
    }

    fn skip(&mut self, checks: &[&'static str], why: &str) {
        for check in checks {
            self.say(check, Verdict::Skipped, why);
        }
    }

    /// What the header says by itself.
    fn header(&mut self, header: &Map<String, Value>) {
        let said = shown(header.get("typ"));
        self.judge(
            "typ",
            verify::kind(header),
            &*said,
            &format!("{said} is no access token's"),
        );
        let said = shown(header.get("alg"));
        self.judge(
            "alg",
            verify::algorithm(header),
            &*said,
            &format!("{said} is no algorithm"),
        );
        let crit = "names extensions, and none is understood";
        self.judge("crit", verify::critical(header), "absent", crit);
    }

    /// What the claims say of time and of what the token is bound to.
    fn claims(&mut self, claims: &Map<String, Value>, now: UnixSeconds) {
        match verify::expires(claims) {
            Err(_) => self.say("exp", Verdict::Fail, "missing, or no time"),
            Ok(end) => {
                let end_text = error::rfc3339(end).unwrap_or_else(|| end.to_string());
                let over = format!("was over at {end_text}");
                self.judge("exp", verify::unexpired(end, now), format!("until {end_text}"), &over);
            }
        }
        let begun = verify::not_before(claims).and_then(|time| verify::begun(time, now));
        self.judge("nbf", begun, "not in the future", "in the future, or no time");
        let issued = verify::issued(claims, now);
        self.judge("iat", issued, "not in the future", "in the future, or no time");
        match Binding::read(claims.get("cnf")) {
            Err(_) => self.say("cnf", Verdict::Fail, "binds to what is not understood here"),
            Ok(binding) => {
                let detail = match (binding.key.is_some(), binding.certificate.is_some()) {
                    (false, false) => "absent: whoever has the token may use it",
                    (true, false) => "bound to a key: its sender must send a DPoP proof",
                    (false, true) => "bound to a client certificate: its sender must present that",
                    (true, true) => "bound to a key and to a client certificate: its sender must show both",
                };
                self.say("cnf", Verdict::Pass, detail);
            }
        }
    }

    /// What an identity makes of the claims.
    fn mapping(&mut self, identity: &Identity, claims: &Map<String, Value>) {
        match verify::is_access_token(claims, identity.id_tokens) {
            true => self.say(
                "kind",
                Verdict::Pass,
                "nothing in its claims says that it is no access token",
            ),
            false => self.say("kind", Verdict::Fail, "its claims say that it is no access token"),
        }
        match claims::has_required(identity, claims) {
            true => self.say(
                "required",
                Verdict::Pass,
                "every claim that the identity requires is there",
            ),
            false => self.say(
                "required",
                Verdict::Fail,
                "a claim that the identity requires is not there",
            ),
        }
        match claims::principal(identity, claims.clone(), 0) {
            None => {
                let wanted = format!("none of {} holds a name", identity.claims.subject.join(", "));
                self.say("subject", Verdict::Fail, wanted);
                self.skip(&["scopes", "roles"], "there is no subject");
            }
            Some(principal) => {
                self.say("subject", Verdict::Pass, format!("{:?}", principal.subject));
                self.say("scopes", Verdict::Pass, format!("{:?}", principal.scopes));
                let roles = format!("{:?}, groups {:?}", principal.roles, principal.groups);
                self.say("roles", Verdict::Pass, roles);
            }
        }
    }
}

/// Takes a token apart without asking anybody: what can be told of it, and its header and claims if it is a JWT. Nothing
/// is verified.
pub fn decode(token: &str, now: UnixSeconds) -> (Vec<Checked>, Option<[Map<String, Value>; 2]>) {
    let mut report = Report::default();
    let Ok(parts) = Parts::split(token) else {
        report.say("structure", Verdict::Fail, "not three base64url parts of JSON objects");
        return (report.0, None);
    };
    report.say("structure", Verdict::Pass, "a JWT");
    report.header(&parts.header);
    report.claims(&parts.claims, now);
    (report.0, Some([parts.header, parts.claims]))
}

impl Authenticator {
    /// The real decision over a token at a route.
    pub async fn weigh(&self, route: &RouteAuth, token: &Secret) -> Weighed {
        let mut headers = HeaderMap::new();
        let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", token.expose())) else {
            return Weighed {
                outcome: Err(AuthnError::MissingToken { malformed: true }),
                bound: false,
            };
        };
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        match self.came(route, &headers, None).await {
            // Without a proof that is all that can be said; with one, this is what remains to be decided.
            Err(AuthnError::InvalidToken {
                reason: TokenFault::Bound,
            }) => Weighed {
                outcome: self.reconsider(route, Some(token), None).await,
                bound: true,
            },
            outcome => Weighed { outcome, bound: false },
        }
    }

    /// The real decision over a caller who shows no proof.
    async fn came(
        &self,
        route: &RouteAuth,
        headers: &HeaderMap,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Arc<Principal>, AuthnError> {
        // It seals nonces, which are for those who send proofs.
        let sealer = Sealer::new(&[SealKey(zeroize::Zeroizing::new([0; 32]))]);
        let sender = Sender {
            method: &Method::POST,
            target: &route.resource,
            certificate,
            sealer: &sealer,
        };
        let caller = self.authenticate(route, headers, &sender).await;
        caller.map(|caller| caller.principal)
    }

    /// The principal that a caller becomes at a route; whether a proof of possession was taken for granted; and which of
    /// `iss`, `aud` and `exp` were filled in because the given claims don't have them.
    pub async fn judge(&self, route: &RouteAuth, credential: &Credential) -> (Weighed, Vec<&'static str>) {
        match credential {
            Credential::Token(token) => (self.weigh(route, token).await, Vec::new()),
            Credential::Nothing | Credential::Certificate(_) => {
                let certificate = match credential {
                    Credential::Certificate(certificate) => Some(&**certificate),
                    _ => None,
                };
                let outcome = self.came(route, &HeaderMap::new(), certificate).await;
                (Weighed { outcome, bound: false }, Vec::new())
            }
            Credential::Claims(given) => {
                let (claims, assumed) = self.completed(route, given);
                let bound = claims.contains_key("cnf");
                let outcome = self.believed(route, claims).map_err(AuthnError::from);
                (Weighed { outcome, bound }, assumed)
            }
        }
    }

    fn completed(&self, route: &RouteAuth, given: &Map<String, Value>) -> (Map<String, Value>, Vec<&'static str>) {
        let issuer = self
            .issued_by(route)
            .next()
            .map(|voucher| voucher.identity.issuer.as_str());
        let defaults = [
            ("iss", issuer.map(Value::from)),
            ("aud", Some(Value::from(route.resource.as_str()))),
            ("exp", Some(Value::from(self.clock.now() + ASSUMED_LIFE))),
        ];
        let mut claims = given.clone();
        let mut assumed = Vec::new();
        for (name, value) in defaults {
            if let (false, Some(value)) = (claims.contains_key(name), value) {
                claims.insert(name.to_owned(), value);
                assumed.push(name);
            }
        }
        (claims, assumed)
    }

    /// The route's identities that have an issuer.
    fn issued_by(&self, route: &RouteAuth) -> impl Iterator<Item = &Voucher> {
        let named = route.identities.iter().filter_map(|name| self.voucher(name));
        named
            .map(|(_, voucher)| voucher)
            .filter(|voucher| !voucher.identity.issuer.is_empty())
    }

    fn believed(&self, route: &RouteAuth, claims: Map<String, Value>) -> Result<Arc<Principal>, TokenFault> {
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default().to_owned();
        let voucher = self
            .issued_by(route)
            .find(|voucher| voucher.identity.issuer == issuer)
            .ok_or(TokenFault::Issuer)?;
        let (identity, now) = (&voucher.identity, self.clock.now());
        let verified = match &voucher.means {
            Means::Introspection(introspector) => introspector.supposed(claims)?,
            _ => {
                let mut verified = verify::believe(identity, claims, 0, now)?;
                let principal = Arc::get_mut(&mut verified.principal).expect("a new principal has one owner");
                principal.granted = self.roles.of(principal);
                Arc::new(verified)
            }
        };
        verified.check(identity, route, now)?;
        if matches!(identity.dpop, Some(Dpop::Required | Dpop::Nonce)) && verified.binding.key.is_none() {
            return Err(TokenFault::Unbound);
        }
        Ok(verified.principal.clone())
    }

    /// What each identity of a route has to do with a caller; `vouched` is the one that the real decision named.
    pub async fn standings(&self, route: &RouteAuth, caller: &Credential, vouched: Option<&str>) -> Vec<Standing> {
        let mut standings = Vec::new();
        for name in &route.identities {
            let Some((index, voucher)) = self.voucher(name) else {
                continue;
            };
            let vouches = vouched == Some(&**name);
            let why = match caller {
                _ if vouches => "it vouches for this caller".to_owned(),
                Credential::Certificate(certificate) => match &voucher.means {
                    _ if vouched.is_some() => "another identity vouches".to_owned(),
                    Means::Certificates(certificates) => match certificates.owner(certificate) {
                        Err(fault) => format!("it does not vouch: {}", fault.description()),
                        Ok(_) => "it vouches for this caller".to_owned(),
                    },
                    _ => "no token was sent".to_owned(),
                },
                Credential::Nothing if matches!(voucher.means, Means::Certificates(_)) => {
                    "no certificate was shown".to_owned()
                }
                Credential::Nothing => "no token was sent".to_owned(),
                Credential::Claims(given) => match given.get("iss") {
                    _ if matches!(voucher.means, Means::ApiKeys(_)) => "it has API keys, not claims".to_owned(),
                    _ if matches!(voucher.means, Means::Certificates(_)) => {
                        "it goes by certificates, not claims".to_owned()
                    }
                    Some(issuer) if issuer.as_str() != Some(&voucher.identity.issuer) => another_issuer(issuer),
                    _ if vouched.is_some() => "another identity vouches".to_owned(),
                    _ => "the claims are no good here: see the decision".to_owned(),
                },
                Credential::Token(token) => self.stands_to(route, index, voucher, token.expose(), vouched).await,
            };
            standings.push(Standing {
                identity: name.clone(),
                vouches,
                why,
            });
        }
        standings
    }

    async fn stands_to(
        &self,
        route: &RouteAuth,
        index: usize,
        voucher: &Voucher,
        token: &str,
        vouched: Option<&str>,
    ) -> String {
        let hash = TokenCache::hash(token);
        let shape = verify::shape(token);
        match &voucher.means {
            Means::ApiKeys(file) if file.owner(&hash).is_some() => "it is one of its keys, but it has ended".to_owned(),
            Means::ApiKeys(_) => "the token is none of its keys".to_owned(),
            Means::Certificates(_) => "it goes by the certificate, and only where no token is sent".to_owned(),
            _ if !matches!(self.by_api_key(route, token, &hash), Ok(None)) => {
                "the token is an API key, which no issuer is shown".to_owned()
            }
            Means::Introspection(_) => match self.introspector(route, token) {
                Some((asked, _)) if asked == index => "its issuer was asked, and the token is no good".to_owned(),
                _ => "its issuer is not asked: the token is a JWT that is not its own to check".to_owned(),
            },
            Means::Keys(keys) => match shape {
                Shape::Jwt(issuer) if issuer == voucher.identity.issuer => match Token::parse(token) {
                    Err(fault) => format!("the token can't be checked: {}", fault.reason()),
                    Ok(token) => match vouches(&voucher.identity, keys, &token).await {
                        Err(error) => format!("it does not vouch: {}", error.reason()),
                        Ok(_) if vouched.is_some() => "an identity before it vouches".to_owned(),
                        Ok(_) => "its key signed the token, whose claims are no good here: see the decision".to_owned(),
                    },
                },
                Shape::Jwt(issuer) => another_issuer(&Value::from(issuer)),
                Shape::Unclear | Shape::Opaque => "the token is no JWT that says who issued it".to_owned(),
            },
        }
    }

    /// Every check of a token, for these routes.
    pub async fn inspect(&self, routes: &[&RouteAuth], token: &str) -> Vec<Checked> {
        let mut report = Report::default();
        let hash = TokenCache::hash(token);
        let owners: Vec<_> = routes
            .iter()
            .map(|route| self.by_api_key(route, token, &hash))
            .collect();
        if let Some(Ok(Some(owner))) = owners.iter().find(|owner| matches!(owner, Ok(Some(_)))) {
            let identity = owner.identity.as_deref().unwrap_or_default();
            let detail = format!("{}'s key of identity {identity}, still good", owner.subject);
            report.say("api key", Verdict::Pass, detail);
            return report.0;
        }
        if let Some(Err(refusal)) = owners.iter().find(|owner| owner.is_err()) {
            report.say("api key", Verdict::Fail, refusal.error.reason());
            return report.0;
        }
        let asked = routes.iter().find_map(|route| self.introspector(route, token));
        if let Some((index, introspector)) = asked {
            let identity = &self.vouchers[index].identity;
            let name = &identity.name;
            match self.introspected(introspector, token, hash).await {
                Ok(verified) => {
                    let detail = format!("the issuer of identity {name} says that it is active");
                    report.say("introspection", Verdict::Pass, detail);
                    let claims = &verified.principal.claims;
                    self.audience(&mut report, Some(identity), routes, claims);
                    report.claims(claims, self.clock.now());
                    report.mapping(identity, claims);
                }
                Err(refusal) => {
                    let detail = match (&refusal.error, introspector.last_failure()) {
                        (AuthnError::IssuerUnavailable { .. }, Some(why)) => {
                            format!("the issuer of identity {name} can't be asked: {why}")
                        }
                        (error, _) => format!("identity {name}: {}", error.reason()),
                    };
                    report.say("introspection", Verdict::Fail, detail);
                }
            }
            return report.0;
        }
        self.inspect_jwt(&mut report, routes, token).await;
        report.0
    }

    async fn inspect_jwt(&self, report: &mut Report, routes: &[&RouteAuth], text: &str) {
        let Ok(parts) = Parts::split(text) else {
            let bad = "no API key, not for introspection, and not three base64url parts of JSON objects";
            return report.say("structure", Verdict::Fail, bad);
        };
        report.say("structure", Verdict::Pass, "a JWT");
        report.header(&parts.header);
        let claims = parts.claims.clone();
        let issuer = claims.get("iss").cloned().unwrap_or_default();
        let named = |name: &str| {
            routes
                .iter()
                .any(|route| route.identities.iter().any(|known| **known == *name))
        };
        let vouchers: Vec<_> = self
            .vouchers
            .iter()
            .filter(|voucher| named(&voucher.identity.name) && issuer.as_str() == Some(&voucher.identity.issuer))
            .filter_map(|voucher| match &voucher.means {
                Means::Keys(keys) => Some((&voucher.identity, keys)),
                _ => None,
            })
            .collect();
        let mut identity = vouchers.first().map(|(identity, _)| *identity);
        match identity {
            None => report.say("iss", Verdict::Fail, another_issuer(&issuer)),
            Some(identity) => {
                let detail = format!("{}: identity {}", shown(Some(&issuer)), identity.name);
                report.say("iss", Verdict::Pass, detail);
            }
        }
        match (Token::of(parts), vouchers.is_empty()) {
            (Err(_), _) => report.skip(&["kid", "signature"], "its alg or kid can't be read"),
            (_, true) => report.skip(&["kid", "signature"], "nobody here has keys of that issuer"),
            (Ok(token), false) => {
                let mut found = None;
                for (candidate, keys) in vouchers {
                    let allowed = verify::allows(candidate, token.algorithm);
                    let outcome = signed(candidate, keys, &token).await;
                    let good = allowed && outcome.is_ok();
                    if found.is_none() || good {
                        identity = Some(candidate);
                        found = Some((candidate, keys.state().2, allowed, outcome));
                    }
                    if good {
                        break;
                    }
                }
                let (candidate, last_error, allowed, outcome) = found.expect("there is a voucher");
                let name = &candidate.name;
                match allowed {
                    true => report.say("alg allowed", Verdict::Pass, format!("by identity {name}")),
                    false => report.say("alg allowed", Verdict::Fail, format!("not by identity {name}")),
                }
                report.signature(name, token.kid.as_deref(), last_error, outcome);
            }
        }
        self.audience(report, identity, routes, &claims);
        report.claims(&claims, self.clock.now());
        match identity {
            Some(identity) => report.mapping(identity, &claims),
            None => report.skip(
                &["kind", "required", "subject", "scopes", "roles"],
                "no identity says where they stand",
            ),
        }
    }

    fn audience(
        &self,
        report: &mut Report,
        identity: Option<&Arc<Identity>>,
        routes: &[&RouteAuth],
        claims: &Map<String, Value>,
    ) {
        let Some(identity) = identity else {
            return report.skip(
                &["aud"],
                "where it stands, and which are accepted, depends on the identity",
            );
        };
        let Ok(audiences) = verify::audiences(identity, claims) else {
            return report.say("aud", Verdict::Fail, "missing, or no string and no array of strings");
        };
        let accepting: Vec<&str> = routes
            .iter()
            .filter(|route| route.identities.contains(&identity.name))
            .filter(|route| verify::meant(&audiences, identity, route).is_ok())
            .map(|route| &*route.route)
            .collect();
        if accepting.is_empty() {
            let wanted: Vec<&str> = routes.iter().map(|route| route.resource.as_str()).collect();
            let detail = format!("{audiences:?} is for nobody here; wanted: {}", wanted.join(", "));
            report.say("aud", Verdict::Fail, detail);
        } else {
            let detail = format!("{audiences:?}: route {}", accepting.join(", "));
            report.say("aud", Verdict::Pass, detail);
        }
    }
}

impl Report {
    /// What an identity's keys say.
    fn signature(
        &mut self,
        name: &str,
        kid: Option<&str>,
        last_error: Option<String>,
        outcome: Result<u64, AuthnError>,
    ) {
        let known = match kid {
            Some(kid) => format!("{kid:?} is a key of identity {name}"),
            None => "absent: every key that fits is tried".to_owned(),
        };
        let fault = match outcome {
            Ok(_) => {
                self.say("kid", Verdict::Pass, known);
                return self.say("signature", Verdict::Pass, format!("by a key of identity {name}"));
            }
            Err(AuthnError::InvalidToken { reason }) => reason,
            Err(_) => {
                let why = last_error.map(|why| format!(": {why}")).unwrap_or_default();
                let detail = format!("the keys of identity {name} can't be fetched{why}");
                self.say("keys", Verdict::Fail, detail);
                return self.skip(&["kid", "signature"], "there are no keys to check them with");
            }
        };
        match fault {
            TokenFault::EmptyKeySet => {
                self.say("kid", Verdict::Fail, format!("identity {name} has no usable key"));
                self.skip(&["signature"], "there is no key to check it with");
            }
            TokenFault::UnknownKey => {
                let detail = format!("{kid:?} is no key of identity {name}");
                self.say("kid", Verdict::Fail, detail);
                self.skip(&["signature"], "there is no key to check it with");
            }
            TokenFault::Algorithm => {
                self.say("kid", Verdict::Pass, known);
                self.say("signature", Verdict::Fail, "no such key is for this alg");
            }
            _ => {
                self.say("kid", Verdict::Pass, known);
                self.say("signature", Verdict::Fail, "not by that key");
            }
        }
    }
}

fn another_issuer(issuer: &Value) -> String {
    match issuer {
        Value::Null => "the token does not say who issued it".to_owned(),
        issuer => format!("{} is another issuer", shown(Some(issuer))),
    }
}

/// A value of the token, without what a terminal would act on.
fn shown(value: Option<&Value>) -> String {
    match value {
        None => "absent".to_owned(),
        Some(Value::String(text)) => format!("{text:?}"),
        Some(other) => other.to_string().escape_debug().to_string(),
    }
}
