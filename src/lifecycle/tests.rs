use super::*;
use crate::policy::Confirm;
use crate::time::{Mono, Wall};
use proptest::prelude::*;

fn at(secs: u64) -> Now {
    Now { mono: Mono((1 << 41) + secs * 1000), wall: Wall(1_764_000_000_000 + secs as i64 * 1000) }
}

fn refused(kind: FailureKind, stated: Stated, direction: Direction) -> Verdict {
    Verdict::Refused(Refused { kind, stated, direction, weak: false })
}

fn disabled() -> Verdict {
    refused(FailureKind::Disabled, Stated::Both, Direction::Unwrap)
}

fn denied() -> Verdict {
    refused(FailureKind::AccessDenied, Stated::No, Direction::Unwrap)
}

fn unsure(kind: FailureKind) -> Verdict {
    Verdict::Unsure { kind, direction: Direction::Unwrap, vouched: true }
}

const GOOD: Verdict = Verdict::Good { complete: true, warned: None };
const PART: Verdict = Verdict::Good { complete: false, warned: None };

/// Feeds looks at the moments that the machine asks for; gives what it did each time, with the second.
fn drive(mut state: KeyState, policy: &Policy, looks: &[Verdict]) -> (KeyState, Vec<(u64, Did)>) {
    let (mut now, mut did) = (0, vec![]);
    for verdict in looks {
        let step = step(state, verdict, at(now), policy, false);
        state = step.state;
        did.push((now, step.did));
        if let Did::Propose(finding) = step.did {
            state = lock(state, finding, Some(Sequence(7)));
        }
        now += match step.again {
            Again::Grid => 60,
            Again::In(span) => span.0.div_ceil(1000),
        };
    }
    (state, did)
}

fn proposed(did: &[(u64, Did)]) -> Option<(u64, Finding)> {
    did.iter().find_map(|(at, d)| if let Did::Propose(f) = d { Some((*at, *f)) } else { None })
}

#[test]
fn a_withheld_wrap_waits_as_long_as_the_policy_says_of_its_kind() {
    let rule = Confirm { looks: 3, of: 4, over: Span::from_mins(5), access: Some(Access::Locked) };
    let mut policy = Policy::default();
    policy.on.insert(FailureKind::NetworkBlocked, rule);
    let of = |kind, direction| looks::rule_of(&Refused { kind, stated: Stated::No, direction, weak: false }, &policy);
    assert_eq!(of(FailureKind::NetworkBlocked, Direction::Wrap), Some(Confirm { access: Some(Access::ReadOnly), ..rule }));
    assert_eq!(of(FailureKind::NetworkBlocked, Direction::Unwrap), Some(rule));
    let quick = Confirm { looks: 2, of: 2, over: Span::from_secs(5), access: Some(Access::ReadOnly) };
    assert_eq!(of(FailureKind::AccessDenied, Direction::Wrap), Some(quick));
}

#[test]
fn each_row_of_the_default_policy_locks_at_its_own_time() {
    use FailureKind::*;
    let policy = Policy::default();
    let rows = [
        (refused(Disabled, Stated::Both, Direction::Unwrap), Some((5, Access::Locked))),
        (refused(PendingDeletion, Stated::Both, Direction::Unwrap), Some((5, Access::Locked))),
        (refused(Destroyed, Stated::Both, Direction::Unwrap), Some((5, Access::Locked))),
        (refused(Disabled, Stated::Alone, Direction::Unwrap), Some((30, Access::Locked))),
        (refused(AccessDenied, Stated::No, Direction::Unwrap), Some((30, Access::Locked))),
        (refused(AccessDenied, Stated::Alone, Direction::Unwrap), Some((30, Access::Locked))),
        (refused(Destroyed, Stated::No, Direction::Unwrap), Some((60, Access::Locked))),
        (refused(Expired, Stated::No, Direction::Unwrap), Some((5, Access::Locked))),
        (refused(Disabled, Stated::Alone, Direction::Wrap), Some((5, Access::ReadOnly))),
        (refused(AccessDenied, Stated::No, Direction::Wrap), Some((5, Access::ReadOnly))),
        (refused(Corrupt, Stated::No, Direction::Bytes), Some((5, Access::ReadOnly))),
        (unsure(NetworkBlocked), None),
        (unsure(KeyStoreUnavailable), None),
    ];
    for (verdict, expected) in rows {
        let (_, did) = drive(KeyState::Active, &policy, &vec![verdict.clone(); 12]);
        assert_eq!(proposed(&did).map(|(at, f)| (at, f.access)), expected, "{verdict:?}: {did:?}");
    }
}

