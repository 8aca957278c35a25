//! outside
//! Claude's Admin API: deactivates the API keys of a workspace and activates again those that this
//! lever deactivated, and no others. It must never archive, and never show the Admin key.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::kms::BoxFuture;
use crate::lever::{Lever, LeverOrder, Outcome};
use crate::notify::compose::one_line;
use crate::notify::post::BadReceiver;
use crate::secrets::Secret;
use crate::time::Span;
use crate::words::LeverAct;

const VERSION: &str = "2023-06-01";
/// One call, answer and all.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The whole move: the core tries again with what was changed until then.
const DEADLINE: Duration = Duration::from_secs(50);
/// More pages or bytes are not read.
const MOST_PAGES: usize = 100;
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Federated sign-in and principals without a workspace are beyond an Admin key.
const RESIDUAL: &str = "workload identity federation and keys bound to no workspace are not stopped by this lever";

/// The lever.
pub struct ClaudeLever {
    client: Client,
    base_url: String,
    api_key: Secret,
}

impl std::fmt::Debug for ClaudeLever {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClaudeLever")
    }
}

/// What became of one API key by us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ours {
    /// Seen active, to be deactivated: written down before it is done.
    Planned,
    /// Deactivated by us; the API said so.
    Done,
    /// Found inactive after it was planned: by us or by somebody else, nobody can tell.
    Unsure,
}

type Memory = BTreeMap<String, Ours>;

#[derive(Deserialize)]
struct ApiKey {
    id: String,
    status: String,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<ApiKey>,
    #[serde(default)]
    has_more: bool,
    last_id: Option<String>,
}

/// A call that did not come to a good answer. Names no secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
struct Fault {
    reason: String,
    after: Option<Span>,
    /// 404: there is no such key any more.
    gone: bool,
}

impl Fault {
    fn of(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), after: None, gone: false }
    }
}

fn failed(fault: Fault, memory: &Memory) -> Outcome {
    Outcome::Failed { reason: fault.reason, after: fault.after, memory: Some(to_text(memory)) }
}

fn to_text(memory: &Memory) -> String {
    serde_json::to_string(memory).unwrap_or_default()
}

