//! Commands that speak to the daemon: against real doors on a control socket, and against none.

use std::sync::Arc;

use cmek_watchdog::http::serve::serve_socket;
use cmek_watchdog::http::socket::ControlSocket;
use cmek_watchdog::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use cmek_watchdog::operate::{Action, Answered, Refusal, RefusalSlug};
use cmek_watchdog::snapshot::Change;
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, StateWord};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::desk::{CONFIG, Desk, Ran};
use crate::doors::{House, Reloading, config};

/// Every command that only the daemon can carry out.
const ONLINE: [&[&str]; 8] = [
    &["status"],
    &["lock", "wrkspc_demo", "--reason", "INC-1"],
    &["unlock", "wrkspc_demo", "--reason", "INC-1"],
    &["reload"],
    &["brake", "release", "local", "--lock", "--reason", "INC-1"],
    &["version", "retire", "demo", "1", "--reason", "INC-1"],
    &["key", "retire", "demo", "--reason", "INC-1"],
    &["receivers", "test", "sre-mail"],
];

/// Doors on the control socket of a desk.
struct Daemon {
    desk: Arc<Desk>,
    house: House,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Daemon {
    fn start(house: House) -> Self {
        let desk = Arc::new(Desk::new(CONFIG));
        let socket = ControlSocket::bind(&desk.path().join("run")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve_socket(socket, house.app.clone(), house.limits, async move {
            let _ = stopped.await;
        }));
        Self { desk, house, stop: Some(stop), served }
    }

    async fn run(&self, args: &[&str]) -> Ran {
        let (desk, args) = (Arc::clone(&self.desk), args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        let run = move || desk.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    fn asked(&self) -> Vec<Action> {
        self.house.asked.lock().unwrap().iter().map(|operation| operation.action.clone()).collect()
    }

    async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.served.await.unwrap();
    }
}

fn workspace(id: &str) -> WorkspaceId {
    WorkspaceId::new(id).unwrap()
}

#[test]
fn without_a_daemon_every_such_command_exits_69_and_says_what_did_not_happen() {
    let desk = Desk::new(CONFIG);
    for args in ONLINE {
        let ran = desk.run(args).exits(69);
        assert!(
            ran.err.starts_with(&format!("the daemon is not reachable at {}", desk.path().join("run/control.sock").display())),
            "{}",
            ran.err
        );
        assert!(ran.out.is_empty());
        let said = match args[0] {
            "status" => "",
            "lock" => "NOTHING WAS LOCKED",
            "receivers" => "nothing was sent",
            _ => "nothing was changed",
        };
        assert!(ran.err.contains(said), "{args:?}: {}", ran.err);
    }
    let (code, value) = desk.json(&["lock", "w", "--reason", "r"]);
    assert_eq!((code, &value["error"]["code"]), (69, &json!("unreachable")));
    assert!(!desk.path().join("state.db").exists(), "no order was left lying");
}

#[tokio::test]
async fn a_leftover_socket_of_a_dead_daemon_is_unreachable_too() {
    let desk = Desk::new(CONFIG);
    std::fs::create_dir(desk.path().join("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(desk.path().join("run/control.sock")).unwrap());
    desk.run(&["status"]).exits(69);
}

#[tokio::test]
async fn a_daemon_that_closes_in_the_middle_leaves_the_order_uncertain_and_says_so() {
    let desk = Arc::new(Desk::new(CONFIG));
    std::fs::create_dir(desk.path().join("run")).unwrap();
    let listener = tokio::net::UnixListener::bind(desk.path().join("run/control.sock")).unwrap();
    let closing = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.readable().await;
            drop(stream);
        }
    });
    let running = Arc::clone(&desk);
    let ran = tokio::task::spawn_blocking(move || running.run(&["lock", "w", "--reason", "r"])).await.unwrap().exits(69);
    closing.abort();
    assert!(ran.err.contains("it may have been carried out") && !ran.err.contains("NOTHING"), "{}", ran.err);
}

#[tokio::test]
async fn orders_reach_the_core_as_they_were_given_with_the_callers_uid() {
    let daemon = Daemon::start(House::new(config()).obeying());
    let ran = daemon.run(&["lock", "wrkspc:a", "--reason", "INC-1: leak"]).await.exits(0);
    assert!(ran.out.starts_with("wrkspc:a is locked (automatic, disabled since "), "{}", ran.out);
    assert!(ran.out.contains("enable the key"), "{}", ran.out);
    daemon.run(&["unlock", "wrkspc_demo", "--reason", "over"]).await.exits(0);
    let ran = daemon.run(&["unlock", "wrkspc_demo", "--override", "--until", "2h", "--reason", "agreed", "--json"]).await.exits(0);
    assert_eq!(ran.json()["access"], "open");
    let ran = daemon.run(&["brake", "release", "local", "--drop", "--reason", "false alarm"]).await.exits(0);
    assert_eq!(ran.out, "held locks dropped: 3\n");
    daemon.run(&["brake", "release", "local", "--lock", "--reason", "true alarm"]).await.exits(0);
    daemon.run(&["version", "retire", "demo", "https://v/keys/k/1", "--reason", "re-wrapped"]).await.exits(0);
    assert_eq!(daemon.run(&["key", "retire", "demo", "--reason", "left"]).await.exits(0).out, "key demo is retired\n");
    daemon.run(&["receivers", "test", "sre-mail"]).await.exits(0);
    assert_eq!(daemon.run(&["reload"]).await.exits(0).out, "reloaded\n");
    let key = || KeyId::new("demo").unwrap();
    let provider = || ProviderId::new("local").unwrap();
    assert_eq!(
        daemon.asked(),
        [
            Action::Lock { workspace: workspace("wrkspc:a"), reason: "INC-1: leak".into() },
            Action::Unlock { workspace: workspace("wrkspc_demo"), reason: "over".into(), override_for: None },
            Action::Unlock { workspace: workspace("wrkspc_demo"), reason: "agreed".into(), override_for: Some(Span::from_hours(2)) },
            Action::BrakeRelease { provider: provider(), lock: false, reason: "false alarm".into() },
            Action::BrakeRelease { provider: provider(), lock: true, reason: "true alarm".into() },
            Action::RetireVersion { key: key(), version: KeyVersion::new("https://v/keys/k/1"), reason: "re-wrapped".into() },
            Action::RetireKey { key: key(), reason: "left".into() },
            Action::TestReceiver { receiver: ReceiverId::new("sre-mail").unwrap() },
        ]
    );
    let actors: Vec<String> = daemon.house.asked.lock().unwrap().iter().map(|operation| operation.actor.clone()).collect();
    assert!(actors.iter().all(|actor| actor.starts_with("uid:")), "{actors:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn each_refusal_of_the_core_has_its_exit_code_and_its_reason() {
    for (slug, code) in [
        (RefusalSlug::UnknownKey, 66),
        (RefusalSlug::UnknownWorkspace, 66),
        (RefusalSlug::UnknownProvider, 66),
        (RefusalSlug::UnknownVersion, 66),
        (RefusalSlug::UnknownReceiver, 66),
        (RefusalSlug::NotProven, 77),
        (RefusalSlug::FileManaged, 77),
        (RefusalSlug::KeyLocks, 77),
        (RefusalSlug::NotEngaged, 77),
        (RefusalSlug::CurrentVersion, 77),
        (RefusalSlug::Invalid, 2),
        (RefusalSlug::StoreUnavailable, 74),
        (RefusalSlug::Busy, 69),
    ] {
        let refuse = move |_: &Action| -> Answered { Err(Refusal { slug, detail: "the reason why".into() }) };
        let daemon = Daemon::start(House::new(config()).answering(refuse));
        let ran = daemon.run(&["unlock", "wrkspc_demo", "--reason", "r", "--json"]).await.exits(code);
        assert!(ran.err.contains("the reason why"), "{slug:?}: {}", ran.err);
        assert_eq!(ran.json()["error"]["exit_code"], code, "{slug:?}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn malformed_names_are_unknown_and_a_blank_reason_is_refused() {
    let daemon = Daemon::start(House::new(config()).obeying());
    daemon.run(&["lock", "a b", "--reason", "r"]).await.exits(66);
    daemon.run(&["key", "retire", "a/b", "--reason", "r"]).await.exits(66);
    daemon.run(&["lock", "w", "--reason", "  "]).await.exits(2);
    assert!(daemon.asked().is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn a_reload_that_fails_exits_78_with_the_place_of_each_fault() {
    let mut house = House::new(config());
    house.app.reload = Arc::new(Reloading(Err("config.toml:3:1: server: unknown field `x`\nconfig.toml:9:1: keys: y".into())));
    let daemon = Daemon::start(house);
    let ran = daemon.run(&["reload"]).await.exits(78);
    assert_eq!(ran.err, "config.toml:3:1: server: unknown field `x`\nconfig.toml:9:1: keys: y\n");
    daemon.stop().await;
}

#[tokio::test]
async fn status_shows_what_is_lowered_and_exits_11_only_when_asked() {
    let daemon = Daemon::start(House::new(config()).obeying());
    let ran = daemon.run(&["status"]).await.exits(0);
    for part in [
        "ready, up since 2025-11-25T07:46:00.123Z",
        "keys        3: 1 active, 1 impaired, 1 revoked",
        "workspaces  3: 1 locked, 1 open, 1 read_only",
        "wrkspc_demo  locked     disabled  demo  automatic  2025-11-25T07:46:00.123Z",
        "sre-mail  good   2 ",
        "local     local  good         -      good         0",
    ] {
        assert!(ran.out.contains(part), "{part}\n{}", ran.out);
    }
    assert!(!ran.out.contains("wrkspc_open"));
    daemon.run(&["status", "--exit-code"]).await.exits(11);
    assert_eq!(daemon.run(&["status", "--json"]).await.exits(0).json()["lowered_total"], 2);
    let open = |id: &str| Change::Workspace(Arc::new(crate::doors::workspace(id, Access::Open)));
    daemon.house.app.published.apply(vec![open("wrkspc_demo"), open("wrkspc_half")]);
    assert!(!daemon.run(&["status", "--exit-code"]).await.exits(0).out.contains("WORKSPACE"));
    daemon.stop().await;
}

#[tokio::test]
async fn status_says_what_is_wrong_with_the_daemon_itself() {
    let house = House::new(config());
    let flagged = cmek_watchdog::snapshot::DaemonView {
        config_flagged: Some("config.toml:3:1: bad".into()),
        bugs: 2,
        store_write_failures: 4,
        would_lock_total: 5,
        ready: false,
        ..crate::doors::daemon()
    };
    let braked = cmek_watchdog::snapshot::ProviderView {
        brake_engaged: true,
        held: vec![KeyId::new("a").unwrap(), KeyId::new("b").unwrap()],
        control_key_healthy: Some(false),
        credentials_failing: true,
        credentials_expire_at: None,
        ..crate::doors::provider()
    };
    let key = crate::doors::key("demo", StateWord::Suspect);
    house.app.published.apply(vec![Change::Daemon(Arc::new(flagged)), Change::Provider(Arc::new(braked)), Change::Key(Arc::new(key))]);
    let daemon = Daemon::start(house);
    let ran = daemon.run(&["status"]).await.exits(0);
    for part in [
        "STARTING",
        "CONFIGURATION NOT IN FORCE: config.toml:3:1: bad",
        "impossible branches taken: 2",
        "failed writes to the store: 4",
        "would have locked in shadow mode: 5",
        "ENGAGED, 2 held",
        "1 suspect",
    ] {
        assert!(ran.out.contains(part), "{part}\n{}", ran.out);
    }
    assert_eq!(ran.out.matches("FAILING").count(), 2, "{}", ran.out);
    daemon.stop().await;
}
