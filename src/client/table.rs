//! outside
//! The table of workspaces and how it is asked. A cell is one number: sequence and access are changed
//! by the follower alone, read by everybody without a lock. It must never call open what it has not
//! heard of for longer than the patience.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::gate;
use crate::key::WorkspaceId;
use crate::time::{Mono, Span};
use crate::words::{Access, FeatureClass};

/// What to do while the daemon cannot be heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnLost {
    /// The last known answer for so long, closed after that.
    LastKnownFor(Span),
    /// Closed as soon as nothing is known for certain.
    Closed,
}

/// What is known of a workspace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Open,
    ReadOnly,
    Locked,
    /// Not heard for longer than the patience. Locked is never stale: it stays locked.
    Stale {
        /// `None`: it was never heard of.
        last: Option<Access>,
        /// Since the daemon was last heard.
        age: Span,
    },
    /// The daemon does not know this workspace.
    Unknown,
}

/// Whether a request may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ruling {
    Allowed,
    Denied,
    /// Closed for want of knowledge (503 rather than 403).
    CannotTell,
}

/// Low two bits: 0 unknown, 1 open, 2 read only, 3 locked; above them the sequence (below 2^53).
#[derive(Debug, Default)]
struct Cell(AtomicU64);

const fn pack(sequence: u64, access: Option<Access>) -> u64 {
    let low = match access {
        None => 0,
        Some(Access::Open) => 1,
        Some(Access::ReadOnly) => 2,
        Some(Access::Locked) => 3,
    };
    (sequence << 2) | low
}

const fn unpack(cell: u64) -> (u64, Option<Access>) {
    let access = match cell & 3 {
        1 => Some(Access::Open),
        2 => Some(Access::ReadOnly),
        3 => Some(Access::Locked),
        _ => None,
    };
    (cell >> 2, access)
}

/// All workspaces.
#[derive(Debug)]
pub struct Table {
    rows: RwLock<BTreeMap<WorkspaceId, Arc<Cell>>>,
    /// When the daemon was last heard while the table was complete, in ms of our clock; 0 = never.
    heard: AtomicU64,
    patience: Span,
    on_lost: OnLost,
    loaded: watch::Sender<bool>,
}

/// One workspace, resolved.
#[derive(Clone, Debug)]
pub struct Handle {
    table: Arc<Table>,
    cell: Arc<Cell>,
}

impl Table {
    #[must_use]
    pub fn new(on_lost: OnLost, patience: Span) -> Self {
        Self { rows: RwLock::default(), heard: AtomicU64::new(0), patience, on_lost, loaded: watch::Sender::new(false) }
    }

    fn cell(&self, id: &WorkspaceId) -> Option<Arc<Cell>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn cell_made(&self, id: &WorkspaceId) -> Arc<Cell> {
        if let Some(cell) = self.cell(id) {
            return cell;
        }
        Arc::clone(self.rows.write().unwrap_or_else(PoisonError::into_inner).entry(id.clone()).or_default())
    }

    /// Resolves a workspace; one that is not known yet may become so.
    #[must_use]
    pub fn handle(table: &Arc<Self>, id: &WorkspaceId) -> Handle {
        Handle { table: Arc::clone(table), cell: table.cell_made(id) }
    }

    /// Asks without a handle, for ids that come with requests: nothing is remembered of unknown ones.
    #[must_use]
    pub fn rule(&self, id: &WorkspaceId, class: FeatureClass, write: bool, now: Mono) -> Ruling {
        let cell = self.cell(id).map_or(0, |cell| cell.0.load(Ordering::Acquire));
        self.ruling(cell, class, write, now)
    }

    /// The daemon was heard, and the table holds all that it said.
    pub fn heard(&self, now: Mono) {
        self.heard.store(now.0, Ordering::Release);
        if !*self.loaded.borrow() {
            self.loaded.send_replace(true);
        }
    }

    /// Ends when the table was complete once.
    pub async fn loaded(&self) {
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }

