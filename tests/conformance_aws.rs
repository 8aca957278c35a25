//! The conformance suite over the AWS adapter: against ministack (another's idea of AWS, with
//! signatures and key policies enforced) and against the tests' own AWS, which has what ministack
//! lacks: integrity, rotation, deletion that comes true.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code"
)]

mod conformance;
mod clouds {
    pub mod aws;
    use super::wire;
}
#[path = "support/ministack.rs"]
mod ministack;
#[path = "support/wire.rs"]
mod wire;

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region, SharedCredentialsProvider};
use aws_sdk_kms::primitives::Blob;
use clouds::aws::{ACCESS_KEY, FakeAws, OURS, State, refuse};
use cmek_watchdog::config::{Provider, ProviderDetail};
use cmek_watchdog::key::{AssumeRole, KeyRef, KeyTarget, ProviderId, WrapOperation};
use cmek_watchdog::kms::aws::client::new_http;
use cmek_watchdog::kms::aws::vault::AwsVaultKey;
use cmek_watchdog::kms::aws::{AwsKms, ExternalIds};
use cmek_watchdog::kms::{Kms, WrapBytes, Wrapped};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{FailureKind, Leg, ProviderKind};
use conformance::{AfterCancel, Bench, Expect, Refusal};
use ministack::{ACCOUNT, Ministack, REGION};

const CUSTOMER: &str = "444455556666";

fn target(arn: &str) -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, arn).unwrap())
}

fn credentials(access_key: &str, secret: &str) -> Credentials {
    Credentials::new(access_key, secret, None, None, "test")
}

async fn adapter(url: String, region: &str, access_key: &str, secret: &str, our_accounts: &[&str]) -> Arc<AwsKms> {
    let our_accounts = our_accounts.iter().map(|a| (*a).to_owned()).collect();
    let provider = Provider {
        id: ProviderId::new("aws").unwrap(),
        detail: ProviderDetail::Aws { region: region.to_owned(), endpoint: Some(url), assume_role: None, our_accounts },
        control_key: None,
        calls_per_second: 50,
    };
    let given = SharedCredentialsProvider::new(credentials(access_key, secret));
    Arc::new(AwsKms::with_credentials(&provider, Span::from_secs(20), ExternalIds::default(), given, new_http()).await.unwrap())
}

/// What AWS does differently from the suite's default, on any server.
fn expect() -> Expect {
    let unwrapped_only = Refusal { kinds: &[FailureKind::Destroyed], stated: false };
    Expect {
        wrap_names_version: false,
        describe_lists_versions: false,
        describe_tells_rotation: false,
        after_cancel: AfterCancel::Disabled,
        // A key that is gone looks like a key that never was.
        destroyed: unwrapped_only,
        unknown_key: unwrapped_only,
        // A deny in the key policy is the owner's own word; about the metadata right it says nothing.
        denied: Refusal { kinds: &[FailureKind::AccessDenied], stated: true },
        described_denied: Some(Refusal { kinds: &[FailureKind::AccessDenied], stated: false }),
        ..Expect::default()
    }
}

fn action(leg: Leg) -> &'static str {
    match leg {
        Leg::Wrap => "Encrypt",
        Leg::Unwrap | Leg::UnwrapVersion => "Decrypt",
        Leg::Describe => "DescribeKey",
    }
}

fn context(wrapped: &Wrapped) -> HashMap<String, String> {
    serde_json::from_str(&wrapped.sealed_with).unwrap()
}

struct MinistackBench {
    _server: Ministack,
    owner: aws_sdk_kms::Client,
    kms: Arc<dyn Kms>,
}

async fn on_ministack() -> MinistackBench {
    let server = Ministack::start().await;
    let (access_key, secret) = server.user("watchdog").await;
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(server.url())
        .credentials_provider(credentials("test", "test"))
        .http_client(new_http())
        .build();
    let kms = adapter(server.url(), REGION, &access_key, &secret, &[]).await;
    MinistackBench { owner: aws_sdk_kms::Client::from_conf(config), kms, _server: server }
}

