//! inside
//! The witness: one control key per provider, probed on its own schedule and around every denial,
//! one probe in flight whatever the number of denials that wait for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::Provider;
use crate::key::KeyTarget;
use crate::kms::Wrapped;
use crate::policy::Policy;
use crate::probe::{Evidence, Plan};
use crate::schedule::KeyIx;
use crate::time::{Mono, Now, Span};
use crate::verdict::{self, Stated, Verdict, Witness};
use crate::watch::{Attempt, Effects, ProbeOrder, Subject, Watch};
use crate::words::{EventType, FailureKind};

/// An answer of the control key vouches for looks that began at most so long after it.
const CACHED: Span = Span::from_secs(10);
/// How old an answer of the control key may be for a look under this policy. A rule that confirms
/// sooner than the cache lasts would lock on one answer: it needs one that began after the look.
pub fn cached(policy: &Policy) -> Span {
    let denied = policy.on.get(&FailureKind::AccessDenied).filter(|rule| rule.access.is_some());
    if denied.is_some_and(|rule| rule.over < CACHED) { Span::ZERO } else { CACHED }
}

/// The control key's own steady interval.
const STEADY: Span = Span::from_secs(60);
const CALL_TIMEOUT: Span = Span::from_secs(10);
/// An outage is told when nothing of the provider was reached for so long.
const UNREACHABLE_TOLD: Span = Span::from_mins(1);
/// Without a failure of our credentials for so long, a good look ends the matter.
const CREDENTIALS_QUIET: Span = Span::from_mins(10);

#[derive(Debug)]
pub struct Control {
    pub target: Option<Arc<KeyTarget>>,
    pub healthy: Option<bool>,
    canary: Option<Wrapped>,
    in_flight: Option<(Attempt, Mono)>,
    answered: Option<(Mono, Witness)>,
    due: Mono,
    pub waiting: BTreeSet<KeyIx>,
    /// Told that the witness is broken, until it is good again.
    told: bool,
    /// Told that our credentials fail, until any good look.
    pub credentials_told: bool,
    pub credentials_failing: bool,
    /// When they failed last.
    credentials_at: Option<Mono>,
    /// Since when the control key, or with none any key, could not be reached without a good look between.
    unreachable_since: Option<Mono>,
    unreachable_told: bool,
    pub clock_skew_ms: Option<i64>,
    pub missed: u64,
}

impl Control {
    pub fn new(provider: &Provider, now: Now) -> Self {
        Self {
            target: provider.control_key.clone(),
            healthy: None,
            canary: None,
            in_flight: None,
            answered: None,
            due: now.mono,
            waiting: BTreeSet::new(),
            told: false,
            credentials_told: false,
            credentials_failing: false,
            credentials_at: None,
            unreachable_since: None,
            unreachable_told: false,
            clock_skew_ms: None,
            missed: 0,
        }
    }

    /// When the control key wants to be probed; nothing while it is.
    pub fn next(&self) -> Option<Mono> {
        let wants = self.target.is_some() && self.in_flight.is_none();
        wants.then_some(if self.waiting.is_empty() { self.due } else { Mono(0) })
    }

    pub fn retarget(&mut self, target: Option<Arc<KeyTarget>>, now: Now) {
        if self.target != target {
            self.target = target;
            self.canary = None;
            self.answered = None;
            self.healthy = None;
            self.due = now.mono;
        }
    }

    /// What the control key says about a look that started at `look`, if it has said it already.
    pub fn witness(&self, look: Mono, cached: Span) -> Option<Witness> {
        if self.target.is_none() {
            return Some(Witness::Broken);
        }
        self.answered.filter(|(started, _)| *started >= look.minus(cached)).map(|(_, witness)| witness)
    }
}

/// What a round of the control key says about us.
#[must_use]
pub fn testimony(verdict: &Verdict) -> Witness {
    match verdict {
        Verdict::Good { .. } => Witness::Good,
        Verdict::Refused(refused) if refused.kind == FailureKind::AccessDenied && refused.stated == Stated::No => Witness::DeniedLikeUs,
        Verdict::Refused(_) => Witness::Broken,
        Verdict::Unsure { kind: FailureKind::Credentials, .. } => Witness::DeniedLikeUs,
        Verdict::Unsure { .. } => Witness::Broken,
    }
}

