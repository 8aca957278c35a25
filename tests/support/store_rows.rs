//! Rows for tests of the store, and a raw hand in the database.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cmek_watchdog::journal::{Batch, CanaryRow, Commit, KeyRow, Order, OrderKey, OrderSlot, OrderWrite, Record, Shard};
use cmek_watchdog::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use cmek_watchdog::kms::Wrapped;
use cmek_watchdog::notify::{Notice, NoticeId, OutboxRow, OutboxState};
use cmek_watchdog::store::sqlite::{Opened, Options, SqliteStore, Start};
use cmek_watchdog::time::Wall;
use cmek_watchdog::words::{Access, By, Cause, EventType, FailureKind, Release, Sequence, Severity};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

pub const AT: Wall = Wall(1_764_056_760_123);

pub fn key(name: &str) -> KeyId {
    KeyId::new(name).unwrap()
}

pub fn key_row(name: &str, state: Option<&str>) -> KeyRow {
    KeyRow { key: key(name), shard: Shard(0), state: state.map(Arc::from) }
}

pub fn canary(name: &str, version: &str) -> CanaryRow {
    CanaryRow {
        key: key(name),
        version: KeyVersion::new(version),
        wrapped: Wrapped {
            bytes: Arc::from([0u8, 1, 2, 254, 255]),
            digest: [7; 32],
            version: Some(KeyVersion::new(version)),
            sealed_with: r#"{"purpose":"cmek"}"#.into(),
        },
        identity: Some("arn:aws:sts::1:assumed-role/x".to_owned()),
        created_at: AT,
    }
}

pub fn order(workspace: &str, sequence: u64) -> Order {
    Order {
        workspace: WorkspaceId::new(workspace).unwrap(),
        by: By::Automatic,
        key: Some(OrderKey { id: key("k"), provider: ProviderId::new("aws-prod").unwrap(), reference: "arn:aws:kms:x key".into() }),
        access: Access::ReadOnly,
        cause: Cause::Kind(FailureKind::AccessDenied),
        sequence: Sequence(sequence),
        since: AT,
        reason: Some("a reason".to_owned()),
        actor: Some("uid:root".to_owned()),
        expires_at: Some(Wall(AT.0 + 5)),
        message: Some("key k is denied".to_owned()),
        release: Some(Release::Pending),
        orphaned: true,
    }
}

pub fn manual(workspace: &str, sequence: u64) -> Order {
    Order {
        by: By::Manual,
        key: None,
        cause: Cause::Manual,
        access: Access::Locked,
        reason: None,
        actor: None,
        expires_at: None,
        message: None,
        release: None,
        orphaned: false,
        ..order(workspace, sequence)
    }
}

pub fn lift(slot: OrderSlot, sequence: u64) -> OrderWrite {
    OrderWrite::Lift { slot, sequence: Sequence(sequence) }
}

pub fn record(event_id: &str) -> Record {
    Record {
        at: AT,
        event: EventType::KeyRevoked,
        key: Some(key("k")),
        workspace: Some(WorkspaceId::new("w").unwrap()),
        version: Some(KeyVersion::new("v1")),
        actor: Some("system".to_owned()),
        event_id: Some(event_id.to_owned()),
        correlation_id: Some("c".to_owned()),
        detail: BTreeMap::from([("cause".to_owned(), "disabled \"x\" é \u{1f512}".to_owned()), ("empty".to_owned(), String::new())]),
    }
}

pub fn bare_record(event: EventType) -> Record {
    Record {
        at: AT,
        event,
        key: None,
        workspace: None,
        version: None,
        actor: None,
        event_id: None,
        correlation_id: None,
        detail: BTreeMap::new(),
    }
}

pub fn outbox(id: &str, position: u64, state: OutboxState) -> OutboxRow {
    let notice = Notice {
        id: NoticeId(id.into()),
        event: EventType::WorkspaceLocked,
        severity: Severity::Critical,
        timestamp: AT,
        sequence: Sequence(9),
        key: Some(key("k")),
        key_ref: None,
        provider: None,
        owner: Some("it@acme.example".to_owned()),
        workspaces: vec![WorkspaceId::new("w").unwrap()],
        access: Some(Access::Locked),
        previous_access: Some(Access::Open),
        cause: Some(Cause::Kind(FailureKind::Disabled)),
        code: None,
        message: "locked\nnow".to_owned(),
        version: None,
        actor: None,
        since: Some(AT),
        evidence: Vec::new(),
        locked_features: vec!["chat".to_owned()],
        readable_features: Vec::new(),
        next_step: None,
        terminal: false,
        recoverable_until: None,
        drill: false,
        acknowledged_by: None,
        storm: None,
    };
    OutboxRow {
        id: NoticeId(id.into()),
        receiver: ReceiverId::new("sre-mail").unwrap(),
        position,
        notice: Arc::new(notice),
        created_at: AT,
        state,
        attempts: 3,
        next_at: Wall(AT.0 + 1000),
        last_error: Some("451 later".to_owned()),
    }
}

pub fn records(batch: u64, names: &[&str]) -> Commit {
    Commit { batch: Batch(batch), records: names.iter().map(|name| record(name)).collect(), ..Commit::default() }
}

pub async fn open(path: &Path) -> Arc<SqliteStore> {
    match SqliteStore::open(path, Options::default()).await.unwrap() {
        Opened::Ready { store, start } => {
            assert_ne!(start, Start::AfterLoss);
            store
        }
        other => panic!("not ready: {other:?}"),
    }
}

/// Runs statements on the database behind the store's back.
pub async fn tamper(path: &Path, sql: &str) {
    let mut conn = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

pub async fn ask(path: &Path, sql: &str) -> String {
    let mut conn = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let text = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    text
}
