//! The conformance suite over the embedded software KMS, and over adapters that break a promise:
//! a suite that passes those would prove nothing.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

mod conformance;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::aead;
use base64::Engine as _;
use cmek_watchdog::clock;
use cmek_watchdog::key::{KeyRef, KeyTarget, KeyVersion};
use cmek_watchdog::kms::local::{LocalKms, LocalKmsFile};
use cmek_watchdog::kms::{Answer, BoxFuture, KeyFacts, Kms, Unwrapped, Wrapped};
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::words::{FailureKind, Leg, ProviderKind};
use conformance::{Bench, Expect};

struct LocalBench {
    _folder: tempfile::TempDir,
    file: LocalKmsFile,
    kms: Arc<dyn Kms>,
    made: AtomicU32,
}

fn local() -> LocalBench {
    broken(|kms| kms)
}

/// A bench whose adapter is wrapped into another.
fn broken(wrap: impl FnOnce(Arc<dyn Kms>) -> Arc<dyn Kms>) -> LocalBench {
    let folder = tempfile::tempdir().unwrap();
    let file = LocalKmsFile::open_or_create(&folder.path().join("kms.json"), &[], now()).unwrap();
    let kms = wrap(Arc::new(LocalKms::new(file.clone())));
    LocalBench { _folder: folder, file, kms, made: AtomicU32::new(0) }
}

fn now() -> Wall {
    clock::now().wall
}

fn target(name: &str) -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Local, name).unwrap())
}

impl Bench for LocalBench {
    fn name(&self) -> &'static str {
        "local"
    }
    fn expect(&self) -> Expect {
        Expect::default()
    }
    fn kms(&self) -> Arc<dyn Kms> {
        Arc::clone(&self.kms)
    }
    async fn make_key(&self) -> KeyTarget {
        let name = format!("key-{}", self.made.fetch_add(1, Ordering::SeqCst));
        self.file.create(&name, now()).unwrap();
        target(&name)
    }
    async fn unknown_key(&self) -> KeyTarget {
        target("never-made")
    }
    async fn disable(&self, key: &KeyTarget) -> bool {
        self.file.disable(key.address(), now()).is_ok()
    }
    async fn enable(&self, key: &KeyTarget) -> bool {
        self.file.enable(key.address(), now()).is_ok()
    }
    async fn schedule_deletion(&self, key: &KeyTarget) -> bool {
        self.file.schedule_deletion(key.address(), now().plus(Span::from_days(7)), now()).is_ok()
    }
    async fn cancel_deletion(&self, key: &KeyTarget) -> bool {
        self.file.cancel_deletion(key.address(), now()).is_ok()
    }
    async fn destroy(&self, key: &KeyTarget) -> bool {
        self.file.destroy(key.address(), now()).is_ok()
    }
    async fn rotate(&self, key: &KeyTarget) -> bool {
        self.file.rotate(key.address(), now()).is_ok()
    }
    async fn deny(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.file.deny(key.address(), &[leg], now()).is_ok()
    }
    async fn allow(&self, key: &KeyTarget, leg: Leg) -> bool {
        self.file.allow(key.address(), &[leg], now()).is_ok()
    }
    async fn disable_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.file.disable_version(key.address(), version, now()).is_ok()
    }
    async fn enable_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.file.enable_version(key.address(), version, now()).is_ok()
    }
    async fn destroy_version(&self, key: &KeyTarget, version: &KeyVersion) -> bool {
        self.file.destroy_version(key.address(), version, now()).is_ok()
    }
    /// Opens the canary from the file alone, by what is written about its layout.
    async fn plaintext_of(&self, key: &KeyTarget, wrapped: &Wrapped) -> Option<Vec<u8>> {
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(self.file.path()).unwrap()).unwrap();
        let version = wrapped.version.as_ref()?.as_str();
        let material = file["keys"][key.address()]["versions"][version]["material"].as_str()?;
        let material = base64::prelude::BASE64_STANDARD.decode(material).unwrap();
        let (header, rest) = wrapped.bytes.split_at(24);
        let (nonce, sealed) = rest.split_first_chunk::<12>().unwrap();
        let aad = [header, wrapped.sealed_with.as_bytes()].concat();
        let mut sealed = sealed.to_vec();
        let opener = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, &material).unwrap());
        opener.open_in_place(aead::Nonce::assume_unique_for_key(*nonce), aead::Aad::from(aad), &mut sealed).ok().map(|p| p.to_vec())
    }
}

/// A promise that an adapter may break.
#[derive(Clone, Copy)]
enum Breach {
    /// Gives the stored digest back instead of that of the bytes that came out.
    EchoesDigest,
    /// Wraps once and hands out the same canary again.
    StaleCanary,
    NoRequestId,
    /// Tells a refusal by state as if nobody had stated it.
    UnstatedState,
    /// Tells a refusal by permission as a fault of the provider.
    DenialAsFault,
    /// Reports the current version for every canary.
    CurrentVersionOnly,
    /// Opens with the context that is configured now.
    ContextOfToday,
    SilentDescribe,
    ChangingIdentity,
    /// Says that calls took an hour.
    WrongDuration,
}

struct Broken {
    inner: Arc<dyn Kms>,
    breach: Breach,
    kept: std::sync::Mutex<std::collections::BTreeMap<String, Wrapped>>,
    turns: AtomicU32,
}

impl Broken {
    fn spoil<T>(&self, mut answer: Answer<T>) -> Answer<T> {
        match (self.breach, &mut answer.result) {
            (Breach::NoRequestId, Err(_)) => answer.meta.request_id = None,
            (Breach::WrongDuration, _) => answer.meta.took = Span::from_hours(1),
            (Breach::UnstatedState, Err(error)) => error.stated = false,
            (Breach::DenialAsFault, Err(error)) if error.kind == FailureKind::AccessDenied => error.kind = FailureKind::ProviderFault,
            _ => {}
        }
        answer
    }
}

