//! inside
//! Everything the core keeps of one key, and the row it is stored as. Holds facts and counts; the
//! stages beside it decide.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::Key;
use crate::key::{KeyVersion, WorkspaceId};
use crate::kms::{KeyFacts, Wrapped};
use crate::lifecycle::KeyState;
use crate::lifecycle::looks::Stamp;
use crate::lockout::KeyName;
use crate::policy::Policy;
use crate::probe::{Evidence, LegResult};
use crate::schedule::lanes::LaneId;
use crate::schedule::phase_of;
use crate::time::{Mono, Now, Span, Wall};
use crate::verdict::Verdict;
use crate::watch::{Attempt, Ticket};
use crate::words::FailureKind;

/// Identities that were good on a key, newest last; older ones are forgotten.
const IDENTITIES_MAX: usize = 4;

/// One version of a key.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VersionCell {
    pub usable: Option<bool>,
    pub protects_data: bool,
    pub last_checked: Option<Stamp>,
    pub retired: bool,
    pub failure_kind: Option<FailureKind>,
    pub seen_at: Wall,
    #[serde(skip)]
    pub canary: Option<Wrapped>,
    /// When the stored canary was made.
    #[serde(skip)]
    pub canary_at: Option<Wall>,
}

/// The stored part of a key.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// Provider's name of the key, to tell a re-used id from the same key.
    pub reference: String,
    pub life: KeyState,
    pub since: Wall,
    pub identities: Vec<String>,
    pub current: Option<KeyVersion>,
    pub versions: BTreeMap<KeyVersion, VersionCell>,
    pub facts: Option<KeyFacts>,
    pub rotations: u64,
    /// When this key was first registered here.
    #[serde(default)]
    pub registered_at: Option<Wall>,
    pub rotated_at: Option<Stamp>,
    pub last_conclusive: Option<Stamp>,
    /// Last look at which the key worked: where latencies are counted from.
    #[serde(default)]
    pub last_good: Option<Stamp>,
    /// Observed time without a conclusive look.
    pub stale: Span,
    /// How many staleness marks were told, and when the last one was.
    pub stale_told: u8,
    pub stale_told_at: Option<Wall>,
    /// Countdown marks that were told, by name.
    pub told: BTreeMap<String, Wall>,
    /// A fault that describe states although the key works.
    pub warned: Option<FailureKind>,
    /// The brake's order was released to lock: the next refused look carries it out.
    #[serde(default)]
    pub released: bool,
    /// The brake's order was dropped: nothing is proposed until a good look.
    #[serde(default)]
    pub dropped: bool,
    /// The store was lost: locked until proven, whatever the policy says.
    #[serde(default)]
    pub locked_until_proven: bool,
    /// Workspaces that an operator released from the present lock while others still wait: only a new
    /// confirmation lowers them again.
    #[serde(default)]
    pub released_to: BTreeSet<WorkspaceId>,
    /// When it was last said that a confirmed finding is held by policy.
    #[serde(default)]
    pub told_held_at: Option<Wall>,
    #[serde(default)]
    pub substituted: Option<String>,
    /// The key behind an alias when it was first proven.
    #[serde(default)]
    pub pinned: Option<String>,
}

/// A probe under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InFlight {
    pub attempt: Attempt,
    pub deadline: Mono,
    pub started: Now,
}

#[derive(Debug)]
pub struct KeyCell {
    pub key: Arc<Key>,
    pub policy: Arc<Policy>,
    pub name: KeyName,
    pub account: Arc<str>,
    pub lane: LaneId,
    pub phase: u64,
    pub kept: Kept,
    pub dirty: bool,
    pub verdict: Option<Verdict>,
    pub last: Option<(Wall, Vec<LegResult>)>,
    pub identity: Option<Arc<str>>,
    pub in_flight: Option<InFlight>,
    /// A round that waits for the control key's answer, and the time that it has to vouch for.
    pub waiting: Option<(Mono, Box<Evidence>)>,
    /// When the schedule of its rotation was asked for.
    pub rotation_asked: Option<Mono>,
    /// End of the window in which evidence or a recorded miss is due.
    pub window: Mono,
    pub rounds: u64,
    pub last_look: Option<Mono>,
    pub unsure_since_start: u8,
    /// Callers of `validate`.
    pub callers: Vec<Ticket>,
    /// The next round is a full one.
    pub full: bool,
    /// An unlock is on its way to the disk.
    pub unlocking: bool,
    pub last_stored: Option<Mono>,
}

