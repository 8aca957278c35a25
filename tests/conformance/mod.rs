//! The conformance suite: what every provider adapter must do, told without naming a provider.
//! A bench brings an adapter, a server to talk to and the hands to change keys there; the suite
//! holds the cases. A case that a bench cannot play must be declared, so nothing is skipped in silence.
#![allow(async_fn_in_trait, dead_code, reason = "shared by several test binaries, none of which is a library")]

mod cases;
mod ledger;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cmek_watchdog::key::{KeyTarget, KeyVersion};
use cmek_watchdog::kms::{Kms, Wrapped};
use cmek_watchdog::words::{FailureKind, Leg};

pub use ledger::Ledger;

/// How a provider must refuse: one of these kinds, and whether its answer states it.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    pub kinds: &'static [FailureKind],
    pub stated: bool,
}

/// Where a key stands after its scheduled deletion was cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterCancel {
    Usable,
    /// It must be enabled by hand (AWS, Google).
    Disabled,
}

/// What differs lawfully between providers. Start from `Expect::default()` and change little.
#[derive(Clone, Debug)]
pub struct Expect {
    /// Every good and every refused answer carries a request id.
    pub request_id: bool,
    /// `Wrapped.version` is told by the wrap call (AWS Encrypt does not tell it).
    pub wrap_names_version: bool,
    /// `Unwrapped.version` is told by the unwrap call.
    pub unwrap_names_version: bool,
    /// `KeyFacts.current_version` is told.
    pub describe_names_version: bool,
    /// `KeyFacts.versions` lists the enabled versions.
    pub describe_lists_versions: bool,
    /// `KeyFacts.deletion_at` is told while a deletion is pending.
    pub describe_tells_deletion: bool,
    /// `KeyFacts.rotated_at` is told after a rotation.
    pub describe_tells_rotation: bool,
    /// Wrap asks the provider; false where a wrap may be made with public material alone.
    pub wrap_is_refused_too: bool,
    /// The server checks integrity. False: it may answer 200 with other bytes (ministack).
    pub integrity: bool,
    pub after_cancel: AfterCancel,
    pub disabled: Refusal,
    pub pending_deletion: Refusal,
    pub destroyed: Refusal,
    pub denied: Refusal,
    pub version_disabled: Refusal,
    pub version_destroyed: Refusal,
    pub unknown_key: Refusal,
    /// What describe states where it differs from what the data calls say; `None` = the same.
    pub described_disabled: Option<Refusal>,
    pub described_pending_deletion: Option<Refusal>,
    pub described_destroyed: Option<Refusal>,
    /// How describe itself is refused when its permission is withdrawn; `None` = as the data calls are.
    pub described_denied: Option<Refusal>,
    /// Damaged or foreign wrapped bytes; only met where `integrity` holds.
    pub damaged: Refusal,
    /// Names of cases that this bench cannot play; the suite fails if another case is not played,
    /// and also if a case named here was played after all.
    pub unsupported: &'static [&'static str],
}

impl Default for Expect {
    fn default() -> Self {
        use FailureKind::{AccessDenied, Corrupt, Destroyed, Disabled, Misconfigured, PendingDeletion};
        let stated = |kinds| Refusal { kinds, stated: true };
        let silent = |kinds| Refusal { kinds, stated: false };
        Self {
            request_id: true,
            wrap_names_version: true,
            unwrap_names_version: true,
            describe_names_version: true,
            describe_lists_versions: true,
            describe_tells_deletion: true,
            describe_tells_rotation: true,
            wrap_is_refused_too: true,
            integrity: true,
            after_cancel: AfterCancel::Usable,
            disabled: stated(&[Disabled]),
            pending_deletion: stated(&[PendingDeletion]),
            destroyed: stated(&[Destroyed]),
            denied: silent(&[AccessDenied]),
            version_disabled: stated(&[Disabled]),
            version_destroyed: stated(&[Destroyed]),
            unknown_key: silent(&[Destroyed, Misconfigured]),
            described_disabled: None,
            described_pending_deletion: None,
            described_destroyed: None,
            described_denied: None,
            damaged: silent(&[Misconfigured, Corrupt]),
            unsupported: &[],
        }
    }
}

/// An adapter, its server, and the owner's hands. Each control function says whether it exists;
/// one that exists returns `true` only when the change is in force, and panics when it fails.
pub trait Bench {
    fn name(&self) -> &'static str;
    fn expect(&self) -> Expect;
    fn kms(&self) -> Arc<dyn Kms>;
    /// A new enabled key that only the caller uses.
    async fn make_key(&self) -> KeyTarget;
    /// A well-formed name behind which there is no key.
    async fn unknown_key(&self) -> KeyTarget;

