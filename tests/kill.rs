//! The daemon under `kill -9` at random moments, while keys are disabled and enabled at random:
//! no lock is lost, none is put off for ever, no notice is missing, and the journal stays whole.
//!
//! `KILLS` sets how often (200), `SEED` the draw.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/daemon.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{PATIENCE, Place, QUICK, get, now};

/// Keys whose state is drawn; each has one workspace.
const KEYS: usize = 6;
/// A key that is disabled for so long is locked, although the daemon dies every second: two probe
/// intervals, two looks with their pauses, and two lives of the daemon beside the machine's load.
const AT_MOST: Duration = Duration::from_secs(12);

/// Numbers that one seed always draws again (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// One notice as it came in.
#[derive(Clone, Debug)]
struct Got {
    id: String,
    /// How often the daemon had been started by then.
    life: u64,
    event: String,
    sequence: u64,
    workspaces: Vec<String>,
}

/// A webhook receiver in this process.
struct Receiver {
    port: u16,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Receiver {
    fn start(life: Arc<AtomicU64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let got = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&got);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (life, into) = (Arc::clone(&life), Arc::clone(&into));
                std::thread::spawn(move || while take(&stream, &life, &into).is_some() {});
            }
        });
        Self { port, got }
    }
}

/// Takes one request. What was read whole counts as delivered, even if the sender dies before it
/// hears so: that is what a repeat comes from.
fn take(stream: &TcpStream, life: &AtomicU64, into: &Mutex<Vec<Got>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut id) = (0, String::new());
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "webhook-id" => id = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let names = body["data"]["workspaces"].as_array().into_iter().flatten();
    into.lock().unwrap().push(Got {
        id,
        life: life.load(Ordering::SeqCst),
        event: body["type"].as_str()?.to_owned(),
        sequence: body["data"]["sequence"].as_u64()?,
        workspaces: names.filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
    });
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
}

/// What the test did to one key.
#[derive(Clone, Copy, Debug)]
struct Hand {
    disabled: bool,
    /// Since when, and when it will change.
    since: Instant,
    until: Instant,
}

/// All keys, as the test has set them.
struct Keys {
    hands: Vec<Hand>,
    draw: Draw,
    changes: u64,
}

impl Keys {
    fn new(draw: Draw) -> Self {
        let now = Instant::now();
        Self { hands: vec![Hand { disabled: false, since: now, until: now }; KEYS], draw, changes: 0 }
    }

    /// Changes the keys whose time has come. A quarter of the disabled times is long enough for a lock
    /// whatever happens, the rest may be too short.
    fn turn(&mut self, place: &Place) {
        for (n, hand) in self.hands.iter_mut().enumerate() {
            if Instant::now() < hand.until {
                continue;
            }
            let name = format!("k{n}");
            let stays = match (hand.disabled, self.draw.below(4)) {
                (false, 0) => self.draw.millis(13_000, 17_000),
                (false, _) => self.draw.millis(300, 5_000),
                (true, _) => self.draw.millis(500, 6_000),
            };
            // What is disabled counts from after the change, what is enabled from before it.
            if hand.disabled {
                hand.disabled = false;
                hand.since = Instant::now();
                place.kms().enable(&name, now()).unwrap();
            } else {
                place.kms().disable(&name, now()).unwrap();
                hand.disabled = true;
                hand.since = Instant::now();
            }
            hand.until = Instant::now() + stays;
            self.changes += 1;
        }
    }
}

/// What was shown of one workspace.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    access: String,
    sequence: u64,
    at: Instant,
}

/// Every workspace in one answer, if there is one.
fn look(port: u16) -> Option<BTreeMap<String, Shown>> {
    let answer = get(port, "/v1/workspaces?limit=1000")?;
    if answer.status != 200 {
        assert_eq!(answer.status, 503, "{answer:?}");
        return None;
    }
    let page = answer.json();
    let at = Instant::now();
    let of = |item: &Value| {
        let shown = Shown { access: item["access"].as_str().unwrap().to_owned(), sequence: item["sequence"].as_u64().unwrap(), at };
        (item["workspace"].as_str().unwrap().to_owned(), shown)
    };
    Some(page["items"].as_array().unwrap().iter().map(of).collect())
}

/// Figures of the run.
#[derive(Default, Debug)]
struct Figures {
    killed_before_an_answer: u64,
    locks_over_a_kill: u64,
    opened_between: u64,
    longest_to_lock: Duration,
    longest_start: Duration,
    locked_times: BTreeSet<(String, u64)>,
}

