//! outside
//! What Key Vault's control plane tells about a key, as the facts of the contract.
//! Reads attributes and dates; it must never guess a fact that the answer does not hold.

use std::sync::Arc;

use azure_core::time::OffsetDateTime;
use azure_security_keyvault_keys::models::{DeletedKey, Key, KeyAttributes, KeyProperties};

use crate::key::KeyVersion;
use crate::kms::{KeyFacts, KmsError, RotationFact, VersionFact};
use crate::time::Wall;
use crate::words::FailureKind;

/// The last segment of a key identifier, `https://VAULT/keys/NAME/VERSION`.
pub(super) fn version_of(kid: &str) -> Option<KeyVersion> {
    let mut parts = kid.split("/keys/").nth(1)?.split('/');
    let (_name, version) = (parts.next()?, parts.next()?);
    (!version.is_empty() && version.len() <= 64 && version.chars().all(|c| c.is_ascii_alphanumeric())).then(|| KeyVersion::new(version))
}

fn wall(time: OffsetDateTime) -> Wall {
    Wall(time.unix_timestamp().saturating_mul(1000))
}

fn created(attributes: Option<&KeyAttributes>) -> Option<Wall> {
    attributes.and_then(|a| a.created).map(wall)
}

/// Facts of a living key. `versions` is `None` where listing was refused or failed.
pub(super) fn of_key(name: Arc<str>, key: &Key, versions: Option<&[KeyProperties]>, now: Wall) -> KeyFacts {
    let attributes = key.attributes.as_ref();
    let jwk = key.key.as_ref();
    let current = jwk.and_then(|jwk| jwk.kid.as_deref()).and_then(version_of);
    let mut listed: Vec<VersionFact> = versions.unwrap_or_default().iter().filter_map(version_fact).collect();
    if let (Some(version), Some(_)) = (&current, versions)
        && !listed.iter().any(|fact| fact.version == *version)
    {
        listed.push(VersionFact { version: version.clone(), enabled: enabled(attributes), created_at: created(attributes) });
    }
    listed.sort_by(|a, b| (a.created_at, &a.version).cmp(&(b.created_at, &b.version)));
    KeyFacts {
        fault: fault(key, now),
        resolved: Some(name),
        created_at: listed.iter().filter_map(|fact| fact.created_at).min(),
        // The first version is no rotation.
        rotated_at: (listed.len() > 1).then(|| created(attributes)).flatten(),
        current_version: current,
        versions: listed,
        expires_at: attributes.and_then(|a| a.expires).map(wall),
        not_before: attributes.and_then(|a| a.not_before).map(wall),
        protection_level: jwk.and_then(|jwk| jwk.kty.as_ref()).map(|kty| kty.to_string().into()),
        rotation: RotationFact::NotObservable,
        origin: key.managed.filter(|managed| *managed).map(|_| "managed".into()),
        ..KeyFacts::default()
    }
}

fn version_fact(properties: &KeyProperties) -> Option<VersionFact> {
    let version = properties.kid.as_deref().and_then(version_of)?;
    let attributes = properties.attributes.as_ref();
    Some(VersionFact { version, enabled: enabled(attributes), created_at: created(attributes) })
}

/// Absent means enabled: the attribute is optional and a key is made enabled.
fn enabled(attributes: Option<&KeyAttributes>) -> bool {
    attributes.and_then(|a| a.enabled).unwrap_or(true)
}

fn fault(key: &Key, now: Wall) -> Option<KmsError> {
    let attributes = key.attributes.as_ref();
    if !enabled(attributes) {
        return Some(KmsError::new(FailureKind::Disabled, true, "KeyDisabled", "the key's attributes say enabled=false"));
    }
    // Outside its dates a vault still unwraps; so this is a warning and no state of the key.
    if let Some(end) = attributes.and_then(|a| a.expires).map(wall).filter(|end| *end <= now) {
        return Some(KmsError::new(FailureKind::Expired, false, "KeyExpired", &format!("the key's attributes say exp={end}")));
    }
    if let Some(start) = attributes.and_then(|a| a.not_before).map(wall).filter(|start| *start > now) {
        return Some(KmsError::new(FailureKind::Expired, false, "KeyNotYetValid", &format!("the key's attributes say nbf={start}")));
    }
    let operations = key.key.as_ref().and_then(|jwk| jwk.key_ops.as_ref())?;
    let missing: Vec<&str> = ["wrapKey", "unwrapKey"].into_iter().filter(|need| !operations.iter().any(|has| has == need)).collect();
    (!missing.is_empty()).then(|| {
        let text = format!("the key's operations lack {}", missing.join(" and "));
        KmsError::new(FailureKind::Misconfigured, false, "KeyOperationForbidden", &text)
    })
}

