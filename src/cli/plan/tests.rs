use super::*;
use crate::config::check::parse;

fn planned(text: &str) -> serde_json::Value {
    let (config, _) = parse(text, "config.toml", "/x", &[]).unwrap_or_else(|errors| panic!("{errors:?}"));
    plan(&config).json
}

const AWS: &str = r#"
[providers.aws]
kind = "aws"
region = "us-east-2"
calls_per_second = 50
[policies.default]
probe_interval = "60s"
[[keys]]
id = "a"
provider = "aws"
key = "arn:aws:kms:us-east-2:444455556666:key/a"
workspaces = ["a"]
[[keys]]
id = "b"
provider = "aws"
key = "arn:aws:kms:eu-west-1:444455556666:key/b"
workspaces = ["b"]
"#;

#[test]
fn calls_and_cost_follow_from_the_interval_and_the_quota_from_the_busiest_region() {
    let plan = planned(AWS);
    let aws = &plan["providers"][0];
    // Two keys, 2.2 calls a round, a round a minute, 43,200 minutes a month.
    assert_eq!(aws["keys"], 2);
    assert_eq!(aws["calls_per_second"], 0.0733);
    assert_eq!(aws["calls_per_month"], 190_080.0);
    assert_eq!(aws["cost"]["usd_per_month"], 0.57);
    assert_eq!(aws["quota"]["calls_per_second"], 10_000);
    assert_eq!(aws["budget"]["share"], 0.0015);
    // One unwrap an hour.
    assert_eq!(aws["calls_per_month_per_older_version"], 720);
}

#[test]
fn the_promised_time_to_lock_is_that_of_the_policy() {
    let plan = planned(AWS);
    let bounds = plan["policies"][0]["bounds"].as_array().unwrap();
    let of = |kind: &str| bounds.iter().find(|b| b["failure_kind"] == kind).unwrap()["lock_bound_ms"].clone();
    assert_eq!(of("disabled"), 157_000);
    assert_eq!(of("network_blocked"), serde_json::Value::Null);
}

#[test]
fn azure_is_measured_by_the_busiest_vault_and_google_by_our_project() {
    let plan = planned(
        r#"
[providers.az]
kind = "azure"
[providers.g]
kind = "gcp"
control_key = "projects/p/locations/l/keyRings/r/cryptoKeys/control"
[policies.default]
probe_interval = "1s"
suspect_interval = "1s"
call_timeout = "1s"
[[keys]]
id = "a1"
provider = "az"
key = "https://one.vault.azure.net/keys/a"
workspaces = ["a"]
[[keys]]
id = "a2"
provider = "az"
key = "https://two.vault.azure.net/keys/a"
workspaces = ["a"]
[[keys]]
id = "a3"
provider = "az"
key = "https://two.vault.azure.net/keys/b"
workspaces = ["a"]
[[keys]]
id = "g1"
provider = "g"
key = "projects/q/locations/l/keyRings/r/cryptoKeys/k"
workspaces = ["a"]
"#,
    );
    let (azure, google) = (&plan["providers"][0], &plan["providers"][1]);
    assert_eq!(azure["calls_per_second"], 6.6);
    assert_eq!((&azure["quota"]["of"], &azure["quota"]["share"]), (&json!("vault two.vault.azure.net"), &json!(0.011)));
    assert_eq!(azure["budget"]["of"], "two.vault.azure.net");
    assert_eq!(google["quota"]["calls_per_second"], 1000);
    assert_eq!(google["calls_per_second"], 2.2333);
}

#[test]
fn a_local_provider_costs_nothing_and_has_no_quota() {
    let plan = planned(
        "[providers.l]\nkind = \"local\"\npath = \"x.json\"\n[[keys]]\nid = \"k\"\nprovider = \"l\"\nkey = \"k\"\nworkspaces = [\"w\"]\n",
    );
    assert_eq!(plan["providers"][0]["cost"], serde_json::Value::Null);
    assert_eq!(plan["providers"][0]["quota"], serde_json::Value::Null);
}
