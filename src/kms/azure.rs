//! outside
//! Azure Key Vault and Managed HSM through azure_security_keyvault_keys: translates calls and answers,
//! decides nothing. Both directions are calls to the service; wrapping in this process would prove nothing.
//! Azure has no aliases: a key is addressed by its own name, never by what a vault answered.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use azure_core::credentials::TokenCredential;
use azure_core::http::headers::{HeaderName, Headers};
use azure_core::http::{ClientMethodOptions, Context};
use azure_security_keyvault_keys::KeyClient;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientGetDeletedKeyOptions, KeyClientGetKeyOptions, KeyClientListKeyPropertiesVersionsOptions,
    KeyClientUnwrapKeyOptions, KeyClientWrapKeyOptions, KeyOperationParameters, KeyProperties,
};
use futures_util::StreamExt;
use zeroize::{Zeroize, Zeroizing};

use crate::config::{Provider, ProviderDetail};
use crate::key::{KeyTarget, KeyVersion};
use crate::kms::{Answer, BoxFuture, CallMeta, KeyFacts, Kms, KmsError, Rotation, Unwrapped, Wrapped};
use crate::time::{Span, Wall};
use crate::words::{FailureKind, ProviderKind};

mod audit;
mod errors;
mod facts;
mod identity;
mod rotation;
mod vault;
mod vaults;
mod wire;

pub use audit::LogSignIn;
pub use identity::AzureIdentity;
pub use vault::AzureVaultKey;
pub use vaults::{CALL_MARK, MARK};
pub use wire::{NameFault, Names, SystemNames};

use errors::{Asked, Circumstances, classify};
use vaults::{AtVault, Place};
use wire::Wire;

/// What a canary is wrapped with unless the key names another algorithm.
const ALGORITHM: &str = "RSA-OAEP-256";
/// Prefix of `Wrapped::sealed_with`.
const SEALED_WITH: &str = "alg=";
/// Pages of versions that describing reads, 25 versions each.
const MOST_PAGES: usize = 4;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const DATE: HeaderName = HeaderName::from_static("date");

/// Why an Azure provider cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AzureSetupError {
    #[error("provider `{provider}` is of kind {kind}, not azure")]
    WrongKind { provider: String, kind: ProviderKind },
    #[error("ca_file `{path}`: {why}")]
    CaFile { path: String, why: String },
    #[error("http client: {why}")]
    Client { why: String },
    #[error("{field} is only for a vault on this machine, and control_key names `{host}`")]
    NotLoopback { field: &'static str, host: String },
}

/// Key Vault and Managed HSM under one identity of ours.
pub struct AzureKms {
    identity: AzureIdentity,
    wire: Arc<Wire>,
    call_timeout: Span,
    verify_challenge_resource: bool,
    host_suffixes: Vec<String>,
    our_accounts: Vec<String>,
    /// By cloud and tenant: tokens are cached in the credential.
    credentials: Mutex<BTreeMap<String, Arc<dyn TokenCredential>>>,
    /// By vault and tenant: each new client costs one unauthenticated round trip.
    clients: Mutex<BTreeMap<String, Arc<KeyClient>>>,
    run: u64,
    count: Arc<AtomicU64>,
}

impl std::fmt::Debug for AzureKms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AzureKms").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Why a leg failed, before it is classified.
enum Fault {
    Sdk(azure_core::Error),
    Ours(KmsError),
}

impl From<azure_core::Error> for Fault {
    fn from(error: azure_core::Error) -> Self {
        Self::Sdk(error)
    }
}

fn ours(code: &str, message: &str) -> Fault {
    Fault::Ours(KmsError::new(FailureKind::Misconfigured, false, code, message))
}

fn undecodable(message: &str) -> Fault {
    Fault::Ours(KmsError::new(FailureKind::Unclassified, false, "undecodable", message))
}

/// What a good answer tells about the call.
#[derive(Clone, Default)]
struct Seen {
    request_id: Option<Box<str>>,
    provider_time: Option<Wall>,
}

impl Seen {
    fn of(headers: &Headers) -> Self {
        let provider_time = headers
            .get_optional_str(&DATE)
            .and_then(|text| azure_core::time::parse_rfc7231(text).ok())
            .map(|time| Wall(time.unix_timestamp().saturating_mul(1000)));
        Self { request_id: headers.get_optional_str(&REQUEST_ID).map(Into::into), provider_time }
    }
}