/// One run of the test.
struct Trial {
    place: Place,
    keys: Keys,
    figures: Figures,
    last: BTreeMap<String, Shown>,
    /// Opened rightly, if the journal says so: workspace and the sequence of the lock that was shown.
    to_prove: Vec<(String, u64)>,
}

impl Trial {
    /// What must hold of every answer while the daemon lives.
    fn judge(&mut self, shown: &BTreeMap<String, Shown>) {
        for (n, hand) in self.keys.hands.iter().enumerate() {
            let ws = &shown[&format!("ws_{n}")];
            if hand.disabled && ws.access == "locked" {
                let first = self.figures.locked_times.insert((format!("ws_{n}"), ws.sequence));
                if first {
                    self.figures.longest_to_lock = self.figures.longest_to_lock.max(ws.at - hand.since);
                }
            }
            let late = hand.disabled && ws.access != "locked" && ws.at - hand.since > AT_MOST;
            assert!(!late, "ws_{n} is {} {:?} after its key was disabled", ws.access, ws.at - hand.since);
        }
        self.last.clone_from(shown);
    }

    /// The first answer of a new life, against the last one of the life before.
    fn judge_first(&mut self, shown: &BTreeMap<String, Shown>) {
        let before = self.last.clone();
        for (name, ws) in before.iter().filter(|(_, ws)| ws.access == "locked") {
            let hand = &self.keys.hands[name.trim_start_matches("ws_").parse::<usize>().unwrap()];
            let now = &shown[name];
            self.figures.locks_over_a_kill += 1;
            assert!(now.sequence >= ws.sequence, "{name}: the number went back: {ws:?}, then {now:?}");
            if now.access != "locked" {
                // It may have been opened between the two answers, but not while its key was disabled.
                let all_along = hand.disabled && hand.since < ws.at;
                assert!(!all_along, "{name}: {ws:?} before the kill, {now:?} at the first answer after it");
                self.figures.opened_between += 1;
                self.to_prove.push((name.clone(), ws.sequence));
            }
        }
    }

