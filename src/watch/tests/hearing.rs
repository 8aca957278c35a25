//! Audit events explain and make a key due; no decision is ever another with them than without.

use super::*;
use crate::audit::{Actor, AuditEvent, AuditFault, Cursor, Told};
use crate::words::{AuditMeaning, AuditTrouble};
use proptest::prelude::*;

const SOURCE: &str = "[audit.trail]\nkind = \"push\"\nprovider = \"p\"\n";
const QUIET: &str = "[audit.trail]\nkind = \"push\"\nprovider = \"p\"\nlook_now = false\n";

fn event(bench: &Bench, id: &str, key: &str, meaning: AuditMeaning, ago_s: u64) -> AuditEvent {
    AuditEvent {
        id: id.to_owned(),
        provider: crate::words::ProviderKind::Aws,
        name: format!("{meaning}"),
        meaning,
        subjects: crate::audit::subject::aws_arn(&reference(key)).into_iter().collect(),
        version: None,
        actor: Actor { principal: Some("arn:aws:iam::1:user/alice".into()), address: Some("203.0.113.9".into()), ..Actor::default() },
        at: bench.now.wall.minus(Span::from_secs(ago_s)),
        error: None,
    }
}

fn tell(bench: &mut Bench, events: Vec<AuditEvent>) {
    let told = Told { source: "trail".to_owned(), events, ..Told::default() };
    bench.ask(700, Action::Audit { told: Box::new(told) });
}

fn records(bench: &Bench, event: EventType) -> Vec<crate::journal::Record> {
    bench.disk.records.iter().filter(|r| r.event == event).cloned().collect()
}

#[test]
fn a_hint_brings_the_next_look_forward_and_a_second_one_waits_its_turn() {
    let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
    bench.run(20);
    let before = bench.probes.len();
    let hint = || Event::Hint { key: KeyId::new("a").unwrap(), source: "trail".to_owned() };
    bench.turn(vec![hint()]);
    assert_eq!(bench.probes.len(), before + 1, "looked at once");
    bench.turn(vec![hint(), hint(), hint()]);
    assert_eq!(bench.probes.len(), before + 1, "not more often than a suspect");
    bench.run(6);
    assert_eq!(bench.probes.len(), before + 2);
}

#[test]
fn a_flood_of_hints_neither_locks_sooner_nor_later() {
    let time = |hints: bool| {
        let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
        bench.deny("a", true);
        (0..600)
            .find(|_| {
                if hints {
                    bench.turn(vec![Event::Hint { key: KeyId::new("a").unwrap(), source: "trail".to_owned() }]);
                }
                bench.run(1);
                bench.access("w") == Access::Locked
            })
            .expect("a lock")
    };
    let (without, with) = (time(false), time(true));
    assert!(with <= without && with >= 29, "{with} s with hints, {without} s without: three counted looks over 30 s");
}

#[test]
fn a_lock_notice_names_who_did_it_when_the_event_came_first() {
    let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
    bench.truth("a").status = Status::Disabled;
    let told = event(&bench, "e-1", "a", AuditMeaning::Disable, 2);
    tell(&mut bench, vec![told.clone(), told]);
    bench.run(60);
    let lock = bench.notices.iter().find(|n| n.event == EventType::WorkspaceLocked).expect("a lock notice").clone();
    assert_eq!(lock.actor.as_deref(), Some("arn:aws:iam::1:user/alice"));
    assert!(lock.message.contains("203.0.113.9") && lock.message.contains("e-1"), "{}", lock.message);
    assert_eq!(bench.told(EventType::KeyAttributed), 0, "nothing is left to follow");
    assert_eq!(records(&bench, EventType::AuditEvent).len(), 1, "heard once");
    let locked = &records(&bench, EventType::WorkspaceLocked)[0];
    assert_eq!((locked.event_id.as_deref(), locked.actor.as_deref()), (Some("e-1"), Some("arn:aws:iam::1:user/alice")));
    assert_eq!(locked.correlation_id, records(&bench, EventType::KeyRevoked)[0].correlation_id);
}

#[test]
fn a_late_event_amends_by_a_new_record_and_one_follow_up_even_after_a_restart() {
    let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
    bench.truth("a").status = Status::Disabled;
    bench.run(60);
    assert_eq!(bench.access("w"), Access::Locked);
    let before = records(&bench, EventType::WorkspaceLocked)[0].clone();
    bench.restart();
    bench.turn(vec![Event::Wake]);
    let told = event(&bench, "e-2", "a", AuditMeaning::Disable, 62);
    tell(&mut bench, vec![told.clone()]);
    bench.restart();
    bench.turn(vec![Event::Wake]);
    tell(&mut bench, vec![told]);
    bench.run(5);
    assert_eq!(bench.told(EventType::KeyAttributed), 1);
    let amended = records(&bench, EventType::KeyAttributed);
    assert_eq!((amended.len(), amended[0].event_id.as_deref()), (1, Some("e-2")));
    assert_eq!(amended[0].correlation_id, before.correlation_id);
    assert_eq!(records(&bench, EventType::WorkspaceLocked)[0], before, "the old row stands as it was");
}

