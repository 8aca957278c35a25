//! inside
//! All lanes: one an owner account, so that one bad account starves no other, under one call budget a
//! provider and region. Suspects go before steady keys across the lanes of a budget, and lanes of
//! equal standing take turns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::key::ProviderId;
use crate::schedule::{Class, KeyIx, Lane};
use crate::time::Mono;
use crate::words::FailureKind;

/// A provider's budget in one region.
pub type BudgetId = (ProviderId, Arc<str>);

/// Which lane a key runs in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LaneId {
    pub provider: ProviderId,
    /// Region, location or vault: what the provider counts calls by.
    pub region: Arc<str>,
    /// Owner account.
    pub account: Arc<str>,
}

impl LaneId {
    #[must_use]
    pub fn budget(&self) -> BudgetId {
        (self.provider.clone(), Arc::clone(&self.region))
    }
}

/// Calls that may be made, by generic cell rate: one second's worth at once, then evenly.
#[derive(Clone, Debug)]
pub struct Budget {
    interval_us: u64,
    arrival_us: u64,
}

impl Budget {
    #[must_use]
    pub fn new(calls_per_second: u32) -> Self {
        Self { interval_us: 1_000_000u64.checked_div(u64::from(calls_per_second)).unwrap_or(1_000_000), arrival_us: 0 }
    }

    fn allows(&self, now: Mono) -> bool {
        self.arrival_us <= now.0.saturating_mul(1000).saturating_add(1_000_000)
    }

    fn spend(&mut self, now: Mono, calls: u32) {
        let at = self.arrival_us.max(now.0.saturating_mul(1000));
        self.arrival_us = at.saturating_add(self.interval_us.saturating_mul(u64::from(calls)));
    }

    fn next(&self) -> Mono {
        Mono(self.arrival_us.saturating_sub(1_000_000).div_ceil(1000))
    }
}

/// Every lane with its place in the order. All steps are O(log n) in lanes and keys.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    lanes: BTreeMap<LaneId, Lane>,
    budgets: BTreeMap<BudgetId, Budget>,
    rates: BTreeMap<ProviderId, u32>,
    waiting: BTreeSet<(Mono, LaneId)>,
    ready: BTreeSet<(Class, u64, LaneId)>,
    place: BTreeMap<LaneId, Place>,
    turn: u64,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Waiting(Mono),
    Ready(Class, u64),
}

impl Lanes {
    /// The budget of a provider, for each of its regions.
    pub fn set_rate(&mut self, provider: &ProviderId, calls_per_second: u32) {
        if self.rates.insert(provider.clone(), calls_per_second) != Some(calls_per_second) {
            for ((id, _), budget) in &mut self.budgets {
                if id == provider {
                    budget.interval_us = Budget::new(calls_per_second).interval_us;
                }
            }
        }
    }

    pub fn put(&mut self, id: &LaneId, key: KeyIx, class: Class, at: Mono) {
        let rate = self.rates.get(&id.provider).copied().unwrap_or(1);
        self.budgets.entry(id.budget()).or_insert_with(|| Budget::new(rate));
        self.lanes.entry(id.clone()).or_default().put(key, class, at);
        self.place_again(id, Mono(0));
    }

    pub fn take(&mut self, id: &LaneId, key: KeyIx) {
        if let Some(lane) = self.lanes.get_mut(id) {
            lane.take(key);
            if lane.is_empty() && !lane.open() {
                self.lanes.remove(id);
            }
            self.place_again(id, Mono(0));
        }
    }

    #[must_use]
    pub fn due_at(&self, id: &LaneId, key: KeyIx) -> Option<Mono> {
        self.lanes.get(id).and_then(|lane| lane.due_at(key))
    }

    /// Whether this lane's breaker lets only a trickle pass.
    #[must_use]
    pub fn open(&self, id: &LaneId) -> bool {
        self.lanes.get(id).is_some_and(Lane::open)
    }

    pub fn ended(&mut self, id: &LaneId, trouble: Option<FailureKind>) {
        if let Some(lane) = self.lanes.get_mut(id) {
            lane.ended(trouble);
            self.place_again(id, Mono(0));
        }
    }

    /// The next key whose turn it is, with its lane, if a budget allows about `calls` calls now.
    pub fn pop(&mut self, now: Mono, calls: u32) -> Option<(LaneId, KeyIx)> {
        self.ripen(now);
        let mut blocked: Vec<(LaneId, Mono)> = Vec::new();
        let mut popped = None;
        for (_, _, id) in &self.ready {
            let Some(budget) = self.budgets.get_mut(&id.budget()) else { continue };
            if !budget.allows(now) {
                blocked.push((id.clone(), budget.next()));
                continue;
            }
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            match lane.pop(now) {
                Some(key) => {
                    budget.spend(now, calls);
                    popped = Some((id.clone(), key));
                    break;
                }
                None => blocked.push((id.clone(), lane.next().unwrap_or(now))),
            }
        }
        for (id, until) in blocked {
            self.place_again(&id, until.max(Mono(now.0.saturating_add(1))));
        }
        if let Some((id, _)) = &popped {
            let id = id.clone();
            self.place_again(&id, Mono(0));
        }
        popped
    }

    /// When [`Self::pop`] may have something next.
    #[must_use]
    pub fn next(&self) -> Option<Mono> {
        if self.ready.is_empty() { self.waiting.first().map(|(at, _)| *at) } else { Some(Mono(0)) }
    }

