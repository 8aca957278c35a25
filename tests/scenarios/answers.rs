//! Answers as they come over the wire, classified by the real adapters, then judged by the core.

use std::sync::Arc;

use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use cmek_watchdog::config::{Provider, ProviderDetail};
use cmek_watchdog::key::{KeyRef, KeyTarget, ProviderId};
use cmek_watchdog::kms::aws::client::new_http;
use cmek_watchdog::kms::aws::{AwsKms, ExternalIds};
use cmek_watchdog::kms::azure::AzureKms;
use cmek_watchdog::kms::{Answer, Kms, KmsError, Wrapped};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, Cause, EventType, FailureKind, Leg, ProviderKind};

use crate::azure_cloud::{Action, AzureCloud, Dates, Fault, Kind, Network};
use crate::azure_wire::{OUR_APP, Root, THEIR_TENANT, TestNames, client_secret, key};
use crate::bench::{self, Bench, HOUR, MINUTE, arn, aws, vault_control, vault_key};
use crate::clouds::aws::{ACCESS_KEY, FakeAws, OURS, refuse};

const HOST: &str = "acme-kv.vault.azure.net";
const DATA: [Leg; 3] = [Leg::Wrap, Leg::Unwrap, Leg::UnwrapVersion];

/// A vault with key `k1` and our adapter before it.
struct VaultStage {
    cloud: AzureCloud,
    kms: AzureKms,
    key: KeyTarget,
    canary: Wrapped,
    _root: Root,
}

async fn vault(kind: Kind) -> VaultStage {
    let cloud = AzureCloud::start(HOST, THEIR_TENANT, kind).await;
    cloud.create_key(HOST, "k1");
    let root = Root::new(cloud.ca_pem());
    let names = TestNames { all: Some(cloud.addr()), ..TestNames::default() };
    let kms = crate::azure_wire::azure(&root, client_secret(), names, Span::from_secs(20));
    let key = KeyTarget { tenant: Some(THEIR_TENANT.to_owned()), ..key(&vault_key(1)) };
    let canary = kms.wrap_key(&key).await.result.unwrap();
    VaultStage { cloud, kms, key, canary, _root: root }
}

impl VaultStage {
    async fn unwrap_error(&self) -> KmsError {
        self.kms.unwrap_key(&self.key, &self.canary).await.result.unwrap_err()
    }
}

fn error<T: std::fmt::Debug>(answer: Answer<T>) -> KmsError {
    answer.result.unwrap_err()
}

/// BUG-016
#[tokio::test]
async fn an_expired_azure_key_is_read_only_and_not_revoked() {
    for (what, past) in [("expired", true), ("not yet valid", false)] {
        let stage = vault(Kind::VaultWithRbac).await;
        let date = stage.cloud.now().plus(Span::from_hours(1));
        let dates =
            if past { Dates { expires: Some(date), ..Dates::default() } } else { Dates { not_before: Some(date), ..Dates::default() } };
        stage.cloud.set_dates(HOST, "k1", dates);
        if past {
            stage.cloud.advance(Span::from_hours(2));
        }
        let wrap = error(stage.kms.wrap_key(&stage.key).await);
        assert!(stage.kms.unwrap_key(&stage.key, &stage.canary).await.result.is_ok(), "{what}: what is there opens");
        let facts = stage.kms.describe_key(&stage.key).await.result.unwrap();

        let mut bench = Bench::proven(&bench::azure(2));
        bench.cloud.refuse(&vault_key(1), &[Leg::Wrap], &wrap);
        bench.cloud.facts.insert(vault_key(1), facts);
        bench.run(10 * MINUTE);
        assert_eq!((bench.access("w1"), bench.state("k1")), (Access::ReadOnly, "impaired"), "{what}");
        assert_eq!(bench.access("w2"), Access::Open);
        assert!(bench.told(EventType::KeyRevoked).is_empty() && bench.told(EventType::WorkspaceLocked).is_empty());
        let told = bench.told(EventType::WorkspaceReadOnly)[0];
        assert_eq!(told.cause, Some(Cause::Kind(FailureKind::Expired)));
        let shown = &bench.key("k1").facts;
        assert_eq!(if past { shown.expires_at } else { shown.not_before }, Some(date), "{what}: the date is shown");
    }
}

