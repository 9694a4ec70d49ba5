//! The listener's certificate: TLS 1.2 and 1.3, ALPN `h2` and `http/1.1`.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::{BindError, ClientCertificate};
use crate::config::ServerTls;

/// The certificate in use; connections that come after a change get the new one.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// See [`Tls::read`].
    pub fn new(files: &ServerTls) -> Result<Self, BindError> {
        Ok(Self(Arc::new(ArcSwap::new(server_config(files)?))))
    }

    /// Reads what may be installed later.
    ///
    /// # Errors
    /// When a file can't be read, holds nothing usable, or the two don't belong together.
    pub fn read(files: &ServerTls) -> Result<Arc<ServerConfig>, BindError> {
        server_config(files)
    }

    /// For connections from now on.
    pub fn install(&self, config: Arc<ServerConfig>) {
        self.0.store(config);
    }

    /// For one connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }
}

fn server_config(files: &ServerTls) -> Result<Arc<ServerConfig>, BindError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| pem(&files.certificate, error))?;
    if chain.is_empty() {
        return Err(pem(&files.certificate, "it holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => pem(&files.key, "it holds no private key"),
        error => pem(&files.key, error),
    })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = match &files.client_ca {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => client_verifier(path, &provider)?,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    if files.client_ca.is_some() {
        // A resumed session would show a certificate that was looked at when the session began.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What verifies certificates of clients by the authorities in a PEM file: asks for one and takes none for an answer; one
/// that doesn't chain to the bundle, or is over, fails the handshake. Revocation lists aren't read: end a certificate by
/// its lifetime or its authority.
///
/// # Errors
/// When the file can't be read, or holds no authority.
pub fn client_verifier(path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, BindError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| pem(path, error))? {
        let certificate = certificate.map_err(|error| pem(path, error))?;
        roots.add(certificate).map_err(|error| pem(path, error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| pem(path, error))
}

/// The certificate that the client showed.
pub fn certificate(connection: &rustls::ServerConnection) -> Option<Arc<ClientCertificate>> {
    ClientCertificate::read(connection.peer_certificates()?).map(Arc::new)
}

fn pem(path: &Path, cause: impl std::fmt::Display) -> BindError {
    BindError::Pem {
        path: path.display().to_string(),
        cause: cause.to_string(),
    }
}