impl ClaudeLever {
    /// # Errors
    /// If there are no usable trusted certificates.
    pub fn new(base_url: &str, api_key: Secret) -> Result<Self, BadReceiver> {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("cmek-watchdog/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|_| BadReceiver::Client)?;
        Ok(Self { client, base_url: base_url.trim_end_matches('/').to_owned(), api_key })
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<serde_json::Value>,
    ) -> Result<T, Fault> {
        let mut request = self.client.request(method, format!("{}{path}", self.base_url)).query(query);
        request = request.header("x-api-key", self.api_key.expose()).header("anthropic-version", VERSION);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let mut response = request.send().await.map_err(|error| {
            Fault::of(if error.is_timeout() {
                "no answer in time"
            } else if error.is_connect() {
                "no connection"
            } else {
                "the connection broke"
            })
        })?;
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(|text| text.to_str().ok()?.trim().parse().ok()).map(Span::from_secs);
        let mut bytes: Vec<u8> = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| Fault::of("the answer broke off"))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST_BYTES {
                return Err(Fault::of("the answer is too long"));
            }
        }
        if !status.is_success() {
            return Err(Fault { reason: said(status, &bytes), after, gone: status == StatusCode::NOT_FOUND });
        }
        serde_json::from_slice(&bytes).map_err(|_| Fault::of("the answer is not what the Admin API is documented to say"))
    }

    /// Every key of the workspace with this status.
    async fn list(&self, workspace: &str, status: &str) -> Result<Vec<ApiKey>, Fault> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let mut query = vec![("workspace_id", workspace), ("status", status), ("limit", "1000")];
            if let Some(after) = &after {
                query.push(("after_id", after));
            }
            let page: Page = self.call(Method::GET, "/v1/organizations/api_keys", &query, None).await?;
            found.extend(page.data);
            match page.last_id.filter(|_| page.has_more) {
                Some(last) if Some(&last) != after.as_ref() => after = Some(last),
                Some(_) => return Err(Fault::of("the list of API keys does not get on")),
                None => return Ok(found),
            }
        }
        Err(Fault::of("the list of API keys has no end"))
    }

    async fn set(&self, id: &str, status: &str) -> Result<(), Fault> {
        let path = self.path(id)?;
        let key: ApiKey = self.call(Method::POST, &path, &[], Some(serde_json::json!({ "status": status }))).await?;
        if key.status == status {
            Ok(())
        } else {
            Err(Fault::of(format!("API key {} is {} after it was set {status}", one_line(id, 60), one_line(&key.status, 20))))
        }
    }

    /// An id of their own making becomes part of an address only if it is plain.
    fn path(&self, id: &str) -> Result<String, Fault> {
        let plain = !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if plain { Ok(format!("/v1/organizations/api_keys/{id}")) } else { Err(Fault::of("an API key has an id that is no id")) }
    }

    async fn pull(&self, order: &LeverOrder, memory: &mut Memory) -> Result<Outcome, Fault> {
        let active = self.list(order.workspace.as_str(), "active").await?;
        let mut news = false;
        for key in &active {
            // Active again although we had deactivated it: planned anew, under a new intent.
            news |= memory.insert(key.id.clone(), Ours::Planned) != Some(Ours::Planned);
        }
        for (id, ours) in memory.iter_mut() {
            // It was planned, no answer came, and it is active no more.
            if *ours == Ours::Planned && !active.iter().any(|key| key.id == *id) {
                *ours = Ours::Unsure;
            }
        }
        if news {
            return Ok(Outcome::Planned { memory: to_text(memory) });
        }
        for key in &active {
            self.set(&key.id, "inactive").await?;
            memory.insert(key.id.clone(), Ours::Done);
        }
        let still = if active.is_empty() { active } else { self.list(order.workspace.as_str(), "active").await? };
        if still.is_empty() {
            return Ok(Outcome::Done { memory: Some(to_text(memory)), left: vec![RESIDUAL.to_owned()] });
        }
        Err(Fault::of(format!("{} API keys are active again or new; they are taken next", still.len())))
    }

    async fn undo(&self, memory: &mut Memory) -> Result<Outcome, Fault> {
        let mut left = Vec::new();
        for (id, ours) in memory.clone() {
            let now: Result<ApiKey, Fault> = self.call(Method::GET, &self.path(&id)?, &[], None).await;
            let status = match now {
                Ok(key) => key.status,
                Err(fault) if fault.gone => "gone".to_owned(),
                Err(fault) => return Err(fault),
            };
            match (ours, status.as_str()) {
                // Active: somebody was there before us, or our own earlier try.
                (_, "active") => {
                    memory.remove(&id);
                }
                (Ours::Done, "inactive") => {
                    self.set(&id, "active").await?;
                    // Whoever deactivates it from now on is somebody else, and a later try must see that.
                    memory.remove(&id);
                }
                (Ours::Planned | Ours::Unsure, "inactive") => {
                    left.push(format!("API key {} was left inactive: it is not known who deactivated it", one_line(&id, 60)));
                }
                (_, other) => left.push(format!("API key {} was left as it is: {}", one_line(&id, 60), one_line(other, 20))),
            }
        }
        Ok(Outcome::Done { memory: None, left })
    }

    async fn moved(&self, order: &LeverOrder) -> Outcome {
        let mut memory: Memory = match order.memory.as_deref().map(serde_json::from_str) {
            None => Memory::new(),
            Some(Ok(memory)) => memory,
            // Not to be undone by guessing; what is active can still be deactivated.
            Some(Err(_)) if order.act == LeverAct::Pull => Memory::new(),
            Some(Err(_)) => {
                let left = "what was deactivated is not known any more; the API keys stay as they are".to_owned();
                return Outcome::Done { memory: None, left: vec![left] };
            }
        };
        let result = {
            let work = async {
                match order.act {
                    LeverAct::Pull => self.pull(order, &mut memory).await,
                    LeverAct::Undo => self.undo(&mut memory).await,
                }
            };
            tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(Fault::of("not done within 50 s; the rest is next")))
        };
        result.unwrap_or_else(|fault| failed(fault, &memory))
    }
}

/// Status and the API's own sentence, cleaned.
fn said(status: StatusCode, bytes: &[u8]) -> String {
    let body: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let message = body.as_ref().and_then(|body| body.pointer("/error/message")?.as_str()).map(|text| one_line(text, 160));
    let hint = match status.as_u16() {
        401 | 403 => " (the Admin API key is refused)",
        _other => "",
    };
    match message {
        Some(message) => format!("HTTP {}{hint}: {message}", status.as_u16()),
        None => format!("HTTP {}{hint}", status.as_u16()),
    }
}

impl Lever for ClaudeLever {
    fn act<'a>(&'a self, order: &'a LeverOrder) -> BoxFuture<'a, Outcome> {
        Box::pin(self.moved(order))
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let page: Result<Page, Fault> = self.call(Method::GET, "/v1/organizations/api_keys", &[("limit", "1")], None).await;
            page.map(drop).map_err(|fault| fault.reason)
        })
    }
}
