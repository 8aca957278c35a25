//! inside
//! Levers of workspaces: pulled once the gate shows the lock, undone once the unlock is on disk, and
//! only then does the gate open. No lever can cancel or delay a lock.

use serde::{Deserialize, Serialize};

use crate::config::{LeverConfig, LeverDetail, route};
use crate::key::{KeyId, LeverId, WorkspaceId};
use crate::lever::{Entry, Outcome, Slot, Wanted};
use crate::time::Now;
use crate::watch::restore::{from_text, to_text};
use crate::watch::tell::deciding;
use crate::watch::workspaces::{Changed, Workspace};
use crate::watch::{Effects, Watch};
use crate::words::{Access, Cause, EventType, LeverAct, LeverState, Severity};

/// The opening of a workspace, told when its levers are undone.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Opening {
    pub key: Option<KeyId>,
    pub from: Access,
    pub to: Access,
    pub cause: Cause,
    pub actor: Option<String>,
}

const fn again(lever: &LeverConfig) -> bool {
    match lever.detail {
        LeverDetail::Claude { .. } | LeverDetail::File { .. } => true,
        LeverDetail::Webhook { .. } => false,
    }
}

/// A file is written whole: one at a time.
const fn wide(lever: &LeverConfig) -> bool {
    match lever.detail {
        LeverDetail::Claude { .. } | LeverDetail::Webhook { .. } => true,
        LeverDetail::File { .. } => false,
    }
}

const fn threshold(lever: &LeverConfig) -> Access {
    if lever.read_only { Access::ReadOnly } else { Access::Locked }
}

fn name_of(slot: &Slot) -> String {
    format!("lever:{}/{}", slot.1, slot.0)
}

impl Watch {
    /// Whether a lever acts on this workspace at all.
    fn lever_fits(&self, lever: &LeverConfig, ws: &Workspace) -> bool {
        let fits = |pattern: &Option<String>, text: &str| pattern.as_ref().is_none_or(|pattern| route::fits(pattern, text));
        let mut providers = ws.bound.iter().chain(ws.orders.automatic.keys()).map(|(provider, _)| provider.as_str());
        let provider = lever.matching.provider.is_none() || providers.any(|provider| fits(&lever.matching.provider, provider));
        fits(&lever.matching.workspace, ws.id.as_str()) && provider
    }

    /// What the gate is about to show of a workspace decides about its levers.
    pub(super) fn mind_levers(&mut self, now: Now, id: &WorkspaceId) {
        if self.config.levers.is_empty() && self.levers.is_empty() {
            return;
        }
        let raising = self.ledger.withholds_raise(id);
        let Some(ws) = self.workspaces.get(id) else { return };
        let (real, sequence) = (ws.shown(now.wall), ws.sequence);
        let acting = ws.acting();
        let cause = deciding(&acting, now.wall).map_or(Cause::Manual, |order| order.cause);
        let fitting: Vec<LeverConfig> = self.config.levers.values().filter(|lever| self.lever_fits(lever, ws)).cloned().collect();
        let mut changed: Vec<Slot> = Vec::new();
        for lever in fitting.iter().filter(|lever| real >= threshold(lever)) {
            let slot = (id.clone(), lever.id.clone());
            let wanted = Wanted { access: real, cause, sequence, again: again(lever), wide: wide(lever) };
            if self.levers.pull(now, &slot, wanted) {
                changed.push(slot);
            }
        }
        if !raising {
            let kept = |lever: &LeverId| fitting.iter().any(|fit| fit.id == *lever && real >= threshold(fit));
            for (lever, _) in self.levers.entries(id).into_iter().filter(|(lever, _)| !kept(lever)) {
                let slot = (id.clone(), lever);
                if !self.config.levers.contains_key(&slot.1) {
                    self.lever_is_gone(now, &slot);
                } else if self.levers.undo(now, &slot, sequence) {
                    changed.push(slot);
                }
            }
        }
        for slot in changed {
            self.store_lever(&slot);
        }
        let holds = self.levers.holds(id);
        let stale = self.workspaces.get(id).and_then(|ws| ws.opening.as_ref()).is_some_and(|opening| real >= opening.from && !raising);
        if let Some(ws) = self.workspaces.get_mut(id) {
            if let Some(held) = holds {
                ws.lever_floor = Some(held);
            } else if ws.lever_floor.is_some_and(|(floor, _)| real >= floor) {
                ws.lever_floor = None;
            }
            if stale && holds.is_none() {
                ws.opening = None;
            }
        }
        if stale && holds.is_none() {
            self.store_opening(id);
        }
    }

