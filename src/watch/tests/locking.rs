//! Locks and their ends.

use super::*;

const MANUAL: &str = "[policies.manual]\nunlock = \"manual\"\n";

fn one() -> Bench {
    Bench::proven(&key("k", "\"w\"", "default"))
}

#[test]
fn a_stated_revocation_locks_with_the_second_look() {
    let mut bench = one();
    bench.truth("k").status = Status::Disabled;
    let took = until_locked(&mut bench, "w", 130);
    assert!(took <= 66, "{took} s");
    assert_eq!(bench.state("k"), StateWord::Revoked);
    assert_eq!(bench.told(EventType::WorkspaceLocked), 1);
    bench.truth("k").status = Status::Enabled;
    bench.run(300 + 70);
    assert_eq!((bench.access("w"), bench.state("k")), (Access::Open, StateWord::Active));
    assert_eq!(bench.told(EventType::WorkspaceOpened), 1);
}

#[test]
fn shadow_mode_goes_all_the_way_and_lowers_nothing() {
    let mut bench = Bench::proven(&format!("[policies.shadow]\nenforce = false\n{}", key("k", "\"w\"", "shadow")));
    bench.truth("k").status = Status::Destroyed;
    bench.run(130);
    assert_eq!((bench.access("w"), bench.state("k")), (Access::Open, StateWord::Revoked));
    assert_eq!(bench.workspaces["w"].would_access, Some(Access::Locked));
    assert_eq!((bench.told(EventType::WorkspaceWouldLock), bench.told(EventType::WorkspaceLocked)), (1, 0));
    bench.reload(&key("k", "\"w\"", "default"));
    bench.run(310);
    assert_eq!(bench.access("w"), Access::Locked, "enforced with the next refused look");
}

#[test]
fn removing_a_key_leaves_its_lock_as_an_orphan_that_only_an_operator_clears() {
    let mut bench = one();
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.reload("");
    assert_eq!(bench.workspaces["w"].cause.map(|c| c.as_str()), Some("orphaned"));
    bench.truth("k").status = Status::Enabled;
    bench.reload(&key("again", "\"w\"", "default").replace(&reference("again"), &reference("k")));
    bench.run(600);
    assert_eq!((bench.state("again"), bench.access("w")), (StateWord::Active, Access::Locked), "renaming opens nothing");
    bench.restart();
    assert_eq!(bench.access("w"), Access::Locked);
    bench.unlock(1, "w", None);
    assert_eq!((bench.refusal(1), bench.access("w")), (None, Access::Open));
}

#[test]
fn a_workspace_that_was_unbound_stays_locked_when_the_key_earns_its_unlock() {
    let mut bench = Bench::proven(&key("k", "\"w\", \"x\"", "default"));
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.reload(&key("k", "\"w\"", "default"));
    bench.truth("k").status = Status::Enabled;
    bench.run(400);
    assert_eq!((bench.access("w"), bench.access("x")), (Access::Open, Access::Locked));
}

#[test]
fn an_override_opens_for_its_time_and_then_the_lock_acts_again() {
    let mut bench = one();
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.unlock(1, "w", None);
    assert_eq!(bench.refusal(1), Some(RefusalSlug::NotProven));
    bench.unlock(2, "w", Some(Span::from_hours(25)));
    assert_eq!(bench.refusal(2), Some(RefusalSlug::Invalid));
    let locked = bench.workspaces["w"].sequence;
    bench.unlock(3, "w", Some(Span::from_mins(30)));
    assert_eq!((bench.access("w"), bench.workspaces["w"].overrides.len()), (Access::Open, 1));
    assert!(bench.workspaces["w"].sequence > locked);
    bench.run(29 * 60);
    assert_eq!(bench.access("w"), Access::Open);
    bench.run(120);
    assert_eq!(bench.access("w"), Access::Locked);
}

#[test]
fn an_override_covers_a_lock_by_staleness_too() {
    let mut bench = Bench::proven(&format!("[policies.stale]\nlock_after_stale = \"10m\"\n{}", key("k", "\"w\"", "stale")));
    bench.cloud.side("p").fault = Some(cloud::Fault::Kind(FailureKind::ProviderFault, 1000));
    bench.run(14 * 60);
    assert_eq!(bench.workspaces["w"].cause.map(|c| c.as_str()), Some("stale"));
    bench.unlock(1, "w", Some(Span::from_hours(1)));
    assert_eq!((bench.refusal(1), bench.access("w")), (None, Access::Open));
}

