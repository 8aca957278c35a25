//! outside
//! Tables of the embedded store and the numbered steps that lead to them.
//! A step once released is never edited; a database of a newer program is refused, not guessed at.

use sqlx::{Row as _, SqliteConnection};

use super::fault::of_sql;
use crate::journal::StoreFault;

/// (number, name, statements), ascending without gaps.
const STEPS: &[(i64, &str, &str)] = &[
    (
        1,
        "first tables",
        "CREATE TABLE installation (id TEXT NOT NULL, made_at TEXT NOT NULL) STRICT;
     CREATE TABLE keys (key TEXT NOT NULL PRIMARY KEY, shard INTEGER NOT NULL, epoch INTEGER NOT NULL, state TEXT NOT NULL)
       STRICT, WITHOUT ROWID;
     CREATE TABLE canaries (key TEXT NOT NULL, version TEXT NOT NULL, wrapped BLOB NOT NULL, digest BLOB NOT NULL, wrapped_version TEXT,
       sealed_with TEXT NOT NULL, identity TEXT, created_at TEXT NOT NULL, checksum TEXT NOT NULL, PRIMARY KEY (key, version)) STRICT;
     CREATE TABLE orders (workspace TEXT NOT NULL, slot TEXT NOT NULL, ordered_by TEXT NOT NULL, key TEXT, provider TEXT, reference TEXT,
       access TEXT NOT NULL, cause TEXT NOT NULL, sequence INTEGER NOT NULL, since TEXT NOT NULL, reason TEXT, actor TEXT,
       expires_at TEXT, message TEXT, release TEXT, orphaned INTEGER NOT NULL, shard INTEGER NOT NULL, epoch INTEGER NOT NULL,
       PRIMARY KEY (workspace, slot)) STRICT, WITHOUT ROWID;
     CREATE TABLE journal (sequence INTEGER PRIMARY KEY, at TEXT NOT NULL, type TEXT NOT NULL, key TEXT, workspace TEXT, version TEXT,
       actor TEXT, event_id TEXT, correlation_id TEXT, detail TEXT NOT NULL, hash TEXT NOT NULL) STRICT;
     CREATE INDEX journal_by_key ON journal (key, sequence) WHERE key IS NOT NULL;
     CREATE INDEX journal_by_workspace ON journal (workspace, sequence) WHERE workspace IS NOT NULL;
     CREATE TABLE chain (name TEXT NOT NULL PRIMARY KEY, sequence INTEGER NOT NULL, hash TEXT NOT NULL, at TEXT NOT NULL, mac TEXT) STRICT;
     CREATE TABLE outbox (id TEXT NOT NULL, receiver TEXT NOT NULL, position INTEGER NOT NULL, notice TEXT NOT NULL,
       created_at TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL, next_at TEXT NOT NULL, last_error TEXT,
       written_at TEXT NOT NULL, PRIMARY KEY (id, receiver)) STRICT;
     CREATE INDEX outbox_by_state ON outbox (state, written_at);
     CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
     CREATE TABLE batches (run TEXT NOT NULL, batch INTEGER NOT NULL, digest TEXT NOT NULL, committed TEXT NOT NULL,
       PRIMARY KEY (run, batch)) STRICT, WITHOUT ROWID;",
    ),
    (
        2,
        "the vault",
        "CREATE TABLE vault_data_keys (id TEXT NOT NULL PRIMARY KEY, made_at TEXT NOT NULL, uses INTEGER NOT NULL, wraps TEXT NOT NULL)
       STRICT, WITHOUT ROWID;
     CREATE TABLE vault_records (workspace TEXT NOT NULL, id TEXT NOT NULL, schema INTEGER NOT NULL, revision INTEGER NOT NULL,
       written_at INTEGER NOT NULL, data_key TEXT NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (workspace, id)) STRICT;
     CREATE TABLE vault_preservations (workspace TEXT NOT NULL, id TEXT NOT NULL, schema INTEGER NOT NULL, revision INTEGER NOT NULL,
       written_at INTEGER NOT NULL, data_key TEXT NOT NULL, envelope BLOB NOT NULL, reason TEXT NOT NULL, person TEXT NOT NULL,
       journaled INTEGER NOT NULL, PRIMARY KEY (workspace, id)) STRICT;
     CREATE INDEX vault_unjournaled ON vault_preservations (id) WHERE journaled = 0;",
    ),
];

