//! The store under SIGKILL: what a commit returned as done is there afterwards, whatever the moment.
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
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cmek_watchdog::journal::{Batch, Commit, JournalQuery, OrderWrite, Store};
use cmek_watchdog::store::spool::Spool;
use cmek_watchdog::store::sqlite::{Verified, verify};
use rows::*;

const PLACE: &str = "CMEK_TEST_KILL_PLACE";
const ROUND: &str = "CMEK_TEST_KILL_ROUND";
const ROUNDS: u64 = 50;

/// One batch: the key's state, the lock and the record all name the round and the batch.
fn commit(round: u64, batch: u64) -> Commit {
    let name = format!("{round}-{batch}");
    Commit {
        batch: Batch(batch),
        keys: vec![key_row("k", Some(&name))],
        orders: vec![OrderWrite::Lower(order(&format!("w:{name}"), round * 1_000_000 + batch))],
        records: vec![record(&name), record(&format!("{name}-second"))],
        ..Commit::default()
    }
}

/// Commits without end if another process asked for it; by itself, ten times.
#[tokio::test]
async fn a_child_commits_until_it_is_killed() {
    let (Ok(place), Ok(round)) = (std::env::var(PLACE), std::env::var(ROUND)) else {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        commit_in_a_loop(&path, 1, 10).await;
        assert_eq!(open(&path).await.load().await.unwrap().head, 20);
        return;
    };
    commit_in_a_loop(Path::new(&place), round.parse().unwrap(), u64::MAX).await;
}

async fn commit_in_a_loop(path: &Path, round: u64, batches: u64) {
    let store = open(path).await;
    let mut spool = Spool::beside(path).unwrap();
    let mut out = std::io::stderr();
    for batch in 1..=batches {
        spool.append(&[order(&format!("w:{round}-{batch}"), batch)]).unwrap();
        writeln!(out, "SPOOLED {batch}").unwrap();
        let done = store.commit(&commit(round, batch)).await.unwrap();
        writeln!(out, "STORED {batch} {} {}", done.sequences[0], done.sequences[1]).unwrap();
        if batch % 40 == 0 {
            writeln!(out, "CLEARING {batch}").unwrap();
            spool.clear().unwrap();
        }
    }
}

/// Draws that differ from run to run.
fn draw(below: u64) -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() % below
}

#[derive(Default)]
struct Told {
    stored: Vec<(u64, u64, u64)>,
    spooled: Vec<u64>,
}

/// Runs a child, kills it at a random moment, and returns what it had said until then.
fn run_and_kill(path: &Path, round: u64) -> Told {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_commits_until_it_is_killed", "--nocapture", "--test-threads=1"])
        .env(PLACE, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // Every fifth child is killed while it opens, the others after some batches.
    let wait_for = if round.is_multiple_of(5) { 0 } else { draw(60) + 1 };
    let mut told = Told::default();
    let mut seen = 0;
    while seen < wait_for {
        let line = lines.next().expect("the child ended by itself").unwrap();
        assert!(!line.contains("panicked"), "{line}");
        seen += u64::from(line.starts_with("STORED"));
        note(&line, &mut told);
    }
    std::thread::sleep(Duration::from_micros(draw(if wait_for == 0 { 40_000 } else { 3000 })));
    child.kill().unwrap();
    for line in lines {
        note(&line.unwrap(), &mut told);
    }
    assert!(!child.wait().unwrap().success());
    told
}

fn note(line: &str, told: &mut Told) {
    let mut words = line.split(' ');
    let word = words.next();
    let numbers: Vec<u64> = words.map_while(|w| w.parse().ok()).collect();
    match (word, numbers.as_slice()) {
        (Some("STORED"), [batch, first, second]) => told.stored.push((*batch, *first, *second)),
        (Some("SPOOLED"), [batch]) => told.spooled.push(*batch),
        (Some("CLEARING"), [_]) => told.spooled.clear(),
        _ => {}
    }
}

#[tokio::test]
async fn every_batch_reported_as_stored_survives_fifty_kills_and_the_chain_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let mut expected: BTreeMap<u64, String> = BTreeMap::new();
    let mut stored = 0;
    for round in 1..=ROUNDS {
        let told = run_and_kill(&path, round);
        for (batch, first, second) in &told.stored {
            expected.insert(*first, format!("{round}-{batch}"));
            expected.insert(*second, format!("{round}-{batch}-second"));
        }
        stored += told.stored.len();
        let store = open(&path).await;
        let restored = store.load().await.unwrap();
        if let Some((last, ..)) = told.stored.last() {
            let state: Vec<u64> = restored.keys[0].1.split('-').map(|n| n.parse().unwrap()).collect();
            // The newest may have been stored without having been told.
            assert!(state[0] == round && (state[1] == *last || state[1] == last + 1), "round {round}: {state:?} after {last}");
        }
        let spooled = Spool::beside(&path).unwrap().read().unwrap();
        for batch in &told.spooled {
            let workspace = format!("w:{round}-{batch}");
            assert!(spooled.iter().any(|o| o.workspace.as_str() == workspace), "round {round}: spooled lock {batch} is gone");
        }
        Spool::beside(&path).unwrap().clear().unwrap();
        let verified = verify(&path, &[]).await.unwrap();
        assert!(matches!(verified, Verified::Whole { .. }), "round {round}: {verified:?}");
    }
    assert!(stored > 500, "only {stored} batches were stored");
    let store = open(&path).await;
    let (mut found, mut after) = (BTreeMap::new(), 0);
    loop {
        let page = store.journal(&JournalQuery { after, limit: 1000, ..JournalQuery::default() }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.sequence;
        found.extend(page.iter().map(|row| (row.sequence, row.record.event_id.clone().unwrap())));
    }
    for (sequence, name) in &expected {
        assert_eq!(found.get(sequence), Some(name), "row {sequence}");
    }
    // All of a batch or nothing of it: two rows and one lock each.
    let locks = store.load().await.unwrap().orders.len();
    assert_eq!(found.len(), locks * 2);
    println!("{stored} batches reported, {locks} found after {ROUNDS} kills");
}
