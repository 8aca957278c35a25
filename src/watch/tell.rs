//! inside
//! What is written and said of each transition: one journal record and one notice each, in the same
//! commit as the change itself. Never names a secret; every text comes from `compose`.

use std::sync::Arc;

use crate::audit::AuditEvent;
use crate::config::route;
use crate::journal::{OverrideRow, Record};
use crate::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use crate::lifecycle::{Finding, KeyState};
use crate::lockout::Orders;
use crate::notify::about::severity_of;
use crate::notify::compose::{self, Facts};
use crate::notify::{Notice, NoticeId};
use crate::schedule::KeyIx;
use crate::time::{Now, Span, Wall};
use crate::verdict::{Direction, Stated};
use crate::watch::Watch;
use crate::watch::hearing::{Explained, name_actor};
use crate::watch::seen::day;
use crate::watch::workspaces::Changed;
use crate::words::{Access, Cause, Code, EventType, FailureKind, ProviderKind, Sequence, Severity, StateWord};

/// The outward code of a cause (SETTLED D2).
#[must_use]
pub fn code_of(cause: Cause, access: Access, kind: Option<FailureKind>) -> Option<Code> {
    if access == Access::Open {
        return None;
    }
    Some(match cause {
        Cause::Manual | Cause::Drill => Code::WorkspaceLockedByOperator,
        Cause::Stale => Code::CmekKeyUnreachable,
        Cause::VersionLost => Code::CmekKeyDisabled,
        Cause::Orphaned => kind.map_or(Code::CmekKeyDisabled, code_of_kind),
        Cause::Kind(kind) => code_of_kind(kind),
    })
}

const fn code_of_kind(kind: FailureKind) -> Code {
    match kind {
        FailureKind::NetworkBlocked => Code::CmekKeyNetworkBlocked,
        FailureKind::KeyStoreUnavailable
        | FailureKind::Throttled
        | FailureKind::ProviderFault
        | FailureKind::Timeout
        | FailureKind::Unreachable => Code::CmekKeyUnreachable,
        FailureKind::Disabled
        | FailureKind::PendingDeletion
        | FailureKind::Destroyed
        | FailureKind::Expired
        | FailureKind::AccessDenied
        | FailureKind::Credentials
        | FailureKind::Misconfigured
        | FailureKind::Corrupt
        | FailureKind::Unclassified => Code::CmekKeyDisabled,
    }
}

impl Watch {
    /// One journal record.
    pub(super) fn record<'d>(
        &mut self,
        now: Now,
        event: EventType,
        key: Option<KeyId>,
        workspace: Option<WorkspaceId>,
        detail: impl IntoIterator<Item = (&'d str, String)>,
    ) {
        self.ledger.open.commit.records.push(Record {
            at: now.wall,
            event,
            key,
            workspace,
            version: None,
            actor: None,
            event_id: None,
            correlation_id: None,
            detail: detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        });
    }

    fn by(&mut self, actor: Option<&str>) {
        if let Some(record) = self.ledger.open.commit.records.last_mut() {
            record.actor = actor.map(str::to_owned).or_else(|| record.actor.take());
        }
    }

    pub(super) fn record_by<'d>(
        &mut self,
        now: Now,
        event: EventType,
        subject: (Option<KeyId>, Option<WorkspaceId>),
        actor: &str,
        detail: impl IntoIterator<Item = (&'d str, String)>,
    ) {
        self.record(now, event, subject.0, subject.1, detail);
        self.by(Some(actor));
    }

    /// A notice with everything that is known of the key filled in.
    pub(super) fn notice(&mut self, now: Now, event: EventType, severity: Severity, ix: Option<KeyIx>) -> Notice {
        self.notice_count = self.notice_count.saturating_add(1);
        let cell = ix.and_then(|ix| self.cells.get(&ix));
        let facts = cell.and_then(|c| c.kept.facts.as_ref());
        Notice {
            id: NoticeId(format!("ntc_{:x}_{:x}", now.wall.0, self.notice_count).into()),
            event,
            severity,
            timestamp: now.wall,
            sequence: Sequence(0).next(now.wall.0),
            key: cell.map(|c| c.key.id.clone()),
            key_ref: cell.map(|c| c.name.1.to_string()),
            provider: cell.map(|c| c.key.provider.clone()),
            owner: cell.and_then(|c| c.key.owner.clone()),
            workspaces: cell.map(|c| c.key.workspaces.clone()).unwrap_or_default(),
            access: None,
            previous_access: None,
            cause: None,
            code: None,
            message: String::new(),
            version: cell.and_then(|c| c.kept.current.clone()),
            actor: None,
            since: cell.map(|c| c.kept.since),
            evidence: cell.and_then(|c| c.last.as_ref()).map(|(_, legs)| legs.clone()).unwrap_or_default(),
            locked_features: Vec::new(),
            readable_features: Vec::new(),
            next_step: None,
            terminal: false,
            recoverable_until: facts.and_then(|f| f.recoverable_until.or(f.deletion_at)),
            drill: false,
            acknowledged_by: None,
            storm: None,
        }
    }

