//! inside
//! Bodies that hints and queue messages come in, read into events: EventBridge, CloudTrail files and
//! records, SNS and Pub/Sub envelopes, Event Grid with its validation. Bounded in depth and number;
//! it never fetches what a body points to.

use serde_json::Value;

use super::record::{self, text};
use super::{Actor, AuditEvent, Hint, clip, names, subject};
use crate::words::ProviderKind;

/// Envelopes within envelopes.
const DEPTH: usize = 4;
/// Events of one body.
const EVENTS_MAX: usize = 256;

/// Why a body could not be read. The text never repeats it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadHint {
    #[error("the body is not JSON")]
    NotJson,
    #[error("the body has no form that is known: EventBridge, CloudTrail, SNS, Pub/Sub push, Event Grid or a log entry")]
    Unknown,
    #[error("more than {EVENTS_MAX} events in one body")]
    TooMany,
    #[error("the data of the Pub/Sub message is not base64")]
    Base64,
}

/// Reads one body.
///
/// # Errors
/// If it is not JSON, or of no form that is known.
pub fn read(body: &[u8]) -> Result<Hint, BadHint> {
    let value: Value = serde_json::from_slice(body).map_err(|_| BadHint::NotJson)?;
    read_value(&value)
}

/// As [`read`], from a value.
///
/// # Errors
/// If it is of no form that is known.
pub fn read_value(value: &Value) -> Result<Hint, BadHint> {
    if let Some(code) = validation(value) {
        return Ok(Hint::Validation(code));
    }
    let mut events = Vec::new();
    gather(value, DEPTH, &mut events)?;
    Ok(Hint::Events(events))
}

/// The code that Event Grid wants back.
fn validation(value: &Value) -> Option<String> {
    let items = value.as_array()?;
    let asked = |item: &&Value| {
        text(item, &["eventType"]).is_some_and(|t| t.eq_ignore_ascii_case("Microsoft.EventGrid.SubscriptionValidationEvent"))
    };
    let event = items.iter().find(asked)?;
    text(event, &["data.validationCode"]).map(|code| clip(code, 512))
}

fn gather(value: &Value, depth: usize, events: &mut Vec<AuditEvent>) -> Result<(), BadHint> {
    let Some(depth) = depth.checked_sub(1) else { return Err(BadHint::Unknown) };
    if let Some(items) = value.as_array() {
        if items.len() > EVENTS_MAX {
            return Err(BadHint::TooMany);
        }
        return items.iter().try_for_each(|item| gather(item, depth, events));
    }
    if let Some(found) = single(value) {
        events.extend(found);
        return if events.len() > EVENTS_MAX { Err(BadHint::TooMany) } else { Ok(()) };
    }
    if let Some(records) = value.get("Records").or_else(|| value.get("records")) {
        return gather(records, depth, events);
    }
    // SNS: the message is a text with JSON in it. Its own subscription talk is no event.
    if let Some(kind) = text(value, &["Type"]).filter(|_| value.get("Message").is_some()) {
        if kind != "Notification" {
            return Ok(());
        }
        return gather_text(text(value, &["Message"]).unwrap_or(""), depth, events);
    }
    if let Some(message) = value.get("message").filter(|m| m.get("data").is_some() || m.get("messageId").is_some()) {
        let bytes = base64(text(message, &["data"]).unwrap_or("")).ok_or(BadHint::Base64)?;
        let inner: Value = serde_json::from_slice(&bytes).map_err(|_| BadHint::NotJson)?;
        return gather(&inner, depth, events);
    }
    Err(BadHint::Unknown)
}

fn gather_text(message: &str, depth: usize, events: &mut Vec<AuditEvent>) -> Result<(), BadHint> {
    let inner: Value = serde_json::from_str(message).map_err(|_| BadHint::NotJson)?;
    gather(&inner, depth, events)
}

/// A value that is itself an event, of whichever provider. `Some(None)`: its form is known, and it
/// says nothing that can be used.
fn single(value: &Value) -> Option<Option<AuditEvent>> {
    if value.get("detail-type").is_some() && value.get("detail").is_some() {
        return Some(event_bridge(value));
    }
    if value.get("eventSource").is_some() && value.get("eventName").is_some() {
        return Some(record::cloudtrail(value));
    }
    if value.get("protoPayload").is_some() && value.get("logName").is_some() {
        return Some(record::cloud_logging(value));
    }
    if (value.get("eventType").is_some() && value.get("data").is_some() && value.get("subject").is_some())
        || (value.get("specversion").is_some() && value.get("type").is_some())
    {
        return Some(event_grid(value));
    }
    let category = text(value, &["category"]).unwrap_or("");
    if category == "AuditEvent" && value.get("operationName").is_some() {
        return Some(record::key_vault(value));
    }
    if value.get("eventTimestamp").is_some() && value.get("operationName").is_some() {
        return Some(record::activity(value));
    }
    None
}