/// The lane of a key: its owner's account, in the region whose calls the provider counts.
pub fn lane_of(key: &Key) -> LaneId {
    LaneId { provider: key.provider.clone(), region: key.target.reference.region().into(), account: key.account.as_str().into() }
}

impl KeyCell {
    pub fn new(key: Arc<Key>, policy: Arc<Policy>, now: Now) -> Self {
        let name = (key.provider.clone(), Arc::clone(&key.target.reference.text));
        let kept =
            Kept { reference: key.target.reference.text.to_string(), since: now.wall, registered_at: Some(now.wall), ..Kept::default() };
        Self {
            phase: phase_of(key.id.as_str()),
            account: key.account.as_str().into(),
            lane: lane_of(&key),
            name,
            key,
            policy,
            kept,
            dirty: true,
            verdict: None,
            last: None,
            identity: None,
            in_flight: None,
            waiting: None,
            rotation_asked: None,
            window: now.mono,
            rounds: 0,
            last_look: None,
            unsure_since_start: 0,
            callers: Vec::new(),
            full: false,
            unlocking: false,
            last_stored: None,
        }
    }

    pub fn proven(&self) -> bool {
        !matches!(self.kept.life, KeyState::Unproven | KeyState::Retired)
    }

    pub fn knows(&self, identity: Option<&str>) -> bool {
        identity.is_some_and(|who| self.kept.identities.iter().any(|known| known == who))
    }

    /// Remembers an identity as good on this key.
    pub fn was_good(&mut self, identity: &str) {
        if self.kept.identities.last().is_none_or(|last| last != identity) {
            self.kept.identities.retain(|known| known != identity);
            self.kept.identities.push(identity.to_owned());
            let surplus = self.kept.identities.len().saturating_sub(IDENTITIES_MAX);
            self.kept.identities.drain(..surplus);
            self.dirty = true;
        }
    }

    /// Time between two rounds in the present state, for windows and deadlines.
    pub fn interval(&self) -> Span {
        match self.kept.life {
            KeyState::Revoked { .. } => self.policy.probe_interval.max(self.policy.revoked_interval),
            KeyState::Unproven
            | KeyState::Active
            | KeyState::Impaired { .. }
            | KeyState::Suspect { .. }
            | KeyState::Recovering { .. }
            | KeyState::Retired => self.policy.probe_interval,
        }
    }

    /// Distance of looks that are to confirm something.
    pub fn confirming(&self) -> Span {
        match &self.kept.life {
            KeyState::Suspect { looks, .. } | KeyState::Revoked { looks, .. } => looks.spacing(&self.policy),
            KeyState::Unproven | KeyState::Active | KeyState::Impaired { .. } | KeyState::Recovering { .. } | KeyState::Retired => {
                self.policy.suspect_interval
            }
        }
    }

    /// Older versions that an unlock needs: they protect data and were not retired.
    pub fn needed_older(&self) -> impl Iterator<Item = (&KeyVersion, &VersionCell)> {
        let current = self.kept.current.as_ref();
        self.kept.versions.iter().filter(move |(version, cell)| Some(*version) != current && cell.protects_data && !cell.retired)
    }

    /// Enabled versions that have no canary: what they protect is not watched yet.
    pub fn missing(&self) -> Vec<KeyVersion> {
        let listed = self.kept.facts.iter().flat_map(|facts| &facts.versions).filter(|fact| fact.enabled).map(|fact| &fact.version);
        let has = |version: &KeyVersion| self.kept.versions.get(version).is_some_and(|v| v.retired || v.canary.is_some());
        listed.filter(|version| self.kept.current.as_ref() != Some(*version) && !has(version)).cloned().collect()
    }

    /// The stored canary of the current version.
    pub fn current_canary(&self) -> Option<&Wrapped> {
        let version = self.kept.current.as_ref()?;
        self.kept.versions.get(version)?.canary.as_ref()
    }
}
