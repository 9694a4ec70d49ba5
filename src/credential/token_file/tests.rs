//! A file that others write, and an issuer that takes each refresh token once.

use std::fs;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use super::*;
use crate::secret::Secret;
use crate::telemetry::Metrics;

const NOW: UnixSeconds = 1_800_000_000;

struct Setup {
    directory: tempfile::TempDir,
    clock: Clock,
    shown: watch::Sender<Vec<String>>,
    /// A permit an answer.
    gate: Arc<Semaphore>,
    /// What the issuer answers first.
    script: Arc<Mutex<Vec<TokenError>>>,
    file: Arc<TokenFile>,
}

impl Setup {
    fn new(content: &Value, refreshed: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tokens"), content.to_string()).unwrap();
        let clock = Clock::fixed(NOW);
        let (shown, gate, script) = (watch::Sender::default(), Arc::new(Semaphore::new(1000)), Arc::default());
        let refresh = refresh(&shown, &gate, &script, &clock);
        let file = open(&directory, refreshed.then_some(refresh), &clock);
        Self {
            directory,
            clock,
            shown,
            gate,
            script,
            file,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("tokens")
    }

    /// As a careful program does it.
    fn rewrite(&self, content: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// Another process's view of the same file.
    fn other(&self) -> Arc<TokenFile> {
        let refresh = refresh(&self.shown, &self.gate, &self.script, &self.clock);
        open(&self.directory, Some(refresh), &self.clock)
    }

    fn shown(&self) -> Vec<String> {
        self.shown.borrow().clone()
    }

    async fn token(&self) -> Result<String, CredentialError> {
        token(&self.file).await
    }

    fn written(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path()).unwrap()).unwrap()
    }
}

fn open(directory: &tempfile::TempDir, refresh: Option<Refresh>, clock: &Clock) -> Arc<TokenFile> {
    let metrics = Metrics::new().route("notes");
    let path = directory.path().join("tokens");
    TokenFile::new(path, refresh, clock.clone(), metrics, Underway::default())
}

fn refresh(
    shown: &watch::Sender<Vec<String>>,
    gate: &Arc<Semaphore>,
    script: &Arc<Mutex<Vec<TokenError>>>,
    clock: &Clock,
) -> Refresh {
    let (shown, gate, script, clock) = (shown.clone(), gate.clone(), script.clone(), clock.clone());
    Arc::new(move |tokens| {
        let (shown, gate, script, clock) = (shown.clone(), gate.clone(), script.clone(), clock.clone());
        Box::pin(async move {
            let presented = tokens.refresh_token.expect("one to show").expose().to_owned();
            let known = shown.borrow().contains(&presented);
            shown.send_modify(|shown| shown.push(presented));
            let count = shown.borrow().len();
            let _place = gate.acquire().await.unwrap();
            if let Some(error) = script.lock().unwrap().pop() {
                return Err(error);
            }
            if known {
                return Err(TokenError::Rejected { error: "invalid_grant" });
            }
            Ok(TokenSet {
                access_token: Secret::new(format!("access-{count}")),
                refresh_token: Some(Secret::new(format!("refresh-{count}"))),
                expires_at: Some(clock.now() + 3600),
                scopes: None,
                id_token: None,
            })
        })
    })
}

async fn token(file: &Arc<TokenFile>) -> Result<String, CredentialError> {
    let credential = file.credential().await?;
    let (_, value) = credential.header.expect("a header");
    assert!(value.is_sensitive());
    Ok(value.to_str().unwrap().to_owned())
}

fn tokens(name: &str, expires_at: u64) -> Value {
    json!({"access_token": format!("access-{name}"), "refresh_token": format!("refresh-{name}"), "expires_at": expires_at,
           "account": "ops"})
}

#[tokio::test]
async fn r29_what_another_program_wrote_is_used_by_the_next_request() {
    let setup = Setup::new(&tokens("0", NOW + 3600), false);
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    setup.rewrite("by-a-cron-job\n");
    assert_eq!(setup.token().await.unwrap(), "Bearer by-a-cron-job");
    // In place, and just as long.
    for token in ["by-a-cron-jab", "by-a-cron-jib", "by-a-cron-jub"] {
        fs::write(setup.path(), token).unwrap();
        assert_eq!(setup.token().await.unwrap(), format!("Bearer {token}"));
    }
}

