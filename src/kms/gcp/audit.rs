//! outside
//! A client of Cloud Logging under a provider's identity, or under the service account that an audit
//! source names. It makes the client and calls nothing.

use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_logging_v2::client::LoggingServiceV2;

use super::{identity, wire};
use crate::audit::AuditFault;
use crate::config::{AuditSource, Provider, ProviderDetail};
use crate::time::Span;
use crate::words::AuditTrouble;

/// # Errors
/// If the provider is not of kind gcp, its identity cannot be built, or the client cannot.
pub async fn logging_client(provider: &Provider, source: &AuditSource, timeout: Span) -> Result<LoggingServiceV2, AuditFault> {
    let ProviderDetail::Gcp { endpoint, credentials, .. } = &provider.detail else {
        return Err(AuditFault::new(AuditTrouble::Misconfigured, format!("provider {} is not of kind gcp", provider.id)));
    };
    wire::check_tls().map_err(|error| AuditFault::new(AuditTrouble::Misconfigured, error.message.to_string()))?;
    let own = identity::build(credentials, source.impersonate.as_deref()).await;
    let own = own.map_err(|error| AuditFault::new(AuditTrouble::Credentials, error.to_string()))?;
    let mut builder =
        LoggingServiceV2::builder().with_credentials(own.credentials).with_retry_policy(NeverRetry).with_attempt_timeout(timeout.to_std());
    // An emulator serves both; beyond this machine the address of Cloud KMS is not that of Cloud Logging.
    let here =
        endpoint.as_ref().filter(|address| ["http://127.", "http://localhost", "http://[::1]"].iter().any(|at| address.starts_with(at)));
    if let Some(endpoint) = source.endpoint.as_ref().or(here) {
        builder = builder.with_endpoint(endpoint);
    }
    builder.build().await.map_err(|error| AuditFault::new(AuditTrouble::Unreachable, error.to_string()))
}
