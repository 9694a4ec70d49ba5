//! Which headers cross the gate, either way.
//!
//! 1. Requests: an allow-list (`accept`, `content-type`, `mcp-*`, `last-event-id`, trace context, and the route's
//!    `forward_headers`). `Authorization`, cookies and everything hop-by-hop never leave.
//! 2. Modern requests lose `Mcp-Session-Id` and `Last-Event-ID`, legacy ones what mirrors a modern body
//!    (MCP 2026-07-28, "Earlier Streamable HTTP Revisions").
//! 3. Responses: everything but hop-by-hop headers, `set-cookie`, `www-authenticate` (the challenge would be for our
//!    credential, not the caller's), CORS (ours to decide), what browsers take as said for the whole origin, and the
//!    upstream's session id, which leaves sealed.
//! 4. On the same origin stand the pages where people connect their accounts. Whatever isn't plainly JSON or a stream of
//!    events is a page of nobody's origin, without scripts, should a browser come to show it.

use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HeaderName, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE, X_CONTENT_TYPE_OPTIONS,
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
    if !is_data(headers) {
        // Beside the upstream's own policy: browsers heed both.
        headers.append(CONTENT_SECURITY_POLICY, CONFINED.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    headers.remove(SESSION_HEADER)
}

static CONFINED: HeaderValue = HeaderValue::from_static("sandbox; default-src 'none'; frame-ancestors 'none'");

/// Whether no browser takes the body for anything but JSON or events. Of several types it would take the last (Fetch,
/// "extract a MIME type").
fn is_data(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else {
        return false;
    };
    let Some(text) = only.to_str().ok().filter(|text| !text.contains(',')) else {
        return false;
    };
    let media = text.split(';').next().unwrap_or_default().trim();
    ["application/json", "text/event-stream"]
        .iter()
        .any(|data| media.eq_ignore_ascii_case(data))
}

/// Response headers that aren't for the caller.
fn stays_here(name: &HeaderName) -> bool {
    match name.as_str() {
        "connection" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection" => true,
        "proxy-authenticate" | "www-authenticate" | "set-cookie" | "set-cookie2" => true,
        "x-request-id" | "alt-svc" => true,
        // Said for a whole origin, or sent on from it: an error report holds the address, and that a login's code.
        "clear-site-data" | "strict-transport-security" | "refresh" | "service-worker-allowed" => true,
        "nel" | "report-to" | "reporting-endpoints" => true,
        // Orders to a proxy before us: nginx answers with a file or a place of its own.
        "x-accel-redirect" | "x-sendfile" => true,
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
            ("x-accel-redirect", "/internal/"),
            ("x-sendfile", "/etc/passwd"),
        ]);
        let session = inbound(&mut reply);
        assert_eq!(session.as_ref().map(HeaderValue::as_bytes), Some(&b"theirs"[..]));
        assert_eq!(names(&reply), ["content-type"]);
    }
    #[test]
    fn nothing_of_the_upstreams_is_a_page_of_our_origin_or_speaks_for_it() {
        const CONFINED: &str = "sandbox; default-src 'none'; frame-ancestors 'none'";
        for (types, confined) in [
            (&["application/json"][..], false),
            (&["application/json; charset=utf-8"], false),
            (&["Text/Event-Stream"], false),
            (&["text/html"], true),
            (&["image/svg+xml"], true),
            (&[], true),
            (&["application/json", "text/html"], true),
            (&["application/json;a=,text/html"], true),
            (&["application/json\u{e9}"], true),
        ] {
            let types: Vec<_> = types.iter().map(|media| ("content-type", *media)).collect();
            let mut reply = headers(&types);
            inbound(&mut reply);
            let policy = reply.get(CONTENT_SECURITY_POLICY).map(HeaderValue::as_bytes);
            assert_eq!(policy, confined.then_some(CONFINED.as_bytes()), "{types:?}");
            assert_eq!(reply.contains_key(X_CONTENT_TYPE_OPTIONS), confined, "{types:?}");
        }
        let mut reply = headers(&[
            ("content-type", "text/html"),
            ("content-security-policy", "script-src 'unsafe-inline'"),
            ("clear-site-data", "\"cookies\""),
            ("strict-transport-security", "max-age=1"),
            ("refresh", "0;url=https://elsewhere.example"),
            ("service-worker-allowed", "/"),
            (
                "nel",
                "{\"report_to\": \"x\", \"max_age\": 1, \"success_fraction\": 1.0}",
            ),
            ("report-to", "{}"),
            ("reporting-endpoints", "x=\"https://elsewhere.example\""),
        ]);
        inbound(&mut reply);
        let kept = ["content-security-policy", "content-type", "x-content-type-options"];
        assert_eq!(names(&reply), kept);
        let policies = reply.get_all(CONTENT_SECURITY_POLICY).iter();
        assert_eq!(
            policies.map(HeaderValue::as_bytes).next_back(),
            Some(CONFINED.as_bytes())
        );
    }
}
