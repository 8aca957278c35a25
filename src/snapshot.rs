//! inside
//! What is shown of keys, workspaces and providers: the one shape behind API, metrics, status page
//! and command line, so that they tell the same state. Shapes only; nothing is decided here.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::key::{KeyId, KeyVersion, ProviderId, WorkspaceId};
use crate::kms::RotationFact;
use crate::probe::LegResult;
use crate::time::{Mono, Wall};
use crate::words::{Access, By, Cause, Code, FailureKind, HeldBy, ProviderKind, Release, Sequence, StateWord, VerdictWord};

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
