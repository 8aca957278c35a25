use super::*;
use crate::key::ProviderId;
use crate::notify::sample::{bare, locked};
use crate::words::{Access, EventType, Severity};

fn route(receivers: &[&str], severity: Severity, matching: Match) -> Route {
    Route { receivers: receivers.iter().map(|r| ReceiverId::new(r).unwrap()).collect(), severity, matching }
}

fn names(notice: &Notice, routes: &[Route]) -> Vec<String> {
    receivers_for(notice, routes).iter().map(ToString::to_string).collect()
}

#[test]
fn a_severity_means_this_and_above_and_each_receiver_hears_once_in_file_order() {
    let routes = [
        route(&["z", "a"], Severity::Warning, Match::default()),
        route(&["a", "page"], Severity::Critical, Match::default()),
        route(&["log"], Severity::Info, Match::default()),
    ];
    for (severity, expected) in
        [(Severity::Critical, vec!["z", "a", "page", "log"]), (Severity::Warning, vec!["z", "a", "log"]), (Severity::Info, vec!["log"])]
    {
        assert_eq!(names(&bare("n", EventType::KeyRotated, severity), &routes), expected);
    }
}

#[test]
fn all_patterns_must_match_and_a_missing_value_matches_no_pattern() {
    let some = |text: &str| Some(text.to_owned());
    let full = Match {
        provider: some("aws-*"),
        owner: some("*@acme.example"),
        workspace: some("wrkspc_*"),
        key: some("d*"),
        kind: some("workspace.*"),
    };
    for (matching, expected) in [
        (full.clone(), true),
        (Match { provider: some("gcp-*"), ..full.clone() }, false),
        (Match { owner: some("*@acme.exampl"), ..full.clone() }, false),
        (Match { workspace: some("wrkspc_other"), ..full.clone() }, false),
    ] {
        assert_eq!(names(&locked(), &[route(&["a"], Severity::Info, matching)]).len(), usize::from(expected));
    }
    let ownerless = Notice { owner: None, ..locked() };
    assert!(names(&ownerless, &[route(&["a"], Severity::Info, full)]).is_empty());
}

#[test]
fn who_heard_of_a_lock_hears_of_its_end() {
    let routes = [route(&["page"], Severity::Critical, Match::default())];
    let quiet = |event| bare("n", event, Severity::Info);
    let lowered = Notice { previous_access: Some(Access::Locked), access: Some(Access::Open), ..quiet(EventType::KeyActive) };
    assert_eq!(names(&lowered, &routes), ["page"]);
    assert_eq!(names(&quiet(EventType::WorkspaceOpened), &routes), ["page"]);
    assert_eq!(names(&quiet(EventType::BrakeReleased), &routes), ["page"]);
    assert!(names(&quiet(EventType::KeyActive), &routes).is_empty(), "a first proof ends nothing");
    assert!(names(&Notice { provider: ProviderId::new("p").ok(), ..quiet(EventType::KeyRotated) }, &routes).is_empty());
}

#[test]
fn stars_stand_for_any_run_of_characters() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("*", "x", true),
        ("a*", "a", true),
        ("a*b", "ab", true),
        ("a*b", "a", false),
        ("ab*ba", "aba", false),
        ("*x*", "axb", true),
        ("*x*y*", "ayxb", false),
        ("a**b", "a1b", true),
        ("a", "A", false),
        ("", "", true),
        ("", "a", false),
        ("*.b", "a.b.b", true),
        ("a*c*c", "abc", false),
        ("a*bc*c", "abcc", true),
    ] {
        assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
    }
}
