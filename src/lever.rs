//! inside
//! Which levers to pull or undo, and the ledger of what was pulled. A pull waits for the store a
//! little and never for ever; an undo waits for it without limit, and the workspace stays lowered
//! until it is done. It must never undo what this ledger did not pull, and never decide a lock.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::key::{LeverId, WorkspaceId};
use crate::kms::BoxFuture;
use crate::snapshot::LeverView;
use crate::time::{Mono, Now, Span, Wall};
use crate::words::{Access, Cause, LeverAct, LeverState, Sequence};

#[cfg(feature = "daemon")]
pub mod claude;
#[cfg(feature = "daemon")]
pub mod file;
#[cfg(feature = "daemon")]
pub mod webhook;

/// A lowering lever waits so long for the store, then goes ahead.
const PATIENCE: Span = Span::from_secs(5);
/// First and longest pause after a failure.
const BACK_OFF: (Span, Span) = (Span::from_secs(1), Span::from_mins(5));
/// A pulled lever that can be asked again is asked again after so long, and takes what is new.
pub const AGAIN: Span = Span::from_mins(5);
/// A lever that is busy is looked at again after so long.
const TURN: Span = Span(250);
/// Calls of one lever under way at most.
const IN_FLIGHT_MAX: usize = 8;

/// One workspace's use of one lever.
pub type Slot = (WorkspaceId, LeverId);

/// A lever to move.
#[derive(Clone, PartialEq, Debug)]
pub struct LeverOrder {
    pub lever: LeverId,
    pub workspace: WorkspaceId,
    pub act: LeverAct,
    /// The change of the workspace that this belongs to; the same on every retry.
    pub sequence: Sequence,
    pub attempt: u64,
    /// What the lever said last: what it changed, in its own words.
    pub memory: Option<Arc<str>>,
    /// Every workspace that this lever holds now, this one as it is to be.
    pub all: Arc<[WorkspaceId]>,
}

/// How a move ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// `left`: paths that stay open after a pull, or what an undo left as it found it.
    Done { memory: Option<String>, left: Vec<String> },
    /// Nothing is changed yet: to be written down first, then asked again.
    Planned { memory: String },
    /// `memory`: what was changed all the same.
    Failed { reason: String, after: Option<Span>, memory: Option<String> },
}

/// An outside action. One deadline per move is the lever's own duty (60 s at most).
pub trait Lever: Send + Sync {
    /// Moves it. The same order twice must come to the same.
    fn act<'a>(&'a self, order: &'a LeverOrder) -> BoxFuture<'a, Outcome>;
    /// Connect and authenticate without changing anything.
    fn check(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// What is stored of a slot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub act: LeverAct,
    pub state: LeverState,
    /// What the workspace keeps while the undo is under way.
    pub access: Access,
    pub cause: Cause,
    pub sequence: Sequence,
    pub at: Wall,
    pub memory: Option<Arc<str>>,
    pub error: Option<String>,
    pub left: Vec<String>,
}

#[derive(Clone, PartialEq, Debug)]
struct Kept {
    entry: Entry,
    /// The disk has this entry as it is.
    stored: bool,
    /// When a pull goes ahead without the store.
    patience: Mono,
    due: Option<Mono>,
    /// The attempt under way, and what it does.
    flight: Option<(u64, LeverAct)>,
    failures: u32,
    again: bool,
    /// How many calls of its lever may be under way.
    width: usize,
}

/// What came of an answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Came {
    pub entry: Entry,
    /// This answer changed the state: to be recorded and told.
    pub news: bool,
}

/// Everything that is pulled, is to be pulled, or is to be undone.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Levers {
    slots: BTreeMap<WorkspaceId, BTreeMap<LeverId, Kept>>,
    due: BTreeSet<(Mono, Slot)>,
    /// Calls under way by lever.
    flying: BTreeMap<LeverId, usize>,
    attempts: u64,
}

/// A lock as a lever sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub access: Access,
    pub cause: Cause,
    pub sequence: Sequence,
    /// Whether a pulled lever is asked again from time to time.
    pub again: bool,
    /// Whether several workspaces may be moved at the same time.
    pub wide: bool,
}

impl Levers {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes what was stored. Whatever the crash cut off is asked for again.
    pub fn restore(&mut self, now: Now, slot: Slot, entry: Entry, again: bool, wide: bool) {
        let state = if entry.state == LeverState::Pulled { LeverState::Pulled } else { LeverState::Pending };
        let kept = Kept {
            entry: Entry { state, ..entry },
            stored: true,
            patience: now.mono,
            due: None,
            flight: None,
            failures: 0,
            again,
            width: if wide { IN_FLIGHT_MAX } else { 1 },
        };
        self.put(&slot, kept);
        self.set_due(&slot, Some(now.mono));
    }

