//! The client against the daemon: what it sees of a lock, that it keeps its table while the daemon is
//! killed and started again, and what the layer answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cmek_watchdog::client::{Answer, Asked, Client, ClientError, GateLayer, OnChange, OnLost, Ruling, Settings};
use cmek_watchdog::clock;
use cmek_watchdog::gate::Features;
use cmek_watchdog::http::Limits;
use cmek_watchdog::http::serve::serve_tcp;
use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, FeatureClass};
use serde_json::json;
use tower::{Layer as _, ServiceExt as _};

use crate::doors::{House, config};
use crate::reads::{SHORT, turn};
use crate::support::{DEMO, Place, QUICK};

fn settings(port: u16) -> Settings {
    let mut settings = Settings::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    settings.longest_pause = Duration::from_millis(200);
    settings.consumer = Some("svc-1".into());
    settings
}

fn id(text: &str) -> WorkspaceId {
    WorkspaceId::new(text).unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(30), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    since.elapsed()
}

/// What was called back, with the moment.
type Heard = Arc<Mutex<Vec<(String, Access, Instant)>>>;

fn recorder() -> (Heard, OnChange) {
    let heard = Heard::default();
    let into = Arc::clone(&heard);
    (heard, Arc::new(move |change| into.lock().unwrap().push((change.workspace.to_string(), change.access, Instant::now()))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_reaches_the_client_survives_kill_nine_and_is_acknowledged() {
    let second = DEMO.replace("demo", "other");
    let place = Place::new(&format!("{QUICK}{DEMO}{second}[gate]\nack_within = \"1s\"\n"));
    let daemon = place.start();
    let (heard, on_change) = recorder();
    let client = Client::start(Settings { patience: Span::from_secs(60), ..settings(place.port) }, Some(on_change)).unwrap();
    tokio::time::timeout(SHORT, client.loaded()).await.expect("the list is read");
    let (demo, other) = (client.handle(&id("wrkspc_demo")), client.handle(&id("wrkspc_other")));
    assert_eq!((demo.check(), other.check()), (Answer::Open, Answer::Open));
    assert_eq!(client.handle(&id("wrkspc_none")).check(), Answer::Unknown);

    let asked = Instant::now();
    let order = json!({ "reason": "test" });
    assert_eq!(daemon.post("/v1/workspaces/wrkspc_other/lock", Some(&order)).status, 200);
    until("the lock is seen", || other.check() == Answer::Locked).await;
    let seen = heard.lock().unwrap().iter().find(|h| h.0 == "wrkspc_other" && h.1 == Access::Locked).unwrap().2;
    println!("lock asked over HTTP -> client's table: {:?}", seen.duration_since(asked));
    assert_eq!(demo.check(), Answer::Open);
    until("it is acknowledged", || {
        let view = daemon.workspace("wrkspc_other");
        view["consumers"][0]["consumer"] == "svc-1" && view["consumers"][0]["sequence"] == view["sequence"]
    })
    .await;
    let acknowledged = "cmek_lockout_latency_seconds_count{stage=\"acknowledge\",start=\"published\"}";
    assert_eq!(daemon.metric(acknowledged), Some(1.0));
    assert_eq!(daemon.metric("cmek_consumers_behind"), Some(0.0));
    assert_eq!(daemon.metric("cmek_stream_subscribers"), Some(1.0));

    daemon.kill();
    assert_eq!((demo.check(), other.check()), (Answer::Open, Answer::Locked), "the table is kept");
    place.good(&["local-kms", "disable", "demo"]);
    let began = Instant::now();
    let daemon = place.start();
    until("a lock of the new life is seen", || demo.check() == Answer::Locked).await;
    println!("daemon started again with a disabled key -> client's table: {:?}", began.elapsed());
    place.good(&["local-kms", "enable", "demo"]);
    assert_eq!(daemon.post("/v1/workspaces/wrkspc_other/unlock", Some(&order)).status, 200);
    until("both are open again", || (demo.check(), other.check()) == (Answer::Open, Answer::Open)).await;
    assert_eq!(demo.sequence(), daemon.workspace("wrkspc_demo")["sequence"].as_u64().unwrap());
    let stopping = daemon.stop();
    assert!(stopping < Duration::from_secs(8), "streams do not hold the end up: {stopping:?}");
}

/// The router on a port, which can be closed.
async fn served(house: &House) -> (u16, tokio::task::JoinHandle<()>, tokio::sync::oneshot::Sender<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let limits = Limits { grace: Duration::from_millis(10), ..house.limits };
    let serving = tokio::spawn(serve_tcp(listener, None, house.app.clone(), limits, async move {
        let _ = stopped.await;
    }));
    (port, serving, stop)
}

#[tokio::test]
async fn an_older_number_and_a_list_never_undo_each_other_and_broken_ways_are_mended() {
    let house = House::new(config());
    let (port, _serving, _stop) = served(&house).await;
    let client = Client::start(settings(port), None).unwrap();
    tokio::time::timeout(SHORT, client.loaded()).await.unwrap();
    let open = client.handle(&id("wrkspc_open"));
    assert_eq!((open.check(), client.handle(&id("wrkspc_half")).check()), (Answer::Open, Answer::ReadOnly));
    turn(&house, None, "wrkspc_open", Access::Locked, 9);
    until("it is locked", || open.check() == Answer::Locked).await;
    turn(&house, Some(6), "wrkspc_open", Access::Locked, 9);
    turn(&house, Some(7), "wrkspc_open", Access::Open, 8);
    turn(&house, Some(8), "wrkspc_open", Access::ReadOnly, 10);
    until("the newest counts", || open.check() == Answer::ReadOnly).await;
}

#[tokio::test]
async fn the_layer_passes_refuses_and_says_when_it_cannot_know() {
    let house = House::new(config());
    let (port, serving, stop) = served(&house).await;
    let strict = Settings { on_lost: OnLost::Closed, patience: Span(300), ..settings(port) };
    let lenient = Settings { on_lost: OnLost::LastKnownFor(Span::from_hours(1)), ..strict.clone() };
    let (strict, lenient) = (Client::start(strict, None).unwrap(), Client::start(lenient, None).unwrap());
    tokio::time::timeout(SHORT, async { tokio::join!(strict.loaded(), lenient.loaded()) }).await.unwrap();
    let features = Features(BTreeMap::from([("safety".to_owned(), FeatureClass::SafetyMetadata)]));
    let ask = |request: &http::Request<()>| {
        let of = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        Some(Asked { workspace: WorkspaceId::new(&of("ws")?).ok()?, feature: of("feature"), write: request.method() == "POST" })
    };
    let inner =
        tower::service_fn(|_: http::Request<()>| async { Ok::<_, std::convert::Infallible>(http::Response::new("served".to_owned())) });
    let call = async |client: &Client, method: &str, ws: &str, feature: &str| {
        let mut request = http::Request::builder().method(method).header("feature", feature);
        if !ws.is_empty() {
            request = request.header("ws", ws);
        }
        let service = GateLayer::new(client, features.clone(), ask).layer(inner);
        let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
        (response.status().as_u16(), response.into_body())
    };
    assert_eq!(call(&strict, "POST", "wrkspc_open", "messages").await, (200, "served".into()));
    assert_eq!(call(&strict, "GET", "wrkspc_half", "messages").await.0, 200);
    assert_eq!(call(&strict, "POST", "wrkspc_half", "messages").await.0, 403);
    assert_eq!(call(&strict, "GET", "wrkspc_demo", "messages").await.0, 403);
    assert_eq!(call(&strict, "POST", "wrkspc_demo", "safety").await.0, 200);
    assert_eq!(call(&strict, "GET", "", "messages").await.0, 403);
    assert_eq!(call(&strict, "GET", "wrkspc_none", "messages").await.0, 403, "an unknown workspace is closed");
    // The daemon goes away: nothing is heard any more.
    house.app.hub.end();
    stop.send(()).unwrap();
    serving.await.unwrap();
    let open = strict.handle(&id("wrkspc_open"));
    until("silence is noticed", || matches!(open.check(), Answer::Stale { last: Some(Access::Open), .. })).await;
    let (status, body) = call(&strict, "GET", "wrkspc_open", "messages").await;
    assert_eq!(status, 503);
    assert!(body.contains("lockout_unknown"), "{body}");
    assert_eq!(call(&strict, "GET", "wrkspc_open", "safety").await.0, 200);
    assert_eq!(call(&strict, "GET", "wrkspc_demo", "messages").await.0, 403, "locked stays locked");
    assert_eq!(call(&lenient, "POST", "wrkspc_open", "messages").await.0, 200);
    assert_eq!(call(&lenient, "GET", "wrkspc_demo", "messages").await.0, 403, "in both");
    let much_later = clock::now().mono.plus(Span::from_hours(2));
    assert_eq!(lenient.handle(&id("wrkspc_open")).rule_at(FeatureClass::Content, false, much_later), Ruling::CannotTell);
}

#[tokio::test]
async fn unusable_settings_are_named_and_show_no_token() {
    let bad = |address: &str, token: &str| {
        let settings = Settings { token: Some(token.to_owned()), ..Settings::new(address.parse().unwrap()) };
        assert!(!format!("{settings:?}").contains("hunter2"));
        Client::start(settings, None).err().unwrap()
    };
    assert!(matches!(bad("mailto:a@b", "hunter2"), ClientError::Address));
    let error = bad("http://127.0.0.1:1", "hunter2\n");
    assert!(matches!(error, ClientError::Token) && !error.to_string().contains("hunter2"));
}
