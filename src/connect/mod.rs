//! The users' side: where people connect their own accounts at the services behind the gateway.
//!
//! | path | who comes | what happens |
//! |---|---|---|
//! | `GET /connect` | a browser | signs in at the identity's issuer, or lists what can be connected |
//! | `GET /connect/login` | the issuer sends it back | the visit begins |
//! | `POST /connect/start` | a form of ours | a login at a service begins |
//! | `GET /connect/callback` | the service's authorization server sends it back | the account is connected |
//! | `POST /connect/disconnect`, `POST /connect/logout` | a form of ours | |
//!
//! 1. Whoever is signed in is the same person as a caller of that identity with that subject, and sees the
//!    routes that take their identity and have a `connection`, no others.
//! 2. A form is ours when `Sec-Fetch-Site` and `Origin`, where they come, say so, and when it carries the token of the
//!    visit. Everything that changes something is such a form; a link changes nothing.
//! 3. A login at a service is begun by a form and ended by an answer with its `state`, once, within ten minutes, in the
//!    same visit of the same person. A link that somebody else made connects nobody's account to anybody.
//! 4. Where the browser goes afterwards is `/connect` and can't be chosen by anybody.
//! 5. Failures are pages ([`refusal`]), and cost a lookup at most: who isn't signed in takes no room in the store.
//!
//! The pages stand on `public_url`'s host, between the well-known documents and the Origin check of the MCP endpoints: they
//! are for browsers, and have rules of their own.

mod cookie;
mod html;
mod pages;
pub mod pending;
pub mod refusal;
mod sign_in;
mod upstreams;
mod visitor;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, LOCATION, ORIGIN, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tower::Layer;
use url::form_urlencoded;

use crate::authn::Authenticator;
use crate::call;
use crate::clock::Clock;
use crate::config::Identity;
use crate::credential::Connections;
use crate::edge::{Arrival, Body, BodyError, Journey, Rejection, Stage, empty};
use crate::oauth::login::Login;
use crate::reply;
use crate::route::Route;
use crate::session::Sealer;
use crate::telemetry::{Audit, AuditSlot};
use cookie::{Cookie, Jar};
use refusal::{ConnectError, What};
use sign_in::{Begun, SIGN_IN, SignIn};
use visitor::{VISIT, Visitor};

/// Bytes of a form: a token, a route's name, and room to spare.
const MAX_FORM: usize = 8 * 1024;

/// Bytes of a query: an authorization code can be long.
const MAX_QUERY: usize = 16 * 1024;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the pages are made of.
pub struct Parts {
    /// Without a trailing slash.
    pub public_url: String,
    pub routes: Vec<Arc<Route>>,
    pub identities: Vec<Arc<Identity>>,
    pub authenticator: Arc<Authenticator>,
    pub connections: Arc<Connections>,
    pub sealer: Arc<Sealer>,
    pub audit: Audit,
    pub clock: Clock,
    /// For a form.
    pub body_timeout: Duration,
}

/// The pages of one configuration.
pub struct Pages {
    public_url: String,
    jar: Jar,
    sign_ins: Vec<SignIn>,
    services: Vec<Service>,
    authenticator: Arc<Authenticator>,
    connections: Arc<Connections>,
    sealer: Arc<Sealer>,
    audit: Audit,
    clock: Clock,
    body_timeout: Duration,
}

/// A route whose callers connect their own accounts.
struct Service {
    route: Arc<Route>,
    login: Arc<Login>,
}

impl Service {
    fn name(&self) -> &Arc<str> {
        &self.route.config.name
    }

    /// Whether it takes callers of this identity.
    fn takes(&self, identity: &Identity) -> bool {
        let mut taken = self.route.config.identities.iter();
        taken.any(|taken| taken.name == identity.name)
    }
}