/// Whether the database holds our tables.
///
/// # Errors
/// If it holds another program's tables, or a newer program's.
pub(super) async fn present(conn: &mut SqliteConnection) -> Result<bool, StoreFault> {
    let row = sqlx::query("SELECT count(*), coalesce(sum(name = 'migrations'), 0) FROM sqlite_master WHERE type = 'table'")
        .fetch_one(&mut *conn)
        .await
        .map_err(|e| of_sql(&e))?;
    let (tables, ours): (i64, i64) = (row.try_get(0).map_err(|e| of_sql(&e))?, row.try_get(1).map_err(|e| of_sql(&e))?);
    if ours == 0 {
        return if tables == 0 { Ok(false) } else { Err(StoreFault::Corrupt("the database belongs to another program".to_owned())) };
    }
    let (at, newest) = (number(conn).await?, STEPS.last().map_or(0, |step| step.0));
    if at > newest {
        return Err(StoreFault::Unavailable(format!(
            "the database has schema {at}, this program knows schemas up to {newest}; start the newer program or restore an older backup"
        )));
    }
    Ok(true)
}

async fn number(conn: &mut SqliteConnection) -> Result<i64, StoreFault> {
    sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM migrations").fetch_one(conn).await.map_err(|e| of_sql(&e))
}

/// Takes the steps that are still missing. Call it inside a transaction.
pub(super) async fn migrate(conn: &mut SqliteConnection, at: &str) -> Result<(), StoreFault> {
    sqlx::query("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, at TEXT NOT NULL) STRICT")
        .execute(&mut *conn)
        .await
        .map_err(|e| of_sql(&e))?;
    let done = number(conn).await?;
    for (step, name, statements) in STEPS.iter().filter(|step| step.0 > done) {
        sqlx::raw_sql(*statements).execute(&mut *conn).await.map_err(|e| of_sql(&e))?;
        sqlx::query("INSERT INTO migrations (number, name, at) VALUES (?1, ?2, ?3)")
            .bind(step)
            .bind(name)
            .bind(at)
            .execute(&mut *conn)
            .await
            .map_err(|e| of_sql(&e))?;
    }
    Ok(())
}

/// The id that ties the database to its marker.
pub(super) async fn installation(conn: &mut SqliteConnection) -> Result<String, StoreFault> {
    sqlx::query_scalar("SELECT id FROM installation")
        .fetch_optional(conn)
        .await
        .map_err(|e| of_sql(&e))?
        .ok_or_else(|| StoreFault::Corrupt("the database has no installation id".to_owned()))
}

/// Looks for damaged pages, the tables that hold locks first; stops without a finding when the time
/// is up, so that a large journal cannot hold up a start.
pub(super) async fn quick_check(conn: &mut SqliteConnection, within: crate::time::Span) -> Result<(), StoreFault> {
    let until = crate::clock::now().mono.plus(within);
    conn.lock_handle().await.map_err(|e| of_sql(&e))?.set_progress_handler(1000, move || crate::clock::now().mono < until);
    let mut outcome = Ok(());
    for sql in [
        "PRAGMA quick_check('orders')",
        "PRAGMA quick_check('keys')",
        "PRAGMA quick_check('meta')",
        "PRAGMA quick_check('outbox')",
        "PRAGMA quick_check('canaries')",
        "PRAGMA quick_check(5)",
    ] {
        match sqlx::query_scalar::<_, String>(sql).persistent(false).fetch_all(&mut *conn).await {
            Ok(lines) if lines.iter().all(|line| line == "ok") => {}
            Ok(lines) => {
                outcome = Err(StoreFault::Corrupt(lines.into_iter().take(3).collect::<Vec<_>>().join("; ")));
                break;
            }
            Err(error) if super::fault::code(&error) == Some(super::fault::SQLITE_INTERRUPT) => {
                tracing::warn!(within = %within, "the check of the database did not end in time and was left unfinished");
                break;
            }
            Err(error) => {
                outcome = Err(of_sql(&error));
                break;
            }
        }
    }
    conn.lock_handle().await.map_err(|e| of_sql(&e))?.remove_progress_handler();
    outcome
}
