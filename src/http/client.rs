//! outside
//! The command line's way to the daemon: one request over the control socket, one JSON answer.
//! It must never fall back to another way in, and never wait without an end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{Method, Request, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// More than the daemon's own limit for a request.
const DEADLINE: Duration = Duration::from_secs(40);
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the daemon is not reachable at {}: {source}", path.display())]
    Unreachable { path: PathBuf, source: std::io::Error },
    #[error("the daemon closed the connection: {0}")]
    Broken(#[from] hyper::Error),
    #[error("no answer within 40 s")]
    Late,
    #[error("the answer is longer than 64 MiB or was cut off")]
    Unreadable,
    #[error("the answer is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    #[error("the request cannot be built: {0}")]
    Malformed(#[from] axum::http::Error),
}

/// Sends one request and reads the JSON answer; an empty answer is `null`. Returns the HTTP status.
///
/// # Errors
/// [`ClientError::Unreachable`] if the socket is missing or nobody listens on it.
pub async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> Result<(u16, serde_json::Value), ClientError> {
    let (status, bytes) = fetch(socket, method, path, body).await?;
    if bytes.is_empty() {
        return Ok((status, serde_json::Value::Null));
    }
    Ok((status, serde_json::from_slice(&bytes)?))
}

/// As [`call`], for answers that are not JSON.
///
/// # Errors
/// As [`call`].
pub async fn fetch(socket: &Path, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<(u16, Bytes), ClientError> {
    tokio::time::timeout(DEADLINE, exchange(socket, method, path, body)).await.map_err(|_| ClientError::Late)?
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<(u16, Bytes), ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| ClientError::Unreachable { path: socket.to_owned(), source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    let body = match body {
        Some(value) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Bytes::from(value.to_string())
        }
        None => Bytes::new(),
    };
    let request = request.body(Full::new(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let bytes = Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|_| ClientError::Unreadable)?.to_bytes();
    driver.abort();
    Ok((status, bytes))
}

/// Writes an id into a path segment.
#[must_use]
pub fn segment(id: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b':') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
