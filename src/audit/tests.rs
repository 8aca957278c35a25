use super::attribution::{Asks, Question, Trail};
use super::hint::{BadHint, base64, read};
use super::*;
use crate::key::KeyRef;
use crate::words::EventType;
use proptest::prelude::*;
use serde_json::json;

fn events(body: &serde_json::Value) -> Vec<AuditEvent> {
    match read(body.to_string().as_bytes()) {
        Ok(Hint::Events(events)) => events,
        other => panic!("{other:?}"),
    }
}

fn cloudtrail_record(name: &str, key: &str) -> serde_json::Value {
    json!({
        "eventVersion": "1.11", "eventID": "e-1", "eventSource": "kms.amazonaws.com", "eventName": name,
        "eventTime": "2026-11-25T08:00:00Z", "awsRegion": "us-east-2", "sourceIPAddress": "203.0.113.9", "userAgent": "aws-cli/2.31",
        "recipientAccountId": "444455556666", "requestParameters": {"keyId": key},
        "userIdentity": {"type": "IAMUser", "principalId": "AIDAEXAMPLEEXAMPLEAA", "arn": "arn:aws:iam::444455556666:user/alice"},
    })
}

#[test]
fn every_way_to_name_an_aws_key_meets_the_registered_one() {
    let id = "1234abcd-12ab-34cd-56ef-1234567890ab";
    let arn = format!("arn:aws:kms:us-east-2:444455556666:key/{id}");
    let alias = "arn:aws:kms:us-east-2:444455556666:alias/acme";
    let key = KeyRef::parse(ProviderKind::Aws, &arn).unwrap();
    let by_alias = KeyRef::parse(ProviderKind::Aws, alias).unwrap();
    for named in [arn.as_str(), id] {
        let event = &events(&cloudtrail_record("DisableKey", named))[0];
        assert!(subject::of_key(&key, None).iter().any(|s| event.subjects.contains(s)), "{named}: {:?}", event.subjects);
        assert!(subject::of_key(&by_alias, Some(&arn)).iter().any(|s| event.subjects.contains(s)), "the key behind an alias");
        assert_eq!(event.meaning, AuditMeaning::Disable);
    }
    let event = &events(&cloudtrail_record("UpdateAlias", "alias/acme"))[0];
    assert!(subject::of_key(&by_alias, None).iter().any(|s| event.subjects.contains(s)));
    let elsewhere = KeyRef::parse(ProviderKind::Aws, &arn.replace("444455556666", "777788889999")).unwrap();
    let event = &events(&cloudtrail_record("DisableKey", id))[0];
    assert!(!subject::of_key(&elsewhere, None).iter().any(|s| event.subjects.contains(s)), "the same id in another account is another key");
}

#[test]
fn the_same_event_has_one_id_by_whichever_envelope_it_comes() {
    let record = cloudtrail_record("DisableKey", "k");
    let bridge = json!({"version": "0", "id": "b", "detail-type": "AWS API Call via CloudTrail", "source": "aws.kms", "detail": record});
    let sns = json!({"Type": "Notification", "MessageId": "m", "Message": bridge.to_string()});
    for body in [record.clone(), bridge, sns, json!({"Records": [record]})] {
        let found = events(&body);
        assert_eq!((found.len(), found[0].id.as_str()), (1, "e-1"), "{body}");
        assert_eq!(found[0].actor.principal.as_deref(), Some("arn:aws:iam::444455556666:user/alice"));
        assert_eq!(found[0].actor.address.as_deref(), Some("203.0.113.9"));
    }
    let subscribe = json!({"Type": "SubscriptionConfirmation", "Message": "x", "SubscribeURL": "https://example.com"});
    assert!(events(&subscribe).is_empty(), "an SNS subscription is nothing that is fetched");
}

