//! Connecting and disconnecting: what the forms of the list do, and where the authorization servers' answers end.

use http::Response;

use super::pages::{self, Done, Listed};
use super::pending::{self, LOGIN, Waiting};
use super::refusal::{ConnectError, What};
use super::visitor::Visitor;
use super::{Asked, Form, Pages, Service, home, redirect};
use crate::credential::{Person, State};
use crate::edge::Body;
use crate::oauth::TokenError;
use crate::oauth::authorization::{self, CallbackError};
use crate::oauth::discovery::FindError;
use crate::oauth::login::LoginError;
use crate::oauth::registration::RegistrationError;
use crate::store::StoreError;

/// Characters of a state that could be one of ours.
const MAX_STATE: usize = 128;

impl From<StoreError> for ConnectError {
    fn from(error: StoreError) -> Self {
        Self::from(What::StoreUnavailable).because(error)
    }
}

impl Pages {
    /// What this visitor can connect.
    pub(super) async fn list(
        &self,
        visitor: &Visitor,
        asked: Option<&Service>,
        message: Option<&str>,
    ) -> Result<Response<Body>, ConnectError> {
        let person = person(visitor);
        let mut listed = Vec::new();
        for service in self.services.iter().filter(|service| service.takes(&visitor.identity)) {
            let name = service.name();
            let connection = self.connections.state(name, &person).await;
            let connection =
                connection.inspect_err(|error| tracing::warn!(route = &**name, %error, "a connection can't be read"));
            listed.push(Listed {
                route: name,
                connection: connection.ok(),
                asked: asked.is_some_and(|asked| asked.name() == name),
            });
        }
        // Who was sent here for one service sees it first.
        listed.sort_by_key(|one| !one.asked);
        let shown = listed.iter().find(|one| one.asked);
        let state = shown.and_then(|one| Some(one.connection.as_ref()?.state));
        // A link may hold any message; it is repeated where it is true.
        let done = match (message, state) {
            (Some("connected"), Some(State::Connected | State::Expiring)) => Some(Done::Connected),
            (Some("disconnected"), Some(State::Disconnected)) => Some(Done::Disconnected),
            _ => None,
        };
        let done = done.zip(shown.map(|one| one.route));
        let note = asked.filter(|_| shown.is_none()).map(|service| {
            format!(
                "You were sent here for {}, which is not open to the login that you used. Sign out to use another.",
                service.name()
            )
        });
        Ok(pages::list(visitor, &listed, done, note.as_deref()))
    }

    /// A form's service, if it is this visitor's to connect.
    fn theirs(&self, asked: &Asked<'_>, visitor: &Visitor, name: Option<&str>) -> Result<&Service, ConnectError> {
        let service = name.and_then(|name| self.service(name));
        let service = service.filter(|service| service.takes(&visitor.identity));
        let service = service.ok_or(What::UnknownUpstream)?;
        let _ = asked.journey.route.set(service.route.clone());
        Ok(service)
    }

    /// A login at a service begins.
    pub(super) async fn start(
        &self,
        asked: &Asked<'_>,
        visitor: &Visitor,
        form: &Form,
    ) -> Result<Response<Body>, ConnectError> {
        let service = self.theirs(asked, visitor, form.route.as_deref())?;
        if !pending::has_room(self.connections.store()).await? {
            return Err(What::TooMany.into());
        }
        let person = person(visitor);
        let wanted = self.connections.state(service.name(), &person).await?.wanted;
        let begun = service
            .login
            .begin(&wanted)
            .await
            .map_err(|error| refused(service, &error))?;
        // The operator's or a document's word: no page of ours leads to anything but a web page.
        if !matches!(begun.url.scheme(), "https" | "http") {
            return Err(ConnectError::at(What::LoginUnusable, service.name()).because("its address is no web page"));
        }
        self.record(asked).await?;
        let waiting = Waiting {
            state: Some(begun.state),
            mark: visitor.mark(),
            pending: Some(begun.pending.to_json()),
        };
        let expires = self.clock.now().saturating_add(LOGIN);
        waiting
            .in_browser(self.connections.store(), service.name(), person.as_str(), expires)
            .await?;
        Ok(pages::leaving(visitor, service.name(), &begun.url))
    }

