//! inside
//! From evidence to what follows: verdict, one step of the lifecycle, and the proposals it makes put
//! to brake, policy and operator. The only place that turns a proposal into a lock or an unlock.

use crate::journal::{Order, OrderKey};
use crate::lifecycle::{self, Again, Did, Finding, KeyState};
use crate::lockout::BrakeMove;
use crate::probe::Evidence;
use crate::schedule::KeyIx;
use crate::time::{Mono, Now, Span};
use crate::verdict::{self, Stated, Verdict, Witness};
use crate::watch::control::cached;
use crate::watch::{Count, Effects, Watch};
use crate::words::{Access, Cause, EventType, FailureKind, HeldBy, Leg, LegOutcome};

/// Accounts looked at extra when a wave of denials may begin.
const OTHERS_MAX: usize = 20;

impl Watch {
    /// Judges a round at once, or after the control key has answered.
    pub(super) fn judge_or_wait(&mut self, now: Now, ix: KeyIx, evidence: Box<Evidence>, out: &mut Effects) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let policy = &cell.policy;
        let locks = |kind: FailureKind| policy.on.get(&kind).is_some_and(|rule| rule.access.is_some());
        let needed = cell.proven() && verdict::needs_witness(&evidence, locks);
        if !needed {
            self.judge(now, ix, &evidence, Witness::Good, out);
            return;
        }
        let Some(control) = self.controls.get_mut(&cell.key.provider) else { return };
        let denied_at = if cached(policy) == Span::ZERO { now.mono } else { evidence.started.mono };
        if let Some(witness) = control.witness(denied_at, cached(policy)) {
            self.judge(now, ix, &evidence, witness, out);
        } else {
            cell.waiting = Some((denied_at, evidence));
            control.waiting.insert(ix);
        }
    }

    pub(super) fn judge_waiting(&mut self, now: Now, ix: KeyIx, out: &mut Effects) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let Some((denied_at, evidence)) = cell.waiting.take() else { return };
        let Some(control) = self.controls.get_mut(&cell.key.provider) else { return };
        let Some(witness) = control.witness(denied_at, cached(&cell.policy)) else {
            // The answer began before the denial: it is asked once more.
            cell.waiting = Some((denied_at, evidence));
            control.waiting.insert(ix);
            return;
        };
        self.judge(now, ix, &evidence, witness, out);
    }

    fn judge(&mut self, now: Now, ix: KeyIx, evidence: &Evidence, witness: Witness, out: &mut Effects) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let identity = evidence.identity.clone();
        let mut verdict = verdict::judge(evidence, cell.knows(identity.as_deref()), witness);
        // Without the stored canary nothing shows that the old material is back (A12).
        let in_lock = matches!(cell.kept.life, KeyState::Revoked { .. } | KeyState::Recovering { .. });
        if let Verdict::Good { complete, .. } = &mut verdict
            && (in_lock || !cell.proven())
        {
            let all_stored = !in_lock || (cell.current_canary().is_some() && cell.needed_older().all(|(_, v)| v.canary.is_some()));
            // A describe that the owner never granted says nothing; one that failed is no good leg.
            let described = evidence.leg(Leg::Describe).is_some_and(|leg| match leg.outcome {
                LegOutcome::Ok => true,
                LegOutcome::Failed => leg.failure_kind == Some(FailureKind::AccessDenied),
                LegOutcome::NotRun => false,
            });
            *complete = *complete && all_stored && described;
        }
        let provider = cell.key.provider.clone();
        let trouble = if let Verdict::Unsure { kind, .. } = &verdict { Some(*kind) } else { None };
        self.lanes.ended(&cell.lane, trouble);
        cell.last = Some((evidence.started.wall, evidence.legs.clone()));
        cell.verdict = Some(verdict.clone());
        self.see(now, ix, evidence, &verdict, out);
        self.mind_credentials(now, &provider, &verdict);
        let vouched = self.vouched_elsewhere(ix, identity.as_deref());
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let before = cell.kept.life.clone();
        let step = lifecycle::step(std::mem::take(&mut cell.kept.life), &verdict, evidence.started, &cell.policy, vouched);
        cell.dirty |= step.state != before;
        cell.kept.life = step.state;
        if matches!(verdict, Verdict::Good { .. }) {
            cell.kept.dropped = false;
            self.drop_held(ix);
            self.note_good(now, ix, identity.as_deref());
        }
        self.mind_the_brake(now, ix, &verdict);
        self.follow(now, ix, step.did, &verdict, out);
        self.enforce_at_next_look(now, ix, &verdict, out);
        self.lower_released(now, ix, &verdict);
        // Only now is the state known whose interval the next window has.
        self.move_window(now, ix);
        self.place_again(now, ix, evidence.started, step.again);
        self.answer_callers(now, ix, out);
        self.store_cell(now, ix);
        self.show_key_later(now, ix, out);
        self.show_shadow(now, ix, &before, out);
    }

    /// Workspaces say what they would have in shadow mode as soon as that changes.
    fn show_shadow(&mut self, now: Now, ix: KeyIx, before: &KeyState, out: &mut Effects) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let shadow = |life: &KeyState| matches!(life, KeyState::Revoked { lock: None, .. });
        if shadow(before) != shadow(&cell.kept.life) {
            for id in cell.key.workspaces.clone() {
                self.show_workspace(now, &id, out);
            }
        }
    }

    fn note_good(&mut self, now: Now, ix: KeyIx, identity: Option<&str>) {
        let Some(cell) = self.cells.get(&ix) else { return };
        if let Some(identity) = identity {
            self.vouchers.insert((cell.key.provider.clone(), identity.into(), cell.account.clone()), now.mono);
        }
    }

    /// A good look on another account's key, by this identity, since this key's first denial.
    fn vouched_elsewhere(&self, ix: KeyIx, identity: Option<&str>) -> bool {
        let Some(cell) = self.cells.get(&ix) else { return false };
        let KeyState::Suspect { looks, .. } = &cell.kept.life else { return false };
        let (Some(first), Some(identity)) = (looks.first_refused(), identity) else { return false };
        let from = (cell.key.provider.clone(), identity.into(), std::sync::Arc::from(""));
        self.vouchers
            .range(from..)
            .take_while(|((provider, who, _), _)| *provider == cell.key.provider && &**who == identity)
            .any(|((.., account), at)| *account != cell.account && *at >= first.mono)
    }

    /// Keeps the brake's count of accounts under unstated suspicion.
    fn mind_the_brake(&mut self, now: Now, ix: KeyIx, verdict: &Verdict) {
        let Some(cell) = self.cells.get(&ix) else { return };
        if !cell.proven() {
            return;
        }
        let (account, provider) = (cell.account.clone(), cell.key.provider.clone());
        let suspected = matches!(cell.kept.life, KeyState::Suspect { .. });
        let rule = self.config.brake.clone();
        let brake = self.brakes.entry(provider.clone()).or_default();
        brake.looked(&account);
        let mut opens = false;
        match verdict {
            Verdict::Refused(refused) if suspected && !(refused.stated != Stated::No && verdict::is_key_state(refused.kind)) => {
                opens = brake.suspect(now.mono, &account, ix, &rule);
            }
            Verdict::Refused(refused) if refused.stated != Stated::No && verdict::is_key_state(refused.kind) => brake.cleared(&account, ix),
            // A key that is locked already still counts among those that failed in this window.
            Verdict::Refused(_) => {}
            Verdict::Good { .. } if !suspected => brake.cleared(&account, ix),
            Verdict::Good { .. } | Verdict::Unsure { .. } => {}
        }
        if opens {
            self.look_at_others(now, &provider, &account);
        }
    }

    /// The first unstated denial makes keys of other accounts due, one each.
    fn look_at_others(&mut self, now: Now, provider: &crate::key::ProviderId, account: &str) {
        let mut accounts = std::collections::BTreeSet::from([account.to_owned()]);
        let mut keys = Vec::new();
        for (ix, cell) in &self.cells {
            if keys.len() >= OTHERS_MAX {
                break;
            }
            if cell.key.provider == *provider && cell.proven() && accounts.insert(cell.account.to_string()) {
                keys.push(*ix);
            }
        }
        for ix in keys {
            self.schedule(ix, now.mono);
        }
    }

    fn follow(&mut self, now: Now, ix: KeyIx, did: Did, verdict: &Verdict, out: &mut Effects) {
        match did {
            Did::Nothing => {
                self.tell_held_again(now, ix, verdict.kind());
                self.tell_unproven(now, ix, verdict);
                self.mind_witness_grace(now, ix, verdict);
            }
            Did::Proven => self.proven_now(now, ix),
            Did::Suspected(refused) => {
                if let Some(good) = self.cells.get(&ix).and_then(|cell| cell.kept.last_good) {
                    self.counts.push_back(Count::Latency { stage: "detect", start: "last_good", span: now.mono.since(good.mono) });
                }
                self.transition(now, ix, EventType::KeySuspect, Some(refused.kind));
            }
            Did::Cleared | Did::Healed => {
                self.forget_held(ix);
                self.transition(now, ix, EventType::KeyActive, None);
            }
            Did::Propose(finding) => self.propose(now, ix, finding, out),
            Did::HeldByPolicy(refused) => self.told_held(now, ix, refused.kind),
            Did::Flapping(refused) => self.flapping(now, ix, refused.kind, verdict, out),
            Did::Impaired(finding) => self.transition(now, ix, EventType::KeyVersionLost, Some(finding.kind)),
            Did::Changed(finding) => self.change_cause(now, ix, finding),
            Did::Recovering => self.transition(now, ix, EventType::KeyRecovering, None),
            Did::Relapsed => {
                let kind = verdict.kind();
                self.transition(now, ix, EventType::KeyRevoked, kind);
                self.take_back(now, ix);
            }
            Did::ProposeUnlock => self.unlock_key(now, ix, None),
            Did::AwaitsApproval => self.await_approval(now, ix),
        }
    }

    /// A confirmed finding: exempt, let through, or held by the brake.
    pub(super) fn propose(&mut self, now: Now, ix: KeyIx, finding: Finding, out: &mut Effects) {
        let rule = self.config.brake.clone();
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let stated = finding.stated != Stated::No && verdict::is_key_state(finding.kind);
        // What was dropped was doubt about many; a key that states its own end is no part of it.
        if cell.kept.dropped && !stated && finding.cause != Cause::Stale {
            return;
        }
        if !cell.policy.enforce {
            self.would_lock(now, ix, finding);
            return;
        }
        let exempt = stated || finding.cause == Cause::Stale || cell.kept.released;
        if !exempt {
            let (id, provider) = (cell.key.id.clone(), cell.key.provider.clone());
            let brake = self.brakes.entry(provider.clone()).or_default();
            if let BrakeMove::Hold { engaged_now } = brake.ask(now.mono, now.wall, &id, &rule) {
                let Some(cell) = self.cells.get_mut(&ix) else { return };
                cell.kept.life = lifecycle::hold(std::mem::take(&mut cell.kept.life), HeldBy::Brake);
                cell.dirty = true;
                self.store_brake(&provider);
                if engaged_now {
                    self.tell_provider(now, &provider, EventType::BrakeEngaged, Some(finding.kind));
                }
                self.show_provider(now, &provider, out);
                return;
            }
        }
        self.lock_key(now, ix, finding);
    }

    /// Lowers every workspace bound to the key. The order: journal, gate, notice, by the ledger.
    pub(super) fn lock_key(&mut self, now: Now, ix: KeyIx, finding: Finding) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.kept.released = false;
        cell.kept.released_to.clear();
        let last_good = cell.kept.last_good.map(|stamp| stamp.mono);
        let order_key = OrderKey { id: cell.key.id.clone(), provider: cell.key.provider.clone(), reference: cell.name.1.clone() };
        let workspaces = cell.key.workspaces.clone();
        self.forget_held(ix);
        let message = self.sentence(ix, EventType::KeyRevoked, Some(finding.kind), finding.stated != Stated::No);
        let mut changed = Vec::new();
        let mut lock = None;
        for workspace in &workspaces {
            let change = self.lower(now, workspace, Some(order_key.clone()), finding, &message);
            lock = lock.max(Some(change.sequence));
            changed.push(change);
        }
        let lock = lock.or(Some(crate::words::Sequence(0).next(now.wall.0)));
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.kept.life = lifecycle::lock(std::mem::take(&mut cell.kept.life), finding, lock);
        cell.kept.since = now.wall;
        cell.dirty = true;
        self.ledger.open.keys.insert(ix);
        let event = if finding.direction == verdict::Direction::Unwrap { EventType::KeyRevoked } else { EventType::KeyImpaired };
        self.tell_lock(now, ix, event, finding, &changed);
        if let Some(good) = last_good {
            self.counts.push_back(Count::Latency { stage: "confirm", start: "last_good", span: now.mono.since(good) });
            self.ledger.open.applies.push(good);
        }
    }

    /// Shadow mode goes all the way to a record of what would have been.
    fn would_lock(&mut self, now: Now, ix: KeyIx, finding: Finding) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.kept.life = lifecycle::lock(std::mem::take(&mut cell.kept.life), finding, None);
        cell.kept.since = now.wall;
        cell.dirty = true;
        self.would_lock = self.would_lock.saturating_add(1);
        self.daemon_dirty = true;
        self.transition(now, ix, EventType::WorkspaceWouldLock, Some(finding.kind));
    }

    /// A refused look while recovering: an unlock under way is undone, and nothing waits for approval.
    fn take_back(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let KeyState::Revoked { finding, lock: Some(_), .. } = cell.kept.life else { return };
        let name = cell.name.clone();
        if std::mem::take(&mut cell.unlocking) {
            self.ledger.forget_unlock(ix);
            self.lock_key(now, ix, finding);
            return;
        }
        let pending: Vec<Order> = self
            .workspaces
            .values()
            .filter_map(|ws| ws.orders.automatic.get(&name).filter(|order| order.release.is_some()))
            .map(|order| Order { release: None, ..order.clone() })
            .collect();
        for order in pending {
            self.place_order(now, order);
        }
    }

    /// A workspace that was released from a lock by hand is lowered again when the looks confirm it
    /// once more, and only as far as they do.
    fn lower_released(&mut self, now: Now, ix: KeyIx, verdict: &Verdict) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let KeyState::Revoked { lock: Some(_), looks, .. } = &cell.kept.life else { return };
        if cell.kept.released_to.is_empty() || !matches!(verdict, Verdict::Refused(_)) {
            return;
        }
        let Some(confirmed) = looks.confirmed(&cell.policy, false) else { return };
        let Some(access) = confirmed.access.filter(|access| *access > Access::Open) else { return };
        let refused = confirmed.refused;
        let cause = if refused.direction == verdict::Direction::Version { Cause::VersionLost } else { Cause::Kind(refused.kind) };
        let finding = Finding { cause, kind: refused.kind, access, direction: refused.direction, stated: refused.stated };
        let key = OrderKey { id: cell.key.id.clone(), provider: cell.key.provider.clone(), reference: cell.name.1.clone() };
        let name = cell.name.clone();
        let milder = |ws: &crate::watch::workspaces::Workspace| ws.orders.automatic.get(&name).is_none_or(|order| order.access < access);
        let wanted: Vec<_> = cell.kept.released_to.iter().filter(|id| self.workspaces.get(*id).is_some_and(milder)).cloned().collect();
        let message = self.sentence(ix, EventType::KeyRevoked, Some(finding.kind), finding.stated != Stated::No);
        for id in wanted {
            let changed = self.lower(now, &id, Some(key.clone()), finding, &message);
            if changed.to > changed.from {
                self.tell_group(now, Some(ix), &[&changed], changed.to, cause, Some(finding), None);
            }
        }
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        if access == Access::Locked {
            cell.kept.released_to.clear();
            cell.dirty = true;
        }
    }

    /// A stricter policy, or the end of shadow mode, applies at the next refused look (B4).
    fn enforce_at_next_look(&mut self, now: Now, ix: KeyIx, verdict: &Verdict, out: &mut Effects) {
        let Some(cell) = self.cells.get(&ix) else { return };
        if let KeyState::Revoked { finding, lock: None, .. } = &cell.kept.life
            && cell.policy.enforce
            && matches!(verdict, Verdict::Refused(_))
        {
            let finding = *finding;
            self.propose(now, ix, finding, out);
        }
    }

    fn flapping(&mut self, now: Now, ix: KeyIx, kind: FailureKind, verdict: &Verdict, out: &mut Effects) {
        let Some(cell) = self.cells.get(&ix) else { return };
        let access = cell.policy.flapping.access;
        self.tell_flapping(now, ix, kind);
        if let (Some(access), Verdict::Refused(refused)) = (access.filter(|a| *a > Access::Open), verdict) {
            let finding = Finding { cause: Cause::Kind(kind), kind, access, direction: refused.direction, stated: refused.stated };
            self.propose(now, ix, finding, out);
        }
    }

    fn forget_held(&mut self, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.kept.told_held_at = None;
        self.drop_held(ix);
    }

    /// What the brake holds, or was released to lock, drops by itself after a good look (A9).
    fn drop_held(&mut self, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        cell.dirty |= std::mem::take(&mut cell.kept.released);
        let (id, provider) = (cell.key.id.clone(), cell.key.provider.clone());
        if self.brakes.get_mut(&provider).is_some_and(|brake| brake.held.remove(&id)) {
            self.store_brake(&provider);
        }
    }

    fn place_again(&mut self, now: Now, ix: KeyIx, started: Now, again: Again) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let unsettled = !cell.proven() && cell.rounds <= 3;
        let at = match again {
            // A new key is asked a few times soon, so that onboarding does not wait for the grid.
            Again::Grid if unsettled => now.mono.plus(cell.policy.suspect_interval.min(cell.policy.probe_interval)),
            Again::Grid => Self::grid(cell, now),
            // Released by hand and refused again: looked at closely until that is confirmed or over.
            Again::In(span) if matches!(cell.kept.life, KeyState::Revoked { .. }) && !cell.kept.released_to.is_empty() => {
                started.mono.plus(span.min(cell.confirming())).max(now.mono.plus(Span(1)))
            }
            Again::In(span) => started.mono.plus(span).max(now.mono.plus(Span(1))),
        };
        let older_due = cell.needed_older().any(|(_, v)| v.last_checked.is_none() && v.canary.is_some());
        let at: Mono = if older_due { at.min(now.mono.plus(cell.policy.suspect_interval)) } else { at };
        self.schedule(ix, at);
    }

    pub(super) fn answer_callers(&mut self, now: Now, ix: KeyIx, out: &mut Effects) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        if cell.callers.is_empty() || (cell.full && cell.kept.life != KeyState::Retired) {
            return;
        }
        let callers = std::mem::take(&mut cell.callers);
        let Some(view) = self.key_view(now, ix).map(std::sync::Arc::new) else { return };
        for ticket in callers {
            out.replies.push((ticket, Ok(crate::operate::Reply::Key(std::sync::Arc::clone(&view)))));
        }
    }
}
