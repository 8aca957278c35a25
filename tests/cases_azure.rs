//! Every Azure line of `tests/data/errors.jsonl`, served over https (or left unserved) to the real
//! client: kind and `stated` must be right.
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

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use azure_wire::{METADATA, OUR_APP, Root, TestNames, azure, client_secret, key, token};
use cmek_watchdog::key::KeyVersion;
use cmek_watchdog::kms::azure::{AzureIdentity, NameFault};
use cmek_watchdog::kms::{CallMeta, Kms, KmsError, Wrapped};
use cmek_watchdog::time::Span;
use https::{Asked, Reply, Server, black_hole, closed_port, handler};

#[derive(serde::Deserialize, Clone)]
struct Case {
    id: String,
    provider: String,
    operation: String,
    http_status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: String,
    or_transport_failure: Option<String>,
    client_error: Option<String>,
    kind: String,
    stated: bool,
}

impl Case {
    fn reply(&self) -> Reply {
        let headers = self.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
        self.http_status.map_or(Reply::Hang, |status| Reply::Http { status, headers, body: self.body.clone().into_bytes() })
    }
    fn host(&self) -> &'static str {
        if self.id.contains("mhsm") { "acme-cmek-hsm.managedhsm.azure.net" } else { "acme-cmek-kv.vault.azure.net" }
    }
    fn is_sign_in(&self) -> bool {
        self.operation.starts_with("login.") || self.operation.starts_with("imds:")
    }
}

fn cases() -> Vec<Case> {
    let text = include_str!("data/errors.jsonl");
    let all: Vec<Case> = text.lines().filter(|l| !l.is_empty()).map(|line| serde_json::from_str(line).expect(line)).collect();
    all.into_iter().filter(|case| case.provider == "azure").collect()
}

/// What the servers say: the challenge, tokens, and the case's answer where it belongs.
fn answer(case: &Case, asked: &Asked) -> Reply {
    if asked.host == "login.microsoftonline.com" {
        if case.is_sign_in() {
            return case.reply();
        }
        let tenant = asked.path.split('/').nth(1).unwrap();
        let body = serde_json::json!({"token_type": "Bearer", "expires_in": 3599, "access_token": token(OUR_APP, tenant, "https://vault.azure.net")});
        return Reply::json(200, &body);
    }
    let resource = format!("https://{}", asked.host.split_once('.').unwrap().1);
    if asked.header("authorization").is_none() {
        let challenge = format!("Bearer authorization=\"https://login.windows.net/{}\", resource=\"{resource}\"", azure_wire::THEIR_TENANT);
        return Reply::json(401, &serde_json::json!({"error": {"code": "Unauthorized", "message": "no token"}}))
            .with("WWW-Authenticate", &challenge);
    }
    match (case.operation.as_str(), asked.path.as_str()) {
        ("getDeletedKey", path) if !path.starts_with("/deletedkeys/") => {
            Reply::json(404, &serde_json::json!({"error": {"code": "KeyNotFound", "message": "A key was not found in this key vault."}}))
        }
        (_, path) if path.ends_with("/versions") => Reply::json(200, &serde_json::json!({"value": [], "nextLink": null})),
        _ => case.reply(),
    }
}

