//! inside
//! The queue between what happened and who is told, one line per receiver, as a value.
//! Decides order, retry, folding and what may be dropped; it sends nothing, stores nothing, and
//! never drops a notice of a lock or revocation. Nothing is sent before its row is on disk, and
//! nothing follows a finished notice before *that* is on disk: a crash repeats one notice at most.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::key::ReceiverId;
use crate::notify::storm::Pace;
use crate::notify::{Delivery, Notice, NoticeId, OutboxRow, OutboxState};
use crate::snapshot::OutboxView;
use crate::time::{Mono, Now, Span, Wall};
use crate::words::Severity;

mod queue;
mod storms;

use queue::Queue;

/// Most rows that wait for one receiver; only notices that may not be dropped stand above it.
pub const MAX_ROWS: usize = 10_000;
/// A sweep goes down to this, so that it is not done for every notice.
pub const LOW_WATER: usize = 9_000;
/// A row that may be dropped is not kept longer.
pub const MAX_AGE: Span = Span::from_days(7);
/// A receiver that has taken nothing for so long is told about.
pub const FAILING_AFTER: Span = Span::from_mins(5);
/// The receiver's own deadline is 30 s; an answer later than this is taken for lost.
pub const ANSWER_WITHIN: Span = Span::from_secs(90);
pub const FIRST_RETRY: Span = Span::from_secs(1);
pub const LAST_RETRY: Span = Span::from_mins(5);
/// A receiver's own wish to be left alone is honoured up to here.
pub const LONGEST_WISH: Span = Span::from_hours(1);
/// After an outage, more waiting rows than this about one matter become one.
pub const RUN: usize = 5;

/// One notice to hand to a receiver now. The answer goes back through [`Outbox::sent`].
#[derive(Clone, PartialEq, Debug)]
pub struct SendOrder {
    pub receiver: ReceiverId,
    pub notice: Arc<Notice>,
    /// 1 for the first attempt.
    pub attempt: u32,
}

/// What `notices_total` counts, by outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub delivered: u64,
    pub failed: u64,
    pub retried: u64,
    pub folded: u64,
    pub dropped: u64,
}

impl Counts {
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// What is to be done now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Due {
    pub orders: Vec<SendOrder>,
    /// To be written with the next commit, and given to [`Outbox::stored`] after it.
    pub rows: Vec<OutboxRow>,
    pub counts: Vec<(ReceiverId, Counts)>,
    /// To be written with the next commit: matters told of in a storm, see [`Outbox::restore_matter`].
    pub matters: Vec<(ReceiverId, String, Option<String>)>,
    /// Receivers that turned out to be failing because no answer came.
    pub failing: Vec<ReceiverId>,
}

/// What an answer led to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Sent {
    /// To be written with the next commit, and given to [`Outbox::stored`] after it.
    pub rows: Vec<OutboxRow>,
    pub counts: Counts,
    /// To be written with the next commit: matters told of in a storm, with its id; `None` = over.
    pub matters: Vec<(String, Option<String>)>,
    /// Said once; again only after the receiver healed.
    pub became_failing: bool,
    pub healed: bool,
}

/// All queues. Bounded: see [`MAX_ROWS`]; above it stands at most one row per key, workspace set
/// or provider.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queues: BTreeMap<ReceiverId, Queue>,
}

impl Outbox {
    #[must_use]
    pub fn new(receivers: impl IntoIterator<Item = ReceiverId>) -> Self {
        let mut outbox = Self::default();
        outbox.set_receivers(receivers);
        outbox
    }

    /// After a reload. Rows of a receiver that is gone stay and are shown; they go if it comes back.
    pub fn set_receivers(&mut self, receivers: impl IntoIterator<Item = ReceiverId>) {
        for queue in self.queues.values_mut() {
            queue.known = false;
        }
        for receiver in receivers {
            self.queues.entry(receiver).or_default().known = true;
        }
        self.queues.retain(|_, queue| queue.known || !queue.is_empty());
    }

    /// How many notices become one, for every receiver; `None` = never. `incidents` are the receivers
    /// that keep an incident per matter.
    pub fn set_pace(&mut self, pace: Option<Pace>, incidents: &[ReceiverId]) {
        for (receiver, queue) in &mut self.queues {
            queue.weather.pace = pace;
            queue.weather.incidents = incidents.contains(receiver);
        }
    }

    /// A matter that was told of in a storm and had not ended when the store was last written.
    pub fn restore_matter(&mut self, receiver: ReceiverId, matter: String, storm: Arc<str>) {
        self.queues.entry(receiver).or_default().weather.restore(matter, storm);
    }

    /// Takes the rows that a store has kept. What was in flight is pending again: whether it arrived
    /// is not known, and a repeat is better than silence.
    pub fn restore(&mut self, rows: Vec<OutboxRow>, now: Now) {
        for row in rows {
            self.queues.entry(row.receiver.clone()).or_default().restore(row, now);
        }
    }