    pub(super) fn send(&mut self, now: Now, notice: Notice) {
        let receivers = route::receivers_for(&notice, &self.config.routes);
        self.send_to(now, notice, &receivers);
    }

    fn send_to(&mut self, now: Now, notice: Notice, receivers: &[ReceiverId]) {
        let notice = Arc::new(notice);
        self.push_later(&notice);
        let mut receivers = receivers.to_vec();
        self.attend(now, &notice, &mut receivers);
        let rows = self.outbox.make_rows(notice, &receivers, now);
        self.mark_fallen_back(&rows);
        self.write_rows(rows);
    }

    fn kind_of(&self, provider: &ProviderId) -> ProviderKind {
        self.config.providers.get(provider).map_or(ProviderKind::Local, crate::config::Provider::kind)
    }

    /// The sentence about a key.
    pub(super) fn sentence(&self, ix: KeyIx, event: EventType, kind: Option<FailureKind>, stated: bool) -> String {
        let Some(cell) = self.cells.get(&ix) else { return String::new() };
        let direction = match cell.kept.life.finding().map(|f| f.direction).or(match &cell.kept.life {
            KeyState::Suspect { refused, .. } => Some(refused.direction),
            KeyState::Unproven
            | KeyState::Active
            | KeyState::Impaired { .. }
            | KeyState::Revoked { .. }
            | KeyState::Recovering { .. }
            | KeyState::Retired => None,
        }) {
            Some(Direction::Unwrap) => Some(compose::Direction::Unwrap),
            Some(Direction::Wrap | Direction::Bytes) => Some(compose::Direction::Wrap),
            Some(Direction::Version) => Some(compose::Direction::OldVersion),
            None => None,
        };
        let facts = Facts { kind, stated, direction, ..Facts::of(event, cell.key.id.as_str(), self.kind_of(&cell.key.provider)) };
        compose::sentence(&facts)
    }

    /// A transition of a key: record, notice, view. A suspicion is quiet at first; it is told aloud
    /// when it lasts.
    pub(super) fn transition(&mut self, now: Now, ix: KeyIx, event: EventType, kind: Option<FailureKind>) {
        let severity = if event == EventType::KeySuspect { Severity::Info } else { severity_of(event) };
        self.transition_as(now, ix, event, kind, severity, None);
    }

