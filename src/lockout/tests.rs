use super::*;
use crate::journal::OrderKey;
use crate::key::WorkspaceId;
use crate::words::{By, FailureKind, Sequence};
use proptest::prelude::*;

fn name(key: &str) -> KeyName {
    (ProviderId::new("p").unwrap(), key.into())
}

fn order(key: Option<&str>, access: Access) -> Order {
    Order {
        workspace: WorkspaceId::new("w").unwrap(),
        by: if key.is_some() { By::Automatic } else { By::Manual },
        key: key.map(|k| OrderKey { id: KeyId::new(k).unwrap(), provider: ProviderId::new("p").unwrap(), reference: k.into() }),
        access,
        cause: if key.is_some() { Cause::Kind(FailureKind::Disabled) } else { Cause::Manual },
        sequence: Sequence(1),
        since: Wall(0),
        reason: None,
        actor: None,
        expires_at: None,
        message: None,
        release: None,
        orphaned: false,
    }
}

fn orders(manual: Option<Access>, keys: &[(&str, Access)]) -> Orders {
    Orders {
        manual: manual.map(|a| order(None, a)),
        automatic: keys.iter().map(|(k, a)| (name(k), order(Some(k), *a))).collect(),
        overrides: vec![],
    }
}

#[test]
fn the_lowest_access_of_all_orders_counts_and_any_lets_one_good_key_suffice() {
    let two = orders(None, &[("a", Access::Locked), ("b", Access::ReadOnly)]);
    let bound = [name("a"), name("b"), name("c")];
    assert_eq!(two.access(&bound, Needs::All, Wall(0)), Access::Locked);
    assert_eq!(two.access(&bound, Needs::Any, Wall(0)), Access::Open);
    assert_eq!(two.access(&bound[..2], Needs::Any, Wall(0)), Access::ReadOnly);
    assert_eq!(orders(Some(Access::Locked), &[]).access(&bound, Needs::Any, Wall(0)), Access::Locked);
    // The order of a key that the workspace is no longer bound to stays.
    assert_eq!(orders(None, &[("gone", Access::Locked)]).access(&bound, Needs::Any, Wall(0)), Access::Locked);
}

#[test]
fn an_override_covers_its_key_and_kind_until_it_ends() {
    let mut locked = orders(None, &[("a", Access::Locked)]);
    let over = |kind| OverrideRow {
        workspace: WorkspaceId::new("w").unwrap(),
        key: KeyId::new("a").unwrap(),
        kind,
        until: Wall(100),
        reason: "r".into(),
        actor: "x".into(),
    };
    locked.overrides = vec![over(FailureKind::AccessDenied)];
    assert_eq!(locked.access(&[name("a")], Needs::All, Wall(50)), Access::Locked);
    locked.overrides = vec![over(FailureKind::Disabled)];
    assert_eq!(locked.access(&[name("a")], Needs::All, Wall(50)), Access::Open);
    assert_eq!(locked.access(&[name("a")], Needs::All, Wall(100)), Access::Locked);
    locked.manual = Some(order(None, Access::Locked));
    assert_eq!(locked.access(&[name("a")], Needs::All, Wall(50)), Access::Locked);
}

fn account(i: u32) -> Arc<str> {
    format!("acct-{i}").into()
}

fn ask(brake: &mut Brake, at: u64, key: u32) -> BrakeMove {
    brake.ask(Mono(at), Wall(0), &KeyId::new(&format!("k{key}")).unwrap(), &BrakeRule::default())
}

