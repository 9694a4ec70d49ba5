//! The sealed session of a legacy request is opened, or the request is 404.

use std::sync::Arc;

use http::HeaderMap;

use super::{Sealer, Session};
use crate::call::{Call, Form};
use crate::edge::{Check, Rejection};
use crate::mcp::Era;

/// The header a legacy session travels in (MCP 2025-11-25, "Session Management").
pub const SESSION_HEADER: &str = "mcp-session-id";

/// Opens sessions.
pub struct SessionCheck {
    pub sealer: Arc<Sealer>,
}

impl Check<Box<Call>> for SessionCheck {
    type Passed = Box<Call>;

    async fn check(&self, mut call: Box<Call>) -> Result<Box<Call>, Rejection> {
        if let Some(sealed) = sealed_of(&call.headers, &call.form) {
            let session = sealed
                .to_str()
                .ok()
                .and_then(|sealed| Session::open(&self.sealer, sealed, call.route.name(), &call.principal))
                .filter(|session| session.bridge_key().is_some() || call.route.upstream.knows(&session.endpoint))
                .ok_or(Rejection::UnknownSession)?;
            if session.opens_pages {
                let _ = call.journey.opens_pages.set(());
            }
            call.session = Some(session);
        }
        Ok(call)
    }
}

/// Modern requests have no session, whatever header they carry (MCP 2026-07-28, "Earlier Streamable HTTP Revisions").
fn sealed_of<'a>(headers: &'a HeaderMap, form: &Form) -> Option<&'a http::HeaderValue> {
    match form {
        Form::Post { era: Era::Modern, .. } | Form::Message { .. } => None,
        Form::Post { .. } | Form::Get | Form::Delete => headers.get(SESSION_HEADER),
    }
}
