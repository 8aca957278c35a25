//! inside
//! Start: what was stored becomes the core's state again. Stored locks stand before anything is
//! served; suspects are looked at first and at once, the rest over one interval.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::{Config, Key};
use crate::journal::{Restored, Shard};
use crate::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use crate::lifecycle::KeyState;
use crate::lockout::Brake;
use crate::notify::outbox::Outbox;
use crate::schedule::KeyIx;
use crate::schedule::lanes::Lanes;
use crate::snapshot::Change;
use crate::time::{Mono, Now, Span, Wall};
use crate::vault::wraps::KeyRole;
use crate::watch::cell::{Kept, KeyCell};
use crate::watch::control::Control;
use crate::watch::credentials::MARKS;
use crate::watch::ledger::Ledger;
use crate::watch::registering::REGISTERED;
use crate::watch::workspaces::{Changed, Workspace};
use crate::watch::{Effects, Watch};
use crate::words::{Access, EventType, Sequence, Severity};

/// How the daemon came to start.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Start {
    /// The store was lost and the owner chose to lock until proven.
    pub store_lost: bool,
    /// The configuration in use is the stored last good one, because of this error.
    pub config_error: Option<String>,
    /// Text of the configuration in use, kept as the last good one; absent when it is that already.
    pub config_text: Option<String>,
}

/// Where the store says that it was lost; see `Start::store_lost`.
const STORE_LOST: &str = "store_lost_at";

/// Text of a row. serde_json is pure; a value of ours always has a text.
pub fn to_text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub fn from_text<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

impl Watch {
    /// The core as the store left it. What it says in `out` is to be published before anything is
    /// served.
    pub fn new(config: Arc<Config>, restored: Restored, start: Start, now: Now, out: &mut Effects) -> Self {
        let mut watch = Self::empty(config, now);
        watch.notice_count = restored.head;
        watch.outbox.restore(restored.outbox, now);
        watch.restore_meta(&restored.meta, now);
        watch.config = crate::config::check::take_in(&watch.config, &watch.registered);
        let unwritten = watch.restore_orders(restored.orders, now);
        let mut rows: BTreeMap<_, _> = restored.keys.into_iter().collect();
        let keys: Vec<Arc<Key>> = watch.config.keys.values().map(|key| Arc::new(key.clone())).collect();
        for key in keys {
            let row = rows.remove(&key.id);
            watch.restore_key(key, row.as_deref(), &start, now);
        }
        for row in restored.canaries {
            let Some(ix) = watch.by_id.get(&row.key).copied() else { continue };
            if let Some(entry) = watch.cells.get_mut(&ix).and_then(|cell| cell.kept.versions.get_mut(&row.version)) {
                entry.canary = Some(row.wrapped);
                entry.canary_at = Some(row.created_at);
            }
        }
        for (key, version) in restored.damaged {
            watch.drop_damaged(now, &key, &version);
        }
        // Rows of keys that are registered no more: their locks stay, the key's own row goes.
        for (key, _) in rows {
            watch.ledger.open.commit.keys.push(crate::journal::KeyRow { key, shard: Shard(0), state: None });
        }
        watch.restore_settling();
        watch.relapse_spooled(now, &unwritten);
        watch.stand_by_orders(now);
        watch.mark_orphans(now);
        watch.recount(now);
        watch.write_spooled(now, unwritten);
        watch.lock_new_bindings(now);
        watch.overtake_drills_at_start();
        watch.announce_start(now, start);
        watch.show_everything(now, out);
        watch
    }

