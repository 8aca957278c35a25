use std::collections::BTreeSet;

use super::*;
use crate::key::{KeyId, WorkspaceId};
use crate::notify::sample::{AT, bare};
use crate::notify::storm::listed;
use crate::words::{Access, EventType, Severity};

fn at(ms: u64) -> Now {
    Now { mono: Mono(1 << 40), wall: AT }.plus(Span(ms))
}

fn pager() -> ReceiverId {
    ReceiverId::new("pager").unwrap()
}

fn outbox() -> Outbox {
    let mut outbox = Outbox::new([pager()]);
    outbox.set_pace(Some(Pace::default()), &[pager()]);
    outbox
}

fn about(n: usize, event: EventType) -> Arc<Notice> {
    let mut notice = bare(&format!("{event}-{n}"), event, crate::notify::about::severity_of(event));
    notice.key = Some(KeyId::new(&format!("k{n}")).unwrap());
    notice.workspaces = vec![WorkspaceId::new(&format!("w{n}")).unwrap()];
    notice.access = Some(if event == EventType::WorkspaceLocked { Access::Locked } else { Access::Open });
    Arc::new(notice)
}

fn put(outbox: &mut Outbox, notice: Arc<Notice>, now: Now) {
    let rows = outbox.make_rows(notice, &[pager()], now);
    outbox.stored(rows, now);
}

/// Takes the next message and answers it; the matters that were written go to `disk`.
fn deliver(outbox: &mut Outbox, now: Now, disk: &mut BTreeMap<String, String>) -> Option<Arc<Notice>> {
    let due = outbox.due(now);
    outbox.stored(due.rows, now);
    let order = due.orders.into_iter().next()?;
    let sent = outbox.sent(&order.receiver, &order.notice.id, Delivery::Delivered, now);
    outbox.stored(sent.rows, now);
    for (matter, storm) in sent.matters {
        match storm {
            Some(storm) => disk.insert(matter, storm),
            None => disk.remove(&matter),
        };
    }
    Some(order.notice)
}

fn members(notice: &Notice) -> Vec<&str> {
    notice.storm.as_ref().map(|s| s.members.iter().map(|m| m.id.0.as_ref()).collect()).unwrap_or_default()
}

#[test]
fn five_thousand_keys_at_once_are_one_message_with_all_of_them_the_most_severe_first() {
    let mut outbox = outbox();
    for n in 0..5000 {
        put(&mut outbox, about(n, EventType::KeySuspect), at(0));
        put(&mut outbox, about(n, EventType::WorkspaceLocked), at(0));
    }
    let due = outbox.due(at(0));
    let order = &due.orders[0];
    assert_eq!((order.notice.event, order.notice.severity), (EventType::NoticesGrouped, Severity::Critical));
    assert_eq!(members(&order.notice).len(), 10_000);
    assert_eq!(order.notice.workspaces.len(), 5000);
    let storm = order.notice.storm.clone().unwrap();
    let list = listed(&storm.members);
    assert!(list.iter().take(5000).all(|notice| notice.event == EventType::WorkspaceLocked), "locks come first");
    assert!(order.notice.message.starts_with("10000 notices together"), "{}", order.notice.message);
    outbox.stored(due.rows.clone(), at(0));
    let sent = outbox.sent(&pager(), &order.notice.id, Delivery::Delivered, at(1));
    assert_eq!((sent.counts.delivered, sent.counts.folded, sent.counts.dropped), (1, 9999, 0));
    assert_eq!(sent.rows.iter().filter(|row| row.state == OutboxState::Folded).count(), 9999, "each has its own row and its own end");
    assert_eq!(outbox.next_deadline(at(0)), None);
}

