//! inside
//! Data keys as they are stored: wrapped by the operator's key and, if there is one, by the recovery
//! key. Decides which must be wrapped anew after a rotation or a change of keys, in which order their
//! wrapped forms are tried, and when a fault of the operator's key is told. It never holds a data key.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::key::{KeyVersion, ProviderId};
use crate::kms::Wrapped;
use crate::time::Wall;
use crate::words::FailureKind;

/// Id of a data key: `dk_` and 32 hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataKeyId(pub Arc<str>);

impl DataKeyId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which of the vault's two keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    Operator,
    Recovery,
}

impl KeyRole {
    pub const ALL: &'static [Self] = &[Self::Operator, Self::Recovery];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Recovery => "recovery",
        }
    }
}

/// A key of the vault by provider and key reference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct VaultKeyName {
    pub provider: ProviderId,
    pub reference: Arc<str>,
}

/// One wrapped form of a data key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wrap {
    pub role: KeyRole,
    pub name: VaultKeyName,
    pub wrapped: Wrapped,
    pub wrapped_at: Wall,
}

/// A data key as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataKeyRow {
    pub id: DataKeyId,
    pub made_at: Wall,
    /// Envelopes that it has sealed.
    pub uses: u64,
    pub wraps: Vec<Wrap>,
}

/// Under what each data key should lie now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub role: KeyRole,
    pub name: VaultKeyName,
    /// The version that the key wraps with now, where it says so.
    pub version: Option<KeyVersion>,
}

impl Wanted {
    fn met_by(&self, wrap: &Wrap) -> bool {
        let version = match (&self.version, &wrap.wrapped.version) {
            (Some(now), Some(then)) => now == then,
            (Some(_) | None, Some(_) | None) => true,
        };
        wrap.role == self.role && wrap.name == self.name && version
    }
}

/// Whether a data key lies under exactly what it should.
#[must_use]
pub fn settled(row: &DataKeyRow, wanted: &[Wanted]) -> bool {
    row.wraps.len() == wanted.len() && missing(row, wanted).is_empty()
}

/// Keys under which a data key must be wrapped anew.
#[must_use]
pub fn missing<'w>(row: &DataKeyRow, wanted: &'w [Wanted]) -> Vec<&'w Wanted> {
    wanted.iter().filter(|w| !row.wraps.iter().any(|wrap| w.met_by(wrap))).collect()
}

/// The data keys to wrap anew, oldest first, `most` at once. With `all`, every one.
#[must_use]
pub fn rewrap_plan(rows: &[DataKeyRow], wanted: &[Wanted], all: bool, most: usize) -> Vec<DataKeyId> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut due: Vec<&DataKeyRow> = rows.iter().filter(|row| all || !settled(row, wanted)).collect();
    due.sort_by(|a, b| (a.made_at, &a.id).cmp(&(b.made_at, &b.id)));
    due.into_iter().take(most).map(|row| row.id.clone()).collect()
}

/// The wraps of a data key after `fresh` ones were made. If all that is wanted is there, only that
/// stays; if something could not be wrapped, what opens today must still open tomorrow.
#[must_use]
pub fn replaced(row: &DataKeyRow, wanted: &[Wanted], fresh: Vec<Wrap>) -> Vec<Wrap> {
    let met = |wrap: &Wrap| wanted.iter().any(|w| w.met_by(wrap));
    let mut all = fresh;
    for old in &row.wraps {
        if !(met(old) && all.iter().any(|new| new.role == old.role && met(new))) {
            all.push(old.clone());
        }
    }
    if wanted.iter().all(|w| all.iter().any(|wrap| w.met_by(wrap))) {
        all.retain(met);
    }
    all.sort_by(|a, b| (a.role, &a.name, a.wrapped_at).cmp(&(b.role, &b.name, b.wrapped_at)));
    all
}

/// What one look at a key of the vault gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    Good,
    Bad(FailureKind),
}

/// What is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Failing,
    Recovered,
}

/// Looks of doubt in a row (throttled, timed out, unreachable) that are told like a refusal.
pub const DOUBTS: u32 = 5;

/// When the fault of a key of the vault is told: at the first refused look, and after some of doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeyWatch {
    failing: bool,
    doubts: u32,
}

impl KeyWatch {
    #[must_use]
    pub const fn failing(self) -> bool {
        self.failing
    }

    pub fn look(&mut self, look: &Look) -> Option<Told> {
        let bad = match look {
            Look::Good => {
                self.doubts = 0;
                return std::mem::take(&mut self.failing).then_some(Told::Recovered);
            }
            Look::Bad(kind) if refuses(*kind) => true,
            Look::Bad(_) => {
                self.doubts = self.doubts.saturating_add(1);
                self.doubts >= DOUBTS
            }
        };
        let told = bad && !self.failing;
        self.failing |= bad;
        told.then_some(Told::Failing)
    }
}

/// Whether a failure is an answer about the key or about us, not mere silence.
const fn refuses(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Disabled
        | FailureKind::PendingDeletion
        | FailureKind::Destroyed
        | FailureKind::Expired
        | FailureKind::AccessDenied
        | FailureKind::NetworkBlocked
        | FailureKind::KeyStoreUnavailable
        | FailureKind::Credentials
        | FailureKind::Misconfigured
        | FailureKind::Corrupt => true,
        FailureKind::Throttled
        | FailureKind::ProviderFault
        | FailureKind::Timeout
        | FailureKind::Unreachable
        | FailureKind::Unclassified => false,
    }
}
