//! Calls of the gateway's own, to issuers and to who tells about them: small, soon, and only where they may go.
//!
//! 1. https; plain http to loopback only, and only where that is this side of the operator's doing.
//! 2. Link-local addresses are never dialled, whatever a name resolves to: that is where clouds keep their metadata.
//! 3. An address that somebody's document gives ([`Reach::Found`]) is public: what its name resolves to is looked at when
//!    it is dialled, so that a name that changes in between (DNS rebinding) gains nothing (r26).
//! 4. A document is followed through redirects on its own origin, three at most (r46), at an address that the operator
//!    named; a stranger's isn't followed at all, and nothing that carries a secret ([`Fetcher::ask`]) is.
//! 5. At most 1 MiB within 10 s, redirects and body included. No proxy, no cookies, and nothing
//!    else from the environment.
//! 6. A client certificate is read again when its files change, and connections made with it are not kept.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::identity::FileIdentity;

/// Largest document or answer, in bytes.
const MAX_DOCUMENT: usize = 1024 * 1024;

/// For one document or answer.
const TIMEOUT: Duration = Duration::from_secs(10);

const MAX_REDIRECTS: usize = 3;

/// How long the machine's roots are taken for unchanged: building many clients at once reads them once.
const ROOTS_KEPT: Duration = Duration::from_secs(60);

/// Who chose the addresses that a [`Fetcher`] asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The operator.
    Named,
    /// Somebody's document: no private address, unless `private`; loopback with `loopback`, too.
    Found { private: bool, loopback: bool },
}

impl Reach {
    /// For what an upstream says of itself, and what is said there in turn. An upstream on loopback may point to its
    /// neighbours there.
    pub fn found(upstream: &Url, private: bool) -> Self {
        Self::Found {
            private,
            loopback: is_loopback(upstream),
        }
    }

    /// How many redirects a document may take: a stranger's takes none.
    fn redirects(self) -> usize {
        match self {
            Self::Named => MAX_REDIRECTS,
            Self::Found { .. } => 0,
        }
    }

    fn admits(self, address: IpAddr) -> bool {
        match (self, Realm::of(address)) {
            (Self::Named, _) => !is_link_local(address),
            (Self::Found { .. }, Realm::Public) => true,
            (Self::Found { private, loopback }, Realm::Loopback) => private || loopback,
            (Self::Found { private, .. }, Realm::Private) => private,
            (Self::Found { .. }, Realm::Never) => false,
        }
    }
}

/// Why a document or an answer can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
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
    /// Whether the other side says that there is nothing for us there. Some say so with 401 or 403.
    pub fn is_absence(self) -> bool {
        matches!(self, Self::Status(status) if (400..500).contains(&status) && !matches!(status, 408 | 429))
    }
}

const PRIVATE: &str = "its address is not a public one";

/// What [`Fetcher::ask`] sends. Has no `Debug`: the body may be a secret, and is wiped.
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl Request {
    /// A form to be posted, `application/x-www-form-urlencoded` already.
    pub fn form(url: Url, body: Zeroizing<Vec<u8>>) -> Self {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        Self {
            method: Method::POST,
            url,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, form), (ACCEPT, JSON)]),
            body,
        }
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Whatever the other side answered, 4xx and 5xx included.
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl Answered {
    /// The body of a 2xx.
    ///
    /// # Errors
    /// What any other status is.
    pub fn success(self) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        match self.status {
            status if status.is_success() => Ok(self.body),
            status if status.is_redirection() => Err(FetchError::Redirect),
            status => Err(FetchError::Status(status.as_u16())),
        }
    }
}

/// Makes calls of one kind: the same trust, the same certificate, the same reach.
pub struct Fetcher {
    client: reqwest::Client,
    reach: Reach,
    /// Plain http is bearable, to loopback.
    plain: bool,
}

