//! outside
//! The rows of the key file and what their states mean for a call. Holds key material: nothing here
//! may show it, and a destroyed version keeps none.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use zeroize::Zeroizing;

use crate::key::KeyVersion;
use crate::kms::KmsError;
use crate::time::Wall;
use crate::words::{FailureKind, Leg};

/// The layout that this build writes and reads.
pub(super) const FORMAT: u32 = 1;

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Book {
    pub format: u32,
    pub keys: BTreeMap<String, KeyRow>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRow {
    /// Tells this key from another one made under the same name.
    pub uid: Uid,
    pub standing: Standing,
    pub created_at: Wall,
    pub rotated_at: Option<Wall>,
    pub current: u32,
    /// Legs that the key's owner denies us; `unwrap` stands for every version.
    pub denied: BTreeSet<Leg>,
    pub versions: BTreeMap<u32, VersionRow>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VersionRow {
    pub state: VersionState,
    pub created_at: Wall,
    /// Absent once destroyed.
    pub material: Option<Material>,
}

/// State of a key as stored; a scheduled time that has passed counts as destroyed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    Enabled,
    Disabled,
    PendingDeletion {
        at: Wall,
        /// What cancelling gives back.
        was_disabled: bool,
    },
    Destroyed {
        at: Wall,
    },
}

/// State of a key as shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StandingWord {
    Enabled,
    Disabled,
    PendingDeletion,
    Destroyed,
}

/// State of one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    Enabled,
    Disabled,
    Destroyed,
}

impl std::fmt::Display for StandingWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::PendingDeletion => "pending_deletion",
            Self::Destroyed => "destroyed",
        })
    }
}

/// 256 bits of key, erased from memory when dropped.
#[derive(Clone)]
pub(super) struct Material(Zeroizing<[u8; 32]>);

impl Material {
    /// `None` if the system gives no random bytes.
    pub fn draw() -> Option<Self> {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        aws_lc_rs::rand::fill(bytes.as_mut()).ok()?;
        Some(Self(bytes))
    }
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Material(..)")
    }
}

impl Serialize for Material {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64_STANDARD.encode(self.0.as_ref())))
    }
}

impl<'de> Deserialize<'de> for Material {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        decode(deserializer).map(|bytes| Self(Zeroizing::new(bytes)))
    }
}

/// Random name of a key, never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Uid([u8; 16]);

impl Uid {
    /// `None` if the system gives no random bytes.
    pub fn draw() -> Option<Self> {
        let mut bytes = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl std::ops::Deref for Uid {
    type Target = [u8; 16];
    fn deref(&self) -> &[u8; 16] {
        &self.0
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        decode(deserializer).map(Self)
    }
}

/// Reads base64 of exactly `N` bytes; the error never quotes the text.
fn decode<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    let bytes = BASE64_STANDARD.decode(text.as_bytes()).map(Zeroizing::new);
    bytes
        .ok()
        .and_then(|bytes| <[u8; N]>::try_from(bytes.as_slice()).ok())
        .ok_or_else(|| serde::de::Error::custom("not base64 of the expected length"))
}

/// The name under which a version is known outside.
pub(super) fn version_name(number: u32) -> KeyVersion {
    KeyVersion::new(&number.to_string())
}

impl KeyRow {
    /// The state at a time.
    pub fn standing_at(&self, now: Wall) -> Standing {
        match self.standing {
            Standing::PendingDeletion { at, .. } if at <= now => Standing::Destroyed { at },
            Standing::Enabled | Standing::Disabled | Standing::PendingDeletion { .. } | Standing::Destroyed { .. } => self.standing,
        }
    }
    pub fn word(&self, now: Wall) -> StandingWord {
        match self.standing_at(now) {
            Standing::Enabled => StandingWord::Enabled,
            Standing::Disabled => StandingWord::Disabled,
            Standing::PendingDeletion { .. } => StandingWord::PendingDeletion,
            Standing::Destroyed { .. } => StandingWord::Destroyed,
        }
    }
    /// When the key goes or went.
    pub fn deletion_at(&self) -> Option<Wall> {
        match self.standing {
            Standing::PendingDeletion { at, .. } | Standing::Destroyed { at } => Some(at),
            Standing::Enabled | Standing::Disabled => None,
        }
    }
    /// What no act of ours could have written: no current version, or a live version without material.
    pub fn damage(&self, name: &str) -> Option<KmsError> {
        let torn = self.versions.iter().find(|(_, v)| v.material.is_none() && v.state != VersionState::Destroyed);
        let number = if self.versions.contains_key(&self.current) { *torn?.0 } else { self.current };
        Some(broken_row(name, number))
    }
    /// What the state of the key as a whole forbids.
    pub fn standing_fault(&self, name: &str, now: Wall) -> Option<KmsError> {
        let (kind, code, text) = match self.standing_at(now) {
            Standing::Enabled => return None,
            Standing::Disabled => (FailureKind::Disabled, "KeyDisabled", "is disabled".to_owned()),
            Standing::PendingDeletion { at, .. } => {
                (FailureKind::PendingDeletion, "KeyPendingDeletion", format!("is scheduled for deletion at {at}"))
            }
            Standing::Destroyed { at } => (FailureKind::Destroyed, "KeyDestroyed", format!("was destroyed at {at}")),
        };
        Some(KmsError::new(kind, true, code, &format!("key {name} {text}")))
    }
    /// What the state of one version forbids.
    pub fn version_fault(&self, name: &str, number: u32) -> Option<KmsError> {
        let (kind, code, text) = match self.versions.get(&number).map(|v| v.state) {
            Some(VersionState::Enabled) => return None,
            Some(VersionState::Disabled) => (FailureKind::Disabled, "VersionDisabled", "is disabled"),
            Some(VersionState::Destroyed) => (FailureKind::Destroyed, "VersionDestroyed", "was destroyed"),
            None => return Some(broken_row(name, number)),
        };
        Some(KmsError::new(kind, true, code, &format!("version {number} of key {name} {text}")))
    }
    /// What describe states and wrap meets: the key's state, then that of its current version.
    pub fn fault(&self, name: &str, now: Wall) -> Option<KmsError> {
        self.standing_fault(name, now).or_else(|| self.version_fault(name, self.current))
    }
    /// # Errors
    /// If an enabled version has no material, which only a damaged file can show.
    pub fn material(&self, name: &str, number: u32) -> Result<&Material, KmsError> {
        self.versions.get(&number).and_then(|v| v.material.as_ref()).ok_or_else(|| broken_row(name, number))
    }
    /// Destroys every version's material.
    pub fn erase(&mut self, at: Wall) {
        self.standing = Standing::Destroyed { at };
        for version in self.versions.values_mut() {
            version.erase();
        }
    }
}

impl VersionRow {
    pub fn erase(&mut self) {
        self.state = VersionState::Destroyed;
        self.material = None;
    }
}

/// A damaged row is our fault and says nothing about the key.
fn broken_row(name: &str, number: u32) -> KmsError {
    KmsError::new(FailureKind::ProviderFault, false, "FileDamaged", &format!("version {number} of key {name} has no material in the file"))
}
