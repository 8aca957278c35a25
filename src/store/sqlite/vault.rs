//! outside
//! The vault's rows in the embedded store: wrapped data keys, sealed records, sealed preservations. It
//! moves bytes and compares revisions; it never sees a data key or a plaintext.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::fault::of_sql;
use super::read::small;
use super::write::{begin, end, large};
use super::{SqliteStore, give_back};
use crate::journal::StoreFault;
use crate::key::{KeyVersion, ProviderId, WorkspaceId};
use crate::kms::{BoxFuture, Wrapped};
use crate::time::Wall;
use crate::vault::envelope::{Kind, Place};
use crate::vault::preservation::ReasonCode;
use crate::vault::wraps::{DataKeyId, DataKeyRow, KeyRole, VaultKeyName, Wrap};
use crate::vault::{Counts, PreservationRow, Put, Records, SealedRow};

/// One wrapped form as it stands in the column `wraps`, a JSON list (docs/VAULT.md).
#[derive(Serialize, Deserialize)]
struct WrapText {
    role: KeyRole,
    provider: ProviderId,
    key: Arc<str>,
    version: Option<KeyVersion>,
    sealed_with: Arc<str>,
    /// SHA-256 of the data key, hex.
    digest: String,
    wrapped_at: Wall,
    /// Base64.
    bytes: String,
}

fn to_text(wraps: &[Wrap]) -> Result<String, StoreFault> {
    let rows: Vec<WrapText> = wraps
        .iter()
        .map(|wrap| WrapText {
            role: wrap.role,
            provider: wrap.name.provider.clone(),
            key: Arc::clone(&wrap.name.reference),
            version: wrap.wrapped.version.clone(),
            sealed_with: Arc::clone(&wrap.wrapped.sealed_with),
            digest: super::bytes::hex(&wrap.wrapped.digest),
            wrapped_at: wrap.wrapped_at,
            bytes: STANDARD.encode(&wrap.wrapped.bytes),
        })
        .collect();
    serde_json::to_string(&rows).map_err(|e| StoreFault::Unavailable(format!("wrapped data keys cannot be written as json: {e}")))
}

fn from_text(text: &str) -> Option<Vec<Wrap>> {
    let rows: Vec<WrapText> = serde_json::from_str(text).ok()?;
    rows.into_iter()
        .map(|row| {
            let digest = super::bytes::unhex(&row.digest)?.try_into().ok()?;
            let bytes = STANDARD.decode(&row.bytes).ok()?.into();
            let wrapped = Wrapped { bytes, digest, version: row.version, sealed_with: row.sealed_with };
            let name = VaultKeyName { provider: row.provider, reference: row.key };
            Some(Wrap { role: row.role, name, wrapped, wrapped_at: row.wrapped_at })
        })
        .collect()
}

const RECORD: &str = "SELECT workspace, id, schema, revision, written_at, data_key, envelope FROM vault_records
  WHERE workspace = ?1 AND id = ?2 LIMIT ?3";
const RECORDS: &str = "SELECT workspace, id, schema, revision, written_at, data_key, envelope FROM vault_records
  WHERE workspace = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
const PRESERVATION: &str = "SELECT workspace, id, schema, revision, written_at, data_key, envelope, reason, person, journaled
  FROM vault_preservations WHERE workspace = ?1 AND id = ?2 LIMIT ?3";
const PRESERVATIONS: &str = "SELECT workspace, id, schema, revision, written_at, data_key, envelope, reason, person, journaled
  FROM vault_preservations WHERE workspace = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
const UNJOURNALED: &str = "SELECT workspace, id, schema, revision, written_at, data_key, envelope, reason, person, journaled
  FROM vault_preservations WHERE journaled = 0 AND ?1 = '' AND ?2 = '' ORDER BY id LIMIT ?3";

fn sealed(row: &SqliteRow, kind: Kind) -> Result<SealedRow, StoreFault> {
    let text = |at: usize| row.try_get::<String, _>(at).map_err(|e| of_sql(&e));
    let number = |at: usize| row.try_get::<i64, _>(at).map_err(|e| of_sql(&e));
    let workspace = WorkspaceId::new(&text(0)?).map_err(|e| StoreFault::Corrupt(e.to_string()))?;
    let place = Place {
        kind,
        workspace,
        id: text(1)?.into(),
        schema: u32::try_from(number(2)?).unwrap_or(0),
        revision: small(number(3)?),
        written_at: Wall(number(4)?),
        data_key: DataKeyId(text(5)?.into()),
    };
    Ok(SealedRow { place, envelope: row.try_get(6).map_err(|e| of_sql(&e))? })
}

fn preservation(row: &SqliteRow) -> Result<PreservationRow, StoreFault> {
    let text = |at: usize| row.try_get::<String, _>(at).map_err(|e| of_sql(&e));
    let word = text(7)?;
    let reason = ReasonCode::ALL.iter().copied().find(|code| code.as_str() == word);
    let reason =
        reason.ok_or_else(|| StoreFault::Corrupt(format!("preservation {} has an unknown reason", text(1).unwrap_or_default())))?;
    let journaled = row.try_get::<i64, _>(9).map_err(|e| of_sql(&e))? != 0;
    Ok(PreservationRow { sealed: sealed(row, Kind::Preservation)?, reason, person: text(8)?.into(), journaled })
}

