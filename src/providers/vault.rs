//! outside
//! Opens the keys of the safety vault: clients of their own, bound to one key each, that speak only
//! `WrapBytes`. They share nothing with the clients of probes, and no customer's key passes here.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::{CALL_TIMEOUT, ProviderFault, ProvidersError, external_ids, local_file};
use crate::config::{Config, ProviderDetail};
use crate::key::{KeyTarget, ProviderId};
use crate::kms::WrapBytes;
use crate::kms::aws::AwsKms;
use crate::kms::aws::vault::AwsVaultKey;
use crate::kms::azure::{AzureIdentity, AzureKms, AzureVaultKey};
use crate::kms::gcp::{GcpKms, GcpVaultKey};
use crate::kms::local::LocalWrapBytes;
use crate::secrets;
use crate::vault::seal::VaultKey;
use crate::vault::wraps::{KeyRole, VaultKeyName};

/// The operator's key and the recovery key, as configured; nothing is called yet.
///
/// # Errors
/// Every fault: a missing secret, a file that cannot be read or made.
pub async fn vault_keys(config: &Config) -> Result<Vec<VaultKey>, ProvidersError> {
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    for (role, chosen) in [(KeyRole::Operator, &config.operator_key), (KeyRole::Recovery, &config.recovery_key)] {
        let Some((id, target)) = chosen else { continue };
        let name = VaultKeyName { provider: id.clone(), reference: Arc::from(&*target.reference.text) };
        match open(config, id, target).await {
            Ok(wrap) => keys.push(VaultKey::new(role, name, wrap)),
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(keys) } else { Err(ProvidersError { faults }) }
}

async fn open(config: &Config, id: &ProviderId, target: &Arc<KeyTarget>) -> Result<Arc<dyn WrapBytes>, Vec<ProviderFault>> {
    // The configuration was checked: a vault's key names a provider that there is.
    let Some(provider) = config.providers.get(id) else { return Err(Vec::new()) };
    let target = Arc::clone(target);
    match &provider.detail {
        ProviderDetail::Local { path } => {
            let file = local_file(config, id, path, crate::clock::now().wall).map_err(|fault| vec![fault])?;
            Ok(Arc::new(LocalWrapBytes::new(file, &target.reference.text)))
        }
        ProviderDetail::Aws { .. } => {
            let external_ids = external_ids(config, provider)?;
            let kms = AwsKms::new(provider, CALL_TIMEOUT, external_ids).await.map_err(|source| vec![source.into()])?;
            Ok(Arc::new(AwsVaultKey::new(Arc::new(kms), target)))
        }
        ProviderDetail::Gcp { .. } => {
            let fault = |source| vec![ProviderFault::Gcp { provider: id.clone(), source }];
            let kms = GcpKms::new(provider, CALL_TIMEOUT).await.map_err(fault)?;
            Ok(Arc::new(GcpVaultKey::new(Arc::new(kms), target)))
        }
        ProviderDetail::Azure { credentials, .. } => {
            let resolve = |secret: &_| secrets::resolve(secret).map(|value| Zeroizing::new(value.expose().to_owned()));
            let missing = |source| vec![ProviderFault::Secret { provider: id.clone(), field: "credentials".to_owned(), source }];
            let identity = AzureIdentity::from_config(credentials, resolve).map_err(missing)?;
            let fault = |source| vec![ProviderFault::Azure { provider: id.clone(), source }];
            let kms = AzureKms::new(provider, identity, CALL_TIMEOUT).map_err(fault)?;
            Ok(Arc::new(AzureVaultKey::new(Arc::new(kms), target)))
        }
    }
}
