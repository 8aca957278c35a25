//! outside
//! Notices to PagerDuty Events v2: one incident per matter and workspace, opened by `trigger` and
//! ended by `resolve` under the same dedup key. A repeat of a notice changes no incident.

use reqwest::header::HeaderMap;
use serde_json::{Map, Value, json};
use std::time::Duration;

use crate::kms::BoxFuture;
use crate::notify::about::{Topic, closes, joined, matter, matters};
use crate::notify::post::{BadReceiver, Door};
use crate::notify::storm::Storm;
use crate::notify::{Delivery, Notice, Receiver, compose, render};
use crate::words::Severity;

const EVENTS: &str = "https://events.pagerduty.com/v2/enqueue";
/// Most workspaces that get an incident of their own; then one incident stands for all of them.
const MOST_INCIDENTS: usize = 20;
/// For all events of one notice together.
const DEADLINE: Duration = Duration::from_secs(30);
/// PagerDuty's own limits, in characters.
const DEDUP: usize = 255;
const SUMMARY: usize = 1024;

/// A PagerDuty service.
pub struct PagerDuty {
    door: Door,
    routing_key: String,
}

impl std::fmt::Debug for PagerDuty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PagerDuty(routing key hidden)")
    }
}

impl PagerDuty {
    /// `url` replaces the public address of Events v2.
    ///
    /// # Errors
    /// If the address or the routing key is malformed.
    pub fn new(routing_key: &str, url: Option<&str>) -> Result<Self, BadReceiver> {
        let routing_key = routing_key.trim();
        if routing_key.is_empty() || !routing_key.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(BadReceiver::RoutingKey);
        }
        Ok(Self { door: Door::new(url.unwrap_or(EVENTS))?, routing_key: routing_key.to_owned() })
    }

    async fn deliver(&self, notice: &Notice) -> Delivery {
        let all = async {
            for event in events(notice, &self.routing_key) {
                let Ok(body) = serde_json::to_vec(&event) else {
                    return Delivery::Refused { reason: "the notice cannot be written as JSON".to_owned() };
                };
                match self.door.post(HeaderMap::new(), body, crate::clock::now().wall).await {
                    Delivery::Delivered => {}
                    // The events sent before are sent again then; their dedup keys make that harmless.
                    stopped => return stopped,
                }
            }
            Delivery::Delivered
        };
        match tokio::time::timeout(DEADLINE, all).await {
            Ok(delivery) => delivery,
            Err(_) => Delivery::Retry { after: None, reason: "no answer in time".to_owned() },
        }
    }
}

/// The events of one notice. A message for many is one incident, under the name of its storm; it
/// is over when the last matter of the storm is.
fn events(notice: &Notice, routing_key: &str) -> Vec<Value> {
    let over = |key: &str| json!({"routing_key": routing_key, "event_action": "resolve", "dedup_key": fitting(key)});
    let storm_key = |storm: &Storm| format!("cmek/{}", storm.id);
    match &notice.storm {
        Some(storm) if !storm.members.is_empty() => {
            let mut events = Vec::new();
            if storm.members.iter().any(|member| !closes(member.event)) {
                events.push(event(notice, None, storm_key(storm), routing_key));
            }
            events.extend(storm.ends.iter().map(|matter| over(matter)));
            if storm.open == 0 && storm.members.iter().any(|member| closes(member.event)) {
                events.push(over(&storm_key(storm)));
            }
            events
        }
        Some(storm) => own_events(notice, routing_key).into_iter().chain([over(&storm_key(storm))]).collect(),
        None => own_events(notice, routing_key),
    }
}

fn own_events(notice: &Notice, routing_key: &str) -> Vec<Value> {
    let each = Topic::of(notice.event) == Topic::Access && (1..=MOST_INCIDENTS).contains(&notice.workspaces.len());
    let places: Vec<Option<&str>> =
        if each { notice.workspaces.iter().map(|workspace| Some(workspace.as_str())).collect() } else { vec![None] };
    places.into_iter().map(|place| event(notice, place, dedup_key(notice, place), routing_key)).collect()
}

fn event(notice: &Notice, place: Option<&str>, key: String, routing_key: &str) -> Value {
    let key = fitting(&key);
    if notice.acknowledged_by.is_some() {
        return json!({"routing_key": routing_key, "event_action": "acknowledge", "dedup_key": key});
    }
    if closes(notice.event) {
        return json!({"routing_key": routing_key, "event_action": "resolve", "dedup_key": key});
    }
    let severity = match notice.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    };
    let mut details = Map::new();
    details.insert("message".to_owned(), json!(render::message(notice)));
    if let Some(step) = &notice.next_step {
        details.insert("next step".to_owned(), json!(compose::one_line(step, 500)));
    }
    for (name, value) in render::facts_of(notice) {
        details.insert(name.to_lowercase(), json!(value));
    }
    details.insert(
        "seen".to_owned(),
        json!(notice.evidence.iter().take(8).map(|leg| compose::one_line(&compose::seen(leg), 300)).collect::<Vec<_>>()),
    );
    let (list, more) = render::list_of(notice, 30);
    if !list.is_empty() {
        details.insert("list".to_owned(), json!(list));
        details.insert("not in the list".to_owned(), json!(more));
    }
    details.insert("notice".to_owned(), json!(notice.id.0));
    let source =
        place.map(str::to_owned).or_else(|| notice.key.as_ref().map(ToString::to_string)).unwrap_or_else(|| "cmek-watchdog".to_owned());
    json!({
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": key,
        "payload": {
            "summary": compose::one_line(&compose::subject(notice), SUMMARY.saturating_sub(3)),
            "source": source,
            "severity": severity,
            "timestamp": notice.timestamp.to_string(),
            "component": notice.provider.as_ref().map(ToString::to_string),
            "class": notice.event.as_str(),
            "custom_details": details,
        },
    })
}

/// The name of the incident: of one workspace, or of the whole notice.
fn dedup_key(notice: &Notice, place: Option<&str>) -> String {
    match place {
        Some(place) => matter(notice, place),
        None if Topic::of(notice.event) == Topic::Access => matter(notice, &joined(notice)),
        None => matters(notice).into_iter().next().unwrap_or_default(),
    }
}

/// A name within PagerDuty's limit.
fn fitting(key: &str) -> String {
    if key.len() <= DEDUP {
        return key.to_owned();
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let topic = key.rsplit_once('/').map_or("cmek", |(topic, _)| topic);
    if topic.len() < DEDUP.saturating_sub(hex.len()) { format!("{topic}/{hex}") } else { format!("cmek/{hex}") }
}

impl Receiver for PagerDuty {
    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Delivery> {
        Box::pin(self.deliver(notice))
    }
    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.door.reach())
    }
}

#[cfg(test)]
mod tests;
