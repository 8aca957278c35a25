//! outside
//! The embedded software KMS: a first run and the tests need no cloud. Keys, versions and their
//! states live in one JSON file that daemon and command line may use at once. It answers as a
//! provider would and decides nothing; a damaged file is a fault of ours, never a word about a key.

mod admin;
mod disk;
mod rows;
mod seal;

pub use admin::{KeyListing, VersionListing};
pub use disk::{LocalKmsError, LocalKmsFile};
pub use rows::{StandingWord, VersionState};

use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

use crate::key::{KeyTarget, KeyVersion};
use crate::kms::{Answer, BoxFuture, CallMeta, KeyFacts, Kms, KmsError, Unwrapped, VersionFact, WrapBytes, Wrapped};
use crate::time::{Now, Wall};
use crate::words::{FailureKind, Leg};
use rows::{Book, KeyRow, version_name};

/// Bound into every canary beside the key's own context, so that an owner can tell probes apart.
const PROBE_PURPOSE: &str = "cmek-watchdog-probe";
/// Bound into what the vault wraps; a probe's canary never opens as one of these, nor the reverse.
const VAULT_PURPOSE: &str = "cmek-watchdog-vault";

/// Where the time comes from; tests give their own.
type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// The software KMS as a provider.
#[derive(Clone)]
pub struct LocalKms {
    file: LocalKmsFile,
    clock: Clock,
}

/// One key of the software KMS for the vault: real bytes, under the operator's own key.
#[derive(Clone)]
pub struct LocalWrapBytes {
    file: LocalKmsFile,
    key: Arc<str>,
    clock: Clock,
}

impl LocalKms {
    #[must_use]
    pub fn new(file: LocalKmsFile) -> Self {
        Self::with_clock(file, crate::clock::now)
    }
    /// With a clock of the caller's, which decides when a scheduled deletion has come.
    #[must_use]
    pub fn with_clock(file: LocalKmsFile, clock: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self { file, clock: Arc::new(clock) }
    }
    #[must_use]
    pub const fn file(&self) -> &LocalKmsFile {
        &self.file
    }
}

impl LocalWrapBytes {
    #[must_use]
    pub fn new(file: LocalKmsFile, key: &str) -> Self {
        Self { file, key: key.into(), clock: Arc::new(crate::clock::now) }
    }
}

impl std::fmt::Debug for LocalKms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalKms").field("file", &self.file).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LocalWrapBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalWrapBytes").field("file", &self.file).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Kms for LocalKms {
    fn wrap_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>> {
        let (file, name) = (self.file.clone(), key.address().to_owned());
        let sealed_with = encode_context(&key.encryption_context, PROBE_PURPOSE);
        Box::pin(answer(Arc::clone(&self.clock), move |now| {
            let mut canary = Zeroizing::new([0_u8; 32]);
            fill(canary.as_mut())?;
            wrap(&*read(&file)?, &name, canary.as_ref(), sealed_with?.into(), now)
        }))
    }
    fn unwrap_key<'a>(&'a self, key: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>> {
        let (file, name, wrapped) = (self.file.clone(), key.address().to_owned(), wrapped.clone());
        Box::pin(answer(Arc::clone(&self.clock), move |now| {
            let (plain, version) = unwrap(&*read(&file)?, &name, &wrapped, now)?;
            Ok(Unwrapped { digest: digest(&plain), version: Some(version) })
        }))
    }
    fn describe_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>> {
        let (file, name) = (self.file.clone(), key.address().to_owned());
        Box::pin(answer(Arc::clone(&self.clock), move |now| describe(&*read(&file)?, &name, now)))
    }
    fn whoami<'a>(&'a self, _key: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>> {
        // There is one identity, whatever the state of the file.
        Box::pin(answer(Arc::clone(&self.clock), |_| Ok("local".into())))
    }
}

impl WrapBytes for LocalWrapBytes {
    fn wrap_bytes<'a>(&'a self, plain: &'a [u8]) -> BoxFuture<'a, Answer<Wrapped>> {
        let (file, name, plain) = (self.file.clone(), Arc::clone(&self.key), Zeroizing::new(plain.to_vec()));
        let sealed_with = encode_context(&BTreeMap::new(), VAULT_PURPOSE);
        Box::pin(answer(Arc::clone(&self.clock), move |now| wrap(&*read(&file)?, &name, &plain, sealed_with?.into(), now)))
    }
    fn unwrap_bytes<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Vec<u8>>> {
        let (file, name, wrapped) = (self.file.clone(), Arc::clone(&self.key), wrapped.clone());
        let sealed_with = encode_context(&BTreeMap::new(), VAULT_PURPOSE);
        Box::pin(answer(Arc::clone(&self.clock), move |now| {
            // The vault opens only what was wrapped for the vault.
            let wrapped = Wrapped { sealed_with: sealed_with?.into(), ..wrapped };
            let (mut plain, _) = unwrap(&*read(&file)?, &name, &wrapped, now)?;
            Ok(std::mem::take(&mut *plain))
        }))
    }
}

