//! inside
//! Receivers, routes and reports. It must never keep a secret or show an address that
//! counts as one.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::DeValue;

use super::keys::unknown_reference;
use super::providers::word_of;
use crate::config::raw::{self, Text};
use crate::config::sheet::Sheet;
use crate::config::values;
use crate::config::{
    Escalate, Match, NotifyConfig, Provider, Quiet, ReceiverConfig, ReceiverDetail, Report, Route, SecretRef, SmtpSecurity, UrlRef,
};
use crate::key::{ProviderId, ReceiverId};
use crate::notify::storm::Pace;
use crate::time::Span;
use crate::words::{EventType, Severity};

type Receivers = BTreeMap<ReceiverId, ReceiverConfig>;
type Providers = BTreeMap<ProviderId, Provider>;

#[derive(Clone, Copy)]
enum Kind {
    Email,
    Webhook,
    Slack,
    PagerDuty,
    Alertmanager,
}

const KINDS: [(&str, Kind); 5] = [
    ("email", Kind::Email),
    ("webhook", Kind::Webhook),
    ("slack", Kind::Slack),
    ("pagerduty", Kind::PagerDuty),
    ("alertmanager", Kind::Alertmanager),
];

/// Every receiver of the file that could be read.
pub fn receivers(sheet: &mut Sheet<'_>) -> Receivers {
    let mut receivers = BTreeMap::new();
    for (name, value) in sheet.entries("receivers") {
        let id = sheet.name::<ReceiverId>(&name);
        let Some(kind) = word_of(sheet, &value, "kind", &KINDS) else { continue };
        let detail = detail(sheet, kind, &value);
        if let (Some(id), Some(detail)) = (id, detail) {
            receivers.insert(id.clone(), ReceiverConfig { id, detail, fallback: None });
        }
    }
    fallbacks(sheet, &mut receivers);
    receivers
}

/// The receivers that stand in for others. A receiver cannot stand in for itself.
fn fallbacks(sheet: &mut Sheet<'_>, receivers: &mut Receivers) {
    let known = receiver_names(sheet);
    for (name, value) in sheet.entries("receivers") {
        let table = value.get_ref().as_table();
        let Some(field) = table.and_then(|table| table.get("fallback")) else { continue };
        let Some(text) = field.get_ref().as_str() else { continue };
        let text = Spanned::new(field.span(), text.to_owned());
        if text.get_ref() == name.get_ref() {
            sheet.error(text.span(), "a receiver cannot be its own fallback");
            continue;
        }
        let one = Spanned::new(text.span(), vec![text.clone()]);
        let found = named(sheet, &one, receivers, &known).pop();
        if let Some(receiver) = receivers.get_mut(name.get_ref().as_str()) {
            receiver.fallback = found;
        }
    }
}

fn detail<'a>(sheet: &mut Sheet<'a>, kind: Kind, value: &Spanned<DeValue<'a>>) -> Option<ReceiverDetail> {
    match kind {
        Kind::Email => sheet.read::<raw::Email>(value).and_then(|raw| email(sheet, raw)),
        Kind::Webhook => {
            let raw: raw::Webhook = sheet.read(value)?;
            let (url, secret) = (url(sheet, &raw.url), secret(sheet, &raw.secret));
            Some(ReceiverDetail::Webhook { url: url?, secret: secret? })
        }
        Kind::Slack => {
            let raw: raw::Slack = sheet.read(value)?;
            Some(ReceiverDetail::Slack { url: url(sheet, &raw.url)? })
        }
        Kind::PagerDuty => {
            let raw: raw::PagerDuty = sheet.read(value)?;
            let url = raw.url.as_ref().and_then(|text| url(sheet, text));
            Some(ReceiverDetail::PagerDuty { routing_key: secret(sheet, &raw.routing_key)?, url })
        }
        Kind::Alertmanager => {
            let raw: raw::Alertmanager = sheet.read(value)?;
            Some(ReceiverDetail::Alertmanager { url: url(sheet, &raw.url)? })
        }
    }
}

