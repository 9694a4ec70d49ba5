//! What the commands about people's connections share: whose account it is, and at which service.
//!
//! 1. They work on the gateway's own store, beside a running gateway or without one.
//! 2. A person is whom a token is about, checked as the gateway checks it, or whom the operator names: the one is for
//!    people, who have a token, the other for whoever may read the store anyway.
//! 3. A route with a token file has one login for everybody, and nobody is named.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::credential::{self, Deciders};
use crate::authn::Principal;
use crate::config::{self, Config, Credential, KeySource};
use crate::credential::{Connections, Person};
use crate::generation;
use crate::oauth::login::Login;
use crate::route::Route;
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

/// A route, and whose connection there.
#[derive(Debug, Args)]
pub struct Account {
    /// The route's name in the configuration
    pub route: String,
    /// The configuration file
    #[arg(long, short, default_value = "portcullis.yaml")]
    config: PathBuf,
    /// A file with a token that the route takes: the connection is of whom it is about
    #[arg(long, value_name = "FILE", conflicts_with = "subject")]
    token_file: Option<PathBuf>,
    /// The person's subject, as the identity's tokens name it
    #[arg(long)]
    subject: Option<String>,
    /// Whose subject that is; needed where the route takes several identities
    #[arg(long, requires = "subject")]
    identity: Option<String>,
}

/// An account whose route and person are known.
pub struct Known {
    pub deciders: Deciders,
    pub connections: Arc<Connections>,
    pub login: Login,
    pub owner: Owner,
}

/// Whose login it is.
pub enum Owner {
    Person {
        person: Person,
        /// As the tokens name them.
        subject: String,
    },
    /// Everybody's, in this file.
    Everybody(PathBuf),
}

impl Owner {
    /// By what a login under way is found; no person is called like the others.
    pub fn id(&self) -> &str {
        match self {
            Self::Person { person, .. } => person.as_str(),
            Self::Everybody(_) => "everybody",
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Person { subject, .. } => write!(f, "for {subject:?}"),
            Self::Everybody(file) => write!(f, "for everybody, in {}", file.display()),
        }
    }
}

/// Why there is nothing to do, for people, and the exit code.
pub struct Closed {
    code: u8,
    error: String,
}

impl Closed {
    fn misused(error: String) -> Self {
        Self { code: 2, error }
    }

    fn failed(error: String) -> Self {
        Self { code: 1, error }
    }

    /// Says it.
    pub fn told(self) -> ExitCode {
        eprintln!("{}", self.error);
        ExitCode::from(self.code)
    }
}

impl From<String> for Closed {
    fn from(error: String) -> Self {
        Self::misused(error)
    }
}

impl Known {
    /// Where everything is kept.
    pub fn store(&self) -> &Store {
        self.connections.store()
    }

    /// Scopes that a service asked for besides, since the last login.
    ///
    /// # Errors
    /// The store's.
    pub async fn wanted(&self, route: &str) -> Result<Vec<String>, StoreError> {
        match &self.owner {
            Owner::Person { person, .. } => Ok(self.connections.state(route, person).await?.wanted),
            Owner::Everybody(_) => Ok(Vec::new()),
        }
    }
}

