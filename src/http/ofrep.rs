//! outside
//! OpenFeature Remote Evaluation (OFREP): the gate as boolean flags, one for each feature and
//! `workspace_usable` for the workspace as a whole. Answers by the gate's own decision; it must
//! never answer true of a workspace that is not known, or while this instance cannot tell.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Doors;
use super::access::Reader;
use super::authz;
use super::input::{Segments, json_bytes};
use super::problem::Problem;
use super::workspaces::{Freshness, ready};
use crate::config::Config;
use crate::config::check::WORKSPACE_USABLE;
use crate::gate::{self, Decision};
use crate::published::Snapshot;
use crate::snapshot::WorkspaceView;
use crate::time::Now;
use crate::words::{Access, Code, FeatureClass};

pub mod stream;
pub mod ticket;

/// An error as OFREP words it. `key` is absent where all flags were asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    #[serde(skip)]
    status: StatusCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    error_code: &'static str,
    error_details: String,
}

impl Failure {
    fn bad(error_code: &'static str, details: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, key: None, error_code, error_details: details.into() }
    }

    fn missing() -> Self {
        Self::bad("TARGETING_KEY_MISSING", "name the workspace in context.workspace or context.targetingKey")
    }

    fn about(mut self, flag: &str) -> Self {
        self.key = Some(flag.to_owned());
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, [(header::CACHE_CONTROL, "no-store")], Json(self)).into_response()
    }
}

/// A flag as answered.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Flag {
    key: String,
    value: bool,
    /// `TARGETING_MATCH`, `STATIC` (never locked), `DEFAULT` (unknown workspace), `STALE`.
    reason: &'static str,
    /// `allowed`, `denied`, `unknown`, `stale`.
    variant: &'static str,
    metadata: Map<String, Value>,
}

/// Who is asked about, and for what.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Context {
    workspace: String,
    write: bool,
}

impl Context {
    /// The workspace is `context.workspace`, else `context.targetingKey`; `context.access` is as the
    /// gate's `x-access`: anything but `read` is a write.
    fn read(body: &[u8]) -> Result<Self, Failure> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| Failure::bad("PARSE_ERROR", format!("the body is no JSON: {error}")))?;
        let Value::Object(body) = body else { return Err(Failure::bad("PARSE_ERROR", "the body must be a JSON object")) };
        let context = match body.get("context") {
            None => return Err(Failure::missing()),
            Some(Value::Object(context)) => context,
            Some(_) => return Err(Failure::bad("INVALID_CONTEXT", "context must be an object")),
        };
        let text = |name: &str| match context.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(Failure::bad("INVALID_CONTEXT", format!("context.{name} must be a text"))),
        };
        let (workspace, targeting_key, access) = (text("workspace")?, text("targetingKey")?, text("access")?);
        if workspace == Some("") {
            return Err(Failure::bad("INVALID_CONTEXT", "context.workspace is empty"));
        }
        let workspace = workspace.or(targeting_key.filter(|key| !key.is_empty())).ok_or_else(Failure::missing)?.to_owned();
        Ok(Self { workspace, write: !access.is_some_and(|access| access.eq_ignore_ascii_case("read")) })
    }
}

/// One consistent state to answer from.
struct Asked<'a> {
    context: Context,
    config: &'a Config,
    snapshot: &'a Snapshot,
    view: Option<&'a WorkspaceView>,
    now: Now,
}

impl<'a> Asked<'a> {
    fn new(context: Context, config: &'a Config, snapshot: &'a Snapshot, now: Now) -> Self {
        let view = snapshot.workspaces.get(context.workspace.as_str()).map(|view| &**view);
        Self { context, config, snapshot, view, now }
    }

    /// All flags, the workspace's own first.
    fn flags(&self) -> Vec<Flag> {
        let features = self.config.features_of(&self.context.workspace).each();
        let features = features.map(|(name, class)| self.flag(name, class, self.context.write));
        std::iter::once(self.usable()).chain(features).collect()
    }

    fn named(&self, flag: &str) -> Option<Flag> {
        if flag == WORKSPACE_USABLE {
            return Some(self.usable());
        }
        let (class, known) = self.config.features_of(&self.context.workspace).class(Some(flag));
        known.then(|| self.flag(flag, class, self.context.write))
    }

    /// True only while the workspace is open: whoever asks for one flag alone may write next.
    fn usable(&self) -> Flag {
        self.flag(WORKSPACE_USABLE, FeatureClass::Content, true)
    }

    fn decision(&self, class: FeatureClass, write: bool) -> Option<Decision> {
        let fresh_at = self.snapshot.fresh_at?;
        let max_age = self.config.gate.max_age;
        let Some(view) = self.view else {
            return (self.now.mono.since(fresh_at) > max_age).then_some(Decision::CannotTell);
        };
        Some(gate::decide(&authz::entry(view), class, write, fresh_at, max_age, self.now.mono))
    }

