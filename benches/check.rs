//! What one check costs with 100,000 workspaces, beside a locked map and a map behind a read lock.
//! `cargo bench --bench check --no-default-features --features client`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a measurement"
)]

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use cmek_watchdog::client::table::Table;
use cmek_watchdog::client::{Handle, OnLost};
use cmek_watchdog::clock;
use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::time::Span;
use cmek_watchdog::words::{Access, FeatureClass};

const WORKSPACES: u64 = 100_000;
const CHECKS: u64 = 2_000_000;

/// Nanoseconds of one call, over workspaces in an order that no cache foresees; the best of five.
fn measure<R>(mut one: impl FnMut(usize) -> R) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        let mut at = 1u64;
        for _ in 0..CHECKS {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            black_box(one(usize::try_from((at >> 33) % WORKSPACES).unwrap()));
        }
        best = best.min(began.elapsed().as_nanos() as f64 / CHECKS as f64);
    }
    best
}

fn main() {
    let ids: Vec<WorkspaceId> = (0..WORKSPACES).map(|n| WorkspaceId::new(&format!("wrkspc_{n:06}")).unwrap()).collect();
    let table = Arc::new(Table::new(OnLost::Closed, Span::from_hours(1)));
    table.replace(&ids.iter().map(|id| (id.clone(), (1, Access::Open))).collect());
    table.heard(clock::now_mono());
    let handles: Vec<Handle> = ids.iter().map(|id| Table::handle(&table, id)).collect();
    let now = clock::now_mono();
    let locked = Mutex::new(ids.iter().map(|id| (id.clone(), Access::Open)).collect::<BTreeMap<_, _>>());
    let hashed = RwLock::new(ids.iter().map(|id| (id.clone(), Access::Open)).collect::<HashMap<_, _>>());
    let empty = measure(|at| at);
    let peer = measure(|at| locked.lock().unwrap().get(&ids[at]).copied());
    let figures = [
        ("handle.glance (one load)", measure(|at| handles[at].glance())),
        ("handle.check_at (two loads)", measure(|at| handles[at].check_at(now))),
        ("handle.check (two loads and the clock)", measure(|at| handles[at].check())),
        ("one handle, check_at, again and again", measure(|_| handles[7].check_at(now))),
        ("table.rule by id", measure(|at| table.rule(&ids[at], FeatureClass::Content, false, now))),
        ("RwLock<HashMap>, by id", measure(|at| hashed.read().unwrap().get(&ids[at]).copied())),
        ("Mutex<BTreeMap>, by id", peer),
    ];
    println!("{WORKSPACES} workspaces in random order; the loop itself, {empty:.1} ns, is taken off");
    for (name, ns) in figures {
        println!("{name:<42} {:>7.1} ns   {:>6.1} x faster than Mutex<BTreeMap>", ns - empty, (peer - empty) / (ns - empty).max(0.01));
    }
}
