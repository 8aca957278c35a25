//! outside
//! AWS KMS as one [`Kms`]: Encrypt or GenerateDataKey, Decrypt, DescribeKey, GetCallerIdentity.
//! Translates answers and decides nothing: no retry and no threshold. Plaintext stays in this file,
//! except for the vault's own bytes (`vault.rs`), which no probe can reach.

pub mod answer;
pub mod client;
pub mod errors;
mod facts;
mod fault;
mod hearing;
mod rotation;
pub mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_kms::config::SharedHttpClient;
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::primitives::Blob;
use zeroize::Zeroize;

use crate::config::{Provider, ProviderDetail};
use crate::key::{KeyTarget, KeyVersion, Resource, WrapOperation};
use crate::kms::{Answer, BoxFuture, CallMeta, KeyFacts, Kms, KmsError, Rotation, Unwrapped, Wrapped};
use crate::time::{Now, Span};
use crate::words::{FailureKind, ProviderKind};

pub use client::ExternalIds;
use client::{Clients, Services};
use fault::{Fault, fault_of};
use hearing::Hearing;

/// Bytes of a canary.
const CANARY: usize = 32;

/// Why an AWS provider could not be set up.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AwsSetupError {
    #[error("provider {id} is of kind {kind}, not aws")]
    NotAws { id: String, kind: ProviderKind },
    #[error("provider {id}: region `{region}` may only have lower-case letters, digits and `-`")]
    Region { id: String, region: String },
    #[error("provider {id}: external id `{reference}` of role {role} is not resolved")]
    ExternalId { id: String, reference: String, role: String },
}

/// One AWS provider under one identity of ours.
#[derive(Debug)]
pub struct AwsKms {
    clients: Clients,
    provider_region: String,
    endpoint: Option<String>,
    our_accounts: Vec<String>,
}

impl AwsKms {
    /// Sets up with the SDK's default credential chain and the process's HTTP client. Nothing is
    /// called; credentials are fetched with the first call.
    ///
    /// # Errors
    /// If the provider is of another kind, its region is malformed, or its role's external id is
    /// not among `external_ids`.
    pub async fn new(provider: &Provider, call_timeout: Span, external_ids: ExternalIds) -> Result<Self, AwsSetupError> {
        Self::build(provider, call_timeout, external_ids, None, client::shared_http()).await
    }

    /// The same with given credentials in place of the chain, and a given HTTP client; reads no
    /// variable and no file.
    ///
    /// # Errors
    /// As [`AwsKms::new`].
    pub async fn with_credentials(
        provider: &Provider,
        call_timeout: Span,
        external_ids: ExternalIds,
        credentials: SharedCredentialsProvider,
        http: SharedHttpClient,
    ) -> Result<Self, AwsSetupError> {
        Self::build(provider, call_timeout, external_ids, Some(credentials), http).await
    }

    async fn build(
        provider: &Provider,
        call_timeout: Span,
        external_ids: ExternalIds,
        credentials: Option<SharedCredentialsProvider>,
        http: SharedHttpClient,
    ) -> Result<Self, AwsSetupError> {
        let id = provider.id.to_string();
        let ProviderDetail::Aws { region, endpoint, assume_role, our_accounts } = &provider.detail else {
            return Err(AwsSetupError::NotAws { id, kind: provider.kind() });
        };
        let shaped = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if region.is_empty() || !region.chars().all(shaped) {
            return Err(AwsSetupError::Region { id, region: region.clone() });
        }
        if let Some(role) = assume_role
            && let Some(reference) = &role.external_id
            && !external_ids.knows(reference)
        {
            return Err(AwsSetupError::ExternalId { id, reference: reference.clone(), role: role.arn.clone() });
        }
        let base = client::base_config(region, endpoint.as_deref(), call_timeout, credentials, http).await;
        let clients = Clients::new(base, endpoint.clone(), assume_role.clone(), external_ids);
        Ok(Self { clients, provider_region: region.clone(), endpoint: endpoint.clone(), our_accounts: our_accounts.clone() })
    }

    /// The SDK configuration under the provider's base identity, for other AWS services.
    #[must_use]
    pub fn sdk_config(&self) -> &aws_config::SdkConfig {
        self.clients.base()
    }