/// Counts the use of a data key; `false` if there is none of that id.
async fn used(conn: &mut SqliteConnection, id: &DataKeyId) -> Result<bool, StoreFault> {
    let sql = "UPDATE vault_data_keys SET uses = uses + 1 WHERE id = ?1";
    let done = sqlx::query(sql).bind(id.as_str()).execute(conn).await.map_err(|e| of_sql(&e))?;
    Ok(done.rows_affected() == 1)
}

async fn put_record(conn: &mut SqliteConnection, row: &SealedRow) -> Result<Put, StoreFault> {
    let Place { workspace, id, schema, revision, written_at, data_key, .. } = &row.place;
    let sql = if *revision <= 1 {
        "INSERT INTO vault_records (workspace, id, schema, revision, written_at, data_key, envelope) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
           ON CONFLICT DO NOTHING"
    } else {
        "UPDATE vault_records SET schema = ?3, revision = ?4, written_at = ?5, data_key = ?6, envelope = ?7
           WHERE workspace = ?1 AND id = ?2 AND revision = ?4 - 1"
    };
    let query = sqlx::query(sql).bind(workspace.as_str()).bind(&**id).bind(i64::from(*schema)).bind(large(*revision)?);
    let query = query.bind(written_at.0).bind(data_key.as_str()).bind(&row.envelope);
    let done = query.execute(&mut *conn).await.map_err(|e| of_sql(&e))?;
    if done.rows_affected() == 0 {
        return Ok(Put::Conflict);
    }
    Ok(if used(conn, data_key).await? { Put::Done } else { Put::NoDataKey })
}

async fn put_preservation(conn: &mut SqliteConnection, row: &PreservationRow) -> Result<Put, StoreFault> {
    let Place { workspace, id, schema, revision, written_at, data_key, .. } = &row.sealed.place;
    let sql = "INSERT INTO vault_preservations
      (workspace, id, schema, revision, written_at, data_key, envelope, reason, person, journaled)
      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING";
    let query = sqlx::query(sql).bind(workspace.as_str()).bind(&**id).bind(i64::from(*schema)).bind(large(*revision)?);
    let query = query.bind(written_at.0).bind(data_key.as_str()).bind(&row.sealed.envelope);
    let query = query.bind(row.reason.as_str()).bind(&*row.person).bind(i64::from(row.journaled));
    let done = query.execute(&mut *conn).await.map_err(|e| of_sql(&e))?;
    if done.rows_affected() == 0 {
        return Ok(Put::Conflict);
    }
    Ok(if used(conn, data_key).await? { Put::Done } else { Put::NoDataKey })
}

