//! inside
//! A record of safety metadata: a closed schema of ids, a pattern, an indicator, a score and times.
//! It must never have room for free text: whoever needs content makes a preservation.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::time::Wall;

/// Number of the schema below; bound into each envelope.
pub const SCHEMA: u32 = 1;
/// Most bytes of a record, as sent and as stored.
pub const RECORD_BYTES: usize = 4096;
/// Most ids in `related`.
pub const RELATED_MAX: usize = 16;
const ID_MAX: usize = 128;
const WORD_MAX: usize = 64;

/// A field that is not as the schema says. Never repeats the value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SchemaFault {
    #[error("{field}: must have 1 to 128 letters, digits or `._:-`")]
    Id { field: &'static str },
    #[error("{field}: must have 1 to 64 lower-case letters, digits or `._-`, a letter first")]
    Word { field: &'static str },
    #[error("score: must be a number from 0 to 1")]
    Score,
    #[error("related: has {found} ids, {RELATED_MAX} at most")]
    Related { found: usize },
    #[error("{later}: lies before {earlier}")]
    Order { earlier: &'static str, later: &'static str },
}

/// Id of a record within its workspace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RecordId(Arc<str>);

impl RecordId {
    /// # Errors
    /// If it is empty, longer than 128 characters, or has another character than letters, digits, `._:-`.
    pub fn new(text: &str) -> Result<Self, SchemaFault> {
        id("record", text).map(|()| Self(text.into()))
    }
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One record. Unknown fields are refused; absent ones are `null`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafetyRecord {
    /// Id of the pattern that matched.
    pub pattern: String,
    /// Which indicator of the pattern: a word of the operator's own closed list.
    pub indicator: String,
    /// From 0 to 1.
    pub score: f64,
    /// When it was seen.
    pub observed_at: Wall,
    pub first_seen_at: Option<Wall>,
    pub last_seen_at: Option<Wall>,
    /// Until when it is of use.
    pub expires_at: Option<Wall>,
    /// Id of who or what it is about.
    pub subject: Option<String>,
    /// Id of the request in which it was seen.
    pub request: Option<String>,
    /// Id of the detector and its version.
    pub detector: Option<String>,
    /// Ids of other records, requests or cases.
    #[serde(default)]
    pub related: Vec<String>,
}

impl SafetyRecord {
    /// # Errors
    /// The first field that is not as the schema says.
    pub fn check(&self) -> Result<(), SchemaFault> {
        id("pattern", &self.pattern)?;
        word("indicator", &self.indicator)?;
        if !(0.0..=1.0).contains(&self.score) {
            return Err(SchemaFault::Score);
        }
        let ids = [("subject", &self.subject), ("request", &self.request), ("detector", &self.detector)];
        for (field, value) in ids {
            value.as_deref().map_or(Ok(()), |text| id(field, text))?;
        }
        if self.related.len() > RELATED_MAX {
            return Err(SchemaFault::Related { found: self.related.len() });
        }
        self.related.iter().try_for_each(|text| id("related", text))?;
        in_order("first_seen_at", self.first_seen_at, "last_seen_at", self.last_seen_at)
    }
}

fn in_order(earlier: &'static str, a: Option<Wall>, later: &'static str, b: Option<Wall>) -> Result<(), SchemaFault> {
    match (a, b) {
        (Some(a), Some(b)) if b < a => Err(SchemaFault::Order { earlier, later }),
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

fn id(field: &'static str, text: &str) -> Result<(), SchemaFault> {
    let fits = (1..=ID_MAX).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c));
    if fits { Ok(()) } else { Err(SchemaFault::Id { field }) }
}

fn word(field: &'static str, text: &str) -> Result<(), SchemaFault> {
    let fits = (1..=WORD_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c));
    if fits { Ok(()) } else { Err(SchemaFault::Word { field }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn good() -> Value {
        json!({
            "pattern": "PAT-0042", "indicator": "credential_stuffing", "score": 0.93, "observed_at": "2026-11-25T10:00:00.000Z",
            "first_seen_at": "2026-11-25T09:00:00.000Z", "last_seen_at": "2026-11-25T10:00:00.000Z", "expires_at": null,
            "subject": "user:17", "request": "req_1", "detector": "det-3.2", "related": ["case:9"],
        })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut record = good();
        record[field] = value;
        record
    }

    #[test]
    fn a_whole_record_and_the_least_one_are_taken() {
        for body in [
            good(),
            json!({ "pattern": "p", "indicator": "i", "score": 0, "observed_at": "2026-11-25T10:00:00Z" }),
            with("score", json!(1)),
        ] {
            serde_json::from_value::<SafetyRecord>(body).unwrap().check().unwrap();
        }
    }

    #[test]
    fn a_field_outside_the_schema_or_of_another_kind_is_refused_by_its_name() {
        for (field, value) in [("note", json!("what the user wrote")), ("content", json!(null)), ("Pattern", json!("x"))] {
            let error = serde_json::from_value::<SafetyRecord>(with(field, value)).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown field `{field}`")), "{error}");
        }
        for field in ["pattern", "indicator", "score", "observed_at"] {
            let mut body = good();
            body.as_object_mut().unwrap().remove(field);
            let error = serde_json::from_value::<SafetyRecord>(body).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        for (field, value) in [("observed_at", json!("yesterday")), ("score", json!("0.5")), ("related", json!("a"))] {
            serde_json::from_value::<SafetyRecord>(with(field, value)).unwrap_err();
        }
    }

    #[test]
    fn free_text_has_no_room_in_any_field_and_the_fault_names_field_but_not_value() {
        let long = "a".repeat(129);
        for (field, value) in [
            ("pattern", json!("what the user wrote")),
            ("pattern", json!("")),
            ("pattern", json!(long)),
            ("indicator", json!("Some words")),
            ("indicator", json!("9lives")),
            ("indicator", json!("a".repeat(65))),
            ("score", json!(1.01)),
            ("score", json!(-0.1)),
            ("subject", json!("a@b")),
            ("request", json!("a b")),
            ("detector", json!("\u{e9}")),
            ("related", json!(vec!["x"; 17])),
            ("related", json!(["ok", "not ok"])),
            ("last_seen_at", json!("2026-11-25T08:59:59.999Z")),
        ] {
            let fault = serde_json::from_value::<SafetyRecord>(with(field, value.clone())).unwrap().check().unwrap_err().to_string();
            assert!(fault.starts_with(&format!("{field}: ")), "{field}: {fault}");
            if let Some(text) = value.as_str().filter(|t| t.len() > 3) {
                assert!(!fault.contains(text), "{fault}");
            }
        }
        assert_eq!(RecordId::new("a/b"), Err(SchemaFault::Id { field: "record" }));
    }

    #[test]
    fn the_largest_record_of_the_schema_fits_its_bound() {
        let id = "i".repeat(128);
        let record = SafetyRecord {
            pattern: id.clone(),
            indicator: "w".repeat(64),
            score: 0.123_456_789_012_345_6,
            observed_at: Wall(1),
            first_seen_at: Some(Wall(1)),
            last_seen_at: Some(Wall(1)),
            expires_at: Some(Wall(1)),
            subject: Some(id.clone()),
            request: Some(id.clone()),
            detector: Some(id.clone()),
            related: vec![id; RELATED_MAX],
        };
        record.check().unwrap();
        assert!(serde_json::to_vec(&record).unwrap().len() <= RECORD_BYTES);
    }
}
