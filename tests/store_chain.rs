//! The journal's chain: what `verify` finds, what pruning leaves, what an export holds.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/store_rows.rs"]
mod rows;

use std::path::{Path, PathBuf};

use cmek_watchdog::journal::{Batch, Commit, JournalQuery, Store};
use cmek_watchdog::store::sqlite::{Head, Verified, VerifyError, export, verify};
use cmek_watchdog::time::Wall;
use cmek_watchdog::words::EventType;
use rows::*;

/// A closed database with rows 1 to `count`.
async fn written(count: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = open(&path).await;
    for n in 1..=count {
        store.commit(&records(n, &[&format!("e{n}")])).await.unwrap();
    }
    store.close().await;
    (dir, path)
}

async fn altered(path: &Path) -> (u64, String) {
    match verify(path, &[]).await.unwrap() {
        Verified::Altered { sequence, what } => (sequence, what),
        other => panic!("not found: {other:?}"),
    }
}

#[tokio::test]
async fn an_untouched_journal_is_whole_open_or_closed() {
    let (_dir, path) = written(5).await;
    let Verified::Whole { rows: 5, head } = verify(&path, &[]).await.unwrap() else { panic!() };
    assert_eq!(head.sequence, 5);
    let store = open(&path).await;
    assert_eq!(store.head().await.unwrap(), head);
    store.commit(&records(1, &["e6"])).await.unwrap();
    assert!(matches!(verify(&path, &[head]).await.unwrap(), Verified::Whole { rows: 6, .. }), "beside the open store");
    assert_eq!(verify(&path, &[]).await.unwrap().exit_code(), 0);
}

#[tokio::test]
async fn an_empty_journal_is_whole() {
    let (_dir, path) = written(0).await;
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 0, .. }));
}

#[tokio::test]
async fn a_change_in_any_column_of_any_row_is_found_and_the_row_named() {
    let (_dir, path) = written(4).await;
    let original = std::fs::read(&path).unwrap();
    for row in 1..=4u64 {
        for (column, value) in [
            ("at", "'2020-01-01T00:00:00.000Z'"),
            ("type", "'key.active'"),
            ("key", "'other'"),
            ("key", "NULL"),
            ("workspace", "NULL"),
            ("version", "''"),
            ("actor", "'somebody'"),
            ("event_id", "NULL"),
            ("correlation_id", "'d'"),
            ("detail", "replace(detail, 'disabled', 'disabledx')"),
            ("detail", "'not json'"),
            ("detail", "cast(x'ff' as text)"),
            ("hash", "substr(hash, 1, length(hash) - 1) || CASE WHEN hash LIKE '%0' THEN '1' ELSE '0' END"),
            ("hash", "'deadbeef:' || substr(hash, 10)"),
            ("hash", "''"),
        ] {
            tamper(&path, &format!("UPDATE journal SET {column} = {value} WHERE sequence = {row}")).await;
            let verified = verify(&path, &[]).await.unwrap();
            assert_eq!(verified.exit_code(), 1);
            let Verified::Altered { sequence, what } = verified else { panic!() };
            assert_eq!(sequence, row, "{column} = {value}: {what}");
            std::fs::write(&path, &original).unwrap();
        }
    }
    assert_eq!(verify(&path, &[]).await.unwrap().exit_code(), 0);
}