    /// A key lives in the region that its ARN names.
    fn region<'a>(&'a self, key: &'a KeyTarget) -> &'a str {
        match &key.reference.resource {
            Resource::Aws { region, .. } => region,
            Resource::Gcp { .. } | Resource::Azure { .. } | Resource::Local { .. } => &self.provider_region,
        }
    }

    fn services(&self, key: &KeyTarget) -> Result<Services, KmsError> {
        if !matches!(key.reference.resource, Resource::Aws { .. }) {
            return Err(KmsError::new(FailureKind::Misconfigured, false, "not_aws", "the key is not named by a key ARN of AWS KMS"));
        }
        self.clients.services(self.region(key), key.assume_role.as_ref()).map_err(|fault| self.judge(key, &fault))
    }

    fn judge(&self, key: &KeyTarget, fault: &Fault) -> KmsError {
        let host = match &self.endpoint {
            Some(endpoint) => endpoint.split("//").last().unwrap_or("").split('/').next().unwrap_or("").to_owned(),
            None => format!("kms.{}.amazonaws.com", self.region(key)),
        };
        fault.judge(key.reference.account(), &self.our_accounts, &host)
    }

    /// Closes a call: its result read or judged, and what was heard of it.
    fn close<O, T, E: std::error::Error + 'static>(
        &self,
        call: Call<'_>,
        sent: Result<O, SdkError<E>>,
        read: impl FnOnce(O) -> Result<T, KmsError>,
    ) -> Answer<T> {
        let result = match sent {
            Ok(output) => read(output),
            Err(error) => Err(self.judge(call.key, &fault_of(&error, call.operation))),
        };
        Answer { result, meta: call.meta() }
    }

    async fn encrypt(&self, key: &KeyTarget) -> Answer<Wrapped> {
        let mut canary = match draw() {
            Ok(canary) => canary,
            Err(error) => return Call::start("kms:Encrypt", key).failed(error),
        };
        let answer = self.seal_bytes(key, &canary, &context_of(key)).await;
        canary.zeroize();
        answer
    }

    /// Encrypt does not name the material, so neither does the answer; Decrypt will.
    async fn seal_bytes(&self, key: &KeyTarget, plain: &[u8], context: &BTreeMap<String, String>) -> Answer<Wrapped> {
        let call = Call::start("kms:Encrypt", key);
        let kms = match self.services(key) {
            Ok(services) => services.kms,
            Err(error) => return call.failed(error),
        };
        let request = kms.encrypt().key_id(key.address()).plaintext(Blob::new(plain)).set_encryption_context(Some(sdk_context(context)));
        let sent = request.customize().interceptor(call.hearing.clone()).send().await;
        self.close(call, sent, |output| {
            same_key(key, output.key_id())?;
            let bytes = output.ciphertext_blob.ok_or_else(|| incomplete("CiphertextBlob"))?;
            Ok(Wrapped { bytes: bytes.into_inner().into(), digest: digest(plain), version: None, sealed_with: seal(context) })
        })
    }

    async fn generate_data_key(&self, key: &KeyTarget) -> Answer<Wrapped> {
        let call = Call::start("kms:GenerateDataKey", key);
        let kms = match self.services(key) {
            Ok(services) => services.kms,
            Err(error) => return call.failed(error),
        };
        let context = context_of(key);
        let request = kms
            .generate_data_key()
            .key_id(key.address())
            .key_spec(aws_sdk_kms::types::DataKeySpec::Aes256)
            .set_encryption_context(Some(sdk_context(&context)));
        let sent = request.customize().interceptor(call.hearing.clone()).send().await;
        self.close(call, sent, |output| {
            let same = same_key(key, output.key_id());
            let mut plain = output.plaintext.ok_or_else(|| incomplete("Plaintext"))?.into_inner();
            let digest = digest(&plain);
            plain.zeroize();
            same?;
            let bytes = output.ciphertext_blob.ok_or_else(|| incomplete("CiphertextBlob"))?;
            let version = output.key_material_id.as_deref().map(KeyVersion::new);
            Ok(Wrapped { bytes: bytes.into_inner().into(), digest, version, sealed_with: seal(&context) })
        })
    }

    async fn decrypt(&self, key: &KeyTarget, wrapped: &Wrapped) -> Answer<Unwrapped> {
        let Answer { result, meta } = self.open_bytes(key, wrapped).await;
        let result = result.map(|(mut plain, version)| {
            let digest = digest(&plain);
            plain.zeroize();
            Unwrapped { digest, version }
        });
        Answer { result, meta }
    }

    async fn open_bytes(&self, key: &KeyTarget, wrapped: &Wrapped) -> Answer<(Vec<u8>, Option<KeyVersion>)> {
        let call = Call::start("kms:Decrypt", key);
        let (kms, context) = match (self.services(key), unseal(&wrapped.sealed_with)) {
            (Ok(services), Ok(context)) => (services.kms, context),
            (Err(error), _) | (_, Err(error)) => return call.failed(error),
        };
        let request = kms
            .decrypt()
            .key_id(key.address())
            .ciphertext_blob(Blob::new(wrapped.bytes.to_vec()))
            .set_encryption_context((!context.is_empty()).then(|| sdk_context(&context)));
        let sent = request.customize().interceptor(call.hearing.clone()).send().await;
        self.close(call, sent, |output| {
            let same = same_key(key, output.key_id());
            let mut plain = output.plaintext.ok_or_else(|| incomplete("Plaintext"))?.into_inner();
            match same {
                Ok(()) => Ok((plain, output.key_material_id.as_deref().map(KeyVersion::new))),
                Err(error) => {
                    plain.zeroize();
                    Err(error)
                }
            }
        })
    }

    async fn describe(&self, key: &KeyTarget) -> Answer<KeyFacts> {
        let call = Call::start("kms:DescribeKey", key);
        let kms = match self.services(key) {
            Ok(services) => services.kms,
            Err(error) => return call.failed(error),
        };
        let sent = kms.describe_key().key_id(key.address()).customize().interceptor(call.hearing.clone()).send().await;
        let mut answer =
            self.close(call, sent, |output| output.key_metadata.map(|m| facts::read(&m)).ok_or_else(|| incomplete("KeyMetadata")));
        // The facts are those of the pinned key; where its alias points now is another question.
        if let (Ok(facts), Resource::Aws { alias: true, .. }, Some(_)) = (&mut answer.result, &key.reference.resource, &key.pinned) {
            let now = kms.describe_key().key_id(&*key.reference.text).send().await;
            facts.resolved = now.ok().and_then(|o| o.key_metadata).and_then(|m| m.arn).map(Into::into);
        }
        answer
    }

    async fn caller(&self, key: &KeyTarget) -> Answer<Box<str>> {
        let call = Call::start("sts:GetCallerIdentity", key);
        let sts = match self.services(key) {
            Ok(services) => services.sts,
            Err(error) => return call.failed(error),
        };
        let sent = sts.get_caller_identity().customize().interceptor(call.hearing.clone()).send().await;
        self.close(call, sent, |output| output.arn.as_deref().map(without_session).ok_or_else(|| incomplete("Arn")))
    }
}

