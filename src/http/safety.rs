//! outside
//! Safety metadata at the doors: records and preservations for tokens of role `safety`, the state of the
//! vault for readers, wrapping anew for operators. No lock of a customer's key is asked about here, and
//! what cannot be opened is a 503 or a named damage, never an empty answer.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Doors;
use super::access::{Operator, Reader, Safety};
use super::ask::{Asked, ask};
use super::input::{Body, Filter, NoBody, Segments, limit};
use super::problem::Problem;
use super::workspaces::{find, ready};
use crate::clock;
use crate::key::WorkspaceId;
use crate::time::Wall;
use crate::vault::PreservationRow;
use crate::vault::desk::{Expect, Listed, Vault, VaultFault};
use crate::vault::envelope::Place;
use crate::vault::look::{REWRAP_COMMAND, event_of};
use crate::vault::preservation::{self, Preserved, ReasonCode};
use crate::vault::record::{RECORD_BYTES, RecordId, SafetyRecord};

impl From<VaultFault> for Problem {
    fn from(fault: VaultFault) -> Self {
        let text = fault.to_string();
        match fault {
            VaultFault::NotConfigured => Self::new(StatusCode::NOT_FOUND, "vault_not_configured", text),
            VaultFault::KeyUnavailable(error) => {
                let detail = format!("the operator's key does not open the vault now ({}); nothing is lost, ask again", error.kind);
                Self::unavailable("operator_key_unavailable", detail, 10)
            }
            VaultFault::Damaged { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "record_damaged", text),
            VaultFault::UnknownRecord(id) => Self::unknown("unknown_record", "record", &id),
            VaultFault::Precondition { .. } => Self::new(StatusCode::PRECONDITION_FAILED, "revision_differs", text),
            VaultFault::Full { .. } => Self::new(StatusCode::CONFLICT, "vault_full", text),
            VaultFault::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", text).retry_after(1),
            VaultFault::Store(fault) => {
                tracing::error!(%fault, "the store did not serve the vault");
                Self::unavailable("store_unavailable", "the store does not serve the vault now", 2)
            }
            VaultFault::Seal(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "seal_failed", text),
        }
    }
}

/// The vault and the workspace, which must be known to the daemon; its access does not matter.
fn at<'d>(doors: &'d Doors, ws: &str) -> Result<(&'d Vault, WorkspaceId), Problem> {
    let snapshot = ready(&doors.app)?;
    let view = find(&snapshot, ws)?;
    Ok((vault_of(doors)?, view.workspace.clone()))
}

fn vault_of(doors: &Doors) -> Result<&Vault, Problem> {
    doors.app.vault.as_deref().filter(|vault| vault.configured()).ok_or_else(|| VaultFault::NotConfigured.into())
}

fn record_id(text: &str) -> Result<RecordId, Problem> {
    RecordId::new(text).map_err(|_| Problem::unknown("unknown_record", "record", text))
}

/// A record as shown.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Shown<'a> {
    workspace: &'a WorkspaceId,
    record: &'a str,
    revision: u64,
    schema: u32,
    written_at: Wall,
    /// True if the row does not open as what was written; `data` is null then.
    damaged: bool,
    data: Option<&'a SafetyRecord>,
}

