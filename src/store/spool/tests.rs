//! outside
//! The spool against torn writes, a full file and remnants of an earlier use.

use super::*;
use crate::journal::OrderKey;
use crate::key::{KeyId, ProviderId, WorkspaceId};
use crate::time::Wall;
use crate::words::{Access, By, Cause, FailureKind, Sequence};

fn order(workspace: &str, sequence: u64) -> Order {
    Order {
        workspace: WorkspaceId::new(workspace).unwrap(),
        by: By::Automatic,
        key: Some(OrderKey { id: KeyId::new("k").unwrap(), provider: ProviderId::new("p").unwrap(), reference: "ref".into() }),
        access: Access::Locked,
        cause: Cause::Kind(FailureKind::Disabled),
        sequence: Sequence(sequence),
        since: Wall(1_764_056_760_123),
        reason: None,
        actor: None,
        expires_at: None,
        message: Some("key k is disabled".to_owned()),
        release: None,
        orphaned: false,
    }
}

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("locks.spool");
    (dir, path)
}

#[test]
fn orders_come_back_in_order_after_a_restart() {
    let (dir, path) = fresh();
    let mut spool = Spool::beside(&dir.path().join("state.db")).unwrap();
    assert!(spool.is_empty() && spool.read().unwrap().is_empty());
    spool.append(&[order("a", 1), order("b", 2)]).unwrap();
    spool.append(&[]).unwrap();
    spool.append(&[order("a", 3)]).unwrap();
    drop(spool);
    let mut spool = Spool::open(&path).unwrap();
    assert!(!spool.is_empty());
    spool.append(&[order("c", 4)]).unwrap();
    assert_eq!(spool.read().unwrap(), [order("a", 1), order("b", 2), order("a", 3), order("c", 4)]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SPOOL_BYTES);
}

#[test]
fn a_record_torn_at_any_byte_leaves_the_earlier_ones_and_room_for_the_next() {
    let (_dir, path) = fresh();
    let mut spool = Spool::open(&path).unwrap();
    spool.append(&[order("a", 1)]).unwrap();
    spool.append(&[order("b", 2)]).unwrap();
    let start = usize::try_from(spool.used).unwrap();
    spool.append(&[order("c", 3)]).unwrap();
    let end = usize::try_from(spool.used).unwrap();
    drop(spool);
    let whole = std::fs::read(&path).unwrap();
    for cut in start..end {
        let mut torn = whole.clone();
        torn[cut..end].fill(0);
        let changed = torn != whole;
        std::fs::write(&path, &torn).unwrap();
        let mut spool = Spool::open(&path).unwrap();
        assert!(changed, "the cut at {cut} changes nothing");
        assert_eq!(spool.read().unwrap(), [order("a", 1), order("b", 2)], "cut at {cut}");
        spool.append(&[order("d", 4)]).unwrap();
        assert_eq!(Spool::open(&path).unwrap().read().unwrap(), [order("a", 1), order("b", 2), order("d", 4)], "cut at {cut}");
    }
    for at in start..end {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        std::fs::write(&path, &flipped).unwrap();
        assert_eq!(Spool::open(&path).unwrap().read().unwrap(), [order("a", 1), order("b", 2)], "flip at {at}");
    }
}

#[test]
fn nothing_of_an_earlier_use_comes_back_behind_a_new_record_of_equal_length() {
    let (_dir, path) = fresh();
    let mut spool = Spool::open(&path).unwrap();
    for sequence in 1..=3 {
        spool.append(&[order("a", sequence)]).unwrap();
    }
    let before = std::fs::read(&path).unwrap();
    spool.clear().unwrap();
    assert!(spool.is_empty() && spool.read().unwrap().is_empty());
    assert!(Spool::open(&path).unwrap().read().unwrap().is_empty());
    // A crash in the middle of clearing: only the first record's bytes reached the disk as zeros.
    let first = framed(&serde_json::to_vec(&[order("a", 1)]).unwrap(), 0).unwrap().0.len();
    let mut half = before.clone();
    half[..first].fill(0);
    std::fs::write(&path, &half).unwrap();
    let mut spool = Spool::open(&path).unwrap();
    assert!(spool.read().unwrap().is_empty());
    spool.append(&[order("a", 9)]).unwrap();
    assert_eq!(Spool::open(&path).unwrap().read().unwrap(), [order("a", 9)]);
}

#[test]
fn a_full_spool_says_so_and_keeps_what_it_has() {
    let (_dir, path) = fresh();
    let mut spool = Spool::open(&path).unwrap();
    let many: Vec<Order> = (0..1000).map(|n| order("w", n)).collect();
    let mut kept = 0;
    let error = loop {
        match spool.append(&many) {
            Ok(()) => {
                kept += many.len();
                assert!(kept < 100_000, "the spool has no bound");
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(error.to_string().contains("locks.spool is full"), "{error}");
    assert!(kept >= 3000, "{kept}");
    assert_eq!(spool.read().unwrap().len(), kept);
    spool.append(&[order("w", 1)]).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SPOOL_BYTES);
    spool.clear().unwrap();
    spool.append(&many).unwrap();
}

#[test]
fn a_whole_record_of_unknown_form_is_an_error_and_not_passed_over() {
    let (_dir, path) = fresh();
    let spool = Spool::open(&path).unwrap();
    let (record, _) = framed(br#"[{"workspace":"a","access":"half"}]"#, 0).unwrap();
    spool.file.write_all_at(&record, 0).unwrap();
    assert_eq!(Spool::open(&path).unwrap().read().unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn a_file_cut_short_while_it_was_made_is_completed_and_a_missing_folder_is_an_error() {
    let (dir, path) = fresh();
    let mut spool = Spool::open(&path).unwrap();
    spool.append(&[order("a", 1)]).unwrap();
    let used = spool.used;
    drop(spool);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(used + 5).unwrap();
    assert_eq!(Spool::open(&path).unwrap().read().unwrap(), [order("a", 1)]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SPOOL_BYTES);
    assert_eq!(Spool::open(&dir.path().join("no/locks.spool")).unwrap_err().kind(), ErrorKind::NotFound);
}
