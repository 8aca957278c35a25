//! `POST /v1/hints/{source}`: who may speak, what is read, what is answered.

use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cmek_watchdog::audit::Mask;
use cmek_watchdog::clock;
use cmek_watchdog::config::{AuditKind, Config, PushAuth, SecretRef};
use cmek_watchdog::operate::{Action, Refusal, RefusalSlug};
use cmek_watchdog::words::Role;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::support::{House, Told, config, obey, token};
use crate::{bridge, https, source};

const ARN: &str = "arn:aws:kms:us-east-2:444455556666:key/k";

fn secret(text: &str) -> (tempfile::NamedTempFile, SecretRef) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let reference = SecretRef::File(file.path().to_string_lossy().into_owned());
    (file, reference)
}

fn with(auth: Option<PushAuth>) -> Config {
    let mut settings = config();
    let mut push = source("bus", AuditKind::Push, "local");
    push.auth = auth;
    settings.audit = vec![push, source("trail", AuditKind::CloudTrail, "local")];
    settings.server.tokens = vec![
        token("bridge", Role::Hint, "hint-token"),
        token("oncall", Role::Operate, "operate-token"),
        token("r", Role::Read, "read-token"),
    ];
    settings
}

async fn post(house: &House, to: &str, headers: &[(&str, &str)], body: &str) -> Told {
    let mut request = Request::post(format!("/v1/hints/{to}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    house.send(request.body(Body::from(body.to_owned())).unwrap()).await
}

#[tokio::test]
async fn a_token_of_role_hint_opens_the_door_and_no_other_token_does() {
    let house = House::new(with(None)).obeying();
    let body = bridge("e", "DisableKey", ARN).to_string();
    let told = post(&house, "bus", &[("authorization", "Bearer hint-token")], &body).await;
    assert_eq!((told.status.as_u16(), told.json()), (200, json!({"events": 1, "keys": 1})));
    for (header, status) in [("Bearer operate-token", 403), ("Bearer read-token", 403), ("Bearer other", 401), ("Basic aGk=", 401)] {
        assert_eq!(post(&house, "bus", &[("authorization", header)], &body).await.status.as_u16(), status, "{header}");
    }
    post(&house, "bus", &[], &body).await.problem(401, "unauthorized");
    post(&house, "nobody", &[("authorization", "Bearer hint-token")], &body).await.problem(404, "unknown_source");
    post(&house, "trail", &[("authorization", "Bearer hint-token")], &body).await.problem(404, "unknown_source");
    assert_eq!(house.asked.lock().unwrap().len(), 1, "nothing reached the core but the one");
    assert_eq!(house.metric("cmek_hints_total{outcome=\"refused\",source=\"bus\"}"), Some(5.0));
    assert_eq!(house.metric("cmek_hints_total{outcome=\"accepted\",source=\"bus\"}"), Some(1.0));
    assert_eq!(house.metric("cmek_audit_events_total{meaning=\"disable\",source=\"bus\"}"), Some(1.0));
}

#[tokio::test]
async fn a_sender_with_a_key_of_its_own_needs_exactly_that_key_in_its_header() {
    for (name, make) in [("x-api-key", PushAuth::ApiKey as fn(SecretRef) -> PushAuth), ("aeg-sas-key", PushAuth::SasKey)] {
        let (file, reference) = secret("hunter2hunter2");
        let house = House::new(with(Some(make(reference)))).obeying();
        let body = bridge("e", "DisableKey", ARN).to_string();
        assert_eq!(post(&house, "bus", &[(name, "hunter2hunter2")], &body).await.status, 200);
        for wrong in ["hunter2hunter", "hunter2hunter22", "", "HUNTER2HUNTER2"] {
            let told = post(&house, "bus", &[(name, wrong)], &body).await;
            told.problem(401, "unauthorized");
            assert!(!told.text.contains("hunter2"), "{}", told.text);
        }
        post(&house, "bus", &[("authorization", "Bearer hint-token")], &body).await.problem(401, "unauthorized");
        // A changed key works at once, an empty or missing one never.
        std::fs::write(file.path(), "another-key").unwrap();
        assert_eq!(post(&house, "bus", &[(name, "another-key")], &body).await.status, 200);
        std::fs::remove_file(file.path()).unwrap();
        post(&house, "bus", &[(name, "another-key")], &body).await.problem(503, "misconfigured");
    }
}

#[tokio::test]
async fn event_grids_validation_is_answered_with_its_code_and_nothing_is_fetched() {
    let (_file, reference) = secret("grid-key");
    let house = House::new(with(Some(PushAuth::SasKey(reference)))).obeying();
    let fetched = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&fetched);
    let server = https::http(https::handler(move |_| {
        flag.store(true, std::sync::atomic::Ordering::SeqCst);
        https::Reply::json(200, &json!({}))
    }))
    .await;
    let body = json!([{"id": "1", "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "subject": "", "eventTime": "2026-11-25T08:00:00Z",
        "data": {"validationCode": "512d38b6", "validationUrl": format!("http://{}/validate", server.addr)}}]);
    let told = post(&house, "bus", &[("aeg-sas-key", "grid-key")], &body.to_string()).await;
    assert_eq!((told.status.as_u16(), told.json()), (200, json!({"validationResponse": "512d38b6"})));
    post(&house, "bus", &[("aeg-sas-key", "other")], &body.to_string()).await.problem(401, "unauthorized");
    assert!(!fetched.load(std::sync::atomic::Ordering::SeqCst) && house.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn bodies_that_cannot_be_used_are_counted_and_refused() {
    let mut house = House::new(with(None)).obeying();
    house.limits.hint_bytes = 4096;
    let ours = [("authorization", "Bearer hint-token")];
    post(&house, "bus", &ours, "{").await.problem(422, "bad_hint");
    post(&house, "bus", &ours, "{\"a\":1}").await.problem(422, "bad_hint");
    post(&house, "bus", &ours, &"x".repeat(5000)).await.problem(413, "body_too_large");
    assert_eq!(house.metric("cmek_hints_total{outcome=\"malformed\",source=\"bus\"}"), Some(2.0));
    assert!(house.asked.lock().unwrap().is_empty());
    // Of no registered key: counted, and good.
    let told = post(&house, "bus", &ours, "{\"Records\":[]}").await;
    assert_eq!((told.status.as_u16(), told.json()), (200, json!({"events": 0, "keys": 0})));
    assert_eq!(house.metric("cmek_hints_total{outcome=\"unmatched\",source=\"bus\"}"), Some(1.0));
}

#[tokio::test]
async fn a_core_that_cannot_take_it_makes_the_sender_come_again() {
    let ours = [("authorization", "Bearer hint-token")];
    let body = bridge("e", "DisableKey", ARN).to_string();
    let refusing = House::new(with(None)).answering(|action| match action {
        Action::Audit { .. } => Err(Refusal { slug: RefusalSlug::StoreUnavailable, detail: "not yet".into() }),
        other => obey(other),
    });
    post(&refusing, "bus", &ours, &body).await.problem(503, "store_unavailable");
    let slow = House::new(with(None));
    assert_eq!(post(&slow, "bus", &ours, &body).await.status, 202, "taken, and on its way");
    let mut gone = House::new(with(None));
    gone.orders = None;
    post(&gone, "bus", &ours, &body).await.problem(503, "busy");
}

#[tokio::test]
async fn masked_fields_never_reach_the_core() {
    let mut settings = with(None);
    settings.audit[0].mask = vec![Mask::Actor, Mask::Address, Mask::UserAgent];
    let house = House::new(settings).obeying();
    post(&house, "bus", &[("authorization", "Bearer hint-token")], &bridge("e", "DisableKey", ARN).to_string()).await;
    let asked = format!("{:?}", house.asked.lock().unwrap());
    assert!(asked.contains("(masked)"), "{asked}");
    for personal in ["alice", "203.0.113.9", "aws-cli"] {
        assert!(!asked.contains(personal), "{personal}: {asked}");
    }
}

/// An issuer of tokens, its published keys served.
struct Issuer {
    key: EncodingKey,
    server: https::Server,
}

impl Issuer {
    async fn start() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let point = pair.public_key_raw().to_vec();
        let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "k1", "alg": "ES256", "use": "sig", "x": part(&point[1..33]), "y": part(&point[33..65])});
        let server = https::http(https::handler(move |_| https::Reply::json(200, &json!({"keys": [jwk]})))).await;
        Self { key: EncodingKey::from_ec_der(&pair.serialize_der()), server }
    }
    fn sign(&self, kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.key).unwrap()
    }
}