impl AzureKms {
    /// Builds the provider; nothing is called yet. `call_timeout` bounds every method's whole call.
    ///
    /// # Errors
    /// If the provider is not of kind azure, `ca_file` is unusable, or a setting for emulators meets a
    /// control key that is not on this machine.
    pub fn new(provider: &Provider, identity: AzureIdentity, call_timeout: Span) -> Result<Self, AzureSetupError> {
        Self::build(provider, identity, call_timeout, None)
    }

    /// As [`AzureKms::new`], with names looked up by `names` and no proxy.
    ///
    /// # Errors
    /// As [`AzureKms::new`].
    pub fn with_names(
        provider: &Provider,
        identity: AzureIdentity,
        call_timeout: Span,
        names: Arc<dyn Names>,
    ) -> Result<Self, AzureSetupError> {
        Self::build(provider, identity, call_timeout, Some(names))
    }

    fn build(
        provider: &Provider,
        identity: AzureIdentity,
        call_timeout: Span,
        names: Option<Arc<dyn Names>>,
    ) -> Result<Self, AzureSetupError> {
        let ProviderDetail::Azure { ca_file, verify_challenge_resource, host_suffixes, our_accounts, .. } = &provider.detail else {
            return Err(AzureSetupError::WrongKind { provider: provider.id.to_string(), kind: provider.kind() });
        };
        let made = Self {
            wire: Wire::new(ca_file.as_deref(), names, call_timeout)?,
            identity,
            call_timeout,
            verify_challenge_resource: *verify_challenge_resource,
            host_suffixes: host_suffixes.clone(),
            our_accounts: our_accounts.clone(),
            credentials: Mutex::default(),
            clients: Mutex::default(),
            run: random_word(),
            count: Arc::default(),
        };
        if let Some(key) = &provider.control_key
            && let Ok(place) = Place::of(key)
            && let Some(field) = made.for_emulators_only()
            && !place.is_loopback()
        {
            return Err(AzureSetupError::NotLoopback { field, host: place.host.to_owned() });
        }
        Ok(made)
    }

    /// Whether signing in for this key happens in a tenant that is not ours.
    fn is_their_tenant(&self, key: &KeyTarget) -> bool {
        let home = self.identity.home();
        let tenant = key.tenant.as_deref().or(home);
        if self.our_accounts.is_empty() {
            tenant != home
        } else {
            tenant.is_some_and(|t| !self.our_accounts.iter().any(|ours| ours.eq_ignore_ascii_case(t)))
        }
    }

    /// Runs one call under its deadline and classifies how it ended.
    async fn timed<T>(
        &self,
        asked: Asked,
        key: &KeyTarget,
        at_vault: AtVault,
        run: impl Future<Output = Result<(T, Seen), Fault>>,
    ) -> Answer<T> {
        let start = crate::clock::now().mono;
        let ended = tokio::time::timeout(self.call_timeout.to_std(), run).await;
        let took = crate::clock::now().mono.since(start);
        let host = Place::of(key).map_or("", |place| place.host);
        let (result, seen) = match ended {
            Ok(Ok((value, seen))) => (Ok(value), seen),
            Ok(Err(Fault::Ours(error))) => (Err(error), Seen::default()),
            Ok(Err(Fault::Sdk(error))) => {
                let circumstances =
                    Circumstances { asked, their_tenant: self.is_their_tenant(key), private_endpoint: self.wire.resolved.is_private(host) };
                (Err(classify(circumstances, &error)), seen_in(&error))
            }
            Err(_) => (Err(late(asked, at_vault.0.load(Ordering::Relaxed), self.call_timeout)), Seen::default()),
        };
        Answer { result, meta: CallMeta { request_id: seen.request_id, took, provider_time: seen.provider_time } }
    }

    /// Wraps fresh random bytes under one version, so that each enabled version gets its own canary.
    pub async fn wrap_version(&self, key: &KeyTarget, version: &KeyVersion) -> Answer<Wrapped> {
        self.wrap(key, Some(version)).await
    }

    async fn wrap(&self, key: &KeyTarget, version: Option<&KeyVersion>) -> Answer<Wrapped> {
        let at_vault = AtVault::default();
        let run = async {
            let mut plain = Zeroizing::new(vec![0u8; 32]);
            aws_lc_rs::rand::fill(&mut plain)
                .map_err(|_| Fault::Ours(KmsError::new(FailureKind::Unclassified, false, "random", "this machine gave no random bytes")))?;
            self.seal(key, version, plain, &at_vault).await
        };
        self.timed(Asked::Data, key, at_vault.clone(), run).await
    }

