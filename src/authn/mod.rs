//! Bearer tokens and client certificates become principals, or a 401 with a challenge.
//!
//! 1. Two ways in: the `Authorization` header ([`bearer`]), and without one the certificate of the TLS handshake, where
//!    one of the route's identities takes those. A header that is no good is refused, whatever certificate there is.
//!    With neither, a route that says `anonymous` lets nobody in by that name.
//! 2. `iss`, unverified, picks among the route's identities; the identity's keys, by `kid`, then say whether it is true.
//!    No token is believed because of what it says about its own verification.
//! 3. A signature is checked once a token, audience, times, identity and key set on every request.
//! 4. The token is at fault (401), or the issuer is (503): an unreachable key set never looks like a bad token (r43).
//! 5. A token that is an API key of anybody here, or looks like one, is nothing else ([`api_key`]). A JWT is its
//!    issuer's: the identity with that issuer's keys checks it, or, where the route has none, the one that asks that
//!    issuer. What is no JWT is asked about, where the route has an identity that asks. So no token is shown to an
//!    issuer that it names as somebody else's, and no API key to any.
//!
//! Keys are fetched in the background ([`Authenticator::spawn_refresh`]); a request that comes before them waits a little.

pub mod api_key;
pub mod bearer;
mod cache;
mod certificates;
pub mod challenge;
mod check;
mod claims;
pub mod dpop;
mod error;
pub(crate) mod fetch;
mod id_token;
pub mod inspect;
mod introspection;
mod introspector;
mod jwks;
mod key_file;
mod keys;
mod principal;
pub(crate) mod strict_json;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use tokio::task::JoinSet;

pub use challenge::Challenge;
pub use check::{AuthnCheck, Known};
pub use dpop::{ProofFault, Sender};
pub use error::{AuthnError, CertificateFault, SetupError, TokenFault};
pub use id_token::SignedIn;
pub use principal::Principal;

use crate::clock::Clock;
use crate::config::{Dpop, Identity, KeySource};
use crate::listener::ClientCertificate;
use crate::policy::Roles;
use crate::secret::Secret;
use bearer::Scheme;
use cache::{TokenCache, TokenHash};
use certificates::Certificates;
use introspector::Introspector;
use key_file::KeyFile;
use keys::KeyRing;
use verify::{Shape, Token, Verified};

/// What a route demands of its callers' tokens.
#[derive(Clone, Debug)]
pub struct RouteAuth {
    /// The route's name, for metrics.
    pub route: Arc<str>,
    /// Names of the identities who may vouch here.
    pub identities: Vec<Arc<str>>,
    /// Requests without a token are let in as nobody; a bad token is still refused.
    pub anonymous: bool,
    /// `public_url` + path: the audience tokens must be for (RFC 8707).
    pub resource: String,
}

/// A caller whose token was checked.
pub struct Authenticated {
    pub principal: Arc<Principal>,
    /// The token itself, for exchange only; `None` for nobody, for a certificate, and for an API key, which no issuer must
    /// see.
    pub token: Option<Secret>,
}

