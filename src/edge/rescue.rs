//! Rejections become responses: the only place that picks a status.
//!
//! 1. Every refusal on an MCP endpoint has a JSON-RPC error as its body, with the request's id where one was read.
//! 2. Clients of older revisions die of some statuses (they tear the session down, or wait for ever on their stream), so
//!    with `denials: auto` they get policy and upstream refusals as a JSON-RPC error under 200, or as an event on their
//!    HTTP+SSE stream under 202. `status` and `in_band` force one form.
//! 3. A user who has to do something first is asked to, where the client can ask ([`consent`]).
//! 4. Nothing below is shown: an upstream's challenge, an issuer's words and a panic's message stay in the log.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use tower::Layer;

use super::body::{self, Body, empty};
use super::check::{Arrival, Stage};
use super::consent;
use super::guard::expose;
use super::journey::{CallNotes, Journey};
use super::rejection::{Refused, Rejection};
use crate::authn::{AuthnError, Challenge, Principal, dpop};
use crate::bridge::map::MapError;
use crate::bridge::opening;
use crate::config::Denials;
use crate::connect::refusal::What;
use crate::credential::CredentialError;
use crate::mcp::{self, AgreementError, Era, Id, Kind, codes};
use crate::metadata::MirrorError;
use crate::policy::Decision;
use crate::reply;
use crate::route::Route;
use crate::telemetry::{Audit, AuditDecision, Outcome};
use crate::upstream::UpstreamError;
use crate::upstream::stdio::StdioError;

/// Turns errors into responses.
#[derive(Clone)]
pub struct RescueLayer {
    audit: Audit,
}

impl RescueLayer {
    /// Audits refusals there.
    pub fn new(audit: Audit) -> Self {
        Self { audit }
    }
}

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue {
            audit: self.audit.clone(),
            inner,
        }
    }
}

/// The stage of [`RescueLayer`].
pub struct Rescue<S> {
    audit: Audit,
    inner: S,
}

impl<S, B> Stage<Arrival<B>> for Rescue<S>
where
    S: Stage<Arrival<B>, Error = Rejection>,
    B: Send + 'static,
{
    type Error = Infallible;

    async fn serve(&self, arrival: Arrival<B>) -> Result<Response<Body>, Infallible> {
        let journey = arrival.journey.clone();
        // A panic in one request is that request's failure, not the connection's.
        let call = AssertUnwindSafe(self.inner.serve(arrival)).catch_unwind();
        let mut response = match call.await {
            Ok(Ok(response)) => response,
            Ok(Err(rejection)) => {
                Box::pin(record(&self.audit, &journey, &rejection)).await;
                answer(&rejection, &journey)
            }
            Err(_) => answer(&Rejection::Panic, &journey),
        };
        if let Some(origin) = journey.origin.get() {
            expose(response.headers_mut(), origin.clone());
        }
        Ok(response)
    }
}

