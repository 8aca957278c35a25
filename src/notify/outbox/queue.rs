//! inside
//! The line of one receiver: which row is next, when it is tried again, and which rows may be folded
//! into a later one about the same matter. It must never let a row overtake another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::storms::{MOST_ENDS, Step, Weather};
use super::{ANSWER_WITHIN, Counts, FAILING_AFTER, FIRST_RETRY, LAST_RETRY, LONGEST_WISH, LOW_WATER, MAX_AGE, MAX_ROWS, RUN, Sent};
use crate::key::ReceiverId;
use crate::notify::about::{About, heard_as, protected};
use crate::notify::storm::{self, MOST_MEMBERS, Storm};
use crate::notify::{Delivery, Notice, NoticeId, OutboxRow, OutboxState};
use crate::snapshot::OutboxView;
use crate::time::{Mono, Now, Span, Wall};
use crate::words::Severity;

mod folding;

/// How often old rows are looked for.
const SWEEP_EVERY: Span = Span::from_hours(1);

#[derive(Clone, Debug)]
struct Held {
    row: OutboxRow,
    next: Mono,
    born: Mono,
    /// Earlier rows about the same matter that this one speaks for.
    folded: u32,
    /// Sent before by this process.
    tried: bool,
}

/// One receiver's line.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    pub(super) known: bool,
    rows: BTreeMap<u64, Held>,
    last_position: u64,
    /// Position and start of the send under way.
    in_flight: Option<(u64, Mono)>,
    /// Rows that left the line and are not on disk as such yet. Until they are, nothing is sent: a
    /// crash would bring them back behind what went after them.
    unsettled: BTreeSet<NoticeId>,
    /// When the present run of failures began.
    failing_since: Option<Mono>,
    told_failing: bool,
    last_success_at: Option<Wall>,
    /// Dead letters, the newest; all of them are in the store.
    dead_rows: BTreeMap<NoticeId, OutboxRow>,
    /// Rows up to here were given to the fallback.
    pub(super) fallen_back: u64,
    next_sweep: Mono,
    len_after_sweep: usize,
    pub(super) weather: Weather,
    pub(super) quiet_until: Option<Wall>,
    /// The message for many that is under way or is to be tried again: its id and its rows.
    group: Option<Group>,
}

