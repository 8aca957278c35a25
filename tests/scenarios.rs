//! What went wrong for people who do this job, area `detection` and `classification` of
//! tests/data/scenarios.jsonl: one test per scenario, at the cheapest level that is still its own path.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "clouds/azure.rs"]
mod azure_cloud;
#[path = "support/azure_wire.rs"]
mod azure_wire;
#[path = "clouds"]
mod clouds {
    pub mod aws;
    use super::wire;
}
#[path = "support/https.rs"]
mod https;
#[path = "support/watchdog.rs"]
mod watchdog;
#[path = "support/wire.rs"]
mod wire;

#[path = "scenarios/answers.rs"]
mod answers;
#[path = "scenarios/audit.rs"]
mod audit;
#[path = "scenarios/bench.rs"]
mod bench;
#[path = "scenarios/doubt.rs"]
mod doubt;
#[path = "scenarios/metadata.rs"]
mod metadata;
#[path = "scenarios/refusals.rs"]
mod refusals;
#[path = "scenarios/versions.rs"]
mod versions;
#[path = "scenarios/witness.rs"]
mod witness;

use std::collections::{BTreeMap, BTreeSet};

/// Scenario -> the test that proves it.
const TABLE: &[(&str, &str)] = &[
    ("BUG-002", "each_direction_is_judged_on_its_own"),
    ("BUG-004", "throttling_ages_and_is_told_and_never_locks"),
    ("BUG-011", "an_old_version_is_needed_until_a_fresh_wrap_names_the_new_one"),
    ("BUG-012", "versions_that_alternate_during_a_rotation_are_one_rotation"),
    ("BUG-016", "an_expired_azure_key_is_read_only_and_not_revoked"),
    ("BUG-018", "each_inner_code_of_a_403_has_its_own_kind_and_outcome"),
    ("BUG-020", "a_key_that_never_worked_is_not_revoked_however_long_the_token_is_old"),
    ("BUG-022", "an_expired_client_secret_is_one_trouble_of_ours"),
    ("BUG-023", "a_restart_under_dead_credentials_changes_no_lock"),
    ("BUG-025", "an_alias_that_moves_is_found_within_five_rounds_inside_the_call_budget"),
    ("BUG-028", "a_scheduled_deletion_is_told_as_that_and_nothing_else"),
    ("BUG-036", "bad_credentials_a_disabled_key_and_an_outage_are_three_things"),
    ("BUG-041", "an_enabled_key_that_denies_us_is_revoked_and_the_notice_shows_both"),
    ("BUG-044", "a_lucky_success_does_not_end_a_suspicion"),
    ("BUG-046", "a_metadata_service_that_hangs_is_our_missing_credentials"),
    ("BUG-047", "one_failed_metadata_call_is_asked_again_within_the_round"),
    ("BUG-048", "tokens_that_ran_out_are_ours_whatever_the_code"),
    ("BUG-053", "names_that_do_not_resolve_say_dns_and_lock_nothing"),
    ("BUG-054", "a_probe_that_waits_its_turn_is_a_missed_window_and_no_failure"),
    ("BUG-058", "a_denial_without_a_witness_beside_it_is_not_believed"),
    ("BUG-059", "a_broken_witness_is_told_and_only_makes_confirmation_longer"),
    ("BUG-156", "key_store_texts_are_the_stores_trouble_and_unknown_ones_are_doubt"),
    ("BUG-157", "a_withheld_key_store_holds_or_locks_as_the_policy_says"),
    ("BUG-158", "keys_of_every_kind_are_described_without_a_fault"),
    ("BUG-161", "a_storm_leaves_no_lasting_mark"),
    ("BUG-162", "one_providers_throttling_slows_no_other"),
    ("BUG-163", "a_missing_azure_key_is_recoverable_or_gone_and_recovery_is_proved_by_probes"),
    ("BUG-165", "a_key_that_fails_every_second_time_is_told_and_four_of_five_lock"),
    ("BUG-176", "a_version_that_came_and_went_between_two_looks_is_found_and_watched"),
    ("BUG-180", "one_unreadable_key_spoils_no_other_and_no_round_is_good_without_it"),
];

/// Ids with a reason in docs/decisions/scenarios-left-out.md.
fn left_out() -> BTreeSet<String> {
    let page = include_str!("../docs/decisions/scenarios-left-out.md");
    page.lines().filter_map(|line| line.strip_prefix("## BUG-")?.split(':').next()).map(|id| format!("BUG-{id}")).collect()
}

#[test]
fn every_scenario_of_the_two_areas_has_a_test_or_a_reason() {
    let mut ids = BTreeSet::new();
    for line in include_str!("data/scenarios.jsonl").lines() {
        let scenario: serde_json::Value = serde_json::from_str(line).unwrap();
        if matches!(scenario["area"].as_str(), Some("detection" | "classification")) {
            ids.insert(scenario["id"].as_str().unwrap().to_owned());
        }
    }
    let tested: BTreeMap<&str, &str> = TABLE.iter().copied().collect();
    assert_eq!(tested.len(), TABLE.len(), "an id is in the table twice");
    let covered: BTreeSet<String> = tested.keys().map(|id| (*id).to_owned()).chain(left_out()).collect();
    assert_eq!(ids, covered);
    assert_eq!(ids.len(), 30);
    assert!(left_out().iter().all(|id| !tested.contains_key(id.as_str())), "both tested and left out");
}

#[test]
fn every_test_of_the_table_is_there() {
    let source = [
        include_str!("scenarios/answers.rs"),
        include_str!("scenarios/doubt.rs"),
        include_str!("scenarios/metadata.rs"),
        include_str!("scenarios/refusals.rs"),
        include_str!("scenarios/versions.rs"),
        include_str!("scenarios/witness.rs"),
    ]
    .concat();
    let names: BTreeSet<&str> = TABLE.iter().map(|(_, name)| *name).collect();
    assert_eq!(names.len(), TABLE.len(), "each scenario takes its own path");
    for (id, name) in TABLE {
        let at = source.find(&format!("fn {name}()")).unwrap_or_else(|| panic!("{id}: no test {name}"));
        let before = source[..at].trim_end_matches("async ").trim_end();
        assert!(before.ends_with(']') && before.rsplit('#').next().unwrap().contains("test"), "{id}: {name} is no test");
    }
}
