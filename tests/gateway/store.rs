//! The store, over SQLite and over PostgreSQL: what it promises whoever writes beside whom.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use portcullis::clock::Clock;
use portcullis::config::{Database, SealKey, State};
use portcullis::secret::Secret;
use portcullis::session::Sealer;
use portcullis::store::{Fault, Key, Kind, MAX_VALUE, Store, Tally, When};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{PgPool, SqlitePool};
use zeroize::Zeroizing;

use super::postgres::Postgres;

const NOW: u64 = 1_800_000_000;
/// Who race.
const RACERS: usize = 24;

fn keys(bytes: &[u8]) -> Vec<SealKey> {
    bytes.iter().map(|byte| SealKey(Zeroizing::new([*byte; 32]))).collect()
}

fn sealer(bytes: &[u8]) -> Arc<Sealer> {
    Arc::new(Sealer::new(&keys(bytes)))
}

fn sqlite(directory: &Path) -> State {
    State {
        directory: directory.to_owned(),
        database: Database::Sqlite,
        seal_keys: keys(&[1]),
    }
}

async fn open(state: &State, clock: &Clock) -> Store {
    Store::open(state, sealer(&[1]), clock.clone())
        .await
        .expect("the store opens")
}

fn connection<'a>(scope: &'a str, id: &'a str) -> Key<'a> {
    Key {
        kind: Kind::Connection,
        scope,
        id,
    }
}

fn login(id: &str) -> Key<'_> {
    Key {
        kind: Kind::Login,
        scope: "route",
        id,
    }
}

async fn put(store: &Store, key: &Key<'_>, value: &str, when: When) -> Option<u64> {
    store
        .put(key, value.as_bytes(), "connected", None, when)
        .await
        .expect("the store writes")
}

async fn read(store: &Store, key: &Key<'_>) -> Option<String> {
    let row = store.get(key).await.expect("the store reads")?;
    Some(String::from_utf8(row.value.to_vec()).expect("text"))
}

/// What of the racers' results is `Some`, over both stores by turns.
async fn race<T, F: Future<Output = Option<T>>>(stores: [&Store; 2], work: impl Fn(Store, usize) -> F) -> Vec<T> {
    let racers = (0..RACERS).map(|racer| work(stores[racer % 2].clone(), racer));
    join_all(racers).await.into_iter().flatten().collect()
}

/// Two stores over one database.
async fn promises(state: &State) {
    let clock = Clock::fixed(NOW);
    // Together: the tables are made once.
    let (one, two) = tokio::join!(open(state, &clock), open(state, &clock));
    versions([&one, &two]).await;
    races([&one, &two]).await;
    leases([&one, &two]).await;
    logins([&one, &two], &clock).await;
    lists(&one).await;
    bounds(&one).await;
}

async fn versions([one, two]: [&Store; 2]) {
    let key = connection("github", "p1");
    assert!(one.get(&key).await.unwrap().is_none());
    assert_eq!(put(one, &key, "new", When::Version(1)).await, None, "nothing is there");
    let first = put(one, &key, "first", When::Absent).await.expect("it was absent");
    assert_eq!(put(two, &key, "other", When::Absent).await, None);
    assert_eq!(read(two, &key).await.as_deref(), Some("first"));
    let second = put(two, &key, "second", When::Version(first))
        .await
        .expect("nobody wrote since");
    assert_eq!(put(one, &key, "late", When::Version(first)).await, None);
    assert_eq!(read(one, &key).await.as_deref(), Some("second"));
    assert!(!one.remove(&key, When::Version(first)).await.unwrap());
    assert!(one.remove(&key, When::Version(second)).await.unwrap());
    assert!(!one.remove(&key, When::Always).await.unwrap());
    // Whoever read the removed row doesn't write over the one that was made since.
    put(two, &key, "anew", When::Always).await.expect("always");
    for old in [first, second] {
        assert_eq!(put(one, &key, "stale", When::Version(old)).await, None);
    }
    assert_eq!(read(one, &key).await.as_deref(), Some("anew"));
}

