//! The embedded store as the core sees it: round trips, retries, compare and set.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/faulty_store.rs"]
mod faulty_store;
#[path = "support/store_rows.rs"]
mod rows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cmek_watchdog::journal::{Batch, Commit, Committed, JournalQuery, OrderWrite, Store, StoreFault};
use cmek_watchdog::key::{KeyVersion, WorkspaceId};
use cmek_watchdog::notify::OutboxState;
use cmek_watchdog::store::sqlite::{SqliteStore, Verified, verify};
use cmek_watchdog::words::{Access, Cause, EventType, FailureKind};
use faulty_store::{FaultyStore, Misbehave};
use rows::*;

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    (dir, path)
}

fn meta(pairs: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect()
}

#[tokio::test]
async fn everything_of_a_commit_comes_back_after_a_restart() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let mut bare = canary("k", "v2");
    (bare.identity, bare.wrapped.version) = (None, None);
    let commit = Commit {
        batch: Batch(1),
        orders: vec![OrderWrite::Lower(order("w:1", 10)), OrderWrite::Lower(manual("w:1", 11)), OrderWrite::Lower(order("w:2", 12))],
        keys: vec![key_row("k", Some(r#"{"state":"revoked","x":"\u0000 é"}"#)), key_row("l", Some("123"))],
        canaries: vec![canary("k", "v1"), bare.clone()],
        canaries_dropped: Vec::new(),
        records: vec![record("e1"), bare_record(EventType::DaemonStarted)],
        outbox: vec![
            outbox("n1", 1, OutboxState::Pending),
            outbox("n2", 2, OutboxState::InFlight),
            outbox("n3", 3, OutboxState::Dead),
            outbox("n4", 4, OutboxState::Done),
            outbox("n5", 5, OutboxState::Folded),
        ],
        meta: meta(&[("brake", Some("{}")), ("gone", None)]),
    };
    assert_eq!(store.commit(&commit).await.unwrap(), Committed { refused: vec![], sequences: vec![1, 2] });
    store.close().await;
    drop(store);

    let store = open(&path).await;
    let restored = store.load().await.unwrap();
    assert_eq!(restored.keys, [(key("k"), commit.keys[0].state.clone().unwrap()), (key("l"), "123".into())]);
    assert_eq!(restored.canaries, commit.canaries);
    assert!(restored.damaged.is_empty() && store.unreadable_rows() == 0);
    assert_eq!(restored.orders, [order("w:1", 10), manual("w:1", 11), order("w:2", 12)]);
    assert_eq!(restored.outbox, commit.outbox[..3]);
    assert_eq!(restored.meta, BTreeMap::from([("brake".to_owned(), "{}".to_owned())]));
    assert_eq!(restored.head, 2);
    let journal = store.journal(&JournalQuery::default()).await.unwrap();
    assert_eq!(journal.iter().map(|r| r.record.clone()).collect::<Vec<_>>(), commit.records);
    assert_eq!(journal.iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn rows_are_replaced_and_deleted_and_the_last_word_on_a_key_stands() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let mut first = Commit { batch: Batch(1), ..Commit::default() };
    first.keys = vec![key_row("a", Some("1")), key_row("b", Some("1")), key_row("b", None), key_row("c", None), key_row("c", Some("2"))];
    first.canaries = vec![canary("a", "v1"), canary("a", "v2")];
    first.outbox = vec![outbox("n", 1, OutboxState::Pending)];
    first.meta = meta(&[("x", Some("1")), ("y", Some("1"))]);
    store.commit(&first).await.unwrap();
    let mut second = Commit { batch: Batch(2), ..Commit::default() };
    second.keys = vec![key_row("a", Some("2"))];
    second.canaries = vec![canary("a", "v2")];
    second.canaries[0].wrapped.digest = [9; 32];
    second.canaries_dropped = vec![(key("a"), KeyVersion::new("v1")), (key("a"), KeyVersion::new("v2"))];
    let mut moved = outbox("n", 7, OutboxState::InFlight);
    moved.attempts = 4;
    second.outbox = vec![moved.clone()];
    second.meta = meta(&[("x", None), ("y", Some("2"))]);
    store.commit(&second).await.unwrap();
    let restored = store.load().await.unwrap();
    assert_eq!(restored.keys, [(key("a"), "2".into()), (key("c"), "2".into())]);
    assert_eq!(restored.canaries, second.canaries);
    assert_eq!(restored.outbox, [moved]);
    assert_eq!(restored.meta, BTreeMap::from([("y".to_owned(), "2".to_owned())]));
}

#[tokio::test]
async fn more_rows_than_one_statement_takes_all_arrive() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let names: Vec<String> = (0..2500).map(|n| format!("k{n:05}")).collect();
    let commit = Commit {
        batch: Batch(1),
        keys: names.iter().map(|name| key_row(name, Some("{}"))).collect(),
        orders: names.iter().map(|name| OrderWrite::Lower(order(name, 5))).collect(),
        records: names.iter().map(|name| record(name)).collect(),
        ..Commit::default()
    };
    assert_eq!(store.commit(&commit).await.unwrap().sequences, (1..=2500).collect::<Vec<u64>>());
    let lifts = Commit {
        batch: Batch(2),
        orders: names.iter().enumerate().map(|(n, name)| lift(order(name, 5).slot(), if n == 2000 { 4 } else { 5 })).collect(),
        ..Commit::default()
    };
    assert_eq!(store.commit(&lifts).await.unwrap().refused, [order("k02000", 5).slot()]);
    let restored = store.load().await.unwrap();
    assert_eq!((restored.keys.len(), restored.orders.len(), restored.head), (2500, 1, 2500));
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 2500, .. }));
}

