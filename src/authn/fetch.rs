//! Issuer documents over HTTP: small, soon, and only from where they may come.
//!
//! 1. https, unless the issuer itself is on loopback; then http is allowed, to loopback only.
//! 2. Link-local addresses are never dialled, whatever a name resolves to: that is where clouds keep their metadata.
//! 3. Redirects are followed on the same origin, three at most (r46).
//! 4. At most [`MAX_DOCUMENT`] bytes within [`TIMEOUT`], redirects and body included.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::{Host, Url};

use super::SetupError;
use crate::config::Identity;

/// Largest issuer document, in bytes.
const MAX_DOCUMENT: usize = 1024 * 1024;

/// For one document.
const TIMEOUT: Duration = Duration::from_secs(10);

const MAX_REDIRECTS: usize = 3;

/// Why a document can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}")]
    Address(&'static str),
    #[error("it took longer than 10 s")]
    Slow,
    #[error("it is larger than 1 MiB")]
    Large,
    #[error("it can't be reached, or its certificate isn't trusted")]
    Unreachable,
    #[error("it redirects elsewhere, or too often")]
    Redirect,
    #[error("it answers {0}")]
    Status(u16),
}

impl FetchError {
    /// Whether the issuer says that there is nothing for us there. Some say so with 401 or 403.
    pub(crate) fn is_absence(self) -> bool {
        matches!(self, Self::Status(status) if (400..500).contains(&status) && !matches!(status, 408 | 429))
    }
}

/// Gets one issuer's documents.
pub(crate) struct Fetcher {
    client: reqwest::Client,
    /// The issuer is on loopback, where plain http is bearable.
    loopback: bool,
}

impl Fetcher {
    /// A client that trusts `roots`, for an issuer at `issuer`.
    fn new(issuer: &Url, roots: RootCertStore) -> Result<Self, String> {
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(NoLinkLocal))
            // Proxies would come from the environment, which only the configuration may read.
            .no_proxy()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::custom(|attempt| {
                let same_origin = attempt
                    .previous()
                    .first()
                    .is_some_and(|first| first.origin() == attempt.url().origin());
                if same_origin && attempt.previous().len() <= MAX_REDIRECTS {
                    attempt.follow()
                } else {
                    attempt.stop()
                }
            }))
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            client,
            loopback: is_loopback(issuer),
        })
    }

    /// A client for this identity's issuer, whose documents are first looked for at `base`.
    ///
    /// # Errors
    /// A CA bundle that can't be used, or an address that is never asked.
    pub(crate) fn of(
        identity: &Identity,
        base: &Url,
        system_roots: impl FnOnce() -> RootCertStore,
    ) -> Result<Self, SetupError> {
        let name = &identity.name;
        let roots = match &identity.ca {
            Some(path) => roots_of(path).map_err(|source| match source.kind() {
                io::ErrorKind::InvalidData => SetupError::Authority {
                    identity: name.clone(),
                    path: path.clone(),
                },
                _ => SetupError::File {
                    identity: name.clone(),
                    path: path.clone(),
                    source,
                },
            })?,
            // Reading the system's store takes a while; over plain http nobody asks for it.
            None if base.scheme() == "http" => RootCertStore::empty(),
            None => system_roots(),
        };
        let issuer = Url::parse(&identity.issuer).ok();
        let fetcher = Self::new(issuer.as_ref().unwrap_or(base), roots).map_err(|reason| SetupError::Client {
            identity: name.clone(),
            reason,
        })?;
        match fetcher.allowed(base) {
            Ok(()) => Ok(fetcher),
            Err(reason) => Err(SetupError::Address {
                identity: name.clone(),
                url: base.to_string(),
                reason,
            }),
        }
    }

    /// Whether a document may be fetched from here at all.
    pub(crate) fn allowed(&self, url: &Url) -> Result<(), &'static str> {
        allowed(url, self.loopback)
    }

    /// One document.
    pub(crate) async fn get(&self, url: &Url) -> Result<Vec<u8>, FetchError> {
        self.allowed(url).map_err(FetchError::Address)?;
        let request = self
            .client
            .get(url.clone())
            .header(ACCEPT, HeaderValue::from_static("application/json"));
        read(request).await
    }

    /// The answer to a form. Rules 1 to 4 hold for it too.
    pub(crate) async fn post(
        &self,
        url: &Url,
        form: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<Vec<u8>, FetchError> {
        self.allowed(url).map_err(FetchError::Address)?;
        let mut request = self
            .client
            .post(url.clone())
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .header(
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            )
            .body(form.to_owned());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        read(request).await
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<Vec<u8>, FetchError> {
    let mut response = request.send().await.map_err(broken)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect);
    }
    if !status.is_success() {
        return Err(FetchError::Status(status.as_u16()));
    }
    let mut document = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if document.len() + chunk.len() > MAX_DOCUMENT {
            return Err(FetchError::Large);
        }
        document.extend_from_slice(&chunk);
    }
    Ok(document)
}

fn broken(error: reqwest::Error) -> FetchError {
    if error.is_timeout() {
        FetchError::Slow
    } else {
        FetchError::Unreachable
    }
}

/// The roots in a PEM bundle.
fn roots_of(bundle: &Path) -> io::Result<RootCertStore> {
    let pem = std::fs::read(bundle)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        roots
            .add(certificate)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    }
    if roots.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(roots)
}

/// The machine's roots, as many as can be read.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn allowed(url: &Url, loopback_issuer: bool) -> Result<(), &'static str> {
    let host = url.host().ok_or("it has no host")?;
    if host_ip(&host).is_some_and(is_link_local) {
        return Err("link-local addresses are never asked");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials in a URL are not used");
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if loopback_issuer && is_loopback(url) => Ok(()),
        "http" => Err("https is needed off loopback"),
        _ => Err("neither http nor https"),
    }
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(host) => host_ip(&host).is_some_and(|ip| ip.is_loopback()),
        None => false,
    }
}

/// IPv4 addresses in IPv6 clothes are IPv4 addresses.
fn host_ip(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Ipv4(ip) => Some(IpAddr::V4(*ip)),
        Host::Ipv6(ip) => Some(ip.to_canonical()),
        Host::Domain(_) => None,
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The system's resolver without link-local answers.
struct NoLinkLocal;

impl Resolve for NoLinkLocal {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await?
                .filter(|address| !is_link_local(address.ip()))
                .collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r26_plain_http_only_between_loopback_and_link_local_never() {
        let verdict = |url: &str, loopback| allowed(&Url::parse(url).unwrap(), loopback).is_ok();
        assert!(verdict("https://login.example.com/jwks", false));
        assert!(verdict("https://login.example.com/jwks", true));
        for loopback in [
            "http://127.0.0.1:8002/",
            "http://localhost:1/",
            "http://[::1]:2/",
            "http://127.9.9.9/",
        ] {
            assert!(verdict(loopback, true), "{loopback}");
            assert!(!verdict(loopback, false), "{loopback}");
        }
        for never in [
            "http://login.example.com/jwks",
            "http://localhost.example.com/",
            "http://10.0.0.1/",
            "https://169.254.169.254/latest",
            "http://169.254.169.254/latest",
            "https://[fe80::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://user:secret@login.example.com/",
            "file:///etc/passwd",
            "data:text/plain,x",
        ] {
            assert!(!verdict(never, true), "{never}");
            assert!(!verdict(never, false), "{never}");
        }
    }
}
