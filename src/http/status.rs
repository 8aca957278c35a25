//! outside
//! The daemon as a whole: status, activity, health, metrics, reload, brake and receivers.
//! `/healthz` speaks about the daemon only: a customer's key never makes it unhealthy.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::access::{Operator, Reader};
use super::ask::perform;
use super::input::{Body, Filter, MOST, NoBody, Segments, after, limit, provider_id, reason, receiver_id};
use super::problem::Problem;
use super::workspaces::{Freshness, Page};
use super::{Doors, Health};
use crate::journal::{JournalQuery, StoredRecord};
use crate::key::{KeyId, WorkspaceId};
use crate::operate::Action;
use crate::snapshot::{DrillView, OutboxView, ProviderView, WorkspaceView};
use crate::time::Wall;
use crate::words::{Access, By, Cause, Code, StateWord};

/// A lowered workspace in short.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Lowered {
    pub workspace: WorkspaceId,
    pub access: Access,
    pub code: Option<Code>,
    pub cause: Option<Cause>,
    pub key: Option<KeyId>,
    pub by: Option<By>,
    pub since: Wall,
    pub durable: bool,
}

impl Lowered {
    fn of(view: &WorkspaceView) -> Self {
        let WorkspaceView { workspace, access, code, cause, key, by, since, durable, .. } = view.clone();
        Self { workspace, access, code, cause, key, by, since, durable }
    }
}

/// `GET /v1/status`: what the status command prints.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    pub version: &'static str,
    pub started_at: Wall,
    pub ready: bool,
    pub evaluated_at: Option<Wall>,
    pub expires_at: Option<Wall>,
    /// Set while another configuration than the file's present one is in force.
    pub config_flagged: Option<String>,
    pub keys: BTreeMap<&'static str, u64>,
    pub keys_total: u64,
    pub workspaces: BTreeMap<&'static str, u64>,
    pub workspaces_total: u64,
    /// The first 1,000 workspaces that are not open.
    pub lowered: Vec<Lowered>,
    pub lowered_total: u64,
    pub would_lock_total: u64,
    pub store_write_failures: u64,
    pub bugs: u64,
    pub providers: Vec<ProviderView>,
    pub receivers: Vec<OutboxView>,
    /// Drills under way.
    pub drills: Vec<DrillView>,
    /// Locked workspaces with a lever that failed.
    pub locks_incomplete: u64,
}

impl Status {
    /// The present status.
    #[must_use]
    pub fn of(doors: &Doors) -> Self {
        let (snapshot, config) = (doors.app.published.load(), doors.app.config.load());
        let fresh = Freshness::of(&snapshot, &config, crate::clock::now());
        let mut keys: BTreeMap<&'static str, u64> = StateWord::ALL.iter().map(|s| (s.as_str(), 0)).collect();
        for key in snapshot.keys.values() {
            let count = keys.entry(key.state.as_str()).or_default();
            *count = count.saturating_add(1);
        }
        let mut workspaces: BTreeMap<&'static str, u64> = Access::ALL.iter().map(|a| (a.as_str(), 0)).collect();
        let mut lowered = Vec::new();
        let (mut lowered_total, mut locks_incomplete) = (0u64, 0u64);
        for view in snapshot.workspaces.values() {
            let count = workspaces.entry(view.access.as_str()).or_default();
            *count = count.saturating_add(1);
            locks_incomplete = locks_incomplete.saturating_add(u64::from(view.lock_incomplete()));
            if view.access != Access::Open {
                lowered_total = lowered_total.saturating_add(1);
                if lowered_total <= u64::from(MOST) {
                    lowered.push(Lowered::of(view));
                }
            }
        }
        let daemon = &snapshot.daemon;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            started_at: daemon.started_at,
            ready: daemon.ready && snapshot.fresh_at.is_some(),
            evaluated_at: fresh.evaluated_at,
            expires_at: fresh.expires_at,
            config_flagged: daemon.config_flagged.clone(),
            keys,
            keys_total: u64::try_from(snapshot.keys.len()).unwrap_or(u64::MAX),
            workspaces,
            workspaces_total: u64::try_from(snapshot.workspaces.len()).unwrap_or(u64::MAX),
            lowered,
            lowered_total,
            would_lock_total: daemon.would_lock_total,
            store_write_failures: daemon.store_write_failures,
            bugs: daemon.bugs,
            providers: snapshot.providers.values().map(|p| ProviderView::clone(p)).collect(),
            receivers: daemon.outbox.clone(),
            drills: daemon.drills.iter().filter(|drill| drill.ended_at.is_none()).cloned().collect(),
            locks_incomplete,
        }
    }
}

