//! What the commands that weigh tokens share: the routes and identities of a configuration, and tokens from files.
//!
//! 1. Routes and identities are built as the gateway builds them; nothing listens and no upstream is called.
//! 2. A token comes from a file or from stdin, never from the command line, which other users of the machine can read.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::authn::Authenticator;
use crate::authn::bearer::MAX_TOKEN;
use crate::clock::Clock;
use crate::config::Config;
use crate::generation;
use crate::limit::Limits;
use crate::listener::ClientCertificate;
use crate::oauth::signer::Signer;
use crate::route::Route;
use crate::secret::Secret;
use crate::session::Sealer;
use crate::telemetry::Metrics;

/// Bytes of a file with certificates: more than a TLS handshake takes.
const MAX_PEM: u64 = 128 * 1024;

/// What decides, of one configuration.
pub struct Deciders {
    pub config: Config,
    pub routes: Vec<Arc<Route>>,
    pub authenticator: Arc<Authenticator>,
    pub clock: Clock,
}

impl Deciders {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn load(file: &Path) -> Result<Self, String> {
        let loaded = Config::load(file, &|name| std::env::var(name).ok()).map_err(|errors| errors.to_string())?;
        let config = loaded.config;
        let clock = Clock::system();
        let url = generation::public_url(&config, config.listen.address);
        // Nothing leaves from here: any key will do.
        let signer = Arc::new(Signer::of_sealer(&Sealer::new(&[])));
        let ingredients = generation::Ingredients {
            url: &url,
            signer: &signer,
            metrics: &Metrics::new(),
            limits: &Limits::default(),
            clock: &clock,
            connections: None,
        };
        let routes = generation::routes(&config, &ingredients, &[]).map_err(|error| error.to_string())?;
        let authenticator = Authenticator::new(
            &config.identities,
            config.roles.clone(),
            clock.clone(),
            Arc::new(|_| {}),
        )
        .map_err(|error| error.to_string())?;
        Ok(Self {
            config,
            routes,
            authenticator,
            clock,
        })
    }

    /// A route by its name.
    ///
    /// # Errors
    /// There is none; the message names those there are.
    pub fn route(&self, name: &str) -> Result<&Arc<Route>, String> {
        self.routes.iter().find(|route| route.name() == name).ok_or_else(|| {
            let known: Vec<&str> = self.routes.iter().map(|route| route.name()).collect();
            format!("no route {name:?}; there are: {}", known.join(", "))
        })
    }
}

/// A client's certificate with its chain, from PEM.
///
/// # Errors
/// It can't be read, or holds none.
pub fn certificate(file: &Path) -> Result<ClientCertificate, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("cannot read a certificate from {}: {why}", file.display());
    let mut pem = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(MAX_PEM).read_to_end(&mut pem));
    read.map_err(|error| wrong(&error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| wrong(&error))?;
    ClientCertificate::read(&chain).ok_or_else(|| wrong(&"it holds none"))
}

/// A token, with the white space around it taken off. `None` reads stdin.
///
/// # Errors
/// It can't be read, or is too long for any token.
pub fn token(file: Option<&Path>) -> Result<Secret, String> {
    let mut text = zeroize::Zeroizing::new(String::new());
    // Room for a line end or two beyond the longest token.
    let limit = MAX_TOKEN as u64 + 16;
    let (name, read) = match file {
        Some(file) => (
            file.display().to_string(),
            std::fs::File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text)),
        ),
        None => ("stdin".to_owned(), io::stdin().take(limit).read_to_string(&mut text)),
    };
    read.map_err(|error| format!("cannot read a token from {name}: {error}"))?;
    match text.trim() {
        "" => Err(format!("{name} holds no token")),
        token if token.len() > MAX_TOKEN => Err(format!("{name} holds more than {MAX_TOKEN} bytes, which is no token")),
        token => Ok(Secret::new(token)),
    }
}
