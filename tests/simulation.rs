//! The decisions proven: seeded worlds on a virtual clock drive the core through revocations, faults,
//! crashes and a failing store, and the whole history of each is checked. `SIM_SEEDS=n SIM_FROM=k
//! SIM_DAYS=d` runs more, `SIM_SEED=n SIM_TRACE=1` replays one with a trace.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "sim/check.rs"]
mod check;
#[path = "sim/cloud.rs"]
mod cloud;
#[path = "sim/dice.rs"]
mod dice;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/follow.rs"]
mod follow;
#[path = "sim/letters.rs"]
mod letters;
#[path = "sim/plan.rs"]
mod plan;
#[path = "sim/script.rs"]
mod script;
#[path = "sim/table.rs"]
mod table;
#[path = "sim/world.rs"]
mod world;

use dice::Dice;
use table::Tally;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One world from its beginning to its end; gives its figures and what was wrong.
fn live(seed: u64, days_permille: u64, trace: bool) -> (Tally, Vec<String>) {
    let mut dice = Dice::new(seed);
    let keys = dice.range(3, 25);
    let plan = plan::Plan::draw(&mut dice, keys);
    let interval = plan.interval_s * 1000;
    let mut world = world::World::new(dice, plan, trace);
    world.crash_rate = *world.dice.pick(&[0, 0, 300, 3000]);
    let length = days_permille * 86_400;
    world.start();
    // First everything is well, so that keys are proven.
    let begin = world.mono + 3 * interval;
    world.run_until(begin);
    script::write(&mut world, length);
    world.run_until(begin + length);
    world.say(|| "healed".to_owned());
    script::heal(&mut world);
    world.run_until(begin + length + 10_800_000 + 12 * interval);
    check::settled(&mut world);
    (world.check.tally, std::mem::take(&mut world.check.violations))
}

#[test]
fn every_history_keeps_what_is_promised() {
    let days_permille = number("SIM_DAYS").map_or(200, |days| days * 1000);
    let trace = number("SIM_TRACE").is_some();
    let mut seeds: Vec<u64> =
        include_str!("sim/regressions.txt").lines().filter_map(|l| l.split('#').next()?.trim().parse().ok()).collect();
    match number("SIM_SEED") {
        Some(seed) => seeds = vec![seed],
        None => {
            let from = number("SIM_FROM").unwrap_or(1);
            seeds.extend(from..from + number("SIM_SEEDS").unwrap_or(4));
        }
    }
    let mut total = Tally::default();
    let mut failed = Vec::new();
    for seed in seeds {
        let (tally, wrong) = live(seed, days_permille, trace);
        total.add(&tally);
        if !wrong.is_empty() {
            for line in wrong.iter().take(5) {
                println!("seed {seed}: {line}");
            }
            failed.push(seed);
        }
    }
    total.print();
    assert!(failed.is_empty(), "seeds {failed:?} broke a promise; SIM_SEED=n SIM_TRACE=1 replays one");
}
