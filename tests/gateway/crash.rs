//! A process that is killed at any point of writing leaves the store, and the key file, as they were or as they became.
//!
//! `keys rotate` writes everything there is to write: directory, key file, database, tables, rows. It is run again and again
//! with a preloaded library that kills it at its first change to a file, its second and so on, before the change and half way
//! through, until it gets to its end. `connect` is killed in the same way where it changes a token file.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http::header::CONTENT_TYPE;
use portcullis::clock::Clock;
use portcullis::config::{Database, State};
use portcullis::edge::full;
use portcullis::session::{Sealer, load_or_create};
use portcullis::store::{Key, Kind, Store, When};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use url::Url;

use super::upstream::Upstream;
use crate::commands::portcullis;

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

/// Logs in for everybody, from a terminal; how that ended, and what it said.
async fn connect(directory: &Path, kill: &[(&str, &str)]) -> (ExitStatus, String) {
    let mut child = portcullis(directory, &["connect", "notes"])
        .stdin(Stdio::piped())
        .envs(kill.iter().copied())
        .spawn()
        .expect("the binary runs");
    let ended = async {
        let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        if let Some(line) = stdout.next_line().await.expect("UTF-8") {
            let address = Url::parse(&line).expect("an address");
            let state = address.query_pairs().find(|(name, _)| name == "state");
            let pasted = format!("/connect/callback?code=c&state={}\n", state.expect("a state").1);
            let mut stdin = child.stdin.take().expect("piped");
            stdin.write_all(pasted.as_bytes()).await.expect("it reads");
        }
        let mut talk = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        stderr.read_to_string(&mut talk).await.expect("UTF-8");
        (child.wait().await.expect("it ends"), talk)
    };
    tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .expect("soon")
}

/// The names in a directory; nobody else can read what they are of.
fn own_names(directory: &Path) -> BTreeSet<String> {
    let names = directory.read_dir().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{name}");
        name
    });
    names.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r17_killed_at_any_write_a_login_leaves_the_token_file_whole() {
    let library = library();
    let new = json!({"access_token": "new", "token_type": "Bearer", "refresh_token": "new-refresh"});
    let issuer = Upstream::undiscovered(move |_| {
        let mut answer = Response::new(full(new.to_string()));
        let json = "application/json".parse().unwrap();
        answer.headers_mut().insert(CONTENT_TYPE, json);
        async move { answer }
    })
    .await;
    let old = json!({"access_token": "old", "refresh_token": "old-refresh", "account": "ops"});
    let new = json!({"access_token": "new", "refresh_token": "new-refresh", "account": "ops"});
    let settled = BTreeSet::from(["tokens.json", "tokens.json.lock"].map(str::to_owned));
    let work = tempfile::tempdir().unwrap();
    let shared = work.path().canonicalize().unwrap().join("shared");
    let config = format!(
        "listen: {{address: \"127.0.0.1:0\", public_url: \"http://127.0.0.1:1\"}}\nstate: {{directory: state}}\nroutes:\n\
         \x20 notes:\n    path: /notes/mcp\n    anonymous: true\n    upstream: \"http://127.0.0.1:1/mcp\"\n    \
         credential: {{token_file: {{path: {path:?}, issuer: \"{issuer}\", authorization_endpoint: \"{issuer}/authorize\", \
         token_endpoint: \"{issuer}/token\", client_id: gate, client_secret: service-secret}}}}\n",
        path = shared.join("tokens.json"),
        issuer = format_args!("http://{}", issuer.address),
    );
    fs::write(work.path().join("portcullis.yaml"), config).unwrap();

    for half in [false, true] {
        let mut seen = BTreeSet::new();
        let mut points = 0;
        loop {
            points += 1;
            assert!(points < MOST);
            let _ = fs::remove_dir_all(&shared);
            fs::create_dir(&shared).unwrap();
            let path = shared.join("tokens.json");
            fs::write(&path, old.to_string()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let at = points.to_string();
            let mut kill = vec![
                ("LD_PRELOAD", library.to_str().unwrap()),
                ("KILL_UNDER", shared.to_str().unwrap()),
                ("KILL_AT", &at),
            ];
            if half {
                kill.push(("KILL_HALF", "1"));
            }
            let (status, talk) = connect(work.path(), &kill).await;
            let killed = status.signal() == Some(9);
            assert!(killed || status.success(), "{status}: {talk}");
            let read = || -> Value { serde_json::from_slice(&fs::read(&path).unwrap()).expect("it is whole") };
            let left = read();
            assert!(left == old || left == new, "point {points}: {left}");
            let names = own_names(&shared);
            let aside = names.iter().any(|name| name.ends_with(".new"));
            seen.insert((aside, left == new));
            // And it can be carried on with; what was left aside, which may hold tokens, doesn't stay.
            if killed {
                let (status, talk) = connect(work.path(), &[]).await;
                assert!(status.success(), "{talk}");
            }
            assert_eq!(read(), new);
            assert_eq!(own_names(&shared), settled, "point {points}");
            if !killed {
                break;
            }
        }
        assert!(points > 7, "{points} points: is the library at work?");
        // Before anything is written, before the rename, after it.
        let all = [(false, false), (true, false), (false, true)];
        assert_eq!(seen, BTreeSet::from(all), "half: {half}");
        println!("{points} points, half: {half}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