async fn races(stores: [&Store; 2]) {
    let key = connection("race", "p");
    let made = race(stores, |store, racer| async move {
        put(&store, &key, &racer.to_string(), When::Absent).await
    })
    .await;
    let [version] = made[..] else {
        panic!("{} made one row", made.len())
    };
    let replaced = race(stores, |store, racer| async move {
        let text = format!("replaced by {racer}");
        let version = put(&store, &key, &text, When::Version(version)).await?;
        Some((version, text))
    })
    .await;
    let [(version, text)] = &replaced[..] else {
        panic!("{} replaced one version", replaced.len())
    };
    let row = stores[0].get(&key).await.unwrap().unwrap();
    assert_eq!((row.version, row.value.as_slice()), (*version, text.as_bytes()));
    let taken = race(stores, |store, _| async move { store.take(&key).await.unwrap() }).await;
    assert_eq!(taken.len(), 1, "one takes it");
    assert!(stores[1].take(&key).await.unwrap().is_none());
}

async fn leases(stores: [&Store; 2]) {
    let hour = Duration::from_secs(3600);
    let held = race(
        stores,
        |store, _| async move { store.lease("refresh", hour).await.unwrap() },
    )
    .await;
    let [lease] = <[_; 1]>::try_from(held).unwrap_or_else(|held| panic!("{} have it", held.len()));
    let other = stores[0].lease("another", hour).await.unwrap();
    assert!(other.is_some(), "it has another name");
    lease.release().await;
    let again = stores[1].lease("refresh", hour).await.unwrap();
    assert!(again.is_some(), "it was given back");
    // Dropped, it is given back soon.
    drop(again);
    until(|| async { stores[0].lease("refresh", hour).await.unwrap().is_some() }).await;

    // A holder that dies gives nothing back.
    let time = Duration::from_millis(300);
    let began = Instant::now();
    std::mem::forget(stores[0].lease("dead", time).await.unwrap().expect("nobody has it"));
    until(|| async { stores[1].lease("dead", time).await.unwrap().is_some() }).await;
    assert!(began.elapsed() >= time, "too soon: {:?}", began.elapsed());

    // Who comes late with a lease that has ended doesn't take away the next one's.
    let late = stores[0]
        .lease("late", Duration::ZERO)
        .await
        .unwrap()
        .expect("nobody has it");
    let mut next = None;
    while next.is_none() {
        next = stores[1].lease("late", hour).await.unwrap();
    }
    late.release().await;
    assert!(stores[0].lease("late", hour).await.unwrap().is_none());
}

async fn logins([one, two]: [&Store; 2], clock: &Clock) {
    for state in ["a", "b", "c"] {
        let made = one
            .put(&login(state), b"verifier", "", Some(NOW + 600), When::Absent)
            .await;
        assert!(made.unwrap().is_some());
    }
    one.put(
        &connection("stays", "p"),
        b"x",
        "expiring",
        Some(NOW + 600),
        When::Absent,
    )
    .await
    .unwrap();
    clock.set(NOW + 599);
    assert_eq!(
        &*two.take(&login("a")).await.unwrap().expect("in time").value,
        b"verifier"
    );
    clock.set(NOW + 600);
    assert!(two.get(&login("b")).await.unwrap().is_none());
    assert!(two.take(&login("b")).await.unwrap().is_none());
    let again = two.put(&login("b"), b"anew", "", Some(NOW + 900), When::Absent).await;
    assert!(again.unwrap().is_some(), "an expired login is no login");
    assert_eq!(two.sweep().await.unwrap(), 1, "c");
    assert_eq!(one.sweep().await.unwrap(), 0);
    assert!(one.get(&login("b")).await.unwrap().is_some());
    let stays = one
        .get(&connection("stays", "p"))
        .await
        .unwrap()
        .expect("connections stay");
    assert_eq!(stays.expires, Some(NOW + 600));
    clock.set(NOW);
}

