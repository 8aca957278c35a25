//! The readers of Google's and Azure's logs against wire fakes, which the official Python clients referee.

use std::path::PathBuf;
use std::process::Command;

use cmek_watchdog::audit::azure_monitor::AzureMonitor;
use cmek_watchdog::audit::cloud_logging::CloudLogging;
use cmek_watchdog::audit::{AuditEvent, AuditLog, Cursor, Page};
use cmek_watchdog::clock;
use cmek_watchdog::config::{AuditKind, AzureCredentials, GcpCredentials, Provider, ProviderDetail, SecretRef};
use cmek_watchdog::key::ProviderId;
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::words::{AuditMeaning, AuditTrouble};
use serde_json::{Value, json};

use crate::azure_logs::{AzureLogs, TOKEN, WORKSPACE, row};
use crate::gcp_cloud::{Gcp, Trouble};
use crate::{https, source};

const TIMEOUT: Span = Span::from_secs(5);

/// Reads until there is no more, as the reader's task does. Gives the events and the calls made.
async fn drain(log: &dyn AuditLog, cursor: &mut Cursor) -> (Vec<AuditEvent>, u32, Page) {
    let (mut events, mut calls) = (Vec::new(), 0);
    loop {
        let page = log.poll(cursor, clock::now()).await.unwrap();
        calls += 1;
        assert!(calls < 100, "reading does not end");
        events.extend(page.events.clone());
        *cursor = page.cursor.clone();
        if !page.more {
            return (events, calls, page);
        }
    }
}

fn google(gcp: &Gcp) -> Provider {
    Provider {
        id: ProviderId::new("gcp").unwrap(),
        detail: ProviderDetail::Gcp {
            endpoint: Some(gcp.endpoint.clone()),
            credentials: GcpCredentials::Anonymous,
            project_number: None,
            our_accounts: vec![],
        },
        control_key: None,
        calls_per_second: 50,
    }
}

fn entry(id: &str, at: Wall, method: &str, stream: &str, request: &Value) -> Value {
    json!({
        "insertId": id, "logName": format!("projects/acme-keys/logs/cloudaudit.googleapis.com%2F{stream}"), "timestamp": at.to_string(),
        "resource": {"type": "cloudkms_cryptokeyversion", "labels": {"project_id": "acme-keys"}},
        "protoPayload": {
            "@type": "type.googleapis.com/google.cloud.audit.AuditLog", "serviceName": "cloudkms.googleapis.com", "methodName": method,
            "resourceName": "projects/acme-keys/locations/eu/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "authenticationInfo": {"principalEmail": "bob@example.com"},
            "requestMetadata": {"callerIp": "198.51.100.7", "callerSuppliedUserAgent": "gcloud/500"}, "request": request,
        },
    })
}

fn write(gcp: &Gcp, entries: Vec<Value>) {
    gcp.world().log.write(clock::now().wall, &json!({ "entries": entries })).unwrap();
}

#[tokio::test]
async fn google_entries_come_whole_in_pages_and_ten_of_one_millisecond_in_two_polls_are_all_there() {
    let gcp = Gcp::start().await;
    let log =
        CloudLogging::open(&google(&gcp), &source("g", AuditKind::CloudLogging, "gcp"), &["acme-keys".into()], TIMEOUT).await.unwrap();
    let same = clock::now().wall.minus(Span::from_mins(5));
    let disabled = json!({"cryptoKeyVersion": {"state": "DISABLED"}});
    let of = |range: std::ops::Range<u32>| {
        range.map(|n| entry(&format!("e{n}"), same, "UpdateCryptoKeyVersion", "activity", &disabled)).collect()
    };
    write(&gcp, of(0..6));
    let mut cursor = Cursor::default();
    let (mut events, ..) = drain(&log, &mut cursor).await;
    assert_eq!(events.len(), 6);
    let event = &events[0];
    assert_eq!(
        (event.meaning, event.actor.principal.as_deref(), event.version.as_deref()),
        (AuditMeaning::VersionDisable, Some("bob@example.com"), Some("1"))
    );
    assert_eq!(event.subjects, ["gcp:projects/acme-keys/locations/eu/keyRings/r/cryptoKeys/k"]);
    write(&gcp, of(6..10));
    // The cursor goes through the store.
    let mut cursor: Cursor = serde_json::from_str(&serde_json::to_string(&cursor).unwrap()).unwrap();
    events.extend(drain(&log, &mut cursor).await.0);
    let ids: std::collections::BTreeSet<String> = events.iter().map(|e| e.id.clone()).collect();
    assert_eq!(ids.len(), 10, "the overlap brings those that came later");
    write(&gcp, of(10..1210));
    let (events, calls, _) = drain(&log, &mut cursor).await;
    assert!(events.len() >= 1200 && calls >= 3, "{} events in {calls} calls", events.len());
}

