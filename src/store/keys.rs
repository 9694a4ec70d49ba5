//! The keys that seal rows: followed while they change, and every row sealed anew with the first.
//!
//! 1. Keys of a key file are read again when the file has changed, before a row is written and when one doesn't open. So a
//!    gateway that runs on seals with the new key as soon as the file has it, and opens what others sealed with it.
//! 2. Rows are sealed anew in transactions of a few, each only while its version is what was read: what somebody writes
//!    meanwhile stays, and is met in the next round. Content and version don't change, so nobody else notices.
//! 3. A row that doesn't open is counted and left.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::{MAX_NAMED, Purpose, Sealer, Store, StoreError, on, place};
use crate::session;

/// Rows of one transaction.
const BATCH: i64 = 100;
/// Rounds over all rows; a second one is needed only where somebody wrote meanwhile.
const ROUNDS: usize = 10;

/// What tells one state of the key file from another.
type Stamp = (u64, u64, i64, i64);

/// How the key file was when it was read last.
#[derive(Default)]
pub(super) struct Followed(Mutex<Option<Stamp>>);

impl Followed {
    /// It is to be read again.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What sealing anew came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Rows sealed anew with the first key.
    pub rows: u64,
    /// Rows sealed with another key still: they don't open.
    pub left: u64,
    /// The first few of them: kind, scope and the key's id.
    pub named: Vec<String>,
}

type Found = (String, String, String, i64, String, Option<i64>, Vec<u8>);

impl Store {
    /// The keys as they are now.
    pub(super) fn current(&self) -> Arc<Sealer> {
        let sealer = self.0.sealer.load_full();
        let Some(directory) = sealer.directory() else {
            return sealer;
        };
        let file = session::key_file(directory);
        let mut seen = self.0.followed.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a file the keys in memory go on; what is there instead is another's business.
        let Ok(now) = file.symlink_metadata().map(|found| stamp(&found)) else {
            return sealer;
        };
        if *seen == Some(now) {
            return sealer;
        }
        match session::read_sealer(directory) {
            Ok(Some(read)) => {
                *seen = Some(now);
                let read = Arc::new(read);
                self.0.sealer.store(read.clone());
                read
            }
            Ok(None) => sealer,
            Err(error) => {
                *seen = Some(now);
                tracing::error!("the seal keys stay as they were: {error}");
                sealer
            }
        }
    }

    /// How many rows each key has sealed, by its id in hex.
    ///
    /// # Errors
    /// The database fails.
    pub async fn sealed_by(&self) -> Result<Vec<(String, u64)>, StoreError> {
        const SQL: &str = "SELECT substr(value, 2, 4), COUNT(*) FROM portcullis_entry GROUP BY substr(value, 2, 4)";
        let found: Vec<(Vec<u8>, i64)> = on!(self, pool => sqlx::query_as(SQL).fetch_all(pool).await).await?;
        Ok(found
            .into_iter()
            .map(|(id, count)| (super::hex(&id), count.unsigned_abs()))
            .collect())
    }

    /// Seals every row with the first key. Can be stopped at any time and begun again.
    ///
    /// # Errors
    /// The database fails; what was sealed anew until then stays so.
    pub async fn reseal(&self) -> Result<Resealed, StoreError> {
        let mut total = 0;
        for _ in 0..ROUNDS {
            let mut round = Resealed::default();
            let mut missed = 0;
            let mut after = (String::new(), String::new(), String::new());
            loop {
                let sealer = self.current();
                let batch = self.sealed_otherwise(&sealer, &after).await?;
                let Some((kind, scope, id, ..)) = batch.last() else {
                    break;
                };
                after = (kind.clone(), scope.clone(), id.clone());
                missed += self.reseal_batch(&sealer, batch, &mut round).await?;
            }
            total += round.rows;
            if missed == 0 {
                return Ok(Resealed { rows: total, ..round });
            }
        }
        Err(self.error(super::Fault::Busy))
    }

    async fn sealed_otherwise(
        &self,
        sealer: &Sealer,
        (kind, scope, id): &(String, String, String),
    ) -> Result<Vec<Found>, StoreError> {
        const SQL: &str = "SELECT kind, scope, id, version, label, expires, value FROM portcullis_entry \
                           WHERE substr(value, 2, 4) <> $1 AND (kind, scope, id) > ($2, $3, $4) \
                           ORDER BY kind, scope, id LIMIT $5";
        let first = sealer.key_ids().next().expect("a sealer has a key");
        on!(self, pool => sqlx::query_as(SQL)
            .bind(first)
            .bind(kind)
            .bind(scope)
            .bind(id)
            .bind(BATCH)
            .fetch_all(pool)
            .await)
        .await
    }

    /// The result is how many rows somebody else wrote first.
    async fn reseal_batch(&self, sealer: &Sealer, batch: Vec<Found>, round: &mut Resealed) -> Result<u64, StoreError> {
        const SQL: &str = "UPDATE portcullis_entry SET value = $1 \
                           WHERE kind = $2 AND scope = $3 AND id = $4 AND version = $5";
        let mut anew = Vec::with_capacity(batch.len());
        for (kind, scope, id, version, label, expires, value) in batch {
            let bound = place([&kind, &scope, &id, &label], expires);
            let by = super::hex(Sealer::key_of(&value));
            match sealer.open_row(Purpose::StoredRow, &bound, value) {
                Ok(opened) => {
                    let sealed = sealer.seal_row(Purpose::StoredRow, &bound, &opened);
                    anew.push((sealed, kind, scope, id, version));
                }
                Err(_) => {
                    round.left += 1;
                    if round.named.len() < MAX_NAMED {
                        round.named.push(format!("{kind} {scope:?}, sealed with key {by}"));
                    }
                }
            }
        }
        let tried = anew.len() as u64;
        let written = on!(self, pool => {
            let mut tx = pool.begin().await?;
            let mut written = 0;
            for (sealed, kind, scope, id, version) in &anew {
                let query = sqlx::query(SQL).bind(sealed).bind(kind).bind(scope).bind(id).bind(version);
                written += query.execute(&mut *tx).await?.rows_affected();
            }
            tx.commit().await?;
            Ok(written)
        })
        .await?;
        round.rows += written;
        Ok(tried - written)
    }
}

fn stamp(file: &Metadata) -> Stamp {
    (file.ino(), file.len(), file.mtime(), file.mtime_nsec())
}
