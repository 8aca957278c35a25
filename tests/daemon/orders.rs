//! Orders of people by the command line and the doors: exit codes, proof, override, versions, tokens.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{DEMO, PATIENCE, Place, QUICK, now, request};

#[test]
fn a_manual_lock_is_lifted_by_hand_alone() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    let ran = place.good(&["lock", "wrkspc_demo", "--reason", "INC-1: suspected leak"]);
    assert!(ran.out.contains("wrkspc_demo is locked (manual"), "{ran:?}");
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!((&shown["by"], &shown["code"], &shown["durable"]), (&json!("manual"), &json!("workspace_locked_by_operator"), &json!(true)));
    // The good key goes on being looked at, and that changes nothing.
    let probes = daemon.key("demo")["last_probe"]["at"].clone();
    daemon.wait("another round", PATIENCE, || daemon.key("demo")["last_probe"]["at"] != probes);
    assert_eq!(daemon.access("wrkspc_demo"), "locked");
    let opened = place.good(&["unlock", "wrkspc_demo", "--reason", "INC-1 closed", "--json"]).json();
    assert_eq!(opened["access"], "open");
    // What is not locked is unlocked already.
    place.good(&["unlock", "wrkspc_demo", "--reason", "again"]);
    assert_eq!(place.cli(&["unlock", "wrkspc_nobody", "--reason", "typo"]).code, 66);
    assert_eq!(place.cli(&["lock", "wrkspc demo", "--reason", "not an id"]).code, 66);
    assert_eq!(place.cli(&["lock", "wrkspc_demo"]).code, 2, "an order needs a reason");
    daemon.stop();
}

#[test]
fn what_an_order_answers_is_what_every_door_shows_from_then_on() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    for _ in 0..40 {
        for (order, access, gate) in [("lock", "locked", 403), ("unlock", "open", 200)] {
            let answer = daemon.post(&format!("/v1/workspaces/wrkspc_demo/{order}"), Some(&json!({ "reason": "INC-10" })));
            assert_eq!((answer.status, &answer.json()["access"]), (200, &json!(access)));
            assert_eq!(request(daemon.port, "GET", "/v1/authz", &[("x-workspace-id", "wrkspc_demo")], None).unwrap().status, gate);
            assert_eq!(daemon.access("wrkspc_demo"), access);
        }
    }
    daemon.stop();
}

#[test]
fn a_lock_by_a_key_yields_to_proof_or_to_an_override_in_the_open() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let refused = place.cli(&["unlock", "wrkspc_demo", "--reason", "please"]);
    assert_eq!(refused.code, 77, "{refused:?}");
    assert!(refused.err.contains("not_proven") && refused.err.contains("demo (disabled)"), "{refused:?}");
    let answer = daemon.post("/v1/workspaces/wrkspc_demo/unlock", Some(&json!({ "reason": "please" })));
    assert_eq!((answer.status, &answer.json()["type"]), (409, &json!("urn:cmek-watchdog:not_proven")));
    assert_eq!(daemon.access("wrkspc_demo"), "locked");

    assert_eq!(place.cli(&["unlock", "wrkspc_demo", "--override", "--until", "25h", "--reason", "too long"]).code, 2);
    let over = place.good(&["unlock", "wrkspc_demo", "--override", "--until", "6s", "--reason", "INC-2: owner agreed"]);
    assert!(over.out.contains("wrkspc_demo is open") && over.out.contains("override of key demo (disabled)"), "{over:?}");
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!((&shown["access"], &shown["overrides"][0]["reason"]), (&json!("open"), &json!("INC-2: owner agreed")));
    assert_eq!(daemon.key_state("demo"), "revoked", "an override says nothing about the key");
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(30));
    let events = daemon.events();
    for event in ["override.started", "override.ended"] {
        assert!(events.contains(&event.to_owned()), "{event}: {events:?}");
    }
    daemon.stop();
}

#[test]
fn an_override_and_its_end_survive_a_kill() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    place.good(&["unlock", "wrkspc_demo", "--override", "--until", "10s", "--reason", "INC-3"]);
    daemon.kill();
    let daemon = place.start();
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!((&shown["access"], &shown["overrides"][0]["reason"]), (&json!("open"), &json!("INC-3")), "{shown}");
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(30));
    daemon.stop();
}

