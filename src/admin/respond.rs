//! One request of the admin port, one answer.

use std::net::SocketAddr;

use aws_lc_rs::{constant_time, digest};
use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;

use super::status::Readiness;
use super::{Shared, host};

type Answer = Response<Full<Bytes>>;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// The Prometheus text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn respond<B>(shared: &Shared, local: SocketAddr, request: &Request<B>) -> Answer {
    if !host_is_ours(shared, local, request) {
        return text(
            StatusCode::MISDIRECTED_REQUEST,
            "this port answers to its own address and to loopback names\n",
        );
    }
    let handler: fn(&Shared, &HeaderMap) -> Answer = match request.uri().path() {
        "/metrics" => |shared, _| answer(StatusCode::OK, EXPOSITION, shared.state.metrics.render()),
        "/healthz" => |_, _| text(StatusCode::OK, "ok\n"),
        "/readyz" => |shared, _| ready(shared),
        "/status" => status,
        _ => {
            return text(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz, /status\n");
        }
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    handler(shared, request.headers())
}

/// RFC 9112 section 3.2: exactly one `Host`, and a target in absolute form must agree with the rule as well.
fn host_is_ours<B>(shared: &Shared, local: SocketAddr, request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(only), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(authority) = Authority::try_from(only.as_bytes()) else {
        return false;
    };
    let ours = |authority: &Authority| host::is_ours(authority, shared.bound, local);
    ours(&authority) && request.uri().authority().is_none_or(ours)
}

fn ready(shared: &Shared) -> Answer {
    let report = (shared.state.status)();
    let status = if report.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &Readiness::from(&report))
}

fn status(shared: &Shared, headers: &HeaderMap) -> Answer {
    let Some(token) = &shared.token else {
        if shared.bound.ip().to_canonical().is_loopback() {
            return json(StatusCode::OK, &(shared.state.status)());
        }
        return text(
            StatusCode::FORBIDDEN,
            "off loopback /status needs admin.token in the configuration\n",
        );
    };
    if !bears(headers, token.expose()) {
        let mut refusal = text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
        refusal
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return refusal;
    }
    json(StatusCode::OK, &(shared.state.status)())
}