impl<'a> Shown<'a> {
    fn new(place: &'a Place, data: Option<&'a SafetyRecord>) -> Self {
        let Place { workspace, id, revision, schema, written_at, .. } = place;
        Self { workspace, record: id, revision: *revision, schema: *schema, written_at: *written_at, damaged: data.is_none(), data }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ListQuery {
    limit: Option<u32>,
    after: Option<String>,
}

/// One more than asked for tells whether there is a next page.
fn page<T>(mut items: Vec<T>, limit: usize, id: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(id);
    (items, next)
}

/// `GET /v1/workspaces/{ws}/safety-metadata`
pub async fn list(
    _: Safety,
    State(doors): State<Doors>,
    Segments(ws): Segments<String>,
    Filter(query): Filter<ListQuery>,
) -> Result<Response, Problem> {
    let limit = limit(query.limit)?;
    let (vault, ws) = at(&doors, &ws)?;
    let listed = vault.list(&ws, &query.after.unwrap_or_default(), limit.saturating_add(1), clock::now()).await?;
    let (items, next) = page(listed, limit, |item: &Listed| item.place.id.to_string());
    let items: Vec<Shown<'_>> = items.iter().map(|item| Shown::new(&item.place, item.data.as_ref())).collect();
    Ok(Json(json!({ "items": items, "next": next, "counts": vault.counts(&ws) })).into_response())
}

/// `GET /v1/workspaces/{ws}/safety-metadata/{record}`
pub async fn one(_: Safety, State(doors): State<Doors>, Segments(path): Segments<(String, String)>) -> Result<Response, Problem> {
    let (vault, ws) = at(&doors, &path.0)?;
    let id = record_id(&path.1)?;
    let read = vault.get(&ws, &id, clock::now()).await?.ok_or_else(|| Problem::unknown("unknown_record", "record", id.as_str()))?;
    Ok(tagged(StatusCode::OK, &read.place, &read.data))
}

fn tagged(status: StatusCode, place: &Place, data: &SafetyRecord) -> Response {
    let mut response = (status, Json(Shown::new(place, Some(data)))).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", place.revision)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// `PUT /v1/workspaces/{ws}/safety-metadata/{record}`: 201 for a new record, 200 for a replaced one.
pub async fn put(
    safety: Safety,
    State(doors): State<Doors>,
    Segments(path): Segments<(String, String)>,
    headers: HeaderMap,
    Body(body): Body<Value>,
) -> Result<Response, Problem> {
    let (vault, ws) = at(&doors, &path.0)?;
    let id = record_id(&path.1)?;
    let expect = expected(&headers)?;
    if serde_json::to_vec(&body).map_or(usize::MAX, |bytes| bytes.len()) > RECORD_BYTES {
        let detail = format!("a record has {RECORD_BYTES} bytes at most");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "record_too_large", detail));
    }
    let data: SafetyRecord =
        serde_json::from_value(body).map_err(|error| Problem::invalid(format!("the record cannot be used: {error}")))?;
    data.check().map_err(|fault| Problem::invalid(fault.to_string()))?;
    let place = vault.put(&ws, &id, &data, expect, clock::now()).await?;
    tracing::info!(workspace = %ws, record = %id, revision = place.revision, actor = safety.actor, "a safety record was written");
    let status = if place.revision == 1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok(tagged(status, &place, &data))
}

/// `If-Match: "REVISION"` or `If-None-Match: *`.
fn expected(headers: &HeaderMap) -> Result<Expect, Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("").trim());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Expect::Any),
        (None, Some("*")) => Ok(Expect::Absent),
        (Some(tag), None) => {
            let revision = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
            // A tag that we never gave matches nothing.
            Ok(Expect::Revision(revision.unwrap_or(u64::MAX)))
        }
        (_, Some(_)) => Err(Problem::invalid("If-None-Match: only `*`, and not beside If-Match")),
    }
}

/// A preservation as listed.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Kept<'a> {
    workspace: &'a WorkspaceId,
    id: &'a str,
    reason_code: ReasonCode,
    person: &'a str,
    at: Wall,
    /// Whether its activity event is in the journal; if not, it is written again.
    journaled: bool,
}

impl<'a> Kept<'a> {
    fn new(row: &'a PreservationRow) -> Self {
        let Place { workspace, id, written_at, .. } = &row.sealed.place;
        Self { workspace, id, reason_code: row.reason, person: &row.person, at: *written_at, journaled: row.journaled }
    }

    fn with(self, kept: &Preserved) -> Value {
        json!({
            "workspace": self.workspace, "id": self.id, "reason_code": self.reason_code, "person": self.person, "at": self.at,
            "journaled": self.journaled, "records": kept.records, "content": kept.content,
        })
    }
}