#[tokio::test]
async fn google_says_that_uses_are_not_observable_while_data_access_logs_are_off() {
    let gcp = Gcp::start().await;
    let source = source("g", AuditKind::CloudLogging, "gcp");
    let log = CloudLogging::open(&google(&gcp), &source, &["acme-keys".into()], TIMEOUT).await.unwrap();
    let (.., page) = drain(&log, &mut Cursor::default()).await;
    assert_eq!(page.unseen.len(), 1, "{:?}", page.unseen);
    assert!(page.unseen[0].contains("projects/acme-keys is not observable"), "{:?}", page.unseen);
    write(&gcp, vec![entry("u", clock::now().wall.minus(Span::from_secs(5)), "Decrypt", "data_access", &json!({}))]);
    let anew = CloudLogging::open(&google(&gcp), &source, &["acme-keys".into()], TIMEOUT).await.unwrap();
    let (.., page) = drain(&anew, &mut Cursor::default()).await;
    assert!(page.unseen.is_empty(), "{:?}", page.unseen);
}

#[tokio::test]
async fn each_of_googles_refusals_has_its_own_trouble() {
    let gcp = Gcp::start().await;
    let log =
        CloudLogging::open(&google(&gcp), &source("g", AuditKind::CloudLogging, "gcp"), &["acme-keys".into()], TIMEOUT).await.unwrap();
    for (status, name, trouble) in [
        (403, "PERMISSION_DENIED", AuditTrouble::Denied),
        (429, "RESOURCE_EXHAUSTED", AuditTrouble::Throttled),
        (401, "UNAUTHENTICATED", AuditTrouble::Credentials),
        (404, "NOT_FOUND", AuditTrouble::LogDisabled),
        (400, "INVALID_ARGUMENT", AuditTrouble::Misconfigured),
        (503, "UNAVAILABLE", AuditTrouble::ProviderFault),
    ] {
        let body = json!({"error": {"code": status, "message": "said so", "status": name}}).to_string();
        gcp.fault("entries:list", 1, Trouble::Answer { status, body });
        let fault = log.poll(&Cursor::default(), clock::now()).await.unwrap_err();
        assert_eq!(fault.kind, trouble, "{name}: {fault}");
    }
    gcp.fault("entries:list", 1, Trouble::Reset);
    assert!(log.poll(&Cursor::default(), clock::now()).await.is_err());
    let many: Vec<String> = (0..101).map(|n| format!("p{n}")).collect();
    let source = source("g", AuditKind::CloudLogging, "gcp");
    for projects in [&many[..], &[]] {
        let fault = CloudLogging::open(&google(&gcp), &source, projects, TIMEOUT).await.err().unwrap();
        assert_eq!(fault.kind, AuditTrouble::Misconfigured);
    }
}

fn azure(token_file: &str) -> Provider {
    Provider {
        id: ProviderId::new("azure").unwrap(),
        detail: ProviderDetail::Azure {
            credentials: AzureCredentials::StaticToken(SecretRef::File(token_file.to_owned())),
            ca_file: None,
            verify_challenge_resource: true,
            host_suffixes: vec![],
            our_accounts: vec![],
        },
        control_key: None,
        calls_per_second: 50,
    }
}

fn monitor(logs: &AzureLogs, workspace: &str, subscription: Option<&str>) -> AzureMonitor {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TOKEN).unwrap();
    let mut source = source("a", AuditKind::AzureMonitor, "azure");
    source.address = Some(workspace.to_owned());
    source.subscription = subscription.map(str::to_owned);
    source.endpoint = Some(logs.address.clone());
    AzureMonitor::open(&azure(&file.path().to_string_lossy()), &source, TIMEOUT).unwrap()
}

const KEY: &str = "https://acme-kv.vault.azure.net/keys/ws-key/0123456789abcdef0123456789abcdef";

fn act(n: u32, at: Wall, operation: &str, provider: &str, status: &str) -> Value {
    json!({
        "eventDataId": format!("act{n}"), "eventTimestamp": at.to_string(), "operationName": {"value": operation}, "status": {"value": status},
        "resourceProviderName": {"value": provider}, "caller": "eve@example.com", "httpRequest": {"clientIpAddress": "192.0.2.9"},
        "resourceId": "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/acme-kv",
    })
}

