//! The document about one route (RFC 9728 section 2) and where it stands (section 3.1).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::authn::dpop;
use crate::config::Dpop;

const PREFIX: &str = "/.well-known/oauth-protected-resource";

/// What a client is told about a route.
#[derive(Clone, Copy, Debug)]
pub struct ProtectedResource<'a> {
    /// Scheme and authority, without a trailing slash.
    pub public_url: &'a str,
    /// The route's own host, instead of the one in `public_url`.
    pub host: Option<&'a Arc<str>>,
    /// The route's path: begins with `/`.
    pub path: &'a str,
    /// `iss` values in the order of the route's identities.
    pub issuers: &'a [String],
    /// Scopes worth asking for.
    pub scopes: &'a [String],
    /// For people.
    pub name: &'a str,
    /// What is asked about DPoP; `None` says nothing of it.
    pub dpop: Option<Dpop>,
    /// Whether clients can show certificates that tokens may be bound to.
    pub certificates: bool,
}

impl ProtectedResource<'_> {
    /// The document, unless nobody issues tokens for this route.
    pub fn document(&self) -> Option<Bytes> {
        #[derive(Serialize)]
        struct Document<'a> {
            resource: String,
            authorization_servers: Vec<&'a str>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            scopes_supported: Vec<&'a str>,
            bearer_methods_supported: [&'static str; 1],
            resource_name: &'a str,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            dpop_signing_alg_values_supported: &'static [&'static str],
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            dpop_bound_access_tokens_required: bool,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            tls_client_certificate_bound_access_tokens: bool,
        }
        let authorization_servers = distinct(self.issuers);
        if authorization_servers.is_empty() {
            return None;
        }
        let document = Document {
            resource: resource_url(&origin(self.public_url, self.host), self.path),
            authorization_servers,
            scopes_supported: distinct(self.scopes),
            bearer_methods_supported: ["header"],
            resource_name: self.name,
            dpop_signing_alg_values_supported: if self.dpop.is_some() { &dpop::ALGORITHMS } else { &[] },
            dpop_bound_access_tokens_required: matches!(self.dpop, Some(Dpop::Required | Dpop::Nonce)),
            tls_client_certificate_bound_access_tokens: self.certificates,
        };
        let json = serde_json::to_vec(&document).expect("strings serialise");
        Some(json.into())
    }
}

/// `public_url`, on the route's own host when it has one: scheme and port stay.
pub fn origin<'a>(public_url: &'a str, host: Option<&Arc<str>>) -> Cow<'a, str> {
    let Some(host) = host else {
        return public_url.into();
    };
    let mut url = url::Url::parse(public_url).expect("public_url was parsed when it was read");
    url.set_host(Some(host)).expect("the host was parsed when it was read");
    url.origin().ascii_serialization().into()
}

/// The route's resource identifier: what tokens must be for.
pub fn resource_url(public_url: &str, path: &str) -> String {
    format!("{}{path}", public_url.trim_end_matches('/'))
}

/// The path of a route's document, without a trailing slash.
pub fn well_known_path(path: &str) -> String {
    format!("{PREFIX}{}", path.trim_end_matches('/'))
}

/// The URL of a route's document, for challenges.
pub fn resource_metadata_url(public_url: &str, path: &str) -> String {
    resource_url(public_url, &well_known_path(path))
}

/// The items that say something, once each.
pub(super) fn distinct(items: &[String]) -> Vec<&str> {
    let mut distinct: Vec<&str> = Vec::with_capacity(items.len());
    for item in items {
        if !item.is_empty() && !distinct.contains(&item.as_str()) {
            distinct.push(item);
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn r05_the_document_is_built_from_the_public_url() {
        let route = ProtectedResource {
            public_url: "https://mcp.example.com",
            host: None,
            path: "/notes/mcp",
            issuers: &strings(&[
                "https://b.example.com/realms/corp",
                "https://a.example.com",
                "https://a.example.com",
            ]),
            scopes: &strings(&["mcp.use", "notes.read", "mcp.use"]),
            name: "notes",
            dpop: None,
            certificates: false,
        };
        let document: Value = serde_json::from_slice(&route.document().unwrap()).unwrap();
        assert_eq!(
            document,
            json!({
                "resource": "https://mcp.example.com/notes/mcp",
                "authorization_servers": ["https://b.example.com/realms/corp", "https://a.example.com"],
                "scopes_supported": ["mcp.use", "notes.read"],
                "bearer_methods_supported": ["header"],
                "resource_name": "notes",
            })
        );
    }

    #[test]
    fn empty_lists_are_omitted_and_no_issuer_means_no_document() {
        let mut route = ProtectedResource {
            public_url: "https://mcp.example.com",
            host: None,
            path: "/",
            issuers: &strings(&["https://a.example.com"]),
            scopes: &[],
            name: "all",
            dpop: None,
            certificates: false,
        };
        let document: Value = serde_json::from_slice(&route.document().unwrap()).unwrap();
        assert_eq!(document.get("scopes_supported"), None);
        assert_eq!(document["resource"], "https://mcp.example.com/");
        route.issuers = &[];
        assert_eq!(route.document(), None);
    }

    #[test]
    fn a_routes_host_replaces_only_the_host() {
        for (public, host, expected) in [
            ("https://mcp.example.com", None, "https://mcp.example.com"),
            (
                "https://mcp.example.com",
                Some("wiki.example.com"),
                "https://wiki.example.com",
            ),
            (
                "https://mcp.example.com:8443",
                Some("wiki.example.com"),
                "https://wiki.example.com:8443",
            ),
            (
                "http://127.0.0.1:8080",
                Some("wiki.localhost"),
                "http://wiki.localhost:8080",
            ),
        ] {
            assert_eq!(origin(public, host.map(Arc::from).as_ref()), expected);
        }
    }

    #[test]
    fn the_well_known_part_is_inserted_before_the_path() {
        assert_eq!(well_known_path("/"), "/.well-known/oauth-protected-resource");
        assert_eq!(
            well_known_path("/notes/mcp"),
            "/.well-known/oauth-protected-resource/notes/mcp"
        );
        assert_eq!(
            resource_metadata_url("https://mcp.example.com", "/notes/mcp"),
            "https://mcp.example.com/.well-known/oauth-protected-resource/notes/mcp"
        );
        assert_eq!(
            resource_metadata_url("https://mcp.example.com", "/"),
            "https://mcp.example.com/.well-known/oauth-protected-resource"
        );
    }
}
