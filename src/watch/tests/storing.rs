//! What waits for the disk and what does not, and what a restart finds.

use super::*;

fn two() -> Bench {
    Bench::proven(&format!("{}{}", key("k", "\"w\"", "default"), key("l", "\"x\"", "default")))
}

#[test]
fn a_silent_store_delays_a_lock_by_the_patience_and_each_later_one_by_no_more() {
    let mut bench = two();
    bench.store = Store::Silent;
    bench.truth("k").status = Status::Disabled;
    until_locked(&mut bench, "w", 130);
    assert!(!bench.workspaces["w"].durable);
    bench.lock(1, "x");
    bench.run(1);
    assert_eq!(bench.access("x"), Access::Locked);
    let spooled: Vec<&str> = bench.disk.spool.iter().map(|o: &Order| o.workspace.as_str()).collect();
    assert_eq!(spooled, ["w", "x"]);
    bench.store_answers();
    assert!(bench.workspaces["x"].durable && bench.disk.spool.is_empty());
}

#[test]
fn a_failing_store_does_not_even_cost_the_patience() {
    let mut bench = two();
    bench.store = Store::Fails;
    bench.lock(1, "w");
    assert_eq!((bench.access("w"), bench.disk.spool.len()), (Access::Locked, 1));
    assert_eq!(bench.told(EventType::WorkspaceLocked), 0, "a notice waits for the store");
}

#[test]
fn a_lock_of_the_spool_survives_two_crashes_and_is_told() {
    let mut bench = two();
    bench.store = Store::Fails;
    bench.lock(1, "w");
    bench.truth("l").status = Status::Disabled;
    until_locked(&mut bench, "x", 130);
    bench.restart();
    assert_eq!((bench.access("w"), bench.access("x")), (Access::Locked, Access::Locked));
    bench.store = Store::Well;
    bench.run(1);
    assert!(bench.disk.spool.is_empty(), "the store has them now");
    bench.restart();
    assert_eq!((bench.access("w"), bench.access("x")), (Access::Locked, Access::Locked));
    assert!(bench.told(EventType::WorkspaceLocked) >= 2);
    bench.truth("l").status = Status::Enabled;
    bench.run(400);
    assert_eq!((bench.access("w"), bench.access("x")), (Access::Locked, Access::Open));
}

#[test]
fn an_unlock_is_not_shown_before_it_is_stored() {
    let mut bench = two();
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.truth("k").status = Status::Enabled;
    bench.store = Store::Silent;
    bench.run(600);
    assert_eq!(bench.access("w"), Access::Locked);
    bench.restart();
    assert_eq!(bench.access("w"), Access::Locked);
    bench.store = Store::Well;
    bench.run(600);
    assert_eq!(bench.access("w"), Access::Open);
    bench.restart();
    assert_eq!((bench.access("w"), bench.state("k")), (Access::Open, StateWord::Active));
}

#[test]
fn a_relapse_while_the_unlock_is_on_its_way_keeps_the_lock() {
    let mut bench = two();
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.truth("k").status = Status::Enabled;
    bench.run(301);
    bench.store = Store::Silent;
    bench.run(90);
    bench.truth("k").status = Status::Disabled;
    bench.run(90);
    assert_eq!(bench.access("w"), Access::Locked);
    let waiting = bench.waiting.clone().unwrap();
    assert!(!waiting.is_empty());
    // The disk takes the lift, and the process dies before it hears of it.
    bench.disk.commit(bench.run, &waiting);
    bench.restart();
    assert_eq!(bench.access("w"), Access::Locked, "the lock that took it back lies in the spool");
    bench.store = Store::Well;
    bench.run(30);
    assert_eq!(bench.access("w"), Access::Locked);
}

#[test]
fn a_reload_does_not_lock_again_what_an_unlock_on_its_way_opens() {
    let mut bench = two();
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.truth("k").status = Status::Enabled;
    bench.store = Store::Silent;
    bench.run(500);
    bench.reload(&format!("{}{}", key("k", "\"w\"", "default"), key("l", "\"x\"", "default")));
    bench.store_answers();
    assert_eq!((bench.access("w"), bench.state("k")), (Access::Open, StateWord::Active));
}

#[test]
fn counted_looks_survive_a_restart() {
    let mut bench = two();
    bench.deny("k", true);
    while bench.state("k") == StateWord::Active {
        bench.run(1);
    }
    assert_eq!(bench.state("k"), StateWord::Suspect);
    for _ in 0..20 {
        bench.restart();
        bench.run(2);
    }
    assert_eq!(bench.access("w"), Access::Locked, "restarts every two seconds do not keep a key from locking");
}

#[test]
fn a_number_is_never_shown_with_two_levels_of_access() {
    let mut bench = two();
    bench.lock(1, "w");
    let locked = bench.workspaces["w"].sequence;
    bench.store = Store::Silent;
    bench.unlock(2, "w", None);
    bench.reload(&format!("{}{}", key("k", "\"w\"", "default"), key("l", "\"x\"", "default")));
    assert_eq!((bench.access("w"), bench.workspaces["w"].sequence), (Access::Locked, locked));
    bench.store_answers();
    assert_eq!(bench.access("w"), Access::Open);
    assert!(bench.workspaces["w"].sequence > locked);
}

#[test]
fn a_relapse_that_only_the_spool_knows_of_is_no_approval_any_more() {
    let manual = format!("[policies.manual]\nunlock = \"manual\"\n{}", key("k", "\"w\"", "manual"));
    let mut bench = Bench::proven(&manual);
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.truth("k").status = Status::Enabled;
    bench.run(400);
    assert_eq!(bench.keys["k"].held_by, Some(HeldBy::Approval));
    bench.store = Store::Fails;
    bench.truth("k").status = Status::Disabled;
    bench.run(65);
    bench.restart();
    assert_eq!((bench.access("w"), bench.state("k")), (Access::Locked, StateWord::Revoked));
    bench.store = Store::Well;
    bench.unlock(1, "w", None);
    assert_eq!(bench.refusal(1), Some(RefusalSlug::NotProven));
    bench.truth("k").status = Status::Enabled;
    bench.run(400);
    bench.unlock(2, "w", None);
    assert_eq!((bench.refusal(2), bench.access("w")), (None, Access::Open));
}

#[test]
fn a_lock_whose_key_was_never_stored_is_an_orphan_for_a_person() {
    let mut bench = two();
    bench.store = Store::Fails;
    let keys = format!("{}{}{}", key("k", "\"w\"", "default"), key("l", "\"x\"", "default"), key("m", "\"y\"", "default"));
    bench.reload(&keys);
    bench.run(5);
    assert_eq!(bench.watch.cells.len(), 3);
    bench.truth("m").status = Status::Disabled;
    until_locked(&mut bench, "y", 130);
    bench.restart();
    assert_eq!(bench.workspaces["y"].cause.map(|c| c.as_str()), Some("orphaned"));
    bench.store = Store::Well;
    bench.truth("m").status = Status::Enabled;
    bench.run(400);
    assert_eq!((bench.access("y"), bench.state("m")), (Access::Locked, StateWord::Active));
    bench.unlock(1, "y", None);
    assert_eq!(bench.access("y"), Access::Open);
}
