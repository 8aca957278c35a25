//! outside
//! The one connection pool to vaults and sign-in services: names, roots, bounds on answers.
//! Knows who could not be reached and why; it never retries, follows no redirect and keeps no answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use azure_core::error::ErrorKind;
use azure_core::http::{AsyncRawResponse, HttpClient, Request};
use futures_util::StreamExt;

use super::AzureSetupError;
use super::errors::SignInFault;
use crate::kms::BoxFuture;
use crate::time::Span;

/// More than any answer of a vault or a sign-in service needs.
const MOST_BYTES: usize = 1 << 20;
/// Names whose addresses are remembered; beyond it the memory starts afresh.
const MOST_NAMES: usize = 4096;

/// Why a name gave no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameFault {
    /// The resolver says that the name does not exist.
    #[error("the name does not exist")]
    Nonexistent,
    /// The resolver could not tell.
    #[error("the name could not be resolved")]
    Unknown,
}

/// Looks names up. A seam, so that tests serve the real host names from this machine.
pub trait Names: Send + Sync {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<SocketAddr>, NameFault>>;
    /// Where a connection to `address` really goes.
    fn reach(&self, address: SocketAddr) -> SocketAddr {
        address
    }
}

/// The system's resolver.
#[derive(Debug)]
pub struct SystemNames;

/// What the C library says when the name does not exist (glibc, musl); everything else is "cannot tell".
const NONEXISTENT: [&str; 2] = ["Name or service not known", "Name does not resolve"];

pub(super) fn name_fault(text: &str) -> NameFault {
    if NONEXISTENT.iter().any(|sentence| text.contains(sentence)) { NameFault::Nonexistent } else { NameFault::Unknown }
}

impl Names for SystemNames {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<SocketAddr>, NameFault>> {
        Box::pin(async move {
            match tokio::net::lookup_host((host, 0)).await {
                Ok(found) => Ok(found.collect()),
                Err(error) => Err(name_fault(&error.to_string())),
            }
        })
    }
}

/// The addresses that names resolved to last; tells a private endpoint from a public one.
#[derive(Clone, Default)]
pub struct Resolved(Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>);

impl Resolved {
    fn record(&self, host: &str, addresses: &[SocketAddr]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_NAMES {
            known.clear();
        }
        known.insert(host.to_owned(), addresses.iter().map(SocketAddr::ip).collect());
    }

    /// True if the host's last known addresses are all private ones.
    pub fn is_private(&self, host: &str) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(host).is_some_and(|ips| !ips.is_empty() && ips.iter().copied().all(private))
    }
}

/// Addresses that a private endpoint can have: RFC 1918, carrier-grade NAT, unique local.
pub(super) fn private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || matches!(v4.octets(), [100, 64..=127, _, _]),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

