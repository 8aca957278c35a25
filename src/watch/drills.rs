//! inside
//! Drills: a rehearsed revocation laid over what is. It is no order and counts as none: a real lock
//! during a drill locks, is told, stays, and ends the drill; the drill's end touches no lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::route;
use crate::key::{ReceiverId, WorkspaceId};
use crate::notify::{Delivery, Notice, NoticeId};
use crate::operate::{Refusal, RefusalSlug};
use crate::schedule::KeyIx;
use crate::snapshot::DrillView;
use crate::time::{Mono, Now, Span, Wall};
use crate::watch::operators::{reason, refuse};
use crate::watch::restore::{from_text, to_text};
use crate::watch::{Effects, Watch};
use crate::words::{Access, Cause, EventType, Severity};

/// The longest drill.
pub const LONGEST: Span = Span::from_hours(1);
/// Drills under way at most, and ended ones that are kept to be read.
const RUNNING_MAX: usize = 16;
const ENDED_MAX: usize = 20;

#[derive(Clone, Debug)]
pub struct Drill {
    pub view: DrillView,
    notice: Option<NoticeId>,
    set: BTreeSet<WorkspaceId>,
    ends: Mono,
    /// The disk has its beginning, and not its end.
    acting: bool,
    ending: bool,
    overtaken: bool,
}

/// What is stored.
#[derive(Serialize, Deserialize)]
struct Row {
    view: DrillView,
    notice: Option<NoticeId>,
}

impl Watch {
    /// The drill that is laid over a workspace now.
    pub(super) fn drill_of(&self, id: &WorkspaceId) -> Option<&DrillView> {
        self.drills.values().find(|drill| drill.acting && drill.set.contains(id)).map(|drill| &drill.view)
    }

    pub(super) fn drill_views(&self) -> Vec<DrillView> {
        self.drills.values().map(|drill| drill.view.clone()).collect()
    }

    pub(super) fn drill_view(&self, id: &str) -> Option<DrillView> {
        self.drills.get(id).map(|drill| drill.view.clone())
    }

    pub(super) fn next_drill_end(&self) -> Option<Mono> {
        self.drills.values().filter(|drill| drill.acting && !drill.ending).map(|drill| drill.ends).min()
    }

    /// Key and workspaces that a name stands for.
    fn drill_target(&self, target: &str) -> Result<(Option<KeyIx>, Vec<WorkspaceId>), Refusal> {
        let key = self.by_id.get(target).copied();
        match (key, self.workspaces.get_key_value(target)) {
            (Some(_), Some(_)) => Err(refuse(
                RefusalSlug::Invalid,
                format!("target: `{target}` is a key and a workspace; drill another workspace of that key"),
            )),
            (Some(ix), None) => Ok((Some(ix), self.cells.get(&ix).map(|cell| cell.key.workspaces.clone()).unwrap_or_default())),
            (None, Some((id, _))) => Ok((None, vec![id.clone()])),
            (None, None) => Err(refuse(RefusalSlug::UnknownWorkspace, format!("there is no workspace and no key `{target}`"))),
        }
    }

    pub(super) fn start_drill(
        &mut self,
        now: Now,
        target: &str,
        length: Span,
        cut: bool,
        why: &str,
        actor: &str,
    ) -> Result<String, Refusal> {
        let why = reason(why)?;
        if length == Span::ZERO || length > LONGEST {
            return Err(refuse(RefusalSlug::Invalid, format!("for: a drill lasts more than zero and at most {LONGEST}")));
        }
        if self.drills.values().filter(|drill| drill.view.ended_at.is_none()).count() >= RUNNING_MAX {
            return Err(refuse(RefusalSlug::NotOpen, format!("{RUNNING_MAX} drills are under way; end one first")));
        }
        let (ix, workspaces) = self.drill_target(target)?;
        if workspaces.is_empty() {
            return Err(refuse(RefusalSlug::Invalid, format!("target: key `{target}` has no workspaces")));
        }
        for id in &workspaces {
            self.free_for_drill(id)?;
        }
        let view = DrillView {
            id: format!("drl_{:x}_{:x}", now.wall.0, self.notice_count),
            key: ix.and_then(|ix| self.key_id(ix)),
            workspaces: workspaces.clone(),
            cut,
            reason: why.clone(),
            actor: actor.to_owned(),
            ordered_at: now.wall,
            until: now.wall.plus(length),
            stored_at: None,
            applied_at: None,
            notices: BTreeMap::new(),
            ended_at: None,
            ended_by: None,
        };
        let id = view.id.clone();
        let (notice, receivers) = self.tell_drill(now, EventType::DrillStarted, &view, &begun(&view));
        let view = DrillView { notices: receivers.into_iter().map(|receiver| (receiver, None)).collect(), ..view };
        let drill = Drill {
            set: view.workspaces.iter().cloned().collect(),
            view,
            notice: Some(notice),
            ends: now.mono.plus(length),
            acting: false,
            ending: false,
            overtaken: false,
        };
        self.drills.insert(id.clone(), drill);
        self.move_drill(now, &id);
        Ok(id)
    }

