//! inside
//! The whole core as one value: events in, effects out. It only routes: each stage owns its state.
//! It must never await, read a clock or hold a lock; what must wait for the disk is kept in the ledger.

mod cell;
mod control;
mod credentials;
mod drills;
mod hearing;
mod judging;
mod ledger;
mod levers;
mod notices;
mod operators;
mod probing;
mod push;
mod registering;
mod reload;
mod restore;
mod seen;
mod sending;
mod tell;
mod versions;
mod views;
mod workspaces;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::config::Config;
use crate::config::check::Registered;
use crate::journal::{Batch, Commit, Committed, Order, StoreFault};
use crate::key::{KeyId, LeverId, ProviderId, ReceiverId, WorkspaceId};
use crate::lever::{LeverOrder, Levers, Outcome};
use crate::lockout::{Brake, KeyName};
use crate::notify::body::Pushed;
use crate::notify::outbox::{Counts, Outbox, SendOrder};
use crate::notify::{Delivery, NoticeId};
use crate::operate::{Answered, Operation};
use crate::probe::{Evidence, Plan};
use crate::schedule::KeyIx;
use crate::schedule::lanes::Lanes;
use crate::snapshot::{Change, ProviderView};
use crate::time::{Mono, Now, Span, Wall};
use crate::vault::wraps::KeyRole;
use crate::words::{FailureKind, Leg, LegOutcome};

use cell::KeyCell;
use control::Control;
use ledger::Ledger;
use workspaces::Workspace;

pub use control::testimony;
pub use hearing::SourceState;
pub use restore::Start;

/// A waiting caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// What a probe is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    Key(KeyIx),
    /// The provider's control key.
    Control(ProviderId),
}

/// One attempt to probe; a late answer to an older attempt is nobody's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Attempt(pub u64);

#[derive(Debug)]
pub enum Event {
    Wake,
    Probed {
        subject: Subject,
        attempt: Attempt,
        evidence: Box<Evidence>,
    },
    /// Something outside happened to this key: look now. Never proof.
    Hint {
        key: KeyId,
        source: String,
    },
    Operator {
        ticket: Ticket,
        operation: Box<Operation>,
    },
    Stored {
        batch: Batch,
        result: Result<Committed, StoreFault>,
    },
    Sent {
        receiver: ReceiverId,
        id: NoticeId,
        delivery: Delivery,
    },
    /// A lever has moved, or has not.
    Pulled {
        lever: LeverId,
        workspace: WorkspaceId,
        attempt: u64,
        outcome: Outcome,
    },
}

/// A probe to run.
#[derive(Debug)]
pub struct ProbeOrder {
    pub subject: Subject,
    pub provider: ProviderId,
    pub attempt: Attempt,
    pub plan: Plan,
}

/// Something for the metrics that the snapshot does not tell.
#[derive(Clone, PartialEq, Debug)]
pub enum Count {
    Leg {
        provider: ProviderId,
        leg: Leg,
        outcome: LegOutcome,
        kind: Option<FailureKind>,
        took: Option<Span>,
    },
    Missed {
        provider: ProviderId,
        count: u64,
    },
    /// `stage` of `lockout_latency_seconds`, from the last good look or the provider's own time of the change.
    Latency {
        stage: &'static str,
        start: &'static str,
        span: Span,
    },
    Notices {
        receiver: ReceiverId,
        counts: Counts,
    },
    StoreFailure,
}

/// A branch that cannot be: counted and alarmed, never a panic and never silence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bug(pub &'static str);

/// What the world has to do after a turn. The order of lock, gate and notice is already in it.
#[derive(Debug, Default)]
pub struct Effects {
    pub publish: Vec<Change>,
    pub commit: Option<Arc<Commit>>,
    /// Locks that are shown before they are on disk: into the spool at once.
    pub spool: Vec<Order>,
    /// Every lock of the spool is on disk now.
    pub spool_clear: bool,
    pub probes: Vec<ProbeOrder>,
    /// After what is published: the gate is first.
    pub levers: Vec<LeverOrder>,
    pub sends: Vec<SendOrder>,
    /// For those who follow the stream: after `publish`, in this order.
    pub events: Vec<Pushed>,
    /// Highest journal number that is on disk, when it has grown.
    pub head: Option<u64>,
    pub replies: Vec<(Ticket, Answered)>,
    pub counts: Vec<Count>,
    pub bugs: Vec<Bug>,
}

