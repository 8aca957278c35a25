//! inside
//! A new configuration: the difference is applied, and nothing of it ever lowers a restriction.
//! Locks of keys that went away stay as orphans until an operator clears them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Config, Key};
use crate::journal::{KeyRow, Order, OrderKey, Shard};
use crate::key::WorkspaceId;
use crate::lifecycle::{Finding, KeyState};
use crate::schedule::KeyIx;
use crate::snapshot::Change;
use crate::time::Now;
use crate::verdict::{Direction, Stated};
use crate::watch::control::Control;
use crate::watch::{Effects, Watch};
use crate::words::{Access, Cause, EventType, FailureKind};

impl Watch {
    pub(super) fn reload(&mut self, now: Now, config: Arc<Config>, actor: &str, out: &mut Effects) {
        let config = crate::config::check::take_in(&config, &self.registered);
        self.config = Arc::clone(&config);
        self.config_flagged = None;
        for (id, provider) in &config.providers {
            self.lanes.set_rate(id, provider.calls_per_second);
            self.controls.entry(id.clone()).or_insert_with(|| Control::new(provider, now)).retarget(provider.control_key.clone(), now);
        }
        self.judge_unwitnessed(now, out);
        self.outbox.set_receivers(config.receivers.keys().cloned());
        self.outbox.set_pace(Some(config.notify.pace), &config.keeping_incidents());
        let gone: Vec<KeyIx> = self.cells.iter().filter(|(_, cell)| !self.still_the_same(cell, &config)).map(|(ix, _)| *ix).collect();
        for ix in gone {
            self.remove_key(now, ix, out);
        }
        for key in config.keys.values() {
            match self.by_id.get(&key.id).copied() {
                Some(ix) => self.refresh_key(now, ix, key, out),
                None => {
                    let ix = self.add_cell(Arc::new(key.clone()), now);
                    self.store_cell(now, ix);
                    self.place_at_start(now, ix);
                }
            }
        }
        for (id, ws) in &mut self.workspaces {
            ws.needs = config.workspaces.get(id).copied().unwrap_or(crate::config::Needs::All);
        }
        self.mark_orphans(now);
        self.lock_new_bindings(now);
        self.settle_needs(now);
        self.reload_levers(now);
        self.record_by(now, EventType::ConfigReloaded, (None, None), actor, [("keys", config.keys.len().to_string())]);
        self.show_after_reload(now, out);
    }

    pub(super) fn still_the_same(&self, cell: &crate::watch::cell::KeyCell, config: &Config) -> bool {
        config
            .keys
            .get(&cell.key.id)
            .is_some_and(|key| key.provider == cell.key.provider && key.target.reference == cell.key.target.reference)
    }

    /// A key that is registered no more, or under whose id another key stands now.
    pub(super) fn remove_key(&mut self, now: Now, ix: KeyIx, out: &mut Effects) {
        self.orphan_orders(now, ix);
        let Some(cell) = self.cells.remove(&ix) else { return };
        self.lanes.take(&cell.lane, ix);
        self.windows.remove(&(cell.window, ix));
        self.by_id.remove(&cell.key.id);
        if self.by_name.get(&cell.name) == Some(&ix) {
            self.by_name.remove(&cell.name);
        }
        self.hearing.renamed();
        for (id, ws) in &mut self.workspaces {
            let by_another = self.by_name.get(&cell.name).and_then(|ix| self.cells.get(ix)).is_some_and(|c| c.key.workspaces.contains(id));
            ws.bound.retain(|name| by_another || *name != cell.name);
        }
        if self.brakes.get_mut(&cell.key.provider).is_some_and(|brake| brake.held.remove(&cell.key.id)) {
            self.store_brake(&cell.key.provider);
        }
        let commit = &mut self.ledger.open.commit;
        commit.keys.retain(|row| row.key != cell.key.id);
        commit.keys.push(KeyRow { key: cell.key.id.clone(), shard: Shard(0), state: None });
        commit.canaries.retain(|row| row.key != cell.key.id);
        commit.canaries_dropped.extend(cell.kept.versions.keys().map(|version| (cell.key.id.clone(), version.clone())));
        self.record(now, EventType::KeyRetired, Some(cell.key.id.clone()), None, [("key", cell.name.1.to_string())]);
        out.publish.push(Change::KeyGone(cell.key.id.clone()));
        for ticket in cell.callers {
            let detail = format!("key `{}` is registered no more", cell.key.id);
            out.replies.push((ticket, Err(crate::operate::Refusal { slug: crate::operate::RefusalSlug::UnknownKey, detail })));
        }
    }