    fn empty(config: Arc<Config>, now: Now) -> Self {
        let mut lanes = Lanes::default();
        config.providers.iter().for_each(|(id, provider)| lanes.set_rate(id, provider.calls_per_second));
        let controls = config.providers.iter().map(|(id, p)| (id.clone(), Control::new(p, now))).collect();
        let mut outbox = Outbox::new(config.receivers.keys().cloned());
        outbox.set_pace(Some(config.notify.pace), &config.keeping_incidents());
        Self {
            config,
            cells: BTreeMap::new(),
            by_id: BTreeMap::new(),
            by_name: BTreeMap::new(),
            next_ix: 0,
            lanes,
            controls,
            brakes: BTreeMap::new(),
            workspaces: BTreeMap::new(),
            in_flight: std::collections::BTreeSet::new(),
            attempts: 0,
            windows: std::collections::BTreeSet::new(),
            ledger: Ledger::default(),
            outbox,
            levers: crate::lever::Levers::default(),
            drills: BTreeMap::new(),
            unacked: BTreeMap::new(),
            reports: BTreeMap::new(),
            overrides: std::collections::BTreeSet::new(),
            registered: BTreeMap::new(),
            credentials_told: BTreeMap::new(),
            bugs: 0,
            would_lock: 0,
            store_failures: 0,
            started_at: now.wall,
            notice_count: 0,
            config_flagged: None,
            last_now: None,
            daemon_dirty: true,
            vault_failing: BTreeSet::new(),
            shown: BTreeMap::new(),
            vouchers: BTreeMap::new(),
            counts: std::collections::VecDeque::new(),
            hearing: crate::watch::hearing::Hearing::default(),
        }
    }

    fn restore_meta(&mut self, meta: &BTreeMap<String, String>, now: Now) {
        for (name, text) in meta {
            if let Some(provider) = name.strip_prefix("brake:").and_then(|id| ProviderId::new(id).ok()) {
                self.brakes.insert(provider, from_text::<Brake>(text).unwrap_or_default());
            } else if let Some(id) = name.strip_prefix("workspace:").and_then(|id| WorkspaceId::new(id).ok()) {
                let (sequence, since) = from_text::<(Sequence, Wall)>(text).unwrap_or((Sequence::default(), now.wall));
                let ws = self.workspaces.entry(id.clone()).or_insert_with(|| Workspace::new(id, now));
                (ws.sequence, ws.stored, ws.since) = (sequence, sequence, since);
            } else if let Some(id) = name.strip_prefix("override:").and_then(|id| WorkspaceId::new(id).ok()) {
                let rows: Vec<crate::journal::OverrideRow> = from_text(text).unwrap_or_default();
                self.overrides.extend(rows.iter().map(|row| (row.until, id.clone())));
                self.workspaces.entry(id.clone()).or_insert_with(|| Workspace::new(id, now)).orders.overrides = rows;
            } else if let Some(source) = name.strip_prefix("audit:") {
                self.hearing.sources.insert(source.to_owned(), from_text(text).unwrap_or_default());
            } else if let Some((receiver, matter)) = name.strip_prefix("storm:").and_then(|rest| rest.split_once(':')) {
                if let Ok(receiver) = ReceiverId::new(receiver) {
                    self.outbox.restore_matter(receiver, matter.to_owned(), text.as_str().into());
                }
            } else if let Some(id) = name.strip_prefix("unacked:") {
                if let Some(entry) = from_text(text) {
                    self.unacked.insert(crate::notify::NoticeId(id.into()), entry);
                }
            } else if let Some(receiver) = name.strip_prefix("fallback:").and_then(|id| ReceiverId::new(id).ok()) {
                self.outbox.restore_fallen_back(receiver, text.parse().unwrap_or(0));
            } else if let Some(report) = name.strip_prefix("report:") {
                self.reports.insert(report.to_owned(), text.clone());
            } else if let Some(id) = name.strip_prefix(MARKS).and_then(|id| ProviderId::new(id).ok()) {
                self.restore_marks(id, text);
            } else if let Some(id) = name.strip_prefix(REGISTERED).and_then(|id| KeyId::new(id).ok()) {
                self.restore_registered(id, text);
            } else if let Some(role) = name.strip_prefix("vault:") {
                self.vault_failing.extend(KeyRole::ALL.iter().filter(|known| known.as_str() == role));
            } else if self.restore_lever(now, name, text) || self.restore_drill(now, name, text) {
                // Taken.
            } else if name == STORE_LOST {
                // Every key has it in its own row from the first commit on.
                self.ledger.open.commit.meta.insert(name.clone(), None);
            }
        }
    }