/// BUG-018
#[tokio::test]
async fn each_inner_code_of_a_403_has_its_own_kind_and_outcome() {
    let roles = vault(Kind::VaultWithRbac).await;
    let policies = vault(Kind::VaultWithPolicies).await;
    let mut seen = Vec::new();
    roles.cloud.set_operations(HOST, "k1", &["wrapKey", "encrypt"]);
    seen.push(("an operation taken from the key", roles.unwrap_error().await, Access::Open));
    roles.cloud.set_operations(HOST, "k1", &["wrapKey", "unwrapKey"]);
    policies.cloud.deny(HOST, None, Action::Unwrap);
    seen.push(("an access policy", policies.unwrap_error().await, Access::Locked));
    roles.cloud.set_network(HOST, Network::Firewall);
    seen.push(("the firewall", roles.unwrap_error().await, Access::Open));
    roles.cloud.set_network(HOST, Network::Open);
    roles.cloud.deny(HOST, None, Action::Unwrap);
    seen.push(("a role", roles.unwrap_error().await, Access::Locked));
    roles.cloud.allow(HOST, None, Action::Unwrap);
    roles.cloud.set_enabled(HOST, "k1", None, false);
    seen.push(("the key's switch", roles.unwrap_error().await, Access::Locked));
    roles.cloud.set_enabled(HOST, "k1", None, true);
    roles.cloud.fault(Some(Action::Unwrap), Fault::Page(403));
    seen.push(("a page of somebody's", roles.unwrap_error().await, Access::Open));

    let codes: std::collections::BTreeSet<String> = seen.iter().map(|(_, e, _)| e.code.to_string()).collect();
    assert_eq!(codes.len(), seen.len(), "a label of its own each: {codes:?}");
    let kinds: Vec<FailureKind> = seen.iter().map(|(_, e, _)| e.kind).collect();
    println!("{codes:?} {kinds:?}");
    assert_eq!(kinds[0], FailureKind::Misconfigured);
    assert_eq!((kinds[1], kinds[2], kinds[3], kinds[4]), {
        use FailureKind::{AccessDenied, Disabled, NetworkBlocked};
        (AccessDenied, NetworkBlocked, AccessDenied, Disabled)
    });
    for (what, refused, access) in seen {
        let mut bench = Bench::proven(&bench::azure(2));
        bench.cloud.refuse(&vault_key(1), &DATA, &refused);
        bench.until(2 * MINUTE, what, |b| b.key("k1").failure_kind == Some(refused.kind));
        assert_eq!(bench.access("w1"), Access::Open, "{what}: one look confirms nothing");
        bench.run(15 * MINUTE);
        assert_eq!((bench.access("w1"), bench.access("w2")), (access, Access::Open), "{what}: {refused:?}");
    }
}

/// BUG-022. A client secret does not tell its own end beforehand.
#[tokio::test]
async fn an_expired_client_secret_is_one_trouble_of_ours() {
    let stage = vault(Kind::VaultWithRbac).await;
    let body = serde_json::json!({"error": "invalid_client", "error_codes": [7_000_222],
        "error_description": "AADSTS7000222: The provided client secret keys for app 'x' are expired.\r\nTrace ID: 1"});
    stage.cloud.refuse_sign_in(OUR_APP, Some(body));
    // A token already handed out is good until its own end; a new process has none.
    let fresh = {
        let root = Root::new(stage.cloud.ca_pem());
        let names = TestNames { all: Some(stage.cloud.addr()), ..TestNames::default() };
        let kms = crate::azure_wire::azure(&root, client_secret(), names, Span::from_secs(20));
        [error(kms.unwrap_key(&stage.key, &stage.canary).await), error(kms.wrap_key(&stage.key).await)]
    };
    for refused in &fresh {
        assert_eq!((refused.kind, refused.stated, &*refused.code), (FailureKind::Credentials, false, "AADSTS7000222"));
    }
    let mut bench = Bench::proven(&bench::azure(10));
    let refused = fresh[0].clone();
    bench.cloud.hook(move |_| Some(refused.clone()));
    bench.cloud.identity = None;
    bench.run(6 * HOUR);
    bench.assert_nothing_lowered();
    assert_eq!(bench.told(EventType::ProviderCredentials).len(), 1, "one notice for all ten keys and six hours");
    assert!(bench.told(EventType::KeyStale).is_empty(), "the keys are not blamed");
    assert!(bench.providers.values().all(|provider| provider.credentials_failing));
}

