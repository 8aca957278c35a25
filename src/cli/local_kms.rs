//! outside
//! The embedded software KMS from the command line: finds its file and carries out one act.
//! A file that is not there yet is first made with the keys that the configuration names, so that
//! making one key by hand does not leave the others out.

use serde_json::json;

use super::LocalAct;
use super::exit::CliError;
use super::show::{Shown, or_dash, row, table};
use crate::config::{Config, ProviderDetail};
use crate::key::{KeyVersion, ProviderId};
use crate::kms::local::{KeyListing, LocalKmsFile};
use crate::providers;
use crate::time::Wall;
use crate::words::Leg;

/// # Errors
/// If there is no such provider, key or version, the act is refused, or the file cannot be changed.
pub fn local_kms(config: &Config, provider: Option<&str>, act: &LocalAct, now: Wall) -> Result<Shown, CliError> {
    let (id, path) = choose(config, provider)?;
    let file = providers::local_file(config, id, path, now)?;
    if let LocalAct::List = act {
        let keys = file.list(now)?;
        let text = if keys.is_empty() { "no keys\n".to_owned() } else { listing(&keys) };
        return Ok(Shown::good(json!({ "provider": id, "path": path, "items": keys, "next": null }), text));
    }
    let key = perform(&file, act, now)?;
    let text = listing(std::slice::from_ref(&key));
    Ok(Shown::good(json!(key), text))
}

fn perform(file: &LocalKmsFile, act: &LocalAct, now: Wall) -> Result<KeyListing, CliError> {
    let legs = |calls: &[super::CallArg]| calls.iter().map(|call| Leg::from(*call)).collect::<Vec<_>>();
    Ok(match act {
        LocalAct::Create { key } => file.create(key, now)?,
        LocalAct::Rotate { key } => file.rotate(key, now)?,
        LocalAct::Disable { key, version: None } => file.disable(key, now)?,
        LocalAct::Disable { key, version: Some(version) } => file.disable_version(key, &KeyVersion::new(version), now)?,
        LocalAct::Enable { key, version: None } => file.enable(key, now)?,
        LocalAct::Enable { key, version: Some(version) } => file.enable_version(key, &KeyVersion::new(version), now)?,
        LocalAct::ScheduleDeletion { key, after } => file.schedule_deletion(key, now.plus(*after), now)?,
        LocalAct::CancelDeletion { key } => file.cancel_deletion(key, now)?,
        LocalAct::Deny { key, calls } => file.deny(key, &legs(calls), now)?,
        LocalAct::Allow { key, calls } => file.allow(key, &legs(calls), now)?,
        LocalAct::List => return Err(CliError::Usage("list changes nothing".to_owned())),
    })
}

fn choose<'c>(config: &'c Config, named: Option<&str>) -> Result<(&'c ProviderId, &'c str), CliError> {
    let local = config.providers.values().filter_map(|provider| match &provider.detail {
        ProviderDetail::Local { path } => Some((&provider.id, path.as_str())),
        ProviderDetail::Aws { .. } | ProviderDetail::Gcp { .. } | ProviderDetail::Azure { .. } => None,
    });
    let found: Vec<_> = local.filter(|(id, _)| named.is_none_or(|name| id.as_str() == name)).collect();
    match (found.as_slice(), named) {
        ([one], _) => Ok(*one),
        (_, Some(name)) => Err(CliError::Usage(format!("the configuration has no provider `{name}` of kind local"))),
        ([], None) => Err(CliError::Usage("the configuration has no provider of kind local".to_owned())),
        (several, None) => {
            let names: Vec<&str> = several.iter().map(|(id, _)| id.as_str()).collect();
            Err(CliError::Usage(format!("several providers are of kind local; name one by --provider: {}", names.join(", "))))
        }
    }
}

fn listing(keys: &[KeyListing]) -> String {
    let mut rows = vec![row(&["KEY", "STATE", "CURRENT", "VERSIONS", "DENIED", "DELETION"])];
    for key in keys {
        let versions: Vec<String> = key.versions.iter().map(|v| format!("{} {}", v.version, word(&v.state))).collect();
        let denied: Vec<&str> = key.denied.iter().map(|leg| leg.as_str()).collect();
        rows.push(vec![
            key.key.clone(),
            word(&key.state),
            key.current_version.to_string(),
            versions.join(", "),
            or_dash((!denied.is_empty()).then(|| denied.join(", "))),
            or_dash(key.deletion_at),
        ]);
    }
    table("", &rows)
}

/// The spelling that JSON has too.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
