use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::{SealKey, State};

const NOW: UnixSeconds = 1_800_000_000;

fn sealer(keys: &[u8]) -> Arc<Sealer> {
    let keys: Vec<_> = keys.iter().map(|byte| SealKey(Zeroizing::new([*byte; 32]))).collect();
    Arc::new(Sealer::new(&keys))
}

fn state(directory: &Path) -> State {
    State {
        directory: directory.to_owned(),
        database: Database::Sqlite,
        seal_keys: Vec::new(),
    }
}

async fn open(directory: &Path) -> Result<Store, StoreError> {
    Store::open(&state(directory), sealer(&[1]), Clock::fixed(NOW)).await
}

fn key<'a>(scope: &'a str, id: &'a str) -> Key<'a> {
    Key {
        kind: Kind::Connection,
        scope,
        id,
    }
}

async fn value(store: &Store, key: &Key<'_>) -> Option<Vec<u8>> {
    store.get(key).await.unwrap().map(|row| row.value.to_vec())
}

#[tokio::test]
async fn a_row_outlives_the_store_that_wrote_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let version = store
        .put(&key("github", "p"), b"tokens", "connected", Some(NOW + 9), When::Absent)
        .await
        .unwrap()
        .unwrap();
    drop(store);
    let row = open(directory.path())
        .await
        .unwrap()
        .get(&key("github", "p"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.version, &*row.label, row.expires, row.value.as_slice()),
        (version, "connected", Some(NOW + 9), &b"tokens"[..])
    );
}

#[tokio::test]
async fn the_files_are_nobody_elses_and_hold_nothing_readable() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("deep/state");
    let store = open(&state).await.unwrap();
    store
        .put(&key("r", "p"), b"the-refresh-token", "connected", None, When::Always)
        .await
        .unwrap();
    let mut names = Vec::new();
    for entry in state.read_dir().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().mode() & 0o777,
            0o600,
            "{:?}",
            entry.file_name()
        );
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(17).any(|window| window == b"the-refresh-token"));
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "portcullis.db",
            "portcullis.db-shm",
            "portcullis.db-wal",
            "portcullis.db.lock"
        ]
    );
    assert_eq!(state.metadata().unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_file_that_others_may_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await.unwrap());
    let path = directory.path().join("portcullis.db");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let error = open(directory.path()).await.err().unwrap();
    assert_eq!(error.fault, Fault::TooOpen(0o640));
    assert!(
        error.to_string().contains("portcullis.db") && error.to_string().contains("chmod 600"),
        "{error}"
    );
}

#[tokio::test]
async fn r33_keys_that_join_to_one_text_are_different_rows() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let keys = [
        ("foo/bar", "p"),
        ("foo_bar", "p"),
        ("foo", "bar/p"),
        ("foo/bar/p", ""),
        ("", "foo/bar/p"),
        ("FOO/bar", "p"),
    ];
    for (scope, id) in keys {
        let text = format!("{scope}+{id}");
        let put = store
            .put(&key(scope, id), text.as_bytes(), "", None, When::Absent)
            .await
            .unwrap();
        assert!(put.is_some(), "{text} is taken");
    }
    for (scope, id) in keys {
        let found = value(&store, &key(scope, id)).await;
        assert_eq!(found.unwrap(), format!("{scope}+{id}").into_bytes());
        assert!(store.remove(&key(scope, id), When::Always).await.unwrap());
    }
    assert!(store.tally(Kind::Connection).await.unwrap().is_empty());
}

proptest! {
    #[test]
    fn r33_no_two_places_read_the_same(
        one in (".{0,6}", ".{0,6}", ".{0,3}", proptest::option::of(0..3_i64)),
        two in (".{0,6}", ".{0,6}", ".{0,3}", proptest::option::of(0..3_i64)),
    ) {
        let at = |(scope, id, label, expires): &(String, String, String, Option<i64>)| place(["login", scope, id, label], *expires);
        prop_assert_eq!(one == two, at(&one) == at(&two));
        // The same letters, cut elsewhere.
        let joined = format!("{}{}", one.0, one.1);
        for cut in joined.char_indices().map(|(at, _)| at) {
            let (scope, id) = joined.split_at(cut);
            let same = scope == one.0;
            prop_assert_eq!(same, at(&(scope.into(), id.into(), String::new(), None)) == at(&(one.0.clone(), one.1.clone(), String::new(), None)));
        }
    }
}
