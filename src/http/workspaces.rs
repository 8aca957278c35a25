//! outside
//! Workspaces as services and operators see them: their access, their features, and the orders to
//! lock and unlock. Shows what the core published; it must never compute an access of its own.

use std::ops::Bound;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::access::{Operator, Reader};
use super::acks::Consumer;
use super::ask::perform;
use super::input::{Body, Filter, Segments, limit, reason, workspace_id};
use super::problem::Problem;
use super::{App, Doors, authz};
use crate::config::Config;
use crate::gate::{self, Decision};
use crate::key::{KeyId, WorkspaceId};
use crate::operate::Action;
use crate::published::Snapshot;
use crate::snapshot::WorkspaceView;
use crate::time::{Now, Span, Wall};
use crate::vault::Counts;
use crate::words::{Access, Cause, Code, FeatureClass, Sequence};

/// A page of a list.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// What to give as `after` for the next page; `null` at the end.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The first `limit` of `all`; `id` names the last one shown if there are more.
    pub fn of<'a, V: 'a>(all: impl Iterator<Item = V>, limit: usize, id: impl Fn(&V) -> String, show: impl Fn(&V) -> T) -> Self {
        let mut taken: Vec<V> = all.take(limit.saturating_add(1)).collect();
        let more = taken.len() > limit;
        taken.truncate(limit);
        Self { items: taken.iter().map(&show).collect(), next: taken.last().filter(|_| more).map(id) }
    }
}

/// A workspace as shown outside.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Shown<'a> {
    #[serde(flatten)]
    pub view: &'a WorkspaceView,
    /// When this instance's state was last complete.
    pub evaluated_at: Option<Wall>,
    /// Until when this answer may be relied on.
    pub expires_at: Option<Wall>,
    /// Who said within a day what it has applied.
    pub consumers: Vec<Consumer>,
    /// How many records and preservations the vault holds of it; `null` without a vault.
    pub safety: Option<Counts>,
}

/// When the snapshot was complete, and until when it may be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freshness {
    pub evaluated_at: Option<Wall>,
    pub expires_at: Option<Wall>,
}

impl Freshness {
    #[must_use]
    pub fn of(snapshot: &Snapshot, config: &Config, now: Now) -> Self {
        let evaluated_at = snapshot.fresh_at.map(|at| now.wall.minus(now.mono.since(at)));
        Self { evaluated_at, expires_at: evaluated_at.map(|at| at.plus(config.gate.max_age)) }
    }
}

impl<'a> Shown<'a> {
    #[must_use]
    pub const fn new(view: &'a WorkspaceView, fresh: Freshness) -> Self {
        Self { view, evaluated_at: fresh.evaluated_at, expires_at: fresh.expires_at, consumers: Vec::new(), safety: None }
    }

    /// With the numbers of the vault, which the owner may see, and the consumers.
    #[must_use]
    pub fn counted(self, app: &App, now: Now) -> Self {
        let consumers = app.acks.of(&self.view.workspace, app.config.load().gate.ack_within, now.mono);
        let safety = app.vault.as_ref().and_then(|vault| vault.counts(&self.view.workspace));
        Self { safety, consumers, ..self }
    }
}

/// The workspace as the core just answered it.
pub fn answer(doors: &Doors, view: &WorkspaceView) -> Response {
    let now = crate::clock::now();
    let fresh = Freshness::of(&doors.app.published.load(), &doors.app.config.load(), now);
    Json(Shown::new(view, fresh).counted(&doors.app, now)).into_response()
}

