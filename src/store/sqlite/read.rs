//! outside
//! Rows read back. A word that this program does not know is read as the stricter one, and a damaged
//! canary is reported, so that no single row can stop a start or open a workspace.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::fault::of_sql;
use super::prepare::{CanaryText, canary_checksum};
use super::write::large;
use crate::journal::{CanaryRow, JournalQuery, Order, OrderKey, Record, Restored, StoreFault, StoredRecord};
use crate::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use crate::kms::Wrapped;
use crate::notify::{Notice, NoticeId, OutboxRow, OutboxState};
use crate::time::Wall;
use crate::words::{Access, By, Cause, EventType, FailureKind, Release, Sequence};

/// A stored number that can only be zero or more.
pub(super) fn small(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

type Text = Option<String>;

/// Everything a start needs, and how many rows could not be read.
pub(super) async fn load(conn: &mut SqliteConnection) -> Result<(Restored, u64), StoreFault> {
    let mut out = Restored::default();
    let mut unreadable = 0u64;
    let mut skip = |what: &str, name: &str, why: &str| {
        unreadable = unreadable.saturating_add(1);
        tracing::warn!(what, name, why, "a stored row cannot be read and is left alone");
    };
    for (key, state) in rows::<(String, String)>(conn, "SELECT key, state FROM keys ORDER BY key").await? {
        match KeyId::new(&key) {
            Ok(id) => out.keys.push((id, state.into())),
            Err(error) => skip("key", &key, &error.to_string()),
        }
    }
    let canaries = "SELECT key, version, wrapped, digest, wrapped_version, sealed_with, identity, created_at, checksum FROM canaries
      ORDER BY key, version";
    for row in sqlx::query(canaries).fetch_all(&mut *conn).await.map_err(|e| of_sql(&e))? {
        match canary(&row) {
            Ok(row) => out.canaries.push(row),
            Err(Some(damaged)) => out.damaged.push(damaged),
            Err(None) => skip("canary", "", "its name is damaged"),
        }
    }
    let orders = "SELECT workspace, ordered_by, key, provider, reference, access, cause, sequence, since, reason, actor, expires_at,
      message, release, orphaned FROM orders ORDER BY workspace, slot";
    for row in sqlx::query(orders).fetch_all(&mut *conn).await.map_err(|e| of_sql(&e))? {
        out.orders.push(order(&row)?);
    }
    let outbox = "SELECT id, receiver, position, notice, created_at, state, attempts, next_at, last_error FROM outbox
      WHERE state NOT IN ('done', 'folded') ORDER BY receiver, position, id";
    for row in sqlx::query(outbox).fetch_all(&mut *conn).await.map_err(|e| of_sql(&e))? {
        match queued(&row) {
            Ok(row) => out.outbox.push(row),
            Err(why) => skip("notice", &row.try_get::<String, _>(0).unwrap_or_default(), &why),
        }
    }
    out.meta = rows::<(String, String)>(conn, "SELECT name, value FROM meta").await?.into_iter().collect();
    out.head = super::write::head(conn).await?.sequence;
    Ok((out, unreadable))
}

/// The readable canaries of one key, or of all.
pub(super) async fn canaries(conn: &mut SqliteConnection, key: Option<&KeyId>) -> Result<Vec<CanaryRow>, StoreFault> {
    let sql = "SELECT key, version, wrapped, digest, wrapped_version, sealed_with, identity, created_at, checksum FROM canaries
      WHERE ?1 IS NULL OR key = ?1 ORDER BY key, version";
    let rows = sqlx::query(sql).bind(key.map(KeyId::as_str)).fetch_all(conn).await.map_err(|e| of_sql(&e))?;
    Ok(rows.iter().filter_map(|row| canary(row).ok()).collect())
}

async fn rows<T>(conn: &mut SqliteConnection, sql: &'static str) -> Result<Vec<T>, StoreFault>
where
    T: for<'r> sqlx::FromRow<'r, SqliteRow> + Send + Unpin,
{
    sqlx::query_as::<_, T>(sql).fetch_all(conn).await.map_err(|e| of_sql(&e))
}

/// `Err` names the damaged canary, if at least its name can be read.
fn canary(row: &SqliteRow) -> Result<CanaryRow, Option<(KeyId, KeyVersion)>> {
    let key: String = row.try_get(0).map_err(|_| None)?;
    let version: String = row.try_get(1).map_err(|_| None)?;
    let id = KeyId::new(&key).map_err(|_| None)?;
    let damaged = || Some((id.clone(), KeyVersion::new(&version)));
    let read = || -> Result<CanaryRow, sqlx::Error> {
        let (wrapped, digest): (Vec<u8>, Vec<u8>) = (row.try_get(2)?, row.try_get(3)?);
        let (wrapped_version, sealed_with): (Text, String) = (row.try_get(4)?, row.try_get(5)?);
        let (identity, created_at, checksum): (Text, String, String) = (row.try_get(6)?, row.try_get(7)?, row.try_get(8)?);
        let text = CanaryText {
            key: &key,
            version: &version,
            wrapped: &wrapped,
            digest: &digest,
            wrapped_version: wrapped_version.as_deref(),
            sealed_with: &sealed_with,
            identity: identity.as_deref(),
            created_at: &created_at,
        };
        if canary_checksum(&text) != checksum {
            return Err(sqlx::Error::RowNotFound);
        }
        let at = created_at.parse::<Wall>().map_err(|_| sqlx::Error::RowNotFound)?;
        let digest = <[u8; 32]>::try_from(digest).map_err(|_| sqlx::Error::RowNotFound)?;
        let version_of = wrapped_version.as_deref().map(KeyVersion::new);
        Ok(CanaryRow {
            key: id.clone(),
            version: KeyVersion::new(&version),
            wrapped: Wrapped { bytes: wrapped.into(), digest, version: version_of, sealed_with: sealed_with.into() },
            identity,
            created_at: at,
        })
    };
    read().map_err(|_| damaged())
}

/// An order whose words are unknown stays a lock; one whose workspace is unreadable cannot be kept
/// by going on, so it is a fault.
fn order(row: &SqliteRow) -> Result<Order, StoreFault> {
    let text = |at: usize| row.try_get::<Text, _>(at).map_err(|e| of_sql(&e));
    let need = |at: usize| text(at).map(Option::unwrap_or_default);
    let name = need(0)?;
    let workspace = WorkspaceId::new(&name).map_err(|e| StoreFault::Corrupt(format!("an order names {e}")))?;
    let named = |e: crate::key::BadName| StoreFault::Corrupt(format!("the order of workspace {name} names {e}"));
    let key = match (text(2)?, text(3)?, text(4)?) {
        (Some(id), Some(provider), Some(reference)) => Some(OrderKey {
            id: KeyId::new(&id).map_err(named)?,
            provider: ProviderId::new(&provider).map_err(named)?,
            reference: reference.into(),
        }),
        _ => None,
    };
    let by = if key.is_some() { By::Automatic } else { By::Manual };
    Ok(Order {
        workspace,
        by: need(1)?.parse().unwrap_or(by),
        key,
        access: need(5)?.parse().unwrap_or(Access::Locked),
        cause: need(6)?.parse().unwrap_or(Cause::Kind(FailureKind::Unclassified)),
        sequence: Sequence(small(row.try_get(7).map_err(|e| of_sql(&e))?)),
        since: need(8)?.parse().unwrap_or_default(),
        reason: text(9)?,
        actor: text(10)?,
        expires_at: text(11)?.and_then(|at| at.parse().ok()),
        message: text(12)?,
        release: text(13)?.map(|word| word.parse().unwrap_or(Release::Pending)),
        orphaned: row.try_get(14).map_err(|e| of_sql(&e))?,
    })
}

fn queued(row: &SqliteRow) -> Result<OutboxRow, String> {
    let text = |at: usize| row.try_get::<String, _>(at).map_err(|e| e.to_string());
    let number = |at: usize| row.try_get::<i64, _>(at).map_err(|e| e.to_string());
    // The words of the error are kept out: a parser may quote what it read.
    let notice: Notice = serde_json::from_str(&text(3)?).map_err(|e| format!("its body is unreadable at column {}", e.column()))?;
    let state = text(5)?;
    Ok(OutboxRow {
        id: NoticeId(text(0)?.into()),
        receiver: ReceiverId::new(&text(1)?).map_err(|e| e.to_string())?,
        position: small(number(2)?),
        notice: Arc::new(notice),
        created_at: text(4)?.parse::<Wall>().map_err(|e| e.to_string())?,
        state: serde_json::from_value::<OutboxState>(state.into()).map_err(|e| e.to_string())?,
        attempts: u32::try_from(number(6)?).unwrap_or(u32::MAX),
        next_at: text(7)?.parse::<Wall>().map_err(|e| e.to_string())?,
        last_error: row.try_get(8).map_err(|e| e.to_string())?,
    })
}

macro_rules! journal_sql {
    ($filter:literal) => {
        concat!(
            "SELECT sequence, at, type, key, workspace, version, actor, event_id, correlation_id, detail, hash FROM journal WHERE sequence > ?1",
            $filter,
            " ORDER BY sequence LIMIT ?2"
        )
    };
}

/// The journal in its stored form, for checking and for export.
pub(super) const JOURNAL_PAGE: &str = journal_sql!("");

/// At most 1,000 records; a limit of 0 means 1,000.
pub(super) async fn journal(pool: &sqlx::SqlitePool, query: &JournalQuery) -> Result<Vec<StoredRecord>, StoreFault> {
    let (sql, key, workspace) = match (&query.key, &query.workspace) {
        (None, None) => (JOURNAL_PAGE, None, None),
        (Some(key), None) => (journal_sql!(" AND key = ?3"), Some(key.as_str()), None),
        (None, Some(workspace)) => (journal_sql!(" AND workspace = ?3"), Some(workspace.as_str()), None),
        (Some(key), Some(workspace)) => (journal_sql!(" AND key = ?3 AND workspace = ?4"), Some(key.as_str()), Some(workspace.as_str())),
    };
    let limit = if query.limit == 0 { 1000 } else { query.limit.min(1000) };
    let mut statement = sqlx::query(sql).bind(large(query.after.min(u64::MAX >> 1))?).bind(limit);
    for filter in [key, workspace].into_iter().flatten() {
        statement = statement.bind(filter);
    }
    statement.fetch_all(pool).await.map_err(|e| of_sql(&e))?.iter().map(stored).collect()
}

/// A record as it is shown. One that this program cannot read is shown as store damage with its own
/// words beside it: an altered row must neither hide nor stop the reading of the others.
fn stored(row: &SqliteRow) -> Result<StoredRecord, StoreFault> {
    let text = |at: usize| row.try_get::<Text, _>(at).ok().flatten();
    let mut unread = BTreeMap::new();
    let mut note = |column: &str, found: Option<&String>| {
        unread.insert(format!("unreadable_{column}"), found.cloned().unwrap_or_default());
    };
    let (at_text, type_text, detail_text) = (text(1), text(2), text(9));
    let at = at_text.as_deref().and_then(|t| t.parse().ok()).unwrap_or_else(|| {
        note("at", at_text.as_ref());
        Wall(0)
    });
    let mut event = type_text.as_deref().and_then(|t| t.parse().ok()).unwrap_or_else(|| {
        note("type", type_text.as_ref());
        EventType::StoreDamage
    });
    let mut detail: BTreeMap<String, String> = detail_text.as_deref().and_then(|t| serde_json::from_str(t).ok()).unwrap_or_else(|| {
        note("detail", detail_text.as_ref());
        BTreeMap::new()
    });
    let key = text(3).and_then(|t| KeyId::new(&t).map_err(|_| note("key", Some(&t))).ok());
    let workspace = text(4).and_then(|t| WorkspaceId::new(&t).map_err(|_| note("workspace", Some(&t))).ok());
    if !unread.is_empty() {
        event = EventType::StoreDamage;
        detail.append(&mut unread);
    }
    Ok(StoredRecord {
        sequence: small(row.try_get(0).map_err(|e| of_sql(&e))?),
        record: Record {
            at,
            event,
            key,
            workspace,
            version: text(5).as_deref().map(KeyVersion::new),
            actor: text(6),
            event_id: text(7),
            correlation_id: text(8),
            detail,
        },
        hash: text(10).unwrap_or_default(),
    })
}
