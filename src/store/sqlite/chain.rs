//! outside
//! The hash chain of the journal: each row's hash is an HMAC over the hash before it and over the
//! row's own stored bytes. The secret lies in a file of its own, never in the database, and never
//! appears in an error or in Debug.

use aws_lc_rs::hmac;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroize as _;

use super::bytes::{Framed, hex, sha256_hex, unhex};
use super::fault::of_io;
use super::place;
use crate::journal::StoreFault;

struct ChainKey {
    id: String,
    key: hmac::Key,
}

/// The keys of the chain file, one hex line of 32 bytes or more each. The last line seals; the
/// others still open what they sealed. A new key is one line more.
pub(super) struct ChainKeys {
    current: ChainKey,
    older: Vec<ChainKey>,
}

impl std::fmt::Debug for ChainKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.older.iter().map(|k| &k.id)).entry(&self.current.id).finish()
    }
}

/// One journal row as its stored text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RowText {
    pub sequence: u64,
    pub at: String,
    pub event: String,
    pub key: Option<String>,
    pub workspace: Option<String>,
    pub version: Option<String>,
    pub actor: Option<String>,
    pub event_id: Option<String>,
    pub correlation_id: Option<String>,
    pub detail: String,
}

impl RowText {
    fn sealed_over(&self, previous: &str) -> Framed {
        Framed::new("cmek-journal-1")
            .text(Some(previous))
            .number(self.sequence)
            .text(Some(&self.at))
            .text(Some(&self.event))
            .text(self.key.as_deref())
            .text(self.workspace.as_deref())
            .text(self.version.as_deref())
            .text(self.actor.as_deref())
            .text(self.event_id.as_deref())
            .text(self.correlation_id.as_deref())
            .text(Some(&self.detail))
    }
}

pub(super) fn path(db: &Path) -> PathBuf {
    place::beside(db, "chain-key")
}

impl ChainKeys {
    /// Reads the chain file; `None` if there is none.
    pub(super) fn read(db: &Path) -> Result<Option<Self>, StoreFault> {
        let path = path(db);
        let mut text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(of_io(&path, &error)),
        };
        if std::fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
            tracing::warn!(file = %path.display(), "the chain key may be read by others; set its mode to 0600");
        }
        let keys = Self::parse(&text, &path);
        text.zeroize();
        keys.map(Some)
    }

    /// Makes the chain file with one new key.
    pub(super) fn make(db: &Path) -> Result<Self, StoreFault> {
        let mut secret = [0u8; 32];
        let mut text = place::random_hex(&mut secret)?;
        let path = path(db);
        let made = place::write_whole(&path, &format!("{text}\n"), 0o600).and_then(|()| Self::parse(&text, &path));
        secret.zeroize();
        text.zeroize();
        made
    }

    fn parse(text: &str, path: &Path) -> Result<Self, StoreFault> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut secret = unhex(line).filter(|secret| secret.len() >= 32).ok_or_else(|| {
                let line = number.saturating_add(1);
                StoreFault::Unavailable(format!("{}: line {line} is not a key of 32 bytes in hex", path.display()))
            })?;
            let id = sha256_hex(&secret).chars().take(8).collect();
            keys.push(ChainKey { id, key: hmac::Key::new(hmac::HMAC_SHA256, &secret) });
            secret.zeroize();
        }
        let current = keys.pop().ok_or_else(|| StoreFault::Unavailable(format!("{} holds no key", path.display())))?;
        Ok(Self { current, older: keys })
    }

    /// Whether the key that a hash names is in the file.
    pub(super) fn knows(&self, hash: &str) -> bool {
        hash.split_once(':').is_some_and(|(id, _)| self.find(id).is_some())
    }

    fn find(&self, id: &str) -> Option<&ChainKey> {
        std::iter::once(&self.current).chain(&self.older).find(|key| key.id == id)
    }

    fn mac(&self, over: &Framed) -> String {
        format!("{}:{}", self.current.id, hex(hmac::sign(&self.current.key, over.bytes()).as_ref()))
    }

    fn check(&self, over: &Framed, mac: &str) -> Result<(), String> {
        let (id, tag) = mac.split_once(':').ok_or_else(|| "its hash has no key id".to_owned())?;
        let key = self.find(id).ok_or_else(|| {
            let shown: String = id.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
            format!("its hash names chain key `{shown}`, which the key file does not hold")
        })?;
        let tag = unhex(tag).ok_or_else(|| "its hash is not hex".to_owned())?;
        hmac::verify(&key.key, over.bytes(), &tag).map_err(|_| "its content does not match its hash".to_owned())
    }

    /// The hash of a row that follows `previous`.
    pub(super) fn seal(&self, previous: &str, row: &RowText) -> String {
        self.mac(&row.sealed_over(previous))
    }

    /// # Errors
    /// If the row is not what was sealed after `previous`; says why.
    pub(super) fn check_row(&self, previous: &str, row: &RowText, hash: &str) -> Result<(), String> {
        self.check(&row.sealed_over(previous), hash)
    }

    pub(super) fn seal_anchor(&self, sequence: u64, hash: &str, at: &str) -> String {
        self.mac(&anchor(sequence, hash, at))
    }

    pub(super) fn check_anchor(&self, sequence: u64, hash: &str, at: &str, mac: &str) -> Result<(), String> {
        self.check(&anchor(sequence, hash, at), mac)
    }
}

fn anchor(sequence: u64, hash: &str, at: &str) -> Framed {
    Framed::new("cmek-anchor-1").number(sequence).text(Some(hash)).text(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<ChainKeys, StoreFault> {
        ChainKeys::parse(text, Path::new("k"))
    }

    #[test]
    fn rows_sealed_by_an_older_key_still_open_and_the_last_line_seals() {
        let (a, b) = ("11".repeat(32), "22".repeat(32));
        let row = RowText { sequence: 1, ..RowText::default() };
        let old = keys(&a).unwrap().seal("g", &row);
        let both = keys(&format!("# first\n{a}\n\n{b}\n")).unwrap();
        assert_eq!(both.check_row("g", &row, &old), Ok(()));
        let new = both.seal("g", &row);
        assert_ne!(old.split_once(':').unwrap().0, new.split_once(':').unwrap().0);
        assert!(keys(&a).unwrap().check_row("g", &row, &new).unwrap_err().contains("does not hold"));
        assert!(both.check_row("h", &row, &new).is_err() && both.check_row("g", &row, "x").is_err());
        assert!(both.check_row("g", &row, &format!("{}:zz", both.current.id)).is_err());
    }

    #[test]
    fn a_bad_key_line_is_named_and_not_shown() {
        let error = keys(&format!("{}\nabcd\n", "33".repeat(32))).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("abcd"), "{error}");
        assert!(keys("# nothing\n").unwrap_err().to_string().contains("holds no key"));
        let shown = format!("{:?}", keys(&"44".repeat(32)).unwrap());
        assert!(!shown.contains("4444"), "{shown}");
    }
}
