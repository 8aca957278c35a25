//! inside
//! Policies: each starts at the built-in defaults, `on` merges per failure kind, nothing is
//! inherited. It must never let a kind that is only doubt lock anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;

use crate::config::raw::{self, Text};
use crate::config::sheet::Sheet;
use crate::key::PolicyId;
use crate::policy::{Confirm, Flapping, Policy, Settable, StatedAlone, Unlock, UnlockAfter, settable};
use crate::time::Span;
use crate::words::{Access, FailureKind};

const CONFIRMED: [(&str, Option<Access>); 3] = [("locked", Some(Access::Locked)), ("read_only", Some(Access::ReadOnly)), ("hold", None)];
/// A slow kind may lock only when it has been seen for so long.
const SLOWEST: Span = Span::from_mins(10);

/// Every policy of the file, and `default` whether the file has it or not.
pub fn policies(sheet: &mut Sheet<'_>) -> BTreeMap<PolicyId, Arc<Policy>> {
    let mut policies = BTreeMap::new();
    for (name, value) in sheet.entries("policies") {
        let id = sheet.name::<PolicyId>(&name);
        let policy = sheet.read::<raw::Policy>(&value).map(|raw| policy(sheet, raw, &value.span()));
        if let (Some(id), Some(policy)) = (id, policy) {
            policies.insert(id, Arc::new(policy));
        }
    }
    if let Ok(default) = PolicyId::new("default") {
        policies.entry(default).or_insert_with(|| Arc::new(Policy::default()));
    }
    policies
}

fn policy(sheet: &mut Sheet<'_>, raw: raw::Policy, at: &core::ops::Range<usize>) -> Policy {
    let built_in = Policy::default();
    let longest = Span::from_days(365);
    let within = |sheet: &mut Sheet<'_>, text: Option<Text>, least: Span, most: Span, otherwise: Span| {
        text.and_then(|text| sheet.span_within(&text, least, most)).unwrap_or(otherwise)
    };
    let second = Span::from_secs(1);
    let policy = Policy {
        probe_interval: within(sheet, raw.probe_interval, second, longest, built_in.probe_interval),
        suspect_interval: within(sheet, raw.suspect_interval, Span(100), longest, built_in.suspect_interval),
        revoked_interval: within(sheet, raw.revoked_interval, Span(100), longest, built_in.revoked_interval),
        version_interval: within(sheet, raw.version_interval, second, longest, built_in.version_interval),
        call_timeout: within(sheet, raw.call_timeout, Span(1), Span::from_secs(60), built_in.call_timeout),
        unlock: raw
            .unlock
            .and_then(|text| sheet.choice(&text, &[("automatic", Unlock::Automatic), ("manual", Unlock::Manual)]))
            .unwrap_or(built_in.unlock),
        unlock_after: raw.unlock_after.map_or(built_in.unlock_after, |raw| unlock_after(sheet, &raw, built_in.unlock_after)),
        lock_after_stale: raw.lock_after_stale.and_then(|t| sheet.span_unless(&t, "never")).unwrap_or(built_in.lock_after_stale),
        alarm_after_stale: spans(sheet, raw.alarm_after_stale, built_in.alarm_after_stale),
        lease_ttl: within(sheet, raw.lease_ttl, second, longest, built_in.lease_ttl),
        warn_before_deletion: spans(sheet, raw.warn_before_deletion, built_in.warn_before_deletion),
        warn_before_expiry: spans(sheet, raw.warn_before_expiry, built_in.warn_before_expiry),
        rotation_max_age: raw.rotation_max_age.and_then(|t| sheet.span_unless(&t, "never")).unwrap_or(built_in.rotation_max_age),
        lost_version: raw
            .lost_version
            .and_then(|text| sheet.choice(&text, &[("locked", Some(Access::Locked)), ("hold", None)]))
            .unwrap_or(built_in.lost_version),
        enforce: raw.enforce.unwrap_or(built_in.enforce),
        unproven: raw
            .unproven
            .and_then(|text| sheet.choice(&text, &[("open", Access::Open), ("locked", Access::Locked)]))
            .unwrap_or(built_in.unproven),
        witness_grace: raw.witness_grace.and_then(|text| sheet.span(&text)).unwrap_or(built_in.witness_grace),
        flapping: raw.flapping.map_or(built_in.flapping, |raw| flapping(sheet, raw, built_in.flapping)),
        stated_alone: raw.stated_alone.map_or(built_in.stated_alone, |raw| stated_alone(sheet, &raw, built_in.stated_alone)),
        on: confirmations(sheet, raw.on, built_in.on),
    };
    warn_of_odd_spans(sheet, &policy, at);
    policy
}

