//! inside
//! Places, envelopes and the plan of wrapping anew, by tables and by properties.

use super::envelope::{Kind, Place, join, split};
use super::wraps::{
    DOUBTS, DataKeyId, DataKeyRow, KeyRole, KeyWatch, Look, Told, VaultKeyName, Wanted, Wrap, missing, replaced, rewrap_plan, settled,
};
use super::{DATA_KEY_AGE, DATA_KEY_USES, seals_on};
use crate::key::{KeyVersion, ProviderId, WorkspaceId};
use crate::kms::Wrapped;
use crate::time::{Span, Wall};
use crate::words::FailureKind;
use proptest::prelude::*;

fn name(reference: &str) -> VaultKeyName {
    VaultKeyName { provider: ProviderId::new("p").unwrap(), reference: reference.into() }
}

fn wrap(role: KeyRole, reference: &str, version: Option<&str>) -> Wrap {
    let wrapped = Wrapped { bytes: [1].into(), digest: [0; 32], version: version.map(KeyVersion::new), sealed_with: "".into() };
    Wrap { role, name: name(reference), wrapped, wrapped_at: Wall(1) }
}

fn want(role: KeyRole, reference: &str, version: Option<&str>) -> Wanted {
    Wanted { role, name: name(reference), version: version.map(KeyVersion::new) }
}

fn row(id: &str, made: i64, wraps: Vec<Wrap>) -> DataKeyRow {
    DataKeyRow { id: DataKeyId(id.into()), made_at: Wall(made), uses: 0, wraps }
}

fn place(workspace: &str, id: &str, data_key: &str) -> Place {
    Place {
        kind: Kind::Record,
        workspace: WorkspaceId::new(workspace).unwrap(),
        id: id.into(),
        schema: 1,
        revision: 1,
        written_at: Wall(1_764_056_760_123),
        data_key: DataKeyId(data_key.into()),
    }
}

#[test]
fn every_part_of_a_place_changes_its_context() {
    let base = place("ws", "r", "dk_1");
    let others = [
        place("ws2", "r", "dk_1"),
        place("ws", "r2", "dk_1"),
        place("ws", "r", "dk_2"),
        Place { kind: Kind::Preservation, ..base.clone() },
        Place { schema: 2, ..base.clone() },
        Place { revision: 2, ..base.clone() },
        Place { written_at: Wall(0), ..base.clone() },
    ];
    for other in others {
        assert_ne!(other.context(), base.context(), "{other:?}");
    }
}

#[test]
fn what_is_no_envelope_is_not_taken_apart() {
    let whole = join(&DataKeyId("dk_1".into()), &[7; 12], &[9; 16]);
    assert!(split(&whole).is_some());
    for cut in 0..whole.len() {
        assert_eq!(split(&whole[..cut]), None, "{cut}");
    }
    assert_eq!(split(&[b"CWV2".as_slice(), &whole[4..]].concat()), None);
    let mut not_text = whole;
    not_text[5] = 0xff;
    assert_eq!(split(&not_text), None);
}

#[test]
fn a_data_key_is_wrapped_anew_when_key_version_or_role_differ_and_not_otherwise() {
    let (op, rec) = (KeyRole::Operator, KeyRole::Recovery);
    let wanted = [want(op, "o", Some("2")), want(rec, "r", None)];
    for (wraps, whole) in [
        (vec![wrap(op, "o", Some("2")), wrap(rec, "r", Some("1"))], true),
        // A key that never says its version cannot be told to have rotated.
        (vec![wrap(op, "o", None), wrap(rec, "r", None)], true),
        (vec![wrap(op, "o", Some("1")), wrap(rec, "r", None)], false),
        (vec![wrap(op, "o", Some("2"))], false),
        (vec![wrap(op, "o", Some("2")), wrap(rec, "other", None)], false),
        (vec![wrap(op, "o", Some("2")), wrap(rec, "r", None), wrap(rec, "old", None)], false),
        (vec![], false),
    ] {
        assert_eq!(settled(&row("a", 1, wraps.clone()), &wanted), whole, "{wraps:?}");
    }
    // The recovery key was taken out of the configuration: its wrapped form goes.
    assert!(!settled(&row("a", 1, vec![wrap(op, "o", Some("2")), wrap(rec, "r", None)]), &wanted[..1]));
}

#[test]
fn the_oldest_go_first_and_no_more_than_allowed() {
    let wanted = [want(KeyRole::Operator, "o", Some("2"))];
    let rows = [
        row("c", 3, vec![wrap(KeyRole::Operator, "o", Some("1"))]),
        row("a", 1, vec![wrap(KeyRole::Operator, "o", Some("2"))]),
        row("b", 2, vec![wrap(KeyRole::Operator, "o", Some("1"))]),
    ];
    let ids = |all, most| rewrap_plan(&rows, &wanted, all, most).iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join("");
    assert_eq!((ids(false, 9), ids(false, 1), ids(true, 9)), ("bc".to_owned(), "b".to_owned(), "abc".to_owned()));
    assert!(rewrap_plan(&rows, &[], true, 9).is_empty(), "without keys there is nothing to wrap with");
}

