//! inside
//! The owner-set table: failure kind -> confirmation, access and how to unlock.
//! Holds the built-in defaults of the contract and the bounds of each field; it must never see evidence.

use std::collections::BTreeMap;

use crate::time::Span;
use crate::words::{Access, FailureKind};

/// How many looks of one kind confirm it, and what then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confirm {
    pub looks: u8,
    /// At most 8.
    pub of: u8,
    pub over: Span,
    /// `None` = hold.
    pub access: Option<Access>,
}

impl Confirm {
    /// Distance between two counted looks: `max(at_least, over / (looks - 1))` from the start of the
    /// last counted one. Looking more often than that could never span `over` within `of` looks.
    #[must_use]
    pub fn spacing(&self, at_least: Span) -> Span {
        let even = match self.looks {
            0 | 1 => Span::ZERO,
            looks => Span(self.over.0.div_ceil(u64::from(looks.saturating_sub(1)))),
        };
        even.max(at_least)
    }
}

/// Stated by the data call while describe is refused or silent: looks, of, over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatedAlone {
    pub looks: u8,
    pub of: u8,
    pub over: Span,
}

/// How a workspace is opened again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unlock {
    Automatic,
    Manual,
}

/// Good full rounds needed to unlock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnlockAfter {
    pub rounds: u8,
    pub over: Span,
}

/// What to do with a key that flaps without ever confirming.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flapping {
    pub after: Span,
    /// `None` = hold.
    pub access: Option<Access>,
}

/// One named policy, complete: policies do not inherit from each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    pub probe_interval: Span,
    pub suspect_interval: Span,
    pub revoked_interval: Span,
    pub version_interval: Span,
    pub call_timeout: Span,
    pub unlock: Unlock,
    pub unlock_after: UnlockAfter,
    /// `None` = never.
    pub lock_after_stale: Option<Span>,
    pub alarm_after_stale: Vec<Span>,
    pub lease_ttl: Span,
    pub warn_before_deletion: Vec<Span>,
    pub warn_before_expiry: Vec<Span>,
    /// `None` = never.
    pub rotation_max_age: Option<Span>,
    /// `None` = hold.
    pub lost_version: Option<Access>,
    pub enforce: bool,
    /// Access of workspaces whose key was never proven.
    pub unproven: Access,
    pub witness_grace: Span,
    pub flapping: Flapping,
    pub stated_alone: StatedAlone,
    /// Kinds that can be confirmed. A kind that is absent holds: it takes no slot among the looks.
    pub on: BTreeMap<FailureKind, Confirm>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            probe_interval: Span::from_secs(60),
            suspect_interval: Span::from_secs(5),
            revoked_interval: Span::from_mins(5),
            version_interval: Span::from_hours(1),
            call_timeout: Span::from_secs(10),
            unlock: Unlock::Automatic,
            unlock_after: UnlockAfter { rounds: 3, over: Span::from_secs(60) },
            lock_after_stale: None,
            alarm_after_stale: vec![Span::from_mins(5), Span::from_hours(1)],
            lease_ttl: Span::from_mins(15),
            warn_before_deletion: vec![Span::from_days(7), Span::from_days(3), Span::from_days(1)],
            warn_before_expiry: vec![Span::from_days(30), Span::from_days(7), Span::from_days(1)],
            rotation_max_age: Some(Span::from_days(400)),
            lost_version: None,
            enforce: true,
            unproven: Access::Open,
            witness_grace: Span::from_mins(30),
            flapping: Flapping { after: Span::from_mins(10), access: None },
            stated_alone: StatedAlone { looks: 3, of: 4, over: Span::from_secs(30) },
            on: default_confirmations(),
        }
    }
}

