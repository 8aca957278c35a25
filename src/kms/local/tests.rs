use super::disk::LocalKmsFile;
use super::*;
use crate::key::KeyRef;
use crate::kms::Kms;
use crate::time::{Mono, Span};
use crate::words::ProviderKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

mod file;

const START: Wall = Wall(1_764_000_000_000);

/// A key file in a folder of its own and a clock that stands until it is moved.
struct Bench {
    folder: tempfile::TempDir,
    file: LocalKmsFile,
    kms: LocalKms,
    clock: Arc<AtomicI64>,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let file = LocalKmsFile::open_or_create(&folder.path().join("kms.json"), &["demo", "operator"], START).unwrap();
    let clock = Arc::new(AtomicI64::new(START.0));
    let moved = Arc::clone(&clock);
    let kms = LocalKms::with_clock(file.clone(), move || Now { mono: Mono(1 << 40), wall: Wall(moved.load(Ordering::SeqCst)) });
    Bench { folder, file, kms, clock }
}

fn target(name: &str) -> KeyTarget {
    KeyTarget::plain(KeyRef::parse(ProviderKind::Local, name).unwrap())
}

impl Bench {
    async fn wrap(&self) -> Result<Wrapped, KmsError> {
        self.kms.wrap_key(&target("demo")).await.result
    }
    async fn unwrap(&self, wrapped: &Wrapped) -> Result<Unwrapped, KmsError> {
        self.kms.unwrap_key(&target("demo"), wrapped).await.result
    }
    async fn describe(&self) -> Result<KeyFacts, KmsError> {
        self.kms.describe_key(&target("demo")).await.result
    }
    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("kms.json")
    }
    fn move_clock(&self, to: Wall) {
        self.clock.store(to.0, Ordering::SeqCst);
    }
    /// Code, kind and stated of wrap, unwrap and of describe's fault.
    async fn told(&self, canary: &Wrapped) -> [(String, FailureKind, bool); 3] {
        let flat = |e: KmsError| (e.code.to_string(), e.kind, e.stated);
        let describe = match self.describe().await {
            Ok(facts) => facts.fault.unwrap(),
            Err(error) => error,
        };
        [flat(self.wrap().await.unwrap_err()), flat(self.unwrap(canary).await.unwrap_err()), flat(describe)]
    }
}

fn all_three(code: &str, kind: FailureKind, stated: bool) -> [(String, FailureKind, bool); 3] {
    std::array::from_fn(|_| (code.to_owned(), kind, stated))
}

#[tokio::test]
async fn a_good_key_opens_its_canary_and_is_described() {
    let b = bench();
    let wrap = b.kms.wrap_key(&target("demo")).await;
    let canary = wrap.result.unwrap();
    assert_eq!(wrap.meta.request_id.as_ref().map(|id| id.len()), Some(32));
    assert_eq!(b.unwrap(&canary).await.unwrap(), Unwrapped { digest: canary.digest, version: Some(KeyVersion::new("1")) });
    assert_eq!(canary.sealed_with.as_ref(), r#"{"purpose":"cmek-watchdog-probe"}"#);
    let facts = b.describe().await.unwrap();
    assert_eq!(facts.current_version, Some(KeyVersion::new("1")));
    assert_eq!((facts.fault, facts.deletion_at, facts.rotated_at, facts.created_at), (None, None, None, Some(START)));
    assert_eq!(facts.protection_level.as_deref(), Some("software"));
    assert_eq!(b.kms.whoami(&target("demo")).await.result.as_deref(), Ok("local"));
}

#[tokio::test]
async fn a_disabled_key_refuses_both_calls_and_says_so() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    assert_eq!(b.file.disable("demo", START).unwrap().state, StandingWord::Disabled);
    assert_eq!(b.told(&canary).await, all_three("KeyDisabled", FailureKind::Disabled, true));
    b.file.enable("demo", START).unwrap();
    assert_eq!(b.unwrap(&canary).await.unwrap().digest, canary.digest);
    assert_eq!(b.describe().await.unwrap().fault, None);
}

