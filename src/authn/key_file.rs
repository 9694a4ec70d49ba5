//! The API keys of one identity, as their file has them now.
//!
//! 1. A key is found by its SHA-256. What a caller could learn from the time that takes is about the hash of what they
//!    sent, which tells them nothing about a key: to steer it they would have to find preimages. No byte of a key is
//!    ever compared with another.
//! 2. The file is read again every [`POLL`]. Whatever it holds then is what is true: a key that is gone is refused from
//!    the next request on, as nothing about keys is cached.
//! 3. A file that can't be read, or has one bad line, changes nothing: the keys from before stay, and the log says why.
//! 4. The owner's issuer is made of what no issuer's URL begins with, and of the identity's name: two files may both
//!    have a `ci`, who are two callers.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::api_key::{self, ApiKey, KeyHash};
use super::{AuthEvent, AuthEvents, Principal};
use crate::clock::{Clock, UnixSeconds};
use crate::config::ApiKeys;
use crate::policy::Roles;

/// Between two looks at the file.
const POLL: Duration = Duration::from_secs(1);

/// One identity's keys.
pub(super) struct KeyFile {
    identity: Arc<str>,
    path: PathBuf,
    roles: Arc<Roles>,
    clock: Clock,
    events: AuthEvents,
    current: ArcSwap<Keys>,
    /// Gives every key that comes its own number.
    serial: AtomicU64,
    last: Mutex<Last>,
}

struct Keys {
    owners: HashMap<KeyHash, Arc<Principal>>,
    at: UnixSeconds,
}

/// What the file was when last looked at.
#[derive(Default)]
struct Last {
    text: Option<KeyHash>,
    error: Option<String>,
}

impl KeyFile {
    /// Begins with the keys that the configuration read.
    pub(super) fn new(
        identity: &Arc<str>,
        keys: &ApiKeys,
        roles: Arc<Roles>,
        clock: Clock,
        events: AuthEvents,
    ) -> Arc<Self> {
        let file = Self {
            identity: identity.clone(),
            path: keys.file.clone(),
            roles,
            current: ArcSwap::from_pointee(Keys {
                owners: HashMap::new(),
                at: clock.now(),
            }),
            clock,
            events,
            serial: AtomicU64::new(0),
            last: Mutex::default(),
        };
        file.replace(keys.keys.clone());
        Arc::new(file)
    }

    /// Whose key this is.
    pub(super) fn owner(&self, hash: &KeyHash) -> Option<Arc<Principal>> {
        self.current.load().owners.get(hash).cloned()
    }

    /// Whether the key that made this principal is still there, with the same roles and end.
    pub(super) fn stands(&self, principal: &Principal) -> bool {
        let current = self.current.load();
        current
            .owners
            .values()
            .any(|owner| owner.generation == principal.generation)
    }

