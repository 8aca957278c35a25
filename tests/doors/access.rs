use axum::body::Body;
use axum::http::{Method, Request};
use cmek_watchdog::config::Config;
use cmek_watchdog::words::Role;

use crate::support::{House, config, from_socket, from_tcp, json, token};

const LOCK: &str = "/v1/workspaces/wrkspc_open/lock";
const REASON: &str = "{\"reason\":\"drill\"}";

fn with_tokens() -> Config {
    let mut settings = config();
    settings.server.tokens = vec![
        token("gateway", Role::Read, "read-token"),
        token("oncall", Role::Operate, "operate-token"),
        token("vault", Role::Safety, "safety-token"),
        token("bridge", Role::Hint, "hint-token"),
    ];
    settings
}

fn operating() -> Config {
    let mut settings = config();
    settings.server.insecure_loopback = true;
    settings
}

/// Every documented operation except the ones that are open without a token.
fn guarded() -> Vec<(Method, String, bool)> {
    let document: serde_json::Value = serde_json::from_str(cmek_watchdog::http::status::OPENAPI).unwrap();
    let mut all = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let open = ["/healthz", "/readyz", "/.well-known/jwks.json"].contains(&path.as_str());
            assert_eq!(open, operation["security"] == serde_json::json!([]), "{path}");
            // The stream has no end to wait for: tests/stream/reads.rs.
            if open || path == "/v1/stream" {
                continue;
            }
            // HEAD has no body to look at; it has a test of its own.
            if method == "head" {
                continue;
            }
            // Their callers prove themselves in ways of their own: tests/audit/doors.rs, tests/vault/doors.rs.
            if operation["tags"][0] == "hints" || operation["tags"][0] == "safety" {
                continue;
            }
            let operate = operation["tags"][0] == "orders";
            // Everything that changes something is an order, the gate's questions are none in any method.
            let changes = matches!(method.as_str(), "post" | "put" | "delete" | "patch");
            // Who acknowledges a change makes none.
            let asks = path.starts_with("/v1/authz") || path.starts_with("/ofrep/") || path.ends_with("/acks");
            assert_eq!(operate, changes && !asks, "{method} {path}");
            all.push((Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(), path.replace(['{', '}'], ""), operate));
        }
    }
    assert!(all.len() > 30);
    all
}

fn bare(method: &Method, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method.clone()).uri(path).header("x-workspace-id", "wrkspc_open")
}

#[tokio::test]
async fn with_tokens_every_door_but_health_needs_one_of_its_role() {
    let house = House::new(with_tokens()).obeying();
    for (method, path, operate) in guarded() {
        let told = house.send(bare(&method, &path).body(Body::empty()).unwrap()).await;
        told.problem(401, "unauthorized");
        assert!(told.header("www-authenticate").unwrap().starts_with("Bearer"), "{method} {path}");
        let as_role = async |text: &str| {
            let request = bare(&method, &path).header("authorization", format!("Bearer {text}"));
            house.send(request.body(Body::empty()).unwrap()).await
        };
        as_role("unknown-token").await.problem(401, "unauthorized");
        as_role("safety-token").await.problem(403, "forbidden");
        as_role("hint-token").await.problem(403, "forbidden");
        let reader = as_role("read-token").await;
        if operate {
            reader.problem(403, "forbidden");
        } else {
            assert!(reader.status != 401 && !reader.text.contains("cmek-watchdog:forbidden"), "{method} {path}: {}", reader.text);
        }
        let operator = as_role("operate-token").await;
        assert!(operator.status != 401 && !operator.text.contains("cmek-watchdog:forbidden"), "{method} {path}: {}", operator.text);
    }
    assert_eq!(house.get("/healthz").await.status, 200);
    assert_eq!(house.get("/readyz").await.status, 200);
    let doors = guarded().len() as f64;
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"no_token\"}"), Some(doors));
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"bad_token\"}"), Some(doors));
    let operating = guarded().iter().filter(|(_, _, operate)| *operate).count() as f64;
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"wrong_role\"}"), Some(2.0 * doors + operating));
}

#[tokio::test]
async fn the_actor_is_the_name_of_the_token_or_the_uid_of_the_peer() {
    let house = House::new(with_tokens()).obeying();
    let mut request = json(LOCK, REASON);
    request.headers_mut().insert("authorization", "bearer  operate-token ".parse().unwrap());
    assert_eq!(house.send(request).await.status, 200);
    assert_eq!(house.send(from_socket(json(LOCK, REASON))).await.status, 200);
    let actors: Vec<String> = house.asked.lock().unwrap().iter().map(|o| o.actor.clone()).collect();
    assert_eq!(actors, ["oncall", "uid:1000"]);
}

