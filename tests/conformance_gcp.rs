//! The conformance suite over Google Cloud KMS, and what is Google's own besides.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "clouds/gcp.rs"]
mod cloud;
mod conformance;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloud::{Gcp, MACHINE, Trouble};
use cmek_watchdog::config::{GcpCredentials, Provider, ProviderDetail};
use cmek_watchdog::key::{KeyRef, KeyTarget, KeyVersion, ProviderId};
use cmek_watchdog::kms::gcp::{GcpKms, GcpSetupError, GcpVaultKey};
use cmek_watchdog::kms::{Kms, WrapBytes, Wrapped};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{FailureKind, Leg, ProviderKind};
use conformance::{AfterCancel, Bench, Expect};
use serde_json::{Value, json};

async fn adapter(gcp: &Gcp, credentials: GcpCredentials) -> GcpKms {
    let provider = Provider {
        id: ProviderId::new("gcp").unwrap(),
        detail: ProviderDetail::Gcp {
            endpoint: Some(gcp.endpoint.clone()),
            credentials,
            project_number: Some("100000000001".to_owned()),
            our_accounts: vec!["watchdog-prod".to_owned()],
        },
        control_key: None,
        calls_per_second: 50,
    };
    GcpKms::new(&provider, Span::from_secs(10)).await.unwrap()
}

fn target(name: &str) -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Gcp, name).unwrap())
}

struct GcpBench {
    gcp: Gcp,
    kms: Arc<GcpKms>,
}

impl GcpBench {
    fn every_version(&self, key: &KeyTarget, mut change: impl FnMut(&mut cloud::World, &str)) -> bool {
        let mut world = self.gcp.world();
        for name in world.keys.version_names(key.address()).unwrap() {
            change(&mut world, &name);
        }
        true
    }
    fn one_version(&self, key: &KeyTarget, version: &KeyVersion, change: impl FnOnce(&mut cloud::World, &str)) -> bool {
        change(&mut self.gcp.world(), &format!("{}/cryptoKeyVersions/{version}", key.address()));
        true
    }
}

fn right_of(leg: Leg) -> &'static str {
    match leg {
        Leg::Wrap => "cloudkms.cryptoKeyVersions.useToEncrypt",
        Leg::Unwrap | Leg::UnwrapVersion => "cloudkms.cryptoKeyVersions.useToDecrypt",
        Leg::Describe => "cloudkms.cryptoKeys.get",
    }
}

const ALL_THE_WAIT: i64 = 31 * 86_400_000;

