//! A service far away that hears of each change late and in any order, and believes the highest
//! number: in the end it has to know what the watch shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::snapshot::WorkspaceView;
use cmek_watchdog::words::{Access, Sequence};

use super::world::{Item, World};

#[derive(Default)]
pub struct FarGate {
    pub slow: bool,
    known: BTreeMap<WorkspaceId, (Sequence, Access)>,
}

/// Puts a change on its way.
pub fn send(world: &mut World, view: &Arc<WorkspaceView>) {
    let wait = if world.far.slow { world.dice.range(1_000, 900_000) } else { world.dice.range(1, 3_000) };
    if world.far.slow {
        world.check.coverage.saw("gates: slow");
    }
    world.after(wait, Item::Heard { workspace: view.workspace.clone(), sequence: view.sequence, access: view.access });
}

/// What a service does with it: an older number says nothing any more.
pub fn heard(world: &mut World, workspace: WorkspaceId, sequence: Sequence, access: Access) {
    let known = world.far.known.get(&workspace).map(|(sequence, _)| *sequence);
    if known.is_some_and(|known| known > sequence) {
        world.check.coverage.saw("gates: changes that came out of order");
        return;
    }
    world.far.known.insert(workspace, (sequence, access));
}

/// Everything has arrived: the far gate knows what is shown.
pub fn settled(world: &mut World) {
    let wrong: Vec<String> = world
        .workspaces
        .values()
        .filter_map(|view| {
            let known = world.far.known.get(&view.workspace).map_or(Access::Open, |(_, access)| *access);
            (known != view.access).then(|| format!("a far gate has {known} for {}, which is {}", view.workspace, view.access))
        })
        .collect();
    for line in wrong {
        world.check.tally.gates_astray += 1;
        world.check.wrong(line);
    }
}