#[tokio::test]
async fn r18_a_broken_or_missing_file_changes_nothing_and_is_told() {
    let setup = Setup::new(&tokens("0", NOW + 3600), true);
    for broken in ["", "{\"access_token\": \"acc", "{}", "\u{0}\u{0}"] {
        setup.rewrite(broken);
        assert_eq!(setup.token().await.unwrap(), "Bearer access-0", "{broken}");
        let health = setup.file.health();
        assert_eq!(health.state, State::Failing);
        assert!(health.last_error.is_some());
        assert_eq!(
            fs::read_to_string(setup.path()).unwrap(),
            broken,
            "it is never overwritten"
        );
    }
    // Not even when the token is over.
    setup.clock.set(NOW + 3600);
    assert!(setup.token().await.is_err());
    assert_eq!(fs::read_to_string(setup.path()).unwrap(), "\u{0}\u{0}");
    setup.clock.set(NOW);
    fs::remove_file(setup.path()).unwrap();
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    setup.rewrite("new");
    assert_eq!(setup.token().await.unwrap(), "Bearer new");
    assert_eq!(setup.file.health().last_error, None);
}

#[tokio::test]
async fn a_file_that_comes_later_is_found() {
    let setup = Setup::new(&tokens("0", NOW), false);
    fs::remove_file(setup.path()).unwrap();
    let file = setup.other();
    assert!(matches!(token(&file).await, Err(CredentialError::File(_))));
    assert_eq!(file.health().state, State::NeedsAuth);
    setup.rewrite("here");
    assert_eq!(token(&file).await.unwrap(), "Bearer here");
}

#[tokio::test]
async fn r12_r31_an_ended_token_is_refreshed_once_first_and_written_with_the_rest() {
    let setup = Setup::new(&tokens("0", NOW - 1), true);
    for token in join_all((0..50).map(|_| setup.token())).await {
        assert_eq!(token.unwrap(), "Bearer access-1");
    }
    assert_eq!(setup.shown(), ["refresh-0"]);
    assert_eq!(setup.written(), tokens("1", NOW + 3600));
    let health = setup.file.health();
    assert_eq!(
        (health.state, health.age, health.remaining),
        (State::Connected, Some(0), Some(3600))
    );
}

