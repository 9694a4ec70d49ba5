//! The gateway's own token at an issuer, one for all callers (RFC 6749 section 4.4, or RFC 7523 with a workload's JWT).
//!
//! 1. One request at a time: those who come meanwhile share its result. If the one who asks goes away, one of those who
//!    wait asks again.
//! 2. A token is renewed ahead of its end, [`AHEAD`] seconds or a tenth of its life, behind the backs of those who still
//!    use it; while that fails they go on using it, until it ends.
//! 3. Without a token that lives there is none, and no request (r39). A failure is no answer for longer than a pause
//!    ([`PAUSES`]), in which the issuer is left alone.
//! 4. A token that the upstream refused is replaced once for all who were refused with it (r27). One without an end is
//!    used until then (r15).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::ask::{JWT_BEARER, ask, bearer, endpoint as endpoint_of, token_in};
use super::recovery::PAUSE;
use super::way::{Find, found, known};
use super::{CredentialError, Making, OutboundCredential, Recover, SetupError};
use crate::clock::{Clock, UnixSeconds};
use crate::config::{self, ClientCredentials, Resource};
use crate::oauth::TokenError;
use crate::oauth::client::Form;
use crate::oauth::watched::Watched;
use crate::secret::Secret;
use crate::telemetry::RouteMetrics;

/// Seconds.
const AHEAD: u64 = 120;
/// Seconds before its end that a token is no longer handed out.
const SKEW: u64 = 5;
/// After a failure, the first and the longest; each failure in a row doubles it.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));

/// What the gateway shows for its own token.
enum Proof {
    /// That it is the client.
    Client,
    /// A workload's JWT, besides.
    Assertion(Watched<Secret>),
}

/// Prepares a route's.
///
/// # Errors
/// A key, certificate or file that can't be used, or an insecure endpoint.
pub(super) fn of(config: &ClientCredentials, making: &Making<'_>) -> Result<Arc<OwnToken>, SetupError> {
    let unusable = |key: &str, cause: String| SetupError::Unusable {
        route: making.route.to_owned(),
        key: format!("client_credentials{key}"),
        cause,
    };
    let find = match &config.token_endpoint {
        None => found(config, making)?,
        Some(url) => {
            let endpoint = config::TokenEndpoint {
                url: url.clone(),
                client: config.client.clone(),
                parameters: config.parameters.clone(),
                ca: config.ca.clone(),
            };
            let issuer = config.issuer.clone();
            let endpoint = endpoint_of(making.route, "client_credentials", &endpoint, issuer, making.clock)?;
            let resource = match &config.resource {
                Resource::None => None,
                Resource::Named(resource) => Some(resource.clone()),
                Resource::Upstream => making.upstream.map(ToString::to_string),
            };
            known(endpoint, resource)
        }
    };
    let mut form = Form::default();
    form.push_all("audience", &config.audiences);
    form.push_scopes(&config.scopes);
    let own = OwnToken::new(
        find,
        form,
        config.assertion_file.as_deref(),
        making.clock.clone(),
        making.metrics.route(making.route),
    );
    own.map_err(|cause| unusable(".assertion_file", cause))
}

/// The token, and where it comes from.
pub(super) struct OwnToken {
    find: Find,
    /// Audiences and scopes.
    form: Form,
    proof: Proof,
    held: ArcSwapOption<Held>,
    /// Whoever has it asks.
    turn: Arc<Mutex<Option<Failed>>>,
    /// Questions that were answered, with a token or not.
    answers: AtomicU64,
    clock: Clock,
    route: Arc<RouteMetrics>,
}

/// A token in use.
pub(super) struct Held {
    value: HeaderValue,
    pub(super) token: Secret,
    obtained: UnixSeconds,
    /// When to ask for another; `None`: when the upstream refuses this one.
    renew: Option<UnixSeconds>,
    until: Option<UnixSeconds>,
    /// When it took the place of a refused one.
    replaced: Option<Instant>,
}

