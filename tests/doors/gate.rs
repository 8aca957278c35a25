use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Request};
use cmek_watchdog::clock;
use cmek_watchdog::config::UnknownWorkspace;
use cmek_watchdog::snapshot::{Change, DaemonView};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, Role};
use proptest::prelude::*;

use crate::support::{House, Told, config, publish, token, workspace};

async fn ask(house: &House, headers: &[(&str, &str)]) -> Told {
    let mut request = Request::get("/v1/authz");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    house.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn the_gate_follows_access_class_and_direction() {
    let house = House::new(config());
    for (workspace, feature, access, status) in [
        ("wrkspc_open", "messages", "write", 200),
        ("wrkspc_open", "batch", "write", 200),
        ("wrkspc_half", "messages", "read", 200),
        ("wrkspc_half", "messages", "READ", 200),
        ("wrkspc_half", "messages", "write", 403),
        ("wrkspc_half", "messages", "", 403),
        ("wrkspc_half", "messages", "read, read", 403),
        ("wrkspc_half", "batch", "read", 403),
        ("wrkspc_demo", "messages", "read", 403),
        ("wrkspc_demo", "models", "write", 200),
        ("wrkspc_demo", "safety_metadata", "read", 200),
        ("wrkspc_demo", "safety_metadata", "write", 200),
        ("wrkspc_demo", "never_heard_of", "read", 403),
        ("wrkspc_half", "never_heard_of", "read", 200),
        ("wrkspc_demo", "", "read", 403),
    ] {
        let told = ask(&house, &[("x-workspace-id", workspace), ("x-feature", feature), ("x-access", access)]).await;
        assert_eq!(told.status.as_u16(), status, "{workspace} {feature} {access}");
    }
    assert_eq!(house.metric("cmek_gate_unknown_features_total"), Some(2.0));
    assert_eq!(house.metric("cmek_gate_decisions_total{result=\"allowed\"}"), Some(8.0));
    assert_eq!(house.metric("cmek_gate_decisions_total{result=\"denied\"}"), Some(7.0));
}

#[tokio::test]
async fn absent_access_is_a_write_and_absent_feature_is_content() {
    let house = House::new(config());
    assert_eq!(ask(&house, &[("x-workspace-id", "wrkspc_half")]).await.status, 403);
    assert_eq!(ask(&house, &[("x-workspace-id", "wrkspc_half"), ("x-access", "read")]).await.status, 200);
    assert_eq!(ask(&house, &[("x-workspace-id", "wrkspc_open")]).await.status, 200);
}

#[tokio::test]
async fn a_refusal_carries_code_and_one_plain_line_of_reason() {
    let house = House::new(config());
    let told = ask(&house, &[("x-workspace-id", "wrkspc_demo")]).await;
    told.problem(403, "cmek_key_disabled");
    assert_eq!(told.header("x-lockout-code"), Some("cmek_key_disabled"));
    assert_eq!(told.header("x-lockout-reason"), Some("key demo is disabled??"));
}

#[tokio::test]
async fn any_method_and_any_path_below_asks_the_gate_but_trace_does_not() {
    let house = House::new(config());
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        for path in ["/v1/authz", "/v1/authz/v1/messages", "/v1/authz/a%2Fb/..//c?x=1"] {
            let request = |ws: &str| {
                let builder = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
                builder.header("x-workspace-id", ws).body(Body::empty()).unwrap()
            };
            assert_eq!(house.send(request("wrkspc_open")).await.status, 200, "{method} {path}");
            assert_eq!(house.send(request("wrkspc_demo")).await.status, 403, "{method} {path}");
        }
    }
    let trace = Request::builder().method(Method::TRACE).uri("/v1/authz").header("x-workspace-id", "wrkspc_open");
    let told = house.send(trace.body(Body::empty()).unwrap()).await;
    told.problem(405, "method_not_allowed");
    assert!(told.header("allow").unwrap().contains("GET"));
}

#[tokio::test]
async fn an_unknown_workspace_is_denied_or_let_through_and_counted() {
    let mut settings = config();
    let house = House::new(settings.clone());
    let told = ask(&house, &[("x-workspace-id", "wrkspc_ghost")]).await;
    told.problem(403, "unknown_workspace");
    assert_eq!(told.header("x-lockout-code"), Some("unknown_workspace"));
    assert_eq!(house.metric("cmek_gate_decisions_total{result=\"unknown_denied\"}"), Some(1.0));

    settings.gate.unknown_workspace = UnknownWorkspace::Allow;
    let house = House::new(settings);
    let told = ask(&house, &[("x-workspace-id", "wrkspc_ghost")]).await;
    assert_eq!((told.status.as_u16(), told.header("x-lockout-unknown")), (200, Some("allowed")));
    assert_eq!(house.metric("cmek_gate_decisions_total{result=\"unknown_allowed\"}"), Some(1.0));
    assert_eq!(ask(&house, &[("x-workspace-id", "wrkspc_demo")]).await.status, 403);
}

