//! The Azure adapter against our own Key Vault: versions, dates, soft deletion on a virtual clock, identity,
//! marks in the owner's audit log, and refusals of every layer.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "clouds/azure.rs"]
mod azure_cloud;
#[path = "support/azure_wire.rs"]
mod azure_wire;
#[path = "support/https.rs"]
mod https;

use std::sync::Arc;

use azure_cloud::{Action, AzureCloud, Dates, Fault, Kind, Network};
use azure_wire::{OUR_APP, OUR_TENANT, Root, THEIR_TENANT, TestNames, azure, client_secret, key, provider};
use cmek_watchdog::config::{Provider, ProviderDetail};
use cmek_watchdog::key::{KeyRef, KeyTarget, KeyVersion};
use cmek_watchdog::kms::azure::{AzureIdentity, AzureKms, CALL_MARK, MARK};
use cmek_watchdog::kms::{Answer, Kms, Rotation, RotationFact, Wrapped};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{FailureKind, ProviderKind};

const HOST: &str = "acme-kv.vault.azure.net";

struct Stage {
    cloud: AzureCloud,
    root: Root,
    kms: AzureKms,
    key: KeyTarget,
}

impl Stage {
    fn names(&self) -> TestNames {
        TestNames { all: Some(self.cloud.addr()), ..TestNames::default() }
    }
    async fn wrap(&self) -> Wrapped {
        self.kms.wrap_key(&self.key).await.result.unwrap()
    }
}

fn theirs(text: &str) -> KeyTarget {
    KeyTarget { tenant: Some(THEIR_TENANT.to_owned()), ..key(text) }
}

async fn stage() -> Stage {
    stage_with(Span::from_secs(20)).await
}

async fn stage_with(call_timeout: Span) -> Stage {
    let cloud = AzureCloud::start(HOST, THEIR_TENANT, Kind::VaultWithRbac).await;
    cloud.create_key(HOST, "k");
    let root = Root::new(cloud.ca_pem());
    let names = TestNames { all: Some(cloud.addr()), ..TestNames::default() };
    let kms = azure(&root, client_secret(), names, call_timeout);
    Stage { cloud, root, kms, key: theirs(&format!("https://{HOST}/keys/k")) }
}

/// Kind, stated and code of a refusal.
fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> (FailureKind, bool, String) {
    let error = answer.result.unwrap_err();
    (error.kind, error.stated, error.code.into())
}

fn refusal(kind: FailureKind, stated: bool, code: &str) -> (FailureKind, bool, String) {
    (kind, stated, code.to_owned())
}

#[tokio::test]
async fn each_enabled_version_has_a_canary_of_its_own() {
    let s = stage().await;
    let old = s.wrap().await;
    s.cloud.advance(Span::from_hours(1));
    let second = s.cloud.rotate(HOST, "k");
    s.cloud.advance(Span::from_hours(1));
    let third = s.cloud.rotate(HOST, "k");
    let facts = s.kms.describe_key(&s.key).await.result.unwrap();
    assert_eq!(facts.current_version, Some(KeyVersion::new(&third)));
    assert_eq!(facts.rotated_at, Some(s.cloud.now()));
    assert_eq!(facts.versions.len(), 3);
    let mut canaries = Vec::new();
    for fact in &facts.versions {
        let canary = s.kms.wrap_version(&s.key, &fact.version).await.result.unwrap();
        assert_eq!(canary.version.as_ref(), Some(&fact.version));
        canaries.push(canary);
    }
    s.cloud.set_enabled(HOST, "k", Some(&second), false);
    for canary in canaries.iter().chain([&old]) {
        let answer = s.kms.unwrap_key(&s.key, canary).await;
        if canary.version.as_ref().unwrap().as_str() == second {
            assert_eq!(refused(answer), refusal(FailureKind::Disabled, true, "KeyDisabled"));
        } else {
            let opened = answer.result.unwrap();
            assert_eq!((opened.digest, opened.version), (canary.digest, canary.version.clone()));
        }
    }
    assert_eq!(s.kms.describe_key(&s.key).await.result.unwrap().fault, None);
}

