//! outside
//! Carries one probe's calls out: each with its own deadline, all within the probe's, under an
//! identity that is asked for and remembered. It must never retry a call, never say what an answer
//! means, and never wait beyond the plan's deadline.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use crate::key::{AssumeRole, KeyTarget, ProviderId};
use crate::kms::{Answer, CallMeta, Kms, KmsError};
use crate::probe::{Call, Evidence, Next, Plan, ProbeRun, Reply};
use crate::time::{Mono, Now, Span};
use crate::words::{FailureKind, LegOutcome};

/// A known identity is asked for again after so long.
const KNOWN_FOR: Span = Span::from_mins(5);
/// After a failed question nobody asks again for so long: an identity service that hangs must not
/// cost every probe a timeout.
const UNKNOWN_FOR: Span = Span::from_secs(5);
/// Identities remembered at a time; beyond that the stale ones are forgotten.
const MOST: usize = 10_000;

/// Where the time comes from; tests give their own.
type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// One round of calls, without an identity in the evidence. See [`Identities::drive`].
///
/// A call that gives no answer within `plan.call_timeout`, or before the deadline of the whole
/// probe, is a failed leg of kind `timeout` and code `timeout`. Legs not begun by then are `not_run`.
pub async fn drive(kms: &dyn Kms, plan: Plan) -> Evidence {
    legs(kms, plan, &crate::clock::now).await
}

async fn legs(kms: &dyn Kms, plan: Plan, clock: &(dyn Fn() -> Now + Send + Sync)) -> Evidence {
    let started = clock();
    let (target, call_timeout, deadline) = (Arc::clone(&plan.target), plan.call_timeout, plan.deadline);
    let mut run = ProbeRun::new(plan, started);
    let mut last = None;
    loop {
        let now = clock();
        let call = match run.next(last.take(), now) {
            Next::Done(evidence) => return *evidence,
            Next::Call(call) => call,
        };
        let limit = call_timeout.min(deadline.minus(now.mono.since(started.mono)));
        last = Some(match call {
            Call::Wrap => Reply::Wrap(within(limit, kms.wrap_key(&target)).await),
            Call::Unwrap(wrapped) | Call::UnwrapVersion(wrapped) => Reply::Unwrap(within(limit, kms.unwrap_key(&target, &wrapped)).await),
            Call::WrapVersion(version) => match kms.wrap_version(&target, &version) {
                Some(call) => Reply::Wrap(within(limit, call).await),
                None => Reply::NotOffered,
            },
            Call::Rotation => match kms.rotation(&target) {
                Some(call) => Reply::Rotation(within(limit, call).await),
                None => Reply::NotOffered,
            },
            Call::Describe => Reply::Describe(within(limit, kms.describe_key(&target)).await),
        });
    }
}

/// The answer, or a timeout in its place. Dropping the future cancels the call.
async fn within<T>(limit: Span, call: impl Future<Output = Answer<T>>) -> Answer<T> {
    match tokio::time::timeout(limit.to_std(), call).await {
        Ok(answer) => answer,
        Err(_) => Answer {
            result: Err(KmsError::new(FailureKind::Timeout, false, "timeout", &format!("no answer within {limit}"))),
            meta: CallMeta { took: limit, ..CallMeta::default() },
        },
    }
}

/// Whom a key is called as: the provider's own identity, or what the key asks for.
type Slot = (ProviderId, Option<AssumeRole>, Option<String>, Option<String>);

/// An answer to "who are we", when it was asked for and when it came.
#[derive(Clone, Debug)]
struct Known {
    asked: Mono,
    answered: Mono,
    who: Option<Arc<str>>,
}

impl Known {
    fn fresh(&self, now: Mono) -> bool {
        // A failure counts from its end: those who waited for it must not each wait for their own.
        if self.who.is_some() { now.since(self.asked) < KNOWN_FOR } else { now.since(self.answered) < UNKNOWN_FOR }
    }
}

/// Locked while asking, so that a thousand keys of one role ask once.
type Asking = Arc<tokio::sync::Mutex<Option<Known>>>;

/// Who we are, by provider and role: asked once for many probes. Clones share what is known.
#[derive(Clone)]
pub struct Identities {
    slots: Arc<Mutex<BTreeMap<Slot, Asking>>>,
    clock: Clock,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

impl Default for Identities {
    fn default() -> Self {
        Self::with_clock(crate::clock::now)
    }
}

impl Identities {
    #[must_use]
    pub fn with_clock(clock: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self { slots: Arc::default(), clock: Arc::new(clock) }
    }

    /// One round of calls as [`drive`], with the identity that it was made under. A round with a
    /// denial or a fault of our credentials asks anew who we are, unless that was asked since the
    /// round began. A question that fails gives `None`; asking can take one or two call timeouts more
    /// than the legs.
    pub async fn drive(&self, provider: &ProviderId, kms: &dyn Kms, plan: Plan) -> Evidence {
        let (target, call_timeout) = (Arc::clone(&plan.target), plan.call_timeout);
        let begun = (self.clock)().mono;
        let asked = self.whoami(provider, kms, &target, call_timeout, None);
        let (mut evidence, mut identity) = tokio::join!(legs(kms, plan, &*self.clock), asked);
        if in_doubt(&evidence) {
            identity = self.whoami(provider, kms, &target, call_timeout, Some(begun)).await;
        }
        evidence.identity = identity;
        evidence
    }

    /// `since` refuses an answer that was asked for earlier.
    async fn whoami(
        &self,
        provider: &ProviderId,
        kms: &dyn Kms,
        target: &KeyTarget,
        call_timeout: Span,
        since: Option<Mono>,
    ) -> Option<Arc<str>> {
        let slot = self.slot((provider.clone(), target.assume_role.clone(), target.tenant.clone(), target.impersonate.clone()));
        let mut known = tokio::time::timeout(call_timeout.to_std(), slot.lock()).await.ok()?;
        let now = (self.clock)().mono;
        if let Some(known) = known.as_ref().filter(|k| k.fresh(now) && since.is_none_or(|since| k.asked >= since)) {
            return known.who.clone();
        }
        let answer = within(call_timeout, kms.whoami(target)).await;
        let who = answer.result.ok().map(Arc::from);
        *known = Some(Known { asked: now, answered: (self.clock)().mono, who: who.clone() });
        who
    }

    fn slot(&self, slot: Slot) -> Asking {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MOST && !slots.contains_key(&slot) {
            let now = (self.clock)().mono;
            // One that is locked is being asked for.
            slots.retain(|_, known| known.try_lock().map_or(true, |known| known.as_ref().is_some_and(|k| k.fresh(now))));
        }
        Arc::clone(slots.entry(slot).or_default())
    }
}

/// Whether a leg failed in a way that says as much about us as about the key.
fn in_doubt(evidence: &Evidence) -> bool {
    evidence.legs.iter().any(|leg| {
        leg.outcome == LegOutcome::Failed && matches!(leg.failure_kind, Some(FailureKind::AccessDenied | FailureKind::Credentials))
    })
}

#[cfg(test)]
mod tests;
