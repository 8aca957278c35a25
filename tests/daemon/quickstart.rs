//! What a newcomer does in the first five minutes, with the shipped file.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Daemon, Place, get, repository, request};

fn quickstart() -> Place {
    let place = Place::empty();
    let text = std::fs::read_to_string(repository().join("config/quickstart.toml")).unwrap();
    let here = text.replace("127.0.0.1:9847", &format!("127.0.0.1:{}", place.port));
    assert_ne!(here, text);
    std::fs::write(&place.config, here).unwrap();
    place
}

fn feature(daemon: &Daemon, name: &str) -> serde_json::Value {
    daemon.get(&format!("/v1/workspaces/wrkspc_demo/features/{name}")).json()
}

fn promtool(exposition: &str) {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool: {error}: run tests/run, which installs it"));
    tool.stdin.take().unwrap().write_all(exposition.as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && text.trim().is_empty(), "promtool: {text}");
}

/// Positions of the wanted types in the journal must ascend.
fn in_order(events: &[String], wanted: &[&str]) {
    let mut rest = events.iter();
    for event in wanted {
        assert!(rest.any(|seen| seen == event), "{event} is not there, or not in its place: {events:?}");
    }
}

#[test]
fn the_quickstart_locks_within_15_s_of_disable_and_opens_after_enable() {
    let place = quickstart();
    let daemon = place.start();
    daemon.wait_state("demo", "active", Duration::from_secs(15));
    assert_eq!(daemon.access("wrkspc_demo"), "open");
    assert_eq!(daemon.metric("cmek_key_state{key=\"demo\",state=\"active\"}"), Some(1.0));
    assert_eq!(daemon.metric("cmek_workspace_access{workspace=\"wrkspc_demo\",access=\"open\"}"), Some(1.0));
    promtool(&daemon.get("/metrics").text());

    place.good(&["local-kms", "disable", "demo"]);
    let locked_after = daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!(
        (&shown["code"], &shown["cause"], &shown["key"], &shown["by"]),
        (&"cmek_key_disabled".into(), &"disabled".into(), &"demo".into(), &"automatic".into())
    );
    assert!(shown["next_step"].as_str().is_some_and(|step| step.contains("local-kms enable")), "{shown}");
    let safety = feature(&daemon, "safety_metadata");
    assert_eq!((&safety["allowed"], &safety["code"]), (&true.into(), &serde_json::Value::Null), "{safety}");
    let messages = feature(&daemon, "messages");
    assert_eq!((&messages["allowed"], &messages["code"]), (&false.into(), &"cmek_key_disabled".into()));
    let gate = request(daemon.port, "GET", "/v1/authz", &[("x-workspace-id", "wrkspc_demo"), ("x-access", "read")], None).unwrap();
    assert_eq!((gate.status, gate.header("x-lockout-code")), (403, Some("cmek_key_disabled")));
    let gate = [("x-workspace-id", "wrkspc_demo"), ("x-access", "read"), ("x-feature", "safety_metadata")];
    assert_eq!(request(daemon.port, "GET", "/v1/authz", &gate, None).unwrap().status, 200);
    assert_eq!(daemon.metric("cmek_key_state{key=\"demo\",state=\"revoked\"}"), Some(1.0));
    assert_eq!(daemon.metric("cmek_key_state{key=\"demo\",state=\"active\"}"), Some(0.0));
    assert_eq!(daemon.metric("cmek_workspace_access{workspace=\"wrkspc_demo\",access=\"locked\"}"), Some(1.0));
    assert_eq!(daemon.metric("cmek_workspace_access{workspace=\"wrkspc_demo\",access=\"open\"}"), Some(0.0));
    promtool(&daemon.get("/metrics").text());
    let status = place.cli(&["status", "--exit-code"]);
    assert_eq!(status.code, 11, "{status:?}");
    assert!(status.out.contains("wrkspc_demo"), "{status:?}");

    place.good(&["local-kms", "enable", "demo"]);
    let opened_after = daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(40));
    println!("quickstart: locked {locked_after:?} after disable, open {opened_after:?} after enable");
    daemon.wait_state("demo", "active", Duration::from_secs(5));
    assert_eq!(get(daemon.port, "/v1/authz").unwrap().status, 403, "a gate question without a workspace");
    in_order(
        &daemon.events(),
        &[
            "daemon.started",
            "key.active",
            "key.suspect",
            "key.revoked",
            "workspace.locked",
            "key.recovering",
            "key.active",
            "workspace.opened",
        ],
    );

    let verified = place.good(&["journal", "verify"]);
    assert!(verified.out.contains("whole"), "{verified:?}");
    assert_eq!(place.good(&["status", "--exit-code"]).code, 0);
    let took = daemon.stop();
    assert!(took < Duration::from_secs(5), "stopped only after {took:?}");
    assert!(!place.path("run/control.sock").exists());
    place.good(&["journal", "verify"]);
    let exported = place.good(&["journal", "export"]);
    let records: Vec<serde_json::Value> = exported.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sequences: Vec<u64> = records.iter().map(|record| record["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=u64::try_from(records.len()).unwrap()).collect::<Vec<_>>());
}
