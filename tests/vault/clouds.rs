//! Each provider's own client against its fake: the vault reads and writes in every state of the
//! customer's key, never asks for that key, and seals nothing under it.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use cmek_watchdog::clock;
use cmek_watchdog::config::{GcpCredentials, Provider, ProviderDetail};
use cmek_watchdog::key::{KeyRef, KeyTarget, ProviderId, WorkspaceId};
use cmek_watchdog::kms::aws::client::new_http;
use cmek_watchdog::kms::aws::vault::AwsVaultKey;
use cmek_watchdog::kms::aws::{AwsKms, ExternalIds};
use cmek_watchdog::kms::azure::AzureVaultKey;
use cmek_watchdog::kms::gcp::{GcpKms, GcpVaultKey};
use cmek_watchdog::kms::local::{LocalKms, LocalKmsFile, LocalWrapBytes};
use cmek_watchdog::kms::{Kms, WrapBytes, Wrapped};
use cmek_watchdog::metrics::Metrics;
use cmek_watchdog::store::sqlite::{Opened, Options, SqliteStore};
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::vault::Records;
use cmek_watchdog::vault::desk::{Expect, Vault, VaultFault};
use cmek_watchdog::vault::look::Looker;
use cmek_watchdog::vault::record::{RecordId, SafetyRecord};
use cmek_watchdog::vault::seal::VaultKey;
use cmek_watchdog::vault::wraps::{KeyRole, VaultKeyName};
use cmek_watchdog::words::{FailureKind, ProviderKind};
use serde_json::json;

use crate::aws_cloud::{ACCESS_KEY, FakeAws, OURS, State};
use crate::azure_cloud::{Action, AzureCloud, Kind, Network};
use crate::azure_wire::{Root, THEIR_TENANT, TestNames, azure, client_secret, key};
use crate::gcp_cloud::Gcp;

/// What the owner does to a key, by name.
type Deed<'a> = (&'static str, Box<dyn Fn() + 'a>);

struct Stage<'a> {
    operator: KeyTarget,
    wrap: Arc<dyn WrapBytes>,
    /// The customer's key and a client that may look at it, to know that its state is what we say.
    customer: KeyTarget,
    kms: Arc<dyn Kms>,
    deeds: Vec<Deed<'a>>,
}

fn record(score: f64) -> SafetyRecord {
    serde_json::from_value(json!({ "pattern": "p", "indicator": "i", "score": score, "observed_at": "2026-11-25T10:00:00Z" })).unwrap()
}

async fn store(dir: &std::path::Path) -> Arc<SqliteStore> {
    match SqliteStore::open(&dir.join("state.db"), Options::default()).await.unwrap() {
        Opened::Ready { store, .. } => store,
        other => panic!("{other:?}"),
    }
}

/// The vault keeps no data key in memory here: each row costs calls to the operator's key.
async fn open(dir: &std::path::Path, stage: &Stage<'_>) -> (Arc<SqliteStore>, Arc<Vault>) {
    let store = store(dir).await;
    let name = VaultKeyName { provider: ProviderId::new("p").unwrap(), reference: Arc::from(&*stage.operator.reference.text) };
    let keys = vec![VaultKey::new(KeyRole::Operator, name, Arc::clone(&stage.wrap))];
    let vault = Vault::load(Arc::clone(&store) as Arc<dyn Records>, keys, Span::ZERO, Arc::new(Metrics::new().unwrap())).await.unwrap();
    (store, vault)
}

/// In every state: a record from before is read, a new one written, and the customer's key is refused.
async fn prove(stage: Stage<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let ws = WorkspaceId::new("wrkspc_demo").unwrap();
    let canary = stage.kms.wrap_key(&stage.customer).await.result.unwrap();
    let (mut store, mut vault) = open(dir.path(), &stage).await;
    let first = RecordId::new("r0").unwrap();
    vault.put(&ws, &first, &record(0.25), Expect::Any, clock::now()).await.unwrap();
    for (n, (name, deed)) in stage.deeds.iter().enumerate() {
        deed();
        let refused = stage.kms.unwrap_key(&stage.customer, &canary).await.result;
        assert!(refused.is_err(), "{name}: the customer's key still works");
        let id = RecordId::new(&format!("r{}", n + 1)).unwrap();
        vault.put(&ws, &id, &record(0.5), Expect::Any, clock::now()).await.unwrap_or_else(|fault| panic!("{name}: {fault}"));
        let read = vault.get(&ws, &first, clock::now()).await.unwrap_or_else(|fault| panic!("{name}: {fault}")).unwrap();
        assert!((read.data.score - 0.25).abs() < f64::EPSILON, "{name}");
        assert!(vault.look(&mut Looker::default(), clock::now()).await.is_empty(), "{name}");
        // And after a restart in that state.
        store.close().await;
        drop((store, vault));
        (store, vault) = open(dir.path(), &stage).await;
        let listed = vault.list(&ws, "", 100, clock::now()).await.unwrap();
        assert!(listed.len() == n + 2 && listed.iter().all(|item| item.data.is_some()), "{name}: {listed:?}");
    }
    let rows = Records::data_keys(&*store).await.unwrap();
    let names: BTreeSet<&str> = rows.iter().flat_map(|row| row.wraps.iter().map(|wrap| &*wrap.name.reference)).collect();
    assert_eq!(names, BTreeSet::from([&*stage.operator.reference.text]), "nothing lies under another key");
    // Proof by the key itself, not by its name: no wrapped data key opens under the customer's.
    for wrap in rows.iter().flat_map(|row| &row.wraps) {
        let tried = Wrapped { sealed_with: Arc::clone(&wrap.wrapped.sealed_with), ..wrap.wrapped.clone() };
        assert!(stage.kms.unwrap_key(&stage.customer, &tried).await.result.is_err());
    }
}

