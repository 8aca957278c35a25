//! outside
//! The files beside the database: the lock of the one owner and the marker that tells a first start
//! from a loss. It must never create or remove the database itself.

use aws_lc_rs::rand::{self, SecureRandom as _};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::bytes::hex;
use super::fault::of_io;
use crate::journal::StoreFault;

/// `state.db` and `lock` give `state.db.lock`.
pub(super) fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Takes the lock for as long as the file lives. The kernel frees it with the process, so a file
/// that a dead process left behind is no obstacle.
pub(super) fn hold_lock(db: &Path) -> Result<File, StoreFault> {
    let path = beside(db, "lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(|error| of_io(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(StoreFault::Unavailable(format!("another process holds {}; one store serves one daemon", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(of_io(&path, &error)),
    }
}

/// Inode of the database, `None` if it is absent or empty.
pub(super) fn inode(db: &Path) -> Result<Option<u64>, StoreFault> {
    match std::fs::metadata(db) {
        Ok(meta) => Ok((meta.len() > 0).then(|| meta.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(of_io(db, &error)),
    }
}

/// Makes the file with narrow permissions; its log files inherit them.
pub(super) fn make_database_file(db: &Path) -> Result<(), StoreFault> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o640)
        .open(db)
        .and_then(|file| file.sync_all())
        .map_err(|error| of_io(db, &error))?;
    sync_dir(db)
}

pub(super) fn read_marker(db: &Path) -> Result<Option<String>, StoreFault> {
    let path = beside(db, "marker");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(of_io(&path, &error)),
    }
}

/// Whole or not at all, and on disk when it returns.
pub(super) fn write_marker(db: &Path, installation: &str) -> Result<(), StoreFault> {
    write_whole(&beside(db, "marker"), &format!("{installation}\n"), 0o644)
}

pub(super) fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), StoreFault> {
    let fresh = beside(path, "new");
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(&fresh)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| of_io(path, &error))?;
    sync_dir(path)
}

fn sync_dir(of: &Path) -> Result<(), StoreFault> {
    let dir = match of.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| of_io(dir, &error))
}

/// Random bytes as hex.
pub(super) fn random_hex(bytes: &mut [u8]) -> Result<String, StoreFault> {
    rand::SystemRandom::new().fill(bytes).map_err(|_| StoreFault::Unavailable("no randomness from the system".to_owned()))?;
    Ok(hex(bytes))
}
