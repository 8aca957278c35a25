//! inside
//! One record of a provider's own log, read into an event: CloudTrail records, Google log entries, Key
//! Vault audit rows, activity-log events. Total: a record that does not fit gives nothing, and no
//! field is longer than its bound.

use serde_json::Value;

use super::{Actor, AuditEvent, clip, is_opaque, names, subject};
use crate::time::Wall;
use crate::words::{AuditMeaning, ProviderKind};

/// Subjects that one event may name.
const SUBJECTS_MAX: usize = 16;

/// The first of these paths (`a.b.c`) that holds a text that is not empty.
pub(super) fn text<'v>(value: &'v Value, paths: &[&str]) -> Option<&'v str> {
    paths.iter().find_map(|path| {
        let found = path.split('.').try_fold(value, |at, part| at.get(part))?;
        found.as_str().filter(|text| !text.is_empty())
    })
}

fn short(value: &Value, paths: &[&str], most: usize) -> Option<String> {
    text(value, paths).map(|text| clip(text, most)).filter(|text| !text.is_empty())
}

fn time(value: &Value, paths: &[&str]) -> Option<Wall> {
    paths.iter().find_map(|path| text(value, &[path])?.parse().ok())
}

fn list(value: &Value, name: &str) -> Vec<Value> {
    value.get(name).and_then(Value::as_array).map(|items| items.iter().take(SUBJECTS_MAX).cloned().collect()).unwrap_or_default()
}

fn tidy(mut subjects: Vec<String>) -> Vec<String> {
    subjects.sort();
    subjects.dedup();
    subjects.truncate(SUBJECTS_MAX);
    subjects
}

/// A CloudTrail record: the body of `CloudTrailEvent`, the `detail` of an EventBridge event, or one of `Records`.
#[must_use]
pub fn cloudtrail(record: &Value) -> Option<AuditEvent> {
    let id = short(record, &["eventID"], 128)?;
    let name = short(record, &["eventName"], 128)?;
    let at = time(record, &["eventTime"])?;
    let region = text(record, &["awsRegion"]).unwrap_or("");
    let resources = list(record, "resources");
    let owner = resources.iter().find_map(|r| text(r, &["accountId"]));
    let account = owner.or_else(|| text(record, &["recipientAccountId", "userIdentity.accountId"])).unwrap_or("");
    let mut subjects: Vec<String> = resources.iter().filter_map(|r| text(r, &["ARN"])).filter_map(subject::aws_arn).collect();
    let named = [
        "requestParameters.keyId",
        // Emulators write the request's own spelling.
        "requestParameters.KeyId",
        "requestParameters.targetKeyId",
        "requestParameters.aliasName",
        "requestParameters.aliasArn",
        "requestParameters.resourceId",
        "responseElements.keyId",
        "responseElements.keyArn",
        "serviceEventDetails.keyId",
    ];
    subjects.extend(named.iter().filter_map(|path| text(record, &[path])).filter_map(|text| subject::aws_named(text, region, account)));
    let kms = text(record, &["eventSource"]) == Some("kms.amazonaws.com");
    let meaning = if kms { names::meaning(ProviderKind::Aws, &name) } else { AuditMeaning::Other };
    let version = ["serviceEventDetails.currentKeyMaterialId", "additionalEventData.keyMaterialId", "requestParameters.keyMaterialId"];
    Some(AuditEvent {
        id,
        provider: ProviderKind::Aws,
        name,
        meaning,
        subjects: tidy(subjects),
        version: short(record, &version, 128),
        actor: aws_actor(record),
        at,
        error: short(record, &["errorCode"], 128),
    })
}

fn aws_actor(record: &Value) -> Actor {
    let id = short(record, &["userIdentity.principalId"], 256).map(|id| id.split(':').next().unwrap_or("").to_owned());
    let principal = short(record, &["userIdentity.arn", "userIdentity.invokedBy", "userIdentity.userName"], 512);
    let principal = principal.or_else(|| id.clone().filter(|id| !is_opaque(id)));
    Actor {
        principal,
        id: id.filter(|id| !id.is_empty()),
        kind: short(record, &["userIdentity.type"], 64),
        address: short(record, &["sourceIPAddress"], 128),
        user_agent: short(record, &["userAgent"], 256),
    }
}