/// The last answer was none.
struct Failed {
    error: CredentialError,
    pause: Duration,
    at: Instant,
}

impl Failed {
    /// What to tell those who come during the pause.
    fn holds(failed: &Option<Self>) -> Option<CredentialError> {
        let failed = failed.as_ref()?;
        (failed.at.elapsed() < failed.pause).then(|| failed.error.clone())
    }
}

impl Held {
    fn is_fresh(&self, now: UnixSeconds) -> bool {
        self.renew.is_none_or(|renew| now < renew)
    }

    fn lives(&self, now: UnixSeconds) -> bool {
        self.until.is_none_or(|until| now.saturating_add(SKEW) < until)
    }
}

impl OwnToken {
    /// Asks nobody yet. `form` has all but the grant.
    ///
    /// # Errors
    /// A file that holds no token.
    pub(super) fn new(
        find: Find,
        form: Form,
        assertion_file: Option<&Path>,
        clock: Clock,
        route: Arc<RouteMetrics>,
    ) -> Result<Arc<Self>, String> {
        let proof = match assertion_file {
            Some(file) => Proof::Assertion(token_in(file)?),
            None => Proof::Client,
        };
        Ok(Arc::new(Self {
            find,
            form,
            proof,
            held: ArcSwapOption::empty(),
            turn: Arc::default(),
            answers: AtomicU64::new(0),
            clock,
            route,
        }))
    }

    /// The token that is in use now.
    ///
    /// # Errors
    /// There is none, and none to be had.
    pub(super) async fn obtain(self: &Arc<Self>) -> Result<Arc<Held>, CredentialError> {
        let answers = self.answers.load(Ordering::Acquire);
        let now = self.clock.now();
        if let Some(held) = self.held.load_full() {
            if held.is_fresh(now) {
                return Ok(held);
            }
            if held.lives(now) {
                self.renew_behind();
                return Ok(held);
            }
        }
        let mut failed = self.turn.lock().await;
        let now = self.clock.now();
        let shared = self.answers.load(Ordering::Acquire) != answers;
        // Even a token about to end is for all who waited for it.
        if let Some(held) = self.held.load_full()
            && failed.is_none()
            && (shared || held.is_fresh(now))
        {
            return Ok(held);
        }
        match Failed::holds(&failed) {
            Some(error) => Err(error),
            None => self.ask(&mut failed, None).await,
        }
    }

    /// Its age and how long it lives on, in seconds, as far as there is one and that is known.
    pub(super) fn life(&self) -> (Option<u64>, Option<u64>) {
        let (held, now) = (self.held.load_full(), self.clock.now());
        let age = held.as_ref().map(|held| now.saturating_sub(held.obtained));
        let until = held.and_then(|held| held.until);
        (age, until.map(|until| until.saturating_sub(now)))
    }

    /// What leaves.
    pub(super) async fn credential(self: &Arc<Self>) -> Result<OutboundCredential, CredentialError> {
        let held = self.obtain().await?;
        Ok(self.outbound(&held))
    }

    fn outbound(self: &Arc<Self>, held: &Held) -> OutboundCredential {
        OutboundCredential {
            header: Some((AUTHORIZATION, held.value.clone())),
            kind: "client_credentials",
            recovery: Some(Arc::new(Replaceable {
                own: self.clone(),
                refused: held.value.clone(),
            })),
        }
    }

    /// Asks in the background, unless somebody does already.
    fn renew_behind(self: &Arc<Self>) {
        let Ok(mut failed) = self.turn.clone().try_lock_owned() else {
            return;
        };
        if Failed::holds(&failed).is_some() {
            return;
        }
        let own = self.clone();
        tokio::spawn(async move {
            let now = own.clock.now();
            if !own.held.load().as_ref().is_some_and(|held| held.is_fresh(now)) {
                // The failure is noted, and the token in use lives.
                drop(own.ask(&mut failed, None).await);
            }
        });
    }

