//! Puts the adapter's real host names on servers of this machine, and builds providers and keys.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use cmek_watchdog::config::{AzureCredentials, Provider, ProviderDetail};
use cmek_watchdog::key::{KeyRef, KeyTarget, ProviderId};
use cmek_watchdog::kms::BoxFuture;
use cmek_watchdog::kms::azure::{AzureIdentity, AzureKms, NameFault, Names};
use cmek_watchdog::time::Span;
use cmek_watchdog::words::ProviderKind;

/// The instance metadata service as every machine in Azure sees it.
pub const METADATA: &str = "169.254.169.254";
pub const OUR_TENANT: &str = "88888888-8888-8888-8888-888888888888";
pub const THEIR_TENANT: &str = "99999999-9999-9999-9999-999999999999";
pub const OUR_APP: &str = "11111111-1111-1111-1111-111111111111";

/// Where names lead: every name to `all`, unless the vault has an answer of its own.
#[derive(Clone, Default)]
pub struct TestNames {
    pub all: Option<SocketAddr>,
    pub vault: Option<Result<IpAddr, NameFault>>,
    /// Where connections to the vault's own address, or to the metadata service, end up.
    pub reached: Vec<(IpAddr, SocketAddr)>,
}

impl Names for TestNames {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<SocketAddr>, NameFault>> {
        Box::pin(async move {
            match self.vault {
                Some(own) if !host.starts_with("login.") => own.map(|ip| vec![SocketAddr::new(ip, 0)]),
                _ => self.all.map(|addr| vec![addr]).ok_or(NameFault::Unknown),
            }
        })
    }
    fn reach(&self, address: SocketAddr) -> SocketAddr {
        self.reached.iter().find(|(ip, _)| *ip == address.ip()).map_or(address, |(_, to)| *to)
    }
}

/// A folder with the root in it, kept as long as the provider may read it.
pub struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    pub fn new(pem: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), pem).unwrap();
        Self { folder }
    }
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }
}

pub fn provider(root: Option<&Root>) -> Provider {
    Provider {
        id: ProviderId::new("azure-test").unwrap(),
        detail: ProviderDetail::Azure {
            credentials: AzureCredentials::Default,
            ca_file: root.map(|root| root.path().to_str().unwrap().to_owned()),
            verify_challenge_resource: true,
            host_suffixes: Vec::new(),
            our_accounts: Vec::new(),
        },
        control_key: None,
        calls_per_second: 10,
    }
}

pub fn client_secret() -> AzureIdentity {
    AzureIdentity::ClientSecret {
        tenant: OUR_TENANT.to_owned(),
        client: OUR_APP.to_owned(),
        secret: zeroize::Zeroizing::new("hush".to_owned()),
    }
}

pub fn azure(root: &Root, identity: AzureIdentity, names: TestNames, call_timeout: Span) -> AzureKms {
    AzureKms::with_names(&provider(Some(root)), identity, call_timeout, Arc::new(names)).unwrap()
}

pub fn key(text: &str) -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Azure, text).unwrap())
}

/// A token with the claims that Entra ID puts in, signed by nobody.
pub fn token(app: &str, tenant: &str, audience: &str) -> String {
    let claims = serde_json::json!({
        "aud": audience, "iss": format!("https://sts.windows.net/{tenant}/"), "appid": app,
        "oid": "22222222-2222-2222-2222-222222222222", "tid": tenant,
    });
    let part = |value: &serde_json::Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(&serde_json::json!({"alg": "none"})), part(&claims), "c2lnbmF0dXJl")
}