impl Bench for GcpBench {
    fn name(&self) -> &'static str {
        "gcp, fake"
    }
    fn expect(&self) -> Expect {
        // Google sends no request id.
        Expect { request_id: false, after_cancel: AfterCancel::Disabled, ..Expect::default() }
    }
    fn kms(&self) -> Arc<dyn Kms> {
        Arc::clone(&self.kms) as Arc<dyn Kms>
    }
    async fn make_key(&self) -> KeyTarget {
        target(&self.gcp.make_key())
    }
    async fn unknown_key(&self) -> KeyTarget {
        target(&format!("{}-gone", self.gcp.make_key()))
    }
    async fn disable(&self, key: &KeyTarget) -> bool {
        self.every_version(key, |world, name| drop(world.keys.set_state(name, &json!("DISABLED")).unwrap()))
    }
    async fn enable(&self, key: &KeyTarget) -> bool {
        self.every_version(key, |world, name| drop(world.keys.set_state(name, &json!("ENABLED")).unwrap()))
    }
    async fn schedule_deletion(&self, key: &KeyTarget) -> bool {
        self.every_version(key, |world, name| drop(world.keys.destroy(name).unwrap()))
    }
    async fn cancel_deletion(&self, key: &KeyTarget) -> bool {
        self.every_version(key, |world, name| drop(world.keys.restore(name).unwrap()))
    }
    async fn destroy(&self, key: &KeyTarget) -> bool {
        self.every_version(key, |world, name| drop(world.keys.destroy(name).unwrap()));
        self.gcp.world().keys.advance(ALL_THE_WAIT);
        true
    }
    async fn rotate(&self, key: &KeyTarget) -> bool {
        let mut world = self.gcp.world();
        let made = world.keys.create_version(key.address()).unwrap();
        let number = made["name"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        world.keys.set_primary(key.address(), &number).unwrap();
        true
    }
    async fn deny(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.gcp.deny("*", right_of(leg), key.address());
        true
    }
    async fn allow(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.gcp.allow("*", right_of(leg), key.address());
        true
    }
    async fn disable_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.one_version(key, version, |world, name| drop(world.keys.set_state(name, &json!("DISABLED")).unwrap()))
    }
    async fn enable_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.one_version(key, version, |world, name| drop(world.keys.set_state(name, &json!("ENABLED")).unwrap()))
    }
    async fn destroy_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.one_version(key, version, |world, name| {
            world.keys.destroy(name).unwrap();
            world.keys.advance(ALL_THE_WAIT);
        })
    }
    async fn plaintext_of(&self, key: &KeyTarget, wrapped: &Wrapped) -> Option<Vec<u8>> {
        let opened = self.gcp.world().keys.decrypt(key.address(), &wrapped.bytes, wrapped.sealed_with.as_bytes());
        opened.ok().map(|(plain, _)| plain)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_cloud_kms_keeps_every_promise_of_the_suite() {
    let gcp = Gcp::start().await;
    let kms = Arc::new(adapter(&gcp, GcpCredentials::Anonymous).await);
    conformance::run(&GcpBench { gcp, kms }).await;
}

/// A credentials file whose token the fake hands out, for the principal `name`.
fn user_file(dir: &Path, gcp: &Gcp, name: &str) -> GcpCredentials {
    let path = dir.join(format!("{name}.json"));
    let user = json!({"type": "authorized_user", "client_id": name, "client_secret": "s", "refresh_token": "r", "token_uri": format!("{}/token", gcp.endpoint)});
    std::fs::write(&path, user.to_string()).unwrap();
    GcpCredentials::File(path.to_string_lossy().into_owned())
}

#[tokio::test]
async fn every_call_is_marked_as_ours() {
    let gcp = Gcp::start().await;
    let kms = adapter(&gcp, GcpCredentials::Anonymous).await;
    let mut key = target(&gcp.make_key());
    let canary = kms.wrap_key(&key).await.result.unwrap();
    kms.unwrap_key(&key, &canary).await.result.unwrap();
    kms.describe_key(&key).await.result.unwrap();
    let marks = gcp.marks();
    assert_eq!(marks.len(), 4, "{marks:?}");
    for mark in &marks {
        assert_eq!(mark.reason, "cmek-watchdog-probe");
        assert!(mark.user_agent.starts_with("cmek-watchdog/"), "{mark:?}");
    }
    for mark in &marks[..2] {
        assert_eq!(mark.aad.as_deref(), Some("purpose=cmek-watchdog-probe"));
    }
    // Contexts are bound in a stable order and cannot be confused with one another.
    for (context, expected) in [
        (vec![("b", "2"), ("a", "1")], "purpose=cmek-watchdog-probe&a=1&b=2"),
        (vec![("a", "1&b=2")], "purpose=cmek-watchdog-probe&a=1%26b%3D2"),
        (vec![("purpose", "other")], "purpose=other"),
    ] {
        key.encryption_context = context.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(kms.wrap_key(&key).await.result.unwrap().sealed_with.as_ref(), expected);
    }
    key.additional_authenticated_data = Some("as the owner wants it".to_owned());
    assert_eq!(kms.wrap_key(&key).await.result.unwrap().sealed_with.as_ref(), "as the owner wants it");
}

#[tokio::test]
async fn a_canary_can_be_made_for_every_enabled_version_at_registration() {
    let gcp = Gcp::start().await;
    let kms = Arc::new(adapter(&gcp, GcpCredentials::Anonymous).await);
    let bench = GcpBench { gcp: gcp.clone(), kms: Arc::clone(&kms) };
    let key = bench.make_key().await;
    bench.rotate(&key).await;
    bench.rotate(&key).await;
    bench.disable_version(&key, &KeyVersion::new("2")).await;
    let facts = kms.describe_key(&key).await.result.unwrap();
    for fact in &facts.versions {
        let wrapped = kms.wrap_version(&key, &fact.version).await.result;
        if fact.enabled {
            let wrapped = wrapped.unwrap();
            assert_eq!(wrapped.version.as_ref(), Some(&fact.version));
            assert_eq!(kms.unwrap_key(&key, &wrapped).await.result.unwrap().digest, wrapped.digest);
        } else {
            let error = wrapped.unwrap_err();
            assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::Disabled, true, "KEY_DISABLED"));
        }
    }
    assert_eq!(facts.versions.iter().map(|fact| fact.enabled).collect::<Vec<_>>(), [true, false, true]);
}