fn warn_of_odd_spans(sheet: &mut Sheet<'_>, policy: &Policy, at: &core::ops::Range<usize>) {
    let denied = policy.on.get(&FailureKind::AccessDenied).filter(|rule| rule.access.is_some());
    if denied.is_some_and(|rule| rule.over < Span::from_secs(10)) {
        sheet.warn(at, "on.access_denied.over is shorter than 10s: each denial then waits for an answer of the control key of its own");
    }
    if policy.suspect_interval > policy.probe_interval {
        sheet.warn(at, "suspect_interval is longer than probe_interval: a suspect key is looked at less often than a healthy one");
    }
    if policy.lock_after_stale.is_some_and(|stale| stale < policy.probe_interval.times(2)) {
        sheet.warn(at, "lock_after_stale is shorter than two probe intervals: one missed round could lock");
    }
}

/// Lengths of time without zero, longest last or first as written.
fn spans(sheet: &mut Sheet<'_>, texts: Option<Vec<Text>>, otherwise: Vec<Span>) -> Vec<Span> {
    match texts {
        Some(texts) => texts.iter().filter_map(|text| sheet.span(text)).collect(),
        None => otherwise,
    }
}

fn unlock_after(sheet: &mut Sheet<'_>, raw: &raw::UnlockAfter, built_in: UnlockAfter) -> UnlockAfter {
    UnlockAfter {
        rounds: raw.rounds.as_ref().and_then(|n| sheet.int(n, 1, 100)).unwrap_or(built_in.rounds),
        over: raw.over.as_ref().and_then(|text| sheet.span_or_zero(text)).unwrap_or(built_in.over),
    }
}

fn flapping(sheet: &mut Sheet<'_>, raw: raw::Flapping, built_in: Flapping) -> Flapping {
    Flapping {
        after: raw.after.and_then(|text| sheet.span(&text)).unwrap_or(built_in.after),
        access: raw.access.and_then(|text| sheet.choice(&text, &CONFIRMED)).unwrap_or(built_in.access),
    }
}

fn stated_alone(sheet: &mut Sheet<'_>, raw: &Spanned<raw::StatedAlone>, built_in: StatedAlone) -> StatedAlone {
    let raw = raw.get_ref();
    let (looks, of) = looks(sheet, raw.looks.as_ref(), raw.of.as_ref(), built_in.looks, built_in.of);
    StatedAlone { looks, of, over: raw.over.as_ref().and_then(|text| sheet.span_or_zero(text)).unwrap_or(built_in.over) }
}

/// `looks` and `of` within their bounds. A lone `looks` above the default `of` is told, not stretched.
fn looks(sheet: &mut Sheet<'_>, looks: Option<&raw::Int>, of: Option<&raw::Int>, usual_looks: u8, usual_of: u8) -> (u8, u8) {
    let found_of: Option<u8> = of.and_then(|n| sheet.int(n, 1, 8));
    let found_looks: Option<u8> = looks.and_then(|n| sheet.int(n, 1, 8));
    let failed = (of.is_some() && found_of.is_none()) || (looks.is_some() && found_looks.is_none());
    let (most, least) = (found_of.unwrap_or(usual_of), found_looks.unwrap_or(usual_looks));
    if !failed
        && least > most
        && let Some(at) = looks.or(of)
    {
        sheet.error(at.span(), format!("{least} looks of the last {most} can never be: `looks` may be at most `of`"));
    }
    (least, most)
}

fn confirmations(
    sheet: &mut Sheet<'_>,
    raw: BTreeMap<Text, Spanned<raw::Confirm>>,
    mut on: BTreeMap<FailureKind, Confirm>,
) -> BTreeMap<FailureKind, Confirm> {
    let kinds: Vec<(&str, FailureKind)> = FailureKind::ALL.iter().map(|kind| (kind.as_str(), *kind)).collect();
    for (name, raw) in raw {
        let Some(kind) = sheet.choice(&name, &kinds) else { continue };
        let usual = on.get(&kind).copied().unwrap_or(Confirm { looks: 3, of: 4, over: SLOWEST, access: None });
        let confirm = confirm(sheet, raw.get_ref(), usual);
        match settable(kind) {
            Settable::Freely => {
                on.insert(kind, confirm);
            }
            Settable::HoldOnly => {
                if confirm.access.is_some() {
                    let at = raw.get_ref().access.as_ref().map_or_else(|| raw.span(), Spanned::span);
                    sheet.error(at, format!("{kind} is doubt and never locks by itself, expected one of: hold"));
                }
            }
            Settable::Slowly if confirm.access.is_none() => {}
            Settable::Slowly => {
                if confirm.over < SLOWEST {
                    let at = raw.get_ref().over.as_ref().map_or_else(|| raw.span(), Spanned::span);
                    sheet.error(at, format!("{kind} may lower access only with `over` of {SLOWEST} or more"));
                }
                on.insert(kind, confirm);
            }
        }
    }
    on
}

fn confirm(sheet: &mut Sheet<'_>, raw: &raw::Confirm, usual: Confirm) -> Confirm {
    let (looks, of) = looks(sheet, raw.looks.as_ref(), raw.of.as_ref(), usual.looks, usual.of);
    Confirm {
        looks,
        of,
        over: raw.over.as_ref().and_then(|text| sheet.span_or_zero(text)).unwrap_or(usual.over),
        access: raw.access.as_ref().and_then(|text| sheet.choice(text, &CONFIRMED)).unwrap_or(usual.access),
    }
}
