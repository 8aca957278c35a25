//! outside
//! Is the journal what was written? Reads the file without the daemon, beside it or after it.
//! It must never change the database, and it says where the first difference is.

use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::chain::{self, ChainKeys, RowText};
use super::fault::of_sql;
use super::place;
use super::read::{JOURNAL_PAGE, small};
use super::write::large;
use crate::journal::{CanaryRow, StoreFault};
use crate::key::KeyId;
use crate::time::Wall;
use crate::words::EventType;

/// A place in the chain. One that was noted elsewhere (digest, heartbeat, metric) proves later that
/// the journal still goes through it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub sequence: u64,
    pub hash: String,
}

/// What the check of a journal came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verified {
    Whole {
        rows: u64,
        head: Head,
    },
    /// The first row that is not what was written, and how it differs.
    Altered {
        sequence: u64,
        what: String,
    },
    /// Rows at the end were lost once; the daemon noticed at a start and wrote that down.
    TornTail {
        rows: u64,
        head: Head,
        closed_at: Wall,
    },
}

impl Verified {
    /// Exit code of `journal verify`.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Whole { .. } => 0,
            Self::Altered { .. } => 1,
            Self::TornTail { .. } => 3,
        }
    }
}

/// Why the journal could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("no database at {}", .0.display())]
    NoDatabase(PathBuf),
    #[error("no chain key at {}; without it nobody can tell an altered journal from a whole one", .0.display())]
    NoKey(PathBuf),
    #[error(transparent)]
    Store(#[from] StoreFault),
    #[error("cannot write the export: {0}")]
    Write(#[from] std::io::Error),
}

/// Facts of the record that closes a torn tail.
pub(super) const MISSING_FROM: &str = "journal_missing_from";
pub(super) const MISSING_TO: &str = "journal_missing_to";
pub(super) const LAST_HASH: &str = "journal_last_hash";
pub(super) const HEAD_HASH: &str = "journal_head_hash";

fn sql(error: &sqlx::Error) -> VerifyError {
    VerifyError::Store(of_sql(error))
}

/// Opens for reading only, beside a running daemon or without one.
async fn open(db: &Path) -> Result<SqliteConnection, VerifyError> {
    if place::inode(db)?.is_none() {
        return Err(VerifyError::NoDatabase(db.to_owned()));
    }
    let options = SqliteConnectOptions::new()
        .filename(db)
        .read_only(true)
        .busy_timeout(std::time::Duration::from_secs(5))
        .disable_statement_logging();
    let opened = match options.connect().await {
        Ok(mut conn) => sqlx::query("SELECT count(*) FROM sqlite_master").fetch_one(&mut conn).await.map(|_| conn),
        Err(error) => Err(error),
    };
    let mut conn = match opened {
        Ok(conn) => conn,
        // A read-only medium has no room for the log's index. Without a log there is nothing to index.
        Err(error) if matches!(of_sql(&error), StoreFault::Unavailable(_)) && no_log(db) => {
            options.immutable(true).connect().await.map_err(|e| sql(&e))?
        }
        Err(error) => return Err(sql(&error)),
    };
    if super::schema::present(&mut conn).await? { Ok(conn) } else { Err(VerifyError::NoDatabase(db.to_owned())) }
}

fn no_log(db: &Path) -> bool {
    let mut wal = db.as_os_str().to_owned();
    wal.push("-wal");
    std::fs::metadata(wal).map_or(true, |meta| meta.len() == 0)
}

/// Checks the whole chain, and that it goes through every head in `known` that is not pruned away.
///
/// # Errors
/// If there is no database, no chain key, or the database cannot be read.
pub async fn verify(db: &Path, known: &[Head]) -> Result<Verified, VerifyError> {
    let mut conn = open(db).await?;
    let keys = ChainKeys::read(db)?.ok_or_else(|| VerifyError::NoKey(chain::path(db)))?;
    // One snapshot, however long it takes and whatever the daemon writes meanwhile.
    sqlx::query("BEGIN").execute(&mut conn).await.map_err(|e| sql(&e))?;
    let outcome = walk(&mut conn, &keys, known).await;
    let _ = conn.close().await;
    match outcome {
        Ok(verified) => Ok(verified),
        Err(Stop::Altered(sequence, what)) => Ok(Verified::Altered { sequence, what }),
        Err(Stop::Unread(error)) => Err(error),
    }
}

enum Stop {
    Altered(u64, String),
    Unread(VerifyError),
}

struct Walk<'a> {
    keys: &'a ChainKeys,
    /// What the next row must follow.
    at: Head,
    rows: u64,
    torn: Option<Wall>,
}

