//! outside
//! What the owner of a local key does to it: create, rotate, disable, schedule deletion, deny.
//! Each act is one locked change of the file and gives back the key as it then stands; none shows material.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

use super::disk::{LocalKmsError, LocalKmsFile};
use super::rows::{Book, KeyRow, Material, Standing, StandingWord, Uid, VersionRow, VersionState, version_name};
use crate::key::KeyVersion;
use crate::time::Wall;
use crate::words::Leg;

/// A key as it stands, without its material.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct KeyListing {
    pub key: String,
    pub state: StandingWord,
    pub created_at: Wall,
    pub rotated_at: Option<Wall>,
    /// When the key goes, or went.
    pub deletion_at: Option<Wall>,
    pub current_version: KeyVersion,
    pub denied: Vec<Leg>,
    pub versions: Vec<VersionListing>,
}

/// One version as it stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VersionListing {
    pub version: KeyVersion,
    pub state: VersionState,
    pub created_at: Wall,
}

impl KeyListing {
    fn of(key: &str, row: &KeyRow, now: Wall) -> Self {
        let gone = row.word(now) == StandingWord::Destroyed;
        let versions = row.versions.iter().map(|(number, version)| VersionListing {
            version: version_name(*number),
            state: if gone { VersionState::Destroyed } else { version.state },
            created_at: version.created_at,
        });
        Self {
            key: key.to_owned(),
            state: row.word(now),
            created_at: row.created_at,
            rotated_at: row.rotated_at,
            deletion_at: row.deletion_at(),
            current_version: version_name(row.current),
            denied: row.denied.iter().copied().collect(),
            versions: versions.collect(),
        }
    }
}

impl LocalKmsFile {
    /// Every key by name.
    ///
    /// # Errors
    /// If the file is missing, unreadable or damaged. The other acts fail for the same reasons, if
    /// the file cannot be written, if there is no such key, and for the reason each names.
    pub fn list(&self, now: Wall) -> Result<Vec<KeyListing>, LocalKmsError> {
        Ok(self.read()?.keys.iter().map(|(key, row)| KeyListing::of(key, row, now)).collect())
    }

    /// A new enabled key with version 1; creates the file if there is none.
    ///
    /// # Errors
    /// If the name is malformed or was ever used: names are not given twice.
    pub fn create(&self, key: &str, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.change(true, now, |book| {
            if book.keys.contains_key(key) {
                return Err(LocalKmsError::KeyExists { path: self.path().to_owned(), key: key.to_owned() });
            }
            self.add(book, key, now)
        })
    }

    pub(super) fn add(&self, book: &mut Book, key: &str, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.check_name(key)?;
        let row = KeyRow {
            uid: Uid::draw().ok_or_else(|| self.no_random(key))?,
            standing: Standing::Enabled,
            created_at: now,
            rotated_at: None,
            current: 1,
            denied: BTreeSet::new(),
            versions: BTreeMap::from([(1, self.new_version(key, now)?)]),
        };
        let listing = KeyListing::of(key, &row, now);
        book.keys.insert(key.to_owned(), row);
        Ok(listing)
    }

