//! inside
//! Which leg of a probe comes next, and the legs gathered into evidence.
//! Sans-IO: it must never call anything and never say what the evidence means.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::key::{KeyTarget, KeyVersion};
use crate::kms::{Answer, CallMeta, KeyFacts, KmsError, Rotation, RotationFact, Unwrapped, Wrapped};
use crate::time::{Now, Span};
use crate::words::{FailureKind, Leg, LegOutcome};

/// What one round should try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    pub target: Arc<KeyTarget>,
    /// Open the stored canary of the current version first, and stop there if it is refused: the
    /// cheap look at a key whose unwrap was refused before.
    pub unwrap_first: bool,
    /// Describe in any case; it is done anyway after a failed leg.
    pub describe: bool,
    /// Stored canary of the current version.
    pub current: Option<Wrapped>,
    /// Stored canaries of older versions that are due, oldest first.
    pub older: Vec<Wrapped>,
    /// Enabled versions that have no canary yet: one is made, where the provider can.
    pub missing: Vec<KeyVersion>,
    /// After a good describe, read the schedule of the rotation too, where it can be read.
    pub rotation: bool,
    /// For the whole probe, all legs together.
    pub deadline: Span,
    /// For one call.
    pub call_timeout: Span,
}

/// One call to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    Wrap,
    Unwrap(Wrapped),
    UnwrapVersion(Wrapped),
    WrapVersion(KeyVersion),
    Describe,
    /// No leg: what it tells is a fact of the key, and its refusal is none.
    Rotation,
}

/// Answer to the last call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Wrap(Answer<Wrapped>),
    Unwrap(Answer<Unwrapped>),
    Describe(Answer<KeyFacts>),
    Rotation(Answer<Rotation>),
    /// The provider has no such call.
    NotOffered,
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    Call(Call),
    Done(Box<Evidence>),
}

/// One leg as it ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LegResult {
    pub leg: Leg,
    pub outcome: LegOutcome,
    pub failure_kind: Option<FailureKind>,
    pub stated: bool,
    pub code: Option<Box<str>>,
    pub message: Option<Box<str>>,
    pub request_id: Option<Box<str>>,
    pub duration_ms: Option<Span>,
    pub version: Option<KeyVersion>,
}

/// Everything one probe brought home.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// When the first call of the round was started.
    pub started: Now,
    pub legs: Vec<LegResult>,
    /// A canary wrapped in this round and opened again with equal bytes.
    pub fresh: Option<Wrapped>,
    /// Canaries of other versions, made in this round and opened again with equal bytes.
    pub made: Vec<Wrapped>,
    pub facts: Option<KeyFacts>,
    /// The schedule of the rotation was asked for in this round.
    pub rotation_asked: bool,
    /// Who we were during the round, as far as known.
    pub identity: Option<Arc<str>>,
    /// The provider's clock minus ours in milliseconds, where an answer told it.
    pub clock_skew_ms: Option<i64>,
}

/// One probe under way: hands out the next call and gathers the answers.
#[derive(Debug)]
pub struct ProbeRun {
    plan: Plan,
    started: Now,
    /// What the answer now awaited belongs to.
    asked: Asked,
    wrap: Option<LegResult>,
    unwrap: Option<LegResult>,
    versions: Vec<LegResult>,
    describe: Option<LegResult>,
    /// Index of the next older canary.
    next_older: usize,
    next_missing: usize,
    made: Vec<Wrapped>,
    made_waiting: Option<Wrapped>,
    /// Wrapped in this round and not opened yet.
    wrapped: Option<Wrapped>,
    /// Wrapped in this round and opened with equal bytes.
    fresh: Option<Wrapped>,
    facts: Option<KeyFacts>,
    rotation_asked: bool,
    clock_skew_ms: Option<i64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Asked {
    Nothing,
    Wrap,
    Stored(Wrapped),
    Fresh(Wrapped),
    Older(Wrapped),
    WrapMissing(KeyVersion),
    OpenMissing(Wrapped),
    Describe,
    Rotation,
}

impl ProbeRun {
    #[must_use]
    pub fn new(plan: Plan, started: Now) -> Self {
        Self {
            plan,
            started,
            asked: Asked::Nothing,
            wrap: None,
            unwrap: None,
            versions: Vec::new(),
            describe: None,
            next_older: 0,
            next_missing: 0,
            made: Vec::new(),
            made_waiting: None,
            wrapped: None,
            fresh: None,
            facts: None,
            rotation_asked: false,
            clock_skew_ms: None,
        }
    }

