//! inside
//! What waits for the disk: one commit under way, one being gathered; locks that may not wait longer
//! than the patience; unlocks and notices that wait without limit. Order: journal, gate, notice.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::journal::{Batch, Commit, Committed, Order, OrderSlot, OrderWrite, StoreFault};
use crate::key::WorkspaceId;
use crate::lever::{Entry, Slot};
use crate::notify::{Notice, OutboxRow};
use crate::operate::{Answered, Refusal, RefusalSlug};
use crate::schedule::KeyIx;
use crate::time::{Mono, Now, Span};
use crate::watch::{Count, Effects, Ticket, Watch};
use crate::words::Sequence;

/// How long a lock may wait for the disk before it is shown all the same.
pub const PATIENCE: Span = Span(250);
/// First and longest pause between two tries of a failed commit.
const RETRY: (Span, Span) = (Span(100), Span::from_secs(5));
/// An operator's unlock that could not be written for so long is answered with 503; it stays asked.
const ANSWER_BY: Span = Span::from_secs(20);

/// What becomes true when its commit is on disk.
#[derive(Debug, Default)]
pub struct Held {
    pub commit: Commit,
    /// Lowered workspaces, not on disk.
    pub lowered: BTreeSet<WorkspaceId>,
    /// Those of them that are not shown yet, and since when the first of them waits. The others are
    /// shown as not durable, and their orders lie in the spool.
    pub unshown: BTreeSet<WorkspaceId>,
    pub lowered_at: Option<Mono>,
    /// How many writes of the commit were looked through for the spool.
    pub spooled: usize,
    /// Workspaces that open when this commit is on disk (overrides).
    pub raised: BTreeSet<WorkspaceId>,
    /// Keys whose view waits for this commit.
    pub keys: BTreeSet<KeyIx>,
    pub lifts: Vec<(OrderSlot, Sequence)>,
    pub unlocked: Vec<KeyIx>,
    /// Levers as they are in it.
    pub levers: Vec<(Slot, Entry)>,
    /// Workspaces that open with it, all levers undone.
    pub reserved: BTreeSet<WorkspaceId>,
    /// Drills that begin or end with it.
    pub drills: Vec<String>,
    /// Answers, and whether they may go out with an impatient lock.
    pub replies: Vec<(Ticket, Reply, bool)>,
    pub asked_at: Option<Mono>,
    /// What followers of keys hear when it is on disk, by the place of its record.
    pub told: Vec<(usize, Arc<Notice>)>,
    /// Locks in it, by when their key last worked: for the latency until they are shown.
    pub applies: Vec<(Mono, KeyIx)>,
}

/// An answer that is made when it goes out, so that it shows the state of that moment.
#[derive(Clone, Debug)]
pub enum Reply {
    Workspace(WorkspaceId),
    Drill(String),
    Done(Answered),
}

#[derive(Debug, Default)]
pub struct Ledger {
    batches: u64,
    pub open: Held,
    flight: Option<Flight>,
}

#[derive(Debug)]
struct Flight {
    held: Held,
    commit: Arc<Commit>,
    retry_at: Option<Mono>,
    pause: Span,
}

impl Ledger {
    fn holds(&self) -> impl Iterator<Item = &Held> {
        self.flight.iter().map(|f| &f.held).chain(std::iter::once(&self.open))
    }

    /// Whether this workspace's lowered view waits for the disk and patience has not run out.
    pub fn withholds(&self, workspace: &WorkspaceId) -> bool {
        self.holds().any(|held| held.unshown.contains(workspace))
    }

    /// Whether an override on its way to the disk may not act yet.
    pub fn withholds_raise(&self, workspace: &WorkspaceId) -> bool {
        self.holds().any(|held| held.raised.contains(workspace))
    }

    /// An opening after its levers waits for the disk, and so does its number.
    pub fn reserves(&self, workspace: &WorkspaceId) -> bool {
        self.holds().any(|held| held.reserved.contains(workspace))
    }

    pub fn is_durable(&self, workspace: &WorkspaceId) -> bool {
        !self.holds().any(|held| held.lowered.contains(workspace))
    }

    /// A refused look took an unlock back that is on its way.
    pub fn forget_unlock(&mut self, key: KeyIx) {
        self.open.unlocked.retain(|ix| *ix != key);
        if let Some(flight) = &mut self.flight {
            flight.held.unlocked.retain(|ix| *ix != key);
        }
    }

    pub fn withholds_key(&self, key: KeyIx) -> bool {
        self.holds().any(|held| held.keys.contains(&key))
    }

    pub fn undurable(&self) -> usize {
        self.holds().map(|held| held.lowered.len()).sum()
    }

    /// Whether the store refused the commit under way when it was last asked.
    pub fn refused(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.retry_at.is_some() || flight.pause > RETRY.0)
    }

    pub fn next_deadline(&self) -> Option<Mono> {
        let patience = self.holds().filter_map(|held| held.lowered_at).map(|at| at.plus(PATIENCE)).min();
        let answers =
            self.holds().filter(|held| !held.replies.is_empty()).filter_map(|held| held.asked_at).map(|at| at.plus(ANSWER_BY)).min();
        let retry = self.flight.as_ref().and_then(|f| f.retry_at);
        [patience, answers, retry].into_iter().flatten().min()
    }
}