/// A path that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Home,
    SignedIn,
    Start,
    Callback,
    Disconnect,
    SignOut,
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/connect" | "/connect/" => Self::Home,
            "/connect/login" => Self::SignedIn,
            "/connect/start" => Self::Start,
            "/connect/callback" => Self::Callback,
            "/connect/disconnect" => Self::Disconnect,
            "/connect/logout" => Self::SignOut,
            _ => return None,
        })
    }

    /// What the audit log calls it.
    fn action(self) -> &'static str {
        match self {
            Self::Home => "connect",
            Self::SignedIn => "connect/login",
            Self::Start => "connect/start",
            Self::Callback => "connect/callback",
            Self::Disconnect => "connect/disconnect",
            Self::SignOut => "connect/logout",
        }
    }

    fn allows(self, method: &Method) -> Result<(), What> {
        let allow = match self {
            Self::Home => "GET, HEAD",
            Self::SignedIn | Self::Callback => "GET",
            Self::Start | Self::Disconnect | Self::SignOut => "POST",
        };
        match allow.split(", ").any(|allowed| allowed == method.as_str()) {
            true => Ok(()),
            false => Err(What::Method { allow }),
        }
    }
}

impl Pages {
    /// `None` where no route has a connection. Nobody is asked anything yet.
    ///
    /// # Errors
    /// A key of the configuration and why it can't be used, in words for the operator.
    pub fn new(parts: Parts) -> Result<Option<Self>, (String, String)> {
        let taken = parts.routes.iter().find(|route| {
            let path = &route.config.path;
            route.config.host.is_none() && Place::of(path).is_some()
        });
        let taken = taken.map(|route| format!("routes.{}.path", route.name()));
        let services: Vec<Service> = parts
            .routes
            .into_iter()
            .filter_map(|route| {
                let login = route.credential.login()?.clone();
                Some(Service { route, login })
            })
            .collect();
        if services.is_empty() {
            return Ok(None);
        }
        if let Some(key) = taken {
            return Err((key, "users' pages are there; give the route another path".to_owned()));
        }
        let mut sign_ins = Vec::new();
        for identity in &parts.identities {
            let sign_in = SignIn::new(identity, &parts.public_url, parts.clock.clone())
                .map_err(|error| (format!("identity.{}.login", identity.name), error))?;
            sign_ins.extend(sign_in);
        }
        Ok(Some(Self {
            jar: Jar::new(&parts.public_url),
            public_url: parts.public_url,
            sign_ins,
            services,
            authenticator: parts.authenticator,
            connections: parts.connections,
            sealer: parts.sealer,
            audit: parts.audit,
            clock: parts.clock,
            body_timeout: parts.body_timeout,
        }))
    }

