//! What owners do to their keys, judged by the whole core.

use cmek_watchdog::kms::{KeyFacts, KmsError};
use cmek_watchdog::operate::{Action, Reply};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, Cause, EventType, FailureKind, HeldBy, Leg, LegOutcome};

use crate::bench::{Ask, Bench, HOUR, MINUTE, arn, aws, refusal};

const DATA: [Leg; 3] = [Leg::Wrap, Leg::Unwrap, Leg::UnwrapVersion];

fn denied() -> KmsError {
    KmsError::new(
        FailureKind::AccessDenied,
        true,
        "AccessDeniedException",
        "User is not authorized with an explicit deny in a resource-based policy",
    )
}

fn customer(number: u32) -> String {
    arn(444_455_556_666, number)
}

/// Numbers the rounds of one key: calls of one round come together.
#[derive(Default)]
struct Rounds {
    last: u64,
    count: u32,
}

impl Rounds {
    fn number(&mut self, ask: &Ask) -> u32 {
        self.count += u32::from(self.count == 0 || ask.at > self.last + 1);
        self.last = ask.at;
        self.count
    }
}

/// BUG-002
#[test]
fn each_direction_is_judged_on_its_own() {
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2), customer(3)], ""));
    bench.cloud.refuse(&customer(1), &[Leg::Unwrap, Leg::UnwrapVersion], &denied());
    bench.cloud.refuse(&customer(2), &[Leg::Wrap], &denied());
    // One round tells both legs apart before anything is confirmed.
    bench.until(2 * MINUTE, "the first looks", |b| b.told(EventType::KeySuspect).len() == 2);
    for (key, wrap, unwrap) in [("k1", LegOutcome::Ok, LegOutcome::Failed), ("k2", LegOutcome::Failed, LegOutcome::Ok)] {
        let told = bench.told(EventType::KeySuspect).into_iter().find(|n| n.key.as_ref().unwrap().as_str() == key).unwrap();
        let of = |leg| told.evidence.iter().find(|l| l.leg == leg).unwrap().outcome;
        assert_eq!((of(Leg::Wrap), of(Leg::Unwrap)), (wrap, unwrap), "{key}");
    }
    bench.run(2 * MINUTE);
    assert_eq!((bench.access("w1"), bench.access("w2"), bench.access("w3")), (Access::Locked, Access::ReadOnly, Access::Open));
    assert_eq!((bench.state("k1"), bench.state("k2")), ("revoked", "impaired"));
    let locked = &bench.told(EventType::WorkspaceLocked)[0];
    assert_eq!(locked.workspaces[0].as_str(), "w1");
    let refused = locked.evidence.iter().find(|leg| leg.outcome == LegOutcome::Failed).unwrap();
    assert_eq!((refused.leg, refused.failure_kind), (Leg::Unwrap, Some(FailureKind::AccessDenied)), "the reason names the operation");
    assert_eq!(bench.told(EventType::WorkspaceReadOnly)[0].workspaces[0].as_str(), "w2");
}

/// BUG-041. The PutKeyPolicy event with its actor is the audit source's part.
#[test]
fn an_enabled_key_that_denies_us_is_revoked_and_the_notice_shows_both() {
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
    bench.cloud.refuse(&customer(1), &DATA, &denied());
    bench.run(3 * MINUTE);
    assert_eq!(bench.access("w1"), Access::Locked);
    let told = bench.told(EventType::WorkspaceLocked)[0];
    assert_eq!(told.cause, Some(Cause::Kind(FailureKind::AccessDenied)));
    let leg = |leg| told.evidence.iter().find(|l| l.leg == leg).unwrap();
    assert_eq!((leg(Leg::Describe).outcome, leg(Leg::Describe).failure_kind), (LegOutcome::Ok, None), "describe says enabled");
    assert_eq!((leg(Leg::Unwrap).outcome, leg(Leg::Unwrap).code.as_deref()), (LegOutcome::Failed, Some("AccessDeniedException")));
    assert!(told.next_step.as_ref().unwrap().contains("key policy"), "{:?}", told.next_step);
}

/// BUG-044
#[test]
fn a_lucky_success_does_not_end_a_suspicion() {
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
    // Half of the front ends still open it for 90 s: two bad rounds, then a good one, and again.
    let mut rounds = Rounds::default();
    bench.cloud.hook(move |ask| {
        let bad = ask.key == customer(1) && !rounds.number(ask).is_multiple_of(3);
        (bad && ask.leg != Leg::Describe).then(|| refusal(FailureKind::Disabled, true))
    });
    let proven = bench.recorded(EventType::KeyActive).len();
    bench.until(2 * MINUTE, "the first denial", |b| b.state("k1") == "suspect");
    let first = bench.records.iter().find(|r| r.event == EventType::KeySuspect).unwrap().at;
    bench.until(90, "confirmation", |b| b.access("w1") == Access::Locked);
    let confirmed = bench.records.iter().find(|r| r.event == EventType::KeyRevoked).unwrap().at;
    assert!(confirmed.since(first) >= Span::from_secs(5), "first denied and confirmed are two times");
    assert_eq!(bench.recorded(EventType::KeyActive).len(), proven, "no success in between was taken for the end");
    assert_eq!(bench.access("w2"), Access::Open);
}

