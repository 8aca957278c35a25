//! inside
//! The closed vocabularies of the watchdog: every word that appears in configuration, metrics,
//! journal, notices and the API is one variant here with one stable spelling.
//! Holds words and their spelling only; it must never decide anything.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A word outside a closed vocabulary.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown {vocabulary} `{word}`, expected one of {allowed}")]
pub struct UnknownWord {
    pub vocabulary: &'static str,
    pub word: String,
    pub allowed: String,
}

/// Declares a closed enum whose variants have one stable spelling, used by serde, `Display`,
/// `FromStr` and the metric labels alike.
macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every word, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable spelling.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|w| w.as_str() == text).ok_or_else(|| UnknownWord {
                    vocabulary: stringify!($name),
                    word: text.to_owned(),
                    allowed: Self::ALL.iter().map(|w| w.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

vocabulary! {
    /// What a failed call means, whatever the provider (DESIGN.md section 3); also the metric label.
    FailureKind {
        Disabled = "disabled",
        PendingDeletion = "pending_deletion",
        Destroyed = "destroyed",
        Expired = "expired",
        AccessDenied = "access_denied",
        NetworkBlocked = "network_blocked",
        KeyStoreUnavailable = "key_store_unavailable",
        Throttled = "throttled",
        ProviderFault = "provider_fault",
        Timeout = "timeout",
        Unreachable = "unreachable",
        Credentials = "credentials",
        Misconfigured = "misconfigured",
        Corrupt = "corrupt",
        Unclassified = "unclassified",
    }
}

vocabulary! {
    /// Access level of a workspace; the order is from most to least permissive.
    Access { Open = "open", ReadOnly = "read_only", Locked = "locked", }
}

vocabulary! {
    /// What the evidence of one probe means.
    VerdictWord { Usable = "usable", Impaired = "impaired", Revoked = "revoked", Inconclusive = "inconclusive", }
}

vocabulary! {
    /// Persisted state of a key.
    StateWord {
        Unproven = "unproven", Active = "active", Impaired = "impaired", Suspect = "suspect",
        Revoked = "revoked", Recovering = "recovering", Retired = "retired",
    }
}

vocabulary! {
    /// One call of a probe.
    Leg { Wrap = "wrap", Unwrap = "unwrap", UnwrapVersion = "unwrap_version", Describe = "describe", }
}

vocabulary! {
    /// How a leg ended.
    LegOutcome { Ok = "ok", Failed = "failed", NotRun = "not_run", }
}

vocabulary! {
    /// Kind of KMS behind a provider.
    ProviderKind { Aws = "aws", Gcp = "gcp", Azure = "azure", Local = "local", }
}

vocabulary! {
    /// What a lockout means for a feature.
    FeatureClass {
        /// open: read and write; `read_only`: read; locked: nothing.
        Content = "content",
        /// Allowed only while open.
        Write = "write",
        /// Never locked.
        Control = "control",
        /// Readable in every state; writable by role `safety`.
        SafetyMetadata = "safety_metadata",
    }
}

vocabulary! {
    /// How loud a notice is; ordered from quiet to loud.
    Severity { Info = "info", Warning = "warning", Critical = "critical", }
}

vocabulary! {
    /// Who ordered a lockout.
    By { Automatic = "automatic", Manual = "manual", }
}

vocabulary! {
    /// What a caller of the API may do.
    Role { Read = "read", Operate = "operate", Safety = "safety", Hint = "hint", }
}

vocabulary! {
    /// Outward code of a refused workspace; the three first are the ones of Claude's own CMEK.
    Code {
        CmekKeyDisabled = "cmek_key_disabled",
        CmekKeyNetworkBlocked = "cmek_key_network_blocked",
        CmekKeyUnreachable = "cmek_key_unreachable",
        WorkspaceLockedByOperator = "workspace_locked_by_operator",
        UnknownWorkspace = "unknown_workspace",
    }
}

vocabulary! {
    /// Why a confirmed finding is not (yet) acted on.
    HeldBy { Policy = "policy", Brake = "brake", Approval = "approval", }
}

vocabulary! {
    /// Whether an unlock waits for a person.
    Release { Pending = "pending", }
}

vocabulary! {
    /// What a lever is to do.
    LeverAct { Pull = "pull", Undo = "undo", }
}

vocabulary! {
    /// How far a lever is.
    LeverState { Pending = "pending", Pulled = "pulled", Failed = "failed", Undone = "undone", }
}

vocabulary! {
    /// Type of a notice, journal record or stream event.
    EventType {
        KeySuspect = "key.suspect",
        KeyRevoked = "key.revoked",
        KeyRecovering = "key.recovering",
        KeyActive = "key.active",
        KeyImpaired = "key.impaired",
        KeyRotated = "key.rotated",
        KeyRotationOverdue = "key.rotation_overdue",
        KeySubstituted = "key.substituted",
        KeyVersionLost = "key.version_lost",
        KeyExpiring = "key.expiring",
        KeyDeletionScheduled = "key.deletion_scheduled",
        KeyStale = "key.stale",
        KeyUnproven = "key.unproven",
        KeyRetired = "key.retired",
        WorkspaceLocked = "workspace.locked",
        WorkspaceReadOnly = "workspace.read_only",
        WorkspaceOpened = "workspace.opened",
        WorkspaceWouldLock = "workspace.would_lock",
        BrakeEngaged = "brake.engaged",
        BrakeReleased = "brake.released",
        ProviderCredentials = "provider.credentials",
        ProviderUnreachable = "provider.unreachable",
        ProviderWitnessBroken = "provider.witness_broken",
        ReceiverFailing = "receiver.failing",
        DrillStarted = "drill.started",
        DrillEnded = "drill.ended",
        LeverPulled = "lever.pulled",
        LeverUndone = "lever.undone",
        LeverFailed = "lever.failed",
        Test = "test",
        OperatorAction = "operator.action",
        ProbeMissedWindow = "probe.missed_window",
        ClockStepped = "clock.stepped",
        DaemonStarted = "daemon.started",
        ConfigReloaded = "config.reloaded",
        ConfigFallback = "config.fallback",
        StoreDamage = "store.damage",
        OverrideStarted = "override.started",
        OverrideEnded = "override.ended",
        AuditEvent = "audit.event",
        AuditSilent = "audit.silent",
        AuditResumed = "audit.resumed",
        KeyAttributed = "key.attributed",
        Digest = "digest",
        /// Many notices told as one message.
        NoticesGrouped = "notices.grouped",
        NoticeAcknowledged = "notice.acknowledged",
        NoticeEscalated = "notice.escalated",
        SafetyPreserved = "safety.preserved",
        VaultOperatorKey = "vault.operator_key",
        VaultKeysGood = "vault.keys_good",
    }
}

vocabulary! {
    /// What an event of an audit log means for a key, whatever the provider calls it; also the metric label.
    AuditMeaning {
        Disable = "disable",
        Enable = "enable",
        ScheduleDeletion = "schedule_deletion",
        CancelDeletion = "cancel_deletion",
        DeleteMaterial = "delete_material",
        ImportMaterial = "import_material",
        PolicyChange = "policy_change",
        GrantCreated = "grant_created",
        GrantRevoked = "grant_revoked",
        GrantRetired = "grant_retired",
        Rotation = "rotation",
        VersionDisable = "version_disable",
        VersionEnable = "version_enable",
        VersionDestroy = "version_destroy",
        VersionRestore = "version_restore",
        AliasChange = "alias_change",
        VaultDeleted = "vault_deleted",
        VaultRecovered = "vault_recovered",
        FirewallChange = "firewall_change",
        KeyStoreChange = "key_store_change",
        Expiry = "expiry",
        Purge = "purge",
        /// Attributes changed, and the log does not say which (Azure's `KeyUpdate`).
        Update = "update",
        /// Changes nothing that a probe could see: tags, descriptions, rotation periods, a new key.
        Settings = "settings",
        /// A use or a read: no change at all.
        Use = "use",
        /// A name that is not in the table.
        Other = "other",
    }
}

vocabulary! {
    /// Why an audit log cannot be read.
    AuditTrouble {
        Throttled = "throttled",
        Denied = "denied",
        /// The log is there and switched off, or does not exist.
        LogDisabled = "log_disabled",
        Credentials = "credentials",
        Unreachable = "unreachable",
        Timeout = "timeout",
        ProviderFault = "provider_fault",
        Misconfigured = "misconfigured",
        Malformed = "malformed",
    }
}

/// Why a workspace has less than full access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cause {
    Kind(FailureKind),
    Stale,
    Manual,
    Drill,
    VersionLost,
    Orphaned,
}

impl Cause {
    /// The stable spelling: a failure kind, or one of the five words beside it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kind(kind) => kind.as_str(),
            Self::Stale => "stale",
            Self::Manual => "manual",
            Self::Drill => "drill",
            Self::VersionLost => "version_lost",
            Self::Orphaned => "orphaned",
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Cause {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Ok(match text {
            "stale" => Self::Stale,
            "manual" => Self::Manual,
            "drill" => Self::Drill,
            "version_lost" => Self::VersionLost,
            "orphaned" => Self::Orphaned,
            other => Self::Kind(other.parse()?),
        })
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Number of a change of one workspace: `max(seen + 1, unix milliseconds)`, so that a restored
/// backup cannot speak with old numbers. Below 2^53, safe as a JSON number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The next number after `self` at wall time `unix_ms`.
    #[must_use]
    pub fn next(self, unix_ms: i64) -> Self {
        Self(self.0.saturating_add(1).max(u64::try_from(unix_ms).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_parses_back_from_its_spelling() {
        for kind in FailureKind::ALL {
            assert_eq!(kind.as_str().parse::<FailureKind>().as_ref(), Ok(kind));
            assert_eq!(kind.as_str().parse::<Cause>(), Ok(Cause::Kind(*kind)));
        }
        for event in EventType::ALL {
            assert_eq!(event.as_str().parse::<EventType>().as_ref(), Ok(event));
        }
    }

    #[test]
    fn an_unknown_word_names_the_allowed_ones() {
        let error = "half".parse::<Access>().unwrap_err();
        assert_eq!(error.to_string(), "unknown Access `half`, expected one of open, read_only, locked");
    }

    #[test]
    fn sequence_never_repeats_even_when_the_clock_goes_back() {
        let first = Sequence(0).next(1_700_000_000_000);
        assert_eq!(first, Sequence(1_700_000_000_000));
        assert_eq!(first.next(5), Sequence(1_700_000_000_001));
    }
}
