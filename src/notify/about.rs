//! inside
//! What a notice is about: which notices speak of the same thing, which one ends another, and which
//! may never be dropped. It decides nothing about sending and must never look at a receiver.

use crate::key::{KeyId, ProviderId, WorkspaceId};
use crate::notify::Notice;
use crate::words::{EventType, Severity};

/// A matter that changes over time; the newest notice about it tells the present state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Topic {
    KeyState,
    Access,
    WouldLock,
    Version,
    Expiry,
    Deletion,
    Brake,
    Credentials,
    Reach,
    Witness,
    Receiver,
    Drill,
    Lever,
    Override,
    Store,
    Config,
    Missed,
    Vault,
    /// Stands for itself: a later notice of the same type says nothing about it.
    Single,
}

impl Topic {
    #[must_use]
    pub const fn of(event: EventType) -> Self {
        match event {
            EventType::KeySuspect
            | EventType::KeyRevoked
            | EventType::KeyRecovering
            | EventType::KeyActive
            | EventType::KeyImpaired
            | EventType::KeyStale
            | EventType::KeyUnproven
            | EventType::KeyRetired => Self::KeyState,
            EventType::WorkspaceLocked | EventType::WorkspaceReadOnly | EventType::WorkspaceOpened => Self::Access,
            EventType::WorkspaceWouldLock => Self::WouldLock,
            EventType::KeyVersionLost => Self::Version,
            EventType::KeyExpiring => Self::Expiry,
            EventType::KeyDeletionScheduled => Self::Deletion,
            EventType::BrakeEngaged | EventType::BrakeReleased => Self::Brake,
            EventType::ProviderCredentials => Self::Credentials,
            EventType::ProviderUnreachable => Self::Reach,
            EventType::ProviderWitnessBroken => Self::Witness,
            EventType::ReceiverFailing => Self::Receiver,
            EventType::DrillStarted | EventType::DrillEnded => Self::Drill,
            EventType::LeverFailed | EventType::LeverPulled | EventType::LeverUndone => Self::Lever,
            EventType::OverrideStarted | EventType::OverrideEnded => Self::Override,
            EventType::StoreDamage => Self::Store,
            EventType::ConfigReloaded | EventType::ConfigFallback => Self::Config,
            EventType::ProbeMissedWindow => Self::Missed,
            EventType::VaultOperatorKey | EventType::VaultKeysGood => Self::Vault,
            EventType::KeyRotated
            | EventType::KeyRotationOverdue
            | EventType::KeySubstituted
            | EventType::KeyAttributed
            | EventType::AuditEvent
            | EventType::AuditSilent
            | EventType::AuditResumed
            | EventType::Test
            | EventType::OperatorAction
            | EventType::ClockStepped
            | EventType::DaemonStarted
            | EventType::SafetyPreserved
            | EventType::Digest
            | EventType::NoticesGrouped
            | EventType::NoticeAcknowledged
            | EventType::NoticeEscalated => Self::Single,
        }
    }

    /// Stable word for dedup keys and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyState => "key",
            Self::Access => "access",
            Self::WouldLock => "would_lock",
            Self::Version => "version",
            Self::Expiry => "expiry",
            Self::Deletion => "deletion",
            Self::Brake => "brake",
            Self::Credentials => "credentials",
            Self::Reach => "reach",
            Self::Witness => "witness",
            Self::Receiver => "receiver",
            Self::Drill => "drill",
            Self::Lever => "lever",
            Self::Override => "override",
            Self::Store => "store",
            Self::Config => "config",
            Self::Missed => "missed",
            Self::Vault => "vault",
            Self::Single => "single",
        }
    }

    /// The types that open this matter: an alarm of one of them ends when another notice of the
    /// topic comes.
    #[must_use]
    pub const fn openers(self) -> &'static [EventType] {
        match self {
            Self::KeyState => &[
                EventType::KeySuspect,
                EventType::KeyRevoked,
                EventType::KeyRecovering,
                EventType::KeyImpaired,
                EventType::KeyStale,
                EventType::KeyUnproven,
            ],
            Self::Access => &[EventType::WorkspaceLocked, EventType::WorkspaceReadOnly],
            Self::WouldLock => &[EventType::WorkspaceWouldLock],
            Self::Version => &[EventType::KeyVersionLost],
            Self::Expiry => &[EventType::KeyExpiring],
            Self::Deletion => &[EventType::KeyDeletionScheduled],
            Self::Brake => &[EventType::BrakeEngaged],
            Self::Credentials => &[EventType::ProviderCredentials],
            Self::Reach => &[EventType::ProviderUnreachable],
            Self::Witness => &[EventType::ProviderWitnessBroken],
            Self::Receiver => &[EventType::ReceiverFailing],
            Self::Drill => &[EventType::DrillStarted],
            Self::Lever => &[EventType::LeverFailed],
            Self::Override => &[EventType::OverrideStarted],
            Self::Store => &[EventType::StoreDamage],
            Self::Config => &[EventType::ConfigFallback],
            Self::Missed => &[EventType::ProbeMissedWindow],
            Self::Vault => &[EventType::VaultOperatorKey],
            Self::Single => &[],
        }
    }
}

