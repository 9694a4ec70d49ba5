//! Opening the SQLite file of a state directory.
//!
//! 1. The file is made with mode 0600 before SQLite sees it, and SQLite gives its log (`-wal`) and index (`-shm`) the same.
//!    A file that others may read is refused.
//! 2. One process at a time opens: the directory is locked meanwhile, so two don't both make the tables.
//! 3. A damaged file is put aside as it was found, as `portcullis.db.corrupt-TIME` with its log, and never written over: it
//!    may be mended (`sqlite3 FILE .recover`). The gateway then begins an empty one, for a gateway that doesn't start serves
//!    nobody, and who was connected can connect again. While another process has the file open nothing is moved.
//! 4. While SQLite has a sound file open in this process it isn't opened otherwise: closing any descriptor of it would end
//!    SQLite's locks (<https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::time::{Instant, sleep, timeout};

use super::error::{Fault, StoreError, cut};
use super::{LIMIT, PATIENCE, Pool, schema};
use crate::clock::Clock;

const NAME: &str = "portcullis.db";
/// Readers don't wait for the writer, and of writers there is one at a time anyway.
const CONNECTIONS: u32 = 4;
/// Of files larger than this only the beginning is read at a start: the whole would take seconds.
const MAX_CHECKED: u64 = 256 * 1024 * 1024;
/// What a database is made of, as suffixes; the index (`-shm`) can be made of them again.
const PARTS: [&str; 2] = ["", "-wal"];
const AGAIN: Duration = Duration::from_millis(10);

/// Held while this process has the file open: a lock that processes share.
pub(super) struct InUse(File);

pub(super) async fn open(directory: &Path, clock: &Clock) -> Result<(Pool, Arc<str>), StoreError> {
    let path = std::path::absolute(directory)
        .unwrap_or_else(|_| directory.to_owned())
        .join(NAME);
    let place: Arc<str> = path.display().to_string().into();
    match timeout(LIMIT, open_file(&path, clock))
        .await
        .unwrap_or(Err(Fault::Slow))
    {
        Ok(pool) => Ok((pool, place)),
        Err(fault) => Err(StoreError { place, fault }),
    }
}

async fn open_file(path: &Path, clock: &Clock) -> Result<Pool, Fault> {
    let directory = path.parent().expect("the path was joined to a directory");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(files)?;
    let opening = File::open(directory).map_err(files)?;
    lock(&opening).await?;
    let in_use = in_use(path).map_err(files)?;
    ready(path)?;
    let put_aside = look(path, &in_use, clock).await?;
    let pool = connect(path).await?;
    Ok(Pool::Sqlite {
        pool,
        put_aside,
        _in_use: in_use,
    })
}

/// Waits for others that are opening.
async fn lock(opening: &File) -> Result<(), Fault> {
    let until = Instant::now() + PATIENCE;
    loop {
        match flock(opening, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => sleep(AGAIN).await,
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Fault::Busy),
            Err(error) => return Err(files(error.into())),
        }
    }
}

fn in_use(path: &Path) -> io::Result<InUse> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(beside(path, ".lock"))?;
    flock(&file, FlockOperation::LockShared)?;
    Ok(InUse(file))
}

/// Sees that a file is there that is nobody else's.
fn ready(path: &Path) -> Result<(), Fault> {
    match new(path) {
        Ok(file) => file.sync_all().map_err(files),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = path.symlink_metadata().map_err(files)?;
            let mode = found.mode() & 0o7777;
            if !found.is_file() {
                return Err(Fault::NoFile);
            }
            if mode & 0o077 != 0 {
                return Err(Fault::TooOpen(mode));
            }
            Ok(())
        }
        Err(error) => Err(files(error)),
    }
}

async fn connect(path: &Path) -> Result<SqlitePool, Fault> {
    let options = plain(path)
        .journal_mode(SqliteJournalMode::Wal)
        // An answer that a token is stored must hold after the power fails.
        .synchronous(SqliteSynchronous::Full)
        .pragma("trusted_schema", "OFF")
        .pragma("cell_size_check", "ON");
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        // A connection to a file doesn't break.
        .test_before_acquire(false)
        .connect_with(options)
        .await?;
    schema::of_sqlite(&pool).await?;
    Ok(pool)
}

