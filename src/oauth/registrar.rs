//! The client that a login is begun with, and the memory of those that issuers registered.
//!
//! 1. A configured client's secret isn't written down with a grant; it is the configuration's at the time.
//! 2. A registration is remembered for its issuer, upstream, redirect URI and way to authenticate; of two replicas that
//!    register at once one's is taken by both. An issuer that remembers a person's consent remembers it for the client: were
//!    it the same for two upstreams, one that lies about its issuer would get by without asking.
//! 3. One that its issuer doesn't know (`invalid_client`), or whose secret ends soon, is replaced at the next login. So is
//!    one that [`DOUBTS`] logins in a row were begun with and none was finished: an issuer that has forgotten a client tells
//!    the person, not the gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::{Position, Url};
use zeroize::Zeroizing;

use super::discovery::Provider;
use super::fetch::{Fetcher, Request};
use super::login::LoginError;
use super::pending::WrittenClient;
use super::registration::{self, RegistrationError};
use super::{AuthMethod, ClientRecord};
use crate::clock::{Clock, UnixSeconds};
use crate::config::{self, ClientProof, Registration};
use crate::store::{Key, Kind, Store, StoreError, When};

/// Logins begun and not finished, before a registration is doubted.
const DOUBTS: u32 = 3;

/// Seconds that a registration isn't doubted.
const TRUSTED: u64 = 60 * 60;

/// Seconds before its end that a client's secret isn't begun with any more: longer than a login takes.
const MARGIN: u64 = 60 * 60;

/// Knows the gateway's clients at the issuers of one route.
pub(super) struct Registrar {
    /// `None`: the gateway registers itself.
    configured: Option<config::Client>,
    registration: Registration,
    public_url: String,
    /// A digest of the upstream's URL.
    upstream: String,
    store: Store,
    clock: Clock,
    /// One registration at a time.
    registering: Mutex<()>,
    /// Logins begun since the last that was finished.
    unfinished: AtomicU32,
}

/// A registration as it is remembered.
#[derive(Serialize, Deserialize)]
struct Registered {
    client: WrittenClient,
    at: UnixSeconds,
}

impl Registered {
    fn read(row: &[u8]) -> Option<Self> {
        serde_json::from_slice(row).ok()
    }
}

impl Registrar {
    pub(super) fn new(
        config: &config::Connection,
        upstream: &config::Upstream,
        public_url: &str,
        store: Store,
        clock: Clock,
    ) -> Self {
        let url = upstream.urls.first().map_or("", |url| &url[..Position::AfterPath]);
        let digest = digest::digest(&digest::SHA256, url.as_bytes());
        Self {
            upstream: URL_SAFE_NO_PAD.encode(digest),
            configured: config.client.clone(),
            registration: config.registration,
            public_url: public_url.to_owned(),
            store,
            clock,
            registering: Mutex::new(()),
            unfinished: AtomicU32::new(0),
        }
    }

    /// The client to log in with; `fetcher` is who asks at an endpoint.
    pub(super) async fn client(
        &self,
        provider: &Provider,
        fetcher: impl Fn(&Url) -> Arc<Fetcher>,
    ) -> Result<ClientRecord, LoginError> {
        if let Some(client) = &self.configured {
            return Ok(configured(client));
        }
        let readable = registration::is_readable(&self.public_url, provider.is_local());
        let by_document = match self.registration {
            Registration::Dynamic => false,
            Registration::Auto => provider.reads_documents && readable,
            Registration::MetadataDocument if !provider.reads_documents => {
                return Err(RegistrationError::NoDocuments.into());
            }
            Registration::MetadataDocument if !readable => return Err(RegistrationError::Unreadable.into()),
            Registration::MetadataDocument => true,
        };
        if by_document {
            return Ok(ClientRecord {
                id: registration::client_id(&self.public_url),
                secret: None,
                secret_expires_at: None,
                auth: AuthMethod::None,
            });
        }
        match (&provider.registration_endpoint, self.registration) {
            (Some(endpoint), _) => self.registered(provider, endpoint, &fetcher(endpoint)).await,
            (None, Registration::Dynamic) => Err(RegistrationError::NoRegistration.into()),
            (None, _) => Err(RegistrationError::Impossible.into()),
        }
    }

    /// A login was finished: its client is good.
    pub(super) fn finished(&self) {
        self.unfinished.store(0, Ordering::Relaxed);
    }

