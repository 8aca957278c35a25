use super::*;
use crate::key::{KeyId, WorkspaceId};
use crate::notify::about::About;
use crate::notify::sample::{AT, bare};
use crate::time::Wall;
use crate::words::{EventType, Severity};

mod model;

fn receiver(name: &str) -> ReceiverId {
    ReceiverId::new(name).unwrap()
}

fn at(ms: u64) -> Now {
    Now { mono: Mono(1 << 40), wall: AT }.plus(Span(ms))
}

fn notice(id: &str, event: EventType, severity: Severity) -> Arc<Notice> {
    Arc::new(bare(id, event, severity))
}

fn put(outbox: &mut Outbox, notice: Arc<Notice>, to: &[ReceiverId], now: Now) {
    let rows = outbox.make_rows(notice, to, now);
    outbox.stored(rows, now);
}

fn locked(id: &str) -> Arc<Notice> {
    notice(id, EventType::WorkspaceLocked, Severity::Critical)
}

/// Sends everything that can go, each answered at once and its row stored at once.
fn drain(outbox: &mut Outbox, now: Now) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let due = outbox.due(now);
        outbox.stored(due.rows, now);
        if due.orders.is_empty() {
            return seen;
        }
        for order in due.orders {
            seen.push(order.notice.id.0.to_string());
            let sent = outbox.sent(&order.receiver, &order.notice.id, Delivery::Delivered, now);
            outbox.stored(sent.rows, now);
        }
    }
}

fn retry() -> Delivery {
    Delivery::Retry { after: None, reason: "down".to_owned() }
}

#[test]
fn nothing_goes_before_its_row_is_on_disk() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    let rows = outbox.make_rows(locked("a"), &[mail.clone(), mail.clone(), receiver("unknown")], at(0));
    assert_eq!(rows.len(), 1, "each receiver once, and only known ones");
    assert_eq!(outbox.due(at(0)), Due::default());
    assert_eq!(outbox.next_deadline(at(0)), None);
    outbox.stored(rows, at(0));
    let due = outbox.due(at(0));
    assert_eq!(due.orders.len(), 1);
    assert_eq!(due.rows[0].state, OutboxState::InFlight);
    assert_eq!(outbox.due(at(0)).orders, [], "one in flight per receiver");
}

#[test]
fn the_next_notice_waits_until_the_delivered_one_is_on_disk() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    put(&mut outbox, locked("a"), std::slice::from_ref(&mail), at(0));
    put(&mut outbox, locked("b"), std::slice::from_ref(&mail), at(0));
    let first = outbox.due(at(0)).orders.remove(0);
    let sent = outbox.sent(&mail, &first.notice.id, Delivery::Delivered, at(1));
    assert_eq!((sent.counts.delivered, sent.rows[0].state), (1, OutboxState::Done));
    assert_eq!(outbox.due(at(2)).orders, []);
    outbox.stored(sent.rows, at(3));
    assert_eq!(outbox.due(at(3)).orders[0].notice.id.0.as_ref(), "b");
}

#[test]
fn a_retry_keeps_the_head_and_backs_off_from_a_second_to_five_minutes() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    put(&mut outbox, locked("a"), std::slice::from_ref(&mail), at(0));
    put(&mut outbox, locked("b"), std::slice::from_ref(&mail), at(0));
    let (mut now, mut waits) = (at(0), Vec::new());
    for attempt in 1..=14 {
        let due = outbox.due(now);
        assert_eq!((due.orders[0].notice.id.0.as_ref(), due.orders[0].attempt), ("a", attempt));
        let sent = outbox.sent(&mail, &due.orders[0].notice.id, retry(), now);
        assert_eq!((sent.counts.retried, sent.rows[0].attempts), (1, attempt));
        assert_eq!(sent.rows[0].last_error.as_deref(), Some("down"));
        let next = sent.rows[0].next_at.since(now.wall);
        waits.push(next);
        now = now.plus(next);
    }
    assert!(waits.first().is_some_and(|w| (750..=1000).contains(&w.0)), "{waits:?}");
    assert!(waits.windows(2).all(|w| w[1].0 * 2 > w[0].0), "{waits:?}");
    assert!(waits.iter().all(|w| *w <= LAST_RETRY) && waits.iter().rev().take(3).all(|w| *w >= Span::from_secs(224)), "{waits:?}");
}

