//! inside
//! The end of our own secrets: told at each mark before it, once, and again when it has come. Knows
//! the date from the configuration only; it must never touch a verdict.

use serde::{Deserialize, Serialize};

use crate::key::ProviderId;
use crate::notify::compose;
use crate::time::{Now, Span, Wall};
use crate::watch::Watch;
use crate::watch::restore::{from_text, to_text};
use crate::words::{EventType, Severity};

/// Time left at which people are told; the last is the end itself.
const MARKS: [Span; 4] = [Span::from_days(30), Span::from_days(7), Span::from_days(1), Span::ZERO];

/// What was told of one provider's secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    pub end: Wall,
    /// How many marks were passed when it was told last.
    pub marks: usize,
}

impl Watch {
    pub(super) fn mind_credential_ends(&mut self, now: Now) {
        let ends: Vec<(ProviderId, Option<Wall>)> =
            self.config.providers.values().map(|provider| (provider.id.clone(), provider.credentials_expire_at)).collect();
        for (provider, end) in ends {
            let told = self.credential_ends.get(&provider).copied();
            let Some(end) = end else {
                if told.is_some() {
                    self.keep_credential_end(&provider, None);
                }
                continue;
            };
            // A secret that was renewed has another end, and its marks are all ahead again.
            let before = told.filter(|told| told.end == end).map_or(0, |told| told.marks);
            let left = end.since(now.wall);
            let passed = MARKS.iter().filter(|mark| left <= **mark).count();
            if passed > before {
                self.tell_credential_end(now, &provider, end);
            }
            // Only ever more: a clock that goes back does not tell a mark twice.
            let marks = passed.max(before);
            if told != Some(Told { end, marks }) {
                self.keep_credential_end(&provider, Some(Told { end, marks }));
            }
        }
    }

    fn keep_credential_end(&mut self, provider: &ProviderId, told: Option<Told>) {
        let name = format!("credential_end:{provider}");
        self.ledger.open.commit.meta.insert(name, told.as_ref().map(to_text));
        match told {
            Some(told) => self.credential_ends.insert(provider.clone(), told),
            None => self.credential_ends.remove(provider),
        };
    }

    pub(super) fn restore_credential_end(&mut self, name: &str, text: &str) {
        let provider = name.strip_prefix("credential_end:").and_then(|id| ProviderId::new(id).ok());
        if let (Some(provider), Some(told)) = (provider, from_text::<Told>(text)) {
            self.credential_ends.insert(provider, told);
        }
    }

    fn tell_credential_end(&mut self, now: Now, provider: &ProviderId, end: Wall) {
        let detail = [("provider", provider.to_string()), ("credentials_expire_at", end.to_string())];
        self.record(now, EventType::ProviderCredentials, None, None, detail);
        let left = end.since(now.wall);
        let over = left == Span::ZERO;
        let severity = if over { Severity::Critical } else { Severity::Warning };
        let mut notice = self.notice(now, EventType::ProviderCredentials, severity, None);
        notice.provider = Some(provider.clone());
        notice.message = compose::credentials_end(provider.as_str(), end, left);
        notice.next_step = Some("Give us a new secret, and put its end into credentials_expire_at of this provider.".to_owned());
        self.send(now, notice);
    }
}
