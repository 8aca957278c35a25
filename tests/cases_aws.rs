//! Every AWS line of the case file, served on the wire to the real client: the adapter's answer must
//! have the kind and the statement that the line asks for.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use cmek_watchdog::config::{Provider, ProviderDetail};
use cmek_watchdog::key::{AssumeRole, KeyRef, KeyTarget, ProviderId, Resource, WrapOperation};
use cmek_watchdog::kms::aws::answer::Refusal;
use cmek_watchdog::kms::aws::client::new_http;
use cmek_watchdog::kms::aws::errors::{Whose, classify};
use cmek_watchdog::kms::aws::{AwsKms, ExternalIds};
use cmek_watchdog::kms::{Kms, KmsError, Wrapped};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::ProviderKind;
use serde::Deserialize;
use wire::{Reply, Wire};

const KEY: &str = "arn:aws:kms:us-east-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OUR_ROLE: &str = "arn:aws:iam::111122223333:role/kms-watchdog";

const PLACEHOLDER: &str = "AQICAHgAAAAAexampleciphertext==";

#[derive(Deserialize, Debug)]
struct Case {
    id: String,
    provider: String,
    operation: String,
    http_status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    or_transport_failure: Option<String>,
    kind: String,
    stated: bool,
}

/// What was seen: no fault, or a kind and whether it is stated.
type Seen = Option<KmsError>;

fn provider(endpoint: Option<String>, assume_role: Option<AssumeRole>) -> Provider {
    Provider {
        id: ProviderId::new("aws").unwrap(),
        detail: ProviderDetail::Aws {
            region: "us-east-1".to_owned(),
            endpoint,
            assume_role,
            our_accounts: vec!["111122223333".to_owned()],
        },
        control_key: None,
        calls_per_second: 50,
    }
}

fn static_credentials() -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Credentials::new("AKIDEXAMPLE", "secret", None, None, "test"))
}

async fn adapter(endpoint: Option<String>, role: Option<AssumeRole>, credentials: SharedCredentialsProvider, timeout: Span) -> AwsKms {
    AwsKms::with_credentials(&provider(endpoint, role), timeout, ExternalIds::default(), credentials, new_http()).await.unwrap()
}

fn canary() -> Wrapped {
    Wrapped {
        bytes: Arc::from([7u8; 64].as_slice()),
        digest: [0; 32],
        version: None,
        sealed_with: r#"{"purpose":"cmek-watchdog-probe"}"#.into(),
    }
}

/// The adapter's call that comes closest to the case's operation.
async fn call(kms: &AwsKms, operation: &str, mut key: KeyTarget) -> Seen {
    match operation {
        "kms:Encrypt" | "kms:CreateKey" => kms.wrap_key(&key).await.result.err(),
        "kms:GenerateDataKey" => {
            key.wrap_operation = WrapOperation::GenerateDataKey;
            kms.wrap_key(&key).await.result.err()
        }
        "kms:DescribeKey" | "kms:ListKeys" => match kms.describe_key(&key).await.result {
            Ok(facts) => facts.fault,
            Err(error) => Some(error),
        },
        "sts:GetCallerIdentity" => kms.whoami(&key).await.result.err(),
        _ => kms.unwrap_key(&key, &canary()).await.result.err(),
    }
}

fn reply(case: &Case) -> Reply {
    let headers = case.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    // The placeholder for a ciphertext has 29 characters, which no base64 has; KMS sends base64.
    let body = case.body.clone().unwrap_or_default().replace(PLACEHOLDER, "AQICAHgAAAAAexampleciphertext000");
    Reply::Answer { status: case.http_status.unwrap(), headers, body: body.into_bytes() }
}

/// No call of ours leads to such an answer: the reader and the table alone are asked.
fn by_table(case: &Case) -> Seen {
    let header = |name: &str| case.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    let refusal = Refusal::read(case.http_status.unwrap(), header, case.body.clone().unwrap_or_default().as_bytes());
    classify(&refusal, &Whose { operation: &case.operation, key_account: "444455556666", our_accounts: &["111122223333".to_owned()] })
}