    /// Looks at the file for ever.
    pub(super) async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL).await;
            self.reload().await;
        }
    }

    /// Key count, age in seconds and last error.
    pub(super) fn state(&self) -> (usize, Option<u64>, Option<String>) {
        let current = self.current.load();
        let age = self.clock.now().saturating_sub(current.at);
        (current.owners.len(), Some(age), self.last().error.clone())
    }

    async fn reload(self: &Arc<Self>) {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let text = match read {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return self.complain(error.to_string()),
            Err(_) => return self.complain("reading it was broken off".to_owned()),
        };
        if !self.is_news(&text) {
            return;
        }
        match api_key::parse(&text) {
            Ok(keys) => {
                let (before, count) = (self.current.load_full(), keys.len());
                self.replace(keys);
                let gone = before.owners.values().filter(|owner| !self.stands(owner)).count();
                if gone > 0 {
                    (self.events)(AuthEvent::RightsShaken);
                }
                let healed = self.last().error.take().is_some();
                if gone > 0 || healed || count != before.owners.len() {
                    tracing::info!(identity = %self.identity, keys = count, gone, "took over the changed file of API keys");
                }
            }
            Err(errors) => {
                let errors: Vec<String> = errors.iter().take(10).map(ToString::to_string).collect();
                self.complain(errors.join("; "));
            }
        }
    }

    /// Whether there is anything to take over: another text, or the same after trouble.
    fn is_news(&self, text: &str) -> bool {
        let hash = api_key::hash(text);
        let mut last = self.last();
        last.text.replace(hash) != Some(hash) || last.error.is_some()
    }

    /// A key that is as it was keeps its principal.
    fn replace(&self, keys: Vec<ApiKey>) {
        let before = self.current.load();
        let owners = keys
            .into_iter()
            .map(|key| {
                let same = before.owners.get(&key.hash).filter(|owner| {
                    (&owner.subject, &owner.roles, owner.expires) == (&key.name, &key.roles, key.expires)
                });
                (key.hash, same.cloned().unwrap_or_else(|| Arc::new(self.principal(key))))
            })
            .collect();
        let at = self.clock.now();
        self.current.store(Arc::new(Keys { owners, at }));
    }

    fn principal(&self, key: ApiKey) -> Principal {
        let mut principal = Principal {
            identity: Some(self.identity.clone()),
            issuer: format!("portcullis:api-keys:{}", self.identity),
            subject: key.name,
            roles: key.roles,
            expires: key.expires,
            generation: self.serial.fetch_add(1, Ordering::Relaxed),
            ..Principal::default()
        };
        principal.granted = self.roles.of(&principal);
        principal
    }

    /// Logs what is new; the same trouble every second is one line.
    fn complain(&self, error: String) {
        let mut last = self.last();
        if last.error.as_ref() != Some(&error) {
            tracing::warn!(identity = %self.identity, path = %self.path.display(), %error,
                "the file of API keys can't be used; the keys from before stay");
            last.error = Some(error);
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        // Nothing under this lock can leave it half changed.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At most [`api_key::MAX_FILE`] bytes of text.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(api_key::MAX_FILE as u64 + 1)
        .read_to_string(&mut text)?;
    if text.len() > api_key::MAX_FILE {
        return Err(io::Error::other("it is over 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, key: &str, rest: &str) -> String {
        let hex: String = api_key::hash(key).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name}:{hex}{rest}\n")
    }

    struct Setup {
        file: Arc<KeyFile>,
        _directory: tempfile::TempDir,
    }

    impl Setup {
        fn new(text: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("keys");
            std::fs::write(&path, text).unwrap();
            let keys = ApiKeys {
                file: path,
                keys: api_key::parse(text).unwrap(),
            };
            Self {
                file: KeyFile::new(
                    &"robots".into(),
                    &keys,
                    Arc::default(),
                    Clock::fixed(7),
                    Arc::new(|_| ()),
                ),
                _directory: directory,
            }
        }

        async fn becomes(&self, text: &str) {
            std::fs::write(&self.file.path, text).unwrap();
            self.file.reload().await;
        }

        fn owner(&self, key: &str) -> Option<Arc<Principal>> {
            self.file.owner(&api_key::hash(key))
        }
    }

    #[tokio::test]
    async fn a_key_that_is_gone_is_gone_at_once_and_the_others_stay_who_they_were() {
        let (ci, ops) = (line("ci", "one", ":reader"), line("ops", "two", ""));
        let setup = Setup::new(&format!("{ci}{ops}"));
        let (one, two) = (setup.owner("one").unwrap(), setup.owner("two").unwrap());
        assert_eq!((one.subject.as_str(), one.roles[0].as_str()), ("ci", "reader"));
        assert_eq!(one.issuer, "portcullis:api-keys:robots");
        assert!(setup.owner("three").is_none());
        setup.becomes(&ops).await;
        assert!(setup.owner("one").is_none());
        assert!(!setup.file.stands(&one) && setup.file.stands(&two));
        assert!(Arc::ptr_eq(&setup.owner("two").unwrap(), &two));
        // The same key with other rights is another principal.
        setup.becomes(&line("ops", "two", ":reader")).await;
        assert!(!setup.file.stands(&two));
        assert_eq!(setup.owner("two").unwrap().roles, ["reader"]);
        setup.becomes("").await;
        assert!(setup.owner("two").is_none());
    }

    #[tokio::test]
    async fn a_broken_file_changes_nothing_and_says_which_line() {
        let ci = line("ci", "one", "");
        let setup = Setup::new(&ci);
        let one = setup.owner("one").unwrap();
        setup.becomes(&format!("# new\n{ci}ops:sk-live-4242\n")).await;
        assert!(setup.file.stands(&one));
        let (count, _, error) = setup.file.state();
        assert_eq!(
            (count, error.as_deref()),
            (1, Some("line 3: the hash is not 64 hex digits"))
        );
        std::fs::remove_file(&setup.file.path).unwrap();
        setup.file.reload().await;
        assert!(setup.file.stands(&one) && setup.file.state().2.is_some());
        setup.becomes(&"x".repeat(api_key::MAX_FILE + 1)).await;
        assert_eq!(setup.file.state().2.as_deref(), Some("it is over 1 MiB"));
        // What was there before the trouble is good again although it is not new.
        setup.becomes(&ci).await;
        assert!(setup.file.stands(&one));
        assert_eq!(setup.file.state().2, None);
    }
}