#[test]
fn a_trickle_is_told_one_by_one_until_it_is_a_storm_and_then_by_digests() {
    let (mut outbox, mut disk) = (outbox(), BTreeMap::new());
    let mut alone = 0;
    let mut grouped: Vec<(u64, usize)> = Vec::new();
    // Four new locks a second for five minutes.
    for tick in 0..1200 {
        let now = at(tick * 250);
        put(&mut outbox, about(tick as usize, EventType::WorkspaceLocked), now);
        while let Some(notice) = deliver(&mut outbox, now, &mut disk) {
            match members(&notice).len() {
                0 => alone += 1,
                many => grouped.push((tick / 4, many)),
            }
        }
    }
    assert_eq!(alone, 10, "the first ones go at once");
    let times: Vec<u64> = grouped.iter().map(|(second, _)| *second).collect();
    assert_eq!(times, [32, 152, 272], "after half a minute the first message, then one every two minutes: {grouped:?}");
    let told: usize = grouped.iter().map(|(_, many)| many).sum();
    let mut rest = 0;
    let mut now = at(300_000);
    while let Some(next) = outbox.next_deadline(at(0)) {
        now = now.plus(next.since(now.mono));
        while let Some(notice) = deliver(&mut outbox, now, &mut disk) {
            rest += members(&notice).len().max(1);
        }
    }
    assert_eq!(alone + told + rest, 1200, "none is lost and none told twice");
}

#[test]
fn after_a_storm_single_notices_go_at_once_again() {
    let (mut outbox, mut disk) = (outbox(), BTreeMap::new());
    for n in 0..50 {
        put(&mut outbox, about(n, EventType::WorkspaceLocked), at(0));
    }
    assert_eq!(members(&deliver(&mut outbox, at(0), &mut disk).unwrap()).len(), 50);
    put(&mut outbox, about(99, EventType::WorkspaceLocked), at(600_000));
    let notice = deliver(&mut outbox, at(600_000), &mut disk).unwrap();
    assert_eq!((notice.event, notice.id.0.as_ref()), (EventType::WorkspaceLocked, "workspace.locked-99"));
}

#[test]
fn an_hour_has_no_more_messages_than_the_bound() {
    let (mut outbox, mut disk) = (outbox(), BTreeMap::new());
    let (mut messages, mut told) = (0, 0);
    // One every four seconds never reaches ten in half a minute.
    for tick in 0..900 {
        let now = at(tick * 4000);
        put(&mut outbox, about(tick as usize, EventType::KeySuspect), now);
        while let Some(notice) = deliver(&mut outbox, now, &mut disk) {
            messages += 1;
            told += members(&notice).len().max(1);
        }
    }
    assert!((60..=90).contains(&messages), "{messages} messages");
    assert!(told >= 850, "{told}");
}

#[test]
fn a_storm_keeps_one_incident_that_ends_with_its_last_matter_also_after_a_restart() {
    let (mut first, mut disk) = (outbox(), BTreeMap::new());
    // One lock has an incident of its own.
    put(&mut first, about(0, EventType::WorkspaceLocked), at(0));
    assert!(deliver(&mut first, at(0), &mut disk).unwrap().storm.is_none());
    for n in 1..=20 {
        put(&mut first, about(n, EventType::WorkspaceLocked), at(1000));
    }
    let opened = deliver(&mut first, at(1000), &mut disk).unwrap().storm.clone().unwrap();
    assert_eq!((opened.open, opened.ends.len(), disk.len()), (20, 0, 20));

    let mut second = outbox();
    for (matter, storm) in &disk {
        second.restore_matter(pager(), matter.clone(), storm.as_str().into());
    }
    second.set_pace(Some(Pace::default()), &[pager()]);
    for n in 0..=19 {
        put(&mut second, about(n, EventType::WorkspaceOpened), at(900_000));
    }
    let closing = deliver(&mut second, at(900_000), &mut disk).unwrap().storm.clone().unwrap();
    assert_eq!(closing.id, opened.id);
    assert_eq!((closing.open, closing.ends.as_slice()), (1, &["cmek/access/w0".to_owned()][..]), "the one of its own ends by itself");
    put(&mut second, about(20, EventType::WorkspaceOpened), at(2_000_000));
    let last = deliver(&mut second, at(2_000_000), &mut disk).unwrap();
    assert_eq!(last.event, EventType::WorkspaceOpened);
    assert_eq!(last.storm.as_ref().map(|storm| (storm.id.clone(), storm.members.len(), storm.open)), Some((opened.id.clone(), 0, 0)));
    assert!(disk.is_empty(), "{disk:?}");
}

