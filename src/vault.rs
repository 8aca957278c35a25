//! inside
//! The store of safety metadata: what a record may hold, how it is sealed and bound to its place, which
//! data keys must be wrapped anew, and when the operator's key is told of. Formats and decisions only;
//! nothing here may name a customer's key, and no probe's trait leads here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::journal::StoreFault;
use crate::key::WorkspaceId;
use crate::kms::BoxFuture;
use crate::time::{Span, Wall};

#[cfg(feature = "daemon")]
pub mod desk;
pub mod envelope;
#[cfg(feature = "daemon")]
pub mod look;
pub mod preservation;
pub mod record;
#[cfg(feature = "daemon")]
pub mod ring;
#[cfg(feature = "daemon")]
pub mod seal;
pub mod wraps;

use envelope::Place;
use wraps::{DataKeyId, DataKeyRow, Wrap};

/// Most records of one workspace, and most preservations.
pub const RECORDS_MAX: u64 = 100_000;
pub const PRESERVATIONS_MAX: u64 = 10_000;
/// A data key seals at most so many envelopes. Random 96-bit nonces allow 2^32 under one key before a
/// repeat is likelier than 2^-32; this stays far below even if some uses were never counted.
pub const DATA_KEY_USES: u64 = 1 << 20;
/// And is taken for new envelopes for so long.
pub const DATA_KEY_AGE: Span = Span::from_days(30);

/// One sealed row. Everything beside the envelope is bound into it and cannot be altered unseen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedRow {
    pub place: Place,
    pub envelope: Vec<u8>,
}

/// One sealed preservation with what may be listed without opening it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreservationRow {
    pub sealed: SealedRow,
    pub reason: preservation::ReasonCode,
    pub person: Arc<str>,
    /// Whether the activity event of it is in the journal.
    pub journaled: bool,
}

/// How many rows a workspace has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    pub records: u64,
    pub preservations: u64,
}

/// What a write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    Done,
    /// The stored revision is another one than the writer had seen.
    Conflict,
    /// The sealing data key is not stored: nothing was written.
    NoDataKey,
}

/// Where sealed rows and wrapped data keys are kept. On disk when a write returns. It never sees a
/// plaintext or a data key.
pub trait Records: Send + Sync {
    fn data_keys(&self) -> BoxFuture<'_, Result<Vec<DataKeyRow>, StoreFault>>;
    fn add_data_key<'a>(&'a self, row: &'a DataKeyRow) -> BoxFuture<'a, Result<(), StoreFault>>;
    /// Replaces all wrapped forms of one data key at once.
    fn rewrap<'a>(&'a self, id: &'a DataKeyId, wraps: &'a [Wrap]) -> BoxFuture<'a, Result<(), StoreFault>>;
    /// Writes a record and counts the use of its data key, if the stored revision is the one before it
    /// (none before the first).
    fn put<'a>(&'a self, row: &'a SealedRow) -> BoxFuture<'a, Result<Put, StoreFault>>;
    fn record<'a>(&'a self, workspace: &'a WorkspaceId, id: &'a str) -> BoxFuture<'a, Result<Option<SealedRow>, StoreFault>>;
    /// Ascending by id.
    fn records<'a>(&'a self, workspace: &'a WorkspaceId, after: &'a str, limit: usize)
    -> BoxFuture<'a, Result<Vec<SealedRow>, StoreFault>>;
    fn preserve<'a>(&'a self, row: &'a PreservationRow) -> BoxFuture<'a, Result<Put, StoreFault>>;
    fn preservation<'a>(&'a self, workspace: &'a WorkspaceId, id: &'a str) -> BoxFuture<'a, Result<Option<PreservationRow>, StoreFault>>;
    fn preservations<'a>(
        &'a self,
        workspace: &'a WorkspaceId,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<PreservationRow>, StoreFault>>;
    /// Preservations whose activity event is not in the journal yet, of all workspaces.
    fn unjournaled(&self, limit: usize) -> BoxFuture<'_, Result<Vec<PreservationRow>, StoreFault>>;
    fn journaled<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), StoreFault>>;
    fn counts(&self) -> BoxFuture<'_, Result<BTreeMap<WorkspaceId, Counts>, StoreFault>>;
}

/// Whether a data key may still seal something new.
#[must_use]
pub fn seals_on(row: &DataKeyRow, now: Wall) -> bool {
    row.uses < DATA_KEY_USES && now.since(row.made_at) < DATA_KEY_AGE
}

#[cfg(test)]
mod tests;
