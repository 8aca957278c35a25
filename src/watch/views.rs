//! inside
//! What is shown, made from what is: one shape behind API, metrics, status page and command line.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::journal::{KeyRow, Order, Shard};
use crate::key::{ProviderId, WorkspaceId};
use crate::lifecycle::KeyState;
use crate::notify::compose;
use crate::schedule::KeyIx;
use crate::snapshot::{
    Change, DaemonView, FactsView, KeyView, LockView, OverrideView, ProbeView, ProviderView, VersionView, WorkspaceView,
};
use crate::time::{Now, Span};
use crate::verdict::{Stated, Verdict};
use crate::watch::cell::{Kept, KeyCell};
use crate::watch::levers::waiting_step;
use crate::watch::tell::{code_of, deciding};
use crate::watch::{Effects, Watch};
use crate::words::{Access, By, Cause, FailureKind, HeldBy, VerdictWord};

/// A steady key is stored again after so long even if nothing changed, so that a restart knows when
/// it was last seen well.
const STORE_AGAIN: Span = Span::from_mins(10);

impl Watch {
    pub(super) fn key_view(&self, now: Now, ix: KeyIx) -> Option<KeyView> {
        let cell = self.cells.get(&ix)?;
        let finding = cell.kept.life.finding();
        let lane_due = self.lanes.due_at(&cell.lane, ix);
        let next = lane_due.or(cell.in_flight.map(|f| f.started.mono)).map(|at| now.wall.plus(at.since(now.mono)));
        let refused = cell.key.refused.is_some();
        let stated = match (&cell.verdict, &cell.kept.life) {
            (Some(Verdict::Refused(r)), _) => r.stated != Stated::No,
            (Some(Verdict::Unsure { .. }), _) => finding.is_some_and(|f| f.stated != Stated::No),
            (Some(Verdict::Good { .. }) | None, _) => false,
        };
        let shadow = matches!(&cell.kept.life, KeyState::Revoked { lock: None, .. });
        Some(KeyView {
            id: cell.key.id.clone(),
            provider: cell.key.provider.clone(),
            provider_kind: self
                .config
                .providers
                .get(&cell.key.provider)
                .map_or(crate::words::ProviderKind::Local, crate::config::Provider::kind),
            key: cell.name.1.to_string(),
            policy: Self::policy_name(cell),
            state: cell.kept.life.word(),
            verdict: if refused { Some(VerdictWord::Inconclusive) } else { cell.verdict.as_ref().map(Verdict::word) },
            failure_kind: failure_kind(cell),
            stated,
            confirmed: finding.is_some() && !matches!(cell.kept.life, KeyState::Recovering { .. }),
            held_by: cell.kept.life.held_by(),
            enforced: cell.policy.enforce && !shadow,
            would_access: would_access(cell),
            since: cell.kept.since,
            workspaces: cell.key.workspaces.clone(),
            owner: cell.key.owner.clone(),
            versions: versions(cell),
            facts: facts(cell),
            last_probe: cell.last.as_ref().map(|(at, legs)| ProbeView { at: *at, legs: legs.clone() }),
            last_conclusive_at: cell.kept.last_conclusive.map(|at| at.wall),
            next_probe_at: next,
            identity: cell.identity.as_ref().map(|who| who.to_string()),
            source: match cell.key.source {
                crate::config::Source::File => "file".to_owned(),
                crate::config::Source::Api => "api".to_owned(),
            },
            refused: cell.key.refused.clone(),
            rotations: cell.kept.rotations,
        })
    }

