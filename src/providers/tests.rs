use super::*;
use crate::config::check::parse;
use crate::key::ReceiverId;

fn config(text: &str, folder: &Path) -> Config {
    match parse(text, "config.toml", &folder.to_string_lossy(), &[]) {
        Ok((config, _)) => config,
        Err(errors) => panic!("{errors:?}"),
    }
}

const LOCAL: &str = r#"
[vault]
operator_key = { provider = "local", key = "vault" }
[providers.local]
kind = "local"
path = "deep/down/kms.json"
control_key = "control"
[providers.idle]
kind = "local"
path = "idle.json"
[[keys]]
id = "demo-id"
provider = "local"
key = "demo"
workspaces = ["w"]
"#;

#[tokio::test]
async fn a_local_file_is_made_with_every_key_that_the_configuration_names_and_an_unused_provider_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(LOCAL, dir.path());
    let providers = Providers::open(&config, None).await.unwrap();
    assert_eq!(providers.ids().map(ProviderId::as_str).collect::<Vec<_>>(), ["local"]);
    assert!(providers.get(&ProviderId::new("local").unwrap()).is_some());
    assert!(providers.get(&ProviderId::new("idle").unwrap()).is_none());
    assert!(!dir.path().join("idle.json").exists());
    let file = LocalKmsFile::at(&dir.path().join("deep/down/kms.json"));
    let names: Vec<String> = file.list(Wall(0)).unwrap().into_iter().map(|key| key.key).collect();
    assert_eq!(names, ["control", "demo", "vault"]);
}

#[tokio::test]
async fn only_the_provider_that_is_asked_for_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(LOCAL, dir.path());
    let idle = ProviderId::new("idle").unwrap();
    assert_eq!(Providers::open(&config, Some(&idle)).await.unwrap().ids().count(), 0);
    assert!(!dir.path().join("deep").exists());
}

#[tokio::test]
async fn every_missing_secret_is_named_and_none_hides_another() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"
[providers.aws]
kind = "aws"
region = "us-east-2"
assume_role = { arn = "arn:aws:iam::444455556666:role/probe", external_id = "env:CMEK_TEST_NOT_SET_1" }
[providers.azure]
kind = "azure"
credentials = { client_secret = { tenant = "t", client = "c", secret = "env:CMEK_TEST_NOT_SET_3" } }
[providers.gcp]
kind = "gcp"
credentials = "file:no-such-file.json"
[[keys]]
id = "a"
provider = "aws"
key = "arn:aws:kms:us-east-2:444455556666:key/a"
workspaces = ["w"]
assume_role = { arn = "arn:aws:iam::444455556666:role/other", external_id = "env:CMEK_TEST_NOT_SET_2" }
[[keys]]
id = "z"
provider = "azure"
key = "https://v.vault.azure.net/keys/z"
workspaces = ["w"]
[[keys]]
id = "g"
provider = "gcp"
key = "projects/q/locations/l/keyRings/r/cryptoKeys/k"
workspaces = ["w"]
"#;
    let error = Providers::open(&config(text, dir.path()), None).await.unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 4, "{error}");
    assert_eq!(lines[0], "provider aws: external_id of role arn:aws:iam::444455556666:role/probe: variable CMEK_TEST_NOT_SET_1 is missing");
    assert!(lines[1].ends_with("role/other: variable CMEK_TEST_NOT_SET_2 is missing"), "{error}");
    assert_eq!(lines[2], "provider azure: credentials: variable CMEK_TEST_NOT_SET_3 is missing");
    assert!(lines[3].starts_with("provider gcp: cannot read the credentials file"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("deep"), "in the way").unwrap();
    let error = Providers::open(&config(LOCAL, dir.path()), None).await.unwrap_err().to_string();
    assert!(error.starts_with("provider local: folder ") && error.contains("deep/down cannot be made"), "{error}");
}

#[test]
fn receivers_are_made_with_their_secrets_and_every_fault_is_named_without_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hook"), "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
    std::fs::write(dir.path().join("bad"), "hunter2-is-no-webhook-secret").unwrap();
    std::fs::write(dir.path().join("key"), "R0UTINGKEY").unwrap();
    let good = r#"
[receivers.mail]
kind = "email"
smtp = "smtp://127.0.0.1:2525"
from = "w@example.com"
to = ["sre@example.com"]
[receivers.hook]
kind = "webhook"
url = "http://127.0.0.1:1/hook"
secret = "file:hook"
[receivers.pager]
kind = "pagerduty"
routing_key = "file:key"
[receivers.alerts]
kind = "alertmanager"
url = "http://127.0.0.1:1"
"#;
    let made = receivers(&config(good, dir.path())).unwrap();
    assert_eq!(made.keys().map(ReceiverId::as_str).collect::<Vec<_>>(), ["alerts", "hook", "mail", "pager"]);
    let bad = r#"
[receivers.a]
kind = "webhook"
url = "env:CMEK_TEST_NOT_SET_4"
secret = "file:hook"
[receivers.b]
kind = "webhook"
url = "http://127.0.0.1:1/hook"
secret = "file:bad"
[receivers.c]
kind = "email"
smtp = "smtps://127.0.0.1:2525"
from = "w@example.com"
to = ["sre@example.com"]
ca_file = "no-such.pem"
[receivers.d]
kind = "slack"
url = "env:CMEK_TEST_NOT_SET_5"
"#;
    let Err(error) = receivers(&config(bad, dir.path())) else { panic!("made") };
    let error = error.to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines[0], "receiver a: url: variable CMEK_TEST_NOT_SET_4 is missing");
    assert_eq!(lines[1], "receiver b: secret is not `whsec_` and base64 of 24 to 64 bytes");
    assert!(lines[2].starts_with("receiver c: ca_file ") && lines[2].ends_with("no-such.pem cannot be read: entity not found"), "{error}");
    assert_eq!(lines[3], "receiver d: url: variable CMEK_TEST_NOT_SET_5 is missing");
    assert!(!error.contains("hunter2"));
}