#[test]
fn a_bare_id_settles_before_it_is_told() {
    let opaque = |bench: &Bench| {
        let mut told = event(bench, "e-3", "a", AuditMeaning::Disable, 62);
        told.actor =
            Actor { principal: Some("AROAEXAMPLEEXAMPLEAA:s".into()), id: Some("AROAEXAMPLEEXAMPLEAA".into()), ..Actor::default() };
        told
    };
    let locked = || {
        let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
        bench.truth("a").status = Status::Disabled;
        bench.run(60);
        bench
    };
    let mut bench = locked();
    let told = opaque(&bench);
    tell(&mut bench, vec![told.clone()]);
    bench.run(60);
    assert_eq!(bench.told(EventType::KeyAttributed), 0, "it may still become a name");
    let mut named = told;
    named.actor.principal = Some("arn:aws:sts::1:assumed-role/Admin/s".into());
    tell(&mut bench, vec![named]);
    bench.run(300);
    let told: Vec<_> = bench.notices.iter().filter(|n| n.event == EventType::KeyAttributed).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].actor.as_deref(), Some("arn:aws:sts::1:assumed-role/Admin/s"));
    // Never resolved: told as what it is.
    let mut bench = locked();
    let told = opaque(&bench);
    tell(&mut bench, vec![told]);
    bench.run(300);
    let told: Vec<_> = bench.notices.iter().filter(|n| n.event == EventType::KeyAttributed).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].message.contains("may be deleted"), "{}", told[0].message);
}

#[test]
fn a_source_that_is_refused_is_told_once_and_its_return_too() {
    let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
    let trouble = |bench: &mut Bench, kind| {
        let fault = AuditFault::new(kind, "no");
        bench.ask(701, Action::Audit { told: Box::new(Told { source: "trail".into(), trouble: Some(fault), ..Told::default() }) });
    };
    (0..5).for_each(|_| trouble(&mut bench, AuditTrouble::LogDisabled));
    assert_eq!(bench.told(EventType::AuditSilent), 1);
    bench.run(60);
    let cursor = Cursor { until: Some(bench.now.wall), ..Cursor::default() };
    let seen_until = Some(bench.now.wall);
    bench.ask(
        702,
        Action::Audit { told: Box::new(Told { source: "trail".into(), cursor: Some(cursor.clone()), seen_until, ..Told::default() }) },
    );
    assert_eq!(bench.told(EventType::AuditResumed), 1);
    let state: SourceState = serde_json::from_str(&bench.disk.restored().meta["audit:trail"]).unwrap();
    assert_eq!((state.cursor, state.gaps.len()), (Some(cursor), 1), "the dark stretch is kept as a gap");
    // Throttling passes by itself and is told only when it lasts.
    trouble(&mut bench, AuditTrouble::Throttled);
    assert_eq!(bench.told(EventType::AuditSilent), 1);
    bench.run(700);
    trouble(&mut bench, AuditTrouble::Throttled);
    assert_eq!(bench.told(EventType::AuditSilent), 2);
    let unseen = Some(vec!["data-access logs of projects/p".to_owned()]);
    for _ in 0..3 {
        bench.ask(703, Action::Audit { told: Box::new(Told { source: "trail".into(), unseen: unseen.clone(), ..Told::default() }) });
    }
    assert_eq!(bench.told(EventType::AuditSilent), 3, "said once");
    let unknown = Told { source: "nobody".into(), ..Told::default() };
    bench.ask(704, Action::Audit { told: Box::new(unknown) });
    assert_eq!(bench.refusal(704), Some(RefusalSlug::Invalid));
}

#[test]
fn latency_is_counted_from_the_providers_time_once_a_stage_however_late_it_is_known() {
    for late in [false, true] {
        let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
        bench.truth("a").status = Status::Disabled;
        let mut told = event(&bench, "e-4", "a", AuditMeaning::Disable, 3);
        if !late {
            tell(&mut bench, vec![told.clone()]);
        }
        bench.run(120);
        if late {
            told.id = "e-5".to_owned();
            tell(&mut bench, vec![told]);
        }
        bench.run(5);
        let from_provider: Vec<_> = bench.latencies.iter().filter(|(_, start, _)| *start == "provider").collect();
        let stages: Vec<&str> = from_provider.iter().map(|(stage, ..)| *stage).collect();
        assert_eq!(stages, ["detect", "confirm", "apply"], "late: {late}");
        assert!(from_provider.iter().all(|(.., span)| *span >= Span::from_secs(3)), "{from_provider:?}");
    }
}

