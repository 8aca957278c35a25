//! The generated parts of the documents: what the state machine does and what the default policy
//! says, told by the code that acts. With `BLESS=1` in the environment the documents are written
//! instead of compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cmek_watchdog::lifecycle::{self, Again, Did, Finding, KeyState, lock, step};
use cmek_watchdog::policy::{Policy, Settable, default_confirmations, lock_bound, settable};
use cmek_watchdog::time::{Mono, Now, Span, Wall};
use cmek_watchdog::verdict::{Direction, Refused, Stated, Verdict};
use cmek_watchdog::words::{Access, Cause, FailureKind, Sequence};

/// Two parts stand in one file and the tests run side by side: a write under way must not be read.
static WRITING: Mutex<()> = Mutex::new(());

/// The part of `file` between the two marks of `name` is `text`.
fn hold(file: &str, name: &str, text: &str) {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let whole = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), format!("<!-- end: {name} -->\n"));
    let (head, rest) = whole.split_once(&begin).unwrap_or_else(|| panic!("{file} has no mark {begin}"));
    let (old, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("{file} has no mark {end}"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, format!("{head}{begin}{text}{end}{tail}")).unwrap();
    } else {
        assert_eq!(old, text, "{file}: the part `{name}` is not what the code does; run BLESS=1 cargo test --test docs");
    }
}

fn at(secs: u64) -> Now {
    Now { mono: Mono((1 << 41) + secs * 1000), wall: Wall(1_764_000_000_000 + i64::try_from(secs).unwrap() * 1000) }
}

fn refused(kind: FailureKind, stated: Stated, direction: Direction) -> Verdict {
    Verdict::Refused(Refused { kind, stated, direction, weak: false })
}

/// What one look can say, in the words of the document.
fn looks() -> Vec<(&'static str, Verdict)> {
    use FailureKind::*;
    vec![
        ("good, every leg", Verdict::Good { complete: true, warned: None }),
        ("good, a leg missing", Verdict::Good { complete: false, warned: None }),
        ("good, but describe says `disabled`", Verdict::Good { complete: false, warned: Some(Disabled) }),
        ("unwrap refused: `disabled`, stated by both", refused(Disabled, Stated::Both, Direction::Unwrap)),
        ("unwrap refused: `disabled`, stated alone", refused(Disabled, Stated::Alone, Direction::Unwrap)),
        ("unwrap refused: `access_denied`", refused(AccessDenied, Stated::No, Direction::Unwrap)),
        ("unwrap refused: `destroyed`, not stated", refused(Destroyed, Stated::No, Direction::Unwrap)),
        ("unwrap refused: `expired`", refused(Expired, Stated::No, Direction::Unwrap)),
        ("wrap alone refused: `access_denied`", refused(AccessDenied, Stated::No, Direction::Wrap)),
        ("other bytes, a fresh canary too: `corrupt`", refused(Corrupt, Stated::No, Direction::Bytes)),
        ("an older version lost: `disabled`", refused(Disabled, Stated::Alone, Direction::Version)),
        ("withheld: `network_blocked`", Verdict::Unsure { kind: NetworkBlocked, direction: Direction::Unwrap, vouched: true }),
        ("doubt: `throttled`, `timeout`, ...", Verdict::Unsure { kind: Throttled, direction: Direction::Unwrap, vouched: true }),
    ]
}

fn finding() -> Finding {
    Finding {
        cause: Cause::Kind(FailureKind::Disabled),
        kind: FailureKind::Disabled,
        access: Access::Locked,
        direction: Direction::Unwrap,
        stated: Stated::Both,
    }
}

/// One example of each state as it arises at second 0, and the second of the next look.
fn states(policy: &Policy) -> Vec<(&'static str, KeyState, u64)> {
    let disabled = refused(FailureKind::Disabled, Stated::Both, Direction::Unwrap);
    let good = Verdict::Good { complete: true, warned: None };
    let suspect = step(KeyState::Active, &disabled, at(0), policy, false).state;
    let revoked = lock(suspect.clone(), finding(), Some(Sequence(7)));
    let recovering = step(revoked.clone(), &good, at(0), policy, false).state;
    let lost = Finding { cause: Cause::VersionLost, access: Access::Open, direction: Direction::Version, ..finding() };
    vec![
        ("unproven", KeyState::Unproven, 60),
        ("active", KeyState::Active, 60),
        ("impaired", KeyState::Impaired { finding: lost }, 60),
        ("suspect", suspect, 5),
        ("revoked", revoked, 300),
        ("recovering", recovering, 30),
        ("retired", KeyState::Retired, 60),
    ]
}

