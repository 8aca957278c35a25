//! Levers as they truly are: slow, failing, cut off by crashes after they moved. They are pulled only
//! behind a gate that refuses, and a gate opens only when all of them are undone. Drills beside them.

use std::collections::BTreeMap;
use std::sync::Arc;

use cmek_watchdog::key::{LeverId, WorkspaceId};
use cmek_watchdog::lever::{LeverOrder, Outcome};
use cmek_watchdog::operate::Action;
use cmek_watchdog::snapshot::WorkspaceView;
use cmek_watchdog::time::Span;
use cmek_watchdog::watch::Event;
use cmek_watchdog::words::{Access, LeverAct};

use super::dice::Dice;
use super::world::{Item, World};

/// Levers of the configuration; the file is pulled for read-only workspaces too.
pub const TEXT: &str = r#"
[levers.list]
kind = "file"
path = "deny"
read_only = true
[levers.keys]
kind = "claude"
api_key = "env:ADMIN"
[levers.call]
kind = "webhook"
url = "http://127.0.0.1:9/"
secret = "env:HOOK"
match = { workspace = "w*" }
"#;

pub struct Truth {
    /// Dice of their own, so that worlds without levers are what they were.
    pub dice: Dice,
    pub on: bool,
    pub failing_permille: u64,
    pulled: BTreeMap<(WorkspaceId, LeverId), bool>,
}

impl Truth {
    pub fn new(seed: u64, on: bool) -> Self {
        Self { dice: Dice::new(seed ^ 0x5eed_1e7e), on, failing_permille: 0, pulled: BTreeMap::new() }
    }
}

fn least(lever: &LeverId) -> Access {
    if lever.as_str() == "list" { Access::ReadOnly } else { Access::Locked }
}

/// A lever is ordered: after the gate, or after the disk.
pub fn ordered(world: &mut World, order: LeverOrder) {
    world.check.tally.levers += 1;
    let shown = world.workspaces.get(&order.workspace).map_or(Access::Open, |view| view.access);
    match order.act {
        LeverAct::Pull if shown < least(&order.lever) => {
            world.check.wrong(format!("{} of {} is pulled while the gate shows {shown}", order.lever, order.workspace));
        }
        LeverAct::Undo if world.disk.access(&order.workspace, world.now().wall) >= least(&order.lever) && world.config_levers() => {
            if !world.plan.any.iter().any(|any| any == order.workspace.as_str()) {
                world.check.wrong(format!("{} of {} is undone while the store has its lock", order.lever, order.workspace));
            }
        }
        LeverAct::Pull | LeverAct::Undo => {}
    }
    let wait = *world.levers.dice.pick(&[5, 50, 3_000, 20_000]);
    let item = Item::Levered { run: world.run, order };
    world.after(wait, item);
}

/// It moves, or fails; then its answer takes a while, and a crash may swallow it.
pub fn moved(world: &mut World, run: u64, order: LeverOrder) -> Option<Event> {
    let fails = world.levers.dice.chance(world.levers.failing_permille);
    let moves = !fails || world.levers.dice.chance(300);
    // A process that died may have sent its call before.
    if run != world.run && world.levers.dice.chance(500) {
        return None;
    }
    // A list is whole in each order; an answer of an older process must not undo the new one's.
    if moves && run == world.run {
        world.say(|| format!("lever {} of {}: {}", order.lever, order.workspace, order.act));
        world.levers.pulled.insert((order.workspace.clone(), order.lever.clone()), order.act == LeverAct::Pull);
    }
    if run != world.run || world.watch.is_none() {
        return None;
    }
    let planned = order.memory.is_none() && order.act == LeverAct::Pull && order.lever.as_str() == "keys";
    let outcome = if fails {
        Outcome::Failed { reason: "HTTP 500".to_owned(), after: None, memory: None }
    } else if planned {
        Outcome::Planned { memory: "ours".to_owned() }
    } else {
        let memory = (order.act == LeverAct::Pull).then(|| "ours".to_owned());
        Outcome::Done { memory, left: Vec::new() }
    };
    Some(Event::Pulled { lever: order.lever, workspace: order.workspace, attempt: order.attempt, outcome })
}

/// A workspace is shown: what it no longer refuses must be undone everywhere.
pub fn shown(world: &mut World, view: &WorkspaceView) {
    let held: Vec<String> = world
        .levers
        .pulled
        .iter()
        .filter(|((ws, lever), pulled)| **pulled && *ws == view.workspace && view.access < least(lever))
        .map(|((_, lever), _)| lever.to_string())
        .collect();
    if !held.is_empty() {
        world.check.wrong(format!("{} is shown {} while {held:?} are pulled", view.workspace, view.access));
    }
}

/// In the end what is locked is pulled, and nothing else is; no drill is left.
pub fn settled(world: &mut World) {
    if !world.levers.on {
        return;
    }
    let views: Vec<Arc<WorkspaceView>> = world.workspaces.values().cloned().collect();
    for view in views {
        for lever in ["list", "keys", "call"] {
            let id = LeverId::new(lever).unwrap();
            let fits = lever != "call" || view.workspace.as_str().starts_with('w');
            let pulled = world.levers.pulled.get(&(view.workspace.clone(), id.clone())).copied().unwrap_or(false);
            if pulled != (fits && view.access >= least(&id)) {
                world
                    .check
                    .wrong(format!("{} is {} in the end, and {lever} is pulled: {pulled}; {:?}", view.workspace, view.access, view.levers));
            }
        }
        let strictest = view.locks.iter().map(|lock| lock.access).max().unwrap_or(Access::Open);
        if view.drill.is_some() || view.access > strictest {
            world.check.wrong(format!("{} is {} in the end with {:?} and drill {:?}", view.workspace, view.access, view.locks, view.drill));
        }
    }
}

/// Somebody rehearses, or ends a rehearsal.
pub fn rehearse(world: &mut World) -> Vec<Event> {
    let running: Vec<String> = world.workspaces.values().filter_map(|v| v.drill.as_ref().map(|d| d.id.clone())).collect();
    let reason = "quarterly".to_owned();
    if !running.is_empty() && world.levers.dice.chance(300) {
        let id = world.levers.dice.pick(&running).clone();
        return world.ask(Action::EndDrill { id, reason });
    }
    let mut targets: Vec<String> = world.plan.keys.iter().map(|key| key.id.clone()).collect();
    targets.extend(world.workspaces.keys().map(ToString::to_string));
    let target = world.levers.dice.pick(&targets).clone();
    let length = Span::from_secs(world.levers.dice.range(1, 3600));
    let cut = world.levers.dice.chance(700);
    world.check.tally.drills += 1;
    world.ask(Action::Drill { target, length, cut, reason })
}
