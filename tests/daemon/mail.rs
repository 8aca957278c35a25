//! Notices from a revoked key to the reader: a real mail server, Python's mail reader, and the
//! package of Standard Webhooks.

use std::time::Duration;

use serde_json::{Value, json};

use crate::receivers::Server;
use crate::support::{DEMO, PATIENCE, Place, QUICK, now};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const QUIET: Duration = Duration::from_secs(3);
const LOCKED: &str = "[cmek][critical] wrkspc_demo locked: key demo disabled";
const OPENED: &str = "[cmek][warning] wrkspc_demo open again: key demo works";

/// Mail for what is loud, the hook for everything.
fn place(smtp: u16, hook: Option<u16>) -> Place {
    let hook = hook.map_or_else(String::new, |port| {
        format!(
            "[receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{port}/hook\"\nsecret = \"env:TEST_HOOK_SECRET\"\n\
             [[routes]]\nreceivers = [\"hook\"]\nseverity = \"info\"\n"
        )
    });
    let mut place = Place::new(&format!(
        "{QUICK}{DEMO}[receivers.mail]\nkind = \"email\"\nsmtp = \"smtp://127.0.0.1:{smtp}\"\nfrom = \"cmek@example.com\"\n\
         to = [\"sre@example.com\"]\n[[routes]]\nreceivers = [\"mail\"]\nseverity = \"warning\"\n{hook}"
    ));
    place.env.push(("TEST_HOOK_SECRET".to_owned(), SECRET.to_owned()));
    place
}

fn subjects(lines: &[Value]) -> Vec<String> {
    lines.iter().filter_map(|line| Some(line["mail"]["headers"]["subject"].as_str()?.to_owned())).collect()
}

fn body(call: &Value) -> Value {
    serde_json::from_str(call["body"].as_str().unwrap()).unwrap()
}

/// Calls about workspaces: what no receiver may get twice.
fn about_workspaces(calls: &[Value]) -> Vec<(String, Value)> {
    let of = |call: &Value| (call["headers"]["webhook-id"].as_str().unwrap().to_owned(), body(call));
    calls.iter().map(of).filter(|(_, body)| body["type"].as_str().unwrap().starts_with("workspace.")).collect()
}

#[test]
fn a_lock_and_its_end_arrive_once_by_mail_and_signed_hook_and_say_what_to_do() {
    let (smtp, hook) =
        (Server::start("smtp_server.py", &[]), Server::start("webhook_server.py", &["--kind", "standard", "--secret", SECRET]));
    let place = place(smtp.port, Some(hook.port));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.good(&["local-kms", "disable", "demo"]);
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let mail = smtp.mail();
    place.good(&["local-kms", "enable", "demo"]);
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(15));
    let end = smtp.mail();

    assert_eq!(mail["headers"]["subject"], LOCKED);
    assert_eq!(end["headers"]["subject"], OPENED);
    for mail in [&mail, &end] {
        assert_eq!((&mail["envelope_from"], &mail["envelope_to"]), (&json!("cmek@example.com"), &json!(["sre@example.com"])));
        assert_eq!((&mail["defects"], &mail["content_type"]), (&json!([]), &json!("multipart/alternative")), "{mail}");
    }
    let text = mail["text"].as_str().unwrap();
    for part in [
        "key demo is disabled",           // what was seen
        "Key:",                           // which key, and
        "demo",                           //
        "wrkspc_demo",                    // which workspace
        "messages",                       // what is locked
        "safety_metadata",                // what stays readable
        "cmek-watchdog local-kms enable", // what to do next
        "open data (unwrap): failed",     // the evidence
        "Since:",                         //
    ] {
        assert!(text.contains(part), "`{part}` is not in the mail:\n{text}");
    }
    assert!(mail["html"].as_str().unwrap().contains("wrkspc_demo"));
    assert_ne!(mail["headers"]["message-id"], end["headers"]["message-id"]);

    assert_eq!(subjects(&smtp.rest(QUIET)), Vec::<String>::new(), "loud mail beside one a lock and one an unlock");
    let calls = hook.rest(QUIET);
    let wrong: Vec<&Value> = calls.iter().filter(|call| !call["wrong"].is_null()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let told = about_workspaces(&calls);
    let types: Vec<&Value> = told.iter().map(|(_, body)| &body["type"]).collect();
    assert_eq!(types, [&json!("workspace.locked"), &json!("workspace.opened")]);
    let data = &told[0].1["data"];
    assert_eq!(
        (&data["key"], &data["workspaces"], &data["access"], &data["previous_access"], &data["cause"], &data["code"]),
        (&json!("demo"), &json!(["wrkspc_demo"]), &json!("locked"), &json!("open"), &json!("disabled"), &json!("cmek_key_disabled"))
    );
    assert!(told[0].1["data"]["sequence"].as_u64() < told[1].1["data"]["sequence"].as_u64());
    // The same id by every way, so that a reader of both knows that it is one notice.
    for (mail, (id, _)) in [&mail, &end].into_iter().zip(&told) {
        assert!(mail["headers"]["message-id"].as_str().unwrap().contains(id.as_str()), "{id}: {}", mail["headers"]["message-id"]);
    }
    assert_eq!(daemon.metric("cmek_notices_total{outcome=\"delivered\",receiver=\"mail\"}"), Some(2.0));
    daemon.stop();
}

#[test]
fn a_mail_server_that_was_away_during_the_lock_gets_it_once_and_in_order() {
    let port = crate::support::free_port();
    let place = place(port, None);
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    place.kms().enable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(15));
    daemon.wait("a try has failed", Duration::from_secs(30), || {
        daemon.metric("cmek_notices_total{outcome=\"retried\",receiver=\"mail\"}").is_some_and(|count| count >= 1.0)
    });
    assert_eq!(daemon.metric("cmek_outbox_depth{receiver=\"mail\"}"), Some(2.0));
    // Not even the queue's memory is needed.
    daemon.stop();

    let smtp = Server::start("smtp_server.py", &["--port", &port.to_string()]);
    let daemon = place.start();
    let lines = smtp.until(|lines| subjects(lines).len() >= 2);
    assert_eq!(subjects(&lines), [LOCKED, OPENED]);
    assert_eq!(subjects(&smtp.rest(QUIET)), Vec::<String>::new());
    daemon.wait("the queue is empty", Duration::from_secs(10), || daemon.metric("cmek_outbox_depth{receiver=\"mail\"}") == Some(0.0));
    daemon.stop();
}

#[test]
fn a_notice_that_is_refused_for_now_keeps_its_id() {
    let hook = Server::start("webhook_server.py", &["--kind", "standard", "--secret", SECRET, "--answer", "503", "--answer", "500"]);
    let mut place = Place::new(&format!(
        "{QUICK}{DEMO}[receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{}/hook\"\nsecret = \"env:TEST_HOOK_SECRET\"\n\
         [[routes]]\nreceivers = [\"hook\"]\nseverity = \"critical\"\n",
        hook.port
    ));
    place.env.push(("TEST_HOOK_SECRET".to_owned(), SECRET.to_owned()));
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let calls = hook.until(|calls| calls.len() >= 3);
    let ids: Vec<&Value> = calls.iter().map(|call| &call["headers"]["webhook-id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(calls.iter().all(|call| call["wrong"].is_null() && body(call)["type"] == "workspace.locked"), "{calls:#?}");
    assert!(hook.rest(QUIET).is_empty(), "taken at the third try, and sent again");
}
