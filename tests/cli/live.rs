//! Looks at keys through the real adapter of the software KMS.

use std::sync::Arc;

use cmek_watchdog::journal::{CanaryRow, Commit, Store as _};
use cmek_watchdog::key::{KeyId, KeyRef, KeyTarget};
use cmek_watchdog::kms::Kms as _;
use cmek_watchdog::kms::local::{LocalKms, LocalKmsFile};
use cmek_watchdog::words::ProviderKind;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::desk::{CONFIG, Desk};
use crate::{doors, rows};

fn legs(value: &Value) -> Vec<(&str, &str, &Value)> {
    let legs = value["last_probe"]["legs"].as_array().unwrap();
    legs.iter().map(|leg| (leg["leg"].as_str().unwrap(), leg["outcome"].as_str().unwrap(), &leg["failure_kind"])).collect()
}

fn fields(value: &Value) -> Vec<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// What the daemon would have stored: a canary of the present version, under this identity.
async fn store_canary(desk: &Desk, identity: &str) {
    let kms = LocalKms::new(LocalKmsFile::at(&desk.path().join("run/kms.json")));
    let target = KeyTarget::plain(KeyRef::parse(ProviderKind::Local, "demo").unwrap());
    let wrapped = kms.wrap_key(&target).await.result.unwrap();
    let version = wrapped.version.clone().unwrap();
    let number: i64 = version.as_str().parse().unwrap();
    let row = CanaryRow {
        key: KeyId::new("demo-id").unwrap(),
        version,
        wrapped,
        identity: Some(identity.to_owned()),
        created_at: cmek_watchdog::time::Wall(rows::AT.0 + number),
    };
    let store = rows::open(&desk.path().join("state.db")).await;
    store.commit(&Commit { canaries: vec![row], ..rows::records(1, &[]) }).await.unwrap();
    store.close().await;
}

#[test]
fn a_usable_key_exits_0_and_has_the_shape_of_the_api() {
    let desk = Desk::new(CONFIG);
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!(code, 0, "{value}");
    assert_eq!((&value["verdict"], &value["confirmed"], &value["failure_kind"]), (&json!("usable"), &json!(false), &Value::Null));
    assert_eq!(legs(&value), [("wrap", "ok", &Value::Null), ("unwrap", "ok", &Value::Null), ("describe", "ok", &Value::Null)]);
    assert_eq!((&value["id"], &value["key"], &value["identity"]), (&json!("demo-id"), &json!("demo"), &json!("local")));
    assert_eq!(value["versions"][0]["usable"], true);
    for name in fields(&serde_json::to_value(doors::key("demo", cmek_watchdog::words::StateWord::Active)).unwrap()) {
        assert!(fields(&value).contains(&name), "{name} is missing");
    }
    let leg = &value["last_probe"]["legs"][0];
    for name in ["leg", "outcome", "failure_kind", "stated", "code", "message", "request_id", "duration_ms", "version"] {
        assert!(fields(leg).contains(&name.to_owned()), "{name}");
    }
    assert!(leg["request_id"].is_string() && leg["duration_ms"].is_u64());
    let text = desk.run(&["probe", "demo-id"]).exits(0).out;
    assert!(text.starts_with("demo-id: usable") && text.contains("REQUEST ID") && text.contains("unwrap"), "{text}");
}

#[test]
fn a_disabled_key_exits_11_even_before_any_canary_was_stored() {
    let desk = Desk::new(CONFIG);
    for (act, kind) in [("disable", "disabled"), ("schedule-deletion", "pending_deletion")] {
        desk.run(&["local-kms", act, "demo"]).exits(0);
        let (code, value) = desk.json(&["probe", "demo-id"]);
        assert_eq!((code, &value["verdict"], &value["failure_kind"]), (11, &json!("revoked"), &json!(kind)), "{value}");
        assert_eq!((&value["confirmed"], &value["stated"]), (&json!(false), &json!(true)));
        assert_eq!(value["state"], "suspect");
    }
    let text = desk.run(&["probe", "demo-id"]).exits(11).out;
    assert!(text.contains("one look confirms nothing"), "{text}");
}