#[tokio::test]
async fn a_lift_needs_the_very_lock_that_it_names() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let slot = order("w", 0).slot();
    let one = |batch, orders| Commit { batch: Batch(batch), orders, ..Commit::default() };
    store.commit(&one(1, vec![OrderWrite::Lower(order("w", 10)), OrderWrite::Lower(manual("w", 11))])).await.unwrap();
    for (batch, named) in [(2, 9), (3, 11)] {
        assert_eq!(store.commit(&one(batch, vec![lift(slot.clone(), named)])).await.unwrap().refused, std::slice::from_ref(&slot));
    }
    assert_eq!(store.load().await.unwrap().orders.len(), 2);
    assert_eq!(store.commit(&one(4, vec![lift(slot.clone(), 10)])).await.unwrap().refused, []);
    assert_eq!(store.load().await.unwrap().orders, [manual("w", 11)]);
    assert_eq!(store.commit(&one(5, vec![lift(slot.clone(), 10)])).await.unwrap().refused, [], "an absent row counts as done");
    // Within one commit the order of the writes stands.
    let writes = vec![OrderWrite::Lower(order("w", 20)), lift(slot.clone(), 20), OrderWrite::Lower(order("w", 21)), lift(slot.clone(), 20)];
    assert_eq!(store.commit(&one(6, writes)).await.unwrap().refused, [slot]);
    assert_eq!(store.load().await.unwrap().orders, [order("w", 21), manual("w", 11)]);
    // An older lock, folded in late, does not displace a newer one.
    store.commit(&one(7, vec![OrderWrite::Lower(order("w", 15))])).await.unwrap();
    assert_eq!(store.load().await.unwrap().orders[0], order("w", 21));
}

#[tokio::test]
async fn a_retry_after_an_unknown_outcome_is_applied_once_and_answers_the_same() {
    let (_dir, path) = place();
    let inner = open(&path).await;
    let store = FaultyStore::new(inner.clone());
    let slot = order("w", 0).slot();
    let mut commit = records(1, &["a", "b"]);
    commit.orders = vec![OrderWrite::Lower(order("w", 5)), lift(slot.clone(), 4)];
    let lost = StoreFault::Unavailable("lost".to_owned());
    store.plan([Misbehave::Torn(lost.clone()), Misbehave::Refuse(lost.clone())]);
    assert_eq!(store.commit(&commit).await, Err(lost.clone()));
    assert_eq!(store.commit(&commit).await, Err(lost));
    let expected = Committed { refused: vec![slot], sequences: vec![1, 2] };
    assert_eq!(store.commit(&commit).await.unwrap(), expected);
    assert_eq!(store.seen().len(), 3);
    assert_eq!(inner.journal(&JournalQuery::default()).await.unwrap().len(), 2);

    let other = records(1, &["c"]);
    let error = inner.commit(&other).await.unwrap_err();
    assert_eq!(error, StoreFault::Unavailable("batch 1 was stored before with other content".to_owned()));
    drop((store, inner));
    // Another run counts from the start again.
    assert_eq!(open(&path).await.commit(&other).await.unwrap().sequences, [3]);
}

