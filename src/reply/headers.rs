//! Which headers cross the gate, either way.
//!
//! 1. Requests: an allow-list (`accept`, `content-type`, `mcp-*`, `last-event-id`, trace context, and the route's
//!    `forward_headers`). `Authorization`, cookies and everything hop-by-hop never leave.
//! 2. Modern requests lose `Mcp-Session-Id` and `Last-Event-ID`, legacy ones what mirrors a modern body
//!    (MCP 2026-07-28, "Earlier Streamable HTTP Revisions").
//! 3. Responses: everything but hop-by-hop headers, `set-cookie`, `www-authenticate` (the challenge would be for our
//!    credential, not the caller's), CORS (ours to decide) and the upstream's session id, which leaves sealed.

use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, COOKIE, HeaderName, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

use crate::mcp::Era;
use crate::session::SESSION_HEADER;

const MCP: &str = "mcp-";
const LAST_EVENT_ID: &str = "last-event-id";
const TRACE: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// What of a request's headers goes to the upstream. The session header is added by whoever opened it.
pub fn outbound(headers: &HeaderMap, era: Option<Era>, forward: &[HeaderName]) -> HeaderMap {
    let modern = era == Some(Era::Modern);
    let named = dropped_by_connection(headers);
    let mut kept = HeaderMap::with_capacity(8);
    for (name, value) in headers {
        let text = name.as_str();
        let mine = if let Some(mcp) = text.strip_prefix(MCP) {
            text != SESSION_HEADER && (modern || !(mcp == "method" || mcp == "name" || mcp.starts_with("param-")))
        } else {
            name == ACCEPT
                || name == CONTENT_TYPE
                || (text == LAST_EVENT_ID && !modern)
                || TRACE.contains(&text)
                || (forward.contains(name) && !never(name))
        };
        if mine && !named.iter().any(|named| named.eq_ignore_ascii_case(text)) {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// What of a request's headers goes along with messages that the gateway writes itself: trace context, and what the route
/// forwards.
pub fn carried(headers: &HeaderMap, forward: &[HeaderName]) -> HeaderMap {
    let mut kept = outbound(headers, Some(Era::Modern), forward);
    kept.remove(ACCEPT);
    kept.remove(CONTENT_TYPE);
    while let Some(name) = kept.keys().find(|name| name.as_str().starts_with(MCP)).cloned() {
        kept.remove(name);
    }
    kept
}

/// Removes from a response what isn't for the caller; the upstream's session id is returned.
pub fn inbound(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let named: Vec<String> = dropped_by_connection(headers).into_iter().map(str::to_owned).collect();
    for name in named {
        headers.remove(&*name);
    }
    // A reply has a handful of headers: looking at each is cheaper than hashing everything that it mustn't hold.
    while let Some(name) = headers.keys().find(|name| stays_here(name)).cloned() {
        headers.remove(name);
    }
    headers.remove(SESSION_HEADER)
}

/// Response headers that aren't for the caller.
fn stays_here(name: &HeaderName) -> bool {
    match name.as_str() {
        "connection" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection" => true,
        "proxy-authenticate" | "www-authenticate" | "set-cookie" | "set-cookie2" => true,
        "x-request-id" | "alt-svc" => true,
        name => name.strip_prefix("access-control-").is_some_and(|rest| {
            matches!(
                rest,
                "allow-origin" | "allow-credentials" | "expose-headers" | "allow-methods" | "allow-headers" | "max-age"
            )
        }),
    }
}

/// What `forward_headers` can't open: credentials, hop-by-hop headers and what the gate itself sets.
fn never(name: &HeaderName) -> bool {
    [
        AUTHORIZATION,
        COOKIE,
        PROXY_AUTHORIZATION,
        CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        http::header::HOST,
        http::header::CONTENT_LENGTH,
        http::header::EXPECT,
    ]
    .contains(name)
        || ["keep-alive", "proxy-connection", "dpop"].contains(&name.as_str())
}

/// Names the `Connection` header makes hop-by-hop (RFC 9110 section 7.6.1).
fn dropped_by_connection(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        // `Connection: accept` must not take what the protocol needs with it; and what most send names no header.
        .filter(|name| !(name.is_empty() || name.starts_with(MCP) || ["keep-alive", "close"].contains(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::try_from(*name).expect("a name"),
                    HeaderValue::try_from(*value).expect("a value"),
                )
            })
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn credentials_and_hops_never_leave() {
        let sent = headers(&[
            ("accept", "application/json"),
            ("authorization", "Bearer secret"),
            ("cookie", "a=b"),
            ("connection", "close, X-Team"),
            ("x-team", "red"),
            ("x-forwarded-for", "1.2.3.4"),
            ("mcp-session-id", "sealed"),
            ("mcp-method", "tools/call"),
            ("mcp-param-region", "eu"),
            ("mcp-protocol-version", "2025-11-25"),
            ("last-event-id", "7"),
            ("traceparent", "00-0-0-00"),
        ]);
        let forward = ["x-team", "authorization", "cookie"].map(HeaderName::from_static);
        assert_eq!(
            names(&outbound(&sent, Some(Era::Legacy), &forward)),
            ["accept", "last-event-id", "mcp-protocol-version", "traceparent"]
        );
        assert_eq!(
            names(&outbound(&sent, Some(Era::Modern), &forward)),
            [
                "accept",
                "mcp-method",
                "mcp-param-region",
                "mcp-protocol-version",
                "traceparent"
            ]
        );
    }

    #[test]
    fn the_upstreams_challenge_cookies_and_session_stay_behind() {
        let mut reply = headers(&[
            ("content-type", "text/event-stream"),
            ("www-authenticate", "Bearer"),
            ("set-cookie", "a=b"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("mcp-session-id", "theirs"),
            ("access-control-allow-origin", "*"),
        ]);
        let session = inbound(&mut reply);
        assert_eq!(session.as_ref().map(HeaderValue::as_bytes), Some(&b"theirs"[..]));
        assert_eq!(names(&reply), ["content-type"]);
    }
}
