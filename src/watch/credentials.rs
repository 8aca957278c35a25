//! inside
//! The end of our own secrets, where somebody wrote it down: told once at each mark, quiet again when
//! a later date stands there. Short-lived tokens that renew themselves have no such date.

use serde::{Deserialize, Serialize};

use crate::key::ProviderId;
use crate::time::{Mono, Now, Span, Wall};
use crate::watch::Watch;
use crate::watch::restore::{from_text, to_text};
use crate::words::{EventType, Severity};

/// Name of the stored marks, before the provider.
pub const MARKS: &str = "credentials:";
/// Before the end, from the first to the last.
const BEFORE: [Span; 3] = [Span::from_days(30), Span::from_days(7), Span::from_days(1)];

/// What was told of one date.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    pub expires_at: Wall,
    /// The nearest mark that was told.
    pub mark: Span,
}

impl Watch {
    pub(super) fn restore_marks(&mut self, provider: ProviderId, text: &str) {
        if let Some(told) = from_text::<Told>(text) {
            self.credentials_told.insert(provider, told);
        }
    }

    /// Tells what is due. Of several marks that were passed at once only the nearest is told.
    pub(super) fn count_down_credentials(&mut self, now: Now) {
        let config = std::sync::Arc::clone(&self.config);
        let ended: Vec<ProviderId> = self
            .credentials_told
            .iter()
            .filter(|(id, told)| config.credentials_expire_at.get(*id) != Some(&told.expires_at))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            self.credentials_told.remove(&id);
            self.ledger.open.commit.meta.insert(format!("{MARKS}{id}"), None);
        }
        for (id, expires_at) in &config.credentials_expire_at {
            let left = expires_at.since(now.wall);
            let Some(mark) = BEFORE.into_iter().filter(|mark| left <= *mark).min() else { continue };
            if self.credentials_told.get(id).is_some_and(|told| told.mark <= mark) {
                continue;
            }
            let told = Told { expires_at: *expires_at, mark };
            self.credentials_told.insert(id.clone(), told);
            self.ledger.open.commit.meta.insert(format!("{MARKS}{id}"), Some(to_text(&told)));
            self.tell_credentials_end(now, id, *expires_at);
        }
    }

    /// Our own secret at a provider comes to its end.
    fn tell_credentials_end(&mut self, now: Now, provider: &ProviderId, at: Wall) {
        self.record(now, EventType::ProviderCredentials, None, None, [("provider", provider.to_string()), ("expires_at", at.to_string())]);
        let mut notice = self.notice(now, EventType::ProviderCredentials, Severity::Warning, None);
        notice.provider = Some(provider.clone());
        let ends = if at <= now.wall { "ended" } else { "end" };
        notice.message = format!("Our own credentials at provider {provider} {ends} at {at}. With them every look at its keys would fail.");
        notice.next_step = Some("Renew the secret, and write its new end into credentials_expire_at of the provider.".to_owned());
        self.send(now, notice);
    }

    /// When the next mark is passed.
    pub(super) fn next_credentials_mark(&self, now: Now) -> Option<Mono> {
        let marks = self.config.credentials_expire_at.values().flat_map(|at| BEFORE.into_iter().map(|before| at.minus(before)));
        marks.filter(|at| *at > now.wall).min().map(|at| now.mono.plus(at.since(now.wall)))
    }
}