/// The snapshot once stored locks are in it.
///
/// # Errors
/// 503 while starting: no state is served before.
pub fn ready(app: &App) -> Result<std::sync::Arc<Snapshot>, Problem> {
    let snapshot = app.published.load();
    if snapshot.daemon.ready && snapshot.fresh_at.is_some() { Ok(snapshot) } else { Err(Problem::starting()) }
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ListQuery {
    access: Option<Access>,
    limit: Option<u32>,
    after: Option<WorkspaceId>,
}

/// `GET /v1/workspaces`
pub async fn list(_: Reader, State(doors): State<Doors>, Filter(query): Filter<ListQuery>) -> Result<Response, Problem> {
    let limit = limit(query.limit)?;
    let snapshot = ready(&doors.app)?;
    let now = crate::clock::now();
    let fresh = Freshness::of(&snapshot, &doors.app.config.load(), now);
    let start = query.after.map_or(Bound::Unbounded, Bound::Excluded);
    let rows = snapshot.workspaces.range((start, Bound::Unbounded)).map(|(_, view)| view);
    let rows = rows.filter(|view| query.access.is_none_or(|access| view.access == access));
    let page = Page::of(rows, limit, |view| view.workspace.to_string(), |view| Shown::new(view, fresh).counted(&doors.app, now));
    Ok(Json(page).into_response())
}

pub(super) fn find(snapshot: &Snapshot, text: &str) -> Result<std::sync::Arc<WorkspaceView>, Problem> {
    let id = workspace_id(text)?;
    snapshot.workspaces.get(&id).cloned().ok_or_else(|| Problem::unknown("unknown_workspace", "workspace", text))
}

/// `GET /v1/workspaces/{ws}`
pub async fn one(_: Reader, State(doors): State<Doors>, Segments(ws): Segments<String>) -> Result<Response, Problem> {
    let snapshot = ready(&doors.app)?;
    let view = find(&snapshot, &ws)?;
    let now = crate::clock::now();
    let fresh = Freshness::of(&snapshot, &doors.app.config.load(), now);
    Ok(Json(Shown::new(&view, fresh).counted(&doors.app, now)).into_response())
}

/// May this workspace use this feature?
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FeatureAnswer {
    pub workspace: WorkspaceId,
    pub feature: String,
    pub class: FeatureClass,
    /// False if the feature is not configured: it then counts as content.
    pub known: bool,
    /// Whether reading is allowed.
    pub allowed: bool,
    pub allowed_write: bool,
    /// Absent while both are allowed.
    pub code: Option<Code>,
    pub cause: Option<Cause>,
    pub key: Option<KeyId>,
    pub message: Option<String>,
    pub access: Access,
    pub since: Wall,
    pub sequence: Sequence,
    pub evaluated_at: Option<Wall>,
    pub expires_at: Option<Wall>,
}

/// Answers by the same decision as the gate.
fn judge(view: &WorkspaceView, feature: &str, snapshot: &Snapshot, config: &Config, now: Now) -> Result<FeatureAnswer, Problem> {
    let (class, known) = config.features_of(view.workspace.as_str()).class(Some(feature));
    let entry = authz::entry(view);
    let fresh_at = snapshot.fresh_at.ok_or_else(Problem::starting)?;
    let ask = |write| gate::decide(&entry, class, write, fresh_at, config.gate.max_age, now.mono);
    let allowed = |decision| match decision {
        Decision::Allowed => Ok(true),
        Decision::Denied(_) => Ok(false),
        Decision::CannotTell => Err(Problem::unavailable("stale", "this instance has not been kept up to date; it cannot tell", 5)),
    };
    let (read, write) = (ask(false), ask(true));
    let code = match (read, write) {
        (Decision::Denied(code), _) | (_, Decision::Denied(code)) => Some(code),
        (Decision::Allowed | Decision::CannotTell, Decision::Allowed | Decision::CannotTell) => None,
    };
    let fresh = Freshness::of(snapshot, config, now);
    Ok(FeatureAnswer {
        workspace: view.workspace.clone(),
        feature: feature.to_owned(),
        class,
        known,
        allowed: allowed(read)?,
        allowed_write: allowed(write)?,
        code,
        cause: view.cause.filter(|_| code.is_some()),
        key: view.key.clone().filter(|_| code.is_some()),
        message: view.message.clone().filter(|_| code.is_some()),
        access: view.access,
        since: view.since,
        sequence: view.sequence,
        evaluated_at: fresh.evaluated_at,
        expires_at: fresh.expires_at,
    })
}

/// `GET /v1/workspaces/{ws}/features`: every configured feature.
pub async fn features(_: Reader, State(doors): State<Doors>, Segments(ws): Segments<String>) -> Result<Response, Problem> {
    let snapshot = ready(&doors.app)?;
    let view = find(&snapshot, &ws)?;
    let (config, now) = (doors.app.config.load(), crate::clock::now());
    let items: Result<Vec<_>, _> = config.features.0.keys().map(|feature| judge(&view, feature, &snapshot, &config, now)).collect();
    Ok(Json(Page { items: items?, next: None }).into_response())
}

/// `GET /v1/workspaces/{ws}/features/{feature}`
pub async fn feature(_: Reader, State(doors): State<Doors>, Segments(path): Segments<(String, String)>) -> Result<Response, Problem> {
    let (ws, feature) = path;
    let snapshot = ready(&doors.app)?;
    let view = find(&snapshot, &ws)?;
    let config = doors.app.config.load();
    let known = config.features.0.contains_key(&feature);
    // The form of an id; a configured feature may be called anything.
    if !known && WorkspaceId::new(&feature).is_err() {
        return Err(Problem::unknown("unknown_feature", "feature", &feature));
    }
    if !known {
        doors.app.metrics.unknown_feature();
    }
    Ok(Json(judge(&view, &feature, &snapshot, &config, crate::clock::now())?).into_response())
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockBody {
    reason: String,
}

/// `POST /v1/workspaces/{ws}/lock`
pub async fn lock(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(ws): Segments<String>,
    Body(body): Body<LockBody>,
) -> Result<Response, Problem> {
    let action = Action::Lock { workspace: workspace_id(&ws)?, reason: reason(&body.reason)? };
    perform(&doors, operator.actor, action).await
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlockBody {
    reason: String,
    #[serde(default, rename = "override")]
    overriding: bool,
    until: Option<String>,
}

/// `POST /v1/workspaces/{ws}/unlock`
pub async fn unlock(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(ws): Segments<String>,
    Body(body): Body<UnlockBody>,
) -> Result<Response, Problem> {
    let override_for = match (body.overriding, body.until) {
        (false, None) => None,
        (true, Some(until)) => Some(until.parse::<Span>().map_err(|error| Problem::invalid(format!("until: {error}")))?),
        (true, None) => return Err(Problem::invalid("override needs until, a duration of at most 24h")),
        (false, Some(_)) => return Err(Problem::invalid("until goes with override only")),
    };
    let action = Action::Unlock { workspace: workspace_id(&ws)?, reason: reason(&body.reason)?, override_for };
    perform(&doors, operator.actor, action).await
}