#[test]
fn held_kinds_are_confirmed_and_said_once_but_do_not_lock() {
    let (state, did) = drive(KeyState::Active, &Policy::default(), &vec![unsure(FailureKind::NetworkBlocked); 12]);
    assert_eq!(did.iter().filter(|(_, d)| matches!(d, Did::HeldByPolicy(_))).map(|(at, _)| *at).collect::<Vec<_>>(), [300]);
    assert_eq!((state.word(), state.held_by()), (StateWord::Suspect, Some(HeldBy::Policy)));
}

#[test]
fn a_policy_may_let_withholding_lock() {
    let mut policy = Policy::default();
    policy.on.get_mut(&FailureKind::NetworkBlocked).unwrap().access = Some(Access::ReadOnly);
    let (_, did) = drive(KeyState::Active, &policy, &vec![unsure(FailureKind::NetworkBlocked); 12]);
    // Unwrap is refused, so read_only is not enough (direction first).
    assert_eq!(proposed(&did).map(|(at, f)| (at, f.access)), Some((300, Access::Locked)));
}

#[test]
fn every_state_meets_every_verdict() {
    let policy = Policy::default();
    let finding = Finding {
        cause: Cause::Kind(FailureKind::Disabled),
        kind: FailureKind::Disabled,
        access: Access::Locked,
        direction: Direction::Unwrap,
        stated: Stated::Both,
    };
    let suspect = || step(KeyState::Active, &disabled(), at(0), &policy, false).state;
    let revoked = || lock(suspect(), finding, Some(Sequence(7)));
    let recovering = || step(revoked(), &GOOD, at(60), &policy, false).state;
    let impaired = || KeyState::Impaired { finding: Finding { access: Access::Open, direction: Direction::Version, ..finding } };
    let lost = refused(FailureKind::Disabled, Stated::Alone, Direction::Version);
    let throttled = unsure(FailureKind::Throttled);
    use StateWord::*;
    for (state, verdict, word) in [
        (KeyState::Unproven, &GOOD, Active),
        (KeyState::Unproven, &PART, Unproven),
        (KeyState::Unproven, &disabled(), Unproven),
        (KeyState::Unproven, &throttled, Unproven),
        (KeyState::Active, &GOOD, Active),
        (KeyState::Active, &PART, Active),
        (KeyState::Active, &throttled, Active),
        (KeyState::Active, &disabled(), Suspect),
        (KeyState::Active, &lost, Suspect),
        (suspect(), &GOOD, Suspect),
        (suspect(), &throttled, Suspect),
        (suspect(), &disabled(), Suspect),
        (revoked(), &disabled(), Revoked),
        (revoked(), &throttled, Revoked),
        (revoked(), &PART, Revoked),
        (revoked(), &GOOD, Recovering),
        (recovering(), &GOOD, Recovering),
        (recovering(), &PART, Recovering),
        (recovering(), &throttled, Recovering),
        (recovering(), &disabled(), Revoked),
        (impaired(), &GOOD, Active),
        (impaired(), &PART, Impaired),
        (impaired(), &throttled, Impaired),
        (impaired(), &lost, Impaired),
        (impaired(), &disabled(), Suspect),
        (KeyState::Retired, &disabled(), Retired),
        (KeyState::Retired, &GOOD, Retired),
    ] {
        let before = state.word();
        assert_eq!(step(state, verdict, at(61), &policy, false).state.word(), word, "{before} x {verdict:?}");
    }
}

#[test]
fn a_suspicion_ends_after_as_many_good_looks_as_its_rule_spans_not_after_one() {
    let (state, _) = drive(KeyState::Active, &Policy::default(), &[denied(), GOOD, GOOD, GOOD]);
    assert_eq!(state.word(), StateWord::Suspect);
    let (state, did) = drive(KeyState::Active, &Policy::default(), &[denied(), GOOD, GOOD, GOOD, GOOD]);
    assert_eq!((state, did.last().unwrap().1), (KeyState::Active, Did::Cleared));
}

#[test]
fn looks_in_a_hurry_never_count() {
    let policy = Policy::default();
    let mut state = KeyState::Active;
    for second in 0..29 {
        let step = step(state, &denied(), at(second), &policy, false);
        assert!(!matches!(step.did, Did::Propose(_)), "second {second}");
        state = step.state;
    }
    let KeyState::Suspect { looks, .. } = &state else { panic!("{state:?}") };
    assert_eq!(looks.counted(), 2, "29 hinted looks within 29 s are two counted ones");
}

