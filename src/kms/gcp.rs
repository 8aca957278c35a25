//! outside
//! Google Cloud KMS through google-cloud-kms-v1 (REST): translates calls and answers, decides nothing
//! about a key. No retries: the probe's own schedule repeats a look, and a hidden retry would falsify
//! the count. Every call is marked as ours: by its additional authenticated data, by the user agent and
//! by `x-goog-request-reason`, which Cloud Audit Logs keep (`requestMetadata.requestAttributes.reason`),
//! so that the key's owner can filter us out.

pub mod errors;
mod facts;
mod identity;
mod session;
mod vault;
mod wire;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use google_cloud_gax::options::RequestOptionsBuilder;
use google_cloud_kms_v1::model::{CryptoKeyVersion, DecryptResponse, EncryptResponse};
use zeroize::{Zeroize, Zeroizing};

pub use identity::GcpSetupError;
pub use vault::GcpVaultKey;

use self::errors::OurProjects;
use self::session::{Session, Sessions};
use self::wire::{Failed, failed};
use crate::config::{Provider, ProviderDetail};
use crate::key::{KeyTarget, KeyVersion};
use crate::kms::{Answer, BoxFuture, CallMeta, KeyFacts, Kms, KmsError, Unwrapped, Wrapped};
use crate::time::Span;
use crate::words::FailureKind;

/// The mark of a probe, in additional authenticated data and in the request reason.
const MARK: &str = "cmek-watchdog-probe";
const USER_AGENT: &str = concat!("cmek-watchdog/", env!("CARGO_PKG_VERSION"));
/// Versions are listed in pages; beyond these the oldest enabled ones may be missing from the facts.
const PAGE: i32 = 100;
const PAGES: usize = 5;

/// Cloud KMS under one provider's identity.
pub struct GcpKms {
    sessions: Sessions,
    ours: OurProjects,
    call_timeout: Span,
}

impl std::fmt::Debug for GcpKms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GcpKms").field("ours", &self.ours).field("call_timeout", &self.call_timeout).finish_non_exhaustive()
    }
}

/// Whether a call has got as far as having a token; a deadline before that is our own trouble.
#[derive(Default)]
struct Stage(AtomicBool);