    /// A change from the stream; older ones than what is known are dropped. Gives what it was before.
    pub fn apply(&self, id: &WorkspaceId, sequence: u64, access: Access) -> Option<Option<Access>> {
        let cell = self.cell_made(id);
        let (known, before) = unpack(cell.0.load(Ordering::Acquire));
        if sequence <= known && before.is_some() {
            return None;
        }
        cell.0.store(pack(sequence, Some(access)), Ordering::Release);
        Some(before)
    }

    /// The whole list as the daemon has it: it counts, whatever was known. Gives what changed.
    pub fn replace(&self, list: &BTreeMap<WorkspaceId, (u64, Access)>) -> Vec<(WorkspaceId, u64, Access, Option<Access>)> {
        let mut changed = Vec::new();
        for (id, (sequence, access)) in list {
            let before = self.cell_made(id).0.swap(pack(*sequence, Some(*access)), Ordering::AcqRel);
            if before != pack(*sequence, Some(*access)) {
                changed.push((id.clone(), *sequence, *access, unpack(before).1));
            }
        }
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.iter().filter(|(id, _)| !list.contains_key(*id)).for_each(|(_, cell)| cell.0.store(0, Ordering::Release));
        changed
    }

    /// Time since the daemon was last heard.
    fn age(&self, now: Mono) -> Span {
        now.since(Mono(self.heard.load(Ordering::Acquire)))
    }

    fn answer(&self, cell: u64, now: Mono) -> Answer {
        let (_, last) = unpack(cell);
        let age = self.age(now);
        if last == Some(Access::Locked) {
            return Answer::Locked;
        }
        if age > self.patience {
            return Answer::Stale { last, age };
        }
        match last {
            Some(Access::Open) => Answer::Open,
            Some(Access::ReadOnly) => Answer::ReadOnly,
            Some(Access::Locked) => Answer::Locked,
            None => Answer::Unknown,
        }
    }

    fn ruling(&self, cell: u64, class: FeatureClass, write: bool, now: Mono) -> Ruling {
        let by = |access| if gate::allows(access, class, write) { Ruling::Allowed } else { Ruling::Denied };
        match self.answer(cell, now) {
            Answer::Open => by(Access::Open),
            Answer::ReadOnly => by(Access::ReadOnly),
            // What an unknown workspace may: only what is never locked.
            Answer::Locked | Answer::Unknown => by(Access::Locked),
            Answer::Stale { .. } if gate::allows(Access::Locked, class, write) => Ruling::Allowed,
            Answer::Stale { last: Some(last), age } => match self.on_lost {
                OnLost::LastKnownFor(limit) if age <= limit => by(last),
                OnLost::LastKnownFor(_) | OnLost::Closed => Ruling::CannotTell,
            },
            Answer::Stale { last: None, .. } => Ruling::CannotTell,
        }
    }
}

impl Handle {
    /// What is known now: two loads and one reading of the clock.
    #[must_use]
    pub fn check(&self) -> Answer {
        self.check_at(crate::clock::now_mono())
    }

    /// As [`Self::check`] at a time that the caller has read.
    #[must_use]
    pub fn check_at(&self, now: Mono) -> Answer {
        self.table.answer(self.cell.0.load(Ordering::Acquire), now)
    }

    /// The last word of the daemon, however old: one load. For hot loops that check freshness elsewhere.
    #[must_use]
    pub fn glance(&self) -> Option<Access> {
        unpack(self.cell.0.load(Ordering::Acquire)).1
    }