#[tokio::test]
async fn r34_of_two_processes_one_refreshes_and_the_other_adopts() {
    let setup = Setup::new(&tokens("0", NOW - 1), true);
    let other = setup.other();
    let (ours, theirs) = tokio::join!(
        join_all((0..20).map(|_| setup.token())),
        join_all((0..20).map(|_| token(&other)))
    );
    for token in ours.into_iter().chain(theirs) {
        assert_eq!(token.unwrap(), "Bearer access-1");
    }
    assert_eq!(setup.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn r13_who_is_refused_adopts_what_another_program_wrote_meanwhile() {
    let setup = Setup::new(&tokens("0", NOW - 1), true);
    setup
        .script
        .lock()
        .unwrap()
        .push(TokenError::Rejected { error: "invalid_grant" });
    let held_up = setup.gate.acquire_many(1000).await.unwrap();
    let file = setup.file.clone();
    let call = tokio::spawn(async move { token(&file).await });
    setup
        .shown
        .subscribe()
        .wait_for(|shown| !shown.is_empty())
        .await
        .unwrap();
    // It knows nothing of our lock.
    setup.rewrite(&tokens("theirs", NOW + 3600).to_string());
    drop(held_up);
    assert_eq!(call.await.unwrap().unwrap(), "Bearer access-theirs");
    assert_eq!(setup.file.health().state, State::Connected);
}

#[tokio::test]
async fn what_another_program_wrote_during_a_refresh_stays() {
    let setup = Setup::new(&tokens("0", NOW - 1), true);
    let held_up = setup.gate.acquire_many(1000).await.unwrap();
    let file = setup.file.clone();
    let call = tokio::spawn(async move { token(&file).await });
    setup
        .shown
        .subscribe()
        .wait_for(|shown| !shown.is_empty())
        .await
        .unwrap();
    // Somebody logged in anew, and knows nothing of our lock.
    let theirs = tokens("theirs", NOW + 3600);
    setup.rewrite(&theirs.to_string());
    drop(held_up);
    assert_eq!(call.await.unwrap().unwrap(), "Bearer access-theirs");
    assert_eq!(setup.written(), theirs);
    assert_eq!(setup.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn nobody_else_presents_what_is_spent_while_the_new_pair_is_not_written() {
    let setup = Setup::new(&tokens("0", NOW - 1), true);
    let other = setup.other();
    let held_up = setup.gate.acquire_many(1000).await.unwrap();
    let file = setup.file.clone();
    let call = tokio::spawn(async move { token(&file).await });
    setup
        .shown
        .subscribe()
        .wait_for(|shown| !shown.is_empty())
        .await
        .unwrap();
    let away = setup.directory.path().join("away");
    fs::rename(setup.path(), &away).unwrap();
    drop(held_up);
    assert_eq!(call.await.unwrap().unwrap(), "Bearer access-1");
    fs::rename(&away, setup.path()).unwrap();
    assert_eq!(token(&other).await.unwrap(), "Bearer access-1");
    assert_eq!(setup.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn r22_a_slow_refresh_holds_up_nobody_while_the_old_token_lives() {
    let setup = Setup::new(&tokens("0", NOW + 3600), true);
    // Long after the file was written, by this clock.
    setup.clock.set(NOW + 3500);
    let held_up = setup.gate.acquire_many(1000).await.unwrap();
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    setup
        .shown
        .subscribe()
        .wait_for(|shown| !shown.is_empty())
        .await
        .unwrap();
    assert_eq!(setup.token().await.unwrap(), "Bearer access-0");
    assert_eq!(setup.file.health().state, State::Connected);
    drop(held_up);
    setup
        .file
        .renewal
        .join(&Underway::default(), || async { Ok(()) })
        .await
        .unwrap();
    assert_eq!(setup.token().await.unwrap(), "Bearer access-1");
    assert_eq!(setup.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn r27_a_refused_token_is_replaced_once_and_an_unchanged_file_is_not_new() {
    let setup = Setup::new(&tokens("0", NOW + 3600), true);
    let recovery = setup.file.credential().await.unwrap().recovery.unwrap();
    let mut last = None;
    for renewed in join_all((0..20).map(|_| recovery.recover())).await {
        let renewed = renewed.unwrap().expect("another");
        assert_eq!(renewed.header.as_ref().unwrap().1, "Bearer access-1");
        last = renewed.recovery;
    }
    assert_eq!(setup.shown(), ["refresh-0"]);
    assert!(last.unwrap().recover().await.unwrap().is_none(), "no loop");

    let others = Setup::new(&json!({"access_token": "a"}), false);
    let recovery = others.file.credential().await.unwrap().recovery.unwrap();
    assert!(recovery.recover().await.unwrap().is_none(), "the file is as it was");
    others.rewrite("b");
    let renewed = recovery.recover().await.unwrap().expect("the file's other token");
    assert_eq!(renewed.header.unwrap().1, "Bearer b");
}

#[tokio::test]
async fn r35_a_failure_that_may_pass_deletes_nothing_and_a_refusal_is_not_repeated() {
    let setup = Setup::new(&tokens("0", NOW - 1), true);
    setup
        .script
        .lock()
        .unwrap()
        .push(TokenError::Unreachable("no answer in time"));
    assert_eq!(
        setup.token().await,
        Err(CredentialError::Unreachable("no answer in time"))
    );
    assert!(setup.token().await.is_err());
    assert_eq!(setup.shown().len(), 1, "nobody asks again at once");
    assert_eq!(setup.file.health().state, State::Failing);
    assert_eq!(setup.written(), tokens("0", NOW - 1));
    setup.clock.set(NOW + 1);
    // This issuer takes a token once: it had been answered after all.
    assert!(matches!(setup.token().await, Err(CredentialError::Rejected { .. })));
    setup.clock.set(NOW + 9999);
    assert!(setup.token().await.is_err());
    assert_eq!(setup.shown().len(), 2, "a refusal is final");
    assert_eq!(setup.file.health().state, State::NeedsAuth);
    setup.rewrite(&tokens("n", NOW).to_string());
    assert_eq!(
        setup.token().await.unwrap(),
        "Bearer access-3",
        "until the file has others"
    );
}

#[tokio::test]
async fn a_pair_that_cannot_be_written_is_used_and_written_later() {
    let setup = Setup::new(&tokens("0", NOW - 1), true);
    let held_up = setup.gate.acquire_many(1000).await.unwrap();
    let file = setup.file.clone();
    let call = tokio::spawn(async move { token(&file).await });
    setup
        .shown
        .subscribe()
        .wait_for(|shown| !shown.is_empty())
        .await
        .unwrap();
    // The file is gone while the issuer answers: there is no place to write to.
    let away = setup.directory.path().join("away");
    fs::rename(setup.path(), &away).unwrap();
    drop(held_up);
    assert_eq!(call.await.unwrap().unwrap(), "Bearer access-1");
    fs::rename(&away, setup.path()).unwrap();
    assert_eq!(
        setup.token().await.unwrap(),
        "Bearer access-1",
        "not the spent one, which the file still has"
    );
    let written = tokio::time::timeout(Duration::from_secs(20), async {
        while setup.written()["access_token"] != "access-1" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    written.await.expect("in time");
    assert_eq!(setup.shown(), ["refresh-0"]);
}

#[tokio::test]
async fn a_token_that_is_over_and_that_nobody_renews_does_not_leave() {
    let setup = Setup::new(&tokens("0", NOW + 10), false);
    assert_eq!(setup.file.health().state, State::Expiring);
    setup.clock.set(NOW + 10);
    assert!(setup.token().await.is_err());
    assert_eq!(setup.file.health().state, State::NeedsAuth);
    assert_eq!(setup.file.health().remaining, Some(0));
}
