//! One reader at a time: the beginning, order, coming back, what is filtered, who is cut off; and
//! acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use cmek_watchdog::clock;
use cmek_watchdog::http::{Limits, router_with};
use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::notify::body::{Body as Told, Data, Pushed, event_of};
use cmek_watchdog::snapshot::Change;
use cmek_watchdog::words::{Access, Sequence};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use crate::doors::{House, config, workspace};

/// A change as the core tells it.
pub fn change(number: Option<u64>, id: &str, access: Access, sequence: u64) -> Pushed {
    let data = Data {
        sequence: Sequence(sequence),
        key: None,
        provider: None,
        workspaces: vec![WorkspaceId::new(id).unwrap()],
        access: Some(access),
        previous_access: Some(if access == Access::Open { Access::Locked } else { Access::Open }),
        cause: None,
        code: None,
        message: "said".into(),
        version: None,
        actor: None,
        since: None,
        notices: Vec::new(),
    };
    Pushed { number, body: Told { event: event_of(access), timestamp: clock::now().wall, data } }
}

/// An open stream.
struct Stream {
    body: Body,
    run: String,
    text: String,
}

impl Stream {
    async fn open(house: &House, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response: Response<Body> =
            router_with(house.app.clone(), Limits::default()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let run = response.headers()["x-stream-run"].to_str().unwrap().to_owned();
        Self { body: response.into_body(), run, text: String::new() }
    }

    /// The next whole event: its lines. `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                return Some(event);
            }
            let frame = self.body.frame().await?.unwrap();
            self.text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }

    /// Id and name of the next event.
    async fn head(&mut self) -> (Option<u64>, String) {
        let event = self.next().await.expect("an event");
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        (field("id: ").map(|id| id.parse().unwrap()), field("event: ").unwrap_or_default())
    }
}

#[tokio::test]
async fn a_reader_begins_with_a_reset_and_hears_everything_in_order() {
    let house = House::new(config());
    let mut stream = Stream::open(&house, "/v1/stream", None).await;
    assert_eq!(stream.next().await.unwrap(), "id: 5\nevent: reset\ndata: {\"head\":5}");
    house.app.hub.push(vec![change(None, "wrkspc_open", Access::Locked, 9)], None);
    house.app.hub.push(vec![change(Some(7), "wrkspc_open", Access::Locked, 9), change(Some(8), "wrkspc_open", Access::Open, 10)], None);
    assert_eq!(stream.head().await, (None, "access_changed".into()), "not durable: at once, without a number");
    let event = stream.next().await.unwrap();
    let data: serde_json::Value = serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap();
    assert!(event.starts_with("id: 7\nevent: access_changed\n"), "{event}");
    assert_eq!(data["type"], "workspace.locked");
    assert_eq!((&data["data"]["sequence"], &data["data"]["access"]), (&9.into(), &"locked".into()));
    assert_eq!(stream.head().await.0, Some(8));
}

