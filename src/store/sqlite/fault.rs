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
    of_code(code(error), error.to_string())
}

fn of_code(code: Option<i32>, text: String) -> StoreFault {
    match code {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn each_code_is_its_fault_whatever_its_extension() {
        let t = String::new;
        for (code, fault) in [
            (13, StoreFault::Full(t())),
            (11, StoreFault::Corrupt(t())),
            // SQLITE_CORRUPT_INDEX
            (779, StoreFault::Corrupt(t())),
            (26, StoreFault::Corrupt(t())),
            (8458, StoreFault::Corrupt(t())),
            // SQLITE_IOERR_FSYNC, SQLITE_READONLY, SQLITE_BUSY, SQLITE_CANTOPEN, a constraint
            (1034, StoreFault::Unavailable(t())),
            (8, StoreFault::Unavailable(t())),
            (5, StoreFault::Unavailable(t())),
            (14, StoreFault::Unavailable(t())),
            (19, StoreFault::Unavailable(t())),
        ] {
            assert_eq!(of_code(Some(code), t()), fault, "{code}");
        }
        assert!(matches!(of_sql(&sqlx::Error::PoolTimedOut), StoreFault::Unavailable(_)));
    }

    #[test]
    fn a_file_error_names_the_file_and_a_full_disk_is_full() {
        let of = |kind: ErrorKind| of_io(Path::new("state.db.lock"), &Error::from(kind));
        assert!(matches!(of(ErrorKind::StorageFull), StoreFault::Full(text) if text.starts_with("state.db.lock: ")));
        assert!(matches!(of(ErrorKind::QuotaExceeded), StoreFault::Full(_)));
        assert!(matches!(of(ErrorKind::PermissionDenied), StoreFault::Unavailable(text) if text.starts_with("state.db.lock: ")));
    }
}
