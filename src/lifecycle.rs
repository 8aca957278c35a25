//! inside
//! The one state machine of a key: state x verdict x time x policy -> state, and what follows.
//! It proposes locks and unlocks; it never applies them, and doubt never moves it towards one.

pub mod looks;

use serde::{Deserialize, Serialize};

use crate::policy::{Policy, Unlock};
use crate::time::{Now, Span};
use crate::verdict::{Direction, Refused, Stated, Verdict};
use crate::words::{Access, Cause, FailureKind, HeldBy, Sequence, StateWord};
use looks::{Confirmed, Looks, Stamp};

/// What was confirmed about a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub cause: Cause,
    pub kind: FailureKind,
    pub access: Access,
    pub direction: Direction,
    pub stated: Stated,
}

/// Good full rounds on the way to an unlock; they count only against this lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rounds {
    pub good: u8,
    first: Stamp,
    newest: Stamp,
}

/// Persisted state of a key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    #[default]
    Unproven,
    Active,
    /// An older version that protects data is lost; access is as the current version earns it.
    Impaired {
        finding: Finding,
    },
    Suspect {
        refused: Refused,
        looks: Box<Looks>,
        held: Option<HeldBy>,
        told: bool,
    },
    /// Confirmed; `lock` is the sequence of the order, absent in shadow mode.
    Revoked {
        finding: Finding,
        lock: Option<Sequence>,
        looks: Box<Looks>,
    },
    Recovering {
        finding: Finding,
        lock: Option<Sequence>,
        rounds: Rounds,
        held: Option<HeldBy>,
    },
    Retired,
}

/// What follows from one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    Nothing,
    /// First full good round under the present identity.
    Proven,
    Suspected(Refused),
    /// Good looks in a row ended the suspicion.
    Cleared,
    /// The looks confirm it and the policy says to lower access: ask the brake, then `lock` or `hold`.
    Propose(Finding),
    /// Confirmed, but the policy holds.
    HeldByPolicy(Refused),
    /// Suspect for longer than the policy's flapping time.
    Flapping(Refused),
    Impaired(Finding),
    Healed,
    /// The cause of a lock changed while it holds.
    Changed(Finding),
    Recovering,
    /// A refused look while recovering: the count starts again.
    Relapsed,
    /// Enough good rounds: unlock, or wait for a person as the policy says.
    ProposeUnlock,
    AwaitsApproval,
}

/// When to look again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    /// On the key's own grid.
    Grid,
    In(Span),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub state: KeyState,
    pub did: Did,
    pub again: Again,
}

impl KeyState {
    /// The word shown: a confirmed wrap or byte fault is `impaired`, for what is stored still opens.
    #[must_use]
    pub fn word(&self) -> StateWord {
        match self {
            Self::Unproven => StateWord::Unproven,
            Self::Active => StateWord::Active,
            Self::Impaired { .. } => StateWord::Impaired,
            Self::Suspect { .. } => StateWord::Suspect,
            Self::Revoked { finding, .. } => match finding.direction {
                Direction::Unwrap => StateWord::Revoked,
                Direction::Version | Direction::Wrap | Direction::Bytes => StateWord::Impaired,
            },
            Self::Recovering { .. } => StateWord::Recovering,
            Self::Retired => StateWord::Retired,
        }
    }

    #[must_use]
    pub fn held_by(&self) -> Option<HeldBy> {
        match self {
            Self::Suspect { held, .. } | Self::Recovering { held, .. } => *held,
            Self::Unproven | Self::Active | Self::Impaired { .. } | Self::Revoked { .. } | Self::Retired => None,
        }
    }

    /// The confirmed finding in force.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        match self {
            Self::Impaired { finding } | Self::Revoked { finding, .. } | Self::Recovering { finding, .. } => Some(*finding),
            Self::Unproven | Self::Active | Self::Suspect { .. } | Self::Retired => None,
        }
    }

    /// After a restart: gives stored moments their place on this process's clock.
    pub fn rebase(&mut self, now: Now, policy: &Policy) {
        match self {
            Self::Suspect { looks, .. } | Self::Revoked { looks, .. } => looks.rebase(now, policy),
            Self::Recovering { rounds, .. } => {
                let cap = policy.unlock_after.over.plus(Span::from_hours(1));
                rounds.first.mono = now.mono_of(rounds.first.wall, cap);
                rounds.newest.mono = now.mono_of(rounds.newest.wall, cap);
            }
            Self::Unproven | Self::Active | Self::Impaired { .. } | Self::Retired => {}
        }
    }
}

