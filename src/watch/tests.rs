//! The whole core at work on a small world: a cloud that answers at once, a disk that can be silent,
//! a clock that is turned by hand.
#![allow(dead_code, reason = "the world is shared with the simulation, which uses more of it")]

use super::*;
use crate::journal::{Order, Restored};
use crate::operate::{Action, RefusalSlug};
use crate::probe::{Next, ProbeRun};
use crate::snapshot::{KeyView, WorkspaceView};
use crate::words::{Access, EventType, HeldBy, StateWord};

#[path = "../../tests/sim/cloud.rs"]
mod cloud;
#[path = "../../tests/sim/dice.rs"]
mod dice;
#[path = "../../tests/sim/disk.rs"]
mod disk;
#[path = "../../tests/sim/plan.rs"]
mod plan;

mod hearing;
mod knowing;
mod locking;
mod registering;
mod pulling;
mod storing;
mod telling;

use cloud::{Cloud, Status};
use disk::Disk;

const HEAD: &str = r#"
[providers.p]
kind = "aws"
region = "us-east-2"
control_key = "arn:aws:kms:us-east-2:111122223333:key/control"
our_accounts = ["111122223333"]
calls_per_second = 1000
[receivers.mail]
kind = "email"
smtp = "smtp://127.0.0.1:2525"
from = "a@example.com"
to = ["b@example.com"]
[[routes]]
receivers = ["mail"]
severity = "info"
"#;

/// One key of an account of its own.
fn key(id: &str, workspaces: &str, policy: &str) -> String {
    let reference = reference(id);
    format!("[[keys]]\nid = \"{id}\"\nprovider = \"p\"\nkey = \"{reference}\"\nworkspaces = [{workspaces}]\npolicy = \"{policy}\"\n")
}

fn reference(id: &str) -> String {
    let account = 444_455_550_000_u64 + id.bytes().map(u64::from).sum::<u64>();
    format!("arn:aws:kms:us-east-2:{account}:key/{id}")
}

/// How the store answers.
#[derive(Clone, Copy, PartialEq)]
enum Store {
    Well,
    Fails,
    Silent,
}

struct Bench {
    watch: Watch,
    config: Arc<Config>,
    now: Now,
    cloud: Cloud,
    disk: Disk,
    dice: dice::Dice,
    store: Store,
    waiting: Option<Arc<Commit>>,
    run: u64,
    workspaces: BTreeMap<String, Arc<WorkspaceView>>,
    keys: BTreeMap<String, Arc<KeyView>>,
    notices: Vec<Arc<crate::notify::Notice>>,
    /// What went to whom, taken or not.
    sent: Vec<(String, Arc<crate::notify::Notice>)>,
    /// Receivers that do not take what they get.
    refuses: BTreeMap<String, Delivery>,
    replies: Vec<(Ticket, Answered)>,
    probes: Vec<(Subject, Attempt)>,
    engaged: bool,
    control_hangs: bool,
    latencies: Vec<(&'static str, &'static str, Span)>,
    levers_fail: bool,
    /// Levers that are pulled, as `lever/workspace`.
    pulled: BTreeSet<String>,
}

impl Bench {
    fn new(rest: &str) -> Self {
        let config = plan::parsed(&format!("{HEAD}{rest}"));
        let now = Now { mono: Mono(1 << 41), wall: Wall(1_790_000_000_000) };
        let mut out = Effects::default();
        let watch = Watch::new(Arc::clone(&config), Restored::default(), Start::default(), now, &mut out);
        let mut bench = Self {
            watch,
            config,
            now,
            cloud: Cloud::default(),
            disk: Disk::default(),
            dice: dice::Dice::new(1),
            store: Store::Well,
            waiting: None,
            run: 0,
            workspaces: BTreeMap::new(),
            keys: BTreeMap::new(),
            notices: Vec::new(),
            sent: Vec::new(),
            refuses: BTreeMap::new(),
            replies: Vec::new(),
            probes: Vec::new(),
            engaged: false,
            control_hangs: false,
            latencies: Vec::new(),
            levers_fail: false,
            pulled: BTreeSet::new(),
        };
        bench.show(out.publish);
        bench.turn(vec![Event::Wake]);
        bench
    }