#[test]
fn the_brake_is_not_released_when_it_does_not_hold() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    let ran = place.cli(&["brake", "release", "local", "--drop", "--reason", "none"]);
    assert_eq!(ran.code, 77, "{ran:?}");
    assert!(ran.err.contains("not_engaged"), "{ran:?}");
    assert_eq!(place.cli(&["brake", "release", "nowhere", "--lock", "--reason", "none"]).code, 66);
    assert_eq!(place.cli(&["brake", "release", "local", "--reason", "which?"]).code, 2);
    daemon.stop();
}

/// Four owners on one provider, by `account`.
fn four_owners() -> String {
    let key = |n: u32| {
        format!("[[keys]]\nid = \"k{n}\"\nprovider = \"local\"\nkey = \"k{n}\"\nworkspaces = [\"ws_{n}\"]\naccount = \"owner-{n}\"\n")
    };
    (1..=4).map(key).collect()
}

#[test]
fn a_wave_of_unstated_denials_is_held_until_a_person_releases_it() {
    let place = Place::new(&format!("{QUICK}{}", four_owners()));
    let daemon = place.start();
    for n in 1..=4 {
        daemon.wait_state(&format!("k{n}"), "active", PATIENCE);
    }
    for n in 1..=4 {
        place.kms().deny(&format!("k{n}"), &[cmek_watchdog::words::Leg::Unwrap], now()).unwrap();
    }
    daemon.wait("the brake holds", Duration::from_secs(20), || daemon.metric("cmek_brake_engaged{provider=\"local\"}") == Some(1.0));
    daemon.wait("all orders are held", Duration::from_secs(20), || {
        daemon.get("/v1/status").json()["providers"][0]["held"].as_array().is_some_and(|held| held.len() == 4)
    });
    for n in 1..=4 {
        let key = daemon.key(&format!("k{n}"));
        assert_eq!((&key["state"], &key["held_by"]), (&json!("suspect"), &json!("brake")), "{key}");
        assert_eq!(daemon.access(&format!("ws_{n}")), "open");
    }
    // Held is not forgotten by a crash.
    daemon.kill();
    let daemon = place.start();
    assert_eq!(daemon.metric("cmek_brake_engaged{provider=\"local\"}"), Some(1.0));
    let released = place.good(&["brake", "release", "local", "--lock", "--reason", "INC-4: it is them", "--json"]).json();
    assert_eq!(released["released"], 4, "{released}");
    for n in 1..=4 {
        daemon.wait_access(&format!("ws_{n}"), "locked", Duration::from_secs(20));
    }
    daemon.stop();
}

#[test]
fn an_old_version_is_retired_by_name() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.good(&["local-kms", "rotate", "demo"]);
    daemon.wait("the new version is seen", Duration::from_secs(20), || daemon.key("demo")["rotations"] == 1);
    let versions: Vec<Value> = daemon.key("demo")["versions"].as_array().unwrap().clone();
    assert_eq!(versions.len(), 2, "{versions:?}");
    let name = |current: bool| versions.iter().find(|v| v["current"] == current).unwrap()["version"].as_str().unwrap().to_owned();
    let (old, new) = (name(false), name(true));
    assert_eq!(place.cli(&["version", "retire", "demo", "no-such", "--reason", "x"]).code, 66);
    assert_eq!(place.cli(&["version", "retire", "nobody", &old, "--reason", "x"]).code, 66);
    assert_eq!(place.cli(&["version", "retire", "demo", &new, "--reason", "x"]).code, 77, "the current one is in use");
    place.good(&["version", "retire", "demo", &old, "--reason", "all data sealed anew"]);
    let retired = daemon.key("demo")["versions"].as_array().unwrap().iter().find(|v| v["version"] == old.as_str()).unwrap().clone();
    assert_eq!((&retired["retired"], &retired["protects_data"]), (&json!(true), &json!(false)));
    // Nobody needs it: that it is disabled says nothing any more.
    place.good(&["local-kms", "disable", "demo", "--version", &old]);
    let probed = daemon.key("demo")["last_probe"]["at"].clone();
    let validated = daemon.post("/v1/keys/demo/validate", None).json();
    assert_eq!(validated["state"], "active", "{validated}");
    daemon.wait("the round is shown", PATIENCE, || daemon.key("demo")["last_probe"]["at"] != probed);
    assert_eq!(daemon.key_state("demo"), "active");
    daemon.stop();
}

