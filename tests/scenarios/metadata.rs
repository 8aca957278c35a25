//! The way to the provider and to our own credentials, through the real binary and the real client.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cmek_watchdog::config::{Provider, ProviderDetail};
use cmek_watchdog::key::{KeyRef, KeyTarget, ProviderId};
use cmek_watchdog::kms::Kms;
use cmek_watchdog::kms::aws::client::new_http;
use cmek_watchdog::kms::aws::{AwsKms, ExternalIds};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{FailureKind, Leg, ProviderKind};
use serde_json::{Value, json};

use crate::bench::{Bench, MINUTE, arn, aws, refusal};
use crate::clouds::aws::{ACCESS_KEY, FakeAws};
use crate::https::{self, Reply};
use crate::watchdog::Program;
use crate::wire::{self, Wire};

fn config(endpoint: &str, key: &str) -> String {
    format!(
        "[store]\nurl = \"sqlite://state.db\"\n[providers.aws]\nkind = \"aws\"\nregion = \"us-east-1\"\nendpoint = \"{endpoint}\"\n\
         [policies.default]\ncall_timeout = \"5s\"\n\
         [[keys]]\nid = \"k1\"\nprovider = \"aws\"\nkey = \"{key}\"\nworkspaces = [\"w1\"]\n"
    )
}

fn leg<'v>(view: &'v Value, name: &str) -> &'v Value {
    view["last_probe"]["legs"].as_array().unwrap().iter().find(|leg| leg["leg"] == name).unwrap()
}

/// BUG-046
#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_service_that_hangs_is_our_missing_credentials() {
    let cloud = FakeAws::start().await;
    let key = cloud.create_key("us-east-1", "444455556666");
    let hole = https::black_hole().await;
    let endpoint = format!("http://{}", hole.addr);
    let env = [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str())];
    let program = Arc::new(Program::new(&config(&cloud.url(), &key), &env));
    let done = program.ask_beside(&["--json", "check", "--live"]).await;
    assert_eq!(done.code, 12, "{done:?}");
    let seen = done.json();
    let key = &seen["keys"][0];
    assert_eq!((&key["verdict"], &key["failure_kind"]), (&"inconclusive".into(), &"credentials".into()), "{key:#}");
    let message = leg(key, "wrap")["message"].as_str().unwrap().to_lowercase();
    assert!(message.contains("metadata") || message.contains("imds") || message.contains("credentials"), "{message}");
    assert!(cloud.asked().is_empty(), "nothing was sent without credentials");
}

/// BUG-047
#[tokio::test(flavor = "multi_thread")]
async fn one_failed_metadata_call_is_asked_again_within_the_round() {
    let cloud = FakeAws::start().await;
    let key = cloud.create_key("us-east-1", "444455556666");
    // Of the three calls that bring credentials each fails once, in a run of its own.
    for failing in 0..3 {
        let (calls, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, told) = (Arc::clone(&calls), Arc::clone(&failed));
        let metadata = https::http(https::handler(move |asked| {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            if asked.path.contains("security-credentials-extended") {
                counted.fetch_sub(1, Ordering::SeqCst);
                return Reply::Http { status: 404, headers: Vec::new(), body: Vec::new() };
            }
            if number == failing {
                told.fetch_add(1, Ordering::SeqCst);
                return Reply::Http { status: 500, headers: Vec::new(), body: Vec::new() };
            }
            let text = |body: &str| Reply::Http { status: 200, headers: Vec::new(), body: body.as_bytes().to_vec() };
            match asked.path.as_str() {
                "/latest/api/token" => text("token").with("x-aws-ec2-metadata-token-ttl-seconds", "21600"),
                path if path.ends_with("/security-credentials/") => text("watchdog"),
                _ => Reply::json(
                    200,
                    &json!({"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": ACCESS_KEY, "SecretAccessKey": "any", "Token": "session",
                        "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}),
                ),
            }
        }))
        .await;
        let endpoint = format!("http://{}", metadata.addr);
        let env = [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str())];
        let program = Arc::new(Program::new(&config(&cloud.url(), &key), &env));
        let done = program.ask_beside(&["--json", "probe", "k1"]).await;
        assert_eq!((done.code, failed.load(Ordering::SeqCst)), (0, 1), "call {failing}: {done:?}");
        assert!(calls.load(Ordering::SeqCst) >= 4, "asked again");
    }
}

/// BUG-053
#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_resolve_say_dns_and_lock_nothing() {
    let key = arn(444_455_556_666, 1).replace("us-east-2", "us-east-1");
    let env = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", "any")];
    let program = Arc::new(Program::new(&config("http://kms.nowhere.invalid", &key), &env));
    let done = program.ask_beside(&["--json", "probe", "k1"]).await;
    assert_eq!(done.code, 12, "{done:?}");
    let seen = done.json();
    assert_eq!((&seen["verdict"], &seen["failure_kind"]), (&"inconclusive".into(), &"unreachable".into()));
    assert_eq!(leg(&seen, "wrap")["code"], "dns", "{seen:#}");

    let keys: Vec<String> = (1..=20).map(|number| arn(444_455_556_666, number)).collect();
    let mut bench = Bench::proven(&aws(&keys, ""));
    let dns = cmek_watchdog::kms::KmsError::new(FailureKind::Unreachable, false, "dns", "no such name");
    bench.cloud.hook(move |_| Some(dns.clone()));
    bench.run(5 * MINUTE);
    bench.cloud.unhook();
    bench.run(5 * MINUTE);
    bench.assert_nothing_lowered();
    assert!(bench.keys.values().all(|key| key.verdict.unwrap().as_str() == "usable"), "{:?}", bench.states());
    assert_eq!(refusal(FailureKind::Unreachable, false).kind, FailureKind::Unreachable);
}

