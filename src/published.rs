//! outside
//! The published snapshot: what gate, API, metrics and status page read without waiting for the core.
//! One writer (the loop) swaps it once a turn; readers never block it and never see half a turn.

use arc_swap::ArcSwap;
use imbl::OrdMap;
use std::sync::Arc;
use tokio::sync::watch;

use crate::key::{KeyId, ProviderId, WorkspaceId};
use crate::snapshot::{Change, DaemonView, KeyView, ProviderView, WorkspaceView};
use crate::time::Mono;

/// One consistent state.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub keys: OrdMap<KeyId, Arc<KeyView>>,
    pub workspaces: OrdMap<WorkspaceId, Arc<WorkspaceView>>,
    pub providers: OrdMap<ProviderId, Arc<ProviderView>>,
    pub daemon: Arc<DaemonView>,
    /// When the core last said that this is complete; `None` while starting.
    pub fresh_at: Option<Mono>,
}

/// Shared handle; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Published {
    state: Arc<ArcSwap<Snapshot>>,
    /// Counts the turns in which a workspace changed.
    turns: watch::Sender<u64>,
}

impl Published {
    /// The present state: a pointer, not a copy.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.state.load_full()
    }

    /// Applies the changes of one turn. Called by the loop alone.
    pub fn apply(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let workspaces = changes.iter().any(|change| matches!(change, Change::Workspace(_)));
        let mut next = Snapshot::clone(&self.state.load());
        for change in changes {
            match change {
                Change::Key(view) => {
                    next.keys.insert(view.id.clone(), view);
                }
                Change::KeyGone(id) => {
                    next.keys.remove(&id);
                }
                Change::Workspace(view) => {
                    next.workspaces.insert(view.workspace.clone(), view);
                }
                Change::Provider(view) => {
                    next.providers.insert(view.provider.clone(), view);
                }
                Change::Daemon(view) => next.daemon = view,
                Change::Fresh(at) => next.fresh_at = Some(at),
            }
        }
        self.state.store(Arc::new(next));
        if workspaces {
            self.turns.send_modify(|turns| *turns = turns.wrapping_add(1));
        }
    }

    /// Wakes its holder after each turn in which a workspace changed. Turns that pass while nobody
    /// looks are one wake-up: look at the state, not at the count.
    #[must_use]
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }
}