/// BUG-165
#[test]
fn a_key_that_fails_every_second_time_is_told_and_four_of_five_lock() {
    let alternating = |every: u32, good: u32| {
        let mut rounds = Rounds::default();
        move |ask: &Ask| {
            let bad = ask.key == customer(1) && rounds.number(ask) % every >= good;
            (bad && ask.leg != Leg::Describe).then(denied)
        }
    };
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
    bench.cloud.hook(alternating(2, 1));
    bench.run(2 * HOUR);
    assert_eq!((bench.state("k1"), bench.access("w1")), ("suspect", Access::Open), "three of four never come");
    let told: Vec<_> = bench.told(EventType::KeySuspect).into_iter().filter(|n| n.message.contains("works then")).collect();
    assert_eq!(told.len(), 1, "said once that it flaps");
    bench.assert_nothing_lowered();
    bench.cloud.hook(alternating(5, 1));
    bench.until(5 * MINUTE, "four of five", |b| b.access("w1") == Access::Locked);

    // And where the policy says so, flapping itself locks.
    let strict = "[policies.default]\nflapping = { after = \"10m\", access = \"locked\" }";
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], strict));
    bench.cloud.hook(alternating(2, 1));
    let took = bench.until(HOUR, "flapping", |b| b.access("w1") == Access::Locked);
    assert!(took >= 10 * MINUTE, "{took}");
}

/// BUG-028
#[test]
fn a_scheduled_deletion_is_told_as_that_and_nothing_else() {
    let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], ""));
    let rotating = KeyFacts { next_rotation_at: Some(bench.now().wall.plus(Span::from_days(90))), ..KeyFacts::default() };
    bench.cloud.facts.insert(customer(1), rotating.clone());
    bench.run(10 * MINUTE);
    let before = bench.notices.len();
    // The service answers "no rotation" for a key that waits for its deletion.
    let deletion = bench.now().wall.plus(Span::from_days(7));
    let fault = refusal(FailureKind::PendingDeletion, true);
    bench.cloud.refuse(&customer(1), &DATA, &fault);
    let pending = KeyFacts { fault: Some(fault), deletion_at: Some(deletion), next_rotation_at: None, ..KeyFacts::default() };
    bench.cloud.facts.insert(customer(1), pending);
    bench.run(10 * MINUTE);
    assert_eq!(bench.access("w1"), Access::Locked);
    let mut events: Vec<EventType> = bench.notices[before..].iter().map(|n| n.event).collect();
    events.sort();
    let mut wanted = vec![EventType::KeySuspect, EventType::KeyRevoked, EventType::WorkspaceLocked, EventType::KeyDeletionScheduled];
    wanted.sort();
    assert_eq!(events, wanted, "each once, and no word of rotation");
    let told = bench.told(EventType::KeyDeletionScheduled)[0];
    assert!(told.message.contains(&deletion.to_string()[..10]), "{}", told.message);
    assert_eq!(bench.key("k1").facts.deletion_at, Some(deletion));
    assert_eq!(bench.key("k1").rotations, 0);
}

/// BUG-036
#[test]
fn bad_credentials_a_disabled_key_and_an_outage_are_three_things() {
    let config = aws(&[customer(1), customer(2)], "");
    let everything = |error: KmsError| move |_: &Ask| Some(error.clone());

    let mut bench = Bench::proven(&config);
    bench.cloud.hook(everything(refusal(FailureKind::Credentials, false)));
    bench.run(2 * HOUR);
    bench.assert_nothing_lowered();
    assert_eq!(bench.told(EventType::ProviderCredentials).len(), 1);

    let mut bench = Bench::proven(&config);
    bench.cloud.refuse(&customer(1), &DATA, &refusal(FailureKind::Disabled, true));
    let fault = Some(refusal(FailureKind::Disabled, true));
    bench.cloud.facts.insert(customer(1), KeyFacts { fault, ..KeyFacts::default() });
    bench.run(2 * MINUTE);
    assert_eq!((bench.access("w1"), bench.access("w2")), (Access::Locked, Access::Open));

    // The outage, with k1 locked before it, and a restart in the middle: both stay as they were.
    bench.cloud.hook(everything(refusal(FailureKind::Unreachable, false)));
    bench.run(HOUR);
    bench.restart();
    assert_eq!((bench.access("w1"), bench.access("w2")), (Access::Locked, Access::Open), "from the disk, before anybody was asked");
    bench.run(HOUR);
    assert_eq!((bench.access("w1"), bench.access("w2")), (Access::Locked, Access::Open));
    assert_eq!((bench.state("k1"), bench.state("k2")), ("revoked", "active"));
    assert!(bench.told(EventType::ProviderCredentials).is_empty());
}

