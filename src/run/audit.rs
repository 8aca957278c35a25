//! outside
//! Reads the audit sources: one task each, its own pace, back-off and cursor. What was read goes to the
//! core and counts as read when the core has it on disk. Probes never wait for any of this.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch as flag};
use tokio::task::JoinSet;

use crate::audit::azure_monitor::AzureMonitor;
use crate::audit::cloud_logging::CloudLogging;
use crate::audit::cloudtrail::CloudTrail;
use crate::audit::sqs::Sqs;
use crate::audit::{AuditFault, AuditLog, Cursor, Page, Seen, Told, mask};
use crate::clock;
use crate::config::{AuditKind, AuditSource, Config, Provider};
use crate::http::Ask;
use crate::metrics::Metrics;
use crate::operate::{Action, Operation};
use crate::providers::source_external_ids;
use crate::run::Swap;
use crate::time::Span;
use crate::watch::SourceState;
use crate::words::{AuditMeaning, AuditTrouble};

/// One call to a log.
const CALL: Span = Span::from_secs(15);
/// And its outer bound, for an adapter that hangs.
const HUNG: Duration = Duration::from_secs(60);
/// The longest pause after faults.
const BACK_OFF: Span = Span::from_mins(5);
/// How often a changed configuration is noticed.
const NOTICE: Duration = Duration::from_secs(1);

/// Cursors by source: from the store at the start, then as the core has taken them.
type Cursors = Arc<Mutex<BTreeMap<String, Cursor>>>;

/// What every reader needs.
#[derive(Clone)]
struct Desk {
    asks: mpsc::Sender<Ask>,
    metrics: Arc<Metrics>,
    cursors: Cursors,
}

/// The cursors that a store holds.
#[must_use]
pub fn stored_cursors(meta: &BTreeMap<String, String>) -> BTreeMap<String, Cursor> {
    let sources = meta.iter().filter_map(|(name, text)| {
        let state: SourceState = serde_json::from_str(text).ok()?;
        Some((name.strip_prefix("audit:")?.to_owned(), state.cursor?))
    });
    sources.collect()
}

/// Reads until `closed`; a reload that changes sources or providers starts the readers anew.
pub async fn run(
    config: Swap<Config>,
    asks: mpsc::Sender<Ask>,
    metrics: Arc<Metrics>,
    cursors: BTreeMap<String, Cursor>,
    mut closed: flag::Receiver<bool>,
) {
    let desk = Desk { asks, metrics, cursors: Arc::new(Mutex::new(cursors)) };
    loop {
        let present = config.load_full();
        let mut readers = JoinSet::new();
        for source in present.audit.iter().filter(|source| source.kind != AuditKind::Push) {
            let Some(provider) = present.providers.get(&source.provider).cloned() else { continue };
            let keys = google_projects(&present, source);
            readers.spawn(read(desk.clone(), source.clone(), provider, keys));
        }
        loop {
            let stop = tokio::select! {
                _ = closed.wait_for(|closed| *closed) => true,
                () = tokio::time::sleep(NOTICE) => false,
            };
            if stop {
                readers.shutdown().await;
                return;
            }
            let now = config.load();
            if !Arc::ptr_eq(&now, &present)
                && (now.audit != present.audit || now.providers != present.providers || now.keys.len() != present.keys.len())
            {
                break;
            }
        }
        readers.shutdown().await;
    }
}

/// Projects whose logs a Google source reads when it names none: those of the keys.
fn google_projects(config: &Config, source: &AuditSource) -> Vec<String> {
    let own = config.keys.values().filter(|key| key.provider == source.provider);
    let mut projects: Vec<String> = match &source.address {
        Some(project) => vec![project.clone()],
        None => own.map(|key| key.target.reference.account().to_owned()).collect(),
    };
    projects.sort();
    projects.dedup();
    projects
}

async fn open(source: &AuditSource, provider: &Provider, projects: &[String]) -> Result<Box<dyn AuditLog>, AuditFault> {
    let ids = || source_external_ids(provider, source).map_err(|fault| AuditFault::new(AuditTrouble::Misconfigured, fault));
    Ok(match source.kind {
        AuditKind::CloudTrail => Box::new(CloudTrail::open(provider, source, ids()?, CALL).await?),
        AuditKind::Sqs => Box::new(Sqs::open(provider, source, ids()?, CALL).await?),
        AuditKind::CloudLogging => Box::new(CloudLogging::open(provider, source, projects, CALL).await?),
        AuditKind::AzureMonitor => Box::new(AzureMonitor::open(provider, source, CALL)?),
        AuditKind::Push => {
            return Err(AuditFault::new(AuditTrouble::Misconfigured, "this kind of source is not read here"));
        }
    })
}

/// One source, for ever.
async fn read(desk: Desk, source: AuditSource, provider: Provider, projects: Vec<String>) {
    let mut reader = Reader { desk, source, seen: Seen::default(), failures: 0 };
    let mut log: Option<Box<dyn AuditLog>> = None;
    loop {
        let opened = match log.take() {
            Some(log) => Ok(log),
            None => open(&reader.source, &provider, &projects).await,
        };
        let pause = match opened {
            Ok(opened) => {
                let pause = reader.turn(&*opened).await;
                log = Some(opened);
                pause
            }
            Err(fault) => reader.failed(fault).await,
        };
        tokio::time::sleep(pause.to_std()).await;
    }
}

