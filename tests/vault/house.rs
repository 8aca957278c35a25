//! A daemon with a vault, three tokens, and two workspaces of two keys.

use serde_json::{Value, json};

use crate::support::{Answer, DEMO, Daemon, Place, QUICK, request};

pub const SAFETY: &str = "safety-token-of-the-test";
pub const READ: &str = "read-token-of-the-test";
pub const OPERATE: &str = "operate-token-of-the-test";

pub const VAULT: &str = r#"
[providers.spare]
kind = "local"
path = "kms/spare.json"
[vault]
operator_key = { provider = "local", key = "vault-operator" }
recovery_key = { provider = "spare", key = "vault-spare" }
[[keys]]
id = "other"
provider = "local"
key = "other"
workspaces = ["wrkspc_other"]
"#;

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn head(place: &Place) -> String {
    let token = |name: &str, role: &str, text: &str| {
        format!("[[server.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{}\"\n", sha256(text))
    };
    let tokens = [token("reviewer", "safety", SAFETY), token("dashboard", "read", READ), token("sre", "operate", OPERATE)].concat();
    let head = place.head("", "state/state.db");
    let (server, rest) = head.split_once("[store]").unwrap();
    format!("{server}{tokens}[store]{rest}")
}

pub fn place() -> Place {
    place_with(VAULT)
}

pub fn place_with(vault: &str) -> Place {
    let place = Place::empty();
    place.write(&head(&place), &format!("{QUICK}{DEMO}{vault}"));
    place
}

pub fn call(daemon: &Daemon, token: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
    with(daemon, token, method, path, &[], body)
}

pub fn with(daemon: &Daemon, token: &str, method: &str, path: &str, more: &[(&str, &str)], body: Option<&Value>) -> Answer {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("authorization", bearer.as_str())];
    headers.extend(more);
    request(daemon.port, method, path, &headers, body).unwrap_or_else(|| panic!("no answer to {path}:\n{}", daemon.log()))
}

pub fn record(score: f64) -> Value {
    json!({
        "pattern": "PAT-0042", "indicator": "credential_stuffing", "score": score, "observed_at": "2026-11-25T10:00:00.000Z",
        "subject": "user:17", "request": "req_1", "related": ["case:9"],
    })
}

pub fn at(workspace: &str, id: &str) -> String {
    format!("/v1/workspaces/{workspace}/safety-metadata/{id}")
}

pub fn put(daemon: &Daemon, workspace: &str, id: &str, score: f64) -> Answer {
    call(daemon, SAFETY, "PUT", &at(workspace, id), Some(&record(score)))
}

pub fn get(daemon: &Daemon, workspace: &str, id: &str) -> Answer {
    call(daemon, SAFETY, "GET", &at(workspace, id), None)
}

pub fn read(daemon: &Daemon, path: &str) -> Value {
    let answer = call(daemon, READ, "GET", path, None);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

pub fn access(daemon: &Daemon, workspace: &str) -> String {
    read(daemon, &format!("/v1/workspaces/{workspace}"))["access"].as_str().unwrap().to_owned()
}

pub fn metric(daemon: &Daemon, series: &str) -> Option<f64> {
    let text = call(daemon, READ, "GET", "/metrics", None).text();
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

pub fn events(daemon: &Daemon, of: &str) -> Vec<Value> {
    let all = read(daemon, "/v1/activity?limit=1000");
    all["items"].as_array().unwrap().iter().filter(|record| record["type"] == of).cloned().collect()
}

/// Rows of the stopped daemon's database.
pub async fn rows(place: &Place, sql: &'static str) -> Vec<sqlx::sqlite::SqliteRow> {
    let mut conn = open(place).await;
    sqlx::query(sql).fetch_all(&mut conn).await.unwrap()
}

pub async fn open(place: &Place) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions as _;
    sqlx::sqlite::SqliteConnectOptions::new().filename(place.path("state/state.db")).connect().await.unwrap()
}
