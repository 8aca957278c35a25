//! The conformance suite over the Azure adapter and our own Key Vault over https, once as a vault with
//! roles, once as a vault with access policies and once as a managed HSM.
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
mod conformance;
#[path = "support/https.rs"]
mod https;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use azure_cloud::{Action, AzureCloud, Kind};
use azure_wire::{Root, THEIR_TENANT, TestNames, azure, client_secret, key};
use cmek_watchdog::key::{KeyTarget, KeyVersion, Resource};
use cmek_watchdog::kms::azure::AzureVaultKey;
use cmek_watchdog::kms::{Kms, WrapBytes, Wrapped};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{FailureKind, Leg};
use conformance::{Bench, Expect, Refusal};

struct AzureBench {
    kind: Kind,
    host: &'static str,
    cloud: AzureCloud,
    kms: Arc<dyn Kms>,
    made: AtomicU32,
    _root: Root,
}

async fn bench(kind: Kind) -> AzureBench {
    let host = if kind == Kind::ManagedHsm { "acme-hsm.managedhsm.azure.net" } else { "acme-kv.vault.azure.net" };
    let cloud = AzureCloud::start(host, THEIR_TENANT, kind).await;
    let root = Root::new(cloud.ca_pem());
    let names = TestNames { all: Some(cloud.addr()), ..TestNames::default() };
    let kms = Arc::new(azure(&root, client_secret(), names, Span::from_secs(20)));
    AzureBench { kind, host, cloud, kms, made: AtomicU32::new(0), _root: root }
}

impl AzureBench {
    fn target(&self, name: &str) -> KeyTarget {
        KeyTarget { tenant: Some(THEIR_TENANT.to_owned()), ..key(&format!("https://{}/keys/{name}", self.host)) }
    }
}

fn name(key: &KeyTarget) -> &str {
    match &key.reference.resource {
        Resource::Azure { name, .. } => name,
        other => panic!("not an Azure key: {other:?}"),
    }
}

fn action(leg: Leg) -> Action {
    match leg {
        Leg::Wrap => Action::Wrap,
        Leg::Unwrap | Leg::UnwrapVersion => Action::Unwrap,
        Leg::Describe => Action::Read,
    }
}

impl Bench for AzureBench {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::VaultWithRbac => "azure, vault with roles",
            Kind::VaultWithPolicies => "azure, vault with access policies",
            Kind::ManagedHsm => "azure, managed HSM",
        }
    }
    fn expect(&self) -> Expect {
        let silent = |kinds| Refusal { kinds, stated: false };
        let stated = |kinds| Refusal { kinds, stated: true };
        Expect {
            // A vault says of a deleted key that it was not found; only its recycle bin tells more.
            pending_deletion: silent(&[FailureKind::Destroyed]),
            described_pending_deletion: Some(stated(&[FailureKind::PendingDeletion])),
            destroyed: silent(&[FailureKind::Destroyed]),
            unknown_key: silent(&[FailureKind::Destroyed]),
            // The owner's own roles refuse; the right to look is no right to use.
            denied: stated(&[FailureKind::AccessDenied]),
            described_denied: Some(silent(&[FailureKind::AccessDenied])),
            // A canary of another key names a version that this key does not have.
            damaged: silent(&[FailureKind::Misconfigured, FailureKind::Destroyed]),
            // One version of a key cannot be destroyed.
            unsupported: &["old_version_destroyed"],
            ..Expect::default()
        }
    }
    fn kms(&self) -> Arc<dyn Kms> {
        Arc::clone(&self.kms)
    }
    async fn make_key(&self) -> KeyTarget {
        let name = format!("key-{}", self.made.fetch_add(1, Ordering::SeqCst));
        self.cloud.create_key(self.host, &name);
        self.target(&name)
    }
    async fn unknown_key(&self) -> KeyTarget {
        self.target("never-made")
    }
    async fn disable(&self, key: &KeyTarget) -> bool {
        self.cloud.set_enabled(self.host, name(key), None, false);
        true
    }
    async fn enable(&self, key: &KeyTarget) -> bool {
        self.cloud.set_enabled(self.host, name(key), None, true);
        true
    }
    async fn schedule_deletion(&self, key: &KeyTarget) -> bool {
        self.cloud.delete(self.host, name(key));
        true
    }
    async fn cancel_deletion(&self, key: &KeyTarget) -> bool {
        self.cloud.recover(self.host, name(key));
        true
    }
    async fn destroy(&self, key: &KeyTarget) -> bool {
        self.cloud.delete(self.host, name(key));
        self.cloud.purge(self.host, name(key));
        true
    }
    async fn rotate(&self, key: &KeyTarget) -> bool {
        self.cloud.advance(Span::from_mins(1));
        self.cloud.rotate(self.host, name(key));
        true
    }
    async fn deny(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.cloud.deny(self.host, Some(name(key)), action(leg));
        true
    }
    async fn allow(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.cloud.allow(self.host, Some(name(key)), action(leg));
        true
    }
    async fn disable_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.cloud.set_enabled(self.host, name(key), Some(version.as_str()), false);
        true
    }
    async fn enable_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.cloud.set_enabled(self.host, name(key), Some(version.as_str()), true);
        true
    }
    async fn plaintext_of(&self, key: &KeyTarget, wrapped: &Wrapped) -> Option<Vec<u8>> {
        let version = wrapped.version.as_ref()?;
        self.cloud.open(self.host, name(key), version.as_str(), "RSA-OAEP-256", &wrapped.bytes)
    }
    /// Azure binds nothing into an RSA wrapping but the algorithm.
    fn other_context(&self, key: &KeyTarget) -> KeyTarget {
        KeyTarget { algorithm: Some("RSA-OAEP".to_owned()), ..key.clone() }
    }
}

