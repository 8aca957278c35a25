use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request};
use cmek_watchdog::clock;
use cmek_watchdog::http::Health;
use cmek_watchdog::snapshot::{Change, DaemonView};
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::words::{Access, StateWord};

use crate::support::{House, Journal, config, daemon, key, provider, workspace};

#[tokio::test]
async fn a_workspace_has_the_shape_of_the_contract() {
    let house = House::new(config());
    let body = house.get("/v1/workspaces/wrkspc_demo").await.json();
    for (field, value) in [
        ("workspace", "wrkspc_demo"),
        ("access", "locked"),
        ("code", "cmek_key_disabled"),
        ("cause", "disabled"),
        ("key", "demo"),
        ("by", "automatic"),
        ("since", "2025-11-25T07:46:00.123Z"),
        ("next_step", "enable the key"),
    ] {
        assert_eq!(body[field], value, "{field}");
    }
    assert_eq!(body["sequence"], 7);
    assert_eq!(body["keys"], serde_json::json!(["demo"]));
    assert_eq!(body["levers"], serde_json::json!([]));
    assert_eq!(body["terminal"], false);
    assert_eq!(body["release"], serde_json::Value::Null);
    assert_eq!(body["locks"][0]["by"], "automatic");
    let at = |field: &str| body[field].as_str().unwrap().parse::<Wall>().unwrap();
    assert_eq!(at("expires_at").since(at("evaluated_at")), Span::from_hours(1));
    assert!(clock::now().wall.since(at("evaluated_at")) < Span::from_secs(30));

    let open = house.get("/v1/workspaces/wrkspc_open").await.json();
    for field in ["code", "cause", "key", "message", "by", "would_access"] {
        assert_eq!(open.get(field), Some(&serde_json::Value::Null), "{field}");
    }
}

#[tokio::test]
async fn lists_are_paged_filtered_and_bounded() {
    let house = House::new(config());
    let page = house.get("/v1/workspaces?limit=2").await.json();
    assert_eq!((page["items"].as_array().unwrap().len(), &page["next"]), (2, &serde_json::json!("wrkspc_half")));
    let rest = house.get("/v1/workspaces?limit=2&after=wrkspc_half").await.json();
    assert_eq!((&rest["items"][0]["workspace"], &rest["next"]), (&serde_json::json!("wrkspc_open"), &serde_json::Value::Null));
    let locked = house.get("/v1/workspaces?access=locked").await.json();
    assert_eq!(locked["items"].as_array().unwrap().len(), 1);
    assert_eq!(house.get("/v1/workspaces?limit=1&access=open").await.json()["next"], serde_json::Value::Null);
    let keys = house.get("/v1/keys?limit=1&state=impaired").await.json();
    assert_eq!((&keys["items"][0]["id"], &keys["next"]), (&serde_json::json!("half"), &serde_json::Value::Null));
    assert_eq!(house.get("/v1/keys?limit=1&after=demo").await.json()["next"], "half");
    for path in [
        "/v1/workspaces?limit=0",
        "/v1/workspaces?limit=1001",
        "/v1/workspaces?limit=x",
        "/v1/workspaces?access=shut",
        "/v1/workspaces?after=a%20b",
        "/v1/keys?state=odd",
        "/v1/keys?limit=-1",
        "/v1/activity?after=x",
        "/v1/activity?after=9007199254740992",
        "/v1/keys/demo/history?after=18446744073709551615",
        "/v1/activity?key=a%2Fb",
        "/v1/keys/demo/history?limit=0",
    ] {
        house.get(path).await.problem(422, "invalid");
    }
}

