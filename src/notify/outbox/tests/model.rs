//! inside
//! The outbox against a model: whatever is said, sent, refused and crashed in any order, nothing is
//! lost, nothing overtakes, and the last word comes through.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What may happen next in the model.
#[derive(Clone, Debug)]
enum Move {
    /// A notice about matter `m`; `event` picks the type.
    Tell {
        matter: u8,
        event: u8,
    },
    /// The writer commits everything handed over so far.
    Commit,
    Due,
    /// The send under way of a receiver ends.
    Answer {
        receiver: u8,
        how: u8,
    },
    /// The send arrives, and its answer is lost with the process.
    Crash {
        arrived: bool,
    },
    Wait {
        seconds: u16,
    },
    /// Six minutes in which both receivers take nothing, while a matter flaps.
    Outage {
        matter: u8,
        flaps: u8,
    },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (0u8..3, 0u8..5).prop_map(|(matter, event)| Move::Tell { matter, event }),
        6 => Just(Move::Commit),
        6 => Just(Move::Due),
        6 => (0u8..2, 0u8..10).prop_map(|(receiver, how)| Move::Answer { receiver, how }),
        1 => any::<bool>().prop_map(|arrived| Move::Crash { arrived }),
        3 => (0u16..400).prop_map(|seconds| Move::Wait { seconds }),
        1 => (0u8..3, 4u8..9).prop_map(|(matter, flaps)| Move::Outage { matter, flaps }),
    ];
    prop::collection::vec(one, 1..250)
}

/// A store, two receivers and a process that may die at any step.
struct Model {
    outbox: Outbox,
    receivers: Vec<ReceiverId>,
    disk: BTreeMap<(ReceiverId, NoticeId), OutboxRow>,
    handed: Vec<OutboxRow>,
    /// The sends under way and their start; one whose task died is never answered.
    flying: BTreeMap<ReceiverId, (SendOrder, Mono)>,
    arrived: BTreeMap<ReceiverId, Vec<NoticeId>>,
    made: BTreeMap<ReceiverId, Vec<NoticeId>>,
    notices: BTreeMap<NoticeId, Arc<Notice>>,
    repeats_allowed: BTreeMap<ReceiverId, usize>,
    refused: BTreeSet<(ReceiverId, NoticeId)>,
    now: Now,
}

impl Model {
    fn new() -> Self {
        let receivers = vec![receiver("a"), receiver("b")];
        Self {
            outbox: Outbox::new(receivers.clone()),
            receivers,
            disk: BTreeMap::new(),
            handed: Vec::new(),
            flying: BTreeMap::new(),
            arrived: BTreeMap::new(),
            made: BTreeMap::new(),
            notices: BTreeMap::new(),
            repeats_allowed: BTreeMap::new(),
            refused: BTreeSet::new(),
            now: at(0),
        }
    }

    fn commit(&mut self) {
        let rows = std::mem::take(&mut self.handed);
        for row in &rows {
            self.disk.insert((row.receiver.clone(), row.id.clone()), row.clone());
        }
        self.outbox.stored(rows, self.now);
    }

    fn tell(&mut self, matter: u8, event: u8) {
        let (event, severity) = [
            (EventType::WorkspaceLocked, Severity::Critical),
            (EventType::WorkspaceOpened, Severity::Info),
            (EventType::KeySuspect, Severity::Warning),
            (EventType::KeyActive, Severity::Info),
            (EventType::KeyRotated, Severity::Info),
        ][usize::from(event)];
        let id = format!("n{:04}", self.notices.len());
        let notice = of_key(&id, &format!("m{matter}"), event, severity);
        self.notices.insert(notice.id.clone(), Arc::clone(&notice));
        let rows = self.outbox.make_rows(notice, &self.receivers, self.now);
        for row in &rows {
            self.made.entry(row.receiver.clone()).or_default().push(row.id.clone());
        }
        self.handed.extend(rows);
    }

    fn due(&mut self) {
        let due = self.outbox.due(self.now);
        for order in due.orders {
            if let Some((_, since)) = self.flying.get(&order.receiver) {
                assert!(self.now.mono.since(*since) >= ANSWER_WITHIN, "two in flight");
            }
            let on_disk = self.disk.contains_key(&(order.receiver.clone(), order.notice.id.clone()));
            assert!(on_disk, "sent before it was on disk");
            self.flying.insert(order.receiver.clone(), (order, self.now.mono));
        }
        self.handed.extend(due.rows);
    }

    fn answer(&mut self, index: u8, how: u8) {
        let receiver = self.receivers[usize::from(index)].clone();
        let Some((order, since)) = self.flying.remove(&receiver) else { return };
        if self.now.mono.since(since) >= ANSWER_WITHIN {
            return;
        }
        let id = order.notice.id.clone();
        let delivery = match how {
            0..=5 => {
                self.arrived.entry(receiver.clone()).or_default().push(id.clone());
                Delivery::Delivered
            }
            6 => {
                self.refused.insert((receiver.clone(), id.clone()));
                Delivery::Refused { reason: "no".to_owned() }
            }
            _ => Delivery::Retry { after: None, reason: "later".to_owned() },
        };
        let sent = self.outbox.sent(&receiver, &id, delivery, self.now);
        self.handed.extend(sent.rows);
    }

