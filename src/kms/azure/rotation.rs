//! outside
//! The rotation policy of a key in Key Vault: when the vault will make the next version by itself.
//! It must never become a finding about the key: a refusal leaves the schedule `not_observable`.

use azure_security_keyvault_keys::models::{
    KeyAttributes, KeyClientGetKeyOptions, KeyClientGetKeyRotationPolicyOptions, KeyRotationPolicy, KeyRotationPolicyAction,
};
use chrono::{DateTime, Days, Months, TimeDelta, Utc};

use super::errors::Asked;
use super::vaults::{AtVault, Place};
use super::{AzureKms, Seen, method_options};
use crate::key::KeyTarget;
use crate::kms::{Answer, Rotation};
use crate::time::Wall;

impl AzureKms {
    /// Two calls: the policy speaks of the birth and the end of the current version.
    pub(super) async fn read_rotation(&self, key: &KeyTarget) -> Answer<Rotation> {
        let at_vault = AtVault::default();
        let run = async {
            let place = Place::of(key)?;
            let client = self.client(&place)?;
            let options = KeyClientGetKeyRotationPolicyOptions { method_options: method_options(&at_vault) };
            let found = client.get_key_rotation_policy(place.name, Some(options)).await?;
            let seen = Seen::of(found.headers());
            let policy = found.into_model()?;
            let options = KeyClientGetKeyOptions { key_version: None, method_options: method_options(&at_vault) };
            let current = client.get_key(place.name, Some(options)).await?.into_model()?.attributes.unwrap_or_default();
            Ok((Rotation { rotated_at: None, next_rotation_at: next(&policy, &current) }, seen))
        };
        self.timed(Asked::Metadata, key, at_vault.clone(), run).await
    }
}

/// The earliest moment at which the policy makes a new version; `None` if it never does.
fn next(policy: &KeyRotationPolicy, current: &KeyAttributes) -> Option<Wall> {
    let at = |time: Option<azure_core::time::OffsetDateTime>| time.and_then(|time| DateTime::from_timestamp(time.unix_timestamp(), 0));
    let (created, expires) = (at(current.created), at(current.expires));
    let rotates = |action: &KeyRotationPolicyAction| *action == KeyRotationPolicyAction::Rotate;
    let actions = policy.lifetime_actions.iter().flatten();
    let triggers = actions.filter(|a| a.action.as_ref().and_then(|a| a.type_prop.as_ref()).is_some_and(rotates));
    let moments = triggers.filter_map(|a| a.trigger.as_ref()).filter_map(|trigger| {
        let after = trigger.time_after_create.as_deref().and_then(|text| moved(created?, text, true));
        after.or_else(|| trigger.time_before_expiry.as_deref().and_then(|text| moved(expires?, text, false)))
    });
    moments.min().map(|moment| Wall(moment.timestamp_millis()))
}

/// A moment moved by an ISO 8601 duration (`P90D`, `P1Y10D`, `PT48H`), in calendar months and years.
fn moved(from: DateTime<Utc>, duration: &str, forward: bool) -> Option<DateTime<Utc>> {
    let (date, time) = match duration.strip_prefix('P')?.split_once('T') {
        Some((date, time)) => (date, time),
        None => (duration.strip_prefix('P')?, ""),
    };
    let mut at = from;
    for (amount, unit) in parts(date)? {
        let months = |n: u32| if forward { at.checked_add_months(Months::new(n)) } else { at.checked_sub_months(Months::new(n)) };
        let days = |n: u32| if forward { at.checked_add_days(Days::new(n.into())) } else { at.checked_sub_days(Days::new(n.into())) };
        at = match unit {
            'Y' => months(amount.checked_mul(12)?)?,
            'M' => months(amount)?,
            'W' => days(amount.checked_mul(7)?)?,
            'D' => days(amount)?,
            _ => return None,
        };
    }
    for (amount, unit) in parts(time)? {
        let seconds = i64::from(amount).checked_mul(match unit {
            'H' => 3600,
            'M' => 60,
            'S' => 1,
            _ => return None,
        })?;
        let delta = TimeDelta::try_seconds(seconds)?;
        at = if forward { at.checked_add_signed(delta)? } else { at.checked_sub_signed(delta)? };
    }
    (!date.is_empty() || !time.is_empty()).then_some(at)
}

fn parts(text: &str) -> Option<Vec<(u32, char)>> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(end);
        found.push((number.parse().ok()?, after.chars().next()?));
        rest = after.get(1..)?;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_moved_by_calendar_durations_and_by_nothing_else() {
        let from: DateTime<Utc> = "2026-01-31T12:00:00Z".parse().unwrap();
        for (duration, forward, expected) in [
            ("P90D", true, Some("2026-05-01T12:00:00Z")),
            ("P1M", true, Some("2026-02-28T12:00:00Z")),
            ("P1Y10D", true, Some("2027-02-10T12:00:00Z")),
            ("P2W", false, Some("2026-01-17T12:00:00Z")),
            ("PT48H", false, Some("2026-01-29T12:00:00Z")),
            ("P1DT1M", true, Some("2026-02-01T12:01:00Z")),
            ("P", true, None),
            ("90D", true, None),
            ("P1X", true, None),
            ("P1", true, None),
            ("P\u{e9}D", true, None),
            ("P99999999999D", true, None),
            ("P4000000000Y", true, None),
        ] {
            let expected = expected.map(|text| text.parse::<DateTime<Utc>>().unwrap());
            assert_eq!(moved(from, duration, forward), expected, "{duration}");
        }
    }
}
