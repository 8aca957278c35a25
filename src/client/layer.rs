//! outside
//! A tower layer before a service: what may not pass is answered here, 403 for locked, 503 for want
//! of knowledge. Which workspace and feature a request is about, the caller says.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response, StatusCode, header};
use tower::{Layer, Service};

use super::table::{Ruling, Table};
use crate::clock;
use crate::gate::Features;
use crate::key::WorkspaceId;

/// What a request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    pub workspace: WorkspaceId,
    /// `None` counts as content.
    pub feature: Option<String>,
    pub write: bool,
}

/// The layer. `ask` gives `None` for a request that names no usable workspace: it is refused with 403.
#[derive(Clone)]
pub struct GateLayer<F> {
    table: Arc<Table>,
    features: Arc<Features>,
    ask: F,
}

impl<F> GateLayer<F> {
    pub fn new(client: &super::Client, features: Features, ask: F) -> Self {
        Self { table: Arc::clone(client.table()), features: Arc::new(features), ask }
    }
}

impl<S, F: Clone> Layer<S> for GateLayer<F> {
    type Service = Gate<S, F>;
    fn layer(&self, inner: S) -> Gate<S, F> {
        Gate { inner, layer: self.clone() }
    }
}

/// A service behind the layer.
#[derive(Clone)]
pub struct Gate<S, F> {
    inner: S,
    layer: GateLayer<F>,
}

impl<S, F, B, R> Service<Request<B>> for Gate<S, F>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    F: Fn(&Request<B>) -> Option<Asked>,
    R: From<String> + Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let ruling = (self.layer.ask)(&request).map(|asked| {
            let (class, _) = self.layer.features.class(asked.feature.as_deref());
            self.layer.table.rule(&asked.workspace, class, asked.write, clock::now_mono())
        });
        let (status, slug, detail) = match ruling {
            Some(Ruling::Allowed) => return Box::pin(self.inner.call(request)),
            Some(Ruling::Denied) => (StatusCode::FORBIDDEN, "workspace_locked", "this use of the workspace is locked"),
            Some(Ruling::CannotTell) => {
                (StatusCode::SERVICE_UNAVAILABLE, "lockout_unknown", "whether this workspace is locked is not known now")
            }
            None => (StatusCode::FORBIDDEN, "bad_gate_request", "the request names no workspace"),
        };
        let response = refused(status, slug, detail);
        Box::pin(async move { Ok(response) })
    }
}

fn refused<R: From<String>>(status: StatusCode, slug: &str, detail: &str) -> Response<R> {
    let body = serde_json::json!({
        "type": format!("urn:cmek-watchdog:{slug}"), "status": status.as_u16(), "code": slug, "detail": detail,
    });
    let mut response = Response::new(R::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
