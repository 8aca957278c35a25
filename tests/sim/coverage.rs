//! What really happened in the worlds, counted: a promise that was never put to the test is not kept.

use std::collections::BTreeMap;

/// By name; names begin with what the world did or what the watch did about it.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<String, u64>);

/// What a full run has to contain. The table is printed in this order.
pub const REQUIRED: &[&str] = &[
    "owner: disabled",
    "owner: deletion scheduled",
    "owner: destroyed, recoverable",
    "owner: permission withdrawn",
    "owner: wrap permission withdrawn",
    "owner: unwrap permission withdrawn",
    "owner: old version lost",
    "owner: network closed",
    "owner: restored",
    "owner: rotated",
    "owner: change that spreads slowly",
    "owner: flaps for long",
    "owner: many accounts denied at once",
    "provider aws: rounds",
    "provider gcp: rounds",
    "provider azure: rounds",
    "provider local: rounds",
    "provider: throttled",
    "provider: provider_fault",
    "provider: timeout",
    "provider: unreachable",
    "provider: calls never answered",
    "provider: slow calls",
    "provider: slower than the timeout",
    "ours: permission lost",
    "ours: credentials lost",
    "ours: control key broken",
    "clock: stepped forward",
    "clock: stepped back",
    "clock: suspended",
    "store: down",
    "store: full",
    "store: errors",
    "store: slow",
    "store: failed answer of a written commit",
    "store: locks spooled",
    "mail: receiver away",
    "gates: slow",
    "gates: changes that came out of order",
    "reload: key removed",
    "reload: key added",
    "reload: key added again",
    "reload: key under another id",
    "reload: workspaces bound anew",
    "reload: policy of a key changed",
    "reload: rules stricter",
    "reload: rules looser",
    "reload: control key taken away or given",
    "operator: locks",
    "operator: unlocks",
    "operator: unlock refused",
    "operator: override begins",
    "operator: override ends",
    "operator: key validated",
    "operator: version retired",
    "operator: hints",
    "brake: engaged",
    "brake: lock held",
    "brake: released to lock",
    "brake: held lock carried out",
    "brake: released to drop",
    "brake: released by its time",
    "lock: disabled",
    "lock: pending_deletion",
    "lock: destroyed",
    "lock: access_denied",
    "lock: network_blocked",
    "lock: stale",
    "lock: version_lost",
    "lock: manual",
    "lock: orphaned",
    "lock: of a flapping key",
    "lock: read only",
    "lock: shown before it is stored",
    "shadow: would have locked",
    "unlock: by proof",
    "unlock: waits for approval",
    "unlock: approved",
    "window: recoverable until",
    "window: beyond recovery",
    "crash: before the spool",
    "crash: before the commit",
    "crash: with a commit under way",
    "crash: before probes",
    "crash: before notices",
    "crash: after a turn",
    "crash: commit in flight was written",
    "restart: with locks",
    "restart: with suspects",
    "restart: with spooled locks",
    "told: key.suspect",
    "told: key.revoked",
    "told: key.recovering",
    "told: key.active",
    "told: key.rotated",
    "told: key.version_lost",
    "told: key.stale",
    "told: key.unproven",
    "told: key.retired",
    "told: key.deletion_scheduled",
    "told: workspace.locked",
    "told: workspace.read_only",
    "told: workspace.opened",
    "told: workspace.would_lock",
    "told: brake.engaged",
    "told: brake.released",
    "told: provider.credentials",
    "told: provider.unreachable",
    "told: provider.witness_broken",
    "told: receiver.failing",
    "told: probe.missed_window",
    "told: clock.stepped",
    "told: override.started",
    "told: override.ended",
    "told: config.reloaded",
];

impl Coverage {
    pub fn saw(&mut self, what: &str) {
        match self.0.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(what.to_owned(), 1)),
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            *self.0.entry(name.clone()).or_default() += count;
        }
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        REQUIRED.iter().copied().filter(|name| !self.0.contains_key(*name)).collect()
    }

    pub fn print(&self) {
        println!("\nwhat really happened");
        for name in REQUIRED {
            println!("{name:<46}{:>12}", self.0.get(*name).copied().unwrap_or(0));
        }
        for (name, count) in self.0.iter().filter(|(name, _)| !REQUIRED.contains(&name.as_str())) {
            println!("{name:<46}{count:>12}");
        }
    }
}