    /// A lever that the configuration names no more: nothing can be undone, and nobody waits for it.
    fn lever_is_gone(&mut self, now: Now, slot: &Slot) {
        let Some(entry) = self.levers.forget(slot) else { return };
        self.ledger.open.commit.meta.insert(name_of(slot), None);
        if entry.state != LeverState::Undone {
            let left = vec!["the lever is configured no more; what it changed stays as it is".to_owned()];
            self.tell_lever(now, slot, &Entry { error: None, left, state: LeverState::Failed, act: LeverAct::Undo, ..entry });
        }
        self.release_if_undone(now, &slot.0);
    }

    fn store_lever(&mut self, slot: &Slot) {
        let entry = self.levers.entries(&slot.0).into_iter().find(|(lever, _)| *lever == slot.1).map(|(_, entry)| entry);
        let text = entry.as_ref().filter(|entry| entry.state != LeverState::Undone).map(to_text);
        self.ledger.open.commit.meta.insert(name_of(slot), text);
        if let Some(entry) = entry {
            self.ledger.open.levers.push((slot.clone(), entry));
        }
    }

    fn store_opening(&mut self, id: &WorkspaceId) {
        let text = self.workspaces.get(id).and_then(|ws| ws.opening.as_ref()).map(to_text);
        self.ledger.open.commit.meta.insert(format!("opening:{id}"), text);
    }

    /// A lever has moved, or has not.
    pub(super) fn pulled(&mut self, now: Now, slot: &Slot, attempt: u64, outcome: Outcome, out: &mut Effects) {
        let Some(came) = self.levers.answered(now, slot, attempt, outcome) else { return };
        self.store_lever(slot);
        if came.news {
            self.tell_lever(now, slot, &came.entry);
        }
        if came.entry.state == LeverState::Undone {
            self.release_if_undone(now, &slot.0);
        }
        self.show_workspace(now, &slot.0, out);
    }

    /// Everything is undone: the opening is told, and the gate opens when that is on disk.
    fn release_if_undone(&mut self, now: Now, id: &WorkspaceId) {
        if self.levers.holds(id).is_some() {
            return;
        }
        let Some(ws) = self.workspaces.get_mut(id).filter(|ws| ws.lever_floor.is_some()) else { return };
        ws.since = now.wall;
        let opening = ws.opening.take();
        self.reserve(now, id);
        let Some(opening) = opening else { return };
        let sequence = self.workspaces.get(id).map(|ws| ws.sequence).unwrap_or_default();
        self.store_opening(id);
        let changed = Changed { workspace: id.clone(), from: opening.from, to: opening.to, sequence };
        let ix = opening.key.as_ref().and_then(|key| self.by_id.get(key)).copied();
        self.tell_group(now, ix, &[&changed], opening.to, opening.cause, None, opening.actor.as_deref());
    }

    /// Whether the opening of a workspace waits for levers: then it is told when they are undone.
    pub(super) fn opening_waits(&mut self, change: &Changed, key: Option<KeyId>, cause: Cause, actor: Option<&str>) -> bool {
        let held = |entry: &Entry| entry.state != LeverState::Undone;
        let levers = &self.config.levers;
        let waits = change.to < change.from
            && self
                .levers
                .entries(&change.workspace)
                .iter()
                .any(|(lever, entry)| held(entry) && levers.get(lever).is_some_and(|lever| change.to < threshold(lever)));
        let Some(ws) = self.workspaces.get_mut(&change.workspace).filter(|_| waits) else { return false };
        let from = ws.opening.as_ref().map_or(change.from, |opening| opening.from.max(change.from));
        ws.opening = Some(Opening { key, from, to: change.to, cause, actor: actor.map(str::to_owned) });
        self.store_opening(&change.workspace);
        true
    }

    /// Part of every turn: levers that are due.
    pub(super) fn start_levers(&mut self, now: Now, out: &mut Effects) {
        out.levers.extend(self.levers.orders(now));
    }

    pub(super) fn lever_stored(&mut self, now: Now, slot: &Slot, entry: &Entry) {
        self.levers.stored(now, slot, entry);
    }