struct Reader {
    desk: Desk,
    source: AuditSource,
    seen: Seen,
    failures: u32,
}

impl Reader {
    fn cursor(&self) -> Cursor {
        let cursors = self.desk.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.get(&self.source.name).cloned().unwrap_or_default()
    }

    /// One call and what follows from it; gives the pause until the next.
    async fn turn(&mut self, log: &dyn AuditLog) -> Span {
        let cursor = self.cursor();
        let page = match tokio::time::timeout(HUNG, log.poll(&cursor, clock::now())).await {
            Ok(Ok(page)) => page,
            Ok(Err(fault)) => return self.failed(fault).await,
            Err(_) => return self.failed(AuditFault::new(AuditTrouble::Timeout, "the source does not answer")).await,
        };
        let (more, receipts) = (page.more, page.receipts.clone());
        if page.malformed > 0 {
            tracing::warn!(source = self.source.name, entries = page.malformed, "entries of an audit log could not be read");
            self.desk.metrics.audit_malformed(&self.source.name, page.malformed);
        }
        if let Err(why) = self.hand_over(page).await {
            // Nothing is lost: the same page is read again.
            tracing::warn!(source = self.source.name, why, "the core did not take what an audit source told");
            return self.back_off();
        }
        if let Err(fault) = log.taken(&receipts).await {
            return self.failed(fault).await;
        }
        self.failures = 0;
        if more { log.pace() } else { jittered(self.source.poll_interval).max(log.pace()) }
    }

    async fn hand_over(&mut self, page: Page) -> Result<(), String> {
        let fresh: Vec<_> = page.events.into_iter().filter(|event| !self.seen.knows(&event.id)).collect();
        let ids: Vec<(String, AuditMeaning)> = fresh.iter().map(|event| (event.id.clone(), event.meaning)).collect();
        let mut events: Vec<_> = fresh.into_iter().filter(|event| event.meaning != AuditMeaning::Use).collect();
        events.iter_mut().for_each(|event| mask(event, &self.source.mask));
        let told = Told {
            source: self.source.name.clone(),
            events,
            cursor: Some(page.cursor.clone()),
            seen_until: page.seen_until,
            gaps: page.gaps,
            unseen: (!page.more).then_some(page.unseen),
            trouble: None,
        };
        self.tell(told).await?;
        for (id, meaning) in ids {
            if self.seen.first(&id) {
                self.desk.metrics.audit_event(&self.source.name, meaning);
            }
        }
        self.desk.cursors.lock().unwrap_or_else(PoisonError::into_inner).insert(self.source.name.clone(), page.cursor);
        Ok(())
    }

    /// To the core, and back when it is on disk.
    async fn tell(&self, told: Told) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let operation = Operation { actor: format!("audit:{}", self.source.name), action: Action::Audit { told: Box::new(told) } };
        self.desk.asks.send(Ask { operation, answer }).await.map_err(|_| "the daemon is stopping".to_owned())?;
        match answered.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refusal)) => Err(refusal.to_string()),
            Err(_) => Err("the daemon is stopping".to_owned()),
        }
    }

    async fn failed(&mut self, fault: AuditFault) -> Span {
        tracing::warn!(source = self.source.name, %fault, "an audit source could not be read");
        self.desk.metrics.audit_fault(&self.source.name, fault.kind);
        self.begin_window_again(fault.kind);
        let told = Told { source: self.source.name.clone(), trouble: Some(fault), ..Told::default() };
        if let Err(why) = self.tell(told).await {
            tracing::warn!(source = self.source.name, why, "the trouble of an audit source could not be noted");
        }
        self.back_off()
    }

    /// A page's token that is refused will be refused for ever: the window is read from its beginning.
    fn begin_window_again(&self, kind: AuditTrouble) {
        if matches!(kind, AuditTrouble::Misconfigured | AuditTrouble::Malformed) {
            let mut cursors = self.desk.cursors.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(cursor) = cursors.get_mut(&self.source.name) {
                (cursor.window, cursor.page) = (None, None);
            }
        }
    }

    fn back_off(&mut self) -> Span {
        self.failures = self.failures.saturating_add(1);
        let factor = 1u64.checked_shl(self.failures.min(8)).unwrap_or(256);
        jittered(Span::from_secs(1).times(factor).min(BACK_OFF))
    }
}

/// Up to a tenth more or less, so that sources do not call in step.
fn jittered(span: Span) -> Span {
    let noise = clock::now().mono.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let tenth = span.over(10).0.max(1);
    span.minus(Span(tenth)).plus(Span(noise.checked_rem(tenth.saturating_mul(2)).unwrap_or(0)))
}

/// The parts of a check that need no call: secrets and identities of every source.
///
/// # Errors
/// One line per source that cannot be opened.
pub fn check(config: &Config) -> Result<(), String> {
    let mut faults = Vec::new();
    for source in &config.audit {
        if let Some(provider) = config.providers.get(&source.provider)
            && let Err(fault) = source_external_ids(provider, source)
        {
            faults.push(format!("audit.{}: {fault}", source.name));
        }
        let secret = match &source.auth {
            Some(crate::config::PushAuth::ApiKey(secret) | crate::config::PushAuth::SasKey(secret)) => Some(secret),
            Some(crate::config::PushAuth::Oidc { .. }) | None => None,
        };
        if let Some(Err(fault)) = secret.map(crate::secrets::resolve) {
            faults.push(format!("audit.{}.auth: {fault}", source.name));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}
