//! Cloud Logging of the fake: audit entries that key changes leave behind, and the two calls that
//! read and write them. A filter clause that it does not know is refused, never ignored.

use cmek_watchdog::time::Wall;
use serde_json::{Value, json};

use super::keys::{Outcome, Status};

/// One thing that somebody did.
pub struct Act<'a> {
    pub method: &'a str,
    pub resource: &'a str,
    pub principal: &'a str,
    pub user_agent: &'a str,
    pub reason: &'a str,
    pub refused: Option<&'a Status>,
    /// Uses of a key go to the data-access log, changes to the activity log.
    pub data_access: bool,
}

#[derive(Default)]
pub struct Log {
    entries: Vec<Value>,
    /// Data-access logs are off unless the project switches them on, as at Google.
    pub data_access: bool,
}

impl Log {
    pub fn record(&mut self, now: Wall, act: &Act<'_>) {
        if act.data_access && !self.data_access {
            return;
        }
        let mut parts = act.resource.split('/');
        let project = parts.nth(1).unwrap_or("");
        let stream = if act.data_access { "data_access" } else { "activity" };
        let mut payload = json!({
            "@type": "type.googleapis.com/google.cloud.audit.AuditLog",
            "serviceName": "cloudkms.googleapis.com",
            "methodName": act.method,
            "resourceName": act.resource,
            "authenticationInfo": {"principalEmail": act.principal},
            "requestMetadata": {"callerSuppliedUserAgent": act.user_agent, "requestAttributes": {"reason": act.reason}},
        });
        if let Some(status) = act.refused {
            payload["status"] = json!({"code": if status.http == 403 { 7 } else { 9 }, "message": status.message});
        }
        self.entries.push(json!({
            "insertId": format!("fake-{}", self.entries.len()),
            "logName": format!("projects/{project}/logs/cloudaudit.googleapis.com%2F{stream}"),
            "resource": {"type": "cloudkms_cryptokey", "labels": {"project_id": project}},
            "timestamp": now.to_string(),
            "severity": if act.refused.is_some() { "ERROR" } else { "NOTICE" },
            "protoPayload": payload,
        }));
    }

    /// `entries:write`
    pub fn write(&mut self, now: Wall, body: &Value) -> Outcome<Value> {
        let entries = body["entries"].as_array().ok_or_else(|| Status::invalid("entries is required"))?;
        for entry in entries {
            let mut entry = entry.clone();
            for field in ["logName", "resource"] {
                if entry[field].is_null() {
                    entry[field] = body[field].clone();
                }
            }
            if entry["logName"].as_str().is_none() {
                return Err(Status::invalid("logName is required"));
            }
            if entry["timestamp"].is_null() {
                entry["timestamp"] = json!(now.to_string());
            }
            self.entries.push(entry);
        }
        Ok(json!({}))
    }

    /// `entries:list`
    pub fn list(&self, body: &Value) -> Outcome<Value> {
        let projects: Vec<&str> = body["resourceNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if projects.is_empty() {
            return Err(Status::invalid("resourceNames is required"));
        }
        let filter = body["filter"].as_str().unwrap_or("");
        let clauses = filter.split(" AND ").flat_map(str::lines).map(str::trim).filter(|text| !text.is_empty());
        let clauses = clauses.map(Clause::parse).collect::<Outcome<Vec<_>>>()?;
        let in_projects =
            |entry: &Value| projects.iter().any(|name| entry["logName"].as_str().is_some_and(|log| log.starts_with(&format!("{name}/"))));
        let mut found: Vec<&Value> =
            self.entries.iter().filter(|entry| in_projects(entry) && clauses.iter().all(|clause| clause.meets(entry))).collect();
        found.sort_by_key(|entry| entry["timestamp"].as_str().and_then(|text| text.parse::<Wall>().ok()));
        if body["orderBy"].as_str() == Some("timestamp desc") {
            found.reverse();
        }
        let from: usize = body["pageToken"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        let size = body["pageSize"].as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(50);
        let page: Vec<&Value> = found.iter().skip(from).take(size).copied().collect();
        let mut answer = json!({ "entries": page });
        if from + size < found.len() {
            answer["nextPageToken"] = json!((from + size).to_string());
        }
        Ok(answer)
    }
}

/// `field=value`, `field:part`, `timestamp>=time`.
struct Clause {
    path: String,
    relation: &'static str,
    value: String,
}

impl Clause {
    fn parse(text: &str) -> Outcome<Self> {
        let relation = [">=", "<=", ">", "<", "=", ":"].into_iter().find(|relation| text.contains(relation));
        let (path, value) =
            relation.and_then(|relation| text.split_once(relation)).ok_or_else(|| Status::invalid(format!("bad filter: {text}")))?;
        let path = path.trim().to_owned();
        let known =
            ["timestamp", "logName", "severity", "insertId", "resource.type"].contains(&path.as_str()) || path.starts_with("protoPayload.");
        if !known {
            return Err(Status::invalid(format!("bad filter: {text}")));
        }
        Ok(Self { path, relation: relation.unwrap_or("="), value: value.trim().trim_matches('"').to_owned() })
    }

    fn meets(&self, entry: &Value) -> bool {
        let found = entry.pointer(&format!("/{}", self.path.replace('.', "/"))).and_then(Value::as_str).unwrap_or("");
        let order = if self.path == "timestamp" {
            found.parse::<Wall>().ok().cmp(&self.value.parse::<Wall>().ok())
        } else {
            found.cmp(self.value.as_str())
        };
        match self.relation {
            ">=" => order.is_ge(),
            "<=" => order.is_le(),
            ">" => order.is_gt(),
            "<" => order.is_lt(),
            ":" => found.contains(&self.value),
            _ => order.is_eq(),
        }
    }
}
