//! Keys that come and go by the API.

use super::*;
use crate::config::raw;

fn raw(id: &str, of: &str, workspaces: &[&str]) -> Box<raw::Key> {
    Box::new(raw::Key {
        id: id.to_owned(),
        provider: "p".to_owned(),
        key: reference(of),
        workspaces: workspaces.iter().map(|w| (*w).to_owned()).collect(),
        ..raw::Key::default()
    })
}

fn put(bench: &mut Bench, ticket: u64, key: Box<raw::Key>) {
    bench.ask(ticket, Action::PutKey { key });
}

fn delete(bench: &mut Bench, ticket: u64, id: &str, keep_lock: bool) {
    bench.ask(ticket, Action::DeleteKey { key: KeyId::new(id).unwrap(), keep_lock });
}

fn detail(bench: &Bench, ticket: u64) -> String {
    bench.replies.iter().find(|(t, _)| t.0 == ticket).unwrap().1.as_ref().unwrap_err().detail.clone()
}

fn created(bench: &Bench, ticket: u64) -> bool {
    matches!(bench.replies.iter().find(|(t, _)| t.0 == ticket).unwrap().1, Ok(crate::operate::Reply::Registered(_)))
}

#[test]
fn a_key_by_the_api_is_watched_survives_a_restart_and_a_reload_and_asks_twice_the_same() {
    let mut bench = Bench::proven(&key("k", "\"w\"", "default"));
    put(&mut bench, 1, raw("a", "a", &["x"]));
    assert!(created(&bench, 1));
    bench.run(10);
    assert_eq!((bench.state("a"), bench.keys["a"].source.as_str()), (StateWord::Active, "api"));
    let records = bench.disk.restored().head;
    put(&mut bench, 2, raw("a", "a", &["x"]));
    assert!(!created(&bench, 2));
    assert_eq!((bench.refusal(2), bench.disk.restored().head), (None, records));
    bench.restart();
    assert_eq!((bench.state("a"), bench.access("x")), (StateWord::Active, Access::Open));
    bench.reload(&key("k", "\"w\"", "default"));
    assert_eq!(bench.state("a"), StateWord::Active);
    bench.deny("a", true);
    bench.run(200);
    assert_eq!((bench.access("x"), bench.access("w")), (Access::Locked, Access::Open));
}

#[test]
fn what_stands_in_a_file_is_changed_there_and_one_key_has_one_id() {
    let mut bench = Bench::proven(&key("k", "\"w\"", "default"));
    put(&mut bench, 1, raw("k", "k", &[]));
    delete(&mut bench, 2, "k", true);
    delete(&mut bench, 3, "none", false);
    put(&mut bench, 4, raw("twin", "k", &[]));
    let mut bad = raw("bad", "bad", &["a b"]);
    bad.policy = Some("none".to_owned());
    put(&mut bench, 5, bad);
    let mut spy = raw("spy", "spy", &[]);
    spy.assume_role =
        Some(crate::key::AssumeRole { arn: "arn:aws:iam::444455556666:role/r".to_owned(), external_id: Some("env:HOME".to_owned()) });
    put(&mut bench, 6, spy);
    assert_eq!([1, 2].map(|t| bench.refusal(t)), [Some(RefusalSlug::FileManaged); 2]);
    assert_eq!(bench.refusal(3), Some(RefusalSlug::UnknownKey));
    assert_eq!([4, 5, 6].map(|t| bench.refusal(t)), [Some(RefusalSlug::Invalid); 3]);
    assert_eq!(detail(&bench, 4), "key: the same key of the same provider is already registered as `k`");
    assert!(detail(&bench, 5).starts_with("policy: unknown policy \"none\", expected one of: default; workspaces: "));
    assert!(detail(&bench, 6).starts_with("assume_role: external_id: "));
    assert_eq!(bench.keys.keys().collect::<Vec<_>>(), ["k"]);
}

#[test]
fn a_locking_key_goes_only_when_its_locks_may_stay() {
    let mut bench = Bench::proven("");
    put(&mut bench, 1, raw("a", "a", &["x"]));
    bench.run(10);
    bench.deny("a", true);
    bench.run(200);
    assert_eq!(bench.access("x"), Access::Locked);
    delete(&mut bench, 2, "a", false);
    assert_eq!((bench.refusal(2), detail(&bench, 2).starts_with("key `a` locks x: ")), (Some(RefusalSlug::KeyLocks), true));
    delete(&mut bench, 3, "a", true);
    assert_eq!((bench.refusal(3), bench.keys.len()), (None, 0));
    assert_eq!((bench.access("x"), bench.workspaces["x"].cause), (Access::Locked, Some(crate::words::Cause::Orphaned)));
    bench.restart();
    assert_eq!((bench.access("x"), bench.keys.len()), (Access::Locked, 0));
    bench.unlock(4, "x", None);
    assert_eq!((bench.refusal(4), bench.access("x")), (None, Access::Open));
}

#[test]
fn another_key_under_an_old_id_is_unproven_and_the_old_ones_locks_stay() {
    let mut bench = Bench::proven("");
    put(&mut bench, 1, raw("a", "a", &["x"]));
    bench.run(10);
    bench.deny("a", true);
    bench.run(200);
    put(&mut bench, 2, raw("a", "b", &["x"]));
    assert!(!created(&bench, 2));
    assert_eq!((bench.access("x"), bench.workspaces["x"].cause), (Access::Locked, Some(crate::words::Cause::Orphaned)));
    assert_eq!(bench.keys["a"].key, reference("b"));
    bench.run(60);
    assert_eq!((bench.state("a"), bench.access("x")), (StateWord::Active, Access::Locked));
}

#[test]
fn a_later_configuration_that_makes_a_row_invalid_shows_it_and_loses_nothing() {
    let gold = "[policies.gold]\n";
    let mut bench = Bench::proven(gold);
    let mut key_a = raw("a", "a", &["x"]);
    key_a.policy = Some("gold".to_owned());
    put(&mut bench, 1, key_a);
    bench.run(10);
    bench.reload("");
    let view = &bench.keys["a"];
    assert_eq!((view.failure_kind, view.source.as_str()), (Some(FailureKind::Misconfigured), "api"));
    assert_eq!(view.refused.as_deref(), Some("registered by the API: policy: unknown policy \"gold\", expected one of: default"));
    bench.restart();
    assert_eq!(bench.keys["a"].failure_kind, Some(FailureKind::Misconfigured));
    bench.reload(gold);
    bench.run(70);
    assert_eq!((bench.state("a"), bench.keys["a"].failure_kind, bench.keys["a"].refused.as_ref()), (StateWord::Active, None, None));
}

#[test]
fn a_file_that_names_the_same_key_stands_before_the_row_and_gives_it_back() {
    let mut bench = Bench::proven("");
    put(&mut bench, 1, raw("a", "a", &["x"]));
    bench.run(10);
    bench.reload(&key("f", "\"w\"", "default").replace(&reference("f"), &reference("a")));
    bench.run(70);
    assert_eq!(bench.keys["a"].failure_kind, Some(FailureKind::Misconfigured));
    assert_eq!(bench.state("f"), StateWord::Active);
    bench.truth("a").unwrap_denied = true;
    bench.run(200);
    assert_eq!(bench.access("w"), Access::Locked);
    bench.truth("a").unwrap_denied = false;
    bench.reload("");
    bench.run(200);
    assert_eq!((bench.state("a"), bench.access("w")), (StateWord::Active, Access::Locked));
}
