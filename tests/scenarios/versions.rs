//! Versions and names of keys: which one protects what, and what moved.

use std::sync::Arc;

use cmek_watchdog::key::{KeyId, KeyVersion};
use cmek_watchdog::kms::{KeyFacts, VersionFact};
use cmek_watchdog::operate::{Action, RefusalSlug};
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::words::{Access, EventType, FailureKind, Leg};

use crate::bench::{Bench, HOUR, MINUTE, arn, aws, azure, refusal, vault_key};

fn customer(number: u32) -> String {
    arn(444_455_556_666, number)
}

fn described(version: &str) -> KeyFacts {
    KeyFacts { current_version: Some(KeyVersion::new(version)), ..KeyFacts::default() }
}

fn retire(version: &str) -> Action {
    Action::RetireVersion { key: KeyId::new("k1").unwrap(), version: KeyVersion::new(version), reason: "rotated".to_owned() }
}

/// Version, current, protects data, usable.
fn versions(bench: &Bench) -> Vec<(String, bool, bool, Option<bool>)> {
    bench.key("k1").versions.iter().map(|v| (v.version.to_string(), v.current, v.protects_data, v.usable)).collect()
}

/// BUG-011
#[test]
fn an_old_version_is_needed_until_a_fresh_wrap_names_the_new_one() {
    let mut bench = Bench::new(&aws(&[customer(1)], ""));
    bench.cloud.facts.insert(customer(1), described("1"));
    bench.run(5 * MINUTE);
    // The list already says 2 while wraps still come from 1: nothing is decided by the list.
    bench.cloud.facts.insert(customer(1), described("2"));
    bench.run(10 * MINUTE);
    assert_eq!(versions(&bench), [("1".to_owned(), true, true, Some(true))]);
    assert_eq!(bench.key("k1").rotations, 0);
    let refused = bench.ask(retire("1")).unwrap_err();
    assert_eq!(refused.slug, RefusalSlug::CurrentVersion, "not yet: a fresh wrap still names it");

    bench.cloud.rotate_to(&customer(1), 2);
    // And the other way round: the list lags for three minutes, the wrap has moved.
    bench.cloud.facts.insert(customer(1), described("1"));
    bench.run(3 * MINUTE);
    let now = versions(&bench);
    assert_eq!(now, [("1".to_owned(), false, true, Some(true)), ("2".to_owned(), true, true, Some(true))]);
    bench.cloud.facts.insert(customer(1), described("2"));
    assert_eq!(bench.key("k1").rotations, 1);
    // The old one is opened on, until a person says that no data is under it.
    bench.run(2 * HOUR);
    assert!(bench.cloud.asked.iter().filter(|ask| ask.leg == Leg::UnwrapVersion).count() >= 2);
    bench.ask(retire("1")).unwrap();
    assert!(bench.key("k1").versions.iter().any(|v| v.version.as_str() == "1" && v.retired && !v.protects_data));
}

/// BUG-012
#[test]
fn versions_that_alternate_during_a_rotation_are_one_rotation() {
    let mut bench = Bench::new(&aws(&[customer(1)], ""));
    bench.cloud.facts.insert(customer(1), described("1"));
    bench.run(5 * MINUTE);
    for generation in [2, 1, 2, 1, 2, 2, 2] {
        bench.cloud.rotate_to(&customer(1), generation);
        bench.run(MINUTE);
    }
    bench.cloud.facts.insert(customer(1), described("2"));
    bench.run(HOUR);
    let told = bench.recorded(EventType::KeyRotated);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].detail["old_version"].as_str(), told[0].detail["new_version"].as_str()), ("1", "2"), "both ids are logged");
    assert_eq!(bench.told(EventType::KeyRotated).len(), 1);
    assert_eq!((bench.state("k1"), bench.access("w1"), bench.key("k1").rotations), ("active", Access::Open, 1));
    bench.assert_nothing_lowered();
}

