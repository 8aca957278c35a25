//! What the AWS adapter puts on the wire and what it makes of odd answers: marks, regions, roles,
//! bounds, and that nothing secret comes back out of it.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/wire.rs"]
mod wire;

use std::sync::Arc;

use aws_sdk_kms::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};
use cmek_watchdog::config::{Provider, ProviderDetail};
use cmek_watchdog::key::{AssumeRole, KeyRef, KeyTarget, KeyVersion, ProviderId, WrapOperation};
use cmek_watchdog::kms::aws::client::new_http;
use cmek_watchdog::kms::aws::{AwsKms, AwsSetupError, ExternalIds};
use cmek_watchdog::kms::{Kms, KmsError, Wrapped};
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::words::{FailureKind, ProviderKind};
use wire::{Ask, Reply, Wire};

const KEY: &str = "arn:aws:kms:eu-west-3:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ALIAS: &str = "arn:aws:kms:eu-west-3:444455556666:alias/prod";
const THEIR_ROLE: &str = "arn:aws:iam::444455556666:role/cmek-probe";
const OUR_ROLE: &str = "arn:aws:iam::111122223333:role/watchdog";
const EXTERNAL_ID: &str = "eXternal-1d-v4lue";

fn provider(endpoint: Option<String>, assume_role: Option<AssumeRole>) -> Provider {
    Provider {
        id: ProviderId::new("aws").unwrap(),
        detail: ProviderDetail::Aws {
            region: "us-east-1".to_owned(),
            endpoint,
            assume_role,
            our_accounts: vec!["111122223333".to_owned()],
        },
        control_key: None,
        calls_per_second: 50,
    }
}

fn base() -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Credentials::new("AKIDBASE", "base-secret", None, None, "test"))
}

fn ids() -> ExternalIds {
    let mut ids = ExternalIds::default();
    ids.insert("env:ACME", EXTERNAL_ID);
    ids
}

async fn adapter(server: &Wire, role: Option<AssumeRole>) -> AwsKms {
    AwsKms::with_credentials(&provider(Some(server.url()), role), Span::from_secs(10), ids(), base(), new_http()).await.unwrap()
}

fn key(text: &str) -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Aws, text).unwrap())
}

fn canary(sealed_with: &str) -> Wrapped {
    Wrapped { bytes: Arc::from([7u8; 64].as_slice()), digest: [0; 32], version: None, sealed_with: sealed_with.into() }
}

fn role(arn: &str, external_id: Option<&str>) -> AssumeRole {
    AssumeRole { arn: arn.to_owned(), external_id: external_id.map(str::to_owned) }
}

