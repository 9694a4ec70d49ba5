//! Leases: one holder over tasks, processes and replicas, for a while.
//!
//! 1. Time is the database's, the only one that all replicas share. One that lies further ahead than any lease may last
//!    comes of a clock that was set back, and counts as over.
//! 2. A holder is a random name, so nobody releases another's lease, however late.

use std::time::Duration;

use aws_lc_rs::rand;

use super::{Pool, Store, StoreError, on};

/// The longest lease.
pub const MAX_LEASE: Duration = Duration::from_secs(300);

macro_rules! milliseconds {
    (sqlite) => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
    (postgres) => {
        "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
    };
}

macro_rules! acquire {
    ($database:ident) => {
        concat!(
            "INSERT INTO portcullis_lease (name, holder, ends) VALUES ($1, $2, ",
            milliseconds!($database),
            " + $3) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, ends = excluded.ends \
             WHERE portcullis_lease.ends <= ",
            milliseconds!($database),
            " OR portcullis_lease.ends > ",
            milliseconds!($database),
            " + $4"
        )
    };
}

macro_rules! sweep {
    ($database:ident) => {
        concat!("DELETE FROM portcullis_lease WHERE ends <= ", milliseconds!($database))
    };
}

/// Had by one at a time; dropped, it is released in the background.
pub struct Lease {
    store: Store,
    name: String,
    /// Empty once released.
    holder: String,
}

impl Store {
    /// Takes the lease of that name for at most `time` (5 minutes at most); `None` when somebody has it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn lease(&self, name: &str, time: Duration) -> Result<Option<Lease>, StoreError> {
        self.fit(&[("the lease's name", name)])?;
        let sql = match &self.0.pool {
            Pool::Sqlite { .. } => acquire!(sqlite),
            Pool::Postgres { .. } => acquire!(postgres),
        };
        let mut holder = [0; 16];
        rand::fill(&mut holder).expect("the system's random generator works");
        // Made before the asking: if the answer doesn't come, what may have been taken is given back.
        let mut lease = Lease {
            store: self.clone(),
            name: name.to_owned(),
            holder: super::hex(&holder),
        };
        let time = milliseconds(time.min(MAX_LEASE));
        let taken = on!(self, pool => sqlx::query(sql)
            .bind(name)
            .bind(&lease.holder)
            .bind(time)
            .bind(milliseconds(MAX_LEASE))
            .execute(pool)
            .await
            .map(|done| done.rows_affected()))
        .await?;
        if taken == 0 {
            lease.holder.clear();
            return Ok(None);
        }
        Ok(Some(lease))
    }

    pub(super) async fn sweep_leases(&self) -> Result<(), StoreError> {
        let sql = match &self.0.pool {
            Pool::Sqlite { .. } => sweep!(sqlite),
            Pool::Postgres { .. } => sweep!(postgres),
        };
        on!(self, pool => sqlx::query(sql).execute(pool).await.map(|_| ())).await
    }

    async fn release(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        const SQL: &str = "DELETE FROM portcullis_lease WHERE name = $1 AND holder = $2";
        on!(self, pool => sqlx::query(SQL).bind(name).bind(holder).execute(pool).await.map(|_| ())).await
    }
}

impl Lease {
    /// Gives it back at once. If that fails it ends by itself.
    pub async fn release(mut self) {
        let holder = std::mem::take(&mut self.holder);
        if let Err(error) = self.store.release(&self.name, &holder).await {
            tracing::warn!("a lease isn't given back and ends by itself: {error}");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.holder.is_empty() {
            return;
        }
        // Without a runtime nothing can be asked any more: it ends by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (store, name, holder) = (
            self.store.clone(),
            std::mem::take(&mut self.name),
            std::mem::take(&mut self.holder),
        );
        runtime.spawn(async move {
            if let Err(error) = store.release(&name, &holder).await {
                tracing::warn!("a lease isn't given back and ends by itself: {error}");
            }
        });
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
