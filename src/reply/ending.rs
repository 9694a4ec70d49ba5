//! The end of a call, counted and audited exactly once.
//!
//! An [`Ending`] travels with whatever will know the outcome: the reply's body, or the HTTP+SSE stream the answer comes
//! over. Dropped unfinished, it was cancelled: the client went away, or the gate took its stream away.

use std::sync::Arc;
use std::time::Duration;

use super::listing::outcome_of_failure;
use crate::call::Form;
use crate::credential::CredentialError;
use crate::edge::{Check, Journey, Rejection};
use crate::policy::{Decision, Permitted};
use crate::session::{Purpose, Sealer};
use crate::telemetry::{Audit, AuditDecision, AuditLine, AuditSlot, Outcome};

/// A call whose decisions are sure to be audited.
pub struct Audited {
    pub permitted: Permitted,
    /// One a permitted message that will be sent; one in all for calls without messages.
    pub endings: Vec<Ending>,
}

/// Takes a place in the audit log for every decision before anything is sent.
pub struct AuditCheck {
    pub audit: Audit,
    /// Arguments are told apart in the audit, but never told: only their HMAC under a subkey of the seal.
    pub sealer: Arc<Sealer>,
}

impl Check<Permitted> for AuditCheck {
    type Passed = Audited;

    async fn check(&self, permitted: Permitted) -> Result<Audited, Rejection> {
        let mut endings = Vec::with_capacity(permitted.decisions.len().max(1));
        let journey = &permitted.call.journey;
        if matches!(permitted.call.form, Form::Get | Form::Delete) {
            let slot = self.reserve().await?;
            endings.push(Ending::new(journey.clone(), None, None, slot));
        }
        for (member, decision) in permitted.decisions.iter().enumerate() {
            let slot = self.reserve().await?;
            let mut ending = Ending::new(journey.clone(), Some(member), Some(decision.clone()), slot);
            let arguments = journey
                .call
                .get()
                .and_then(|call| call.messages().get(member)?.arguments.as_ref());
            if let (Some(account), Some(arguments)) = (&mut ending.0, arguments) {
                account.args_hmac = Some(self.sealer.hmac(Purpose::AuditArguments, arguments));
            }
            if decision.is_allowed() {
                endings.push(ending);
            } else {
                ending.finish(Outcome::Denied);
            }
        }
        Ok(Audited { permitted, endings })
    }
}

impl AuditCheck {
    async fn reserve(&self) -> Result<AuditSlot, Rejection> {
        self.audit.reserve().await.map_err(|_| Rejection::AuditStalled)
    }
}

/// Counts and audits one message of a call.
pub struct Ending(Option<Box<Account>>);

struct Account {
    journey: Arc<Journey>,
    /// Which of the journey's messages; `None` for calls without one.
    member: Option<usize>,
    decision: Option<Decision>,
    slot: AuditSlot,
    credential: Option<&'static str>,
    upstream: Option<Arc<str>>,
    args_hmac: Option<[u8; 32]>,
    /// Why it was refused after all, although the policy allows it.
    refused: Option<&'static str>,
}

impl std::fmt::Debug for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ending").finish_non_exhaustive()
    }
}

impl Ending {
    /// The ending of one message; `slot` is its place in the audit's queue.
    pub fn new(journey: Arc<Journey>, member: Option<usize>, decision: Option<Decision>, slot: AuditSlot) -> Self {
        Self(Some(Box::new(Account {
            journey,
            member,
            decision,
            slot,
            credential: None,
            upstream: None,
            args_hmac: None,
            refused: None,
        })))
    }

    /// Notes which credential left, and where to.
    pub fn sent(&mut self, credential: &'static str, upstream: &Arc<str>) {
        if let Some(account) = &mut self.0 {
            account.credential = Some(credential);
            account.upstream = Some(upstream.clone());
        }
    }

    /// Which of the call's messages this is the end of.
    pub fn member(&self) -> Option<usize> {
        self.0.as_ref()?.member
    }

    /// The call ended so.
    pub fn finish(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    /// The call was refused for a reason that is none of the policy's.
    pub fn refuse(mut self, reason: &'static str) {
        if let Some(account) = &mut self.0 {
            account.refused = Some(reason);
        }
        self.end(Outcome::Denied);
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(account) = self.0.take() {
            account.close(outcome);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}

impl Account {
    fn close(self, outcome: Outcome) {
        let duration = self.journey.started.elapsed();
        count(&self.journey, self.member, outcome, duration);
        let mut line = line(&self.journey, self.member, self.decision.as_ref());
        line.credential = self.credential;
        line.upstream = self.upstream.as_deref();
        line.args_hmac = self.args_hmac;
        if let Some(reason) = self.refused {
            line.decision = AuditDecision::Deny;
            line.reason = reason;
        }
        line.outcome = outcome.as_str();
        line.duration = duration;
        self.slot.write(&line);
    }
}

/// Ends calls that this rejection answers. That a user has yet to connect is no failure of the upstream's: it is a refusal,
/// and counted as one.
pub fn fail(endings: Vec<Ending>, rejection: &Rejection) {
    for ending in endings {
        match rejection {
            Rejection::Credential(error @ CredentialError::NotConnected(_)) => ending.refuse(error.reason()),
            _ => ending.finish(outcome_of_failure(rejection)),
        }
    }
}

/// Counts one message of a request.
pub fn count(journey: &Journey, member: Option<usize>, outcome: Outcome, duration: Duration) {
    let message = member.and_then(|member| journey.call.get()?.messages().get(member));
    if let (Some(route), Some(message)) = (journey.route.get(), message) {
        let tool = (&*message.method == "tools/call")
            .then_some(message.name.as_deref())
            .flatten();
        route.metrics.mcp_request(&message.method, tool, outcome, duration);
    }
}

/// What the audit says of a request, refused or served.
pub fn line<'a>(journey: &'a Journey, member: Option<usize>, decision: Option<&Decision>) -> AuditLine<'a> {
    let principal = journey.principal.get();
    let message = member.and_then(|member| journey.call.get()?.messages().get(member));
    AuditLine {
        time: jiff::Timestamp::now(),
        request_id: journey.request_id.as_str(),
        address: journey.client(),
        issuer: principal.map(|principal| principal.issuer.as_str()),
        subject: principal.map(|principal| principal.subject.as_str()),
        client: principal.and_then(|principal| principal.client.as_deref()),
        route: journey.route.get().map_or("", |route| route.name()),
        method: message.map_or("", |message| &message.method),
        tool: message.and_then(|message| message.name.as_deref().or(message.uri.as_deref())),
        decision: if decision.is_none_or(Decision::is_allowed) {
            AuditDecision::Allow
        } else {
            AuditDecision::Deny
        },
        rule: decision.and_then(Decision::rule),
        reason: decision.map_or("", Decision::reason),
        credential: None,
        upstream: None,
        outcome: "",
        duration: Duration::ZERO,
        args_hmac: None,
    }
}