/// BUG-025. The documented time: describe is asked every fifth round.
#[test]
fn an_alias_that_moves_is_found_within_five_rounds_inside_the_call_budget() {
    let alias = |number: u32| format!("arn:aws:kms:us-east-2:444455556666:alias/ws-{number}");
    let keys: Vec<String> = (1..=100).map(alias).collect();
    let mut bench = Bench::new(&aws(&keys, ""));
    let behind = |number: u32| KeyFacts { resolved: Some(Arc::from(customer(number))), ..KeyFacts::default() };
    for number in 1..=100 {
        bench.cloud.facts.insert(alias(number), behind(number));
    }
    bench.run(15 * MINUTE);
    bench.cloud.asked.clear();
    bench.cloud.facts.insert(alias(42), behind(142));
    let took = bench.until(6 * MINUTE, "the alias", |b| !b.recorded(EventType::KeySubstituted).is_empty());
    assert!(took <= 5 * MINUTE + 2, "{took}");
    bench.run(20 * MINUTE);
    let told = bench.told(EventType::KeySubstituted);
    assert_eq!(told.len(), 1, "once");
    assert_eq!(told[0].key.as_ref().unwrap().as_str(), "k42");
    assert_eq!((bench.access("w42"), bench.key("k42").rotations), (Access::Open, 0), "no rotation, and the pinned key's own earning");
    let describes = bench.cloud.asked.iter().filter(|ask| ask.leg == Leg::Describe).count();
    let seconds = usize::try_from(took + 20 * MINUTE).unwrap();
    assert!(describes <= 5 * seconds, "{describes} describes in {seconds} s");
    assert_eq!(bench.told(EventType::KeyRotated).len(), 0);
}

/// A list of enabled versions `1`, `2`, ..., made at these times, the current one among them.
fn listed(current: &str, made: &[Wall]) -> KeyFacts {
    let fact = |(at, made): (usize, &Wall)| VersionFact {
        version: KeyVersion::new(&(at + 1).to_string()),
        enabled: true,
        created_at: Some(*made),
    };
    KeyFacts { versions: made.iter().enumerate().map(fact).collect(), ..described(current) }
}

/// BUG-176
#[test]
fn a_version_that_came_and_went_between_two_looks_is_found_and_watched() {
    let key = vault_key(1);
    let start = |bench: &mut Bench| {
        let born = vec![bench.now().wall.minus(Span::from_days(30))];
        bench.cloud.facts.insert(vault_key(1), listed("1", &born));
        bench.run(10 * MINUTE);
        assert_eq!(versions(bench).len(), 1);
        born
    };
    // 1 -> 2 -> 1: no wrap of ours ever named 2.
    let mut bench = Bench::new(&azure(1));
    let mut born = start(&mut bench);
    born.push(bench.now().wall);
    bench.cloud.facts.insert(key.clone(), listed("1", &born));
    bench.run(10 * MINUTE);
    let found = [("1".to_owned(), true, true, Some(true)), ("2".to_owned(), false, true, Some(true))];
    assert_eq!(versions(&bench), found, "the list shows it, and it has a canary of its own");
    assert_eq!(bench.access("w1"), Access::Open);
    let mut opened = bench.cloud.asked.iter().filter(|ask| ask.leg == Leg::UnwrapVersion).map(|ask| ask.version.clone().unwrap());
    assert_eq!(opened.next_back(), Some(KeyVersion::new("2")));
    // Proof of that: its loss is seen.
    bench.cloud.refuse(&key, &[Leg::UnwrapVersion], &refusal(FailureKind::Disabled, true));
    bench.until(2 * HOUR, "the loss of version 2", |b| !b.told(EventType::KeyVersionLost).is_empty());
    assert_eq!((bench.state("k1"), bench.access("w1")), ("impaired", Access::Open));

    // 1 -> 2 -> 3 in one interval.
    let mut bench = Bench::new(&azure(1));
    let mut born = start(&mut bench);
    born.extend([bench.now().wall, bench.now().wall.plus(Span::from_secs(20))]);
    bench.cloud.facts.insert(key.clone(), listed("3", &born));
    bench.cloud.rotate_to(&key, 3);
    bench.run(10 * MINUTE);
    assert_eq!(bench.key("k1").rotations, 2, "{:?}", bench.recorded(EventType::KeyRotated));
    assert_eq!(bench.recorded(EventType::KeyRotated).len(), 2);
    let usable: Vec<_> = versions(&bench).into_iter().map(|(version, _, protects, usable)| (version, protects, usable)).collect();
    assert_eq!(usable, ["1", "2", "3"].map(|version| (version.to_owned(), true, Some(true))));
    bench.assert_nothing_lowered();
}