impl Watch {
    pub(super) fn start_controls(&mut self, now: Now, out: &mut Effects) {
        let due: Vec<_> =
            self.controls.iter().filter(|(_, c)| c.next().is_some_and(|at| at <= now.mono)).map(|(id, _)| id.clone()).collect();
        for provider in due {
            let attempt = self.next_attempt();
            let Some(control) = self.controls.get_mut(&provider) else { continue };
            let Some(target) = control.target.clone() else { continue };
            let deadline = CALL_TIMEOUT.times(3);
            control.in_flight = Some((attempt, now.mono));
            let plan = Plan {
                target,
                unwrap_first: false,
                describe: false,
                current: control.canary.clone(),
                older: Vec::new(),
                missing: Vec::new(),
                rotation: false,
                deadline,
                call_timeout: CALL_TIMEOUT,
            };
            let subject = Subject::Control(provider.clone());
            self.in_flight.insert((now.mono.plus(deadline).plus(Span::from_secs(5)), subject.clone(), attempt));
            out.probes.push(ProbeOrder { subject, provider, attempt, plan });
        }
    }

    pub(super) fn control_probed(
        &mut self,
        now: Now,
        provider: &crate::key::ProviderId,
        attempt: Attempt,
        evidence: &Evidence,
        out: &mut Effects,
    ) {
        let Some(control) = self.controls.get_mut(provider) else { return };
        if control.in_flight.map(|(a, _)| a) != Some(attempt) {
            return;
        }
        control.in_flight = None;
        control.due = now.mono.plus(STEADY);
        control.clock_skew_ms = evidence.clock_skew_ms.or(control.clock_skew_ms);
        if evidence.fresh.is_some() {
            control.canary = evidence.fresh.clone();
        }
        let verdict = verdict::judge(evidence, true, Witness::Good);
        let witness = testimony(&verdict);
        control.answered = Some((evidence.started.mono, witness));
        let healthy = witness == Witness::Good;
        let changed = control.healthy != Some(healthy);
        control.healthy = Some(healthy);
        let tell = !healthy && !control.told && witness == Witness::Broken && control.target.is_some();
        control.told = !healthy && (control.told || tell);
        let waiting = std::mem::take(&mut control.waiting);
        if tell {
            self.tell_provider(now, provider, EventType::ProviderWitnessBroken, verdict.kind());
        }
        self.mind_credentials(now, provider, &verdict);
        if changed {
            self.show_provider(now, provider, out);
        }
        for key in waiting {
            self.judge_waiting(now, key, out);
        }
    }

    /// Rounds that wait for a control key that is registered no more are judged without it.
    pub(super) fn judge_unwitnessed(&mut self, now: Now, out: &mut Effects) {
        let gone = self.controls.values_mut().filter(|control| control.target.is_none());
        let waiting: Vec<KeyIx> = gone.flat_map(|control| std::mem::take(&mut control.waiting)).collect();
        for key in waiting {
            self.judge_waiting(now, key, out);
        }
    }

    /// One notice when our own credentials begin to fail; quiet again after any good look.
    pub(super) fn mind_credentials(&mut self, now: Now, provider: &crate::key::ProviderId, verdict: &Verdict) {
        let Some(control) = self.controls.get_mut(provider) else { return };
        match verdict {
            Verdict::Good { .. } => {
                (control.unreachable_since, control.unreachable_told) = (None, false);
                // One key under a bad identity beside good ones must not page at every look.
                if control.credentials_at.is_none_or(|at| now.mono.since(at) > CREDENTIALS_QUIET) {
                    control.credentials_failing = false;
                    control.credentials_told = false;
                }
            }
            Verdict::Unsure { kind: FailureKind::Credentials, .. } => {
                control.credentials_at = Some(now.mono);
                control.credentials_failing = true;
                if !control.credentials_told {
                    control.credentials_told = true;
                    self.tell_provider(now, provider, EventType::ProviderCredentials, Some(FailureKind::Credentials));
                }
            }
            Verdict::Unsure { kind: FailureKind::Unreachable, .. } => {
                let since = *control.unreachable_since.get_or_insert(now.mono);
                if now.mono.since(since) >= UNREACHABLE_TOLD && !control.unreachable_told {
                    control.unreachable_told = true;
                    self.tell_provider(now, provider, EventType::ProviderUnreachable, Some(FailureKind::Unreachable));
                }
            }
            // An answer of any kind was an answer.
            Verdict::Refused(_) => (control.unreachable_since, control.unreachable_told) = (None, false),
            Verdict::Unsure { .. } => {}
        }
    }
}
