//! outside
//! One full round of one key, without the daemon: through the real adapter, with the canaries that
//! the daemon stored, judged by the same rules. It must never store or lock anything, and one look
//! confirms nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::exit::{self, CliError};
use super::show::{Shown, or_dash, row, table};
use crate::config::{Config, Key, Provider, Source, StoreUrl};
use crate::drive::Identities;
use crate::journal::CanaryRow;
use crate::key::{KeyId, KeyVersion, ProviderId};
use crate::kms::Kms;
use crate::policy::Policy;
use crate::probe::{Evidence, LegResult, Plan};
use crate::providers::Providers;
use crate::snapshot::{FactsView, KeyView, ProbeView, VersionView};
use crate::store::sqlite;
use crate::time::{Now, Span};
use crate::verdict::{self, Direction, Verdict, Witness};
use crate::words::{FailureKind, Leg, LegOutcome, StateWord, VerdictWord};

const CONTROL_TIMEOUT: Span = Span::from_secs(10);

/// The control key's answer.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ControlView {
    pub key: String,
    pub healthy: bool,
    /// Refused as we are: it is about us.
    pub denied_like_us: bool,
    pub legs: Vec<LegResult>,
}

/// A key as the look found it: the shape of `GET /v1/keys/{id}`, and the control key if it was asked.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Looked {
    #[serde(flatten)]
    pub view: KeyView,
    pub control: Option<ControlView>,
    /// Why the verdict is what it is, where the legs alone do not say.
    pub note: Option<String>,
}

impl Looked {
    pub fn verdict(&self) -> VerdictWord {
        self.view.verdict.unwrap_or(VerdictWord::Inconclusive)
    }
}

/// # Errors
/// If there is no such key or its provider cannot be opened.
pub async fn probe(config: &Config, id: &str) -> Result<Shown, CliError> {
    let key = config.keys.get(id).ok_or_else(|| unknown(config, id))?;
    let (canaries, note) = stored(config, Some(&key.id)).await;
    let providers = if key.refused.is_some() { Providers::default() } else { Providers::open(config, Some(&key.provider)).await? };
    let looker = Looker { providers, identities: Identities::default(), canaries };
    let looked = looker.look(config, key).await;
    let code = exit_code(looked.verdict());
    let text = long_text(&looked);
    Ok(Shown::good(serde_json::json!(looked), text).with_code(code).with_notes(note.into_iter().collect()))
}

#[must_use]
pub const fn exit_code(verdict: VerdictWord) -> u8 {
    match verdict {
        VerdictWord::Usable => 0,
        VerdictWord::Impaired => exit::IMPAIRED,
        VerdictWord::Revoked => exit::REVOKED,
        VerdictWord::Inconclusive => exit::INCONCLUSIVE,
    }
}

fn unknown(config: &Config, id: &str) -> CliError {
    let some: Vec<&str> = config.keys.keys().take(10).map(KeyId::as_str).collect();
    let more = if config.keys.len() > some.len() { ", ..." } else { "" };
    CliError::Unknown(format!("key `{id}` is not in the configuration; it has: {}{more}", some.join(", ")))
}

/// Canaries that the daemon stored, of one key or all; without them the look goes on.
pub async fn stored(config: &Config, key: Option<&KeyId>) -> (BTreeMap<KeyId, Vec<CanaryRow>>, Option<String>) {
    let mut by_key: BTreeMap<KeyId, Vec<CanaryRow>> = BTreeMap::new();
    let StoreUrl::Sqlite(path) = &config.store.url else { return (by_key, None) };
    match sqlite::canaries(Path::new(path), key).await {
        Ok(rows) => {
            for row in rows {
                by_key.entry(row.key.clone()).or_default().push(row);
            }
            (by_key, None)
        }
        Err(error) => (by_key, Some(format!("note: stored canaries cannot be read ({error}); only fresh ones are opened"))),
    }
}

/// Everything that a look needs.
#[derive(Debug)]
pub struct Looker {
    pub providers: Providers,
    pub identities: Identities,
    pub canaries: BTreeMap<KeyId, Vec<CanaryRow>>,
}

