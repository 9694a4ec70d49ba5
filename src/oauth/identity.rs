//! A client certificate in two files, read again when they change (RFC 8705).
//!
//! 1. What can't be used at the start is an error with the file's name; later on the last good pair stays in use.
//! 2. Files count as changed when their time or length does; both are looked at before each handshake.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Time of change and length of certificate and key.
type Stamp = [(SystemTime, u64); 2];

/// Answers a server that asks for a certificate.
pub(super) struct FileIdentity {
    certificate: PathBuf,
    key: PathBuf,
    /// As last read, and what the files looked like then.
    current: Mutex<(Stamp, Arc<CertifiedKey>)>,
}

// What rustls asks for; the key says nothing of itself.
impl std::fmt::Debug for FileIdentity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "FileIdentity({})", self.certificate.display())
    }
}

impl FileIdentity {
    /// Reads both files.
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let stamp =
            stamp(certificate, key).map_err(|(path, error)| format!("can't read {}: {error}", path.display()))?;
        let pair = pair(certificate, key)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: Mutex::new((stamp, Arc::new(pair))),
        })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        // Nothing under this lock can leave it half changed.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(stamp) = stamp(&self.certificate, &self.key)
            && stamp != current.0
        {
            match pair(&self.certificate, &self.key) {
                Ok(pair) => *current = (stamp, Arc::new(pair)),
                // Half written, perhaps: the next handshake looks again.
                Err(error) => tracing::warn!(%error, "the changed client certificate can't be used"),
            }
        }
        current.1.clone()
    }
}

impl ResolvesClientCert for FileIdentity {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let pair = self.current();
        pair.key.choose_scheme(schemes).is_some().then_some(pair)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn stamp<'a>(certificate: &'a Path, key: &'a Path) -> Result<Stamp, (&'a Path, std::io::Error)> {
    let of = |path: &'a Path| {
        let read = std::fs::metadata(path).and_then(|data| Ok((data.modified()?, data.len())));
        read.map_err(|error| (path, error))
    };
    Ok([of(certificate)?, of(key)?])
}

fn pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let unusable = |path: &Path, what: &str| format!("{}: {what}", path.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|_| unusable(certificate, "not a PEM certificate"))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "no certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|_| unusable(key, "no PEM private key in it"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, private, &provider)
        .map_err(|_| unusable(key, &format!("not the key of {}", certificate.display())))
}