#[tokio::test]
async fn a_scheduled_deletion_is_stated_then_becomes_destruction_when_its_time_has_come() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    let at = START.plus(Span::from_days(7));
    b.file.schedule_deletion("demo", at, START).unwrap();
    assert_eq!(b.told(&canary).await, all_three("KeyPendingDeletion", FailureKind::PendingDeletion, true));
    let facts = b.describe().await.unwrap();
    assert_eq!((facts.deletion_at, facts.recoverable_until), (Some(at), Some(at)));
    b.move_clock(at);
    assert_eq!(b.told(&canary).await, all_three("KeyDestroyed", FailureKind::Destroyed, true));
    assert_eq!(b.describe().await.unwrap().recoverable_until, None);
    // The next change of any key erases the material for good: no clock brings it back.
    b.file.disable("operator", at).unwrap();
    b.move_clock(START);
    assert_eq!(b.told(&canary).await, all_three("KeyDestroyed", FailureKind::Destroyed, true));
    assert!(b.file.read().unwrap().keys["demo"].versions[&1].material.is_none());
    assert!(matches!(
        b.file.cancel_deletion("demo", START).unwrap_err(),
        LocalKmsError::Standing { standing: StandingWord::Destroyed, .. }
    ));
}

#[tokio::test]
async fn a_cancelled_deletion_gives_back_what_was_before() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    let at = START.plus(Span::from_days(7));
    b.file.schedule_deletion("demo", at, START).unwrap();
    let moved = b.file.schedule_deletion("demo", at.plus(Span(1)), START).unwrap();
    assert_eq!(moved.deletion_at, Some(at.plus(Span(1))));
    assert_eq!(b.file.cancel_deletion("demo", START).unwrap().state, StandingWord::Enabled);
    assert_eq!(b.unwrap(&canary).await.unwrap().digest, canary.digest);
    b.file.disable("demo", START).unwrap();
    b.file.schedule_deletion("demo", at, START).unwrap();
    assert_eq!(b.file.cancel_deletion("demo", START).unwrap().state, StandingWord::Disabled);
}

#[tokio::test]
async fn a_destroyed_key_keeps_no_material_and_takes_no_order() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    b.file.destroy("demo", START).unwrap();
    let again = b.file.destroy("demo", START.plus(Span(5))).unwrap();
    assert_eq!((again.state, again.deletion_at), (StandingWord::Destroyed, Some(START)), "a second destruction moves nothing");
    assert_eq!(b.told(&canary).await, all_three("KeyDestroyed", FailureKind::Destroyed, true));
    assert!(b.file.read().unwrap().keys["demo"].versions.values().all(|v| v.material.is_none()));
    for refused in [
        b.file.enable("demo", START),
        b.file.disable("demo", START),
        b.file.rotate("demo", START),
        b.file.schedule_deletion("demo", START, START),
        b.file.cancel_deletion("demo", START),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, LocalKmsError::Standing { standing: StandingWord::Destroyed, .. }), "{error}");
        assert!(error.to_string().contains("kms.json") && error.to_string().contains("`demo`"), "{error}");
    }
}

#[tokio::test]
async fn a_missing_key_is_destroyed_but_nobody_states_it() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    let gone = target("gone");
    for error in [
        b.kms.wrap_key(&gone).await.result.unwrap_err(),
        b.kms.unwrap_key(&gone, &canary).await.result.unwrap_err(),
        b.kms.describe_key(&gone).await.result.unwrap_err(),
    ] {
        assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::Destroyed, false, "KeyNotFound"));
    }
    assert!(matches!(b.file.disable("gone", START), Err(LocalKmsError::UnknownKey { key, .. }) if key == "gone"));
}

#[tokio::test]
async fn each_leg_is_denied_alone_and_never_stated() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    for (legs, denied) in [
        (vec![Leg::Wrap], [true, false, false]),
        (vec![Leg::Unwrap], [false, true, false]),
        (vec![Leg::UnwrapVersion], [false, true, false]),
        (vec![Leg::Describe], [false, false, true]),
        (vec![Leg::Wrap, Leg::Unwrap], [true, true, false]),
    ] {
        b.file.deny("demo", &legs, START).unwrap();
        let errors = [b.wrap().await.err(), b.unwrap(&canary).await.err(), b.describe().await.err()];
        for (error, denied) in errors.into_iter().zip(denied) {
            assert_eq!(error.map(|e| (e.kind, e.stated)), denied.then_some((FailureKind::AccessDenied, false)), "{legs:?}");
        }
        assert!(b.file.allow("demo", &legs, START).unwrap().denied.is_empty());
    }
    // Permission is asked before state, as providers do it.
    b.file.disable("demo", START).unwrap();
    b.file.deny("demo", &[Leg::Unwrap], START).unwrap();
    assert_eq!(b.unwrap(&canary).await.unwrap_err().kind, FailureKind::AccessDenied);
}