/// Whether this type ends what an earlier notice of its topic opened.
#[must_use]
pub fn closes(event: EventType) -> bool {
    let topic = Topic::of(event);
    topic != Topic::Single && !topic.openers().contains(&event)
}

/// How loud a type is by itself. A closing type is quiet here; see [`heard_as`].
#[must_use]
pub const fn severity_of(event: EventType) -> Severity {
    match event {
        EventType::KeyRevoked
        | EventType::WorkspaceLocked
        | EventType::WorkspaceReadOnly
        | EventType::KeyVersionLost
        | EventType::KeySubstituted
        | EventType::BrakeEngaged
        | EventType::ProviderCredentials
        | EventType::ProviderWitnessBroken
        | EventType::ConfigFallback
        | EventType::VaultOperatorKey
        | EventType::LeverFailed
        | EventType::StoreDamage => Severity::Critical,
        EventType::KeySuspect
        | EventType::KeyImpaired
        | EventType::KeyRotationOverdue
        | EventType::KeyExpiring
        | EventType::KeyDeletionScheduled
        | EventType::KeyStale
        | EventType::WorkspaceWouldLock
        | EventType::ProviderUnreachable
        | EventType::ReceiverFailing
        | EventType::AuditSilent
        | EventType::ProbeMissedWindow
        | EventType::ClockStepped
        | EventType::OverrideStarted
        | EventType::OverrideEnded => Severity::Warning,
        EventType::KeyRecovering
        | EventType::KeyActive
        | EventType::KeyRotated
        | EventType::KeyAttributed
        | EventType::AuditEvent
        | EventType::AuditResumed
        | EventType::KeyUnproven
        | EventType::KeyRetired
        | EventType::WorkspaceOpened
        | EventType::BrakeReleased
        | EventType::DrillStarted
        | EventType::DrillEnded
        | EventType::LeverPulled
        | EventType::LeverUndone
        | EventType::Test
        | EventType::OperatorAction
        | EventType::DaemonStarted
        | EventType::ConfigReloaded
        | EventType::SafetyPreserved
        | EventType::VaultKeysGood
        | EventType::Digest
        | EventType::NoticesGrouped
        | EventType::NoticeAcknowledged
        | EventType::NoticeEscalated => Severity::Info,
    }
}

/// How loud a notice is for routing: who heard of a lock also hears of its end, whatever the level
/// of the end itself.
#[must_use]
pub fn heard_as(notice: &Notice) -> Severity {
    let lowered = notice.previous_access.is_some_and(|before| notice.access.is_some_and(|now| now < before));
    // A first proof (`key.active` that lowered nothing before) ends nothing that anybody was told of.
    let ends = matches!(
        notice.event,
        EventType::WorkspaceOpened | EventType::BrakeReleased | EventType::DrillEnded | EventType::LeverPulled | EventType::LeverUndone
    ) || (Topic::of(notice.event) == Topic::KeyState && lowered);
    if ends { Severity::Critical.max(notice.severity) } else { notice.severity }
}

