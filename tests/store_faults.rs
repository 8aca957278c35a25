//! The embedded store in trouble: two owners, losses, damage, full and read-only disks.
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

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cmek_watchdog::journal::{Batch, Commit, Store, StoreFault};
use cmek_watchdog::store::spool::Spool;
use cmek_watchdog::store::sqlite::{LOST_AT, Opened, Options, SqliteStore, Start, Verified, verify};
use cmek_watchdog::time::Span;
use rows::*;

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    (dir, path)
}

#[tokio::test]
async fn a_second_owner_is_refused_by_name_and_a_dead_ones_file_is_no_obstacle() {
    let (dir, path) = place();
    let store = open(&path).await;
    let error = SqliteStore::open(&path, Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("another process holds") && error.contains("state.db.lock"), "{error}");
    drop(store);
    assert!(dir.path().join("state.db.lock").exists());
    open(&path).await;
}

#[tokio::test]
async fn a_lost_database_is_not_a_first_start() {
    let (_dir, path) = place();
    let accept = || Options { accept_loss: true, ..Options::default() };
    match SqliteStore::open(&path, Options::default()).await.unwrap() {
        Opened::Ready { start, store } => {
            assert_eq!(start, Start::First);
            store.close().await;
        }
        other => panic!("{other:?}"),
    }
    let backup = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let marker = std::fs::read_to_string(path.with_file_name("state.db.marker")).unwrap();
    for _ in 0..2 {
        let opened = SqliteStore::open(&path, Options::default()).await.unwrap();
        assert!(matches!(opened, Opened::Lost { installation } if installation == marker.trim()));
        assert!(!path.exists());
    }
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(SqliteStore::open(&path, Options::default()).await.unwrap(), Opened::Lost { .. }), "an empty file is no database");

    let Opened::Ready { store, start: Start::AfterLoss } = SqliteStore::open(&path, accept()).await.unwrap() else { panic!() };
    drop(store);
    let store = open(&path).await;
    assert!(store.load().await.unwrap().meta.contains_key(LOST_AT), "a restart does not forget the loss");
    store.commit(&Commit { batch: Batch(1), meta: BTreeMap::from([(LOST_AT.to_owned(), None)]), ..Commit::default() }).await.unwrap();
    assert!(store.load().await.unwrap().meta.is_empty());
    store.close().await;
    drop(store);

    // The backup of the installation before is another database than the marker names.
    std::fs::write(&path, &backup).unwrap();
    let opened = SqliteStore::open(&path, Options::default()).await.unwrap();
    assert!(matches!(opened, Opened::Replaced { found, .. } if found == marker.trim()));
    let Opened::Ready { store, start: Start::AfterLoss } = SqliteStore::open(&path, accept()).await.unwrap() else { panic!() };
    assert!(store.load().await.unwrap().meta.contains_key(LOST_AT));
}

#[tokio::test]
async fn a_log_left_behind_by_a_lost_database_does_not_leak_into_the_new_one() {
    let (_dir, path) = place();
    let log = path.with_file_name("state.db-wal");
    let store = open(&path).await;
    store.commit(&Commit { batch: Batch(1), keys: vec![key_row("k", Some("1"))], ..Commit::default() }).await.unwrap();
    let left = std::fs::read(&log).unwrap();
    store.close().await;
    drop(store);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&log, left).unwrap();
    assert!(matches!(SqliteStore::open(&path, Options::default()).await.unwrap(), Opened::Lost { .. }));
    let accept = Options { accept_loss: true, ..Options::default() };
    let Opened::Ready { store, start: Start::AfterLoss } = SqliteStore::open(&path, accept).await.unwrap() else { panic!() };
    assert!(store.load().await.unwrap().keys.is_empty());
    store.commit(&records(1, &["a"])).await.unwrap();
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 1, .. }));
}

#[tokio::test]
async fn a_restored_backup_of_the_same_installation_is_known_and_a_missing_marker_is_written() {
    let (_dir, path) = place();
    let store = open(&path).await;
    store.commit(&records(1, &["a"])).await.unwrap();
    store.close().await;
    drop(store);
    let backup = std::fs::read(&path).unwrap();
    let store = open(&path).await;
    store.commit(&records(1, &["b"])).await.unwrap();
    store.close().await;
    drop(store);
    std::fs::write(&path, backup).unwrap();
    std::fs::remove_file(path.with_file_name("state.db.marker")).unwrap();
    let store = open(&path).await;
    assert_eq!(store.load().await.unwrap().head, 1);
    assert!(path.with_file_name("state.db.marker").exists());
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 1, .. }));
}

#[tokio::test]
async fn a_newer_schema_and_a_foreign_database_are_refused() {
    let (_dir, path) = place();
    open(&path).await.close().await;
    tamper(&path, "INSERT INTO migrations VALUES (99, 'from the future', '')").await;
    let error = SqliteStore::open(&path, Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("schema 99") && error.contains("up to 2"), "{error}");
    let (_dir, path) = place();
    std::fs::write(&path, b"").unwrap();
    tamper(&path, "CREATE TABLE somebody_elses (x)").await;
    assert!(matches!(SqliteStore::open(&path, Options::default()).await, Err(StoreFault::Corrupt(_))));
}

#[tokio::test]
async fn a_file_that_is_no_database_and_a_damaged_page_are_corrupt() {
    let (_dir, path) = place();
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert!(matches!(SqliteStore::open(&path, Options::default()).await, Err(StoreFault::Corrupt(_))));

    let (_dir, path) = place();
    let store = open(&path).await;
    let keys = (0..2000).map(|n| key_row(&format!("k{n}"), Some("{\"state\":\"active\"}"))).collect();
    store.commit(&Commit { batch: Batch(1), keys, ..Commit::default() }).await.unwrap();
    store.close().await;
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == b"k1000{\"s").unwrap() / 4096 * 4096;
    bytes[at..at + 4096].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let error = SqliteStore::open(&path, Options::default()).await.unwrap_err();
    assert!(matches!(error, StoreFault::Corrupt(_)), "{error}");
}

