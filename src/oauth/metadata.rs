//! Where an issuer keeps its keys, or is asked about tokens: RFC 8414 first, OpenID Connect discovery after it.
//!
//! The addresses are tried in the order MCP gives ("Authorization Server Metadata Discovery"), and a document counts
//! only when its `issuer` is byte for byte the configured one (RFC 8414 section 3.3). Who wants the document itself
//! says which `Form` comes first.

use serde_json::Value;
use url::Url;

use super::fetch::{FetchError, Fetcher};
use crate::authn::strict_json;

/// Why an issuer's address for something isn't known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    #[error("the issuer is no URL that metadata could be found at")]
    Issuer,
    #[error("no metadata at {url}: {source}")]
    Fetch { url: Url, source: FetchError },
    #[error("{url} is no metadata document with an issuer and {key}")]
    Document { url: Url, key: &'static str },
    #[error("{0} is no JSON object with an issuer, or a key stands twice in it")]
    Unreadable(Url),
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
    /// How much it tells the operator: a wrong document more than a missing one, a dead server more than a refusal.
    fn weight(&self) -> u8 {
        match self {
            Self::Issuer => 0,
            Self::Fetch { source, .. } if source.is_absence() => 1,
            Self::Fetch { .. } => 2,
            Self::Document { .. } | Self::Unreadable(_) => 3,
            Self::OtherIssuer(_) | Self::Address { .. } => 4,
        }
    }
}

/// The two kinds of metadata documents. Their members are one registry (RFC 8414 section 7.1), so that most clients can
/// use either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// RFC 8414.
    OAuth,
    /// OpenID Connect Discovery.
    OpenId,
}

/// Finds the address that the issuer's metadata has under `key`.
pub(crate) async fn endpoint(fetcher: &Fetcher, issuer: &str, key: &'static str) -> Result<Url, DiscoveryError> {
    let found = search(fetcher, metadata_urls(issuer), |url, document| {
        read(fetcher, issuer, key, url, &document)
    });
    found.await
}

/// The issuer's metadata as it stands there: of this form, or, from an issuer that has only the other, of that.
pub(crate) async fn document(fetcher: &Fetcher, issuer: &str, form: Form) -> Result<Vec<u8>, DiscoveryError> {
    let mut urls = metadata_urls(issuer);
    if form == Form::OpenId && !urls.is_empty() {
        urls.rotate_left(1);
    }
    let found = search(fetcher, urls, |url, document| {
        let metadata = strict_json::object(&document);
        match metadata.as_ref().and_then(|metadata| metadata.get("issuer")?.as_str()) {
            None => Err(DiscoveryError::Unreadable(url.clone())),
            Some(found) if found != issuer => Err(DiscoveryError::OtherIssuer(url.clone())),
            Some(_) => Ok(document),
        }
    });
    found.await
}

/// What the first address has that has something; otherwise the failure that tells most.
async fn search<T>(
    fetcher: &Fetcher,
    urls: Vec<Url>,
    read: impl Fn(&Url, Vec<u8>) -> Result<T, DiscoveryError>,
) -> Result<T, DiscoveryError> {
    let mut failure = DiscoveryError::Issuer;
    for url in urls {
        let found = match fetcher.get(&url).await {
            Ok(document) => read(&url, document),
            Err(source) => Err(DiscoveryError::Fetch { url, source }),
        };
        match found {
            Ok(found) => return Ok(found),
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
