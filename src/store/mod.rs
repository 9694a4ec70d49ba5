//! What must outlive the process: people's connections, registered clients, logins that are under way.
//!
//! 1. Rows are found by (kind, scope, id), three columns and never one joined text, so that `foo/bar` and `foo_bar`, or
//!    `a` + `bc` and `ab` + `c`, are different rows.
//! 2. What a row says is sealed, together with its kind, scope, id, label and expiry: whoever can write to the database can
//!    neither read it nor give it to somebody else. A row that doesn't open is an error and is never deleted for it.
//! 3. Every write makes a new random version. [`When::Version`] writes only over what was read, so of two writers one loses
//!    and knows it, also when the row was removed and made again meanwhile.
//! 4. A [`Lease`] is had by one task in all processes and replicas, and ends by itself when its holder dies. It saves work;
//!    what must not happen twice is decided by a version or by [`Store::take`].
//! 5. Every call ends within [`LIMIT`]. One that ran out of time may nevertheless have written.
//! 6. Rows of [`Kind::Connection`] never expire by themselves: their `expires` is only said to who asks.
//!
//! SQLite is one file for one machine, PostgreSQL for several replicas. They speak one SQL, but for the few statements that
//! `schema` and `lease` hold twice.

pub mod atomic;
mod error;
mod keys;
mod lease;
mod postgres;
mod schema;
mod sqlite;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use sqlx::{PgPool, SqlitePool};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

pub use error::{Fault, StoreError};
pub use keys::Resealed;
pub use lease::{Lease, MAX_LEASE};

use crate::clock::{Clock, UnixSeconds};
use crate::config::{self, Database};
use crate::session::{Purpose, Sealer};

/// How long any call may take.
pub const LIMIT: Duration = Duration::from_secs(5);
/// How long a call waits for its turn; less than [`LIMIT`], so that the error says what it waited for.
const PATIENCE: Duration = Duration::from_secs(4);
/// Bytes of a value, before it is sealed.
pub const MAX_VALUE: usize = 64 * 1024;
/// Bytes of a scope (an issuer's URL), an id or a label.
const MAX_NAME: usize = 2048;
/// Rows of one person, and of one [`Store::sweep`].
const MAX_ROWS: i64 = 1024;
/// Rows of a [`Store::tally`]: scopes times labels.
const MAX_TALLIES: i64 = 4096;
/// Rows that an error names.
const MAX_NAMED: usize = 10;

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One person's login at one route's upstream.
    Connection,
    /// This gateway, as registered with an issuer.
    Client,
    /// A login under way: found once, and not after it expired.
    Login,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Client => "client",
            Self::Login => "login",
        }
    }
}

/// Where a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    pub kind: Kind,
    /// A route or an issuer.
    pub scope: &'a str,
    /// A person (hex), a state, a redirect URI.
    pub id: &'a str,
}

impl<'a> Key<'a> {
    fn texts(&self) -> [(&'static str, &'a str); 2] {
        [("the scope", self.scope), ("the id", self.id)]
    }
}

/// What stands there. Has no `Debug`: it holds tokens.
pub struct Row {
    /// Changes with every write.
    pub version: u64,
    /// In the clear: a state's name.
    pub label: String,
    pub expires: Option<UnixSeconds>,
    /// Opened.
    pub value: Zeroizing<Vec<u8>>,
}

/// What a write depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// Nothing is there, or only a login that has expired.
    Absent,
    /// What is there is still what was read.
    Version(u64),
}

/// How many rows of a scope have a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    pub scope: String,
    pub label: String,
    pub count: u64,
    /// When the first of them expires.
    pub soonest: Option<UnixSeconds>,
    /// When the first of them was made: put by [`When::Always`] or [`When::Absent`].
    pub oldest: Option<UnixSeconds>,
}

/// The database; a cheap clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    pool: Pool,
    /// For errors.
    place: Arc<str>,
    sealer: ArcSwap<Sealer>,
    followed: keys::Followed,
    clock: Clock,
}

