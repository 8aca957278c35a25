//! The whole way on AWS, against ministack: CloudTrail names who disabled a key, a queue makes a key due,
//! and a restart neither loses nor repeats. Time zones of the machine change nothing.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use serde_json::Value;

use crate::bridge;
use crate::ministack::{ACCOUNT, Ministack, REGION, encoded};
use crate::watchdog::{Daemon, Program};

const SOON: Duration = Duration::from_secs(60);

fn policy(interval: &str) -> String {
    format!(
        "[policies.default]\nprobe_interval = \"{interval}\"\nsuspect_interval = \"300ms\"\nrevoked_interval = \"{interval}\"\ncall_timeout = \"2s\"\n\
         unlock_after = {{ rounds = 3, over = \"1s\" }}\n[policies.default.on]\n\
         disabled = {{ looks = 2, of = 2, over = \"300ms\", access = \"locked\" }}\n"
    )
}

struct Stage {
    server: Ministack,
    kms: aws_sdk_kms::Client,
    arn: String,
    program: Arc<Program>,
}

async fn stage(interval: &str, zone: &str, audit: impl FnOnce(&Ministack) -> String) -> Stage {
    let server = Ministack::start().await;
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(server.url())
        .credentials_provider(Credentials::new(ACCOUNT, "test", None, None, "test"))
        .http_client(cmek_watchdog::kms::aws::client::new_http())
        .build();
    let kms = aws_sdk_kms::Client::from_conf(config);
    let arn = kms.create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap();
    let open = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}]}"#;
    kms.put_key_policy().key_id(&arn).policy_name("default").policy(open).send().await.unwrap();
    let (access_key, secret) = server.user("watchdog").await;
    let may = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["cloudtrail:*","sqs:*"],"Resource":"*"}]}"#;
    server.iam(&format!("Action=PutUserPolicy&UserName=watchdog&PolicyName=audit&PolicyDocument={}", encoded(may))).await;
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nrun_dir = \"run\"\n[store]\nurl = \"sqlite://state.db\"\n{}\n\
         [providers.aws]\nkind = \"aws\"\nregion = \"{REGION}\"\nendpoint = \"{}\"\ncalls_per_second = 200\n\
         [[keys]]\nid = \"k\"\nprovider = \"aws\"\nkey = \"{arn}\"\nworkspaces = [\"w\"]\n{}",
        policy(interval),
        server.url(),
        audit(&server)
    );
    let env = [("AWS_ACCESS_KEY_ID", access_key.as_str()), ("AWS_SECRET_ACCESS_KEY", secret.as_str()), ("TZ", zone)];
    let program = Arc::new(Program::new(&text, &env));
    Stage { server, kms, arn, program }
}