/// A Cloud Audit log entry, in the JSON of Cloud Logging.
#[must_use]
pub fn cloud_logging(entry: &Value) -> Option<AuditEvent> {
    let payload = entry.get("protoPayload").or_else(|| entry.get("jsonPayload"))?;
    let full = short(payload, &["methodName"], 128)?;
    let id = short(entry, &["insertId"], 128)?;
    let at = time(entry, &["timestamp", "receiveTimestamp"])?;
    let project = text(entry, &["resource.labels.project_id"]);
    let found = text(payload, &["resourceName"]).and_then(|name| subject::gcp_named(name, project));
    let (named, mut version) = found.map_or((None, None), |(name, version)| (Some(name), version));
    version = version.or_else(|| short(payload, &["request.cryptoKeyVersionId", "request.crypto_key_version_id"], 64));
    let mut meaning = names::meaning(ProviderKind::Gcp, &full);
    if meaning == AuditMeaning::Update {
        let state = ["request.cryptoKeyVersion.state", "request.crypto_key_version.state", "request.state"];
        meaning = match text(payload, &state) {
            Some("DISABLED") => AuditMeaning::VersionDisable,
            Some("ENABLED") => AuditMeaning::VersionEnable,
            Some(_) | None => AuditMeaning::Update,
        };
    }
    // Looking through a project's policy is no change of it.
    let code = payload.get("status").and_then(|status| status.get("code")).and_then(Value::as_i64).filter(|code| *code != 0);
    Some(AuditEvent {
        id,
        provider: ProviderKind::Gcp,
        name: full,
        meaning,
        subjects: named.into_iter().collect(),
        version,
        actor: Actor {
            principal: short(payload, &["authenticationInfo.principalEmail"], 512),
            id: short(payload, &["authenticationInfo.principalSubject"], 512),
            kind: short(payload, &["authenticationInfo.principalSubject"], 512).map(|s| s.split(':').next().unwrap_or("").to_owned()),
            address: short(payload, &["requestMetadata.callerIp"], 128),
            user_agent: short(payload, &["requestMetadata.callerSuppliedUserAgent"], 256),
        },
        at,
        error: code.map(|code| format!("code {code}")),
    })
}

/// A text, or JSON written into a text, as Log Analytics gives dynamic columns.
fn inner(row: &Value, name: &str) -> Value {
    match row.get(name) {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or(Value::Null),
        Some(other) => other.clone(),
        None => Value::Null,
    }
}

