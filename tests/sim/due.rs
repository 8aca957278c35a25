//! What has to have come by a time: a provable and lasting revocation is a lock, an operator's lock is
//! shown, and what is well for long is open.

use cmek_watchdog::policy::{Unlock, lock_bound};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, By, Cause, FailureKind, StateWord};

use super::check::policy_of;
use super::cloud::Status;
use super::plan::PlannedKey;
use super::world::{Item, World};

/// A provable and lasting revocation is a lock by now.
pub fn lock_due(world: &mut World, id: &str, since: u64, change: u64) {
    if world.check.changes.get(id) != Some(&change) {
        return;
    }
    let Some(key) = world.plan.keys.iter().find(|k| k.id == id).cloned() else { return };
    let policy = policy_of(world, &key);
    let truth = world.cloud.key(&key.provider, &key.reference).truth.clone();
    let kind = match truth.status {
        _ if truth.network_closed => FailureKind::NetworkBlocked,
        Status::Disabled => FailureKind::Disabled,
        Status::Pending => FailureKind::PendingDeletion,
        Status::Destroyed => FailureKind::Destroyed,
        Status::Enabled => FailureKind::AccessDenied,
    };
    let Some(mut bound) = lock_bound(&policy, kind) else { return };
    let unstated = matches!(kind, FailureKind::AccessDenied | FailureKind::NetworkBlocked);
    if truth.describe_denied && !unstated {
        let look = policy.suspect_interval.plus(policy.call_timeout).times(u64::from(policy.stated_alone.looks));
        bound = policy.probe_interval.times(2).plus(policy.stated_alone.over).plus(look).plus(Span::from_secs(2));
    }
    let quiet_since = since.max(world.check.disturbed_all).max(world.check.disturbed.get(&key.provider).copied().unwrap_or(0));
    let crashes: u64 = world.check.crashes.iter().filter(|(at, more)| at + more >= quiet_since).map(|(_, more)| more).sum();
    let due = quiet_since + bound.0 + crashes + 500;
    let side = *world.cloud.side(&key.provider);
    let troubled = side.troubled() || world.watch.is_none();
    let braked = world.providers.get(key.provider.as_str()).is_some_and(|p| p.brake_engaged);
    let control = world.plan.control_of(&key.provider);
    let unwitnessed = kind == FailureKind::AccessDenied && world.cloud.key(&key.provider, control).truth.status != Status::Enabled;
    let no_witness = kind == FailureKind::AccessDenied && !world.plan.providers.iter().any(|p| p.id == key.provider && p.control);
    if no_witness {
        return;
    }
    if due > world.mono || troubled || (braked && unstated) || unwitnessed {
        let wait = if due > world.mono { due - world.mono } else { bound.0 };
        return world.after(wait, Item::LockDue { key: id.to_owned(), since, change });
    }
    let Some(view) = world.keys.get(id).cloned() else { return };
    let last_good = world.check.seen.get(&key.reference).and_then(|all| all.iter().rev().find(|s| s.good)).map_or(0, |s| s.at);
    let dropped = unstated && world.check.dropped.get(&key.provider).is_some_and(|at| *at >= last_good);
    if matches!(view.state, StateWord::Unproven | StateWord::Retired) || dropped {
        return;
    }
    if !policy.enforce {
        if world.store.down {
            return world.after(bound.0, Item::LockDue { key: id.to_owned(), since, change });
        }
        if !matches!(view.state, StateWord::Revoked) {
            missed(world, &key, "its shadow state");
        }
        return;
    }
    for ws in &key.workspaces {
        let locked = world
            .workspaces
            .get(ws.as_str())
            .is_some_and(|v| v.locks.iter().any(|l| l.key.as_ref().is_some_and(|k| k.as_str() == id) && l.access == Access::Locked));
        if !locked {
            missed(world, &key, ws);
        }
    }
}

fn missed(world: &mut World, key: &PlannedKey, what: &str) {
    let state = world.keys.get(key.id.as_str()).map(|k| (k.state, k.held_by));
    world.check.tally.missed_locks += 1;
    world.check.wrong(format!("missed lock: {} is revoked and {what} does not show it (key {state:?})", key.id));
}

/// The gate shows an operator's lock within the patience, whatever the disk does.
pub fn shown_due(world: &mut World, run: u64, workspace: &str) {
    if run != world.run {
        return;
    }
    // A machine that slept in between gets its time anew.
    if world.mono < world.check.resumed + 350 {
        let item = Item::ShownDue { run, workspace: workspace.to_owned() };
        world.after(350, item);
        return;
    }
    let shown = world.workspaces.get(workspace).is_some_and(|v| v.access == Access::Locked);
    let asked = world.check.unlock_asked.get(workspace).is_some_and(|at| *at + 1_000 >= world.mono);
    if !shown && !asked {
        world.check.tally.late_gates += 1;
        world.check.wrong(format!("{workspace} was locked by an operator and is not shown so in time"));
    }
}

/// At the end everything has been well for long: what proof can open is open.
pub fn settled(world: &mut World) {
    let keys = world.plan.keys.clone();
    for key in keys {
        let policy = policy_of(world, &key);
        let stuck: Vec<String> = world
            .workspaces
            .values()
            .flat_map(|v| v.locks.iter().map(move |l| (v, l)))
            .filter(|(_, l)| l.by == By::Automatic && l.cause != Cause::Orphaned && l.release.is_none())
            .filter(|(_, l)| l.key.as_ref().is_some_and(|k| k.as_str() == key.id))
            .map(|(v, l)| format!("{} ({})", v.workspace, l.cause))
            .collect();
        let state = world.keys.get(key.id.as_str()).map(|k| (k.state, k.held_by));
        if !stuck.is_empty() {
            world.check.tally.stuck += 1;
            world.check.wrong(format!("{} is well for long and still locks {stuck:?} (key {state:?})", key.id));
        }
        let well = matches!(state, Some((StateWord::Active | StateWord::Retired, _)) | None);
        let approval = policy.unlock == Unlock::Manual && matches!(state, Some((StateWord::Recovering, _)));
        if !well && !approval && stuck.is_empty() {
            world.check.wrong(format!("{} is well for long and its state is {state:?}", key.id));
        }
    }
    let mut letters = std::mem::take(&mut world.check.letters);
    letters.settled(&world.disk, &mut world.check);
    world.drain_heard();
    super::gates::settled(world);
}
