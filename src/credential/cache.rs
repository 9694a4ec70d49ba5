//! Exchanged tokens, kept no longer than they and the caller's own token live (r40).
//!
//! 1. A token is found by a digest of the caller's token, of the token of who acts for them, and of everything else that
//!    shaped the request for it.
//! 2. One request at a time for one key: those who come meanwhile share its result, failures too; failures are not
//!    kept. If the one who asks goes away, one of those who wait asks again.
//! 3. An entry ends at the earlier of `expires_in` (less a margin for the way to the upstream) and the caller's `exp`.
//! 4. A token that the upstream refused is dropped, and exchanged anew once for all who were refused with it (r27).

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use moka::Expiry;
use moka::future::Cache;
use moka::ops::compute::Op;

use super::exchange::{ActorToken, Exchanger};
use super::recovery::PAUSE;
use super::{CredentialError, Making, OutboundCredential, Recover, SetupError};
use crate::clock::{Clock, UnixSeconds};
use crate::config::Exchange;
use crate::secret::Secret;
use crate::telemetry::Metrics;

const MAX_ENTRIES: u64 = 10_000;
/// Seconds before its end that a token is no longer handed out.
const SKEW: u64 = 10;

type Key = [u8; 32];

#[derive(Clone)]
struct Entry {
    value: HeaderValue,
    until: UnixSeconds,
    /// How long it may be kept, for the cache's own housekeeping.
    keep: Duration,
    /// When it took the place of a refused one.
    replaced: Option<tokio::time::Instant>,
}

/// Lets the cache forget what is over, even if nobody asks again.
struct Lifetime;

impl Expiry<Key, Entry> for Lifetime {
    fn expire_after_create(&self, _: &Key, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.keep)
    }
}