#[tokio::test]
async fn damage_that_comes_later_shows_when_the_rows_are_read() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let keys = (0..2000).map(|n| key_row(&format!("k{n}"), Some("{\"state\":\"active\"}"))).collect();
    store.commit(&Commit { batch: Batch(1), keys, ..Commit::default() }).await.unwrap();
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == b"k1000{\"s").unwrap() / 4096 * 4096;
    bytes[at..at + 4096].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let fault = store.load().await.unwrap_err();
    assert!(matches!(fault, StoreFault::Corrupt(_)), "{fault}");
}

#[tokio::test]
async fn a_check_without_time_is_left_unfinished_and_the_store_opens() {
    let (_dir, path) = place();
    let store = open(&path).await;
    let keys = (0..20_000).map(|n| key_row(&format!("k{n}"), Some("{}"))).collect();
    store.commit(&Commit { batch: Batch(1), keys, ..Commit::default() }).await.unwrap();
    store.close().await;
    drop(store);
    let hasty = Options { check_for: Span::ZERO, ..Options::default() };
    let Opened::Ready { store, .. } = SqliteStore::open(&path, hasty).await.unwrap() else { panic!() };
    assert_eq!(store.load().await.unwrap().keys.len(), 20_000);
    store.commit(&records(1, &["a"])).await.unwrap();
}

#[tokio::test]
async fn a_database_removed_under_the_store_takes_no_more_commits() {
    let (_dir, path) = place();
    let store = open(&path).await;
    std::fs::remove_file(&path).unwrap();
    let error = store.commit(&records(1, &["a"])).await.unwrap_err().to_string();
    assert!(error.contains("removed or replaced"), "{error}");
    assert!(!path.exists());
}

#[tokio::test]
async fn an_unreachable_place_is_unavailable() {
    let (dir, _) = place();
    let error = SqliteStore::open(&dir.path().join("no/state.db"), Options::default()).await.unwrap_err();
    assert!(matches!(&error, StoreFault::Unavailable(text) if text.contains("state.db.lock")), "{error}");
}

/// A file system of 4 MiB, where the system lets us mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(dir.path()).output();
        done.is_ok_and(|out| out.status.success()).then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

async fn fills_and_recovers(path: &Path, options: Options, make_room: impl FnOnce()) {
    let Opened::Ready { store, .. } = SqliteStore::open(path, options).await.unwrap() else { panic!() };
    let long = "x".repeat(100_000);
    let big = |batch: u64| Commit { batch: Batch(batch), keys: vec![key_row(&format!("k{batch}"), Some(&long))], ..Commit::default() };
    let mut batch = 0;
    let fault = loop {
        batch += 1;
        match store.commit(&big(batch)).await {
            Ok(_) => assert!(batch < 1000),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(fault, StoreFault::Full(_)), "{fault}");
    assert_eq!(store.load().await.unwrap().keys.len() as u64, batch - 1, "a refused commit leaves nothing");
    let mut spool = Spool::beside(path).unwrap();
    spool.append(&[order("w", 5)]).unwrap();
    make_room();
    let mut small = records(batch + 1, &["after"]);
    small.keys = (1..batch).map(|n| key_row(&format!("k{n}"), None)).collect();
    store.commit(&small).await.unwrap();
    assert!(matches!(verify(path, &[]).await.unwrap(), Verified::Whole { rows: 1, .. }));
    assert_eq!(spool.read().unwrap(), [order("w", 5)]);
}

#[tokio::test]
async fn a_full_disk_refuses_commits_but_not_the_spool_and_goes_on_when_there_is_room() {
    let Some(small) = Small::mount() else {
        eprintln!("no right to mount; the bound of the file is tested instead");
        return bounded().await;
    };
    let path = small.0.path().join("state.db");
    Spool::beside(&path).unwrap();
    let filler = small.0.path().join("filler");
    std::fs::write(&filler, vec![1; 1 << 20]).unwrap();
    fills_and_recovers(&path, Options::default(), || std::fs::remove_file(filler).unwrap()).await;
}

#[tokio::test]
async fn a_read_only_medium_can_be_verified_and_takes_no_store() {
    let Some(medium) = Small::mount() else {
        let (dir, path) = place();
        open(&path).await.close().await;
        // Without a mount: a folder in the place of the lock file is as unwritable.
        std::fs::remove_file(path.with_file_name("state.db.lock")).unwrap();
        std::fs::create_dir(dir.path().join("state.db.lock")).unwrap();
        assert!(matches!(SqliteStore::open(&path, Options::default()).await, Err(StoreFault::Unavailable(_))));
        return;
    };
    let path = medium.0.path().join("state.db");
    let store = open(&path).await;
    store.commit(&records(1, &["a"])).await.unwrap();
    store.close().await;
    drop(store);
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(medium.0.path()).status().unwrap();
    assert!(remount.success());
    assert!(matches!(verify(&path, &[]).await.unwrap(), Verified::Whole { rows: 1, .. }));
    let fault = SqliteStore::open(&path, Options::default()).await.unwrap_err();
    assert!(matches!(&fault, StoreFault::Unavailable(text) if text.contains("state.db.lock")), "{fault}");
}

async fn bounded() {
    let (_dir, path) = place();
    fills_and_recovers(&path, Options { max_bytes: Some(1 << 20), ..Options::default() }, || ()).await;
}

#[tokio::test]
async fn a_database_at_its_bound_is_full_and_goes_on_when_rows_are_deleted() {
    bounded().await;
}
