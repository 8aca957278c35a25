//! The real daemon against an AWS that is not ours: ministack, with signatures and key policies
//! enforced, behind a proxy that injects faults. The right workspaces lock, the others never do.
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

#[path = "support/fault_proxy.rs"]
mod fault_proxy;
#[path = "support/https.rs"]
mod https;
#[path = "support/ministack.rs"]
mod ministack;
#[path = "support/watchdog.rs"]
mod watchdog;

#[path = "aws_daemon/brake.rs"]
mod brake;
#[path = "aws_daemon/faults.rs"]
mod faults;
#[path = "aws_daemon/revocations.rs"]
mod revocations;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{AlgorithmSpec, ExpirationModelType, OriginType, WrappingKeySpec};
use fault_proxy::FaultProxy;
use ministack::{ACCOUNT, Ministack, REGION};
use serde_json::Value;
use watchdog::{Daemon, Program, Sampler, Seen};

/// Far more than any promise of the test's policy: the machine may be busy.
const SOON: Duration = Duration::from_secs(60);

/// One window of the test's policy: two probe intervals.
const WINDOW: Duration = Duration::from_secs(4);

const POLICY: &str = r#"
[policies.default]
probe_interval = "2s"
suspect_interval = "300ms"
revoked_interval = "2s"
call_timeout = "2s"
unlock_after = { rounds = 3, over = "1s" }
stated_alone = { looks = 3, of = 4, over = "1s" }
[policies.default.on]
disabled = { looks = 2, of = 2, over = "600ms", access = "locked" }
pending_deletion = { looks = 2, of = 2, over = "600ms", access = "locked" }
expired = { looks = 2, of = 2, over = "600ms", access = "read_only" }
access_denied = { looks = 3, of = 4, over = "2s", access = "locked" }
"#;

/// A KMS client as root of an account, past the proxy.
fn owner(server: &Ministack, account: &str) -> aws_sdk_kms::Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(server.url())
        .credentials_provider(Credentials::new(account, "test", None, None, "test"))
        .http_client(cmek_watchdog::kms::aws::client::new_http())
        .build();
    aws_sdk_kms::Client::from_conf(config)
}

/// A key policy that lets everybody do everything but this.
async fn put_policy(kms: &aws_sdk_kms::Client, key: &str, denied: Option<&str>) {
    let allow = r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}"#;
    let deny = denied.map(|action| format!(r#",{{"Effect":"Deny","Principal":"*","Action":"kms:{action}","Resource":"*"}}"#));
    let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{allow}{}]}}"#, deny.unwrap_or_default());
    kms.put_key_policy().key_id(key).policy_name("default").policy(policy).send().await.unwrap();
}

async fn create_key(kms: &aws_sdk_kms::Client, origin: OriginType) -> String {
    let made = kms.create_key().origin(origin).send().await.unwrap();
    let arn = made.key_metadata.unwrap().arn.unwrap();
    put_policy(kms, &arn, None).await;
    arn
}

const MATERIAL: [u8; 32] = [7; 32];

/// Brings material into an external key, wrapped as AWS asks for it.
async fn import(kms: &aws_sdk_kms::Client, key: &str) {
    let asked = kms.get_parameters_for_import().key_id(key);
    let parameters =
        asked.wrapping_algorithm(AlgorithmSpec::RsaesOaepSha256).wrapping_key_spec(WrappingKeySpec::Rsa2048).send().await.unwrap();
    let public = aws_lc_rs::rsa::PublicEncryptingKey::from_der(parameters.public_key.unwrap().as_ref()).unwrap();
    let public = aws_lc_rs::rsa::OaepPublicEncryptingKey::new(public).unwrap();
    let mut wrapped = vec![0; public.ciphertext_size()];
    let wrapped = public.encrypt(&aws_lc_rs::rsa::OAEP_SHA256_MGF1SHA256, &MATERIAL, &mut wrapped, None).unwrap().to_vec();
    let given = kms.import_key_material().key_id(key).import_token(parameters.import_token.unwrap());
    given.encrypted_key_material(Blob::new(wrapped)).expiration_model(ExpirationModelType::KeyMaterialDoesNotExpire).send().await.unwrap();
}

/// Notices as a webhook gets them.
#[derive(Clone, Default)]
struct Notices(Arc<Mutex<Vec<Value>>>);