/// What happens in a script. No restart: an event writes the key's row, and a fresher row lets the first look
/// after a start wait for its slot. That look is then a later one, and no other; the simulation has crashes too.
#[derive(Clone, Debug)]
enum Move {
    Truth(u8, u8),
    Operator(u8, bool),
    Wait(u64),
    Audit(u8, usize, u64, bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (0u8..3, 0u8..5).prop_map(|(key, to)| Move::Truth(key, to)),
        (0u8..3, any::<bool>()).prop_map(|(key, lock)| Move::Operator(key, lock)),
        (1u64..90).prop_map(Move::Wait),
        (0u8..3, 0..AuditMeaning::ALL.len(), 0u64..400, any::<bool>()).prop_map(|(k, m, ago, err)| Move::Audit(k, m, ago, err)),
        (0u8..3, 0..AuditMeaning::ALL.len(), 0u64..400, any::<bool>()).prop_map(|(k, m, ago, err)| Move::Audit(k, m, ago, err)),
    ];
    proptest::collection::vec(one, 1..25)
}

const KEYS: [&str; 3] = ["a", "b", "c"];

/// Time, workspaces (access, sequence, locks), keys, brake.
type Shown = (u64, Vec<(Access, u64, usize)>, Vec<(StateWord, Option<HeldBy>)>, bool);
type Decided = Vec<Shown>;

fn play(moves: &[Move], audit: bool) -> Decided {
    let keys: String = KEYS.iter().map(|id| key(id, &format!("\"w{id}\""), "default")).collect();
    let mut bench = Bench::proven(&format!("{QUIET}{keys}"));
    let mut decided = Vec::new();
    for (n, what) in moves.iter().enumerate() {
        match what {
            Move::Truth(key, to) => {
                let id = KEYS[usize::from(*key)];
                let truth = bench.truth(id);
                truth.status = [Status::Enabled, Status::Disabled, Status::Pending, Status::Enabled, Status::Destroyed][usize::from(*to)];
                bench.deny(id, *to == 3);
            }
            Move::Operator(key, lock) => {
                let ws = format!("w{}", KEYS[usize::from(*key)]);
                if *lock { bench.lock(n as u64, &ws) } else { bench.unlock(n as u64, &ws, None) }
            }
            Move::Wait(secs) => {
                for _ in 0..*secs {
                    bench.run(1);
                    decided.push(shown(&bench));
                }
            }
            Move::Audit(key, meaning, ago, failed) if audit => {
                let id = KEYS[usize::from(*key)];
                let told = event(&bench, &format!("e{n}"), id, AuditMeaning::ALL[*meaning], *ago);
                let error = failed.then(|| "AccessDenied".to_owned());
                tell(&mut bench, vec![AuditEvent { error, ..told }]);
            }
            // Any event makes a turn, in which what is due happens.
            Move::Audit(..) => bench.turn(vec![Event::Wake]),
        }
        decided.push(shown(&bench));
    }
    decided
}

fn shown(bench: &Bench) -> Shown {
    let workspaces = bench.workspaces.values().map(|ws| (ws.access, ws.sequence.0, ws.locks.len())).collect();
    let keys = bench.keys.values().map(|key| (key.state, key.held_by)).collect();
    (bench.now.mono.0, workspaces, keys, bench.engaged)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn decisions_are_the_same_with_audit_events_and_without(moves in moves()) {
        prop_assert_eq!(play(&moves, true), play(&moves, false));
    }

    #[test]
    fn no_audit_event_locks_a_key_that_works_or_opens_one_that_does_not(
        told in proptest::collection::vec((0..AuditMeaning::ALL.len(), 0u64..400, 0u64..20), 1..40),
        revoked in any::<bool>(),
    ) {
        let mut bench = Bench::proven(&format!("{SOURCE}{}", key("a", "\"w\"", "default")));
        if revoked {
            bench.truth("a").status = Status::Disabled;
            bench.run(60);
        }
        for (n, (meaning, ago, wait)) in told.into_iter().enumerate() {
            let heard = event(&bench, &format!("e{n}"), "a", AuditMeaning::ALL[meaning], ago);
            tell(&mut bench, vec![heard]);
            bench.run(wait);
            prop_assert_eq!(bench.access("w"), if revoked { Access::Locked } else { Access::Open });
            prop_assert_eq!(bench.state("a"), if revoked { StateWord::Revoked } else { StateWord::Active });
        }
    }
}
