//! inside
//! What those who follow the stream are told: every change of a workspace as it is shown, and every
//! notice about a key once it is on disk. It must never tell of a workspace anything else than the
//! gate shows, and never hold a lock back for the journal's number.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::journal::{Commit, Committed};
use crate::key::WorkspaceId;
use crate::notify::Notice;
use crate::notify::body::{Body, Data, Pushed, Topic, event_of, message};
use crate::snapshot::WorkspaceView;
use crate::time::Now;
use crate::watch::{Effects, Watch};
use crate::words::{Access, Cause, Code, Sequence};

/// Workspaces of one event at most: a frame stays small however many share a key.
const MOST: usize = 500;

/// What was told of a workspace last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    shown: (Sequence, Access, Option<Code>, Option<Cause>),
    previous: Option<Access>,
    /// False while the lock was told before the journal had it.
    durable: bool,
}

impl Watch {
    /// A notice of a key is pushed with the number of its record; one of a workspace lends its
    /// words to the change that is shown.
    pub(super) fn push_later(&mut self, notice: &Arc<Notice>) {
        match Topic::of(notice.event) {
            Some(Topic::KeyChanged | Topic::Rotation) => {
                let record = self.ledger.open.commit.records.len().saturating_sub(1);
                self.ledger.open.told.push((record, Arc::clone(notice)));
            }
            Some(Topic::AccessChanged) => {
                for id in &notice.workspaces {
                    if let Some(ws) = self.workspaces.get_mut(id) {
                        ws.notice = Some(Arc::clone(notice));
                    }
                }
            }
            None => {}
        }
    }

    /// Part of showing a workspace: whoever follows hears of it in the same turn. A lock shown before
    /// it is on disk is told again, under the same sequence, when it has a journal number.
    pub(super) fn push_access(&mut self, now: Now, view: &WorkspaceView, out: &mut Effects) {
        let Some(ws) = self.workspaces.get_mut(&view.workspace) else { return };
        let shown = (view.sequence, view.access, view.code, view.cause);
        let previous = match &ws.told {
            Some(told) if told.shown == shown && (told.durable || !view.durable) => return,
            Some(told) if told.shown == shown => told.previous,
            Some(told) => Some(told.shown.1),
            None => None,
        };
        ws.told = Some(Told { shown, previous, durable: view.durable });
        let notice = ws.notice.clone().filter(|notice| notice.access == Some(view.access));
        let notice = notice.as_deref();
        let key = view.key.clone().or_else(|| notice.and_then(|n| n.key.clone()));
        let provider = key.as_ref().and_then(|id| self.config.keys.get(id)).map(|key| key.provider.clone());
        let said = notice.map(message).or_else(|| view.message.clone());
        let data = Data {
            sequence: view.sequence,
            provider: provider.or_else(|| notice.and_then(|n| n.provider.clone())),
            key,
            workspaces: vec![view.workspace.clone()],
            access: Some(view.access),
            previous_access: previous,
            cause: view.cause,
            code: view.code,
            message: said.unwrap_or_else(|| plain(view.access).to_owned()),
            version: notice.and_then(|n| n.version.clone()),
            actor: notice.and_then(|n| n.actor.clone()),
            since: Some(view.since),
            notices: Vec::new(),
        };
        join(out, Body { event: event_of(view.access), timestamp: now.wall, data });
    }
}

const fn plain(access: Access) -> &'static str {
    match access {
        Access::Open => "The workspace is open.",
        Access::ReadOnly => "The workspace is read-only.",
        Access::Locked => "The workspace is locked.",
    }
}

/// Workspaces that change alike in one turn are one event.
fn join(out: &mut Effects, body: Body) {
    if let Some(Pushed { number: None, body: last }) = out.events.last_mut()
        && last.data.workspaces.len() < MOST
    {
        let same = Body { event: last.event, timestamp: last.timestamp, data: Data { workspaces: Vec::new(), ..last.data.clone() } };
        let new = Body { event: body.event, timestamp: body.timestamp, data: Data { workspaces: Vec::new(), ..body.data.clone() } };
        if same == new {
            last.data.workspaces.extend(body.data.workspaces);
            return;
        }
    }
    out.events.push(Pushed { number: None, body });
}

/// The commit is on disk: what was pushed with it gets its journal numbers, and comes in their order.
pub fn number(before: usize, told: &[(usize, Arc<Notice>)], commit: &Commit, committed: &Committed, out: &mut Effects) {
    let mut numbers: BTreeMap<&WorkspaceId, u64> = BTreeMap::new();
    for (record, number) in commit.records.iter().zip(&committed.sequences) {
        if let Some(workspace) = &record.workspace {
            numbers.insert(workspace, *number);
        }
    }
    let mut events = out.events.split_off(before);
    for event in &mut events {
        event.number = event.body.data.workspaces.iter().filter_map(|id| numbers.get(id)).max().copied();
    }
    events.extend(told.iter().map(|(record, notice)| Pushed { number: committed.sequences.get(*record).copied(), body: Body::of(notice) }));
    // What has no record of its own goes first: nothing that has a number may be seen before it.
    events.sort_by_key(|event| event.number);
    out.events.append(&mut events);
    out.head = out.head.max(committed.sequences.last().copied());
}
