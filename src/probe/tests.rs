use super::*;
use crate::key::KeyRef;
use crate::time::{Mono, Wall};
use crate::words::ProviderKind;

fn wrapped(seed: u8, version: &str) -> Wrapped {
    Wrapped { bytes: Arc::from([seed]), digest: [seed; 32], version: Some(KeyVersion::new(version)), sealed_with: "".into() }
}

fn plan() -> Plan {
    Plan {
        target: Arc::new(KeyTarget::plain(KeyRef::parse(ProviderKind::Local, "k").unwrap())),
        unwrap_first: false,
        describe: false,
        current: Some(wrapped(9, "1")),
        older: vec![],
        missing: Vec::new(),
        rotation: false,
        deadline: Span::from_secs(30),
        call_timeout: Span::from_secs(10),
    }
}

/// Runs a probe against scripted answers; gives the evidence and the calls that were made.
fn run(plan: Plan, mut answer: impl FnMut(&Call) -> Reply) -> (Evidence, Vec<Leg>) {
    let mut calls = vec![];
    let mut now = Now { mono: Mono(1 << 41), wall: Wall(0) };
    let mut run = ProbeRun::new(plan, now);
    let mut last = None;
    loop {
        match run.next(last.take(), now) {
            Next::Done(evidence) => return (*evidence, calls),
            Next::Call(call) => {
                calls.push(match call {
                    Call::Wrap => Leg::Wrap,
                    Call::Unwrap(_) => Leg::Unwrap,
                    Call::UnwrapVersion(_) => Leg::UnwrapVersion,
                    Call::WrapVersion(_) => Leg::Wrap,
                    Call::Describe | Call::Rotation => Leg::Describe,
                });
                last = Some(answer(&call));
                now = now.plus(Span(100));
                assert!(calls.len() < 20, "a probe must end");
            }
        }
    }
}

fn answer<T>(result: Result<T, KmsError>) -> Answer<T> {
    Answer { result, meta: CallMeta::default() }
}

fn refused(kind: FailureKind) -> KmsError {
    KmsError::new(kind, true, "code", "text")
}

fn good(call: &Call) -> Reply {
    match call {
        Call::Wrap => Reply::Wrap(answer(Ok(wrapped(1, "2")))),
        Call::WrapVersion(v) => Reply::Wrap(answer(Ok(wrapped(5, v.as_str())))),
        Call::Unwrap(w) | Call::UnwrapVersion(w) => Reply::Unwrap(answer(Ok(Unwrapped { digest: w.digest, version: None }))),
        Call::Describe => Reply::Describe(answer(Ok(KeyFacts::default()))),
        Call::Rotation => Reply::NotOffered,
    }
}

#[test]
fn a_steady_round_is_wrap_and_unwrap_and_keeps_the_fresh_canary() {
    let (evidence, calls) = run(plan(), good);
    assert_eq!(calls, [Leg::Wrap, Leg::Unwrap]);
    assert_eq!(evidence.fresh, Some(wrapped(1, "2")));
    assert_eq!(evidence.leg(Leg::Describe).unwrap().outcome, LegOutcome::NotRun);
}

#[test]
fn a_failed_wrap_makes_the_stored_canary_prove_unwrap_and_asks_describe() {
    let (evidence, calls) = run(plan(), |call| match call {
        Call::Wrap => Reply::Wrap(answer(Err(refused(FailureKind::AccessDenied)))),
        other => good(other),
    });
    assert_eq!(calls, [Leg::Wrap, Leg::Unwrap, Leg::Describe]);
    assert_eq!(evidence.leg(Leg::Unwrap).unwrap().outcome, LegOutcome::Ok);
    assert_eq!(evidence.fresh, None);
}

#[test]
fn a_failed_wrap_with_no_stored_canary_leaves_unwrap_not_run() {
    let (evidence, calls) = run(Plan { current: None, ..plan() }, |call| match call {
        Call::Wrap => Reply::Wrap(answer(Err(refused(FailureKind::AccessDenied)))),
        other => good(other),
    });
    assert_eq!(calls, [Leg::Wrap, Leg::Describe]);
    assert_eq!(evidence.leg(Leg::Unwrap).unwrap().outcome, LegOutcome::NotRun);
}

#[test]
fn a_suspect_look_stops_at_the_refused_unwrap_and_its_describe() {
    let (evidence, calls) = run(Plan { unwrap_first: true, ..plan() }, |call| match call {
        Call::Unwrap(_) => Reply::Unwrap(answer(Err(refused(FailureKind::Disabled)))),
        other => good(other),
    });
    assert_eq!(calls, [Leg::Unwrap, Leg::Describe]);
    assert_eq!(evidence.leg(Leg::Wrap).unwrap().outcome, LegOutcome::NotRun);
}

#[test]
fn a_suspect_look_that_opens_again_becomes_a_full_round() {
    let (evidence, calls) = run(Plan { unwrap_first: true, describe: true, ..plan() }, good);
    assert_eq!(calls, [Leg::Unwrap, Leg::Wrap, Leg::Unwrap, Leg::Describe]);
    assert!(evidence.fresh.is_some());
}

#[test]
fn equal_status_with_other_bytes_is_corrupt() {
    let (evidence, _) = run(plan(), |call| match call {
        Call::Unwrap(_) => Reply::Unwrap(answer(Ok(Unwrapped { digest: [7; 32], version: None }))),
        other => good(other),
    });
    let leg = evidence.leg(Leg::Unwrap).unwrap();
    assert_eq!((leg.outcome, leg.failure_kind), (LegOutcome::Failed, Some(FailureKind::Corrupt)));
    assert_eq!(leg.code.as_deref(), Some("digest_mismatch"));
    assert_eq!(evidence.fresh, None);
}

