//! outside
//! Locks that could not be committed in time, in a preallocated file beside the store, so that
//! neither a full disk nor a crash loses a lock that services already see.
//! It must never report an order as kept before it is on disk, and never read a torn one as whole.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::journal::Order;

/// Bytes of the file, all of them allocated when it is made.
pub const SPOOL_BYTES: u64 = 1 << 20;

/// Length and checksum before each record, both 32 bits little endian.
const FRAME: usize = 8;

/// The open spool. Plain blocking calls; one append is one write and one sync.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    file: File,
    /// End of the last whole record.
    used: u64,
    /// Checksum of the last whole record. Each record's checksum goes on from it, so that what an
    /// earlier use left behind the end never reads as a continuation.
    seal: u32,
}

impl Spool {
    /// Opens `locks.spool` in the folder of the database.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn beside(database: &Path) -> Result<Self> {
        Self::open(&database.with_file_name("locks.spool"))
    }

    /// Opens the file, or makes it with all its bytes written.
    ///
    /// # Errors
    /// If the file cannot be opened, filled (`StorageFull`) or read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        if length < SPOOL_BYTES {
            // Zeros rather than a mere reservation: not every file system can reserve.
            let missing = usize::try_from(SPOOL_BYTES.saturating_sub(length)).unwrap_or(0);
            file.write_all_at(&vec![0; missing], length)?;
            file.sync_all()?;
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            File::open(dir)?.sync_all()?;
        }
        let mut spool = Self { path: path.to_owned(), file, used: 0, seal: 0 };
        spool.scan(|_| Ok(()))?;
        Ok(spool)
    }

    /// Keeps orders as one record: all of them or none after a crash.
    ///
    /// # Errors
    /// `StorageFull` if the record does not fit (nothing is written then), or on I/O; after an I/O
    /// error the record counts as not kept.
    pub fn append(&mut self, orders: &[Order]) -> Result<()> {
        if orders.is_empty() {
            return Ok(());
        }
        let body = serde_json::to_vec(orders)?;
        let (record, seal) = framed(&body, self.seal)?;
        let end = self.used.saturating_add(u64::try_from(record.len()).unwrap_or(u64::MAX));
        if end > SPOOL_BYTES {
            let free = SPOOL_BYTES.saturating_sub(self.used);
            let text = format!("{} is full: {} bytes are needed, {free} are left", self.path.display(), record.len());
            return Err(Error::new(ErrorKind::StorageFull, text));
        }
        self.file.write_all_at(&record, self.used)?;
        self.file.sync_data()?;
        (self.used, self.seal) = (end, seal);
        Ok(())
    }

    /// The orders kept since the last clear, oldest first. A torn record at the end is not among them.
    ///
    /// # Errors
    /// On I/O, or `InvalidData` if a whole record is not of a form that this program knows: it may
    /// hold a lock, so it is not passed over.
    pub fn read(&mut self) -> Result<Vec<Order>> {
        let mut orders = Vec::new();
        let path = self.path.clone();
        self.scan(|body| {
            let more: Vec<Order> = serde_json::from_slice(body).map_err(|error| {
                let text = format!("{}: a whole record is unreadable at column {}", path.display(), error.column());
                Error::new(ErrorKind::InvalidData, text)
            })?;
            orders.extend(more);
            Ok(())
        })?;
        Ok(orders)
    }

    /// Forgets all orders; call it once they are in the store.
    ///
    /// # Errors
    /// On I/O; the orders may then still be there.
    pub fn clear(&mut self) -> Result<()> {
        if self.used == 0 {
            return Ok(());
        }
        let used = usize::try_from(self.used).unwrap_or(0);
        self.file.write_all_at(&vec![0; used], 0)?;
        self.file.sync_data()?;
        (self.used, self.seal) = (0, 0);
        Ok(())
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Walks the whole records from the start and finds their end.
    fn scan(&mut self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(SPOOL_BYTES).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, 0)?;
        let (mut used, mut seal) = (0usize, 0u32);
        while let Some((body, next_seal)) = next(bytes.get(used..).unwrap_or(&[]), seal) {
            each(body)?;
            used = used.saturating_add(FRAME).saturating_add(body.len());
            seal = next_seal;
        }
        (self.used, self.seal) = (u64::try_from(used).unwrap_or(0), seal);
        Ok(())
    }
}

fn framed(body: &[u8], seal: u32) -> Result<(Vec<u8>, u32)> {
    let length = u32::try_from(body.len()).map_err(|_| Error::new(ErrorKind::StorageFull, "a record of more than 4 GiB"))?;
    let length = length.to_le_bytes();
    let seal = crc32c::crc32c_append(crc32c::crc32c_append(seal, &length), body);
    let mut record = Vec::with_capacity(body.len().saturating_add(FRAME));
    record.extend_from_slice(&length);
    record.extend_from_slice(&seal.to_le_bytes());
    record.extend_from_slice(body);
    Ok((record, seal))
}

/// The record at the start of `bytes`, if it is whole and follows `seal`.
fn next(bytes: &[u8], seal: u32) -> Option<(&[u8], u32)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?).filter(|body| !body.is_empty())?;
    let seal = crc32c::crc32c_append(crc32c::crc32c_append(seal, length), body);
    (seal == u32::from_le_bytes(*expected)).then_some((body, seal))
}

#[cfg(test)]
mod tests;
