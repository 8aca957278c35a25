//! inside
//! Warnings about promises that the configuration as a whole cannot keep. It refuses nothing.

use std::collections::BTreeMap;

use crate::config::sheet::Sheet;
use crate::config::{Config, ProviderDetail};
use crate::key::ProviderId;

/// Calls of one steady round: wrap and unwrap each time, describe every fifth, in fifths.
const FIFTHS_A_ROUND: u64 = 11;

/// Warns of call budgets that are too small for the keys, and of receivers that nobody writes to.
pub fn warn(sheet: &mut Sheet<'_>, config: &Config) {
    // Micro-calls a second, so that a key looked at once a day still counts.
    let mut load: BTreeMap<(&ProviderId, &str), u64> = BTreeMap::new();
    for key in config.keys.values().filter(|key| key.refused.is_none()) {
        let (Some(provider), Some(policy)) = (config.providers.get(&key.provider), config.policies.get(&key.policy)) else { continue };
        let lane = match provider.detail {
            // The budget is one of each vault.
            ProviderDetail::Azure { .. } => key.target.reference.account(),
            ProviderDetail::Aws { .. } | ProviderDetail::Gcp { .. } | ProviderDetail::Local { .. } => "",
        };
        let micro = FIFTHS_A_ROUND.saturating_mul(200_000_000).checked_div(policy.probe_interval.as_millis()).unwrap_or(0);
        // What nobody knows before the first look: one old version a key is reckoned with.
        let old = 1_000_000_000_u64.checked_div(policy.version_interval.as_millis()).unwrap_or(0);
        let micro = micro.saturating_add(old);
        let sum = load.entry((&key.provider, lane)).or_default();
        *sum = sum.saturating_add(micro);
    }
    for ((id, lane), micro) in load {
        let Some(provider) = config.providers.get(id) else { continue };
        let allowed = u64::from(provider.calls_per_second);
        if micro > allowed.saturating_mul(1_000_000) {
            let of = if lane.is_empty() { String::new() } else { format!(" of {lane}") };
            let needed = micro.div_ceil(1_000_000);
            let at = table_of(sheet, "providers", id.as_str());
            sheet.warn(
                &at,
                format!("the keys{of} need {needed} calls a second in steady state (reckoned with one old version a key) and calls_per_second is {allowed}: the promised time to lock cannot be kept"),
            );
        }
    }
    let routed: Vec<_> =
        config.routes.iter().flat_map(|route| &route.receivers).chain(config.reports.iter().flat_map(|r| &r.receivers)).collect();
    for id in config.receivers.keys().filter(|id| !routed.contains(id)) {
        let at = table_of(sheet, "receivers", id.as_str());
        sheet.warn(&at, "no route and no report names this receiver: it is never sent anything");
    }
}

fn table_of(sheet: &Sheet<'_>, table: &str, name: &str) -> core::ops::Range<usize> {
    let table = sheet.root().get(table).and_then(|value| value.get_ref().as_table());
    table.and_then(|table| table.get_key_value(name)).map(|(key, _)| key.span()).unwrap_or_default()
}
