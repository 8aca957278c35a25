//! outside
//! Who says that a change has been applied: `POST /v1/workspaces/{ws}/acks`, a bounded table of
//! consumer and workspace, and who is behind. It is what consumers say, nothing is decided by it and
//! no journal record made of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::access::Reader;
use super::input::{Body, Segments};
use super::problem::Problem;
use super::{Doors, workspaces};
use crate::key::WorkspaceId;
use crate::metrics::{RefusedReason, Stage, Start};
use crate::notify::body::Pushed;
use crate::time::{Mono, Now, Span, Wall};
use crate::words::{Access, Sequence};

/// A consumer that has said nothing for so long is not waited for any more.
const REMEMBERED: Span = Span::from_hours(24);
/// Consumers of one workspace, and entries of the whole table, at most.
const MOST: (usize, usize) = (256, 200_000);

/// One consumer as shown with its workspace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Consumer {
    pub consumer: String,
    pub sequence: Sequence,
    pub at: Wall,
    /// It has not applied the newest lowering within `gate.ack_within`.
    pub behind: bool,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    sequence: Sequence,
    at: Now,
}

/// The newest lowering of a workspace that was published.
#[derive(Clone, Copy, Debug)]
struct Lowered {
    sequence: Sequence,
    at: Mono,
}

#[derive(Debug, Default)]
struct Row {
    said: BTreeMap<String, Said>,
    lowered: Option<Lowered>,
}

#[derive(Debug, Default)]
struct Table {
    rows: BTreeMap<WorkspaceId, Row>,
    entries: usize,
}

/// In memory alone: after a restart consumers are known when they speak again.
#[derive(Debug, Default)]
pub struct Acks(Mutex<Table>);

impl Row {
    fn behind(&self, said: &Said, within: Span, now: Mono) -> bool {
        self.lowered.is_some_and(|l| said.sequence < l.sequence && now.since(l.at) > within && now.since(said.at.mono) <= REMEMBERED)
    }
}

impl Acks {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers when a lowering was published first.
    pub fn shown(&self, at: Mono, events: &[Pushed]) {
        let mut table = self.table();
        for event in events {
            let data = &event.body.data;
            let (Some(access), previous) = (data.access, data.previous_access.unwrap_or(Access::Open)) else { continue };
            for id in data.workspaces.iter().filter(|_| access > previous) {
                let row = table.rows.entry(id.clone()).or_default();
                if row.lowered.is_none_or(|lowered| lowered.sequence < data.sequence) {
                    row.lowered = Some(Lowered { sequence: data.sequence, at });
                }
            }
        }
    }

    /// Takes what a consumer says; gives the time since the lowering was published, if this is the
    /// first word that it is applied. `None` as error: the table is full.
    fn take(&self, id: &WorkspaceId, consumer: &str, sequence: Sequence, now: Now) -> Option<Option<Span>> {
        let mut table = self.table();
        let full = table.entries >= MOST.1;
        let row = table.rows.entry(id.clone()).or_default();
        let before = row.said.get(consumer).map(|said| said.sequence);
        if before.is_none() {
            let many = row.said.len();
            if full || many >= MOST.0 {
                row.said.retain(|_, said| now.mono.since(said.at.mono) <= REMEMBERED);
            }
            let freed = many.saturating_sub(row.said.len());
            if row.said.len() >= MOST.0 || (full && freed == 0) {
                return None;
            }
            row.said.insert(consumer.to_owned(), Said { sequence, at: now });
            let lowered = row.lowered;
            table.entries = table.entries.saturating_sub(freed).saturating_add(1);
            return Some(lowered.filter(|l| sequence >= l.sequence).map(|l| now.mono.since(l.at)));
        }
        let before = before.unwrap_or_default();
        row.said.insert(consumer.to_owned(), Said { sequence: sequence.max(before), at: now });
        Some(row.lowered.filter(|l| before < l.sequence && sequence >= l.sequence).map(|l| now.mono.since(l.at)))
    }

    /// The consumers of a workspace that have spoken within a day.
    #[must_use]
    pub fn of(&self, id: &WorkspaceId, within: Span, now: Mono) -> Vec<Consumer> {
        let table = self.table();
        let Some(row) = table.rows.get(id) else { return Vec::new() };
        let known = row.said.iter().filter(|(_, said)| now.since(said.at.mono) <= REMEMBERED);
        known
            .map(|(name, said)| Consumer {
                consumer: name.clone(),
                sequence: said.sequence,
                at: said.at.wall,
                behind: row.behind(said, within, now),
            })
            .collect()
    }

