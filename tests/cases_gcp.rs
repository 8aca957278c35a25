//! Every known answer of Google Cloud, served at wire level to the real client library, gets the
//! failure kind that the cases file asks for.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use cmek_watchdog::config::{GcpCredentials, Provider, ProviderDetail};
use cmek_watchdog::key::{KeyRef, KeyTarget, KeyVersion, ProviderId};
use cmek_watchdog::kms::gcp::GcpKms;
use cmek_watchdog::kms::{Answer, KeyFacts, Kms, KmsError, Wrapped};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::ProviderKind;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

const KEY: &str = "projects/acme-keys/locations/us-east1/keyRings/cmek/cryptoKeys/ws-key";
const CASES: &str = include_str!("data/errors.jsonl");

fn cases() -> Vec<Value> {
    let all = CASES.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|case| case["provider"] == "gcp").collect()
}

fn provider(endpoint: Option<String>, credentials: GcpCredentials) -> Provider {
    Provider {
        id: ProviderId::new("gcp-prod").unwrap(),
        detail: ProviderDetail::Gcp {
            endpoint,
            credentials,
            project_number: Some("100000000001".to_owned()),
            our_accounts: vec!["watchdog-prod".to_owned()],
        },
        control_key: None,
        calls_per_second: 50,
    }
}

fn target() -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Gcp, KEY).unwrap())
}

/// The canary whose plaintext the good sample answer brings back.
fn canary() -> Wrapped {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"probe-nonce-0001");
    Wrapped {
        bytes: Arc::from(&b"wrapped"[..]),
        digest: digest.as_ref().try_into().unwrap(),
        version: Some(KeyVersion::new("2")),
        sealed_with: "purpose=cmek-watchdog-probe".into(),
    }
}

/// The answer of one case, served at the path that its operation stands for.
#[derive(Clone)]
struct Served {
    operation: String,
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: String,
}

impl Served {
    fn of(case: &Value) -> Self {
        let headers = case["headers"].as_object().unwrap().iter();
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.as_str().unwrap().parse().unwrap()));
        Self {
            operation: case["operation"].as_str().unwrap().to_owned(),
            status: StatusCode::from_u16(u16::try_from(case["http_status"].as_u64().unwrap()).unwrap()).unwrap(),
            headers: headers.collect(),
            body: case["body"].as_str().unwrap().to_owned(),
        }
    }

    fn whole(&self, body: String) -> Response {
        let mut response = (self.status, body).into_response();
        response.headers_mut().clear();
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }
}

async fn serve(State(served): State<Served>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let ours = |what: &str| served.operation.contains(what);
    if path == "/token" && !ours("oauth2") {
        return axum::Json(json!({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})).into_response();
    }
    if ours("CryptoKeyVersions.Get") && !ours("GetPublicKey") {
        let version: Value = serde_json::from_str(&served.body).unwrap();
        let body = if path.ends_with("/cryptoKeyVersions") {
            json!({"cryptoKeyVersions": [version], "totalSize": 1})
        } else {
            json!({"name": KEY, "purpose": "ENCRYPT_DECRYPT", "primary": version})
        };
        return served.whole(body.to_string());
    }
    served.whole(served.body.clone())
}

async fn start(served: Served) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(serve).with_state(served);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// A listener that takes connections and treats them as told.
async fn misbehave(how: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            match how {
                "hang" => held.push(stream),
                // Closing with bytes unread resets the connection.
                _ => drop(stream.read_u8().await),
            }
        }
    });
    address
}

/// A TLS server whose certificate comes from an authority that nobody trusts.
async fn intercept() -> String {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            drop(acceptor.accept(stream).await);
        }
    });
    address
}

/// What came of a case, in the words of the cases file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outcome {
    kind: String,
    stated: bool,
    code: String,
    message: String,
}

impl Outcome {
    fn of<T>(answer: Answer<T>, fault: impl FnOnce(&T) -> Option<KmsError>) -> Self {
        let error = match answer.result {
            Ok(value) => fault(&value),
            Err(error) => Some(error),
        };
        match error {
            Some(error) => {
                Self { kind: error.kind.to_string(), stated: error.stated, code: error.code.into(), message: error.message.into() }
            }
            None => Self { kind: "healthy".to_owned(), stated: false, code: String::new(), message: String::new() },
        }
    }
}

async fn call(kms: &GcpKms, operation: &str) -> Outcome {
    let key = target();
    match operation {
        "CryptoKeys.Encrypt" => Outcome::of(kms.wrap_key(&key).await, |_| None),
        "CryptoKeys.Get" | "CryptoKeyVersions.Get" | "KeyRings.CryptoKeys.List" | "CryptoKeys.Patch" => {
            Outcome::of(kms.describe_key(&key).await, |facts: &KeyFacts| facts.fault.clone())
        }
        _ => Outcome::of(kms.unwrap_key(&key, &canary()).await, |_| None),
    }
}