/// One step. `vouched_elsewhere`: see [`Looks::confirmed`].
#[must_use]
pub fn step(state: KeyState, verdict: &Verdict, started: Now, policy: &Policy, vouched_elsewhere: bool) -> Step {
    let look = countable(verdict, policy);
    let at = At { look, started, policy, vouched_elsewhere };
    match state {
        KeyState::Unproven => at.unproven(),
        KeyState::Active => at.active(),
        KeyState::Impaired { finding } => at.impaired(finding),
        KeyState::Suspect { refused, looks, held, told } => at.suspect(refused, looks, held, told),
        KeyState::Revoked { finding, lock, looks } => at.revoked(finding, lock, looks),
        KeyState::Recovering { finding, lock, rounds, held } => at.recovering(finding, lock, rounds, held),
        KeyState::Retired => Step { state: KeyState::Retired, did: Did::Nothing, again: Again::Grid },
    }
}

/// The brake, the owner of the policy and the store agreed: the key is revoked under this lock.
#[must_use]
pub fn lock(state: KeyState, finding: Finding, lock: Option<Sequence>) -> KeyState {
    let looks = match state {
        KeyState::Suspect { looks, .. } | KeyState::Revoked { looks, .. } => looks,
        KeyState::Unproven | KeyState::Active | KeyState::Impaired { .. } | KeyState::Recovering { .. } | KeyState::Retired => {
            Box::default()
        }
    };
    KeyState::Revoked { finding, lock, looks }
}

/// A confirmed finding is not acted on.
#[must_use]
pub fn hold(state: KeyState, by: HeldBy) -> KeyState {
    match state {
        KeyState::Suspect { refused, looks, told, .. } => KeyState::Suspect { refused, looks, held: Some(by), told },
        KeyState::Recovering { finding, lock, rounds, .. } => KeyState::Recovering { finding, lock, rounds, held: Some(by) },
        other @ (KeyState::Unproven | KeyState::Active | KeyState::Impaired { .. } | KeyState::Revoked { .. } | KeyState::Retired) => other,
    }
}

/// A look as the policy lets it count.
enum Counted {
    Good { complete: bool, warned: bool },
    Refused(Refused),
    Nothing,
}

fn countable(verdict: &Verdict, policy: &Policy) -> Counted {
    match verdict {
        Verdict::Good { complete, warned } => Counted::Good { complete: *complete, warned: warned.is_some() },
        Verdict::Refused(refused) if policy.on.contains_key(&refused.kind) => Counted::Refused(*refused),
        Verdict::Refused(_) => Counted::Nothing,
        Verdict::Unsure { kind, direction, vouched } => {
            if *vouched && policy.on.contains_key(kind) {
                Counted::Refused(Refused { kind: *kind, stated: Stated::No, direction: *direction, weak: false })
            } else {
                Counted::Nothing
            }
        }
    }
}

struct At<'a> {
    look: Counted,
    started: Now,
    policy: &'a Policy,
    vouched_elsewhere: bool,
}

