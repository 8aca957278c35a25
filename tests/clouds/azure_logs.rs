//! Azure's log services at wire level, in the clear: the query API of Log Analytics and the activity log of
//! the resource manager. It knows the clauses that our reader writes, and runs no other query language.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::sync::{Arc, Mutex, MutexGuard};

use cmek_watchdog::time::Wall;
use serde_json::{Value, json};

use crate::https::{Asked, Reply, Server};

#[derive(Default)]
pub struct Logs {
    /// Rows of `AZKVAuditLogs`.
    pub rows: Vec<Value>,
    /// Events of the activity log.
    pub activity: Vec<Value>,
    pub asked: Vec<Asked>,
    /// The next answers, in place of the service's own.
    pub faults: Vec<Reply>,
    pub page: usize,
    address: String,
}

pub struct AzureLogs {
    pub address: String,
    logs: Arc<Mutex<Logs>>,
    _server: Server,
}

pub const WORKSPACE: &str = "11111111-2222-3333-4444-555555555555";
pub const TOKEN: &str = "reader";

impl AzureLogs {
    pub async fn start() -> Self {
        let logs = Arc::new(Mutex::new(Logs { page: 2, ..Logs::default() }));
        let shared = Arc::clone(&logs);
        let server = crate::https::http(crate::https::handler(move |asked| answer(&mut shared.lock().unwrap(), &asked))).await;
        let address = format!("http://{}", server.addr);
        logs.lock().unwrap().address = address.clone();
        Self { address, logs, _server: server }
    }
    pub fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap()
    }
}

/// A row as Log Analytics has it.
pub fn row(at: Wall, operation: &str, id: &str, correlation: &str, upn: &str, enabled: Option<bool>) -> Value {
    json!({
        "TimeGenerated": at.to_string(), "OperationName": operation, "HttpStatusCode": 200, "CorrelationId": correlation, "CallerIpAddress": "192.0.2.7",
        "ClientInfo": "azure-cli/2.80", "Id": id,
        "Identity": json!({"claim": {"appid": "a1", "oid": "o1", "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn": upn}}).to_string(),
        "KeyProperties": enabled.map(|enabled| json!({"attributes": {"enabled": enabled}}).to_string()),
    })
}

const COLUMNS: [(&str, &str); 9] = [
    ("TimeGenerated", "datetime"),
    ("OperationName", "string"),
    ("HttpStatusCode", "int"),
    ("CorrelationId", "string"),
    ("CallerIpAddress", "string"),
    ("ClientInfo", "string"),
    ("Id", "string"),
    ("Identity", "dynamic"),
    ("KeyProperties", "dynamic"),
];

fn answer(logs: &mut Logs, asked: &Asked) -> Reply {
    logs.asked.push(asked.clone());
    if !logs.faults.is_empty() {
        return logs.faults.remove(0);
    }
    if asked.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return Reply::json(
            401,
            &json!({"error": {"code": "InvalidTokenError", "message": "The provided authentication is not valid for this resource"}}),
        );
    }
    if let Some(rest) = asked.path.strip_prefix("/v1/workspaces/") {
        return match rest.strip_suffix("/query") {
            Some("missing") => {
                Reply::json(404, &json!({"error": {"code": "WorkspaceNotFoundError", "message": "The workspace could not be found"}}))
            }
            Some("denied") => Reply::json(403, &json!({"error": {"code": "InsufficientAccessError", "message": "no access"}})),
            Some(_) => Reply::json(200, &query(logs, asked.json()["query"].as_str().unwrap_or(""))),
            None => Reply::json(404, &json!({"error": {"code": "PathNotFoundError", "message": "no"}})),
        };
    }
    if asked.path.ends_with("/providers/Microsoft.Insights/eventtypes/management/values") {
        return Reply::json(200, &activity(logs, asked));
    }
    Reply::json(404, &json!({"error": {"code": "PathNotFoundError", "message": "no"}}))
}

fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
    text.split_once(start)?.1.split_once(end).map(|(found, _)| found)
}

fn time_of(value: &Value, name: &str) -> Wall {
    value[name].as_str().unwrap().parse().unwrap()
}

fn query(logs: &Logs, text: &str) -> Value {
    let from = between(text, "TimeGenerated >= datetime(", ")").and_then(|t| t.parse::<Wall>().ok());
    let to = between(text, "TimeGenerated < datetime(", ")").and_then(|t| t.parse::<Wall>().ok());
    let skip: usize = between(text, "RowNumber > ", " ").and_then(|n| n.parse().ok()).unwrap_or(0);
    let take: usize = text.rsplit_once("take ").and_then(|(_, n)| n.trim().parse().ok()).unwrap_or(usize::MAX);
    let changes_only = text.contains("has_any");
    let mut rows: Vec<&Value> = logs
        .rows
        .iter()
        .filter(|row| {
            from.is_none_or(|from| time_of(row, "TimeGenerated") >= from) && to.is_none_or(|to| time_of(row, "TimeGenerated") < to)
        })
        .filter(|row| !changes_only || !["KeyUnwrap", "KeyWrap", "KeyGet"].contains(&row["OperationName"].as_str().unwrap()))
        .collect();
    rows.sort_by_key(|row| time_of(row, "TimeGenerated"));
    let cells = |row: &&Value| COLUMNS.iter().map(|(name, _)| row[*name].clone()).collect::<Vec<_>>();
    let rows: Vec<Vec<Value>> = rows.iter().skip(skip).take(take).map(cells).collect();
    let columns: Vec<Value> = COLUMNS.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect();
    json!({"tables": [{"name": "PrimaryResult", "columns": columns, "rows": rows}]})
}

fn activity(logs: &Logs, asked: &Asked) -> Value {
    let query: std::collections::BTreeMap<String, String> = url::form_urlencoded::parse(asked.query.as_bytes()).into_owned().collect();
    assert_eq!(query["api-version"], "2015-04-01");
    let filter = &query["$filter"];
    let bound = |word: &str| between(filter, &format!("eventTimestamp {word} '"), "'").unwrap().parse::<Wall>().unwrap();
    let (from, to) = (bound("ge"), bound("le"));
    let provider = between(filter, "resourceProvider eq '", "'").unwrap();
    let fits = |event: &&Value| {
        let at = time_of(event, "eventTimestamp");
        at >= from && at <= to && event["resourceProviderName"]["value"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(provider))
    };
    let found: Vec<&Value> = logs.activity.iter().filter(fits).collect();
    let skip: usize = query.get("$skipToken").and_then(|n| n.parse().ok()).unwrap_or(0);
    let page: Vec<&Value> = found.iter().skip(skip).take(logs.page).copied().collect();
    let mut answer = json!({ "value": page });
    if skip + logs.page < found.len() {
        let mut link = url::Url::parse(&format!("{}{}", logs.address, asked.path)).unwrap();
        link.query_pairs_mut()
            .append_pair("api-version", "2015-04-01")
            .append_pair("$filter", filter)
            .append_pair("$skipToken", &(skip + logs.page).to_string());
        answer["nextLink"] = json!(link.as_str());
    }
    answer
}
