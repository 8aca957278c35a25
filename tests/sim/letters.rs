//! Notices as promised: every stored change of a workspace reaches every receiver at least once, in
//! order per workspace, none invented, and a crash repeats at most one a receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cmek_watchdog::journal::Commit;
use cmek_watchdog::key::{ReceiverId, WorkspaceId};
use cmek_watchdog::notify::{Notice, NoticeId, OutboxState};
use cmek_watchdog::words::EventType;

use super::check::Checker;
use super::disk::Disk;
use super::plan::{Plan, RECEIVERS};

#[derive(Default)]
pub struct Letters {
    /// Stored changes of workspaces in their order, with the notice that tells of each.
    expected: Vec<(WorkspaceId, EventType, Option<NoticeId>)>,
    known: BTreeSet<NoticeId>,
    delivered: BTreeMap<ReceiverId, Vec<NoticeId>>,
    arrived: BTreeMap<ReceiverId, BTreeSet<NoticeId>>,
    /// Messages that brought again what had arrived, by receiver.
    repeats: BTreeMap<ReceiverId, usize>,
    crashes: usize,
}

fn is_change(event: EventType) -> bool {
    matches!(event, EventType::WorkspaceLocked | EventType::WorkspaceReadOnly | EventType::WorkspaceOpened)
}

impl Letters {
    pub fn stored(&mut self, commit: &Commit, _plan: &Plan) {
        self.known.extend(commit.outbox.iter().map(|row| row.id.clone()));
        let mut used: BTreeSet<(NoticeId, WorkspaceId)> = BTreeSet::new();
        for record in commit.records.iter().filter(|record| is_change(record.event)) {
            let Some(workspace) = &record.workspace else { continue };
            let tells = commit.outbox.iter().filter(|row| row.notice.event == record.event && row.notice.workspaces.contains(workspace));
            let first = tells.map(|row| row.id.clone()).find(|id| !used.contains(&(id.clone(), workspace.clone())));
            used.extend(first.iter().map(|id| (id.clone(), workspace.clone())));
            self.expected.push((workspace.clone(), record.event, first));
        }
    }

    /// A message for many is the arrival of each of its members, in their order; that it came twice
    /// counts once.
    pub fn delivered(&mut self, receiver: &ReceiverId, notice: &Arc<Notice>) {
        let members = notice.storm.as_ref().map(|storm| storm.members.as_slice()).unwrap_or_default();
        let got = self.delivered.entry(receiver.clone()).or_default();
        let ids: Vec<NoticeId> =
            if members.is_empty() { vec![notice.id.clone()] } else { members.iter().map(|member| member.id.clone()).collect() };
        let arrived = self.arrived.entry(receiver.clone()).or_default();
        let new = ids.iter().filter(|id| arrived.insert((*id).clone())).count();
        if new < ids.len() {
            *self.repeats.entry(receiver.clone()).or_default() += 1;
        }
        got.extend(ids);
    }

    pub fn crashed(&mut self) {
        self.crashes += 1;
    }

    pub fn settled(&mut self, disk: &Disk, check: &mut Checker) {
        for (workspace, event, id) in &self.expected {
            if id.is_none() {
                check.tally.lost_notices += 1;
                check.wrong(format!("no notice tells of {event} of {workspace}"));
            }
        }
        for receiver in RECEIVERS {
            let Ok(receiver) = ReceiverId::new(receiver) else { continue };
            let got = self.delivered.get(&receiver).cloned().unwrap_or_default();
            self.all_arrived(disk, check, &receiver, &got);
            self.in_order(check, &receiver, &got);
            let distinct: BTreeSet<&NoticeId> = got.iter().collect();
            let repeats = self.repeats.get(&receiver).copied().unwrap_or_default();
            if repeats > self.crashes {
                check.wrong(format!("{receiver}: {repeats} repeats after {} crashes", self.crashes));
            }
            check.tally.notices += distinct.len() as u64;
            for id in distinct {
                if !self.known.contains(id) {
                    check.wrong(format!("{receiver} got a notice {} that was never stored", id.0));
                }
            }
        }
    }

    fn all_arrived(&self, disk: &Disk, check: &mut Checker, receiver: &ReceiverId, got: &[NoticeId]) {
        let arrived: BTreeSet<&NoticeId> = got.iter().collect();
        for (workspace, event, id) in &self.expected {
            let Some(id) = id else { continue };
            let state = disk.outbox.get(&(receiver.clone(), id.clone())).map(|row| row.state);
            if !arrived.contains(id) && state != Some(OutboxState::Folded) {
                check.tally.lost_notices += 1;
                check.wrong(format!("{receiver} was never told of {event} of {workspace} ({}, {state:?})", id.0));
            }
        }
    }

    /// First arrivals follow the order of the changes.
    fn in_order(&self, check: &mut Checker, receiver: &ReceiverId, got: &[NoticeId]) {
        let mut first: BTreeMap<&NoticeId, usize> = BTreeMap::new();
        for (at, id) in got.iter().enumerate() {
            first.entry(id).or_insert(at);
        }
        let mut last: BTreeMap<&WorkspaceId, usize> = BTreeMap::new();
        for (workspace, event, id) in &self.expected {
            let Some(at) = id.as_ref().and_then(|id| first.get(id)).copied() else { continue };
            if last.insert(workspace, at).is_some_and(|before| before > at) {
                check.tally.disordered += 1;
                check.wrong(format!("{receiver} heard of {event} of {workspace} out of order"));
            }
        }
    }
}
