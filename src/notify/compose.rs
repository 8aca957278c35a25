//! inside
//! Facts into plain sentences: what was seen, what to do next, and the subject line.
//! Calm, short, without a word that the reader must look up; it must never guess at a cause.

use crate::notify::Notice;
use crate::words::{Cause, EventType, FailureKind, Leg, LegOutcome, ProviderKind, Severity};

/// Which direction was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// New data cannot be sealed; existing data still opens.
    Wrap,
    /// Existing data cannot be opened.
    Unwrap,
    Both,
    /// Only an older version of the key fails.
    OldVersion,
}

/// What a sentence is made from. `name` is what the event is about: the key's id for `key.*`, else
/// the provider's, receiver's, file's or person's name.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub event: EventType,
    pub kind: Option<FailureKind>,
    /// The provider itself stated the key's condition.
    pub stated: bool,
    pub name: &'a str,
    pub provider: ProviderKind,
    pub direction: Option<Direction>,
    /// For `workspace.*`: why, when it is not a failure kind.
    pub cause: Option<Cause>,
    /// How many workspaces the notice speaks of.
    pub workspaces: usize,
    /// A date or span that belongs to the event ("2026-12-01", "for 5m"), already in words.
    pub when: Option<&'a str>,
}

impl<'a> Facts<'a> {
    /// Facts with everything else unknown.
    #[must_use]
    pub const fn of(event: EventType, name: &'a str, provider: ProviderKind) -> Self {
        Self { event, kind: None, stated: false, name, provider, direction: None, cause: None, workspaces: 0, when: None }
    }
}

/// The service's name as people say it.
#[must_use]
pub const fn service(provider: ProviderKind) -> &'static str {
    match provider {
        ProviderKind::Aws => "AWS KMS",
        ProviderKind::Gcp => "Google Cloud KMS",
        ProviderKind::Azure => "Azure Key Vault",
        ProviderKind::Local => "the local key store",
    }
}

/// What a failure kind means, as the end of the sentence "key X ...".
#[must_use]
pub const fn condition(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Disabled => "is disabled",
        FailureKind::PendingDeletion => "is scheduled for deletion",
        FailureKind::Destroyed => "is deleted, or its key material is gone",
        FailureKind::Expired => "is outside its validity dates",
        FailureKind::AccessDenied => "refuses us: permission was withdrawn",
        FailureKind::NetworkBlocked => "is closed to our network by its own firewall or network rules",
        FailureKind::KeyStoreUnavailable => "cannot be used: the hardware or external key store behind it does not answer",
        FailureKind::Throttled => "cannot be checked: the provider limits our calls",
        FailureKind::ProviderFault => "cannot be checked: the provider answers with an internal error",
        FailureKind::Timeout => "cannot be checked: the provider does not answer in time",
        FailureKind::Unreachable => "cannot be checked: the provider cannot be reached (name lookup, connection or TLS)",
        FailureKind::Credentials => "cannot be checked: our own credentials are not accepted",
        FailureKind::Misconfigured => "does not fit the way it is registered (region, usage, algorithm or name)",
        FailureKind::Corrupt => "gives back other bytes than were sealed with it",
        FailureKind::Unclassified => "cannot be checked: the provider's answer is not one we know",
    }
}

/// Who did it, as an audit log tells it: `DisableKey by NAME from ADDRESS at TIME (event ID).`
#[must_use]
pub fn done_by(event: &crate::audit::AuditEvent) -> String {
    let actor = event.actor.name().map_or_else(|| "somebody the log does not name".to_owned(), str::to_owned);
    let bare = if event.actor.is_opaque() { " (an id that has no name: the principal may be deleted)" } else { "" };
    let from = event.actor.address.as_ref().map(|address| format!(" from {address}")).unwrap_or_default();
    format!("{} by {actor}{bare}{from} at {} (event {}).", event.name, event.at, event.id)
}

/// The follow-up when a name comes after the transition was told.
#[must_use]
pub fn attributed(asked: EventType, event: &crate::audit::AuditEvent) -> String {
    format!("To what was told before ({}): {}", happened(asked), done_by(event))
}

