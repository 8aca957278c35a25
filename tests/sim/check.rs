//! What must be true of the whole history of a seed, one function each. The judge knows the keys as
//! they truly were when they were asked, and the disk; of the watch it knows only what it shows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cmek_watchdog::journal::{Commit, OrderWrite};
use cmek_watchdog::key::{KeyId, WorkspaceId};
use cmek_watchdog::policy::{Policy, Unlock, lock_bound};
use cmek_watchdog::probe::Evidence;
use cmek_watchdog::snapshot::{DaemonView, KeyView, LockView, WorkspaceView};
use cmek_watchdog::time::{Now, Span};
use cmek_watchdog::watch::{Effects, Watch};
use cmek_watchdog::words::{Access, By, Cause, FailureKind, Leg, LegOutcome, Sequence, StateWord};

use super::cloud::{Refusals, Status};
use super::letters::Letters;
use super::plan::{Plan, PlannedKey};
use super::table::Tally;
use super::world::{Item, World};

/// One round as the judge saw it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at: u64,
    turn: u64,
    refused: Refusals,
    /// A failed leg of a kind that is only doubt, or no answer.
    conclusive: bool,
    complete: bool,
    good: bool,
}

#[derive(Default)]
pub struct Checker {
    pub tally: Tally,
    pub violations: Vec<String>,
    pub stored_upto: u64,
    pub restarting: bool,
    pub letters: Letters,
    seen: BTreeMap<String, VecDeque<Seen>>,
    disturbed: BTreeMap<String, u64>,
    disturbed_all: u64,
    /// Crashes with the store well: when, and how much later a lock may come for each.
    crashes: Vec<(u64, u64)>,
    unlock_asked: BTreeMap<String, u64>,
    pub dropped: BTreeMap<String, u64>,
    /// How often what a key truly is has changed.
    pub changes: BTreeMap<String, u64>,
    /// Keys that refuse and did not lock yet, since when.
    pub refusing: BTreeMap<String, u64>,
    sequences: BTreeMap<WorkspaceId, (Sequence, Access)>,
    lifted_in_crash: BTreeSet<WorkspaceId>,
    last_lifts: BTreeSet<WorkspaceId>,
}

impl Checker {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn wrong(&mut self, what: String) {
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    pub fn disturbed(&mut self, provider: &str, at: u64) {
        self.disturbed.insert(provider.to_owned(), at);
    }

    pub fn disturbed_all(&mut self, at: u64) {
        self.disturbed_all = self.disturbed_all.max(at);
    }

    pub fn asked_unlock(&mut self, workspace: &str, at: u64) {
        self.unlock_asked.insert(workspace.to_owned(), at);
    }

    pub fn changed(&mut self, key: &str) -> u64 {
        let change = self.changes.entry(key.to_owned()).or_default();
        *change += 1;
        *change
    }

    /// No branch that cannot be, nothing overdue, everything bounded.
    pub fn turn(&mut self, now: Now, watch: &Watch, out: &Effects) {
        for bug in &out.bugs {
            self.wrong(format!("bug: {}", bug.0));
        }
        let overdue = watch.overdue(now);
        if overdue > 0 {
            self.tally.overdue += 1;
            self.wrong(format!("{overdue} keys have neither evidence nor a recorded miss"));
        }
    }

    pub fn daemon(&mut self, view: &DaemonView) {
        for outbox in &view.outbox {
            if outbox.depth > 20_000 {
                self.wrong(format!("outbox of {} holds {}", outbox.receiver, outbox.depth));
            }
        }
    }

