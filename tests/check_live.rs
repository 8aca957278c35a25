//! `check --live` and `probe` by the real binary against one key of each provider: every leg with its
//! time and request id, the worst exit code, and JSON that says the same.
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
#[path = "support/fault_proxy.rs"]
mod fault_proxy;
#[path = "clouds/gcp.rs"]
mod gcp_cloud;
#[path = "support/https.rs"]
mod https;
#[path = "support/ministack.rs"]
mod ministack;
#[path = "support/watchdog.rs"]
mod watchdog;

use std::sync::Arc;

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use azure_cloud::{Action, AzureCloud, Kind};
use fault_proxy::{Fault, FaultProxy};
use gcp_cloud::Gcp;
use ministack::{Ministack, REGION};
use serde_json::{Value, json};
use watchdog::{Done, Program};

const VAULT: &str = "acme-kv.vault.azure.net";

struct Clouds {
    _ministack: Ministack,
    proxy: FaultProxy,
    aws: aws_sdk_kms::Client,
    aws_key: String,
    gcp: Gcp,
    gcp_key: String,
    azure: AzureCloud,
    program: Arc<Program>,
}

async fn clouds() -> Clouds {
    let ministack = Ministack::start().await;
    let proxy = FaultProxy::before(ministack.port).await;
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(ministack.url())
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .http_client(cmek_watchdog::kms::aws::client::new_http())
        .build();
    let aws = aws_sdk_kms::Client::from_conf(config);
    let (access_key, secret) = ministack.user("watchdog").await;
    let aws_key = create(&aws).await;
    let control = create(&aws).await;
    let gcp = Gcp::start().await;
    let gcp_key = gcp.make_key();
    let azure = AzureCloud::start(VAULT, "99999999-9999-9999-9999-999999999999", Kind::VaultWithRbac).await;
    azure.create_key(VAULT, "k");
    azure.accept_token("let-me-in", "emulated");
    let text = format!(
        "[store]\nurl = \"sqlite://state.db\"\n\
         [providers.aws]\nkind = \"aws\"\nregion = \"{REGION}\"\nendpoint = \"{}\"\ncontrol_key = \"{control}\"\n\
         [providers.gcp]\nkind = \"gcp\"\nendpoint = \"{}\"\ncredentials = \"anonymous\"\n\
         [providers.azure]\nkind = \"azure\"\ncredentials = {{ static_token = \"env:AZURE_TOKEN\" }}\nca_file = \"ca.pem\"\n\
         verify_challenge_resource = false\n\
         [providers.local]\nkind = \"local\"\npath = \"local-kms.json\"\n\
         [policies.default]\ncall_timeout = \"3s\"\n\
         [[keys]]\nid = \"aws-key\"\nprovider = \"aws\"\nkey = \"{aws_key}\"\nworkspaces = [\"w1\"]\n\
         [[keys]]\nid = \"gcp-key\"\nprovider = \"gcp\"\nkey = \"{gcp_key}\"\nworkspaces = [\"w2\"]\n\
         [[keys]]\nid = \"azure-key\"\nprovider = \"azure\"\nkey = \"https://127.0.0.1:{}/keys/k\"\nworkspaces = [\"w3\"]\n\
         [[keys]]\nid = \"local-key\"\nprovider = \"local\"\nkey = \"demo\"\nworkspaces = [\"w4\"]\n",
        proxy.url(),
        gcp.endpoint,
        azure.addr().port(),
    );
    let env = [("AWS_ACCESS_KEY_ID", access_key.as_str()), ("AWS_SECRET_ACCESS_KEY", secret.as_str()), ("AZURE_TOKEN", "let-me-in")];
    let program = Arc::new(Program::new(&text, &env));
    std::fs::write(program.folder.path().join("ca.pem"), azure.ca_pem()).unwrap();
    Clouds { _ministack: ministack, proxy, aws, aws_key, gcp, gcp_key, azure, program }
}

async fn create(kms: &aws_sdk_kms::Client) -> String {
    let arn = kms.create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap();
    policy(kms, &arn, "").await;
    arn
}