/// `GET /v1/status`
pub async fn status(_: Reader, State(doors): State<Doors>) -> Response {
    Json(Status::of(&doors)).into_response()
}

/// `GET /v1/providers`
pub async fn providers(_: Reader, State(doors): State<Doors>) -> Response {
    let snapshot = doors.app.published.load();
    let items: Vec<ProviderView> = snapshot.providers.values().map(|p| ProviderView::clone(p)).collect();
    Json(Page { items, next: None }).into_response()
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrakeBody {
    #[serde(default)]
    lock: bool,
    #[serde(default)]
    drop: bool,
    reason: String,
}

/// `POST /v1/providers/{id}/brake`: carries the held locks out, or drops them.
pub async fn release_brake(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    Body(body): Body<BrakeBody>,
) -> Result<Response, Problem> {
    let provider = provider_id(&id)?;
    if body.lock == body.drop {
        return Err(Problem::invalid("exactly one of lock and drop must be true"));
    }
    let action = Action::BrakeRelease { provider, lock: body.lock, reason: reason(&body.reason)? };
    perform(&doors, operator.actor, action).await
}

/// `POST /v1/reload`: 422 with file, line and field if the file is not taken; the last good one goes on.
pub async fn reload(operator: Operator, State(doors): State<Doors>, _: NoBody) -> Result<Response, Problem> {
    match doors.app.reload.reload(&operator.actor).await {
        Ok(()) => Ok(Json(serde_json::json!({ "done": true })).into_response()),
        Err(error) => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_configuration", error)),
    }
}

/// `POST /v1/receivers/{name}/test`
pub async fn test_receiver(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(name): Segments<String>,
    _: NoBody,
) -> Result<Response, Problem> {
    let receiver = receiver_id(&name)?;
    perform(&doors, operator.actor, Action::TestReceiver { receiver }).await
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ActivityQuery {
    limit: Option<u32>,
    after: Option<u64>,
    key: Option<KeyId>,
    workspace: Option<WorkspaceId>,
}

/// `GET /v1/activity`: the journal, ascending.
pub async fn activity(_: Reader, State(doors): State<Doors>, Filter(query): Filter<ActivityQuery>) -> Result<Response, Problem> {
    let limit = u32::try_from(limit(query.limit)?).unwrap_or(MOST);
    let query = JournalQuery { after: after(query.after)?, limit, key: query.key, workspace: query.workspace };
    Ok(Json(journal(&doors, &query).await?).into_response())
}

/// A page of the journal; `next` is the last number shown if the page is full.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct JournalPage {
    pub items: Vec<StoredRecord>,
    pub next: Option<u64>,
}

/// # Errors
/// 503 if the store cannot be read now.
pub async fn journal(doors: &Doors, query: &JournalQuery) -> Result<JournalPage, Problem> {
    let items = doors.app.store.journal(query).await.map_err(|fault| {
        tracing::error!(%fault, "the journal could not be read");
        Problem::unavailable("store_unavailable", "the journal cannot be read now", 5)
    })?;
    let full = u32::try_from(items.len()).is_ok_and(|len| len >= query.limit);
    let next = items.last().filter(|_| full).map(|record| record.sequence);
    Ok(JournalPage { items, next })
}

/// `GET /metrics`
pub async fn metrics(_: Reader, State(doors): State<Doors>) -> Response {
    let (config, now) = (doors.app.config.load(), crate::clock::now());
    doors.app.metrics.consumers_behind(doors.app.acks.behind(config.gate.ack_within, now.mono));
    let text = doors.app.metrics.render(&doors.app.published.load(), &config, now);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

const UNCACHED: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

/// `GET /healthz`: whether the loop makes progress.
pub async fn healthz(State(doors): State<Doors>) -> Response {
    let silence = doors.app.health.silence(crate::clock::now().mono);
    if silence > Health::PATIENCE {
        return Problem::unavailable("stuck", format!("no progress for {silence}"), 5).into_response();
    }
    (UNCACHED, Json(serde_json::json!({ "status": "ok", "silence_ms": silence }))).into_response()
}

/// `GET /readyz`: whether stored locks are published.
pub async fn readyz(State(doors): State<Doors>) -> Response {
    match super::workspaces::ready(&doors.app) {
        Ok(_) => (UNCACHED, Json(serde_json::json!({ "status": "ready" }))).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// The description of all doors.
pub const OPENAPI: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub async fn openapi(_: Reader) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
