//! inside
//! Keys that come and go by the API. A registration is judged like a row of a file, and none of it
//! ever lowers a restriction: the locks of what goes away stay as orphans.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::check::{Fault, register};
use crate::config::{Key, Source, raw};
use crate::key::{KeyId, WorkspaceId};
use crate::operate::{Refusal, RefusalSlug, Reply};
use crate::schedule::KeyIx;
use crate::time::Now;
use crate::watch::operators::refuse;
use crate::watch::restore::{from_text, to_text};
use crate::watch::{Effects, Watch};
use crate::words::EventType;

/// Name of the stored rows, before the id.
pub const REGISTERED: &str = "api_key:";
/// Keys of the API at most; more belong into a file of `keys_from`.
const MOST: usize = 20_000;

impl Watch {
    /// A stored row. One that cannot be read is that key, shown as refused; its text is left alone.
    pub(super) fn restore_registered(&mut self, id: KeyId, text: &str) {
        let raw = from_text::<raw::Key>(text).unwrap_or_else(|| raw::Key { id: id.to_string(), ..raw::Key::default() });
        self.registered.insert(id, raw);
    }

    pub(super) fn put_key(&mut self, now: Now, raw: raw::Key, actor: &str, out: &mut Effects) -> Result<Reply, Refusal> {
        let key = self.judge_registration(&raw)?;
        let id = key.id.clone();
        let before = self.by_id.get(&id).copied();
        if self.registered.get(&id) == Some(&raw)
            && let Some(ix) = before
        {
            return self.shown_key(now, ix).map(Reply::Key);
        }
        let workspaces: Vec<&str> = key.workspaces.iter().map(|ws| ws.as_str()).collect();
        let detail = [
            ("action", "key register".to_owned()),
            ("provider", key.provider.to_string()),
            ("key", key.target.reference.text.to_string()),
            ("workspaces", workspaces.join(" ")),
            ("policy", key.policy.to_string()),
        ];
        self.record_by(now, EventType::OperatorAction, (Some(id.clone()), None), actor, detail);
        self.ledger.open.commit.meta.insert(format!("{REGISTERED}{id}"), Some(to_text(&raw)));
        self.registered.insert(id.clone(), raw);
        Arc::make_mut(&mut self.config).keys.insert(id, key.clone());
        let same = before.filter(|ix| self.cells.get(ix).is_some_and(|cell| self.still_the_same(cell, &self.config)));
        let mut touched = self.bound_by(before);
        touched.extend(key.workspaces.iter().cloned());
        let ix = match same {
            Some(ix) => {
                self.refresh_key(now, ix, &key, out);
                ix
            }
            None => {
                // Another key under an old id: the old one is retired, the new one unproven (B1).
                if let Some(old) = before {
                    self.remove_key(now, old, out);
                }
                let ix = self.add_cell(Arc::new(key), now);
                self.store_cell(now, ix);
                self.place_at_start(now, ix);
                ix
            }
        };
        self.settle_registration(now, &touched, out);
        self.show_key_later(now, ix, out);
        let view = self.shown_key(now, ix)?;
        Ok(if before.is_some() { Reply::Key(view) } else { Reply::Registered(view) })
    }

    fn judge_registration(&self, raw: &raw::Key) -> Result<Key, Refusal> {
        if let Ok(id) = KeyId::new(&raw.id) {
            self.refuse_file_managed(&id)?;
            if !self.registered.contains_key(&id) && self.registered.len() >= MOST {
                return Err(refuse(RefusalSlug::Invalid, format!("id: more than {MOST} keys by the API; use a file of keys_from")));
            }
        }
        register(raw, &self.config).map_err(|faults| {
            let all: Vec<String> = faults.iter().map(Fault::to_string).collect();
            refuse(RefusalSlug::Invalid, all.join("; "))
        })
    }

    fn refuse_file_managed(&self, id: &KeyId) -> Result<(), Refusal> {
        let of_file = self.config.keys.get(id).is_some_and(|key| key.source == Source::File);
        if of_file {
            return Err(refuse(RefusalSlug::FileManaged, format!("key `{id}` stands in a configuration file: change it there")));
        }
        Ok(())
    }

