//! inside
//! Which event explains which transition: the nearest one of a fitting meaning before the first
//! refused look. Keeps, bounded, what was heard of one key and what still waits to be explained.
//! Nothing here is ever read by a lock, an unlock or the brake.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

use super::{AuditEvent, explains_refusal, explains_return};
use crate::time::{Span, Wall};
use crate::words::{AuditMeaning, EventType, FailureKind};

/// A change may show at our looks so long after it was made (propagation, long intervals).
const BEFORE: Span = Span::from_hours(6);
/// Clocks of log and watchdog may differ so much.
const SKEW: Span = Span::from_mins(2);
/// Logs come late; after this a question is given up.
const PATIENCE: Span = Span::from_hours(48);
/// How long a bare id may take to become a name before it is told as it is.
pub const SETTLE: Span = Span::from_mins(2);
const HEARD_MAX: usize = 16;
const IDS_MAX: usize = 64;
const QUESTIONS_MAX: usize = 8;

/// What has to be explained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Asks {
    Refusal(FailureKind),
    Return,
    Rotation,
    Deletion,
    Substitution,
}

impl Asks {
    /// What a transition of this type asks; `None` for one that needs no explanation.
    #[must_use]
    pub fn of(event: EventType, kind: Option<FailureKind>) -> Option<Self> {
        let refusals = [
            EventType::KeySuspect,
            EventType::KeyRevoked,
            EventType::KeyImpaired,
            EventType::KeyVersionLost,
            EventType::WorkspaceLocked,
            EventType::WorkspaceReadOnly,
            EventType::WorkspaceWouldLock,
        ];
        let returns = [EventType::KeyRecovering, EventType::KeyActive, EventType::WorkspaceOpened];
        if event == EventType::KeyDeletionScheduled {
            Some(Self::Deletion)
        } else if event == EventType::KeyRotated {
            Some(Self::Rotation)
        } else if event == EventType::KeySubstituted {
            Some(Self::Substitution)
        } else if returns.contains(&event) {
            Some(Self::Return)
        } else if refusals.contains(&event) {
            kind.map(Self::Refusal)
        } else {
            None
        }
    }

    #[must_use]
    pub fn explained_by(self, meaning: AuditMeaning) -> bool {
        match self {
            Self::Refusal(kind) => explains_refusal(meaning, kind),
            Self::Return => explains_return(meaning),
            Self::Rotation => meaning == AuditMeaning::Rotation,
            Self::Deletion => [AuditMeaning::ScheduleDeletion, AuditMeaning::VersionDestroy].contains(&meaning),
            Self::Substitution => meaning == AuditMeaning::AliasChange,
        }
    }

    /// Whether both ask the same of one episode.
    const fn same(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Refusal(_), Self::Refusal(_))
                | (Self::Return, Self::Return)
                | (Self::Rotation, Self::Rotation)
                | (Self::Deletion, Self::Deletion)
                | (Self::Substitution, Self::Substitution)
        )
    }
}

/// A transition that waits for its explanation, or has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Question {
    pub correlation_id: String,
    pub event: EventType,
    pub asks: Asks,
    /// First look that showed it.
    pub seen_at: Wall,
    pub version: Option<String>,
    pub found: Option<AuditEvent>,
    /// People were told with a name, or need not be told.
    pub told: bool,
    /// A bare id waits until then to become a name.
    pub settle_until: Option<Wall>,
}

impl Question {
    fn takes(&self, event: &AuditEvent) -> bool {
        let in_time = event.at >= self.seen_at.minus(BEFORE) && event.at <= self.seen_at.plus(SKEW);
        let versions = match (&self.version, &event.version) {
            (Some(asked), Some(told)) => last_part(asked) == last_part(told),
            (Some(_) | None, Some(_) | None) => true,
        };
        in_time && versions && event.changes() && self.asks.explained_by(event.meaning)
    }
}

/// `3` of `.../cryptoKeyVersions/3`.
fn last_part(version: &str) -> &str {
    version.rsplit('/').next().unwrap_or(version)
}