/// What is written in one transaction.
enum Change<'a> {
    AddKey(&'a DataKeyRow),
    Rewrap(&'a DataKeyId, &'a [Wrap]),
    Record(&'a SealedRow),
    Preservation(&'a PreservationRow),
    Journaled(&'a str),
}

async fn change(conn: &mut SqliteConnection, change: &Change<'_>) -> Result<Put, StoreFault> {
    match change {
        Change::Record(row) => return put_record(conn, row).await,
        Change::Preservation(row) => return put_preservation(conn, row).await,
        Change::AddKey(row) => {
            let sql = "INSERT INTO vault_data_keys (id, made_at, uses, wraps) VALUES (?1, ?2, ?3, ?4)";
            let query = sqlx::query(sql).bind(row.id.as_str()).bind(row.made_at.to_string()).bind(large(row.uses)?);
            query.bind(to_text(&row.wraps)?).execute(conn).await
        }
        Change::Rewrap(id, wraps) => {
            let sql = "UPDATE vault_data_keys SET wraps = ?2 WHERE id = ?1";
            sqlx::query(sql).bind(id.as_str()).bind(to_text(wraps)?).execute(conn).await
        }
        Change::Journaled(id) => sqlx::query("UPDATE vault_preservations SET journaled = 1 WHERE id = ?1").bind(*id).execute(conn).await,
    }
    .map(|_| Put::Done)
    .map_err(|e| of_sql(&e))
}

impl SqliteStore {
    async fn change(&self, what: Change<'_>) -> Result<Put, StoreFault> {
        let mut writer = self.writer.lock().await;
        let mut conn = self.take(&mut writer).await?;
        let outcome = async {
            begin(&mut conn).await?;
            let put = change(&mut conn, &what).await?;
            // Anything but done leaves no trace.
            match put {
                Put::Done => end(&mut conn).await?,
                Put::Conflict | Put::NoDataKey => {
                    sqlx::query("ROLLBACK").execute(&mut conn).await.map_err(|e| of_sql(&e))?;
                }
            }
            Ok(put)
        }
        .await;
        give_back(&mut writer, conn, outcome).await
    }

    async fn sealed_rows(&self, sql: &'static str, workspace: &str, id: &str, limit: usize) -> Result<Vec<SqliteRow>, StoreFault> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        sqlx::query(sql).bind(workspace).bind(id).bind(limit).fetch_all(&self.readers).await.map_err(|e| of_sql(&e))
    }

    async fn read_data_keys(&self) -> Result<Vec<DataKeyRow>, StoreFault> {
        let sql = "SELECT id, made_at, uses, wraps FROM vault_data_keys ORDER BY id";
        let rows = sqlx::query_as::<_, (String, String, i64, String)>(sql).fetch_all(&self.readers).await.map_err(|e| of_sql(&e))?;
        let mut out = Vec::with_capacity(rows.len());
        for (id, made_at, uses, wraps) in rows {
            match (made_at.parse::<Wall>(), from_text(&wraps)) {
                (Ok(made_at), Some(wraps)) => out.push(DataKeyRow { id: DataKeyId(id.into()), made_at, uses: small(uses), wraps }),
                (Ok(_) | Err(_), _) => tracing::error!(id, "a wrapped data key of the vault is damaged; what it sealed does not open"),
            }
        }
        Ok(out)
    }

    async fn read_counts(&self) -> Result<BTreeMap<WorkspaceId, Counts>, StoreFault> {
        let mut out: BTreeMap<WorkspaceId, Counts> = BTreeMap::new();
        for (sql, records) in [
            ("SELECT workspace, count(*) FROM vault_records GROUP BY workspace", true),
            ("SELECT workspace, count(*) FROM vault_preservations GROUP BY workspace", false),
        ] {
            for (workspace, count) in sqlx::query_as::<_, (String, i64)>(sql).fetch_all(&self.readers).await.map_err(|e| of_sql(&e))? {
                let Ok(workspace) = WorkspaceId::new(&workspace) else { continue };
                let counts = out.entry(workspace).or_default();
                *(if records { &mut counts.records } else { &mut counts.preservations }) = small(count);
            }
        }
        Ok(out)
    }
}

impl Records for SqliteStore {
    fn data_keys(&self) -> BoxFuture<'_, Result<Vec<DataKeyRow>, StoreFault>> {
        Box::pin(self.read_data_keys())
    }
    fn add_data_key<'a>(&'a self, row: &'a DataKeyRow) -> BoxFuture<'a, Result<(), StoreFault>> {
        Box::pin(async move { self.change(Change::AddKey(row)).await.map(|_| ()) })
    }
    fn rewrap<'a>(&'a self, id: &'a DataKeyId, wraps: &'a [Wrap]) -> BoxFuture<'a, Result<(), StoreFault>> {
        Box::pin(async move { self.change(Change::Rewrap(id, wraps)).await.map(|_| ()) })
    }
    fn put<'a>(&'a self, row: &'a SealedRow) -> BoxFuture<'a, Result<Put, StoreFault>> {
        Box::pin(self.change(Change::Record(row)))
    }
    fn record<'a>(&'a self, workspace: &'a WorkspaceId, id: &'a str) -> BoxFuture<'a, Result<Option<SealedRow>, StoreFault>> {
        Box::pin(async move {
            let rows = self.sealed_rows(RECORD, workspace.as_str(), id, 1).await?;
            rows.first().map(|row| sealed(row, Kind::Record)).transpose()
        })
    }
    fn records<'a>(
        &'a self,
        workspace: &'a WorkspaceId,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<SealedRow>, StoreFault>> {
        Box::pin(async move {
            let rows = self.sealed_rows(RECORDS, workspace.as_str(), after, limit).await?;
            rows.iter().map(|row| sealed(row, Kind::Record)).collect()
        })
    }
    fn preserve<'a>(&'a self, row: &'a PreservationRow) -> BoxFuture<'a, Result<Put, StoreFault>> {
        Box::pin(self.change(Change::Preservation(row)))
    }
    fn preservation<'a>(&'a self, workspace: &'a WorkspaceId, id: &'a str) -> BoxFuture<'a, Result<Option<PreservationRow>, StoreFault>> {
        Box::pin(async move {
            let rows = self.sealed_rows(PRESERVATION, workspace.as_str(), id, 1).await?;
            rows.first().map(preservation).transpose()
        })
    }
    fn preservations<'a>(
        &'a self,
        workspace: &'a WorkspaceId,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<PreservationRow>, StoreFault>> {
        Box::pin(async move {
            let rows = self.sealed_rows(PRESERVATIONS, workspace.as_str(), after, limit).await?;
            rows.iter().map(preservation).collect()
        })
    }
    fn unjournaled(&self, limit: usize) -> BoxFuture<'_, Result<Vec<PreservationRow>, StoreFault>> {
        Box::pin(async move {
            let rows = self.sealed_rows(UNJOURNALED, "", "", limit).await?;
            rows.iter().map(preservation).collect()
        })
    }
    fn journaled<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), StoreFault>> {
        Box::pin(async move { self.change(Change::Journaled(id)).await.map(|_| ()) })
    }
    fn counts(&self) -> BoxFuture<'_, Result<BTreeMap<WorkspaceId, Counts>, StoreFault>> {
        Box::pin(self.read_counts())
    }
}
