//! What must be true of the whole history of a seed, one function each. The judge knows the keys as
//! they truly were when they were asked, and the disk; of the watch it knows only what it shows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cmek_watchdog::journal::{Commit, OrderWrite, Restored};
use cmek_watchdog::key::{KeyId, WorkspaceId};
use cmek_watchdog::policy::{Policy, Unlock};
use cmek_watchdog::probe::Evidence;
use cmek_watchdog::snapshot::{DaemonView, KeyView, LockView, WorkspaceView};
use cmek_watchdog::time::{Now, Span};
use cmek_watchdog::watch::{Effects, Watch};
use cmek_watchdog::words::{Access, By, Cause, EventType, FailureKind, HeldBy, Leg, LegOutcome, Release, Sequence, StateWord};

use super::cloud::Refusals;
use super::coverage::Coverage;
use super::letters::Letters;
use super::plan::{Plan, PlannedKey};
use super::table::Tally;
use super::world::World;

/// One round as the judge saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub at: u64,
    /// Refused by the key's own network: the watch takes it for doubt.
    walled: bool,
    turn: u64,
    refused: Refusals,
    /// A failed leg of a kind that is only doubt, or no answer.
    conclusive: bool,
    complete: bool,
    pub good: bool,
}

#[derive(Default)]
pub struct Checker {
    pub tally: Tally,
    pub coverage: Coverage,
    pub violations: Vec<String>,
    pub stored_upto: u64,
    pub restarting: bool,
    pub letters: Letters,
    pub seen: BTreeMap<String, VecDeque<Seen>>,
    pub disturbed: BTreeMap<String, u64>,
    pub disturbed_all: u64,
    /// Crashes with the store well: when, and how much later a lock may come for each.
    pub crashes: Vec<(u64, u64)>,
    pub unlock_asked: BTreeMap<String, u64>,
    /// When the machine last woke from a sleep.
    pub resumed: u64,
    pub dropped: BTreeMap<String, u64>,
    /// When a reload last changed what the policies ask for.
    pub rules_changed: u64,
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
            walled: evidence.legs.iter().any(|l| l.leg != Leg::Describe && l.failure_kind == Some(FailureKind::NetworkBlocked)),
            turn,
            refused,
            conclusive: any_refused || good,
            complete: good && needed && described && !stated && !any_refused,
            good,
        };
        if !self.seen.contains_key(reference) {
            self.seen.insert(reference.to_owned(), VecDeque::new());
        }
        let Some(all) = self.seen.get_mut(reference) else { return };
        // Hours of doubt are one entry, or they would push out what was seen before.
        if !seen.conclusive && all.back().is_some_and(|last| !last.conclusive) {
            all.pop_back();
        }
        all.push_back(seen);
        if all.len() > 400 {
            all.pop_front();
        }
    }

    /// What a start finds on the disk.
    pub fn restarts_with(&mut self, restored: &Restored, spooled: bool) {
        let suspects = restored.keys.iter().any(|(_, state)| state.contains("\"suspect\""));
        for (so, what) in [
            (!restored.orders.is_empty(), "restart: with locks"),
            (suspects, "restart: with suspects"),
            (spooled, "restart: with spooled locks"),
        ] {
            if so {
                self.coverage.saw(what);
            }
        }
    }

    fn count_records(&mut self, commit: &Commit) {
        for record in &commit.records {
            self.coverage.saw(&format!("told: {}", record.event));
            if record.event == EventType::OverrideStarted {
                self.coverage.saw("operator: override begins");
            }
            if record.event == EventType::OverrideEnded {
                self.coverage.saw("operator: override ends");
            }
            if record.event == EventType::WorkspaceWouldLock {
                self.coverage.saw("shadow: would have locked");
            }
            let by_hand = |r: &cmek_watchdog::journal::Record| r.detail.iter().any(|(_, value)| value.starts_with("brake release"));
            if record.event == EventType::BrakeReleased && !commit.records.iter().any(by_hand) {
                self.coverage.saw("brake: released by its time");
            }
        }
    }

    pub fn applied(&mut self, commit: &Commit, plan: &Plan, _at: u64) {
        self.count_records(commit);
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
    let drilled = commit.meta.iter().filter(|(name, _)| name.starts_with("drill:")).filter_map(|(_, text)| {
        let row: serde_json::Value = serde_json::from_str(text.as_deref()?).ok()?;
        let ended = !row["view"]["ended_at"].is_null();
        let ids = row["view"]["workspaces"].as_array().cloned().unwrap_or_default();
        ended.then(|| ids.into_iter().filter_map(|id| WorkspaceId::new(id.as_str()?).ok()).collect::<Vec<_>>())
    });
    let undone = commit.meta.iter().filter(|(name, text)| name.starts_with("lever:") && text.is_none());
    let undone = undone.filter_map(|(name, _)| WorkspaceId::new(name.rsplit_once('/')?.1).ok());
    lifted.chain(overridden).chain(drilled.flatten()).chain(undone).collect()
}

fn planned<'a>(plan: &'a Plan, id: &KeyId) -> Option<&'a PlannedKey> {
    plan.keys.iter().find(|key| key.id == id.as_str())
}

pub fn policy_of(world: &World, key: &PlannedKey) -> Arc<Policy> {
    world.config.policies.iter().find(|(id, _)| id.as_str() == key.policy).map(|(_, policy)| Arc::clone(policy)).unwrap_or_default()
}

