//! The store and the spool as they are on the disk: one transaction a commit, lifts by compare and
//! set, a batch stored once whatever the number of tries, orders of the spool folded in at a start.

use std::collections::BTreeMap;
use std::sync::Arc;

use cmek_watchdog::journal::{Batch, CanaryRow, Commit, Committed, Order, OrderSlot, OrderWrite, OverrideRow, Record, Restored};
use cmek_watchdog::key::{KeyId, KeyVersion, ReceiverId, WorkspaceId};
use cmek_watchdog::lockout::Orders;
use cmek_watchdog::notify::{NoticeId, OutboxRow, OutboxState};
use cmek_watchdog::time::Wall;
use cmek_watchdog::words::Access;

#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub orders: BTreeMap<OrderSlot, Order>,
    pub keys: BTreeMap<KeyId, Arc<str>>,
    pub canaries: BTreeMap<(KeyId, KeyVersion), CanaryRow>,
    pub records: Vec<Record>,
    pub outbox: BTreeMap<(ReceiverId, NoticeId), OutboxRow>,
    pub meta: BTreeMap<String, String>,
    pub spool: Vec<Order>,
    done: Option<(u64, Batch, Committed)>,
    pub commits: u64,
}

impl Disk {
    /// One transaction, once per run and batch.
    pub fn commit(&mut self, run: u64, commit: &Commit) -> Committed {
        if let Some((done_run, batch, committed)) = &self.done
            && *done_run == run
            && *batch == commit.batch
        {
            return committed.clone();
        }
        self.commits += 1;
        let mut committed = Committed::default();
        for write in &commit.orders {
            match write {
                OrderWrite::Lower(order) => {
                    self.orders.insert(order.slot(), order.clone());
                }
                OrderWrite::Lift { slot, sequence } => match self.orders.get(slot).map(|stored| stored.sequence) {
                    Some(stored) if stored == *sequence => {
                        self.orders.remove(slot);
                    }
                    Some(_) => committed.refused.push(slot.clone()),
                    None => {}
                },
            }
        }
        for row in &commit.keys {
            match &row.state {
                Some(state) => self.keys.insert(row.key.clone(), Arc::clone(state)),
                None => self.keys.remove(&row.key),
            };
        }
        for row in &commit.canaries {
            self.canaries.insert((row.key.clone(), row.version.clone()), row.clone());
        }
        for dropped in &commit.canaries_dropped {
            self.canaries.remove(dropped);
        }
        for record in &commit.records {
            self.records.push(record.clone());
            committed.sequences.push(self.records.len() as u64);
        }
        for row in &commit.outbox {
            self.outbox.insert((row.receiver.clone(), row.id.clone()), row.clone());
        }
        for (name, value) in &commit.meta {
            match value {
                Some(value) => self.meta.insert(name.clone(), value.clone()),
                None => self.meta.remove(name),
            };
        }
        self.done = Some((run, commit.batch, committed.clone()));
        committed
    }

    /// What a start reads: the store, and the spool folded in.
    pub fn restored(&self) -> Restored {
        let waits = |row: &&OutboxRow| !matches!(row.state, OutboxState::Done | OutboxState::Folded);
        let mut outbox: Vec<OutboxRow> = self.outbox.values().filter(waits).cloned().collect();
        outbox.sort_by_key(|row| row.position);
        let mut restored = Restored {
            keys: self.keys.iter().map(|(key, state)| (key.clone(), Arc::clone(state))).collect(),
            canaries: self.canaries.values().cloned().collect(),
            damaged: Vec::new(),
            orders: self.orders.values().cloned().collect(),
            outbox,
            meta: self.meta.clone(),
            head: self.records.len() as u64,
        };
        fold(&mut restored, self.spool.clone());
        restored
    }

    /// The access that the stored rows give a workspace that needs all its keys.
    pub fn access(&self, workspace: &WorkspaceId, now: Wall) -> Access {
        let mut orders = Orders::default();
        for order in self.orders.values().filter(|order| order.workspace == *workspace) {
            match order.slot().key {
                None => orders.manual = Some(order.clone()),
                Some(name) => {
                    orders.automatic.insert(name, order.clone());
                }
            }
        }
        let overrides = self.meta.get(&format!("override:{workspace}"));
        orders.overrides = overrides.and_then(|text| serde_json::from_str::<Vec<OverrideRow>>(text).ok()).unwrap_or_default();
        orders.acting(now).iter().map(|order| order.access).max().unwrap_or(Access::Open)
    }

    /// Notices that the store knows.
    pub fn knows(&self, receiver: &ReceiverId, id: &NoticeId) -> bool {
        self.outbox.contains_key(&(receiver.clone(), id.clone()))
    }
}

/// Locks that were shown before the store had them. One that the store has lifted since is over.
pub fn fold(restored: &mut Restored, spooled: Vec<Order>) {
    for order in spooled {
        let slot = order.slot();
        let name = format!("workspace:{}", order.workspace);
        let text = restored.meta.get(&name);
        let seen = text.and_then(|text| serde_json::from_str::<(u64, serde_json::Value)>(text).ok()).map_or(0, |(seen, _)| seen);
        match restored.orders.iter_mut().find(|stored| stored.slot() == slot) {
            Some(stored) if stored.sequence < order.sequence => *stored = order,
            Some(_) => {}
            None if order.sequence.0 > seen => restored.orders.push(order),
            None => {}
        }
    }
}