    /// A lock stands: the lever is to be pulled, or stays so. `true` if that is news to be stored.
    pub fn pull(&mut self, now: Now, slot: &Slot, wanted: Wanted) -> bool {
        if let Some(kept) = self.get_mut(slot)
            && kept.entry.act == LeverAct::Pull
        {
            let changed = kept.entry.access != wanted.access || kept.entry.cause != wanted.cause;
            (kept.entry.access, kept.entry.cause) = (wanted.access, wanted.cause);
            return changed;
        }
        let before = self.take(slot);
        // Undone in part or not at all: what was changed then is still ours to undo.
        let memory = before.as_ref().filter(|kept| kept.entry.state != LeverState::Undone).and_then(|kept| kept.entry.memory.clone());
        let patience = now.mono.plus(PATIENCE);
        let kept = Kept {
            entry: Entry {
                act: LeverAct::Pull,
                state: LeverState::Pending,
                access: wanted.access,
                cause: wanted.cause,
                sequence: wanted.sequence,
                at: now.wall,
                memory,
                error: None,
                left: Vec::new(),
            },
            stored: false,
            patience,
            due: before.as_ref().and_then(|kept| kept.due),
            flight: before.and_then(|kept| kept.flight),
            failures: 0,
            again: wanted.again,
            width: if wanted.wide { IN_FLIGHT_MAX } else { 1 },
        };
        self.put(slot, kept);
        self.set_due(slot, Some(patience));
        true
    }

    /// The lock is lifted for good: the lever is to be undone. `true` if that is news to be stored.
    pub fn undo(&mut self, now: Now, slot: &Slot, sequence: Sequence) -> bool {
        let Some(kept) = self.get_mut(slot).filter(|kept| kept.entry.act == LeverAct::Pull) else { return false };
        kept.entry = Entry {
            act: LeverAct::Undo,
            state: LeverState::Pending,
            sequence,
            at: now.wall,
            error: None,
            left: Vec::new(),
            ..kept.entry.clone()
        };
        (kept.stored, kept.failures) = (false, 0);
        self.set_due(slot, None);
        true
    }

    /// A lever that is configured no more can neither be pulled nor undone.
    pub fn forget(&mut self, slot: &Slot) -> Option<Entry> {
        self.set_due(slot, None);
        let taken = self.take(slot);
        if taken.as_ref().is_some_and(|kept| kept.flight.is_some())
            && let Some(count) = self.flying.get_mut(&slot.1)
        {
            *count = count.saturating_sub(1);
        }
        taken.map(|kept| kept.entry)
    }

    /// The disk has the entry.
    pub fn stored(&mut self, now: Now, slot: &Slot, entry: &Entry) {
        let Some(kept) = self.get_mut(slot).filter(|kept| kept.entry == *entry && !kept.stored) else { return };
        kept.stored = true;
        if kept.entry.state == LeverState::Pending && kept.flight.is_none() {
            self.set_due(slot, Some(now.mono));
        }
    }

    /// Levers to move now.
    pub fn orders(&mut self, now: Now) -> Vec<LeverOrder> {
        let mut orders = Vec::new();
        let due: Vec<Slot> = self.due.iter().take_while(|(at, _)| *at <= now.mono).map(|(_, slot)| slot.clone()).collect();
        for slot in due {
            let under_way = self.flying.get(&slot.1).copied().unwrap_or(0);
            let number = self.attempts.saturating_add(1);
            let Some(kept) = self.get_mut(&slot) else { continue };
            if kept.flight.is_some() {
                self.set_due(&slot, None);
                continue;
            }
            if under_way >= kept.width {
                self.set_due(&slot, Some(now.mono.plus(TURN)));
                continue;
            }
            kept.flight = Some((number, kept.entry.act));
            let (act, sequence, memory, wide) = (kept.entry.act, kept.entry.sequence, kept.entry.memory.clone(), kept.width > 1);
            self.attempts = number;
            self.set_due(&slot, None);
            self.flying.insert(slot.1.clone(), under_way.saturating_add(1));
            let all = if wide { Arc::from([]) } else { self.held_by(&slot.1) };
            orders.push(LeverOrder { workspace: slot.0, lever: slot.1, act, sequence, attempt: number, memory, all });
        }
        orders
    }

    /// Workspaces that a lever holds, or is to hold.
    fn held_by(&self, lever: &LeverId) -> Arc<[WorkspaceId]> {
        let held = |of: &BTreeMap<LeverId, Kept>| of.get(lever).is_some_and(|kept| kept.entry.act == LeverAct::Pull);
        self.slots.iter().filter(|(_, of)| held(of)).map(|(workspace, _)| workspace.clone()).collect()
    }

