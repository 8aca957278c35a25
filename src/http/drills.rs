//! outside
//! Drills: rehearsed revocations, begun, listed and ended. Hands them to the core; it must never
//! lower an access of its own.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Doors;
use super::access::{Operator, Reader};
use super::ask::perform;
use super::input::{Body, Segments, reason};
use super::problem::Problem;
use super::workspaces::{Page, ready};
use crate::operate::Action;
use crate::time::Span;

/// How long a drill lasts unless told.
const USUAL: Span = Span::from_mins(15);

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillBody {
    /// Id of a workspace or of a key.
    target: String,
    reason: String,
    #[serde(rename = "for")]
    length: Option<String>,
    #[serde(default)]
    cut: bool,
}

/// `GET /v1/drills`: under way, and the last that ended.
pub async fn list(_: Reader, State(doors): State<Doors>) -> Result<Response, Problem> {
    let snapshot = ready(&doors.app)?;
    Ok(Json(Page { items: snapshot.daemon.drills.clone(), next: None }).into_response())
}

/// `POST /v1/drills`
pub async fn start(operator: Operator, State(doors): State<Doors>, Body(body): Body<DrillBody>) -> Result<Response, Problem> {
    let length = match body.length {
        Some(text) => text.parse::<Span>().map_err(|error| Problem::invalid(format!("for: {error}")))?,
        None => USUAL,
    };
    if body.target.len() > 128 {
        return Err(Problem::invalid("target is longer than 128 characters"));
    }
    let action = Action::Drill { target: body.target, length, cut: body.cut, reason: reason(&body.reason)? };
    perform(&doors, operator.actor, action).await
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndBody {
    reason: String,
}

/// `POST /v1/drills/{id}/end`
pub async fn end(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    Body(body): Body<EndBody>,
) -> Result<Response, Problem> {
    perform(&doors, operator.actor, Action::EndDrill { id, reason: reason(&body.reason)? }).await
}