/// Everything that is asked of one view of a workspace as it appears.
pub fn shown(world: &mut World, before: Option<&WorkspaceView>, view: &WorkspaceView) {
    sequence_rises(world, view);
    views_tell_the_orders(world, view);
    windows_are_told(world, view);
    let had = |locks: &[LockView], lock: &LockView| locks.iter().any(|l| l.by == lock.by && l.key == lock.key);
    let locks_before = before.map(|b| b.locks.clone()).unwrap_or_default();
    for lock in view.locks.iter().filter(|lock| !had(&locks_before, lock)) {
        count_lock(world, lock);
        no_false_lock(world, view, lock);
    }
    let orphans = |locks: &[LockView]| locks.iter().filter(|l| l.cause == Cause::Orphaned).count();
    if orphans(&view.locks) > orphans(&locks_before) {
        world.check.coverage.saw("lock: orphaned");
    }
    let waits = |locks: &[LockView]| locks.iter().any(|l| l.release == Some(Release::Pending));
    if waits(&view.locks) && !waits(&locks_before) {
        world.check.coverage.saw("unlock: waits for approval");
    }
    if world.check.restarting {
        return;
    }
    for lock in locks_before.iter().filter(|lock| !had(&view.locks, lock)) {
        world.check.tally.unlocks += 1;
        if lock.by == By::Automatic && lock.cause != Cause::Orphaned {
            world.check.coverage.saw(if lock.release.is_some() { "unlock: approved" } else { "unlock: by proof" });
        }
        no_unlock_without_proof(world, view, lock);
    }
    if let Some(before) = before
        && view.access < before.access
    {
        raised_only_when_stored(world, before, view);
    }
}

fn count_lock(world: &mut World, lock: &LockView) {
    let coverage = &mut world.check.coverage;
    coverage.saw(&format!("lock: {}", lock.cause));
    if lock.access == Access::ReadOnly {
        coverage.saw("lock: read only");
    }
    if !lock.durable {
        coverage.saw("lock: shown before it is stored");
    }
    let held = lock.key.as_ref().and_then(|id| world.keys.get(id)).is_some_and(|key| key.held_by == Some(HeldBy::Brake));
    if held {
        coverage.saw("brake: held lock carried out");
    }
}

/// A key that can be brought back is not called beyond recovery, and one that cannot is.
fn windows_are_told(world: &mut World, view: &WorkspaceView) {
    let ahead = view.recoverable_until.is_some_and(|until| until > world.now().wall);
    if ahead && view.access == Access::Locked {
        world.check.coverage.saw("window: recoverable until");
    }
    if view.terminal {
        world.check.coverage.saw("window: beyond recovery");
        if ahead {
            world.check.wrong(format!("{} is called beyond recovery until {:?}", view.workspace, view.recoverable_until));
        }
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
    let cut = view.drill.as_ref().is_some_and(|drill| drill.cut);
    let undoing = view.levers.iter().any(|lever| lever.act == cmek_watchdog::words::LeverAct::Undo);
    if (view.access > strictest && !cut && !undoing) || view.access < least {
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
            (_, Some(_)) if flapped(world, &key, &policy) => {
                world.check.coverage.saw("lock: of a flapping key");
                (1, Span::ZERO)
            }
            (FailureKind::AccessDenied, Some(rule)) if lock.access == Access::Locked => (usize::from(rule.looks), rule.over),
            (FailureKind::NetworkBlocked, Some(rule)) => (usize::from(rule.looks), rule.over),
            (FailureKind::Disabled | FailureKind::PendingDeletion | FailureKind::Destroyed | FailureKind::AccessDenied, Some(_)) => {
                (2, Span::from_secs(5))
            }
            _ => return false_lock(world, view, &key, &format!("{kind} locks")),
        },
    };
    let all = world.check.seen.get(&key.reference).cloned().unwrap_or_default();
    // Without a witness our own lost permission counts too (A8), until the key itself refuses.
    let ours = all.iter().rev().take(60).any(|s| s.refused.ours);
    // A lock that was decided under the rules of before is shown a little later.
    let before = world.mono < world.check.rules_changed + 1_000 || world.check.restarting;
    let (looks, over) = if ours || before { (1, Span::ZERO) } else { (looks, over) };
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

/// Whether refused looks of this key go back as far as its policy's patience with flapping.
fn flapped(world: &World, key: &PlannedKey, policy: &Policy) -> bool {
    let patience = policy.flapping.after.0;
    let old = |all: &VecDeque<Seen>| {
        all.iter()
            .rev()
            .take_while(|s| s.at + 3 * patience > world.mono)
            .any(|s| (s.refused.wrap || s.refused.unwrap) && s.at + patience <= world.mono)
    };
    policy.flapping.access.is_some() && world.check.seen.get(&key.reference).is_some_and(old)
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
    let last_good = world.check.seen.get(&key.reference).and_then(|all| all.iter().rev().find(|s| s.conclusive && !s.walled)).map(|s| s.at);
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
    // A reload took the binding away in this very turn: the lock was an orphan before anybody saw it.
    if asked && !key.workspaces.iter().any(|ws| ws == view.workspace.as_str()) {
        return;
    }
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
