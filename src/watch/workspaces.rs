//! inside
//! Orders on workspaces: lowered at once, lifted only when the disk has it. A lock names its key by
//! provider and reference, so that re-registering or renaming a key changes no access.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::Needs;
use crate::journal::{Order, OrderKey, OrderSlot};
use crate::key::WorkspaceId;
use crate::lifecycle::{Finding, KeyState};
use crate::lockout::{KeyName, Orders};
use crate::notify::Notice;
use crate::schedule::KeyIx;
use crate::time::{Now, Wall};
use crate::watch::ledger::Reply;
use crate::watch::push::Told;
use crate::watch::{Effects, Ticket, Watch};
use crate::words::{Access, By, Cause, EventType, HeldBy, Release, Sequence};

#[derive(Debug)]
pub struct Workspace {
    pub id: WorkspaceId,
    pub bound: Vec<KeyName>,
    /// Bound keys that were proven: of several keys only such a one can keep the workspace open.
    pub vouching: BTreeSet<KeyName>,
    pub needs: Needs,
    pub orders: Orders,
    /// Orders whose lift is on its way to the disk; they act until then.
    pub lifting: Vec<Order>,
    pub sequence: Sequence,
    pub since: Wall,
    /// Access as decided, every pending lift included.
    pub decided: Access,
    /// The number to show while a lift or an override waits for the disk; `sequence` is that of what
    /// comes after it.
    pub meanwhile: Sequence,
    /// The number that the store had at the start.
    pub stored: Sequence,
    pub last_shown: Option<(Sequence, Access)>,
    /// What followers of the stream were told last.
    pub told: Option<Told>,
    /// The newest notice about its access.
    pub notice: Option<Arc<Notice>>,
    /// Shown at least, while what opens the workspace waits for the disk.
    pub floor: Access,
    /// Shown at least, until levers are undone and the disk has it.
    pub lever_floor: Option<(Access, Cause)>,
    /// Told when levers are undone.
    pub opening: Option<crate::watch::levers::Opening>,
}

/// What lowering one workspace came to.
#[derive(Clone, Debug)]
pub struct Changed {
    pub workspace: WorkspaceId,
    pub from: Access,
    pub to: Access,
    pub sequence: Sequence,
}

impl Workspace {
    pub fn new(id: WorkspaceId, now: Now) -> Self {
        Self {
            id,
            bound: Vec::new(),
            vouching: BTreeSet::new(),
            floor: Access::Open,
            lever_floor: None,
            opening: None,
            last_shown: None,
            told: None,
            notice: None,
            needs: Needs::All,
            orders: Orders::default(),
            lifting: Vec::new(),
            sequence: Sequence::default(),
            since: now.wall,
            decided: Access::Open,
            meanwhile: Sequence::default(),
            stored: Sequence::default(),
        }
    }

    /// Orders as they act now: pending lifts still do.
    pub fn acting(&self) -> Orders {
        let mut orders = self.orders.clone();
        for order in &self.lifting {
            match &order.key {
                None => {
                    orders.manual.get_or_insert_with(|| order.clone());
                }
                Some(key) => {
                    orders.automatic.entry((key.provider.clone(), Arc::clone(&key.reference))).or_insert_with(|| order.clone());
                }
            }
        }
        orders
    }

    pub fn shown(&self, now: Wall) -> Access {
        self.acting().access(&self.counting(), self.needs, now)
    }

    pub fn decide(&self, now: Wall) -> Access {
        self.orders.access(&self.counting(), self.needs, now)
    }

    /// Bound keys that speak for the workspace: those with an order, and proven ones without.
    pub fn counting(&self) -> Vec<KeyName> {
        let acting = self.acting();
        self.bound.iter().filter(|name| acting.automatic.contains_key(*name) || self.vouching.contains(*name)).cloned().collect()
    }
}

impl Watch {
    /// Lowers one workspace by a finding about one key, or changes the order that stands.
    pub(super) fn lower(&mut self, now: Now, id: &WorkspaceId, key: Option<OrderKey>, finding: Finding, message: &str) -> Changed {
        let order = Order {
            workspace: id.clone(),
            by: By::Automatic,
            key,
            access: finding.access,
            cause: finding.cause,
            sequence: Sequence::default(),
            since: now.wall,
            reason: None,
            actor: None,
            expires_at: None,
            message: Some(message.to_owned()),
            release: None,
            orphaned: false,
        };
        self.place_order(now, order)
    }

