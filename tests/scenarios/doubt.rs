//! Trouble that is no one's act: it ages, it is told, it never locks.

use cmek_watchdog::time::Span;
use cmek_watchdog::watch::Count;
use cmek_watchdog::words::{Access, EventType, FailureKind, Leg};

use crate::bench::{Bench, HOUR, MINUTE, arn, aws, control, refusal};

fn customer(number: u32) -> String {
    arn(444_455_556_666, number)
}

/// BUG-004
#[test]
fn throttling_ages_and_is_told_and_never_locks() {
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
    let key = customer(1);
    bench.cloud.hook(move |ask| (ask.key == key).then(|| refusal(FailureKind::Throttled, false)));
    bench.run(20 * MINUTE);
    let told = bench.told(EventType::KeyStale);
    assert_eq!(told.len(), 1, "after five minutes; the next is after an hour");
    assert_eq!(told[0].key.as_ref().unwrap().as_str(), "k1");
    assert_eq!((bench.state("k1"), bench.key("k1").failure_kind), ("active", Some(FailureKind::Throttled)));
    assert_eq!(bench.key("k1").verdict.unwrap().as_str(), "inconclusive");
    let age = bench.now().wall.since(bench.key("k1").last_conclusive_at.unwrap());
    assert!(age >= Span::from_mins(18), "the gauge's source grows: {age}");
    let rounds = bench.cloud.asked.iter().filter(|ask| ask.key == customer(1) && ask.leg == Leg::Wrap).count();
    assert!(rounds <= 21, "no hammering: {rounds} rounds in 20 min");

    let (key, mut calls) = (customer(1), 0u32);
    bench.cloud.hook(move |ask| {
        calls += u32::from(ask.key == key);
        (ask.key == key && calls.is_multiple_of(2)).then(|| refusal(FailureKind::Throttled, false))
    });
    bench.run(20 * MINUTE);
    assert_eq!(bench.state("k1"), "active");
    bench.assert_nothing_lowered();
    assert_eq!(bench.state("k2"), "active");
}

/// BUG-023
#[test]
fn a_restart_under_dead_credentials_changes_no_lock() {
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2), arn(555_566_667_777, 3)], ""));
    bench.cloud.refuse(&customer(1), &[Leg::Wrap, Leg::Unwrap], &refusal(FailureKind::Disabled, true));
    bench.run(3 * MINUTE);
    assert_eq!(bench.access("w1"), Access::Locked);
    let before = bench.lowered.clone();
    // The lease ended: everything is 403, our own control key too, and nobody tells who we are.
    bench.cloud.hook(|_| Some(refusal(FailureKind::AccessDenied, false)));
    bench.cloud.identity = None;
    bench.run(5 * MINUTE);
    bench.restart();
    assert_eq!((bench.access("w1"), bench.access("w2"), bench.access("w3")), (Access::Locked, Access::Open, Access::Open));
    bench.run(24 * HOUR);
    assert_eq!((bench.access("w1"), bench.access("w2"), bench.access("w3")), (Access::Locked, Access::Open, Access::Open));
    assert_eq!(bench.lowered, before, "nothing newly locked");
    assert!(!bench.told(EventType::ProviderCredentials).is_empty());
    assert!(bench.told(EventType::WorkspaceOpened).is_empty());
    assert!(bench.providers.values().all(|provider| provider.credentials_failing));
}