/// One time of trouble of a key, from its first refused look on, for the latencies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Episode {
    pub id: String,
    pub first_refused: Wall,
    pub confirmed: Option<Wall>,
    pub applied: Option<Wall>,
    /// The provider's own time of the change.
    pub changed_at: Option<Wall>,
    /// Stages counted from the provider's time: detect, confirm, apply.
    pub counted: [bool; 3],
    /// First good look after it.
    pub returned_at: Option<Wall>,
    pub ended: bool,
}

impl Episode {
    #[must_use]
    pub fn begin(id: String, first_refused: Wall) -> Self {
        let counted = [false; 3];
        Self { id, first_refused, confirmed: None, applied: None, changed_at: None, counted, returned_at: None, ended: false }
    }
}

/// What was heard of one key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Trail {
    heard: VecDeque<AuditEvent>,
    ids: VecDeque<(Wall, String)>,
    pub questions: Vec<Question>,
    pub episode: Option<Episode>,
}

impl Trail {
    /// Remembers an event; false if it was heard before, by whatever way.
    pub fn hear(&mut self, event: &AuditEvent) -> bool {
        if self.ids.iter().any(|(_, id)| *id == event.id) {
            return false;
        }
        // With a full memory, what is older than all of it may have been forgotten and is no news.
        if self.ids.len() >= IDS_MAX && self.ids.iter().all(|(at, _)| event.at < *at) {
            return false;
        }
        self.ids.push_back((event.at, event.id.clone()));
        if self.ids.len() > IDS_MAX
            && let Some(oldest) = self.ids.iter().enumerate().min_by_key(|(_, (at, _))| *at).map(|(n, _)| n)
        {
            self.ids.remove(oldest);
        }
        if event.changes() {
            self.heard.push_back(event.clone());
            while self.heard.len() > HEARD_MAX {
                self.heard.pop_front();
            }
        }
        true
    }

    /// Opens a question, or finds the one of the same episode. Gives its place.
    pub fn ask(&mut self, question: Question) -> usize {
        let same = |q: &Question| q.correlation_id == question.correlation_id && q.asks.same(question.asks);
        if let Some(n) = self.questions.iter().position(same) {
            if let Some(old) = self.questions.get_mut(n) {
                // The finer kind counts; an answer that fits it no more is no answer.
                old.asks = question.asks;
                old.event = question.event;
                if old.found.as_ref().is_some_and(|found| !old.takes(found)) {
                    old.found = None;
                }
            }
            self.search(n);
            return n;
        }
        if self.questions.len() >= QUESTIONS_MAX {
            self.questions.remove(0);
        }
        self.questions.push(question);
        let n = self.questions.len().saturating_sub(1);
        self.search(n);
        n
    }

    /// The nearest fitting event for a question that has none.
    fn search(&mut self, n: usize) {
        let Some(question) = self.questions.get_mut(n).filter(|q| q.found.is_none()) else { return };
        question.found = self.heard.iter().filter(|event| question.takes(event)).max_by_key(|event| event.at).cloned();
    }

    /// Questions that a new event answers: those without an answer, newest transition first.
    pub fn answers(&mut self, event: &AuditEvent) -> Option<&mut Question> {
        self.questions.iter_mut().rev().find(|q| q.found.is_none() && q.takes(event))
    }

    /// Gives up what nobody will explain any more, and forgets old events.
    pub fn forget_old(&mut self, now: Wall) {
        self.questions.retain(|q| now.since(q.seen_at) < PATIENCE);
        self.heard.retain(|event| now.since(event.at) < PATIENCE);
    }

    /// The explanation of the present trouble, for whatever else is said of it.
    #[must_use]
    pub fn cause(&self, correlation_id: &str, asks: Asks) -> Option<&AuditEvent> {
        self.questions.iter().find(|q| q.correlation_id == correlation_id && q.asks.same(asks))?.found.as_ref()
    }
}
