//! outside
//! The status page for people: rendered here, no script, nothing fetched from elsewhere, readable
//! on a phone. Tells what `/v1/status` tells; everything in it is escaped and bounded.

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use minijinja::Environment;
use serde::Serialize;
use std::sync::OnceLock;

use super::Doors;
use super::access::Reader;
use super::problem::Problem;
use super::status::Status;
use crate::published::Snapshot;
use crate::snapshot::{KeyView, WorkspaceView};
use crate::words::{Access, StateWord};

/// Rows of each table.
const ROWS: usize = 200;

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

#[derive(Serialize)]
struct StateCount {
    state: &'static str,
    count: u64,
    tone: &'static str,
}

#[derive(Serialize)]
struct KeyRow<'a> {
    #[serde(flatten)]
    key: &'a KeyView,
    tone: &'static str,
}

/// `GET /`
pub async fn page(_: Reader, State(doors): State<Doors>) -> Response {
    let (status, snapshot) = (Status::of(&doors), doors.app.published.load());
    match render(&status, &snapshot) {
        Ok(html) => (HEADERS, html).into_response(),
        Err(error) => {
            tracing::error!(%error, "the status page could not be rendered");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "page_failed", "the status page could not be rendered").into_response()
        }
    }
}

fn render(status: &Status, snapshot: &Snapshot) -> Result<String, minijinja::Error> {
    static PAGES: OnceLock<Environment<'static>> = OnceLock::new();
    // The name ends in .html: that is what turns escaping on.
    let pages = PAGES.get_or_init(|| {
        let mut pages = Environment::new();
        if let Err(error) = pages.add_template("page.html", include_str!("page.html")) {
            tracing::error!(%error, "the status page's template is broken");
        }
        pages
    });
    let lowered: Vec<&WorkspaceView> =
        snapshot.workspaces.values().map(AsRef::as_ref).filter(|w: &&WorkspaceView| w.access != Access::Open).take(ROWS).collect();
    let key_states: Vec<StateCount> = StateWord::ALL
        .iter()
        .map(|s| StateCount { state: s.as_str(), count: status.keys.get(s.as_str()).copied().unwrap_or(0), tone: tone(*s) })
        .collect();
    let rest = minijinja::context! { lowered, key_states, keys => key_rows(snapshot) };
    pages.get_template("page.html")?.render(minijinja::context! { ..rest, ..minijinja::Value::from_serialize(status) })
}

/// Keys in question first.
fn key_rows(snapshot: &Snapshot) -> Vec<KeyRow<'_>> {
    let troubled = snapshot.keys.values().filter(|k| k.state != StateWord::Active);
    let well = snapshot.keys.values().filter(|k| k.state == StateWord::Active);
    troubled.chain(well).take(ROWS).map(|key| KeyRow { key, tone: tone(key.state) }).collect()
}

const fn tone(state: StateWord) -> &'static str {
    match state {
        StateWord::Active => "good",
        StateWord::Revoked => "bad",
        StateWord::Suspect | StateWord::Recovering | StateWord::Impaired => "warn",
        StateWord::Unproven | StateWord::Retired => "dim",
    }
}