/// Exchanges, and remembers.
pub(super) struct Exchanged {
    exchanger: Exchanger,
    /// Whom is asked for what.
    context: Vec<u8>,
    cache: Cache<Key, Entry>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Exchanged {
    pub(super) fn new(config: &Exchange, making: &Making<'_>) -> Result<Self, SetupError> {
        let exchanger = Exchanger::new(config, making)?;
        Ok(Self {
            context: exchanger.context(),
            exchanger,
            cache: Cache::builder()
                .max_capacity(MAX_ENTRIES)
                .expire_after(Lifetime)
                .build(),
            clock: making.clock.clone(),
            metrics: making.metrics.clone(),
        })
    }

    /// A token in exchange for the caller's, whose own end is `expires`.
    pub(super) async fn obtain(
        &self,
        subject: &Secret,
        expires: Option<UnixSeconds>,
    ) -> Result<HeaderValue, CredentialError> {
        let actor = self.exchanger.actor().await?;
        let key = self.key(subject, actor.as_ref());
        if let Some(entry) = self.cache.get(&key).await {
            if self.clock.now() < entry.until {
                self.metrics.token_cache("exchange", "hit");
                return Ok(entry.value);
            }
            self.cache.invalidate(&key).await;
        }
        self.metrics.token_cache("exchange", "miss");
        self.fetch_once(key, subject, actor.as_ref(), expires, None).await
    }

    async fn fetch_once(
        &self,
        key: Key,
        subject: &Secret,
        actor: Option<&ActorToken>,
        expires: Option<UnixSeconds>,
        replaced: Option<tokio::time::Instant>,
    ) -> Result<HeaderValue, CredentialError> {
        let fetch = async {
            let entry = self.fetch(subject, actor, expires).await?;
            Ok(Entry { replaced, ..entry })
        };
        let entry = self.cache.try_get_with(key, fetch).await;
        entry
            .map(|entry| entry.value)
            .map_err(|error: Arc<CredentialError>| (*error).clone())
    }

    /// A token in place of one that the upstream refused; `None` when that one is a replacement itself, made just now.
    async fn replace(
        &self,
        refused: &HeaderValue,
        subject: &Secret,
        expires: Option<UnixSeconds>,
    ) -> Result<Option<HeaderValue>, CredentialError> {
        let actor = self.exchanger.actor().await?;
        let actor = actor.as_ref();
        let key = self.key(subject, actor);
        let is_refused = |entry: &Entry| entry.value == *refused;
        let held = self.cache.get(&key).await.filter(is_refused);
        let replaced = held.and_then(|entry| entry.replaced);
        if replaced.is_some_and(|replaced| replaced.elapsed() < PAUSE) {
            return Ok(None);
        }
        // Looked at and removed in one: what another made of it meanwhile stays.
        self.cache
            .entry(key)
            .and_compute_with(|entry| {
                std::future::ready(match entry {
                    Some(entry) if is_refused(entry.value()) => Op::Remove,
                    _ => Op::Nop,
                })
            })
            .await;
        let value = self
            .fetch_once(key, subject, actor, expires, Some(tokio::time::Instant::now()))
            .await?;
        Ok((value != refused).then_some(value))
    }

    /// What leaves with a token; it can be had anew for as long as the caller's own is good.
    pub(super) fn credential(
        self: &Arc<Self>,
        value: HeaderValue,
        subject: &Secret,
        expires: Option<UnixSeconds>,
    ) -> OutboundCredential {
        OutboundCredential {
            header: Some((AUTHORIZATION, value.clone())),
            kind: "exchange",
            recovery: Some(Arc::new(Replaceable {
                exchanged: self.clone(),
                refused: value,
                subject: subject.clone(),
                expires,
            })),
        }
    }

    async fn fetch(
        &self,
        subject: &Secret,
        actor: Option<&ActorToken>,
        expires: Option<UnixSeconds>,
    ) -> Result<Entry, CredentialError> {
        // The time before asking: the token can't be younger than it seems.
        let now = self.clock.now();
        let issued = self.exchanger.exchange(subject, actor).await?;
        let keep = issued.expires_in.saturating_sub(SKEW);
        // A caller without an end is not to be outlived by guess: nothing is kept for one.
        let until = now.saturating_add(keep).min(expires.unwrap_or(now));
        let keep = Duration::from_secs(until.saturating_sub(now).min(MAX_KEEP));
        Ok(Entry {
            value: issued.value,
            until,
            keep,
            replaced: None,
        })
    }

    fn key(&self, subject: &Secret, actor: Option<&ActorToken>) -> Key {
        let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(hash(subject.expose()).as_ref());
        context.update(hash(actor.map_or("", |actor| actor.token.expose())).as_ref());
        context.update(&self.context);
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// An exchanged token, with what it was exchanged for.
struct Replaceable {
    exchanged: Arc<Exchanged>,
    refused: HeaderValue,
    subject: Secret,
    expires: Option<UnixSeconds>,
}

impl Recover for Replaceable {
    fn recover(&self) -> BoxFuture<'_, Result<Option<OutboundCredential>, CredentialError>> {
        Box::pin(async {
            let replaced = self.exchanged.replace(&self.refused, &self.subject, self.expires);
            let value = replaced.await?;
            Ok(value.map(|value| self.exchanged.credential(value, &self.subject, self.expires)))
        })
    }
}

/// Seconds; the cache can't count to `u64::MAX` of them (r16).
const MAX_KEEP: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use super::super::fake_issuer::{FakeIssuer, Made};
    use super::*;
    use crate::config::{Actor, ExchangeGrant, JwtBearer, TokenType};

    const NOW: UnixSeconds = 1_000_000;
    const HOUR: Option<UnixSeconds> = Some(NOW + 3600);
    const TOKEN: &str = r#"{"access_token":"upstream-token","token_type":"Bearer","expires_in":120}"#;

    struct Setup {
        issuer: FakeIssuer,
        exchanged: Arc<Exchanged>,
        clock: Clock,
        metrics: Arc<Metrics>,
    }

    async fn setup(status: u16, body: &str) -> Setup {
        let issuer = FakeIssuer::start(status, body).await;
        let (clock, metrics) = (Clock::fixed(NOW), Metrics::new());
        let made = Made::new(&clock, &metrics);
        let exchanged = Arc::new(Exchanged::new(&issuer.config(), &made.making()).unwrap());
        Setup {
            issuer,
            exchanged,
            clock,
            metrics,
        }
    }

    impl Setup {
        async fn obtain(&self, subject: &str, expires: Option<UnixSeconds>) -> Result<String, CredentialError> {
            let value = self.exchanged.obtain(&Secret::new(subject), expires).await?;
            Ok(value.to_str().unwrap().to_owned())
        }

        fn spawn(&self) -> tokio::task::JoinHandle<Result<HeaderValue, CredentialError>> {
            let exchanged = Arc::clone(&self.exchanged);
            tokio::spawn(async move { exchanged.obtain(&Secret::new("alice"), HOUR).await })
        }

        fn posts(&self) -> usize {
            self.issuer.asked().len()
        }
    }

    fn second(first: &Exchange, resources: &[&str]) -> JwtBearer {
        JwtBearer {
            endpoint: crate::config::TokenEndpoint {
                url: first.endpoint.url.clone(),
                client: first.endpoint.client.clone(),
                parameters: Vec::new(),
                ca: None,
            },
            resources: resources.iter().map(ToString::to_string).collect(),
            scopes: Vec::new(),
        }
    }

    /// Lets every task that can go on do so.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn r40_a_token_is_kept_to_its_own_end_less_a_margin() {
        let setup = setup(200, TOKEN).await;
        assert_eq!(setup.obtain("alice", HOUR).await.unwrap(), "Bearer upstream-token");
        setup.clock.set(NOW + 120 - SKEW - 1);
        setup.obtain("alice", HOUR).await.unwrap();
        assert_eq!(setup.posts(), 1);
        setup.clock.set(NOW + 120 - SKEW);
        setup.obtain("alice", HOUR).await.unwrap();
        assert_eq!(setup.posts(), 2);
        let text = setup.metrics.render();
        assert!(
            text.contains("portcullis_token_cache_total{cache=\"exchange\",result=\"hit\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("portcullis_token_exchanges_total{route=\"nc\",grant=\"token_exchange\",result=\"ok\"} 2")
        );
    }

    #[tokio::test]
    async fn r40_a_token_is_kept_no_longer_than_the_callers() {
        let setup = setup(200, TOKEN).await;
        setup.obtain("alice", Some(NOW + 30)).await.unwrap();
        setup.clock.set(NOW + 29);
        setup.obtain("alice", Some(NOW + 30)).await.unwrap();
        assert_eq!(setup.posts(), 1);
        setup.clock.set(NOW + 30);
        setup.obtain("alice", Some(NOW + 30)).await.unwrap();
        assert_eq!(setup.posts(), 2);
        setup.obtain("without an end", None).await.unwrap();
        setup.obtain("without an end", None).await.unwrap();
        assert_eq!(setup.posts(), 4, "nothing is kept for a caller without an end");
    }

    #[tokio::test]
    async fn r40_callers_share_nothing_and_requests_differ_by_audience_and_scope() {
        let setup = setup(200, TOKEN).await;
        setup.obtain("alice", HOUR).await.unwrap();
        setup.obtain("bob", HOUR).await.unwrap();
        assert_eq!(setup.posts(), 2);
        let key = |change: fn(&mut Exchange)| {
            let mut config = setup.issuer.config();
            change(&mut config);
            let made = Made::new(&Clock::system(), &setup.metrics);
            let exchanged = Exchanged::new(&config, &made.making()).unwrap();
            exchanged.key(&Secret::new("alice"), None)
        };
        let keys = [
            key(|_| {}),
            key(|config| config.audiences = vec!["a".to_owned()]),
            key(|config| config.resources = vec!["a".to_owned()]),
            key(|config| config.scopes = vec!["a".to_owned()]),
            key(|config| config.endpoint.client.id.push('a')),
            key(|config| config.endpoint.url.set_path("/a")),
            key(|config| config.audiences = vec!["a".to_owned(), "b".to_owned()]),
            key(|config| config.audiences = vec!["a&audience=b".to_owned()]),
            key(|config| config.endpoint.parameters = vec![("a".to_owned(), "b".to_owned())]),
            key(|config| config.subject_token_type = TokenType(TokenType::ID_TOKEN.to_owned())),
            key(|config| config.requested_token_type = TokenType(TokenType::JWT.to_owned())),
            key(|config| config.grant = ExchangeGrant::JwtBearer),
            key(|config| config.jwt_bearer = Some(second(config, &[]))),
            key(|config| config.jwt_bearer = Some(second(config, &["a"]))),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[tokio::test]
    async fn r40_whoever_acts_changes_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("actor");
        std::fs::write(&file, "agent-1\n").unwrap();
        let issuer = FakeIssuer::start(200, TOKEN).await;
        let mut config = issuer.config();
        config.actor = Some(Actor::File {
            path: file.clone(),
            token_type: TokenType(TokenType::JWT.to_owned()),
        });
        let made = Made::new(&Clock::fixed(NOW), &Metrics::new());
        let exchanged = Arc::new(Exchanged::new(&config, &made.making()).unwrap());
        let alice = Secret::new("alice");
        for _ in 0..2 {
            exchanged.obtain(&alice, HOUR).await.unwrap();
        }
        assert_eq!(issuer.asked().len(), 1);
        std::fs::write(&file, "another-agent").unwrap();
        exchanged.obtain(&alice, HOUR).await.unwrap();
        let actors: Vec<_> = issuer
            .asked()
            .iter()
            .map(|asked| asked.form["actor_token"].clone())
            .collect();
        assert_eq!(actors, ["agent-1", "another-agent"]);
        assert_eq!(issuer.asked()[0].form["actor_token_type"], TokenType::JWT);
    }

    #[tokio::test]
    async fn many_at_once_make_one_post() {
        let setup = setup(200, TOKEN).await;
        setup.issuer.close();
        let callers: Vec<_> = (0..20).map(|_| setup.spawn()).collect();
        setup.issuer.was_asked(1).await;
        settle().await;
        setup.issuer.open();
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap(), "Bearer upstream-token");
        }
        assert_eq!(setup.posts(), 1);
    }

