//! What happens to a world in its days: owners who revoke and restore, providers in trouble, clocks
//! that jump, operators, reloads, a store that fails, receivers that are away, and crashes.

use cmek_watchdog::audit::{Actor, AuditEvent, Told, subject};
use cmek_watchdog::key::{KeyId, KeyVersion, ProviderId, ReceiverId, WorkspaceId};
use cmek_watchdog::operate::Action;
use cmek_watchdog::time::{Mono, Span};
use cmek_watchdog::watch::Event;
use cmek_watchdog::words::{AuditMeaning, FailureKind, ProviderKind};

use super::cloud::{Fault, Status, Truth};
use super::plan::{CONTROL, RECEIVERS};
use super::world::{Item, StoreMood, World};

#[derive(Clone, Debug)]
pub enum Happening {
    Owner,
    Restore {
        key: String,
        provider: String,
        reference: String,
    },
    Wave,
    Rotate,
    Waver {
        reference: (String, String),
        until: u64,
        to: (u32, u32),
    },
    ProviderTrouble,
    ProviderWell {
        provider: String,
    },
    ControlBreaks,
    ControlWell {
        provider: String,
    },
    ClockStep,
    Suspend,
    Reload,
    Operator,
    BrakeRelease {
        provider: String,
    },
    StoreTrouble,
    StoreWell,
    ReceiverAway,
    ReceiverBack {
        receiver: String,
    },
    Crash,
    /// Somebody pushes an audit event about a key, true or not, or a bare hint.
    Audit {
        number: u64,
    },
    LeversFail,
    LeversWell,
    Rehearse,
}

/// Draws everything that begins by itself; what ends it is scheduled when it begins.
pub fn write(world: &mut World, length: u64) {
    let per_day: [(u64, fn() -> Happening); 13] = [
        (30, || Happening::Owner),
        (2, || Happening::Wave),
        (6, || Happening::Rotate),
        (6, || Happening::ProviderTrouble),
        (2, || Happening::ControlBreaks),
        (2, || Happening::ClockStep),
        (1, || Happening::Suspend),
        (5, || Happening::Reload),
        (30, || Happening::Operator),
        (8, || Happening::StoreTrouble),
        (6, || Happening::ReceiverAway),
        (10, || Happening::Crash),
        (3, || Happening::Crash),
    ];
    for (rate, make) in per_day {
        let count = (rate * length).div_ceil(86_400_000);
        for _ in 0..count {
            let at = world.dice.below(length);
            world.after(at, Item::Happens(make()));
        }
    }
}

/// Audit events and hints all the time, true ones and inventions.
pub fn chatter(world: &mut World, dice: &mut super::dice::Dice, length: u64) {
    for number in 0..(600 * length).div_ceil(86_400_000) {
        let at = dice.below(length);
        world.after(at, Item::Happens(Happening::Audit { number: number * 1000 + dice.below(1000) }));
    }
}

fn audit(world: &mut World, number: u64) -> Vec<Event> {
    let Some(key) = usize::try_from(number).ok().and_then(|n| world.plan.keys.get(n % world.plan.keys.len().max(1))).cloned() else {
        return Vec::new();
    };
    if world.watch.is_none() {
        return Vec::new();
    }
    if number.is_multiple_of(3) {
        return vec![Event::Hint { key: KeyId::new(&key.id).unwrap(), source: "trail".to_owned() }];
    }
    let meaning = AuditMeaning::ALL[usize::try_from(number / 7).unwrap() % AuditMeaning::ALL.len()];
    let event = AuditEvent {
        id: format!("e{number}"),
        provider: ProviderKind::Aws,
        name: meaning.to_string(),
        meaning,
        subjects: subject::aws_arn(&key.reference).into_iter().collect(),
        version: None,
        actor: Actor { principal: Some("arn:aws:iam::1:user/alice".to_owned()), ..Actor::default() },
        at: world.now().wall.minus(Span::from_secs(number % 900)),
        error: number.is_multiple_of(5).then(|| "AccessDenied".to_owned()),
    };
    world.ask(Action::Audit { told: Box::new(Told { source: "trail".to_owned(), events: vec![event], ..Told::default() }) })
}