async fn walk(conn: &mut SqliteConnection, keys: &ChainKeys, known: &[Head]) -> Result<Verified, Stop> {
    let (anchor, anchored_at, mac) = place_of(conn, "anchor").await?;
    let mac = mac.unwrap_or_default();
    keys.check_anchor(anchor.sequence, &anchor.hash, &anchored_at, &mac)
        .map_err(|why| Stop::Altered(anchor.sequence, format!("the anchor of the journal: {why}")))?;
    let (head, _, _) = place_of(conn, "head").await?;
    let mut walk = Walk { keys, at: anchor.clone(), rows: 0, torn: None };
    let mut known: Vec<&Head> = known.iter().filter(|k| k.sequence >= anchor.sequence).collect();
    known.sort_by_key(|k| k.sequence);
    let mut known = known.into_iter().peekable();
    // Rows before the anchor were pruned, all of them; below it nothing may stand.
    let mut after = -1;
    loop {
        meets(&mut known, &walk.at, false)?;
        let page = sqlx::query(JOURNAL_PAGE).bind(after).bind(1000).fetch_all(&mut *conn).await.map_err(|e| Stop::Unread(sql(&e)))?;
        let Some(last) = page.last() else { break };
        after = last.try_get(0).map_err(|e| Stop::Unread(sql(&e)))?;
        for row in &page {
            walk.step(row)?;
            meets(&mut known, &walk.at, false)?;
        }
    }
    if walk.at != head {
        return Err(ends_elsewhere(&walk.at, &head));
    }
    meets(&mut known, &walk.at, true)?;
    let Walk { at: head, rows, torn, .. } = walk;
    Ok(torn.map_or_else(
        || Verified::Whole { rows, head: head.clone() },
        |closed_at| Verified::TornTail { rows, head: head.clone(), closed_at },
    ))
}

fn ends_elsewhere(at: &Head, head: &Head) -> Stop {
    if at.sequence < head.sequence {
        let next = at.sequence.saturating_add(1);
        return Stop::Altered(next, format!("rows {next} to {} are missing at the end", head.sequence));
    }
    let what = if at.sequence == head.sequence { "the noted head differs from it" } else { "it lies behind the noted head" };
    Stop::Altered(at.sequence, what.to_owned())
}

/// Holds the heads noted elsewhere against the place the walk has reached.
fn meets(known: &mut std::iter::Peekable<std::vec::IntoIter<&Head>>, at: &Head, end: bool) -> Result<(), Stop> {
    while let Some(head) = known.next_if(|head| head.sequence <= at.sequence) {
        if head != at {
            return Err(Stop::Altered(head.sequence, "it is not the row that was noted elsewhere".to_owned()));
        }
    }
    match known.peek() {
        Some(head) if end => Err(Stop::Altered(head.sequence, "it was noted elsewhere and is missing at the end".to_owned())),
        Some(_) | None => Ok(()),
    }
}

async fn place_of(conn: &mut SqliteConnection, name: &str) -> Result<(Head, String, Option<String>), Stop> {
    let row = sqlx::query("SELECT sequence, hash, at, mac FROM chain WHERE name = ?1")
        .bind(name)
        .fetch_optional(conn)
        .await
        .map_err(|e| Stop::Unread(sql(&e)))?
        .ok_or_else(|| Stop::Altered(0, format!("the {name} of the journal is missing")))?;
    let read = || -> Result<_, sqlx::Error> {
        Ok((Head { sequence: small(row.try_get(0)?), hash: row.try_get(1)? }, row.try_get(2)?, row.try_get(3)?))
    };
    read().map_err(|_| Stop::Altered(0, format!("the {name} of the journal is unreadable")))
}

