//! The scrape: every family of the contract, right values, bounds, and promtool's own opinion.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::too_many_lines,
    reason = "test code"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

#[path = "support/doors.rs"]
mod support;

use cmek_watchdog::clock;
use cmek_watchdog::config::Config;
use cmek_watchdog::key::{KeyVersion, PolicyId};
use cmek_watchdog::metrics::families::lock_bound;
use cmek_watchdog::metrics::{GateResult, Metrics, NoticeOutcome, RefusedReason, Stage, Start};
use cmek_watchdog::policy::Policy;
use cmek_watchdog::published::{Published, Snapshot};
use cmek_watchdog::snapshot::{Change, DaemonView, OverrideView, VersionView};
use cmek_watchdog::time::{Now, Span};
use cmek_watchdog::words::{Access, FailureKind, HeldBy, Leg, LegOutcome, StateWord};
use support::{SINCE, config, daemon, key, provider, publish, workspace};

fn counted() -> Metrics {
    let metrics = Metrics::new().unwrap();
    metrics.leg("local", Leg::Wrap, LegOutcome::Ok, None, Some(Span(12)));
    metrics.leg("local", Leg::Unwrap, LegOutcome::Failed, Some(FailureKind::Disabled), Some(Span(700)));
    metrics.leg("local", Leg::Describe, LegOutcome::NotRun, None, None);
    metrics.kms_call("local", "unwrap");
    metrics.missed_window("local");
    metrics.gate_decision(GateResult::Denied);
    metrics.unknown_feature();
    metrics.notice("sre-mail", NoticeOutcome::Delivered);
    metrics.lockout_latency(Stage::Apply, Start::LastGood, Span(1500));
    metrics.config_reload(true);
    metrics.config_reload(false);
    metrics.http_refused(RefusedReason::NoToken);
    metrics.store_write_failure();
    metrics.probe_task_panic();
    metrics
}

fn full() -> Published {
    let published = Published::default();
    publish(&published);
    let mut changes: Vec<Change> = Vec::new();
    for state in StateWord::ALL {
        changes.push(Change::Key(Arc::new(key(&format!("in-{state}"), *state))));
    }
    let mut dated = key("dated", StateWord::Suspect);
    dated.held_by = Some(HeldBy::Brake);
    dated.rotations = 3;
    dated.facts.deletion_at = Some(SINCE);
    dated.facts.expires_at = Some(SINCE);
    let version =
        |name: &str, usable, retired| VersionView { version: KeyVersion::new(name), usable, retired, ..dated.versions[0].clone() };
    dated.versions =
        vec![version("1", Some(true), false), version("2", Some(false), false), version("3", None, false), version("4", Some(false), true)];
    changes.push(Change::Key(Arc::new(dated)));
    let mut silent = key("silent", StateWord::Unproven);
    (silent.last_probe, silent.last_conclusive_at, silent.next_probe_at) = (None, None, None);
    changes.push(Change::Key(Arc::new(silent)));
    let mut overridden = workspace("wrkspc:over", Access::Open);
    overridden.overrides = vec![OverrideView {
        key: overridden.keys[0].clone(),
        kind: FailureKind::Disabled,
        until: SINCE,
        reason: "r".into(),
        actor: "a".into(),
    }];
    changes.push(Change::Workspace(Arc::new(overridden)));
    changes.push(Change::Daemon(Arc::new(DaemonView { would_lock_total: 4, bugs: 1, ..daemon() })));
    published.apply(changes);
    published
}

fn now() -> Now {
    Now { wall: SINCE.plus(Span::from_secs(90)), mono: clock::now().mono }
}

fn scrape(metrics: &Metrics, snapshot: &Snapshot, config: &Config) -> String {
    metrics.render(snapshot, config, now())
}

/// Value of one series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Series by family name.
fn series_of(text: &str, family: &str) -> usize {
    text.lines().filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']))).count()
}

