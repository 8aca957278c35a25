//! outside
//! Keys as shown, their history, a full round now, and the retirement of versions and keys.
//! Shows what the core published; whether a round was good is the core's word.

use std::ops::Bound;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Doors;
use super::access::{Operator, Reader};
use super::ask::{Asked, ask, perform};
use super::input::{Body, Filter, NoBody, Segments, after, key_id, limit, reason};
use super::problem::Problem;
use super::status::journal;
use super::workspaces::{Page, ready};
use crate::journal::JournalQuery;
use crate::key::{KeyId, KeyVersion};
use crate::metrics::RefusedReason;
use crate::operate::{Action, RefusalSlug, Reply};
use crate::snapshot::{AuditView, KeyView};
use crate::words::{LegOutcome, StateWord, VerdictWord};

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ListQuery {
    state: Option<StateWord>,
    limit: Option<u32>,
    after: Option<KeyId>,
}

/// `GET /v1/keys`
pub async fn list(_: Reader, State(doors): State<Doors>, Filter(query): Filter<ListQuery>) -> Result<Response, Problem> {
    let limit = limit(query.limit)?;
    let snapshot = ready(&doors.app)?;
    let start = query.after.map_or(Bound::Unbounded, Bound::Excluded);
    let rows = snapshot.keys.range((start, Bound::Unbounded)).map(|(_, view)| view);
    let rows = rows.filter(|view| query.state.is_none_or(|state| view.state == state));
    let page = Page::of(rows, limit, |view| view.id.to_string(), |view| KeyView::clone(view));
    Ok(Json(page).into_response())
}

/// `GET /v1/keys/{id}`
pub async fn one(_: Reader, State(doors): State<Doors>, Segments(id): Segments<String>) -> Result<Response, Problem> {
    let snapshot = ready(&doors.app)?;
    let view = snapshot.keys.get(&key_id(&id)?).ok_or_else(|| Problem::unknown("unknown_key", "key", &id))?;
    Ok(Json(&**view).into_response())
}

/// The key after a round, and whether the round was good.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Validated<'a> {
    #[serde(flatten)]
    key: &'a KeyView,
    status: &'static str,
    error: Option<String>,
}

/// `POST /v1/keys/{id}/validate`: 200 whether the key works or not.
pub async fn validate(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    _: NoBody,
) -> Result<Response, Problem> {
    let key = key_id(&id)?;
    let Ok(_permit) = doors.validations.try_acquire() else {
        doors.refused(RefusedReason::TooMany, key.as_str());
        return Err(too_many("too many validations under way"));
    };
    match ask(&doors, operator.actor, Action::Validate { key: key.clone() }).await? {
        Asked::Answered(Ok(Reply::Key(view))) => Ok(validated(&view, failure(&view))),
        Asked::Answered(Ok(
            Reply::Done
            | Reply::Workspace(_)
            | Reply::Drill(_)
            | Reply::Released(_)
            | Reply::Registered(_)
            | Reply::Heard(_)
            | Reply::Notices(_)
            | Reply::Health(_),
        )) => published(&doors, &key, None),
        Asked::Answered(Err(refusal)) if refusal.slug == RefusalSlug::Busy => {
            doors.refused(RefusedReason::TooMany, key.as_str());
            Err(too_many(&refusal.detail))
        }
        Asked::Answered(Err(refusal)) => Err(refusal.into()),
        Asked::Late => {
            let waited = doors.limits.answer.as_secs();
            published(&doors, &key, Some(format!("the round was not judged within {waited} s")))
        }
    }
}

fn too_many(detail: &str) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail).retry_after(2)
}

fn published(doors: &Doors, key: &KeyId, error: Option<String>) -> Result<Response, Problem> {
    let snapshot = doors.app.published.load();
    let view = snapshot.keys.get(key).ok_or_else(|| Problem::unknown("unknown_key", "key", key.as_str()))?;
    Ok(validated(view, error.or_else(|| failure(view))))
}

fn validated(key: &KeyView, error: Option<String>) -> Response {
    let status = if error.is_some() { "failure" } else { "success" };
    Json(Validated { key, status, error }).into_response()
}

/// Why the last round was not good; `None` if it was.
fn failure(view: &KeyView) -> Option<String> {
    match view.verdict {
        Some(VerdictWord::Usable) => return None,
        None => return Some("no round has been judged yet".to_owned()),
        Some(VerdictWord::Impaired | VerdictWord::Revoked | VerdictWord::Inconclusive) => {}
    }
    let verdict = view.verdict.map_or("inconclusive", VerdictWord::as_str);
    let failed = view.last_probe.iter().flat_map(|p| &p.legs).find(|leg| leg.outcome == LegOutcome::Failed);
    Some(failed.map_or_else(
        || format!("{verdict}, no leg failed"),
        |leg| {
            let kind = leg.failure_kind.map_or("unclassified", crate::words::FailureKind::as_str);
            let said: Vec<&str> = [leg.code.as_deref(), leg.message.as_deref()].into_iter().flatten().collect();
            format!("{verdict}: {} failed, {kind}: {}", leg.leg, said.join(": "))
        },
    ))
}

/// The journal of a key, and which audit logs were read for it.
#[derive(Serialize)]
struct History<T, N> {
    items: Vec<T>,
    next: N,
    audit: Vec<AuditView>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct HistoryQuery {
    limit: Option<u32>,
    after: Option<u64>,
}

/// `GET /v1/keys/{id}/history`: the journal of one key, kept after the key is gone.
pub async fn history(
    _: Reader,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    Filter(query): Filter<HistoryQuery>,
) -> Result<Response, Problem> {
    let key = key_id(&id)?;
    let limit = limit(query.limit)?;
    let snapshot = ready(&doors.app)?;
    let ask = JournalQuery { after: after(query.after)?, limit: 1, key: Some(key.clone()), workspace: None };
    if !snapshot.keys.contains_key(&key) {
        let ever = journal(&doors, &JournalQuery { after: 0, ..ask.clone() }).await?;
        if ever.items.is_empty() {
            return Err(Problem::unknown("unknown_key", "key", &id));
        }
    }
    let limit = u32::try_from(limit).unwrap_or(1);
    let page = journal(&doors, &JournalQuery { limit, ..ask }).await?;
    let provider = snapshot.keys.get(&key).map(|view| view.provider.clone());
    // Beside the timeline: what could be heard at all, so that silence is not read as an absence.
    let of_key = |view: &&AuditView| provider.as_ref().is_none_or(|provider| *provider == view.provider);
    let audit: Vec<AuditView> = snapshot.daemon.audit.iter().filter(of_key).cloned().collect();
    Ok(Json(History { items: page.items, next: page.next, audit }).into_response())
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReasonBody {
    reason: String,
}

/// `POST /v1/keys/{id}/retire`
pub async fn retire(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    Body(body): Body<ReasonBody>,
) -> Result<Response, Problem> {
    let action = Action::RetireKey { key: key_id(&id)?, reason: reason(&body.reason)? };
    perform(&doors, operator.actor, action).await
}

/// `POST /v1/keys/{id}/versions/{version}/retire`
pub async fn retire_version(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(path): Segments<(String, String)>,
    Body(body): Body<ReasonBody>,
) -> Result<Response, Problem> {
    let (id, version) = path;
    let key = key_id(&id)?;
    if version.is_empty() || version.len() > 256 || version.chars().any(char::is_control) {
        return Err(Problem::unknown("unknown_version", "version", &version));
    }
    let action = Action::RetireVersion { key, version: KeyVersion::new(&version), reason: reason(&body.reason)? };
    perform(&doors, operator.actor, action).await
}
