//! outside
//! The doors: the router over the published snapshot, the store's journal and the channel to the
//! core. Reads never wait for the core; writes are handed to it and answered by it. Nothing here
//! decides about a key or a lock, and no door opens without naming the role that it needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::config::Config;
use crate::journal::Store;
use crate::kms::BoxFuture;
use crate::metrics::{Metrics, RefusedReason};
use crate::operate::{Answered, Operation};
use crate::published::Published;
use crate::store::lease_keys::LeaseKeys;
use crate::time::{Mono, Span};
use crate::vault::desk::Vault;

pub mod access;
pub mod acks;
pub mod ask;
pub mod authz;
pub mod client;
pub mod drills;
pub mod hints;
pub mod hub;
pub mod input;
pub mod keys;
pub mod lease;
pub mod notices;
pub mod ofrep;
pub mod page;
pub mod problem;
pub mod registration;
pub mod safety;
pub mod serve;
pub mod socket;
pub mod stall;
pub mod status;
pub mod stream;
pub mod tls;
pub mod workspaces;

use problem::Problem;

/// One request of an operator on its way to the core, with the way back.
#[derive(Debug)]
pub struct Ask {
    pub operation: Operation,
    pub answer: oneshot::Sender<Answered>,
}

/// Loads the configuration again, validates it and hands it to the core.
pub trait Reload: Send + Sync {
    /// Ends when the core has taken the new configuration, or with the reason why it was not taken
    /// (file, line, field). Counts itself in `Metrics::config_reload`, as the signal does too.
    fn reload<'a>(&'a self, actor: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

/// When the core last got on with its work.
#[derive(Debug)]
pub struct Health(AtomicU64);

impl Health {
    /// After so long without progress the daemon counts as stuck.
    pub const PATIENCE: Span = Span::from_secs(30);

    #[must_use]
    pub const fn new(now: Mono) -> Self {
        Self(AtomicU64::new(now.0))
    }
    /// Called by the loop after each turn, idle turns too.
    pub fn progressed(&self, now: Mono) {
        self.0.store(now.0, Ordering::Relaxed);
    }
    /// Time since the last progress.
    pub fn silence(&self, now: Mono) -> Span {
        now.since(Mono(self.0.load(Ordering::Relaxed)))
    }
}

/// Everything that the doors need of the daemon.
#[derive(Clone)]
pub struct App {
    pub published: Published,
    pub asks: mpsc::Sender<Ask>,
    pub store: Arc<dyn Store>,
    pub config: Arc<ArcSwap<Config>>,
    pub metrics: Arc<Metrics>,
    pub reload: Arc<dyn Reload>,
    pub health: Arc<Health>,
    pub hub: Arc<hub::Hub>,
    pub acks: Arc<acks::Acks>,
    pub leases: Arc<LeaseKeys>,
    /// Safety metadata; `None` only where there is no store for it.
    pub vault: Option<Arc<Vault>>,
}

/// Bounds of the doors. The defaults are the contract; tests use shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the opening of a connection to its first whole request head (TLS included), and between
    /// the requests of an HTTP/1 connection.
    pub header: Duration,
    /// For one request, its body included; and for a write of the answer that makes no progress.
    pub request: Duration,
    /// For the core's answer.
    pub answer: Duration,
    pub connections: usize,
    /// Readers of the event stream; each holds a connection.
    pub subscribers: usize,
    pub body_bytes: usize,
    /// Bodies of pushed events are other people's, and longer.
    pub hint_bytes: usize,
    /// Validations that may wait at the same time.
    pub validations: usize,
    /// Event streams of OFREP that may be open at the same time.
    pub flag_streams: usize,
    /// Silence on such a stream before a heartbeat.
    pub heartbeat: Duration,
    /// What requests under way get at the end.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            request: Duration::from_secs(35),
            answer: Duration::from_secs(30),
            connections: 4096 + 10_000,
            subscribers: 10_000,
            body_bytes: 64 * 1024,
            hint_bytes: 512 * 1024,
            validations: 64,
            flag_streams: 1024,
            heartbeat: Duration::from_secs(15),
            grace: Duration::from_secs(10),
        }
    }
}

/// What handlers share.
#[derive(Clone)]
pub struct Doors {
    pub app: App,
    pub limits: Limits,
    validations: Arc<Semaphore>,
    hints: hints::Hints,
    flag_streams: Arc<Semaphore>,
    tickets: Arc<ofrep::ticket::Tickets>,
}

