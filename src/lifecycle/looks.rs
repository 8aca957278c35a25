//! inside
//! The counting of looks: m of the newest n, spread over a time, spaced so that the rule can be met.
//! Inconclusive looks never come here. It must never confirm by a clock step or by looks that were
//! made in a hurry (hints): those may only weaken.

use serde::{Deserialize, Serialize};

use crate::policy::{Confirm, Policy};
use crate::time::{Mono, Now, Span, Wall};
use crate::verdict::{Direction, Refused, Stated, is_conclusive};
use crate::words::{Access, FailureKind};

/// Newest looks kept; no rule may ask for more.
pub const LOOKS_MAX: usize = 8;

/// A moment: monotonic in this process, wall in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stamp {
    #[serde(skip)]
    pub mono: Mono,
    pub wall: Wall,
}

impl From<Now> for Stamp {
    fn from(now: Now) -> Self {
        Self { mono: now.mono, wall: now.wall }
    }
}

/// One conclusive look; `refused` is `None` when it was good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Look {
    pub at: Stamp,
    pub refused: Option<Refused>,
}

/// The looks of one suspicion.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Looks {
    /// First refused look of the present suspicion; survives the ring.
    first: Option<Stamp>,
    /// First of them that refused unwrap.
    first_unwrap: Option<Stamp>,
    ring: Vec<Look>,
    good_in_a_row: u8,
    /// The longest window of the rules seen in this suspicion: as many good looks in a row end it.
    #[serde(default)]
    of: u8,
    /// A refused look was seen since this process started: without one nothing locks.
    #[serde(skip)]
    fresh: bool,
}

/// What the looks confirm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confirmed {
    pub refused: Refused,
    /// `None` = the policy holds.
    pub access: Option<Access>,
}

/// The rule that one refusal has to meet, with A2 (direction first) applied to its access.
#[must_use]
pub fn rule_of(refused: &Refused, policy: &Policy) -> Option<Confirm> {
    let base = policy.on.get(&refused.kind).copied();
    let access = base.and_then(|rule| rule.access);
    if refused.direction == Direction::Wrap {
        let access = access.map(|_| Access::ReadOnly);
        let quick = Confirm { looks: 2, of: 2, over: Span::from_secs(5), access };
        // A kind of doubt that the policy lets lock keeps the patience that the policy gives it.
        return base.map(|rule| if is_conclusive(refused.kind) { quick } else { Confirm { access, ..rule } });
    }
    let access = match refused.direction {
        Direction::Unwrap => access.map(|level| level.max(Access::Locked)),
        Direction::Version => policy.lost_version,
        Direction::Bytes | Direction::Wrap => access,
    };
    let mut rule = Confirm { access, ..base? };
    let alone = policy.stated_alone;
    match refused.kind {
        FailureKind::Destroyed if refused.stated == Stated::No => rule = Confirm { looks: 3, of: 4, over: Span::from_secs(60), access },
        FailureKind::Disabled | FailureKind::PendingDeletion | FailureKind::Destroyed => {
            if refused.stated != Stated::Both {
                rule = Confirm { looks: alone.looks, of: alone.of, over: alone.over, access };
            }
        }
        FailureKind::Expired
        | FailureKind::AccessDenied
        | FailureKind::NetworkBlocked
        | FailureKind::KeyStoreUnavailable
        | FailureKind::Throttled
        | FailureKind::ProviderFault
        | FailureKind::Timeout
        | FailureKind::Unreachable
        | FailureKind::Credentials
        | FailureKind::Misconfigured
        | FailureKind::Corrupt
        | FailureKind::Unclassified => {}
    }
    if refused.weak {
        rule = Confirm { looks: 6, of: 8, over: rule.over.max(Span::from_mins(5)), access };
    }
    Some(rule)
}

/// A look counts for a rule if it is at least as sure as the look that brought the rule in.
fn strength(refused: &Refused) -> u8 {
    match (refused.weak, refused.stated) {
        (true, _) => 0,
        (false, Stated::No) => 1,
        (false, Stated::Alone) => 2,
        (false, Stated::Both) => 3,
    }
}

impl Looks {
    #[must_use]
    pub fn first_refused(&self) -> Option<Stamp> {
        self.first
    }

    #[must_use]
    pub fn newest(&self) -> Option<Refused> {
        self.ring.iter().rev().find_map(|look| look.refused)
    }

    #[must_use]
    pub fn counted(&self) -> usize {
        self.ring.iter().filter(|look| look.refused.is_some()).count()
    }

    /// Start of the newest counted refused look.
    #[must_use]
    pub fn newest_refused_at(&self) -> Option<Mono> {
        self.ring.iter().rev().find(|look| look.refused.is_some()).map(|look| look.at.mono)
    }

    /// After a restart: gives every stored moment its place on this process's clock.
    pub fn rebase(&mut self, now: Now, policy: &Policy) {
        let cap = self.horizon(policy);
        let place = |stamp: &mut Stamp| stamp.mono = now.mono_of(stamp.wall, cap);
        self.ring.iter_mut().for_each(|look| place(&mut look.at));
        self.first.iter_mut().for_each(place);
        self.first_unwrap.iter_mut().for_each(place);
        self.fresh = false;
    }

