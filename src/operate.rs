//! inside
//! What operators may ask of the core, and what it answers: the shapes shared by HTTP, control
//! socket and command line. Shapes only; the core decides.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::audit::Told;
use crate::config::Config;
use crate::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use crate::notify::{Notice, NoticeId, OutboxRow, OutboxState};
use crate::snapshot::{DrillView, KeyView, WorkspaceView};
use crate::time::{Span, Wall};
use crate::vault::wraps::KeyRole;
use crate::words::{EventType, Severity};

/// One request of an operator. `actor` says who: token name, or `uid:NAME` on the control socket.
#[derive(Clone, PartialEq, Debug)]
pub struct Operation {
    pub actor: String,
    pub action: Action,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    Lock {
        workspace: WorkspaceId,
        reason: String,
    },
    /// Clears a manual lock, releases a pending one, clears orphaned ones. Against an automatic lock
    /// without proof it is refused unless `override_for` (24 h at most) is given.
    Unlock {
        workspace: WorkspaceId,
        reason: String,
        override_for: Option<Span>,
    },
    /// A full round now; joins a round already running for that key. Answers when it is judged.
    Validate {
        key: KeyId,
    },
    BrakeRelease {
        provider: ProviderId,
        lock: bool,
        reason: String,
    },
    RetireVersion {
        key: KeyId,
        version: KeyVersion,
        reason: String,
    },
    RetireKey {
        key: KeyId,
        reason: String,
    },
    /// Registers a key, or gives a registered one other fields. Only the core judges it.
    PutKey {
        key: Box<crate::config::raw::Key>,
    },
    /// Takes back a registration by the API; refused while the key locks, unless its locks may stay.
    DeleteKey {
        key: KeyId,
        keep_lock: bool,
    },
    /// Rehearses a revocation of a workspace or of everything under a key.
    Drill {
        /// Id of a workspace or of a key.
        target: String,
        length: Span,
        cut: bool,
        reason: String,
    },
    /// Ends a drill before its time.
    EndDrill {
        id: String,
        reason: String,
    },
    /// The newly loaded and already validated configuration.
    Reload {
        config: Arc<Config>,
    },
    /// A reload that failed: shown until one succeeds.
    ReloadFailed {
        error: String,
    },
    /// A marked test notice through the whole path of one receiver.
    TestReceiver {
        receiver: ReceiverId,
    },
    /// What an audit source tells; answered when it is on disk.
    Audit {
        told: Box<Told>,
    },
    /// A person has seen a lock notice.
    AcknowledgeNotice {
        id: NoticeId,
    },
    /// Dead letters go out again: one notice's, or all.
    ResendNotices {
        id: Option<NoticeId>,
    },
    /// Changes nothing: shows what waits.
    ListNotices {
        filter: NoticeFilter,
    },
    /// Changes nothing: whether the loop, the store and the outbox are well.
    Health,
    /// Quiet hours last until then; `None` = there are none now.
    Quiet {
        until: Option<Wall>,
    },
    /// One activity event of a workspace; answered when it is stored.
    Journal {
        event: EventType,
        workspace: WorkspaceId,
        event_id: Option<String>,
        detail: BTreeMap<String, String>,
    },
    /// A key of the vault fails or works again; told once each way, over restarts too.
    VaultKey {
        role: KeyRole,
        failing: bool,
        text: String,
    },
    /// A calendar job's notice to the given receivers.
    Report {
        name: String,
        receivers: Vec<ReceiverId>,
        /// The time of the calendar that it is for, as the clock on the wall shows it there. A slot
        /// is served once; the first one ever only begins the count.
        slot: String,
    },
}

/// What came of it.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    Done,
    Workspace(Arc<WorkspaceView>),
    Key(Arc<KeyView>),
    /// A key that was not registered before.
    Registered(Arc<KeyView>),
    Drill(Arc<DrillView>),
    /// How many held orders were carried out or dropped.
    Released(u32),
    /// How many registered keys the events spoke of.
    Heard(u32),
    Notices(Vec<NoticeView>),
    /// `None` = all is well; else what is not.
    Health(Option<String>),
}

/// Which notices are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoticeFilter {
    /// `pending`, `dead` or `unacknowledged`.
    pub state: String,
    pub limit: usize,
}

/// A notice as operators see it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NoticeView {
    pub id: String,
    /// `null` where it does not belong to one receiver.
    pub receiver: Option<ReceiverId>,
    /// `pending`, `in_flight`, `dead`, `unacknowledged` or `escalated`.
    pub state: String,
    #[serde(rename = "type")]
    pub event: EventType,
    pub severity: Severity,
    pub created_at: Wall,
    pub key: Option<KeyId>,
    pub workspaces: Vec<WorkspaceId>,
    pub message: String,
    pub attempts: u32,
    pub next_at: Option<Wall>,
    pub last_error: Option<String>,
}

impl NoticeView {
    #[must_use]
    pub fn of_notice(notice: &Notice, state: &str) -> Self {
        Self {
            id: notice.id.0.to_string(),
            receiver: None,
            state: state.to_owned(),
            event: notice.event,
            severity: notice.severity,
            created_at: notice.timestamp,
            key: notice.key.clone(),
            workspaces: notice.workspaces.clone(),
            message: notice.message.clone(),
            attempts: 0,
            next_at: None,
            last_error: None,
        }
    }

    #[must_use]
    pub fn of_row(row: &OutboxRow) -> Self {
        let state = match row.state {
            OutboxState::Pending => "pending",
            OutboxState::InFlight => "in_flight",
            OutboxState::Done => "done",
            OutboxState::Dead => "dead",
            OutboxState::Folded => "folded",
        };
        Self {
            receiver: Some(row.receiver.clone()),
            created_at: row.created_at,
            attempts: row.attempts,
            next_at: (row.state == OutboxState::Pending).then_some(row.next_at),
            last_error: row.last_error.clone(),
            ..Self::of_notice(&row.notice, state)
        }
    }
}

/// Why it was not done. `slug` is the problem type (`urn:cmek-watchdog:<slug>`).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{detail}")]
pub struct Refusal {
    pub slug: RefusalSlug,
    pub detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalSlug {
    /// 404
    UnknownKey,
    /// 404
    UnknownWorkspace,
    /// 404
    UnknownProvider,
    /// 404
    UnknownVersion,
    /// 404
    UnknownReceiver,
    /// 404
    UnknownNotice,
    /// 409: an automatic lock, and no proof that the key works again.
    NotProven,
    /// 409
    FileManaged,
    /// 409
    KeyLocks,
    /// 404
    UnknownDrill,
    /// 409: a drill of this workspace is under way, or it is locked for real.
    NotOpen,
    /// 409: the brake is not engaged.
    NotEngaged,
    /// 409: the version that new data is wrapped under cannot be retired.
    CurrentVersion,
    /// 422: an override longer than 24 h, an empty reason.
    Invalid,
    /// 503: the journal could not be written, and an unlock needs it.
    StoreUnavailable,
    /// 503: starting, stopping, or too many requests under way.
    Busy,
}

pub type Answered = Result<Reply, Refusal>;
