//! inside
//! What the evidence of one round means, before any counting.
//! Doubt stays doubt here: only the data call's own refusal, by the identity that was good before,
//! becomes `Refused`. It must never look at history other than that identity.

use crate::key::KeyVersion;
use crate::probe::{Evidence, LegResult};
use crate::words::{FailureKind, Leg, LegOutcome, VerdictWord};

/// How sure a refusal is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stated {
    /// The answer does not say why, or only that we may not.
    No,
    /// The data call states the key's state; describe is refused, silent or says otherwise.
    Alone,
    /// Data call and describe both state it.
    Both,
}

/// What was refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// An older version that protects data; the current one works.
    Version,
    /// New data cannot be protected; the stored canary opens.
    Wrap,
    /// A fresh canary came back with other bytes.
    Bytes,
    /// What is stored cannot be read.
    Unwrap,
}

/// Answer of the control key around a denial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// Not needed, or good.
    Good,
    /// The control key is refused as we are: it is us.
    DeniedLikeUs,
    /// The control key states its own fault, did not answer, or there is none.
    Broken,
}

/// A refusal that takes a slot among the looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Refused {
    pub kind: FailureKind,
    pub stated: Stated,
    pub direction: Direction,
    /// The witness could not vouch for us: confirmation asks for more.
    pub weak: bool,
}

/// What one round means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Wrap and unwrap work, with equal bytes.
    Good {
        /// Every leg that was due is good and none states a fault: such a round counts for unlocking.
        complete: bool,
        /// Describe states this fault although the key works: alarm and look closely, no lock.
        warned: Option<FailureKind>,
    },
    Refused(Refused),
    /// Takes no slot unless the policy gives its kind a confirmation.
    Unsure {
        kind: FailureKind,
        direction: Direction,
        /// False when the kind could only count beside a good witness and there was none.
        vouched: bool,
    },
}

impl Verdict {
    /// The word shown (SETTLED D1).
    #[must_use]
    pub fn word(&self) -> VerdictWord {
        match self {
            Self::Good { .. } => VerdictWord::Usable,
            Self::Unsure { .. } => VerdictWord::Inconclusive,
            Self::Refused(refused) => match refused.direction {
                Direction::Unwrap => VerdictWord::Revoked,
                Direction::Version | Direction::Wrap | Direction::Bytes => VerdictWord::Impaired,
            },
        }
    }

    /// The failure kind shown; `None` when healthy.
    #[must_use]
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Good { warned, .. } => *warned,
            Self::Refused(refused) => Some(refused.kind),
            Self::Unsure { kind, .. } => Some(*kind),
        }
    }
}

/// Kinds that are a statement about the key itself.
#[must_use]
pub const fn is_key_state(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Disabled | FailureKind::PendingDeletion | FailureKind::Destroyed => true,
        FailureKind::Expired
        | FailureKind::AccessDenied
        | FailureKind::NetworkBlocked
        | FailureKind::KeyStoreUnavailable
        | FailureKind::Throttled
        | FailureKind::ProviderFault
        | FailureKind::Timeout
        | FailureKind::Unreachable
        | FailureKind::Credentials
        | FailureKind::Misconfigured
        | FailureKind::Corrupt
        | FailureKind::Unclassified => false,
    }
}

/// Whether a refusal by this kind is the owner's doing and not a doubt.
#[must_use]
pub const fn is_conclusive(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Disabled
        | FailureKind::PendingDeletion
        | FailureKind::Destroyed
        | FailureKind::Expired
        | FailureKind::AccessDenied
        | FailureKind::Corrupt => true,
        FailureKind::NetworkBlocked
        | FailureKind::KeyStoreUnavailable
        | FailureKind::Throttled
        | FailureKind::ProviderFault
        | FailureKind::Timeout
        | FailureKind::Unreachable
        | FailureKind::Credentials
        | FailureKind::Misconfigured
        | FailureKind::Unclassified => false,
    }
}

/// Kinds that may be set to lock, but only beside a good witness (SETTLED A14).
const fn is_slow(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Misconfigured | FailureKind::Unclassified)
}

/// Whether this round holds a refusal that only a good witness can give weight: an unstated
/// `access_denied` or `destroyed`, or one of the slow kinds when the policy lets it lock.
#[must_use]
pub fn needs_witness(evidence: &Evidence, locks: impl Fn(FailureKind) -> bool) -> bool {
    evidence.legs.iter().any(|leg| {
        let refused = leg.outcome == LegOutcome::Failed && leg.leg != Leg::Describe && !leg.stated;
        refused
            && leg
                .failure_kind
                .is_some_and(|kind| matches!(kind, FailureKind::AccessDenied | FailureKind::Destroyed) || (is_slow(kind) && locks(kind)))
    })
}

const fn unsure(kind: FailureKind, direction: Direction) -> Verdict {
    Verdict::Unsure { kind, direction, vouched: true }
}