#[test]
fn promtool_finds_nothing_to_say() {
    let text = scrape(&counted(), &full().load(), &config());
    let child =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("promtool is not on PATH: run tests/run, which installs what the tests need");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn every_family_has_help_type_and_one_place() {
    let text = scrape(&counted(), &full().load(), &config());
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let mut last = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name, kind).is_none(), "{name} twice");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert!(name.starts_with("cmek_") || name.starts_with("process_"), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            last = name;
        } else if !line.starts_with('#') {
            assert!(line.starts_with(last), "{line} is not under {last}");
        }
    }
    for name in [
        "key_state",
        "key_info",
        "key_last_probe_timestamp_seconds",
        "key_last_conclusive_timestamp_seconds",
        "key_versions",
        "key_deletion_timestamp_seconds",
        "key_expiry_timestamp_seconds",
        "key_rotations_total",
        "probe_legs_total",
        "probe_duration_seconds",
        "probe_missed_windows_total",
        "workspace_access",
        "lockout_latency_seconds",
        "notices_total",
        "outbox_depth",
        "outbox_oldest_seconds",
        "brake_engaged",
        "control_key_healthy",
        "kms_calls_total",
        "config_last_reload_successful",
        "build_info",
        "keys",
        "gate_decisions_total",
        "held_locks",
        "would_lock_total",
        "store_write_failures_total",
        "keys_configured",
        "keys_scheduled",
        "override_active",
        "lock_bound_seconds",
        "receiver_last_success_timestamp_seconds",
        "receiver_failing",
        "clock_skew_seconds",
        "http_refused_total",
        "gate_unknown_features_total",
        "probe_task_panics_total",
    ] {
        assert!(families.contains_key(format!("cmek_{name}").as_str()), "cmek_{name}");
    }
}

