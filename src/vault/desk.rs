//! outside
//! What the doors ask of the vault: put, read, list, preserve. Opens and seals row by row; a row that
//! does not open is named and never shown as absent, and without a data key nothing is answered at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::envelope::{Kind, Place};
use super::preservation::{Asked, Copy, Preserved};
use super::record::{RecordId, SCHEMA, SafetyRecord};
use super::ring::{Opened, Ring, RingFault, With};
use super::seal::{DataKey, SealFault, VaultKey, new_id};
use super::wraps::{DataKeyId, KeyRole, Wanted};
use super::{Counts, PRESERVATIONS_MAX, PreservationRow, Put, RECORDS_MAX, Records, SealedRow};
use crate::journal::StoreFault;
use crate::key::WorkspaceId;
use crate::kms::KmsError;
use crate::metrics::{Metrics, VaultOperation};
use crate::time::{Now, Span, Wall};

/// How long an unwrapped data key stays in memory.
pub const KEEP: Span = Span::from_mins(5);
/// Writes under way at once: they share the store's one writer with locks, which must not queue.
const WRITES: usize = 4;
const TRIES: u32 = 5;

/// Why the vault did not do it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VaultFault {
    #[error("no [vault] operator_key is configured")]
    NotConfigured,
    #[error("the operator's key does not open the vault now: {0}")]
    KeyUnavailable(KmsError),
    #[error("{kind} `{id}` is damaged, or was moved from another place")]
    Damaged { kind: &'static str, id: String },
    #[error("record `{0}` is not known")]
    UnknownRecord(String),
    #[error("the stored revision is {found}")]
    Precondition { found: u64 },
    #[error("the workspace has {most} of them, the most there may be")]
    Full { most: u64 },
    #[error("too many writes under way")]
    Busy,
    #[error("{0}")]
    Store(#[from] StoreFault),
    #[error("{0}")]
    Seal(#[from] SealFault),
}

/// What a caller demands of the stored revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Expect {
    #[default]
    Any,
    Absent,
    Revision(u64),
}

/// A record read back.
#[derive(Clone, PartialEq, Debug)]
pub struct Read {
    pub place: Place,
    pub data: SafetyRecord,
}

/// A row of a list; `None` = damaged.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    pub place: Place,
    pub data: Option<SafetyRecord>,
}

/// The last look at one of the vault's keys.
#[derive(Clone, PartialEq, Debug)]
pub struct KeyLook {
    pub at: Wall,
    pub since: Wall,
    pub fault: Option<KmsError>,
    pub wanted: Wanted,
}

/// The vault. One per daemon; it is there even without a configured key, so that a reload may bring one.
pub struct Vault {
    pub(super) records: Arc<dyn Records>,
    pub(super) keys: ArcSwap<Vec<VaultKey>>,
    pub(super) ring: tokio::sync::Mutex<Ring>,
    pub(super) opened: Arc<Opened>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) looks: Mutex<BTreeMap<KeyRole, KeyLook>>,
    counts: Mutex<BTreeMap<WorkspaceId, Counts>>,
    writes: Semaphore,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("keys", &self.keys.load()).finish_non_exhaustive()
    }
}

pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vault {
    /// Reads the wrapped data keys and the numbers of rows; calls no key.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load(records: Arc<dyn Records>, keys: Vec<VaultKey>, keep: Span, metrics: Arc<Metrics>) -> Result<Arc<Self>, StoreFault> {
        let opened = Arc::new(Opened::default());
        let ring = Ring::new(records.data_keys().await?, Arc::clone(&opened), keep);
        let counts = records.counts().await?;
        let vault = Self {
            records,
            keys: ArcSwap::from_pointee(keys),
            ring: tokio::sync::Mutex::new(ring),
            opened,
            metrics,
            looks: Mutex::default(),
            counts: Mutex::new(counts),
            writes: Semaphore::new(WRITES),
        };
        vault.show_counts();
        Ok(Arc::new(vault))
    }

    #[must_use]
    pub fn configured(&self) -> bool {
        !self.keys.load().is_empty()
    }

    /// How many rows a workspace has; `None` without a configured key and without rows.
    #[must_use]
    pub fn counts(&self, workspace: &WorkspaceId) -> Option<Counts> {
        let counts = held(&self.counts).get(workspace).copied();
        counts.or_else(|| self.configured().then(Counts::default))
    }

    /// The rows of all workspaces together.
    #[must_use]
    pub fn totals(&self) -> Counts {
        held(&self.counts).values().fold(Counts::default(), |sum, one| Counts {
            records: sum.records.saturating_add(one.records),
            preservations: sum.preservations.saturating_add(one.preservations),
        })
    }

    fn count(&self, workspace: &WorkspaceId, add: impl Fn(&mut Counts)) {
        add(held(&self.counts).entry(workspace.clone()).or_default());
        self.show_counts();
    }

    fn show_counts(&self) {
        let totals = self.totals();
        self.metrics.vault_records(totals.records, totals.preservations);
    }

    /// Keys in the order in which they are tried: one whose last look failed comes last.
    pub(super) fn ordered(&self) -> Result<Vec<VaultKey>, VaultFault> {
        let mut keys = self.keys.load().to_vec();
        if keys.is_empty() {
            return Err(VaultFault::NotConfigured);
        }
        let looks = held(&self.looks);
        keys.sort_by_key(|key| (looks.get(&key.role).is_some_and(|look| look.fault.is_some()), key.role));
        Ok(keys)
    }

    pub(super) fn with<'a>(&'a self, keys: &'a [VaultKey], now: Now) -> With<'a> {
        With { records: &*self.records, keys, metrics: &self.metrics, now }
    }

    async fn data_key(&self, id: &DataKeyId, now: Now) -> Result<Option<Arc<DataKey>>, VaultFault> {
        let keys = self.ordered()?;
        if let Some(key) = self.opened.get(id, now.mono) {
            return Ok(Some(key));
        }
        match self.ring.lock().await.open(id, self.with(&keys, now)).await {
            Ok(key) => Ok(Some(key)),
            // No such data key was ever stored: the row itself is not what was written.
            Err(RingFault::Missing(_)) => Ok(None),
            Err(fault) => Err(of_ring(fault)),
        }
    }

    /// The bytes of a row; `None` if it is damaged.
    async fn open(&self, row: &SealedRow, now: Now) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, VaultFault> {
        let key = self.data_key(&row.place.data_key, now).await?;
        Ok(key.and_then(|key| key.open(&row.place, &row.envelope).ok()))
    }

    async fn open_record(&self, row: &SealedRow, now: Now) -> Result<Option<SafetyRecord>, VaultFault> {
        let plain = self.open(row, now).await?;
        Ok(plain.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    /// Counts how an operation ended.
    fn counted<T>(&self, operation: VaultOperation, result: Result<T, VaultFault>) -> Result<T, VaultFault> {
        self.metrics.vault_operation(operation, result.as_ref().err().map_or("ok", VaultFault::word));
        result
    }

    /// Writes a record, replacing one of that id. Says whether it is new.
    ///
    /// # Errors
    /// [`VaultFault`]; nothing was written then, except after `Store`, when it may have been.
    pub async fn put(
        &self,
        workspace: &WorkspaceId,
        id: &RecordId,
        data: &SafetyRecord,
        expect: Expect,
        now: Now,
    ) -> Result<Place, VaultFault> {
        self.counted(VaultOperation::Put, self.try_put(workspace, id, data, expect, now).await)
    }

    async fn try_put(
        &self,
        workspace: &WorkspaceId,
        id: &RecordId,
        data: &SafetyRecord,
        expect: Expect,
        now: Now,
    ) -> Result<Place, VaultFault> {
        let plain = serde_json::to_vec(data).map_err(|_| SealFault)?;
        let _write = self.writes.try_acquire().map_err(|_| VaultFault::Busy)?;
        for _ in 0..TRIES {
            let stored = self.records.record(workspace, id.as_str()).await?;
            let found = stored.map_or(0, |row| row.place.revision);
            let holds = match expect {
                Expect::Any => true,
                Expect::Absent => found == 0,
                Expect::Revision(revision) => found == revision,
            };
            if !holds {
                return Err(VaultFault::Precondition { found });
            }
            if found == 0 && self.counts(workspace).is_some_and(|counts| counts.records >= RECORDS_MAX) {
                return Err(VaultFault::Full { most: RECORDS_MAX });
            }
            let (data_key, key) = self.sealing(now).await?;
            let place = Place {
                kind: Kind::Record,
                workspace: workspace.clone(),
                id: id.as_str().into(),
                schema: SCHEMA,
                revision: found.saturating_add(1),
                written_at: now.wall,
                data_key: data_key.clone(),
            };
            let row = SealedRow { envelope: key.seal(&place, &plain)?, place };
            match self.records.put(&row).await? {
                Put::Done => {
                    self.ring.lock().await.used(&data_key);
                    if found == 0 {
                        self.count(workspace, |counts| counts.records = counts.records.saturating_add(1));
                    }
                    return Ok(row.place);
                }
                Put::Conflict => {}
                Put::NoDataKey => return Err(no_data_key(&data_key)),
            }
        }
        Err(VaultFault::Busy)
    }

    async fn sealing(&self, now: Now) -> Result<(DataKeyId, Arc<DataKey>), VaultFault> {
        let keys = self.ordered()?;
        self.ring.lock().await.current(self.with(&keys, now)).await.map_err(of_ring)
    }

    /// # Errors
    /// [`VaultFault`]; a damaged record is one.
    pub async fn get(&self, workspace: &WorkspaceId, id: &RecordId, now: Now) -> Result<Option<Read>, VaultFault> {
        self.counted(VaultOperation::Get, self.try_get(workspace, id, now).await)
    }

    async fn try_get(&self, workspace: &WorkspaceId, id: &RecordId, now: Now) -> Result<Option<Read>, VaultFault> {
        self.ordered()?;
        let Some(row) = self.records.record(workspace, id.as_str()).await? else { return Ok(None) };
        match self.open_record(&row, now).await? {
            Some(data) => Ok(Some(Read { place: row.place, data })),
            None => Err(VaultFault::Damaged { kind: "record", id: id.to_string() }),
        }
    }

    /// # Errors
    /// [`VaultFault`]; a damaged record is none: it is in the list, without data.
    pub async fn list(&self, workspace: &WorkspaceId, after: &str, limit: usize, now: Now) -> Result<Vec<Listed>, VaultFault> {
        self.counted(VaultOperation::List, self.try_list(workspace, after, limit, now).await)
    }

    async fn try_list(&self, workspace: &WorkspaceId, after: &str, limit: usize, now: Now) -> Result<Vec<Listed>, VaultFault> {
        self.ordered()?;
        let mut listed = Vec::new();
        for row in self.records.records(workspace, after, limit).await? {
            let data = self.open_record(&row, now).await?;
            listed.push(Listed { place: row.place, data });
        }
        Ok(listed)
    }

    /// Seals content and copies of records for good.
    ///
    /// # Errors
    /// [`VaultFault`]; a record that is not known or damaged is named, and nothing is kept.
    pub async fn preserve(&self, workspace: &WorkspaceId, asked: Asked, now: Now) -> Result<(PreservationRow, Preserved), VaultFault> {
        self.counted(VaultOperation::Preserve, self.try_preserve(workspace, asked, now).await)
    }

    async fn try_preserve(&self, workspace: &WorkspaceId, asked: Asked, now: Now) -> Result<(PreservationRow, Preserved), VaultFault> {
        let _write = self.writes.try_acquire().map_err(|_| VaultFault::Busy)?;
        if self.counts(workspace).is_some_and(|counts| counts.preservations >= PRESERVATIONS_MAX) {
            return Err(VaultFault::Full { most: PRESERVATIONS_MAX });
        }
        let mut records = Vec::new();
        for id in &asked.records {
            let unknown = || VaultFault::UnknownRecord(id.chars().take(140).collect());
            let record = RecordId::new(id).map_err(|_| unknown())?;
            let Read { place, data } = self.try_get(workspace, &record, now).await?.ok_or_else(unknown)?;
            records.push(Copy { record: place.id, revision: place.revision, written_at: place.written_at, data });
        }
        let person: Arc<str> = asked.person.trim().into();
        let kept = Preserved { reason_code: asked.reason_code, person: Arc::clone(&person), records, content: asked.content };
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(&kept).map_err(|_| SealFault)?);
        let (data_key, key) = self.sealing(now).await?;
        let place = Place {
            kind: Kind::Preservation,
            workspace: workspace.clone(),
            id: new_id("prs_")?.into(),
            schema: SCHEMA,
            revision: 1,
            written_at: now.wall,
            data_key: data_key.clone(),
        };
        let sealed = SealedRow { envelope: key.seal(&place, &plain)?, place };
        let row = PreservationRow { sealed, reason: kept.reason_code, person, journaled: false };
        match self.records.preserve(&row).await? {
            Put::Done => {}
            Put::Conflict => return Err(VaultFault::Busy),
            Put::NoDataKey => return Err(no_data_key(&data_key)),
        }
        self.ring.lock().await.used(&data_key);
        self.count(workspace, |counts| counts.preservations = counts.preservations.saturating_add(1));
        Ok((row, kept))
    }

    /// # Errors
    /// [`VaultFault`]; a damaged preservation is one.
    pub async fn preservation(
        &self,
        workspace: &WorkspaceId,
        id: &str,
        now: Now,
    ) -> Result<Option<(PreservationRow, Preserved)>, VaultFault> {
        self.counted(VaultOperation::Get, self.try_preservation(workspace, id, now).await)
    }

    async fn try_preservation(
        &self,
        workspace: &WorkspaceId,
        id: &str,
        now: Now,
    ) -> Result<Option<(PreservationRow, Preserved)>, VaultFault> {
        self.ordered()?;
        let Some(row) = self.records.preservation(workspace, id).await? else { return Ok(None) };
        let plain = self.open(&row.sealed, now).await?;
        let kept = plain.and_then(|plain| serde_json::from_slice::<Preserved>(&plain).ok());
        // What may be listed without opening must say the same as what was sealed.
        match kept.filter(|kept| kept.person == row.person && kept.reason_code == row.reason) {
            Some(kept) => Ok(Some((row, kept))),
            None => Err(VaultFault::Damaged { kind: "preservation", id: id.to_owned() }),
        }
    }

    /// Without their content: reason, person and time, which are not sealed.
    ///
    /// # Errors
    /// If the vault is not configured, or the store.
    pub async fn preservations(&self, workspace: &WorkspaceId, after: &str, limit: usize) -> Result<Vec<PreservationRow>, VaultFault> {
        self.ordered()?;
        let listed = self.records.preservations(workspace, after, limit).await;
        self.counted(VaultOperation::List, listed.map_err(VaultFault::Store))
    }

    /// The activity event of a preservation is in the journal.
    ///
    /// # Errors
    /// If the store does not take it; the event is then written again.
    pub async fn journaled(&self, id: &str) -> Result<(), VaultFault> {
        Ok(self.records.journaled(id).await?)
    }
}

fn no_data_key(id: &DataKeyId) -> VaultFault {
    VaultFault::Store(StoreFault::Corrupt(format!("data key {} is not stored", id.as_str())))
}

pub(super) fn of_ring(fault: RingFault) -> VaultFault {
    match fault {
        RingFault::Key(error) => VaultFault::KeyUnavailable(error),
        RingFault::Missing(id) => VaultFault::Store(StoreFault::Corrupt(format!("data key {id} is not stored"))),
        RingFault::Store(fault) => VaultFault::Store(fault),
        RingFault::Seal(fault) => VaultFault::Seal(fault),
    }
}

impl VaultFault {
    /// One word for the metric.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotConfigured => "not_configured",
            Self::KeyUnavailable(_) => "key_unavailable",
            Self::Damaged { .. } => "damaged",
            Self::UnknownRecord(_) => "unknown",
            Self::Precondition { .. } => "precondition",
            Self::Full { .. } => "full",
            Self::Busy => "busy",
            Self::Store(_) => "store",
            Self::Seal(_) => "seal",
        }
    }
}
