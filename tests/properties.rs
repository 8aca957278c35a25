//! Invariants as properties of the pure stages, over inputs that nobody thought of: the time to a
//! lock, what counts as proof, and what stays readable.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

use std::sync::Arc;

use proptest::prelude::*;

use cmek_watchdog::gate::allows;
use cmek_watchdog::key::{KeyRef, KeyTarget, KeyVersion};
use cmek_watchdog::kms::{Answer, CallMeta, KeyFacts, KmsError, Unwrapped, Wrapped};
use cmek_watchdog::lifecycle::{Again, Did, KeyState, step};
use cmek_watchdog::policy::{Policy, lock_bound};
use cmek_watchdog::probe::{Call, Next, Plan, ProbeRun, Reply};
use cmek_watchdog::time::{Mono, Now, Span, Wall};
use cmek_watchdog::verdict::{Direction, Refused, Stated, Verdict, Witness, judge};
use cmek_watchdog::words::{Access, FailureKind, FeatureClass, ProviderKind};

const START: Now = Now { mono: Mono(1 << 41), wall: Wall(1_790_000_000_000) };

fn canary(number: u8) -> Wrapped {
    Wrapped { bytes: Arc::from(vec![number]), digest: [number; 32], version: Some(KeyVersion::new("v1")), sealed_with: "".into() }
}

fn meta() -> CallMeta {
    CallMeta { request_id: None, took: Span(1), provider_time: None }
}

/// How one call of a round ends.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Well,
    OtherBytes,
    Fails(FailureKind, bool),
}

fn ends() -> impl Strategy<Value = Ends> {
    prop_oneof![
        4 => Just(Ends::Well),
        1 => Just(Ends::OtherBytes),
        2 => (prop::sample::select(FailureKind::ALL.to_vec()), any::<bool>()).prop_map(|(kind, stated)| Ends::Fails(kind, stated)),
    ]
}

fn reply(call: &Call, ends: Ends) -> Reply {
    let error = |kind, stated| KmsError::new(kind, stated, "code", "text");
    match (call, ends) {
        (Call::WrapVersion(_) | Call::Rotation, _) => Reply::NotOffered,
        (Call::Wrap, Ends::Fails(kind, stated)) => Reply::Wrap(Answer { result: Err(error(kind, stated)), meta: meta() }),
        (Call::Wrap, Ends::Well | Ends::OtherBytes) => Reply::Wrap(Answer { result: Ok(canary(9)), meta: meta() }),
        (Call::Unwrap(_) | Call::UnwrapVersion(_), Ends::Fails(kind, stated)) => {
            Reply::Unwrap(Answer { result: Err(error(kind, stated)), meta: meta() })
        }
        (Call::Unwrap(of) | Call::UnwrapVersion(of), Ends::Well | Ends::OtherBytes) => {
            let digest = if matches!(ends, Ends::Well) { of.digest } else { [0; 32] };
            Reply::Unwrap(Answer { result: Ok(Unwrapped { digest, version: of.version.clone() }), meta: meta() })
        }
        (Call::Describe, Ends::Fails(kind, stated)) => Reply::Describe(Answer { result: Err(error(kind, stated)), meta: meta() }),
        (Call::Describe, Ends::Well | Ends::OtherBytes) => Reply::Describe(Answer { result: Ok(KeyFacts::default()), meta: meta() }),
    }
}