/// Whether a notice must reach its receiver or be followed there by a later one of the same kind:
/// lock and revocation, their ends, and everything critical.
#[must_use]
pub fn protected(notice: &Notice) -> bool {
    let Notice { event, severity, .. } = notice;
    let lock = matches!(
        event,
        EventType::KeyRevoked
            | EventType::KeyActive
            | EventType::WorkspaceLocked
            | EventType::WorkspaceReadOnly
            | EventType::WorkspaceOpened
            | EventType::BrakeEngaged
            | EventType::BrakeReleased
    );
    lock || *severity == Severity::Critical
}

/// Names of the matters of a notice for receivers that keep an incident for each: they say what it is
/// about and nothing that changes while it lasts. Drills are apart from the real thing.
#[must_use]
pub fn matters(notice: &Notice) -> Vec<String> {
    let named = |subject: &str| matter(notice, subject);
    let key_or_provider = match (&notice.key, &notice.provider) {
        (Some(key), _) => Some(key.to_string()),
        (None, Some(provider)) => Some(provider.to_string()),
        (None, None) => None,
    };
    match (Topic::of(notice.event), key_or_provider) {
        (Topic::Single | Topic::Receiver, _) => vec![named(&notice.id.0)],
        (Topic::Access, _) => notice.workspaces.iter().map(|workspace| named(workspace.as_str())).collect(),
        (_, Some(subject)) => vec![named(&subject)],
        (_, None) => vec![named(&joined(notice))],
    }
}

/// The name of one matter of a notice.
#[must_use]
pub fn matter(notice: &Notice, subject: &str) -> String {
    let drill = if notice.drill { "drill/" } else { "" };
    format!("cmek/{drill}{}/{subject}", Topic::of(notice.event).as_str())
}

/// The notice's workspaces in one text, whatever their order.
#[must_use]
pub fn joined(notice: &Notice) -> String {
    let mut workspaces: Vec<&str> = notice.workspaces.iter().map(WorkspaceId::as_str).collect();
    workspaces.sort_unstable();
    workspaces.join(",")
}

/// Identity of the matter: two notices with equal `About` speak of the same thing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct About {
    pub topic: Topic,
    /// A drill never speaks for the real thing.
    pub drill: bool,
    pub key: Option<KeyId>,
    pub provider: Option<ProviderId>,
    /// Sorted. Empty for the topics that are told by key or provider.
    pub workspaces: Vec<WorkspaceId>,
}

impl About {
    /// `None` for a notice that stands for itself.
    #[must_use]
    pub fn of(notice: &Notice) -> Option<Self> {
        let topic = Topic::of(notice.event);
        let by_workspace = || {
            let mut list = notice.workspaces.clone();
            list.sort();
            list.dedup();
            list
        };
        let (key, provider, workspaces) = match topic {
            Topic::Single | Topic::Receiver => return None,
            // Manual and automatic orders meet in one access: the key is not part of it.
            Topic::Access => (None, None, by_workspace()),
            Topic::WouldLock | Topic::Override | Topic::Drill | Topic::Lever => (notice.key.clone(), None, by_workspace()),
            Topic::KeyState | Topic::Deletion | Topic::Expiry | Topic::Missed => (notice.key.clone(), None, Vec::new()),
            // One version lost says nothing about another.
            Topic::Version => return None,
            Topic::Brake | Topic::Credentials | Topic::Reach | Topic::Witness => (None, notice.provider.clone(), Vec::new()),
            Topic::Store | Topic::Config | Topic::Vault => (notice.key.clone(), None, Vec::new()),
        };
        Some(Self { topic, drill: notice.drill, key, provider, workspaces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_an_opener_a_closer_or_stands_for_itself() {
        for event in EventType::ALL {
            let topic = Topic::of(*event);
            let kinds = [topic == Topic::Single, topic.openers().contains(event), closes(*event)];
            assert_eq!(kinds.iter().filter(|k| **k).count(), 1, "{event}");
        }
        for event in [EventType::KeyActive, EventType::KeyRetired, EventType::WorkspaceOpened, EventType::BrakeReleased] {
            assert!(closes(event), "{event}");
        }
    }
}