    pub fn saw(&mut self, reference: &str, turn: u64, evidence: &Evidence, refused: Refusals, view: Option<&KeyView>) {
        let ok = |leg: Leg| evidence.leg(leg).is_some_and(|l| l.outcome == LegOutcome::Ok);
        let ungranted = |l: &cmek_watchdog::probe::LegResult| l.failure_kind == Some(FailureKind::AccessDenied);
        let described = ok(Leg::Describe) || evidence.leg(Leg::Describe).is_some_and(ungranted);
        let stated = evidence.leg(Leg::Describe).is_some_and(|l| l.stated);
        let opened = |version: &cmek_watchdog::key::KeyVersion| {
            evidence.legs.iter().any(|l| l.leg == Leg::UnwrapVersion && l.version.as_ref() == Some(version) && l.outcome == LegOutcome::Ok)
        };
        let needed =
            view.is_none_or(|v| v.versions.iter().filter(|v| v.protects_data && !v.retired && !v.current).all(|v| opened(&v.version)));
        let good = ok(Leg::Wrap) && ok(Leg::Unwrap);
        let any_refused = refused.wrap || refused.unwrap || refused.version;
        let seen = Seen {
            at: evidence.started.mono.0,
            turn,
            refused,
            conclusive: any_refused || good,
            complete: good && needed && described && !stated && !any_refused,
            good,
        };
        let all = self.seen.entry(reference.to_owned()).or_default();
        // Hours of doubt are one entry, or they would push out what was seen before.
        if !seen.conclusive && all.back().is_some_and(|last| !last.conclusive) {
            all.pop_back();
        }
        all.push_back(seen);
        if all.len() > 400 {
            all.pop_front();
        }
    }

    pub fn applied(&mut self, commit: &Commit, plan: &Plan, _at: u64) {
        self.last_lifts = lifts(commit);
        self.letters.stored(commit, plan);
    }

    pub fn sending(
        &mut self,
        disk: &super::disk::Disk,
        receiver: &cmek_watchdog::key::ReceiverId,
        notice: &Arc<cmek_watchdog::notify::Notice>,
    ) {
        let members = notice.storm.as_ref().map(|storm| storm.members.as_slice()).unwrap_or_default();
        let all = if members.is_empty() { std::slice::from_ref(notice) } else { members };
        for one in all {
            if !disk.knows(receiver, &one.id) {
                self.wrong(format!("notice {} goes to {receiver} before it is stored", one.id.0));
            }
        }
    }

    pub fn delivered(&mut self, receiver: &cmek_watchdog::key::ReceiverId, notice: &Arc<cmek_watchdog::notify::Notice>) {
        self.letters.delivered(receiver, notice);
    }

    pub fn crashed(&mut self, at: u64, down: u64, store_unwell: bool, in_flight: Option<&Commit>) {
        if store_unwell {
            self.disturbed_all(at + down);
        } else {
            self.crashes.push((at, down + 20_000));
        }
        let stored = self.stored_upto;
        for all in self.seen.values_mut() {
            all.retain(|seen| seen.turn <= stored);
        }
        self.stored_upto = 0;
        for all in self.seen.values_mut() {
            for seen in all.iter_mut() {
                seen.turn = 0;
            }
        }
        // What the disk took last may not have been shown any more.
        self.lifted_in_crash = std::mem::take(&mut self.last_lifts);
        self.lifted_in_crash.extend(in_flight.map(lifts).unwrap_or_default());
        self.letters.crashed();
    }
}

/// Workspaces that a commit opens, or may.
fn lifts(commit: &Commit) -> BTreeSet<WorkspaceId> {
    let lifted = commit.orders.iter().filter_map(|write| match write {
        OrderWrite::Lift { slot, .. } => Some(slot.workspace.clone()),
        OrderWrite::Lower(_) => None,
    });
    let overridden = commit.meta.keys().filter_map(|name| WorkspaceId::new(name.strip_prefix("override:")?).ok());
    lifted.chain(overridden).collect()
}

fn planned<'a>(plan: &'a Plan, id: &KeyId) -> Option<&'a PlannedKey> {
    plan.keys.iter().find(|key| key.id == id.as_str())
}

fn policy_of(world: &World, key: &PlannedKey) -> Arc<Policy> {
    world.config.policies.iter().find(|(id, _)| id.as_str() == key.policy).map(|(_, policy)| Arc::clone(policy)).unwrap_or_default()
}

