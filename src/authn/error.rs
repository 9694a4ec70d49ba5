//! Why a caller isn't known: the token's fault, or the issuer's.
//!
//! Two audiences read a fault. The client reads [`TokenFault::description`], which says no more than it needs to put the
//! matter right; the operator reads [`TokenFault::reason`], a metric label out of a small fixed set.

use std::path::PathBuf;
use std::sync::Arc;

use super::dpop::ProofFault;
use crate::clock::UnixSeconds;

/// Why a request has no principal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    /// No bearer token, or an `Authorization` header that isn't one (RFC 6750 section 2.1).
    #[error("missing or malformed Authorization header")]
    MissingToken { malformed: bool },
    /// A token that doesn't prove who is calling here.
    #[error("{}", .reason.description())]
    InvalidToken { reason: TokenFault },
    /// The issuer's keys can't be had, so the token can be neither believed nor blamed.
    #[error("the keys of identity {identity} can't be fetched; try again later")]
    KeysUnavailable { identity: Arc<str> },
    /// The issuer can't be asked about the token, or says nothing that makes sense: neither is the token's fault.
    #[error("the issuer of identity {identity} can't be asked about the token; try again later")]
    IssuerUnavailable { identity: Arc<str> },
    /// The token is bound to a key, and the request's proof isn't good for it (RFC 9449 section 7.1).
    #[error("{}", .reason.description())]
    InvalidProof {
        reason: ProofFault,
        /// A fresh one, when it is the nonce that is lacking.
        nonce: Option<String>,
    },
    /// The route knows callers by their certificates alone, and the connection came without one.
    #[error("this endpoint is for callers with a client certificate, and the connection came without one")]
    NoCertificate,
    /// The connection's certificate doesn't say who is calling here.
    #[error("{}", .reason.description())]
    InvalidCertificate { reason: CertificateFault },
    /// More proofs came lately than can be remembered; letting one pass unremembered would let it pass twice.
    #[error("too many proofs at once; try again later")]
    Busy,
}

impl AuthnError {
    /// The token ended at `expired`, as far as that is known.
    pub fn expired(expired: Option<UnixSeconds>) -> Self {
        TokenFault::Expired(expired).into()
    }

    /// The bounded metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissingToken { malformed: false } => "missing",
            Self::MissingToken { malformed: true } => "malformed_header",
            Self::InvalidToken { reason } => reason.reason(),
            Self::KeysUnavailable { .. } => "keys_unavailable",
            Self::IssuerUnavailable { .. } => "issuer_unavailable",
            Self::InvalidProof { reason, .. } => reason.reason(),
            Self::NoCertificate => "no_certificate",
            Self::InvalidCertificate { reason } => reason.reason(),
            Self::Busy => "busy",
        }
    }
}

/// What is wrong with a client's certificate, which was good when its connection began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// Its names can't be read, or are too many.
    Unreadable,
    /// It has no name of the kind that the identity goes by, or several.
    Subject,
    /// Since this was its last second.
    Expired(UnixSeconds),
    /// It doesn't chain to today's `listen.tls.client_ca`.
    Untrusted,
}

impl CertificateFault {
    /// The error's message.
    pub fn description(self) -> String {
        match self {
            Self::Unreadable => "the names in the client certificate can't be read".to_owned(),
            Self::Subject => "the client certificate has no name to go by here, or several".to_owned(),
            Self::Expired(end) => match rfc3339(end) {
                Some(time) => format!("the client certificate ended at {time}"),
                None => "the client certificate has ended".to_owned(),
            },
            Self::Untrusted => "the client certificate is not trusted any more".to_owned(),
        }
    }

    /// The bounded metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unreadable => "certificate_unreadable",
            Self::Subject => "certificate_subject",
            Self::Expired(_) => "certificate_expired",
            Self::Untrusted => "certificate_untrusted",
        }
    }
}

impl From<CertificateFault> for AuthnError {
    fn from(reason: CertificateFault) -> Self {
        Self::InvalidCertificate { reason }
    }
}

