//! Whatever comes in from outside, in a bounded number of tries: configuration texts, names of keys,
//! rows of a damaged store. No panic, and no damaged row ever opens what an order holds locked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use cmek_watchdog::config::{Config, check};
use cmek_watchdog::journal::{Order, OrderKey, Restored};
use cmek_watchdog::key::{KeyId, KeyRef, KeyVersion, ProviderId, WorkspaceId};
use cmek_watchdog::snapshot::Change;
use cmek_watchdog::time::{Mono, Now, Span, Wall};
use cmek_watchdog::watch::{Effects, Event, Start, Watch};
use cmek_watchdog::words::{Access, By, Cause, FailureKind, ProviderKind, Sequence};

const CONTRACT: &str = include_str!("data/contract.toml");
const REFERENCE: &str = "arn:aws:kms:us-east-2:444455556666:key/k";
const CONFIG: &str = "[providers.p]\nkind = \"aws\"\nregion = \"us-east-2\"\n\
     [[keys]]\nid = \"k\"\nprovider = \"p\"\nkey = \"arn:aws:kms:us-east-2:444455556666:key/k\"\nworkspaces = [\"w\"]\n";
/// A row as the core writes it.
const ROW: &str = r#"{"reference":"arn:aws:kms:us-east-2:444455556666:key/k","life":{"recovering":{"finding":{"cause":"disabled","kind":"disabled","access":"locked","direction":"unwrap","stated":"both"},"lock":1790000000000,"rounds":{"good":2,"first":{"wall":1789999990000},"newest":{"wall":1789999999000}},"held":null}},"since":1790000000000,"identities":["me"],"current":"v1","versions":{},"facts":null,"rotations":0,"rotated_at":null,"last_conclusive":null,"stale":0,"stale_told":0,"stale_told_at":null,"told":{},"warned":null}"#;

/// A text with some of its characters changed, cut out or doubled.
fn mutated(text: &'static str) -> impl Strategy<Value = String> {
    let edit = (0..text.len(), 0..24usize, prop_oneof![Just(String::new()), "\\PC{0,8}", "[0-9\"\\[\\]{}=.,:-]{1,6}"]);
    prop::collection::vec(edit, 1..5).prop_map(move |edits| {
        let mut chars: Vec<char> = text.chars().collect();
        for (at, cut, put) in edits {
            let at = at.min(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, put.chars());
        }
        chars.into_iter().collect()
    })
}

fn parse(text: &str) -> Result<Config, usize> {
    match check::parse(text, "config.toml", "/etc/cmek-watchdog", &[]) {
        Ok((config, _)) => Ok(config),
        Err(errors) => {
            // A refusal explains itself, and does not grow without bound with what it refuses.
            let said: usize = errors.iter().map(|error| error.to_string().len()).sum();
            assert!(!errors.is_empty() && said > 0);
            assert!(said <= 4_000 + 400 * text.len(), "{said} bytes of complaint about {} bytes", text.len());
            Err(said)
        }
    }
}

fn locked() -> Order {
    Order {
        workspace: WorkspaceId::new("w").unwrap(),
        by: By::Automatic,
        key: Some(OrderKey { id: KeyId::new("k").unwrap(), provider: ProviderId::new("p").unwrap(), reference: REFERENCE.into() }),
        access: Access::Locked,
        cause: Cause::Kind(FailureKind::Disabled),
        sequence: Sequence(1_790_000_000_000),
        since: Wall(1_790_000_000_000),
        reason: None,
        actor: None,
        expires_at: None,
        message: None,
        release: None,
        orphaned: false,
    }
}

/// Starts on these rows, lets an hour pass without one answer, and gives the access last shown.
fn access_after_start(row: Option<String>, meta: BTreeMap<String, String>, damaged: bool) -> Access {
    let config = Arc::new(parse(CONFIG).unwrap());
    let restored = Restored {
        keys: row.map(|row| (KeyId::new("k").unwrap(), Arc::from(row))).into_iter().collect(),
        canaries: Vec::new(),
        damaged: if damaged { vec![(KeyId::new("k").unwrap(), KeyVersion::new("v1"))] } else { Vec::new() },
        orders: vec![locked()],
        outbox: Vec::new(),
        meta,
        head: 1,
    };
    let mut now = Now { mono: Mono(1 << 41), wall: Wall(1_790_000_100_000) };
    let mut out = Effects::default();
    let mut watch = Watch::new(config, restored, Start::default(), now, &mut out);
    let mut access = Access::Open;
    for _ in 0..60 {
        for change in out.publish.drain(..) {
            if let Change::Workspace(view) = change {
                access = view.access;
            }
        }
        if let Some(commit) = out.commit.take() {
            watch.handle(now, Event::Stored { batch: commit.batch, result: Ok(Default::default()) }, &mut out);
        }
        now = now.plus(Span::from_mins(1));
        watch.handle(now, Event::Wake, &mut out);
        watch.seal(now, &mut out);
        assert!(out.probes.len() <= 600, "probes do not pile up");
    }
    assert_eq!(out.bugs, Vec::new());
    access
}

#[test]
fn an_undamaged_row_is_understood() {
    assert_eq!(access_after_start(Some(ROW.to_owned()), BTreeMap::new(), false), Access::Locked);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_configuration_or_an_explained_refusal(text in "\\PC{0,400}") {
        let _ = parse(&text);
    }

    #[test]
    fn the_contract_with_mistakes_in_it_is_taken_or_refused_with_an_explanation(text in mutated(CONTRACT)) {
        let _ = parse(&text);
    }

    #[test]
    fn names_of_keys_are_taken_only_as_they_stand(text in prop_oneof![
        "\\PC{0,200}",
        mutated(REFERENCE),
        mutated("projects/acme/locations/l/keyRings/r/cryptoKeys/k"),
        mutated("https://acme-kv.vault.azure.net/keys/k1"),
    ]) {
        for kind in ProviderKind::ALL {
            if let Ok(name) = KeyRef::parse(*kind, &text) {
                prop_assert_eq!(&*name.text, text.as_str());
                prop_assert!(text.len() <= 4096 && !name.account().is_empty());
                prop_assert!(!text.contains(['@', '\n', ' ', '?', '#']), "{} has what no name has", text);
            }
        }
        for name in [WorkspaceId::new(&text).map(|id| id.to_string()), KeyId::new(&text).map(|id| id.to_string())].into_iter().flatten() {
            prop_assert!(name == text && name.len() <= 128);
        }
    }

    #[test]
    fn no_damage_to_a_row_opens_what_an_order_locks(
        row in prop_oneof![mutated(ROW).prop_map(Some), "\\PC{0,200}".prop_map(Some), Just(None)],
        damaged in any::<bool>(),
        name in prop_oneof![Just("workspace:w"), Just("brake:p"), Just("config:last_good"), Just("workspace:")],
        value in prop_oneof![Just("[1790000000000,1790000000000]".to_owned()), "\\PC{0,60}", "[0-9\\[\\],\"]{0,40}"],
    ) {
        let meta = BTreeMap::from([(name.to_owned(), value)]);
        prop_assert_eq!(access_after_start(row, meta, damaged), Access::Locked);
    }
}