#[test]
fn kms_events_of_its_own_are_read_from_event_bridge() {
    let body = json!({
        "version": "0", "id": "6a7e", "detail-type": "KMS CMK Rotation", "source": "aws.kms", "account": "111122223333",
        "time": "2026-05-23T03:11:54Z", "region": "us-west-2", "resources": ["arn:aws:kms:us-west-2:111122223333:key/k"],
        "detail": {"key-id": "k", "current-key-material-id": "96083e"}
    });
    let event = &events(&body)[0];
    assert_eq!((event.meaning, event.version.as_deref()), (AuditMeaning::Rotation, Some("96083e")));
    assert_eq!(event.subjects, ["aws:us-west-2:111122223333:key/k"]);
}

#[test]
fn a_pushed_google_entry_names_version_state_and_caller() {
    let entry = json!({
        "insertId": "i-1", "logName": "projects/acme/logs/cloudaudit.googleapis.com%2Factivity", "timestamp": "2026-11-25T08:00:00.123456789Z",
        "resource": {"type": "cloudkms_cryptokeyversion", "labels": {"project_id": "acme"}},
        "protoPayload": {
            "methodName": "UpdateCryptoKeyVersion", "serviceName": "cloudkms.googleapis.com",
            "resourceName": "projects/123456/locations/eu/keyRings/r/cryptoKeys/k/cryptoKeyVersions/3",
            "authenticationInfo": {"principalEmail": "bob@example.com"}, "requestMetadata": {"callerIp": "198.51.100.7"},
            "request": {"cryptoKeyVersion": {"state": "DISABLED"}},
        },
    });
    let data = entry.to_string();
    let coded = encode(data.as_bytes());
    let body = json!({"message": {"data": coded, "messageId": "1"}, "subscription": "s"});
    let event = &events(&body)[0];
    assert_eq!((event.meaning, event.version.as_deref()), (AuditMeaning::VersionDisable, Some("3")));
    let key = KeyRef::parse(ProviderKind::Gcp, "projects/acme/locations/eu/keyRings/r/cryptoKeys/k").unwrap();
    assert!(subject::of_key(&key, None).contains(&event.subjects[0]), "the label's project takes the place of the number");
    assert_eq!(event.at.0 % 1000, 123);
}

fn encode(bytes: &[u8]) -> String {
    const TABLE: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let six = (n >> (18 - 6 * i)) & 63;
            out.push(if i <= chunk.len() { TABLE[six as usize] as char } else { '=' });
        }
    }
    out
}

#[test]
fn azure_rows_activity_and_grid_events_meet_the_same_key() {
    let key = KeyRef::parse(ProviderKind::Azure, "https://Acme-KV.vault.azure.net/keys/Ws-Key").unwrap();
    let names = subject::of_key(&key, None);
    let row = json!({
        "TimeGenerated": "2026-11-25T08:00:00.1234567Z", "OperationName": "KeyUpdate", "HttpStatusCode": 200, "CorrelationId": "c",
        "CallerIpAddress": "192.0.2.1", "Id": "https://acme-kv.vault.azure.net/keys/ws-key/0123456789abcdef0123456789abcdef",
        "Identity": "{\"claim\":{\"appid\":\"a\",\"oid\":\"o\",\"http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn\":\"eve@example.com\"}}",
        "KeyProperties": "{\"attributes\":{\"enabled\":false}}", "category": "AuditEvent",
    });
    let event = record::key_vault(&row).unwrap();
    assert_eq!((event.meaning, event.actor.principal.as_deref()), (AuditMeaning::Disable, Some("eve@example.com")));
    assert!(names.contains(&event.subjects[0]), "{:?}", event.subjects);
    let resource = "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/acme-kv";
    let activity = json!({
        "eventDataId": "d", "eventTimestamp": "2026-11-25T08:00:00Z", "operationName": {"value": "Microsoft.KeyVault/vaults/delete"},
        "status": {"value": "Succeeded"}, "resourceId": resource, "caller": "eve@example.com",
    });
    let event = &events(&activity)[0];
    assert_eq!(event.meaning, AuditMeaning::VaultDeleted);
    assert!(names.contains(&event.subjects[0]));
    let grid = json!([{
        "id": "g", "topic": resource, "subject": "Ws-Key", "eventType": "Microsoft.KeyVault.KeyNewVersionCreated", "eventTime": "2026-11-25T08:00:00Z",
        "data": {"VaultName": "acme-kv", "ObjectType": "Key", "ObjectName": "ws-key", "Version": "v2"}, "dataVersion": "1",
    }]);
    let event = &events(&grid)[0];
    assert_eq!((event.meaning, event.version.as_deref()), (AuditMeaning::Rotation, Some("v2")));
    assert!(names.contains(&event.subjects[0]));
}