    /// Takes the answer to the last call and says what to do next. After the probe's deadline the
    /// legs that are left are `not_run`.
    pub fn next(&mut self, last: Option<Reply>, now: Now) -> Next {
        if let Some(reply) = last {
            self.take(reply, now);
        }
        let call = if now.mono.since(self.started.mono) >= self.plan.deadline { None } else { self.choose() };
        match call {
            Some(call) => Next::Call(call),
            None => Next::Done(Box::new(self.evidence())),
        }
    }

    fn choose(&mut self) -> Option<Call> {
        if self.plan.unwrap_first
            && self.unwrap.is_none()
            && let Some(stored) = self.plan.current.clone()
        {
            return Some(self.ask_unwrap(Asked::Stored(stored.clone()), stored));
        }
        let stop_early = self.plan.unwrap_first && failed(self.unwrap.as_ref()) && !self.suspects_bytes();
        if !stop_early {
            if self.wrap.is_none() {
                self.asked = Asked::Wrap;
                return Some(Call::Wrap);
            }
            if let Some(fresh) = self.wrapped.take() {
                return Some(self.ask_unwrap(Asked::Fresh(fresh.clone()), fresh));
            }
            if self.unwrap.is_none()
                && let Some(stored) = self.plan.current.clone()
            {
                return Some(self.ask_unwrap(Asked::Stored(stored.clone()), stored));
            }
            if ok(self.unwrap.as_ref())
                && let Some(older) = self.plan.older.get(self.next_older).cloned()
            {
                self.next_older = self.next_older.saturating_add(1);
                self.asked = Asked::Older(older.clone());
                return Some(Call::UnwrapVersion(older));
            }
            if ok(self.unwrap.as_ref())
                && let Some(call) = self.choose_missing()
            {
                return Some(call);
            }
        }
        if self.describe.is_none() && (self.plan.describe || self.anything_failed()) {
            self.asked = Asked::Describe;
            return Some(Call::Describe);
        }
        if self.plan.rotation && !self.rotation_asked && self.facts.as_ref().is_some_and(could_tell) {
            self.rotation_asked = true;
            self.asked = Asked::Rotation;
            return Some(Call::Rotation);
        }
        None
    }

    fn choose_missing(&mut self) -> Option<Call> {
        if let Some(made) = self.made_waiting.take() {
            self.asked = Asked::OpenMissing(made.clone());
            return Some(Call::UnwrapVersion(made));
        }
        let version = self.plan.missing.get(self.next_missing).cloned()?;
        self.next_missing = self.next_missing.saturating_add(1);
        self.asked = Asked::WrapMissing(version.clone());
        Some(Call::WrapVersion(version))
    }

    fn ask_unwrap(&mut self, asked: Asked, wrapped: Wrapped) -> Call {
        self.asked = asked;
        Call::Unwrap(wrapped)
    }

    fn suspects_bytes(&self) -> bool {
        self.unwrap.as_ref().is_some_and(|leg| leg.failure_kind == Some(FailureKind::Corrupt))
    }

    fn anything_failed(&self) -> bool {
        failed(self.wrap.as_ref()) || failed(self.unwrap.as_ref()) || self.versions.iter().any(|leg| failed(Some(leg)))
    }