#[tokio::test]
async fn rotation_keeps_old_versions_openable_and_their_states_apart() {
    let b = bench();
    let old = b.wrap().await.unwrap();
    let later = START.plus(Span::from_secs(9));
    let listing = b.file.rotate("demo", later).unwrap();
    assert_eq!((listing.current_version, listing.rotated_at, listing.versions.len()), (KeyVersion::new("2"), Some(later), 2));
    let new = b.wrap().await.unwrap();
    assert_eq!(new.version, Some(KeyVersion::new("2")));
    assert_eq!(b.unwrap(&old).await.unwrap(), Unwrapped { digest: old.digest, version: Some(KeyVersion::new("1")) });
    assert_eq!(b.describe().await.unwrap().rotated_at, Some(later));

    let one = KeyVersion::new("1");
    b.file.disable_version("demo", &one, later).unwrap();
    let error = b.unwrap(&old).await.unwrap_err();
    assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::Disabled, true, "VersionDisabled"));
    assert_eq!(b.unwrap(&new).await.unwrap().digest, new.digest);
    let facts = b.describe().await.unwrap();
    assert_eq!((facts.fault, facts.versions[0].enabled, facts.versions[1].enabled), (None, false, true));
    b.file.enable_version("demo", &one, later).unwrap();
    assert_eq!(b.unwrap(&old).await.unwrap().digest, old.digest);

    b.file.destroy_version("demo", &one, later).unwrap();
    let error = b.unwrap(&old).await.unwrap_err();
    assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::Destroyed, true, "VersionDestroyed"));
    assert!(matches!(b.file.enable_version("demo", &one, later), Err(LocalKmsError::VersionDestroyed { .. })));
    for unknown in ["3", "01", "", "x"] {
        let error = b.file.disable_version("demo", &KeyVersion::new(unknown), later).unwrap_err();
        assert!(matches!(error, LocalKmsError::UnknownVersion { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_off_current_version_is_a_fault_that_describe_states() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    b.file.disable_version("demo", &KeyVersion::new("1"), START).unwrap();
    assert_eq!(b.told(&canary).await, all_three("VersionDisabled", FailureKind::Disabled, true));
    b.file.destroy_version("demo", &KeyVersion::new("1"), START).unwrap();
    assert_eq!(b.told(&canary).await, all_three("VersionDestroyed", FailureKind::Destroyed, true));
    b.file.rotate("demo", START).unwrap();
    assert!(b.wrap().await.is_ok() && b.describe().await.unwrap().fault.is_none());
}

#[tokio::test]
async fn no_altered_byte_and_no_other_context_opens() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    for at in 0..canary.bytes.len() {
        let mut bytes = canary.bytes.to_vec();
        bytes[at] ^= 1;
        let error = b.unwrap(&Wrapped { bytes: bytes.into(), ..canary.clone() }).await.unwrap_err();
        let code = if (4..20).contains(&at) { "IncorrectKey" } else { "InvalidCiphertext" };
        assert_eq!((error.kind, error.stated, error.code.as_ref()), (FailureKind::Misconfigured, false, code), "byte {at}");
    }
    for length in 0..canary.bytes.len() {
        let cut = Wrapped { bytes: canary.bytes[..length].into(), ..canary.clone() };
        assert_eq!(b.unwrap(&cut).await.unwrap_err().kind, FailureKind::Misconfigured, "{length} bytes");
    }
    let mut own = target("demo");
    own.encryption_context.insert("tenant".into(), "acme".into());
    let other = b.kms.wrap_key(&own).await.result.unwrap();
    assert_eq!(other.sealed_with.as_ref(), r#"{"purpose":"cmek-watchdog-probe","tenant":"acme"}"#);
    let swapped = Wrapped { sealed_with: other.sealed_with.clone(), ..canary.clone() };
    assert_eq!(b.unwrap(&swapped).await.unwrap_err().code.as_ref(), "InvalidCiphertext");
    // What it was sealed with counts, not what is configured now.
    assert_eq!(b.unwrap(&other).await.unwrap().digest, other.digest);
}

#[tokio::test]
async fn a_key_made_again_in_a_new_file_does_not_pass_for_the_old_one() {
    let b = bench();
    let canary = b.wrap().await.unwrap();
    std::fs::remove_file(b.path()).unwrap();
    assert_eq!(b.told(&canary).await, all_three("FileMissing", FailureKind::ProviderFault, false));
    LocalKmsFile::open_or_create(&b.path(), &["demo"], START).unwrap();
    assert_eq!(b.unwrap(&canary).await.unwrap_err().code.as_ref(), "IncorrectKey");
}

#[tokio::test]
async fn nothing_secret_is_shown() {
    let b = bench();
    let vault = LocalWrapBytes::new(b.file.clone(), "operator");
    let book = b.file.read().unwrap();
    let material = book.keys["demo"].versions[&1].material.as_ref().unwrap().bytes().to_vec();
    let sealed = vault.wrap_bytes(b"an account of abuse").await;
    let shown = format!("{book:?} {:?} {vault:?} {:?} {sealed:?} {:?}", b.kms, b.file, b.file.list(START).unwrap());
    let listed = serde_json::to_string(&b.file.list(START).unwrap()).unwrap();
    for text in [shown, listed] {
        for form in [forms(&material), forms(b"an account of abuse")].concat() {
            assert!(!text.contains(&form), "shown: {form}");
        }
    }
}

/// The ways in which bytes get into a text.
fn forms(bytes: &[u8]) -> Vec<String> {
    use base64::Engine as _;
    let list = format!("{bytes:?}");
    vec![seal::hex(bytes), list[1..list.len() - 1].to_owned(), base64::prelude::BASE64_STANDARD.encode(bytes)]
}

#[tokio::test]
async fn the_vault_gets_its_bytes_back_and_opens_no_canary() {
    let b = bench();
    let vault = LocalWrapBytes::new(b.file.clone(), "demo");
    for plain in [b"".as_slice(), b"data key", &[7; 4096]] {
        let sealed = vault.wrap_bytes(plain).await.result.unwrap();
        assert_eq!(vault.unwrap_bytes(&sealed).await.result.as_deref(), Ok(plain));
        b.file.rotate("demo", START).unwrap();
        assert_eq!(vault.unwrap_bytes(&sealed).await.result.as_deref(), Ok(plain), "after a rotation");
    }
    let canary = b.wrap().await.unwrap();
    assert_eq!(vault.unwrap_bytes(&canary).await.result.unwrap_err().code.as_ref(), "InvalidCiphertext");
    b.file.disable("demo", START).unwrap();
    assert_eq!(vault.wrap_bytes(b"x").await.result.unwrap_err().kind, FailureKind::Disabled);
}

#[tokio::test]
async fn took_is_measured_on_the_clock_that_was_given() {
    let b = bench();
    let ticks = std::sync::atomic::AtomicU64::new(1 << 40);
    let kms = LocalKms::with_clock(b.file.clone(), move || Now { mono: Mono(ticks.fetch_add(25, Ordering::SeqCst)), wall: START });
    assert_eq!(kms.wrap_key(&target("demo")).await.meta.took, Span(25));
    let one = LocalKms::new(b.file.clone()).whoami(&target("demo")).await.meta;
    let two = LocalKms::new(b.file.clone()).whoami(&target("demo")).await.meta;
    assert_ne!(one.request_id, two.request_id);
}

#[test]
fn errors_name_file_and_key() {
    let file = LocalKmsFile::at(Path::new("/nowhere/kms.json"));
    let error = file.list(START).unwrap_err();
    assert_eq!(error.to_string(), "local key file /nowhere/kms.json does not exist");
    assert_eq!(error.without_folder(), "local key file kms.json does not exist");
    let b = bench();
    let error = b.file.rotate("gone", START).unwrap_err();
    assert_eq!(error.to_string(), format!("local key file {}: there is no key `gone`", b.path().display()));
}
