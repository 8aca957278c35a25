use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use cmek_watchdog::http::Ask;
use cmek_watchdog::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use cmek_watchdog::operate::{Action, Refusal, RefusalSlug};
use cmek_watchdog::time::Span;

use crate::support::{House, Reloading, config, from_socket, json};

fn ws(id: &str) -> WorkspaceId {
    WorkspaceId::new(id).unwrap()
}

#[tokio::test]
async fn orders_reach_the_core_as_they_were_meant() {
    let house = House::new(config()).obeying();
    let locked = house.order("/v1/workspaces/wrkspc_new:1/lock", "{\"reason\":\" incident 7 \"}").await.json();
    assert_eq!((&locked["access"], &locked["levers"]), (&"locked".into(), &serde_json::json!([])));
    assert!(locked["evaluated_at"].is_string());
    assert_eq!(house.order("/v1/workspaces/wrkspc_demo/unlock", "{\"reason\":\"over\"}").await.json()["access"], "open");
    let body = "{\"reason\":\"r\",\"override\":true,\"until\":\"2h\"}";
    assert_eq!(house.order("/v1/workspaces/wrkspc_demo/unlock", body).await.status, 200);
    assert_eq!(house.order("/v1/keys/demo/versions/a%2Fb/retire", "{\"reason\":\"r\"}").await.json()["state"], "retired");
    assert_eq!(house.order("/v1/keys/demo/retire", "{\"reason\":\"r\"}").await.json()["id"], "demo");
    assert_eq!(house.order("/v1/providers/local/brake", "{\"lock\":true,\"reason\":\"r\"}").await.json()["released"], 3);
    assert_eq!(house.order("/v1/providers/local/brake", "{\"drop\":true,\"reason\":\"r\"}").await.status, 200);
    assert_eq!(house.order("/v1/receivers/sre-mail/test", "").await.json()["done"], true);
    let (key, reason, provider) = (KeyId::new("demo").unwrap(), "r".to_owned(), ProviderId::new("local").unwrap());
    let expected = vec![
        Action::Lock { workspace: ws("wrkspc_new:1"), reason: "incident 7".into() },
        Action::Unlock { workspace: ws("wrkspc_demo"), reason: "over".into(), override_for: None },
        Action::Unlock { workspace: ws("wrkspc_demo"), reason: reason.clone(), override_for: Some(Span::from_hours(2)) },
        Action::RetireVersion { key: key.clone(), version: KeyVersion::new("a/b"), reason: reason.clone() },
        Action::RetireKey { key, reason: reason.clone() },
        Action::BrakeRelease { provider: provider.clone(), lock: true, reason: reason.clone() },
        Action::BrakeRelease { provider, lock: false, reason },
        Action::TestReceiver { receiver: ReceiverId::new("sre-mail").unwrap() },
    ];
    let asked = house.asked.lock().unwrap();
    assert_eq!(asked.iter().map(|o| o.action.clone()).collect::<Vec<_>>(), expected);
    assert!(asked.iter().all(|o| o.actor == "uid:1000"));
}