async fn without_answer(case: &Case, failure: &str) -> Seen {
    let key = KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, KEY).unwrap());
    let long = Span::from_secs(10);
    match failure {
        "dns" if case.body.as_deref().unwrap_or("").contains('\u{a0}') || case.id.contains("badregion") => {
            let mut key = key;
            key.reference.resource = Resource::Aws { region: "us-west-2\u{a0}".into(), account: "444455556666".into(), alias: false };
            call(&adapter(None, None, static_credentials(), long).await, &case.operation, key).await
        }
        "dns" => {
            let endpoint = Some("http://kms.no-such-region.invalid".to_owned());
            call(&adapter(endpoint, None, static_credentials(), long).await, &case.operation, key).await
        }
        "connect_refused" => {
            let port = {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listener.local_addr().unwrap().port()
            };
            let endpoint = Some(format!("http://127.0.0.1:{port}"));
            call(&adapter(endpoint, None, static_credentials(), long).await, &case.operation, key).await
        }
        "reset" => {
            let server = Wire::serve(|_| Reply::Reset).await;
            call(&adapter(Some(server.url()), None, static_credentials(), long).await, &case.operation, key).await
        }
        "timeout" => {
            let server = Wire::serve(|_| Reply::Silence).await;
            call(&adapter(Some(server.url()), None, static_credentials(), Span(300)).await, &case.operation, key).await
        }
        other => panic!("{}: no way to play transport failure {other}", case.id),
    }
}

/// The instance's own metadata service gives the answer.
async fn by_metadata_service(case: &Case) -> Seen {
    let (answer, token) = (
        reply(case),
        Reply::Answer {
            status: 200,
            headers: vec![("x-aws-ec2-metadata-token-ttl-seconds".to_owned(), "21600".to_owned())],
            body: b"token".to_vec(),
        },
    );
    let server = Wire::serve(move |ask| if ask.path == "/latest/api/token" { token.clone() } else { answer.clone() }).await;
    let imds = aws_config::imds::Client::builder().endpoint(server.url()).unwrap().build();
    let credentials = aws_config::imds::credentials::ImdsCredentialsProvider::builder().imds_client(imds).build();
    let kms = adapter(Some(server.url()), None, SharedCredentialsProvider::new(credentials), Span::from_secs(10)).await;
    let seen = call(&kms, "kms:Decrypt", KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, KEY).unwrap())).await;
    assert!(server.asked().iter().any(|a| a.path.contains("/iam/security-credentials")), "the metadata service was not asked");
    seen
}

async fn play(case: &Case) -> Seen {
    if let Some(failure) = &case.or_transport_failure {
        return without_answer(case, failure).await;
    }
    let ours_never_ask = matches!(case.operation.as_str(), "kms:RotateKeyOnDemand") || case.http_status == Some(412);
    if ours_never_ask {
        return by_table(case);
    }
    if case.operation.starts_with("imds:") {
        return by_metadata_service(case).await;
    }
    let answer = reply(case);
    let server = Wire::serve(move |_| answer.clone()).await;
    let role = case.operation.starts_with("sts:").then(|| AssumeRole { arn: OUR_ROLE.to_owned(), external_id: None });
    let kms = adapter(Some(server.url()), role, static_credentials(), Span::from_secs(10)).await;
    let seen = call(&kms, &case.operation, KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, KEY).unwrap())).await;
    assert_eq!(server.asked().len(), 1, "{}: one call and no retry", case.id);
    seen
}

fn fits(case: &Case, seen: &Seen) -> bool {
    match (case.kind.as_str(), seen) {
        ("healthy", seen) => seen.is_none(),
        ("ambiguous", Some(error)) => !error.stated,
        ("ambiguous", None) => false,
        (kind, Some(error)) => error.kind.as_str() == kind && error.stated == case.stated,
        (_, None) => false,
    }
}

/// One line is about the metadata service, which stands here on loopback. Where the environment
/// switches it off (as for every other test), the test plays itself in a child without that switch.
#[test]
fn every_aws_line_of_the_case_file_is_judged_as_it_asks() {
    const SWITCH: &str = "AWS_EC2_METADATA_DISABLED";
    if std::env::var_os(SWITCH).is_none() {
        return tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(judge_all());
    }
    let name = "every_aws_line_of_the_case_file_is_judged_as_it_asks";
    let child =
        std::process::Command::new(std::env::current_exe().unwrap()).args([name, "--exact", "--nocapture"]).env_remove(SWITCH).output();
    let child = child.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    println!("{text}");
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

async fn judge_all() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/errors.jsonl")).unwrap();
    let cases: Vec<Case> = text.lines().map(|l| serde_json::from_str(l).unwrap()).filter(|c: &Case| c.provider == "aws").collect();
    assert_eq!(cases.len(), 74);
    let mut table: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in &cases {
        let seen = play(case).await;
        let good = fits(case, &seen);
        let row = table.entry(&case.kind).or_default();
        row.0 += usize::from(good);
        row.1 += 1;
        if !good {
            wrong.push(format!("{} ({}): expected {} stated={}, seen {seen:?}", case.id, case.operation, case.kind, case.stated));
        }
    }
    for (kind, (good, all)) in &table {
        println!("{kind:<24} {good:>3} of {all:>3}");
    }
    println!("{:<24} {:>3} of {:>3}", "all", cases.len() - wrong.len(), cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