/// BUG-054
#[test]
fn a_probe_that_waits_its_turn_is_a_missed_window_and_no_failure() {
    let keys: Vec<String> = (1..=100).map(customer).collect();
    let config = aws(&keys, "").replace("kind = \"aws\"\n", "kind = \"aws\"\ncalls_per_second = 2\n");
    let mut bench = Bench::new(&config);
    bench.cloud.takes = 1000;
    bench.run(2 * HOUR);
    let failed = bench.counts.iter().any(|count| matches!(count, Count::Leg { kind: Some(_), .. }));
    assert!(!failed, "no leg failed: what did not leave was not tried");
    let missed: u64 = bench.counts.iter().map(|count| if let Count::Missed { count, .. } = count { *count } else { 0 }).sum();
    assert!(missed > 0, "the queue is told");
    let causes: std::collections::BTreeSet<&str> =
        bench.recorded(EventType::ProbeMissedWindow).into_iter().map(|record| record.detail["cause"].as_str()).collect();
    assert!(causes.contains("budget") && causes.iter().all(|cause| ["budget", "in_flight"].contains(cause)), "{causes:?}");
    assert!(bench.keys.values().all(|key| key.state.as_str() == "active"), "{:?}", bench.states());
    let longest = bench.counts.iter().filter_map(|c| if let Count::Leg { took, .. } = c { *took } else { None }).max();
    assert_eq!(longest, Some(Span(1000)), "a leg's time is its own call's and holds no waiting");
    bench.assert_nothing_lowered();
}

/// BUG-161
#[test]
fn a_storm_leaves_no_lasting_mark() {
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
    bench.run(10 * MINUTE);
    let rounds = |bench: &Bench| bench.cloud.asked.iter().filter(|ask| ask.key == customer(1) && ask.leg == Leg::Wrap).count();
    bench.cloud.asked.clear();
    bench.run(HOUR);
    let steady = rounds(&bench);
    bench.cloud.hook(|_| Some(refusal(FailureKind::Throttled, false)));
    bench.run(HOUR);
    let stale = bench.told(EventType::KeyStale).len();
    assert!(stale >= 2, "both keys were told as stale");
    let mut calls = 0u32;
    bench.cloud.hook(move |_| {
        calls += 1;
        calls.is_multiple_of(100).then(|| refusal(FailureKind::ProviderFault, false))
    });
    bench.run(10 * MINUTE);
    bench.cloud.asked.clear();
    bench.run(24 * HOUR);
    let after = rounds(&bench);
    assert!(after.abs_diff(steady * 24) <= steady * 24 / 50, "{after} rounds a day, {steady} an hour before the storm");
    assert_eq!(bench.told(EventType::KeyStale).len(), stale, "single faults alarm nobody");
    assert_eq!((bench.state("k1"), bench.state("k2")), ("active", "active"));
    bench.assert_nothing_lowered();
}

/// BUG-162, between providers; the audit source's own budget is its adapter's part.
#[test]
fn one_providers_throttling_slows_no_other() {
    let other = arn(777_788_889_999, 998);
    let mut config = aws(&[customer(1)], "");
    config.push_str(&format!("[providers.second]\nkind = \"aws\"\nregion = \"us-east-2\"\ncontrol_key = \"{other}\"\n"));
    for number in 2..=40 {
        let (provider, key) = (if number <= 20 { "aws" } else { "second" }, customer(number));
        config
            .push_str(&format!("[[keys]]\nid = \"k{number}\"\nprovider = \"{provider}\"\nkey = \"{key}\"\nworkspaces = [\"w{number}\"]\n"));
    }
    let mut bench = Bench::proven(&config);
    let throttled: Vec<String> = (1..=20).map(customer).chain([control()]).collect();
    bench.cloud.hook(move |ask| throttled.contains(&ask.key).then(|| refusal(FailureKind::Throttled, false)));
    bench.cloud.asked.clear();
    bench.run(HOUR);
    for number in 21..=40 {
        let rounds = bench.cloud.asked.iter().filter(|ask| ask.key == customer(number) && ask.leg == Leg::Wrap).count();
        assert!(rounds >= 59, "k{number}: {rounds} rounds in an hour");
    }
    // A revocation over there is still found in its time.
    bench.cloud.refuse(&customer(21), &[Leg::Wrap, Leg::Unwrap], &refusal(FailureKind::Disabled, true));
    bench.until(3 * MINUTE, "k21", |b| b.access("w21") == Access::Locked);
    assert_eq!(bench.lowered.len(), 1);
}