    /// Looks older than this say nothing any more. As many looks as a rule may ask for fit in, each as
    /// late as its call may take: else a slow provider would postpone a lock for ever.
    fn horizon(&self, policy: &Policy) -> Span {
        let over = self.ring.iter().filter_map(|look| look.refused).filter_map(|r| rule_of(&r, policy)).map(|rule| rule.over).max();
        let looks = u64::try_from(LOOKS_MAX).unwrap_or(u64::MAX);
        policy
            .suspect_interval
            .plus(policy.call_timeout)
            .times(looks)
            .max(policy.suspect_interval.times(10))
            .plus(over.unwrap_or(Span::ZERO))
    }

    fn forget_old(&mut self, now: Mono, policy: &Policy) {
        let horizon = self.horizon(policy);
        self.ring.retain(|look| now.since(look.at.mono) <= horizon);
        if self.counted() == 0 {
            (self.first, self.first_unwrap) = (None, None);
        }
        if !self.ring.iter().any(|look| look.refused.is_some_and(|r| r.direction == Direction::Unwrap)) {
            self.first_unwrap = None;
        }
    }

    fn push(&mut self, look: Look) {
        if self.ring.len() >= LOOKS_MAX {
            self.ring.remove(0);
        }
        self.ring.push(look);
    }

    pub fn good(&mut self, at: Now, policy: &Policy) {
        self.forget_old(at.mono, policy);
        self.good_in_a_row = self.good_in_a_row.saturating_add(1);
        self.push(Look { at: at.into(), refused: None });
    }

    /// Counts a refused look unless it comes too soon after the last counted one.
    pub fn refused(&mut self, refused: Refused, at: Now, policy: &Policy) {
        self.forget_old(at.mono, policy);
        self.good_in_a_row = 0;
        self.fresh = true;
        let Some(rule) = rule_of(&refused, policy) else { return };
        self.of = self.of.max(rule.of);
        let spacing = rule.spacing(policy.suspect_interval);
        // A look that is surer than all before it stands beside them at once.
        let surer =
            self.ring.iter().filter_map(|l| l.refused).all(|r| strength(&r) < strength(&refused) || r.direction < refused.direction);
        let too_soon = self.newest_refused_at().is_some_and(|last| at.mono.since(last) < spacing);
        if too_soon && !surer {
            return;
        }
        self.first.get_or_insert(at.into());
        if refused.direction == Direction::Unwrap {
            self.first_unwrap.get_or_insert(at.into());
        }
        self.push(Look { at: at.into(), refused: Some(refused) });
    }

    /// Whether enough good looks in a row have ended the suspicion.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.good_in_a_row >= self.of.max(1)
    }

    /// When the next counted look of this kind is due, from the start of the last one.
    #[must_use]
    pub fn spacing(&self, policy: &Policy) -> Span {
        let rule = self.newest().and_then(|r| rule_of(&r, policy));
        rule.map_or(policy.suspect_interval, |rule| rule.spacing(policy.suspect_interval))
    }

    /// What these looks confirm now, the strictest of all rules that are met. `vouched_elsewhere`:
    /// the same identity had a good look on another account's key since the first denial.
    #[must_use]
    pub fn confirmed(&self, policy: &Policy, vouched_elsewhere: bool) -> Option<Confirmed> {
        let newest = self.newest().filter(|_| self.fresh && self.good_in_a_row == 0)?;
        let mut strictest: Option<Confirmed> = None;
        for refused in self.ring.iter().filter_map(|look| look.refused) {
            // Read-only and lost versions rest on this round's unwrap having been good.
            if refused.direction != Direction::Unwrap && refused.direction != newest.direction {
                continue;
            }
            let Some(found) = self.meets(&refused, policy) else { continue };
            if refused.weak && !vouched_elsewhere {
                continue;
            }
            if strictest.is_none_or(|s| found.access > s.access) {
                strictest = Some(found);
            }
        }
        strictest
    }

    /// Whether the rule that `by` brings in is met by the looks that are at least as sure.
    fn meets(&self, by: &Refused, policy: &Policy) -> Option<Confirmed> {
        let rule = rule_of(by, policy)?;
        let window = self.ring.iter().rev().take(usize::from(rule.of));
        let counted: Vec<(Stamp, Refused, Confirm)> = window
            .filter_map(|look| look.refused.map(|r| (look.at, r)))
            .filter(|(_, r)| strength(r) >= strength(by) && r.direction >= by.direction)
            .filter_map(|(at, r)| rule_of(&r, policy).map(|rule| (at, r, rule)))
            .collect();
        let newest_at = counted.first().map(|(at, ..)| at.mono)?;
        let over = counted.iter().map(|(_, _, rule)| rule.over).max()?.max(rule.over);
        let first = if by.direction == Direction::Unwrap { self.first_unwrap } else { self.first };
        let spread = newest_at.since(first?.mono) >= over;
        if counted.len() < usize::from(rule.looks) || !spread {
            return None;
        }
        let access = counted.iter().filter(|(_, r, _)| r.direction == by.direction).map(|(_, _, rule)| rule.access).max().flatten();
        let newest = counted.iter().find(|(_, r, _)| r.direction == by.direction).map_or(*by, |(_, r, _)| *r);
        Some(Confirmed { refused: newest, access: access.max(rule.access) })
    }
}