impl Kms for AwsKms {
    fn wrap_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>> {
        match key.wrap_operation {
            WrapOperation::Encrypt => Box::pin(self.encrypt(key)),
            WrapOperation::GenerateDataKey => Box::pin(self.generate_data_key(key)),
        }
    }
    fn unwrap_key<'a>(&'a self, key: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>> {
        Box::pin(self.decrypt(key, wrapped))
    }
    fn describe_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>> {
        Box::pin(self.describe(key))
    }
    fn rotation<'a>(&'a self, key: &'a KeyTarget) -> Option<BoxFuture<'a, Answer<Rotation>>> {
        self.rotation_reader(key).map(|reader| -> BoxFuture<'a, _> { Box::pin(self.read_rotation(key, reader)) })
    }
    fn whoami<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>> {
        Box::pin(self.caller(key))
    }
}

/// One call under way.
struct Call<'a> {
    operation: &'static str,
    key: &'a KeyTarget,
    started: Now,
    hearing: Hearing,
}

impl<'a> Call<'a> {
    fn start(operation: &'static str, key: &'a KeyTarget) -> Self {
        Self { operation, key, started: crate::clock::now(), hearing: Hearing::default() }
    }
    fn meta(&self) -> CallMeta {
        let heard = self.hearing.heard();
        let took = crate::clock::now().mono.since(self.started.mono);
        CallMeta { request_id: heard.request_id, took, provider_time: heard.provider_time }
    }
    /// Nothing was sent.
    fn failed<T>(&self, error: KmsError) -> Answer<T> {
        Answer { result: Err(error), meta: self.meta() }
    }
}