    /// Gives the orders that only the spool had: the store writes the workspace's number with every
    /// order, so that an order above it was never stored.
    fn restore_orders(&mut self, orders: Vec<crate::journal::Order>, now: Now) -> Vec<crate::journal::Order> {
        let mut unwritten = Vec::new();
        for order in orders {
            let ws = self.workspaces.entry(order.workspace.clone()).or_insert_with(|| Workspace::new(order.workspace.clone(), now));
            if order.sequence > ws.stored {
                unwritten.push(order.clone());
            }
            ws.sequence = ws.sequence.max(order.sequence);
            match order.slot().key {
                None => ws.orders.manual = Some(order),
                Some(name) => {
                    ws.orders.automatic.insert(name, order);
                }
            }
        }
        unwritten
    }

    /// Orders of the spool are written like new ones, and told: the commit that had both was lost.
    fn write_spooled(&mut self, now: Now, orders: Vec<crate::journal::Order>) {
        for order in orders {
            let Some(ws) = self.workspaces.get(&order.workspace) else { continue };
            // Marking orphans may have written it anew already.
            let slot = order.slot();
            let standing = match &slot.key {
                None => ws.orders.manual.clone(),
                Some(name) => ws.orders.automatic.get(name).cloned(),
            };
            let Some(standing) = standing else { continue };
            let to = ws.decided;
            if standing.sequence == order.sequence {
                self.place_order(now, standing);
            }
            let ix = slot.key.as_ref().and_then(|name| self.by_name.get(name)).copied();
            let finding = ix.and_then(|ix| self.cells.get(&ix)).and_then(|cell| cell.kept.life.finding());
            let changed = Changed { workspace: order.workspace.clone(), from: Access::Open, to, sequence: order.sequence };
            if to > Access::Open {
                self.tell_group(now, ix, &[&changed], to, order.cause, finding, order.actor.as_deref());
            }
        }
    }

    fn restore_key(&mut self, key: Arc<Key>, row: Option<&str>, start: &Start, now: Now) {
        let ix = self.add_cell(Arc::clone(&key), now);
        let kept = row.and_then(from_text::<Kept>).filter(|kept| kept.reference == *key.target.reference.text);
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        match kept {
            Some(mut kept) => {
                let policy = Arc::clone(&cell.policy);
                kept.life.rebase(now, &policy);
                let month = Span::from_days(30);
                for version in kept.versions.values_mut() {
                    version.last_checked.iter_mut().for_each(|at| at.mono = now.mono_of(at.wall, month));
                }
                kept.last_conclusive.iter_mut().for_each(|at| at.mono = now.mono_of(at.wall, month));
                kept.last_good.iter_mut().for_each(|at| at.mono = now.mono_of(at.wall, month));
                kept.rotated_at.iter_mut().for_each(|at| at.mono = now.mono_of(at.wall, month));
                cell.kept = kept;
                cell.dirty = false;
                self.repin(ix);
            }
            None => {
                cell.kept.locked_until_proven = start.store_lost;
                self.store_cell(now, ix);
            }
        }
        self.place_at_start(now, ix);
    }

    /// Registers a key in every index; the caller gives it its state and its place in the lane.
    pub(super) fn add_cell(&mut self, key: Arc<Key>, now: Now) -> KeyIx {
        let ix = KeyIx(self.next_ix);
        self.next_ix = self.next_ix.saturating_add(1);
        let policy = self.config.policies.get(&key.policy).cloned().unwrap_or_default();
        let cell = KeyCell::new(Arc::clone(&key), policy, now);
        self.by_id.insert(key.id.clone(), ix);
        // A refused second registration of one key must not answer in the first one's name.
        if cell.key.refused.is_none() || !self.by_name.contains_key(&cell.name) {
            self.by_name.insert(cell.name.clone(), ix);
        }
        self.hearing.renamed();
        self.bind(&cell, now);
        self.cells.insert(ix, cell);
        ix
    }

