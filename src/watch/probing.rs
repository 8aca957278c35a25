//! inside
//! Rounds: which keys start now, with which legs, and what becomes of probes that never come back.
//! Every window of two intervals ends in evidence or in a recorded miss with its cause.

use std::collections::BTreeMap;

use crate::key::{KeyId, ProviderId};
use crate::lifecycle::KeyState;
use crate::probe::{Evidence, Plan};
use crate::schedule::{Class, KeyIx, slot_after};
use crate::time::{Mono, Now, Span};
use crate::verdict::Direction;
use crate::watch::cell::{InFlight, KeyCell};
use crate::watch::{Attempt, Count, Effects, IN_FLIGHT_MAX, ProbeOrder, Subject, Watch};
use crate::words::{EventType, FailureKind, LegOutcome};

/// Calls that a probe is reckoned with: wrap, unwrap, and now and then describe.
const CALLS_PER_PROBE: u32 = 3;
/// Older versions opened in one steady round at most, so that they are spread out.
const OLDER_PER_ROUND: usize = 2;
/// Versions that get a canary in one round at most.
const MISSING_PER_ROUND: usize = 4;
/// The schedule of a key's rotation is read at most so often.
const ROTATION_EVERY: Span = Span::from_hours(1);
/// Every so many steady rounds describe is asked.
const DESCRIBE_EVERY: u64 = 5;

impl Watch {
    pub(super) fn next_attempt(&mut self) -> Attempt {
        self.attempts = self.attempts.saturating_add(1);
        Attempt(self.attempts)
    }

    /// Puts a key back in its lane.
    pub(super) fn schedule(&mut self, ix: KeyIx, at: Mono) {
        let Some(cell) = self.cells.get(&ix) else { return };
        if cell.in_flight.is_some() || cell.waiting.is_some() || cell.key.refused.is_some() || cell.kept.life == KeyState::Retired {
            return;
        }
        let class = match cell.kept.life {
            KeyState::Suspect { .. } => Class::Suspect,
            KeyState::Recovering { .. } | KeyState::Revoked { .. } => Class::Recovering,
            KeyState::Unproven | KeyState::Active | KeyState::Impaired { .. } | KeyState::Retired => Class::Steady,
        };
        self.lanes.put(&cell.lane, ix, class, at);
    }

    /// The next slot of the key's own grid.
    pub(super) fn grid(cell: &KeyCell, now: Now) -> Mono {
        slot_after(now.mono, cell.policy.probe_interval, cell.phase)
    }

    /// Something outside asks for a look now. It only ever brings a look forward.
    pub(super) fn hinted(&mut self, now: Now, key: &KeyId, _source: &str) {
        if let Some(ix) = self.by_id.get(key).copied() {
            self.schedule(ix, now.mono);
        }
    }

    pub(super) fn start_probes(&mut self, now: Now, out: &mut Effects) {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let Some((lane, ix)) = self.lanes.pop(now.mono, CALLS_PER_PROBE) else { break };
            self.start_probe(now, &lane.provider, ix, out);
        }
    }

    fn start_probe(&mut self, now: Now, provider: &ProviderId, ix: KeyIx, out: &mut Effects) {
        let attempt = self.next_attempt();
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        let plan = plan(cell, now);
        // The adapter's own deadlines come first; this one is for an adapter that hangs.
        let deadline = now.mono.plus(plan.deadline).plus(plan.call_timeout).plus(Span::from_secs(5));
        cell.in_flight = Some(InFlight { attempt, deadline, started: now });
        cell.full = false;
        cell.rounds = cell.rounds.saturating_add(1);
        let subject = Subject::Key(ix);
        self.in_flight.insert((deadline, subject.clone(), attempt));
        out.probes.push(ProbeOrder { subject, provider: provider.clone(), attempt, plan });
    }

    pub(super) fn probed(&mut self, now: Now, subject: Subject, attempt: Attempt, evidence: Evidence, out: &mut Effects) {
        let provider = match &subject {
            Subject::Control(provider) => provider.clone(),
            Subject::Key(ix) => match self.cells.get(ix) {
                Some(cell) => cell.key.provider.clone(),
                None => return,
            },
        };
        self.in_flight.retain(|(_, s, a)| !(*a == attempt && *s == subject));
        for leg in evidence.legs.iter().filter(|leg| leg.outcome != LegOutcome::NotRun) {
            let (provider, kind, took) = (provider.clone(), leg.failure_kind, leg.duration_ms);
            self.counts.push_back(Count::Leg { provider, leg: leg.leg, outcome: leg.outcome, kind, took });
        }
        match subject {
            Subject::Control(provider) => self.control_probed(now, &provider, attempt, &evidence, out),
            Subject::Key(ix) => {
                let Some(cell) = self.cells.get_mut(&ix) else { return };
                if cell.in_flight.map(|f| f.attempt) != Some(attempt) {
                    return;
                }
                cell.in_flight = None;
                cell.identity = evidence.identity.clone().or_else(|| cell.identity.take());
                self.move_window(now, ix);
                self.judge_or_wait(now, ix, Box::new(evidence), out);
            }
        }
    }

    /// Evidence came in, or a miss was recorded: the next window begins.
    pub(super) fn move_window(&mut self, now: Now, ix: KeyIx) {
        let Some(cell) = self.cells.get_mut(&ix) else { return };
        self.windows.remove(&(cell.window, ix));
        cell.window = now.mono.plus(cell.interval().times(2));
        self.windows.insert((cell.window, ix));
    }

    /// Probes whose adapter hangs or was lost: evidence of a timeout, and the attempt is nobody's.
    pub(super) fn expire_probes(&mut self, now: Now, out: &mut Effects) {
        while let Some((at, subject, attempt)) = self.in_flight.first().cloned().filter(|(at, ..)| *at <= now.mono) {
            self.in_flight.remove(&(at, subject.clone(), attempt));
            let started = match &subject {
                Subject::Key(ix) => self.cells.get(ix).and_then(|c| c.in_flight).filter(|f| f.attempt == attempt).map(|f| f.started),
                Subject::Control(_) => Some(now),
            };
            if let Some(started) = started {
                self.probed(now, subject, attempt, Evidence::lost(started, FailureKind::Timeout, "hung"), out);
            }
        }
    }

    /// Windows that ended without evidence are recorded, one record a provider and turn.
    pub(super) fn expire_windows(&mut self, now: Now) {
        let mut missed: BTreeMap<(ProviderId, &'static str), u64> = BTreeMap::new();
        while let Some((at, ix)) = self.windows.first().copied().filter(|(at, _)| *at <= now.mono) {
            self.windows.remove(&(at, ix));
            let Some(cell) = self.cells.get(&ix) else { continue };
            if cell.kept.life == KeyState::Retired || cell.key.refused.is_some() {
                continue;
            }
            let provider = cell.key.provider.clone();
            let breaker_open = self.lanes.open(&cell.lane);
            let cause = if cell.in_flight.is_some() {
                "in_flight"
            } else if cell.waiting.is_some() {
                "witness"
            } else if breaker_open {
                "breaker"
            } else {
                "budget"
            };
            let count = missed.entry((provider, cause)).or_default();
            *count = count.saturating_add(1);
            self.move_window(now, ix);
        }
        for ((provider, cause), count) in missed {
            if let Some(control) = self.controls.get_mut(&provider) {
                control.missed = control.missed.saturating_add(count);
            }
            self.counts.push_back(Count::Missed { provider: provider.clone(), count });
            let detail = [("provider", provider.to_string()), ("cause", cause.to_owned()), ("keys", count.to_string())];
            self.record(now, EventType::ProbeMissedWindow, None, None, detail);
        }
    }
}