struct Resolver {
    names: Arc<dyn Names>,
    resolved: Resolved,
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let (names, resolved, host) = (self.names.clone(), self.resolved.clone(), name.as_str().to_owned());
        Box::pin(async move {
            // A name that hangs or fails must not be judged by where it led earlier.
            resolved.record(&host, &[]);
            let found = names.resolve(&host).await?;
            resolved.record(&host, &found);
            let reached: Vec<SocketAddr> = found.into_iter().map(|address| names.reach(address)).collect();
            Ok(Box::new(reached.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// An answer longer than the bound; nothing of it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the answer is longer than {MOST_BYTES} bytes")]
pub struct Oversized;

/// The transport that the SDK's clients share.
pub struct Wire {
    client: reqwest::Client,
    names: Arc<dyn Names>,
    pub resolved: Resolved,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    /// # Errors
    /// If the extra root cannot be read or parsed, or the client cannot be built.
    pub fn new(ca_file: Option<&str>, names: Option<Arc<dyn Names>>, call_timeout: Span) -> Result<Arc<Self>, AzureSetupError> {
        let resolved = Resolved::default();
        // Connecting ends before the call does, so that a dead address is told from a slow answer.
        let connect = Span(call_timeout.0.saturating_mul(4)).over(5);
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(connect.to_std())
            .timeout(call_timeout.to_std())
            .tcp_nodelay(true);
        if let Some(path) = ca_file {
            let unusable = |why: String| AzureSetupError::CaFile { path: path.to_owned(), why };
            let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
            if roots.is_empty() {
                return Err(unusable("no certificate in it".to_owned()));
            }
            builder = builder.tls_certs_merge(roots);
        }
        if names.is_some() {
            // Names of our own mean connections of our own; a proxy would resolve for itself.
            builder = builder.no_proxy();
        }
        let names = names.unwrap_or_else(|| Arc::new(SystemNames));
        let client = builder
            .dns_resolver(Resolver { names: names.clone(), resolved: resolved.clone() })
            .build()
            .map_err(|error| AzureSetupError::Client { why: error.to_string() })?;
        Ok(Arc::new(Self { client, names, resolved }))
    }

    /// A URL whose host is an address is never resolved, so `reach` is applied to the URL itself.
    fn reached(&self, request: &Request) -> Option<Request> {
        let url = request.url();
        let ip: IpAddr = url.host_str()?.trim_matches(['[', ']']).parse().ok()?;
        let address = SocketAddr::new(ip, url.port_or_known_default()?);
        let reached = self.names.reach(address);
        if reached == address {
            return None;
        }
        let mut request = request.clone();
        request.url_mut().set_ip_host(reached.ip()).ok()?;
        request.url_mut().set_port(Some(reached.port())).ok()?;
        Some(request)
    }

    async fn send(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let elsewhere = self.reached(request);
        let answer = self.client.execute_request(elsewhere.as_ref().unwrap_or(request)).await?;
        let (status, headers, mut body) = answer.deconstruct();
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            if bytes.len().saturating_add(chunk.len()) > MOST_BYTES {
                return Err(azure_core::Error::new(ErrorKind::DataConversion, Oversized));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(AsyncRawResponse::from_bytes(status, headers, bytes))
    }
}

#[async_trait::async_trait]
impl HttpClient for Wire {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        self.send(request).await
    }
}

/// The same pool for sign-in. Every failure becomes a [`SignInFault`] here: the SDK's own reading of
/// a refusal loses the code whenever the text has an escape, and its retries outlast our deadline.
#[derive(Debug)]
pub struct SignInWire(pub Arc<Wire>);

#[async_trait::async_trait]
impl HttpClient for SignInWire {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let host = request.url().host_str().unwrap_or_default().to_owned();
        let fault = match self.0.send(request).await {
            Ok(answer) if answer.status().is_success() => return Ok(answer),
            Ok(answer) => {
                let status = u16::from(answer.status());
                let body = answer.into_body().collect().await.unwrap_or_default();
                SignInFault::refused(&host, status, &body)
            }
            Err(error) => SignInFault::Unreached { host, why: super::errors::deepest(&error) },
        };
        Err(azure_core::Error::new(ErrorKind::Credential, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sentence_of_the_resolver_is_told_apart() {
        for (text, fault) in [
            ("failed to lookup address information: Name or service not known", NameFault::Nonexistent),
            ("failed to lookup address information: Name does not resolve", NameFault::Nonexistent),
            ("failed to lookup address information: Temporary failure in name resolution", NameFault::Unknown),
            ("failed to lookup address information: No address associated with hostname", NameFault::Unknown),
        ] {
            assert_eq!(name_fault(text), fault, "{text}");
        }
    }

    #[test]
    fn private_addresses_are_those_of_private_endpoints() {
        for (ip, expected) in [
            ("10.10.1.5", true),
            ("172.31.0.1", true),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("20.50.1.1", false),
            ("fd00::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(private(ip.parse().expect("an address")), expected, "{ip}");
        }
    }

    #[test]
    fn a_name_with_one_public_address_is_not_private() {
        let resolved = Resolved::default();
        assert!(!resolved.is_private("v"));
        resolved.record("v", &["10.0.0.1:0".parse().expect("address"), "20.0.0.1:0".parse().expect("address")]);
        assert!(!resolved.is_private("v"));
        resolved.record("v", &["10.0.0.1:0".parse().expect("address")]);
        assert!(resolved.is_private("v"));
        resolved.record("v", &[]);
        assert!(!resolved.is_private("v"));
    }

    #[test]
    fn a_missing_or_empty_root_file_is_named() {
        let missing = Wire::new(Some("/nonexistent/ca.pem"), None, Span::from_secs(1)).expect_err("no such file");
        assert!(missing.to_string().starts_with("ca_file `/nonexistent/ca.pem`"), "{missing}");
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("empty.pem");
        std::fs::write(&path, "nothing").expect("write");
        let empty = Wire::new(path.to_str(), None, Span::from_secs(1)).expect_err("no certificate");
        assert!(empty.to_string().contains("no certificate"), "{empty}");
    }
}