impl MinistackBench {
    async fn put_policy(&self, key: &KeyTarget, denied: Option<Leg>) -> bool {
        let allow = r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}"#;
        let deny = denied.map(|leg| format!(r#",{{"Effect":"Deny","Principal":"*","Action":"kms:{}","Resource":"*"}}"#, action(leg)));
        let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{allow}{}]}}"#, deny.unwrap_or_default());
        self.owner.put_key_policy().key_id(key.address()).policy_name("default").policy(policy).send().await.unwrap();
        true
    }
}

impl Bench for MinistackBench {
    fn name(&self) -> &'static str {
        "aws on ministack"
    }
    fn expect(&self) -> Expect {
        Expect {
            // Its cipher is an XOR without integrity, and it opens with whatever key made a blob.
            integrity: false,
            unknown_key: Expect::default().unknown_key,
            // Its refusals by policy carry no request id.
            request_id: false,
            unsupported: &["destroyed_key", "rotation_keeps_old_canaries", "old_version_disabled", "old_version_destroyed"],
            ..expect()
        }
    }
    fn kms(&self) -> Arc<dyn Kms> {
        Arc::clone(&self.kms)
    }
    async fn make_key(&self) -> KeyTarget {
        let made = self.owner.create_key().send().await.unwrap();
        let key = target(&made.key_metadata.unwrap().arn.unwrap());
        self.put_policy(&key, None).await;
        key
    }
    async fn unknown_key(&self) -> KeyTarget {
        target(&format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-0000-4000-8000-000000000000"))
    }
    async fn disable(&self, key: &KeyTarget) -> bool {
        self.owner.disable_key().key_id(key.address()).send().await.unwrap();
        true
    }
    async fn enable(&self, key: &KeyTarget) -> bool {
        self.owner.enable_key().key_id(key.address()).send().await.unwrap();
        true
    }
    async fn schedule_deletion(&self, key: &KeyTarget) -> bool {
        self.owner.schedule_key_deletion().key_id(key.address()).pending_window_in_days(7).send().await.unwrap();
        true
    }
    async fn cancel_deletion(&self, key: &KeyTarget) -> bool {
        self.owner.cancel_key_deletion().key_id(key.address()).send().await.unwrap();
        true
    }
    async fn deny(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.put_policy(key, Some(leg)).await
    }
    async fn allow(&self, key: &KeyTarget, _: Leg) -> bool {
        self.put_policy(key, None).await
    }
    async fn plaintext_of(&self, key: &KeyTarget, wrapped: &Wrapped) -> Option<Vec<u8>> {
        let call = self.owner.decrypt().key_id(key.address()).ciphertext_blob(Blob::new(wrapped.bytes.to_vec()));
        let opened = call.set_encryption_context(Some(context(wrapped))).send().await.unwrap();
        opened.plaintext.map(Blob::into_inner)
    }
}

struct FakeBench {
    cloud: FakeAws,
    kms: Arc<dyn Kms>,
    wrap: WrapOperation,
}

async fn on_our_own(wrap: WrapOperation) -> FakeBench {
    let cloud = FakeAws::start().await;
    let kms = adapter(cloud.url(), "us-east-1", ACCESS_KEY, "any", &[OURS]).await;
    FakeBench { cloud, kms, wrap }
}

