use super::*;
use crate::key::WorkspaceId;
use crate::notify::sample::{bare, locked};
use crate::words::Severity;

#[test]
fn the_end_has_the_labels_of_its_beginning_whoever_caused_it() {
    let opening = alerts(&locked());
    let begun = opening.iter().find(|alert| alert.labels["type"] == "workspace.locked").unwrap();
    assert!(begun.ends_at > locked().timestamp, "stays up until it is ended");
    let end = Notice { key: None, provider: None, ..bare("n2", EventType::WorkspaceOpened, Severity::Info) };
    let closing = alerts(&end);
    let ended = closing.iter().find(|alert| alert.labels == begun.labels).unwrap();
    assert_eq!(ended.ends_at, end.timestamp);
    assert!(closing.iter().all(|alert| alert.ends_at == end.timestamp), "an end opens nothing");
}

#[test]
fn a_new_state_of_a_key_ends_the_one_before() {
    let suspect = alerts(&bare("a", EventType::KeySuspect, Severity::Warning));
    let suspicion = suspect.iter().find(|alert| alert.ends_at > alert.starts_at).unwrap();
    let revoked = alerts(&bare("b", EventType::KeyRevoked, Severity::Critical));
    assert!(revoked.iter().any(|alert| alert.labels == suspicion.labels && alert.ends_at == alert.starts_at));
    assert_eq!(revoked.iter().filter(|alert| alert.ends_at > alert.starts_at).count(), 1);
}

#[test]
fn labels_name_type_severity_key_provider_and_workspace() {
    let notice = Notice { provider: locked().provider, ..bare("a", EventType::KeyRevoked, Severity::Critical) };
    let alert = alerts(&notice).pop().unwrap();
    let labels: Vec<String> = alert.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        labels,
        ["alertname=CmekKeyRevoked", "key=demo", "provider=aws-prod", "severity=critical", "type=key.revoked", "workspace=wrkspc_demo"]
    );
    assert_eq!(alert.annotations["summary"], "[cmek][critical] key demo revoked");
}

#[test]
fn a_drill_has_a_name_of_its_own() {
    let drill = Notice { drill: true, ..locked() };
    assert!(alerts(&drill).iter().all(|alert| alert.labels["alertname"].starts_with("DrillCmek") && alert.labels["drill"] == "true"));
}

#[test]
fn an_event_without_an_end_passes_by_itself_and_workspaces_are_bounded() {
    let rotated = alerts(&bare("a", EventType::KeyRotated, Severity::Info));
    assert_eq!(rotated.len(), 1);
    assert_eq!(rotated[0].ends_at.since(rotated[0].starts_at), PASSES);
    let workspace = |n: usize| WorkspaceId::new(&format!("w{n}")).unwrap();
    let few = Notice { workspaces: (0..MOST_ALERTS).map(workspace).collect(), ..locked() };
    let many = Notice { workspaces: (0..=MOST_ALERTS).map(workspace).collect(), ..locked() };
    assert_eq!((alerts(&few).len(), alerts(&many).len()), (2 * MOST_ALERTS, 2));
}

#[test]
fn a_route_prefix_is_kept() {
    for (url, path) in [
        ("http://127.0.0.1:9093", "/api/v2/alerts"),
        ("http://127.0.0.1:9093/am/", "/am/api/v2/alerts"),
        ("http://127.0.0.1:9093/api/v2/alerts", "/api/v2/alerts"),
    ] {
        assert_eq!(Alertmanager::new(url).unwrap().door.path(), path);
    }
}