    /// How many pairs of consumer and workspace are behind.
    #[must_use]
    pub fn behind(&self, within: Span, now: Mono) -> u64 {
        let table = self.table();
        let behind: usize = table.rows.values().map(|row| row.said.values().filter(|said| row.behind(said, within, now)).count()).sum();
        u64::try_from(behind).unwrap_or(u64::MAX)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckBody {
    consumer: String,
    sequence: u64,
}

/// `POST /v1/workspaces/{ws}/acks`. Role `read`: whoever may ask may say that it has heard.
pub async fn ack(
    _: Reader,
    State(doors): State<Doors>,
    Segments(ws): Segments<String>,
    Body(body): Body<AckBody>,
) -> Result<Response, Problem> {
    let snapshot = workspaces::ready(&doors.app)?;
    let view = workspaces::find(&snapshot, &ws)?;
    // The same letters as any other id.
    if crate::key::KeyId::new(&body.consumer).is_err() {
        return Err(Problem::invalid("consumer must have 1 to 128 of A-Z a-z 0-9 . _ -"));
    }
    if body.sequence > view.sequence.0 {
        return Err(Problem::invalid(format!("sequence {} is from the future: the newest is {}", body.sequence, view.sequence.0)));
    }
    let now = crate::clock::now();
    let Some(latency) = doors.app.acks.take(&view.workspace, &body.consumer, Sequence(body.sequence), now) else {
        doors.refused(RefusedReason::TooMany, "acks");
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_consumers", "too many consumers speak").retry_after(60));
    };
    if let Some(latency) = latency {
        doors.app.metrics.lockout_latency(Stage::Acknowledge, Start::Published, latency);
    }
    let within = doors.app.config.load().gate.ack_within;
    let said = doors.app.acks.of(&view.workspace, within, now.mono).into_iter().find(|said| said.consumer == body.consumer);
    Ok(Json(said).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::body::Body;

    fn lowering(sequence: u64) -> Pushed {
        let mut body = Body::of(&crate::notify::sample::locked());
        body.data.sequence = Sequence(sequence);
        body.data.workspaces = vec![ws()];
        body.data.access = Some(Access::Locked);
        body.data.previous_access = Some(Access::Open);
        Pushed { number: Some(1), body }
    }

    fn ws() -> WorkspaceId {
        WorkspaceId::new("w").unwrap()
    }

    fn at(ms: u64) -> Now {
        Now { mono: Mono(ms), wall: Wall(0) }
    }

    const WITHIN: Span = Span::from_secs(30);

    #[test]
    fn the_first_word_about_a_lowering_has_its_latency_and_silence_is_behind() {
        let acks = Acks::default();
        assert_eq!(acks.take(&ws(), "gw", Sequence(5), at(0)), Some(None), "nothing was lowered yet");
        acks.shown(Mono(1000), &[lowering(7)]);
        acks.shown(Mono(1900), &[lowering(7)]);
        assert_eq!(acks.behind(WITHIN, Mono(31_000)), 0, "within the time");
        assert_eq!(acks.behind(WITHIN, Mono(31_001)), 1);
        assert!(acks.of(&ws(), WITHIN, Mono(31_001))[0].behind);
        assert_eq!(acks.take(&ws(), "gw", Sequence(6), at(32_000)), Some(None), "an older change");
        assert_eq!(acks.take(&ws(), "gw", Sequence(7), at(33_000)), Some(Some(Span(32_000))), "from the first showing");
        assert_eq!(acks.take(&ws(), "gw", Sequence(7), at(34_000)), Some(None), "once");
        assert_eq!(acks.take(&ws(), "gw", Sequence(2), at(34_000)), Some(None));
        assert_eq!(acks.of(&ws(), WITHIN, Mono(40_000))[0].sequence, Sequence(7), "words never go back");
        assert_eq!(acks.behind(WITHIN, Mono(90_000)), 0);
    }

    #[test]
    fn who_has_been_silent_for_a_day_is_not_waited_for() {
        let acks = Acks::default();
        acks.take(&ws(), "gw", Sequence(5), at(0));
        acks.shown(Mono(1000), &[lowering(7)]);
        assert_eq!(acks.behind(WITHIN, Mono(REMEMBERED.0)), 1);
        assert_eq!(acks.behind(WITHIN, Mono(REMEMBERED.0 + 1)), 0);
        assert!(acks.of(&ws(), WITHIN, Mono(REMEMBERED.0 + 1)).is_empty());
    }

    #[test]
    fn consumers_of_a_workspace_are_bounded_and_the_silent_make_room() {
        let acks = Acks::default();
        for n in 0..MOST.0 {
            assert!(acks.take(&ws(), &format!("c{n}"), Sequence(1), at(0)).is_some());
        }
        assert_eq!(acks.take(&ws(), "one-more", Sequence(1), at(1)), None);
        assert!(acks.take(&ws(), "one-more", Sequence(1), at(REMEMBERED.0 + 1)).is_some());
        assert_eq!(acks.table().entries, 1);
    }
}