#[tokio::test]
async fn a_vault_with_roles_keeps_every_promise() {
    conformance::run(&bench(Kind::VaultWithRbac).await).await;
}

#[tokio::test]
async fn a_vault_with_access_policies_keeps_every_promise() {
    conformance::run(&bench(Kind::VaultWithPolicies).await).await;
}

#[tokio::test]
async fn a_managed_hsm_keeps_every_promise() {
    conformance::run(&bench(Kind::ManagedHsm).await).await;
}

#[tokio::test]
async fn the_vaults_bytes_come_back_through_the_service_and_name_their_version() {
    let host = "acme-kv.vault.azure.net";
    let cloud = AzureCloud::start(host, THEIR_TENANT, Kind::VaultWithRbac).await;
    let first = cloud.create_key(host, "operator");
    let root = Root::new(cloud.ca_pem());
    let names = TestNames { all: Some(cloud.addr()), ..TestNames::default() };
    let kms = Arc::new(azure(&root, client_secret(), names, Span::from_secs(20)));
    let target = KeyTarget { tenant: Some(THEIR_TENANT.to_owned()), ..key(&format!("https://{host}/keys/operator")) };
    let vault = AzureVaultKey::new(Arc::clone(&kms), Arc::new(target.clone()));
    let wrapped = vault.wrap_bytes(b"a data key of the vault").await.result.unwrap();
    assert_eq!(wrapped.version.as_ref().map(KeyVersion::as_str), Some(first.as_str()));
    assert_eq!(vault.unwrap_bytes(&wrapped).await.result.unwrap(), b"a data key of the vault");
    // Both directions were calls to the service, which opens with its own half what we sealed.
    let algorithm = wrapped.sealed_with.strip_prefix("alg=").unwrap();
    assert_eq!(cloud.open(host, "operator", &first, algorithm, &wrapped.bytes).unwrap(), b"a data key of the vault");
    // After a rotation the older version still opens what it sealed, and new bytes name the new one.
    let second = cloud.rotate(host, "operator");
    assert_eq!(vault.unwrap_bytes(&wrapped).await.result.unwrap(), b"a data key of the vault");
    let fresh = vault.wrap_bytes(b"x").await.result.unwrap();
    assert_eq!(fresh.version.as_ref().map(KeyVersion::as_str), Some(second.as_str()));
    // Whole, but other bytes: told, not handed out.
    let altered = Wrapped { digest: [7; 32], ..wrapped.clone() };
    let error = vault.unwrap_bytes(&altered).await.result.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (FailureKind::Corrupt, "digest_mismatch"));
    cloud.set_enabled(host, "operator", None, false);
    assert_eq!(vault.unwrap_bytes(&fresh).await.result.unwrap_err().kind, FailureKind::Disabled);
}
