//! inside
//! Keys that came in by the API, judged against the configuration in force. A row that this
//! configuration makes invalid is that key, shown as misconfigured; it must never be lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gather::refused_key;
use super::keys::{Fault, key_of};
use crate::config::{Config, Key, Source, raw};
use crate::key::{KeyId, KeyTarget, ProviderId};

/// Rows by id, as they were written.
pub type Registered = BTreeMap<KeyId, raw::Key>;

/// Judges one key of the API against everything else that is registered.
///
/// # Errors
/// Everything wrong with it, each with its field.
pub fn register(raw: &raw::Key, config: &Config) -> Result<Key, Vec<Fault>> {
    let key = judge(raw, config)?;
    let reference = &key.target.reference.text;
    let same = |other: &&Key| other.id != key.id && other.provider == key.provider && other.target.reference.text == *reference;
    match config.keys.values().filter(|other| other.refused.is_none()).find(same) {
        Some(other) => Err(vec![twin(&other.id)]),
        None => Ok(key),
    }
}

fn twin(other: &KeyId) -> Fault {
    Fault { field: "key", message: format!("the same key of the same provider is already registered as `{other}`") }
}

fn judge(raw: &raw::Key, config: &Config) -> Result<Key, Vec<Fault>> {
    let key = key_of(raw, &config.providers, &config.policies, Source::Api, "")?;
    let fault = |field, message: String| Err(vec![Fault { field, message }]);
    // A caller at a door must not make the daemon read files and variables.
    let secret = |text: &str| ["env:", "file:", "credential:"].iter().any(|prefix| text.starts_with(prefix));
    if key.target.assume_role.as_ref().and_then(|role| role.external_id.as_deref()).is_some_and(secret) {
        return fault("assume_role", "external_id: a key of the API names the id itself; a reference is for the file only".to_owned());
    }
    for (name, chosen) in [("operator_key", &config.operator_key), ("recovery_key", &config.recovery_key)] {
        if let Some((provider, target)) = chosen
            && ours(config, &key, provider, target)
        {
            return fault("key", format!("its owner also owns the {name} and could close the safety metadata"));
        }
    }
    Ok(key)
}

/// Whether this key, or its owner's account, is the one of a key of the safety vault.
fn ours(config: &Config, key: &Key, provider: &ProviderId, target: &KeyTarget) -> bool {
    let kind = |id| config.providers.get(id).map(crate::config::Provider::kind);
    let account = target.reference.account();
    let named = key.provider == *provider && key.target.reference.text == target.reference.text;
    named || (kind(&key.provider) == kind(provider) && [key.account.as_str(), key.target.reference.account()].contains(&account))
}

/// The configuration of the files with the keys of the API in it. A key of the files stands before
/// one of the API under the same id; the row stays stored and counts again when the file drops it.
#[must_use]
pub fn take_in(config: &Arc<Config>, rows: &Registered) -> Arc<Config> {
    if rows.is_empty() {
        return Arc::clone(config);
    }
    let mut whole = (**config).clone();
    whole.keys.retain(|_, key| key.source == Source::File);
    let name = |key: &Key| (key.provider.clone(), Arc::clone(&key.target.reference.text));
    let mut names: BTreeMap<_, KeyId> =
        whole.keys.values().filter(|key| key.refused.is_none()).map(|key| (name(key), key.id.clone())).collect();
    for (id, raw) in rows {
        if whole.keys.contains_key(id) {
            continue;
        }
        let judged = judge(raw, &whole).and_then(|key| match names.get(&name(&key)) {
            Some(other) => Err(vec![twin(other)]),
            None => Ok(key),
        });
        let key = judged.or_else(|faults| {
            let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
            let why = format!("registered by the API: {}", all.join("; "));
            refused_key(raw, id.clone(), why, &whole.providers, &whole.policies, Source::Api).ok_or(())
        });
        if let Ok(key) = key {
            if key.refused.is_none() {
                names.insert(name(&key), id.clone());
            }
            whole.keys.insert(id.clone(), key);
        }
    }
    Arc::new(whole)
}