/// One sentence: what was seen.
#[must_use]
#[expect(clippy::too_many_lines, reason = "one arm for each event")]
pub fn sentence(facts: &Facts<'_>) -> String {
    let Facts { name, provider, .. } = *facts;
    let service = service(provider);
    let state = facts.kind.map_or("does not work", condition);
    let when = facts.when.map(|when| format!(" ({when})")).unwrap_or_default();
    let source = if facts.stated { format!(" This is stated by {service} itself.") } else { String::new() };
    match facts.event {
        EventType::KeySuspect => {
            format!("Key {name} {state}.{source}{} We look again every few seconds before anything is locked.", reach(facts))
        }
        EventType::KeyRevoked => format!("Key {name} {state}; this is confirmed by repeated looks.{source}{}", reach(facts)),
        EventType::KeyImpaired => format!("Key {name} works only in part: it {state}.{source}{}", reach(facts)),
        EventType::KeyRecovering => format!("Key {name} works again. It is checked a few more times before anything is opened."),
        EventType::KeyActive => format!("Key {name} works: new data can be sealed and existing data can be opened."),
        EventType::KeyRotated => format!("Key {name} was rotated: new data is sealed with a new version{when}."),
        EventType::KeyRotationOverdue => format!("Key {name} has not been rotated for longer than the policy wants{when}."),
        EventType::KeySubstituted => {
            format!("The name of key {name} now points to another key. The key that was registered stays watched{when}.")
        }
        EventType::KeyVersionLost => {
            format!("An older version of key {name} no longer opens data{when}. Data sealed with it may be unreadable.")
        }
        EventType::KeyExpiring => format!("Key {name} will reach the end of its validity{when}."),
        EventType::KeyDeletionScheduled => format!("Key {name} will be deleted{when}. Until then its owner can cancel the deletion."),
        EventType::KeyStale => format!("Nothing certain is known about key {name}{when}: it {state}."),
        EventType::KeyUnproven => format!("Key {name} is registered but has never worked here: it {state}."),
        EventType::KeyRetired => format!("Key {name} is no longer watched."),
        EventType::WorkspaceLocked => format!("{} locked: {}.", are(facts.workspaces), because(facts, state)),
        EventType::WorkspaceReadOnly => format!("{} read-only: {}.", are(facts.workspaces), because(facts, state)),
        EventType::WorkspaceOpened => format!("{} open again.", are(facts.workspaces)),
        EventType::WorkspaceWouldLock => {
            format!("{} not locked, but would be if locking were switched on: {}.", are(facts.workspaces), because(facts, state))
        }
        EventType::BrakeEngaged => {
            format!("Too many keys of {name} fail at once without a stated reason. Automatic locks there are held until a person decides.")
        }
        EventType::BrakeReleased => format!("The hold on automatic locks of {name} is over{when}."),
        EventType::ProviderCredentials => {
            format!("{service} does not accept our own credentials for {name}{when}. Its keys cannot be judged.")
        }
        EventType::ProviderUnreachable => format!("{service} cannot be reached for {name}{when}. Its keys cannot be judged."),
        EventType::ProviderWitnessBroken => {
            format!("Our own control key of {name} does not work{when}. Without it a refusal by a customer's key is harder to judge.")
        }
        EventType::ReceiverFailing => format!("Receiver {name} takes no notices{when}. They are kept and tried again."),
        EventType::DrillStarted => format!("DRILL: a rehearsed revocation of {name} has begun."),
        EventType::DrillEnded => format!("DRILL: the rehearsed revocation of {name} is over."),
        EventType::LeverPulled => format!("Lever {name} is pulled."),
        EventType::LeverUndone => format!("Lever {name} is undone."),
        EventType::LeverFailed => format!("Lever {name} failed{when}. It is tried again."),
        EventType::Test => format!("This is a test of receiver {name}. Nothing is wrong."),
        EventType::OperatorAction => format!("An operator acted on {name}{when}."),
        EventType::ProbeMissedWindow => format!("Checks of {name} did not take place in time{when}."),
        EventType::ClockStepped => format!("The clock of this machine jumped{when}."),
        EventType::DaemonStarted => "The key watchdog has started.".to_owned(),
        EventType::ConfigReloaded => "The configuration was read again and is in use.".to_owned(),
        EventType::ConfigFallback => "The configuration file cannot be used; the last good configuration is in use.".to_owned(),
        EventType::StoreDamage => format!("A stored record of {name} is damaged and was replaced. No key was judged by it."),
        EventType::OverrideStarted => format!("An operator holds the automatic lock by key {name} off{when}."),
        EventType::OverrideEnded => format!("The operator's hold on the automatic lock by key {name} is over."),
        EventType::AuditEvent => format!("An audit log tells of a change at key {name}{when}."),
        EventType::AuditSilent => format!("Audit source {name} cannot be read{when}. Keys are watched all the same."),
        EventType::AuditResumed => format!("Audit source {name} is read again{when}."),
        EventType::KeyAttributed => format!("Key {name}: an audit log tells who did it{when}."),
        EventType::Digest => format!("State of all keys{when}."),
        EventType::NoticesGrouped => format!("Many notices came at once{when}."),
        EventType::NoticeAcknowledged => format!("A person has seen the notice about {name}{when}."),
        EventType::NoticeEscalated => format!("Nobody has acknowledged the notice about {name}{when}."),
        EventType::SafetyPreserved => "Safety metadata was preserved.".to_owned(),
        EventType::VaultOperatorKey => {
            "A key of the safety vault does not wrap and unwrap. No workspace is locked for it; safety metadata may become unreadable."
                .to_owned()
        }
        EventType::VaultKeysGood => "The keys of the safety vault wrap and unwrap again.".to_owned(),
    }
}

