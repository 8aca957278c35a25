//! The Azure adapter against servers that behave badly or unusually, and the ways of signing in that have a
//! server of their own.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/azure_wire.rs"]
mod azure_wire;
#[path = "support/https.rs"]
mod https;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use azure_wire::{METADATA, OUR_APP, OUR_TENANT, Root, TestNames, azure, client_secret, key, token};
use cmek_watchdog::kms::azure::{AzureIdentity, AzureKms};
use cmek_watchdog::kms::{Answer, Kms};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::FailureKind;
use https::{Asked, Reply, Server, handler};
use serde_json::json;

const KEY: &str = "https://acme-kv.vault.azure.net/keys/k";
const NAMES: [&str; 3] = ["*.vault.azure.net", "login.microsoftonline.com", "evil.example"];

/// Answers the challenge and the sign-in, leaves the rest to `rest`, and keeps every request.
struct Odd {
    server: Server,
    seen: Arc<Mutex<Vec<Asked>>>,
}

async fn odd(rest: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Odd {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let answer = move |asked: Asked| {
        let reply = if asked.host == "login.microsoftonline.com" {
            let body =
                json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token(OUR_APP, OUR_TENANT, "https://vault.azure.net")});
            Reply::json(200, &body)
        } else if asked.header("authorization").is_none() {
            Reply::json(401, &json!({"error": {"code": "Unauthorized", "message": "no token"}})).with(
                "WWW-Authenticate",
                "Bearer authorization=\"https://login.microsoftonline.com/t\", resource=\"https://vault.azure.net\"",
            )
        } else {
            rest(&asked)
        };
        kept.lock().unwrap().push(asked);
        reply
    };
    Odd { server: https::https(&NAMES, handler(answer)).await, seen }
}

impl Odd {
    fn kms(&self, identity: AzureIdentity, call_timeout: Span) -> AzureKms {
        let names = TestNames { all: Some(self.server.addr), ..TestNames::default() };
        azure(&Root::new(&self.server.ca_pem), identity, names, call_timeout)
    }
    fn count(&self, matches: impl Fn(&Asked) -> bool) -> usize {
        self.seen.lock().unwrap().iter().filter(|asked| matches(asked)).count()
    }
}

fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> (FailureKind, bool, String) {
    let error = answer.result.unwrap_err();
    (error.kind, error.stated, error.code.into())
}

fn good_key() -> Reply {
    let body =
        json!({"key": {"kid": format!("{KEY}/0a"), "kty": "RSA", "key_ops": ["wrapKey", "unwrapKey"]}, "attributes": {"enabled": true}});
    Reply::json(200, &body)
}