#[test]
fn three_accounts_of_a_fifth_hold_but_many_keys_of_one_account_pass() {
    let rule = BrakeRule::default();
    let mut one_owner = Brake::default();
    assert!(one_owner.suspect(Mono(0), &account(0), KeyIx(0), &rule));
    for key in 1..20 {
        assert!(!one_owner.suspect(Mono(0), &account(0), KeyIx(key), &rule));
    }
    (1..5).for_each(|i| one_owner.looked(&account(i)));
    assert_eq!(ask(&mut one_owner, 30_000, 0), BrakeMove::Go);

    let mut wave = Brake::default();
    (0..3).for_each(|i| {
        wave.suspect(Mono(0), &account(i), KeyIx(i), &rule);
    });
    (3..13).for_each(|i| wave.looked(&account(i)));
    assert_eq!(ask(&mut wave, 30_000, 0), BrakeMove::Hold { engaged_now: true });
    assert_eq!(ask(&mut wave, 30_001, 1), BrakeMove::Hold { engaged_now: false });
    assert_eq!(wave.held.len(), 2);

    let mut sparse = Brake::default();
    (0..3).for_each(|i| {
        sparse.suspect(Mono(0), &account(i), KeyIx(i), &rule);
    });
    (3..23).for_each(|i| sparse.looked(&account(i)));
    assert_eq!(ask(&mut sparse, 30_000, 0), BrakeMove::Go, "3 of 23 accounts are less than a fifth");
}

#[test]
fn never_more_than_twenty_five_unstated_locks_in_a_window() {
    let mut brake = Brake::default();
    for i in 0..25 {
        assert_eq!(ask(&mut brake, u64::from(i), i), BrakeMove::Go);
    }
    assert_eq!(ask(&mut brake, 30, 25), BrakeMove::Hold { engaged_now: true });
    let mut spread = Brake::default();
    for i in 0..100 {
        assert_eq!(ask(&mut spread, u64::from(i) * 60_000, i), BrakeMove::Go);
    }
}

#[test]
fn engagement_and_held_keys_survive_a_restart_and_release_gives_them_back() {
    let mut brake = Brake { engaged: true, ..Brake::default() };
    assert!(matches!(ask(&mut brake, 0, 1), BrakeMove::Hold { engaged_now: false }));
    let mut stored: Brake = serde_json::from_str(&serde_json::to_string(&brake).unwrap()).unwrap();
    assert!(stored.engaged);
    assert_eq!(stored.release(), [KeyId::new("k1").unwrap()]);
    assert_eq!(ask(&mut stored, 1, 2), BrakeMove::Go);
}

proptest! {
    #[test]
    fn no_automatic_change_ever_clears_a_manual_order(keys in proptest::collection::btree_map("[a-d]", 0usize..3, 0..4), any_needs in any::<bool>()) {
        let levels = [Access::Open, Access::ReadOnly, Access::Locked];
        let keys: Vec<(String, Access)> = keys.into_iter().map(|(k, a)| (k, levels[a])).collect();
        let short: Vec<(&str, Access)> = keys.iter().map(|(k, a)| (k.as_str(), *a)).collect();
        let needs = if any_needs { Needs::Any } else { Needs::All };
        let bound: Vec<KeyName> = short.iter().map(|(k, _)| name(k)).collect();
        for manual in [Access::ReadOnly, Access::Locked] {
            prop_assert!(orders(Some(manual), &short).access(&bound, needs, Wall(0)) >= manual);
        }
    }

    /// Whatever happens, within one window at most `most` unstated locks pass.
    #[test]
    fn unstated_locks_are_bounded(steps in proptest::collection::vec((0u32..40, 0u64..30_000, 0u8..4), 1..300)) {
        let rule = BrakeRule::default();
        let (mut brake, mut now, mut passed) = (Brake::default(), 0u64, vec![]);
        for (i, gap, what) in steps {
            now += gap;
            match what {
                0 => { brake.suspect(Mono(now), &account(i), KeyIx(i), &rule); }
                1 => brake.looked(&account(i)),
                2 => brake.cleared(&account(i), KeyIx(i)),
                _ => if ask(&mut brake, now, i) == BrakeMove::Go { passed.push(now) },
            }
            let within = passed.iter().filter(|at| now - **at < rule.within.0).count();
            prop_assert!(within <= 25);
        }
    }
}