    async fn answer<B>(&self, place: Place, arrival: Arrival<B>) -> Result<Response<Body>, ConnectError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let Arrival { journey, request } = arrival;
        place.allows(request.method())?;
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        if query.len() > MAX_QUERY {
            return Err(What::TooLarge.into());
        }
        let visitor = self.visitor(&parts.headers);
        if let Some(visitor) = &visitor {
            let _ = journey.principal.set(visitor.principal.clone());
        }
        let asked = Asked {
            place,
            journey: &journey,
            headers: &parts.headers,
            query,
        };
        match place {
            Place::Home => self.home(&asked, visitor).await,
            Place::SignedIn => self.signed_in(&asked).await,
            Place::Callback => self.callback(&asked, visitor).await,
            Place::Start | Place::Disconnect | Place::SignOut => {
                self.is_ours(&parts.headers)?;
                // Nothing of the body is read for a stranger.
                let visitor = visitor.ok_or(What::SignedOut)?;
                let form = self.form(&parts.headers, body).await?;
                if !visitor.owns(&form.token) {
                    return Err(What::StaleForm.into());
                }
                match place {
                    Place::Start => self.start(&asked, &visitor, &form).await,
                    Place::Disconnect => self.disconnect(&asked, &visitor, &form).await,
                    _ => self.sign_out(&asked).await,
                }
            }
        }
    }

    fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| **service.name() == *name)
    }

    /// Who is signed in, in this browser.
    fn visitor(&self, headers: &HeaderMap) -> Option<Visitor> {
        let cookie = self.jar.read(headers, Cookie::Visitor)?;
        let identities = self.sign_ins.iter().map(|sign_in| &sign_in.identity);
        Visitor::open(&self.sealer, cookie, identities, self.clock.now())
    }

    /// Rule 2's first half.
    fn is_ours(&self, headers: &HeaderMap) -> Result<(), ConnectError> {
        let site = headers.get(SEC_FETCH_SITE);
        let origin = headers.get(ORIGIN);
        let foreign = site.is_some_and(|site| site != "same-origin")
            || origin.is_some_and(|origin| *origin != *self.public_url)
            || headers.get_all(ORIGIN).iter().count() > 1;
        match foreign {
            true => Err(What::ForeignForm.into()),
            false => Ok(()),
        }
    }

    async fn form<B>(&self, headers: &HeaderMap, body: B) -> Result<Form, ConnectError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let media = headers
            .get(CONTENT_TYPE)
            .and_then(|media| media.to_str().ok())
            .unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/x-www-form-urlencoded") || headers.contains_key(CONTENT_ENCODING) {
            return Err(What::Malformed.into());
        }
        let body = call::read(headers, body, MAX_FORM, self.body_timeout).await;
        let body = body.map_err(|rejection| match rejection {
            Rejection::BodyTooLarge { .. } => ConnectError::from(What::TooLarge),
            other => ConnectError::from(What::Malformed).because(other),
        })?;
        let [token, route] = fields(&body, ["csrf", "route"])?;
        Ok(Form {
            token: token.unwrap_or_default(),
            route,
        })
    }

    async fn home(&self, asked: &Asked<'_>, visitor: Option<Visitor>) -> Result<Response<Body>, ConnectError> {
        let [route, identity, message] = fields(asked.query.as_bytes(), ["route", "identity", "message"])?;
        // Only what is there is passed on; anything else that a link names is nobody's.
        let service = route.and_then(|name| self.service(&name));
        let name = service.map(|service| &**service.name());
        if let Some(visitor) = visitor {
            return self.list(&visitor, service, message.as_deref()).await;
        }
        let taken = |sign_in: &&SignIn| service.is_none_or(|service| service.takes(&sign_in.identity));
        let taken: Vec<&SignIn> = self.sign_ins.iter().filter(taken).collect();
        let chosen = match (&identity, &*taken) {
            (Some(name), _) => {
                let known = taken.iter().find(|sign_in| *sign_in.identity.name == **name);
                known.ok_or(What::UnknownIdentity)?
            }
            (None, [only]) => only,
            (None, []) => return Ok(pages::nobody(self.sign_ins.is_empty())),
            (None, several) => {
                let names: Vec<&str> = several.iter().map(|sign_in| &*sign_in.identity.name).collect();
                return Ok(pages::chooser(&names, name));
            }
        };
        let (url, begun) = chosen.begin(name).await?;
        let cookie = begun.seal(&self.sealer).ok_or(What::Malformed)?;
        let cookie = self.jar.set(Cookie::SignIn, &cookie, SIGN_IN);
        Ok(redirect(url.as_str(), [cookie]))
    }

    /// The issuer's answer.
    async fn signed_in(&self, asked: &Asked<'_>) -> Result<Response<Body>, ConnectError> {
        let now = self.clock.now();
        let begun = self.jar.read(asked.headers, Cookie::SignIn);
        let begun = begun
            .and_then(|cookie| Begun::open(&self.sealer, cookie, now))
            .ok_or(What::ForeignSignIn)?;
        let sign_in = self
            .sign_ins
            .iter()
            .find(|sign_in| *sign_in.identity.name == *begun.identity());
        let sign_in = sign_in.ok_or(What::UnknownIdentity)?;
        let finished = sign_in.finish(&begun, asked.query, &self.authenticator).await;
        let person = finished.map_err(|mut error| {
            // What somebody else sends, and an issuer that is away, end no sign-in.
            if matches!(error.what, What::SignInRefused | What::SignInUnusable) {
                error.clear = Some(self.jar.clear(Cookie::SignIn));
            }
            error
        })?;
        let visitor = Visitor::begin(&sign_in.identity, &person.subject, &person.name, now);
        let visitor = visitor.ok_or_else(|| {
            let mut error = ConnectError::at(What::SignInUnusable, &sign_in.identity.name);
            error.clear = Some(self.jar.clear(Cookie::SignIn));
            error.because("the subject is too long")
        })?;
        // A visit of somebody else may have stood in the notes.
        let slot = self.reserve().await?;
        let mut line = reply::line(asked.journey, None, None);
        line.issuer = Some(&visitor.principal.issuer);
        line.subject = Some(&visitor.principal.subject);
        done(slot, line, asked);
        let cookies = [
            self.jar.set(Cookie::Visitor, &visitor.seal(&self.sealer), VISIT),
            self.jar.clear(Cookie::SignIn),
        ];
        Ok(redirect(&home(None, begun.route.as_deref()), cookies))
    }

    async fn sign_out(&self, asked: &Asked<'_>) -> Result<Response<Body>, ConnectError> {
        self.record(asked).await?;
        let mut response = pages::signed_out();
        response
            .headers_mut()
            .append(SET_COOKIE, self.jar.clear(Cookie::Visitor));
        Ok(response)
    }

    async fn reserve(&self) -> Result<AuditSlot, ConnectError> {
        let reserved = self.audit.reserve().await;
        reserved.map_err(|_| What::AuditStalled.into())
    }

    /// Writes down what was done.
    async fn record(&self, asked: &Asked<'_>) -> Result<(), ConnectError> {
        let slot = self.reserve().await?;
        done(slot, reply::line(asked.journey, None, None), asked);
        Ok(())
    }
}

