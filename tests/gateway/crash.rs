//! A process that is killed at any point of writing leaves the store, and the key file, as they were or as they became.
//!
//! `keys rotate` writes everything there is to write: directory, key file, database, tables, rows. It is run again and again
//! with a preloaded library that kills it at its first change to a file, its second and so on, before the change and half way
//! through, until it gets to its end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use portcullis::clock::Clock;
use portcullis::config::{Database, State};
use portcullis::session::{Sealer, load_or_create};
use portcullis::store::{Key, Kind, Store, When};

const CONFIG: &str = "listen: {address: \"127.0.0.1:0\"}
state: {directory: state}
routes:
  notes: {path: /notes/mcp, anonymous: true, upstream: \"http://127.0.0.1:1/mcp\"}
";
/// Far more than there are.
const MOST: usize = 1000;

/// The library, made for this run.
fn library() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let library = directory.join("kill_at.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway/fixtures/kill_at.c");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .status();
    assert!(made.expect("a C compiler").success());
    library
}

/// Rotates the keys in that directory, to be killed at that point; whether it got to its end.
fn rotate(directory: &Path, library: &Path, at: usize, half: bool) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(["keys", "rotate"])
        .current_dir(directory)
        .env("LD_PRELOAD", library)
        .env("KILL_AT", at.to_string());
    if half {
        command.env("KILL_HALF", "1");
    }
    let output = command.output().expect("the binary runs");
    let killed = output.status.signal() == Some(9);
    assert!(
        killed || output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    !killed
}

fn people() -> Vec<(String, String)> {
    // Some fill several of SQLite's pages.
    [3, 9000, 60_000, 40]
        .into_iter()
        .enumerate()
        .map(|(n, length)| (format!("p{n}"), n.to_string().repeat(length)))
        .collect()
}

fn connection(person: &str) -> Key<'_> {
    Key {
        kind: Kind::Connection,
        scope: "notes",
        id: person,
    }
}

async fn open(directory: &Path) -> (Store, Arc<Sealer>) {
    let state = State {
        directory: directory.join("state"),
        database: Database::Sqlite,
        seal_keys: Vec::new(),
    };
    let (sealer, warning) = load_or_create(&state.directory).expect("the key file is whole");
    assert!(warning.is_none());
    let sealer = Arc::new(sealer);
    let store = Store::open(&state, sealer.clone(), Clock::system()).await;
    (store.expect("the store opens"), sealer)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// All is there, nobody else's, and nothing had to be put aside.
fn whole(directory: &Path) {
    for entry in directory.join("state").read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o077, 0, "{name}");
        assert!(!name.contains("corrupt"), "{name}");
    }
}

#[tokio::test]
async fn r17_killed_at_any_write_a_rotation_loses_no_row() {
    let library = library();
    let template = tempfile::tempdir().unwrap();
    fs::write(template.path().join("portcullis.yaml"), CONFIG).unwrap();
    let (store, sealer) = open(template.path()).await;
    for (person, tokens) in people() {
        let key = connection(&person);
        let put = store.put(&key, tokens.as_bytes(), "connected", Some(7), When::Absent);
        assert!(put.await.unwrap().is_some());
    }
    let old = sealer.key_ids().next().unwrap().to_vec();
    store.close().await;

    for half in [false, true] {
        let mut seen = BTreeSet::new();
        let mut points = 0;
        loop {
            points += 1;
            assert!(points < MOST);
            let work = tempfile::tempdir().unwrap();
            copy(template.path(), work.path());
            let ended = rotate(work.path(), &library, points, half);
            let (store, sealer) = open(work.path()).await;
            let keys = sealer.key_ids().count();
            assert!(
                keys <= 2 && sealer.key_ids().any(|id| id == old),
                "the old key opens still"
            );
            for (person, tokens) in people() {
                let row = store
                    .get(&connection(&person))
                    .await
                    .expect("it opens")
                    .expect("it is there");
                assert!(*row.value == tokens.as_bytes() && row.label == "connected" && row.expires == Some(7));
            }
            let by = store.sealed_by().await.unwrap();
            assert_eq!(by.iter().map(|(_, count)| count).sum::<u64>(), 4);
            seen.insert((keys, by.len(), by.iter().any(|(id, _)| *id == hex(&old))));
            // And it can be carried on with.
            store.reseal().await.unwrap();
            assert_eq!(store.sealed_by().await.unwrap().len(), 1);
            whole(work.path());
            if ended {
                break;
            }
        }
        assert!(points > 20, "{points} points: is the library at work?");
        // Before the new key, between key and rows, after the rows; never some rows, for all are in one transaction.
        assert_eq!(
            seen,
            BTreeSet::from([(1, 1, true), (2, 1, true), (2, 1, false)]),
            "half: {half}"
        );
        println!("{points} points, half: {half}");
    }
}

#[tokio::test]
async fn killed_at_any_write_a_first_start_can_be_made_again() {
    let library = library();
    for half in [false, true] {
        for point in 1.. {
            assert!(point < MOST);
            let work = tempfile::tempdir().unwrap();
            fs::write(work.path().join("portcullis.yaml"), CONFIG).unwrap();
            let ended = rotate(work.path(), &library, point, half);
            let (store, _) = open(work.path()).await;
            let key = connection("p");
            let put = store.put(&key, b"tokens", "connected", None, When::Absent);
            assert!(put.await.unwrap().is_some());
            assert!(
                store
                    .lease("l", std::time::Duration::from_secs(1))
                    .await
                    .unwrap()
                    .is_some()
            );
            whole(work.path());
            if ended {
                println!("{point} points, half: {half}");
                break;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
