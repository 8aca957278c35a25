//! What the doors take, refuse, count and show.

use serde_json::{Value, json};

use crate::house::{OPERATE, READ, SAFETY, at, call, events, get, metric, place, place_with, put, read, record, with};
use crate::support::Place;

#[test]
fn records_are_written_replaced_listed_page_by_page_and_counted_for_the_owner() {
    let place = place();
    let daemon = place.start();
    let first = put(&daemon, "wrkspc_demo", "r1", 0.5);
    assert_eq!((first.status, first.header("etag")), (201, Some("\"1\"")));
    assert_eq!(first.json()["data"]["indicator"], "credential_stuffing");
    let again = put(&daemon, "wrkspc_demo", "r1", 0.75);
    assert_eq!((again.status, again.header("etag")), (200, Some("\"2\"")));
    assert_eq!(get(&daemon, "wrkspc_demo", "r1").json()["data"]["score"], 0.75);
    for id in ["r2", "r3"] {
        assert_eq!(put(&daemon, "wrkspc_demo", id, 0.1).status, 201);
    }
    let list = |query: &str| call(&daemon, SAFETY, "GET", &format!("/v1/workspaces/wrkspc_demo/safety-metadata{query}"), None).json();
    let ids = |page: &Value| page["items"].as_array().unwrap().iter().map(|i| i["record"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let page = list("?limit=2");
    assert_eq!((ids(&page), &page["next"]), (vec!["r1".to_owned(), "r2".to_owned()], &json!("r2")));
    let page = list("?limit=2&after=r2");
    assert_eq!((ids(&page), &page["next"]), (vec!["r3".to_owned()], &Value::Null));
    assert_eq!(list("")["counts"], json!({ "records": 3, "preservations": 0 }));
    // The owner, who may only read states, sees how many there are, and no more.
    assert_eq!(read(&daemon, "/v1/workspaces/wrkspc_demo")["safety"], json!({ "records": 3, "preservations": 0 }));
    assert_eq!(read(&daemon, "/v1/workspaces/wrkspc_other")["safety"], json!({ "records": 0, "preservations": 0 }));
    assert_eq!(metric(&daemon, "cmek_vault_records{kind=\"record\"}"), Some(3.0));
    assert_eq!(metric(&daemon, "cmek_vault_operations_total{operation=\"put\",result=\"ok\"}"), Some(4.0));

    let matching = |tag: &str| with(&daemon, SAFETY, "PUT", &at("wrkspc_demo", "r1"), &[("if-match", tag)], Some(&record(0.2)));
    let stale = matching("\"1\"");
    assert_eq!((stale.status, stale.json()["type"].as_str().unwrap()), (412, "urn:cmek-watchdog:revision_differs"));
    assert_eq!(matching("\"2\"").header("etag"), Some("\"3\""));
    assert_eq!(matching("W/x").status, 412);
    let fresh = with(&daemon, SAFETY, "PUT", &at("wrkspc_demo", "r1"), &[("if-none-match", "*")], Some(&record(0.2)));
    assert_eq!(fresh.status, 412);
    assert_eq!(get(&daemon, "wrkspc_demo", "none").status, 404);
    assert_eq!(put(&daemon, "wrkspc_unknown", "r1", 0.1).status, 404);
    assert_eq!(get(&daemon, "wrkspc_unknown", "r1").json()["code"], "unknown_workspace");
}

#[test]
fn what_the_schema_has_no_field_for_is_refused_by_name() {
    let place = place();
    let daemon = place.start();
    let refused = |body: &Value| {
        let answer = call(&daemon, SAFETY, "PUT", &at("wrkspc_demo", "r"), Some(body));
        (answer.status, answer.json()["detail"].as_str().unwrap().to_owned())
    };
    let mut extra = record(0.5);
    extra["note"] = json!("what the user wrote");
    let (status, detail) = refused(&extra);
    assert!(status == 422 && detail.contains("unknown field `note`"), "{detail}");
    let (status, detail) = refused(&record(2.0));
    assert!(status == 422 && detail.starts_with("score: "), "{detail}");
    let mut long = record(0.5);
    long["padding"] = json!("x".repeat(4096));
    assert_eq!(refused(&long).0, 413);
    assert_eq!(get(&daemon, "wrkspc_demo", "r").status, 404);
}

#[test]
fn only_a_safety_token_reads_or_writes_and_every_refusal_is_counted() {
    let place = place();
    let daemon = place.start();
    assert_eq!(put(&daemon, "wrkspc_demo", "r1", 0.5).status, 201);
    let paths =
        [at("wrkspc_demo", "r1"), "/v1/workspaces/wrkspc_demo/safety-metadata".into(), "/v1/workspaces/wrkspc_demo/preservations".into()];
    for path in &paths {
        for token in [READ, OPERATE] {
            assert_eq!(call(&daemon, token, "GET", path, None).status, 403, "{path}");
        }
    }
    assert_eq!(call(&daemon, OPERATE, "PUT", &at("wrkspc_demo", "r2"), Some(&record(0.1))).status, 403);
    assert_eq!(call(&daemon, "no-such-token", "GET", &paths[0], None).status, 401);
    // The token gives nothing else.
    assert_eq!(call(&daemon, SAFETY, "GET", "/v1/workspaces/wrkspc_demo", None).status, 403);
    assert_eq!(call(&daemon, SAFETY, "POST", "/v1/vault/rewrap", None).status, 403);
    assert_eq!(metric(&daemon, "cmek_http_refused_total{reason=\"wrong_role\"}"), Some(9.0));
    // The control socket operates; it is no reader of safety metadata.
    let socket = place.path("run/control.sock");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ask = |path: &str| runtime.block_on(cmek_watchdog::http::client::call(&socket, axum::http::Method::GET, path, None)).unwrap();
    assert_eq!(ask(&paths[0]).0, 403);
    assert_eq!(ask("/v1/vault").0, 200);
}

#[test]
fn without_a_vault_it_says_so_and_without_tokens_nobody_is_in() {
    let place = place_with("");
    let daemon = place.start();
    let answer = get(&daemon, "wrkspc_demo", "r1");
    assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (404, "vault_not_configured"));
    assert_eq!(read(&daemon, "/v1/workspaces/wrkspc_demo")["safety"], Value::Null);
    assert_eq!(metric(&daemon, "cmek_vault_readable"), None);
    drop(daemon);
    let open = Place::new(&format!(
        "{}{}[vault]\noperator_key = {{ provider = \"local\", key = \"vault-operator\" }}\n",
        crate::support::QUICK,
        crate::support::DEMO
    ));
    let daemon = open.start();
    assert_eq!(daemon.get(&at("wrkspc_demo", "r1")).status, 403);
    assert_eq!(daemon.get("/v1/vault").status, 200);
}

#[test]
fn a_preservation_keeps_copies_and_content_and_its_event_has_neither() {
    let place = place();
    let daemon = place.start();
    put(&daemon, "wrkspc_demo", "r1", 0.5);
    let ask = |body: &Value| call(&daemon, SAFETY, "POST", "/v1/workspaces/wrkspc_demo/preservations", Some(body));
    let made = ask(&json!({ "reason_code": "fraud", "person": "A. Ward", "records": ["r1"], "content": "the words themselves" }));
    assert_eq!(made.status, 201, "{made:?}");
    let kept = made.json();
    assert_eq!((&kept["journaled"], &kept["records"][0]["data"]["score"]), (&json!(true), &json!(0.5)));
    // Later changes of the record do not reach it.
    put(&daemon, "wrkspc_demo", "r1", 0.9);
    let id = kept["id"].as_str().unwrap();
    let back = call(&daemon, SAFETY, "GET", &format!("/v1/workspaces/wrkspc_demo/preservations/{id}"), None).json();
    assert_eq!((&back["content"], &back["records"][0]["data"]["score"]), (&json!("the words themselves"), &json!(0.5)));
    let list = call(&daemon, SAFETY, "GET", "/v1/workspaces/wrkspc_demo/preservations", None).json();
    assert_eq!((&list["items"][0]["person"], list["items"][0].get("content")), (&json!("A. Ward"), None));
    assert_eq!(read(&daemon, "/v1/workspaces/wrkspc_demo")["safety"], json!({ "records": 1, "preservations": 1 }));

    let events = events(&daemon, "safety.preserved");
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!((&event["workspace"], &event["actor"], &event["event_id"]), (&json!("wrkspc_demo"), &json!("reviewer"), &json!(id)));
    assert_eq!(event["detail"], json!({ "preservation": id, "reason_code": "fraud", "person": "A. Ward" }));
    assert!(!event.to_string().contains("words"));
    assert!(!daemon.log().contains("the words themselves"));

    for (body, names) in [
        (json!({ "reason_code": "curiosity", "person": "A", "content": "x" }), "legal_hold"),
        (json!({ "reason_code": "fraud", "person": "", "content": "x" }), "person"),
        (json!({ "reason_code": "fraud", "person": "A" }), "content"),
        (json!({ "reason_code": "fraud", "person": "A", "content": "x", "why": "y" }), "why"),
    ] {
        let answer = ask(&body);
        assert!(answer.status == 422 && answer.json()["detail"].as_str().unwrap().contains(names), "{answer:?}");
    }
    let unknown = ask(&json!({ "reason_code": "fraud", "person": "A", "records": ["r1", "gone"] }));
    assert_eq!((unknown.status, unknown.json()["code"].as_str().unwrap()), (404, "unknown_record"));
}
