//! The tables, and how they come to be what this program knows.
//!
//! 1. Each step is applied once, all that are missing in one transaction, by one process at a time.
//! 2. A step never changes what an older gateway, still running beside this one, reads and writes: it adds.
//! 3. A database of a later step than this program knows is left alone: [`Fault::Newer`].

use sqlx::{PgPool, SqlitePool};

use super::error::Fault;

macro_rules! first {
    ($bytes:literal) => {
        concat!(
            "CREATE TABLE portcullis_entry (
                kind TEXT NOT NULL, scope TEXT NOT NULL, id TEXT NOT NULL,
                version BIGINT NOT NULL, label TEXT NOT NULL, created BIGINT NOT NULL, expires BIGINT, value ",
            $bytes,
            " NOT NULL, PRIMARY KEY (kind, scope, id));
             CREATE INDEX portcullis_entry_id ON portcullis_entry (kind, id);
             CREATE INDEX portcullis_entry_expires ON portcullis_entry (kind, expires);
             CREATE INDEX portcullis_entry_seal ON portcullis_entry (substr(value, 2, 4));
             CREATE TABLE portcullis_lease (name TEXT NOT NULL PRIMARY KEY, holder TEXT NOT NULL, ends BIGINT NOT NULL);
             CREATE TABLE portcullis_schema (version BIGINT NOT NULL);
             INSERT INTO portcullis_schema (version) VALUES (0);"
        )
    };
}

/// What SQLite and PostgreSQL are told, from an empty database on.
const STEPS: [(&str, &str); 1] = [(first!("BLOB"), first!("BYTEA"))];
const KNOWN: i64 = STEPS.len() as i64;
const VERSION: &str = "SELECT version FROM portcullis_schema";
const SET: &str = "UPDATE portcullis_schema SET version = $1";

/// Found by anybody who looks, so that two gateways that start together don't both make the tables.
const ADVISORY_LOCK: i64 = 0x706f_7274_6375_6c6c;

/// Applies what is missing, over a connection or a transaction of either database.
macro_rules! apply {
    ($tx:expr, $exists:expr, $side:tt) => {{
        let found = found!(&mut *$tx, $exists);
        for (index, step) in STEPS
            .iter()
            .enumerate()
            .skip(usize::try_from(found).unwrap_or_default())
        {
            sqlx::raw_sql(step.$side).execute(&mut *$tx).await?;
            sqlx::query(SET).bind(index as i64 + 1).execute(&mut *$tx).await?;
        }
    }};
}

/// The step the database is at; 0 when it is empty.
macro_rules! found {
    ($on:expr, $exists:expr) => {{
        let (there,): (bool,) = sqlx::query_as($exists).fetch_one($on).await?;
        let found = if there {
            sqlx::query_as::<_, (i64,)>(VERSION).fetch_one($on).await?.0
        } else {
            0
        };
        if found > KNOWN {
            return Err(Fault::Newer { found, known: KNOWN });
        }
        found
    }};
}

const IN_SQLITE: &str =
    "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'portcullis_schema')";
const IN_POSTGRES: &str = "SELECT to_regclass('portcullis_schema') IS NOT NULL";

pub(super) async fn of_sqlite(pool: &SqlitePool) -> Result<(), Fault> {
    if found!(pool, IN_SQLITE) == KNOWN {
        return Ok(());
    }
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    apply!(tx, IN_SQLITE, 0);
    Ok(tx.commit().await?)
}

pub(super) async fn of_postgres(pool: &PgPool) -> Result<(), Fault> {
    if found!(pool, IN_POSTGRES) == KNOWN {
        return Ok(());
    }
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(ADVISORY_LOCK)
        .execute(&mut *tx)
        .await?;
    apply!(tx, IN_POSTGRES, 1);
    Ok(tx.commit().await?)
}