fn email(sheet: &mut Sheet<'_>, raw: raw::Email) -> Option<ReceiverDetail> {
    let smtp = note(sheet, &raw.smtp, values::smtp(raw.smtp.get_ref()));
    let from = note(sheet, &raw.from, values::mail(raw.from.get_ref()));
    let to: Vec<String> = raw.to.get_ref().iter().filter_map(|text| note(sheet, text, values::mail(text.get_ref()))).collect();
    if raw.to.get_ref().is_empty() {
        sheet.error(raw.to.span(), "expected at least one mail address");
    }
    let password = raw.password.as_ref().and_then(|text| secret(sheet, text));
    match (&raw.username, &raw.password) {
        (Some(username), None) => sheet.error(username.span(), "a username needs a password"),
        (None, Some(password)) => sheet.error(password.span(), "a password needs a username"),
        (Some(_), Some(_)) | (None, None) => {}
    }
    let (security, host, port) = smtp?;
    if security == SmtpSecurity::Plain && raw.password.is_some() && !values::is_loopback(&host) {
        sheet.warn(&raw.smtp.span(), "the password would travel unencrypted; use smtp+starttls:// or smtps://");
    }
    Some(ReceiverDetail::Email {
        security,
        host,
        port,
        from: from?,
        to,
        username: raw.username.map(Spanned::into_inner),
        password,
        ca_file: raw.ca_file.as_ref().and_then(|text| sheet.path(text)),
    })
}

/// A secret reference; a fault is noted without the text.
pub fn secret(sheet: &mut Sheet<'_>, text: &Text) -> Option<SecretRef> {
    let found = values::secret_ref(text.get_ref(), sheet.base_dir());
    note(sheet, text, found)
}

pub fn url(sheet: &mut Sheet<'_>, text: &Text) -> Option<UrlRef> {
    let found = values::url_ref(text.get_ref(), sheet.base_dir());
    note(sheet, text, found)
}

pub(super) fn note<T>(sheet: &mut Sheet<'_>, text: &Text, found: Result<T, values::BadText>) -> Option<T> {
    found.map_err(|why| sheet.error(text.span(), why.to_string())).ok()
}

/// Receivers by name; unknown ones are noted.
fn named(sheet: &mut Sheet<'_>, texts: &Spanned<Vec<Text>>, receivers: &Receivers, known: &BTreeSet<String>) -> Vec<ReceiverId> {
    if texts.get_ref().is_empty() {
        sheet.error(texts.span(), "expected at least one receiver");
    }
    let mut found: Vec<ReceiverId> = Vec::new();
    for text in texts.get_ref() {
        match receivers.get_key_value(text.get_ref().as_str()) {
            Some((id, _)) if found.contains(id) => {}
            Some((id, _)) => found.push(id.clone()),
            // A receiver that is there but faulty has had its own error.
            None if known.contains(text.get_ref()) => {}
            None => {
                let names: Vec<&str> = known.iter().map(String::as_str).collect();
                sheet.error(text.span(), unknown_reference("receiver", text.get_ref(), &names));
            }
        }
    }
    found
}

fn receiver_names(sheet: &Sheet<'_>) -> BTreeSet<String> {
    let table = sheet.root().get("receivers").and_then(|value| value.get_ref().as_table());
    table.map(|table| table.keys().map(|key| key.get_ref().to_string()).collect()).unwrap_or_default()
}

