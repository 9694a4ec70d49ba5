//! Why a page can't be shown or a form not be carried out: what happened, where, and what to do next, for people.
//!
//! Nothing that an issuer, an authorization server or another site chose stands in here. The status is picked where all
//! statuses are ([`crate::edge::rescue`]).

use std::fmt::Write as _;
use std::sync::Arc;

use http::header::SET_COOKIE;
use http::{HeaderValue, Response, StatusCode};

use super::html::{Page, text};
use crate::edge::Body;

/// A page that tells of a failure.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", .what.reason(), .detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default())]
pub struct ConnectError {
    pub what: What,
    /// The upstream's route, or the identity.
    pub at: Option<Arc<str>>,
    /// For the operator's log alone.
    pub detail: Option<String>,
    /// What the browser is to forget.
    pub clear: Option<HeaderValue>,
}

/// What happened, split by who can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    // The visitor's, or another site's.
    Method {
        allow: &'static str,
    },
    /// The query, the form or its kind can't be read.
    Malformed,
    TooLarge,
    /// A form that another site sent.
    ForeignForm,
    /// A form of another visit, or of none.
    StaleForm,
    SignedOut,
    /// No such upstream, or not this visitor's.
    UnknownUpstream,
    UnknownIdentity,
    /// The answer to a sign-in that this browser hasn't begun, or not just now.
    ForeignSignIn,
    /// The person or the issuer said no.
    SignInRefused,
    /// The answer to a login that this visit hasn't begun, or not just now.
    ForeignLogin,
    LoginRefused,
    /// More logins wait than are kept.
    TooMany,
    // The issuer's.
    SignInUnusable,
    IssuerUnavailable,
    // The authorization server's.
    LoginUnusable,
    LoginUnavailable,
    // The gateway's.
    StoreUnavailable,
    AuditStalled,
}

impl From<What> for ConnectError {
    fn from(what: What) -> Self {
        Self {
            what,
            at: None,
            detail: None,
            clear: None,
        }
    }
}

impl ConnectError {
    /// At this route or identity.
    pub fn at(what: What, at: &Arc<str>) -> Self {
        Self {
            at: Some(at.clone()),
            ..what.into()
        }
    }

    /// With words for the log.
    pub fn because(mut self, detail: impl ToString) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// The page, with this status.
    pub fn respond(&self, status: StatusCode, request_id: &str) -> Response<Body> {
        let (title, happened, next) = self.what.says();
        let mut main = format!("<h1>{title}</h1>\n<p>{happened}</p>\n");
        if let Some(at) = &self.at {
            let kind = if self.what.is_sign_in() { "Identity" } else { "Service" };
            let _ = writeln!(main, "<p>{kind}: <strong><bdi>{}</bdi></strong></p>", text(at));
        }
        let _ = write!(
            main,
            "<p>{next}</p>\n<p><a class=\"button\" href=\"/connect\">Go to your connections</a></p>\n\
             <p class=\"reference\">Request <code>{}</code>. If it goes on failing, tell whoever runs this gateway; their log \
             has the details under this number.</p>\n",
            text(request_id)
        );
        let page = Page {
            title,
            aside: String::new(),
            main,
            leads_to: None,
        };
        let mut response = page.respond(status);
        if let Some(cookie) = &self.clear {
            response.headers_mut().append(SET_COOKIE, cookie.clone());
        }
        response
    }
}

impl What {
    /// Whether it is the visitor's affair, or that of the site they came from.
    pub fn is_visitors(self) -> bool {
        !matches!(
            self,
            Self::SignInUnusable
                | Self::IssuerUnavailable
                | Self::LoginUnusable
                | Self::LoginUnavailable
                | Self::StoreUnavailable
                | Self::AuditStalled
        )
    }