    /// One life of the daemon: start, look and change keys for a while, kill.
    fn live(&mut self) {
        let life = self.keys.draw.millis(50, 1_100);
        // One in eight dies while it starts.
        let early = (self.keys.draw.below(8) == 0).then(|| self.keys.draw.millis(0, 250));
        let started = Instant::now();
        let mut daemon = self.place.spawn(&[]);
        let mut first: Option<Instant> = None;
        loop {
            self.keys.turn(&self.place);
            if let Some(shown) = look(self.place.port) {
                if first.is_none() {
                    self.judge_first(&shown);
                    first = Some(Instant::now());
                    self.figures.longest_start = self.figures.longest_start.max(started.elapsed());
                }
                self.judge(&shown);
            }
            let over = match (early, first) {
                (Some(early), _) => started.elapsed() >= early,
                (None, Some(first)) => first.elapsed() >= life,
                (None, None) => false,
            };
            if over {
                break;
            }
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended by itself with {status}:\n{}", daemon.log());
            }
            assert!(started.elapsed() < PATIENCE, "no answer:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.figures.killed_before_an_answer += u64::from(first.is_none());
        daemon.kill();
    }
}

/// Every lock and unlock of the journal: type, workspace, number.
fn turns(journal: &[Value]) -> Vec<(String, String, u64)> {
    let of = |record: &Value| {
        let event = record["type"].as_str()?;
        let told = ["workspace.locked", "workspace.opened"].contains(&event);
        let sequence = record["detail"]["sequence"].as_str()?.parse().ok()?;
        told.then(|| (event.to_owned(), record["workspace"].as_str().unwrap().to_owned(), sequence))
    };
    journal.iter().filter_map(of).collect()
}

/// At most one notice comes again after a crash, and none within one life; gives how many did.
fn at_most_one_a_crash(got: &[Got]) -> usize {
    let mut lives: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for one in got {
        lives.entry(&one.id).or_default().push(one.life);
    }
    let mut after: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (id, lives) in lives {
        for pair in lives.windows(2) {
            assert!(pair[0] < pair[1], "notice {id} came twice in one life of the daemon");
            after.entry(pair[1]).or_default().insert(id.to_owned());
        }
    }
    for (life, ids) in &after {
        assert!(ids.len() <= 1, "{} notices came again after one crash (before life {life}): {ids:?}", ids.len());
    }
    after.values().map(BTreeSet::len).sum()
}

/// Order per workspace is that of the numbers; a repeat counts where it came first.
fn assert_in_order(got: &[Got]) {
    for n in 0..KEYS {
        let mut seen = BTreeSet::new();
        let firsts: Vec<u64> = got
            .iter()
            .filter(|one| one.event.starts_with("workspace.") && one.workspaces.contains(&format!("ws_{n}")) && seen.insert(&one.id))
            .map(|one| one.sequence)
            .collect();
        assert!(firsts.is_sorted(), "ws_{n}: {firsts:?}");
    }
}

fn place(hook: u16) -> Place {
    let keys: String =
        (0..KEYS).map(|n| format!("[[keys]]\nid = \"k{n}\"\nprovider = \"local\"\nkey = \"k{n}\"\nworkspaces = [\"ws_{n}\"]\n")).collect();
    let mut place = Place::new(&format!(
        "{QUICK}{keys}[receivers.hook]\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{hook}/\"\nsecret = \"env:TEST_HOOK_SECRET\"\n\
         [[routes]]\nreceivers = [\"hook\"]\nseverity = \"info\"\n"
    ));
    place.env.push(("TEST_HOOK_SECRET".to_owned(), "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".to_owned()));
    place
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn nothing_is_lost_when_the_daemon_is_killed_again_and_again() {
    let (kills, seed) = (number("KILLS", 200), number("SEED", 20_261_125));
    let began = Instant::now();
    let life = Arc::new(AtomicU64::new(0));
    let receiver = Receiver::start(Arc::clone(&life));
    let place = place(receiver.port);
    let daemon = place.start();
    for n in 0..KEYS {
        daemon.wait_state(&format!("k{n}"), "active", PATIENCE);
    }
    daemon.kill();
    let keys = Keys::new(Draw(seed));
    let mut trial = Trial { place, keys, figures: Figures::default(), last: BTreeMap::new(), to_prove: Vec::new() };
    for n in 1..=kills {
        life.store(n, Ordering::SeqCst);
        trial.live();
    }
    let killing = began.elapsed();

    life.store(kills + 1, Ordering::SeqCst);
    for n in 0..KEYS {
        trial.place.kms().enable(&format!("k{n}"), now()).unwrap();
    }
    let daemon = trial.place.start();
    for n in 0..KEYS {
        daemon.wait_access(&format!("ws_{n}"), "open", Duration::from_secs(30));
    }
    daemon
        .wait("every notice is delivered", Duration::from_secs(60), || daemon.metric("cmek_outbox_depth{receiver=\"hook\"}") == Some(0.0));
    let journal = daemon.activity();
    daemon.stop();
    trial.place.good(&["journal", "verify"]);

    let told = turns(&journal);
    for (name, locked) in &trial.to_prove {
        let opened = told.iter().any(|(event, ws, number)| event == "workspace.opened" && ws == name && number > locked);
        assert!(opened, "{name} was locked at {locked} and then open, and the journal has no unlock");
    }
    for (ws, sequence) in &trial.figures.locked_times {
        // One that was shown before it was stored may be stored under a higher number after a kill.
        let first = told.iter().find(|(_, name, number)| name == ws && number >= sequence);
        let there = first.is_some_and(|(event, ..)| event == "workspace.locked");
        assert!(there, "{ws}: the lock {sequence} was shown, and the journal does not know of it");
    }
    let got = receiver.got.lock().unwrap().clone();
    let missing: Vec<_> = told
        .iter()
        .filter(|(event, ws, number)| !got.iter().any(|one| one.event == *event && one.sequence == *number && one.workspaces.contains(ws)))
        .collect();
    assert!(missing.is_empty(), "of {} locks and unlocks no notice came of: {missing:?}", told.len());
    let repeated = at_most_one_a_crash(&got);
    assert_in_order(&got);
    let locks = told.iter().filter(|(event, ..)| event == "workspace.locked").count();
    assert!(locks > 0 && (kills < 100 || trial.figures.locks_over_a_kill > 20), "nothing was tried: {:?}", trial.figures);
    let figures = &trial.figures;
    println!(
        "kill: {kills} kills in {killing:.0?} (seed {seed}), {} of them before an answer; {} changes of keys, {locks} locks and {} unlocks; \
         {} locks stood over a kill, {} were opened between two answers; longest to lock {:.1?}, longest start {:.1?}; \
         {} notices, {} repeated; {} journal records, whole",
        figures.killed_before_an_answer,
        trial.keys.changes,
        told.len() - locks,
        figures.locks_over_a_kill,
        figures.opened_between,
        figures.longest_to_lock,
        figures.longest_start,
        got.len(),
        repeated,
        journal.len(),
    );
}
