//! inside
//! Which key is looked at next: a grid per key, a lane per account, suspects first, a breaker that
//! leaves a trickle. It must never starve a suspect for a steady key, nor forget a key.

pub mod lanes;

use std::collections::{BTreeMap, BTreeSet};

use crate::time::{Mono, Span};
use crate::words::FailureKind;

/// Index of a key in the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyIx(pub u32);

/// Who goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Control keys and keys in question.
    Suspect,
    Recovering,
    Steady,
}

/// A stable number of a name, the same in every build (FNV-1a): phases survive restarts.
#[must_use]
pub fn phase_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The next slot of a grid with period `every` and the key's own phase, strictly after `now`.
/// Steady keys keep to it, so that neither a restart nor a slow probe bunches them up.
#[must_use]
pub fn slot_after(now: Mono, every: Span, phase: u64) -> Mono {
    let every = every.0.max(1);
    let offset = phase.checked_rem(every).unwrap_or(0);
    let into = now.0.wrapping_sub(offset).checked_rem(every).unwrap_or(0);
    Mono(now.0.saturating_sub(into).saturating_add(every))
}

/// Failures in a row that open the breaker.
const BREAKER_OPENS: u32 = 10;
/// One probe in so long while the breaker is open.
const TRICKLE: Span = Span::from_secs(1);

/// Kinds that say that the provider is in trouble; a denial never does.
#[must_use]
pub const fn trips_breaker(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Throttled | FailureKind::ProviderFault | FailureKind::Timeout)
}

/// The keys of one account: waiting by time, ready by class.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    waiting: BTreeSet<(Mono, KeyIx)>,
    ready: BTreeSet<(Class, Mono, KeyIx)>,
    place: BTreeMap<KeyIx, (Class, Mono)>,
    failures: u32,
    last_pop: Mono,
}

impl Lane {
    /// Puts a key in, or moves it.
    pub fn put(&mut self, key: KeyIx, class: Class, at: Mono) {
        self.take(key);
        self.place.insert(key, (class, at));
        self.waiting.insert((at, key));
    }

    pub fn take(&mut self, key: KeyIx) {
        if let Some((class, at)) = self.place.remove(&key) {
            self.waiting.remove(&(at, key));
            self.ready.remove(&(class, at, key));
        }
    }

    /// When this key is due; `None` while it is not in the lane (in flight).
    #[must_use]
    pub fn due_at(&self, key: KeyIx) -> Option<Mono> {
        self.place.get(&key).map(|(_, at)| *at)
    }

    fn ripen(&mut self, now: Mono) {
        while let Some((at, key)) = self.waiting.first().copied().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, key));
            if let Some((class, at)) = self.place.get(&key) {
                self.ready.insert((*class, *at, key));
            }
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.place.is_empty()
    }

    /// Class of the key that would come next, if one is due.
    pub fn head(&mut self, now: Mono) -> Option<Class> {
        self.ripen(now);
        self.ready.first().map(|(class, ..)| *class)
    }

    /// The next key whose turn it is; an open breaker lets only a trickle pass.
    pub fn pop(&mut self, now: Mono) -> Option<KeyIx> {
        self.ripen(now);
        if self.open() && now.since(self.last_pop) < TRICKLE {
            return None;
        }
        let (_, _, key) = self.ready.first().copied()?;
        self.take(key);
        self.last_pop = now;
        Some(key)
    }

    /// When to ask again; `None` if no key is waiting.
    #[must_use]
    pub fn next(&self) -> Option<Mono> {
        let first = if self.ready.is_empty() { self.waiting.first().map(|(at, _)| *at)? } else { Mono(0) };
        Some(if self.open() { first.max(self.last_pop.plus(TRICKLE)) } else { first })
    }

    /// Whether only a trickle passes.
    #[must_use]
    pub fn open(&self) -> bool {
        self.failures >= BREAKER_OPENS
    }

    /// Tells the breaker how a probe went: `Some(kind)` of an inconclusive one, `None` otherwise.
    pub fn ended(&mut self, trouble: Option<FailureKind>) {
        match trouble {
            Some(kind) if trips_breaker(kind) => self.failures = self.failures.saturating_add(1),
            Some(_) => {}
            None => self.failures = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_open_breaker_lets_one_probe_a_second_pass_and_closes_on_a_good_one() {
        let mut lane = Lane::default();
        let start = Mono(1 << 41);
        (0..50).for_each(|i| lane.put(KeyIx(i), Class::Steady, start));
        (0..10).for_each(|_| lane.ended(Some(FailureKind::Throttled)));
        assert!(lane.open());
        let passed = (0..5000).filter(|ms| lane.pop(start.plus(Span(*ms))).is_some()).count();
        assert_eq!(passed, 5);
        lane.ended(None);
        assert!(!lane.open() && lane.pop(start.plus(Span(5001))).is_some());
        (0..30).for_each(|_| lane.ended(Some(FailureKind::AccessDenied)));
        assert!(!lane.open(), "a denial is no trouble of the provider");
    }

    proptest! {
        #[test]
        fn slots_are_one_period_apart_and_after_now(now in 1u64<<40..1u64<<45, every in 1u64..10_000_000, phase in any::<u64>()) {
            let first = slot_after(Mono(now), Span(every), phase);
            prop_assert!(first > Mono(now) && first.since(Mono(now)) <= Span(every));
            prop_assert_eq!(slot_after(first, Span(every), phase), first.plus(Span(every)));
        }

        #[test]
        fn no_key_is_lost_or_doubled(moves in proptest::collection::vec((0u32..8, 0u64..3, 0u64..5000, any::<bool>()), 1..80)) {
            let mut lane = Lane::default();
            let mut inside = BTreeSet::new();
            let mut now = Mono(1 << 41);
            for (key, class, ahead, pop) in moves {
                if pop {
                    now = now.plus(Span(ahead));
                    if let Some(popped) = lane.pop(now) {
                        prop_assert!(inside.remove(&popped));
                    }
                } else {
                    let class = [Class::Suspect, Class::Recovering, Class::Steady][class as usize];
                    lane.put(KeyIx(key), class, now.plus(Span(ahead)));
                    inside.insert(KeyIx(key));
                }
            }
            now = now.plus(Span(10_000));
            while let Some(key) = lane.pop(now) {
                prop_assert!(inside.remove(&key));
            }
            prop_assert!(inside.is_empty() && lane.next().is_none());
        }
    }
}