impl Kms for Broken {
    fn wrap_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(async move {
            let mut answer = self.spoil(self.inner.wrap_key(key).await);
            if let (Breach::StaleCanary, Ok(wrapped)) = (self.breach, &mut answer.result) {
                *wrapped = self.kept.lock().unwrap().entry(key.address().to_owned()).or_insert_with(|| wrapped.clone()).clone();
            }
            answer
        })
    }
    fn unwrap_key<'a>(&'a self, key: &'a KeyTarget, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Unwrapped>> {
        Box::pin(async move {
            let mut asked = wrapped.clone();
            if let Breach::ContextOfToday = self.breach {
                asked.sealed_with = self.inner.wrap_key(key).await.result.map_or(asked.sealed_with, |fresh| fresh.sealed_with);
            }
            let mut answer = self.spoil(self.inner.unwrap_key(key, &asked).await);
            match (self.breach, &mut answer.result) {
                (Breach::EchoesDigest, result) if result.as_ref().is_err_and(|e| e.kind == FailureKind::Misconfigured) => {
                    *result = Ok(Unwrapped { digest: wrapped.digest, version: None });
                }
                (Breach::CurrentVersionOnly, Ok(opened)) => {
                    opened.version = self.inner.describe_key(key).await.result.ok().and_then(|f| f.current_version);
                }
                _ => {}
            }
            answer
        })
    }
    fn describe_key<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<KeyFacts>> {
        Box::pin(async move {
            let mut answer = self.spoil(self.inner.describe_key(key).await);
            if let (Breach::SilentDescribe, Ok(facts)) = (self.breach, &mut answer.result) {
                facts.fault = None;
            }
            answer
        })
    }
    fn whoami<'a>(&'a self, key: &'a KeyTarget) -> BoxFuture<'a, Answer<Box<str>>> {
        Box::pin(async move {
            let mut answer = self.inner.whoami(key).await;
            if let Breach::ChangingIdentity = self.breach {
                answer.result = Ok(format!("session-{}", self.turns.fetch_add(1, Ordering::SeqCst)).into());
            }
            answer
        })
    }
}

/// What the suite says about an adapter with this breach.
async fn findings(breach: Breach) -> String {
    let bench =
        broken(|inner| Arc::new(Broken { inner, breach, kept: std::sync::Mutex::default(), turns: AtomicU32::new(0) }) as Arc<dyn Kms>);
    conformance::broken_promises(&bench).await.join("\n")
}

#[tokio::test]
async fn the_suite_finds_each_broken_promise() {
    for (breach, case) in [
        (Breach::EchoesDigest, "tampered_bytes: "),
        (Breach::EchoesDigest, "canary_of_another_key: "),
        (Breach::EchoesDigest, "wrong_context: "),
        (Breach::StaleCanary, "every_wrap_is_fresh: "),
        (Breach::NoRequestId, "every_answer: unwrap has no request id"),
        (Breach::UnstatedState, "disabled_is_refused_and_stated: "),
        (Breach::UnstatedState, "old_version_destroyed: "),
        (Breach::DenialAsFault, "denied_unwrap_leaves_wrap: "),
        (Breach::DenialAsFault, "denied_wrap_leaves_unwrap: "),
        (Breach::CurrentVersionOnly, "rotation_keeps_old_canaries: "),
        (Breach::ContextOfToday, "context_is_remembered: "),
        (Breach::SilentDescribe, "pending_deletion_is_refused_and_stated: "),
        (Breach::ChangingIdentity, "whoami_is_stable: "),
        (Breach::WrongDuration, "every_answer: wrap says it took 3600000 ms"),
    ] {
        let found = findings(breach).await;
        assert!(found.contains(case), "{case} is not among the findings:\n{found}");
    }
}

/// A bench that cannot rotate and does not say so.
struct Handless(LocalBench, &'static [&'static str]);

impl Bench for Handless {
    fn name(&self) -> &'static str {
        "handless"
    }
    fn expect(&self) -> Expect {
        Expect { unsupported: self.1, ..Expect::default() }
    }
    fn kms(&self) -> Arc<dyn Kms> {
        self.0.kms()
    }
    async fn make_key(&self) -> KeyTarget {
        self.0.make_key().await
    }
    async fn unknown_key(&self) -> KeyTarget {
        self.0.unknown_key().await
    }
}

#[tokio::test]
async fn a_case_that_is_not_played_must_be_declared() {
    const NO_HANDS: &[&str] = &[
        "disabled_is_refused_and_stated",
        "enabled_again_heals",
        "pending_deletion_is_refused_and_stated",
        "cancelled_deletion",
        "destroyed_key",
        "denied_unwrap_leaves_wrap",
        "denied_wrap_leaves_unwrap",
        "denied_describe_leaves_data_calls",
        "rotation_keeps_old_canaries",
        "old_version_disabled",
        "old_version_destroyed",
        "canary_never_shown",
    ];
    conformance::run(&Handless(local(), NO_HANDS)).await;
    let undeclared = conformance::broken_promises(&Handless(local(), &NO_HANDS[1..])).await;
    assert!(undeclared.len() == 1 && undeclared[0].starts_with(NO_HANDS[0]), "{undeclared:?}");
    let mut more = NO_HANDS.to_vec();
    more.push("round_trip");
    let played = conformance::broken_promises(&Handless(local(), more.leak())).await;
    assert!(played.len() == 1 && played[0].starts_with("round_trip"), "{played:?}");
}

#[tokio::test]
async fn the_local_kms_keeps_every_promise() {
    conformance::run(&local()).await;
}
