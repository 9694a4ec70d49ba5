//! `portcullis keys`: what it changes, what it says, and that gateways beside it take the new key up.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portcullis::clock::Clock;
use portcullis::config::{Database, SealKey, State};
use portcullis::session::{KeyFile, Sealer, key_file, load_or_create};
use portcullis::store::{Key, Kind, Store, When};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::commands::{portcullis, run};

const ROUTES: &str = "listen: {address: \"127.0.0.1:0\"}
routes:
  notes: {path: /notes/mcp, anonymous: true, upstream: \"http://127.0.0.1:1/mcp\"}
";
const SOON: Duration = Duration::from_secs(20);

fn configure(directory: &Path, state: &str) {
    fs::write(directory.join("portcullis.yaml"), format!("{ROUTES}state: {state}\n")).unwrap();
}

async fn open(directory: &Path, sealer: Arc<Sealer>) -> Store {
    let state = State {
        directory: directory.join("state"),
        database: Database::Sqlite,
        seal_keys: Vec::new(),
    };
    Store::open(&state, sealer, Clock::system()).await.unwrap()
}

fn own(directory: &Path) -> Arc<Sealer> {
    Arc::new(load_or_create(&directory.join("state")).unwrap().0)
}

fn configured(bytes: &[u8]) -> Arc<Sealer> {
    let keys: Vec<_> = bytes.iter().map(|byte| SealKey(Zeroizing::new([*byte; 32]))).collect();
    Arc::new(Sealer::new(&keys))
}

async fn write(store: &Store, people: &[&str]) {
    for person in people {
        let key = Key {
            kind: Kind::Connection,
            scope: "notes",
            id: person,
        };
        store
            .put(&key, person.as_bytes(), "connected", None, When::Always)
            .await
            .unwrap();
    }
}

async fn reads(store: &Store, person: &str) -> bool {
    let key = Key {
        kind: Kind::Connection,
        scope: "notes",
        id: person,
    };
    match store.get(&key).await {
        Ok(row) => *row.expect("it is there").value == person.as_bytes(),
        Err(_) => false,
    }
}

/// As if it had last changed a while ago.
fn aged(directory: &Path) {
    let file = fs::File::options()
        .write(true)
        .open(key_file(&directory.join("state")))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(61)).unwrap();
}

#[tokio::test]
async fn the_key_file_is_renewed_beside_a_store_in_use_and_then_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    configure(here, "{directory: state}");
    let store = open(here, own(here)).await;
    write(&store, &["ada", "bob"]).await;

    let (code, said, complaints) = run(here, &["keys", "rotate"]).await;
    assert_eq!(code, Some(0), "{said}{complaints}");
    assert!(
        said.contains("2 rows are sealed anew") && said.contains("portcullis keys forget"),
        "{said}"
    );
    let keys = own(here);
    assert_eq!(keys.key_ids().count(), 2);
    // The store that had been open all the time.
    assert!(reads(&store, "ada").await);
    write(&store, &["eve"]).await;
    assert_eq!(store.sealed_by().await.unwrap().len(), 1, "all by the new key");
    let file = fs::read_to_string(key_file(&here.join("state"))).unwrap();
    for line in file.lines() {
        assert!(!said.contains(line), "no key is printed");
    }

    let (code, _, complaints) = run(here, &["keys", "forget"]).await;
    assert_eq!(code, Some(1));
    assert!(complaints.contains("less than a minute"), "{complaints}");
    aged(here);
    let (code, said, complaints) = run(here, &["keys", "forget"]).await;
    assert_eq!(code, Some(0), "{complaints}");
    assert!(said.contains("forgotten"), "{said}");
    assert_eq!(own(here).key_ids().count(), 1);
    for person in ["ada", "bob", "eve"] {
        assert!(reads(&store, person).await);
    }
    let (code, said, _) = run(here, &["keys", "forget"]).await;
    assert!(code == Some(0) && said.contains("but one key"), "{said}");

    // Killed between key and rows: nothing may be forgotten, and rotating again finishes first.
    KeyFile::change(&here.join("state")).unwrap().renew().unwrap();
    aged(here);
    let (code, _, complaints) = run(here, &["keys", "forget"]).await;
    assert_eq!(code, Some(1));
    assert!(complaints.contains("3 rows need the older keys"), "{complaints}");
    let (code, said, _) = run(here, &["keys", "rotate"]).await;
    assert!(
        code == Some(0) && said.contains("an earlier rotation is finished") && said.contains("3 rows"),
        "{said}"
    );
    assert_eq!(own(here).key_ids().count(), 2, "no third key");
}

#[tokio::test]
async fn configured_keys_seal_anew_and_what_does_not_open_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let store = open(here, configured(&[1])).await;
    write(&store, &["ada"]).await;
    store.replace_sealer(configured(&[9]));
    write(&store, &["lost"]).await;

    let keys = [2, 1].map(|byte| STANDARD.encode([byte; 32]));
    configure(
        here,
        &format!("{{directory: state, seal_keys: [\"{}\", \"{}\"]}}", keys[0], keys[1]),
    );
    let (code, said, complaints) = run(here, &["keys", "rotate"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("1 rows are sealed anew"), "{said}");
    assert!(
        complaints.contains("1 rows do not open") && complaints.contains("connection \"notes\""),
        "{complaints}"
    );
    assert!(keys.iter().all(|key| !said.contains(key) && !complaints.contains(key)));
    store.replace_sealer(configured(&[2]));
    assert!(reads(&store, "ada").await);
    store.replace_sealer(configured(&[9]));
    assert!(reads(&store, "lost").await, "left as it was");
    assert!(!key_file(&here.join("state")).exists(), "no key is made");

    let (code, _, complaints) = run(here, &["keys", "forget"]).await;
    assert!(
        code == Some(1) && complaints.contains("state.seal_keys"),
        "{complaints}"
    );
}

#[tokio::test]
async fn a_gateway_that_runs_takes_the_new_key_up() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    configure(here, "{directory: state}");
    let mut gateway = portcullis(here, &["serve"]).spawn().unwrap();
    let mut log = BufReader::new(gateway.stderr.take().unwrap()).lines();
    let mut logged = async |text: &str| {
        let found = timeout(SOON, async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains(text) {
                    return true;
                }
            }
            false
        });
        assert!(found.await.is_ok_and(|found| found), "{text}");
    };
    logged("listening").await;
    let (code, _, complaints) = run(here, &["keys", "rotate"]).await;
    assert_eq!(code, Some(0), "{complaints}");
    logged("the new configuration is in force").await;
}

#[tokio::test]
async fn a_command_says_that_it_put_a_damaged_database_aside() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    configure(here, "{directory: state}");
    let (code, _, complaints) = run(here, &["keys", "rotate"]).await;
    assert_eq!((code, &*complaints), (Some(0), ""));
    // A log that is still there would mend it.
    for log in ["-wal", "-shm"] {
        let _ = fs::remove_file(here.join(format!("state/portcullis.db{log}")));
    }
    fs::write(here.join("state/portcullis.db"), [0xa5; 5000]).unwrap();
    let (code, _, complaints) = run(here, &["keys", "rotate"]).await;
    assert_eq!(code, Some(0), "{complaints}");
    assert!(complaints.contains("portcullis.db.corrupt-"), "{complaints}");
}
