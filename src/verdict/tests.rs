use super::*;
use crate::kms::{KeyFacts, KmsError};
use crate::time::Now;

fn leg(leg: Leg, outcome: LegOutcome, kind: Option<FailureKind>, stated: bool) -> LegResult {
    LegResult {
        leg,
        outcome,
        failure_kind: kind,
        stated,
        code: Some(if kind == Some(FailureKind::Corrupt) { "digest_mismatch" } else { "code" }.into()),
        message: None,
        request_id: None,
        duration_ms: None,
        version: None,
    }
}

const OK: (LegOutcome, Option<FailureKind>, bool) = (LegOutcome::Ok, None, false);
const NOT_RUN: (LegOutcome, Option<FailureKind>, bool) = (LegOutcome::NotRun, None, false);
const fn bad(kind: FailureKind, stated: bool) -> (LegOutcome, Option<FailureKind>, bool) {
    (LegOutcome::Failed, Some(kind), stated)
}

type Short = (LegOutcome, Option<FailureKind>, bool);

fn round(wrap: Short, unwrap: Short, describe: Short) -> Evidence {
    let facts = (describe.0 == LegOutcome::Ok)
        .then(|| KeyFacts { fault: describe.1.map(|kind| KmsError::new(kind, describe.2, "state", "")), ..KeyFacts::default() });
    Evidence {
        started: Now::default(),
        legs: vec![
            leg(Leg::Wrap, wrap.0, wrap.1, wrap.2),
            leg(Leg::Unwrap, unwrap.0, unwrap.1, unwrap.2),
            leg(Leg::Describe, describe.0, describe.1, describe.2),
        ],
        fresh: None,
        made: vec![],
        facts,
        identity: None,
        rotation_asked: false,
        clock_skew_ms: None,
    }
}

fn refused(kind: FailureKind, stated: Stated, direction: Direction) -> Verdict {
    Verdict::Refused(Refused { kind, stated, direction, weak: false })
}

#[test]
fn the_table_of_directions_and_statements() {
    use FailureKind::{AccessDenied, Corrupt, Destroyed, Disabled, Expired, PendingDeletion, Throttled};
    let says_disabled = (LegOutcome::Ok, Some(Disabled), true);
    for (wrap, unwrap, describe, expected) in [
        (OK, OK, NOT_RUN, Verdict::Good { complete: true, warned: None }),
        (OK, OK, OK, Verdict::Good { complete: true, warned: None }),
        (OK, OK, bad(AccessDenied, false), Verdict::Good { complete: true, warned: None }),
        (OK, OK, says_disabled, Verdict::Good { complete: false, warned: Some(Disabled) }),
        (bad(Disabled, true), bad(Disabled, true), says_disabled, refused(Disabled, Stated::Both, Direction::Unwrap)),
        (bad(Disabled, true), bad(Disabled, true), OK, refused(Disabled, Stated::Alone, Direction::Unwrap)),
        (bad(Disabled, true), bad(Disabled, true), bad(AccessDenied, false), refused(Disabled, Stated::Alone, Direction::Unwrap)),
        (
            NOT_RUN,
            bad(PendingDeletion, true),
            (LegOutcome::Ok, Some(PendingDeletion), true),
            refused(PendingDeletion, Stated::Both, Direction::Unwrap),
        ),
        (bad(Destroyed, false), bad(Destroyed, false), bad(Destroyed, false), refused(Destroyed, Stated::No, Direction::Unwrap)),
        (OK, bad(AccessDenied, false), OK, refused(AccessDenied, Stated::No, Direction::Unwrap)),
        (bad(AccessDenied, false), OK, OK, refused(AccessDenied, Stated::No, Direction::Wrap)),
        (bad(Disabled, true), OK, OK, refused(Disabled, Stated::Alone, Direction::Wrap)),
        (bad(Expired, false), bad(Expired, false), OK, refused(Expired, Stated::No, Direction::Unwrap)),
        (OK, bad(Corrupt, false), OK, refused(Corrupt, Stated::No, Direction::Bytes)),
        (bad(Throttled, false), bad(Corrupt, false), OK, unsure(FailureKind::Unclassified, Direction::Bytes)),
        (bad(AccessDenied, false), NOT_RUN, OK, unsure(AccessDenied, Direction::Wrap)),
        (bad(Throttled, false), OK, OK, unsure(Throttled, Direction::Wrap)),
        (OK, NOT_RUN, NOT_RUN, unsure(FailureKind::Timeout, Direction::Wrap)),
    ] {
        let evidence = round(wrap, unwrap, describe);
        assert_eq!(judge(&evidence, true, Witness::Good), expected, "{wrap:?} {unwrap:?} {describe:?}");
    }
}

