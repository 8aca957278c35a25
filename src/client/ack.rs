//! outside
//! Acknowledgements on their way: the newest of each workspace, one after the other. What cannot be
//! sent is tried again with the next; it must never hold the follower up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::ClientError;
use super::wire::Wire;
use crate::key::WorkspaceId;

const PAUSE: Duration = Duration::from_secs(1);

/// What is to be said; one entry a workspace, so that the table bounds it.
#[derive(Clone, Debug, Default)]
pub struct Acks {
    waiting: Arc<Mutex<BTreeMap<WorkspaceId, u64>>>,
    bell: Arc<Notify>,
}

#[must_use]
pub fn channel() -> (Acks, Acks) {
    let acks = Acks::default();
    (acks.clone(), acks)
}

impl Acks {
    pub fn say(&self, workspace: WorkspaceId, sequence: u64) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(workspace, sequence);
        self.bell.notify_one();
    }

    fn take(&self) -> Option<(WorkspaceId, u64)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// Back into the queue, unless a newer word waits.
    fn again(&self, workspace: WorkspaceId, sequence: u64) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entry(workspace).or_insert(sequence);
    }
}

/// Sends until it is dropped.
pub async fn send(wire: Wire, consumer: String, acks: Acks) {
    loop {
        let Some((workspace, sequence)) = acks.take() else {
            acks.bell.notified().await;
            continue;
        };
        match wire.ack(&workspace, &consumer, sequence).await {
            Ok(()) => {}
            // Said of a state that the daemon no longer has; what it has now will be told.
            Err(ClientError::Refused { status: 404 | 422, .. }) => {}
            Err(error) => {
                tracing::warn!(%error, %workspace, "an acknowledgement was not taken; it is sent again");
                acks.again(workspace, sequence);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