enum Pool {
    Sqlite {
        pool: SqlitePool,
        put_aside: Option<PathBuf>,
        /// Says to other processes that the file is in use, while it lives.
        _in_use: sqlite::InUse,
    },
    Postgres {
        pool: PgPool,
        /// Set once the tables are there. A server that is away when the gateway starts has them looked at by who comes first
        /// when it is back.
        ready: OnceCell<()>,
    },
}

/// Does one work on whichever database there is, within [`LIMIT`].
macro_rules! on {
    ($store:expr, $pool:ident => $work:expr) => {
        $store.bounded(async {
            match &$store.0.pool {
                crate::store::Pool::Sqlite { pool: $pool, .. } => $work,
                crate::store::Pool::Postgres { pool: $pool, .. } => $work,
            }
        })
    };
}
use on;

impl Store {
    /// Opens the database, and makes or upgrades what is in it. A damaged file is put aside, which is logged as an error,
    /// and an empty one begun.
    ///
    /// # Errors
    /// It can't be opened, is damaged while another process uses it, or was written by a newer program.
    pub async fn open(config: &config::State, sealer: Arc<Sealer>, clock: Clock) -> Result<Self, StoreError> {
        let (pool, place) = match &config.database {
            Database::Sqlite => sqlite::open(&config.directory, &clock).await?,
            Database::Postgres(url) => postgres::open(url).await?,
        };
        Ok(Self(Arc::new(Inner {
            pool,
            place,
            sealer: ArcSwap::new(sealer),
            followed: keys::Followed::default(),
            clock,
        })))
    }

    /// Where a damaged file was put when this store was opened; it begins empty then.
    pub fn put_aside(&self) -> Option<&Path> {
        match &self.0.pool {
            Pool::Sqlite { put_aside, .. } => put_aside.as_deref(),
            Pool::Postgres { .. } => None,
        }
    }

    /// Ends what is open; further calls fail. Not needed for what was written to last.
    pub async fn close(&self) {
        match &self.0.pool {
            Pool::Sqlite { pool, .. } => pool.close().await,
            Pool::Postgres { pool, .. } => pool.close().await,
        }
    }

    /// Seals and opens with other keys from now on.
    pub fn replace_sealer(&self, sealer: Arc<Sealer>) {
        self.0.sealer.store(sealer);
        // They may have been read before the key file last changed.
        self.0.followed.forget();
    }

    /// What stands at `key`; of a login, what hasn't expired.
    ///
    /// # Errors
    /// The database fails, or the row doesn't open.
    pub async fn get(&self, key: &Key<'_>) -> Result<Option<Row>, StoreError> {
        const SQL: &str = "SELECT version, label, expires, value FROM portcullis_entry \
                           WHERE kind = $1 AND scope = $2 AND id = $3";
        self.fit(&key.texts())?;
        let found: Option<(i64, String, Option<i64>, Vec<u8>)> = on!(self, pool => sqlx::query_as(SQL)
            .bind(key.kind.name())
            .bind(key.scope)
            .bind(key.id)
            .fetch_optional(pool)
            .await)
        .await?;
        let Some((version, label, expires, value)) = found else {
            return Ok(None);
        };
        let row = self.row(key, version, label, expires, value)?;
        let over = row.expires.is_some_and(|end| end <= self.0.clock.now());
        Ok((key.kind != Kind::Login || !over).then_some(row))
    }

