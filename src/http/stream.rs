//! outside
//! `GET /v1/stream`: server-sent events of every change of access, of keys and of rotations. Begins
//! with what was missed since `Last-Event-ID` and `resumed`, or with `reset`; a reader that does not
//! keep up is cut off and comes back. It must never make the hub wait.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};

use super::access::Reader;
use super::hub::{Frame, Hub, LAG, NoPlace, Start};
use super::input::Filter;
use super::problem::Problem;
use super::{Doors, workspaces};
use crate::key::WorkspaceId;
use crate::metrics::{Metrics, RefusedReason};

/// A reader hears something at least so often.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// Names the run whose journal numbers these are.
const RUN: HeaderName = HeaderName::from_static("x-stream-run");

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct StreamQuery {
    workspace: Option<WorkspaceId>,
}

/// `GET /v1/stream`
pub async fn stream(
    _: Reader,
    State(doors): State<Doors>,
    headers: HeaderMap,
    Filter(query): Filter<StreamQuery>,
) -> Result<Response, Problem> {
    workspaces::ready(&doors.app)?;
    let hub = Arc::clone(&doors.app.hub);
    let start = hub.follow(last_event_id(&headers)).map_err(|error| match error {
        NoPlace::Full => {
            doors.refused(RefusedReason::TooMany, "/v1/stream");
            Problem::unavailable("too_many_subscribers", error.to_string(), 5)
        }
        NoPlace::Over => Problem::unavailable("stopping", error.to_string(), 5),
    })?;
    let run = HeaderValue::from_str(&hub.run).unwrap_or(HeaderValue::from_static(""));
    let reader = Follower::new(hub, start, query.workspace, Arc::clone(&doors.app.metrics));
    let body = futures_util::stream::unfold(reader, |mut reader| async move {
        let bytes = reader.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(bytes), reader))
    });
    let mut response = Response::new(Body::from_stream(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would gather the events otherwise.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    headers.insert(RUN, run);
    Ok(response)
}

/// A number that cannot be read is one that is not known.
fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok()
}

/// One reader.
struct Follower {
    hub: Arc<Hub>,
    /// What to say before the live frames, last first.
    first: Vec<Bytes>,
    live: broadcast::Receiver<Arc<Frame>>,
    only: Option<WorkspaceId>,
    metrics: Arc<Metrics>,
    beat: tokio::time::Interval,
    cut: bool,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    fn new(hub: Arc<Hub>, start: Start, only: Option<WorkspaceId>, metrics: Arc<Metrics>) -> Self {
        let Start { missed, head, live, place } = start;
        let concerns = |frame: &&Arc<Frame>| only.as_ref().is_none_or(|id| frame.workspaces.contains(id));
        let mut first = match &missed {
            Some(missed) => missed.iter().filter(concerns).map(|frame| frame.bytes.clone()).collect(),
            None => Vec::new(),
        };
        let name = if missed.is_some() { "resumed" } else { "reset" };
        first.push(Bytes::from(format!("id: {head}\nevent: {name}\ndata: {{\"head\":{head}}}\n\n")));
        first.reverse();
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        metrics.stream_subscriber(1);
        Self { hub, first, live, only, metrics, beat, cut: false, _place: place }
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.first.pop() {
            return Some(bytes);
        }
        loop {
            tokio::select! {
                biased;
                frame = self.live.recv() => match frame {
                    Ok(frame) if self.only.as_ref().is_none_or(|id| frame.workspaces.contains(id)) => return Some(frame.bytes.clone()),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => {
                        self.cut_off();
                        return None;
                    }
                    Err(RecvError::Closed) => return None,
                },
                _ = self.beat.tick() => return Some(self.heartbeat()),
            }
        }
    }

    /// A comment, and how far the reader has come: one that only hears of few workspaces must not
    /// come back with a number that is long gone.
    fn heartbeat(&self) -> Bytes {
        // In this order: what was sent before the number was raised is in the channel or read.
        let handed = self.hub.handed();
        if self.live.is_empty() { Bytes::from(format!(":\nid: {handed}\n\n")) } else { Bytes::from_static(b":\n\n") }
    }

    fn cut_off(&mut self) {
        if !self.cut {
            self.cut = true;
            self.metrics.stream_cut_off();
            tracing::info!("a reader of the stream did not keep up and was cut off");
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // A connection that takes no more bytes ends without having been asked again.
        if self.live.len() >= LAG {
            self.cut_off();
        }
        self.metrics.stream_subscriber(-1);
    }
}
