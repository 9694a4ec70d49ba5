//! `portcullis keys`: changing the keys that seal, beside gateways that go on serving.
//!
//! 1. `rotate` first sees that nothing is left of an earlier rotation, and finishes that otherwise: killed at any point it
//!    can be run again, and doesn't make one key after the other.
//! 2. Keys in the configuration are the operator's to add and to remove; rows are sealed anew with the first one. The key
//!    file gets a new key in front, which running gateways take up by themselves.
//! 3. `forget` drops the older keys of the key file, once no row needs them and running gateways have had a minute to
//!    take up the new one. What was sealed besides rows, as sessions, ends with them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::account::tell_what_was_put_aside;
use crate::clock::Clock;
use crate::config::{Config, State};
use crate::session::{KeyFile, Sealer, key_file, load_or_create};
use crate::store::Store;

/// By then whoever writes to the database has seen a change of the key file.
const TAKEN_UP: Duration = Duration::from_secs(60);

/// Change the keys that seal stored tokens and sessions
#[derive(Debug, Args)]
pub struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Rotate(Rotate),
    Forget(Forget),
}

/// Seal every stored token with a new key; gateways may run on
#[derive(Debug, Args)]
struct Rotate {
    /// The configuration file
    #[arg(long, short, default_value = "portcullis.yaml")]
    config: PathBuf,
}

/// Drop the older keys of the key file; sessions sealed with them end
#[derive(Debug, Args)]
struct Forget {
    /// The configuration file
    #[arg(long, short, default_value = "portcullis.yaml")]
    config: PathBuf,
}

impl Keys {
    /// Runs the command.
    pub async fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Rotate(rotate) => rotate.run().await,
            Command::Forget(forget) => forget.run().await,
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        }
    }
}

impl Rotate {
    async fn run(self) -> Result<(), String> {
        let state = state(&self.config)?;
        let (store, mut sealer) = open(&state).await?;
        let file = key_file(&state.directory);
        if !state.seal_keys.is_empty() {
            println!(
                "state.seal_keys: the first key, {}, seals; {} open",
                ids(&sealer)[0],
                ids(&sealer).len()
            );
        } else if waiting(&store, &sealer).await? > 0 {
            println!("an earlier rotation is finished first; run this again to make another key");
        } else {
            let mut keys = KeyFile::change(&state.directory).map_err(|error| error.to_string())?;
            keys.renew()
                .map_err(|error| format!("{}: {error}; first run: portcullis keys forget", file.display()))?;
            drop(keys);
            sealer = own(&state)?;
            store.replace_sealer(sealer.clone());
            println!(
                "{}: the new key {} seals from now on; {} open",
                file.display(),
                ids(&sealer)[0],
                ids(&sealer).len()
            );
        }
        let resealed = store.reseal().await.map_err(|error| error.to_string())?;
        println!("{} rows are sealed anew with key {}", resealed.rows, ids(&sealer)[0]);
        if resealed.left > 0 {
            return Err(format!(
                "{} rows do not open and are left as they are; put their key back and run this again, or disconnect whom they belong to:\n  {}",
                resealed.left,
                resealed.named.join("\n  ")
            ));
        }
        if ids(&sealer).len() > 1 {
            println!(
                "no row needs the older keys ({}) any more",
                ids(&sealer)[1..].join(", ")
            );
            if state.seal_keys.is_empty() {
                println!(
                    "sessions and sign-ins sealed with them end when they are dropped, with: portcullis keys forget"
                );
            } else {
                println!(
                    "when every gateway runs with the first key and sessions sealed with the others may end, take those out of state.seal_keys"
                );
            }
        }
        Ok(())
    }
}

impl Forget {
    async fn run(self) -> Result<(), String> {
        let state = state(&self.config)?;
        if !state.seal_keys.is_empty() {
            return Err("the keys are in state.seal_keys: take the older ones out there".to_owned());
        }
        let (store, _) = open(&state).await?;
        let file = key_file(&state.directory);
        let mut keys = KeyFile::change(&state.directory).map_err(|error| error.to_string())?;
        // As they are under the lock.
        let sealer = own(&state)?;
        if keys.count() == 1 {
            println!("{}: there is but one key", file.display());
            return Ok(());
        }
        let changed = keys.changed().map_err(|error| format!("{}: {error}", file.display()))?;
        if changed.elapsed().is_ok_and(|age| age < TAKEN_UP) {
            return Err(format!(
                "{}: changed less than a minute ago, and a gateway may still be writing with an older key; try again in a minute",
                file.display()
            ));
        }
        let waiting = waiting(&store, &sealer).await?;
        if waiting > 0 {
            return Err(format!(
                "{waiting} rows need the older keys; first run: portcullis keys rotate"
            ));
        }
        keys.forget().map_err(|error| format!("{}: {error}", file.display()))?;
        println!(
            "{}: key {} is left; {} forgotten",
            file.display(),
            ids(&sealer)[0],
            ids(&sealer)[1..].join(", ")
        );
        Ok(())
    }
}

fn state(file: &std::path::Path) -> Result<State, String> {
    let loaded = Config::load(file, &|name| std::env::var(name).ok()).map_err(|errors| errors.to_string())?;
    Ok(loaded.config.state)
}

async fn open(state: &State) -> Result<(Store, Arc<Sealer>), String> {
    let sealer = match state.seal_keys.as_slice() {
        [] => own(state)?,
        keys => Arc::new(Sealer::new(keys)),
    };
    let store = Store::open(state, sealer.clone(), Clock::system())
        .await
        .map_err(|error| error.to_string())?;
    tell_what_was_put_aside(&store);
    Ok((store, sealer))
}

/// The keys of the key file, as they are now.
fn own(state: &State) -> Result<Arc<Sealer>, String> {
    let (sealer, warning) = load_or_create(&state.directory).map_err(|error| error.to_string())?;
    match warning {
        Some(warning) => Err(warning.unusable()),
        None => Ok(Arc::new(sealer)),
    }
}

/// Rows that one of the older keys has sealed.
async fn waiting(store: &Store, sealer: &Sealer) -> Result<u64, String> {
    let older = &ids(sealer)[1..];
    let by = store.sealed_by().await.map_err(|error| error.to_string())?;
    Ok(by
        .iter()
        .filter(|(id, _)| older.contains(id))
        .map(|(_, count)| count)
        .sum())
}

fn ids(sealer: &Sealer) -> Vec<String> {
    sealer
        .key_ids()
        .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect()
}