/// Counts and audits a refusal that no [`reply::Ending`] speaks for.
async fn record(audit: &Audit, journey: &Journey, rejection: &Rejection) {
    let reason = match rejection {
        Rejection::Forbidden(refused) => {
            for (member, (_, decision)) in refused.members.iter().enumerate() {
                let elapsed = journey.started.elapsed();
                reply::count(journey, Some(member), Outcome::Denied, elapsed);
                if let Ok(slot) = audit.reserve().await {
                    let mut line = reply::line(journey, Some(member), Some(decision));
                    line.outcome = Outcome::Denied.as_str();
                    line.duration = elapsed;
                    slot.write(&line);
                }
            }
            return;
        }
        Rejection::Authn(error) => error.reason(),
        Rejection::UnknownSession => "unknown_session",
        Rejection::ForeignSession => "foreign_session",
        Rejection::Envelope(_) => "envelope",
        Rejection::Agreement(AgreementError::Removed) => "method",
        Rejection::Agreement(_) => "header_mismatch",
        Rejection::BodyTooLarge { .. } => "body_too_large",
        Rejection::BodyTimeout | Rejection::BodyBroken => "body",
        Rejection::UnsupportedMediaType => "media_type",
        Rejection::MethodNotAllowed { .. } => "method",
        Rejection::Limited(limited) => limited.limit.label(),
        Rejection::Connect { error, .. } => {
            let request_id = journey.request_id.as_str();
            let at = error.at.as_deref().unwrap_or_default();
            match error.what.is_visitors() {
                true => tracing::info!(request_id, at, %error, "a page was refused"),
                // Nobody but the operator can help.
                false => tracing::warn!(request_id, at, %error, "a page can't be had"),
            }
            error.what.reason()
        }
        // Counted; a line each would be the next load.
        Rejection::Overloaded => return,
        // The call's own ending has spoken, and the user is told what to do.
        Rejection::Credential(CredentialError::NotConnected(_)) => return,
        // Nobody was asked for anything on a route, or the call's own ending has spoken.
        _ => {
            // A mirror says once an attempt what is wrong, not once a stranger's request.
            if !matches!(
                rejection,
                Rejection::NotFound | Rejection::Misdirected | Rejection::Mirror(_)
            ) {
                tracing::warn!(request_id = journey.request_id.as_str(), error = %rejection, "request failed");
            }
            return;
        }
    };
    let only = journey.call.get().map(|_| 0);
    if let Ok(slot) = audit.reserve().await {
        let mut line = reply::line(journey, only, None);
        line.decision = AuditDecision::Deny;
        if let Rejection::Connect { action, .. } = rejection {
            line.method = action;
        }
        line.reason = reason;
        line.outcome = Outcome::Denied.as_str();
        line.duration = journey.started.elapsed();
        slot.write(&line);
    }
}

/// One failure, before its form is chosen.
struct Failure {
    status: StatusCode,
    code: i64,
    message: String,
    data: Option<Value>,
    challenges: Vec<HeaderValue>,
    /// For the client's next proof.
    nonce: Option<HeaderValue>,
    allow: Option<&'static str>,
    retry_after: Option<u64>,
}

impl Failure {
    fn new(status: StatusCode, code: i64, rejection: &Rejection) -> Self {
        Self {
            status,
            code,
            message: rejection.to_string(),
            data: None,
            challenges: Vec::new(),
            nonce: None,
            allow: None,
            retry_after: None,
        }
    }

    /// Whether older clients survive this only in the body of a success.
    fn spares_legacy(&self) -> bool {
        matches!(self.code, codes::FORBIDDEN | codes::RATE_LIMITED | 50_200..=50_499)
    }
}