/// A row of `AZKVAuditLogs` or `AzureDiagnostics`, or an `AuditEvent` record of a diagnostic setting.
#[must_use]
pub fn key_vault(row: &Value) -> Option<AuditEvent> {
    let name = short(row, &["OperationName", "operationName"], 128)?;
    let at = time(row, &["TimeGenerated", "time"])?;
    let correlation = short(row, &["CorrelationId", "correlationId"], 64).unwrap_or_default();
    let (identity, details) = (inner(row, "Identity"), inner(row, "KeyProperties"));
    let url = text(row, &["Id", "id_s", "properties.id", "RequestUri", "requestUri_s", "properties.requestUri"]);
    let found = url.and_then(subject::azure_url);
    let whole = text(row, &["_ResourceId", "ResourceId", "resourceId"]).and_then(subject::azure_resource);
    let (named, version) = found.map_or((whole, None), |(name, version)| (Some(name), version));
    let mut meaning = names::meaning(ProviderKind::Azure, &name);
    if meaning == AuditMeaning::Update {
        let enabled = details.pointer("/attributes/enabled").or_else(|| row.pointer("/properties/keyProperties/attributes/enabled"));
        let told = row.get("keyProperties_attributes_enabled_b");
        meaning = match enabled.or(told).and_then(Value::as_bool) {
            Some(false) => AuditMeaning::Disable,
            Some(true) => AuditMeaning::Enable,
            None => AuditMeaning::Update,
        };
    }
    let status = ["HttpStatusCode", "httpStatusCode_d", "httpStatusCode"].iter().find_map(|name| row.get(*name)).and_then(Value::as_f64);
    let failed = status.is_some_and(|status| status >= 400.0) || text(row, &["ResultType", "resultType"]) == Some("Failed");
    let upn = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn";
    let own = identity.get("claim").or_else(|| row.pointer("/identity/claim")).cloned().unwrap_or(Value::Null);
    let principal = own.get(upn).and_then(Value::as_str).map(|text| clip(text, 512));
    let flat = ["identity_claim_http_schemas_xmlsoap_org_ws_2005_05_identity_claims_upn_s", "identity_claim_upn_s"];
    let app = short(&own, &["appid"], 64).or_else(|| short(row, &["identity_claim_appid_g", "identity_claim_appid_s"], 64));
    let oid = text(&own, &["oid"]).map(|text| clip(text, 64));
    Some(AuditEvent {
        id: format!("{correlation}/{name}/{}", at.0),
        provider: ProviderKind::Azure,
        meaning,
        name,
        subjects: named.into_iter().collect(),
        version,
        actor: Actor {
            principal: principal.or_else(|| short(row, &flat, 512)),
            id: oid.or_else(|| short(row, &["identity_claim_oid_g", "identity_claim_oid_s"], 64)).or_else(|| app.clone()),
            kind: app.map(|app| format!("application {app}")),
            address: short(row, &["CallerIpAddress", "CallerIPAddress", "callerIpAddress"], 128),
            user_agent: short(row, &["ClientInfo", "clientInfo_s", "properties.clientInfo"], 256),
        },
        at,
        error: failed.then(|| short(row, &["ResultSignature", "resultSignature"], 128).unwrap_or_else(|| "Failed".to_owned())),
    })
}

/// An event of the activity log (vaults, firewalls, role assignments).
#[must_use]
pub fn activity(event: &Value) -> Option<AuditEvent> {
    let name = short(event, &["operationName.value", "operationName"], 128)?;
    let at = time(event, &["eventTimestamp", "time"])?;
    let status = text(event, &["status.value", "status"]).unwrap_or("Succeeded").to_owned();
    let resource = text(event, &["resourceId", "resourceUri"]).unwrap_or("");
    let mut meaning = names::meaning(ProviderKind::Azure, &name);
    // Begun is not done; the end has an event of its own.
    if ["Started", "Accepted"].contains(&status.as_str()) {
        meaning = AuditMeaning::Use;
    }
    let id = short(event, &["eventDataId", "id"], 256).unwrap_or_else(|| format!("{name}/{}", at.0));
    Some(AuditEvent {
        id,
        provider: ProviderKind::Azure,
        name,
        meaning,
        subjects: subject::azure_resource(resource).into_iter().collect(),
        version: None,
        actor: azure_caller(event),
        at,
        error: (status == "Failed").then(|| short(event, &["subStatus.value"], 128).unwrap_or_else(|| "Failed".to_owned())),
    })
}

pub(super) fn azure_caller(event: &Value) -> Actor {
    let caller = short(event, &["caller"], 512);
    let name = event.get("claims").and_then(|c| c.get("http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn")).and_then(Value::as_str);
    let principal = name.map(|text| clip(text, 512)).or_else(|| caller.clone().filter(|text| !is_opaque(text)));
    let app = short(event, &["claims.appid"], 64);
    Actor {
        principal,
        id: caller.filter(|text| is_opaque(text)).or_else(|| app.clone()),
        kind: app.map(|app| format!("application {app}")),
        address: short(event, &["httpRequest.clientIpAddress", "claims.ipaddr"], 128),
        user_agent: None,
    }
}