impl From<TokenFault> for AuthnError {
    fn from(reason: TokenFault) -> Self {
        Self::InvalidToken { reason }
    }
}

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Not three base64url parts of JSON objects, or a key stands twice in one of them.
    Malformed,
    /// `alg` is none, unknown, not this identity's, or not what the key is for.
    Algorithm,
    /// `typ` says this is something else than an access token (RFC 8725 section 3.11).
    Type,
    /// `crit` names an extension, and none is understood here (RFC 7515 section 4.1.11).
    Critical,
    /// Bound by `cnf` to a key or certificate that the request doesn't show, or by a member that isn't understood
    /// (RFC 7800).
    Bound,
    /// Presented as bound to a key, or needing to be, and isn't.
    Unbound,
    /// `iss` is none of the route's identities.
    Issuer,
    /// The issuer has keys, but none by this `kid`, or none for this `alg`.
    UnknownKey,
    /// The issuer publishes no usable key at all.
    EmptyKeySet,
    Signature,
    /// `aud` is missing or names somebody else.
    Audience,
    /// `exp`, where it can be said.
    Expired(Option<UnixSeconds>),
    /// No usable `exp`, or an `nbf` or `iat` that isn't a time.
    Times,
    /// `nbf` or `iat` is still to come.
    NotYetValid,
    /// The mapped subject is missing or empty.
    Subject,
    /// A claim that the identity requires is missing or says something else.
    Required,
    /// The issuer says that it isn't active (RFC 7662 section 2.2): revoked, over, or never issued.
    Inactive,
    /// No API key of this route's identities.
    UnknownApiKey,
    /// An ID token that answers another sign-in.
    Nonce,
}

impl TokenFault {
    /// The `error_description` of the challenge (RFC 6750 section 3).
    pub fn description(&self) -> String {
        match self {
            Self::Expired(expired) => match expired.and_then(rfc3339) {
                Some(time) => format!("token expired at {time}"),
                None => "token expired".to_owned(),
            },
            Self::Issuer => "invalid issuer".to_owned(),
            Self::Audience => "invalid audience".to_owned(),
            _ => "invalid token".to_owned(),
        }
    }

    /// The bounded metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::Critical => "critical_header",
            Self::Bound => "bound_token",
            Self::Unbound => "unbound_token",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown_key",
            Self::EmptyKeySet => "empty_key_set",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::Expired(_) => "expired",
            Self::Times => "times",
            Self::NotYetValid => "not_yet_valid",
            Self::Subject => "subject",
            Self::Required => "required_claim",
            Self::Inactive => "inactive",
            Self::UnknownApiKey => "unknown_api_key",
            Self::Nonce => "nonce",
        }
    }
}

/// For people.
pub(super) fn rfc3339(time: UnixSeconds) -> Option<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(time).ok()?).ok()?;
    Some(time.to_string())
}

/// Why an [`super::Authenticator`] can't be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("identity {identity}: can't read {path}: {source}", path = .path.display())]
    File {
        identity: Arc<str>,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("identity {identity}: {path} is no JSON Web Key Set: {reason}", path = .path.display())]
    KeySet {
        identity: Arc<str>,
        path: PathBuf,
        reason: String,
    },
    #[error("identity {identity}: {path} holds no usable CA certificate", path = .path.display())]
    Authority { identity: Arc<str>, path: PathBuf },
    #[error("identity {identity}: {url} can't be an issuer's address: {reason}")]
    Address {
        identity: Arc<str>,
        url: String,
        reason: &'static str,
    },
    #[error("identity {identity}: can't build a client: {reason}")]
    Client { identity: Arc<str>, reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_messages_are_what_clients_are_used_to() {
        let described = |fault: TokenFault| AuthnError::from(fault).to_string();
        assert_eq!(
            described(TokenFault::Expired(Some(0))),
            "token expired at 1970-01-01T00:00:00Z"
        );
        assert_eq!(described(TokenFault::Expired(None)), "token expired");
        assert_eq!(described(TokenFault::Expired(Some(u64::MAX))), "token expired");
        assert_eq!(described(TokenFault::Issuer), "invalid issuer");
        assert_eq!(described(TokenFault::Audience), "invalid audience");
        assert_eq!(described(TokenFault::Signature), "invalid token");
        assert_eq!(
            AuthnError::MissingToken { malformed: false }.to_string(),
            "missing or malformed Authorization header"
        );
    }

    #[test]
    fn r43_three_reasons_for_three_troubles() {
        let unreachable = AuthnError::KeysUnavailable {
            identity: "corp".into(),
        };
        let empty = AuthnError::from(TokenFault::EmptyKeySet);
        let bad = AuthnError::from(TokenFault::Signature);
        assert_eq!(
            [unreachable.reason(), empty.reason(), bad.reason()],
            ["keys_unavailable", "empty_key_set", "signature"]
        );
    }
}