impl Fetcher {
    /// A client that trusts the PEM bundle `ca` (`None`: the machine's roots) and shows the certificate and key of
    /// `identity`.
    ///
    /// # Errors
    /// A file that can't be read or used, in words for the operator.
    pub fn new(ca: Option<&Path>, identity: Option<(&Path, &Path)>, reach: Reach) -> Result<Self, String> {
        let roots = match ca {
            Some(path) => Arc::new(roots_of(path).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => format!("{} holds no usable CA certificate", path.display()),
                _ => format!("can't read {}: {error}", path.display()),
            })?),
            None => system_roots(),
        };
        let identity = match identity {
            Some((certificate, key)) => Some(FileIdentity::read(certificate, key)?),
            None => None,
        };
        let plain = match reach {
            Reach::Named => true,
            Reach::Found { private, loopback } => private || loopback,
        };
        Self::with_roots(roots, identity, reach, plain)
    }

    /// A client for addresses that the operator named, with plain http to loopback only if `plain`.
    pub(crate) fn named(roots: Arc<RootCertStore>, plain: bool) -> Result<Self, String> {
        Self::with_roots(roots, None, Reach::Named, plain)
    }

    fn with_roots(
        roots: Arc<RootCertStore>,
        identity: Option<FileIdentity>,
        reach: Reach,
        plain: bool,
    ) -> Result<Self, String> {
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut builder = reqwest::Client::builder();
        let tls = match identity {
            None => tls.with_no_client_auth(),
            Some(identity) => {
                // What is kept of a connection would go on showing the certificate that the files held then.
                builder = builder.pool_max_idle_per_host(0);
                let mut tls = tls.with_client_cert_resolver(Arc::new(identity));
                tls.resumption = Resumption::disabled();
                tls
            }
        };
        let client = builder
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(Guarded(reach)))
            // Proxies would come from the environment, which only the configuration may read.
            .no_proxy()
            .referer(false)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { client, reach, plain })
    }

    /// Whether something may be asked here at all, as far as the URL tells.
    ///
    /// # Errors
    /// Why not.
    pub fn allowed(&self, url: &Url) -> Result<(), &'static str> {
        let host = url.host().ok_or("it has no host")?;
        if let Some(address) = host_ip(&host) {
            if is_link_local(address) {
                return Err("link-local addresses are never asked");
            }
            if !self.reach.admits(address) {
                return Err(PRIVATE);
            }
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials in a URL are not used");
        }
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.plain && is_loopback(url) => Ok(()),
            "http" => Err("https is needed off loopback"),
            _ => Err("neither http nor https"),
        }
    }

    /// One document.
    ///
    /// # Errors
    /// Anything but a 2xx within the bounds.
    pub async fn get(&self, url: &Url) -> Result<Vec<u8>, FetchError> {
        let mut url = url.clone();
        let followed = async {
            for _ in 0..=self.reach.redirects() {
                self.allowed(&url).map_err(FetchError::Address)?;
                let request = self.client.get(url.clone()).header(ACCEPT, JSON);
                let response = request.send().await.map_err(broken)?;
                let status = response.status();
                if status.is_success() {
                    return Ok(std::mem::take(&mut *body(response).await?));
                }
                if !status.is_redirection() {
                    return Err(FetchError::Status(status.as_u16()));
                }
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let next = location.and_then(|location| url.join(location).ok());
                url = next
                    .filter(|next| next.origin() == url.origin())
                    .ok_or(FetchError::Redirect)?;
            }
            Err(FetchError::Redirect)
        };
        let got = tokio::time::timeout(TIMEOUT, followed).await;
        got.unwrap_or(Err(FetchError::Slow))
    }

    /// The answer to a request, whatever its status.
    ///
    /// # Errors
    /// When there is none within the bounds.
    pub async fn ask(&self, request: Request) -> Result<Answered, FetchError> {
        self.allowed(&request.url).map_err(FetchError::Address)?;
        let request = self
            .client
            .request(request.method, request.url)
            .headers(request.headers)
            .body(Bytes::from_owner(request.body));
        let asked = async {
            let response = request.send().await.map_err(broken)?;
            Ok(Answered {
                status: response.status(),
                headers: response.headers().clone(),
                body: body(response).await?,
            })
        };
        let answered = tokio::time::timeout(TIMEOUT, asked).await;
        answered.unwrap_or(Err(FetchError::Slow))
    }
}

async fn body(mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let mut document = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if document.len() + chunk.len() > MAX_DOCUMENT {
            return Err(FetchError::Large);
        }
        document.extend_from_slice(&chunk);
    }
    Ok(document)
}

