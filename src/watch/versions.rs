//! inside
//! Versions of a key: which is current, which still protect data, their stored canaries; rotation
//! seen, propagation told from rotation, a name that moved to another key.

use std::sync::Arc;

use crate::journal::CanaryRow;
use crate::key::KeyVersion;
use crate::kms::Wrapped;
use crate::lifecycle::KeyState;
use crate::lifecycle::looks::Stamp;
use crate::probe::Evidence;
use crate::schedule::KeyIx;
use crate::time::{Now, Span};
use crate::verdict::{self, Verdict};
use crate::watch::Watch;
use crate::watch::cell::{KeyCell, VersionCell};
use crate::words::{EventType, Leg, LegOutcome};

/// A return to a version known before, so soon after a rotation, is propagation.
const SETTLE: Span = Span::from_hours(1);
/// Name of the only version where the provider names none.
const UNNAMED: &str = "current";

impl Watch {
    pub(super) fn see_versions(&mut self, now: Now, ix: KeyIx, evidence: &Evidence, verdict: &Verdict) {
        self.see_older(ix, evidence);
        self.see_substitution(now, ix, evidence);
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let unwrap_ok = evidence.leg(Leg::Unwrap).is_some_and(|leg| leg.outcome == LegOutcome::Ok);
        if let Some(version) = cell.kept.current.clone()
            && let Some(entry) = cell.kept.versions.get_mut(&version)
        {
            match evidence.leg(Leg::Unwrap).map(|leg| (leg.outcome, leg.failure_kind)) {
                Some((LegOutcome::Ok, _)) => set_usable(entry, true, None, evidence),
                Some((LegOutcome::Failed, kind)) if matches!(verdict, Verdict::Refused(_)) => set_usable(entry, false, kind, evidence),
                Some((LegOutcome::Failed | LegOutcome::NotRun, _)) | None => {}
            }
        }
        let Some(fresh) = evidence.fresh.clone().filter(|_| unwrap_ok) else { return };
        let told = evidence.facts.as_ref().and_then(|f| f.current_version.clone());
        let version = fresh.version.clone().or(told).unwrap_or_else(|| KeyVersion::new(UNNAMED));
        // While locked, nothing new is stored: the old canary must prove that the old material is back.
        let settled = match cell.kept.life {
            KeyState::Active | KeyState::Impaired { .. } | KeyState::Unproven => true,
            KeyState::Suspect { .. } | KeyState::Revoked { .. } | KeyState::Recovering { .. } | KeyState::Retired => false,
        };
        let complete = matches!(verdict, Verdict::Good { complete: true, .. });
        if settled && (cell.proven() || complete) {
            self.take_current(now, ix, &version, fresh, evidence);
            self.take_made(now, ix, evidence);
        }
    }

    /// Canaries made for versions that this daemon has never seen wrapping: they may protect data
    /// from before the registration, or from between two looks.
    fn take_made(&mut self, now: Now, ix: KeyIx, evidence: &Evidence) {
        for made in &evidence.made {
            let Some(version) = made.version.clone() else { continue };
            let between = self.came_between(ix, &version);
            let Some(cell) = self.cells.get_mut(&ix) else { return };
            let entry = cell.kept.versions.entry(version.clone()).or_insert_with(|| new_version(now));
            set_usable(entry, true, None, evidence);
            if entry.canary.is_none() {
                entry.canary = Some(made.clone());
                entry.canary_at = Some(now.wall);
                let row = canary_row(cell, &version, made.clone(), evidence, now);
                self.write_canary(row);
            }
            if let Some(before) = between
                && let Some(cell) = self.cells.get_mut(&ix)
            {
                cell.kept.rotations = cell.kept.rotations.saturating_add(1);
                cell.dirty = true;
                self.tell_rotation(now, ix, &before, &version);
            }
        }
    }

    /// Of two rotations between two looks the first is seen by the version it left: younger than one
    /// we knew, older than the current one, made after the registration. Gives the version before it.
    fn came_between(&self, ix: KeyIx, version: &KeyVersion) -> Option<KeyVersion> {
        let cell = self.cells.get(&ix)?;
        if cell.kept.versions.contains_key(version) {
            return None;
        }
        let facts = cell.kept.facts.as_ref()?;
        let born = |v: &KeyVersion| facts.versions.iter().find(|fact| fact.version == *v).and_then(|fact| fact.created_at);
        let (at, current) = (born(version)?, born(cell.kept.current.as_ref()?)?);
        if at >= current || at < cell.kept.registered_at? {
            return None;
        }
        let known = cell.kept.versions.keys().filter_map(|v| born(v).map(|born| (born, v.clone())));
        known.filter(|(born, _)| *born < at).max().map(|(_, v)| v)
    }