    /// Puts an order in force. An order that stands keeps its beginning; none is ever softened here.
    pub(super) fn place_order(&mut self, now: Now, mut order: Order) -> Changed {
        let raising = self.ledger.withholds_raise(&order.workspace) || self.ledger.reserves(&order.workspace);
        let ws = self.workspaces.entry(order.workspace.clone()).or_insert_with(|| Workspace::new(order.workspace.clone(), now));
        ws.sequence = ws.sequence.next(now.wall.0);
        order.sequence = ws.sequence;
        let slot = order.slot();
        // A lift of this very slot that is still under way is overtaken: the newer sequence wins.
        let lifts = ws.lifting.len();
        ws.lifting.retain(|lifting| lifting.slot() != slot);
        let overtakes = ws.lifting.len() < lifts;
        if raising || !ws.lifting.is_empty() {
            ws.meanwhile = ws.sequence;
            ws.sequence = ws.sequence.next(now.wall.0);
        }
        let standing = match &slot.key {
            None => ws.orders.manual.as_ref(),
            Some(name) => ws.orders.automatic.get(name),
        };
        if let Some(standing) = standing {
            order.since = standing.since;
            order.access = order.access.max(standing.access);
        }
        match &slot.key {
            None => ws.orders.manual = Some(order.clone()),
            Some(name) => {
                ws.orders.automatic.insert(name.clone(), order.clone());
            }
        }
        let from = ws.decided;
        ws.decided = ws.decide(now.wall);
        if ws.decided != from {
            ws.since = now.wall;
        }
        let changed = Changed { workspace: order.workspace.clone(), from, to: ws.decided, sequence: order.sequence };
        self.overtake_drill(&changed.workspace);
        self.store_workspace(&changed.workspace);
        self.write_lower(now, order);
        if overtakes {
            // The disk may have the lift by now, and the gate still shows the lock.
            self.lower_at_once(now);
        }
        changed
    }

    /// Begins to lift orders of one workspace; they act until the disk has it.
    pub(super) fn lift(&mut self, now: Now, id: &WorkspaceId, which: impl Fn(&Order) -> bool) -> Option<Changed> {
        let raising = self.ledger.withholds_raise(id) || self.ledger.reserves(id);
        let ws = self.workspaces.get_mut(id)?;
        let mut lifted: Vec<Order> = Vec::new();
        if ws.orders.manual.as_ref().is_some_and(&which) {
            lifted.extend(ws.orders.manual.take());
        }
        let slots: Vec<KeyName> = ws.orders.automatic.iter().filter(|(_, order)| which(order)).map(|(name, _)| name.clone()).collect();
        for slot in slots {
            lifted.extend(ws.orders.automatic.remove(&slot));
        }
        if lifted.is_empty() {
            return None;
        }
        if !raising && ws.lifting.is_empty() {
            ws.meanwhile = ws.sequence;
        }
        ws.sequence = ws.sequence.next(now.wall.0);
        let from = ws.decided;
        ws.decided = ws.decide(now.wall);
        if ws.decided != from {
            ws.since = now.wall;
        }
        let changed = Changed { workspace: id.clone(), from, to: ws.decided, sequence: ws.sequence };
        ws.lifting.extend(lifted.iter().cloned());
        for order in &lifted {
            self.write_lift(order);
        }
        self.store_workspace(id);
        Some(changed)
    }

    /// A new number for a change that is shown when the disk has it.
    pub(super) fn raise_number(&mut self, now: Now, id: &WorkspaceId) {
        let Some(ws) = self.workspaces.get_mut(id) else { return };
        ws.sequence = ws.sequence.next(now.wall.0);
        self.store_workspace(id);
    }

    /// Levers are undone: the workspace opens, under a new number, when the disk has it. Until then
    /// that number is shown to nobody: a crash would take it back, or give it to the opening too.
    pub(super) fn reserve(&mut self, now: Now, id: &WorkspaceId) {
        let waits = self.ledger.withholds_raise(id) || self.ledger.reserves(id);
        if let Some(ws) = self.workspaces.get_mut(id).filter(|ws| !waits && ws.lifting.is_empty()) {
            ws.meanwhile = ws.sequence;
        }
        self.raise_number(now, id);
        self.ledger.open.reserved.insert(id.clone());
    }