    /// A bounded label, for the audit log and the counts.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Method { .. } => "method",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::ForeignForm => "foreign_form",
            Self::StaleForm => "stale_form",
            Self::SignedOut => "signed_out",
            Self::UnknownUpstream => "unknown_upstream",
            Self::UnknownIdentity => "unknown_identity",
            Self::ForeignSignIn => "foreign_sign_in",
            Self::SignInRefused => "sign_in_refused",
            Self::ForeignLogin => "foreign_login",
            Self::LoginRefused => "login_refused",
            Self::TooMany => "too_many_logins",
            Self::SignInUnusable => "sign_in_unusable",
            Self::IssuerUnavailable => "issuer_unavailable",
            Self::LoginUnusable => "login_unusable",
            Self::LoginUnavailable => "login_unavailable",
            Self::StoreUnavailable => "store_unavailable",
            Self::AuditStalled => "audit_stalled",
        }
    }

    fn is_sign_in(self) -> bool {
        matches!(
            self,
            Self::UnknownIdentity
                | Self::ForeignSignIn
                | Self::SignInRefused
                | Self::SignInUnusable
                | Self::IssuerUnavailable
        )
    }

    /// Title, what happened, what to do.
    fn says(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Method { .. } => (
                "This address takes no such request",
                "It was asked in a way that it does not answer.",
                "Start from the page with your connections.",
            ),
            Self::Malformed => (
                "This request can't be read",
                "A part of it is missing, comes twice, or is not what this page sends. Nothing was changed.",
                "Start from the page with your connections.",
            ),
            Self::TooLarge => (
                "This request is too long",
                "It is longer than anything that belongs here. Nothing was changed.",
                "Start from the page with your connections.",
            ),
            Self::ForeignForm => (
                "This request came from another site",
                "Connections are changed from this gateway's own page only. Nothing was changed.",
                "If you did mean to change something, do it from the page with your connections. Use the address that your \
                 administrator gave you: by another name of the same machine this is another site, too.",
            ),
            Self::StaleForm => (
                "This page was out of date",
                "You have signed in again since it was shown, or it was never yours. Nothing was changed.",
                "Go to your connections and try again.",
            ),
            Self::SignedOut => (
                "You are not signed in",
                "Your visit is over: it lasts an hour. Nothing was changed.",
                "Go to your connections; you will be asked to sign in, and can then try again.",
            ),
            Self::UnknownUpstream => (
                "There is no such service for you",
                "It does not exist here, takes no personal connections, or is not open to you.",
                "Your connections list everything that you can connect.",
            ),
            Self::UnknownIdentity => (
                "There is no such way to sign in",
                "The link that you followed names one that does not exist here, or not any more.",
                "Choose one on the page with your connections.",
            ),
            Self::ForeignSignIn => (
                "This sign-in was not begun here",
                "It was begun in another browser or another tab, more than ten minutes ago, or has been used already. \
                 You were not signed in.",
                "Sign in again from the page with your connections.",
            ),
            Self::SignInRefused => (
                "You were not signed in",
                "The sign-in was cancelled, or your organisation's login refused it.",
                "Try again; if it is refused again, ask whoever runs the login.",
            ),
            Self::ForeignLogin => (
                "This login was not begun here",
                "It was begun by somebody else, in another browser or visit, more than ten minutes ago, or has been used \
                 already or replaced by a newer one. Nothing was connected.",
                "If it was yours, connect again from the page with your connections. If somebody sent you the link, they may \
                 have tried to join your account to theirs.",
            ),
            Self::LoginRefused => (
                "The service was not connected",
                "You cancelled, or the service refused.",
                "Connect again from the page with your connections, if you want to.",
            ),
            Self::TooMany => (
                "Too many logins wait",
                "This gateway waits for more logins than it keeps. Nothing was changed.",
                "Try again in ten minutes.",
            ),
            Self::SignInUnusable => (
                "You could not be signed in",
                "Your organisation's login gave an answer that can't be trusted.",
                "Try again; if it goes on failing, the gateway's settings and those of the login do not fit together.",
            ),
            Self::IssuerUnavailable => (
                "The login can't be reached",
                "Your organisation's login did not answer in time, or can't be asked.",
                "Try again in a minute.",
            ),
            Self::LoginUnusable => (
                "The service could not be connected",
                "Its login gave an answer that can't be trusted, or will not have this gateway as a client.",
                "Connect again from the page with your connections; if it goes on failing, the gateway's settings and \
                 those of the service do not fit together.",
            ),
            Self::LoginUnavailable => (
                "The service's login can't be reached",
                "It did not answer in time. What you had connected stays as it was.",
                "Try again in a minute.",
            ),
            Self::StoreUnavailable => (
                "The gateway can't reach its store",
                "Connections can be neither read nor changed right now.",
                "Try again in a minute.",
            ),
            Self::AuditStalled => (
                "The gateway can't write its log",
                "What can't be recorded is not done. Nothing was changed.",
                "Try again in a minute.",
            ),
        }
    }
}
