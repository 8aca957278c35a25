//! inside
//! What is shown of keys, workspaces and providers: the one shape behind API, metrics, status page
//! and command line, so that they tell the same state. Shapes only; nothing is decided here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::audit::Gap;
use crate::key::{KeyId, KeyVersion, LeverId, ProviderId, ReceiverId, WorkspaceId};
use crate::kms::RotationFact;
use crate::probe::LegResult;
use crate::time::{Mono, Wall};
use crate::words::{
    Access, AuditTrouble, By, Cause, Code, FailureKind, HeldBy, LeverAct, LeverState, ProviderKind, Release, Sequence, StateWord,
    VerdictWord,
};

/// One version of a key as shown.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VersionView {
    pub version: KeyVersion,
    /// `None` = not observable.
    pub usable: Option<bool>,
    pub protects_data: bool,
    pub last_checked: Option<Wall>,
    pub current: bool,
    pub retired: bool,
    pub failure_kind: Option<FailureKind>,
}

/// Facts of the control plane as shown; `null` = not applicable or not shown by the provider.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct FactsView {
    pub created_at: Option<Wall>,
    pub rotated_at: Option<Wall>,
    pub next_rotation_at: Option<Wall>,
    pub deletion_at: Option<Wall>,
    pub expires_at: Option<Wall>,
    pub not_before: Option<Wall>,
    pub recoverable_until: Option<Wall>,
    pub protection_level: Option<String>,
    pub origin: Option<String>,
    pub multi_region: Option<bool>,
    pub resolved: Option<String>,
    pub current_version: Option<KeyVersion>,
    /// What is known of its rotation, apart from rotations seen.
    #[serde(default)]
    pub rotation: RotationFact,
    /// The provider has more versions than are read.
    #[serde(default)]
    pub versions_truncated: bool,
}

/// The last round of a key.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProbeView {
    pub at: Wall,
    pub legs: Vec<LegResult>,
}

/// One key: `GET /v1/keys/{id}`, `probe KEY --json` and `validate`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KeyView {
    pub id: KeyId,
    pub provider: ProviderId,
    pub provider_kind: ProviderKind,
    pub key: String,
    pub policy: String,
    pub state: StateWord,
    pub verdict: Option<VerdictWord>,
    pub failure_kind: Option<FailureKind>,
    pub stated: bool,
    pub confirmed: bool,
    pub held_by: Option<HeldBy>,
    /// False in shadow mode.
    pub enforced: bool,
    /// In shadow mode or while held: what the workspaces would have.
    pub would_access: Option<Access>,
    pub since: Wall,
    pub workspaces: Vec<WorkspaceId>,
    pub owner: Option<String>,
    pub versions: Vec<VersionView>,
    pub facts: FactsView,
    pub last_probe: Option<ProbeView>,
    pub last_conclusive_at: Option<Wall>,
    pub next_probe_at: Option<Wall>,
    pub identity: Option<String>,
    /// `file` or `api`.
    pub source: String,
    /// Why this registration is not looked at.
    #[serde(default)]
    pub refused: Option<String>,
    pub rotations: u64,
}

/// One order that lowers a workspace.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LockView {
    pub by: By,
    pub key: Option<KeyId>,
    pub cause: Cause,
    pub access: Access,
    pub since: Wall,
    pub reason: Option<String>,
    pub actor: Option<String>,
    pub expires_at: Option<Wall>,
    pub sequence: Sequence,
    pub release: Option<Release>,
    pub durable: bool,
}

/// An override that holds an automatic lock off for a while.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OverrideView {
    pub key: KeyId,
    pub kind: FailureKind,
    pub until: Wall,
    pub reason: String,
    pub actor: String,
}

/// One lever of one workspace.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LeverView {
    pub lever: LeverId,
    /// What it is to do: a lock pulls it, an unlock undoes it.
    pub act: LeverAct,
    pub state: LeverState,
    pub error: Option<String>,
    pub at: Wall,
    /// Paths that stay open although it is pulled, or what an undo left as it found it.
    pub left: Vec<String>,
}

