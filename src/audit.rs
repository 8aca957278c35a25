//! inside
//! What audit logs and pushed hints tell: events, what they mean, which keys they speak of, and the
//! log as a source that is read by cursor. It explains and makes a key due; it must never be asked
//! whether something locks, unlocks or holds.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

use crate::kms::BoxFuture;
use crate::time::{Now, Span, Wall};
use crate::words::{AuditMeaning, AuditTrouble, FailureKind, ProviderKind};

pub mod attribution;
pub mod hint;
pub mod names;
pub mod record;
pub mod subject;
pub mod windows;

#[cfg(feature = "daemon")]
pub mod azure_monitor;
#[cfg(feature = "daemon")]
pub mod cloud_logging;
#[cfg(feature = "daemon")]
pub mod cloudtrail;
#[cfg(feature = "daemon")]
pub mod oidc;
#[cfg(feature = "daemon")]
pub mod sqs;

/// Longest text of a principal or an address that is kept, in characters.
const TEXT_MAX: usize = 512;

/// Who did it, as far as the log tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Actor {
    /// The readable name: an ARN, an e-mail address, a service.
    pub principal: Option<String>,
    /// The provider's own id of the principal; all there is when the name could not be resolved.
    pub id: Option<String>,
    /// `AssumedRole`, `serviceAccount`, ... as the provider writes it.
    pub kind: Option<String>,
    pub address: Option<String>,
    pub user_agent: Option<String>,
}

impl Actor {
    /// The name, else the id.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.principal.as_deref().or(self.id.as_deref())
    }
    /// Whether only an id is known that the provider has not resolved.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        match &self.principal {
            Some(name) => is_opaque(name),
            None => self.id.is_some(),
        }
    }
}

/// A bare id in the place of a name: AWS unique ids, GUIDs, Google's numeric ids.
#[must_use]
pub fn is_opaque(name: &str) -> bool {
    let bare = name.split(':').next().unwrap_or(name);
    let aws = ["AROA", "AIDA", "AGPA", "ANPA", "AIPA", "ASIA", "AKIA"].iter().any(|prefix| bare.starts_with(prefix))
        && bare.len() >= 16
        && bare.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    let guid = name.len() == 36 && name.chars().all(|c| c.is_ascii_hexdigit() || c == '-') && name.matches('-').count() == 4;
    let number = name.len() >= 15 && name.chars().all(|c| c.is_ascii_digit());
    aws || guid || number
}

/// One event of an audit log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditEvent {
    /// The provider's id of the event; the same by whichever way it comes.
    pub id: String,
    pub provider: ProviderKind,
    /// As the provider writes it.
    pub name: String,
    pub meaning: AuditMeaning,
    /// What it is about, normalized (`audit/subject.rs`).
    pub subjects: Vec<String>,
    pub version: Option<String>,
    pub actor: Actor,
    pub at: Wall,
    /// The provider refused the attempt: nothing was changed by it.
    pub error: Option<String>,
}

impl AuditEvent {
    /// Whether a look at the key could show something new.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.error.is_none() && self.meaning != AuditMeaning::Use
    }
}

/// What a hint's body came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hint {
    Events(Vec<AuditEvent>),
    /// Event Grid asks whether the endpoint wants its events; answered with the code, nothing is fetched.
    Validation(String),
}

/// A field that may be hidden before anything is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mask {
    Actor,
    Address,
    UserAgent,
}

/// Hides personal data, as the source's configuration says.
pub fn mask(event: &mut AuditEvent, fields: &[Mask]) {
    for field in fields {
        match field {
            Mask::Actor => {
                let known = event.actor.name().is_some();
                event.actor.principal = known.then(|| "(masked)".to_owned());
                event.actor.id = None;
            }
            Mask::Address => event.actor.address = None,
            Mask::UserAgent => event.actor.user_agent = None,
        }
    }
}

/// A stretch of time that a source could not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    pub from: Wall,
    pub to: Wall,
}

/// Where reading goes on. Opaque to the store; made and understood by the source's own adapter.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Everything before this was read.
    pub until: Option<Wall>,
    /// The window under way, and the page in it.
    pub window: Option<Gap>,
    pub page: Option<String>,
}