    pub(super) fn delete_key(&mut self, now: Now, id: &KeyId, keep_lock: bool, actor: &str, out: &mut Effects) -> Result<(), Refusal> {
        self.refuse_file_managed(id)?;
        if !self.registered.contains_key(id) {
            return Err(refuse(RefusalSlug::UnknownKey, format!("unknown key `{id}`")));
        }
        let ix = self.by_id.get(id).copied();
        let locks = ix.map(|ix| self.locked_by(ix)).unwrap_or_default();
        if !locks.is_empty() && !keep_lock {
            let detail = format!(
                "key `{id}` locks {}: unlock first, or ask with keep_lock=true, and the locks stay without the key until an operator clears them",
                locks.join(", ")
            );
            return Err(refuse(RefusalSlug::KeyLocks, detail));
        }
        let touched = self.bound_by(ix);
        let detail = [("action", "key delete".to_owned()), ("keep_lock", keep_lock.to_string()), ("locks", locks.join(" "))];
        self.record_by(now, EventType::OperatorAction, (Some(id.clone()), None), actor, detail);
        self.ledger.open.commit.meta.insert(format!("{REGISTERED}{id}"), None);
        self.registered.remove(id);
        Arc::make_mut(&mut self.config).keys.remove(id);
        if let Some(ix) = ix {
            self.remove_key(now, ix, out);
        }
        self.settle_registration(now, &touched, out);
        Ok(())
    }

    /// Workspaces that this key lowers.
    fn locked_by(&self, ix: KeyIx) -> Vec<String> {
        let Some(cell) = self.cells.get(&ix).filter(|cell| self.by_name.get(&cell.name) == Some(&ix)) else { return Vec::new() };
        let locked = self.workspaces.values().filter(|ws| ws.orders.automatic.contains_key(&cell.name));
        locked.map(|ws| ws.id.to_string()).collect()
    }

    fn shown_key(&self, now: Now, ix: KeyIx) -> Result<Arc<crate::snapshot::KeyView>, Refusal> {
        self.key_view(now, ix).map(Arc::new).ok_or_else(|| refuse(RefusalSlug::UnknownKey, "the key is registered no more"))
    }

    fn bound_by(&self, ix: Option<KeyIx>) -> BTreeSet<WorkspaceId> {
        ix.and_then(|ix| self.cells.get(&ix)).map(|cell| cell.key.workspaces.iter().cloned().collect()).unwrap_or_default()
    }

    /// What bindings and orders come to now.
    fn settle_registration(&mut self, now: Now, touched: &BTreeSet<WorkspaceId>, out: &mut Effects) {
        if self.config.keys.values().any(|key| key.source == Source::Api && key.refused.is_some()) {
            self.judge_again(now, out);
        }
        self.mark_orphans(now);
        self.lock_new_bindings(now);
        self.settle_needs(now);
        for id in touched {
            self.show_workspace(now, id, out);
        }
        self.daemon_dirty = true;
    }

    /// A row that was refused for the sake of one that went may be good now.
    fn judge_again(&mut self, now: Now, out: &mut Effects) {
        let whole = crate::config::check::take_in(&self.config, &self.registered);
        let changed = |key: &&Key| key.source == Source::Api && self.config.keys.get(&key.id) != Some(key);
        let changed: Vec<Key> = whole.keys.values().filter(changed).cloned().collect();
        self.config = whole;
        for key in changed {
            if let Some(ix) = self.by_id.get(&key.id).copied() {
                self.refresh_key(now, ix, &key, out);
                self.by_name_again(ix);
            }
        }
    }

    /// A cured row answers in its own name from now on.
    fn by_name_again(&mut self, ix: KeyIx) {
        let Some(cell) = self.cells.get(&ix) else { return };
        if cell.key.refused.is_none() {
            self.by_name.insert(cell.name.clone(), ix);
        }
    }
}