#[test]
fn a_receivers_own_wish_is_honoured_up_to_an_hour() {
    for (wish, expected) in [(Span::from_mins(7), Span::from_mins(7)), (Span::from_days(9), LONGEST_WISH)] {
        let mail = receiver("mail");
        let mut outbox = Outbox::new([mail.clone()]);
        put(&mut outbox, locked("a"), std::slice::from_ref(&mail), at(0));
        let order = outbox.due(at(0)).orders.remove(0);
        let sent = outbox.sent(&mail, &order.notice.id, Delivery::Retry { after: Some(wish), reason: "slow down".to_owned() }, at(0));
        assert_eq!(sent.rows[0].next_at, AT.plus(expected));
        assert_eq!(outbox.due(at(expected.0 - 1)).orders.len(), 0);
        assert_eq!(outbox.due(at(expected.0)).orders.len(), 1);
    }
}

#[test]
fn a_refused_notice_is_a_dead_letter_and_the_next_one_passes() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    put(&mut outbox, notice("a", EventType::KeyRotated, Severity::Info), std::slice::from_ref(&mail), at(0));
    put(&mut outbox, notice("b", EventType::KeyRotated, Severity::Info), std::slice::from_ref(&mail), at(0));
    let order = outbox.due(at(0)).orders.remove(0);
    let sent = outbox.sent(&mail, &order.notice.id, Delivery::Refused { reason: "550 no such user".to_owned() }, at(0));
    assert_eq!((sent.counts.failed, sent.rows[0].state, sent.became_failing), (1, OutboxState::Dead, false));
    outbox.stored(sent.rows, at(0));
    assert_eq!(drain(&mut outbox, at(0)), ["b"]);
    assert_eq!(outbox.views(at(0))[0].dead, 1);
}

#[test]
fn a_refused_lock_notice_is_told_at_once_and_only_once() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    for id in ["a", "b"] {
        put(&mut outbox, locked(id), std::slice::from_ref(&mail), at(0));
    }
    let mut told = Vec::new();
    for _ in 0..2 {
        let order = outbox.due(at(0)).orders.remove(0);
        let sent = outbox.sent(&mail, &order.notice.id, Delivery::Refused { reason: "gone".to_owned() }, at(0));
        told.push(sent.became_failing);
        outbox.stored(sent.rows, at(0));
    }
    assert_eq!(told, [true, false]);
}

#[test]
fn a_receiver_failing_for_five_minutes_is_told_once_and_again_only_after_it_healed() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    let mut now = at(0);
    for round in 0..2 {
        put(&mut outbox, locked(&format!("n{round}")), std::slice::from_ref(&mail), now);
        let start = now;
        let mut told = Vec::new();
        while now.mono.since(start.mono) < Span::from_mins(30) {
            let due = outbox.due(now);
            told.extend(due.failing.iter().map(|_| now.mono.since(start.mono)));
            for order in due.orders {
                if outbox.sent(&mail, &order.notice.id, retry(), now).became_failing {
                    told.push(now.mono.since(start.mono));
                }
            }
            let next = outbox.next_deadline(at(0)).unwrap();
            now = now.plus(next.since(now.mono));
        }
        assert_eq!(told, [FAILING_AFTER]);
        assert!(outbox.views(now)[0].failing);
        let order = outbox.due(now).orders.remove(0);
        let sent = outbox.sent(&mail, &order.notice.id, Delivery::Delivered, now);
        assert!(sent.healed && !sent.became_failing);
        outbox.stored(sent.rows, now);
        assert_eq!((outbox.views(now)[0].failing, outbox.views(now)[0].last_success_at), (false, Some(now.wall)));
    }
}

#[test]
fn a_send_that_is_never_answered_is_tried_again_and_a_late_answer_still_counts() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    put(&mut outbox, locked("a"), std::slice::from_ref(&mail), at(0));
    let order = outbox.due(at(0)).orders.remove(0);
    assert_eq!(outbox.next_deadline(at(0)), Some(at(ANSWER_WITHIN.0).mono));
    let lost = outbox.due(at(ANSWER_WITHIN.0));
    assert_eq!((lost.orders.len(), lost.rows[0].state, lost.counts[0].1.retried), (0, OutboxState::Pending, 1));
    let late = at(ANSWER_WITHIN.0 + 10);
    assert_eq!(outbox.sent(&mail, &order.notice.id, retry(), late), Sent::default(), "given up already");
    let sent = outbox.sent(&mail, &order.notice.id, Delivery::Delivered, late);
    assert_eq!((sent.counts.delivered, sent.rows[0].state), (1, OutboxState::Done));
    assert_eq!(outbox.sent(&mail, &order.notice.id, Delivery::Delivered, late), Sent::default(), "not counted twice");
}