/// One answer of a source.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    pub events: Vec<AuditEvent>,
    pub cursor: Cursor,
    /// Everything that the log had before this was seen.
    pub seen_until: Option<Wall>,
    pub gaps: Vec<Gap>,
    /// More is there: come again without waiting for the interval.
    pub more: bool,
    /// Messages to be deleted once the core has taken the events.
    pub receipts: Vec<String>,
    /// Entries that could not be read.
    pub malformed: u64,
    /// What this log does not show although it could ("data-access logs of projects/p").
    pub unseen: Vec<String>,
}

/// Why a source gave nothing. The text names no secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct AuditFault {
    pub kind: AuditTrouble,
    pub message: String,
}

impl AuditFault {
    #[must_use]
    pub fn new(kind: AuditTrouble, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self { kind, message: clip(&message, TEXT_MAX) }
    }
}

/// A log that is read by cursor, or a queue.
pub trait AuditLog: Send + Sync {
    /// One bounded answer; the adapter neither waits nor tries again.
    fn poll<'a>(&'a self, cursor: &'a Cursor, now: Now) -> BoxFuture<'a, Result<Page, AuditFault>>;
    /// The core has taken what these stood for.
    fn taken<'a>(&'a self, receipts: &'a [String]) -> BoxFuture<'a, Result<(), AuditFault>>;
    /// The least time between two calls.
    fn pace(&self) -> Span;
}

/// What the core is told by a source.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    pub source: String,
    pub events: Vec<AuditEvent>,
    /// Kept with the events, in one commit; `None` for pushed events.
    pub cursor: Option<Cursor>,
    pub seen_until: Option<Wall>,
    pub gaps: Vec<Gap>,
    pub unseen: Option<Vec<String>>,
    /// The source cannot be read.
    pub trouble: Option<AuditFault>,
}

/// Ids of events seen in the overlap of windows; bounded, the oldest go first.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    ids: BTreeMap<String, ()>,
    order: VecDeque<String>,
}

/// More ids than this are not remembered.
const SEEN_MAX: usize = 50_000;

impl Seen {
    /// True for an id that was not there yet.
    pub fn first(&mut self, id: &str) -> bool {
        if self.ids.insert(id.to_owned(), ()).is_some() {
            return false;
        }
        self.order.push_back(id.to_owned());
        while self.order.len() > SEEN_MAX {
            if let Some(old) = self.order.pop_front() {
                self.ids.remove(&old);
            }
        }
        true
    }
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }
}

/// The first characters of a text.
#[must_use]
pub fn clip(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// Whether an event can be the cause of a key being refused in this way.
#[must_use]
pub fn explains_refusal(meaning: AuditMeaning, kind: FailureKind) -> bool {
    use AuditMeaning as M;
    let any: &[M] = match kind {
        FailureKind::Disabled => &[M::Disable, M::VersionDisable, M::Update],
        FailureKind::PendingDeletion => &[M::ScheduleDeletion, M::VersionDestroy],
        FailureKind::Destroyed => {
            &[M::VersionDestroy, M::DeleteMaterial, M::Purge, M::VaultDeleted, M::ScheduleDeletion, M::Expiry, M::KeyStoreChange]
        }
        FailureKind::Expired => &[M::Expiry, M::Update],
        FailureKind::AccessDenied => &[M::PolicyChange, M::GrantRevoked, M::GrantRetired, M::AliasChange, M::VaultDeleted],
        FailureKind::NetworkBlocked => &[M::FirewallChange, M::PolicyChange],
        FailureKind::KeyStoreUnavailable => &[M::KeyStoreChange],
        FailureKind::Misconfigured => &[M::Update, M::AliasChange],
        FailureKind::Corrupt => &[M::ImportMaterial],
        FailureKind::Unreachable => &[M::VaultDeleted, M::FirewallChange],
        FailureKind::Throttled
        | FailureKind::ProviderFault
        | FailureKind::Timeout
        | FailureKind::Credentials
        | FailureKind::Unclassified => &[],
    };
    any.contains(&meaning)
}

/// Whether an event can be why a key works again.
#[must_use]
pub fn explains_return(meaning: AuditMeaning) -> bool {
    use AuditMeaning as M;
    [
        M::Enable,
        M::CancelDeletion,
        M::ImportMaterial,
        M::PolicyChange,
        M::GrantCreated,
        M::VersionEnable,
        M::VersionRestore,
        M::VaultRecovered,
        M::FirewallChange,
        M::KeyStoreChange,
        M::Update,
    ]
    .contains(&meaning)
}

#[cfg(test)]
mod tests;