impl Bench for FakeBench {
    fn name(&self) -> &'static str {
        "aws on the tests' own cloud"
    }
    fn expect(&self) -> Expect {
        Expect {
            wrap_names_version: self.wrap == WrapOperation::GenerateDataKey,
            // AWS switches keys off, never one generation of their material.
            unsupported: &["old_version_disabled", "old_version_destroyed"],
            ..expect()
        }
    }
    fn kms(&self) -> Arc<dyn Kms> {
        Arc::clone(&self.kms)
    }
    async fn make_key(&self) -> KeyTarget {
        let mut key = target(&self.cloud.create_key("us-east-1", CUSTOMER));
        key.wrap_operation = self.wrap;
        key
    }
    async fn unknown_key(&self) -> KeyTarget {
        target(&format!("arn:aws:kms:us-east-1:{CUSTOMER}:key/00000000-0000-4000-8000-ffffffffffff"))
    }
    async fn disable(&self, key: &KeyTarget) -> bool {
        self.cloud.disable(key.address());
        true
    }
    async fn enable(&self, key: &KeyTarget) -> bool {
        self.cloud.enable(key.address());
        true
    }
    async fn schedule_deletion(&self, key: &KeyTarget) -> bool {
        self.cloud.schedule_deletion(key.address(), 7);
        true
    }
    async fn cancel_deletion(&self, key: &KeyTarget) -> bool {
        self.cloud.cancel_deletion(key.address());
        true
    }
    async fn destroy(&self, key: &KeyTarget) -> bool {
        self.cloud.schedule_deletion(key.address(), 7);
        self.cloud.advance(8 * 86_400_000);
        true
    }
    async fn rotate(&self, key: &KeyTarget) -> bool {
        self.cloud.rotate(key.address());
        true
    }
    async fn deny(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.cloud.deny(
            key.address(),
            if leg == Leg::Wrap && self.wrap == WrapOperation::GenerateDataKey { "GenerateDataKey" } else { action(leg) },
        );
        true
    }
    async fn allow(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.cloud.allow(key.address(), action(leg));
        self.cloud.allow(key.address(), "GenerateDataKey");
        true
    }
    async fn plaintext_of(&self, key: &KeyTarget, wrapped: &Wrapped) -> Option<Vec<u8>> {
        self.cloud.open(key.address(), &wrapped.bytes, &serde_json::from_str(&wrapped.sealed_with).unwrap())
    }
}

#[tokio::test]
async fn the_aws_adapter_keeps_every_promise_on_ministack() {
    conformance::run(&on_ministack().await).await;
}

#[tokio::test]
async fn the_aws_adapter_keeps_every_promise_on_the_tests_own_cloud() {
    conformance::run(&on_our_own(WrapOperation::Encrypt).await).await;
}

#[tokio::test]
async fn the_aws_adapter_keeps_every_promise_with_data_keys() {
    conformance::run(&on_our_own(WrapOperation::GenerateDataKey).await).await;
}

#[tokio::test]
async fn the_vaults_bytes_come_back_under_its_own_key_only_and_no_probe_opens_them() {
    let cloud = FakeAws::start().await;
    let kms = adapter(cloud.url(), "us-east-1", ACCESS_KEY, "any", &[OURS]).await;
    let key = Arc::new(target(&cloud.create_key("us-east-1", OURS)));
    let vault = AwsVaultKey::new(Arc::clone(&kms), Arc::clone(&key));
    let sealed = vault.wrap_bytes(b"a data key of the vault").await.result.unwrap();
    assert_eq!(vault.unwrap_bytes(&sealed).await.result.unwrap(), b"a data key of the vault");
    // Encrypt alone would not tell the material, and a rotation would never be seen.
    let first = sealed.version.clone().unwrap();
    cloud.rotate(key.address());
    assert_ne!(vault.wrap_bytes(b"x").await.result.unwrap().version.unwrap(), first);
    let probes = kms.wrap_key(&key).await.result.unwrap();
    assert_ne!(probes.sealed_with, sealed.sealed_with);
    let other = AwsVaultKey::new(Arc::clone(&kms), Arc::new(target(&cloud.create_key("us-east-1", OURS))));
    assert_eq!(other.unwrap_bytes(&sealed).await.result.unwrap_err().kind, FailureKind::Misconfigured);
    cloud.disable(key.address());
    assert_eq!(vault.unwrap_bytes(&sealed).await.result.unwrap_err().kind, FailureKind::Disabled);
}