#[tokio::test]
async fn a_deleted_key_is_recoverable_until_its_purge_and_then_gone() {
    let s = stage().await;
    let canary = s.wrap().await;
    s.cloud.delete(HOST, "k");
    let purge = s.cloud.now().plus(Span::from_days(90));
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &canary).await), refusal(FailureKind::Destroyed, false, "KeyNotFound"));
    let answer = s.kms.describe_key(&s.key).await;
    assert_eq!(answer.meta.provider_time, Some(s.cloud.now()));
    let facts = answer.result.unwrap();
    assert_eq!((facts.deletion_at, facts.recoverable_until), (Some(purge), Some(purge)));
    assert!(facts.fault.is_some_and(|fault| fault.kind == FailureKind::PendingDeletion && fault.stated));

    s.cloud.recover(HOST, "k");
    assert_eq!(s.kms.unwrap_key(&s.key, &canary).await.result.unwrap().digest, canary.digest);
    assert_eq!(s.kms.describe_key(&s.key).await.result.unwrap().fault, None);

    s.cloud.delete(HOST, "k");
    s.cloud.advance(Span::from_days(91));
    assert_eq!(refused(s.kms.describe_key(&s.key).await), refusal(FailureKind::Destroyed, false, "KeyNotFound"));
    s.cloud.create_key(HOST, "k");
    // Made again under the same name it is another key: the old canary stays shut.
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &canary).await), refusal(FailureKind::Destroyed, false, "KeyNotFound"));
}

#[tokio::test]
async fn a_recycle_bin_that_is_closed_to_us_leaves_not_found_standing() {
    let s = stage().await;
    s.cloud.fault(Some(Action::Read), Fault::Refuse(404, "KeyNotFound", "A key was not found in this key vault."));
    s.cloud.fault(Some(Action::Read), Fault::Refuse(403, "Forbidden", "Caller is not authorized to perform action on resource."));
    assert_eq!(refused(s.kms.describe_key(&s.key).await), refusal(FailureKind::Destroyed, false, "KeyNotFound"));
    s.cloud.fault(Some(Action::Read), Fault::Page(404));
    assert_eq!(refused(s.kms.describe_key(&s.key).await), refusal(FailureKind::Unclassified, false, "http_404"));
}

#[tokio::test]
async fn outside_its_dates_a_key_still_unwraps_and_the_vaults_clock_judges() {
    let s = stage().await;
    let canary = s.wrap().await;
    let (start, end) = (s.cloud.now().plus(Span::from_hours(1)), s.cloud.now().plus(Span::from_hours(2)));
    s.cloud.set_dates(HOST, "k", Dates { not_before: Some(start), expires: Some(end) });
    for (wait, code) in [(Span::ZERO, Some("KeyNotYetValid")), (Span::from_hours(1), None), (Span::from_hours(1), Some("KeyExpired"))] {
        s.cloud.advance(wait);
        let facts = s.kms.describe_key(&s.key).await.result.unwrap();
        assert_eq!((facts.not_before, facts.expires_at), (Some(start), Some(end)));
        assert_eq!(
            facts.fault.as_ref().map(|fault| (fault.kind, fault.stated, &*fault.code)),
            code.map(|c| (FailureKind::Expired, false, c))
        );
        let wrap = s.kms.wrap_key(&s.key).await;
        match code {
            Some(code) => assert_eq!(refused(wrap), refusal(FailureKind::Expired, false, code)),
            None => assert!(wrap.result.is_ok()),
        }
        assert_eq!(s.kms.unwrap_key(&s.key, &canary).await.result.unwrap().digest, canary.digest);
    }
}

#[tokio::test]
async fn operations_taken_away_are_seen_by_both_sides() {
    let s = stage().await;
    let canary = s.wrap().await;
    s.cloud.set_operations(HOST, "k", &["wrapKey"]);
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &canary).await), refusal(FailureKind::Misconfigured, false, "KeyOperationForbidden"));
    let fault = s.kms.describe_key(&s.key).await.result.unwrap().fault.unwrap();
    assert_eq!((fault.kind, fault.stated), (FailureKind::Misconfigured, false));
}

