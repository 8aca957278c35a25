//! inside
//! Which leg of a probe comes next, and the legs gathered into evidence.
//! Sans-IO: it must never call anything and never say what the evidence means.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::key::{KeyTarget, KeyVersion};
use crate::kms::{Answer, KeyFacts, Unwrapped, Wrapped};
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
    Describe,
}

/// Answer to the last call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Wrap(Answer<Wrapped>),
    Unwrap(Answer<Unwrapped>),
    Describe(Answer<KeyFacts>),
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
    pub facts: Option<KeyFacts>,
    /// Who we were during the round, as far as known.
    pub identity: Option<Arc<str>>,
    /// The provider's clock minus ours in milliseconds, where an answer told it.
    pub clock_skew_ms: Option<i64>,
}