#[tokio::test]
async fn deleted_swapped_and_added_rows_are_found() {
    let (_dir, path) = written(6).await;
    let original = std::fs::read(&path).unwrap();
    for (sql, sequence, what) in [
        ("DELETE FROM journal WHERE sequence = 1", 1, "rows 1 to 1 are missing"),
        ("DELETE FROM journal WHERE sequence IN (3, 4)", 3, "rows 3 to 4 are missing"),
        ("DELETE FROM journal WHERE sequence > 4", 5, "rows 5 to 6 are missing at the end"),
        ("DELETE FROM journal", 1, "rows 1 to 6 are missing at the end"),
        (
            "UPDATE journal SET sequence = 99 WHERE sequence = 2; UPDATE journal SET sequence = 2 WHERE sequence = 3;
             UPDATE journal SET sequence = 3 WHERE sequence = 99",
            2,
            "does not match",
        ),
        (
            "INSERT INTO journal SELECT 7, at, type, key, workspace, version, actor, event_id, correlation_id, detail, hash FROM journal WHERE sequence = 6",
            7,
            "does not match",
        ),
        (
            "INSERT INTO journal SELECT 0, at, type, key, workspace, version, actor, event_id, correlation_id, detail, hash FROM journal WHERE sequence = 6",
            0,
            "before the anchor",
        ),
        ("DELETE FROM journal WHERE sequence < 3; UPDATE chain SET sequence = 2, hash = 'first:x' WHERE name = 'anchor'", 2, "anchor"),
        ("UPDATE chain SET hash = hash || '0' WHERE name = 'head'", 6, "noted head"),
        ("UPDATE chain SET sequence = 5 WHERE name = 'head'", 6, "behind the noted head"),
        ("UPDATE chain SET mac = NULL WHERE name = 'anchor'", 0, "anchor"),
        ("DELETE FROM chain WHERE name = 'head'", 0, "head of the journal is missing"),
        ("DELETE FROM chain WHERE name = 'anchor'", 0, "anchor of the journal is missing"),
    ] {
        tamper(&path, sql).await;
        let found = altered(&path).await;
        assert!(found.0 == sequence && found.1.contains(what), "{sql}: {found:?}");
        std::fs::write(&path, &original).unwrap();
    }
}

#[tokio::test]
async fn a_tail_cut_together_with_its_head_is_found_by_a_head_noted_elsewhere() {
    let (_dir, path) = written(4).await;
    let Verified::Whole { head: noted, .. } = verify(&path, &[]).await.unwrap() else { panic!() };
    tamper(
        &path,
        "DELETE FROM journal WHERE sequence > 2;
         UPDATE chain SET sequence = 2, hash = (SELECT hash FROM journal WHERE sequence = 2) WHERE name = 'head'",
    )
    .await;
    assert_eq!(verify(&path, &[]).await.unwrap().exit_code(), 0, "alone the database cannot tell");
    let verified = verify(&path, std::slice::from_ref(&noted)).await.unwrap();
    assert!(matches!(verified, Verified::Altered { sequence: 4, what } if what.contains("missing at the end")));
    // Written on from there: another row stands under the noted number.
    let store = open(&path).await;
    store.commit(&records(1, &["x", "y", "z"])).await.unwrap();
    let verified = verify(&path, &[Head { sequence: 2, hash: noted.hash.clone() }, noted]).await.unwrap();
    assert!(matches!(verified, Verified::Altered { sequence: 2, what } if what.contains("noted elsewhere")));
}

#[tokio::test]
async fn a_torn_tail_is_closed_at_the_next_start_and_stays_visible() {
    let (_dir, path) = written(5).await;
    tamper(&path, "DELETE FROM journal WHERE sequence > 3").await;
    assert_eq!(altered(&path).await.0, 4);
    let store = open(&path).await;
    store.commit(&records(1, &["after"])).await.unwrap();
    let rows = store.journal(&JournalQuery { after: 3, ..JournalQuery::default() }).await.unwrap();
    assert_eq!(
        rows.iter().map(|r| (r.sequence, r.record.event)).collect::<Vec<_>>(),
        [(6, EventType::StoreDamage), (7, EventType::KeyRevoked)]
    );
    let verified = verify(&path, &[]).await.unwrap();
    assert_eq!(verified.exit_code(), 3);
    let Verified::TornTail { rows: 5, closed_at, head } = verified else { panic!() };
    assert!(closed_at == rows[0].record.at && head.sequence == 7);
    store.close().await;
    drop(store);
    open(&path).await.close().await;
    assert_eq!(verify(&path, &[]).await.unwrap().exit_code(), 3, "a further start closes nothing more");
    let original = std::fs::read(&path).unwrap();
    for sql in [
        "DELETE FROM journal WHERE sequence = 3",
        "UPDATE journal SET detail = replace(detail, '\"journal_missing_from\":\"4\"', '\"journal_missing_from\":\"3\"') WHERE sequence = 6;
         DELETE FROM journal WHERE sequence = 3",
        "UPDATE journal SET detail = replace(detail, 'head_hash', 'head_hush') WHERE sequence = 6",
        "UPDATE journal SET actor = 'x' WHERE sequence = 6",
    ] {
        tamper(&path, sql).await;
        assert!((3..=6).contains(&altered(&path).await.0), "{sql}");
        std::fs::write(&path, &original).unwrap();
    }
}