const fn are(workspaces: usize) -> &'static str {
    if workspaces > 1 { "The workspaces are" } else { "The workspace is" }
}

fn because(facts: &Facts<'_>, state: &str) -> String {
    match facts.cause {
        Some(Cause::Manual) => "an operator ordered it".to_owned(),
        Some(Cause::Drill) => "this is a drill".to_owned(),
        Some(Cause::Stale) => format!("nothing certain has been known about key {} for too long", facts.name),
        Some(Cause::VersionLost) => format!("an older version of key {} no longer opens data", facts.name),
        Some(Cause::Orphaned) => format!("key {} locked it and is no longer registered", facts.name),
        Some(Cause::Kind(kind)) => format!("key {} {}", facts.name, condition(kind)),
        None => format!("key {} {state}", facts.name),
    }
}

const fn reach(facts: &Facts<'_>) -> &'static str {
    match facts.direction {
        Some(Direction::Wrap) => " New data cannot be sealed; existing data still opens.",
        Some(Direction::Unwrap) => " Existing data cannot be opened.",
        Some(Direction::Both) => " New data cannot be sealed and existing data cannot be opened.",
        Some(Direction::OldVersion) => " Data sealed with an older version cannot be opened.",
        None => "",
    }
}

/// One sentence for a person: what to do next.
#[must_use]
pub const fn next_step(kind: FailureKind, provider: ProviderKind) -> &'static str {
    match kind {
        FailureKind::Disabled => match provider {
            ProviderKind::Aws => {
                "The key's owner can enable it again in AWS KMS (Enable key); access returns by itself after a few good checks."
            }
            ProviderKind::Gcp => {
                "The key's owner can enable the key version again in Google Cloud KMS; access returns by itself after a few good checks."
            }
            ProviderKind::Azure => {
                "The key's owner can set the key to enabled in Azure Key Vault; access returns by itself after a few good checks."
            }
            ProviderKind::Local => {
                "Enable the key again with `cmek-watchdog local-kms enable`; access returns by itself after a few good checks."
            }
        },
        FailureKind::PendingDeletion => match provider {
            ProviderKind::Aws => {
                "The key's owner can cancel the deletion in AWS KMS and must then enable the key; after the waiting period it is gone for good."
            }
            ProviderKind::Gcp => {
                "The key's owner can restore the key version in Google Cloud KMS and must then enable it; after the waiting period it is gone for good."
            }
            ProviderKind::Azure => {
                "The key's owner can recover the deleted key in Azure Key Vault; after the retention period it is gone for good."
            }
            ProviderKind::Local => "Cancel the deletion with `cmek-watchdog local-kms cancel-deletion` and enable the key.",
        },
        FailureKind::Destroyed => match provider {
            ProviderKind::Aws => {
                "Ask the key's owner whether imported key material can be imported again; a deleted AWS KMS key cannot be brought back."
            }
            ProviderKind::Gcp => {
                "Ask the key's owner whether this was meant; a destroyed key version in Google Cloud KMS cannot be brought back."
            }
            ProviderKind::Azure => {
                "Ask the key's owner to recover the key or the vault if soft delete still holds it; a purged key cannot be brought back."
            }
            ProviderKind::Local => "The key is gone; restore the key store's file from a backup if this was not meant.",
        },
        FailureKind::Expired => "The key's owner can extend the key's validity dates or rotate it to a version that is valid now.",
        FailureKind::AccessDenied => match provider {
            ProviderKind::Aws => {
                "Ask the key's owner to check the key policy and grants for our role (kms:Encrypt, kms:Decrypt, kms:DescribeKey)."
            }
            ProviderKind::Gcp => {
                "Ask the key's owner to check that our service account still has the role CryptoKey Encrypter/Decrypter on the key."
            }
            ProviderKind::Azure => {
                "Ask the key's owner to check our application's role on the vault and that the key allows wrapKey and unwrapKey."
            }
            ProviderKind::Local => "Allow the calls again with `cmek-watchdog local-kms allow`.",
        },
        FailureKind::NetworkBlocked => {
            "Ask the key's owner to check the firewall, private endpoint or network perimeter in front of the key."
        }
        FailureKind::KeyStoreUnavailable => "Ask the key's owner to check the hardware module or external key store behind the key.",
        FailureKind::Throttled => "Lower our call rate for this provider or ask for a higher quota; nothing is locked for this.",
        FailureKind::ProviderFault => "Look at the provider's status page; nothing is locked for this, and checks go on.",
        FailureKind::Timeout | FailureKind::Unreachable => {
            "Check the network path from the watchdog to the provider; nothing is locked for this, and checks go on."
        }
        FailureKind::Credentials => "Check the watchdog's own credentials and clock for this provider; no customer can mend this.",
        FailureKind::Misconfigured => "Compare the key's registration with the real key: region, usage, algorithm and name.",
        FailureKind::Corrupt => "Do not write new data with this key; ask the provider's support with the request ids given here.",
        FailureKind::Unclassified => {
            "Read the provider's answer given here; if it is a known condition, report it so that it can be named."
        }
    }
}