    /// Number of the newest change.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        unpack(self.cell.0.load(Ordering::Acquire)).0
    }

    /// Whether this use may go on, by the caller's [`OnLost`].
    #[must_use]
    pub fn rule_at(&self, class: FeatureClass, write: bool, now: Mono) -> Ruling {
        self.table.ruling(self.cell.0.load(Ordering::Acquire), class, write, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FeatureClass::{Content, Control, SafetyMetadata};

    fn id(text: &str) -> WorkspaceId {
        WorkspaceId::new(text).unwrap()
    }

    fn table(on_lost: OnLost) -> Arc<Table> {
        let table = Arc::new(Table::new(on_lost, Span(100)));
        table.replace(&BTreeMap::from([
            (id("open"), (1, Access::Open)),
            (id("shut"), (2, Access::Locked)),
            (id("half"), (3, Access::ReadOnly)),
        ]));
        table.heard(Mono(1_000));
        table
    }

    #[test]
    fn each_answer_in_each_variant_as_time_passes_without_a_word() {
        let day = OnLost::LastKnownFor(Span(500));
        for (on_lost, at, open, half) in [
            (OnLost::Closed, 1_100, Ruling::Allowed, Ruling::Allowed),
            (OnLost::Closed, 1_101, Ruling::CannotTell, Ruling::CannotTell),
            (day, 1_101, Ruling::Allowed, Ruling::Allowed),
            (day, 1_500, Ruling::Allowed, Ruling::Allowed),
            (day, 1_501, Ruling::CannotTell, Ruling::CannotTell),
        ] {
            let table = table(on_lost);
            let rule = |name, class, write| Table::handle(&table, &id(name)).rule_at(class, write, Mono(at));
            assert_eq!(rule("open", Content, true), open, "{on_lost:?} {at}");
            assert_eq!(rule("half", Content, false), half, "{on_lost:?} {at}");
            assert_eq!(rule("shut", Content, false), Ruling::Denied, "locked stays locked: {on_lost:?} {at}");
            assert_eq!(rule("open", SafetyMetadata, false), Ruling::Allowed);
            assert_eq!(rule("shut", Control, true), Ruling::Allowed);
        }
    }

    #[test]
    fn what_was_never_heard_is_stale_and_what_the_daemon_does_not_know_is_unknown() {
        let fresh = Arc::new(Table::new(OnLost::LastKnownFor(Span::from_hours(1)), Span(100)));
        let handle = Table::handle(&fresh, &id("w"));
        assert_eq!(handle.check_at(Mono(1 << 40)), Answer::Stale { last: None, age: Span(1 << 40) });
        assert_eq!(handle.rule_at(Content, false, Mono(1 << 40)), Ruling::CannotTell);
        let table = table(OnLost::Closed);
        assert_eq!(Table::handle(&table, &id("w")).check_at(Mono(1_000)), Answer::Unknown);
        assert_eq!(table.rule(&id("x"), Content, false, Mono(1_000)), Ruling::Denied);
        assert!(table.cell(&id("x")).is_none(), "asking by name remembers nothing");
    }

    #[test]
    fn stale_tells_the_last_word_and_its_age() {
        let table = table(OnLost::Closed);
        let answer = Table::handle(&table, &id("open")).check_at(Mono(1_234));
        assert_eq!(answer, Answer::Stale { last: Some(Access::Open), age: Span(234) });
    }

    #[test]
    fn an_older_change_is_dropped_and_a_whole_list_counts() {
        let table = table(OnLost::Closed);
        let handle = Table::handle(&table, &id("open"));
        assert_eq!(table.apply(&id("open"), 9, Access::Locked), Some(Some(Access::Open)));
        assert_eq!(table.apply(&id("open"), 9, Access::Locked), None, "told twice");
        assert_eq!(table.apply(&id("open"), 8, Access::Open), None, "late");
        assert_eq!(handle.check_at(Mono(1_000)), Answer::Locked);
        let list = BTreeMap::from([(id("open"), (4, Access::Open))]);
        assert_eq!(table.replace(&list), [(id("open"), 4, Access::Open, Some(Access::Locked))]);
        assert_eq!((handle.glance(), handle.sequence()), (Some(Access::Open), 4));
        assert_eq!(Table::handle(&table, &id("shut")).check_at(Mono(1_000)), Answer::Unknown, "gone from the list");
    }
}
