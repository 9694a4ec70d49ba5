//! Where clients learn who issues tokens: RFC 9728 documents, served before authentication (r08).
//!
//! 1. A route's document is at `/.well-known/oauth-protected-resource{path}`, and also at the root when it is the only
//!    route that has one.
//! 2. Every URL in it is built from the public URL, never from a request: a hop that ends TLS can't turn https into
//!    http (r05).
//! 3. It names the real issuers, in the order of the route's identities, and never the gateway. A route without an
//!    issuer has no document.
//! 4. Any origin may read it, since it says nothing that a 401 doesn't.
//! 5. Clients that look for the issuer's metadata here find what the issuer says of itself, where exactly
//!    one issuer can be meant: the route's only one, and at the root the only one of all routes.

mod mirror;
mod protected_resource;
mod well_known;

pub use mirror::{MirrorError, Mirrors};
pub use protected_resource::{ProtectedResource, origin, resource_metadata_url, resource_url, well_known_path};
pub use well_known::{WellKnown, WellKnownLayer, WellKnownService};