/// An EventBridge event: a CloudTrail record inside, or one of KMS's own.
fn event_bridge(value: &Value) -> Option<AuditEvent> {
    let detail = value.get("detail")?;
    if detail.get("eventName").is_some() {
        return record::cloudtrail(detail);
    }
    let (region, account) = (text(value, &["region"]).unwrap_or(""), text(value, &["account"]).unwrap_or(""));
    let listed = value.get("resources").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let mut subjects: Vec<String> = listed.take(8).filter_map(subject::aws_arn).collect();
    subjects.extend(text(detail, &["key-id"]).and_then(|id| subject::aws_named(id, region, account)));
    subjects.sort();
    subjects.dedup();
    let name = clip(text(value, &["detail-type"])?, 128);
    Some(AuditEvent {
        id: clip(text(value, &["id"])?, 128),
        provider: ProviderKind::Aws,
        meaning: names::meaning(ProviderKind::Aws, &name),
        name,
        subjects,
        version: text(detail, &["current-key-material-id"]).map(|v| clip(v, 128)),
        actor: Actor { principal: text(value, &["source"]).map(|s| clip(s, 128)), ..Actor::default() },
        at: text(value, &["time"])?.parse().ok()?,
        error: None,
    })
}

/// An event of Event Grid, in its own schema or as a CloudEvent: Key Vault's own, or the resource
/// manager's about a vault.
fn event_grid(value: &Value) -> Option<AuditEvent> {
    let name = clip(text(value, &["eventType", "type"])?, 128);
    let data = value.get("data")?;
    let at = text(value, &["eventTime", "time"])?.parse().ok()?;
    let id = clip(text(value, &["id"])?, 128);
    if let Some(operation) = text(data, &["operationName"]) {
        let resource = text(data, &["resourceUri"]).unwrap_or("");
        let failed = name.ends_with("Failure") || name.ends_with("Cancel");
        return Some(AuditEvent {
            id,
            provider: ProviderKind::Azure,
            meaning: names::meaning(ProviderKind::Azure, operation),
            name: clip(operation, 128),
            subjects: subject::azure_resource(resource).into_iter().collect(),
            version: None,
            actor: record::azure_caller(data),
            at,
            error: failed.then(|| name.clone()),
        });
    }
    let vault = text(data, &["VaultName", "vaultName"]).map(subject::azure_vault);
    let vault = vault.or_else(|| text(value, &["topic", "source"]).and_then(subject::azure_resource));
    let is_key = text(data, &["ObjectType", "objectType"]).is_none_or(|kind| kind.eq_ignore_ascii_case("key"));
    let key = text(data, &["ObjectName", "objectName"]).filter(|_| is_key);
    let named = vault.map(|vault| match key {
        Some(key) => format!("{vault}/keys/{}", key.to_ascii_lowercase()),
        None => vault,
    });
    Some(AuditEvent {
        id,
        provider: ProviderKind::Azure,
        meaning: names::meaning(ProviderKind::Azure, &name),
        name,
        subjects: named.into_iter().collect(),
        version: text(data, &["Version", "version"]).map(|v| clip(v, 64)),
        actor: Actor::default(),
        at,
        error: None,
    })
}

/// Base64 in either alphabet, with or without padding. `None` if it is none.
#[must_use]
pub fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let (mut held, mut bits) = (0u32, 0u32);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace()) {
        let six = match c {
            b'A'..=b'Z' => c.saturating_sub(b'A'),
            b'a'..=b'z' => c.saturating_sub(b'a').saturating_add(26),
            b'0'..=b'9' => c.saturating_sub(b'0').saturating_add(52),
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => continue,
            _ => return None,
        };
        held = (held << 6) | u32::from(six);
        bits = bits.saturating_add(6);
        if bits >= 8 {
            bits = bits.saturating_sub(8);
            out.push(u8::try_from((held >> bits) & 0xff).unwrap_or(0));
            held &= (1u32 << bits).saturating_sub(1);
        }
    }
    Some(out)
}
