use super::*;
use crate::key::WorkspaceId;
use crate::notify::sample::{bare, locked};
use crate::words::EventType;

fn one(notice: &Notice) -> Value {
    events(notice, "R0").remove(0)
}

#[test]
fn trigger_and_resolve_of_one_workspace_share_the_dedup_key() {
    let trigger = one(&locked());
    assert_eq!((trigger["event_action"].as_str(), trigger["dedup_key"].as_str()), (Some("trigger"), Some("cmek/access/wrkspc_demo")));
    assert_eq!(trigger["payload"]["severity"], "critical");
    assert_eq!(trigger["payload"]["summary"], "[cmek][critical] wrkspc_demo locked: key demo disabled");
    assert_eq!(trigger["payload"]["source"], "wrkspc_demo");
    assert_eq!(trigger["payload"]["custom_details"]["owner"], "security@acme.example");
    let resolve = one(&Notice { key: None, ..bare("n", EventType::WorkspaceOpened, Severity::Info) });
    let keys: Vec<&str> = resolve.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["routing_key", "event_action", "dedup_key"], "a resolve carries no payload");
    assert_eq!((resolve["event_action"].as_str(), &resolve["dedup_key"]), (Some("resolve"), &trigger["dedup_key"]));
}

#[test]
fn unlocking_one_of_two_workspaces_ends_one_incident() {
    let two = Notice { workspaces: ["a", "b"].map(|w| WorkspaceId::new(w).unwrap()).to_vec(), ..locked() };
    let keys: Vec<Value> = events(&two, "R0").iter().map(|event| event["dedup_key"].clone()).collect();
    assert_eq!(keys, ["cmek/access/a", "cmek/access/b"]);
}

#[test]
fn states_of_one_key_are_one_incident_and_drills_another() {
    let suspect = one(&bare("a", EventType::KeySuspect, Severity::Warning));
    let revoked = one(&bare("b", EventType::KeyRevoked, Severity::Critical));
    let active = one(&bare("c", EventType::KeyActive, Severity::Info));
    assert!(suspect["dedup_key"] == revoked["dedup_key"] && revoked["dedup_key"] == active["dedup_key"]);
    let drill = one(&Notice { drill: true, ..bare("d", EventType::KeyActive, Severity::Info) });
    assert_ne!(drill["dedup_key"], active["dedup_key"]);
}

#[test]
fn many_long_names_still_give_a_dedup_key_within_the_limit() {
    let workspace = |n: usize| WorkspaceId::new(&format!("{}{n}", "w".repeat(120))).unwrap();
    let many = Notice { workspaces: (0..100).map(workspace).collect(), ..locked() };
    let events = events(&many, "R0");
    assert_eq!(events.len(), 1);
    assert!(events[0]["dedup_key"].as_str().unwrap().len() <= DEDUP);
}

#[test]
fn a_routing_key_is_checked_and_never_shown() {
    assert_eq!(PagerDuty::new("", None).unwrap_err(), BadReceiver::RoutingKey);
    assert_eq!(PagerDuty::new("a b", None).unwrap_err(), BadReceiver::RoutingKey);
    let made = PagerDuty::new("R0123SECRET", None).unwrap();
    assert!(!format!("{made:?}").contains("SECRET"));
}