#[tokio::test]
async fn who_comes_back_misses_nothing_and_who_cannot_begins_anew() {
    let house = House::new(config());
    let push =
        |from: u64, to: u64| (from..=to).for_each(|n| house.app.hub.push(vec![change(Some(n), "wrkspc_open", Access::Open, n)], None));
    push(6, 9);
    let mut back = Stream::open(&house, "/v1/stream", Some("7")).await;
    push(10, 10);
    for expected in [(Some(8), "access_changed"), (Some(9), "access_changed"), (Some(9), "resumed"), (Some(10), "access_changed")] {
        assert_eq!(back.head().await, (expected.0, expected.1.to_owned()));
    }
    assert_eq!(back.run, house.app.hub.run);
    for unknown in ["5", "4", "11", "x", "18446744073709551616", ""] {
        let mut anew = Stream::open(&house, "/v1/stream", Some(unknown)).await;
        assert_eq!(anew.head().await, (Some(10), "reset".into()), "{unknown:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_filtered_reader_hears_its_workspace_and_how_far_the_journal_is() {
    let house = House::new(config());
    let mut stream = Stream::open(&house, "/v1/stream?workspace=wrkspc_demo", None).await;
    assert_eq!(stream.head().await.1, "reset");
    house.app.hub.push(vec![change(Some(6), "wrkspc_open", Access::Locked, 9), change(Some(7), "wrkspc_demo", Access::Locked, 9)], None);
    house.app.hub.push(vec![change(Some(8), "wrkspc_open", Access::Open, 10)], Some(12));
    assert_eq!(stream.head().await.0, Some(7));
    let began = tokio::time::Instant::now();
    assert_eq!(stream.next().await.unwrap(), ":\nid: 12");
    assert_eq!(began.elapsed().as_secs(), 15);
    let mut back = Stream::open(&house, "/v1/stream?workspace=wrkspc_demo", Some("12")).await;
    assert_eq!(back.head().await.1, "resumed");
    assert_eq!(house.metric("cmek_stream_subscribers"), Some(2.0));
    drop((stream, back));
    assert_eq!(house.metric("cmek_stream_subscribers"), Some(0.0));
}

#[tokio::test]
async fn a_reader_that_does_not_keep_up_is_cut_off_and_counted_and_the_others_are_not() {
    let house = House::new(config());
    let mut slow = Stream::open(&house, "/v1/stream", None).await;
    let mut quick = Stream::open(&house, "/v1/stream", None).await;
    assert_eq!(quick.head().await.1, "reset");
    for n in 6..6 + 2000 {
        house.app.hub.push(vec![change(Some(n), "wrkspc_open", Access::Open, n)], None);
        assert_eq!(quick.head().await.0, Some(n));
    }
    assert_eq!(slow.head().await.1, "reset", "what was written before is read");
    assert_eq!(slow.next().await, None, "and then it ends");
    assert_eq!(house.metric("cmek_stream_cut_offs_total"), Some(1.0));
    let silent = Stream::open(&house, "/v1/stream", None).await;
    (3000..3000 + 1024).for_each(|n| house.app.hub.push(vec![change(Some(n), "wrkspc_open", Access::Open, n)], None));
    drop(silent);
    assert_eq!(house.metric("cmek_stream_cut_offs_total"), Some(2.0), "one that was never asked again counts too");
}

#[tokio::test]
async fn streams_end_with_the_daemon_and_places_are_bounded() {
    let mut house = House::new(config());
    house.app.hub = Arc::new(cmek_watchdog::http::hub::Hub::new(5, 1, clock::now()));
    let mut only = Stream::open(&house, "/v1/stream", None).await;
    house.get("/v1/stream").await.problem(503, "too_many_subscribers");
    house.app.hub.end();
    assert_eq!(only.head().await.1, "reset");
    assert_eq!(only.next().await, None);
    drop(only);
    house.get("/v1/stream").await.problem(503, "stopping");
    house.get("/v1/stream?workspace=a%20b").await.problem(422, "invalid");
}

#[tokio::test]
async fn acknowledgements_are_shown_measured_and_refused_where_they_cannot_be() {
    let house = House::new(config());
    let ack = async |ws: &str, body: &str| house.order(&format!("/v1/workspaces/{ws}/acks"), body).await;
    let said = ack("wrkspc_demo", r#"{"consumer":"gw-1","sequence":6}"#).await;
    assert_eq!(said.status, 200, "{}", said.text);
    house
        .app
        .acks
        .shown(clock::now().mono.minus(cmek_watchdog::time::Span::from_secs(40)), &[change(Some(6), "wrkspc_demo", Access::Locked, 7)]);
    let view = house.get("/v1/workspaces/wrkspc_demo").await.json();
    assert_eq!(view["consumers"][0]["consumer"], "gw-1");
    assert_eq!((&view["consumers"][0]["sequence"], &view["consumers"][0]["behind"]), (&6.into(), &true.into()));
    assert!(house.get("/metrics").await.text.contains("\ncmek_consumers_behind 1\n"));
    assert_eq!(ack("wrkspc_demo", r#"{"consumer":"gw-1","sequence":7}"#).await.json()["behind"], false);
    assert!(house.get("/metrics").await.text.contains("\ncmek_consumers_behind 0\n"));
    let series = |what: &str| house.metric(&format!("cmek_lockout_latency_seconds_{what}{{stage=\"acknowledge\",start=\"published\"}}"));
    assert_eq!(series("count"), Some(1.0));
    assert!(series("sum").unwrap() >= 40.0);
    ack("wrkspc_demo", r#"{"consumer":"gw-1","sequence":8}"#).await.problem(422, "invalid");
    ack("wrkspc_demo", r#"{"consumer":"gw 1","sequence":7}"#).await.problem(422, "invalid");
    ack("wrkspc_demo", r#"{"consumer":"gw-1"}"#).await.problem(422, "invalid");
    ack("wrkspc_none", r#"{"consumer":"gw-1","sequence":1}"#).await.problem(404, "unknown_workspace");
    for n in 0..255 {
        assert_eq!(ack("wrkspc_demo", &format!(r#"{{"consumer":"c{n}","sequence":7}}"#)).await.status, 200);
    }
    ack("wrkspc_demo", r#"{"consumer":"one-more","sequence":7}"#).await.problem(429, "too_many_consumers");
}

/// Publishes a view and tells of it, as one turn of the loop does.
pub fn turn(house: &House, number: Option<u64>, id: &str, access: Access, sequence: u64) {
    let mut view = workspace(id, access);
    view.sequence = Sequence(sequence);
    house.app.published.apply(vec![Change::Workspace(Arc::new(view))]);
    house.app.hub.push(vec![change(number, id, access, sequence)], None);
}

pub const SHORT: Duration = Duration::from_secs(10);