    /// A bench whose keys are proven.
    fn proven(rest: &str) -> Self {
        let mut bench = Self::new(rest);
        bench.run(5);
        bench
    }

    fn turn(&mut self, mut events: Vec<Event>) {
        while !events.is_empty() {
            let mut out = Effects::default();
            for event in std::mem::take(&mut events) {
                self.watch.handle(self.now, event, &mut out);
            }
            self.watch.seal(self.now, &mut out);
            assert_eq!(out.bugs, []);
            assert_eq!(self.watch.overdue(self.now), 0);
            events = self.perform(out);
        }
    }

    fn perform(&mut self, out: Effects) -> Vec<Event> {
        let mut events = Vec::new();
        self.disk.spool.extend(out.spool);
        if out.spool_clear {
            self.disk.spool.clear();
        }
        if let Some(commit) = out.commit {
            events.extend(self.commit(commit));
        }
        self.show(out.publish);
        for order in out.probes {
            self.probes.push((order.subject.clone(), order.attempt));
            events.extend(self.probe(order));
        }
        for order in out.levers {
            let name = format!("{}/{}", order.lever, order.workspace);
            let outcome = if self.levers_fail {
                crate::lever::Outcome::Failed { reason: "HTTP 500".to_owned(), after: None, memory: None }
            } else {
                match order.act {
                    crate::words::LeverAct::Pull => self.pulled.insert(name),
                    crate::words::LeverAct::Undo => self.pulled.remove(&name),
                };
                crate::lever::Outcome::Done { memory: None, left: Vec::new() }
            };
            events.push(Event::Pulled { lever: order.lever, workspace: order.workspace, attempt: order.attempt, outcome });
        }
        for send in out.sends {
            let delivery = self.refuses.get(send.receiver.as_str()).cloned().unwrap_or(Delivery::Delivered);
            if delivery == Delivery::Delivered {
                self.notices.push(Arc::clone(&send.notice));
            }
            self.sent.push((send.receiver.to_string(), Arc::clone(&send.notice)));
            events.push(Event::Sent { receiver: send.receiver, id: send.notice.id.clone(), delivery });
        }
        self.replies.extend(out.replies);
        self.latencies.extend(out.counts.into_iter().filter_map(|count| match count {
            Count::Latency { stage, start, span } => Some((stage, start, span)),
            _ => None,
        }));
        events
    }

    fn commit(&mut self, commit: Arc<Commit>) -> Option<Event> {
        let batch = commit.batch;
        match self.store {
            Store::Well => Some(Event::Stored { batch, result: Ok(self.disk.commit(self.run, &commit)) }),
            Store::Fails => Some(Event::Stored { batch, result: Err(StoreFault::Unavailable("no space".to_owned())) }),
            Store::Silent => {
                self.waiting = Some(commit);
                None
            }
        }
    }

    /// The store that was silent answers at last.
    fn store_answers(&mut self) {
        self.store = Store::Well;
        let events = self.waiting.take().and_then(|commit| self.commit(commit)).into_iter().collect();
        self.turn(events);
    }