#[derive(Clone, Debug)]
struct Group {
    id: NoticeId,
    rows: Vec<u64>,
    storm: Arc<Storm>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.unsettled.is_empty() && self.dead_rows.is_empty()
    }

    pub(super) fn make(&mut self, receiver: &ReceiverId, notice: Arc<Notice>, now: Now) -> OutboxRow {
        // At least the wall clock, so that a restart with an empty queue does not use numbers again.
        self.last_position = self.last_position.saturating_add(1).max(u64::try_from(now.wall.0).unwrap_or(0));
        OutboxRow {
            id: notice.id.clone(),
            receiver: receiver.clone(),
            position: self.last_position,
            notice,
            created_at: now.wall,
            state: OutboxState::Pending,
            attempts: 0,
            next_at: now.wall,
            last_error: None,
        }
    }

    pub(super) fn restore(&mut self, mut row: OutboxRow, now: Now) {
        match row.state {
            OutboxState::Pending | OutboxState::InFlight => {
                row.state = OutboxState::Pending;
                while self.rows.contains_key(&row.position) {
                    row.position = row.position.saturating_add(1);
                }
                self.insert(row, now);
            }
            OutboxState::Dead => self.bury(row),
            OutboxState::Done | OutboxState::Folded => {}
        }
    }

    /// A new row is on disk. A row that was tried before is in the line already, or has left it
    /// since; only its writing is reported, late.
    pub(super) fn stored_pending(&mut self, row: OutboxRow, now: Now) {
        if row.attempts == 0 && !self.rows.contains_key(&row.position) {
            self.insert(row, now);
        }
    }

    fn insert(&mut self, row: OutboxRow, now: Now) {
        self.last_position = self.last_position.max(row.position);
        let wait = row.next_at.since(now.wall);
        let next = now.mono.plus(if wait > LONGEST_WISH { LONGEST_WISH } else { wait });
        let born = now.mono_of(row.created_at, MAX_AGE);
        self.rows.insert(row.position, Held { row, next, born, folded: 0, tried: false });
    }

    /// Keeps a dead letter at hand; of too many the one that waits longest gives way.
    fn bury(&mut self, row: OutboxRow) {
        self.dead_rows.insert(row.id.clone(), row);
        if self.dead_rows.len() > MAX_ROWS {
            let oldest = self.dead_rows.values().min_by_key(|row| row.position).map(|row| row.id.clone());
            oldest.and_then(|id| self.dead_rows.remove(&id));
        }
    }

    /// Dead letters as new rows at the end of the line, to be committed like new ones.
    pub(super) fn revive(&mut self, id: Option<&NoticeId>, now: Now) -> Vec<OutboxRow> {
        if !self.known {
            return Vec::new();
        }
        let mut chosen: Vec<OutboxRow> = match id {
            Some(id) => self.dead_rows.remove(id).into_iter().collect(),
            None => std::mem::take(&mut self.dead_rows).into_values().collect(),
        };
        chosen.sort_by_key(|row| row.position);
        chosen.into_iter().map(|row| self.make(&row.receiver, row.notice, now)).collect()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &OutboxRow> {
        self.rows.values().map(|held| &held.row)
    }

    pub(super) fn dead_rows(&self) -> impl Iterator<Item = &OutboxRow> {
        self.dead_rows.values()
    }

    pub(super) const fn is_failing(&self) -> bool {
        self.told_failing
    }

    /// Waiting rows that may not be lost and that the fallback does not have yet.
    pub(super) fn take_for_fallback(&mut self) -> Vec<Arc<Notice>> {
        let after = self.fallen_back;
        let found = self
            .rows
            .values()
            .filter(|held| held.row.position > after && protected(&held.row.notice))
            .map(|held| Arc::clone(&held.row.notice));
        let found = found.collect();
        self.fallen_back = self.last_position;
        found
    }

    pub(super) fn settled(&mut self, id: &NoticeId) {
        self.unsettled.remove(id);
    }

    /// Begins the next send if there is one to begin.
    pub(super) fn start(&mut self, now: Now, rows: &mut Vec<OutboxRow>) -> Option<(Arc<Notice>, u32)> {
        if self.in_flight.is_some() || !self.unsettled.is_empty() {
            return None;
        }
        if self.quiet(now) {
            return None;
        }
        let (position, head) = self.rows.first_key_value()?;
        let (position, again) = (*position, head.tried);
        if head.next > now.mono {
            return None;
        }
        let many = match (storm::stands_alone(&head.row.notice), again) {
            (true, _) => false,
            // What was tried as one message is tried as one again.
            (false, true) => self.group.is_some(),
            (false, false) => match self
                .weather
                .step(now, self.rows.len(), || self.rows.values().any(|held| heard_as(&held.row.notice) == Severity::Critical))
            {
                Step::One => false,
                Step::Many => true,
                Step::Wait => return None,
            },
        };
        let group = if many { self.gather() } else { None };
        let held = self.rows.get_mut(&position)?;
        held.row.state = OutboxState::InFlight;
        held.row.attempts = held.row.attempts.saturating_add(1);
        rows.push(held.row.clone());
        self.in_flight = Some((position, now.mono));
        let attempt = held.row.attempts;
        held.tried = true;
        let alone = speaking_for(&held.row.notice, held.folded);
        let notice = match &group {
            Some(group) => Arc::new(storm::grouped(&group.storm.members, Storm::clone(&group.storm))),
            None => self.with_ending(alone),
        };
        self.group = group;
        if !again {
            self.weather.sends(now, notice.severity == Severity::Critical);
        }
        Some((notice, attempt))
    }

    /// In quiet hours a line of nothing but information waits; what is louder takes along what
    /// stands before it.
    fn quiet(&self, now: Now) -> bool {
        let quiet = |held: &Held| heard_as(&held.row.notice) == Severity::Info && !storm::stands_alone(&held.row.notice);
        self.quiet_until.is_some_and(|until| now.wall < until) && self.rows.values().all(quiet)
    }

    fn with_ending(&self, notice: Arc<Notice>) -> Arc<Notice> {
        match self.weather.ending(&notice) {
            Some(storm) => Arc::new(Notice { storm: Some(Arc::new(storm)), ..Notice::clone(&notice) }),
            None => notice,
        }
    }

    /// The rows at the head of the line as one message; those of the last attempt if it was one.
    fn gather(&self) -> Option<Group> {
        let last = self.group.as_ref().and_then(|group| group.rows.last().copied());
        let (mut positions, mut members, mut ends) = (Vec::new(), Vec::new(), 0_usize);
        for (position, held) in self.rows.iter().take(MOST_MEMBERS) {
            ends = ends.saturating_add(self.weather.own_ends(&held.row.notice));
            let full = !positions.is_empty() && (ends > MOST_ENDS || last.is_some_and(|last| *position > last));
            if full || storm::stands_alone(&held.row.notice) {
                break;
            }
            positions.push(*position);
            members.push(speaking_for(&held.row.notice, held.folded));
        }
        if positions.len() < 2 {
            return None;
        }
        let storm = Arc::new(self.weather.storm(members));
        Some(Group { id: storm::id_of(&storm.members), rows: positions, storm })
    }

    /// A send that was never answered (its task died) counts as one to be tried again.
    pub(super) fn answer_lost(&mut self, now: Now) -> Sent {
        let lost = self.in_flight.filter(|(_, since)| now.mono.since(*since) >= ANSWER_WITHIN);
        let many = self.group.as_ref().map(|group| group.id.clone());
        let id = lost.and_then(|(position, _)| self.rows.get(&position)).map(|held| many.unwrap_or_else(|| held.row.id.clone()));
        let mut sent = match id {
            Some(id) => self.answer(&id, Delivery::Retry { after: None, reason: "no answer from the receiver".to_owned() }, now),
            None => Sent::default(),
        };
        if !self.rows.is_empty() && self.failing_since.is_some() {
            sent.became_failing |= self.tell_failing(now, false);
        }
        sent
    }

    pub(super) fn answer(&mut self, id: &NoticeId, delivery: Delivery, now: Now) -> Sent {
        let in_flight = self.in_flight.map(|(position, _)| position);
        let here = |position: &u64| self.rows.get(position).is_some_and(|held| held.row.id == *id);
        if let Some(group) = self.group.take_if(|group| group.id == *id) {
            return self.answer_for_many(group, delivery, now);
        }
        let Some(position) = in_flight.filter(here).or_else(|| self.position_of(id)) else { return Sent::default() };
        match delivery {
            Delivery::Delivered => self.delivered(position, now),
            Delivery::Refused { reason } => self.refused(position, reason, now),
            Delivery::Retry { after, reason } if in_flight == Some(position) => self.retry(position, after, reason, now),
            // The answer of a send that was given up: the row waits for its next attempt already.
            Delivery::Retry { .. } => Sent::default(),
        }
    }

    /// The answer about a message for many is the answer for each of them: the first row stands for
    /// the message, the others are folded into it.
    fn answer_for_many(&mut self, group: Group, delivery: Delivery, now: Now) -> Sent {
        let Some(head) = group.rows.iter().copied().find(|position| self.rows.contains_key(position)) else { return Sent::default() };
        let others: Vec<u64> = group.rows.iter().copied().filter(|position| *position != head).collect();
        match delivery {
            Delivery::Delivered => {
                let told = format!("told in {}", group.id.0);
                let folded: Vec<OutboxRow> =
                    others.into_iter().filter_map(|position| self.take(position, OutboxState::Folded, Some(told.clone()))).collect();
                let mut sent = self.delivered(head, now);
                sent.counts.folded = sent.counts.folded.saturating_add(u64::try_from(folded.len()).unwrap_or(u64::MAX));
                sent.rows.extend(folded);
                sent.matters.extend(self.weather.told(&group.storm));
                sent
            }
            Delivery::Refused { reason } => {
                let mut sent = self.refused(head, reason.clone(), now);
                for position in others {
                    let more = self.refused(position, reason.clone(), now);
                    sent.rows.extend(more.rows);
                    sent.counts.failed = sent.counts.failed.saturating_add(more.counts.failed);
                    sent.became_failing |= more.became_failing;
                }
                sent
            }
            Delivery::Retry { after, reason } => {
                let sending = self.is_sending(head);
                self.group = Some(group);
                if sending { self.retry(head, after, reason, now) } else { Sent::default() }
            }
        }
    }

    fn position_of(&self, id: &NoticeId) -> Option<u64> {
        self.rows.iter().find(|(_, held)| held.row.id == *id).map(|(position, _)| *position)
    }

    fn take(&mut self, position: u64, state: OutboxState, why: Option<String>) -> Option<OutboxRow> {
        let mut row = self.rows.remove(&position)?.row;
        if self.in_flight.is_some_and(|(sending, _)| sending == position) {
            self.in_flight = None;
        }
        self.unsettled.insert(row.id.clone());
        row.state = state;
        if why.is_some() {
            row.last_error = why;
        }
        Some(row)
    }

    fn delivered(&mut self, position: u64, now: Now) -> Sent {
        let mut sent = Sent { healed: self.told_failing, ..Sent::default() };
        sent.counts.delivered = 1;
        let row = self.take(position, OutboxState::Done, None);
        if let Some(row) = &row {
            sent.matters = self.weather.told_alone(&row.notice);
        }
        sent.rows.extend(row);
        self.failing_since = None;
        self.told_failing = false;
        self.last_success_at = Some(now.wall);
        if sent.healed {
            self.fold_runs(&mut sent.rows, &mut sent.counts);
        }
        sent
    }

    fn refused(&mut self, position: u64, reason: String, now: Now) -> Sent {
        let mut sent = Sent::default();
        sent.counts.failed = 1;
        let row = self.take(position, OutboxState::Dead, Some(short(reason)));
        row.iter().for_each(|row| self.bury(row.clone()));
        // A lock that nobody was told of may not wait five minutes to be noticed.
        let grave = row.as_ref().is_some_and(|row| protected(&row.notice));
        sent.rows.extend(row);
        sent.became_failing = self.tell_failing(now, grave);
        sent
    }

    fn retry(&mut self, position: u64, after: Option<Span>, reason: String, now: Now) -> Sent {
        let mut sent = Sent::default();
        self.in_flight = None;
        if let Some(held) = self.rows.get_mut(&position) {
            let wish = after.map_or(Span::ZERO, |wish| if wish > LONGEST_WISH { LONGEST_WISH } else { wish });
            let delay = back_off(&held.row.id, held.row.attempts).max(wish);
            held.next = now.mono.plus(delay);
            held.row.next_at = now.wall.plus(delay);
            held.row.state = OutboxState::Pending;
            held.row.last_error = Some(short(reason));
            sent.rows.push(held.row.clone());
            sent.counts.retried = 1;
        }
        sent.became_failing = self.tell_failing(now, false);
        sent
    }

    fn tell_failing(&mut self, now: Now, at_once: bool) -> bool {
        let since = *self.failing_since.get_or_insert(now.mono);
        let tell = !self.told_failing && (at_once || now.mono.since(since) >= FAILING_AFTER);
        self.told_failing |= tell;
        tell
    }

    /// Folds and drops what is too old or too much.
    pub(super) fn sweep(&mut self, now: Now, rows: &mut Vec<OutboxRow>, counts: &mut Counts) {
        let full = self.rows.len() > MAX_ROWS.max(self.len_after_sweep.saturating_add(MAX_ROWS.saturating_sub(LOW_WATER)));
        if !full && now.mono < self.next_sweep {
            return;
        }
        self.next_sweep = now.mono.plus(SWEEP_EVERY);
        let old = |held: &Held| now.mono.since(held.born) >= MAX_AGE;
        self.fold(usize::MAX, old, rows, counts);
        self.drop_some(usize::MAX, old, rows, counts);
        if self.rows.len() > MAX_ROWS {
            // Folding loses no present state, so it comes before dropping; the quiet ones go first.
            self.fold(self.excess(), |held| !protected(&held.row.notice), rows, counts);
            self.fold(self.excess(), |_| true, rows, counts);
            self.drop_some(self.excess(), |_| true, rows, counts);
        }
        self.len_after_sweep = self.rows.len();
    }

    pub fn next_deadline(&self, now: Now) -> Option<Mono> {
        let failing = self.failing_since.filter(|_| !self.told_failing && !self.rows.is_empty()).map(|since| since.plus(FAILING_AFTER));
        let send = match self.in_flight {
            Some((_, since)) => Some(since.plus(ANSWER_WITHIN)),
            None if !self.unsettled.is_empty() || !self.known || self.rows.is_empty() => None,
            None if self.quiet(now) => self.quiet_until.map(|until| now.mono.plus(until.since(now.wall))),
            None => self.rows.values().next().map(|head| head.next.max(self.next_message(head))),
        };
        [failing, send].into_iter().flatten().min()
    }

    /// When the storm lets the head of the line go.
    fn next_message(&self, head: &Held) -> Mono {
        let free = head.tried || storm::stands_alone(&head.row.notice);
        self.weather.next_message().filter(|_| !free).unwrap_or(Mono(0))
    }

    pub(super) fn view(&self, receiver: &ReceiverId, now: Now) -> OutboxView {
        OutboxView {
            receiver: receiver.to_string(),
            depth: u64::try_from(self.rows.len()).unwrap_or(u64::MAX),
            oldest_at: self.rows.values().next().map(|held| held.row.created_at),
            failing: self.told_failing || self.failing_since.is_some_and(|since| now.mono.since(since) >= FAILING_AFTER),
            last_success_at: self.last_success_at,
            dead: u64::try_from(self.dead_rows.len()).unwrap_or(u64::MAX),
        }
    }
}

