//! An issuer's own metadata, for clients that look for it on the resource's origin instead of the issuer's.
//!
//! MCP 2025-03-26 tells them to, and some do so still. What they get is what the issuer says, so that they end up there.
//!
//! 1. The bytes are the issuer's, and pass as they came; a document counts only when it is a JSON object whose `issuer`
//!    is byte for byte the configured one (RFC 8414 section 3.3). Where the issuer has only one of the two [`Form`]s it
//!    answers for both: most issuers publish one, most clients ask for one, and either leads to the same endpoints.
//! 2. The issuer is asked when a client asks, at most every [`FRESH`] seconds, and [`RETRY`] seconds after a failure. One
//!    fetch at a time for a form, a task of its own: it goes on when those who wait go away.
//! 3. What is older is served while a newer one is fetched or can't be had, for [`MAX_AGE`] seconds; what was never
//!    fetched is waited for, [`PATIENCE`] at most.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::authn::SetupError;
use crate::authn::fetch;
use crate::clock::{Clock, UnixSeconds};
use crate::config::Identity;
use crate::oauth::fetch::{FetchError, Fetcher};
use crate::oauth::metadata::{self, DiscoveryError, Form};

/// Seconds that a copy is served without asking again.
const FRESH: u64 = 5 * 60;

/// Seconds that a copy is served while the issuer is down: as long as its keys are believed.
const MAX_AGE: u64 = 24 * 60 * 60;

/// Seconds between a failure and the next attempt.
const RETRY: u64 = 10;

/// How long a request waits where there is no copy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    #[error("the issuer publishes no metadata")]
    Absent,
    #[error("the issuer's metadata can't be had now; try again later")]
    Unavailable,
    #[error("what the issuer publishes as its metadata can't be used")]
    Unusable,
}

impl From<&DiscoveryError> for MirrorError {
    fn from(error: &DiscoveryError) -> Self {
        match error {
            DiscoveryError::Issuer => Self::Absent,
            DiscoveryError::Fetch { source, .. } => match source {
                absence if absence.is_absence() => Self::Absent,
                FetchError::Slow | FetchError::Unreachable | FetchError::Status(_) => Self::Unavailable,
                FetchError::Large | FetchError::Redirect | FetchError::Address(_) => Self::Unusable,
            },
            _ => Self::Unusable,
        }
    }
}

/// The issuers whose metadata can be mirrored.
#[derive(Default)]
pub struct Mirrors(Vec<Arc<Mirror>>);

impl Mirrors {
    /// Builds a client an issuer; asks nobody. An issuer at no address that may be asked has no mirror.
    ///
    /// # Errors
    /// When a CA file can't be used.
    pub fn new(identities: &[Arc<Identity>], clock: &Clock) -> Result<Self, SetupError> {
        let mut mirrors = Self::default();
        for identity in identities {
            let Ok(url) = fetch::issuer_url(identity) else {
                continue;
            };
            if mirrors.of(&identity.issuer).is_some() {
                continue;
            }
            let fetcher = match fetch::fetcher(identity, &url) {
                Ok(fetcher) => fetcher,
                // Whoever has the issuer's keys in a file needs no issuer that can be asked.
                Err(SetupError::Address { .. }) => continue,
                Err(error) => return Err(error),
            };
            mirrors.0.push(Arc::new(Mirror {
                issuer: identity.issuer.clone(),
                ca: identity.ca.clone(),
                fetcher,
                clock: clock.clone(),
                oauth: watch::Sender::default(),
                openid: watch::Sender::default(),
            }));
        }
        Ok(mirrors)
    }

    /// Takes over what was fetched already from the same issuers, asked in the same way.
    pub fn inherit(&self, older: &Self) {
        for mirror in &self.0 {
            let before = older.of(&mirror.issuer).filter(|before| before.ca == mirror.ca);
            for form in [Form::OAuth, Form::OpenId] {
                let copy = before.and_then(|before| before.slot(form).borrow().copy.clone());
                mirror.slot(form).send_modify(|slot| slot.copy = copy);
            }
        }
    }