#[tokio::test]
async fn a_deletion_runs_from_schedule_to_destruction() {
    let gcp = Gcp::start().await;
    let kms = adapter(&gcp, GcpCredentials::Anonymous).await;
    let key = target(&gcp.make_key());
    let version = format!("{}/cryptoKeyVersions/1", key.address());
    gcp.world().keys.destroy(&version).unwrap();
    let facts = kms.describe_key(&key).await.result.unwrap();
    let (fault, at) = (facts.fault.unwrap(), facts.deletion_at.unwrap());
    assert_eq!((fault.kind, fault.stated, fault.code.as_ref()), (FailureKind::PendingDeletion, true, "DESTROY_SCHEDULED"));
    assert_eq!((at, facts.recoverable_until), (gcp.world().keys.now.plus(Span::from_days(30)), Some(at)));
    gcp.advance(Duration::from_secs(30 * 86_400));
    let facts = kms.describe_key(&key).await.result.unwrap();
    let fault = facts.fault.unwrap();
    assert_eq!((fault.kind, fault.stated), (FailureKind::Destroyed, true));
    assert_eq!((facts.deletion_at, facts.recoverable_until), (None, None));
}

#[tokio::test]
async fn without_the_right_to_list_the_primary_is_still_described() {
    let gcp = Gcp::start().await;
    let kms = adapter(&gcp, GcpCredentials::Anonymous).await;
    let key = target(&gcp.make_key());
    gcp.deny("*", "cloudkms.cryptoKeyVersions.list", key.address());
    let facts = kms.describe_key(&key).await.result.unwrap();
    assert_eq!((facts.fault, facts.versions.len()), (None, 1));
    // Another failure of the listing is no answer: versions must not seem to be gone.
    gcp.fault(
        "cryptoKeyVersions",
        1,
        Trouble::Answer { status: 503, body: json!({"error": {"code": 503, "status": "UNAVAILABLE"}}).to_string() },
    );
    assert_eq!(kms.describe_key(&key).await.result.unwrap_err().kind, FailureKind::ProviderFault);
}

#[tokio::test]
async fn more_versions_than_the_bound_are_cut_and_the_primary_stays() {
    let gcp = Gcp::start().await;
    let kms = adapter(&gcp, GcpCredentials::Anonymous).await;
    let key = target(&gcp.make_key());
    for _ in 1..520 {
        gcp.world().keys.create_version(key.address()).unwrap();
    }
    gcp.world().keys.set_primary(key.address(), "520").unwrap();
    let facts = kms.describe_key(&key).await.result.unwrap();
    assert_eq!((facts.versions.len(), facts.current_version), (501, Some(KeyVersion::new("520"))));
    assert_eq!(gcp.marks().len(), 6);
}

#[tokio::test]
async fn a_denial_names_the_principal_that_is_meant() {
    let gcp = Gcp::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (adapter(&gcp, user_file(dir.path(), &gcp, "one")).await, adapter(&gcp, user_file(dir.path(), &gcp, "two")).await);
    let key = target(&gcp.make_key());
    gcp.deny("two", "cloudkms.cryptoKeyVersions.useToDecrypt", key.address());
    let canary = one.wrap_key(&key).await.result.unwrap();
    one.unwrap_key(&key, &canary).await.result.unwrap();
    let refused = two.unwrap_key(&key, &canary).await;
    let error = refused.result.unwrap_err();
    assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::AccessDenied, false, "IAM_PERMISSION_DENIED"));
    assert_eq!(one.whoami(&key).await.result.unwrap().as_ref(), "authorized_user:one");
    assert_eq!(two.whoami(&key).await.result.unwrap().as_ref(), "authorized_user:two");
    assert_eq!(gcp.marks().iter().filter(|mark| mark.principal == "two").count(), 1);
}