    pub(super) fn workspace_view(&self, now: Now, id: &WorkspaceId) -> Option<WorkspaceView> {
        let ws = self.workspaces.get(id)?;
        let mut orders = ws.acting();
        if self.ledger.withholds_raise(id) {
            orders.overrides.clear();
        }
        let waits = self.ledger.withholds_raise(id) || self.ledger.reserves(id) || !ws.lifting.is_empty();
        let floor = if self.ledger.withholds_raise(id) { ws.floor } else { Access::Open };
        let access = orders.access(&ws.counting(), ws.needs, now.wall).max(floor);
        let first = deciding(&orders, now.wall).filter(|_| access != Access::Open);
        let durable = self.ledger.is_durable(id);
        let kind = first.and_then(|order| match order.cause {
            Cause::Kind(kind) => Some(kind),
            Cause::Stale | Cause::Manual | Cause::Drill | Cause::VersionLost | Cause::Orphaned => None,
        });
        let key_cell = first
            .and_then(|o| o.key.as_ref())
            .and_then(|k| self.by_name.get(&(k.provider.clone(), Arc::clone(&k.reference))))
            .and_then(|ix| self.cells.get(ix));
        let recoverable = key_cell.and_then(|c| c.kept.facts.as_ref()).and_then(|f| f.recoverable_until.or(f.deletion_at));
        let bound = || ws.bound.iter().filter_map(|name| self.by_name.get(name)).filter_map(|ix| self.cells.get(ix));
        let would = bound().filter_map(would_access).max();
        let view = WorkspaceView {
            workspace: id.clone(),
            access,
            code: first.and_then(|o| code_of(o.cause, access, kind)),
            cause: first.map(|o| if o.orphaned { Cause::Orphaned } else { o.cause }),
            key: first.and_then(|o| o.key.as_ref()).map(|k| k.id.clone()),
            message: first.and_then(|o| o.message.clone().or_else(|| o.reason.clone())),
            since: ws.since,
            by: first.map(|o| o.by),
            sequence: if waits { ws.meanwhile } else { ws.sequence },
            keys: bound().map(|c| c.key.id.clone()).collect(),
            locks: orders.manual.iter().chain(orders.automatic.values()).map(|o| lock_view(o, durable)).collect(),
            terminal: kind == Some(FailureKind::Destroyed)
                && key_cell.is_some_and(|c| c.kept.life.finding().is_some_and(|f| f.stated != Stated::No))
                && recoverable.is_none_or(|until| until <= now.wall),
            recoverable_until: recoverable,
            next_step: first.map(|o| next_step(o, key_cell, self)),
            release: first.and_then(|o| o.release),
            overrides: ws
                .orders
                .overrides
                .iter()
                .filter(|o| o.until > now.wall)
                .map(|o| OverrideView {
                    key: o.key.clone(),
                    kind: o.kind,
                    until: o.until,
                    reason: o.reason.clone(),
                    actor: o.actor.clone(),
                })
                .collect(),
            durable,
            would_access: would,
            levers: self.levers.views(id),
            drill: self.drill_of(id).cloned(),
        };
        Some(over_laid(view, ws.lever_floor))
    }

    pub(super) fn provider_view(&self, provider: &ProviderId) -> Option<ProviderView> {
        let config = self.config.providers.get(provider)?;
        let control = self.controls.get(provider);
        let brake = self.brakes.get(provider);
        Some(ProviderView {
            provider: provider.clone(),
            kind: config.kind(),
            control_key_healthy: control.and_then(|c| c.healthy),
            control_key: config.control_key.as_ref().map(|t| t.reference.text.to_string()),
            brake_engaged: brake.is_some_and(|b| b.engaged),
            held: brake.map(|b| b.held.iter().cloned().collect()).unwrap_or_default(),
            clock_skew_ms: control.and_then(|c| c.clock_skew_ms),
            missed_windows: control.map_or(0, |c| c.missed),
            credentials_failing: control.is_some_and(|c| c.credentials_failing),
            credentials_expire_at: self.config.credentials_expire_at.get(provider).copied(),
        })
    }

    pub(super) fn daemon_view(&self, now: Now, ready: bool) -> DaemonView {
        DaemonView {
            started_at: self.started_at,
            ready,
            config_flagged: self.config_flagged.clone(),
            bugs: self.bugs,
            would_lock_total: self.would_lock,
            store_write_failures: self.store_failures,
            outbox: self.outbox.views(now),
            audit: self.audit_views(),
            drills: self.drill_views(),
        }
    }

    /// Shows a workspace, unless its lowering still waits for the disk.
    pub(super) fn show_workspace(&mut self, now: Now, id: &WorkspaceId, out: &mut Effects) {
        if !self.ledger.withholds(id) {
            self.publish_workspace(now, id, out);
        }
    }

    /// Whoever sees two levels of access under one number cannot tell which is the later one.
    pub(super) fn publish_workspace(&mut self, now: Now, id: &WorkspaceId, out: &mut Effects) {
        self.mind_levers(now, id);
        let Some(mut view) = self.workspace_view(now, id) else { return };
        let waits = self.ledger.withholds_raise(id) || self.ledger.reserves(id);
        let Some(ws) = self.workspaces.get_mut(id) else { return };
        let differs = ws.last_shown.is_some_and(|(sequence, access)| access != view.access && view.sequence <= sequence);
        if differs {
            ws.sequence = ws.sequence.next(now.wall.0);
            view.sequence = ws.sequence;
            if waits || !ws.lifting.is_empty() {
                ws.meanwhile = ws.sequence;
                ws.sequence = ws.sequence.next(now.wall.0);
            }
        }
        ws.last_shown = Some((view.sequence, view.access));
        if differs {
            self.store_workspace(id);
        }
        self.push_access(now, &view, out);
        out.publish.push(Change::Workspace(Arc::new(view)));
    }