    /// The disk has the number, and that nothing is left to undo.
    pub(super) fn reserved(&mut self, now: Now, id: &WorkspaceId, out: &mut Effects) {
        let undone = self.levers.holds(id).is_none();
        let Some(ws) = self.workspaces.get_mut(id).filter(|ws| undone && ws.lever_floor.is_some()) else { return };
        let lower = ws.shown(now.wall) < ws.lever_floor.map_or(Access::Open, |(floor, _)| floor);
        if lower && ws.last_shown.is_some_and(|(number, _)| number >= ws.sequence) {
            return self.reserve(now, id);
        }
        ws.lever_floor = None;
        self.show_workspace(now, id, out);
    }

    /// The disk has a lift, or has refused it because a newer lock stands.
    pub(super) fn lifted(&mut self, now: Now, slot: &OrderSlot, sequence: Sequence, refused: bool, out: &mut Effects) {
        let Some(ws) = self.workspaces.get_mut(&slot.workspace) else { return };
        let Some(at) = ws.lifting.iter().position(|order| order.slot() == *slot && order.sequence == sequence) else { return };
        let order = ws.lifting.remove(at);
        if refused {
            match &slot.key {
                None => ws.orders.manual = Some(order),
                Some(name) => {
                    ws.orders.automatic.insert(name.clone(), order);
                }
            }
            ws.decided = ws.decide(now.wall);
        }
        self.show_workspace(now, &slot.workspace, out);
    }