#[test]
fn a_surer_look_counts_at_once_beside_weaker_ones() {
    let policy = Policy::default();
    let looks = [denied(), disabled(), disabled()];
    let (mut state, mut proposed_at) = (KeyState::Active, None);
    for (second, look) in [0, 15, 20, 30].into_iter().zip(looks.iter().chain([&disabled()])) {
        let step = step(state, look, at(second), &policy, false);
        if matches!(step.did, Did::Propose(_)) {
            proposed_at.get_or_insert(second);
        }
        state = step.state;
    }
    assert_eq!(proposed_at, Some(20));
}

#[test]
fn a_restart_keeps_the_counts_and_asks_for_one_fresh_refused_look() {
    let policy = Policy::default();
    let (state, _) = drive(KeyState::Active, &policy, &[denied(), denied()]);
    let text = serde_json::to_string(&state).unwrap();
    let mut restored: KeyState = serde_json::from_str(&text).unwrap();
    restored.rebase(at(28), &policy);
    let step = step(restored, &denied(), at(30), &policy, false);
    assert!(matches!(step.did, Did::Propose(_)), "{step:?}");
}

#[test]
fn a_weak_witness_asks_for_six_looks_over_five_minutes_and_a_good_look_elsewhere() {
    let policy = Policy::default();
    let weak = Verdict::Refused(Refused { kind: FailureKind::AccessDenied, stated: Stated::No, direction: Direction::Unwrap, weak: true });
    for (vouched, expected) in [(false, None), (true, Some(300))] {
        let (mut state, mut now, mut proposed_at) = (KeyState::Active, 0, None);
        for _ in 0..12 {
            let step = step(state, &weak, at(now), &policy, vouched);
            state = step.state;
            if matches!(step.did, Did::Propose(_)) {
                proposed_at.get_or_insert(now);
            }
            now += if let Again::In(span) = step.again { span.0 / 1000 } else { 60 };
        }
        assert_eq!(proposed_at, expected);
    }
}

#[test]
fn unlocking_takes_three_rounds_over_a_minute_and_a_refused_one_starts_again() {
    let policy = Policy::default();
    let mut looks = vec![disabled(), disabled(), GOOD, GOOD, unsure(FailureKind::Throttled), disabled(), GOOD, GOOD, GOOD];
    let (_, did) = drive(KeyState::Active, &policy, &looks);
    let unlocks: Vec<usize> = did.iter().enumerate().filter(|(_, (_, d))| *d == Did::ProposeUnlock).map(|(i, _)| i).collect();
    assert_eq!(unlocks, [8]);
    let (first_good, unlocked) = (did[6].0, did[8].0);
    assert!(unlocked - first_good >= 60, "{did:?}");
    looks.truncate(8);
    assert!(!drive(KeyState::Active, &policy, &looks).1.iter().any(|(_, d)| *d == Did::ProposeUnlock));
}

#[test]
fn a_manual_policy_waits_for_a_person() {
    let policy = Policy { unlock: Unlock::Manual, ..Policy::default() };
    let (state, did) = drive(KeyState::Active, &policy, &[disabled(), disabled(), GOOD, GOOD, GOOD, GOOD, GOOD]);
    assert_eq!(did.iter().filter(|(_, d)| *d == Did::AwaitsApproval).count(), 1);
    assert_eq!((state.word(), state.held_by()), (StateWord::Recovering, Some(HeldBy::Approval)));
}

#[test]
fn read_only_grows_to_locked_when_unwrap_is_refused_too() {
    let wrap_only = refused(FailureKind::AccessDenied, Stated::No, Direction::Wrap);
    let mut looks = vec![wrap_only; 3];
    looks.extend(vec![denied(); 8]);
    let (state, did) = drive(KeyState::Active, &Policy::default(), &looks);
    let levels: Vec<Access> = did.iter().filter_map(|(_, d)| if let Did::Propose(f) = d { Some(f.access) } else { None }).collect();
    assert_eq!(levels, [Access::ReadOnly, Access::Locked]);
    assert_eq!(state.word(), StateWord::Revoked);
}

#[test]
fn a_lost_version_impairs_by_default_and_locks_where_the_policy_says() {
    let lost = refused(FailureKind::Disabled, Stated::Alone, Direction::Version);
    let (state, did) = drive(KeyState::Active, &Policy::default(), &vec![lost.clone(); 4]);
    assert_eq!(state.word(), StateWord::Impaired);
    assert!(proposed(&did).is_none());
    let policy = Policy { lost_version: Some(Access::Locked), ..Policy::default() };
    let (_, did) = drive(KeyState::Active, &policy, &vec![lost; 4]);
    assert_eq!(proposed(&did).map(|(_, f)| (f.access, f.cause)), Some((Access::Locked, Cause::VersionLost)));
}