impl Walk<'_> {
    fn step(&mut self, row: &SqliteRow) -> Result<(), Stop> {
        let sequence = small(row.try_get(0).unwrap_or_default());
        let (text, hash) = row_text(row).map_err(|_| Stop::Altered(sequence, "a column is unreadable".to_owned()))?;
        let expected = self.at.sequence.saturating_add(1);
        if sequence < expected {
            return Err(Stop::Altered(sequence, "it stands before the anchor".to_owned()));
        }
        if sequence > expected {
            let (previous, closed_at) = self.closure(&text).ok_or_else(|| {
                let last = sequence.saturating_sub(1);
                Stop::Altered(expected, format!("rows {expected} to {last} are missing"))
            })?;
            self.keys.check_row(&previous, &text, &hash).map_err(|why| Stop::Altered(sequence, why))?;
            self.torn = self.torn.or(Some(closed_at));
        } else {
            self.keys.check_row(&self.at.hash, &text, &hash).map_err(|why| Stop::Altered(sequence, why))?;
        }
        self.at = Head { sequence, hash };
        self.rows = self.rows.saturating_add(1);
        Ok(())
    }

    /// If the row closes exactly the gap before it: the hash it follows, and when it was written.
    fn closure(&self, row: &RowText) -> Option<(String, Wall)> {
        if row.event != EventType::StoreDamage.as_str() {
            return None;
        }
        let mut detail: std::collections::BTreeMap<String, String> = serde_json::from_str(&row.detail).ok()?;
        let number = |name: &str| detail.get(name).and_then(|text| text.parse::<u64>().ok());
        let from = number(MISSING_FROM)?;
        let to = number(MISSING_TO)?;
        let fits = from == self.at.sequence.checked_add(1)? && to.checked_add(1)? == row.sequence;
        if !fits || detail.get(LAST_HASH)? != &self.at.hash {
            return None;
        }
        Some((detail.remove(HEAD_HASH)?, row.at.parse().ok()?))
    }
}

fn row_text(row: &SqliteRow) -> Result<(RowText, String), sqlx::Error> {
    let text = RowText {
        sequence: small(row.try_get(0)?),
        at: row.try_get(1)?,
        event: row.try_get(2)?,
        key: row.try_get(3)?,
        workspace: row.try_get(4)?,
        version: row.try_get(5)?,
        actor: row.try_get(6)?,
        event_id: row.try_get(7)?,
        correlation_id: row.try_get(8)?,
        detail: row.try_get(9)?,
    };
    Ok((text, row.try_get(10)?))
}

/// Writes the journal after a number as JSON Lines, ascending; returns how many rows.
/// Rows go out as stored, also those that this program cannot interpret.
///
/// # Errors
/// If there is no database, it cannot be read, or the writer fails.
pub async fn export(db: &Path, after: u64, to: &mut (dyn Write + Send)) -> Result<u64, VerifyError> {
    let mut conn = open(db).await?;
    sqlx::query("BEGIN").execute(&mut conn).await.map_err(|e| sql(&e))?;
    let mut after = large(after)?;
    let mut rows = 0u64;
    loop {
        let page = sqlx::query(JOURNAL_PAGE).bind(after).bind(1000).fetch_all(&mut conn).await.map_err(|e| sql(&e))?;
        let Some(last) = page.last() else { break };
        after = last.try_get(0).map_err(|e| sql(&e))?;
        for row in &page {
            let (text, hash) = row_text(row).map_err(|e| sql(&e))?;
            writeln!(to, "{}", line(&text, &hash))?;
            rows = rows.saturating_add(1);
        }
    }
    to.flush()?;
    let _ = conn.close().await;
    Ok(rows)
}

/// The stored canaries, of one key or of all, ascending by key and version; damaged ones are left
/// out. For a look without the daemon; empty where there is no database yet.
///
/// # Errors
/// If the database cannot be read.
pub async fn canaries(db: &Path, key: Option<&KeyId>) -> Result<Vec<CanaryRow>, VerifyError> {
    let mut conn = match open(db).await {
        Ok(conn) => conn,
        Err(VerifyError::NoDatabase(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let rows = super::read::canaries(&mut conn, key).await;
    let _ = conn.close().await;
    Ok(rows?)
}

fn line(row: &RowText, hash: &str) -> serde_json::Value {
    let detail = serde_json::from_str(&row.detail).unwrap_or_else(|_| json!(row.detail));
    json!({
        "sequence": row.sequence,
        "at": row.at,
        "type": row.event,
        "key": row.key,
        "workspace": row.workspace,
        "version": row.version,
        "actor": row.actor,
        "event_id": row.event_id,
        "correlation_id": row.correlation_id,
        "detail": detail,
        "hash": hash,
    })
}
