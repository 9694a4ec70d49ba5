//! Principal × route × call becomes a [`Permit`], or a refusal. Nothing below runs without one.

use super::{Decision, Permit};
use crate::call::{Call, Form};
use crate::clock::Clock;
use crate::edge::rejection::Refused;
use crate::edge::{Check, Rejection};

/// A call that may go on.
#[derive(Debug)]
pub struct Permitted {
    pub call: Box<Call>,
    pub permit: Permit,
    /// One a message, in order; empty for calls without a message.
    pub decisions: Vec<Decision>,
}

/// Decides.
#[derive(Debug)]
pub struct PolicyCheck {
    pub clock: Clock,
}

impl Check<Box<Call>> for PolicyCheck {
    type Passed = Permitted;

    async fn check(&self, call: Box<Call>) -> Result<Permitted, Rejection> {
        let policy = &call.route.config.policy;
        let (permit, decisions) = match &call.form {
            Form::Get | Form::Delete => (policy.permit_stream(&call.principal), Vec::new()),
            Form::Post { payload, .. } | Form::Message { payload, .. } => {
                let verdict = policy.authorize(&call.principal, call.route.name(), payload, self.clock.now());
                let decisions = verdict.decisions;
                for decision in &decisions {
                    call.route.metrics.policy_decision(decision.label(), decision.reason());
                }
                match verdict.permit {
                    Some(permit) => (Ok(permit), decisions),
                    None => {
                        let members = payload
                            .messages()
                            .iter()
                            .map(|message| message.id.clone())
                            .zip(decisions)
                            .collect();
                        return Err(Rejection::Forbidden(Refused { members }));
                    }
                }
            }
        };
        let permit = permit.map_err(|decision| {
            call.route.metrics.policy_decision(decision.label(), decision.reason());
            Rejection::Forbidden(Refused {
                members: vec![(None, decision)],
            })
        })?;
        Ok(Permitted {
            call,
            permit,
            decisions,
        })
    }
}
