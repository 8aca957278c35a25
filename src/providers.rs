//! outside
//! Opens what the configuration names: the KMS adapters that something uses, and the receivers, with
//! their secrets resolved. It gathers every fault and names the missing variable, never a value;
//! it must never call a provider.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::config::{Config, Provider, ProviderDetail};
use crate::key::{KeyTarget, ProviderId};
use crate::kms::Kms;
use crate::kms::aws::{AwsKms, AwsSetupError, ExternalIds};
use crate::kms::azure::{AzureIdentity, AzureKms, AzureSetupError};
use crate::kms::gcp::{GcpKms, GcpSetupError};
use crate::kms::local::{LocalKms, LocalKmsError, LocalKmsFile};
use crate::secrets::{self, SecretError};
use crate::time::{Span, Wall};

mod receivers;
mod vault;
pub use receivers::{ReceiverFault, ReceiversError, receivers};
pub use vault::vault_keys;

/// What one call may take where no policy says more.
const CALL_TIMEOUT: Span = Span::from_secs(10);

/// Why one provider cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ProviderFault {
    #[error("provider {provider}: {field}: {source}")]
    Secret { provider: ProviderId, field: String, source: SecretError },
    #[error("provider {provider}: {source}")]
    Local { provider: ProviderId, source: LocalKmsError },
    #[error("provider {provider}: folder {path} cannot be made: {source}")]
    Folder { provider: ProviderId, path: String, source: std::io::Error },
    #[error("{0}")]
    Aws(#[from] AwsSetupError),
    #[error("provider {provider}: {source}")]
    Gcp { provider: ProviderId, source: GcpSetupError },
    #[error("provider {provider}: {source}")]
    Azure { provider: ProviderId, source: AzureSetupError },
}

/// Every fault found, one a line.
#[derive(Debug)]
pub struct ProvidersError {
    pub faults: Vec<ProviderFault>,
}

impl std::fmt::Display for ProvidersError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        lines(f, &self.faults)
    }
}

impl std::error::Error for ProvidersError {}

fn lines<T: std::fmt::Display>(f: &mut std::fmt::Formatter<'_>, faults: &[T]) -> std::fmt::Result {
    for (index, fault) in faults.iter().enumerate() {
        if index > 0 {
            f.write_str("\n")?;
        }
        write!(f, "{fault}")?;
    }
    Ok(())
}

/// The opened adapters by provider.
#[derive(Clone, Default)]
pub struct Providers {
    opened: BTreeMap<ProviderId, Arc<dyn Kms>>,
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.opened.keys()).finish()
    }
}

impl Providers {
    /// Opens every provider that a key, a control key or the vault uses; of these `only`, if given.
    ///
    /// # Errors
    /// Every fault of every provider: a missing secret, a file that cannot be read or made.
    pub async fn open(config: &Config, only: Option<&ProviderId>) -> Result<Self, ProvidersError> {
        let mut opened = BTreeMap::new();
        let mut faults = Vec::new();
        for (id, provider) in &config.providers {
            if only.is_some_and(|only| only != id) {
                continue;
            }
            if targets(config, id).is_empty() {
                // A key of it may come in by the API; until then its faults concern nobody.
                let there = !matches!(&provider.detail, ProviderDetail::Local { path } if !Path::new(path).exists());
                if there && let Ok(kms) = open(config, provider).await {
                    opened.insert(id.clone(), kms);
                }
                continue;
            }
            match open(config, provider).await {
                Ok(kms) => {
                    opened.insert(id.clone(), kms);
                }
                Err(found) => faults.extend(found),
            }
        }
        if faults.is_empty() { Ok(Self { opened }) } else { Err(ProvidersError { faults }) }
    }

    #[must_use]
    pub fn get(&self, id: &ProviderId) -> Option<Arc<dyn Kms>> {
        self.opened.get(id).cloned()
    }

    pub fn ids(&self) -> impl Iterator<Item = &ProviderId> {
        self.opened.keys()
    }
}