/// Trouble of levers, and rehearsals.
pub fn write_levers(world: &mut World, length: u64) {
    let per_day: [(u64, fn() -> Happening); 2] = [(10, || Happening::LeversFail), (40, || Happening::Rehearse)];
    for (rate, make) in per_day {
        for _ in 0..(rate * length).div_ceil(86_400_000) {
            let at = world.levers.dice.below(length);
            world.after(at, Item::Happens(make()));
        }
    }
}

/// Everything is well again from now on.
pub fn heal(world: &mut World) {
    let keys: Vec<_> = world.cloud.keys.keys().cloned().collect();
    for (provider, reference) in keys {
        let key = world.cloud.key(&provider, &reference);
        key.truth = Truth { current: key.truth.current, ..super::cloud::CloudKey::new("").truth };
        key.before = None;
    }
    let ids: Vec<String> = world.plan.keys.iter().map(|k| k.id.clone()).collect();
    for id in ids {
        world.check.changed(&id);
    }
    let providers: Vec<String> = world.plan.providers.iter().map(|p| p.0.clone()).collect();
    for provider in providers {
        let side = world.cloud.side(&provider);
        (side.fault, side.denied, side.credentials, side.slow) = (None, false, false, Span(20));
        world.after(60_000, Item::Happens(Happening::BrakeRelease { provider }));
    }
    world.levers.failing_permille = 0;
    world.receivers_down.clear();
    world.crash_rate = 0;
    let mono = world.mono;
    world.check.disturbed_all(mono);
    world.store = StoreMood { down: false, latency: 5, errors_permille: 0 };
}

pub fn happen(world: &mut World, happening: Happening) -> Vec<Event> {
    world.say(|| format!("happens {happening:?}"));
    match happening {
        Happening::Owner => owner(world),
        Happening::Restore { key, provider, reference } => {
            let current = world.cloud.key(&provider, &reference).truth.current;
            let describe_denied = world.dice.chance(200);
            let well = Truth { current, describe_denied, ..super::cloud::CloudKey::new("").truth };
            change(world, &key, &provider, &reference, well);
        }
        Happening::Wave => wave(world),
        Happening::Rotate => rotate(world),
        Happening::Waver { reference, until, to } => waver(world, reference, until, to),
        Happening::ProviderTrouble => trouble(world),
        Happening::ProviderWell { provider } => {
            let side = world.cloud.side(&provider);
            (side.fault, side.denied, side.credentials, side.slow) = (None, false, false, Span(20));
            let mono = world.mono;
            world.check.disturbed(&provider, mono + 60_000);
        }
        Happening::ControlBreaks => {
            let provider = world.dice.pick(&world.plan.providers).0.clone();
            world.cloud.key(&provider, CONTROL).truth.status = Status::Disabled;
            let wait = world.dice.range(60_000, 3_600_000);
            world.after(wait, Item::Happens(Happening::ControlWell { provider }));
        }
        Happening::ControlWell { provider } => {
            world.cloud.key(&provider, CONTROL).truth.status = Status::Enabled;
            let mono = world.mono;
            world.check.disturbed(&provider, mono + 120_000);
        }
        Happening::ClockStep => {
            let by = i64::try_from(world.dice.range(3_000, 7_200_000)).unwrap();
            world.wall_offset += if world.dice.chance(500) { by } else { -by };
        }
        Happening::Suspend => {
            world.mono += world.dice.range(10_000, 7_200_000);
            let mono = world.mono;
            world.check.disturbed_all(mono + 60_000);
            return vec![Event::Wake];
        }
        Happening::Reload => return reload(world),
        Happening::Operator => return operator(world),
        Happening::BrakeRelease { provider } => return release_brake(world, &provider),
        Happening::StoreTrouble => {
            let down = world.dice.chance(400);
            let latency = *world.dice.pick(&[5, 300, 2_000]);
            world.store = StoreMood { down, latency, errors_permille: if world.dice.chance(500) { 300 } else { 0 } };
            let wait = world.dice.range(1_000, if down { 3_600_000 } else { 600_000 });
            world.after(wait, Item::Happens(Happening::StoreWell));
        }
        Happening::StoreWell => world.store = StoreMood { down: false, latency: 5, errors_permille: 0 },
        Happening::ReceiverAway => {
            let receiver = (*world.dice.pick(&RECEIVERS)).to_owned();
            world.receivers_down.insert(receiver.clone());
            let wait = world.dice.range(1_000, 14_400_000);
            world.after(wait, Item::Happens(Happening::ReceiverBack { receiver }));
        }
        Happening::ReceiverBack { receiver } => {
            world.receivers_down.remove(&receiver);
        }
        Happening::Crash => world.crash(),
        Happening::Audit { number } => return audit(world, number),
        Happening::LeversFail => {
            world.levers.failing_permille = *world.levers.dice.pick(&[300, 1000]);
            let wait = world.levers.dice.range(1_000, 3_600_000);
            world.after(wait, Item::Happens(Happening::LeversWell));
        }
        Happening::LeversWell => world.levers.failing_permille = 0,
        Happening::Rehearse => return super::levers::rehearse(world),
    }
    Vec::new()
}