    async fn ask(&self, failed: &mut Option<Failed>, replaced: Option<Instant>) -> Result<Arc<Held>, CredentialError> {
        // The time before asking: the token can't be younger than it seems.
        let now = self.clock.now();
        let asked = self.send().await;
        self.answers.fetch_add(1, Ordering::Release);
        match asked {
            Ok((value, token, expires_in)) => {
                let ahead = |life: u64| AHEAD.min(life / 10);
                let held = Arc::new(Held {
                    value,
                    token,
                    obtained: now,
                    renew: expires_in.map(|life| now.saturating_add(life - ahead(life))),
                    until: expires_in.map(|life| now.saturating_add(life)),
                    replaced,
                });
                self.held.store(Some(held.clone()));
                *failed = None;
                Ok(held)
            }
            Err(error) => {
                let error = CredentialError::from(error);
                let pause = failed
                    .as_ref()
                    .map_or(PAUSES.0, |failed| failed.pause * 2)
                    .min(PAUSES.1);
                *failed = Some(Failed {
                    error: error.clone(),
                    pause,
                    at: Instant::now(),
                });
                Err(error)
            }
        }
    }

    async fn send(&self) -> Result<(HeaderValue, Secret, Option<u64>), TokenError> {
        let way = (self.find)().await?;
        let (grant, mut form) = match &self.proof {
            Proof::Client => ("client_credentials", Form::grant("client_credentials")),
            Proof::Assertion(file) => {
                let mut form = Form::grant(JWT_BEARER);
                form.push("assertion", file.current().expose());
                ("jwt_bearer", form)
            }
        };
        form.append(self.form.clone());
        if let Some(resource) = &way.resource {
            form.push("resource", resource);
        }
        let answer = ask(&self.route, grant, &way.endpoint, form).await?;
        Ok((
            bearer(&answer.tokens),
            answer.tokens.access_token.clone(),
            answer.expires_in,
        ))
    }

    /// A token in place of one that the upstream refused; `None` when that one is a replacement itself, made just now.
    async fn replace(&self, refused: &HeaderValue) -> Result<Option<Arc<Held>>, CredentialError> {
        let mut failed = self.turn.lock().await;
        match self.held.load_full() {
            Some(held) if held.value != refused => return Ok(Some(held)),
            Some(held) if held.replaced.is_some_and(|at| at.elapsed() < PAUSE) => return Ok(None),
            _ => {}
        }
        if let Some(error) = Failed::holds(&failed) {
            return Err(error);
        }
        let held = self.ask(&mut failed, Some(Instant::now())).await?;
        Ok((held.value != refused).then_some(held))
    }
}

/// A token as it was sent.
struct Replaceable {
    own: Arc<OwnToken>,
    refused: HeaderValue,
}