#[test]
fn flapping_is_told_once_after_ten_minutes() {
    let looks: Vec<Verdict> = (0..120).map(|i| if i % 3 == 0 { denied() } else { GOOD }).collect();
    let (_, did) = drive(KeyState::Active, &Policy::default(), &looks);
    let told: Vec<u64> = did.iter().filter(|(_, d)| matches!(d, Did::Flapping(_))).map(|(at, _)| *at).collect();
    assert_eq!(told.len(), 1, "{did:?}");
    assert!(told[0] >= 600 && proposed(&did).is_none());
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    let kind = proptest::sample::select(FailureKind::ALL.to_vec());
    let stated = proptest::sample::select(vec![Stated::No, Stated::Alone, Stated::Both]);
    let direction = proptest::sample::select(vec![Direction::Version, Direction::Wrap, Direction::Bytes, Direction::Unwrap]);
    prop_oneof![
        3 => Just(GOOD),
        1 => Just(PART),
        4 => (kind.clone(), stated, direction.clone(), any::<bool>()).prop_map(|(kind, stated, direction, weak)| if crate::verdict::is_conclusive(kind) {
            Verdict::Refused(Refused { kind, stated, direction, weak })
        } else {
            Verdict::Unsure { kind, direction, vouched: true }
        }),
        2 => (kind, direction).prop_map(|(kind, direction)| Verdict::Unsure { kind, direction, vouched: false }),
    ]
}

proptest! {
    /// Invariant 1: whatever the times and the order, doubt alone never proposes a lock.
    #[test]
    fn doubt_never_locks(gaps in proptest::collection::vec((0u64..400, proptest::sample::select(FailureKind::ALL.to_vec()), -7200i64..7200), 1..60)) {
        let policy = Policy::default();
        let (mut state, mut now) = (KeyState::Active, at(0));
        for (gap, kind, step_of_the_clock) in gaps {
            now = now.plus(Span::from_secs(gap));
            now.wall = Wall(now.wall.0 + step_of_the_clock * 1000);
            if crate::verdict::is_conclusive(kind) { continue; }
            let step = step(state, &unsure(kind), now, &policy, true);
            prop_assert!(!matches!(step.did, Did::Propose(_)), "{:?}", step.did);
            state = step.state;
        }
    }

    /// A lock needs refused looks spread over at least five monotonic seconds, whatever the wall
    /// clock does, and through restarts; an unlock needs its good rounds after the last refused one.
    #[test]
    fn locks_and_unlocks_are_earned(looks in proptest::collection::vec((any_verdict(), 0u64..40_000, -100_000i64..100_000, 0u8..12), 1..80)) {
        let policy = Policy::default();
        let (mut state, mut now) = (KeyState::Active, at(0));
        let mut refused_at: Vec<Mono> = vec![];
        let mut good_since_refusal = 0u32;
        for (verdict, gap, step_of_the_clock, restart) in looks {
            now = now.plus(Span(gap));
            if restart == 0 {
                state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
                state.rebase(now, &policy);
            } else {
                now.wall = Wall(now.wall.0 + step_of_the_clock);
            }
            match &verdict {
                Verdict::Refused(_) => { refused_at.push(now.mono); good_since_refusal = 0; }
                Verdict::Unsure { kind, vouched, .. } => if *vouched && policy.on.contains_key(kind) { refused_at.push(now.mono); good_since_refusal = 0; },
                Verdict::Good { complete, .. } => if *complete { good_since_refusal += 1; },
            }
            let locked_before = state.finding().map(|f| f.access);
            let step = step(state, &verdict, now, &policy, true);
            state = step.state;
            if let Did::Propose(finding) = step.did {
                prop_assert!(refused_at.len() >= 2, "one look is never enough");
                prop_assert!(matches!(verdict, Verdict::Refused(_) | Verdict::Unsure { .. }), "a lock needs a refused look at its end");
                prop_assert!(finding.access > Access::Open && Some(finding.access) > locked_before);
                prop_assert!(finding.access != Access::ReadOnly || finding.direction != Direction::Unwrap);
                state = lock(state, finding, Some(Sequence(1)));
            }
            if step.did == Did::ProposeUnlock {
                prop_assert!(good_since_refusal >= 3);
                state = KeyState::Active;
            }
            if let (Some(before), Some(after)) = (locked_before, state.finding().map(|f| f.access)) {
                prop_assert!(after >= before || step.did == Did::ProposeUnlock || before == Access::Open);
            }
        }
    }
}