impl Watch {
    /// Puts an order on its way to the disk; the workspace's view waits for it or for patience.
    pub(super) fn write_lower(&mut self, now: Now, order: Order) {
        self.lower_when_stored(now, &order.workspace);
        self.ledger.open.commit.orders.push(OrderWrite::Lower(order));
    }

    /// The workspace's lowered view waits for the disk or for patience.
    pub(super) fn lower_when_stored(&mut self, now: Now, workspace: &WorkspaceId) {
        let open = &mut self.ledger.open;
        open.lowered.insert(workspace.clone());
        open.unshown.insert(workspace.clone());
        open.lowered_at.get_or_insert(now.mono);
    }

    /// What is lowered in this turn may not wait at all: it goes to the spool and is shown.
    pub(super) fn lower_at_once(&mut self, now: Now) {
        if let Some(at) = &mut self.ledger.open.lowered_at {
            *at = now.mono.minus(PATIENCE);
        }
    }

    /// Puts a lift on its way; the order acts until the disk has it.
    pub(super) fn write_lift(&mut self, order: &Order) {
        let slot = order.slot();
        self.ledger.open.commit.orders.push(OrderWrite::Lift { slot: slot.clone(), sequence: order.sequence });
        self.ledger.open.lifts.push((slot, order.sequence));
    }

    /// The answer goes out when everything decided so far is on disk.
    pub(super) fn reply_when_stored(&mut self, now: Now, ticket: Ticket, reply: Reply, may_hurry: bool) {
        self.ledger.open.asked_at.get_or_insert(now.mono);
        self.ledger.open.replies.push((ticket, reply, may_hurry));
    }

    pub(super) fn write_rows(&mut self, rows: Vec<OutboxRow>) {
        self.ledger.open.commit.outbox.extend(rows);
    }

    /// Part of every turn: starts a commit if none is under way, and minds patience and retries.
    pub(super) fn ledger_turn(&mut self, now: Now, out: &mut Effects) {
        self.lose_patience(now, out);
        self.answer_late(now, out);
        if let Some(flight) = &mut self.ledger.flight {
            if flight.retry_at.is_some_and(|at| at <= now.mono) {
                flight.retry_at = None;
                out.commit = Some(Arc::clone(&flight.commit));
            }
            return;
        }
        if self.ledger.open.commit.is_empty() {
            let held = std::mem::take(&mut self.ledger.open);
            self.settle(now, held, &Commit::default(), &Committed::default(), out);
            return;
        }
        let mut held = std::mem::take(&mut self.ledger.open);
        self.ledger.batches = self.ledger.batches.saturating_add(1);
        held.commit.batch = Batch(self.ledger.batches);
        let commit = Arc::new(std::mem::take(&mut held.commit));
        out.commit = Some(Arc::clone(&commit));
        self.ledger.flight = Some(Flight { held, commit, retry_at: None, pause: RETRY.0 });
    }

    /// The store's answer to a commit.
    pub(super) fn stored(&mut self, now: Now, batch: Batch, result: Result<Committed, StoreFault>, out: &mut Effects) {
        let Some(mut flight) = self.ledger.flight.take_if(|flight| flight.commit.batch == batch) else {
            out.bugs.push(super::Bug("answer to a commit that is not under way"));
            return;
        };
        match result {
            Ok(committed) => {
                let rows = flight.commit.outbox.clone();
                // Queues grow here; a receiver that is away for long must not show an old depth.
                self.daemon_dirty |= !rows.is_empty();
                self.outbox.stored(rows, now);
                self.settle(now, flight.held, &flight.commit, &committed, out);
                out.spool_clear = self.ledger.undurable() == 0;
            }
            Err(_) => {
                self.store_failures = self.store_failures.saturating_add(1);
                self.daemon_dirty = true;
                self.counts.push_back(Count::StoreFailure);
                flight.retry_at = Some(now.mono.plus(flight.pause));
                flight.pause = flight.pause.times(2).min(RETRY.1);
                self.ledger.flight = Some(flight);
                self.hurry(now, out);
            }
        }
    }

    /// Everything of this commit is on disk: show it, open what was lifted, answer.
    fn settle(&mut self, now: Now, held: Held, commit: &Commit, committed: &Committed, out: &mut Effects) {
        self.count_applied(now, &held.applies);
        let before = out.events.len();
        let unlocked = held.unlocked.clone();
        for (slot, sequence) in held.lifts {
            let refused = committed.refused.contains(&slot);
            self.lifted(now, &slot, sequence, refused, out);
        }
        for key in held.unlocked {
            self.unlocked(now, key);
        }
        for (slot, entry) in held.levers {
            self.lever_stored(now, &slot, &entry);
        }
        for id in held.drills {
            self.drill_stored(now, &id, out);
        }
        for workspace in held.reserved {
            self.reserved(now, &workspace, out);
        }
        for workspace in held.lowered.iter().chain(&held.raised) {
            self.show_workspace(now, workspace, out);
        }
        for key in held.keys.into_iter().chain(unlocked) {
            self.show_key_later(now, key, out);
        }
        super::push::number(before, &held.told, commit, committed, out);
        for (ticket, reply, _) in held.replies {
            let answer = self.answer(now, reply);
            out.replies.push((ticket, answer));
        }
    }