fn broken(error: reqwest::Error) -> FetchError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if error.is::<Forbidden>() {
            return FetchError::Address(PRIVATE);
        }
        cause = error.source();
    }
    FetchError::Unreachable
}

/// The roots in a PEM bundle.
pub(crate) fn roots_of(bundle: &Path) -> io::Result<RootCertStore> {
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
pub(crate) fn system_roots() -> Arc<RootCertStore> {
    static READ: Mutex<Option<(Instant, Arc<RootCertStore>)>> = Mutex::new(None);
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, roots)) = &*read
        && at.elapsed() < ROOTS_KEPT
    {
        return roots.clone();
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let roots = Arc::new(roots);
    *read = Some((Instant::now(), roots.clone()));
    roots
}

/// Whether a URL leads to this machine.
pub fn is_loopback(url: &Url) -> bool {
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

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Realm {
    Public,
    /// The operator's own networks.
    Private,
    Loopback,
    /// Nothing that a document could be at.
    Never,
}

impl Realm {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [127, ..] => Self::Loopback,
            // "This network"; link-local; multicast; reserved, and broadcast with it.
            [0, ..] | [169, 254, ..] | [224..=255, ..] => Self::Never,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            // RFC 6598 (carrier-grade NAT), RFC 6890 (protocol assignments), RFC 2544 (benchmarks).
            [100, 64..=127, ..] | [192, 0, 0, _] | [198, 18..=19, ..] => Self::Private,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let segments = address.segments();
        if let Some(inner) = embedded(address) {
            return Self::of_v4(inner);
        }
        match segments {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // RFC 4193; RFC 8215 (NAT64 of the operator's own).
            [0xfc00..=0xfdff, ..] | [0x64, 0xff9b, 1, ..] => Self::Private,
            // Teredo hides an IPv4 address; RFC 3849 and RFC 9637 are for documents.
            [0x2001, 0, ..] | [0x2001, 0xdb8, ..] | [0x3fff, ..] => Self::Never,
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Never,
        }
    }
}

/// The IPv4 address that packets to this one end up at: RFC 6052 (NAT64), RFC 3056 (6to4).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => (high, low),
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || embedded(address).is_some_and(|inner| inner.is_link_local())
        }
    }
}

/// The system's resolver without the answers that may not be dialled.
struct Guarded(Reach);

/// A name leads to forbidden addresses only.
#[derive(Debug, thiserror::Error)]
#[error("no address that may be asked")]
struct Forbidden;