/// Judges one round. `identity_was_good` says whether the identity of this round was ever good on
/// this key; a denial under any other identity is about our credentials.
#[must_use]
pub fn judge(evidence: &Evidence, identity_was_good: bool, witness: Witness) -> Verdict {
    let about = |leg: &LegResult, direction| refusal(evidence, leg, direction, identity_was_good, witness);
    let (Some(wrap), Some(unwrap)) = (evidence.leg(Leg::Wrap), evidence.leg(Leg::Unwrap)) else {
        return unsure(FailureKind::Unclassified, Direction::Unwrap);
    };
    match unwrap.outcome {
        LegOutcome::Failed if unwrap.failure_kind == Some(FailureKind::Corrupt) => bytes_differ(evidence, unwrap),
        LegOutcome::Failed => about(unwrap, Direction::Unwrap),
        // With no canary to open, a refused wrap says nothing of what is stored.
        LegOutcome::NotRun => unsure(wrap.failure_kind.unwrap_or(FailureKind::Timeout), Direction::Wrap),
        LegOutcome::Ok => match wrap.outcome {
            LegOutcome::Failed => about(wrap, Direction::Wrap),
            LegOutcome::NotRun => unsure(FailureKind::Timeout, Direction::Wrap),
            LegOutcome::Ok => versions_and_facts(evidence, about),
        },
    }
}

fn versions_and_facts(evidence: &Evidence, about: impl Fn(&LegResult, Direction) -> Verdict) -> Verdict {
    let mut complete = true;
    let mut unsure_version = None;
    for leg in evidence.legs.iter().filter(|l| l.leg == Leg::UnwrapVersion) {
        match leg.outcome {
            LegOutcome::Ok => {}
            LegOutcome::NotRun => complete = false,
            LegOutcome::Failed => match about(leg, Direction::Version) {
                lost @ Verdict::Refused(_) => return lost,
                Verdict::Good { .. } | Verdict::Unsure { .. } => unsure_version = leg.failure_kind,
            },
        }
    }
    let warned = evidence.facts.as_ref().and_then(|f| f.fault.as_ref()).map(|fault| fault.kind);
    let describe_stated = evidence.leg(Leg::Describe).is_some_and(|leg| leg.stated);
    Verdict::Good { complete: complete && unsure_version.is_none() && warned.is_none() && !describe_stated, warned }
}

/// Only a canary wrapped in this very round proves that the service returns other bytes; a stored
/// one may be our own damage.
fn bytes_differ(evidence: &Evidence, unwrap: &LegResult) -> Verdict {
    let fresh_too = unwrap.code.as_deref() == Some("digest_mismatch");
    if fresh_too && evidence.leg(Leg::Wrap).is_some_and(|l| l.outcome == LegOutcome::Ok) {
        Verdict::Refused(Refused { kind: FailureKind::Corrupt, stated: Stated::No, direction: Direction::Bytes, weak: false })
    } else {
        unsure(FailureKind::Unclassified, Direction::Bytes)
    }
}

fn refusal(evidence: &Evidence, leg: &LegResult, direction: Direction, identity_was_good: bool, witness: Witness) -> Verdict {
    let Some(kind) = leg.failure_kind else {
        return unsure(FailureKind::Unclassified, direction);
    };
    if !is_conclusive(kind) {
        return Verdict::Unsure { kind, direction, vouched: !is_slow(kind) || witness == Witness::Good };
    }
    let stated = if !leg.stated {
        Stated::No
    } else if describe_agrees(evidence) {
        Stated::Both
    } else {
        Stated::Alone
    };
    let mut weak = false;
    if stated == Stated::No && matches!(kind, FailureKind::AccessDenied | FailureKind::Destroyed) {
        if !identity_was_good {
            return unsure(FailureKind::Credentials, direction);
        }
        match witness {
            Witness::Good => {}
            Witness::DeniedLikeUs => return unsure(FailureKind::Credentials, direction),
            Witness::Broken => weak = true,
        }
    }
    Verdict::Refused(Refused { kind, stated, direction, weak })
}

fn describe_agrees(evidence: &Evidence) -> bool {
    evidence.leg(Leg::Describe).is_some_and(|leg| leg.outcome == LegOutcome::Ok && leg.stated && leg.failure_kind.is_some_and(is_key_state))
}

/// Versions that were opened in this round and how each went.
#[must_use]
pub fn version_outcomes(evidence: &Evidence) -> Vec<(KeyVersion, LegOutcome, Option<FailureKind>)> {
    evidence
        .legs
        .iter()
        .filter(|leg| leg.leg == Leg::UnwrapVersion)
        .filter_map(|leg| leg.version.clone().map(|v| (v, leg.outcome, leg.failure_kind)))
        .collect()
}

#[cfg(test)]
mod tests;
