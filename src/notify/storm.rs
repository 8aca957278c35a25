//! inside
//! Many notices at once as one message: what it says, in which order, and which matters stay open
//! under it. It must never hide a notice: every member is in the list, the newest word of each matter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::key::WorkspaceId;
use crate::notify::about::{About, matters};
use crate::notify::{Notice, NoticeId};
use crate::time::Span;
use crate::words::{EventType, Sequence, Severity};

/// Most notices of one message; the rest makes the next one.
pub const MOST_MEMBERS: usize = 10_000;

/// When single notices become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// More notices than this for one receiver within `within` are told as one.
    pub above: usize,
    pub within: Span,
    /// While the storm lasts, one message so often.
    pub every: Span,
    /// Most messages an hour that are told one by one.
    pub per_hour: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { above: 10, within: Span::from_secs(30), every: Span::from_mins(2), per_hour: 60 }
    }
}

/// What a message carries beside its own words when it stands for many, or ends such a one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Storm {
    /// The same for all messages of one storm: receivers that keep incidents have one for it.
    pub id: Arc<str>,
    /// In the order in which they happened. Empty: an ordinary notice that ends the storm.
    pub members: Vec<Arc<Notice>>,
    /// Matters that were told of in this storm and have not ended.
    pub open: usize,
    /// Matters that had a message of their own and end in this one.
    pub ends: Vec<String>,
}

/// The members as people read them: the newest of each matter, the most severe first.
#[must_use]
pub fn listed(members: &[Arc<Notice>]) -> Vec<&Arc<Notice>> {
    let mut newest: BTreeMap<About, usize> = BTreeMap::new();
    for (at, notice) in members.iter().enumerate() {
        if let Some(about) = About::of(notice) {
            newest.insert(about, at);
        }
    }
    let kept: BTreeSet<usize> = newest.values().copied().collect();
    let mut list: Vec<(usize, &Arc<Notice>)> =
        members.iter().enumerate().filter(|(at, notice)| kept.contains(at) || About::of(notice).is_none()).collect();
    list.sort_by_key(|(at, notice)| (std::cmp::Reverse(notice.severity), rank(notice.event), *at));
    list.into_iter().map(|(_, notice)| notice).collect()
}

/// Workspaces before keys, keys before the rest: what people cannot use comes first.
fn rank(event: EventType) -> u8 {
    match event.as_str().split_once('.').map_or("", |(family, _)| family) {
        "workspace" => 0,
        "key" => 1,
        _ => 2,
    }
}

/// The id of a message follows from its members: a crash that repeats it repeats its id.
#[must_use]
pub fn id_of(members: &[Arc<Notice>]) -> NoticeId {
    let hash = members
        .iter()
        .flat_map(|notice| notice.id.0.bytes().chain(std::iter::once(0)))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let first = members.first().map_or("none", |notice| &notice.id.0);
    NoticeId(format!("grp_{first}_{}_{hash:016x}", members.len()).into())
}

/// One message for all members. `folded` earlier ones are spoken for by them.
#[must_use]
pub fn grouped(members: &[Arc<Notice>], storm: Storm) -> Notice {
    let list = listed(members);
    let severity = list.iter().map(|notice| notice.severity).max().unwrap_or(Severity::Info);
    let mut workspaces: Vec<WorkspaceId> = Vec::new();
    let mut seen: BTreeSet<&WorkspaceId> = BTreeSet::new();
    for workspace in list.iter().flat_map(|notice| &notice.workspaces) {
        if seen.insert(workspace) {
            workspaces.push(workspace.clone());
        }
    }
    let one = |of: fn(&Notice) -> Option<String>| {
        let found: BTreeSet<Option<String>> = members.iter().map(|notice| of(notice)).collect();
        if found.len() == 1 { found.into_iter().next().flatten() } else { None }
    };
    let provider = one(|n| n.provider.as_ref().map(ToString::to_string));
    Notice {
        id: id_of(members),
        event: EventType::NoticesGrouped,
        severity,
        timestamp: members.iter().map(|notice| notice.timestamp).max().unwrap_or_default(),
        sequence: members.iter().map(|notice| notice.sequence).max().unwrap_or(Sequence::default()),
        key: None,
        key_ref: None,
        provider: provider.and_then(|text| crate::key::ProviderId::new(&text).ok()),
        owner: one(|n| n.owner.clone()),
        workspaces,
        access: None,
        previous_access: None,
        cause: None,
        code: None,
        message: sentence(members, &list),
        version: None,
        actor: None,
        since: members.iter().map(|notice| notice.timestamp).min(),
        evidence: Vec::new(),
        locked_features: Vec::new(),
        readable_features: Vec::new(),
        next_step: Some(
            "Look at the most severe first. The present state of all is at GET /v1/workspaces?access=locked and in `cmek-watchdog status`; \
             each event is in the journal, GET /v1/activity."
                .to_owned(),
        ),
        terminal: list.iter().any(|notice| notice.terminal),
        recoverable_until: None,
        drill: members.iter().all(|notice| notice.drill),
        acknowledged_by: None,
        storm: Some(Arc::new(storm)),
    }
}

/// "5,000 notices at once: 4,980 workspace.locked, 20 key.suspect."
fn sentence(members: &[Arc<Notice>], list: &[&Arc<Notice>]) -> String {
    let mut counts: Vec<(EventType, usize)> = Vec::new();
    for notice in list {
        match counts.iter_mut().find(|(event, _)| *event == notice.event) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => counts.push((notice.event, 1)),
        }
    }
    let parts: Vec<String> =
        counts.iter().map(|(event, count)| format!("{} x {}", count, crate::notify::compose::happened(*event))).collect();
    format!("{} notices together, the most severe first: {}.", members.len(), parts.join(", "))
}

/// Whether this notice is told by itself even in a storm: it is no event of a key, and somebody waits
/// for its own words.
#[must_use]
pub const fn stands_alone(notice: &Notice) -> bool {
    notice.acknowledged_by.is_some() || matches!(notice.event, EventType::Test | EventType::Digest)
}

/// Matters of a notice that a later notice can end: only these are kept open in a storm.
#[must_use]
pub fn lasting(notice: &Notice) -> Vec<String> {
    use crate::notify::about::Topic;
    if notice.acknowledged_by.is_some() {
        return Vec::new();
    }
    match Topic::of(notice.event) {
        Topic::KeyState | Topic::Access | Topic::Brake | Topic::Drill | Topic::Lever | Topic::Override | Topic::Vault => matters(notice),
        Topic::WouldLock
        | Topic::Version
        | Topic::Expiry
        | Topic::Deletion
        | Topic::Credentials
        | Topic::Reach
        | Topic::Witness
        | Topic::Receiver
        | Topic::Store
        | Topic::Config
        | Topic::Missed
        | Topic::Single => Vec::new(),
    }
}