#[tokio::test]
async fn an_answer_cut_off_or_late_says_nothing_about_the_key() {
    let gcp = Gcp::start().await;
    let kms = adapter(&gcp, GcpCredentials::Anonymous).await;
    let key = target(&gcp.make_key());
    gcp.fault(":encrypt", 1, Trouble::Reset);
    let error = kms.wrap_key(&key).await.result.unwrap_err();
    assert_eq!((error.kind, error.stated), (FailureKind::Unreachable, false), "{error:?}");
    gcp.fault(":encrypt", 1, Trouble::Delay(Duration::from_millis(5)));
    assert!(kms.wrap_key(&key).await.meta.took >= Span(5));
    // One request a call: nothing is repeated behind our back.
    assert_eq!(gcp.marks().len(), 2);
}

#[tokio::test]
async fn a_refusal_tells_the_providers_clock() {
    let gcp = Gcp::start().await;
    let kms = adapter(&gcp, GcpCredentials::Anonymous).await;
    let answer = kms.describe_key(&target(&format!("{}-gone", gcp.make_key()))).await;
    let told = answer.meta.provider_time.unwrap();
    let here = cmek_watchdog::clock::now().wall;
    assert!(here.since(told) <= Span::from_secs(5) && told.since(here) <= Span::from_secs(5), "{told} {here}");
}

#[tokio::test]
async fn a_provider_that_cannot_work_is_refused_at_start() {
    let provider = |detail| Provider { id: ProviderId::new("p").unwrap(), detail, control_key: None, calls_per_second: 1 };
    let gcp = |endpoint: &str, credentials| ProviderDetail::Gcp {
        endpoint: Some(endpoint.to_owned()),
        credentials,
        project_number: None,
        our_accounts: Vec::new(),
    };
    let local = provider(ProviderDetail::Local { path: "x".to_owned() });
    assert!(matches!(GcpKms::new(&local, Span(1)).await, Err(GcpSetupError::WrongKind(name)) if name == "p"));
    for bad in ["ftp://127.0.0.1", "127.0.0.1:9010", ""] {
        let made = GcpKms::new(&provider(gcp(bad, GcpCredentials::Anonymous)), Span(1)).await;
        assert!(matches!(made, Err(GcpSetupError::Endpoint(_))), "{bad}");
    }
    let missing = gcp("http://127.0.0.1:1", GcpCredentials::File("/nonexistent/key.json".to_owned()));
    assert!(matches!(GcpKms::new(&provider(missing), Span(1)).await, Err(GcpSetupError::Unreadable { .. })));
}

/// Started again by the next test with the fake as its metadata server; alone it is the machine
/// without one, and must say that the credentials are at fault.
#[tokio::test]
async fn default_credentials_in_a_process_of_its_own() {
    let told = std::env::var("FAKE_METADATA").ok();
    let gcp = Gcp::start().await;
    let key = target(&gcp.make_key());
    let (source, dir) = (GcpCredentials::Default, tempfile::tempdir().unwrap());
    if told.is_none() {
        let kms = adapter(&gcp, GcpCredentials::File(dir_file(dir.path()))).await;
        assert_eq!(kms.wrap_key(&key).await.result.unwrap_err().kind, FailureKind::Credentials);
        return;
    }
    let kms = adapter(&gcp, source).await;
    let name = kms.whoami(&key).await.result.unwrap();
    kms.wrap_key(&key).await.result.unwrap();
    println!("WHOAMI {name} {}", gcp.marks().last().unwrap().principal);
}

