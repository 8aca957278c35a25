use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use cmek_watchdog::clock;
use cmek_watchdog::config::{Config, UnknownWorkspace};
use cmek_watchdog::gate::Features;
use cmek_watchdog::http::router_with;
use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::snapshot::{Change, DaemonView};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, FeatureClass, Role};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{House, Told, config, json, token, workspace};

const BULK: &str = "/ofrep/v1/evaluate/flags";

async fn all(house: &House, context: Value) -> Told {
    house.send(json(BULK, &json!({ "context": context }).to_string())).await
}

async fn flag(house: &House, name: &str, context: Value) -> Told {
    house.send(json(&format!("{BULK}/{name}"), &json!({ "context": context }).to_string())).await
}

fn value(bulk: &Value, name: &str) -> Value {
    bulk["flags"].as_array().unwrap().iter().find(|flag| flag["key"] == name).unwrap()["value"].clone()
}

#[tokio::test]
async fn a_flag_is_what_the_gate_would_answer() {
    let house = House::new(config());
    for (ws, access, expected) in [
        ("wrkspc_open", "write", [true, true, true, true, true]),
        ("wrkspc_half", "read", [false, true, false, true, true]),
        ("wrkspc_half", "write", [false, false, false, true, true]),
        ("wrkspc_demo", "read", [false, false, false, true, true]),
    ] {
        let told = all(&house, json!({ "targetingKey": ws, "access": access })).await.json();
        for (name, expected) in ["workspace_usable", "messages", "batch", "models", "safety_metadata"].iter().zip(expected) {
            assert_eq!(value(&told, name), expected, "{ws} {access} {name}");
            let one = flag(&house, name, json!({ "targetingKey": ws, "access": access })).await.json();
            let mut same = told["flags"].as_array().unwrap().iter().find(|flag| flag["key"] == *name).unwrap().clone();
            same["metadata"]["expires_at"] = one["metadata"]["expires_at"].clone();
            assert_eq!(one, same, "one and all say the same");
            let header = [("x-workspace-id", ws), ("x-feature", if *name == "workspace_usable" { "" } else { name })];
            let way = if *name == "workspace_usable" { "write" } else { access };
            let mut gate = Request::get("/v1/authz").header("x-access", way);
            for (name, value) in header {
                gate = gate.header(name, value);
            }
            assert_eq!(house.send(gate.body(Body::empty()).unwrap()).await.status == 200, expected, "{ws} {name}");
        }
    }
    let absent = all(&house, json!({ "targetingKey": "wrkspc_half" })).await.json();
    assert_eq!(value(&absent, "messages"), false, "an absent access is a write");
}

#[tokio::test]
async fn a_refusal_carries_code_cause_sequence_and_times_as_plain_values() {
    let house = House::new(config());
    let told = flag(&house, "messages", json!({ "workspace": "wrkspc_demo", "targetingKey": "wrkspc_open" })).await.json();
    assert_eq!(
        (told["value"].clone(), told["reason"].clone(), told["variant"].clone()),
        (json!(false), json!("TARGETING_MATCH"), json!("denied"))
    );
    let meta = told["metadata"].as_object().unwrap();
    assert_eq!(meta["code"], "cmek_key_disabled");
    assert_eq!(meta["cause"], "disabled");
    assert_eq!(meta["access"], "locked");
    assert_eq!(meta["sequence"], 7);
    assert_eq!(meta["stale"], false);
    assert_eq!(meta["workspace"], "wrkspc_demo", "context.workspace stands above targetingKey");
    assert!(meta["expires_at"].as_str().unwrap().ends_with('Z'));
    assert!(meta.values().all(|value| value.is_string() || value.is_number() || value.is_boolean()), "{meta:?}");
    let open = flag(&house, "messages", json!({ "workspace": "wrkspc_open" })).await.json();
    assert_eq!((open["value"].clone(), open["variant"].clone()), (json!(true), json!("allowed")));
    assert!(open["metadata"].get("code").is_none() && open["metadata"].get("cause").is_none());
    assert_eq!(flag(&house, "models", json!({ "workspace": "wrkspc_demo" })).await.json()["reason"], "STATIC");
}