    fn free_for_drill(&self, id: &WorkspaceId) -> Result<(), Refusal> {
        let Some(ws) = self.workspaces.get(id) else { return Ok(()) };
        let settled = ws.orders.is_empty() && ws.lifting.is_empty() && ws.lever_floor.is_none() && !self.ledger.withholds_raise(id);
        if !settled {
            return Err(refuse(RefusalSlug::NotOpen, format!("workspace `{id}` is locked for real, or its unlock is under way")));
        }
        match self.drills.values().find(|drill| (drill.acting || drill.view.ended_at.is_none()) && drill.set.contains(id)) {
            Some(other) => Err(refuse(RefusalSlug::NotOpen, format!("workspace `{id}` is in drill `{}`", other.view.id))),
            None => Ok(()),
        }
    }

    /// Puts a beginning or an end on its way to the disk; it acts when the disk has it.
    fn move_drill(&mut self, now: Now, id: &str) {
        let Some(drill) = self.drills.get(id) else { return };
        if drill.view.cut {
            for workspace in drill.view.workspaces.clone() {
                self.raise_number(now, &workspace);
            }
        }
        self.store_drill(id);
        self.ledger.open.drills.push(id.to_owned());
    }

    fn store_drill(&mut self, id: &str) {
        let text = self.drills.get(id).map(|drill| to_text(&Row { view: drill.view.clone(), notice: drill.notice.clone() }));
        self.ledger.open.commit.meta.insert(format!("drill:{id}"), text);
        self.daemon_dirty = true;
    }

    /// The disk has a drill's beginning or its end.
    pub(super) fn drill_stored(&mut self, now: Now, id: &str, out: &mut Effects) {
        let Some(drill) = self.drills.get_mut(id) else { return };
        let acts = !drill.ending;
        if drill.acting == acts {
            return;
        }
        let (cut, workspaces) = (drill.view.cut, drill.view.workspaces.clone());
        // Somebody saw the number that was kept for this change: another one, and again to the disk.
        let shown =
            |ws: &WorkspaceId| self.workspaces.get(ws).is_some_and(|ws| ws.last_shown.is_some_and(|(number, _)| number >= ws.sequence));
        let taken: Vec<WorkspaceId> = workspaces.iter().filter(|ws| cut && shown(ws)).cloned().collect();
        if !taken.is_empty() {
            taken.iter().for_each(|ws| self.raise_number(now, ws));
            self.ledger.open.drills.push(id.to_owned());
            return;
        }
        if let Some(drill) = self.drills.get_mut(id) {
            drill.acting = acts;
            if acts {
                drill.view.stored_at = Some(now.wall);
                drill.view.applied_at = Some(now.wall);
            }
        }
        if acts {
            self.store_drill(id);
        }
        self.daemon_dirty = true;
        for workspace in workspaces {
            if let Some(ws) = self.workspaces.get_mut(&workspace).filter(|ws| cut && ws.orders.is_empty()) {
                ws.since = now.wall;
            }
            self.show_workspace(now, &workspace, out);
        }
    }

    /// A real order came to this workspace.
    pub(super) fn overtake_drill(&mut self, id: &WorkspaceId) {
        for drill in self.drills.values_mut().filter(|drill| !drill.ending && drill.set.contains(id)) {
            drill.overtaken = true;
        }
    }

    /// Part of every turn: ends what is over.
    pub(super) fn end_drills(&mut self, now: Now) {
        let over: Vec<(String, &'static str)> = self
            .drills
            .iter()
            .filter(|(_, drill)| drill.acting && !drill.ending && (drill.overtaken || drill.ends <= now.mono))
            .map(|(id, drill)| (id.clone(), if drill.overtaken { "overtaken" } else { "time" }))
            .collect();
        for (id, by) in over {
            self.end_drill(now, &id, by, None);
        }
    }

    pub(super) fn end_drill_by_hand(&mut self, now: Now, id: &str, why: &str, actor: &str) -> Result<(), Refusal> {
        let why = reason(why)?;
        let drill = self.drills.get(id).ok_or_else(|| refuse(RefusalSlug::UnknownDrill, format!("unknown drill `{id}`")))?;
        if !drill.ending {
            let detail = [("action", "drill end".to_owned()), ("drill", id.to_owned()), ("reason", why)];
            self.record_by(now, EventType::OperatorAction, (None, None), actor, detail);
            self.end_drill(now, id, "operator", Some(actor));
        }
        Ok(())
    }

    fn end_drill(&mut self, now: Now, id: &str, by: &str, actor: Option<&str>) {
        let Some(drill) = self.drills.get_mut(id) else { return };
        drill.ending = true;
        (drill.view.ended_at, drill.view.ended_by) = (Some(now.wall), Some(by.to_owned()));
        let mut view = drill.view.clone();
        let text = report(&view);
        if let Some(actor) = actor {
            actor.clone_into(&mut view.actor);
        }
        self.tell_drill(now, EventType::DrillEnded, &view, &text);
        self.move_drill(now, id);
        let ended: Vec<String> = self.drills.iter().filter(|(_, drill)| drill.ending && !drill.acting).map(|(id, _)| id.clone()).collect();
        for old in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            self.drills.remove(old);
            self.ledger.open.commit.meta.insert(format!("drill:{old}"), None);
        }
    }

