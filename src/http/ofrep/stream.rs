//! outside
//! The event stream of OFREP: tells a web provider to ask again when the answer for its workspace
//! has changed. Carries no state itself; it must never queue for a slow reader, who is cut off by
//! the connection's own timer and finds the present state when it comes back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{Asked, Context, etag};
use crate::config::Config;
use crate::http::access::Reader;
use crate::http::input::Filter;
use crate::http::problem::Problem;
use crate::http::{Doors, workspaces::ready};
use crate::metrics::RefusedReason;
use crate::snapshot::WorkspaceView;
use crate::time::Wall;

const PATH: &str = "/ofrep/v1/stream";

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Query {
    workspace: String,
    ticket: Option<String>,
}

/// Where the answers for a workspace are told to have changed. With tokens in use the address has a
/// ticket, because a browser can send no header with an event stream.
pub(super) fn uri(doors: &Doors, config: &Config, workspace: &str, now: Wall) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("workspace", workspace);
    if !config.server.tokens.is_empty()
        && let Some(ticket) = doors.tickets.make(workspace, now)
    {
        query.append_pair("ticket", &ticket);
    }
    format!("{PATH}?{}", query.finish())
}

/// `GET /ofrep/v1/stream?workspace=`
pub async fn stream(State(doors): State<Doors>, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let query = Filter::<Query>::from_request_parts(&mut parts, &doors).await;
    let now = crate::clock::now().wall;
    let good = |Filter(query): &Filter<Query>| doors.tickets.good_until(query.ticket.as_deref()?, &query.workspace, now);
    let until = query.as_ref().ok().and_then(good);
    if until.is_none() {
        Reader::from_request_parts(&mut parts, &doors).await?;
    }
    let Filter(query) = query?;
    ready(&doors.app)?;
    let Ok(place) = Arc::clone(&doors.flag_streams).try_acquire_owned() else {
        doors.refused(RefusedReason::TooMany, PATH);
        return Err(Problem::unavailable("too_many", "too many event streams are open", 10));
    };
    let listening = Listening {
        turns: doors.app.published.turns(),
        known: last_event(&parts.headers),
        seen: None,
        context: Context { workspace: query.workspace, write: true },
        until,
        doors,
        _place: place,
    };
    let mut response = Sse::new(unfold(listening, next)).into_response();
    // nginx would hold events back.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event(headers: &HeaderMap) -> Option<String> {
    headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned)
}

struct Listening {
    doors: Doors,
    turns: watch::Receiver<u64>,
    context: Context,
    /// Id of the last event that this client knows of.
    known: Option<String>,
    /// What the last look was made from: the answer cannot differ while that is the same.
    seen: Option<Seen>,
    /// End of the ticket.
    until: Option<Wall>,
    _place: OwnedSemaphorePermit,
}

/// What a look was made from, kept so that its address cannot come to mean another.
struct Seen {
    view: Option<Arc<WorkspaceView>>,
    config: Arc<Config>,
    stale: bool,
}

impl Seen {
    fn same(&self, other: &Self) -> bool {
        let view = match (&self.view, &other.view) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        view && Arc::ptr_eq(&self.config, &other.config) && self.stale == other.stale
    }
}

impl Listening {
    /// The tag of the present answer if it is not the one that the client knows. Whoever comes
    /// without a known one is told at once: something may have changed since it asked.
    fn changed(&mut self) -> Option<String> {
        let app = &self.doors.app;
        let (snapshot, config, now) = (app.published.load(), app.config.load_full(), crate::clock::now());
        let seen = Seen {
            view: snapshot.workspaces.get(self.context.workspace.as_str()).cloned(),
            stale: snapshot.fresh_at.is_none_or(|at| now.mono.since(at) > config.gate.max_age),
            config: Arc::clone(&config),
        };
        if self.seen.as_ref().is_some_and(|before| before.same(&seen)) {
            return None;
        }
        let asked = Asked::new(self.context.clone(), &config, &snapshot, now);
        let tag = etag(&asked.flags(), "").trim_matches('"').to_owned();
        self.seen = Some(seen);
        let new = self.known.as_ref() != Some(&tag);
        self.known = Some(tag.clone());
        new.then_some(tag)
    }
}

/// The next event, or the end: at a stop, and when the ticket is over.
async fn next(mut listening: Listening) -> Option<(Result<Event, Infallible>, Listening)> {
    let asks = listening.doors.app.asks.clone();
    let mut quiet = false;
    loop {
        listening.turns.mark_unchanged();
        if let Some(tag) = listening.changed() {
            let at = crate::clock::now().wall.0.div_euclid(1000);
            let data = serde_json::json!({ "type": "refetchEvaluation", "lastModified": at });
            return Some((Ok(Event::default().id(tag).data(data.to_string())), listening));
        }
        if quiet {
            return Some((Ok(Event::default().comment("")), listening));
        }
        let left = listening.until.map_or(Duration::MAX, |until| lasting(until, crate::clock::now().wall));
        if left.is_zero() {
            return None;
        }
        // A configuration or a standstill changes the answer without a turn: found at the heartbeat.
        tokio::select! {
            changed = listening.turns.changed() => if changed.is_err() { return None },
            () = asks.closed() => return None,
            () = tokio::time::sleep(listening.doors.limits.heartbeat.min(left)) => quiet = true,
        }
    }
}

fn lasting(until: Wall, now: Wall) -> Duration {
    Duration::from_millis(u64::try_from(until.0.saturating_sub(now.0)).unwrap_or(0))
}
