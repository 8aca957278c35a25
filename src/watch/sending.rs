//! inside
//! Notices on their way: which are sent now, and what became of those that were. A receiver that fails
//! is told to the others; the order and the retries are the outbox's.

use crate::key::ReceiverId;
use crate::notify::compose::{self, Facts};
use crate::notify::{Delivery, NoticeId};
use crate::time::Now;
use crate::watch::{Count, Effects, Watch};
use crate::words::{EventType, ProviderKind, Severity};

impl Watch {
    pub(super) fn start_sends(&mut self, now: Now, out: &mut Effects) {
        let due = self.outbox.due(now);
        self.write_rows(due.rows);
        for (receiver, matter, storm) in due.matters {
            self.write_matter(&receiver, &matter, storm);
        }
        self.counts.extend(due.counts.into_iter().map(|(receiver, counts)| Count::Notices { receiver, counts }));
        self.daemon_dirty |= !due.orders.is_empty();
        out.sends.extend(due.orders);
        for receiver in due.failing {
            self.tell_failing(now, &receiver);
        }
    }

    pub(super) fn sent(&mut self, now: Now, receiver: &ReceiverId, id: &NoticeId, delivery: Delivery) {
        self.drill_notice_sent(now, receiver, id, &delivery);
        let sent = self.outbox.sent(receiver, id, delivery, now);
        self.fall_back_dead(now, receiver, &sent.rows);
        self.write_rows(sent.rows);
        for (matter, storm) in sent.matters {
            self.write_matter(receiver, &matter, storm);
        }
        self.daemon_dirty = true;
        if !sent.counts.is_zero() {
            self.counts.push_back(Count::Notices { receiver: receiver.clone(), counts: sent.counts });
        }
        if sent.became_failing {
            self.tell_failing(now, receiver);
        }
    }

    fn write_matter(&mut self, receiver: &ReceiverId, matter: &str, storm: Option<String>) {
        self.ledger.open.commit.meta.insert(format!("storm:{receiver}:{matter}"), storm);
    }

    fn tell_failing(&mut self, now: Now, receiver: &ReceiverId) {
        let facts = Facts::of(EventType::ReceiverFailing, receiver.as_str(), ProviderKind::Local);
        let text = compose::sentence(&facts);
        self.fall_back(now, receiver);
        let others: Vec<ReceiverId> = self.config.receivers.keys().filter(|id| *id != receiver).cloned().collect();
        self.tell_daemon(now, EventType::ReceiverFailing, Severity::Critical, &text, Some(&others));
    }
}