/// A few words for a cause, for the subject line.
const fn brief(cause: Cause) -> &'static str {
    match cause {
        Cause::Kind(kind) => match kind {
            FailureKind::Disabled => "disabled",
            FailureKind::PendingDeletion => "scheduled for deletion",
            FailureKind::Destroyed => "deleted",
            FailureKind::Expired => "expired",
            FailureKind::AccessDenied => "permission withdrawn",
            FailureKind::NetworkBlocked => "closed to our network",
            FailureKind::KeyStoreUnavailable => "key store unavailable",
            FailureKind::Throttled => "calls limited",
            FailureKind::ProviderFault => "provider fault",
            FailureKind::Timeout => "no answer",
            FailureKind::Unreachable => "not reachable",
            FailureKind::Credentials => "our credentials refused",
            FailureKind::Misconfigured => "misconfigured",
            FailureKind::Corrupt => "wrong bytes",
            FailureKind::Unclassified => "unknown answer",
        },
        Cause::Stale => "unknown for too long",
        Cause::Manual => "by an operator",
        Cause::Drill => "drill",
        Cause::VersionLost => "older version lost",
        Cause::Orphaned => "key no longer registered",
    }
}

/// What happened, in a word or two.
#[must_use]
pub const fn happened(event: EventType) -> &'static str {
    match event {
        EventType::KeySuspect => "suspect",
        EventType::KeyRevoked => "revoked",
        EventType::KeyRecovering => "recovering",
        EventType::KeyActive => "works",
        EventType::KeyImpaired => "impaired",
        EventType::KeyRotated => "rotated",
        EventType::KeyRotationOverdue => "rotation overdue",
        EventType::KeySubstituted => "points to another key",
        EventType::KeyVersionLost => "older version lost",
        EventType::KeyExpiring => "expires soon",
        EventType::KeyDeletionScheduled => "deletion scheduled",
        EventType::KeyStale => "state unknown",
        EventType::KeyUnproven => "never proven",
        EventType::KeyRetired => "no longer watched",
        EventType::WorkspaceLocked => "locked",
        EventType::WorkspaceReadOnly => "read-only",
        EventType::WorkspaceOpened => "open again",
        EventType::WorkspaceWouldLock => "would be locked",
        EventType::BrakeEngaged => "automatic locks held",
        EventType::BrakeReleased => "automatic locks no longer held",
        EventType::ProviderCredentials => "our credentials refused",
        EventType::ProviderUnreachable => "not reachable",
        EventType::ProviderWitnessBroken => "control key broken",
        EventType::ReceiverFailing => "a receiver takes no notices",
        EventType::DrillStarted => "drill begun",
        EventType::DrillEnded => "drill over",
        EventType::LeverPulled => "lever pulled",
        EventType::LeverUndone => "lever undone",
        EventType::LeverFailed => "lever failed",
        EventType::Test => "test notice",
        EventType::OperatorAction => "operator action",
        EventType::ProbeMissedWindow => "checks missed",
        EventType::ClockStepped => "clock jumped",
        EventType::DaemonStarted => "watchdog started",
        EventType::ConfigReloaded => "configuration read again",
        EventType::ConfigFallback => "configuration refused, last good one in use",
        EventType::StoreDamage => "stored record damaged",
        EventType::OverrideStarted => "automatic lock held off",
        EventType::OverrideEnded => "automatic lock no longer held off",
        EventType::AuditEvent => "changed by its owner",
        EventType::AuditSilent => "an audit log cannot be read",
        EventType::AuditResumed => "an audit log is read again",
        EventType::KeyAttributed => "known who did it",
        EventType::Digest => "daily state",
        EventType::NoticesGrouped => "notices together",
        EventType::NoticeAcknowledged => "acknowledged",
        EventType::NoticeEscalated => "not acknowledged in time",
        EventType::SafetyPreserved => "safety metadata preserved",
        EventType::VaultOperatorKey => "safety vault's key fails",
        EventType::VaultKeysGood => "safety vault's keys work",
    }
}

