//! outside
//! The families that are read from the snapshot: keys, workspaces, providers, receivers, daemon.
//! Above `per_key_limit` only keys that are not active and workspaces that are not open have series
//! of their own, and never more than the limit; the sums by state are always there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::text::{Family, Kind, Text};
use crate::config::Config;
use crate::policy::Policy;
use crate::published::Snapshot;
use crate::snapshot::{KeyView, WorkspaceView};
use crate::time::{Now, Span, Wall};
use crate::words::{Access, HeldBy, StateWord};

/// Writes all families of the snapshot.
pub fn write(text: &mut Text, snapshot: &Snapshot, config: &Config, now: Now) {
    let limit = usize::try_from(config.per_key_limit).unwrap_or(usize::MAX);
    let keys = shown(snapshot.keys.values(), snapshot.keys.len(), limit, |k| k.state != StateWord::Active);
    let workspaces = shown(snapshot.workspaces.values(), snapshot.workspaces.len(), limit, |w| w.access != Access::Open);
    per_key(text, &keys);
    key_dates(text, &keys);
    per_workspace(text, &workspaces);
    sums(text, snapshot, config);
    let omitted = |all: usize, shown: usize| u64::try_from(all.saturating_sub(shown)).unwrap_or(u64::MAX);
    text.family("cmek_keys_without_series", Kind::Gauge, "Keys that have no series of their own for the limit.")
        .count(&[], omitted(snapshot.keys.len(), keys.len()));
    text.family("cmek_workspaces_without_series", Kind::Gauge, "Workspaces that have no series of their own for the limit.")
        .count(&[], omitted(snapshot.workspaces.len(), workspaces.len()));
    providers(text, snapshot);
    receivers(text, snapshot, now);
    daemon(text, snapshot, now);
    policies(text, config);
}