async fn ask(endpoint: String, credentials: GcpCredentials, operation: &str, limit: Span) -> Outcome {
    let kms = GcpKms::new(&provider(Some(endpoint), credentials), limit).await.unwrap();
    call(&kms, operation).await
}

/// Credentials that fetch their token from the server of the case.
fn token_file(dir: &Path, operation: &str, server: &str) -> GcpCredentials {
    let user = json!({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r", "token_uri": format!("{server}/token")});
    let content = match operation {
        "iamcredentials.generateAccessToken" => json!({
            "type": "impersonated_service_account",
            "service_account_impersonation_url": format!("{server}/v1/projects/-/serviceAccounts/probe@watchdog-prod.iam.gserviceaccount.com:generateAccessToken"),
            "source_credentials": user,
        }),
        _ => user,
    };
    let path = dir.join(format!("{}.json", operation.replace(['.', '/', ':'], "-")));
    std::fs::write(&path, content.to_string()).unwrap();
    GcpCredentials::File(path.to_string_lossy().into_owned())
}

const LONG: Span = Span::from_secs(30);
/// For servers that never answer.
const SHORT: Span = Span::from_secs(1);

async fn play(case: &Value, dir: &Path) -> Outcome {
    let operation = case["operation"].as_str().unwrap();
    let anonymous = GcpCredentials::Anonymous;
    match (case["or_transport_failure"].as_str(), operation) {
        (Some("timeout"), "metadata:token") => {
            let host = misbehave("hang").await;
            apart(case, &[("GCE_METADATA_HOST", &host), ("HOME", &dir.to_string_lossy())]).await
        }
        (Some("timeout"), _) => ask(format!("http://{}", misbehave("hang").await), anonymous, operation, SHORT).await,
        (Some("reset"), _) => ask(format!("http://{}", misbehave("reset").await), anonymous, operation, LONG).await,
        // A label beyond 63 characters fails in the resolver itself; no query leaves the machine.
        (Some("dns"), _) => ask(format!("http://{}.invalid", "k".repeat(64)), anonymous, operation, LONG).await,
        (Some("connect_refused"), _) => {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            ask(format!("http://{free}"), anonymous, operation, LONG).await
        }
        (Some("tls"), _) if case["client_error"].as_str().unwrap().contains("root certs") => {
            let empty = dir.join("no-roots.pem");
            std::fs::write(&empty, "").unwrap();
            let none = dir.join("none");
            std::fs::create_dir_all(&none).unwrap();
            apart(case, &[("SSL_CERT_FILE", &empty.to_string_lossy()), ("SSL_CERT_DIR", &none.to_string_lossy())]).await
        }
        (Some("tls"), _) => ask(intercept().await, anonymous, operation, LONG).await,
        (Some(other), _) => panic!("{}: no server for `{other}`", case["id"]),
        (None, _) => {
            let server = start(Served::of(case)).await;
            let token = operation.contains("iamcredentials") || operation.contains("oauth2");
            let credentials = if token { token_file(dir, operation, &server) } else { anonymous };
            ask(server, credentials, operation, LONG).await
        }
    }
}

/// Plays a case in a process of its own, for what only the environment can set.
async fn apart(case: &Value, environment: &[(&str, &str)]) -> Outcome {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "one_case_in_a_process_of_its_own", "--nocapture"]);
    command.env("CASE_APART", case["id"].as_str().unwrap()).env_remove("GOOGLE_APPLICATION_CREDENTIALS");
    command.envs(environment.iter().copied());
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split_once("OUTCOME ")).unwrap_or_else(|| panic!("no outcome in {text}")).1;
    let outcome: Value = serde_json::from_str(line).unwrap();
    assert!(output.status.success(), "{text}");
    let text = |field: &str| outcome[field].as_str().unwrap().to_owned();
    Outcome { kind: text("kind"), stated: outcome["stated"].as_bool().unwrap(), code: text("code"), message: text("message") }
}