/// The case's answer as kind (`healthy` if good) and `stated`.
async fn play(case: &Case) -> (String, bool, CallMeta) {
    let served = case.clone();
    let names = ["*.vault.azure.net", "*.managedhsm.azure.net", "login.microsoftonline.com"];
    let server: Server = https::https(&names, handler(move |asked| answer(&served, &asked))).await;
    let on_metadata = case.clone();
    let metadata = https::http(handler(move |_| on_metadata.reply())).await;
    let hole = if case.or_transport_failure.as_deref() == Some("timeout") { Some(black_hole().await) } else { None };
    let dark = hole.as_ref().map_or_else(closed_port, |hole| hole.addr);

    let mut names = TestNames { all: Some(server.addr), ..TestNames::default() };
    let metadata_ip: IpAddr = METADATA.parse().unwrap();
    names.reached.push((metadata_ip, if hole.is_some() { dark } else { metadata.addr }));
    if !case.is_sign_in() {
        let told = case.client_error.as_deref().unwrap_or_default();
        match case.or_transport_failure.as_deref() {
            None => {}
            Some("dns") if told.contains("no such host") => names.vault = Some(Err(NameFault::Nonexistent)),
            Some("dns") => names.vault = Some(Err(NameFault::Unknown)),
            Some("connect_refused" | "timeout") => {
                // The address that the report tells, else a public one.
                let ip: IpAddr = told.split(['(', ')']).nth(1).and_then(|ip| ip.parse().ok()).unwrap_or([20, 50, 1, 1].into());
                names.vault = Some(Ok(ip));
                names.reached.push((ip, dark));
            }
            Some(other) => panic!("{}: no way to fail with {other}", case.id),
        }
    }
    let identity = if case.operation.starts_with("imds:") { AzureIdentity::ManagedIdentity { client: None } } else { client_secret() };
    let root = Root::new(&server.ca_pem);
    let patience = if hole.is_some() { Span(600) } else { Span::from_secs(10) };
    let kms = azure(&root, identity, names, patience);
    let mut target = key(&format!("https://{}/keys/ws-key", case.host()));
    target.tenant = case.operation.strip_prefix("login.microsoftonline.com/").and_then(|rest| rest.split('/').next()).map(str::to_owned);

    let (error, meta): (Option<KmsError>, CallMeta) = match case.operation.as_str() {
        "getKey" | "getDeletedKey" => {
            let answer = kms.describe_key(&target).await;
            (answer.result.map_or_else(Some, |facts| facts.fault), answer.meta)
        }
        "wrapKey" | "encrypt" => {
            let answer = kms.wrap_key(&target).await;
            (answer.result.err(), answer.meta)
        }
        _ => {
            let canary = Wrapped {
                bytes: Arc::from([7u8; 256].as_slice()),
                digest: [0; 32],
                version: Some(KeyVersion::new("0123456789abcdef0123456789abcdef")),
                sealed_with: "alg=RSA-OAEP-256".into(),
            };
            let answer = kms.unwrap_key(&target, &canary).await;
            (answer.result.err(), answer.meta)
        }
    };
    error.map_or_else(|| ("healthy".to_owned(), false, meta.clone()), |error| (error.kind.to_string(), error.stated, meta.clone()))
}

#[tokio::test]
async fn every_azure_answer_is_judged_rightly_through_the_real_client() {
    let (mut wrong, mut table) = (Vec::new(), BTreeMap::<String, (usize, usize)>::new());
    let cases = cases();
    for case in &cases {
        let (kind, stated, meta) = play(case).await;
        let right = if case.kind == "ambiguous" { !stated } else { kind == case.kind && stated == case.stated };
        let row = table.entry(case.kind.clone()).or_default();
        *row = (row.0 + usize::from(right), row.1 + 1);
        if !right {
            wrong.push(format!("{}: {kind} stated={stated}, expected {} stated={}", case.id, case.kind, case.stated));
        }
        let told = case.headers.get("x-ms-request-id").map(String::as_str);
        if !case.is_sign_in() && told.is_some() && meta.request_id.as_deref() != told {
            wrong.push(format!("{}: request id {:?}, the answer has {told:?}", case.id, meta.request_id));
        }
    }
    println!("{:<24}{:>6} of", "azure", "right");
    for (kind, (right, all)) in &table {
        println!("{kind:<24}{right:>6} {all:>2}");
    }
    let right: usize = table.values().map(|row| row.0).sum();
    println!("{:<24}{right:>6} {:>2}", "together", cases.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!((right, cases.len()), (53, 53));
}
