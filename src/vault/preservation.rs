//! inside
//! A preservation: content or copies of records kept for a stated reason, in a named person's charge.
//! The only door for content, and never without both.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::record::SafetyRecord;
use crate::time::Wall;

/// Most records that one preservation copies.
pub const COPIES_MAX: usize = 64;
/// Most bytes of content.
pub const CONTENT_BYTES: usize = 32 * 1024;
const PERSON_MAX: usize = 128;

/// Why something is kept: a closed list, also what the activity event says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    LegalHold,
    ChildSafety,
    Terrorism,
    Fraud,
    SecurityIncident,
    SelfHarm,
    LawEnforcement,
    PolicyAppeal,
}

impl ReasonCode {
    pub const ALL: &'static [Self] = &[
        Self::LegalHold,
        Self::ChildSafety,
        Self::Terrorism,
        Self::Fraud,
        Self::SecurityIncident,
        Self::SelfHarm,
        Self::LawEnforcement,
        Self::PolicyAppeal,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LegalHold => "legal_hold",
            Self::ChildSafety => "child_safety",
            Self::Terrorism => "terrorism",
            Self::Fraud => "fraud",
            Self::SecurityIncident => "security_incident",
            Self::SelfHarm => "self_harm",
            Self::LawEnforcement => "law_enforcement",
            Self::PolicyAppeal => "policy_appeal",
        }
    }
}

/// What a caller asks to keep.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    pub reason_code: ReasonCode,
    /// Who answers for it: a name or an address.
    pub person: String,
    /// Ids of records to copy as they are now.
    #[serde(default)]
    pub records: Vec<String>,
    pub content: Option<String>,
}

// Content is nobody's business in a log.
impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("reason_code", &self.reason_code).field("records", &self.records).finish_non_exhaustive()
    }
}

/// A request that cannot be kept as asked. Never repeats content.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PreservationFault {
    #[error("person: must have 1 to {PERSON_MAX} characters and no control characters")]
    Person,
    #[error("records: has {found} ids, {COPIES_MAX} at most")]
    Records { found: usize },
    #[error("content: has {found} bytes, {CONTENT_BYTES} at most")]
    Content { found: usize },
    #[error("records and content: one of them must say what is kept")]
    Nothing,
}

impl Asked {
    /// # Errors
    /// The first thing that is missing or too large.
    pub fn check(&self) -> Result<(), PreservationFault> {
        let person = self.person.trim();
        if person.is_empty() || person.chars().count() > PERSON_MAX || person.chars().any(char::is_control) {
            return Err(PreservationFault::Person);
        }
        if self.records.len() > COPIES_MAX {
            return Err(PreservationFault::Records { found: self.records.len() });
        }
        let found = self.content.as_deref().map_or(0, str::len);
        if found > CONTENT_BYTES {
            return Err(PreservationFault::Content { found });
        }
        if found == 0 && self.records.is_empty() {
            return Err(PreservationFault::Nothing);
        }
        Ok(())
    }
}

/// A record as it was when it was kept.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Copy {
    pub record: Arc<str>,
    pub revision: u64,
    pub written_at: Wall,
    pub data: SafetyRecord,
}

/// What is sealed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Preserved {
    pub reason_code: ReasonCode,
    pub person: Arc<str>,
    pub records: Vec<Copy>,
    pub content: Option<String>,
}

impl std::fmt::Debug for Preserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preserved").field("reason_code", &self.reason_code).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(body: serde_json::Value) -> Result<Asked, String> {
        serde_json::from_value(body).map_err(|e| e.to_string())
    }

    #[test]
    fn each_reason_code_is_its_own_word_and_another_is_refused_with_the_list() {
        for code in ReasonCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
        let error = asked(json!({ "reason_code": "curiosity", "person": "A. Ward" })).unwrap_err();
        assert!(error.contains("legal_hold") && error.contains("policy_appeal"), "{error}");
    }

    #[test]
    fn without_person_or_content_or_within_no_bound_nothing_is_kept() {
        let base = |person: &str, records: usize, content: Option<String>| Asked {
            reason_code: ReasonCode::Fraud,
            person: person.to_owned(),
            records: vec!["r".to_owned(); records],
            content,
        };
        assert_eq!(base("A. Ward", 1, None).check(), Ok(()));
        assert_eq!(base("A. Ward", 64, Some("x".repeat(CONTENT_BYTES))).check(), Ok(()));
        for (asked, fault) in [
            (base(" ", 1, None), PreservationFault::Person),
            (base("a\nb", 1, None), PreservationFault::Person),
            (base(&"a".repeat(129), 1, None), PreservationFault::Person),
            (base("A", 65, None), PreservationFault::Records { found: 65 }),
            (base("A", 0, None), PreservationFault::Nothing),
            (base("A", 0, Some(String::new())), PreservationFault::Nothing),
            (base("A", 0, Some("x".repeat(CONTENT_BYTES + 1))), PreservationFault::Content { found: CONTENT_BYTES + 1 }),
        ] {
            assert_eq!(asked.check(), Err(fault));
        }
    }

    #[test]
    fn content_shows_in_no_debug_text() {
        let asked = asked(json!({ "reason_code": "fraud", "person": "A", "content": "hush" })).unwrap();
        let kept = Preserved { reason_code: ReasonCode::Fraud, person: "A".into(), records: vec![], content: Some("hush".into()) };
        assert!(!format!("{asked:?} {kept:?}").contains("hush"));
    }
}
