//! Commands that need no daemon.

use std::process::Stdio;

use cmek_watchdog::config::load::load;
use cmek_watchdog::journal::Store as _;
use cmek_watchdog::words::Role;
use serde_json::json;

use crate::desk::{CONFIG, Desk, run};
use crate::rows;

#[test]
fn a_good_configuration_exits_0_and_says_what_is_in_it() {
    let desk = Desk::new(CONFIG);
    let ran = desk.run(&["check"]).exits(0);
    assert_eq!(ran.out, "configuration ok: 1 providers, 1 keys, 1 policies, 0 receivers\n");
    assert_eq!(desk.json(&["check"]), (0, json!({ "ok": true, "errors": [], "warnings": [] })));
    assert!(!desk.path().join("run").exists(), "check makes nothing");
}

#[test]
fn a_bad_configuration_exits_78_with_one_error_a_line_and_the_first_one_exact() {
    let bad = CONFIG.replace("call_timeout = \"2s\"", "call_timeout = \"soon\"\nprobe_intervall = \"5s\"");
    let desk = Desk::new(&bad);
    let file = desk.config().display().to_string();
    let ran = desk.run(&["check"]).exits(78);
    let first = ran.err.lines().next().unwrap();
    assert_eq!(
        first,
        format!(
            "{file}:12:1: policies.default.probe_intervall: unknown field probe_intervall, expected one of: probe_interval, \
             suspect_interval, revoked_interval, version_interval, call_timeout, unlock, unlock_after, lock_after_stale, \
             alarm_after_stale, lease_ttl, warn_before_deletion, warn_before_expiry, rotation_max_age, lost_version, enforce, \
             unproven, witness_grace, flapping, stated_alone, on"
        )
    );
    assert!(ran.out.is_empty());
    let (code, value) = desk.json(&["check"]);
    assert_eq!(code, 78);
    assert_eq!(value["errors"].as_array().unwrap().len(), ran.err.lines().count());
    let error = &value["errors"][0];
    assert_eq!((&error["file"], &error["line"], &error["column"]), (&json!(file), &json!(12), &json!(1)));
    assert_eq!(error["field"], "policies.default.probe_intervall");
    assert_eq!(value["warnings"], json!([]));
}

#[test]
fn each_shipped_mistake_is_told_by_the_program_word_for_word() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/testdata");
    for name in ["unknown_field", "looks", "duration", "references", "syntax"] {
        let desk = Desk::new(&std::fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap());
        let told = desk.run(&["check"]).exits(78).err;
        let place = desk.config().display().to_string();
        let expected = std::fs::read_to_string(folder.join(format!("{name}.err"))).unwrap();
        assert_eq!(
            told.replace(&place, "config.toml").replace(&desk.path().display().to_string(), "/etc/cmek-watchdog"),
            expected,
            "{name}"
        );
    }
}

#[test]
fn a_missing_configuration_exits_78_for_every_command_that_needs_one() {
    let desk = Desk::new("");
    std::fs::remove_file(desk.config()).unwrap();
    for args in [
        &["check"][..],
        &["check", "--live"],
        &["probe", "demo"],
        &["plan"],
        &["local-kms", "list"],
        &["journal", "verify"],
        &["status"],
        &["lock", "w", "--reason", "r"],
        &["reload"],
    ] {
        let ran = desk.run(args).exits(78);
        assert_eq!(ran.err, format!("{}: cannot be read: entity not found\n", desk.config().display()), "{args:?}");
    }
    let (code, value) = desk.json(&["plan"]);
    assert_eq!((code, &value["error"]["code"], &value["error"]["exit_code"]), (78, &json!("bad_configuration"), &json!(78)));
}

