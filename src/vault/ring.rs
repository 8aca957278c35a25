//! outside
//! The data keys of the vault: their wrapped forms, and for a bounded time and number those that were
//! unwrapped. A key that cannot be unwrapped is not asked for again at once, so that a crowd of readers
//! does not become a crowd at the operator's key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::seal::{DataKey, SealFault, VaultKey, new_data_key};
use super::wraps::{DataKeyId, DataKeyRow, KeyRole, Wanted, replaced};
use super::{Records, seals_on};
use crate::journal::StoreFault;
use crate::kms::KmsError;
use crate::metrics::Metrics;
use crate::time::{Mono, Now, Span};
use crate::words::FailureKind;

/// Unwrapped data keys kept at most, and after a failed call no other one for so long.
const OPEN_MAX: usize = 64;
const PAUSE: Span = Span::from_secs(2);

/// Why there is no data key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingFault {
    #[error("{0}")]
    Key(KmsError),
    #[error("data key {0} is not stored")]
    Missing(String),
    #[error("{0}")]
    Store(#[from] StoreFault),
    #[error("{0}")]
    Seal(#[from] SealFault),
}

#[derive(Debug)]
struct Open {
    key: Arc<DataKey>,
    until: Mono,
}

/// Data keys that were unwrapped, for a bounded time. Apart from the ring, so that a reader whose key
/// is here never waits for a call to a key's service.
#[derive(Debug, Default)]
pub struct Opened(Mutex<BTreeMap<DataKeyId, Open>>);

impl Opened {
    fn map(&self) -> MutexGuard<'_, BTreeMap<DataKeyId, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data key, if it is here and its time is not over.
    #[must_use]
    pub fn get(&self, id: &DataKeyId, now: Mono) -> Option<Arc<DataKey>> {
        self.map().get(id).filter(|open| open.until > now).map(|open| Arc::clone(&open.key))
    }

    fn put(&self, id: DataKeyId, key: Arc<DataKey>, until: Mono) {
        let mut map = self.map();
        if map.len() >= OPEN_MAX
            && let Some(oldest) = map.iter().min_by_key(|(_, open)| open.until).map(|(id, _)| id.clone())
        {
            map.remove(&oldest);
        }
        map.insert(id, Open { key, until });
    }

    /// Wipes what has been here long enough.
    pub fn sweep(&self, now: Mono) {
        self.map().retain(|_, open| open.until > now);
    }

    /// Wipes everything.
    pub fn forget(&self) {
        self.map().clear();
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.map().len()
    }
}

/// What a call acts with.
#[derive(Clone, Copy)]
pub struct With<'a> {
    pub records: &'a dyn Records,
    /// In the order in which they are tried.
    pub keys: &'a [VaultKey],
    pub metrics: &'a Metrics,
    pub now: Now,
}

#[derive(Debug)]
pub struct Ring {
    rows: BTreeMap<DataKeyId, DataKeyRow>,
    opened: Arc<Opened>,
    failed: BTreeMap<DataKeyId, (Mono, KmsError)>,
    make_failed: Option<(Mono, KmsError)>,
    keep: Span,
}

impl Ring {
    /// `keep`: how long an unwrapped data key stays in memory.
    #[must_use]
    pub fn new(rows: Vec<DataKeyRow>, opened: Arc<Opened>, keep: Span) -> Self {
        let rows = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
        Self { rows, opened, failed: BTreeMap::new(), make_failed: None, keep }
    }

    pub fn rows(&self) -> impl Iterator<Item = &DataKeyRow> {
        self.rows.values()
    }

    /// The vault's keys have changed: what failed may work now.
    pub fn forget(&mut self) {
        self.opened.forget();
        self.failed.clear();
        self.make_failed = None;
    }

    /// The data key, from memory or through the first key of the vault that gives it.
    ///
    /// # Errors
    /// What the keys' services said, if none gave it.
    pub async fn open(&mut self, id: &DataKeyId, with: With<'_>) -> Result<Arc<DataKey>, RingFault> {
        self.opened.sweep(with.now.mono);
        self.failed.retain(|_, (until, _)| *until > with.now.mono);
        if let Some(key) = self.opened.get(id, with.now.mono) {
            return Ok(key);
        }
        if let Some((_, error)) = self.failed.get(id) {
            return Err(RingFault::Key(error.clone()));
        }
        let row = self.rows.get(id).ok_or_else(|| RingFault::Missing(id.as_str().to_owned()))?;
        match unwrap(row, with).await {
            Ok(key) => {
                let key = Arc::new(key);
                self.keep(id.clone(), Arc::clone(&key), with.now.mono);
                Ok(key)
            }
            Err(error) => {
                self.failed.insert(id.clone(), (crate::clock::now().mono.plus(PAUSE), error.clone()));
                Err(RingFault::Key(error))
            }
        }
    }

