//! outside
//! A workspace that is open only while a lease runs. The lease is checked with the daemon's public
//! keys and counted on our own clock from before it was asked for; without a new one it is closed at
//! its end, whatever else is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use tokio::task::JoinHandle;

use super::ClientError;
use super::table::{Answer, Handle, Ruling};
use super::wire::Wire;
use crate::clock;
use crate::gate;
use crate::key::WorkspaceId;
use crate::lease::Claims;
use crate::time::{Mono, Span};
use crate::words::{Access, FeatureClass};

const AGAIN: Duration = Duration::from_secs(1);

/// A handle with a lease; ends its work when dropped.
pub struct Leased {
    handle: Handle,
    until: Arc<AtomicU64>,
    work: JoinHandle<()>,
}

impl Leased {
    pub(super) fn start(wire: Wire, workspace: WorkspaceId, handle: Handle) -> Self {
        let until = Arc::new(AtomicU64::new(0));
        let work = tokio::spawn(renew(wire, workspace, Arc::clone(&until)));
        Self { handle, until, work }
    }

    /// Whether the lease runs.
    #[must_use]
    pub fn runs_at(&self, now: Mono) -> bool {
        now.0 < self.until.load(Ordering::Acquire)
    }

    /// Open while the lease runs, even if the stream is silent; locked as soon as the stream says so.
    #[must_use]
    pub fn check_at(&self, now: Mono) -> Answer {
        match (self.handle.glance(), self.runs_at(now)) {
            (Some(Access::Locked), _) => Answer::Locked,
            (Some(Access::ReadOnly), true) => Answer::ReadOnly,
            (_, true) => Answer::Open,
            (last, false) => Answer::Stale { last, age: now.since(Mono(self.until.load(Ordering::Acquire))) },
        }
    }

    #[must_use]
    pub fn check(&self) -> Answer {
        self.check_at(clock::now_mono())
    }

    #[must_use]
    pub fn rule_at(&self, class: FeatureClass, write: bool, now: Mono) -> Ruling {
        let by = |access| if gate::allows(access, class, write) { Ruling::Allowed } else { Ruling::Denied };
        match self.check_at(now) {
            Answer::Open => by(Access::Open),
            Answer::ReadOnly => by(Access::ReadOnly),
            Answer::Locked | Answer::Unknown => by(Access::Locked),
            Answer::Stale { .. } if gate::allows(Access::Locked, class, write) => Ruling::Allowed,
            Answer::Stale { .. } => Ruling::CannotTell,
        }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.work.abort();
    }
}

async fn renew(wire: Wire, workspace: WorkspaceId, until: Arc<AtomicU64>) {
    let mut keys = JwkSet { keys: Vec::new() };
    loop {
        let asked = clock::now_mono();
        let pause = match lease(&wire, &workspace, &mut keys).await {
            Ok(length) => {
                until.store(asked.plus(length).0, Ordering::Release);
                // A third is left for a daemon that is away.
                length.over(3).times(2).to_std().max(AGAIN)
            }
            Err(error) => {
                // The daemon says that it is not open: the lease in hand is over at once.
                if matches!(error, ClientError::Refused { status: 403 | 404, .. }) {
                    until.store(asked.0, Ordering::Release);
                }
                tracing::warn!(%error, %workspace, "no lease");
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn lease(wire: &Wire, workspace: &WorkspaceId, keys: &mut JwkSet) -> Result<Span, ClientError> {
    let given = wire.lease(workspace).await?;
    let unusable = |why: String| ClientError::Unusable { path: "/v1/workspaces/{ws}/lease".to_owned(), why };
    let kid = jsonwebtoken::decode_header(&given.lease).map_err(|error| unusable(error.to_string()))?.kid.unwrap_or_default();
    if keys.find(&kid).is_none() {
        *keys = wire.key_set().await?;
    }
    let claims = verified(&given.lease, keys.find(&kid)).map_err(unusable)?;
    if claims.is_for(workspace) { Ok(claims.length()) } else { Err(unusable("it is for another workspace".to_owned())) }
}

/// The signature alone: how long it runs is counted on our own clock.
fn verified(token: &str, key: Option<&jsonwebtoken::jwk::Jwk>) -> Result<Claims, String> {
    let key = key.ok_or("no key of the key set signed it")?;
    let key = DecodingKey::from_jwk(key).map_err(|error| error.to_string())?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<Claims>(token, &key, &validation).map(|token| token.claims).map_err(|error| error.to_string())
}