    /// Binds the key's workspaces to it.
    pub(super) fn bind(&mut self, cell: &KeyCell, now: Now) {
        for id in &cell.key.workspaces {
            let known = self.workspaces.contains_key(id);
            let ws = self.workspaces.entry(id.clone()).or_insert_with(|| Workspace::new(id.clone(), now));
            if !ws.bound.contains(&cell.name) {
                ws.bound.push(cell.name.clone());
            }
            ws.needs = self.config.workspaces.get(id).copied().unwrap_or(crate::config::Needs::All);
            if !known {
                self.store_workspace(id);
            }
        }
    }

    pub(super) fn place_at_start(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let at = match cell.kept.life {
            KeyState::Suspect { .. } | KeyState::Recovering { .. } | KeyState::Revoked { .. } | KeyState::Unproven => now.mono,
            KeyState::Active | KeyState::Impaired { .. } => Self::caught_up(cell, now),
            KeyState::Retired => return,
        };
        cell.window = now.mono.plus(cell.interval().times(2));
        self.windows.insert((cell.window, ix));
        self.schedule(ix, at);
    }

    /// A key that was not seen for longer than its interval cannot wait for its slot: it is looked at
    /// within two intervals of its last look where that still can be, spread by its hash.
    fn caught_up(cell: &KeyCell, now: Now) -> Mono {
        let (grid, interval) = (Self::grid(cell, now), cell.policy.probe_interval);
        let unseen = cell.kept.last_conclusive.map_or(Span::ZERO, |last| now.wall.since(last.wall));
        let left = interval.times(2).minus(unseen);
        if unseen <= interval || left == Span::ZERO {
            return grid;
        }
        grid.min(now.mono.plus(Span(cell.phase.checked_rem(left.0).unwrap_or(0))))
    }

    fn repin(&mut self, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        if let Some(pinned) = cell.kept.pinned.clone() {
            let mut key = (*cell.key).clone();
            let mut target = (*key.target).clone();
            target.pinned = Some(pinned.as_str().into());
            key.target = Arc::new(target);
            cell.key = Arc::new(key);
            self.hearing.renamed();
        }
    }

    /// A lock that only the spool had is newer than its key's row: rounds counted in the row were
    /// counted before the refusal that made the lock, and count no more.
    fn relapse_spooled(&mut self, now: Now, orders: &[crate::journal::Order]) {
        for order in orders.iter().filter(|order| order.release.is_none() && !order.orphaned) {
            let Some(ix) = order.slot().key.and_then(|name| self.by_name.get(&name)).copied() else { continue };
            let Some(cell) = self.cells.get_mut(&ix) else { continue };
            if let KeyState::Recovering { finding, .. } = cell.kept.life {
                cell.kept.life = crate::lifecycle::lock(std::mem::take(&mut cell.kept.life), finding, Some(order.sequence));
                cell.dirty = true;
                self.store_cell(now, ix);
            }
        }
    }

    /// An order whose key's own row does not know of it (the row was lost, the order was spooled):
    /// the key is revoked under it, and earns its unlock like any other.
    fn stand_by_orders(&mut self, now: Now) {
        let orders: Vec<crate::journal::Order> = self.workspaces.values().flat_map(|ws| ws.orders.automatic.values().cloned()).collect();
        for order in orders {
            let Some(name) = order.slot().key else { continue };
            let Some(ix) = self.by_name.get(&name).copied() else { continue };
            let Some(cell) = self.cells.get_mut(&ix) else { continue };
            let knows = match &cell.kept.life {
                KeyState::Revoked { .. } | KeyState::Recovering { .. } | KeyState::Retired => true,
                // It has no canary from before the lock and cannot earn its end: an orphan, unless it
                // only waits for a first proof.
                KeyState::Unproven => true,
                KeyState::Active | KeyState::Impaired { .. } | KeyState::Suspect { .. } => false,
            };
            if knows || order.orphaned {
                continue;
            }
            let kind = match order.cause {
                crate::words::Cause::Kind(kind) => kind,
                crate::words::Cause::Stale
                | crate::words::Cause::Manual
                | crate::words::Cause::Drill
                | crate::words::Cause::VersionLost
                | crate::words::Cause::Orphaned => crate::words::FailureKind::Unclassified,
            };
            let finding = crate::lifecycle::Finding {
                cause: order.cause,
                kind,
                access: order.access,
                direction: crate::verdict::Direction::Unwrap,
                stated: crate::verdict::Stated::No,
            };
            cell.kept.life = crate::lifecycle::lock(std::mem::take(&mut cell.kept.life), finding, Some(order.sequence));
            cell.dirty = true;
            self.schedule(ix, now.mono);
            self.store_cell(now, ix);
        }
    }

