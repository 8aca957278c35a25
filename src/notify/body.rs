//! inside
//! The body of the contract (DESIGN section 4): one shape for signed webhooks and the event stream,
//! and which stream event carries it. It must never hold more than a notice may tell.

use serde::{Deserialize, Serialize};

use crate::key::{KeyId, KeyVersion, ProviderId, WorkspaceId};
use crate::notify::Notice;
use crate::notify::compose::one_line;
use crate::time::Wall;
use crate::words::{Access, Cause, Code, EventType, Sequence};

/// What is sent: a webhook's body, the data of a stream event.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Body {
    #[serde(rename = "type")]
    pub event: EventType,
    pub timestamp: Wall,
    pub data: Data,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Data {
    pub sequence: Sequence,
    pub key: Option<KeyId>,
    pub provider: Option<ProviderId>,
    pub workspaces: Vec<WorkspaceId>,
    pub access: Option<Access>,
    pub previous_access: Option<Access>,
    pub cause: Option<Cause>,
    pub code: Option<Code>,
    pub message: String,
    pub version: Option<KeyVersion>,
    pub actor: Option<String>,
    pub since: Option<Wall>,
    /// Of a message for many: every notice that it stands for, in the order in which they happened.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notices: Vec<Part>,
}

/// One of several notices in a body.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Part {
    pub id: String,
    #[serde(flatten)]
    pub body: Body,
}

impl Body {
    #[must_use]
    pub fn of(notice: &Notice) -> Self {
        Self {
            event: notice.event,
            timestamp: notice.timestamp,
            data: Data {
                sequence: notice.sequence,
                key: notice.key.clone(),
                provider: notice.provider.clone(),
                workspaces: notice.workspaces.clone(),
                access: notice.access,
                previous_access: notice.previous_access,
                cause: notice.cause,
                code: notice.code,
                message: message(notice),
                version: notice.version.clone(),
                actor: notice.actor.clone(),
                since: notice.since,
                notices: notice.storm.iter().flat_map(|storm| &storm.members).map(Part::of).collect(),
            },
        }
    }
}

impl Part {
    fn of(member: &std::sync::Arc<Notice>) -> Self {
        Self { id: member.id.0.to_string(), body: Body::of(member) }
    }
}

/// The notice's sentence, cleaned; a drill begins with `DRILL`.
#[must_use]
pub fn message(notice: &Notice) -> String {
    let said = one_line(&notice.message, 2000);
    if notice.drill && !said.starts_with("DRILL") { format!("DRILL: {said}") } else { said }
}

/// Name of a stream event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topic {
    AccessChanged,
    KeyChanged,
    Rotation,
}

impl Topic {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessChanged => "access_changed",
            Self::KeyChanged => "key_changed",
            Self::Rotation => "rotation",
        }
    }

    /// Under which name an event is pushed; `None` for what is no service's matter.
    #[must_use]
    pub const fn of(event: EventType) -> Option<Self> {
        match event {
            EventType::WorkspaceLocked | EventType::WorkspaceReadOnly | EventType::WorkspaceOpened => Some(Self::AccessChanged),
            EventType::KeyRotated | EventType::KeySubstituted => Some(Self::Rotation),
            EventType::KeySuspect
            | EventType::KeyRevoked
            | EventType::KeyRecovering
            | EventType::KeyActive
            | EventType::KeyImpaired
            | EventType::KeyRotationOverdue
            | EventType::KeyVersionLost
            | EventType::KeyExpiring
            | EventType::KeyDeletionScheduled
            | EventType::KeyStale
            | EventType::KeyUnproven
            | EventType::KeyAttributed
            | EventType::KeyRetired => Some(Self::KeyChanged),
            EventType::WorkspaceWouldLock
            | EventType::BrakeEngaged
            | EventType::BrakeReleased
            | EventType::ProviderCredentials
            | EventType::ProviderUnreachable
            | EventType::ProviderWitnessBroken
            | EventType::ReceiverFailing
            | EventType::DrillStarted
            | EventType::DrillEnded
            | EventType::Test
            | EventType::OperatorAction
            | EventType::ProbeMissedWindow
            | EventType::ClockStepped
            | EventType::DaemonStarted
            | EventType::ConfigReloaded
            | EventType::ConfigFallback
            | EventType::StoreDamage
            | EventType::OverrideStarted
            | EventType::OverrideEnded
            | EventType::SafetyPreserved
            | EventType::VaultOperatorKey
            | EventType::VaultKeysGood
            | EventType::LeverPulled
            | EventType::LeverUndone
            | EventType::LeverFailed
            | EventType::AuditEvent
            | EventType::AuditSilent
            | EventType::AuditResumed
            | EventType::NoticesGrouped
            | EventType::NoticeAcknowledged
            | EventType::NoticeEscalated
            | EventType::Digest => None,
        }
    }
}

/// The type of an event that tells a workspace's access.
#[must_use]
pub const fn event_of(access: Access) -> EventType {
    match access {
        Access::Open => EventType::WorkspaceOpened,
        Access::ReadOnly => EventType::WorkspaceReadOnly,
        Access::Locked => EventType::WorkspaceLocked,
    }
}

/// One event for those who follow the stream.
#[derive(Clone, PartialEq, Debug)]
pub struct Pushed {
    /// Its journal number; absent for what the journal has not yet (it comes again with one), and
    /// for what has no record of its own.
    pub number: Option<u64>,
    pub body: Body,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_of_keys_and_workspaces_have_a_name_and_the_daemons_own_have_none() {
        for event in EventType::ALL {
            let expected = match event.as_str() {
                "key.rotated" | "key.substituted" => Some(Topic::Rotation),
                "workspace.would_lock" => None,
                key if key.starts_with("key.") => Some(Topic::KeyChanged),
                workspace if workspace.starts_with("workspace.") => Some(Topic::AccessChanged),
                _ => None,
            };
            assert_eq!(Topic::of(*event), expected, "{event}");
        }
    }

    #[test]
    fn a_body_reads_back_and_keeps_the_fields_of_the_contract() {
        let body = Body::of(&crate::notify::sample::locked());
        let text = serde_json::to_string(&body).unwrap();
        assert_eq!(serde_json::from_str::<Body>(&text).unwrap(), body);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let fields: Vec<&str> = value["data"].as_object().unwrap().keys().map(String::as_str).collect();
        let contract = "sequence key provider workspaces access previous_access cause code message version actor since";
        assert_eq!(fields, contract.split(' ').collect::<Vec<_>>());
    }
}