    fn keep(&self, id: DataKeyId, key: Arc<DataKey>, now: Mono) {
        self.opened.put(id, key, now.plus(self.keep));
    }

    /// The data key that seals now: the newest with uses and days left that lies under the operator's
    /// present key, else a new one.
    ///
    /// # Errors
    /// What the keys' services said, or the store.
    pub async fn current(&mut self, with: With<'_>) -> Result<(DataKeyId, Arc<DataKey>), RingFault> {
        let fits = |row: &&DataKeyRow| {
            seals_on(row, with.now.wall) && row.wraps.iter().any(|wrap| with.keys.iter().any(|key| key.name == wrap.name))
        };
        let newest = self.rows.values().filter(fits).max_by_key(|row| row.made_at).map(|row| row.id.clone());
        if let Some(id) = newest {
            match self.open(&id, with).await {
                Ok(key) => return Ok((id, key)),
                // A data key that its services do not give back is no reason not to seal under another.
                Err(RingFault::Key(_)) => {}
                Err(other) => return Err(other),
            }
        }
        self.make(with).await
    }

    async fn make(&mut self, with: With<'_>) -> Result<(DataKeyId, Arc<DataKey>), RingFault> {
        if let Some((until, error)) = &self.make_failed
            && *until > with.now.mono
        {
            return Err(RingFault::Key(error.clone()));
        }
        let (id, key) = new_data_key()?;
        let mut wraps = Vec::new();
        let mut fault = None;
        for vault_key in with.keys {
            match vault_key.wrap(&key, with.now.wall, with.metrics).await {
                Ok(wrap) => wraps.push(wrap),
                Err(error) => {
                    tracing::error!(role = vault_key.role.as_str(), %error, "a new data key could not be wrapped; wrapping it is tried again");
                    fault = fault.or(Some(error));
                }
            }
        }
        if wraps.is_empty() {
            let error = fault.unwrap_or_else(no_key);
            self.make_failed = Some((crate::clock::now().mono.plus(PAUSE), error.clone()));
            return Err(RingFault::Key(error));
        }
        wraps.sort_by_key(|wrap| wrap.role);
        let row = DataKeyRow { id: id.clone(), made_at: with.now.wall, uses: 0, wraps };
        with.records.add_data_key(&row).await?;
        self.rows.insert(id.clone(), row);
        let key = Arc::new(key);
        self.keep(id.clone(), Arc::clone(&key), with.now.mono);
        Ok((id, key))
    }

    /// One more envelope was sealed.
    pub fn used(&mut self, id: &DataKeyId) {
        if let Some(row) = self.rows.get_mut(id) {
            row.uses = row.uses.saturating_add(1);
        }
    }

    /// Wraps one data key anew: under what it lacks, or under everything with `all`.
    ///
    /// # Errors
    /// If it cannot be unwrapped, one of the keys does not take it, or the store; it stays as it was,
    /// or gains what could be made.
    pub async fn rewrap(&mut self, id: &DataKeyId, wanted: &[Wanted], all: bool, with: With<'_>) -> Result<(), RingFault> {
        let key = self.open(id, with).await?;
        let row = self.rows.get(id).ok_or_else(|| RingFault::Missing(id.as_str().to_owned()))?;
        let due: Vec<KeyRole> = match all {
            true => KeyRole::ALL.to_vec(),
            false => super::wraps::missing(row, wanted).iter().map(|w| w.role).collect(),
        };
        let mut fresh = Vec::new();
        let mut fault = None;
        for vault_key in with.keys.iter().filter(|key| due.contains(&key.role)) {
            match vault_key.wrap(&key, with.now.wall, with.metrics).await {
                Ok(wrap) => fresh.push(wrap),
                Err(error) => fault = Some(RingFault::Key(error)),
            }
        }
        let wraps = replaced(row, wanted, fresh);
        if wraps != row.wraps {
            with.records.rewrap(id, &wraps).await?;
            if let Some(row) = self.rows.get_mut(id) {
                row.wraps = wraps;
            }
        }
        fault.map_or(Ok(()), Err)
    }
}

fn no_key() -> KmsError {
    KmsError::new(FailureKind::Misconfigured, false, "no_key", "no key of the vault is configured that this data key lies under")
}

/// Through the first key that gives it. The error told is the operator key's, if it was asked.
async fn unwrap(row: &DataKeyRow, with: With<'_>) -> Result<DataKey, KmsError> {
    let mut fault: Option<KmsError> = None;
    for vault_key in with.keys {
        // A provider may have been renamed since; the key's own reference is what counts.
        for wrap in row.wraps.iter().filter(|wrap| wrap.name.reference == vault_key.name.reference) {
            match vault_key.unwrap(wrap, with.metrics).await {
                Ok(key) => return Ok(key),
                Err(error) if vault_key.role == KeyRole::Operator => fault = Some(error),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
    }
    Err(fault.unwrap_or_else(no_key))
}
