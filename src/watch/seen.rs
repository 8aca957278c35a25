//! inside
//! What one round adds to what is known of a key: facts, dates that come near, how long nothing
//! conclusive was seen. Staleness counts observed time only and alarms at its marks.

use crate::key::KeyId;
use crate::kms::{KeyFacts, RotationFact};
use crate::lifecycle::{Finding, KeyState};
use crate::probe::Evidence;
use crate::schedule::KeyIx;
use crate::time::{Now, Span, Wall};
use crate::verdict::{Direction, Stated, Verdict};
use crate::watch::{Effects, Watch};
use crate::words::{Access, Cause, EventType, FailureKind};

/// Rounds that a new key has to work in before its owner is told.
const UNPROVEN_ROUNDS: u64 = 3;
/// A held matter is paged again after so long.
const AGAIN: Span = Span::from_hours(24);

impl Watch {
    pub(super) fn see(&mut self, now: Now, ix: KeyIx, evidence: &Evidence, verdict: &Verdict, out: &mut Effects) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        if let Some(identity) = evidence.identity.as_deref()
            && matches!(verdict, Verdict::Good { complete: true, .. })
        {
            cell.was_good(identity);
        }
        if let Some(skew) = evidence.clock_skew_ms
            && let Some(control) = self.controls.get_mut(&cell.key.provider)
        {
            control.clock_skew_ms = Some(skew);
        }
        if let Some(facts) = &evidence.facts {
            let facts = with_rotation(facts.clone(), cell.kept.facts.as_ref(), evidence.rotation_asked);
            if evidence.rotation_asked {
                cell.rotation_asked = Some(now.mono);
            }
            if cell.kept.facts.as_ref() != Some(&facts) {
                cell.kept.facts = Some(facts);
                cell.dirty = true;
            }
        }
        self.see_versions(now, ix, evidence, verdict);
        self.see_warning(now, ix, verdict);
        self.count_down(now, ix);
        self.see_rotation_age(now, ix);
        self.see_staleness(now, ix, verdict, out);
    }

    /// Describe states a fault although the key works: an alarm at once, no lock.
    fn see_warning(&mut self, now: Now, ix: KeyIx, verdict: &Verdict) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let Verdict::Good { warned, .. } = verdict else { return };
        if cell.kept.warned == *warned {
            return;
        }
        cell.kept.warned = *warned;
        cell.dirty = true;
        if let Some(kind) = *warned {
            let event = if kind == FailureKind::PendingDeletion { EventType::KeyDeletionScheduled } else { EventType::KeySuspect };
            self.tell_warning(now, ix, event, kind);
        }
    }

    /// Marks before a deletion or an expiry; cured when the date goes away.
    fn count_down(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let facts = cell.kept.facts.clone().unwrap_or_default();
        let policy = cell.policy.clone();
        let fields = [
            ("deletion", facts.deletion_at, &policy.warn_before_deletion, EventType::KeyDeletionScheduled),
            ("expiry", facts.expires_at, &policy.warn_before_expiry, EventType::KeyExpiring),
        ];
        for (name, date, marks, event) in fields {
            let Some(date) = date else {
                self.cured(ix, name);
                continue;
            };
            let left = date.since(now.wall);
            // Of several marks that were passed at once only the nearest is told.
            let passed: Vec<Span> = marks.iter().copied().filter(|mark| left <= *mark).collect();
            let Some(nearest) = passed.iter().min() else { continue };
            let Some(cell) = self.cells.get_mut(&ix) else { return };
            if cell.kept.told.contains_key(&mark_name(name, *nearest)) {
                continue;
            }
            for mark in &passed {
                cell.kept.told.insert(mark_name(name, *mark), now.wall);
            }
            cell.dirty = true;
            self.tell_date(now, ix, event, date);
        }
    }

    /// A key that has not been rotated for longer than the policy wants is told once.
    fn see_rotation_age(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let facts = cell.kept.facts.as_ref();
        let rotated = facts.and_then(|f| f.rotated_at).or(cell.kept.rotated_at.map(|at| at.wall)).or(facts.and_then(|f| f.created_at));
        let (Some(rotated), Some(limit)) = (rotated, cell.policy.rotation_max_age) else { return };
        if now.wall.since(rotated) < limit {
            self.cured(ix, "rotation");
        } else if !cell.kept.told.contains_key("rotation") {
            if let Some(cell) = self.cells.get_mut(&ix) {
                cell.kept.told.insert("rotation".to_owned(), now.wall);
                cell.dirty = true;
            }
            self.tell_since(now, ix, EventType::KeyRotationOverdue, rotated);
        }
    }

    fn cured(&mut self, ix: KeyIx, name: &str) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let before = cell.kept.told.len();
        cell.kept.told.retain(|mark, _| !mark.starts_with(name));
        cell.dirty |= before != cell.kept.told.len();
    }

    fn see_staleness(&mut self, now: Now, ix: KeyIx, verdict: &Verdict, out: &mut Effects) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let since_last = cell.last_look.map_or(Span::ZERO, |last| now.mono.since(last));
        cell.last_look = Some(now.mono);
        let Verdict::Unsure { kind, .. } = verdict else {
            cell.kept.last_conclusive = Some(now.into());
            if matches!(verdict, Verdict::Good { .. }) {
                cell.kept.last_good = Some(now.into());
                cell.kept.told.remove("witness_grace");
            }
            if cell.kept.stale > Span::ZERO {
                (cell.kept.stale, cell.kept.stale_told, cell.kept.stale_told_at) = (Span::ZERO, 0, None);
                cell.dirty = true;
            }
            cell.unsure_since_start = 0;
            return;
        };
        cell.unsure_since_start = cell.unsure_since_start.saturating_add(1);
        // Time in which our own side was at fault is not the key's.
        if *kind == FailureKind::Credentials {
            return;
        }
        let most = cell.interval().times(2);
        let before = cell.kept.stale;
        cell.kept.stale = cell.kept.stale.plus(since_last.min(most));
        let step = Span::from_secs(60).min(cell.policy.lock_after_stale.map_or(Span::from_secs(60), |s| s.over(10)));
        cell.dirty |= before.0.checked_div(step.0.max(1)) != cell.kept.stale.0.checked_div(step.0.max(1));
        let (stale, kind) = (cell.kept.stale, *kind);
        self.alarm_stale(now, ix, stale, kind);
        self.lock_stale(now, ix, stale, kind, out);
    }

    fn alarm_stale(&mut self, now: Now, ix: KeyIx, stale: Span, kind: FailureKind) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let mut marks = cell.policy.alarm_after_stale.clone();
        marks.sort();
        let passed = u8::try_from(marks.iter().filter(|mark| stale >= **mark).count()).unwrap_or(u8::MAX);
        let again = passed > 0 && cell.kept.stale_told_at.is_some_and(|at| now.wall.since(at) >= AGAIN);
        if passed > cell.kept.stale_told || again {
            cell.kept.stale_told = passed;
            cell.kept.stale_told_at = Some(now.wall);
            cell.dirty = true;
            self.tell_stale(now, ix, stale, kind);
        }
    }

    /// Fails closed only where the policy says so, after observed time and two looks of this run.
    fn lock_stale(&mut self, now: Now, ix: KeyIx, stale: Span, kind: FailureKind, out: &mut Effects) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let Some(limit) = cell.policy.lock_after_stale else { return };
        let locked = cell.kept.life.finding().is_some_and(|f| f.access == Access::Locked);
        if stale < limit || cell.unsure_since_start < 2 || locked || !cell.proven() {
            return;
        }
        let finding = Finding { cause: Cause::Stale, kind, access: Access::Locked, direction: Direction::Unwrap, stated: Stated::No };
        self.propose(now, ix, finding, out);
    }

    /// A key counts as held by policy; told once, then every day.
    pub(super) fn told_held(&mut self, now: Now, ix: KeyIx, kind: FailureKind) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.kept.told_held_at = Some(now.wall);
        cell.dirty = true;
        self.tell_held(now, ix, kind);
    }

    /// A hold is never silent: said again every day.
    pub(super) fn tell_held_again(&mut self, now: Now, ix: KeyIx, kind: Option<FailureKind>) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let held = cell.kept.life.held_by() == Some(crate::words::HeldBy::Policy);
        if let Some(kind) = kind
            && held
            && cell.kept.told_held_at.is_some_and(|at| now.wall.since(at) >= AGAIN)
        {
            self.told_held(now, ix, kind);
        }
    }

    /// A key that has not worked after its first rounds was not onboarded rightly: said once.
    pub(super) fn tell_unproven(&mut self, now: Now, ix: KeyIx, verdict: &Verdict) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let failing = !matches!(verdict, Verdict::Good { complete: true, .. });
        if cell.kept.life == KeyState::Unproven && failing && cell.rounds >= UNPROVEN_ROUNDS && !cell.kept.told.contains_key("unproven") {
            cell.kept.told.insert("unproven".to_owned(), now.wall);
            cell.dirty = true;
            self.transition(now, ix, EventType::KeyUnproven, verdict.kind());
        }
    }

    /// Denials that the control key cannot vouch for never hold in silence: after the policy's grace
    /// a person is asked to decide.
    pub(super) fn mind_witness_grace(&mut self, now: Now, ix: KeyIx, verdict: &Verdict) {
        let Verdict::Refused(refused) = verdict else { return };
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let KeyState::Suspect { looks, .. } = &cell.kept.life else { return };
        let since = looks.first_refused().map(|first| now.mono.since(first.mono));
        if !refused.weak || since.is_none_or(|since| since < cell.policy.witness_grace) || cell.kept.told.contains_key("witness_grace") {
            return;
        }
        cell.kept.told.insert("witness_grace".to_owned(), now.wall);
        cell.dirty = true;
        self.tell_undecided(now, ix, refused.kind);
    }

    pub(super) fn key_id(&self, ix: KeyIx) -> Option<KeyId> {
        self.cells.get(&ix).map(|cell| cell.key.id.clone())
    }
}

/// What was read of the rotation before stands until it is asked for again.
fn with_rotation(facts: KeyFacts, before: Option<&KeyFacts>, asked: bool) -> KeyFacts {
    match before.filter(|before| before.rotation == RotationFact::Observed) {
        Some(before) if !asked && facts.rotation == RotationFact::NotObservable => {
            KeyFacts { rotation: RotationFact::Observed, rotated_at: before.rotated_at, next_rotation_at: before.next_rotation_at, ..facts }
        }
        Some(_) | None => facts,
    }
}

fn mark_name(name: &str, mark: Span) -> String {
    format!("{name}:{mark}")
}

/// Text of a date in a notice.
pub(super) fn day(date: Wall) -> String {
    format!("on {date}")
}
