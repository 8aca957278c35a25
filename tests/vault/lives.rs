//! The vault through locks, restarts, crashes, tampering, and the loss of its own keys.

use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use cmek_watchdog::key::KeyVersion;
use cmek_watchdog::kms::local::LocalWrapBytes;
use cmek_watchdog::kms::{WrapBytes, Wrapped};
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::house::{SAFETY, VAULT, access, call, events, get, head, metric, open, place, put, read, rows};
use crate::support::{DEMO, Daemon, PATIENCE, Place, QUICK};

fn local(place: &Place, arguments: &[&str]) {
    place.good(&[&["local-kms", "--provider", "local"], arguments].concat());
}

fn list(daemon: &Daemon, workspace: &str) -> crate::support::Answer {
    call(daemon, SAFETY, "GET", &format!("/v1/workspaces/{workspace}/safety-metadata"), None)
}

#[test]
fn it_reads_and_writes_in_every_state_of_the_customers_key_and_after_kill_9() {
    let place = place();
    let mut daemon = place.start();
    daemon.wait("demo is active", PATIENCE, || read(&daemon, "/v1/keys/demo")["state"] == "active");
    put(&daemon, "wrkspc_demo", "r0", 0.25);
    let mut n = 0;
    let mut both = |daemon: &Daemon, what: &str| {
        n += 1;
        assert_eq!(put(daemon, "wrkspc_demo", &format!("r{n}"), 0.5).status, 201, "{what}");
        let back = get(daemon, "wrkspc_demo", "r0");
        assert_eq!((back.status, back.json()["data"]["score"].clone()), (200, json!(0.25)), "{what}");
        assert_eq!(list(daemon, "wrkspc_demo").json()["items"].as_array().unwrap().len(), n + 1, "{what}");
    };
    both(&daemon, "active");
    local(&place, &["disable", "demo"]);
    daemon.wait("locked", PATIENCE, || access(&daemon, "wrkspc_demo") == "locked");
    both(&daemon, "disabled");
    daemon.kill();
    daemon = place.start();
    assert_eq!(access(&daemon, "wrkspc_demo"), "locked");
    both(&daemon, "after kill -9, locked");
    local(&place, &["enable", "demo"]);
    daemon.wait("open", PATIENCE, || access(&daemon, "wrkspc_demo") == "open");
    local(&place, &["deny", "demo", "unwrap"]);
    daemon.wait("locked", PATIENCE, || access(&daemon, "wrkspc_demo") == "locked");
    both(&daemon, "denied");
    // Backed up as any SQLite database, and opened from the copy.
    let (db, copy) = (place.path("state/state.db"), place.path("state/copy.db"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut conn = open(&place).await;
        sqlx::query("VACUUM INTO ?1").bind(copy.to_str().unwrap()).execute(&mut conn).await.unwrap();
    });
    daemon.stop();
    for suffix in ["-wal", "-shm"] {
        let _absent = std::fs::remove_file(format!("{}{suffix}", db.display()));
    }
    std::fs::rename(&copy, &db).unwrap();
    let daemon = place.start();
    both(&daemon, "from a backup");
    assert_eq!(call(&daemon, SAFETY, "GET", "/healthz", None).status, 200);
}

#[test]
fn the_operators_key_gone_is_a_503_and_a_page_and_the_recovery_key_opens_everything() {
    let place = place();
    let daemon = place.start();
    put(&daemon, "wrkspc_demo", "r1", 0.5);
    daemon.wait("both wraps", PATIENCE, || read(&daemon, "/v1/vault")["data_keys"] == json!({ "all": 1, "to_rewrap": 0 }));
    assert_eq!(metric(&daemon, "cmek_vault_readable"), Some(1.0));
    local(&place, &["disable", "vault-operator"]);
    daemon.wait("told", PATIENCE, || events(&daemon, "vault.operator_key").len() == 1);
    assert_eq!(metric(&daemon, "cmek_vault_key_healthy{role=\"operator\"}"), Some(0.0));
    assert_eq!(access(&daemon, "wrkspc_demo"), "open");
    daemon.stop();
    // Nothing is in memory now: the recovery key opens it.
    let daemon = place.start();
    assert_eq!(get(&daemon, "wrkspc_demo", "r1").json()["data"]["score"], 0.5);
    assert_eq!(put(&daemon, "wrkspc_demo", "r2", 0.5).status, 201);
    daemon.stop();
    place.good(&["local-kms", "--provider", "spare", "disable", "vault-spare"]);
    let daemon = place.start();
    for answer in [get(&daemon, "wrkspc_demo", "r1"), list(&daemon, "wrkspc_demo"), put(&daemon, "wrkspc_demo", "r3", 0.5)] {
        assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (503, "operator_key_unavailable"));
        assert!(answer.header("retry-after").is_some());
    }
    daemon.wait("not readable", PATIENCE, || metric(&daemon, "cmek_vault_readable") == Some(0.0));
    assert_eq!(call(&daemon, SAFETY, "GET", "/healthz", None).status, 200);
    assert_eq!(access(&daemon, "wrkspc_demo"), "open");
    // Not told again by a restart; told once more when the last of them works.
    assert_eq!(events(&daemon, "vault.operator_key").len(), 2, "operator, then recovery");
    place.good(&["local-kms", "--provider", "spare", "enable", "vault-spare"]);
    local(&place, &["enable", "vault-operator"]);
    daemon.wait("good again", PATIENCE, || events(&daemon, "vault.keys_good").len() == 1);
    daemon.wait("readable again", PATIENCE, || get(&daemon, "wrkspc_demo", "r1").json()["data"]["score"] == 0.5);
}