fn failure(rejection: &Rejection, journey: &Journey) -> Failure {
    use StatusCode as S;
    let plain = |status, code| Failure::new(status, code, rejection);
    match rejection {
        Rejection::Misdirected => plain(S::MISDIRECTED_REQUEST, 42_100),
        Rejection::ForbiddenOrigin => plain(S::FORBIDDEN, 40_302),
        Rejection::NotFound => plain(S::NOT_FOUND, 40_400),
        Rejection::MethodNotAllowed { allow, .. } => Failure {
            allow: Some(allow),
            ..plain(S::METHOD_NOT_ALLOWED, 40_500)
        },
        Rejection::RepeatedHeader(_) | Rejection::MalformedForwarded(_) => {
            plain(S::BAD_REQUEST, codes::INVALID_REQUEST)
        }
        Rejection::Authn(
            AuthnError::KeysUnavailable { .. } | AuthnError::IssuerUnavailable { .. } | AuthnError::Busy,
        ) => Failure {
            retry_after: Some(10),
            ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
        },
        Rejection::Authn(error) => Failure {
            challenges: journey
                .route
                .get()
                .map_or_else(Vec::new, |route| unauthorized(error, route)),
            nonce: match error {
                AuthnError::InvalidProof { nonce: Some(nonce), .. } => HeaderValue::try_from(nonce).ok(),
                _ => None,
            },
            ..plain(S::UNAUTHORIZED, 40_100)
        },
        Rejection::UnsupportedMediaType => plain(S::UNSUPPORTED_MEDIA_TYPE, 41_500),
        Rejection::BodyTooLarge { .. } => plain(S::PAYLOAD_TOO_LARGE, 41_300),
        Rejection::BodyTimeout => plain(S::REQUEST_TIMEOUT, 40_800),
        Rejection::BodyBroken => plain(S::BAD_REQUEST, codes::PARSE_ERROR),
        Rejection::Envelope(error) => plain(S::BAD_REQUEST, error.code()),
        Rejection::Agreement(error @ AgreementError::Removed) => plain(S::NOT_FOUND, error.code()),
        Rejection::Agreement(error @ AgreementError::Unsupported { requested }) => Failure {
            // Those that a client can name in a request of its own, as it did here; the others begin with `initialize`.
            data: Some(json!({"supported": ["2026-07-28"], "requested": requested})),
            ..plain(S::BAD_REQUEST, error.code())
        },
        Rejection::Agreement(error) => plain(S::BAD_REQUEST, error.code()),
        Rejection::UnsupportedVersion(requested) => Failure {
            data: Some(json!({"supported": [opening::MODERN], "requested": requested})),
            ..plain(S::BAD_REQUEST, codes::UNSUPPORTED_VERSION)
        },
        Rejection::Map(error) => match error {
            MapError::NotFound(_) => plain(S::NOT_FOUND, error.code()),
            MapError::Params(_) => plain(S::BAD_REQUEST, error.code()),
            MapError::Nonsense(_) => plain(S::BAD_GATEWAY, error.code()),
        },
        Rejection::MissingCapability { required } => Failure {
            data: Some(json!({
                "requiredCapabilities": serde_json::from_slice::<Value>(required).unwrap_or_default(),
            })),
            ..plain(S::BAD_REQUEST, codes::MISSING_CAPABILITY)
        },
        Rejection::RequestState => plain(S::BAD_REQUEST, codes::INVALID_PARAMS),
        Rejection::TooManyParked => Failure {
            retry_after: Some(10),
            ..plain(S::TOO_MANY_REQUESTS, codes::RATE_LIMITED)
        },
        Rejection::UnknownSession => plain(S::NOT_FOUND, 40_400),
        Rejection::ForeignSession => plain(S::FORBIDDEN, codes::FORBIDDEN),
        Rejection::Forbidden(refused) => forbidden(rejection, refused, journey),
        Rejection::OverBudget { .. } => plain(S::FORBIDDEN, codes::FORBIDDEN),
        Rejection::InvalidCursor => plain(S::BAD_REQUEST, codes::INVALID_PARAMS),
        Rejection::Limited(limited) => Failure {
            retry_after: Some(limited.retry_after),
            ..plain(S::TOO_MANY_REQUESTS, codes::RATE_LIMITED)
        },
        Rejection::Overloaded => Failure {
            retry_after: Some(1),
            ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
        },
        Rejection::ListUnderWay => Failure {
            retry_after: Some(1),
            ..plain(S::TOO_MANY_REQUESTS, codes::RATE_LIMITED)
        },
        Rejection::Mirror(MirrorError::Absent) => plain(S::NOT_FOUND, 40_400),
        Rejection::Mirror(MirrorError::Unavailable) => Failure {
            retry_after: Some(10),
            ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
        },
        Rejection::Mirror(MirrorError::Unusable) => plain(S::BAD_GATEWAY, codes::BAD_GATEWAY),
        Rejection::Credential(CredentialError::NotConnected(lacking)) => {
            let (message, data) = consent::words(lacking, journey);
            Failure {
                message,
                data: Some(data),
                ..plain(S::FORBIDDEN, codes::NOT_CONNECTED)
            }
        }
        Rejection::Credential(_) | Rejection::CredentialRefused => plain(S::BAD_GATEWAY, codes::CREDENTIAL),
        Rejection::Upstream(UpstreamError::UnknownEndpoint) => plain(S::NOT_FOUND, 40_400),
        Rejection::Upstream(
            UpstreamError::Unavailable { .. } | UpstreamError::NoneHealthy | UpstreamError::Busy { .. },
        ) => Failure {
            retry_after: Some(1),
            ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
        },
        Rejection::Upstream(UpstreamError::Process(error)) => match error {
            StdioError::Stalled => plain(S::GATEWAY_TIMEOUT, codes::TIMEOUT),
            StdioError::TooLong | StdioError::Nonsense => plain(S::BAD_GATEWAY, codes::BAD_GATEWAY),
            StdioError::Waiting { after, .. } => Failure {
                retry_after: Some(after.as_secs() + 1),
                ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
            },
            StdioError::Start(_) | StdioError::Full(_) | StdioError::Ended(_) | StdioError::Closed => Failure {
                retry_after: Some(1),
                ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
            },
        },
        Rejection::Upstream(UpstreamError::Open { seconds, .. }) => Failure {
            retry_after: Some(*seconds),
            ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
        },
        Rejection::Upstream(UpstreamError::Timeout { .. }) => plain(S::GATEWAY_TIMEOUT, codes::TIMEOUT),
        Rejection::Upstream(_) | Rejection::UpstreamNonsense(_) => plain(S::BAD_GATEWAY, codes::BAD_GATEWAY),
        Rejection::Connect { error, .. } => page(rejection, error.what),
        Rejection::AuditStalled => Failure {
            retry_after: Some(1),
            ..plain(S::SERVICE_UNAVAILABLE, codes::UNAVAILABLE)
        },
        Rejection::Panic => plain(S::INTERNAL_SERVER_ERROR, 50_000),
    }
}

