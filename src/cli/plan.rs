//! outside
//! What a configuration costs and promises: calls, money, quota share and time to lock. A pure
//! function of the configuration; it must never call a provider.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::json;

use super::show::{Shown, or_dash, row, table};
use crate::config::{Config, Provider};
use crate::key::{PolicyId, ProviderId, Resource};
use crate::policy::{Policy, lock_bound};
use crate::time::Span;
use crate::words::{Access, FailureKind, ProviderKind};

/// A month is taken to have 30 days.
const MONTH: Span = Span::from_days(30);
/// Calls of one steady round: wrap and unwrap each time, describe every fifth round.
const CALLS_A_ROUND: f64 = 2.2;
/// The control key is wrapped and unwrapped once a minute.
const CONTROL_CALLS: f64 = 2.0;
const CONTROL_INTERVAL: Span = Span::from_mins(1);

/// What one provider costs in steady state.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ProviderPlan {
    pub provider: ProviderId,
    pub kind: ProviderKind,
    pub keys: u64,
    pub calls_per_second: f64,
    pub calls_per_month: f64,
    /// What `calls_per_second` of the configuration allows, and how much of it is used.
    pub budget: Budget,
    pub cost: Option<Cost>,
    pub quota: Option<Quota>,
    /// Calls a month that one older version adds while it still protects data.
    pub calls_per_month_per_older_version: u64,
}

/// Our own limit.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Budget {
    pub calls_per_second: u32,
    pub share: f64,
    /// What the limit holds for: the provider, or the busiest vault.
    pub of: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cost {
    pub usd_per_month: f64,
    pub usd_per_10000_calls: f64,
    pub note: &'static str,
}

/// The provider's published default quota, where it is used most.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Quota {
    pub calls_per_second: u32,
    pub share: f64,
    pub of: String,
    pub note: &'static str,
}

/// What one policy promises.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PolicyPlan {
    pub policy: PolicyId,
    pub keys: u64,
    pub enforce: bool,
    pub probe_interval_ms: Span,
    pub bounds: Vec<Bound>,
}

/// From the first refused answer to the lock.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Bound {
    pub failure_kind: FailureKind,
    pub access: Option<Access>,
    /// `None`: this kind never lowers access.
    pub lock_bound_ms: Option<Span>,
}

const PRICE: f64 = 0.03;
const PRICE_NOTE: &str = "list price; check it for your region, key type and contract";

/// The whole plan, for people and as JSON.
#[must_use]
pub fn plan(config: &Config) -> Shown {
    let providers: Vec<ProviderPlan> = config.providers.values().map(|provider| provider_plan(config, provider)).collect();
    let policies: Vec<PolicyPlan> = config.policies.iter().map(|(id, policy)| policy_plan(config, id, policy)).collect();
    let mut text = String::new();
    for provider in &providers {
        text.push_str(&provider_text(provider));
    }
    for policy in &policies {
        text.push_str(&policy_text(policy));
    }
    text.push_str("\nSteady state: suspects and recovering keys are looked at more often. A month has 30 days.\n");
    Shown::good(json!({ "providers": providers, "policies": policies, "month_days": 30 }), text)
}

/// Calls a second of so many calls every `interval`.
fn rate(calls: f64, interval: Span) -> f64 {
    if interval == Span::ZERO { 0.0 } else { calls / interval.as_secs_f64() }
}

/// Where a provider counts its quota: AWS by our account and region, Google by our project, Azure by vault.
fn place(resource: &Resource) -> String {
    match resource {
        Resource::Aws { region, .. } => region.to_string(),
        Resource::Azure { host, .. } => host.to_string(),
        Resource::Gcp { .. } | Resource::Local { .. } => String::new(),
    }
}

fn provider_plan(config: &Config, provider: &Provider) -> ProviderPlan {
    let mut places: BTreeMap<String, f64> = BTreeMap::new();
    let mut add = |resource: &Resource, load: f64| *places.entry(place(resource)).or_default() += load;
    let (mut keys, mut older) = (0_u64, BTreeSet::new());
    for key in config.keys.values().filter(|key| key.provider == provider.id && key.refused.is_none()) {
        let Some(policy) = config.policies.get(&key.policy) else { continue };
        keys = keys.saturating_add(1);
        older.insert(MONTH.as_millis().checked_div(policy.version_interval.as_millis()).unwrap_or(0));
        add(&key.target.reference.resource, rate(CALLS_A_ROUND, policy.probe_interval));
    }
    if let Some(control) = &provider.control_key {
        add(&control.reference.resource, rate(CONTROL_CALLS, CONTROL_INTERVAL));
    }
    let total: f64 = places.values().sum();
    let busiest = places.into_iter().max_by(|(_, one), (_, other)| one.total_cmp(other)).unwrap_or_default();
    let calls_per_month = (total * MONTH.as_secs_f64()).round();
    ProviderPlan {
        provider: provider.id.clone(),
        kind: provider.kind(),
        keys,
        calls_per_second: rounded(total),
        calls_per_month,
        budget: budget(provider, total, &busiest),
        cost: cost(provider.kind(), calls_per_month),
        quota: quota(provider.kind(), &busiest),
        calls_per_month_per_older_version: older.last().copied().unwrap_or(0),
    }
}