#[test]
fn older_versions_are_opened_each_and_a_loss_is_told_apart() {
    let plan = Plan { older: vec![wrapped(3, "a"), wrapped(4, "b")], ..plan() };
    let (evidence, calls) = run(plan, |call| match call {
        Call::UnwrapVersion(w) if w.version == Some(KeyVersion::new("b")) => Reply::Unwrap(answer(Err(refused(FailureKind::Disabled)))),
        other => good(other),
    });
    assert_eq!(calls, [Leg::Wrap, Leg::Unwrap, Leg::UnwrapVersion, Leg::UnwrapVersion, Leg::Describe]);
    let versions: Vec<_> =
        evidence.legs.iter().filter(|l| l.leg == Leg::UnwrapVersion).map(|l| (l.version.clone().unwrap(), l.outcome)).collect();
    assert_eq!(versions, [(KeyVersion::new("a"), LegOutcome::Ok), (KeyVersion::new("b"), LegOutcome::Failed)]);
}

#[test]
fn after_the_deadline_what_is_left_is_not_run() {
    let (evidence, calls) = run(Plan { deadline: Span(150), describe: true, older: vec![wrapped(3, "a")], ..plan() }, good);
    assert_eq!(calls, [Leg::Wrap, Leg::Unwrap]);
    assert!(evidence.legs.iter().filter(|l| l.outcome == LegOutcome::NotRun).map(|l| l.leg).eq([Leg::UnwrapVersion, Leg::Describe]));
}

#[test]
fn the_providers_clock_is_compared_with_ours() {
    let (evidence, _) = run(plan(), |call| match call {
        Call::Wrap => {
            Reply::Wrap(Answer { result: Ok(wrapped(1, "2")), meta: CallMeta { provider_time: Some(Wall(61_100)), ..CallMeta::default() } })
        }
        other => good(other),
    });
    assert_eq!(evidence.clock_skew_ms, Some(61_000));
}

#[test]
fn a_version_without_a_canary_gets_one_that_was_opened_again() {
    let missing = vec![KeyVersion::new("a"), KeyVersion::new("b")];
    let (evidence, calls) = run(Plan { missing: missing.clone(), ..plan() }, good);
    assert_eq!(calls, [Leg::Wrap, Leg::Unwrap, Leg::Wrap, Leg::UnwrapVersion, Leg::Wrap, Leg::UnwrapVersion]);
    assert_eq!(evidence.made.iter().map(|w| w.version.clone().unwrap()).collect::<Vec<_>>(), missing);
    let (evidence, calls) = run(Plan { missing: missing.clone(), ..plan() }, |call| match call {
        Call::WrapVersion(_) => Reply::NotOffered,
        other => good(other),
    });
    assert_eq!((calls.len(), evidence.made.len()), (3, 0), "asked once where the provider has no such call");
    let (evidence, _) = run(Plan { missing, ..plan() }, |call| match call {
        Call::WrapVersion(_) => Reply::Wrap(answer(Err(refused(FailureKind::Disabled)))),
        other => good(other),
    });
    assert!(
        evidence.made.is_empty() && evidence.legs.iter().all(|leg| leg.outcome != LegOutcome::Failed),
        "no finding about a version we never used"
    );
}

#[test]
fn a_rotation_is_asked_for_only_where_describe_cannot_tell_and_its_refusal_is_no_leg() {
    use crate::kms::{Rotation, RotationFact};
    let facts = |rotation| KeyFacts { rotation, ..KeyFacts::default() };
    let told = Rotation { rotated_at: Some(crate::time::Wall(1)), next_rotation_at: Some(crate::time::Wall(2)) };
    let denied = KmsError::new(FailureKind::AccessDenied, true, "AccessDeniedException", "no");
    for (described, answered, expected) in [
        (RotationFact::NotObservable, Ok(told), (RotationFact::Observed, told.next_rotation_at)),
        (RotationFact::NotObservable, Err(denied.clone()), (RotationFact::NotObservable, None)),
        (RotationFact::NotApplicable, Ok(told), (RotationFact::NotApplicable, None)),
    ] {
        let mut asked = 0;
        let mut run = ProbeRun::new(Plan { describe: true, rotation: true, ..plan() }, Now::default());
        let mut next = run.next(None, Now::default());
        let evidence = loop {
            match next {
                Next::Done(evidence) => break evidence,
                Next::Call(call) => {
                    let reply = match call {
                        Call::Wrap | Call::WrapVersion(_) => Reply::Wrap(answer(Ok(wrapped(1, "2")))),
                        Call::Unwrap(w) | Call::UnwrapVersion(w) => {
                            Reply::Unwrap(answer(Ok(Unwrapped { digest: w.digest, version: None })))
                        }
                        Call::Describe => Reply::Describe(answer(Ok(facts(described)))),
                        Call::Rotation => {
                            asked += 1;
                            Reply::Rotation(answer(answered.clone()))
                        }
                    };
                    next = run.next(Some(reply), Now::default());
                }
            }
        };
        let found = evidence.facts.as_ref().unwrap();
        assert_eq!((found.rotation, found.next_rotation_at), expected);
        assert_eq!((asked == 1, evidence.rotation_asked), (described == RotationFact::NotObservable, asked == 1));
        assert!(evidence.legs.iter().all(|leg| leg.outcome == LegOutcome::Ok), "{:?}", evidence.legs);
    }
}
