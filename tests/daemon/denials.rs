//! Each direction of a key is judged on its own.

use std::time::{Duration, Instant};

use cmek_watchdog::words::Leg;

use crate::support::{DEMO, PATIENCE, Place, QUICK, now, request};

fn gate(port: u16, access: &str) -> (u16, Option<String>) {
    let answer = request(port, "POST", "/v1/authz/messages", &[("x-workspace-id", "wrkspc_demo"), ("x-access", access)], None).unwrap();
    (answer.status, answer.header("x-lockout-code").map(str::to_owned))
}

#[test]
fn unwrap_denied_alone_locks() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.good(&["local-kms", "deny", "demo", "unwrap"]);
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!((&shown["cause"], &shown["code"]), (&"access_denied".into(), &"cmek_key_disabled".into()), "{shown}");
    let key = daemon.key("demo");
    assert_eq!((&key["state"], &key["failure_kind"], &key["stated"]), (&"revoked".into(), &"access_denied".into(), &false.into()));
    assert_eq!(gate(daemon.port, "read").0, 403);
    place.good(&["local-kms", "allow", "demo", "unwrap"]);
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(15));
}

#[test]
fn wrap_denied_alone_leaves_reading() {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().deny("demo", &[Leg::Wrap], now()).unwrap();
    daemon.wait_access("wrkspc_demo", "read_only", Duration::from_secs(15));
    assert_eq!(gate(daemon.port, "read").0, 200);
    assert_eq!(gate(daemon.port, "write"), (403, Some("cmek_key_disabled".to_owned())));
    assert_eq!(daemon.metric("cmek_workspace_access{workspace=\"wrkspc_demo\",access=\"read_only\"}"), Some(1.0));
    assert!(daemon.events().contains(&"workspace.read_only".to_owned()));

    // The other direction goes too: what was readable closes.
    place.kms().deny("demo", &[Leg::Unwrap], now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    assert_eq!(gate(daemon.port, "read").0, 403);
    place.kms().allow("demo", &[Leg::Wrap, Leg::Unwrap], now()).unwrap();
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(15));
}

#[test]
fn a_denial_that_the_control_key_shares_locks_nothing() {
    // An answer of the control key vouches for ten seconds; looks are spread over more, as they are by default.
    let spread = QUICK.replace("looks = 3, of = 4, over = \"400ms\"", "looks = 3, of = 4, over = \"12s\"");
    assert_ne!(spread, QUICK);
    let place = Place::new(&format!("{spread}{DEMO}"));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    for key in ["operator", "demo"] {
        place.kms().deny(key, &[Leg::Wrap, Leg::Unwrap, Leg::Describe], now()).unwrap();
    }
    let denied = Instant::now();
    daemon.wait("our credentials are told of", Duration::from_secs(45), || daemon.events().contains(&"provider.credentials".to_owned()));
    let status = daemon.get("/v1/status").json();
    assert_eq!(status["providers"][0]["credentials_failing"], true, "{status}");
    while denied.elapsed() < Duration::from_secs(18) {
        assert_eq!(daemon.access("wrkspc_demo"), "open");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!daemon.events().contains(&"workspace.locked".to_owned()));
    assert_eq!(daemon.get("/healthz").status, 200);
    daemon.stop();
}
