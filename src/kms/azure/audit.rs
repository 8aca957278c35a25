//! outside
//! Signing in to Azure's log services under a provider's identity. Tokens stay in the credential's own
//! cache and in the one request; never in an error.

use std::sync::Arc;

use azure_core::credentials::TokenCredential;
use zeroize::Zeroizing;

use super::identity::AzureIdentity;
use super::wire::Wire;
use crate::audit::AuditFault;
use crate::config::{AuditSource, Provider, ProviderDetail};
use crate::secrets;
use crate::time::Span;
use crate::words::AuditTrouble;

/// Who reads the logs.
pub struct LogSignIn(Arc<dyn TokenCredential>);

impl LogSignIn {
    /// # Errors
    /// If the provider is not of kind azure, or a secret is missing.
    pub fn open(provider: &Provider, source: &AuditSource, timeout: Span) -> Result<Self, AuditFault> {
        let ProviderDetail::Azure { credentials, ca_file, .. } = &provider.detail else {
            return Err(AuditFault::new(AuditTrouble::Misconfigured, format!("provider {} is not of kind azure", provider.id)));
        };
        let resolve = |secret: &_| secrets::resolve(secret).map(|value| Zeroizing::new(value.expose().to_owned()));
        let identity = AzureIdentity::from_config(credentials, resolve);
        let identity = identity.map_err(|error| AuditFault::new(AuditTrouble::Credentials, error.to_string()))?;
        let wire = Wire::new(ca_file.as_deref(), None, timeout);
        let wire = wire.map_err(|error| AuditFault::new(AuditTrouble::Misconfigured, error.to_string()))?;
        let credential = identity.credential(source.tenant.as_deref(), None, &wire);
        credential.map(Self).map_err(|error| AuditFault::new(AuditTrouble::Credentials, error.to_string()))
    }

    /// A token for one service.
    ///
    /// # Errors
    /// If signing in is refused or not possible.
    pub async fn token(&self, scope: &str) -> Result<Zeroizing<String>, AuditFault> {
        match self.0.get_token(&[scope], None).await {
            Ok(token) => Ok(Zeroizing::new(token.token.secret().to_owned())),
            Err(error) => Err(AuditFault::new(AuditTrouble::Credentials, error.to_string())),
        }
    }
}
