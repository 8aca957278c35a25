//! outside
//! What comes in: path segments, query and body, read into types that cannot be wrong. A malformed
//! id is a 404, everything else that cannot be used a 413, 415 or 422, always as a problem.

use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, RawPathParams, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::Doors;
use super::access::is_json;
use super::problem::Problem;
use crate::key::{KeyId, ProviderId, ReceiverId, WorkspaceId};
use crate::metrics::RefusedReason;

/// Longest list that is answered at once.
pub const MOST: u32 = 1000;
/// Length of a list where none is asked for.
pub const USUAL: u32 = 100;
/// Longest reason that an operator may give, in bytes.
const REASON_MOST: usize = 1000;

/// Path segments as text; a segment that is no text is a 404.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Doors> for Segments<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, doors: &Doors) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, doors).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(_) => {
                let named = RawPathParams::from_request_parts(parts, doors).await.is_ok();
                let detail = if named { "the path names nothing known" } else { "the path is not UTF-8" };
                Err(Problem::new(StatusCode::NOT_FOUND, "not_found", detail))
            }
        }
    }
}

/// # Errors
/// 404 for a text that cannot be a workspace.
pub fn workspace_id(text: &str) -> Result<WorkspaceId, Problem> {
    WorkspaceId::new(text).map_err(|_| Problem::unknown("unknown_workspace", "workspace", text))
}

/// # Errors
/// 404 for a text that cannot be a key id.
pub fn key_id(text: &str) -> Result<KeyId, Problem> {
    KeyId::new(text).map_err(|_| Problem::unknown("unknown_key", "key", text))
}

/// # Errors
/// 404 for a text that cannot be a provider.
pub fn provider_id(text: &str) -> Result<ProviderId, Problem> {
    ProviderId::new(text).map_err(|_| Problem::unknown("unknown_provider", "provider", text))
}

/// # Errors
/// 404 for a text that cannot be a receiver.
pub fn receiver_id(text: &str) -> Result<ReceiverId, Problem> {
    ReceiverId::new(text).map_err(|_| Problem::unknown("unknown_receiver", "receiver", text))
}

/// The query; a field that cannot be read is a 422 that names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Doors> for Filter<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, doors: &Doors) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, doors).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem::invalid(rejection.body_text())),
        }
    }
}

/// # Errors
/// 422 outside 1 to 1,000.
pub fn limit(asked: Option<u32>) -> Result<usize, Problem> {
    match asked.unwrap_or(USUAL) {
        limit @ 1..=MOST => Ok(usize::try_from(limit).unwrap_or(usize::MAX)),
        _ => Err(Problem::invalid("limit must be 1 to 1000")),
    }
}

/// # Errors
/// 422 beyond what a JSON number holds exactly.
pub fn after(asked: Option<u64>) -> Result<u64, Problem> {
    match asked.unwrap_or(0) {
        after @ 0..=9_007_199_254_740_991 => Ok(after),
        _ => Err(Problem::invalid("after must be a sequence, below 2^53")),
    }
}

/// A JSON body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Doors> for Body<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, doors: &Doors) -> Result<Self, Problem> {
        let bytes = json_bytes(request, doors).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Problem::invalid(format!("the body cannot be used: {error}")))
    }
}

/// A body that is declared as JSON, unread.
///
/// # Errors
/// 413 if it is too long, 415 if it is declared as something else.
pub async fn json_bytes(request: Request, doors: &Doors) -> Result<bytes::Bytes, Problem> {
    let json = is_json(request.headers());
    let path = request.uri().path().to_owned();
    let bytes = bytes(request, doors).await?;
    if !json {
        doors.refused(RefusedReason::MediaType, &path);
        let detail = "the body must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    Ok(bytes)
}

/// No body, or one that is ignored as long as it is small: for orders that need no words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoBody;

impl FromRequest<Doors> for NoBody {
    type Rejection = Problem;
    async fn from_request(request: Request, doors: &Doors) -> Result<Self, Problem> {
        let json = is_json(request.headers());
        let path = request.uri().path().to_owned();
        let bytes = bytes(request, doors).await?;
        if bytes.is_empty() || json {
            return Ok(Self);
        }
        doors.refused(RefusedReason::MediaType, &path);
        Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "send no body, or application/json"))
    }
}

async fn bytes(request: Request, doors: &Doors) -> Result<bytes::Bytes, Problem> {
    let path = request.uri().path().to_owned();
    bytes::Bytes::from_request(request, doors).await.map_err(|rejection: BytesRejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            doors.refused(RefusedReason::BodyTooLarge, &path);
            let detail = format!("a body has {} bytes at most", doors.limits.body_bytes);
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
        }
        Problem::invalid("the body could not be read")
    })
}

/// The reason of an operator, for journal and notices.
///
/// # Errors
/// 422 if it is empty or longer than 1,000 bytes.
pub fn reason(text: &str) -> Result<String, Problem> {
    let text = text.trim();
    if text.is_empty() || text.len() > REASON_MOST {
        return Err(Problem::invalid("reason must have 1 to 1000 bytes"));
    }
    Ok(text.to_owned())
}