#[test]
fn a_data_key_seals_until_its_uses_or_its_age_are_spent() {
    let fresh = row("a", 0, vec![]);
    assert!(seals_on(&fresh, Wall(0).plus(DATA_KEY_AGE.minus(Span(1)))));
    assert!(!seals_on(&fresh, Wall(0).plus(DATA_KEY_AGE)));
    assert!(!seals_on(&DataKeyRow { uses: DATA_KEY_USES, ..fresh }, Wall(0)));
}

#[test]
fn a_refusal_is_told_at_once_doubt_after_a_while_and_each_only_once() {
    let mut watch = KeyWatch::default();
    assert_eq!(watch.look(&Look::Good), None);
    assert_eq!(watch.look(&Look::Bad(FailureKind::Disabled)), Some(Told::Failing));
    assert_eq!(watch.look(&Look::Bad(FailureKind::Disabled)), None);
    assert_eq!(watch.look(&Look::Bad(FailureKind::Timeout)), None);
    assert!(watch.failing());
    assert_eq!(watch.look(&Look::Good), Some(Told::Recovered));
    for n in 1..DOUBTS {
        assert_eq!(watch.look(&Look::Bad(FailureKind::Timeout)), None, "{n}");
    }
    assert_eq!(watch.look(&Look::Bad(FailureKind::Timeout)), Some(Told::Failing));
    assert_eq!(watch.look(&Look::Good), Some(Told::Recovered));
    // Doubt that ends in time was nothing.
    assert_eq!(watch.look(&Look::Bad(FailureKind::Throttled)), None);
    assert_eq!(watch.look(&Look::Good), None);
    for kind in FailureKind::ALL {
        let told = KeyWatch::default().look(&Look::Bad(*kind)).is_some();
        let doubt =
            [FailureKind::Throttled, FailureKind::ProviderFault, FailureKind::Timeout, FailureKind::Unreachable, FailureKind::Unclassified];
        assert_eq!(told, !doubt.contains(kind), "{kind}");
    }
}

fn some_wrap() -> impl Strategy<Value = Wrap> {
    (any::<bool>(), 0..3u8, proptest::option::of(0..3u8)).prop_map(|(operator, key, version)| {
        let role = if operator { KeyRole::Operator } else { KeyRole::Recovery };
        wrap(role, &format!("k{key}"), version.map(|v| v.to_string()).as_deref())
    })
}

proptest! {
    #[test]
    fn an_envelope_comes_apart_as_it_was_joined(id in "dk_[0-9a-f]{1,64}", nonce: [u8; 12], sealed in proptest::collection::vec(any::<u8>(), 16..200)) {
        let bytes = join(&DataKeyId(id.as_str().into()), &nonce, &sealed);
        let back = split(&bytes).unwrap();
        prop_assert_eq!((back.data_key, back.nonce, back.sealed), (id.as_str(), &nonce, sealed.as_slice()));
    }

    #[test]
    fn two_places_never_share_a_context(a in "[a-z:]{1,6}", b in "[a-z:]{1,6}", c in "[a-z:]{1,6}", d in "[a-z:]{1,6}") {
        let (one, two) = (place(&a, &b, "dk"), place(&c, &d, "dk"));
        prop_assert_eq!(one.context() == two.context(), a == c && b == d);
    }

    /// Whatever could be wrapped anew and whatever not: after it, either everything lies as wanted, or
    /// nothing that opened before was thrown away.
    #[test]
    fn wrapping_anew_never_loses_the_last_way_in(
        old in proptest::collection::vec(some_wrap(), 0..4),
        recovery: bool,
        worked: [bool; 2],
    ) {
        let mut wanted = vec![want(KeyRole::Operator, "k0", Some("2"))];
        if recovery {
            wanted.push(want(KeyRole::Recovery, "k1", None));
        }
        let before = row("a", 1, old.clone());
        let fresh: Vec<Wrap> = missing(&before, &wanted)
            .into_iter()
            .filter(|w| worked[usize::from(w.role == KeyRole::Recovery)])
            .map(|w| wrap(w.role, &w.name.reference, w.version.as_ref().map(KeyVersion::as_str)))
            .collect();
        let after = row("a", 1, replaced(&before, &wanted, fresh.clone()));
        prop_assert!(fresh.iter().all(|f| after.wraps.contains(f)));
        if missing(&after, &wanted).is_empty() {
            prop_assert!(settled(&after, &wanted), "{:?}", after.wraps);
            prop_assert!(after.wraps.iter().all(|w| missing(&row("b", 1, vec![w.clone()]), &wanted).len() < wanted.len()));
        } else {
            let met = |w: &Wrap| wanted.iter().any(|want| missing(&row("c", 1, vec![w.clone()]), std::slice::from_ref(want)).is_empty());
            prop_assert!(old.iter().all(|w| after.wraps.contains(w) || after.wraps.iter().any(|other| other.role == w.role && met(other))));
        }
    }
}
