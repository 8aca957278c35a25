//! inside
//! What operators ask for: lock, unlock, override, validate, brake, versions, tests. A manual order
//! is only ever touched here, and an automatic lock without proof is never lifted, only overridden.

use crate::journal::{Order, OverrideRow};
use crate::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use crate::lifecycle::KeyState;
use crate::operate::{Action, Answered, Operation, Refusal, RefusalSlug, Reply as Answer};
use crate::time::{Mono, Now, Span};
use crate::vault::wraps::KeyRole;
use crate::watch::ledger::Reply;
use crate::watch::{Effects, Ticket, Watch};
use crate::words::{Access, By, Cause, EventType, FailureKind, Sequence, Severity};

/// The longest override.
const OVERRIDE_MAX: Span = Span::from_hours(24);
const REASON_MAX: usize = 500;
/// A critical notice that waits longer stops the heartbeat.
const CRITICAL_WITHIN: Span = Span::from_mins(15);

pub(super) fn refuse(slug: RefusalSlug, detail: impl Into<String>) -> Refusal {
    Refusal { slug, detail: detail.into() }
}

pub(super) fn reason(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > REASON_MAX {
        return Err(refuse(RefusalSlug::Invalid, format!("reason: must have 1 to {REASON_MAX} characters")));
    }
    Ok(text.to_owned())
}

