//! outside
//! `POST /v1/hints/{source}`: pushed events. It says who may speak, reads the body, and hands what it
//! means to the core, which makes the keys due. It must never fetch what a body points to.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::{Semaphore, oneshot};

use super::access::{Asking, Peer};
use super::input::Segments;
use super::problem::Problem;
use super::{Ask, Doors};
use crate::audit::hint::{self, BadHint};
use crate::audit::oidc::{Claimed, Keys};
use crate::audit::{Hint, Told, mask};
use crate::config::{AuditKind, AuditSource, PushAuth, SecretRef};
use crate::metrics::{HintOutcome, RefusedReason};
use crate::operate::{Action, Operation, Reply};
use crate::words::Role;

/// The core has so long to take a hint before the sender is told that it is on its way.
const TAKEN_IN: Duration = Duration::from_secs(2);
/// Hints under way at the same time: a flood of them must leave room for operators.
const AT_ONCE: usize = 64;

/// What the doors keep for hints.
#[derive(Clone)]
pub struct Hints {
    places: Arc<Semaphore>,
    keys: Arc<Keys>,
}

impl Default for Hints {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), keys: Arc::new(Keys::default()) }
    }
}

/// `POST /v1/hints/{source}`
pub async fn take(
    State(doors): State<Doors>,
    Segments(name): Segments<String>,
    request: axum::extract::Request,
) -> Result<Response, Problem> {
    let source = doors.app.config.load().audit.iter().find(|s| s.name == name && s.kind == AuditKind::Push).cloned();
    let source = source.ok_or_else(|| Problem::unknown("unknown_source", "audit source", &name))?;
    let (parts, body) = request.into_parts();
    if let Err(problem) = admit(&doors, &source, &parts).await {
        doors.app.metrics.hint(&source.name, HintOutcome::Refused);
        return Err(problem);
    }
    let Ok(_place) = doors.hints.places.try_acquire() else {
        doors.app.metrics.hint(&source.name, HintOutcome::Busy);
        doors.refused(RefusedReason::TooMany, "/v1/hints");
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "too many hints under way").retry_after(1));
    };
    let bytes = axum::body::to_bytes(body, doors.limits.hint_bytes).await.map_err(|_| {
        doors.refused(RefusedReason::BodyTooLarge, "/v1/hints");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("a hint has {} bytes at most", doors.limits.hint_bytes))
    })?;
    match hint::read(&bytes) {
        Ok(Hint::Validation(code)) => {
            doors.app.metrics.hint(&source.name, HintOutcome::Validation);
            Ok(Json(serde_json::json!({ "validationResponse": code })).into_response())
        }
        Ok(Hint::Events(mut events)) => {
            events.iter_mut().for_each(|event| mask(event, &source.mask));
            hand_over(&doors, &source, events).await
        }
        Err(fault) => {
            doors.app.metrics.hint(&source.name, HintOutcome::Malformed);
            tracing::warn!(source = source.name, %fault, "a hint could not be read");
            let status = if fault == BadHint::TooMany { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::UNPROCESSABLE_ENTITY };
            Err(Problem::new(status, "bad_hint", fault.to_string()))
        }
    }
}

/// Gives the events to the core and says how many keys they speak of.
async fn hand_over(doors: &Doors, source: &AuditSource, events: Vec<crate::audit::AuditEvent>) -> Result<Response, Problem> {
    for event in &events {
        doors.app.metrics.audit_event(&source.name, event.meaning);
    }
    let count = events.len();
    let (answer, answered) = oneshot::channel();
    let told = Box::new(Told { source: source.name.clone(), events, ..Told::default() });
    let operation = Operation { actor: format!("audit:{}", source.name), action: Action::Audit { told } };
    if doors.app.asks.try_send(Ask { operation, answer }).is_err() {
        doors.app.metrics.hint(&source.name, HintOutcome::Busy);
        return Err(Problem::unavailable("busy", "the hint could not be taken now", 1));
    }
    let (status, keys) = match tokio::time::timeout(TAKEN_IN, answered).await {
        Ok(Ok(Ok(Reply::Heard(keys)))) => (StatusCode::OK, Some(keys)),
        Ok(Ok(Ok(_))) => (StatusCode::OK, None),
        // Said again by the sender: what is not on disk must not be lost.
        Ok(Ok(Err(refusal))) => return Err(refusal.into()),
        Ok(Err(_)) => return Err(Problem::unavailable("stopping", "the daemon is stopping", 5)),
        Err(_) => (StatusCode::ACCEPTED, None),
    };
    let outcome = if keys == Some(0) { HintOutcome::Unmatched } else { HintOutcome::Accepted };
    doors.app.metrics.hint(&source.name, outcome);
    Ok((status, Json(serde_json::json!({ "events": count, "keys": keys }))).into_response())
}

async fn admit(doors: &Doors, source: &AuditSource, parts: &axum::http::request::Parts) -> Result<(), Problem> {
    let headers = &parts.headers;
    match &source.auth {
        None => {
            let peer = parts.extensions.get::<Peer>().copied();
            let asking = Asking { peer, method: &parts.method, uri: &parts.uri, headers };
            asking.permit(doors, Role::Hint).map(|_| ())
        }
        Some(PushAuth::ApiKey(secret)) => by_secret(doors, headers, "x-api-key", secret).await,
        Some(PushAuth::SasKey(secret)) => by_secret(doors, headers, "aeg-sas-key", secret).await,
        Some(PushAuth::Oidc { audience, issuer, jwks, subject }) => {
            let claimed = Claimed { audience, issuer, subject };
            let token = bearer(headers).ok_or_else(|| shut(doors, RefusedReason::NoToken, "a signed token is needed"))?;
            doors.hints.keys.check(token, jwks, &claimed).await.map_err(|fault| {
                tracing::warn!(source = source.name, %fault, "the token of a hint is refused");
                shut(doors, RefusedReason::BadToken, "the token is not accepted")
            })
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get("authorization")?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A key in a header, compared in constant time.
async fn by_secret(doors: &Doors, headers: &HeaderMap, name: &str, secret: &SecretRef) -> Result<(), Problem> {
    let given = headers.get(name).ok_or_else(|| shut(doors, RefusedReason::NoToken, "the key of the hint's sender is missing"))?;
    let secret = secret.clone();
    // Read each time, so that a key can be changed without a restart.
    let known = tokio::task::spawn_blocking(move || crate::secrets::resolve(&secret)).await;
    let Ok(Ok(known)) = known else {
        tracing::error!(header = name, "the key that hints are checked against cannot be resolved; they are refused");
        return Err(Problem::unavailable("misconfigured", "hints cannot be checked now", 60));
    };
    let same = !known.expose().is_empty()
        && aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), known.expose().as_bytes()).is_ok();
    if same { Ok(()) } else { Err(shut(doors, RefusedReason::BadToken, "the key of the hint's sender is not known")) }
}

fn shut(doors: &Doors, reason: RefusedReason, detail: &str) -> Problem {
    doors.refused(reason, "/v1/hints");
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).challenge("Bearer realm=\"cmek-watchdog\"")
}
