//! outside
//! Where keys live and who may be asked: hosts, clients per vault, credentials per tenant, our mark.
//! No host that is not a vault may ever see a token of ours.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use azure_core::credentials::TokenCredential;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{ClientOptions, Context, Request, RetryOptions, Transport, UserAgentOptions};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};

use super::{AzureIdentity, AzureKms, Fault, identity, ours};
use crate::key::{KeyTarget, Resource};

/// Application id in the user agent of every call (`clientInfo` in the owner's log).
pub const MARK: &str = "cmek-watchdog";
/// First characters of every call's `x-ms-client-request-id` (`CorrelationId` in the owner's log):
/// "cmek" and "wd" in ASCII. The log keeps GUIDs only, so the mark is the beginning of one.
pub const CALL_MARK: &str = "636d656b-7764";
/// Vaults and tenants whose clients are kept; beyond it all are made afresh.
const MOST_CLIENTS: usize = 4096;
/// Hosts that get a token of ours when the configuration lists none.
const SUFFIXES: [&str; 6] = [
    "vault.azure.net",
    "managedhsm.azure.net",
    "vault.azure.cn",
    "managedhsm.azure.cn",
    "vault.usgovcloudapi.net",
    "managedhsm.usgovcloudapi.net",
];

const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");

/// Whether a request of this call is at the vault now; if not, the call waits for a token.
#[derive(Clone, Default, Debug)]
pub(super) struct AtVault(pub Arc<AtomicBool>);

/// Runs right before the transport: marks the request as ours, notes when the vault has it, and keeps
/// it at its vault (a list's next page is an address that the vault chose).
#[derive(Debug)]
struct Mark {
    run: u64,
    count: Arc<AtomicU64>,
    /// Host and port of the vault.
    authority: String,
}

#[async_trait::async_trait]
impl Policy for Mark {
    async fn send(&self, ctx: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        let (host, port) = (request.url().host_str().unwrap_or_default(), request.url().port());
        if authority(host, port) != self.authority {
            let text = format!("the vault `{}` sends us on to `{host}`", self.authority);
            return Err(azure_core::Error::with_message(azure_core::error::ErrorKind::Other, text));
        }
        request.insert_header(CLIENT_REQUEST_ID, call_id(self.run, self.count.fetch_add(1, Ordering::Relaxed)));
        let at_vault = ctx.value::<AtVault>().cloned().unwrap_or_default();
        let (transport, rest) = next.split_first().ok_or_else(|| {
            azure_core::Error::with_message(azure_core::error::ErrorKind::Other, "the pipeline ends before its transport")
        })?;
        at_vault.0.store(true, Ordering::Relaxed);
        let answer = transport.send(ctx, request, rest).await;
        at_vault.0.store(false, Ordering::Relaxed);
        answer
    }
}

/// A GUID of version 4 that begins with our mark; the rest tells runs and calls apart.
fn call_id(run: u64, count: u64) -> String {
    format!("{CALL_MARK}-4{:03x}-8{:03x}-{:012x}", run & 0xfff, (run >> 12) & 0xfff, count & 0xffff_ffff_ffff)
}

/// Where a key lives.
pub(super) struct Place<'a> {
    pub host: &'a str,
    pub port: Option<u16>,
    pub name: &'a str,
    pub tenant: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub fn of(key: &'a KeyTarget) -> Result<Self, Fault> {
        match &key.reference.resource {
            Resource::Azure { host, port, name } => Ok(Self { host, port: *port, name, tenant: key.tenant.as_deref() }),
            Resource::Aws { .. } | Resource::Gcp { .. } | Resource::Local { .. } => {
                Err(ours("not_azure", &format!("`{}` is no Azure key", key.reference.text)))
            }
        }
    }

    fn authority(&self) -> String {
        authority(self.host, self.port)
    }

    pub fn full_name(&self) -> Arc<str> {
        format!("https://{}/keys/{}", self.authority(), self.name).into()
    }

    pub fn is_loopback(&self) -> bool {
        let literal = self.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        self.host == "localhost" || literal.is_ok_and(|ip| ip.is_loopback())
    }
}

