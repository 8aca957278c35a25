//! outside
//! The embedded store: SQLite, one writer, one transaction a turn, on disk when a commit returns.
//! It keeps and hands back; it must never decide what a row means, never report a write that did not
//! happen, and never take a lost database for a first start.

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

mod bytes;
mod chain;
mod fault;
mod place;
mod prepare;
mod read;
mod schema;
mod upkeep;
mod vault;
mod verify;
mod write;

use crate::clock;
use crate::journal::{Commit, Committed, JournalQuery, Restored, Store, StoreFault, StoredRecord};
use crate::kms::BoxFuture;
use crate::time::Span;
use chain::ChainKeys;
use fault::of_sql;
pub use verify::{Head, Verified, VerifyError, canaries, export, verify};

/// Name in `Restored::meta` under which a store that was made or taken over after a loss says since
/// when (RFC 3339). It stays until a commit deletes it, so that a restart does not forget the loss.
pub const LOST_AT: &str = "store_lost_at";

/// How to open.
#[derive(Clone, Debug)]
pub struct Options {
    /// Go on after a loss: make a new database, or take over the one that is there, and say so in
    /// `Restored::meta` under [`LOST_AT`].
    pub accept_loss: bool,
    /// Time that the check for damaged pages may take.
    pub check_for: Span,
    /// Most bytes of the database file; a commit beyond them is `StoreFault::Full`.
    pub max_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { accept_loss: false, check_for: Span::from_secs(2), max_bytes: None }
    }
}

/// What was found.
#[derive(Debug)]
pub enum Opened {
    Ready {
        store: Arc<SqliteStore>,
        start: Start,
    },
    /// The marker says that there was a database, and there is none. Nothing was made.
    Lost {
        installation: String,
    },
    /// The database is not the one that the marker names. Nothing was changed.
    Replaced {
        expected: String,
        found: String,
    },
}

/// What kind of start it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    First,
    Known,
    /// With `accept_loss`: a new database after a loss, or another one than the marker named.
    AfterLoss,
}

/// The open store. Holds the lock file until it is dropped.
pub struct SqliteStore {
    path: PathBuf,
    inode: Option<u64>,
    max_bytes: Option<u64>,
    keys: ChainKeys,
    chain_key_lost: bool,
    run: String,
    /// Taken out while it works: a commit that fails or is dropped half-way leaves no connection
    /// behind, and with the connection goes its open transaction.
    writer: Mutex<Option<SqliteConnection>>,
    readers: SqlitePool,
    unreadable: AtomicU64,
    _lock: File,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens or makes the database, checks it, migrates it, and takes the lock file for life.
    ///
    /// # Errors
    /// `Unavailable` if another process holds the lock file (which the text names), if the database
    /// is a newer program's, or on I/O; `Corrupt` for damaged pages; `Full` without room.
    pub async fn open(path: &Path, options: Options) -> Result<Opened, StoreFault> {
        let lock = place::hold_lock(path)?;
        let marker = place::read_marker(path)?;
        let mut found = None;
        if place::inode(path)?.is_some() {
            let mut conn = connect(path, options.max_bytes).await?;
            if schema::present(&mut conn).await? {
                schema::quick_check(&mut conn, options.check_for).await?;
                let installation = schema::installation(&mut conn).await?;
                found = Some((conn, installation));
            }
        }
        let start = match (&found, marker.clone()) {
            (None, None) => Start::First,
            (Some(_), None) => Start::Known,
            (Some((_, found)), Some(expected)) if *found == expected => Start::Known,
            (None, Some(installation)) if !options.accept_loss => return Ok(Opened::Lost { installation }),
            (Some((_, found)), Some(expected)) if !options.accept_loss => {
                return Ok(Opened::Replaced { expected, found: found.clone() });
            }
            (None | Some(_), Some(_)) => Start::AfterLoss,
        };
        let keys = match ChainKeys::read(path)? {
            Some(keys) => keys,
            None => ChainKeys::make(path)?,
        };
        let (mut conn, found) = match found {
            Some((conn, installation)) => (conn, Some(installation)),
            None => {
                place::make_database_file(path)?;
                (connect(path, options.max_bytes).await?, None)
            }
        };
        let installation = upkeep::settle(&mut conn, &keys, found, start).await?;
        // After the database: a marker without one would read as a loss. Only when it says something
        // new: a start on a full disk must not fail for it.
        if marker.as_ref() != Some(&installation) {
            place::write_marker(path, &installation)?;
        }
        let store = Self::assemble(path, &options, keys, conn, lock).await?;
        Ok(Opened::Ready { store: Arc::new(store), start })
    }