impl Doors {
    /// Counts and logs a request that is not served. The text names no secret.
    pub fn refused(&self, reason: RefusedReason, path: &str) {
        self.app.metrics.http_refused(reason);
        tracing::warn!(reason = reason.as_str(), path, "request refused");
    }
}

/// The router with the limits of the contract.
pub fn router(app: App) -> Router {
    router_with(app, Limits::default())
}

/// The router with other limits.
pub fn router_with(app: App, limits: Limits) -> Router {
    let doors = Doors {
        app,
        limits,
        validations: Arc::new(Semaphore::new(limits.validations)),
        flag_streams: Arc::new(Semaphore::new(limits.flag_streams)),
        hints: hints::Hints::default(),
        tickets: Arc::new(ofrep::ticket::Tickets::new()),
    };
    // Gate questions do no I/O and read no body: they go without timer and without its allocation.
    let gate = Router::new()
        .route("/v1/authz", any(authz::authz).trace(authz::not_by_trace))
        .route("/v1/authz/{*rest}", any(authz::authz).trace(authz::not_by_trace));
    let rest = Router::new()
        .route("/v1/workspaces", get(workspaces::list))
        .route("/v1/workspaces/{ws}", get(workspaces::one))
        .route("/v1/workspaces/{ws}/features", get(workspaces::features))
        .route("/v1/workspaces/{ws}/features/{feature}", get(workspaces::feature))
        .route("/v1/workspaces/{ws}/lock", post(workspaces::lock))
        .route("/v1/workspaces/{ws}/unlock", post(workspaces::unlock))
        .route("/v1/workspaces/{ws}/acks", post(acks::ack))
        .route("/v1/workspaces/{ws}/lease", get(lease::lease))
        .route("/.well-known/jwks.json", get(lease::jwks))
        .route("/v1/stream", get(stream::stream))
        .route("/v1/workspaces/{ws}/safety-metadata", get(safety::list))
        .route("/v1/workspaces/{ws}/safety-metadata/{record}", get(safety::one).put(safety::put))
        .route("/v1/workspaces/{ws}/preservations", get(safety::preservations).post(safety::preserve))
        .route("/v1/workspaces/{ws}/preservations/{id}", get(safety::preservation))
        .route("/v1/vault", get(safety::vault))
        .route("/v1/vault/rewrap", post(safety::rewrap))
        .route("/v1/drills", get(drills::list).post(drills::start))
        .route("/v1/drills/{id}/end", post(drills::end))
        .route("/v1/keys", get(keys::list))
        .route("/v1/keys/{id}", get(keys::one).put(registration::put).delete(registration::delete))
        .route("/v1/keys/{id}/validate", post(keys::validate))
        .route("/v1/keys/{id}/history", get(keys::history))
        .route("/v1/keys/{id}/retire", post(keys::retire))
        .route("/v1/keys/{id}/versions/{version}/retire", post(keys::retire_version))
        .route("/v1/providers", get(status::providers))
        .route("/v1/providers/{id}/brake", post(status::release_brake))
        .route("/v1/hints/{source}", post(hints::take))
        .route("/v1/status", get(status::status))
        .route("/v1/reload", post(status::reload))
        .route("/v1/receivers/{name}/test", post(status::test_receiver))
        .route("/v1/notices", get(notices::list))
        .route("/v1/notices/resend", post(notices::resend_all))
        .route("/v1/notices/{id}/ack", post(notices::acknowledge))
        .route("/v1/notices/{id}/resend", post(notices::resend))
        .route("/v1/activity", get(status::activity))
        .route("/ofrep/v1/evaluate/flags", post(ofrep::bulk))
        .route("/ofrep/v1/evaluate/flags/{flag}", post(ofrep::one))
        .route("/ofrep/v1/configuration", get(ofrep::configuration))
        .route("/ofrep/v1/stream", get(ofrep::stream::stream))
        .route("/metrics", get(status::metrics))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .route("/openapi.json", get(status::openapi))
        .route("/", get(page::page))
        .layer(from_fn_with_state(doors.clone(), in_time));
    gate.merge(rest)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .with_state(doors)
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", uri.path().chars().take(200).collect::<String>()))
}

async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take that method; see the Allow header")
}

/// Ends a request that takes too long, a slowly sent body included.
async fn in_time(State(doors): State<Doors>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    match tokio::time::timeout(doors.limits.request, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            doors.refused(RefusedReason::RequestTimeout, &path);
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timed_out", "the request took too long").retry_after(1).into_response()
        }
    }
}
