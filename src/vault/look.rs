//! outside
//! The vault's look at its own keys: wrap and unwrap fresh bytes, open one stored data key after the
//! other, tell the core of a change, wrap anew what a rotation left behind, and finish events that a
//! crash cut off. It is no probe, knows no customer's key, and nothing that it sees locks anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::desk::{KeyLook, Vault, VaultFault, held};
use super::seal::{DataKey, VaultKey};
use super::wraps::{DataKeyId, KeyRole, KeyWatch, Look, Told, Wanted, rewrap_plan};
use super::{PreservationRow, desk};
use crate::clock;
use crate::http::Ask;
use crate::kms::KmsError;
use crate::operate::{Action, Operation};
use crate::time::{Now, Span, Wall};
use crate::words::EventType;

/// Data keys wrapped anew after one look, and by one command.
pub const REWRAP_STEP: usize = 20;
pub const REWRAP_COMMAND: usize = 200;
/// A preservation whose event is missing for so long is taken to be cut off.
const CUT_OFF: Span = Span::from_secs(60);
const SWEEP: usize = 100;
/// Who wrote what no caller asked for.
const ACTOR: &str = "vault";

/// What wrapping anew came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Rewrapped {
    pub rewrapped: usize,
    pub failed: usize,
    /// Data keys that still lie under something else than they should.
    pub left: usize,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub struct Looker {
    watches: BTreeMap<KeyRole, KeyWatch>,
    /// The last stored data key that each role opened.
    opened: BTreeMap<KeyRole, DataKeyId>,
}

/// Something to tell the core of a key.
#[derive(Clone, PartialEq, Debug)]
pub struct News {
    pub role: KeyRole,
    pub told: Told,
    pub text: String,
}

impl Vault {
    /// Replaces the vault's keys after a reload.
    pub async fn set_keys(&self, keys: Vec<VaultKey>) {
        let names: Vec<_> = self.keys.load().iter().map(|key| (key.role, key.name.clone())).collect();
        let same = names == keys.iter().map(|key| (key.role, key.name.clone())).collect::<Vec<_>>();
        self.keys.store(Arc::new(keys));
        let mut ring = self.ring.lock().await;
        if !same {
            held(&self.looks).clear();
            ring.forget();
        }
    }

    /// One look at each key. What it finds is shown; what is new comes back.
    pub async fn look(&self, looker: &mut Looker, now: Now) -> Vec<News> {
        let keys = self.keys.load_full();
        self.opened.sweep(now.mono);
        let mut news = Vec::new();
        for key in keys.iter() {
            let seen = self.look_at(key, looker, now).await;
            let fault = seen.as_ref().err().cloned();
            let version = seen.ok().flatten();
            let wanted = Wanted { role: key.role, name: key.name.clone(), version };
            let look = fault.as_ref().map_or(Look::Good, |error| Look::Bad(error.kind));
            let told = looker.watches.entry(key.role).or_default().look(&look);
            self.show(now, key, wanted, fault.clone());
            if let Some(told) = told {
                news.push(News { role: key.role, told, text: text(key, told, fault.as_ref()) });
            }
        }
        self.metrics.vault_readable((!keys.is_empty()).then(|| self.readable()));
        self.show_data_keys().await;
        news
    }

    fn show(&self, now: Now, key: &VaultKey, wanted: Wanted, fault: Option<KmsError>) {
        self.metrics.vault_key_healthy(key.role.as_str(), fault.is_none());
        let mut looks = held(&self.looks);
        let last = looks.get(&key.role);
        let since = last.filter(|last| last.fault.is_some() == fault.is_some()).map_or(now.wall, |last| last.since);
        // A key that does not answer keeps the version that it was last seen to have.
        let version = wanted.version.clone().or_else(|| last.filter(|last| last.wanted.name == wanted.name)?.wanted.version.clone());
        looks.insert(key.role, KeyLook { at: now.wall, since, fault, wanted: Wanted { version, ..wanted } });
    }

    /// Whether a key of the vault opens it, as last seen.
    #[must_use]
    pub fn readable(&self) -> bool {
        held(&self.looks).values().any(|look| look.fault.is_none())
    }

    /// The last looks by role.
    #[must_use]
    pub fn looks(&self) -> BTreeMap<KeyRole, KeyLook> {
        held(&self.looks).clone()
    }

    /// Fresh bytes there and back, then one stored data key. Gives the version that wraps now.
    async fn look_at(&self, key: &VaultKey, looker: &mut Looker, now: Now) -> Result<Option<crate::key::KeyVersion>, KmsError> {
        let fresh =
            DataKey::draw().map_err(|_| KmsError::new(crate::words::FailureKind::Unclassified, false, "random", "no random bytes"))?;
        let version = key.wrap(&fresh, now.wall, &self.metrics).await?.wrapped.version;
        let last = looker.opened.get(&key.role).cloned();
        let next = {
            let ring = self.ring.lock().await;
            let mut mine = ring.rows().filter_map(|row| {
                let wrap = row.wraps.iter().find(|wrap| wrap.name.reference == key.name.reference)?;
                Some((row.id.clone(), wrap.clone()))
            });
            let first = mine.next();
            let after = match &last {
                Some(last) => first.clone().into_iter().chain(mine).find(|(id, _)| id > last),
                None => None,
            };
            after.or(first)
        };
        if let Some((id, wrap)) = next {
            key.unwrap(&wrap, &self.metrics).await?;
            looker.opened.insert(key.role, id);
        }
        Ok(version)
    }

    /// What each data key should lie under: `None` while a key has not been looked at.
    fn wanted(&self) -> Option<Vec<Wanted>> {
        let keys = self.keys.load();
        let looks = held(&self.looks);
        keys.iter().map(|key| looks.get(&key.role).map(|look| look.wanted.clone()).filter(|w| w.name == key.name)).collect()
    }