#[tokio::test]
async fn an_unknown_workspace_is_never_true_even_where_the_gate_lets_such_pass() {
    for unknown in [UnknownWorkspace::Deny, UnknownWorkspace::Allow] {
        let mut settings = config();
        settings.gate.unknown_workspace = unknown;
        let house = House::new(settings);
        for ws in ["wrkspc_ghost", "wrkspc_open,wrkspc_demo", " wrkspc_open"] {
            let told = all(&house, json!({ "targetingKey": ws })).await.json();
            for flag in told["flags"].as_array().unwrap() {
                assert_eq!((flag["value"].clone(), flag["reason"].clone()), (json!(false), json!("DEFAULT")), "{flag}");
                assert_eq!(flag["metadata"]["code"], "unknown_workspace");
            }
        }
    }
}

#[tokio::test]
async fn errors_have_the_shape_and_the_codes_of_ofrep() {
    let house = House::new(config());
    for (body, code) in [
        ("", "PARSE_ERROR"),
        ("{", "PARSE_ERROR"),
        ("[]", "PARSE_ERROR"),
        ("\"x\"", "PARSE_ERROR"),
        ("{}", "TARGETING_KEY_MISSING"),
        ("{\"context\":{}}", "TARGETING_KEY_MISSING"),
        ("{\"context\":{\"targetingKey\":\"\"}}", "TARGETING_KEY_MISSING"),
        ("{\"context\":{\"targetingKey\":\"wrkspc_open\",\"workspace\":\"\"}}", "INVALID_CONTEXT"),
        ("{\"context\":null}", "INVALID_CONTEXT"),
        ("{\"context\":[]}", "INVALID_CONTEXT"),
        ("{\"context\":{\"targetingKey\":7}}", "INVALID_CONTEXT"),
        ("{\"context\":{\"targetingKey\":\"wrkspc_open\",\"workspace\":null}}", "INVALID_CONTEXT"),
        ("{\"context\":{\"targetingKey\":\"wrkspc_open\",\"access\":true}}", "INVALID_CONTEXT"),
    ] {
        let told = house.send(json(BULK, body)).await;
        assert_eq!((told.status.as_u16(), told.json()["errorCode"].clone()), (400, json!(code)), "{body}");
        assert!(told.json().get("key").is_none() && told.json()["errorDetails"].is_string());
        let told = house.send(json(&format!("{BULK}/messages"), body)).await;
        assert_eq!((told.status.as_u16(), told.json()["errorCode"].clone()), (400, json!(code)), "{body}");
        assert_eq!(told.json()["key"], "messages");
    }
    let told = flag(&house, "no%20such", json!({ "targetingKey": "wrkspc_open" })).await;
    assert_eq!((told.status.as_u16(), told.json()["errorCode"].clone()), (404, json!("FLAG_NOT_FOUND")));
    assert_eq!(told.json()["key"], "no such");
    let form = Request::post(BULK).header("content-type", "text/plain").body(Body::from("{}")).unwrap();
    house.send(form).await.problem(415, "unsupported_media_type");
    house.send(json(BULK, &"x".repeat(70_000))).await.problem(413, "body_too_large");
}

#[tokio::test]
async fn a_stale_instance_says_false_for_content_and_says_so() {
    let house = House::new(config());
    house.app.published.apply(vec![Change::Fresh(clock::now().mono.minus(Span::from_mins(61)))]);
    for ws in ["wrkspc_open", "wrkspc_demo", "wrkspc_ghost"] {
        let told = all(&house, json!({ "targetingKey": ws })).await.json();
        for flag in told["flags"].as_array().unwrap() {
            assert_eq!(flag["metadata"]["stale"], true);
            let exempt = ["models", "safety_metadata"].contains(&flag["key"].as_str().unwrap()) && ws != "wrkspc_ghost";
            assert_eq!(flag["value"], exempt, "{flag}");
            assert_eq!(flag["reason"], if exempt { "STATIC" } else { "STALE" }, "{flag}");
        }
    }
    house.app.published.apply(vec![Change::Daemon(Arc::new(DaemonView { ready: false, ..DaemonView::default() }))]);
    all(&house, json!({ "targetingKey": "wrkspc_open" })).await.problem(503, "starting");
}