/// The legs of the next round of this key.
fn plan(cell: &KeyCell, now: Now) -> Plan {
    let policy = &cell.policy;
    let in_question = match &cell.kept.life {
        KeyState::Suspect { .. } | KeyState::Revoked { .. } | KeyState::Recovering { .. } => true,
        KeyState::Unproven | KeyState::Active | KeyState::Impaired { .. } | KeyState::Retired => false,
    };
    let unwrap_first = match &cell.kept.life {
        KeyState::Suspect { refused, .. } => refused.direction == Direction::Unwrap,
        KeyState::Revoked { .. } | KeyState::Recovering { .. } => true,
        KeyState::Unproven | KeyState::Active | KeyState::Impaired { .. } | KeyState::Retired => false,
    };
    let all_older = cell.full || all_versions(&cell.kept.life);
    let mut older: Vec<_> = cell
        .needed_older()
        .filter(|(_, v)| all_older || v.last_checked.is_none_or(|at| now.mono.since(at.mono) >= policy.version_interval))
        .filter_map(|(_, v)| v.canary.clone().map(|canary| (v.last_checked.map_or(Mono(0), |at| at.mono), canary)))
        .collect();
    older.sort_by_key(|(checked, _)| *checked);
    if !all_older {
        older.truncate(OLDER_PER_ROUND);
    }
    let older: Vec<_> = older.into_iter().map(|(_, canary)| canary).collect();
    let settled = matches!(cell.kept.life, KeyState::Active | KeyState::Impaired { .. });
    let missing = if settled { cell.missing().into_iter().take(MISSING_PER_ROUND).collect() } else { Vec::new() };
    let describe = in_question || cell.full || cell.kept.warned.is_some() || !cell.proven() || cell.rounds.is_multiple_of(DESCRIBE_EVERY);
    let rotation = describe && settled && cell.rotation_asked.is_none_or(|at| now.mono.since(at) >= ROTATION_EVERY);
    let extra = policy.call_timeout.times(u64::try_from(older.len()).unwrap_or(0));
    let deadline =
        policy.probe_interval.min(policy.call_timeout.times(3)).max(policy.call_timeout).plus(if all_older { extra } else { Span::ZERO });
    Plan {
        target: std::sync::Arc::clone(&cell.key.target),
        unwrap_first,
        describe,
        current: cell.current_canary().cloned(),
        older,
        missing,
        rotation,
        deadline,
        call_timeout: policy.call_timeout,
    }
}

/// States in which every needed version is opened in each round.
fn all_versions(life: &KeyState) -> bool {
    match life {
        KeyState::Recovering { .. } | KeyState::Revoked { .. } | KeyState::Impaired { .. } => true,
        KeyState::Suspect { refused, .. } => refused.direction == Direction::Version,
        KeyState::Unproven | KeyState::Active | KeyState::Retired => false,
    }
}
