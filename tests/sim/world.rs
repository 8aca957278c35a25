//! The world on its virtual clock: one process of the watch at a time, the probes, commits and sends
//! that it has under way, and the disk that outlives it. Effects are performed in the daemon's order,
//! and a crash may fall between any two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cmek_watchdog::config::Config;
use cmek_watchdog::journal::{Batch, Commit, StoreFault};
use cmek_watchdog::key::{KeyId, ProviderId, ReceiverId, WorkspaceId};
use cmek_watchdog::notify::{Delivery, Notice};
use cmek_watchdog::operate::{Action, Operation};
use cmek_watchdog::probe::{Call, Evidence, Next, ProbeRun};
use cmek_watchdog::snapshot::{Change, KeyView, ProviderView, WorkspaceView};
use cmek_watchdog::time::{Mono, Now, Wall};
use cmek_watchdog::watch::{Attempt, Effects, Event, ProbeOrder, Start, Subject, Ticket, Watch};
use cmek_watchdog::words::{Access, HeldBy, ProviderKind, Sequence};

use super::check::Checker;
use super::cloud::{Cloud, Refusals};
use super::dice::Dice;
use super::disk::Disk;
use super::follow::Follower;
use super::gates::FarGate;
use super::plan::{Plan, PlannedKey};
use super::script::Happening;

/// Something that comes at a time.
#[derive(Debug)]
pub enum Item {
    Step {
        run: u64,
        attempt: u64,
    },
    Committed {
        run: u64,
        commit: Arc<Commit>,
    },
    Sent {
        run: u64,
        receiver: ReceiverId,
        notice: Arc<Notice>,
    },
    Wake {
        run: u64,
        number: u64,
    },
    Happens(Happening),
    /// A far gate hears of a change.
    Heard {
        workspace: WorkspaceId,
        sequence: Sequence,
        access: Access,
    },
    Restart {
        run: u64,
    },
    /// A lever moves.
    Levered {
        run: u64,
        order: cmek_watchdog::lever::LeverOrder,
    },
    /// A key that is revoked since `since` has to be locked by now.
    LockDue {
        key: String,
        since: u64,
        change: u64,
    },
    /// A workspace that an operator locked has to be shown locked by now.
    ShownDue {
        run: u64,
        workspace: String,
    },
}

struct Flying {
    order: ProbeOrder,
    run: ProbeRun,
    /// The last answer, to be taken when its time has come.
    told: super::cloud::Told,
    refused: Refusals,
}

/// How the store behaves.
#[derive(Clone, Copy, Debug)]
pub struct StoreMood {
    pub down: bool,
    /// With `down`: there is no room, and the answer says so.
    pub full: bool,
    pub latency: u64,
    pub errors_permille: u64,
}

impl StoreMood {
    pub const WELL: Self = Self { down: false, full: false, latency: 5, errors_permille: 0 };
}

pub struct World {
    pub far: FarGate,
    pub dice: Dice,
    pub cloud: Cloud,
    pub disk: Disk,
    pub plan: Plan,
    pub config: Arc<Config>,
    pub store: StoreMood,
    pub receivers_down: BTreeSet<String>,
    pub mono: u64,
    pub wall_offset: i64,
    pub watch: Option<Watch>,
    pub run: u64,
    pub turn: u64,
    pub workspaces: BTreeMap<WorkspaceId, Arc<WorkspaceView>>,
    pub keys: BTreeMap<KeyId, Arc<KeyView>>,
    pub providers: BTreeMap<ProviderId, Arc<ProviderView>>,
    pub check: Checker,
    follower: Follower,
    pub crash_rate: u64,
    pub trace: bool,
    pub levers: super::levers::Truth,
    kinds: BTreeMap<String, ProviderKind>,
    queue: BTreeMap<(u64, u64), Item>,
    items: u64,
    wakes: u64,
    flying: BTreeMap<u64, Flying>,
    committing: Option<Arc<Commit>>,
    /// Turn in which a batch was handed out first.
    batches: BTreeMap<Batch, u64>,
    tickets: u64,
    crash_after: Option<u64>,
    /// Keys that a reload took out and a later one may bring back.
    pub removed: Vec<PlannedKey>,
    /// Ids of the planned keys by their references.
    ids: BTreeMap<String, String>,
}

