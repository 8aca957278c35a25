//! A new configuration is taken whole or not at all, by every way, and lowers no restriction.

use std::time::Duration;

use crate::support::{DEMO, Daemon, PATIENCE, Place, QUICK, now};

const OTHER: &str = "[[keys]]\nid = \"other\"\nprovider = \"local\"\nkey = \"other\"\nworkspaces = [\"ws_other\"]\n";
/// Line and field of the mistake below are what the answers must name.
const MISTAKE: &str = "[gate]\nmax_age = \"soon\"\n";

fn head(place: &Place) -> String {
    place.head("insecure_loopback = true", "state/state.db")
}

/// The mistake's line, as the answers count it.
fn mistake_at(place: &Place) -> String {
    let text = std::fs::read_to_string(&place.config).unwrap();
    let line = text.lines().position(|line| line.starts_with("max_age")).unwrap() + 1;
    format!("config.toml:{line}:")
}

fn flagged(daemon: &Daemon) -> bool {
    !daemon.get("/v1/status").json()["config_flagged"].is_null()
}

/// The state after a bad file: said everywhere, and the old configuration in force.
fn assert_old_one_in_force(place: &Place, daemon: &Daemon) {
    assert_eq!(daemon.metric("cmek_config_last_reload_successful"), Some(0.0));
    let flag = daemon.get("/v1/status").json()["config_flagged"].as_str().unwrap().to_owned();
    assert!(flag.contains(&mistake_at(place)) && flag.contains("gate.max_age"), "{flag}");
    assert_eq!(daemon.get("/v1/keys/demo").status, 200);
    assert_eq!(daemon.get("/v1/keys/other").status, 404);
    let shown = place.good(&["status"]);
    assert!(shown.out.contains("CONFIGURATION NOT IN FORCE") && shown.out.contains(&mistake_at(place)), "{shown:?}");
}

#[test]
fn by_signal() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    assert_eq!(daemon.metric("cmek_config_last_reload_successful"), Some(1.0));
    place.write(&head(&place), &format!("{QUICK}{MISTAKE}{DEMO}{OTHER}"));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait("the failure is flagged", PATIENCE, || flagged(&daemon));
    assert_old_one_in_force(&place, &daemon);

    place.write(&head(&place), &format!("{QUICK}{DEMO}{OTHER}"));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait("the new key is there", PATIENCE, || daemon.get("/v1/keys/other").status == 200);
    daemon.wait("the flag is gone", PATIENCE, || !flagged(&daemon));
    assert_eq!(daemon.metric("cmek_config_last_reload_successful"), Some(1.0));
    assert_eq!(daemon.access("ws_other"), "open");
    daemon.stop();
}

#[test]
fn by_command_with_an_exit_code() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    place.write(&head(&place), &format!("{QUICK}{MISTAKE}{DEMO}{OTHER}"));
    let ran = place.cli(&["reload"]);
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains(&mistake_at(&place)) && ran.err.contains("gate.max_age"), "{ran:?}");
    assert_old_one_in_force(&place, &daemon);

    place.write(&head(&place), &format!("{QUICK}{DEMO}{OTHER}"));
    place.good(&["reload"]);
    assert_eq!(daemon.get("/v1/keys/other").status, 200, "`reload` answers when it is done");
    assert!(daemon.events().contains(&"config.reloaded".to_owned()));
    daemon.stop();
}

#[test]
fn an_operator_reaches_the_daemon_although_the_file_is_faulty() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    for broken in [MISTAKE, "[[[ not even TOML\n"] {
        place.write(&head(&place), &format!("{QUICK}{DEMO}{broken}"));
        let ran = place.good(&["lock", "wrkspc_demo", "--reason", "INC-9"]);
        assert!(ran.err.contains("config.toml:"), "the faulty file is told: {ran:?}");
        assert_eq!(daemon.access("wrkspc_demo"), "locked");
        place.good(&["unlock", "wrkspc_demo", "--reason", "INC-9 closed"]);
        assert_eq!(place.cli(&["reload"]).code, 78);
        assert!(flagged(&daemon));
    }
    daemon.stop();
    let ran = place.cli(&["status"]);
    assert_eq!(ran.code, 78, "with nobody there, the file's faults are the news: {ran:?}");
}

#[test]
fn by_request() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    place.write(&head(&place), &format!("{QUICK}{MISTAKE}{DEMO}{OTHER}"));
    let answer = daemon.post("/v1/reload", None);
    assert_eq!((answer.status, answer.header("content-type")), (422, Some("application/problem+json")), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["type"], "urn:cmek-watchdog:bad_configuration");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&mistake_at(&place)) && detail.contains("gate.max_age"), "{detail}");
    assert_old_one_in_force(&place, &daemon);

    place.write(&head(&place), &format!("{QUICK}{DEMO}{OTHER}"));
    assert_eq!(daemon.post("/v1/reload", None).status, 200);
    assert_eq!(daemon.get("/v1/keys/other").status, 200);
    daemon.stop();
}

#[test]
fn what_is_bound_at_the_start_cannot_move_and_is_said() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    place.write(&place.head("insecure_loopback = true", "elsewhere/state.db"), &format!("{QUICK}{DEMO}{OTHER}"));
    let ran = place.cli(&["reload"]);
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains("store.url"), "{ran:?}");
    assert_eq!(daemon.get("/v1/keys/other").status, 404);
    daemon.stop();
}

#[test]
fn a_key_that_locks_is_taken_out_and_its_lock_stays_until_an_operator_clears_it() {
    let place = Place::new(&format!("{QUICK}{DEMO}{OTHER}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    place.write(&head(&place), &format!("{QUICK}{OTHER}"));
    place.good(&["reload"]);
    assert_eq!(daemon.get("/v1/keys/demo").status, 404);
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!((&shown["access"], &shown["locks"][0]["cause"]), (&"locked".into(), &"orphaned".into()), "{shown}");
    // A good key that nobody looks at opens nothing, and neither does a restart.
    place.kms().enable("demo", now()).unwrap();
    daemon.kill();
    let daemon = place.start();
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!((&shown["access"], &shown["locks"][0]["cause"]), (&"locked".into(), &"orphaned".into()), "{shown}");
    assert_eq!(place.cli(&["unlock", "wrkspc_demo"]).code, 2, "no reason");
    let opened = place.good(&["unlock", "wrkspc_demo", "--reason", "INC-7: contract ended"]);
    assert!(opened.out.contains("wrkspc_demo is open"), "{opened:?}");
    assert_eq!(daemon.access("wrkspc_demo"), "open");
    let record = daemon.activity().into_iter().rev().find(|record| record["type"] == "workspace.opened").unwrap();
    assert!(record["actor"].as_str().unwrap().starts_with("uid:"), "{record}");
    daemon.stop();
}
