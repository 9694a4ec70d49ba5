//! Opening a PostgreSQL database.
//!
//! 1. Without `sslmode` in its URL a server that isn't on this machine must show a certificate of its name that verifies;
//!    the environment (`PGSSLMODE`) doesn't change that. `sslrootcert=FILE` names a private authority.
//! 2. A server that is away when the gateway starts holds up nobody who doesn't need it: every call tries again.
//! 3. A connection that broke is replaced with the next call; each is tried before it is used.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use tokio::sync::OnceCell;
use url::Url;

use super::error::{Fault, StoreError};
use super::{LIMIT, PATIENCE, Pool, schema};
use crate::secret::Secret;

/// Connections of one gateway.
const CONNECTIONS: u32 = 8;
/// Also on the server nothing goes on after the caller has given up; and what one statement needs to be read as it is.
const SESSION: &str = "SET statement_timeout = 5000; SET lock_timeout = 4000; \
                       SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED";

pub(super) async fn open(url: &Secret) -> Result<(Pool, Arc<str>), StoreError> {
    let options = options(url).map_err(|fault| StoreError {
        place: "state.database".into(),
        fault,
    })?;
    let place: Arc<str> = place(&options).into();
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .after_connect(|connection, _| Box::pin(async move { connection.execute(SESSION).await.map(|_| ()) }))
        .connect_lazy_with(options);
    let ready = OnceCell::new();
    let migrated = tokio::time::timeout(LIMIT, ready.get_or_try_init(|| schema::of_postgres(&pool))).await;
    match migrated.unwrap_or(Err(Fault::Slow)).map(drop) {
        Err(fault @ (Fault::Unreachable(_) | Fault::Slow | Fault::Busy)) => {
            tracing::error!(place = &*place, %fault, "routes whose credentials are kept there answer 502 meanwhile");
        }
        Err(fault) => return Err(StoreError { place, fault }),
        Ok(()) => {}
    }
    Ok((Pool::Postgres { pool, ready }, place))
}

fn options(url: &Secret) -> Result<PgConnectOptions, Fault> {
    // Neither error quotes the URL, which holds the password.
    let parsed = Url::parse(url.expose()).map_err(|error| Fault::Url(error.to_string()))?;
    let options = PgConnectOptions::from_str(url.expose())?.application_name("portcullis");
    if parsed
        .query_pairs()
        .any(|(key, _)| key == "sslmode" || key == "ssl-mode")
    {
        return Ok(options);
    }
    let here = options.get_socket().is_some()
        || options.get_host() == "localhost"
        || options.get_host().starts_with('/')
        || IpAddr::from_str(options.get_host().trim_matches(['[', ']'])).is_ok_and(|address| address.is_loopback());
    Ok(options.ssl_mode(if here { PgSslMode::Prefer } else { PgSslMode::VerifyFull }))
}

fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    match options.get_socket() {
        Some(socket) => format!("PostgreSQL database {database} at {}", socket.display()),
        None => format!(
            "PostgreSQL database {database} at {}:{}",
            options.get_host(),
            options.get_port()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_must_show_who_it_is() {
        for (url, mode) in [
            ("postgres://u:p@db.example.com/d", PgSslMode::VerifyFull),
            ("postgres://u:p@10.1.2.3/d", PgSslMode::VerifyFull),
            ("postgres://u:p@localhost.example.com/d", PgSslMode::VerifyFull),
            (
                "postgres://u:p@db.example.com/d?sslrootcert=/ca.pem",
                PgSslMode::VerifyFull,
            ),
            ("postgres://u:p@db.example.com/d?sslmode=require", PgSslMode::Require),
            ("postgres://u:p@localhost/d", PgSslMode::Prefer),
            ("postgres://u:p@127.0.0.1:6432/d", PgSslMode::Prefer),
            ("postgres://u:p@[::1]/d", PgSslMode::Prefer),
            ("postgres://u:p@%2Frun%2Fpostgresql/d", PgSslMode::Prefer),
        ] {
            let options = options(&Secret::new(url)).unwrap_or_else(|fault| panic!("{url}: {fault}"));
            assert_eq!(format!("{:?}", options.get_ssl_mode()), format!("{mode:?}"), "{url}");
        }
    }

    #[test]
    fn the_password_is_in_no_place_and_no_error() {
        let good =
            options(&Secret::new("postgres://gate:hunter2@db:5433/tokens")).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(place(&good), "PostgreSQL database tokens at db:5433");
        for url in [
            "postgres://gate:hunter2@db:port/d",
            "postgres://gate:hunter2@db/d?sslmode=sometimes",
            "hunter2",
        ] {
            let fault = options(&Secret::new(url)).expect_err("no URL of a database");
            assert_eq!(fault.reason(), "url");
            assert!(!fault.to_string().contains("hunter2"), "{fault}");
        }
    }
}
