//! outside
//! SDK clients for one AWS provider: one HTTP client, no retries, explicit timeouts, one client per
//! region and assumed role. Takes on roles with its own refusals kept readable.
//! Must never retry, and never let an external id or a token into an error or `Debug`.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_kms::config::{Credentials, IdentityCache, SharedHttpClient, StalledStreamProtectionConfig};
use aws_smithy_http_client::tls;

use super::answer::Refusal;
use super::fault::{Fault, fault_of};
use crate::key::AssumeRole;
use crate::time::Span;

/// Our name in user agents and role sessions.
pub const OUR_NAME: &str = "cmek-watchdog";
/// A connection that takes longer is a network fault of its own, seen before the call's own limit.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The shortest that STS gives: a role whose trust was withdrawn works on until its session ends.
const SESSION_SECONDS: i32 = 900;
/// Assumed roles whose credentials are kept at a time; beyond that they are fetched again.
const ROLES_CACHED: usize = 4096;

/// External ids, found by the text that the configuration has in their place.
#[derive(Clone, Default)]
pub struct ExternalIds(BTreeMap<String, String>);

impl ExternalIds {
    /// Adds the value that `reference` (such as `env:ACME_EXTERNAL_ID`) stands for.
    pub fn insert(&mut self, reference: &str, value: &str) {
        self.0.insert(reference.to_owned(), value.to_owned());
    }
    /// Whether the value for this text of the configuration is at hand.
    pub fn knows(&self, text: &str) -> bool {
        self.find(text).is_some()
    }
    /// The value for a text of the configuration: resolved, or the text itself if it is no reference.
    fn find(&self, text: &str) -> Option<String> {
        match self.0.get(text) {
            Some(value) => Some(value.clone()),
            None if ["env:", "file:", "credential:"].iter().any(|p| text.starts_with(p)) => None,
            None => Some(text.to_owned()),
        }
    }
}

impl std::fmt::Debug for ExternalIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The HTTP client that every AWS provider of this process shares.
#[must_use]
pub fn shared_http() -> SharedHttpClient {
    static SHARED: OnceLock<SharedHttpClient> = OnceLock::new();
    SHARED.get_or_init(new_http).clone()
}

/// A client with a connection pool of its own; a pool does not outlive the runtime it was used on.
#[must_use]
pub fn new_http() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc)).build_https()
}

/// Timeouts of one call: connecting, and the call as a whole.
fn timeouts(call_timeout: Span) -> TimeoutConfig {
    let whole = call_timeout.to_std();
    TimeoutConfig::builder().connect_timeout(whole.min(CONNECT_LIMIT)).operation_timeout(whole).build()
}

/// What every service client starts from. `credentials: None` = the SDK's default chain, and then
/// the SDK's own variables and files (`AWS_ENDPOINT_URL*`, profiles) apply too.
pub async fn base_config(
    region: &str,
    endpoint: Option<&str>,
    call_timeout: Span,
    credentials: Option<SharedCredentialsProvider>,
    http: SharedHttpClient,
) -> SdkConfig {
    // Credentials get less time than the call, so that a hung metadata service is seen as such.
    let cache = IdentityCache::lazy().load_timeout(call_timeout.times(4).over(5).to_std()).max_partitions(ROLES_CACHED).build();
    let name = AppName::new(OUR_NAME).ok();
    let retries = aws_config::retry::RetryConfig::disabled();
    let region = Region::new(region.to_owned());
    match credentials {
        Some(credentials) => {
            let mut builder = SdkConfig::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(region)
                .http_client(http)
                .credentials_provider(credentials)
                .identity_cache(cache)
                .retry_config(retries)
                .timeout_config(timeouts(call_timeout))
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
            builder.set_app_name(name);
            builder.set_endpoint_url(endpoint.map(str::to_owned));
            builder.build()
        }
        None => {
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .region(region)
                .http_client(http)
                .identity_cache(cache)
                .retry_config(retries)
                .timeout_config(timeouts(call_timeout))
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
            if let Some(name) = name {
                loader = loader.app_name(name);
            }
            if let Some(endpoint) = endpoint {
                loader = loader.endpoint_url(endpoint);
            }
            loader.load().await
        }
    }
}

/// Both services under one identity in one region.
#[derive(Clone, Debug)]
pub struct Services {
    pub kms: aws_sdk_kms::Client,
    pub sts: aws_sdk_sts::Client,
}

/// Makes and keeps clients.
#[derive(Debug)]
pub struct Clients {
    base: SdkConfig,
    endpoint: Option<String>,
    provider_role: Option<AssumeRole>,
    external_ids: ExternalIds,
    made: Mutex<BTreeMap<(String, Option<AssumeRole>), Services>>,
    roles: Mutex<BTreeMap<AssumeRole, SharedCredentialsProvider>>,
}

impl Clients {
    pub fn new(base: SdkConfig, endpoint: Option<String>, provider_role: Option<AssumeRole>, external_ids: ExternalIds) -> Self {
        Self { base, endpoint, provider_role, external_ids, made: Mutex::default(), roles: Mutex::default() }
    }

    pub const fn base(&self) -> &SdkConfig {
        &self.base
    }