#[test]
fn the_validation_of_event_grid_gives_its_code_and_nothing_else() {
    let body = json!([{"id": "1", "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "subject": "", "eventTime": "2026-11-25T08:00:00Z",
        "data": {"validationCode": "512d38b6", "validationUrl": "https://example.com/validate"}}]);
    assert_eq!(read(body.to_string().as_bytes()), Ok(Hint::Validation("512d38b6".to_owned())));
}

#[test]
fn bodies_of_no_known_form_are_refused_each_with_its_reason() {
    let many: Vec<_> = (0..300).map(|_| cloudtrail_record("DisableKey", "k")).collect();
    let deep = (0..6).fold(cloudtrail_record("DisableKey", "k"), |inner, _| json!({"Records": inner}));
    for (body, fault) in [
        ("{", BadHint::NotJson),
        ("{}", BadHint::Unknown),
        ("7", BadHint::Unknown),
        (r#"{"message":{"data":"!!","messageId":"1"}}"#, BadHint::Base64),
        (r#"{"message":{"data":"aGk=","messageId":"1"}}"#, BadHint::NotJson),
        (r#"{"Type":"Notification","Message":"not json"}"#, BadHint::NotJson),
        (&json!(many).to_string(), BadHint::TooMany),
        (&deep.to_string(), BadHint::Unknown),
    ] {
        assert_eq!(read(body.as_bytes()), Err(fault), "{}", &body[..body.len().min(60)]);
    }
}

#[test]
fn unknown_names_are_kept_as_other_and_uses_are_uses() {
    assert_eq!(names::meaning(ProviderKind::Aws, "FrobnicateKey"), AuditMeaning::Other);
    assert_eq!(names::meaning(ProviderKind::Aws, "Decrypt"), AuditMeaning::Use);
    assert_eq!(
        names::meaning(ProviderKind::Gcp, "google.cloud.kms.v1.KeyManagementService.DestroyCryptoKeyVersion"),
        AuditMeaning::VersionDestroy
    );
    assert_eq!(names::meaning(ProviderKind::Gcp, "google.iam.v1.IAMPolicy.SetIamPolicy"), AuditMeaning::PolicyChange);
    assert_eq!(names::meaning(ProviderKind::Azure, "MICROSOFT.KEYVAULT/VAULTS/DELETE"), AuditMeaning::VaultDeleted);
    let other = AuditEvent { name: "FrobnicateKey".into(), ..event("x", AuditMeaning::Other, 0) };
    assert!(other.changes(), "an unknown act is looked at");
}

fn event(id: &str, meaning: AuditMeaning, at: i64) -> AuditEvent {
    AuditEvent {
        id: id.into(),
        provider: ProviderKind::Aws,
        name: meaning.to_string(),
        meaning,
        subjects: vec![],
        version: None,
        actor: Actor { principal: Some("alice".into()), ..Actor::default() },
        at: Wall(at),
        error: None,
    }
}

fn question(kind: FailureKind, seen_at: i64) -> Question {
    Question {
        correlation_id: "ep".into(),
        event: EventType::KeyRevoked,
        asks: Asks::Refusal(kind),
        seen_at: Wall(seen_at),
        version: None,
        found: None,
        told: false,
        settle_until: None,
    }
}

#[test]
fn the_nearest_fitting_event_before_the_first_refused_look_explains() {
    let hour = 3_600_000;
    let mut trail = Trail::default();
    let failed = AuditEvent { error: Some("AccessDenied".into()), ..event("tried", AuditMeaning::Disable, 100 * hour - 1000) };
    for heard in [
        event("long ago", AuditMeaning::Disable, 90 * hour),
        event("before", AuditMeaning::Disable, 99 * hour),
        event("policy", AuditMeaning::PolicyChange, 100 * hour - 5000),
        event("the one", AuditMeaning::Disable, 100 * hour - 9000),
        failed,
        event("after", AuditMeaning::Disable, 101 * hour),
    ] {
        assert!(trail.hear(&heard));
        assert!(!trail.hear(&heard), "heard once");
    }
    let n = trail.ask(question(FailureKind::Disabled, 100 * hour));
    assert_eq!(trail.questions[n].found.as_ref().map(|e| e.id.as_str()), Some("the one"));
    let n = trail.ask(question(FailureKind::AccessDenied, 100 * hour));
    assert_eq!(trail.questions[n].found.as_ref().map(|e| e.id.as_str()), Some("policy"), "the finer kind asks anew");
    let mut waiting = Trail::default();
    waiting.ask(question(FailureKind::Disabled, 100 * hour));
    assert!(waiting.answers(&event("late", AuditMeaning::Disable, 100 * hour - 1)).is_some());
    assert!(waiting.answers(&event("other", AuditMeaning::Rotation, 100 * hour - 1)).is_none());
}

#[test]
fn memory_of_events_is_bounded_and_a_forgotten_one_is_no_news() {
    let mut trail = Trail::default();
    for n in 0..500 {
        assert!(trail.hear(&event(&format!("e{n}"), AuditMeaning::PolicyChange, n)));
    }
    assert!(!trail.hear(&event("e3", AuditMeaning::PolicyChange, 3)), "read again in the overlap");
    assert!(serde_json::to_string(&trail).unwrap().len() < 20_000);
    let mut seen = Seen::default();
    assert!(seen.first("a") && !seen.first("a") && seen.knows("a"));
}

#[test]
fn masked_fields_are_gone_and_opaque_ids_are_known() {
    let mut told = event("x", AuditMeaning::Disable, 0);
    told.actor = Actor {
        principal: Some("alice".into()),
        id: Some("AIDA".into()),
        kind: None,
        address: Some("1.2.3.4".into()),
        user_agent: Some("cli".into()),
    };
    mask(&mut told, &[Mask::Actor, Mask::Address, Mask::UserAgent]);
    assert_eq!(told.actor, Actor { principal: Some("(masked)".into()), ..Actor::default() });
    for id in ["AROAEXAMPLEEXAMPLEAA", "AROAEXAMPLEEXAMPLEAA:session", "0f1e2d3c-0000-4000-8000-0123456789ab", "112233445566778899001"] {
        assert!(is_opaque(id), "{id}");
    }
    for name in ["arn:aws:iam::1:user/a", "a@b.example", "kms.amazonaws.com", "AROA"] {
        assert!(!is_opaque(name), "{name}");
    }
}

proptest! {
    #[test]
    fn no_body_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&body);
        let _ = base64(&String::from_utf8_lossy(&body));
    }

    #[test]
    fn no_json_makes_the_reader_panic(
        fields in proptest::collection::btree_map(
            prop_oneof![
                Just("detail-type"), Just("detail"), Just("eventSource"), Just("eventName"), Just("eventID"), Just("eventTime"), Just("Records"),
                Just("message"), Just("data"), Just("Message"), Just("Type"), Just("protoPayload"), Just("logName"), Just("category"),
                Just("operationName"), Just("resourceId"), Just("specversion"), Just("type"), Just("subject"), Just("eventType"), Just("time"),
            ],
            prop_oneof!["\\PC{0,40}".prop_map(serde_json::Value::from), Just(json!({"data": "e30=", "keyId": "arn:aws:kms"})), Just(json!([])), Just(json!(3)), Just(json!("2026-11-25T08:00:00Z"))],
            0..8,
        )
    ) {
        let map: serde_json::Map<String, serde_json::Value> = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let _ = read(serde_json::Value::Object(map).to_string().as_bytes());
    }

    #[test]
    fn base64_reads_what_was_written(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(base64(&encode(&bytes)), Some(bytes));
    }
}