impl Watch {
    #[expect(clippy::too_many_lines, reason = "one arm for each order")]
    pub(super) fn operate(&mut self, now: Now, ticket: Ticket, operation: Operation, out: &mut Effects) {
        let actor = operation.actor;
        let answer: Answered = match operation.action {
            Action::Lock { workspace, reason } => match self.lock_by_hand(now, &workspace, &reason, &actor) {
                Ok(()) => return self.reply_workspace(now, ticket, &workspace, true),
                Err(refusal) => Err(refusal),
            },
            Action::Unlock { workspace, reason, override_for } => {
                match self.unlock_by_hand(now, &workspace, &reason, override_for, &actor, out) {
                    Ok(()) => return self.reply_workspace(now, ticket, &workspace, false),
                    Err(refusal) => Err(refusal),
                }
            }
            Action::Validate { key } => match self.validate(now, ticket, &key) {
                Some(answer) => answer,
                None => return,
            },
            Action::BrakeRelease { provider, lock, reason } => match self.release_brake_by_hand(now, &provider, lock, &reason, &actor, out)
            {
                Ok(count) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Released(count))), false),
                Err(refusal) => Err(refusal),
            },
            Action::RetireVersion { key, version, reason } => match self.retire_version(now, &key, &version, &reason, &actor, out) {
                Ok(view) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(view)), false),
                Err(refusal) => Err(refusal),
            },
            Action::RetireKey { key, reason } => match self.retire_key(now, &key, &reason, &actor, out) {
                Ok(view) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(view)), false),
                Err(refusal) => Err(refusal),
            },
            Action::PutKey { key } => match self.put_key(now, *key, &actor, out) {
                Ok(reply) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(reply)), true),
                Err(refusal) => Err(refusal),
            },
            Action::DeleteKey { key, keep_lock } => match self.delete_key(now, &key, keep_lock, &actor, out) {
                Ok(()) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Done)), false),
                Err(refusal) => Err(refusal),
            },
            Action::Drill { target, length, cut, reason } => match self.start_drill(now, &target, length, cut, &reason, &actor) {
                Ok(id) => return self.reply_when_stored(now, ticket, Reply::Drill(id), false),
                Err(refusal) => Err(refusal),
            },
            Action::EndDrill { id, reason } => match self.end_drill_by_hand(now, &id, &reason, &actor) {
                Ok(()) => return self.reply_when_stored(now, ticket, Reply::Drill(id), false),
                Err(refusal) => Err(refusal),
            },
            Action::Reload { config } => {
                self.reload(now, config, &actor, out);
                return self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Done)), true);
            }
            Action::ReloadFailed { error } => {
                self.config_flagged = Some(error.clone());
                self.daemon_dirty = true;
                self.tell_daemon(
                    now,
                    EventType::ConfigReloaded,
                    Severity::Critical,
                    &format!("The configuration was not taken: {error}"),
                    None,
                );
                Ok(Answer::Done)
            }
            Action::Audit { told } => return self.take_told(now, ticket, *told, out),
            Action::TestReceiver { receiver } => match self.test_receiver(now, receiver, &actor) {
                Ok(answer) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(answer)), false),
                Err(refusal) => Err(refusal),
            },
            Action::Journal { event, workspace, event_id, detail } => match self.note(now, event, workspace, event_id, &detail, &actor) {
                Ok(answer) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(answer)), false),
                Err(refusal) => Err(refusal),
            },
            Action::VaultKey { role, failing, text } => {
                self.tell_vault_key(now, role, failing, &text);
                return self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Done)), false);
            }
            Action::AcknowledgeNotice { id } => match self.acknowledge(now, &id, &actor) {
                Ok(()) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Done)), false),
                Err(refusal) => Err(refusal),
            },
            Action::ResendNotices { id } => match self.resend(now, id.as_ref(), &actor) {
                Ok(count) => return self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Released(count))), false),
                Err(refusal) => Err(refusal),
            },
            Action::ListNotices { filter } => Ok(Answer::Notices(self.list_notices(&filter))),
            Action::Quiet { until } => {
                self.outbox.set_quiet(until);
                Ok(Answer::Done)
            }
            Action::Health => Ok(Answer::Health(self.unwell(now))),
            Action::Report { name, receivers, slot } => {
                if !self.next_slot(&name, &slot) {
                    return out.replies.push((ticket, Ok(Answer::Done)));
                }
                let text = self.digest_text(now);
                let text = format!("{name}: {text}");
                self.tell_daemon(now, EventType::Digest, Severity::Info, &text, Some(&receivers));
                return self.reply_when_stored(now, ticket, Reply::Done(Ok(Answer::Done)), false);
            }
        };
        out.replies.push((ticket, answer));
    }

    fn test_receiver(&mut self, now: Now, receiver: ReceiverId, actor: &str) -> Result<Answer, Refusal> {
        if !self.config.receivers.contains_key(&receiver) {
            return Err(refuse(RefusalSlug::UnknownReceiver, format!("unknown receiver `{receiver}`")));
        }
        let text = format!("This is a test of receiver {receiver}, asked for by {actor}. Nothing is wrong.");
        self.tell_daemon(now, EventType::Test, Severity::Info, &text, Some(&[receiver]));
        Ok(Answer::Done)
    }

    /// One activity event of a workspace that is known.
    fn note(
        &mut self,
        now: Now,
        event: EventType,
        workspace: WorkspaceId,
        event_id: Option<String>,
        detail: &std::collections::BTreeMap<String, String>,
        actor: &str,
    ) -> Result<Answer, Refusal> {
        if !self.workspaces.contains_key(&workspace) {
            return Err(refuse(RefusalSlug::UnknownWorkspace, format!("unknown workspace `{workspace}`")));
        }
        let detail = detail.iter().map(|(name, value)| (name.as_str(), value.clone()));
        self.record_by(now, event, (None, Some(workspace)), actor, detail);
        if let Some(record) = self.ledger.open.commit.records.last_mut() {
            record.event_id = event_id;
        }
        Ok(Answer::Done)
    }

    /// A key of the vault: told at its first failure and when it works again, and not again by a restart.
    fn tell_vault_key(&mut self, now: Now, role: KeyRole, failing: bool, text: &str) {
        if self.vault_failing.contains(&role) == failing {
            return;
        }
        let severity = if failing {
            self.vault_failing.insert(role);
            Severity::Critical
        } else {
            self.vault_failing.remove(&role);
            Severity::Info
        };
        self.ledger.open.commit.meta.insert(format!("vault:{}", role.as_str()), failing.then(|| text.to_owned()));
        // The matter ends with the last of the vault's keys that failed.
        let event = if self.vault_failing.is_empty() { EventType::VaultKeysGood } else { EventType::VaultOperatorKey };
        self.tell_daemon(now, event, severity, text, None);
    }

    fn lock_by_hand(&mut self, now: Now, id: &WorkspaceId, why: &str, actor: &str) -> Result<(), Refusal> {
        let why = reason(why)?;
        let order = Order {
            workspace: id.clone(),
            by: By::Manual,
            key: None,
            access: Access::Locked,
            cause: Cause::Manual,
            sequence: Sequence::default(),
            since: now.wall,
            reason: Some(why.clone()),
            actor: Some(actor.to_owned()),
            expires_at: None,
            message: Some(format!("Locked by an operator: {why}")),
            release: None,
            orphaned: false,
        };
        let changed = self.place_order(now, order);
        self.record_by(now, EventType::OperatorAction, (None, Some(id.clone())), actor, [("action", "lock".to_owned()), ("reason", why)]);
        if changed.to > changed.from {
            self.tell_group(now, None, &[&changed], changed.to, Cause::Manual, None, Some(actor));
        }
        Ok(())
    }

    fn unlock_by_hand(
        &mut self,
        now: Now,
        id: &WorkspaceId,
        why: &str,
        override_for: Option<Span>,
        actor: &str,
        out: &mut Effects,
    ) -> Result<(), Refusal> {
        let why = reason(why)?;
        if override_for.is_some_and(|span| span > OVERRIDE_MAX || span == Span::ZERO) {
            return Err(refuse(RefusalSlug::Invalid, "until: an override lasts more than zero and at most 24h"));
        }
        let ws = self.workspaces.get(id).ok_or_else(|| refuse(RefusalSlug::UnknownWorkspace, format!("unknown workspace `{id}`")))?;
        if ws.orders.is_empty() {
            return Ok(());
        }
        let before = ws.decided;
        let released = self.release_pending(now, id, actor);
        let lifted = self.lift(now, id, |order| order.key.is_none() || order.orphaned);
        let blocking: Vec<(KeyId, FailureKind)> = self.workspaces.get(id).map(|ws| blocking(ws, now)).unwrap_or_default();
        let mut done = released || lifted.is_some() || blocking.is_empty();
        if let Some(span) = override_for
            && !blocking.is_empty()
        {
            self.start_override(now, id, &blocking, span, &why, actor, out);
            done = true;
        }
        if !done {
            let keys: Vec<String> = blocking.iter().map(|(key, kind)| format!("{key} ({kind})")).collect();
            let detail = format!(
                "workspace `{id}` is locked by proof that its key does not work, and there is no proof that it works again: {}",
                keys.join(", ")
            );
            return Err(refuse(RefusalSlug::NotProven, detail));
        }
        self.record_by(now, EventType::OperatorAction, (None, Some(id.clone())), actor, [("action", "unlock".to_owned()), ("reason", why)]);
        if let Some(changed) = lifted
            && changed.to < before
        {
            let changed = crate::watch::workspaces::Changed { from: before, ..changed };
            self.tell_group(now, None, &[&changed], changed.to, Cause::Manual, None, Some(actor));
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "an override names all of these")]
    fn start_override(
        &mut self,
        now: Now,
        id: &WorkspaceId,
        keys: &[(KeyId, FailureKind)],
        span: Span,
        why: &str,
        actor: &str,
        out: &mut Effects,
    ) {
        let until = now.wall.plus(span);
        let raising = self.ledger.withholds_raise(id);
        if let Some(ws) = self.workspaces.get_mut(id)
            && !raising
            && ws.lifting.is_empty()
        {
            (ws.meanwhile, ws.floor) = (ws.sequence, Access::Open);
        }
        for (key, kind) in keys {
            let row = OverrideRow {
                workspace: id.clone(),
                key: key.clone(),
                kind: *kind,
                until,
                reason: why.to_owned(),
                actor: actor.to_owned(),
            };
            self.tell_override(now, &row);
            if let Some(ws) = self.workspaces.get_mut(id) {
                ws.orders.overrides.retain(|o| !(o.key == *key && o.kind == *kind));
                ws.orders.overrides.push(row);
                ws.sequence = ws.sequence.next(now.wall.0);
                ws.decided = ws.decide(now.wall);
                ws.since = now.wall;
            }
        }
        self.overrides.insert((until, id.clone()));
        self.store_overrides(id);
        self.store_workspace(id);
        // Shown when it is on disk: the reply of the caller brings the view with it.
        let _ = out;
        self.ledger.open.raised.insert(id.clone());
    }

    /// `None`: the answer comes when the round is judged.
    fn validate(&mut self, now: Now, ticket: Ticket, key: &KeyId) -> Option<Answered> {
        let Some(ix) = self.by_id.get(key).copied() else {
            return Some(Err(refuse(RefusalSlug::UnknownKey, format!("unknown key `{key}`"))));
        };
        let cell = self.cells.get_mut(&ix)?;
        let never_probed = cell.key.refused.is_some() || cell.kept.life == KeyState::Retired;
        if never_probed {
            return self.key_view(now, ix).map(|view| Ok(Answer::Key(std::sync::Arc::new(view))));
        }
        cell.callers.push(ticket);
        if cell.in_flight.is_none() && cell.waiting.is_none() {
            cell.full = true;
            self.schedule(ix, now.mono);
        }
        None
    }

    fn release_brake_by_hand(
        &mut self,
        now: Now,
        provider: &ProviderId,
        lock: bool,
        why: &str,
        actor: &str,
        out: &mut Effects,
    ) -> Result<u32, Refusal> {
        let why = reason(why)?;
        if !self.config.providers.contains_key(provider) {
            return Err(refuse(RefusalSlug::UnknownProvider, format!("unknown provider `{provider}`")));
        }
        if !self.brakes.get(provider).is_some_and(|brake| brake.engaged) {
            return Err(refuse(RefusalSlug::NotEngaged, format!("the brake of provider `{provider}` is not engaged")));
        }
        let what = if lock { "lock" } else { "drop" };
        let detail = [("action", format!("brake release --{what}")), ("provider", provider.to_string()), ("reason", why)];
        self.record_by(now, EventType::OperatorAction, (None, None), actor, detail);
        Ok(self.release_brake(now, provider, lock, out))
    }

    /// Held orders are carried out at the next refused look, or dropped.
    fn release_brake(&mut self, now: Now, provider: &ProviderId, lock: bool, out: &mut Effects) -> u32 {
        let held = self.brakes.get_mut(provider).map(crate::lockout::Brake::release).unwrap_or_default();
        for key in &held {
            let Some(ix) = self.by_id.get(key).copied() else { continue };
            if let Some(cell) = self.cells.get_mut(&ix) {
                cell.kept.released = lock;
                cell.kept.dropped = !lock;
                cell.dirty = true;
            }
            self.schedule(ix, now.mono);
            self.store_cell(now, ix);
        }
        self.store_brake(provider);
        self.tell_provider(now, provider, EventType::BrakeReleased, None);
        self.show_provider(now, provider, out);
        u32::try_from(held.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn next_brake_release(&self, now: Now) -> Option<Mono> {
        let after = self.config.brake.release?;
        let engaged = self.brakes.values().filter(|b| b.engaged).filter_map(|b| b.engaged_at).min()?;
        Some(now.mono.plus(engaged.plus(after).since(now.wall)))
    }

    /// `[brake] release` may be a duration after which held locks are carried out.
    pub(super) fn release_brakes_in_time(&mut self, now: Now) {
        let Some(after) = self.config.brake.release else { return };
        let due: Vec<ProviderId> = self
            .brakes
            .iter()
            .filter(|(_, b)| b.engaged && b.engaged_at.is_some_and(|at| now.wall.since(at) >= after))
            .map(|(provider, _)| provider.clone())
            .collect();
        for provider in due {
            let mut out = Effects::default();
            self.release_brake(now, &provider, true, &mut out);
        }
    }

    fn retire_version(
        &mut self,
        now: Now,
        key: &KeyId,
        version: &KeyVersion,
        why: &str,
        actor: &str,
        out: &mut Effects,
    ) -> Result<Answer, Refusal> {
        let why = reason(why)?;
        let ix = self.by_id.get(key).copied().ok_or_else(|| refuse(RefusalSlug::UnknownKey, format!("unknown key `{key}`")))?;
        let cell = self.cells.get_mut(&ix).ok_or_else(|| refuse(RefusalSlug::UnknownKey, format!("unknown key `{key}`")))?;
        if cell.kept.current.as_ref() == Some(version) {
            return Err(refuse(
                RefusalSlug::CurrentVersion,
                format!("version `{version}` of key `{key}` is the current one and cannot be retired"),
            ));
        }
        let entry = cell
            .kept
            .versions
            .get_mut(version)
            .ok_or_else(|| refuse(RefusalSlug::UnknownVersion, format!("key `{key}` has no known version `{version}`")))?;
        entry.retired = true;
        entry.protects_data = false;
        entry.canary = None;
        cell.dirty = true;
        self.ledger.open.commit.canaries.retain(|row| !(row.key == *key && row.version == *version));
        self.ledger.open.commit.canaries_dropped.push((key.clone(), version.clone()));
        let detail = [("action", "version retire".to_owned()), ("version", version.to_string()), ("reason", why)];
        self.record_by(now, EventType::OperatorAction, (Some(key.clone()), None), actor, detail);
        self.schedule(ix, now.mono);
        self.store_cell(now, ix);
        self.show_key_later(now, ix, out);
        let view = self.key_view(now, ix).ok_or_else(|| refuse(RefusalSlug::UnknownKey, format!("unknown key `{key}`")))?;
        Ok(Answer::Key(std::sync::Arc::new(view)))
    }

    fn retire_key(&mut self, now: Now, key: &KeyId, why: &str, actor: &str, out: &mut Effects) -> Result<Answer, Refusal> {
        let why = reason(why)?;
        let ix = self.by_id.get(key).copied().ok_or_else(|| refuse(RefusalSlug::UnknownKey, format!("unknown key `{key}`")))?;
        self.record_by(
            now,
            EventType::OperatorAction,
            (Some(key.clone()), None),
            actor,
            [("action", "key retire".to_owned()), ("reason", why)],
        );
        self.orphan_orders(now, ix);
        if let Some(cell) = self.cells.get_mut(&ix) {
            cell.kept.life = KeyState::Retired;
            cell.dirty = true;
            self.lanes.take(&cell.lane, ix);
            let window = cell.window;
            self.windows.remove(&(window, ix));
        }
        self.answer_callers(now, ix, out);
        self.settle_needs(now);
        self.transition(now, ix, EventType::KeyRetired, None);
        self.store_cell(now, ix);
        self.show_key_later(now, ix, out);
        let view = self.key_view(now, ix).ok_or_else(|| refuse(RefusalSlug::UnknownKey, format!("unknown key `{key}`")))?;
        Ok(Answer::Key(std::sync::Arc::new(view)))
    }

    /// Whether a report is due for this slot; notes it as served, with the report's own commit.
    fn next_slot(&mut self, name: &str, slot: &str) -> bool {
        let last = self.reports.insert(name.to_owned(), slot.to_owned());
        let newer = last.as_deref().is_none_or(|last| last < slot);
        if !newer {
            self.reports.extend(last.map(|last| (name.to_owned(), last)));
            return false;
        }
        self.ledger.open.commit.meta.insert(format!("report:{name}"), Some(slot.to_owned()));
        last.is_some()
    }

    /// What keeps the heartbeat back (SETTLED B11). Failing keys do not.
    fn unwell(&self, now: Now) -> Option<String> {
        let overdue = self.overdue(now);
        if overdue > 0 {
            return Some(format!("{overdue} keys have neither evidence nor a recorded miss for two intervals"));
        }
        if self.ledger.refused() {
            return Some("the store does not take what is to be written".to_owned());
        }
        let oldest = self.outbox.oldest_critical().filter(|at| now.wall.since(*at) >= CRITICAL_WITHIN)?;
        Some(format!("a critical notice waits since {oldest}"))
    }

    fn digest_text(&self, now: Now) -> String {
        let mut states: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
        for cell in self.cells.values() {
            let count = states.entry(cell.kept.life.word().as_str()).or_default();
            *count = count.saturating_add(1);
        }
        let states: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let locked: Vec<&str> =
            self.workspaces.values().filter(|ws| ws.shown(now.wall) == Access::Locked).map(|ws| ws.id.as_str()).take(20).collect();
        let locked = if locked.is_empty() { "no workspace is locked".to_owned() } else { format!("locked: {}", locked.join(", ")) };
        format!("{} keys ({}); {locked}.", self.cells.len(), states.join(", "))
    }
}

/// Automatic orders that still act and are no orphans.
fn blocking(ws: &crate::watch::workspaces::Workspace, now: Now) -> Vec<(KeyId, FailureKind)> {
    ws.orders
        .automatic
        .values()
        .filter(|order| !ws.orders.overridden(order, now.wall) && !order.orphaned)
        .filter_map(|order| {
            let kind = crate::lockout::kind_of(order.cause);
            order.key.as_ref().map(|key| (key.id.clone(), kind))
        })
        .collect()
}