    /// Writes, if `when` holds: `None` says that somebody else was first. The result is the new version.
    ///
    /// # Errors
    /// The database fails, or key, label or value are longer than is kept.
    pub async fn put(
        &self,
        key: &Key<'_>,
        value: &[u8],
        label: &str,
        expires: Option<UnixSeconds>,
        when: When,
    ) -> Result<Option<u64>, StoreError> {
        macro_rules! insert {
            ($and:literal) => {
                concat!(
                    "INSERT INTO portcullis_entry (kind, scope, id, version, label, expires, value, created) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (kind, scope, id) DO UPDATE SET \
                     version = excluded.version, label = excluded.label, expires = excluded.expires, \
                     value = excluded.value, created = excluded.created",
                    $and
                )
            };
        }
        const ALWAYS: &str = insert!("");
        const ABSENT: &str = insert!(" WHERE portcullis_entry.kind = 'login' AND portcullis_entry.expires <= $8");
        const VERSION: &str = "UPDATE portcullis_entry SET version = $4, label = $5, expires = $6, value = $7 \
                               WHERE kind = $1 AND scope = $2 AND id = $3 AND version = $8";
        self.fit(&key.texts())?;
        self.fit(&[("the label", label)])?;
        if value.len() > MAX_VALUE {
            return Err(self.error(Fault::Unfit("the value")));
        }
        let version = random_version();
        let expires = expires.map(stored);
        let bound = place([key.kind.name(), key.scope, key.id, label], expires);
        let sealed = self.current().seal_row(Purpose::StoredRow, &bound, value);
        let (sql, last) = match when {
            When::Always => (ALWAYS, stored(self.0.clock.now())),
            When::Absent => (ABSENT, stored(self.0.clock.now())),
            When::Version(read) => (VERSION, stored(read)),
        };
        let written = on!(self, pool => sqlx::query(sql)
            .bind(key.kind.name())
            .bind(key.scope)
            .bind(key.id)
            .bind(version)
            .bind(label)
            .bind(expires)
            .bind(&sealed)
            .bind(last)
            .execute(pool)
            .await
            .map(|done| done.rows_affected()))
        .await?;
        Ok((written == 1).then_some(version.unsigned_abs()))
    }

    /// Reads and removes in one: of all who ask, one gets it.
    ///
    /// # Errors
    /// As of [`Store::get`]; a row that doesn't open stays.
    pub async fn take(&self, key: &Key<'_>) -> Result<Option<Row>, StoreError> {
        let Some(row) = self.get(key).await? else {
            return Ok(None);
        };
        let mine = self.remove(key, When::Version(row.version)).await?;
        Ok(mine.then_some(row))
    }

    /// Removes, if `when` holds, and says whether there was something to remove.
    ///
    /// # Errors
    /// The database fails.
    pub async fn remove(&self, key: &Key<'_>, when: When) -> Result<bool, StoreError> {
        const SQL: &str = "DELETE FROM portcullis_entry WHERE kind = $1 AND scope = $2 AND id = $3 \
                           AND ($4 = -1 OR version = $4)";
        self.fit(&key.texts())?;
        let version = match when {
            When::Always => -1,
            When::Version(read) => stored(read),
            When::Absent => return Ok(false),
        };
        let removed = on!(self, pool => sqlx::query(SQL)
            .bind(key.kind.name())
            .bind(key.scope)
            .bind(key.id)
            .bind(version)
            .execute(pool)
            .await
            .map(|done| done.rows_affected()))
        .await?;
        Ok(removed > 0)
    }

    /// All rows of one id with their scopes: a person's connections. At most 1024.
    ///
    /// # Errors
    /// The database fails, or a row doesn't open.
    pub async fn list(&self, kind: Kind, id: &str) -> Result<Vec<(String, Row)>, StoreError> {
        type Found = Vec<(String, i64, String, Option<i64>, Vec<u8>)>;
        const SQL: &str = "SELECT scope, version, label, expires, value FROM portcullis_entry \
                           WHERE kind = $1 AND id = $2 ORDER BY scope LIMIT $3";
        self.fit(&[("the id", id)])?;
        let found: Found = on!(self, pool => sqlx::query_as(SQL)
            .bind(kind.name())
            .bind(id)
            .bind(MAX_ROWS)
            .fetch_all(pool)
            .await)
        .await?;
        found
            .into_iter()
            .map(|(scope, version, label, expires, value)| {
                let key = Key {
                    kind,
                    scope: &scope,
                    id,
                };
                let row = self.row(&key, version, label, expires, value)?;
                Ok((scope, row))
            })
            .collect()
    }