    async fn assemble(path: &Path, options: &Options, keys: ChainKeys, mut conn: SqliteConnection, lock: File) -> Result<Self, StoreFault> {
        let head = write::head(&mut conn).await?;
        let chain_key_lost = head.sequence > 0 && !keys.knows(&head.hash);
        if chain_key_lost {
            tracing::error!("the chain key file does not hold the key of the journal's last row; older rows can no longer be verified");
        }
        let read_only = base(path).read_only(true);
        Ok(Self {
            path: path.to_owned(),
            inode: place::inode(path)?,
            max_bytes: options.max_bytes,
            keys,
            chain_key_lost,
            run: place::random_hex(&mut [0; 16])?,
            writer: Mutex::new(Some(conn)),
            readers: SqlitePoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(5)).connect_lazy_with(read_only),
            unreadable: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Removes journal rows below a number, oldest first; the anchor left behind keeps the rest
    /// verifiable. Returns how many rows went.
    ///
    /// # Errors
    /// As for a commit; what was removed before the fault stays removed.
    pub async fn prune(&self, before_sequence: u64) -> Result<u64, StoreFault> {
        let mut gone = 0u64;
        loop {
            let mut writer = self.writer.lock().await;
            let mut conn = self.take(&mut writer).await?;
            let step = upkeep::prune_step(&mut conn, &self.keys, before_sequence).await;
            let went = give_back(&mut writer, conn, step).await?;
            gone = gone.saturating_add(went);
            if went < upkeep::PRUNE_STEP {
                return Ok(gone);
            }
        }
    }

    /// The end of the chain, to be noted elsewhere.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn head(&self) -> Result<Head, StoreFault> {
        let mut conn = self.readers.acquire().await.map_err(|e| of_sql(&e))?;
        write::head(&mut conn).await
    }

    /// Rows that the last load could not read and left alone.
    #[must_use]
    pub fn unreadable_rows(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// Whether rows were sealed by a chain key that is gone: `verify` cannot vouch for them.
    #[must_use]
    pub const fn chain_key_lost(&self) -> bool {
        self.chain_key_lost
    }

    /// Folds the log into the database and closes. The lock file stays held until the store is
    /// dropped; queries fail from now on, a later commit opens the database again.
    pub async fn close(&self) {
        self.readers.close().await;
        let Some(conn) = self.writer.lock().await.take() else { return };
        if let Err(error) = conn.close().await {
            tracing::warn!(%error, "the store did not close cleanly; its log is read at the next start");
        }
    }

    /// Takes the connection out, or makes a new one after a fault.
    async fn take(&self, writer: &mut Option<SqliteConnection>) -> Result<SqliteConnection, StoreFault> {
        if place::inode(&self.path)? != self.inode {
            // Writing on into a file without a name would be lost with the process.
            *writer = None;
            return Err(StoreFault::Unavailable(format!("{} was removed or replaced while open", self.path.display())));
        }
        match writer.take() {
            Some(conn) => Ok(conn),
            None => connect(&self.path, self.max_bytes).await,
        }
    }

    async fn write(&self, commit: &Commit) -> Result<Committed, StoreFault> {
        if commit.is_empty() {
            return Ok(Committed::default());
        }
        let prepared = prepare::prepare(commit)?;
        let mut writer = self.writer.lock().await;
        let mut conn = self.take(&mut writer).await?;
        let now = clock::now().wall;
        let outcome = async {
            write::begin(&mut conn).await?;
            let committed = write::apply(&mut conn, &self.keys, &self.run, commit.batch, prepared, now).await?;
            write::end(&mut conn).await?;
            Ok(committed)
        }
        .await;
        give_back(&mut writer, conn, outcome).await
    }

    async fn read(&self) -> Result<Restored, StoreFault> {
        let mut writer = self.writer.lock().await;
        let mut conn = self.take(&mut writer).await?;
        let outcome = read::load(&mut conn).await;
        let (restored, unreadable) = give_back(&mut writer, conn, outcome).await?;
        self.unreadable.store(unreadable, Ordering::Relaxed);
        Ok(restored)
    }
}

impl Store for SqliteStore {
    fn load(&self) -> BoxFuture<'_, Result<Restored, StoreFault>> {
        Box::pin(self.read())
    }
    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, Result<Committed, StoreFault>> {
        Box::pin(self.write(commit))
    }
    fn journal<'a>(&'a self, query: &'a JournalQuery) -> BoxFuture<'a, Result<Vec<StoredRecord>, StoreFault>> {
        Box::pin(read::journal(&self.readers, query))
    }
}

/// A connection that worked is kept; one that failed is closed, and its transaction undone with it.
async fn give_back<T>(
    writer: &mut Option<SqliteConnection>,
    conn: SqliteConnection,
    outcome: Result<T, StoreFault>,
) -> Result<T, StoreFault> {
    match outcome {
        Ok(value) => {
            *writer = Some(conn);
            Ok(value)
        }
        Err(fault) => {
            let _ = conn.close_hard().await;
            Err(fault)
        }
    }
}

fn base(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).foreign_keys(true).busy_timeout(Duration::from_secs(5)).disable_statement_logging()
}

async fn connect(path: &Path, max_bytes: Option<u64>) -> Result<SqliteConnection, StoreFault> {
    let mut options = base(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", "67108864");
    if let Some(bytes) = max_bytes {
        options = options.pragma("max_page_count", bytes.div_ceil(4096).max(1).to_string());
    }
    options.connect().await.map_err(|e| of_sql(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::Row as _;

    #[tokio::test]
    async fn the_writer_syncs_every_commit_and_the_readers_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let Opened::Ready { store, .. } = SqliteStore::open(&path, Options::default()).await.unwrap() else { panic!() };
        let mut guard = store.writer.lock().await;
        let conn = guard.as_mut().unwrap();
        assert_eq!(sqlx::query("PRAGMA journal_mode").fetch_one(&mut *conn).await.unwrap().get::<String, _>(0), "wal");
        // 2 is FULL
        for (pragma, value) in [("PRAGMA synchronous", 2), ("PRAGMA foreign_keys", 1), ("PRAGMA busy_timeout", 5000)] {
            assert_eq!(sqlx::query(pragma).fetch_one(&mut *conn).await.unwrap().get::<i64, _>(0), value, "{pragma}");
        }
        let refused = sqlx::query("DELETE FROM journal").execute(&store.readers).await.unwrap_err();
        assert!(refused.to_string().contains("readonly"), "{refused}");
    }
}