/// The core.
#[derive(Debug)]
pub struct Watch {
    config: Arc<Config>,
    cells: BTreeMap<KeyIx, KeyCell>,
    by_id: BTreeMap<KeyId, KeyIx>,
    by_name: BTreeMap<KeyName, KeyIx>,
    next_ix: u32,
    lanes: Lanes,
    controls: BTreeMap<ProviderId, Control>,
    brakes: BTreeMap<ProviderId, Brake>,
    workspaces: BTreeMap<WorkspaceId, Workspace>,
    /// Deadlines of probes under way.
    in_flight: BTreeSet<(Mono, Subject, Attempt)>,
    attempts: u64,
    /// Ends of the windows in which a key must have evidence or a recorded miss.
    windows: BTreeSet<(Mono, KeyIx)>,
    ledger: Ledger,
    outbox: Outbox,
    levers: Levers,
    drills: BTreeMap<String, drills::Drill>,
    /// Slots of the reports that were served last, by name.
    reports: BTreeMap<String, String>,
    unacked: BTreeMap<NoticeId, notices::Unacked>,
    /// Ends of overrides.
    overrides: BTreeSet<(Wall, WorkspaceId)>,
    /// Keys that came in by the API, as they were written.
    registered: Registered,
    credentials_told: BTreeMap<ProviderId, credentials::Told>,
    bugs: u64,
    would_lock: u64,
    store_failures: u64,
    started_at: Wall,
    notice_count: u64,
    /// When and how a configuration could not be taken.
    config_flagged: Option<String>,
    last_now: Option<Now>,
    daemon_dirty: bool,
    /// Keys of the vault that were told to fail.
    vault_failing: BTreeSet<KeyRole>,
    /// Providers as last shown.
    shown: BTreeMap<ProviderId, ProviderView>,
    /// Good looks of each identity on each account, newest.
    vouchers: BTreeMap<(ProviderId, Arc<str>, Arc<str>), Mono>,
    counts: VecDeque<Count>,
    hearing: hearing::Hearing,
}

/// Probes under way at most, all lanes together.
const IN_FLIGHT_MAX: usize = 2000;

impl Watch {
    /// Takes one event. Up to a few hundred of them make a turn, which [`Watch::seal`] ends.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Effects) {
        self.mind_the_clock(now);
        match event {
            Event::Wake => {}
            Event::Probed { subject, attempt, evidence } => self.probed(now, subject, attempt, *evidence, out),
            Event::Hint { key, source } => self.hinted(now, &key, &source),
            Event::Operator { ticket, operation } => self.operate(now, ticket, *operation, out),
            Event::Stored { batch, result } => self.stored(now, batch, result, out),
            Event::Sent { receiver, id, delivery } => self.sent(now, &receiver, &id, delivery),
            Event::Pulled { lever, workspace, attempt, outcome } => self.pulled(now, &(workspace, lever), attempt, outcome, out),
        }
    }

    /// Ends a turn: what is due is started, what was decided is written, what may be shown is shown.
    pub fn seal(&mut self, now: Now, out: &mut Effects) {
        self.expire_probes(now, out);
        self.expire_windows(now);
        self.expire_overrides(now);
        self.release_brakes_in_time(now);
        self.count_down_credentials(now);
        self.end_drills(now);
        self.settle_names(now);
        self.start_controls(now, out);
        self.start_probes(now, out);
        self.escalate(now);
        self.start_sends(now, out);
        self.ledger_turn(now, out);
        self.start_levers(now, out);
        self.show_changed(now, out);
        out.counts.extend(self.counts.drain(..));
        self.bugs = self.bugs.saturating_add(u64::try_from(out.bugs.len()).unwrap_or(0));
        out.publish.push(Change::Fresh(now.mono));
    }

    /// When the next [`Event::Wake`] has something to do.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Mono> {
        let room = self.in_flight.len() < IN_FLIGHT_MAX;
        let lanes = self.lanes.next().filter(|_| room);
        let overrides = self.overrides.first().map(|(until, _)| now.mono.plus(until.since(now.wall)));
        let brakes = self.next_brake_release(now);
        [
            lanes,
            overrides,
            brakes,
            self.in_flight.first().map(|(at, ..)| *at),
            self.windows.first().map(|(at, _)| *at),
            self.controls.values().filter_map(Control::next).min(),
            self.next_credentials_mark(now),
            self.ledger.next_deadline(),
            self.levers.next_deadline(),
            self.next_drill_end(),
            self.hearing.next(now),
            self.outbox.next_deadline(now),
            self.next_escalation(now),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether the loop's watch over itself is well: no key lacks evidence or a recorded miss.
    #[must_use]
    pub fn overdue(&self, now: Now) -> usize {
        self.windows.range(..(now.mono.minus(Span::from_secs(5)), KeyIx(0))).count()
    }

    /// Keys that are scheduled, for the metrics.
    #[must_use]
    pub fn scheduled(&self) -> usize {
        self.windows.len()
    }

    /// Locks shown but not on disk.
    #[must_use]
    pub fn undurable(&self) -> usize {
        self.ledger.undurable()
    }

    fn mind_the_clock(&mut self, now: Now) {
        if let Some(last) = self.last_now {
            let (wall, mono) = (now.wall.0.saturating_sub(last.wall.0), i64::try_from(now.mono.since(last.mono).0).unwrap_or(i64::MAX));
            if wall.abs_diff(mono) > 2000 {
                self.record_clock_step(now, wall.saturating_sub(mono));
            }
        }
        self.last_now = Some(now);
    }

    fn policy_name(cell: &KeyCell) -> String {
        cell.key.policy.to_string()
    }
}

#[cfg(test)]
mod tests;
