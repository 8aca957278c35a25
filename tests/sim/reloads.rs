//! New configurations: keys that go, come, come back or change their names and bindings; policies
//! that grow stricter and looser; witnesses that are taken away.

use std::sync::Arc;

use cmek_watchdog::operate::Action;
use cmek_watchdog::watch::Event;

use super::plan::PlannedKey;
use super::world::World;

/// One change of the plan, taken into force.
pub fn reload(world: &mut World) -> Vec<Event> {
    if world.plan.keys.len() > 2 {
        let what = alter(world);
        world.check.coverage.saw(what);
    }
    let named: Vec<String> = world.plan.keys.iter().flat_map(|k| k.workspaces.clone()).collect();
    world.plan.any.retain(|any| named.contains(any));
    let mono = world.mono;
    world.check.disturbed_all(mono + 5_000);
    world.check.rules_changed = mono;
    let config = world.plan.config();
    world.config = Arc::clone(&config);
    world.planned();
    world.ask(Action::Reload { config })
}

fn any_key(world: &mut World) -> usize {
    usize::try_from(world.dice.below(world.plan.keys.len() as u64)).unwrap()
}

fn alter(world: &mut World) -> &'static str {
    let at = any_key(world);
    match world.dice.below(12) {
        0 | 1 => {
            let key = world.plan.keys.remove(at);
            world.removed.push(key);
            "reload: key removed"
        }
        2 => {
            let mut plan = world.plan.clone();
            let number = 1_000 + world.dice.below(1_000_000);
            let keys = plan.keys.len() as u64;
            let key = plan.draw_key(&mut world.dice, number, keys);
            if plan.keys.iter().any(|k| k.id == key.id) {
                return "reload: nothing changed";
            }
            plan.keys.push(key);
            world.plan = plan;
            "reload: key added"
        }
        3 | 4 => match world.removed.pop() {
            Some(key) => come_back(world, key),
            None => "reload: nothing changed",
        },
        5 | 6 => {
            let to = format!("w{}", world.dice.below(world.plan.keys.len() as u64));
            world.plan.keys[at].workspaces = vec![to];
            "reload: workspaces bound anew"
        }
        7 | 8 => {
            let to = ["default", "manual", "shadow", "flapping", "firm", "network"];
            world.plan.keys[at].policy = (*world.dice.pick(&to)).to_owned();
            "reload: policy of a key changed"
        }
        9 => {
            world.plan.rules = 1;
            "reload: rules stricter"
        }
        10 => {
            world.plan.rules = if world.dice.chance(500) { 2 } else { 0 };
            "reload: rules looser"
        }
        _ => {
            let at = usize::try_from(world.dice.below(world.plan.providers.len() as u64)).unwrap();
            world.plan.providers[at].control ^= true;
            "reload: control key taken away or given"
        }
    }
}

/// A key that was taken out is registered again, as it was or under another id.
fn come_back(world: &mut World, mut key: PlannedKey) -> &'static str {
    if world.plan.keys.iter().any(|k| k.id == key.id || k.reference == key.reference) {
        return "reload: nothing changed";
    }
    let renamed = world.dice.chance(400);
    if renamed {
        key.id = format!("{}x", key.id);
    }
    for ws in key.workspaces.iter().filter(|ws| ws.starts_with("any")) {
        if !world.plan.any.contains(ws) {
            world.plan.any.push(ws.clone());
        }
    }
    world.plan.keys.push(key);
    if renamed { "reload: key under another id" } else { "reload: key added again" }
}