impl World {
    pub fn new(mut dice: Dice, plan: Plan, levers: super::levers::Truth, trace: bool) -> Self {
        let cloud = Cloud::default();
        let wall_offset = 1_790_000_000_000 + i64::try_from(dice.below(1_000_000)).unwrap();
        let mono = 1 << 40;
        let kinds = plan.providers.iter().map(|p| (p.id.clone(), p.kind)).collect();
        Self {
            far: FarGate::default(),
            kinds,
            dice,
            cloud,
            disk: Disk::default(),
            config: plan.config(),
            plan,
            store: StoreMood::WELL,
            receivers_down: BTreeSet::new(),
            mono,
            wall_offset: wall_offset - (1 << 40),
            watch: None,
            run: 0,
            turn: 0,
            workspaces: BTreeMap::new(),
            keys: BTreeMap::new(),
            providers: BTreeMap::new(),
            check: Checker::new(),
            follower: Follower::default(),
            crash_rate: 0,
            trace,
            levers,
            queue: BTreeMap::new(),
            items: 0,
            wakes: 0,
            flying: BTreeMap::new(),
            committing: None,
            batches: BTreeMap::new(),
            tickets: 0,
            crash_after: None,
            removed: Vec::new(),
            ids: BTreeMap::new(),
        }
    }

    /// After a change of the plan.
    pub fn planned(&mut self) {
        self.ids = self.plan.keys.iter().map(|k| (k.reference.clone(), k.id.clone())).collect();
    }

    /// Everything that far gates have not heard yet reaches them.
    pub fn drain_heard(&mut self) {
        let coming = std::mem::take(&mut self.queue);
        for item in coming.into_values() {
            if let Item::Heard { workspace, sequence, access } = item {
                super::gates::heard(self, workspace, sequence, access);
            }
        }
    }

    pub fn now(&self) -> Now {
        Now { mono: Mono(self.mono), wall: Wall(i64::try_from(self.mono).unwrap() + self.wall_offset) }
    }