async fn lists(store: &Store) {
    for (scope, person, label, expires) in [
        ("github", "ada", "connected", Some(NOW + 50)),
        ("github", "bob", "connected", Some(NOW + 20)),
        ("github", "eve", "needs_auth", None),
        ("gitlab", "ada", "connected", None),
    ] {
        let key = Key {
            kind: Kind::Client,
            scope,
            id: person,
        };
        store
            .put(&key, person.as_bytes(), label, expires, When::Always)
            .await
            .unwrap();
    }
    let ada = store.list(Kind::Client, "ada").await.unwrap();
    let scopes: Vec<_> = ada
        .iter()
        .map(|(scope, row)| (&**scope, &*row.label, row.value.as_slice()))
        .collect();
    assert_eq!(
        scopes,
        [("github", "connected", &b"ada"[..]), ("gitlab", "connected", b"ada")]
    );
    assert!(store.list(Kind::Client, "nobody").await.unwrap().is_empty());
    let tally = |scope: &str, label: &str, count, soonest| Tally {
        scope: scope.to_owned(),
        label: label.to_owned(),
        count,
        soonest,
        oldest: Some(NOW),
    };
    assert_eq!(
        store.tally(Kind::Client).await.unwrap(),
        [
            tally("github", "connected", 2, Some(NOW + 20)),
            tally("github", "needs_auth", 1, None),
            tally("gitlab", "connected", 1, None),
        ]
    );
}

async fn bounds(store: &Store) {
    let key = connection("bounds", "p");
    let whole = vec![7; MAX_VALUE];
    // Whatever an issuer says of time.
    store.put(&key, &whole, "", Some(u64::MAX), When::Always).await.unwrap();
    let row = store.get(&key).await.unwrap().unwrap();
    assert!(*row.value == whole && row.expires.unwrap() > NOW);
    let long = "x".repeat(3000);
    for (key, value) in [
        (key, &[7; MAX_VALUE + 1][..]),
        (connection(&long, "p"), b""),
        (connection("bounds", &long), b""),
        (connection("nul\0", "p"), b""),
    ] {
        let error = store.put(&key, value, "", None, When::Always).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Unfit(_)), "{error}");
    }
}

