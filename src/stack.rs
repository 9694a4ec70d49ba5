//! The layers of a request, in the order it meets them. Nothing else stacks layers.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

use crate::authn::{Authenticator, AuthnCheck};
use crate::call::Intake;
use crate::clock::Clock;
use crate::config::{ListenLimits, Network};
use crate::connect::ConnectLayer;
use crate::credential::CredentialCheck;
use crate::edge::CheckLayer;
use crate::edge::access::{AccessLayer, Front};
use crate::edge::forwarded::ForwardedCheck;
use crate::edge::guard::{HostCheck, OriginLayer};
use crate::edge::rescue::RescueLayer;
use crate::limit::{LimitCheck, Limits, OverloadLayer};
use crate::metadata::WellKnownLayer;
use crate::policy::PolicyCheck;
use crate::reply::{AuditCheck, Forward, Shared};
use crate::rights::Rights;
use crate::route::{Route, Router};
use crate::session::{Sealer, SessionCheck, Streams};
use crate::telemetry::{Audit, Metrics};

/// What the layers are made of.
pub struct Parts {
    pub metrics: Arc<Metrics>,
    pub audit: Audit,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<Network>,
    /// Lower case, without a port; besides those that routes name.
    pub hosts: Vec<String>,
    pub origins: Vec<String>,
    pub well_known: WellKnownLayer,
    pub pages: ConnectLayer,
    pub routes: Vec<Arc<Route>>,
    pub authenticator: Arc<Authenticator>,
    pub sealer: Arc<Sealer>,
    pub streams: Arc<Streams>,
    pub rights: Arc<Rights>,
    pub clock: Clock,
    pub limits: Arc<Limits>,
    pub listen_limits: ListenLimits,
    /// Told to stop: standing streams end, calls finish.
    pub closing: CancellationToken,
}

/// Stacks the layers.
pub fn stack(parts: Parts) -> Arc<dyn Front> {
    let Parts {
        metrics,
        audit,
        trusted_proxies,
        hosts,
        origins,
        well_known,
        pages,
        routes,
        authenticator,
        sealer,
        streams,
        rights,
        clock,
        limits,
        listen_limits,
        closing,
    } = parts;
    let named: Vec<Arc<str>> = routes.iter().filter_map(|route| route.config.host.clone()).collect();
    let front = ServiceBuilder::new()
        // Outermost, so that whatever happens has a request id, a line in the log and a count.
        .layer(AccessLayer::new(metrics.clone()))
        // Every failure below ends here; above it there are only responses.
        .layer(RescueLayer::new(audit.clone()))
        // What is too much is refused before anything is spent on it.
        .layer(OverloadLayer::new(
            metrics,
            limits.on_their_way.clone(),
            listen_limits.requests,
        ))
        // Whom the proxies before us speak for, so that everything below knows the client and not the last hop.
        .layer(CheckLayer::new(ForwardedCheck::new(trusted_proxies)))
        // A request for somebody else's host is not ours to answer, not even with public documents.
        .layer(CheckLayer::new(HostCheck::new(hosts, named)))
        // Clients read these to learn how to authenticate, and browsers from any page: before Origin and bearer.
        .layer(well_known)
        // People's browsers, with cookies instead of bearers and rules of their own about origins.
        .layer(pages)
        // Preflights carry no token, so they are answered before anyone is asked for one.
        .layer(OriginLayer::new(origins))
        // Everything from here on is a route's to decide.
        .layer(CheckLayer::new(Router::new(routes)))
        // Nothing of the body is read for a stranger.
        .layer(CheckLayer::new(AuthnCheck {
            authenticator,
            sealer: sealer.clone(),
            streams: streams.clone(),
            clock: clock.clone(),
        }))
        // The message is read once, bounded and strictly.
        .layer(CheckLayer::new(Intake {
            body_timeout: listen_limits.body_timeout,
        }))
        // A session is only as good as the principal it was sealed for.
        .layer(CheckLayer::new(SessionCheck { sealer: sealer.clone() }))
        // After the envelope, so that a refusal carries the request's id.
        .layer(CheckLayer::new(LimitCheck {
            limits,
            streams: listen_limits.streams,
            streams_per_principal: listen_limits.streams_per_principal,
        }))
        // Makes the permit that everything below demands.
        .layer(CheckLayer::new(PolicyCheck { clock: clock.clone() }))
        // A decision that can't be audited isn't carried out.
        .layer(CheckLayer::new(AuditCheck {
            audit,
            sealer: sealer.clone(),
        }))
        // One credential leaves, and only with a permit.
        .layer(CheckLayer::new(CredentialCheck))
        .service(Forward::new(Shared {
            sealer,
            streams,
            rights,
            clock,
            closing,
        }));
    Arc::new(front)
}