#[tokio::test]
async fn orders_that_cannot_be_meant_never_reach_the_core() {
    let house = House::new(config()).obeying();
    let long = format!("{{\"reason\":\"{}\"}}", "x".repeat(1001));
    for (path, body) in [
        ("/v1/workspaces/w/lock", "{}"),
        ("/v1/workspaces/w/lock", ""),
        ("/v1/workspaces/w/lock", "{\"reason\":"),
        ("/v1/workspaces/w/lock", "[]"),
        ("/v1/workspaces/w/lock", "{\"reason\":7}"),
        ("/v1/workspaces/w/lock", "{\"reason\":\"  \"}"),
        ("/v1/workspaces/w/lock", "{\"reason\":\"r\",\"override\":true,\"until\":\"2h\"}"),
        ("/v1/workspaces/w/lock", long.as_str()),
        ("/v1/workspaces/w/unlock", "{\"reason\":\"r\",\"override\":true}"),
        ("/v1/workspaces/w/unlock", "{\"reason\":\"r\",\"until\":\"2h\"}"),
        ("/v1/workspaces/w/unlock", "{\"reason\":\"r\",\"override\":true,\"until\":\"2 hours\"}"),
        ("/v1/workspaces/w/unlock", "{\"reason\":\"r\",\"override\":true,\"until\":7200000}"),
        ("/v1/workspaces/w/unlock", "{\"reason\":\"r\",\"overide\":true}"),
        ("/v1/providers/local/brake", "{\"reason\":\"r\"}"),
        ("/v1/providers/local/brake", "{\"reason\":\"r\",\"lock\":true,\"drop\":true}"),
        ("/v1/keys/demo/retire", "{\"why\":\"r\"}"),
        ("/v1/keys/demo/versions/1/retire", "{\"reason\":\"\"}"),
    ] {
        let told = house.order(path, body).await;
        assert!(!told.problem(422, "invalid").is_empty(), "{path} {body}");
    }
    let plain = Request::post("/v1/workspaces/w/lock").body(Body::from("{\"reason\":\"r\"}")).unwrap();
    house.send(from_socket(plain)).await.problem(415, "unsupported_media_type");
    let big = format!("{{\"reason\":\"r\",\"x\":\"{}\"}}", "y".repeat(64 * 1024));
    for path in ["/v1/workspaces/w/lock", "/v1/keys/demo/validate", "/v1/reload", "/v1/receivers/hook/test"] {
        house.order(path, &big).await.problem(413, "body_too_large");
    }
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"body_too_large\"}"), Some(4.0));
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"media_type\"}"), Some(1.0));
    assert!(house.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn every_refusal_of_the_core_is_its_problem() {
    for (slug, status, name) in [
        (RefusalSlug::UnknownKey, 404, "unknown_key"),
        (RefusalSlug::UnknownWorkspace, 404, "unknown_workspace"),
        (RefusalSlug::UnknownProvider, 404, "unknown_provider"),
        (RefusalSlug::UnknownVersion, 404, "unknown_version"),
        (RefusalSlug::UnknownReceiver, 404, "unknown_receiver"),
        (RefusalSlug::NotProven, 409, "not_proven"),
        (RefusalSlug::FileManaged, 409, "file_managed"),
        (RefusalSlug::KeyLocks, 409, "key_locks"),
        (RefusalSlug::NotEngaged, 409, "not_engaged"),
        (RefusalSlug::CurrentVersion, 409, "current_version"),
        (RefusalSlug::Invalid, 422, "invalid"),
        (RefusalSlug::StoreUnavailable, 503, "store_unavailable"),
        (RefusalSlug::Busy, 503, "busy"),
    ] {
        let house = House::new(config()).answering(move |_| Err(Refusal { slug, detail: "because".into() }));
        let told = house.order("/v1/workspaces/w/unlock", "{\"reason\":\"r\"}").await;
        assert_eq!(told.problem(status, name), "because");
        assert_eq!(told.header("retry-after").is_some(), status == 503);
    }
}

#[tokio::test]
async fn validate_is_200_for_good_and_bad_keys() {
    let house = House::new(config()).obeying();
    let bad = house.order("/v1/keys/demo/validate", "").await;
    assert_eq!(bad.status, 200);
    let body = bad.json();
    assert_eq!((&body["id"], &body["status"]), (&"demo".into(), &"failure".into()));
    assert_eq!(body["error"], "revoked: unwrap failed, disabled: DisabledException: the key is disabled");
    let good = house.order("/v1/keys/open/validate", "{}").await.json();
    assert_eq!((&good["status"], &good["error"]), (&"success".into(), &serde_json::Value::Null));
    house.order("/v1/keys/ghost/validate", "").await.problem(404, "unknown_key");
}

#[tokio::test]
async fn a_validation_that_does_not_end_in_time_says_so_and_shows_the_last_known_state() {
    let mut house = House::new(config());
    house.limits.answer = Duration::from_millis(20);
    let body = house.order("/v1/keys/open/validate", "").await.json();
    assert_eq!((&body["status"], &body["id"]), (&"failure".into(), &"open".into()));
    assert!(body["error"].as_str().unwrap().starts_with("the round was not judged within"));
    house.order("/v1/keys/ghost/validate", "").await.problem(404, "unknown_key");
    house.order("/v1/workspaces/w/lock", "{\"reason\":\"r\"}").await.problem(503, "timed_out");
}

#[tokio::test]
async fn too_many_validations_are_told_to_come_again() {
    let mut house = House::new(config());
    house.limits.validations = 0;
    let told = house.order("/v1/keys/demo/validate", "").await;
    told.problem(429, "too_many_requests");
    assert_eq!(told.header("retry-after"), Some("2"));
    // The core's own budget is the same answer.
    let house = House::new(config()).answering(|_| Err(Refusal { slug: RefusalSlug::Busy, detail: "call budget".into() }));
    assert_eq!(house.order("/v1/keys/demo/validate", "").await.problem(429, "too_many_requests"), "call budget");
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"too_many\"}"), Some(1.0));
}