#[test]
fn denied_unwrap_exits_11_and_with_the_control_key_denied_too_12() {
    let desk = Desk::new(CONFIG);
    desk.run(&["local-kms", "deny", "demo", "unwrap"]).exits(0);
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!((code, &value["failure_kind"], &value["control"]["healthy"]), (11, &json!("access_denied"), &json!(true)), "{value}");
    desk.run(&["local-kms", "deny", "operator", "unwrap"]).exits(0);
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!((code, &value["failure_kind"]), (12, &json!("credentials")), "{value}");
    assert_eq!(value["control"]["denied_like_us"], true);
    desk.run(&["local-kms", "deny", "operator", "wrap"]).exits(0);
    let ran = desk.run(&["probe", "demo-id"]).exits(12);
    assert!(ran.out.contains("it is us, not the owner of the key"), "{}", ran.out);
}

#[tokio::test]
async fn with_a_stored_canary_denied_wrap_alone_is_10_and_both_denied_is_11() {
    let desk = Desk::new(CONFIG);
    desk.run(&["local-kms", "list"]).exits(0);
    desk.run(&["local-kms", "deny", "demo", "wrap"]).exits(0);
    let ran = desk.run(&["probe", "demo-id"]).exits(12);
    assert!(ran.out.contains("with no stored canary unwrap could not be tried"), "{}", ran.out);
    desk.run(&["local-kms", "allow", "demo", "wrap"]).exits(0);
    store_canary(&desk, "local").await;
    desk.run(&["local-kms", "deny", "demo", "wrap"]).exits(0);
    assert_eq!(desk.json(&["probe", "demo-id"]).1["verdict"], "impaired");
    desk.run(&["probe", "demo-id"]).exits(10);
    desk.run(&["local-kms", "deny", "demo", "unwrap"]).exits(0);
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!((code, &value["failure_kind"]), (11, &json!("access_denied")), "{value}");
}

#[tokio::test]
async fn an_older_version_that_no_longer_opens_is_10() {
    let desk = Desk::new(CONFIG);
    desk.run(&["local-kms", "list"]).exits(0);
    store_canary(&desk, "local").await;
    desk.run(&["local-kms", "rotate", "demo"]).exits(0);
    store_canary(&desk, "local").await;
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!(code, 0, "{value}");
    assert!(legs(&value).contains(&("unwrap_version", "ok", &Value::Null)));
    desk.run(&["local-kms", "disable", "demo", "--version", "1"]).exits(0);
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!((code, &value["verdict"]), (10, &json!("impaired")), "{value}");
    let version = &value["versions"][0];
    assert_eq!((&version["version"], &version["usable"], &version["current"]), (&json!("1"), &json!(false), &json!(false)));
    assert_eq!(value["versions"][1]["current"], true);
}