    #[tokio::test]
    async fn r28_a_cancelled_leader_strands_nobody() {
        let setup = setup(200, TOKEN).await;
        setup.issuer.close();
        let leader = setup.spawn();
        setup.issuer.was_asked(1).await;
        let waiters = [setup.spawn(), setup.spawn()];
        settle().await;
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        setup.issuer.open();
        for waiter in waiters {
            let waited = tokio::time::timeout(Duration::from_secs(5), waiter)
                .await
                .expect("not stranded");
            assert_eq!(waited.unwrap().unwrap(), "Bearer upstream-token");
        }
        assert_eq!(setup.posts(), 2);
    }

    #[tokio::test]
    async fn r27_a_refused_token_is_exchanged_anew_once_for_all() {
        let setup = setup(200, TOKEN).await;
        let subject = Secret::new("alice");
        let refused = setup.exchanged.obtain(&subject, HOUR).await.unwrap();
        let refused = setup.exchanged.credential(refused, &subject, HOUR);
        setup
            .issuer
            .answers(200, r#"{"access_token":"another","expires_in":120}"#);
        let recoveries = (0..20).map(|_| refused.recovery.as_ref().expect("it can be had anew").recover());
        let mut last = None;
        for renewed in futures_util::future::join_all(recoveries).await {
            let renewed = renewed.unwrap().expect("another");
            let (_, value) = renewed.header.as_ref().expect("a header");
            assert_eq!(value, "Bearer another");
            last = Some(renewed);
        }
        assert_eq!(setup.posts(), 2);
        assert_eq!(setup.obtain("alice", HOUR).await.unwrap(), "Bearer another");
        // The upstream refuses that one, too: no loop, and the issuer is asked nothing until a while has passed.
        let recovery = last.and_then(|last| last.recovery).expect("it can be had anew");
        tokio::time::pause();
        assert!(recovery.recover().await.unwrap().is_none());
        assert_eq!(setup.posts(), 2);
        tokio::time::advance(PAUSE).await;
        tokio::time::resume();
        setup.issuer.answers(200, TOKEN);
        assert!(recovery.recover().await.unwrap().is_some());
        assert_eq!(setup.posts(), 3);
        // Its successor is what a straggler with the first one gets, without a request.
        let straggler = refused.recovery.expect("it can be had anew").recover().await;
        assert!(straggler.unwrap().is_none(), "the same token again is no other");
    }

    #[tokio::test]
    async fn r39_a_refusal_is_an_error_and_is_not_remembered() {
        let setup = setup(400, r#"{"error":"invalid_target"}"#).await;
        let refused = Err(CredentialError::Rejected {
            error: "invalid_target",
        });
        assert_eq!(setup.obtain("alice", HOUR).await, refused);
        assert_eq!(setup.obtain("alice", HOUR).await, refused);
        assert_eq!(setup.posts(), 2);
        setup.issuer.answers(200, TOKEN);
        assert_eq!(setup.obtain("alice", HOUR).await.unwrap(), "Bearer upstream-token");
        let text = setup.metrics.render();
        assert!(
            text.contains("grant=\"token_exchange\",result=\"rejected\"} 2"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn r39_a_silent_issuer_is_an_error_after_ten_seconds() {
        let setup = setup(200, TOKEN).await;
        setup.issuer.close();
        let caller = setup.spawn();
        setup.issuer.was_asked(1).await;
        tokio::time::pause();
        assert_eq!(
            caller.await.unwrap().err(),
            Some(CredentialError::Unreachable("no answer in time"))
        );
    }

    #[tokio::test]
    async fn r16_an_endless_expires_in_is_no_panic() {
        let body = format!(r#"{{"access_token":"t","expires_in":{}}}"#, u64::MAX);
        let setup = setup(200, &body).await;
        for expires in [Some(u64::MAX), HOUR, None] {
            assert_eq!(setup.obtain("alice", expires).await.unwrap(), "Bearer t");
        }
        setup.clock.set(u64::MAX);
        setup.obtain("alice", Some(u64::MAX)).await.unwrap();
    }

    #[tokio::test]
    async fn a_token_about_to_end_is_used_once() {
        let setup = setup(200, r#"{"access_token":"t","expires_in":5}"#).await;
        setup.obtain("alice", HOUR).await.unwrap();
        setup.obtain("alice", HOUR).await.unwrap();
        assert_eq!(setup.posts(), 2);
    }
}