    /// The client that the issuer registered: the remembered one, or a new one.
    async fn registered(
        &self,
        provider: &Provider,
        endpoint: &Url,
        fetcher: &Fetcher,
    ) -> Result<ClientRecord, LoginError> {
        let auth = provider.abilities.auth_method()?;
        let id = self.row_id(auth);
        let key = Key {
            kind: Kind::Client,
            scope: &provider.issuer,
            id: &id,
        };
        let _one = self.registering.lock().await;
        let doubtful = self.unfinished.fetch_add(1, Ordering::Relaxed) >= DOUBTS;
        let now = self.clock.now();
        let row = self.store.get(&key).await?;
        if let Some(known) = row.as_ref().and_then(|row| Registered::read(&row.value))
            && known
                .client
                .secret_expires_at
                .is_none_or(|at| at > now.saturating_add(MARGIN))
            && !(doubtful && known.at.saturating_add(TRUSTED) <= now)
        {
            return Ok(known.client.read());
        }
        let client = self.register(provider, auth, endpoint, fetcher).await?;
        let written = Registered {
            client: WrittenClient::of(&client),
            at: now,
        };
        let written = Zeroizing::new(serde_json::to_vec(&written).expect("texts and numbers can be written"));
        let when = row.map_or(When::Absent, |row| When::Version(row.version));
        let put = self
            .store
            .put(&key, &written, "registered", client.secret_expires_at, when);
        if put.await?.is_none() {
            let theirs = self.store.get(&key).await?;
            if let Some(theirs) = theirs.and_then(|row| Registered::read(&row.value)) {
                return Ok(theirs.client.read());
            }
        }
        self.finished();
        Ok(client)
    }

    async fn register(
        &self,
        provider: &Provider,
        auth: AuthMethod,
        endpoint: &Url,
        fetcher: &Fetcher,
    ) -> Result<ClientRecord, RegistrationError> {
        let json = HeaderValue::from_static("application/json");
        let request = Request {
            method: Method::POST,
            url: endpoint.clone(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, json.clone()), (ACCEPT, json)]),
            body: registration::request(&self.public_url, auth, &provider.abilities),
        };
        let answered = fetcher.ask(request).await?;
        match answered.status.as_u16() {
            200..300 => registration::registered(&answered.body, auth),
            408 | 429 | 500.. => Err(RegistrationError::Busy),
            _ => Err(registration::refused(&answered.body)),
        }
    }

    /// Forgets a registration that its issuer has forgotten.
    pub(super) async fn forget(&self, issuer: &str, client: &ClientRecord) {
        if self.configured.is_some() {
            return;
        }
        for auth in [
            AuthMethod::ClientSecretBasic,
            AuthMethod::ClientSecretPost,
            AuthMethod::None,
        ] {
            let id = self.row_id(auth);
            let key = Key {
                kind: Kind::Client,
                scope: issuer,
                id: &id,
            };
            if let Err(error) = self.forget_row(&key, client).await {
                tracing::warn!(%error, "a registration that its issuer doesn't know could not be removed");
            }
        }
    }

    async fn forget_row(&self, key: &Key<'_>, client: &ClientRecord) -> Result<(), StoreError> {
        let Some(row) = self.store.get(key).await? else {
            return Ok(());
        };
        if Registered::read(&row.value).is_some_and(|known| known.client.id == client.id) {
            self.store.remove(key, When::Version(row.version)).await?;
        }
        Ok(())
    }

    /// A registration holds for one upstream, one redirect URI and for the way to authenticate that was asked for.
    fn row_id(&self, auth: AuthMethod) -> String {
        let auth = match auth {
            AuthMethod::ClientSecretBasic => "client_secret_basic",
            AuthMethod::ClientSecretPost => "client_secret_post",
            _ => "none",
        };
        let redirect_uri = registration::redirect_uri(&self.public_url);
        format!("{redirect_uri} {auth} {}", self.upstream)
    }
}

fn configured(client: &config::Client) -> ClientRecord {
    ClientRecord {
        id: client.id.clone(),
        secret: None,
        secret_expires_at: None,
        auth: match &client.proof {
            ClientProof::None => AuthMethod::None,
            ClientProof::Basic(_) => AuthMethod::ClientSecretBasic,
            ClientProof::Post(_) => AuthMethod::ClientSecretPost,
            ClientProof::PrivateKeyJwt(_) => AuthMethod::PrivateKeyJwt,
            ClientProof::Tls { .. } => AuthMethod::TlsClientAuth,
        },
    }
}