#[test]
fn after_a_rotation_data_keys_are_wrapped_anew_and_a_lost_operator_key_is_replaced() {
    let place = place();
    let daemon = place.start();
    put(&daemon, "wrkspc_demo", "r1", 0.5);
    local(&place, &["rotate", "vault-operator"]);
    daemon.wait("wrapped anew", PATIENCE, || metric(&daemon, "cmek_vault_rewraps_total{result=\"ok\"}").is_some_and(|n| n >= 1.0));
    let status = place.good(&["vault", "status", "--json"]).json();
    assert_eq!((&status["readable"], &status["data_keys"]), (&json!(true), &json!({ "all": 1, "to_rewrap": 0 })));
    let again = place.good(&["vault", "rewrap", "--all", "--json"]).json();
    assert_eq!(again, json!({ "rewrapped": 1, "failed": 0, "left": 0 }));
    daemon.stop();
    // The operator's key is destroyed: another takes its place, and the recovery key opens.
    let changed = VAULT.replace("key = \"vault-operator\"", "key = \"vault-second\"");
    place.write(&head(&place), &format!("{QUICK}{DEMO}{changed}"));
    local(&place, &["create", "vault-second"]);
    local(&place, &["disable", "vault-operator"]);
    let daemon = place.start();
    assert_eq!(get(&daemon, "wrkspc_demo", "r1").json()["data"]["score"], 0.5);
    daemon.wait("under the new key", PATIENCE, || read(&daemon, "/v1/vault")["data_keys"] == json!({ "all": 1, "to_rewrap": 0 }));
    daemon.stop();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let wraps = wraps(&runtime.block_on(rows(&place, "SELECT wraps FROM vault_data_keys"))[0]);
    let names: Vec<&str> = wraps.iter().map(|wrap| wrap["key"].as_str().unwrap()).collect();
    assert_eq!(names, ["vault-second", "vault-spare"]);
    // And it opens without the recovery key from now on.
    place.good(&["local-kms", "--provider", "spare", "disable", "vault-spare"]);
    let daemon = place.start();
    assert_eq!(get(&daemon, "wrkspc_demo", "r1").json()["data"]["score"], 0.5);
}

fn wraps(row: &sqlx::sqlite::SqliteRow) -> Vec<Value> {
    serde_json::from_str(&row.get::<String, _>("wraps")).unwrap()
}