    /// A move has ended. `None` if nobody waits for it.
    pub fn answered(&mut self, now: Now, slot: &Slot, attempt: u64, outcome: Outcome) -> Option<Came> {
        let kept = self.slots.get_mut(&slot.0)?.get_mut(&slot.1).filter(|kept| kept.flight.is_some_and(|(number, _)| number == attempt))?;
        if let Some(count) = self.flying.get_mut(&slot.1) {
            *count = count.saturating_sub(1);
        }
        let (_, did) = kept.flight.take()?;
        let before = (kept.entry.state, kept.entry.left.clone());
        kept.stored = false;
        kept.patience = now.mono.plus(PATIENCE);
        let overtaken = did != kept.entry.act;
        let due = match outcome {
            Outcome::Done { memory, left } => {
                kept.entry.memory = memory.map(Into::into);
                kept.failures = 0;
                if overtaken {
                    // The other way now; what this move has changed is in the memory.
                    (kept.entry.act == LeverAct::Pull).then_some(kept.patience)
                } else {
                    (kept.entry.error, kept.entry.left, kept.entry.at) = (None, left, now.wall);
                    kept.entry.state = if did == LeverAct::Pull { LeverState::Pulled } else { LeverState::Undone };
                    (did == LeverAct::Pull && kept.again).then(|| now.mono.plus(AGAIN))
                }
            }
            Outcome::Planned { memory } => {
                kept.entry.memory = Some(memory.into());
                kept.entry.state = LeverState::Pending;
                (kept.entry.act == LeverAct::Pull).then_some(kept.patience)
            }
            Outcome::Failed { reason, after, memory } => {
                if let Some(memory) = memory {
                    kept.entry.memory = Some(memory.into());
                }
                if overtaken {
                    (kept.entry.act == LeverAct::Pull).then_some(kept.patience)
                } else {
                    kept.failures = kept.failures.saturating_add(1);
                    (kept.entry.error, kept.entry.at, kept.entry.state) = (Some(reason), now.wall, LeverState::Failed);
                    let pause = BACK_OFF.0.times(1_u64.checked_shl(kept.failures.saturating_sub(1)).unwrap_or(u64::MAX)).min(BACK_OFF.1);
                    Some(now.mono.plus(after.map_or(pause, |after| after.max(pause).min(BACK_OFF.1.times(2)))))
                }
            }
        };
        let news = !overtaken && before != (kept.entry.state, kept.entry.left.clone()) && kept.entry.state != LeverState::Pending;
        let came = Came { entry: kept.entry.clone(), news };
        self.set_due(slot, due);
        Some(came)
    }

    fn get_mut(&mut self, slot: &Slot) -> Option<&mut Kept> {
        self.slots.get_mut(&slot.0)?.get_mut(&slot.1)
    }

    fn put(&mut self, slot: &Slot, kept: Kept) {
        self.slots.entry(slot.0.clone()).or_default().insert(slot.1.clone(), kept);
    }

    fn take(&mut self, slot: &Slot) -> Option<Kept> {
        let of = self.slots.get_mut(&slot.0)?;
        let kept = of.remove(&slot.1);
        if of.is_empty() {
            self.slots.remove(&slot.0);
        }
        kept
    }

    fn set_due(&mut self, slot: &Slot, due: Option<Mono>) {
        let Some(kept) = self.slots.get_mut(&slot.0).and_then(|of| of.get_mut(&slot.1)) else { return };
        if let Some(old) = std::mem::replace(&mut kept.due, due) {
            self.due.remove(&(old, slot.clone()));
        }
        if let Some(at) = due {
            self.due.insert((at, slot.clone()));
        }
    }

    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.due.first().map(|(at, _)| *at)
    }

    fn of<'a>(&'a self, workspace: &WorkspaceId) -> impl Iterator<Item = (&'a LeverId, &'a Entry)> + use<'a> {
        self.slots.get(workspace).into_iter().flatten().map(|(lever, kept)| (lever, &kept.entry))
    }

    /// Entries of one workspace.
    #[must_use]
    pub fn entries(&self, workspace: &WorkspaceId) -> Vec<(LeverId, Entry)> {
        self.of(workspace).map(|(lever, entry)| (lever.clone(), entry.clone())).collect()
    }

    /// What a workspace must keep, and why, until everything of it is undone.
    #[must_use]
    pub fn holds(&self, workspace: &WorkspaceId) -> Option<(Access, Cause)> {
        let undoing = self.of(workspace).filter(|(_, entry)| entry.act == LeverAct::Undo && entry.state != LeverState::Undone);
        undoing.map(|(_, entry)| (entry.access, entry.cause)).max_by_key(|(access, _)| *access)
    }

    #[must_use]
    pub fn views(&self, workspace: &WorkspaceId) -> Vec<LeverView> {
        self.of(workspace)
            .map(|(lever, entry)| LeverView {
                lever: lever.clone(),
                act: entry.act,
                state: entry.state,
                error: entry.error.clone(),
                at: entry.at,
                left: entry.left.clone(),
            })
            .collect()
    }

    /// Every slot, for what a reload changes.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        self.slots.iter().flat_map(|(ws, of)| of.keys().map(|lever| (ws.clone(), lever.clone()))).collect()
    }
}

#[cfg(test)]
mod tests;
