//! Levers behind a gate, and drills over it.

use super::*;
use crate::words::{LeverAct, LeverState};

const LEVER: &str = "[levers.call]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:9/\"\nsecret = \"env:HOOK\"\n";

fn one() -> Bench {
    Bench::proven(&format!("{LEVER}{}", key("k", "\"w\"", "default")))
}

fn drill(bench: &mut Bench, ticket: u64, target: &str, cut: bool) {
    bench.ask(ticket, Action::Drill { target: target.to_owned(), length: Span::from_mins(10), cut, reason: "rehearsal".to_owned() });
}

#[test]
fn a_failed_lever_neither_cancels_nor_delays_a_lock_and_is_shown() {
    let mut bench = one();
    bench.levers_fail = true;
    bench.lock(1, "w");
    assert_eq!(bench.access("w"), Access::Locked);
    bench.run(10);
    let view = &bench.workspaces["w"];
    assert!(view.lock_incomplete() && view.levers[0].error.is_some());
    assert_eq!(bench.told(EventType::LeverFailed), 1);
    bench.levers_fail = false;
    bench.run(60);
    assert!(!bench.workspaces["w"].lock_incomplete());
    assert_eq!(bench.pulled, BTreeSet::from(["call/w".to_owned()]));
}

#[test]
fn a_gate_opens_only_when_its_levers_are_undone() {
    let mut bench = one();
    bench.lock(1, "w");
    bench.run(1);
    bench.levers_fail = true;
    bench.unlock(2, "w", None);
    bench.run(30);
    let view = &bench.workspaces["w"];
    assert_eq!((view.access, view.locks.len(), view.unlock_incomplete()), (Access::Locked, 0, true));
    assert_eq!(bench.told(EventType::WorkspaceOpened), 0, "told when it opens");
    bench.restart();
    assert_eq!(bench.access("w"), Access::Locked, "a restart opens nothing");
    bench.levers_fail = false;
    bench.turn(vec![Event::Wake]);
    bench.run(300);
    assert_eq!((bench.access("w"), bench.told(EventType::WorkspaceOpened)), (Access::Open, 1));
    assert!(bench.pulled.is_empty());
    let lever = &bench.workspaces["w"].levers[0];
    assert_eq!((lever.act, lever.state), (LeverAct::Undo, LeverState::Undone));
}

#[test]
fn a_drill_that_cuts_nothing_goes_the_whole_way_with_the_gate_open() {
    let mut bench = one();
    drill(&mut bench, 1, "k", false);
    let view = bench.workspaces["w"].clone();
    let told = view.drill.clone().unwrap();
    assert_eq!((view.access, told.cut, view.locks.len()), (Access::Open, false, 0));
    assert!(told.stored_at.is_some() && told.applied_at.is_some());
    bench.restart();
    assert!(bench.workspaces["w"].drill.is_some(), "it survives a restart");
    bench.turn(vec![Event::Wake]);
    bench.run(601);
    assert!(bench.workspaces["w"].drill.is_none(), "it ends by itself");
    assert_eq!((bench.told(EventType::DrillStarted), bench.told(EventType::DrillEnded)), (1, 1));
    let drills: Vec<_> = bench.notices.iter().filter(|notice| notice.drill).collect();
    assert!(
        drills.iter().all(|notice| notice.message.starts_with("DRILL") && crate::notify::compose::subject(notice).starts_with("DRILL"))
    );
    assert!(drills.iter().any(|notice| notice.message.contains("mail after")), "{:?}", drills.last().map(|n| &n.message));
    assert_eq!(bench.state("k"), StateWord::Active);
}

#[test]
fn a_drill_that_cuts_lowers_the_gate_pulls_no_lever_and_leaves_no_lock() {
    let mut bench = one();
    bench.store = Store::Silent;
    drill(&mut bench, 1, "w", true);
    assert_eq!(bench.access("w"), Access::Open, "nothing is cut before it is stored");
    bench.store_answers();
    let view = bench.workspaces["w"].clone();
    assert_eq!((view.access, view.cause.map(|c| c.as_str()), view.locks.len()), (Access::Locked, Some("drill"), 0));
    bench.unlock(2, "w", None);
    assert_eq!(bench.access("w"), Access::Locked, "an unlock is for locks");
    let id = view.drill.as_ref().unwrap().id.clone();
    bench.ask(3, Action::EndDrill { id, reason: "enough".to_owned() });
    assert_eq!(bench.access("w"), Access::Open);
    assert!(bench.workspaces["w"].sequence > view.sequence);
    assert!(bench.pulled.is_empty() && bench.disk.orders.is_empty());
}

#[test]
fn a_real_revocation_during_a_drill_locks_stays_and_ends_the_drill() {
    let mut bench = one();
    drill(&mut bench, 1, "w", true);
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    let view = &bench.workspaces["w"];
    assert_eq!((view.access, view.cause.map(|c| c.as_str()), view.drill.is_none()), (Access::Locked, Some("disabled"), true));
    assert_eq!(bench.told(EventType::WorkspaceLocked), 1, "the real lock is told");
    bench.run(700);
    assert_eq!(bench.access("w"), Access::Locked, "the drill's end lifts nothing");
    drill(&mut bench, 2, "w", true);
    assert_eq!(bench.refusal(2), Some(RefusalSlug::NotOpen));
}

#[test]
fn what_a_drill_refuses() {
    let mut bench = one();
    drill(&mut bench, 1, "nobody", false);
    assert_eq!(bench.refusal(1), Some(RefusalSlug::UnknownWorkspace));
    bench.ask(2, Action::Drill { target: "w".to_owned(), length: Span::from_hours(2), cut: false, reason: "r".to_owned() });
    assert_eq!(bench.refusal(2), Some(RefusalSlug::Invalid));
    bench.ask(3, Action::EndDrill { id: "drl_0".to_owned(), reason: "r".to_owned() });
    assert_eq!(bench.refusal(3), Some(RefusalSlug::UnknownDrill));
    drill(&mut bench, 4, "w", false);
    drill(&mut bench, 5, "k", false);
    assert_eq!(bench.refusal(5), Some(RefusalSlug::NotOpen));
}
