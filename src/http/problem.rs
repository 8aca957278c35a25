//! outside
//! Errors as RFC 9457 `application/problem+json`: one shape for every refusal, with a stable slug.
//! A problem never repeats a secret: it is made of fixed texts, ids and the core's own reasons.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::operate::{Refusal, RefusalSlug};

/// A refusal as shown outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub status: StatusCode,
    /// `type` is `urn:cmek-watchdog:<slug>`.
    pub slug: &'static str,
    pub detail: String,
    /// Seconds.
    pub retry_after: Option<u32>,
    pub challenge: Option<&'static str>,
}

impl Problem {
    pub fn new(status: StatusCode, slug: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, detail: detail.into(), retry_after: None, challenge: None }
    }

    /// A 404: no such key, workspace, provider.
    pub fn unknown(slug: &'static str, what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, slug, format!("{what} `{}` is not known", id.chars().take(140).collect::<String>()))
    }

    /// A 422: understood, but not possible.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }

    /// A 503 that asks to come again.
    pub fn unavailable(slug: &'static str, detail: impl Into<String>, seconds: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, slug, detail).retry_after(seconds)
    }

    /// While stored locks are not published yet.
    pub fn starting() -> Self {
        Self::unavailable("starting", "stored locks are not loaded yet", 1)
    }

    /// Asks the caller to come again after so many seconds.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Names the authentication that would help.
    #[must_use]
    pub const fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(challenge);
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "type": format!("urn:cmek-watchdog:{}", self.slug),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.slug,
        });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// The core's own refusals.
impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (status, slug) = match refusal.slug {
            RefusalSlug::UnknownKey => (StatusCode::NOT_FOUND, "unknown_key"),
            RefusalSlug::UnknownWorkspace => (StatusCode::NOT_FOUND, "unknown_workspace"),
            RefusalSlug::UnknownProvider => (StatusCode::NOT_FOUND, "unknown_provider"),
            RefusalSlug::UnknownVersion => (StatusCode::NOT_FOUND, "unknown_version"),
            RefusalSlug::UnknownReceiver => (StatusCode::NOT_FOUND, "unknown_receiver"),
            RefusalSlug::UnknownNotice => (StatusCode::NOT_FOUND, "unknown_notice"),
            RefusalSlug::NotProven => (StatusCode::CONFLICT, "not_proven"),
            RefusalSlug::FileManaged => (StatusCode::CONFLICT, "file_managed"),
            RefusalSlug::KeyLocks => (StatusCode::CONFLICT, "key_locks"),
            RefusalSlug::UnknownDrill => (StatusCode::NOT_FOUND, "unknown_drill"),
            RefusalSlug::NotOpen => (StatusCode::CONFLICT, "not_open"),
            RefusalSlug::NotEngaged => (StatusCode::CONFLICT, "not_engaged"),
            RefusalSlug::CurrentVersion => (StatusCode::CONFLICT, "current_version"),
            RefusalSlug::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            RefusalSlug::StoreUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
            RefusalSlug::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        };
        let problem = Self::new(status, slug, refusal.detail);
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(2) } else { problem }
    }
}
