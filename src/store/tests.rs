use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::{SealKey, State};
use crate::session::{self, KeyFile};

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

#[tokio::test]
async fn r18_a_damaged_file_is_put_aside_with_its_log_and_never_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("portcullis.db");
    let beside = |suffix: &str| directory.path().join(format!("portcullis.db{suffix}"));
    let mut kept = Vec::new();
    for (round, suffix) in [".corrupt-1800000000", ".corrupt-1800000000-1", ".corrupt-1800000000-2"]
        .into_iter()
        .enumerate()
    {
        let store = open(directory.path()).await.unwrap();
        assert!(value(&store, &key("r", "p")).await.is_none(), "an empty one was begun");
        for n in 0..40 {
            store
                .put(&key("r", &n.to_string()), &[7; 3000], "connected", None, When::Always)
                .await
                .unwrap();
        }
        store.close().await;
        drop(store);
        let mut bytes = std::fs::read(&file).unwrap();
        match round {
            0 => bytes[..16].copy_from_slice(b"no database here"),
            // In the middle, where nothing looks when it is opened.
            1 => bytes[4096 * 3..4096 * 5].fill(0xa5),
            _ => bytes.truncate(4096 * 2 + 100),
        }
        std::fs::write(&file, &bytes).unwrap();
        // Of a process that was killed: a log that goes with the file.
        std::fs::write(beside("-wal"), b"log").unwrap();
        let store = open(directory.path()).await.unwrap();
        assert_eq!(store.put_aside(), Some(&*beside(suffix)));
        store
            .put(&key("r", "next"), b"tokens", "", None, When::Absent)
            .await
            .unwrap()
            .unwrap();
        assert!(value(&store, &key("r", "7")).await.is_none());
        store.remove(&key("r", "next"), When::Always).await.unwrap();
        store.close().await;
        kept.push((beside(suffix), bytes));
        for (aside, bytes) in &kept {
            assert!(std::fs::read(aside).unwrap() == *bytes, "{} as it was", aside.display());
            assert_eq!(aside.metadata().unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read(beside(&format!("{suffix}-wal"))).unwrap(), b"log");
    }
}

#[tokio::test]
async fn a_damaged_file_stays_while_somebody_has_it_open() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).await.unwrap();
    first
        .put(&key("r", "p"), b"tokens", "", None, When::Always)
        .await
        .unwrap();
    std::fs::write(directory.path().join("portcullis.db"), [0xa5; 8192]).unwrap();
    std::fs::remove_file(directory.path().join("portcullis.db-wal")).unwrap();
    let error = open(directory.path()).await.err().unwrap();
    assert!(matches!(error.fault, Fault::CorruptInUse(_)), "{error}");
    assert!(std::fs::read(directory.path().join("portcullis.db")).unwrap() == [0xa5; 8192]);
    first.close().await;
    drop(first);
    // Closing has written its pages, which mended what they cover.
    std::fs::write(directory.path().join("portcullis.db"), [0xa5; 8192]).unwrap();
    assert!(open(directory.path()).await.unwrap().put_aside().is_some());
}

#[tokio::test]
async fn what_is_no_file_of_ours_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("elsewhere", directory.path().join("portcullis.db")).unwrap();
    assert_eq!(open(directory.path()).await.err().unwrap().fault, Fault::NoFile);
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = open(&file).await.err().unwrap();
    assert_eq!(error.fault.reason(), "file", "{error}");
}

#[tokio::test]
async fn a_new_key_in_the_key_file_is_taken_up_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let own = || Arc::new(crate::session::load_or_create(directory.path()).unwrap().0);
    let old = own();
    let one = Store::open(&state(directory.path()), old.clone(), Clock::system())
        .await
        .unwrap();
    let two = Store::open(&state(directory.path()), old.clone(), Clock::system())
        .await
        .unwrap();
    for store in [&one, &two] {
        store
            .put(&key("r", "before"), b"old", "", None, When::Always)
            .await
            .unwrap();
    }
    KeyFile::change(directory.path()).unwrap().renew().unwrap();
    let new = hex(own().key_ids().next().unwrap());
    one.put(&key("r", "p"), b"new", "", None, When::Always).await.unwrap();
    let by = one.sealed_by().await.unwrap();
    assert!(by.contains(&(new.clone(), 1)) && by.len() == 2, "{by:?}");
    assert_eq!(value(&two, &key("r", "p")).await.unwrap(), b"new");
    assert_eq!(two.reseal().await.unwrap().rows, 1);
    assert_eq!(one.sealed_by().await.unwrap(), [(new, 2)]);
    KeyFile::change(directory.path()).unwrap().forget().unwrap();
    for store in [&one, &two] {
        assert_eq!(value(store, &key("r", "before")).await.unwrap(), b"old");
    }

    // A key file that can't be used changes nothing, nor does one that is gone.
    let file = crate::session::key_file(directory.path());
    for broken in [true, false] {
        if broken {
            std::fs::write(&file, "no key").unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        one.put(&key("r", "p"), b"later", "", None, When::Always).await.unwrap();
        assert_eq!(value(&two, &key("r", "p")).await.unwrap(), b"later");
    }
}

#[tokio::test]
async fn keys_that_a_reload_read_before_a_rotation_do_not_last() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = session::load_or_create(directory.path()).unwrap();
    let store = Store::open(&state(directory.path()), Arc::new(first), Clock::fixed(NOW))
        .await
        .unwrap();
    let (before, _) = session::load_or_create(directory.path()).unwrap();
    KeyFile::change(directory.path()).unwrap().renew().unwrap();
    let key = key("github", "p");
    store
        .put(&key, b"tokens", "connected", None, When::Always)
        .await
        .unwrap();
    store.replace_sealer(Arc::new(before));
    assert_eq!(value(&store, &key).await.as_deref(), Some(&b"tokens"[..]));
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