/// Polls until it holds.
async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < end, "it doesn't come to be");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Who can write to the database can't make a row another person's, nor change what of it is in the clear.
async fn bound(state: &State, tamper: impl AsyncFn(&'static str)) {
    let store = open(state, &Clock::fixed(NOW)).await;
    for (person, token) in [("mallory", "hers"), ("ada", "precious")] {
        put(&store, &connection("github", person), token, When::Always).await;
    }
    put(&store, &connection("gitlab", "ada"), "other", When::Always).await;
    for sql in [
        "UPDATE portcullis_entry SET value = (SELECT value FROM portcullis_entry WHERE scope = 'github' AND id = 'ada') WHERE scope = 'github' AND id = 'mallory'",
        "UPDATE portcullis_entry SET value = (SELECT value FROM portcullis_entry WHERE scope = 'gitlab' AND id = 'ada') WHERE scope = 'github' AND id = 'mallory'",
        "UPDATE portcullis_entry SET label = 'needs_auth' WHERE scope = 'github' AND id = 'mallory'",
        "UPDATE portcullis_entry SET expires = 5 WHERE scope = 'github' AND id = 'mallory'",
        "UPDATE portcullis_entry SET value = substr(value, 1, 20) WHERE scope = 'github' AND id = 'mallory'",
        "UPDATE portcullis_entry SET value = substr(value, 1, 2) WHERE scope = 'github' AND id = 'mallory'",
    ] {
        put(&store, &connection("github", "mallory"), "hers", When::Always).await;
        tamper(sql).await;
        let error = store
            .get(&connection("github", "mallory"))
            .await
            .err()
            .unwrap_or_else(|| panic!("it opens after {sql}"));
        assert!(matches!(error.fault, Fault::Sealed { .. }), "{error}");
        assert!(
            error.to_string().contains("state.seal_keys") && !error.to_string().contains("hers"),
            "{error}"
        );
        assert!(store.list(Kind::Connection, "mallory").await.is_err());
        // Still there: nothing is deleted for not opening, unless somebody says so.
        assert!(store.take(&connection("github", "mallory")).await.is_err());
        assert!(
            store
                .remove(&connection("github", "mallory"), When::Always)
                .await
                .unwrap()
        );
    }
    assert_eq!(
        read(&store, &connection("github", "ada")).await.as_deref(),
        Some("precious")
    );

    // A key that is gone, and put back.
    store.replace_sealer(sealer(&[2]));
    let error = store
        .get(&connection("github", "ada"))
        .await
        .err()
        .expect("its key is gone");
    assert_eq!(error.fault.reason(), "sealed");
    store.replace_sealer(sealer(&[2, 1]));
    assert_eq!(
        read(&store, &connection("github", "ada")).await.as_deref(),
        Some("precious")
    );

    // Sealed anew, the older key isn't needed any more; what doesn't open stays.
    put(&store, &connection("github", "mallory"), "hers", When::Always).await;
    tamper("UPDATE portcullis_entry SET value = substr(value, 1, 20) WHERE scope = 'gitlab'").await;
    let many: Vec<_> = (0..250).map(|n| format!("p{n}")).collect();
    store.replace_sealer(sealer(&[1]));
    for person in &many {
        put(&store, &connection("many", person), person, When::Always).await;
    }
    store.replace_sealer(sealer(&[2, 1]));
    let before = store.get(&connection("many", "p7")).await.unwrap().unwrap().version;
    let resealed = store.reseal().await.unwrap();
    assert_eq!((resealed.rows, resealed.left), (251, 1), "{resealed:?}");
    assert_eq!(resealed.named.len(), 1);
    assert_eq!(store.reseal().await.unwrap().rows, 0);
    store.replace_sealer(sealer(&[2]));
    for person in &many {
        assert_eq!(read(&store, &connection("many", person)).await.as_ref(), Some(person));
    }
    // Nobody who read before loses for it.
    assert!(
        put(&store, &connection("many", "p7"), "next", When::Version(before))
            .await
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r33_r34_two_stores_over_one_sqlite_file() {
    let directory = tempfile::tempdir().unwrap();
    promises(&sqlite(directory.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r33_r34_two_stores_over_one_postgresql() {
    let postgres = Postgres::start();
    promises(&postgres.state(keys(&[1]))).await;
}

#[tokio::test]
async fn rows_of_sqlite_are_bound_to_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = SqliteConnectOptions::new().filename(directory.path().join("portcullis.db"));
    let pool = SqlitePool::connect_lazy_with(file);
    let tamper = async |sql| {
        sqlx::query(sql).execute(&pool).await.unwrap();
    };
    bound(&sqlite(directory.path()), tamper).await;
}

#[tokio::test]
async fn rows_of_postgresql_are_bound_to_their_place() {
    let postgres = Postgres::start();
    let pool = PgPool::connect_lazy(&postgres.url()).unwrap();
    let tamper = async |sql| {
        sqlx::query(sql).execute(&pool).await.unwrap();
    };
    bound(&postgres.state(keys(&[1])), tamper).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_crashes_is_an_error_until_it_is_back() {
    let mut postgres = Postgres::start();
    let state = postgres.state(keys(&[1]));
    let store = open(&state, &Clock::fixed(NOW)).await;
    let key = connection("github", "p");
    put(&store, &key, "before", When::Always).await;

    // In mid work: each write happened or is an error, and what is there is one that happened.
    let busy = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut last = "before".to_owned();
            for n in 0.. {
                let text = format!("write {n}");
                match store
                    .put(
                        &connection("github", "p"),
                        text.as_bytes(),
                        "connected",
                        None,
                        When::Always,
                    )
                    .await
                {
                    Ok(written) => assert!(written.is_some()),
                    Err(error) => return (last, text, error),
                }
                last = text;
            }
            unreachable!("it stops with the server")
        })
    };
    until(|| async { read(&store, &key).await.is_some_and(|text| text != "before") }).await;
    postgres.stop();
    let (last, perhaps, error) = busy.await.unwrap();
    for error in [
        error,
        store.get(&key).await.err().expect("it is down"),
        store.lease("l", Duration::ZERO).await.err().expect("it is down"),
    ] {
        assert_eq!(error.fault.reason(), "unreachable", "{error}");
        assert!(
            error.to_string().contains("127.0.0.1") && !error.to_string().contains("pg-password"),
            "{error}"
        );
    }
    let began = Instant::now();
    // Who starts meanwhile starts: nobody else's routes need it.
    let later = open(&state, &Clock::fixed(NOW)).await;
    let error = later.get(&key).await.err().expect("it is down");
    assert_eq!(error.fault.reason(), "unreachable", "{error}");
    assert!(began.elapsed() < Duration::from_secs(12), "every call ends");

    postgres.resume();
    assert!(read(&later, &key).await.is_some());
    let found = read(&store, &key).await.expect("it was there");
    assert!(
        found == last || found == perhaps,
        "{found} is neither {last} nor {perhaps}"
    );
    assert!(put(&store, &key, "after", When::Always).await.is_some());
}

#[tokio::test]
async fn a_postgresql_must_show_a_certificate_that_verifies_and_bears_its_name() {
    let postgres = Postgres::start();
    let certificate = postgres.certificate();
    let opened = async |url: String| {
        let state = State {
            database: Database::Postgres(Secret::new(url)),
            ..postgres.state(keys(&[1]))
        };
        Store::open(&state, sealer(&[1]), Clock::fixed(NOW)).await
    };
    let trusted = format!("sslrootcert={}", certificate.display());
    let good = opened(format!("{}?sslmode=verify-full&{trusted}", postgres.url()))
        .await
        .expect("it verifies");
    assert!(
        put(&good, &connection("github", "p"), "tokens", When::Always)
            .await
            .is_some()
    );
    let unknown = format!("{}?sslmode=verify-full", postgres.url());
    // By a name that its certificate doesn't bear.
    let misnamed = format!(
        "{}?sslmode=verify-full&{trusted}",
        postgres.url().replace("127.0.0.1", "localhost")
    );
    for url in [unknown, misnamed] {
        let store = opened(url).await.expect("it may be away, for all that is known");
        let error = store.get(&connection("github", "p")).await;
        let error = error.err().expect("it doesn't verify");
        assert_eq!(error.fault.reason(), "unreachable", "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let state = sqlite(directory.path());
    let store = open(&state, &Clock::fixed(NOW)).await;
    put(&store, &connection("github", "p"), "tokens", When::Always).await;
    let file = SqliteConnectOptions::new().filename(directory.path().join("portcullis.db"));
    let pool = SqlitePool::connect_lazy_with(file);
    sqlx::query("UPDATE portcullis_schema SET version = 99")
        .execute(&pool)
        .await
        .unwrap();
    let error = Store::open(&state, sealer(&[1]), Clock::fixed(NOW))
        .await
        .err()
        .expect("it is newer");
    assert!(matches!(error.fault, Fault::Newer { found: 99, .. }), "{error}");
    sqlx::query("UPDATE portcullis_schema SET version = 1")
        .execute(&pool)
        .await
        .unwrap();
    let again = open(&state, &Clock::fixed(NOW)).await;
    assert_eq!(
        read(&again, &connection("github", "p")).await.as_deref(),
        Some("tokens")
    );
}