#[tokio::test]
async fn over_the_local_kms() {
    let dir = tempfile::tempdir().unwrap();
    let file = LocalKmsFile::open_or_create(&dir.path().join("kms.json"), &["operator", "customer"], Wall(0)).unwrap();
    let target = |name: &str| KeyTarget::plain(KeyRef::parse(ProviderKind::Local, name).unwrap());
    let now = clock::now().wall;
    let deeds: Vec<Deed<'_>> = vec![
        ("disabled", Box::new(|| drop(file.disable("customer", now).unwrap()))),
        ("pending deletion", Box::new(|| drop(file.schedule_deletion("customer", now.plus(Span::from_hours(1)), now).unwrap()))),
    ];
    let stage = Stage {
        operator: target("operator"),
        wrap: Arc::new(LocalWrapBytes::new(file.clone(), "operator")),
        customer: target("customer"),
        kms: Arc::new(LocalKms::new(file.clone())),
        deeds,
    };
    prove(stage).await;
}

#[tokio::test]
async fn over_aws() {
    let cloud = FakeAws::start().await;
    let provider = Provider {
        id: ProviderId::new("aws").unwrap(),
        detail: ProviderDetail::Aws {
            region: "us-east-1".into(),
            endpoint: Some(cloud.url()),
            assume_role: None,
            our_accounts: vec![OURS.into()],
        },
        control_key: None,
        calls_per_second: 50,
    };
    let client = async || {
        let given = SharedCredentialsProvider::new(Credentials::new(ACCESS_KEY, "any", None, None, "test"));
        AwsKms::with_credentials(&provider, Span::from_secs(20), ExternalIds::default(), given, new_http()).await.unwrap()
    };
    let target = |arn: &str| KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, arn).unwrap());
    let (operator, customer) = (cloud.create_key("us-east-1", OURS), cloud.create_imported_key("us-east-1", "444455556666"));
    let of = customer.clone();
    let deeds: Vec<Deed<'_>> = vec![
        ("disabled", Box::new(|| cloud.disable(&of))),
        (
            "denied",
            Box::new(|| {
                cloud.enable(&of);
                cloud.deny(&of, "Decrypt");
            }),
        ),
        ("material gone", Box::new(|| cloud.delete_imported_material(&of))),
        ("key store unavailable", Box::new(|| cloud.set_state(&of, State::Unavailable))),
        (
            "pending deletion",
            Box::new(|| {
                cloud.set_state(&of, State::Enabled);
                cloud.schedule_deletion(&of, 7);
            }),
        ),
        ("destroyed", Box::new(|| cloud.advance(8 * 24 * 3_600_000))),
    ];
    let stage = Stage {
        wrap: Arc::new(AwsVaultKey::new(Arc::new(client().await), Arc::new(target(&operator)))),
        operator: target(&operator),
        customer: target(&customer),
        kms: Arc::new(client().await),
        deeds,
    };
    prove(stage).await;
}

#[tokio::test]
async fn over_google_cloud() {
    let gcp = Gcp::start().await;
    let provider = Provider {
        id: ProviderId::new("gcp").unwrap(),
        detail: ProviderDetail::Gcp {
            endpoint: Some(gcp.endpoint.clone()),
            credentials: GcpCredentials::Anonymous,
            project_number: Some("100000000001".to_owned()),
            our_accounts: vec!["watchdog-prod".to_owned()],
        },
        control_key: None,
        calls_per_second: 50,
    };
    let client = async || Arc::new(GcpKms::new(&provider, Span::from_secs(10)).await.unwrap());
    let target = |name: &str| KeyTarget::plain(KeyRef::parse(ProviderKind::Gcp, name).unwrap());
    let (operator, customer) = (gcp.make_key(), gcp.make_key());
    let version = format!("{customer}/cryptoKeyVersions/1");
    let deeds: Vec<Deed<'_>> = vec![
        ("disabled", Box::new(|| drop(gcp.world().keys.set_state(&version, &json!("DISABLED")).unwrap()))),
        (
            "denied",
            Box::new(|| {
                gcp.world().keys.set_state(&version, &json!("ENABLED")).unwrap();
                gcp.deny("*", "cloudkms.cryptoKeyVersions.useToDecrypt", &customer);
            }),
        ),
        ("scheduled for destruction", Box::new(|| drop(gcp.world().keys.destroy(&version).unwrap()))),
        ("destroyed", Box::new(|| gcp.advance(std::time::Duration::from_secs(40 * 24 * 3600)))),
    ];
    let stage = Stage {
        wrap: Arc::new(GcpVaultKey::new(client().await, Arc::new(target(&operator)))),
        operator: target(&operator),
        customer: target(&customer),
        kms: client().await,
        deeds,
    };
    prove(stage).await;
    // Every call that was marked as the vault's went to the operator's key.
    let vaults: Vec<_> = gcp.marks().into_iter().filter(|mark| mark.aad.as_deref().is_some_and(|aad| aad.contains("vault"))).collect();
    assert!(!vaults.is_empty());
    assert!(vaults.iter().all(|mark| mark.path.contains(&operator) || mark.reason.contains("probe") && !mark.path.contains(":encrypt")));
}

