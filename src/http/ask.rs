//! outside
//! The way from a door to the core and back: a bounded channel, one answer, one deadline. A full
//! channel is told to the caller at once; it must never make the core wait.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

use super::problem::Problem;
use super::{Ask, Doors, workspaces};
use crate::metrics::RefusedReason;
use crate::operate::{Action, Answered, Operation, Reply};

/// How asking ended.
#[derive(Debug)]
pub enum Asked {
    Answered(Answered),
    /// The core did not answer in time; the order may still be carried out.
    Late,
}

/// Hands an order to the core and waits for its answer.
///
/// # Errors
/// 503 if the core takes no more orders now, or is stopping.
pub async fn ask(doors: &Doors, actor: String, action: Action) -> Result<Asked, Problem> {
    let (answer, answered) = oneshot::channel();
    let operation = Operation { actor, action };
    doors.app.asks.try_send(Ask { operation, answer }).map_err(|error| match error {
        TrySendError::Full(_) => {
            doors.refused(RefusedReason::Busy, "");
            Problem::unavailable("busy", "too many orders under way", 1)
        }
        TrySendError::Closed(_) => Problem::unavailable("stopping", "the daemon is stopping", 5),
    })?;
    match tokio::time::timeout(doors.limits.answer, answered).await {
        Ok(Ok(answered)) => Ok(Asked::Answered(answered)),
        Ok(Err(_)) => Err(Problem::unavailable("stopping", "the daemon stopped before it answered", 5)),
        Err(_) => Ok(Asked::Late),
    }
}

/// As [`ask`], answered as HTTP.
///
/// # Errors
/// The core's refusal, or 503 without an answer in time.
pub async fn perform(doors: &Doors, actor: String, action: Action) -> Result<Response, Problem> {
    match ask(doors, actor, action).await? {
        Asked::Answered(Ok(reply)) => Ok(told(doors, reply)),
        Asked::Answered(Err(refusal)) => Err(refusal.into()),
        Asked::Late => {
            let detail = "no answer in time; the order may still be carried out, look before asking again";
            Err(Problem::unavailable("timed_out", detail, 5))
        }
    }
}

fn told(doors: &Doors, reply: Reply) -> Response {
    match reply {
        Reply::Done => (StatusCode::OK, Json(serde_json::json!({ "done": true }))).into_response(),
        Reply::Workspace(view) => workspaces::answer(doors, &view),
        Reply::Drill(view) => Json(&*view).into_response(),
        Reply::Key(view) => Json(&*view).into_response(),
        Reply::Heard(keys) => Json(serde_json::json!({ "keys": keys })).into_response(),
        Reply::Notices(views) => super::notices::shown(&views),
        Reply::Health(why) => Json(serde_json::json!({ "why": why })).into_response(),
        Reply::Registered(view) => (StatusCode::CREATED, Json(&*view)).into_response(),
        Reply::Released(count) => Json(serde_json::json!({ "released": count })).into_response(),
    }
}
