use super::*;
use crate::key::{KeyId, ProviderId, WorkspaceId};
use crate::notify::sample::{bare, locked};

/// Words of the trade that a reader outside it would have to look up.
const JARGON: &[&str] =
    &["canary", "outbox", "verdict", "m-of-n", "evidence", "inconclusive", "principal", "ciphertext", "DNS", "snapshot"];

#[test]
fn every_failure_kind_has_a_condition_and_a_next_step_for_every_provider() {
    for kind in FailureKind::ALL {
        for provider in ProviderKind::ALL {
            let step = next_step(*kind, *provider);
            assert!(step.ends_with('.') && step.len() > 30 && step.len() < 200, "{kind} {provider}: {step}");
            assert!(step.starts_with(char::is_uppercase));
            let seen = condition(*kind);
            assert!(!seen.is_empty() && seen.len() < 110, "{seen}");
            for word in JARGON {
                assert!(!step.contains(word) && !seen.contains(word), "{kind}: {word}");
            }
        }
    }
    assert!(next_step(FailureKind::Disabled, ProviderKind::Azure).contains("Azure Key Vault"));
    assert!(next_step(FailureKind::PendingDeletion, ProviderKind::Aws).contains("cancel the deletion"));
}

#[test]
fn doubt_never_tells_a_reader_that_something_is_locked() {
    for kind in [FailureKind::Throttled, FailureKind::ProviderFault, FailureKind::Timeout, FailureKind::Unreachable] {
        assert!(next_step(kind, ProviderKind::Aws).contains("nothing is locked for this"), "{kind}");
    }
}

#[test]
fn every_event_has_a_plain_sentence_in_every_direction() {
    for event in EventType::ALL {
        for kind in FailureKind::ALL.iter().copied().map(Some).chain([None]) {
            for direction in [None, Some(Direction::Wrap), Some(Direction::Unwrap), Some(Direction::Both), Some(Direction::OldVersion)] {
                let facts = Facts { kind, direction, stated: true, ..Facts::of(*event, "acme-prod", ProviderKind::Aws) };
                let said = sentence(&facts);
                assert!(said.ends_with('.') || said.ends_with("checked again."), "{event}: {said}");
                assert!(!said.contains("  ") && !said.contains('\n') && said.len() < 400, "{event}: {said}");
                for word in JARGON {
                    assert!(!said.contains(word), "{event}: {said}");
                }
                if event.as_str().starts_with("drill.") {
                    assert!(said.starts_with("DRILL"), "{said}");
                }
            }
        }
    }
}

#[test]
fn sentences_read_as_a_person_would_write_them() {
    let facts = Facts {
        kind: Some(FailureKind::Disabled),
        stated: true,
        direction: Some(Direction::Unwrap),
        ..Facts::of(EventType::KeyRevoked, "demo", ProviderKind::Aws)
    };
    assert_eq!(
        sentence(&facts),
        "Key demo is disabled; this is confirmed by repeated looks. This is stated by AWS KMS itself. Existing data cannot be opened."
    );
    let many = Facts { workspaces: 3, cause: Some(Cause::Manual), ..Facts::of(EventType::WorkspaceLocked, "demo", ProviderKind::Gcp) };
    assert_eq!(sentence(&many), "The workspaces are locked: an operator ordered it.");
    let expiring = Facts { when: Some("on 2026-12-01"), ..Facts::of(EventType::KeyExpiring, "demo", ProviderKind::Azure) };
    assert_eq!(sentence(&expiring), "Key demo will reach the end of its validity (on 2026-12-01).");
}

#[test]
fn the_subject_is_the_one_of_the_contract() {
    assert_eq!(subject(&locked()), "[cmek][critical] wrkspc_demo locked: key demo disabled");
    assert_eq!(subject(&Notice { drill: true, ..locked() }), "DRILL [cmek][critical] wrkspc_demo locked: key demo disabled");
    let opened = Notice { event: EventType::WorkspaceOpened, severity: Severity::Info, ..locked() };
    assert_eq!(subject(&opened), "[cmek][info] wrkspc_demo open again: key demo works");
    let manual = Notice { key: None, cause: Some(Cause::Manual), ..locked() };
    assert_eq!(subject(&manual), "[cmek][critical] wrkspc_demo locked: by an operator");
    let rotated = bare("n", EventType::KeyRotated, Severity::Info);
    assert_eq!(subject(&rotated), "[cmek][info] key demo rotated");
    let brake = Notice { key: None, provider: ProviderId::new("aws-prod").ok(), ..bare("n", EventType::BrakeEngaged, Severity::Critical) };
    assert_eq!(subject(&brake), "[cmek][critical] aws-prod: automatic locks held");
}

#[test]
fn a_long_subject_is_cut_and_keeps_the_key() {
    let key = KeyId::new(&"k".repeat(128)).unwrap();
    let workspace = |n: usize| WorkspaceId::new(&format!("{}{n}", "w".repeat(120))).unwrap();
    let notice = Notice { key: Some(key.clone()), workspaces: (0..5_000).map(workspace).collect(), ..locked() };
    let line = subject(&notice);
    assert!(line.len() < 260 && line.contains(key.as_str()) && line.contains("... and 4999 more locked"), "{line}");
}

#[test]
fn no_text_from_outside_can_begin_a_line_or_turn_the_writing_round() {
    assert_eq!(one_line("a\r\nBcc: x@example.org\u{202e}\u{0}b", 100), "a  Bcc: x@example.org  b");
    assert_eq!(one_line("abcdef", 3), "abc...");
    assert_eq!(one_line("abc", 3), "abc");
}

#[test]
fn what_was_seen_names_code_version_and_request() {
    let notice = locked();
    assert_eq!(seen(&notice.evidence[0]), "seal new data (wrap): failed, DisabledException, request 0a1b2c3d-req");
    assert_eq!(seen(&notice.evidence[1]), "read the key's state (describe): ok, request 0a1b2c3d-req");
}