fn records<'v>(history: &'v Value, kind: &str) -> Vec<&'v Value> {
    history["items"].as_array().unwrap().iter().filter(|record| record["type"] == kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn cloudtrail_names_who_disabled_a_key_and_a_restart_neither_loses_nor_repeats() {
    let trail = |_: &Ministack| "[audit.trail]\nkind = \"cloudtrail\"\nprovider = \"aws\"\npoll_interval = \"1s\"\n".to_owned();
    // The emulator shows the fifty newest events only: our own calls must not push the owner's out.
    let stage = stage("5s", "Asia/Tokyo", trail).await;
    let mut daemon = Daemon::start(&stage.program).await;
    daemon.until_state("k", "active", SOON).await;
    stage.kms.disable_key().key_id(&stage.arn).send().await.unwrap();
    daemon.until_access("w", "locked", SOON).await;
    let named = |history: &Value| {
        !records(history, "audit.event").iter().filter(|r| r["detail"]["event_name"] == "DisableKey").collect::<Vec<_>>().is_empty()
    };
    let path = "/v1/keys/k/history?limit=1000";
    let history = daemon.until(path, SOON, named).await;
    let event = records(&history, "audit.event").into_iter().find(|r| r["detail"]["event_name"] == "DisableKey").unwrap().clone();
    assert!(event["actor"].is_string() && event["event_id"].is_string(), "{event:#}");
    // Who did it stands on the lock itself, or on the record that amends it, under one correlation id.
    let told = |history: &Value| {
        let locked = records(history, "workspace.locked").into_iter().chain(records(history, "key.attributed"));
        locked.filter(|r| r["event_id"] == event["event_id"]).count() == 1
    };
    let history = daemon.until(path, SOON, told).await;
    let ids: Vec<&Value> = ["key.revoked", "workspace.locked"].iter().map(|kind| &records(&history, kind)[0]["correlation_id"]).collect();
    assert!(ids[0].is_string() && ids[0] == ids[1], "{ids:?}");
    let covered = &history["audit"][0];
    assert!(covered["source"] == "trail" && covered["seen_until"].is_string() && covered["trouble"].is_null(), "{covered:#}");
    let metrics = daemon.metrics();
    assert!(metrics.contains("cmek_audit_events_total{meaning=\"disable\",source=\"trail\"} 1"), "{metrics}");
    let lag: f64 = metrics.lines().find_map(|line| line.strip_prefix("cmek_audit_lag_seconds{source=\"trail\"} ")?.parse().ok()).unwrap();
    assert!(lag < 30.0, "{lag}");
    assert!(metrics.contains("cmek_lockout_latency_seconds_count{stage=\"confirm\",start=\"provider\"} 1"), "{metrics}");
    daemon.stop();
    // What happens while nobody reads is read afterwards; what was read is not read as new.
    stage.kms.enable_key().key_id(&stage.arn).send().await.unwrap();
    let daemon = Daemon::start(&stage.program).await;
    let both = |history: &Value| records(history, "audit.event").iter().any(|r| r["detail"]["event_name"] == "EnableKey");
    let history = daemon.until(path, SOON, both).await;
    let of = |name: &str| records(&history, "audit.event").iter().filter(|r| r["detail"]["event_name"] == name).count();
    assert_eq!((of("DisableKey"), of("EnableKey")), (1, 1));
    daemon.until_access("w", "open", SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_the_queue_makes_the_key_due_and_leaves_the_queue_only_then() {
    let queue = |server: &Ministack| {
        format!("[audit.bus]\nkind = \"sqs\"\nprovider = \"aws\"\nqueue_url = \"{}/{ACCOUNT}/hints\"\nmask = [\"address\"]\n", server.url())
    };
    let stage = stage("10m", "America/Chicago", queue).await;
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(aws_sdk_sqs::config::BehaviorVersion::latest())
        .region(aws_sdk_sqs::config::Region::new(REGION))
        .endpoint_url(stage.server.url())
        .credentials_provider(Credentials::new(ACCOUNT, "test", None, None, "test"))
        .http_client(cmek_watchdog::kms::aws::client::new_http())
        .build();
    let sqs = aws_sdk_sqs::Client::from_conf(config);
    let url = sqs.create_queue().queue_name("hints").send().await.unwrap().queue_url.unwrap();
    let daemon = Daemon::start(&stage.program).await;
    daemon.until_state("k", "active", SOON).await;
    stage.kms.disable_key().key_id(&stage.arn).send().await.unwrap();
    let send = async |body: String| sqs.send_message().queue_url(&url).message_body(body).send().await.map(|_| ()).unwrap();
    send("not json".to_owned()).await;
    let sns =
        serde_json::json!({"Type": "Notification", "MessageId": "m", "Message": bridge("e-sqs", "DisableKey", &stage.arn).to_string()});
    send(sns.to_string()).await;
    // The policy looks every ten minutes: only the message makes this so fast.
    daemon.until_access("w", "locked", Duration::from_secs(30)).await;
    let history = daemon.get("/v1/keys/k/history?limit=1000");
    let locked = records(&history, "workspace.locked")[0];
    assert_eq!((locked["event_id"].as_str(), locked["detail"].get("address")), (Some("e-sqs"), None), "{locked:#}");
    assert!(locked["actor"].as_str().unwrap().ends_with(":user/alice"));
    let until = std::time::Instant::now() + SOON;
    loop {
        let left =
            sqs.get_queue_attributes().queue_url(&url).attribute_names(aws_sdk_sqs::types::QueueAttributeName::All).send().await.unwrap();
        let count =
            |name: &str| left.attributes().unwrap().iter().find(|(n, _)| n.as_str() == name).map_or("0".to_owned(), |(_, v)| v.clone());
        if count("ApproximateNumberOfMessages") == "0" && count("ApproximateNumberOfMessagesNotVisible") == "0" {
            break;
        }
        assert!(std::time::Instant::now() < until, "messages are left: {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(daemon.metrics().contains("cmek_audit_malformed_total{source=\"bus\"} 1"));
}
