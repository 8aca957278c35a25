//! outside
//! A service's side of the gate: connects, reads the list, follows the stream, and keeps a table of
//! workspaces that is asked in nanoseconds. It says so when it cannot know; what follows from that is
//! the caller's choice ([`OnLost`]), and locked stays locked whatever is chosen.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use url::Url;

use crate::key::WorkspaceId;
use crate::time::Span;

pub mod ack;
pub mod follow;
pub mod layer;
pub mod leased;
pub mod sse;
pub mod table;
pub mod wire;

pub use follow::Change;
pub use layer::{Asked, GateLayer};
pub use leased::Leased;
pub use table::{Answer, Handle, OnLost, Ruling};

use table::Table;
use wire::Wire;

/// What the client needs to know.
#[derive(Clone)]
pub struct Settings {
    /// Where the daemon serves, such as `https://watchdog.internal:9847`.
    pub address: Url,
    /// A token of role `read`.
    pub token: Option<String>,
    /// The name under which changes are acknowledged; without one they are not.
    pub consumer: Option<String>,
    pub on_lost: OnLost,
    /// Silence of the stream for so long means that nothing is known any more. The daemon speaks at
    /// least every 15 s.
    pub patience: Span,
    /// The longest pause between two tries to connect.
    pub longest_pause: Duration,
}

impl Settings {
    /// The last known answer for an hour, 20 s of patience, no token, no acknowledgements.
    #[must_use]
    pub fn new(address: Url) -> Self {
        Self {
            address,
            token: None,
            consumer: None,
            on_lost: OnLost::LastKnownFor(Span::from_hours(1)),
            patience: Span::from_secs(20),
            longest_pause: Duration::from_secs(5),
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("consumer", &self.consumer).field("on_lost", &self.on_lost).finish_non_exhaustive()
    }
}

/// What is called after each change, when the table has it: the place to drop caches. The change is
/// acknowledged when it returns.
pub type OnChange = Arc<dyn Fn(&Change) + Send + Sync>;

/// Why a client cannot begin, or did not get an answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("address: no http or https address that paths can be added to")]
    Address,
    #[error("token: it cannot be sent in a header")]
    Token,
    #[error("the http client cannot be made: {0}")]
    Http(String),
    #[error("{path}: no answer: {why}")]
    Unreachable { path: String, why: String },
    #[error("{path}: answered {status}")]
    Refused { path: String, status: u16 },
    #[error("{path}: the answer cannot be used: {why}")]
    Unusable { path: String, why: String },
}

/// The client; ends its work when dropped.
pub struct Client {
    table: Arc<Table>,
    wire: Wire,
    work: Vec<JoinHandle<()>>,
}

impl Client {
    /// Begins to follow; answers are [`Answer::Stale`] until the list is read. Needs a tokio runtime.
    ///
    /// # Errors
    /// If address or token cannot be used. A daemon that is away is no error: it is tried again.
    pub fn start(settings: Settings, on_change: Option<OnChange>) -> Result<Self, ClientError> {
        let wire = Wire::new(&settings)?;
        let table = Arc::new(Table::new(settings.on_lost, settings.patience));
        let mut work = Vec::new();
        let acks = settings.consumer.map(|consumer| {
            let (acks, queue) = ack::channel();
            work.push(tokio::spawn(ack::send(wire.clone(), consumer, queue)));
            acks
        });
        let follower = follow::Follower::new(wire.clone(), Arc::clone(&table), on_change, acks, settings.longest_pause);
        work.push(tokio::spawn(follower.run()));
        Ok(Self { table, wire, work })
    }

    /// Resolves a workspace once; asking the handle is then a few loads.
    #[must_use]
    pub fn handle(&self, workspace: &WorkspaceId) -> Handle {
        Table::handle(&self.table, workspace)
    }

    /// As [`Self::handle`], and open only while a lease of the daemon runs: closed at its end,
    /// whatever `on_lost` says. The lease is renewed until the answer is dropped.
    #[must_use]
    pub fn leased(&self, workspace: &WorkspaceId) -> Leased {
        Leased::start(self.wire.clone(), workspace.clone(), self.handle(workspace))
    }

    /// Ends when the list has been read.
    pub async fn loaded(&self) {
        self.table.loaded().await;
    }

    /// The table, for layers.
    #[must_use]
    pub const fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.work.iter().for_each(JoinHandle::abort);
    }
}
