//! outside
//! Performs what the core asks for: spool and commit, publish, probe, send, count. Decides nothing,
//! and every task it starts comes back as exactly one event, whatever happens to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::clock;
use crate::drive::Identities;
use crate::http::Health;
use crate::http::hub::Feed;
use crate::journal::{Commit, Store};
use crate::key::{ProviderId, ReceiverId};
use crate::kms::Kms;
use crate::lever::{LeverOrder, Outcome};
use crate::metrics::{Metrics, NoticeOutcome, Stage, Start};
use crate::notify::outbox::{Counts, SendOrder};
use crate::notify::{Delivery, Receiver};
use crate::probe::Evidence;
use crate::providers::{LeverMap, Providers};
use crate::published::Published;
use crate::run::{Swap, supervise::Supervisor};
use crate::store::spool::Spool;
use crate::time::Now;
use crate::watch::{Count, Effects, Event, ProbeOrder, Watch};
use crate::words::FailureKind;

/// For one move of a lever, whatever its own deadline is.
const LEVER_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

pub type KmsMap = BTreeMap<ProviderId, Arc<dyn Kms>>;
pub type ReceiverMap = BTreeMap<ReceiverId, Arc<dyn Receiver>>;

/// The open providers by id.
#[must_use]
pub fn kms_map(opened: &Providers) -> KmsMap {
    opened.ids().filter_map(|id| opened.get(id).map(|kms| (id.clone(), kms))).collect()
}

/// What effects act on.
pub struct Parts {
    pub published: Published,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub kms: Swap<KmsMap>,
    pub receivers: Swap<ReceiverMap>,
    pub levers: Swap<LeverMap>,
    pub identities: Arc<Identities>,
    pub doors: tokio::runtime::Handle,
    pub supervisor: Supervisor,
    pub feed: Feed,
}

pub struct Stores {
    pub store: Arc<dyn Store>,
    pub spool: Option<Spool>,
}

pub struct Performer {
    parts: Parts,
    spool: Option<Spool>,
    commits: mpsc::Sender<Arc<Commit>>,
    results: mpsc::Sender<Event>,
    committing: Arc<std::sync::atomic::AtomicUsize>,
}

impl Performer {
    /// Starts the one writer task on the present (current-thread) runtime.
    pub fn new(parts: Parts, stores: Stores, results: mpsc::Sender<Event>, stored: mpsc::Sender<Event>) -> Self {
        let (commits, queue) = mpsc::channel(4);
        let committing = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        tokio::spawn(write(stores.store, queue, stored, Arc::clone(&committing)));
        Self { parts, spool: stores.spool, commits, results, committing }
    }

    /// Nothing is on its way to the disk.
    pub fn idle(&self) -> bool {
        self.committing.load(std::sync::atomic::Ordering::Acquire) == 0
    }

    pub fn perform(&mut self, out: Effects) {
        self.spool(&out);
        if let Some(commit) = out.commit {
            self.committing.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            // The core has one commit under way at a time; the queue holds four.
            if self.commits.try_send(commit).is_err() {
                self.committing.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
                tracing::error!("the store's writer does not take a commit");
            }
        }
        self.parts.published.apply(out.publish);
        // Who hears of a change and asks finds it.
        self.parts.feed.hand(clock::now().mono, out.events, out.head);
        for order in out.probes {
            self.probe(order);
        }
        for order in out.levers {
            self.lever(order);
        }
        for order in out.sends {
            self.send(order);
        }
        for count in out.counts {
            self.count(count);
        }
        for bug in out.bugs {
            tracing::error!(what = bug.0, "a branch that cannot be was taken; please report it");
        }
    }

    pub fn progressed(&mut self, now: Now, watch: &Watch) {
        self.parts.health.progressed(now.mono);
        self.parts.supervisor.turn(now, watch, &self.parts.published);
    }

    /// Before anything is shown: a lock that may not wait for the store lies here.
    fn spool(&mut self, out: &Effects) {
        let Some(spool) = &mut self.spool else { return };
        if !out.spool.is_empty()
            && let Err(error) = spool.append(&out.spool)
        {
            tracing::error!(%error, locks = out.spool.len(), "a lock could not be written to the spool; it is in force, and would be lost by a crash now");
        }
        if out.spool_clear
            && !spool.is_empty()
            && let Err(error) = spool.clear()
        {
            tracing::warn!(%error, "the spool could not be cleared; its locks are in the store");
        }
    }