#[test]
fn rows_of_a_receiver_that_is_gone_stay_shown_and_go_when_it_comes_back() {
    let (mail, hook) = (receiver("mail"), receiver("hook"));
    let mut outbox = Outbox::new([mail.clone(), hook.clone()]);
    put(&mut outbox, locked("a"), std::slice::from_ref(&mail), at(0));
    outbox.set_receivers([hook.clone()]);
    assert_eq!(outbox.due(at(0)).orders, []);
    assert_eq!(outbox.make_rows(locked("b"), std::slice::from_ref(&mail), at(0)), []);
    let names: Vec<(String, u64)> = outbox.views(at(0)).into_iter().map(|v| (v.receiver, v.depth)).collect();
    assert_eq!(names, [("hook".to_owned(), 0), ("mail".to_owned(), 1)]);
    outbox.set_receivers([hook.clone(), mail.clone()]);
    assert_eq!(drain(&mut outbox, at(0)), ["a"]);
    outbox.set_receivers([hook]);
    assert_eq!(outbox.views(at(0)).len(), 1, "an empty line of a gone receiver is not kept");
}

#[test]
fn one_receivers_failure_does_not_hold_the_others() {
    let (mail, hook) = (receiver("mail"), receiver("hook"));
    let mut outbox = Outbox::new([mail.clone(), hook.clone()]);
    put(&mut outbox, locked("a"), &[mail.clone(), hook.clone()], at(0));
    let due = outbox.due(at(0));
    assert_eq!(due.orders.len(), 2);
    let _failed = outbox.sent(&mail, &due.orders[0].notice.id, retry(), at(0));
    let sent = outbox.sent(&hook, &due.orders[0].notice.id, Delivery::Delivered, at(0));
    assert_eq!(sent.counts.delivered, 1);
    let views: Vec<u64> = outbox.views(at(0)).iter().map(|v| v.depth).collect();
    assert_eq!(views, [0, 1]);
}

fn of_key(id: &str, key: &str, event: EventType, severity: Severity) -> Arc<Notice> {
    let workspace = WorkspaceId::new(&format!("w-{key}")).unwrap();
    Arc::new(Notice { key: Some(KeyId::new(key).unwrap()), workspaces: vec![workspace], ..bare(id, event, severity) })
}

#[test]
fn over_the_bound_quiet_rows_fold_first_then_drop_and_lock_notices_stay() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    let to = std::slice::from_ref(&mail);
    put(&mut outbox, of_key("lock-0", "locked", EventType::KeyRevoked, Severity::Critical), to, at(0));
    for n in 0..6_000 {
        put(&mut outbox, of_key(&format!("s{n}"), "flapping", EventType::KeySuspect, Severity::Warning), to, at(0));
    }
    for n in 0..4_500 {
        put(&mut outbox, of_key(&format!("r{n}"), &format!("k{n}"), EventType::KeyRevoked, Severity::Critical), to, at(0));
    }
    let due = outbox.due(at(0));
    let folded = due.rows.iter().filter(|row| row.state == OutboxState::Folded).count();
    assert_eq!((folded, due.counts[0].1), (1_501, Counts { folded: 1_501, ..Counts::default() }));
    assert!(due.rows.iter().all(|row| row.state != OutboxState::Folded || row.notice.event == EventType::KeySuspect));
    assert_eq!(outbox.views(at(0))[0].depth, 9_000);
    // Now only things that stand for themselves, and more locks than the bound holds.
    for n in 0..3_000 {
        put(&mut outbox, of_key(&format!("o{n}"), "op", EventType::OperatorAction, Severity::Info), to, at(1));
    }
    for n in 0..12_000 {
        put(&mut outbox, of_key(&format!("q{n}"), &format!("k{n}"), EventType::KeyRevoked, Severity::Critical), to, at(1));
    }
    let second = outbox.due(at(1));
    let lost: Vec<&OutboxRow> = second.rows.iter().filter(|row| row.state == OutboxState::Dead).collect();
    assert_eq!(lost.len(), 3_001, "every operator action and the last suspicion");
    assert!(lost.iter().all(|row| row.notice.severity != Severity::Critical));
    let left = outbox.views(at(1))[0].depth;
    assert_eq!(left, 12_001, "one row per key that may not be dropped");
    assert_eq!(outbox.views(at(1))[0].dead, 3_001);
}

