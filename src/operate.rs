//! inside
//! What operators may ask of the core, and what it answers: the shapes shared by HTTP, control
//! socket and command line. Shapes only; the core decides.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Config;
use crate::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use crate::snapshot::{KeyView, WorkspaceView};
use crate::time::Span;
use crate::vault::wraps::KeyRole;
use crate::words::EventType;

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
    /// How many held orders were carried out or dropped.
    Released(u32),
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
    /// 409: an automatic lock, and no proof that the key works again.
    NotProven,
    /// 409
    FileManaged,
    /// 409
    KeyLocks,
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
