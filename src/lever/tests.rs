use super::*;

fn now(ms: u64) -> Now {
    Now { mono: Mono(1 << 40).plus(Span(ms)), wall: Wall(1_790_000_000_000).plus(Span(ms)) }
}

fn slot(ws: &str) -> Slot {
    (WorkspaceId::new(ws).unwrap(), LeverId::new("l").unwrap())
}

fn wanted(sequence: u64, wide: bool) -> Wanted {
    Wanted { access: Access::Locked, cause: Cause::Manual, sequence: Sequence(sequence), again: true, wide }
}

fn done(memory: &str) -> Outcome {
    Outcome::Done { memory: Some(memory.to_owned()), left: Vec::new() }
}

fn fails() -> Outcome {
    Outcome::Failed { reason: "HTTP 500".to_owned(), after: None, memory: None }
}

fn entry(levers: &Levers, ws: &str) -> Entry {
    levers.entries(&slot(ws).0)[0].1.clone()
}

#[test]
fn a_pull_waits_for_the_store_five_seconds_and_no_longer() {
    let mut levers = Levers::default();
    assert!(levers.pull(now(0), &slot("w"), wanted(1, true)));
    assert_eq!(levers.orders(now(4_999)), []);
    assert_eq!(levers.orders(now(5_000)).len(), 1);
    let mut stored = Levers::default();
    stored.pull(now(0), &slot("w"), wanted(1, true));
    let written = entry(&stored, "w");
    stored.stored(now(10), &slot("w"), &written);
    assert_eq!(stored.orders(now(10)).len(), 1, "at once when it is on disk");
}

#[test]
fn an_undo_waits_for_the_store_without_limit() {
    let mut levers = Levers::default();
    levers.pull(now(0), &slot("w"), wanted(1, true));
    let order = levers.orders(now(5_000)).remove(0);
    levers.answered(now(5_100), &slot("w"), order.attempt, done("ours")).unwrap();
    assert!(levers.undo(now(6_000), &slot("w"), Sequence(2)));
    assert_eq!(levers.holds(&slot("w").0), Some((Access::Locked, Cause::Manual)));
    assert_eq!(levers.orders(now(9_000_000)), []);
    let written = entry(&levers, "w");
    levers.stored(now(9_000_000), &slot("w"), &written);
    let order = levers.orders(now(9_000_000)).remove(0);
    assert_eq!((order.act, order.sequence, order.memory.as_deref()), (LeverAct::Undo, Sequence(2), Some("ours")));
    let came = levers.answered(now(9_000_100), &slot("w"), order.attempt, Outcome::Done { memory: None, left: Vec::new() }).unwrap();
    assert_eq!((came.entry.state, levers.holds(&slot("w").0)), (LeverState::Undone, None));
}

#[test]
fn failures_back_off_to_five_minutes_and_keep_their_sequence() {
    let mut levers = Levers::default();
    levers.pull(now(0), &slot("w"), wanted(7, true));
    let mut at = 5_000;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let order = levers.orders(now(at)).remove(0);
        assert_eq!(order.sequence, Sequence(7));
        levers.answered(now(at), &slot("w"), order.attempt, fails()).unwrap();
        let next = levers.next_deadline().unwrap().since(now(0).mono).0;
        pauses.push((next - at) / 1000);
        at = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!(levers.views(&slot("w").0)[0].error.as_deref(), Some("HTTP 500"));
}

#[test]
fn an_unlock_while_a_pull_is_under_way_is_undone_with_what_it_changed() {
    let mut levers = Levers::default();
    levers.pull(now(0), &slot("w"), wanted(1, true));
    let order = levers.orders(now(5_000)).remove(0);
    levers.undo(now(5_100), &slot("w"), Sequence(2));
    let written = entry(&levers, "w");
    levers.stored(now(5_200), &slot("w"), &written);
    assert_eq!(levers.orders(now(6_000)), [], "one move at a time");
    let came = levers.answered(now(7_000), &slot("w"), order.attempt, done("ours")).unwrap();
    assert_eq!((came.entry.act, came.entry.state, came.news), (LeverAct::Undo, LeverState::Pending, false));
    levers.stored(now(7_100), &slot("w"), &came.entry);
    assert_eq!(levers.orders(now(7_100))[0].memory.as_deref(), Some("ours"));
}

#[test]
fn a_plan_is_stored_before_it_is_carried_out_and_a_pulled_lever_is_asked_again() {
    let mut levers = Levers::default();
    levers.pull(now(0), &slot("w"), wanted(1, true));
    let order = levers.orders(now(5_000)).remove(0);
    let came = levers.answered(now(5_000), &slot("w"), order.attempt, Outcome::Planned { memory: "plan".to_owned() }).unwrap();
    assert_eq!(levers.orders(now(5_001)), []);
    levers.stored(now(5_002), &slot("w"), &came.entry);
    let order = levers.orders(now(5_002)).remove(0);
    assert_eq!(order.memory.as_deref(), Some("plan"));
    levers.answered(now(6_000), &slot("w"), order.attempt, done("ours")).unwrap();
    assert_eq!(levers.orders(now(6_000 + AGAIN.0)).len(), 1);
    assert!(levers.answered(now(1), &slot("w"), 99, fails()).is_none(), "an answer that nobody waits for");
}

#[test]
fn a_list_is_moved_one_at_a_time_and_always_whole() {
    let mut levers = Levers::default();
    for ws in ["a", "b"] {
        levers.pull(now(0), &slot(ws), wanted(1, false));
    }
    let first = levers.orders(now(5_000));
    assert_eq!((first.len(), first[0].all.len()), (1, 2));
    levers.answered(now(5_010), &slot("a"), first[0].attempt, done("")).unwrap();
    assert_eq!(levers.orders(now(5_300)).len(), 1);
}

#[test]
fn a_restart_asks_for_standing_pulls_again() {
    let mut levers = Levers::default();
    levers.pull(now(0), &slot("w"), wanted(1, true));
    let order = levers.orders(now(5_000)).remove(0);
    let came = levers.answered(now(5_000), &slot("w"), order.attempt, done("ours")).unwrap();
    let mut again = Levers::default();
    again.restore(now(9_000), slot("w"), came.entry, true, true);
    let order = again.orders(now(9_000)).remove(0);
    assert_eq!((order.act, order.memory.as_deref(), order.sequence), (LeverAct::Pull, Some("ours"), Sequence(1)));
}
