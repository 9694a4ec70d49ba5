//! How a call is sent, and sent again for its next page.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::forward::{is_encoded, is_event_stream};
use super::headers;
use crate::bridge::peer::Funds;
use crate::call::{Call, Form};
use crate::config::Balance;
use crate::credential::OutboundCredential;
use crate::edge::Rejection;
use crate::mcp::{Era, Message, Payload};
use crate::policy::Permitted;
use crate::route::Route;
use crate::session::{SESSION_HEADER, person};
use crate::upstream::{EndpointId, Outbound, Sent};

/// A permitted call with everything that is sent besides its body.
pub struct Sending {
    pub permitted: Permitted,
    credential: OutboundCredential,
    era: Option<Era>,
    session: Option<HeaderValue>,
    method: Method,
    target: Option<PathAndQuery>,
    endpoint: Option<EndpointId>,
}

impl Sending {
    /// Readies a call.
    ///
    /// # Errors
    /// When the session's id can't stand in a header.
    pub fn new(permitted: Permitted, credential: OutboundCredential) -> Result<Self, Rejection> {
        let call = &permitted.call;
        let era = match &call.form {
            Form::Post { era, .. } => Some(*era),
            Form::Message { .. } => Some(Era::Sse),
            Form::Get | Form::Delete => None,
        };
        let session = call
            .session
            .as_ref()
            .map(|session| HeaderValue::try_from(&*session.upstream));
        let session = session.transpose().map_err(|_| Rejection::UnknownSession)?;
        let (method, target, endpoint) = match &call.form {
            Form::Post { .. } => (Method::POST, None, None),
            Form::Message { stream, .. } => match stream.target() {
                Some((endpoint, target)) => (Method::POST, Some(target.clone()), Some(endpoint.clone())),
                None => (Method::POST, None, None),
            },
            Form::Get => (Method::GET, None, None),
            Form::Delete => (Method::DELETE, None, None),
        };
        let endpoint = endpoint.or_else(|| call.session.as_ref().map(|session| session.endpoint.clone()));
        Ok(Self {
            permitted,
            credential,
            era,
            session,
            method,
            target,
            endpoint,
        })
    }

    /// What is sent.
    pub fn call(&self) -> &Call {
        &self.permitted.call
    }

    /// The messages that it carries; none of a GET or DELETE.
    pub fn payload(&self) -> Option<&Payload> {
        match &self.call().form {
            Form::Post { payload, .. } | Form::Message { payload, .. } => Some(payload),
            Form::Get | Form::Delete => None,
        }
    }

    /// The same, in order.
    pub fn messages(&self) -> &[Message] {
        self.payload().map_or(&[], Payload::messages)
    }

    /// The route it goes over.
    pub fn route(&self) -> &Arc<Route> {
        &self.call().route
    }

    /// The kind of credential that leaves, for the audit.
    pub fn kind(&self) -> &'static str {
        self.credential.kind
    }

    /// The request's era.
    pub fn era(&self) -> Era {
        self.call().journey.call.get().map_or(Era::Legacy, |notes| notes.era)
    }

    fn headers(&self) -> HeaderMap {
        let call = self.call();
        let mut headers = headers::outbound(&call.headers, self.era, &call.route.config.upstream.forward_headers);
        if let Some(session) = &self.session {
            headers.insert(SESSION_HEADER, session.clone());
        }
        headers
    }

    /// What `balance: sticky` goes by: hashed only where it is asked for.
    fn sticky(&self) -> Option<u64> {
        (self.route().config.upstream.balance == Balance::Sticky).then(|| {
            let person = person(&self.call().principal);
            u64::from_be_bytes(person[..8].try_into().expect("eight of 32 bytes"))
        })
    }

    /// What a message of the gateway's own is sent with on this call's behalf.
    pub fn funds(&self) -> Funds {
        let call = self.call();
        Funds {
            permit: self.permitted.permit.clone(),
            credential: self.credential.clone(),
            forwarded: headers::carried(&call.headers, &call.route.config.upstream.forward_headers),
        }
    }

    /// Sends for the first time, and counts the time that was the gate's own.
    pub async fn first(&self, body: Bytes) -> Result<Sent, Rejection> {
        let own = self.call().journey.started.elapsed();
        let sent = self.again(body, self.endpoint.clone()).await;
        self.route().metrics.gateway_overhead(own);
        sent
    }

    /// Sends a body, to that endpoint if one is named.
    pub async fn again(&self, body: Bytes, endpoint: Option<EndpointId>) -> Result<Sent, Rejection> {
        let sent = self
            .route()
            .upstream
            .send(
                &self.permitted.permit,
                &self.credential,
                Outbound {
                    method: &self.method,
                    target: self.target.as_ref(),
                    headers: &|| self.headers(),
                    body,
                    endpoint,
                    sticky: self.sticky(),
                },
            )
            .await?;
        match sent.response.status() {
            StatusCode::UNAUTHORIZED => Err(Rejection::CredentialRefused),
            status if status.is_informational() || status.is_redirection() => {
                Err(Rejection::UpstreamNonsense("its status is none that MCP knows"))
            }
            _ if self.must_be_read() && is_encoded(sent.response.headers()) => Err(Rejection::UpstreamNonsense(
                "its reply is compressed, and can't be filtered",
            )),
            // A comment between two events can't be put between two bytes of a compressed stream.
            _ if is_event_stream(sent.response.headers()) && is_encoded(sent.response.headers()) => {
                Err(Rejection::UpstreamNonsense("its event stream is compressed"))
            }
            _ => Ok(sent),
        }
    }

    /// Whether replies are looked into: where there are rules or a budget, and for batches.
    fn must_be_read(&self) -> bool {
        let policy = &self.route().config.policy;
        let batch = self
            .call()
            .journey
            .call
            .get()
            .is_some_and(|notes| notes.payload.is_batch());
        policy.has_rules() || policy.budget().is_some() || batch
    }
}