    /// Unlocks by proof (or, with an actor, by release of what waited for approval).
    pub(super) fn unlock_key(&mut self, now: Now, ix: KeyIx, actor: Option<&str>) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        if cell.unlocking {
            return;
        }
        let name = cell.name.clone();
        cell.unlocking = true;
        cell.dirty = true;
        let ids: Vec<WorkspaceId> =
            self.workspaces.iter().filter(|(_, ws)| ws.orders.automatic.contains_key(&name)).map(|(id, _)| id.clone()).collect();
        let mut changed = Vec::new();
        for id in ids {
            // An orphan stays until an operator clears it.
            changed.extend(self.lift(now, &id, |order| is_of(order, &name) && !order.orphaned));
        }
        self.ledger.open.unlocked.push(ix);
        self.ledger.open.keys.insert(ix);
        self.tell_unlock(now, ix, actor, &changed);
        // What is stored says that the key is active again: only then may the workspace open.
        self.store_cell(now, ix);
    }

    /// The unlock is on disk. A refused look that came in between has taken it back already.
    pub(super) fn unlocked(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.unlocking = false;
        match cell.kept.life.clone() {
            KeyState::Recovering { .. } => {
                cell.kept.life = KeyState::Active;
                cell.kept.since = now.wall;
                cell.kept.locked_until_proven = false;
                cell.kept.released_to.clear();
                cell.dirty = true;
            }
            KeyState::Unproven
            | KeyState::Active
            | KeyState::Impaired { .. }
            | KeyState::Suspect { .. }
            | KeyState::Revoked { .. }
            | KeyState::Retired => {}
        }
        let at = self.cells.get(&ix).map(|cell| Self::grid(cell, now));
        if let Some(at) = at {
            self.schedule(ix, at);
        }
        self.store_cell(now, ix);
    }

    /// Enough good rounds, and the policy wants a person: the locks show `release: pending`.
    pub(super) fn await_approval(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let name = cell.name.clone();
        let pending: Vec<Order> = self
            .workspaces
            .values()
            .filter_map(|ws| ws.orders.automatic.get(&name).filter(|order| !order.orphaned))
            .map(|order| Order { release: Some(Release::Pending), ..order.clone() })
            .collect();
        for order in pending {
            self.place_order(now, order);
        }
        self.tell_pending(now, ix);
    }

    /// The cause of a standing lock changed: the orders say so, access stays.
    pub(super) fn change_cause(&mut self, now: Now, ix: KeyIx, finding: Finding) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let name = cell.name.clone();
        let message = self.sentence(ix, EventType::KeyRevoked, Some(finding.kind), true);
        let changed: Vec<Order> = self
            .workspaces
            .values()
            .filter_map(|ws| ws.orders.automatic.get(&name).filter(|order| !order.orphaned))
            .map(|order| Order { cause: finding.cause, message: Some(message.clone()), ..order.clone() })
            .collect();
        let mut lowered = Vec::new();
        for order in changed {
            lowered.push(self.place_order(now, order));
        }
        self.ledger.open.keys.insert(ix);
        self.transition(now, ix, EventType::KeyRevoked, Some(finding.kind));
        // An override covers one kind only: under another the workspace is lowered after all.
        for change in lowered.iter().filter(|c| c.to > c.from) {
            self.tell_group(now, Some(ix), &[change], change.to, finding.cause, Some(finding), None);
        }
    }

    /// First full good round: the key counts from now on.
    pub(super) fn proven_now(&mut self, now: Now, ix: KeyIx) {
        self.transition(now, ix, EventType::KeyActive, None);
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let name = cell.name.clone();
        cell.kept.locked_until_proven = false;
        let ids: Vec<WorkspaceId> =
            self.workspaces.iter().filter(|(_, ws)| ws.orders.automatic.contains_key(&name)).map(|(id, _)| id.clone()).collect();
        let mut changed = Vec::new();
        for id in ids {
            changed.extend(self.lift(now, &id, |order| is_of(order, &name) && !order.orphaned && order.cause == Cause::Stale));
        }
        if !changed.is_empty() {
            self.tell_unlock(now, ix, None, &changed);
        }
        self.settle_needs(now);
    }

    /// Overrides that ended: what they kept off acts again.
    pub(super) fn expire_overrides(&mut self, now: Now) {
        while let Some((until, id)) = self.overrides.first().cloned().filter(|(until, _)| *until <= now.wall) {
            self.overrides.remove(&(until, id.clone()));
            let Some(ws) = self.workspaces.get_mut(&id) else { continue };
            let before = ws.orders.overrides.len();
            ws.orders.overrides.retain(|o| o.until > now.wall);
            if ws.orders.overrides.len() == before {
                continue;
            }
            let from = ws.decided;
            ws.decided = ws.decide(now.wall);
            ws.sequence = ws.sequence.next(now.wall.0);
            if ws.decided != from {
                ws.since = now.wall;
            }
            let changed = Changed { workspace: id.clone(), from, to: ws.decided, sequence: ws.sequence };
            self.lower_when_stored(now, &id);
            self.store_overrides(&id);
            self.store_workspace(&id);
            self.tell_override_end(now, &changed);
        }
    }

    /// A key in a held unlock: this workspace alone is released.
    pub(super) fn release_pending(&mut self, now: Now, id: &WorkspaceId, actor: &str) -> bool {
        let Some(ws) = self.workspaces.get(id) else { return false };
        let names: Vec<KeyName> = ws.orders.automatic.iter().filter(|(_, o)| o.release.is_some()).map(|(name, _)| name.clone()).collect();
        let mut released = false;
        for name in names {
            let Some(ix) = self.by_name.get(&name).copied() else { continue };
            let approved = self.cells.get(&ix).is_some_and(|cell| cell.kept.life.held_by() == Some(HeldBy::Approval));
            if !approved {
                continue;
            }
            released = true;
            let others =
                self.workspaces.values().any(|ws| ws.id != *id && ws.orders.automatic.get(&name).is_some_and(|order| !order.orphaned));
            if others {
                if let Some(cell) = self.cells.get_mut(&ix) {
                    cell.kept.released_to.insert(id.clone());
                    cell.dirty = true;
                }
                self.store_cell(now, ix);
                if let Some(changed) = self.lift(now, id, |order| is_of(order, &name)) {
                    self.tell_unlock(now, ix, Some(actor), &[changed]);
                }
            } else {
                self.unlock_key(now, ix, Some(actor));
            }
        }
        released
    }

    pub(super) fn reply_workspace(&mut self, now: Now, ticket: Ticket, id: &WorkspaceId, may_hurry: bool) {
        self.reply_when_stored(now, ticket, Reply::Workspace(id.clone()), may_hurry);
    }
}

/// Whether an order is of this key.
pub(super) fn is_of(order: &Order, name: &KeyName) -> bool {
    order.key.as_ref().is_some_and(|key| key.provider == name.0 && key.reference == name.1)
}