/// BUG-163
#[tokio::test]
async fn a_missing_azure_key_is_recoverable_or_gone_and_recovery_is_proved_by_probes() {
    let stage = vault(Kind::VaultWithRbac).await;
    stage.cloud.delete(HOST, "k1");
    let missing = stage.unwrap_error().await;
    assert_eq!((missing.kind, missing.stated), (FailureKind::Destroyed, false), "missing first");
    // The recycle bin lags behind the deletion.
    for _ in 0..2 {
        stage.cloud.fault(Some(Action::Read), Fault::Refuse(404, "KeyNotFound", "A key was not found in this key vault."));
    }
    let unseen = error(stage.kms.describe_key(&stage.key).await);
    let deleted = stage.kms.describe_key(&stage.key).await.result.unwrap();
    let purge = deleted.recoverable_until.unwrap();
    let fault = deleted.fault.clone().unwrap();
    assert_eq!((fault.kind, fault.stated), (FailureKind::PendingDeletion, true));

    let mut bench = Bench::proven(&bench::azure(2));
    bench.cloud.refuse(&vault_key(1), &DATA, &missing);
    bench.cloud.refuse(&vault_key(1), &[Leg::Describe], &unseen);
    bench.until(2 * MINUTE, "missing", |b| b.state("k1") == "suspect");
    bench.run(30);
    assert_eq!(bench.access("w1"), Access::Open, "not found is not stated: a minute of looks");
    bench.cloud.allow(&vault_key(1));
    bench.cloud.refuse(&vault_key(1), &DATA, &missing);
    bench.cloud.facts.insert(vault_key(1), deleted);
    bench.until(2 * MINUTE, "locked", |b| b.access("w1") == Access::Locked);
    assert_eq!(bench.key("k1").facts.recoverable_until, Some(purge));
    assert_eq!(bench.told(EventType::WorkspaceLocked)[0].recoverable_until, Some(purge), "recoverable until that date, and said");

    // Recovered: describe is good before the data calls are, and that alone opens nothing.
    stage.cloud.recover(HOST, "k1");
    let recovered = stage.kms.describe_key(&stage.key).await.result.unwrap();
    assert!(recovered.fault.is_none() && stage.kms.unwrap_key(&stage.key, &stage.canary).await.result.is_ok());
    bench.cloud.facts.insert(vault_key(1), recovered.clone());
    bench.run(10 * MINUTE);
    assert_eq!(bench.access("w1"), Access::Locked, "a good describe is no unlock");
    bench.cloud.allow(&vault_key(1));
    bench.cloud.facts.insert(vault_key(1), recovered);
    let opened = bench.until(10 * MINUTE, "opened by probes", |b| b.access("w1") == Access::Open);
    assert!(opened >= MINUTE, "three good rounds over a minute: {opened}");

    // Purged: the bin knows nothing of it any more.
    stage.cloud.delete(HOST, "k1");
    stage.cloud.purge(HOST, "k1");
    let gone = error(stage.kms.describe_key(&stage.key).await);
    assert_eq!((gone.kind, gone.stated), (FailureKind::Destroyed, false));
    assert_ne!(vault_control(), vault_key(1));
}

async fn aws_adapter(cloud: &FakeAws) -> AwsKms {
    let provider = Provider {
        id: ProviderId::new("aws").unwrap(),
        detail: ProviderDetail::Aws {
            region: "us-east-1".to_owned(),
            endpoint: Some(cloud.url()),
            assume_role: None,
            our_accounts: vec![OURS.to_owned()],
        },
        control_key: None,
        calls_per_second: 50,
    };
    let given = SharedCredentialsProvider::new(Credentials::new(ACCESS_KEY, "any", None, None, "test"));
    AwsKms::with_credentials(&provider, Span::from_secs(20), ExternalIds::default(), given, new_http()).await.unwrap()
}