#[test]
fn counters_count_what_they_are_told() {
    let text = scrape(&counted(), &full().load(), &config());
    for (series, expected) in [
        ("cmek_probe_legs_total{failure_kind=\"disabled\",leg=\"unwrap\",outcome=\"failed\",provider=\"local\"}", 1.0),
        ("cmek_probe_legs_total{failure_kind=\"\",leg=\"wrap\",outcome=\"ok\",provider=\"local\"}", 1.0),
        ("cmek_probe_legs_total{failure_kind=\"\",leg=\"describe\",outcome=\"not_run\",provider=\"local\"}", 1.0),
        ("cmek_probe_duration_seconds_sum{leg=\"unwrap\",provider=\"local\"}", 0.7),
        ("cmek_kms_calls_total{operation=\"unwrap\",provider=\"local\"}", 1.0),
        ("cmek_probe_missed_windows_total{provider=\"local\"}", 1.0),
        ("cmek_gate_decisions_total{result=\"denied\"}", 1.0),
        ("cmek_gate_decisions_total{result=\"allowed\"}", 0.0),
        ("cmek_gate_unknown_features_total", 1.0),
        ("cmek_notices_total{outcome=\"delivered\",receiver=\"sre-mail\"}", 1.0),
        ("cmek_lockout_latency_seconds_sum{stage=\"apply\",start=\"last_good\"}", 1.5),
        ("cmek_config_reloads_total{result=\"ok\"}", 1.0),
        ("cmek_config_reloads_total{result=\"failed\"}", 1.0),
        ("cmek_config_last_reload_successful", 0.0),
        ("cmek_http_refused_total{reason=\"no_token\"}", 1.0),
        ("cmek_store_write_failures_total", 1.0),
        ("cmek_probe_task_panics_total", 1.0),
        (concat!("cmek_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}");
    }
    assert_eq!(value(&text, "cmek_probe_duration_seconds_sum{leg=\"describe\",provider=\"local\"}"), None);
    let fresh = Metrics::new().unwrap();
    assert_eq!(value(&scrape(&fresh, &full().load(), &config()), "cmek_config_last_reload_successful"), Some(1.0));
    fresh.config_reload(false);
    fresh.config_reload(true);
    assert_eq!(value(&scrape(&fresh, &full().load(), &config()), "cmek_config_last_reload_successful"), Some(1.0));
}

#[test]
fn each_label_has_its_own_counter() {
    let metrics = Metrics::new().unwrap();
    for (count, result) in GateResult::ALL.iter().enumerate() {
        (0..=count).for_each(|_| metrics.gate_decision(*result));
    }
    for (count, reason) in RefusedReason::ALL.iter().enumerate() {
        (0..=count).for_each(|_| metrics.http_refused(*reason));
    }
    let text = scrape(&metrics, &Snapshot::default(), &config());
    for (count, result) in GateResult::ALL.iter().enumerate() {
        let series = format!("cmek_gate_decisions_total{{result=\"{}\"}}", result.as_str());
        assert_eq!(value(&text, &series), Some(count as f64 + 1.0), "{series}");
    }
    for (count, reason) in RefusedReason::ALL.iter().enumerate() {
        let series = format!("cmek_http_refused_total{{reason=\"{}\"}}", reason.as_str());
        assert_eq!(value(&text, &series), Some(count as f64 + 1.0), "{series}");
    }
}

#[test]
fn the_snapshot_is_told_as_it_is_and_absent_facts_are_absent_series() {
    let text = scrape(&counted(), &full().load(), &config());
    for (series, expected) in [
        ("cmek_key_state{key=\"demo\",state=\"revoked\"}", Some(1.0)),
        ("cmek_key_state{key=\"demo\",state=\"active\"}", Some(0.0)),
        ("cmek_key_info{key=\"demo\",provider=\"local\",kind=\"local\",policy=\"default\"}", Some(1.0)),
        ("cmek_key_last_probe_timestamp_seconds{key=\"demo\"}", Some(1_764_056_760.123)),
        ("cmek_key_last_probe_timestamp_seconds{key=\"silent\"}", None),
        ("cmek_key_last_conclusive_timestamp_seconds{key=\"silent\"}", None),
        ("cmek_key_deletion_timestamp_seconds{key=\"dated\"}", Some(1_764_056_760.123)),
        ("cmek_key_deletion_timestamp_seconds{key=\"demo\"}", None),
        ("cmek_key_expiry_timestamp_seconds{key=\"dated\"}", Some(1_764_056_760.123)),
        ("cmek_key_versions{key=\"dated\",usable=\"true\"}", Some(1.0)),
        ("cmek_key_versions{key=\"dated\",usable=\"false\"}", Some(1.0)),
        ("cmek_key_versions{key=\"dated\",usable=\"unknown\"}", Some(1.0)),
        ("cmek_key_rotations_total{key=\"dated\"}", Some(3.0)),
        ("cmek_workspace_access{workspace=\"wrkspc_demo\",access=\"locked\"}", Some(1.0)),
        ("cmek_workspace_access{workspace=\"wrkspc_demo\",access=\"open\"}", Some(0.0)),
        ("cmek_workspaces{access=\"open\"}", Some(2.0)),
        ("cmek_keys{provider=\"local\",state=\"suspect\"}", Some(2.0)),
        ("cmek_keys{provider=\"local\",state=\"retired\"}", Some(1.0)),
        ("cmek_held_locks{provider=\"local\",by=\"brake\"}", Some(1.0)),
        ("cmek_held_locks{provider=\"local\",by=\"policy\"}", Some(0.0)),
        ("cmek_brake_engaged{provider=\"local\"}", Some(0.0)),
        ("cmek_control_key_healthy{provider=\"local\"}", Some(1.0)),
        ("cmek_clock_skew_seconds{provider=\"local\"}", Some(-0.25)),
        ("cmek_outbox_depth{receiver=\"sre-mail\"}", Some(2.0)),
        ("cmek_outbox_oldest_seconds{receiver=\"sre-mail\"}", Some(90.0)),
        ("cmek_receiver_failing{receiver=\"sre-mail\"}", Some(0.0)),
        ("cmek_override_active", Some(1.0)),
        ("cmek_would_lock_total", Some(4.0)),
        ("cmek_bugs_total", Some(1.0)),
        ("cmek_keys_configured", Some(0.0)),
        ("cmek_keys_scheduled", Some(11.0)),
        ("cmek_ready", Some(1.0)),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    assert_eq!(series_of(&text, "cmek_key_state"), full().load().keys.len() * StateWord::ALL.len());

    let published = full();
    let mut unknown = provider();
    (unknown.control_key_healthy, unknown.clock_skew_ms) = (None, None);
    published.apply(vec![Change::Provider(Arc::new(unknown))]);
    let text = scrape(&counted(), &published.load(), &config());
    assert_eq!((series_of(&text, "cmek_control_key_healthy"), series_of(&text, "cmek_clock_skew_seconds")), (0, 0));
}

#[test]
fn a_daemon_that_is_starting_has_sums_and_no_series_of_keys() {
    let text = scrape(&Metrics::new().unwrap(), &Snapshot::default(), &config());
    assert_eq!(value(&text, "cmek_ready"), Some(0.0));
    assert_eq!(value(&text, "cmek_keys{provider=\"local\",state=\"active\"}"), Some(0.0));
    assert_eq!(series_of(&text, "cmek_key_state"), 0);
    assert_eq!(series_of(&text, "cmek_snapshot_age_seconds"), 0);
}

#[test]
fn above_the_limit_only_keys_in_question_have_series_and_never_more_than_the_limit() {
    let published = Published::default();
    let mut changes: Vec<Change> = (0..20).map(|i| Change::Key(Arc::new(key(&format!("good{i}"), StateWord::Active)))).collect();
    changes.extend((0..3).map(|i| Change::Key(Arc::new(key(&format!("bad{i}"), StateWord::Revoked)))));
    changes.extend((0..20).map(|i| Change::Workspace(Arc::new(workspace(&format!("good{i}"), Access::Open)))));
    changes.extend((0..3).map(|i| Change::Workspace(Arc::new(workspace(&format!("bad{i}"), Access::Locked)))));
    published.apply(changes);
    let snapshot = published.load();
    let metrics = Metrics::new().unwrap();
    let mut settings = config();
    let states = StateWord::ALL.len();
    for (limit, keys) in [(23, 23), (22, 3), (3, 3), (2, 2), (0, 0)] {
        settings.per_key_limit = limit;
        let text = scrape(&metrics, &snapshot, &settings);
        assert_eq!(series_of(&text, "cmek_key_state"), keys * states, "limit {limit}");
        assert_eq!(series_of(&text, "cmek_workspace_access"), keys * Access::ALL.len(), "limit {limit}");
        assert_eq!(text.contains("key=\"good1\""), limit == 23);
        assert_eq!(value(&text, "cmek_keys{provider=\"local\",state=\"active\"}"), Some(20.0));
        assert_eq!(value(&text, "cmek_keys{provider=\"local\",state=\"revoked\"}"), Some(3.0));
        assert_eq!(value(&text, "cmek_keys_without_series"), Some((23 - keys) as f64));
        assert_eq!(value(&text, "cmek_workspaces_without_series"), Some((23 - keys) as f64));
    }
}

#[test]
fn the_lock_bound_is_that_of_the_slowest_kind_that_locks() {
    let policy = Policy::default();
    // 2 x 60 s + 30 s + 3 x (5 s + 10 s) + 2 s
    assert_eq!(lock_bound(&policy), Some(Span::from_secs(197)));
    let mut slow = policy.clone();
    slow.on.get_mut(&FailureKind::NetworkBlocked).unwrap().access = Some(Access::Locked);
    assert_eq!(lock_bound(&slow), Some(Span::from_secs(467)));
    let mut holding = policy;
    holding.on.values_mut().for_each(|confirm| confirm.access = None);
    assert_eq!(lock_bound(&holding), None);
    let mut settings = config();
    settings.policies.insert(PolicyId::new("holding").unwrap(), Arc::new(holding));
    let text = scrape(&Metrics::new().unwrap(), &Snapshot::default(), &settings);
    assert_eq!(value(&text, "cmek_lock_bound_seconds{policy=\"default\"}"), Some(197.0));
    assert_eq!(series_of(&text, "cmek_lock_bound_seconds"), 1);
}

#[test]
fn odd_label_values_are_escaped_in_both_writers() {
    let published = Published::default();
    let mut odd = key("odd", StateWord::Active);
    odd.policy = "a\"b\\c\nd".into();
    published.apply(vec![Change::Key(Arc::new(odd))]);
    let metrics = Metrics::new().unwrap();
    metrics.kms_call("p\"q", "x\ny");
    let text = scrape(&metrics, &published.load(), &config());
    assert!(text.contains("policy=\"a\\\"b\\\\c\\nd\""), "{text}");
    assert!(text.contains("cmek_kms_calls_total{operation=\"x\\ny\",provider=\"p\\\"q\"} 1"));
}