/// Digests are compared, in constant time, so that neither the token's text nor its length shows.
fn bears(headers: &HeaderMap, token: &str) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (values.next(), values.next()) else {
        return false;
    };
    let Some((scheme, given)) = only.as_bytes().split_at_checked("Bearer ".len()) else {
        return false;
    };
    let digest = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
    scheme.eq_ignore_ascii_case(b"Bearer ")
        && constant_time::verify_slices_are_equal(digest(given).as_ref(), digest(token.as_bytes()).as_ref()).is_ok()
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    let body = serde_json::to_string_pretty(body).expect("reports have text keys and finite numbers");
    answer(status, JSON, body + "\n")
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    answer(status, TEXT, body)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{AdminState, ConfigStatus, RouteStatus, StatusReport};
    use super::*;
    use crate::secret::Secret;
    use crate::telemetry::Metrics;
    use http_body_util::BodyExt;

    type Headers<'a> = &'a [(&'a str, &'a str)];

    fn shared(bound: &str, token: Option<&str>, ready: bool) -> Shared {
        let report = StatusReport {
            version: "1",
            uptime: 3,
            config: ConfigStatus::default(),
            routes: vec![RouteStatus {
                processes: None,
                name: "notes".into(),
                path: "/notes/mcp".to_owned(),
                ready,
                identities: vec![],
                endpoints: vec![],
                credential: crate::credential::CredentialHealth {
                    kind: "none",
                    state: None,
                    last_error: None,
                    age: None,
                    remaining: None,
                    connections: None,
                },
                sessions: 0,
                streams: 0,
            }],
        };
        let state = AdminState {
            metrics: Metrics::new(),
            status: Arc::new(move || report.clone()),
        };
        Shared {
            state,
            bound: bound.parse().unwrap(),
            token: token.map(Secret::new),
        }
    }

    fn ask(shared: &Shared, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        respond(shared, shared.bound, &request.body(()).unwrap())
    }

    async fn body(answer: Answer) -> String {
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn paths_methods_and_hosts() {
        let loopback = shared("127.0.0.1:9464", None, true);
        let ours = ("host", "127.0.0.1:9464");
        let cases: &[(&str, &str, Headers<'_>, u16)] = &[
            ("GET", "/metrics", &[ours], 200),
            ("HEAD", "/metrics", &[ours], 200),
            ("GET", "/healthz", &[("host", "localhost:9464")], 200),
            ("GET", "/readyz", &[ours], 200),
            ("GET", "/status", &[ours], 200),
            ("GET", "/", &[ours], 404),
            ("GET", "/metrics/", &[ours], 404),
            ("POST", "/metrics", &[ours], 405),
            ("OPTIONS", "/status", &[ours], 405),
            ("GET", "/metrics", &[], 421),
            ("GET", "/metrics", &[("host", "evil.example")], 421),
            ("GET", "/metrics", &[ours, ("host", "evil.example")], 421),
            ("GET", "/metrics", &[ours, ours], 421),
            ("GET", "http://evil.example/metrics", &[ours], 421),
            ("GET", "http://localhost:9464/metrics", &[ours], 200),
        ];
        for (method, path, headers, status) in cases {
            let answer = ask(&loopback, method, path, headers);
            assert_eq!(answer.status().as_u16(), *status, "{method} {path} {headers:?}");
            assert_eq!(answer.headers().contains_key(ALLOW), *status == 405);
        }
    }

    #[test]
    fn status_needs_the_token_off_loopback_or_when_there_is_one() {
        let off = ("host", "10.0.0.5:9464");
        let on = ("host", "127.0.0.1:9464");
        let cases: &[(&str, Option<&str>, Headers<'_>, u16)] = &[
            ("127.0.0.1:9464", None, &[on], 200),
            ("127.0.0.1:9464", Some("hunter2"), &[on], 401),
            (
                "127.0.0.1:9464",
                Some("hunter2"),
                &[on, ("authorization", "Bearer hunter2")],
                200,
            ),
            (
                "127.0.0.1:9464",
                Some("hunter2"),
                &[on, ("authorization", "bearer hunter2")],
                200,
            ),
            (
                "127.0.0.1:9464",
                Some("hunter2"),
                &[on, ("authorization", "Bearer hunter")],
                401,
            ),
            (
                "127.0.0.1:9464",
                Some("hunter2"),
                &[on, ("authorization", "Bearer hunter22")],
                401,
            ),
            (
                "127.0.0.1:9464",
                Some("hunter2"),
                &[on, ("authorization", "Basic hunter2")],
                401,
            ),
            (
                "127.0.0.1:9464",
                Some("hunter2"),
                &[on, ("authorization", "Bearer")],
                401,
            ),
            (
                "127.0.0.1:9464",
                Some("hunter2"),
                &[on, ("authorization", "Bearer hunter2"), ("authorization", "Bearer x")],
                401,
            ),
            ("10.0.0.5:9464", None, &[off], 403),
            ("10.0.0.5:9464", None, &[off, ("authorization", "Bearer ")], 403),
            (
                "10.0.0.5:9464",
                Some("hunter2"),
                &[off, ("authorization", "Bearer hunter2")],
                200,
            ),
        ];
        for (bound, token, headers, status) in cases {
            let answer = ask(&shared(bound, *token, true), "GET", "/status", headers);
            assert_eq!(answer.status().as_u16(), *status, "{bound} {token:?} {headers:?}");
        }
    }

    #[tokio::test]
    async fn readiness_lists_the_routes_and_needs_one() {
        let host = [("host", "localhost")];
        let ready = ask(&shared("127.0.0.1:1", Some("t"), true), "GET", "/readyz", &host);
        assert_eq!(ready.status(), 200);
        let value: serde_json::Value = serde_json::from_str(&body(ready).await).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"ready": true, "routes": [{"name": "notes", "ready": true}]})
        );
        let not = ask(&shared("127.0.0.1:1", None, false), "GET", "/readyz", &host);
        assert_eq!(not.status(), 503);
        assert!(body(not).await.contains("notes"));
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text() {
        let answer = ask(
            &shared("127.0.0.1:1", None, true),
            "GET",
            "/metrics",
            &[("host", "localhost")],
        );
        assert_eq!(answer.headers()[CONTENT_TYPE], EXPOSITION);
        assert!(body(answer).await.contains("portcullis_build_info"));
    }
}