    fn crash(&mut self, arrived: bool) {
        for (receiver, (order, _)) in std::mem::take(&mut self.flying) {
            if arrived {
                self.arrived.entry(receiver).or_default().push(order.notice.id.clone());
            }
        }
        for receiver in &self.receivers {
            let arrived = self.arrived.get(receiver).cloned().unwrap_or_default();
            let unknown: BTreeSet<&NoticeId> = arrived
                .iter()
                .filter(|id| {
                    self.disk
                        .get(&(receiver.clone(), (*id).clone()))
                        .is_some_and(|row| matches!(row.state, OutboxState::Pending | OutboxState::InFlight))
                })
                .collect();
            assert!(unknown.len() <= 1, "a crash would repeat {} notices", unknown.len());
            *self.repeats_allowed.entry(receiver.clone()).or_default() += unknown.len();
        }
        // What was handed over but not written is gone, with the events that it belonged to.
        self.handed.clear();
        for (receiver, made) in &mut self.made {
            made.retain(|id| self.disk.contains_key(&(receiver.clone(), id.clone())));
        }
        self.outbox = Outbox::new(self.receivers.clone());
        let kept = self.disk.values().filter(|row| matches!(row.state, OutboxState::Pending | OutboxState::InFlight | OutboxState::Dead));
        self.outbox.restore(kept.rev().cloned().collect(), self.now);
    }

    fn step(&mut self, step: &Move) {
        match step {
            Move::Tell { matter, event } => self.tell(*matter, *event),
            Move::Commit => self.commit(),
            Move::Due => self.due(),
            Move::Answer { receiver, how } => self.answer(*receiver, *how),
            Move::Crash { arrived } => self.crash(*arrived),
            Move::Wait { seconds } => self.now = self.now.plus(Span::from_secs(u64::from(*seconds))),
            Move::Outage { matter, flaps } => self.outage(*matter, *flaps),
        }
    }

    fn outage(&mut self, matter: u8, flaps: u8) {
        for n in 0..flaps {
            self.tell(matter, n % 2);
        }
        for _ in 0..40 {
            self.commit();
            self.due();
            self.answer(0, 9);
            self.answer(1, 9);
            self.now = self.now.plus(Span::from_secs(10));
        }
    }

    /// Everything works from here on.
    fn finish(&mut self) {
        for _ in 0..2_000 {
            self.commit();
            self.due();
            for index in 0..2 {
                self.answer(index, 0);
            }
            self.now = self.now.plus(Span::from_secs(30));
        }
        self.commit();
        assert!(self.outbox.views(self.now).iter().all(|view| view.depth == 0), "something is stuck");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_is_kept_and_nothing_is_lost_across_crashes_at_any_point(steps in moves()) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.finish();
        for receiver in &model.receivers {
            let made = model.made.get(receiver).cloned().unwrap_or_default();
            let arrived = model.arrived.get(receiver).cloned().unwrap_or_default();
            let place = |id: &NoticeId| made.iter().position(|m| m == id);
            // Order: first arrivals come in the order in which they were made.
            let mut first: Vec<NoticeId> = Vec::new();
            let mut repeats = 0;
            for id in &arrived {
                if first.contains(id) { repeats += 1 } else { first.push(id.clone()) }
            }
            let places: Vec<usize> = first.iter().filter_map(place).collect();
            prop_assert_eq!(places.len(), first.len(), "arrived without having been committed");
            prop_assert!(places.windows(2).all(|w| w[0] < w[1]), "out of order: {:?}", places);
            // A refusal that was not on disk when the process died is tried again: no repeat of a delivery.
            prop_assert!(repeats <= model.repeats_allowed.get(receiver).copied().unwrap_or(0), "{} repeats", repeats);
            for (n, id) in made.iter().enumerate() {
                let row = &model.disk[&(receiver.clone(), id.clone())];
                let reached = arrived.contains(id);
                let refused = model.refused.contains(&(receiver.clone(), id.clone()));
                let folded = row.state == OutboxState::Folded;
                prop_assert!(reached || refused || folded, "{} lost: {:?}", id.0, row.state);
                if folded && !reached {
                    let about = About::of(&model.notices[id]);
                    let later = made.iter().skip(n + 1).any(|other| {
                        let other_refused = model.refused.contains(&(receiver.clone(), other.clone()));
                        About::of(&model.notices[other]) == about && (arrived.contains(other) || other_refused)
                    });
                    prop_assert!(later, "{} folded into nothing", id.0);
                }
            }
        }
    }
}
