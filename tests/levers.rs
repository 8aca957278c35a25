//! Levers over the wire: what they change, what they undo, and what they leave alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "clouds/claude.rs"]
mod claude;
#[path = "support/wire.rs"]
mod wire;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use claude::{ADMIN, Claude};
use cmek_watchdog::config::ListFormat;
use cmek_watchdog::key::{LeverId, WorkspaceId};
use cmek_watchdog::lever::claude::ClaudeLever;
use cmek_watchdog::lever::file::FileLever;
use cmek_watchdog::lever::webhook::WebhookLever;
use cmek_watchdog::lever::{Lever, LeverOrder, Outcome};
use cmek_watchdog::secrets::Secret;
use cmek_watchdog::words::{LeverAct, Sequence};
use wire::{Reply, Wire};

fn order(act: LeverAct, memory: Option<&str>, all: &[&str]) -> LeverOrder {
    LeverOrder {
        lever: LeverId::new("l").unwrap(),
        workspace: WorkspaceId::new("wrkspc_a").unwrap(),
        act,
        sequence: Sequence(7),
        attempt: 1,
        memory: memory.map(Arc::from),
        all: all.iter().map(|id| WorkspaceId::new(id).unwrap()).collect(),
    }
}

fn lever(api: &Claude, key: &str) -> ClaudeLever {
    ClaudeLever::new(&api.wire.url(), Secret::new(key.to_owned())).unwrap()
}

/// Pulls as the core does: what is planned is given back with the next order.
async fn pull(lever: &ClaudeLever, memory: Option<String>) -> Outcome {
    let mut memory = memory;
    loop {
        match lever.act(&order(LeverAct::Pull, memory.as_deref(), &[])).await {
            Outcome::Planned { memory: planned } => memory = Some(planned),
            other => return other,
        }
    }
}

