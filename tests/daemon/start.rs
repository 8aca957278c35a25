//! A start that cannot be safe is refused with a reason, and one that can is flagged.

use std::time::Duration;

use crate::support::{DEMO, PATIENCE, Place, QUICK, now};

const MISTAKE: &str = "[gate]\nmax_age = \"soon\"\n";

fn head(place: &Place) -> String {
    place.head("insecure_loopback = true", "state/state.db")
}

fn names_the_mistake(place: &Place, said: &str) {
    let text = std::fs::read_to_string(&place.config).unwrap();
    let line = text.lines().position(|line| line.starts_with("max_age")).unwrap() + 1;
    for part in [format!("config.toml:{line}:"), "gate.max_age".to_owned()] {
        assert!(said.contains(&part), "`{part}` is not in: {said}");
    }
}

#[test]
fn a_bad_file_ends_the_first_start_with_78() {
    let place = Place::new(&format!("{QUICK}{MISTAKE}{DEMO}"));
    let (code, said) = place.start_fails(&[]);
    assert_eq!(code, 78, "{said}");
    names_the_mistake(&place, &said);
    assert!(!place.path("state").exists(), "nothing was begun");
}

#[test]
fn a_bad_file_after_a_good_one_runs_the_good_one_and_says_so() {
    let hook = crate::receivers::Server::start("webhook_server.py", &["--kind", "any"]);
    let receiver = format!(
        "[receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{}/hook\"\nsecret = \"env:TEST_HOOK_SECRET\"\n\
         [[routes]]\nreceivers = [\"hook\"]\nseverity = \"critical\"\n",
        hook.port
    );
    let mut place = Place::new(&format!("{QUICK}{DEMO}{receiver}"));
    place.env.push(("TEST_HOOK_SECRET".to_owned(), "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".to_owned()));
    place.start().stop();
    place.write(&head(&place), &format!("{QUICK}{MISTAKE}"));

    let (code, said) = place.start_fails(&["--strict"]);
    assert_eq!(code, 78, "{said}");
    names_the_mistake(&place, &said);
    assert_eq!(place.cli(&["check"]).code, 78);

    let daemon = place.start();
    assert_eq!(daemon.get("/v1/keys/demo").status, 200, "the good one has the key");
    let flag = daemon.get("/v1/status").json()["config_flagged"].as_str().unwrap_or_default().to_owned();
    names_the_mistake(&place, &flag);
    assert_eq!(daemon.metric("cmek_config_last_reload_successful"), Some(0.0));
    assert_eq!(daemon.metric("cmek_config_flagged"), Some(1.0));
    names_the_mistake(&place, &daemon.log());
    let calls = hook.until(|calls| !calls.is_empty());
    let notice: serde_json::Value = serde_json::from_str(calls[0]["body"].as_str().unwrap()).unwrap();
    assert_eq!(notice["type"], "config.fallback");
    names_the_mistake(&place, notice["data"]["message"].as_str().unwrap());
    // Mended and taken: nothing is flagged any more.
    place.write(&head(&place), &format!("{QUICK}{DEMO}{receiver}"));
    place.good(&["reload"]);
    assert!(daemon.get("/v1/status").json()["config_flagged"].is_null());
    assert_eq!(daemon.metric("cmek_config_last_reload_successful"), Some(1.0));
    daemon.stop();
}

#[test]
fn a_missing_secret_is_named_and_its_value_never_asked_for_by_check() {
    let place = Place::new(&format!(
        "{QUICK}{DEMO}[receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:9/\"\nsecret = \"env:NO_SUCH_SECRET\"\n\
         [[routes]]\nreceivers = [\"hook\"]\n"
    ));
    place.good(&["check"]);
    let (code, said) = place.start_fails(&[]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("NO_SUCH_SECRET"), "{said}");
}

#[test]
fn a_second_daemon_on_the_same_store_ends_with_74_and_names_the_lock_file() {
    let first = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = first.start();
    let second = Place::empty();
    let store = first.path("state/state.db").display().to_string();
    second.write(&second.head("insecure_loopback = true", &store), &format!("{QUICK}{DEMO}"));
    let (code, said) = second.start_fails(&[]);
    assert_eq!(code, 74, "{said}");
    assert!(said.contains("state.db.lock"), "{said}");
    assert_eq!(daemon.get("/healthz").status, 200, "the first one goes on");
    daemon.kill();
    // A lock file that a dead daemon left behind is no obstacle.
    second.start().stop();
}

#[test]
fn a_port_that_is_taken_is_named_and_a_living_socket_is_left_alone() {
    let first = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = first.start();
    let mut second = Place::empty();
    second.port = first.port;
    second.write(&second.head("insecure_loopback = true", "state/state.db"), &format!("{QUICK}{DEMO}"));
    let (code, said) = second.start_fails(&[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("server.listen") && said.contains(&first.port.to_string()), "{said}");
    first.good(&["status"]);
    daemon.stop();
}

fn lose_the_store(place: &Place) {
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        let _may_be_absent = std::fs::remove_file(place.path(&format!("state/{name}")));
    }
}

#[test]
fn a_lost_store_ends_the_start_with_74() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    place.start().stop();
    lose_the_store(&place);
    let (code, said) = place.start_fails(&[]);
    assert_eq!(code, 74, "{said}");
    for part in ["state.db", "is lost", "backup", "locked_until_proven"] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert!(!place.path("state/state.db").exists(), "a refused start makes no new store");
}

#[test]
fn a_lost_store_may_start_locked_and_opens_by_proof_alone() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    daemon.stop();
    lose_the_store(&place);
    place.kms().disable("demo", now()).unwrap();
    let head = head(&place).replace("[store]\n", "[store]\nwhen_lost = \"locked_until_proven\"\n");
    place.write(&head, &format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    assert_eq!(daemon.access("wrkspc_demo"), "locked", "nothing is known, so nothing is open");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.access("wrkspc_demo"), "locked");
    // The loss is not forgotten by another crash.
    daemon.kill();
    let daemon = place.start();
    assert_eq!(daemon.access("wrkspc_demo"), "locked");
    place.kms().enable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(20));
    daemon.stop();
    place.start().stop();
    place.good(&["journal", "verify"]);
}