#[test]
fn a_row_older_than_seven_days_is_dropped_unless_it_tells_of_a_lock() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([]);
    outbox.set_receivers([mail.clone()]);
    put(&mut outbox, locked("a"), std::slice::from_ref(&mail), at(0));
    put(&mut outbox, notice("b", EventType::KeyRotated, Severity::Info), std::slice::from_ref(&mail), at(0));
    assert_eq!(outbox.due(at(0)).counts, []);
    let due = outbox.due(at(MAX_AGE.0));
    assert_eq!(due.counts.iter().map(|(_, c)| c.dropped).sum::<u64>(), 1);
    assert_eq!(outbox.views(at(MAX_AGE.0))[0].depth, 1);
}

#[test]
fn after_an_outage_a_long_run_becomes_its_newest_notice_which_says_so() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    let to = std::slice::from_ref(&mail);
    put(&mut outbox, of_key("first", "other", EventType::KeyRevoked, Severity::Critical), to, at(0));
    for n in 0..20 {
        let event = if n % 2 == 0 { EventType::WorkspaceLocked } else { EventType::WorkspaceOpened };
        put(&mut outbox, of_key(&format!("f{n}"), "flap", event, Severity::Critical), to, at(0));
    }
    for n in 0..4 {
        put(&mut outbox, of_key(&format!("few{n}"), "calm", EventType::WorkspaceLocked, Severity::Critical), to, at(0));
    }
    let mut now = at(0);
    while now.mono < at(Span::from_hours(1).0).mono {
        let due = outbox.due(now);
        for order in due.orders {
            let _down = outbox.sent(&mail, &order.notice.id, retry(), now);
        }
        let next = outbox.next_deadline(at(0)).unwrap();
        now = now.plus(next.since(now.mono));
    }
    let order = outbox.due(now).orders.remove(0);
    let sent = outbox.sent(&mail, &order.notice.id, Delivery::Delivered, now);
    assert_eq!((sent.healed, sent.counts.folded), (true, 19));
    outbox.stored(sent.rows, now);
    let last = outbox.due(now).orders.remove(0);
    assert_eq!(last.notice.id.0.as_ref(), "f19");
    assert!(
        last.notice.message.ends_with("(19 earlier notices about this could not be delivered and are left out.)"),
        "{}",
        last.notice.message
    );
    let sent = outbox.sent(&mail, &last.notice.id, Delivery::Delivered, now);
    outbox.stored(sent.rows, now);
    assert_eq!(drain(&mut outbox, now), ["few0", "few1", "few2", "few3"], "a short run is told in full");
}

#[test]
fn a_restart_makes_in_flight_pending_and_keeps_the_numbers_rising() {
    let mail = receiver("mail");
    let mut outbox = Outbox::new([mail.clone()]);
    let mut rows = outbox.make_rows(locked("a"), std::slice::from_ref(&mail), at(5));
    rows.extend(outbox.make_rows(locked("b"), std::slice::from_ref(&mail), at(5)));
    rows[0].state = OutboxState::InFlight;
    rows[0].attempts = 3;
    rows[1].next_at = Wall(AT.0 + 999_999_999);
    let highest = rows[1].position;
    rows.reverse();
    let mut dead = rows[0].clone();
    dead.state = OutboxState::Dead;
    dead.id = NoticeId("d".into());
    rows.push(dead);
    let mut again = Outbox::new([mail.clone()]);
    again.restore(rows, at(10));
    let order = again.due(at(10)).orders.remove(0);
    assert_eq!((order.notice.id.0.as_ref(), order.attempt), ("a", 4));
    assert_eq!(again.views(at(10))[0].dead, 1);
    let backwards = Now { mono: at(10).mono, wall: Wall(0) };
    assert!(again.make_rows(locked("c"), std::slice::from_ref(&mail), backwards)[0].position > highest);
    let sent = again.sent(&mail, &order.notice.id, Delivery::Delivered, at(10));
    again.stored(sent.rows, at(10));
    assert_eq!(again.next_deadline(at(0)), Some(at(10).mono.plus(LONGEST_WISH)), "a stored time far ahead is bounded");
}
