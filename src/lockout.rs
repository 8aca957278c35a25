//! inside
//! From findings to the access of workspaces: orders per workspace, manual and automatic apart, and
//! the brake that holds automatic locks when too many owners fail at once without stated proof.
//! It must never merge a manual order with an automatic one, and never lift one for the other.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::{Brake as BrakeRule, Needs};
use crate::journal::{Order, OverrideRow};
use crate::key::{KeyId, ProviderId};
use crate::schedule::KeyIx;
use crate::time::{Mono, Span, Wall};
use crate::words::{Access, Cause, FailureKind};

/// Names the key of an automatic order: provider and key reference, so that ids may change.
pub type KeyName = (ProviderId, Arc<str>);

/// The failure kind that an override of an order with this cause names.
#[must_use]
pub const fn kind_of(cause: Cause) -> FailureKind {
    match cause {
        Cause::Kind(kind) => kind,
        Cause::Stale | Cause::Manual | Cause::Drill | Cause::VersionLost | Cause::Orphaned => FailureKind::Unclassified,
    }
}

/// All orders on one workspace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Orders {
    pub manual: Option<Order>,
    pub automatic: BTreeMap<KeyName, Order>,
    pub overrides: Vec<OverrideRow>,
}

impl Orders {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.manual.is_none() && self.automatic.is_empty()
    }

    /// Whether an override keeps this automatic order from acting now.
    #[must_use]
    pub fn overridden(&self, order: &Order, now: Wall) -> bool {
        let Some(key) = &order.key else { return false };
        self.overrides.iter().any(|o| o.key == key.id && o.until > now && o.kind == kind_of(order.cause))
    }

    /// The orders that act now, strictest first; ties go to the manual one, then to the older.
    #[must_use]
    pub fn acting(&self, now: Wall) -> Vec<&Order> {
        let mut orders: Vec<&Order> = self.manual.iter().chain(self.automatic.values().filter(|o| !self.overridden(o, now))).collect();
        orders.sort_by_key(|order| (std::cmp::Reverse(order.access), order.key.is_some(), order.since, order.sequence));
        orders
    }

    /// Access now. `bound` are the keys that the workspace is bound to; with [`Needs::Any`] one good
    /// key of them keeps it open, but orders of keys that are gone count as ever.
    #[must_use]
    pub fn access(&self, bound: &[KeyName], needs: Needs, now: Wall) -> Access {
        let acting = self.acting(now);
        let strictest = |orders: &mut dyn Iterator<Item = &&Order>| orders.map(|o| o.access).max().unwrap_or(Access::Open);
        match needs {
            Needs::All => strictest(&mut acting.iter()),
            Needs::Any => {
                let name = |order: &Order| order.key.as_ref().map(|k| (k.provider.clone(), Arc::clone(&k.reference)));
                let of = |key: &KeyName| acting.iter().find(|o| name(o).as_ref() == Some(key)).map_or(Access::Open, |o| o.access);
                let best_bound = bound.iter().map(of).min().unwrap_or(Access::Open);
                let others = strictest(&mut acting.iter().filter(|o| name(o).is_none_or(|n| !bound.contains(&n))));
                best_bound.max(others)
            }
        }
    }
}

/// What the brake says to an unstated lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrakeMove {
    Go,
    /// Held; `engaged_now` when this very question engaged it.
    Hold {
        engaged_now: bool,
    },
}

/// One provider's brake. Counts owner accounts, for several keys of one account are one owner's act.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Brake {
    pub engaged: bool,
    pub engaged_at: Option<Wall>,
    /// Keys whose confirmed lock waits for a person.
    pub held: BTreeSet<KeyId>,
    /// Accounts with an unstated suspicion, and since when.
    #[serde(skip)]
    suspects: BTreeMap<Arc<str>, BTreeMap<KeyIx, Mono>>,
    /// Accounts looked at since the first unstated denial of the window.
    #[serde(skip)]
    looked: BTreeSet<Arc<str>>,
    #[serde(skip)]
    window_from: Option<Mono>,
    /// Unstated locks let through within the window.
    #[serde(skip)]
    passed: Vec<Mono>,
}

impl Brake {
    /// An unstated denial. Gives `true` when it opens a new window: then keys of other accounts
    /// should be looked at, so that the share is of something.
    pub fn suspect(&mut self, now: Mono, account: &Arc<str>, key: KeyIx, rule: &BrakeRule) -> bool {
        self.expire(now, rule);
        self.suspects.entry(Arc::clone(account)).or_default().entry(key).or_insert(now);
        self.looked.insert(Arc::clone(account));
        let opens = self.window_from.is_none();
        self.window_from.get_or_insert(now);
        opens
    }

    /// Any conclusive look at a proven key of this account.
    pub fn looked(&mut self, account: &Arc<str>) {
        if self.window_from.is_some() {
            self.looked.insert(Arc::clone(account));
        }
    }

    /// The suspicion of this key ended or became a stated one.
    pub fn cleared(&mut self, account: &Arc<str>, key: KeyIx) {
        if let Some(keys) = self.suspects.get_mut(account) {
            keys.remove(&key);
            if keys.is_empty() {
                self.suspects.remove(account);
            }
        }
        if self.suspects.is_empty() && !self.engaged {
            self.window_from = None;
            self.looked.clear();
        }
    }

    fn expire(&mut self, now: Mono, rule: &BrakeRule) {
        self.passed.retain(|at| now.since(*at) < rule.within);
        // A suspicion that has lasted longer than the window is no longer part of a wave.
        for keys in self.suspects.values_mut() {
            keys.retain(|_, at| now.since(*at) < rule.within.plus(Span::from_mins(1)));
        }
        self.suspects.retain(|_, keys| !keys.is_empty());
        if self.suspects.is_empty() && !self.engaged {
            self.window_from = None;
            self.looked.clear();
        }
    }

    fn too_many(&self, rule: &BrakeRule) -> bool {
        let suspects = u64::try_from(self.suspects.len()).unwrap_or(u64::MAX);
        let looked = u64::try_from(self.looked.len()).unwrap_or(u64::MAX);
        let share = suspects.saturating_mul(1000) >= looked.saturating_mul(u64::from(rule.fraction_permille));
        suspects >= u64::from(rule.accounts) && share
    }

    /// Asks for one unstated lock of a key.
    pub fn ask(&mut self, now: Mono, wall: Wall, key: &KeyId, rule: &BrakeRule) -> BrakeMove {
        self.expire(now, rule);
        let most = usize::try_from(rule.most).unwrap_or(usize::MAX);
        let engaged_now = !self.engaged && (self.too_many(rule) || self.passed.len() >= most);
        if engaged_now {
            self.engaged = true;
            self.engaged_at = Some(wall);
        }
        if self.engaged {
            self.held.insert(key.clone());
            return BrakeMove::Hold { engaged_now };
        }
        self.passed.push(now);
        BrakeMove::Go
    }

    /// A person released it: gives the keys that were held.
    pub fn release(&mut self) -> Vec<KeyId> {
        self.engaged = false;
        self.engaged_at = None;
        self.window_from = None;
        self.looked.clear();
        self.suspects.clear();
        self.passed.clear();
        std::mem::take(&mut self.held).into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