#[test]
fn a_manual_lock_makes_an_unknown_workspace_and_proof_never_clears_it() {
    let mut bench = one();
    bench.lock(1, "new");
    bench.lock(2, "w");
    assert_eq!((bench.access("new"), bench.access("w")), (Access::Locked, Access::Locked));
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.truth("k").status = Status::Enabled;
    bench.run(500);
    assert_eq!((bench.state("k"), bench.access("w")), (StateWord::Active, Access::Locked));
    bench.unlock(3, "w", None);
    assert_eq!(bench.access("w"), Access::Open);
}

#[test]
fn of_two_pending_workspaces_one_is_released_and_stays_so_until_confirmed_again() {
    let mut bench = Bench::proven(&format!("{MANUAL}{}", key("k", "\"w\", \"x\"", "manual")));
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.truth("k").status = Status::Enabled;
    bench.run(400);
    assert_eq!(bench.keys["k"].held_by, Some(HeldBy::Approval));
    assert!(bench.workspaces["w"].release.is_some() && bench.access("w") == Access::Locked);
    bench.unlock(1, "w", None);
    assert_eq!((bench.access("w"), bench.access("x")), (Access::Open, Access::Locked));
    bench.restart();
    bench.run(1);
    assert_eq!((bench.access("w"), bench.access("x")), (Access::Open, Access::Locked), "a restart does not take it back");
    bench.reload(&format!("{MANUAL}{}", key("k", "\"w\", \"x\"", "manual")));
    assert_eq!(bench.access("w"), Access::Open, "nor does a reload");
    bench.truth("k").status = Status::Disabled;
    let took = until_locked(&mut bench, "w", 200);
    assert!(took > 5, "one look is no confirmation");
    assert!(bench.workspaces["x"].release.is_none(), "nothing waits for approval any more");
}

#[test]
fn a_lost_version_locks_once_the_policy_says_so() {
    let mut bench = one();
    bench.truth("k").current = 2;
    bench.run(65);
    bench.truth("k").lost.push(1);
    bench.run(2 * 3700);
    assert_eq!((bench.state("k"), bench.access("w")), (StateWord::Impaired, Access::Open));
    bench.reload(&format!("[policies.hard]\nlost_version = \"locked\"\n{}", key("k", "\"w\"", "hard")));
    bench.run(3700);
    assert_eq!(bench.workspaces["w"].cause.map(|c| c.as_str()), Some("version_lost"));
}

#[test]
fn the_brake_holds_a_wave_and_a_person_lets_it_lock_or_drops_it() {
    for lock in [true, false] {
        let keys: String = ["a", "b", "c", "d"].iter().map(|id| key(id, &format!("\"w{id}\""), "default")).collect();
        let mut bench = Bench::proven(&keys);
        ["a", "b", "c", "d"].iter().for_each(|id| bench.deny(id, true));
        bench.run(200);
        let locked = |bench: &Bench| ["wa", "wb", "wc", "wd"].iter().filter(|ws| bench.access(ws) == Access::Locked).count();
        assert!(bench.engaged && locked(&bench) == 0, "{} locked", locked(&bench));
        assert_eq!(bench.told(EventType::BrakeEngaged), 1);
        // One of them works again: its held order drops by itself.
        bench.deny("a", false);
        bench.run(60);
        bench.ask(5, Action::BrakeRelease { provider: ProviderId::new("p").unwrap(), lock, reason: "r".to_owned() });
        bench.run(60);
        assert_eq!((locked(&bench), bench.access("wa")), (if lock { 3 } else { 0 }, Access::Open));
        if !lock {
            bench.truth("b").status = Status::Disabled;
            bench.run(60);
            assert_eq!(bench.access("wb"), Access::Locked, "a stated end is no part of what was dropped");
        }
    }
}

