//! outside
//! The gate for proxies: may this workspace use this feature now? Answered from the published
//! snapshot alone; it must never wait for the core, never read a body, and never answer 200 where
//! it is not sure which workspace or feature is meant.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::access::{Asking, Peer};
use super::problem::Problem;
use super::{App, Doors};
use crate::config::{Config, UnknownWorkspace};
use crate::gate::{self, Decision, GateEntry};
use crate::key::WorkspaceId;
use crate::metrics::GateResult;
use crate::published::Snapshot;
use crate::snapshot::WorkspaceView;
use crate::time::Mono;
use crate::words::Code;

const WORKSPACE: HeaderName = HeaderName::from_static("x-workspace-id");
const FEATURE: HeaderName = HeaderName::from_static("x-feature");
const ACCESS: HeaderName = HeaderName::from_static("x-access");
const LOCKOUT_CODE: HeaderName = HeaderName::from_static("x-lockout-code");
const LOCKOUT_REASON: HeaderName = HeaderName::from_static("x-lockout-reason");
const LOCKOUT_UNKNOWN: HeaderName = HeaderName::from_static("x-lockout-unknown");
const BAD_REQUEST: &str = "bad_gate_request";
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// `/v1/authz` and everything below it, any method.
pub async fn authz(State(doors): State<Doors>, request: Request) -> Response {
    let app = &doors.app;
    let config = app.config.load();
    let peer = request.extensions().get::<Peer>().copied();
    let asking = Asking { peer, method: request.method(), uri: request.uri(), headers: request.headers() };
    if let Err(problem) = asking.permit_gate(&config.server, &app.metrics) {
        return problem.into_response();
    }
    judge(app, &config, request.headers(), crate::clock::now().mono)
}

/// TRACE would mirror the caller's secrets.
pub async fn not_by_trace() -> Response {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "TRACE is refused everywhere");
    let mut response = problem.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
    response
}

fn judge(app: &App, config: &Config, headers: &HeaderMap, now: Mono) -> Response {
    let Ok(asked) = Asked::read(headers) else { return bad_request(app) };
    let snapshot = app.published.load();
    let Some(fresh_at) = snapshot.fresh_at.filter(|_| snapshot.daemon.ready) else {
        app.metrics.gate_decision(GateResult::CannotTell);
        return Problem::starting().into_response();
    };
    let (class, known) = config.features_of(asked.workspace).class(asked.feature);
    if !known {
        app.metrics.unknown_feature();
    }
    let Some(view) = snapshot.workspaces.get(asked.workspace) else {
        // Two ids joined by a comma, say, are not an unknown workspace.
        let malformed = WorkspaceId::new(asked.workspace).is_err();
        return if malformed { bad_request(app) } else { unknown(app, config, &snapshot, now) };
    };
    match gate::decide(&entry(view), class, asked.write, fresh_at, config.gate.max_age, now) {
        Decision::Allowed => {
            app.metrics.gate_decision(GateResult::Allowed);
            StatusCode::OK.into_response()
        }
        Decision::Denied(code) => {
            app.metrics.gate_decision(GateResult::Denied);
            denied(code.as_str(), view.message.as_deref().unwrap_or("this workspace is locked"))
        }
        Decision::CannotTell => stale(app),
    }
}

fn bad_request(app: &App) -> Response {
    app.metrics.gate_decision(GateResult::BadRequest);
    denied(BAD_REQUEST, "x-workspace-id is missing or malformed, or a gate header is there twice")
}

fn unknown(app: &App, config: &Config, snapshot: &Snapshot, now: Mono) -> Response {
    // A stale list of workspaces cannot say that one is not in it.
    if snapshot.fresh_at.is_none_or(|fresh| now.since(fresh) > config.gate.max_age) {
        return stale(app);
    }
    match config.gate.unknown_workspace {
        UnknownWorkspace::Deny => {
            app.metrics.gate_decision(GateResult::UnknownDenied);
            denied(Code::UnknownWorkspace.as_str(), "this workspace is not known here")
        }
        UnknownWorkspace::Allow => {
            app.metrics.gate_decision(GateResult::UnknownAllowed);
            (StatusCode::OK, [(LOCKOUT_UNKNOWN, HeaderValue::from_static("allowed"))]).into_response()
        }
    }
}

fn stale(app: &App) -> Response {
    app.metrics.gate_decision(GateResult::CannotTell);
    Problem::unavailable("stale", "this instance has not been kept up to date; it cannot tell", 5).into_response()
}

fn denied(code: &'static str, reason: &str) -> Response {
    let mut response = Problem::new(StatusCode::FORBIDDEN, code, reason).into_response();
    let headers = response.headers_mut();
    headers.insert(LOCKOUT_CODE, HeaderValue::from_static(code));
    headers.insert(LOCKOUT_REASON, one_line(reason));
    response
}

/// A header value of plain ASCII, at most 300 bytes.
fn one_line(text: &str) -> HeaderValue {
    let plain: String = text.chars().take(300).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect();
    HeaderValue::from_str(&plain).unwrap_or(HeaderValue::from_static("locked"))
}

/// What the gate needs of a workspace as shown.
#[must_use]
pub fn entry(view: &WorkspaceView) -> GateEntry {
    let WorkspaceView { workspace, access, code, sequence, durable, .. } = view;
    GateEntry { workspace: workspace.clone(), access: *access, code: *code, sequence: *sequence, durable: *durable }
}

struct Asked<'a> {
    workspace: &'a str,
    feature: Option<&'a str>,
    write: bool,
}

struct BadGateRequest;

impl<'a> Asked<'a> {
    /// Reads the three headers. One that is there twice is refused: a client could otherwise put its
    /// own before the gateway's. Anything but a plain `read` is a write.
    fn read(headers: &'a HeaderMap) -> Result<Self, BadGateRequest> {
        let workspace = once(headers, &WORKSPACE)?.ok_or(BadGateRequest)?.to_str().map_err(|_| BadGateRequest)?;
        if workspace.is_empty() {
            return Err(BadGateRequest);
        }
        // A name that is no text is no known feature: it counts as content.
        let feature = once(headers, &FEATURE)?.map(|value| value.to_str().unwrap_or("?")).filter(|name| !name.is_empty());
        let write = once(headers, &ACCESS)?.is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"read"));
        Ok(Self { workspace, feature, write })
    }
}

fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, BadGateRequest> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(BadGateRequest) } else { Ok(first) }
}
