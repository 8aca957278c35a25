//! inside
//! Notices for the tests of this stage. Never part of the product.

use std::sync::Arc;

use crate::key::{KeyId, KeyVersion, ProviderId, WorkspaceId};
use crate::notify::{Notice, NoticeId};
use crate::probe::LegResult;
use crate::time::{Span, Wall};
use crate::words::{Access, Cause, Code, EventType, FailureKind, Leg, LegOutcome, Sequence, Severity};

/// 2026-11-25 07:46:00 UTC.
pub(crate) const AT: Wall = Wall(1_795_592_760_000);

/// A bare notice about key `demo`.
pub(crate) fn bare(id: &str, event: EventType, severity: Severity) -> Notice {
    Notice {
        id: NoticeId(Arc::from(id)),
        event,
        severity,
        timestamp: AT,
        sequence: Sequence(7),
        key: Some(KeyId::new("demo").unwrap()),
        key_ref: None,
        provider: None,
        owner: None,
        workspaces: vec![WorkspaceId::new("wrkspc_demo").unwrap()],
        access: None,
        previous_access: None,
        cause: None,
        code: None,
        message: "Something was seen.".to_owned(),
        version: None,
        actor: None,
        since: None,
        evidence: Vec::new(),
        locked_features: Vec::new(),
        readable_features: Vec::new(),
        next_step: None,
        terminal: false,
        recoverable_until: None,
        drill: false,
        acknowledged_by: None,
        storm: None,
    }
}

/// The full notice of a lock.
pub(crate) fn locked() -> Notice {
    let leg = |leg, outcome, code: Option<&str>, message: Option<&str>| LegResult {
        leg,
        outcome,
        failure_kind: code.map(|_| FailureKind::Disabled),
        stated: code.is_some(),
        code: code.map(Into::into),
        message: message.map(Into::into),
        request_id: Some("0a1b2c3d-req".into()),
        duration_ms: Some(Span(12)),
        version: None,
    };
    let key = "arn:aws:kms:us-east-2:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    Notice {
        key_ref: Some(key.to_owned()),
        provider: Some(ProviderId::new("aws-prod").unwrap()),
        owner: Some("security@acme.example".to_owned()),
        access: Some(Access::Locked),
        previous_access: Some(Access::Open),
        cause: Some(Cause::Kind(FailureKind::Disabled)),
        code: Some(Code::CmekKeyDisabled),
        message: "The workspace is locked: key demo is disabled.".to_owned(),
        version: Some(KeyVersion::new("v1")),
        actor: Some("arn:aws:iam::444455556666:user/kim".to_owned()),
        since: Some(AT.minus(Span::from_secs(20))),
        evidence: vec![
            leg(Leg::Wrap, LegOutcome::Failed, Some("DisabledException"), Some("key is <disabled> & closed")),
            leg(Leg::Describe, LegOutcome::Ok, None, None),
        ],
        locked_features: vec!["messages".to_owned(), "files".to_owned()],
        readable_features: vec!["safety_metadata".to_owned(), "models".to_owned()],
        next_step: Some("The key's owner can enable it again in AWS KMS (Enable key).".to_owned()),
        ..bare("ntc-1", EventType::WorkspaceLocked, Severity::Critical)
    }
}