    async fn show_data_keys(&self) {
        let wanted = self.wanted().unwrap_or_default();
        let rows: Vec<_> = self.ring.lock().await.rows().cloned().collect();
        let stale = rewrap_plan(&rows, &wanted, false, usize::MAX).len();
        self.metrics.vault_data_keys(rows.len().saturating_sub(stale), stale);
    }

    /// Number of data keys, and of those that should be wrapped anew.
    pub async fn data_keys(&self) -> (usize, usize) {
        let wanted = self.wanted().unwrap_or_default();
        let rows: Vec<_> = self.ring.lock().await.rows().cloned().collect();
        (rows.len(), rewrap_plan(&rows, &wanted, false, usize::MAX).len())
    }

    /// Wraps data keys anew that do not lie under what they should, or every one; `most` at once.
    ///
    /// # Errors
    /// Without keys, or before the first look at them.
    pub async fn rewrap(&self, all: bool, most: usize) -> Result<Rewrapped, VaultFault> {
        let keys = self.ordered()?;
        let wanted = self.wanted().ok_or(VaultFault::Busy)?;
        let plan = {
            let rows: Vec<_> = self.ring.lock().await.rows().cloned().collect();
            rewrap_plan(&rows, &wanted, all, most)
        };
        let mut came = Rewrapped::default();
        for id in plan {
            // The ring is free between two of them: readers and writers go on.
            let done = self.ring.lock().await.rewrap(&id, &wanted, all, self.with(&keys, clock::now())).await;
            self.metrics.vault_rewrap(done.is_ok());
            match done {
                Ok(()) => came.rewrapped = came.rewrapped.saturating_add(1),
                Err(error) => {
                    came.failed = came.failed.saturating_add(1);
                    tracing::warn!(data_key = id.as_str(), %error, "a data key could not be wrapped anew; it still opens as before");
                }
            }
        }
        let rows: Vec<_> = self.ring.lock().await.rows().cloned().collect();
        came.left = rewrap_plan(&rows, &wanted, false, usize::MAX).len();
        self.show_data_keys().await;
        Ok(came)
    }
}

fn text(key: &VaultKey, told: Told, fault: Option<&KmsError>) -> String {
    let role = key.role.as_str();
    let name = format!("{}/{}", key.name.provider, key.name.reference);
    match (told, fault) {
        (Told::Failing, Some(error)) => format!(
            "The {role} key of the safety vault ({name}) does not wrap and unwrap: {} ({}). No workspace is locked for it; safety metadata may become unreadable.",
            error.kind, error.code
        ),
        (Told::Failing, None) => format!("The {role} key of the safety vault ({name}) does not wrap and unwrap."),
        (Told::Recovered, _) => format!("The {role} key of the safety vault ({name}) wraps and unwraps again."),
    }
}

/// The event of a preservation: reason, person, workspace and id; never content.
#[must_use]
pub fn event_of(row: &PreservationRow) -> Action {
    Action::Journal {
        event: EventType::SafetyPreserved,
        workspace: row.sealed.place.workspace.clone(),
        event_id: Some(row.sealed.place.id.to_string()),
        detail: BTreeMap::from([
            ("preservation".to_owned(), row.sealed.place.id.to_string()),
            ("reason_code".to_owned(), row.reason.as_str().to_owned()),
            ("person".to_owned(), row.person.to_string()),
        ]),
    }
}

/// Looks at once, then every so often, until the daemon stops.
pub async fn run(vault: Arc<Vault>, asks: mpsc::Sender<Ask>, every: impl Fn() -> Duration + Send) {
    let (mut looker, started) = (Looker::default(), clock::now().wall);
    loop {
        for News { role, told, text } in vault.look(&mut looker, clock::now()).await {
            let action = Action::VaultKey { role, failing: told == Told::Failing, text };
            if ask(&asks, action).await.is_none() {
                return;
            }
        }
        if vault.configured() {
            match vault.rewrap(false, REWRAP_STEP).await {
                Ok(came) if came.rewrapped > 0 => {
                    tracing::info!(rewrapped = came.rewrapped, left = came.left, "data keys of the vault were wrapped anew")
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "no data key can be wrapped anew now"),
            }
            finish_events(&vault, &asks, started).await;
        }
        tokio::select! {
            () = tokio::time::sleep(every()) => {}
            () = asks.closed() => return,
        }
    }
}

/// Events that a crash or a store out of order cut off.
async fn finish_events(vault: &desk::Vault, asks: &mpsc::Sender<Ask>, started: Wall) {
    let rows = match vault.records.unjournaled(SWEEP).await {
        Ok(rows) => rows,
        Err(fault) => return tracing::warn!(%fault, "preservations could not be read"),
    };
    let now = clock::now().wall;
    // One that an earlier run wrote has nobody left who could finish it.
    let cut_off = |at: Wall| at < started || now.since(at) >= CUT_OFF;
    for row in rows.into_iter().filter(|row| cut_off(row.sealed.place.written_at)) {
        if ask(asks, event_of(&row)).await == Some(true)
            && let Err(error) = vault.journaled(&row.sealed.place.id).await
        {
            tracing::warn!(%error, "an event was written and could not be noted; it is written again");
        }
    }
}

/// `None` when the daemon stops.
async fn ask(asks: &mpsc::Sender<Ask>, action: Action) -> Option<bool> {
    let (answer, answered) = oneshot::channel();
    asks.send(Ask { operation: Operation { actor: ACTOR.to_owned(), action }, answer }).await.ok()?;
    answered.await.ok().map(|answered| answered.is_ok())
}
