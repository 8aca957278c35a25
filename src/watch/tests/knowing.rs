//! What is known of keys: rotations, versions, doubt, misses, and who asks.

use super::*;

fn one() -> Bench {
    Bench::proven(&key("k", "\"w\"", "default"))
}

#[test]
fn a_rotation_is_told_and_the_old_version_is_opened_next() {
    let mut bench = one();
    bench.truth("k").current = 2;
    bench.run(130);
    assert_eq!(bench.told(EventType::KeyRotated), 1);
    let view = &bench.keys["k"];
    let old = view.versions.iter().find(|v| v.version.as_str() == "v1").unwrap();
    assert!(old.usable == Some(true) && old.protects_data && !old.current && old.last_checked.is_some());
    // Back and forth within the hour is propagation.
    bench.truth("k").current = 1;
    bench.run(65);
    bench.truth("k").current = 2;
    bench.run(65);
    assert_eq!((bench.told(EventType::KeyRotated), bench.keys["k"].rotations), (1, 1));
}

#[test]
fn validate_joins_a_round_and_answers_when_it_is_judged() {
    let mut bench = one();
    let before = bench.probes.len();
    bench.ask(7, Action::Validate { key: KeyId::new("k").unwrap() });
    assert_eq!((bench.refusal(7), bench.probes.len() - before), (None, 1));
    bench.ask(8, Action::Validate { key: KeyId::new("none").unwrap() });
    assert_eq!(bench.refusal(8), Some(RefusalSlug::UnknownKey));
    bench.cloud.side("p").fault = Some(cloud::Fault::Hang(1000));
    bench.ask(9, Action::Validate { key: KeyId::new("k").unwrap() });
    bench.ask(10, Action::RetireKey { key: KeyId::new("k").unwrap(), reason: "r".to_owned() });
    assert_eq!((bench.refusal(9), bench.state("k")), (None, StateWord::Retired));
}

#[test]
fn failing_credentials_lock_nothing_and_are_told_once() {
    let mut bench = Bench::proven(&format!("{}{}", key("k", "\"w\"", "default"), key("l", "\"x\"", "default")));
    bench.cloud.side("p").denied = true;
    bench.run(3 * 3600);
    assert_eq!((bench.access("w"), bench.access("x")), (Access::Open, Access::Open));
    assert_eq!(bench.told(EventType::ProviderCredentials), 1);
}

#[test]
fn staleness_is_told_at_its_marks_and_every_day() {
    let mut bench = one();
    bench.cloud.side("p").fault = Some(cloud::Fault::Kind(FailureKind::Throttled, 1000));
    bench.run(400);
    assert_eq!(bench.told(EventType::KeyStale), 1);
    bench.run(3600);
    assert_eq!(bench.told(EventType::KeyStale), 2);
    bench.run(20 * 3600);
    assert_eq!(bench.told(EventType::KeyStale), 2);
    bench.run(5 * 3600);
    assert_eq!(bench.told(EventType::KeyStale), 3);
    assert_eq!(bench.access("w"), Access::Open);
}

#[test]
fn a_probe_that_hangs_expires_and_its_late_answer_is_nobodys() {
    let mut bench = one();
    bench.cloud.side("p").fault = Some(cloud::Fault::Hang(1000));
    bench.run(65);
    let (subject, attempt) = bench.probes.iter().rev().find(|(s, _)| matches!(s, Subject::Key(_))).cloned().unwrap();
    bench.run(60);
    assert_eq!(bench.keys["k"].failure_kind, Some(FailureKind::Timeout));
    let mut late = Evidence::lost(bench.now, FailureKind::Disabled, "late");
    late.legs[1].stated = true;
    for _ in 0..3 {
        bench.turn(vec![Event::Probed { subject: subject.clone(), attempt, evidence: Box::new(late.clone()) }]);
    }
    assert_eq!((bench.state("k"), bench.access("w")), (StateWord::Active, Access::Open));
}

#[test]
fn a_window_without_evidence_is_a_recorded_miss_with_its_cause() {
    let mut bench = Bench::proven(&format!("[policies.fast]\nprobe_interval = \"1s\"\n{}", key("k", "\"w\"", "fast")));
    bench.cloud.side("p").fault = Some(cloud::Fault::Hang(1000));
    bench.run(10);
    let missed: Vec<_> = bench.disk.records.iter().filter(|r| r.event == EventType::ProbeMissedWindow).collect();
    assert!(missed.len() >= 3 && missed.iter().all(|r| r.detail["cause"] == "in_flight"), "{}", missed.len());
}

#[test]
fn rounds_that_wait_for_a_control_key_are_judged_when_it_is_registered_no_more() {
    let mut bench = one();
    bench.control_hangs = true;
    bench.deny("k", true);
    bench.run(62);
    let looked = bench.probes.len();
    bench.run(10);
    assert_eq!(bench.probes.len(), looked, "the round of the key waits for the control key");
    let without = HEAD.replace("control_key", "# control_key");
    let config = plan::parsed(&format!("{without}{}", key("k", "\"w\"", "default")));
    bench.ask(1, Action::Reload { config });
    assert_eq!(bench.state("k"), StateWord::Suspect);
    bench.run(70);
    assert!(bench.probes.len() > looked, "and looked at again");
}