    async fn unwrap(&self, key: &KeyTarget, wrapped: &Wrapped) -> Answer<Unwrapped> {
        let at_vault = AtVault::default();
        let run = async {
            let ((mut plain, version), seen) = self.open(key, wrapped, &at_vault).await?;
            let digest = sha256(&plain);
            plain.zeroize();
            Ok((Unwrapped { digest, version }, seen))
        };
        self.timed(Asked::Data, key, at_vault.clone(), run).await
    }

    async fn seal(
        &self,
        key: &KeyTarget,
        version: Option<&KeyVersion>,
        plain: Zeroizing<Vec<u8>>,
        at_vault: &AtVault,
    ) -> Result<(Wrapped, Seen), Fault> {
        let place = Place::of(key)?;
        let client = self.client(&place)?;
        let digest = sha256(&plain);
        let algorithm = key.algorithm.as_deref().unwrap_or(ALGORITHM);
        let options =
            KeyClientWrapKeyOptions { key_version: version.map(checked_version).transpose()?, method_options: method_options(at_vault) };
        let answer = client.wrap_key(place.name, parameters(algorithm, plain.to_vec())?, Some(options)).await?;
        let seen = Seen::of(answer.headers());
        let model = answer.into_model()?;
        let (Some(bytes), Some(kid)) = (model.result, model.kid) else {
            return Err(undecodable("the answer to wrapKey has no value or no key identifier"));
        };
        let version = facts::version_of(&kid).ok_or_else(|| undecodable("the key identifier in the answer names no version"))?;
        let sealed_with = format!("{SEALED_WITH}{algorithm}").into();
        Ok((Wrapped { bytes: bytes.into(), digest, version: Some(version), sealed_with }, seen))
    }

    async fn open(&self, key: &KeyTarget, wrapped: &Wrapped, at_vault: &AtVault) -> Result<((Vec<u8>, Option<KeyVersion>), Seen), Fault> {
        let place = Place::of(key)?;
        let algorithm = wrapped
            .sealed_with
            .strip_prefix(SEALED_WITH)
            .ok_or_else(|| ours("sealed_with", &format!("`{}` names no algorithm", wrapped.sealed_with)))?;
        let version = wrapped.version.as_ref().map(checked_version).transpose()?.unwrap_or_default();
        let client = self.client(&place)?;
        let options = KeyClientUnwrapKeyOptions { method_options: method_options(at_vault) };
        let answer = client.unwrap_key(place.name, &version, parameters(algorithm, wrapped.bytes.to_vec())?, Some(options)).await?;
        let seen = Seen::of(answer.headers());
        let model = answer.into_model()?;
        let Some(plain) = model.result else {
            return Err(undecodable("the answer to unwrapKey has no value"));
        };
        Ok(((plain, model.kid.as_deref().and_then(facts::version_of)), seen))
    }

    async fn describe(&self, key: &KeyTarget) -> Answer<KeyFacts> {
        let at_vault = AtVault::default();
        let run = async {
            let place = Place::of(key)?;
            let client = self.client(&place)?;
            let options = KeyClientGetKeyOptions { key_version: None, method_options: method_options(&at_vault) };
            let found = match client.get_key(place.name, Some(options)).await {
                Ok(found) => found,
                Err(error) if is_not_found(&error) => return self.describe_deleted(&place, &client, &at_vault, error).await,
                Err(error) => return Err(error.into()),
            };
            let seen = Seen::of(found.headers());
            let model = found.into_model()?;
            let versions = self.versions(&place, &client, &at_vault).await;
            // The vault judges dates by its own clock.
            let now = seen.provider_time.unwrap_or_else(|| crate::clock::now().wall);
            Ok((facts::of_key(place.full_name(), &model, versions.as_deref(), now), seen))
        };
        self.timed(Asked::Metadata, key, at_vault.clone(), run).await
    }

    /// Asks the recycle bin once. What it does not tell leaves the vault's own "not found" standing.
    async fn describe_deleted(
        &self,
        place: &Place<'_>,
        client: &KeyClient,
        at_vault: &AtVault,
        not_found: azure_core::Error,
    ) -> Result<(KeyFacts, Seen), Fault> {
        let options = KeyClientGetDeletedKeyOptions { method_options: method_options(at_vault) };
        let found = match client.get_deleted_key(place.name, Some(options)).await {
            Ok(found) => found,
            // Not in the recycle bin either: purged, or never there.
            Err(error) if is_not_found(&error) => return Err(error.into()),
            Err(_) => return Err(not_found.into()),
        };
        let seen = Seen::of(found.headers());
        Ok((facts::of_deleted(place.full_name(), &found.into_model()?), seen))
    }