fn done(slot: AuditSlot, mut line: crate::telemetry::AuditLine<'_>, asked: &Asked<'_>) {
    line.method = asked.place.action();
    line.reason = "ok";
    line.outcome = crate::telemetry::Outcome::Success.as_str();
    line.duration = asked.journey.started.elapsed();
    slot.write(&line);
}

/// A request to one of the places.
struct Asked<'a> {
    place: Place,
    journey: &'a Journey,
    headers: &'a HeaderMap,
    query: &'a str,
}

/// What a form of ours says.
struct Form {
    token: String,
    route: Option<String>,
}

/// The fields of these names; each may come once.
fn fields<const N: usize>(encoded: &[u8], names: [&str; N]) -> Result<[Option<String>; N], ConnectError> {
    let mut found = [const { None }; N];
    for (name, value) in form_urlencoded::parse(encoded) {
        if let Some(place) = names.iter().position(|known| *known == name)
            && found[place].replace(value.into_owned()).is_some()
        {
            return Err(What::Malformed.into());
        }
    }
    Ok(found)
}

/// Where everybody ends up.
fn home(message: Option<&str>, route: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in [("message", message), ("route", route)] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    match &*query.finish() {
        "" => "/connect".to_owned(),
        query => format!("/connect?{query}"),
    }
}

/// 303: whatever brought the browser here, it goes on with a GET (RFC 9110 section 15.4.4).
fn redirect(to: &str, cookies: impl IntoIterator<Item = HeaderValue>) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    html::guard(&mut response);
    let headers = response.headers_mut();
    headers.insert(
        LOCATION,
        HeaderValue::try_from(to).expect("URLs and encoded queries are ASCII"),
    );
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
    response
}

/// Puts the pages in front of a service.
#[derive(Clone)]
pub struct ConnectLayer(Option<Arc<Pages>>);

impl ConnectLayer {
    /// `None`: there are no pages here.
    pub fn new(pages: Option<Arc<Pages>>) -> Self {
        Self(pages)
    }
}

impl<S> Layer<S> for ConnectLayer {
    type Service = ConnectService<S>;

    fn layer(&self, inner: S) -> ConnectService<S> {
        ConnectService {
            pages: self.0.clone(),
            inner,
        }
    }
}

/// The stage of [`ConnectLayer`].
pub struct ConnectService<S> {
    pages: Option<Arc<Pages>>,
    inner: S,
}

impl<S, B> Stage<Arrival<B>> for ConnectService<S>
where
    S: Stage<Arrival<B>, Error = Rejection>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    type Error = Rejection;

    async fn serve(&self, arrival: Arrival<B>) -> Result<Response<Body>, Rejection> {
        let Some(pages) = &self.pages else {
            return self.inner.serve(arrival).await;
        };
        // A host that routes name has their endpoints and no more.
        let place = match arrival.journey.host.get() {
            None => Place::of(arrival.request.uri().path()),
            Some(_) => None,
        };
        let Some(place) = place else {
            return self.inner.serve(arrival).await;
        };
        // Boxed, so that no other request carries the room around.
        let answered = Box::pin(pages.answer(place, arrival)).await;
        answered.map_err(|error| Rejection::Connect {
            action: place.action(),
            error: Box::new(error),
        })
    }
}