impl Stage {
    fn has_token(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl GcpKms {
    /// Prepares the provider's identity; no call is made yet. `call_timeout` bounds one call of the
    /// trait, the token that it may need included.
    ///
    /// # Errors
    /// If the provider is not of kind gcp, its endpoint is no address, or its credentials file cannot
    /// be read or has a wrong form.
    pub async fn new(provider: &Provider, call_timeout: Span) -> Result<Self, GcpSetupError> {
        let ProviderDetail::Gcp { endpoint, credentials, project_number, our_accounts } = &provider.detail else {
            return Err(GcpSetupError::WrongKind(provider.id.to_string()));
        };
        if let Some(address) = endpoint {
            let scheme = url::Url::parse(address).ok().map(|url| url.scheme().to_owned());
            if !matches!(scheme.as_deref(), Some("http" | "https")) {
                return Err(GcpSetupError::Endpoint(address.clone()));
            }
        }
        // Built once to find faults of the file at start; sessions build their own. Without roots of
        // trust nothing can be built, and each call will say so.
        if wire::check_tls().is_ok() {
            identity::build(credentials, None).await?;
        }
        Ok(Self {
            sessions: Sessions::new(endpoint.clone(), credentials.clone(), call_timeout),
            ours: OurProjects::new(project_number.as_deref(), our_accounts),
            call_timeout,
        })
    }

    /// Wraps a canary under one version, primary or not; registration does so for every enabled one.
    pub async fn wrap_version(&self, key: &KeyTarget, version: &KeyVersion) -> Answer<Wrapped> {
        let name = format!("{}/cryptoKeyVersions/{version}", key.address());
        let stage = Stage::default();
        self.answer(key, &stage, self.wrap(key, name, &stage)).await
    }

    /// Runs one call under its deadline and says how long it took.
    async fn answer<T>(&self, key: &KeyTarget, stage: &Stage, call: impl Future<Output = Result<T, Failed>>) -> Answer<T> {
        let started = crate::clock::now();
        let ended = tokio::time::timeout(self.call_timeout.to_std(), call).await;
        let result = match ended {
            Ok(result) => result,
            Err(_) if stage.0.load(Ordering::Relaxed) => {
                Err(KmsError::new(FailureKind::Timeout, false, "timeout", "no answer within the call's time").into())
            }
            Err(_) => {
                self.sessions.hung(key.impersonate.as_deref());
                let text = "no access token for ourselves within the call's time";
                Err(KmsError::new(FailureKind::Credentials, false, "token_timeout", text).into())
            }
        };
        let took = crate::clock::now().mono.since(started.mono);
        // The library hands on no headers of a good answer, so only a refusal tells the time.
        match result {
            Ok(value) => Answer { result: Ok(value), meta: CallMeta { took, ..CallMeta::default() } },
            Err(Failed { error, request_id, provider_time }) => {
                Answer { result: Err(error), meta: CallMeta { request_id, took, provider_time } }
            }
        }
    }

    async fn session(&self, key: &KeyTarget, stage: &Stage) -> Result<std::sync::Arc<Session>, Failed> {
        Ok(self.sessions.of(key.impersonate.as_deref(), stage).await?)
    }

    async fn wrap(&self, key: &KeyTarget, name: String, stage: &Stage) -> Result<Wrapped, Failed> {
        let mut plain = Zeroizing::new(vec![0_u8; 32]);
        if aws_lc_rs::rand::fill(&mut plain).is_err() {
            return Err(KmsError::new(FailureKind::Unclassified, false, "random", "no random bytes from the system").into());
        }
        self.seal(key, name, plain, aad_of(key, MARK), stage).await
    }

    async fn unwrap(&self, key: &KeyTarget, wrapped: &Wrapped, stage: &Stage) -> Result<Unwrapped, Failed> {
        let opened = self.open(key, wrapped, stage).await?;
        let digest = digest_of(&opened, wrapped);
        wipe(opened.plaintext);
        // Decrypt does not tell the version. The canary knows under which it was sealed.
        Ok(Unwrapped { digest: digest?, version: wrapped.version.clone() })
    }

    async fn seal(&self, key: &KeyTarget, name: String, plain: Zeroizing<Vec<u8>>, aad: String, stage: &Stage) -> Result<Wrapped, Failed> {
        let session = self.session(key, stage).await?;
        let (digest, checksum) = (sha256(&plain), crc(&plain));
        let call = session.client.encrypt().set_name(name).set_plaintext_crc32c(checksum);
        // The owner wipes our copy; what the HTTP library encodes from it is beyond reach.
        let call = call.set_plaintext(Bytes::from_owner(plain)).set_additional_authenticated_data_crc32c(crc(aad.as_bytes()));
        let call = call.set_additional_authenticated_data(aad.clone()).with_user_agent(USER_AGENT);
        let sealed = call.send().await.map_err(|error| failed(&error, &self.ours))?;
        check_sealed(&sealed)?;
        let version = facts::version_of(&sealed.name);
        Ok(Wrapped { bytes: sealed.ciphertext.as_ref().into(), digest, version, sealed_with: aad.into() })
    }

    async fn open(&self, key: &KeyTarget, wrapped: &Wrapped, stage: &Stage) -> Result<DecryptResponse, Failed> {
        let session = self.session(key, stage).await?;
        let aad = wrapped.sealed_with.as_bytes();
        let call = session.client.decrypt().set_name(key.address()).set_ciphertext_crc32c(crc(&wrapped.bytes));
        let call = call.set_ciphertext(Bytes::copy_from_slice(&wrapped.bytes)).set_additional_authenticated_data_crc32c(crc(aad));
        let call = call.set_additional_authenticated_data(Bytes::copy_from_slice(aad)).with_user_agent(USER_AGENT);
        call.send().await.map_err(|error| failed(&error, &self.ours))
    }

    async fn describe(&self, key: &KeyTarget, stage: &Stage) -> Result<KeyFacts, Failed> {
        let session = self.session(key, stage).await?;
        let call = session.client.get_crypto_key().set_name(key.address()).with_user_agent(USER_AGENT);
        let found = call.send().await.map_err(|error| failed(&error, &self.ours))?;
        let (versions, versions_truncated) = match self.list(&session, key).await {
            Ok(versions) => versions,
            // The right to list is another one than the right to get: the primary is known without.
            Err(refused) if refused.error.kind == FailureKind::AccessDenied => (Vec::new(), false),
            Err(other) => return Err(other),
        };
        Ok(KeyFacts { versions_truncated, ..facts::facts(key.address(), &found, versions) })
    }

    async fn list(&self, session: &Session, key: &KeyTarget) -> Result<(Vec<CryptoKeyVersion>, bool), Failed> {
        let (mut versions, mut token) = (Vec::new(), String::new());
        for _ in 0..PAGES {
            let call = session.client.list_crypto_key_versions().set_parent(key.address()).set_page_size(PAGE);
            let call = call.set_page_token(token).with_user_agent(USER_AGENT);
            let page = call.send().await.map_err(|error| failed(&error, &self.ours))?;
            versions.extend(page.crypto_key_versions);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok((versions, false));
            }
        }
        tracing::warn!(key = key.address(), listed = versions.len(), "key has more versions than are looked at");
        Ok((versions, true))
    }

    async fn name(&self, key: &KeyTarget, stage: &Stage) -> Result<Box<str>, Failed> {
        let name = self.session(key, stage).await?.name().await;
        Ok(name?)
    }
}

impl Kms for GcpKms {
    fn wrap_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(async move {
            let stage = Stage::default();
            self.answer(key, &stage, self.wrap(key, key.address().to_owned(), &stage)).await
        })
    }