    pub(super) fn show_key(&self, now: Now, ix: KeyIx, out: &mut Effects) {
        if let Some(view) = self.key_view(now, ix) {
            out.publish.push(Change::Key(Arc::new(view)));
        }
    }

    /// Shows a key now, or with the commit that its change waits for.
    pub(super) fn show_key_later(&self, now: Now, ix: KeyIx, out: &mut Effects) {
        if !self.ledger.withholds_key(ix) {
            self.show_key(now, ix, out);
        }
    }

    pub(super) fn show_provider(&self, _now: Now, provider: &ProviderId, out: &mut Effects) {
        if let Some(view) = self.provider_view(provider) {
            out.publish.push(Change::Provider(Arc::new(view)));
        }
    }

    /// End of a turn: providers and the daemon itself, where they look different than before.
    pub(super) fn show_changed(&mut self, now: Now, out: &mut Effects) {
        let providers: Vec<ProviderId> = self.config.providers.keys().cloned().collect();
        for provider in providers {
            let Some(view) = self.provider_view(&provider) else { continue };
            if self.shown.get(&provider) != Some(&view) {
                self.shown.insert(provider, view.clone());
                out.publish.push(Change::Provider(Arc::new(view)));
            }
        }
        if std::mem::take(&mut self.daemon_dirty) {
            out.publish.push(Change::Daemon(Arc::new(self.daemon_view(now, true))));
        }
    }

    /// Puts a changed key into the commit of this turn.
    pub(super) fn store_cell(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let old = cell.last_stored.is_none_or(|at| now.mono.since(at) >= STORE_AGAIN);
        if !cell.dirty && !old {
            return;
        }
        let state = row_text(cell);
        cell.dirty = false;
        cell.last_stored = Some(now.mono);
        let row = KeyRow { key: cell.key.id.clone(), shard: Shard(0), state: Some(state) };
        let rows = &mut self.ledger.open.commit.keys;
        rows.retain(|other| other.key != row.key);
        rows.push(row);
    }
}

/// What stands over the orders: levers not undone yet, then a drill. Real evidence wins.
fn over_laid(mut view: WorkspaceView, lever_floor: Option<(Access, Cause)>) -> WorkspaceView {
    if let Some((access, cause)) = lever_floor.filter(|(access, _)| *access > view.access) {
        let kind = match cause {
            Cause::Kind(kind) => Some(kind),
            Cause::Stale | Cause::Manual | Cause::Drill | Cause::VersionLost | Cause::Orphaned => None,
        };
        (view.access, view.cause, view.code) = (access, Some(cause), code_of(cause, access, kind));
        view.message = Some("The lock is lifted; levers are still to be undone.".to_owned());
        view.next_step = Some(waiting_step().to_owned());
        view.by = Some(if cause == Cause::Manual { By::Manual } else { By::Automatic });
    }
    if let Some(drill) = view.drill.clone().filter(|drill| drill.cut && view.access < Access::Locked) {
        view.access = Access::Locked;
        (view.cause, view.code, view.by) = (Some(Cause::Drill), code_of(Cause::Drill, Access::Locked, None), Some(By::Manual));
        (view.key, view.release) = (drill.key.clone(), None);
        view.message = Some(format!("DRILL: access is cut by {} until {}: {}", drill.actor, drill.until, drill.reason));
        view.next_step = Some("This is a drill. It ends by itself, or with `cmek-watchdog drill --end`.".to_owned());
    }
    view
}

/// The row of a key. While its unlock is on the way it is written as what the unlock makes of it, in
/// the same commit and in every one after it; in memory it recovers until the disk has it.
/// What the workspaces would have: in shadow mode, or while the brake holds a confirmed lock.
fn would_access(cell: &KeyCell) -> Option<Access> {
    match &cell.kept.life {
        KeyState::Revoked { finding, lock: None, .. } => Some(finding.access),
        KeyState::Suspect { looks, held: Some(HeldBy::Brake), .. } => looks.confirmed(&cell.policy, true).and_then(|c| c.access),
        KeyState::Unproven
        | KeyState::Active
        | KeyState::Impaired { .. }
        | KeyState::Suspect { .. }
        | KeyState::Revoked { .. }
        | KeyState::Recovering { .. }
        | KeyState::Retired => None,
    }
}