/// What happened, for metrics. The labels are bounded: routes, identities and reasons are fixed sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthEvent<'a> {
    /// A request was let in (`reason` is `ok` or `anonymous`) or not; `identity` is empty when none could vouch.
    Validated {
        route: &'a str,
        identity: &'a str,
        ok: bool,
        reason: &'static str,
    },
    /// An issuer's keys were fetched, or not.
    JwksRefresh { identity: &'a str, ok: bool },
    /// A key was withdrawn: who was let in by it may have to go.
    RightsShaken,
    /// A verdict was looked for in a cache: `verified` (JWTs) or `introspection`.
    Cache { cache: &'static str, hit: bool },
}

/// Where [`AuthEvent`]s go.
pub type AuthEvents = Arc<dyn Fn(AuthEvent<'_>) + Send + Sync>;

/// An identity's keys, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    pub identity: Arc<str>,
    /// Usable ones.
    pub keys: usize,
    /// Seconds since the issuer last confirmed them; `None` when it never did.
    pub age: Option<u64>,
    pub last_error: Option<String>,
}

/// Checks the bearer tokens of every route.
pub struct Authenticator {
    vouchers: Vec<Voucher>,
    roles: Arc<Roles>,
    clock: Clock,
    events: AuthEvents,
    cache: TokenCache,
    replays: ArcSwap<dpop::Replays>,
    nobody: Arc<Principal>,
}

/// One identity and how it vouches.
struct Voucher {
    identity: Arc<Identity>,
    means: Means,
    /// For the ID tokens of users who log in, where `means` has no keys for them.
    login: Option<Arc<KeyRing>>,
}

enum Means {
    /// Signatures.
    Keys(Arc<KeyRing>),
    /// The issuer is asked.
    Introspection(Arc<Introspector>),
    ApiKeys(Arc<KeyFile>),
    /// What the TLS handshake proved.
    Certificates(Box<Certificates>),
}

/// A refusal, and whom it is counted under.
struct Refusal {
    identity: Option<Arc<str>>,
    error: AuthnError,
}

impl Refusal {
    fn nobodys(error: impl Into<AuthnError>) -> Self {
        Self {
            identity: None,
            error: error.into(),
        }
    }
}

impl Authenticator {
    /// Builds one TLS client an identity and reads key and CA files; no request is made yet.
    ///
    /// # Errors
    /// When a file can't be read or used, or an issuer's address is one that is never asked.
    pub fn new(
        identities: &[Arc<Identity>],
        roles: Arc<Roles>,
        clock: Clock,
        events: AuthEvents,
    ) -> Result<Arc<Self>, SetupError> {
        let vouchers = identities
            .iter()
            .map(|identity| {
                let means = match &identity.keys {
                    KeySource::Introspection(config) => Means::Introspection(Introspector::new(
                        identity,
                        config,
                        roles.clone(),
                        clock.clone(),
                        events.clone(),
                    )?),
                    KeySource::ApiKeys(keys) => Means::ApiKeys(KeyFile::new(
                        &identity.name,
                        keys,
                        roles.clone(),
                        clock.clone(),
                        events.clone(),
                    )),
                    KeySource::ClientCertificates(config) => Means::Certificates(Box::new(Certificates::new(
                        &identity.name,
                        config,
                        roles.clone(),
                        clock.clone(),
                    )?)),
                    _ => Means::Keys(KeyRing::new(identity, clock.clone(), events.clone())?),
                };
                let login = match (&means, &identity.login) {
                    (Means::Introspection(_), Some(_)) => Some(KeyRing::new(identity, clock.clone(), events.clone())?),
                    _ => None,
                };
                Ok(Voucher {
                    identity: identity.clone(),
                    means,
                    login,
                })
            })
            .collect::<Result<_, SetupError>>()?;
        Ok(Arc::new(Self {
            vouchers,
            roles,
            clock,
            events,
            cache: TokenCache::new(),
            replays: ArcSwap::default(),
            nobody: Arc::new(Principal::anonymous()),
        }))
    }

    /// Keeps every identity's keys fresh until the set is dropped. An issuer that is down is asked again, ever later.
    pub fn spawn_refresh(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for voucher in &self.vouchers {
            match &voucher.means {
                Means::Keys(keys) => drop(tasks.spawn(keys.clone().keep_fresh())),
                Means::Introspection(introspector) => drop(tasks.spawn(introspector.clone().prepare())),
                Means::ApiKeys(file) => drop(tasks.spawn(file.clone().keep_fresh())),
                // Its bundle is read again with the configuration.
                Means::Certificates(_) => {}
            }
            if let Some(keys) = &voucher.login {
                tasks.spawn(keys.clone().keep_fresh());
            }
        }
        tasks
    }

    /// Takes over the keys that an older configuration has fetched, where the same issuer is asked for them in the same
    /// way: a reload while the issuer is down must not lock everybody out.
    pub fn inherit(&self, older: &Self) {
        // A reload must not let a proof pass again.
        self.replays.store(older.replays.load_full());
        for voucher in &self.vouchers {
            let before = older.vouchers.iter().find(|before| {
                let alike = match (&before.identity.keys, &voucher.identity.keys) {
                    (KeySource::Discovery, KeySource::Discovery) => true,
                    (KeySource::JwksUri(before), KeySource::JwksUri(now)) => before == now,
                    _ => false,
                };
                alike && before.identity.issuer == voucher.identity.issuer
            });
            if let (Means::Keys(keys), Some(Means::Keys(before))) = (&voucher.means, before.map(|before| &before.means))
            {
                keys.inherit(before);
            }
        }
    }

    /// Whether a caller who was let in on this route earlier would be let in today, and as whom.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    pub async fn reconsider(
        &self,
        route: &RouteAuth,
        token: Option<&Secret>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Arc<Principal>, AuthnError> {
        let Some(token) = token else {
            let caller = self.without_token(route, certificate);
            return caller.map_err(|refusal| refusal.error);
        };
        let caller = self.vouch(route, token.expose()).await;
        caller
            .map(|(caller, _)| caller.principal)
            .map_err(|refusal| refusal.error)
    }

    /// Who is calling.
    ///
    /// # Errors
    /// Neither token nor certificate, a bad one, a token that is bound to what the sender doesn't show, or keys that can't
    /// be had within 5 s.
    pub async fn authenticate(
        &self,
        route: &RouteAuth,
        headers: &HeaderMap,
        sender: &Sender<'_>,
    ) -> Result<Authenticated, AuthnError> {
        let result = self.decide(route, headers, sender).await;
        let (identity, ok, reason) = match &result {
            Ok(caller) => match &caller.principal.identity {
                Some(identity) => (&**identity, true, "ok"),
                None => ("", true, "anonymous"),
            },
            Err(refusal) => (
                refusal.identity.as_deref().unwrap_or_default(),
                false,
                refusal.error.reason(),
            ),
        };
        (self.events)(AuthEvent::Validated {
            route: &route.route,
            identity,
            ok,
            reason,
        });
        result.map_err(|refusal| refusal.error)
    }

    /// Whether what a principal rests on still holds: the key set that verified the token, the API key as it was. An
    /// introspected token is the issuer's to revoke, who tells when asked about it again, and a certificate stands as long
    /// as the configuration. End it at `expires` all the same.
    pub fn stands(&self, principal: &Principal) -> bool {
        let Some(identity) = &principal.identity else {
            return true;
        };
        self.voucher(identity).is_some_and(|(_, voucher)| match &voucher.means {
            Means::Keys(keys) => keys.confirms(principal.generation),
            Means::Introspection(_) | Means::Certificates(_) => true,
            Means::ApiKeys(file) => file.stands(principal),
        })
    }

    /// Whether tokens of this identity can be checked now.
    pub fn keys_usable(&self, identity: &str) -> bool {
        self.voucher(identity).is_some_and(|(_, voucher)| match &voucher.means {
            Means::Keys(keys) => keys.usable().is_some_and(|fetched| fetched.keys.len() > 0),
            Means::Introspection(introspector) => introspector.is_ready(),
            Means::ApiKeys(file) => file.state().0 > 0,
            Means::Certificates(_) => true,
        })
    }

    /// Every identity's keys, in the order of the configuration.
    pub fn state(&self) -> Vec<KeyState> {
        self.vouchers
            .iter()
            .map(|voucher| {
                let (keys, age, last_error) = match &voucher.means {
                    Means::Keys(keys) => keys.state(),
                    Means::Introspection(introspector) => (0, None, introspector.last_failure()),
                    Means::ApiKeys(file) => file.state(),
                    Means::Certificates(certificates) => (certificates.authorities(), None, None),
                };
                KeyState {
                    identity: voucher.identity.name.clone(),
                    keys,
                    age,
                    last_error,
                }
            })
            .collect()
    }

    fn voucher(&self, identity: &str) -> Option<(usize, &Voucher)> {
        self.vouchers
            .iter()
            .enumerate()
            .find(|(_, voucher)| *voucher.identity.name == *identity)
    }

    async fn decide(
        &self,
        route: &RouteAuth,
        headers: &HeaderMap,
        sender: &Sender<'_>,
    ) -> Result<Authenticated, Refusal> {
        let token = bearer::credentials(headers)
            .map_err(|bearer::Malformed| Refusal::nobodys(AuthnError::MissingToken { malformed: true }))?;
        let Some((scheme, token)) = token else {
            let principal = self.without_token(route, sender.certificate)?;
            return Ok(Authenticated { principal, token: None });
        };
        let (caller, verified) = self.vouch(route, token).await?;
        self.bound(scheme, token, headers, sender, &caller, verified.as_deref())
            .map_err(|error| Refusal {
                identity: caller.principal.identity.clone(),
                error,
            })?;
        Ok(caller)
    }

    /// Who is calling without a token: whom the connection's certificate names, or nobody where that is enough.
    fn without_token(
        &self,
        route: &RouteAuth,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Arc<Principal>, Refusal> {
        let mut refusal = None;
        let mut takes_tokens = false;
        for name in &route.identities {
            let Some((_, voucher)) = self.voucher(name) else {
                continue;
            };
            let Means::Certificates(certificates) = &voucher.means else {
                takes_tokens = true;
                continue;
            };
            let Some(certificate) = certificate else { continue };
            match certificates.owner(certificate) {
                Ok(owner) => return Ok(owner),
                Err(fault) => {
                    refusal.get_or_insert(Refusal {
                        identity: Some(name.clone()),
                        error: fault.into(),
                    });
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if route.anonymous => Ok(self.nobody.clone()),
            None if takes_tokens => Err(Refusal::nobodys(AuthnError::MissingToken { malformed: false })),
            None => Err(Refusal::nobodys(AuthnError::NoCertificate)),
        }
    }

    /// Whether the sender shows what the token is bound to.
    fn bound(
        &self,
        scheme: Scheme,
        token: &str,
        headers: &HeaderMap,
        sender: &Sender<'_>,
        caller: &Authenticated,
        verified: Option<&Verified>,
    ) -> Result<(), AuthnError> {
        let binding = verified.map(|verified| &verified.binding);
        let shown = sender.certificate.map(ClientCertificate::thumbprint);
        let certificate = binding.and_then(|binding| binding.certificate.as_ref());
        if certificate.is_some() && certificate != shown {
            return Err(TokenFault::Bound.into());
        }
        let identity = caller.principal.identity.as_deref().and_then(|name| self.voucher(name));
        let demand = identity.and_then(|(_, voucher)| voucher.identity.dpop);
        let Some(thumbprint) = binding.and_then(|binding| binding.key.as_deref()) else {
            let demanded = matches!(demand, Some(Dpop::Required | Dpop::Nonce));
            return if demanded || scheme == Scheme::Dpop {
                Err(TokenFault::Unbound.into())
            } else {
                Ok(())
            };
        };
        if scheme == Scheme::Bearer {
            return Err(TokenFault::Bound.into());
        }
        let expected = dpop::Expected {
            sender,
            token: &TokenCache::hash(token),
            thumbprint,
            nonce: demand == Some(Dpop::Nonce),
            now: self.clock.now(),
        };
        dpop::check(headers, &expected, &self.replays.load())
    }

    /// Who the token is about, and, unless it is an API key, what else has to be seen.
    async fn vouch(&self, route: &RouteAuth, token: &str) -> Result<(Authenticated, Option<Arc<Verified>>), Refusal> {
        let hash = TokenCache::hash(token);
        if let Some(owner) = self.by_api_key(route, token, &hash)? {
            let caller = Authenticated {
                principal: owner,
                token: None,
            };
            return Ok((caller, None));
        }
        // What was verified before is found before anything is taken apart: most requests end here. The other ways are
        // boxed, so that those don't carry around the room that asking an issuer takes.
        let (index, verified) = if let Some(found) = self.remembered(route, &hash) {
            found
        } else if let Some((index, introspector)) = self.introspector(route, token) {
            (index, Box::pin(self.introspected(introspector, token, hash)).await?)
        } else {
            Box::pin(self.verified(route, token, hash)).await?
        };
        let identity = &self.vouchers[index].identity;
        verified
            .check(identity, route, self.clock.now())
            .map_err(|fault| Refusal {
                identity: Some(identity.name.clone()),
                error: fault.into(),
            })?;
        let caller = Authenticated {
            principal: verified.principal.clone(),
            token: Some(Secret::new(token)),
        };
        Ok((caller, Some(verified)))
    }

    /// Whose API key this is; `None` if it is none. A key of an identity that the route doesn't name is refused here, so
    /// that nobody below is asked about it.
    fn by_api_key(&self, route: &RouteAuth, token: &str, hash: &TokenHash) -> Result<Option<Arc<Principal>>, Refusal> {
        let mut known = api_key::is_minted(token);
        if known && !api_key::is_whole(token) {
            return Err(Refusal::nobodys(TokenFault::Malformed));
        }
        for voucher in &self.vouchers {
            let Means::ApiKeys(file) = &voucher.means else { continue };
            let Some(owner) = file.owner(hash) else { continue };
            known = true;
            let name = &voucher.identity.name;
            if !route.identities.contains(name) {
                continue;
            }
            // Both times are the gate's own, so that there is no leeway to give.
            return match owner.expires {
                Some(expires) if self.clock.now() >= expires => Err(Refusal {
                    identity: Some(name.clone()),
                    error: AuthnError::expired(Some(expires)),
                }),
                _ => Ok(Some(owner)),
            };
        }
        if known {
            return Err(Refusal::nobodys(TokenFault::UnknownApiKey));
        }
        Ok(None)
    }

    /// Who is to be asked about a token, where nobody's keys could tell.
    fn introspector(&self, route: &RouteAuth, token: &str) -> Option<(usize, &Arc<Introspector>)> {
        let named = || route.identities.iter().filter_map(|name| self.voucher(name));
        // The configuration allows one a route: of two, one would be shown the other's tokens.
        let (index, identity, introspector) = named().find_map(|(index, voucher)| match &voucher.means {
            Means::Introspection(introspector) => Some((index, &voucher.identity, introspector)),
            _ => None,
        })?;
        let has_keys_of = |issuer: &str| {
            named().any(|(_, voucher)| matches!(voucher.means, Means::Keys(_)) && voucher.identity.issuer == issuer)
        };
        let shown = match verify::shape(token) {
            Shape::Opaque => true,
            Shape::Unclear => false,
            Shape::Jwt(issuer) => identity.issuer == issuer && !has_keys_of(&issuer),
        };
        shown.then_some((index, introspector))
    }

    async fn introspected(
        &self,
        introspector: &Introspector,
        token: &str,
        hash: TokenHash,
    ) -> Result<Arc<Verified>, Refusal> {
        introspector.verify(token, hash).await.map_err(|error| Refusal {
            identity: Some(introspector.identity().clone()),
            error,
        })
    }

    /// A token that one of the route's identities has vouched for before, with keys that still stand.
    fn remembered(&self, route: &RouteAuth, hash: &TokenHash) -> Option<(usize, Arc<Verified>)> {
        let entry = self.cache.get(hash, self.clock.now())?;
        let voucher = &self.vouchers[entry.identity];
        let generation = entry.verified.principal.generation;
        let stands = route.identities.contains(&voucher.identity.name)
            && matches!(&voucher.means, Means::Keys(keys) if keys.confirms(generation));
        if !stands {
            return None;
        }
        (self.events)(AuthEvent::Cache {
            cache: "verified",
            hit: true,
        });
        Some((entry.identity, entry.verified))
    }

    /// The token with an identity of this route whose keys vouch for it.
    async fn verified(
        &self,
        route: &RouteAuth,
        token: &str,
        hash: TokenHash,
    ) -> Result<(usize, Arc<Verified>), Refusal> {
        (self.events)(AuthEvent::Cache {
            cache: "verified",
            hit: false,
        });
        let (index, verified) = self.verify(route, token).await?;
        let verified = Arc::new(verified);
        if self.clock.now() < verified.expires {
            self.cache.put(hash, index, verified.clone(), token.len());
        }
        Ok((index, verified))
    }

    /// Asks the route's identities by that issuer, in the route's order.
    async fn verify(&self, route: &RouteAuth, text: &str) -> Result<(usize, Verified), Refusal> {
        let token = Token::parse(text).map_err(Refusal::nobodys)?;
        let issuer = token.issuer().ok_or_else(|| Refusal::nobodys(TokenFault::Issuer))?;
        let mut refusal = Refusal::nobodys(TokenFault::Issuer);
        let mut vouching = None;
        for name in &route.identities {
            let Some((index, voucher)) = self.voucher(name) else {
                continue;
            };
            let Means::Keys(keys) = &voucher.means else { continue };
            if voucher.identity.issuer != issuer {
                continue;
            }
            match vouches(&voucher.identity, keys, &token).await {
                Ok(generation) => {
                    vouching = Some((index, generation));
                    break;
                }
                // As long as one who could vouch can't be asked, the token isn't to blame.
                Err(_) if matches!(refusal.error, AuthnError::KeysUnavailable { .. }) => {}
                Err(error) => {
                    refusal = Refusal {
                        identity: Some(voucher.identity.name.clone()),
                        error,
                    };
                }
            }
        }
        let Some((index, generation)) = vouching else {
            return Err(refusal);
        };
        let identity = &self.vouchers[index].identity;
        let mut verified = token
            .into_verified(identity, generation, self.clock.now())
            .map_err(|fault| Refusal {
                identity: Some(identity.name.clone()),
                error: fault.into(),
            })?;
        let principal = Arc::get_mut(&mut verified.principal).expect("a new principal has one owner");
        principal.granted = self.roles.of(principal);
        Ok((index, verified))
    }
}

/// Whether one of the identity's keys signed the token; the generation of the key set that says so.
async fn vouches(identity: &Identity, keys: &Arc<KeyRing>, token: &Token<'_>) -> Result<u64, AuthnError> {
    if !verify::allows(identity, token.algorithm) {
        return Err(TokenFault::Algorithm.into());
    }
    signed(identity, keys, token).await
}

/// The same, whatever the identity makes of the algorithm; a key is still only good for its own.
async fn signed(identity: &Identity, keys: &Arc<KeyRing>, token: &Token<'_>) -> Result<u64, AuthnError> {
    let unavailable = || AuthnError::KeysUnavailable {
        identity: identity.name.clone(),
    };
    let kid = token.kid.as_deref();
    let first = keys.wait_usable().await.ok_or_else(unavailable)?;
    if !first.keys.knows(kid) || first.keys.len() == 0 {
        keys.wait_newer().await;
    }
    let generation = keys.generation();
    let fetched = keys.usable().ok_or_else(unavailable)?;
    let keys = &fetched.keys;
    if keys.len() == 0 {
        return Err(TokenFault::EmptyKeySet.into());
    }
    if !keys.knows(kid) {
        return Err(TokenFault::UnknownKey.into());
    }
    let mut candidates = keys.candidates(kid, token.algorithm).peekable();
    if candidates.peek().is_none() {
        return Err(TokenFault::Algorithm.into());
    }
    if candidates.any(|key| token.is_signed_by(key)) {
        Ok(generation)
    } else {
        Err(TokenFault::Signature.into())
    }
}
