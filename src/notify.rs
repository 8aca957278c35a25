//! inside
//! What people are told: notices, their receivers, and the outbox between as a pure queue.
//! Decides order, retry and repetition; it must never send anything itself and never drop a lock notice.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use crate::kms::BoxFuture;
use crate::probe::LegResult;
use crate::time::{Span, Wall};
use crate::words::{Access, Cause, Code, EventType, Sequence, Severity};

pub mod about;
pub mod body;
pub mod compose;
pub mod outbox;
pub mod storm;

#[cfg(feature = "daemon")]
pub mod alertmanager;
#[cfg(feature = "daemon")]
pub mod email;
#[cfg(feature = "daemon")]
pub mod pagerduty;
#[cfg(feature = "daemon")]
pub mod post;
#[cfg(feature = "daemon")]
pub mod render;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(feature = "daemon")]
pub mod slack;
#[cfg(feature = "daemon")]
pub mod webhook;

/// Stable id of a notice: the same after a crash, so that receivers can drop repeats.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NoticeId(pub Arc<str>);

/// Everything a receiver may tell. Free of secrets by construction: it has no field for one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Notice {
    pub id: NoticeId,
    #[serde(rename = "type")]
    pub event: EventType,
    pub severity: Severity,
    pub timestamp: Wall,
    pub sequence: Sequence,
    pub key: Option<KeyId>,
    /// The key in the provider's own words.
    pub key_ref: Option<String>,
    pub provider: Option<ProviderId>,
    pub owner: Option<String>,
    pub workspaces: Vec<WorkspaceId>,
    pub access: Option<Access>,
    pub previous_access: Option<Access>,
    pub cause: Option<Cause>,
    pub code: Option<Code>,
    /// One sentence: what was seen.
    pub message: String,
    pub version: Option<KeyVersion>,
    pub actor: Option<String>,
    pub since: Option<Wall>,
    /// What was seen, leg by leg.
    pub evidence: Vec<LegResult>,
    /// Features that the workspaces cannot use now.
    pub locked_features: Vec<String>,
    /// Features that stay usable, safety metadata among them.
    pub readable_features: Vec<String>,
    /// One sentence for a person: what to do next.
    pub next_step: Option<String>,
    pub terminal: bool,
    pub recoverable_until: Option<Wall>,
    pub drill: bool,
    /// Set on the word to pagers that a person has seen what this notice told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_by: Option<String>,
    /// Set on a message that stands for many notices, and on one that ends such a storm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<Arc<storm::Storm>>,
}

/// How a send ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delivery {
    Delivered,
    /// May succeed later; `after` is the receiver's own wish.
    Retry {
        after: Option<Span>,
        reason: String,
    },
    /// This notice will never be taken (a permanent refusal); the next one may pass.
    Refused {
        reason: String,
    },
}

/// Where notices go. One deadline per send is the receiver's own duty (30 s at most).
pub trait Receiver: Send + Sync {
    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Delivery>;
    /// Connect, TLS and authenticate without sending.
    fn check(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// A row of the outbox as stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OutboxRow {
    pub id: NoticeId,
    pub receiver: ReceiverId,
    /// Position in the receiver's queue.
    pub position: u64,
    pub notice: Arc<Notice>,
    pub created_at: Wall,
    pub state: OutboxState,
    pub attempts: u32,
    pub next_at: Wall,
    pub last_error: Option<String>,
}

/// Life of a row. `Done` rows are kept until pruned, so that a restart knows what was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutboxState {
    Pending,
    InFlight,
    Done,
    Dead,
    Folded,
}