    /// Numbers one row per receiver, to be committed with the event itself. Unknown receivers and
    /// repeats in the list are left out. The rows may go only after [`Self::stored`].
    pub fn make_rows(&mut self, notice: Arc<Notice>, receivers: &[ReceiverId], now: Now) -> Vec<OutboxRow> {
        let mut rows: Vec<OutboxRow> = Vec::new();
        for receiver in receivers {
            if rows.iter().any(|row| row.receiver == *receiver) {
                continue;
            }
            if let Some(queue) = self.queues.get_mut(receiver).filter(|queue| queue.known) {
                rows.push(queue.make(receiver, Arc::clone(&notice), now));
            }
        }
        rows
    }

    /// The commit with these rows is on disk: every outbox row of it is to be given here, finished
    /// ones too, in the order of the commits. New rows may go now; after a finished row the next may.
    pub fn stored(&mut self, rows: Vec<OutboxRow>, now: Now) {
        for row in rows {
            let queue = self.queues.entry(row.receiver.clone()).or_default();
            match row.state {
                OutboxState::Pending => queue.stored_pending(row, now),
                OutboxState::Done | OutboxState::Dead | OutboxState::Folded => queue.settled(&row.id),
                OutboxState::InFlight => {}
            }
        }
        self.queues.retain(|_, queue| queue.known || !queue.is_empty());
    }

    /// What may be sent now: at most one in flight per receiver, oldest first.
    pub fn due(&mut self, now: Now) -> Due {
        let mut due = Due::default();
        for (receiver, queue) in &mut self.queues {
            let lost = queue.answer_lost(now);
            if lost.became_failing {
                due.failing.push(receiver.clone());
            }
            due.rows.extend(lost.rows);
            due.matters.extend(lost.matters.into_iter().map(|(matter, storm)| (receiver.clone(), matter, storm)));
            let mut counts = lost.counts;
            queue.sweep(now, &mut due.rows, &mut counts);
            if queue.known
                && let Some((notice, attempt)) = queue.start(now, &mut due.rows)
            {
                due.orders.push(SendOrder { receiver: receiver.clone(), notice, attempt });
            }
            if !counts.is_zero() {
                due.counts.push((receiver.clone(), counts));
            }
        }
        due
    }

    /// Takes the answer of one send. An answer about a row that is no longer there changes nothing.
    pub fn sent(&mut self, receiver: &ReceiverId, id: &NoticeId, delivery: Delivery, now: Now) -> Sent {
        let Some(queue) = self.queues.get_mut(receiver) else { return Sent::default() };
        queue.answer(id, delivery, now)
    }

    /// When [`Self::due`] has something to do next without another event.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Mono> {
        self.queues.values().filter_map(|queue| queue.next_deadline(now)).min()
    }

    /// Until when information alone is not sent; `None` = no quiet hours now.
    pub fn set_quiet(&mut self, until: Option<Wall>) {
        self.queues.values_mut().for_each(|queue| queue.quiet_until = until);
    }

    /// Whether people were told that this receiver takes no notices.
    #[must_use]
    pub fn is_failing(&self, receiver: &ReceiverId) -> bool {
        self.queues.get(receiver).is_some_and(Queue::is_failing)
    }

    /// Notices that a failing receiver's fallback should have and was not given yet.
    pub fn take_for_fallback(&mut self, receiver: &ReceiverId) -> Vec<Arc<Notice>> {
        self.queues.get_mut(receiver).map(Queue::take_for_fallback).unwrap_or_default()
    }

    /// Up to which position that has happened, to be stored.
    #[must_use]
    pub fn fallen_back(&self, receiver: &ReceiverId) -> Option<u64> {
        self.queues.get(receiver).map(|queue| queue.fallen_back)
    }

    pub fn restore_fallen_back(&mut self, receiver: ReceiverId, position: u64) {
        self.queues.entry(receiver).or_default().fallen_back = position;
    }

    /// When the critical notice was made that waits longest for a known receiver.
    #[must_use]
    pub fn oldest_critical(&self) -> Option<Wall> {
        let critical = |row: &&OutboxRow| row.notice.severity == Severity::Critical;
        self.queues.values().filter(|queue| queue.known).filter_map(|queue| queue.rows().find(critical)).map(|row| row.created_at).min()
    }

    /// Dead letters (one notice's, or all) as new rows, to be committed like new ones.
    pub fn revive(&mut self, id: Option<&NoticeId>, now: Now) -> Vec<OutboxRow> {
        self.queues.values_mut().flat_map(|queue| queue.revive(id, now)).collect()
    }

    /// Rows in a state: `dead`, or else those that wait.
    #[must_use]
    pub fn rows(&self, state: &str) -> Vec<&OutboxRow> {
        match state {
            "dead" => self.queues.values().flat_map(Queue::dead_rows).collect(),
            _waiting => self.queues.values().flat_map(Queue::rows).collect(),
        }
    }

    #[must_use]
    pub fn views(&self, now: Now) -> Vec<OutboxView> {
        self.queues.iter().map(|(receiver, queue)| queue.view(receiver, now)).collect()
    }
}

#[cfg(test)]
mod storm_tests;
#[cfg(test)]
mod tests;