/// `POST /v1/workspaces/{ws}/preservations`: kept first, then its event; answered when both are stored.
pub async fn preserve(
    safety: Safety,
    State(doors): State<Doors>,
    Segments(ws): Segments<String>,
    Body(body): Body<preservation::Asked>,
) -> Result<Response, Problem> {
    let (vault, ws) = at(&doors, &ws)?;
    body.check().map_err(|fault| Problem::invalid(fault.to_string()))?;
    let (mut row, kept) = vault.preserve(&ws, body, clock::now()).await?;
    // Kept is kept: an event that cannot be written now is written later, and until then shows as missing.
    let event = ask(&doors, safety.actor, event_of(&row)).await;
    if matches!(event, Ok(Asked::Answered(Ok(_)))) {
        row.journaled = true;
        if let Err(error) = vault.journaled(&row.sealed.place.id).await {
            tracing::warn!(%error, "an event was written and could not be noted; it is written again");
        }
    }
    tracing::info!(workspace = %ws, preservation = %row.sealed.place.id, reason = row.reason.as_str(), "safety metadata was preserved");
    Ok((StatusCode::CREATED, Json(Kept::new(&row).with(&kept))).into_response())
}

/// `GET /v1/workspaces/{ws}/preservations`: without their content.
pub async fn preservations(
    _: Safety,
    State(doors): State<Doors>,
    Segments(ws): Segments<String>,
    Filter(query): Filter<ListQuery>,
) -> Result<Response, Problem> {
    let limit = limit(query.limit)?;
    let (vault, ws) = at(&doors, &ws)?;
    let rows = vault.preservations(&ws, &query.after.unwrap_or_default(), limit.saturating_add(1)).await?;
    let (rows, next) = page(rows, limit, |row: &PreservationRow| row.sealed.place.id.to_string());
    let items: Vec<Kept<'_>> = rows.iter().map(Kept::new).collect();
    Ok(Json(json!({ "items": items, "next": next, "counts": vault.counts(&ws) })).into_response())
}

/// `GET /v1/workspaces/{ws}/preservations/{id}`: with its content; who read it is logged.
pub async fn preservation(
    safety: Safety,
    State(doors): State<Doors>,
    Segments(path): Segments<(String, String)>,
) -> Result<Response, Problem> {
    let (vault, ws) = at(&doors, &path.0)?;
    let id = record_id(&path.1)?;
    let found = vault.preservation(&ws, id.as_str(), clock::now()).await?;
    let (row, kept) = found.ok_or_else(|| Problem::unknown("unknown_preservation", "preservation", id.as_str()))?;
    tracing::info!(workspace = %ws, preservation = %id, actor = safety.actor, "a preservation was read");
    Ok(Json(Kept::new(&row).with(&kept)).into_response())
}

/// `GET /v1/vault`: how the vault stands; nothing that is in it.
pub async fn vault(_: Reader, State(doors): State<Doors>) -> Result<Response, Problem> {
    let vault = vault_of(&doors)?;
    let keys: Vec<Value> = vault
        .looks()
        .iter()
        .map(|(role, look)| {
            json!({
                "role": role, "provider": look.wanted.name.provider, "key": look.wanted.name.reference, "version": look.wanted.version,
                "healthy": look.fault.is_none(), "failure_kind": look.fault.as_ref().map(|fault| fault.kind),
                "code": look.fault.as_ref().map(|fault| &fault.code), "since": look.since, "last_looked_at": look.at,
            })
        })
        .collect();
    let (data_keys, stale) = vault.data_keys().await;
    let body = json!({
        "readable": vault.readable(), "keys": keys, "counts": vault.totals(), "data_keys": { "all": data_keys, "to_rewrap": stale },
    });
    Ok(Json(body).into_response())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct RewrapQuery {
    #[serde(default)]
    all: bool,
}

/// `POST /v1/vault/rewrap[?all=true]`: data keys that lie under an old key or version, or every one.
pub async fn rewrap(_: Operator, State(doors): State<Doors>, Filter(query): Filter<RewrapQuery>, _: NoBody) -> Result<Response, Problem> {
    let came = vault_of(&doors)?.rewrap(query.all, REWRAP_COMMAND).await?;
    Ok(Json(came).into_response())
}
