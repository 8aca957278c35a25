//! outside
//! Key Vault's audit events through the Log Analytics query API, and the activity log of a subscription
//! (vaults deleted, firewalls, role assignments) through the resource manager. Windows by time; a page
//! is a part of one query. It must never follow a link to another host, or send a token there.

use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::windows::Windows;
use super::{AuditFault, AuditLog, Cursor, Gap, Page, clip, record};
use crate::config::{AuditSource, Provider};
use crate::kms::BoxFuture;
use crate::kms::azure::LogSignIn;
use crate::time::{Mono, Now, Span};
use crate::words::AuditTrouble;

/// Log Analytics takes rows in up to a quarter of an hour late, now and then later.
const WINDOWS: Windows = Windows {
    overlap: Span::from_mins(30),
    longest: Span::from_hours(6),
    look_back: Span::from_hours(1),
    // The activity log keeps 90 days; workspaces as long as their owner says.
    kept: Span::from_days(89),
};
/// 200 queries in 30 seconds are allowed by user; this is far below.
const PACE: Span = Span(500);
const ROWS: u64 = 500;
const MOST_BYTES: usize = 8 * 1024 * 1024;
const LOOK_AGAIN: Span = Span::from_hours(1);
const QUERY: &str = "https://api.loganalytics.io";
const MANAGEMENT: &str = "https://management.azure.com";
/// Providers of the activity log, one query each.
const PROVIDERS: [&str; 2] = ["Microsoft.KeyVault", "Microsoft.Authorization"];
const TABLES: &str = "union isfuzzy=true AZKVAuditLogs, (AzureDiagnostics | where ResourceProvider == \"MICROSOFT.KEYVAULT\" and Category == \"AuditEvent\")";

/// One log workspace, and one subscription if it is named.
pub struct AzureMonitor {
    sign_in: LogSignIn,
    client: reqwest::Client,
    query: String,
    management: String,
    log_workspace: String,
    subscription: Option<String>,
    /// When it was last asked for any row at all, and whether there was one.
    rows: Mutex<Option<(Mono, bool)>>,
}

/// Where in a window: the rows of the workspace from a number on, or a page of an activity query.
#[derive(Clone, PartialEq, Eq, Debug)]
enum At {
    Rows(u64),
    Activity(usize, Option<String>),
}

impl At {
    fn read(page: Option<&str>) -> Self {
        let Some(page) = page else { return Self::Rows(0) };
        if let Some(number) = page.strip_prefix("rows:") {
            return Self::Rows(number.parse().unwrap_or(0));
        }
        let mut parts = page.splitn(3, ':').skip(1);
        let n = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Self::Activity(n, parts.next().filter(|link| !link.is_empty()).map(str::to_owned))
    }
    fn write(&self) -> String {
        match self {
            Self::Rows(from) => format!("rows:{from}"),
            Self::Activity(n, link) => format!("activity:{n}:{}", link.as_deref().unwrap_or("")),
        }
    }
}

impl AzureMonitor {
    /// # Errors
    /// If the provider is not of kind azure, a secret is missing, or no client can be built.
    pub fn open(provider: &Provider, source: &AuditSource, timeout: Span) -> Result<Self, AuditFault> {
        let sign_in = LogSignIn::open(provider, source, timeout)?;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(timeout.to_std()).build();
        let client = client.map_err(|error| AuditFault::new(AuditTrouble::Misconfigured, error.to_string()))?;
        let at = |usual: &str| source.endpoint.clone().unwrap_or_else(|| usual.to_owned());
        Ok(Self {
            sign_in,
            client,
            query: at(QUERY),
            management: at(MANAGEMENT),
            log_workspace: source.address.clone().unwrap_or_default(),
            subscription: source.subscription.clone(),
            rows: Mutex::new(None),
        })
    }