fn release_brake(world: &mut World, provider: &str) -> Vec<Event> {
    let lock = world.dice.chance(500);
    let mono = world.mono;
    world.check.disturbed(provider, mono);
    if !lock {
        world.check.dropped.insert(provider.to_owned(), mono);
    }
    match ProviderId::new(provider) {
        Ok(provider) => world.ask(Action::BrakeRelease { provider, lock, reason: "seen".to_owned() }),
        Err(_) => Vec::new(),
    }
}

fn change(world: &mut World, id: &str, provider: &str, reference: &str, truth: Truth) -> u64 {
    let number = world.check.changed(id);
    let spread = if world.dice.chance(300) { world.dice.range(5_000, 120_000) } else { 0 };
    let until = world.mono + spread;
    let key = world.cloud.key(provider, reference);
    let before = std::mem::replace(&mut key.truth, truth);
    key.before = (spread > 0).then_some((before, Mono(until)));
    let now = format!("{:?}", key.truth);
    world.say(|| format!("truly {id} {now} spreads {spread} ms"));
    let refuses = key_refuses(world, provider, reference);
    world.check.refusing.remove(id);
    if refuses {
        world.check.refusing.insert(id.to_owned(), until);
        world.after(spread + 1_000, Item::LockDue { key: id.to_owned(), since: until, change: number });
    }
    until
}

fn key_refuses(world: &mut World, provider: &str, reference: &str) -> bool {
    let truth = &world.cloud.key(provider, reference).truth;
    truth.status != Status::Enabled || truth.unwrap_denied
}

fn owner(world: &mut World) {
    if world.plan.keys.is_empty() {
        return;
    }
    let key = world.dice.pick(&world.plan.keys).clone();
    let mut truth = world.cloud.key(&key.provider, &key.reference).truth.clone();
    match world.dice.below(10) {
        0..=2 => truth.status = Status::Disabled,
        3 => truth.status = Status::Pending,
        4 => truth.status = Status::Destroyed,
        5 | 6 => (truth.unwrap_denied, truth.wrap_denied) = (true, true),
        7 => truth.wrap_denied = true,
        8 => truth.lost.extend((truth.current > 1).then(|| truth.current - 1)),
        _ => truth.unwrap_denied = true,
    }
    truth.describe_denied = world.dice.chance(300);
    change(world, &key.id, &key.provider, &key.reference, truth);
    let wait = *world.dice.pick(&[3_000, 20_000, 120_000, 900_000, 3_600_000, 7_200_000, 20_000_000]);
    let wait = wait + world.dice.below(wait);
    let (provider, reference) = (key.provider, key.reference);
    world.after(wait, Item::Happens(Happening::Restore { key: key.id, provider, reference }));
}

/// Many owners' keys are denied at once, and none of them states why.
fn wave(world: &mut World) {
    let keys = world.plan.keys.clone();
    for key in keys {
        if !world.dice.chance(500) {
            continue;
        }
        let mut truth = world.cloud.key(&key.provider, &key.reference).truth.clone();
        (truth.unwrap_denied, truth.wrap_denied) = (true, true);
        change(world, &key.id, &key.provider, &key.reference, truth);
        let wait = world.dice.range(60_000, 3_600_000);
        let (provider, reference) = (key.provider, key.reference);
        world.after(wait, Item::Happens(Happening::Restore { key: key.id, provider, reference }));
    }
    let providers: Vec<String> = world.plan.providers.iter().map(|p| p.0.clone()).collect();
    for provider in providers {
        let wait = world.dice.range(60_000, 1_800_000);
        world.after(wait, Item::Happens(Happening::BrakeRelease { provider }));
    }
}

