//! inside
//! What audit logs and hints do in the core: they make a key due, and they say who did it. It writes
//! records and one follow-up notice; it must never touch looks, lifecycle, orders or brakes.

use std::collections::{BTreeMap, BTreeSet};

use crate::audit::attribution::{Asks, Episode, Question, SETTLE};
use crate::audit::{AuditEvent, Cursor, Gap, Told, is_opaque, subject};
use crate::config::AuditSource;
use crate::key::KeyId;
use crate::lifecycle::KeyState;
use crate::notify::{Notice, compose};
use crate::operate::{Refusal, RefusalSlug, Reply as Answer};
use crate::schedule::KeyIx;
use crate::snapshot::AuditView;
use crate::time::{Mono, Now, Span, Wall};
use crate::watch::ledger::Reply;
use crate::watch::restore::to_text;
use crate::watch::{Count, Effects, Ticket, Watch};
use crate::words::{AuditTrouble, EventType, FailureKind, Severity};
use serde::{Deserialize, Serialize};

/// Keys that one event (of a vault, a project) is heard for.
const KEYS_MAX: usize = 1000;
/// Ids of principals whose names are known.
const PRINCIPALS_MAX: usize = 1024;
/// Passing trouble of a source is told when it lasts so long.
const TROUBLE_TOLD: Span = Span::from_mins(10);
const GAPS_MAX: usize = 32;

/// What is kept of one source.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SourceState {
    pub cursor: Option<Cursor>,
    pub since: Option<Wall>,
    pub seen_until: Option<Wall>,
    pub trouble: Option<(AuditTrouble, String, Wall)>,
    pub told: bool,
    pub gaps: Vec<Gap>,
    pub unseen: Vec<String>,
}

/// Everything the core keeps of audit logs.
#[derive(Debug, Default)]
pub struct Hearing {
    pub sources: BTreeMap<String, SourceState>,
    /// Keys by what they are called; made when first needed.
    names: Option<BTreeMap<String, BTreeSet<KeyIx>>>,
    principals: BTreeMap<String, String>,
    /// Follow-ups that wait for a bare id to become a name.
    settling: BTreeSet<(Wall, KeyIx)>,
}

impl Hearing {
    /// Keys came, went, or were pinned.
    pub fn renamed(&mut self) {
        self.names = None;
    }

    pub fn next(&self, now: Now) -> Option<Mono> {
        self.settling.first().map(|(at, _)| now.mono.plus(at.since(now.wall)))
    }
}

/// What a transition's record and notice say of who did it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Explained {
    pub correlation_id: Option<String>,
    pub cause: Option<AuditEvent>,
}