#[tokio::test]
async fn every_call_is_marked_as_ours_and_asks_for_a_token_once() {
    let s = stage().await;
    let canary = s.wrap().await;
    s.kms.unwrap_key(&s.key, &canary).await.result.unwrap();
    let described = s.kms.describe_key(&s.key).await;
    let rows = s.cloud.audit();
    assert!(rows.iter().all(|row| row.client_request_id.starts_with(CALL_MARK) && row.user_agent.starts_with(&format!("{MARK} "))));
    let mut marks: Vec<_> = rows.iter().map(|row| row.client_request_id.clone()).collect();
    marks.dedup();
    assert_eq!(marks.len(), rows.len(), "each request has a mark of its own");
    assert_eq!(rows.iter().filter(|row| row.status == 401).count(), 1, "the challenge is met once per vault");
    assert_eq!(rows.iter().map(|row| row.operation).collect::<Vec<_>>(), ["KeyWrap", "KeyWrap", "KeyUnwrap", "KeyGet", "KeyGet"]);
    assert!(rows.iter().any(|row| Some(&*row.request_id) == described.meta.request_id.as_deref()));
    assert!(rows.iter().skip(1).all(|row| row.app == OUR_APP));
    assert_eq!(rows[1].to_json()["correlationId"], rows[1].client_request_id.as_str());
}

#[tokio::test]
async fn nothing_is_asked_twice_after_a_refusal_or_a_fault() {
    let s = stage_with(Span(1500)).await;
    let canary = s.wrap().await;
    for (fault, expected) in [
        (Fault::Refuse(429, "Throttled", "too many"), refusal(FailureKind::Throttled, false, "Throttled")),
        (Fault::Refuse(503, "ServiceUnavailable", "down"), refusal(FailureKind::ProviderFault, false, "ServiceUnavailable")),
        (Fault::Page(502), refusal(FailureKind::ProviderFault, false, "http_502")),
        (Fault::Page(403), refusal(FailureKind::Unclassified, false, "http_403")),
        (Fault::Cut, refusal(FailureKind::Unreachable, false, "reset")),
        (Fault::Hang, refusal(FailureKind::Timeout, false, "timeout")),
    ] {
        s.cloud.fault(Some(Action::Unwrap), fault.clone());
        let answer = s.kms.unwrap_key(&s.key, &canary).await;
        assert!(answer.meta.took < Span::from_secs(10));
        assert_eq!(refused(answer), expected, "{fault:?}");
        assert_eq!(s.kms.unwrap_key(&s.key, &canary).await.result.unwrap().digest, canary.digest, "after {fault:?}");
    }
}

#[tokio::test]
async fn each_layer_of_the_owners_refusal_has_its_kind() {
    let s = stage().await;
    let canary = s.wrap().await;
    s.cloud.set_network(HOST, Network::Firewall);
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &canary).await), refusal(FailureKind::NetworkBlocked, false, "ForbiddenByFirewall"));
    assert_eq!(refused(s.kms.describe_key(&s.key).await), refusal(FailureKind::NetworkBlocked, false, "ForbiddenByFirewall"));
    s.cloud.set_network(HOST, Network::PrivateOnly);
    assert_eq!(refused(s.kms.wrap_key(&s.key).await), refusal(FailureKind::NetworkBlocked, false, "ForbiddenByConnection"));
    s.cloud.set_network(HOST, Network::Open);
    s.cloud.deny(HOST, None, Action::Unwrap);
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &canary).await), refusal(FailureKind::AccessDenied, true, "ForbiddenByRbac"));
    s.cloud.allow(HOST, None, Action::Unwrap);
    s.cloud.set_limit(HOST, Some(1));
    assert!(s.kms.unwrap_key(&s.key, &canary).await.result.is_ok());
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &canary).await), refusal(FailureKind::Throttled, false, "Throttled"));
    s.cloud.advance(Span::from_secs(10));
    assert!(s.kms.unwrap_key(&s.key, &canary).await.result.is_ok());
}

#[tokio::test]
async fn we_are_named_by_application_and_tenant() {
    let s = stage().await;
    let named = s.kms.whoami(&s.key).await.result.unwrap();
    assert_eq!(&*named, format!("appid={OUR_APP};oid=22222222-2222-2222-2222-222222222222;tid={THEIR_TENANT}"));
    let at_home = s.kms.whoami(&key(&format!("https://{HOST}/keys/k"))).await.result.unwrap();
    assert!(at_home.ends_with(OUR_TENANT), "{at_home}");
}

#[tokio::test]
async fn a_key_without_its_tenant_is_refused_as_our_own_fault() {
    let s = stage().await;
    let answer = s.kms.wrap_key(&key(&format!("https://{HOST}/keys/k"))).await;
    assert_eq!(refused(answer), refusal(FailureKind::Credentials, false, "Unauthorized"));
}

