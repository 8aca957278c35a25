//! outside
//! Is this configuration usable? Without `--live` it is only read; with it secrets are resolved,
//! every key gets a full round and every receiver a connection. It must never send a notice.

use std::path::Path;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};

use super::exit::{CONFIG, CliError, IMPAIRED, INCONCLUSIVE, REVOKED};
use super::probe::{self, Looked, Looker, exit_code, legs_text, long_text};
use super::show::{Shown, to_stderr};
use crate::config::Config;
use crate::config::load::{self, Fault, LoadError, Loaded};
use crate::drive::Identities;
use crate::notify::Receiver;
use crate::providers::{self, Providers};

/// Rounds under way at the same time.
const AT_ONCE: usize = 8;
/// Receivers bound themselves; this is for one that does not.
const RECEIVER_LIMIT: Duration = Duration::from_secs(35);

/// # Errors
/// With `live`, if a secret is missing or a provider or receiver cannot be set up.
pub async fn check(path: &Path, live: bool, json: bool) -> Result<Shown, CliError> {
    let loaded = match load::load(path) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(faulty(&error)),
    };
    if !live {
        return Ok(usable(&loaded));
    }
    if !json {
        to_stderr(&warnings(&loaded));
    }
    let config = &loaded.config;
    // Faults of both are told at once.
    let (providers, receivers) = (Providers::open(config, None).await, providers::receivers(config));
    let (providers, receivers) = match (providers, receivers) {
        (Ok(providers), Ok(receivers)) => (providers, receivers),
        (providers, receivers) => {
            let mut lines = Vec::new();
            lines.extend(providers.err().into_iter().flat_map(|error| error.faults).map(|fault| fault.to_string()));
            lines.extend(receivers.err().into_iter().flat_map(|error| error.faults).map(|fault| fault.to_string()));
            return Err(CliError::Unresolved(lines));
        }
    };
    let (canaries, note) = probe::stored(config, None).await;
    let looker = Looker { providers, identities: Identities::default(), canaries };
    let keys: Vec<Looked> = stream::iter(config.keys.values().map(|key| looker.look(config, key))).buffered(AT_ONCE).collect().await;
    let controls = controls(&looker, config).await;
    let receivers: Vec<Checked> = stream::iter(receivers.iter().map(|(id, receiver)| check_receiver(id.to_string(), receiver.as_ref())))
        .buffered(AT_ONCE)
        .collect()
        .await;
    let shown = live_shown(&loaded, &keys, &controls, &receivers);
    Ok(shown.with_notes(note.into_iter().collect()))
}

/// A receiver and why it cannot be reached.
struct Checked {
    receiver: String,
    error: Option<String>,
}

/// A control key's round, with its provider.
type Control = (String, probe::ControlView);

async fn check_receiver(receiver: String, door: &dyn Receiver) -> Checked {
    let error = match tokio::time::timeout(RECEIVER_LIMIT, door.check()).await {
        Ok(done) => done.err(),
        Err(_) => Some(format!("no end within {} s", RECEIVER_LIMIT.as_secs())),
    };
    Checked { receiver, error }
}

async fn controls(looker: &Looker, config: &Config) -> Vec<Control> {
    let rounds = config.providers.values().map(|provider| async {
        let (_, view) = looker.control(provider).await?;
        Some((provider.id.to_string(), view))
    });
    stream::iter(rounds).buffered(AT_ONCE).filter_map(std::future::ready).collect().await
}

fn faulty(error: &LoadError) -> Shown {
    let errors: Vec<Value> = error.faults.iter().map(fault).collect();
    let value = json!({ "ok": false, "errors": errors, "warnings": [] });
    let lines = error.faults.iter().map(ToString::to_string).collect();
    Shown::good(value, String::new()).with_notes(lines).with_code(CONFIG)
}

fn fault(fault: &Fault) -> Value {
    let text = fault.to_string();
    match fault {
        Fault::Config(error) => json!({
            "text": text, "file": error.place.file, "line": error.place.line, "column": error.place.column,
            "field": error.place.path, "message": error.message,
        }),
        _ => json!({ "text": text, "file": null, "line": null, "column": null, "field": null, "message": text }),
    }
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    loaded.warnings.iter().map(|warning| format!("warning: {warning}")).collect()
}

fn summary(config: &Config) -> String {
    let refused = config.keys.values().filter(|key| key.refused.is_some()).count();
    let bad = if refused > 0 { format!(" ({refused} refused)") } else { String::new() };
    format!(
        "{} providers, {} keys{bad}, {} policies, {} receivers",
        config.providers.len(),
        config.keys.len(),
        config.policies.len(),
        config.receivers.len()
    )
}

fn usable(loaded: &Loaded) -> Shown {
    let value = json!({ "ok": true, "errors": [], "warnings": loaded.warnings });
    Shown::good(value, format!("configuration ok: {}\n", summary(&loaded.config))).with_notes(warnings(loaded))
}

fn live_shown(loaded: &Loaded, keys: &[Looked], controls: &[Control], receivers: &[Checked]) -> Shown {
    let mut text = format!("configuration ok: {}\n", summary(&loaded.config));
    for looked in keys {
        text.push('\n');
        text.push_str(&long_text(looked));
    }
    for (provider, control) in controls {
        let word = if control.healthy { "good" } else { "NOT GOOD" };
        text.push_str(&format!("\ncontrol key of {provider}: {word}   {}\n{}", control.key, legs_text("  ", &control.legs)));
    }
    for checked in receivers {
        let word = checked.error.as_ref().map_or_else(|| "reachable".to_owned(), |error| format!("NOT REACHABLE: {error}"));
        text.push_str(&format!("\nreceiver {}: {word}\n", checked.receiver));
    }
    let doubt = controls.iter().any(|(_, control)| !control.healthy) || receivers.iter().any(|checked| checked.error.is_some());
    let code = worst(keys.iter().map(|looked| exit_code(looked.verdict())).chain(doubt.then_some(INCONCLUSIVE)));
    let controls: Vec<Value> = controls.iter().map(|(provider, control)| json!({ "provider": provider, "control": control })).collect();
    let receivers: Vec<Value> =
        receivers.iter().map(|c| json!({ "receiver": c.receiver, "ok": c.error.is_none(), "error": c.error })).collect();
    let value = json!({
        "ok": code == 0, "errors": [], "warnings": loaded.warnings,
        "keys": keys, "control_keys": controls, "receivers": receivers,
    });
    Shown::good(value, text).with_code(code)
}

/// 11 over 10 over 12 over 0.
fn worst(codes: impl Iterator<Item = u8>) -> u8 {
    let found: Vec<u8> = codes.collect();
    [REVOKED, IMPAIRED, INCONCLUSIVE].into_iter().find(|code| found.contains(code)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_verdict_is_revoked_then_impaired_then_inconclusive() {
        for (codes, code) in [(vec![12, 10, 11, 0], 11), (vec![0, 12, 10], 10), (vec![0, 12], 12), (vec![0, 0], 0), (vec![], 0)] {
            assert_eq!(worst(codes.into_iter()), code);
        }
    }
}