/// BUG-158
#[tokio::test]
async fn keys_of_every_kind_are_described_without_a_fault() {
    let name = arn(444_455_556_666, 1).replace("us-east-2", "us-east-1");
    let kinds = [
        json!({"Origin": "AWS_KMS", "KeySpec": "SYMMETRIC_DEFAULT", "KeyState": "Enabled"}),
        json!({"Origin": "EXTERNAL", "KeySpec": "SYMMETRIC_DEFAULT", "KeyState": "Enabled", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}),
        json!({"Origin": "AWS_CLOUDHSM", "KeySpec": "SYMMETRIC_DEFAULT", "KeyState": "Enabled", "CustomKeyStoreId": "cks-1"}),
        json!({"Origin": "EXTERNAL_KEY_STORE", "KeySpec": "SYMMETRIC_DEFAULT", "KeyState": "Enabled", "XksKeyConfiguration": {"Id": "x"}}),
        json!({"Origin": "AWS_KMS", "KeySpec": "RSA_4096", "KeyUsage": "ENCRYPT_DECRYPT", "KeyState": "Enabled",
            "EncryptionAlgorithms": ["RSAES_OAEP_SHA_256"]}),
        json!({"Origin": "AWS_KMS", "KeySpec": "SYMMETRIC_DEFAULT", "KeyState": "Enabled", "MultiRegion": true,
            "MultiRegionConfiguration": {"MultiRegionKeyType": "REPLICA"}}),
        json!({"Origin": "EXTERNAL", "KeySpec": "SYMMETRIC_DEFAULT", "KeyState": "PendingImport"}),
    ];
    for kind in kinds {
        let mut metadata = json!({"KeyId": "1", "Arn": name, "Enabled": kind["KeyState"] == "Enabled"});
        metadata.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        let body = json!({ "KeyMetadata": metadata }).to_string();
        let server = Wire::serve(move |ask| match ask.operation().as_str() {
            "DescribeKey" => wire::Reply::json(200, &body),
            // As AWS answers for all of them but the first.
            _ => wire::Reply::json(400, r#"{"__type":"UnsupportedOperationException"}"#),
        })
        .await;
        let provider = Provider {
            id: ProviderId::new("aws").unwrap(),
            detail: ProviderDetail::Aws {
                region: "us-east-1".to_owned(),
                endpoint: Some(server.url()),
                assume_role: None,
                our_accounts: Vec::new(),
            },
            control_key: None,
            calls_per_second: 50,
        };
        let credentials = aws_sdk_kms::config::Credentials::new("AKIDEXAMPLE", "any", None, None, "test");
        let given = aws_sdk_kms::config::SharedCredentialsProvider::new(credentials);
        let kms = AwsKms::with_credentials(&provider, Span::from_secs(5), ExternalIds::default(), given, new_http()).await.unwrap();
        let key = KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, &name).unwrap());
        let facts = kms.describe_key(&key).await.result.unwrap();
        let (rotation, origin) = ((facts.rotated_at, facts.next_rotation_at), facts.origin.clone());
        assert_eq!(rotation, (None, None), "{kind}: not applicable");
        assert_eq!(origin.as_deref(), kind["Origin"].as_str());
        let fault = facts.fault.as_ref().map(|fault| fault.kind);
        assert_eq!(fault, (kind["KeyState"] == "PendingImport").then_some(FailureKind::Expired), "{kind}");
        assert!(server.asked().iter().all(|ask| ask.operation() == "DescribeKey"), "nothing else is asked");

        // The rest of the probe goes on.
        let mut bench = Bench::new(&aws(&[arn(444_455_556_666, 1)], ""));
        bench.cloud.facts.insert(arn(444_455_556_666, 1), facts);
        bench.run(10 * MINUTE);
        assert!(bench.cloud.asked.iter().any(|ask| ask.leg == Leg::Unwrap));
        bench.assert_nothing_lowered();
    }
}