    /// A row of the store; `true` if it was one of levers.
    pub(super) fn restore_lever(&mut self, now: Now, name: &str, text: &str) -> bool {
        if let Some(rest) = name.strip_prefix("lever:") {
            let slot = rest.split_once('/').and_then(|(lever, ws)| Some((WorkspaceId::new(ws).ok()?, LeverId::new(lever).ok()?)));
            let (Some(slot), Some(entry)) = (slot, from_text::<Entry>(text)) else { return true };
            let lever = self.config.levers.get(&slot.1);
            let (again, wide) = (lever.is_some_and(again), lever.is_none_or(wide));
            if entry.act == LeverAct::Undo && lever.is_some() {
                let ws = self.workspaces.entry(slot.0.clone()).or_insert_with(|| Workspace::new(slot.0.clone(), now));
                ws.lever_floor = ws.lever_floor.max_by_access(Some((entry.access, entry.cause)));
            }
            self.levers.restore(now, slot, entry, again, wide);
            true
        } else if let Some(id) = name.strip_prefix("opening:").and_then(|id| WorkspaceId::new(id).ok()) {
            let ws = self.workspaces.entry(id.clone()).or_insert_with(|| Workspace::new(id, now));
            ws.opening = from_text(text);
            true
        } else {
            false
        }
    }

    /// Records what a lever did, and tells people of a failure, its end, and what stays open.
    fn tell_lever(&mut self, now: Now, slot: &Slot, entry: &Entry) {
        let (event, severity) = match (entry.state, entry.act) {
            (LeverState::Failed, _) => (EventType::LeverFailed, Severity::Critical),
            (LeverState::Pulled | LeverState::Pending, _) => (EventType::LeverPulled, Severity::Info),
            (LeverState::Undone, _) => (EventType::LeverUndone, if entry.left.is_empty() { Severity::Info } else { Severity::Warning }),
        };
        let mut detail = vec![("lever", slot.1.to_string()), ("act", entry.act.to_string()), ("sequence", entry.sequence.0.to_string())];
        detail.extend(entry.error.clone().map(|error| ("error", error)));
        detail.extend((!entry.left.is_empty()).then(|| ("left", entry.left.join("; "))));
        self.record(now, event, None, Some(slot.0.clone()), detail);
        let mut text = match (entry.state, entry.act) {
            (LeverState::Failed, LeverAct::Pull) => {
                format!("Lock incomplete: lever {} of workspace {} is not pulled. The gate refuses all the same.", slot.1, slot.0)
            }
            (LeverState::Failed, LeverAct::Undo) => {
                format!("Lever {} of workspace {} is not undone.", slot.1, slot.0)
            }
            (LeverState::Pulled | LeverState::Pending, _) => format!("Lever {} of workspace {} is pulled.", slot.1, slot.0),
            (LeverState::Undone, _) => format!("Lever {} of workspace {} is undone.", slot.1, slot.0),
        };
        if let Some(error) = &entry.error {
            text.push_str(&format!(" It is tried again: {error}."));
        }
        if !entry.left.is_empty() {
            text.push_str(&format!(" To know: {}.", entry.left.join("; ")));
        }
        self.tell_workspace(now, event, severity, &slot.0, &text);
    }

    /// Levers as they are to be after a change of the configuration.
    pub(super) fn reload_levers(&mut self, now: Now) {
        let mut ids: Vec<WorkspaceId> = self.levers.slots().into_iter().map(|(ws, _)| ws).collect();
        if !self.config.levers.is_empty() {
            ids.extend(self.workspaces.values().filter(|ws| ws.decided > Access::Open).map(|ws| ws.id.clone()));
        }
        ids.sort();
        ids.dedup();
        for id in ids {
            if !self.ledger.withholds(&id) {
                self.mind_levers(now, &id);
            }
        }
    }
}

/// The stricter of two floors.
trait Stricter {
    fn max_by_access(self, other: Self) -> Self;
}

impl Stricter for Option<(Access, Cause)> {
    fn max_by_access(self, other: Self) -> Self {
        match (self, other) {
            (Some(one), Some(two)) => Some(if two.0 > one.0 { two } else { one }),
            (one, two) => one.or(two),
        }
    }
}

/// How long a workspace waits is shown from here on.
pub(super) const fn waiting_step() -> &'static str {
    "The lock is lifted; access opens when its levers are undone. Look at `levers` for what fails."
}