/// Facts of a soft-deleted key.
pub(super) fn of_deleted(name: Arc<str>, deleted: &DeletedKey) -> KeyFacts {
    let purge = deleted.scheduled_purge_date.map(wall);
    let jwk = deleted.key.as_ref();
    let until = purge.map_or_else(|| "at an unknown time".to_owned(), |at| at.to_string());
    let text = format!("the key is deleted; it can be recovered until it is purged, {until}");
    KeyFacts {
        fault: Some(KmsError::new(FailureKind::PendingDeletion, true, "ObjectIsDeletedButRecoverable", &text)),
        resolved: Some(name),
        current_version: jwk.and_then(|jwk| jwk.kid.as_deref()).and_then(version_of),
        deletion_at: purge,
        recoverable_until: purge,
        expires_at: deleted.attributes.as_ref().and_then(|a| a.expires).map(wall),
        not_before: deleted.attributes.as_ref().and_then(|a| a.not_before).map(wall),
        protection_level: jwk.and_then(|jwk| jwk.kty.as_ref()).map(|kty| kty.to_string().into()),
        ..KeyFacts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(json: &str) -> Key {
        serde_json::from_str(json).expect("a key")
    }
    fn list(json: &str) -> Vec<KeyProperties> {
        serde_json::from_str(json).expect("a list")
    }
    const NAME: &str = "https://v.vault.azure.net/keys/k";

    #[test]
    fn a_version_is_read_from_a_key_identifier_only() {
        assert_eq!(version_of("https://v.vault.azure.net/keys/k/0a1b").map(|v| v.to_string()).as_deref(), Some("0a1b"));
        for odd in ["", "https://v/keys/k", "https://v/keys/k/", "https://v/secrets/k/1", "https://v/keys/k/a?b", "https://v/keys/k/.."] {
            assert_eq!(version_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn rotation_is_the_birth_of_the_current_version_when_there_are_older_ones() {
        let current = key(r#"{"key":{"kid":"https://v/keys/k/b","kty":"RSA-HSM"},"attributes":{"enabled":true,"created":200}}"#);
        let versions = list(
            r#"[{"kid":"https://v/keys/k/b","attributes":{"enabled":true,"created":200}},
                {"kid":"https://v/keys/k/a","attributes":{"enabled":false,"created":100}}]"#,
        );
        let facts = of_key(NAME.into(), &current, Some(&versions), Wall(0));
        assert_eq!((facts.rotated_at, facts.created_at), (Some(Wall(200_000)), Some(Wall(100_000))));
        assert_eq!(facts.versions.iter().map(|v| (v.version.as_str(), v.enabled)).collect::<Vec<_>>(), [("a", false), ("b", true)]);
        assert_eq!((facts.protection_level.as_deref(), facts.fault), (Some("RSA-HSM"), None));
        let only = of_key(NAME.into(), &current, Some(&versions[..1]), Wall(0));
        assert_eq!((only.rotated_at, only.created_at), (None, Some(Wall(200_000))));
    }

    #[test]
    fn a_refused_list_shows_no_versions_and_a_cut_one_has_the_current() {
        let current = key(r#"{"key":{"kid":"https://v/keys/k/b"},"attributes":{"created":200}}"#);
        let facts = of_key(NAME.into(), &current, None, Wall(0));
        assert_eq!((facts.versions.len(), facts.current_version), (0, Some(KeyVersion::new("b"))));
        let cut = of_key(NAME.into(), &current, Some(&list(r#"[{"kid":"https://v/keys/k/a","attributes":{"created":1}}]"#)), Wall(0));
        assert_eq!(cut.versions.len(), 2);
    }

    #[test]
    fn dates_and_operations_are_judged_at_the_given_time() {
        let dated = key(r#"{"key":{"key_ops":["wrapKey","unwrapKey"]},"attributes":{"enabled":true,"nbf":100,"exp":200}}"#);
        let code_at = |now: i64| of_key(NAME.into(), &dated, None, Wall(now)).fault.map(|f| (f.kind, f.stated, f.code.to_string()));
        assert_eq!(code_at(99_999), Some((FailureKind::Expired, false, "KeyNotYetValid".into())));
        assert_eq!(code_at(100_000), None);
        assert_eq!(code_at(199_999), None);
        assert_eq!(code_at(200_000), Some((FailureKind::Expired, false, "KeyExpired".into())));
        let no_unwrap = key(r#"{"key":{"key_ops":["wrapKey"]}}"#);
        let fault = of_key(NAME.into(), &no_unwrap, None, Wall(0)).fault.expect("a fault");
        assert_eq!((fault.kind, fault.stated, &*fault.message), (FailureKind::Misconfigured, false, "the key's operations lack unwrapKey"));
        assert_eq!(of_key(NAME.into(), &key("{}"), None, Wall(0)).fault, None);
    }

    #[test]
    fn a_deleted_key_says_until_when_it_can_be_recovered() {
        let deleted: DeletedKey =
            serde_json::from_str(r#"{"scheduledPurgeDate":1802776000,"key":{"kid":"https://v/keys/k/a"}}"#).expect("json");
        let facts = of_deleted(NAME.into(), &deleted);
        assert_eq!((facts.deletion_at, facts.recoverable_until), (Some(Wall(1_802_776_000_000)), Some(Wall(1_802_776_000_000))));
        assert!(facts.fault.is_some_and(|f| f.stated && f.kind == FailureKind::PendingDeletion));
        assert_eq!(of_deleted(NAME.into(), &DeletedKey::default()).deletion_at, None);
    }
}