    fn take(&mut self, reply: Reply, now: Now) {
        let asked = std::mem::replace(&mut self.asked, Asked::Nothing);
        match reply {
            Reply::NotOffered if asked == Asked::Rotation => {}
            Reply::NotOffered => self.next_missing = self.plan.missing.len(),
            Reply::Rotation(answer) => {
                if let (Ok(rotation), Some(facts)) = (answer.result, &mut self.facts) {
                    facts.rotation = RotationFact::Observed;
                    facts.rotated_at = rotation.rotated_at.or(facts.rotated_at);
                    facts.next_rotation_at = rotation.next_rotation_at;
                }
            }
            Reply::Wrap(answer) if matches!(asked, Asked::WrapMissing(_)) => self.take_missing(asked, answer),
            Reply::Wrap(answer) => {
                self.note_clock(&answer.meta, now);
                self.wrap = Some(leg(Leg::Wrap, answer.result.as_ref().map(|w| w.version.clone()), &answer.meta));
                self.wrapped = answer.result.ok();
            }
            Reply::Unwrap(answer) => {
                self.note_clock(&answer.meta, now);
                self.take_unwrap(asked, answer);
            }
            Reply::Describe(answer) => {
                self.note_clock(&answer.meta, now);
                self.describe = Some(describe_leg(&answer));
                self.facts = answer.result.ok();
            }
        }
    }

    /// A version that cannot wrap any more may still open what it protects: no leg, no finding.
    fn take_missing(&mut self, asked: Asked, answer: Answer<Wrapped>) {
        if let (Asked::WrapMissing(version), Ok(wrapped)) = (asked, answer.result) {
            self.made_waiting = Some(Wrapped { version: Some(version), ..wrapped });
        }
    }

    fn take_unwrap(&mut self, asked: Asked, answer: Answer<Unwrapped>) {
        match asked {
            Asked::Fresh(fresh) => {
                let result = compared(Leg::Unwrap, &fresh, &answer, "digest_mismatch");
                if result.outcome == LegOutcome::Ok {
                    let version = answer.result.ok().and_then(|u| u.version).or_else(|| fresh.version.clone());
                    self.fresh = Some(Wrapped { version, ..fresh });
                }
                self.unwrap = Some(result);
            }
            Asked::Stored(stored) => self.unwrap = Some(compared(Leg::Unwrap, &stored, &answer, "stored_digest_mismatch")),
            Asked::Older(older) => self.versions.push(compared(Leg::UnwrapVersion, &older, &answer, "stored_digest_mismatch")),
            Asked::OpenMissing(made) => {
                let result = compared(Leg::UnwrapVersion, &made, &answer, "digest_mismatch");
                if result.outcome == LegOutcome::Ok {
                    self.made.push(made);
                }
                self.versions.push(result);
            }
            Asked::Nothing | Asked::Wrap | Asked::WrapMissing(_) | Asked::Describe | Asked::Rotation => {}
        }
    }

    fn note_clock(&mut self, meta: &CallMeta, now: Now) {
        if let Some(theirs) = meta.provider_time {
            self.clock_skew_ms = Some(theirs.0.saturating_sub(now.wall.0));
        }
    }
}

impl ProbeRun {
    fn evidence(&mut self) -> Evidence {
        let mut legs =
            vec![self.wrap.take().unwrap_or_else(|| not_run(Leg::Wrap)), self.unwrap.take().unwrap_or_else(|| not_run(Leg::Unwrap))];
        legs.append(&mut self.versions);
        for older in self.plan.older.iter().skip(self.next_older) {
            legs.push(LegResult { version: older.version.clone(), ..not_run(Leg::UnwrapVersion) });
        }
        legs.push(self.describe.take().unwrap_or_else(|| not_run(Leg::Describe)));
        Evidence {
            started: self.started,
            legs,
            fresh: self.fresh.take(),
            made: std::mem::take(&mut self.made),
            facts: self.facts.take(),
            rotation_asked: self.rotation_asked,
            identity: None,
            clock_skew_ms: self.clock_skew_ms,
        }
    }
}

impl Evidence {
    /// The leg of this name; of several (older versions) the first.
    #[must_use]
    pub fn leg(&self, leg: Leg) -> Option<&LegResult> {
        self.legs.iter().find(|l| l.leg == leg)
    }

