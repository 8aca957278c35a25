//! outside
//! One commit inside one transaction: orders, keys, canaries, journal with its chain, outbox, meta.
//! It must never report a row as written before the transaction has ended.

use serde_json::json;
use sqlx::{Row as _, SqliteConnection};
use std::collections::BTreeSet;

use super::chain::{ChainKeys, RowText};
use super::fault::of_sql;
use super::prepare::{Prepared, ROWS, Statement, slot_name};
use super::read::small;
use super::verify::Head;
use crate::journal::{Batch, Committed, OrderSlot, StoreFault};
use crate::time::{Span, Wall};

/// Remembered batches of this run; a retry never comes later than this.
const REMEMBERED: u64 = 256;
/// Sent notices are kept so long, so that a restart knows what was sent.
const KEEP_SENT: Span = Span::from_days(7);

const LIFT: &str = "DELETE FROM orders WHERE (workspace, slot, sequence) IN (SELECT value->>0, value->>1, value->>2 FROM json_each(?1))";
/// What is still stored after the lift was lowered by another order than the named one.
const REFUSED: &str = "SELECT workspace, slot FROM orders WHERE (workspace, slot) IN (SELECT value->>0, value->>1 FROM json_each(?1))";
const JOURNAL: &str = "INSERT INTO journal (sequence, at, type, key, workspace, version, actor, event_id, correlation_id, detail, hash)
  SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8, value->>9, value->>10
  FROM json_each(?1)";
const PRUNE_SENT: &str = "DELETE FROM outbox WHERE rowid IN (SELECT rowid FROM outbox
  WHERE state IN ('done', 'folded') AND written_at < ?1 LIMIT 1000)";

pub(super) async fn begin(conn: &mut SqliteConnection) -> Result<(), StoreFault> {
    run(sqlx::query("BEGIN IMMEDIATE"), conn).await
}

pub(super) async fn end(conn: &mut SqliteConnection) -> Result<(), StoreFault> {
    run(sqlx::query("COMMIT"), conn).await
}

async fn run(
    query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    conn: &mut SqliteConnection,
) -> Result<(), StoreFault> {
    query.execute(conn).await.map(|_| ()).map_err(|e| of_sql(&e))
}

/// Writes a prepared commit; the caller begins and ends the transaction.
pub(super) async fn apply(
    conn: &mut SqliteConnection,
    keys: &ChainKeys,
    run_id: &str,
    batch: Batch,
    prepared: Prepared<'_>,
    now: Wall,
) -> Result<Committed, StoreFault> {
    if let Some(done) = already(conn, run_id, batch, &prepared.digest).await? {
        return Ok(done);
    }
    let written_at = now.to_string();
    let mut committed = Committed::default();
    for statement in &prepared.before {
        write(conn, statement, &written_at, &mut committed.refused).await?;
    }
    committed.sequences = append(conn, keys, prepared.records, &written_at).await?;
    for statement in &prepared.after {
        write(conn, statement, &written_at, &mut committed.refused).await?;
    }
    if prepared.after.iter().any(|s| matches!(s, Statement::Timed { .. })) {
        run(sqlx::query(PRUNE_SENT).bind(now.minus(KEEP_SENT).to_string()), conn).await?;
    }
    remember(conn, run_id, batch, &prepared.digest, &committed).await?;
    Ok(committed)
}

async fn write(
    conn: &mut SqliteConnection,
    statement: &Statement<'_>,
    written_at: &str,
    refused: &mut Vec<OrderSlot>,
) -> Result<(), StoreFault> {
    match statement {
        Statement::Plain { sql, rows } => run(sqlx::query(*sql).bind(rows), conn).await,
        Statement::Timed { sql, rows } => run(sqlx::query(*sql).bind(rows).bind(written_at), conn).await,
        Statement::Lift { rows, slots } => {
            run(sqlx::query(LIFT).bind(rows), conn).await?;
            let left = sqlx::query_as::<_, (String, String)>(REFUSED).bind(rows).fetch_all(conn).await.map_err(|e| of_sql(&e))?;
            let left: BTreeSet<(String, String)> = left.into_iter().collect();
            if !left.is_empty() {
                let kept = slots.iter().filter(|slot| left.contains(&(slot.workspace.as_str().to_owned(), slot_name(slot))));
                refused.extend(kept.map(|slot| (*slot).clone()));
            }
            Ok(())
        }
    }
}

/// The head of the chain: the last number given out and the hash that the next row follows.
pub(super) async fn head(conn: &mut SqliteConnection) -> Result<Head, StoreFault> {
    let row = sqlx::query("SELECT sequence, hash FROM chain WHERE name = 'head'")
        .fetch_optional(conn)
        .await
        .map_err(|e| of_sql(&e))?
        .ok_or_else(|| StoreFault::Corrupt("the head of the journal is missing".to_owned()))?;
    let sequence: i64 = row.try_get(0).map_err(|e| of_sql(&e))?;
    Ok(Head { sequence: small(sequence), hash: row.try_get(1).map_err(|e| of_sql(&e))? })
}

