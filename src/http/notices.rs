//! outside
//! The outbox as operators see it: what waits, what is dead, what nobody has acknowledged; and the
//! orders to acknowledge and to send again. It must never show more than the notices themselves say.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Doors;
use super::access::{Operator, Reader};
use super::ask::perform;
use super::input::{Filter, NoBody, Segments, limit};
use super::problem::Problem;
use crate::notify::NoticeId;
use crate::operate::{Action, NoticeFilter, NoticeView};

const STATES: [&str; 3] = ["pending", "dead", "unacknowledged"];

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct NoticesQuery {
    state: Option<String>,
    limit: Option<u32>,
}

/// `GET /v1/notices?state=`
pub async fn list(reader: Reader, State(doors): State<Doors>, Filter(query): Filter<NoticesQuery>) -> Result<Response, Problem> {
    let state = query.state.unwrap_or_else(|| "pending".to_owned());
    if !STATES.contains(&state.as_str()) {
        let detail = format!("state: expected one of: {}", STATES.join(", "));
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail));
    }
    let filter = NoticeFilter { state, limit: limit(query.limit)? };
    perform(&doors, reader.actor, Action::ListNotices { filter }).await
}

pub fn shown(views: &[NoticeView]) -> Response {
    Json(serde_json::json!({ "items": views })).into_response()
}

/// `POST /v1/notices/{id}/ack`
pub async fn acknowledge(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    _: NoBody,
) -> Result<Response, Problem> {
    perform(&doors, operator.actor, Action::AcknowledgeNotice { id: NoticeId(id.into()) }).await
}

/// `POST /v1/notices/{id}/resend`
pub async fn resend(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    _: NoBody,
) -> Result<Response, Problem> {
    perform(&doors, operator.actor, Action::ResendNotices { id: Some(NoticeId(id.into())) }).await
}

/// `POST /v1/notices/resend`: every dead letter.
pub async fn resend_all(operator: Operator, State(doors): State<Doors>, _: NoBody) -> Result<Response, Problem> {
    perform(&doors, operator.actor, Action::ResendNotices { id: None }).await
}