/// A KMS and STS on which everything works.
fn works(ask: &Ask) -> Reply {
    match ask.operation().as_str() {
        "Encrypt" => Reply::json(200, r#"{"KeyId":"k","CiphertextBlob":"AAECAwQFBgc="}"#),
        "GenerateDataKey" => Reply::json(200, r#"{"KeyId":"k","CiphertextBlob":"AAECAwQFBgc=","Plaintext":"AAAA","KeyMaterialId":"m1"}"#),
        "Decrypt" => Reply::json(200, r#"{"KeyId":"k","Plaintext":"AAAA","KeyMaterialId":"m2"}"#),
        "DescribeKey" => {
            let asked = ask.json()["KeyId"].as_str().unwrap().to_owned();
            let arn = if asked == ALIAS { KEY.replace("1234abcd", "ffffffff") } else { asked };
            Reply::json(
                200,
                &format!(
                    r#"{{"KeyMetadata":{{"KeyId":"k","Arn":"{arn}","Enabled":true,"KeyState":"Enabled","CreationDate":1700000000.5,"ValidTo":1800000000.0,"Origin":"EXTERNAL","MultiRegion":true,"CurrentKeyMaterialId":"m2"}}}}"#
                ),
            )
        }
        "AssumeRole" => Reply::xml(
            200,
            &format!(
                r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials><AccessKeyId>ASIA{}</AccessKeyId><SecretAccessKey>role-secret</SecretAccessKey><SessionToken>session-token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"#,
                if ask.form("RoleArn").unwrap() == OUR_ROLE { "OURS" } else { "THEIRS" }
            ),
        ),
        "GetCallerIdentity" => Reply::xml(
            200,
            r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:sts::111122223333:assumed-role/watchdog/i-0123</Arn><UserId>u</UserId><Account>111122223333</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"#,
        ),
        other => panic!("not asked for: {other}"),
    }
}

async fn unwrap_error(kms: &AwsKms, key: &KeyTarget) -> KmsError {
    kms.unwrap_key(key, &canary("{}")).await.result.unwrap_err()
}

#[tokio::test]
async fn every_call_is_marked_as_ours_and_goes_to_the_keys_own_region() {
    let server = Wire::serve(works).await;
    let kms = adapter(&server, None).await;
    let wrapped = kms.wrap_key(&key(KEY)).await.result.unwrap();
    kms.unwrap_key(&key(KEY), &wrapped).await.result.unwrap();
    let asked = server.asked();
    for ask in &asked {
        assert_eq!(ask.json()["EncryptionContext"], serde_json::json!({"purpose": "cmek-watchdog-probe"}));
        assert_eq!(ask.json()["KeyId"], KEY, "the key id is pinned");
        assert_eq!((ask.scope(2).as_str(), ask.scope(3).as_str()), ("eu-west-3", "kms"));
        assert!(ask.headers["x-amz-user-agent"].contains("app/cmek-watchdog"), "{:?}", ask.headers);
    }
    assert_eq!(asked.iter().map(Ask::operation).collect::<Vec<_>>(), ["Encrypt", "Decrypt"]);
    let plain = asked[0].json()["Plaintext"].as_str().unwrap().to_owned();
    assert_eq!(plain.len(), 44, "32 random bytes in base64");
}

#[tokio::test]
async fn a_key_with_its_own_context_keeps_it_as_it_stands_and_old_canaries_keep_theirs() {
    let server = Wire::serve(works).await;
    let kms = adapter(&server, None).await;
    let mut mine = key(KEY);
    mine.encryption_context.insert("tenant".to_owned(), "acme".to_owned());
    let wrapped = kms.wrap_key(&mine).await.result.unwrap();
    kms.unwrap_key(&key(KEY), &wrapped).await.result.unwrap();
    kms.unwrap_key(&mine, &canary(r#"{"purpose":"older"}"#)).await.result.unwrap();
    let contexts: Vec<_> = server.asked().iter().map(|a| a.json()["EncryptionContext"].clone()).collect();
    assert_eq!(
        contexts,
        [serde_json::json!({"tenant": "acme"}), serde_json::json!({"tenant": "acme"}), serde_json::json!({"purpose": "older"})]
    );
}

#[tokio::test]
async fn a_data_key_names_its_material_and_encrypt_does_not() {
    let server = Wire::serve(works).await;
    let kms = adapter(&server, None).await;
    let mut target = key(KEY);
    assert_eq!(kms.wrap_key(&target).await.result.unwrap().version, None);
    target.wrap_operation = WrapOperation::GenerateDataKey;
    let wrapped = kms.wrap_key(&target).await.result.unwrap();
    assert_eq!(wrapped.version, Some(KeyVersion::new("m1")));
    let opened = kms.unwrap_key(&target, &wrapped).await.result.unwrap();
    assert_eq!((opened.version, opened.digest), (Some(KeyVersion::new("m2")), wrapped.digest));
    assert_eq!(server.asked()[1].json()["KeySpec"], "AES_256");
}

#[tokio::test]
async fn describe_tells_the_facts_of_the_pinned_key_and_where_its_alias_points_now() {
    let server = Wire::serve(works).await;
    let kms = adapter(&server, None).await;
    let facts = kms.describe_key(&key(KEY)).await.result.unwrap();
    assert_eq!(facts.resolved.as_deref(), Some(KEY));
    assert_eq!((facts.created_at, facts.expires_at), (Some(Wall(1_700_000_000_500)), Some(Wall(1_800_000_000_000))));
    assert_eq!((facts.origin.as_deref(), facts.multi_region), (Some("EXTERNAL"), Some(true)));
    assert_eq!((facts.current_version, facts.fault), (Some(KeyVersion::new("m2")), None));
    let mut alias = key(ALIAS);
    alias.pinned = Some(KEY.into());
    let facts = kms.describe_key(&alias).await.result.unwrap();
    assert_eq!(facts.resolved.as_deref(), Some(KEY.replace("1234abcd", "ffffffff").as_str()), "the alias has moved");
    let asked: Vec<_> = server.asked().iter().map(|a| a.json()["KeyId"].as_str().unwrap().to_owned()).collect();
    assert_eq!(asked, [KEY, KEY, ALIAS]);
}

#[tokio::test]
async fn a_good_and_a_refused_answer_tell_request_id_and_the_providers_clock() {
    let server = Wire::serve(|ask| {
        let (status, body) = if ask.operation() == "Decrypt" {
            (400, r#"{"__type":"DisabledException","message":"off"}"#)
        } else {
            (200, r#"{"KeyId":"k","CiphertextBlob":"AAEC"}"#)
        };
        let Reply::Answer { status, mut headers, body } = Reply::json(status, body) else { unreachable!() };
        headers.push(("Date".to_owned(), "Thu, 01 Jan 2026 00:00:00 GMT".to_owned()));
        Reply::Answer { status, headers, body }
    })
    .await;
    let kms = adapter(&server, None).await;
    let good = kms.wrap_key(&key(KEY)).await;
    let bad = kms.unwrap_key(&key(KEY), &canary("{}")).await;
    assert!(good.result.is_ok() && bad.result.is_err());
    for meta in [good.meta, bad.meta] {
        assert_eq!(meta.request_id.as_deref(), Some("00000000-0000-4000-8000-0000000000aa"));
        assert_eq!(meta.provider_time, Some(Wall(1_767_225_600_000)));
    }
}

#[tokio::test]
async fn who_we_are_has_no_session_name() {
    let server = Wire::serve(works).await;
    let kms = adapter(&server, None).await;
    assert_eq!(&*kms.whoami(&key(KEY)).await.result.unwrap(), "arn:aws:sts::111122223333:assumed-role/watchdog");
}

#[tokio::test]
async fn the_providers_role_takes_on_the_keys_role_and_each_is_taken_on_once_for_all_regions() {
    let server = Wire::serve(works).await;
    let kms = adapter(&server, Some(role(OUR_ROLE, None))).await;
    let plain = key(KEY);
    let mut theirs = key(KEY);
    theirs.assume_role = Some(role(THEIR_ROLE, Some("env:ACME")));
    let mut elsewhere = key(&KEY.replace("eu-west-3", "ap-south-1"));
    elsewhere.assume_role.clone_from(&theirs.assume_role);
    for target in [&plain, &theirs, &elsewhere, &theirs] {
        kms.wrap_key(target).await.result.unwrap();
    }
    let asked = server.asked();
    let roles: Vec<_> = asked.iter().filter(|a| a.operation() == "AssumeRole").collect();
    assert_eq!(roles.len(), 2, "one call per role");
    assert_eq!((roles[0].form("RoleArn").unwrap().as_str(), roles[0].scope(0).as_str()), (OUR_ROLE, "AKIDBASE"));
    assert_eq!((roles[1].form("RoleArn").unwrap().as_str(), roles[1].scope(0).as_str()), (THEIR_ROLE, "ASIAOURS"));
    assert_eq!(roles[1].form("ExternalId").as_deref(), Some(EXTERNAL_ID));
    assert_eq!(roles[1].form("DurationSeconds").as_deref(), Some("900"));
    assert_eq!(roles[1].form("RoleSessionName").as_deref(), Some("cmek-watchdog"));
    let data: Vec<_> = asked.iter().filter(|a| a.operation() == "Encrypt").map(|a| format!("{} {}", a.scope(0), a.scope(2))).collect();
    assert_eq!(data, ["ASIAOURS eu-west-3", "ASIATHEIRS eu-west-3", "ASIATHEIRS ap-south-1", "ASIATHEIRS eu-west-3"]);
}

fn refuse_roles(message: String) -> impl Fn(&Ask) -> Reply {
    move |ask| match ask.operation().as_str() {
        "AssumeRole" => Reply::xml(
            403,
            &format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>{message}</Message></Error></ErrorResponse>"
            ),
        ),
        _ => works(ask),
    }
}

#[tokio::test]
async fn a_customer_who_withdraws_his_roles_trust_has_denied_us_and_our_own_role_is_our_trouble() {
    for (arn, kind) in [(THEIR_ROLE, FailureKind::AccessDenied), (OUR_ROLE, FailureKind::Credentials)] {
        let server = Wire::serve(refuse_roles(format!(
            "User: arn:aws:iam::111122223333:user/w is not authorized to perform: sts:AssumeRole on resource: {arn}"
        )))
        .await;
        let kms = adapter(&server, None).await;
        let mut target = key(KEY);
        target.assume_role = Some(role(arn, Some("env:ACME")));
        let error = unwrap_error(&kms, &target).await;
        assert_eq!((error.kind, error.stated, &*error.code), (kind, false, "AccessDenied"), "{error:?}");
    }
}

#[tokio::test]
async fn an_external_id_is_never_shown_and_one_that_is_not_resolved_is_not_sent() {
    let server = Wire::serve(refuse_roles(format!("1 validation error detected: Value '{EXTERNAL_ID}' at 'externalId' is bad"))).await;
    let kms = adapter(&server, None).await;
    let mut target = key(KEY);
    target.assume_role = Some(role(THEIR_ROLE, Some("env:ACME")));
    let error = unwrap_error(&kms, &target).await;
    assert!(error.message.contains("(external id)"), "{error:?}");
    assert!(!format!("{error:?} {kms:?}").contains(EXTERNAL_ID));
    for secret in ["base-secret", "session-token"] {
        assert!(!format!("{kms:?}").contains(secret));
    }
    target.assume_role = Some(role(THEIR_ROLE, Some("env:OTHER")));
    let before = server.asked().len();
    assert_eq!(unwrap_error(&kms, &target).await.kind, FailureKind::Credentials);
    assert_eq!(server.asked().len(), before, "nothing was sent");
}

#[tokio::test]
async fn a_bad_provider_is_refused_with_the_field_named() {
    let setup =
        async |provider: Provider| AwsKms::with_credentials(&provider, Span::from_secs(1), ids(), base(), new_http()).await.unwrap_err();
    let unresolved = setup(provider(None, Some(role(OUR_ROLE, Some("env:NONE"))))).await;
    assert_eq!(unresolved.to_string(), format!("provider aws: external id `env:NONE` of role {OUR_ROLE} is not resolved"));
    let mut bad = provider(None, None);
    if let ProviderDetail::Aws { region, .. } = &mut bad.detail {
        *region = "us-west-2\u{a0}".to_owned();
    }
    assert!(matches!(setup(bad).await, AwsSetupError::Region { .. }));
    let local = Provider { detail: ProviderDetail::Local { path: "x".to_owned() }, ..provider(None, None) };
    assert!(matches!(setup(local).await, AwsSetupError::NotAws { .. }));
}

#[tokio::test]
async fn a_key_of_another_cloud_or_a_broken_canary_row_is_misconfigured_and_sends_nothing() {
    let server = Wire::serve(works).await;
    let kms = adapter(&server, None).await;
    let local = KeyTarget::plain(KeyRef::parse(ProviderKind::Local, "demo").unwrap());
    assert_eq!(kms.wrap_key(&local).await.result.unwrap_err().kind, FailureKind::Misconfigured);
    assert_eq!(kms.unwrap_key(&key(KEY), &canary("rubbish")).await.result.unwrap_err().kind, FailureKind::Misconfigured);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_success_that_cannot_be_read_proves_nothing() {
    for body in ["<html>welcome</html>", "{}", r#"{"KeyId":"k"}"#, r#"{"CiphertextBlob":"AQICAHgAAAAAexampleciphertext=="}"#, "[1", ""] {
        let server = Wire::serve(move |_| Reply::json(200, body)).await;
        let kms = adapter(&server, None).await;
        for error in [
            kms.wrap_key(&key(KEY)).await.result.unwrap_err(),
            unwrap_error(&kms, &key(KEY)).await,
            kms.describe_key(&key(KEY)).await.result.unwrap_err(),
        ] {
            assert_eq!((error.kind, error.stated), (FailureKind::Unclassified, false), "{body}: {error:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_in_the_name_of_another_key_is_not_taken() {
    let other = KEY.replace("1234abcd", "ffffffff");
    let body = format!(r#"{{"KeyId":"{other}","CiphertextBlob":"AAEC","Plaintext":"AAAA"}}"#);
    let server = Wire::serve(move |_| Reply::json(200, &body)).await;
    let kms = adapter(&server, None).await;
    let mut data_key = key(KEY);
    data_key.wrap_operation = WrapOperation::GenerateDataKey;
    for error in [
        kms.wrap_key(&key(KEY)).await.result.unwrap_err(),
        kms.wrap_key(&data_key).await.result.unwrap_err(),
        unwrap_error(&kms, &key(KEY)).await,
    ] {
        assert_eq!((error.kind, error.stated, &*error.code), (FailureKind::Misconfigured, false, "other_key"));
    }
    // An alias that is not pinned yet may answer in the name of whatever it points to.
    assert!(kms.wrap_key(&key(ALIAS)).await.result.is_ok());
}

#[tokio::test]
async fn a_broken_off_or_oversized_answer_is_no_answer() {
    let server = Wire::serve(|_| Reply::BrokenOff).await;
    let error = unwrap_error(&adapter(&server, None).await, &key(KEY)).await;
    assert_eq!(error.kind, FailureKind::Unreachable, "{error:?}");
    let server = Wire::serve(|_| Reply::json(400, &"x".repeat(3_000_000))).await;
    let error = unwrap_error(&adapter(&server, None).await, &key(KEY)).await;
    assert_eq!((error.kind, error.stated), (FailureKind::Unreachable, false), "{error:?}");
}

#[tokio::test]
async fn a_fault_is_asked_about_once_and_never_retried() {
    for status in [429, 500, 503] {
        let server = Wire::serve(move |_| Reply::json(status, r#"{"__type":"ThrottlingException"}"#)).await;
        unwrap_error(&adapter(&server, None).await, &key(KEY)).await;
        assert_eq!(server.asked().len(), 1);
    }
}

/// Credentials that never come.
#[derive(Debug)]
struct Hung;
impl ProvideCredentials for Hung {
    fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        aws_credential_types::provider::future::ProvideCredentials::new(std::future::pending())
    }
}

#[tokio::test]
async fn a_hung_metadata_service_is_seen_as_lost_credentials_and_no_credentials_too() {
    let server = Wire::serve(works).await;
    let hung = SharedCredentialsProvider::new(Hung);
    let kms = AwsKms::with_credentials(&provider(Some(server.url()), None), Span(500), ids(), hung, new_http()).await.unwrap();
    let error = unwrap_error(&kms, &key(KEY)).await;
    assert_eq!((error.kind, &*error.code), (FailureKind::Credentials, "identity"), "{error:?}");
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_broken_tls_handshake_is_unreachable_and_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Some(format!("https://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let plain = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, plain).await.unwrap();
        std::future::pending::<()>().await;
    });
    let kms = AwsKms::with_credentials(&provider(endpoint, None), Span::from_secs(10), ids(), base(), new_http()).await.unwrap();
    let error = unwrap_error(&kms, &key(KEY)).await;
    assert_eq!((error.kind, &*error.code), (FailureKind::Unreachable, "tls"), "{error:?}");
}

#[tokio::test]
async fn an_unreachable_sts_is_unreachable_and_no_refusal() {
    let server = Wire::serve(|ask| if ask.operation() == "AssumeRole" { Reply::Reset } else { works(ask) }).await;
    let kms = adapter(&server, Some(role(OUR_ROLE, None))).await;
    let error = unwrap_error(&kms, &key(KEY)).await;
    assert_eq!(error.kind, FailureKind::Unreachable, "{error:?}");
}

/// Runs itself once more with the SDK's own variables set; a variable cannot be set safely in here.
#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_of_its_own_a_provider_has_those_and_the_endpoints_of_the_sdks_variables() {
    const CHILD: &str = "CMEK_TEST_CHILD_OF_WIRE_AWS";
    const NAME: &str = "without_credentials_of_its_own_a_provider_has_those_and_the_endpoints_of_the_sdks_variables";
    if std::env::var_os(CHILD).is_some() {
        let kms = AwsKms::new(&provider(None, None), Span::from_secs(10), ids()).await.unwrap();
        kms.wrap_key(&key(KEY)).await.result.unwrap();
        kms.whoami(&key(KEY)).await.result.unwrap();
        return;
    }
    let (kms, sts) = (Wire::serve(works).await, Wire::serve(works).await);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", NAME]).env(CHILD, "1").env("AWS_EC2_METADATA_DISABLED", "true");
    child.env("AWS_ACCESS_KEY_ID", "AKIDFROMENV").env("AWS_SECRET_ACCESS_KEY", "s");
    child.env("AWS_CONFIG_FILE", "/nonexistent").env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
    child.env("AWS_ENDPOINT_URL_KMS", kms.url()).env("AWS_ENDPOINT_URL_STS", sts.url());
    let ended = tokio::task::spawn_blocking(move || child.output()).await.unwrap().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let seen = |server: &Wire| server.asked().iter().map(|a| format!("{} {}", a.operation(), a.scope(0))).collect::<Vec<_>>();
    assert_eq!((seen(&kms), seen(&sts)), (vec!["Encrypt AKIDFROMENV".to_owned()], vec!["GetCallerIdentity AKIDFROMENV".to_owned()]));
}
