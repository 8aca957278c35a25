//! outside
//! Key facts from the control plane's CryptoKey and its versions. What the answer does not tell
//! stays absent; nothing is inferred about the data plane.

use google_cloud_kms_v1::model::crypto_key::CryptoKeyPurpose;
use google_cloud_kms_v1::model::{CryptoKey, CryptoKeyVersion, ProtectionLevel};
use google_cloud_wkt::Timestamp;

use super::errors::of_state;
use crate::key::KeyVersion;
use crate::kms::{KeyFacts, KmsError, RotationFact, VersionFact};
use crate::time::Wall;
use crate::words::FailureKind;

/// `.../cryptoKeyVersions/N` -> `N`.
pub fn version_of(name: &str) -> Option<KeyVersion> {
    name.rsplit_once("/cryptoKeyVersions/").map(|(_, version)| KeyVersion::new(version))
}

/// What a key and its listed versions tell. `address` is what was asked: Google has no aliases, and an
/// answer that spells the project by number instead of by id is no other key.
pub fn facts(address: &str, key: &CryptoKey, mut versions: Vec<CryptoKeyVersion>) -> KeyFacts {
    let primary = key.primary.clone();
    if let Some(primary) = primary.as_ref().filter(|primary| versions.iter().all(|version| version.name != primary.name)) {
        versions.push(primary.clone());
    }
    versions.sort_by_key(|version| number_of(&version.name));
    // Where there is no primary, the version that stands best tells of the key.
    let telling = primary.clone().or_else(|| versions.iter().min_by_key(|version| standing(version)).cloned());
    let deletion_at = telling.as_ref().filter(|version| kind_of(version) == Some(FailureKind::PendingDeletion));
    let deletion_at = deletion_at.and_then(|version| wall(version.destroy_time.as_ref()));
    KeyFacts {
        fault: fault(key, primary.as_ref(), telling.as_ref()),
        resolved: Some(address.into()),
        current_version: primary.as_ref().and_then(|primary| version_of(&primary.name)),
        versions: versions.iter().filter_map(version_fact).collect(),
        created_at: wall(key.create_time.as_ref()),
        rotated_at: primary.as_ref().filter(|_| versions.len() > 1).and_then(|primary| wall(primary.create_time.as_ref())),
        next_rotation_at: wall(key.next_rotation_time.as_ref()),
        deletion_at,
        // A scheduled version can be restored until its material is destroyed.
        recoverable_until: deletion_at,
        protection_level: protection(key, telling.as_ref()),
        origin: Some(origin(key, telling.as_ref()).into()),
        rotation: RotationFact::Observed,
        ..KeyFacts::default()
    }
}

fn version_fact(version: &CryptoKeyVersion) -> Option<VersionFact> {
    let created_at = wall(version.create_time.as_ref());
    version_of(&version.name).map(|name| VersionFact { version: name, enabled: kind_of(version).is_none(), created_at })
}

fn fault(key: &CryptoKey, primary: Option<&CryptoKeyVersion>, telling: Option<&CryptoKeyVersion>) -> Option<KmsError> {
    if key.purpose != CryptoKeyPurpose::EncryptDecrypt && key.purpose != CryptoKeyPurpose::Unspecified {
        let text = format!("the key's purpose is {}", key.purpose.name().unwrap_or("unknown"));
        return Some(KmsError::new(FailureKind::Misconfigured, false, "wrong_purpose", &text));
    }
    let Some(version) = telling else {
        return Some(KmsError::new(FailureKind::Misconfigured, false, "no_version", "the key has no version"));
    };
    let state = state_of(version);
    let number = version_of(&version.name).map_or_else(String::new, |version| version.to_string());
    match of_state(state) {
        Some((kind, stated)) => Some(KmsError::new(kind, stated, state, &format!("version {number} is {state}"))),
        None if primary.is_none() => {
            let text = format!("version {number} is enabled, and no version is primary");
            Some(KmsError::new(FailureKind::Misconfigured, false, "no_primary", &text))
        }
        // An empty list on a key allows no reason at all: all wraps and unwraps fail.
        None if key.key_access_justifications_policy.as_ref().is_some_and(|policy| policy.allowed_access_reasons.is_empty()) => {
            let text = "the key's access justifications policy allows no reason";
            Some(KmsError::new(FailureKind::AccessDenied, true, "no_access_reason_allowed", text))
        }
        None => None,
    }
}

fn state_of(version: &CryptoKeyVersion) -> &str {
    version.state.name().unwrap_or("STATE_UNKNOWN")
}

fn kind_of(version: &CryptoKeyVersion) -> Option<FailureKind> {
    of_state(state_of(version)).map(|(kind, _)| kind)
}

/// From best to worst; among equals the newest first.
fn standing(version: &CryptoKeyVersion) -> (u8, std::cmp::Reverse<u64>) {
    let rank = match state_of(version) {
        "ENABLED" => 0,
        "DISABLED" => 1,
        "DESTROY_SCHEDULED" => 2,
        "DESTROYED" => 4,
        _ => 3,
    };
    (rank, std::cmp::Reverse(number_of(&version.name)))
}

fn number_of(name: &str) -> u64 {
    version_of(name).and_then(|version| version.as_str().parse().ok()).unwrap_or(0)
}

fn protection(key: &CryptoKey, telling: Option<&CryptoKeyVersion>) -> Option<Box<str>> {
    let template = key.version_template.as_ref().map(|template| &template.protection_level);
    let level = telling.map(|version| &version.protection_level).filter(|level| **level != ProtectionLevel::Unspecified);
    level.or(template).filter(|level| **level != ProtectionLevel::Unspecified).and_then(ProtectionLevel::name).map(Into::into)
}

/// Where the material comes from: `google`, `import`, or `external` (another key manager holds it).
fn origin(key: &CryptoKey, telling: Option<&CryptoKeyVersion>) -> &'static str {
    let external = |level: &ProtectionLevel| matches!(level, ProtectionLevel::External | ProtectionLevel::ExternalVpc);
    if telling.is_some_and(|version| external(&version.protection_level)) {
        "external"
    } else if key.import_only || telling.is_some_and(|version| !version.import_job.is_empty()) {
        "import"
    } else {
        "google"
    }
}

fn wall(time: Option<&Timestamp>) -> Option<Wall> {
    time.map(|time| Wall(time.seconds().saturating_mul(1000).saturating_add(i64::from(time.nanos()) / 1_000_000)))
}

#[cfg(test)]
mod tests;
