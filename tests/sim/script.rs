//! What happens to a world in its days: owners who revoke and restore, providers in trouble, clocks
//! that jump, operators, a store that fails, receivers and gates that are away, and crashes.

use cmek_watchdog::audit::{Actor, AuditEvent, Told, subject};
use cmek_watchdog::key::{KeyId, ProviderId};
use cmek_watchdog::operate::Action;
use cmek_watchdog::time::{Mono, Span, Wall};
use cmek_watchdog::watch::Event;
use cmek_watchdog::words::{AuditMeaning, FailureKind, ProviderKind};

use super::cloud::{CloudKey, Fault, Side, Status, Truth};
use super::plan::{PlannedKey, RECEIVERS};
use super::reloads;
use super::world::{Item, StoreMood, World};

#[derive(Clone, Debug)]
pub enum Happening {
    Owner,
    Flaps,
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
    Hint,
    BrakeRelease {
        provider: String,
    },
    StoreTrouble,
    StoreWell,
    ReceiverAway,
    ReceiverBack {
        receiver: String,
    },
    GatesSlow,
    GatesWell,
    Crash,
    /// Somebody pushes an audit event about a key, true or not, or a bare hint.
    Audit {
        number: u64,
    },
    LeversFail,
    LeversWell,
    Rehearse,
}