#[tokio::test]
async fn features_answer_by_class_and_safety_metadata_stays_allowed() {
    let house = House::new(config());
    let of = async |ws: &str, feature: &str| house.get(&format!("/v1/workspaces/{ws}/features/{feature}")).await.json();
    for (ws, feature, read, write) in [
        ("wrkspc_open", "messages", true, true),
        ("wrkspc_half", "messages", true, false),
        ("wrkspc_demo", "messages", false, false),
        ("wrkspc_half", "batch", false, false),
        ("wrkspc_demo", "models", true, true),
        ("wrkspc_demo", "safety_metadata", true, true),
        ("wrkspc_demo", "something_new", false, false),
    ] {
        let body = of(ws, feature).await;
        assert_eq!((&body["allowed"], &body["allowed_write"]), (&read.into(), &write.into()), "{ws} {feature}");
        assert_eq!(body["code"].is_null(), read && write, "{ws} {feature}");
        assert_eq!(body["cause"].is_null(), read && write, "{ws} {feature}");
        assert_eq!((&body["workspace"], &body["feature"], &body["sequence"]), (&ws.into(), &feature.into(), &7.into()));
    }
    assert_eq!(of("wrkspc_demo", "something_new").await["known"], false);
    assert_eq!(house.metric("cmek_gate_unknown_features_total"), Some(2.0));
    let all = house.get("/v1/workspaces/wrkspc_demo/features").await.json();
    let allowed: Vec<&str> =
        all["items"].as_array().unwrap().iter().filter(|f| f["allowed"] == true).map(|f| f["feature"].as_str().unwrap()).collect();
    assert_eq!(allowed, ["models", "safety_metadata"]);
    assert_eq!(all["items"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_key_has_the_shape_of_the_contract() {
    let house = House::new(config());
    let body = house.get("/v1/keys/demo").await.json();
    for (field, value) in
        [("id", "demo"), ("provider", "local"), ("key", "demo"), ("state", "revoked"), ("verdict", "revoked"), ("failure_kind", "disabled")]
    {
        assert_eq!(body[field], value, "{field}");
    }
    assert_eq!(body["versions"][0]["protects_data"], true);
    assert_eq!(body["last_probe"]["legs"][1]["failure_kind"], "disabled");
    assert_eq!(body["last_probe"]["legs"][1]["duration_ms"], 12);
    assert_eq!(body["facts"]["deletion_at"], serde_json::Value::Null);
    assert_eq!(house.get("/v1/keys/open").await.json()["failure_kind"], serde_json::Value::Null);
}

#[tokio::test]
async fn unknown_and_malformed_ids_are_not_found() {
    let house = House::new(config()).obeying();
    for path in [
        "/v1/workspaces/wrkspc_ghost",
        "/v1/workspaces/a%20b",
        "/v1/workspaces/wrkspc_ghost/features",
        "/v1/workspaces/x/features/messages",
    ] {
        house.get(path).await.problem(404, "unknown_workspace");
    }
    house.get("/v1/workspaces/wrkspc_demo/features/a%20b").await.problem(404, "unknown_feature");
    for path in ["/v1/keys/ghost", "/v1/keys/a%2Fb", "/v1/keys/a:b", "/v1/keys/ghost/history"] {
        house.get(path).await.problem(404, "unknown_key");
    }
    house.get("/v1/keys/%FF").await.problem(404, "not_found");
    house.order("/v1/keys/a%20b/validate", "").await.problem(404, "unknown_key");
    house.order("/v1/keys/a%20b/retire", "{\"reason\":\"r\"}").await.problem(404, "unknown_key");
    house.order("/v1/keys/a%20b/versions/1/retire", "{\"reason\":\"r\"}").await.problem(404, "unknown_key");
    house.order("/v1/keys/demo/versions/%00/retire", "{\"reason\":\"r\"}").await.problem(404, "unknown_version");
    house.order("/v1/workspaces/a%20b/lock", "{\"reason\":\"r\"}").await.problem(404, "unknown_workspace");
    house.order("/v1/workspaces/a%20b/unlock", "{\"reason\":\"r\"}").await.problem(404, "unknown_workspace");
    house.order("/v1/providers/a%20b/brake", "{\"lock\":true,\"reason\":\"r\"}").await.problem(404, "unknown_provider");
    house.order("/v1/receivers/a%20b/test", "").await.problem(404, "unknown_receiver");
    assert!(house.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let house = House::new(config());
    for path in ["/nothing", "/v1", "/v1/", "/v1/keys/", "/V1/keys", "/v1/keys/demo/history/more", "//"] {
        house.get(path).await.problem(404, "not_found");
    }
    for (method, path, allow) in [
        (Method::TRACE, "/v1/workspaces", "GET"),
        (Method::DELETE, "/v1/workspaces/wrkspc_demo", "GET"),
        (Method::GET, "/v1/workspaces/wrkspc_demo/lock", "POST"),
        (Method::PUT, "/metrics", "GET"),
        (Method::POST, "/", "GET"),
        (Method::TRACE, "/healthz", "GET"),
    ] {
        let told = house.send(Request::builder().method(method.clone()).uri(path).body(Body::empty()).unwrap()).await;
        told.problem(405, "method_not_allowed");
        assert!(told.header("allow").is_some_and(|a| a.contains(allow)), "{method} {path}");
    }
}

#[tokio::test]
async fn activity_and_history_are_the_journal_in_pages() {
    let mut house = House::new(config());
    let page = house.get("/v1/activity?limit=2").await.json();
    assert_eq!(page["items"][1]["sequence"], 2);
    assert_eq!(page["next"], 2);
    for field in ["at", "type", "key", "workspace", "version", "actor", "event_id", "correlation_id", "detail", "hash"] {
        assert!(page["items"][0].get(field).is_some(), "{field}");
    }
    assert_eq!(page["items"][0]["type"], "key.suspect");
    let rest = house.get("/v1/activity?after=2&limit=10").await.json();
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next"]), (3, &serde_json::Value::Null));
    let of_key = house.get("/v1/activity?key=gone").await.json();
    assert_eq!(of_key["items"].as_array().unwrap().len(), 2);
    assert_eq!(house.get("/v1/activity?workspace=wrkspc_demo").await.json()["items"], serde_json::json!([]));
    assert_eq!(house.get("/v1/keys/demo/history").await.json()["items"].as_array().unwrap().len(), 3);
    // The history outlives the key.
    assert_eq!(house.get("/v1/keys/gone/history?after=4").await.json()["items"], serde_json::json!([]));
    assert_eq!(house.get("/v1/keys/open/history").await.json()["items"], serde_json::json!([]));

    house.app.store = Arc::new(Journal { records: vec![], broken: true });
    let told = house.get("/v1/activity").await;
    told.problem(503, "store_unavailable");
    assert!(told.header("retry-after").is_some() && !told.text.contains("hunter2"));
    house.get("/v1/keys/demo/history").await.problem(503, "store_unavailable");
}

#[tokio::test]
async fn nothing_is_served_before_stored_locks_are_published() {
    let house = House::new(config());
    house.app.published.apply(vec![Change::Daemon(Arc::new(DaemonView { ready: false, ..DaemonView::default() }))]);
    for path in [
        "/v1/workspaces",
        "/v1/workspaces/wrkspc_demo",
        "/v1/workspaces/wrkspc_demo/features",
        "/v1/workspaces/wrkspc_demo/features/messages",
        "/v1/keys",
        "/v1/keys/demo",
        "/v1/keys/demo/history",
        "/readyz",
    ] {
        let told = house.get(path).await;
        told.problem(503, "starting");
        assert_eq!(told.header("retry-after"), Some("1"), "{path}");
    }
    assert_eq!(house.get("/v1/status").await.json()["ready"], false);
    assert!(house.get("/").await.text.contains("starting"));
    assert_eq!(house.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn health_is_about_the_daemon_and_never_about_keys() {
    let house = House::new(config());
    assert_eq!(house.get("/healthz").await.json()["status"], "ok");
    assert_eq!(house.get("/readyz").await.json()["status"], "ready");
    house.app.health.progressed(clock::now().mono.minus(Health::PATIENCE).minus(Span::from_secs(1)));
    house.get("/healthz").await.problem(503, "stuck");
    house.app.health.progressed(clock::now().mono);
    assert_eq!(house.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn status_counts_states_and_names_what_is_lowered() {
    let house = House::new(config());
    let body = house.get("/v1/status").await.json();
    assert_eq!((&body["keys"]["revoked"], &body["keys"]["active"], &body["keys"]["suspect"]), (&1.into(), &1.into(), &0.into()));
    assert_eq!((&body["workspaces"]["locked"], &body["workspaces_total"], &body["lowered_total"]), (&1.into(), &3.into(), &2.into()));
    assert_eq!(body["lowered"][0]["workspace"], "wrkspc_demo");
    assert_eq!(body["providers"][0]["provider"], "local");
    assert_eq!(body["receivers"][0]["receiver"], "sre-mail");
    assert_eq!(body["config_flagged"], serde_json::Value::Null);
    assert_eq!(house.get("/v1/providers").await.json()["items"][0]["control_key_healthy"], true);
}

#[tokio::test]
async fn the_page_needs_no_script_and_escapes_what_it_shows() {
    let house = House::new(config());
    let mut odd = key("odd", StateWord::Suspect);
    odd.owner = Some("<script>alert(1)</script>&\"'".into());
    let mut locked = workspace("wrkspc_odd", Access::Locked);
    locked.next_step = Some("<img src=x onerror=alert(1)>".into());
    let mut braked = provider();
    braked.brake_engaged = true;
    let flagged = DaemonView { config_flagged: Some("<b>bad file".into()), ..daemon() };
    house.app.published.apply(vec![
        Change::Key(Arc::new(odd)),
        Change::Workspace(Arc::new(locked)),
        Change::Provider(Arc::new(braked)),
        Change::Daemon(Arc::new(flagged)),
    ]);
    let told = house.get("/").await;
    assert_eq!(told.status, 200);
    assert_eq!(told.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(told.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert!(!told.text.contains("<script") && !told.text.contains("<img") && !told.text.contains("<b>bad"));
    for part in [
        "&lt;script&gt;",
        "&lt;img",
        "wrkspc_demo",
        "wrkspc_half",
        "disabled",
        "2025-11-25T07:46:00.123Z",
        "Brake engaged",
        "width=device-width",
    ] {
        assert!(told.text.contains(part), "{part}");
    }
    // Open workspaces are only counted; keys in question come first.
    assert!(!told.text.contains(">wrkspc_open<"));
    assert!(told.text.find("demo<").unwrap() < told.text.find("open<small>").unwrap());
}

#[tokio::test]
async fn the_page_is_bounded() {
    let house = House::new(config());
    let many = (0..500).map(|i| Change::Workspace(Arc::new(workspace(&format!("w{i:04}"), Access::Locked))));
    let keys = (0..500).map(|i| Change::Key(Arc::new(key(&format!("k{i:04}"), StateWord::Revoked))));
    house.app.published.apply(many.chain(keys).collect());
    let told = house.get("/").await;
    assert!(told.text.contains("200 of 502 shown") && told.text.matches("<tr><td").count() <= 400, "{}", told.text.len());
}

#[tokio::test]
async fn every_documented_route_exists_and_every_route_is_documented() {
    let house = House::new(config()).obeying();
    // An event stream has no end of its own.
    house.app.hub.end();
    let document = house.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut documented: Vec<String> = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        documented.push(path.clone());
        for method in operations.as_object().unwrap().keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let request = Request::builder().method(method.clone()).uri(path.replace(['{', '}'], "")).body(Body::empty()).unwrap();
            let told = house.send(request).await;
            assert!(!told.text.contains("urn:cmek-watchdog:not_found") && told.status != 405, "{method} {path}: {}", told.text);
        }
    }
    let source = include_str!("../../src/http.rs");
    let mut routed: Vec<String> =
        source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().replace("{*", "{")).collect();
    documented.sort();
    routed.sort();
    assert_eq!(documented, routed);
}

#[tokio::test]
async fn every_reference_in_the_document_leads_somewhere() {
    let document: serde_json::Value = serde_json::from_str(cmek_watchdog::http::status::OPENAPI).unwrap();
    let text = document.to_string();
    let mut seen = 0;
    for rest in text.split("\"$ref\":\"#").skip(1) {
        let pointer = rest.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
        seen += 1;
    }
    assert!(seen > 100);
    for group in ["schemas", "responses"] {
        for name in document["components"][group].as_object().unwrap().keys() {
            assert!(text.contains(&format!("#/components/{group}/{name}\"")), "{name} is not used");
        }
    }
}