    /// Whether the present configuration has levers.
    pub fn config_levers(&self) -> bool {
        !self.config.levers.is_empty()
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>12.3} r{} {}", (self.mono - (1 << 40)) as f64 / 1000.0, self.run, what());
        }
    }

    pub fn after(&mut self, ms: u64, item: Item) {
        self.items += 1;
        self.queue.insert((self.mono + ms, self.items), item);
    }

    /// Runs until this time; everything that comes by then has come.
    pub fn run_until(&mut self, end: u64) {
        while let Some(((at, _), item)) =
            self.queue.first_key_value().map(|(k, _)| *k).filter(|(at, _)| *at <= end).and_then(|k| self.queue.remove_entry(&k))
        {
            self.mono = self.mono.max(at);
            let mut events = self.take(item);
            // What comes in the same moment is part of the same turn.
            while let Some(key) = self.queue.first_key_value().map(|(k, _)| *k).filter(|(at, _)| *at <= self.mono) {
                let Some(item) = self.queue.remove(&key) else { break };
                events.extend(self.take(item));
            }
            self.do_turn(events);
        }
        self.mono = self.mono.max(end);
    }

    fn take(&mut self, item: Item) -> Vec<Event> {
        match item {
            Item::Wake { run, number } => {
                if run == self.run && number == self.wakes {
                    vec![Event::Wake]
                } else {
                    Vec::new()
                }
            }
            Item::Step { run, attempt } => {
                if run == self.run {
                    self.step(attempt).into_iter().collect()
                } else {
                    Vec::new()
                }
            }
            Item::Committed { run, commit } => {
                if run == self.run {
                    self.finish_commit(&commit).into_iter().collect()
                } else {
                    Vec::new()
                }
            }
            Item::Sent { run, receiver, notice } => self.finish_send(run, &receiver, &notice).into_iter().collect(),
            Item::Happens(happening) => super::script::happen(self, happening),
            Item::Heard { workspace, sequence, access } => {
                super::gates::heard(self, workspace, sequence, access);
                Vec::new()
            }
            Item::Restart { run } => {
                if run == self.run && self.watch.is_none() {
                    self.start();
                }
                Vec::new()
            }
            Item::Levered { run, order, .. } => super::levers::moved(self, run, order).into_iter().collect(),
            Item::LockDue { key, since, change } => {
                super::due::lock_due(self, &key, since, change);
                Vec::new()
            }
            Item::ShownDue { run, workspace } => {
                super::due::shown_due(self, run, &workspace);
                Vec::new()
            }
        }
    }

    /// An operator's wish as an event.
    pub fn ask(&mut self, action: Action) -> Vec<Event> {
        if self.watch.is_none() {
            return Vec::new();
        }
        self.say(|| {
            let text = format!("{action:?}");
            format!("ask {}", text.chars().take(160).collect::<String>())
        });
        self.tickets += 1;
        vec![Event::Operator { ticket: Ticket(self.tickets), operation: Box::new(Operation { actor: "op".to_owned(), action }) }]
    }

    fn do_turn(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let now = self.now();
        let Some(mut watch) = self.watch.take() else { return };
        self.turn += 1;
        let mut out = Effects::default();
        for event in events {
            watch.handle(now, event, &mut out);
        }
        watch.seal(now, &mut out);
        self.check.turn(now, &watch, &out);
        if let Some(wrong) = self.follower.turn(&out) {
            self.check.wrong(format!("stream: {wrong}"));
        }
        self.watch = Some(watch);
        if self.crash_rate > 0 && self.crash_after.is_none() && self.dice.below(self.crash_rate) == 0 {
            self.crash_after = Some(self.dice.below(6));
        }
        self.perform(out);
        self.set_wake();
    }

    fn set_wake(&mut self) {
        let now = self.now();
        let Some(watch) = &self.watch else { return };
        let Some(at) = watch.next_deadline(now) else { return };
        self.wakes += 1;
        let wait = at.since(now.mono).0 + 1 + self.dice.below(3);
        let item = Item::Wake { run: self.run, number: self.wakes };
        self.after(wait, item);
    }

    fn perform(&mut self, out: Effects) {
        let crash = self.crash_after.take();
        let stop = |stage: u64| crash == Some(stage);
        if stop(0) {
            return self.crash("before the spool");
        }
        self.spooled(&out.spool);
        self.disk.spool.extend(out.spool);
        if out.spool_clear {
            self.disk.spool.clear();
        }
        if stop(1) {
            return self.crash("before the commit");
        }
        if let Some(commit) = out.commit {
            self.begin_commit(commit);
        }
        if stop(2) {
            return self.crash("with a commit under way");
        }
        for change in out.publish {
            self.show(change);
        }
        if stop(3) {
            return self.crash("before probes");
        }
        for order in out.probes {
            self.begin_probe(order);
        }
        if stop(4) {
            return self.crash("before notices");
        }
        for (_, answer) in out.replies {
            if answer.is_err_and(|refusal| refusal.slug == cmek_watchdog::operate::RefusalSlug::NotProven) {
                self.check.coverage.saw("operator: unlock refused");
            }
        }
        for order in out.levers {
            super::levers::ordered(self, order);
        }
        for send in out.sends {
            self.check.sending(&self.disk, &send.receiver, &send.notice);
            let wait = 20 + self.dice.below(500);
            let item = Item::Sent { run: self.run, receiver: send.receiver, notice: send.notice };
            self.after(wait, item);
        }
        if stop(5) {
            self.crash("after a turn");
        }
    }

    fn spooled(&mut self, orders: &[cmek_watchdog::journal::Order]) {
        for _ in orders {
            self.check.coverage.saw("store: locks spooled");
        }
    }

    fn show(&mut self, change: Change) {
        match change {
            Change::Workspace(view) => {
                let before = self.workspaces.insert(view.workspace.clone(), Arc::clone(&view));
                if self.trace && before.as_ref().is_none_or(|b| b.access != view.access || b.locks.len() != view.locks.len()) {
                    self.say(|| {
                        format!(
                            "shown {} {} #{} locks {:?}",
                            view.workspace,
                            view.access,
                            view.sequence.0,
                            view.locks.iter().map(|l| (l.key.clone(), l.cause, l.access, l.release)).collect::<Vec<_>>()
                        )
                    });
                }
                super::check::shown(self, before.as_deref(), &view);
                super::levers::shown(self, &view);
                super::gates::send(self, &view);
            }
            Change::Key(view) => {
                if view.held_by == Some(HeldBy::Brake) && self.keys.get(&view.id).is_none_or(|k| k.held_by != view.held_by) {
                    self.check.coverage.saw("brake: lock held");
                }
                if self.trace && self.keys.get(&view.id).is_none_or(|k| k.state != view.state || k.held_by != view.held_by) {
                    self.say(|| format!("key {} {} held {:?} kind {:?}", view.id, view.state, view.held_by, view.failure_kind));
                }
                self.keys.insert(view.id.clone(), view);
            }
            Change::KeyGone(id) => {
                self.keys.remove(&id);
            }
            Change::Provider(view) => {
                let engaged = self.providers.get(&view.provider).is_some_and(|p| p.brake_engaged);
                if engaged != view.brake_engaged {
                    if view.brake_engaged {
                        self.check.coverage.saw("brake: engaged");
                    }
                    self.say(|| format!("brake {} engaged {}", view.provider, view.brake_engaged));
                    self.check.disturbed(view.provider.as_str(), self.mono);
                }
                self.providers.insert(view.provider.clone(), view);
            }
            Change::Daemon(view) => self.check.daemon(&view),
            Change::Fresh(_) => {}
        }
    }

    fn begin_commit(&mut self, commit: Arc<Commit>) {
        self.batches.entry(commit.batch).or_insert(self.turn);
        self.committing = Some(Arc::clone(&commit));
        let wait = 1 + self.store.latency / 2 + self.dice.below(self.store.latency.max(1));
        let item = Item::Committed { run: self.run, commit };
        self.after(wait, item);
    }

    fn finish_commit(&mut self, commit: &Arc<Commit>) -> Option<Event> {
        self.committing = None;
        let fails = self.store.down || self.dice.chance(self.store.errors_permille);
        // A failed answer may come after the rows were written all the same.
        let applied = !fails || (!self.store.down && self.dice.chance(300));
        let committed = applied.then(|| self.apply(commit));
        let result = match committed.filter(|_| !fails) {
            Some(committed) => Ok(committed),
            None if self.store.full => Err(StoreFault::Full("no space left on device".to_owned())),
            None => Err(StoreFault::Unavailable("disk I/O error".to_owned())),
        };
        if fails && applied {
            self.check.coverage.saw("store: failed answer of a written commit");
        }
        Some(Event::Stored { batch: commit.batch, result })
    }

    fn apply(&mut self, commit: &Commit) -> cmek_watchdog::journal::Committed {
        if let Some(turn) = self.batches.get(&commit.batch) {
            self.check.stored_upto = self.check.stored_upto.max(*turn);
        }
        let commits = self.disk.commits;
        let committed = self.disk.commit(self.run, commit);
        if self.disk.commits > commits {
            self.check.applied(commit, &self.plan, self.mono);
        }
        committed
    }

    fn finish_send(&mut self, run: u64, receiver: &ReceiverId, notice: &Arc<Notice>) -> Option<Event> {
        let down = self.receivers_down.contains(receiver.as_str());
        // A crash loses what is in flight, before or after it has arrived.
        if !down && (run == self.run || self.dice.chance(500)) {
            self.check.delivered(receiver, notice);
        }
        let delivery = if down { Delivery::Retry { after: None, reason: "connection refused".to_owned() } } else { Delivery::Delivered };
        (run == self.run && self.watch.is_some()).then(|| Event::Sent { receiver: receiver.clone(), id: notice.id.clone(), delivery })
    }

    fn begin_probe(&mut self, order: ProbeOrder) {
        let now = self.now();
        self.check.tally.probes += 1;
        let mut run = ProbeRun::new(order.plan.clone(), now);
        let attempt = order.attempt.0;
        match run.next(None, now) {
            Next::Call(call) => self.call(attempt, order, run, &call, Refusals::default()),
            Next::Done(_) => self.check.wrong("a probe without a call".to_owned()),
        }
    }

    fn call(&mut self, attempt: u64, order: ProbeOrder, run: ProbeRun, call: &Call, mut refused: Refusals) {
        let (provider, reference) = (order.provider.as_str(), &*order.plan.target.reference.text);
        let kind = self.kinds.get(provider).copied().unwrap_or(ProviderKind::Aws);
        let (timeout, now) = (order.plan.call_timeout, Mono(self.mono));
        let told = self.cloud.call((provider, kind), reference, call, timeout, now, &mut self.dice);
        let side = self.cloud.side(provider);
        refused.ours |= side.denied || side.credentials;
        match call {
            Call::Wrap => refused.wrap |= told.truly_refused,
            Call::Unwrap(_) => refused.unwrap |= told.truly_refused,
            Call::UnwrapVersion(_) => refused.version |= told.truly_refused,
            Call::Describe | Call::WrapVersion(_) | Call::Rotation => {}
        }
        let wait = told.took.0.max(1);
        if told.reply.is_some() {
            self.flying.insert(attempt, Flying { order, run, told, refused });
            let item = Item::Step { run: self.run, attempt };
            self.after(wait, item);
        }
    }

    fn step(&mut self, attempt: u64) -> Option<Event> {
        let now = self.now();
        let Flying { order, mut run, told, refused } = self.flying.remove(&attempt)?;
        match run.next(told.reply, now) {
            Next::Call(call) => {
                self.call(attempt, order, run, &call, refused);
                None
            }
            Next::Done(mut evidence) => {
                evidence.identity = Some("arn:aws:sts::111122223333:assumed-role/watchdog".into());
                self.saw(&order, &evidence, refused);
                let late = Attempt(attempt);
                Some(Event::Probed { subject: order.subject, attempt: late, evidence })
            }
        }
    }

    fn saw(&mut self, order: &ProbeOrder, evidence: &Evidence, refused: Refusals) {
        if !matches!(order.subject, Subject::Key(_)) {
            return;
        }
        let reference = &*order.plan.target.reference.text;
        let view = self.ids.get(reference).and_then(|id| self.keys.get(id.as_str()));
        self.check.coverage.saw(match self.kinds.get(order.provider.as_str()) {
            Some(ProviderKind::Aws) => "provider aws: rounds",
            Some(ProviderKind::Gcp) => "provider gcp: rounds",
            Some(ProviderKind::Azure) => "provider azure: rounds",
            Some(ProviderKind::Local) | None => "provider local: rounds",
        });
        if self.trace {
            let legs: Vec<String> = evidence
                .legs
                .iter()
                .map(|l| format!("{}:{}{}", l.leg, l.outcome, l.failure_kind.map_or(String::new(), |k| format!("({k})"))))
                .collect();
            self.say(|| format!("saw {} {}", reference.rsplit('/').next().unwrap_or(""), legs.join(" ")));
        }
        self.check.saw(reference, self.turn + 1, evidence, refused, view.map(|v| &**v));
    }

    /// The process dies here. What it had under way may or may not have come about.
    pub fn crash(&mut self, stage: &str) {
        if self.watch.take().is_none() {
            return;
        }
        self.check.tally.crashes += 1;
        self.check.coverage.saw(&format!("crash: {stage}"));
        let in_flight = self.committing.take();
        if let Some(commit) = &in_flight
            && !self.store.down
            && self.dice.chance(500)
        {
            self.check.coverage.saw("crash: commit in flight was written");
            self.apply(commit);
        }
        let down = if self.dice.chance(800) { 200 + self.dice.below(5_000) } else { 10_000 + self.dice.below(600_000) };
        self.say(|| format!("crash, down for {down} ms"));
        self.check.crashed(self.mono, down, self.store.down || self.store.errors_permille > 0, in_flight.as_deref());
        self.run += 1;
        self.flying.clear();
        self.batches.clear();
        let item = Item::Restart { run: self.run };
        self.after(down, item);
    }

    /// A new process: reads what the disk has and shows it before anything else.
    pub fn start(&mut self) {
        let now = self.now();
        let mut out = Effects::default();
        let config = Arc::clone(&self.config);
        let restored = self.disk.restored();
        self.say(|| format!("start with {} orders, {} spooled", restored.orders.len(), self.disk.spool.len()));
        let before = self.workspaces.clone();
        self.check.restarts_with(&restored, !self.disk.spool.is_empty());
        let watch = Watch::new(config, restored, Start::default(), now, &mut out);
        self.watch = Some(watch);
        self.turn += 1;
        self.check.restarting = true;
        self.follower.reload(&out);
        for change in std::mem::take(&mut out.publish) {
            self.show(change);
        }
        self.check.restarting = false;
        super::check::shown_after_restart(self, &before);
        self.perform(out);
        self.do_turn(vec![Event::Wake]);
    }
}
