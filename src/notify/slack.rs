//! outside
//! Notices to a Slack incoming webhook as Block Kit, within its limits of characters and blocks.
//! Everything is escaped, so that a name can never become a mention or a link; the address is the
//! secret and may never be shown.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::kms::BoxFuture;
use crate::notify::about::closes;
use crate::notify::post::{BadReceiver, Door};
use crate::notify::{Delivery, Notice, Receiver, compose, render};
use crate::words::Severity;

/// Slack's own limits, in characters.
const HEADER: usize = 150;
const SECTION: usize = 3000;
const FIELD: usize = 2000;
const FIELDS: usize = 10;
/// Lines of the list of a message for many; 140 characters each stay under a section's limit.
const LINES: usize = 20;

/// A Slack channel behind an incoming webhook.
#[derive(Debug)]
pub struct Slack {
    door: Door,
}

impl Slack {
    /// # Errors
    /// If the address is malformed.
    pub fn new(url: &str) -> Result<Self, BadReceiver> {
        Ok(Self { door: Door::new(url)? })
    }

    async fn deliver(&self, notice: &Notice) -> Delivery {
        match serde_json::to_vec(&payload(notice)) {
            Ok(body) => self.door.post(HeaderMap::new(), body, crate::clock::now().wall).await,
            Err(_) => Delivery::Refused { reason: "the notice cannot be written as JSON".to_owned() },
        }
    }
}

/// The whole message: text for notifications, blocks for the channel.
#[must_use]
pub fn payload(notice: &Notice) -> Value {
    let subject = compose::subject(notice);
    let mark = if closes(notice.event) {
        ":large_green_circle:"
    } else {
        match notice.severity {
            Severity::Info => ":large_blue_circle:",
            Severity::Warning => ":large_yellow_circle:",
            Severity::Critical => ":red_circle:",
        }
    };
    let mut blocks = vec![
        json!({"type": "header", "text": {"type": "plain_text", "text": cut(&subject, HEADER), "emoji": false}}),
        section(&format!("{mark} {}", escaped(&render::message(notice), SECTION.saturating_sub(40)))),
    ];
    if let Some(step) = &notice.next_step {
        blocks.push(section(&format!("*What to do next*\n{}", escaped(&compose::one_line(step, 500), SECTION.saturating_sub(40)))));
    }
    let (list, more) = render::list_of(notice, LINES);
    if !list.is_empty() {
        let mut lines = list.iter().map(|line| escaped(line, 140)).collect::<Vec<_>>();
        lines.extend((more > 0).then(|| format!("and {more} more")));
        blocks.push(section(&lines.join("\n")));
    }
    let facts: Vec<Value> = render::facts_of(notice)
        .iter()
        .map(|(name, value)| json!({"type": "mrkdwn", "text": format!("*{name}*\n{}", escaped(value, FIELD.saturating_sub(40)))}))
        .collect();
    for fields in facts.chunks(FIELDS) {
        blocks.push(json!({"type": "section", "fields": fields}));
    }
    if !notice.evidence.is_empty() {
        let lines: Vec<String> =
            notice.evidence.iter().take(8).map(|leg| escaped(&compose::one_line(&compose::seen(leg), 200), 300)).collect();
        blocks.push(section(&format!("*What was seen*\n{}", lines.join("\n"))));
    }
    let foot = format!("Notice {} ({}) at {}", compose::one_line(&notice.id.0, 200), notice.event, notice.timestamp);
    blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": escaped(&foot, 500)}]}));
    json!({"text": escaped(&subject, 300), "blocks": blocks})
}

fn section(text: &str) -> Value {
    json!({"type": "section", "text": {"type": "mrkdwn", "text": text}})
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { compose::one_line(text, most.saturating_sub(3)) }
}

/// Slack's three escapes; cut by the escaped length, never inside an escape.
fn escaped(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut length = 0_usize;
    for c in text.chars() {
        let piece = match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            // Would make bold or code of a part of a name.
            '`' => "'".to_owned(),
            other => other.to_string(),
        };
        length = length.saturating_add(piece.chars().count());
        if length > most.saturating_sub(3) {
            out.push_str("...");
            return out;
        }
        out.push_str(&piece);
    }
    out
}

impl Receiver for Slack {
    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Delivery> {
        Box::pin(self.deliver(notice))
    }
    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.door.reach())
    }
}

#[cfg(test)]
mod tests;