    pub(super) fn refresh_key(&mut self, now: Now, ix: KeyIx, key: &Key, out: &mut Effects) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let pinned = cell.key.target.pinned.clone();
        let mut key = key.clone();
        if pinned.is_some() {
            let mut target = (*key.target).clone();
            target.pinned = pinned;
            key.target = Arc::new(target);
        }
        cell.policy = self.config.policies.get(&key.policy).cloned().unwrap_or_default();
        cell.account = key.account.as_str().into();
        // A key whose account is named otherwise now changes lanes.
        let lane = crate::watch::cell::lane_of(&key);
        let cell_lane = Some(std::mem::replace(&mut cell.lane, lane));
        let lost: Vec<WorkspaceId> = cell.key.workspaces.iter().filter(|id| !key.workspaces.contains(id)).cloned().collect();
        cell.key = Arc::new(key);
        let name = cell.name.clone();
        for id in lost {
            if let Some(ws) = self.workspaces.get_mut(&id) {
                ws.bound.retain(|bound| *bound != name);
            }
        }
        // A faster policy applies at once: the next look is no later than its interval says.
        let due = cell_lane.as_ref().and_then(|lane| self.lanes.due_at(lane, ix));
        if let Some(cell) = self.cells.remove(&ix) {
            self.bind(&cell, now);
            let grid = Self::grid(&cell, now);
            self.cells.insert(ix, cell);
            if let (Some(old), Some(due)) = (&cell_lane, due) {
                self.lanes.take(old, ix);
                self.schedule(ix, due);
            }
            if due.is_some_and(|due| due > grid) {
                self.schedule(ix, grid);
            }
            self.begin_watch(now, ix);
            self.end_watch(ix);
        }
        self.show_key_later(now, ix, out);
    }

    /// A row that was refused before and is good now is looked at from now on.
    fn begin_watch(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let idle = cell.in_flight.is_none() && cell.waiting.is_none();
        let placed = self.lanes.due_at(&cell.lane, ix).is_some();
        if idle && !placed && cell.key.refused.is_none() {
            self.windows.remove(&(cell.window, ix));
            self.place_at_start(now, ix);
        }
    }

    /// A row that was good before and is refused now is looked at no more; its locks stand.
    fn end_watch(&mut self, ix: KeyIx) {
        let Some(cell) = self.cells.get(&ix) else { return };
        if cell.key.refused.is_some() {
            self.lanes.take(&cell.lane, ix);
            self.windows.remove(&(cell.window, ix));
            self.by_name.entry(cell.name.clone()).or_insert(ix);
        }
    }

    /// The key's locks stay, without it, until an operator clears them.
    pub(super) fn orphan_orders(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let name = cell.name.clone();
        if self.by_name.get(&name) != Some(&ix) {
            return;
        }
        let orders: Vec<Order> = self
            .workspaces
            .values()
            .filter_map(|ws| ws.orders.automatic.get(&name))
            .map(|order| Order { orphaned: true, release: None, ..order.clone() })
            .collect();
        for order in orders {
            self.place_order(now, order);
        }
    }

    /// Orders whose key is not registered, or no longer bound to the workspace.
    pub(super) fn mark_orphans(&mut self, now: Now) {
        let mut changed: Vec<Order> = Vec::new();
        for ws in self.workspaces.values() {
            for (name, order) in &ws.orders.automatic {
                // A key that was registered anew does not know of the lock and cannot earn its end.
                let answers = self.by_name.get(name).and_then(|ix| self.cells.get(ix)).is_some_and(|cell| match &cell.kept.life {
                    KeyState::Revoked { .. } | KeyState::Recovering { .. } => true,
                    KeyState::Unproven => order.cause == Cause::Stale,
                    KeyState::Active | KeyState::Impaired { .. } | KeyState::Suspect { .. } | KeyState::Retired => false,
                });
                let at_home = answers && ws.bound.contains(name);
                if order.orphaned == at_home {
                    changed.push(Order { orphaned: !at_home, ..order.clone() });
                }
            }
        }
        for order in changed {
            self.place_order(now, order);
        }
    }

    /// A workspace newly bound to a revoked key is lowered with it, and one bound to a key that must
    /// be proven first is lowered until it is.
    pub(super) fn lock_new_bindings(&mut self, now: Now) {
        let mut wanted: Vec<(WorkspaceId, OrderKey, Finding, KeyIx)> = Vec::new();
        // An unlock that is on its way has proof; a workspace bound meanwhile needs no lock.
        for (ix, cell) in self.cells.iter().filter(|(_, cell)| !cell.unlocking) {
            let finding = match &cell.kept.life {
                KeyState::Revoked { finding, lock: Some(_), .. } | KeyState::Recovering { finding, lock: Some(_), held: None, .. } => {
                    *finding
                }
                KeyState::Unproven => {
                    let access = if cell.kept.locked_until_proven { Access::Locked } else { cell.policy.unproven };
                    if access == Access::Open {
                        continue;
                    }
                    Finding {
                        cause: Cause::Stale,
                        kind: FailureKind::Unclassified,
                        access,
                        direction: Direction::Unwrap,
                        stated: Stated::No,
                    }
                }
                KeyState::Active
                | KeyState::Impaired { .. }
                | KeyState::Suspect { .. }
                | KeyState::Revoked { .. }
                | KeyState::Recovering { .. }
                | KeyState::Retired => continue,
            };
            let key = OrderKey { id: cell.key.id.clone(), provider: cell.key.provider.clone(), reference: Arc::clone(&cell.name.1) };
            for id in &cell.key.workspaces {
                if cell.kept.released_to.contains(id) {
                    continue;
                }
                let standing = self.workspaces.get(id).and_then(|ws| ws.orders.automatic.get(&cell.name));
                if standing.is_none_or(|order| order.access < finding.access) {
                    wanted.push((id.clone(), key.clone(), finding, *ix));
                }
            }
        }
        self.spare_new_bindings();
        for (id, key, finding, ix) in wanted {
            let event = if finding.cause == Cause::Stale { EventType::KeyUnproven } else { EventType::KeyRevoked };
            let message = self.sentence(ix, event, Some(finding.kind), false);
            let changed = self.lower(now, &id, Some(key), finding, &message);
            if changed.to > changed.from {
                self.tell_group(now, Some(ix), &[&changed], changed.to, finding.cause, Some(finding), None);
            }
        }
    }

    /// A workspace bound to a key that works again and waits for approval is as good as released.
    fn spare_new_bindings(&mut self) {
        let workspaces = &self.workspaces;
        for cell in self.cells.values_mut() {
            if !matches!(cell.kept.life, KeyState::Recovering { held: Some(_), .. }) {
                continue;
            }
            let name = &cell.name;
            let unlocked = |id: &&WorkspaceId| workspaces.get(*id).is_none_or(|ws| !ws.orders.automatic.contains_key(name));
            let spared: Vec<WorkspaceId> = cell.key.workspaces.iter().filter(unlocked).cloned().collect();
            for id in spared {
                cell.dirty |= cell.kept.released_to.insert(id);
            }
        }
    }

    pub(super) fn refresh_vouching(&mut self) {
        let (by_name, cells) = (&self.by_name, &self.cells);
        for ws in self.workspaces.values_mut() {
            let proven =
                |name: &&crate::lockout::KeyName| by_name.get(*name).and_then(|ix| cells.get(ix)).is_some_and(|cell| cell.proven());
            ws.vouching = ws.bound.iter().filter(proven).cloned().collect();
        }
    }

    /// `needs`, or which keys can vouch, may have changed what the standing orders come to: told like
    /// any other change, and what opens waits for the disk.
    pub(super) fn settle_needs(&mut self, now: Now) {
        self.refresh_vouching();
        let ids: Vec<WorkspaceId> = self.workspaces.keys().cloned().collect();
        for id in ids {
            let raising = self.ledger.withholds_raise(&id);
            let Some(ws) = self.workspaces.get_mut(&id) else { continue };
            let (from, to) = (ws.decided, ws.decide(now.wall));
            if from == to {
                continue;
            }
            if !raising && ws.lifting.is_empty() {
                ws.meanwhile = ws.sequence;
            }
            if !raising {
                ws.floor = from;
            }
            ws.decided = to;
            ws.since = now.wall;
            ws.sequence = ws.sequence.next(now.wall.0);
            let changed = crate::watch::workspaces::Changed { workspace: id.clone(), from, to, sequence: ws.sequence };
            self.store_workspace(&id);
            if to < from {
                self.ledger.open.raised.insert(id.clone());
            } else {
                self.lower_when_stored(now, &id);
            }
            let cause =
                self.workspaces.get(&id).and_then(|ws| ws.orders.acting(now.wall).first().map(|o| o.cause)).unwrap_or(Cause::Manual);
            self.tell_group(now, None, &[&changed], to, cause, None, None);
        }
    }

    fn show_after_reload(&mut self, now: Now, out: &mut Effects) {
        let ids: BTreeSet<WorkspaceId> = self.workspaces.keys().cloned().collect();
        for id in ids {
            self.show_workspace(now, &id, out);
        }
        let keys: Vec<KeyIx> = self.cells.keys().copied().collect();
        for ix in keys {
            self.show_key_later(now, ix, out);
        }
        for provider in self.config.providers.keys() {
            self.show_provider(now, provider, out);
        }
        self.daemon_dirty = true;
    }
}
