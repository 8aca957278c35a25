//! inside
//! What is written down: journal records, rows of state, and the store they go to.
//! Formats and the trait only; the hash chain is computed inside the store's own transaction.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::key::{KeyId, KeyVersion, ProviderId, WorkspaceId};
use crate::kms::{BoxFuture, Wrapped};
use crate::notify::OutboxRow;
use crate::time::Wall;
use crate::words::{Access, By, Cause, EventType, FailureKind, Release, Sequence};

/// Number of a commit within one run of one instance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Batch(pub u64);

/// Division of the keys among instances; SQLite has only shard 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Shard(pub u16);

/// Fencing number of a shard's owner; SQLite has only epoch 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// One journal record, before the store has numbered and chained it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    pub at: Wall,
    #[serde(rename = "type")]
    pub event: EventType,
    pub key: Option<KeyId>,
    pub workspace: Option<WorkspaceId>,
    pub version: Option<KeyVersion>,
    pub actor: Option<String>,
    pub event_id: Option<String>,
    pub correlation_id: Option<String>,
    /// Flat facts of the event; values are text, so that the chain is over stable bytes.
    pub detail: BTreeMap<String, String>,
}

/// A stored record with its place in the chain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoredRecord {
    pub sequence: u64,
    #[serde(flatten)]
    pub record: Record,
    pub hash: String,
}

/// State of one key as stored: the lifecycle's own state is opaque JSON to the store.
#[derive(Clone, PartialEq, Debug)]
pub struct KeyRow {
    pub key: KeyId,
    pub shard: Shard,
    /// `None` deletes the row.
    pub state: Option<Arc<str>>,
}

/// A stored canary: one per key and version. The store keeps a checksum of its own over the row.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CanaryRow {
    pub key: KeyId,
    pub version: KeyVersion,
    pub wrapped: Wrapped,
    pub identity: Option<String>,
    pub created_at: Wall,
}

/// An order that lowers one workspace: manual, or automatic by one key.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Order {
    pub workspace: WorkspaceId,
    pub by: By,
    /// Absent for a manual order.
    pub key: Option<OrderKey>,
    pub access: Access,
    pub cause: Cause,
    pub sequence: Sequence,
    pub since: Wall,
    pub reason: Option<String>,
    pub actor: Option<String>,
    pub expires_at: Option<Wall>,
    pub message: Option<String>,
    pub release: Option<Release>,
    /// Set when the key's registration went away while it locked.
    pub orphaned: bool,
}

/// A lock names its key by provider and key reference, so that renaming changes no access.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct OrderKey {
    pub id: KeyId,
    pub provider: ProviderId,
    pub reference: Arc<str>,
}

/// Identity of an order row: one per workspace and (manual, or provider and key reference).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct OrderSlot {
    pub workspace: WorkspaceId,
    /// `None` = the manual order.
    pub key: Option<(ProviderId, Arc<str>)>,
}

impl Order {
    #[must_use]
    pub fn slot(&self) -> OrderSlot {
        OrderSlot { workspace: self.workspace.clone(), key: self.key.as_ref().map(|k| (k.provider.clone(), Arc::clone(&k.reference))) }
    }
}

/// A change of the orders. Lifting is compare-and-set on the sequence of the lock it lifts.
#[derive(Clone, PartialEq, Debug)]
pub enum OrderWrite {
    Lower(Order),
    Lift { slot: OrderSlot, sequence: Sequence },
}

/// An override that holds one key's automatic lock of one kind off until a time.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OverrideRow {
    pub workspace: WorkspaceId,
    pub key: KeyId,
    pub kind: FailureKind,
    pub until: Wall,
    pub reason: String,
    pub actor: String,
}

/// One transaction. Written in this order: orders, keys, canaries, journal, outbox, meta.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Commit {
    pub batch: Batch,
    pub orders: Vec<OrderWrite>,
    pub keys: Vec<KeyRow>,
    pub canaries: Vec<CanaryRow>,
    pub canaries_dropped: Vec<(KeyId, KeyVersion)>,
    pub records: Vec<Record>,
    pub outbox: Vec<OutboxRow>,
    /// Small named values (brake, known workspaces, last good configuration); `None` deletes.
    pub meta: BTreeMap<String, Option<String>>,
}

impl Commit {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
            && self.keys.is_empty()
            && self.canaries.is_empty()
            && self.canaries_dropped.is_empty()
            && self.records.is_empty()
            && self.outbox.is_empty()
            && self.meta.is_empty()
    }
    /// Whether this commit lowers any workspace: then it may not wait for a slow disk.
    #[must_use]
    pub fn lowers(&self) -> bool {
        self.orders.iter().any(|w| matches!(w, OrderWrite::Lower(_)))
    }
}

/// What a commit came to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Committed {
    /// Lifts that named an older lock than the stored one; those workspaces stay lowered.
    pub refused: Vec<OrderSlot>,
    /// Journal numbers of the records, in order.
    pub sequences: Vec<u64>,
}

/// Everything a start needs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Restored {
    pub keys: Vec<(KeyId, Arc<str>)>,
    pub canaries: Vec<CanaryRow>,
    /// Canary rows whose checksum failed: `store_damage`, never a verdict.
    pub damaged: Vec<(KeyId, KeyVersion)>,
    pub orders: Vec<Order>,
    /// Rows not yet done (pending, in flight, dead).
    pub outbox: Vec<OutboxRow>,
    pub meta: BTreeMap<String, String>,
    /// Highest journal number.
    pub head: u64,
}

/// Why the store did not do it. The text names no secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreFault {
    #[error("another owner holds this shard")]
    Fenced,
    #[error("store unavailable: {0}")]
    Unavailable(String),
    #[error("store is full: {0}")]
    Full(String),
    #[error("store is damaged: {0}")]
    Corrupt(String),
}

/// Filter of a journal query; ascending by sequence.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct JournalQuery {
    pub after: u64,
    /// At most 1,000.
    pub limit: u32,
    pub key: Option<KeyId>,
    pub workspace: Option<WorkspaceId>,
}

/// One transaction per commit, on disk when it returns, idempotent by batch, called by one task.
pub trait Store: Send + Sync {
    fn load(&self) -> BoxFuture<'_, Result<Restored, StoreFault>>;
    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, Result<Committed, StoreFault>>;
    fn journal<'a>(&'a self, query: &'a JournalQuery) -> BoxFuture<'a, Result<Vec<StoredRecord>, StoreFault>>;
}
