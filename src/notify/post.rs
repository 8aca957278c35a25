//! outside
//! One POST to a receiver and what its answer means: the part that all receivers over HTTP share.
//! No proxy from the environment, no redirect, bounded time and answer; it must never put an
//! address or a header into an error, because both may be secrets.

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use std::time::Duration;

use crate::notify::Delivery;
use crate::time::{Span, Wall};

/// For one request, connection and answer together.
const TIMEOUT: Duration = Duration::from_secs(10);
/// More of an answer is not read.
const MOST_BYTES: usize = 64 * 1024;

/// A receiver that cannot be made. Never shows the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadReceiver {
    #[error("address is not an http or https address")]
    Address,
    #[error("address holds a user name or password")]
    UserInfo,
    #[error("secret is not `whsec_` and base64 of 24 to 64 bytes")]
    Secret,
    #[error("routing key is empty or holds characters that no routing key has")]
    RoutingKey,
    #[error("the HTTP client cannot be made: no usable trusted certificates")]
    Client,
}

/// A client and the one address it talks to.
pub(crate) struct Door {
    client: Client,
    url: Url,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Door(address hidden)")
    }
}

impl Door {
    pub(crate) fn new(url: &str) -> Result<Self, BadReceiver> {
        Self::within(url, TIMEOUT)
    }

    fn within(url: &str, timeout: Duration) -> Result<Self, BadReceiver> {
        let url = Url::parse(url.trim()).map_err(|_| BadReceiver::Address)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(BadReceiver::Address);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadReceiver::UserInfo);
        }
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(timeout)
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(30))
            .user_agent(concat!("cmek-watchdog/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|_| BadReceiver::Client)?;
        Ok(Self { client, url })
    }

    /// The same door with the path of its address replaced.
    pub(crate) fn with_path(mut self, path: &str) -> Self {
        self.url.set_path(path);
        self.url.set_query(None);
        self
    }

    pub(crate) fn path(&self) -> &str {
        self.url.path()
    }

    /// Posts JSON and says what the answer means; `now` is for a `Retry-After` that names a date.
    pub(crate) async fn post(&self, headers: HeaderMap, body: Vec<u8>, now: Wall) -> Delivery {
        let request = self.client.post(self.url.clone()).headers(headers).header("content-type", "application/json").body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Delivery::Retry { after: None, reason: transport(&error) },
        };
        let (status, after) = (response.status(), retry_after(response.headers(), now));
        // Whatever the body holds, the status has decided; a body that breaks off changes nothing.
        let said = excerpt(response).await;
        outcome(status, after, &said)
    }

    /// Connects, TLS included, without posting. Any answer at all is good.
    pub(crate) async fn reach(&self) -> Result<(), String> {
        match self.client.head(self.url.clone()).send().await {
            Ok(_answer) => Ok(()),
            Err(error) => Err(transport(&error)),
        }
    }
}

/// What a status means for one notice.
fn outcome(status: StatusCode, after: Option<Span>, said: &str) -> Delivery {
    let reason = || if said.is_empty() { format!("HTTP {}", status.as_u16()) } else { format!("HTTP {}: {said}", status.as_u16()) };
    match status.as_u16() {
        200..=299 => Delivery::Delivered,
        408 | 425 | 429 => Delivery::Retry { after, reason: reason() },
        400..=499 => Delivery::Refused { reason: reason() },
        // A redirect is a mistake in the address that an operator can mend; the notice waits for it.
        300..=399 => Delivery::Retry { after, reason: format!("HTTP {}: redirects are not followed", status.as_u16()) },
        _other => Delivery::Retry { after, reason: reason() },
    }
}

/// Reads up to the bound and keeps the first line, cleaned.
async fn excerpt(mut response: Response) -> String {
    let mut held: Vec<u8> = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MOST_BYTES.saturating_sub(held.len());
        held.extend(chunk.iter().take(room));
        if held.len() >= MOST_BYTES {
            break;
        }
    }
    let text = String::from_utf8_lossy(&held);
    crate::notify::compose::one_line(text.trim().lines().next().unwrap_or(""), 120)
}

/// Seconds, or an HTTP date.
fn retry_after(headers: &HeaderMap, now: Wall) -> Option<Span> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Span::from_secs(seconds));
    }
    let date = chrono::NaiveDateTime::parse_from_str(text, "%a, %d %b %Y %H:%M:%S GMT").ok()?;
    Some(Wall(date.and_utc().timestamp_millis()).since(now))
}

/// Words for a transport fault. The error's own text would show the address.
fn transport(error: &reqwest::Error) -> String {
    let deepest = |error: &dyn std::error::Error| {
        let mut at = error;
        while let Some(next) = at.source() {
            at = next;
        }
        crate::notify::compose::one_line(&at.to_string(), 160)
    };
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let what = if error.is_connect() { "no connection" } else { "the connection broke" };
    match std::error::Error::source(error) {
        Some(source) => format!("{what}: {}", deepest(source)),
        None => what.to_owned(),
    }
}

#[cfg(test)]
mod tests;
