//! outside
//! `GET /v1/workspaces/{ws}/lease` and the public keys that leases are checked with. A lease is given
//! only while the gate itself would say open; the rules are in `lease`.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::access::Reader;
use super::input::Segments;
use super::problem::Problem;
use super::{Doors, workspaces};
use crate::config::Config;
use crate::lease::{Claims, NoLease};
use crate::policy::Policy;
use crate::snapshot::WorkspaceView;
use crate::store::lease_keys::{LeaseKeys, token_id};
use crate::time::Span;
use crate::words::{Access, Code};

/// How often the keys are looked after; a next key is shown an hour ahead.
const TEND: Duration = Duration::from_secs(60);

/// Lease lengths of the policies of a workspace's keys.
fn ttls(view: &WorkspaceView, config: &Config) -> Vec<Span> {
    let of = |id| config.keys.get(id).and_then(|key| config.policies.get(&key.policy)).map(|policy| policy.lease_ttl);
    view.keys.iter().filter_map(of).collect()
}

/// `GET /v1/workspaces/{ws}/lease`
pub async fn lease(_: Reader, State(doors): State<Doors>, Segments(ws): Segments<String>) -> Result<Response, Problem> {
    let given = give(&doors, &ws);
    doors.app.metrics.lease(match &given {
        Ok(_) => "given",
        Err(problem) if problem.status == StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        Err(_) => "refused",
    });
    let (token, claims) = given?;
    let body = json!({
        "lease": token, "workspace": claims.sub, "sequence": claims.sequence, "access": claims.access,
        "expires_in_ms": claims.length().as_millis(),
    });
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn give(doors: &Doors, ws: &str) -> Result<(String, Claims), Problem> {
    let snapshot = workspaces::ready(&doors.app)?;
    let view = workspaces::find(&snapshot, ws)?;
    let (config, now) = (doors.app.config.load(), crate::clock::now());
    let fresh = snapshot.fresh_at.is_some_and(|at| now.mono.since(at) <= config.gate.max_age);
    if !fresh && view.access == Access::Open {
        return Err(Problem::unavailable("stale", "this instance has not been kept up to date; it cannot tell", 5));
    }
    let unavailable = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "no lease could be signed");
        Problem::unavailable("no_lease_key", "leases cannot be signed now", 5)
    };
    let jti = token_id().map_err(|error| unavailable(&error))?;
    let otherwise = Policy::default().lease_ttl;
    let claims = Claims::of(&view, ttls(&view, &config).into_iter(), otherwise, now.wall, jti).map_err(|NoLease::NotOpen(access)| {
        let code = view.code.unwrap_or(Code::CmekKeyDisabled).as_str();
        Problem::new(StatusCode::FORBIDDEN, code, format!("workspace `{}` is {access}; leases are for open ones", view.workspace))
    })?;
    let token = doors.app.leases.sign(&claims, now.wall).map_err(|error| unavailable(&error))?;
    Ok((token, claims))
}

/// `GET /.well-known/jwks.json`: open to all, there is nothing secret in it.
pub async fn jwks(State(doors): State<Doors>) -> Response {
    let mut response = Json(json!({ "keys": doors.app.leases.public() })).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    // Shorter than a key is shown ahead of its use.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=600"));
    response
}

/// Makes and drops keys when their time has come, until it is dropped itself.
pub async fn tend(leases: Arc<LeaseKeys>, config: Arc<ArcSwap<Config>>) {
    let mut every = tokio::time::interval(TEND);
    loop {
        every.tick().await;
        let (leases, max_age) = (Arc::clone(&leases), config.load().gate.lease_key_max_age);
        let done = tokio::task::spawn_blocking(move || leases.tend(max_age, crate::clock::now().wall)).await;
        if let Ok(Err(error)) = done {
            tracing::error!(%error, "lease keys could not be rotated; the present one goes on");
        }
    }
}