    fn ripen(&mut self, now: Mono) {
        while let Some((at, id)) = self.waiting.first().cloned().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, id.clone()));
            let Some(class) = self.lanes.get_mut(&id).and_then(|lane| lane.head(now)) else {
                self.place.remove(&id);
                self.place_again(&id, Mono(now.0.saturating_add(1)));
                continue;
            };
            self.turn = self.turn.saturating_add(1);
            self.ready.insert((class, self.turn, id.clone()));
            self.place.insert(id, Place::Ready(class, self.turn));
        }
    }

    /// Puts a lane where its own next moment says, not before `not_before`.
    fn place_again(&mut self, id: &LaneId, not_before: Mono) {
        match self.place.remove(id) {
            Some(Place::Waiting(at)) => {
                self.waiting.remove(&(at, id.clone()));
            }
            Some(Place::Ready(class, turn)) => {
                self.ready.remove(&(class, turn, id.clone()));
            }
            None => {}
        }
        if let Some(next) = self.lanes.get(id).and_then(Lane::next) {
            let at = next.max(not_before);
            self.waiting.insert((at, id.clone()));
            self.place.insert(id.clone(), Place::Waiting(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Span;
    use proptest::prelude::*;

    const START: Mono = Mono(1 << 41);

    fn lane(account: &str) -> LaneId {
        LaneId { provider: ProviderId::new("p").unwrap(), region: "r".into(), account: account.into() }
    }

    fn lanes(rate: u32) -> Lanes {
        let mut lanes = Lanes::default();
        lanes.set_rate(&ProviderId::new("p").unwrap(), rate);
        lanes
    }

    #[test]
    fn suspects_go_first_across_lanes_and_the_budget_is_shared() {
        let mut all = lanes(4);
        (0..10).for_each(|i| all.put(&lane("a"), KeyIx(i), Class::Steady, START));
        (10..20).for_each(|i| all.put(&lane("b"), KeyIx(i), Class::Steady, START));
        all.put(&lane("b"), KeyIx(99), Class::Suspect, START);
        assert_eq!(all.pop(START, 2).map(|(_, key)| key), Some(KeyIx(99)));
        let popped: usize = (0..=10_000).map(|ms| std::iter::from_fn(|| all.pop(START.plus(Span(ms)), 2)).count()).sum();
        assert_eq!(popped, 20, "one second's burst of 4 calls and 10 s of 4 calls are 22 probes of 2 calls");
        assert_eq!(all.next(), None);
    }

    #[test]
    fn one_account_in_trouble_starves_no_other() {
        let mut all = lanes(1000);
        for i in 0..50 {
            all.put(&lane("bad"), KeyIx(i), Class::Steady, START);
            all.put(&lane("good"), KeyIx(100 + i), Class::Steady, START);
        }
        (0..10).for_each(|_| all.ended(&lane("bad"), Some(FailureKind::Throttled)));
        let mut popped = vec![];
        while let Some((_, key)) = all.pop(START, 3) {
            popped.push(key);
        }
        assert_eq!(popped.iter().filter(|key| key.0 >= 100).count(), 50);
        assert!(popped.iter().filter(|key| key.0 < 100).count() <= 1, "the bad lane keeps a trickle");
    }

    #[test]
    fn lanes_of_equal_standing_take_turns() {
        let mut all = lanes(100_000);
        for i in 0..5 {
            all.put(&lane("a"), KeyIx(i), Class::Steady, START);
            all.put(&lane("b"), KeyIx(10 + i), Class::Steady, START);
        }
        let order: Vec<bool> = std::iter::from_fn(|| all.pop(START, 1)).map(|(id, _)| &*id.account == "a").collect();
        assert!(order.windows(3).all(|w| w.iter().any(|a| *a) && w.iter().any(|a| !*a)), "{order:?}");
    }

    proptest! {
        #[test]
        fn no_key_is_lost_or_doubled_and_none_comes_early(moves in proptest::collection::vec((0u32..12, 0u64..3, 0u64..5000, 0u8..6), 1..120)) {
            let mut all = lanes(1_000_000);
            let mut inside: BTreeMap<KeyIx, Mono> = BTreeMap::new();
            let mut now = START;
            for (key, class, ahead, what) in moves {
                let id = lane(["a", "b", "c"][key as usize % 3]);
                match what {
                    0 | 1 => {
                        now = now.plus(Span(ahead));
                        if let Some((_, popped)) = all.pop(now, 1) {
                            prop_assert!(inside.remove(&popped).is_some_and(|at| at <= now));
                        }
                    }
                    2 => { all.take(&id, KeyIx(key)); inside.remove(&KeyIx(key)); }
                    3 => all.ended(&id, (ahead % 2 == 0).then_some(FailureKind::Timeout)),
                    _ => {
                        let class = [Class::Suspect, Class::Recovering, Class::Steady][class as usize];
                        all.put(&id, KeyIx(key), class, now.plus(Span(ahead)));
                        inside.insert(KeyIx(key), now.plus(Span(ahead)));
                    }
                }
            }
            for _ in 0..200 {
                now = now.plus(Span(1000));
                while let Some((_, key)) = all.pop(now, 1) {
                    prop_assert!(inside.remove(&key).is_some());
                }
            }
            prop_assert!(inside.is_empty(), "{inside:?}");
            prop_assert!(all.next().is_none());
        }
    }
}