#[tokio::test]
async fn over_azure() {
    let (ours, theirs) = ("watchdog-kv.vault.azure.net", "acme-kv.vault.azure.net");
    let cloud = AzureCloud::start(theirs, THEIR_TENANT, Kind::VaultWithRbac).await;
    cloud.add_vault(ours, THEIR_TENANT, Kind::VaultWithRbac);
    cloud.create_key(ours, "operator");
    cloud.create_key(theirs, "k");
    let root = Root::new(cloud.ca_pem());
    let client = || {
        let names = TestNames { all: Some(cloud.addr()), ..TestNames::default() };
        Arc::new(azure(&root, client_secret(), names, Span::from_secs(20)))
    };
    let target =
        |host: &str, name: &str| KeyTarget { tenant: Some(THEIR_TENANT.to_owned()), ..key(&format!("https://{host}/keys/{name}")) };
    let deeds: Vec<Deed<'_>> = vec![
        ("disabled", Box::new(|| cloud.set_enabled(theirs, "k", None, false))),
        (
            "denied",
            Box::new(|| {
                cloud.set_enabled(theirs, "k", None, true);
                cloud.deny(theirs, Some("k"), Action::Unwrap);
            }),
        ),
        (
            "behind its own firewall",
            Box::new(|| {
                cloud.allow(theirs, Some("k"), Action::Unwrap);
                cloud.set_network(theirs, Network::Firewall);
            }),
        ),
        (
            "deleted",
            Box::new(|| {
                cloud.set_network(theirs, Network::Open);
                cloud.delete(theirs, "k");
            }),
        ),
        ("purged", Box::new(|| cloud.purge(theirs, "k"))),
    ];
    let stage = Stage {
        wrap: Arc::new(AzureVaultKey::new(client(), Arc::new(target(ours, "operator")))),
        operator: target(ours, "operator"),
        customer: target(theirs, "k"),
        kms: client(),
        deeds,
    };
    prove(stage).await;
}

#[tokio::test]
async fn a_dead_operators_key_is_asked_once_for_a_crowd_and_memory_serves_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let file = LocalKmsFile::open_or_create(&dir.path().join("kms.json"), &["operator"], Wall(0)).unwrap();
    let name = VaultKeyName { provider: ProviderId::new("p").unwrap(), reference: "operator".into() };
    let keys = || vec![VaultKey::new(KeyRole::Operator, name.clone(), Arc::new(LocalWrapBytes::new(file.clone(), "operator")))];
    let store = store(dir.path()).await;
    let (ws, id) = (WorkspaceId::new("w").unwrap(), RecordId::new("r").unwrap());
    let load = async |keep| {
        let metrics = Arc::new(Metrics::new().unwrap());
        let records = Arc::clone(&store) as Arc<dyn Records>;
        (Vault::load(records, keys(), keep, Arc::clone(&metrics)).await.unwrap(), metrics)
    };
    let (warm, _) = load(Span::from_mins(5)).await;
    warm.put(&ws, &id, &record(0.5), Expect::Any, clock::now()).await.unwrap();
    file.disable("operator", clock::now().wall).unwrap();
    assert!(warm.get(&ws, &id, clock::now()).await.unwrap().is_some(), "the data key is in memory");
    let later = |now: cmek_watchdog::time::Now| cmek_watchdog::time::Now { mono: now.mono.plus(Span::from_mins(5)), ..now };
    let gone = warm.get(&ws, &id, later(clock::now())).await.unwrap_err();
    assert!(matches!(gone, VaultFault::KeyUnavailable(error) if error.kind == FailureKind::Disabled), "not longer than its time");
    let (cold, metrics) = load(Span::from_mins(5)).await;
    for _ in 0..50 {
        assert!(matches!(cold.get(&ws, &id, clock::now()).await, Err(VaultFault::KeyUnavailable(_))));
    }
    let text = metrics.render(&cmek_watchdog::published::Snapshot::default(), &crate::over::config(), clock::now());
    let calls = text.lines().find(|line| line.contains("operation=\"vault_unwrap\"")).unwrap();
    assert!(calls.ends_with(" 1"), "{calls}");
    assert!(!format!("{cold:?}").contains("DataKey(["));
}

fn config() -> cmek_watchdog::config::Config {
    let path = crate::support::repository().join("config/quickstart.toml");
    (*cmek_watchdog::config::load::load(&path).unwrap().config).clone()
}
