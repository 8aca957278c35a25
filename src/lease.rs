//! inside
//! Leases: what a token says, which key signs when, when a key is made ahead and when it may go.
//! Keys are names and dates here; it must never hold a private key, and never lease beyond
//! [`LONGEST`], so that no token outlives the key that others check it with.

use serde::{Deserialize, Serialize};

use crate::key::WorkspaceId;
use crate::snapshot::WorkspaceView;
use crate::time::{Span, Wall};
use crate::words::{Access, Sequence};

/// Who says so.
pub const ISSUER: &str = "cmek-watchdog";
/// No lease is longer, whatever the policy says.
pub const LONGEST: Span = Span::from_hours(24);
/// A key is shown for so long before it signs: caches of the key set are older than that nowhere.
pub const AHEAD: Span = Span::from_hours(1);

/// What a lease says: this workspace was open, and may be taken as open until `exp`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    /// The workspace.
    pub sub: String,
    pub sequence: Sequence,
    pub access: Access,
    /// Seconds since 1970, as are `exp` and the others of the standard.
    pub iat: i64,
    pub exp: i64,
    pub jti: String,
}

/// Why there is no lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoLease {
    #[error("the workspace is not open")]
    NotOpen(Access),
}

impl Claims {
    /// The lease of a workspace as it is shown. `ttls` are those of the policies of its keys: the
    /// shortest counts; without keys `otherwise`.
    ///
    /// # Errors
    /// Unless the workspace is open.
    pub fn of(view: &WorkspaceView, ttls: impl Iterator<Item = Span>, otherwise: Span, now: Wall, jti: String) -> Result<Self, NoLease> {
        if view.access != Access::Open {
            return Err(NoLease::NotOpen(view.access));
        }
        let ttl = ttls.min().unwrap_or(otherwise).min(LONGEST);
        // Whole seconds, downwards: never a moment longer than promised.
        let seconds = |at: Wall| at.0.div_euclid(1000);
        let iat = seconds(now);
        Ok(Self {
            iss: ISSUER.to_owned(),
            sub: view.workspace.to_string(),
            sequence: view.sequence,
            access: view.access,
            iat,
            exp: seconds(now.plus(ttl)),
            jti,
        })
    }

    /// For how long it was given.
    #[must_use]
    pub fn length(&self) -> Span {
        Span::from_secs(u64::try_from(self.exp.saturating_sub(self.iat)).unwrap_or(0))
    }

    #[must_use]
    pub fn is_for(&self, workspace: &WorkspaceId) -> bool {
        self.iss == ISSUER && self.sub == workspace.as_str() && self.access == Access::Open
    }
}

/// A signing key by its name and dates.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyDates {
    pub kid: String,
    pub made_at: Wall,
    /// It signs from here on, until a later key does.
    pub signs_from: Wall,
}

/// What has to be done about the keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tend {
    /// A new key is to be made that signs from this time on.
    pub make: Option<Wall>,
    /// No token of these can be valid any more.
    pub drop: Vec<String>,
}

/// The key that signs now. While none has come to its time (a clock set back) the earliest does.
#[must_use]
pub fn signing(keys: &[KeyDates], now: Wall) -> Option<&KeyDates> {
    let begun = keys.iter().filter(|key| key.signs_from <= now).max_by_key(|key| key.signs_from);
    begun.or_else(|| keys.iter().min_by_key(|key| key.signs_from))
}

/// The rules of rotation: the first key signs at once; the next is made [`AHEAD`] of the end of
/// `max_age`; one that was followed goes when the longest lease of its last moment has ended.
#[must_use]
pub fn tend(keys: &[KeyDates], max_age: Span, now: Wall) -> Tend {
    let Some(newest) = keys.iter().max_by_key(|key| key.signs_from) else {
        return Tend { make: Some(now), drop: Vec::new() };
    };
    let due = newest.signs_from.plus(max_age.minus(AHEAD));
    let make = (due <= now).then(|| now.plus(AHEAD));
    let drop = keys.iter().filter(|key| {
        let follower = keys.iter().filter(|other| other.signs_from > key.signs_from).map(|other| other.signs_from).min();
        // A second more: times of tokens are whole seconds.
        follower.is_some_and(|from| from.plus(LONGEST).plus(Span::from_secs(1)) <= now)
    });
    Tend { make, drop: drop.map(|key| key.kid.clone()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kid: &str, signs_from: i64) -> KeyDates {
        KeyDates { kid: kid.to_owned(), made_at: Wall(0), signs_from: Wall(signs_from) }
    }

    const HOUR: i64 = 3_600_000;
    const MONTH: Span = Span::from_days(30);

    #[test]
    fn the_newest_key_whose_time_has_come_signs() {
        let keys = [key("old", 0), key("now", 100), key("next", 200)];
        for (now, expected) in [(-5, "old"), (0, "old"), (99, "old"), (100, "now"), (199, "now"), (200, "next"), (10_000, "next")] {
            assert_eq!(signing(&keys, Wall(now)).unwrap().kid, expected, "{now}");
        }
        assert_eq!(signing(&[], Wall(0)), None);
    }

    #[test]
    fn a_key_is_made_an_hour_ahead_and_goes_a_day_after_the_next_has_begun() {
        let month = 30 * 24 * HOUR;
        assert_eq!(tend(&[], MONTH, Wall(7)), Tend { make: Some(Wall(7)), drop: vec![] });
        let one = [key("a", 0)];
        assert_eq!(tend(&one, MONTH, Wall(month - HOUR - 1)), Tend::default());
        assert_eq!(tend(&one, MONTH, Wall(month - HOUR)), Tend { make: Some(Wall(month)), drop: vec![] });
        let two = [key("a", 0), key("b", month)];
        assert_eq!(tend(&two, MONTH, Wall(month - HOUR)), Tend::default(), "made once");
        assert_eq!(tend(&two, MONTH, Wall(month + 24 * HOUR)), Tend::default(), "its last lease may still run");
        assert_eq!(tend(&two, MONTH, Wall(month + 24 * HOUR + 1000)), Tend { make: None, drop: vec!["a".to_owned()] });
    }

    #[test]
    fn no_key_that_signs_is_ever_dropped_and_every_token_outlives_no_key() {
        // A life of 200 days in steps of 20 minutes, with a day of silence in it.
        let (mut keys, mut given): (Vec<KeyDates>, Vec<(String, i64)>) = (Vec::new(), Vec::new());
        for step in (0..200 * 72).filter(|step| !(3000..3072).contains(step)) {
            let now = Wall(step * HOUR / 3);
            let todo = tend(&keys, MONTH, now);
            keys.retain(|key| !todo.drop.contains(&key.kid));
            if let Some(from) = todo.make {
                keys.push(KeyDates { kid: format!("k{step}"), made_at: now, signs_from: from });
            }
            let kid = signing(&keys, now).unwrap().kid.clone();
            given.retain(|(_, exp)| *exp > now.0);
            assert!(given.iter().all(|(kid, _)| keys.iter().any(|key| key.kid == *kid)), "a token without its key at {now}");
            given.push((kid, now.plus(LONGEST).0));
            assert!(keys.len() <= 3);
        }
    }
}