fn memory(outcome: Outcome) -> String {
    match outcome {
        Outcome::Done { memory, .. } => memory.unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn undo(lever: &ClaudeLever, memory: &str) -> Vec<String> {
    match lever.act(&order(LeverAct::Undo, Some(memory), &[])).await {
        Outcome::Done { left, memory: None } => left,
        other => panic!("{other:?}"),
    }
}

fn five() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut keys: Vec<_> = ["k1", "k2", "k3", "k4", "k5"].map(|id| (id, "wrkspc_a", "active")).to_vec();
    keys.extend([("k6", "wrkspc_a", "inactive"), ("k7", "wrkspc_b", "active")]);
    keys
}

#[tokio::test]
async fn every_page_is_deactivated_and_exactly_that_is_activated_again() {
    let api = Claude::start(&five()).await;
    let lever = lever(&api, ADMIN);
    assert!(matches!(lever.act(&order(LeverAct::Pull, None, &[])).await, Outcome::Planned { .. }));
    assert_eq!(api.changes(), 0, "the plan is written down first");
    let memory = memory(pull(&lever, None).await);
    assert!(["k1", "k2", "k3", "k4", "k5"].iter().all(|id| api.status(id) == "inactive"));
    assert_eq!(api.status("k7"), "active", "another workspace");
    assert_eq!(undo(&lever, &memory).await, [""; 0]);
    assert!(["k1", "k2", "k3", "k4", "k5"].iter().all(|id| api.status(id) == "active"));
    assert_eq!(api.status("k6"), "inactive", "somebody deactivated it before us");
}

#[tokio::test]
async fn a_new_key_is_taken_at_the_next_look_and_what_others_did_is_left() {
    let api = Claude::start(&five()).await;
    let lever = lever(&api, ADMIN);
    let first = memory(pull(&lever, None).await);
    api.set("k8", "wrkspc_a", "active");
    let second = memory(pull(&lever, Some(first)).await);
    assert_eq!(api.status("k8"), "inactive");
    api.set("k1", "wrkspc_a", "archived");
    api.set("k2", "wrkspc_a", "active");
    api.remove("k3");
    let left = undo(&lever, &second).await;
    assert_eq!(left, ["API key k1 was left as it is: archived", "API key k3 was left as it is: gone"]);
    assert_eq!((api.status("k1").as_str(), api.status("k8").as_str()), ("archived", "active"));
}

#[tokio::test]
async fn an_unknown_author_means_left_inactive_and_reported() {
    let api = Claude::start(&five()).await;
    let lever = lever(&api, ADMIN);
    let Outcome::Planned { memory: plan } = lever.act(&order(LeverAct::Pull, None, &[])).await else { panic!("no plan") };
    // A crash: the call for k1 went out, or somebody else made it; nobody can tell.
    api.set("k1", "wrkspc_a", "inactive");
    let memory = memory(pull(&lever, Some(plan)).await);
    let left = undo(&lever, &memory).await;
    assert_eq!(left, ["API key k1 was left inactive: it is not known who deactivated it"]);
    assert_eq!((api.status("k1").as_str(), api.status("k2").as_str()), ("inactive", "active"));
}

#[tokio::test]
async fn a_failure_in_the_middle_keeps_what_was_changed() {
    let api = Claude::start(&five()).await;
    let lever = lever(&api, ADMIN);
    let Outcome::Planned { memory: plan } = lever.act(&order(LeverAct::Pull, None, &[])).await else { panic!("no plan") };
    api.fault("POST", Reply::json(529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#));
    let failed = lever.act(&order(LeverAct::Pull, Some(&plan), &[])).await;
    let Outcome::Failed { reason, memory: Some(kept), .. } = failed else { panic!("{failed:?}") };
    assert_eq!(reason, "HTTP 529: Overloaded");
    let memory = memory(pull(&lever, Some(kept)).await);
    api.fault("POST", Reply::Reset);
    let failed = lever.act(&order(LeverAct::Undo, Some(&memory), &[])).await;
    let Outcome::Failed { memory: Some(rest), .. } = failed else { panic!("{failed:?}") };
    assert_eq!(undo(&lever, &rest).await, [""; 0]);
    assert!(["k1", "k2", "k3", "k4", "k5"].iter().all(|id| api.status(id) == "active"));
}

#[tokio::test]
async fn faults_of_the_api_are_told_without_the_key() {
    let api = Claude::start(&five()).await;
    let refused = lever(&api, "sk-ant-admin01-wrong");
    let failed = refused.act(&order(LeverAct::Pull, None, &[])).await;
    let text = format!("{failed:?} {refused:?} {:?}", refused.check().await);
    assert!(text.contains("HTTP 401 (the Admin API key is refused): invalid x-api-key") && !text.contains("sk-ant"), "{text}");
    let good = lever(&api, ADMIN);
    assert_eq!(good.check().await, Ok(()));
    for (reply, said) in [
        (
            Reply::Answer { status: 429, headers: vec![("Retry-After".to_owned(), "17".to_owned())], body: Vec::new() },
            "Failed { reason: \"HTTP 429\", after: Some(Span(17000))",
        ),
        (Reply::json(500, "{}"), "HTTP 500"),
        (Reply::json(200, "[]"), "not what the Admin API is documented to say"),
        (Reply::Reset, "the connection broke"),
        (Reply::BrokenOff, "the answer broke off"),
        (Reply::json(200, r#"{"data":[],"has_more":true,"last_id":"x"}"#), "Planned"),
    ] {
        api.fault("GET", reply);
        let told = format!("{:?}", good.act(&order(LeverAct::Pull, None, &[])).await);
        assert!(told.contains(said), "{told}");
    }
    drop(api);
    assert!(format!("{:?}", good.act(&order(LeverAct::Pull, None, &[])).await).contains("Failed"));
}

#[tokio::test]
async fn a_webhook_is_signed_and_has_one_id_for_all_retries() {
    let hook = Wire::serve(|_| Reply::json(200, "{}")).await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let lever = WebhookLever::new(&format!("{}/lock", hook.url()), secret).unwrap();
    for act in [LeverAct::Pull, LeverAct::Pull, LeverAct::Undo] {
        assert_eq!(lever.act(&order(act, None, &[])).await, Outcome::Done { memory: None, left: Vec::new() });
    }
    let asked = hook.asked();
    let ids: Vec<&str> = asked.iter().map(|ask| ask.headers["webhook-id"].as_str()).collect();
    assert_eq!(ids, ["lvr_l_wrkspc_a_7_pull", "lvr_l_wrkspc_a_7_pull", "lvr_l_wrkspc_a_7_undo"]);
    assert_eq!(asked[0].json()["type"], "lever.pull");
    assert_eq!(asked[2].json()["data"], serde_json::json!({ "lever": "l", "workspace": "wrkspc_a", "sequence": 7 }));
    let headers = &asked[0].headers;
    let signed = [format!("{}.{}.", headers["webhook-id"], headers["webhook-timestamp"]).as_bytes(), &asked[0].body].concat();
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &engine.decode(secret.trim_start_matches("whsec_")).unwrap());
    assert_eq!(headers["webhook-signature"], format!("v1,{}", engine.encode(aws_lc_rs::hmac::sign(&key, &signed))));
    let refusing = Wire::serve(|_| Reply::json(410, "{}")).await;
    let lever = WebhookLever::new(&refusing.url(), secret).unwrap();
    assert!(matches!(lever.act(&order(LeverAct::Pull, None, &[])).await, Outcome::Failed { after: Some(_), .. }));
}

#[tokio::test]
async fn a_deny_list_is_whole_readable_and_replaced_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (format, text, empty) in [
        (ListFormat::Lines, "a\nb:c\n", ""),
        (ListFormat::Json, "[\"a\",\"b:c\"]\n", "[]\n"),
        (ListFormat::Nginx, "\"a\" 1;\n\"b:c\" 1;\n", ""),
    ] {
        let path = folder.path().join(format!("{format:?}"));
        let lever = FileLever::new(path.to_str().unwrap(), format);
        lever.make_if_missing().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), empty);
        lever.act(&order(LeverAct::Pull, None, &["a", "b:c"])).await;
        lever.make_if_missing().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        lever.act(&order(LeverAct::Undo, None, &[])).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), empty);
    }
    let nowhere = FileLever::new(folder.path().join("no/such/list").to_str().unwrap(), ListFormat::Lines);
    assert!(matches!(nowhere.act(&order(LeverAct::Pull, None, &["a"])).await, Outcome::Failed { .. }));
    assert!(nowhere.check().await.is_err());
}