fn plain(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(PATIENCE)
}

/// Looks through the file; where it was put, if it was damaged.
async fn look(path: &Path, in_use: &InUse, clock: &Clock) -> Result<Option<PathBuf>, Fault> {
    let large = path.symlink_metadata().map_err(files)?.len() > MAX_CHECKED;
    let sql = if large {
        "SELECT CASE WHEN COUNT(*) >= 0 THEN 'ok' END FROM sqlite_master"
    } else {
        "PRAGMA quick_check(1)"
    };
    // By a connection that asks for nothing else: one that finds the file damaged while it is made is closed at once, and
    // closing writes the log into the file. What is put aside is copied before that.
    let mut connection = SqliteConnection::connect_with(&plain(path)).await?;
    let said: Result<(String,), _> = sqlx::query_as(sql).fetch_one(&mut connection).await;
    let why = match said {
        Ok((said,)) if said == "ok" => None,
        Ok((said,)) => Some(cut(&said)),
        Err(error) => match Fault::from(error) {
            Fault::Corrupt(why) => Some(why),
            fault => return Err(fault),
        },
    };
    let aside = why.as_ref().map(|why| put_aside(path, in_use, why, clock)).transpose();
    let _ = connection.close().await;
    let Some(aside) = aside? else {
        return Ok(None);
    };
    tracing::error!(
        "{path}: the file is damaged ({why}); it was put aside as {aside}, and an empty one is begun: who was connected must connect again, unless you stop the gateway and restore a backup",
        path = path.display(),
        why = why.unwrap_or_default(),
        aside = aside.display()
    );
    // The log first: were the gateway killed in between, an empty file would meet another's log.
    for suffix in ["-wal", "-shm", ""] {
        match std::fs::remove_file(beside(path, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(files(error)),
            _ => {}
        }
    }
    ready(path)?;
    Ok(Some(aside))
}

/// Copies the file and its log to a name that nobody has.
fn put_aside(path: &Path, in_use: &InUse, why: &str, clock: &Clock) -> Result<PathBuf, Fault> {
    if flock(&in_use.0, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Fault::CorruptInUse(why.to_owned()));
    }
    let now = clock.now();
    // Two in one second, or a clock that was set back: never over what was put aside before.
    let aside = (0..1000)
        .map(|again| match again {
            0 => format!(".corrupt-{now}"),
            again => format!(".corrupt-{now}-{again}"),
        })
        .map(|suffix| beside(path, &suffix))
        .find(|aside| aside.symlink_metadata().is_err())
        .ok_or_else(|| Fault::Corrupt(why.to_owned()))?;
    if let Err(error) = copy(path, &aside) {
        // Half a copy is none: a gateway that is started again and again would fill the disk with them.
        for suffix in PARTS {
            let _ = std::fs::remove_file(beside(&aside, suffix));
        }
        return Err(files(error));
    }
    let directory = path.parent().expect("the path was joined to a directory");
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(files)?;
    flock(&in_use.0, FlockOperation::LockShared).map_err(|error| files(error.into()))?;
    Ok(aside)
}

fn copy(path: &Path, aside: &Path) -> io::Result<()> {
    for suffix in PARTS {
        let mut from = match File::open(beside(path, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let mut to = new(&beside(aside, suffix))?;
        io::copy(&mut from, &mut to)?;
        to.sync_all()?;
    }
    Ok(())
}

fn new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn files(error: io::Error) -> Fault {
    Fault::Files(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_copy_is_not_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        std::fs::write(&path, "damaged").unwrap();
        // It can't be copied, as on a full disk.
        std::fs::create_dir(beside(&path, "-wal")).unwrap();
        let in_use = in_use(&path).unwrap();
        let fault = put_aside(&path, &in_use, "damaged", &Clock::fixed(1)).unwrap_err();
        assert!(matches!(fault, Fault::Files(_)), "{fault}");
        assert_eq!(directory.path().read_dir().unwrap().count(), 3, "nothing is left aside");
        assert_eq!(std::fs::read(&path).unwrap(), b"damaged");
    }
}