    /// The answer of a service's authorization server.
    pub(super) async fn callback(
        &self,
        asked: &Asked<'_>,
        visitor: Option<Visitor>,
    ) -> Result<Response<Body>, ConnectError> {
        let now = self.clock.now();
        let state = authorization::state(asked.query).filter(|state| state.len() <= MAX_STATE);
        let state = state.ok_or(What::ForeignLogin)?;
        let Some(visitor) = visitor else {
            return match pending::terminal(self.connections.store(), &state, now).await? {
                Some(route) => Ok(self.for_terminal(asked, &route)),
                None => Err(What::SignedOut.into()),
            };
        };
        let person = person(&visitor);
        let found = pending::find(self.connections.store(), person.as_str(), &state, &visitor.mark(), now).await?;
        let Some(found) = found else {
            return match pending::terminal(self.connections.store(), &state, now).await? {
                Some(route) => Ok(self.for_terminal(asked, &route)),
                None => Err(What::ForeignLogin.into()),
            };
        };
        let service = self.theirs(asked, &visitor, Some(&found.route))?;
        let pending = found.waiting.pending().ok_or(What::ForeignLogin)?;
        let slot = self.reserve().await?;
        if !found.take(self.connections.store(), person.as_str()).await? {
            return Err(ConnectError::at(What::ForeignLogin, service.name()));
        }
        let grant = match service.login.finish(pending, asked.query).await {
            Ok(grant) => grant,
            Err(error) => {
                if keeps(&error) {
                    found.give_back(self.connections.store(), person.as_str()).await?;
                }
                return Err(refused(service, &error));
            }
        };
        self.connections.adopt(service.name(), &person, grant).await?;
        super::done(slot, crate::reply::line(asked.journey, None, None), asked);
        Ok(redirect(&home(Some("connected"), Some(service.name())), []))
    }

    pub(super) async fn disconnect(
        &self,
        asked: &Asked<'_>,
        visitor: &Visitor,
        form: &Form,
    ) -> Result<Response<Body>, ConnectError> {
        let service = self.theirs(asked, visitor, form.route.as_deref())?;
        self.record(asked).await?;
        let person = person(visitor);
        pending::clear(self.connections.store(), service.name(), person.as_str(), None).await?;
        let forgotten = self.connections.forget(service.name(), &person, Some(&*service.login));
        forgotten.await?;
        Ok(redirect(&home(Some("disconnected"), Some(service.name())), []))
    }

    fn for_terminal(&self, asked: &Asked<'_>, route: &str) -> Response<Body> {
        let address = format!("{}/connect/callback?{}", self.public_url, asked.query);
        pages::terminal(route, &address)
    }
}

fn person(visitor: &Visitor) -> Person {
    Person::of(&visitor.principal).expect("a visitor's identity vouches for them")
}

/// Whether an answer leaves the login as it was: nobody said no, and the code is not used up.
fn keeps(error: &LoginError) -> bool {
    match error {
        LoginError::Callback(error) => !matches!(error, CallbackError::Refused { .. }),
        LoginError::Token(error) => matches!(error, TokenError::Unreachable(_)),
        _ => true,
    }
}

fn refused(service: &Service, error: &LoginError) -> ConnectError {
    let what = match error {
        LoginError::Callback(CallbackError::Refused { .. }) => What::LoginRefused,
        LoginError::Callback(CallbackError::State) => What::ForeignLogin,
        LoginError::Callback(CallbackError::Large) => What::TooLarge,
        LoginError::Callback(CallbackError::Twice(_)) => What::Malformed,
        LoginError::Token(TokenError::Unreachable(_))
        | LoginError::Find(FindError::Fetch { .. })
        | LoginError::Registration(RegistrationError::Unreachable(_) | RegistrationError::Busy) => {
            What::LoginUnavailable
        }
        LoginError::Store(_) => What::StoreUnavailable,
        _ => What::LoginUnusable,
    };
    ConnectError::at(what, service.name()).because(error)
}