#[test]
fn a_moved_or_altered_row_is_named_as_damaged_and_the_others_are_still_there() {
    let place = place();
    let daemon = place.start();
    for (workspace, id) in
        [("wrkspc_demo", "r1"), ("wrkspc_demo", "r2"), ("wrkspc_demo", "r3"), ("wrkspc_demo", "r4"), ("wrkspc_other", "r1")]
    {
        put(&daemon, workspace, id, 0.5);
    }
    daemon.stop();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let damage = |sql: &'static str| {
        runtime.block_on(async {
            let done = sqlx::query(sql).execute(&mut open(&place).await).await.unwrap();
            assert_eq!(done.rows_affected(), 1, "{sql}");
        });
    };
    // A row of another workspace, an envelope of another record, a moved nonce, an older revision's number.
    damage(
        "UPDATE vault_records SET envelope = (SELECT envelope FROM vault_records WHERE workspace = 'wrkspc_other') WHERE workspace = 'wrkspc_demo' AND id = 'r1'",
    );
    damage(
        "UPDATE vault_records SET envelope = CAST(substr(envelope, 1, 40) || x'00' || substr(envelope, 42) AS BLOB) WHERE workspace = 'wrkspc_demo' AND id = 'r2'",
    );
    damage("UPDATE vault_records SET revision = 7 WHERE workspace = 'wrkspc_demo' AND id = 'r3'");
    let daemon = place.start();
    for id in ["r1", "r2", "r3"] {
        let answer = get(&daemon, "wrkspc_demo", id);
        assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (500, "record_damaged"), "{id}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(id));
    }
    let page = list(&daemon, "wrkspc_demo");
    assert_eq!(page.status, 200);
    let damaged: Vec<bool> = page.json()["items"].as_array().unwrap().iter().map(|item| item["damaged"].as_bool().unwrap()).collect();
    assert_eq!(damaged, [true, true, true, false]);
    assert_eq!(get(&daemon, "wrkspc_other", "r1").status, 200);
    assert!(metric(&daemon, "cmek_vault_operations_total{operation=\"get\",result=\"damaged\"}").is_some_and(|n| n >= 3.0));
}

#[test]
fn an_event_that_a_crash_cut_off_is_written_after_the_restart() {
    let place = place();
    let daemon = place.start();
    let body = json!({ "reason_code": "legal_hold", "person": "A. Ward", "content": "kept" });
    let made = call(&daemon, SAFETY, "POST", "/v1/workspaces/wrkspc_demo/preservations", Some(&body)).json();
    daemon.kill();
    // As a crash between the row and its event leaves it.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { sqlx::query("UPDATE vault_preservations SET journaled = 0").execute(&mut open(&place).await).await.unwrap() });
    let daemon = place.start();
    daemon.wait("written", PATIENCE, || events(&daemon, "safety.preserved").len() == 2);
    let event = &events(&daemon, "safety.preserved")[1];
    assert_eq!((&event["actor"], &event["event_id"]), (&json!("vault"), &made["id"]));
    let listed = || call(&daemon, SAFETY, "GET", "/v1/workspaces/wrkspc_demo/preservations", None).json()["items"][0]["journaled"].clone();
    daemon.wait("noted", PATIENCE, || listed() == json!(true));
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(events(&daemon, "safety.preserved").len(), 2, "once is enough");
}

#[test]
fn another_program_opens_a_record_from_the_documented_format() {
    let place = place();
    let daemon = place.start();
    assert_eq!(put(&daemon, "wrkspc_demo", "r1", 0.625).status, 201);
    daemon.stop();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let keys = runtime.block_on(rows(&place, "SELECT id, wraps FROM vault_data_keys"));
    let wrap = wraps(&keys[0]).into_iter().find(|wrap| wrap["role"] == "operator").unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(wrap["bytes"].as_str().unwrap()).unwrap();
    let wrapped = Wrapped {
        bytes: bytes.into(),
        digest: [0; 32],
        version: Some(KeyVersion::new(wrap["version"].as_str().unwrap())),
        sealed_with: wrap["sealed_with"].as_str().unwrap().into(),
    };
    let operator = LocalWrapBytes::new(place.kms(), "vault-operator");
    let data_key = runtime.block_on(operator.unwrap_bytes(&wrapped)).result.unwrap();
    let row =
        &runtime.block_on(rows(&place, "SELECT workspace, id, schema, revision, written_at, data_key, envelope FROM vault_records"))[0];
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let asked = json!({
        "key": hex(&data_key), "kind": "record", "workspace": row.get::<String, _>(0), "id": row.get::<String, _>(1),
        "schema": row.get::<i64, _>(2), "revision": row.get::<i64, _>(3), "written_at": row.get::<i64, _>(4),
        "data_key": row.get::<String, _>(5), "envelope": hex(&row.get::<Vec<u8>, _>(6)),
    });
    let venv = std::env::var("CMEK_TEST_VENV").expect("CMEK_TEST_VENV names a Python with `cryptography`; tests/run sets it");
    let script = crate::support::repository().join("tests/support/vault_referee.py");
    let out = Command::new(format!("{venv}/bin/python")).arg(script).arg(asked.to_string()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let opened: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&opened["record"]["score"], &opened["moved"]), (&json!(0.625), &json!("refused")));
}
