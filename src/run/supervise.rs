//! outside
//! What the service manager hears: READY, STATUS, WATCHDOG. A failing key never stops the pings; a
//! stuck loop, or a key without evidence or recorded miss, does.

use crate::published::Published;
use crate::time::{Mono, Now, Span};
use crate::watch::Watch;
use crate::words::{Access, StateWord};

/// Keeps the pings at half the watchdog's time.
#[derive(Debug, Default)]
pub struct Supervisor {
    watchdog: Option<Span>,
    pinged: Mono,
    status_at: Mono,
}

/// STATUS is renewed at most so often.
const STATUS_EVERY: Span = Span::from_secs(5);

impl Supervisor {
    #[must_use]
    pub fn new() -> Self {
        let watchdog = sd_notify::watchdog_enabled().map(|every| Span(u64::try_from(every.as_millis()).unwrap_or(u64::MAX)).over(2));
        Self { watchdog, ..Self::default() }
    }

    pub fn turn(&mut self, now: Now, watch: &Watch, published: &Published) {
        if let Some(every) = self.watchdog
            && now.mono.since(self.pinged) >= every.over(2)
            && watch.overdue(now) == 0
        {
            self.pinged = now.mono;
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
        if now.mono.since(self.status_at) >= STATUS_EVERY {
            self.status_at = now.mono;
            notify(&[sd_notify::NotifyState::Status(&status(published))]);
        }
    }
}

/// One line for `systemctl status`.
fn status(published: &Published) -> String {
    let snapshot = published.load();
    let locked = snapshot.workspaces.values().filter(|ws| ws.access != Access::Open).count();
    let failing = snapshot.keys.values().filter(|key| !matches!(key.state, StateWord::Active | StateWord::Retired)).count();
    let flagged = if snapshot.daemon.config_flagged.is_some() { "; configuration file refused, last good one in force" } else { "" };
    format!("watching {} keys, {failing} not active, {locked} workspaces restricted{flagged}", snapshot.keys.len())
}

pub fn ready() {
    notify(&[sd_notify::NotifyState::Ready]);
}

pub fn stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// Thousands of connections and calls need descriptors; the soft limit is often 1,024.
pub fn raise_descriptor_limit() {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limits.maximum, maximum: limits.maximum };
    if limits.current != limits.maximum && rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).is_err() {
        tracing::warn!("the limit of open files could not be raised");
    }
}