/// Everything that is asked of one view of a workspace as it appears.
pub fn shown(world: &mut World, before: Option<&WorkspaceView>, view: &WorkspaceView) {
    sequence_rises(world, view);
    views_tell_the_orders(world, view);
    let had = |locks: &[LockView], lock: &LockView| locks.iter().any(|l| l.by == lock.by && l.key == lock.key);
    let locks_before = before.map(|b| b.locks.clone()).unwrap_or_default();
    for lock in view.locks.iter().filter(|lock| !had(&locks_before, lock)) {
        no_false_lock(world, view, lock);
    }
    if world.check.restarting {
        return;
    }
    for lock in locks_before.iter().filter(|lock| !had(&view.locks, lock)) {
        world.check.tally.unlocks += 1;
        no_unlock_without_proof(world, view, lock);
    }
    if let Some(before) = before
        && view.access < before.access
    {
        raised_only_when_stored(world, before, view);
    }
}

fn sequence_rises(world: &mut World, view: &WorkspaceView) {
    let last = world.check.sequences.insert(view.workspace.clone(), (view.sequence, view.access));
    let Some((sequence, access)) = last else { return };
    if view.sequence < sequence || (view.sequence == sequence && view.access != access) {
        world.check.tally.sequences += 1;
        world
            .check
            .wrong(format!("{}: sequence {} ({access}) is followed by {} ({})", view.workspace, sequence.0, view.sequence.0, view.access));
    }
}

fn views_tell_the_orders(world: &mut World, view: &WorkspaceView) {
    let off = |lock: &LockView| view.overrides.iter().any(|o| Some(&o.key) == lock.key.as_ref());
    let strictest = view.locks.iter().map(|l| l.access).max().unwrap_or(Access::Open);
    let acting = view.locks.iter().filter(|l| !off(l)).map(|l| l.access).max().unwrap_or(Access::Open);
    let any = world.plan.any.iter().any(|ws| ws == view.workspace.as_str());
    let least = if any { Access::Open } else { acting };
    if view.access > strictest || view.access < least {
        world.check.wrong(format!("{} is shown {} with locks {:?}", view.workspace, view.access, view.locks));
    }
}

/// An automatic lock needs a key that was really refusing through the looks that confirmed it.
fn no_false_lock(world: &mut World, view: &WorkspaceView, lock: &LockView) {
    world.check.tally.locks += 1;
    time_to_lock(world, lock);
    if lock.by == By::Manual {
        return;
    }
    let Some(key) = lock.key.as_ref().and_then(|id| planned(&world.plan, id)).cloned() else { return };
    // A workspace bound to a key that locks others already is lowered by the same finding.
    let same = |l: &LockView| l.key == lock.key && l.cause != Cause::Orphaned && l.access >= lock.access;
    if world.workspaces.values().any(|v| v.workspace != view.workspace && v.locks.iter().any(same)) {
        return;
    }
    let policy = policy_of(world, &key);
    let (looks, over) = match lock.cause {
        Cause::Orphaned | Cause::Drill | Cause::Manual => return,
        Cause::Stale => return no_early_stale_lock(world, view, &key, &policy),
        Cause::VersionLost => (2, Span::from_secs(5)),
        Cause::Kind(kind) => match (kind, policy.on.get(&kind)) {
            (FailureKind::AccessDenied, Some(rule)) if lock.access == Access::Locked => (usize::from(rule.looks), rule.over),
            (FailureKind::Disabled | FailureKind::PendingDeletion | FailureKind::Destroyed | FailureKind::AccessDenied, Some(_)) => {
                (2, Span::from_secs(5))
            }
            _ => return false_lock(world, view, &key, &format!("{kind} locks")),
        },
    };
    let all = world.check.seen.get(&key.reference).cloned().unwrap_or_default();
    // Without a witness our own lost permission counts too (A8), until the key itself refuses.
    let ours = all.iter().rev().take(60).any(|s| s.refused.ours);
    let (looks, over) = if ours { (1, Span::ZERO) } else { (looks, over) };
    let recent: Vec<&Seen> = all.iter().rev().filter(|s| s.conclusive).take(60).collect();
    let truly = |s: &&&Seen| match (lock.cause, lock.access) {
        (Cause::VersionLost, _) => s.refused.version,
        (_, Access::Locked) => s.refused.unwrap,
        (_, Access::ReadOnly | Access::Open) => s.refused.wrap || s.refused.unwrap,
    };
    let refused: Vec<&&Seen> = recent.iter().filter(truly).collect();
    let spread = match (refused.first(), refused.last()) {
        (Some(newest), Some(oldest)) => newest.at - oldest.at,
        _ => 0,
    };
    // The start of a round and its end differ by the calls of the round.
    if refused.len() < looks || spread + 2_000 < over.0 {
        let text = format!("{} refused looks over {spread} ms of {looks} over {over}", refused.len());
        false_lock(world, view, &key, &text);
    }
}