/// Of the users' pages.
fn page(rejection: &Rejection, what: What) -> Failure {
    use StatusCode as S;
    let plain = |status: StatusCode| Failure::new(status, i64::from(status.as_u16()) * 100, rejection);
    let later = |seconds| Failure {
        retry_after: Some(seconds),
        ..plain(S::SERVICE_UNAVAILABLE)
    };
    match what {
        What::Method { allow } => Failure {
            allow: Some(allow),
            ..plain(S::METHOD_NOT_ALLOWED)
        },
        What::Malformed | What::ForeignSignIn | What::ForeignLogin => plain(S::BAD_REQUEST),
        What::TooLarge => plain(S::PAYLOAD_TOO_LARGE),
        What::ForeignForm | What::StaleForm | What::SignedOut | What::SignInRefused | What::LoginRefused => {
            plain(S::FORBIDDEN)
        }
        What::UnknownUpstream | What::UnknownIdentity => plain(S::NOT_FOUND),
        What::TooMany => later(600),
        What::SignInUnusable | What::LoginUnusable => plain(S::BAD_GATEWAY),
        What::IssuerUnavailable | What::LoginUnavailable | What::StoreUnavailable | What::AuditStalled => later(10),
    }
}

fn unauthorized(error: &AuthnError, route: &Route) -> Vec<HeaderValue> {
    Challenge {
        resource_metadata: route.resource_metadata.as_deref(),
        scopes: &route.challenge_scopes,
        dpop: route.dpop(),
    }
    .for_error(error)
}