fn rotate(world: &mut World) {
    if world.plan.keys.is_empty() {
        return;
    }
    let key = world.dice.pick(&world.plan.keys).clone();
    let truth = &mut world.cloud.key(&key.provider, &key.reference).truth;
    let to = (truth.current, truth.current + 1);
    truth.current += 1;
    let until = world.mono + 180_000;
    let item = Item::Happens(Happening::Waver { reference: (key.provider, key.reference), until, to });
    world.after(20_000, item);
}

/// For a while the provider wraps now with the old version and now with the new one.
fn waver(world: &mut World, reference: (String, String), until: u64, to: (u32, u32)) {
    let over = world.mono >= until;
    let old = !over && world.dice.chance(500);
    world.cloud.key(&reference.0, &reference.1).truth.current = if old { to.0 } else { to.1 };
    if !over {
        world.after(20_000, Item::Happens(Happening::Waver { reference, until, to }));
    }
}

fn trouble(world: &mut World) {
    let provider = world.dice.pick(&world.plan.providers).0.clone();
    let share = *world.dice.pick(&[300, 1000]);
    let kinds = [FailureKind::Throttled, FailureKind::ProviderFault, FailureKind::Timeout, FailureKind::Unreachable];
    let kind = *world.dice.pick(&kinds);
    let what = world.dice.below(5);
    let side = world.cloud.side(&provider);
    match what {
        0 | 1 => side.fault = Some(Fault::Kind(kind, share)),
        2 => side.fault = Some(Fault::Hang(share)),
        3 => side.denied = true,
        _ => side.credentials = true,
    }
    let wait = *world.dice.pick(&[10_000, 120_000, 1_200_000, 14_400_000]);
    let wait = wait + world.dice.below(wait);
    world.after(wait, Item::Happens(Happening::ProviderWell { provider }));
}

fn reload(world: &mut World) -> Vec<Event> {
    let keys = world.plan.keys.len() as u64;
    match world.dice.below(5) {
        0 if keys > 2 => {
            let at = usize::try_from(world.dice.below(keys)).unwrap();
            world.plan.keys.remove(at);
        }
        1 => {
            let mut plan = world.plan.clone();
            let number = 100 + world.dice.below(1_000_000);
            let key = plan.draw_key(&mut world.dice, number, 1000);
            world.plan = plan;
            world.cloud.key(&key.provider, &key.reference).account = key.account.clone();
            world.plan.keys.push(key);
        }
        2 if keys > 0 => {
            let at = usize::try_from(world.dice.below(keys)).unwrap();
            let to = format!("w{}", world.dice.below(keys));
            world.plan.keys[at].workspaces = vec![to];
        }
        3 if keys > 0 => {
            let at = usize::try_from(world.dice.below(keys)).unwrap();
            world.plan.keys[at].policy = (*world.dice.pick(&["default", "manual", "shadow"])).to_owned();
        }
        _ => {}
    }
    let named: Vec<String> = world.plan.keys.iter().flat_map(|k| k.workspaces.clone()).collect();
    world.plan.any.retain(|any| named.contains(any));
    let mono = world.mono;
    world.check.disturbed_all(mono + 5_000);
    let config = world.plan.config();
    world.config = std::sync::Arc::clone(&config);
    world.ask(Action::Reload { config })
}

fn operator(world: &mut World) -> Vec<Event> {
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
            world.ask(Action::Lock { workspace, reason })
        }
        2..=6 => {
            world.check.asked_unlock(&id, mono);
            world.ask(Action::Unlock { workspace, reason, override_for: None })
        }
        7 => {
            world.check.asked_unlock(&id, mono);
            let span = Span::from_mins(world.dice.range(1, 300));
            world.ask(Action::Unlock { workspace, reason, override_for: Some(span) })
        }
        8 => match world.dice.pick(&world.plan.keys.iter().map(|k| k.id.clone()).collect::<Vec<_>>()).parse::<KeyId>() {
            Ok(key) => world.ask(Action::Validate { key }),
            Err(_) => Vec::new(),
        },
        _ => {
            let old = world
                .keys
                .values()
                .find_map(|k| k.versions.iter().find(|v| !v.current && !v.retired).map(|v| (k.id.clone(), v.version.clone())));
            match old {
                Some((key, version)) => world.ask(Action::RetireVersion { key, version: KeyVersion::new(version.as_str()), reason }),
                None => world.ask(Action::TestReceiver { receiver: ReceiverId::new(RECEIVERS[0]).unwrap() }),
            }
        }
    }
}
