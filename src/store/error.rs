//! What a store can fail at, said so that an operator knows where to look and what to do.

use std::sync::Arc;

/// Characters of a database's own words that are passed on.
const MAX_CAUSE: usize = 200;

/// A call of the store failed; after [`Fault::Slow`] and [`Fault::Unreachable`] a write may nevertheless have happened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct StoreError {
    /// The file, or the server and database, without any password.
    pub place: Arc<str>,
    pub fault: Fault,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error(
        "the database can't be reached ({0}); nothing is lost; see that it runs where state.database says. A running gateway tries again with the next call"
    )]
    Unreachable(String),
    #[error("no answer within 5 s; see whether the database or its disk is overloaded")]
    Slow,
    #[error("another writer was in the way; see what else has the database open")]
    Busy,
    #[error("it can't be read or written ({0}); see to the file's owner, mode and disk")]
    Files(String),
    #[error(
        "others may read it (mode {0:04o}); `chmod 600` it, and disconnect and connect again whoever is in it if that matters"
    )]
    TooOpen(u32),
    #[error("it is no regular file; move it away, or name another state.directory")]
    NoFile,
    #[error("the file is damaged ({0}); restart the gateway, which puts it aside and begins an empty one")]
    Corrupt(String),
    #[error(
        "the file is damaged ({0}) and another process has it open; stop every gateway that uses it and start one again"
    )]
    CorruptInUse(String),
    #[error(
        "it was written by a newer portcullis (schema {found}, this one knows {known}); run that one, or restore the backup from before the upgrade"
    )]
    Newer { found: i64, known: i64 },
    #[error(
        "the row of {kind} {scope:?} does not open: its seal key {key} is gone, or it was tampered with; put the old key back into state.seal_keys (or seal.key of state.directory), or disconnect and connect again"
    )]
    Sealed {
        kind: &'static str,
        scope: String,
        /// The first bytes of a row say which key sealed it, in hex; no part of the key itself.
        key: String,
    },
    #[error("{0} is too long or has a NUL character, and isn't kept")]
    Unfit(&'static str),
    #[error("state.database is not a usable PostgreSQL URL: {0}")]
    Url(String),
    #[error("the database refused ({0}); see that the user may use and create tables there")]
    Refused(String),
}

impl Fault {
    /// For a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Slow => "timeout",
            Self::Busy => "busy",
            Self::Files(_) | Self::TooOpen(_) | Self::NoFile => "file",
            Self::Corrupt(_) | Self::CorruptInUse(_) => "corrupt",
            Self::Newer { .. } => "newer",
            Self::Sealed { .. } => "sealed",
            Self::Unfit(_) => "unfit",
            Self::Url(_) => "url",
            Self::Refused(_) => "refused",
        }
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => {
                let code = error.code().unwrap_or_default();
                let cause = cut(&format!("{code}: {}", error.message()));
                if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                    return Self::of_sqlite(code.parse().unwrap_or_default(), cause);
                }
                // PostgreSQL Appendix A: 08 connection exception, 40 transaction rollback, 57P0x shut down or starting, 53300
                // too many connections.
                match &*code {
                    "57014" | "55P03" => Self::Slow,
                    "40001" | "40P01" => Self::Busy,
                    "57P01" | "57P02" | "57P03" | "53300" => Self::Unreachable(cause),
                    code if code.starts_with("08") => Self::Unreachable(cause),
                    _ => Self::Refused(cause),
                }
            }
            sqlx::Error::PoolTimedOut => Self::Unreachable("no connection within the time".to_owned()),
            sqlx::Error::Configuration(error) => Self::Url(cut(&error.to_string())),
            error => Self::Unreachable(cut(&error.to_string())),
        }
    }
}

impl Fault {
    /// By the primary result code (<https://www.sqlite.org/rescode.html>): the low byte of an extended one.
    fn of_sqlite(code: i32, cause: String) -> Self {
        match code & 0xff {
            5 | 6 => Self::Busy,
            11 | 26 => Self::Corrupt(cause),
            3 | 8 | 10 | 13 | 14 | 23 => Self::Files(cause),
            _ => Self::Refused(cause),
        }
    }
}

pub(super) fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_CAUSE).collect()
}