fn row_text(cell: &KeyCell) -> Arc<str> {
    if cell.unlocking && matches!(cell.kept.life, KeyState::Recovering { .. }) {
        let kept = Kept { life: KeyState::Active, released_to: BTreeSet::new(), ..cell.kept.clone() };
        return crate::watch::restore::to_text(&kept).into();
    }
    crate::watch::restore::to_text(&cell.kept).into()
}

fn failure_kind(cell: &KeyCell) -> Option<FailureKind> {
    if cell.key.refused.is_some() {
        return Some(FailureKind::Misconfigured);
    }
    match &cell.verdict {
        Some(verdict) => verdict.kind().or(match &cell.kept.life {
            KeyState::Suspect { refused, .. } => Some(refused.kind),
            KeyState::Impaired { finding } => Some(finding.kind),
            KeyState::Unproven | KeyState::Active | KeyState::Revoked { .. } | KeyState::Recovering { .. } | KeyState::Retired => None,
        }),
        None => cell.kept.life.finding().map(|f| f.kind),
    }
}

fn versions(cell: &KeyCell) -> Vec<VersionView> {
    cell.kept
        .versions
        .iter()
        .map(|(version, v)| VersionView {
            version: version.clone(),
            usable: v.usable,
            protects_data: v.protects_data,
            last_checked: v.last_checked.map(|at| at.wall),
            current: cell.kept.current.as_ref() == Some(version),
            retired: v.retired,
            failure_kind: v.failure_kind,
        })
        .collect()
}

fn facts(cell: &KeyCell) -> FactsView {
    let facts = cell.kept.facts.clone().unwrap_or_default();
    FactsView {
        created_at: facts.created_at,
        rotated_at: facts.rotated_at.or(cell.kept.rotated_at.map(|at| at.wall)),
        next_rotation_at: facts.next_rotation_at,
        deletion_at: facts.deletion_at,
        expires_at: facts.expires_at,
        not_before: facts.not_before,
        recoverable_until: facts.recoverable_until,
        protection_level: facts.protection_level.map(|s| s.to_string()),
        origin: facts.origin.map(|s| s.to_string()),
        multi_region: facts.multi_region,
        resolved: facts.resolved.map(|s| s.to_string()),
        current_version: facts.current_version.or_else(|| cell.kept.current.clone()),
        rotation: facts.rotation,
        versions_truncated: facts.versions_truncated,
    }
}

fn lock_view(order: &Order, durable: bool) -> LockView {
    LockView {
        by: order.by,
        key: order.key.as_ref().map(|k| k.id.clone()),
        cause: if order.orphaned { Cause::Orphaned } else { order.cause },
        access: order.access,
        since: order.since,
        reason: order.reason.clone(),
        actor: order.actor.clone(),
        expires_at: order.expires_at,
        sequence: order.sequence,
        release: order.release,
        durable,
    }
}

fn next_step(order: &Order, cell: Option<&KeyCell>, watch: &Watch) -> String {
    if order.release.is_some() {
        return "The key works again. Approve the unlock with `cmek-watchdog unlock`, or leave it locked.".to_owned();
    }
    match (order.by, order.cause) {
        (By::Manual, _) => "An operator locked this. It opens when an operator unlocks it.".to_owned(),
        (By::Automatic, _) if order.orphaned => {
            "The key that locked this is no longer registered for it. Clear the lock with a reason.".to_owned()
        }
        (By::Automatic, Cause::Kind(kind)) => {
            let provider = cell
                .and_then(|c| watch.config.providers.get(&c.key.provider))
                .map_or(crate::words::ProviderKind::Local, crate::config::Provider::kind);
            compose::next_step(kind, provider).to_owned()
        }
        (By::Automatic, Cause::Stale) => {
            "Nothing certain was seen of the key for longer than the policy allows. Find out why it cannot be checked.".to_owned()
        }
        (By::Automatic, Cause::VersionLost) => {
            "An older version of the key no longer opens data. Ask its owner to enable that version again.".to_owned()
        }
        (By::Automatic, Cause::Manual | Cause::Drill | Cause::Orphaned) => "Ask the operator who ordered this.".to_owned(),
    }
}