/// Numbers, seals and writes records behind the head.
pub(super) async fn append(
    conn: &mut SqliteConnection,
    keys: &ChainKeys,
    records: Vec<RowText>,
    written_at: &str,
) -> Result<Vec<u64>, StoreFault> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let mut head = head(conn).await?;
    // A row that nobody chained may sit on the next number; it must not stop the journal.
    let top: i64 =
        sqlx::query_scalar("SELECT coalesce(max(sequence), 0) FROM journal").fetch_one(&mut *conn).await.map_err(|e| of_sql(&e))?;
    head.sequence = head.sequence.max(small(top));
    let mut sequences = Vec::with_capacity(records.len());
    for chunk in records.chunks(ROWS) {
        let mut rows = Vec::with_capacity(chunk.len());
        for record in chunk {
            let row = RowText { sequence: head.sequence.saturating_add(1), ..record.clone() };
            let hash = keys.seal(&head.hash, &row);
            rows.push(json!([
                row.sequence,
                row.at,
                row.event,
                row.key,
                row.workspace,
                row.version,
                row.actor,
                row.event_id,
                row.correlation_id,
                row.detail,
                hash
            ]));
            sequences.push(row.sequence);
            head = Head { sequence: row.sequence, hash };
        }
        let rows = serde_json::to_string(&rows).map_err(|e| StoreFault::Unavailable(format!("a record cannot be written as json: {e}")))?;
        run(sqlx::query(JOURNAL).bind(rows), conn).await?;
    }
    set_head(conn, &head, written_at).await?;
    Ok(sequences)
}

pub(super) async fn set_head(conn: &mut SqliteConnection, head: &Head, at: &str) -> Result<(), StoreFault> {
    let sql = "INSERT INTO chain (name, sequence, hash, at) VALUES ('head', ?1, ?2, ?3)
      ON CONFLICT (name) DO UPDATE SET sequence = excluded.sequence, hash = excluded.hash, at = excluded.at";
    run(sqlx::query(sql).bind(large(head.sequence)?).bind(&head.hash).bind(at), conn).await
}

/// Moves the anchor: what lies before it may be gone.
pub(super) async fn set_anchor(conn: &mut SqliteConnection, keys: &ChainKeys, head: &Head, at: &str) -> Result<(), StoreFault> {
    let sql = "INSERT INTO chain (name, sequence, hash, at, mac) VALUES ('anchor', ?1, ?2, ?3, ?4)
      ON CONFLICT (name) DO UPDATE SET sequence = excluded.sequence, hash = excluded.hash, at = excluded.at, mac = excluded.mac";
    let mac = keys.seal_anchor(head.sequence, &head.hash, at);
    run(sqlx::query(sql).bind(large(head.sequence)?).bind(&head.hash).bind(at).bind(mac), conn).await
}

pub(super) fn large(number: u64) -> Result<i64, StoreFault> {
    i64::try_from(number).map_err(|_| StoreFault::Unavailable(format!("the number {number} is too large for the store")))
}

async fn already(conn: &mut SqliteConnection, run_id: &str, batch: Batch, digest: &str) -> Result<Option<Committed>, StoreFault> {
    let row = sqlx::query_as::<_, (String, String)>("SELECT digest, committed FROM batches WHERE run = ?1 AND batch = ?2")
        .bind(run_id)
        .bind(large(batch.0)?)
        .fetch_optional(conn)
        .await
        .map_err(|e| of_sql(&e))?;
    match row {
        None => Ok(None),
        Some((stored, committed)) if stored == digest => serde_json::from_str::<(Vec<OrderSlot>, Vec<u64>)>(&committed)
            .map(|(refused, sequences)| Some(Committed { refused, sequences }))
            .map_err(|e| StoreFault::Corrupt(format!("the outcome of batch {} is unreadable: {e}", batch.0))),
        // Saying "done" would lose what this commit orders.
        Some(_) => Err(StoreFault::Unavailable(format!("batch {} was stored before with other content", batch.0))),
    }
}

async fn remember(conn: &mut SqliteConnection, run_id: &str, batch: Batch, digest: &str, committed: &Committed) -> Result<(), StoreFault> {
    let outcome = serde_json::to_string(&(&committed.refused, &committed.sequences))
        .map_err(|e| StoreFault::Unavailable(format!("an outcome cannot be written as json: {e}")))?;
    let insert = sqlx::query("INSERT INTO batches (run, batch, digest, committed) VALUES (?1, ?2, ?3, ?4)");
    run(insert.bind(run_id).bind(large(batch.0)?).bind(digest).bind(outcome), conn).await?;
    let forget = sqlx::query("DELETE FROM batches WHERE run <> ?1 OR batch < ?2");
    run(forget.bind(run_id).bind(large(batch.0.saturating_sub(REMEMBERED))?), conn).await
}