impl Looker {
    /// A full round of one key, and of its control key if a denial may be about us.
    pub async fn look(&self, config: &Config, key: &Key) -> Looked {
        let policy = config.policies.get(&key.policy).cloned().unwrap_or_default();
        let (Some(kms), None) = (self.providers.get(&key.provider), &key.refused) else {
            let why = key.refused.clone().unwrap_or_else(|| "its provider is not open".to_owned());
            return refused(config, key, crate::clock::now(), why);
        };
        let known = self.canaries.get(&key.id).map_or(&[][..], Vec::as_slice);
        let evidence = self.round(&key.provider, kms, plan(key, known, &policy)).await;
        let locks = |kind: FailureKind| policy.on.get(&kind).is_some_and(|rule| rule.access.is_some());
        let mut control = None;
        let mut witness = Witness::Broken;
        if verdict::needs_witness(&evidence, locks)
            && let Some(provider) = config.providers.get(&key.provider)
            && let Some((found, view)) = self.control(provider).await
        {
            witness = found;
            control = Some(view);
        }
        let was_good = identity_was_good(known, evidence.identity.as_deref());
        let judged = verdict::judge(&evidence, was_good, witness);
        let (word, kind) = offline_word(&judged, &evidence);
        let note = note(&judged, word, &evidence, was_good, witness, control.is_some());
        Looked { view: view(config, key, known, &evidence, word, kind), control, note }
    }

    /// A round of a provider's control key; `None` if it has none.
    pub async fn control(&self, provider: &Provider) -> Option<(Witness, ControlView)> {
        let (target, kms) = (provider.control_key.clone()?, self.providers.get(&provider.id)?);
        let key = target.reference.text.to_string();
        let plan = Plan {
            target,
            unwrap_first: false,
            describe: false,
            current: None,
            older: Vec::new(),
            missing: Vec::new(),
            rotation: true,
            deadline: CONTROL_TIMEOUT.times(3),
            call_timeout: CONTROL_TIMEOUT,
        };
        let evidence = self.round(&provider.id, kms, plan).await;
        let witness = match without_canary(&evidence) {
            // With no canary a refused wrap says nothing of what is stored, but it does speak of us.
            Some(FailureKind::AccessDenied | FailureKind::Credentials) => Witness::DeniedLikeUs,
            Some(_) => Witness::Broken,
            None => crate::watch::testimony(&verdict::judge(&evidence, true, Witness::Good)),
        };
        let denied_like_us = witness == Witness::DeniedLikeUs;
        let view = ControlView { key, healthy: witness == Witness::Good, denied_like_us, legs: evidence.legs };
        Some((witness, view))
    }

    /// In a task of its own, so that an adapter that panics loses one round and nothing else.
    async fn round(&self, provider: &ProviderId, kms: Arc<dyn Kms>, plan: Plan) -> Evidence {
        let (identities, provider) = (self.identities.clone(), provider.clone());
        let started = crate::clock::now();
        let task = tokio::spawn(async move { identities.drive(&provider, &*kms, plan).await });
        task.await.unwrap_or_else(|_| Evidence::lost(started, FailureKind::Unclassified, "adapter_failed"))
    }
}

/// The round of `validate`: every leg, every stored version.
fn plan(key: &Key, known: &[CanaryRow], policy: &Policy) -> Plan {
    let newest = known.iter().max_by_key(|row| row.created_at);
    let older: Vec<_> = known.iter().filter(|row| Some(*row) != newest).map(|row| row.wrapped.clone()).collect();
    let calls = u64::try_from(older.len()).unwrap_or(0).saturating_add(3);
    Plan {
        target: Arc::clone(&key.target),
        unwrap_first: false,
        describe: true,
        current: newest.map(|row| row.wrapped.clone()),
        older,
        missing: Vec::new(),
        rotation: true,
        deadline: policy.call_timeout.times(calls),
        call_timeout: policy.call_timeout,
    }
}

/// Where the store knows who was good on this key, another identity's denial is about that identity.
fn identity_was_good(known: &[CanaryRow], identity: Option<&str>) -> bool {
    let mut names = known.iter().filter_map(|row| row.identity.as_deref()).peekable();
    names.peek().is_none() || names.any(|name| Some(name) == identity)
}

/// The kind for which wrap was refused, if unwrap could not be tried for want of a canary.
fn without_canary(evidence: &Evidence) -> Option<FailureKind> {
    let outcome = |leg| evidence.leg(leg).map(|l| l.outcome);
    let untried = outcome(Leg::Wrap) == Some(LegOutcome::Failed) && outcome(Leg::Unwrap) == Some(LegOutcome::NotRun);
    evidence.leg(Leg::Wrap).filter(|_| untried).and_then(|leg| leg.failure_kind)
}