#[tokio::test]
async fn a_closed_tail_does_not_excuse_a_row_from_a_fork_before_it() {
    let (dir, path) = written(2).await;
    let two_rows = std::fs::read(&path).unwrap();
    let store = open(&path).await;
    store.commit(&records(1, &["fork"])).await.unwrap();
    store.close().await;
    drop(store);
    let fork = dir.path().join("fork");
    std::fs::rename(&path, &fork).unwrap();
    std::fs::write(&path, two_rows).unwrap();
    let store = open(&path).await;
    store.commit(&records(1, &["e3", "e4", "e5"])).await.unwrap();
    store.close().await;
    drop(store);
    tamper(&path, "DELETE FROM journal WHERE sequence > 3").await;
    open(&path).await.close().await;
    assert_eq!(verify(&path, &[]).await.unwrap().exit_code(), 3);
    // Row 3 of the fork follows row 2 just as well, under the same key.
    let swap = format!(
        "ATTACH '{}' AS fork; DELETE FROM main.journal WHERE sequence = 3;
         INSERT INTO main.journal SELECT * FROM fork.journal WHERE sequence = 3",
        fork.display()
    );
    tamper(&path, &swap).await;
    assert_eq!(altered(&path).await, (4, "rows 4 to 5 are missing".to_owned()));
}

#[tokio::test]
async fn a_journal_lost_to_the_last_row_after_pruning_is_closed_too() {
    let (_dir, path) = written(4).await;
    let store = open(&path).await;
    store.prune(3).await.unwrap();
    store.close().await;
    drop(store);
    tamper(&path, "DELETE FROM journal").await;
    assert_eq!(altered(&path).await.0, 3);
    open(&path).await.close().await;
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::TornTail { rows: 1, .. }));
}

#[tokio::test]
async fn pruning_leaves_an_anchor_and_the_rest_verifies() {
    let (_dir, path) = written(6).await;
    let store = open(&path).await;
    let before = store.journal(&JournalQuery::default()).await.unwrap();
    let early = Head { sequence: 1, hash: before[0].hash.clone() };
    assert_eq!(store.prune(1).await.unwrap(), 0);
    assert_eq!(store.prune(4).await.unwrap(), 3);
    assert_eq!(store.journal(&JournalQuery::default()).await.unwrap(), before[3..]);
    assert!(matches!(verify(&path, &[early]).await.unwrap(), Verified::Whole { rows: 3, .. }), "a pruned head is not asked for");
    tamper(&path, "DELETE FROM journal WHERE sequence = 4").await;
    assert_eq!(altered(&path).await.0, 4, "a row behind the anchor is missed");
    assert_eq!(store.prune(u64::MAX).await.unwrap(), 2);
    assert_eq!(store.commit(&records(7, &["e7"])).await.unwrap().sequences, [7], "numbers go on");
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 1, .. }));
    assert_eq!(store.load().await.unwrap().head, 7);
}

#[tokio::test]
async fn a_long_journal_is_pruned_in_segments() {
    let (_dir, path) = written(0).await;
    let store = open(&path).await;
    let many = Commit { batch: Batch(1), records: vec![bare_record(EventType::Test); 21_000], ..Commit::default() };
    store.commit(&many).await.unwrap();
    assert_eq!(store.prune(20_501).await.unwrap(), 20_500);
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 500, .. }));
}