/// Asks a server that is not there with what the environment gives. Other tests start this one as a
/// process of its own; by itself it meets a refused connection.
#[tokio::test]
async fn one_case_in_a_process_of_its_own() {
    let id = std::env::var("CASE_APART").unwrap_or_else(|_| "gcp-net-refused".to_owned());
    let case = cases().into_iter().find(|case| case["id"] == id.as_str()).unwrap();
    let credentials = if id == "gcp-net-metadata" { GcpCredentials::Default } else { GcpCredentials::Anonymous };
    let limit = if id == "gcp-net-metadata" { SHORT } else { LONG };
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let outcome = ask(format!("https://{free}"), credentials, "CryptoKeys.Decrypt", limit).await;
    let shown = json!({"kind": outcome.kind, "stated": outcome.stated, "code": outcome.code, "message": outcome.message});
    println!("OUTCOME {shown}");
    assert_eq!((outcome.kind.as_str(), outcome.stated), (case["kind"].as_str().unwrap(), case["stated"].as_bool().unwrap()));
}

fn right(case: &Value, outcome: &Outcome) -> bool {
    let kind = case["kind"].as_str().unwrap();
    let stated = case["stated"].as_bool().unwrap();
    match kind {
        "ambiguous" => !outcome.stated && outcome.kind != "healthy",
        _ => outcome.kind == kind && outcome.stated == stated,
    }
}

#[tokio::test]
async fn every_answer_of_the_cases_file_is_judged_rightly() {
    let dir = tempfile::tempdir().unwrap();
    let mut table: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in cases() {
        let outcome = play(&case, dir.path()).await;
        println!("{}: {outcome:?}", case["id"]);
        let row = table.entry(case["kind"].as_str().unwrap().to_owned()).or_default();
        row.1 += 1;
        if right(&case, &outcome) {
            row.0 += 1;
        } else {
            wrong.push(format!("{}: expected {} (stated {}), got {outcome:?}", case["id"], case["kind"], case["stated"]));
        }
    }
    let (met, all) = table.values().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
    for (kind, (met, all)) in &table {
        println!("gcp  {kind:<22} {met:>3} of {all:>3}");
    }
    println!("gcp  {:<22} {met:>3} of {all:>3}", "all");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((met, all), (53, 53));
}

/// Serves one 200 to the given call.
async fn good(operation: &str, body: Value) -> Outcome {
    let headers = vec![(HeaderName::from_static("content-type"), HeaderValue::from_static("application/json"))];
    let served = Served { operation: "any".to_owned(), status: StatusCode::OK, headers, body: body.to_string() };
    ask(start(served).await, GcpCredentials::Anonymous, operation, LONG).await
}

#[tokio::test]
async fn a_sealed_answer_counts_only_with_every_checksum_verified() {
    use base64::Engine as _;
    let bytes = Bytes::from_static(b"sealed");
    let answer = |change: &[(&str, Value)]| {
        let mut answer = json!({
            "name": format!("{KEY}/cryptoKeyVersions/2"),
            "ciphertext": base64::engine::general_purpose::STANDARD.encode(&bytes),
            "ciphertextCrc32c": crc32c::crc32c(&bytes).to_string(),
            "verifiedPlaintextCrc32c": true,
            "verifiedAdditionalAuthenticatedDataCrc32c": true,
        });
        for (field, value) in change {
            answer[*field] = value.clone();
        }
        answer
    };
    assert_eq!(good("CryptoKeys.Encrypt", answer(&[])).await.kind, "healthy");
    for change in [
        ("verifiedPlaintextCrc32c", json!(false)),
        ("verifiedPlaintextCrc32c", Value::Null),
        ("verifiedAdditionalAuthenticatedDataCrc32c", json!(false)),
        ("ciphertextCrc32c", json!("1")),
        ("ciphertextCrc32c", Value::Null),
    ] {
        let outcome = good("CryptoKeys.Encrypt", answer(std::slice::from_ref(&change))).await;
        assert_eq!((outcome.kind.as_str(), outcome.code.as_str(), outcome.stated), ("unreachable", "crc32c_mismatch", false), "{change:?}");
    }
}

#[tokio::test]
async fn other_bytes_are_told_apart_from_damage_on_the_way() {
    use base64::Engine as _;
    let plain = b"not the canary";
    let encoded = base64::engine::general_purpose::STANDARD.encode(plain);
    let damaged = good("CryptoKeys.Decrypt", json!({"plaintext": encoded, "plaintextCrc32c": "1"})).await;
    assert_eq!((damaged.kind.as_str(), damaged.code.as_str()), ("unreachable", "crc32c_mismatch"));
    // Whole, but not the canary: the adapter hands on the digest and the core compares.
    let whole = json!({"plaintext": encoded, "plaintextCrc32c": crc32c::crc32c(plain).to_string()});
    assert_eq!(good("CryptoKeys.Decrypt", whole).await.kind, "healthy");
    assert_eq!(good("CryptoKeys.Decrypt", json!("<html>")).await.code, "undecodable");
}