/// A rehearsed revocation: what was ordered, and when each stage happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DrillView {
    pub id: String,
    /// The key whose revocation is rehearsed; absent if one workspace was named.
    pub key: Option<KeyId>,
    pub workspaces: Vec<WorkspaceId>,
    /// Whether access is really lowered at gate and stream.
    pub cut: bool,
    pub reason: String,
    pub actor: String,
    pub ordered_at: Wall,
    pub until: Wall,
    /// When the order was in the journal.
    pub stored_at: Option<Wall>,
    /// When the gate showed it.
    pub applied_at: Option<Wall>,
    /// Receivers that were to be told, and when each took the notice.
    pub notices: BTreeMap<ReceiverId, Option<Wall>>,
    pub ended_at: Option<Wall>,
    /// `time`, `operator` or `overtaken` (a real lock came).
    pub ended_by: Option<String>,
}

/// One workspace: `GET /v1/workspaces/{ws}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkspaceView {
    pub workspace: WorkspaceId,
    pub access: Access,
    pub code: Option<Code>,
    pub cause: Option<Cause>,
    pub key: Option<KeyId>,
    pub message: Option<String>,
    pub since: Wall,
    pub by: Option<By>,
    pub sequence: Sequence,
    pub keys: Vec<KeyId>,
    pub locks: Vec<LockView>,
    pub terminal: bool,
    pub recoverable_until: Option<Wall>,
    pub next_step: Option<String>,
    pub release: Option<Release>,
    pub overrides: Vec<OverrideView>,
    pub durable: bool,
    /// In shadow mode or while held: what this workspace would have.
    pub would_access: Option<Access>,
    pub levers: Vec<LeverView>,
    /// The drill under way, if any; it is no lock.
    pub drill: Option<DrillView>,
}

impl WorkspaceView {
    /// A lock of which a lever failed: the gate refuses, and some other path is open.
    #[must_use]
    pub fn lock_incomplete(&self) -> bool {
        self.levers.iter().any(|lever| lever.act == LeverAct::Pull && lever.state == LeverState::Failed)
    }

    /// An unlock that waits for a lever that failed.
    #[must_use]
    pub fn unlock_incomplete(&self) -> bool {
        self.levers.iter().any(|lever| lever.act == LeverAct::Undo && lever.state == LeverState::Failed)
    }
}

/// One provider as shown in status and metrics.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProviderView {
    pub provider: ProviderId,
    pub kind: ProviderKind,
    /// `None` = no control key, or not probed yet.
    pub control_key_healthy: Option<bool>,
    pub control_key: Option<String>,
    pub brake_engaged: bool,
    pub held: Vec<KeyId>,
    pub clock_skew_ms: Option<i64>,
    pub missed_windows: u64,
    pub credentials_failing: bool,
    /// When our own secret ends, where it was written down.
    #[serde(default)]
    pub credentials_expire_at: Option<Wall>,
}

/// Numbers about the daemon itself that are not per key.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DaemonView {
    pub started_at: Wall,
    pub ready: bool,
    pub config_flagged: Option<String>,
    pub bugs: u64,
    pub would_lock_total: u64,
    pub store_write_failures: u64,
    pub outbox: Vec<OutboxView>,
    /// Drills under way, and the last that ended.
    pub drills: Vec<DrillView>,
    #[serde(default)]
    pub audit: Vec<AuditView>,
}

/// One audit source: what it covers, and what it does not.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AuditView {
    pub source: String,
    pub kind: String,
    pub provider: ProviderId,
    /// From when on it was read.
    pub since: Option<Wall>,
    /// Until when everything that the log has was seen.
    pub seen_until: Option<Wall>,
    pub trouble: Option<AuditTrouble>,
    pub trouble_since: Option<Wall>,
    pub message: Option<String>,
    /// Stretches that were not read and will not be.
    pub gaps: Vec<Gap>,
    pub unseen: Vec<String>,
}

/// One receiver's queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OutboxView {
    pub receiver: String,
    pub depth: u64,
    pub oldest_at: Option<Wall>,
    pub failing: bool,
    pub last_success_at: Option<Wall>,
    pub dead: u64,
}

/// One change for the published snapshot.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    Key(Arc<KeyView>),
    KeyGone(KeyId),
    Workspace(Arc<WorkspaceView>),
    Provider(Arc<ProviderView>),
    Daemon(Arc<DaemonView>),
    /// The core handled a turn at this time: the snapshot is complete as of now.
    Fresh(Mono),
}