impl Account {
    /// Finds out who is meant, and opens the store.
    ///
    /// # Errors
    /// What is wrong with the configuration or the arguments, for people.
    pub async fn open(&self) -> Result<Known, Closed> {
        let deciders = Deciders::load(&self.config)?;
        let route = deciders.route(&self.route)?.clone();
        let (connection, owner) = match &route.config.credential {
            Credential::Connection(connection) => (&**connection, self.person(&deciders, &route).await?),
            Credential::TokenFile(file) => match &file.login {
                Some(login) if self.token_file.is_none() && self.subject.is_none() => {
                    (login, Owner::Everybody(file.path.clone()))
                }
                Some(_) => {
                    return Err(Closed::misused(format!(
                        "route {:?} has one login for everybody: name nobody (no --token-file, no --subject)",
                        self.route
                    )));
                }
                None => {
                    return Err(Closed::misused(format!(
                        "nobody connects to route {:?}: others write its token file, and nothing says how to log in",
                        self.route
                    )));
                }
            },
            _ => {
                return Err(Closed::misused(format!(
                    "nobody connects to route {:?}: its credential is no connection; those of all routes are shown by: portcullis status",
                    self.route
                )));
            }
        };
        let store = store(&deciders.config).await.map_err(Closed::failed)?;
        let public_url = generation::public_url(&deciders.config, deciders.config.listen.address);
        let login = Login::new(
            connection,
            &route.config.upstream,
            &public_url,
            store.clone(),
            deciders.clock.clone(),
        )
        .map_err(|error| format!("routes.{}.credential: {error}", self.route))?;
        let connections = Connections::new(store, deciders.clock.clone(), Metrics::new());
        Ok(Known {
            connections,
            login,
            owner,
            deciders,
        })
    }

    /// Whose connection is meant.
    async fn person(&self, deciders: &Deciders, route: &Route) -> Result<Owner, String> {
        let principal = match (&self.token_file, &self.subject) {
            (Some(file), _) => {
                let token = credential::token(Some(file))?;
                let weighed = deciders.authenticator.weigh(&route.auth, &token).await;
                let refused = |error| {
                    format!(
                        "the token in {} is not good on route {:?}: {error}",
                        file.display(),
                        self.route
                    )
                };
                weighed.outcome.map_err(refused)?
            }
            (None, Some(subject)) => Arc::new(self.named(&route.config, subject)?),
            (None, None) => {
                return Err(
                    "whose account? Name a file with their token (--token-file) or their subject (--subject)"
                        .to_owned(),
                );
            }
        };
        let person = Person::of(&principal).ok_or("the token is nobody's: the route lets callers in without one")?;
        Ok(Owner::Person {
            person,
            subject: principal.subject.clone(),
        })
    }

    /// Somebody of one of the route's identities.
    fn named(&self, route: &config::Route, subject: &str) -> Result<Principal, String> {
        let names = || {
            let names: Vec<&str> = route.identities.iter().map(|identity| &*identity.name).collect();
            names.join(", ")
        };
        let identity = match (&self.identity, &*route.identities) {
            (Some(name), all) => all.iter().find(|identity| *identity.name == **name).ok_or_else(|| {
                format!(
                    "route {:?} does not take identity {name:?}; it takes: {}",
                    self.route,
                    names()
                )
            })?,
            (None, [only]) => only,
            (None, _) => {
                return Err(format!(
                    "whose subject is {subject:?}? Say --identity, one of: {}",
                    names()
                ));
            }
        };
        // What these go by is no issuer's `iss`; it is written where they are let in.
        if matches!(identity.keys, KeySource::ApiKeys(_) | KeySource::ClientCertificates(_)) {
            return Err(format!(
                "identity {:?} has no issuer whose subjects could be named: use --token-file with their API key, or connect \
                 in a browser",
                identity.name
            ));
        }
        Ok(Principal {
            identity: Some(identity.name.clone()),
            issuer: identity.issuer.clone(),
            subject: subject.to_owned(),
            ..Principal::default()
        })
    }
}

/// The gateway's store.
///
/// # Errors
/// It can't be opened, for people.
pub async fn store(config: &Config) -> Result<Store, String> {
    let sealer = generation::sealer(config, &arc_swap::ArcSwapOption::empty()).map_err(|error| error.to_string())?;
    let clock = crate::clock::Clock::system();
    let opened = Store::open(&config.state, sealer, clock).await;
    let store = opened.map_err(|error| error.to_string())?;
    tell_what_was_put_aside(&store);
    Ok(store)
}

/// Says so when the database was damaged: a command has no log.
pub fn tell_what_was_put_aside(store: &Store) {
    if let Some(aside) = store.put_aside() {
        eprintln!(
            "the database was damaged and was put aside as {}; an empty one is begun, and who was connected must connect again",
            aside.display()
        );
    }
}