    /// A receiver took the notice of a drill.
    pub(super) fn drill_notice_sent(&mut self, now: Now, receiver: &ReceiverId, id: &NoticeId, delivery: &Delivery) {
        if *delivery != Delivery::Delivered {
            return;
        }
        let of = |drill: &&mut Drill| drill.notice.as_ref() == Some(id);
        let Some(drill) = self.drills.values_mut().find(of) else { return };
        drill.view.notices.insert(receiver.clone(), Some(now.wall));
        let (id, ending) = (drill.view.id.clone(), drill.ending);
        if !ending {
            self.store_drill(&id);
        }
        self.daemon_dirty = true;
    }

    /// A row of the store; `true` if it was a drill's.
    pub(super) fn restore_drill(&mut self, now: Now, name: &str, text: &str) -> bool {
        let Some(id) = name.strip_prefix("drill:") else { return false };
        let Some(Row { view, notice }) = from_text::<Row>(text) else { return true };
        let left = view.until.since(now.wall).min(view.until.since(view.ordered_at)).min(LONGEST);
        let ended = view.ended_at.is_some();
        let drill = Drill {
            set: view.workspaces.iter().cloned().collect(),
            view,
            notice,
            ends: now.mono.plus(left),
            acting: !ended,
            ending: ended,
            overtaken: false,
        };
        self.drills.insert(id.to_owned(), drill);
        true
    }

    /// What was locked for real while the process was away ends the drill.
    pub(super) fn overtake_drills_at_start(&mut self) {
        let locked: Vec<WorkspaceId> = self.workspaces.values().filter(|ws| !ws.orders.is_empty()).map(|ws| ws.id.clone()).collect();
        if !self.drills.is_empty() {
            locked.iter().for_each(|id| self.overtake_drill(id));
        }
    }

    fn tell_drill(&mut self, now: Now, event: EventType, view: &DrillView, text: &str) -> (NoticeId, Vec<ReceiverId>) {
        for workspace in &view.workspaces {
            let detail = [
                ("drill", view.id.clone()),
                ("cut", view.cut.to_string()),
                ("reason", view.reason.clone()),
                ("until", view.until.to_string()),
                ("note", text.to_owned()),
            ];
            self.record_by(now, event, (view.key.clone(), Some(workspace.clone())), &view.actor, detail);
        }
        let ix = view.key.as_ref().and_then(|key| self.by_id.get(key)).copied();
        // As loud as the real thing at its beginning, so that it takes the same way.
        let severity = if event == EventType::DrillStarted { Severity::Critical } else { Severity::Info };
        let base = self.notice(now, event, severity, ix);
        let lowered = view.cut && event == EventType::DrillStarted;
        let notice = Notice {
            workspaces: view.workspaces.clone(),
            access: view.cut.then_some(if lowered { Access::Locked } else { Access::Open }),
            previous_access: view.cut.then_some(if lowered { Access::Open } else { Access::Locked }),
            cause: Some(Cause::Drill),
            message: text.to_owned(),
            actor: Some(view.actor.clone()),
            since: Some(view.ordered_at),
            evidence: Vec::new(),
            recoverable_until: None,
            next_step: Some("This is a drill: handle it as you would the real thing. No key was revoked.".to_owned()),
            drill: true,
            ..base
        };
        let receivers = route::receivers_for(&notice, &self.config.routes);
        let id = notice.id.clone();
        let rows = self.outbox.make_rows(Arc::new(notice), &receivers, now);
        self.write_rows(rows);
        (id, receivers)
    }
}

fn subject_of(view: &DrillView) -> String {
    match &view.key {
        Some(key) => format!("key {key} ({} workspaces)", view.workspaces.len()),
        None => view.workspaces.iter().map(|ws| format!("workspace {ws}")).collect::<Vec<_>>().join(", "),
    }
}

fn begun(view: &DrillView) -> String {
    let what = if view.cut { "Access is really cut until" } else { "No access is cut. It ends at" };
    format!("DRILL: a rehearsed revocation of {} has begun: {}. {what} {}.", subject_of(view), view.reason, view.until)
}

/// When each stage happened, for people.
fn report(view: &DrillView) -> String {
    let after = |at: Option<Wall>| at.map_or_else(|| "never".to_owned(), |at| format!("after {}", at.since(view.ordered_at)));
    let told: Vec<String> = view.notices.iter().map(|(receiver, at)| format!("{receiver} {}", after(*at))).collect();
    let told = if told.is_empty() { "nobody (no route leads to a receiver)".to_owned() } else { told.join(", ") };
    let by = match view.ended_by.as_deref() {
        Some("overtaken") => "ended because a real lock came",
        Some("operator") => "ended by an operator",
        Some(_) | None => "over",
    };
    let gate = if view.cut { format!("gate {}", after(view.applied_at)) } else { format!("gate {} (nothing cut)", after(view.applied_at)) };
    format!("DRILL: the rehearsed revocation of {} is {by}. Journal {}, {gate}, notices: {told}.", subject_of(view), after(view.stored_at))
}