    /// The versions, or `None` where listing them is refused or fails: not shown is not the same as gone.
    async fn versions(&self, place: &Place<'_>, client: &KeyClient, at_vault: &AtVault) -> Option<Vec<KeyProperties>> {
        let mut options = KeyClientListKeyPropertiesVersionsOptions { maxresults: Some(25), ..Default::default() };
        options.method_options.context.insert(at_vault.clone());
        let mut pages = client.list_key_properties_versions(place.name, Some(options)).ok()?.into_pages().take(MOST_PAGES);
        let read = async {
            let mut all = Vec::new();
            while let Some(page) = pages.next().await {
                all.extend(page.ok()?.into_model().ok()?.value);
            }
            Some(all)
        };
        // A slow list must not cost the facts that are known already.
        tokio::time::timeout(self.call_timeout.over(2).to_std(), read).await.ok().flatten()
    }

    async fn identify(&self, key: &KeyTarget) -> Answer<Box<str>> {
        let run = async {
            let place = Place::of(key)?;
            self.admit(&place)?;
            let credential = self.credential(&place)?;
            let token = credential.get_token(&[&identity::scope_of(place.host)], None).await?;
            let name = match self.identity {
                AzureIdentity::StaticToken(_) => "static-token".into(),
                AzureIdentity::ClientSecret { .. } | AzureIdentity::WorkloadIdentity { .. } | AzureIdentity::ManagedIdentity { .. } => {
                    identity::speaks_for(token.token.secret()).ok_or_else(|| undecodable("the token names nobody"))?.into()
                }
            };
            Ok((name, Seen::default()))
        };
        self.timed(Asked::Token, key, AtVault::default(), run).await
    }
}

impl Kms for AzureKms {
    fn wrap_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(self.wrap(key, None))
    }
    fn unwrap_key<'a>(&'a self, key: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>> {
        Box::pin(self.unwrap(key, wrapped))
    }
    fn wrap_version<'a>(&'a self, key: &'a KeyTarget, version: &'a KeyVersion) -> Option<BoxFuture<'a, Answer<Wrapped>>> {
        Some(Box::pin(Self::wrap_version(self, key, version)))
    }
    fn describe_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>> {
        Box::pin(self.describe(key))
    }
    fn rotation<'a>(&'a self, key: &'a KeyTarget) -> Option<BoxFuture<'a, Answer<Rotation>>> {
        Some(Box::pin(self.read_rotation(key)))
    }
    fn whoami<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>> {
        Box::pin(self.identify(key))
    }
}

fn late(asked: Asked, at_vault: bool, call_timeout: Span) -> KmsError {
    if at_vault && asked != Asked::Token {
        KmsError::new(FailureKind::Timeout, false, "timeout", &format!("no answer within {call_timeout}"))
    } else {
        KmsError::new(FailureKind::Credentials, false, "sign_in", &format!("no token for ourselves within {call_timeout}"))
    }
}

fn seen_in(error: &azure_core::Error) -> Seen {
    match error.kind() {
        azure_core::error::ErrorKind::HttpResponse { raw_response: Some(raw), .. } => Seen::of(raw.headers()),
        _ => Seen::default(),
    }
}

/// Only the vault's own words count: a page of some proxy with status 404 is no reason to look further.
fn is_not_found(error: &azure_core::Error) -> bool {
    match error.kind() {
        azure_core::error::ErrorKind::HttpResponse { status, raw_response: Some(raw), .. } if u16::from(*status) == 404 => {
            errors::read_refusal(404, raw.body()).code.as_deref() == Some("KeyNotFound")
        }
        _ => false,
    }
}

fn method_options(at_vault: &AtVault) -> ClientMethodOptions<'static> {
    ClientMethodOptions { context: Context::new().with_value(at_vault.clone()) }
}

fn parameters(algorithm: &str, value: Vec<u8>) -> Result<azure_core::http::RequestContent<KeyOperationParameters>, Fault> {
    let Ok(algorithm) = algorithm.parse::<EncryptionAlgorithm>();
    Ok(KeyOperationParameters { algorithm: Some(algorithm), value: Some(value), ..Default::default() }.try_into()?)
}

/// A version goes into the path of a URL, so only its own alphabet passes.
fn checked_version(version: &KeyVersion) -> Result<String, Fault> {
    let text = version.as_str();
    if !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric()) {
        Ok(text.to_owned())
    } else {
        Err(ours("version", &format!("`{text}` is no version of an Azure key")))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0u8; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

/// Tells the calls of one run from those of another in a vault's log; nothing depends on it.
fn random_word() -> u64 {
    let mut bytes = [0u8; 8];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}
