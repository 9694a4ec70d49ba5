//! Why a request isn't served: one variant a failure, with the data its answer needs, and no status.
//!
//! The variants are grouped by who is to blame; [`super::rescue`] decides what the client gets for each.

use bytes::Bytes;

use crate::authn::AuthnError;
use crate::bridge::map::MapError;
use crate::connect::refusal::ConnectError;
use crate::credential::CredentialError;
use crate::limit::Limited;
use crate::mcp::{AgreementError, EnvelopeError, Id};
use crate::metadata::MirrorError;
use crate::policy::Decision;
use crate::upstream::UpstreamError;

/// A refusal or failure on a request's way.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    // The client's: addressing.
    #[error("this host is not served here; add it to listen.allowed_hosts if it should be")]
    Misdirected,
    #[error("this browser origin is not allowed; add it to listen.allowed_origins if it should be")]
    ForbiddenOrigin,
    #[error("no MCP endpoint at this path")]
    NotFound,
    #[error("this endpoint takes {allow}")]
    MethodNotAllowed { allow: &'static str },
    #[error("the {0} header came more than once")]
    RepeatedHeader(&'static str),

    #[error("the {0} header of a trusted proxy can't be read, or disagrees with another")]
    MalformedForwarded(&'static str),

    // The client's: identity.
    #[error(transparent)]
    Authn(#[from] AuthnError),

    // The client's: the message.
    #[error("the body must be application/json without a content-encoding")]
    UnsupportedMediaType,
    #[error("the body is over this route's limit of {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the body ended early")]
    BodyBroken,
    #[error("{0}")]
    Envelope(EnvelopeError),
    #[error("{0}")]
    Agreement(AgreementError),

    // The client's: what can't be carried to a server of another era.
    #[error("revision {0} of MCP is not spoken here; use one of data.supported")]
    UnsupportedVersion(Box<str>),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("the server asks for what the client has not declared; see data.requiredCapabilities")]
    MissingCapability {
        /// Raw JSON object.
        required: Bytes,
    },
    #[error("this requestState is not, or no longer, good for this request; send the request again without it")]
    RequestState,
    #[error("too many calls of yours wait for input already; answer those first, or wait five minutes")]
    TooManyParked,

    // The client's: the session.
    #[error("unknown session; initialize again")]
    UnknownSession,
    #[error("this stream belongs to somebody else")]
    ForeignSession,

    // The client's, or everybody's: too much.
    #[error(transparent)]
    Limited(#[from] Limited),
    #[error("the gateway has more requests than it can answer in time; try again in a second")]
    Overloaded,

    // Policy's.
    #[error("{}", .0.message())]
    Forbidden(Refused),
    #[error(
        "{found} tools are permitted, but at most {max} may be listed here; ask for a narrower role or a higher tools.max"
    )]
    OverBudget { found: usize, max: usize },
    #[error("this list is answered as one page; the cursor is not valid here")]
    InvalidCursor,
    #[error("a tools/list with this id, or several others, are not answered yet on this stream; wait for them")]
    ListUnderWay,

    // The issuer's.
    #[error(transparent)]
    Mirror(#[from] MirrorError),

    /// On the users' pages: a browser reads the answer.
    #[error("{error}")]
    Connect {
        /// What the audit log calls what was asked for.
        action: &'static str,
        error: Box<ConnectError>,
    },

    // The gateway's and the upstream's.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("the upstream refused the gateway's credential; check the route's credential setting")]
    CredentialRefused,
    #[error(transparent)]
    Upstream(UpstreamError),
    #[error("the upstream's answer can't be used: {0}")]
    UpstreamNonsense(&'static str),
    #[error("the audit log can't be written; requests are refused until it can")]
    AuditStalled,
    #[error("something broke inside the gateway; the log has the details under this request id")]
    Panic,
}

impl From<UpstreamError> for Rejection {
    fn from(error: UpstreamError) -> Self {
        match error {
            // Whether it failed before the request or after a first try of it is the same to the client.
            UpstreamError::Credential(error) => Self::Credential(error),
            error => Self::Upstream(error),
        }
    }
}

/// Members of a POST that policy refused, all of them.
#[derive(Debug)]
pub struct Refused {
    /// One a refused member, in order.
    pub members: Vec<(Option<Id>, Decision)>,
}

impl Refused {
    /// The first decision: the one a status is picked for.
    pub fn first(&self) -> &Decision {
        &self.members.first().expect("a refusal has a member").1
    }

    fn message(&self) -> String {
        self.first().to_string()
    }
}