impl Notices {
    fn of(&self, event: &str) -> Vec<Value> {
        self.0.lock().unwrap().iter().filter(|n| n["type"] == event).cloned().collect()
    }
    async fn until(&self, event: &str, count: usize) -> Vec<Value> {
        for _ in 0..300 {
            if self.of(event).len() >= count {
                return self.of(event);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let all: Vec<String> = self.0.lock().unwrap().iter().map(|n| n["type"].to_string()).collect();
        panic!("no {count} notices {event}, only {all:?}");
    }
}

/// Ministack, the proxy before it, a user of ours, and the daemon watching keys through the proxy.
struct Stage {
    server: Ministack,
    proxy: FaultProxy,
    kms: aws_sdk_kms::Client,
    /// ARNs of the keys `k01`, `k02`, ... of the workspaces `w01`, ...
    keys: Vec<String>,
    access_key: String,
    // Before the folder with its log.
    daemon: Daemon,
    program: Arc<Program>,
    sampler: Sampler,
    notices: Notices,
    _hook: https::Server,
}

fn name(kind: char, number: usize) -> String {
    format!("{kind}{number:02}")
}

/// A key as it stands in the configuration.
fn key_table(number: usize, arn: &str, more: &str) -> String {
    let (id, workspace) = (name('k', number), name('w', number));
    format!("\n[[keys]]\nid = \"{id}\"\nprovider = \"aws\"\nkey = \"{arn}\"\nworkspaces = [\"{workspace}\"]\n{more}\n")
}

async fn hook() -> (https::Server, Notices) {
    let notices = Notices::default();
    let heard = notices.clone();
    let server = https::http(https::handler(move |asked| {
        heard.0.lock().unwrap().push(asked.json());
        https::Reply::json(200, &serde_json::json!({}))
    }));
    (server.await, notices)
}

impl Stage {
    /// `external` are numbers of keys with imported material.
    async fn set(count: usize, external: &[usize]) -> Self {
        let server = Ministack::start().await;
        let kms = owner(&server, ACCOUNT);
        let mut keys = Vec::new();
        for number in 1..=count {
            let imported = external.contains(&number);
            let arn = create_key(&kms, if imported { OriginType::External } else { OriginType::AwsKms }).await;
            if imported {
                import(&kms, &arn).await;
            }
            keys.push(arn);
        }
        let tables: String = keys.iter().enumerate().map(|(at, arn)| key_table(at + 1, arn, "")).collect();
        Self::with(server, kms, keys, &tables).await
    }

    async fn with(server: Ministack, kms: aws_sdk_kms::Client, keys: Vec<String>, tables: &str) -> Self {
        let control = create_key(&kms, OriginType::AwsKms).await;
        let proxy = FaultProxy::before(server.port).await;
        let (access_key, secret) = server.user("watchdog").await;
        let (hook_server, notices) = hook().await;
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nrun_dir = \"run\"\n[store]\nurl = \"sqlite://state.db\"\n{POLICY}\n\
             [providers.aws]\nkind = \"aws\"\nregion = \"{REGION}\"\nendpoint = \"{}\"\ncontrol_key = \"{control}\"\ncalls_per_second = 200\n\
             our_accounts = [\"{ACCOUNT}\"]\n{tables}\n\
             [receivers.hook]\nkind = \"webhook\"\nurl = \"http://{}/hook\"\nsecret = \"env:HOOK_SECRET\"\n\
             [[routes]]\nreceivers = [\"hook\"]\nseverity = \"info\"\n\
             [notify]\ngroup_above = 1000\nper_hour = 10000\n",
            proxy.url(),
            hook_server.addr
        );
        let env = [
            ("AWS_ACCESS_KEY_ID", access_key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", secret.as_str()),
            ("HOOK_SECRET", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
        ];
        let program = Arc::new(Program::new(&config, &env));
        let daemon = Daemon::start(&program).await;
        let sampler = Sampler::start(daemon.addr);
        let stage = Self { server, proxy, kms, keys, access_key, daemon, program, sampler, notices, _hook: hook_server };
        let count = stage.keys.len();
        stage.until_active(count).await;
        stage
    }

    fn arn(&self, number: usize) -> &str {
        &self.keys[number - 1]
    }

    async fn until_active(&self, count: usize) -> Value {
        self.daemon.until("/v1/status", SOON, |status| status["keys"]["active"] == count).await
    }

    /// Waits until the sampler has seen this workspace lowered.
    async fn until_sampled(&self, workspace: &str) {
        while !self.sampler.so_far().lowered.contains_key(workspace) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets a fault last for several windows; nothing lowers meanwhile but what was lowered before.
    async fn endure(&self, what: &str, windows: u32) {
        let (before, missed) = (self.sampler.so_far(), self.proxy.counts());
        tokio::time::sleep(WINDOW * windows).await;
        let (after, faulted) = (self.sampler.so_far(), self.proxy.counts());
        assert_eq!(before.lowered.keys().collect::<Vec<_>>(), after.lowered.keys().collect::<Vec<_>>(), "{what} locked");
        assert!(after.samples > before.samples + 10, "{what}: the gate was not looked at");
        println!("{what}: {} requests passed, {} got the fault", faulted.0 - missed.0, faulted.1 - missed.1);
    }

    /// Ends the test: nobody lowered but these, each to nothing else than this; whole journal, no bug.
    async fn end(mut self, wanted: &[(usize, &str)]) -> Seen {
        let status = self.daemon.get("/v1/status");
        assert_eq!(status["bugs"], 0, "{status:#}");
        assert_eq!(status["store_write_failures"], 0);
        // What the last step saw, the sampler shall see too before it ends.
        let before = self.sampler.so_far().samples;
        while self.sampler.so_far().samples < before + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let seen = self.sampler.end();
        let lowered: BTreeMap<String, BTreeSet<String>> =
            seen.lowered.iter().map(|(workspace, access)| (workspace.clone(), access.keys().cloned().collect())).collect();
        let wanted = wanted.iter().map(|(number, access)| (name('w', *number), BTreeSet::from([(*access).to_owned()]))).collect();
        assert_eq!(lowered, wanted);
        assert_eq!(seen.workspaces, self.keys.len());
        assert_eq!(self.daemon.stop(), 0);
        let verified = self.program.ask_beside(&["journal", "verify"]).await;
        assert_eq!(verified.code, 0, "{verified:?}");
        println!("{} samples, longest gap {:?}, lowered {:?}", seen.samples, seen.gap, seen.lowered);
        seen
    }
}