#[tokio::test]
async fn a_full_or_closed_way_to_the_core_is_said_at_once() {
    let mut house = House::new(config());
    house.limits.answer = Duration::from_millis(5);
    for _ in 0..8 {
        house.order("/v1/workspaces/w/lock", "{\"reason\":\"r\"}").await.problem(503, "timed_out");
    }
    let told = house.order("/v1/workspaces/w/lock", "{\"reason\":\"r\"}").await;
    told.problem(503, "busy");
    assert_eq!(told.header("retry-after"), Some("1"));
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"busy\"}"), Some(1.0));
    drop(house.orders.take());
    house.order("/v1/workspaces/w/lock", "{\"reason\":\"r\"}").await.problem(503, "stopping");

    let mut house = House::new(config());
    let mut orders = house.orders.take().unwrap();
    let forgetful = tokio::spawn(async move {
        let Ask { answer, .. } = orders.recv().await.unwrap();
        drop(answer);
    });
    house.order("/v1/workspaces/w/lock", "{\"reason\":\"r\"}").await.problem(503, "stopping");
    forgetful.await.unwrap();
}

#[tokio::test]
async fn a_reload_says_how_it_went() {
    let mut house = House::new(config());
    assert_eq!(house.order("/v1/reload", "").await.json()["done"], true);
    house.app.reload = Arc::new(Reloading(Err("config.toml:3:1: gate.max_age: no".into())));
    assert_eq!(house.order("/v1/reload", "").await.problem(422, "bad_configuration"), "config.toml:3:1: gate.max_age: no");
}

#[tokio::test]
async fn a_body_that_trickles_is_cut_off() {
    let mut house = House::new(config()).obeying();
    house.limits.request = Duration::from_millis(30);
    let never = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>());
    let mut request = json("/v1/workspaces/w/lock", "");
    *request.body_mut() = never;
    house.send(from_socket(request)).await.problem(503, "timed_out");
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"request_timeout\"}"), Some(1.0));
}

fn asking(method: &str, path: &str, body: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    from_socket(request.body(Body::from(body.to_owned())).unwrap())
}

#[tokio::test]
async fn a_registration_is_an_entry_of_keys_and_its_faults_name_the_field() {
    let house = House::new(config()).obeying();
    let made = house.send(asking("PUT", "/v1/keys/new", r#"{"provider":"local","key":"k","workspaces":["w"],"labels":{"a":"b"}}"#)).await;
    assert_eq!((made.status.as_u16(), &made.json()["id"]), (201, &"new".into()));
    let entry = cmek_watchdog::config::raw::Key {
        id: "new".to_owned(),
        provider: "local".to_owned(),
        key: "k".to_owned(),
        workspaces: vec!["w".to_owned()],
        labels: std::collections::BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        ..Default::default()
    };
    assert_eq!(house.asked.lock().unwrap()[0].action, Action::PutKey { key: Box::new(entry) });
    for (body, starts) in [
        ("{}", "provider: missing"),
        (r#"{"provider":"local"}"#, "key: missing"),
        (r#"{"id":"other","provider":"local","key":"k"}"#, "id: the body names another key"),
        (r#"{"provider":"local","key":"k","workspaces":"w"}"#, "workspaces: invalid type"),
        (r#"{"provider":"local","key":"k","wrap":true}"#, "wrap: unknown field `wrap`"),
    ] {
        let detail = house.send(asking("PUT", "/v1/keys/new", body)).await.problem(422, "invalid");
        assert!(detail.starts_with(starts), "{detail}");
    }
    house.send(asking("DELETE", "/v1/keys/demo", "")).await.problem(409, "key_locks");
    house.send(asking("DELETE", "/v1/keys/demo?keep_lock=maybe", "")).await.problem(422, "invalid");
    assert_eq!(house.send(asking("DELETE", "/v1/keys/demo?keep_lock=true", "")).await.json()["done"], true);
    assert_eq!(house.send(asking("DELETE", "/v1/keys/a%20b", "")).await.status, 404);
    assert_eq!(house.asked.lock().unwrap().len(), 3);
    let plain = Request::put("/v1/keys/new").header("content-type", "application/json").body(Body::from("{}")).unwrap();
    assert!([401, 403].contains(&house.send(crate::support::from_tcp(plain, "127.0.0.1:9")).await.status.as_u16()));
}
