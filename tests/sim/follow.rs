//! One who follows the stream from the start: what it was told must be what is shown, after every
//! turn, and numbers must never go back.

use std::collections::BTreeMap;

use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::snapshot::Change;
use cmek_watchdog::watch::Effects;
use cmek_watchdog::words::{Access, Cause, Code, Sequence};

type Row = (Sequence, Access, Option<Code>, Option<Cause>);

#[derive(Default)]
pub struct Follower {
    shown: BTreeMap<WorkspaceId, Row>,
    told: BTreeMap<WorkspaceId, Row>,
    /// Told without a number, to come again.
    unnumbered: BTreeMap<WorkspaceId, Sequence>,
    head: u64,
}

impl Follower {
    /// A new life: the list is read again.
    pub fn reload(&mut self, out: &Effects) {
        *self = Self::default();
        self.show(out);
        self.told = self.shown.clone();
    }

    fn show(&mut self, out: &Effects) {
        for change in &out.publish {
            if let Change::Workspace(view) = change {
                self.shown.insert(view.workspace.clone(), (view.sequence, view.access, view.code, view.cause));
                if !view.durable {
                    self.unnumbered.insert(view.workspace.clone(), view.sequence);
                }
            }
        }
    }

    /// What is wrong after this turn.
    pub fn turn(&mut self, out: &Effects) -> Option<String> {
        self.show(out);
        let mut wrong = None;
        for event in &out.events {
            let data = &event.body.data;
            if let Some(number) = event.number {
                if number < self.head {
                    wrong = Some(format!("event {number} came after {}", self.head));
                }
                self.head = number;
            }
            let Some(access) = data.access.filter(|_| event.body.event.as_str().starts_with("workspace.")) else { continue };
            for workspace in &data.workspaces {
                if event.number.is_some() {
                    self.unnumbered.remove(workspace);
                }
                let row = (data.sequence, access, data.code, data.cause);
                let before = self.told.insert(workspace.clone(), row);
                if before.is_some_and(|before| before.0 > row.0) {
                    wrong = Some(format!("{workspace} was told {before:?} before {row:?}"));
                }
            }
        }
        if self.told != self.shown {
            let differs = self.shown.iter().find(|(id, row)| self.told.get(*id) != Some(row));
            wrong = Some(format!("shown {differs:?}, told {:?}", differs.map(|(id, _)| self.told.get(id))));
        }
        wrong
    }
}
