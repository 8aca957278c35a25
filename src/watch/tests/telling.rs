//! Who is told: fallbacks, quiet hours, acknowledgment and escalation, dead letters, reports, health.

use super::*;
use crate::notify::NoticeId;
use crate::operate::{NoticeFilter, Reply};

const MORE: &str = r#"
[receivers.pager]
kind = "pagerduty"
routing_key = "env:KEY"
[receivers.chief]
kind = "email"
smtp = "smtp://127.0.0.1:2525"
from = "a@example.com"
to = ["chief@example.com"]
[[routes]]
receivers = ["pager"]
severity = "critical"
match = { type = "workspace.*", key = "k" }
[notify]
escalate = { after = "15m", receivers = ["chief"] }
"#;

fn called_in() -> Bench {
    Bench::proven(&format!("{MORE}{}{}", key("k", "\"w\"", "default"), key("other", "\"v\"", "default")))
}

impl Bench {
    fn to(&self, receiver: &str) -> Vec<(EventType, String)> {
        self.sent.iter().filter(|(to, _)| to == receiver).map(|(_, notice)| (notice.event, notice.id.0.to_string())).collect()
    }

    fn listed(&mut self, state: &str) -> Vec<String> {
        self.ask(77, Action::ListNotices { filter: NoticeFilter { state: state.to_owned(), limit: 100 } });
        match self.replies.pop() {
            Some((_, Ok(Reply::Notices(views)))) => views.into_iter().map(|view| view.id).collect(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_lock_that_nobody_acknowledges_calls_others_in_once_and_they_hear_of_its_end() {
    let mut bench = called_in();
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    assert_eq!(bench.to("chief"), []);
    assert_eq!(bench.to("pager").len(), 1, "the route takes workspaces of this key only: {:?}", bench.to("pager"));
    bench.restart();
    bench.run(900);
    let called = bench.to("chief");
    assert_eq!(called.iter().map(|(event, _)| *event).collect::<Vec<_>>(), [EventType::WorkspaceLocked]);
    assert!(called[0].1.ends_with("_escalated"), "{called:?}");
    bench.restart();
    bench.run(3600);
    assert_eq!(bench.to("chief").len(), 1, "once, also after a restart");
    bench.truth("k").status = Status::Enabled;
    bench.run(400);
    assert_eq!(bench.to("chief").last().map(|(event, _)| *event), Some(EventType::WorkspaceOpened));
    assert_eq!(bench.listed("unacknowledged"), [""; 0]);
}

#[test]
fn an_acknowledged_lock_calls_nobody_in_and_tells_the_pager() {
    let mut bench = called_in();
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    let waiting = bench.listed("unacknowledged");
    assert_eq!(waiting.len(), 1);
    let id = NoticeId(waiting[0].as_str().into());
    bench.ask(5, Action::AcknowledgeNotice { id: id.clone() });
    assert_eq!(bench.refusal(5), None);
    let (_, last) = bench.sent.iter().rfind(|(to, _)| to == "pager").cloned().unwrap();
    assert_eq!((last.acknowledged_by.as_deref(), last.event), (Some("op"), EventType::WorkspaceLocked));
    bench.ask(6, Action::AcknowledgeNotice { id });
    assert_eq!(bench.refusal(6), None, "twice is as good as once");
    bench.restart();
    bench.run(3600);
    assert_eq!(bench.to("chief"), []);
    assert_eq!(bench.to("pager").iter().filter(|(_, id)| id.ends_with("_acknowledged")).count(), 1);
    bench.ask(7, Action::AcknowledgeNotice { id: NoticeId("ghost".into()) });
    assert_eq!(bench.refusal(7), Some(RefusalSlug::UnknownNotice));
}

const FALLBACK: &str = r#"
[receivers.first]
kind = "email"
fallback = "second"
smtp = "smtp://127.0.0.1:2525"
from = "a@example.com"
to = ["first@example.com"]
[receivers.second]
kind = "email"
smtp = "smtp://127.0.0.1:2525"
from = "a@example.com"
to = ["second@example.com"]
[[routes]]
receivers = ["first"]
severity = "critical"
"#;

#[test]
fn while_a_receiver_fails_its_fallback_is_told_and_nothing_is_told_there_twice() {
    let mut bench = Bench::proven(&format!("{FALLBACK}{}{}", key("k", "\"w\"", "default"), key("l", "\"v\"", "default")));
    bench.refuses.insert("first".to_owned(), Delivery::Retry { after: None, reason: "down".to_owned() });
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    assert_eq!(bench.to("second"), [], "it is not failing yet");
    bench.run(400);
    assert_eq!(bench.to("second").iter().filter(|(event, _)| *event == EventType::WorkspaceLocked).count(), 1);
    bench.truth("l").status = Status::Disabled;
    bench.run(130);
    assert_eq!(bench.to("second").iter().filter(|(event, _)| *event == EventType::WorkspaceLocked).count(), 2, "at once while it fails");
    bench.restart();
    bench.run(900);
    assert_eq!(bench.to("second").iter().filter(|(event, _)| *event == EventType::WorkspaceLocked).count(), 2);
    bench.refuses.clear();
    bench.run(600);
    let mut first: Vec<String> =
        bench.sent.iter().filter(|(to, n)| to == "first" && n.storm.is_none()).map(|(_, n)| n.id.0.to_string()).collect();
    first.dedup();
    assert!(first.len() >= 2, "the first one has them too, late: {first:?}");
}

#[test]
fn a_notice_refused_for_good_goes_to_the_fallback_and_can_be_sent_again_by_hand() {
    let mut bench = Bench::proven(&format!("{FALLBACK}{}", key("k", "\"w\"", "default")));
    bench.refuses.insert("first".to_owned(), Delivery::Refused { reason: "550".to_owned() });
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    assert_eq!(bench.to("second").iter().filter(|(event, _)| *event == EventType::WorkspaceLocked).count(), 1);
    bench.restart();
    let dead = bench.listed("dead");
    assert_eq!(dead.len(), 1, "{dead:?}");
    bench.refuses.clear();
    let before = bench.to("first").len();
    bench.ask(8, Action::ResendNotices { id: Some(NoticeId(dead[0].as_str().into())) });
    assert_eq!(bench.to("first").len(), before + 1);
    assert_eq!(bench.listed("dead"), [""; 0]);
    bench.restart();
    assert_eq!(bench.listed("dead"), [""; 0]);
    bench.ask(9, Action::ResendNotices { id: Some(NoticeId("ghost".into())) });
    assert_eq!(bench.refusal(9), Some(RefusalSlug::UnknownNotice));
    let journal = bench.disk.records.iter().filter(|r| r.detail.get("action").is_some_and(|a| a == "notice resend")).count();
    assert_eq!(journal, 1);
}

#[test]
fn quiet_hours_delay_information_only_and_lose_nothing() {
    let mut bench = Bench::proven(&key("k", "\"w\"", "default"));
    let until = bench.now.wall.plus(Span::from_hours(1));
    bench.ask(1, Action::Quiet { until: Some(until) });
    let before = bench.sent.len();
    bench.truth("k").current = 2;
    bench.run(130);
    assert_eq!(bench.sent.len(), before, "a rotation can wait");
    bench.run(3600);
    assert_eq!(bench.told(EventType::KeyRotated), 1, "it comes when the quiet hours end");
    let until = bench.now.wall.plus(Span::from_hours(8));
    bench.ask(2, Action::Quiet { until: Some(until) });
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    assert_eq!(bench.told(EventType::WorkspaceLocked), 1, "a lock cannot");
}

#[test]
fn a_report_is_sent_once_for_each_slot_also_over_a_restart() {
    let mut bench = Bench::proven(&key("k", "\"w\"", "default"));
    let slot = |bench: &mut Bench, slot: &str| {
        let receivers = vec![ReceiverId::new("mail").unwrap()];
        bench.ask(1, Action::Report { name: "digest".to_owned(), receivers, slot: slot.to_owned() });
        bench.told(EventType::Digest)
    };
    assert_eq!(slot(&mut bench, "2027-01-01T09:00:00"), 0, "the first sight of a slot begins the count");
    assert_eq!(slot(&mut bench, "2027-01-02T09:00:00"), 1);
    assert_eq!(slot(&mut bench, "2027-01-02T09:00:00"), 1);
    bench.restart();
    assert_eq!(slot(&mut bench, "2027-01-02T09:00:00"), 1, "a restart does not send it again");
    assert_eq!(slot(&mut bench, "2027-01-04T09:00:00"), 2, "one missed while down is sent after");
    assert_eq!(slot(&mut bench, "2027-01-03T09:00:00"), 2);
}

fn health(bench: &mut Bench) -> Option<String> {
    bench.ask(3, Action::Health);
    match bench.replies.pop() {
        Some((_, Ok(Reply::Health(why)))) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_heartbeat_stops_for_a_dead_store_or_an_old_critical_notice_and_never_for_a_key() {
    let mut bench = Bench::proven(&key("k", "\"w\"", "default"));
    bench.truth("k").status = Status::Destroyed;
    bench.run(600);
    assert_eq!(health(&mut bench), None, "a failing key is no fault of ours");
    bench.refuses.insert("mail".to_owned(), Delivery::Retry { after: None, reason: "down".to_owned() });
    bench.lock(4, "x");
    bench.run(800);
    assert_eq!(health(&mut bench), None);
    bench.run(200);
    assert!(health(&mut bench).is_some_and(|why| why.contains("critical notice waits")));
    bench.refuses.clear();
    bench.run(400);
    assert_eq!(health(&mut bench), None);
    bench.store = Store::Fails;
    bench.lock(5, "y");
    bench.run(5);
    assert!(health(&mut bench).is_some_and(|why| why.contains("store")));
}

#[test]
fn five_thousand_keys_of_one_receiver_are_a_few_messages_and_five_thousand_locks_and_events() {
    let mut rest = String::from("[brake]\nmost = 1000000\n");
    for n in 0..300 {
        rest.push_str(&key(&format!("k{n}"), &format!("\"w{n}\""), "default"));
    }
    let mut bench = Bench::new(&rest);
    bench.run(70);
    let proven = bench.sent.len();
    for n in 0..300 {
        bench.truth(&format!("k{n}")).status = Status::Disabled;
    }
    bench.run(400);
    let locked = (0..300).filter(|n| bench.access(&format!("w{n}")) == Access::Locked).count();
    assert_eq!(locked, 300);
    let journal = bench.disk.records.iter().filter(|r| r.event == EventType::WorkspaceLocked).count();
    assert_eq!(journal, 300, "every lock has its own event");
    let messages = bench.sent.len() - proven;
    assert!(messages <= 20, "{messages} messages");
    let told: usize = bench
        .sent
        .iter()
        .skip(proven)
        .flat_map(|(_, n)| n.storm.as_ref().map_or_else(|| vec![Arc::clone(n)], |s| s.members.clone()))
        .filter(|n| n.event == EventType::WorkspaceLocked)
        .count();
    assert_eq!(told, 300, "and is told once");
}