#[tokio::test]
async fn a_denial_of_somebody_who_was_never_good_on_the_key_says_nothing_about_it() {
    let desk = Desk::new(CONFIG);
    desk.run(&["local-kms", "list"]).exits(0);
    store_canary(&desk, "arn:aws:sts::1:assumed-role/daemon").await;
    desk.run(&["local-kms", "deny", "demo", "unwrap"]).exits(0);
    let ran = desk.run(&["probe", "demo-id"]).exits(12);
    assert!(ran.out.contains("refused as local, who was never good on this key"), "{}", ran.out);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_does_not_stop_a_look() {
    let desk = Desk::new(CONFIG);
    desk.write("state.db", "this is no database, and long enough to look like one that was damaged");
    let ran = desk.run(&["probe", "demo-id"]).exits(0);
    assert!(ran.err.starts_with("note: stored canaries cannot be read"), "{}", ran.err);
}

#[test]
fn a_destroyed_or_damaged_kms_is_told_apart() {
    let desk = Desk::new(CONFIG);
    desk.run(&["local-kms", "list"]).exits(0);
    desk.run(&["local-kms", "schedule-deletion", "demo", "--in", "0s"]).exits(0);
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!((code, &value["failure_kind"]), (11, &json!("destroyed")), "{value}");
    desk.write("run/kms.json", "{ torn");
    let (code, value) = desk.json(&["probe", "demo-id"]);
    assert_eq!((code, &value["failure_kind"]), (12, &json!("provider_fault")), "{value}");
}

#[test]
fn an_unknown_key_exits_66_and_names_those_that_there_are() {
    let desk = Desk::new(CONFIG);
    for name in ["demo", "a/b", ""] {
        let ran = desk.run(&["probe", name]).exits(66);
        assert_eq!(ran.err, format!("key `{name}` is not in the configuration; it has: demo-id\n"));
    }
    let (code, value) = desk.json(&["probe", "nothing"]);
    assert_eq!((code, &value["error"]["exit_code"]), (66, &json!(66)));
    assert!(!desk.path().join("run").exists());
}

#[test]
fn a_bad_row_of_keys_from_is_inconclusive_and_says_why() {
    let desk = Desk::new(&format!("{CONFIG}\n[[keys_from]]\npath = \"more.csv\"\n"));
    desk.write("more.csv", "id,provider,key\nlost,nowhere,x\nfine,local,demo2\n");
    let ran = desk.run(&["probe", "lost"]).exits(12);
    assert!(ran.out.contains("misconfigured") && ran.out.contains("nowhere"), "{}", ran.out);
    desk.run(&["probe", "fine"]).exits(0);
}

const RECEIVERS: &str = r#"
[receivers.hook]
kind = "webhook"
url = "http://127.0.0.1:9/hook"
secret = "env:CMEK_TEST_HOOK_SECRET"
[[routes]]
receivers = ["hook"]
severity = "info"
"#;

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

#[test]
fn check_live_names_every_missing_variable_and_exits_78() {
    let aws = r#"
[providers.cloud]
kind = "aws"
region = "us-east-2"
assume_role = { arn = "arn:aws:iam::444455556666:role/probe", external_id = "env:CMEK_TEST_EXTERNAL_ID" }
control_key = "arn:aws:kms:us-east-2:111122223333:key/a"
"#;
    let desk = Desk::new(&format!("{CONFIG}{RECEIVERS}{aws}"));
    let ran = desk.run(&["check", "--live"]).exits(78);
    let lines: Vec<&str> = ran.err.lines().filter(|line| !line.starts_with("warning:")).collect();
    assert_eq!(lines.len(), 2, "{}", ran.err);
    assert!(lines[0].starts_with("provider cloud: ") && lines[0].ends_with("variable CMEK_TEST_EXTERNAL_ID is missing"), "{}", lines[0]);
    assert_eq!(lines[1], "receiver hook: secret: variable CMEK_TEST_HOOK_SECRET is missing");
    let (code, value) = desk.json(&["check", "--live"]);
    assert_eq!((code, &value["error"]["lines"].as_array().unwrap().len()), (78, &2));
    desk.run(&["check"]).exits(0);
}

#[test]
fn check_live_looks_at_every_key_and_exits_with_the_worst() {
    let more = "[[keys]]\nid = \"b\"\nprovider = \"local\"\nkey = \"b\"\nworkspaces = [\"b\"]\n";
    let desk = Desk::new(&format!("{CONFIG}{more}"));
    let (code, value) = desk.json(&["check", "--live"]);
    assert_eq!((code, value["keys"].as_array().unwrap().len(), &value["ok"]), (0, 2, &json!(true)), "{value}");
    assert_eq!((&value["errors"], &value["control_keys"][0]["control"]["healthy"]), (&json!([]), &json!(true)));
    desk.run(&["local-kms", "deny", "demo", "wrap"]).exits(0);
    desk.run(&["check", "--live"]).exits(12);
    desk.run(&["local-kms", "disable", "b"]).exits(0);
    let text = desk.run(&["check", "--live"]).exits(11).out;
    assert!(
        text.contains("b: revoked (disabled)") && text.contains("demo-id: inconclusive") && text.contains("control key of local: good"),
        "{text}"
    );
}

#[test]
fn check_live_tells_receivers_that_cannot_be_reached_and_no_log_shows_a_secret() {
    let desk = Desk::new(&format!("{CONFIG}{RECEIVERS}"));
    let ran = desk.run_with(&["check", "--live", "-vv"], &[("CMEK_TEST_HOOK_SECRET", SECRET), ("RUST_LOG", "trace")]).exits(12);
    assert!(ran.out.contains("receiver hook: NOT REACHABLE: "), "{}", ran.out);
    for text in [&ran.out, &ran.err] {
        assert!(!text.contains(SECRET) && !text.contains(&SECRET[6..]) && !text.contains("/hook"), "{text}");
    }
}

#[tokio::test]
async fn check_live_says_that_a_receiver_is_reachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepting = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        }
    });
    let desk = Arc::new(Desk::new(&format!("{CONFIG}{}", RECEIVERS.replace(":9/", &format!(":{port}/")))));
    let running = Arc::clone(&desk);
    let run = move || running.run_with(&["check", "--live", "--json"], &[("CMEK_TEST_HOOK_SECRET", SECRET)]);
    let ran = tokio::task::spawn_blocking(run).await.unwrap();
    accepting.abort();
    let value = ran.exits(0).json();
    assert_eq!(value["receivers"], json!([{ "receiver": "hook", "ok": true, "error": null }]));
}