/// Four digits after the point are enough.
fn rounded(number: f64) -> f64 {
    (number * 10_000.0).round() / 10_000.0
}

fn budget(provider: &Provider, total: f64, busiest: &(String, f64)) -> Budget {
    let (load, of) = match provider.kind() {
        ProviderKind::Azure => (busiest.1, Some(busiest.0.clone()).filter(|host| !host.is_empty())),
        ProviderKind::Aws | ProviderKind::Gcp | ProviderKind::Local => (total, None),
    };
    let share = load / f64::from(provider.calls_per_second.max(1));
    Budget { calls_per_second: provider.calls_per_second, share: rounded(share), of }
}

fn cost(kind: ProviderKind, calls_per_month: f64) -> Option<Cost> {
    let usd = calls_per_month / 10_000.0 * PRICE;
    match kind {
        ProviderKind::Aws | ProviderKind::Gcp | ProviderKind::Azure => {
            Some(Cost { usd_per_month: (usd * 100.0).round() / 100.0, usd_per_10000_calls: PRICE, note: PRICE_NOTE })
        }
        ProviderKind::Local => None,
    }
}

fn quota(kind: ProviderKind, (of, load): &(String, f64)) -> Option<Quota> {
    let (calls_per_second, of, note): (u32, String, &str) = match kind {
        ProviderKind::Aws => (
            10_000,
            format!("region {of}"),
            "default for symmetric keys is 10,000 to 100,000 a second by region, an account's keys together; 10,000 is used here",
        ),
        ProviderKind::Gcp => (1000, "our project".to_owned(), "default is 60,000 cryptographic requests a minute for a project"),
        ProviderKind::Azure => {
            (400, format!("vault {of}"), "default is 4,000 operations in 10 s for a vault, with RSA 2048 software keys; others have less")
        }
        ProviderKind::Local => return None,
    };
    if *load <= 0.0 {
        return None;
    }
    let share = load / f64::from(calls_per_second);
    Some(Quota { calls_per_second, share: rounded(share), of, note })
}

fn policy_plan(config: &Config, id: &PolicyId, policy: &Policy) -> PolicyPlan {
    let keys = config.keys.values().filter(|key| key.policy == *id && key.refused.is_none()).count();
    let bounds = policy.on.iter().map(|(kind, confirm)| Bound {
        failure_kind: *kind,
        access: confirm.access,
        lock_bound_ms: lock_bound(policy, *kind),
    });
    PolicyPlan {
        policy: id.clone(),
        keys: u64::try_from(keys).unwrap_or(u64::MAX),
        enforce: policy.enforce,
        probe_interval_ms: policy.probe_interval,
        bounds: bounds.collect(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn provider_text(plan: &ProviderPlan) -> String {
    let mut rows = vec![vec!["calls".to_owned(), format!("{} a second, {} a month", plan.calls_per_second, plan.calls_per_month)]];
    let of = plan.budget.of.as_ref().map_or_else(String::new, |host| format!(", vault {host}"));
    rows.push(vec![
        "budget".to_owned(),
        format!("{} of calls_per_second = {}{of}", percent(plan.budget.share), plan.budget.calls_per_second),
    ]);
    if let Some(cost) = &plan.cost {
        let money = format!("{:.2} USD a month, at {} USD for 10,000 calls ({})", cost.usd_per_month, cost.usd_per_10000_calls, cost.note);
        rows.push(vec!["cost".to_owned(), money]);
    }
    if let Some(quota) = &plan.quota {
        let share = format!("{} of {} calls a second, {} ({})", percent(quota.share), quota.calls_per_second, quota.of, quota.note);
        rows.push(vec!["quota".to_owned(), share]);
    }
    if plan.calls_per_month_per_older_version > 0 {
        let more = format!("{} calls a month more for each that still protects data", plan.calls_per_month_per_older_version);
        rows.push(vec!["old versions".to_owned(), more]);
    }
    format!("provider {} ({}), {} keys\n{}\n", plan.provider, plan.kind, plan.keys, table("  ", &rows))
}

fn policy_text(plan: &PolicyPlan) -> String {
    let shadow = if plan.enforce { "" } else { ", SHADOW: nothing is locked" };
    let mut rows = vec![row(&["FAILURE", "ACCESS", "WITHIN"])];
    for bound in &plan.bounds {
        let access = bound.access.map_or("hold", Access::as_str);
        rows.push(row(&[bound.failure_kind.as_str(), access, &or_dash(bound.lock_bound_ms)]));
    }
    format!(
        "policy {} ({} keys, every {}{shadow}): from the first refused answer\n{}",
        plan.policy,
        plan.keys,
        plan.probe_interval_ms,
        table("  ", &rows)
    )
}

#[cfg(test)]
mod tests;