#[tokio::test]
async fn a_question_that_could_mean_two_things_is_refused_even_where_unknown_passes() {
    let mut settings = config();
    settings.gate.unknown_workspace = UnknownWorkspace::Allow;
    let house = House::new(settings);
    for headers in [
        &[][..],
        &[("x-workspace-id", "")],
        &[("x-workspace-id", "wrkspc_open,wrkspc_demo")],
        &[("x-workspace-id", "wrkspc_ghost"), ("x-workspace-id", "wrkspc_demo")],
        &[("x-workspace-id", "wrkspc_demo"), ("x-feature", "models"), ("x-feature", "messages")],
        &[("x-workspace-id", "wrkspc_half"), ("x-access", "read"), ("x-access", "write")],
    ] {
        let told = ask(&house, headers).await;
        told.problem(403, "bad_gate_request");
        assert_eq!(told.header("x-lockout-code"), Some("bad_gate_request"));
    }
    assert_eq!(house.metric("cmek_gate_decisions_total{result=\"bad_request\"}"), Some(6.0));
}

#[tokio::test]
async fn while_starting_or_stale_the_gate_cannot_tell() {
    let house = House::new(config());
    house.app.published.apply(vec![Change::Daemon(Arc::new(DaemonView { ready: false, ..DaemonView::default() }))]);
    let told = ask(&house, &[("x-workspace-id", "wrkspc_open")]).await;
    told.problem(503, "starting");
    assert_eq!(told.header("retry-after"), Some("1"));

    publish(&house.app.published);
    house.app.published.apply(vec![Change::Fresh(clock::now().mono.minus(Span::from_mins(61)))]);
    for ws in ["wrkspc_open", "wrkspc_demo", "wrkspc_ghost"] {
        let told = ask(&house, &[("x-workspace-id", ws)]).await;
        told.problem(503, "stale");
        assert!(told.header("retry-after").is_some());
    }
    let safety = [("x-workspace-id", "wrkspc_demo"), ("x-feature", "safety_metadata"), ("x-access", "read")];
    assert_eq!(ask(&house, &safety).await.status, 200);
    assert_eq!(house.metric("cmek_gate_decisions_total{result=\"cannot_tell\"}"), Some(4.0));
    house.get("/v1/workspaces/wrkspc_open/features/messages").await.problem(503, "stale");
    assert_eq!(house.get("/v1/workspaces/wrkspc_demo/features/safety_metadata").await.json()["allowed"], true);
}

#[tokio::test]
async fn with_tokens_the_gate_asks_for_one_too() {
    let mut settings = config();
    settings.server.tokens = vec![token("gateway", Role::Read, "s3cret")];
    let house = House::new(settings);
    ask(&house, &[("x-workspace-id", "wrkspc_open")]).await.problem(401, "unauthorized");
    let with = [("x-workspace-id", "wrkspc_open"), ("authorization", "Bearer s3cret")];
    assert_eq!(ask(&house, &with).await.status, 200);
}

#[tokio::test]
async fn the_gate_never_asks_the_core_and_follows_the_snapshot_at_once() {
    let mut house = House::new(config());
    let orders = house.orders.take();
    drop(orders);
    assert_eq!(ask(&house, &[("x-workspace-id", "wrkspc_open")]).await.status, 200);
    house.app.published.apply(vec![Change::Workspace(Arc::new(workspace("wrkspc_open", Access::Locked)))]);
    assert_eq!(ask(&house, &[("x-workspace-id", "wrkspc_open")]).await.status, 403);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever a client writes into the gate's headers, a locked workspace's content stays locked.
    #[test]
    fn no_header_bytes_open_a_locked_workspace(
        feature in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..24), 0..3),
        access in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 0..3),
        workspace in prop_oneof![Just(b"wrkspc_demo".to_vec()), proptest::collection::vec(any::<u8>(), 0..40)],
        path in "[a-z/%0-9]{0,20}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new(config());
            let mut request = Request::builder().uri(format!("/v1/authz/x{}", path.replace('%', "")));
            let all = [("x-feature", &feature), ("x-access", &access), ("x-workspace-id", &vec![workspace.clone()])];
            for (name, values) in all {
                for value in values.iter().filter_map(|bytes| HeaderValue::from_bytes(bytes).ok()) {
                    request = request.header(name, value);
                }
            }
            let told = house.send(request.body(Body::empty()).unwrap()).await;
            let exempt = feature.iter().any(|f| f == b"models" || f == b"safety_metadata");
            let open = workspace == b"wrkspc_open" || workspace == b"wrkspc_half";
            assert!(exempt || open || told.status == 403, "{}", told.status);
        });
    }

    /// Features that a client may really name.
    #[test]
    fn only_never_locked_classes_pass_for_a_locked_workspace(
        feature in prop_oneof![Just("models"), Just("safety_metadata"), Just("messages"), Just("batch"), Just("Models"), Just("models "), Just("x")],
        access in "(read|write|READ|)",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new(config());
            let told = ask(&house, &[("x-workspace-id", "wrkspc_demo"), ("x-feature", feature), ("x-access", &access)]).await;
            assert_eq!(told.status == 200, feature == "models" || feature == "safety_metadata");
        });
    }
}