#[tokio::test]
async fn an_etag_lasts_until_the_answer_changes() {
    let house = House::new(config());
    let ask = async |house: &House, tag: &str| {
        let mut request = json(BULK, "{\"context\":{\"targetingKey\":\"wrkspc_open\"}}");
        request.headers_mut().insert("if-none-match", tag.parse().unwrap());
        house.send(request).await
    };
    let first = all(&house, json!({ "targetingKey": "wrkspc_open" })).await;
    let tag = first.header("etag").unwrap().to_owned();
    house.app.published.apply(vec![Change::Fresh(clock::now().mono)]);
    for fitting in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let told = ask(&house, &fitting).await;
        assert_eq!((told.status.as_u16(), told.text.as_str(), told.header("etag")), (304, "", Some(tag.as_str())), "{fitting}");
    }
    assert_eq!(ask(&house, "\"x\"").await.status, 200);
    let other = all(&house, json!({ "targetingKey": "wrkspc_half" })).await;
    assert_ne!(other.header("etag"), Some(tag.as_str()));
    house.app.published.apply(vec![Change::Workspace(Arc::new(workspace("wrkspc_open", Access::Locked)))]);
    let changed = ask(&house, &tag).await;
    assert_eq!((changed.status.as_u16(), value(&changed.json(), "workspace_usable")), (200, json!(false)));
}

#[tokio::test]
async fn the_configuration_says_what_there_is() {
    let house = House::new(config());
    let told = house.get("/ofrep/v1/configuration").await;
    assert_eq!(told.json()["capabilities"]["flagEvaluation"]["supportedTypes"], json!(["boolean"]));
    let again = Request::get("/ofrep/v1/configuration").header("if-none-match", told.header("etag").unwrap()).body(Body::empty()).unwrap();
    assert_eq!(house.send(again).await.status, 304);
}

#[tokio::test]
async fn a_class_of_one_workspace_reaches_gate_features_and_flags() {
    let mut settings = config();
    let own = Features([("batch".to_owned(), FeatureClass::Content)].into());
    settings.workspace_features.insert(WorkspaceId::new("wrkspc_half").unwrap(), own);
    let house = House::new(settings);
    let gate = Request::get("/v1/authz").header("x-workspace-id", "wrkspc_half").header("x-feature", "batch").header("x-access", "read");
    assert_eq!(house.send(gate.body(Body::empty()).unwrap()).await.status, 200);
    let told = house.get("/v1/workspaces/wrkspc_half/features/batch").await.json();
    assert_eq!(
        (told["class"].clone(), told["allowed"].clone(), told["allowed_write"].clone()),
        (json!("content"), json!(true), json!(false))
    );
    let told = flag(&house, "batch", json!({ "targetingKey": "wrkspc_half", "access": "read" })).await.json();
    assert_eq!((told["value"].clone(), told["metadata"]["class"].clone()), (json!(true), json!("content")));
    assert_eq!(house.get("/v1/workspaces/wrkspc_demo/features/batch").await.json()["class"], "write");
}

// --- the event stream ---

/// Frames of one stream as they come.
struct Listening(Body);