proptest! {
    /// Invariant 2: looks at the moments that the machine asks for, each as late as its call may take,
    /// propose the lock within the promised time from the first refused one.
    #[test]
    fn a_lasting_refusal_is_a_proposed_lock_within_the_promised_time(
        kind in prop::sample::select(vec![FailureKind::Disabled, FailureKind::PendingDeletion, FailureKind::Destroyed, FailureKind::AccessDenied]),
        late in prop::collection::vec(0u64..10_000, 8),
        suspect_s in 1u64..60,
        over_s in 1u64..600,
        looks in 1u8..5,
        more in 0u8..4,
    ) {
        let mut policy = Policy { suspect_interval: Span::from_secs(suspect_s), ..Policy::default() };
        if let Some(rule) = policy.on.get_mut(&kind) {
            (rule.looks, rule.of, rule.over) = (looks, looks + more, Span::from_secs(over_s));
            // One look spans no time.
            if looks == 1 { rule.over = Span::ZERO; }
        }
        let bound = lock_bound(&policy, kind).unwrap();
        let stated = if kind == FailureKind::AccessDenied { Stated::No } else { Stated::Both };
        let refused = Verdict::Refused(Refused { kind, stated, direction: Direction::Unwrap, weak: false });
        let (mut state, mut now) = (KeyState::Active, START);
        for late in late {
            let next = step(state, &refused, now, &policy, false);
            state = next.state;
            if let Did::Propose(finding) = next.did {
                prop_assert_eq!(finding.access, Access::Locked);
                prop_assert!(now.mono.since(START.mono) <= bound, "{} of {}", now.mono.since(START.mono), bound);
                return Ok(());
            }
            let Again::In(span) = next.again else { return Err(TestCaseError::fail("a suspect waits for its grid")) };
            now = now.plus(span).plus(Span(late));
        }
        prop_assert!(false, "eight refused looks and no lock");
    }

    /// Invariant 3: whatever the calls of a round answer, it is good only if something was wrapped and
    /// the canary that decides came back with the right bytes.
    #[test]
    fn a_round_is_good_only_when_every_byte_came_back(all in prop::collection::vec(ends(), 8), stored in any::<bool>(), older in 0usize..3, first in any::<bool>()) {
        let target = Arc::new(KeyTarget::plain(KeyRef::parse(ProviderKind::Local, "k").unwrap()));
        let plan = Plan {
            target,
            unwrap_first: first && stored,
            describe: true,
            current: stored.then(|| canary(1)),
            older: (0..older).map(|n| canary(2 + u8::try_from(n).unwrap())).collect(),
            missing: Vec::new(),
            rotation: false,
            deadline: Span::from_secs(60),
            call_timeout: Span::from_secs(10),
        };
        let (mut run, mut last, mut wrapped, mut opened, mut spoiled) = (ProbeRun::new(plan, START), None, false, 0, false);
        let mut all = all.into_iter();
        let evidence = loop {
            match run.next(last.take(), START) {
                Next::Done(evidence) => break evidence,
                Next::Call(call) => {
                    let how = all.next().unwrap_or(Ends::Well);
                    match (&call, how) {
                        (Call::Wrap, Ends::Well | Ends::OtherBytes) => wrapped = true,
                        // The last word counts: a stored canary that differs while a fresh one opens is our damage.
                        (Call::Unwrap(_), Ends::Well) => (opened, spoiled) = (opened + 1, false),
                        (Call::Unwrap(_), _) => spoiled = true,
                        _ => {}
                    }
                    last = Some(reply(&call, how));
                }
            }
        };
        for witness in [Witness::Good, Witness::DeniedLikeUs, Witness::Broken] {
            if let Verdict::Good { .. } = judge(&evidence, true, witness) {
                prop_assert!(wrapped && opened > 0 && !spoiled, "{:?}", evidence.legs);
            }
        }
    }

    /// Invariants 8 and 9 at the gate: safety metadata is read and control works in every state, and
    /// less access never allows more.
    #[test]
    fn metadata_stays_readable_and_less_access_never_allows_more(
        class in prop::sample::select(vec![FeatureClass::Content, FeatureClass::Write, FeatureClass::Control, FeatureClass::SafetyMetadata]),
        write in any::<bool>(),
    ) {
        let order = [Access::Open, Access::ReadOnly, Access::Locked];
        for access in order {
            prop_assert!(allows(access, FeatureClass::SafetyMetadata, false) && allows(access, FeatureClass::Control, write));
        }
        for pair in order.windows(2) {
            prop_assert!(allows(pair[0], class, write) || !allows(pair[1], class, write));
        }
        prop_assert!(allows(Access::Open, class, write));
    }
}