impl Recover for Replaceable {
    fn recover(&self) -> BoxFuture<'_, Result<Option<OutboundCredential>, CredentialError>> {
        Box::pin(async {
            let replaced = self.own.replace(&self.refused).await?;
            Ok(replaced.map(|held| self.own.outbound(&held)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake_issuer::{FakeIssuer, Made};
    use super::*;
    use crate::telemetry::Metrics;

    const NOW: UnixSeconds = 1_000_000;

    struct Setup {
        issuer: FakeIssuer,
        own: Arc<OwnToken>,
        clock: Clock,
        metrics: Arc<Metrics>,
    }

    fn token(name: &str, life: u64) -> String {
        format!(r#"{{"access_token":"{name}","token_type":"Bearer","expires_in":{life}}}"#)
    }

    fn config(issuer: &FakeIssuer) -> ClientCredentials {
        let endpoint = issuer.endpoint("/token");
        ClientCredentials {
            assertion_file: None,
            token_endpoint: Some(endpoint.url),
            issuer: None,
            client: endpoint.client,
            audiences: vec!["api".to_owned()],
            resource: Resource::Upstream,
            scopes: vec!["a".to_owned(), "b".to_owned()],
            parameters: vec![("x".to_owned(), "y".to_owned())],
            private_addresses: false,
            ca: None,
        }
    }

    async fn setup(status: u16, body: &str) -> Setup {
        let issuer = FakeIssuer::start(status, body).await;
        let (clock, metrics) = (Clock::fixed(NOW), Metrics::new());
        let made = Made::new(&clock, &metrics);
        let own = of(&config(&issuer), &made.making()).unwrap_or_else(|error| panic!("{error}"));
        Setup {
            issuer,
            own,
            clock,
            metrics,
        }
    }

    impl Setup {
        async fn sent(&self) -> Result<String, CredentialError> {
            let (_, value) = self.own.credential().await?.header.expect("a header");
            assert!(value.is_sensitive());
            Ok(value.to_str().unwrap().to_owned())
        }

        /// Waits for the background's answer.
        async fn answered(&self, count: u64) {
            while self.own.answers.load(Ordering::Acquire) < count {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn one_token_serves_everybody_until_shortly_before_its_end() {
        let setup = setup(200, &token("one", 3600)).await;
        setup.issuer.close();
        let callers: Vec<_> = (0..50)
            .map(|_| {
                let own = setup.own.clone();
                tokio::spawn(async move { own.obtain().await.map(|held| held.value.clone()) })
            })
            .collect();
        setup.issuer.was_asked(1).await;
        setup.issuer.open();
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap(), "Bearer one");
        }
        let asked = setup.issuer.asked();
        assert_eq!(asked.len(), 1);
        let form: Vec<_> = asked[0]
            .fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            form,
            [
                ("grant_type", "client_credentials"),
                ("audience", "api"),
                ("scope", "a b"),
                ("resource", "https://nc.example/mcp"),
                ("x", "y"),
            ]
        );
        setup.clock.set(NOW + 3600 - AHEAD - 1);
        setup.sent().await.unwrap();
        assert_eq!(setup.issuer.asked().len(), 1);
        // Renewed behind the caller's back.
        setup.issuer.answers(200, &token("two", 60));
        setup.clock.set(NOW + 3600 - AHEAD);
        assert_eq!(setup.sent().await.unwrap(), "Bearer one");
        setup.answered(2).await;
        assert_eq!(setup.sent().await.unwrap(), "Bearer two");
        assert_eq!(setup.issuer.asked().len(), 2);
        let text = setup.metrics.render();
        let counted = r#"portcullis_token_exchanges_total{route="nc",grant="client_credentials",result="ok"} 2"#;
        assert!(text.contains(counted), "{text}");
    }

    #[tokio::test]
    async fn r39_the_old_token_serves_until_it_ends_and_then_there_is_none() {
        let setup = setup(200, &token("one", 1000)).await;
        setup.sent().await.unwrap();
        setup.issuer.answers(503, "");
        tokio::time::pause();
        for (index, after) in [900, 950, 990].into_iter().enumerate() {
            setup.clock.set(NOW + after);
            assert_eq!(setup.sent().await.unwrap(), "Bearer one");
            setup.answered(2 + index as u64).await;
            tokio::time::advance(PAUSES.1).await;
        }
        setup.clock.set(NOW + 1000 - SKEW);
        let error = setup.sent().await.unwrap_err();
        assert!(matches!(error, CredentialError::Unreachable(_)), "{error:?}");
        let text = setup.metrics.render();
        let counted =
            r#"portcullis_credential_failures_total{route="nc",grant="client_credentials",reason="unreachable"} 4"#;
        assert!(text.contains(counted), "{text}");
    }

    #[tokio::test]
    async fn an_issuer_that_is_down_is_not_stormed() {
        let setup = setup(500, "").await;
        tokio::time::pause();
        for _ in 0..20 {
            assert!(setup.sent().await.is_err());
        }
        assert_eq!(setup.issuer.asked().len(), 1);
        // Each failure in a row doubles the pause.
        let mut pause = PAUSES.0;
        for asked in 2..8 {
            tokio::time::advance(pause).await;
            assert!(setup.sent().await.is_err());
            assert!(setup.sent().await.is_err());
            assert_eq!(setup.issuer.asked().len(), asked);
            pause = (pause * 2).min(PAUSES.1);
        }
        setup.issuer.answers(200, &token("one", 60));
        tokio::time::advance(PAUSES.1).await;
        assert_eq!(setup.sent().await.unwrap(), "Bearer one");
    }

    #[tokio::test]
    async fn r28_a_cancelled_leader_strands_nobody() {
        let setup = setup(200, &token("one", 60)).await;
        setup.issuer.close();
        let spawn = || {
            let own = setup.own.clone();
            tokio::spawn(async move { own.obtain().await.map(|held| held.value.clone()) })
        };
        let leader = spawn();
        setup.issuer.was_asked(1).await;
        let waiter = spawn();
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        setup.issuer.open();
        let waited = tokio::time::timeout(Duration::from_secs(5), waiter)
            .await
            .expect("not stranded");
        assert_eq!(waited.unwrap().unwrap(), "Bearer one");
    }

    #[tokio::test]
    async fn r27_a_refused_token_is_replaced_once_for_all() {
        // r15: without an end, it is good until then.
        let setup = setup(200, r#"{"access_token":"one"}"#).await;
        let refused = setup.own.credential().await.unwrap();
        setup.clock.set(NOW + 1_000_000);
        assert_eq!(setup.sent().await.unwrap(), "Bearer one");
        assert_eq!(setup.issuer.asked().len(), 1);
        setup.issuer.answers(200, &token("two", 60));
        let recovery = refused.recovery.expect("it can be had anew");
        let recoveries = (0..20).map(|_| recovery.recover());
        let mut last = None;
        for renewed in futures_util::future::join_all(recoveries).await {
            let renewed = renewed.unwrap().expect("another");
            assert_eq!(renewed.header.as_ref().expect("a header").1, "Bearer two");
            last = renewed.recovery;
        }
        assert_eq!(setup.issuer.asked().len(), 2);
        // The next one is refused as well: no loop.
        let last = last.expect("it can be had anew");
        tokio::time::pause();
        assert!(last.recover().await.unwrap().is_none());
        assert_eq!(setup.issuer.asked().len(), 2);
    }

    #[tokio::test]
    async fn r16_endless_and_momentary_lives_are_no_panic() {
        let setup = setup(200, &token("one", u64::MAX)).await;
        setup.sent().await.unwrap();
        setup.clock.set(u64::MAX - SKEW - 1);
        setup.sent().await.unwrap();
        let momentary = self::setup(200, &token("one", 0)).await;
        assert_eq!(momentary.sent().await.unwrap(), "Bearer one");
        assert_eq!(momentary.sent().await.unwrap(), "Bearer one");
        assert_eq!(momentary.issuer.asked().len(), 2, "nothing is kept that has ended");
    }

    #[tokio::test]
    async fn a_workload_shows_its_own_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("workload");
        std::fs::write(&file, "jwt-1\n").unwrap();
        let issuer = FakeIssuer::start(200, &token("one", 0)).await;
        let mut config = config(&issuer);
        config.assertion_file = Some(file.clone());
        let made = Made::new(&Clock::fixed(NOW), &Metrics::new());
        let own = of(&config, &made.making()).unwrap_or_else(|error| panic!("{error}"));
        own.obtain().await.map(drop).unwrap();
        std::fs::write(&file, "jwt-two").unwrap();
        own.obtain().await.map(drop).unwrap();
        let asked = issuer.asked();
        let shown: Vec<_> = asked.iter().map(|asked| asked.form["assertion"].as_str()).collect();
        assert_eq!(shown, ["jwt-1", "jwt-two"]);
        assert!(asked.iter().all(|asked| asked.form["grant_type"] == JWT_BEARER));
        std::fs::remove_file(&file).unwrap();
        let error = of(&config, &made.making()).err().expect("refused").to_string();
        assert!(error.contains("client_credentials.assertion_file"), "{error}");
    }
}