/// Draws everything that begins by itself; what ends it is scheduled when it begins. Rates are for
/// ten days.
pub fn write(world: &mut World, length: u64) {
    let rates: [(u64, fn() -> Happening); 16] = [
        (110, || Happening::Owner),
        (8, || Happening::Flaps),
        (2, || Happening::Wave),
        (40, || Happening::Rotate),
        (24, || Happening::ProviderTrouble),
        (6, || Happening::ControlBreaks),
        (12, || Happening::ClockStep),
        (4, || Happening::Suspend),
        (24, || Happening::Reload),
        (160, || Happening::Operator),
        (30, || Happening::Hint),
        (30, || Happening::StoreTrouble),
        (20, || Happening::ReceiverAway),
        (4, || Happening::GatesSlow),
        (20, || Happening::Crash),
        (4, || Happening::Rotate),
    ];
    for (rate, make) in rates {
        let count = (rate * length).div_ceil(864_000_000);
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
    for key in world.cloud.keys.values_mut().flat_map(std::collections::BTreeMap::values_mut) {
        key.truth = Truth { current: key.truth.current, ..CloudKey::new().truth };
        key.before = None;
    }
    let ids: Vec<String> = world.plan.keys.iter().map(|k| k.id.clone()).collect();
    for id in ids {
        world.check.changed(&id);
    }
    let providers: Vec<String> = world.plan.providers.iter().map(|p| p.id.clone()).collect();
    for provider in providers {
        *world.cloud.side(&provider) = Side::WELL;
        world.after(60_000, Item::Happens(Happening::BrakeRelease { provider }));
    }
    world.levers.failing_permille = 0;
    world.receivers_down.clear();
    world.far.slow = false;
    world.crash_rate = 0;
    let mono = world.mono;
    world.check.disturbed_all(mono);
    world.store = StoreMood::WELL;
}

pub fn happen(world: &mut World, happening: Happening) -> Vec<Event> {
    world.say(|| format!("happens {happening:?}"));
    match happening {
        Happening::Owner => owner(world),
        Happening::Flaps => flaps(world),
        Happening::Restore { key, provider, reference } => restore(world, &key, &provider, &reference),
        Happening::Wave => wave(world),
        Happening::Rotate => rotate(world),
        Happening::Waver { reference, until, to } => waver(world, reference, until, to),
        Happening::ProviderTrouble => trouble(world),
        Happening::ProviderWell { provider } => {
            *world.cloud.side(&provider) = Side::WELL;
            let mono = world.mono;
            world.check.disturbed(&provider, mono + 60_000);
        }
        Happening::ControlBreaks => control(world, None),
        Happening::ControlWell { provider } => control(world, Some(provider)),
        Happening::ClockStep => {
            let by = i64::try_from(world.dice.range(3_000, 7_200_000)).unwrap();
            let forward = world.dice.chance(500);
            world.check.coverage.saw(if forward { "clock: stepped forward" } else { "clock: stepped back" });
            world.wall_offset += if forward { by } else { -by };
        }
        Happening::Suspend => {
            world.check.coverage.saw("clock: suspended");
            world.mono += world.dice.range(10_000, 7_200_000);
            let mono = world.mono;
            world.check.resumed = mono;
            world.check.disturbed_all(mono + 60_000);
            return vec![Event::Wake];
        }
        Happening::Reload => return reloads::reload(world),
        Happening::Operator => return super::operators::operator(world),
        Happening::Hint => return hint(world),
        Happening::BrakeRelease { provider } => return release_brake(world, &provider),
        Happening::StoreTrouble => store_trouble(world),
        Happening::StoreWell => world.store = StoreMood::WELL,
        Happening::ReceiverAway => {
            world.check.coverage.saw("mail: receiver away");
            let receiver = (*world.dice.pick(&RECEIVERS)).to_owned();
            world.receivers_down.insert(receiver.clone());
            let wait = world.dice.range(1_000, 14_400_000);
            world.after(wait, Item::Happens(Happening::ReceiverBack { receiver }));
        }
        Happening::ReceiverBack { receiver } => {
            world.receivers_down.remove(&receiver);
        }
        Happening::GatesSlow => {
            world.far.slow = true;
            let wait = world.dice.range(600_000, 36_000_000);
            world.after(wait, Item::Happens(Happening::GatesWell));
        }
        Happening::GatesWell => world.far.slow = false,
        Happening::Crash => world.crash("between turns"),
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

fn hint(world: &mut World) -> Vec<Event> {
    if world.watch.is_none() || world.plan.keys.is_empty() {
        return Vec::new();
    }
    world.check.coverage.saw("operator: hints");
    let key = world.dice.pick(&world.plan.keys).id.parse().unwrap();
    vec![Event::Hint { key, source: "cloudtrail".to_owned() }]
}

fn store_trouble(world: &mut World) {
    let down = world.dice.chance(400);
    let full = down && world.dice.chance(400);
    let latency = *world.dice.pick(&[5, 300, 2_000]);
    world.store = StoreMood { down, full, latency, errors_permille: if world.dice.chance(500) { 300 } else { 0 } };
    let mood = world.store;
    for (so, what) in [
        (mood.down && !mood.full, "store: down"),
        (mood.full, "store: full"),
        (mood.errors_permille > 0, "store: errors"),
        (mood.latency > 5, "store: slow"),
    ] {
        if so {
            world.check.coverage.saw(what);
        }
    }
    let wait = world.dice.range(1_000, if down { 3_600_000 } else { 600_000 });
    world.after(wait, Item::Happens(Happening::StoreWell));
}

fn control(world: &mut World, well: Option<String>) {
    let provider = match &well {
        Some(provider) => provider.clone(),
        None => world.dice.pick(&world.plan.providers).id.clone(),
    };
    let reference = world.plan.control_of(&provider);
    let status = if well.is_some() { Status::Enabled } else { Status::Disabled };
    world.cloud.key(&provider, reference).truth.status = status;
    if well.is_some() {
        let mono = world.mono;
        return world.check.disturbed(&provider, mono + 120_000);
    }
    world.check.coverage.saw("ours: control key broken");
    let wait = world.dice.range(60_000, 3_600_000);
    world.after(wait, Item::Happens(Happening::ControlWell { provider }));
}

fn release_brake(world: &mut World, provider: &str) -> Vec<Event> {
    let lock = world.dice.chance(500);
    let mono = world.mono;
    world.check.disturbed(provider, mono);
    let view = world.providers.get(provider);
    if world.watch.is_some() && view.is_some_and(|view| view.brake_engaged && !view.held.is_empty()) {
        world.check.coverage.saw(if lock { "brake: released to lock" } else { "brake: released to drop" });
    }
    if !lock {
        world.check.dropped.insert(provider.to_owned(), mono);
    }
    match ProviderId::new(provider) {
        Ok(provider) => world.ask(Action::BrakeRelease { provider, lock, reason: "seen".to_owned() }),
        Err(_) => Vec::new(),
    }
}

/// What a key truly is becomes this; `slowly` is how long answers of before still come, and how many
/// of 1,000.
fn change(world: &mut World, key: &PlannedKey, truth: Truth, slowly: (u64, u64)) -> u64 {
    let PlannedKey { id, provider, reference, .. } = key;
    let number = world.check.changed(id);
    let (spread, share) = slowly;
    let until = world.mono + spread;
    let cloud_key = world.cloud.key(provider, reference);
    let before = std::mem::replace(&mut cloud_key.truth, truth);
    cloud_key.before = (spread > 0).then_some((before, Mono(until), share));
    let truth = cloud_key.truth.clone();
    world.say(|| format!("truly {id} {truth:?} spreads {spread} ms, {share}"));
    world.check.refusing.remove(id);
    if truth.status != Status::Enabled || truth.unwrap_denied || truth.network_closed {
        world.check.refusing.insert(id.clone(), until);
        world.after(spread + 1_000, Item::LockDue { key: id.clone(), since: until, change: number });
    }
    until
}

fn slowly(world: &mut World) -> (u64, u64) {
    if !world.dice.chance(300) {
        return (0, 0);
    }
    world.check.coverage.saw("owner: change that spreads slowly");
    (world.dice.range(5_000, 120_000), 500)
}

fn restore(world: &mut World, id: &str, provider: &str, reference: &str) {
    world.check.coverage.saw("owner: restored");
    let current = world.cloud.key(provider, reference).truth.current;
    let describe_denied = world.dice.chance(200);
    let well = Truth { current, describe_denied, ..CloudKey::new().truth };
    let spread = slowly(world);
    let key = PlannedKey {
        id: id.to_owned(),
        provider: provider.to_owned(),
        reference: reference.to_owned(),
        account: String::new(),
        workspaces: Vec::new(),
        policy: String::new(),
    };
    change(world, &key, well, spread);
}

fn restore_after(world: &mut World, key: &PlannedKey, wait: u64) {
    let (key, provider, reference) = (key.id.clone(), key.provider.clone(), key.reference.clone());
    world.after(wait, Item::Happens(Happening::Restore { key, provider, reference }));
}

fn owner(world: &mut World) {
    if world.plan.keys.is_empty() {
        return;
    }
    let key = world.dice.pick(&world.plan.keys).clone();
    let mut truth = world.cloud.key(&key.provider, &key.reference).truth.clone();
    let in_days = |world: &World, days: u64| Some(Wall(world.now().wall.0 + i64::try_from(days * 86_400_000).unwrap()));
    let what = match world.dice.below(11) {
        0..=2 => {
            truth.status = Status::Disabled;
            "owner: disabled"
        }
        3 => {
            (truth.status, truth.ends_at) = (Status::Pending, in_days(world, 7));
            "owner: deletion scheduled"
        }
        4 => {
            (truth.status, truth.ends_at) = (Status::Destroyed, in_days(world, 30));
            "owner: destroyed, recoverable"
        }
        5 | 6 => {
            (truth.unwrap_denied, truth.wrap_denied) = (true, true);
            "owner: permission withdrawn"
        }
        7 => {
            truth.wrap_denied = true;
            "owner: wrap permission withdrawn"
        }
        8 if truth.current > 1 => {
            truth.lost.push(truth.current - 1);
            "owner: old version lost"
        }
        9 => {
            truth.network_closed = true;
            "owner: network closed"
        }
        _ => {
            truth.unwrap_denied = true;
            "owner: unwrap permission withdrawn"
        }
    };
    world.check.coverage.saw(what);
    truth.describe_denied = world.dice.chance(300);
    let spread = slowly(world);
    change(world, &key, truth, spread);
    let wait = *world.dice.pick(&[3_000, 20_000, 120_000, 900_000, 3_600_000, 12_000_000]);
    let wait = wait + world.dice.below(wait);
    restore_after(world, &key, wait);
}

/// A permission that comes and goes, call by call, for longer than anybody calls it spreading.
fn flaps(world: &mut World) {
    if world.plan.keys.is_empty() {
        return;
    }
    let key = match world.plan.keys.iter().find(|k| k.policy == "flapping").cloned().filter(|_| world.dice.chance(600)) {
        Some(key) => key,
        None => world.dice.pick(&world.plan.keys).clone(),
    };
    let well = world.cloud.key(&key.provider, &key.reference).truth.clone();
    let refusing = Truth { wrap_denied: true, unwrap_denied: true, ..well };
    let (spread, share) = (world.dice.range(900_000, 1_500_000), world.dice.range(550, 900));
    world.check.coverage.saw("owner: flaps for long");
    change(world, &key, refusing, (spread, share));
    restore_after(world, &key, spread);
}

/// Many owners' keys are denied at once, and none of them states why.
fn wave(world: &mut World) {
    world.check.coverage.saw("owner: many accounts denied at once");
    let keys = world.plan.keys.clone();
    let share = *world.dice.pick(&[150, 500]);
    let fast = world.dice.chance(500);
    for key in keys {
        if !world.dice.chance(share) {
            continue;
        }
        let mut truth = world.cloud.key(&key.provider, &key.reference).truth.clone();
        (truth.unwrap_denied, truth.wrap_denied) = (true, true);
        let spread = if fast { (0, 0) } else { slowly(world) };
        change(world, &key, truth, spread);
        let wait = world.dice.range(60_000, 1_200_000);
        restore_after(world, &key, wait);
    }
    let providers: Vec<String> = world.plan.providers.iter().map(|p| p.id.clone()).collect();
    for provider in providers {
        let wait = world.dice.range(60_000, 1_200_000);
        world.after(wait, Item::Happens(Happening::BrakeRelease { provider }));
    }
}

fn rotate(world: &mut World) {
    if world.plan.keys.is_empty() {
        return;
    }
    world.check.coverage.saw("owner: rotated");
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
    let provider = world.dice.pick(&world.plan.providers).id.clone();
    let share = *world.dice.pick(&[300, 1000]);
    let kinds = [FailureKind::Throttled, FailureKind::ProviderFault, FailureKind::Timeout, FailureKind::Unreachable];
    let kind = *world.dice.pick(&kinds);
    let what = world.dice.below(7);
    let slow = Span(*world.dice.pick(&[1_500, 5_000, 12_000]));
    let side = world.cloud.side(&provider);
    let name = match what {
        0..=2 => {
            side.fault = Some(Fault::Kind(kind, share));
            format!("provider: {kind}")
        }
        3 => {
            side.fault = Some(Fault::Hang(share));
            "provider: calls never answered".to_owned()
        }
        4 => {
            side.slow = slow;
            if slow.0 > 10_000 { "provider: slower than the timeout".to_owned() } else { "provider: slow calls".to_owned() }
        }
        5 => {
            side.denied = true;
            "ours: permission lost".to_owned()
        }
        _ => {
            side.credentials = true;
            "ours: credentials lost".to_owned()
        }
    };
    world.check.coverage.saw(&name);
    let wait = *world.dice.pick(&[10_000, 120_000, 1_200_000, 10_800_000]);
    let wait = wait + world.dice.below(wait);
    world.after(wait, Item::Happens(Happening::ProviderWell { provider }));
}