#[tokio::test]
async fn the_decorator_can_be_late_and_can_hang() {
    let (_dir, path) = place();
    let inner = open(&path).await;
    let store = FaultyStore::new(inner.clone());
    store.plan([Misbehave::Late(Duration::from_millis(20)), Misbehave::Hang]);
    let (commit, begun) = (records(1, &["a"]), Instant::now());
    assert_eq!(store.commit(&commit).await.unwrap().sequences, [1]);
    assert!(begun.elapsed() >= Duration::from_millis(20));
    let hung = tokio::time::timeout(Duration::from_millis(5), store.commit(&records(2, &["b"]))).await;
    assert!(hung.is_err() && store.load().await.unwrap().head == 1);
    assert_eq!(store.journal(&JournalQuery::default()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_commit_dropped_half_way_leaves_all_or_nothing_and_no_open_transaction() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut dropped = 0;
    for batch in 1..60u64 {
        let commit = records(batch, &names);
        let limit = Duration::from_micros(batch * 100);
        if tokio::time::timeout(limit, store.commit(&commit)).await.is_err() {
            dropped += 1;
            assert_eq!(store.commit(&commit).await.unwrap().sequences.len(), 300);
        }
        assert_eq!(store.load().await.unwrap().head, batch * 300, "batch {batch}");
    }
    assert!(dropped > 0);
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 17_700, .. }));
}

#[tokio::test]
async fn a_text_with_nul_is_stored_whole_and_stays_verifiable() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let mut commit = records(1, &["a"]);
    commit.records[0].actor = Some("be\0fore".to_owned());
    commit.records[0].detail.insert("message".to_owned(), "x\0y".to_owned());
    commit.meta = meta(&[("m", Some("1\u{0}2"))]);
    store.commit(&commit).await.unwrap();
    let stored = store.journal(&JournalQuery::default()).await.unwrap().remove(0).record;
    assert_eq!(stored.actor.as_deref(), Some("be\u{fffd}fore"));
    assert_eq!(stored.detail["message"], "x\0y");
    assert_eq!(store.load().await.unwrap().meta["m"], "1\u{fffd}2");
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { .. }));
}

#[tokio::test]
async fn the_journal_is_read_by_place_key_and_workspace() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let mut commit = records(1, &["a", "b", "c", "d"]);
    commit.records[1].key = Some(key("other"));
    commit.records[2].workspace = Some(WorkspaceId::new("else").unwrap());
    commit.records[3].key = None;
    store.commit(&commit).await.unwrap();
    let ask = |after, limit, key: Option<&str>, workspace: Option<&str>| JournalQuery {
        after,
        limit,
        key: key.map(rows::key),
        workspace: workspace.map(|w| WorkspaceId::new(w).unwrap()),
    };
    for (query, expected) in [
        (ask(0, 1000, None, None), vec![1, 2, 3, 4]),
        (ask(1, 2, None, None), vec![2, 3]),
        (ask(0, 9999, Some("k"), None), vec![1, 3]),
        (ask(0, 10, None, Some("w")), vec![1, 2, 4]),
        (ask(0, 10, Some("k"), Some("w")), vec![1]),
        (ask(u64::MAX, 10, None, None), vec![]),
    ] {
        let found = store.journal(&query).await.unwrap();
        assert_eq!(found.iter().map(|r| r.sequence).collect::<Vec<_>>(), expected, "{query:?}");
    }
}

#[tokio::test]
async fn sent_notices_older_than_a_week_go_in_passing_and_unsent_ones_stay() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let states = [OutboxState::Done, OutboxState::Folded, OutboxState::Pending, OutboxState::Dead];
    let outbox_rows = |from: u64| states.iter().zip(from..).map(|(state, n)| outbox(&format!("n{n}"), n, *state)).collect();
    store.commit(&Commit { batch: Batch(1), outbox: outbox_rows(0), ..Commit::default() }).await.unwrap();
    store.commit(&Commit { batch: Batch(2), outbox: vec![outbox("n5", 5, OutboxState::Done)], ..Commit::default() }).await.unwrap();
    tamper(&path, "UPDATE outbox SET written_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', iif(id = 'n5', '-6 days', '-8 days'))").await;
    store.commit(&Commit { batch: Batch(3), outbox: outbox_rows(10), ..Commit::default() }).await.unwrap();
    let left = ask(&path, "SELECT group_concat(id, ' ') FROM (SELECT id FROM outbox ORDER BY id)").await;
    assert_eq!(left, "n10 n11 n12 n13 n2 n3 n5");
}

