//! outside
//! What the database and the file system say, put into the four faults of the store.
//! Classifies by structured code; it must never put a bound value into a text.

use crate::journal::StoreFault;
use std::path::Path;

const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;
/// A file system that found its own structures damaged: an I/O error to SQLite, damage to us.
const SQLITE_IOERR_CORRUPTFS: i32 = 8458;

pub(super) const SQLITE_INTERRUPT: i32 = 9;

/// The extended result code, if the error is the database's own.
pub(super) fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).and_then(|code| code.parse().ok())
}

pub(super) fn of_sql(error: &sqlx::Error) -> StoreFault {
    let text = error.to_string();
    match code(error) {
        Some(SQLITE_IOERR_CORRUPTFS) => StoreFault::Corrupt(text),
        Some(extended) => match extended & 0xff {
            SQLITE_FULL => StoreFault::Full(text),
            SQLITE_CORRUPT | SQLITE_NOTADB => StoreFault::Corrupt(text),
            _ => StoreFault::Unavailable(text),
        },
        None => StoreFault::Unavailable(text),
    }
}

pub(super) fn of_io(path: &Path, error: &std::io::Error) -> StoreFault {
    let text = format!("{}: {error}", path.display());
    if error.kind() == std::io::ErrorKind::StorageFull || error.kind() == std::io::ErrorKind::QuotaExceeded {
        StoreFault::Full(text)
    } else {
        StoreFault::Unavailable(text)
    }
}