    /// The mirror of this issuer.
    pub(super) fn of(&self, issuer: &str) -> Option<&Arc<Mirror>> {
        self.0.iter().find(|mirror| mirror.issuer == issuer)
    }
}

/// One issuer's documents and where they come from.
pub(super) struct Mirror {
    issuer: String,
    ca: Option<PathBuf>,
    fetcher: Fetcher,
    clock: Clock,
    oauth: watch::Sender<Slot>,
    openid: watch::Sender<Slot>,
}

/// What is known of one document.
#[derive(Default)]
struct Slot {
    copy: Option<Kept>,
    failure: Option<Failure>,
    fetching: bool,
}

/// A document, and when the issuer last confirmed it.
#[derive(Clone)]
struct Kept {
    document: Bytes,
    at: UnixSeconds,
}

/// Of the last attempt.
struct Failure {
    error: MirrorError,
    at: UnixSeconds,
}

impl Slot {
    fn servable(&self, now: UnixSeconds) -> Option<Bytes> {
        let copy = self.copy.as_ref()?;
        (now.saturating_sub(copy.at) <= MAX_AGE).then(|| copy.document.clone())
    }

    /// Whether the issuer is to be asked. A clock set back must not close the door, hence the distances either way.
    fn is_due(&self, now: UnixSeconds) -> bool {
        let older = |at: UnixSeconds, bound| now.abs_diff(at) >= bound;
        !self.fetching
            && self.copy.as_ref().is_none_or(|copy| older(copy.at, FRESH))
            && self.failure.as_ref().is_none_or(|failure| older(failure.at, RETRY))
    }

    fn failure(&self) -> MirrorError {
        match &self.failure {
            Some(failure) if !self.fetching => failure.error,
            _ => MirrorError::Unavailable,
        }
    }
}

impl Mirror {
    /// The document of this form, or the other where the issuer has only that.
    ///
    /// # Errors
    /// There is no copy young enough, and the issuer brought none in time.
    pub(super) async fn document(self: &Arc<Self>, form: Form) -> Result<Bytes, MirrorError> {
        self.refresh(form);
        let mut slot = self.slot(form).subscribe();
        if let Some(document) = slot.borrow().servable(self.clock.now()) {
            return Ok(document);
        }
        // Too slow is as good as nothing: what is there then is the answer.
        let _ = tokio::time::timeout(PATIENCE, slot.wait_for(|slot| !slot.fetching)).await;
        let slot = slot.borrow();
        slot.servable(self.clock.now()).ok_or_else(|| slot.failure())
    }

    fn slot(&self, form: Form) -> &watch::Sender<Slot> {
        match form {
            Form::OAuth => &self.oauth,
            Form::OpenId => &self.openid,
        }
    }

    /// Begins a fetch if one is due.
    fn refresh(self: &Arc<Self>, form: Form) {
        let now = self.clock.now();
        let begun = self.slot(form).send_if_modified(|slot| {
            let due = slot.is_due(now);
            slot.fetching |= due;
            due
        });
        if begun {
            let flight = Flight {
                mirror: self.clone(),
                form,
                found: Err(MirrorError::Unavailable),
            };
            tokio::spawn(flight.fly());
        }
    }

    async fn fetch(&self, form: Form) -> Result<Bytes, MirrorError> {
        match metadata::document(&self.fetcher, &self.issuer, form).await {
            Ok(document) => Ok(document.into()),
            Err(error) => {
                tracing::warn!(issuer = self.issuer, ?form, %error, "could not mirror the issuer's metadata");
                Err(MirrorError::from(&error))
            }
        }
    }
}

/// A fetch that ends, however it ends: after a panic, too, the next one must be able to begin.
struct Flight {
    mirror: Arc<Mirror>,
    form: Form,
    found: Result<Bytes, MirrorError>,
}