#[test]
fn a_provider_that_cannot_be_reached_is_told_once_until_it_answers() {
    let mut bench = Bench::proven(&format!("{}{}", key("k", "\"w\"", "default"), key("l", "\"x\"", "default")));
    bench.cloud.side("p").fault = Some(cloud::Fault::Kind(FailureKind::Unreachable, 1000));
    bench.run(3600);
    assert_eq!((bench.told(EventType::ProviderUnreachable), bench.access("w")), (1, Access::Open));
    bench.cloud.side("p").fault = None;
    bench.run(300);
    bench.cloud.side("p").fault = Some(cloud::Fault::Kind(FailureKind::Unreachable, 1000));
    bench.run(600);
    assert_eq!(bench.told(EventType::ProviderUnreachable), 2);
}

#[test]
fn a_key_that_never_works_is_told_once_and_locks_nothing() {
    let mut bench = one();
    bench.deny("never", true);
    bench.reload(&format!("{}{}", key("k", "\"w\"", "default"), key("never", "\"x\"", "default")));
    bench.run(3600);
    assert_eq!((bench.told(EventType::KeyUnproven), bench.state("never"), bench.access("x")), (1, StateWord::Unproven, Access::Open));
}

#[test]
fn a_denial_that_nobody_can_vouch_for_is_put_before_a_person() {
    let mut bench = one();
    bench.cloud.key("p", plan::CONTROL).truth.status = Status::Disabled;
    bench.truth("k").unwrap_denied = true;
    bench.run(29 * 60);
    let asked =
        |bench: &Bench| bench.notices.iter().filter(|n| n.event == EventType::KeySuspect && n.message.contains("lock by hand")).count();
    assert_eq!((asked(&bench), bench.access("w")), (0, Access::Open));
    bench.run(5 * 60);
    assert_eq!((asked(&bench), bench.access("w")), (1, Access::Open));
    bench.run(3600);
    assert_eq!(asked(&bench), 1);
}

#[test]
fn the_end_of_our_own_secret_is_told_once_a_mark_over_restarts_and_not_after_its_renewal() {
    let day = 86_400;
    let with = |days: u64| {
        let at = Wall(1_790_000_000_000).plus(Span::from_days(days));
        HEAD.replace("region = \"us-east-2\"", &format!("region = \"us-east-2\"\ncredentials_expire_at = \"{at}\""))
    };
    let told = |bench: &Bench| bench.notices.iter().filter(|n| n.event == EventType::ProviderCredentials).count();
    let mut bench = Bench::new("");
    let take = |bench: &mut Bench, days: u64| {
        bench.config = plan::parsed(&with(days));
        let config = Arc::clone(&bench.config);
        bench.ask(900, Action::Reload { config });
    };
    take(&mut bench, 31);
    assert_eq!(told(&bench), 0);
    bench.run(day + 60);
    assert_eq!(told(&bench), 1);
    let notice = bench.notices.iter().rev().find(|n| n.event == EventType::ProviderCredentials).unwrap();
    assert_eq!(notice.severity, crate::words::Severity::Warning);
    bench.restart();
    bench.turn(vec![Event::Wake]);
    bench.run(60);
    assert_eq!(told(&bench), 1);
    bench.now = bench.now.plus(Span::from_days(23));
    bench.turn(vec![Event::Wake]);
    assert_eq!(told(&bench), 2);
    take(&mut bench, 400);
    assert!(!bench.disk.restored().meta.contains_key("credentials:p"));
    bench.now = bench.now.plus(Span::from_days(7));
    bench.turn(vec![Event::Wake]);
    assert_eq!(told(&bench), 2);
}

#[test]
fn a_key_not_seen_for_long_does_not_wait_for_its_slot_after_a_restart() {
    for id in ["a", "b", "c", "d", "e", "f"] {
        let mut bench = Bench::proven(&key(id, "\"w\"", "default"));
        bench.run(70);
        bench.restart();
        let (stored, down) = (bench.keys[id].last_conclusive_at.unwrap(), Span::from_secs(90));
        // The stored row is up to ten minutes old; the daemon comes back 90 s after it.
        bench.now.wall = stored.plus(down);
        bench.restart();
        let next = bench.keys[id].next_probe_at.unwrap();
        assert!(next <= stored.plus(Span::from_secs(120)), "{id}: {next} of {stored}");
    }
}

#[test]
fn a_rule_shorter_than_the_cache_needs_an_answer_of_the_control_key_for_each_denial() {
    let policy =
        "[policies.fast]\non.access_denied = { looks = 2, of = 2, over = \"2s\", access = \"locked\" }\nsuspect_interval = \"1s\"\n";
    let mut bench = Bench::proven(&format!("{policy}{}", key("k", "\"w\"", "fast")));
    let controls = |bench: &Bench| bench.probes.iter().filter(|(s, _)| matches!(s, Subject::Control(_))).count();
    let before = controls(&bench);
    bench.deny("k", true);
    until_locked(&mut bench, "w", 200);
    assert!(controls(&bench) - before >= 2, "{}", controls(&bench) - before);
}
