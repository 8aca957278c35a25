//! A restart forgets no lock and no look, whatever ended the daemon.

use std::time::{Duration, Instant};

use cmek_watchdog::words::Leg;

use crate::support::{DEMO, PATIENCE, Place, QUICK, get, now, request};

/// Asks from before the start on, as fast as it can; gives the first answer that says something.
fn first_answers(port: u16) -> (std::thread::JoinHandle<serde_json::Value>, std::thread::JoinHandle<(u16, Vec<u16>)>) {
    let until = Instant::now() + PATIENCE;
    let shown = std::thread::spawn(move || {
        loop {
            assert!(Instant::now() < until);
            match get(port, "/v1/workspaces/wrkspc_demo") {
                Some(answer) if answer.status == 200 => return answer.json(),
                // Nobody listens yet, or it is starting: never an open workspace, never an unknown one.
                Some(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
                None => {}
            }
        }
    });
    let gate = std::thread::spawn(move || {
        let mut before = Vec::new();
        loop {
            assert!(Instant::now() < until);
            match request(port, "GET", "/v1/authz", &[("x-workspace-id", "wrkspc_demo"), ("x-access", "read")], None) {
                Some(answer) if answer.status == 503 => before.push(503),
                Some(answer) => return (answer.status, before),
                None => {}
            }
        }
    });
    (shown, gate)
}

fn stays_locked(end: impl Fn(crate::support::Daemon)) {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let before = daemon.workspace("wrkspc_demo");
    end(daemon);
    // The key is good again before the new daemon sees it: only its own good rounds may open it.
    place.kms().enable("demo", now()).unwrap();
    for _ in 0..3 {
        let (shown, gate) = first_answers(place.port);
        let daemon = place.start();
        let shown = shown.join().unwrap();
        assert_eq!(shown["access"], "locked", "the first answer after the start: {shown}");
        assert_eq!((&shown["sequence"], &shown["since"]), (&before["sequence"], &before["since"]));
        let (status, _) = gate.join().unwrap();
        assert_eq!(status, 403, "the gate's first answer after the start");
        end(daemon);
        if daemon_opened(&place) {
            break;
        }
    }
    let daemon = place.start();
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(15));
    daemon.stop();
    place.good(&["journal", "verify"]);
}

/// Whether good rounds have opened the workspace by now: then it is open rightly.
fn daemon_opened(place: &Place) -> bool {
    place.good(&["journal", "export"]).out.contains("\"workspace.opened\"")
}

#[test]
fn a_lock_stands_at_the_first_answer_after_a_graceful_stop() {
    stays_locked(|daemon| {
        daemon.stop();
    });
}

#[test]
fn a_lock_stands_at_the_first_answer_after_a_kill() {
    stays_locked(crate::support::Daemon::kill);
}

#[test]
fn a_manual_lock_of_a_workspace_that_nobody_knew_survives_a_kill() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    place.good(&["lock", "wrkspc_else", "--reason", "INC-1"]);
    daemon.kill();
    let daemon = place.start();
    let shown = daemon.workspace("wrkspc_else");
    assert_eq!((&shown["access"], &shown["by"], &shown["locks"][0]["reason"]), (&"locked".into(), &"manual".into(), &"INC-1".into()));
    daemon.stop();
}

#[test]
fn a_stop_right_after_the_first_answer_is_graceful() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    for _ in 0..10 {
        place.start().stop();
        assert!(!place.path("run/control.sock").exists());
    }
}

#[test]
fn what_was_confirmed_before_a_kill_counts_after_it() {
    const OVER: Duration = Duration::from_secs(12);
    let slow = QUICK.replace(
        "access_denied = { looks = 3, of = 4, over = \"400ms\", access = \"locked\" }",
        "access_denied = { looks = 4, of = 5, over = \"12s\", access = \"locked\" }",
    );
    assert_ne!(slow, QUICK);
    let place = Place::new(&format!("{slow}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().deny("demo", &[Leg::Unwrap], now()).unwrap();
    daemon.wait_state("demo", "suspect", Duration::from_secs(15));
    let suspected = Instant::now();
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(daemon.access("wrkspc_demo"), "open");
    daemon.kill();
    let mut daemon = place.spawn(&[]);
    daemon.wait_ready();
    let ready = Instant::now();
    assert_eq!(daemon.key_state("demo"), "suspect", "the suspicion is not forgotten");
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(30));
    let (since_suspected, since_ready) = (suspected.elapsed(), ready.elapsed());
    println!("restart: locked {since_suspected:?} after the suspicion, {since_ready:?} after the restart (over = {OVER:?})");
    assert!(since_suspected + Duration::from_millis(500) >= OVER, "before its time: {since_suspected:?}");
    assert!(since_ready < OVER - Duration::from_secs(2), "the count began anew: {since_ready:?}");
    daemon.stop();
}

#[test]
fn a_stop_waits_neither_for_a_receiver_that_hangs_nor_for_an_idle_visitor() {
    // Takes every connection and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let (seen, hooked) = std::sync::mpsc::channel();
    std::thread::spawn(move || silent.incoming().flatten().for_each(|stream| drop(seen.send(stream))));
    let mut place = Place::new(&format!(
        "{QUICK}{DEMO}[receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{port}/\"\nsecret = \"env:TEST_HOOK_SECRET\"\n\
         [[routes]]\nreceivers = [\"hook\"]\nseverity = \"critical\"\n"
    ));
    place.env.push(("TEST_HOOK_SECRET".to_owned(), "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".to_owned()));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let held = hooked.recv_timeout(Duration::from_secs(20)).unwrap();
    let visitor = std::net::TcpStream::connect(("127.0.0.1", place.port)).unwrap();
    let took = daemon.stop();
    println!("restart: stopped in {took:?} with a receiver that hangs and an idle visitor");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!place.path("run/control.sock").exists());
    drop((held, visitor));
    // What was not delivered is not forgotten.
    let daemon = place.start();
    hooked.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(daemon.metric("cmek_outbox_depth{receiver=\"hook\"}"), Some(1.0));
    daemon.stop();
}

#[test]
fn a_key_registered_by_the_api_is_there_after_a_restart_and_goes_when_it_is_taken_back() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().create("second", now()).unwrap();
    let body = r#"{"provider":"local","key":"second","workspaces":["wrkspc_api"],"policy":"default"}"#;
    let json: &[(&str, &str)] = &[("content-type", "application/json")];
    let put = |path: &str| request(place.port, "PUT", path, json, Some(body)).unwrap().status;
    assert_eq!((put("/v1/keys/api"), put("/v1/keys/api"), put("/v1/keys/demo")), (201, 200, 409));
    daemon.wait_state("api", "active", PATIENCE);
    daemon.kill();
    let daemon = place.start();
    let shown = get(place.port, "/v1/keys/api").unwrap().json();
    assert_eq!((&shown["source"], &shown["state"]), (&"api".into(), &"active".into()));
    let delete = || request(place.port, "DELETE", "/v1/keys/api", json, None).unwrap().status;
    assert_eq!((delete(), delete()), (200, 404));
    daemon.stop();
    let daemon = place.start();
    assert_eq!(get(place.port, "/v1/keys/api").unwrap().status, 404);
    daemon.stop();
    assert!(place.good(&["journal", "export"]).out.contains("key register"));
}