#[tokio::test]
async fn a_damaged_canary_is_reported_and_the_others_serve() {
    let (_dir, path) = place();
    for (column, value) in [
        ("wrapped", "x'00'"),
        ("digest", "x'00'"),
        ("wrapped_version", "NULL"),
        ("sealed_with", "'{}'"),
        ("identity", "'someone'"),
        ("created_at", "'2020-01-01T00:00:00.000Z'"),
        ("checksum", "''"),
    ] {
        let store = open(&path).await;
        let canaries = vec![canary("k", "v1"), canary("k", "v2")];
        store.commit(&Commit { batch: Batch(1), canaries, ..Commit::default() }).await.unwrap();
        tamper(&path, &format!("UPDATE canaries SET {column} = {value} WHERE version = 'v2'")).await;
        let restored = store.load().await.unwrap();
        assert_eq!(restored.damaged, [(key("k"), KeyVersion::new("v2"))], "{column}");
        assert_eq!(restored.canaries, [canary("k", "v1")], "{column}");
    }
}

#[tokio::test]
async fn unknown_words_of_an_order_keep_the_lock_and_an_unreadable_workspace_is_a_fault() {
    let (_dir, path) = place();
    let store = open(&path).await;
    store.commit(&Commit { batch: Batch(1), orders: vec![OrderWrite::Lower(order("w", 5))], ..Commit::default() }).await.unwrap();
    tamper(&path, "UPDATE orders SET access = 'half', cause = 'novel', release = 'novel', ordered_by = 'novel', expires_at = 'soon'").await;
    let found = store.load().await.unwrap().orders.remove(0);
    assert_eq!((found.access, found.cause, found.expires_at), (Access::Locked, Cause::Kind(FailureKind::Unclassified), None));
    assert_eq!((found.by, found.release), (order("w", 5).by, order("w", 5).release));
    tamper(&path, "UPDATE orders SET workspace = 'a b'").await;
    assert!(matches!(store.load().await, Err(StoreFault::Corrupt(text)) if text.contains("a b")));
}

#[tokio::test]
async fn unreadable_keys_and_notices_are_counted_and_stop_nothing() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let commit = Commit {
        batch: Batch(1),
        keys: vec![key_row("a", Some("1")), key_row("b", Some("1"))],
        outbox: vec![outbox("n1", 1, OutboxState::Pending), outbox("n2", 2, OutboxState::Pending), outbox("n3", 3, OutboxState::Pending)],
        ..Commit::default()
    };
    store.commit(&commit).await.unwrap();
    tamper(&path, "UPDATE keys SET key = 'a b' WHERE key = 'a'; UPDATE outbox SET notice = '{' WHERE id = 'n1'; UPDATE outbox SET state = 'novel' WHERE id = 'n2'").await;
    let restored = store.load().await.unwrap();
    assert_eq!((restored.keys.len(), restored.outbox.len(), store.unreadable_rows()), (1, 1, 3));
}

#[tokio::test]
async fn the_files_are_not_for_everybody() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, path) = place();
    let store = open(&path).await;
    store.commit(&records(1, &["a"])).await.unwrap();
    for (name, mode) in [("state.db", 0o640), ("state.db-wal", 0o640), ("state.db.chain-key", 0o600), ("state.db.lock", 0o600)] {
        let found = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found & !mode, 0, "{name} is {found:o}");
    }
}

#[tokio::test]
async fn a_thousand_keys_and_records_fit_one_commit() {
    let (_dir, path) = place();
    let store: Arc<SqliteStore> = open(&path).await;
    let names: Vec<String> = (0..1000).map(|n| format!("key-{n:04}")).collect();
    let state = "x".repeat(300);
    for batch in 1..=5 {
        let commit = Commit {
            batch: Batch(batch),
            keys: names.iter().map(|name| key_row(name, Some(&state))).collect(),
            records: names.iter().map(|name| record(name)).collect(),
            ..Commit::default()
        };
        let begun = Instant::now();
        store.commit(&commit).await.unwrap();
        println!("1,000 keys and 1,000 records: {:?}", begun.elapsed());
    }
    assert_eq!(store.load().await.unwrap().head, 5000);
}
