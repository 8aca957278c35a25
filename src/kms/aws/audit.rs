//! outside
//! Clients for reading audit logs under a provider's identity, or under the source's own role in the
//! owner's account. It makes parts and calls nothing.

use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;

use super::client::{Clients, ExternalIds, base_config, shared_http};
use crate::audit::AuditFault;
use crate::config::{AuditSource, Provider, ProviderDetail};
use crate::time::Span;
use crate::words::AuditTrouble;

/// What a service client of an audit source is made of.
pub struct AuditClients {
    pub base: SdkConfig,
    pub region: Region,
    pub endpoint: Option<String>,
    pub credentials: Option<SharedCredentialsProvider>,
}

impl AuditClients {
    /// # Errors
    /// If the provider is not of kind aws, or a role's external id is not resolved.
    pub async fn open(provider: &Provider, source: &AuditSource, ids: ExternalIds, timeout: Span) -> Result<Self, AuditFault> {
        let ProviderDetail::Aws { region, endpoint, assume_role, .. } = &provider.detail else {
            return Err(AuditFault::new(AuditTrouble::Misconfigured, format!("provider {} is not of kind aws", provider.id)));
        };
        let base = base_config(region, endpoint.as_deref(), timeout, None, shared_http()).await;
        let clients = Clients::new(base, endpoint.clone(), assume_role.clone(), ids);
        let credentials = clients
            .credentials(source.assume_role.as_ref())
            .map_err(|fault| AuditFault::new(AuditTrouble::Credentials, fault.to_string()))?;
        Ok(Self {
            base: clients.base().clone(),
            region: Region::new(source.region.clone().unwrap_or_else(|| region.clone())),
            endpoint: source.endpoint.clone().or_else(|| endpoint.clone()),
            credentials,
        })
    }
}