    /// `accesses`: before and after, where the key's own transition ends or begins a restriction.
    fn transition_as(
        &mut self,
        now: Now,
        ix: KeyIx,
        event: EventType,
        kind: Option<FailureKind>,
        severity: Severity,
        accesses: Option<(Access, Access)>,
    ) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.kept.since = now.wall;
        cell.dirty = true;
        let (id, provider) = (cell.key.id.clone(), cell.key.provider.clone());
        let stated = cell.last.as_ref().is_some_and(|(_, legs)| legs.iter().any(|leg| leg.stated));
        let (state, request) = (cell.kept.life.word(), first_request(cell));
        let state = if cell.unlocking && event == EventType::KeyActive { StateWord::Active } else { state };
        let mut detail = vec![("state", state.to_string())];
        detail.extend(kind.map(|kind| ("failure_kind", kind.to_string())));
        detail.extend(kind.map(|_| ("stated", stated.to_string())));
        detail.extend(request.map(|id| ("request_id", id)));
        let why = self.explain(now, ix, event, kind, None);
        self.record(now, event, Some(id), None, detail);
        self.stamp(&why);
        let message = self.sentence(ix, event, kind, stated);
        let mut notice = self.notice(now, event, severity, Some(ix));
        notice.cause = kind.map(Cause::Kind);
        notice.message = message;
        name_actor(&mut notice, &why);
        notice.next_step = kind.map(|kind| compose::next_step(kind, self.kind_of(&provider)).to_owned());
        notice.previous_access = accesses.map(|(before, _)| before);
        notice.access = accesses.map(|(_, after)| after);
        self.send(now, notice);
        self.ledger.open.keys.insert(ix);
    }

    /// One notice for all workspaces that changed together, beside one record each.
    pub(super) fn tell_lock(&mut self, now: Now, ix: KeyIx, event: EventType, finding: Finding, changed: &[Changed]) {
        let lowered: Vec<&Changed> = changed.iter().filter(|c| c.to > c.from).collect();
        // The notice about the workspaces is the loud one; without any, the key's own is.
        let severity = if lowered.is_empty() { Severity::Critical } else { Severity::Info };
        self.transition_as(now, ix, event, Some(finding.kind), severity, Some((Access::Open, finding.access)));
        for access in [Access::Locked, Access::ReadOnly] {
            let group: Vec<&Changed> = lowered.iter().copied().filter(|c| c.to == access).collect();
            if !group.is_empty() {
                self.tell_group(now, Some(ix), &group, access, finding.cause, Some(finding), None);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one notice has this many facts")]
    pub(super) fn tell_group(
        &mut self,
        now: Now,
        ix: Option<KeyIx>,
        group: &[&Changed],
        access: Access,
        cause: Cause,
        finding: Option<Finding>,
        actor: Option<&str>,
    ) {
        let (event, severity) = match access {
            Access::Locked => (EventType::WorkspaceLocked, Severity::Critical),
            Access::ReadOnly => (EventType::WorkspaceReadOnly, Severity::Critical),
            Access::Open => (EventType::WorkspaceOpened, Severity::Warning),
        };
        let key = ix.and_then(|ix| self.key_id(ix));
        // What waits for levers is told when it opens.
        let group: Vec<&Changed> = group.iter().copied().filter(|change| !self.opening_waits(change, key.clone(), cause, actor)).collect();
        if group.is_empty() {
            return;
        }
        let kind = finding.map(|f| f.kind);
        let stated = finding.is_some_and(|f| f.stated != Stated::No);
        let why = match (ix, actor) {
            (Some(ix), None) => self.explain(now, ix, event, kind, None),
            (Some(_) | None, Some(_)) | (None, None) => Explained::default(),
        };
        for change in &group {
            let mut detail = vec![
                ("access", change.to.to_string()),
                ("previous_access", change.from.to_string()),
                ("sequence", change.sequence.0.to_string()),
                ("cause", cause.to_string()),
            ];
            detail.extend(finding.map(|f| ("stated", (f.stated != Stated::No).to_string())));
            self.record(now, event, key.clone(), Some(change.workspace.clone()), detail);
            self.by(actor);
            self.stamp(&why);
        }
        let provider_kind = ix.and_then(|ix| self.cells.get(&ix)).map_or(ProviderKind::Local, |c| self.kind_of(&c.key.provider));
        let name = key.as_ref().map_or("", |k| k.as_str()).to_owned();
        let facts = Facts { kind, stated, cause: Some(cause), workspaces: group.len(), ..Facts::of(event, &name, provider_kind) };
        let message = compose::sentence(&facts);
        let mut notice = self.notice(now, event, severity, ix);
        notice.workspaces = group.iter().map(|c| c.workspace.clone()).collect();
        notice.sequence = group.iter().map(|c| c.sequence).max().unwrap_or_default();
        notice.access = Some(access);
        notice.previous_access = group.first().map(|c| c.from);
        notice.cause = (access != Access::Open).then_some(cause);
        notice.code = code_of(cause, access, kind);
        notice.message = message;
        notice.actor = actor.map(str::to_owned);
        name_actor(&mut notice, &why);
        notice.since = Some(now.wall);
        let gone = notice.recoverable_until.is_none_or(|until| until <= now.wall);
        notice.terminal = kind == Some(FailureKind::Destroyed) && stated && gone;
        notice.next_step = kind.filter(|_| access != Access::Open).map(|kind| compose::next_step(kind, provider_kind).to_owned());
        let each = group.iter().map(|c| self.config.features_of(c.workspace.as_str()));
        (notice.locked_features, notice.readable_features) = crate::gate::told(&self.config.features, each, access);
        self.send(now, notice);
    }

    pub(super) fn tell_unlock(&mut self, now: Now, ix: KeyIx, actor: Option<&str>, changed: &[Changed]) {
        let before = self.cells.get(&ix).and_then(|c| c.kept.life.finding()).map_or(Access::Locked, |f| f.access);
        // Who heard of the key alone hears of its end alone.
        let accesses = changed.is_empty().then_some((before, Access::Open));
        self.transition_as(now, ix, EventType::KeyActive, None, Severity::Info, accesses);
        self.by(actor);
        for access in [Access::Open, Access::ReadOnly] {
            let group: Vec<&Changed> = changed.iter().filter(|c| c.to == access && c.to < c.from).collect();
            if !group.is_empty() {
                let cause = self.cells.get(&ix).and_then(|c| c.kept.life.finding()).map_or(Cause::Stale, |f| f.cause);
                self.tell_group(now, Some(ix), &group, access, cause, None, actor);
            }
        }
    }

    pub(super) fn tell_pending(&mut self, now: Now, ix: KeyIx) {
        self.simple(
            now,
            ix,
            EventType::KeyRecovering,
            Severity::Warning,
            None,
            "The key works again. The policy wants a person to approve the unlock.",
        );
    }

    fn simple(&mut self, now: Now, ix: KeyIx, event: EventType, severity: Severity, kind: Option<FailureKind>, text: &str) {
        let id = self.key_id(ix);
        let mut detail = vec![("note", text.to_owned())];
        detail.extend(kind.map(|kind| ("failure_kind", kind.to_string())));
        let why = match event == EventType::KeyDeletionScheduled {
            true => self.explain(now, ix, event, kind, None),
            false => Explained::default(),
        };
        self.record(now, event, id, None, detail);
        self.stamp(&why);
        let sentence = self.sentence(ix, event, kind, false);
        let mut notice = self.notice(now, event, severity, Some(ix));
        notice.message = if text.is_empty() { sentence } else { text.to_owned() };
        name_actor(&mut notice, &why);
        notice.cause = kind.map(Cause::Kind);
        let provider = notice.provider.clone();
        notice.next_step = kind.zip(provider).map(|(kind, p)| compose::next_step(kind, self.kind_of(&p)).to_owned());
        self.send(now, notice);
        self.ledger.open.keys.insert(ix);
    }

    pub(super) fn tell_rotation(&mut self, now: Now, ix: KeyIx, old: &KeyVersion, new: &KeyVersion) {
        let id = self.key_id(ix);
        self.record(now, EventType::KeyRotated, id, None, [("old_version", old.to_string()), ("new_version", new.to_string())]);
        if let Some(record) = self.ledger.open.commit.records.last_mut() {
            record.version = Some(new.clone());
        }
        let why = self.explain(now, ix, EventType::KeyRotated, None, Some(new.as_str()));
        self.stamp(&why);
        let message = self.sentence(ix, EventType::KeyRotated, None, false);
        let mut notice = self.notice(now, EventType::KeyRotated, Severity::Info, Some(ix));
        notice.message = message;
        name_actor(&mut notice, &why);
        notice.version = Some(new.clone());
        self.send(now, notice);
        self.ledger.open.keys.insert(ix);
    }

    /// Who did it, heard after the transition was told.
    pub(super) fn tell_attributed(&mut self, now: Now, ix: KeyIx, event: &AuditEvent, text: &str) {
        let severity = match self.cells.get(&ix).is_some_and(|cell| cell.kept.life.finding().is_some()) {
            true => Severity::Critical,
            false => Severity::Info,
        };
        let mut notice = self.notice(now, EventType::KeyAttributed, severity, Some(ix));
        notice.message = text.to_owned();
        notice.actor = event.actor.name().map(str::to_owned);
        self.send(now, notice);
        self.ledger.open.keys.insert(ix);
    }

    pub(super) fn tell_warning(&mut self, now: Now, ix: KeyIx, event: EventType, kind: FailureKind) {
        let text =
            format!("The provider says of this key: it {}. Data can still be opened, and nothing is locked.", compose::condition(kind));
        self.simple(now, ix, event, Severity::Critical, Some(kind), &text);
    }

    pub(super) fn tell_date(&mut self, now: Now, ix: KeyIx, event: EventType, date: Wall) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let when = day(date);
        let facts = Facts { when: Some(&when), ..Facts::of(event, cell.key.id.as_str(), self.kind_of(&cell.key.provider)) };
        let text = compose::sentence(&facts);
        self.simple(now, ix, event, Severity::Warning, None, &text);
    }

    pub(super) fn tell_since(&mut self, now: Now, ix: KeyIx, event: EventType, date: Wall) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let when = format!("since {date}");
        let facts = Facts { when: Some(&when), ..Facts::of(event, cell.key.id.as_str(), self.kind_of(&cell.key.provider)) };
        let text = compose::sentence(&facts);
        self.simple(now, ix, event, Severity::Warning, None, &text);
    }

    pub(super) fn tell_stale(&mut self, now: Now, ix: KeyIx, stale: Span, kind: FailureKind) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let when = format!("for {}", Span(stale.0.saturating_sub(stale.0.checked_rem(1000).unwrap_or(0))));
        let facts = Facts {
            kind: Some(kind),
            when: Some(&when),
            ..Facts::of(EventType::KeyStale, cell.key.id.as_str(), self.kind_of(&cell.key.provider))
        };
        let text = compose::sentence(&facts);
        self.simple(now, ix, EventType::KeyStale, Severity::Warning, Some(kind), &text);
    }

    pub(super) fn tell_held(&mut self, now: Now, ix: KeyIx, kind: FailureKind) {
        let text = format!("The key {}; this is confirmed, and the policy holds the lock back.", compose::condition(kind));
        self.simple(now, ix, EventType::KeySuspect, Severity::Critical, Some(kind), &text);
    }

    pub(super) fn tell_undecided(&mut self, now: Now, ix: KeyIx, kind: FailureKind) {
        let text = "The key refuses us, and our own control key cannot tell whether it is the key or us. Nothing is locked: decide, and lock by hand if it is the key.";
        self.simple(now, ix, EventType::KeySuspect, Severity::Critical, Some(kind), text);
    }

    pub(super) fn tell_flapping(&mut self, now: Now, ix: KeyIx, kind: FailureKind) {
        let text = "The key is refused now and works then; this goes on and neither confirms nor ends. The policy decides what follows.";
        self.simple(now, ix, EventType::KeySuspect, Severity::Warning, Some(kind), text);
    }

    pub(super) fn tell_override_end(&mut self, now: Now, changed: &Changed) {
        self.record(now, EventType::OverrideEnded, None, Some(changed.workspace.clone()), [("access", changed.to.to_string())]);
        if changed.to > changed.from {
            let cause = self
                .workspaces
                .get(&changed.workspace)
                .and_then(|ws| ws.orders.acting(now.wall).first().map(|o| o.cause))
                .unwrap_or(Cause::Stale);
            self.tell_group(now, None, &[changed], changed.to, cause, None, None);
        }
    }

    /// A matter of a whole provider.
    pub(super) fn tell_provider(&mut self, now: Now, provider: &ProviderId, event: EventType, kind: Option<FailureKind>) {
        let mut detail = vec![("provider", provider.to_string())];
        detail.extend(kind.map(|kind| ("failure_kind", kind.to_string())));
        self.record(now, event, None, None, detail);
        let facts = Facts { kind, ..Facts::of(event, provider.as_str(), self.kind_of(provider)) };
        let message = compose::sentence(&facts);
        let severity = if event == EventType::BrakeReleased { Severity::Warning } else { Severity::Critical };
        let mut notice = self.notice(now, event, severity, None);
        notice.provider = Some(provider.clone());
        notice.cause = kind.map(Cause::Kind);
        notice.message = message;
        notice.next_step = kind.map(|kind| compose::next_step(kind, self.kind_of(provider)).to_owned());
        self.send(now, notice);
    }

    /// A notice about the daemon itself; `to` overrides the routes.
    pub(super) fn tell_daemon(&mut self, now: Now, event: EventType, severity: Severity, message: &str, to: Option<&[ReceiverId]>) {
        self.record(now, event, None, None, [("note", message.to_owned())]);
        let mut notice = self.notice(now, event, severity, None);
        notice.message = message.to_owned();
        match to {
            Some(receivers) => self.send_to(now, notice, receivers),
            None => self.send(now, notice),
        }
    }

    pub(super) fn tell_override(&mut self, now: Now, row: &OverrideRow) {
        let text = format!(
            "{} keeps workspace {} open until {} although key {} {}: {}",
            row.actor,
            row.workspace,
            row.until,
            row.key,
            compose::condition(row.kind),
            row.reason
        );
        let detail = [("until", row.until.to_string()), ("kind", row.kind.to_string()), ("reason", row.reason.clone())];
        self.record_by(now, EventType::OverrideStarted, (Some(row.key.clone()), Some(row.workspace.clone())), &row.actor, detail);
        let mut notice = self.notice(now, EventType::OverrideStarted, Severity::Critical, self.by_id.get(&row.key).copied());
        notice.message = text;
        notice.actor = Some(row.actor.clone());
        notice.workspaces = vec![row.workspace.clone()];
        self.send(now, notice);
    }

    pub(super) fn record_clock_step(&mut self, now: Now, by_ms: i64) {
        self.record(now, EventType::ClockStepped, None, None, [("by_ms", by_ms.to_string())]);
    }
}

fn first_request(cell: &crate::watch::cell::KeyCell) -> Option<String> {
    let (_, legs) = cell.last.as_ref()?;
    legs.iter().find(|leg| leg.failure_kind.is_some()).or(legs.first())?.request_id.as_ref().map(ToString::to_string)
}

/// The first order that decides, for a message.
pub(super) fn deciding(orders: &Orders, now: Wall) -> Option<&crate::journal::Order> {
    orders.acting(now).into_iter().next()
}
