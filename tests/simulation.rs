//! The decisions proven: seeded worlds on a virtual clock drive the core through revocations, faults,
//! crashes and a failing store, and the whole history of each is checked. `tests/sim/run` runs
//! any number of them and replays one with a trace.
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
#[path = "sim/coverage.rs"]
mod coverage;
#[path = "sim/dice.rs"]
mod dice;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/due.rs"]
mod due;
#[path = "sim/gates.rs"]
mod gates;
#[path = "sim/follow.rs"]
mod follow;
#[path = "sim/letters.rs"]
mod letters;
#[path = "sim/levers.rs"]
mod levers;
#[path = "sim/operators.rs"]
mod operators;
#[path = "sim/plan.rs"]
mod plan;
#[path = "sim/reloads.rs"]
mod reloads;
#[path = "sim/script.rs"]
mod script;
#[path = "sim/table.rs"]
mod table;
#[path = "sim/world.rs"]
mod world;

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use coverage::Coverage;
use dice::Dice;
use table::Tally;

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/regressions.txt");
/// So many steady rounds a seed, whatever the number of keys and their interval.
const ROUNDS: u64 = 12_000;
/// Seeds and days from which on everything has to have happened.
const ENOUGH: (u64, u64) = (500, 5);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One world in its length: a seed, and its days in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Seed {
    number: u64,
    days_permille: u64,
}

/// What some worlds have and others have not.
#[derive(Clone, Copy, Debug)]
struct Also {
    levers: bool,
    /// Audit events and hints all the time.
    chatter: bool,
}

/// What came of one world.
#[derive(Default)]
struct Lived {
    tally: Tally,
    coverage: Coverage,
    wrong: Vec<String>,
}

/// One world from its beginning to its end; gives its figures and what was wrong.
fn live(seed: Seed, trace: bool, also: Also) -> Lived {
    let mut dice = Dice::new(seed.number);
    let length = seed.days_permille * 86_400;
    let rounds = ROUNDS * seed.days_permille / 7_000;
    let mut plan = plan::Plan::draw(&mut dice, length, rounds.max(2_000));
    if also.levers {
        levers::TEXT.clone_into(&mut plan.more);
    }
    let interval = plan.interval_s * 1000;
    let mut world = world::World::new(dice, plan, levers::Truth::new(seed.number, also.levers), trace);
    world.planned();
    world.crash_rate = *world.dice.pick(&[0, 0, 2_000, 20_000]);
    world.start();
    // First everything is well, so that keys are proven.
    let begin = world.mono + 3 * interval;
    world.run_until(begin);
    script::write(&mut world, length);
    if also.chatter {
        script::chatter(&mut world, &mut Dice::new(seed.number ^ 0x5eed), length);
    }
    if also.levers {
        script::write_levers(&mut world, length);
    }
    world.run_until(begin + length);
    world.say(|| "healed".to_owned());
    script::heal(&mut world);
    world.run_until(begin + length + 10_800_000 + 12 * interval);
    due::settled(&mut world);
    levers::settled(&mut world);
    let check = &mut world.check;
    Lived { tally: check.tally, coverage: std::mem::take(&mut check.coverage), wrong: std::mem::take(&mut check.violations) }
}

/// As [`live`]; a panic is a broken promise of this seed, not of the run.
fn live_caught(seed: Seed, trace: bool, also: Also) -> Lived {
    std::panic::catch_unwind(|| live(seed, trace, also)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned().or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Lived { wrong: vec![format!("panicked: {}", text.unwrap_or_default())], ..Lived::default() }
    })
}

/// Seeds of the file: a number, and after a slash its days in thousandths.
fn regressions() -> Vec<Seed> {
    let text = std::fs::read_to_string(REGRESSIONS).unwrap();
    let line = |line: &str| {
        let (number, days) = line.split('#').next()?.trim().split_once('/')?;
        Some(Seed { number: number.parse().ok()?, days_permille: days.parse().ok()? })
    };
    text.lines().filter_map(line).collect()
}

/// A seed that failed runs first from now on.
fn remember(seed: Seed, what: &str) {
    let line = format!("{}/{} # {}\n", seed.number, seed.days_permille, what.replace('\n', " "));
    let file = std::fs::OpenOptions::new().append(true).open(REGRESSIONS);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        println!("{REGRESSIONS}: {error}");
    }
}

fn run(seeds: &[Seed], trace: bool) -> (Lived, Vec<Seed>) {
    let known = regressions();
    let total = Mutex::new((Lived::default(), Vec::new()));
    let next = AtomicUsize::new(0);
    let chatter = number("SIM_CHATTER").is_some();
    let work = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let lived = live_caught(seed, trace, Also { levers: seed.number.is_multiple_of(2), chatter });
            let mut total = total.lock().unwrap();
            total.0.tally.add(&lived.tally);
            total.0.coverage.add(&lived.coverage);
            for line in lived.wrong.iter().take(5) {
                println!("seed {}/{}: {line}", seed.number, seed.days_permille);
            }
            if let Some(first) = lived.wrong.first() {
                if !known.contains(&seed) && number("SIM_FORGET").is_none() {
                    remember(seed, first);
                }
                total.1.push(seed);
            }
        }
    };
    let threads = number("SIM_THREADS").unwrap_or(2);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    total.into_inner().unwrap()
}

#[test]
fn every_history_keeps_what_is_promised() {
    let days_permille = number("SIM_PERMILLE").or(number("SIM_DAYS").map(|days| days * 1000)).unwrap_or(200);
    let count = number("SIM_SEEDS").unwrap_or(4);
    let from = number("SIM_FROM").unwrap_or(1);
    let seeds: Vec<Seed> = match number("SIM_SEED") {
        Some(number) => vec![Seed { number, days_permille }],
        None => {
            let drawn = (from..from + count).map(|number| Seed { number, days_permille });
            let mut seeds = regressions();
            seeds.extend(drawn.filter(|seed| !regressions().contains(seed)));
            seeds
        }
    };
    let started = std::time::Instant::now();
    let (total, failed) = run(&seeds, number("SIM_TRACE").is_some());
    total.tally.print();
    println!("{:<38}{:>12}", "seconds", started.elapsed().as_secs());
    if seeds.len() > 1 && number("SIM_SEEDS").is_some() {
        total.coverage.print();
    }
    let names: Vec<String> = failed.iter().map(|seed| format!("{}/{}", seed.number, seed.days_permille)).collect();
    assert!(failed.is_empty(), "seeds {names:?} broke a promise; tests/sim/run --seed NUMBER/DAYS replays one with a trace");
    if count >= ENOUGH.0 && days_permille >= ENOUGH.1 * 1000 {
        let missing = total.coverage.missing();
        assert!(missing.is_empty(), "the worlds never had: {missing:?}");
    }
}

/// Whatever audit logs and hints say, true or invented: every promise holds as without them.
#[test]
fn audit_events_and_hints_break_no_promise() {
    for number in 1..=3 {
        let lived = live_caught(Seed { number, days_permille: 200 }, false, Also { levers: false, chatter: true });
        let first: Vec<_> = lived.wrong.iter().take(5).collect();
        assert!(first.is_empty(), "seed {number}: {first:?}; SIM_CHATTER=1 tests/sim/run --seed {number}/0.2 replays it");
    }
}
