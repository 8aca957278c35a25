//! outside
//! The keys that sign leases: Ed25519, made at the first start, in a file of mode 0600 beside the
//! store, under no key of a customer or of the vault. The rules of rotation are in `lease`; a private
//! key must never be shown, and none may sign before its file is on disk.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::lease::{Claims, KeyDates, signing, tend};
use crate::time::{Span, Wall};

/// Why there is no key or no signature. Names no secret.
#[derive(Debug, thiserror::Error)]
pub enum LeaseKeyError {
    #[error("{path}: {source}")]
    File { path: String, source: Error },
    #[error("{0}: it holds no usable lease keys; move it away to have new ones made")]
    Damaged(String),
    #[error("a lease key could not be made or used")]
    Crypto,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    dates: KeyDates,
    /// Base64 of PKCS#8.
    private: String,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

struct SigningKey {
    dates: KeyDates,
    private: Zeroizing<Vec<u8>>,
    encoding: EncodingKey,
    /// The public key in base64url.
    x: String,
}

/// All keys that sign, will sign, or whose tokens may still be valid.
pub struct LeaseKeys {
    path: PathBuf,
    keys: Mutex<Vec<SigningKey>>,
}

impl std::fmt::Debug for LeaseKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseKeys").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A public key as the key set shows it (RFC 8037).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Jwk {
    pub kty: &'static str,
    pub crv: &'static str,
    pub x: String,
    pub kid: String,
    pub alg: &'static str,
    #[serde(rename = "use")]
    pub usage: &'static str,
}

impl SigningKey {
    fn of(dates: Option<KeyDates>, private: Zeroizing<Vec<u8>>, made_at: Wall, signs_from: Wall) -> Result<Self, LeaseKeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(&private).map_err(|_| LeaseKeyError::Crypto)?;
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let dates = dates.unwrap_or_else(|| KeyDates { kid: thumbprint(&x), made_at, signs_from });
        Ok(Self { dates, encoding: EncodingKey::from_ed_der(&private), private, x })
    }

    fn make(now: Wall, signs_from: Wall) -> Result<Self, LeaseKeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).map_err(|_| LeaseKeyError::Crypto)?;
        Self::of(None, Zeroizing::new(document.as_ref().to_vec()), now, signs_from)
    }
}

/// RFC 7638: the members in the order of their names.
fn thumbprint(x: &str) -> String {
    let text = format!("{{\"crv\":\"Ed25519\",\"kty\":\"OKP\",\"x\":\"{x}\"}}");
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
}