#[tokio::test]
async fn an_answer_that_proves_nothing_is_no_success() {
    for (body, code) in [
        (json!({"kid": format!("{KEY}/0a")}).to_string(), "undecodable"),
        (json!({"value": "AQID"}).to_string(), "undecodable"),
        (json!({"kid": KEY, "value": "AQID"}).to_string(), "undecodable"),
        (json!({"kid": 7, "value": "AQID"}).to_string(), "undecodable"),
        ("<html>welcome</html>".to_owned(), "undecodable"),
        (String::new(), "undecodable"),
        (format!("{{\"value\":\"{}\"}}", "A".repeat(2 << 20)), "oversized"),
    ] {
        let served = body.clone();
        let odd = odd(move |_| Reply::Http { status: 200, headers: Vec::new(), body: served.clone().into_bytes() }).await;
        let kms = odd.kms(client_secret(), Span::from_secs(20));
        let shown: String = body.chars().take(40).collect();
        assert_eq!(refused(kms.wrap_key(&key(KEY)).await), (FailureKind::Unclassified, false, code.to_owned()), "{shown}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let odd =
        odd(|_| Reply::Http { status: 307, headers: vec![("location".into(), "https://evil.example/".into())], body: Vec::new() }).await;
    let kms = odd.kms(client_secret(), Span::from_secs(20));
    assert_eq!(refused(kms.wrap_key(&key(KEY)).await), (FailureKind::Unclassified, false, "http_307".to_owned()));
    assert_eq!(odd.count(|asked| asked.host == "evil.example"), 0);
}

#[tokio::test]
async fn a_list_that_leads_elsewhere_gets_no_token_there() {
    let odd = odd(|asked| {
        if asked.path.ends_with("/versions") {
            Reply::json(200, &json!({"value": [{"kid": format!("{KEY}/0a")}], "nextLink": "https://evil.example/keys/k/versions"}))
        } else {
            good_key()
        }
    })
    .await;
    let facts = odd.kms(client_secret(), Span::from_secs(20)).describe_key(&key(KEY)).await.result.unwrap();
    assert_eq!((facts.versions.len(), facts.current_version.unwrap().as_str()), (0, "0a"), "a broken list shows nothing");
    assert_eq!(odd.count(|asked| asked.host == "evil.example"), 0);
}

#[tokio::test]
async fn a_list_without_end_is_read_to_its_bound() {
    let odd = odd(|asked| {
        if asked.path.ends_with("/versions") {
            let next = asked.query.split("page=").nth(1).and_then(|n| n.parse::<u32>().ok()).unwrap_or(0) + 1;
            let rows: Vec<_> = (0..25).map(|n| json!({"kid": format!("{KEY}/{next}x{n}"), "attributes": {"created": next}})).collect();
            let link = format!("https://acme-kv.vault.azure.net/keys/k/versions?api-version=1&page={next}");
            Reply::json(200, &json!({"value": rows, "nextLink": link}))
        } else {
            good_key()
        }
    })
    .await;
    let facts = odd.kms(client_secret(), Span::from_secs(20)).describe_key(&key(KEY)).await.result.unwrap();
    assert_eq!(odd.count(|asked| asked.path.ends_with("/versions") && asked.header("authorization").is_some()), 4);
    assert_eq!(facts.versions.len(), 101, "four pages and the current version");
}

#[tokio::test]
async fn a_refused_list_leaves_the_other_facts() {
    let odd = odd(
        |asked| {
            if asked.path.ends_with("/versions") { Reply::json(403, &json!({"error": {"code": "Forbidden"}})) } else { good_key() }
        },
    )
    .await;
    let facts = odd.kms(client_secret(), Span::from_secs(20)).describe_key(&key(KEY)).await.result.unwrap();
    assert_eq!((facts.versions.len(), facts.fault), (0, None));
    assert_eq!(facts.resolved.as_deref(), Some(KEY));
}

#[tokio::test]
async fn a_list_that_hangs_leaves_the_other_facts() {
    let odd = odd(|asked| if asked.path.ends_with("/versions") { Reply::Hang } else { good_key() }).await;
    let answer = odd.kms(client_secret(), Span(1600)).describe_key(&key(KEY)).await;
    assert!(answer.meta.took < Span(1600), "{:?}", answer.meta.took);
    assert_eq!(answer.result.unwrap().versions.len(), 0);
}

#[tokio::test]
async fn a_challenge_for_another_resource_is_not_met() {
    let server = https::https(
        &NAMES,
        handler(|_| {
            Reply::json(401, &json!({}))
                .with("WWW-Authenticate", "Bearer authorization=\"https://x/t\", resource=\"https://graph.example\"")
        }),
    )
    .await;
    let names = TestNames { all: Some(server.addr), ..TestNames::default() };
    let kms = azure(&Root::new(&server.ca_pem), client_secret(), names, Span::from_secs(20));
    assert_eq!(refused(kms.wrap_key(&key(KEY)).await), (FailureKind::Misconfigured, false, "client".to_owned()));
}

#[tokio::test]
async fn a_vault_under_an_unknown_root_is_blocked_on_the_way() {
    let (spoken, trusted) = (odd(|_| good_key()).await, odd(|_| good_key()).await);
    let names = TestNames { all: Some(spoken.server.addr), ..TestNames::default() };
    let kms = azure(&Root::new(&trusted.server.ca_pem), client_secret(), names, Span::from_secs(20));
    assert_eq!(refused(kms.describe_key(&key(KEY)).await), (FailureKind::NetworkBlocked, false, "tls_unknown_issuer".to_owned()));
    assert_eq!(spoken.count(|_| true), 0);
}

#[tokio::test]
async fn a_sign_in_that_hangs_is_ours_and_ends_in_time() {
    let server = https::https(
        &NAMES,
        handler(|asked| {
            if asked.host == "login.microsoftonline.com" {
                return Reply::Hang;
            }
            Reply::json(401, &json!({}))
                .with("WWW-Authenticate", "Bearer authorization=\"https://x/t\", resource=\"https://vault.azure.net\"")
        }),
    )
    .await;
    let names = TestNames { all: Some(server.addr), ..TestNames::default() };
    let kms = azure(&Root::new(&server.ca_pem), client_secret(), names, Span(700));
    // Two at once: one waits for the token, the other for the first.
    let target = key(KEY);
    let (one, two) = tokio::join!(kms.wrap_key(&target), kms.wrap_key(&target));
    for answer in [one, two] {
        assert!(answer.meta.took < Span::from_secs(5), "{:?}", answer.meta.took);
        assert_eq!(refused(answer), (FailureKind::Credentials, false, "sign_in".to_owned()));
    }
    assert_eq!(refused(kms.whoami(&target).await), (FailureKind::Credentials, false, "sign_in".to_owned()));
}

/// A provider with the machine's own identity, whose metadata service is `metadata`.
fn on_machine(odd: &Odd, metadata: &Server, client: Option<String>) -> AzureKms {
    let reached = vec![(METADATA.parse().unwrap(), metadata.addr)];
    let names = TestNames { all: Some(odd.server.addr), reached, ..TestNames::default() };
    azure(&Root::new(&odd.server.ca_pem), AzureIdentity::ManagedIdentity { client }, names, Span::from_secs(20))
}

#[tokio::test]
async fn a_managed_identity_signs_in_at_the_metadata_service() {
    let odd = odd(|_| good_key()).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    let metadata = https::http(handler(move |request| {
        kept.lock().unwrap().push(request);
        let access = token("machine", OUR_TENANT, "https://vault.azure.net");
        let body =
            json!({"access_token": access, "expires_on": "4102444800", "token_type": "Bearer", "resource": "https://vault.azure.net"});
        Reply::json(200, &body)
    }))
    .await;
    let kms = on_machine(&odd, &metadata, Some("user-assigned".to_owned()));
    assert!(kms.describe_key(&key(KEY)).await.result.is_ok());
    assert!(kms.whoami(&key(KEY)).await.result.unwrap().starts_with("appid=machine;"));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1, "the token is kept");
    assert_eq!(asked[0].header("metadata"), Some("true"));
    assert!(asked[0].query.contains("client_id=user-assigned") && asked[0].query.contains("resource=https"), "{}", asked[0].query);
}

#[tokio::test]
async fn a_failing_metadata_service_is_asked_once_and_is_ours() {
    let odd = odd(|_| good_key()).await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let metadata = https::http(handler(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Reply::json(500, &json!({"error": "unknown"}))
    }))
    .await;
    let answer = on_machine(&odd, &metadata, None).wrap_key(&key(KEY)).await;
    assert_eq!(refused(answer), (FailureKind::Credentials, false, "unknown".to_owned()));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_workload_identity_shows_its_token_file_and_a_missing_one_is_ours() {
    let odd = odd(|_| good_key()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let identity =
        AzureIdentity::WorkloadIdentity { tenant: Some(OUR_TENANT.into()), client: Some(OUR_APP.into()), token_file: Some(file.clone()) };
    let kms = odd.kms(identity, Span::from_secs(20));
    assert_eq!(refused(kms.describe_key(&key(KEY)).await), (FailureKind::Credentials, false, "sign_in".to_owned()));
    std::fs::write(&file, "federated").unwrap();
    assert!(kms.describe_key(&key(KEY)).await.result.is_ok(), "a file that comes later is read");
    let shown = odd.count(|asked| {
        let body = String::from_utf8_lossy(&asked.body);
        asked.path == format!("/{OUR_TENANT}/oauth2/v2.0/token") && body.contains("client_assertion=federated")
    });
    assert_eq!(shown, 1);
}

#[tokio::test]
async fn no_secret_is_shown_by_an_error_or_by_debug() {
    let server = https::https(
        &NAMES,
        handler(|asked| {
            if asked.host == "login.microsoftonline.com" {
                return Reply::json(
                    401,
                    &json!({"error": "invalid_client", "error_codes": [7000215], "error_description": "AADSTS7000215: wrong"}),
                );
            }
            Reply::json(401, &json!({}))
                .with("WWW-Authenticate", "Bearer authorization=\"https://x/t\", resource=\"https://vault.azure.net\"")
        }),
    )
    .await;
    let names = TestNames { all: Some(server.addr), ..TestNames::default() };
    let kms = azure(&Root::new(&server.ca_pem), client_secret(), names, Span::from_secs(20));
    let answer = kms.wrap_key(&key(KEY)).await;
    let shown = format!("{kms:?} {answer:?}");
    assert!(answer.result.is_err() && !shown.contains("hush"), "{shown}");
}