impl At<'_> {
    fn soon(&self) -> Again {
        Again::In(self.policy.suspect_interval)
    }

    fn unproven(&self) -> Step {
        match self.look {
            Counted::Good { complete: true, .. } => Step { state: KeyState::Active, did: Did::Proven, again: Again::Grid },
            Counted::Good { complete: false, .. } | Counted::Refused(_) | Counted::Nothing => {
                Step { state: KeyState::Unproven, did: Did::Nothing, again: Again::Grid }
            }
        }
    }

    fn active(&self) -> Step {
        match self.look {
            Counted::Good { warned: true, .. } => Step { state: KeyState::Active, did: Did::Nothing, again: self.soon() },
            Counted::Good { .. } | Counted::Nothing => Step { state: KeyState::Active, did: Did::Nothing, again: Again::Grid },
            Counted::Refused(refused) => self.begin(refused),
        }
    }

    fn begin(&self, refused: Refused) -> Step {
        let step = self.suspect(refused, Box::default(), None, false);
        match step.did {
            Did::Nothing => Step { did: Did::Suspected(refused), ..step },
            Did::Proven
            | Did::Suspected(_)
            | Did::Cleared
            | Did::Propose(_)
            | Did::HeldByPolicy(_)
            | Did::Flapping(_)
            | Did::Impaired(_)
            | Did::Healed
            | Did::Changed(_)
            | Did::Recovering
            | Did::Relapsed
            | Did::ProposeUnlock
            | Did::AwaitsApproval => step,
        }
    }

    fn impaired(&self, finding: Finding) -> Step {
        let stay = |again| Step { state: KeyState::Impaired { finding }, did: Did::Nothing, again };
        match self.look {
            Counted::Good { complete: true, .. } => Step { state: KeyState::Active, did: Did::Healed, again: Again::Grid },
            Counted::Good { warned: true, .. } => stay(self.soon()),
            Counted::Good { .. } | Counted::Nothing => stay(Again::Grid),
            Counted::Refused(refused) => match refused.direction {
                // The policy may have become one that locks for it (B4).
                Direction::Version if self.policy.lost_version.is_none_or(|access| access == Access::Open) => stay(Again::Grid),
                Direction::Version | Direction::Wrap | Direction::Bytes | Direction::Unwrap => self.begin(refused),
            },
        }
    }

    fn suspect(&self, before: Refused, mut looks: Box<Looks>, held: Option<HeldBy>, told: bool) -> Step {
        let refused = match self.look {
            Counted::Good { .. } => {
                looks.good(self.started, self.policy);
                if looks.ended() {
                    return Step { state: KeyState::Active, did: Did::Cleared, again: Again::Grid };
                }
                let again = self.next_look(&looks);
                return self.flapping(KeyState::Suspect { refused: before, looks, held: None, told }, again);
            }
            Counted::Nothing => {
                let again = self.next_look(&looks);
                return self.flapping(KeyState::Suspect { refused: before, looks, held, told }, again);
            }
            Counted::Refused(refused) => refused,
        };
        looks.refused(refused, self.started, self.policy);
        let again = self.next_look(&looks);
        let confirmed = looks.confirmed(self.policy, self.vouched_elsewhere);
        let state = KeyState::Suspect { refused, looks, held, told };
        match confirmed {
            None => self.flapping(state, again),
            Some(confirmed) => self.act(state, confirmed, held, again),
        }
    }

    fn act(&self, state: KeyState, confirmed: Confirmed, held: Option<HeldBy>, again: Again) -> Step {
        let Confirmed { refused, access } = confirmed;
        let cause = if refused.direction == Direction::Version { Cause::VersionLost } else { Cause::Kind(refused.kind) };
        match access {
            Some(access) if access > Access::Open => {
                let finding = Finding { cause, kind: refused.kind, access, direction: refused.direction, stated: refused.stated };
                Step { state, did: Did::Propose(finding), again }
            }
            Some(_) | None => match refused.direction {
                Direction::Version => {
                    let access = Access::Open;
                    let finding = Finding { cause, kind: refused.kind, access, direction: refused.direction, stated: refused.stated };
                    Step { state: KeyState::Impaired { finding }, did: Did::Impaired(finding), again: Again::Grid }
                }
                Direction::Wrap | Direction::Bytes | Direction::Unwrap => {
                    let did = if held.is_none() { Did::HeldByPolicy(refused) } else { Did::Nothing };
                    Step { state: hold(state, HeldBy::Policy), did, again }
                }
            },
        }
    }

    /// A suspicion that neither confirms nor ends is told once.
    fn flapping(&self, state: KeyState, again: Again) -> Step {
        if let KeyState::Suspect { refused, looks, held, told: false } = &state {
            let since = looks.first_refused().map(|first| self.started.mono.since(first.mono));
            if since.is_some_and(|since| since >= self.policy.flapping.after) {
                let (refused, looks, held) = (*refused, looks.clone(), *held);
                return Step { state: KeyState::Suspect { refused, looks, held, told: true }, did: Did::Flapping(refused), again };
            }
        }
        Step { state, did: Did::Nothing, again }
    }

    /// Not before the rule's spacing allows the look to count, not sooner than the suspect interval.
    fn next_look(&self, looks: &Looks) -> Again {
        let spacing = looks.spacing(self.policy);
        let since = looks.newest_refused_at().map_or(spacing, |last| self.started.mono.since(last));
        Again::In(spacing.minus(since).max(self.policy.suspect_interval))
    }

    fn revoked(&self, finding: Finding, lock: Option<Sequence>, mut looks: Box<Looks>) -> Step {
        let backed_off = match finding.direction {
            Direction::Unwrap => Again::In(self.policy.revoked_interval),
            Direction::Version | Direction::Wrap | Direction::Bytes => {
                Again::In(self.policy.probe_interval.min(self.policy.revoked_interval))
            }
        };
        match self.look {
            Counted::Good { complete: true, .. } => {
                let at: Stamp = self.started.into();
                let rounds = Rounds { good: 1, first: at, newest: at };
                self.enough(Step {
                    state: KeyState::Recovering { finding, lock, rounds, held: None },
                    did: Did::Recovering,
                    again: self.next_round(),
                })
            }
            Counted::Good { complete: false, .. } => {
                Step { state: KeyState::Revoked { finding, lock, looks }, did: Did::Nothing, again: self.soon() }
            }
            Counted::Nothing => Step { state: KeyState::Revoked { finding, lock, looks }, did: Did::Nothing, again: backed_off },
            Counted::Refused(refused) => {
                looks.refused(refused, self.started, self.policy);
                let confirmed =
                    looks.confirmed(self.policy, self.vouched_elsewhere).and_then(|c| c.access.map(|access| (c.refused, access)));
                if let Some((refused, access)) = confirmed
                    && access > finding.access
                {
                    let worse = Finding {
                        cause: Cause::Kind(refused.kind),
                        kind: refused.kind,
                        access,
                        direction: refused.direction,
                        stated: refused.stated,
                    };
                    return Step { state: KeyState::Revoked { finding, lock, looks }, did: Did::Propose(worse), again: backed_off };
                }
                if refused.direction > finding.direction {
                    let again = self.next_look(&looks);
                    return Step { state: KeyState::Revoked { finding, lock, looks }, did: Did::Nothing, again };
                }
                let says_more = refused.direction == finding.direction && refused.kind != finding.kind && refused.stated == Stated::Both;
                if says_more {
                    let finding = Finding { cause: Cause::Kind(refused.kind), kind: refused.kind, stated: refused.stated, ..finding };
                    return Step { state: KeyState::Revoked { finding, lock, looks }, did: Did::Changed(finding), again: backed_off };
                }
                Step { state: KeyState::Revoked { finding, lock, looks }, did: Did::Nothing, again: backed_off }
            }
        }
    }

    fn next_round(&self) -> Again {
        let between = u64::from(self.policy.unlock_after.rounds.saturating_sub(1));
        let even = if between == 0 { Span::ZERO } else { Span(self.policy.unlock_after.over.0.div_ceil(between)) };
        Again::In(even.max(self.policy.suspect_interval))
    }

    fn recovering(&self, finding: Finding, lock: Option<Sequence>, mut rounds: Rounds, held: Option<HeldBy>) -> Step {
        match self.look {
            Counted::Refused(refused) => {
                let mut looks: Box<Looks> = Box::default();
                looks.refused(refused, self.started, self.policy);
                Step { state: KeyState::Revoked { finding, lock, looks }, did: Did::Relapsed, again: self.soon() }
            }
            Counted::Nothing | Counted::Good { complete: false, .. } => {
                // What waits for a person is not in a hurry.
                let again = if held.is_some() { Again::In(self.policy.probe_interval) } else { self.soon() };
                Step { state: KeyState::Recovering { finding, lock, rounds, held }, did: Did::Nothing, again }
            }
            Counted::Good { complete: true, .. } => {
                let Again::In(spacing) = self.next_round() else {
                    return Step { state: KeyState::Recovering { finding, lock, rounds, held }, did: Did::Nothing, again: self.soon() };
                };
                if self.started.mono.since(rounds.newest.mono) >= spacing {
                    rounds.good = rounds.good.saturating_add(1);
                    rounds.newest = self.started.into();
                }
                self.enough(Step {
                    state: KeyState::Recovering { finding, lock, rounds, held },
                    did: Did::Nothing,
                    again: self.next_round(),
                })
            }
        }
    }

    fn enough(&self, step: Step) -> Step {
        let KeyState::Recovering { rounds, held, .. } = &step.state else { return step };
        let enough = rounds.good >= self.policy.unlock_after.rounds.max(1)
            && rounds.newest.mono.since(rounds.first.mono) >= self.policy.unlock_after.over;
        if !enough {
            return step;
        }
        match self.policy.unlock {
            Unlock::Automatic => Step { did: Did::ProposeUnlock, ..step },
            Unlock::Manual if held.is_some() => Step { again: Again::In(self.policy.probe_interval), ..step },
            Unlock::Manual => {
                Step { state: hold(step.state, HeldBy::Approval), did: Did::AwaitsApproval, again: Again::In(self.policy.probe_interval) }
            }
        }
    }
}

#[cfg(test)]
mod tests;