#[test]
fn doubt_of_every_kind_is_unsure_on_every_leg() {
    for kind in FailureKind::ALL.iter().copied().filter(|k| !is_conclusive(*k)) {
        for stated in [false, true] {
            for evidence in
                [round(bad(kind, stated), bad(kind, stated), NOT_RUN), round(OK, bad(kind, stated), OK), round(bad(kind, stated), OK, OK)]
            {
                let verdict = judge(&evidence, true, Witness::Good);
                assert_eq!(verdict.kind(), Some(kind));
                assert_eq!(verdict.word(), VerdictWord::Inconclusive);
            }
        }
    }
}

#[test]
fn a_denial_weighs_only_under_a_proven_identity_and_a_good_witness() {
    let denied = round(bad(FailureKind::AccessDenied, false), bad(FailureKind::AccessDenied, false), NOT_RUN);
    assert!(needs_witness(&denied, |_| false));
    assert_eq!(judge(&denied, false, Witness::Good), unsure(FailureKind::Credentials, Direction::Unwrap));
    assert_eq!(judge(&denied, true, Witness::DeniedLikeUs), unsure(FailureKind::Credentials, Direction::Unwrap));
    let weak = Refused { kind: FailureKind::AccessDenied, stated: Stated::No, direction: Direction::Unwrap, weak: true };
    assert_eq!(judge(&denied, true, Witness::Broken), Verdict::Refused(weak));
}

#[test]
fn a_stated_key_state_needs_neither_identity_nor_witness() {
    let disabled = round(bad(FailureKind::Disabled, true), bad(FailureKind::Disabled, true), NOT_RUN);
    assert!(!needs_witness(&disabled, |_| true));
    assert_eq!(judge(&disabled, false, Witness::DeniedLikeUs), refused(FailureKind::Disabled, Stated::Alone, Direction::Unwrap));
}

#[test]
fn a_lost_version_is_told_apart_and_doubt_about_one_only_makes_the_round_incomplete() {
    let mut evidence = round(OK, OK, OK);
    evidence.legs.insert(2, leg(Leg::UnwrapVersion, LegOutcome::Failed, Some(FailureKind::Disabled), true));
    assert_eq!(judge(&evidence, true, Witness::Good), refused(FailureKind::Disabled, Stated::Alone, Direction::Version));
    let mut evidence = round(OK, OK, OK);
    evidence.legs.insert(2, leg(Leg::UnwrapVersion, LegOutcome::Failed, Some(FailureKind::Throttled), false));
    assert_eq!(judge(&evidence, true, Witness::Good), Verdict::Good { complete: false, warned: None });
    let mut evidence = round(OK, OK, OK);
    evidence.legs.insert(2, leg(Leg::UnwrapVersion, LegOutcome::NotRun, None, false));
    assert_eq!(judge(&evidence, true, Witness::Good), Verdict::Good { complete: false, warned: None });
}

#[test]
fn a_slow_kind_counts_only_beside_a_good_witness() {
    let evidence = round(bad(FailureKind::Misconfigured, false), bad(FailureKind::Misconfigured, false), OK);
    assert!(needs_witness(&evidence, |_| true) && !needs_witness(&evidence, |_| false));
    for (witness, vouched) in [(Witness::Good, true), (Witness::Broken, false), (Witness::DeniedLikeUs, false)] {
        let expected = Verdict::Unsure { kind: FailureKind::Misconfigured, direction: Direction::Unwrap, vouched };
        assert_eq!(judge(&evidence, true, witness), expected);
    }
}