#[test]
fn a_storm_that_is_not_taken_is_tried_again_under_the_same_id_with_the_same_members() {
    let (mut outbox, mut disk) = (outbox(), BTreeMap::new());
    for n in 0..30 {
        put(&mut outbox, about(n, EventType::WorkspaceLocked), at(0));
    }
    let due = outbox.due(at(0));
    outbox.stored(due.rows, at(0));
    let id = due.orders[0].notice.id.clone();
    let sent = outbox.sent(&pager(), &id, Delivery::Retry { after: None, reason: "down".to_owned() }, at(0));
    assert_eq!(sent.counts.retried, 1);
    outbox.stored(sent.rows, at(0));
    put(&mut outbox, about(30, EventType::WorkspaceLocked), at(100));
    let again = deliver(&mut outbox, at(5000), &mut disk).unwrap();
    assert_eq!((again.id.clone(), members(&again).len()), (id, 30));
    assert_eq!(outbox.views(at(5000))[0].depth, 1, "what came later waits for the next one");
}

#[test]
fn a_refused_storm_leaves_a_dead_letter_for_each_and_is_told_at_once() {
    let mut outbox = outbox();
    for n in 0..30 {
        put(&mut outbox, about(n, EventType::WorkspaceLocked), at(0));
    }
    let due = outbox.due(at(0));
    let sent = outbox.sent(&pager(), &due.orders[0].notice.id, Delivery::Refused { reason: "413".to_owned() }, at(0));
    assert!(sent.became_failing);
    assert_eq!((sent.counts.failed, sent.rows.len()), (30, 30));
    assert!(sent.rows.iter().all(|row| row.state == OutboxState::Dead));
}

#[test]
fn a_crash_within_a_storm_repeats_one_message_and_loses_none() {
    let (mut before, mut disk) = (outbox(), BTreeMap::new());
    let mut rows: BTreeMap<NoticeId, OutboxRow> = BTreeMap::new();
    for n in 0..40 {
        let made = before.make_rows(about(n, EventType::WorkspaceLocked), &[pager()], at(0));
        rows.extend(made.iter().map(|row| (row.id.clone(), row.clone())));
        before.stored(made, at(0));
    }
    let due = before.due(at(0));
    rows.extend(due.rows.iter().map(|row| (row.id.clone(), row.clone())));
    // It arrived, and then the process died before it could write that down.
    let mut after = outbox();
    after.restore(rows.into_values().collect(), at(10_000));
    let again = deliver(&mut after, at(10_000), &mut disk).unwrap();
    assert_eq!(again.id, due.orders[0].notice.id, "receivers can drop the repeat by its id");
    assert_eq!(members(&again).into_iter().collect::<BTreeSet<_>>().len(), 40);
    assert_eq!(deliver(&mut after, at(10_000), &mut disk), None);
}

#[test]
fn a_test_and_a_report_are_told_by_themselves_and_in_their_place() {
    let (mut outbox, mut disk) = (outbox(), BTreeMap::new());
    for n in 0..20 {
        put(&mut outbox, about(n, EventType::WorkspaceLocked), at(0));
    }
    put(&mut outbox, about(20, EventType::Test), at(0));
    for n in 21..41 {
        put(&mut outbox, about(n, EventType::WorkspaceLocked), at(0));
    }
    assert_eq!(members(&deliver(&mut outbox, at(0), &mut disk).unwrap()).len(), 20);
    assert_eq!(deliver(&mut outbox, at(0), &mut disk).unwrap().event, EventType::Test);
    assert_eq!(deliver(&mut outbox, at(1000), &mut disk), None, "the storm's next message has its time");
    assert_eq!(members(&deliver(&mut outbox, at(30_000), &mut disk).unwrap()).len(), 20);
}
