//! inside
//! What becomes of a notice after it was written: who else is told when a receiver fails or nobody
//! acknowledges, and what operators ask of the outbox. It must never drop a notice.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::journal::Record;
use crate::key::ReceiverId;
use crate::notify::about::{closes, protected};
use crate::notify::{Notice, NoticeId, OutboxRow, OutboxState};
use crate::operate::{NoticeFilter, NoticeView, Refusal, RefusalSlug};
use crate::time::{Mono, Now, Wall};
use crate::watch::Watch;
use crate::words::{EventType, Severity};

/// Most locks that wait for an acknowledgment; the oldest give way.
const MOST_UNACKED: usize = 10_000;

/// A lock that people were told of and nobody has acknowledged, or whose escalation has gone out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Unacked {
    pub notice: Arc<Notice>,
    /// Receivers of the first notice.
    pub receivers: Vec<ReceiverId>,
    pub at: Wall,
    pub acknowledged_by: Option<String>,
    pub escalated: bool,
}

fn asks_for_people(notice: &Notice) -> bool {
    notice.severity == Severity::Critical
        && matches!(notice.event, EventType::WorkspaceLocked | EventType::WorkspaceReadOnly | EventType::KeyRevoked)
}

impl Watch {
    /// A notice goes out: a lock waits for a person from now on, an end of one releases it.
    pub(super) fn attend(&mut self, now: Now, notice: &Arc<Notice>, receivers: &mut Vec<ReceiverId>) {
        if asks_for_people(notice) {
            let entry =
                Unacked { notice: Arc::clone(notice), receivers: receivers.clone(), at: now.wall, acknowledged_by: None, escalated: false };
            self.store_unacked(&notice.id, Some(&entry));
            self.unacked.insert(notice.id.clone(), entry);
            while self.unacked.len() > MOST_UNACKED {
                let oldest = self.unacked.iter().min_by_key(|(_, entry)| entry.at).map(|(id, _)| id.clone());
                let Some(id) = oldest else { break };
                self.unacked.remove(&id);
                self.store_unacked(&id, None);
            }
        } else if closes(notice.event) {
            let over: Vec<NoticeId> =
                self.unacked.iter().filter(|(_, entry)| ends(notice, &entry.notice)).map(|(id, _)| id.clone()).collect();
            for id in over {
                let Some(entry) = self.unacked.remove(&id) else { continue };
                self.store_unacked(&id, None);
                // Who was called in hears of the end.
                let called = self.config.notify.escalate.as_ref().filter(|_| entry.escalated);
                for receiver in called.map(|escalate| escalate.receivers.clone()).unwrap_or_default() {
                    if !receivers.contains(&receiver) {
                        receivers.push(receiver);
                    }
                }
            }
        }
        let failing: Vec<ReceiverId> = receivers.iter().filter(|id| self.outbox.is_failing(id)).cloned().collect();
        for receiver in failing {
            if let Some(fallback) = self.fallback(&receiver)
                && !receivers.contains(&fallback)
            {
                receivers.push(fallback);
            }
        }
    }

    /// Rows of a failing receiver whose fallback has just been given the same notice.
    pub(super) fn mark_fallen_back(&mut self, rows: &[OutboxRow]) {
        for row in rows {
            if self.outbox.is_failing(&row.receiver) && self.fallback(&row.receiver).is_some() {
                self.outbox.restore_fallen_back(row.receiver.clone(), row.position);
                self.ledger.open.commit.meta.insert(format!("fallback:{}", row.receiver), Some(row.position.to_string()));
            }
        }
    }

    fn fallback(&self, receiver: &ReceiverId) -> Option<ReceiverId> {
        self.config.receivers.get(receiver).and_then(|found| found.fallback.clone())
    }

    /// A receiver turned out to be failing: what may not be lost there goes to its fallback too, once.
    pub(super) fn fall_back(&mut self, now: Now, receiver: &ReceiverId) {
        let Some(fallback) = self.fallback(receiver) else { return };
        for notice in self.outbox.take_for_fallback(receiver) {
            let rows = self.outbox.make_rows(notice, std::slice::from_ref(&fallback), now);
            self.write_rows(rows);
        }
        let upto = self.outbox.fallen_back(receiver).map(|position| position.to_string());
        self.ledger.open.commit.meta.insert(format!("fallback:{receiver}"), upto);
    }

    /// A notice that its receiver refuses for good is told by the fallback.
    pub(super) fn fall_back_dead(&mut self, now: Now, receiver: &ReceiverId, rows: &[OutboxRow]) {
        let Some(fallback) = self.fallback(receiver) else { return };
        for row in rows.iter().filter(|row| row.state == OutboxState::Dead && protected(&row.notice)) {
            let rows = self.outbox.make_rows(Arc::clone(&row.notice), std::slice::from_ref(&fallback), now);
            self.write_rows(rows);
        }
    }

