//! outside
//! Notices as alerts of Alertmanager's v2 API: one alert per workspace, ended by the notice that
//! ends the matter. Labels come from the type alone, so that the end always meets its beginning.

use reqwest::header::HeaderMap;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::kms::BoxFuture;
use crate::notify::about::{Topic, closes, severity_of};
use crate::notify::post::{BadReceiver, Door};
use crate::notify::{Delivery, Notice, Receiver, compose, render};
use crate::time::{Span, Wall};
use crate::words::EventType;

/// An alert stays up so long unless its end comes: the watchdog being down opens no lock.
const STAYS: Span = Span::from_days(7);
/// An event that has no end (a rotation) is shown so long.
const PASSES: Span = Span::from_hours(1);
/// For all posts of one notice together.
const DEADLINE: Duration = Duration::from_secs(30);
/// Most alerts in one post, and most workspaces that get an alert of their own in one post; then one alert stands for all.
const MOST_ALERTS: usize = 500;

/// Alertmanager at one address.
#[derive(Debug)]
pub struct Alertmanager {
    door: Door,
}

#[derive(Serialize, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: Wall,
    ends_at: Wall,
}

impl Alertmanager {
    /// `url` is Alertmanager's root; a path before `/api/v2/alerts` (a route prefix) is kept.
    ///
    /// # Errors
    /// If the address is malformed.
    pub fn new(url: &str) -> Result<Self, BadReceiver> {
        let door = Door::new(url)?;
        let root = door.path().trim_end_matches('/').trim_end_matches("/api/v2/alerts").to_owned();
        Ok(Self { door: door.with_path(&format!("{root}/api/v2/alerts")) })
    }

    async fn deliver(&self, notice: &Notice) -> Delivery {
        let all = async {
            for part in all_alerts(notice).chunks(MOST_ALERTS) {
                let Ok(body) = serde_json::to_vec(part) else {
                    return Delivery::Refused { reason: "the notice cannot be written as JSON".to_owned() };
                };
                match self.door.post(HeaderMap::new(), body, crate::clock::now().wall).await {
                    Delivery::Delivered => {}
                    // What was sent before is sent again then; the same alert is only refreshed.
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

/// A message for many carries the alerts of each of its members: they must end one by one. Of the same
/// alert the last word counts.
fn all_alerts(notice: &Notice) -> Vec<Alert> {
    let members = notice.storm.as_ref().map(|storm| storm.members.as_slice()).unwrap_or_default();
    if members.is_empty() {
        return alerts(notice);
    }
    let mut last: BTreeMap<BTreeMap<&'static str, String>, Alert> = BTreeMap::new();
    for alert in members.iter().flat_map(|member| alerts(member)) {
        last.insert(alert.labels.clone(), alert);
    }
    last.into_values().collect()
}

/// The alerts of one notice: the one it opens, and the end of every other one of its matter.
fn alerts(notice: &Notice) -> Vec<Alert> {
    let topic = Topic::of(notice.event);
    let (start, at) = (notice.since.unwrap_or(notice.timestamp), notice.timestamp);
    let start = start.min(at);
    let mut found = Vec::new();
    for workspace in places(notice) {
        for event in topic.openers().iter().filter(|event| **event != notice.event) {
            found.push(alert(notice, *event, workspace, start, at));
        }
        if !closes(notice.event) {
            let lasts = if topic == Topic::Single { PASSES } else { STAYS };
            found.push(alert(notice, notice.event, workspace, start, at.plus(lasts)));
        }
    }
    found
}

/// Each workspace, or one place for none or too many.
fn places(notice: &Notice) -> Vec<Option<&str>> {
    if notice.workspaces.is_empty() || notice.workspaces.len() > MOST_ALERTS {
        return vec![None];
    }
    notice.workspaces.iter().map(|workspace| Some(workspace.as_str())).collect()
}

fn alert(notice: &Notice, event: EventType, workspace: Option<&str>, starts_at: Wall, ends_at: Wall) -> Alert {
    let mut labels = BTreeMap::from([
        ("alertname", alert_name(event, notice.drill)),
        ("severity", severity_of(event).as_str().to_owned()),
        ("type", event.as_str().to_owned()),
    ]);
    // An order on a workspace may be lifted by another key or hand than the one that gave it.
    let by_key = Topic::of(event) != Topic::Access;
    let optional = [
        ("key", notice.key.as_ref().filter(|_| by_key).map(ToString::to_string)),
        ("provider", notice.provider.as_ref().filter(|_| by_key).map(ToString::to_string)),
        ("workspace", workspace.map(str::to_owned)),
        ("drill", notice.drill.then(|| "true".to_owned())),
    ];
    labels.extend(optional.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))));
    let texts = [
        ("summary", Some(compose::subject(notice))),
        ("description", Some(render::message(notice))),
        ("next_step", notice.next_step.as_deref().map(|step| compose::one_line(step, 500))),
        ("notice", Some(notice.id.0.to_string())),
        ("key", notice.key.as_ref().map(ToString::to_string)),
        ("key_ref", notice.key_ref.as_deref().map(|text| compose::one_line(text, 300))),
        ("owner", notice.owner.as_deref().map(|text| compose::one_line(text, 300))),
    ];
    let annotations = texts.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))).collect();
    Alert { labels, annotations, starts_at, ends_at }
}

/// `workspace.read_only` -> `CmekWorkspaceReadOnly`; a drill is named so that no route takes it for real.
fn alert_name(event: EventType, drill: bool) -> String {
    let words = event.as_str().split(['.', '_']).map(|word| {
        let mut chars = word.chars();
        chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
    });
    let name: String = words.collect();
    if drill { format!("DrillCmek{name}") } else { format!("Cmek{name}") }
}

impl Receiver for Alertmanager {
    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Delivery> {
        Box::pin(self.deliver(notice))
    }
    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.door.reach())
    }
}

#[cfg(test)]
mod tests;