#[test]
fn without_a_daemon_commands_say_so_and_nothing_lies_in_wait() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let ran = place.cli(&["lock", "wrkspc_demo", "--reason", "INC-5"]);
    assert_eq!(ran.code, 69, "{ran:?}");
    assert!(ran.err.contains("NOTHING WAS LOCKED"), "{ran:?}");
    for arguments in [
        &["unlock", "wrkspc_demo", "--reason", "x"][..],
        &["status"],
        &["reload"],
        &["brake", "release", "local", "--drop", "--reason", "x"],
    ] {
        assert_eq!(place.cli(arguments).code, 69, "{arguments:?}");
    }
    let daemon = place.start();
    assert_eq!(daemon.access("wrkspc_demo"), "open");
    daemon.stop();
}

#[test]
fn tokens_open_the_doors_that_their_role_has() {
    let place = Place::empty();
    let draw = |role: &str| {
        let drawn = place.good(&["token", "new", role, "--role", role, "--json"]).json();
        (format!("Bearer {}", drawn["token"].as_str().unwrap()), drawn["sha256"].as_str().unwrap().to_owned())
    };
    let (read, read_sha) = draw("read");
    let (operate, operate_sha) = draw("operate");
    let tokens = format!(
        "tokens = [{{ name = \"reader\", role = \"read\", sha256 = \"{read_sha}\" }}, {{ name = \"boss\", role = \"operate\", sha256 = \"{operate_sha}\" }}]"
    );
    place.write(&place.head(&tokens, "state/state.db"), &format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    let ask = |method: &str, path: &str, token: Option<&str>, body: Option<&Value>| {
        let mut headers: Vec<(&str, &str)> = token.map(|token| ("authorization", token)).into_iter().collect();
        headers.push(("x-workspace-id", "wrkspc_demo"));
        request(daemon.port, method, path, &headers, body).unwrap()
    };
    for path in ["/v1/workspaces", "/v1/keys", "/v1/status", "/v1/activity", "/v1/authz", "/metrics", "/"] {
        let answer = ask("GET", path, None, None);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.header("www-authenticate").is_some_and(|how| how.starts_with("Bearer")), "{path}: {answer:?}");
        assert_eq!(ask("GET", path, Some("Bearer cmekw_wrong"), None).status, 401, "{path}");
        assert_eq!(ask("GET", path, Some(&read), None).status, 200, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask("GET", path, None, None).status, 200, "{path} needs no token");
    }
    let body = json!({ "reason": "INC-6" });
    let lock = "/v1/workspaces/wrkspc_demo/lock";
    assert_eq!(ask("POST", lock, None, Some(&body)).status, 401);
    assert_eq!(ask("POST", lock, Some(&read), Some(&body)).status, 403);
    assert_eq!(ask("POST", lock, Some(&operate), Some(&body)).status, 200);
    let activity = ask("GET", "/v1/activity", Some(&read), None).json();
    let actor = activity["items"].as_array().unwrap().iter().find(|record| record["type"] == "operator.action").unwrap()["actor"].clone();
    assert_eq!(actor, "boss", "the token's name stands in the journal, never the token");
    // The control socket is guarded by the file system instead.
    place.good(&["unlock", "wrkspc_demo", "--reason", "INC-6 closed"]);
    for token in [&read, &operate] {
        let secret = token.strip_prefix("Bearer ").unwrap();
        assert!(!daemon.log().contains(secret), "a token in the log");
    }
    daemon.stop();
}

#[test]
fn without_tokens_and_without_leave_tcp_reads_only() {
    let place = Place::empty();
    place.write(&place.head("", "state/state.db"), &format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    assert_eq!(daemon.get("/v1/workspaces/wrkspc_demo").status, 200);
    let answer = daemon.post("/v1/workspaces/wrkspc_demo/lock", Some(&json!({ "reason": "INC-8" })));
    assert!([401, 403].contains(&answer.status), "{answer:?}");
    assert_eq!(daemon.access("wrkspc_demo"), "open");
    place.good(&["lock", "wrkspc_demo", "--reason", "INC-8"]);
    assert_eq!(daemon.access("wrkspc_demo"), "locked");
    daemon.stop();
}
