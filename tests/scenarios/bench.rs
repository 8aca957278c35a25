//! The watch's core on a virtual clock, with a cloud whose answers a test sets call by call, a store
//! that outlives restarts, and a receiver that takes every notice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cmek_watchdog::config::{Config, check};
use cmek_watchdog::journal::{CanaryRow, Commit, Committed, Order, OrderWrite, Record, Restored};
use cmek_watchdog::key::{KeyId, KeyTarget, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use cmek_watchdog::kms::{Answer, CallMeta, KeyFacts, KmsError, Unwrapped, Wrapped};
use cmek_watchdog::notify::{Delivery, Notice, NoticeId, OutboxRow, OutboxState};
use cmek_watchdog::operate::{Action, Answered, Operation};
use cmek_watchdog::probe::{Call, Evidence, Next, ProbeRun, Reply};
use cmek_watchdog::snapshot::{Change, KeyView, ProviderView, WorkspaceView};
use cmek_watchdog::time::{Mono, Now, Span, Wall};
use cmek_watchdog::watch::{Count, Effects, Event, ProbeOrder, Start, Ticket, Watch};
use cmek_watchdog::words::{Access, EventType, FailureKind, Leg};

pub const MINUTE: u64 = 60;
pub const HOUR: u64 = 3600;
const START: u64 = 1 << 40;

/// One call as the cloud sees it.
#[derive(Clone, Debug)]
pub struct Ask {
    pub key: String,
    pub leg: Leg,
    pub version: Option<KeyVersion>,
    /// Seconds since the start.
    pub at: u64,
}

type Hook = Box<dyn FnMut(&Ask) -> Option<KmsError>>;

/// Answers every call well unless told otherwise. Keys are named by their reference.
#[derive(Default)]
pub struct Cloud {
    refusals: BTreeMap<(String, Leg), KmsError>,
    /// Generation that wraps now; 1 where nothing is set.
    current: BTreeMap<String, u32>,
    /// What describe says besides.
    pub facts: BTreeMap<String, KeyFacts>,
    hook: Option<Hook>,
    pub identity: Option<Arc<str>>,
    pub asked: Vec<Ask>,
    sealed: u64,
    /// Milliseconds of one call.
    pub takes: u64,
}

/// A refusal without a text of its own.
pub fn refusal(kind: FailureKind, stated: bool) -> KmsError {
    KmsError::new(kind, stated, kind.as_str(), "refused by the test")
}

impl Cloud {
    pub fn refuse(&mut self, key: &str, legs: &[Leg], error: &KmsError) {
        for leg in legs {
            self.refusals.insert((key.to_owned(), *leg), error.clone());
        }
    }

    pub fn allow(&mut self, key: &str) {
        self.refusals.retain(|(name, _), _| name != key);
        self.facts.remove(key);
    }

    pub fn rotate_to(&mut self, key: &str, generation: u32) {
        self.current.insert(key.to_owned(), generation);
    }

    /// Asked before anything else.
    pub fn hook(&mut self, hook: impl FnMut(&Ask) -> Option<KmsError> + 'static) {
        self.hook = Some(Box::new(hook));
    }

    pub fn unhook(&mut self) {
        self.hook = None;
    }

    fn answer(&mut self, target: &KeyTarget, call: &Call, at: u64) -> Reply {
        let key = target.reference.text.to_string();
        let (leg, version) = match call {
            Call::Wrap => (Leg::Wrap, None),
            Call::WrapVersion(version) => (Leg::Wrap, Some(version.clone())),
            Call::Unwrap(wrapped) => (Leg::Unwrap, wrapped.version.clone()),
            Call::UnwrapVersion(wrapped) => (Leg::UnwrapVersion, wrapped.version.clone()),
            Call::Describe => (Leg::Describe, None),
            Call::Rotation => return Reply::NotOffered,
        };
        let ask = Ask { key: key.clone(), leg, version, at };
        let refused = self.hook.as_mut().and_then(|hook| hook(&ask)).or_else(|| self.refusals.get(&(key.clone(), leg)).cloned());
        self.asked.push(ask);
        let meta = CallMeta { request_id: Some("req-1".into()), took: Span(self.takes), provider_time: None };
        let generation = self.current.get(&key).copied().unwrap_or(1);
        match (call, refused) {
            (Call::Wrap | Call::WrapVersion(_), Some(error)) => Reply::Wrap(Answer { result: Err(error), meta }),
            (Call::Wrap | Call::WrapVersion(_), None) => {
                self.sealed += 1;
                let mut digest = [0; 32];
                digest[..8].copy_from_slice(&self.sealed.to_be_bytes());
                let current = KeyVersion::new(&generation.to_string());
                let version = Some(if let Call::WrapVersion(version) = call { version.clone() } else { current });
                let wrapped = Wrapped { bytes: Arc::from(digest), digest, version, sealed_with: "".into() };
                Reply::Wrap(Answer { result: Ok(wrapped), meta })
            }
            (Call::Unwrap(_) | Call::UnwrapVersion(_), Some(error)) => Reply::Unwrap(Answer { result: Err(error), meta }),
            (Call::Unwrap(wrapped) | Call::UnwrapVersion(wrapped), None) => {
                let digest = wrapped.bytes.as_ref().try_into().unwrap();
                Reply::Unwrap(Answer { result: Ok(Unwrapped { digest, version: wrapped.version.clone() }), meta })
            }
            (Call::Rotation, _) => Reply::NotOffered,
            (Call::Describe, Some(error)) => Reply::Describe(Answer { result: Err(error), meta }),
            (Call::Describe, None) => Reply::Describe(Answer { result: Ok(self.facts.get(&key).cloned().unwrap_or_default()), meta }),
        }
    }

    fn round(&mut self, order: ProbeOrder, started: Now) -> (Evidence, u64) {
        let target = Arc::clone(&order.plan.target);
        let mut run = ProbeRun::new(order.plan, started);
        let (mut now, mut last) = (started, None);
        loop {
            match run.next(last.take(), now) {
                Next::Done(mut evidence) => {
                    evidence.identity = self.identity.clone();
                    return (*evidence, now.mono.0 - started.mono.0);
                }
                Next::Call(call) => {
                    last = Some(self.answer(&target, &call, (now.mono.0 - START) / 1000));
                    now = now.plus(Span(self.takes));
                }
            }
        }
    }
}

/// What survives a crash.
#[derive(Default)]
struct Disk {
    keys: BTreeMap<KeyId, Arc<str>>,
    canaries: BTreeMap<(KeyId, KeyVersion), CanaryRow>,
    orders: Vec<Order>,
    outbox: BTreeMap<(ReceiverId, NoticeId), OutboxRow>,
    meta: BTreeMap<String, String>,
    head: u64,
}

impl Disk {
    fn commit(&mut self, commit: &Commit) -> Committed {
        let mut done = Committed::default();
        for write in &commit.orders {
            match write {
                OrderWrite::Lower(order) => {
                    self.orders.retain(|stored| stored.slot() != order.slot());
                    self.orders.push(order.clone());
                }
                OrderWrite::Lift { slot, sequence } => {
                    if self.orders.iter().any(|stored| stored.slot() == *slot && stored.sequence > *sequence) {
                        done.refused.push(slot.clone());
                    } else {
                        self.orders.retain(|stored| stored.slot() != *slot);
                    }
                }
            }
        }
        for row in &commit.keys {
            match &row.state {
                Some(state) => drop(self.keys.insert(row.key.clone(), Arc::clone(state))),
                None => drop(self.keys.remove(&row.key)),
            }
        }
        self.canaries.extend(commit.canaries.iter().map(|row| ((row.key.clone(), row.version.clone()), row.clone())));
        commit.canaries_dropped.iter().for_each(|name| drop(self.canaries.remove(name)));
        self.outbox.extend(commit.outbox.iter().map(|row| ((row.receiver.clone(), row.id.clone()), row.clone())));
        for (name, value) in &commit.meta {
            match value {
                Some(value) => drop(self.meta.insert(name.clone(), value.clone())),
                None => drop(self.meta.remove(name)),
            }
        }
        for _ in &commit.records {
            self.head += 1;
            done.sequences.push(self.head);
        }
        done
    }

    fn restored(&self) -> Restored {
        let open = |row: &&OutboxRow| matches!(row.state, OutboxState::Pending | OutboxState::InFlight | OutboxState::Dead);
        Restored {
            keys: self.keys.iter().map(|(key, state)| (key.clone(), Arc::clone(state))).collect(),
            canaries: self.canaries.values().cloned().collect(),
            damaged: Vec::new(),
            orders: self.orders.clone(),
            outbox: self.outbox.values().filter(open).cloned().collect(),
            meta: self.meta.clone(),
            head: self.head,
        }
    }
}

pub struct Bench {
    watch: Watch,
    config: Arc<Config>,
    mono: u64,
    coming: BTreeMap<(u64, u64), Event>,
    events: u64,
    disk: Disk,
    pub cloud: Cloud,
    pub keys: BTreeMap<KeyId, Arc<KeyView>>,
    pub workspaces: BTreeMap<WorkspaceId, Arc<WorkspaceView>>,
    pub providers: BTreeMap<ProviderId, Arc<ProviderView>>,
    pub records: Vec<Record>,
    pub notices: Vec<Arc<Notice>>,
    pub counts: Vec<Count>,
    pub replies: Vec<Answered>,
    /// Every workspace that was ever shown as less than open.
    pub lowered: BTreeSet<(String, Access)>,
}

/// Reference of a key of an AWS account.
pub fn arn(account: u64, number: u32) -> String {
    format!("arn:aws:kms:us-east-2:{account:012}:key/00000000-0000-0000-0000-{number:012}")
}

/// The control key that [`aws`] configures.
pub fn control() -> String {
    arn(111_122_223_333, 999)
}

/// A configuration with one AWS provider and keys `k1`, `k2`, ... of workspaces `w1`, `w2`, ...
pub fn aws(keys: &[String], more: &str) -> String {
    let mut text = format!(
        "[providers.aws]\nkind = \"aws\"\nregion = \"us-east-2\"\ncontrol_key = \"{}\"\n\
         [receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:1/hook\"\nsecret = \"env:HOOK\"\n\
         [[routes]]\nreceivers = [\"hook\"]\nseverity = \"info\"\n{more}\n",
        control()
    );
    for (at, key) in keys.iter().enumerate() {
        let number = at + 1;
        text.push_str(&format!("[[keys]]\nid = \"k{number}\"\nprovider = \"aws\"\nkey = \"{key}\"\nworkspaces = [\"w{number}\"]\n"));
    }
    text
}

impl Bench {
    pub fn new(config: &str) -> Self {
        let (config, _) = check::parse(config, "test.toml", "/", &[]).unwrap_or_else(|errors| panic!("{errors:?}\n{config}"));
        let config = Arc::new(config);
        let now = now_at(START);
        let mut out = Effects::default();
        let watch = Watch::new(Arc::clone(&config), Restored::default(), Start::default(), now, &mut out);
        let cloud = Cloud { identity: Some("arn:aws:iam::111122223333:user/watchdog".into()), takes: 20, ..Cloud::default() };
        let mut bench = Self {
            watch,
            config,
            mono: START,
            coming: BTreeMap::new(),
            events: 0,
            disk: Disk::default(),
            cloud,
            keys: BTreeMap::new(),
            workspaces: BTreeMap::new(),
            providers: BTreeMap::new(),
            records: Vec::new(),
            notices: Vec::new(),
            counts: Vec::new(),
            replies: Vec::new(),
            lowered: BTreeSet::new(),
        };
        bench.perform(out);
        bench
    }

    /// As [`Self::new`], run until every key is proven.
    pub fn proven(config: &str) -> Self {
        let mut bench = Self::new(config);
        bench.run(3 * MINUTE);
        assert!(bench.keys.values().all(|key| key.state.as_str() == "active"), "{:?}", bench.states());
        bench.cloud.asked.clear();
        bench
    }

    /// A crash and a start a second later: what was not stored is gone.
    pub fn restart(&mut self) {
        self.coming.clear();
        self.mono += 1000;
        let mut out = Effects::default();
        self.watch = Watch::new(Arc::clone(&self.config), self.disk.restored(), Start::default(), self.now(), &mut out);
        self.perform(out);
    }

    pub fn now(&self) -> Now {
        now_at(self.mono)
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> u64 {
        (self.mono - START) / 1000
    }

    /// Lets so many seconds pass.
    pub fn run(&mut self, seconds: u64) {
        let end = self.mono + seconds * 1000;
        self.turn(vec![Event::Wake]);
        loop {
            let due = self.watch.next_deadline(self.now()).map(|at| at.0.max(self.mono + 1));
            let coming = self.coming.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = [due, coming].into_iter().flatten().min().filter(|at| *at <= end) else { break };
            self.mono = self.mono.max(next);
            let mut events = Vec::new();
            while let Some(entry) = self.coming.first_entry().filter(|entry| entry.key().0 <= self.mono) {
                events.push(entry.remove());
            }
            if events.is_empty() {
                events.push(Event::Wake);
            }
            self.turn(events);
        }
        self.mono = end;
    }

    /// Lets time pass until this is so; fails after so many seconds.
    pub fn until(&mut self, seconds: u64, what: &str, so: impl Fn(&Self) -> bool) -> u64 {
        let from = self.elapsed();
        while !so(self) {
            assert!(self.elapsed() - from < seconds, "{what}: not within {seconds} s; {:?}", self.states());
            self.run(1);
        }
        self.elapsed() - from
    }

    pub fn ask(&mut self, action: Action) -> Answered {
        let operation = Box::new(Operation { actor: "op".to_owned(), action });
        let before = self.replies.len();
        self.turn(vec![Event::Operator { ticket: Ticket(1), operation }]);
        self.run(40);
        self.replies.get(before).unwrap_or_else(|| panic!("no answer")).clone()
    }

    fn turn(&mut self, events: Vec<Event>) {
        let now = self.now();
        let mut out = Effects::default();
        for event in events {
            self.watch.handle(now, event, &mut out);
        }
        self.watch.seal(now, &mut out);
        assert!(out.bugs.is_empty(), "{:?}", out.bugs);
        self.perform(out);
    }

    fn later(&mut self, wait: u64, event: Event) {
        self.events += 1;
        self.coming.insert((self.mono + wait, self.events), event);
    }

    fn perform(&mut self, out: Effects) {
        let now = self.now();
        if let Some(commit) = out.commit {
            let result = Ok(self.disk.commit(&commit));
            self.records.extend(commit.records.iter().cloned());
            self.later(5, Event::Stored { batch: commit.batch, result });
        }
        for change in out.publish {
            match change {
                Change::Key(view) => drop(self.keys.insert(view.id.clone(), view)),
                Change::KeyGone(id) => drop(self.keys.remove(&id)),
                Change::Workspace(view) => {
                    if view.access != Access::Open {
                        self.lowered.insert((view.workspace.to_string(), view.access));
                    }
                    self.workspaces.insert(view.workspace.clone(), view);
                }
                Change::Provider(view) => drop(self.providers.insert(view.provider.clone(), view)),
                Change::Daemon(_) | Change::Fresh(_) => {}
            }
        }
        for order in out.probes {
            let (subject, attempt) = (order.subject.clone(), order.attempt);
            let (evidence, took) = self.cloud.round(order, now);
            self.later(took, Event::Probed { subject, attempt, evidence: Box::new(evidence) });
        }
        for send in out.sends {
            let id = send.notice.id.clone();
            self.notices.push(send.notice);
            self.later(10, Event::Sent { receiver: send.receiver, id, delivery: Delivery::Delivered });
        }
        self.counts.extend(out.counts);
        self.replies.extend(out.replies.into_iter().map(|(_, answer)| answer));
    }

    pub fn key(&self, id: &str) -> &KeyView {
        self.keys.get(&KeyId::new(id).unwrap()).unwrap_or_else(|| panic!("no key {id}"))
    }

    pub fn state(&self, id: &str) -> &'static str {
        self.key(id).state.as_str()
    }

    pub fn access(&self, workspace: &str) -> Access {
        self.workspaces.get(&WorkspaceId::new(workspace).unwrap()).unwrap_or_else(|| panic!("no workspace {workspace}")).access
    }

    pub fn states(&self) -> Vec<(String, &'static str, Option<FailureKind>)> {
        self.keys.values().map(|key| (key.id.to_string(), key.state.as_str(), key.failure_kind)).collect()
    }

    pub fn told(&self, event: EventType) -> Vec<&Notice> {
        self.notices.iter().map(|notice| &**notice).filter(|notice| notice.event == event).collect()
    }

    pub fn recorded(&self, event: EventType) -> Vec<&Record> {
        self.records.iter().filter(|record| record.event == event).collect()
    }

    /// Notices that must not come for doubt alone: anything of a workspace, or a revocation.
    pub fn assert_nothing_lowered(&self) {
        assert!(self.lowered.is_empty(), "{:?}", self.lowered);
        for event in [EventType::WorkspaceLocked, EventType::WorkspaceReadOnly, EventType::KeyRevoked] {
            assert_eq!(self.told(event), Vec::<&Notice>::new());
        }
    }
}

fn now_at(mono: u64) -> Now {
    let since = i64::try_from(mono - START).unwrap();
    Now { mono: Mono(mono), wall: Wall(1_795_600_000_000 + since) }
}

/// A key of a customer's vault.
pub fn vault_key(number: u32) -> String {
    format!("https://acme-kv.vault.azure.net/keys/k{number}")
}

/// The control key that [`azure`] configures.
pub fn vault_control() -> String {
    "https://watchdog-kv.vault.azure.net/keys/control".to_owned()
}

/// As [`aws`] with one Azure provider and so many keys.
pub fn azure(count: u32) -> String {
    let mut text = format!(
        "[providers.azure]\nkind = \"azure\"\ncalls_per_second = 50\ncontrol_key = \"{}\"\n\
         [receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:1/hook\"\nsecret = \"env:HOOK\"\n\
         [[routes]]\nreceivers = [\"hook\"]\nseverity = \"info\"\n",
        vault_control()
    );
    for number in 1..=count {
        let key = vault_key(number);
        text.push_str(&format!("[[keys]]\nid = \"k{number}\"\nprovider = \"azure\"\nkey = \"{key}\"\nworkspaces = [\"w{number}\"]\n"));
    }
    text
}