fn forbidden(rejection: &Rejection, refused: &Refused, journey: &Journey) -> Failure {
    let mut failure = Failure::new(StatusCode::FORBIDDEN, codes::FORBIDDEN, rejection);
    if let (Some(required), Some(route)) = (refused.first().required_scopes(), journey.route.get()) {
        failure.code = codes::INSUFFICIENT_SCOPE;
        let principal = journey.principal.get();
        let scopes = match principal.filter(|principal| !principal.is_anonymous()) {
            Some(principal) => principal.scope_names.asked_all(required),
            None => route.config.asked_scopes(required),
        };
        let challenge = Challenge {
            resource_metadata: route.resource_metadata.as_deref(),
            scopes: &scopes,
            dpop: route.dpop(),
        };
        failure.challenges = challenge.insufficient_scope();
        failure.data = principal.map(|principal| scope_data(&scopes, principal));
    }
    if refused.first().is_malformed() {
        failure.status = StatusCode::BAD_REQUEST;
        failure.code = codes::INVALID_PARAMS;
    }
    failure
}

/// What a client needs to step up, in the issuer's spelling: the gateway never upgrades for it.
fn scope_data(required: &[String], principal: &Principal) -> Value {
    let scopes = required.join(" ");
    let mut data = json!({
        "error_type": "insufficient_scope",
        "required_scope": scopes,
        "user_scopes": principal.token_scopes,
        "upgrade_instructions": format!(
            "Ask the authorization server for a token that also has: {scopes}; then send the request again."
        ),
    });
    if let Some(endpoint) = &principal.scope_upgrade_endpoint {
        data["scope_upgrade_endpoint"] = Value::from(endpoint.as_str());
    }
    data
}

/// The JSON-RPC error for one refused message.
pub fn refusal(id: Option<&Id>, decision: &Decision, principal: &Principal) -> Vec<u8> {
    match decision.required_scopes() {
        Some(required) => mcp::error_response(
            id,
            codes::INSUFFICIENT_SCOPE,
            &decision.to_string(),
            Some(&scope_data(&principal.scope_names.asked_all(required), principal)),
        ),
        None if decision.is_malformed() => mcp::error_response(id, codes::INVALID_PARAMS, &decision.to_string(), None),
        None => mcp::error_response(id, codes::FORBIDDEN, &decision.to_string(), None),
    }
}

/// The JSON-RPC error for a request whose response has begun: what is left is to say it in an event.
pub fn message(rejection: &Rejection, journey: &Journey) -> Bytes {
    message_to(rejection, journey, journey.id())
}

/// The same for one request of several, by its id.
pub fn message_to(rejection: &Rejection, journey: &Journey, id: Option<&Id>) -> Bytes {
    if let Some(question) = question(rejection, journey, id) {
        return question.into();
    }
    tracing::warn!(request_id = journey.request_id.as_str(), error = %rejection, "request failed");
    error(&failure(rejection, journey), id).into()
}

