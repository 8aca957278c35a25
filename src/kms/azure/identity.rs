//! outside
//! Who we are to Azure: builds the SDK's credentials, one per tenant, and reads who a token speaks for.
//! A token is decoded to name us and never verified, logged or kept here.

use std::path::PathBuf;
use std::sync::Arc;

use azure_core::cloud::CloudConfiguration;
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_core::time::{Duration, OffsetDateTime};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions, ManagedIdentityCredential,
    ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use base64::Engine as _;
use zeroize::Zeroizing;

use super::wire::{SignInWire, Wire};
use crate::config::{AzureCredentials, SecretRef};

/// How we sign in, with secrets resolved.
#[derive(Clone)]
pub enum AzureIdentity {
    ClientSecret {
        tenant: String,
        client: String,
        secret: Zeroizing<String>,
    },
    /// Federated token of a pod; what is absent comes from `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` and
    /// `AZURE_FEDERATED_TOKEN_FILE`.
    WorkloadIdentity {
        tenant: Option<String>,
        client: Option<String>,
        token_file: Option<PathBuf>,
    },
    /// Identity of the machine; `client` names a user-assigned one.
    ManagedIdentity {
        client: Option<String>,
    },
    /// For emulators on this machine only.
    StaticToken(Zeroizing<String>),
}

impl std::fmt::Debug for AzureIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClientSecret { tenant, client, .. } => write!(f, "ClientSecret({client} in {tenant})"),
            Self::WorkloadIdentity { tenant, client, .. } => write!(f, "WorkloadIdentity({client:?} in {tenant:?})"),
            Self::ManagedIdentity { client } => write!(f, "ManagedIdentity({client:?})"),
            Self::StaticToken(_) => f.write_str("StaticToken"),
        }
    }
}

impl AzureIdentity {
    /// Resolves the configuration's secrets with `resolve`. `Default` is workload identity where its
    /// token file is set in the environment, else managed identity.
    ///
    /// # Errors
    /// What `resolve` gives.
    pub fn from_config<E>(
        credentials: &AzureCredentials,
        mut resolve: impl FnMut(&SecretRef) -> Result<Zeroizing<String>, E>,
    ) -> Result<Self, E> {
        Ok(match credentials {
            AzureCredentials::Default => Self::from_environment(|name| std::env::var(name).ok().filter(|value| !value.is_empty())),
            AzureCredentials::ClientSecret { tenant, client, secret } => {
                Self::ClientSecret { tenant: tenant.clone(), client: client.clone(), secret: resolve(secret)? }
            }
            AzureCredentials::StaticToken(token) => Self::StaticToken(resolve(token)?),
        })
    }

    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let client = variable("AZURE_CLIENT_ID");
        match variable("AZURE_FEDERATED_TOKEN_FILE") {
            Some(file) => Self::WorkloadIdentity { tenant: variable("AZURE_TENANT_ID"), client, token_file: Some(file.into()) },
            None => Self::ManagedIdentity { client },
        }
    }

    /// The tenant that we sign in to unless a key names another one.
    pub(super) fn home(&self) -> Option<&str> {
        match self {
            Self::ClientSecret { tenant, .. } => Some(tenant),
            Self::WorkloadIdentity { tenant, .. } => tenant.as_deref(),
            Self::ManagedIdentity { .. } | Self::StaticToken(_) => None,
        }
    }

    /// A credential for one tenant and cloud. A managed identity has only its own tenant.
    ///
    /// # Errors
    /// If something is missing that the SDK needs: a tenant, a client, the token file.
    pub(super) fn credential(
        &self,
        tenant: Option<&str>,
        cloud: Option<CloudConfiguration>,
        wire: &Arc<Wire>,
    ) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let client_options = ClientOptions {
            retry: RetryOptions::none(),
            transport: Some(Transport::new(Arc::new(SignInWire(wire.clone())))),
            cloud: cloud.map(Arc::new),
            ..ClientOptions::default()
        };
        Ok(match self {
            Self::ClientSecret { tenant: home, client, secret } => ClientSecretCredential::new(
                tenant.unwrap_or(home),
                client.clone(),
                Secret::new(secret.as_str().to_owned()),
                Some(ClientSecretCredentialOptions { client_options }),
            )?,
            Self::WorkloadIdentity { tenant: home, client, token_file } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: client.clone(),
                    tenant_id: tenant.map(str::to_owned).or_else(|| home.clone()),
                    token_file_path: token_file.clone(),
                }))?
            }
            Self::ManagedIdentity { client } => ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                user_assigned_id: client.clone().map(UserAssignedId::ClientId),
                client_options,
            }))?,
            Self::StaticToken(token) => Arc::new(StaticToken(token.clone())),
        })
    }
}

/// A token that never changes.
struct StaticToken(Zeroizing<String>);

impl std::fmt::Debug for StaticToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StaticToken")
    }
}

