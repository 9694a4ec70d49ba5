//! Where an issuer keeps its keys, or is asked about tokens: RFC 8414 first, OpenID Connect discovery after it.
//!
//! The addresses are tried in the order MCP gives ("Authorization Server Metadata Discovery"), and a document counts
//! only when its `issuer` is byte for byte the configured one (RFC 8414 section 3.3).

use serde_json::Value;
use url::Url;

use super::SetupError;
use super::fetch::{FetchError, Fetcher};
use crate::config::Identity;

/// Why an issuer's address for something isn't known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DiscoveryError {
    #[error("the issuer is no URL that metadata could be found at")]
    Issuer,
    #[error("no metadata at {url}: {source}")]
    Fetch { url: Url, source: FetchError },
    #[error("{url} is no metadata document with an issuer and {key}")]
    Document { url: Url, key: &'static str },
    #[error("the metadata at {0} is another issuer's")]
    OtherIssuer(Url),
    #[error("the {key} in {url} can't be used: {reason}")]
    Address {
        url: Url,
        key: &'static str,
        reason: &'static str,
    },
}

impl DiscoveryError {
    /// How much it tells the operator: a wrong document more than a missing one, a dead server more than a 404.
    fn weight(&self) -> u8 {
        match self {
            Self::Issuer => 0,
            Self::Fetch {
                source: FetchError::Status(404),
                ..
            } => 1,
            Self::Fetch { .. } => 2,
            Self::Document { .. } => 3,
            Self::OtherIssuer(_) | Self::Address { .. } => 4,
        }
    }
}

/// The issuer as the URL it must be for anything to be found.
pub(super) fn issuer_url(identity: &Identity) -> Result<Url, SetupError> {
    Url::parse(&identity.issuer).map_err(|_| SetupError::Address {
        identity: identity.name.clone(),
        url: identity.issuer.clone(),
        reason: "it is no URL",
    })
}

/// Finds the address that the issuer's metadata has under `key`.
pub(super) async fn endpoint(fetcher: &Fetcher, issuer: &str, key: &'static str) -> Result<Url, DiscoveryError> {
    let mut failure = DiscoveryError::Issuer;
    for url in metadata_urls(issuer) {
        let found = match fetcher.get(&url).await {
            Ok(document) => read(fetcher, issuer, key, &url, &document),
            Err(source) => Err(DiscoveryError::Fetch { url, source }),
        };
        match found {
            Ok(address) => return Ok(address),
            Err(error) => {
                if error.weight() > failure.weight() {
                    failure = error;
                }
            }
        }
    }
    Err(failure)
}

/// The addresses of an issuer's metadata, best first; none for what is no URL.
fn metadata_urls(issuer: &str) -> Vec<Url> {
    let Ok(base) = Url::parse(issuer) else {
        return Vec::new();
    };
    if base.query().is_some() || base.fragment().is_some() || base.cannot_be_a_base() {
        return Vec::new();
    }
    let path = base.path().trim_end_matches('/').to_owned();
    let at = |path: String| {
        let mut url = base.clone();
        url.set_path(&path);
        url
    };
    let mut urls = vec![
        at(format!("/.well-known/oauth-authorization-server{path}")),
        at(format!("/.well-known/openid-configuration{path}")),
    ];
    if !path.is_empty() {
        urls.push(at(format!("{path}/.well-known/openid-configuration")));
    }
    urls
}

fn read(fetcher: &Fetcher, issuer: &str, key: &'static str, url: &Url, document: &[u8]) -> Result<Url, DiscoveryError> {
    let unusable = || DiscoveryError::Document { url: url.clone(), key };
    let metadata: Value = serde_json::from_slice(document).map_err(|_| unusable())?;
    if metadata["issuer"].as_str().ok_or_else(unusable)? != issuer {
        return Err(DiscoveryError::OtherIssuer(url.clone()));
    }
    let address = metadata[key].as_str().and_then(|address| Url::parse(address).ok());
    let address = address.ok_or_else(unusable)?;
    match fetcher.allowed(&address) {
        Ok(()) => Ok(address),
        Err(reason) => Err(DiscoveryError::Address {
            url: url.clone(),
            key,
            reason,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(issuer: &str) -> Vec<String> {
        metadata_urls(issuer).iter().map(Url::to_string).collect()
    }

    #[test]
    fn the_order_is_that_of_the_specification() {
        assert_eq!(
            urls("https://auth.example.com/tenant1"),
            [
                "https://auth.example.com/.well-known/oauth-authorization-server/tenant1",
                "https://auth.example.com/.well-known/openid-configuration/tenant1",
                "https://auth.example.com/tenant1/.well-known/openid-configuration",
            ]
        );
        for root in ["https://auth.example.com", "https://auth.example.com/"] {
            assert_eq!(
                urls(root),
                [
                    "https://auth.example.com/.well-known/oauth-authorization-server",
                    "https://auth.example.com/.well-known/openid-configuration",
                ]
            );
        }
    }

    #[test]
    fn what_is_no_issuer_has_no_addresses() {
        for issuer in ["", "corp", "https://x/?a=b", "https://x/#a", "mailto:a@b"] {
            assert!(urls(issuer).is_empty(), "{issuer}");
        }
    }
}