#[tokio::test]
async fn a_refused_sign_in_is_ours_in_our_tenant_and_theirs_in_theirs() {
    let s = stage().await;
    let removed = serde_json::json!({"error": "unauthorized_client", "error_codes": [700016],
        "error_description": "AADSTS700016: Application with identifier 'x' was not found in the directory 'Acme'.\r\nTrace ID: 1"});
    s.cloud.refuse_sign_in(OUR_APP, Some(removed));
    let ours = key(&format!("https://{HOST}/keys/k"));
    assert_eq!(refused(s.kms.wrap_key(&s.key).await), refusal(FailureKind::AccessDenied, false, "AADSTS700016"));
    assert_eq!(refused(s.kms.wrap_key(&ours).await), refusal(FailureKind::Credentials, false, "AADSTS700016"));
    assert_eq!(refused(s.kms.whoami(&ours).await), refusal(FailureKind::Credentials, false, "AADSTS700016"));
    // A provider that says which tenants are ours need not name a tenant per key.
    let mut listed = provider(Some(&s.root));
    if let ProviderDetail::Azure { our_accounts, .. } = &mut listed.detail {
        our_accounts.push("77777777-7777-7777-7777-777777777777".to_owned());
    }
    let kms = AzureKms::with_names(&listed, client_secret(), Span::from_secs(20), Arc::new(s.names())).unwrap();
    assert_eq!(refused(kms.wrap_key(&ours).await), refusal(FailureKind::AccessDenied, false, "AADSTS700016"));
    s.cloud.refuse_sign_in(OUR_APP, None);
    assert!(s.kms.wrap_key(&s.key).await.result.is_ok(), "a refusal is not remembered");
}

/// The stage's cloud, addressed as an emulator: by its address, with a token that never changes.
fn emulator(s: &Stage, verify: bool) -> Provider {
    let mut made = provider(Some(&s.root));
    if let ProviderDetail::Azure { verify_challenge_resource, .. } = &mut made.detail {
        *verify_challenge_resource = verify;
    }
    made
}

#[tokio::test]
async fn an_emulator_is_reached_by_address_with_a_static_token() {
    let s = stage().await;
    s.cloud.accept_token("let-me-in", "emulated");
    let identity = AzureIdentity::StaticToken(zeroize::Zeroizing::new("let-me-in".to_owned()));
    let kms = AzureKms::new(&emulator(&s, false), identity.clone(), Span::from_secs(20)).unwrap();
    let here = key(&format!("https://127.0.0.1:{}/keys/k", s.cloud.addr().port()));
    let canary = kms.wrap_key(&here).await.result.unwrap();
    assert_eq!(kms.unwrap_key(&here, &canary).await.result.unwrap().digest, canary.digest);
    assert_eq!(kms.describe_key(&here).await.result.unwrap().versions.len(), 1);
    assert_eq!(&*kms.whoami(&here).await.result.unwrap(), "static-token");
    assert_eq!(s.cloud.audit().last().unwrap().app, "emulated");
    // With the check on, an address can never match the resource that the challenge names.
    let strict = AzureKms::new(&emulator(&s, true), identity, Span::from_secs(20)).unwrap();
    assert_eq!(refused(strict.wrap_key(&here).await), refusal(FailureKind::Misconfigured, false, "client"));
}