    async fn page(&self, cursor: &Cursor, now: Now) -> Result<Page, AuditFault> {
        let (window, gap) = WINDOWS.next(cursor, now.wall);
        let at = At::read(cursor.page.as_deref());
        let mut page = Page { gaps: gap.into_iter().collect(), ..Page::default() };
        let next = match at {
            At::Rows(from) => {
                let rows = self.rows(window, from).await?;
                let whole = u64::try_from(rows.len()).unwrap_or(0) >= ROWS;
                read_all(&mut page, &rows, record::key_vault);
                match (whole, &self.subscription) {
                    (true, _) => Some(At::Rows(from.saturating_add(ROWS))),
                    (false, Some(_)) => Some(At::Activity(0, None)),
                    (false, None) => None,
                }
            }
            At::Activity(n, link) => {
                let (events, link) = self.activity(window, n, link).await?;
                read_all(&mut page, &events, record::activity);
                let following = n.saturating_add(1);
                match link {
                    Some(link) => Some(At::Activity(n, Some(link))),
                    None => (following < PROVIDERS.len()).then_some(At::Activity(following, None)),
                }
            }
        };
        (page.cursor, page.more) = WINDOWS.after(cursor, window, next.map(|at| at.write()), now.wall);
        page.seen_until = page.cursor.until;
        if !page.more {
            self.look_for_rows(now).await;
            page.unseen = self.unseen();
        }
        Ok(page)
    }

    /// Changes only: uses of keys are many and explain nothing.
    async fn rows(&self, window: Gap, from: u64) -> Result<Vec<Value>, AuditFault> {
        let query = format!(
            "{TABLES} | where TimeGenerated >= datetime({}) and TimeGenerated < datetime({}) \
             | where not(OperationName has_any (\"KeyGet\", \"KeyList\", \"KeyWrap\", \"KeyUnwrap\", \"KeyEncrypt\", \"KeyDecrypt\", \"KeySign\", \"KeyVerify\", \"Secret\", \"Certificate\", \"Authentication\")) \
             | sort by TimeGenerated asc, CorrelationId asc | serialize RowNumber = row_number() | where RowNumber > {from} | take {ROWS}",
            window.from, window.to
        );
        self.ask_workspace(&query).await
    }

    async fn ask_workspace(&self, query: &str) -> Result<Vec<Value>, AuditFault> {
        let token = self.sign_in.token(&format!("{QUERY}/.default")).await?;
        let address = format!("{}/v1/workspaces/{}/query", self.query, self.log_workspace);
        let call = self.client.post(address).bearer_auth(token.as_str()).json(&json!({ "query": query }));
        let answer = self.send(call).await?;
        table(&answer).ok_or_else(|| AuditFault::new(AuditTrouble::Malformed, "the answer has no table"))
    }

    async fn activity(&self, window: Gap, n: usize, link: Option<String>) -> Result<(Vec<Value>, Option<String>), AuditFault> {
        let token = self.sign_in.token(&format!("{MANAGEMENT}/.default")).await?;
        let subscription = self.subscription.as_deref().unwrap_or_default();
        let base = format!("{}/subscriptions/{subscription}/providers/Microsoft.Insights/eventtypes/management/values", self.management);
        let call = match link {
            // Kept in the store and given by the service: it must lead to the same place all the same.
            Some(link) if link.starts_with(&format!("{base}?")) => self.client.get(link),
            Some(_) => return Err(AuditFault::new(AuditTrouble::Malformed, "the next page lies at another address")),
            None => {
                let provider = PROVIDERS.get(n).copied().unwrap_or("Microsoft.KeyVault");
                let filter = format!(
                    "eventTimestamp ge '{}' and eventTimestamp le '{}' and resourceProvider eq '{provider}'",
                    window.from, window.to
                );
                self.client.get(base).query(&[("api-version", "2015-04-01"), ("$filter", filter.as_str())])
            }
        };
        let answer = self.send(call.bearer_auth(token.as_str())).await?;
        let events = answer.get("value").and_then(Value::as_array).cloned();
        let events = events.ok_or_else(|| AuditFault::new(AuditTrouble::Malformed, "the answer has no events"))?;
        Ok((events, answer.get("nextLink").and_then(Value::as_str).map(str::to_owned)))
    }

    async fn send(&self, call: reqwest::RequestBuilder) -> Result<Value, AuditFault> {
        let unreached = |error: reqwest::Error| {
            let kind = if error.is_timeout() { AuditTrouble::Timeout } else { AuditTrouble::Unreachable };
            AuditFault::new(kind, error.without_url().to_string())
        };
        let mut answer = call.send().await.map_err(unreached)?;
        let status = answer.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreached)? {
            if bytes.len().saturating_add(chunk.len()) > MOST_BYTES {
                return Err(AuditFault::new(AuditTrouble::Malformed, "the answer is too long"));
            }
            bytes.extend_from_slice(&chunk);
        }
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status >= 400 {
            return Err(refused(status, &body));
        }
        Ok(body)
    }

    /// Our own probes are audited too: a day without any row tells that nothing is sent to the workspace.
    async fn look_for_rows(&self, now: Now) {
        let last = *self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|(at, _)| now.mono.since(at) < LOOK_AGAIN) {
            return;
        }
        let found = self.ask_workspace(&format!("{TABLES} | where TimeGenerated > ago(1d) | take 1")).await;
        let seen = found.is_ok_and(|rows| !rows.is_empty());
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = Some((now.mono, seen));
    }

    fn unseen(&self) -> Vec<String> {
        let last = *self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unseen = Vec::new();
        if last.is_some_and(|(_, seen)| !seen) {
            unseen.push("no audit event of any vault has come to the log workspace for a day: is the diagnostic setting on?".to_owned());
        }
        if self.subscription.is_none() {
            unseen.push("no subscription is named: deleted vaults, firewalls and role assignments are not seen".to_owned());
        }
        unseen
    }
}