/// Routes in the order of the file.
pub fn routes(sheet: &mut Sheet<'_>, receivers: &Receivers, providers: &Providers) -> Vec<Route> {
    let known = receiver_names(sheet);
    let severities: Vec<(&str, Severity)> = Severity::ALL.iter().map(|severity| (severity.as_str(), *severity)).collect();
    let mut routes = Vec::new();
    for element in sheet.elements("routes") {
        let Some(raw) = sheet.read::<raw::Route>(&element) else { continue };
        let receivers = named(sheet, &raw.receivers, receivers, &known);
        let severity = raw.severity.as_ref().and_then(|text| sheet.choice(text, &severities)).unwrap_or(Severity::Warning);
        if let Some(text) = &raw.matching.provider
            && !text.get_ref().contains('*')
            && !providers.contains_key(text.get_ref().as_str())
        {
            let names: Vec<&str> = providers.keys().map(ProviderId::as_str).collect();
            sheet.error(text.span(), unknown_reference("provider", text.get_ref(), &names));
        }
        let text = |text: Option<Text>| text.map(Spanned::into_inner);
        if let Some(kind) = &raw.matching.kind
            && !EventType::ALL.iter().any(|event| crate::config::route::fits(kind.get_ref(), event.as_str()))
        {
            sheet.error(kind.span(), "no notice has this type; expected one such as \"key.revoked\", or a pattern such as \"key.*\"");
        }
        let matching = Match {
            provider: text(raw.matching.provider),
            owner: text(raw.matching.owner),
            workspace: text(raw.matching.workspace),
            key: text(raw.matching.key),
            kind: text(raw.matching.kind),
        };
        routes.push(Route { receivers, severity, matching });
    }
    routes
}

/// How people are told, whatever the receiver.
pub fn notify(sheet: &mut Sheet<'_>, receivers: &Receivers) -> NotifyConfig {
    let raw: raw::Notify = sheet.section("notify");
    let known = receiver_names(sheet);
    let default = Pace::default();
    let within =
        |sheet: &mut Sheet<'_>, text: Option<Text>| text.and_then(|text| sheet.span_within(&text, Span::from_secs(1), Span::from_hours(1)));
    let pace = Pace {
        above: raw.group_above.and_then(|n| sheet.int(&n, 2, 1000)).unwrap_or(default.above),
        within: within(sheet, raw.group_within).unwrap_or(default.within),
        every: within(sheet, raw.group_every).unwrap_or(default.every),
        per_hour: raw.per_hour.and_then(|n| sheet.int(&n, 10, 10_000)).unwrap_or(default.per_hour),
    };
    let quiet = raw.quiet.and_then(|raw| {
        let (from, to) = (clock(sheet, &raw.from), clock(sheet, &raw.to));
        let timezone = match &raw.timezone {
            Some(text) => note(sheet, text, values::timezone(text.get_ref())),
            None => Some("UTC".to_owned()),
        };
        let (from, to) = (from?, to?);
        if from == to {
            sheet.error(raw.to.span(), "the quiet hours end when they begin");
        }
        Some(Quiet { from, to, timezone: timezone? })
    });
    let escalate = raw.escalate.and_then(|raw| {
        let after = sheet.span_within(&raw.after, Span::from_mins(1), Span::from_days(1));
        let receivers = named(sheet, &raw.receivers, receivers, &known);
        Some(Escalate { after: after?, receivers })
    });
    NotifyConfig { pace, quiet, escalate }
}

/// `22:00` in minutes after midnight.
fn clock(sheet: &mut Sheet<'_>, text: &Text) -> Option<u16> {
    let two = |part: &str, below: u16| {
        let number = part.parse::<u16>().ok().filter(|number| *number < below);
        number.filter(|_| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let found = text.get_ref().split_once(':').and_then(|(hours, minutes)| Some((two(hours, 24)?, two(minutes, 60)?)));
    if found.is_none() {
        sheet.error(text.span(), "expected a time of day such as \"22:00\"");
    }
    found.map(|(hours, minutes)| hours.saturating_mul(60).saturating_add(minutes))
}

/// Reports by name.
pub fn reports(sheet: &mut Sheet<'_>, receivers: &Receivers) -> Vec<Report> {
    let known = receiver_names(sheet);
    let mut reports = Vec::new();
    for (name, value) in sheet.entries("reports") {
        sheet.label(&name);
        let Some(raw) = sheet.read::<raw::Report>(&value) else { continue };
        let cron = note(sheet, &raw.cron, values::cron(raw.cron.get_ref()));
        let timezone = match &raw.timezone {
            Some(text) => note(sheet, text, values::timezone(text.get_ref())),
            None => Some("UTC".to_owned()),
        };
        let receivers = named(sheet, &raw.receivers, receivers, &known);
        if let (Some(cron), Some(timezone)) = (cron, timezone) {
            reports.push(Report { name: name.into_inner(), cron, timezone, receivers });
        }
    }
    reports
}