/// `[cmek][critical] wrkspc_demo locked: key demo disabled`; drills begin with `DRILL`. One line,
/// under 200 characters, the key's id always whole.
#[must_use]
pub fn subject(notice: &Notice) -> String {
    let drill = if notice.drill { "DRILL " } else { "" };
    let severity = notice.severity;
    let what = happened(notice.event);
    let about_workspaces = matches!(
        notice.event,
        EventType::WorkspaceLocked
            | EventType::WorkspaceReadOnly
            | EventType::WorkspaceOpened
            | EventType::WorkspaceWouldLock
            | EventType::LeverPulled
            | EventType::LeverUndone
            | EventType::LeverFailed
    );
    let line = match (&notice.key, about_workspaces) {
        _ if notice.event == EventType::NoticesGrouped => grouped(notice),
        (Some(key), true) => {
            let why = notice.cause.filter(|_| notice.event != EventType::WorkspaceOpened).map_or("works", brief);
            format!("{} {what}: key {key} {why}", workspaces(notice))
        }
        (None, true) => {
            let why = notice.cause.map(|cause| format!(": {}", brief(cause))).unwrap_or_default();
            format!("{} {what}{why}", workspaces(notice))
        }
        (Some(key), false) => {
            let why = notice.cause.map(|cause| format!(": {}", brief(cause))).unwrap_or_default();
            format!("key {key} {what}{why}")
        }
        (None, false) if notice.drill => format!("{}: {what}", workspaces(notice)),
        (None, false) => match &notice.provider {
            Some(provider) => format!("{provider}: {what}"),
            None => what.to_owned(),
        },
    };
    format!("{drill}[cmek][{severity}] {line}")
}

/// `5,000 notices together: wrkspc_demo and 2,499 more locked`.
fn grouped(notice: &Notice) -> String {
    let members = notice.storm.as_ref().map(|storm| storm.members.as_slice()).unwrap_or_default();
    let first = crate::notify::storm::listed(members).first().map_or("", |notice| happened(notice.event));
    let about = if notice.workspaces.is_empty() { String::new() } else { format!("{} ", workspaces(notice)) };
    format!("{} {}: {about}{first}", members.len(), happened(notice.event))
}

fn workspaces(notice: &Notice) -> String {
    let first = notice.workspaces.first().map_or("no workspace", |ws| ws.as_str());
    let short = if first.chars().count() > 40 { format!("{}...", first.chars().take(37).collect::<String>()) } else { first.to_owned() };
    match notice.workspaces.len() {
        0 | 1 => short,
        more => format!("{short} and {} more", more.saturating_sub(1)),
    }
}

/// One line of what was seen: `unwrap failed: DisabledException, request 1234`.
#[must_use]
pub fn seen(leg: &crate::probe::LegResult) -> String {
    let name = match leg.leg {
        Leg::Wrap => "seal new data (wrap)",
        Leg::Unwrap => "open data (unwrap)",
        Leg::UnwrapVersion => "open older data (unwrap_version)",
        Leg::Describe => "read the key's state (describe)",
    };
    let outcome = match leg.outcome {
        LegOutcome::Ok => "ok",
        LegOutcome::Failed => "failed",
        LegOutcome::NotRun => "not run",
    };
    let version = leg.version.as_ref().map(|version| format!(", version {version}")).unwrap_or_default();
    let code = leg.code.as_ref().map(|code| format!(", {code}")).unwrap_or_default();
    let request = leg.request_id.as_ref().map(|id| format!(", request {id}")).unwrap_or_default();
    format!("{name}: {outcome}{code}{version}{request}")
}

/// Control characters become blanks and the text is cut: nothing from a provider or a person may
/// begin a new line of ours.
#[must_use]
pub fn one_line(text: &str, most: usize) -> String {
    let clean = |c: char| {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') { ' ' } else { c }
    };
    let mut line: String = text.chars().take(most).map(clean).collect();
    if text.chars().nth(most).is_some() {
        line.push_str("...");
    }
    line
}

/// The word that goes before a loud notice in channels without colour.
#[must_use]
pub const fn loudness(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "Information",
        Severity::Warning => "Warning",
        Severity::Critical => "Critical",
    }
}

#[cfg(test)]
mod tests;