    /// A new current version; older ones still open what they wrapped.
    ///
    /// # Errors
    /// Unless the key is enabled.
    pub fn rotate(&self, key: &str, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| {
            if row.standing != Standing::Enabled {
                return Err(self.standing(key, row, "rotate", now));
            }
            // Rows are never removed, so the number after the highest was never used.
            let number = row.versions.keys().next_back().copied().unwrap_or(0).saturating_add(1);
            row.versions.insert(number, self.new_version(key, now)?);
            row.current = number;
            row.rotated_at = Some(now);
            Ok(())
        })
    }

    /// # Errors
    /// If the key is scheduled for deletion or destroyed.
    pub fn disable(&self, key: &str, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.switch(key, now, "disable", Standing::Disabled)
    }

    /// # Errors
    /// If the key is scheduled for deletion (cancel that first) or destroyed.
    pub fn enable(&self, key: &str, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.switch(key, now, "enable", Standing::Enabled)
    }

    /// The key refuses everything from now on and loses its material at `at`; a second call moves the time.
    ///
    /// # Errors
    /// If the key is destroyed.
    pub fn schedule_deletion(&self, key: &str, at: Wall, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| {
            let was_disabled = match row.standing {
                Standing::Enabled => false,
                Standing::Disabled => true,
                Standing::PendingDeletion { was_disabled, .. } => was_disabled,
                Standing::Destroyed { .. } => return Err(self.standing(key, row, "schedule deletion of", now)),
            };
            row.standing = Standing::PendingDeletion { at, was_disabled };
            Ok(())
        })
    }

    /// The key is again what it was before its deletion was scheduled.
    ///
    /// # Errors
    /// If no deletion is pending, or its time has passed.
    pub fn cancel_deletion(&self, key: &str, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| match row.standing {
            Standing::PendingDeletion { was_disabled, .. } => {
                row.standing = if was_disabled { Standing::Disabled } else { Standing::Enabled };
                Ok(())
            }
            Standing::Enabled | Standing::Disabled | Standing::Destroyed { .. } => {
                Err(self.standing(key, row, "cancel the deletion of", now))
            }
        })
    }

    /// Erases the material of every version at once; nothing brings it back.
    ///
    /// # Errors
    /// If the file cannot be changed or has no such key; a destroyed key stays as it is.
    pub fn destroy(&self, key: &str, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| {
            if row.word(now) != StandingWord::Destroyed {
                row.erase(now);
            }
            Ok(())
        })
    }

    /// Denies legs: `unwrap` and `unwrap_version` are one permission, as with any provider.
    ///
    /// # Errors
    /// If the file cannot be changed or has no such key.
    pub fn deny(&self, key: &str, legs: &[Leg], now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| {
            row.denied.extend(legs.iter().copied().map(permission));
            Ok(())
        })
    }

    /// Allows legs again.
    ///
    /// # Errors
    /// If the file cannot be changed or has no such key.
    pub fn allow(&self, key: &str, legs: &[Leg], now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| {
            row.denied.retain(|denied| !legs.iter().any(|leg| permission(*leg) == *denied));
            Ok(())
        })
    }

    /// # Errors
    /// If there is no such version or it was destroyed.
    pub fn disable_version(&self, key: &str, version: &KeyVersion, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.switch_version(key, version, now, "disable", VersionState::Disabled)
    }

    /// # Errors
    /// If there is no such version or it was destroyed.
    pub fn enable_version(&self, key: &str, version: &KeyVersion, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.switch_version(key, version, now, "enable", VersionState::Enabled)
    }

    /// Erases the material of one version; nothing brings it back.
    ///
    /// # Errors
    /// If there is no such version.
    pub fn destroy_version(&self, key: &str, version: &KeyVersion, now: Wall) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| {
            self.version(key, row, version)?.erase();
            Ok(())
        })
    }

    fn switch(&self, key: &str, now: Wall, act: &'static str, to: Standing) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| match row.standing {
            Standing::Enabled | Standing::Disabled => {
                row.standing = to;
                Ok(())
            }
            Standing::PendingDeletion { .. } | Standing::Destroyed { .. } => Err(self.standing(key, row, act, now)),
        })
    }

    fn switch_version(
        &self,
        key: &str,
        version: &KeyVersion,
        now: Wall,
        act: &'static str,
        to: VersionState,
    ) -> Result<KeyListing, LocalKmsError> {
        self.alter(key, now, |row| {
            let found = self.version(key, row, version)?;
            if found.state == VersionState::Destroyed {
                return Err(LocalKmsError::VersionDestroyed {
                    path: self.path().to_owned(),
                    key: key.to_owned(),
                    act,
                    version: version.clone(),
                });
            }
            found.state = to;
            Ok(())
        })
    }

    fn alter(&self, key: &str, now: Wall, act: impl FnOnce(&mut KeyRow) -> Result<(), LocalKmsError>) -> Result<KeyListing, LocalKmsError> {
        self.change(false, now, |book| {
            let row =
                book.keys.get_mut(key).ok_or_else(|| LocalKmsError::UnknownKey { path: self.path().to_owned(), key: super::short(key) })?;
            act(row)?;
            Ok(KeyListing::of(key, row, now))
        })
    }

    fn version<'r>(&self, key: &str, row: &'r mut KeyRow, version: &KeyVersion) -> Result<&'r mut VersionRow, LocalKmsError> {
        let unknown = || LocalKmsError::UnknownVersion { path: self.path().to_owned(), key: key.to_owned(), version: version.clone() };
        // Only the one spelling that we give out: `01` is no version.
        let number = version.as_str().parse::<u32>().ok().filter(|n| version_name(*n) == *version).ok_or_else(unknown)?;
        row.versions.get_mut(&number).ok_or_else(unknown)
    }

    fn standing(&self, key: &str, row: &KeyRow, act: &'static str, now: Wall) -> LocalKmsError {
        LocalKmsError::Standing { path: self.path().to_owned(), key: key.to_owned(), act, standing: row.word(now) }
    }

    fn new_version(&self, key: &str, now: Wall) -> Result<VersionRow, LocalKmsError> {
        let material = Material::draw().ok_or_else(|| self.no_random(key))?;
        Ok(VersionRow { state: VersionState::Enabled, created_at: now, material: Some(material) })
    }

    fn no_random(&self, key: &str) -> LocalKmsError {
        LocalKmsError::Random { path: self.path().to_owned(), key: key.to_owned() }
    }
}

/// The permission behind a leg.
const fn permission(leg: Leg) -> Leg {
    match leg {
        Leg::Unwrap | Leg::UnwrapVersion => Leg::Unwrap,
        Leg::Wrap => Leg::Wrap,
        Leg::Describe => Leg::Describe,
    }
}