fn aws_key(text: &str) -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, text).unwrap())
}

/// BUG-048
#[tokio::test]
async fn tokens_that_ran_out_are_ours_whatever_the_code() {
    let cloud = FakeAws::start().await;
    let kms = aws_adapter(&cloud).await;
    let key = aws_key(&cloud.create_key("us-east-1", "444455556666"));
    let canary = kms.wrap_key(&key).await.result.unwrap();
    let mut errors = Vec::new();
    for code in ["ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidSignatureException"] {
        cloud.inject(None, Some(1), refuse(400, code, "The security token included in the request is invalid or expired"));
        errors.push(error(kms.unwrap_key(&key, &canary).await));
    }
    cloud.expire(ACCESS_KEY);
    errors.push(error(kms.unwrap_key(&key, &canary).await));
    for refused in &errors {
        assert_eq!((refused.kind, refused.stated), (FailureKind::Credentials, false), "{refused:?}");
    }
    let mut bench = Bench::proven(&aws(&[arn(444_455_556_666, 1), arn(555_566_667_777, 2)], ""));
    let mut turn = 0;
    bench.cloud.hook(move |_| {
        turn += 1;
        Some(errors[turn % errors.len()].clone())
    });
    bench.run(2 * HOUR);
    bench.assert_nothing_lowered();
    assert_eq!(bench.told(EventType::ProviderCredentials).len(), 1);
    assert!(bench.keys.values().all(|key| key.failure_kind == Some(FailureKind::Credentials)));
}

/// BUG-156
#[tokio::test]
async fn key_store_texts_are_the_stores_trouble_and_unknown_ones_are_doubt() {
    let cloud = FakeAws::start().await;
    let kms: Arc<dyn Kms> = Arc::new(aws_adapter(&cloud).await);
    let key = aws_key(&cloud.create_key("us-east-1", "444455556666"));
    let canary = kms.wrap_key(&key).await.result.unwrap();
    let proxy = "KMS cannot communicate with the external key store proxy server. This can happen if the proxy is down.";
    let texts = [
        (proxy.to_owned(), FailureKind::KeyStoreUnavailable),
        (proxy.to_uppercase(), FailureKind::KeyStoreUnavailable),
        ("The External Key Store Proxy did not respond to the request in the time allotted".to_owned(), FailureKind::KeyStoreUnavailable),
        ("the keystore's proxy went for lunch".to_owned(), FailureKind::KeyStoreUnavailable),
        ("something new that nobody has seen".to_owned(), FailureKind::Unclassified),
    ];
    let mut errors = Vec::new();
    for (text, kind) in texts {
        for (status, code) in [(500, "KMSInternalException"), (400, "KMSInvalidStateException")] {
            cloud.inject(None, Some(1), refuse(status, code, &text));
            let refused = error(kms.unwrap_key(&key, &canary).await);
            let cannot_tell = matches!(refused.kind, FailureKind::Unclassified | FailureKind::ProviderFault);
            assert!(refused.kind == kind || (kind == FailureKind::Unclassified && cannot_tell), "{code}, {text}: {refused:?}");
            assert!(!refused.stated, "{code}, {text}");
            errors.push(refused);
        }
    }
    for refused in errors {
        let mut bench = Bench::proven(&aws(&[arn(444_455_556_666, 1), arn(555_566_667_777, 2)], ""));
        bench.cloud.refuse(&arn(444_455_556_666, 1), &DATA, &refused);
        bench.run(HOUR);
        bench.assert_nothing_lowered();
    }
    // The key's own state beside the same code decides: then it is the owner's act.
    cloud.schedule_deletion(key.address(), 7);
    let pending = error(kms.unwrap_key(&key, &canary).await);
    assert_eq!((&*pending.code, pending.kind, pending.stated), ("KMSInvalidStateException", FailureKind::PendingDeletion, true));
    let facts = kms.describe_key(&key).await.result.unwrap();
    assert_eq!(facts.fault.map(|fault| fault.kind), Some(FailureKind::PendingDeletion));
}