#[test]
fn an_unproven_key_keeps_no_workspace_open() {
    let any = "[[workspaces]]\nid = \"w\"\nneeds = \"any\"\n";
    let mut bench = Bench::proven(&format!("{any}{}", key("a", "\"w\"", "default")));
    bench.truth("a").status = Status::Disabled;
    bench.run(130);
    assert_eq!(bench.access("w"), Access::Locked);
    bench.truth("b").status = Status::Disabled;
    bench.reload(&format!("{any}{}{}", key("a", "\"w\"", "default"), key("b", "\"w\"", "default")));
    bench.run(200);
    assert_eq!(bench.access("w"), Access::Locked, "a key that never worked is no good key");
    bench.truth("b").status = Status::Enabled;
    bench.run(130);
    assert_eq!(bench.access("w"), Access::Open);
}

#[test]
fn a_released_workspace_is_lowered_again_only_as_far_as_the_new_looks_say() {
    let mut bench = Bench::proven(&format!("{MANUAL}{}", key("k", "\"w\", \"x\"", "manual")));
    bench.truth("k").status = Status::Disabled;
    bench.run(130);
    bench.truth("k").status = Status::Enabled;
    bench.run(400);
    bench.unlock(1, "w", None);
    bench.truth("k").wrap_denied = true;
    bench.run(120);
    assert_eq!((bench.access("w"), bench.access("x")), (Access::ReadOnly, Access::Locked));
    bench.truth("k").unwrap_denied = true;
    bench.run(400);
    assert_eq!(bench.access("w"), Access::Locked);
}

#[test]
fn a_flapping_key_whose_time_came_at_a_good_look_is_locked_at_the_next_refused_one() {
    let policy = "[policies.flap]\nflapping = { after = \"10m\", access = \"locked\" }\n";
    let mut bench = Bench::proven(&format!("{policy}{}", key("k", "\"w\"", "flap")));
    bench.deny("k", true);
    while bench.told(EventType::KeySuspect) == 0 {
        bench.run(1);
    }
    // One look of three or four is refused: neither confirmed nor over. The tenth minute ends at a good one.
    let mut told_at = None;
    for second in 1..=640_u64 {
        let phase = if second < 70 { (second + 2) % 25 } else { (second - 70 + 27) % 30 };
        bench.deny("k", phase < 5);
        bench.run(1);
        if told_at.is_none() && bench.told(EventType::KeySuspect) == 2 {
            told_at = Some((second, bench.access("w")));
        }
    }
    assert!(matches!(told_at, Some((600..=602, Access::Open))), "the case that this is about: {told_at:?}");
    assert_eq!(bench.access("w"), Access::Locked);
    assert_eq!(bench.told(EventType::KeySuspect), 2, "told once as a suspicion and once as flapping");
}

#[test]
fn a_flapping_policy_locks_nothing_for_denials_that_nobody_vouches_for() {
    let mut bench =
        Bench::proven(&format!("[policies.flap]\nflapping = {{ after = \"10m\", access = \"locked\" }}\n{}", key("k", "\"w\"", "flap")));
    bench.cloud.key("p", plan::control(crate::words::ProviderKind::Aws)).truth.status = Status::Disabled;
    bench.run(120);
    bench.deny("k", true);
    bench.run(3600);
    assert_eq!((bench.state("k"), bench.access("w")), (StateWord::Suspect, Access::Open));
}

#[test]
fn a_destroyed_key_is_beyond_recovery_only_when_its_window_is_over() {
    let mut bench = one();
    let until = bench.now.wall.plus(Span::from_days(7));
    (bench.truth("k").status, bench.truth("k").ends_at) = (Status::Destroyed, Some(until));
    bench.run(130);
    let view = &bench.workspaces["w"];
    assert_eq!((view.access, view.terminal, view.recoverable_until), (Access::Locked, false, Some(until)));
    let told = bench.notices.iter().find(|notice| notice.event == EventType::WorkspaceLocked).expect("a notice");
    assert!(!told.terminal && told.recoverable_until == Some(until));

    let mut bench = one();
    bench.truth("k").status = Status::Destroyed;
    bench.run(130);
    assert!(bench.workspaces["w"].terminal && bench.workspaces["w"].access == Access::Locked);
}