impl LeaseKeys {
    /// Reads `lease-keys.json` in the folder of the database, or makes it.
    ///
    /// # Errors
    /// If the file cannot be read or written, or holds no keys.
    pub fn beside(database: &Path, max_age: Span, now: Wall) -> Result<Self, LeaseKeyError> {
        let path = database.with_file_name("lease-keys.json");
        let fault = |source| LeaseKeyError::File { path: path.display().to_string(), source };
        let mut keys = Vec::new();
        match std::fs::read_to_string(&path).map(Zeroizing::new) {
            Ok(text) => {
                let damaged = || LeaseKeyError::Damaged(path.display().to_string());
                for row in serde_json::from_str::<Vec<Stored>>(&text).map_err(|_| damaged())? {
                    let private = Zeroizing::new(STANDARD.decode(&row.private).map_err(|_| damaged())?);
                    let dates = row.dates.clone();
                    keys.push(SigningKey::of(Some(dates), private, Wall(0), Wall(0)).map_err(|_| damaged())?);
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
        }
        let keys = Self { path, keys: Mutex::new(keys) };
        keys.tend(max_age, now)?;
        Ok(keys)
    }

    fn keys(&self) -> MutexGuard<'_, Vec<SigningKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next key and drops ended ones as the rules say; blocking. A key that cannot be
    /// written is not used.
    ///
    /// # Errors
    /// If the file cannot be written; the keys stay as they were.
    pub fn tend(&self, max_age: Span, now: Wall) -> Result<(), LeaseKeyError> {
        let dates: Vec<KeyDates> = self.keys().iter().map(|key| key.dates.clone()).collect();
        let todo = tend(&dates, max_age, now);
        if todo.make.is_none() && todo.drop.is_empty() {
            return Ok(());
        }
        let made = todo.make.map(|from| SigningKey::make(now, from)).transpose()?;
        let mut keys = self.keys();
        let kept = keys.iter().filter(|key| !todo.drop.contains(&key.dates.kid)).chain(&made);
        let rows: Vec<Stored> = kept.map(|key| Stored { dates: key.dates.clone(), private: STANDARD.encode(&*key.private) }).collect();
        let text = Zeroizing::new(serde_json::to_string(&rows).map_err(|_| LeaseKeyError::Crypto)?);
        self.write(&text).map_err(|source| LeaseKeyError::File { path: self.path.display().to_string(), source })?;
        keys.retain(|key| !todo.drop.contains(&key.dates.kid));
        keys.extend(made);
        Ok(())
    }

    /// The whole file at once, on disk when it returns.
    fn write(&self, text: &str) -> Result<(), Error> {
        let fresh = self.path.with_extension("json.new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        let folder = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        File::open(folder)?.sync_all()
    }

    /// Signs a lease with the key whose turn it is.
    ///
    /// # Errors
    /// If there is no usable key.
    pub fn sign(&self, claims: &Claims, now: Wall) -> Result<String, LeaseKeyError> {
        let keys = self.keys();
        let dates: Vec<KeyDates> = keys.iter().map(|key| key.dates.clone()).collect();
        let kid = &signing(&dates, now).ok_or(LeaseKeyError::Crypto)?.kid;
        let key = keys.iter().find(|key| key.dates.kid == *kid).ok_or(LeaseKeyError::Crypto)?;
        let header = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &key.encoding).map_err(|_| LeaseKeyError::Crypto)
    }

    /// The public keys, those that do not sign yet and those that sign no more among them.
    #[must_use]
    pub fn public(&self) -> Vec<Jwk> {
        let one =
            |key: &SigningKey| Jwk { kty: "OKP", crv: "Ed25519", x: key.x.clone(), kid: key.dates.kid.clone(), alg: "EdDSA", usage: "sig" };
        self.keys().iter().map(one).collect()
    }
}

/// A name for one token: 128 random bits in hex.
///
/// # Errors
/// If the system has no random bytes.
pub fn token_id() -> Result<String, LeaseKeyError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| LeaseKeyError::Crypto)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Access, Sequence};
    use std::os::unix::fs::PermissionsExt as _;

    const MONTH: Span = Span::from_days(30);

    fn claims() -> Claims {
        Claims {
            iss: "cmek-watchdog".into(),
            sub: "w".into(),
            sequence: Sequence(1),
            access: Access::Open,
            iat: 0,
            exp: 9,
            jti: token_id().unwrap(),
        }
    }

    #[test]
    fn keys_survive_a_restart_rotate_and_are_readable_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("state.db");
        let now = Wall(1_790_000_000_000);
        let first = LeaseKeys::beside(&database, MONTH, now).unwrap();
        let file = folder.path().join("lease-keys.json");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = LeaseKeys::beside(&database, MONTH, now).unwrap();
        assert_eq!(again.public(), first.public());
        let kid = |keys: &LeaseKeys, at: Wall| jsonwebtoken::decode_header(keys.sign(&claims(), at).unwrap()).unwrap().kid.unwrap();
        let old = kid(&again, now);
        again.tend(MONTH, now.plus(MONTH)).unwrap();
        assert_eq!(again.public().len(), 2, "the next key is shown");
        assert_eq!(kid(&again, now.plus(MONTH)), old, "and does not sign yet");
        let later = now.plus(MONTH).plus(Span::from_hours(1));
        assert_ne!(kid(&again, later), old);
        again.tend(MONTH, later.plus(Span::from_hours(25))).unwrap();
        let kids: Vec<String> = LeaseKeys::beside(&database, MONTH, later).unwrap().public().into_iter().map(|key| key.kid).collect();
        assert_eq!(kids, [kid(&again, later)], "the old one is gone from the file too");
    }

    #[test]
    fn a_damaged_or_unwritable_file_is_named_and_no_key_shows_in_debug() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("state.db");
        let file = folder.path().join("lease-keys.json");
        for text in
            ["{}", "[{\"kid\":\"a\",\"made_at\":\"2026-01-01T00:00:00Z\",\"signs_from\":\"2026-01-01T00:00:00Z\",\"private\":\"AAAA\"}]"]
        {
            std::fs::write(&file, text).unwrap();
            let error = LeaseKeys::beside(&database, MONTH, Wall(0)).unwrap_err();
            assert!(matches!(error, LeaseKeyError::Damaged(_)), "{error}");
            assert!(error.to_string().contains("lease-keys.json"), "{error}");
        }
        std::fs::remove_file(&file).unwrap();
        let keys = LeaseKeys::beside(&database, MONTH, Wall(0)).unwrap();
        let private = serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&file).unwrap()).unwrap()[0]["private"].clone();
        assert!(!format!("{keys:?}").contains(private.as_str().unwrap()));
        let missing = LeaseKeys::beside(&folder.path().join("none/state.db"), MONTH, Wall(0)).unwrap_err();
        assert!(matches!(missing, LeaseKeyError::File { .. }), "{missing}");
    }
}