    /// The version that wrapped in this round; a change of it is a rotation unless it is propagation.
    fn take_current(&mut self, now: Now, ix: KeyIx, version: &KeyVersion, fresh: Wrapped, evidence: &Evidence) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let before = cell.kept.current.clone();
        let known = cell.kept.versions.contains_key(version);
        let entry = cell.kept.versions.entry(version.clone()).or_insert_with(|| new_version(now));
        entry.protects_data = true;
        set_usable(entry, true, None, evidence);
        if entry.canary.is_none() {
            let canary = Wrapped { version: Some(version.clone()), ..fresh };
            entry.canary = Some(canary.clone());
            entry.canary_at = Some(now.wall);
            cell.dirty = true;
            let row = canary_row(cell, version, canary, evidence, now);
            self.write_canary(row);
        }
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        if before.as_ref() == Some(version) {
            return;
        }
        cell.kept.current = Some(version.clone());
        cell.dirty = true;
        let Some(before) = before else { return };
        // The version before is an older one now: its canary is opened next, at once.
        if let Some(old) = cell.kept.versions.get_mut(&before) {
            old.last_checked = None;
        }
        let settling = cell.kept.rotated_at.is_some_and(|at| now.mono.since(at.mono) < SETTLE);
        if known && settling {
            return;
        }
        cell.kept.rotations = cell.kept.rotations.saturating_add(1);
        cell.kept.rotated_at = Some(now.into());
        self.tell_rotation(now, ix, &before, version);
    }

    /// A canary made anew in the turn in which the damaged one was dropped must not be dropped with it.
    fn write_canary(&mut self, row: CanaryRow) {
        let commit = &mut self.ledger.open.commit;
        commit.canaries_dropped.retain(|(key, version)| !(*key == row.key && *version == row.version));
        commit.canaries.push(row);
    }

    fn see_older(&mut self, ix: KeyIx, evidence: &Evidence) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        for (version, outcome, kind) in verdict::version_outcomes(evidence) {
            let Some(entry) = cell.kept.versions.get_mut(&version) else { continue };
            let before = entry.usable;
            match outcome {
                LegOutcome::Ok => set_usable(entry, true, None, evidence),
                LegOutcome::Failed if kind.is_some_and(verdict::is_conclusive) => set_usable(entry, false, kind, evidence),
                // Asked, and no wiser: asked again in its turn.
                LegOutcome::Failed => entry.last_checked = Some(evidence.started.into()),
                LegOutcome::NotRun => {}
            }
            cell.dirty |= before != entry.usable;
        }
    }

    /// An alias that moves to another key: said once, access stays as the pinned key earns it.
    fn see_substitution(&mut self, now: Now, ix: KeyIx, evidence: &Evidence) {
        let Some(resolved) = evidence.facts.as_ref().and_then(|f| f.resolved.clone()) else { return };
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let is_alias = matches!(cell.key.target.reference.resource, crate::key::Resource::Aws { alias: true, .. });
        if !is_alias {
            return;
        }
        match &cell.key.target.pinned {
            Some(pinned) if *pinned != resolved && cell.kept.substituted.as_deref() != Some(&*resolved) => {
                cell.kept.substituted = Some(resolved.to_string());
                cell.dirty = true;
                self.transition(now, ix, EventType::KeySubstituted, None);
            }
            Some(_) => {}
            None => self.pin(ix, &resolved),
        }
    }

    fn pin(&mut self, ix: KeyIx, resolved: &Arc<str>) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let mut key = (*cell.key).clone();
        let mut target = (*key.target).clone();
        target.pinned = Some(Arc::clone(resolved));
        key.target = Arc::new(target);
        cell.key = Arc::new(key);
        cell.kept.pinned = Some(resolved.to_string());
        cell.dirty = true;
        self.hearing.renamed();
    }
}

fn new_version(now: Now) -> VersionCell {
    VersionCell {
        usable: Some(true),
        protects_data: true,
        last_checked: None,
        retired: false,
        failure_kind: None,
        seen_at: now.wall,
        canary: None,
        canary_at: None,
    }
}

fn canary_row(cell: &KeyCell, version: &KeyVersion, wrapped: Wrapped, evidence: &Evidence, now: Now) -> CanaryRow {
    let identity = evidence.identity.as_ref().map(|who| who.to_string());
    CanaryRow { key: cell.key.id.clone(), version: version.clone(), wrapped, identity, created_at: now.wall }
}

fn set_usable(entry: &mut VersionCell, usable: bool, kind: Option<crate::words::FailureKind>, evidence: &Evidence) {
    entry.usable = Some(usable);
    entry.failure_kind = kind;
    entry.last_checked = Some(Stamp::from(evidence.started));
}