/// The notice as it goes out when it stands for earlier ones too.
fn speaking_for(notice: &Arc<Notice>, folded: u32) -> Arc<Notice> {
    if folded == 0 {
        return Arc::clone(notice);
    }
    let mut said = Notice::clone(notice);
    let plural = if folded == 1 { "notice" } else { "notices" };
    said.message = format!("{} ({folded} earlier {plural} about this could not be delivered and are left out.)", said.message);
    Arc::new(said)
}

fn short(reason: String) -> String {
    if reason.len() <= 300 { reason } else { reason.chars().take(300).collect() }
}

/// 1 s, 2 s, 4 s .. 5 min, less up to a quarter that the hash of id and attempt decides: many
/// receivers do not come back in step, and a replay gives the same times.
fn back_off(id: &NoticeId, attempt: u32) -> Span {
    let doublings = attempt.saturating_sub(1).min(16);
    let full = FIRST_RETRY.times(1_u64.checked_shl(doublings).unwrap_or(u64::MAX));
    let full = if full > LAST_RETRY { LAST_RETRY } else { full };
    let hash =
        id.0.bytes()
            .chain(attempt.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // The high bits: the low ones of this hash follow the last byte too closely.
    let thousandths = (hash >> 32).checked_rem(251).unwrap_or(0);
    full.minus(full.times(thousandths).over(1000))
}