impl Listening {
    async fn open(house: &House, uri: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router_with(house.app.clone(), house.limits).oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn to(house: &House, uri: &str) -> Self {
        let response = Self::open(house, uri, &[]).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self(response.into_body())
    }

    /// The next frame, or nothing at the end.
    async fn next(&mut self) -> Option<String> {
        let frame = tokio::time::timeout(Duration::from_secs(5), self.0.frame()).await.expect("a frame in time")?;
        Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
    }

    async fn nothing(&mut self) {
        assert!(tokio::time::timeout(Duration::from_millis(80), self.0.frame()).await.is_err());
    }
}

const STREAM: &str = "/ofrep/v1/stream?workspace=wrkspc_open";

fn id(frame: &str) -> String {
    assert!(frame.contains("\"type\":\"refetchEvaluation\""), "{frame}");
    frame.lines().find_map(|line| line.strip_prefix("id: ")).unwrap_or_else(|| panic!("{frame}")).to_owned()
}

#[tokio::test]
async fn the_stream_tells_of_a_change_of_its_own_workspace_and_of_no_other() {
    let house = House::new(config());
    let named = all(&house, json!({ "targetingKey": "wrkspc_open" })).await.json();
    assert_eq!(named["eventStreams"], json!([{ "type": "sse", "endpoint": { "requestUri": STREAM } }]));
    let mut listening = Listening::to(&house, STREAM).await;
    let first = id(&listening.next().await.unwrap());
    house.app.published.apply(vec![Change::Workspace(Arc::new(workspace("wrkspc_demo", Access::Open)))]);
    house.app.published.apply(vec![Change::Workspace(Arc::new(workspace("wrkspc_open", Access::Open)))]);
    listening.nothing().await;
    house.app.published.apply(vec![Change::Workspace(Arc::new(workspace("wrkspc_open", Access::Locked)))]);
    let second = id(&listening.next().await.unwrap());
    assert_ne!(first, second);

    // Whoever comes back with the present state is not told again; anybody else is at once.
    let mut back = Listening(Listening::open(&house, STREAM, &[("last-event-id", &second)]).await.into_body());
    back.nothing().await;
    let mut behind = Listening(Listening::open(&house, STREAM, &[("last-event-id", &first)]).await.into_body());
    assert_eq!(id(&behind.next().await.unwrap()), second);
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_heartbeats_and_they_find_what_no_turn_tells() {
    let house = House::new(config());
    let mut listening = Listening::to(&house, STREAM).await;
    let first = id(&listening.next().await.unwrap());
    let begun = tokio::time::Instant::now();
    let beat = tokio::time::timeout(Duration::from_secs(60), listening.0.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
    assert_eq!(&beat[..1], b":", "{beat:?}");
    assert_eq!(begun.elapsed(), Duration::from_secs(15));
    let mut other = config();
    other.features.0.insert("messages".to_owned(), FeatureClass::Control);
    house.app.config.store(Arc::new(other));
    let frame = tokio::time::timeout(Duration::from_secs(60), listening.0.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
    assert_ne!(id(std::str::from_utf8(&frame).unwrap()), first);
}

#[tokio::test]
async fn streams_are_bounded_and_end_when_the_daemon_stops() {
    let mut house = House::new(config());
    house.limits.flag_streams = 1;
    let router = router_with(house.app.clone(), house.limits);
    let open = async || router.clone().oneshot(Request::get(STREAM).body(Body::empty()).unwrap()).await.unwrap();
    let first = open().await;
    Told::read(open().await).await.problem(503, "too_many");
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"too_many\"}"), Some(1.0));
    drop(first);
    let mut listening = Listening(open().await.into_body());
    id(&listening.next().await.unwrap());
    house.orders = None;
    assert_eq!(listening.next().await, None);
    house.get("/ofrep/v1/stream").await.problem(422, "invalid");
}

fn with_tokens() -> Config {
    let mut settings = config();
    settings.server.tokens = vec![token("web", Role::Read, "read-token")];
    settings
}

#[tokio::test]
async fn with_tokens_the_address_of_the_stream_has_a_ticket_for_its_workspace_alone() {
    let house = House::new(with_tokens());
    let router = router_with(house.app.clone(), house.limits);
    let status = async |request: Request<Body>| router.clone().oneshot(request).await.unwrap();
    let plain = |uri: &str| Request::get(uri).body(Body::empty()).unwrap();
    assert_eq!(status(plain(STREAM)).await.status(), 401);
    let mut ask = json(BULK, "{\"context\":{\"targetingKey\":\"wrkspc_open\"}}");
    ask.headers_mut().insert("authorization", "Bearer read-token".parse().unwrap());
    let told = Told::read(status(ask).await).await.json();
    let uri = told["eventStreams"][0]["endpoint"]["requestUri"].as_str().unwrap().to_owned();
    assert_eq!(status(plain(&uri)).await.status(), 200);
    assert_eq!(status(plain(&uri.replace("wrkspc_open", "wrkspc_demo"))).await.status(), 401);
    let ticket = uri.split("ticket=").nth(1).unwrap();
    assert_eq!(status(plain(&format!("/v1/keys?ticket={ticket}"))).await.status(), 401, "a ticket opens nothing else");
    let bearer = Request::get(STREAM).header("authorization", "Bearer read-token").body(Body::empty()).unwrap();
    assert_eq!(status(bearer).await.status(), 200);
}