/// BUG-157
#[test]
fn a_withheld_key_store_holds_or_locks_as_the_policy_says() {
    let unavailable = KmsError::new(FailureKind::KeyStoreUnavailable, false, "KMSInvalidStateException", "key is unavailable");
    let facts = KeyFacts { fault: Some(unavailable.clone()), ..KeyFacts::default() };
    let locking = "[policies.default.on]\nkey_store_unavailable = { looks = 3, of = 4, over = \"5m\", access = \"locked\" }";
    for (more, access, held) in [("", Access::Open, Some(HeldBy::Policy)), (locking, Access::Locked, None)] {
        let mut bench = Bench::proven(&aws(&[customer(1), customer(2)], more));
        bench.cloud.refuse(&customer(1), &DATA, &unavailable);
        bench.cloud.facts.insert(customer(1), facts.clone());
        bench.run(4 * MINUTE);
        assert_eq!(bench.access("w1"), Access::Open, "not before the confirmation's time");
        bench.run(6 * MINUTE);
        assert_eq!((bench.access("w1"), bench.key("k1").held_by), (access, held));
        assert_eq!(bench.access("w2"), Access::Open);
        let loud = bench.notices.iter().any(|n| n.key.as_ref().is_some_and(|k| k.as_str() == "k1") && n.severity.as_str() == "critical");
        assert!(loud, "held or locked, it is told aloud");
    }
}

/// BUG-020
#[test]
fn a_key_that_never_worked_is_not_revoked_however_long_the_token_is_old() {
    let mut bench = Bench::new(&aws(&[customer(1), customer(2)], ""));
    bench.cloud.refuse(&customer(1), &[Leg::Wrap, Leg::Unwrap, Leg::Describe], &refusal(FailureKind::AccessDenied, false));
    // The rights are there after five minutes; our token shows them after eight hours.
    bench.run(8 * HOUR);
    assert_eq!((bench.state("k1"), bench.access("w1")), ("unproven", Access::Open));
    assert_eq!(bench.state("k2"), "active");
    bench.assert_nothing_lowered();
    bench.cloud.allow(&customer(1));
    bench.until(2 * MINUTE, "proven at last", |b| b.state("k1") == "active");
    // Denials from before count for nothing afterwards.
    bench.cloud.refuse(&customer(1), &DATA, &denied());
    bench.until(2 * MINUTE, "a first denial", |b| b.state("k1") == "suspect");
    assert_eq!(bench.access("w1"), Access::Open);
}

/// BUG-180. The malformed answer is unclassified doubt.
#[test]
fn one_unreadable_key_spoils_no_other_and_no_round_is_good_without_it() {
    let keys: Vec<String> = (1..=100).map(customer).collect();
    let mut bench = Bench::new(&aws(&keys, ""));
    bench.cloud.refuse(&customer(7), &[Leg::Describe], &refusal(FailureKind::AccessDenied, false));
    let malformed = KmsError::new(FailureKind::Unclassified, false, "unreadable", "the answer cannot be read");
    bench.cloud.refuse(&customer(8), &[Leg::Wrap, Leg::Unwrap, Leg::Describe], &malformed);
    bench.run(10 * MINUTE);
    let words: Vec<&str> = bench.keys.values().map(|key| key.verdict.unwrap().as_str()).collect();
    assert_eq!(words.iter().filter(|word| **word == "usable").count(), 99);
    assert_eq!(bench.key("k8").verdict.unwrap().as_str(), "inconclusive");
    assert_eq!((bench.state("k7"), bench.state("k8")), ("active", "unproven"));
    let seven = bench.ask(Action::Validate { key: cmek_watchdog::key::KeyId::new("k7").unwrap() }).unwrap();
    let Reply::Key(seven) = seven else { panic!("{seven:?}") };
    let describe = seven.last_probe.as_ref().unwrap().legs.iter().find(|leg| leg.leg == Leg::Describe).unwrap();
    assert_eq!((describe.outcome, describe.failure_kind), (LegOutcome::Failed, Some(FailureKind::AccessDenied)), "not readable, and said");
    assert_eq!(seven.verdict.unwrap().as_str(), "usable");
    bench.assert_nothing_lowered();
}