/// The built-in confirmations of the contract.
#[must_use]
pub fn default_confirmations() -> BTreeMap<FailureKind, Confirm> {
    let row = |looks, of, over, access| Confirm { looks, of, over, access };
    let secs = Span::from_secs;
    BTreeMap::from([
        (FailureKind::Disabled, row(2, 2, secs(5), Some(Access::Locked))),
        (FailureKind::PendingDeletion, row(2, 2, secs(5), Some(Access::Locked))),
        (FailureKind::Destroyed, row(2, 2, secs(5), Some(Access::Locked))),
        (FailureKind::AccessDenied, row(3, 4, secs(30), Some(Access::Locked))),
        (FailureKind::Expired, row(2, 2, secs(5), Some(Access::ReadOnly))),
        (FailureKind::Corrupt, row(2, 2, secs(5), Some(Access::ReadOnly))),
        (FailureKind::NetworkBlocked, row(3, 4, Span::from_mins(5), None)),
        (FailureKind::KeyStoreUnavailable, row(3, 4, Span::from_mins(5), None)),
    ])
}

/// How a kind may appear under `[policies.NAME.on]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settable {
    /// Any confirmation and access.
    Freely,
    /// May lock only with `over` of ten minutes or more (SETTLED A14).
    Slowly,
    /// Accepts only `access = "hold"`.
    HoldOnly,
}

/// Which settings of `on.KIND` are allowed.
#[must_use]
pub const fn settable(kind: FailureKind) -> Settable {
    match kind {
        FailureKind::Disabled
        | FailureKind::PendingDeletion
        | FailureKind::Destroyed
        | FailureKind::Expired
        | FailureKind::AccessDenied
        | FailureKind::NetworkBlocked
        | FailureKind::KeyStoreUnavailable
        | FailureKind::Corrupt => Settable::Freely,
        FailureKind::Misconfigured | FailureKind::Unclassified => Settable::Slowly,
        FailureKind::Throttled
        | FailureKind::ProviderFault
        | FailureKind::Timeout
        | FailureKind::Unreachable
        | FailureKind::Credentials => Settable::HoldOnly,
    }
}

/// The promised time from the first refused answer to the lock, in the worst order of events; `None`
/// if the kind never lowers access under this policy. `2 x probe_interval + over + looks x
/// (suspect_interval + call_timeout) + 2 s` (looks spaced by `over` are within it).
#[must_use]
pub fn lock_bound(policy: &Policy, kind: FailureKind) -> Option<Span> {
    let confirm = policy.on.get(&kind).filter(|confirm| confirm.access.is_some())?;
    let look = policy.suspect_interval.plus(policy.call_timeout);
    Some(policy.probe_interval.times(2).plus(confirm.over).plus(look.times(u64::from(confirm.looks))).plus(Span::from_secs(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promised_time_to_lock_is_the_sum_of_its_parts() {
        let policy = Policy::default();
        assert_eq!(lock_bound(&policy, FailureKind::Disabled), Some(Span::from_secs(120 + 5 + 2 * 15 + 2)));
        assert_eq!(lock_bound(&policy, FailureKind::AccessDenied), Some(Span::from_secs(120 + 30 + 3 * 15 + 2)));
        assert_eq!(lock_bound(&policy, FailureKind::NetworkBlocked), None);
        assert_eq!(lock_bound(&policy, FailureKind::Timeout), None);
    }

    #[test]
    fn the_promised_time_covers_counted_looks_at_their_real_distance() {
        let policy = Policy::default();
        for (kind, confirm) in &policy.on {
            let Some(bound) = lock_bound(&policy, *kind) else { continue };
            let looks = u64::from(confirm.looks);
            let spaced = confirm.spacing(policy.suspect_interval).times(looks.saturating_sub(1)).plus(policy.call_timeout.times(looks));
            assert!(policy.probe_interval.times(2).plus(spaced) <= bound, "{kind}");
        }
    }

    #[test]
    fn looks_are_spaced_so_that_the_default_rules_can_be_met() {
        for (kind, confirm) in default_confirmations() {
            let spacing = confirm.spacing(Span::from_secs(5));
            let spanned = spacing.times(u64::from(confirm.looks.saturating_sub(1)));
            assert!(spanned >= confirm.over, "{kind}: {spanned} of {}", confirm.over);
            assert!(spacing >= Span::from_secs(5));
        }
    }
}
