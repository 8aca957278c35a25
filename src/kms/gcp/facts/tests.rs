use google_cloud_kms_v1::model::crypto_key_version::CryptoKeyVersionState as State;
use google_cloud_kms_v1::model::{AccessReason, CryptoKeyVersionTemplate, KeyAccessJustificationsPolicy};

use super::*;

const KEY: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";

fn at(seconds: i64) -> Timestamp {
    Timestamp::clamp(seconds, 500_000_000)
}

fn version(number: u32, state: State) -> CryptoKeyVersion {
    CryptoKeyVersion::new()
        .set_name(format!("{KEY}/cryptoKeyVersions/{number}"))
        .set_state(state)
        .set_protection_level(ProtectionLevel::Hsm)
        .set_create_time(at(1000 * i64::from(number)))
}

fn key() -> CryptoKey {
    CryptoKey::new().set_name(KEY).set_purpose(CryptoKeyPurpose::EncryptDecrypt).set_create_time(at(500))
}

fn fault_of(facts: &KeyFacts) -> Option<(FailureKind, bool, &str)> {
    facts.fault.as_ref().map(|fault| (fault.kind, fault.stated, fault.code.as_ref()))
}

#[test]
fn a_rotated_key_tells_its_versions_and_dates() {
    let primary = version(10, State::Enabled);
    // The answer names the project by its number; the key is the one that was asked for.
    let found = key().set_name(KEY.replace("projects/p/", "projects/200/")).set_primary(primary.clone()).set_next_rotation_time(at(90_000));
    let facts = facts(KEY, &found, vec![primary, version(9, State::Disabled), version(2, State::Enabled)]);
    assert_eq!(fault_of(&facts), None);
    assert_eq!(facts.current_version, Some(KeyVersion::new("10")));
    let shown: Vec<_> = facts.versions.iter().map(|fact| (fact.version.as_str(), fact.enabled)).collect();
    assert_eq!(shown, [("2", true), ("9", false), ("10", true)]);
    assert_eq!(
        (facts.created_at, facts.rotated_at, facts.next_rotation_at),
        (Some(Wall(500_500)), Some(Wall(10_000_500)), Some(Wall(90_000_500)))
    );
    assert_eq!(
        (facts.protection_level.as_deref(), facts.origin.as_deref(), facts.resolved.as_deref()),
        (Some("HSM"), Some("google"), Some(KEY))
    );
    assert_eq!((facts.deletion_at, facts.recoverable_until, facts.expires_at), (None, None, None));
}

#[test]
fn a_key_of_one_version_was_never_rotated() {
    let facts = facts(KEY, &key().set_primary(version(1, State::Enabled)), Vec::new());
    assert_eq!((facts.rotated_at, facts.versions.len()), (None, 1));
}

#[test]
fn the_primarys_state_is_the_keys_fault() {
    for (state, expected) in [
        (State::Disabled, (FailureKind::Disabled, true, "DISABLED")),
        (State::DestroyScheduled, (FailureKind::PendingDeletion, true, "DESTROY_SCHEDULED")),
        (State::Destroyed, (FailureKind::Destroyed, true, "DESTROYED")),
        (State::PendingExternalDestruction, (FailureKind::PendingDeletion, true, "PENDING_EXTERNAL_DESTRUCTION")),
        (State::ImportFailed, (FailureKind::Misconfigured, false, "IMPORT_FAILED")),
        (State::PendingImport, (FailureKind::Misconfigured, false, "PENDING_IMPORT")),
        (State::PendingGeneration, (FailureKind::KeyStoreUnavailable, false, "PENDING_GENERATION")),
        (State::from("A_STATE_OF_NEXT_YEAR"), (FailureKind::Unclassified, false, "A_STATE_OF_NEXT_YEAR")),
    ] {
        let primary = version(2, state).set_destroy_time(at(7_000));
        let facts = facts(KEY, &key().set_primary(primary), vec![version(1, State::Enabled)]);
        assert_eq!(fault_of(&facts), Some(expected));
        let pending = expected.0 == FailureKind::PendingDeletion;
        let expected_date = pending.then_some(Wall(7_000_500));
        assert_eq!((facts.deletion_at, facts.recoverable_until), (expected_date, expected_date));
    }
}

#[test]
fn without_a_primary_the_versions_tell() {
    for (states, expected) in [
        (vec![State::Destroyed, State::Destroyed], (FailureKind::Destroyed, true, "DESTROYED")),
        (vec![State::Destroyed, State::Disabled], (FailureKind::Disabled, true, "DISABLED")),
        (vec![State::DestroyScheduled, State::Destroyed], (FailureKind::PendingDeletion, true, "DESTROY_SCHEDULED")),
        (vec![State::ImportFailed, State::Destroyed], (FailureKind::Misconfigured, false, "IMPORT_FAILED")),
        (vec![State::Enabled, State::Destroyed], (FailureKind::Misconfigured, false, "no_primary")),
        (vec![], (FailureKind::Misconfigured, false, "no_version")),
    ] {
        let versions = (1..).zip(states.clone()).map(|(number, state)| version(number, state).set_destroy_time(at(7_000)));
        let facts = facts(KEY, &key(), versions.collect());
        assert_eq!(fault_of(&facts), Some(expected), "{states:?}");
        assert_eq!((facts.current_version.is_none(), facts.rotated_at), (true, None));
        assert_eq!(facts.deletion_at.is_some(), expected.0 == FailureKind::PendingDeletion);
    }
}

#[test]
fn a_key_of_another_purpose_is_misconfigured() {
    let signing = key().set_purpose(CryptoKeyPurpose::AsymmetricSign);
    assert_eq!(
        fault_of(&facts(KEY, &signing, vec![version(1, State::Enabled)])),
        Some((FailureKind::Misconfigured, false, "wrong_purpose"))
    );
}

#[test]
fn the_origin_and_protection_of_material_are_told() {
    let of = |primary: CryptoKeyVersion, key: CryptoKey| {
        let facts = facts(KEY, &key.set_primary(primary), Vec::new());
        (facts.origin.unwrap().to_string(), facts.protection_level.map(|level| level.to_string()))
    };
    let plain = version(1, State::Enabled);
    let hsm = Some("HSM".to_owned());
    assert_eq!(of(plain.clone().set_import_job("job"), key()), ("import".to_owned(), hsm.clone()));
    assert_eq!(of(plain.clone(), key().set_import_only(true)), ("import".to_owned(), hsm));
    let external = plain.clone().set_protection_level(ProtectionLevel::ExternalVpc);
    assert_eq!(of(external, key()), ("external".to_owned(), Some("EXTERNAL_VPC".to_owned())));
    let bare = plain.set_protection_level(ProtectionLevel::Unspecified);
    assert_eq!(of(bare.clone(), key()), ("google".to_owned(), None));
    let template = CryptoKeyVersionTemplate::new().set_protection_level(ProtectionLevel::Software);
    assert_eq!(of(bare, key().set_version_template(template)), ("google".to_owned(), Some("SOFTWARE".to_owned())));
}

#[test]
fn a_policy_that_allows_no_reason_is_the_owners_stated_refusal() {
    let with = |policy| facts(KEY, &key().set_primary(version(1, State::Enabled)).set_key_access_justifications_policy(policy), Vec::new());
    let none = KeyAccessJustificationsPolicy::new();
    assert_eq!(fault_of(&with(none.clone())), Some((FailureKind::AccessDenied, true, "no_access_reason_allowed")));
    assert_eq!(fault_of(&with(none.set_allowed_access_reasons([AccessReason::CustomerInitiatedAccess]))), None);
}