    fn probe(&self, order: ProbeOrder) {
        let ProbeOrder { subject, provider, attempt, plan } = order;
        let kms = self.parts.kms.load().get(&provider).cloned();
        let (identities, results) = (Arc::clone(&self.parts.identities), self.results.clone());
        let started = clock::now();
        let handle = self.parts.doors.spawn(async move {
            match kms {
                Some(kms) => identities.drive(&provider, &*kms, plan).await,
                None => Evidence::lost(clock::now(), FailureKind::Misconfigured, "provider_not_open"),
            }
        });
        let metrics = Arc::clone(&self.parts.metrics);
        self.parts.doors.spawn(async move {
            let evidence = handle.await.unwrap_or_else(|_| {
                metrics.probe_task_panic();
                Evidence::lost(started, FailureKind::Unclassified, "adapter_panicked")
            });
            let _ = results.send(Event::Probed { subject, attempt, evidence: Box::new(evidence) }).await;
        });
    }

    fn send(&self, order: SendOrder) {
        let SendOrder { receiver, notice, .. } = order;
        let target = self.parts.receivers.load().get(&receiver).cloned();
        let results = self.results.clone();
        let id = notice.id.clone();
        let handle = self.parts.doors.spawn(async move {
            match target {
                Some(target) => target.send(&notice).await,
                None => Delivery::Retry { after: None, reason: "the receiver is not open".to_owned() },
            }
        });
        self.parts.doors.spawn(async move {
            let delivery =
                handle.await.unwrap_or_else(|_| Delivery::Retry { after: None, reason: "the receiver's adapter panicked".to_owned() });
            match &delivery {
                Delivery::Delivered => {}
                Delivery::Retry { reason, .. } => {
                    tracing::warn!(%receiver, notice = %id.0, reason, "a notice was not taken; it is tried again")
                }
                Delivery::Refused { reason } => tracing::error!(%receiver, notice = %id.0, reason, "a notice was refused for good"),
            }
            let _ = results.send(Event::Sent { receiver, id, delivery }).await;
        });
    }

    fn lever(&self, order: LeverOrder) {
        let target = self.parts.levers.load().get(&order.lever).cloned();
        let results = self.results.clone();
        let LeverOrder { lever, workspace, act, attempt, .. } = order.clone();
        let failed = |reason: &str| Outcome::Failed { reason: reason.to_owned(), after: None, memory: None };
        let handle = self.parts.doors.spawn(async move {
            match target {
                Some(target) => {
                    tokio::time::timeout(LEVER_DEADLINE, target.act(&order)).await.unwrap_or_else(|_| failed("no end within 60 s"))
                }
                None => failed("the lever is not open"),
            }
        });
        self.parts.doors.spawn(async move {
            let outcome = handle.await.unwrap_or_else(|_| failed("the lever's adapter panicked"));
            if let Outcome::Failed { reason, .. } = &outcome {
                tracing::error!(%lever, %workspace, %act, reason, "a lever did not move; it is tried again");
            }
            let _ = results.send(Event::Pulled { lever, workspace, attempt, outcome }).await;
        });
    }

    fn count(&self, count: Count) {
        let metrics = &self.parts.metrics;
        match count {
            Count::Leg { provider, leg, outcome, kind, took } => {
                metrics.leg(provider.as_str(), leg, outcome, kind, took);
                metrics.kms_call(provider.as_str(), leg.as_str());
            }
            Count::Missed { provider, count } => (0..count).for_each(|_| metrics.missed_window(provider.as_str())),
            Count::Latency { stage, start, span } => {
                let stage = Stage::ALL.iter().copied().find(|s| s.as_str() == stage);
                if let Some(stage) = stage {
                    let start = if start == Start::Provider.as_str() { Start::Provider } else { Start::LastGood };
                    metrics.lockout_latency(stage, start, span);
                }
            }
            Count::Notices { receiver, counts } => self.notices(&receiver, counts),
            Count::StoreFailure => metrics.store_write_failure(),
        }
    }

    fn notices(&self, receiver: &ReceiverId, counts: Counts) {
        for (outcome, count) in [
            (NoticeOutcome::Delivered, counts.delivered),
            (NoticeOutcome::Failed, counts.failed),
            (NoticeOutcome::Retried, counts.retried),
            (NoticeOutcome::Folded, counts.folded),
            (NoticeOutcome::Dropped, counts.dropped),
        ] {
            (0..count).for_each(|_| self.parts.metrics.notice(receiver.as_str(), outcome));
        }
    }
}

/// The one writer. A commit that fails comes back as an event like any other; the core retries it.
async fn write(
    store: Arc<dyn Store>,
    mut queue: mpsc::Receiver<Arc<Commit>>,
    stored: mpsc::Sender<Event>,
    committing: Arc<std::sync::atomic::AtomicUsize>,
) {
    while let Some(commit) = queue.recv().await {
        let result = store.commit(&commit).await;
        if let Err(fault) = &result {
            tracing::error!(%fault, "the store did not take a commit; it is tried again");
        }
        committing.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
        if stored.send(Event::Stored { batch: commit.batch, result }).await.is_err() {
            break;
        }
    }
}