/// The response for a rejection, in the form this client survives.
pub fn answer(rejection: &Rejection, journey: &Journey) -> Response<Body> {
    let failure = failure(rejection, journey);
    let mut response = match (rejection, journey.call.get()) {
        (Rejection::Connect { error, .. }, _) => error.respond(failure.status, journey.request_id.as_str()),
        (_, Some(call)) => form(rejection, &failure, call, journey),
        (_, None) => with_status(&failure, error(&failure, envelope_id(rejection))),
    };
    let refused = response.status().is_client_error();
    let headers = response.headers_mut();
    // In band there is nobody to challenge: a success with a challenge would confuse whoever reads headers.
    for challenge in failure.challenges.into_iter().filter(|_| refused) {
        headers.append(WWW_AUTHENTICATE, challenge);
    }
    if let Some(nonce) = failure.nonce {
        headers.insert(dpop::NONCE, nonce);
    }
    if let Some(allow) = failure.allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if let Some(seconds) = failure.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The id of a message that was read far enough to have one.
fn envelope_id(rejection: &Rejection) -> Option<&Id> {
    match rejection {
        Rejection::Envelope(error) => error.id(),
        _ => None,
    }
}

/// For clients that can do something about it themselves.
fn question(rejection: &Rejection, journey: &Journey, id: Option<&Id>) -> Option<Vec<u8>> {
    match rejection {
        Rejection::Credential(CredentialError::NotConnected(lacking)) => consent::question(lacking, journey, id),
        _ => None,
    }
}

fn form(rejection: &Rejection, failure: &Failure, call: &CallNotes, journey: &Journey) -> Response<Body> {
    if let Some(question) = question(rejection, journey, journey.id()) {
        return body::json(StatusCode::OK, question);
    }
    let denials = journey.route.get().map_or(Denials::Auto, |route| route.config.denials);
    // A batch in which nobody waits for an answer is answered as one notification is: an array would be empty.
    let batched = call.payload.is_batch() && call.messages().iter().any(|message| message.kind == Kind::Request);
    let body = match (rejection, journey.principal.get()) {
        (Rejection::Forbidden(refused), Some(principal)) if batched => batch(refused, principal),
        _ => error(failure, journey.id()),
    };
    let spared = failure.spares_legacy();
    let in_band = denials == Denials::InBand
        && (spared || failure.code == codes::INSUFFICIENT_SCOPE)
        && call.messages().len() == 1
        && &*call.messages()[0].method == "tools/call";
    if let (true, Some(id)) = (in_band, journey.id()) {
        let result = mcp::tool_error_result(id, &failure.message, call.era == Era::Modern);
        return success(failure, call, result);
    }
    if denials == Denials::Auto && spared && call.era != Era::Modern && !batched {
        return match journey.id() {
            Some(_) => success(failure, call, body),
            // Nobody waits for the answer to a notification; the audit has the refusal.
            None => accepted(),
        };
    }
    with_status(failure, body)
}

/// All members of a batch were refused: each is answered.
fn batch(refused: &Refused, principal: &Principal) -> Vec<u8> {
    let mut body = vec![b'['];
    for (id, decision) in &refused.members {
        if id.is_some() {
            if body.len() > 1 {
                body.push(b',');
            }
            body.extend_from_slice(&refusal(id.as_ref(), decision, principal));
        }
    }
    body.push(b']');
    body
}

fn error(failure: &Failure, id: Option<&Id>) -> Vec<u8> {
    mcp::error_response(id, failure.code, &failure.message, failure.data.as_ref())
}

/// An answer in the form of a success: on the stream where there is one.
fn success(failure: &Failure, call: &CallNotes, body: Vec<u8>) -> Response<Body> {
    match &call.stream {
        None => body::json(StatusCode::OK, body),
        Some(stream) if stream.tell(mcp::sse::message(&body)) => accepted(),
        // The stream is gone or isn't read: a 202 would promise an answer that never comes.
        Some(_) => with_status(failure, body),
    }
}

fn with_status(failure: &Failure, body: Vec<u8>) -> Response<Body> {
    body::json(failure.status, body)
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt;

    use super::*;
    use crate::config::OnAuditFailure;
    use crate::listener::ConnectionInfo;
    use crate::telemetry::Metrics;

    struct Bug;

    impl Stage<Arrival<()>> for Bug {
        type Error = Rejection;

        async fn serve(&self, _: Arrival<()>) -> Result<Response<Body>, Rejection> {
            panic!("the key is sk-live-4242");
        }
    }

    #[tokio::test]
    async fn a_bug_is_500_and_tells_nothing() {
        let audit = Audit::with_sink(Vec::new(), OnAuditFailure::Refuse, Metrics::new()).expect("an audit log");
        let connection = ConnectionInfo {
            peer: ([127, 0, 0, 1], 1).into(),
            tls: false,
            certificate: None,
        };
        let arrival = Arrival {
            journey: Journey::begin(connection),
            request: Box::new(Request::new(())),
        };
        let Ok(response) = RescueLayer::new(audit).layer(Bug).serve(arrival).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["error"]["code"], 50_000);
        assert!(!body.to_string().contains("4242"), "{body}");
    }
}