#[tokio::test]
async fn odd_authorization_headers_are_refused() {
    let house = House::new(with_tokens());
    for value in ["", "Bearer", "Bearer ", "Basic cmVhZC10b2tlbg==", "read-token", "Bearer read-token x", "Bearer READ-TOKEN"] {
        let request = Request::get("/v1/keys").header("authorization", value).body(Body::empty()).unwrap();
        house.send(request).await.problem(401, "unauthorized");
    }
    let twice = Request::get("/v1/keys").header("authorization", "Bearer read-token").header("authorization", "Bearer operate-token");
    house.send(twice.body(Body::empty()).unwrap()).await.problem(401, "unauthorized");
    let bytes = Request::get("/v1/keys").header("authorization", &b"Bearer \xff"[..]).body(Body::empty()).unwrap();
    house.send(bytes).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn one_token_text_under_two_roles_has_both() {
    let mut settings = config();
    settings.server.tokens = vec![token("a", Role::Hint, "same"), token("b", Role::Read, "same")];
    let house = House::new(settings);
    let request = Request::get("/v1/keys").header("authorization", "Bearer same").body(Body::empty()).unwrap();
    assert_eq!(house.send(request).await.status, 200);
}

#[tokio::test]
async fn without_tokens_tcp_reads_and_does_not_operate() {
    let house = House::new(config()).obeying();
    for (method, path, operate) in guarded() {
        let request = from_tcp(bare(&method, &path).header("host", "127.0.0.1:9847").body(Body::empty()).unwrap(), "127.0.0.1:5000");
        let told = house.send(request).await;
        if operate {
            told.problem(403, "forbidden");
        } else {
            assert!(told.status != 401 && !told.text.contains("cmek-watchdog:forbidden"), "{method} {path}");
        }
    }
    // Listing the notices asks the core and changes nothing.
    let ordered = |o: &cmek_watchdog::operate::Operation| !matches!(o.action, cmek_watchdog::operate::Action::ListNotices { .. });
    assert!(!house.asked.lock().unwrap().iter().any(ordered));
    assert!(house.metric("cmek_http_refused_total{reason=\"operate_needs_token\"}").unwrap() >= 8.0);
}

#[tokio::test]
async fn insecure_loopback_operates_for_programs_and_not_for_web_pages() {
    let house = House::new(operating()).obeying();
    for (from, headers, status, slug) in [
        ("127.0.0.1:5000", &[("host", "127.0.0.1:9847")][..], 200, ""),
        ("127.0.0.1:5000", &[("host", "localhost:9847"), ("origin", "http://localhost:9847")], 200, ""),
        ("[::1]:5000", &[("host", "[::1]:9847")], 200, ""),
        ("10.1.2.3:5000", &[("host", "127.0.0.1:9847")], 403, "forbidden"),
        ("127.0.0.1:5000", &[], 403, "forbidden"),
        ("127.0.0.1:5000", &[("host", "rebound.evil.example:9847")], 403, "forbidden"),
        ("127.0.0.1:5000", &[("host", "localhost"), ("host", "evil.example")], 403, "forbidden"),
        ("127.0.0.1:5000", &[("host", "localhost:9847"), ("origin", "http://evil.example")], 403, "forbidden"),
        ("127.0.0.1:5000", &[("host", "localhost:9847"), ("origin", "null")], 403, "forbidden"),
        ("127.0.0.1:5000", &[("host", "localhost:9847"), ("origin", "https://localhost:9847")], 403, "forbidden"),
        ("127.0.0.1:5000", &[("host", "localhost:9847"), ("origin", "http://localhost:80")], 403, "forbidden"),
    ] {
        let mut request = from_tcp(json(LOCK, REASON), from);
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let told = house.send(request).await;
        if status == 200 {
            assert_eq!(told.status, 200, "{from} {headers:?}: {}", told.text);
        } else {
            told.problem(status, slug);
        }
    }
    let actors: Vec<String> = house.asked.lock().unwrap().iter().map(|o| o.actor.clone()).collect();
    assert_eq!(actors, ["loopback", "loopback", "loopback"]);
    // Without knowledge of the peer nobody operates.
    let mut request = json(LOCK, REASON);
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    house.send(request).await.problem(403, "forbidden");
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"origin\"}"), Some(4.0));
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"host\"}"), Some(3.0));
}

#[tokio::test]
async fn a_form_of_a_web_page_is_no_order() {
    let house = House::new(operating()).obeying();
    for path in [LOCK, "/v1/reload", "/v1/keys/demo/validate", "/v1/receivers/sre-mail/test"] {
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
            let request = Request::post(path).header("host", "localhost").header("content-type", kind).header("content-length", "2");
            house.send(from_tcp(request.body(Body::from("{}")).unwrap(), "127.0.0.1:1")).await.problem(415, "unsupported_media_type");
        }
    }
    assert!(house.asked.lock().unwrap().is_empty());
    let bare = Request::post("/v1/keys/demo/validate").header("host", "localhost").body(Body::empty()).unwrap();
    assert_eq!(house.send(from_tcp(bare, "127.0.0.1:1")).await.status, 200);
}

#[tokio::test]
async fn roles_follow_a_reload_of_the_configuration_at_once() {
    let house = House::new(config());
    assert_eq!(house.get("/v1/keys").await.status, 200);
    house.app.config.store(std::sync::Arc::new(with_tokens()));
    house.get("/v1/keys").await.problem(401, "unauthorized");
    house.app.config.store(std::sync::Arc::new(config()));
    assert_eq!(house.get("/v1/keys").await.status, 200);
}

#[tokio::test]
async fn head_is_guarded_as_get_is() {
    let house = House::new(with_tokens());
    for path in ["/v1/keys", "/v1/authz", "/metrics", "/"] {
        let head = bare(&Method::HEAD, path).body(Body::empty()).unwrap();
        assert_eq!(house.send(head).await.status, 401, "{path}");
        let head = bare(&Method::HEAD, path).header("authorization", "Bearer read-token").body(Body::empty()).unwrap();
        assert_eq!(house.send(head).await.status, 200, "{path}");
    }
}