/// A key policy that allows everything but what `deny` adds.
async fn policy(kms: &aws_sdk_kms::Client, arn: &str, deny: &str) {
    let allow = r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}"#;
    let text = format!(r#"{{"Version":"2012-10-17","Statement":[{allow}{deny}]}}"#);
    kms.put_key_policy().key_id(arn).policy_name("default").policy(text).send().await.unwrap();
}

const DENY_ENCRYPT: &str = r#",{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*"}"#;

impl Clouds {
    async fn ask(&self, args: &[&str]) -> Done {
        self.program.ask_beside(args).await
    }
    async fn check(&self) -> (i32, Value) {
        let done = self.ask(&["--json", "check", "--live"]).await;
        (done.code, done.json())
    }
}

fn key<'v>(seen: &'v Value, id: &str) -> &'v Value {
    seen["keys"].as_array().unwrap().iter().find(|key| key["id"] == id).unwrap()
}

fn words(seen: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or("null").to_owned();
    seen["keys"].as_array().unwrap().iter().map(|key| (text(&key["id"]), text(&key["verdict"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_round_of_each_provider_shows_every_leg_with_its_time_and_request_id() {
    let clouds = clouds().await;
    let done = clouds.ask(&["check", "--live"]).await;
    println!("{}\n{}", done.out, done.err);
    assert_eq!(done.code, 0, "{done:?}");
    let (code, seen) = clouds.check().await;
    assert_eq!((code, &seen["ok"]), (0, &json!(true)));
    for id in ["aws-key", "gcp-key", "azure-key", "local-key"] {
        let found = key(&seen, id);
        assert_eq!((&found["verdict"], &found["failure_kind"]), (&json!("usable"), &Value::Null));
        let legs = found["last_probe"]["legs"].as_array().unwrap();
        let names: Vec<&str> = legs.iter().map(|leg| leg["leg"].as_str().unwrap()).collect();
        assert_eq!(names, ["wrap", "unwrap", "describe"], "{id}");
        // The legs of this key in the text are the lines after its own.
        let block: Vec<&str> =
            done.out.lines().skip_while(|line| !line.starts_with(&format!("{id}: usable"))).take_while(|l| !l.is_empty()).collect();
        for leg in legs {
            assert_eq!(leg["outcome"], "ok", "{id} {leg}");
            assert!(leg["duration_ms"].is_u64(), "{id} {leg}");
            let line = block.iter().find(|line| line.trim_start().starts_with(leg["leg"].as_str().unwrap()));
            let line = line.unwrap_or_else(|| panic!("{id}: no line of {}: {block:?}", leg["leg"]));
            assert!(line.contains(" ok "), "{line}");
            // Google answers without one.
            if id != "gcp-key" {
                assert!(leg["request_id"].as_str().is_some_and(|text| !text.is_empty()), "{id} {leg}");
            }
        }
        assert!(found["identity"].is_string(), "{id}");
    }
    assert_eq!(seen["control_keys"][0]["provider"], "aws");
    assert_eq!(seen["control_keys"][0]["control"]["healthy"], true);
    assert!(done.out.contains("control key of aws: good"));
    assert!(!done.out.contains("let-me-in") && !done.err.contains("let-me-in"), "no token is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_verdict_is_the_exit_code_of_check_and_each_has_its_own_in_probe() {
    let clouds = clouds().await;
    let probe = async |id: &str| clouds.ask(&["--json", "probe", id]).await;
    assert_eq!(probe("aws-key").await.code, 0);
    assert_eq!(probe("no-such-key").await.code, 66);

    // 12: doubt about one.
    clouds.proxy.fault_key(&clouds.aws_key, Fault::Refuse(400, "ThrottlingException", "Rate exceeded"));
    let (code, seen) = clouds.check().await;
    assert_eq!((code, &seen["ok"], &key(&seen, "aws-key")["failure_kind"]), (12, &json!(false), &json!("throttled")));
    assert_eq!(words(&seen).iter().filter(|(_, word)| word == "usable").count(), 3, "{seen:#}");
    assert_eq!(probe("aws-key").await.code, 12);
    assert_eq!(probe("gcp-key").await.code, 0);

    // 12 as well for a call that hangs, in bounded time.
    clouds.proxy.clear();
    clouds.proxy.fault_key(&clouds.aws_key, Fault::Hang);
    let started = std::time::Instant::now();
    let hung = probe("aws-key").await;
    assert_eq!((hung.code, &hung.json()["failure_kind"]), (12, &json!("timeout")));
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    clouds.proxy.clear();

    // 11: the owner of another switched it off; doubt about the first does not hide it.
    clouds.proxy.fault_key(&clouds.aws_key, Fault::Reset);
    clouds.azure.set_enabled(VAULT, "k", None, false);
    let (code, seen) = clouds.check().await;
    assert_eq!(code, 11, "{seen:#}");
    let azure = key(&seen, "azure-key");
    assert_eq!((&azure["verdict"], &azure["failure_kind"], &azure["confirmed"]), (&json!("revoked"), &json!("disabled"), &json!(false)));
    assert_eq!(probe("azure-key").await.code, 11);
    assert!(azure["last_probe"]["legs"].as_array().unwrap().iter().any(|leg| leg["outcome"] == "failed" && leg["code"] == "KeyDisabled"));
    clouds.azure.set_enabled(VAULT, "k", None, true);
    clouds.proxy.clear();
    assert_eq!(clouds.check().await.0, 0, "good again");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_daemons_canaries_a_half_denied_key_is_impaired_and_a_denied_one_revoked() {
    let clouds = clouds().await;
    // A short run stores canaries: with them unwrap is tried although wrap is refused.
    let config = std::fs::read_to_string(clouds.program.config()).unwrap();
    let config = format!("[server]\nlisten = \"127.0.0.1:0\"\nrun_dir = \"run\"\n{config}")
        .replace("call_timeout", "probe_interval = \"2s\"\ncall_timeout");
    std::fs::write(clouds.program.config(), config).unwrap();
    let mut daemon = watchdog::Daemon::start(&clouds.program).await;
    daemon.until("/v1/status", std::time::Duration::from_secs(30), |status| status["keys"]["active"] == 4).await;
    assert_eq!(daemon.stop(), 0);

    policy(&clouds.aws, &clouds.aws_key, DENY_ENCRYPT).await;
    let done = clouds.ask(&["--json", "probe", "aws-key"]).await;
    assert_eq!(done.code, 10, "{done:?}");
    assert_eq!(done.json()["verdict"], "impaired");
    let (code, seen) = clouds.check().await;
    assert_eq!((code, &key(&seen, "aws-key")["failure_kind"]), (10, &json!("access_denied")));

    let right = "cloudkms.cryptoKeyVersions.useToDecrypt";
    clouds.gcp.deny("*", right, &clouds.gcp_key);
    clouds.azure.deny(VAULT, Some("k"), Action::Wrap);
    let (code, seen) = clouds.check().await;
    assert_eq!(code, 11, "{seen:#}");
    let mut found = words(&seen);
    found.sort();
    let wanted = [("aws-key", "impaired"), ("azure-key", "impaired"), ("gcp-key", "revoked"), ("local-key", "usable")];
    assert_eq!(found, wanted.map(|(id, word)| (id.to_owned(), word.to_owned())));
    assert_eq!(clouds.ask(&["probe", "gcp-key"]).await.code, 11);
    assert_eq!(clouds.ask(&["probe", "azure-key"]).await.code, 10);
    let disabled = clouds.ask(&["local-kms", "disable", "demo"]).await;
    assert_eq!(disabled.code, 0, "{disabled:?}");
    assert_eq!(clouds.ask(&["probe", "local-key"]).await.code, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_named_and_nothing_is_called() {
    let clouds = clouds().await;
    let bare = Program::new(&std::fs::read_to_string(clouds.program.config()).unwrap(), &[]);
    std::fs::write(bare.folder.path().join("ca.pem"), clouds.azure.ca_pem()).unwrap();
    let before = clouds.proxy.counts();
    let done = Arc::new(bare).ask_beside(&["check", "--live"]).await;
    assert_eq!(done.code, 78, "{done:?}");
    assert!(done.err.contains("AZURE_TOKEN"), "{}", done.err);
    assert_eq!(clouds.proxy.counts(), before);
}
