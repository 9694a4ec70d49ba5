//! A client certificate in two files, shown to servers that ask for one (RFC 8705).

use std::path::Path;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::watched::Watched;

/// As the files are at each handshake.
pub(super) struct FileIdentity(Watched<Arc<CertifiedKey>>);

// What rustls asks for; the key says nothing of itself.
impl std::fmt::Debug for FileIdentity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("FileIdentity")
    }
}

impl FileIdentity {
    /// Reads both files.
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let files = vec![certificate.to_owned(), key.to_owned()];
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let watched = Watched::new(files, move || pair(&certificate, &key).map(Arc::new))?;
        Ok(Self(watched))
    }
}

impl ResolvesClientCert for FileIdentity {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let pair = self.0.current();
        pair.key.choose_scheme(schemes).is_some().then_some(pair)
    }

    fn has_certs(&self) -> bool {
        true
    }
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
