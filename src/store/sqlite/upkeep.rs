//! outside
//! What is done to the database as a whole: its first rows, its schema, a torn tail, retention.
//! It must never remove a row without leaving the anchor or the record that says so.

use sqlx::SqliteConnection;
use std::collections::BTreeMap;

use super::chain::ChainKeys;
use super::fault::of_sql;
use super::{Head, LOST_AT, Start, place, prepare, read, schema, verify, write};
use crate::clock;
use crate::journal::{Record, StoreFault};
use crate::words::EventType;

/// Rows of the journal that one transaction of a prune removes.
pub(super) const PRUNE_STEP: u64 = 10_000;

/// Brings the database to the present schema, gives a new one its identity, closes a torn tail.
pub(super) async fn settle(
    conn: &mut SqliteConnection,
    keys: &ChainKeys,
    found: Option<String>,
    start: Start,
) -> Result<String, StoreFault> {
    let at = clock::now().wall.to_string();
    write::begin(conn).await?;
    schema::migrate(conn, &at).await?;
    let installation = match found {
        Some(installation) => {
            close_torn_tail(conn, keys).await?;
            installation
        }
        None => {
            let installation = place::random_hex(&mut [0; 16])?;
            let insert = sqlx::query("INSERT INTO installation (id, made_at) VALUES (?1, ?2)").bind(&installation).bind(&at);
            insert.execute(&mut *conn).await.map_err(|e| of_sql(&e))?;
            let first = Head { sequence: 0, hash: format!("first:{installation}") };
            write::set_anchor(conn, keys, &first, &at).await?;
            write::set_head(conn, &first, &at).await?;
            installation
        }
    };
    if start == Start::AfterLoss {
        let note = sqlx::query("INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING").bind(LOST_AT).bind(&at);
        note.execute(&mut *conn).await.map_err(|e| of_sql(&e))?;
    }
    write::end(conn).await?;
    Ok(installation)
}

/// If rows at the end are gone, says so in the chain itself: numbers are never given out twice, and
/// the record holds what `verify` needs to step over the gap.
async fn close_torn_tail(conn: &mut SqliteConnection, keys: &ChainKeys) -> Result<(), StoreFault> {
    let head = write::head(conn).await?;
    // The anchor stands in for the last row if all were pruned.
    let last: Option<(i64, String)> = sqlx::query_as(
        "SELECT sequence, hash FROM (SELECT sequence, hash FROM journal UNION ALL SELECT sequence, hash FROM chain WHERE name = 'anchor')
         ORDER BY sequence DESC LIMIT 1",
    )
    .fetch_optional(&mut *conn)
    .await
    .map_err(|e| of_sql(&e))?;
    let (last, last_hash) = last.ok_or_else(|| StoreFault::Corrupt("the anchor of the journal is missing".to_owned()))?;
    let last = read::small(last);
    if last >= head.sequence {
        return Ok(());
    }
    let from = last.saturating_add(1);
    tracing::error!(from, to = head.sequence, "journal rows are missing at the end; the chain is closed behind them");
    let now = clock::now().wall;
    let detail = BTreeMap::from([
        (verify::MISSING_FROM.to_owned(), from.to_string()),
        (verify::MISSING_TO.to_owned(), head.sequence.to_string()),
        (verify::LAST_HASH.to_owned(), last_hash),
        (verify::HEAD_HASH.to_owned(), head.hash),
    ]);
    let record = Record {
        at: now,
        event: EventType::StoreDamage,
        key: None,
        workspace: None,
        version: None,
        actor: None,
        event_id: None,
        correlation_id: None,
        detail,
    };
    write::append(conn, keys, vec![prepare::record(&record)?], &now.to_string()).await.map(|_| ())
}

/// One segment: its last row becomes the anchor, and it goes.
pub(super) async fn prune_step(conn: &mut SqliteConnection, keys: &ChainKeys, before: u64) -> Result<u64, StoreFault> {
    write::begin(conn).await?;
    let segment: Option<(i64, String)> = sqlx::query_as(
        "SELECT sequence, hash FROM (SELECT sequence, hash FROM journal WHERE sequence < ?1 ORDER BY sequence LIMIT ?2)
         ORDER BY sequence DESC LIMIT 1",
    )
    .bind(write::large(before.min(u64::MAX >> 1))?)
    .bind(write::large(PRUNE_STEP)?)
    .fetch_optional(&mut *conn)
    .await
    .map_err(|e| of_sql(&e))?;
    let went = match segment {
        None => 0,
        Some((sequence, hash)) => {
            let anchor = Head { sequence: read::small(sequence), hash };
            write::set_anchor(conn, keys, &anchor, &clock::now().wall.to_string()).await?;
            let deleted = sqlx::query("DELETE FROM journal WHERE sequence <= ?1").bind(sequence).execute(&mut *conn).await;
            deleted.map_err(|e| of_sql(&e))?.rows_affected()
        }
    };
    write::end(conn).await?;
    Ok(went)
}