    fn flag(&self, key: &str, class: FeatureClass, write: bool) -> Flag {
        let (value, reason, variant, code) = match self.decision(class, write) {
            Some(Decision::Allowed) if gate::allows(Access::Locked, class, write) => (true, "STATIC", "allowed", None),
            Some(Decision::Allowed) => (true, "TARGETING_MATCH", "allowed", None),
            Some(Decision::Denied(code)) => (false, "TARGETING_MATCH", "denied", Some(code.as_str())),
            Some(Decision::CannotTell) => (false, "STALE", "stale", Some("stale")),
            None => (false, "DEFAULT", "unknown", Some(Code::UnknownWorkspace.as_str())),
        };
        Flag { key: key.to_owned(), value, reason, variant, metadata: self.metadata(code, class) }
    }

    /// Texts, numbers and booleans only, absent rather than null: the providers drop anything else.
    fn metadata(&self, code: Option<&str>, class: FeatureClass) -> Map<String, Value> {
        let fresh = Freshness::of(self.snapshot, self.config, self.now);
        let stale = self.snapshot.fresh_at.is_none_or(|at| self.now.mono.since(at) > self.config.gate.max_age);
        let mut metadata = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                metadata.insert(name.to_owned(), value);
            }
        };
        put("workspace", Some(json!(self.context.workspace)));
        put("class", Some(json!(class)));
        put("stale", Some(json!(stale)));
        put("code", code.map(|code| json!(code)));
        put("expires_at", fresh.expires_at.map(|at| json!(at)));
        if let Some(view) = self.view {
            put("access", Some(json!(view.access)));
            put("sequence", Some(json!(view.sequence)));
            put("since", Some(json!(view.since)));
            put("cause", view.cause.map(|cause| json!(cause)));
            put("key", view.key.as_ref().map(|key| json!(key)));
            put("lockout_reason", view.message.as_ref().map(|text| json!(text)));
        }
        metadata
    }
}

/// Changes when an answer would say something else. Its own age is no such change: `expires_at`
/// moves with every look, and an answer kept with an older one only ends earlier.
fn etag(flags: &[Flag], more: &str) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    digest.update(more.as_bytes());
    for flag in flags {
        let told = flag.metadata.iter().filter(|(name, _)| *name != "expires_at");
        let told: Vec<String> = told.map(|(name, value)| format!("{name}={value}")).collect();
        digest.update(format!("\n{} {} {} {}", flag.key, flag.value, flag.reason, told.join(" ")).as_bytes());
    }
    let digest = digest.finish();
    let hex: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// Whether `If-None-Match` names the tag, weak or strong, or any.
fn matches(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.trim() == "*" || value.split(',').any(|one| one.trim().strip_prefix("W/").unwrap_or(one.trim()) == etag))
}

/// `POST /ofrep/v1/evaluate/flags/{flag}`
pub async fn one(_: Reader, State(doors): State<Doors>, Segments(flag): Segments<String>, request: Request) -> Result<Response, Problem> {
    let context = match Context::read(&json_bytes(request, &doors).await?) {
        Ok(context) => context,
        Err(failure) => return Ok(failure.about(&flag).into_response()),
    };
    let (snapshot, config) = (ready(&doors.app)?, doors.app.config.load());
    let asked = Asked::new(context, &config, &snapshot, crate::clock::now());
    let Some(answer) = asked.named(&flag) else {
        let details = "no feature of the configuration has this name".to_owned();
        let failure = Failure { status: StatusCode::NOT_FOUND, key: Some(flag), error_code: "FLAG_NOT_FOUND", error_details: details };
        return Ok(failure.into_response());
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

/// `POST /ofrep/v1/evaluate/flags`
pub async fn bulk(_: Reader, State(doors): State<Doors>, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let context = match Context::read(&json_bytes(request, &doors).await?) {
        Ok(context) => context,
        Err(failure) => return Ok(failure.into_response()),
    };
    let (snapshot, config, now) = (ready(&doors.app)?, doors.app.config.load(), crate::clock::now());
    let uri = stream::uri(&doors, &config, &context.workspace, now.wall);
    let asked = Asked::new(context, &config, &snapshot, now);
    let flags = asked.flags();
    let tag = etag(&flags, &uri);
    let etag = HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""));
    let common = [(header::ETAG, etag), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if matches(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let body = json!({
        "flags": flags,
        "eventStreams": [{ "type": "sse", "endpoint": { "requestUri": uri } }],
        "metadata": { "workspace": asked.context.workspace },
    });
    Ok((common, Json(body)).into_response())
}

/// `GET /ofrep/v1/configuration`: what a provider that asks may know.
pub async fn configuration(_: Reader, headers: HeaderMap) -> Response {
    const TAG: &str = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");
    if matches(&headers, TAG) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, TAG)]).into_response();
    }
    let body = json!({
        "name": "cmek-watchdog",
        "capabilities": {
            "cacheInvalidation": { "polling": { "enabled": true, "minPollingIntervalMs": 1000 } },
            "flagEvaluation": { "supportedTypes": ["boolean"] },
            // A kept answer would outlive a lock.
            "caching": { "enabled": false },
        },
    });
    ([(header::ETAG, TAG)], Json(body)).into_response()
}