impl Guarded {
    fn select(&self, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Forbidden> {
        let selected: Vec<_> = found.filter(|address| self.0.admits(address.ip())).collect();
        match selected.is_empty() {
            true => Err(Forbidden),
            false => Ok(selected),
        }
    }
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let guarded = Self(self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let selected = guarded.select(found)?;
            Ok(Box::new(selected.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGE: Reach = Reach::Found {
        private: false,
        loopback: false,
    };
    const NEIGHBOUR: Reach = Reach::Found {
        private: false,
        loopback: true,
    };
    const INSIDE: Reach = Reach::Found {
        private: true,
        loopback: false,
    };

    fn fetcher(reach: Reach) -> Fetcher {
        Fetcher::new(None, None, reach).unwrap()
    }

    #[test]
    fn r26_plain_http_only_between_loopback_and_link_local_never() {
        let roots = || Arc::new(RootCertStore::empty());
        let here = Fetcher::named(roots(), true).unwrap();
        let there = Fetcher::named(roots(), false).unwrap();
        let verdict = |url: &str| {
            let url = Url::parse(url).unwrap();
            (here.allowed(&url).is_ok(), there.allowed(&url).is_ok())
        };
        for good in ["https://login.example.com/jwks", "https://10.0.0.1/jwks"] {
            assert_eq!(verdict(good), (true, true), "{good}");
        }
        for loopback in [
            "http://127.0.0.1:8002/",
            "http://localhost:1/",
            "http://[::1]:2/",
            "http://127.9.9.9/",
        ] {
            assert_eq!(verdict(loopback), (true, false), "{loopback}");
        }
        for never in [
            "http://login.example.com/jwks",
            "http://localhost.example.com/",
            "http://10.0.0.1/",
            "https://169.254.169.254/latest",
            "http://169.254.169.254/latest",
            "https://[fe80::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://user:secret@login.example.com/",
            "file:///etc/passwd",
            "data:text/plain,x",
        ] {
            assert_eq!(verdict(never), (false, false), "{never}");
        }
    }

    #[test]
    fn what_documents_name_is_public() {
        // Address, and whether it is admitted from anywhere, from loopback, where private addresses are allowed.
        let table = [
            ("93.184.216.34", [true, true, true]),
            ("2606:4700::1111", [true, true, true]),
            ("::ffff:93.184.216.34", [true, true, true]),
            ("64:ff9b::5db8:d822", [true, true, true]),
            ("2002:5db8:d822::1", [true, true, true]),
            ("127.0.0.1", [false, true, true]),
            ("127.255.255.254", [false, true, true]),
            ("::1", [false, true, true]),
            ("::ffff:127.0.0.1", [false, true, true]),
            ("64:ff9b::7f00:1", [false, true, true]),
            ("10.0.0.1", [false, false, true]),
            ("172.16.0.1", [false, false, true]),
            ("172.31.255.255", [false, false, true]),
            ("192.168.1.1", [false, false, true]),
            ("100.64.0.1", [false, false, true]),
            ("100.127.255.255", [false, false, true]),
            ("192.0.0.192", [false, false, true]),
            ("198.18.0.1", [false, false, true]),
            ("fc00::1", [false, false, true]),
            ("fd00:ec2::254", [false, false, true]),
            ("::ffff:10.0.0.1", [false, false, true]),
            ("64:ff9b::a00:1", [false, false, true]),
            ("64:ff9b:1::1", [false, false, true]),
            ("2002:a00:1::", [false, false, true]),
            ("0.0.0.0", [false, false, false]),
            ("0.1.2.3", [false, false, false]),
            ("169.254.169.254", [false, false, false]),
            ("224.0.0.1", [false, false, false]),
            ("239.255.255.255", [false, false, false]),
            ("240.0.0.1", [false, false, false]),
            ("255.255.255.255", [false, false, false]),
            ("::", [false, false, false]),
            ("::7f00:1", [false, false, false]),
            ("fe80::1", [false, false, false]),
            ("fec0::1", [false, false, false]),
            ("ff02::1", [false, false, false]),
            ("::ffff:169.254.169.254", [false, false, false]),
            ("64:ff9b::a9fe:a9fe", [false, false, false]),
            ("2002:a9fe:a9fe::1", [false, false, false]),
            ("2001:0:5db8:d822::1", [false, false, false]),
            ("::ffff:0.0.0.0", [false, false, false]),
            ("100.63.255.255", [true, true, true]),
            ("172.32.0.1", [true, true, true]),
        ];
        for (text, expected) in table {
            let address: IpAddr = text.parse().unwrap();
            let admitted = [STRANGE, NEIGHBOUR, INSIDE].map(|reach| reach.admits(address));
            assert_eq!(admitted, expected, "{text}");
            // As a literal in a URL, and as what a name resolves to.
            let literal = match address {
                IpAddr::V4(_) => format!("https://{text}/"),
                IpAddr::V6(_) => format!("https://[{text}]/"),
            };
            let url = Url::parse(&literal).unwrap();
            for (reach, expected) in [STRANGE, NEIGHBOUR, INSIDE].into_iter().zip(expected) {
                assert_eq!(fetcher(reach).allowed(&url).is_ok(), expected, "{literal}");
                let found = [SocketAddr::new(address, 0)].into_iter();
                assert_eq!(Guarded(reach).select(found).is_ok(), expected, "{text}");
            }
        }
    }

    #[test]
    fn odd_spellings_of_addresses_are_those_addresses() {
        for literal in [
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://127.1/",
        ] {
            let url = Url::parse(literal).unwrap();
            assert_eq!(fetcher(STRANGE).allowed(&url), Err(PRIVATE), "{literal}");
        }
    }

    #[test]
    fn plain_http_is_for_neighbours() {
        let url = Url::parse("http://localhost:9/").unwrap();
        assert!(fetcher(STRANGE).allowed(&url).is_err());
        assert!(fetcher(NEIGHBOUR).allowed(&url).is_ok());
        assert!(fetcher(INSIDE).allowed(&url).is_ok());
        let inside = Url::parse("http://10.0.0.1/").unwrap();
        assert!(fetcher(INSIDE).allowed(&inside).is_err());
        let reach = |upstream: &str| Reach::found(&Url::parse(upstream).unwrap(), false);
        assert_eq!(reach("http://127.0.0.1:9/mcp"), NEIGHBOUR);
        assert_eq!(reach("https://localhost.example.com/mcp"), STRANGE);
    }

    #[test]
    fn of_several_addresses_the_public_ones_are_dialled() {
        let found = ["10.0.0.1:0", "93.184.216.34:0", "127.0.0.1:0"].map(|text| text.parse().unwrap());
        let selected = Guarded(STRANGE).select(found.into_iter()).unwrap();
        assert_eq!(selected, [found[1]]);
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused_when_it_is_dialled() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = Url::parse(&format!("https://localhost:{port}/")).unwrap();
        assert_eq!(fetcher(STRANGE).allowed(&url), Ok(()), "the name alone tells nothing");
        assert_eq!(fetcher(STRANGE).get(&url).await, Err(FetchError::Address(PRIVATE)));
        let form = Request::form(url, Zeroizing::new(b"secret".to_vec()));
        let refused = fetcher(STRANGE).ask(form).await.err();
        assert_eq!(refused, Some(FetchError::Address(PRIVATE)));
        let nobody = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await;
        assert!(nobody.is_err(), "nobody connected");
    }

    /// Answers with the SHA-256 of the certificate that it was shown.
    async fn asking_for_certificates(ca: &rcgen::CertifiedIssuer<'static, rcgen::KeyPair>) -> Url {
        use rustls::server::WebPkiClientVerifier;
        use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, ca).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let shown = digest(&stream.get_ref().1.peer_certificates().unwrap()[0]);
                // Nobody closes: whoever keeps connections could use this one again.
                while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", shown.len());
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&shown).await.unwrap();
                }
            }
        });
        Url::parse(&format!("https://localhost:{port}/token")).unwrap()
    }

    fn digest(bytes: &[u8]) -> Vec<u8> {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        digest.as_ref().to_vec()
    }

    #[tokio::test]
    async fn a_client_certificate_is_shown_as_its_files_are_now() {
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = rcgen::CertifiedIssuer::self_signed(ca, rcgen::KeyPair::generate().unwrap()).unwrap();
        let url = asking_for_certificates(&ca).await;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("ca.pem"), ca.pem()).unwrap();
        let issue = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["gate".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            for (name, text) in [("gate.pem", certificate.pem()), ("gate.key", key.serialize_pem())] {
                std::fs::write(path("new"), text).unwrap();
                std::fs::rename(path("new"), path(name)).unwrap();
            }
            digest(certificate.der())
        };
        let first = issue();
        let (bundle, certificate, key) = (path("ca.pem"), path("gate.pem"), path("gate.key"));
        let identity = Some((certificate.as_path(), key.as_path()));
        let fetcher = Fetcher::new(Some(&bundle), identity, Reach::Named).unwrap();
        let shown = async || {
            let form = Request::form(url.clone(), Zeroizing::default());
            fetcher.ask(form).await.map(|answered| answered.body.to_vec())
        };
        assert_eq!(shown().await.unwrap(), first);
        let second = issue();
        assert_eq!(shown().await.unwrap(), second);
        // Half a rotation is none.
        std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert_eq!(shown().await.unwrap(), second);
        assert!(Fetcher::new(Some(&bundle), identity, Reach::Named).is_err());
        // Without the bundle nobody is trusted; without a certificate nobody is served.
        let stranger = Fetcher::new(None, None, Reach::Named).unwrap();
        assert_eq!(stranger.get(&url).await, Err(FetchError::Unreachable));
        let bare = Fetcher::new(Some(&bundle), None, Reach::Named).unwrap();
        assert_eq!(bare.get(&url).await, Err(FetchError::Unreachable));
    }
}