#[tokio::test]
async fn a_pubsub_token_is_good_only_from_its_issuer_for_our_audience_by_the_one_sender_and_in_time() {
    let (issuer, stranger) = (Issuer::start().await, Issuer::start().await);
    let auth = PushAuth::Oidc {
        audience: "cmek-watchdog".into(),
        issuer: "https://accounts.google.com".into(),
        jwks: format!("http://{}/certs", issuer.server.addr),
        subject: "push@acme.iam.gserviceaccount.com".into(),
    };
    let house = House::new(with(Some(auth))).obeying();
    let now = clock::now().wall.0 / 1000;
    let claims = |more: Value| {
        let mut claims = json!({"iss": "https://accounts.google.com", "aud": "cmek-watchdog", "exp": now + 600, "sub": "1",
            "email": "push@acme.iam.gserviceaccount.com", "email_verified": true});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let entry = json!({"insertId": "i", "logName": "projects/p/logs/x", "timestamp": "2026-11-25T08:00:00Z", "protoPayload": {"methodName": "Decrypt"}});
    let body =
        json!({"message": {"data": base64::prelude::BASE64_STANDARD.encode(entry.to_string()), "messageId": "1"}, "subscription": "s"})
            .to_string();
    let send = async |token: String| post(&house, "bus", &[("authorization", &format!("Bearer {token}"))], &body).await;
    assert_eq!(send(issuer.sign("k1", &claims(json!({})))).await.status, 200);
    for (what, token) in [
        ("another audience", issuer.sign("k1", &claims(json!({"aud": "other"})))),
        ("another issuer", issuer.sign("k1", &claims(json!({"iss": "https://evil.example"})))),
        ("another sender", issuer.sign("k1", &claims(json!({"email": "other@acme.iam.gserviceaccount.com"})))),
        ("a mail that is not verified", issuer.sign("k1", &claims(json!({"email_verified": false})))),
        ("too old", issuer.sign("k1", &claims(json!({"exp": now - 600})))),
        ("an unknown key", issuer.sign("k2", &claims(json!({})))),
        ("a stranger's signature", stranger.sign("k1", &claims(json!({})))),
        ("no token at all", "x.y.z".to_owned()),
        (
            "an unsigned one",
            format!(
                "{}.{}.",
                BASE64_URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"),
                BASE64_URL_SAFE_NO_PAD.encode(claims(json!({})).to_string())
            ),
        ),
    ] {
        let told = send(token).await;
        assert_eq!(told.status, 401, "{what}");
    }
    post(&house, "bus", &[], &body).await.problem(401, "unauthorized");
    assert_eq!(house.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_reached_lets_nobody_in() {
    let issuer = Issuer::start().await;
    let auth = PushAuth::Oidc { audience: "a".into(), issuer: "i".into(), jwks: "http://127.0.0.1:1/certs".into(), subject: "s".into() };
    let house = House::new(with(Some(auth))).obeying();
    let token = issuer.sign("k1", &json!({"iss": "i", "aud": "a", "azp": "s", "exp": 4_000_000_000_i64}));
    post(&house, "bus", &[("authorization", &format!("Bearer {token}"))], "{}").await.problem(401, "unauthorized");
}
