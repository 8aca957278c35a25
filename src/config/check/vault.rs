//! inside
//! Keys of the safety vault. They must never depend on the will of a key's owner.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::{reference, unknown_reference};
use crate::config::raw;
use crate::config::sheet::Sheet;
use crate::config::{Key, Provider};
use crate::key::{KeyId, KeyTarget, ProviderId};
use crate::words::ProviderKind;

type Chosen = Option<(ProviderId, Arc<KeyTarget>)>;

/// Operator key and recovery key.
pub fn vault(sheet: &mut Sheet<'_>, providers: &BTreeMap<ProviderId, Provider>, keys: &BTreeMap<KeyId, Key>) -> (Chosen, Chosen) {
    let raw: raw::Vault = sheet.section("vault");
    let operator = raw.operator_key.as_ref().and_then(|raw| chosen(sheet, raw, providers, keys));
    let recovery = raw.recovery_key.as_ref().and_then(|raw| chosen(sheet, raw, providers, keys));
    if let Some(at) = raw.recovery_key.as_ref().map(|raw| raw.key.span()) {
        if operator.is_none() && raw.operator_key.is_none() {
            sheet.error(at, "a recovery_key needs an operator_key");
        } else if operator.is_some() && operator == recovery {
            sheet.error(at, "the recovery_key is the operator_key itself");
        }
    }
    (operator, recovery)
}

fn chosen(sheet: &mut Sheet<'_>, raw: &raw::VaultKey, providers: &BTreeMap<ProviderId, Provider>, keys: &BTreeMap<KeyId, Key>) -> Chosen {
    let Some(provider) = providers.get(raw.provider.get_ref().as_str()) else {
        let names: Vec<&str> = providers.keys().map(ProviderId::as_str).collect();
        sheet.error(raw.provider.span(), unknown_reference("provider", raw.provider.get_ref(), &names));
        return None;
    };
    let reference = match reference(provider, raw.key.get_ref()) {
        Ok(reference) => reference,
        Err(why) => {
            sheet.error(raw.key.span(), why);
            return None;
        }
    };
    for key in keys.values() {
        if key.target.reference.text == reference.text && key.provider == provider.id {
            sheet.error(raw.key.span(), format!("this is the registered key `{}`: its owner could close the safety metadata", key.id));
        } else if [key.account.as_str(), key.target.reference.account()].contains(&reference.account())
            && same_kind(providers, key, provider)
        {
            let message = format!("this key lies in account `{}`, which owns the registered key `{}`", key.account, key.id);
            sheet.error(raw.key.span(), message);
        } else {
            continue;
        }
        return None;
    }
    if provider.kind() == ProviderKind::Local {
        sheet.warn(&raw.key.span(), "a key of the embedded software KMS protects no better than the file that it lies in");
    }
    Some((provider.id.clone(), Arc::new(KeyTarget::plain(reference))))
}

fn same_kind(providers: &BTreeMap<ProviderId, Provider>, key: &Key, provider: &Provider) -> bool {
    providers.get(&key.provider).is_some_and(|other| other.kind() == provider.kind())
}