/// A success that lacks what it is a success of proves nothing.
fn incomplete(field: &str) -> KmsError {
    KmsError::new(FailureKind::Unclassified, false, "incomplete_answer", &format!("the answer has no {field}"))
}

/// The key id is pinned in the call, so an answer in another key's name is none of ours.
fn same_key(key: &KeyTarget, answered: Option<&str>) -> Result<(), KmsError> {
    match answered {
        Some(arn) if key.address().contains(":key/") && arn.starts_with("arn:") && arn != key.address() => {
            Err(KmsError::new(FailureKind::Misconfigured, false, "other_key", &format!("the answer is in the name of {arn}")))
        }
        Some(_) | None => Ok(()),
    }
}

fn draw() -> Result<[u8; CANARY], KmsError> {
    let mut canary = [0u8; CANARY];
    match aws_lc_rs::rand::fill(&mut canary) {
        Ok(()) => Ok(canary),
        Err(_) => Err(KmsError::new(FailureKind::Unclassified, false, "no_randomness", "the system gave no random bytes")),
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0u8; 32];
    for (to, from) in out.iter_mut().zip(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()) {
        *to = *from;
    }
    out
}

/// Marks a call as ours, unless the key's owner has settled the context.
fn context_of(key: &KeyTarget) -> BTreeMap<String, String> {
    if key.encryption_context.is_empty() {
        BTreeMap::from([("purpose".to_owned(), "cmek-watchdog-probe".to_owned())])
    } else {
        key.encryption_context.clone()
    }
}

/// The context in the adapter's own encoding: a JSON object of texts, keys in order.
fn seal(context: &BTreeMap<String, String>) -> Arc<str> {
    serde_json::to_string(context).unwrap_or_default().into()
}

fn unseal(sealed_with: &str) -> Result<BTreeMap<String, String>, KmsError> {
    serde_json::from_str(sealed_with).map_err(|_| {
        KmsError::new(FailureKind::Misconfigured, false, "sealed_with", "the canary's stored context is not a JSON object of texts")
    })
}

#[expect(clippy::disallowed_types, reason = "the SDK's own signature")]
fn sdk_context(context: &BTreeMap<String, String>) -> std::collections::HashMap<String, String> {
    context.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The session of an assumed role changes with each refresh; who we are does not.
fn without_session(arn: &str) -> Box<str> {
    match arn.split_once(":assumed-role/") {
        Some((before, rest)) => format!("{before}:assumed-role/{}", rest.split('/').next().unwrap_or("")).into(),
        None => arn.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_an_assumed_role_has_no_session() {
        for (arn, expected) in [
            ("arn:aws:sts::111122223333:assumed-role/probe/i-0abc", "arn:aws:sts::111122223333:assumed-role/probe"),
            ("arn:aws:iam::111122223333:user/path/watchdog", "arn:aws:iam::111122223333:user/path/watchdog"),
            ("arn:aws:iam::111122223333:root", "arn:aws:iam::111122223333:root"),
        ] {
            assert_eq!(&*without_session(arn), expected);
        }
    }

    #[test]
    fn a_canary_keeps_the_context_that_it_was_sealed_with() {
        let context = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "\"".to_owned())]);
        let sealed = seal(&context);
        assert_eq!((&*sealed, unseal(&sealed)), (r#"{"a":"\"","b":"2"}"#, Ok(context)));
        assert_eq!(unseal("rubbish").map_err(|e| e.kind), Err(FailureKind::Misconfigured));
    }

    #[test]
    fn the_digest_is_sha_256() {
        assert_eq!(digest(b"")[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }
}
