//! People at the desk: they lock and unlock, override, validate, retire versions, and are refused.

use cmek_watchdog::key::{KeyId, KeyVersion, ReceiverId, WorkspaceId};
use cmek_watchdog::operate::Action;
use cmek_watchdog::time::Span;
use cmek_watchdog::watch::Event;

use super::plan::RECEIVERS;
use super::world::{Item, World};

pub fn operator(world: &mut World) -> Vec<Event> {
    let mut ids: Vec<String> = world.workspaces.values().filter(|v| !v.locks.is_empty()).map(|v| v.workspace.to_string()).collect();
    ids.push(format!("w{}", world.dice.below(world.plan.keys.len() as u64 + 2)));
    let id = world.dice.pick(&ids).clone();
    let workspace = WorkspaceId::new(&id).unwrap();
    let reason = "because".to_owned();
    let mono = world.mono;
    match world.dice.below(10) {
        0 | 1 => {
            if world.watch.is_some() {
                let item = Item::ShownDue { run: world.run, workspace: id };
                world.after(350, item);
            }
            world.check.coverage.saw("operator: locks");
            world.ask(Action::Lock { workspace, reason })
        }
        2..=6 => {
            world.check.asked_unlock(&id, mono);
            world.check.coverage.saw("operator: unlocks");
            world.ask(Action::Unlock { workspace, reason, override_for: None })
        }
        7 => {
            world.check.asked_unlock(&id, mono);
            let span = Span::from_mins(world.dice.range(1, 300));
            world.ask(Action::Unlock { workspace, reason, override_for: Some(span) })
        }
        8 if !world.plan.keys.is_empty() => {
            let key: KeyId = world.dice.pick(&world.plan.keys).id.parse().unwrap();
            world.check.coverage.saw("operator: key validated");
            world.ask(Action::Validate { key })
        }
        _ => retire_version(world),
    }
}

fn retire_version(world: &mut World) -> Vec<Event> {
    let old =
        world.keys.values().find_map(|k| k.versions.iter().find(|v| !v.current && !v.retired).map(|v| (k.id.clone(), v.version.clone())));
    match old {
        Some((key, version)) => {
            world.check.coverage.saw("operator: version retired");
            let reason = "its data was written anew".to_owned();
            world.ask(Action::RetireVersion { key, version: KeyVersion::new(version.as_str()), reason })
        }
        None => world.ask(Action::TestReceiver { receiver: ReceiverId::new(RECEIVERS[0]).unwrap() }),
    }
}