    /// Clients for a key's region under the key's role, or else the provider's.
    ///
    /// # Errors
    /// If the external id of a role was not resolved.
    pub fn services(&self, region: &str, key_role: Option<&AssumeRole>) -> Result<Services, Fault> {
        let at = (region.to_owned(), key_role.cloned());
        if let Some(made) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&at) {
            return Ok(made.clone());
        }
        let credentials = self.credentials(key_role)?;
        let made = self.build(region, credentials);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(at, made.clone());
        Ok(made)
    }

    fn build(&self, region: &str, credentials: Option<SharedCredentialsProvider>) -> Services {
        let region = Region::new(region.to_owned());
        let mut kms = aws_sdk_kms::config::Builder::from(&self.base).region(region.clone());
        let mut sts = aws_sdk_sts::config::Builder::from(&self.base).region(region);
        if let Some(credentials) = credentials {
            // Not `credentials_provider`: that would wrap it anew and cache its session apart.
            kms.set_credentials_provider(Some(credentials.clone()));
            sts.set_credentials_provider(Some(credentials));
        }
        if let Some(endpoint) = &self.endpoint {
            kms = kms.endpoint_url(endpoint);
            sts = sts.endpoint_url(endpoint);
        }
        Services { kms: aws_sdk_kms::Client::from_conf(kms.build()), sts: aws_sdk_sts::Client::from_conf(sts.build()) }
    }

    /// `None` = as the base has it. The provider's own role comes first; a key's role is then taken
    /// on by that identity.
    pub(super) fn credentials(&self, key_role: Option<&AssumeRole>) -> Result<Option<SharedCredentialsProvider>, Fault> {
        let base = match &self.provider_role {
            Some(role) => Some(self.role(role, None)?),
            None => None,
        };
        match key_role {
            Some(role) if Some(role) != self.provider_role.as_ref() => Ok(Some(self.role(role, base)?)),
            Some(_) | None => Ok(base),
        }
    }

    /// One provider per role, so that all regions share its session.
    fn role(&self, role: &AssumeRole, by: Option<SharedCredentialsProvider>) -> Result<SharedCredentialsProvider, Fault> {
        if let Some(made) = self.roles.lock().unwrap_or_else(PoisonError::into_inner).get(role) {
            return Ok(made.clone());
        }
        let external_id = match &role.external_id {
            Some(text) => Some(self.external_ids.find(text).ok_or_else(|| Fault::unresolved_external_id(&role.arn))?),
            None => None,
        };
        // Tokens of a regional STS are good in every region, so the provider's own region serves.
        let region = self.base.region().map(|r| r.as_ref().to_owned()).unwrap_or_default();
        let sts = self.build(&region, by).sts;
        let made = SharedCredentialsProvider::new(RoleProvider { sts, arn: role.arn.clone(), external_id });
        self.roles.lock().unwrap_or_else(PoisonError::into_inner).insert(role.clone(), made.clone());
        Ok(made)
    }
}

/// Takes on a role. The SDK's own does it too, but retries and keeps no readable refusal.
struct RoleProvider {
    sts: aws_sdk_sts::Client,
    arn: String,
    external_id: Option<String>,
}

impl std::fmt::Debug for RoleProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleProvider").field("arn", &self.arn).finish_non_exhaustive()
    }
}

impl RoleProvider {
    async fn assume(&self) -> provider::Result {
        let call = self.sts.assume_role().role_arn(&self.arn).role_session_name(OUR_NAME).duration_seconds(SESSION_SECONDS);
        let call = call.set_external_id(self.external_id.clone());
        let sent = call.send().await.map_err(|e| {
            let fault = self.without_external_id(fault_of(&e, "sts:AssumeRole"));
            CredentialsError::provider_error(fault)
        })?;
        let given = sent.credentials.ok_or_else(|| CredentialsError::unhandled("the role's answer has no credentials"))?;
        let expires = std::time::SystemTime::try_from(given.expiration).ok();
        Ok(Credentials::new(given.access_key_id, given.secret_access_key, Some(given.session_token), expires, OUR_NAME))
    }

    /// A validation error repeats the value that it refuses.
    fn without_external_id(&self, fault: Fault) -> Fault {
        let hide = |text: &str| match self.external_id.as_deref().filter(|id| !id.is_empty()) {
            Some(id) => text.replace(id, "(external id)"),
            None => text.to_owned(),
        };
        match fault {
            Fault::Refused { operation, refusal } => {
                let message = hide(&refusal.message);
                Fault::Refused { operation, refusal: Box::new(Refusal { message, ..*refusal }) }
            }
            Fault::NoAnswer { code, message } => Fault::NoAnswer { code, message: hide(&message) },
        }
    }
}

impl ProvideCredentials for RoleProvider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.assume())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_id_never_shows_in_debug_and_an_unresolved_one_is_not_used_as_it_stands() {
        let mut ids = ExternalIds::default();
        ids.insert("env:A", "s3cret");
        assert_eq!(format!("{ids:?}"), r#"{"env:A"}"#);
        assert_eq!(ids.find("env:A").as_deref(), Some("s3cret"));
        assert_eq!(ids.find("plain").as_deref(), Some("plain"));
        assert_eq!(ids.find("env:B"), None);
    }
}