impl Watch {
    /// Takes what a source tells, and answers when it is on disk.
    pub(super) fn take_told(&mut self, now: Now, ticket: Ticket, told: Told, out: &mut Effects) {
        match self.told_by_audit(now, told) {
            Ok(keys) => self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Heard(keys))), false),
            Err(refusal) => out.replies.push((ticket, Err(refusal))),
        }
    }

    fn told_by_audit(&mut self, now: Now, told: Told) -> Result<u32, Refusal> {
        let Some(source) = self.config.audit.iter().find(|source| source.name == told.source).cloned() else {
            let detail = format!("unknown audit source `{}`", told.source);
            return Err(Refusal { slug: RefusalSlug::Invalid, detail });
        };
        let mut keys = BTreeSet::new();
        for event in &told.events {
            keys.extend(self.hear(now, &source, event));
        }
        self.mind_source(now, &source, told);
        Ok(u32::try_from(keys.len()).unwrap_or(u32::MAX))
    }

    fn hear(&mut self, now: Now, source: &AuditSource, event: &AuditEvent) -> BTreeSet<KeyIx> {
        let mut event = event.clone();
        self.resolve(&mut event);
        let keys = self.keys_of(&event);
        if event.meaning != crate::words::AuditMeaning::Use {
            for ix in &keys {
                self.hear_of(now, source, *ix, &event);
            }
        }
        keys
    }

    /// Learns the names of principals, and puts a known name in the place of a bare id.
    fn resolve(&mut self, event: &mut AuditEvent) {
        let Some(id) = event.actor.id.clone() else { return };
        match event.actor.principal.clone().filter(|name| !is_opaque(name) && name != "(masked)") {
            Some(name) => {
                if self.hearing.principals.len() >= PRINCIPALS_MAX && !self.hearing.principals.contains_key(&id) {
                    self.hearing.principals.pop_first();
                }
                self.hearing.principals.insert(id, name);
            }
            None => {
                if let Some(name) = self.hearing.principals.get(&id).filter(|_| event.actor.is_opaque()) {
                    event.actor.principal = Some(name.clone());
                }
            }
        }
    }

    fn keys_of(&mut self, event: &AuditEvent) -> BTreeSet<KeyIx> {
        let cells = &self.cells;
        let names = self.hearing.names.get_or_insert_with(|| {
            let mut names: BTreeMap<String, BTreeSet<KeyIx>> = BTreeMap::new();
            for (ix, cell) in cells.iter().filter(|(_, cell)| cell.key.refused.is_none()) {
                for name in subject::of_key(&cell.key.target.reference, cell.key.target.pinned.as_deref()) {
                    names.entry(name).or_default().insert(*ix);
                }
            }
            names
        });
        event.subjects.iter().filter_map(|subject| names.get(subject)).flatten().copied().take(KEYS_MAX).collect()
    }

    fn hear_of(&mut self, now: Now, source: &AuditSource, ix: KeyIx, event: &AuditEvent) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let trail = cell.kept.trail.get_or_insert_default();
        trail.forget_old(now.wall);
        if !trail.hear(event) {
            self.settle_by_repeat(now, ix, event);
            return;
        }
        cell.dirty = true;
        let answered = trail.answers(event).map(|question| {
            question.found = Some(event.clone());
            question.correlation_id.clone()
        });
        let id = cell.key.id.clone();
        self.write_event(now, EventType::AuditEvent, &id, event, answered.as_deref(), Some(&source.name));
        if let Some(correlation_id) = answered {
            self.amend(now, ix, event, &correlation_id);
        }
        if event.changes() && source.look_now {
            self.look_soon(now, ix);
        }
        self.store_cell(now, ix);
    }

    /// A transition that went out without a name has one now: a record beside the old one, and one
    /// notice unless people will be told anyway.
    fn amend(&mut self, now: Now, ix: KeyIx, event: &AuditEvent, correlation_id: &str) {
        let Some(id) = self.key_id(ix) else { return };
        self.write_event(now, EventType::KeyAttributed, &id, event, Some(correlation_id), None);
        self.note_change(ix, event.at, correlation_id);
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let Some(trail) = cell.kept.trail.as_deref_mut() else { return };
        let Some(question) = trail.questions.iter_mut().find(|q| q.correlation_id == correlation_id && q.found.as_ref() == Some(event))
        else {
            return;
        };
        // A suspicion is quiet: what comes of it will name the actor.
        if question.told || question.event == EventType::KeySuspect {
            return;
        }
        if event.actor.is_opaque() {
            let until = now.wall.plus(SETTLE);
            question.settle_until = Some(until);
            self.hearing.settling.insert((until, ix));
            return;
        }
        question.told = true;
        let asked = question.event;
        self.follow_up(now, ix, event, asked);
    }

    /// The same event by another way, with a name where only an id stood.
    fn settle_by_repeat(&mut self, now: Now, ix: KeyIx, event: &AuditEvent) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let Some(trail) = cell.kept.trail.as_deref_mut() else { return };
        let bare = |q: &&mut Question| q.found.as_ref().is_some_and(|found| found.id == event.id && found.actor.is_opaque());
        if event.actor.is_opaque() {
            return;
        }
        let Some(question) = trail.questions.iter_mut().find(bare) else { return };
        question.found = Some(event.clone());
        question.settle_until = None;
        let correlation_id = question.correlation_id.clone();
        cell.dirty = true;
        self.amend(now, ix, event, &correlation_id);
        self.store_cell(now, ix);
    }

    /// Ids that did not become names in time are told as they are; those that did, by name.
    pub(super) fn settle_names(&mut self, now: Now) {
        while let Some((at, ix)) = self.hearing.settling.first().copied().filter(|(at, _)| *at <= now.wall) {
            self.hearing.settling.remove(&(at, ix));
            let known = &self.hearing.principals;
            let Some(cell) = self.cells.get_mut(&ix) else { continue };
            let Some(trail) = cell.kept.trail.as_deref_mut() else { continue };
            let mut due = Vec::new();
            for question in trail.questions.iter_mut().filter(|q| q.settle_until.is_some_and(|until| until <= now.wall)) {
                question.settle_until = None;
                let Some(found) = question.found.as_mut().filter(|_| !question.told) else { continue };
                if let Some(name) = found.actor.id.as_ref().and_then(|id| known.get(id)) {
                    found.actor.principal = Some(name.clone());
                }
                question.told = true;
                due.push((found.clone(), question.event));
            }
            cell.dirty = true;
            for (event, asked) in due {
                self.follow_up(now, ix, &event, asked);
            }
            self.store_cell(now, ix);
        }
    }

    /// After a start: follow-ups that were waiting wait on.
    pub(super) fn restore_settling(&mut self) {
        let waiting = self.cells.iter().flat_map(|(ix, cell)| {
            let questions = cell.kept.trail.iter().flat_map(|trail| &trail.questions);
            questions.filter_map(|q| q.settle_until).map(|until| (until, *ix)).collect::<Vec<_>>()
        });
        self.hearing.settling = waiting.collect();
    }

    fn write_event(&mut self, now: Now, kind: EventType, key: &KeyId, event: &AuditEvent, correlation: Option<&str>, source: Option<&str>) {
        let mut detail = details(event);
        detail.extend(source.map(|source| ("source", source.to_owned())));
        self.record(now, kind, Some(key.clone()), None, detail);
        let explained = Explained { correlation_id: correlation.map(str::to_owned), cause: Some(event.clone()) };
        self.stamp(&explained);
    }

    /// Puts who did it on the record written last.
    pub(super) fn stamp(&mut self, explained: &Explained) {
        let Some(record) = self.ledger.open.commit.records.last_mut() else { return };
        record.correlation_id = record.correlation_id.take().or_else(|| explained.correlation_id.clone());
        let Some(event) = &explained.cause else { return };
        record.actor = record.actor.take().or_else(|| event.actor.name().map(str::to_owned));
        record.event_id = Some(event.id.clone());
        for (name, value) in details(event) {
            record.detail.entry(name.to_owned()).or_insert(value);
        }
    }

    /// What is known of the cause of a transition; what is not known yet stays asked.
    pub(super) fn explain(&mut self, now: Now, ix: KeyIx, event: EventType, kind: Option<FailureKind>, version: Option<&str>) -> Explained {
        if self.config.audit.is_empty() {
            return Explained::default();
        }
        let Some(asks) = Asks::of(event, kind) else { return Explained::default() };
        let Some(cell) = self.cells.get_mut(&ix) else { return Explained::default() };
        let first = match &cell.kept.life {
            KeyState::Suspect { looks, .. } | KeyState::Revoked { looks, .. } => looks.first_refused().map(|at| at.wall),
            KeyState::Unproven | KeyState::Active | KeyState::Impaired { .. } | KeyState::Recovering { .. } | KeyState::Retired => None,
        };
        let own = format!("{}-{:x}", cell.key.id, now.wall.0);
        let trail = cell.kept.trail.get_or_insert_default();
        let (correlation_id, seen_at) = match asks {
            Asks::Refusal(_) => {
                let episode = match trail.episode.take().filter(|episode| !episode.ended) {
                    Some(standing) => standing,
                    None => Episode::begin(own, first.unwrap_or(now.wall)),
                };
                let found = (episode.id.clone(), episode.first_refused);
                trail.episode = Some(episode);
                found
            }
            Asks::Return => {
                let Some(episode) = trail.episode.as_mut() else { return Explained::default() };
                episode.ended |= event == EventType::KeyActive;
                (episode.id.clone(), episode.returned_at.get_or_insert(now.wall).to_owned())
            }
            Asks::Rotation | Asks::Deletion | Asks::Substitution => (own, now.wall),
        };
        let question = Question {
            correlation_id: correlation_id.clone(),
            event,
            asks,
            seen_at,
            version: version.map(str::to_owned),
            found: None,
            told: false,
            settle_until: None,
        };
        let n = trail.ask(question);
        cell.dirty = true;
        let cause = trail.questions.get_mut(n).and_then(|question| {
            question.told |= question.found.is_some() && event != EventType::KeySuspect;
            question.found.clone()
        });
        if let Some(cause) = &cause {
            self.note_change(ix, cause.at, &correlation_id);
        }
        Explained { correlation_id: Some(correlation_id), cause }
    }

    /// The provider's own time of the change that began the present trouble.
    fn note_change(&mut self, ix: KeyIx, at: Wall, correlation_id: &str) {
        let Some(episode) = self.episode(ix).filter(|episode| episode.id == correlation_id) else { return };
        if at <= episode.first_refused.plus(Span::from_mins(2)) {
            episode.changed_at.get_or_insert(at);
        }
        self.count_from_provider(ix);
    }

    fn episode(&mut self, ix: KeyIx) -> Option<&mut Episode> {
        self.cells.get_mut(&ix)?.kept.trail.as_deref_mut()?.episode.as_mut()
    }

    pub(super) fn confirmed_at(&mut self, now: Now, ix: KeyIx) {
        if let Some(episode) = self.episode(ix).filter(|episode| !episode.ended) {
            episode.confirmed.get_or_insert(now.wall);
        }
        self.count_from_provider(ix);
    }

    pub(super) fn applied_at(&mut self, now: Now, ix: KeyIx) {
        if let Some(episode) = self.episode(ix).filter(|episode| !episode.ended) {
            episode.applied.get_or_insert(now.wall);
        }
        self.count_from_provider(ix);
    }

    /// Each stage is counted once, when both its time and the provider's are known.
    fn count_from_provider(&mut self, ix: KeyIx) {
        let Some(episode) = self.episode(ix) else { return };
        let Some(changed) = episode.changed_at else { return };
        let stages = [("detect", Some(episode.first_refused)), ("confirm", episode.confirmed), ("apply", episode.applied)];
        let mut counts = Vec::new();
        for ((stage, at), counted) in stages.into_iter().zip(&mut episode.counted) {
            if let Some(at) = at.filter(|_| !*counted) {
                *counted = true;
                counts.push(Count::Latency { stage, start: "provider", span: at.since(changed) });
            }
        }
        self.counts.extend(counts);
    }

    /// The one notice that follows when a name comes late.
    fn follow_up(&mut self, now: Now, ix: KeyIx, event: &AuditEvent, asked: EventType) {
        let text = compose::attributed(asked, event);
        self.tell_attributed(now, ix, event, &text);
    }

    fn mind_source(&mut self, now: Now, source: &AuditSource, told: Told) {
        let mut state = self.hearing.sources.remove(&source.name).unwrap_or_default();
        let before = state.clone();
        if told.trouble.is_none() {
            state.since.get_or_insert(told.seen_until.unwrap_or(now.wall));
            state.seen_until = told.seen_until.or(state.seen_until);
            state.cursor = told.cursor.or(state.cursor);
            state.gaps.extend(told.gaps);
        }
        match told.trouble {
            Some(fault) => {
                let since = state.trouble.take().map_or(now.wall, |(.., since)| since);
                let lasting = matches!(
                    fault.kind,
                    AuditTrouble::Denied | AuditTrouble::LogDisabled | AuditTrouble::Credentials | AuditTrouble::Misconfigured
                );
                if !state.told && (lasting || now.wall.since(since) >= TROUBLE_TOLD) {
                    state.told = true;
                    let text = format!(
                        "Audit source {} cannot be read: {fault}. Keys are watched all the same; that nothing is heard proves nothing.",
                        source.name
                    );
                    self.tell_daemon(now, EventType::AuditSilent, Severity::Warning, &text, None);
                }
                state.trouble = Some((fault.kind, fault.message, since));
            }
            None => {
                if let Some((kind, _, since)) = state.trouble.take() {
                    if kind == AuditTrouble::LogDisabled {
                        state.gaps.push(Gap { from: since, to: now.wall });
                    }
                    if std::mem::take(&mut state.told) {
                        let text = format!("Audit source {} is read again.", source.name);
                        self.tell_daemon(now, EventType::AuditResumed, Severity::Info, &text, None);
                    }
                }
            }
        }
        if let Some(unseen) = told.unseen {
            for what in unseen.iter().filter(|what| !state.unseen.contains(what)) {
                let text = format!("Audit source {} does not show everything: {what}. That nothing is heard proves nothing.", source.name);
                self.tell_daemon(now, EventType::AuditSilent, Severity::Info, &text, None);
            }
            state.unseen = unseen;
        }
        let surplus = state.gaps.len().saturating_sub(GAPS_MAX);
        state.gaps.drain(..surplus);
        if state != before {
            self.ledger.open.commit.meta.insert(format!("audit:{}", source.name), Some(to_text(&state)));
            self.daemon_dirty = true;
        }
        self.hearing.sources.insert(source.name.clone(), state);
    }

    pub(super) fn audit_views(&self) -> Vec<AuditView> {
        let view = |source: &AuditSource| {
            let state = self.hearing.sources.get(&source.name).cloned().unwrap_or_default();
            AuditView {
                source: source.name.clone(),
                kind: source.kind.as_str().to_owned(),
                provider: source.provider.clone(),
                since: state.since,
                seen_until: state.seen_until,
                trouble: state.trouble.as_ref().map(|(kind, ..)| *kind),
                trouble_since: state.trouble.as_ref().map(|(.., since)| *since),
                message: state.trouble.map(|(_, message, _)| message),
                gaps: state.gaps,
                unseen: state.unseen,
            }
        };
        self.config.audit.iter().map(view).collect()
    }

    /// Something outside happened to this key. A look is only ever brought forward, not more often
    /// than the policy looks at a suspect, and what was planned anyway is never put off by it.
    pub(super) fn look_soon(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let at = cell.hinted_at.map_or(now.mono, |last| last.plus(cell.policy.suspect_interval).max(now.mono));
        if cell.in_flight.is_some() || cell.waiting.is_some() {
            cell.hint_due = Some(cell.hint_due.map_or(at, |due| due.min(at)));
            return;
        }
        let due = self.lanes.due_at(&cell.lane, ix);
        if due.is_none_or(|due| due <= at) {
            return;
        }
        cell.hinted_at = Some(at);
        cell.planned = cell.planned.or(due);
        self.schedule(ix, at);
    }
}

fn details(event: &AuditEvent) -> Vec<(&'static str, String)> {
    let mut detail = vec![("event_name", event.name.clone()), ("meaning", event.meaning.to_string()), ("event_at", event.at.to_string())];
    detail.extend(event.actor.address.clone().map(|text| ("address", text)));
    detail.extend(event.actor.user_agent.clone().map(|text| ("user_agent", text)));
    detail.extend(event.actor.kind.clone().map(|text| ("actor_kind", text)));
    detail.extend(event.actor.id.clone().map(|text| ("actor_id", text)));
    detail.extend(event.version.clone().map(|text| ("event_version", text)));
    detail.extend(event.error.clone().map(|text| ("error", text)));
    detail
}

/// A notice names the actor where an audit log has told.
pub(super) fn name_actor(notice: &mut Notice, why: &Explained) {
    if let Some(event) = &why.cause {
        notice.actor = notice.actor.take().or_else(|| event.actor.name().map(str::to_owned));
        notice.message = format!("{} {}", notice.message, compose::done_by(event));
    }
}