#[async_trait::async_trait]
impl TokenCredential for StaticToken {
    async fn get_token(&self, _: &[&str], _: Option<TokenRequestOptions<'_>>) -> azure_core::Result<AccessToken> {
        if self.0.is_empty() {
            return Err(azure_core::Error::with_message(ErrorKind::Credential, "the static token is empty"));
        }
        Ok(AccessToken::new(self.0.as_str().to_owned(), OffsetDateTime::now_utc() + Duration::hours(24)))
    }
}

#[derive(serde::Deserialize)]
struct Claims {
    appid: Option<String>,
    azp: Option<String>,
    oid: Option<String>,
    tid: Option<String>,
}

/// Application, object and tenant that a token speaks for; `None` if it is not a token with claims.
pub(super) fn speaks_for(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let parts: Vec<String> = [("appid", claims.appid.or(claims.azp)), ("oid", claims.oid), ("tid", claims.tid)]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name}={value}")))
        .collect();
    (!parts.is_empty()).then(|| parts.join(";"))
}

/// The cloud that a vault's host belongs to; `None` is the public one (or `AZURE_AUTHORITY_HOST`).
pub(super) fn cloud_of(host: &str) -> Option<CloudConfiguration> {
    if host.ends_with(".azure.cn") {
        Some(CloudConfiguration::AzureChina)
    } else if host.ends_with(".usgovcloudapi.net") {
        Some(CloudConfiguration::AzureGovernment)
    } else {
        None
    }
}

/// The scope that a vault's challenge asks for, from its host: `https://vault.azure.net/.default`.
pub(super) fn scope_of(host: &str) -> String {
    let literal = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let parent = if literal { None } else { host.split_once('.').map(|(_, parent)| parent) };
    format!("https://{}/.default", parent.unwrap_or("vault.azure.net"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_names_application_object_and_tenant() {
        assert_eq!(speaks_for(&token(r#"{"appid":"a","oid":"o","tid":"t","aud":"x"}"#)).as_deref(), Some("appid=a;oid=o;tid=t"));
        assert_eq!(speaks_for(&token(r#"{"azp":"a","tid":"t"}"#)).as_deref(), Some("appid=a;tid=t"));
        for opaque in ["", "opaque", "a.b.c", "e30.e30.c2ln", "..", &token("[]")] {
            assert_eq!(speaks_for(opaque), None, "{opaque}");
        }
    }

    #[test]
    fn scope_and_cloud_follow_the_vault_host() {
        for (host, scope) in [
            ("acme.vault.azure.net", "https://vault.azure.net/.default"),
            ("acme.managedhsm.azure.net", "https://managedhsm.azure.net/.default"),
            ("acme.vault.azure.cn", "https://vault.azure.cn/.default"),
            ("127.0.0.1", "https://vault.azure.net/.default"),
            ("localhost", "https://vault.azure.net/.default"),
        ] {
            assert_eq!(scope_of(host), scope);
        }
        assert!(matches!(cloud_of("a.vault.azure.cn"), Some(CloudConfiguration::AzureChina)));
        assert!(matches!(cloud_of("a.managedhsm.usgovcloudapi.net"), Some(CloudConfiguration::AzureGovernment)));
        assert!(cloud_of("a.vault.azure.net").is_none());
    }

    #[test]
    fn the_default_chain_takes_workload_identity_first() {
        let workload = AzureIdentity::from_environment(|name| Some(format!("of {name}")));
        assert!(
            matches!(&workload, AzureIdentity::WorkloadIdentity { tenant: Some(_), client: Some(_), token_file: Some(_) }),
            "{workload:?}"
        );
        let managed = AzureIdentity::from_environment(|name| (name == "AZURE_CLIENT_ID").then(|| "c".to_owned()));
        assert!(matches!(&managed, AzureIdentity::ManagedIdentity { client: Some(c) } if c == "c"), "{managed:?}");
        assert!(matches!(AzureIdentity::from_environment(|_| None), AzureIdentity::ManagedIdentity { client: None }));
    }

    #[test]
    fn secrets_are_resolved_and_never_shown() {
        let secret = SecretRef::Env("X".into());
        let from =
            |c: &AzureCredentials| AzureIdentity::from_config(c, |_| Ok::<_, ()>(Zeroizing::new("hush".to_owned()))).expect("resolved");
        let client = from(&AzureCredentials::ClientSecret { tenant: "t".into(), client: "c".into(), secret: secret.clone() });
        let fixed = from(&AzureCredentials::StaticToken(secret.clone()));
        for identity in [&client, &fixed] {
            assert!(!format!("{identity:?}").contains("hush"));
        }
        assert_eq!((client.home(), fixed.home()), (Some("t"), None));
        let missing = AzureIdentity::from_config(&AzureCredentials::StaticToken(secret), |_| Err("no such variable"));
        assert_eq!(missing.expect_err("unresolved"), "no such variable");
    }
}
