//! What went wrong with audit logs: names that settle late, look-ups without a bound, local time, cursors
//! that skip, and silence taken for proof. Area `audit` of tests/data/scenarios.jsonl.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cmek_watchdog::audit::{Actor, AuditEvent, Told};
use cmek_watchdog::clock;
use cmek_watchdog::operate::Action;
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::words::{Access, AuditMeaning, EventType, FailureKind, Leg, ProviderKind};
use serde_json::{Value, json};

use crate::bench::{Bench, MINUTE, arn, aws, refusal};
use crate::clouds::aws::{ACCESS_KEY, FakeAws};
use crate::https;
use crate::watchdog::{Daemon, Program};

/// Scenario -> file and test that proves it.
const TABLE: &[(&str, &str, &str)] = &[
    ("BUG-045", include_str!("audit.rs"), "an_opaque_principal_settles_and_a_lasting_one_is_told_as_deleted"),
    ("BUG-132", include_str!("audit.rs"), "a_long_look_up_is_bounded_paced_and_resumable_and_probes_go_on"),
    ("BUG-134", include_str!("audit.rs"), "the_machines_time_zone_changes_no_window"),
    ("BUG-136", include_str!("audit.rs"), "ten_events_of_one_moment_in_two_polls_are_all_kept_once"),
    ("BUG-139", include_str!("audit.rs"), "a_log_that_does_not_show_uses_is_said_once_by_project"),
    ("BUG-140", include_str!("audit.rs"), "an_uncovered_stretch_stands_beside_the_history"),
    ("BUG-182", include_str!("../store_chain.rs"), "a_torn_tail_is_closed_at_the_next_start_and_stays_visible"),
    ("BUG-183", include_str!("../store_chain.rs"), "a_journal_lost_to_the_last_row_after_pruning_is_closed_too"),
    ("BUG-184", include_str!("../store_chain.rs"), "pruning_leaves_an_anchor_and_the_rest_verifies"),
    ("BUG-185", include_str!("../store_chain.rs"), "a_new_line_in_the_key_file_rotates_and_a_lost_key_is_told"),
];

#[test]
fn every_scenario_of_the_area_audit_has_its_test() {
    let mut ids = BTreeSet::new();
    for line in include_str!("../data/scenarios.jsonl").lines() {
        let scenario: Value = serde_json::from_str(line).unwrap();
        if scenario["area"] == "audit" {
            ids.insert(scenario["id"].as_str().unwrap().to_owned());
        }
    }
    let tested: BTreeMap<&str, (&str, &str)> = TABLE.iter().map(|(id, file, test)| (*id, (*file, *test))).collect();
    assert_eq!(ids, tested.keys().map(|id| (*id).to_owned()).collect());
    for (id, (file, test)) in tested {
        assert!(file.contains(&format!("fn {test}()")), "{id}: no test {test}");
    }
}

const PUSH: &str = "[audit.trail]\nkind = \"push\"\nprovider = \"aws\"\n";

fn told(source: &str, events: Vec<AuditEvent>) -> Action {
    Action::Audit { told: Box::new(Told { source: source.to_owned(), events, ..Told::default() }) }
}

fn grant_revoked(principal: &str, id: &str, at: Wall) -> AuditEvent {
    AuditEvent {
        id: "event-1".to_owned(),
        provider: ProviderKind::Aws,
        name: "RevokeGrant".to_owned(),
        meaning: AuditMeaning::GrantRevoked,
        subjects: cmek_watchdog::audit::subject::aws_arn(&arn(444_455_556_666, 1)).into_iter().collect(),
        version: None,
        actor: Actor { principal: Some(principal.to_owned()), id: Some(id.to_owned()), ..Actor::default() },
        at,
        error: None,
    }
}

/// BUG-045
#[test]
fn an_opaque_principal_settles_and_a_lasting_one_is_told_as_deleted() {
    let id = "AROAEXAMPLEEXAMPLEAA";
    for resolves in [true, false] {
        let mut bench = Bench::proven(&aws(&[arn(444_455_556_666, 1), arn(777_788_889_999, 2)], PUSH));
        let data = [Leg::Wrap, Leg::Unwrap, Leg::UnwrapVersion];
        bench.cloud.refuse(&arn(444_455_556_666, 1), &data, &refusal(FailureKind::AccessDenied, false));
        let revoked_at = bench.now().wall;
        bench.until(3 * MINUTE, "w1", |b| b.access("w1") == Access::Locked);
        bench.ask(told("trail", vec![grant_revoked(id, id, revoked_at)])).unwrap();
        bench.run(MINUTE);
        assert!(bench.told(EventType::KeyAttributed).is_empty(), "not told while it may still become a name");
        if resolves {
            bench.ask(told("trail", vec![grant_revoked("arn:aws:sts::1:assumed-role/Admin/s", id, revoked_at)])).unwrap();
        }
        bench.run(5 * MINUTE);
        let said = bench.told(EventType::KeyAttributed);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].actor.as_deref(), Some(if resolves { "arn:aws:sts::1:assumed-role/Admin/s" } else { id }));
        assert_eq!(said[0].message.contains("may be deleted"), !resolves, "{}", said[0].message);
    }
}