    /// Counts rows by scope and label; opens none.
    ///
    /// # Errors
    /// The database fails.
    pub async fn tally(&self, kind: Kind) -> Result<Vec<Tally>, StoreError> {
        type Found = Vec<(String, String, i64, Option<i64>, Option<i64>)>;
        const SQL: &str = "SELECT scope, label, COUNT(*), MIN(expires), MIN(created) FROM portcullis_entry \
                           WHERE kind = $1 GROUP BY scope, label ORDER BY scope, label LIMIT $2";
        let found: Found = on!(self, pool => sqlx::query_as(SQL)
            .bind(kind.name())
            .bind(MAX_TALLIES)
            .fetch_all(pool)
            .await)
        .await?;
        let tally = |(scope, label, count, soonest, oldest): (_, _, i64, Option<i64>, Option<i64>)| Tally {
            scope,
            label,
            count: count.unsigned_abs(),
            soonest: soonest.map(i64::unsigned_abs),
            oldest: oldest.map(i64::unsigned_abs),
        };
        Ok(found.into_iter().map(tally).collect())
    }

    /// Removes logins that have expired, at most 1024 at once, and leases that have ended. The result is how many logins.
    ///
    /// # Errors
    /// The database fails.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        const SQL: &str = "DELETE FROM portcullis_entry WHERE (kind, scope, id) IN \
                           (SELECT kind, scope, id FROM portcullis_entry \
                           WHERE kind = 'login' AND expires <= $1 ORDER BY expires LIMIT $2)";
        let now = stored(self.0.clock.now());
        let removed = on!(self, pool => sqlx::query(SQL)
            .bind(now)
            .bind(MAX_ROWS)
            .execute(pool)
            .await
            .map(|done| done.rows_affected()))
        .await?;
        self.sweep_leases().await?;
        Ok(removed)
    }

    fn row(
        &self,
        key: &Key<'_>,
        version: i64,
        label: String,
        expires: Option<i64>,
        sealed: Vec<u8>,
    ) -> Result<Row, StoreError> {
        let by = Sealer::key_of(&sealed).to_vec();
        let mut sealer = self.0.sealer.load_full();
        if !sealer.key_ids().any(|id| id == by) {
            sealer = self.current();
        }
        let bound = place([key.kind.name(), key.scope, key.id, &label], expires);
        let opened = sealer.open_row(Purpose::StoredRow, &bound, sealed);
        let value = opened.map_err(|_| {
            self.error(Fault::Sealed {
                kind: key.kind.name(),
                scope: key.scope.to_owned(),
                key: hex(&by),
            })
        })?;
        Ok(Row {
            version: version.unsigned_abs(),
            label,
            expires: expires.map(i64::unsigned_abs),
            value,
        })
    }

    fn fit(&self, texts: &[(&'static str, &str)]) -> Result<(), StoreError> {
        for (name, text) in texts {
            // PostgreSQL keeps no NUL in a text.
            if text.len() > MAX_NAME || text.contains('\0') {
                return Err(self.error(Fault::Unfit(name)));
            }
        }
        Ok(())
    }

    fn error(&self, fault: Fault) -> StoreError {
        StoreError {
            place: self.0.place.clone(),
            fault,
        }
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        let work = async {
            if let Pool::Postgres { pool, ready } = &self.0.pool {
                ready.get_or_try_init(|| schema::of_postgres(pool)).await?;
            }
            Ok(work.await?)
        };
        let done = tokio::time::timeout(LIMIT, work).await;
        done.unwrap_or(Err(Fault::Slow)).map_err(|fault| self.error(fault))
    }
}

/// Kind, scope, id and label, as the seal binds them: every text with its length before it.
fn place(texts: [&str; 4], expires: Option<i64>) -> Vec<u8> {
    let mut place = Vec::with_capacity(128);
    for text in texts {
        place.extend_from_slice(&(text.len() as u64).to_be_bytes());
        place.extend_from_slice(text.as_bytes());
    }
    // No time is negative.
    place.extend_from_slice(&expires.unwrap_or(-1).to_be_bytes());
    place
}

/// Both databases count in signed numbers.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Not a count, for one that starts again would let an old reader write over a row that was removed and made anew.
fn random_version() -> i64 {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).expect("the system's random generator works");
    i64::from_be_bytes(bytes) & i64::MAX
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
