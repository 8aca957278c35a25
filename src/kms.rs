//! inside
//! What a key management service must be able to do for us, and how an answer looks.
//! Adapters translate provider answers into these types; nothing here decides what an answer means.

use serde::{Deserialize, Serialize};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::key::{KeyTarget, KeyVersion};
use crate::time::{Span, Wall};
use crate::words::FailureKind;

#[cfg(feature = "daemon")]
pub mod aws;
#[cfg(feature = "daemon")]
pub mod azure;
#[cfg(feature = "daemon")]
pub mod gcp;
#[cfg(feature = "daemon")]
pub mod local;

/// std only, so that a pure file may name it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Result of a call with what is known about the call itself; a good call has a request id too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer<T> {
    pub result: Result<T, KmsError>,
    pub meta: CallMeta,
}

/// A failed call, classified.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{kind}: {code}")]
pub struct KmsError {
    pub kind: FailureKind,
    /// The answer itself says that the key is off, scheduled for deletion, destroyed, or refused by
    /// the key owner's own policy.
    pub stated: bool,
    /// The provider's own code, or a short word for a transport fault (`dns`, `reset`, `timeout`).
    pub code: Box<str>,
    /// The provider's own text, without secrets, at most 500 characters.
    pub message: Box<str>,
}

impl KmsError {
    /// Builds an error and cuts the message to its bound.
    #[must_use]
    pub fn new(kind: FailureKind, stated: bool, code: &str, message: &str) -> Self {
        Self {
            kind,
            stated,
            code: code.chars().take(100).collect::<String>().into(),
            message: message.chars().take(500).collect::<String>().into(),
        }
    }
}

/// What is known about one call.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CallMeta {
    pub request_id: Option<Box<str>>,
    pub took: Span,
    /// The provider's clock as its answer's `Date` header told it.
    pub provider_time: Option<Wall>,
}

/// Wrapped random bytes of which only the digest is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wrapped {
    pub bytes: Arc<[u8]>,
    /// SHA-256 of the plaintext.
    pub digest: [u8; 32],
    pub version: Option<KeyVersion>,
    /// What was bound into it (encryption context, additional data, algorithm), in the adapter's
    /// own encoding; unwrapping uses this and not the present configuration.
    pub sealed_with: Arc<str>,
}

/// Digest of what came out; the plaintext stays in the adapter and is zeroized there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unwrapped {
    pub digest: [u8; 32],
    pub version: Option<KeyVersion>,
}

/// What the control plane says about one version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionFact {
    pub version: KeyVersion,
    pub enabled: bool,
    pub created_at: Option<Wall>,
}

/// Whether the schedule of a key's rotation could be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationFact {
    Observed,
    /// The key's owner does not let us read it. No fault of the key and no finding.
    NotObservable,
    /// A key of this sort is not rotated by its provider, or nothing was asked.
    #[default]
    NotApplicable,
}

/// What the control plane says about a key. Absent facts are `None`: not applicable or not shown.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeyFacts {
    /// A fault that describe states about the key or its current version, with `stated`.
    pub fault: Option<KmsError>,
    /// The key behind an alias, or the fully qualified name.
    pub resolved: Option<Arc<str>>,
    pub current_version: Option<KeyVersion>,
    pub versions: Vec<VersionFact>,
    pub created_at: Option<Wall>,
    pub rotated_at: Option<Wall>,
    pub next_rotation_at: Option<Wall>,
    pub deletion_at: Option<Wall>,
    pub expires_at: Option<Wall>,
    pub not_before: Option<Wall>,
    pub recoverable_until: Option<Wall>,
    pub protection_level: Option<Box<str>>,
    pub origin: Option<Box<str>>,
    pub multi_region: Option<bool>,
    #[serde(default)]
    pub rotation: RotationFact,
    /// There are more versions than were read.
    #[serde(default)]
    pub versions_truncated: bool,
}

/// What a key's owner lets us read of its rotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rotation {
    /// The newest rotation; `None` = never.
    pub rotated_at: Option<Wall>,
    /// The next one by schedule, or one that is under way.
    pub next_rotation_at: Option<Wall>,
}

/// A KMS endpoint under one identity. Dropping a future cancels the call. No retries, no policy.
pub trait Kms: Send + Sync {
    /// Wraps fresh random bytes that the adapter draws (or lets the provider draw).
    fn wrap_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>>;
    /// Unwraps and digests; the key id is pinned in the call.
    fn unwrap_key<'a>(&'a self, key: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>>;
    /// Wraps under a version that is not the current one, so that it has a canary too; `None` where
    /// the provider offers no such call.
    fn wrap_version<'a>(&'a self, _key: &'a KeyTarget, _version: &'a KeyVersion) -> Option<BoxFuture<'a, Answer<Wrapped>>> {
        None
    }
    fn describe_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>>;
    /// When the key was and will be rotated, where describe does not tell; `None` where nobody of ours
    /// may ask. A refusal is no finding.
    fn rotation<'a>(&'a self, _key: &'a KeyTarget) -> Option<BoxFuture<'a, Answer<Rotation>>> {
        None
    }
    /// Who we are on this key: caller ARN, service account, or application and tenant.
    fn whoami<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>>;
}

/// The vault's own trait: real bytes under the operator's key only; no probe can reach it.
pub trait WrapBytes: Send + Sync {
    fn wrap_bytes<'a>(&'a self, plain: &'a [u8]) -> BoxFuture<'a, Answer<Wrapped>>;
    fn unwrap_bytes<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Vec<u8>>>;
}