/// How long a lock took, where nothing but the revocation happened.
fn time_to_lock(world: &mut World, lock: &LockView) {
    let Some(key) = lock.key.as_ref().and_then(|id| planned(&world.plan, id)) else { return };
    let Some(since) = world.check.refusing.remove(&key.id) else { return };
    let disturbed = world.check.disturbed_all.max(world.check.disturbed.get(&key.provider).copied().unwrap_or(0));
    let crashed = world.check.crashes.last().map_or(0, |(at, more)| at + more);
    if lock.access == Access::Locked && disturbed < since && crashed < since {
        let took = world.mono.saturating_sub(since);
        world.check.tally.longest_to_lock_ms = world.check.tally.longest_to_lock_ms.max(took);
    }
}

fn no_early_stale_lock(world: &mut World, view: &WorkspaceView, key: &PlannedKey, policy: &Policy) {
    let unproven = world.keys.get(key.id.as_str()).is_none_or(|k| k.state == StateWord::Unproven);
    if unproven && policy.unproven == Access::Locked {
        return;
    }
    let last_good = world.check.seen.get(&key.reference).and_then(|all| all.iter().rev().find(|s| s.conclusive)).map(|s| s.at);
    match (policy.lock_after_stale, last_good) {
        (Some(limit), Some(last)) if world.mono - last >= limit.0 => {}
        (Some(_), None) => {}
        _ => false_lock(world, view, key, "locked as stale before its time"),
    }
}

fn false_lock(world: &mut World, view: &WorkspaceView, key: &PlannedKey, why: &str) {
    world.check.tally.false_locks += 1;
    world.check.wrong(format!("false lock of {} by {}: {why}", view.workspace, key.id));
}

/// A lock goes by proof, or by a person where a person may.
fn no_unlock_without_proof(world: &mut World, view: &WorkspaceView, lock: &LockView) {
    let asked = world.check.unlock_asked.contains_key(view.workspace.as_str());
    let complain = |world: &mut World, why: &str| {
        world.check.tally.unproven_unlocks += 1;
        world.check.wrong(format!("unlock of {} ({:?} {:?}): {why}", view.workspace, lock.by, lock.key));
    };
    if lock.by == By::Manual || lock.cause == Cause::Orphaned {
        if !asked {
            complain(world, "nobody asked for it");
        }
        return;
    }
    let Some(key) = lock.key.as_ref().and_then(|id| planned(&world.plan, id)).cloned() else {
        return complain(world, "its key is not registered");
    };
    let policy = policy_of(world, &key);
    let all = world.check.seen.get(&key.reference).cloned().unwrap_or_default();
    let refused = |s: &Seen| (s.refused.wrap || s.refused.unwrap || s.refused.version) && !s.refused.ours;
    let since: Vec<&Seen> = all.iter().rev().take_while(|s| !refused(s)).filter(|s| s.complete).collect();
    let spread = match (since.first(), since.last()) {
        (Some(newest), Some(oldest)) => newest.at - oldest.at,
        _ => 0,
    };
    let first_proof = lock.cause == Cause::Stale && !since.is_empty() && policy.unproven == Access::Locked;
    let enough = since.len() >= usize::from(policy.unlock_after.rounds) && spread + 2_000 >= policy.unlock_after.over.0;
    if !enough && !first_proof {
        return complain(world, &format!("{} complete good rounds over {spread} ms", since.len()));
    }
    if policy.unlock == Unlock::Manual && !asked && !first_proof && lock.release.is_some() {
        complain(world, "the policy wants a person");
    }
}