/// A file whose token endpoint refuses the connection.
fn dir_file(dir: &Path) -> String {
    let path = dir.join("u.json");
    let user = json!({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r", "token_uri": "http://127.0.0.1:1/token"});
    std::fs::write(&path, user.to_string()).unwrap();
    path.to_string_lossy().into_owned()
}

#[tokio::test]
async fn the_metadata_server_tells_who_the_machine_is() {
    let gcp = Gcp::start().await;
    let home = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "default_credentials_in_a_process_of_its_own", "--nocapture"]);
    command.env("FAKE_METADATA", "1").env("GCE_METADATA_HOST", gcp.endpoint.trim_start_matches("http://"));
    command.env("HOME", home.path()).env_remove("GOOGLE_APPLICATION_CREDENTIALS");
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("WHOAMI {MACHINE} {MACHINE}")), "{text}");
}

#[tokio::test]
async fn the_audit_log_tells_of_changes_and_of_uses_only_when_switched_on() {
    let gcp = Gcp::start().await;
    let kms = adapter(&gcp, GcpCredentials::Anonymous).await;
    let key = target(&gcp.make_key());
    let http = reqwest::Client::new();
    let list = |filter: &'static str| {
        let body = json!({"resourceNames": ["projects/acme-keys"], "filter": filter, "orderBy": "timestamp desc"});
        let call = http.post(format!("{}/v2/entries:list", gcp.endpoint)).json(&body).send();
        async { call.await.unwrap().json::<Value>().await.unwrap() }
    };
    kms.wrap_key(&key).await.result.unwrap();
    assert_eq!(list("").await["entries"], json!([]));
    let version = format!("{}/v1/{}/cryptoKeyVersions/1", gcp.endpoint, key.address());
    let changed = http.patch(format!("{version}?updateMask=state")).json(&json!({"state": 2})).send().await.unwrap();
    assert_eq!(changed.json::<Value>().await.unwrap()["state"], "DISABLED");
    gcp.world().log.data_access = true;
    kms.wrap_key(&key).await.result.unwrap_err();
    let found = list(r#"protoPayload.methodName="UpdateCryptoKeyVersion" AND timestamp>="2026-01-01T00:00:00Z""#).await;
    assert_eq!(found["entries"].as_array().unwrap().len(), 1, "{found}");
    let found = list(r#"logName:"data_access""#).await;
    let payload = &found["entries"][0]["protoPayload"];
    assert_eq!((&payload["methodName"], &payload["status"]["code"]), (&json!("Encrypt"), &json!(9)), "{found}");
    assert_eq!(payload["requestMetadata"]["requestAttributes"]["reason"], "cmek-watchdog-probe");
    assert_eq!(list("nonsense").await["error"]["status"], "INVALID_ARGUMENT");
}

#[tokio::test]
async fn the_vaults_bytes_come_back_and_are_no_canary() {
    let gcp = Gcp::start().await;
    let kms = Arc::new(adapter(&gcp, GcpCredentials::Anonymous).await);
    let key = target(&gcp.make_key());
    let vault = GcpVaultKey::new(Arc::clone(&kms), Arc::new(key.clone()));
    let wrapped = vault.wrap_bytes(b"a data key of the vault").await.result.unwrap();
    assert_eq!(vault.unwrap_bytes(&wrapped).await.result.unwrap(), b"a data key of the vault");
    // Sealed for the vault, it does not open with the context of a probe, nor the other way round.
    let canary = kms.wrap_key(&key).await.result.unwrap();
    for (bytes, other) in [(&wrapped, &canary), (&canary, &wrapped)] {
        let swapped = Wrapped { sealed_with: Arc::clone(&other.sealed_with), ..bytes.clone() };
        assert_eq!(vault.unwrap_bytes(&swapped).await.result.unwrap_err().kind, FailureKind::Misconfigured);
    }
    // Whole, but other bytes: told, not handed out.
    let altered = Wrapped { digest: [7; 32], ..wrapped.clone() };
    let error = vault.unwrap_bytes(&altered).await.result.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (FailureKind::Corrupt, "digest_mismatch"));
    gcp.world().keys.set_state(&format!("{}/cryptoKeyVersions/1", key.address()), &json!("DISABLED")).unwrap();
    assert_eq!(vault.unwrap_bytes(&wrapped).await.result.unwrap_err().kind, FailureKind::Disabled);
}
