//! Notices as independent receivers find them: a mail server and Python's mail reader, the
//! Standard Webhooks package, Slack's own checks of blocks, a real Alertmanager.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

use cmek_watchdog::config::SmtpSecurity;
use cmek_watchdog::notify::alertmanager::Alertmanager;
use cmek_watchdog::notify::email::{Email, EmailSettings};
use cmek_watchdog::notify::pagerduty::PagerDuty;
use cmek_watchdog::notify::slack::Slack;
use cmek_watchdog::notify::webhook::Webhook;
use cmek_watchdog::notify::{Delivery, Notice, Receiver};
use cmek_watchdog::time::Span;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A test server written in Python; its lines of JSON arrive here.
struct Server {
    child: Child,
    lines: mpsc::Receiver<Value>,
    port: u16,
}

fn venv_python() -> PathBuf {
    let venv =
        std::env::var_os("CMEK_TEST_VENV").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(python.exists(), "{} is not there: run tests/run, which makes it", python.display());
    python
}

impl Server {
    fn start(script: &str, arguments: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script);
        let mut child = Command::new(venv_python())
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _gone = send.send(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        let mut server = Self { child, lines, port: 0 };
        server.port = server.next()["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        server
    }

    fn next(&self) -> Value {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("the server says something")
    }

    /// The next mail, and the recipients offered before it.
    fn mail(&self) -> (Vec<String>, Value) {
        let mut offered = Vec::new();
        loop {
            let line = self.next();
            match line.get("mail") {
                Some(mail) => return (offered, mail.clone()),
                None => offered.push(line["rcpt"].as_str().unwrap().to_owned()),
            }
        }
    }

    /// Everything that was said and not read yet. Answers come after the line, so all of it is there.
    fn rest(&self) -> Vec<Value> {
        self.lines.try_iter().collect()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The notice of a lock, with texts that try to break out of their place.
fn locked() -> Notice {
    serde_json::from_value(json!({
        "id": "ntc-0001", "type": "workspace.locked", "severity": "critical", "timestamp": "2026-11-25T07:46:00Z",
        "sequence": 1_795_592_760_000_u64, "key": "demo", "key_ref": "arn:aws:kms:us-east-2:444455556666:key/1234abcd-12ab",
        "provider": "aws-prod", "owner": "Café <security@acme.example>\r\nBcc: x@example.org", "workspaces": ["wrkspc_demo"],
        "access": "locked", "previous_access": "open", "cause": "disabled", "code": "cmek_key_disabled",
        "message": "The workspace is locked: key demo is disabled. \u{1f512}", "version": "v1", "actor": "kim",
        "since": "2026-11-25T07:45:40Z",
        "evidence": [{"leg": "unwrap", "outcome": "failed", "failure_kind": "disabled", "stated": true, "code": "DisabledException",
            "message": "key <b>is</b> disabled", "request_id": "req-1", "duration_ms": 12, "version": null}],
        "locked_features": ["messages"], "readable_features": ["safety_metadata"],
        "next_step": "The key's owner can enable it again in AWS KMS (Enable key).",
        "terminal": false, "recoverable_until": null, "drill": false
    }))
    .unwrap()
}

fn opened() -> Notice {
    let mut value = serde_json::to_value(locked()).unwrap();
    for (field, other) in [
        ("id", json!("ntc-0002")),
        ("type", json!("workspace.opened")),
        ("severity", json!("info")),
        ("timestamp", json!("2026-11-25T07:50:00Z")),
        ("access", json!("open")),
        ("previous_access", json!("locked")),
        ("cause", Value::Null),
        ("code", Value::Null),
    ] {
        value[field] = other;
    }
    serde_json::from_value(value).unwrap()
}

/// Certificate authority, server certificate and key, in PEM, on disk.
struct TestTls {
    folder: tempfile::TempDir,
    ca: String,
}

impl TestTls {
    fn new() -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca_params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(ca_params, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cert.pem"), leaf.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
        Self { folder, ca }
    }

    fn server(&self, mode: &str, more: &[&str]) -> Server {
        let path = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        let (cert, key) = (path("cert.pem"), path("key.pem"));
        Server::start("smtp_server.py", &[&["--mode", mode, "--cert", &cert, "--key", &key], more].concat())
    }
}

fn mail_settings(server: &Server, security: SmtpSecurity, to: &[&str]) -> EmailSettings {
    EmailSettings {
        security,
        host: "localhost".to_owned(),
        port: server.port,
        from: "Schlüsselwacht <watch@example.com>".to_owned(),
        to: to.iter().map(|address| (*address).to_owned()).collect(),
        username: None,
        password: None,
        ca_pem: None,
    }
}

fn plain(server: &Server, to: &[&str]) -> Email {
    Email::new(&mail_settings(server, SmtpSecurity::Plain, to)).unwrap()
}

fn reason(delivery: Delivery) -> String {
    match delivery {
        Delivery::Retry { reason, .. } => format!("later: {reason}"),
        Delivery::Refused { reason } => format!("never: {reason}"),
        Delivery::Delivered => "delivered".to_owned(),
    }
}

#[tokio::test]
async fn a_mail_reads_as_it_was_meant_and_keeps_its_id_on_every_attempt() {
    let server = Server::start("smtp_server.py", &[]);
    let email = plain(&server, &["SRE <sre@example.com>", "lead@example.com"]);
    assert_eq!(email.check().await, Ok(()));
    assert_eq!(email.send(&locked()).await, Delivery::Delivered);
    let (offered, mail) = server.mail();
    assert_eq!(offered, ["sre@example.com", "lead@example.com"]);
    assert_eq!(mail["envelope_from"], "watch@example.com");
    let header = |name: &str| mail["headers"][name].as_str().unwrap_or("").to_owned();
    assert_eq!(header("subject"), "[cmek][critical] wrkspc_demo locked: key demo disabled");
    assert_eq!(header("message-id"), "<ntc-0001@example.com>");
    assert_eq!(header("from"), "Schlüsselwacht <watch@example.com>");
    assert_eq!(header("to"), "SRE <sre@example.com>, lead@example.com");
    assert_eq!(
        [header("x-cmek-notice"), header("x-cmek-type"), header("x-cmek-key"), header("auto-submitted")],
        ["ntc-0001", "workspace.locked", "demo", "auto-generated"]
    );
    assert!(header("date").starts_with("Wed, 25 Nov 2026 07:46:00"), "{}", header("date"));
    assert!(!mail["header_names"].as_array().unwrap().iter().any(|name| name == "Bcc"), "no header was smuggled in");
    assert_eq!(mail["parts"], json!(["multipart/alternative", "text/plain", "text/html"]));
    assert_eq!((&mail["defects"], &mail["ascii"]), (&json!([]), &json!(true)));
    assert!(mail["longest_line"].as_u64().unwrap() <= 998);
    let text = mail["text"].as_str().unwrap();
    assert!(
        text.contains("key demo is disabled. \u{1f512}")
            && text.contains("Owner:            Café <security@acme.example>  Bcc: x@example.org\n"),
        "{text}"
    );
    assert!(text.contains("DisabledException, request req-1") && text.contains("What to do next"), "{text}");
    let html = mail["html"].as_str().unwrap();
    assert!(html.contains("key &lt;b&gt;is&lt;&#x2f;b&gt; disabled") || html.contains("key &lt;b&gt;is&lt;/b&gt; disabled"), "{html}");
    assert_eq!(email.send(&locked()).await, Delivery::Delivered);
    assert_eq!(server.mail().1["headers"]["message-id"], "<ntc-0001@example.com>");
}

#[tokio::test]
async fn starttls_with_a_login_delivers_and_a_wrong_password_waits() {
    let tls = TestTls::new();
    let server = tls.server("starttls", &["--login", "watch:right"]);
    let settings = |password: &str| EmailSettings {
        username: Some("watch".to_owned()),
        password: Some(password.to_owned()),
        ca_pem: Some(tls.ca.clone()),
        ..mail_settings(&server, SmtpSecurity::StartTls, &["sre@example.com"])
    };
    let good = Email::new(&settings("right")).unwrap();
    assert_eq!(good.check().await, Ok(()));
    assert_eq!(good.send(&locked()).await, Delivery::Delivered);
    let (_, mail) = server.mail();
    assert_eq!((&mail["tls"], &mail["login"]), (&json!(true), &json!("watch")));
    let bad = Email::new(&settings("wrong-password")).unwrap();
    let said = reason(bad.send(&locked()).await);
    assert!(said.starts_with("later: localhost refuses our login: ") && said.contains("535"), "{said}");
    assert!(!said.contains("wrong-password"));
    assert!(bad.check().await.unwrap_err().starts_with("localhost refuses our login: "));
    assert_eq!(server.rest(), Vec::<Value>::new());
}

#[tokio::test]
async fn implicit_tls_delivers() {
    let tls = TestTls::new();
    let server = tls.server("tls", &["--login", "watch:right"]);
    let email = Email::new(&EmailSettings {
        username: Some("watch".to_owned()),
        password: Some("right".to_owned()),
        ca_pem: Some(tls.ca.clone()),
        ..mail_settings(&server, SmtpSecurity::Tls, &["sre@example.com"])
    })
    .unwrap();
    assert_eq!(email.send(&locked()).await, Delivery::Delivered);
    assert_eq!(server.mail().1["login"], "watch");
}

#[tokio::test]
async fn a_server_that_cannot_be_trusted_gets_nothing_and_the_notice_waits() {
    let (tls, other) = (TestTls::new(), TestTls::new());
    for (mode, security) in [("starttls", SmtpSecurity::StartTls), ("tls", SmtpSecurity::Tls)] {
        let server = tls.server(mode, &[]);
        for ca in [None, Some(other.ca.clone())] {
            let settings = EmailSettings { ca_pem: ca, ..mail_settings(&server, security, &["sre@example.com"]) };
            let said = reason(Email::new(&settings).unwrap().send(&locked()).await);
            assert!(said.starts_with("later: ") && said.contains("certificate"), "{said}");
        }
        assert_eq!(server.rest(), Vec::<Value>::new());
    }
    let clear = Server::start("smtp_server.py", &[]);
    let settings = EmailSettings { ca_pem: Some(tls.ca.clone()), ..mail_settings(&clear, SmtpSecurity::StartTls, &["sre@example.com"]) };
    let said = reason(Email::new(&settings).unwrap().send(&locked()).await);
    assert_eq!(said, "later: localhost offers no STARTTLS; nothing was sent");
    assert_eq!(clear.rest(), Vec::<Value>::new());
}

#[tokio::test]
async fn one_refused_recipient_costs_the_others_nothing() {
    let server = Server::start("smtp_server.py", &["--refuse", "gone@example.com=550"]);
    let email = plain(&server, &["a@example.com", "gone@example.com", "b@example.com"]);
    assert_eq!(email.send(&locked()).await, Delivery::Delivered);
    assert_eq!(server.mail().1["envelope_to"], json!(["a@example.com", "b@example.com"]));
    let alone = plain(&server, &["gone@example.com"]);
    let said = reason(alone.send(&locked()).await);
    assert!(said.starts_with("never: gone@example.com: ") && said.contains("550"), "{said}");
}

#[tokio::test]
async fn who_has_the_mail_is_not_mailed_again_when_another_must_wait() {
    let server = Server::start("smtp_server.py", &["--refuse", "gone@example.com=550", "--refuse-once", "slow@example.com=451"]);
    let email = plain(&server, &["a@example.com", "gone@example.com", "slow@example.com"]);
    let said = reason(email.send(&locked()).await);
    assert!(said.starts_with("later: slow@example.com: ") && said.contains("451"), "{said}");
    assert_eq!(server.mail().1["envelope_to"], json!(["a@example.com"]));
    assert_eq!(email.send(&locked()).await, Delivery::Delivered);
    let (offered, mail) = server.mail();
    assert_eq!(offered, ["slow@example.com"], "neither the one who has it nor the one refused for good");
    assert_eq!(mail["headers"]["message-id"], "<ntc-0001@example.com>");
    assert_eq!(email.send(&opened()).await, Delivery::Delivered);
    assert_eq!(server.mail().1["envelope_to"], json!(["a@example.com", "slow@example.com"]), "the next notice goes to all");
}

#[tokio::test]
async fn a_server_that_refuses_all_decides_by_its_code() {
    for (arguments, expected) in [
        (["--refuse-all", "550"], "never: "),
        (["--refuse-all", "452"], "later: "),
        (["--refuse-data", "552"], "never: "),
        (["--refuse-data", "451"], "later: "),
    ] {
        let server = Server::start("smtp_server.py", &arguments);
        let said = reason(plain(&server, &["a@example.com", "b@example.com"]).send(&locked()).await);
        assert!(said.starts_with(expected) && said.contains(arguments[1]) && said.contains("a@example.com"), "{said}");
    }
}

#[tokio::test]
async fn a_mail_server_that_is_down_is_a_retry() {
    let server = Server::start("smtp_server.py", &[]);
    let email = plain(&server, &["a@example.com"]);
    drop(server);
    let said = reason(email.send(&locked()).await);
    assert!(said.starts_with("later: no connection to localhost:"), "{said}");
    assert!(email.check().await.is_err());
}

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OTHER_SECRET: &str = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

#[tokio::test]
async fn a_webhook_is_verified_by_the_standard_package_and_has_the_body_of_the_contract() {
    let server = Server::start("webhook_server.py", &["--kind", "standard", "--secret", SECRET]);
    let hook = Webhook::new(&server.url("/hook"), SECRET).unwrap();
    assert_eq!(hook.check().await, Ok(()));
    assert_eq!(hook.send(&locked()).await, Delivery::Delivered);
    let got = server.next();
    assert_eq!((&got["wrong"], &got["path"]), (&Value::Null, &json!("/hook")));
    assert_eq!(got["headers"]["webhook-id"], "ntc-0001");
    assert_eq!(got["headers"]["content-type"], "application/json");
    assert_eq!(
        got["body"].as_str().unwrap(),
        "{\"type\":\"workspace.locked\",\"timestamp\":\"2026-11-25T07:46:00.000Z\",\"data\":{\"sequence\":1795592760000,\"key\":\"demo\",\
         \"provider\":\"aws-prod\",\"workspaces\":[\"wrkspc_demo\"],\"access\":\"locked\",\"previous_access\":\"open\",\"cause\":\"disabled\",\
         \"code\":\"cmek_key_disabled\",\"message\":\"The workspace is locked: key demo is disabled. \u{1f512}\",\"version\":\"v1\",\
         \"actor\":\"kim\",\"since\":\"2026-11-25T07:45:40.000Z\"}}"
    );
}

#[tokio::test]
async fn a_receiver_may_change_its_secret_without_losing_a_notice() {
    let both = format!("{OTHER_SECRET} {SECRET}");
    for held in [SECRET, OTHER_SECRET] {
        let server = Server::start("webhook_server.py", &["--kind", "standard", "--secret", held]);
        assert_eq!(Webhook::new(&server.url("/"), &both).unwrap().send(&locked()).await, Delivery::Delivered);
        assert_eq!(server.next()["wrong"], Value::Null);
    }
    let server = Server::start("webhook_server.py", &["--kind", "standard", "--secret", SECRET]);
    let wrong = Webhook::new(&server.url("/"), OTHER_SECRET).unwrap().send(&locked()).await;
    assert!(reason(wrong).starts_with("never: HTTP 400"));
    assert!(server.next()["wrong"].as_str().unwrap().contains("WebhookVerificationError"));
}

#[tokio::test]
async fn a_webhook_keeps_its_id_over_retries_and_follows_the_receivers_wish() {
    let server = Server::start(
        "webhook_server.py",
        &["--kind", "standard", "--secret", SECRET, "--answer", "429:7", "--answer", "503", "--answer", "410", "--answer", "204"],
    );
    let hook = Webhook::new(&server.url("/"), SECRET).unwrap();
    let Delivery::Retry { after, .. } = hook.send(&locked()).await else { panic!("429 is for later") };
    assert_eq!(after, Some(Span::from_secs(7)));
    let Delivery::Retry { after, .. } = hook.send(&locked()).await else { panic!("503 is for later") };
    assert_eq!(after, None);
    assert!(reason(hook.send(&locked()).await).starts_with("never: HTTP 410"));
    assert_eq!(hook.send(&locked()).await, Delivery::Delivered);
    let got: Vec<Value> = (0..4).map(|_| server.next()).collect();
    assert!(got.iter().all(|one| one["headers"]["webhook-id"] == "ntc-0001" && one["wrong"].is_null()));
}

#[test]
fn a_malformed_webhook_secret_is_refused_without_being_shown() {
    for secret in ["", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "whsec_c2hvcnQ=", "whsec_!!!", &format!("{SECRET} nonsense")] {
        let error = Webhook::new("http://127.0.0.1:1/", secret).unwrap_err();
        assert_eq!(error.to_string(), "secret is not `whsec_` and base64 of 24 to 64 bytes");
    }
}

#[tokio::test]
async fn slacks_own_checks_pass_our_blocks() {
    let server = Server::start("webhook_server.py", &["--kind", "slack"]);
    let slack = Slack::new(&server.url("/services/T0/B0/secret")).unwrap();
    let mut long = serde_json::to_value(locked()).unwrap();
    long["key"] = json!("k".repeat(128));
    long["workspaces"] = json!((0..3000).map(|n| format!("{}{n}", "w".repeat(120))).collect::<Vec<_>>());
    long["message"] = json!("<&>".repeat(2000));
    long["drill"] = json!(true);
    let long: Notice = serde_json::from_value(long).unwrap();
    for notice in [locked(), opened(), long] {
        let said = reason(slack.send(&notice).await);
        let got = server.next();
        assert_eq!((said.as_str(), &got["wrong"]), ("delivered", &Value::Null));
    }
    assert!(!format!("{slack:?}").contains("secret"));
}

#[tokio::test]
async fn pagerduty_gets_a_trigger_and_a_resolve_of_the_same_incident() {
    let server = Server::start("webhook_server.py", &["--good", "202", "--answer", "202", "--answer", "429:2"]);
    let duty = PagerDuty::new("R0123456789", Some(&server.url("/v2/enqueue"))).unwrap();
    assert_eq!(duty.send(&locked()).await, Delivery::Delivered);
    assert!(matches!(duty.send(&opened()).await, Delivery::Retry { after: Some(Span(2000)), .. }));
    assert_eq!(duty.send(&opened()).await, Delivery::Delivered);
    let bodies: Vec<Value> = (0..3).map(|_| serde_json::from_str(server.next()["body"].as_str().unwrap()).unwrap()).collect();
    let of = |field: &str| bodies.iter().map(|body| body[field].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(of("event_action"), ["trigger", "resolve", "resolve"]);
    assert!(of("dedup_key").iter().all(|key| key == "cmek/access/wrkspc_demo"));
    assert!(of("routing_key").iter().all(|key| key == "R0123456789"));
}

/// A real Alertmanager on a free port of the loopback.
struct RealAlertmanager {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl RealAlertmanager {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("am.yml");
        std::fs::write(&config, "route: {receiver: none}\nreceivers: [{name: none}]\n").unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus-alertmanager is not there: run tests/run, which installs it");
        let manager = Self { child, url: format!("http://127.0.0.1:{port}"), _folder: folder };
        for _ in 0..200 {
            if reqwest::get(format!("{}/-/ready", manager.url)).await.is_ok_and(|answer| answer.status().is_success()) {
                return manager;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("Alertmanager does not become ready");
    }

    async fn active(&self) -> Vec<Value> {
        let answer = reqwest::get(format!("{}/api/v2/alerts?active=true", self.url)).await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }
}

impl Drop for RealAlertmanager {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The notice as of now: Alertmanager judges by its own clock.
fn at_now(mut notice: Notice) -> Notice {
    notice.timestamp = cmek_watchdog::clock::now().wall;
    notice.since = Some(notice.timestamp.minus(Span::from_secs(20)));
    notice
}

#[tokio::test]
async fn a_real_alertmanager_shows_the_lock_until_it_is_lifted() {
    let manager = RealAlertmanager::start().await;
    let receiver = Alertmanager::new(&manager.url).unwrap();
    assert_eq!(receiver.check().await, Ok(()));
    assert_eq!(receiver.send(&at_now(locked())).await, Delivery::Delivered);
    let active = manager.active().await;
    assert_eq!(active.len(), 1, "{active:?}");
    assert_eq!(
        active[0]["labels"],
        json!({"alertname": "CmekWorkspaceLocked", "severity": "critical", "type": "workspace.locked", "workspace": "wrkspc_demo"})
    );
    assert_eq!(active[0]["annotations"]["key"], "demo");
    assert_eq!(active[0]["status"]["state"], "active");
    assert_eq!(receiver.send(&at_now(locked())).await, Delivery::Delivered);
    assert_eq!(manager.active().await.len(), 1, "a repeat is the same alert");
    assert_eq!(receiver.send(&at_now(opened())).await, Delivery::Delivered);
    let left = manager.active().await;
    assert!(left.is_empty(), "{left:?}");
}