    fn count_applied(&mut self, now: Now, goods: &[(Mono, KeyIx)]) {
        for (_, key) in goods {
            self.applied_at(now, *key);
        }
        let spans = goods.iter().map(|(good, _)| Count::Latency { stage: "apply", start: "last_good", span: now.mono.since(*good) });
        self.counts.extend(spans);
    }

    pub(super) fn answer(&self, now: Now, reply: Reply) -> Answered {
        match reply {
            Reply::Done(answered) => answered,
            Reply::Drill(id) => match self.drill_view(&id) {
                Some(view) => Ok(crate::operate::Reply::Drill(Arc::new(view))),
                None => Err(Refusal { slug: RefusalSlug::UnknownDrill, detail: format!("unknown drill `{id}`") }),
            },
            Reply::Workspace(id) => match self.workspace_view(now, &id) {
                Some(view) => Ok(crate::operate::Reply::Workspace(Arc::new(view))),
                None => Err(Refusal { slug: RefusalSlug::UnknownWorkspace, detail: format!("unknown workspace `{id}`") }),
            },
        }
    }

    /// A commit failed: locks in it need not wait for the rest of the patience.
    fn hurry(&mut self, now: Now, out: &mut Effects) {
        if let Some(flight) = &mut self.ledger.flight
            && flight.held.lowered_at.is_some()
        {
            flight.held.lowered_at = Some(now.mono.minus(PATIENCE));
        }
        self.lose_patience(now, out);
    }

    /// Shows locks whose patience ran out, and has them spooled.
    fn lose_patience(&mut self, now: Now, out: &mut Effects) {
        if self.ledger.holds().all(|held| held.lowered_at.is_none_or(|at| now.mono.since(at) < PATIENCE)) {
            return;
        }
        let mut shown: Vec<WorkspaceId> = Vec::new();
        let mut keys: Vec<KeyIx> = Vec::new();
        let mut applied: Vec<(Mono, KeyIx)> = Vec::new();
        let mut replies = Vec::new();
        let flight_orders = self.ledger.flight.as_ref().map(|f| f.commit.orders.clone()).unwrap_or_default();
        let holds = self
            .ledger
            .flight
            .iter_mut()
            .map(|f| (&mut f.held, Some(&flight_orders)))
            .chain(std::iter::once((&mut self.ledger.open, None)));
        for (held, orders) in holds {
            if held.lowered_at.is_none_or(|at| now.mono.since(at) < PATIENCE) {
                continue;
            }
            // Locks that come after these, while the disk is still silent, have their own patience.
            held.lowered_at = None;
            let orders = orders.unwrap_or(&held.commit.orders);
            out.spool.extend(orders.iter().skip(held.spooled).filter_map(|write| match write {
                OrderWrite::Lower(order) => Some(order.clone()),
                OrderWrite::Lift { .. } => None,
            }));
            held.spooled = orders.len();
            applied.append(&mut held.applies);
            shown.extend(std::mem::take(&mut held.unshown));
            keys.extend(std::mem::take(&mut held.keys));
            let (hurried, waiting) = std::mem::take(&mut held.replies).into_iter().partition(|(_, _, may_hurry)| *may_hurry);
            held.replies = waiting;
            replies.extend::<Vec<_>>(hurried);
        }
        if !out.spool.is_empty() {
            out.spool_clear = false;
        }
        self.count_applied(now, &applied);
        for workspace in shown {
            self.show_workspace(now, &workspace, out);
        }
        for key in keys {
            self.show_key(now, key, out);
        }
        for (ticket, reply, _) in replies {
            let answer = self.answer(now, reply);
            out.replies.push((ticket, answer));
        }
    }

    /// Callers are not kept for ever by a dead store; what they asked stays asked.
    fn answer_late(&mut self, now: Now, out: &mut Effects) {
        let holds = self.ledger.flight.iter_mut().map(|f| &mut f.held).chain(std::iter::once(&mut self.ledger.open));
        for held in holds {
            if held.replies.is_empty() || held.asked_at.is_none_or(|at| now.mono.since(at) < ANSWER_BY) {
                continue;
            }
            for (ticket, ..) in std::mem::take(&mut held.replies) {
                let detail = "the store does not take it yet; it is carried out when the store answers".to_owned();
                out.replies.push((ticket, Err(Refusal { slug: RefusalSlug::StoreUnavailable, detail })));
            }
        }
    }
}