/// The word shown. Where no canary is stored, unwrap cannot be tried while wrap is refused. If wrap
/// and describe both state that the key is disabled, pending deletion or destroyed, that is said:
/// such a key opens nothing either. Nothing is locked by this word.
fn offline_word(judged: &Verdict, evidence: &Evidence) -> (VerdictWord, Option<FailureKind>) {
    let stated = |leg| evidence.leg(leg).is_some_and(|l| l.stated && l.failure_kind.is_some_and(verdict::is_key_state));
    match judged {
        Verdict::Unsure { direction: Direction::Wrap, kind, .. }
            if without_canary(evidence).is_some() && stated(Leg::Wrap) && stated(Leg::Describe) =>
        {
            (VerdictWord::Revoked, Some(*kind))
        }
        Verdict::Unsure { .. } | Verdict::Refused(_) | Verdict::Good { .. } => (judged.word(), judged.kind()),
    }
}

fn note(judged: &Verdict, word: VerdictWord, evidence: &Evidence, was_good: bool, witness: Witness, asked: bool) -> Option<String> {
    let about_us = matches!(judged, Verdict::Unsure { kind: FailureKind::Credentials, .. });
    let text = if about_us && !was_good {
        let who = evidence.identity.as_deref().unwrap_or("nobody known");
        format!("refused as {who}, who was never good on this key: this says nothing about the key")
    } else if about_us && witness == Witness::DeniedLikeUs {
        "the control key is refused too: it is us, not the owner of the key".to_owned()
    } else if without_canary(evidence).is_some() && word == VerdictWord::Inconclusive {
        "wrap is refused, and with no stored canary unwrap could not be tried".to_owned()
    } else if word == VerdictWord::Revoked && verdict::needs_witness(evidence, |_| false) && witness == Witness::Broken {
        let what = if asked { "the control key could not vouch for us" } else { "there is no control key to vouch for us" };
        format!("{what}: the daemon would ask for more looks")
    } else if let Verdict::Good { warned: Some(kind), .. } = judged {
        format!("the key works, but describe states {kind}")
    } else {
        return None;
    };
    Some(text)
}

fn base(config: &Config, key: &Key, now: Now) -> KeyView {
    let policy = config.policies.get(&key.policy);
    KeyView {
        id: key.id.clone(),
        provider: key.provider.clone(),
        provider_kind: config.providers.get(&key.provider).map_or(crate::words::ProviderKind::Local, Provider::kind),
        key: key.target.reference.text.to_string(),
        policy: key.policy.to_string(),
        state: StateWord::Unproven,
        verdict: None,
        failure_kind: None,
        stated: false,
        confirmed: false,
        held_by: None,
        enforced: policy.is_none_or(|policy| policy.enforce),
        would_access: None,
        since: now.wall,
        workspaces: key.workspaces.clone(),
        owner: key.owner.clone(),
        versions: Vec::new(),
        facts: FactsView::default(),
        last_probe: None,
        last_conclusive_at: None,
        next_probe_at: None,
        identity: None,
        source: match key.source {
            Source::File => "file".to_owned(),
            Source::Api => "api".to_owned(),
        },
        refused: None,
        rotations: 0,
    }
}

fn refused(config: &Config, key: &Key, now: Now, why: String) -> Looked {
    let verdict = Some(VerdictWord::Inconclusive);
    let view = KeyView { verdict, failure_kind: Some(FailureKind::Misconfigured), ..base(config, key, now) };
    Looked { view, control: None, note: Some(why) }
}

fn view(config: &Config, key: &Key, known: &[CanaryRow], evidence: &Evidence, word: VerdictWord, kind: Option<FailureKind>) -> KeyView {
    // What one look can say; the daemon's own state needs its history.
    let state = match word {
        VerdictWord::Usable => StateWord::Active,
        VerdictWord::Impaired => StateWord::Impaired,
        VerdictWord::Revoked => StateWord::Suspect,
        VerdictWord::Inconclusive => StateWord::Unproven,
    };
    let stated = evidence.legs.iter().any(|leg| leg.leg != Leg::Describe && leg.stated);
    KeyView {
        state,
        verdict: Some(word),
        failure_kind: kind,
        stated,
        since: evidence.started.wall,
        versions: versions(known, evidence),
        facts: facts(evidence),
        last_probe: Some(ProbeView { at: evidence.started.wall, legs: evidence.legs.clone() }),
        last_conclusive_at: (word != VerdictWord::Inconclusive).then_some(evidence.started.wall),
        identity: evidence.identity.as_ref().map(ToString::to_string),
        ..base(config, key, evidence.started)
    }
}

