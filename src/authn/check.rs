//! Bearer to principal, as a step of the stack.
//!
//! A message to an HTTP+SSE stream needs its bearer like anything else; where the route says
//! `bearerless_messages: true`, one that comes without is its stream's principal's, until that one's token expires (r04).
//! Not where that principal rests on what its sender had to prove: a message has to prove that too.

use std::borrow::Cow;
use std::sync::Arc;

use http::Request;
use http::header::AUTHORIZATION;

use super::{Authenticator, AuthnError, Principal, Sender};
use crate::clock::Clock;
use crate::edge::{Check, Journey, Rejection};
use crate::route::{Door, Route, Routed};
use crate::secret::Secret;
use crate::session::{Purpose, Sealer, StreamHandle, StreamKey, Streams, person};

/// A request whose caller is known.
pub struct Known<B> {
    pub journey: Arc<Journey>,
    pub route: Arc<Route>,
    pub door: Door,
    pub principal: Arc<Principal>,
    /// The caller's token, for exchange only.
    pub token: Option<Secret>,
    /// The stream a message is for.
    pub stream: Option<StreamHandle>,
    pub request: Box<Request<B>>,
}

/// Authenticates requests.
pub struct AuthnCheck {
    pub authenticator: Arc<Authenticator>,
    pub sealer: Arc<Sealer>,
    pub streams: Arc<Streams>,
    pub clock: Clock,
}

impl<B: Send + 'static> Check<Routed<B>> for AuthnCheck {
    type Passed = Known<B>;

    async fn check(&self, routed: Routed<B>) -> Result<Known<B>, Rejection> {
        let Routed {
            journey,
            route,
            door,
            request,
        } = routed;
        let headers = request.headers();
        let bearerless =
            door == Door::Messages && route.config.bearerless_messages && !headers.contains_key(AUTHORIZATION);
        let owned = match bearerless {
            true => Some(self.stream(&request, &route).ok_or(Rejection::UnknownSession)?),
            false => None,
        };
        let owned = owned.filter(|stream| !stream.principal().claims.contains_key("cnf"));
        let (principal, token, stream) = if let Some(stream) = owned {
            let principal = stream.principal().clone();
            if principal.expires.is_some_and(|expires| expires <= self.clock.now()) {
                return Err(Rejection::Authn(AuthnError::expired(principal.expires)));
            }
            (principal, None, Some(stream))
        } else {
            let target = match door {
                Door::Mcp => Cow::Borrowed(&*route.resource),
                Door::Messages => Cow::Owned(route.messages_url()),
            };
            let sender = Sender {
                method: request.method(),
                target: &target,
                certificate: journey.connection.certificate.as_deref(),
                sealer: &self.sealer,
            };
            let authenticated = self.authenticator.authenticate(&route.auth, headers, &sender).await?;
            let _ = journey.principal.set(authenticated.principal.clone());
            let stream = match door {
                Door::Mcp => None,
                Door::Messages => {
                    let stream = self.stream(&request, &route).ok_or(Rejection::UnknownSession)?;
                    if person(stream.principal()) != person(&authenticated.principal) {
                        return Err(Rejection::ForeignSession);
                    }
                    Some(stream)
                }
            };
            (authenticated.principal, authenticated.token, stream)
        };
        let _ = journey.principal.set(principal.clone());
        Ok(Known {
            journey,
            route,
            door,
            principal,
            token,
            stream,
            request,
        })
    }
}

impl AuthnCheck {
    /// The stream whose sealed key the query carries.
    fn stream<B>(&self, request: &Request<B>, route: &Route) -> Option<StreamHandle> {
        let query = request.uri().query()?;
        let sealed = query.split('&').find_map(|pair| pair.strip_prefix("session_id="))?;
        let plain = self.sealer.open(Purpose::SseSession, sealed).ok()?;
        let key = StreamKey::try_from(plain.as_slice()).ok()?;
        self.streams.find(&key, route.name())
    }
}