    /// A canary row that fails its own checksum is our damage: said, replaced, never a verdict.
    fn drop_damaged(&mut self, now: Now, key: &crate::key::KeyId, version: &KeyVersion) {
        self.ledger.open.commit.canaries_dropped.push((key.clone(), version.clone()));
        let text = format!(
            "The stored canary of key {key}, version {version}, is damaged in our own store. It is replaced; nothing is said about the key."
        );
        self.tell_daemon(now, EventType::StoreDamage, Severity::Warning, &text, None);
    }

    pub(super) fn recount(&mut self, now: Now) {
        self.refresh_vouching();
        for ws in self.workspaces.values_mut() {
            // As it was with every override: those that ended meanwhile end next, and are told.
            ws.decided = ws.decide(Wall(i64::MIN));
        }
        // A key whose proof was not on disk yet vouches no more: what is shown may differ.
        let any = |ws: &&mut Workspace| ws.needs == crate::config::Needs::Any && !ws.orders.is_empty();
        let again: Vec<WorkspaceId> = self
            .workspaces
            .values_mut()
            .filter(any)
            .map(|ws| {
                // By one and not to the clock: it is shown before it is stored, and the clock of
                // the next start may be behind.
                ws.sequence = ws.sequence.next(0);
                ws.id.clone()
            })
            .collect();
        for id in again {
            self.store_workspace(&id);
        }
        self.expire_overrides(now);
    }

    fn announce_start(&mut self, now: Now, start: Start) {
        self.record(
            now,
            EventType::DaemonStarted,
            None,
            None,
            [("version", env!("CARGO_PKG_VERSION").to_owned()), ("keys", self.cells.len().to_string())],
        );
        if let Some(text) = start.config_text {
            self.ledger.open.commit.meta.insert("config:last_good".to_owned(), Some(text));
        }
        if let Some(error) = start.config_error {
            let text = format!("The configuration file cannot be used; the last good one is in force: {error}");
            self.config_flagged = Some(error);
            self.tell_daemon(now, EventType::ConfigFallback, Severity::Critical, &text, None);
        }
    }

    pub(super) fn show_everything(&mut self, now: Now, out: &mut Effects) {
        let ids: Vec<WorkspaceId> = self.workspaces.keys().cloned().collect();
        for id in ids {
            self.publish_workspace(now, &id, out);
        }
        for ix in self.cells.keys() {
            self.show_key(now, *ix, out);
        }
        for provider in self.config.providers.keys() {
            self.show_provider(now, provider, out);
        }
        out.publish.push(Change::Daemon(Arc::new(self.daemon_view(now, true))));
        self.daemon_dirty = false;
    }

    pub(super) fn store_brake(&mut self, provider: &ProviderId) {
        let text = self.brakes.get(provider).map(to_text);
        self.ledger.open.commit.meta.insert(format!("brake:{provider}"), text);
    }

    pub(super) fn store_workspace(&mut self, id: &WorkspaceId) {
        let text = self.workspaces.get(id).map(|ws| to_text(&(ws.sequence, ws.since)));
        self.ledger.open.commit.meta.insert(format!("workspace:{id}"), text);
    }

    pub(super) fn store_overrides(&mut self, id: &WorkspaceId) {
        let text = self.workspaces.get(id).filter(|ws| !ws.orders.overrides.is_empty()).map(|ws| to_text(&ws.orders.overrides));
        self.ledger.open.commit.meta.insert(format!("override:{id}"), text);
    }
}