/// Runs the work where blocking is allowed and adds what is known about the call.
async fn answer<T, F>(clock: Clock, work: F) -> Answer<T>
where
    T: Send + 'static,
    F: FnOnce(Wall) -> Result<T, KmsError> + Send + 'static,
{
    let started = clock();
    let done = tokio::task::spawn_blocking(move || (request_id(), work(started.wall))).await;
    let (request_id, result) = done
        .unwrap_or_else(|_| (None, Err(KmsError::new(FailureKind::ProviderFault, false, "TaskFailed", "the call did not come to an end"))));
    Answer { result, meta: CallMeta { request_id, took: clock().mono.since(started.mono), provider_time: None } }
}

fn read(file: &LocalKmsFile) -> Result<Arc<Book>, KmsError> {
    // Only the file's own name goes into the answer: answers reach notices, and paths are nobody's business there.
    file.read().map_err(|e| KmsError::new(FailureKind::ProviderFault, false, e.code(), &e.without_folder()))
}

fn row<'b>(book: &'b Book, name: &str, leg: Leg) -> Result<&'b KeyRow, KmsError> {
    let row = book
        .keys
        .get(name)
        .ok_or_else(|| KmsError::new(FailureKind::Destroyed, false, "KeyNotFound", &format!("there is no key {}", short(name))))?;
    // A row that cannot be is damage of the file; no call may draw a word about the key from it.
    if let Some(damage) = row.damage(name) {
        return Err(damage);
    }
    if row.denied.contains(&leg) {
        return Err(KmsError::new(FailureKind::AccessDenied, false, "AccessDenied", &format!("{leg} is denied on key {}", short(name))));
    }
    Ok(row)
}

fn wrap(book: &Book, name: &str, plain: &[u8], sealed_with: Arc<str>, now: Wall) -> Result<Wrapped, KmsError> {
    let row = row(book, name, Leg::Wrap)?;
    if let Some(fault) = row.fault(name, now) {
        return Err(fault);
    }
    let material = row.material(name, row.current)?;
    let bytes = seal::seal(material, &row.uid, row.current, &sealed_with, plain).ok_or_else(crypto_failed)?;
    Ok(Wrapped { bytes: bytes.into(), digest: digest(plain), version: Some(version_name(row.current)), sealed_with })
}

fn unwrap(book: &Book, name: &str, wrapped: &Wrapped, now: Wall) -> Result<(Zeroizing<Vec<u8>>, KeyVersion), KmsError> {
    let row = row(book, name, Leg::Unwrap)?;
    if let Some(fault) = row.standing_fault(name, now) {
        return Err(fault);
    }
    let invalid = |code: &str, text: &str| KmsError::new(FailureKind::Misconfigured, false, code, &format!("{text} (key {})", short(name)));
    let header = seal::header(&wrapped.bytes).ok_or_else(|| invalid("InvalidCiphertext", "the wrapped bytes have no header of ours"))?;
    if header.uid != *row.uid {
        return Err(invalid("IncorrectKey", "the bytes were wrapped by another key, or their header is damaged"));
    }
    if !row.versions.contains_key(&header.version) {
        return Err(invalid("InvalidCiphertext", "the header names a version that the key never had"));
    }
    if let Some(fault) = row.version_fault(name, header.version) {
        return Err(fault);
    }
    let material = row.material(name, header.version)?;
    let plain = seal::open(material, &wrapped.bytes, &wrapped.sealed_with)
        .ok_or_else(|| invalid("InvalidCiphertext", "the wrapped bytes or their context were altered"))?;
    Ok((plain, version_name(header.version)))
}

fn describe(book: &Book, name: &str, now: Wall) -> Result<KeyFacts, KmsError> {
    let row = row(book, name, Leg::Describe)?;
    let deletion_at = row.deletion_at();
    let versions = row.versions.iter().map(|(number, version)| VersionFact {
        version: version_name(*number),
        enabled: version.state == VersionState::Enabled,
        created_at: Some(version.created_at),
    });
    Ok(KeyFacts {
        fault: row.fault(name, now),
        resolved: Some(name.into()),
        current_version: Some(version_name(row.current)),
        versions: versions.collect(),
        created_at: Some(row.created_at),
        rotated_at: row.rotated_at,
        deletion_at,
        recoverable_until: deletion_at.filter(|at| *at > now),
        protection_level: Some("software".into()),
        origin: Some("local".into()),
        ..KeyFacts::default()
    })
}

/// The context as the additional data of the seal: JSON with sorted names.
fn encode_context(context: &BTreeMap<String, String>, purpose: &str) -> Result<String, KmsError> {
    let mut context = context.clone();
    context.entry("purpose".to_owned()).or_insert_with(|| purpose.to_owned());
    serde_json::to_string(&context).map_err(|_| crypto_failed())
}

fn fill(bytes: &mut [u8]) -> Result<(), KmsError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| crypto_failed())
}

fn request_id() -> Option<Box<str>> {
    let mut bytes = [0_u8; 16];
    fill(&mut bytes).ok()?;
    Some(seal::hex(&bytes).into())
}

fn crypto_failed() -> KmsError {
    KmsError::new(FailureKind::ProviderFault, false, "CryptoFailed", "drawing random bytes or sealing failed")
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0_u8; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

/// A key name cut to what a name may be, so that an error stays bounded.
fn short(name: &str) -> String {
    name.chars().take(128).collect()
}

#[cfg(test)]
mod tests;
