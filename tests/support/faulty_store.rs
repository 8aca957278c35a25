//! A store that misbehaves on demand: late, refusing, or done without saying so.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cmek_watchdog::journal::{Commit, Committed, JournalQuery, Restored, Store, StoreFault, StoredRecord};
use cmek_watchdog::kms::BoxFuture;

/// What happens to one commit.
#[derive(Clone, Debug)]
pub enum Misbehave {
    No,
    /// Comes late but well.
    Late(Duration),
    /// Is refused and nothing is written.
    Refuse(StoreFault),
    /// Is written, and the caller is told that it was not: the outcome is unknown to him.
    Torn(StoreFault),
    /// Never answers; nothing is written.
    Hang,
}

/// Wraps a store; each commit takes the next entry of the plan, none left means good behaviour.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    plan: Mutex<VecDeque<Misbehave>>,
    /// Every commit asked for, in order.
    seen: Mutex<Vec<Commit>>,
}

impl FaultyStore {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, plan: Mutex::new(VecDeque::new()), seen: Mutex::new(Vec::new()) }
    }
    pub fn plan(&self, entries: impl IntoIterator<Item = Misbehave>) {
        self.plan.lock().unwrap().extend(entries);
    }
    pub fn seen(&self) -> Vec<Commit> {
        self.seen.lock().unwrap().clone()
    }
}

impl Store for FaultyStore {
    fn load(&self) -> BoxFuture<'_, Result<Restored, StoreFault>> {
        self.inner.load()
    }
    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, Result<Committed, StoreFault>> {
        self.seen.lock().unwrap().push(commit.clone());
        let misbehave = self.plan.lock().unwrap().pop_front().unwrap_or(Misbehave::No);
        Box::pin(async move {
            match misbehave {
                Misbehave::No => self.inner.commit(commit).await,
                Misbehave::Late(by) => {
                    tokio::time::sleep(by).await;
                    self.inner.commit(commit).await
                }
                Misbehave::Refuse(fault) => Err(fault),
                Misbehave::Torn(fault) => {
                    self.inner.commit(commit).await?;
                    Err(fault)
                }
                Misbehave::Hang => std::future::pending().await,
            }
        })
    }
    fn journal<'a>(&'a self, query: &'a JournalQuery) -> BoxFuture<'a, Result<Vec<StoredRecord>, StoreFault>> {
        self.inner.journal(query)
    }
}
