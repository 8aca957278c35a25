//! outside
//! Keeps the table: list once, then the stream; back to where it was after a break, the list again
//! after a `reset`. The table counts as heard only while it holds everything that the daemon said.

use std::sync::Arc;
use std::time::Duration;

use super::ack::Acks;
use super::sse::{Reader, SseEvent};
use super::table::Table;
use super::wire::Wire;
use super::{ClientError, OnChange};
use crate::clock;
use crate::key::WorkspaceId;
use crate::notify::body::Body;
use crate::words::Access;

/// A workspace changed, and the table has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub workspace: WorkspaceId,
    pub sequence: u64,
    pub access: Access,
    /// `None`: it was not known before.
    pub previous: Option<Access>,
}

/// Longer than two heartbeats: the connection is dead although nobody said so.
const SILENCE: Duration = Duration::from_secs(35);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

pub struct Follower {
    wire: Wire,
    table: Arc<Table>,
    on_change: Option<OnChange>,
    acks: Option<Acks>,
    longest_pause: Duration,
    last: Option<String>,
    run: Option<String>,
    /// The table holds all that came before the place where we read.
    whole: bool,
}

impl Follower {
    pub const fn new(wire: Wire, table: Arc<Table>, on_change: Option<OnChange>, acks: Option<Acks>, longest_pause: Duration) -> Self {
        Self { wire, table, on_change, acks, longest_pause, last: None, run: None, whole: false }
    }

    /// Follows until it is dropped.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let was_whole = self.whole;
            self.whole = false;
            match self.connected().await {
                Ok(()) => tracing::debug!("the stream ended; following again"),
                Err(error) => tracing::warn!(%error, "the stream broke; following again"),
            }
            pause = if self.whole || was_whole { FIRST_PAUSE } else { pause.saturating_mul(2).min(self.longest_pause) };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    async fn connected(&mut self) -> Result<(), ClientError> {
        let mut response = self.wire.stream(self.last.as_deref()).await?;
        let run = response.headers().get("x-stream-run").and_then(|run| run.to_str().ok()).map(str::to_owned);
        // Numbers of another run's store may mean something else, even where they look known.
        let other_run = self.run.is_some() && self.run != run;
        self.run = run;
        let broken = |why: String| ClientError::Unusable { path: "/v1/stream".to_owned(), why };
        let mut reader = Reader::default();
        loop {
            let piece = match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(piece) => piece.map_err(|error| broken(error.without_url().to_string()))?,
                Err(_) => return Err(broken("silence".to_owned())),
            };
            let Some(piece) = piece else { return Ok(()) };
            let began = clock::now_mono();
            for event in reader.take(&piece).map_err(|error| broken(error.to_string()))? {
                self.take(event, other_run).await?;
            }
            if self.whole {
                // From when the bytes were read: applying them does not make them younger.
                self.table.heard(began);
            }
        }
    }

    async fn take(&mut self, event: SseEvent, other_run: bool) -> Result<(), ClientError> {
        match event.name.as_str() {
            "reset" => self.reload().await?,
            "resumed" if other_run => self.reload().await?,
            "resumed" => self.whole = true,
            "access_changed" => self.changed(&event.data)?,
            // Heartbeats, and what says nothing of a workspace's access.
            _ => {}
        }
        if event.id.is_some() {
            self.last = event.id;
        }
        Ok(())
    }

    /// Reads the list: everything before it is in it, what comes after waits in the connection.
    async fn reload(&mut self) -> Result<(), ClientError> {
        let list = self.wire.list().await?;
        self.whole = true;
        for (workspace, sequence, access, previous) in self.table.replace(&list) {
            // Nobody asked about workspaces that are open from the start.
            if previous.is_some() || access != Access::Open {
                self.told(Change { workspace, sequence, access, previous });
            }
        }
        self.table.heard(clock::now_mono());
        Ok(())
    }

    fn changed(&self, data: &str) -> Result<(), ClientError> {
        let unusable = |error: serde_json::Error| ClientError::Unusable { path: "/v1/stream".to_owned(), why: error.to_string() };
        let Body { data, .. } = serde_json::from_str(data).map_err(unusable)?;
        let Some(access) = data.access else { return Ok(()) };
        for workspace in data.workspaces {
            if let Some(previous) = self.table.apply(&workspace, data.sequence.0, access) {
                self.told(Change { workspace, sequence: data.sequence.0, access, previous });
            }
        }
        Ok(())
    }

    fn told(&self, change: Change) {
        if let Some(on_change) = &self.on_change {
            on_change(&change);
        }
        if let Some(acks) = &self.acks {
            acks.say(change.workspace, change.sequence);
        }
    }
}

/// Between half of it and all of it, so that thousands do not come back in one moment.
fn jittered(pause: Duration) -> Duration {
    let dice = clock::now_nanos().checked_rem(1000).unwrap_or(0);
    pause.mul_f64(0.5 + f64::from(u32::try_from(dice).unwrap_or(0)) / 2000.0)
}