impl Flight {
    async fn fly(mut self) {
        self.found = self.mirror.fetch(self.form).await;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let at = self.mirror.clock.now();
        self.mirror.slot(self.form).send_modify(|slot| {
            slot.fetching = false;
            slot.failure = None;
            match &self.found {
                Ok(document) => {
                    let document = document.clone();
                    slot.copy = Some(Kept { document, at });
                }
                Err(error) => slot.failure = Some(Failure { error: *error, at }),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use http::StatusCode;

    use super::*;
    use crate::authn::testing::{Answer, Issuer, METADATA, identity};
    use crate::config::KeySource;

    const OPENID: &str = "/.well-known/openid-configuration";

    /// A mirror of an issuer that publishes nothing yet, and its clock.
    async fn start() -> (Issuer, Mirrors, Clock) {
        let issuer = Issuer::start(&[]).await;
        issuer.answer(METADATA, Answer::Status(StatusCode::NOT_FOUND));
        let clock = Clock::fixed(1_000_000);
        let mirrors = Mirrors::new(&[identity("corp", &issuer.url).into()], &clock).unwrap();
        (issuer, mirrors, clock)
    }

    fn document(issuer: &str, name: &str) -> String {
        format!("{{\n  \"x\": \"{name}\" ,\"issuer\":\"{issuer}\", \"scopes_supported\":[ ] }}\n")
    }

    async fn landed(mirror: &Mirror, form: Form) {
        mirror
            .slot(form)
            .subscribe()
            .wait_for(|slot| !slot.fetching)
            .await
            .map(drop)
            .unwrap();
    }

    #[tokio::test]
    async fn each_form_is_asked_for_first_and_the_other_after_it() {
        for (published, form, found) in [
            (&[METADATA, OPENID][..], Form::OAuth, METADATA),
            (&[METADATA, OPENID], Form::OpenId, OPENID),
            (&[METADATA], Form::OpenId, METADATA),
            (&[OPENID], Form::OAuth, OPENID),
        ] {
            let (issuer, mirrors, _) = start().await;
            for path in published {
                issuer.answer(path, Answer::Json(document(&issuer.url, path)));
            }
            let mirrored = mirrors.of(&issuer.url).unwrap().document(form).await.unwrap();
            assert_eq!(
                mirrored,
                document(&issuer.url, found),
                "byte for byte: {published:?} {form:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_issuer_with_a_path_has_its_openid_document_below_it() {
        let (issuer, _, clock) = start().await;
        let tenant = format!("{}/tenant", issuer.url);
        let text = document(&tenant, "tenant");
        issuer.answer("/tenant/.well-known/openid-configuration", Answer::Json(text.clone()));
        let mirrors = Mirrors::new(&[identity("corp", &tenant).into()], &clock).unwrap();
        for form in [Form::OAuth, Form::OpenId] {
            assert_eq!(
                mirrors.of(&tenant).unwrap().document(form).await.unwrap(),
                text,
                "{form:?}"
            );
        }
    }

    #[tokio::test]
    async fn hostile_documents_are_not_passed_on() {
        let url = "http://127.0.0.1:1";
        for (answer, error) in [
            (Answer::Json("<html>Sign in</html>".into()), MirrorError::Unusable),
            (Answer::Json(String::new()), MirrorError::Unusable),
            (Answer::Json("[\"ISSUER\"]".into()), MirrorError::Unusable),
            (Answer::Json("{\"issuer\": [\"ISSUER\"]}".into()), MirrorError::Unusable),
            (Answer::Json("{\"issuer\": \"ISSUER/\"}".into()), MirrorError::Unusable),
            (Answer::Json(document(url, "of somebody else")), MirrorError::Unusable),
            (
                Answer::Json(format!("{{\"issuer\": \"{url}\", \"issuer\": \"ISSUER\"}}")),
                MirrorError::Unusable,
            ),
            (
                Answer::Json("{\"issuer\": \"ISSUER\", \"a\": 1, \"a\": 2}".into()),
                MirrorError::Unusable,
            ),
            (
                Answer::Json("{\"issuer\": \"ISSUER\"} {}".into()),
                MirrorError::Unusable,
            ),
            (
                Answer::Json(format!("{{\"issuer\": \"ISSUER\", \"a\": {}", "[".repeat(100_000))),
                MirrorError::Unusable,
            ),
            (
                Answer::Json(format!("{{\"issuer\": \"ISSUER\"}}{}", " ".repeat(1024 * 1024))),
                MirrorError::Unusable,
            ),
            (Answer::Redirect(format!("{url}/elsewhere")), MirrorError::Unusable),
            (Answer::Redirect(METADATA.into()), MirrorError::Unusable),
            (Answer::Broken, MirrorError::Unavailable),
            (
                Answer::Status(StatusCode::INTERNAL_SERVER_ERROR),
                MirrorError::Unavailable,
            ),
            (Answer::Status(StatusCode::TOO_MANY_REQUESTS), MirrorError::Unavailable),
            (Answer::Status(StatusCode::NOT_FOUND), MirrorError::Absent),
            (Answer::Status(StatusCode::FORBIDDEN), MirrorError::Absent),
        ] {
            let (issuer, mirrors, _) = start().await;
            let answer = match answer {
                Answer::Json(text) => Answer::Json(text.replace("ISSUER", &issuer.url)),
                other => other,
            };
            let shown = format!("{answer:?}");
            let shown = &shown[..shown.len().min(100)];
            issuer.answer(METADATA, answer);
            let mirror = mirrors.of(&issuer.url).unwrap();
            assert_eq!(mirror.document(Form::OAuth).await, Err(error), "{shown}");
            assert_eq!(mirror.document(Form::OpenId).await, Err(error), "{shown}");
        }
    }

    #[tokio::test]
    async fn a_hundred_first_requests_are_one_fetch() {
        let (issuer, mirrors, _) = start().await;
        issuer.publish_metadata(&issuer.url);
        let mirror = mirrors.of(&issuer.url).unwrap();
        let found = join_all((0..100).map(|_| mirror.document(Form::OAuth))).await;
        assert!(found.iter().all(Result::is_ok));
        assert_eq!(issuer.hits(METADATA), 1);
    }

    #[tokio::test]
    async fn an_old_copy_is_served_while_the_issuer_is_down_for_a_day() {
        let (issuer, mirrors, clock) = start().await;
        let mirror = mirrors.of(&issuer.url).unwrap();
        let first = document(&issuer.url, "first");
        issuer.answer(METADATA, Answer::Json(first.clone()));
        assert_eq!(mirror.document(Form::OAuth).await.unwrap(), first);
        let begun = clock.now();
        let hits = async |elapsed, form| {
            clock.set(begun + elapsed);
            let found = mirror.document(form).await;
            landed(mirror, form).await;
            (found, issuer.hits(METADATA))
        };
        issuer.answer(METADATA, Answer::Broken);
        assert_eq!(hits(FRESH - 1, Form::OAuth).await, (Ok(first.clone().into()), 1));
        assert_eq!(hits(FRESH, Form::OAuth).await, (Ok(first.clone().into()), 2));
        assert_eq!(
            hits(FRESH + RETRY - 1, Form::OAuth).await,
            (Ok(first.clone().into()), 2)
        );
        assert_eq!(hits(MAX_AGE, Form::OAuth).await, (Ok(first.clone().into()), 3));
        assert_eq!(hits(MAX_AGE + 1, Form::OAuth).await, (Err(MirrorError::Unavailable), 3));
        let second = document(&issuer.url, "second");
        issuer.answer(METADATA, Answer::Json(second.clone()));
        assert_eq!(hits(MAX_AGE + RETRY, Form::OAuth).await, (Ok(second.clone().into()), 4));
        let third = document(&issuer.url, "third");
        issuer.answer(METADATA, Answer::Json(third.clone()));
        assert_eq!(
            hits(MAX_AGE + RETRY + FRESH, Form::OAuth).await,
            (Ok(second.into()), 5),
            "nobody waits for what is newer"
        );
        assert_eq!(
            hits(0, Form::OAuth).await,
            (Ok(third.into()), 6),
            "the clock was set back"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_issuer_holds_a_request_five_seconds_and_is_asked_once() {
        let (issuer, mirrors, _) = start().await;
        issuer.answer(METADATA, Answer::Hang);
        let mirror = mirrors.of(&issuer.url).unwrap();
        let begun = tokio::time::Instant::now();
        assert_eq!(mirror.document(Form::OAuth).await, Err(MirrorError::Unavailable));
        assert_eq!(begun.elapsed().as_secs(), 5);
        assert_eq!(mirror.document(Form::OAuth).await, Err(MirrorError::Unavailable));
        landed(mirror, Form::OAuth).await;
        assert_eq!(begun.elapsed().as_secs(), 10, "the fetch is bounded itself");
        assert_eq!(issuer.hits(METADATA), 1);
    }

    #[tokio::test]
    async fn a_fetch_that_dies_leaves_room_for_the_next() {
        let (issuer, mirrors, clock) = start().await;
        issuer.publish_metadata(&issuer.url);
        let mirror = mirrors.of(&issuer.url).unwrap();
        mirror.oauth.send_modify(|slot| slot.fetching = true);
        drop(Flight {
            mirror: mirror.clone(),
            form: Form::OAuth,
            found: Err(MirrorError::Unavailable),
        });
        assert_eq!(mirror.document(Form::OAuth).await, Err(MirrorError::Unavailable));
        clock.set(clock.now() + RETRY);
        assert!(mirror.document(Form::OAuth).await.is_ok());
    }

    #[tokio::test]
    async fn a_reload_keeps_what_the_same_issuer_said() {
        let (issuer, mirrors, clock) = start().await;
        issuer.publish_metadata(&issuer.url);
        let said = mirrors.of(&issuer.url).unwrap().document(Form::OAuth).await.unwrap();
        issuer.answer(METADATA, Answer::Broken);
        let corp = identity("corp", &issuer.url);
        let mut changed = identity("corp", &issuer.url);
        let authority = tempfile::NamedTempFile::new().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(authority.path(), made.cert.pem()).unwrap();
        changed.ca = Some(authority.path().to_owned());
        for (identity, expected) in [(corp, Ok(said)), (changed, Err(MirrorError::Unavailable))] {
            let reloaded = Mirrors::new(&[identity.into()], &clock).unwrap();
            reloaded.inherit(&mirrors);
            let mirror = reloaded.of(&issuer.url).unwrap();
            assert_eq!(mirror.document(Form::OAuth).await, expected);
        }
    }

    #[test]
    fn only_issuers_that_may_be_asked_have_a_mirror() {
        let mirrors = |issuer: &str, ca: Option<&str>| {
            let mut identity = identity("corp", issuer);
            identity.keys = KeySource::JwksFile("unread".into());
            identity.ca = ca.map(PathBuf::from);
            Mirrors::new(&[identity.into()], &Clock::fixed(0))
        };
        for issuer in ["", "corp", "http://login.example.com", "https://169.254.169.254"] {
            assert!(mirrors(issuer, None).unwrap().of(issuer).is_none(), "{issuer}");
        }
        for issuer in ["http://127.0.0.1:8002", "http://localhost:8002/realms/corp"] {
            assert!(mirrors(issuer, None).unwrap().of(issuer).is_some(), "{issuer}");
        }
        assert!(mirrors("https://login.example.com", Some("/nowhere.pem")).is_err());
    }
}