    async fn disable(&self, _key: &KeyTarget) -> bool {
        false
    }
    async fn enable(&self, _key: &KeyTarget) -> bool {
        false
    }
    async fn schedule_deletion(&self, _key: &KeyTarget) -> bool {
        false
    }
    async fn cancel_deletion(&self, _key: &KeyTarget) -> bool {
        false
    }
    /// Destroys the key for good, at once.
    async fn destroy(&self, _key: &KeyTarget) -> bool {
        false
    }
    async fn rotate(&self, _key: &KeyTarget) -> bool {
        false
    }
    /// Withdraws the permission behind one leg (`Wrap`, `Unwrap` or `Describe`) and no other.
    async fn deny(&self, _key: &KeyTarget, _leg: Leg) -> bool {
        false
    }
    async fn allow(&self, _key: &KeyTarget, _leg: Leg) -> bool {
        false
    }
    async fn disable_version(&self, _key: &KeyTarget, _version: &KeyVersion) -> bool {
        false
    }
    async fn enable_version(&self, _key: &KeyTarget, _version: &KeyVersion) -> bool {
        false
    }
    async fn destroy_version(&self, _key: &KeyTarget, _version: &KeyVersion) -> bool {
        false
    }
    /// The canary itself, opened by other means than the adapter's `unwrap_key`.
    async fn plaintext_of(&self, _key: &KeyTarget, _wrapped: &Wrapped) -> Option<Vec<u8>> {
        None
    }
    /// The same key with another context bound into what it wraps.
    fn other_context(&self, key: &KeyTarget) -> KeyTarget {
        let mut other = key.clone();
        other.encryption_context.insert("conformance".to_owned(), "other".to_owned());
        other.additional_authenticated_data = Some("conformance-other".to_owned());
        other
    }
}

/// How a case ended. A broken promise is the `Err` of the case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Played {
    Yes,
    /// The bench has no hands for it.
    No,
}

pub type CaseResult = Result<Played, String>;

/// Fails the case with a message unless the condition holds.
macro_rules! ensure {
    ($cond:expr, $($text:tt)+) => {
        if !$cond {
            return Err(format!($($text)+));
        }
    };
}
/// Ends the case as not played unless the bench could do it.
macro_rules! needs {
    ($done:expr) => {
        if !$done {
            return Ok($crate::conformance::Played::No);
        }
    };
}
pub(crate) use {ensure, needs};

/// Plays every case against the bench and panics with all broken promises at the end.
pub async fn run<B: Bench>(bench: &B) {
    let broken = broken_promises(bench).await;
    assert!(broken.is_empty(), "{} breaks {} promises:\n  {}", bench.name(), broken.len(), broken.join("\n  "));
}

/// Plays every case against the bench; one line for each promise that was broken, `CASE: WHY`.
pub async fn broken_promises<B: Bench>(bench: &B) -> Vec<String> {
    let expect = bench.expect();
    let ledger = Arc::new(Ledger::new(bench.kms(), expect.request_id));
    let stage = cases::Stage { bench, kms: Arc::clone(&ledger) as Arc<dyn Kms>, expect: expect.clone() };
    let mut broken = Vec::new();
    let mut skipped = BTreeSet::new();
    let mut played = 0_usize;
    macro_rules! play {
        ($($case:ident),+ $(,)?) => { $(
            match tokio::time::timeout(Duration::from_secs(60), cases::$case(&stage)).await {
                Ok(Ok(Played::Yes)) => played += 1,
                Ok(Ok(Played::No)) => { skipped.insert(stringify!($case)); }
                Ok(Err(text)) => broken.push(format!("{}: {text}", stringify!($case))),
                Err(_) => broken.push(format!("{}: no end after 60 s", stringify!($case))),
            }
        )+ };
    }
    play!(
        round_trip,
        every_wrap_is_fresh,
        wrap_and_unwrap_name_the_version,
        describe_names_the_current_version,
        disabled_is_refused_and_stated,
        enabled_again_heals,
        pending_deletion_is_refused_and_stated,
        cancelled_deletion,
        destroyed_key,
        denied_unwrap_leaves_wrap,
        denied_wrap_leaves_unwrap,
        denied_describe_leaves_data_calls,
        rotation_keeps_old_canaries,
        old_version_disabled,
        old_version_destroyed,
        unknown_key,
        tampered_bytes,
        canary_of_another_key,
        wrong_context,
        context_is_remembered,
        whoami_is_stable,
        calls_at_once,
        dropped_calls_harm_nothing,
        canary_never_shown,
    );
    broken.extend(ledger.faults().into_iter().map(|text| format!("every_answer: {text}")));
    let declared: BTreeSet<&str> = expect.unsupported.iter().copied().collect();
    for case in skipped.symmetric_difference(&declared) {
        broken.push(format!("{case}: played although declared unsupported, or the other way round"));
    }
    println!("conformance of {}: {played} cases played, {} answers; not supported: {skipped:?}", bench.name(), ledger.answers());
    broken
}