fn told(did: &Did) -> String {
    match did {
        Did::Nothing => String::new(),
        Did::Proven => "proven".into(),
        Did::Suspected(_) => "suspicion begins".into(),
        Did::Cleared => "suspicion ends".into(),
        Did::Propose(finding) => format!("**{}** (`{}`)", finding.access, finding.cause),
        Did::HeldByPolicy(_) => "held by the policy, told".into(),
        Did::Flapping(_) => "told as flapping".into(),
        Did::Impaired(_) => "told as impaired".into(),
        Did::Healed => "healed".into(),
        Did::Changed(finding) => format!("cause is now `{}`", finding.kind),
        Did::Recovering => "first good round".into(),
        Did::Relapsed => "the count starts again".into(),
        Did::ProposeUnlock => "**open**".into(),
        Did::AwaitsApproval => "waits for approval".into(),
    }
}

fn cell(step: &lifecycle::Step) -> String {
    let again = match step.again {
        Again::Grid => String::new(),
        Again::In(span) => format!(" ({span})"),
    };
    let did = told(&step.did);
    let dash = if did.is_empty() { "" } else { ": " };
    format!("{}{dash}{did}{again}", step.state.word())
}

#[test]
fn the_table_of_states_is_what_one_look_does() {
    let policy = Policy::default();
    let states = states(&policy);
    let mut text = String::from("| one look |");
    states.iter().for_each(|(name, ..)| write!(text, " {name} |").unwrap());
    text.push_str("\n| --- |");
    states.iter().for_each(|_| text.push_str(" --- |"));
    text.push('\n');
    for (look, verdict) in looks() {
        write!(text, "| {look} |").unwrap();
        for (name, state, when) in &states {
            assert_eq!(state.word().as_str(), *name);
            write!(text, " {} |", cell(&step(state.clone(), &verdict, at(*when), &policy, false))).unwrap();
        }
        text.push('\n');
    }
    hold("docs/lifecycle.md", "one look", &text);
}

/// The same look again and again, at the moments that the machine asks for: what it leads to, at
/// which look and after how long.
fn drive(mut state: KeyState, verdict: &Verdict, policy: &Policy) -> String {
    let (mut now, mut said) = (at(1000), vec![]);
    let begun = now.mono;
    for look in 1..=20u32 {
        let next = step(state.clone(), verdict, now, policy, false);
        let after = now.mono.since(begun);
        if !matches!(next.did, Did::Nothing | Did::Suspected(_)) {
            said.push(format!("look {look}, {after}: {}", told(&next.did)));
        }
        if matches!(next.did, Did::Propose(_) | Did::ProposeUnlock | Did::Cleared | Did::Flapping(_)) {
            break;
        }
        let wait = match next.again {
            Again::Grid => policy.probe_interval,
            Again::In(span) => span,
        };
        now = Now { mono: now.mono.plus(wait), wall: now.wall.plus(wait) };
        state = next.state;
    }
    if said.is_empty() { format!("stays {}", state.word()) } else { said.join("; ") }
}

#[test]
fn the_table_of_repeated_looks_is_what_they_lead_to() {
    let policy = Policy::default();
    let mut text = String::from("| the same look, again and again | from `active` | from `revoked` |\n| --- | --- | --- |\n");
    let disabled = refused(FailureKind::Disabled, Stated::Both, Direction::Unwrap);
    let suspect = step(KeyState::Active, &disabled, at(0), &policy, false).state;
    let revoked = lock(suspect.clone(), finding(), Some(Sequence(7)));
    for (look, verdict) in looks() {
        let from_active = drive(KeyState::Active, &verdict, &policy);
        writeln!(text, "| {look} | {from_active} | {} |", drive(revoked.clone(), &verdict, &policy)).unwrap();
    }
    let good = Verdict::Good { complete: true, warned: None };
    writeln!(text, "\nFrom `suspect`, good looks: {}.", drive(suspect, &good, &policy)).unwrap();
    hold("docs/lifecycle.md", "repeated looks", &text);
}

fn access(access: Option<Access>) -> &'static str {
    access.map_or("hold", Access::as_str)
}

#[test]
fn the_policy_table_is_the_one_that_acts() {
    let policy = Policy::default();
    let rows = default_confirmations();
    let mut text = String::from(
        "| kind | looks | of | over | access | promised time to lock | may be set |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for kind in FailureKind::ALL {
        let may = match settable(*kind) {
            Settable::Freely => "freely",
            Settable::Slowly => "to lock only with `over` of 10 min or more",
            Settable::HoldOnly => "only to `hold`",
        };
        let bound = lock_bound(&policy, *kind).map_or_else(|| "-".to_owned(), |span: Span| format!("{} s", span.0 / 1000));
        let (looks, of, over, level) = rows.get(kind).map_or_else(
            || ("-".into(), "-".into(), "-".into(), "hold"),
            |row| (row.looks.to_string(), row.of.to_string(), row.over.to_string(), access(row.access)),
        );
        writeln!(text, "| `{kind}` | {looks} | {of} | {over} | {level} | {bound} | {may} |").unwrap();
    }
    let alone = policy.stated_alone;
    writeln!(text, "\n`stated_alone`: {} of {} over {}.", alone.looks, alone.of, alone.over).unwrap();
    hold("docs/CONFIGURATION.md", "default policy", &text);
}