    fn show(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Workspace(view) => {
                    self.workspaces.insert(view.workspace.to_string(), view);
                }
                Change::Key(view) => {
                    self.keys.insert(view.id.to_string(), view);
                }
                Change::KeyGone(id) => {
                    self.keys.remove(id.as_str());
                }
                Change::Provider(view) => self.engaged = view.brake_engaged,
                Change::Daemon(_) | Change::Fresh(_) => {}
            }
        }
    }

    fn probe(&mut self, order: ProbeOrder) -> Option<Event> {
        let (provider, reference) = (order.provider.to_string(), order.plan.target.reference.text.to_string());
        if self.control_hangs && matches!(order.subject, Subject::Control(_)) {
            return None;
        }
        let mut run = ProbeRun::new(order.plan.clone(), self.now);
        let mut next = run.next(None, self.now);
        loop {
            match next {
                Next::Call(call) => {
                    let told = self.cloud.call(
                        (&provider, crate::words::ProviderKind::Aws),
                        &reference,
                        &call,
                        order.plan.call_timeout,
                        self.now.mono,
                        &mut self.dice,
                    );
                    next = run.next(Some(told.reply?), self.now);
                }
                Next::Done(mut evidence) => {
                    evidence.identity = Some("us".into());
                    return Some(Event::Probed { subject: order.subject, attempt: order.attempt, evidence });
                }
            }
        }
    }

    /// Lets so many seconds pass.
    fn run(&mut self, secs: u64) {
        let end = self.now.plus(Span::from_secs(secs));
        while let Some(at) = self.watch.next_deadline(self.now).filter(|at| *at <= end.mono) {
            let wait = at.since(self.now.mono).plus(Span(1));
            self.now = self.now.plus(wait);
            self.turn(vec![Event::Wake]);
        }
        if self.now.mono < end.mono {
            self.now = self.now.plus(end.mono.since(self.now.mono));
        }
    }

    fn ask(&mut self, ticket: u64, action: Action) {
        self.turn(vec![Event::Operator { ticket: Ticket(ticket), operation: Box::new(Operation { actor: "op".to_owned(), action }) }]);
    }

    fn lock(&mut self, ticket: u64, workspace: &str) {
        self.ask(ticket, Action::Lock { workspace: WorkspaceId::new(workspace).unwrap(), reason: "r".to_owned() });
    }

    fn unlock(&mut self, ticket: u64, workspace: &str, override_for: Option<Span>) {
        self.ask(ticket, Action::Unlock { workspace: WorkspaceId::new(workspace).unwrap(), reason: "r".to_owned(), override_for });
    }

    fn reload(&mut self, rest: &str) {
        self.config = plan::parsed(&format!("{HEAD}{rest}"));
        let config = Arc::clone(&self.config);
        self.ask(900, Action::Reload { config });
    }

    /// The process dies and a new one starts at once.
    fn restart(&mut self) {
        self.run += 1;
        self.waiting = None;
        self.workspaces.clear();
        self.now = self.now.plus(Span(500));
        let mut out = Effects::default();
        self.watch = Watch::new(Arc::clone(&self.config), self.disk.restored(), Start::default(), self.now, &mut out);
        self.show(out.publish);
    }

    fn truth(&mut self, id: &str) -> &mut cloud::Truth {
        &mut self.cloud.key("p", &reference(id)).truth
    }

    fn deny(&mut self, id: &str, denied: bool) {
        let truth = self.truth(id);
        (truth.wrap_denied, truth.unwrap_denied) = (denied, denied);
    }

    fn access(&self, workspace: &str) -> Access {
        self.workspaces[workspace].access
    }

    fn state(&self, id: &str) -> StateWord {
        self.keys[id].state
    }

    fn refusal(&self, ticket: u64) -> Option<RefusalSlug> {
        let (_, answer) = self.replies.iter().find(|(t, _)| t.0 == ticket).expect("an answer");
        answer.as_ref().err().map(|refusal| refusal.slug)
    }

    fn told(&self, event: EventType) -> usize {
        self.notices.iter().filter(|notice| notice.event == event).count()
    }
}

/// Seconds until a workspace is locked, one by one.
fn until_locked(bench: &mut Bench, workspace: &str, most: u64) -> u64 {
    (0..most)
        .find(|_| {
            bench.run(1);
            bench.access(workspace) == Access::Locked
        })
        .expect("a lock in time")
}
