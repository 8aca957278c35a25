//! boto3 referees both servers that stand for AWS KMS in our tests, with one list of expectations:
//! our own fake must not merely be what our adapter believes, and ministack shows that the list is
//! not merely what our fake does.
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

mod clouds {
    pub mod aws;
    use super::wire;
}
#[path = "support/ministack.rs"]
mod ministack;
#[path = "support/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use clouds::aws::{ACCESS_KEY, FakeAws};
use ministack::{ACCOUNT, Ministack, REGION};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

const NAMES: [&str; 4] = ["good", "disabled", "pending", "denied"];
/// Expectations of the first stage a key, and of the second.
const FIRST: usize = 4;
const SECOND: usize = 12;

fn python() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let venv = std::env::var_os("CMEK_TEST_VENV").map_or_else(|| root.join("target/test-venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(python.exists(), "no Python with boto3 at {}: run tests/run, which makes it, or set CMEK_TEST_VENV", python.display());
    python
}

/// Runs one stage; gives what the script printed. Each expectation must have printed its line.
async fn stage(order: &Value, expectations: usize) -> String {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/aws_referee.py");
    let mut child = tokio::process::Command::new(python())
        .arg(script)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(order.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), expectations, "{text}");
    text
}

fn blobs(text: &str) -> Value {
    text.lines().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object)).unwrap()
}

fn order(endpoint: &str, region: &str, login: (&str, &str), keys: &BTreeMap<&str, String>) -> Value {
    json!({ "endpoint": endpoint, "region": region, "access_key": login.0, "secret": login.1, "keys": keys, "stage": "first" })
}

async fn both_stages(mut order: Value, between: impl AsyncFnOnce()) {
    let first = stage(&order, FIRST * NAMES.len()).await;
    between().await;
    order["stage"] = "second".into();
    order["blobs"] = blobs(&first);
    stage(&order, SECOND).await;
}

#[tokio::test]
async fn boto3_agrees_with_our_own_aws() {
    let aws = FakeAws::start().await;
    let keys: BTreeMap<&str, String> = NAMES.into_iter().map(|name| (name, aws.create_key("us-east-2", "444455556666"))).collect();
    both_stages(order(&aws.url(), "us-east-2", (ACCESS_KEY, "secret"), &keys), async || {
        aws.disable(&keys["disabled"]);
        aws.schedule_deletion(&keys["pending"], 7);
        aws.deny(&keys["denied"], "Decrypt");
    })
    .await;
}

#[tokio::test]
async fn boto3_reads_the_rotations_of_our_own_aws() {
    let aws = FakeAws::start().await;
    let keys: BTreeMap<&str, String> = [("ours", "111122223333"), ("theirs", "444455556666")]
        .into_iter()
        .map(|(name, of)| (name, aws.create_key("us-east-2", of)))
        .collect();
    aws.enable_rotation(&keys["ours"]);
    for _ in 0..5 {
        aws.advance(86_400_000);
        aws.rotate(&keys["ours"]);
    }
    let mut order = order(&aws.url(), "us-east-2", (ACCESS_KEY, "secret"), &keys);
    order["stage"] = "rotation".into();
    order["rotations"] = 5.into();
    stage(&order, 5).await;
}

#[tokio::test]
async fn boto3_agrees_with_ministack() {
    use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
    let ministack = Ministack::start().await;
    let (access_key, secret) = ministack.user("referee").await;
    let admin = aws_sdk_kms::Client::from_conf(
        aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(ministack.url())
            .build(),
    );
    let mut keys = BTreeMap::new();
    for name in NAMES {
        keys.insert(name, admin.create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap());
    }
    both_stages(order(&ministack.url(), REGION, (&access_key, &secret), &keys), async || {
        admin.disable_key().key_id(&keys["disabled"]).send().await.unwrap();
        admin.schedule_key_deletion().key_id(&keys["pending"]).pending_window_in_days(7).send().await.unwrap();
        let policy = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{ACCOUNT}:root") }, "Action": "kms:*", "Resource": "*" },
            { "Effect": "Deny", "Principal": { "AWS": format!("arn:aws:iam::{ACCOUNT}:user/referee") }, "Action": "kms:Decrypt", "Resource": "*" }
        ] });
        admin.put_key_policy().key_id(&keys["denied"]).policy(policy.to_string()).send().await.unwrap();
    })
    .await;
}