#[tokio::test]
async fn a_new_line_in_the_key_file_rotates_and_a_lost_key_is_told() {
    let (_dir, path) = written(2).await;
    let key_file = path.with_file_name("state.db.chain-key");
    let first = std::fs::read_to_string(&key_file).unwrap();
    std::fs::write(&key_file, format!("{first}{}\n", "ab".repeat(32))).unwrap();
    let store = open(&path).await;
    store.commit(&records(1, &["e3"])).await.unwrap();
    let hashes: Vec<String> = store.journal(&JournalQuery::default()).await.unwrap().into_iter().map(|r| r.hash).collect();
    assert_ne!(hashes[1].split_once(':').unwrap().0, hashes[2].split_once(':').unwrap().0);
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 3, .. }));
    assert!(!store.chain_key_lost());
    drop(store);

    std::fs::write(&key_file, format!("{}\n", "cd".repeat(32))).unwrap();
    assert!(altered(&path).await.1.contains("does not hold"));
    let store = open(&path).await;
    assert!(store.chain_key_lost());
    store.commit(&records(1, &["e4"])).await.unwrap();
    drop(store);
    std::fs::remove_file(&key_file).unwrap();
    assert!(matches!(verify(&path, &[]).await, Err(VerifyError::NoKey(_))));
    let store = open(&path).await;
    assert!(store.chain_key_lost() && key_file.exists());
    // What the present key cannot vouch for can be pruned away, and the rest is whole again.
    store.commit(&records(1, &["e5"])).await.unwrap();
    store.prune(5).await.unwrap();
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 1, .. }));
    drop(store);
    std::fs::write(&key_file, "abcd\n").unwrap();
    let error = verify(&path, &[]).await.unwrap_err().to_string();
    assert!(error.contains("line 1") && !error.contains("abcd"), "{error}");
}

#[tokio::test]
async fn an_altered_record_is_still_shown_with_what_can_be_read() {
    let (_dir, path) = written(3).await;
    tamper(&path, "UPDATE journal SET type = 'novel', at = 'then', detail = '{', key = 'a b' WHERE sequence = 2").await;
    let store = open(&path).await;
    let rows = store.journal(&JournalQuery::default()).await.unwrap();
    assert_eq!(rows.len(), 3);
    let row = &rows[1].record;
    assert_eq!((row.event, row.at, &row.key), (EventType::StoreDamage, Wall(0), &None));
    for (name, text) in [("unreadable_type", "novel"), ("unreadable_at", "then"), ("unreadable_detail", "{"), ("unreadable_key", "a b")] {
        assert_eq!(row.detail[name], text);
    }
    assert_eq!(row.actor.as_deref(), Some("system"));
}

#[tokio::test]
async fn an_export_is_json_lines_ascending_with_the_names_of_the_contract() {
    let (_dir, path) = written(3).await;
    tamper(&path, "UPDATE journal SET detail = 'odd' WHERE sequence = 3").await;
    let mut out = Vec::new();
    assert_eq!(export(&path, 1, &mut out).await.unwrap(), 2);
    let lines: Vec<serde_json::Value> = String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let names: Vec<&str> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["sequence", "at", "type", "key", "workspace", "version", "actor", "event_id", "correlation_id", "detail", "hash"]);
    assert_eq!((&lines[0]["sequence"], &lines[0]["at"]), (&2.into(), &AT.to_string().into()));
    assert_eq!(lines[0]["detail"]["empty"], "");
    assert_eq!(lines[1]["detail"], "odd");
    struct Broken;
    impl std::io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(export(&path, 0, &mut Broken).await, Err(VerifyError::Write(_))));
}

#[tokio::test]
async fn without_a_database_nothing_is_verified_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    assert!(matches!(verify(&path, &[]).await, Err(VerifyError::NoDatabase(_))));
    assert!(matches!(export(&path, 0, &mut Vec::new()).await, Err(VerifyError::NoDatabase(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    std::fs::write(&path, vec![b'x'; 5000]).unwrap();
    assert!(matches!(verify(&path, &[]).await, Err(VerifyError::Store(_))));
}