/// Host and port as a URL has them; the port of https is left out.
fn authority(host: &str, port: Option<u16>) -> String {
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    match port {
        None | Some(443) => host,
        Some(port) => format!("{host}:{port}"),
    }
}

impl AzureKms {
    /// The setting, if any, that must never meet a vault elsewhere.
    pub(super) fn for_emulators_only(&self) -> Option<&'static str> {
        match &self.identity {
            _ if !self.verify_challenge_resource => Some("verify_challenge_resource = false"),
            AzureIdentity::StaticToken(_) => Some("static_token"),
            AzureIdentity::ClientSecret { .. } | AzureIdentity::WorkloadIdentity { .. } | AzureIdentity::ManagedIdentity { .. } => None,
        }
    }

    /// Refuses to show our token to a host that is no vault.
    pub(super) fn admit(&self, place: &Place<'_>) -> Result<(), Fault> {
        if place.is_loopback() {
            return Ok(());
        }
        if let Some(field) = self.for_emulators_only() {
            return Err(ours("not_loopback", &format!("{field} is only for a vault on this machine, not `{}`", place.host)));
        }
        let built_in: Vec<&str> = SUFFIXES.to_vec();
        let listed: Vec<&str> = self.host_suffixes.iter().map(String::as_str).collect();
        let suffixes = if listed.is_empty() { built_in } else { listed };
        let fits = |suffix: &&str| place.host.strip_suffix(*suffix).is_some_and(|vault| vault.ends_with('.') && vault.len() > 1);
        if suffixes.iter().any(fits) {
            Ok(())
        } else {
            Err(ours("foreign_host", &format!("`{}` ends with none of {}", place.host, suffixes.join(", "))))
        }
    }

    pub(super) fn credential(&self, place: &Place<'_>) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let cloud = identity::cloud_of(place.host);
        let slot = format!("{cloud:?} {}", place.tenant.unwrap_or_default());
        let mut known = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(credential) = known.get(&slot) {
            return Ok(credential.clone());
        }
        let made = self.identity.credential(place.tenant, cloud, &self.wire)?;
        if known.len() >= MOST_CLIENTS {
            known.clear();
        }
        known.insert(slot, made.clone());
        Ok(made)
    }

    pub(super) fn client(&self, place: &Place<'_>) -> Result<Arc<KeyClient>, Fault> {
        self.admit(place)?;
        let slot = format!("{} {}", place.authority(), place.tenant.unwrap_or_default());
        let known = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let mark = Mark { run: self.run, count: self.count.clone(), authority: place.authority() };
        let options = KeyClientOptions {
            client_options: ClientOptions {
                retry: RetryOptions::none(),
                transport: Some(Transport::new(self.wire.clone())),
                user_agent: UserAgentOptions { application_id: Some(MARK.to_owned()) },
                per_try_policies: vec![Arc::new(mark)],
                ..ClientOptions::default()
            },
            verify_challenge_resource: Some(self.verify_challenge_resource),
            ..KeyClientOptions::default()
        };
        let client = Arc::new(KeyClient::new(&format!("https://{}/", place.authority()), self.credential(place)?, Some(options))?);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(slot, client.clone());
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_id_is_a_marked_guid() {
        let id = call_id(u64::MAX, 1);
        assert_eq!(id, "636d656b-7764-4fff-8fff-000000000001");
        assert_eq!(CALL_MARK.replace('-', ""), "cmekwd".bytes().map(|b| format!("{b:02x}")).collect::<String>());
        assert_eq!(call_id(0, u64::MAX).len(), id.len());
    }

    #[test]
    fn an_authority_is_written_as_in_a_url() {
        for (host, port, text) in [
            ("v.vault.azure.net", None, "v.vault.azure.net"),
            ("v.vault.azure.net", Some(443), "v.vault.azure.net"),
            ("127.0.0.1", Some(8443), "127.0.0.1:8443"),
            ("::1", Some(8443), "[::1]:8443"),
            ("[::1]", None, "[::1]"),
        ] {
            assert_eq!(authority(host, port), text);
        }
    }
}