#[tokio::test]
async fn azure_rows_and_activity_come_whole_by_windows_and_pages() {
    let logs = AzureLogs::start().await;
    let at = clock::now().wall.minus(Span::from_mins(7));
    {
        let mut logs = logs.logs();
        for n in 0..1203_u32 {
            logs.rows.push(row(at, "KeyUpdate", KEY, &format!("c{n}"), "eve@example.com", Some(false)));
        }
        logs.rows.push(row(at, "KeyUnwrap", KEY, "use", "eve@example.com", None));
        for n in 0..5 {
            logs.activity.push(act(n, at, "Microsoft.KeyVault/vaults/delete", "Microsoft.KeyVault", "Succeeded"));
        }
        logs.activity.push(act(5, at, "Microsoft.KeyVault/vaults/write", "Microsoft.KeyVault", "Started"));
        logs.activity.push(act(6, at, "Microsoft.Authorization/roleAssignments/delete", "Microsoft.Authorization", "Succeeded"));
    }
    let log = monitor(&logs, WORKSPACE, Some("s"));
    let mut cursor = Cursor::default();
    let (events, calls, page) = drain(&log, &mut cursor).await;
    let of = |meaning| events.iter().filter(|e| e.meaning == meaning).count();
    assert_eq!((of(AuditMeaning::Disable), of(AuditMeaning::VaultDeleted), of(AuditMeaning::PolicyChange)), (1203, 5, 1));
    assert_eq!(of(AuditMeaning::Use), 1, "an act that has only begun changes nothing yet");
    assert!(calls >= 7, "{calls}");
    assert_eq!(page.unseen, Vec::<String>::new());
    let event = events.iter().find(|e| e.meaning == AuditMeaning::Disable).unwrap();
    assert_eq!((event.actor.principal.as_deref(), event.subjects[0].as_str()), (Some("eve@example.com"), "azure:acme-kv/keys/ws-key"));
    assert!(logs.logs().asked.iter().all(|asked| asked.header("authorization") == Some("Bearer reader")));
    // Late rows are inside of the overlap.
    logs.logs().rows.push(row(at, "KeyDelete", KEY, "late", "eve@example.com", None));
    let (again, ..) = drain(&log, &mut cursor).await;
    assert!(again.iter().any(|e| e.meaning == AuditMeaning::ScheduleDeletion));
}

#[tokio::test]
async fn azure_says_what_it_cannot_see_and_each_refusal_has_its_trouble() {
    let logs = AzureLogs::start().await;
    let (.., page) = drain(&monitor(&logs, WORKSPACE, None), &mut Cursor::default()).await;
    assert_eq!(page.unseen.len(), 2, "no row at all, and no subscription: {:?}", page.unseen);
    let trouble = async |log: &AzureMonitor| log.poll(&Cursor::default(), clock::now()).await.unwrap_err().kind;
    assert_eq!(trouble(&monitor(&logs, "missing", None)).await, AuditTrouble::LogDisabled);
    assert_eq!(trouble(&monitor(&logs, "denied", None)).await, AuditTrouble::Denied);
    let log = monitor(&logs, WORKSPACE, None);
    for (reply, expected) in [
        (https::Reply::json(429, &json!({})), AuditTrouble::Throttled),
        (https::Reply::json(500, &json!({})), AuditTrouble::ProviderFault),
        (https::Reply::json(200, &json!({"tables": []})), AuditTrouble::Malformed),
        (https::Reply::Cut, AuditTrouble::Unreachable),
    ] {
        logs.logs().faults.push(reply);
        assert_eq!(trouble(&log).await, expected);
    }
}

#[tokio::test]
async fn a_link_to_another_host_is_never_followed_and_no_token_goes_there() {
    let logs = AzureLogs::start().await;
    let other = AzureLogs::start().await;
    let log = monitor(&logs, WORKSPACE, Some("s"));
    let window = cmek_watchdog::audit::Gap { from: clock::now().wall.minus(Span::from_mins(5)), to: clock::now().wall };
    for link in [format!("{}/subscriptions/s/x?y=1", other.address), format!("{}.evil.example/subscriptions/s", logs.address)] {
        let cursor = Cursor { until: None, window: Some(window), page: Some(format!("activity:0:{link}")) };
        let fault = log.poll(&cursor, clock::now()).await.unwrap_err();
        assert_eq!(fault.kind, AuditTrouble::Malformed);
    }
    assert!(other.logs().asked.is_empty());
}

fn python() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let venv = std::env::var_os("CMEK_TEST_VENV").map_or_else(|| root.join("target/test-venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(
        python.exists(),
        "no Python with the log clients at {}: run tests/run, which makes it, or set CMEK_TEST_VENV",
        python.display()
    );
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_clients_understand_both_log_services() {
    let (gcp, azure) = (Gcp::start().await, AzureLogs::start().await);
    // What the fake's own key changes leave behind.
    for _ in 0..2 {
        gcp.make_key();
    }
    let now = clock::now().wall;
    write(&gcp, (0..2).map(|n| entry(&format!("r{n}"), now, "DestroyCryptoKeyVersion", "activity", &json!({}))).collect());
    azure.logs().rows.push(row(now, "KeyUpdate", KEY, "c", "eve@example.com", Some(false)));
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/logs_referee.py");
    let (google, azure_address) = (gcp.endpoint.clone(), azure.address.clone());
    let done = tokio::task::spawn_blocking(move || {
        Command::new(python()).arg(script).args([&google, &azure_address, "acme-keys", WORKSPACE]).output().unwrap()
    });
    let done = done.await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 10, "{said}");
}