fn read_all(page: &mut Page, values: &[Value], read: fn(&Value) -> Option<super::AuditEvent>) {
    for value in values {
        match read(value) {
            Some(event) => page.events.push(event),
            None => page.malformed = page.malformed.saturating_add(1),
        }
    }
}

/// The rows of the first table, each with its columns' names.
fn table(answer: &Value) -> Option<Vec<Value>> {
    let table = answer.get("tables")?.as_array()?.first()?;
    let names: Vec<&str> = table.get("columns")?.as_array()?.iter().map(|c| c.get("name").and_then(Value::as_str).unwrap_or("")).collect();
    let rows = table.get("rows")?.as_array()?.iter().filter_map(Value::as_array);
    let row = |cells: &Vec<Value>| {
        let cells = names.iter().zip(cells).filter(|(_, cell)| !cell.is_null());
        Value::Object(cells.map(|(name, cell)| ((*name).to_owned(), cell.clone())).collect::<Map<_, _>>())
    };
    Some(rows.map(row).collect())
}

fn refused(status: u16, body: &Value) -> AuditFault {
    let code = record::text(body, &["error.code"]).unwrap_or("");
    let inner = record::text(body, &["error.innererror.message", "error.innererror.innererror.message", "error.message"]).unwrap_or("");
    let kind = match (status, code) {
        (400, _) if inner.contains("Failed to resolve") || inner.contains("SEM0100") => AuditTrouble::LogDisabled,
        (400, _) => AuditTrouble::Misconfigured,
        (401, _) => AuditTrouble::Credentials,
        (403, _) => AuditTrouble::Denied,
        (404, _) => AuditTrouble::LogDisabled,
        (429, _) => AuditTrouble::Throttled,
        (408 | 504, _) => AuditTrouble::Timeout,
        (_, _) => AuditTrouble::ProviderFault,
    };
    AuditFault::new(kind, format!("{status} {code}: {}", clip(inner, 300)))
}

impl AuditLog for AzureMonitor {
    fn poll<'a>(&'a self, cursor: &'a Cursor, now: Now) -> BoxFuture<'a, Result<Page, AuditFault>> {
        Box::pin(self.page(cursor, now))
    }
    fn taken<'a>(&'a self, _: &'a [String]) -> BoxFuture<'a, Result<(), AuditFault>> {
        Box::pin(async { Ok(()) })
    }
    fn pace(&self) -> Span {
        PACE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_window_is_read_back_as_it_was_written() {
        for at in [At::Rows(0), At::Rows(1500), At::Activity(1, None), At::Activity(0, Some("https://m/x?a=b:c".into()))] {
            assert_eq!(At::read(Some(&at.write())), at);
        }
        assert_eq!(At::read(None), At::Rows(0));
    }

    #[test]
    fn each_refusal_has_its_own_trouble() {
        let unresolved =
            json!({"error": {"code": "BadArgumentError", "message": "m", "innererror": {"message": "SEM0100: Failed to resolve table"}}});
        for (status, body, kind) in [
            (400, unresolved, AuditTrouble::LogDisabled),
            (400, json!({}), AuditTrouble::Misconfigured),
            (401, json!({}), AuditTrouble::Credentials),
            (403, json!({"error": {"code": "InsufficientAccessError"}}), AuditTrouble::Denied),
            (404, json!({"error": {"code": "WorkspaceNotFoundError"}}), AuditTrouble::LogDisabled),
            (429, json!({}), AuditTrouble::Throttled),
            (504, json!({}), AuditTrouble::Timeout),
            (500, json!({}), AuditTrouble::ProviderFault),
        ] {
            assert_eq!(refused(status, &body).kind, kind, "{status}");
        }
    }
}