/// Every key on a provider that is ever called: watched keys, the control key, the vault's keys.
#[must_use]
pub fn targets<'c>(config: &'c Config, provider: &ProviderId) -> Vec<&'c KeyTarget> {
    let watched = config.keys.values().filter(|key| key.provider == *provider && key.refused.is_none()).map(|key| &*key.target);
    let control = config.providers.get(provider).and_then(|p| p.control_key.as_deref());
    let vault = [&config.operator_key, &config.recovery_key].into_iter().flatten().filter(|(id, _)| id == provider).map(|(_, t)| &**t);
    watched.chain(control).chain(vault).collect()
}

/// The file of a local provider, with the keys that the configuration names if it was not there yet.
/// Blocks on the disk.
///
/// # Errors
/// If its folder or the file cannot be made.
pub fn local_file(config: &Config, provider: &ProviderId, path: &str, now: Wall) -> Result<LocalKmsFile, ProviderFault> {
    let path = Path::new(path);
    if let Some(folder) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(folder);
        made.map_err(|source| ProviderFault::Folder { provider: provider.clone(), path: folder.display().to_string(), source })?;
    }
    let names: Vec<&str> = targets(config, provider).iter().map(|target| &*target.reference.text).collect();
    LocalKmsFile::open_or_create(path, &names, now).map_err(|source| ProviderFault::Local { provider: provider.clone(), source })
}

async fn open(config: &Config, provider: &Provider) -> Result<Arc<dyn Kms>, Vec<ProviderFault>> {
    let id = &provider.id;
    let call_timeout = longest_call(config, id);
    match &provider.detail {
        ProviderDetail::Local { path } => {
            let file = local_file(config, id, path, crate::clock::now().wall).map_err(|fault| vec![fault])?;
            Ok(Arc::new(LocalKms::new(file)))
        }
        ProviderDetail::Aws { .. } => {
            let external_ids = external_ids(config, provider)?;
            let kms = AwsKms::new(provider, call_timeout, external_ids).await.map_err(|source| vec![source.into()])?;
            Ok(Arc::new(kms))
        }
        ProviderDetail::Gcp { .. } => {
            let fault = |source| vec![ProviderFault::Gcp { provider: id.clone(), source }];
            Ok(Arc::new(GcpKms::new(provider, call_timeout).await.map_err(fault)?))
        }
        ProviderDetail::Azure { credentials, .. } => {
            let resolve = |secret: &_| secrets::resolve(secret).map(|value| Zeroizing::new(value.expose().to_owned()));
            let missing = |source| vec![ProviderFault::Secret { provider: id.clone(), field: "credentials".to_owned(), source }];
            let identity = AzureIdentity::from_config(credentials, resolve).map_err(missing)?;
            let fault = |source| vec![ProviderFault::Azure { provider: id.clone(), source }];
            Ok(Arc::new(AzureKms::new(provider, identity, call_timeout).map_err(fault)?))
        }
    }
}

/// The adapter's own limit: whoever calls it cuts calls shorter by the key's policy.
fn longest_call(config: &Config, provider: &ProviderId) -> Span {
    let used = config.keys.values().filter(|key| key.provider == *provider).filter_map(|key| config.policies.get(&key.policy));
    used.map(|policy| policy.call_timeout).fold(CALL_TIMEOUT, Span::max)
}

/// The external ids of every role on this provider, the references among them resolved.
fn external_ids(config: &Config, provider: &Provider) -> Result<ExternalIds, Vec<ProviderFault>> {
    let own = match &provider.detail {
        ProviderDetail::Aws { assume_role, .. } => assume_role.as_ref(),
        ProviderDetail::Local { .. } | ProviderDetail::Gcp { .. } | ProviderDetail::Azure { .. } => None,
    };
    let roles = own.into_iter().chain(targets(config, &provider.id).into_iter().filter_map(|target| target.assume_role.as_ref()));
    let (mut ids, mut faults, mut seen) = (ExternalIds::default(), Vec::new(), BTreeSet::new());
    for role in roles {
        let Some(reference) = role.external_id.as_deref().filter(|text| seen.insert(*text)) else { continue };
        match secrets::resolve_text(reference) {
            Ok(value) => ids.insert(reference, value.expose()),
            Err(source) => faults.push(ProviderFault::Secret {
                provider: provider.id.clone(),
                field: format!("external_id of role {}", role.arn),
                source,
            }),
        }
    }
    if faults.is_empty() { Ok(ids) } else { Err(faults) }
}

#[cfg(test)]
mod tests;