/// BUG-139
#[test]
fn a_log_that_does_not_show_uses_is_said_once_by_project() {
    let mut bench = Bench::proven(&aws(&[arn(444_455_556_666, 1)], PUSH));
    let unseen = |projects: &[&str]| Told {
        source: "trail".to_owned(),
        unseen: Some(projects.iter().map(|p| format!("use of keys in projects/{p} is not observable")).collect()),
        ..Told::default()
    };
    for projects in [&["a"][..], &["a"], &["a", "b"], &["a", "b"]] {
        bench.ask(Action::Audit { told: Box::new(unseen(projects)) }).unwrap();
        bench.run(MINUTE);
    }
    let said: Vec<String> = bench.told(EventType::AuditSilent).iter().map(|n| n.message.clone()).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().all(|text| text.contains("proves nothing")), "{said:?}");
    bench.assert_nothing_lowered();
}

/// CloudTrail as far as a reader meets it: 50 a page, two calls a second, newest first.
#[derive(Default)]
struct Trail {
    events: Vec<(String, Wall)>,
    asked: Vec<(Instant, Value)>,
    throttled: u32,
    refuse: Option<&'static str>,
}

fn look_up(trail: &mut Trail, key: &str, asked: &https::Asked) -> https::Reply {
    let body = asked.json();
    let now = Instant::now();
    let busy = trail.asked.iter().filter(|(at, _)| now.duration_since(*at) < Duration::from_secs(1)).count() >= 2;
    trail.asked.push((now, body.clone()));
    if let Some(code) = trail.refuse {
        return https::Reply::json(400, &json!({"__type": code, "message": "no"}));
    }
    if busy {
        trail.throttled += 1;
        return https::Reply::json(400, &json!({"__type": "ThrottlingException", "message": "Rate exceeded"}));
    }
    let ms = |name: &str| (body[name].as_f64().unwrap() * 1000.0) as i64;
    let (from, to) = (ms("StartTime"), ms("EndTime"));
    let mut found: Vec<&(String, Wall)> = trail.events.iter().filter(|(_, at)| at.0 >= from && at.0 <= to).collect();
    found.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    let skip: usize = body["NextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
    let account = key.split(':').nth(4).unwrap();
    let events: Vec<Value> = found
        .iter()
        .skip(skip)
        .take(50)
        .map(|(id, at)| {
            let record = json!({"eventID": id, "eventSource": "kms.amazonaws.com", "eventName": "UpdateKeyDescription", "eventTime": at.to_string(),
                "awsRegion": "us-east-2", "recipientAccountId": account, "requestParameters": {"keyId": key},
                "userIdentity": {"type": "IAMUser", "arn": format!("arn:aws:iam::{account}:user/alice")}});
            json!({"EventId": id, "EventName": "UpdateKeyDescription", "EventTime": at.0 as f64 / 1000.0, "CloudTrailEvent": record.to_string()})
        })
        .collect();
    let mut answer = json!({ "Events": events });
    if skip + 50 < found.len() {
        answer["NextToken"] = json!((skip + 50).to_string());
    }
    https::Reply::json(200, &answer)
}

struct Stage {
    trail: Arc<Mutex<Trail>>,
    program: Program,
    _aws: FakeAws,
    _server: https::Server,
}

async fn stage(zone: &str) -> Stage {
    let aws = FakeAws::start().await;
    let key = aws.create_key("us-east-2", "444455556666");
    let trail = Arc::new(Mutex::new(Trail::default()));
    let (shared, about) = (Arc::clone(&trail), key.clone());
    let server = https::http(https::handler(move |asked| look_up(&mut shared.lock().unwrap(), &about, &asked))).await;
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nrun_dir = \"run\"\n[store]\nurl = \"sqlite://state.db\"\n\
         [policies.default]\nprobe_interval = \"1s\"\nsuspect_interval = \"300ms\"\ncall_timeout = \"2s\"\n\
         [providers.aws]\nkind = \"aws\"\nregion = \"us-east-2\"\nendpoint = \"{}\"\ncalls_per_second = 200\n\
         [[keys]]\nid = \"k\"\nprovider = \"aws\"\nkey = \"{key}\"\nworkspaces = [\"w\"]\n\
         [audit.trail]\nkind = \"cloudtrail\"\nprovider = \"aws\"\npoll_interval = \"1s\"\nendpoint = \"http://{}\"\n",
        aws.url(),
        server.addr
    );
    let program = Program::new(&text, &[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", "s"), ("TZ", zone)]);
    Stage { trail, program, _aws: aws, _server: server }
}

/// Ids of the events in the key's history, in their order.
fn heard(daemon: &Daemon) -> Vec<String> {
    let history = daemon.get("/v1/keys/k/history?limit=1000");
    let items = history["items"].as_array().unwrap().iter().filter(|r| r["type"] == "audit.event");
    items.map(|r| r["event_id"].as_str().unwrap().to_owned()).collect()
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(40);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// BUG-132
#[tokio::test(flavor = "multi_thread")]
async fn a_long_look_up_is_bounded_paced_and_resumable_and_probes_go_on() {
    let stage = stage("UTC").await;
    let now = clock::now().wall;
    // Twenty pages in the first window.
    stage.trail.lock().unwrap().events = (0..1000).map(|n| (format!("e{n}"), now.minus(Span::from_secs(600 + n)))).collect();
    let calls = || stage.trail.lock().unwrap().asked.len();
    let mut daemon = Daemon::start(&stage.program).await;
    until("some pages", || calls() >= 5).await;
    daemon.kill();
    // The new process knows nothing of the old one's last calls.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = calls();
    let daemon = Daemon::start(&stage.program).await;
    until("the rest of the pages", || calls() >= before + 18).await;
    let trail = stage.trail.lock().unwrap();
    assert_eq!(trail.throttled, 0, "two calls a second are allowed");
    for (_, body) in &trail.asked {
        assert_eq!(body["LookupAttributes"].as_array().map(Vec::len), Some(1), "{body}");
        let span = body["EndTime"].as_f64().unwrap() - body["StartTime"].as_f64().unwrap();
        assert!(span <= 4500.0 && body["MaxResults"] == 50, "{body}");
    }
    let tokens: Vec<u64> = trail.asked.iter().filter_map(|(_, b)| b["NextToken"].as_str()?.parse().ok()).collect();
    // What comes after the last page is the next window, which overlaps this one.
    let first: Vec<u64> = tokens.iter().copied().take_while(|token| *token < 950).collect();
    assert!(
        first.first() == Some(&50) && first.is_sorted() && first.iter().filter(|token| **token == 50).count() == 1,
        "read on where it stopped: {tokens:?}"
    );
    drop(trail);
    let key = daemon.get("/v1/keys/k");
    assert_eq!(key["state"], "active", "probes wait for no log");
}

/// BUG-134
#[tokio::test(flavor = "multi_thread")]
async fn the_machines_time_zone_changes_no_window() {
    for zone in ["America/Chicago", "Asia/Tokyo"] {
        let stage = stage(zone).await;
        let now = clock::now().wall;
        stage.trail.lock().unwrap().events = vec![("fresh".to_owned(), now.minus(Span::from_mins(2)))];
        let daemon = Daemon::start(&stage.program).await;
        until("the event of two minutes ago", || heard(&daemon) == ["fresh"]).await;
        let asked = stage.trail.lock().unwrap().asked[0].1.clone();
        let (start, end) = (asked["StartTime"].as_f64().unwrap() * 1000.0, asked["EndTime"].as_f64().unwrap() * 1000.0);
        assert!((end - now.0 as f64).abs() < 60_000.0 && start < end, "{zone}: {asked}");
        let at = daemon.get("/v1/keys/k/history?limit=1000")["items"][0]["at"].as_str().unwrap().to_owned();
        assert!(at.ends_with('Z'), "{at}");
    }
}

/// BUG-136
#[tokio::test(flavor = "multi_thread")]
async fn ten_events_of_one_moment_in_two_polls_are_all_kept_once() {
    let stage = stage("UTC").await;
    let at = clock::now().wall.minus(Span::from_mins(1));
    let of = |range: std::ops::Range<u32>| range.map(|n| (format!("e{n}"), at)).collect::<Vec<_>>();
    stage.trail.lock().unwrap().events = of(0..6);
    let daemon = Daemon::start(&stage.program).await;
    until("the first six", || heard(&daemon).len() == 6).await;
    stage.trail.lock().unwrap().events.extend(of(6..10));
    until("all ten", || heard(&daemon).len() >= 10).await;
    let polls = stage.trail.lock().unwrap().asked.len();
    until("more polls", || stage.trail.lock().unwrap().asked.len() >= polls + 3).await;
    let ids = heard(&daemon);
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (10, 10), "{ids:?}");
}

/// BUG-140
#[tokio::test(flavor = "multi_thread")]
async fn an_uncovered_stretch_stands_beside_the_history() {
    let stage = stage("UTC").await;
    stage.trail.lock().unwrap().refuse = Some("OptInRequired");
    let daemon = Daemon::start(&stage.program).await;
    let path = "/v1/keys/k/history?limit=1000";
    let dark = daemon.until(path, Duration::from_secs(30), |h| h["audit"][0]["trouble"] == "log_disabled").await;
    assert!(dark["audit"][0]["seen_until"].is_null(), "nothing is claimed to be covered: {dark:#}");
    stage.trail.lock().unwrap().refuse = None;
    let seen = daemon.until(path, Duration::from_secs(40), |h| h["audit"][0]["trouble"].is_null()).await;
    let covered = &seen["audit"][0];
    assert!(covered["seen_until"].is_string() && covered["gaps"].as_array().unwrap().len() == 1, "{covered:#}");
    let silent = daemon.get("/v1/activity?limit=1000");
    let count = |kind: &str| silent["items"].as_array().unwrap().iter().filter(|r| r["type"] == kind).count();
    assert_eq!((count("audit.silent"), count("audit.resumed")), (1, 1));
}