    fn unwrap_key<'a>(&'a self, key: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>> {
        Box::pin(async move {
            let stage = Stage::default();
            self.answer(key, &stage, self.unwrap(key, wrapped, &stage)).await
        })
    }

    fn wrap_version<'a>(&'a self, key: &'a KeyTarget, version: &'a KeyVersion) -> Option<BoxFuture<'a, Answer<Wrapped>>> {
        Some(Box::pin(Self::wrap_version(self, key, version)))
    }
    fn describe_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>> {
        Box::pin(async move {
            let stage = Stage::default();
            self.answer(key, &stage, self.describe(key, &stage)).await
        })
    }

    fn whoami<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>> {
        Box::pin(async move {
            let stage = Stage::default();
            self.answer(key, &stage, self.name(key, &stage)).await
        })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

fn crc(bytes: &[u8]) -> i64 {
    i64::from(crc32c::crc32c(bytes))
}

/// What is bound into a canary: the key's own text, or our mark and the encryption context. Encoded
/// as a form, so that no two contexts give the same bytes; the map keeps its keys in order.
fn aad_of(key: &KeyTarget, mark: &str) -> String {
    if let Some(own) = &key.additional_authenticated_data {
        return own.clone();
    }
    let mark = key.encryption_context.get("purpose").map_or(mark, String::as_str);
    let others = key.encryption_context.iter().filter(|(name, _)| *name != "purpose");
    url::form_urlencoded::Serializer::new(String::new()).append_pair("purpose", mark).extend_pairs(others).finish()
}

/// The bytes of the request or the answer changed between Google's end and ours. Nothing about the
/// key follows from it.
fn damaged(what: &str) -> Failed {
    KmsError::new(FailureKind::Unreachable, false, "crc32c_mismatch", what).into()
}

fn check_sealed(sealed: &EncryptResponse) -> Result<(), Failed> {
    if !sealed.verified_plaintext_crc32c {
        return Err(damaged("the server did not verify the checksum of the plaintext"));
    }
    if !sealed.verified_additional_authenticated_data_crc32c {
        return Err(damaged("the server did not verify the checksum of the additional authenticated data"));
    }
    if sealed.ciphertext_crc32c != Some(crc(&sealed.ciphertext)) {
        return Err(damaged("the ciphertext does not match its checksum"));
    }
    Ok(())
}

/// The digest of what came out. The canary's own digest is the stronger proof: with it met, the
/// checksum adds nothing; with it missed, the checksum tells damage on the way from other bytes.
fn digest_of(opened: &DecryptResponse, wrapped: &Wrapped) -> Result<[u8; 32], Failed> {
    let digest = sha256(&opened.plaintext);
    let whole = opened.plaintext_crc32c == Some(crc(&opened.plaintext));
    if digest == wrapped.digest || whole { Ok(digest) } else { Err(damaged("the plaintext does not match its checksum")) }
}

fn wipe(plain: Bytes) {
    if let Ok(mut plain) = plain.try_into_mut() {
        plain.as_mut().zeroize();
    }
}

#[cfg(test)]
mod tests;