/// The values that get series of their own.
fn shown<'a, T: 'a>(all: impl Iterator<Item = &'a Arc<T>>, total: usize, limit: usize, troubled: impl Fn(&T) -> bool) -> Vec<&'a T> {
    all.map(Arc::as_ref).filter(|v| total <= limit || troubled(v)).take(limit).collect()
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a date fit")]
fn seconds(at: Wall) -> f64 {
    at.0 as f64 / 1000.0
}

fn per_key(text: &mut Text, keys: &[&KeyView]) {
    let mut family = text.family("cmek_key_state", Kind::Gauge, "State of a key: 1 for the present state, 0 for the others.");
    for key in keys {
        for state in StateWord::ALL {
            family.count(&[("key", key.id.as_str()), ("state", state.as_str())], u64::from(key.state == *state));
        }
    }
    let mut family = text.family("cmek_key_info", Kind::Gauge, "What a key is; always 1.");
    for key in keys {
        let kind = key.provider_kind.as_str();
        family.count(&[("key", key.id.as_str()), ("provider", key.provider.as_str()), ("kind", kind), ("policy", &key.policy)], 1);
    }
    let mut family = text.family("cmek_key_versions", Kind::Gauge, "Versions of a key that are not retired, by whether they unwrap.");
    for key in keys {
        for (usable, word) in [(Some(true), "true"), (Some(false), "false"), (None, "unknown")] {
            let count = key.versions.iter().filter(|v| !v.retired && v.usable == usable).count();
            family.count(&[("key", key.id.as_str()), ("usable", word)], u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
    let mut family = text.family("cmek_key_rotations_total", Kind::Counter, "Rotations of a key seen since it is registered.");
    for key in keys {
        family.count(&[("key", key.id.as_str())], key.rotations);
    }
}

fn key_dates(text: &mut Text, keys: &[&KeyView]) {
    type Fact = fn(&KeyView) -> Option<Wall>;
    let dates: [(&'static str, &'static str, Fact); 4] = [
        ("cmek_key_last_probe_timestamp_seconds", "Start of the last round of a key.", |k| k.last_probe.as_ref().map(|p| p.at)),
        ("cmek_key_last_conclusive_timestamp_seconds", "Last round of a key that told good from refused.", |k| k.last_conclusive_at),
        ("cmek_key_deletion_timestamp_seconds", "When the provider will delete a key, where it says so.", |k| k.facts.deletion_at),
        ("cmek_key_expiry_timestamp_seconds", "When a key expires, where the provider says so.", |k| k.facts.expires_at),
    ];
    for (name, help, fact) in dates {
        let mut family = text.family(name, Kind::Gauge, help);
        for key in keys {
            if let Some(at) = fact(key) {
                family.sample(&[("key", key.id.as_str())], seconds(at));
            }
        }
    }
}

fn per_workspace(text: &mut Text, workspaces: &[&WorkspaceView]) {
    let help = "Access level of a workspace: 1 for the present one, 0 for the others.";
    let mut family = text.family("cmek_workspace_access", Kind::Gauge, help);
    for workspace in workspaces {
        for access in Access::ALL {
            let labels = [("workspace", workspace.workspace.as_str()), ("access", access.as_str())];
            family.count(&labels, u64::from(workspace.access == *access));
        }
    }
}

fn sums(text: &mut Text, snapshot: &Snapshot, config: &Config) {
    let mut by_state: BTreeMap<(&str, StateWord), u64> = BTreeMap::new();
    let mut held: BTreeMap<(&str, HeldBy), u64> = BTreeMap::new();
    for provider in config.providers.keys().map(crate::key::ProviderId::as_str).chain(snapshot.providers.keys().map(|p| p.as_str())) {
        by_state.extend(StateWord::ALL.iter().map(|state| ((provider, *state), 0)));
        held.extend(HeldBy::ALL.iter().map(|by| ((provider, *by), 0)));
    }
    let mut scheduled = 0u64;
    for key in snapshot.keys.values() {
        add(by_state.entry((key.provider.as_str(), key.state)).or_default());
        if let Some(by) = key.held_by {
            add(held.entry((key.provider.as_str(), by)).or_default());
        }
        scheduled = scheduled.saturating_add(u64::from(key.next_probe_at.is_some()));
    }
    let mut family = text.family("cmek_keys", Kind::Gauge, "Keys by provider and state.");
    for ((provider, state), count) in by_state {
        family.count(&[("provider", provider), ("state", state.as_str())], count);
    }
    let mut family = text.family("cmek_held_locks", Kind::Gauge, "Keys whose confirmed finding is not acted on, by what holds it.");
    for ((provider, by), count) in held {
        family.count(&[("provider", provider), ("by", by.as_str())], count);
    }
    let mut by_access: BTreeMap<Access, u64> = Access::ALL.iter().map(|a| (*a, 0)).collect();
    let (mut overrides, mut not_durable) = (0u64, 0u64);
    for workspace in snapshot.workspaces.values() {
        add(by_access.entry(workspace.access).or_default());
        overrides = overrides.saturating_add(u64::try_from(workspace.overrides.len()).unwrap_or(u64::MAX));
        not_durable = not_durable.saturating_add(u64::from(!workspace.durable));
    }
    let mut family = text.family("cmek_workspaces", Kind::Gauge, "Workspaces by access level.");
    for (access, count) in by_access {
        family.count(&[("access", access.as_str())], count);
    }
    let configured = u64::try_from(config.keys.len()).unwrap_or(u64::MAX);
    text.family("cmek_keys_configured", Kind::Gauge, "Keys in the configuration.").count(&[], configured);
    text.family("cmek_keys_scheduled", Kind::Gauge, "Keys that have a next probe.").count(&[], scheduled);
    text.family("cmek_override_active", Kind::Gauge, "Overrides that hold an automatic lock off now.").count(&[], overrides);
    text.family("cmek_workspaces_not_durable", Kind::Gauge, "Workspaces shown as lowered before the store has it.").count(&[], not_durable);
}

fn add(count: &mut u64) {
    *count = count.saturating_add(1);
}

fn providers(text: &mut Text, snapshot: &Snapshot) {
    let each = |family: &mut Family<'_>, value: fn(&crate::snapshot::ProviderView) -> Option<f64>| {
        for provider in snapshot.providers.values() {
            if let Some(value) = value(provider) {
                family.sample(&[("provider", provider.provider.as_str())], value);
            }
        }
    };
    each(&mut text.family("cmek_brake_engaged", Kind::Gauge, "Whether automatic locks of a provider are held."), |p| {
        Some(f64::from(u8::from(p.brake_engaged)))
    });
    each(&mut text.family("cmek_control_key_healthy", Kind::Gauge, "Whether our own control key answers well."), |p| {
        p.control_key_healthy.map(|healthy| f64::from(u8::from(healthy)))
    });
    each(&mut text.family("cmek_credentials_failing", Kind::Gauge, "Whether our own identity is refused."), |p| {
        Some(f64::from(u8::from(p.credentials_failing)))
    });
    let help = "When our own secret at a provider ends, where it was written down.";
    each(&mut text.family("cmek_own_credential_expiry_timestamp_seconds", Kind::Gauge, help), |p| p.credentials_expire_at.map(seconds));
    #[expect(clippy::cast_precision_loss, reason = "a difference of clocks in milliseconds fits")]
    let skew: fn(&crate::snapshot::ProviderView) -> Option<f64> = |p| p.clock_skew_ms.map(|ms| ms as f64 / 1000.0);
    each(&mut text.family("cmek_clock_skew_seconds", Kind::Gauge, "The provider's clock less ours."), skew);
}

fn receivers(text: &mut Text, snapshot: &Snapshot, now: Now) {
    let outbox = &snapshot.daemon.outbox;
    let mut family = text.family("cmek_outbox_depth", Kind::Gauge, "Notices that wait for a receiver.");
    for queue in outbox {
        family.count(&[("receiver", &queue.receiver)], queue.depth);
    }
    let mut family = text.family("cmek_outbox_oldest_seconds", Kind::Gauge, "Age of the oldest notice that waits; 0 if none does.");
    for queue in outbox {
        family.sample(&[("receiver", &queue.receiver)], queue.oldest_at.map_or(0.0, |at| now.wall.since(at).as_secs_f64()));
    }
    let mut family = text.family("cmek_outbox_dead", Kind::Gauge, "Notices that a receiver refused for good.");
    for queue in outbox {
        family.count(&[("receiver", &queue.receiver)], queue.dead);
    }
    let mut family = text.family("cmek_receiver_failing", Kind::Gauge, "Whether a receiver fails at present.");
    for queue in outbox {
        family.count(&[("receiver", &queue.receiver)], u64::from(queue.failing));
    }
    let mut family = text.family("cmek_receiver_last_success_timestamp_seconds", Kind::Gauge, "Last notice that a receiver took.");
    for queue in outbox {
        if let Some(at) = queue.last_success_at {
            family.sample(&[("receiver", &queue.receiver)], seconds(at));
        }
    }
}

fn daemon(text: &mut Text, snapshot: &Snapshot, now: Now) {
    let daemon = &snapshot.daemon;
    text.family("cmek_ready", Kind::Gauge, "Whether stored locks are published.").count(&[], u64::from(daemon.ready));
    let flagged = u64::from(daemon.config_flagged.is_some());
    text.family("cmek_config_flagged", Kind::Gauge, "Whether another configuration than the file's present one is in force.")
        .count(&[], flagged);
    text.family("cmek_would_lock_total", Kind::Counter, "Locks that shadow mode kept from being carried out.")
        .count(&[], daemon.would_lock_total);
    text.family("cmek_bugs_total", Kind::Counter, "Branches taken that should be impossible.").count(&[], daemon.bugs);
    if let Some(fresh_at) = snapshot.fresh_at {
        let age = now.mono.since(fresh_at).as_secs_f64();
        text.family("cmek_snapshot_age_seconds", Kind::Gauge, "Age of the state that the gate answers from.").sample(&[], age);
    }
}

fn policies(text: &mut Text, config: &Config) {
    let help = "Promised time from the first refused answer to the lock, for the slowest kind that locks.";
    let mut family = text.family("cmek_lock_bound_seconds", Kind::Gauge, help);
    for (name, policy) in &config.policies {
        if let Some(bound) = lock_bound(policy) {
            family.sample(&[("policy", name.as_str())], bound.as_secs_f64());
        }
    }
}

/// `2 x probe_interval + over + looks x (suspect_interval + call_timeout) + 2 s` of the slowest kind
/// that lowers access; `None` if the policy holds everything.
#[must_use]
pub fn lock_bound(policy: &Policy) -> Option<Span> {
    let per_look = policy.suspect_interval.plus(policy.call_timeout);
    let bound =
        |looks: u8, over: Span| policy.probe_interval.times(2).plus(over).plus(per_look.times(u64::from(looks))).plus(Span::from_secs(2));
    let kinds = policy.on.values().filter(|c| c.access.is_some()).map(|c| bound(c.looks, c.over)).max()?;
    Some(kinds.max(bound(policy.stated_alone.looks, policy.stated_alone.over)))
}
