//! Leases: given while open and refused else, checked by an independent library from our key set,
//! and the client's closed end.

use std::sync::Arc;
use std::time::Duration;

use cmek_watchdog::client::{Answer, Client, Ruling, Settings};
use cmek_watchdog::clock;
use cmek_watchdog::http::Limits;
use cmek_watchdog::http::serve::serve_tcp;
use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::published::Published;
use cmek_watchdog::snapshot::Change;
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, FeatureClass, Role};

use crate::doors::{House, config, publish, token, workspace};

#[tokio::test]
async fn a_lease_is_given_while_open_and_refused_otherwise() {
    let mut house = House::new(config());
    let given = house.get("/v1/workspaces/wrkspc_open/lease").await;
    assert_eq!((given.status.as_u16(), given.header("cache-control")), (200, Some("no-store")), "{}", given.text);
    assert_eq!((&given.json()["access"], &given.json()["expires_in_ms"]), (&"open".into(), &900_000.into()));
    house.get("/v1/workspaces/wrkspc_demo/lease").await.problem(403, "cmek_key_disabled");
    house.get("/v1/workspaces/wrkspc_half/lease").await.problem(403, "cmek_key_disabled");
    house.get("/v1/workspaces/wrkspc_none/lease").await.problem(404, "unknown_workspace");
    house.app.published.apply(vec![Change::Fresh(clock::now().mono.minus(Span::from_mins(61)))]);
    house.get("/v1/workspaces/wrkspc_open/lease").await.problem(503, "stale");
    house.app.published = Published::default();
    house.get("/v1/workspaces/wrkspc_open/lease").await.problem(503, "starting");
    for (result, count) in [("given", 1.0), ("refused", 3.0), ("unavailable", 2.0)] {
        assert_eq!(house.metric(&format!("cmek_leases_total{{result=\"{result}\"}}")), Some(count), "{result}");
    }
}

#[tokio::test]
async fn the_key_set_is_open_and_leases_are_not() {
    let mut config = config();
    config.server.tokens = vec![token("gateway", Role::Read, "hunter2")];
    let house = House::new(config);
    let keys = house.get("/.well-known/jwks.json").await;
    assert_eq!((keys.status.as_u16(), keys.header("content-type")), (200, Some("application/jwk-set+json")));
    assert_eq!(keys.json()["keys"][0]["crv"], "Ed25519");
    assert_eq!(keys.json()["keys"][0].as_object().unwrap().len(), 6, "nothing private in it");
    house.get("/v1/workspaces/wrkspc_open/lease").await.problem(401, "unauthorized");
    house.get("/v1/stream").await.problem(401, "unauthorized");
}

/// Reads the key set and a lease as any service would: kid, signature, expiry, issuer.
const PYTHON: &str = r"
import json, sys, jwt
given = json.load(sys.stdin)
keys = jwt.PyJWKSet.from_dict(given['keys'])
token = given['lease']
key = keys[jwt.get_unverified_header(token)['kid']]
claims = jwt.decode(token, key.key, algorithms=['EdDSA'], issuer='cmek-watchdog', options={'require': ['exp', 'iat', 'sub', 'jti']})
head, body, signature = token.split('.')
try:
    other = ('B' if signature[0] == 'A' else 'A') + signature[1:]
    jwt.decode(head + '.' + body + '.' + other, key.key, algorithms=['EdDSA'])
    sys.exit('a wrong signature was taken')
except jwt.InvalidSignatureError:
    pass
print(json.dumps(claims))
";

#[tokio::test]
async fn an_independent_library_takes_the_lease_with_our_key_set() {
    let house = House::new(config());
    let lease = house.get("/v1/workspaces/wrkspc_open/lease").await.json()["lease"].clone();
    let keys = house.get("/.well-known/jwks.json").await.json();
    let venv = std::env::var_os("CMEK_TEST_VENV")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), std::path::PathBuf::from);
    let mut child = std::process::Command::new(venv.join("bin/python"))
        .args(["-c", PYTHON])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a Python with PyJWT: run tests/run, which makes it, or set CMEK_TEST_VENV");
    let given = serde_json::json!({ "lease": lease, "keys": keys });
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), given.to_string().as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    let claims: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&claims["sub"], &claims["access"], &claims["sequence"]), (&"wrkspc_open".into(), &"open".into(), &7.into()));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 900);
}

#[tokio::test]
async fn a_leased_handle_is_open_while_the_lease_runs_and_closed_at_its_end() {
    let house = House::new(config());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(serve_tcp(listener, None, house.app.clone(), Limits::default(), std::future::pending()));
    let client = Client::start(Settings::new(address.parse().unwrap()), None).unwrap();
    client.loaded().await;
    let id = |text: &str| WorkspaceId::new(text).unwrap();
    let (open, shut) = (client.leased(&id("wrkspc_open")), client.leased(&id("wrkspc_demo")));
    let since = std::time::Instant::now();
    while open.check() != Answer::Open {
        assert!(since.elapsed() < Duration::from_secs(20), "no lease came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let now = clock::now().mono;
    assert_eq!(shut.check_at(now), Answer::Locked);
    let rule = |at| open.rule_at(FeatureClass::Content, true, at);
    assert_eq!(rule(now.plus(Span::from_mins(14))), Ruling::Allowed, "without a word of the stream");
    assert_eq!(rule(now.plus(Span::from_mins(16))), Ruling::CannotTell, "closed at the end of the lease");
    assert_eq!(open.rule_at(FeatureClass::SafetyMetadata, true, now.plus(Span::from_mins(16))), Ruling::Allowed);
    publish(&house.app.published);
    house.app.published.apply(vec![Change::Workspace(Arc::new(workspace("wrkspc_open", Access::Locked)))]);
    drop(open);
    let again = client.leased(&id("wrkspc_open"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!again.runs_at(clock::now().mono), "no lease for a locked workspace");
    serving.abort();
}