    /// Evidence of a probe that never came back: every leg not run, cause `kind`.
    #[must_use]
    pub fn lost(started: Now, kind: FailureKind, code: &str) -> Self {
        let error = KmsError::new(kind, false, code, "");
        let unwrap = failed_leg(Leg::Unwrap, &error, None, &CallMeta::default());
        Self {
            started,
            legs: vec![not_run(Leg::Wrap), unwrap, not_run(Leg::Describe)],
            fresh: None,
            made: Vec::new(),
            facts: None,
            rotation_asked: false,
            identity: None,
            clock_skew_ms: None,
        }
    }
}

/// A living key whose schedule describe does not tell.
fn could_tell(facts: &KeyFacts) -> bool {
    facts.fault.is_none() && facts.rotation == RotationFact::NotObservable
}

fn ok(leg: Option<&LegResult>) -> bool {
    leg.is_some_and(|l| l.outcome == LegOutcome::Ok)
}

fn failed(leg: Option<&LegResult>) -> bool {
    leg.is_some_and(|l| l.outcome == LegOutcome::Failed)
}

fn not_run(leg: Leg) -> LegResult {
    LegResult {
        leg,
        outcome: LegOutcome::NotRun,
        failure_kind: None,
        stated: false,
        code: None,
        message: None,
        request_id: None,
        duration_ms: None,
        version: None,
    }
}

fn failed_leg(leg: Leg, error: &KmsError, version: Option<KeyVersion>, meta: &CallMeta) -> LegResult {
    LegResult {
        outcome: LegOutcome::Failed,
        failure_kind: Some(error.kind),
        stated: error.stated,
        code: Some(error.code.clone()),
        message: Some(error.message.clone()),
        request_id: meta.request_id.clone(),
        duration_ms: Some(meta.took),
        version,
        ..not_run(leg)
    }
}

fn leg(leg: Leg, result: Result<Option<KeyVersion>, &KmsError>, meta: &CallMeta) -> LegResult {
    match result {
        Ok(version) => LegResult {
            outcome: LegOutcome::Ok,
            request_id: meta.request_id.clone(),
            duration_ms: Some(meta.took),
            version,
            ..not_run(leg)
        },
        Err(error) => failed_leg(leg, error, None, meta),
    }
}

/// A 200 is not proof: the bytes must match the digest.
fn compared(name: Leg, canary: &Wrapped, answer: &Answer<Unwrapped>, mismatch: &str) -> LegResult {
    let version = canary.version.clone();
    match &answer.result {
        Ok(unwrapped) if unwrapped.digest == canary.digest => leg(name, Ok(unwrapped.version.clone().or(version)), &answer.meta),
        Ok(_) => {
            let error = KmsError::new(FailureKind::Corrupt, false, mismatch, "the unwrapped bytes are not the wrapped ones");
            failed_leg(name, &error, version, &answer.meta)
        }
        Err(error) => failed_leg(name, error, version, &answer.meta),
    }
}

/// A describe that answers is a good leg even when it states a fault: the fault stands in the leg's
/// code, and the verdict reads it from the facts.
fn describe_leg(answer: &Answer<KeyFacts>) -> LegResult {
    let mut result = leg(Leg::Describe, answer.result.as_ref().map(|f| f.current_version.clone()), &answer.meta);
    if let Ok(facts) = &answer.result
        && let Some(fault) = &facts.fault
    {
        result.failure_kind = Some(fault.kind);
        result.stated = fault.stated;
        result.code = Some(fault.code.clone());
        result.message = Some(fault.message.clone());
    }
    result
}

#[cfg(test)]
mod tests;