/// Versions that describe lists, that a canary is stored for, or that a leg named.
fn versions(known: &[CanaryRow], evidence: &Evidence) -> Vec<VersionView> {
    let mut found: BTreeMap<KeyVersion, VersionView> = BTreeMap::new();
    let empty = |version: &KeyVersion, protects_data| VersionView {
        version: version.clone(),
        usable: None,
        protects_data,
        last_checked: None,
        current: false,
        retired: false,
        failure_kind: None,
    };
    for fact in evidence.facts.iter().flat_map(|facts| &facts.versions) {
        found.insert(fact.version.clone(), empty(&fact.version, true));
    }
    for row in known {
        found.insert(row.version.clone(), empty(&row.version, true));
    }
    for leg in evidence.legs.iter().filter(|leg| matches!(leg.leg, Leg::Unwrap | Leg::UnwrapVersion)) {
        let Some(version) = leg.version.as_ref().filter(|_| leg.outcome != LegOutcome::NotRun) else { continue };
        let view = found.entry(version.clone()).or_insert_with(|| empty(version, true));
        view.usable = Some(leg.outcome == LegOutcome::Ok);
        view.last_checked = Some(evidence.started.wall);
        view.failure_kind = leg.failure_kind;
    }
    let current = evidence.facts.as_ref().and_then(|facts| facts.current_version.clone());
    let current = current.or_else(|| evidence.fresh.as_ref().and_then(|fresh| fresh.version.clone()));
    if let Some(view) = current.and_then(|current| found.get_mut(&current)) {
        view.current = true;
    }
    found.into_values().collect()
}

fn facts(evidence: &Evidence) -> FactsView {
    let Some(facts) = &evidence.facts else { return FactsView::default() };
    FactsView {
        created_at: facts.created_at,
        rotated_at: facts.rotated_at,
        next_rotation_at: facts.next_rotation_at,
        deletion_at: facts.deletion_at,
        expires_at: facts.expires_at,
        not_before: facts.not_before,
        recoverable_until: facts.recoverable_until,
        protection_level: facts.protection_level.as_ref().map(ToString::to_string),
        origin: facts.origin.as_ref().map(ToString::to_string),
        multi_region: facts.multi_region,
        resolved: facts.resolved.as_ref().map(ToString::to_string),
        current_version: facts.current_version.clone(),
        rotation: facts.rotation,
        versions_truncated: facts.versions_truncated,
    }
}

/// Legs as a table.
#[must_use]
pub fn legs_text(indent: &str, legs: &[LegResult]) -> String {
    let mut rows = vec![row(&["LEG", "OUTCOME", "KIND", "CODE", "VERSION", "MS", "REQUEST ID"])];
    rows.extend(legs.iter().map(|leg| {
        vec![
            leg.leg.to_string(),
            leg.outcome.to_string(),
            or_dash(leg.failure_kind.map(|kind| if leg.stated { format!("{kind} (stated)") } else { kind.to_string() })),
            or_dash(leg.code.as_deref()),
            or_dash(leg.version.as_ref()),
            or_dash(leg.duration_ms.map(Span::as_millis)),
            or_dash(leg.request_id.as_deref()),
        ]
    }));
    table(indent, &rows)
}

/// The first line about a key, and every leg.
#[must_use]
pub fn long_text(looked: &Looked) -> String {
    let view = &looked.view;
    let kind = view.failure_kind.map_or_else(String::new, |kind| format!(" ({kind})"));
    let mut out = format!("{}: {}{kind}   {} {}\n", view.id, looked.verdict(), view.provider, view.key);
    if let Some(note) = &looked.note {
        out.push_str(&format!("  {note}\n"));
    }
    if let Some(probe) = &view.last_probe {
        out.push_str(&legs_text("  ", &probe.legs));
        for leg in probe.legs.iter().filter(|leg| leg.message.as_ref().is_some_and(|text| !text.is_empty())) {
            out.push_str(&table("  ", &[row(&[leg.leg.as_str(), leg.message.as_deref().unwrap_or_default()])]));
        }
    }
    if let Some(control) = &looked.control {
        let word = if control.healthy { "good" } else { "not good" };
        out.push_str(&format!("  control key {}: {word}\n{}", control.key, legs_text("    ", &control.legs)));
    }
    if let Some(identity) = &view.identity {
        out.push_str(&format!("  as {identity}\n"));
    }
    if looked.verdict() == VerdictWord::Revoked {
        out.push_str("  one look confirms nothing: `cmek-watchdog status` says what the daemon has confirmed\n");
    }
    out
}