#[tokio::test]
async fn settings_for_emulators_never_meet_a_real_vault() {
    let s = stage().await;
    let fixed = AzureIdentity::StaticToken(zeroize::Zeroizing::new("let-me-in".to_owned()));
    for (provider, identity) in [(emulator(&s, false), client_secret()), (emulator(&s, true), fixed.clone())] {
        let kms = AzureKms::with_names(&provider, identity.clone(), Span::from_secs(20), Arc::new(s.names())).unwrap();
        assert_eq!(refused(kms.wrap_key(&s.key).await), refusal(FailureKind::Misconfigured, false, "not_loopback"));
        assert_eq!(refused(kms.whoami(&s.key).await), refusal(FailureKind::Misconfigured, false, "not_loopback"));
        let mut with_control = provider;
        with_control.control_key = Some(Arc::new(s.key.clone()));
        let error = AzureKms::new(&with_control, identity, Span::from_secs(1)).unwrap_err();
        assert!(error.to_string().ends_with(&format!("control_key names `{HOST}`")), "{error}");
    }
    assert!(s.cloud.audit().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn no_host_but_a_vault_gets_a_request() {
    let s = stage().await;
    for host in ["acme-kv.vault.azure.net.evil.example", "vault.azure.net", "evilvault.azure.net", "storage.example"] {
        let answer = s.kms.wrap_key(&theirs(&format!("https://{host}/keys/k"))).await;
        assert_eq!(refused(answer), refusal(FailureKind::Misconfigured, false, "foreign_host"), "{host}");
    }
    let mut narrow = provider(Some(&s.root));
    if let ProviderDetail::Azure { host_suffixes, .. } = &mut narrow.detail {
        host_suffixes.push("managedhsm.azure.net".to_owned());
    }
    let kms = AzureKms::with_names(&narrow, client_secret(), Span::from_secs(20), Arc::new(s.names())).unwrap();
    assert_eq!(refused(kms.describe_key(&s.key).await), refusal(FailureKind::Misconfigured, false, "foreign_host"));
    assert!(s.cloud.audit().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn what_cannot_be_asked_is_not_asked() {
    let s = stage().await;
    let canary = s.wrap().await;
    let before = s.cloud.audit().len();
    let local = KeyTarget::plain(KeyRef::parse(ProviderKind::Local, "k").unwrap());
    assert_eq!(refused(s.kms.wrap_key(&local).await), refusal(FailureKind::Misconfigured, false, "not_azure"));
    let bad_version = Wrapped { version: Some(KeyVersion::new("../../secrets/x")), ..canary.clone() };
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &bad_version).await), refusal(FailureKind::Misconfigured, false, "version"));
    assert_eq!(refused(s.kms.wrap_version(&s.key, &KeyVersion::new("")).await), refusal(FailureKind::Misconfigured, false, "version"));
    let bad_seal = Wrapped { sealed_with: "context".into(), ..canary };
    assert_eq!(refused(s.kms.unwrap_key(&s.key, &bad_seal).await), refusal(FailureKind::Misconfigured, false, "sealed_with"));
    let aws = Provider {
        detail: ProviderDetail::Aws { region: "r".into(), endpoint: None, assume_role: None, our_accounts: Vec::new() },
        ..provider(None)
    };
    let error = AzureKms::new(&aws, client_secret(), Span::from_secs(1)).unwrap_err();
    assert_eq!(error.to_string(), "provider `azure-test` is of kind aws, not azure");
    assert_eq!(s.cloud.audit().len(), before);
}

#[tokio::test]
async fn an_algorithm_that_the_key_does_not_know_is_misconfigured() {
    let s = stage().await;
    let odd = KeyTarget { algorithm: Some("A256KW".to_owned()), ..s.key.clone() };
    assert_eq!(refused(s.kms.wrap_key(&odd).await), refusal(FailureKind::Misconfigured, false, "BadParameter"));
}

#[tokio::test]
async fn the_rotation_policy_tells_the_next_rotation_and_a_refusal_tells_nothing() {
    let s = stage().await;
    let seen = async || s.kms.rotation(&s.key).unwrap().await.result;
    assert_eq!(seen().await, Ok(Rotation::default()));
    s.cloud.rotate_by_itself(HOST, "k", "timeAfterCreate", "P90D");
    let facts = s.kms.describe_key(&s.key).await.result.unwrap();
    assert_eq!(facts.rotation, RotationFact::NotObservable, "describe alone does not tell");
    let created = facts.created_at.unwrap();
    let next = async || seen().await.unwrap().next_rotation_at;
    assert_eq!(next().await, Some(created.plus(Span::from_days(90))));
    s.cloud.rotate_by_itself(HOST, "k", "timeBeforeExpiry", "P10D");
    assert_eq!(next().await, None, "a key without an end");
    s.cloud.set_dates(HOST, "k", Dates { not_before: None, expires: Some(created.plus(Span::from_days(30))) });
    assert_eq!(next().await, Some(created.plus(Span::from_days(20))));
    s.cloud.fault(Some(Action::Read), Fault::Refuse(403, "Forbidden", "no"));
    assert!(seen().await.is_err());
    s.cloud.fault(Some(Action::Read), Fault::Cut);
    assert!(seen().await.is_err());
}