#[tokio::test]
async fn the_owners_own_kill_switches_are_told_apart() {
    let cloud = FakeAws::start().await;
    let kms = adapter(cloud.url(), "us-east-1", ACCESS_KEY, "any", &[OURS]).await;
    let arn = cloud.create_imported_key("us-east-1", CUSTOMER);
    let mut key = target(&arn);
    let canary = kms.wrap_key(&key).await.result.unwrap();
    let seen = async |key: &KeyTarget| kms.unwrap_key(key, &canary).await.result.err().map(|e| (e.kind, e.stated));
    cloud.delete_imported_material(&arn);
    assert_eq!(seen(&key).await, Some((FailureKind::Expired, false)));
    assert_eq!(kms.describe_key(&key).await.result.unwrap().fault.unwrap().kind, FailureKind::Expired);
    cloud.set_state(&arn, State::Unavailable);
    assert_eq!(seen(&key).await, Some((FailureKind::KeyStoreUnavailable, false)));
    cloud.import_again(&arn);
    cloud.deny_because(&arn, "Decrypt", "because no identity-based policy allows the kms:Decrypt action");
    assert_eq!(seen(&key).await, Some((FailureKind::Credentials, false)));
    cloud.allow(&arn, "Decrypt");
    cloud.inject(Some("Decrypt"), Some(1), refuse(400, "ThrottlingException", "Rate exceeded"));
    assert_eq!(seen(&key).await, Some((FailureKind::Throttled, false)));
    assert_eq!(seen(&key).await, None, "one fault only");
    // Role: trusted, then not, for a caller who has no session yet.
    let role = format!("arn:aws:iam::{CUSTOMER}:role/cmek-probe");
    cloud.trust_role(&role, Some("x1"));
    key.assume_role = Some(AssumeRole { arn: role.clone(), external_id: Some("x1".to_owned()) });
    assert_eq!(seen(&key).await, None);
    assert_eq!(&*kms.whoami(&key).await.result.unwrap(), format!("arn:aws:sts::{CUSTOMER}:assumed-role/cmek-probe"));
    cloud.withdraw_trust(&role);
    key.assume_role = Some(AssumeRole { arn: role, external_id: Some("x2".to_owned()) });
    assert_eq!(seen(&key).await, Some((FailureKind::AccessDenied, false)));
    key.assume_role = None;
    cloud.expire(ACCESS_KEY);
    assert_eq!(seen(&key).await, Some((FailureKind::Credentials, false)));
}

#[tokio::test]
async fn rotations_are_read_by_the_reader_role_or_as_ourselves_and_never_across_accounts() {
    let aws = FakeAws::start().await;
    let kms = adapter(aws.url(), REGION, ACCESS_KEY, "secret", &[OURS]).await;
    let (ours, theirs) = (aws.create_key(REGION, OURS), aws.create_key(REGION, CUSTOMER));
    for arn in [&ours, &theirs] {
        aws.enable_rotation(arn);
        // Three rotations are two pages.
        for _ in 0..3 {
            aws.advance(86_400_000);
            aws.rotate(arn);
        }
    }
    let read = kms.rotation(&target(&ours)).unwrap().await.result.unwrap();
    let next = read.next_rotation_at.unwrap();
    assert_eq!(next.since(read.rotated_at.unwrap()), Span::from_days(365));
    assert!(kms.rotation(&target(&theirs)).is_none(), "another account's key without a reader role is not asked about");

    let role = format!("arn:aws:iam::{CUSTOMER}:role/cmek-reader");
    let reading = KeyTarget { reader_role: Some(role.clone()), ..target(&theirs) };
    let refused = kms.rotation(&reading).unwrap().await.result.unwrap_err();
    assert_eq!(refused.kind, FailureKind::AccessDenied, "{refused:?}");
    aws.trust_role(&role, None);
    let kms = adapter(aws.url(), REGION, ACCESS_KEY, "secret", &[OURS]).await;
    assert!(kms.rotation(&reading).unwrap().await.result.unwrap().rotated_at.is_some());
    // Our own identity would be refused, as AWS does it.
    let foreign = adapter(aws.url(), REGION, ACCESS_KEY, "secret", &[CUSTOMER]).await;
    let refused = foreign.rotation(&target(&theirs)).unwrap().await.result.unwrap_err();
    assert!([FailureKind::AccessDenied, FailureKind::Credentials].contains(&refused.kind), "{refused:?}");

    let facts = kms.describe_key(&target(&ours)).await.result.unwrap();
    assert_eq!(facts.rotation, cmek_watchdog::kms::RotationFact::NotObservable, "describe alone does not tell");
    let imported = aws.create_imported_key(REGION, OURS);
    let facts = kms.describe_key(&target(&imported)).await.result.unwrap();
    assert_eq!(facts.rotation, cmek_watchdog::kms::RotationFact::NotApplicable);
}