    /// Part of every turn: calls in others for locks that nobody has acknowledged in time.
    pub(super) fn escalate(&mut self, now: Now) {
        let Some(escalate) = self.config.notify.escalate.clone() else { return };
        let due: Vec<NoticeId> = self
            .unacked
            .iter()
            .filter(|(_, entry)| !entry.escalated && entry.acknowledged_by.is_none() && now.wall.since(entry.at) >= escalate.after)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let Some(entry) = self.unacked.get_mut(&id) else { continue };
            entry.escalated = true;
            let entry = entry.clone();
            self.store_unacked(&id, Some(&entry));
            let mut notice = Notice::clone(&entry.notice);
            notice.id = NoticeId(format!("{}_escalated", id.0).into());
            notice.message = format!("Nobody has acknowledged this for {}. {}", escalate.after, notice.message);
            self.record_notice(now, EventType::NoticeEscalated, &entry.notice, None, &[("after", escalate.after.to_string())]);
            let rows = self.outbox.make_rows(Arc::new(notice), &escalate.receivers, now);
            self.write_rows(rows);
            self.daemon_dirty = true;
        }
    }

    /// When [`Self::escalate`] has something to do.
    pub(super) fn next_escalation(&self, now: Now) -> Option<Mono> {
        let after = self.config.notify.escalate.as_ref()?.after;
        let waiting = self.unacked.values().filter(|entry| !entry.escalated && entry.acknowledged_by.is_none());
        waiting.map(|entry| now.mono.plus(entry.at.plus(after).since(now.wall))).min()
    }

    /// A person has seen it. Pagers of the first notice are told so; a second time changes nothing.
    pub(super) fn acknowledge(&mut self, now: Now, id: &NoticeId, actor: &str) -> Result<(), Refusal> {
        let base = NoticeId(id.0.strip_suffix("_escalated").unwrap_or(&id.0).into());
        let unknown =
            || Refusal { slug: RefusalSlug::UnknownNotice, detail: format!("no lock waits for an acknowledgment of notice `{}`", id.0) };
        let entry = self.unacked.get_mut(&base).ok_or_else(unknown)?;
        if entry.acknowledged_by.is_some() {
            return Ok(());
        }
        entry.acknowledged_by = Some(actor.to_owned());
        let entry = entry.clone();
        self.store_unacked(&base, Some(&entry));
        self.record_notice(now, EventType::NoticeAcknowledged, &entry.notice, Some(actor), &[]);
        let mut told = entry.receivers.clone();
        if entry.escalated {
            told.extend(self.config.notify.escalate.iter().flat_map(|escalate| escalate.receivers.clone()));
        }
        let pagers: Vec<ReceiverId> = self.config.keeping_incidents().into_iter().filter(|pager| told.contains(pager)).collect();
        let mut notice = Notice::clone(&entry.notice);
        notice.id = NoticeId(format!("{}_acknowledged", base.0).into());
        notice.timestamp = now.wall;
        notice.severity = Severity::Info;
        notice.acknowledged_by = Some(actor.to_owned());
        let rows = self.outbox.make_rows(Arc::new(notice), &pagers, now);
        self.write_rows(rows);
        Ok(())
    }

    fn record_notice(&mut self, now: Now, event: EventType, notice: &Notice, actor: Option<&str>, detail: &[(&str, String)]) {
        let mut all = vec![("notice", notice.id.0.to_string()), ("type", notice.event.to_string())];
        all.extend(detail.iter().cloned());
        self.ledger.open.commit.records.push(Record {
            at: now.wall,
            event,
            key: notice.key.clone(),
            workspace: notice.workspaces.first().cloned().filter(|_| notice.workspaces.len() == 1),
            version: None,
            actor: actor.map(str::to_owned),
            event_id: None,
            correlation_id: None,
            detail: all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        });
    }

    /// Dead letters go out again, as new rows at the end of the line.
    pub(super) fn resend(&mut self, now: Now, id: Option<&NoticeId>, actor: &str) -> Result<u32, Refusal> {
        let rows = self.outbox.revive(id, now);
        if let (true, Some(id)) = (rows.is_empty(), id) {
            return Err(Refusal { slug: RefusalSlug::UnknownNotice, detail: format!("no dead letter has the id `{}`", id.0) });
        }
        let mut seen: Vec<NoticeId> = Vec::new();
        for row in &rows {
            if !seen.contains(&row.id) {
                seen.push(row.id.clone());
                self.record_notice(now, EventType::OperatorAction, &row.notice, Some(actor), &[("action", "notice resend".to_owned())]);
            }
        }
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        self.write_rows(rows);
        self.daemon_dirty = true;
        Ok(count)
    }

    /// Waiting, dead or unacknowledged notices, oldest first.
    pub(super) fn list_notices(&self, filter: &NoticeFilter) -> Vec<NoticeView> {
        let mut all: Vec<NoticeView> = match filter.state.as_str() {
            "unacknowledged" => self
                .unacked
                .values()
                .filter(|entry| entry.acknowledged_by.is_none())
                .map(|entry| NoticeView::of_notice(&entry.notice, if entry.escalated { "escalated" } else { "unacknowledged" }))
                .collect(),
            state => self.outbox.rows(state).into_iter().map(NoticeView::of_row).collect(),
        };
        all.sort_by(|a, b| (a.created_at, &a.id, &a.receiver).cmp(&(b.created_at, &b.id, &b.receiver)));
        all.into_iter().take(filter.limit).collect()
    }

    pub(super) fn store_unacked(&mut self, id: &NoticeId, entry: Option<&Unacked>) {
        self.ledger.open.commit.meta.insert(format!("unacked:{}", id.0), entry.map(crate::watch::restore::to_text));
    }
}

/// Whether a closing notice ends what an earlier one told: the same key's, or all its workspaces'.
fn ends(closing: &Notice, opened: &Notice) -> bool {
    if closing.drill != opened.drill {
        return false;
    }
    if closing.event == EventType::WorkspaceOpened {
        return opened.event != EventType::KeyRevoked && opened.workspaces.iter().all(|ws| closing.workspaces.contains(ws));
    }
    let key_well = matches!(closing.event, EventType::KeyActive | EventType::KeyRetired);
    key_well && opened.event == EventType::KeyRevoked && opened.key == closing.key
}
