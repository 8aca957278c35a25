//! outside
//! Reads DescribeKey's metadata into facts. A state that stops the key is a fault here, stated where
//! AWS states it; a state that we do not know is a doubt and never a statement.

use aws_sdk_kms::primitives::DateTime;
use aws_sdk_kms::types::{KeyMetadata, KeySpec, KeyState, OriginType};

use crate::key::KeyVersion;
use crate::kms::{KeyFacts, KmsError, RotationFact, VersionFact};
use crate::time::Wall;
use crate::words::FailureKind as Kind;

pub fn read(metadata: &KeyMetadata) -> KeyFacts {
    let state = metadata.key_state.as_ref();
    let deletion_at = wall(metadata.deletion_date.as_ref());
    let current_version = metadata.current_key_material_id.as_deref().map(KeyVersion::new);
    let versions = current_version.iter().map(|version| VersionFact {
        version: version.clone(),
        enabled: state == Some(&KeyState::Enabled),
        created_at: None,
    });
    KeyFacts {
        fault: fault(state, metadata.enabled),
        resolved: metadata.arn.as_deref().map(Into::into),
        versions: versions.collect(),
        current_version,
        created_at: wall(metadata.creation_date.as_ref()),
        deletion_at,
        // The deletion can be called off until it comes true.
        recoverable_until: deletion_at,
        expires_at: wall(metadata.valid_to.as_ref()),
        origin: metadata.origin.as_ref().map(|o| o.as_str().into()),
        multi_region: metadata.multi_region,
        rotation: if rotates(metadata) { RotationFact::NotObservable } else { RotationFact::NotApplicable },
        ..KeyFacts::default()
    }
}

/// Only material that AWS made, of a symmetric key in AWS's own store, has a schedule.
fn rotates(metadata: &KeyMetadata) -> bool {
    let symmetric = metadata.key_spec.as_ref().is_none_or(|spec| *spec == KeySpec::SymmetricDefault);
    let made_here = metadata.origin.as_ref().is_none_or(|origin| *origin == OriginType::AwsKms);
    symmetric && made_here && metadata.custom_key_store_id.is_none()
}

fn fault(state: Option<&KeyState>, enabled: bool) -> Option<KmsError> {
    let (kind, stated) = match state {
        Some(KeyState::Enabled | KeyState::Creating | KeyState::Updating) => return None,
        Some(KeyState::Disabled) => (Kind::Disabled, true),
        Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => (Kind::PendingDeletion, true),
        Some(KeyState::PendingImport) => (Kind::Expired, false),
        Some(KeyState::Unavailable) => (Kind::KeyStoreUnavailable, false),
        None if enabled => return None,
        Some(_) | None => (Kind::Unclassified, false),
    };
    let name = state.map_or("unknown", KeyState::as_str);
    Some(KmsError::new(kind, stated, name, &format!("DescribeKey says KeyState {name}")))
}

pub fn wall(at: Option<&DateTime>) -> Option<Wall> {
    at.and_then(|d| d.to_millis().ok()).map(Wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_state_is_a_fault_or_none_and_only_aws_own_word_is_stated() {
        for (state, expected) in [
            ("Enabled", None),
            ("Creating", None),
            ("Updating", None),
            ("Disabled", Some((Kind::Disabled, true))),
            ("PendingDeletion", Some((Kind::PendingDeletion, true))),
            ("PendingReplicaDeletion", Some((Kind::PendingDeletion, true))),
            ("PendingImport", Some((Kind::Expired, false))),
            ("Unavailable", Some((Kind::KeyStoreUnavailable, false))),
            ("Hibernating", Some((Kind::Unclassified, false))),
        ] {
            assert_eq!(fault(Some(&state.into()), false).map(|f| (f.kind, f.stated)), expected, "{state}");
        }
        assert_eq!(fault(None, true), None);
        assert_eq!(fault(None, false).map(|f| (f.kind, f.stated)), Some((Kind::Unclassified, false)));
    }
}