fn raised_only_when_stored(world: &mut World, before: &WorkspaceView, view: &WorkspaceView) {
    if world.plan.any.iter().any(|ws| ws == view.workspace.as_str()) {
        return;
    }
    let stored = world.disk.access(&view.workspace, world.now().wall);
    if stored > view.access {
        world.check.tally.unproven_unlocks += 1;
        world.check.wrong(format!("{} goes from {} to {} while the store has {stored}", view.workspace, before.access, view.access));
    }
}

/// What was shown lowered before the crash is shown so again before anything else.
pub fn shown_after_restart(world: &mut World, before: &BTreeMap<WorkspaceId, Arc<WorkspaceView>>) {
    for (id, old) in before {
        let any = world.plan.any.iter().any(|ws| ws == id.as_str());
        let access = world.workspaces.get(id).map_or(Access::Open, |view| view.access);
        if access < old.access && !any && !world.check.lifted_in_crash.contains(id) {
            world.check.tally.lost_locks += 1;
            world.check.wrong(format!("{id} was shown {} before the crash and is {access} after it", old.access));
        }
    }
}

/// A provable and lasting revocation is a lock by now.
pub fn lock_due(world: &mut World, id: &str, since: u64, change: u64) {
    if world.check.changes.get(id) != Some(&change) {
        return;
    }
    let Some(key) = world.plan.keys.iter().find(|k| k.id == id).cloned() else { return };
    let policy = policy_of(world, &key);
    let truth = world.cloud.key(&key.provider, &key.reference).truth.clone();
    let kind = match truth.status {
        Status::Disabled => FailureKind::Disabled,
        Status::Pending => FailureKind::PendingDeletion,
        Status::Destroyed => FailureKind::Destroyed,
        Status::Enabled => FailureKind::AccessDenied,
    };
    let Some(mut bound) = lock_bound(&policy, kind) else { return };
    if truth.describe_denied && kind != FailureKind::AccessDenied {
        let look = policy.suspect_interval.plus(policy.call_timeout).times(u64::from(policy.stated_alone.looks));
        bound = policy.probe_interval.times(2).plus(policy.stated_alone.over).plus(look).plus(Span::from_secs(2));
    }
    let quiet_since = since.max(world.check.disturbed_all).max(world.check.disturbed.get(&key.provider).copied().unwrap_or(0));
    let crashes: u64 = world.check.crashes.iter().filter(|(at, more)| at + more >= quiet_since).map(|(_, more)| more).sum();
    let due = quiet_since + bound.0 + crashes + 500;
    let side = world.cloud.side(&key.provider).clone();
    let troubled = side.fault.is_some() || side.denied || side.credentials || world.watch.is_none();
    let braked = world.providers.get(key.provider.as_str()).is_some_and(|p| p.brake_engaged);
    let unwitnessed =
        kind == FailureKind::AccessDenied && world.cloud.key(&key.provider, super::plan::CONTROL).truth.status != Status::Enabled;
    let no_witness = kind == FailureKind::AccessDenied && !world.plan.providers.iter().any(|(p, control)| *p == key.provider && *control);
    if no_witness {
        return;
    }
    if due > world.mono || troubled || (braked && kind == FailureKind::AccessDenied) || unwitnessed {
        let wait = if due > world.mono { due - world.mono } else { bound.0 };
        return world.after(wait, Item::LockDue { key: id.to_owned(), since, change });
    }
    let Some(view) = world.keys.get(id).cloned() else { return };
    let last_good = world.check.seen.get(&key.reference).and_then(|all| all.iter().rev().find(|s| s.good)).map_or(0, |s| s.at);
    let dropped = kind == FailureKind::AccessDenied && world.check.dropped.get(&key.provider).is_some_and(|at| *at >= last_good);
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
}