#[test]
fn check_resolves_no_secret_and_the_contract_passes_as_it_stands() {
    let desk = Desk::new(include_str!("../data/contract.toml"));
    let ran = desk.run(&["check"]).exits(0);
    assert!(ran.err.starts_with("warning: ") && ran.err.lines().count() == 1, "{}", ran.err);
    assert_eq!(desk.json(&["check"]).1["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn a_token_is_shown_once_and_its_line_is_usable_in_a_configuration() {
    let token = run(&["token", "new", "gateway", "--role", "operate", "--json"]).exits(0).json();
    let text = token["token"].as_str().unwrap();
    assert!(text.starts_with("cmekw_") && text.len() == 49, "{text}");
    let desk = Desk::new(&CONFIG.replace("run_dir = \"run\"", &format!("run_dir = \"run\"\n{}", token["config_line"].as_str().unwrap())));
    desk.run(&["check"]).exits(0);
    let config = load(&desk.config()).unwrap().config;
    assert_eq!(config.server.tokens, [crate::doors::token("gateway", Role::Operate, text)]);
    let other = run(&["token", "new", "gateway", "--role", "operate"]).exits(0);
    assert!(!other.out.contains(text) && other.out.contains("tokens = [{ name = \"gateway\", role = \"operate\", sha256 = \""));
}

#[test]
fn the_local_kms_is_made_with_the_configured_keys_and_altered_act_by_act() {
    let desk = Desk::new(CONFIG);
    let state = |args: &[&str]| {
        let (code, value) = desk.json(args);
        assert_eq!(code, 0, "{args:?}: {value}");
        (value["state"].as_str().unwrap_or_default().to_owned(), value)
    };
    // The first act makes the file with every configured key, not with the new one alone.
    assert_eq!(state(&["local-kms", "create", "extra"]).0, "enabled");
    let names: Vec<String> =
        desk.json(&["local-kms", "list"]).1["items"].as_array().unwrap().iter().map(|k| k["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["demo", "extra", "operator"]);
    assert_eq!(state(&["local-kms", "rotate", "demo"]).1["current_version"], "2");
    assert_eq!(state(&["local-kms", "disable", "demo"]).0, "disabled");
    assert_eq!(state(&["local-kms", "enable", "demo"]).0, "enabled");
    assert_eq!(state(&["local-kms", "disable", "demo", "--version", "1"]).1["versions"][0]["state"], "disabled");
    assert_eq!(state(&["local-kms", "enable", "demo", "--version", "1"]).1["versions"][0]["state"], "enabled");
    let (pending, value) = state(&["local-kms", "schedule-deletion", "demo", "--in", "1h"]);
    assert_eq!(pending, "pending_deletion");
    assert!(value["deletion_at"].is_string());
    assert_eq!(state(&["local-kms", "cancel-deletion", "demo", "--provider", "local"]).0, "enabled");
    assert_eq!(state(&["local-kms", "deny", "demo", "wrap", "describe"]).1["denied"], json!(["wrap", "describe"]));
    assert_eq!(state(&["local-kms", "allow", "demo", "wrap"]).1["denied"], json!(["describe"]));
    let text = desk.run(&["local-kms", "list"]).exits(0).out;
    assert!(
        text.lines().any(|line| line.starts_with("demo ") && line.contains("1 enabled, 2 enabled") && line.contains("describe")),
        "{text}"
    );
}

#[test]
fn the_local_kms_refuses_with_the_right_exit_code() {
    let desk = Desk::new(CONFIG);
    desk.run(&["local-kms", "list"]).exits(0);
    desk.run(&["local-kms", "disable", "nothing"]).exits(66);
    desk.run(&["local-kms", "disable", "demo", "--version", "9"]).exits(66);
    desk.run(&["local-kms", "create", "demo"]).exits(77);
    desk.run(&["local-kms", "cancel-deletion", "demo"]).exits(77);
    desk.run(&["local-kms", "create", "a b"]).exits(2);
    std::fs::write(desk.path().join("run/kms.json"), "{ torn").unwrap();
    let ran = desk.run(&["local-kms", "list"]).exits(74);
    assert!(ran.err.contains("is torn or damaged at line 1"), "{}", ran.err);
    let two = CONFIG.to_owned() + "[providers.other]\nkind = \"local\"\npath = \"other.json\"\n";
    let desk = Desk::new(&two);
    assert!(desk.run(&["local-kms", "list"]).exits(2).err.contains("name one by --provider: local, other"));
    desk.run(&["local-kms", "list", "--provider", "other"]).exits(0);
}

/// A closed store with records 1 to 3.
async fn journal(desk: &Desk) {
    let store = rows::open(&desk.path().join("state.db")).await;
    for (n, name) in (1..).zip(["one", "two", "three"]) {
        store.commit(&rows::records(n, &[name])).await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn the_journal_is_verified_and_exported_without_a_daemon() {
    let desk = Desk::new(CONFIG);
    journal(&desk).await;
    let ran = desk.run(&["journal", "verify"]).exits(0);
    assert!(ran.out.starts_with("whole: 3 records, head 3:"), "{}", ran.out);
    let head = ran.out.trim().rsplit(' ').next().unwrap().to_owned();
    desk.run(&["journal", "verify", "--head", &head]).exits(0);
    desk.run(&["journal", "verify", "--head", "2:00"]).exits(1);
    let (code, value) = desk.json(&["journal", "verify"]);
    assert_eq!((code, &value["result"], &value["rows"], &value["head"]["sequence"]), (0, &json!("whole"), &json!(3), &json!(3)));
    let lines = |args: &[&str]| -> Vec<u64> {
        let out = desk.run(args).exits(0).out;
        out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].as_u64().unwrap()).collect()
    };
    assert_eq!(lines(&["journal", "export"]), [1, 2, 3]);
    assert_eq!(lines(&["journal", "export", "--after", "2"]), [3]);
    assert_eq!(lines(&["journal", "export", "--json"]), [1, 2, 3]);
    assert_eq!(lines(&["journal", "export", "--after", "9"]), [0_u64; 0]);
}

#[tokio::test]
async fn an_altered_journal_exits_1_and_names_the_record() {
    let desk = Desk::new(CONFIG);
    journal(&desk).await;
    rows::tamper(&desk.path().join("state.db"), "UPDATE journal SET actor = 'nobody' WHERE sequence = 2").await;
    let ran = desk.run(&["journal", "verify"]).exits(1);
    assert!(ran.out.starts_with("ALTERED at record 2: "), "{}", ran.out);
    assert_eq!(desk.json(&["journal", "verify"]).1["sequence"], 2);
}

#[tokio::test]
async fn a_torn_tail_that_the_daemon_closed_exits_3() {
    let desk = Desk::new(CONFIG);
    journal(&desk).await;
    let path = desk.path().join("state.db");
    rows::tamper(&path, "DELETE FROM journal WHERE sequence = 3").await;
    rows::open(&path).await.close().await;
    let ran = desk.run(&["journal", "verify"]).exits(3);
    assert!(ran.out.starts_with("torn tail, closed "), "{}", ran.out);
}

#[test]
fn a_store_that_is_not_there_exits_74() {
    let desk = Desk::new(CONFIG);
    for act in ["verify", "export"] {
        let ran = desk.run(&["journal", act]).exits(74);
        assert!(ran.err.starts_with("no database at ") && ran.out.is_empty(), "{}", ran.err);
    }
    let (code, value) = desk.json(&["journal", "verify"]);
    assert_eq!((code, &value["error"]["code"]), (74, &json!("store")));
    let desk = Desk::new(&CONFIG.replace("sqlite://state.db", "postgres://watchdog@db/state"));
    assert!(desk.run(&["journal", "verify"]).exits(74).err.contains("GET /v1/activity"));
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_fault() {
    let desk = Desk::new(CONFIG);
    journal(&desk).await;
    for args in [&["journal", "export"][..], &["plan"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = desk.command(args).stdout(Stdio::from(writer)).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_plan_tells_calls_cost_quota_and_promise() {
    let desk = Desk::new(include_str!("../data/contract.toml"));
    let text = desk.run(&["plan"]).exits(0).out;
    for part in ["provider aws-prod (aws), 1 keys", "list price", "10,000 to 100,000", "60,000", "4,000", "access_denied", "locked", "197s"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, value) = desk.json(&["plan"]);
    assert_eq!(code, 0);
    assert_eq!(value["providers"].as_array().unwrap().len(), 4);
    assert_eq!(value["policies"][0]["policy"], "default");
}
