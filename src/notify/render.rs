//! outside
//! A notice as text for people: the compiled-in templates and the values they may use.
//! Every value is one cleaned line, so that no template has to guard itself; HTML is escaped by the
//! template engine. It must never fetch or link to anything remote.

use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use std::sync::OnceLock;

use crate::notify::Notice;
pub use crate::notify::body::message;

use crate::notify::about::closes;
use crate::notify::compose::{loudness, one_line, seen, subject};
use crate::notify::storm::listed;
use crate::time::Wall;
use crate::words::{Access, LegOutcome};

/// Longest list of names in one message; the rest is counted.
const MOST_NAMES: usize = 25;
/// Most lines of the list of one message.
const MOST_LINES: usize = 50;

/// A template that cannot be rendered. Names the template, never a value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("template {template} cannot be rendered: {why}")]
pub struct BadTemplate {
    pub template: &'static str,
    pub why: String,
}

/// What a template sees.
#[derive(Serialize, Debug)]
struct Page {
    subject: String,
    drill: bool,
    severity: &'static str,
    loudness: &'static str,
    /// Whether this tells of an end.
    good: bool,
    message: String,
    next_step: Option<String>,
    /// Name and value, in the order in which they are read.
    facts: Vec<Fact>,
    seen: Vec<Seen>,
    /// Of a message for many: a line each, the most severe first, and how many are left out.
    list: Vec<String>,
    more: usize,
    event: &'static str,
    sequence: u64,
    id: String,
    at: String,
}

#[derive(Serialize, Debug)]
struct Fact {
    name: &'static str,
    /// `name` and a colon, filled up with blanks to one width.
    padded: String,
    value: String,
}

#[derive(Serialize, Debug)]
struct Seen {
    line: String,
    message: Option<String>,
    failed: bool,
}

impl Page {
    fn of(notice: &Notice) -> Self {
        let seen = |leg: &crate::probe::LegResult| Seen {
            line: one_line(&seen(leg), 300),
            message: leg.message.as_deref().map(|text| one_line(text, 500)),
            failed: leg.outcome == LegOutcome::Failed,
        };
        let (list, more) = list_of(notice, MOST_LINES);
        Self {
            list,
            more,
            subject: subject(notice),
            drill: notice.drill,
            severity: notice.severity.as_str(),
            loudness: loudness(notice.severity),
            good: closes(notice.event),
            message: message(notice),
            next_step: notice.next_step.as_deref().map(|step| one_line(step, 500)),
            facts: facts(notice),
            seen: notice.evidence.iter().take(MOST_NAMES).map(seen).collect(),
            event: notice.event.as_str(),
            sequence: notice.sequence.0,
            id: one_line(&notice.id.0, 200),
            at: time(notice.timestamp),
        }
    }
}

/// What a message for many stands for: a line each, the most severe first, and how many are left out.
pub(crate) fn list_of(notice: &Notice, most: usize) -> (Vec<String>, usize) {
    let members = notice.storm.as_ref().map(|storm| storm.members.as_slice()).unwrap_or_default();
    let all = listed(members);
    let line = |one: &&std::sync::Arc<Notice>| one_line(&subject(one), 200).replace("[cmek]", "");
    (all.iter().take(most).map(line).collect(), all.len().saturating_sub(most))
}

/// The facts that are known, named for people.
pub(crate) fn facts_of(notice: &Notice) -> Vec<(&'static str, String)> {
    let line = |text: &str| one_line(text, 300);
    let workspaces: Vec<String> = notice.workspaces.iter().map(ToString::to_string).collect();
    let access = notice.access.map(|access| match notice.previous_access.filter(|before| *before != access) {
        Some(before) => format!("{} (before: {})", access_word(access), access_word(before)),
        None => access_word(access).to_owned(),
    });
    let undo = if notice.terminal {
        Some("no, this key cannot be brought back".to_owned())
    } else {
        notice.recoverable_until.map(|until| format!("until {}", time(until)))
    };
    let cause = notice.cause.map(|cause| match notice.code {
        Some(code) => format!("{cause} ({code})"),
        None => cause.to_string(),
    });
    [
        ("Workspaces", (!workspaces.is_empty()).then(|| names(&workspaces))),
        ("Access now", access),
        ("Not usable now", (!notice.locked_features.is_empty()).then(|| names(&notice.locked_features))),
        ("Stays usable", (!notice.readable_features.is_empty()).then(|| names(&notice.readable_features))),
        ("Can be undone", undo),
        ("Key", notice.key.as_ref().map(ToString::to_string)),
        ("Provider's name", notice.key_ref.as_deref().map(line)),
        ("Key version", notice.version.as_ref().map(|version| line(version.as_str()))),
        ("Owner", notice.owner.as_deref().map(line)),
        ("Provider", notice.provider.as_ref().map(ToString::to_string)),
        ("Since", notice.since.map(time)),
        ("Done by", notice.actor.as_deref().map(line)),
        ("Cause", cause),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.map(|value| (name, value)))
    .collect()
}

fn facts(notice: &Notice) -> Vec<Fact> {
    let fact = |(name, value)| Fact { name, padded: format!("{:<18}", format!("{name}:")), value };
    facts_of(notice).into_iter().map(fact).collect()
}

fn names(all: &[String]) -> String {
    let shown = all.iter().take(MOST_NAMES).map(|name| one_line(name, 128)).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MOST_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `2026-11-25 07:46:00 UTC`.
fn time(wall: Wall) -> String {
    let text = wall.to_string();
    let seconds = text.split_once('.').map_or(text.as_str(), |(seconds, _)| seconds);
    format!("{} UTC", seconds.replace('T', " "))
}

const fn access_word(access: Access) -> &'static str {
    match access {
        Access::Open => "open",
        Access::ReadOnly => "read-only",
        Access::Locked => "locked",
    }
}

fn templates() -> Result<Environment<'static>, minijinja::Error> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_keep_trailing_newline(true);
    env.add_template(TEXT, include_str!("templates/notice.txt"))?;
    env.add_template(HTML, include_str!("templates/notice.html"))?;
    Ok(env)
}

const TEXT: &str = "notice.txt";
const HTML: &str = "notice.html";

fn render(template: &'static str, notice: &Notice) -> Result<String, BadTemplate> {
    static TEMPLATES: OnceLock<Result<Environment<'static>, String>> = OnceLock::new();
    let bad = |why: String| BadTemplate { template, why };
    let env = TEMPLATES.get_or_init(|| templates().map_err(|error| error.to_string())).as_ref().map_err(|why| bad(why.clone()))?;
    env.get_template(template).and_then(|found| found.render(Page::of(notice))).map_err(|error| bad(error.to_string()))
}

/// Plain text, lines of mostly under 100 characters.
///
/// # Errors
/// If the template is broken.
pub fn text(notice: &Notice) -> Result<String, BadTemplate> {
    render(TEXT, notice)
}

/// A whole HTML page with inline styles only.
///
/// # Errors
/// If the template is broken.
pub fn html(notice: &Notice) -> Result<String, BadTemplate> {
    render(HTML, notice)
}

#[cfg(test)]
mod tests;
